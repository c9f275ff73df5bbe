//! What is promised of checkpoints where it is easily missed: each test was seen to fail.
//!
//! Owns: lines beside cuts, drops and growth; callbacks and callers that do wrong; what is left
//! open or behind; random walks and threads around lines. Does not own: the checkpoint as such
//! (`checkpoints.rs`), the line as such (`line.rs`), or who may commit (`fencing.rs`).

mod support;

use std::future::IntoFuture as _;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, FsFile, FsLock, OpenMode, Stat};
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, Fencing, FileId, PartStore, Restore, Role};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use support::{
    PART, PARTS_OF, StoreRig, asks, checkpoint, contents, drawn, fill, on_threads, paused, spawn,
    uploaded,
};

const FILE: FileId = FileId(1);

#[test]
fn parts_that_were_cut_off_at_a_boundary_before_a_checkpoint_do_not_come_back_when_the_file_grows()
{
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        checkpoint(&store).await;
        file.set_len(4 * PART as u64).await.expect("is cut");
        checkpoint(&store).await;
        file.set_len(8 * PART as u64).await.expect("grows");
        checkpoint(&store).await;
        let here = contents(&store, 1).await;
        assert!(here[4 * PART..].iter().all(|byte| *byte == 0));
        let there = rig.restored(Restore::latest()).await;
        let there = contents(&there, 1).await;
        assert!(there == here, "what was cut off came back");
    });
}

#[test]
fn a_file_that_was_dropped_is_let_go_of_when_no_checkpoint_has_it() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.checkpoint_every = Some(Duration::from_secs(10));
        });
        let store = rig.open().await;
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        let file = store.create(FileId(2), PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        fill(&file, 0, 2).await;
        drop(file);
        let locker = store
            .locker("l", s3_writeback::Role::Foreground)
            .expect("a locker");
        store
            .drop_file(FileId(2), &locker)
            .await
            .expect("is dropped");
        checkpoint(&store).await;
        let made = checkpoint(&store).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let last = store
            .checkpoints()
            .await
            .expect("lists")
            .last()
            .expect("one")
            .number;
        assert_eq!(
            last, made.number,
            "checkpoints are made though nothing has changed"
        );
    });
}

#[test]
fn a_file_that_was_made_and_truncated_behind_the_line_is_in_the_next_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.slow_packs();
        let made = drawn(&store).await;
        let new = store.create(FileId(2), PARTS_OF).await.expect("creates");
        new.set_len(0).await.expect("is truncated");
        made.await.expect("ends").expect("is committed");
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE, FileId(2)]);
    });
}

/// A store whose blocking calls run on so many threads.
async fn threaded(rig: &StoreRig, threads: usize) -> PartStore {
    let opened = rig.open_as(|store| {
        store.file_system(
            Arc::new(rig.fs.process()),
            Io::pool(Handle::current(), threads),
        )
    });
    opened.await.expect("opens")
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Gives the runtime a turn, and the threads some time, until something is so.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..5_000_000 {
        tokio::task::yield_now().await;
        std::thread::yield_now();
        if what() {
            return;
        }
    }
    panic!("it is never so");
}

/// A disk that holds up whoever makes the file for what is set aside, until it is let go.
#[derive(Debug, Clone)]
struct Held {
    inner: Arc<dyn Fs>,
    state: Arc<(Mutex<(bool, bool)>, Condvar)>,
}

impl Held {
    fn new(rig: &StoreRig) -> Self {
        Self {
            inner: Arc::new(rig.fs.process()),
            state: Arc::default(),
        }
    }

    async fn open(&self, rig: &StoreRig) -> PartStore {
        let opened = rig.open_as(|store| {
            store.file_system(Arc::new(self.clone()), Io::pool(Handle::current(), 4))
        });
        opened.await.expect("opens")
    }

    /// Starts a checkpoint, and comes back when a thread has drawn its line, and the task that
    /// asked for it has not seen that yet: as on a busy runtime.
    async fn just_drawn(
        &self,
        store: &PartStore,
    ) -> tokio::task::JoinHandle<s3_writeback::Result<u64>> {
        let made = asks(store);
        until(|| self.state.0.lock().unwrap().0).await;
        self.state.0.lock().unwrap().1 = true;
        self.state.1.notify_all();
        // The runtime has no turn meanwhile.
        while store.checkpoint_snapshot().owed.is_none() {
            std::thread::yield_now();
        }
        made
    }
}

