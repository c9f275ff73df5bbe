//! The last line, at shutdown.

use std::future::IntoFuture as _;
use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, Mode, PartStore, Restore, Role};

use super::{FILE, byte};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, fill, paused, read, spawn, uploaded};

/// A store that makes a checkpoint at shutdown, and a file with something in it.
async fn with_a_last_line() -> (StoreRig, PartStore, File) {
    let rig = StoreRig::owner_with(8, |config| {
        config.checkpoint_at_shutdown = true;
    });
    let store = rig.open().await;
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    fill(&file, 0, 1).await;
    (rig, store, file)
}

/// The engine's checkpoint thread writes its roots during shutdown, through a hold: they are in the
/// last checkpoint. Without a hold they are refused.
#[test]
fn e18_what_is_written_through_a_hold_is_in_the_last_checkpoint() {
    paused(async {
        let (rig, store, file) = with_a_last_line().await;
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
        let (rig, store, file) = with_a_last_line().await;
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
