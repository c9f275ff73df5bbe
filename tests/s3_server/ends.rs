//! How a life of the queue ends: in order, under load, and by `kill -9`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use s3_writeback::remote::S3Remote;
use s3_writeback::testing::{LinkSpeed, WireCounters, WireFault, WireProxy, WireRule};
use s3_writeback::{Options, PauseWhat, UploadQueue};
use tokio::process::{Child, Command};

use crate::lane::{DEADLINE, Lane, MIB, bytes, config, uploaded};

const KEY: &str = "large";

/// Shutdown while much is on its way: each task is in S3 or durable here, never both lost; what
/// was left goes up in the next life.
pub async fn shutdown_under_load(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    // Slow enough that shutdown's deadline comes first, where a proxy can stand before the server.
    let proxy = match lane.address().await {
        Some(address) => {
            let link = LinkSpeed {
                up: Some(MIB as u64),
                ..LinkSpeed::default()
            };
            Some(WireProxy::to(address).link(link).start().await.unwrap())
        }
        None => None,
    };
    let through = proxy
        .as_ref()
        .map_or_else(|| lane.endpoint.clone(), WireProxy::endpoint);
    let remote = lane.remote_by(&through, "load-end");
    let queue = UploadQueue::builder(config(dir.path()), remote)
        .open()
        .await
        .unwrap();
    let tasks = 150_u64;
    // However long it takes to fill it, all is there when the shutdown begins.
    queue.pause(PauseWhat::Uploads);
    let mut last = None;
    for n in 0..tasks {
        let body = bytes(64 * 1024, n as u8);
        let receipt = queue
            .submit(format!("k{n}"), body, Options::default())
            .await;
        last = Some(receipt.unwrap());
    }
    // What is not durable when the disk is slow may be neither here nor there; that is not told
    // of here.
    last.unwrap().durable().await.unwrap();
    queue.resume(PauseWhat::Uploads);
    let within = Duration::from_secs(4);
    let report = queue.shutdown().within(within).await.unwrap();
    assert!(report.sealed, "{report:?}");
    assert!(report.took < within + Duration::from_secs(1), "{report:?}");
    let up = queue.snapshot().uploaded;
    assert_eq!(up + report.deferred, tasks, "{report:?}");
    assert!(proxy.is_none() || report.deferred > 0, "{report:?}");
    lane.say(&format!(
        "shutdown under load: {up} up, {} deferred, {:?}",
        report.deferred, report.took
    ));
    drop(queue);
    drop(proxy);

    let queue = lane.queue("load-end", dir.path()).await;
    assert_eq!(queue.pending().len() as u64, report.deferred);
    queue.drain().within(DEADLINE).await.unwrap();
    let report = queue.shutdown().await.unwrap();
    assert_eq!((report.deferred, report.quarantined), (0, 0), "{report:?}");
    for n in 0..tasks {
        let found = lane.object(&format!("load-end/k{n}")).await;
        assert_eq!(found, Some(bytes(64 * 1024, n as u8)), "k{n}");
    }
    assert_eq!(lane.sweep("load-end").await as u64, tasks);
}

pub fn is_child() -> bool {
    std::env::var_os("LANE_CHILD_DIR").is_some()
}

fn body() -> bytes::Bytes {
    bytes(16 * MIB, 9)
}

/// What is killed: it uploads one object in parts.
pub async fn child() {
    let setting = |name: &str| std::env::var(name).expect("is set by the parent");
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    let sdk = loader
        .endpoint_url(setting("LANE_CHILD_ENDPOINT"))
        .load()
        .await;
    let remote = S3Remote::builder(&sdk)
        .bucket(setting("LANE_CHILD_BUCKET"))
        .prefix(setting("LANE_CHILD_PREFIX"))
        .build()
        .expect("a remote");
    let dir = PathBuf::from(setting("LANE_CHILD_DIR"));
    let queue = UploadQueue::builder(config(&dir), Arc::new(remote))
        .open()
        .await;
    let queue = queue.expect("opens");
    let receipt = queue
        .submit(KEY, body(), Options::default())
        .await
        .expect("is taken");
    receipt.durable().await.expect("is durable");
    std::future::pending::<()>().await;
}

fn start(lane: &Lane, under: &str, endpoint: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .env("LANE_CHILD_DIR", dir)
        .env("LANE_CHILD_ENDPOINT", endpoint)
        .env("LANE_CHILD_BUCKET", &lane.bucket)
        .env("LANE_CHILD_PREFIX", format!("{}/{under}", lane.prefix))
        .env("NO_PROXY", "127.0.0.1,localhost")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    if let Some((key, secret)) = &lane.credentials {
        command
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_REGION", "us-east-1");
    }
    command.spawn().expect("starts")
}

/// A process is killed in the middle of an upload in parts, at three moments of it; the next life
/// makes the object, and leaves no upload behind.
pub async fn multipart_with_crash(lane: &Lane) {
    let Some(address) = lane.address().await else {
        lane.say("multipart_with_crash: left out, a proxy cannot stand before TLS");
        return;
    };
    for (n, target) in ["uploads", "partNumber=2", "uploadId="]
        .into_iter()
        .enumerate()
    {
        let under = format!("crash{n}");
        let dir = tempfile::tempdir().unwrap();
        let proxy = WireProxy::to(address).start().await.unwrap();
        let method = if target == "partNumber=2" {
            "PUT"
        } else {
            "POST"
        };
        // Carried out, and never answered: the last that the process knew is one step behind.
        let rule = WireRule::new(WireFault::AnswerLost).method(method);
        proxy.plan().add(rule.target_contains(target));
        let mut child = start(lane, &under, &proxy.endpoint(), dir.path());
        let struck = |seen: &WireCounters| seen.struck >= 1 && seen.answers == seen.requests;
        let struck = proxy.wait_for(struck, DEADLINE).await;
        struck.unwrap_or_else(|error| panic!("{target}: {error}"));
        child.kill().await.unwrap();
        proxy.stop().await;

        let queue = lane.queue(&under, dir.path()).await;
        for owed in queue.pending() {
            uploaded(&owed.receipt, target).await;
        }
        let found = lane.object(&format!("{under}/{KEY}")).await;
        assert_eq!(found, Some(body()), "{target}");
        let report = queue.shutdown().await.unwrap();
        assert_eq!((report.deferred, report.quarantined), (0, 0), "{report:?}");
        assert_eq!(lane.uploads().await, [""; 0], "{target}");
        lane.sweep(&under).await;
    }
}
