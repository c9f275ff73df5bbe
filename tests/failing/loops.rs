//! Loops of crashes (C2): by a task, and by opening itself. Real processes that really die.
#![allow(
    clippy::disallowed_methods,
    reason = "real processes, in the time that there is"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, OsFs};
use s3_writeback::journal::inspect;
use s3_writeback::{Cause, Config, Error, Options, PauseWhat, RunOn, Settlement, UploadQueue};
use tokio::runtime::Handle;
use tracing::Level;

use crate::bucket::Bucket;
use crate::child::{Ended, run, setting, tell};
use crate::logged::logged;
use crate::support::{Rig, paused, settled, submit};

const CULPRIT: &str = "k10";
const WITHIN: Duration = Duration::from_secs(60);

fn key(n: usize) -> String {
    format!("k{n:02}")
}

/// What the culprit's attempt does to the process.
fn die(how: &str) {
    match how {
        "abort" => std::process::abort(),
        "memory" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                // Reserved and not touched: it is the address space that runs out.
                eaten.push(Vec::with_capacity(64 << 20));
                std::hint::black_box(&eaten);
            }
        }
        _ => (),
    }
}

/// Not a test: one boot of the service whose task kills it.
#[test]
#[ignore = "is started by the tests below"]
fn boot() {
    let began = Instant::now();
    let dir = PathBuf::from(setting("BOOT_DIR"));
    let (how, first) = (setting("BOOT_DIES"), setting("BOOT_FIRST") == "true");
    let bucket = Bucket::new(dir.join("bucket"))
        .takes(Duration::from_millis(20))
        .before_put(move |key| {
            if key == CULPRIT {
                die(&how);
            }
        });
    let mut config = Config::new(dir.join("queue"));
    config.io_threads = 1;
    config.segment_bytes = 1 << 20;
    let queue = UploadQueue::builder(config, Arc::new(bucket))
        .open()
        .within(WITHIN)
        .wait()
        .unwrap();
    tell("ready_ms", began.elapsed().as_millis());
    assert_eq!(queue.crash_loop(), None);
    if first {
        queue.pause(PauseWhat::Uploads);
        for n in 0..21 {
            let receipt = queue.submit(key(n), key(n).into_bytes(), Options::default());
            receipt.wait().unwrap().durable().wait().unwrap();
        }
        tell("submitted", 21);
        queue.resume(PauseWhat::Uploads);
    }
    let quarantined = queue.quarantined();
    for task in queue.pending() {
        if quarantined
            .iter()
            .all(|held| held.task != task.receipt.task())
        {
            let settlement = task.receipt.settled().wait().unwrap();
            assert!(
                matches!(settlement, Settlement::Uploaded(_)),
                "{}: {settlement:?}",
                task.key
            );
        }
    }
    for task in &quarantined {
        tell("quarantined", &task.key);
        assert_eq!(task.cause, Cause::CrashLoop { crashes: 3 });
        assert_eq!(task.crashes, 3);
    }
    tell("held", quarantined.len());
    queue.shutdown().wait().unwrap();
}

fn boots(dies: &str, kib: Option<u64>) {
    let dir = tempfile::tempdir().unwrap();
    let one = |first: bool| -> Ended {
        let settings = [
            ("BOOT_DIR", dir.path().display().to_string()),
            ("BOOT_DIES", dies.to_owned()),
            ("BOOT_FIRST", first.to_string()),
        ];
        run("loops::boot", &settings, kib, WITHIN)
    };
    let first = one(true);
    assert_eq!(first.number("submitted"), 21, "{}", first.output);
    let died = |ended: &Ended, boot: u32| {
        use std::os::unix::process::ExitStatusExt;
        let signal = ended.status.signal();
        assert!(
            signal.is_some(),
            "boot {boot} did not die: {}",
            ended.output
        );
    };
    died(&first, 1);
    died(&one(false), 2);
    died(&one(false), 3);
    let bucket = Bucket::new(dir.path().join("bucket"));
    let fourth = one(false);
    assert!(fourth.status.success(), "{}", fourth.output);
    eprintln!("boot 4 was ready after {} ms", fourth.number("ready_ms"));
    assert!(fourth.number("ready_ms") < 5000, "{}", fourth.output);
    assert_eq!(fourth.number("held"), 1);
    assert_eq!(fourth.told["quarantined"], CULPRIT);
    let expected: Vec<_> = (0..21).map(key).filter(|key| key != CULPRIT).collect();
    assert_eq!(bucket.keys(), expected);
    // And so it stays.
    assert!(one(false).status.success());
}

