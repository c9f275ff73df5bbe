//! For the tests of this crate and of engines that link it.
//!
//! Owns: a simulated file system and remote ([`fs`](mod@fs), [`remote`]; feature `simulated`); an S3
//! server on loopback with a fault plan and counters ([`server`]), and a TCP proxy on which the wire
//! to any server goes wrong ([`proxy`]; both feature `testing`). Does not own: anything that runs in
//! production, and no AWS SDK: what talks to the server brings its own.

pub mod fs;
mod hook;
#[cfg(feature = "testing")]
pub mod proxy;
pub mod remote;
#[cfg(feature = "testing")]
mod rules;
#[cfg(feature = "testing")]
pub mod server;
pub mod weather;

#[cfg(feature = "testing-tls")]
pub use proxy::ProxyCertificate;
#[cfg(feature = "testing")]
pub use proxy::{
    LinkSpeed, SeenExchange, WireCounters, WireFault, WirePlan, WireProxy, WireProxyBuilder,
    WireRule, WireRuleId, WireWaitError,
};
#[cfg(feature = "testing")]
pub use server::{
    Action, Counters, FaultPlan, FaultRule, Gate, KeyMatch, Operation, RuleId, S3Server,
    S3ServerBuilder, SeenRequest, StoredObject, WaitError, When,
};

/// The names of the instants at which a process can be made to die by `S3_WRITEBACK_CRASH_AT=name:n`,
/// in the order in which a task and a checkpoint pass them.
#[cfg(feature = "testing")]
#[must_use]
pub fn crash_points() -> &'static [&'static str] {
    crate::crash_point::ALL
}