impl Fs for Held {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        if path.ends_with("lines/aside") {
            let mut state = self.state.0.lock().unwrap();
            state.0 = true;
            while !state.1 {
                state = self.state.1.wait(state).unwrap();
            }
        }
        self.inner.open(path, mode)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        self.inner.lock(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.inner.read_dir(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.inner.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_space(path)
    }
}

/// Syncs hang as long as it is there: whoever fails meanwhile does not hang, too.
struct Hung<'a>(&'a StoreRig);

impl<'a> Hung<'a> {
    fn syncs(rig: &'a StoreRig) -> Self {
        rig.fs.hang_syncs();
        Self(rig)
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.0.fs.release_syncs();
    }
}

/// An owner whose every image that is set aside goes into a file.
fn owner_without_memory() -> StoreRig {
    StoreRig::owner_with(32, |config| {
        config.aside_memory = 0;
    })
}

#[test]
fn a_file_that_grew_just_behind_a_line_has_grown_in_the_next_checkpoint_after_a_restart() {
    paused(async {
        let rig = owner_without_memory();
        let disk = Held::new(&rig);
        let store = disk.open(&rig).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        // Nothing is dirty: no file is needed.
        checkpoint(&store).await;
        fill(&file, 0, 1).await;
        let made = disk.just_drawn(&store).await;
        {
            let mut grows = std::pin::pin!(other.set_len(100).into_future());
            let _begun = poll_once(grows.as_mut());
            assert_eq!(other.len(), 100);
            made.await.expect("ends").expect("is committed");
            grows.await.expect("has grown");
        }
        drop((file, other));
        store.shutdown().await.expect("ends");
        drop(store);
        let store = rig.open().await;
        assert_eq!(store.file(FileId(2)).expect("is there").len(), 100);
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 2).await.len(), 100);
    });
}

#[test]
fn a_file_that_was_dropped_just_behind_its_first_line_is_in_no_later_checkpoint() {
    paused(async {
        let rig = owner_without_memory();
        let disk = Held::new(&rig);
        let store = disk.open(&rig).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        let locker = store.locker("l", Role::Foreground).expect("a locker");
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        fill(&other, 0, 2).await;
        let made = disk.just_drawn(&store).await;
        let mut drops = std::pin::pin!(store.drop_file(FileId(2), &locker).into_future());
        let _begun = poll_once(drops.as_mut());
        made.await.expect("ends").expect("is committed");
        drops.await.expect("is dropped");
        // It was there at the line.
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE, FileId(2)]);
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE], "what was dropped is back");
    });
}

#[test]
fn parts_that_are_cut_off_behind_a_line_while_they_are_captured_are_in_it_whole() {
    paused(async {
        let rig = StoreRig::owner(64);
        let store = threaded(&rig, 1).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        file.sync().await.expect("syncs");
        fill(&file, 0, 1).await;
        let hung = Hung::syncs(&rig);
        let made = asks(&store);
        until(|| rig.fs.hanging() > 0 && store.checkpoint_snapshot().owed.is_some()).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let mut cuts = std::pin::pin!(file.set_len(2 * PART as u64).into_future());
        let _begun = poll_once(cuts.as_mut());
        assert_eq!(file.len(), 2 * PART as u64);
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        drop(hung);
        cuts.await.expect("is cut");
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        let bytes = contents(&there, 1).await;
        assert_eq!(bytes.len(), 8 * PART);
        let wrong = (0..8)
            .filter(|at| bytes[at * PART] != 1)
            .collect::<Vec<_>>();
        assert!(
            wrong.is_empty(),
            "parts {wrong:?} are not what they were at the line"
        );
    });
}

