//! Random lives of a part store against a model of plain bytes.
//!
//! Each case is a seed: a configuration that is too small for what is done, and a few lives of one
//! store on one directory and bucket, which end in a shutdown, a power cut, a kill, or without a
//! word. A failure prints its seed and how to run it alone.
//!
//! | variable | |
//! |---|---|
//! | `S3_WRITEBACK_SEED` | runs this case only, and prints what is done |
//! | `S3_WRITEBACK_CASES` | how many cases (default 60) |
//! | `S3_WRITEBACK_FIRST` | the first of them (default 0) |
//! | `S3_WRITEBACK_GO_ON` | goes on after a failure, and names all seeds at the end |
//!
//! The cases are the same in every run; which of two tasks that are ready goes first is not always.

mod actors;
mod life;
mod model;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let parsed = text.parse().ok();
    Some(parsed.unwrap_or_else(|| panic!("{name}={text:?} is no number")))
}

/// Names the case that has not moved for a minute: it spins, or the clock stands still.
fn watch(seed: &Arc<AtomicU64>) {
    let seed = Arc::downgrade(seed);
    let watching = move || {
        let mut last = (u64::MAX, 0);
        while let Some(seed) = seed.upgrade().map(|seed| seed.load(Ordering::Relaxed)) {
            last = if last.0 == seed {
                (seed, last.1 + 1)
            } else {
                (seed, 0)
            };
            if last.1 == 60 {
                eprintln!("seed {seed} has not ended for a minute: {}", replay(seed));
            }
            std::thread::park_timeout(Duration::from_secs(1));
        }
    };
    let thread = std::thread::Builder::new().name("watch".to_owned());
    drop(thread.spawn(watching).expect("a thread"));
}

fn replay(seed: u64) -> String {
    format!(
        "S3_WRITEBACK_SEED={seed} cargo test --no-default-features --test parts random::random_lives"
    )
}

/// What is read is what was written; what was promised outlives crashes; nothing waits for ever.
#[test]
fn random_lives_keep_their_promises() {
    if let Some(seed) = setting("S3_WRITEBACK_SEED") {
        life::case(seed, true);
        return;
    }
    let cases: u64 = setting("S3_WRITEBACK_CASES").unwrap_or(60);
    let first: u64 = setting("S3_WRITEBACK_FIRST").unwrap_or(0);
    let go_on = std::env::var("S3_WRITEBACK_GO_ON").is_ok();
    let current = Arc::new(AtomicU64::new(first));
    watch(&current);
    let mut failed = Vec::new();
    for seed in first..first + cases {
        current.store(seed, Ordering::Relaxed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| life::case(seed, false))) {
            eprintln!("seed {seed} failed: {}", replay(seed));
            if !go_on {
                std::panic::resume_unwind(panic);
            }
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            failed.push((seed, text.lines().next().unwrap_or_default().to_owned()));
        }
    }
    for (seed, text) in &failed {
        eprintln!(
            "seed {seed}: {}",
            text.chars().take(160).collect::<String>()
        );
    }
    assert!(
        failed.is_empty(),
        "{} of {cases} cases failed",
        failed.len()
    );
}

/// A case does the same every time.
#[test]
fn a_life_can_be_lived_again() {
    for seed in 0..10 {
        let once = life::sequential(seed);
        assert_eq!(once, life::sequential(seed), "seed {seed}");
    }
}
