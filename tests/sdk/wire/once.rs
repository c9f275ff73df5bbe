//! D15: whatever breaks, the outcome is right, nothing hangs, and each effect is there once.

use std::time::Duration;

use s3_writeback::remote::deadline::within;
use s3_writeback::remote::{Class, Effect, GetRequest, Remote, WriteCondition};
use s3_writeback::testing::{FaultRule, Operation, WireFault, WireRule};
use s3_writeback::{KeyPolicy, Options};

use super::stage::{BUCKET, DEADLINE, PREFIX, Stage, bytes, put_of, shut_down, submit, uploaded};

/// How long one request may take here where nothing else ends it.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Every way to break an exchange, and whether the server carries it out all the same.
const BROKEN: [(WireFault, bool); 9] = [
    (WireFault::ResetBeforeBody, false),
    (WireFault::ResetMidBody, false),
    (WireFault::HalfOpen, false),
    (WireFault::Trickle(1), false),
    (WireFault::ResetBeforeAnswer, true),
    (WireFault::CloseBeforeAnswer, true),
    (WireFault::HalfAnswer, true),
    (WireFault::AnswerLost, true),
    (WireFault::TrickleAnswer(1), true),
];

/// Faults that only a deadline ends.
fn hangs(fault: WireFault) -> bool {
    matches!(
        fault,
        WireFault::HalfOpen
            | WireFault::AnswerLost
            | WireFault::Trickle(_)
            | WireFault::TrickleAnswer(_)
    )
}

/// D15, the remote: a write whose answer is lost is `Unknown`, whether or not the server carried
/// it out; where nothing could be connected to, it is `NotApplied`.
#[tokio::test]
async fn d15_a_write_on_a_broken_connection_is_unknown_and_a_refused_one_is_not() {
    let stage = Stage::new().await;
    let remote = stage.remote();
    let body = bytes(300_000, 1);
    for (n, (fault, lands)) in BROKEN.into_iter().enumerate() {
        let key = format!("k{n}");
        let rule = stage.proxy.plan().add(WireRule::new(fault).once());
        let put = put_of(&key, &body, Some(WriteCondition::IfAbsent));
        let start = tokio::time::Instant::now();
        let error = within("PutObject", ATTEMPT, remote.put(put)).await;
        let error = error.expect_err("the answer does not come");
        let took = start.elapsed();
        assert_eq!(
            (error.effect, error.class),
            (Effect::Unknown, Class::Transient),
            "{fault:?}: {error}"
        );
        assert_eq!(took >= ATTEMPT, hangs(fault), "{fault:?}: {took:?}");
        assert!(took <= 2 * ATTEMPT, "{fault:?}: {took:?}");
        assert_eq!(stage.proxy.plan().applied(rule), Some(1), "{fault:?}");
        // What hangs is let go of; what was cut short is forgotten by the server.
        stage.proxy.plan().clear();
        stage.server_is_idle().await;
        let landed = stage.effects(Operation::PutObject, &key);
        assert_eq!(landed, usize::from(lands), "{fault:?}");
        assert_eq!(stage.object(&key).is_some(), lands, "{fault:?}");
    }
    stage.proxy.cut_all();
    stage.proxy.refuse().await.unwrap();
    let put = put_of("refused", &body, None);
    let error = remote.put(put.clone()).await.unwrap_err();
    assert_eq!(
        (error.effect, error.class),
        (Effect::NotApplied, Class::Transient),
        "{error}"
    );
    assert!(error.has_code("ConnectFailure"), "{error}");
    stage.proxy.accept().await.unwrap();
    remote.put(put).await.unwrap();
    assert_eq!(stage.effects(Operation::PutObject, "refused"), 1);
}

