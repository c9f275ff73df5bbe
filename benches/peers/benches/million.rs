//! A million parts: what an idle one costs in memory, beside a map of locks, and how long a store
//! with that many takes to open.
//!
//! ```text
//! cargo bench --manifest-path benches/peers/Cargo.toml --bench million
//! ```
//!
//! Run once: filling takes most of it.

use std::sync::Arc;
use std::time::Instant;

use dashmap::DashMap;
use lockable::LockableHashMap;
use s3_writeback::{FileId, FileOptions, StoreConfig};
use s3_writeback_peers::open;

const PARTS: u64 = 1_000_000;
const PART: u64 = 4096;
const WRITERS: u64 = 64;

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("reads");
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.expect("a number") * 4096
}

fn main() {
    let before = resident();
    let map: DashMap<u64, Arc<tokio::sync::Mutex<()>>> = DashMap::new();
    for part in 0..PARTS {
        map.insert(part, Arc::default());
    }
    println!(
        "DashMap of Arc of tokio Mutex: {:.1} bytes a key",
        (resident() - before) as f64 / PARTS as f64
    );
    drop(map);
    let map: LockableHashMap<u64, u64> = LockableHashMap::new();
    let before = resident();
    for part in 0..PARTS {
        let limit = lockable::SyncLimit::no_limit();
        let mut guard = map.blocking_lock(part, limit).expect("locks");
        guard.insert(part);
    }
    println!(
        "lockable: {:.1} bytes a key that has a value",
        (resident() - before) as f64 / PARTS as f64
    );
    drop(map);

    let dir = tempfile::tempdir().expect("a directory");
    let mut config = StoreConfig::new(dir.path());
    // All of it: to evict a million parts would take most of the time.
    config.cache_bytes = 5 << 30;
    config.dirty_bytes = 512 << 20;
    let store = open(config.clone());
    let options = FileOptions {
        part_bytes: PART as u32,
    };
    let file = store.create(FileId(1), options).wait().expect("creates");
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let file = &file;
            scope.spawn(move || {
                let mut bytes = vec![0_u8; PART as usize];
                for part in (writer..PARTS).step_by(WRITERS as usize) {
                    bytes[..8].copy_from_slice(&(part + 1).to_le_bytes());
                    file.write_at(&bytes, part * PART).wait().expect("writes");
                }
            });
        }
    });
    println!(
        "filled {PARTS} parts of {PART} bytes in {:?}, {:?} each",
        began.elapsed(),
        began.elapsed() / u32::try_from(PARTS).expect("fits")
    );
    let report = store
        .shutdown()
        .within(std::time::Duration::from_secs(300))
        .wait();
    let report = report.expect("shuts down");
    println!(
        "shut down in {:?}, dirty parts left: {}",
        report.took, report.dirty_parts
    );
    drop((file, store));
    // S3 has it all: what is here is a cache, and an idle part has nothing in it.
    for entry in std::fs::read_dir(dir.path().join("parts")).expect("is there") {
        let path = entry.expect("a name").path();
        let local = std::fs::File::options().write(true).open(path);
        local.expect("opens").set_len(0).expect("is cut");
    }
    let before = resident();
    let began = Instant::now();
    let store = open(config);
    let took = began.elapsed();
    let file = store.file(FileId(1)).expect("is there");
    println!(
        "opened a file of {} parts in {took:?}; {:.1} bytes a part",
        file.len() / PART,
        resident().saturating_sub(before) as f64 / PARTS as f64
    );
    store.shutdown().wait().expect("shuts down");
}
