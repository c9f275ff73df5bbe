//! The errors of the public API.
//!
//! Owns: one enum with a variant for each thing that can go wrong. Every variant names the value
//! and the limit. What a caller makes of it is in `kind.rs`.

mod kind;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigErrors;
use crate::journal::JournalError;
use crate::part::id::{FileId, PartId};
use crate::part::locker::Holder;
use crate::part::state::Mode;
use crate::queue::receipt::Settlement;
use crate::queue::task::TaskId;
use crate::remote::RemoteError;
use crate::remote::validate::ValidationError;

pub use kind::{Advice, Kind};

/// What every fallible call of the public API returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A limit of the queue that a request ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `max_tasks`: tasks admitted and not settled.
    Tasks,
    /// `max_bytes`: bytes of their bodies.
    Bytes,
    /// `max_disk_bytes`: bytes of the journal and its payload files.
    DiskBytes,
    /// `max_loads`: reads that wait for S3.
    Loads,
    /// `max_memory_bytes`: bytes of bodies in memory.
    MemoryBytes,
    /// `max_receipts`: receipts of one task, and waits on them.
    Receipts,
    /// `max_waiters`: callers that wait for room.
    Waiters,
    /// `max_quarantined_tasks`: tasks in quarantine.
    QuarantinedTasks,
    /// `max_quarantined_bytes`: bytes of their bodies.
    QuarantinedBytes,
    /// `max_lock_waiters`: callers that wait for a part lock.
    LockWaiters,
    /// `cache_bytes`: bytes of parts that are here.
    CacheBytes,
    /// `dirty_bytes`: bytes of parts that S3 does not have yet.
    DirtyBytes,
    /// `max_files`: files of one store.
    Files,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tasks => "max_tasks",
            Self::Bytes => "max_bytes",
            Self::DiskBytes => "max_disk_bytes",
            Self::Loads => "max_loads",
            Self::MemoryBytes => "max_memory_bytes",
            Self::Receipts => "max_receipts",
            Self::Waiters => "max_waiters",
            Self::QuarantinedTasks => "max_quarantined_tasks",
            Self::QuarantinedBytes => "max_quarantined_bytes",
            Self::LockWaiters => "max_lock_waiters",
            Self::CacheBytes => "cache_bytes",
            Self::DirtyBytes => "dirty_bytes",
            Self::Files => "max_files",
        })
    }
}

