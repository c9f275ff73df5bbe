//! C1: a real process is killed at each named instant; the next one goes on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::crash_points;
use s3_writeback::{
    Body, CheckpointOptions, Config, FileId, FileOptions, KeyPolicy, Options, PartStore, Receipt,
    Settlement, StoreConfig, UploadQueue,
};

use crate::bucket::Bucket;
use crate::child::{run, setting, tell};

const WITHIN: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const PART: usize = 4096;

/// Points that only a part store passes.
fn is_of_a_store(point: &str) -> bool {
    ["pack.", "part.", "checkpoint."]
        .iter()
        .any(|layer| point.starts_with(layer))
}

/// What the process was told, in a file beside: written, and so kept when it is killed.
struct Told(fs::File);

impl Told {
    fn open(dir: &Path) -> Self {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("told"));
        Self(file.unwrap())
    }

    fn say(&mut self, what: &str) {
        self.0.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    fn all(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.join("queue"));
    config.segment_bytes = 16 * 1024;
    config.inline_bytes = 4096;
    config.multipart_threshold = 5 * MIB as u64;
    config.part_bytes = 5 * MIB as u64;
    config.part_concurrency = 1;
    config.workers = 4;
    config.io_threads = 2;
    // Each death in a row is one of the point's, and is not to end in quarantine.
    config.crash_limit = 100;
    config
}

fn body(key: &str) -> Vec<u8> {
    let bytes = match key {
        _ if key.starts_with("large") => 6 * MIB,
        _ if key.starts_with("file") => 20_000,
        _ => 2000,
    };
    key.bytes().cycle().take(bytes).collect()
}

fn open_queue(dir: &Path) -> UploadQueue {
    let bucket = Bucket::new(dir.join("bucket"));
    UploadQueue::builder(config(dir), Arc::new(bucket))
        .open()
        .within(WITHIN)
        .wait()
        .unwrap()
}

/// Not a test: a service over a queue, from open to shutdown.
#[test]
#[ignore = "is started, and dies, by the test below"]
fn queue_life() {
    let dir = PathBuf::from(setting("POINT_DIR"));
    let life = setting("POINT_LIFE");
    let mut told = Told::open(&dir);
    let queue = {
        let refusing = std::sync::atomic::AtomicBool::new(true);
        let bucket = Bucket::new(dir.join("bucket")).refuse_once(move |key| {
            let first = key.starts_with("bad")
                && refusing.swap(false, std::sync::atomic::Ordering::Relaxed);
            first.then(|| RemoteError::permanent("PutObject", 400, "InvalidArgument"))
        });
        UploadQueue::builder(config(&dir), Arc::new(bucket))
            .open()
            .within(WITHIN)
            .wait()
            .unwrap()
    };
    let mut receipts: Vec<(String, Receipt)> = Vec::new();
    let mut keys: Vec<String> = (0..12).map(|n| format!("small{n}-{life}")).collect();
    keys.insert(3, format!("file-{life}"));
    keys.insert(6, format!("large-{life}"));
    keys.insert(9, format!("bad-{life}"));
    for key in keys {
        let receipt = queue.submit(key.clone(), body(&key), Options::default());
        let receipt = receipt.within(WITHIN).wait().unwrap();
        receipt.durable().within(WITHIN).wait().unwrap();
        told.say(&format!("durable {key}"));
        receipts.push((key, receipt));
    }
    // One that is given over, as a file.
    let key = format!("file-adopted-{life}");
    let given = dir.join("queue").join(&key);
    if !given.exists() {
        fs::write(&given, body(&key)).unwrap();
    }
    let receipt = queue.submit(key.clone(), Body::Adopt(given), Options::default());
    let receipt = receipt.within(WITHIN).wait().unwrap();
    receipt.durable().within(WITHIN).wait().unwrap();
    told.say(&format!("durable {key}"));
    receipts.push((key, receipt));
    for (key, receipt) in &receipts {
        let mut end = receipt.settled().within(WITHIN).wait().unwrap();
        if matches!(end, Settlement::Quarantined(_)) {
            let again = queue.replay(receipt.task()).within(WITHIN).wait().unwrap();
            end = again.settled().within(WITHIN).wait().unwrap();
        }
        assert!(matches!(end, Settlement::Uploaded(_)), "{key}: {end:?}");
        told.say(&format!("uploaded {key}"));
    }
    let rewritten = Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    };
    for n in 0..2 {
        let body = format!("{life}-{n}").into_bytes();
        let receipt = queue
            .submit("again", body, rewritten.clone())
            .wait()
            .unwrap();
        receipt.uploaded().within(WITHIN).wait().unwrap();
    }
    queue.shutdown().within(WITHIN).wait().unwrap();
    tell("ended", 1);
}

/// Nothing that was told is lost, nothing is stuck, and the directory opens.
fn look_at_queue(dir: &Path, point: &str) {
    let queue = open_queue(dir);
    assert_eq!(queue.crash_loop(), None, "{point}: one death is no loop");
    assert!(queue.damage().is_empty(), "{point}: {:?}", queue.damage());
    for task in queue.quarantined() {
        queue.replay(task.task).within(WITHIN).wait().unwrap();
    }
    queue.drain().within(WITHIN).wait().unwrap();
    let report = queue.shutdown().within(WITHIN).wait().unwrap();
    assert!(report.sealed, "{point}: {report:?}");
    let bucket = Bucket::new(dir.join("bucket"));
    for line in Told::all(dir) {
        let (_, key) = line.split_once(' ').unwrap();
        let found = bucket.object(key).map(|(_, body)| body);
        let whole = found.as_deref() == Some(&body(key)[..]);
        assert!(whole, "{point}: {line}, and it is not in S3");
    }
    assert_eq!(
        bucket.unfinished(),
        0,
        "{point}: an upload in parts is left"
    );
    let names = fs::read_dir(dir.join("queue").join("payload")).unwrap();
    assert_eq!(names.count(), 0, "{point}: a payload file is left");
}

