//! The simulation: lives of a store by seed, with everything that can go wrong.
//!
//! Owns: what happens in a seed, and the oracle. Does not own: which seeds are run, or how what
//! came of them is told (`main.rs`, `tests/simulation.rs`).
//!
//! One thread, paused time, one seed: the same seed does the same every time. The real queue,
//! journal, workers, part store, checkpointer and shutdown run on a simulated S3 and disk.
//!
//! | file | |
//! |---|---|
//! | `life` | lives, how they end, and what is looked at in between |
//! | `pages`, `objects`, `versions` | what is done: parts, named objects, checkpoints |
//! | `skies` | what goes wrong |
//! | `model`, `watch` | what must be so |
//! | `sweep`, `nth`, `script` | no chance: the same work, and each of its calls fails once |
//! | `scenarios` | schedules with a name, each by seed |
//! | `acts` | what is noted of what is done to a file |
//! | `env` | which errors may be, and how long a wait |
//! | `woken` | nobody is polled who was not woken |
//! | `knobs`, `trace`, `stage` | what a seed decides; what happened; where a life is lived |

mod acts;
mod env;
#[path = "../../../tests/support/how.rs"]
mod how;
mod knobs;
mod life;
mod model;
mod nth;
mod objects;
mod pages;
pub mod scenarios;
mod script;
mod skies;
mod stage;
pub mod sweep;
mod trace;
mod versions;
mod watch;
mod woken;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use trace::Trace;

/// What a run of seeds did.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub simulated: Duration,
    /// By kind.
    pub faults: BTreeMap<String, u64>,
    /// Of lives.
    pub ends: BTreeMap<String, u64>,
    pub taken_over: u64,
    /// Checkpoints that were read and compared.
    pub checked: u64,
    pub events: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.simulated += other.simulated;
        for (name, count) in &other.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &other.ends {
            *self.ends.entry(name.clone()).or_default() += count;
        }
        self.taken_over += other.taken_over;
        self.checked += other.checked;
        self.events += other.events;
    }
}

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    /// Of all that happened.
    pub hash: u64,
    /// What was wrong, and the last that happened before.
    pub failure: Option<(String, Vec<String>)>,
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_default()
}

/// Lives a seed.
pub fn run(seed: u64, is_told: bool) -> Outcome {
    let trace = Arc::new(Trace::new(is_told));
    let mut world = life::World::new(seed, &trace);
    let lived = catch_unwind(AssertUnwindSafe(|| world.go()));
    let failure = lived.err().map(|panic| (text_of(&*panic), trace.last()));
    Outcome {
        tally: world.tally.clone(),
        hash: trace.hash(),
        failure,
    }
}
