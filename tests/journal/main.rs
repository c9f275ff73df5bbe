//! The journal's promises, over a file system that fails, tears and forgets.
//!
//! Rows of the scenario table are named where they are kept. A failing seed is printed with the
//! assertion; `JOURNAL_SEED=<seed> cargo test --test journal random` runs it alone.

mod directory;
mod faults;
mod log;
mod model;
mod random;
