//! `kill -9` during checkpoints, gc and restore.
//!
//! A child process keeps a counter in each of many parts, raises all of them in one step, makes
//! checkpoints and looks for garbage all the time. It is killed at seeded moments, each an event
//! that the server sees, and another goes on in the same directory, or in one that is restored.
//! After every crash the latest checkpoint is restored and looked at; in the end nothing is left
//! that nobody names.
//!
//! `S3_WRITEBACK_KILLS=100` for more of them, `S3_WRITEBACK_KILL_SEED` for others.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, SharedCredentialsProvider};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::remote::{Remote, S3Remote};
use s3_writeback::testing::{Counters, Operation, S3Server, SeenRequest};
use s3_writeback::{
    CheckpointOptions, FileId, FileOptions, Mode, PartId, PartStore, Prefix, Restore, Role,
    StoreConfig,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const BUCKET: &str = "bucket";
const PREFIX: &str = "crashed";
const DEADLINE: Duration = Duration::from_secs(60);
const FILE: FileId = FileId(1);
const PARTS: u32 = 40;
const PART: u32 = 4096;
/// Its file comes and goes.
const OTHER: FileId = FileId(2);

fn remote(endpoint: &str) -> Arc<dyn Remote> {
    let credentials = Credentials::new("test", "test-secret", None, None, "test");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let remote = S3Remote::builder(&config)
        .bucket(BUCKET)
        .prefix(PREFIX)
        .build();
    Arc::new(remote.expect("a remote"))
}

fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir);
    config.queue.segment_bytes = 256 * 1024;
    config.queue.attempt_floor = Duration::from_secs(5);
    config.max_dirty_age = Duration::from_millis(20);
    config.pack_bytes = 64 * 1024;
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.gc_every = None;
    config.retain_checkpoints = 3;
    config
}

fn all() -> Vec<PartId> {
    (0..PARTS)
        .map(|index| PartId { file: FILE, index })
        .collect()
}

/// Puts a count into all parts, in one step.
async fn raise(set: &s3_writeback::GuardSet, count: u64) {
    let raised = count.to_le_bytes();
    let all = all().into_iter();
    let pieces: Vec<(PartId, usize, &[u8])> = all.map(|part| (part, 0, &raised[..])).collect();
    set.write(&pieces).await.expect("writes");
}