#[test]
fn an_image_that_is_refused_of_a_file_that_was_dropped_before_the_line_is_not_waited_for() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.max_dirty_age = Duration::from_millis(10);
        });
        let store = threaded(&rig, 4).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        rig.remote.refuse_bodies_with(Some(vec![2; 64].into()));
        let gates: [Arc<Notify>; 2] = Default::default();
        for ((file, byte), gate) in [(&other, 2), (&file, 1)].into_iter().zip(&gates) {
            let held = Fault::Gate(Arc::clone(gate));
            rig.remote.under(Some(1), Some(Call::Put), "packs/", held);
            let before = rig.remote.count(Call::Put, "packs/");
            fill(file, 0, byte).await;
            rig.remote
                .wait_for(|remote| remote.count(Call::Put, "packs/") > before)
                .await;
        }
        // Its end is written, and not durable; the line is drawn behind that, and open as long as
        // the other image is held up.
        let hung = Hung::syncs(&rig);
        let locker = store.locker("l", Role::Foreground).expect("a locker");
        let mut drops = std::pin::pin!(store.drop_file(FileId(2), &locker).into_future());
        let _begun = poll_once(drops.as_mut());
        until(|| rig.fs.hanging() > 0).await;
        let made = asks(&store);
        until(|| store.checkpoint_snapshot().owed == Some(1)).await;
        gates[0].notify_one();
        until(|| !store.snapshot().failing.is_empty()).await;
        drop(hung);
        drops.await.expect("is dropped");
        gates[1].notify_one();
        let made = tokio::time::timeout(Duration::from_secs(60), made).await;
        let made = made.expect("nobody waits for what is gone");
        made.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE]);
    });
}

#[test]
fn a_checkpoint_that_was_pinned_while_garbage_was_looked_for_can_be_read() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.retain_checkpoints = 1;
            config.max_dirty_age = Duration::from_millis(10);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        fill(&file, 0, 2).await;
        uploaded(&store).await;
        let slow = Fault::Delay(Duration::from_secs(5));
        rig.remote.under(Some(1), Some(Call::List), "pins/", slow);
        let collects = store.clone();
        let collected = spawn(async move { collects.gc().await });
        rig.remote
            .wait_for(|remote| remote.count(Call::List, "pins/") == 1)
            .await;
        let gate = Arc::new(Notify::new());
        let held = Fault::Gate(Arc::clone(&gate));
        rig.remote.under(Some(1), Some(Call::Get), "head", held);
        let before = rig.remote.count(Call::Get, "head");
        rig.remote
            .wait_for(|remote| remote.count(Call::Get, "head") > before)
            .await;
        // It has seen the pins, and not yet head.
        let reader = rig
            .prefix()
            .read(Some(1), 0, Duration::from_secs(3600))
            .await
            .expect("is listed, and pinned");
        let made = checkpoint(&store).await;
        assert_eq!(made.number, 2);
        gate.notify_one();
        collected.await.expect("ends").expect("looks");
        let bytes = reader.read(FILE, 0, PART).await.expect("is pinned");
        assert_eq!(bytes[..], [1; PART]);
    });
}

#[test]
fn an_image_that_was_set_aside_and_is_refused_for_good_is_named() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.image_bytes = PART as u64;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        rig.slow_packs();
        let made = drawn(&store).await;
        for index in 0..7 {
            fill(&file, index, 2).await;
        }
        file.write_at(&[9; 1], 0).await.expect("writes");
        rig.remote.refuse_bodies_with(Some(vec![1; 64].into()));
        let error = made.await.expect("ends").expect_err("it is refused");
        assert!(matches!(error, Error::PartFailed { .. }), "{error:?}");
    });
}

#[test]
fn a_meta_that_does_not_come_back_costs_one_checkpoint_and_not_all() {
    on_threads(2, async {
        let rig = StoreRig::owner_with(32, |config| {
            config.checkpoint_within = Duration::from_secs(2);
        });
        let store = threaded(&rig, 4).await;
        let (tell, hears) = std::sync::mpsc::sync_channel::<()>(1);
        let options = CheckpointOptions::new().meta(move || {
            let _ = hears.recv();
            Vec::new()
        });
        let error = store.checkpoint(options).await.expect_err("takes too long");
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        let next = store
            .checkpoint(CheckpointOptions::new())
            .within(Duration::from_secs(8))
            .await;
        drop(tell);
        next.expect("the next one is made");
    });
}

