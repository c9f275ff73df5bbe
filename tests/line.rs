//! The line: what a checkpoint has in it while everything goes on.

mod support;

use std::future::IntoFuture as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::error::Advice;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    CheckpointOptions, Error, File, FileId, Mode, PartId, PartStore, Restore, Role,
};
use tokio::sync::Notify;

use support::{
    PART, PARTS_OF, StoreRig, checkpoint, contents, drawn, fill, paused, read, spawn, uploaded,
};

const FILE: FileId = FileId(1);

fn part(index: u32) -> PartId {
    PartId { file: FILE, index }
}

/// What part `index` of the restored file is filled with.
async fn byte(store: &PartStore, index: usize) -> u8 {
    let bytes = contents(store, 1).await;
    let part = &bytes[index * PART..];
    let part = &part[..part.len().min(PART)];
    assert!(
        part.iter().all(|byte| *byte == part[0]),
        "part {index} is torn"
    );
    part[0]
}

/// A guard writes, and is forgotten; another part is written and let go of. Both are in.
#[test]
fn e3_a_forgotten_guard_keeps_nothing_out_of_a_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        file.set_len(2 * PART as u64).await.expect("grows");
        let locker = store
            .locker("forgetful", Role::Foreground)
            .expect("a locker");
        let guard = file.lock(0, Mode::Exclusive, &locker).await.expect("locks");
        guard.write_at(&[1; PART], 0).await.expect("writes");
        fill(&file, 1, 2).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!((byte(&there, 0).await, byte(&there, 1).await), (1, 2));
        // It went up, guard or not.
        uploaded(&store).await;
        drop(guard);
    });
}

/// What is written after the line is not in it, though the part's image goes up after the write:
/// what it was is set aside, in memory and beyond that in a file.
#[test]
fn what_is_written_behind_the_line_is_not_in_it() {
    for memory in [0, PART as u64, 1 << 20] {
        paused(async {
            let rig = StoreRig::owner_with(32, |config| {
                config.aside_memory = memory;
                config.dirty_bytes = 16 * PART as u64;
                // Two images at a time are captured: the others are written to before.
                config.image_bytes = PART as u64;
            });
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..8 {
                fill(&file, index, 1).await;
            }
            rig.slow_packs();
            let made = drawn(&store).await;
            for index in 0..8 {
                fill(&file, index, 2).await;
            }
            file.write_at(&[3; 100], 8 * PART as u64)
                .await
                .expect("grows");
            made.await.expect("ends").expect("is committed");
            let there = rig.restored(Restore::latest()).await;
            let bytes = contents(&there, 1).await;
            assert_eq!(bytes.len(), 8 * PART);
            assert!(bytes.iter().all(|byte| *byte == 1), "memory {memory}");
            checkpoint(&store).await;
            let there = rig.restored(Restore::latest()).await;
            let bytes = contents(&there, 1).await;
            assert_eq!(bytes.len(), 8 * PART + 100);
            assert!(bytes[..8 * PART].iter().all(|byte| *byte == 2));
            assert!(rig.fs.names(Path::new("/q/lines")).is_empty());
        });
    }
}

/// A store that sends what was written soon.
fn restless() -> StoreRig {
    StoreRig::owner_with(8, |config| {
        config.max_dirty_age = Duration::from_millis(10);
    })
}

/// Fills part 0 with 1; comes back when the image of that is on its way, where it is held up.
async fn on_its_way(rig: &StoreRig, file: &File) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    let held = Fault::Gate(Arc::clone(&gate));
    rig.remote.under(Some(1), Some(Call::Put), "packs/", held);
    fill(file, 0, 1).await;
    rig.remote
        .wait_for(|remote| remote.in_flight().0 == 1)
        .await;
    gate
}

