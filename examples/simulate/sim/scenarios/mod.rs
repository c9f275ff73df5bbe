//! Scenarios with a name: the schedule of each row of the table, played by seed.
//!
//! Owns: which there are, and that each reached what it is about. Does not own: what has to be so
//! at all times (that is the simulation's, which looks on).
//!
//! 1. A scenario first asserts that its *given* was reached, then its *then*.
//! 2. Sizes, delays, orders, forms and who else is there are the seed's; the schedule is not.
//! 3. After it, all is well: one calm life, and one whose bytes come from S3 alone.

mod askers;
mod bodies;
mod crashes;
mod crowd;
mod disks;
mod ends;
mod garbage;
mod generations;
mod hand;
mod kept;
mod keys;
mod lines;
mod lives;
mod loads;
mod owners;
mod play;
mod progress;
mod queue;
mod restarts;
mod room;
mod troubles;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::env::lock;
use super::trace::Trace;
use super::{Outcome, Tally, text_of};
use play::Play;

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    pub name: &'static str,
    /// The rows of the table that it plays.
    pub rows: &'static [&'static str],
    pub given: &'static str,
    pub then: &'static str,
    play: fn(&mut Play),
}

/// All there are, by group.
pub fn all() -> Vec<Named> {
    let groups = [
        loads::ALL,
        room::ALL,
        ends::ALL,
        askers::ALL,
        crashes::ALL,
        lines::ALL,
        progress::ALL,
        keys::ALL,
        generations::ALL,
        queue::ALL,
        troubles::ALL,
        disks::ALL,
        bodies::ALL,
        owners::ALL,
        restarts::ALL,
        garbage::ALL,
    ];
    groups.concat()
}

/// Those of a row, or of this name.
pub fn of(what: &str) -> Vec<Named> {
    let is_it = |one: &Named| one.name == what || one.rows.contains(&what);
    all().into_iter().filter(is_it).collect()
}

/// Plays a scenario by a seed.
pub fn run(scenario: &Named, seed: u64, is_told: bool) -> Outcome {
    let trace = Arc::new(Trace::new(is_told));
    let mut play = Play::new(scenario.name, seed, &trace);
    let played = catch_unwind(AssertUnwindSafe(|| {
        (scenario.play)(&mut play);
        play.end();
    }));
    let failure = played.err().map(|panic| (text_of(&*panic), trace.last()));
    let tally: Tally = play.tally();
    Outcome {
        tally,
        hash: trace.hash(),
        failure,
    }
}

/// A scenario that was not kept.
#[derive(Debug)]
pub struct Failed {
    pub scenario: Named,
    pub seed: u64,
    pub text: String,
    /// The last that happened before.
    pub last: Vec<String>,
}

impl Failed {
    /// What it is, and how to see it again.
    pub fn told(&self) -> String {
        let Named {
            name,
            rows,
            given,
            then,
            ..
        } = self.scenario;
        let seed = self.seed;
        format!(
            "{} ({name}), seed {seed}: {}\n  given: {given}\n  then: {then}\nreplay: cargo run \
             --release --example simulate -- --scenario {name} --seed {seed} --log",
            rows.join(" "),
            self.text,
        )
    }
}

/// Plays scenarios, each by so many seeds, on so many threads.
pub fn play(
    which: &[Named],
    seeds: Range<u64>,
    jobs: usize,
    is_told: bool,
) -> (Tally, Vec<Failed>) {
    let all: Vec<(Named, u64)> = seeds
        .flat_map(|seed| which.iter().map(move |one| (*one, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let (tally, failed) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((scenario, seed)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(scenario, *seed, is_told);
                    lock(&tally).add(&outcome.tally);
                    if let Some((text, last)) = outcome.failure {
                        lock(&failed).push(Failed {
                            scenario: *scenario,
                            seed: *seed,
                            text,
                            last,
                        });
                    }
                }
            });
        }
    });
    (
        tally.into_inner().unwrap_or_default(),
        failed.into_inner().unwrap_or_default(),
    )
}
