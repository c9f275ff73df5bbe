//! `kill -9` of the harness at seeded moments: no acknowledged row is lost, whenever it comes.
//!
//! The moments are events that the server sees, or that the process tells of, not times: what is
//! in flight then is known, and a slow machine tests the same thing.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::testing::{Counters, FaultRule, Operation, S3Server};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use super::process::{BUCKET, DEADLINE, Run, harness, number, server};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Log,
    Page,
}

/// When the process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This many bytes of bodies have come in: anywhere in an upload.
    Bytes(u64),
    /// The n-th PUT has come in, and is not answered.
    Put(u64),
    /// The n-th PUT was carried out, and its answer is held back: the client cannot know.
    Effect(u64),
    /// S3 has answered nothing since the n-th PUT, and every worker waits for it.
    Hanging(u64),
    /// The manifest comes in: shutdown is under way.
    Shutdown,
    /// The n-th GET has come in, and is not answered: a part is on its way in.
    Get(u64),
    /// Shutdown has come to this phase.
    Phase(&'static str),
}

const WORKERS: u64 = 3;
const PREFIX: &str = "killed";

impl Moment {
    fn any(random: &mut StdRng, engine: Engine) -> Self {
        let put = random.random_range(1..40);
        match (random.random_range(0..5), engine) {
            (0, _) => Self::Bytes(random.random_range(1..1_000_000)),
            (1, _) => Self::Put(put),
            (2, _) => Self::Effect(put),
            (3, _) => Self::Hanging(put),
            (_, Engine::Log) => Self::Shutdown,
            (_, Engine::Page) => match random.random_range(0..6) {
                0 => Self::Phase("checkpointing"),
                1 => Self::Phase("draining"),
                2 => Self::Phase("sealing"),
                _ => Self::Get(random.random_range(1..60)),
            },
        }
    }

    /// For how many seconds rows are inserted, where nothing ends that before: a machine may be
    /// slow.
    fn inserts(self) -> &'static str {
        match self {
            Self::Shutdown | Self::Phase(_) => "2",
            _ => "100",
        }
    }

    /// What the server has to do to make this moment last.
    fn prepare(self, server: &S3Server, engine: Engine) {
        let rule = match self {
            Self::Bytes(_) | Self::Shutdown | Self::Phase(_) => return,
            Self::Get(n) => {
                let rule = FaultRule::hang().skip(n - 1).once();
                server.faults().add(rule.on(Operation::GetObject));
                return;
            }
            Self::Put(n) => FaultRule::hang().skip(n - 1).once(),
            Self::Effect(n) => FaultRule::hang().after_effect().skip(n - 1).once(),
            Self::Hanging(n) => FaultRule::hang().skip(n - 1),
        };
        let rule = rule.on(Operation::PutObject);
        server.faults().add(match engine {
            Engine::Log => rule,
            // Not the first requests, which claim the prefix: there are no rows before them.
            Engine::Page => rule.prefix(&format!("{PREFIX}/packs/")),
        });
    }

    fn has_come(self, prefix: &str, counters: &Counters) -> bool {
        match self {
            Self::Bytes(n) => counters.bytes_received >= n,
            Self::Put(_) | Self::Effect(_) | Self::Get(_) => counters.hung >= 1,
            // The process tells of it.
            Self::Phase(_) => false,
            Self::Hanging(_) => counters.hung >= WORKERS,
            Self::Shutdown => {
                let manifests = format!("{prefix}/manifests/");
                let mut keys = counters.log.iter().rev().filter_map(|r| r.key.as_deref());
                keys.any(|key| key.starts_with(&manifests))
            }
        }
    }
}

/// A log small enough to be everywhere at once.
const LOG: &[&str] = &[
    "--engine",
    "log",
    "--segment-bytes",
    "20000",
    "--queue-tasks",
    "4",
    "--queue-bytes",
    "80000",
];
/// The same for pages: half of them fit into the cache.
const PAGE: &[&str] = &[
    "--engine",
    "page",
    "--page-file-mib",
    "2",
    "--cache-mib",
    "1",
    "--part-kib",
    "16",
    "--page-bytes",
    "4096",
    "--checkpoint-every",
    "0.2",
];

