//! The same rows under a queue: what its worker does about each.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use s3_writeback::remote::{Class, Effect};
use s3_writeback::{Cause, Config, Options, Settlement, UploadQueue};

use super::table::{On, Row, Then, rows};
use super::{TOGETHER, remote_at};
use crate::scripted::{Action, Scripted};

/// Nothing here takes this long.
const LIMIT: Duration = Duration::from_secs(60);

fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::new(dir);
    config.workers = 1;
    config.segment_bytes = 64 * 1024;
    config.inline_bytes = 4 * 1024;
    config.attempt_floor = Duration::from_secs(2);
    config.retry_base = Duration::from_millis(1);
    config.retry_cap = Duration::from_millis(10);
    config.probe_interval = Duration::from_millis(10);
    config
}

async fn look_at(row: &Row, action: Action) -> Result<(), String> {
    let foreign = Action::with(
        200,
        &[("etag", "\"theirs\""), ("content-length", "5")],
        "12345",
    );
    let next = match row.then {
        Then::Look => foreign,
        _ => Action::ok(),
    };
    let server = Scripted::start([action, next]).await;
    let remote = Arc::new(remote_at(&server.endpoint(), true));
    let dir = tempfile::tempdir().unwrap();
    let queue = UploadQueue::builder(config(dir.path()), remote)
        .open()
        .within(LIMIT)
        .await
        .unwrap();
    let receipt = queue.submit("k", "x", Options::default()).await.unwrap();
    let end = receipt.settled().within(LIMIT).await;
    let end = end.map_err(|error| error.to_string())?;
    let snapshot = queue.snapshot();
    let (requests, good) = match (row.then, &end) {
        (Then::Again, Settlement::Uploaded(_)) => (2, true),
        // It may have been a checksum's header: without it the server takes it.
        (Then::Quarantine, Settlement::Uploaded(_)) if row.code == "NotImplemented" => (2, true),
        (Then::Quarantine, Settlement::Quarantined(Cause::Refused(error))) => {
            (1, error.code.as_deref().unwrap_or_default() == row.code)
        }
        (Then::Look, Settlement::PreconditionFailed) => (2, true),
        _ => (0, false),
    };
    if !good || server.attempts() != requests {
        return Err(format!("{end:?} after {} requests", server.attempts()));
    }
    let methods: Vec<_> = server
        .captured()
        .into_iter()
        .map(|sent| sent.method)
        .collect();
    if row.then == Then::Look && methods != ["PUT", "HEAD"] {
        return Err(format!("{methods:?}"));
    }
    if snapshot.unknown != u64::from(row.effect == Effect::Unknown) {
        return Err(format!("{} replies were lost", snapshot.unknown));
    }
    if row.code == "NotImplemented" {
        // The remote has found another way.
        return Ok(());
    }
    // Visible afterwards, too: whoever looks later finds what was said, and how often.
    let [seen] = &snapshot.remote_errors[..] else {
        return Err(format!("counted as {:?}", snapshot.remote_errors));
    };
    let given_up = row.status().is_none() && seen.code == "(given up)";
    let alike = given_up || (seen.status == row.status() && seen.class == row.class);
    let listed = row.code != "NeverHeardOf";
    if !alike || seen.count != 1 || seen.listed != listed {
        return Err(format!("counted as {seen:?}"));
    }
    if row.then == Then::Quarantine && seen.class != Class::Permanent {
        return Err(format!("counted as {seen:?}"));
    }
    queue.shutdown().within(LIMIT).await.unwrap();
    Ok(())
}

/// What a worker does about each row of a write-once upload: again, quarantine, or a look; and
/// each is counted by its code in the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_has_its_reaction() {
    let rows: Vec<_> = rows()
        .into_iter()
        .filter(|row| row.on == On::Put && row.then != Then::Other)
        .filter_map(|row| row.action().map(|action| (row, action)))
        .collect();
    assert!(rows.len() > 70);
    let looked = futures::stream::iter(rows).map(async |(row, action)| {
        let found = look_at(&row, action).await;
        found.map_err(|wrong| format!("{} {:?}: {wrong}", row.name, row.does))
    });
    let wrong: Vec<String> = looked
        .buffer_unordered(TOGETHER)
        .filter_map(async |result| result.err())
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
