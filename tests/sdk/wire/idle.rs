//! Connections of the pool that are closed while they lie idle.

use s3_writeback::Options;
use s3_writeback::remote::{Effect, Remote};
use s3_writeback::testing::{Operation, WireFault, WireRule};

use super::stage::{Stage, bytes, put_of, shut_down, submit, uploaded};

/// The next request is already on its way when the connection closes: the client cannot know
/// what became of it; the server saw nothing, and the next attempt is the only one with an effect.
#[tokio::test]
async fn d15_an_idle_connection_that_closes_as_it_is_used() {
    let stage = Stage::new().await;
    let remote = stage.remote();
    let body = bytes(200_000, 1);
    remote.put(put_of("first", &body, None)).await.unwrap();
    let rule = WireRule::new(WireFault::CloseIdle).once();
    let rule = stage.proxy.plan().add(rule);
    let error = remote.put(put_of("second", &body, None)).await.unwrap_err();
    assert_eq!(error.effect, Effect::Unknown, "{error}");
    assert!(error.retryable, "{error}");
    assert_eq!(stage.proxy.plan().applied(rule), Some(1));
    assert!(stage.object("second").is_none());
    remote.put(put_of("second", &body, None)).await.unwrap();
    assert_eq!(stage.effects(Operation::PutObject, "second"), 1);
    let seen = stage.proxy.counters();
    assert!(seen.log.iter().any(|exchange| exchange.is_reused));
}

/// The same under a queue: every connection that is used again is closed at that moment.
#[tokio::test]
async fn d15_a_queue_whose_idle_connections_all_close() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage.queue(dir.path()).await;
    let rule = stage.proxy.plan().add(WireRule::new(WireFault::CloseIdle));
    let body = bytes(50_000, 2);
    for n in 0..30 {
        let key = format!("k{n}");
        let receipt = submit(&queue, &key, &body, Options::default()).await;
        uploaded(&receipt, &key).await;
        assert_eq!(stage.effects(Operation::PutObject, &key), 1, "{key}");
    }
    assert!(stage.proxy.plan().applied(rule) > Some(0));
    stage.proxy.plan().clear();
    shut_down(&stage, &queue).await;
}
