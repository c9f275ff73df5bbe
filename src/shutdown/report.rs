//! What a shutdown did: the same report for every caller.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::part::FailingPart;
use crate::queue::task::TaskId;

use super::Phase;

/// The most tasks that a report names.
pub const MAX_FAILING: usize = 100;

/// A task that shutdown left, and that had failed before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailingTask {
    /// Its id.
    pub task: TaskId,
    /// Its key.
    pub key: String,
    /// Whether it is in quarantine; otherwise it is tried again after the next open.
    pub quarantined: bool,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Why it is in quarantine, or the last of those failures.
    pub cause: String,
}

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
    /// Tasks that are left and had failed: which, and why; the first [`MAX_FAILING`].
    pub failing: Vec<FailingTask>,
    /// Parts of files that are durable here, and not in S3 as they are.
    pub dirty_parts: u64,
    /// Those of them that S3 refuses; the first [`MAX_FAILING`].
    pub failing_parts: Vec<FailingPart>,
    /// The number of the last checkpoint, where shutdown made one.
    pub checkpoint: Option<u64>,
    /// Why it made none, where it was to.
    pub checkpoint_error: Option<String>,
    /// Parts that another owner of the prefix does not have as they are here, where it has claimed
    /// the prefix: they can be read from this directory.
    pub stranded: u64,
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
