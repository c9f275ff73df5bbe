//! What the disk says at open.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::Location;

/// A place in the journal that was acknowledged and cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Locations known to be missing; there may be others.
    pub missing: Vec<Location>,
    /// What was found there.
    pub what: String,
    /// Where the raw bytes are kept, if they could be.
    pub kept: Option<PathBuf>,
}

/// An owner that was live when the journal was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredOwner {
    /// Its durable id.
    pub location: Location,
    /// Kind of the record that began it.
    pub kind: u8,
    /// Head of the record that began it.
    pub head: Bytes,
    /// Length of its payload in bytes, if it has one.
    pub payload: Option<u64>,
    /// Its notes, the latest of each slot, by slot.
    pub notes: Vec<RecoveredNote>,
}

/// The latest note of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredNote {
    /// The slot.
    pub slot: u8,
    /// Kind of the record.
    pub kind: u8,
    /// Its location.
    pub location: Location,
    /// Its head.
    pub head: Bytes,
}

/// What open found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Live owners, by location.
    pub owners: Vec<RecoveredOwner>,
    /// Damage, in the order of the log. New in this open or left from an earlier one.
    pub damage: Vec<Damage>,
    /// Whether the journal was sealed, and nothing written since.
    pub clean: bool,
    /// The next location that will be assigned.
    pub next_location: Location,
    /// Records read, dead ones and copies included.
    pub records: u64,
    /// The directory is not where it was made: nothing may be sent until
    /// [`Journal::adopt`](super::Journal::adopt).
    pub moved: bool,
    /// Notes of owners whose own record is lost.
    pub orphan_notes: u64,
}
