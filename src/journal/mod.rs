//! The append-only, checksummed local log.

pub mod error;
mod frame;
pub mod fs;
mod options;
mod payload;
mod record;
mod recovery;
mod stage;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};

use crate::io::Io;

pub use error::{JournalError, JournalFailure};
use fs::Fs;
pub use options::{JournalOptions, OnDamage};
pub use payload::PayloadHandle;
pub use record::{Append, CommitSink, Effect, Location, Payload};
pub use recovery::{Damage, Recovered, RecoveredNote, RecoveredOwner};
pub use stage::{StageSource, StagedPayload};

/// stub
#[derive(Debug, Clone)]
pub struct Journal {}

/// A journal's figures at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    /// Location of the last record that, with all before it, is durable.
    pub durable: Location,
    /// The next location that will be assigned.
    pub next_location: Location,
    /// Records appended and not yet durable.
    pub pending_records: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Live owners.
    pub owners: u64,
    /// Bytes of live records in segments.
    pub live_bytes: u64,
    /// Segment files with records.
    pub segments: u64,
    /// Segment files held ready.
    pub spares: u64,
    /// Bytes on disk.
    pub disk_used_bytes: u64,
    /// New owners wait for disk room.
    pub short_of_space: bool,
    /// Segments given up because a write or an fdatasync failed, since open.
    pub poisoned_segments: u64,
    /// Group commits since open.
    pub groups: u64,
    /// The journal has failed, and why.
    pub failed: Option<String>,
}

/// One segment, as [`inspect`] found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Where its records end.
    pub end: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
}

/// What a look at a directory found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What an open would recover.
    pub recovered: Recovered,
    /// Who has the directory open, if somebody has.
    pub in_use_by: Option<String>,
    /// The journal's random id.
    pub journal_id: Option<u128>,
    /// Its segments.
    pub segments: Vec<SegmentInfo>,
}

/// Looks at a directory.
pub fn inspect(_fs: &dyn Fs, _dir: &Path) -> Result<Inspection, JournalError> {
    Err(JournalError::Closed)
}

/// stub
#[derive(Debug)]
pub struct WaitDurable {}
impl Future for WaitDurable {
    type Output = Result<(), JournalError>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(JournalError::Closed))
    }
}

#[allow(missing_docs, clippy::unused_async, clippy::unused_self)]
impl Journal {
    pub fn open(
        _: Arc<dyn Fs>,
        _: Io,
        _: JournalOptions,
    ) -> Result<(Self, Recovered), JournalError> {
        Err(JournalError::Closed)
    }
    pub fn set_sink(&self, _: Arc<dyn CommitSink>) {}
    pub async fn run(&self) {}
    pub fn append(&self, _: Append) -> Result<Location, JournalError> {
        Err(JournalError::Closed)
    }
    pub async fn stage(&self, _: StageSource) -> Result<StagedPayload, JournalError> {
        Err(JournalError::Closed)
    }
    pub fn wait_durable(&self, _: Location) -> WaitDurable {
        WaitDurable {}
    }
    pub fn durable(&self) -> Location {
        0
    }
    pub async fn flush(&self) -> Result<(), JournalError> {
        Err(JournalError::Closed)
    }
    pub async fn seal(&self) -> Result<(), JournalError> {
        Err(JournalError::Closed)
    }
    pub fn payload(&self, _: Location) -> Option<PayloadHandle> {
        None
    }
    pub fn need(&self, _: usize, _: u64, _: bool) -> u64 {
        0
    }
    pub fn inline_limit(&self) -> u64 {
        0
    }
    pub fn end_head_max(&self) -> usize {
        0
    }
    pub fn is_external(&self, _: u64) -> bool {
        false
    }
    pub fn disk_used(&self) -> u64 {
        0
    }
    pub fn moved(&self) -> bool {
        false
    }
    pub fn adopt(&self) -> Result<(), JournalError> {
        Err(JournalError::Closed)
    }
    pub fn retry_space(&self) {}
    pub fn status(&self) -> JournalStatus {
        JournalStatus::default()
    }
    pub fn journal_id(&self) -> u128 {
        0
    }
}
