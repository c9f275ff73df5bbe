//! D13 on the wire: a real process is killed in the middle of an upload in parts.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use s3_writeback::testing::{Counters, FaultRule, Operation, S3Server, WireProxy};
use s3_writeback::{Options, UploadQueue};
use tokio::process::{Child, Command};

use super::stage::{
    BUCKET, DEADLINE, MIB, Stage, bytes, config, remote, shut_down, submit, uploaded,
};

const KEY: &str = "large";
const SEED: u8 = 7;

fn body() -> bytes::Bytes {
    bytes(16 * MIB, SEED)
}

/// Not a test: what the parent starts, and kills.
#[tokio::test]
#[ignore = "is started, and killed, by the test below"]
async fn child() {
    let setting = |name: &str| std::env::var(name).expect("is set by the parent");
    let dir = PathBuf::from(setting("WIRE_DIR"));
    let remote = Arc::new(remote(&setting("WIRE_ENDPOINT")));
    let queue = UploadQueue::builder(config(&dir), remote)
        .open()
        .await
        .unwrap();
    let receipt = submit(&queue, KEY, &body(), Options::default()).await;
    receipt.durable().await.unwrap();
    std::future::pending::<()>().await;
}

fn start(endpoint: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["wire::killed::child", "--exact", "--ignored", "--nocapture"])
        .env("WIRE_ENDPOINT", endpoint)
        .env("WIRE_DIR", dir)
        .env("NO_PROXY", "127.0.0.1,localhost")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// D13: `kill -9` at each request of an upload in parts, before it is carried out and after, the
/// answer never seen; the directory is opened again: the object is there, made by one completion,
/// and no upload is left that nobody knows of.
#[tokio::test]
async fn d13_kill_9_in_the_middle_of_an_upload_in_parts_leaves_no_upload_behind() {
    let moments = [
        (Operation::CreateMultipartUpload, 0),
        (Operation::UploadPart, 0),
        (Operation::UploadPart, 2),
        (Operation::CompleteMultipartUpload, 0),
    ];
    for (operation, skip) in moments {
        for carried_out in [false, true] {
            let what = format!("{operation:?} {skip}, carried out: {carried_out}");
            let server = S3Server::builder().bucket(BUCKET).start().await.unwrap();
            let proxy = WireProxy::to(server.address()).start().await.unwrap();
            let stage = Stage { server, proxy };
            let dir = tempfile::tempdir().unwrap();
            let hang = FaultRule::hang().on(operation).skip(skip);
            let hang = if carried_out {
                hang.after_effect()
            } else {
                hang
            };
            let hang = stage.server.faults().add(hang);
            let mut child = start(&stage.proxy.endpoint(), dir.path());
            let hung = |counters: &Counters| counters.hung >= 1;
            let hung = stage.server.wait_for(hung, DEADLINE).await;
            hung.unwrap_or_else(|error| panic!("{what}: {error}"));
            child.kill().await.unwrap();
            // What hangs when the process has gone is never carried out; what was, was.
            stage.proxy.cut_all();
            let gone = |seen: &s3_writeback::testing::WireCounters| seen.open == 0;
            stage.proxy.wait_for(gone, DEADLINE).await.unwrap();
            stage.server_is_idle().await;
            stage.server.faults().remove(hang);
            let queue = stage.queue(dir.path()).await;
            for owed in queue.pending() {
                uploaded(&owed.receipt, &what).await;
            }
            assert_eq!(stage.object(KEY), Some(body()), "{what}");
            let completed = stage.effects(Operation::CompleteMultipartUpload, KEY);
            assert_eq!(completed, 1, "{what}");
            // By now every upload that an earlier life began is either the object or aborted.
            shut_down(&stage, &queue).await;
            assert_eq!(stage.server.uploads(BUCKET), [], "{what}");
        }
    }
}
