//! Whole runs, against an embedded server that works, limps or hangs.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::process::{BUCKET, DEADLINE, Run, harness, number, run, server};

/// What is more than enough for the engine, and the least that there can be.
const WIDE: &[&str] = &[];
const NARROW: &[&str] = &["--workers", "1", "--queue-tasks", "1"];

async fn insert(more: &[&str], width: &[&str]) -> Value {
    let mut arguments = vec![
        "--engine",
        "log",
        "--seconds",
        "2",
        "--segment-bytes",
        "262144",
        "--json",
    ];
    arguments.extend_from_slice(more);
    arguments.extend_from_slice(width);
    let json = run(&arguments).await.good();
    assert!(number(&json, "rows_acknowledged") > 0);
    assert!(number(&json, "segments") > 1);
    if width == NARROW {
        assert_eq!(number(&json, "max_pending_tasks"), 1);
    }
    json
}

#[tokio::test]
async fn nothing_is_lost() {
    for width in [WIDE, NARROW] {
        let json = insert(&[], width).await;
        for name in [
            "deferred",
            "unknown",
            "recovered_tasks",
            "segments_left_local",
        ] {
            assert_eq!(number(&json, name), 0, "{name}: {json}");
        }
        for phase in ["quiescing", "draining", "stopping", "sealing"] {
            assert!(json["phases"][phase].is_u64(), "{phase}: {json}");
        }
        // One PUT each, and one for the manifest.
        assert_eq!(
            number(&json, "puts"),
            number(&json, "segments") + 1,
            "{json}"
        );
        assert!(number(&json, "peak_rss_bytes") > 0);
        assert!(number(&json, "shutdown_ms") <= number(&json, "shutdown_within_ms") + 500);
    }
}

#[tokio::test]
async fn nothing_is_lost_where_s3_is_slow() {
    for width in [WIDE, NARROW] {
        insert(&["--fault", "slow"], width).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_where_s3_fails() {
    for width in [WIDE, NARROW] {
        let json = insert(&["--fault", "errors"], width).await;
        let puts = number(&json, "puts");
        assert!(puts > number(&json, "segments") + 1, "no retry: {json}");
    }
}

#[tokio::test]
async fn nothing_is_lost_where_s3_hangs_for_a_while() {
    for width in [WIDE, NARROW] {
        insert(&["--fault", "hang"], width).await;
    }
}

/// D1, as a process: S3 stops answering just before the end. Shutdown returns in time, and the
/// next open brings S3 up to date.
#[tokio::test]
async fn shutdown_returns_in_time_where_s3_hangs_and_the_next_open_drains() {
    for width in [WIDE, NARROW] {
        let arguments = ["--fault", "hang-at-shutdown", "--shutdown-within", "5"];
        let json = insert(&arguments, width).await;
        assert!(number(&json, "shutdown_ms") <= 5_500, "{json}");
        assert!(number(&json, "deferred") > 0, "{json}");
        assert!(
            number(&json, "recovered_tasks") >= number(&json, "deferred"),
            "{json}"
        );
        assert_eq!(number(&json, "lives"), 2, "{json}");
    }
}

/// A first signal starts the ordered shutdown.
#[tokio::test]
async fn an_interrupt_shuts_down_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let acks = dir.path().join("acks");
    let acks = acks.to_str().unwrap();
    let server = server().await;
    let endpoint = server.endpoint();
    let mut child = harness(&[
        "--engine",
        "log",
        "--seconds",
        "600",
        "--segment-bytes",
        "65536",
        "--json",
        "--ack-log",
        acks,
        "--endpoint",
        &endpoint,
        "--bucket",
        BUCKET,
    ])
    .spawn()
    .unwrap();
    let seen = server.wait_for(|c| c.total_requests() > 10, DEADLINE).await;
    seen.unwrap();
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(kill.unwrap().success());
    timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    let json = Run::of(child).await.good();
    assert!(number(&json, "rows_acknowledged") > 0);
    assert!(number(&json, "shutdown_ms") <= number(&json, "shutdown_within_ms") + 500);
}

/// A proof that cannot fail proves nothing: objects that are gone, or that have other bytes, are
/// told as lost rows.
#[tokio::test]
async fn what_is_missing_or_damaged_in_s3_is_reported_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (work, acks) = (at("work"), at("acks"));
    let server = server().await;
    let endpoint = server.endpoint();
    let common = [
        "--engine",
        "log",
        "--dir",
        &work,
        "--ack-log",
        &acks,
        "--endpoint",
        &endpoint,
        "--bucket",
        BUCKET,
        "--json",
    ];
    let with = |more: &[&'static str]| {
        let mut arguments = common.to_vec();
        arguments.extend_from_slice(more);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let go = async |more: &[&'static str]| {
        let arguments = with(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&arguments).await
    };
    let first = go(&["--seconds", "1", "--segment-bytes", "65536"])
        .await
        .good();
    let again = go(&["--resume"]).await.good();
    assert_eq!(again["rows_acknowledged"], first["rows_acknowledged"]);

    let key = "harness/segments/00000001";
    let good = server.object(BUCKET, key).unwrap();
    server.remove(BUCKET, key).unwrap();
    let missing = go(&["--resume"]).await;
    assert_eq!(missing.status, Some(1), "{missing:?}");
    assert!(number(&missing.json(), "rows_lost") > 0);

    // A whole row whose payload is another row's: its own checksum holds, its bytes are wrong.
    let mut damaged = good.to_vec();
    let row = 24 + 1024;
    damaged.copy_within(row..2 * row, 0);
    server.insert(BUCKET, key, damaged.into()).unwrap();
    let damaged = go(&["--resume"]).await;
    assert_eq!(damaged.status, Some(1), "{damaged:?}");
    assert!(number(&damaged.json(), "rows_lost") > 0);

    server.insert(BUCKET, key, good).unwrap();
    go(&["--resume"]).await.good();
}

#[tokio::test]
async fn bad_input_is_refused_with_what_is_wrong() {
    let server = server().await;
    let endpoint = server.endpoint();
    let here = [
        "--endpoint",
        endpoint.as_str(),
        "--bucket",
        BUCKET,
        "--engine",
        "log",
        "--seconds",
        "1",
    ];
    let refused = async |arguments: &[&str], says: &str| {
        let run = run(arguments).await;
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(
            run.stderr.contains(says),
            "{says:?} is not in {}",
            run.stderr
        );
    };
    refused(&["--queue-bytes", "1000"], "--queue-bytes 1000").await;
    refused(&["--queue-tasks", "0"], "0 is not in 1..=1000").await;
    refused(&["--resume"], "--dir").await;
    refused(&["--prefix", "/a"], "--prefix").await;
    let faulty = ["--endpoint", &endpoint, "--fault", "slow"];
    refused(&faulty, "embedded server").await;
    let nowhere = [
        "--endpoint",
        &endpoint,
        "--bucket",
        "nowhere",
        "--engine",
        "log",
        "--seconds",
        "1",
    ];
    refused(&nowhere, "NoSuchBucket").await;

    let mut stranger = harness(&here);
    stranger
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .stderr(Stdio::piped());
    let mut stranger = stranger.spawn().unwrap();
    let mut lines = BufReader::new(stranger.stderr.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
    let line = line.unwrap_or_default();
    assert!(line.contains("SignatureDoesNotMatch"), "{line}");
    assert!(!line.contains("wrong"), "{line}");

    server.insert(BUCKET, "harness/x", "x".into()).unwrap();
    refused(&here, "is there already").await;
}