#[test]
fn what_one_asks_for_wrongly_fails_nobody_elses_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let elsewhere = support::Rig::new();
        let queue = elsewhere.open().await;
        let foreign = support::submit(&queue, "a", "b").await;
        let wrong = store.checkpoint(CheckpointOptions::new().after([foreign]));
        let right = store.checkpoint(CheckpointOptions::new());
        let (wrong, right) = tokio::join!(wrong.into_future(), right.into_future());
        assert!(matches!(wrong, Err(Error::ForeignReceipt(_))));
        right.expect("is made");
    });
}

/// On the file system that there is.
#[test]
fn a_dropped_file_leaves_nothing_open() {
    on_threads(2, async {
        let dir = tempfile::tempdir().expect("a directory");
        let mut rig = StoreRig::owner(64);
        rig.config.queue.dir = dir.path().join("store");
        let remote = Arc::new(rig.remote.clone());
        let store = PartStore::builder(rig.config.clone(), remote)
            .run_on(s3_writeback::RunOn::Handle(Handle::current()))
            .open()
            .await
            .expect("opens");
        let locker = store.locker("l", Role::Foreground).expect("a locker");
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        for _ in 0..30 {
            let file = store.create(FileId(2), PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            drop(file);
            store.drop_file(FileId(2), &locker).await.expect("drops");
            checkpoint(&store).await;
        }
        let own = dir.path().display().to_string();
        let fds = std::fs::read_dir("/proc/self/fd").expect("a list");
        let gone = fds
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .filter(|to| to.display().to_string().starts_with(&own))
            .filter(|to| to.display().to_string().ends_with("(deleted)"))
            .count();
        store.shutdown().await.expect("ends");
        assert!(
            gone < 5,
            "{gone} files that were dropped are open, and keep their blocks"
        );
    });
}

#[test]
fn a_restore_whose_mark_could_not_be_written_is_begun_anew_by_the_same_call() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        let there = rig.elsewhere();
        there.fs.fail(fs::Fault {
            call: Some(fs::Call::Rename),
            after: 0,
            errno: fs::EIO,
            forever: false,
        });
        let restored = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        restored.expect_err("the disk fails once");
        let again = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        again.expect("\"to be called again\"");
    });
}

/// Nobody but this directory has ever claimed the prefix.
#[test]
fn a_claim_of_an_open_that_was_killed_and_that_lands_late_locks_nobody_out() {
    paused(async {
        let mut rig = StoreRig::owner(32);
        let store = rig.open().await;
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        store.shutdown().await.expect("ends");
        drop(store);
        rig.remote
            .under(Some(1), Some(Call::Put), "head", Fault::Late);
        let opened = rig.open_as(|store| store);
        let opened = tokio::time::timeout(Duration::from_secs(1), opened).await;
        assert!(opened.is_err(), "killed while it claims");
        rig.fs.kill();
        // Seeded alike, two lives would give the same ids.
        rig.config.queue.seed = Some(8);
        let gate = Arc::new(Notify::new());
        let held = Fault::Gate(Arc::clone(&gate));
        rig.remote.under(Some(1), Some(Call::Put), "head", held);
        let before = rig.remote.count(Call::Put, "head");
        let late = rig.remote.clone();
        let lands = spawn(async move {
            late.wait_for(|remote| remote.count(Call::Put, "head") > before)
                .await;
            let landed = late.land_late();
            gate.notify_one();
            landed
        });
        let opened = rig.try_open().await;
        assert_eq!(lands.await.expect("ends"), [true]);
        opened.expect("it is its own claim");
    });
}

