//! `PartStore`: the public face of parts.
//!
//! Owns: how each call is waited for. Decides nothing: files, locks and bytes are
//! [`crate::part`]'s, the queue under it is an [`UploadQueue`] on the same journal, with the same
//! workers and the same shutdown.
//!
//! | file | concept |
//! |---|---|
//! | `file.rs` | a file: reading, writing, its length |
//! | `lock.rs` | the lock operation |
//! | `guard.rs` | what holds a part, and several of them |
//! | `checkpoints.rs` | versions of all files |
//! | `prefix.rs` | the same, without owning them |

mod checkpoints;
mod file;
mod guard;
mod lock;
mod prefix;

use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoint, CheckpointSnapshot, Checkpointer, StoreOptions};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::fs::Fs;
use crate::metrics::Snapshot;
use crate::op::Op;
use crate::part::config::{DEFAULT_PART_BYTES, StoreConfig};
use crate::part::id::{FileId, PartId};
use crate::part::locker::{LockerState, Role};
use crate::part::state::Mode;
use crate::part::{FailingPart, Parts};
use crate::remote::Remote;
use crate::runtime::RunOn;
use crate::shutdown::{ShutdownHold, ShutdownReport};
use crate::time::WallClock;
use crate::upload_queue::{Builder, UploadQueue};

pub use checkpoints::{CheckpointOptions, ListedCheckpoint};
pub use file::{File, FileBy};
pub use guard::{Guard, GuardSet, OwnedGuard};
pub use lock::{Lock, LockFuture};
pub use prefix::Prefix;

/// Files of an engine, cut into parts that are here or in S3.
///
/// Reads and writes go to local files; what is dirty goes up in the background, what is cold is
/// evicted, what is missing is loaded. Clones are of the same store.
///
/// A [`checkpoint`](Self::checkpoint) is a version of all files in S3 that can be restored without
/// this directory.
#[derive(Debug, Clone)]
pub struct PartStore {
    parts: Arc<Parts>,
    queue: UploadQueue,
    checkpointer: Arc<Checkpointer>,
}

/// How a [`PartStore`] is opened.
#[must_use = "a builder does nothing until `open` is waited for"]
#[derive(Debug)]
pub struct StoreBuilder {
    options: StoreOptions,
    config: StoreConfig,
    queue: Builder,
}

impl StoreBuilder {
    /// Which runtime drives the store. Default: a thread of its own.
    pub fn run_on(self, run_on: RunOn) -> Self {
        Self {
            queue: self.queue.run_on(run_on),
            ..self
        }
    }

    /// A token whose cancellation starts an ordered shutdown with the configured deadline.
    pub fn cancelled_by(self, parent: &CancellationToken) -> Self {
        Self {
            queue: self.queue.cancelled_by(parent),
            ..self
        }
    }

    /// Another file system, and where its blocking calls run: for simulations.
    pub fn file_system(self, fs: Arc<dyn Fs>, io: Io) -> Self {
        Self {
            queue: self.queue.file_system(fs, io),
            ..self
        }
    }

    /// Another wall clock: for simulations.
    pub fn wall_clock(self, clock: WallClock) -> Self {
        Self {
            queue: self.queue.wall_clock(clock),
            ..self
        }
    }

    /// Claims the prefix though another owns it: that one is fenced. Without it such an open ends
    /// [`Error::TakeOverNeeded`]. It does not help where the directory has diverged.
    pub fn take_over(mut self) -> Self {
        self.options.take_over = true;
        self
    }

    /// Opens the directory of a store that was fenced, or has diverged, to read what is in it:
    /// nothing is claimed, nothing is sent, and nothing can be written.
    pub fn stranded(mut self) -> Self {
        self.options.stranded = true;
        self
    }

    /// Asked for what is to be kept with each checkpoint that is not given anything of its own: at
    /// most 4 KiB, such as where the engine's log is to be replayed from. It is called just before
    /// the line, on an I/O thread: whatever it says was written before is in the checkpoint.
    pub fn checkpoint_meta(mut self, meta: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.options.meta = Some(Arc::new(meta));
        self
    }

    /// Called for every checkpoint that is committed, on an I/O thread, before whoever asked for it
    /// is told: what was written before its line is in S3, and durable here. An engine may truncate
    /// its own log then.
    pub fn on_checkpoint(mut self, callback: impl Fn(&Checkpoint) + Send + Sync + 'static) -> Self {
        self.options.callback = Some(Arc::new(callback));
        self
    }

