//! What can be seen of a queue.
//!
//! Owns: the shape of [`Snapshot`]. Does not own: the counters, which live where they are counted.

use serde::Serialize;

use crate::journal::JournalStatus;
use crate::phase::Phase;
use crate::queue::Counts;
use crate::remote::probe::Capabilities;
use crate::remote::{Adaptations, ErrorCount};
use crate::worker::TrafficSnapshot;

/// A queue at one instant. All counters are since open.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Running, or which phase of shutdown.
    pub phase: Phase,
    /// From 0 (empty) to 100 (full).
    pub pressure: u8,
    /// Tasks by state.
    pub tasks: Counts,
    /// Tasks admitted and not settled.
    pub admitted_tasks: u64,
    /// Bytes of their bodies.
    pub admitted_bytes: u64,
    /// Bytes of disk charged for them.
    pub admitted_disk_bytes: u64,
    /// Bytes of bodies in memory: submitted, or read by attempts. Without those of the checkpoint's
    /// reserve.
    pub memory_bytes: u64,
    /// Those of them that attempts have read.
    pub memory_reading_bytes: u64,
    /// The most bytes of bodies in memory at one time.
    pub peak_memory_bytes: u64,
    /// Memory was short, and is not below four fifths of its limit yet.
    pub memory_throttled: bool,
    /// Bytes of bodies that were dropped from memory because it was short.
    pub spilled_bytes: u64,
    /// The most tasks that were admitted at one time.
    pub peak_tasks: u64,
    /// The most bytes that were admitted at one time.
    pub peak_bytes: u64,
    /// Tasks in the checkpoint's reserve.
    pub reserve_tasks: u64,
    /// Callers that wait for room.
    pub admission_waiters: usize,
    /// Shutdown holds: name and age in milliseconds.
    pub holds: Vec<(String, u64)>,
    /// Tasks uploaded.
    pub uploaded: u64,
    /// Bytes of their bodies.
    pub uploaded_bytes: u64,
    /// Objects of the store's own uploaded: packs of images of parts, and of pages of checkpoints.
    pub packs_uploaded: u64,
    /// Their bytes.
    pub pack_bytes_uploaded: u64,
    /// Keys deleted.
    pub deleted: u64,
    /// Requests made to S3.
    pub requests: u64,
    /// Requests whose reply was lost.
    pub unknown: u64,
    /// Requests that failed, by code: first the codes that nobody has heard of, which are tried
    /// again for as long as they last. At most 161.
    pub remote_errors: Vec<ErrorCount>,
    /// Given-up requests that may still take effect.
    pub outstanding: usize,
    /// Tasks that went to quarantine.
    pub quarantined: u64,
    /// Bytes of the bodies that are in quarantine now.
    pub quarantined_bytes: u64,
    /// Tasks that were owed at open.
    pub recovered: u64,
    /// How much is sent to S3, and why not more.
    pub traffic: TrafficSnapshot,
    /// What the server was seen to do, once it was asked.
    pub capabilities: Option<Capabilities>,
    /// What the remote does for this server otherwise than for S3, where it ever does.
    pub adaptations: Option<Adaptations>,
    /// The journal.
    pub journal: JournalStatus,
    /// The last stall that the watchdog saw.
    pub last_stall: Option<String>,
}
