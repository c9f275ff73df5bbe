//! Claims, locks and restores that somebody left behind.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::Restore;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use tokio::sync::Notify;

use super::FILE;
use crate::support::{PARTS_OF, StoreRig, checkpoint, fill, paused, spawn};

#[test]
fn a_restore_whose_mark_could_not_be_written_is_begun_anew_by_the_same_call() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        let there = rig.elsewhere();
        there.fs.fail(fs::Fault {
            call: Some(fs::Call::Rename),
            after: 0,
            errno: fs::EIO,
            forever: false,
        });
        let restored = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        restored.expect_err("the disk fails once");
        let again = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        again.expect("\"to be called again\"");
    });
}

/// Nobody but this directory has ever claimed the prefix.
#[test]
fn a_claim_of_an_open_that_was_killed_and_that_lands_late_locks_nobody_out() {
    paused(async {
        let mut rig = StoreRig::owner(32);
        let store = rig.open().await;
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        store.shutdown().await.expect("ends");
        drop(store);
        rig.remote
            .under(Some(1), Some(Call::Put), "head", Fault::Late);
        let opened = rig.open_as(|store| store);
        let opened = tokio::time::timeout(Duration::from_secs(1), opened).await;
        assert!(opened.is_err(), "killed while it claims");
        rig.fs.kill();
        // Seeded alike, two lives would give the same ids.
        rig.config.queue.seed = Some(8);
        let gate = Arc::new(Notify::new());
        let held = Fault::Gate(Arc::clone(&gate));
        rig.remote.under(Some(1), Some(Call::Put), "head", held);
        let before = rig.remote.count(Call::Put, "head");
        let late = rig.remote.clone();
        let lands = spawn(async move {
            late.wait_for(|remote| remote.count(Call::Put, "head") > before)
                .await;
            let landed = late.land_late();
            gate.notify_one();
            landed
        });
        let opened = rig.try_open().await;
        assert_eq!(lands.await.expect("ends"), [true]);
        opened.expect("it is its own claim");
    });
}

#[test]
fn an_open_that_is_dropped_while_it_claims_leaves_the_directory_free() {
    paused(async {
        let rig = StoreRig::owner(32);
        rig.remote
            .under(Some(1), Some(Call::Put), "head", Fault::Hang);
        let opened = rig.open_as(|store| store);
        let opened = tokio::time::timeout(Duration::from_secs(1), opened).await;
        assert!(opened.is_err(), "dropped while it claims");
        let begun = tokio::time::Instant::now();
        loop {
            match rig.try_open().await {
                Ok(_) => break,
                Err(error) => assert!(
                    begun.elapsed() < Duration::from_secs(100),
                    "{:?}: {error}",
                    begun.elapsed()
                ),
            }
        }
    });
}

#[test]
fn a_store_that_is_dropped_without_shutdown_leaves_the_directory_free() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        drop(store);
        tokio::time::sleep(Duration::from_secs(100)).await;
        rig.try_open().await.expect("the directory is free");
    });
}
