//! Schedules in which the part store lost bytes, hung or lied, as small as they get: a disk that
//! holds one call up while everything else goes on.

#![allow(
    clippy::disallowed_methods,
    clippy::mem_forget,
    reason = "real threads, and a disk that holds one of them up"
)]

mod support;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, FsFile, FsLock, OpenMode, Stat};
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault, SimFs};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Mode, PartStore, Role, RunOn};
use support::{PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded};
use tokio::sync::Notify;

const FILE: FileId = FileId(1);
const NONE: u64 = u64::MAX;

#[derive(Debug)]
struct Gate {
    write: AtomicU64,
    punch: AtomicU64,
    shut: Mutex<bool>,
    opened: Condvar,
    held: AtomicU64,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            write: AtomicU64::new(NONE),
            punch: AtomicU64::new(NONE),
            shut: Mutex::new(true),
            opened: Condvar::new(),
            held: AtomicU64::new(0),
        })
    }
    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }
    fn pass(&self, which: &AtomicU64, offset: u64) {
        if which
            .compare_exchange(offset, NONE, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            self.held.fetch_add(1, Ordering::SeqCst);
            let mut shut = self.shut.lock().unwrap();
            while *shut {
                shut = self.opened.wait(shut).unwrap();
            }
        }
    }
    fn wait_held(&self) {
        for _ in 0..2000 {
            if self.held.load(Ordering::SeqCst) > 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the gate was never reached");
    }
}

#[derive(Debug, Clone)]
struct GateFs(SimFs, Arc<Gate>);

#[derive(Debug)]
struct GateFile(Box<dyn FsFile>, Option<Arc<Gate>>);

impl FsFile for GateFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(gate) = &self.1 {
            gate.pass(&gate.write, offset);
        }
        self.0.write_all_at(bytes, offset)
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.0.preallocate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if let Some(gate) = &self.1 {
            gate.pass(&gate.punch, offset);
        }
        self.0.punch(offset, len)
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.reserve(offset, len)
    }
    fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        self.0.data_ranges()
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn stat(&self) -> io::Result<Stat> {
        self.0.stat()
    }
}

