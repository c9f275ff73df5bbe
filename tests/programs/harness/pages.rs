//! Whole runs of the page engine, against an embedded server that works, limps or hangs.

use std::fs;

use s3_writeback::testing::{Operation, S3Server};
use serde_json::Value;

use super::process::{BUCKET, Run, number, run, server};

/// A file of 4 MiB with a quarter of it here at one time.
const SMALL: &[&str] = &[
    "--engine",
    "page",
    "--page-file-mib",
    "4",
    "--cache-mib",
    "1",
    "--part-kib",
    "16",
    "--page-bytes",
    "4096",
    "--row-bytes",
    "200",
    "--checkpoint-every",
    "0.3",
    "--json",
];
/// Eight parts, four of which can be here, two of them dirty; the writers are many more.
const CROWDED: &[&str] = &[
    "--engine",
    "page",
    "--page-file-mib",
    "2",
    "--cache-mib",
    "1",
    "--part-kib",
    "256",
    "--writers",
    "200",
    "--commit-rows",
    "2",
    "--json",
];
const WIDE: &[&str] = &[];
const NARROW: &[&str] = &["--workers", "1", "--queue-tasks", "1"];

async fn update(more: &[&str], width: &[&str]) -> Value {
    update_for("2", SMALL, more, width).await
}

async fn update_for(seconds: &str, shape: &[&str], more: &[&str], width: &[&str]) -> Value {
    let mut arguments = shape.to_vec();
    arguments.extend_from_slice(&["--seconds", seconds]);
    arguments.extend_from_slice(more);
    arguments.extend_from_slice(width);
    let json = run(&arguments).await.good();
    assert_eq!(json["engine"], "page", "{json}");
    assert_eq!(json["verified_from"], "s3", "{json}");
    for name in ["rows_acknowledged", "parts_uploaded", "pages_checked"] {
        assert!(number(&json, name) > 0, "{name}: {json}");
    }
    // The cache's own limit and half of it, and what is the checkpointer's beside either: the
    // engine's last pages are written in that role, however much is dirty.
    let reserve = 1 << 20;
    assert!(
        number(&json, "max_cache_bytes") <= (1 << 20) + reserve,
        "{json}"
    );
    assert!(
        number(&json, "max_dirty_bytes") <= (512 << 10) + reserve,
        "{json}"
    );
    assert!(number(&json, "shutdown_ms") <= number(&json, "shutdown_within_ms") + 500);
    json
}

/// It was loaded and evicted all the time.
fn came_and_went(json: &Value) {
    assert!(number(json, "loads") > 20, "{json}");
    assert!(number(json, "evictions") > 20, "{json}");
    assert!(number(json, "lock_waits") > 20, "{json}");
}

#[tokio::test]
async fn no_update_is_lost() {
    for width in [WIDE, NARROW] {
        let json = update(&[], width).await;
        came_and_went(&json);
        for name in ["dirty_parts", "deferred", "unknown", "refused"] {
            assert_eq!(number(&json, name), 0, "{name}: {json}");
        }
        // Together, in fewer requests than there are parts; and checkpoints beside.
        assert!(
            number(&json, "packs") < number(&json, "parts_uploaded"),
            "{json}"
        );
        assert!(number(&json, "checkpoints") > 2, "{json}");
        assert_eq!(number(&json, "verifications"), 1, "{json}");
    }
}

/// Hundreds of writers for a handful of parts: they wait for each other, and for room.
#[tokio::test]
async fn no_update_is_lost_where_many_want_the_same_part() {
    for width in [WIDE, NARROW] {
        let json = update_for("2", CROWDED, &[], width).await;
        assert!(number(&json, "lock_waits") > 100, "{json}");
    }
    // So many want so much of each other that little is done in a second, on a busy machine.
    let json = update_for("6", SMALL, &["--writers", "200"], WIDE).await;
    came_and_went(&json);
}

#[tokio::test]
async fn no_update_is_lost_where_s3_is_slow() {
    for width in [WIDE, NARROW] {
        update(&["--fault", "slow"], width).await;
    }
}

#[tokio::test]
async fn no_update_is_lost_where_s3_fails() {
    for width in [WIDE, NARROW] {
        let json = update(&["--fault", "errors"], width).await;
        came_and_went(&json);
        let (puts, packs) = (number(&json, "puts"), number(&json, "packs"));
        assert!(puts > packs, "no retry: {json}");
    }
}