/// D15, reads: half of an object is an error, never an object; a read has no effect.
#[tokio::test]
async fn d15_a_read_that_breaks_is_an_error_without_effect() {
    let stage = Stage::new().await;
    let remote = stage.remote();
    let body = bytes(300_000, 2);
    remote.put(put_of("k", &body, None)).await.unwrap();
    let whole = || GetRequest {
        key: "k".to_owned(),
        range: None,
    };
    for (fault, _) in BROKEN {
        // Half of a body that is not there is all of it.
        if fault == WireFault::ResetMidBody {
            continue;
        }
        stage.proxy.plan().add(WireRule::new(fault).once());
        let error = within("GetObject", ATTEMPT, remote.get(whole())).await;
        let error = error.expect_err("half of it is not enough");
        assert_eq!(error.effect, Effect::NotApplied, "{fault:?}: {error}");
        assert_eq!(error.class, Class::Transient, "{fault:?}: {error}");
        stage.proxy.plan().clear();
        let got = remote.get(whole()).await.unwrap().expect("it is there");
        assert_eq!(got.body, body, "{fault:?}");
    }
}

/// D15, the queue: each upload settles `Uploaded`, its bytes are in S3, and it was carried out
/// once, whatever broke: write-once and rewritable keys.
#[tokio::test]
async fn d15_the_queue_uploads_each_object_once_over_a_wire_that_breaks() {
    for policy in [KeyPolicy::WriteOnce, KeyPolicy::Rewritable] {
        let stage = Stage::new().await;
        let dir = tempfile::tempdir().unwrap();
        let queue = stage.queue(dir.path()).await;
        let options = || Options {
            policy,
            ..Options::default()
        };
        let body = bytes(300_000, 3);
        // The first asks the server what it can do, if anybody has to.
        uploaded(&submit(&queue, "first", &body, options()).await, "first").await;
        for (n, (fault, _)) in BROKEN.into_iter().enumerate() {
            let (key, what) = (format!("k{n}"), format!("{policy:?} {fault:?}"));
            let rule = WireRule::new(fault).method("PUT").once();
            let rule = stage.proxy.plan().add(rule);
            let receipt = submit(&queue, &key, &body, options()).await;
            uploaded(&receipt, &what).await;
            assert_eq!(stage.proxy.plan().applied(rule), Some(1), "{what}");
            stage.proxy.plan().clear();
            stage.server_is_idle().await;
            let effects = stage.effects(Operation::PutObject, &key);
            assert_eq!(effects, 1, "{what}");
            assert_eq!(stage.object(&key), Some(body.clone()), "{what}");
        }
        assert!(queue.snapshot().unknown >= BROKEN.len() as u64);
        shut_down(&stage, &queue).await;
    }
}

/// D15: a rewritable key gets its second bytes once, after a first PUT whose answer was lost; and
/// a delete whose answer was lost is done.
#[tokio::test]
async fn d15_a_key_that_is_rewritten_and_deleted_over_a_wire_that_breaks() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    // A PUT that was given up may still land: a delete waits until it no longer can.
    let queue = stage
        .queue_with(dir.path(), |config| {
            config.signature_lifetime = Duration::from_secs(1);
        })
        .await;
    let options = || Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    };
    for (n, (fault, _)) in BROKEN.into_iter().enumerate() {
        let (key, what) = (format!("k{n}"), format!("{fault:?}"));
        let plan = stage.proxy.plan();
        for (at, content) in [b"one".as_slice(), b"two", b"three"]
            .into_iter()
            .enumerate()
        {
            plan.add(WireRule::new(fault).method("PUT").once());
            let content = bytes::Bytes::copy_from_slice(content);
            let receipt = submit(&queue, &key, &content, options()).await;
            uploaded(
                &receipt,
                &format!(
                    "{what} {at} {:#?}",
                    stage
                        .server
                        .counters()
                        .log
                        .iter()
                        .rev()
                        .take(12)
                        .collect::<Vec<_>>()
                ),
            )
            .await;
            assert_eq!(stage.object(&key), Some(content), "{what} {at}");
            plan.clear();
        }
        assert_eq!(stage.effects(Operation::PutObject, &key), 3, "{what}");
        plan.add(WireRule::new(fault).method("DELETE").once());
        let deleted = queue.delete(key.as_str(), options()).await.unwrap();
        uploaded(&deleted, &what).await;
        plan.clear();
        assert_eq!(stage.object(&key), None, "{what}");
    }
    shut_down(&stage, &queue).await;
}

