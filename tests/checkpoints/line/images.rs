//! Images that come late, in another order, or not at all.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, File, Restore};
use tokio::sync::Notify;

use super::{FILE, byte, part};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, drawn, fill, paused, uploaded};

/// A store that sends what was written soon.
fn restless() -> StoreRig {
    StoreRig::owner_with(8, |config| {
        config.max_dirty_age = Duration::from_millis(10);
    })
}

/// Fills part 0 with 1; comes back when the image of that is on its way, where it is held up.
async fn on_its_way(rig: &StoreRig, file: &File) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    let held = Fault::Gate(Arc::clone(&gate));
    rig.remote.under(Some(1), Some(Call::Put), "packs/", held);
    fill(file, 0, 1).await;
    rig.remote
        .wait_for(|remote| remote.in_flight().0 == 1)
        .await;
    gate
}

/// An image that was on its way when the line was drawn is refused for good, after the part was
/// written again: the checkpoint fails with the cause, and the next one has what was written.
#[test]
fn e7_an_image_that_is_lost_fails_the_checkpoint_with_the_cause() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.refuse_bodies_with(Some(vec![1; 64].into()));
        let gate = on_its_way(&rig, &file).await;
        let made = drawn(&store).await;
        fill(&file, 0, 2).await;
        gate.notify_one();
        let error = made.await.expect("ends").expect_err("nothing is committed");
        assert!(
            matches!(error, Error::PartFailed { part: failed, .. } if failed == part(0)),
            "{error}"
        );
        assert!(rig.prefix().checkpoints().await.expect("lists").is_empty());
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// The image that the line has comes back after a later one: the manifest names the line's.
#[test]
fn e7_the_manifest_names_the_lines_image_and_not_a_later_one() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gate = on_its_way(&rig, &file).await;
        let made = drawn(&store).await;
        let before = rig.remote.count(Call::Put, "packs/");
        fill(&file, 0, 2).await;
        // The later one is there first.
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "packs/") > before)
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        gate.notify_one();
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 1);
        // And the part is what was written last: here, after the next open, and in the next one.
        uploaded(&store).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// A9, E6: v1 stalls, v2 finishes, v1 finishes; at the next checkpoint it is v2.
#[test]
fn a9_e6_of_two_images_the_checkpoint_has_the_later_one_in_whatever_order_they_came() {
    paused(async {
        let rig = restless();
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gate = on_its_way(&rig, &file).await;
        let before = rig.remote.keys().len();
        fill(&file, 0, 2).await;
        rig.remote
            .wait_for(|remote| remote.keys().len() > before)
            .await;
        gate.notify_one();
        uploaded(&store).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 0).await, 2);
    });
}

/// One image of a pack of 2,000 is refused for good: 1,999 are in S3, one part is failing and
/// named, and the checkpoint says so at once.
#[test]
fn e21_one_image_that_is_refused_keeps_no_other_from_s3() {
    paused(async {
        let rig = StoreRig::owner_with(4096, |config| {
            config.image_bytes = 256 << 20;
            config.pack_bytes = 16 << 20;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.refuse_bodies_with(Some(vec![0xBA; 64].into()));
        for index in 0..2000 {
            fill(&file, index, if index == 1234 { 0xBA } else { 1 }).await;
        }
        let started = tokio::time::Instant::now();
        let error = store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect_err("fails");
        assert!(started.elapsed() < Duration::from_secs(2), "at once");
        assert!(
            matches!(error, Error::PartFailed { part: failed, .. } if failed == part(1234)),
            "{error}"
        );
        while store.snapshot().dirty_bytes > PART as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let failing = store.snapshot().failing;
        assert_eq!(failing.len(), 1);
        assert_eq!(failing[0].part, part(1234));
        // Halves of halves, and no more.
        let puts = rig.remote.count(Call::Put, "packs/");
        assert!(puts <= 40, "{puts} requests");
        rig.remote.refuse_bodies_with(None);
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(byte(&there, 1234).await, 0xBA);
        assert_eq!(byte(&there, 1235).await, 1);
    });
}