/// An image that was on its way when the line was drawn is refused for good, after the part was
/// written again: the checkpoint fails with the cause, and the next one has what was written.
#[test]
fn e7_an_image_that_is_lost_fails_the_checkpoint_with_the_cause() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.refuse_bodies_with(Some(vec![1; 64].into()));
        let gate = on_its_way(&rig, &file).await;
        let made = drawn(&store).await;
        fill(&file, 0, 2).await;
        gate.notify_one();
        let error = made.await.expect("ends").expect_err("nothing is committed");
        assert!(
            matches!(error, Error::PartFailed { part: failed, .. } if failed == part(0)),
            "{error}"
        );
        assert!(rig.prefix().checkpoints().await.expect("lists").is_empty());
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// The image that the line has comes back after a later one: the manifest names the line's.
#[test]
fn e7_the_manifest_names_the_lines_image_and_not_a_later_one() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gate = on_its_way(&rig, &file).await;
        let made = drawn(&store).await;
        let before = rig.remote.count(Call::Put, "packs/");
        fill(&file, 0, 2).await;
        // The later one is there first.
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "packs/") > before)
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        gate.notify_one();
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 1);
        // And the part is what was written last: here, after the next open, and in the next one.
        uploaded(&store).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// A9, E6: v1 stalls, v2 finishes, v1 finishes; at the next checkpoint it is v2.
#[test]
fn a9_e6_of_two_images_the_checkpoint_has_the_later_one_in_whatever_order_they_came() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gate = on_its_way(&rig, &file).await;
        let before = rig.remote.keys().len();
        fill(&file, 0, 2).await;
        rig.remote
            .wait_for(|remote| remote.keys().len() > before)
            .await;
        gate.notify_one();
        uploaded(&store).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// A file that a line has is dropped, and made again; a part of it is cut off, or cut inside: the
/// checkpoint has what was there at the line, and the next one nothing of it.
#[test]
fn e14_what_is_cut_off_behind_a_line_is_in_it_and_in_no_later_one() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            // Of two parts that the line owes one is captured, and one is set aside.
            config.image_bytes = PART as u64;
        });
        let store = rig.open().await;
        let locker = store.locker("cutter", Role::Foreground).expect("a locker");
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 1).await;
            fill(&other, index, 2).await;
        }
        checkpoint(&store).await;
        // Two are captured, and two will have to be set aside.
        fill(&file, 2, 1).await;
        fill(&other, 0, 2).await;
        fill(&file, 3, 3).await;
        fill(&other, 1, 4).await;
        rig.slow_packs();
        let made = drawn(&store).await;
        store.drop_file(FILE, &locker).await.expect("drops");
        other.set_len(PART as u64 + 10).await.expect("cuts");
        other.set_len(4 * PART as u64).await.expect("grows");
        let again = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&again, 0, 9).await;
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        let bytes = contents(&there, 1).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[..3 * PART].iter().all(|byte| *byte == 1));
        assert!(bytes[3 * PART..].iter().all(|byte| *byte == 3));
        let bytes = contents(&there, 2).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[PART..2 * PART].iter().all(|byte| *byte == 4));
        assert!(bytes[2 * PART..].iter().all(|byte| *byte == 2));
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![9; PART]);
        let bytes = contents(&there, 2).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[..PART].iter().all(|byte| *byte == 2));
        assert!(bytes[PART..PART + 10].iter().all(|byte| *byte == 4));
        assert!(
            bytes[PART + 10..].iter().all(|byte| *byte == 0),
            "old bytes are back"
        );
    });
}

/// The same where nothing else of the page changed that what was cut off is in.
#[test]
fn e14_a_page_all_of_whose_parts_were_cut_off_is_in_no_later_checkpoint() {
    for crashes in [false, true] {
        paused(async {
            let rig = StoreRig::owner(32);
            let mut store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            fill(&file, 1500, 2).await;
            fill(&file, 1501, 2).await;
            checkpoint(&store).await;
            file.set_len(1501 * PART as u64).await.expect("cuts");
            file.set_len(PART as u64).await.expect("cuts");
            file.set_len(1502 * PART as u64).await.expect("grows");
            if crashes {
                drop((store, file));
                rig.fs.crash(1);
                store = rig.open().await;
            }
            checkpoint(&store).await;
            let there = rig.restored(Restore::latest()).await;
            let file = there.file(FILE).expect("is there");
            assert_eq!(file.len(), 1502 * PART as u64);
            assert_eq!(read(&file, 0, PART).await.expect("reads"), [1; PART]);
            for index in [1500, 1501] {
                let bytes = read(&file, index * PART, PART).await.expect("reads");
                assert_eq!(bytes, [0; PART], "old bytes are back");
            }
        });
    }
}

