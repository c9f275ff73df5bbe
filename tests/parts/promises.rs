//! What is promised, each with a test that a sceptic wrote and saw fail.

use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::{PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded};
use s3_writeback::io::Io;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{self, EIO};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, Locker, Mode, PartId, PartStore, Role};
use tokio::time::Instant;

const FILE: FileId = FileId(1);

fn foreground(store: &PartStore, name: &str) -> Locker {
    store.locker(name, Role::Foreground).expect("a locker")
}

async fn filled(store: &PartStore, parts: usize) -> File {
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    for index in 0..parts {
        fill(&file, index, index as u8 + 1).await;
    }
    uploaded(store).await;
    file
}

/// A snapshot of the header that is taken after a cut was put on record, and before its words are
/// cut, has the images of what was cut off, and no record of the cut is left to take them away.
#[test]
fn a_snapshot_in_the_middle_of_a_cut_does_not_bring_back_what_was_cut_off() {
    paused(async {
        const PARTS: usize = 100;
        let rig = StoreRig::new(256);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for _ in 0..20 {
            for index in 0..PARTS {
                fill(&file, index, 7).await;
            }
            uploaded(&store).await;
        }
        assert_eq!(rig.fs.names(Path::new("/q/headers")).len(), 0);
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        for index in 0..PARTS {
            fill(&file, index, 7).await;
        }
        // Finds that a snapshot is due.
        file.sync().await.expect("syncs");
        file.set_len(PART as u64).await.expect("cuts");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(rig.fs.names(Path::new("/q/headers")).len(), 1);
        file.set_len((PARTS * PART) as u64).await.expect("grows");
        let zeros = read(&file, PART, (PARTS - 1) * PART).await.expect("reads");
        assert_eq!(zeros.iter().position(|byte| *byte != 0), None);
        drop((file, store));
        rig.fs.crash(1);
        rig.remote.heal();
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        assert_eq!(file.len(), (PARTS * PART) as u64);
        let bytes = read(&file, PART, (PARTS - 1) * PART).await.expect("reads");
        let old = bytes.iter().position(|byte| *byte != 0);
        assert_eq!(old, None, "an old byte came back");
    });
}

