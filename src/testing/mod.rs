//! For the tests of this crate and of engines that link it (feature `testing`).
//!
//! Owns: an S3 server on loopback with a fault plan and counters ([`server`]). Does not own:
//! anything that runs in production, and no AWS SDK: what talks to the server brings its own.

pub mod fs;
mod hook;
pub mod remote;
pub mod server;
pub mod weather;

pub use server::{
    Action, Counters, FaultPlan, FaultRule, Gate, KeyMatch, Operation, RuleId, S3Server,
    S3ServerBuilder, SeenRequest, StoredObject, WaitError, When,
};
