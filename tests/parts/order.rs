//! What must be on the disk before what relies on it, and what is not taken for it: a crash comes
//! in between (scenarios E4, E34).

use std::sync::Arc;
use std::time::Duration;

use crate::support::gate::{Gate, Held};
use crate::support::{
    PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded, with_a_real_limit,
};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId};
use tokio::sync::Notify;

const FILE: FileId = FileId(1);

#[test]
fn a_part_stays_here_until_it_is_on_record_that_s3_has_it() {
    paused(async {
        for seed in 0..4 {
            let rig = StoreRig::with(1, |config| config.dirty_bytes = PART as u64);
            let gate = Gate::new();
            let store = gate.open_store(&rig, Io::inline()).await.expect("opens");
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 1, 8).await;
            uploaded(&store).await;
            let put = Arc::new(Notify::new());
            rig.remote
                .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&put)));
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            rig.remote
                .wait_for(|remote| remote.in_flight().0 == 1)
                .await;
            gate.fill_journal(true);
            put.notify_one();
            rig.remote
                .wait_for(|remote| remote.in_flight().0 == 0)
                .await;
            // Wants the only frame.
            let mut one = [0];
            let other = file.read_at(&mut one, PART as u64);
            let other = other.within(Duration::from_secs(5)).await;
            let synced = file.sync().within(Duration::from_secs(5)).await;
            assert!(synced.is_err(), "the journal takes nothing: {other:?}");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert!(bytes == [7; PART], "seed {seed}: {:?}..", &bytes[..8]);
        }
    });
}

#[test]
fn a_cut_that_is_not_on_record_takes_nothing() {
    paused(async {
        for (len, seed) in [(PART, 0), (PART + 100, 1), (0, 2)] {
            let rig = StoreRig::new(8);
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let gate = Gate::new();
            let store = gate.open_store(&rig, Io::inline()).await.expect("opens");
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..4 {
                fill(&file, index, 7).await;
            }
            file.sync().await.expect("syncs");
            gate.fill_journal(true);
            let cut = file.set_len(len as u64).within(Duration::from_secs(5));
            cut.await.expect_err("the journal takes nothing");
            assert_eq!(file.len(), len as u64, "it has begun");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            assert_eq!(file.len(), 4 * PART as u64);
            let bytes = read(&file, 0, 4 * PART).await.expect("reads");
            let lost = bytes.iter().position(|byte| *byte != 7);
            assert_eq!(lost, None, "cut to {len}");
        }
    });
}

#[test]
fn an_intent_does_not_trust_bytes_that_a_sync_has_not_brought_to_the_disk_yet() {
    with_a_real_limit(|| {
        paused(async {
            for seed in 0..8 {
                let rig = StoreRig::new(4);
                let gate = Gate::new();
                let store = gate.threads(&rig).await;
                let file = store.create(FILE, PARTS_OF).await.expect("creates");
                for index in 0..8 {
                    fill(&file, index, 7).await;
                }
                uploaded(&store).await;
                for index in 1..8 {
                    drop(read(&file, index * PART, 1).await.expect("reads"));
                }
                // Nothing of part 0 is here, nor on the disk.
                file.sync().await.expect("syncs");
                let before = store.snapshot().loads;
                drop(read(&file, 0, 1).await.expect("reads"));
                assert_eq!(store.snapshot().loads, before + 1, "it is loaded");
                rig.remote.always(Some(Call::Put), None, Fault::Hang);
                gate.hold(Held::Sync);
                let syncs = file.clone();
                let syncing = spawn(async move { syncs.sync().await });
                gate.reached().await;
                file.write_at(&[9; 10], 0).await.expect("writes");
                rig.fs.crash(seed);
                gate.open();
                syncing.await.expect("ends").expect_err("the power is gone");
                drop((file, store));
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                let bytes = read(&file, 0, PART).await.expect("reads");
                assert!(matches!(bytes[..10], [7 | 9, ..]), "seed {seed}");
                let lost = bytes[10..].iter().position(|byte| *byte != 7);
                assert_eq!(lost, None, "seed {seed}");
            }
        });
    });
}

#[test]
fn what_reads_after_a_failed_fsync_is_on_the_disk_after_the_next_sync() {
    paused(async {
        for seed in 0..8 {
            let rig = StoreRig::new(8);
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 7).await;
            file.sync().await.expect("syncs");
            fill(&file, 0, 8).await;
            rig.fs.fail(FsFault {
                call: Some(FsCall::Sync),
                after: 0,
                errno: EIO,
                forever: false,
            });
            let failed = file.sync().await;
            assert!(matches!(failed, Err(Error::StoreFailed(_))), "{failed:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop((file, store));
            rig.fs.kill();
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert_eq!(bytes, [8; PART], "as it reads");
            file.sync().await.expect("syncs");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            let lost = bytes.iter().position(|byte| *byte != 8);
            assert_eq!(lost, None, "seed {seed}");
        }
    });
}

