//! Parts: files cut into equal parts that can be locked, read, written, uploaded, loaded and
//! evicted.
//!
//! Owns: the files of a store, their headers, locks and bytes. Does not own: the log
//! ([`crate::journal`]), the requests ([`crate::worker`]), the line they wait in
//! ([`crate::queue`]), or when to stop ([`crate::shutdown`]).
//!
//! | file | concept |
//! |---|---|
//! | `state.rs` | everything that is decided about a part at one instant: pure |
//! | `waiters.rs`, `wait.rs`, `locker.rs`, `lock.rs` | who holds and who waits |
//! | `deadlock.rs`, `detector.rs` | who waits for whom; the search for a cycle: pure |
//! | `id.rs`, `header.rs`, `file.rs` | what files and parts are |
//! | `latch.rs` | one copy at a time |
//! | `room.rs`, `lent.rs`, `evict.rs` | what may be here, and what goes |
//! | `access.rs` | reading and writing |
//! | `intent.rs`, `sync.rs` | what is true after a crash |
//! | `load.rs` | the way in |
//! | `capture.rs`, `pack.rs`, `flush.rs`, `settle.rs` | the way out |
//! | `line.rs`, `aside.rs` | what all of it was at one instant |
//! | `create.rs`, `length.rs` | create; drop, set_len |
//! | `epoch.rs` | what objects are called |
//! | `record.rs`, `snapshot.rs`, `replay.rs`, `open.rs`, `seed.rs` | what survives |
//! | `for_checkpoint.rs` | what the layer above asks |
//!
//! Resources are ordered: admission permit < part lock < room < upload slot < request. Who holds
//! one waits for none that comes before it. Latches and mutexes come last, and nothing is waited
//! for under them.

pub(crate) mod access;
pub(crate) mod aside;
pub(crate) mod capture;
pub mod config;
pub(crate) mod create;
pub(crate) mod deadlock;
pub(crate) mod detector;
pub(crate) mod epoch;
pub(crate) mod evict;
pub(crate) mod file;
pub(crate) mod flush;
pub(crate) mod for_checkpoint;
pub(crate) mod header;
pub mod id;
pub(crate) mod inspect;
pub(crate) mod intent;
#[cfg(all(test, shuttle))]
mod interleavings;
pub(crate) mod latch;
pub(crate) mod length;
pub(crate) mod lent;
pub(crate) mod line;
pub(crate) mod load;
pub(crate) mod lock;
pub mod locker;
#[cfg(all(test, loom_model))]
mod models;
pub(crate) mod open;
pub(crate) mod pack;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod room;
pub(crate) mod seed;
pub(crate) mod settle;
pub(crate) mod snapshot;
pub mod state;
pub(crate) mod sync;
pub(crate) mod wait;
pub(crate) mod waiters;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Limit, Result};
use crate::io::Io;
use crate::journal::fs::Fs;
use crate::journal::{Journal, Location};
use crate::phase::Phase;
use crate::queue::Queue;
use crate::random::Random;
use crate::runtime::Runtime;
use crate::sync::Mutex;
use crate::watched::Watched;

use config::StoreConfig;
use create::{Reserved, too_many};
use epoch::Epochs;
use evict::Resident;
use file::PartFile;
use flush::Flusher;
use id::FileId;
use latch::Latches;
use line::Line;
use lock::Locks;
use room::Room;
use settle::Settler;

pub use flush::FailingPart;

/// Shards of the wait table.
const SHARDS: usize = 64;

/// The part layer of one store.
#[derive(Debug)]
pub(crate) struct Parts {
    pub config: Arc<StoreConfig>,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    io: Io,
    runtime: Weak<Runtime>,
    journal: Journal,
    queue: Arc<Queue>,
    random: Random,
    pub locks: Locks,
    latches: Latches,
    pub cache: Arc<Room>,
    pub dirty: Arc<Room>,
    /// Memory of images on their way.
    pub images: Arc<Room>,
    files: Mutex<BTreeMap<FileId, Option<Arc<PartFile>>>>,
    next_no: AtomicU32,
    resident: Resident,
    evictor: Notify,
    pub flusher: Flusher,
    settler: Settler,
    pub epochs: Arc<Epochs>,
    pub line: Line,
    /// Under whose name checkpoints take room.
    ours: Arc<locker::LockerState>,
    /// Files that may not be as the last committed checkpoint has them, by number.
    changed: Mutex<BTreeMap<u32, Arc<PartFile>>>,
    /// Files that were dropped and that the last committed checkpoint may have, by their record;
    /// and behind how many lines.
    dropped: Mutex<BTreeMap<Location, (record::DroppedRecord, u64)>>,
    failed: OnceLock<String>,
    /// Why nothing may be written any more, though the disk is well.
    fenced: OnceLock<Error>,
    /// Changes when it is.
    fencing: Watched<()>,
    /// What writes to local files by itself: loads and evictions. Sealing waits for it: what hangs
    /// in the disk must not come to it when the directory is somebody else's.
    local: TaskTracker,
    /// Ends what runs beside.
    pub stop: CancellationToken,
    /// Operations of checkpointers that are waiting for something.
    checkpointing: AtomicU64,
    /// Header records of all files in the journal; and whether those of some are being written
    /// down because they are too many.
    header_records: AtomicU64,
    writing_down: AtomicBool,
    /// Files that have intents open; those that were dropped are gone.
    intending: Mutex<BTreeMap<u32, Weak<PartFile>>>,
    /// Entries here name images that no record on the disk does.
    has_unrecorded: AtomicBool,
    /// A name was given, or given back.
    named: Watched<()>,
    pub totals: Totals,
    /// Held by a test, it keeps who found a part on its way from choosing what to wait for.
    #[cfg(test)]
    pub between: tokio::sync::Mutex<()>,
}