/// The same in a directory that was restored, whose headers no record has.
#[test]
fn e14_what_is_cut_off_of_a_restored_file_is_in_no_later_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1500, 2).await;
        checkpoint(&store).await;
        let there = rig.elsewhere();
        let restored = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        restored.expect("is restored");
        let opened = there.open_as(s3_writeback::StoreBuilder::take_over).await;
        let store = opened.expect("opens");
        let file = store.file(FILE).expect("is there");
        file.set_len(PART as u64).await.expect("cuts");
        file.set_len(1501 * PART as u64).await.expect("grows");
        drop((store, file));
        there.fs.crash(1);
        let store = there.open().await;
        checkpoint(&store).await;
        let again = there.restored(Restore::latest()).await;
        let file = again.file(FILE).expect("is there");
        let bytes = read(&file, 1500 * PART, PART).await.expect("reads");
        assert_eq!(bytes, [0; PART], "old bytes are back");
    });
}

/// What was cut off in one life is in no checkpoint of the next; nor is a file that was dropped.
#[test]
fn e14_what_was_cut_off_or_dropped_before_a_crash_is_in_no_checkpoint_after_it() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let locker = store.locker("cutter", Role::Foreground).expect("a locker");
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gone = store.create(FileId(2), PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 1).await;
            fill(&gone, index, 2).await;
        }
        checkpoint(&store).await;
        file.set_len(PART as u64).await.expect("cuts");
        file.set_len(3 * PART as u64).await.expect("grows");
        store.drop_file(FileId(2), &locker).await.expect("drops");
        drop((store, file, gone, locker));
        rig.fs.crash(1);
        let store = rig.open().await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE]);
        let bytes = contents(&there, 1).await;
        assert_eq!(bytes.len(), 3 * PART);
        assert!(
            bytes[PART..].iter().all(|byte| *byte == 0),
            "old bytes are back"
        );
    });
}

/// A write over three parts, the second held; a line meanwhile: the line is not delayed.
#[test]
fn e17_a_write_that_waits_for_a_lock_does_not_delay_a_line() {
    paused(async {
        let rig = StoreRig::owner(16);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..3 {
            fill(&file, index, 1).await;
        }
        let holder = store.locker("holder", Role::Foreground).expect("a locker");
        let guard = file.lock(1, Mode::Exclusive, &holder).await.expect("locks");
        let writer = store.locker("writer", Role::Foreground).expect("a locker");
        let on = store.clone();
        let write = spawn(async move {
            let parts = [part(0), part(1), part(2)];
            let set = on.lock_many(&parts, Mode::Exclusive, &writer).await?;
            let bytes = [2; PART];
            set.write(&[
                (part(0), 0, &bytes),
                (part(1), 0, &bytes),
                (part(2), 0, &bytes),
            ])
            .await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 3 * PART]);
        drop(guard);
        write.await.expect("ends").expect("writes");
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![2; 3 * PART]);
    });
}

/// S3 goes down during a checkpoint: writes go on until a limit is reached, and what is committed
/// when it is back is what was there at the line.
#[test]
fn e17_an_outage_during_a_checkpoint_stops_no_write_before_a_limit() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.dirty_bytes = 32 * PART as u64;
            config.aside_memory = 4 * PART as u64;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        rig.remote
            .always(None, None, Fault::Error(RemoteError::transient("any")));
        let made = drawn(&store).await;
        for round in 2..6 {
            for index in 0..32 {
                let bytes = [round; PART];
                let write = file.write_at(&bytes, (index * PART) as u64);
                write
                    .within(Duration::from_millis(10))
                    .await
                    .expect("no write waits for S3");
            }
        }
        let error = file
            .write_at(&[9; PART], 32 * PART as u64)
            .within(Duration::from_secs(1))
            .await
            .expect_err("here is the limit");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        rig.remote.heal();
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 16 * PART]);
    });
}

