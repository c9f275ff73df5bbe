//! E13, E32: whoever looks for garbage may have lost the right to, or never had it.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::testing::remote::Fault;
use s3_writeback::time::WallClock;
use s3_writeback::{Error, GcReport, PartStore, Restore, Result, StoreBuilder};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::owners::{
    a_look_at_head, assert_whole, byte_of, founded, objects, reborn, restored_elsewhere,
    taken_over, the_file,
};
use crate::support::{PART, StoreRig, checkpoint, fill, spawn, uploaded};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A store with room for few parts: most of what is written is nowhere but in S3.
fn small() -> StoreRig {
    let mut rig = StoreRig::owner(4);
    rig.config.retain_checkpoints = 1;
    rig
}

/// Writes parts that are uploaded, and of which most are evicted.
async fn write_more_than_there_is_room_for(store: &PartStore, first: u8) {
    for index in 0..12_u8 {
        fill(&the_file(store), index.into(), first + index).await;
    }
    store.sync_all().await.unwrap();
    uploaded(store).await;
    // Those that are still here go.
    for index in 0..12 {
        byte_of(store, index).await;
    }
}

async fn assert_has(store: &PartStore, first: u8) {
    for index in 0..12_u8 {
        assert_eq!(byte_of(store, index.into()).await, first + index);
    }
}

/// How a look for garbage is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stopped {
    /// It goes on where it was.
    Held,
    /// A request of it arrives long after.
    Late,
}

/// Stops the request that is made after so many others.
fn stop(rig: &StoreRig, after: usize, how: Stopped) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    if after > 0 {
        rig.remote
            .times(after, None, None, Fault::Delay(Duration::ZERO));
    }
    let fault = match how {
        Stopped::Held => Fault::Gate(Arc::clone(&gate)),
        Stopped::Late => Fault::Late,
    };
    rig.remote.once(None, None, fault);
    gate
}

