//! What a shutdown did: the same report for every caller.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Phase;

/// What a shutdown did, and what it left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The deadline it was given.
    pub within: Duration,
    /// How long it took.
    pub took: Duration,
    /// How long each phase took.
    pub phases: BTreeMap<Phase, Duration>,
    /// Tasks uploaded or deleted since it began.
    pub uploaded: u64,
    /// Tasks that are durable here and go up after the next open.
    pub deferred: u64,
    /// Requests that were given up and may still take effect.
    pub unknown: u64,
    /// Tasks in quarantine.
    pub quarantined: u64,
    /// Tasks of which the disk could not say whether it has them.
    pub undetermined: u64,
    /// Holds that were still held when their share of the deadline was over: name, and for how
    /// long.
    pub late_holds: Vec<(String, Duration)>,
    /// Whether the journal was synced and marked clean, and the directory unlocked.
    pub sealed: bool,
    /// Why not, where it was not.
    pub seal_error: Option<String>,
}