/// What the child does, until it is killed.
async fn work(endpoint: &str, dir: &Path, restores: bool) {
    let remote = remote(endpoint);
    if restores {
        let prefix = Prefix::new(Arc::clone(&remote));
        let what = Restore::latest().with_bytes();
        prefix
            .restore(&config(dir), what)
            .await
            .expect("is restored");
        println!("restored");
    }
    let opened = PartStore::builder(config(dir), remote)
        .take_over()
        .open()
        .await;
    let store = opened.expect("opens");
    let options = FileOptions { part_bytes: PART };
    let file = store.create_or_open(FILE, options).await.expect("is there");
    if file.is_empty() {
        file.set_len(u64::from(PARTS * PART)).await.expect("grows");
    }
    let locker = store.locker("child", Role::Foreground).expect("a locker");
    // What a crash may have torn, since nothing here is synced, is made whole first: that is an
    // engine's recovery.
    let mut count = 0;
    for index in 0..PARTS {
        let mut bytes = [0; 8];
        file.read_at(&mut bytes, u64::from(index * PART))
            .await
            .expect("reads");
        count = count.max(u64::from_le_bytes(bytes));
    }
    let set = store
        .lock_many(&all(), Mode::Exclusive, &locker)
        .await
        .expect("locks");
    raise(&set, count).await;
    let cleaner = store.clone();
    let clean = async move {
        loop {
            if let Err(error) = cleaner.gc().await {
                println!("gc: {error}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let checkpoints = store.clone();
    let commit = async move {
        loop {
            let made = checkpoints.checkpoint(CheckpointOptions::new()).await;
            let made = made.expect("is committed");
            println!("committed {}", made.number);
        }
    };
    let write = async move {
        loop {
            count += 1;
            let raised = count.to_le_bytes();
            raise(&set, count).await;
            if count.is_multiple_of(7) {
                let other = store
                    .create_or_open(OTHER, options)
                    .await
                    .expect("is there");
                other.write_at(&raised, 0).await.expect("writes");
            } else if count.is_multiple_of(11) && store.file(OTHER).is_ok() {
                store.drop_file(OTHER, &locker).await.expect("drops");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(clean, commit, write);
}

/// Not a test: what the parent starts.
#[tokio::test]
#[ignore = "is started, and killed, by the test below"]
async fn child() {
    let setting = |name: &str| std::env::var(name).expect("is set by the parent");
    let (endpoint, dir) = (
        setting("CRASH_ENDPOINT"),
        PathBuf::from(setting("CRASH_DIR")),
    );
    work(&endpoint, &dir, setting("CRASH_RESTORES") == "true").await;
}

fn start(server: &S3Server, dir: &Path, restores: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args([
            "checkpoint_crashes::child",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("CRASH_ENDPOINT", server.endpoint())
        .env("CRASH_DIR", dir)
        .env("CRASH_RESTORES", restores.to_string())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "127.0.0.1,localhost")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().expect("starts")
}

/// When the child is killed: when a request of this kind has come in for the n-th time.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Pack(u64),
    Manifest(u64),
    Head(u64),
    Delete(u64),
    List(u64),
    /// A read: of a header page, of an image, or of the tree; while it restores, most of all.
    Read(u64),
}

impl Moment {
    fn any(random: &mut StdRng, restores: bool) -> Self {
        let n = random.random_range(1..12);
        if restores && random.random_bool(0.6) {
            return Self::Read(random.random_range(1..40));
        }
        match random.random_range(0..5) {
            0 => Self::Pack(n * 3),
            1 => Self::Manifest(n),
            2 => Self::Head(n),
            3 => Self::Delete(n),
            _ => Self::List(n),
        }
    }

    fn is(self, request: &SeenRequest) -> bool {
        let key = request.key.as_deref().unwrap_or_default();
        let under = |name: &str| key.contains(&format!("{PREFIX}/{name}"));
        let put = request.operation == Operation::PutObject;
        match self {
            Self::Pack(_) => put && under("packs/"),
            Self::Manifest(_) => put && under("checkpoints/"),
            Self::Head(_) => put && under("head"),
            Self::Delete(_) => request.operation == Operation::DeleteObject,
            Self::List(_) => request.operation == Operation::ListObjectsV2,
            Self::Read(_) => request.operation == Operation::GetObject,
        }
    }

    fn count(self) -> u64 {
        match self {
            Self::Pack(n)
            | Self::Manifest(n)
            | Self::Head(n)
            | Self::Delete(n)
            | Self::List(n)
            | Self::Read(n) => n,
        }
    }

    fn has_come(self, since: u64, counters: &Counters) -> bool {
        let seen = counters
            .log
            .iter()
            .filter(|r| r.number > since && self.is(r));
        // The log is bounded: what fell out of it counts as having come.
        seen.count() as u64 >= self.count() || counters.total_requests() > since + 900
    }
}

/// What a child said before it was killed: the last checkpoint that it was told of.
async fn told(child: &mut Child) -> u64 {
    let stdout = child.stdout.take().expect("is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut last = 0;
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(number) = line.strip_prefix("committed ") {
            last = number.parse().expect("a number");
        }
    }
    last
}

/// Restores the latest checkpoint and looks at it: the counter, and the checkpoint's number.
async fn look(server: &S3Server) -> (u64, u64) {
    let prefix = Prefix::new(remote(&server.endpoint()));
    let report = prefix.verify(None).await.expect("there is one");
    assert_eq!(report.bad, 0, "{report:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("store");
    let restored = prefix.restore(&config(&at), Restore::latest()).await;
    let restored = restored.expect("is restored");
    let opened = PartStore::builder(config(&at), remote(&server.endpoint()))
        .stranded()
        .open()
        .await;
    let store = opened.expect("opens");
    let Ok(file) = store.file(FILE) else {
        panic!(
            "the file is not in it: {restored:?}, {report:?}, {:?}",
            store.files()
        );
    };
    let mut counts = Vec::new();
    for index in 0..file.len() / u64::from(PART) {
        let mut bytes = [0; 8];
        file.read_at(&mut bytes, index * u64::from(PART))
            .await
            .expect("reads");
        counts.push(u64::from_le_bytes(bytes));
    }
    store.shutdown().await.expect("shuts down");
    let first = counts.first().copied().unwrap_or(0);
    assert!(
        counts.iter().all(|count| *count == first),
        "half of a step: {counts:?}"
    );
    (first, restored.checkpoint.number)
}

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok().and_then(|text| text.parse().ok());
    set.unwrap_or(default)
}

#[tokio::test]
async fn the_latest_checkpoint_restores_whenever_the_process_is_killed() {
    let seed = setting("S3_WRITEBACK_KILL_SEED", 1);
    let kills = setting("S3_WRITEBACK_KILLS", 8);
    let mut random = StdRng::seed_from_u64(seed);
    let server = S3Server::builder()
        .bucket(BUCKET)
        .start()
        .await
        .expect("starts");
    let parent = tempfile::tempdir().expect("a directory");
    let (mut dir, mut restores) = (parent.path().join("0"), false);
    let (mut count, mut number) = (0, 0);
    let mut finished = 0;
    for kill in 0..kills {
        let moment = Moment::any(&mut random, restores);
        let what = format!("seed {seed}, kill {kill}: {moment:?}, restores {restores}");
        let since = server.counters().total_requests();
        let mut child = start(&server, &dir, restores);
        let came = server.wait_for(|counters| moment.has_come(since, counters), DEADLINE);
        let came = came.await;
        if came.is_err() {
            child.kill().await.expect("is killed");
            let output = child.wait_with_output().await.expect("ends");
            let said = String::from_utf8_lossy(&output.stdout);
            let said: Vec<&str> = said.lines().rev().take(20).collect();
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("{what}: {errors}{said:#?}");
        }
        child.start_kill().expect("is killed");
        let last = timeout(DEADLINE, told(&mut child)).await.expect("ends");
        child.wait().await.expect("ends");
        let listed = Prefix::new(remote(&server.endpoint())).checkpoints().await;
        if listed.expect("head is whole").is_empty() {
            assert_eq!((last, number), (0, 0), "{what}");
            continue;
        }
        let (counted, latest) = look(&server).await;
        assert!(
            latest >= last.max(number),
            "{what}: {latest}, told {last}, before {number}"
        );
        assert!(counted >= count, "{what}: {counted} after {count}");
        (count, number) = (counted, latest);
        finished += 1;
        println!("{what}: checkpoint {number}, count {count}");
        // Sometimes the machine is gone, and another goes on from the bucket; a restore that was
        // killed is finished in the same directory, or is not needed where its child was open.
        // One that was killed before its mark was there has nothing yet.
        let begun = dir.join("RESTORE").exists() || !dir.join("IDENTITY").exists();
        restores = begun || random.random_bool(0.3);
        if restores && !begun {
            dir = parent.path().join((kill + 1).to_string());
        }
    }
    assert!(
        finished * 2 > kills,
        "{finished} of {kills} had a checkpoint"
    );

    // The last owner cleans up after all of them.
    let mut config = config(&dir);
    config.stranded_retention = Duration::ZERO;
    config.checkpoint_at_shutdown = false;
    let at = remote(&server.endpoint());
    if restores {
        let prefix = Prefix::new(Arc::clone(&at));
        prefix
            .restore(&config, Restore::latest())
            .await
            .expect("is restored");
    }
    let opened = PartStore::builder(config, Arc::clone(&at))
        .take_over()
        .open()
        .await;
    let store = opened.expect("opens");
    // Until only what it committed itself is kept.
    for _ in 0..4 {
        let file = store.file(FILE).expect("is there");
        file.write_at(b"x", 100).await.expect("writes");
        store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect("is committed");
    }
    tokio::time::timeout(DEADLINE, async {
        // Dates have whole seconds: what was stranded a moment ago is not old yet.
        loop {
            let report = store.gc().await.expect("looks");
            if report.spared == 0 && report.deleted == 0 {
                return;
            }
            server
                .wait_for(|_| false, Duration::from_millis(300))
                .await
                .expect_err("only time passes");
        }
    })
    .await
    .expect("nothing is left over");
    let mut named = 0;
    for listed in store.checkpoints().await.expect("lists") {
        let report = Prefix::new(Arc::clone(&at))
            .verify(Some(listed.number))
            .await;
        assert_eq!(report.expect("verifies").bad, 0);
        named += 1;
    }
    assert_eq!(named, 3);
    assert!(server.uploads(BUCKET).is_empty());
    store.shutdown().await.expect("shuts down");
    println!("{} objects are left", server.objects(BUCKET).len());
}
