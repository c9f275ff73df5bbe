//! What the scenario tests share: a queue over a simulated S3 and file system, on paused time.
//!
//! Every test here also runs with one worker and with a queue of one where [`both`] says so
//! (scenario D18).
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod gate;

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::remote::Remote;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{Config, Options, Receipt, RunOn, Settlement, UploadQueue};
use tokio::runtime::Handle;

/// A directory and a bucket that outlive the queues opened on them.
#[derive(Debug, Clone)]
pub struct Rig {
    pub fs: SimFs,
    pub remote: SimRemote,
    pub config: Config,
}

impl Default for Rig {
    fn default() -> Self {
        let mut config = Config::new("/q");
        config.segment_bytes = 64 * 1024;
        config.inline_bytes = 4 * 1024;
        config.max_disk_bytes = 64 * 1024 * 1024;
        config.seed = Some(7);
        Self {
            fs: SimFs::new(),
            remote: SimRemote::new(),
            config,
        }
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut rig = Self::default();
        change(&mut rig.config);
        rig
    }

    /// Opens a queue driven by the test's own runtime.
    pub async fn open(&self) -> UploadQueue {
        self.try_open().await.expect("opens")
    }

    pub async fn try_open(&self) -> s3_writeback::Result<UploadQueue> {
        self.try_open_on(Arc::new(self.remote.clone())).await
    }

    /// The same over another remote.
    pub async fn open_on(&self, remote: Arc<dyn Remote>) -> UploadQueue {
        self.try_open_on(remote).await.expect("opens")
    }

    async fn try_open_on(&self, remote: Arc<dyn Remote>) -> s3_writeback::Result<UploadQueue> {
        UploadQueue::builder(self.config.clone(), remote)
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(self.fs.clone()), Io::inline())
            .open()
            .await
    }
}

/// Runs a scenario as it is, with one worker, and with a queue of one (D18).
pub fn both(scenario: impl AsyncFn(Rig)) {
    let shapes: [fn(&mut Config); 3] = [
        |_| (),
        |config| config.workers = 1,
        |config| config.max_tasks = 1,
    ];
    for shape in shapes {
        paused(scenario(Rig::with(shape)));
    }
}

/// Runs a scenario whose failure would be that the virtual clock stands still, or that a thread
/// waits for itself.
pub fn with_a_real_limit(scenario: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .spawn(move || {
            scenario();
            done.send(()).expect("somebody waits");
        })
        .expect("a thread");
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
        _ => thread.join().expect("passes"),
    }
}

/// Runs a scenario that needs room for several tasks: as it is, and with one worker.
pub fn roomy(scenario: impl AsyncFn(Rig)) {
    let shapes: [fn(&mut Config); 2] = [|_| (), |config| config.workers = 1];
    for shape in shapes {
        paused(scenario(Rig::with(shape)));
    }
}

/// Runs a test on paused time, for at most a simulated week: a hang is a failure, not a wait.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(7 * 24 * 3600), test)
            .await
            .expect("nobody waits for ever")
    })
}

/// Runs a test on so many threads, and in the time that there is.
pub fn on_threads<T>(threads: usize, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test)
}

/// Spawns on the test's own runtime, which ends with the test.
#[expect(clippy::disallowed_methods, reason = "a test's tasks need no register")]
pub fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

/// Submits and waits for admission.
pub async fn submit(queue: &UploadQueue, key: &str, body: &str) -> Receipt {
    queue
        .submit(key, body.as_bytes().to_vec(), Options::default())
        .within(Duration::from_secs(3600))
        .await
        .expect("admitted")
}

/// Waits for a task's end.
pub async fn settled(receipt: &Receipt) -> Settlement {
    receipt
        .settled()
        .within(Duration::from_secs(24 * 3600))
        .await
        .expect("settles")
}