/// Where the bytes of a file's parts are.
pub(crate) fn part_path(dir: &std::path::Path, id: FileId, token: u64) -> PathBuf {
    dir.join("parts")
        .join(format!("{:016x}-{token:016x}", id.0))
}

/// An operation of a checkpointer: shutdown stops nothing that it needs before it is over.
#[derive(Debug)]
pub(crate) struct Checkpointing<'a>(&'a Parts);

impl Drop for Checkpointing<'_> {
    fn drop(&mut self) {
        self.0.checkpointing.fetch_sub(1, Ordering::AcqRel);
        self.0.flusher.moved();
    }
}

/// Counts since open.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub loads: AtomicU64,
    pub evictions: AtomicU64,
    pub images: AtomicU64,
    pub written_bytes: AtomicU64,
}

impl Parts {
    pub(crate) fn new(
        config: Arc<StoreConfig>,
        queue: Arc<Queue>,
        fs: Arc<dyn Fs>,
        io: Io,
        runtime: &Arc<Runtime>,
        random: Random,
        epochs: Vec<(Location, record::EpochRecord)>,
    ) -> Arc<Self> {
        let claimed = config.fencing.is_on();
        let ours =
            locker::LockerState::apart("checkpointer of the store", locker::Role::Checkpointer);
        Arc::new(Self {
            ours,
            dir: config.queue.dir.clone(),
            fs,
            io,
            runtime: Arc::downgrade(runtime),
            journal: queue.journal.clone(),
            queue,
            random,
            locks: Locks::new(SHARDS, config.max_lock_waiters),
            latches: Latches::new(),
            cache: Room::new(
                Limit::CacheBytes,
                config.cache_bytes,
                config.checkpoint_cache_bytes,
            ),
            dirty: Room::new(
                Limit::DirtyBytes,
                config.dirty_bytes,
                config.checkpoint_cache_bytes,
            ),
            images: Room::new(
                Limit::DirtyBytes,
                config.image_bytes,
                config.pack_target().max(config.max_part_bytes()),
            ),
            files: Mutex::new(BTreeMap::new()),
            next_no: AtomicU32::new(0),
            resident: Resident::default(),
            evictor: Notify::new(),
            flusher: Flusher::default(),
            settler: Settler::default(),
            epochs: Epochs::new(epochs, claimed),
            line: Line::default(),
            changed: Mutex::new(BTreeMap::new()),
            dropped: Mutex::new(BTreeMap::new()),
            failed: OnceLock::new(),
            fenced: OnceLock::new(),
            fencing: Watched::new(()),
            local: TaskTracker::new(),
            stop: CancellationToken::new(),
            checkpointing: AtomicU64::new(0),
            header_records: AtomicU64::new(0),
            writing_down: AtomicBool::new(false),
            intending: Mutex::new(BTreeMap::new()),
            has_unrecorded: AtomicBool::new(false),
            named: Watched::new(()),
            totals: Totals::default(),
            #[cfg(test)]
            between: tokio::sync::Mutex::new(()),
            config,
        })
    }