/// The cut waits for a part that `holds` has; `holds` asks for a part behind it, to which the cut
/// has not come.
async fn cut_in_a_circle(ask: impl AsyncFn(&PartStore, &File, &Locker) -> Result<(), Error>) {
    let rig = StoreRig::new(8);
    let store = rig.open().await;
    let file = filled(&store, 4).await;
    let (holds, cuts) = (foreground(&store, "holds"), foreground(&store, "cuts"));
    let guard = file.lock(1, Mode::Shared, &holds).await.expect("locks");
    let began = Instant::now();
    let cutting = spawn({
        let (file, cuts) = (file.clone(), cuts.clone());
        async move { file.by(&cuts).set_len(0).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let waited = ask(&store, &file, &holds).await;
    drop(guard);
    let cut = cutting.await.expect("ends");
    let gave_way: Vec<_> = [&waited, &cut].into_iter().filter(|r| r.is_err()).collect();
    assert!(
        matches!(&gave_way[..], [Err(Error::WouldDeadlock { .. })])
            || matches!(&gave_way[..], [Err(Error::AlreadyHeld { .. })]),
        "after {:?}: {gave_way:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_deadlock_with_a_cut_that_has_not_come_so_far_is_found_by_a_lock() {
    paused(cut_in_a_circle(async |_, file, holds| {
        file.lock(3, Mode::Shared, holds).await.map(drop)
    }));
}

#[test]
fn a_deadlock_with_a_cut_that_has_not_come_so_far_is_found_by_a_read() {
    paused(cut_in_a_circle(async |_, file, holds| {
        file.by(holds).read_at(&mut [0], 3 * PART as u64).await
    }));
}

#[test]
fn a_deadlock_with_a_cut_that_has_not_come_so_far_is_found_by_another_cut() {
    paused(cut_in_a_circle(async |_, file, holds| {
        file.by(holds).set_len(2 * PART as u64).await
    }));
}

#[test]
fn a_deadlock_with_a_cut_that_has_not_come_so_far_is_found_by_a_drop() {
    paused(cut_in_a_circle(async |store, file, holds| {
        // A part of its own is in the way: that is known at once.
        store.drop_file(file.id(), holds).await
    }));
}

/// Two parts at once, the first of which is granted before the cut begins, and the second only
/// when the cut waits for the first.
#[test]
fn who_locks_many_and_who_cuts_do_not_wait_for_each_other() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let (many, cuts) = (foreground(&store, "many"), foreground(&store, "cuts"));
        let other = foreground(&store, "other");
        let guard = file.lock(3, Mode::Exclusive, &other).await.expect("locks");
        let locking = spawn({
            let (store, many) = (store.clone(), many.clone());
            async move {
                let parts = [1, 3].map(|index| PartId { file: FILE, index });
                store.lock_many(&parts, Mode::Shared, &many).await.map(drop)
            }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let began = Instant::now();
        let cutting = spawn({
            let (file, cuts) = (file.clone(), cuts.clone());
            async move { file.by(&cuts).set_len(0).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(guard);
        let (locked, cut) = (locking.await.expect("ends"), cutting.await.expect("ends"));
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "after {:?}: {locked:?} {cut:?}",
            began.elapsed()
        );
    });
}

/// The disk refuses one write that would have grown the file, and then is well again.
#[test]
fn a_write_that_failed_behind_the_end_keeps_no_room() {
    for again in [false, true] {
        paused(async {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            let fault = fs::Fault {
                call: Some(fs::Call::Write),
                after: 0,
                errno: EIO,
                forever: false,
            };
            rig.fs.fail_under(Path::new("/q/parts"), fault);
            let failed = file.write_at(&[7; PART], 0).await;
            failed.expect_err("the disk refuses");
            assert_eq!(file.len(), 0);
            tokio::time::sleep(Duration::from_secs(60)).await;
            if again {
                fill(&file, 0, 8).await;
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let snapshot = store.snapshot();
            assert_eq!(snapshot.dirty_bytes, 0, "again: {again}");
            let report = store.shutdown().await.expect("shuts down");
            assert_eq!(store.snapshot().dirty_bytes, 0, "{report:?}");
        });
    }
}

/// The same until there is no room left: the store is of no more use.
#[test]
fn writes_that_failed_behind_the_end_do_not_use_the_store_up() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..2 {
            let fault = fs::Fault {
                call: Some(fs::Call::Write),
                after: 0,
                errno: EIO,
                forever: false,
            };
            rig.fs.fail_under(Path::new("/q/parts"), fault);
            let failed = file.write_at(&[7; PART], (index * PART) as u64).await;
            failed.expect_err("the disk refuses");
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        other.write_at(&[1; PART], 0).await.expect("there is room");
    });
}

#[test]
fn two_who_create_or_open_one_file_both_have_it() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let one = store.create_or_open(FILE, PARTS_OF);
        let other = store.create_or_open(FILE, PARTS_OF);
        let (one, other) = tokio::join!(one.into_future(), other.into_future());
        one.expect("has it");
        other.expect("has it");
    });
}

#[test]
fn a_create_that_was_given_up_leaves_no_local_file() {
    paused(async {
        let rig = StoreRig::new(4);
        let gate = Gate::new();
        let store = gate.open_store(&rig, Io::inline()).await.expect("opens");
        let local = || rig.fs.names(Path::new("/q/parts")).len();
        let fault = fs::Fault {
            call: Some(fs::Call::SyncDir),
            after: 0,
            errno: EIO,
            forever: false,
        };
        rig.fs.fail_under(Path::new("/q/parts"), fault);
        store.create(FILE, PARTS_OF).await.expect_err("fails");
        store.file(FILE).expect_err("is not there");
        assert_eq!(local(), 0, "an orphan");
    });
}

/// Two tasks read through one locker (a checkpointer's), while the part is being cut off by who
/// waits for somebody else: nobody waits in a circle.
#[test]
fn two_reads_of_one_locker_are_no_deadlock() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let reader = foreground(&store, "reader");
        let holds = foreground(&store, "holds");
        let guard = file.lock(3, Mode::Pin, &holds).await.expect("locks");
        let cutting = spawn({
            let file = file.clone();
            async move { file.set_len(3 * PART as u64).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let reads: Vec<_> = (0..2)
            .map(|_| {
                let (file, reader) = (file.clone(), reader.clone());
                spawn(async move { file.by(&reader).read_at(&mut [0], 3 * PART as u64).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(guard);
        cutting.await.expect("ends").expect("cuts");
        for read in reads {
            let read = read.await.expect("ends");
            assert!(
                !matches!(read, Err(Error::WouldDeadlock { .. })),
                "{read:?}"
            );
        }
    });
}

/// Nobody wants what is being prefetched, S3 is away, and nothing is dirty.
#[test]
fn a_prefetch_that_does_not_come_does_not_keep_writes_waiting() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        for path in rig.fs.names(Path::new("/q/parts")) {
            rig.fs.poke(&path, vec![0; 8 * PART]);
        }
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        rig.remote.always(Some(Call::Get), None, Fault::Hang);
        assert!(file.prefetch(0..8 * PART as u64) > 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        let wrote = other
            .write_at(&[1; PART], 0)
            .within(Duration::from_secs(300));
        wrote.await.expect("nothing is dirty, nothing is held");
    });
}

/// A part that S3 refused once does not keep others from going up when they are old.
#[test]
fn a_failing_part_does_not_keep_others_past_their_age() {
    paused(async {
        let age = Duration::from_secs(60);
        let rig = StoreRig::with(64, |config| config.max_dirty_age = age);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.once(
            Some(Call::Put),
            None,
            Fault::Error(RemoteError::permanent("put", 400, "InvalidArgument")),
        );
        fill(&file, 0, 1).await;
        tokio::time::sleep(age - Duration::from_secs(5)).await;
        fill(&file, 1, 1).await;
        let wrote = Instant::now();
        while rig.remote.count(Call::Put, "packs") < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while store.snapshot().dirty_bytes > PART as u64 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = wrote.elapsed();
        assert!(took < age + Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn a_write_of_nothing_does_not_grow_the_file() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        file.write_at(&[1; 10], 0).await.expect("writes");
        file.write_at(&[], 100).await.expect("writes nothing");
        assert_eq!(file.len(), 10);
        let locker = foreground(&store, "one");
        let guard = file.lock(0, Mode::Exclusive, &locker).await.expect("locks");
        guard.write_at(&[], 100).await.expect("writes nothing");
        assert_eq!(file.len(), 10);
    });
}

/// Whoever waits for guards on several parts, or on a file, is told whose they are.
#[test]
fn a_lock_of_many_that_times_out_says_who_holds_them() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let (one, other) = (foreground(&store, "one"), foreground(&store, "other"));
        let guard = file.lock(2, Mode::Exclusive, &other).await.expect("locks");
        let parts = [1, 2].map(|index| PartId { file: FILE, index });
        let many = store.lock_many(&parts, Mode::Shared, &one);
        let error = many.within(Duration::from_secs(1)).await.map(drop);
        drop(guard);
        assert!(format!("{error:?}").contains("other"), "{error:?}");
    });
}

#[test]
fn a_drop_that_times_out_says_whose_guards_it_waited_for() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let (one, other) = (foreground(&store, "one"), foreground(&store, "other"));
        let guard = file.lock(2, Mode::Exclusive, &other).await.expect("locks");
        let drops = store.drop_file(FILE, &one).within(Duration::from_secs(1));
        let error = drops.await;
        drop(guard);
        assert!(format!("{error:?}").contains("other"), "{error:?}");
    });
}

