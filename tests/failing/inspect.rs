//! Real processes that abort: what is found beside them and after them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::inspect::{InspectedTask, Inspection, inspect};
use s3_writeback::remote::{
    CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse, ListPage, MultipartUpload,
    ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture, UploadPart,
};
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{Cause, Config, Options, PauseWhat, UploadQueue};
use tokio::io::AsyncBufReadExt;
use tokio::time::Instant;

/// Nothing here takes this long; a child that does ends itself.
const LIMIT: Duration = Duration::from_secs(60);
const DIR: &str = "S3_WRITEBACK_INSPECTED";
const FLAKY: &str = "S3_WRITEBACK_FLAKY";
const SIGABRT: i32 = 6;
const OTHERS: usize = 20;

/// A server to which one upload kills its process, when it is told to, and another fails.
struct Deadly(SimRemote);

impl Remote for Deadly {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            match request.key.as_str() {
                "culprit" => {
                    println!("\n@attempt");
                    let mut line = String::new();
                    let mut stdin = tokio::io::BufReader::new(tokio::io::stdin());
                    let _ = tokio::time::timeout(LIMIT, stdin.read_line(&mut line)).await;
                    std::process::abort();
                }
                "flaky" if std::env::var_os(FLAKY).is_some() => {
                    let said = "\u{20ac}".repeat(1 << 20);
                    Err(RemoteError::transient("PutObject").with_message(&said))
                }
                _ => self.0.put(request).await,
            }
        })
    }
    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        self.0.get(request)
    }
    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        self.0.head(key)
    }
    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        self.0.delete(key, if_match)
    }
    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        self.0.list(prefix, from)
    }
    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        self.0.create_multipart(request)
    }
    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        self.0.upload_part(request)
    }
    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        self.0.complete_multipart(request)
    }
    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        self.0.abort_multipart(key, upload_id)
    }
    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        self.0.list_multipart(key)
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// One life: what an earlier one left, or all that is submitted in the first.
#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn a_process_that_aborts() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let mut config = Config::new(dir);
    config.workers = 1;
    config.segment_bytes = 64 * 1024;
    config.inline_bytes = 4 * 1024;
    let queue = UploadQueue::builder(config, Arc::new(Deadly(SimRemote::new())));
    let queue = queue.open().within(LIMIT).await.unwrap();
    if queue.pending().is_empty() {
        queue.pause(PauseWhat::Uploads);
        let others = (0..OTHERS).map(|at| format!("other/{at}"));
        let keys = ["flaky", "culprit"].map(str::to_owned).into_iter();
        for key in keys.chain(others) {
            let body = vec![7_u8; 10_000];
            let options = Options {
                tag: format!("tag of {key}"),
                ..Options::default()
            };
            let receipt = queue.submit(key, body, options).within(LIMIT).await;
            receipt.unwrap().durable().within(LIMIT).await.unwrap();
        }
        queue.resume(PauseWhat::Uploads);
    }
    for task in queue.pending() {
        task.receipt.settled().within(LIMIT).await.unwrap();
    }
    queue.shutdown().within(LIMIT).await.unwrap();
}

/// A life, which ends with this.
struct Life(Child);

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Life {
    fn start(dir: &Path, flaky: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "inspect::a_process_that_aborts";
        command
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if flaky {
            command.env(FLAKY, "1");
        }
        Self(command.spawn().unwrap())
    }

    /// Waits until it is at the upload that will kill it.
    fn at_the_culprit(&mut self) {
        let said = BufReader::new(self.0.stdout.take().unwrap());
        let mut lines = said.lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "@attempt"), "no attempt is made");
    }

    /// What is done while it does nothing.
    fn stopped<T>(&self, what: impl FnOnce() -> T) -> T {
        let signal = |name: &str| {
            let kill = format!("kill -{name} {}", self.0.id());
            let done = Command::new("sh").args(["-c", &kill]).status().unwrap();
            assert!(done.success(), "{kill}");
        };
        signal("STOP");
        let result = what();
        signal("CONT");
        result
    }

    fn die(mut self) -> ExitStatus {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        self.0.wait().unwrap()
    }
}

/// All that there is of a file or folder: what it is, when it was changed, and its bytes.
type Seen = (u64, u32, i128, i128, Vec<u8>);

fn tree(dir: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::metadata(&path).unwrap();
        let time = |seconds: i64, nanos: i64| i128::from(seconds) << 32 | i128::from(nanos);
        let bytes = match meta.is_dir() {
            true => {
                let inside = std::fs::read_dir(&path).unwrap();
                todo.extend(inside.map(|entry| entry.unwrap().path()));
                Vec::new()
            }
            false => std::fs::read(&path).unwrap(),
        };
        let (modified, changed) = (
            time(meta.mtime(), meta.mtime_nsec()),
            time(meta.ctime(), meta.ctime_nsec()),
        );
        seen.insert(path, (meta.ino(), meta.mode(), modified, changed, bytes));
    }
    seen
}

