//! C3: a large journal is opened in little memory.
#![allow(
    clippy::disallowed_methods,
    reason = "real processes, in the time that there is"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use s3_writeback::{Config, Options, PauseWhat, UploadQueue};

use crate::bucket::Bucket;
use crate::child::{run, setting, tell};

const WITHIN: Duration = Duration::from_secs(3600);

fn number(name: &str) -> u64 {
    setting(name).parse().expect("a number")
}

/// The figure of this name in `/proc/self/status`, in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn config() -> Config {
    let mut config = Config::new(PathBuf::from(setting("RECOVERY_DIR")).join("queue"));
    config.max_disk_bytes = 1 << 40;
    config.segment_bytes = 16 << 20;
    config.max_memory_bytes = 16 << 20;
    config.workers = 4;
    config.io_threads = 2;
    config
}

fn open(config: Config) -> UploadQueue {
    let dir = PathBuf::from(setting("RECOVERY_DIR"));
    let bucket = Bucket::new(dir.join("bucket")).forgets();
    let queue = UploadQueue::builder(config, Arc::new(bucket)).open();
    queue.within(WITHIN).wait().unwrap()
}

/// Not a test: fills the journal.
#[test]
#[ignore = "is started by the test below"]
fn fill() {
    let (records, bytes) = (number("RECOVERY_RECORDS"), number("RECOVERY_BODY"));
    let mut config = config();
    config.max_tasks = 10_000_000;
    config.max_bytes = 1 << 40;
    let queue = open(config);
    queue.pause(PauseWhat::Uploads);
    let mut last = None;
    for n in 0..records {
        let body = vec![n as u8; bytes as usize];
        let receipt = queue.submit(format!("k{n}"), body, Options::default());
        last = Some(receipt.within(WITHIN).wait().unwrap());
    }
    last.unwrap().durable().within(WITHIN).wait().unwrap();
    queue
        .shutdown()
        .within(Duration::from_secs(60))
        .wait()
        .unwrap();
    tell("filled", records);
}

/// Not a test: opens it under a limit of its address space.
#[test]
#[ignore = "is started by the test below"]
fn recover() {
    let (records, before) = (number("RECOVERY_RECORDS"), status("VmHWM:"));
    let began = Instant::now();
    // With today's limits, which are far smaller than what is there.
    let queue = open(config());
    tell("open_ms", began.elapsed().as_millis());
    assert_eq!(queue.snapshot().recovered, records);
    let asked = Instant::now();
    // Answered: refused for want of room, until there is some.
    let answer = queue.submit("new", vec![1], Options::default()).now();
    tell("answer_ms", asked.elapsed().as_millis());
    let urgent = Options {
        lane: Some(s3_writeback::Lane::Checkpoint),
        ..Options::default()
    };
    let urgent = queue.submit("urgent", vec![1], urgent).now().unwrap();
    assert_eq!(answer.is_err(), records > 10_000);
    while queue.snapshot().uploaded == 0 {
        assert!(began.elapsed() < WITHIN, "nothing is uploaded");
        std::thread::sleep(Duration::from_millis(1));
    }
    tell("first_upload_ms", began.elapsed().as_millis());
    urgent.uploaded().within(WITHIN).wait().unwrap();
    tell("urgent_ms", began.elapsed().as_millis());
    if setting("RECOVERY_DRAINS") == "true" {
        queue.drain().within(WITHIN).wait().unwrap();
        tell("drained_ms", began.elapsed().as_millis());
    }
    let grew = status("VmHWM:") - before;
    tell("grew_kib", grew);
    tell("a_record", grew * 1024 / records);
    tell("address_space_kib", status("VmPeak:"));
    queue
        .shutdown()
        .within(Duration::from_secs(60))
        .wait()
        .unwrap();
}

fn opens(records: u64, body: u64, limit_kib: u64, drains: bool) {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("RECOVERY_DIR", dir.path().display().to_string()),
        ("RECOVERY_RECORDS", records.to_string()),
        ("RECOVERY_BODY", body.to_string()),
        ("RECOVERY_DRAINS", drains.to_string()),
        // One heap, so that what is limited is what is used.
        ("MALLOC_ARENA_MAX", "1".to_owned()),
    ];
    let filled = run("recovery::fill", &settings, None, WITHIN);
    assert!(filled.status.success(), "{}", filled.output);
    let opened = run("recovery::recover", &settings, Some(limit_kib), WITHIN);
    assert!(opened.status.success(), "{}", opened.output);
    eprintln!(
        "{records} records, {} MiB of bodies, limit {} MiB: {:?}",
        (records * body) >> 20,
        limit_kib >> 10,
        opened.told
    );
    assert!(opened.number("first_upload_ms") < 10_000);
    assert!(opened.number("answer_ms") < 1000);
}

/// C3: twice today's limit of tasks, and 80 MiB of bodies, within 256 MiB of address space: opens,
/// the first upload is there within 10 s, submits are answered, and all of it goes up.
#[test]
fn c3_a_large_journal_opens_in_little_memory() {
    opens(20_000, 4096, 256 << 10, true);
}

/// C3 in full, for a release build: `S3_WRITEBACK_RECORDS`, `_BODY` and `_LIMIT_KIB` say how much.
#[test]
#[ignore = "takes minutes and disk: run it with --release and S3_WRITEBACK_RECORDS"]
fn c3_a_million_records() {
    let asked = |name: &str, default: u64| {
        let said = std::env::var(name).ok();
        said.map_or(default, |said| said.parse().expect("a number"))
    };
    opens(
        asked("S3_WRITEBACK_RECORDS", 1_000_000),
        asked("S3_WRITEBACK_BODY", 10 << 10),
        asked("S3_WRITEBACK_LIMIT_KIB", 256 << 10),
        false,
    );
}