/// Without room to set images aside no line is drawn; and nothing has changed.
#[test]
fn a_disk_without_room_for_what_may_be_set_aside_fails_the_checkpoint_before_the_line() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.aside_memory = 0;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        let fault = fs::Fault {
            call: Some(fs::Call::Reserve),
            after: 0,
            errno: fs::ENOSPC,
            forever: true,
        };
        rig.fs.fail_under(Path::new("/q/lines"), fault);
        let error = store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect_err("no room");
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(error.advice(), Advice::Retry);
        assert!(store.checkpoint_snapshot().owed.is_none());
        rig.fs.heal();
        checkpoint(&store).await;
    });
}

/// The engine's checkpoint thread writes its roots during shutdown, through a hold: they are in the
/// last checkpoint. Without a hold they are refused.
#[test]
fn e18_what_is_written_through_a_hold_is_in_the_last_checkpoint() {
    paused(async {
        let rig = StoreRig::owner_with(8, |config| {
            config.checkpoint_at_shutdown = true;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        let hold = store.queue().hold("roots").expect("a hold");
        let through = store.locker_through(&hold, "roots").expect("a locker");
        let on = store.clone();
        let shutdown = spawn(async move { on.shutdown().await });
        hold.token().cancelled().await;
        let error = file.write_at(&[7; PART], 0).await.expect_err("is refused");
        assert!(matches!(error, Error::ShuttingDown { .. }), "{error}");
        file.by(&through)
            .write_at(&[2; PART], 0)
            .await
            .expect("writes");
        drop((through, hold));
        let report = shutdown.await.expect("ends").expect("shuts down");
        assert_eq!(report.checkpoint, Some(1), "{report:?}");
        assert!(report.sealed && report.dirty_parts == 0, "{report:?}");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// Who does not let go of a hold in time writes no more: not even through it.
#[test]
fn e18_writing_ends_for_everyone_when_the_last_line_is_drawn() {
    paused(async {
        let rig = StoreRig::owner_with(8, |config| {
            config.checkpoint_at_shutdown = true;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1, 1).await;
        let hold = store.queue().hold("late").expect("a hold");
        let through = store.locker_through(&hold, "late").expect("a locker");
        let guard = file
            .lock(0, Mode::Exclusive, &through)
            .await
            .expect("locks");
        rig.slow_packs();
        let on = store.clone();
        let shutdown = store.shutdown().within(Duration::from_secs(40));
        let shutdown = spawn(shutdown.into_future());
        while on.queue().snapshot().phase < s3_writeback::Phase::Checkpointing {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = guard.write_at(&[2; PART], 0).await.expect_err("is refused");
        assert!(matches!(error, Error::ShuttingDown { .. }), "{error}");
        assert_eq!(
            on.queue().snapshot().phase,
            s3_writeback::Phase::Checkpointing
        );
        let report = shutdown.await.expect("ends").expect("shuts down");
        assert_eq!(report.checkpoint, Some(1), "{report:?}");
        assert_eq!(report.late_holds.len(), 1, "{report:?}");
        drop(guard);
        drop((through, hold));
    });
}

/// One image of a pack of 2,000 is refused for good: 1,999 are in S3, one part is failing and
/// named, and the checkpoint says so at once.
#[test]
fn e21_one_image_that_is_refused_keeps_no_other_from_s3() {
    paused(async {
        let rig = StoreRig::owner_with(4096, |config| {
            config.image_bytes = 256 << 20;
            config.pack_bytes = 16 << 20;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.refuse_bodies_with(Some(vec![0xBA; 64].into()));
        for index in 0..2000 {
            fill(&file, index, if index == 1234 { 0xBA } else { 1 }).await;
        }
        let started = tokio::time::Instant::now();
        let error = store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect_err("fails");
        assert!(started.elapsed() < Duration::from_secs(2), "at once");
        assert!(
            matches!(error, Error::PartFailed { part: failed, .. } if failed == part(1234)),
            "{error}"
        );
        while store.snapshot().dirty_bytes > PART as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let failing = store.snapshot().failing;
        assert_eq!(failing.len(), 1);
        assert_eq!(failing[0].part, part(1234));
        // Halves of halves, and no more.
        let puts = rig.remote.count(Call::Put, "packs/");
        assert!(puts <= 40, "{puts} requests");
        rig.remote.refuse_bodies_with(None);
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 1234).await, 0xBA);
        assert_eq!(byte(&there, 1235).await, 1);
    });
}

/// Checkpoint 1; a write to P; the flusher uploads P, P is clean; checkpoint 2 names P's new image.
#[test]
fn e29_a_part_that_went_up_by_itself_is_in_the_next_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1, 1).await;
        checkpoint(&store).await;
        fill(&file, 0, 2).await;
        uploaded(&store).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!((byte(&there, 0).await, byte(&there, 1).await), (2, 1));
        // The same across a restart: what differs is known by the records.
        fill(&file, 1, 3).await;
        uploaded(&store).await;
        file.sync().await.expect("syncs");
        store.shutdown().await.expect("shuts down");
        drop((store, file));
        let store = rig.open().await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!((byte(&there, 0).await, byte(&there, 1).await), (2, 3));
    });
}

/// A14: part uploads are slow, the manifest is fast: it is never visible before what it names.
#[test]
fn a14_a_checkpoint_is_visible_only_when_all_that_it_names_is_there() {
    paused(async {
        let rig = StoreRig::owner(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 1).await;
        }
        let slow = Fault::Delay(Duration::from_secs(5));
        rig.remote.under(None, Some(Call::Put), "packs/", slow);
        let on = store.clone();
        let made = spawn(async move { on.checkpoint(CheckpointOptions::new()).await });
        while !made.is_finished() {
            let listed = rig.prefix().checkpoints().await.expect("lists");
            for one in listed {
                let report = rig
                    .prefix()
                    .verify(Some(one.number))
                    .await
                    .expect("verifies");
                assert_eq!((report.bad, report.images), (0, 4));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        made.await.expect("ends").expect("is committed");
        let report = rig.prefix().verify(None).await.expect("verifies");
        assert_eq!((report.bad, report.images), (0, 4));
    });
}

/// E5: written, line, committed, more writes to the same part, power cut: everything of the
/// committed line is here. The same at a clean shutdown.
#[test]
fn e5_what_a_committed_checkpoint_has_is_here_after_a_power_cut() {
    for seed in 0..20 {
        paused(async {
            let rig = StoreRig::owner(8);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            file.sync().await.expect("syncs");
            file.write_at(&[2; 100], 0).await.expect("writes");
            // Written to before the image is there, the part stays what is here; and the next
            // image of it does not get there before the crash.
            let slow = Fault::Delay(Duration::from_secs(5));
            rig.remote.under(Some(1), Some(Call::Put), "packs/", slow);
            rig.remote
                .under(Some(1), Some(Call::Put), "packs/", Fault::Hang);
            let made = drawn(&store).await;
            file.write_at(&[3; 100], 200).await.expect("writes");
            made.await.expect("ends").expect("is committed");
            rig.fs.crash(seed);
            drop((store, file));
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            assert_eq!(
                read(&file, 0, 100).await.expect("reads"),
                [2; 100],
                "seed {seed}"
            );
        });
    }
}

/// D3: parts linger for a pack for an hour; shutdown within 5 s: they are in S3, or dirty here.
#[test]
fn d3_what_lingers_for_a_pack_goes_at_shutdown() {
    for hangs in [false, true] {
        paused(async {
            let rig = StoreRig::owner_with(64, |config| {
                config.checkpoint_at_shutdown = true;
                config.max_dirty_age = Duration::from_secs(3600);
            });
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            file.sync().await.expect("syncs");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(rig.remote.count(Call::Put, "packs/"), 0, "it lingers");
            if hangs {
                rig.remote.always(None, None, Fault::Hang);
            }
            let started = tokio::time::Instant::now();
            let report = store
                .shutdown()
                .within(Duration::from_secs(5))
                .await
                .expect("ends");
            assert!(started.elapsed() <= Duration::from_millis(5_500));
            assert!(report.sealed, "{report:?}");
            assert_eq!(report.dirty_parts, u64::from(hangs), "{report:?}");
            assert_eq!(report.checkpoint.is_some(), !hangs, "{report:?}");
            assert_eq!(report.checkpoint_error.is_some(), hangs, "{report:?}");
        });
    }
}

/// E20: a backlog of ten times today's limit, S3 down: the checkpointer has its way as soon as S3
/// is there, before the backlog is.
#[test]
fn e20_a_backlog_above_the_limits_keeps_no_checkpoint_back() {
    paused(async {
        let mut rig = StoreRig::owner(16);
        rig.config.queue.max_tasks = 1000;
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Error(RemoteError::transient("PutObject")),
        );
        for task in 0..1000 {
            let key = format!("log/{task}");
            let options = s3_writeback::Options::default();
            let receipt = store.queue().submit(key, vec![1_u8; 10], options).await;
            receipt
                .expect("is admitted")
                .durable()
                .await
                .expect("is durable");
        }
        file.sync().await.expect("syncs");
        rig.fs.crash(1);
        drop((store, file));
        rig.config.queue.max_tasks = 100;
        // Slow, one at a time: the backlog takes a quarter of an hour.
        rig.remote.heal();
        rig.remote.under(
            None,
            Some(Call::Put),
            "log/",
            Fault::Delay(Duration::from_secs(1)),
        );
        rig.config.queue.workers = 1;
        let store = rig.open().await;
        let started = tokio::time::Instant::now();
        checkpoint(&store).await;
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{:?}",
            started.elapsed()
        );
        assert!(
            store.queue().snapshot().tasks.tasks > 100,
            "the backlog is not gone"
        );
    });
}

/// A part is cut off while its image, which the line has, waits for a slot: nobody else has a use
/// for it, and it goes up all the same.
#[test]
fn e14_an_image_that_only_the_line_needs_goes_up() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.pack_bytes = PART as u64;
            config.queue.workers = 1;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..6 {
            fill(&file, index, 1).await;
        }
        rig.slow_packs();
        let made = drawn(&store).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        file.set_len(PART as u64).await.expect("cuts");
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 6 * PART]);
    });
}

