//! The queue as an engine sees it: over a simulated S3 and file system, on paused time.

mod support;

use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Options, Settlement};
use support::{Rig, assert_empty, both, paused, settled, submit, submit_all};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn what_is_submitted_is_durable_then_in_s3_and_shutdown_is_clean() {
    both(async |rig| {
        let queue = rig.open().await;
        let receipt = submit(&queue, "wal/1", "one").await;
        receipt.durable().await.unwrap();
        assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        assert_eq!(rig.remote.object("wal/1").unwrap(), "one");
        submit_all(&queue, (0..20).map(|n| format!("sst/{n}"))).await;
        queue.drain().await.unwrap();
        assert_eq!(rig.remote.keys().len(), 21);
        let report = queue.shutdown().within(Duration::from_secs(10)).await.unwrap();
        assert!(report.sealed, "{report:?}");
        assert_eq!(report.deferred, 0);
        assert_empty(&queue);
        drop(queue);
        let again = rig.open().await;
        assert!(again.pending().is_empty());
        assert!(again.damage().is_empty());
        again.shutdown().await.unwrap();
    });
}

#[test]
fn what_was_not_sent_is_deferred_and_goes_after_the_next_open() {
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let receipt = submit(&queue, "a", "x").await;
        receipt.durable().await.unwrap();
        let report = queue.shutdown().within(Duration::from_secs(5)).await.unwrap();
        assert!(report.took <= Duration::from_millis(5500), "{report:?}");
        assert_eq!(settled(&receipt).await, Settlement::Deferred);
        drop(queue);
        rig.remote.heal();
        let again = rig.open().await;
        let pending = again.pending();
        assert_eq!(pending.len(), 1);
        assert_eq!((pending[0].receipt.task(), pending[0].key.as_str()), (receipt.task(), "a"));
        assert!(matches!(settled(&pending[0].receipt).await, Settlement::Uploaded(_)));
        again.shutdown().await.unwrap();
        assert_eq!(rig.remote.object("a").unwrap(), "x");
        assert!(rig.remote.count(Call::Put, "a") >= 2);
    });
}