    /// Opens the store: takes the directory, recovers what an earlier life left, starts what runs
    /// beside, and claims the prefix. A directory that has owned it opens without an answer from
    /// S3, takes writes, and claims as soon as it can; every other waits for its claim.
    ///
    /// # Errors
    /// [`Error::Diverged`], [`Error::TakeOverNeeded`], [`Error::FencingUnsupported`],
    /// [`Error::ObjectLock`], [`Error::RestoreUnfinished`], [`Error::Remote`]: nothing was
    /// changed. As [`Builder::open`]; [`Error::Damaged`] and [`Error::Version`] also for the headers of
    /// files, [`Error::Directory`] also where a local file is gone.
    ///
    /// # Cancel safety
    /// Dropped at any point, it leaves no task behind and the directory free.
    pub fn open(self) -> Op<PartStore> {
        if let Err(errors) = self.config.validate() {
            return Op::ready(Err(errors.into()));
        }
        let options = StoreOptions {
            config: Arc::new(self.config),
            ..self.options
        };
        let queue = self.queue.with_store(options);
        let opened = queue.open_and(|queue, checkpointer| {
            let opened = checkpointer.map(|checkpointer| PartStore {
                parts: Arc::clone(&checkpointer.parts),
                queue,
                checkpointer,
            });
            opened.ok_or(Error::WouldWait("the part store"))
        });
        opened.flatten()
    }
}

/// How a file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOptions {
    /// Bytes of a part: a power of two from 4 KiB to 16 MiB, and no more than the store has room
    /// for. Small parts cost requests, large ones write amplification. Default 64 KiB.
    pub part_bytes: u32,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            part_bytes: DEFAULT_PART_BYTES,
        }
    }
}

/// A party that holds part locks and waits for them: a thread, a transaction, a checkpointer.
///
/// Clones are the same locker. Locks are not re-entrant: a locker that asks for a part it holds is
/// refused.
#[derive(Debug, Clone)]
pub struct Locker {
    state: Arc<LockerState>,
}

impl Locker {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.state.role
    }
}

/// A part store at one instant.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StoreSnapshot {
    /// The queue under it.
    pub queue: Snapshot,
    /// Its checkpoints.
    pub checkpoints: CheckpointSnapshot,
    /// Files.
    pub files: usize,
    /// Parts that are here.
    pub resident_parts: usize,
    /// Bytes of the cache in use, loads on their way included.
    pub cache_bytes: u64,
    /// The most of them at one time.
    pub peak_cache_bytes: u64,
    /// Who waits for room in the cache.
    pub cache_waiters: usize,
    /// Bytes of parts with a write intent: dirty, or on their way to S3.
    pub dirty_bytes: u64,
    /// The most of them at one time.
    pub peak_dirty_bytes: u64,
    /// Bytes of images in memory on their way to S3.
    pub image_bytes: u64,
    /// Who waits for part locks.
    pub lock_waiters: u64,
    /// Locks held by guards, and by whom.
    pub held: Vec<(PartId, crate::part::locker::Holder)>,
    /// Parts loaded from S3, or found here after a restart, since open.
    pub loads: u64,
    /// Parts evicted since open.
    pub evictions: u64,
    /// Images settled since open.
    pub images: u64,
    /// Bytes written since open.
    pub written_bytes: u64,
    /// Parts that S3 refuses; the first hundred.
    pub failing: Vec<FailingPart>,
    /// Why nothing is written any more, if so.
    pub failed: Option<String>,
}

impl PartStore {
    /// A store that uploads to `remote`.
    pub fn builder(config: StoreConfig, remote: Arc<dyn Remote>) -> StoreBuilder {
        StoreBuilder {
            options: StoreOptions {
                config: Arc::new(config.clone()),
                take_over: false,
                stranded: false,
                meta: None,
                callback: None,
            },
            queue: UploadQueue::builder(config.queue.clone(), remote),
            config,
        }
    }

