//! The main job as a real process: it loses nothing, whatever S3 does, and also where it is
//! killed.
//!
//! It runs the compiled example `long_insert_shutdown`, which `cargo test` builds (and
//! `cargo test --test programs harness` alone does not). `S3_WRITEBACK_KILLS` sets the number of
//! kills (default 3), `S3_WRITEBACK_KILL_SEED` their moments.

mod kills;
mod metrics;
mod pages;
mod process;
mod runs;
