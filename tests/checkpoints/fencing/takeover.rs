//! Two who want one prefix at the same time.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, Restore, StoreBuilder};
use tokio::sync::Notify;

use crate::owners::{
    FILE, a_look_at_head, byte_of, founded, is_fenced, latest, objects, other, reborn,
    restored_elsewhere, taken_over, the_file,
};
use crate::support::{PARTS_OF, StoreRig, checkpoint, fill, spawn};

const SLOW: Duration = Duration::from_millis(20);

#[tokio::test(start_paused = true)]
async fn a16_of_many_who_race_for_an_empty_prefix_one_has_it_and_the_others_are_told_who() {
    let rig = StoreRig::owner(16);
    // All of them have looked before the first of them has it.
    let head = Some("head");
    rig.remote.always(Some(Call::Put), head, Fault::Delay(SLOW));
    let rigs: Vec<StoreRig> = (0..5).map(|seed| other(&rig, seed)).collect();
    let opened = join_all(rigs.iter().map(|rig| rig.open_as(|as_is| as_is))).await;
    let mut owners = 0;
    for opened in opened {
        match opened {
            Ok(store) => {
                owners += 1;
                let file = store.create(FILE, PARTS_OF).await.unwrap();
                fill(&file, 0, 7).await;
                assert_eq!(checkpoint(&store).await.number, 1);
            }
            Err(Error::TakeOverNeeded { held, found, .. }) => assert_eq!((held, found), (None, 1)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(owners, 1);
    let first = rig.remote.seen().into_iter().find(|s| s.key == "head");
    assert!(first.is_some());
}

#[tokio::test(start_paused = true)]
async fn a16_of_many_who_take_over_at_once_each_has_an_epoch_of_its_own_and_the_last_stays() {
    let rig = StoreRig::owner(16);
    founded(&rig, 1).await.0.shutdown().await.unwrap();
    let mut rigs = Vec::new();
    for seed in 0..4 {
        rigs.push(restored_elsewhere(&rig, seed).await);
    }
    let head = Some("head");
    rig.remote.always(Some(Call::Put), head, Fault::Delay(SLOW));
    let stores = join_all(rigs.iter().map(|rig| rig.open_as(StoreBuilder::take_over))).await;
    let stores: Vec<_> = stores.into_iter().map(|store| store.unwrap()).collect();
    let epoch = |store: &s3_writeback::PartStore| store.checkpoint_snapshot().epoch.unwrap();
    let mut epochs: Vec<u64> = stores.iter().map(epoch).collect();
    let last = *epochs.iter().max().unwrap();
    a_look_at_head().await;
    for store in &stores {
        let fenced = store.check_fenced();
        assert_eq!(fenced.is_ok(), epoch(store) == last, "{fenced:?}");
    }
    epochs.sort_unstable();
    assert_eq!(epochs, [2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a16_of_a_directory_and_its_clone_one_goes_on() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let mut clone = reborn(&rig, 11);
    clone.fs = rig.fs.copy_of();
    let head = Some("head");
    rig.remote.always(Some(Call::Put), head, Fault::Delay(SLOW));
    let both = [&rig, &clone].map(|rig| rig.open_as(|as_is| as_is));
    let mut opened = join_all(both).await;
    let lost = opened.iter().filter(|opened| opened.is_err()).count();
    assert_eq!(lost, 1, "{opened:?}");
    opened.sort_by_key(Result::is_err);
    let store = opened.remove(0).unwrap();
    let error = opened.remove(0).unwrap_err();
    let needs = matches!(
        error,
        Error::TakeOverNeeded {
            held: Some(1),
            found: 2,
            ..
        }
    );
    assert!(needs, "{error}");
    // The clone of one that is running is no better.
    rig.remote.heal();
    let mut clone = reborn(&rig, 12);
    clone.fs = rig.fs.copy_of();
    fill(&the_file(&store), 0, 2).await;
    checkpoint(&store).await;
    let error = clone.open_as(StoreBuilder::take_over).await.unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a16_whoever_crashed_without_a_word_is_let_in_again_and_another_is_not() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 1, 2).await;
    store.sync_all().await.unwrap();
    rig.fs.kill();
    drop((store, file));
    let stranger = restored_elsewhere(&rig, 8).await;
    let error = stranger.open_as(|as_is| as_is).await.unwrap_err();
    assert!(
        matches!(error, Error::TakeOverNeeded { held: None, .. }),
        "{error}"
    );
    let store = reborn(&rig, 9).open().await;
    assert_eq!(store.checkpoint_snapshot().epoch, Some(2));
    assert_eq!(byte_of(&store, 1).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a16_whoever_is_fenced_changes_nothing_when_it_goes() {
    let mut rig = StoreRig::owner(16);
    rig.config.checkpoint_at_shutdown = true;
    let (ours, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    let (_there, theirs) = taken_over(&rig, 8).await;
    checkpoint(&theirs).await;
    a_look_at_head().await;
    let before = objects(&rig.remote);
    let report = ours.shutdown().await.unwrap();
    assert_eq!((report.checkpoint, report.stranded), (None, 1));
    assert_eq!(report.checkpoint_error, None, "there was none to make");
    assert!(report.sealed);
    assert_eq!(objects(&rig.remote), before);
    assert!(theirs.check_fenced().is_ok());
    assert_eq!(checkpoint(&theirs).await.number, 3);
}

#[tokio::test(start_paused = true)]
async fn e1_a_late_commit_of_a_fenced_owner_is_fenced() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    rig.remote.once(Some(Call::Put), Some("head"), Fault::Late);
    let puts = rig.remote.count(Call::Put, "head");
    let late = {
        let ours = ours.clone();
        spawn(async move { ours.checkpoint(CheckpointOptions::new()).await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "head") > puts)
        .await;
    let (_there, theirs) = taken_over(&rig, 8).await;
    fill(&the_file(&theirs), 0, 3).await;
    assert_eq!(checkpoint(&theirs).await.number, 2);
    // Now it arrives.
    assert_eq!(rig.remote.land_late(), [false]);
    let error = late.await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    let error = file.write_at(&[9], 0).await.unwrap_err();
    assert!(is_fenced(&error), "{error}");
    // What is acknowledged is there, for its owner to read.
    assert_eq!(byte_of(&ours, 0).await, 2);
    assert!(theirs.check_fenced().is_ok());
    fill(&the_file(&theirs), 1, 4).await;
    assert_eq!(checkpoint(&theirs).await.number, 3);
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 0).await, 3);
    assert_eq!(byte_of(&restored, 1).await, 4);
}

#[tokio::test(start_paused = true)]
async fn e1_a_commit_that_comes_before_the_claim_stays_and_the_claim_is_no_more() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    let there = restored_elsewhere(&rig, 8).await;
    // The claim has looked, and is on the wire.
    let gate = Arc::new(Notify::new());
    rig.remote.once(
        Some(Call::Put),
        Some("head"),
        Fault::Gate(Arc::clone(&gate)),
    );
    let puts = rig.remote.count(Call::Put, "head");
    let claim = spawn(async move { there.open_as(StoreBuilder::take_over).await });
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "head") > puts)
        .await;
    assert_eq!(checkpoint(&ours).await.number, 2);
    gate.notify_one();
    let error = claim.await.unwrap().unwrap_err();
    let diverged = matches!(&error, Error::Diverged { ours: Some(ours), theirs: Some(theirs) }
        if (ours.number, theirs.number) == (1, 2));
    assert!(diverged, "{error}");
    a_look_at_head().await;
    assert!(ours.check_fenced().is_ok());
    fill(&file, 0, 3).await;
    assert_eq!(checkpoint(&ours).await.number, 3);
}

#[tokio::test(start_paused = true)]
async fn e1_images_and_a_manifest_that_arrive_late_are_read_by_nobody() {
    let rig = StoreRig::owner(16);
    let (ours, file) = founded(&rig, 1).await;
    for index in 0..4 {
        fill(&file, index, 2).await;
    }
    // Whatever is sent from here on arrives when nobody waits for it any more.
    rig.remote.always(Some(Call::Put), None, Fault::Late);
    let puts = rig.remote.count(Call::Put, "packs/");
    let late = {
        let ours = ours.clone();
        spawn(async move { ours.checkpoint(CheckpointOptions::new()).await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "packs/") > puts)
        .await;
    rig.remote.heal();
    let (_there, theirs) = taken_over(&rig, 8).await;
    fill(&the_file(&theirs), 0, 3).await;
    checkpoint(&theirs).await;
    a_look_at_head().await;
    let error = late.await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    let head = rig.remote.object("head");
    let before = objects(&rig.remote);
    assert!(rig.remote.land_late().contains(&true), "a pack, for one");
    assert_eq!(rig.remote.object("head"), head);
    let after = objects(&rig.remote);
    for (key, body) in &before {
        assert_eq!(after.get(key), Some(body), "{key} is another");
    }
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 0).await, 3);
    assert_eq!(latest(&rig).await, Some(2));
    assert!(theirs.check_fenced().is_ok());
}