    fn op<T, F>(&self, work: F, why: impl Fn() -> Error + Send + 'static) -> Op<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        Op::new(
            self.queue.driver(),
            self.parts.config.io_deadline,
            work,
            why,
        )
    }

    #[cfg(all(test, not(loom_model), not(shuttle)))]
    pub(crate) fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.parts)
    }

    fn wrap(&self, file: Arc<crate::part::file::PartFile>) -> File {
        File::new(&self.parts, self.queue.driver(), file)
    }

    /// Creates a file, empty. Done when it is durable.
    ///
    /// # Errors
    /// [`Error::FileExists`], [`Error::InvalidInput`] for the part size, [`Error::QueueFull`] at
    /// `max_files`, [`Error::Directory`], [`Error::JournalFailed`], [`Error::ShuttingDown`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the file may exist all the same.
    pub fn create(&self, id: FileId, options: FileOptions) -> Op<File> {
        let store = self.clone();
        let work = async move {
            let file = store.parts.create(id, options.part_bytes).await?;
            Ok(store.wrap(file))
        };
        self.op(work, || Error::WouldWait("the local disk"))
    }

    /// A file that exists.
    ///
    /// # Errors
    /// [`Error::UnknownFile`].
    pub fn file(&self, id: FileId) -> Result<File> {
        Ok(self.wrap(self.parts.file(id)?))
    }

    /// A file, created where it does not exist.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::InvalidInput`] where it exists with another part
    /// size.
    pub fn create_or_open(&self, id: FileId, options: FileOptions) -> Op<File> {
        let store = self.clone();
        let work = async move {
            let file = store.parts.create_or_open(id, options.part_bytes).await?;
            Ok(store.wrap(file))
        };
        self.op(work, || Error::WouldWait("the local disk"))
    }

    /// All files, in order.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        let files = self.parts.all_files();
        files.iter().map(|file| file.id).collect()
    }

    /// Drops a file, with all that is on its way; waits for guards on its parts. Done when that is
    /// durable. Its images stay in S3.
    ///
    /// # Errors
    /// [`Error::UnknownFile`]; [`Error::AlreadyHeld`] where `locker` holds a part of it;
    /// [`Error::ShuttingDown`], [`Error::StoreFailed`], [`Error::JournalFailed`].
    ///
    /// # Cancel safety
    /// Dropped while it waits for guards, nothing has changed; later, it is carried through.
    pub fn drop_file(&self, id: FileId, locker: &Locker) -> Op<()> {
        let (parts, locker) = (Arc::clone(&self.parts), Arc::clone(&locker.state));
        let on = Arc::clone(&self.parts);
        let work = async move {
            let file = parts.file(id)?;
            parts.drop_file(&file, &locker).await
        };
        self.op(work, move || match on.file(id) {
            Ok(file) => on.holders_from(&file, 0),
            Err(error) => error,
        })
    }

    /// A locker.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name of more than 256 bytes, or a millionth locker.
    pub fn locker(&self, name: &str, role: Role) -> Result<Locker> {
        let state = self.parts.locks.lockers.make(name, role, false)?;
        Ok(Locker { state })
    }

    /// A locker that goes on while shutdown waits for `hold`. A hold of another store gives no
    /// right here.
    ///
    /// # Errors
    /// As [`locker`](Self::locker).
    pub fn locker_through(&self, hold: &ShutdownHold, name: &str) -> Result<Locker> {
        let holds = self.queue.owns(hold);
        let state = self
            .parts
            .locks
            .lockers
            .make(name, Role::Foreground, holds)?;
        Ok(Locker { state })
    }

    /// Locks several parts, in order of [`PartId`], then takes room for all that must be loaded
    /// at once.
    ///
    /// # Errors
    /// Those of [`File::lock`]; [`Error::UnknownFile`]; [`Error::InvalidInput`] where a part is
    /// named twice. No lock is kept then.
    ///
    /// # Cancel safety
    /// Leaves no trace.
    pub fn lock_many(&self, parts: &[PartId], mode: Mode, locker: &Locker) -> Op<GuardSet> {
        let (store, parts, locker) = (self.clone(), parts.to_vec(), locker.clone());
        let (on, wanted, by) = (Arc::clone(&self.parts), parts.clone(), locker.clone());
        let work = async move { guard::lock_many(&store, parts, mode, &locker).await };
        self.op(work, move || {
            let held = wanted.iter().find_map(|part| {
                let key = on.file(part.file).ok()?.key(part.index);
                let busy = on.locks.busy(*part, key, mode, &by.state);
                matches!(&busy, Error::Locked { holders, .. } if !holders.is_empty())
                    .then_some(busy)
            });
            held.unwrap_or(Error::WouldWait("loads, or room in the cache"))
        })
    }

    /// Makes all that was written durable on this disk.
    ///
    /// # Errors
    /// [`Error::StoreFailed`], [`Error::JournalFailed`].
    pub fn sync_all(&self) -> Op<()> {
        let parts = Arc::clone(&self.parts);
        self.op(async move { parts.sync_all().await }, || {
            Error::WouldWait("the local disk")
        })
    }

    /// The queue under the store: on the same journal, with the same workers and shutdown.
    #[must_use]
    pub fn queue(&self) -> &UploadQueue {
        &self.queue
    }

    /// Shuts the store down, and its queue: see [`UploadQueue::shutdown`].
    pub fn shutdown(&self) -> Op<Arc<ShutdownReport>> {
        self.queue.shutdown()
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self) -> StoreSnapshot {
        use std::sync::atomic::Ordering::Relaxed;
        let parts = &self.parts;
        let (cache_bytes, peak_cache_bytes) = parts.cache.used();
        let (dirty_bytes, peak_dirty_bytes) = parts.dirty.used();
        StoreSnapshot {
            queue: self.queue.snapshot(),
            checkpoints: self.checkpointer.snapshot(),
            files: parts.all_files().len(),
            resident_parts: parts.resident(),
            cache_bytes,
            peak_cache_bytes,
            cache_waiters: parts.cache.waiting().len(),
            dirty_bytes,
            peak_dirty_bytes,
            image_bytes: parts.images.used().0,
            lock_waiters: parts.locks.waiting(),
            held: parts.held(),
            loads: parts.totals.loads.load(Relaxed),
            evictions: parts.totals.evictions.load(Relaxed),
            images: parts.totals.images.load(Relaxed),
            written_bytes: parts.totals.written_bytes.load(Relaxed),
            failing: parts.flusher.failing(100),
            failed: parts.failure().map(ToOwned::to_owned),
        }
    }
}
