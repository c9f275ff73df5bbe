//! E22: an owner that S3 does not answer.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{Call as FsCall, ENOSPC, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, PartStore, Restore, StoreBuilder};
use tokio::time::Instant;

use crate::owners::{
    a_look_at_head, byte_of, founded, is_fenced, latest, objects, open_by, other, reborn,
    restored_elsewhere, the_file,
};
use crate::support::{PART, StoreRig, checkpoint, fill, spawn, submit};
use crate::wire::Wire;

const LOOK: Duration = Duration::from_secs(10);

/// How long it takes until a store knows that it is fenced.
async fn fenced_after(store: &PartStore) -> Duration {
    let from = Instant::now();
    while store.check_fenced().is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(from.elapsed() < Duration::from_secs(3600), "never");
    }
    from.elapsed()
}

#[tokio::test(start_paused = true)]
async fn e22_a_restart_during_an_outage_opens_takes_writes_and_claims_when_it_is_over() {
    let mut rig = StoreRig::owner(16);
    rig.config.checkpoint_within = Duration::from_secs(20);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let before = objects(&rig.remote);
    let wire = Wire::to(&rig.remote);
    wire.cut(true);
    let store = open_by(&reborn(&rig, 9), &wire, |as_is| as_is).await;
    let store = store.unwrap();
    assert_eq!(store.checkpoint_snapshot().epoch, None);
    fill(&the_file(&store), 1, 2).await;
    store.sync_all().await.unwrap();
    assert_eq!(byte_of(&store, 1).await, 2);
    let error = store.checkpoint(CheckpointOptions::new());
    let error = error.within(Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(error, Error::Unclaimed), "{error}");
    let error = store.gc().await.unwrap_err();
    assert!(matches!(error, Error::Unclaimed), "{error}");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    // It comes back before anything was claimed: nothing is sent without that.
    assert_eq!(objects(&rig.remote), before);
    wire.cut(false);
    tokio::time::sleep(LOOK).await;
    assert_eq!(store.checkpoint_snapshot().epoch, Some(2));
    assert_eq!(checkpoint(&store).await.number, 2);
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 1).await, 2);
}

#[tokio::test(start_paused = true)]
async fn e22_whoever_is_fenced_during_an_outage_stops_soon_after_it_and_loses_nothing() {
    for (seed, commits) in (20..40).map(|seed| (seed, seed % 2 == 0)) {
        let rig = StoreRig::owner(16);
        let (store, file) = founded(&rig, 1).await;
        store.shutdown().await.unwrap();
        drop((store, file));
        let wire = Wire::to(&rig.remote);
        wire.cut(true);
        let ours = reborn(&rig, seed);
        let store = open_by(&ours, &wire, |as_is| as_is).await.unwrap();
        fill(&the_file(&store), 1, 2).await;
        let there = restored_elsewhere(&rig, 8).await;
        let theirs = there.open_as(StoreBuilder::take_over).await.unwrap();
        fill(&the_file(&theirs), 0, 3).await;
        if commits {
            checkpoint(&theirs).await;
        }
        tokio::time::sleep(Duration::from_secs(1000 + seed * 7)).await;
        fill(&the_file(&store), 2, 4).await;
        let before = objects(&rig.remote);
        wire.cut(false);
        let took = fenced_after(&store).await;
        assert!(took <= LOOK, "{took:?} with seed {seed}");
        let error = store.check_fenced().unwrap_err();
        match commits {
            true => assert!(matches!(error, Error::Diverged { .. }), "{error}"),
            false => assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error}"),
        }
        let write = the_file(&store).write_at(&[1], 0).await.unwrap_err();
        assert_eq!(write.to_string(), error.to_string());
        assert_eq!(objects(&rig.remote), before);
        let report = store.shutdown().await.unwrap();
        assert!(report.stranded >= 2, "{report:?}");
        drop(store);
        // With S3 or without.
        wire.cut(true);
        let stranded = open_by(&reborn(&ours, 90), &wire, StoreBuilder::stranded).await;
        let stranded = stranded.unwrap();
        assert_eq!(byte_of(&stranded, 1).await, 2);
        assert_eq!(byte_of(&stranded, 2).await, 4);
        let error = the_file(&stranded).write_at(&[1], 0).await.unwrap_err();
        assert!(matches!(error, Error::Stranded), "{error}");
        let error = stranded.checkpoint(CheckpointOptions::new()).await;
        assert!(error.is_err());
        assert!(theirs.check_fenced().is_ok());
        assert_eq!(objects(&rig.remote), before);
    }
}

