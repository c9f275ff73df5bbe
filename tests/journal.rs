//! The journal's promises, over a file system that fails, tears and forgets.
//!
//! Rows of the scenario table are named where they are kept. A failing seed is printed with the
//! assertion; `JOURNAL_SEED=<seed> cargo test --test journal random` runs it alone.

#[path = "journal/directory.rs"]
mod directory;
#[path = "journal/faults.rs"]
mod faults;
#[path = "journal/log.rs"]
mod log;
#[path = "journal/model.rs"]
mod model;
#[path = "journal/random.rs"]
mod random;
