//! The simulation, for a fixed set of seeds: see `examples/simulate`.
//!
//! | variable | |
//! |---|---|
//! | `SIMULATE_SEEDS` | FIRST..END (default 0..200) |
//! | `SIMULATE_EVERY` | the sweep tries every so manyth call (default 10); 1: all |

#[path = "../examples/simulate/sim/mod.rs"]
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

fn replay(seed: u64) -> String {
    format!("cargo run --release --example simulate -- --seed {seed} --log")
}

fn seeds() -> (u64, u64) {
    let Ok(text) = std::env::var("SIMULATE_SEEDS") else {
        return (0, 200);
    };
    let parsed = text
        .split_once("..")
        .and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
    parsed.unwrap_or_else(|| panic!("SIMULATE_SEEDS={text:?} is not FIRST..END"))
}

/// Whatever goes wrong, nothing that was promised is broken.
#[test]
fn seeds_keep_every_promise() {
    let (first, end) = seeds();
    let next = AtomicU64::new(first);
    let (failed, tally) = (Mutex::new(Vec::new()), Mutex::new(sim::Tally::default()));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(seed) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|s| *s < end)
                {
                    let outcome = sim::run(seed, false);
                    tally.lock().unwrap().add(&outcome.tally);
                    if let Some((text, last)) = outcome.failure {
                        let told = format!(
                            "{}\nseed {seed}: {text}\nreplay: {}",
                            last.join("\n"),
                            replay(seed)
                        );
                        failed.lock().unwrap().push(told);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    if let Some(first) = failed.first() {
        panic!("{} seeds failed, one of them:\n{first}", failed.len());
    }
    // A run in which nothing happened proves nothing.
    let tally = tally.into_inner().unwrap();
    if end - first >= 200 {
        assert!(tally.faults.len() >= 10, "{tally:?}");
        assert!(tally.ends.len() == 5 && tally.taken_over > 0, "{tally:?}");
        assert!(tally.checked > 500, "{tally:?}");
    }
}

/// The same seed does the same, to the last event.
#[test]
fn a_seed_can_be_lived_again() {
    for seed in 0..12 {
        let (once, again) = (sim::run(seed, false), sim::run(seed, false));
        assert_eq!(once.hash, again.hash, "seed {seed}: {}", replay(seed));
    }
}

/// Whichever call fails, and whenever the process ends, nothing that was promised is broken. The
/// example tries every call (`--sweep`), this every tenth on the disk and every third to S3.
#[test]
fn the_nth_call_fails() {
    let every = std::env::var("SIMULATE_EVERY");
    let every: u64 = every.map_or(10, |text| text.parse().expect("a number"));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let swept = sim::sweep::sweep(jobs, |what| match what.is_on_the_disk() {
        true => every,
        false => every.div_ceil(4),
    });
    if let Some((case, text, last)) = swept.failed.first() {
        panic!(
            "{} of {} runs failed, one of them:\n{}\n{case}: {text}\nreplay: cargo run --release \
             --example simulate -- --case {case} --log",
            swept.failed.len(),
            swept.runs(),
            last.join("\n"),
        );
    }
    // A sweep that met nothing proves nothing.
    println!("{:#?}", swept.struck);
    assert_eq!(swept.struck.len(), sim::sweep::What::all().len());
    assert!(swept.runs() > 300, "{}", swept.runs());
}

/// Every scenario that has a name holds, by a few seeds each; and the table of the page names each
/// row that has one. The example plays more (`--scenarios`).
#[test]
fn every_named_scenario_holds() {
    use std::collections::BTreeSet;
    let all = sim::scenarios::all();
    let page = include_str!("../docs/simulation.md");
    let (_, table) = page
        .split_once("## Scenarios with a name")
        .expect("has one");
    let table = table.split("\n## ").next().unwrap_or_default();
    let lines = table.lines().filter_map(|line| line.strip_prefix("| "));
    // Row, and the name in backticks.
    let listed: BTreeSet<(String, String)> = lines
        .filter_map(|line| {
            let mut cells = line.split(" | ");
            let (rows, name) = (cells.next()?, cells.next()?.strip_prefix('`')?);
            Some((rows, name.strip_suffix('`')?))
        })
        .flat_map(|(rows, name)| {
            let each = rows.split(' ').map(str::to_owned);
            each.map(|row| (row, name.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    let played: BTreeSet<(String, String)> = all
        .iter()
        .flat_map(|one| {
            one.rows
                .iter()
                .map(|row| (row.to_string(), one.name.to_owned()))
        })
        .collect();
    assert!(
        listed
            .iter()
            .all(|(row, _)| !sim::scenarios::of(row).is_empty())
    );
    let unlisted: Vec<_> = played.difference(&listed).collect();
    let unplayed: Vec<_> = listed.difference(&played).collect();
    assert!(
        unlisted.is_empty(),
        "not in docs/simulation.md: {unlisted:?}"
    );
    assert!(
        unplayed.is_empty(),
        "in docs/simulation.md, and nowhere else: {unplayed:?}"
    );
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let (tally, failed) = sim::scenarios::play(&all, 0..2, jobs, false);
    if let Some(first) = failed.first() {
        panic!(
            "{} failed, one of them:\n{}\n{}",
            failed.len(),
            first.last.join("\n"),
            first.told()
        );
    }
    assert!(tally.checked > 200 && all.len() > 80, "{tally:?}");
}