#[test]
fn a_file_of_many_pages_is_cut_and_grows_and_each_checkpoint_has_it() {
    paused(async {
        let rig = StoreRig::owner(64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for page in 0..8 {
            fill(&file, page * 1024 + 3, 1).await;
        }
        checkpoint(&store).await;
        file.set_len((2048 * PART + 10) as u64)
            .await
            .expect("is cut");
        checkpoint(&store).await;
        file.set_len((8 * 1024 * PART) as u64).await.expect("grows");
        fill(&file, 5 * 1024, 2).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        let there = there.file(FILE).expect("is there");
        let mut found = Vec::new();
        for page in 0..8 {
            for part in [0, 3] {
                let bytes = support::read(&there, (page * 1024 + part) * PART, 1).await;
                found.push(bytes.expect("reads")[0]);
            }
        }
        assert_eq!(found, [0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn an_open_that_is_dropped_while_it_claims_leaves_the_directory_free() {
    paused(async {
        let rig = StoreRig::owner(32);
        rig.remote
            .under(Some(1), Some(Call::Put), "head", Fault::Hang);
        let opened = rig.open_as(|store| store);
        let opened = tokio::time::timeout(Duration::from_secs(1), opened).await;
        assert!(opened.is_err(), "dropped while it claims");
        let begun = tokio::time::Instant::now();
        loop {
            match rig.try_open().await {
                Ok(_) => break,
                Err(error) => assert!(
                    begun.elapsed() < Duration::from_secs(100),
                    "{:?}: {error}",
                    begun.elapsed()
                ),
            }
        }
    });
}

#[test]
fn a_store_that_is_dropped_without_shutdown_leaves_the_directory_free() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        drop(store);
        tokio::time::sleep(Duration::from_secs(100)).await;
        rig.try_open().await.expect("the directory is free");
    });
}

#[test]
fn what_was_set_aside_for_a_line_that_was_given_up_is_not_sent() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.image_bytes = PART as u64;
            config.checkpoint_within = Duration::from_secs(20);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        let away = s3_writeback::remote::RemoteError::transient("PutObject");
        rig.remote
            .under(None, Some(Call::Put), "packs/", Fault::Error(away));
        let made = drawn(&store).await;
        for index in 0..8 {
            fill(&file, index, 2).await;
        }
        made.await.expect("ends").expect_err("S3 is away");
        // Nobody needs what those parts were.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let images = store.snapshot().queue.tasks.images;
        rig.remote.heal();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let objects = rig.remote.keys();
        let old = objects
            .iter()
            .filter(|key| key.starts_with("packs/"))
            .filter(|key| {
                let body = rig.remote.object(key).unwrap_or_default();
                body.windows(64).any(|bytes| bytes == [1; 64])
            });
        let old = old.count();
        // Two were captured before they were written to.
        assert!(
            old <= 2,
            "{old} objects of nobody's, of {}; {images} images waited",
            objects.len()
        );
    });
}

/// Random steps around lines: each committed checkpoint has what there was when it was drawn.
mod walk {
    use super::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<u64, Vec<u8>>;

    struct Dice(u64);

    impl Dice {
        fn next(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % below
        }
    }

    async fn look(store: &PartStore) -> Model {
        let mut found = Model::new();
        for id in store.files() {
            found.insert(id.0, contents(store, id.0).await);
        }
        found
    }

    fn same(found: &Model, wanted: &Model, what: &str, log: &[String]) {
        if found == wanted {
            return;
        }
        let mut text = format!("{what}: ");
        let ids: std::collections::BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
        for id in ids {
            match (found.get(id), wanted.get(id)) {
                (Some(f), Some(w)) if f == w => {}
                (Some(f), Some(w)) => {
                    let at = f.iter().zip(w).position(|(a, b)| a != b);
                    text += &format!(
                        "file {id}: len {} for {}; first wrong {at:?}; ",
                        f.len(),
                        w.len()
                    );
                    if let Some(at) = at {
                        text += &format!("{} for {}; ", f[at], w[at]);
                    }
                }
                (f, w) => {
                    text += &format!("file {id}: there {} for {}; ", f.is_some(), w.is_some())
                }
            }
        }
        panic!("{text}\n{}", log.join("\n"));
    }