/// A read has no guard; what it waits for comes no more.
#[test]
fn a_read_that_waits_for_s3_does_not_keep_its_file_from_being_dropped() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        for path in rig.fs.names(Path::new("/q/parts")) {
            rig.fs.poke(&path, vec![0; 8 * PART]);
        }
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        rig.remote.always(Some(Call::Get), None, Fault::Hang);
        let reading = spawn({
            let file = file.clone();
            async move { file.read_at(&mut [0], 0).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let drops = foreground(&store, "drops");
        let dropped = store
            .drop_file(FILE, &drops)
            .within(Duration::from_secs(300));
        dropped.await.expect("nobody has a guard");
        reading.await.expect("ends").expect_err("it is gone");
    });
}

/// The write waits for room that the drop would bring.
#[test]
fn a_write_that_waits_for_room_does_not_keep_its_file_from_being_dropped() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        fill(&file, 0, 1).await;
        fill(&file, 1, 1).await;
        let writing = spawn({
            let file = file.clone();
            async move { file.write_at(&[1; PART], 2 * PART as u64).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let drops = foreground(&store, "drops");
        let dropped = store
            .drop_file(FILE, &drops)
            .within(Duration::from_secs(300));
        dropped.await.expect("nobody has a guard");
        writing.await.expect("ends").expect_err("it is gone");
    });
}

