//! What comes in the very moment of a drawing, or of a capture.

use std::future::IntoFuture as _;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, FsFile, FsLock, OpenMode, Stat};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{FileId, PartStore, Restore, Role};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{FILE, Hung, poll_once, threaded, until};
use crate::support::{PART, PARTS_OF, StoreRig, asks, checkpoint, contents, fill, paused};

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
    async fn just_drawn(&self, store: &PartStore) -> JoinHandle<s3_writeback::Result<u64>> {
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
