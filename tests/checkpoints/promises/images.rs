//! Images that somebody needs, and images that nobody does.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::Error;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use tokio::sync::Notify;

use super::FILE;
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, drawn, fill, paused, spawn, uploaded};

#[test]
fn a_checkpoint_that_was_pinned_while_garbage_was_looked_for_can_be_read() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.retain_checkpoints = 1;
            config.max_dirty_age = Duration::from_millis(10);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        fill(&file, 0, 2).await;
        uploaded(&store).await;
        let slow = Fault::Delay(Duration::from_secs(5));
        rig.remote.under(Some(1), Some(Call::List), "pins/", slow);
        let collects = store.clone();
        let collected = spawn(async move { collects.gc().await });
        rig.remote
            .wait_for(|remote| remote.count(Call::List, "pins/") == 1)
            .await;
        let gate = Arc::new(Notify::new());
        let held = Fault::Gate(Arc::clone(&gate));
        rig.remote.under(Some(1), Some(Call::Get), "head", held);
        let before = rig.remote.count(Call::Get, "head");
        rig.remote
            .wait_for(|remote| remote.count(Call::Get, "head") > before)
            .await;
        // It has seen the pins, and not yet head.
        let reader = rig
            .prefix()
            .read(Some(1), 0, Duration::from_secs(3600))
            .await
            .expect("is listed, and pinned");
        let made = checkpoint(&store).await;
        assert_eq!(made.number, 2);
        gate.notify_one();
        collected.await.expect("ends").expect("looks");
        let bytes = reader.read(FILE, 0, PART).await.expect("is pinned");
        assert_eq!(bytes[..], [1; PART]);
    });
}

#[test]
fn an_image_that_was_set_aside_and_is_refused_for_good_is_named() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.image_bytes = PART as u64;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        rig.slow_packs();
        let made = drawn(&store).await;
        for index in 0..7 {
            fill(&file, index, 2).await;
        }
        file.write_at(&[9; 1], 0).await.expect("writes");
        rig.remote.refuse_bodies_with(Some(vec![1; 64].into()));
        let error = made.await.expect("ends").expect_err("it is refused");
        assert!(matches!(error, Error::PartFailed { .. }), "{error:?}");
    });
}

#[test]
fn what_was_set_aside_for_a_line_that_was_given_up_is_not_sent() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.image_bytes = PART as u64;
            config.checkpoint_within = Duration::from_secs(20);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        let away = RemoteError::transient("PutObject");
        rig.remote
            .under(None, Some(Call::Put), "packs/", Fault::Error(away));
        let made = drawn(&store).await;
        for index in 0..8 {
            fill(&file, index, 2).await;
        }
        made.await.expect("ends").expect_err("S3 is away");
        // Nobody needs what those parts were.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let images = store.snapshot().queue.tasks.images;
        rig.remote.heal();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let objects = rig.remote.keys();
        let old = objects
            .iter()
            .filter(|key| key.starts_with("packs/"))
            .filter(|key| {
                let body = rig.remote.object(key).unwrap_or_default();
                body.windows(64).any(|bytes| bytes == [1; 64])
            });
        let old = old.count();
        // Two were captured before they were written to.
        assert!(
            old <= 2,
            "{old} objects of nobody's, of {}; {images} images waited",
            objects.len()
        );
    });
}