fn store_config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir.join("queue"));
    config.queue = self::config(dir);
    config.cache_bytes = 8 * PART as u64;
    config.dirty_bytes = 4 * PART as u64;
    config.checkpoint_cache_bytes = 2 * PART as u64;
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.gc_every = None;
    config
}

fn open_store(dir: &Path) -> PartStore {
    let bucket = Bucket::new(dir.join("bucket"));
    PartStore::builder(store_config(dir), Arc::new(bucket))
        .open()
        .within(WITHIN)
        .wait()
        .unwrap()
}

/// What part `index` has in round `round`: every byte says both.
fn part(index: usize, round: u8) -> Vec<u8> {
    vec![round * 16 + index as u8 % 16; PART]
}

/// Not a test: an engine over a part store; parts are synced and told of, checkpoints too.
#[test]
#[ignore = "is started, and dies, by the test below"]
fn store_life() {
    let dir = PathBuf::from(setting("POINT_DIR"));
    let mut told = Told::open(&dir);
    let store = open_store(&dir);
    let options = FileOptions {
        part_bytes: PART as u32,
    };
    let file = store.create_or_open(FileId(1), options).wait().unwrap();
    for round in 1..=3_u8 {
        for index in 0..24 {
            let at = (index * PART) as u64;
            file.write_at(&part(index, round), at)
                .within(WITHIN)
                .wait()
                .unwrap();
            file.sync().within(WITHIN).wait().unwrap();
            told.say(&format!("synced {index} {round}"));
        }
        let made = store.checkpoint(CheckpointOptions::new());
        let made = made.within(WITHIN).wait().unwrap();
        told.say(&format!("checkpoint {}", made.number));
    }
    store.shutdown().within(WITHIN).wait().unwrap();
    tell("ended", 1);
}

fn look_at_store(dir: &Path, point: &str) {
    let told = Told::all(dir);
    let store = open_store(dir);
    let mut synced = [0_u8; 24];
    let mut last = 0;
    for line in &told {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["synced", index, round] => {
                synced[index.parse::<usize>().unwrap()] = round.parse().unwrap();
            }
            ["checkpoint", number] => last = number.parse().unwrap(),
            _ => panic!("{line}"),
        }
    }
    if let Ok(file) = store.file(FileId(1)) {
        for (index, round) in synced.iter().enumerate().filter(|(_, round)| **round > 0) {
            let mut found = vec![0; PART];
            file.read_at(&mut found, (index * PART) as u64)
                .within(WITHIN)
                .wait()
                .unwrap();
            // What was written after the last sync may be there, whole or in part.
            let may = [part(index, *round)[0], part(index, round + 1)[0]];
            let ok = found.iter().all(|byte| may.contains(byte));
            assert!(ok, "{point}: part {index} was synced in round {round}");
        }
    } else {
        assert!(told.is_empty(), "{point}: the file is gone");
    }
    let made = store.checkpoint(CheckpointOptions::new());
    let made = made.within(WITHIN).wait().unwrap();
    assert!(made.number > last, "{point}: {} after {last}", made.number);
    let report = store.shutdown().within(WITHIN).wait().unwrap();
    assert!(
        report.sealed && report.dirty_parts == 0,
        "{point}: {report:?}"
    );
}

/// C1: the process dies at each of the named points, the first time it passes it and later ones
/// (`S3_WRITEBACK_CRASH_SEEDS` says how many; by default one): nothing that was acknowledged is
/// lost, nothing is stuck, the next open goes on.
#[test]
fn c1_a_process_that_dies_at_any_named_point_loses_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let seeds = std::env::var("S3_WRITEBACK_CRASH_SEEDS");
    let seeds: u64 = seeds.map_or(1, |seeds| seeds.parse().expect("a number"));
    let only = std::env::var("S3_WRITEBACK_CRASH_ONLY").unwrap_or_default();
    let points = crash_points().iter().filter(|point| point.contains(&only));
    let mut died = 0;
    for point in points {
        let (life, look): (_, fn(&Path, &str)) = match is_of_a_store(point) {
            true => ("points::store_life", look_at_store),
            false => ("points::queue_life", look_at_queue),
        };
        for seed in 0..seeds {
            // The first passing, then ones further and further on.
            let nth = 1 + seed * (seed + 1) / 2;
            let dir = tempfile::tempdir().unwrap();
            let settings = [
                ("POINT_DIR", dir.path().display().to_string()),
                ("POINT_LIFE", seed.to_string()),
                ("S3_WRITEBACK_CRASH_AT", format!("{point}:{nth}")),
            ];
            let ended = run(life, &settings, None, 2 * WITHIN);
            let at = format!("{point}:{nth}");
            if ended.status.signal().is_some() {
                died += 1;
            } else {
                // It is not passed that often.
                assert!(ended.status.success(), "{at}: {}", ended.output);
                assert!(nth > 1, "{at} is never passed");
            }
            look(dir.path(), &at);
            if nth > 1 && ended.status.signal().is_none() {
                break;
            }
        }
    }
    eprintln!("{died} processes died");
}