/// C2: boots 1 to 3 die, boot 4 is ready at once, only the culprit is in quarantine, the 20 others
/// are in S3 (vitess#17637, vitess#19140, hindsight#2675).
#[test]
fn c2_a_task_that_aborts_the_process_is_quarantined_after_three_boots() {
    boots("abort", None);
}

/// C2: the same where the process dies for want of memory, of which it has 2 GiB.
#[test]
fn c2_a_task_that_eats_the_memory_is_quarantined_after_three_boots() {
    boots("memory", Some(2 << 20));
}

/// Aborts when the segments are listed: after the open was counted, and before it is over.
#[derive(Debug)]
struct DiesInOpen(OsFs);

impl Fs for DiesInOpen {
    fn read_dir(&self, path: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
        if path.ends_with("segments") {
            std::process::abort();
        }
        self.0.read_dir(path)
    }
    fn open(
        &self,
        path: &Path,
        mode: s3_writeback::journal::fs::OpenMode,
    ) -> std::io::Result<Box<dyn s3_writeback::journal::fs::FsFile>> {
        self.0.open(path, mode)
    }
    fn lock(&self, path: &Path) -> std::io::Result<Box<dyn s3_writeback::journal::fs::FsLock>> {
        self.0.lock(path)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn stat(&self, path: &Path) -> std::io::Result<s3_writeback::journal::fs::Stat> {
        self.0.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.link(from, to)
    }
    fn unlink(&self, path: &Path) -> std::io::Result<()> {
        self.0.unlink(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.0.sync_dir(path)
    }
    fn free_space(&self, path: &Path) -> std::io::Result<u64> {
        self.0.free_space(path)
    }
}

/// Not a test: an open that dies in recovery.
#[tokio::test]
#[ignore = "is started by the test below"]
async fn open_that_dies() {
    let dir = PathBuf::from(setting("BOOT_DIR"));
    let bucket = Arc::new(Bucket::new(dir.join("bucket")));
    let opened = UploadQueue::builder(Config::new(dir.join("queue")), bucket)
        .run_on(RunOn::Handle(Handle::current()))
        .file_system(Arc::new(DiesInOpen(OsFs)), Io::inline())
        .open()
        .await;
    panic!("it lives: {opened:?}");
}

/// C2: three opens that died, and the fourth comes up paused, says why, and answers; resumed, it
/// goes on. Processes that die once they are open do not count.
#[test]
fn c2_the_fourth_open_after_three_that_died_comes_up_paused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let bucket = Arc::new(Bucket::new(dir.path().join("bucket")));
        let mut config = Config::new(dir.path().join("queue"));
        config.segment_bytes = 1 << 20;
        let queue = UploadQueue::builder(config, bucket).open();
        queue.within(WITHIN).wait().unwrap()
    };
    let queue = open();
    queue.pause(PauseWhat::Uploads);
    let receipt = queue.submit("k", "x", Options::default()).wait().unwrap();
    receipt.durable().wait().unwrap();
    queue.shutdown().wait().unwrap();
    let settings = [("BOOT_DIR", dir.path().display().to_string())];
    for before in 0..3 {
        let found = inspect(&OsFs, &dir.path().join("queue")).unwrap();
        assert_eq!(found.failed_opens, before);
        let died = run("loops::open_that_dies", &settings, None, WITHIN);
        use std::os::unix::process::ExitStatusExt;
        assert!(died.status.signal().is_some(), "{}", died.output);
    }
    let queue = open();
    assert_eq!(queue.crash_loop(), Some(3));
    let counts = queue.snapshot().tasks;
    assert_eq!((counts.crash_loop, counts.paused_uploads), (Some(3), true));
    assert_eq!(queue.pending().len(), 1);
    let error = queue.submit("l", "x", Options::default()).now();
    assert!(
        matches!(error, Err(Error::Paused("admission"))),
        "{error:?}"
    );
    let bucket = Bucket::new(dir.path().join("bucket"));
    assert!(bucket.keys().is_empty());

