//! What a task is: the unit of work of the queue.
//!
//! Owns: the vocabulary of tasks (ids, lanes, key policies, conditions, bodies, causes). Does not
//! own: their state, which is the table's (`table.rs`), or how they are stored (`record.rs`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::journal::fs::Stat;
use crate::remote::{ETag, ObjectHeaders, RemoteError};

use super::receipt::Receipt;

/// The durable name of a task: unique in its directory, for ever. Ids grow in the order of
/// submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(pub u64);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A class of tasks with its own reserved room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Reads from S3; one request slot is theirs alone.
    Load,
    /// What a checkpoint needs; room in the queue and one request slot are theirs alone.
    Checkpoint,
    /// What the engine submits.
    Foreground,
    /// Deletes, and what can wait.
    Background,
}

impl Lane {
    /// All lanes, in the order in which they are looked at.
    pub const ALL: [Self; 4] = [
        Self::Load,
        Self::Checkpoint,
        Self::Foreground,
        Self::Background,
    ];

    /// Turns out of the sum of all weights that the lane gets while every lane has work.
    #[must_use]
    pub const fn weight(self) -> u32 {
        match self {
            Self::Load => 8,
            Self::Checkpoint => 4,
            Self::Foreground => 4,
            Self::Background => 1,
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Load => 0,
            Self::Checkpoint => 1,
            Self::Foreground => 2,
            Self::Background => 3,
        }
    }
}

/// Whether a key may get other bytes later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyPolicy {
    /// One content for ever: each PUT goes with `If-None-Match: *`, other bytes are refused while
    /// one task is pending and end `PreconditionFailed` later. The default.
    #[default]
    WriteOnce,
    /// The last submit wins, and is protected against late effects of earlier requests: each PUT
    /// is conditional on the state last seen.
    Rewritable,
}

/// A condition of the caller's own. Tasks with one are never joined or superseded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Only where the key does not exist.
    IfAbsent {
        /// An object with the same bytes counts as ours.
        same_is_ok: bool,
    },
    /// Only where the key has this entity tag.
    IfMatch(ETag),
}

/// What is uploaded.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A regular file that becomes the queue's: it is linked into the queue's directory, which must
    /// be on the same file system, loses its old name when the task is durable, and is removed
    /// once it is in S3. Where it joins a pending task with the same bytes, it stays as it is.
    Adopt(PathBuf),
    /// A regular file that stays the caller's and is not changed before the task is settled. Its length,
    /// modification time and inode are compared at submit and at upload.
    Borrow(PathBuf),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::Bytes(Bytes::from_static(text.as_bytes()))
    }
}

/// How a task is treated. `Options::default()` suits a write-once object.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Default [`Lane::Foreground`] ([`Lane::Background`] for deletes); [`Lane::Load`] is refused.
    pub lane: Option<Lane>,
    /// Default [`KeyPolicy::WriteOnce`].
    pub policy: KeyPolicy,
    /// A condition of the caller's. Default none.
    pub condition: Option<Condition>,
    /// On a rewritable key: supersede a waiting upload instead of queuing behind it. Default off.
    pub coalesce: bool,
    /// Start only when these are in S3. At most [`MAX_AFTER`].
    pub after: Vec<Receipt>,
    /// The caller's own name for the task, returned by `pending()`. At most [`MAX_TAG_BYTES`].
    pub tag: String,
    /// Headers that are passed through to S3.
    pub headers: ObjectHeaders,
}

/// The most receipts that one task can be after.
pub const MAX_AFTER: usize = 1024;
/// The longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 256;

/// A borrowed file as it was at submit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Borrowed {
    /// UTF-8 was checked at submit.
    pub path: String,
    pub len: u64,
    /// Modification time in nanoseconds from the Unix epoch.
    pub modified_ns: i128,
    pub inode: u64,
}

impl Borrowed {
    pub(crate) fn new(path: String, stat: &Stat) -> Self {
        let modified_ns = match stat.modified.duration_since(UNIX_EPOCH) {
            Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => {
                i128::try_from(before.duration().as_nanos()).map_or(i128::MIN, |nanos| -nanos)
            }
        };
        Self {
            path,
            len: stat.len,
            modified_ns,
            inode: stat.inode,
        }
    }
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Upload a body that is in the journal (or still in memory on its way there).
    Upload,
    /// Upload a file of the caller's.
    UploadBorrowed(Arc<Borrowed>),
    /// Delete the key.
    Delete,
}

/// Why a task is in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// S3 refuses it, and always will.
    Refused(RemoteError),
    /// The object at its key is not ours, and our condition on it failed.
    ForeignWrite {
        /// The entity tag that was found, if an object was.
        found: Option<ETag>,
    },
    /// Its code panicked.
    Panicked(String),
    /// It was in flight at this many crashes of the process.
    CrashLoop {
        /// How many.
        crashes: u32,
    },
    /// Its bytes on the local disk are not the ones that were submitted.
    LocalCorruption(String),
    /// Its source file is gone.
    SourceMissing(String),
    /// Its source file is not what it was at submit.
    SourceChanged(String),
    /// A task that it was after will never be in S3.
    Dependency(TaskId),
    /// Its key is rewritable, and the server ignores conditions: all, or those of a completion of
    /// parts, which this one would go up in.
    ConditionsUnsupported,
}

/// The longest text that is kept of an error, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Cuts `text` to [`MAX_TEXT_BYTES`] at a character.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let mut end = MAX_TEXT_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