/// Begins to look for garbage, and stops that at the request that is made after so many others:
/// what lets it go on, and what becomes of it. `None` where it ends before, and well.
async fn stopped(
    rig: &StoreRig,
    after: usize,
    how: Stopped,
    looks: impl Future<Output = Result<GcReport>> + Send + 'static,
) -> Option<(Arc<Notify>, JoinHandle<Result<GcReport>>)> {
    let gate = stop(rig, after, how);
    let seen = rig.remote.seen().len();
    let mut looks = spawn(looks);
    let reached = rig
        .remote
        .wait_for(|remote| remote.seen().len() > seen + after);
    tokio::select! {
        biased;
        () = reached => Some((gate, looks)),
        done = &mut looks => {
            done.unwrap().unwrap();
            None
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e13_an_owner_that_is_stopped_at_any_request_while_another_claims_deletes_nothing_of_it() {
    for how in [Stopped::Held, Stopped::Late] {
        for after in 0.. {
            let rig = small();
            let (ours, file) = founded(&rig, 1).await;
            // Garbage of several kinds.
            for byte in 2..4 {
                fill(&file, 0, byte).await;
                uploaded(&ours).await;
                fill(&file, 0, byte + 10).await;
                checkpoint(&ours).await;
            }
            write_more_than_there_is_room_for(&ours, 20).await;
            checkpoint(&ours).await;
            let looks = {
                let ours = ours.clone();
                async move { ours.gc().await }
            };
            let Some((gate, looks)) = stopped(&rig, after, how, looks).await else {
                assert!(after > 10, "{after}");
                break;
            };
            let (there, theirs) = taken_over(&rig, 8).await;
            write_more_than_there_is_room_for(&theirs, 60).await;
            checkpoint(&theirs).await;
            write_more_than_there_is_room_for(&theirs, 80).await;
            gate.notify_one();
            let ended = looks.await.unwrap();
            rig.remote.land_late();
            assert_whole(&rig).await;
            assert_has(&theirs, 80).await;
            theirs.gc().await.unwrap();
            assert_whole(&rig).await;
            drop(theirs);
            there.fs.kill();
            let theirs = reborn(&there, 99).open().await;
            assert_has(&theirs, 80).await;
            checkpoint(&theirs).await;
            let restored = rig.restored(Restore::latest()).await;
            assert_has(&restored, 80).await;
            a_look_at_head().await;
            assert!(ours.check_fenced().is_err(), "{how:?} {after} {ended:?}");
            let error = ours.gc().await.unwrap_err();
            assert!(matches!(error, Error::Fenced { .. }), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e13_the_tool_is_stopped_at_any_request_while_the_owner_goes_on() {
    for how in [Stopped::Held, Stopped::Late] {
        for after in 0.. {
            let rig = small();
            let (store, file) = founded(&rig, 1).await;
            for byte in 2..4 {
                fill(&file, 0, byte).await;
                checkpoint(&store).await;
            }
            write_more_than_there_is_room_for(&store, 20).await;
            checkpoint(&store).await;
            write_more_than_there_is_room_for(&store, 40).await;
            let prefix = rig.prefix();
            let looks = async move { prefix.collect_garbage().await };
            let Some((gate, looks)) = stopped(&rig, after, how, looks).await else {
                assert!(after > 6, "{after}");
                break;
            };
            checkpoint(&store).await;
            write_more_than_there_is_room_for(&store, 60).await;
            checkpoint(&store).await;
            store.gc().await.unwrap();
            write_more_than_there_is_room_for(&store, 80).await;
            gate.notify_one();
            // What it was to read may have gone meanwhile.
            let _looked = looks.await.unwrap();
            rig.remote.land_late();
            assert_whole(&rig).await;
            assert_has(&store, 80).await;
            rig.fs.kill();
            drop((store, file));
            let store = reborn(&rig, 99).open().await;
            assert_has(&store, 80).await;
            checkpoint(&store).await;
            store.gc().await.unwrap();
            let restored = rig.restored(Restore::latest()).await;
            assert_has(&restored, 80).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e13_the_tool_deletes_what_was_settled_and_nothing_of_a_directory_that_is_open_or_not() {
    let rig = small();
    let (store, file) = founded(&rig, 1).await;
    let mut deleted = 0;
    for round in 0..4_u8 {
        fill(&file, 0, 2 + round).await;
        checkpoint(&store).await;
        write_more_than_there_is_room_for(&store, 20 * round).await;
        // In no checkpoint yet.
        deleted += rig.prefix().collect_garbage().await.unwrap().deleted;
        assert_whole(&rig).await;
        assert_has(&store, 20 * round).await;
    }
    assert!(deleted > 10, "{deleted}");
    store.shutdown().await.unwrap();
    drop((store, file));
    rig.prefix().collect_garbage().await.unwrap();
    let store = reborn(&rig, 9).open().await;
    assert_has(&store, 60).await;
    // Nobody's: a prefix without anything in it.
    let empty = StoreRig::owner(4);
    assert_eq!(empty.prefix().collect_garbage().await.unwrap().objects, 0);
    assert!(empty.remote.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn e13_a_clock_that_is_a_day_ahead_or_behind_deletes_nothing_that_is_needed() {
    // The server says that it is 1970: whatever the clock here says, it is wrong.
    for offset in [2 * DAY, DAY, Duration::ZERO, 20_000 * DAY] {
        let mut rig = small();
        rig.config.retain_checkpoints = 8;
        let clock = |offset| move |b: StoreBuilder| b.wall_clock(WallClock::starting_at(offset));
        let ours = rig.open_as(clock(DAY)).await.unwrap();
        let file = ours
            .create(crate::owners::FILE, crate::support::PARTS_OF)
            .await
            .unwrap();
        fill(&file, 0, 1).await;
        checkpoint(&ours).await;
        let reader = rig.prefix().read(None, 0, Duration::from_secs(600));
        let reader = reader.await.unwrap();
        write_more_than_there_is_room_for(&ours, 20).await;
        let there = restored_elsewhere(&rig, 8).await;
        let theirs = there
            .open_as(|b| clock(offset)(b.take_over()))
            .await
            .unwrap();
        for byte in 2..4 {
            fill(&the_file(&theirs), 0, byte).await;
            checkpoint(&theirs).await;
            theirs.gc().await.unwrap();
        }
        let last = *assert_whole(&rig).await.last().unwrap();
        assert_eq!(last, 3);
        let pinned = reader.read(crate::owners::FILE, 0, PART).await.unwrap();
        assert_eq!(pinned[0], 1);
        // Of whom it was taken over, within seven days.
        assert_has(&ours, 20).await;
        let restored = rig.restored(Restore::latest()).await;
        assert_eq!(byte_of(&restored, 0).await, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn e32_what_was_uploaded_and_never_committed_is_there_for_its_owner_within_the_retention() {
    let rig = small();
    let (ours, file) = founded(&rig, 1).await;
    write_more_than_there_is_room_for(&ours, 20).await;
    // It was a week without a checkpoint before anybody took over.
    rig.remote.advance_clock(8 * DAY);
    ours.shutdown().await.unwrap();
    drop((ours, file));
    let (there, theirs) = taken_over(&rig, 8).await;
    theirs.gc().await.unwrap();
    for byte in 60..63 {
        fill(&the_file(&theirs), 0, byte).await;
        checkpoint(&theirs).await;
        theirs.gc().await.unwrap();
        rig.prefix().collect_garbage().await.unwrap();
    }
    let exported = reborn(&rig, 9).open_as(StoreBuilder::stranded).await;
    let exported = exported.unwrap();
    assert_has(&exported, 20).await;
    exported.shutdown().await.unwrap();
    drop(exported);
    // A third who takes it over knows, too.
    drop(theirs);
    there.fs.kill();
    rig.remote.advance_clock(3 * DAY);
    let (third, theirs) = taken_over(&rig, 10).await;
    fill(&the_file(&theirs), 0, 70).await;
    checkpoint(&theirs).await;
    theirs.gc().await.unwrap();
    let exported = reborn(&rig, 11).open_as(StoreBuilder::stranded).await;
    assert_has(&exported.unwrap(), 20).await;
    assert_whole(&rig).await;
    // Over.
    let before = objects(&rig.remote).len();
    rig.remote.advance_clock(5 * DAY);
    let report = theirs.gc().await.unwrap();
    assert!(report.deleted >= 1, "{report:?}");
    assert!(objects(&rig.remote).len() < before);
    assert_whole(&rig).await;
    drop(third);
}

#[tokio::test(start_paused = true)]
async fn e32_whoever_takes_it_back_before_the_other_has_committed_has_all_of_it() {
    for pause in [Duration::ZERO, 30 * DAY] {
        let rig = small();
        let (ours, file) = founded(&rig, 1).await;
        write_more_than_there_is_room_for(&ours, 20).await;
        ours.shutdown().await.unwrap();
        drop((ours, file));
        let (_there, theirs) = taken_over(&rig, 8).await;
        write_more_than_there_is_room_for(&theirs, 60).await;
        rig.remote.advance_clock(pause);
        theirs.gc().await.unwrap();
        rig.prefix().collect_garbage().await.unwrap();
        let ours = reborn(&rig, 9).open_as(StoreBuilder::take_over).await;
        let ours = ours.unwrap();
        ours.gc().await.unwrap();
        assert_has(&ours, 20).await;
        checkpoint(&ours).await;
        ours.gc().await.unwrap();
        // Theirs is to be had from their directory all the same.
        a_look_at_head().await;
        assert_has(&theirs, 60).await;
        let restored = rig.restored(Restore::latest()).await;
        assert_has(&restored, 20).await;
        assert_whole(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn e13_an_owner_that_is_stopped_at_any_request_of_a_look_goes_on_committing_meanwhile() {
    for how in [Stopped::Held, Stopped::Late] {
        for after in 0.. {
            let rig = small();
            let (store, file) = founded(&rig, 1).await;
            for byte in 2..4 {
                fill(&file, 0, byte).await;
                checkpoint(&store).await;
            }
            write_more_than_there_is_room_for(&store, 20).await;
            let looks = {
                let store = store.clone();
                async move { store.gc().await }
            };
            let Some((gate, looks)) = stopped(&rig, after, how, looks).await else {
                assert!(after > 10, "{after}");
                break;
            };
            checkpoint(&store).await;
            write_more_than_there_is_room_for(&store, 60).await;
            checkpoint(&store).await;
            write_more_than_there_is_room_for(&store, 80).await;
            gate.notify_one();
            // A checkpoint that it was to look into may have been retired meanwhile.
            let _looked = looks.await.unwrap();
            rig.remote.land_late();
            assert_whole(&rig).await;
            assert_has(&store, 80).await;
            let restored = rig.restored(Restore::latest()).await;
            assert_has(&restored, 60).await;
            store.gc().await.unwrap();
            checkpoint(&store).await;
            assert_whole(&rig).await;
        }
    }
}
