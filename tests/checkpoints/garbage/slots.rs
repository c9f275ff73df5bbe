//! Requests that S3 does not answer: for how long they keep others from theirs.

use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, PartStore};
use tokio::time::Instant;

use crate::owners::founded;
use crate::support::{StoreRig, checkpoint, fill, spawn, uploaded};

/// An owner that makes one request at a time.
fn one_at_a_time() -> StoreRig {
    StoreRig::owner_with(16, |config| {
        config.queue.workers = 1;
        config.max_dirty_age = Duration::from_millis(10);
    })
}

async fn goes_up_within(store: &PartStore, limit: Duration) {
    let begun = Instant::now();
    uploaded(store).await;
    assert!(begun.elapsed() < limit, "after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_never_answered_holds_uploads_up_for_seconds() {
    let rig = one_at_a_time();
    let (store, file) = founded(&rig, 1).await;
    let before = rig.remote.count(Call::Get, "checkpoints/");
    rig.remote
        .under(Some(1), Some(Call::Get), "checkpoints/", Fault::Hang);
    let looks = {
        let store = store.clone();
        spawn(async move { store.gc().await })
    };
    rig.remote
        .wait_for(|remote| remote.count(Call::Get, "checkpoints/") > before)
        .await;
    fill(&file, 0, 2).await;
    goes_up_within(&store, Duration::from_secs(60)).await;
    checkpoint(&store).await;
    looks.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_waits_for_any_more_holds_nothing_up() {
    for is_dropped in [false, true] {
        let rig = one_at_a_time();
        let (store, file) = founded(&rig, 1).await;
        rig.remote
            .once(Some(Call::List), Some("pins/"), Fault::Hang);
        let second = Duration::from_secs(1);
        if is_dropped {
            let looked = tokio::time::timeout(second, store.gc()).await;
            looked.expect_err("it hangs");
        } else {
            let error = store.gc().within(second).await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        }
        assert_eq!(rig.remote.count(Call::List, "pins/"), 1);
        fill(&file, 0, 2).await;
        // The request itself has ten.
        goes_up_within(&store, second).await;
    }
}
