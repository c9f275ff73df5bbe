//! Objects through the queue.

use std::sync::atomic::Ordering;

use s3_writeback::{Cause, Error, KeyPolicy, Options, Settlement};

use crate::lane::{DEADLINE, Lane, MIB, bytes, uploaded};

/// Of all sizes, whole and in parts; read back through the queue and by a plain client; deleted.
pub async fn upload(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let queue = lane.queue("upload", dir.path()).await;
    let sizes = [0, 1, 1000, 65_536, 300_000, MIB, 5 * MIB, 11 * MIB];
    let mut receipts = Vec::new();
    for (n, size) in sizes.into_iter().enumerate() {
        let mut options = Options::default();
        options.headers.content_type = Some("application/x-lane".to_owned());
        let key = format!("sizes/{size}");
        let body = bytes(size, n as u8);
        let receipt = queue.submit(key, body, options).await.unwrap();
        receipts.push((n, size, receipt));
    }
    queue.drain().within(DEADLINE).await.unwrap();
    for (n, size, receipt) in &receipts {
        uploaded(receipt, receipt.key()).await;
        let body = bytes(*size, *n as u8);
        let in_parts = *size >= 5 * MIB;
        let whole = !in_parts || lane.reads_whole.load(Ordering::Relaxed);
        let range = (!whole).then_some((0, *size as u64));
        let got = queue
            .get(receipt.key(), range)
            .within(DEADLINE)
            .await
            .unwrap();
        assert_eq!(got, body, "{size}");
        let plain = lane.object(&format!("upload/{}", receipt.key())).await;
        assert_eq!(plain, Some(body.clone()), "{size}");
        if *size > 10 {
            let some = queue
                .get(receipt.key(), Some((3, 5)))
                .within(DEADLINE)
                .await
                .unwrap();
            assert_eq!(some, body.slice(3..8));
        }
    }
    for (_, _, receipt) in &receipts {
        let deleted = queue
            .delete(receipt.key(), Options::default())
            .await
            .unwrap();
        uploaded(&deleted, receipt.key()).await;
    }
    let report = queue.shutdown().await.unwrap();
    assert_eq!((report.deferred, report.quarantined), (0, 0), "{report:?}");
    assert!(lane.keys_under("upload").await.is_empty());
}

/// Write-once keys stay as they are, rewritable ones get what was last; or the crate says that
/// the server cannot.
pub async fn conditions(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let queue = lane.queue("conditions", dir.path()).await;
    let honours = lane.capabilities.conditional_writes();
    let first = queue
        .submit("once", "one", Options::default())
        .await
        .unwrap();
    uploaded(&first, "once").await;
    let second = queue
        .submit("once", "two", Options::default())
        .await
        .unwrap();
    let settled = second.settled().within(DEADLINE).await.unwrap();
    if lane.capabilities.if_none_match.is_honoured() {
        assert_eq!(settled, Settlement::PreconditionFailed);
        assert_eq!(
            lane.object("conditions/once").await.as_deref(),
            Some(&b"one"[..])
        );
    } else {
        lane.differs(format!("a write-once key that exists: {settled:?}"));
    }
    let rewritable = || Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    };
    for content in ["a", "b", "c"] {
        match queue.submit("again", content, rewritable()).await {
            Ok(receipt) if honours => {
                uploaded(&receipt, content).await;
                let found = lane.object("conditions/again").await;
                assert_eq!(found.as_deref(), Some(content.as_bytes()));
            }
            Ok(receipt) => {
                let settled = receipt.settled().within(DEADLINE).await.unwrap();
                assert_eq!(
                    settled,
                    Settlement::Quarantined(Cause::ConditionsUnsupported)
                );
            }
            Err(error) => {
                assert!(!honours, "{error}");
                assert!(
                    matches!(error, Error::ConditionsUnsupported { .. }),
                    "{error}"
                );
            }
        }
    }
    for owed in queue.quarantined() {
        queue.purge(owed.task).unwrap();
    }
    queue.shutdown().await.unwrap();
    lane.sweep("conditions").await;
}