/// Starts the harness in `dir`, to insert for this many seconds; `None`: to go on from there.
fn start(server: &S3Server, dir: &Path, engine: Engine, inserts: Option<&str>) -> Child {
    let (work, acks) = (dir.join("work"), dir.join("acks"));
    let mut command = harness(&["--writers", "3", "--row-bytes", "200", "--commit-rows", "5"]);
    command
        .args(match engine {
            Engine::Log => LOG,
            Engine::Page => PAGE,
        })
        .args(["--rate", "1000000", "--shutdown-within", "5", "--json"])
        .args(["--workers", &WORKERS.to_string(), "--bucket", BUCKET])
        .args(["--endpoint", &server.endpoint(), "--prefix", PREFIX])
        .arg("--dir")
        .arg(work)
        .arg("--ack-log")
        .arg(acks)
        .env("RUST_LOG", "s3_writeback=info");
    match inserts {
        Some(seconds) => command.args(["--seconds", seconds]),
        None => command.arg("--resume"),
    };
    command.spawn().unwrap()
}

/// Waits until the process says that its shutdown has come to a phase.
async fn phase(child: &mut Child, phase: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let wanted = format!("phase={phase}");
    while let Some(line) = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap() {
        if line.contains(&wanted) {
            return;
        }
    }
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
    kill_again_and_again(Engine::Log).await;
}

/// The same for rows that are updated in place, in parts that come and go.
#[tokio::test]
async fn no_acknowledged_update_is_lost_where_the_process_is_killed() {
    kill_again_and_again(Engine::Page).await;
}

async fn kill_again_and_again(engine: Engine) {
    let seed = setting("S3_WRITEBACK_KILL_SEED", 1);
    let kills = setting("S3_WRITEBACK_KILLS", 3);
    let mut random = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        let moment = Moment::any(&mut random, engine);
        let again = random.random_bool(0.5);
        let what = format!("{engine:?}, seed {seed}, kill {kill}: {moment:?}, then again: {again}");
        let dir = tempfile::tempdir().unwrap();
        let server = server().await;
        moment.prepare(&server, engine);
        let mut child = start(&server, dir.path(), engine, Some(moment.inserts()));
        if let Moment::Phase(wanted) = moment {
            phase(&mut child, wanted).await;
            // It may have been faster.
            timeout(DEADLINE, child.kill()).await.unwrap().unwrap();
        } else {
            let came = kill_at(&server, child, |c| moment.has_come(PREFIX, c)).await;
            assert!(came.is_none(), "{what}: it ended first: {came:#?}");
        }
        server.faults().clear();
        if again {
            // Recovery is killed too, at its first PUT, where it has one to make.
            let puts = server.counters().requests(Operation::PutObject);
            let child = start(&server, dir.path(), engine, None);
            let ended = kill_at(&server, child, |c| c.requests(Operation::PutObject) > puts).await;
            if let Some(run) = ended {
                run.good();
            }
        }
        let run = Run::of(start(&server, dir.path(), engine, None)).await;
        assert_eq!(run.status, Some(0), "{what}: {run:#?}");
        let json = run.good();
        println!(
            "{what}: {} rows acknowledged, {} tasks and {} parts recovered, lost {}",
            number(&json, "rows_acknowledged"),
            number(&json, "recovered_tasks"),
            number(&json, "parts_uploaded"),
            number(&json, "rows_lost"),
        );
        assert!(number(&json, "rows_acknowledged") > 0, "{what}: {json}");
        if engine == Engine::Page {
            // From the directory as it was found, and from S3 alone.
            assert_eq!(json["verified_from"], "s3", "{what}: {json}");
            assert_eq!(number(&json, "verifications"), 2, "{what}: {json}");
        }
    }
}