impl Fs for GateFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        let of_parts = path.to_string_lossy().contains("/parts/");
        let file = self.0.open(path, mode)?;
        Ok(Box::new(GateFile(
            file,
            of_parts.then(|| Arc::clone(&self.1)),
        )))
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        self.0.lock(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.0.read_dir(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.0.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.unlink(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.0.free_space(path)
    }
}

async fn poll_once<F: Future + ?Sized>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

/// An image of a part that was cut off comes back while one of its successor is on its way.
#[test]
fn an_image_from_before_a_cut_is_not_the_new_parts() {
    paused(async {
        let rig = StoreRig::with(4, |config| {
            config.max_dirty_age = Duration::from_millis(10);
            config.queue.attempt_floor = Duration::from_secs(3600);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gates = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        for gate in &gates {
            rig.remote
                .once(Some(Call::Put), None, Fault::Gate(Arc::clone(gate)));
        }
        fill(&file, 0, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        file.set_len(0).await.expect("cuts");
        fill(&file, 0, 2).await;
        file.sync().await.expect("syncs");
        tokio::time::sleep(Duration::from_secs(1)).await;
        gates[0].notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        gates[1].notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        uploaded(&store).await;
        for index in 1..8 {
            fill(&file, index, 9).await;
        }
        uploaded(&store).await;
        for index in 1..8 {
            read(&file, index * PART, 1).await.expect("reads");
        }
        assert_eq!(read(&file, 0, 1).await.expect("reads"), [2]);
    });
}

/// An intent ends, the part is evicted, and the end is not durable.
#[test]
fn a_part_is_not_evicted_before_the_end_of_its_intent_is_durable() {
    paused(async {
        for seed in 0..10 {
            let rig = StoreRig::with(1, |config| config.dirty_bytes = PART as u64);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 1, 8).await;
            uploaded(&store).await;
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            uploaded(&store).await;
            file.sync().await.expect("syncs");
            tokio::time::sleep(Duration::from_secs(1)).await;
            {
                let bytes = [6; 10];
                let mut write = Box::pin(file.write_at(&bytes, 0).into_future());
                assert!(!poll_once(write.as_mut()).await);
                let reader = file.clone();
                spawn(async move {
                    drop(read(&reader, PART, 1).await);
                });
                tokio::time::sleep(Duration::from_secs(1)).await;
                rig.fs.fail(FsFault {
                    call: Some(FsCall::Sync),
                    after: 0,
                    errno: EIO,
                    forever: true,
                });
                drop(write);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop((file, store));
            rig.fs.heal();
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let got = read(&file, 0, PART).await.expect("reads");
            assert!(got == [7; PART], "seed {seed}: {:?}", &got[..8]);
        }
    });
}

/// Many read one part at once.
#[test]
fn three_hundred_readers_of_one_part_all_read_it() {
    paused(async {
        let rig = StoreRig::new(2);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 7).await;
        }
        uploaded(&store).await;
        for index in 1..4 {
            read(&file, index * PART, 1).await.expect("reads");
        }
        rig.remote.once(
            Some(Call::Get),
            None,
            Fault::Delay(Duration::from_millis(100)),
        );
        let readers: Vec<_> = (0..300)
            .map(|_| {
                let file = file.clone();
                spawn(async move { read(&file, 0, 1).await })
            })
            .collect();
        for reader in readers {
            assert_eq!(reader.await.expect("ends").expect("reads"), [7]);
        }
    });
}

/// One waits for a lock with room in hand, its holder for room.
#[test]
fn a_deadlock_of_a_lock_and_room_is_found() {
    paused(async {
        let rig = StoreRig::with(2, |config| config.dirty_bytes = PART as u64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 7).await;
        }
        uploaded(&store).await;
        let a = store.locker("a", Role::Foreground).expect("a locker");
        let b = store.locker("b", Role::Foreground).expect("a locker");
        let _held = file.lock(0, Mode::Exclusive, &a).await.expect("locks");
        let parts = [0, 1, 2].map(|index| s3_writeback::PartId { file: FILE, index });
        // Part 1 or 2 is here at most: out with it.
        read(&file, 3 * PART, 1).await.expect("reads");
        let many = {
            let (store, b) = (store.clone(), b.clone());
            spawn(async move {
                store
                    .lock_many(&parts[..2], Mode::Exclusive, &b)
                    .await
                    .map(drop)
            })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = tokio::time::Instant::now();
        let second = file.lock(2, Mode::Exclusive, &a).await.map(drop);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?} after {:?}; the other finished: {}",
            second,
            began.elapsed(),
            many.is_finished()
        );
    });
}

/// The largest length, less one.
#[test]
fn the_largest_file_is_cut_by_one_byte() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let max = PART as u64 * u64::from(u32::MAX);
        let more = file.set_len(max + 1).await;
        assert!(matches!(more, Err(Error::PastEnd { .. })), "{more:?}");
        file.set_len(max).await.expect("grows");
        let cut = file.set_len(max - 1).await;
        assert!(cut.is_ok(), "{cut:?}; {:?}", store.snapshot().failed);
        assert_eq!(file.len(), max - 1);
    });
}

/// A store is opened with less memory for images than a file's part.
#[test]
fn parts_bigger_than_the_memory_of_images_are_refused_or_uploaded() {
    paused(async {
        let mut rig = StoreRig::with(16, |config| {
            config.max_dirty_age = Duration::from_millis(10)
        });
        let options = s3_writeback::FileOptions {
            part_bytes: 4 * PART as u32,
        };
        rig.config.checkpoint_cache_bytes = 16 * PART as u64;
        let store = rig.open().await;
        drop(store.create(FILE, options).await.expect("creates"));
        store.shutdown().await.expect("shuts down");
        drop(store);
        rig.config.image_bytes = PART as u64;
        let Ok(store) = rig.try_open().await else {
            return;
        };
        let file = store.file(FILE).expect("is there");
        if file.write_at(&[1; PART], 0).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let snapshot = store.snapshot();
        assert!(
            snapshot.dirty_bytes == 0 || !snapshot.failing.is_empty(),
            "written, never uploaded, and nobody says so: {} bytes dirty",
            snapshot.dirty_bytes
        );
    });
}

