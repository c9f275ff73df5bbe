//! What a checkpoint costs: by how much changed, not by how much there is.
//!
//! ```text
//! cargo bench --no-default-features --bench checkpoint
//! ```
//!
//! One file of 100, 10,000 and 1,000,000 parts, of which 100 are written to before each
//! checkpoint; and 100, 10,000 and 100,000 files, of which 100 are. S3 is simulated and answers at
//! once, so the time is ours. Files are on the real disk but for the last rows, where they are more
//! than a process may have open: those are simulated as well, and so are their rows with fewer.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::{Call, SimRemote};
use s3_writeback::{
    CheckpointOptions, FileId, FileOptions, Mode, PartId, PartStore, Role, RunOn, StoreConfig,
};
use tokio::runtime::Handle;
use tokio::time::Instant;

const PART: u32 = 4096;
const DIRTY: u64 = 100;
const ROUNDS: usize = 9;
/// Parts that one step fills.
const STEP: u64 = 1024;

fn config(dir: &std::path::Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir);
    config.cache_bytes = 8 << 30;
    config.dirty_bytes = 1 << 30;
    config.max_files = 1_000_000;
    config.max_dirty_age = Duration::from_secs(3600);
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.gc_every = None;
    config
}

/// Times checkpoints, before each of which `write` changes something.
async fn measure(
    what: &str,
    store: &PartStore,
    remote: &SimRemote,
    mut write: impl AsyncFnMut(u64),
) {
    let mut times = Vec::new();
    let mut puts = Vec::new();
    let mut bytes = Vec::new();
    for round in 0..ROUNDS {
        write(round as u64).await;
        store.sync_all().await.expect("syncs");
        let before = (remote.count(Call::Put, ""), sizes(remote));
        let began = Instant::now();
        let made = store.checkpoint(CheckpointOptions::new()).await;
        made.expect("is committed");
        times.push(began.elapsed());
        puts.push(remote.count(Call::Put, "") - before.0);
        bytes.push(sizes(remote) - before.1);
    }
    times.sort();
    bytes.sort_unstable();
    println!(
        "{what}: {:?} (from {:?} to {:?}), {} PUTs, {} bytes",
        times[ROUNDS / 2],
        times[0],
        times[ROUNDS - 1],
        puts.iter().max().expect("some"),
        bytes[ROUNDS / 2],
    );
}

fn sizes(remote: &SimRemote) -> usize {
    remote.total_bytes()
}

async fn parts(count: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = SimRemote::new();
    let builder = PartStore::builder(config(dir.path()), Arc::new(remote.clone()));
    let store = builder.open().await.expect("opens");
    let options = FileOptions { part_bytes: PART };
    let file = store.create(FileId(1), options).await.expect("creates");
    file.set_len(count * u64::from(PART)).await.expect("grows");
    let locker = store.locker("filler", Role::Foreground).expect("a locker");
    let mut first = 0;
    while first < count {
        let last = (first + STEP).min(count);
        let these: Vec<PartId> = (first..last)
            .map(|index| PartId {
                file: FileId(1),
                index: u32::try_from(index).expect("fits"),
            })
            .collect();
        let set = store
            .lock_many(&these, Mode::Exclusive, &locker)
            .await
            .expect("locks");
        let bytes = first.to_le_bytes();
        let pieces: Vec<_> = these.iter().map(|part| (*part, 0, &bytes[..])).collect();
        set.write(&pieces).await.expect("writes");
        first = last;
    }
    let began = Instant::now();
    store
        .checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");
    println!("{count} parts, all of them dirty: {:?}", began.elapsed());
    let what = format!("{count} parts, {DIRTY} of them dirty");
    measure(&what, &store, &remote, async |round| {
        for n in 0..DIRTY {
            let index = (n * (count / DIRTY) + round) % count;
            let bytes = (round + 1).to_le_bytes();
            file.write_at(&bytes, index * u64::from(PART) + 8)
                .await
                .expect("writes");
        }
    })
    .await;
    store
        .shutdown()
        .within(Duration::from_secs(300))
        .await
        .expect("shuts down");
}

async fn files(count: u64) {
    let remote = SimRemote::new();
    let builder = PartStore::builder(config(std::path::Path::new("/q")), Arc::new(remote.clone()))
        .run_on(RunOn::Handle(Handle::current()))
        .file_system(Arc::new(SimFs::new()), Io::inline());
    let store = builder.open().await.expect("opens");
    let options = FileOptions { part_bytes: PART };
    let mut all = Vec::new();
    for id in 0..count {
        let file = store.create(FileId(id), options).await.expect("creates");
        file.write_at(&id.to_le_bytes(), 0).await.expect("writes");
        all.push(file);
    }
    let began = Instant::now();
    store
        .checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");
    println!("{count} files, all of them new: {:?}", began.elapsed());
    let what = format!("{count} files, {DIRTY} of them changed");
    measure(&what, &store, &remote, async |round| {
        for n in 0..DIRTY {
            let file = &all[usize::try_from((n * (count / DIRTY) + round) % count).expect("fits")];
            file.write_at(&(round + 1).to_le_bytes(), 8)
                .await
                .expect("writes");
        }
    })
    .await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for count in [100, 10_000, 1_000_000] {
        runtime.block_on(parts(count));
    }
    for count in [100, 10_000, 100_000] {
        runtime.block_on(files(count));
    }
}
