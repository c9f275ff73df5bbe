//! Schedules in which the part store lost bytes, hung or lied, as small as they get: a disk that
//! holds one call up while everything else goes on.

#![allow(
    clippy::disallowed_methods,
    reason = "real threads, and a disk that holds one of them up"
)]

use std::sync::Arc;
use std::time::Duration;

use crate::support::gate::{Gate, Held};
use crate::support::{
    PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded, with_a_real_limit,
};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Mode, Role};
use tokio::runtime::Handle;
use tokio::sync::Notify;

const FILE: FileId = FileId(1);

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

/// Lets paused time pass, while threads do what they do, until a task ends or `limit` is over.
async fn ends_within<T>(task: &tokio::task::JoinHandle<T>, limit: Duration) -> bool {
    let io = Io::pool(Handle::current(), 8);
    let began = tokio::time::Instant::now();
    while !task.is_finished() && began.elapsed() < limit {
        // A thread that is held up keeps time from passing by itself.
        tokio::time::advance(Duration::from_millis(10)).await;
        io.run(|| ()).await.expect("runs");
    }
    task.is_finished()
}

/// A victim is cut off and written anew before its hole is punched.
#[test]
fn a_late_punch_does_not_take_what_was_written_since() {
    with_a_real_limit(|| {
        paused(async {
            // One dirty part is not enough for an upload before its time.
            let rig = StoreRig::with(4, |config| {
                config.dirty_bytes = 4 * PART as u64;
                config.checkpoint_cache_bytes = 4 * PART as u64;
            });
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let large = s3_writeback::FileOptions {
                part_bytes: 4 * PART as u32,
            };
            let other = store.create(FileId(2), large).await.expect("creates");
            other.write_at(&[5; 4 * PART], 0).await.expect("writes");
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..4 {
                fill(&file, index, 7).await;
            }
            uploaded(&store).await;
            for index in 0..4 {
                read(&file, index * PART, 1).await.expect("reads");
            }
            file.sync().await.expect("syncs");
            // All parts are victims at once; the first punch hangs, the others are late. Time
            // stands still meanwhile: what is written is not uploaded before.
            gate.hold(Held::Punch(0));
            let wants = other.clone();
            let wants = spawn(async move { read(&wants, 0, 1).await });
            gate.reached().await;
            // It waits for room no more.
            wants.abort();
            drop(wants.await);
            file.set_len(PART as u64).await.expect("cuts");
            fill(&file, 1, 9).await;
            gate.open();
            // Gets its room from the evictor, when that has done with all.
            assert_eq!(read(&other, 0, 1).await.expect("reads"), [5]);
            assert_eq!(read(&file, PART, 1).await.expect("reads"), [9]);
        });
    });
}

/// Waits until it is so, on real time: what holds it up is a lock that nobody can be told of.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waits).await;
    waited.expect(what);
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
    // On several threads: the cut keeps one, waiting for the latch of part 0.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime");
    let got = runtime.block_on(async {
        let store = gate.threads(&rig).await;
        let in_s3 = || store.snapshot().dirty_bytes == 0;
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        fill(&other, 0, 5).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 7).await;
        fill(&file, 1, 7).await;
        until("all is in S3", in_s3).await;
        read(&file, 0, 1).await.expect("reads");
        let put = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&put)));
        fill(&file, 1, 8).await;
        until("its image is on its way", || rig.remote.in_flight().0 == 1).await;
        // The punch of part 0 hangs, latch in hand: the cut gets no further.
        gate.hold(Held::Punch(0));
        let wants = other.clone();
        let wants = spawn(async move { read(&wants, 0, 1).await });
        gate.reached().await;
        let cutter = file.clone();
        let cut = spawn(async move { cutter.set_len(0).await });
        until("the cut is on record", || file.is_empty()).await;
        put.notify_one();
        until("the image is settled", || store.snapshot().image_bytes == 0).await;
        gate.open();
        cut.await.expect("ends").expect("cuts");
        assert_eq!(wants.await.expect("ends").expect("reads"), [5]);
        file.set_len(2 * PART as u64).await.expect("grows");
        assert_eq!(read(&file, PART, 1).await.expect("reads"), [0]);
        file.sync().await.expect("syncs");
        drop((file, other, store));
        rig.fs.crash(1);
        let store = gate.threads(&rig).await;
        let file = store.file(FILE).expect("is there");
        read(&file, PART, 1).await
    });
    assert_eq!(got.expect("reads"), [0]);
}

/// A load of a store that was shut down writes its bytes when the next one has the directory.
#[test]
fn a_load_of_a_closed_store_does_not_write_over_the_next_ones_bytes() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::with(1, |config| {
                config.max_dirty_age = Duration::from_millis(20);
                config.dirty_bytes = PART as u64;
            });
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 7).await;
            fill(&file, 1, 7).await;
            uploaded(&store).await;
            read(&file, PART, 1).await.expect("reads");
            file.sync().await.expect("syncs");
            gate.hold(Held::Write(0));
            let reader = file.clone();
            let reading = spawn(async move { read(&reader, 0, 1).await });
            gate.reached().await;
            let shutdown = store.shutdown().within(Duration::from_secs(3));
            let shutdown = spawn(shutdown.into_future());
            assert!(
                ends_within(&shutdown, Duration::from_secs(10)).await,
                "the shutdown ends in time"
            );
            let report = shutdown.await.expect("ends").expect("shuts down");
            let next = rig.clone();
            let next = spawn(async move { next.try_open().await.map(drop) });
            assert!(
                ends_within(&next, Duration::from_secs(600)).await,
                "it does not wait for ever"
            );
            let next = next.await.expect("ends");
            gate.open();
            // What hangs in the disk may still come to it: the directory is nobody else's.
            assert!(!report.sealed, "said to be sealed");
            assert!(
                matches!(next, Err(Error::DirectoryInUse { .. })),
                "{next:?}"
            );
            reading.await.expect("ends").expect_err("it is shut down");
        });
    });
}

/// A write hangs on the disk, and the store is shut down.
#[test]
fn a_write_that_hangs_does_not_hold_up_a_shutdown() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::new(4);
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            gate.hold(Held::Write(0));
            // A step keeps the thread that it runs on.
            let writing = std::thread::spawn(move || file.write_at(&[1; PART], 0).wait());
            gate.reached().await;
            let shutdown = store.shutdown().within(Duration::from_secs(2));
            let shutdown = spawn(shutdown.into_future());
            let ended = ends_within(&shutdown, Duration::from_secs(10)).await;
            gate.open();
            assert!(
                ended,
                "the shutdown has two seconds, and takes more than ten"
            );
            let io = Io::pool(Handle::current(), 1);
            let written = io.run(move || writing.join()).await;
            let written = written.expect("runs").expect("ends");
            assert!(written.is_ok(), "it was let in before: {written:?}");
        });
    });
}
