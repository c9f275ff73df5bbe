//! Changes of `head` whose replies are lost, and commits whose images come in any order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, PartStore, Restore, StoreBuilder};
use tokio::sync::Notify;

use crate::owners::{
    FILE, a_look_at_head, assert_whole, byte_of, founded, is_fenced, latest, reborn,
    restored_elsewhere, taken_over, the_file,
};
use crate::support::{PART, PARTS_OF, StoreRig, asks, checkpoint, fill, spawn, submit, uploaded};

fn lost() -> Fault {
    Fault::LostReply(RemoteError::lost("PutObject"))
}

#[tokio::test(start_paused = true)]
async fn d5_a_commit_a_claim_and_a_retirement_whose_replies_are_lost_are_ours_all_the_same() {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 2;
    let head = Some("head");
    rig.remote.once(Some(Call::Put), head, lost());
    let (store, file) = founded(&rig, 1).await;
    assert_eq!(store.checkpoint_snapshot().epoch, Some(1), "claimed once");
    rig.remote.once(Some(Call::Put), head, lost());
    fill(&file, 0, 2).await;
    assert_eq!(checkpoint(&store).await.number, 2);
    assert_eq!(latest(&rig).await, Some(2));
    // One that is shorter by what is retired.
    drop(file);
    store.shutdown().await.unwrap();
    drop(store);
    let mut again = reborn(&rig, 9);
    again.config.retain_checkpoints = 1;
    let store = again.open().await;
    rig.remote.once(Some(Call::Put), head, lost());
    let report = store.gc().await.unwrap();
    assert_eq!(report.retired, 1);
    assert_eq!(assert_whole(&rig).await, [2]);
    a_look_at_head().await;
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn d5_a_commit_whose_reply_is_lost_with_its_owner_is_its_own_after_a_restart() {
    for torn in [false, true] {
        let rig = StoreRig::owner(16);
        let (store, file) = founded(&rig, 1).await;
        fill(&file, 0, 2).await;
        store.sync_all().await.unwrap();
        rig.remote
            .once(Some(Call::Put), Some("head"), Fault::HangAfter);
        let asked = {
            let store = store.clone();
            spawn(async move { store.checkpoint(CheckpointOptions::new()).await })
        };
        while latest(&rig).await != Some(2) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match torn {
            false => rig.fs.kill(),
            true => rig.fs.crash(3),
        }
        asked.abort();
        drop((store, file));
        // Nobody has to say that it is to be taken over.
        let store = reborn(&rig, 9).open().await;
        assert_eq!(byte_of(&store, 0).await, 2);
        assert_eq!(store.checkpoint_snapshot().base, Some(2));
        fill(&the_file(&store), 1, 3).await;
        assert_eq!(checkpoint(&store).await.number, 3);
        let restored = rig.restored(Restore::latest()).await;
        assert_eq!(byte_of(&restored, 0).await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_claim_whose_reply_is_lost_with_its_owner_is_its_own_after_a_restart() {
    let rig = StoreRig::owner(16);
    founded(&rig, 1).await.0.shutdown().await.unwrap();
    let there = restored_elsewhere(&rig, 8).await;
    rig.remote
        .once(Some(Call::Put), Some("head"), Fault::HangAfter);
    let puts = rig.remote.count(Call::Put, "head");
    let opening = {
        let there = there.clone();
        spawn(async move { there.open_as(StoreBuilder::take_over).await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "head") > puts)
        .await;
    there.fs.kill();
    opening.abort();
    assert!(opening.await.is_err());
    let store = reborn(&there, 9).open().await;
    assert_eq!(store.checkpoint_snapshot().epoch, Some(3));
    assert_eq!(byte_of(&store, 0).await, 1);
    // It was ours before that, and is not any more.
    let error = reborn(&rig, 10).open_as(|as_is| as_is).await.unwrap_err();
    assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error}");
}

/// A store whose packs have one part each.
fn one_by_one() -> StoreRig {
    StoreRig::owner_with(64, |config| {
        config.pack_bytes = PART as u64;
    })
}

#[tokio::test(start_paused = true)]
async fn d7_images_arrive_in_any_order_and_commits_in_theirs() {
    let rig = one_by_one();
    let (store, file) = founded(&rig, 1).await;
    for index in 0..6 {
        fill(&file, index, 2).await;
    }
    // The first of them is the last to arrive.
    let gate = Arc::new(Notify::new());
    let puts = rig.remote.count(Call::Put, "packs/");
    rig.remote
        .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&gate)));
    let first = asks(&store);
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "packs/") >= puts + 6)
        .await;
    for index in 0..6 {
        fill(&file, index, 3).await;
    }
    let second = asks(&store);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(latest(&rig).await, Some(1), "an image of it is not there");
    assert!(!first.is_finished() && !second.is_finished());
    gate.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), 2);
    assert_eq!(second.await.unwrap().unwrap(), 3);
    assert_eq!(assert_whole(&rig).await, [1, 2, 3]);
    for (number, byte) in [(2, 2), (3, 3)] {
        let restored = rig.restored(Restore::number(number)).await;
        for index in 0..6 {
            assert_eq!(byte_of(&restored, index).await, byte, "{number}: {index}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn d7_a_number_and_a_sequence_that_came_to_nothing_stop_nobody() {
    let rig = one_by_one();
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    fill(&file, 1, 0xAB).await;
    rig.remote
        .refuse_bodies_with(Some(Bytes::from(vec![0xAB; PART])));
    let error = store.checkpoint(CheckpointOptions::new()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::PartFailed { .. }), "{error}");
    assert_eq!(latest(&rig).await, Some(1));
    rig.remote.refuse_bodies_with(None);
    // A gap in the numbers, and one in the sequence.
    let next = checkpoint(&store).await.number;
    assert!(next > 2, "{next}");
    fill(&file, 2, 4).await;
    let last = checkpoint(&store).await.number;
    assert_eq!(last, next + 1);
    store.gc().await.unwrap();
    assert_eq!(assert_whole(&rig).await, [1, next, last]);
    let restored = rig.restored(Restore::latest()).await;
    for (index, byte) in [2, 0xAB, 4].into_iter().enumerate() {
        assert_eq!(byte_of(&restored, index).await, byte);
    }
}

/// Writes of which the last waits for room that only S3 could make.
async fn wait_for_room(rig: &StoreRig, store: &PartStore) -> Vec<tokio::task::JoinHandle<Error>> {
    rig.remote.always(Some(Call::Put), None, Fault::Hang);
    let mut waits = Vec::new();
    for index in 0..6 {
        let file = the_file(store);
        let mut write = spawn(async move {
            let bytes = [9; PART];
            file.write_at(&bytes, (index * PART) as u64).await
        });
        let soon = tokio::time::timeout(Duration::from_millis(100), &mut write);
        match soon.await {
            Ok(written) => written.unwrap().unwrap(),
            Err(_) => waits.push(spawn(async move { write.await.unwrap().unwrap_err() })),
        }
    }
    assert!(!waits.is_empty(), "there is room for all");
    waits
}

/// Another directory takes the prefix over, and whoever was there before looks at `head`; nothing
/// is uploaded from then on.
async fn fenced_by(there: &StoreRig) -> PartStore {
    there.remote.heal();
    let theirs = there.open_as(StoreBuilder::take_over).await.unwrap();
    there.remote.always(
        Some(Call::Put),
        None,
        Fault::Error(RemoteError::transient("PutObject")),
    );
    a_look_at_head().await;
    theirs
}

#[tokio::test(start_paused = true)]
async fn d8_a_writer_who_waits_for_room_is_told_that_the_store_is_fenced() {
    let rig = StoreRig::owner(8);
    let (store, file) = founded(&rig, 1).await;
    let there = restored_elsewhere(&rig, 8).await;
    let waits = wait_for_room(&rig, &store).await;
    let theirs = fenced_by(&there).await;
    for wait in waits {
        let error = tokio::time::timeout(Duration::from_millis(1), wait).await;
        let error = error.expect("is woken").unwrap();
        assert!(is_fenced(&error), "{error}");
    }
    drop((file, theirs));
}

#[tokio::test(start_paused = true)]
async fn d8_whoever_waits_for_a_checkpoint_or_for_the_queue_is_told_that_the_store_is_fenced() {
    let mut rig = StoreRig::owner(8);
    rig.config.queue.max_tasks = 1;
    let (store, file) = founded(&rig, 1).await;
    let there = restored_elsewhere(&rig, 8).await;
    fill(&file, 0, 2).await;
    rig.remote.always(Some(Call::Put), None, Fault::Hang);
    let made = asks(&store);
    let _kept = submit(store.queue(), "log/1", "1").await;
    let queue = store.queue().clone();
    let waits = spawn(async move {
        queue
            .submit("log/2", b"2".to_vec(), s3_writeback::Options::default())
            .within(Duration::from_secs(3600))
            .await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!made.is_finished() && !waits.is_finished());
    let theirs = fenced_by(&there).await;
    let made = tokio::time::timeout(Duration::from_secs(1), made).await;
    let error = made.expect("is told").unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    let waits = tokio::time::timeout(Duration::from_secs(1), waits).await;
    let error = waits.expect("is told").unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    // And so is whoever comes later.
    let late = store
        .queue()
        .submit("log/3", b"3".to_vec(), s3_writeback::Options::default());
    let error = late.await.unwrap_err();
    assert!(is_fenced(&error), "{error}");
    let error = store.create(s3_writeback::FileId(5), PARTS_OF).await;
    assert!(is_fenced(&error.unwrap_err()));
    drop((file, theirs, FILE));
}

#[tokio::test(start_paused = true)]
async fn d8_whoever_waits_for_a_number_of_s3_is_told_at_once_when_theirs_is_there() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    let (_there, theirs) = taken_over(&rig, 8).await;
    // The commit itself finds it: nobody waits for the next look.
    let error = store.checkpoint(CheckpointOptions::new());
    let error = error.within(Duration::from_secs(1)).await.unwrap_err();
    assert!(is_fenced(&error), "{error}");
    assert!(is_fenced(&file.write_at(&[1], 0).await.unwrap_err()));
    assert!(theirs.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn d8_whoever_waits_for_a_checkpoint_that_is_past_its_line_is_told_that_the_store_is_fenced()
{
    // Its pages, or its manifest, do not get through; or it waits for the log before it.
    for stage in 0..3 {
        let rig = StoreRig::owner(16);
        let (store, file) = founded(&rig, 1).await;
        let there = restored_elsewhere(&rig, 8).await;
        fill(&file, 0, 2).await;
        uploaded(&store).await;
        let puts = rig.remote.count(Call::Put, "");
        let mut options = CheckpointOptions::new();
        let at_once = Fault::Delay(Duration::ZERO);
        match stage {
            0 => rig.remote.always(Some(Call::Put), None, Fault::Hang),
            1 => {
                rig.remote.once(Some(Call::Put), None, at_once);
                rig.remote.always(Some(Call::Put), None, Fault::Hang);
            }
            _ => {
                let key = Some("log/1");
                rig.remote.always(Some(Call::Put), key, Fault::Hang);
                options = options.after([submit(store.queue(), "log/1", "1").await]);
            }
        }
        let made = {
            let store = store.clone();
            spawn(async move { store.checkpoint(options).await })
        };
        let sent = [1, 2, 3][stage];
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "") >= puts + sent)
            .await;
        rig.remote.heal();
        let theirs = there.open_as(StoreBuilder::take_over).await.unwrap();
        let refusal = RemoteError::transient("PutObject");
        rig.remote
            .always(Some(Call::Put), None, Fault::Error(refusal));
        a_look_at_head().await;
        let made = tokio::time::timeout(Duration::from_secs(1), made).await;
        let error = made.expect("is told").unwrap().unwrap_err();
        assert!(is_fenced(&error), "stage {stage}: {error}");
        assert!(theirs.check_fenced().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn d7_a_request_on_head_that_gets_no_answer_holds_nobody_up_for_long() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    rig.remote.once(Some(Call::Get), Some("head"), Fault::Hang);
    let gets = rig.remote.count(Call::Get, "head");
    let looks = {
        let store = store.clone();
        spawn(async move { store.gc().await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Get, "head") > gets)
        .await;
    let made = store.checkpoint(CheckpointOptions::new());
    let made = made.within(Duration::from_secs(30)).await;
    assert_eq!(made.unwrap().number, 2);
    looks.await.unwrap().unwrap();
}
