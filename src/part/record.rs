//! What parts write into the journal: record kinds and their bytes.
//!
//! Owns: the kinds, the slots of notes and the encoding (postcard; `docs/formats/parts.md`). Does
//! not own: when they are written (`intent.rs`, `settle.rs`, `create.rs`, `length.rs`), or what they
//! amount to (`replay.rs`). Kinds are never reused; a record that changes becomes a new kind.

use serde::{Deserialize, Serialize};

use super::header::Address;

/// Kinds of records. Those below 16 are the queue's.
pub(crate) mod kind {
    /// Begins a file; it lives as long as the file. Its location is the file's incarnation.
    pub(crate) const FILE: u8 = 16;
    /// Changes of a file's header.
    pub(crate) const HEADER: u8 = 17;
    /// An epoch: what its number in an address stands for.
    pub(crate) const EPOCH: u8 = 18;
    /// The end of any of these.
    pub(crate) const END: u8 = 19;
    /// A note on a file.
    pub(crate) const NOTE: u8 = 20;

    /// A file that was dropped, and that a checkpoint may still have; it lives until one has not.
    pub(crate) const DROPPED: u8 = 21;
    /// What this directory stands on, and which epoch it has: one a directory.
    pub(crate) const STAND: u8 = 22;

    /// Whether a record is one of these.
    pub(crate) const fn is_parts(kind: u8) -> bool {
        kind >= FILE && kind <= STAND
    }
}

/// Slots of notes on a file.
pub(crate) mod slot {
    /// [`super::SnapshotNote`]
    pub(crate) const SNAPSHOT: u8 = 1;
    /// [`super::LengthNote`]
    pub(crate) const LENGTH: u8 = 2;
    /// An fsync of the file failed: what it reads as is not what is on the disk.
    pub(crate) const FAILED: u8 = 3;
}

/// A file as created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub id: u64,
    pub part_bytes: u32,
    /// Part of the name of the local file, so that no two incarnations share one.
    pub token: u64,
}

/// A file that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DroppedRecord {
    pub id: u64,
    pub token: u64,
}

/// Changes of one file's header, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeaderRecord {
    /// The file's incarnation.
    pub file: u64,
    pub changes: Vec<Change>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// The part is about to be written to. From here on its local bytes are the truth: at once
    /// where they are `trusted`, else from [`Change::Trusted`] on, and the entry until then.
    Intent { index: u32, trusted: bool },
    /// The local bytes of the part are on the disk.
    Trusted { index: u32 },
    /// A new image; it ends the intent where nothing was written after it was taken.
    Entry {
        index: u32,
        address: Address,
        ends: bool,
    },
    /// Nothing was written under the intent that the entry does not have.
    IntentEnded { index: u32 },
    /// The file was cut to this length: nothing of what lay behind is left, but perhaps bytes in
    /// the local file.
    Cut { len: u64 },
    /// Nor those.
    CutDone,
}

/// Which snapshot of the header counts, and up to which record it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotNote {
    pub number: u64,
    pub upto: u64,
}

/// The file has grown to this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LengthNote {
    pub len: u64,
}

/// What the number of an epoch stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    pub number: u32,
    /// Random while nobody owns the prefix by `head`.
    pub name: u64,
}

/// The bytes of a record.
pub(crate) use crate::queue::record::{decode, encode};