    /// Counts an operation of a checkpointer, while it goes on.
    pub(crate) fn checkpointing(
        &self,
        locker: Option<&locker::LockerState>,
    ) -> Option<Checkpointing<'_>> {
        let is_one = locker.is_some_and(|locker| locker.role == locker::Role::Checkpointer);
        is_one.then(|| {
            self.checkpointing.fetch_add(1, Ordering::AcqRel);
            Checkpointing(self)
        })
    }

    /// Starts what runs beside: flusher, settler, evictor and detector.
    pub(crate) fn start(self: &Arc<Self>) {
        self.spawn(Arc::clone(self).run_flusher());
        self.spawn(Arc::clone(self).run_settler());
        self.spawn_local(Arc::clone(self).run_evictor());
        self.spawn(Arc::clone(self).run_detector());
    }

    /// Looks for deadlocks among those who wait, and moves the clock of locks.
    async fn run_detector(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(self.config.deadlock_timeout) => (),
            }
            self.locks.tick();
            if self.locks.waiting() > 0 {
                let files = self.all_files();
                self.locks.expire(|key| {
                    let file = files.iter().find(|file| file.no == key.file())?;
                    Some(file.part(key.index()))
                });
            }
            if self.locks.may_be_stuck() {
                // Room is waited for with parts held: who waits for it is in a cycle too.
                while self.locks.detect() {}
            }
        }
    }

    /// Runs a task of ours; nothing, where the runtime has ended.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.spawn(task);
        }
    }

    /// The same, of what writes to local files: sealing waits for it.
    pub(crate) fn spawn_local(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.local.track_future(task));
    }

    /// Runs something that goes on where its caller leaves.
    pub(crate) fn carry<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> futures::future::BoxFuture<'static, Result<T>> {
        let (told, hears) = tokio::sync::oneshot::channel();
        self.spawn_local(async move {
            // Whoever asked may have gone.
            let _ = told.send(work.await);
        });
        Box::pin(async move {
            match hears.await {
                Ok(result) => result,
                Err(_) => Err(Error::Runtime("the runtime has ended".to_owned())),
            }
        })
    }

    fn parts_dir(&self) -> PathBuf {
        self.dir.join("parts")
    }

    fn headers_dir(&self) -> PathBuf {
        self.dir.join("headers")
    }

    fn path_of(&self, id: FileId, token: u64) -> PathBuf {
        part_path(&self.dir, id, token)
    }

    fn next_no(&self) -> u32 {
        self.next_no.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn reserve_name(self: &Arc<Self>, id: FileId) -> Result<Reserved> {
        let mut files = self.files.lock();
        if files.contains_key(&id) {
            return Err(Error::FileExists { file: id });
        }
        let current = files.len() as u64;
        if current >= self.config.max_files {
            return Err(too_many(current, self.config.max_files));
        }
        files.insert(id, None);
        Ok(Reserved {
            parts: Arc::clone(self),
            id,
            no: self.next_no(),
            filled: false,
        })
    }

    fn unreserve(&self, id: FileId) {
        {
            let mut files = self.files.lock();
            if files.get(&id).is_some_and(Option::is_none) {
                files.remove(&id);
            }
        }
        self.named.change(|()| ());
    }

    fn insert(&self, file: &Arc<PartFile>) {
        self.files.lock().insert(file.id, Some(Arc::clone(file)));
        self.named.change(|()| ());
    }

    /// Waits until nobody is in the middle of creating a file of this name.
    pub(crate) async fn named(&self, id: FileId) {
        let given = || !matches!(self.files.lock().get(&id), Some(None));
        self.named.until(|()| given().then_some(())).await;
    }

    /// The file is no more.
    fn forget(&self, file: &PartFile) {
        file.set_dropped();
        self.files.lock().remove(&file.id);
        self.resident.remove_file(file.no);
    }

    pub(crate) fn file(&self, id: FileId) -> Result<Arc<PartFile>> {
        let files = self.files.lock();
        let file = files.get(&id).and_then(Clone::clone);
        file.ok_or(Error::UnknownFile { file: id })
    }

    pub(crate) fn all_files(&self) -> Vec<Arc<PartFile>> {
        let files = self.files.lock();
        files.values().filter_map(Clone::clone).collect()
    }

    /// Why the store takes no writes any more.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    pub(crate) fn resident(&self) -> usize {
        self.resident.count()
    }

    /// Another owns the prefix: nothing is written any more, and whoever waits to do so is told.
    pub(crate) fn fence(&self, error: &Error) {
        if self.fenced.set(error.clone()).is_err() {
            return;
        }
        tracing::error!(%error, "the store is fenced: nothing is written, and nothing is sent");
        self.queue.hold_sending(true);
        self.queue.admission.refuse(error);
        self.cache.refuse(|_| true, error);
        self.dirty.shut(error);
        self.images.shut(error);
        // Closed or not: its checkpoint may be on its way.
        if let Some(line) = self.line.kept() {
            line.give_up(error.clone());
        }
        self.flusher.moved();
        self.fencing.change(|()| ());
    }

    /// Why it was, if it was.
    pub(crate) fn fenced(&self) -> Option<&Error> {
        self.fenced.get()
    }

    /// Waits until it is: why.
    pub(crate) async fn until_fenced(&self) -> Error {
        self.fencing.until(|()| self.fenced().cloned()).await
    }

    /// Closes the gate a step further: those who wait and are let in no more are told.
    pub(crate) fn close(&self, phase: Phase) {
        self.locks.close(phase);
        let error = Error::ShuttingDown { phase };
        let refused = |wait: &room::Wait| self.locks.admits(wait.locker.as_deref(), false).is_err();
        self.cache.refuse(refused, &error);
        let refused = |wait: &room::Wait| self.locks.admits(wait.locker.as_deref(), true).is_err();
        self.dirty.refuse(refused, &error);
    }

    /// Everybody who waits is told that it is over.
    pub(crate) fn shut(&self, phase: Phase) {
        let error = Error::ShuttingDown { phase };
        self.locks.close(phase);
        self.cache.shut(&error);
        self.dirty.shut(&error);
        self.images.shut(&error);
        self.stop.cancel();
    }

    /// Who waits for what, and what is in the way: for the stall report.
    pub(crate) fn picture(&self) -> String {
        let files = self.all_files();
        let waits: Vec<String> = self
            .locks
            .waits(32)
            .into_iter()
            .map(|(key, text)| {
                let file = files.iter().find(|file| file.no == key.file());
                match file {
                    Some(file) => format!("{}: {text}", file.part(key.index())),
                    None => text,
                }
            })
            .collect();
        let loads: Vec<String> = files
            .iter()
            .flat_map(|file| {
                let loads = file.loads.lock();
                let loading = loads.keys().map(|index| file.part(*index).to_string());
                loading.collect::<Vec<_>>()
            })
            .take(32)
            .collect();
        format!(
            "waiting for locks: {waits:#?}; loading: {loads:?}; cache: {} of {} bytes, {} wait; \
             dirty: {} of {} bytes, {} wait; failing: {:?}; line: {:?} images owed; fenced: {:?}",
            self.cache.used().0,
            self.cache.limit(),
            self.cache.waiting().len(),
            self.dirty.used().0,
            self.dirty.limit(),
            self.dirty.waiting().len(),
            self.flusher.failing(8),
            self.line.open().map(|line| line.owed()),
            self.fenced.get().map(ToString::to_string),
        )
    }

    /// Makes everything durable here, before the journal is sealed.
    pub(crate) async fn seal(self: &Arc<Self>) -> Result<()> {
        self.local.close();
        self.local.wait().await;
        // Steps of threads that were let in before the gate was closed: one may hang in the disk.
        let parts = Arc::clone(self);
        let passed = self.io.run(move || parts.latches.pass_all()).await;
        passed.map_err(|error| Error::directory(&self.dir, &error))?;
        self.settle_rest().await;
        self.sync_all().await
    }
}

