//! The example `probe` as a process: what its exit status says.
//!
//! `cargo test` builds the example; `cargo test --test programs probe` alone does not.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use s3_writeback::testing::{Action, FaultRule, Operation, S3Server};
use serde_json::Value;
use tokio::process::Command;

const BUCKET: &str = "bucket";

async fn probe(endpoint: &str, arguments: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples/probe");
    assert!(example.is_file(), "cargo build --example probe");
    let mut command = Command::new(example);
    command
        .args(["--endpoint", endpoint, "--bucket", BUCKET])
        .args(arguments)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test-secret")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "127.0.0.1,localhost")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(100), command.output()).await;
    output.expect("the probe hangs").unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

async fn server() -> S3Server {
    S3Server::builder().bucket(BUCKET).start().await.unwrap()
}

fn is_clean(server: &S3Server) {
    assert_eq!(server.objects(BUCKET), []);
    assert!(server.uploads(BUCKET).is_empty());
}

#[tokio::test]
async fn a_server_as_s3_is_safe_to_fence_on() {
    let server = server().await;
    let output = probe(&server.endpoint(), &["--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = json(&output);
    assert_eq!(found["fenced_mode_is_safe"], true);
    assert_eq!(found["trailers"], "taken");
    assert_eq!(
        found["multipart"]["small_parts"],
        "refused: 400 EntityTooSmall"
    );
    assert_eq!(found["adaptations"]["entity_tags"], "as_s3");
    let checksums = found["checksums"].as_array().unwrap();
    assert_eq!(checksums.len(), 5);
    for checksum in checksums {
        let verdict = checksum[1].as_str().unwrap();
        assert_eq!(verdict, "verified (400 BadDigest)", "{checksum}");
    }
    assert!(
        found["clock_ahead_ms"].as_i64().unwrap().abs() < 5000,
        "{found}"
    );
    assert!(found["latency"]["head_ms"]["median"].as_f64().unwrap() > 0.0);
    is_clean(&server);
    let output = probe(&server.endpoint(), &[]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("compare and swap") && text.contains("fenced mode is safe"),
        "{text}"
    );
}

/// A server that says yes to everything, and one that does so on PUTs alone, as some releases do.
#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused() {
    let ignore = || FaultRule::new(Action::IgnoreConditions);
    for (rule, says) in [
        (ignore(), "If-None-Match: * is ignored"),
        (
            ignore().on(Operation::PutObject),
            "If-Match on a missing key is ignored",
        ),
    ] {
        let server = server().await;
        server.faults().add(rule);
        let output = probe(&server.endpoint(), &["--json"]).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(json(&output)["fenced_mode_is_safe"], false);
        let output = probe(&server.endpoint(), &[]).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("fenced mode is NOT safe") && text.contains(says),
            "{text}"
        );
        is_clean(&server);
    }
}

#[tokio::test]
async fn what_could_not_be_found_out_is_not_called_safe() {
    let server = server().await;
    let endpoint = server.endpoint();
    server.faults().hang_all();
    let output = probe(&endpoint, &["--within", "4"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(why.contains("could not tell"), "{why}");
    server.stop().await;
    let output = probe(&endpoint, &["--within", "4"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test]
async fn it_makes_a_bucket_where_it_is_asked_to() {
    let server = S3Server::builder().start().await.unwrap();
    let output = probe(&server.endpoint(), &[]).await;
    assert_eq!(
        output.status.code(),
        Some(2),
        "there is no bucket: {output:?}"
    );
    let output = probe(&server.endpoint(), &["--make-bucket"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    is_clean(&server);
}
