//! Objects that came of nothing.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::remote::{CreateMultipart, ObjectHeaders, Remote, RemoteError};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, Restore};
use tokio::sync::Notify;

use crate::owners::{FILE, assert_whole, byte_of, founded, objects, reborn};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, fill, uploaded};

fn packs(rig: &StoreRig) -> Vec<String> {
    let keys = rig.remote.keys().into_iter();
    keys.filter(|key| key.starts_with("packs/")).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_between_an_upload_and_its_record_goes_with_the_next_look() {
    for torn in [false, true] {
        let rig = StoreRig::owner(16);
        let (store, file) = founded(&rig, 1).await;
        fill(&file, 0, 2).await;
        store.sync_all().await.unwrap();
        // The image arrives, and nobody here hears of it.
        rig.remote.always(Some(Call::Put), None, Fault::HangAfter);
        let before = packs(&rig);
        let _asked = store
            .checkpoint(CheckpointOptions::new())
            .within(Duration::from_secs(1));
        let _late = _asked.await.unwrap_err();
        let orphans: Vec<String> = packs(&rig)
            .into_iter()
            .filter(|key| !before.contains(key))
            .collect();
        assert_eq!(orphans.len(), 1);
        match torn {
            false => rig.fs.kill(),
            true => rig.fs.crash(5),
        }
        rig.remote.heal();
        drop((store, file));
        let store = reborn(&rig, 9).open().await;
        assert_eq!(byte_of(&store, 0).await, 2);
        store.gc().await.unwrap();
        assert!(!packs(&rig).contains(&orphans[0]), "{:?}", packs(&rig));
        checkpoint(&store).await;
        store.gc().await.unwrap();
        assert_whole(&rig).await;
        let restored = rig.restored(Restore::latest()).await;
        assert_eq!(byte_of(&restored, 0).await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_that_failed_has_written_goes_with_the_look_after_the_next_one() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    store.gc().await.unwrap();
    // Its images and pages go through; its manifest and head do not.
    let refusal = RemoteError::permanent("PutObject", 400, "InvalidArgument");
    fill(&file, 0, 2).await;
    rig.remote
        .always(Some(Call::Put), Some("head"), Fault::Error(refusal));
    let error = store.checkpoint(CheckpointOptions::new()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Remote(_)), "{error}");
    rig.remote.heal();
    let littered = objects(&rig.remote);
    let manifest = "checkpoints/0000000000000002-0000000000000001";
    assert!(littered.contains_key(manifest), "{:?}", littered.keys());
    let next = checkpoint(&store).await.number;
    assert_eq!(next, 3);
    store.gc().await.unwrap();
    assert!(!objects(&rig.remote).contains_key(manifest));
    // Head; two manifests, their pages, and the two images that the part had.
    assert_eq!(objects(&rig.remote).len(), 7, "{:?}", rig.remote.keys());
    assert_eq!(assert_whole(&rig).await, [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn what_was_replaced_before_any_checkpoint_had_it_goes() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    let before = packs(&rig).len();
    for byte in 2..20 {
        fill(&file, 0, byte).await;
        uploaded(&store).await;
    }
    assert_eq!(packs(&rig).len(), before + 18);
    let report = store.gc().await.unwrap();
    assert_eq!(report.deleted, 17);
    assert!(report.deleted_bytes > 17 * PART as u64);
    assert_eq!(byte_of(&store, 0).await, 19);
    assert_whole(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_on_its_way_is_not_garbage_when_it_arrives() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    // It is in S3, and nobody here hears of it before it is sent again.
    rig.remote.once(Some(Call::Put), None, Fault::HangAfter);
    let made = {
        let store = store.clone();
        crate::support::spawn(async move { store.checkpoint(CheckpointOptions::new()).await })
    };
    let before = packs(&rig).len();
    while packs(&rig).len() == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let report = store.gc().await.unwrap();
    assert_eq!(report.deleted, 0, "{report:?}");
    assert!(!made.is_finished());
    made.await.unwrap().unwrap();
    assert_eq!(assert_whole(&rig).await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn uploads_in_parts_that_were_not_finished_are_aborted_and_those_of_others_are_not() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let begin = async |key: &str| {
        let request = CreateMultipart {
            key: key.to_owned(),
            headers: ObjectHeaders::default(),
            write_id: None,
        };
        rig.remote.create_multipart(request).await.unwrap();
    };
    // One of ours that a crash left; one under a key that is no pack's; one of our next life.
    let ours = packs(&rig).pop().unwrap();
    let orphan = orphan_of(&ours, 0xff);
    begin(&orphan).await;
    begin("log/1").await;
    let store = reborn(&rig, 9).open().await;
    let next = name_of(2, 0x7000_0000);
    begin(&next).await;
    assert_eq!(rig.remote.unfinished(), 3);
    let report = store.gc().await.unwrap();
    assert_eq!(report.aborted_uploads, 1, "{report:?}");
    let left = rig.remote.list_multipart(&orphan).await.unwrap();
    assert!(left.is_empty());
    assert_eq!(rig.remote.unfinished(), 2);
    assert_eq!(byte_of(&store, 0).await, 1);
}

/// The key of another sequence of the same epoch.
fn orphan_of(key: &str, sequence: u32) -> String {
    let name = key.rsplit('/').next().unwrap();
    let (epoch, _) = name.split_once('-').unwrap();
    name_of(u64::from_str_radix(epoch, 16).unwrap(), sequence)
}

fn name_of(epoch: u64, sequence: u32) -> String {
    let object = format!("{epoch:016x}-{sequence:08x}");
    let hash = crc32c(object.as_bytes()) >> 16;
    format!("packs/{hash:04x}/{object}")
}

/// Castagnoli's, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let odd = crc & 1 == 1;
            crc >>= 1;
            if odd {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[tokio::test(start_paused = true)]
async fn an_image_of_a_line_that_is_open_is_kept_though_its_part_has_another_by_now() {
    let mut rig = StoreRig::owner(64);
    rig.config.pack_bytes = PART as u64;
    rig.config.max_dirty_age = Duration::from_millis(100);
    let (store, file) = founded(&rig, 1).await;
    for index in 0..5 {
        fill(&file, index, 2).await;
    }
    // All that the line needs is there but for the last of its images.
    let gate = Arc::new(Notify::new());
    let at_once = Fault::Delay(Duration::ZERO);
    rig.remote.times(4, Some(Call::Put), None, at_once);
    rig.remote
        .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&gate)));
    let puts = rig.remote.count(Call::Put, "packs/");
    let made = {
        let store = store.clone();
        crate::support::spawn(async move { store.checkpoint(CheckpointOptions::new()).await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "packs/") >= puts + 5)
        .await;
    for index in 0..5 {
        fill(&file, index, 3).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.remote.count(Call::Put, "packs/") > puts + 8);
    store.gc().await.unwrap();
    rig.prefix().collect_garbage().await.unwrap();
    assert!(!made.is_finished());
    gate.notify_one();
    let number = made.await.unwrap().unwrap().number;
    assert_eq!(assert_whole(&rig).await, [1, number]);
    let restored = rig.restored(Restore::number(number)).await;
    for index in 0..5 {
        assert_eq!(byte_of(&restored, index).await, 2);
        assert_eq!(byte_of(&store, index).await, 3);
    }
}

/// Without fencing an epoch begins with the first pack.
#[tokio::test(start_paused = true)]
async fn a_pack_of_an_epoch_that_began_during_the_look_is_kept() {
    let rig = StoreRig::with(16, |config| {
        config.max_dirty_age = Duration::from_millis(10);
    });
    let store = rig.open().await;
    let file = store.create(FILE, PARTS_OF).await.unwrap();
    // Held up when it has read what the headers name.
    let gate = Arc::new(Notify::new());
    let held = Fault::Gate(Arc::clone(&gate));
    rig.remote.once(Some(Call::List), Some("pins/"), held);
    let looks = {
        let store = store.clone();
        crate::support::spawn(async move { store.gc().await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::List, "pins/") == 1)
        .await;
    assert_eq!(packs(&rig).len(), 0);
    fill(&file, 0, 1).await;
    uploaded(&store).await;
    let named = packs(&rig);
    assert_eq!(named.len(), 1);
    gate.notify_one();
    let report = looks.await.unwrap().unwrap();
    assert_eq!(packs(&rig), named, "{report:?}");
    assert_eq!((report.deleted, report.spared), (0, 1), "{report:?}");
}