/// D15: the door is shut for a while, with connections cut: uploads go on when it opens.
#[tokio::test]
async fn d15_uploads_outlast_a_door_that_is_shut() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage.queue(dir.path()).await;
    let body = bytes(10_000, 4);
    uploaded(
        &submit(&queue, "before", &body, Options::default()).await,
        "before",
    )
    .await;
    stage.proxy.refuse().await.unwrap();
    stage.proxy.cut_all();
    let mut receipts = Vec::new();
    for n in 0..20 {
        let options = Options::default();
        receipts.push(submit(&queue, &format!("k{n}"), &body, options).await);
    }
    let before = queue.snapshot().requests;
    let tried = async {
        while queue.snapshot().requests < before + 40 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, tried).await.unwrap();
    assert!(
        receipts
            .iter()
            .all(|receipt| receipt.settlement().is_none())
    );
    stage.proxy.accept().await.unwrap();
    for (n, receipt) in receipts.iter().enumerate() {
        uploaded(receipt, "the door is open").await;
        assert_eq!(stage.effects(Operation::PutObject, &format!("k{n}")), 1);
    }
    shut_down(&stage, &queue).await;
}

/// D15: a burst of 503 is waited out, and each object is carried out once.
#[tokio::test]
async fn d15_a_burst_of_503_is_outlasted() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage.queue(dir.path()).await;
    let faults = stage.server.faults();
    let burst = faults.add(FaultRule::slow_down().on(Operation::PutObject).times(60));
    let empty = faults.add(
        FaultRule::respond(503, "")
            .on(Operation::PutObject)
            .times(20),
    );
    let body = bytes(10_000, 5);
    let mut receipts = Vec::new();
    for n in 0..20 {
        let options = Options::default();
        receipts.push(submit(&queue, &format!("k{n}"), &body, options).await);
    }
    for receipt in &receipts {
        uploaded(receipt, "after the burst").await;
    }
    assert_eq!(
        (faults.applied(burst), faults.applied(empty)),
        (Some(60), Some(20))
    );
    for n in 0..20 {
        assert_eq!(stage.effects(Operation::PutObject, &format!("k{n}")), 1);
    }
    let objects = stage.server.objects(BUCKET);
    let ours = objects
        .iter()
        .filter(|object| object.key.starts_with(&format!("{PREFIX}/k")));
    assert_eq!(ours.count(), 20);
    shut_down(&stage, &queue).await;
}

/// A pool's connections are cut by whoever is between, again and again, at random moments of the
/// exchanges on them: every object is there, and was carried out once.
#[tokio::test]
async fn d15_connections_cut_at_any_moment_double_nothing() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage.queue(dir.path()).await;
    let body = bytes(100_000, 6);
    let mut receipts = Vec::new();
    for n in 0..100 {
        let options = Options::default();
        receipts.push(submit(&queue, &format!("k{n}"), &body, options).await);
        // The counter is the clock: so many requests later, whatever they are in the middle of.
        let seen = stage.proxy.counters().requests;
        let more = stage
            .proxy
            .wait_for(|now| now.requests > seen, Duration::from_millis(5));
        let _ = more.await;
        stage.proxy.cut_all();
    }
    for (n, receipt) in receipts.iter().enumerate() {
        uploaded(receipt, "cut at any moment").await;
        let key = format!("k{n}");
        assert_eq!(stage.effects(Operation::PutObject, &key), 1, "{key}");
        assert_eq!(stage.object(&key), Some(body.clone()), "{key}");
    }
    shut_down(&stage, &queue).await;
}