/// Submits many from tasks of their own, so that a queue of one lets them through in turn.
pub async fn submit_all(
    queue: &UploadQueue,
    keys: impl IntoIterator<Item = String>,
) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for key in keys {
        let receipt = submit(queue, &key, &key).await;
        receipts.push(receipt);
    }
    receipts
}

/// Every gauge is at zero (D17).
pub fn assert_empty(queue: &UploadQueue) {
    let snapshot = queue.snapshot();
    assert_eq!(
        (
            snapshot.admitted_tasks,
            snapshot.admitted_bytes,
            snapshot.admitted_disk_bytes,
            snapshot.reserve_tasks,
            snapshot.admission_waiters,
            snapshot.tasks.tasks,
            snapshot.tasks.running,
            snapshot.tasks.settling,
            snapshot.tasks.loads,
        ),
        (0, 0, 0, 0, 0, 0, 0, 0, 0),
        "{snapshot:?}"
    );
    assert_eq!(snapshot.pressure, 0);
    assert!(snapshot.holds.is_empty());
}

/// A part store's directory and bucket, which outlive the stores opened on them.
#[derive(Debug, Clone)]
pub struct StoreRig {
    pub fs: SimFs,
    pub remote: SimRemote,
    pub config: s3_writeback::StoreConfig,
}

/// The part size of these tests.
pub const PART: usize = 4096;
/// The same, as files have it.
pub const PARTS_OF: s3_writeback::FileOptions = s3_writeback::FileOptions {
    part_bytes: PART as u32,
};

impl StoreRig {
    /// A store with room for `frames` parts, half of which may be dirty.
    pub fn new(frames: u64) -> Self {
        let rig = Rig::default();
        let mut config = s3_writeback::StoreConfig::new("/q");
        config.fencing = s3_writeback::Fencing::Off;
        config.checkpoint_at_shutdown = false;
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.queue = rig.config;
        config.cache_bytes = frames * PART as u64;
        config.dirty_bytes = (frames / 2).max(1) * PART as u64;
        config.checkpoint_cache_bytes = 2 * PART as u64;
        Self {
            fs: rig.fs,
            remote: rig.remote,
            config,
        }
    }

    pub fn with(frames: u64, change: impl FnOnce(&mut s3_writeback::StoreConfig)) -> Self {
        let mut rig = Self::new(frames);
        change(&mut rig.config);
        rig
    }

    /// Opens a store driven by the test's own runtime.
    pub async fn open(&self) -> s3_writeback::PartStore {
        self.try_open().await.expect("opens")
    }

    pub async fn try_open(&self) -> s3_writeback::Result<s3_writeback::PartStore> {
        let remote = Arc::new(self.remote.clone());
        s3_writeback::PartStore::builder(self.config.clone(), remote)
            .run_on(RunOn::Handle(Handle::current()))
            // A process of its own: what an earlier life left running is dead after a crash.
            .file_system(Arc::new(self.fs.process()), Io::inline())
            .open()
            .await
    }
}

/// Reads a run of a file.
pub async fn read(
    file: &s3_writeback::File,
    from: usize,
    len: usize,
) -> s3_writeback::Result<Vec<u8>> {
    let mut bytes = vec![0xEE; len];
    file.read_at(&mut bytes, from as u64).await?;
    Ok(bytes)
}

/// Fills part `index` with `byte`.
pub async fn fill(file: &s3_writeback::File, index: usize, byte: u8) {
    let bytes = [byte; PART];
    let written = file.write_at(&bytes, (index * PART) as u64).await;
    written.expect("is written");
}