#[tokio::test]
async fn no_update_is_lost_where_s3_hangs_for_a_while() {
    for width in [WIDE, NARROW] {
        update(&["--fault", "hang"], width).await;
    }
}

/// D1 with pages: S3 stops answering just before the end. Shutdown returns in time; all is read
/// from the directory, then brought up to date, then read from S3.
#[tokio::test]
async fn shutdown_with_dirty_parts_returns_in_time_where_s3_hangs_and_the_next_open_drains() {
    for width in [WIDE, NARROW] {
        let arguments = ["--fault", "hang-at-shutdown", "--shutdown-within", "5"];
        let json = update(&arguments, width).await;
        assert!(number(&json, "shutdown_ms") <= 5_500, "{json}");
        assert!(number(&json, "dirty_parts") > 0, "{json}");
        assert_eq!(number(&json, "lives"), 2, "{json}");
        assert_eq!(number(&json, "verifications"), 2, "{json}");
    }
}

/// A proof that cannot fail proves nothing: images that are gone, or that have other bytes, are
/// told as lost rows.
#[tokio::test]
async fn an_image_that_is_missing_or_damaged_in_s3_is_reported_as_lost_rows() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (work, acks) = (at("work"), at("acks"));
    let server = server().await;
    let endpoint = server.endpoint();
    let go = async |more: &[&str]| -> Run {
        let mut arguments = SMALL.to_vec();
        arguments.extend_from_slice(&["--dir", &work, "--ack-log", &acks]);
        arguments.extend_from_slice(&["--endpoint", &endpoint, "--bucket", BUCKET]);
        arguments.extend_from_slice(more);
        run(&arguments).await
    };
    let first = go(&["--seconds", "1"]).await.good();
    let again = go(&["--resume"]).await.good();
    assert_eq!(again["rows_acknowledged"], first["rows_acknowledged"]);

    // An earlier image of the same part is missed by nobody.
    let key = current_image(&server);
    let good = server.object(BUCKET, &key).unwrap();
    server.remove(BUCKET, &key).unwrap();
    let missing = go(&["--resume"]).await;
    assert_eq!(missing.status, Some(1), "{missing:?}");
    assert!(number(&missing.json(), "rows_lost") > 0, "{missing:?}");

    let mut damaged = good.to_vec();
    for byte in damaged.iter_mut().skip(16).step_by(1000) {
        *byte ^= 1;
    }
    server.insert(BUCKET, &key, damaged.into()).unwrap();
    let damaged = go(&["--resume"]).await;
    assert_eq!(damaged.status, Some(1), "{damaged:?}");
    assert!(number(&damaged.json(), "rows_lost") > 0, "{damaged:?}");

    server.insert(BUCKET, &key, good).unwrap();
    go(&["--resume"]).await.good();

    // A record of what was acknowledged that says more than there is.
    let mut more = fs::read_to_string(&acks).unwrap();
    more.push_str("0 1000000\n");
    fs::write(&acks, more).unwrap();
    let more = go(&["--resume"]).await;
    assert_eq!(more.status, Some(1), "{more:?}");
    assert_eq!(number(&more.json(), "rows_lost"), 1, "{more:?}");
}

/// The key of an object with images that are needed: the last that the restore read.
fn current_image(server: &S3Server) -> String {
    let counters = server.counters();
    let mut gets = counters.log.iter().rev();
    let get = gets.find(|request| {
        let key = request.key.as_deref().unwrap_or_default();
        request.operation == Operation::GetObject && key.contains("/packs/")
    });
    get.and_then(|request| request.key.as_deref())
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn bad_shapes_are_refused_with_what_is_wrong() {
    let refused = async |arguments: &[&str], says: &str| {
        let mut all = vec!["--engine", "page", "--seconds", "1"];
        all.extend_from_slice(arguments);
        let run = run(&all).await;
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(
            run.stderr.contains(says),
            "{says:?} is not in {}",
            run.stderr
        );
    };
    refused(&["--part-kib", "24"], "--part-kib 24").await;
    refused(&["--page-bytes", "131072"], "--page-bytes 131072").await;
    refused(&["--row-bytes", "9000"], "--row-bytes 9000").await;
    let many = ["--page-file-mib", "65536", "--row-bytes", "1"];
    refused(&many, "16777216 is the most").await;
}
