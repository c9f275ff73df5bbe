//! What callers append, and who hears what became of it.
//!
//! Owns: the caller's side of a record. Does not own: its bytes on disk (`frame.rs`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::JournalFailure;
use super::stage::StagedPayload;

/// A record's number: assigned at append, rising, never used twice in a directory. The location
/// of a task's first record is the task's durable id. The first is 1.
pub type Location = u64;

/// What a record does to the set of live tasks ("owners").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Starts an owner, named by this record's own location. Live until its `End`.
    Begin,
    /// Says something about an owner. Live while the owner is, until a later one for the same
    /// owner and slot.
    Note {
        /// The owner.
        owner: Location,
        /// Which of the owner's notes this replaces; the caller's meaning.
        slot: u8,
    },
    /// Ends an owner.
    End {
        /// The owner.
        owner: Location,
    },
}

/// The bytes that an owner carries.
#[derive(Debug, Default)]
pub enum Payload {
    /// None.
    #[default]
    None,
    /// In the record itself; at most [`Journal::inline_limit`](super::Journal::inline_limit)
    /// bytes.
    Inline(Bytes),
    /// In a file of its own.
    Staged(StagedPayload),
}

/// A record to append.
#[derive(Debug)]
pub struct Append {
    /// The caller's meaning of the record.
    pub kind: u8,
    /// What it does to the set of live owners.
    pub effect: Effect,
    /// The caller's metadata, at most 1 MiB (for an `End`: `end_head_bytes`).
    pub head: Bytes,
    /// The owner's bytes; with `Begin` only.
    pub payload: Payload,
    /// Whether somebody waits for it to be durable. A `Note` with `false` asks for no fdatasync
    /// of its own: it is written at once (`kill -9` keeps it) and synced with the next record
    /// that asks, and it is left out altogether when there is no room. Only notes may say
    /// `false`; for others it is taken as `true`.
    pub sync: bool,
    /// Whether what comes after it would be wrong without it: see [`Append::vital`].
    pub vital: bool,
    /// See [`Append::lasting`].
    pub lasting: bool,
}

impl Append {
    /// A record that starts an owner.
    #[must_use]
    pub fn begin(kind: u8, head: impl Into<Bytes>, payload: Payload) -> Self {
        Self {
            kind,
            effect: Effect::Begin,
            head: head.into(),
            payload,
            sync: true,
            vital: false,
            lasting: false,
        }
    }

    /// A record about an owner.
    #[must_use]
    pub fn note(kind: u8, owner: Location, slot: u8, head: impl Into<Bytes>) -> Self {
        Self {
            kind,
            effect: Effect::Note { owner, slot },
            head: head.into(),
            payload: Payload::None,
            sync: true,
            vital: false,
            lasting: false,
        }
    }

    /// A record that ends an owner.
    #[must_use]
    pub fn end(kind: u8, owner: Location, head: impl Into<Bytes>) -> Self {
        Self {
            kind,
            effect: Effect::End { owner },
            head: head.into(),
            payload: Payload::None,
            sync: true,
            vital: false,
            lasting: false,
        }
    }

    /// The same record, for which there is room even where the disk is full: a note or an owner
    /// without which a later end would be wrong. It takes what the ends of live owners are
    /// reserved beyond the least that an end needs ([`JournalOptions::end_head_bytes`] against
    /// 8), so it should be small, and few to an owner.
    ///
    /// [`JournalOptions::end_head_bytes`]: super::JournalOptions::end_head_bytes
    #[must_use]
    pub fn vital(mut self) -> Self {
        self.vital = true;
        self
    }

    /// The same record, with no fdatasync of its own, that is left out only where a synced note
    /// would have to wait: it need not survive the power, but should the process.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.sync = false;
        self.lasting = true;
        self
    }

    /// The same record, with no fdatasync of its own.
    #[must_use]
    pub fn unsynced(mut self) -> Self {
        self.sync = false;
        self
    }
}

/// Who hears what became of records. Called by the committer, on an I/O thread, with no lock
/// held; must not block. Every location is reported exactly once: by `durable` (or
/// `durable_ahead`), by `void` or by `undetermined`.
pub trait CommitSink: Send + Sync + 'static {
    /// Every location up to `upto` is durable, but for those reported otherwise before.
    fn durable(&self, upto: Location);
    /// These locations will never be recovered.
    fn void(&self, locations: &[Location], cause: &JournalFailure);
    /// Disk room has become short (`true`): new owners wait, notes and ends go on. Or it is back.
    fn space(&self, short: bool);
    /// These locations, all above the last `durable`, are durable while an earlier `Begin` still
    /// waits for disk room. `durable` will cover them again once it can.
    fn durable_ahead(&self, locations: &[Location]) {
        let _ = locations;
    }
    /// Nobody can say whether these locations survive; the journal has failed.
    fn undetermined(&self, locations: &[Location], cause: &JournalFailure) {
        let _ = (locations, cause);
    }
    /// The journal has failed and takes no records any more. Called once, after the last `void`
    /// and `undetermined`.
    fn failed(&self, cause: &JournalFailure) {
        let _ = cause;
    }
}