/// Waits until S3 has all that was written.
pub async fn uploaded(store: &s3_writeback::PartStore) {
    for _ in 0..100_000 {
        if store.snapshot().dirty_bytes == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("S3 does not get it: {:#?}", store.snapshot());
}

/// Every gauge of a store at rest is at zero.
pub fn assert_idle(store: &s3_writeback::PartStore) {
    let snapshot = store.snapshot();
    assert_eq!(
        (
            snapshot.lock_waiters,
            snapshot.cache_waiters,
            snapshot.held.len(),
            snapshot.image_bytes,
            snapshot.queue.tasks.loads,
            snapshot.queue.tasks.images,
        ),
        (0, 0, 0, 0, 0, 0),
        "{snapshot:#?}"
    );
}

/// Checkpoints, which most tests of parts do without.
impl StoreRig {
    /// A store that owns its prefix, and makes checkpoints when it is asked to.
    pub fn owner(frames: u64) -> Self {
        Self::owner_with(frames, |_| ())
    }

    pub fn owner_with(frames: u64, change: impl FnOnce(&mut s3_writeback::StoreConfig)) -> Self {
        Self::with(frames, |config| {
            config.fencing = s3_writeback::Fencing::On;
            change(config);
        })
    }

    /// The same bucket, seen from an empty directory.
    pub fn elsewhere(&self) -> Self {
        Self {
            fs: SimFs::new(),
            remote: self.remote.clone(),
            config: self.config.clone(),
        }
    }

    fn builder(&self) -> s3_writeback::StoreBuilder {
        let remote = Arc::new(self.remote.clone());
        s3_writeback::PartStore::builder(self.config.clone(), remote)
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(self.fs.process()), Io::inline())
    }

    /// Opens a store with more said than its configuration.
    pub async fn open_as(
        &self,
        say: impl FnOnce(s3_writeback::StoreBuilder) -> s3_writeback::StoreBuilder,
    ) -> s3_writeback::Result<s3_writeback::PartStore> {
        say(self.builder()).open().await
    }

    /// Every upload of a pack takes five seconds from here on.
    pub fn slow_packs(&self) {
        use s3_writeback::testing::remote::{Call, Fault};
        let slow = Fault::Delay(Duration::from_secs(5));
        self.remote.under(None, Some(Call::Put), "packs/", slow);
    }

    /// The bucket, looked at from outside.
    pub fn prefix(&self) -> s3_writeback::Prefix {
        s3_writeback::Prefix::new(Arc::new(self.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(self.fs.process()), Io::inline())
    }

    /// Restores a checkpoint into an empty directory, and opens it to read.
    pub async fn restored(&self, what: s3_writeback::Restore) -> s3_writeback::PartStore {
        let there = self.elsewhere();
        let restored = there.prefix().restore(&there.config, what).await;
        restored.expect("is restored");
        let opened = there.open_as(s3_writeback::StoreBuilder::stranded).await;
        opened.expect("opens what was restored")
    }
}

/// A checkpoint with nothing said about it.
pub async fn checkpoint(store: &s3_writeback::PartStore) -> Arc<s3_writeback::Checkpoint> {
    let made = store
        .checkpoint(s3_writeback::CheckpointOptions::new())
        .await;
    made.expect("is committed")
}

/// Asks for a checkpoint; its number.
pub fn asks(store: &s3_writeback::PartStore) -> tokio::task::JoinHandle<s3_writeback::Result<u64>> {
    let asks = store.clone();
    spawn(async move {
        let made = asks
            .checkpoint(s3_writeback::CheckpointOptions::new())
            .await?;
        Ok(made.number)
    })
}

/// The same, and waits until its line is drawn and images are owed; whoever calls holds them up.
pub async fn drawn(
    store: &s3_writeback::PartStore,
) -> tokio::task::JoinHandle<s3_writeback::Result<u64>> {
    let owed = || store.checkpoint_snapshot().owed;
    assert!(owed().is_none());
    let made = asks(store);
    while owed().is_none_or(|owed| owed == 0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    made
}

/// All bytes of a file.
pub async fn contents(store: &s3_writeback::PartStore, id: u64) -> Vec<u8> {
    let file = store
        .file(s3_writeback::FileId(id))
        .expect("there is such a file");
    let len = usize::try_from(file.len()).expect("fits");
    read(&file, 0, len).await.expect("is read")
}
