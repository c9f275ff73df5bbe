//! Threads that create, cut and drop beside checkpoints.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3_writeback::{FileId, PartStore, Restore, Role};
use tokio::task::JoinHandle;

use super::threaded;
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, contents, on_threads, spawn};

/// What of a file is in there.
async fn found(there: &PartStore, id: u64) -> Option<Vec<u8>> {
    match there.file(FileId(id)) {
        Ok(_) => Some(contents(there, id).await),
        Err(_) => None,
    }
}

type Files = BTreeMap<u64, (Option<Vec<u8>>, u64, bool)>;

/// Creates, writes, cuts and drops, until it is over; says what it left, and what it is at.
async fn churn(
    store: PartStore,
    files: Arc<Mutex<Files>>,
    over: Arc<AtomicBool>,
    task: u64,
    seed: u64,
) {
    let locker = store.locker("w", Role::Foreground).expect("a locker");
    let mut dice = task * 77 + 5 + seed * 1000;
    let mut next = |below: u64| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % below
    };
    while !over.load(Ordering::Relaxed) {
        let id = task * 100 + next(12);
        let was = {
            let mut files = files.lock().unwrap();
            let entry = files.entry(id).or_insert((None, 0, false));
            entry.2 = true;
            entry.1 += 1;
            entry.0.clone()
        };
        let now = match was {
            None => {
                store.create(FileId(id), PARTS_OF).await.expect("creates");
                Some(Vec::new())
            }
            Some(mut bytes) => {
                let file = store.file(FileId(id)).expect("is there");
                match next(10) {
                    0 | 1 => {
                        drop(file);
                        store.drop_file(FileId(id), &locker).await.expect("drops");
                        None
                    }
                    2 | 3 => {
                        let len = next(5) as usize * PART;
                        file.set_len(len as u64).await.expect("is set");
                        bytes.resize(len, 0);
                        Some(bytes)
                    }
                    4 => {
                        let len = next(5 * PART as u64) as usize;
                        file.set_len(len as u64).await.expect("is set");
                        bytes.resize(len, 0);
                        Some(bytes)
                    }
                    _ => {
                        let at = next(4) as usize * PART;
                        let byte = 1 + next(250) as u8;
                        file.write_at(&[byte; PART], at as u64)
                            .await
                            .expect("writes");
                        if bytes.len() < at + PART {
                            bytes.resize(at + PART, 0);
                        }
                        bytes[at..at + PART].fill(byte);
                        Some(bytes)
                    }
                }
            }
        };
        let mut files = files.lock().unwrap();
        let entry = files.get_mut(&id).expect("is there");
        entry.0 = now;
        entry.2 = false;
    }
}

/// Tasks that churn.
struct Churning {
    over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Churning {
    fn begin(store: &PartStore, files: &Arc<Mutex<Files>>, seed: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let task = |task| {
            let (files, over) = (Arc::clone(files), Arc::clone(&over));
            spawn(churn(store.clone(), files, over, task, seed))
        };
        let tasks = (0..3).map(task).collect();
        Self { over, tasks }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("ends");
        }
    }
}

/// For how long such a test runs.
fn seconds() -> Duration {
    let seconds = std::env::var("SECONDS_OF").map_or(4, |s| s.parse().expect("a number"));
    Duration::from_secs(seconds)
}

/// A store of which much is set aside, and some of that in a file.
fn busy() -> StoreRig {
    StoreRig::owner_with(256, |config| {
        config.aside_memory = 2 * PART as u64;
        config.max_dirty_age = Duration::from_millis(3);
        config.retain_checkpoints = 2;
        config.queue.seed = None;
    })
}

/// What nobody touches while a checkpoint is made is in it as it is, whatever goes on beside.
#[test]
fn beside_threads_that_create_cut_and_drop_each_checkpoint_has_what_nobody_touched() {
    on_threads(3, async {
        let rig = busy();
        let store = threaded(&rig, 8).await;
        let files: Arc<Mutex<Files>> = Arc::default();
        let churning = Churning::begin(&store, &files, 0);
        let begun = tokio::time::Instant::now();
        let mut wrong = Vec::new();
        let mut made = 0;
        while begun.elapsed() < seconds() && wrong.is_empty() {
            let before = files.lock().unwrap().clone();
            let number = checkpoint(&store).await.number;
            let after = files.lock().unwrap().clone();
            made += 1;
            let there = rig.restored(Restore::number(number)).await;
            for (id, (bytes, count, busy)) in &before {
                if *busy || after.get(id).is_none_or(|now| now.1 != *count) {
                    continue;
                }
                let found = found(&there, *id).await;
                if found != *bytes {
                    let say = |bytes: &Option<Vec<u8>>| {
                        bytes
                            .as_ref()
                            .map(|b| (b.len(), b.iter().step_by(PART).copied().collect::<Vec<_>>()))
                    };
                    wrong.push(format!(
                        "checkpoint {number}, file {id}: {:?} for {:?}",
                        say(&found),
                        say(bytes)
                    ));
                }
            }
            there.shutdown().await.expect("ends");
        }
        churning.end().await;
        assert!(wrong.is_empty(), "of {made} checkpoints: {wrong:#?}");
        eprintln!("{made} checkpoints");
    });
}

/// The first checkpoint after a restart has all files as they are.
#[test]
fn beside_threads_and_after_restarts_a_checkpoint_has_every_file_as_it_is() {
    on_threads(3, async {
        let rig = busy();
        let files: Arc<Mutex<Files>> = Arc::default();
        let begun = tokio::time::Instant::now();
        let mut round = 0;
        while begun.elapsed() < seconds() {
            round += 1;
            let store = threaded(&rig, 8).await;
            let number = checkpoint(&store).await.number;
            let there = rig.restored(Restore::number(number)).await;
            let wanted = files.lock().unwrap().clone();
            for (id, (bytes, _, _)) in &wanted {
                let found = found(&there, *id).await;
                let same = found == *bytes;
                let lens = (found.map(|b| b.len()), bytes.as_ref().map(Vec::len));
                assert!(same, "round {round}, file {id}: {lens:?}");
            }
            there.shutdown().await.expect("ends");
            let churning = Churning::begin(&store, &files, round);
            for _ in 0..3 {
                checkpoint(&store).await;
            }
            churning.end().await;
            store.shutdown().await.expect("ends");
        }
        eprintln!("{round} rounds");
    });
}