#[tokio::test(start_paused = true)]
async fn e22_an_owner_that_goes_on_through_an_outage_stops_soon_after_it_too() {
    for seed in 30..60 {
        let mut rig = StoreRig::owner(16);
        rig.config.queue.seed = Some(seed);
        let wire = Wire::to(&rig.remote);
        let store = open_by(&rig, &wire, |as_is| as_is).await.unwrap();
        let file = store.create(crate::owners::FILE, crate::support::PARTS_OF);
        let file = file.await.unwrap();
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        wire.cut(true);
        let there = restored_elsewhere(&rig, 8).await;
        let theirs = there.open_as(StoreBuilder::take_over).await.unwrap();
        tokio::time::sleep(Duration::from_secs(500 + seed)).await;
        fill(&file, 1, 2).await;
        assert!(store.check_fenced().is_ok());
        wire.cut(false);
        let took = fenced_after(&store).await;
        assert!(took <= LOOK, "{took:?} with seed {seed}");
        assert!(is_fenced(&store.check_fenced().unwrap_err()));
        assert!(theirs.check_fenced().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn e22_a_directory_that_never_owned_the_prefix_does_not_open_without_s3() {
    let rig = StoreRig::owner(16);
    founded(&rig, 1).await.0.shutdown().await.unwrap();
    let there = restored_elsewhere(&rig, 8).await;
    for (rig, take_over) in [(&there, true), (&other(&rig, 9), false)] {
        let wire = Wire::to(&rig.remote);
        wire.cut(true);
        let opened = open_by(rig, &wire, |as_is| match take_over {
            true => as_is.take_over(),
            false => as_is,
        });
        let error = opened.await.unwrap_err();
        assert!(matches!(error, Error::Remote(_)), "{error}");
    }
    // And is what it was.
    let store = there.open_as(StoreBuilder::take_over).await.unwrap();
    assert_eq!(byte_of(&store, 0).await, 1);
    assert_eq!(store.checkpoint_snapshot().epoch, Some(2));
}

#[tokio::test(start_paused = true)]
async fn e22_a_take_over_that_waits_for_s3_is_no_leave_to_take_over_from_whoever_comes_later() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let wire = Wire::to(&rig.remote);
    let ours = reborn(&rig, 9);
    let store = open_by(&ours, &wire, StoreBuilder::take_over)
        .await
        .unwrap();
    assert_eq!(store.checkpoint_snapshot().epoch, Some(2));
    wire.cut(true);
    let there = restored_elsewhere(&rig, 8).await;
    let theirs = there.open_as(StoreBuilder::take_over).await.unwrap();
    wire.cut(false);
    a_look_at_head().await;
    a_look_at_head().await;
    assert!(is_fenced(&store.check_fenced().unwrap_err()));
    assert!(theirs.check_fenced().is_ok());
    assert_eq!(latest(&rig).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn e22_nothing_is_sent_before_the_prefix_is_claimed_though_s3_would_take_it() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let before = objects(&rig.remote);
    // All but the claim itself would get through.
    let refusal = RemoteError::transient("PutObject");
    rig.remote
        .always(Some(Call::Put), Some("head"), Fault::Error(refusal));
    let store = reborn(&rig, 9).open().await;
    assert_eq!(store.checkpoint_snapshot().epoch, None);
    fill(&the_file(&store), 1, 2).await;
    let receipt = submit(store.queue(), "log/1", "1").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(objects(&rig.remote), before);
    rig.remote.heal();
    tokio::time::sleep(LOOK).await;
    receipt.uploaded().await.unwrap();
    assert_eq!(checkpoint(&store).await.number, 2);
}

/// Found by seed 4162 of the simulation: each probe was a request whose asker had given up while it
/// waited to be the probe, so that nothing was ever heard, and nothing ever claimed.
#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_the_probe() {
    for code in ["AccessDenied", "XMinioStorageFull"] {
        let rig = StoreRig::owner(16);
        let (store, file) = founded(&rig, 1).await;
        store.shutdown().await.unwrap();
        drop((store, file));
        let refusal = RemoteError::environment("PutObject", 403, code);
        let way = Duration::from_millis(10);
        rig.remote
            .always(Some(Call::Put), None, Fault::ErrorAfter(way, refusal));
        let store = reborn(&rig, 9).open().await;
        fill(&the_file(&store), 1, 2).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(store.checkpoint_snapshot().epoch, None);
        rig.remote.heal();
        rig.remote.always(Some(Call::Put), None, Fault::Delay(way));
        tokio::time::sleep(rig.config.queue.probe_interval + LOOK).await;
        assert_eq!(store.checkpoint_snapshot().epoch, Some(2), "{code}");
        assert_eq!(checkpoint(&store).await.number, 2);
    }
}

/// Found by seed 3462 of the simulation: on a full disk it waited for all of its deadline, ten
/// minutes, for what it has to know to be on record.
#[tokio::test(start_paused = true)]
async fn who_looks_for_garbage_on_a_full_disk_is_told_that_the_store_is_fenced() {
    let rig = StoreRig::owner(8);
    let (store, file) = founded(&rig, 1).await;
    let there = restored_elsewhere(&rig, 8).await;
    rig.fs.fail(FsFault {
        call: Some(FsCall::Write),
        after: 0,
        errno: ENOSPC,
        forever: true,
    });
    let writes = spawn(async move { file.write_at(&[2; PART], 0).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let looks = store.clone();
    let collected = spawn(async move { looks.gc().await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!collected.is_finished(), "the disk is waited for");
    let theirs = there.open_as(StoreBuilder::take_over).await;
    let theirs = theirs.expect("takes over");
    a_look_at_head().await;
    let told = tokio::time::timeout(Duration::from_secs(1), collected).await;
    let error = told.expect("is told").unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    drop((writes, theirs));
}

/// Found by seed 7436 of the simulation: it waited for all of its deadline, ten minutes, for a claim
/// that could not be made any more.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_claim_is_told_that_somebody_else_has_made_one() {
    let rig = StoreRig::owner(8);
    let (store, file) = founded(&rig, 1).await;
    store.shutdown().await.unwrap();
    drop((store, file));
    let there = restored_elsewhere(&rig, 8).await;
    let wire = Wire::to(&rig.remote);
    wire.cut(true);
    let store = open_by(&reborn(&rig, 9), &wire, |as_is| as_is).await;
    let store = store.unwrap();
    fill(&the_file(&store), 0, 2).await;
    let asks = store.clone();
    let made = spawn(async move { asks.checkpoint(CheckpointOptions::new()).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!made.is_finished(), "it waits for S3");
    let theirs = there.open_as(StoreBuilder::take_over).await;
    let theirs = theirs.expect("takes over");
    wire.cut(false);
    fenced_after(&store).await;
    let told = tokio::time::timeout(Duration::from_secs(1), made).await;
    let error = told.expect("is told").unwrap().unwrap_err();
    let told = matches!(error, Error::Fenced { .. } | Error::TakeOverNeeded { .. });
    assert!(told, "{error:?}");
    drop(theirs);
}