    pub async fn walk(seed: u64, fencing: Fencing, boundary_cuts: bool) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let rig = StoreRig::with(64, |config| {
            config.fencing = fencing;
            config.checkpoint_within = Duration::from_secs(20);
            config.max_dirty_age =
                Duration::from_millis([10, 1000, 3_600_000][dice.next(3) as usize]);
            config.image_bytes = PART as u64 * [1, 2, 64][dice.next(3) as usize];
            config.aside_memory = PART as u64 * [0, 2, 64][dice.next(3) as usize];
            config.retain_checkpoints = 2;
            config.queue.seed = Some(seed);
        });
        let mut store = rig.open().await;
        let mut model = Model::new();
        let mut log = Vec::new();
        let mut flying: Option<(tokio::task::JoinHandle<s3_writeback::Result<u64>>, Model)> = None;
        let mut committed: Option<Model> = None;
        for step in 0..120 {
            let locker = store.locker("w", Role::Foreground).expect("a locker");
            let id = 1 + dice.next(4);
            let op = dice.next(100);
            if op < 15 {
                if let std::collections::btree_map::Entry::Vacant(new) = model.entry(id) {
                    log.push(format!("{step} create {id}"));
                    store.create(FileId(id), PARTS_OF).await.expect("creates");
                    new.insert(Vec::new());
                }
            } else if op < 45 {
                if let Some(bytes) = model.get_mut(&id) {
                    let at = dice.next(6 * PART as u64) as usize;
                    let whole = dice.next(2) == 0;
                    let (at, len) = if whole {
                        (at / PART * PART, PART)
                    } else {
                        (at, 1 + dice.next(5000) as usize)
                    };
                    let byte = 1 + dice.next(250) as u8;
                    log.push(format!("{step} write {id} {at} {len} {byte}"));
                    let file = store.file(FileId(id)).expect("is there");
                    file.write_at(&vec![byte; len], at as u64)
                        .await
                        .expect("writes");
                    if bytes.len() < at + len {
                        bytes.resize(at + len, 0);
                    }
                    bytes[at..at + len].fill(byte);
                }
            } else if op < 60 {
                if let Some(bytes) = model.get_mut(&id) {
                    let mut len = dice.next(7 * PART as u64) as usize;
                    if dice.next(2) == 0 {
                        len = len / PART * PART;
                    }
                    if !boundary_cuts && len < bytes.len() && len.is_multiple_of(PART) {
                        len += 1;
                    }
                    log.push(format!("{step} set_len {id} {len}, from {}", bytes.len()));
                    store
                        .file(FileId(id))
                        .expect("is there")
                        .set_len(len as u64)
                        .await
                        .expect("is set");
                    bytes.resize(len, 0);
                }
            } else if op < 65 {
                if model.remove(&id).is_some() {
                    log.push(format!("{step} drop {id}"));
                    store.drop_file(FileId(id), &locker).await.expect("drops");
                }
            } else if op < 78 {
                if flying.is_none() {
                    log.push(format!("{step} checkpoint"));
                    let made = asks(&store);
                    while !made.is_finished() && store.checkpoint_snapshot().owed.is_none() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    flying = Some((made, model.clone()));
                }
            } else if op < 86 {
                if let Some((made, at)) = flying.take() {
                    match made.await.expect("ends") {
                        Ok(number) => {
                            log.push(format!("{step} committed {number}"));
                            committed = Some(at);
                        }
                        Err(error) => {
                            log.push(format!("{step} failed {error}"));
                            assert!(
                                matches!(
                                    error,
                                    Error::TimedOut { .. }
                                        | Error::PartFailed { .. }
                                        | Error::Remote(_)
                                ),
                                "{error:?}"
                            );
                        }
                    }
                    if let Some(committed) = &committed {
                        let there = rig.restored(Restore::latest()).await;
                        same(&look(&there).await, committed, "restored", &log);
                    }
                    same(&look(&store).await, &model, "here", &log);
                }
            } else if op < 92 {
                rig.remote.heal();
                rig.remote.refuse_bodies_with(None);
                match dice.next(6) {
                    0 => rig.slow_packs(),
                    1 => rig.remote.under(
                        None,
                        Some(Call::Put),
                        "packs/",
                        Fault::Delay(Duration::from_secs(30)),
                    ),
                    2 => rig.remote.under(
                        Some(2),
                        Some(Call::Put),
                        "packs/",
                        Fault::Error(s3_writeback::remote::RemoteError::permanent(
                            "PutObject",
                            400,
                            "InvalidArgument",
                        )),
                    ),
                    3 => rig.remote.under(
                        None,
                        Some(Call::Put),
                        "packs/",
                        Fault::Error(s3_writeback::remote::RemoteError::transient("PutObject")),
                    ),
                    4 => rig.remote.under(
                        Some(1),
                        Some(Call::Put),
                        "head",
                        Fault::LostReply(s3_writeback::remote::RemoteError::lost("PutObject")),
                    ),
                    _ => {}
                }
                log.push(format!("{step} faults change"));
            } else if op < 95 {
                let ms = [1, 100, 10_000][dice.next(3) as usize];
                log.push(format!("{step} sleep {ms}"));
                tokio::time::sleep(Duration::from_millis(ms)).await;
            } else if op < 97 {
                log.push(format!(
                    "{step} gc {:?}",
                    store.gc().await.map(|r| r.deleted)
                ));
            } else if flying.is_none() {
                rig.remote.heal();
                rig.remote.refuse_bodies_with(None);
                if dice.next(2) == 0 {
                    log.push(format!("{step} shutdown"));
                    store.shutdown().await.expect("ends");
                } else {
                    log.push(format!("{step} kill"));
                    for id in store.files() {
                        store
                            .file(id)
                            .expect("is there")
                            .sync()
                            .await
                            .expect("syncs");
                    }
                    rig.fs.crash(dice.next(1000));
                }
                drop(store);
                store = rig.open().await;
                same(&look(&store).await, &model, "after a restart", &log);
            }
        }
        rig.remote.heal();
        rig.remote.refuse_bodies_with(None);
        if let Some((made, _)) = flying.take() {
            let _ = made.await;
        }
        // What is on its way may take longer than a checkpoint.
        tokio::time::sleep(Duration::from_secs(60)).await;
        store.gc().await.expect("looks");
        checkpoint(&store).await;
        store.gc().await.expect("looks");
        let there = rig.restored(Restore::latest().with_bytes()).await;
        same(&look(&there).await, &model, "restored at the end", &log);
        let report = rig.prefix().verify(None).await.expect("verifies");
        let _ = report;
    }
}

