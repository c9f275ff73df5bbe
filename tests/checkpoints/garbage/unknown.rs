//! E31: a commit of which nobody knows whether it was made.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, File, PartStore, Restore};

use crate::owners::{
    a_look_at_head, assert_whole, byte_of, founded, latest, reborn, taken_over, the_file,
};
use crate::support::{StoreRig, checkpoint, fill, uploaded};

/// A store whose second checkpoint is unknown: its change of `head` is on its way for as long as
/// the server takes.
async fn unknown() -> (StoreRig, PartStore, File) {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 2;
    rig.config.checkpoint_within = Duration::from_secs(30);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    rig.remote
        .always(Some(Call::Put), Some("head"), Fault::Late);
    let error = store.checkpoint(CheckpointOptions::new()).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, Error::CheckpointUnknown { number: 2, .. }),
        "{error}"
    );
    (rig, store, file)
}

/// Everything that the second checkpoint names is written over, and garbage looked for.
async fn move_on(rig: &StoreRig, store: &PartStore, file: &File) {
    fill(file, 0, 3).await;
    uploaded(store).await;
    let error = store.gc().await.unwrap_err();
    assert!(
        matches!(error, Error::CheckpointUnknown { number: 2, .. }),
        "{error}"
    );
    rig.prefix().collect_garbage().await.unwrap();
    let error = store.checkpoint(CheckpointOptions::new()).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, Error::CheckpointUnknown { number: 2, .. }),
        "no other before: {error}"
    );
}

#[tokio::test(start_paused = true)]
async fn e31_a_commit_that_lands_late_is_whole_though_garbage_was_looked_for() {
    let (rig, store, file) = unknown().await;
    move_on(&rig, &store, &file).await;
    // One of its requests lands, the others do not any more.
    let landed = rig.remote.land_late();
    assert_eq!(landed.iter().filter(|landed| **landed).count(), 1);
    assert_eq!(assert_whole(&rig).await, [1, 2]);
    let restored = rig.restored(Restore::number(2)).await;
    assert_eq!(byte_of(&restored, 0).await, 2);
    rig.remote.heal();
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [1, 2]);
    assert_eq!(checkpoint(&store).await.number, 3);
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [2, 3]);
    for (number, byte) in [(2, 2), (3, 3)] {
        let restored = rig.restored(Restore::number(number)).await;
        assert_eq!(byte_of(&restored, 0).await, byte);
    }
    a_look_at_head().await;
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn e31_a_commit_that_did_not_land_is_made_when_s3_is_back_and_nothing_lands_later() {
    let (rig, store, file) = unknown().await;
    move_on(&rig, &store, &file).await;
    rig.remote.heal();
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [1, 2]);
    assert!(rig.remote.land_late().iter().all(|landed| !landed));
    assert_eq!(checkpoint(&store).await.number, 3);
    let restored = rig.restored(Restore::number(2)).await;
    assert_eq!(byte_of(&restored, 0).await, 2);
}

#[tokio::test(start_paused = true)]
async fn e31_a_commit_that_was_on_its_way_at_a_crash_is_whole_or_was_never_there() {
    for (lands, torn) in [(false, false), (false, true), (true, false), (true, true)] {
        let (rig, store, file) = unknown().await;
        fill(&file, 0, 3).await;
        uploaded(&store).await;
        store.sync_all().await.unwrap();
        match torn {
            false => rig.fs.kill(),
            true => rig.fs.crash(4),
        }
        drop((store, file));
        rig.remote.heal();
        if lands {
            rig.remote.land_late();
        }
        let store = reborn(&rig, 9).open().await;
        store.gc().await.unwrap();
        let expected: &[u64] = if lands { &[1, 2] } else { &[1] };
        assert_eq!(assert_whole(&rig).await, expected);
        // The claim came first.
        assert!(rig.remote.land_late().iter().all(|landed| !landed));
        assert_eq!(assert_whole(&rig).await, expected);
        assert_eq!(byte_of(&store, 0).await, 3);
        let next = checkpoint(&store).await.number;
        store.gc().await.unwrap();
        assert_eq!(assert_whole(&rig).await.last(), Some(&next));
        let restored = rig.restored(Restore::latest()).await;
        assert_eq!(byte_of(&restored, 0).await, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn e31_a_commit_that_is_unknown_when_another_claims_was_never_there() {
    let (rig, store, file) = unknown().await;
    rig.remote.heal();
    let (_there, theirs) = taken_over(&rig, 8).await;
    assert_eq!(byte_of(&theirs, 0).await, 1);
    fill(&the_file(&theirs), 0, 9).await;
    assert_eq!(checkpoint(&theirs).await.number, 2);
    theirs.gc().await.unwrap();
    assert!(rig.remote.land_late().iter().all(|landed| !landed));
    a_look_at_head().await;
    let error = file.write_at(&[1], 0).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    let error = store.gc().await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(assert_whole(&rig).await, [1, 2]);
    assert_eq!(latest(&rig).await, Some(2));
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 0).await, 9);
    assert_eq!(byte_of(&store, 0).await, 2);
}

#[tokio::test(start_paused = true)]
async fn e31_a_retirement_that_is_unknown_deletes_nothing_until_it_is_known() {
    let mut rig = StoreRig::owner(16);
    rig.config.checkpoint_within = Duration::from_secs(30);
    let (store, file) = founded(&rig, 1).await;
    for byte in 2..5 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
    }
    store.shutdown().await.unwrap();
    drop((store, file));
    let mut fewer = reborn(&rig, 9);
    fewer.config.retain_checkpoints = 1;
    let store = fewer.open().await;
    rig.remote
        .always(Some(Call::Put), Some("head"), Fault::Late);
    for _ in 0..2 {
        let error = store.gc().await.unwrap_err();
        assert!(matches!(error, Error::Remote(_)), "{error}");
        assert_eq!(assert_whole(&rig).await, [1, 2, 3, 4]);
    }
    rig.remote.land_late();
    rig.remote.heal();
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [4]);
    let refusal = RemoteError::transient("PutObject");
    rig.remote
        .once(Some(Call::Put), Some("head"), Fault::Error(refusal));
    fill(&the_file(&store), 0, 5).await;
    assert_eq!(checkpoint(&store).await.number, 5);
}