/// Anything that can go wrong in a call of this crate.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not usable; all of its faults at once.
    #[error("bad configuration: {0}")]
    Config(#[from] ConfigErrors),
    /// An argument that S3 or this crate must refuse.
    #[error("bad {what}: {value}: {limit}")]
    InvalidInput {
        /// Which argument.
        what: &'static str,
        /// Its value, cut to a readable length.
        value: String,
        /// What it may be.
        limit: String,
    },
    /// A key, a body or a header that S3 would refuse.
    #[error("S3 would refuse it: {0}")]
    Refused(ValidationError),
    /// Larger than a limit of the queue itself: it would never be admitted.
    #[error("too large for the queue: {size} exceeds {limit} = {max}")]
    TooLarge {
        /// Which limit.
        limit: Limit,
        /// What was asked for.
        size: u64,
        /// The limit's value.
        max: u64,
    },
    /// There is no room now.
    #[error("queue full: {limit} is at {current} of {max}; try again in {retry_after:?}")]
    QueueFull {
        /// Which limit.
        limit: Limit,
        /// How much of it is used.
        current: u64,
        /// The limit's value.
        max: u64,
        /// When there may be room, by the rate at which tasks ended lately.
        retry_after: Duration,
    },
    /// There is so much in quarantine that nothing new is taken: replay or purge some of it.
    #[error(
        "the quarantine is full: {limit} is at {current} of {max}; replay or purge tasks in it"
    )]
    QuarantineFull {
        /// Which limit.
        limit: Limit,
        /// How much of it is used.
        current: u64,
        /// The limit's value.
        max: u64,
    },
    /// The local disk has no room for the journal; uploads go on and will free some.
    #[error("the disk that holds {} is full", path.display())]
    DiskFull {
        /// The queue's directory.
        path: PathBuf,
    },
    /// A write-once key has a task pending that has other bytes.
    #[error("key {key:?} is write-once and task {pending} with other bytes is pending on it")]
    KeyPending {
        /// The key.
        key: String,
        /// The task that holds it.
        pending: TaskId,
    },
    /// Rewritable keys need conditional requests, and the server ignores them.
    #[error("rewritable keys are refused: {0}")]
    ConditionsUnsupported(String),
    /// A receipt passed as `after` belongs to another journal.
    #[error("the receipt of task {0} belongs to another journal")]
    ForeignReceipt(TaskId),
    /// A receipt passed as `after` has already ended other than in S3.
    #[error("task {task} is not in S3 and never will be: {settlement:?}")]
    DependencyFailed {
        /// The task that was to come first.
        task: TaskId,
        /// How it ended.
        settlement: Box<Settlement>,
    },
    /// An operator paused it.
    #[error("paused: {0}")]
    Paused(&'static str),
    /// The source file of a body does not exist.
    #[error("source file {} is missing", path.display())]
    SourceMissing {
        /// The file.
        path: PathBuf,
    },
    /// No such object, here or in S3.
    #[error("no object at key {key:?}")]
    NotFound {
        /// The key.
        key: String,
    },
    /// A range that the object does not have.
    #[error("range {from}+{len} is outside the {size} bytes of {key:?}")]
    OutOfRange {
        /// The key.
        key: String,
        /// First byte asked for.
        from: u64,
        /// Bytes asked for.
        len: u64,
        /// The object's size.
        size: u64,
    },
    /// No such task, or it has been settled.
    #[error("no task {0}")]
    NoSuchTask(TaskId),
    /// The task is in a state in which this cannot be done to it.
    #[error("task {task} is {state}: {wanted}")]
    WrongState {
        /// The task.
        task: TaskId,
        /// What it is doing.
        state: &'static str,
        /// What the call needs.
        wanted: &'static str,
    },
    /// Something that was waited for ended in a way that is not success.
    #[error("task {task} on key {key:?} is not in S3: {settlement:?}")]
    NotUploaded {
        /// The task.
        task: TaskId,
        /// Its key.
        key: String,
        /// How it ended.
        settlement: Box<Settlement>,
    },
    /// Shutdown has begun: nothing new is taken.
    #[error("shutting down ({phase})")]
    ShuttingDown {
        /// The phase it is in.
        phase: crate::phase::Phase,
    },
    /// The deadline passed.
    #[error("timed out after {waited:?}: {waiting_for}")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
        /// Why it could not be done at once.
        waiting_for: Box<Error>,
    },
    /// It cannot be done at once.
    #[error("would have to wait for {0}")]
    WouldWait(&'static str),
    /// A blocking call on a thread of the runtime that drives this crate would wait for itself.
    #[error("a blocking call on the runtime that drives the queue would wait for itself")]
    WouldBlockRuntime,
    /// Another process, or another queue of this one, has the directory.
    #[error("{} is in use by {holder}", path.display())]
    DirectoryInUse {
        /// The directory's lock.
        path: PathBuf,
        /// Process id and host of who holds it, as that process wrote them.
        holder: String,
    },
    /// The directory cannot be used.
    #[error("directory {}: {message}", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        message: String,
        /// Its kind.
        kind: io::ErrorKind,
    },
    /// A file has a version that this release cannot read.
    #[error("{} has version {found}; this release reads {oldest} to {newest}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: u32,
        /// The oldest that is read.
        oldest: u32,
        /// The newest that is read.
        newest: u32,
    },
    /// The journal has damage, and the configuration says to refuse it.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// The journal takes nothing more: its disk failed. Reopen.
    #[error("the journal has failed: {0}")]
    JournalFailed(String),
    /// A request to S3 failed.
    #[error(transparent)]
    Remote(Box<RemoteError>),
    /// The runtime cannot be started, or is gone.
    #[error("runtime: {0}")]
    Runtime(String),
    /// Others hold the part in a mode that conflicts, or wait for it since earlier.
    #[error("{part} is not to be had in mode {mode}: held by {}", names(holders))]
    Locked {
        /// The part.
        part: PartId,
        /// The mode that was asked for.
        mode: Mode,
        /// Who holds it: the first eight.
        holders: Vec<Holder>,
    },
    /// The same locker holds the part already: locks are not re-entrant.
    #[error("locker {locker:?} holds {part} already")]
    AlreadyHeld {
        /// The part.
        part: PartId,
        /// The locker.
        locker: String,
        /// The mode it holds it in; `None` while it cuts it off.
        mode: Option<Mode>,
    },
    /// The part has as many holders in this mode as can be counted.
    #[error("{part} has {max} holders in that mode already")]
    TooManyHolders {
        /// The part.
        part: PartId,
        /// The mode.
        mode: Option<Mode>,
        /// The most.
        max: u32,
    },
    /// The lockers wait for each other; this one was picked to give way. What it holds it still
    /// holds: let go of it, then start anew.
    #[error("deadlock: {} wait for each other in turn", cycle.join(", "))]
    WouldDeadlock {
        /// The names of the lockers, each waiting for the next, the last for the first.
        cycle: Vec<String>,
    },
    /// All of the cache is held by guards: no part can be evicted to make room.
    #[error("all {max} bytes of the cache are held by {}", pinned_by.join(", "))]
    CacheFull {
        /// `cache_bytes`.
        max: u64,
        /// The names of the lockers whose guards hold it.
        pinned_by: Vec<String>,
    },
    /// A load waits for room in the cache, which uploads and evictions make.
    #[error("no room: {used} of {max} bytes of {limit} are in use")]
    NoRoom {
        /// Which limit.
        limit: Limit,
        /// Bytes in use.
        used: u64,
        /// The limit's value.
        max: u64,
    },
    /// The part is being loaded from S3.
    #[error("{part} is being loaded from {object:?}")]
    Loading {
        /// The part.
        part: PartId,
        /// The object that has its image.
        object: String,
    },
    /// The part's image could not be loaded. The part is not loaded, and the next who asks
    /// starts a new load.
    #[error("{part} could not be loaded from {object:?}: {cause}")]
    LoadFailed {
        /// The part.
        part: PartId,
        /// The object that was to have its image.
        object: String,
        /// Why.
        cause: Box<RemoteError>,
    },
    /// S3 has no such object, or none that long, where a part's image should be.
    #[error("{part} has its image in {object:?}, which S3 does not have")]
    ImageMissing {
        /// The part.
        part: PartId,
        /// The object.
        object: String,
    },
    /// The bytes of an image are not those that were uploaded. The part is not loaded; the bytes
    /// are kept aside.
    #[error("{part}: {object:?} has checksum {found:08x}, expected {expected:08x}")]
    ImageCorrupt {
        /// The part.
        part: PartId,
        /// The object.
        object: String,
        /// CRC-32C of the image as uploaded.
        expected: u32,
        /// CRC-32C of the bytes that S3 sent.
        found: u32,
        /// Where those are kept for inspection, if there was room.
        kept: Option<PathBuf>,
    },
    /// Images of a checkpoint are not in S3 yet.
    #[error("{images} images are not in S3 yet")]
    NotInS3 {
        /// How many.
        images: usize,
    },
    /// The image of a part is refused by S3 for good. It stays here, and is tried again later.
    #[error("{part} is not in S3: {cause}")]
    PartFailed {
        /// The part.
        part: PartId,
        /// Why.
        cause: Box<RemoteError>,
    },
    /// This directory has not claimed the prefix yet, because S3 did not answer: it takes writes,
    /// and sends nothing.
    #[error("the prefix is not claimed yet: nothing is sent")]
    Unclaimed,
    /// Another has claimed the prefix since: this directory takes no writes and sends nothing.
    /// What it had acknowledged stays in it, and can be read.
    #[error("epoch {ours} was fenced by epoch {theirs} of {owner}")]
    Fenced {
        /// The epoch that this directory had.
        ours: u64,
        /// The one that owns the prefix.
        theirs: u64,
        /// Who claimed that one.
        owner: String,
    },
    /// The store was opened to read what is stranded: it takes no writes.
    #[error("opened to read what is stranded: nothing is written")]
    Stranded,
    /// The prefix belongs to another: this directory opens only where its caller says that it is
    /// to be taken over. Nothing was changed.
    #[error(
        "the prefix belongs to epoch {found} of {owner}, not to this directory's: take it over, or leave it"
    )]
    TakeOverNeeded {
        /// The epoch that this directory had last, if ever.
        held: Option<u64>,
        /// The one that owns the prefix.
        found: u64,
        /// Who claimed that one.
        owner: String,
    },
    /// Checkpoints were committed that this directory does not follow: going on from here would
    /// undo them. Restore into an empty directory. Nothing was changed.
    #[error("this directory stands on {}, the prefix on {}", told(ours.as_ref()), told(theirs.as_ref()))]
    Diverged {
        /// What this directory stands on.
        ours: Option<Standing>,
        /// The latest checkpoint there is.
        theirs: Option<Standing>,
    },
    /// `head` is not what it was when it was read.
    #[error("another has changed head")]
    HeadChanged,
    /// Fencing needs conditional writes, and the server does not honour them. Nothing was changed.
    #[error("the server cannot fence: {0}")]
    FencingUnsupported(String),
    /// Objects of this bucket cannot be deleted: the store would grow for ever. Nothing was
    /// changed.
    #[error("{bucket} has object lock: nothing that is replaced can be deleted")]
    ObjectLock {
        /// Bucket and prefix.
        bucket: String,
    },
    /// Nobody knows yet whether this checkpoint was committed; it is found out in the background,
    /// and no other is begun before.
    #[error("whether checkpoint {number} was committed is not known yet: {cause}")]
    CheckpointUnknown {
        /// Its number.
        number: u64,
        /// Why not.
        cause: Box<RemoteError>,
    },
    /// There is no such checkpoint, or no longer.
    #[error("no checkpoint {}; there are {}", number.map_or_else(|| "at all".to_owned(), |n| n.to_string()), runs(listed))]
    NoSuchCheckpoint {
        /// The number that was asked for; `None` for the latest.
        number: Option<u64>,
        /// Those that are listed.
        listed: Vec<u64>,
    },
    /// An object that a checkpoint names is not there.
    #[error("object {key:?} is missing")]
    ObjectMissing {
        /// The object.
        key: String,
    },
    /// An object of a checkpoint is not what was written.
    #[error("object {key:?} is damaged: {message}")]
    ObjectDamaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A restore needs a directory that is empty, or does not exist. Nothing was changed.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A restore into this directory was not finished: finish it, or remove the directory.
    #[error("a restore of checkpoint {number} into {} was not finished", path.display())]
    RestoreUnfinished {
        /// The directory.
        path: PathBuf,
        /// The checkpoint.
        number: u64,
    },
    /// There is no such file.
    #[error("no file {file}")]
    UnknownFile {
        /// The file.
        file: FileId,
    },
    /// The file was dropped, or the part cut off.
    #[error("file {file} was dropped, or cut off before part {index}")]
    Deleted {
        /// The file.
        file: FileId,
        /// The part.
        index: u32,
    },
    /// There is such a file already.
    #[error("file {file} exists")]
    FileExists {
        /// The file.
        file: FileId,
    },
    /// A read past the end of a file, or a range that no file can have.
    #[error("bytes {from}+{len} are outside the {size} bytes of file {file}")]
    PastEnd {
        /// The file.
        file: FileId,
        /// First byte asked for.
        from: u64,
        /// Bytes asked for.
        len: u64,
        /// The file's length.
        size: u64,
    },
    /// The local disk failed: an fsync of part files was refused. What was synced before is safe;
    /// nothing is written any more. Reopen.
    #[error("the part store has failed: {0}")]
    StoreFailed(String),
}

