//! For the tests of this crate and of engines that link it (feature `testing`).
//!
//! Owns: an S3 server on loopback with a fault plan and counters ([`server`]). Does not own:
//! anything that runs in production, and no AWS SDK: what talks to the server brings its own.

pub mod fs;
mod hook;
pub mod remote;
pub mod server;
pub mod weather;

/// The names of the instants at which a process can be made to die by `S3_WRITEBACK_CRASH_AT=name:n`,
/// in the order in which a task and a checkpoint pass them.
#[must_use]
pub fn crash_points() -> &'static [&'static str] {
    crate::crash_point::ALL
}

pub use server::{
    Action, Counters, FaultPlan, FaultRule, Gate, KeyMatch, Operation, RuleId, S3Server,
    S3ServerBuilder, SeenRequest, StoredObject, WaitError, When,
};