#[test]
fn bytes_that_were_left_in_a_part_of_zeros_do_not_come_back_around_a_write() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        file.set_len(4 * PART as u64).await.expect("grows");
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        for path in rig.fs.names(std::path::Path::new("/q/parts")) {
            rig.fs.poke(&path, vec![7; 4 * PART]);
        }
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        file.write_at(&[9; 10], PART as u64 + 100)
            .await
            .expect("writes");
        let mut expected = vec![0; 4 * PART];
        expected[PART + 100..PART + 110].fill(9);
        let bytes = read(&file, 0, 4 * PART).await.expect("reads");
        let old = bytes.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(old, None, "an old byte");
    });
}

/// The fsync of an open fails: what it punched out is clean, and not on the disk.
#[test]
fn what_an_open_could_not_sync_is_not_taken_for_synced_by_the_next_one() {
    with_a_real_limit(|| {
        paused(async {
            for seed in 0..8 {
                let rig = StoreRig::new(8);
                rig.remote.always(Some(Call::Put), None, Fault::Hang);
                let gate = Gate::new();
                let store = gate.threads(&rig).await;
                let file = store.create(FILE, PARTS_OF).await.expect("creates");
                for index in 0..4 {
                    fill(&file, index, 7).await;
                }
                file.sync().await.expect("syncs");
                // The power goes between the record of a cut and its punch.
                gate.hold(Held::Punch(PART as u64));
                let cuts = file.clone();
                let cutting = spawn(async move { cuts.set_len(PART as u64).await });
                gate.reached().await;
                rig.fs.crash(seed);
                gate.open();
                cutting.await.expect("ends").expect_err("the power is gone");
                drop((file, store));
                gate.fail_a_sync();
                let failed = gate.open_store(&rig, Io::inline()).await;
                failed.expect_err("the fsync fails");
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                assert_eq!(file.len(), PART as u64, "the cut is on record");
                file.set_len(4 * PART as u64).await.expect("grows");
                file.write_at(&[9; 10], PART as u64).await.expect("writes");
                file.sync().await.expect("syncs");
                drop((file, store));
                rig.fs.crash(seed);
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                let bytes = read(&file, PART, PART).await.expect("reads");
                assert_eq!(bytes[..10], [9; 10], "seed {seed}");
                let old = bytes[10..].iter().position(|byte| *byte != 0);
                assert_eq!(old, None, "an old byte, seed {seed}");
            }
        });
    });
}

/// An open punches, and is killed before its fsync: the next one finds nothing to punch.
#[test]
fn what_a_killed_open_punched_does_not_come_back() {
    with_a_real_limit(|| {
        paused(async {
            for seed in 0..8 {
                let rig = StoreRig::new(8);
                rig.remote.always(Some(Call::Put), None, Fault::Hang);
                let gate = Gate::new();
                let store = gate.open_store(&rig, Io::inline()).await.expect("opens");
                let file = store.create(FILE, PARTS_OF).await.expect("creates");
                fill(&file, 0, 7).await;
                file.sync().await.expect("syncs");
                fill(&file, 3, 7).await;
                // Its bytes are on the disk, the length that shows them is not on record.
                gate.fill_journal(true);
                let synced = file.sync().within(Duration::from_secs(5)).await;
                synced.expect_err("the journal takes nothing");
                drop((file, store));
                rig.fs.crash(seed);
                // What is left of it ends, and is not what is held up.
                tokio::time::sleep(Duration::from_secs(60)).await;
                gate.fill_journal(false);
                gate.hold(Held::Sync);
                let (other, opens) = (rig.clone(), Arc::new(gate));
                let gate = Arc::clone(&opens);
                let opening = spawn(async move {
                    let io = Io::pool(tokio::runtime::Handle::current(), 8);
                    opens.open_store(&other, io).await.map(drop)
                });
                gate.reached().await;
                rig.fs.kill();
                gate.open();
                opening.await.expect("ends").expect_err("it is killed");
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                assert_eq!(file.len(), PART as u64);
                file.set_len(4 * PART as u64).await.expect("grows");
                let bytes = read(&file, 3 * PART, PART).await.expect("reads");
                assert!(bytes == [0; PART], "seed {seed}: it grows by zeros");
                drop((file, store));
                rig.fs.crash(seed);
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                let bytes = read(&file, 3 * PART, PART).await.expect("reads");
                let old = bytes.iter().position(|byte| *byte != 0);
                assert_eq!(old, None, "an old byte, seed {seed}");
            }
        });
    });
}
