//! D16: a link that is slow works, and one that is dead is found.

use std::time::Duration;

use s3_writeback::Options;
use s3_writeback::remote::Remote;
use s3_writeback::remote::attempt_deadline;
use s3_writeback::testing::{LinkSpeed, Operation, WireFault, WireRule};
use tokio::time::Instant;

use super::stage::{MIB, Stage, bytes, put_of, shut_down, submit};

const KIB: u64 = 1024;

/// D16: 8 MiB over a slow link go up in one attempt, because its deadline is by its size. Scaled:
/// ten times as fast as the row says, unless `S3_WRITEBACK_SLOW_WIRE=1` asks for 64 KiB/s. What
/// the crate allows for is half the link's rate, as its default (32 KiB/s) is half of the row's.
#[tokio::test]
async fn d16_a_throttled_link_carries_eight_mib_in_one_attempt() {
    let full = std::env::var_os("S3_WRITEBACK_SLOW_WIRE").is_some_and(|set| set == "1");
    let rate = if full { 64 * KIB } else { 640 * KIB };
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage
        .queue_with(dir.path(), |config| {
            config.multipart_threshold = 16 * MIB as u64;
            config.min_rate_bytes = rate / 2;
        })
        .await;
    stage.proxy.set_link(LinkSpeed {
        up: Some(rate),
        down: Some(rate),
        latency: Duration::from_millis(20),
    });
    let body = bytes(8 * MIB, 1);
    let expected = Duration::from_secs_f64(body.len() as f64 / rate as f64);
    let start = Instant::now();
    let receipt = submit(&queue, "slow", &body, Options::default()).await;
    let settled = receipt.uploaded().within(2 * expected).await;
    let took = start.elapsed();
    settled.unwrap();
    assert!(
        took >= expected.mul_f32(0.95),
        "{took:?}: the link was not slow"
    );
    assert!(took <= expected.mul_f32(1.5), "{took:?}");
    let counters = stage.server.counters();
    assert_eq!(counters.requests(Operation::PutObject), 1, "in one attempt");
    assert_eq!(queue.snapshot().unknown, 0);
    println!("8 MiB at {rate} B/s: {took:?}");
    shut_down(&stage, &queue).await;
}

/// D16: an attempt over a dead link ends at its own deadline, within a tenth of it, and the next
/// one succeeds. Dead in three ways: nobody reads, nobody answers, and a byte a second.
#[tokio::test]
async fn d16_a_dead_link_is_found_at_the_attempts_deadline() {
    let dead = [
        WireFault::HalfOpen,
        WireFault::AnswerLost,
        WireFault::Trickle(1),
    ];
    let of = async |fault: WireFault, len: usize| {
        let stage = Stage::new().await;
        let dir = tempfile::tempdir().unwrap();
        let (rate, floor) = (2 * MIB as u64, Duration::from_secs(4));
        let queue = stage
            .queue_with(dir.path(), |config| {
                config.multipart_threshold = 16 * MIB as u64;
                config.min_rate_bytes = rate;
                config.attempt_floor = floor;
            })
            .await;
        let rule = WireRule::new(fault).method("PUT").once();
        stage.proxy.plan().add(rule);
        let deadline = attempt_deadline(len as u64, rate, floor);
        let receipt = submit(&queue, "k", &bytes(len, 2), Options::default()).await;
        receipt.uploaded().within(3 * deadline).await.unwrap();
        // From the first attempt to what followed it: a retry, or the question what it did.
        let log = stage.proxy.counters().log;
        let first = log
            .iter()
            .find(|seen| seen.fault == Some(fault))
            .unwrap()
            .at;
        let next = log
            .iter()
            .map(|seen| seen.at)
            .find(|at| *at > first)
            .unwrap();
        let took = next - first;
        println!("{fault:?}, {len} bytes: ended after {took:?} of {deadline:?}");
        assert!(
            took >= deadline.mul_f32(0.9) && took <= deadline.mul_f32(1.1),
            "{fault:?}, {len} bytes: {took:?} of {deadline:?}"
        );
        stage.proxy.plan().clear();
        stage.server_is_idle().await;
        assert_eq!(stage.effects(Operation::PutObject, "k"), 1);
        shut_down(&stage, &queue).await;
        deadline
    };
    let small = futures::future::join_all(dead.map(|fault| of(fault, 1000))).await;
    let large = futures::future::join_all(dead.map(|fault| of(fault, 8 * MIB))).await;
    // The deadline is by size: a test of one alone would not see that.
    assert_eq!(small.first(), Some(&Duration::from_secs(4)));
    assert_eq!(large.first(), Some(&Duration::from_secs(6)));
}

/// Latency and bandwidth of the proxy are what they say, both ways.
#[tokio::test]
async fn the_link_is_as_slow_as_it_says() {
    let stage = Stage::new().await;
    let remote = stage.remote();
    let body = bytes(512 * 1024, 3);
    remote.put(put_of("k", &body, None)).await.unwrap();
    stage.proxy.set_link(LinkSpeed {
        up: None,
        down: Some(MIB as u64),
        latency: Duration::from_millis(100),
    });
    let start = Instant::now();
    let get = s3_writeback::remote::GetRequest {
        key: "k".to_owned(),
        range: None,
    };
    let got = remote.get(get).await.unwrap().unwrap();
    let took = start.elapsed();
    assert_eq!(got.body, body);
    // A tenth of a second each way, and half of one for half of a MiB.
    let expected = Duration::from_millis(700);
    assert!(took >= expected && took <= 2 * expected, "{took:?}");
}