#[test]
fn each_checkpoint_of_a_random_walk_has_what_there_was_at_its_line() {
    let from: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let count: u64 = std::env::var("COUNT").map_or(20, |seed| seed.parse().expect("a number"));
    let cuts = std::env::var("CUTS").is_ok();
    for seed in from..from + count {
        let fencing = if seed % 4 == 0 {
            Fencing::Off
        } else {
            Fencing::On
        };
        let done = std::panic::catch_unwind(|| paused(walk::walk(seed, fencing, cuts)));
        assert!(done.is_ok(), "seed {seed}");
    }
}

/// What of a file is in there.
async fn found(there: &PartStore, id: u64) -> Option<Vec<u8>> {
    match there.file(FileId(id)) {
        Ok(_) => Some(contents(there, id).await),
        Err(_) => None,
    }
}

type Files = std::collections::BTreeMap<u64, (Option<Vec<u8>>, u64, bool)>;

/// Creates, writes, cuts and drops, until it is over; says what it left, and what it is at.
async fn churn(
    store: PartStore,
    files: Arc<Mutex<Files>>,
    over: Arc<AtomicBool>,
    task: u64,
    seed: u64,
) {
    let locker = store.locker("w", Role::Foreground).expect("a locker");
    let mut dice = task * 77 + 5 + seed * 1000;
    let mut next = |below: u64| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % below
    };
    while !over.load(Ordering::Relaxed) {
        let id = task * 100 + next(12);
        let was = {
            let mut files = files.lock().unwrap();
            let entry = files.entry(id).or_insert((None, 0, false));
            entry.2 = true;
            entry.1 += 1;
            entry.0.clone()
        };
        let now = match was {
            None => {
                store.create(FileId(id), PARTS_OF).await.expect("creates");
                Some(Vec::new())
            }
            Some(mut bytes) => {
                let file = store.file(FileId(id)).expect("is there");
                match next(10) {
                    0 | 1 => {
                        drop(file);
                        store.drop_file(FileId(id), &locker).await.expect("drops");
                        None
                    }
                    2 | 3 => {
                        let len = next(5) as usize * PART;
                        file.set_len(len as u64).await.expect("is set");
                        bytes.resize(len, 0);
                        Some(bytes)
                    }
                    4 => {
                        let len = next(5 * PART as u64) as usize;
                        file.set_len(len as u64).await.expect("is set");
                        bytes.resize(len, 0);
                        Some(bytes)
                    }
                    _ => {
                        let at = next(4) as usize * PART;
                        let byte = 1 + next(250) as u8;
                        file.write_at(&[byte; PART], at as u64)
                            .await
                            .expect("writes");
                        if bytes.len() < at + PART {
                            bytes.resize(at + PART, 0);
                        }
                        bytes[at..at + PART].fill(byte);
                        Some(bytes)
                    }
                }
            }
        };
        let mut files = files.lock().unwrap();
        let entry = files.get_mut(&id).expect("is there");
        entry.0 = now;
        entry.2 = false;
    }
}