/// Where cargo puts the example: beside the tests' own folder.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples/inspect");
    assert!(
        example.is_file(),
        "{} is missing: `cargo test` builds it, or `cargo build --example inspect`",
        example.display()
    );
    example
}

/// What the tool prints.
fn tool(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(example());
    let output = command.arg(dir).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Looks, by the function and by the tool in both its forms; nothing is changed by it.
fn look(dir: &Path) -> Inspection {
    let before = tree(dir);
    let found = inspect(dir).unwrap();
    let text = tool(dir, &[]);
    let json: serde_json::Value = serde_json::from_str(&tool(dir, &["--json"])).unwrap();
    assert!(before == tree(dir), "looking changed something");
    assert!(text.contains("\"culprit\""), "{text}");
    assert_eq!(text.contains("SUSPECT"), found.suspects > 0, "{text}");
    assert_eq!(json, serde_json::to_value(&found).unwrap());
    found
}

/// C13: the process aborts at the same task in each of its lives. Beside it and after it, what it
/// owes, what failed and how, and what is suspected is found; not one byte, time or lock of the
/// directory changes, and the loop goes on as it would have.
#[test]
fn c13_a_crash_looping_directory_is_looked_at_and_not_changed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("queue");
    for life in 1..=3 {
        let mut process = Life::start(&dir, true);
        process.at_the_culprit();
        // Beside it, while it writes: until the note of this life's attempt is there.
        let until = Instant::now() + LIMIT;
        loop {
            let found = inspect(&dir).unwrap();
            assert!(found.damage.is_empty() && found.unreadable.is_empty());
            let noted = |task: &InspectedTask| task.in_flight && task.crashes == life;
            if found.tasks.iter().any(noted) {
                break;
            }
            assert!(Instant::now() < until, "{found:?}");
        }
        let beside = process.stopped(|| look(&dir));
        let pid = process.0.id().to_string();
        assert!(beside.last_holder.unwrap().contains(&pid));
        let status = process.die();
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");

        // After it. Whoever has the lock is nothing to us.
        let lock = std::fs::File::open(dir.join("LOCK")).unwrap();
        lock.try_lock().unwrap();
        let found = look(&dir);
        drop(lock);
        assert!(!found.clean && !found.moved && !found.is_part_store);
        assert!(found.damage.is_empty() && found.unreadable.is_empty());
        // Of another prefix than the culprit, one has its turn before it.
        let owed = found.tasks.len() as u64;
        assert!(owed > OTHERS as u64, "{owed}");
        assert_eq!(found.task_bytes, owed * 10_000);
        assert_eq!((found.suspects, found.quarantined), (1, 0));
        assert!(found.folders["payload"].files >= owed);
        assert!(found.folders["payload"].bytes >= found.task_bytes);
        let of = |key: &str| found.tasks.iter().find(|task| task.key == key).unwrap();
        let culprit = of("culprit");
        assert!(culprit.in_flight && culprit.suspect && culprit.quarantined.is_none());
        assert_eq!((culprit.crashes, culprit.attempts_failed), (life, 0));
        assert!(culprit.may_land_until_unix_ms.is_some());
        let flaky = of("flaky");
        assert!(!flaky.suspect && !flaky.in_flight && flaky.crashes == 0);
        assert!(flaky.attempts_failed >= 1, "{flaky:?}");
        let said = flaky.last_error.as_deref().unwrap();
        assert!(said.len() <= 1024 && said.ends_with('\u{20ac}'), "{said}");
        let other = of("other/7");
        assert_eq!((other.len, other.tag.as_str()), (10_000, "tag of other/7"));
        assert!(!other.in_flight && other.last_error.is_none());
    }
    let mut process = Life::start(&dir, false);
    let status = process.0.wait().unwrap();
    assert!(status.success(), "{status}");
    let found = look(&dir);
    assert!(found.clean);
    assert_eq!((found.suspects, found.quarantined), (0, 1));
    let [culprit] = &found.tasks[..] else {
        panic!("{:?}", found.tasks)
    };
    let crashes = Cause::CrashLoop { crashes: 3 };
    assert_eq!(
        (culprit.key.as_str(), &culprit.quarantined),
        ("culprit", &Some(crashes))
    );
}

/// What is nobody's is said to be, and is not made into one.
#[test]
fn what_is_no_directory_of_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let before = tree(dir.path());
    let text = inspect(dir.path()).unwrap_err().to_string();
    assert!(text.contains("not the directory of a queue"), "{text}");
    assert!(inspect(dir.path().join("missing")).is_err());
    assert!(before == tree(dir.path()));
    let output = Command::new(example()).arg(dir.path()).output().unwrap();
    assert!(!output.status.success() && !output.stderr.is_empty());
}
