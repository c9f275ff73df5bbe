//! Directories that are opened again after somebody else had the prefix.

use std::time::Duration;

use s3_writeback::{Error, PartStore, Restore, StoreBuilder};

use crate::owners::{
    a_look_at_head, byte_of, founded, is_fenced, objects, reborn, taken_over, the_file,
};
use crate::support::{StoreRig, checkpoint, fill};

#[tokio::test(start_paused = true)]
async fn e2_a_directory_that_others_have_gone_on_from_is_refused_and_nothing_is_changed() {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 100;
    let (store, file) = founded(&rig, 1).await;
    for byte in 2..=10 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
    }
    store.shutdown().await.unwrap();
    drop((store, file));
    let (_there, theirs) = taken_over(&rig, 8).await;
    for byte in 11..=20 {
        fill(&the_file(&theirs), 0, byte).await;
        checkpoint(&theirs).await;
    }
    let before = objects(&rig.remote);
    for take_over in [false, true] {
        let again = reborn(&rig, 9);
        let opened = again.open_as(|as_is| match take_over {
            false => as_is,
            true => as_is.take_over(),
        });
        let error = opened.await.unwrap_err();
        let diverged = matches!(&error, Error::Diverged { ours: Some(ours), theirs: Some(theirs) }
            if (ours.number, theirs.number) == (10, 20));
        assert!(diverged, "{error}");
        assert_eq!(objects(&rig.remote), before);
    }
    assert!(theirs.check_fenced().is_ok());
    assert_eq!(checkpoint(&theirs).await.number, 21);
    // What is in it is what was.
    let stranded = rig.open_as(StoreBuilder::stranded).await.unwrap();
    assert_eq!(byte_of(&stranded, 0).await, 10);
    let restored = rig.restored(Restore::number(20)).await;
    assert_eq!(byte_of(&restored, 0).await, 20);
}

#[tokio::test(start_paused = true)]
async fn e2_two_supervisors_do_not_fence_each_other_for_ever() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    let (there, theirs) = taken_over(&rig, 8).await;
    a_look_at_head().await;
    assert!(is_fenced(&ours.check_fenced().unwrap_err()));
    ours.shutdown().await.unwrap();
    drop((ours, file));
    // Ours is started again and again, theirs now and then.
    let mut theirs = Some(theirs);
    for round in 0..10_u8 {
        let error = reborn(&rig, 100).open_as(|as_is| as_is).await.unwrap_err();
        assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        if round % 3 == 2 {
            let old = theirs.take().unwrap();
            assert!(old.check_fenced().is_ok(), "round {round}");
            old.shutdown().await.unwrap();
            drop(old);
            let seed = u64::from(round) + 200;
            theirs = Some(reborn(&there, seed).open().await);
        }
    }
    let theirs = theirs.unwrap();
    // Its own restarts, and nothing else.
    assert_eq!(theirs.checkpoint_snapshot().epoch, Some(5));
    fill(&the_file(&theirs), 0, 9).await;
    checkpoint(&theirs).await;
    let error = reborn(&rig, 101).open_as(|as_is| as_is).await.unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn e2_a_fenced_store_that_stays_open_does_not_claim_again() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    let (_there, theirs) = taken_over(&rig, 8).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(is_fenced(&ours.check_fenced().unwrap_err()));
    assert!(is_fenced(&file.write_at(&[9], 0).await.unwrap_err()));
    assert!(theirs.check_fenced().is_ok());
    assert_eq!(theirs.checkpoint_snapshot().epoch, Some(2));
}

/// A directory in which more was acknowledged than was committed when it was closed; and a store of
/// whoever took its prefix over.
async fn left_and_taken_over() -> (StoreRig, PartStore) {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    fill(&file, 1, 2).await;
    ours.shutdown().await.unwrap();
    drop((ours, file));
    let (_there, theirs) = taken_over(&rig, 8).await;
    (rig, theirs)
}

#[tokio::test(start_paused = true)]
async fn e40_whoever_comes_back_before_the_other_has_committed_is_asked_and_the_other_goes_on() {
    let (rig, theirs) = left_and_taken_over().await;
    let before = objects(&rig.remote);
    let error = reborn(&rig, 9).open_as(|as_is| as_is).await.unwrap_err();
    let needs = matches!(&error, Error::TakeOverNeeded { held: Some(1), found: 2, owner }
        if !owner.is_empty());
    assert!(needs, "{error}");
    assert_eq!(objects(&rig.remote), before);
    a_look_at_head().await;
    assert!(theirs.check_fenced().is_ok());
    fill(&the_file(&theirs), 0, 3).await;
    assert_eq!(checkpoint(&theirs).await.number, 2);
}

#[tokio::test(start_paused = true)]
async fn e40_whoever_says_so_has_it_back_with_all_that_was_acknowledged() {
    let (rig, theirs) = left_and_taken_over().await;
    fill(&the_file(&theirs), 0, 3).await;
    let ours = reborn(&rig, 9).open_as(StoreBuilder::take_over).await;
    let ours = ours.unwrap();
    assert_eq!(ours.checkpoint_snapshot().epoch, Some(3));
    assert_eq!((byte_of(&ours, 0).await, byte_of(&ours, 1).await), (1, 2));
    a_look_at_head().await;
    assert!(is_fenced(&theirs.check_fenced().unwrap_err()));
    assert_eq!(checkpoint(&ours).await.number, 2);
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 1).await, 2);
}

#[tokio::test(start_paused = true)]
async fn e40_a_directory_that_was_fenced_remembers_it_though_head_says_its_own_epoch() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    let old = rig.remote.object("head").unwrap();
    let (_there, theirs) = taken_over(&rig, 8).await;
    a_look_at_head().await;
    assert!(is_fenced(&ours.check_fenced().unwrap_err()));
    rig.fs.kill();
    drop((ours, file, theirs));
    // A bucket that was put back to an older state.
    rig.remote.plant("head", old);
    let error = reborn(&rig, 9).open_as(|as_is| as_is).await.unwrap_err();
    assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error}");
    let ours = reborn(&rig, 10).open_as(StoreBuilder::take_over).await;
    assert_eq!(byte_of(&ours.unwrap(), 0).await, 1);
}