impl Parts {
    /// What a read or write of a part would have to wait for now.
    pub(crate) fn in_the_way(&self, file: &PartFile, index: u32) -> Option<Error> {
        use state::Status;
        let entry = file.header.peek(index)?;
        match entry.word.get().status() {
            Status::Loading => {
                let object = entry.address().map(|a| self.epochs.key(&a).to_string());
                Some(Error::Loading {
                    part: file.part(index),
                    object: object.unwrap_or_default(),
                })
            }
            Status::NotLoaded | Status::Evicting => Some(self.cache.none()),
            Status::Zero | Status::Loaded if self.dirty.is_wanted() => Some(self.dirty.none()),
            Status::Zero | Status::Loaded if self.cache.is_wanted() => Some(self.cache.none()),
            Status::Zero | Status::Loaded => None,
        }
    }

    /// Whether a part that somebody holds has to be loaded, and has no room yet.
    pub(crate) async fn lacks_room(&self, file: &PartFile, index: u32) -> bool {
        let word = &file.header.entry(index).word;
        let gone = || word.get().status() != state::Status::Evicting;
        file.moves.until(|_| gone().then_some(())).await;
        word.get().status() == state::Status::NotLoaded
    }

    /// Who holds parts from a length on.
    pub(crate) fn holders_from(&self, file: &PartFile, len: u64) -> Error {
        let first = u32::try_from(file.parts_of(len)).unwrap_or(u32::MAX);
        let held = file.header.used_from(first).find(|(_, entry)| {
            let word = entry.word.get();
            word.is_held() && !word.is_sole()
        });
        match held {
            Some((index, _)) => Error::Locked {
                part: file.part(index),
                mode: state::Mode::Exclusive,
                holders: self.locks.holders(file.key(index), state::Want::Sole),
            },
            None => Error::WouldWait("the local disk"),
        }
    }

    /// Everything that guards hold.
    pub(crate) fn held(&self) -> Vec<(id::PartId, locker::Holder)> {
        let files = self.all_files();
        self.locks.all_held(|key| {
            let file = files.iter().find(|file| file.no == key.file())?;
            Some(file.part(key.index()))
        })
    }
}
