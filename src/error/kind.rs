//! What a caller makes of an error.
//!
//! Owns: what kind each is, what should be done about it, and how it looks as an [`io::Error`].
//! Does not own: which errors there are (`error.rs`).

use std::io;

use crate::remote::Class;

use super::Error;

/// What sort of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An argument or the configuration.
    InvalidInput,
    /// A limit, for now.
    Full,
    /// A deadline.
    TimedOut,
    /// Shutdown.
    ShuttingDown,
    /// Something that is not there.
    NotFound,
    /// The state of a key or task forbids it.
    Conflict,
    /// The local disk or directory.
    Local,
    /// S3.
    Remote,
}

/// What a caller should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Call again later.
    Retry,
    /// Wait on the operation with a longer deadline instead of calling again.
    Wait,
    /// Open the directory again.
    Reopen,
    /// Do not repeat this call.
    Stop,
}

impl Error {
    /// What sort of error it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Config(_)
            | Self::InvalidInput { .. }
            | Self::TooLarge { .. }
            | Self::Refused(_)
            | Self::ForeignReceipt(_)
            | Self::OutOfRange { .. }
            | Self::WouldBlockRuntime
            | Self::PastEnd { .. } => Kind::InvalidInput,
            Self::QueueFull { .. }
            | Self::Paused(_)
            | Self::WouldWait(_)
            | Self::DiskFull { .. }
            | Self::QuarantineFull { .. }
            | Self::NotInS3 { .. }
            | Self::Locked { .. }
            | Self::CacheFull { .. }
            | Self::NoRoom { .. }
            | Self::Loading { .. }
            | Self::TooManyHolders { .. } => Kind::Full,
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::ShuttingDown { .. } => Kind::ShuttingDown,
            Self::NotFound { .. }
            | Self::NoSuchTask(_)
            | Self::SourceMissing { .. }
            | Self::NoSuchCheckpoint { .. }
            | Self::UnknownFile { .. }
            | Self::Deleted { .. } => Kind::NotFound,
            Self::KeyPending { .. }
            | Self::DependencyFailed { .. }
            | Self::NotUploaded { .. }
            | Self::WrongState { .. }
            | Self::Fenced { .. }
            | Self::Stranded
            | Self::TakeOverNeeded { .. }
            | Self::Diverged { .. }
            | Self::HeadChanged
            | Self::RestoreUnfinished { .. }
            | Self::NotEmpty { .. }
            | Self::AlreadyHeld { .. }
            | Self::WouldDeadlock { .. }
            | Self::FileExists { .. } => Kind::Conflict,
            Self::DirectoryInUse { .. }
            | Self::Directory { .. }
            | Self::Version { .. }
            | Self::Damaged(_)
            | Self::JournalFailed(_)
            | Self::Runtime(_)
            | Self::StoreFailed(_) => Kind::Local,
            Self::ConditionsUnsupported(_)
            | Self::FencingUnsupported(_)
            | Self::ObjectLock { .. }
            | Self::Unclaimed
            | Self::CheckpointUnknown { .. }
            | Self::ObjectMissing { .. }
            | Self::ObjectDamaged { .. }
            | Self::PartFailed { .. }
            | Self::Remote(_)
            | Self::LoadFailed { .. }
            | Self::ImageMissing { .. }
            | Self::ImageCorrupt { .. } => Kind::Remote,
        }
    }

    /// What a caller should do about it.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::QueueFull { .. }
            | Self::WouldWait(_)
            | Self::KeyPending { .. }
            | Self::Locked { .. }
            | Self::NoRoom { .. }
            | Self::Loading { .. }
            | Self::NotInS3 { .. }
            | Self::Unclaimed
            | Self::CheckpointUnknown { .. } => Advice::Wait,
            Self::WouldDeadlock { .. }
            | Self::CacheFull { .. }
            | Self::TooManyHolders { .. }
            | Self::HeadChanged
            | Self::DiskFull { .. }
            | Self::QuarantineFull { .. }
            | Self::Paused(_)
            | Self::DirectoryInUse { .. } => Advice::Retry,
            Self::StoreFailed(_)
            | Self::JournalFailed(_)
            | Self::Runtime(_)
            | Self::ShuttingDown { .. } => Advice::Reopen,
            Self::LoadFailed { cause, .. } | Self::PartFailed { cause, .. } => {
                Self::Remote(cause.clone()).advice()
            }
            Self::TimedOut { waiting_for, .. } => match waiting_for.advice() {
                Advice::Wait => Advice::Retry,
                other => other,
            },
            Self::Remote(error) => match error.class {
                Class::Transient | Class::Throttle | Class::Environment => Advice::Retry,
                Class::Permanent | Class::Conflict => Advice::Stop,
            },
            _ => Advice::Stop,
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the error inside; never `Interrupted` or `WouldBlock`, which callers of read and
    /// write loops would retry at once.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::TimedOut { .. }
            | Error::WouldWait(_)
            | Error::Locked { .. }
            | Error::Loading { .. }
            | Error::NoRoom { .. } => io::ErrorKind::TimedOut,
            Error::Fenced { .. } | Error::Stranded => io::ErrorKind::ReadOnlyFilesystem,
            Error::ImageMissing { .. }
            | Error::ImageCorrupt { .. }
            | Error::ObjectMissing { .. }
            | Error::ObjectDamaged { .. }
            | Error::Damaged(_) => io::ErrorKind::InvalidData,
            Error::CacheFull { .. }
            | Error::QueueFull { .. }
            | Error::DiskFull { .. }
            | Error::QuarantineFull { .. }
            | Error::Paused(_) => io::ErrorKind::StorageFull,
            Error::ShuttingDown { .. } => io::ErrorKind::BrokenPipe,
            Error::Directory { kind, .. } => match kind {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => io::ErrorKind::Other,
                kind => *kind,
            },
            _ => match error.kind() {
                Kind::InvalidInput => io::ErrorKind::InvalidInput,
                Kind::NotFound => io::ErrorKind::NotFound,
                _ => io::ErrorKind::Other,
            },
        };
        Self::new(kind, error)
    }
}