/// `max_disk_bytes`: bytes of disk for the journal.
#[test]
fn header_records_of_many_files_keep_to_the_disk_room_of_the_journal() {
    paused(async {
        let rig = StoreRig::with(256, |config| {
            config.queue.max_disk_bytes = 4 * u64::from(config.queue.segment_bytes);
            config.max_header_records = 256;
        });
        let store = rig.open().await;
        for id in 0..8 {
            let file = store.create(FileId(id), PARTS_OF).await.expect("creates");
            for round in 0..30 {
                for index in 0..64 {
                    file.write_at(&[round], (index * PART) as u64)
                        .await
                        .expect("writes");
                }
                uploaded(&store).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        let journal = rig.fs.names(Path::new("/q/segments")).len() as u64;
        let bytes = journal * u64::from(rig.config.queue.segment_bytes);
        let most = rig.config.queue.max_disk_bytes;
        assert!(
            bytes <= 2 * most,
            "{journal} segments, {bytes} of {most} bytes"
        );
    });
}

/// Writes that are given up once blocks were reserved for them.
#[test]
fn a_write_that_was_given_up_keeps_no_disk() {
    use std::os::unix::fs::MetadataExt;
    let dir = std::env::temp_dir().join(format!("sceptic-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let used = runtime.block_on(async {
        let mut config = s3_writeback::StoreConfig::new(&dir);
        config.fencing = s3_writeback::Fencing::Off;
        config.checkpoint_at_shutdown = false;
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.queue.segment_bytes = 64 * 1024;
        config.cache_bytes = 1 << 20;
        config.dirty_bytes = 1 << 19;
        config.checkpoint_cache_bytes = 1 << 16;
        let remote = s3_writeback::testing::remote::SimRemote::new();
        let store = PartStore::builder(config, Arc::new(remote)).open();
        let store = store.await.expect("opens");
        let options = s3_writeback::FileOptions::default();
        let file = store.create(FILE, options).await.expect("creates");
        file.set_len(256 << 16).await.expect("grows");
        let mut given_up = 0;
        for index in 0..256_u64 {
            given_up += u32::from(file.write_at(&[1], index << 16).now().is_err());
            // The thread that reserves is done when it has another's turn.
            file.sync().await.expect("syncs");
        }
        assert!(given_up > 100, "{given_up}");
        store.shutdown().await.expect("shuts down");
        let parts = std::fs::read_dir(dir.join("parts")).expect("is there");
        let blocks = parts.map(|entry| entry.unwrap().metadata().unwrap().blocks());
        blocks.sum::<u64>() * 512
    });
    std::fs::remove_dir_all(&dir).expect("is removed");
    assert!(used <= (1 << 20) + (1 << 16), "{used} bytes of disk");
}

/// What a checkpointer waits for when a shutdown begins, it gets, if it comes in time: by one form
/// of the lock as by the other.
async fn a_checkpointer_waits_while_it_drains(many: bool) {
    let rig = StoreRig::new(8);
    let store = rig.open().await;
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    fill(&file, 0, 1).await;
    uploaded(&store).await;
    let holds = store.locker("holds", Role::Foreground).expect("a locker");
    let checks = store
        .locker("checks", Role::Checkpointer)
        .expect("a locker");
    let guard = file.lock(0, Mode::Exclusive, &holds).await.expect("locks");
    let waiting = spawn({
        let (store, file) = (store.clone(), file.clone());
        async move {
            let part = PartId {
                file: FILE,
                index: 0,
            };
            match many {
                true => store
                    .lock_many(&[part], Mode::Shared, &checks)
                    .await
                    .map(drop),
                false => file.lock(0, Mode::Shared, &checks).await.map(drop),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let stopping = spawn({
        let store = store.clone();
        async move { store.shutdown().within(Duration::from_secs(60)).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(guard);
    let waited = waiting.await.expect("ends");
    stopping.await.expect("ends").expect("shuts down");
    waited.expect("gets the lock");
}

#[test]
fn a_checkpointer_that_waits_for_many_locks_is_waited_for() {
    paused(a_checkpointer_waits_while_it_drains(true));
}

#[test]
fn a_checkpointer_that_waits_for_a_lock_is_waited_for() {
    paused(a_checkpointer_waits_while_it_drains(false));
}

/// An open could not sync a file and set it aside, the next put a copy in its place and could not
/// sync the directory: the one after that takes the copy as it is.
#[test]
fn a_copy_whose_name_is_not_on_the_disk_is_not_taken_as_it_is() {
    paused(async {
        for seed in 0..8 {
            let rig = StoreRig::new(8);
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let gate = Gate::new();
            let store = gate.open_store(&rig, Io::inline()).await.expect("opens");
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            drop((file, store));
            rig.fs.kill();
            gate.fail_a_sync();
            let failed = gate.open_store(&rig, Io::inline()).await;
            failed.expect_err("the fsync fails");
            let fault = fs::Fault {
                call: Some(fs::Call::SyncDir),
                after: 0,
                errno: EIO,
                forever: false,
            };
            rig.fs.fail_under(Path::new("/q/parts"), fault);
            rig.try_open()
                .await
                .expect_err("the directory is not synced");
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            fill(&file, 0, 9).await;
            file.sync().await.expect("syncs");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.try_open().await;
            let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert!(
                bytes == [9; PART],
                "seed {seed}: {:?}.. was acknowledged",
                &bytes[..4]
            );
        }
    });
}

/// "The store takes no writes any more": it is read as before, what S3 has as well.
#[test]
fn what_s3_has_is_read_after_a_failed_fsync() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 7).await;
        }
        uploaded(&store).await;
        fill(&file, 15, 8).await;
        let fault = fs::Fault {
            call: Some(fs::Call::Sync),
            after: 0,
            errno: EIO,
            forever: false,
        };
        rig.fs.fail_under(Path::new("/q/parts"), fault);
        file.sync().await.expect_err("the fsync fails");
        let other = store.locker("reads", Role::Checkpointer).expect("a locker");
        for index in 0..16 {
            let mut byte = [0];
            let at = (index * PART) as u64;
            let got = file.by(&other).read_at(&mut byte, at).await;
            got.unwrap_or_else(|error| panic!("part {index}: {error}"));
        }
    });
}

/// The record that made a file is damaged, and open goes on without it: the bytes that nobody else
/// has are still there for whoever mends it.
#[test]
fn what_a_damaged_record_named_is_not_thrown_away() {
    paused(async {
        let rig = StoreRig::new(8);
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 7).await;
        file.sync().await.expect("syncs");
        drop((file, store));
        rig.fs.crash(1);
        let segment = rig.fs.names(Path::new("/q/segments")).remove(0);
        let bytes = rig.fs.peek(&segment).expect("is there");
        for at in (0..2048).step_by(8) {
            let copy = StoreRig {
                fs: rig.fs.copy_of(),
                ..rig.clone()
            };
            let mut bad = bytes.clone();
            bad[at] ^= 0xff;
            copy.fs.poke(&segment, bad);
            let Ok(store) = copy.try_open().await else {
                continue;
            };
            if store.files().is_empty() {
                let dirs = ["/q/parts", "/q/damage"];
                let mut left = dirs.iter().flat_map(|dir| copy.fs.names(Path::new(dir)));
                let is_it = |path: PathBuf| copy.fs.peek(&path).is_some_and(|b| b == [7; PART]);
                assert!(
                    left.any(is_it),
                    "byte {at}: the file's bytes are gone as well"
                );
            }
        }
    });
}

/// A file of large parts is there, whatever today's limits are: it is said which one it is.
#[test]
fn a_store_with_smaller_limits_opens_or_says_which_file_is_in_the_way() {
    paused(async {
        let rig = StoreRig::new(64);
        let store = rig.open().await;
        let large = s3_writeback::FileOptions { part_bytes: 8192 };
        let file = store.create(FileId(4711), large).await.expect("creates");
        file.write_at(&[1; 8192], 0).await.expect("writes");
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        let mut smaller = rig;
        smaller.config.image_bytes = PART as u64;
        let refused = smaller.try_open().await.expect_err("it does not fit");
        assert!(refused.to_string().contains("4711"), "{refused}");
    });
}

/// Found by seed 9556 of the simulation: the journal had failed, the image of a part came to S3, and
/// neither the entry nor the end of its intent could be put on record. The intent was forgotten all
/// the same, so that the next sync had nothing to say of it, and said Ok; the next life took the part
/// for what it had been before.
#[test]
fn a_sync_says_no_where_what_became_of_a_part_is_not_on_record() {
    paused(async {
        let rig = StoreRig::with(4, |config| {
            config.max_dirty_age = Duration::from_millis(10);
        });
        let store = rig.open().await;
        let file = filled(&store, 1).await;
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        for path in rig.fs.names(Path::new("/q/parts")) {
            rig.fs.poke(&path, vec![0; PART]);
        }
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        // A load, so that the bytes under the intent are not on the disk: it is not trusted.
        assert_eq!(read(&file, 0, 1).await.expect("is read"), [1]);
        let slow = Fault::Delay(Duration::from_secs(5));
        rig.remote.always(Some(Call::Put), None, slow);
        file.write_at(&[9; 512], 0).await.expect("writes");
        rig.remote.wait_for(|remote| remote.in_flight().0 > 0).await;
        let fault = fs::Fault {
            call: Some(fs::Call::Write),
            after: 0,
            errno: EIO,
            forever: true,
        };
        rig.fs.fail(fault);
        let other = store.create(FileId(2), PARTS_OF).await;
        assert!(other.is_err(), "the journal fails");
        tokio::time::sleep(Duration::from_secs(10)).await;
        for again in 0..2 {
            let synced = file.sync().await;
            assert!(
                matches!(synced, Err(Error::JournalFailed(_))),
                "{again}: {synced:?}"
            );
        }
        // What is read here is what was written, until the process ends.
        assert_eq!(read(&file, 0, 1).await.expect("is read"), [9]);
    });
}

/// Found by seed 12257 of the simulation: an fsync of a part file failed, and the journal could not be
/// told, for the whole disk had failed. The page cache took the bytes for written; the next life read
/// them, synced, and said Ok.
#[test]
fn a_failed_fsync_that_is_on_no_record_takes_nothing_from_the_next_life() {
    paused(async {
        for seed in 0..8 {
            let rig = StoreRig::new(8);
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 6).await;
            file.sync().await.expect("syncs");
            fill(&file, 0, 7).await;
            let fault = fs::Fault {
                call: None,
                after: 0,
                errno: EIO,
                forever: true,
            };
            rig.fs.fail(fault);
            file.sync().await.expect_err("the disk has failed");
            drop((file, store));
            rig.fs.kill();
            rig.fs.heal();
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert!(bytes == [7; PART], "it is in the page cache");
            file.sync().await.expect("syncs");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert!(bytes == [7; PART], "seed {seed}: {:?}", &bytes[..4]);
        }
    });
}
