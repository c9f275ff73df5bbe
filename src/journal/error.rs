//! How a journal fails.
//!
//! Owns: the error types of this folder. An append ends in one of three ways, and the type says
//! which: durable (`Ok`), [`JournalError::Void`] (it will never be recovered) or
//! [`JournalError::Undetermined`] (nobody can say before the next open).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::recovery::Damage;

/// Why a write did not become durable: shared by everyone it concerns.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct JournalFailure {
    /// What was being done, such as `fdatasync of`.
    pub what: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The operating system's answer.
    #[source]
    pub source: Arc<io::Error>,
}

impl JournalFailure {
    pub(crate) fn new(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self {
            what,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    /// Whether the disk, or the directory's limit, is full.
    #[must_use]
    pub fn is_space(&self) -> bool {
        is_space(&self.source)
    }
}

/// Whether `error` says that there is no room.
pub(crate) fn is_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// What can go wrong with a journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// A call on the file system failed; nothing was lost.
    #[error(transparent)]
    Io(JournalFailure),
    /// Another process, or another open in this one, has the directory.
    #[error("{} is in use by {holder}", path.display())]
    Locked {
        /// The `LOCK` file.
        path: PathBuf,
        /// Who has it: process id and host, as that process wrote them. Information only.
        holder: String,
    },
    /// The file is of a format that this release does not know.
    #[error(
        "{}: format version {found} (readable from version {min_reader} on); this release reads \
         versions {oldest} to {newest}",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The oldest reader that it allows.
        min_reader: u32,
        /// The oldest version that this release reads.
        oldest: u32,
        /// The newest version that this release reads.
        newest: u32,
    },
    /// A file of the directory is not what its name says.
    #[error("{}: {text}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// Acknowledged records cannot be read, and the options ask to refuse then. Nothing was
    /// changed.
    #[error("{} damaged places in the journal, the first in segment {}", .0.len(), first_segment(.0))]
    Damaged(Vec<Damage>),
    /// A part of a record is larger than it may be.
    #[error("{what} of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// An option is out of its limits.
    #[error("journal option {0}")]
    Options(String),
    /// The journal is being sealed, or was.
    #[error("the journal is closed")]
    Closed,
    /// The disk failed so often that the journal has stopped. What was acknowledged is kept.
    #[error("the journal has failed: {0}")]
    Failed(JournalFailure),
    /// This record is durably void: no recovery will bring it back.
    #[error("not written: {0}")]
    Void(JournalFailure),
    /// Nobody can say whether this record survives; the next open will tell.
    #[error("it is not known whether this was written: {0}")]
    Undetermined(JournalFailure),
}

fn first_segment(damage: &[Damage]) -> u64 {
    damage.first().map_or(0, |damage| damage.segment)
}

impl JournalError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io(JournalFailure::new(what, path, source))
    }
}
