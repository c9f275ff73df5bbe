//! `kill -9` of the harness at seeded moments: no acknowledged row is lost, whenever it comes.
//!
//! The moments are events that the server sees, not times: what is in flight then is known, and
//! a slow machine tests the same thing.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::testing::{Counters, FaultRule, Operation, S3Server};
use tokio::process::Child;
use tokio::time::timeout;

use crate::process::{BUCKET, DEADLINE, Run, harness, number, server};

/// When the process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This many bytes of bodies have come in: anywhere in an upload.
    Bytes(u64),
    /// The n-th PUT has come in, and is not answered.
    Put(u64),
    /// The n-th PUT was carried out, and its answer is held back: the client cannot know.
    Effect(u64),
    /// S3 has answered nothing since the n-th PUT, and this many more requests hang: the queue
    /// S3 has answered nothing since the n-th PUT, and every worker waits for it.
    Hanging(u64),
    /// The manifest comes in: shutdown is under way.
    Shutdown,
}

const WORKERS: u64 = 3;

impl Moment {
    fn any(random: &mut StdRng) -> Self {
        let put = random.random_range(1..40);
        match random.random_range(0..5) {
            0 => Self::Bytes(random.random_range(1..1_000_000)),
            1 => Self::Put(put),
            2 => Self::Effect(put),
            3 => Self::Hanging(put),
            _ => Self::Shutdown,
        }
    }

    /// What the server has to do to make this moment last.
    fn prepare(self, server: &S3Server) {
        let rule = match self {
            Self::Bytes(_) | Self::Shutdown => return,
            Self::Put(n) => FaultRule::hang().skip(n - 1).once(),
            Self::Effect(n) => FaultRule::hang().after_effect().skip(n - 1).once(),
            Self::Hanging(n) => FaultRule::hang().skip(n - 1),
        };
        server.faults().add(rule.on(Operation::PutObject));
    }

    fn has_come(self, prefix: &str, counters: &Counters) -> bool {
        match self {
            Self::Bytes(n) => counters.bytes_received >= n,
            Self::Put(_) | Self::Effect(_) => counters.hung >= 1,
            Self::Hanging(_) => counters.hung >= WORKERS,
            Self::Shutdown => {
                let manifests = format!("{prefix}/manifests/");
                let mut keys = counters.log.iter().rev().filter_map(|r| r.key.as_deref());
                keys.any(|key| key.starts_with(&manifests))
            }
        }
    }
}

/// Starts the harness in `dir`, with an engine small enough to be everywhere at once.
fn start(server: &S3Server, dir: &Path, prefix: &str, resume: bool) -> Child {
    let (work, acks) = (dir.join("work"), dir.join("acks"));
    let mut command = harness(&["--writers", "3", "--row-bytes", "200", "--commit-rows", "5"]);
    command
        .args([
            "--segment-bytes",
            "20000",
            "--queue-tasks",
            "4",
            "--queue-bytes",
            "80000",
        ])
        .args([
            "--rate",
            "1000000",
            "--seconds",
            "2",
            "--shutdown-within",
            "5",
            "--json",
        ])
        .args(["--workers", &WORKERS.to_string(), "--bucket", BUCKET])
        .args(["--endpoint", &server.endpoint(), "--prefix", prefix])
        .arg("--dir")
        .arg(work)
        .arg("--ack-log")
        .arg(acks);
    if resume {
        command.arg("--resume");
    }
    command.spawn().unwrap()
}

/// Kills the process where the moment comes before its end; whether it did.
async fn kill_at(
    server: &S3Server,
    mut child: Child,
    came: impl FnMut(&Counters) -> bool,
) -> Option<Run> {
    tokio::select! {
        seen = server.wait_for(came, DEADLINE) => {
            seen.unwrap();
        }
        ended = child.wait() => {
            ended.unwrap();
            return Some(Run::of(child).await);
        }
    }
    // SIGKILL, and the process is gone when this returns.
    timeout(DEADLINE, child.kill()).await.unwrap().unwrap();
    None
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
        Err(_) => default,
    }
}

/// C1 for the whole stack, as far as a process can be killed from outside.
#[tokio::test]
async fn no_acknowledged_row_is_lost_where_the_process_is_killed() {
    let seed = setting("S3_WRITEBACK_KILL_SEED", 1);
    let kills = setting("S3_WRITEBACK_KILLS", 3);
    let mut random = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        let moment = Moment::any(&mut random);
        let again = random.random_bool(0.5);
        let what = format!("seed {seed}, kill {kill}: {moment:?}, then again: {again}");
        let dir = tempfile::tempdir().unwrap();
        let server = server().await;
        moment.prepare(&server);
        let child = start(&server, dir.path(), "killed", false);
        let came = kill_at(&server, child, |c| moment.has_come("killed", c)).await;
        assert!(came.is_none(), "{what}: it ended first: {came:#?}");
        server.faults().clear();
        if again {
            // Recovery is killed too, at its first PUT, where it has one to make.
            let puts = server.counters().requests(Operation::PutObject);
            let child = start(&server, dir.path(), "killed", true);
            let ended = kill_at(&server, child, |c| c.requests(Operation::PutObject) > puts).await;
            if let Some(run) = ended {
                run.good();
            }
        }
        let run = Run::of(start(&server, dir.path(), "killed", true)).await;
        assert_eq!(run.status, Some(0), "{what}: {run:#?}");
        let json = run.good();
        println!(
            "{what}: {} rows acknowledged, {} recovered, lost {}",
            number(&json, "rows_acknowledged"),
            number(&json, "recovered_tasks"),
            number(&json, "rows_lost"),
        );
        assert!(number(&json, "rows_acknowledged") > 0, "{what}: {json}");
    }
}
