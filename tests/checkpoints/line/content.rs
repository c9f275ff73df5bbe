//! What is in a checkpoint: what there was at its line, and all of that.

use std::path::Path;
use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Mode, Restore, Role};

use super::{FILE, byte};
use crate::support::{
    PART, PARTS_OF, StoreRig, checkpoint, contents, drawn, fill, paused, read, spawn, uploaded,
};

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
