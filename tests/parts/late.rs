//! Disk calls that end late: when nobody waits for them any more, or when the directory is the next
//! store's.

use std::future::IntoFuture;
use std::path::Path;
use std::time::Duration;

use crate::support::gate::{Gate, Held};
use crate::support::{
    PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded, with_a_real_limit,
};
use s3_writeback::FileId;
use s3_writeback::testing::fs::Call as DiskCall;
use s3_writeback::testing::remote::{Call, Fault};

const FILE: FileId = FileId(1);

/// Time goes on, though a thread is held up.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let clock = async {
        loop {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            std::thread::yield_now();
            tokio::time::advance(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = clock => unreachable!(),
    }
}

#[test]
fn a_punch_of_a_closed_store_does_not_take_the_next_ones_bytes() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::new(16);
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..4 {
                fill(&file, index, 7).await;
            }
            uploaded(&store).await;
            gate.hold(Held::Punch(PART as u64));
            let cutting = spawn({
                let file = file.clone();
                async move { file.set_len(PART as u64).await }
            });
            gate.reached().await;
            let shutdown = store.shutdown().within(Duration::from_secs(5));
            let report = in_time(shutdown.into_future()).await.expect("returns");
            drop((file, store));
            if !report.sealed {
                return;
            }
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let store = in_time(rig.open()).await;
            let file = store.file(FILE).expect("is there");
            for index in 0..4 {
                in_time(fill(&file, index, 9)).await;
            }
            in_time(file.sync().into_future()).await.expect("syncs");
            gate.open();
            drop(cutting.await);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let bytes = read(&file, 0, 4 * PART).await.expect("reads");
            let lost = bytes.iter().position(|byte| *byte != 9);
            assert_eq!(lost, None, "acknowledged, and gone");
        });
    });
}

#[test]
fn a_write_of_a_closed_store_does_not_come_over_the_next_ones_bytes() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::new(16);
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            gate.hold(Held::Write(0));
            let writer = {
                let file = file.clone();
                #[expect(clippy::disallowed_methods, reason = "a thread of the engine")]
                std::thread::spawn(move || file.write_at(&[8; PART], 0).wait())
            };
            gate.reached().await;
            let shutdown = store.shutdown().within(Duration::from_secs(5));
            let report = in_time(shutdown.into_future()).await.expect("returns");
            drop((file, store));
            if !report.sealed {
                return;
            }
            let store = in_time(rig.open()).await;
            let file = store.file(FILE).expect("is there");
            in_time(fill(&file, 0, 9)).await;
            in_time(file.sync().into_future()).await.expect("syncs");
            gate.open();
            drop(writer.join());
            let bytes = read(&file, 0, PART).await.expect("reads");
            let lost = bytes.iter().position(|byte| *byte != 9);
            assert_eq!(lost, None, "acknowledged, and gone");
        });
    });
}

const PARTS: usize = 100;

/// A snapshot hangs in the disk, the store is shut down and said to be sealed, and the next one
/// takes a snapshot of the same number: the old one comes over it.
#[test]
fn a_snapshot_of_a_closed_store_does_not_come_over_the_next_ones() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::new(256);
            let gate = Gate::of_headers();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for _ in 0..20 {
                for index in 0..PARTS {
                    fill(&file, index, 7).await;
                }
                uploaded(&store).await;
            }
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            for index in 0..PARTS {
                fill(&file, index, 7).await;
            }
            gate.hold(Held::Sync);
            file.sync().await.expect("syncs");
            gate.reached().await;
            rig.remote.heal();
            let report = in_time(
                store
                    .shutdown()
                    .within(Duration::from_secs(5))
                    .into_future(),
            )
            .await;
            let report = report.expect("returns");
            drop((file, store));
            if !report.sealed {
                return;
            }
            let store = in_time(rig.open()).await;
            let file = store.file(FILE).expect("is there");
            for round in 0..1 {
                for index in 0..PARTS {
                    in_time(fill(&file, index, 100 + round)).await;
                }
                in_time(uploaded(&store)).await;
            }
            in_time(tokio::time::sleep(Duration::from_secs(1))).await;
            gate.open();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop((file, store));
            rig.fs.crash(1);
            for path in rig.fs.names(Path::new("/q/parts")) {
                rig.fs.poke(&path, vec![0; PARTS * PART]);
            }
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PARTS * PART).await.expect("reads");
            let old = bytes.iter().position(|byte| *byte != 100);
            assert_eq!(old, None);
        });
    });
}

/// Who asked for a sync has gone when its fsync fails: the disk says so once, and nobody hears it.
#[test]
fn an_fsync_that_fails_when_nobody_waits_for_it_any_more_fails_the_store() {
    with_a_real_limit(|| {
        paused(async {
            let mut lost = Vec::new();
            for seed in 0..8 {
                let rig = StoreRig::new(8);
                rig.remote.always(Some(Call::Put), None, Fault::Hang);
                let gate = Gate::new();
                let store = gate.threads(&rig).await;
                let file = store.create(FILE, PARTS_OF).await.expect("creates");
                fill(&file, 0, 7).await;
                file.sync().await.expect("syncs");
                fill(&file, 0, 8).await;
                gate.hold(Held::Sync);
                gate.fail_a_sync();
                let syncing = spawn({
                    let file = file.clone();
                    async move { file.sync().await }
                });
                gate.reached().await;
                syncing.abort();
                syncing.await.expect_err("it was given up");
                gate.open();
                // Time goes on when no thread is busy any more.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let synced = file.sync().await;
                drop((file, store));
                rig.fs.crash(seed);
                if synced.is_err() {
                    continue;
                }
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                let bytes = read(&file, 0, PART).await.expect("reads");
                if bytes != [8; PART] {
                    lost.push(seed);
                }
            }
            assert!(lost.is_empty(), "acknowledged, and lost: seeds {lost:?}");
        });
    });
}

/// Two syncs of one file: the disk tells the first that it failed, and the second that all is
/// well. The runtime is busy meanwhile, and has not looked at the first's answer.
#[test]
fn a_sync_beside_one_that_failed_does_not_say_ok() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::new(8);
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let gate = Gate::new();
            let store = gate.threads(&rig).await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            fill(&file, 0, 8).await;
            gate.hold(Held::Sync);
            gate.fail_a_sync();
            let syncing = spawn({
                let file = file.clone();
                async move { file.sync().await }
            });
            gate.reached().await;
            let before = rig.fs.count(DiskCall::Sync);
            gate.open();
            while rig.fs.count(DiskCall::Sync) == before {
                std::thread::yield_now();
            }
            let second = {
                let file = file.clone();
                #[expect(clippy::disallowed_methods, reason = "a thread of the engine")]
                std::thread::spawn(move || file.sync().wait())
                    .join()
                    .expect("ends")
            };
            let first = syncing.await.expect("ends");
            first.expect_err("the disk refused");
            second.expect_err("what the first could not sync is not on the disk");
        });
    });
}
