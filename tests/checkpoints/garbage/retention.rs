//! How many checkpoints are kept, for how long, and what is known to be missing.

use std::time::Duration;

use s3_writeback::time::WallClock;
use s3_writeback::{Error, Restore};

use crate::owners::{assert_whole, byte_of, founded, latest, objects, reborn, the_file};
use crate::support::{PART, StoreRig, checkpoint, contents, fill};

const WHILE: Duration = Duration::from_secs(100);
const TODAY: Duration = Duration::from_secs(1_800_000_000);

#[tokio::test(start_paused = true)]
async fn as_many_checkpoints_are_kept_as_are_to_be_and_what_only_others_named_goes() {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 3;
    let (store, file) = founded(&rig, 1).await;
    for byte in 2..=10 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
        let before = objects(&rig.remote).len();
        let report = store.gc().await.unwrap();
        let after = objects(&rig.remote).len();
        assert_eq!(u64::try_from(before - after).unwrap(), report.deleted);
        let kept: Vec<u64> = (u64::from(byte).saturating_sub(2).max(1)..=byte.into()).collect();
        assert_eq!(assert_whole(&rig).await, kept);
        // Head; of each that is kept its part, its pages, and its manifest.
        assert_eq!(after, 1 + kept.len() * 3, "{:?}", rig.remote.keys());
    }
    for number in [8, 9, 10_u8] {
        let restored = rig.restored(Restore::number(number.into())).await;
        assert_eq!(byte_of(&restored, 0).await, number);
    }
    let error = rig.prefix().verify(Some(7)).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchCheckpoint { .. }), "{error}");
    // Nothing is left to do.
    assert_eq!(store.gc().await.unwrap().deleted, 0);
}

#[tokio::test(start_paused = true)]
async fn checkpoints_that_are_too_old_go_but_for_the_latest() {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_age = 10 * WHILE;
    let clock = WallClock::starting_at(TODAY);
    let store = rig.open_as(|b| b.wall_clock(clock)).await.unwrap();
    let file = store.create(crate::owners::FILE, crate::support::PARTS_OF);
    let file = file.await.unwrap();
    for byte in 1..=4 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
        tokio::time::sleep(4 * WHILE).await;
    }
    // 16, 12, 8 and 4 whiles old.
    assert_eq!(store.gc().await.unwrap().retired, 1);
    assert_eq!(assert_whole(&rig).await, [3, 4]);
    tokio::time::sleep(100 * WHILE).await;
    assert_eq!(store.gc().await.unwrap().retired, 1);
    assert_eq!(assert_whole(&rig).await, [4]);
    tokio::time::sleep(100 * WHILE).await;
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [4]);
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 0).await, 4);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_looked_for_by_the_clock_too() {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 1;
    rig.config.gc_every = Some(WHILE);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    checkpoint(&store).await;
    let before = objects(&rig.remote).len();
    tokio::time::sleep(WHILE + Duration::from_secs(10)).await;
    assert!(objects(&rig.remote).len() < before);
    assert_eq!(assert_whole(&rig).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn verify_names_an_image_that_is_missing_and_one_that_is_cut_short() {
    let mut rig = StoreRig::owner(64);
    rig.config.pack_bytes = 4 * PART as u64;
    let (store, file) = founded(&rig, 1).await;
    for index in 1..9 {
        fill(&file, index, 2).await;
    }
    checkpoint(&store).await;
    let (key, body) = objects(&rig.remote)
        .into_iter()
        .find(|(_, body)| body.len() > 3 * PART)
        .expect("a pack of many");
    rig.remote.remove(&key);
    let report = rig.prefix().verify(None).await.unwrap();
    assert_eq!((report.images, report.bad), (5, 4), "{report:?}");
    for fault in &report.faults {
        assert!(fault.contains(&key), "{fault}");
        assert!(fault.contains("file 1") && fault.contains("part "));
    }
    rig.remote.plant(&key, body.slice(..2 * PART + 100));
    let report = rig.prefix().verify(None).await.unwrap();
    assert_eq!((report.images, report.bad), (7, 2), "{report:?}");
    rig.remote.plant(&key, body);
    assert_eq!(rig.prefix().verify(None).await.unwrap().images, 9);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_where_a_checkpoint_cannot_be_read() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    for byte in 2..5 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
    }
    let manifests = rig.remote.keys().into_iter();
    let manifest = manifests.filter(|key| key.starts_with("checkpoints/"));
    for key in manifest {
        let good = rig.remote.object(&key).unwrap();
        for bad in [None, Some(good.slice(..30))] {
            match bad {
                None => rig.remote.remove(&key),
                Some(bad) => rig.remote.plant(&key, bad),
            }
            let before = objects(&rig.remote);
            assert!(store.gc().await.is_err());
            assert!(rig.prefix().collect_garbage().await.is_err());
            assert_eq!(objects(&rig.remote), before);
        }
        rig.remote.plant(&key, good);
    }
    store.gc().await.unwrap();
    assert_whole(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_only_in_the_headers_here_is_kept_over_restarts_and_looks_for_garbage() {
    let mut rig = StoreRig::owner(4);
    rig.config.retain_checkpoints = 1;
    let (mut store, file) = founded(&rig, 1).await;
    drop(file);
    for life in 0..5_u8 {
        // More than there is room for here: most of it is nowhere but in S3, in no checkpoint.
        for index in 0..12_u8 {
            let byte = life * 16 + index;
            fill(&the_file(&store), index.into(), byte).await;
        }
        store.gc().await.unwrap();
        rig.prefix().collect_garbage().await.unwrap();
        store.shutdown().await.unwrap();
        drop(store);
        store = reborn(&rig, 100 + u64::from(life)).open().await;
        store.gc().await.unwrap();
        for index in 0..12_u8 {
            let byte = byte_of(&store, index.into()).await;
            assert_eq!(byte, life * 16 + index, "life {life}");
        }
        if life % 2 == 0 {
            checkpoint(&store).await;
        }
    }
    let all = contents(&store, 1).await;
    let number = checkpoint(&store).await.number;
    store.gc().await.unwrap();
    assert_eq!(latest(&rig).await, Some(number));
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(contents(&restored, 1).await, all);
}
