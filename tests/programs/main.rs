//! The examples as real processes: what they end with, also where they are killed.
//!
//! `cargo test` builds the examples; `cargo test --test programs` alone does not.

mod game_day;
mod harness;
mod probe;
