//! Callbacks and callers that do wrong.

use std::future::IntoFuture as _;
use std::time::Duration;

use s3_writeback::{CheckpointOptions, Error};

use super::threaded;
use crate::support::{Rig, StoreRig, on_threads, paused, submit};

#[test]
fn a_meta_that_does_not_come_back_costs_one_checkpoint_and_not_all() {
    on_threads(2, async {
        let rig = StoreRig::owner_with(32, |config| {
            config.checkpoint_within = Duration::from_secs(2);
        });
        let store = threaded(&rig, 4).await;
        let (tell, hears) = std::sync::mpsc::sync_channel::<()>(1);
        let options = CheckpointOptions::new().meta(move || {
            let _ = hears.recv();
            Vec::new()
        });
        let error = store.checkpoint(options).await.expect_err("takes too long");
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        let next = store
            .checkpoint(CheckpointOptions::new())
            .within(Duration::from_secs(8))
            .await;
        drop(tell);
        next.expect("the next one is made");
    });
}

#[test]
fn what_one_asks_for_wrongly_fails_nobody_elses_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let elsewhere = Rig::new();
        let queue = elsewhere.open().await;
        let foreign = submit(&queue, "a", "b").await;
        let wrong = store.checkpoint(CheckpointOptions::new().after([foreign]));
        let right = store.checkpoint(CheckpointOptions::new());
        let (wrong, right) = tokio::join!(wrong.into_future(), right.into_future());
        assert!(matches!(wrong, Err(Error::ForeignReceipt(_))));
        right.expect("is made");
    });
}
