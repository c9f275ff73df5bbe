//! A file of a store: reading, writing and its length.
//!
//! Owns: how each call is waited for, and under whose name. Decides nothing.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::op::{Op, Operation};
use crate::part::Parts;
use crate::part::file::PartFile;
use crate::part::id::FileId;
use crate::part::locker::{LockerState, Role};
use crate::part::state::Mode;
use crate::runtime::Driver;

use super::Locker;
use super::lock::Lock;

/// A file of a [`PartStore`](super::PartStore). Clones are the same file.
#[derive(Debug, Clone)]
pub struct File {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub parts: Arc<Parts>,
    pub file: Arc<PartFile>,
    pub driver: Driver,
}

/// A file, as one locker uses it: its reads and writes have the locker's role, and are let through
/// where it is.
#[derive(Debug, Clone, Copy)]
pub struct FileBy<'a> {
    file: &'a File,
    locker: &'a Locker,
}

impl File {
    pub(super) fn new(parts: &Arc<Parts>, driver: &Driver, file: Arc<PartFile>) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts: Arc::clone(parts),
                file,
                driver: driver.clone(),
            }),
        }
    }

    pub(super) fn op<'a, T, F>(
        &self,
        work: F,
        why: impl Fn() -> Error + Send + 'a,
    ) -> Operation<'a, T>
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        let deadline = self.inner.parts.config.io_deadline;
        Operation::new(&self.inner.driver, deadline, work, why)
    }

    /// What is in the way of a read or write of these bytes.
    fn in_the_way(&self, offset: u64, len: usize) -> Error {
        let (parts, file) = (&self.inner.parts, &self.inner.file);
        file.spans(offset, len)
            .find_map(|span| parts.in_the_way(file, span.index))
            .unwrap_or(Error::WouldWait("the local disk"))
    }

    /// The engine's name for it.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.inner.file.id
    }

    /// Its length, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inner.file.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a part.
    #[must_use]
    pub fn part_bytes(&self) -> u32 {
        self.inner.file.part_bytes
    }

    /// The same file, used by a locker.
    #[must_use]
    pub fn by<'a>(&'a self, locker: &'a Locker) -> FileBy<'a> {
        FileBy { file: self, locker }
    }

    /// Fills `buffer` from byte `offset` on, part by part, loading what is not here.
    ///
    /// # Errors
    /// [`Error::PastEnd`]; [`Error::LoadFailed`], [`Error::ImageMissing`], [`Error::ImageCorrupt`];
    /// [`Error::CacheFull`]; [`Error::Deleted`]; [`Error::Directory`]; [`Error::ShuttingDown`];
    /// [`Error::TimedOut`] with what was in the way.
    ///
    /// # Cancel safety
    /// A part of the buffer may have been filled.
    pub fn read_at<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> Operation<'a, ()> {
        self.read_as(None, buffer, offset)
    }

    fn read_as<'a>(
        &'a self,
        locker: Option<&'a Arc<LockerState>>,
        buffer: &'a mut [u8],
        offset: u64,
    ) -> Operation<'a, ()> {
        let len = buffer.len();
        let inner = &self.inner;
        let work = async move { inner.parts.read(&inner.file, locker, offset, buffer).await };
        self.op(work, move || self.in_the_way(offset, len))
    }

    /// Writes `bytes` from byte `offset` on, part by part in order; the file grows where they end
    /// behind it. They are durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`Error::PastEnd`] for a range that no file can have; those of a load, where a part is
    /// written in part; [`Error::CacheFull`], [`Error::DiskFull`], [`Error::StoreFailed`],
    /// [`Error::JournalFailed`], [`Error::Deleted`], [`Error::ShuttingDown`]; [`Error::TimedOut`]
    /// with what was in the way. Parts before the one that failed have been written.
    ///
    /// # Cancel safety
    /// Each part has been written wholly or not at all, in order.
    pub fn write_at<'a>(&'a self, bytes: &'a [u8], offset: u64) -> Operation<'a, ()> {
        self.write_as(None, bytes, offset)
    }

    fn write_as<'a>(
        &'a self,
        locker: Option<&'a Arc<LockerState>>,
        bytes: &'a [u8],
        offset: u64,
    ) -> Operation<'a, ()> {
        let inner = &self.inner;
        let work = async move { inner.parts.write(&inner.file, locker, offset, bytes).await };
        self.op(work, move || self.in_the_way(offset, bytes.len()))
    }

    /// Locks part `index`, which must be one of the file's; it is here when the guard is.
    ///
    /// # Errors
    /// [`Error::AlreadyHeld`], [`Error::TooManyHolders`], [`Error::WouldDeadlock`];
    /// [`Error::Deleted`] where there is no such part (any more); those of a load and of room in
    /// the cache; [`Error::ShuttingDown`]. [`Error::Locked`] with the holders: by
    /// [`now`](Lock::now) as it is, by the other forms inside [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Leaves no trace; a lock that had been granted is handed on.
    pub fn lock<'a>(&'a self, index: u32, mode: Mode, locker: &'a Locker) -> Lock<'a> {
        Lock::new(self, index, mode, locker)
    }

    /// Sets the length. What grows reads as zeros. What is cut off is gone, with all that is on
    /// its way; guards on it are waited for.
    ///
    /// # Errors
    /// [`Error::PastEnd`] for a length that no file can have; [`Error::Deleted`];
    /// [`Error::StoreFailed`], [`Error::JournalFailed`], [`Error::ShuttingDown`]; those of a load,
    /// where a part is cut inside.
    ///
    /// # Cancel safety
    /// Dropped while it waits for guards or a load, nothing has changed; later, it is carried
    /// through.
    pub fn set_len(&self, len: u64) -> Op<()> {
        match self
            .inner
            .parts
            .locks
            .lockers
            .make("set_len", Role::Foreground, false)
        {
            Ok(locker) => self.set_len_as(len, locker),
            Err(error) => Op::ready(Err(error)),
        }
    }

    fn set_len_as(&self, len: u64, locker: Arc<LockerState>) -> Op<()> {
        let inner = Arc::clone(&self.inner);
        let why = Arc::clone(&self.inner);
        let deadline = inner.parts.config.io_deadline;
        let driver = inner.driver.clone();
        let work = async move { inner.parts.set_len(&inner.file, len, &locker).await };
        Op::new(&driver, deadline, work, move || {
            why.parts.holders_from(&why.file, len)
        })
    }

    /// Makes what was written durable on this disk, and the length.
    ///
    /// # Errors
    /// [`Error::StoreFailed`] for good, once an fsync has failed; [`Error::JournalFailed`].
    pub fn sync(&self) -> Op<()> {
        let inner = Arc::clone(&self.inner);
        let driver = inner.driver.clone();
        let deadline = inner.parts.config.io_deadline;
        let work = async move { inner.parts.sync(&inner.file).await };
        Op::new(&driver, deadline, work, || {
            Error::WouldWait("the local disk")
        })
    }

    /// Starts loading the parts of a range, as far as there is room now; how many are here or on
    /// their way. Never waits.
    #[must_use]
    pub fn prefetch(&self, range: Range<u64>) -> usize {
        let (parts, file) = (&self.inner.parts, &self.inner.file);
        let end = range.end.min(file.len());
        if range.start >= end || parts.locks.admits(None, false).is_err() {
            return 0;
        }
        let each = u64::from(file.part_bytes);
        let mut here = 0;
        for part in range.start / each..file.parts_of(end) {
            let Ok(index) = u32::try_from(part) else {
                break;
            };
            if !parts.prefetch(file, index) {
                break;
            }
            here += 1;
        }
        here
    }
}

impl FileBy<'_> {
    /// As [`File::read_at`].
    pub fn read_at<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> Operation<'a, ()> {
        self.file.read_as(Some(&self.locker.state), buffer, offset)
    }

    /// As [`File::write_at`].
    pub fn write_at<'a>(&'a self, bytes: &'a [u8], offset: u64) -> Operation<'a, ()> {
        self.file.write_as(Some(&self.locker.state), bytes, offset)
    }

    /// As [`File::set_len`]; [`Error::AlreadyHeld`] over a guard of the locker's own.
    pub fn set_len(&self, len: u64) -> Op<()> {
        self.file.set_len_as(len, Arc::clone(&self.locker.state))
    }
}