fn threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn open_gated(rig: &StoreRig, gate: &Arc<Gate>) -> PartStore {
    let handle = tokio::runtime::Handle::current();
    PartStore::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
        .run_on(RunOn::Handle(handle.clone()))
        .file_system(
            Arc::new(GateFs(rig.fs.clone(), Arc::clone(gate))),
            Io::pool(handle, 8),
        )
        .open()
        .await
        .expect("opens")
}

/// The ring, the log and a latch: the evictor, who ends intents, and a first write.
#[test]
fn evictor_flusher_and_writer_do_not_lock_in_a_circle() {
    let rig = StoreRig::with(3, |config| {
        config.max_dirty_age = Duration::from_millis(50);
        config.dirty_bytes = 3 * PART as u64;
    });
    let gate = Gate::new();
    let runtime = threads();
    let store = runtime.block_on(open_gated(&rig, &gate));
    let file = runtime.block_on(async {
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 7).await;
        }
        uploaded(&store).await;
        file.sync().await.expect("syncs");
        read(&file, 0, 1).await.expect("reads");
        file
    });
    // Writes part 9 for the first time, and is held up by the disk, latch in hand.
    gate.write.store(9 * PART as u64, Ordering::SeqCst);
    let writer = file.clone();
    let writing = std::thread::spawn(move || writer.write_at(&[1; PART], 9 * PART as u64).wait());
    gate.wait_held();
    // The flusher looks for intents to end: log in hand, it waits for the latch.
    std::thread::sleep(Duration::from_millis(500));
    // The evictor has the ring, and waits for the log.
    let readers: Vec<_> = (0..4)
        .map(|index| {
            let file = file.clone();
            std::thread::spawn(move || {
                let mut one = [0];
                file.read_at(&mut one, (index * PART) as u64)
                    .within(Duration::from_secs(5))
                    .wait()
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    gate.open();
    for _ in 0..600 {
        if writing.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let finished = writing.is_finished();
    if !finished {
        // Its threads never end: neither would the test.
        std::mem::forget((runtime, readers));
        panic!("the write never returns");
    }
    drop(readers);
}

/// A victim is cut off and written anew before its hole is punched.
#[test]
fn a_late_punch_does_not_take_what_was_written_since() {
    let rig = StoreRig::with(2, |config| {
        config.max_dirty_age = Duration::from_millis(20);
        config.dirty_bytes = 2 * PART as u64;
    });
    let gate = Gate::new();
    let runtime = threads();
    let store = runtime.block_on(open_gated(&rig, &gate));
    let got = runtime.block_on(async {
        let large = s3_writeback::FileOptions {
            part_bytes: 2 * PART as u32,
        };
        let other = store.create(FileId(2), large).await.expect("creates");
        other.write_at(&[5; 2 * PART], 0).await.expect("writes");
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..2 {
            fill(&file, index, 7).await;
        }
        uploaded(&store).await;
        for index in 0..2 {
            read(&file, index * PART, 1).await.expect("reads");
        }
        file.sync().await.expect("syncs");
        // Both parts are victims at once; the first punch hangs, the second is late.
        gate.punch.store(0, Ordering::SeqCst);
        let mut one = [0];
        let asked = other
            .read_at(&mut one, 0)
            .within(Duration::from_secs(1))
            .await;
        assert!(asked.is_err(), "waits for room");
        assert_eq!(gate.held.load(Ordering::SeqCst), 1, "the punch hangs");
        file.set_len(PART as u64).await.expect("cuts");
        fill(&file, 1, 9).await;
        gate.open();
        tokio::time::sleep(Duration::from_millis(300)).await;
        read(&file, PART, 1).await
    });
    assert_eq!(got.expect("reads"), [9]);
}

/// An image settles between the record of a cut and the cut itself.
#[test]
fn an_image_that_settles_during_a_cut_does_not_come_back_at_the_next_open() {
    let rig = StoreRig::with(2, |config| {
        config.max_dirty_age = Duration::from_millis(20);
        config.dirty_bytes = 2 * PART as u64;
        config.queue.attempt_floor = Duration::from_secs(3600);
    });
    let gate = Gate::new();
    let runtime = threads();
    let store = runtime.block_on(open_gated(&rig, &gate));
    let got = runtime.block_on(async {
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        fill(&other, 0, 5).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 7).await;
        fill(&file, 1, 7).await;
        uploaded(&store).await;
        read(&file, 0, 1).await.expect("reads");
        let put = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&put)));
        fill(&file, 1, 8).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The punch of part 0 hangs, latch in hand: the cut gets no further.
        gate.punch.store(0, Ordering::SeqCst);
        let mut one = [0];
        let asked = other
            .read_at(&mut one, 0)
            .within(Duration::from_millis(500))
            .await;
        assert!(asked.is_err(), "waits for room");
        assert_eq!(gate.held.load(Ordering::SeqCst), 1, "the punch hangs");
        let cutter = file.clone();
        let cut = spawn(async move { cutter.set_len(0).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        put.notify_one();
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open();
        cut.await.expect("ends").expect("cuts");
        file.set_len(2 * PART as u64).await.expect("grows");
        assert_eq!(read(&file, PART, 1).await.expect("reads"), [0]);
        file.sync().await.expect("syncs");
        drop((file, other, store));
        rig.fs.crash(1);
        let store = open_gated(&rig, &gate).await;
        let file = store.file(FILE).expect("is there");
        read(&file, PART, 1).await
    });
    assert_eq!(got.expect("reads"), [0]);
}

/// A load of a store that was shut down writes its bytes when the next one has the directory.
#[test]
fn a_load_of_a_closed_store_does_not_write_over_the_next_ones_bytes() {
    let rig = StoreRig::with(1, |config| {
        config.max_dirty_age = Duration::from_millis(20);
        config.dirty_bytes = PART as u64;
    });
    let gate = Gate::new();
    let runtime = threads();
    let store = runtime.block_on(open_gated(&rig, &gate));
    let got = runtime.block_on(async {
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 7).await;
        fill(&file, 1, 7).await;
        uploaded(&store).await;
        read(&file, PART, 1).await.expect("reads");
        file.sync().await.expect("syncs");
        gate.write.store(0, Ordering::SeqCst);
        let mut one = [0];
        let asked = file
            .read_at(&mut one, 0)
            .within(Duration::from_secs(1))
            .await;
        assert!(asked.is_err(), "the load hangs on the disk");
        let report = store.shutdown().within(Duration::from_secs(3));
        let report = tokio::time::timeout(Duration::from_secs(10), report.into_future()).await;
        if report.is_err() {
            gate.open();
        }
        let report = report.expect("the shutdown ends in time").expect("ends");
        let next = rig.try_open().await.map(drop);
        gate.open();
        (report.sealed, next)
    });
    // What hangs in the disk may still come to it: the directory is nobody else's.
    assert!(!got.0, "said to be sealed");
    assert!(
        matches!(got.1, Err(Error::DirectoryInUse { .. })),
        "{:?}",
        got.1
    );
}

/// A write hangs on the disk, and the store is shut down.
#[test]
fn a_write_that_hangs_does_not_hold_up_a_shutdown() {
    let rig = StoreRig::new(4);
    let gate = Gate::new();
    let runtime = threads();
    let store = runtime.block_on(open_gated(&rig, &gate));
    let file = runtime.block_on(async { store.create(FILE, PARTS_OF).await.expect("creates") });
    gate.write.store(0, Ordering::SeqCst);
    let writer = file.clone();
    let writing = std::thread::spawn(move || writer.write_at(&[1; PART], 0).wait());
    gate.wait_held();
    let ended = runtime.block_on(async {
        tokio::time::timeout(
            Duration::from_secs(10),
            store
                .shutdown()
                .within(Duration::from_secs(2))
                .into_future(),
        )
        .await
        .is_ok()
    });
    gate.open();
    drop(writing.join());
    assert!(
        ended,
        "the shutdown has two seconds, and takes more than ten"
    );
}