/// Tasks that churn.
struct Churning {
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Churning {
    fn begin(store: &PartStore, files: &Arc<Mutex<Files>>, seed: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let task = |task| {
            let (files, over) = (Arc::clone(files), Arc::clone(&over));
            spawn(churn(store.clone(), files, over, task, seed))
        };
        let tasks = (0..3).map(task).collect();
        Self { over, tasks }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("ends");
        }
    }
}

/// For how long such a test runs.
fn seconds() -> Duration {
    let seconds = std::env::var("SECONDS_OF").map_or(4, |s| s.parse().expect("a number"));
    Duration::from_secs(seconds)
}

/// A store of which much is set aside, and some of that in a file.
fn busy() -> StoreRig {
    StoreRig::owner_with(256, |config| {
        config.aside_memory = 2 * PART as u64;
        config.max_dirty_age = Duration::from_millis(3);
        config.retain_checkpoints = 2;
        config.queue.seed = None;
    })
}

/// What nobody touches while a checkpoint is made is in it as it is, whatever goes on beside.
#[test]
fn beside_threads_that_create_cut_and_drop_each_checkpoint_has_what_nobody_touched() {
    on_threads(3, async {
        let rig = busy();
        let store = threaded(&rig, 8).await;
        let files: Arc<Mutex<Files>> = Arc::default();
        let churning = Churning::begin(&store, &files, 0);
        let begun = tokio::time::Instant::now();
        let mut wrong = Vec::new();
        let mut made = 0;
        while begun.elapsed() < seconds() && wrong.is_empty() {
            let before = files.lock().unwrap().clone();
            let number = checkpoint(&store).await.number;
            let after = files.lock().unwrap().clone();
            made += 1;
            let there = rig.restored(Restore::number(number)).await;
            for (id, (bytes, count, busy)) in &before {
                if *busy || after.get(id).is_none_or(|now| now.1 != *count) {
                    continue;
                }
                let found = found(&there, *id).await;
                if found != *bytes {
                    let say = |bytes: &Option<Vec<u8>>| {
                        bytes
                            .as_ref()
                            .map(|b| (b.len(), b.iter().step_by(PART).copied().collect::<Vec<_>>()))
                    };
                    wrong.push(format!(
                        "checkpoint {number}, file {id}: {:?} for {:?}",
                        say(&found),
                        say(bytes)
                    ));
                }
            }
            there.shutdown().await.expect("ends");
        }
        churning.end().await;
        assert!(wrong.is_empty(), "of {made} checkpoints: {wrong:#?}");
        eprintln!("{made} checkpoints");
    });
}

/// The first checkpoint after a restart has all files as they are.
#[test]
fn beside_threads_and_after_restarts_a_checkpoint_has_every_file_as_it_is() {
    on_threads(3, async {
        let rig = busy();
        let files: Arc<Mutex<Files>> = Arc::default();
        let begun = tokio::time::Instant::now();
        let mut round = 0;
        while begun.elapsed() < seconds() {
            round += 1;
            let store = threaded(&rig, 8).await;
            let number = checkpoint(&store).await.number;
            let there = rig.restored(Restore::number(number)).await;
            let wanted = files.lock().unwrap().clone();
            for (id, (bytes, _, _)) in &wanted {
                let found = found(&there, *id).await;
                let same = found == *bytes;
                let lens = (found.map(|b| b.len()), bytes.as_ref().map(Vec::len));
                assert!(same, "round {round}, file {id}: {lens:?}");
            }
            there.shutdown().await.expect("ends");
            let churning = Churning::begin(&store, &files, round);
            for _ in 0..3 {
                checkpoint(&store).await;
            }
            churning.end().await;
            store.shutdown().await.expect("ends");
        }
        eprintln!("{round} rounds");
    });
}