    queue.resume(PauseWhat::Uploads);
    queue.resume(PauseWhat::Admission);
    assert_eq!(queue.crash_loop(), None);
    let receipt = queue.submit("l", "x", Options::default()).wait().unwrap();
    receipt.uploaded().wait().unwrap();
    queue.drain().wait().unwrap();
    assert_eq!(bucket.keys(), ["k", "l"]);
    queue.shutdown().wait().unwrap();
    let queue = open();
    assert_eq!(queue.crash_loop(), None);
    queue.shutdown().wait().unwrap();
}

/// C2: wherever in an open the process dies: where it dies there three times, and nothing else
/// happens in between, the fourth comes up paused, if the open had been counted and was not over.
/// Opens that end with an error, and processes that die once they are open, are not counted.
#[test]
fn c2_only_deaths_inside_open_are_counted() {
    let lives = |deaths: u32, at: Option<u64>| -> (Option<u32>, u64) {
        let rig = Rig::new();
        let open = |rig: &Rig| {
            let builder = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()));
            builder
                .run_on(RunOn::Handle(Handle::current()))
                .file_system(Arc::new(rig.fs.process()), Io::inline())
                .open()
        };
        paused(async {
            let queue = open(&rig).await.unwrap();
            submit(&queue, "k", "x").await.durable().await.unwrap();
            queue.shutdown().await.unwrap();
        });
        let mut calls = 0;
        for _ in 0..deaths {
            paused(async {
                let before = rig.fs.total();
                match at {
                    Some(nth) => {
                        let fs = rig.fs.clone();
                        rig.fs.at_call(nth, move |_| fs.kill());
                        let opened = open(&rig).await;
                        rig.fs.kill();
                        drop(opened);
                    }
                    // Dies once it is open.
                    None => {
                        let queue = open(&rig).await.unwrap();
                        calls = rig.fs.total() - before;
                        rig.fs.kill();
                        drop(queue);
                    }
                }
            });
        }
        let found = paused(async {
            let queue = open(&rig).await.unwrap();
            let found = queue.crash_loop();
            queue.resume(PauseWhat::Uploads);
            queue.resume(PauseWhat::Admission);
            for task in queue.pending() {
                settled(&task.receipt).await;
            }
            queue.shutdown().await.unwrap();
            found
        });
        (found, calls)
    };
    let (found, calls) = lives(5, None);
    assert_eq!(found, None, "a process that dies once it is open");
    let mut counted = Vec::new();
    for at in 1..=calls + 2 {
        let (found, _) = lives(3, Some(at));
        let (twice, _) = lives(2, Some(at));
        assert_eq!(twice, None, "call {at}");
        counted.push(found.is_some());
    }
    // Before it is counted, while it is under way, after it is over: one run of calls.
    let from = counted.iter().position(|counted| *counted).unwrap();
    let to = counted.iter().rposition(|counted| *counted).unwrap();
    assert!(
        counted[from..=to].iter().all(|counted| *counted),
        "{counted:?}"
    );
    assert!(from > 0 && to > from + 10, "{counted:?}");
    assert!(!counted[counted.len() - 1], "{counted:?}");
}

/// C2: an open that comes up paused says so in one line; a disk that takes no file does not keep
/// a queue from opening.
#[test]
fn c2_an_open_that_comes_up_paused_says_why() {
    let lines = logged(Level::ERROR, || {
        let rig = Rig::new();
        for _ in 0..3 {
            paused(async {
                let fs = rig.fs.clone();
                rig.fs.at_call(30, move |_| fs.kill());
                let builder =
                    UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()));
                let opened = builder
                    .run_on(RunOn::Handle(Handle::current()))
                    .file_system(Arc::new(rig.fs.process()), Io::inline())
                    .open()
                    .await;
                rig.fs.kill();
                drop(opened);
            });
        }
        paused(async {
            let queue = rig.open().await;
            assert_eq!(queue.crash_loop(), Some(3));
        });
    });
    let told = lines
        .iter()
        .filter(|line| line.contains("the process died in each of the last opens"));
    assert_eq!(told.count(), 1, "{lines:#?}");
}