/// Every slot but one is with foreground work that S3 does not answer: that one is enough.
#[test]
fn a_checkpoint_has_a_slot_that_nothing_else_has() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.queue.workers = 1;
            config.queue.attempt_floor = Duration::from_secs(3600);
            config.checkpoint_within = Duration::from_secs(600);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.under(None, Some(Call::Put), "log/", Fault::Hang);
        let options = s3_writeback::Options::default();
        let receipt = store.queue().submit("log/1", vec![1_u8; 10], options).await;
        receipt
            .expect("is admitted")
            .durable()
            .await
            .expect("is durable");
        rig.remote
            .wait_for(|remote| remote.in_flight().0 == 1)
            .await;
        checkpoint(&store).await;
    });
}

/// With the queue full of foreground work, every part lock held by lockers that sleep, and half of
/// the requests failing, a checkpoint commits; so does the last one, at shutdown.
#[test]
fn a_checkpoint_makes_progress_whatever_the_engine_and_s3_do() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.checkpoint_at_shutdown = true;
            config.queue.max_tasks = 100;
            config.queue.workers = 2;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        let sleeper = store.locker("sleeper", Role::Foreground).expect("a locker");
        let mut guards = Vec::new();
        for index in 0..16 {
            let guard = file
                .lock(index, Mode::Exclusive, &sleeper)
                .await
                .expect("locks");
            guards.push(guard);
        }
        guards[3].write_at(&[2; PART], 0).await.expect("writes");
        let fails = Fault::Error(RemoteError::transient("any"));
        let slow = Fault::Delay(Duration::from_millis(20));
        for _ in 0..2000 {
            rig.remote.once(None, None, fails.clone());
            rig.remote.once(None, None, slow.clone());
        }
        rig.remote.under(None, None, "log/", slow);
        let queue = store.queue().clone();
        let full = spawn(async move {
            for task in 0_u32.. {
                let options = s3_writeback::Options::default();
                let key = format!("log/{task}");
                if queue.submit(key, vec![1_u8; 100], options).await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            store.queue().pressure() >= 90,
            "{}",
            store.queue().pressure()
        );
        checkpoint(&store).await;
        let first = rig.prefix().checkpoints().await.expect("lists");
        assert_eq!(first.len(), 1);
        guards[5].write_at(&[3; PART], 0).await.expect("writes");
        let report = store
            .shutdown()
            .within(Duration::from_secs(600))
            .await
            .expect("ends");
        assert_eq!(report.checkpoint, Some(2), "{report:?}");
        full.await.expect("ends");
        drop(guards);
        rig.remote.heal();
        let there = rig.restored(Restore::latest()).await;
        assert_eq!((byte(&there, 3).await, byte(&there, 5).await), (2, 3));
    });
}