/// Which checkpoint a directory, or a prefix, stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Its number.
    pub number: u64,
    /// The id of its commit: two commits that have one number differ in it.
    pub write_id: u128,
}

fn told(standing: Option<&Standing>) -> String {
    standing.map_or_else(
        || "no checkpoint".to_owned(),
        |at| format!("checkpoint {} ({:032x})", at.number, at.write_id),
    )
}

/// Numbers, at most a few of them.
fn runs(listed: &[u64]) -> String {
    match listed {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{} from {first} to {last}", listed.len()),
    }
}

fn names(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "those who came first".to_owned();
    }
    let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
    names.join("; ")
}

impl Error {
    pub(crate) fn directory(path: impl Into<PathBuf>, error: &io::Error) -> Self {
        Self::Directory {
            path: path.into(),
            message: error.to_string(),
            kind: error.kind(),
        }
    }
}

impl From<RemoteError> for Error {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Box::new(error))
    }
}

impl From<ValidationError> for Error {
    fn from(error: ValidationError) -> Self {
        Self::Refused(error)
    }
}

impl From<JournalError> for Error {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Io(failure) if failure.is_space() => {
                Self::DiskFull { path: failure.path }
            }
            JournalError::Io(failure) => Self::Directory {
                message: failure.to_string(),
                kind: failure.source.kind(),
                path: failure.path,
            },
            JournalError::Locked { path, holder } => Self::DirectoryInUse { path, holder },
            JournalError::Version {
                path,
                found,
                oldest,
                newest,
                ..
            } => Self::Version {
                path,
                found,
                oldest,
                newest,
            },
            JournalError::Corrupt { path, text } => Self::Directory {
                path,
                message: text,
                kind: io::ErrorKind::InvalidData,
            },
            JournalError::Damaged(_) => Self::Damaged(error.to_string()),
            JournalError::TooLarge { what, len, max } => Self::InvalidInput {
                what,
                value: format!("{len} bytes"),
                limit: format!("at most {max} bytes"),
            },
            JournalError::Options(text) => Self::Config(ConfigErrors(vec![text])),
            JournalError::Closed => Self::ShuttingDown {
                phase: crate::phase::Phase::Sealing,
            },
            JournalError::Failed(_) | JournalError::Void(_) | JournalError::Undetermined(_) => {
                Self::JournalFailed(error.to_string())
            }
        }
    }
}