/// A2: long inserts leave 50,000 dirty parts; a checkpointer reads parts that are being loaded;
/// shutdown closes in time with all of it committed, and nobody waits.
#[test]
fn a2_fifty_thousand_dirty_parts_are_committed_at_shutdown_while_a_checkpointer_reads() {
    paused(async {
        const PARTS: usize = 50_000;
        let rig = StoreRig::owner_with(PARTS as u64 + 100, |config| {
            config.checkpoint_at_shutdown = true;
            config.dirty_bytes = config.cache_bytes;
            config.max_dirty_age = Duration::from_secs(3600);
            config.image_bytes = 64 << 20;
        });
        let store = rig.open().await;
        let cold = store.create(FileId(2), PARTS_OF).await.expect("creates");
        for index in 0..64 {
            fill(&cold, index, 5).await;
        }
        uploaded_now(&store).await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..PARTS - 64 {
            fill(&file, index, 1).await;
        }
        rig.remote.under(
            None,
            Some(Call::Get),
            "packs/",
            Fault::Delay(Duration::from_millis(50)),
        );
        let locker = store
            .locker("checkpointer", Role::Checkpointer)
            .expect("a locker");
        let reader = cold.clone();
        let reads = spawn(async move {
            let mut had = 0;
            for index in 0..64 {
                let mut page = [0; 100];
                let by = reader.by(&locker);
                match by.read_at(&mut page, index * PART as u64).await {
                    Ok(()) => had += 1,
                    Err(Error::ShuttingDown { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            had
        });
        let report = store
            .shutdown()
            .within(Duration::from_secs(30))
            .await
            .expect("ends");
        assert!(report.took <= Duration::from_secs(30), "{report:?}");
        assert!(report.checkpoint.is_some(), "{report:?}");
        assert_eq!(
            (report.dirty_parts, report.failing_parts.len()),
            (0, 0),
            "{report:?}"
        );
        assert!(report.sealed);
        reads.await.expect("ends");
        let snapshot = store.snapshot();
        assert_eq!((snapshot.lock_waiters, snapshot.cache_waiters), (0, 0));
        let there = rig.restored(Restore::latest()).await;
        let file = there.file(FILE).expect("is there");
        for index in [0, 1, 777, PARTS - 65] {
            assert_eq!(read(&file, index * PART, 10).await.expect("reads"), [1; 10]);
        }
    });
}

/// Has all go up now.
async fn uploaded_now(store: &PartStore) {
    checkpoint(store).await;
    uploaded(store).await;
}

/// Nothing is said to be late that is not: a checkpoint that S3 does not take ends at its deadline,
/// with what is owed, and the next is made when S3 is back.
#[test]
fn a_checkpoint_that_s3_does_not_take_ends_at_its_deadline() {
    paused(async {
        let rig = StoreRig::owner_with(8, |config| {
            config.checkpoint_within = Duration::from_secs(60);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.under(
            None,
            Some(Call::Put),
            "packs/",
            Fault::Error(RemoteError::throttled("PutObject")),
        );
        let made = store
            .checkpoint(CheckpointOptions::new())
            .within(Duration::from_secs(120));
        let error = spawn(made.into_future())
            .await
            .expect("ends")
            .expect_err("not in time");
        assert!(
            matches!(&error, Error::TimedOut { waiting_for, .. }
            if matches!(**waiting_for, Error::NotInS3 { images: 1 })),
            "{error}"
        );
        assert!(store.checkpoint_snapshot().owed.is_none());
        rig.remote.heal();
        checkpoint(&store).await;
    });
}
