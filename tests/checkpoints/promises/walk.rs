//! Random steps around lines: each committed checkpoint has what there was when it was drawn.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Fencing, FileId, PartStore, Restore, Role};
use tokio::task::JoinHandle;

use crate::support::{PART, PARTS_OF, StoreRig, asks, checkpoint, contents, paused};

type Model = BTreeMap<u64, Vec<u8>>;

struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

async fn look(store: &PartStore) -> Model {
    let mut found = Model::new();
    for id in store.files() {
        found.insert(id.0, contents(store, id.0).await);
    }
    found
}

fn same(found: &Model, wanted: &Model, what: &str, log: &[String]) {
    if found == wanted {
        return;
    }
    let mut text = format!("{what}: ");
    let ids: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    for id in ids {
        match (found.get(id), wanted.get(id)) {
            (Some(f), Some(w)) if f == w => {}
            (Some(f), Some(w)) => {
                let at = f.iter().zip(w).position(|(a, b)| a != b);
                text += &format!(
                    "file {id}: len {} for {}; first wrong {at:?}; ",
                    f.len(),
                    w.len()
                );
                if let Some(at) = at {
                    text += &format!("{} for {}; ", f[at], w[at]);
                }
            }
            (f, w) => text += &format!("file {id}: there {} for {}; ", f.is_some(), w.is_some()),
        }
    }
    panic!("{text}\n{}", log.join("\n"));
}

async fn walk(seed: u64, fencing: Fencing, boundary_cuts: bool) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let rig = StoreRig::with(64, |config| {
        config.fencing = fencing;
        config.checkpoint_within = Duration::from_secs(20);
        config.max_dirty_age = Duration::from_millis([10, 1000, 3_600_000][dice.next(3) as usize]);
        config.image_bytes = PART as u64 * [1, 2, 64][dice.next(3) as usize];
        config.aside_memory = PART as u64 * [0, 2, 64][dice.next(3) as usize];
        config.retain_checkpoints = 2;
        config.queue.seed = Some(seed);
    });
    let mut store = rig.open().await;
    let mut model = Model::new();
    let mut log = Vec::new();
    let mut flying: Option<(JoinHandle<s3_writeback::Result<u64>>, Model)> = None;
    let mut committed: Option<Model> = None;
    for step in 0..120 {
        let locker = store.locker("w", Role::Foreground).expect("a locker");
        let id = 1 + dice.next(4);
        let op = dice.next(100);
        if op < 15 {
            if let Entry::Vacant(new) = model.entry(id) {
                log.push(format!("{step} create {id}"));
                store.create(FileId(id), PARTS_OF).await.expect("creates");
                new.insert(Vec::new());
            }
        } else if op < 45 {
            if let Some(bytes) = model.get_mut(&id) {
                let at = dice.next(6 * PART as u64) as usize;
                let whole = dice.next(2) == 0;
                let (at, len) = if whole {
                    (at / PART * PART, PART)
                } else {
                    (at, 1 + dice.next(5000) as usize)
                };
                let byte = 1 + dice.next(250) as u8;
                log.push(format!("{step} write {id} {at} {len} {byte}"));
                let file = store.file(FileId(id)).expect("is there");
                file.write_at(&vec![byte; len], at as u64)
                    .await
                    .expect("writes");
                if bytes.len() < at + len {
                    bytes.resize(at + len, 0);
                }
                bytes[at..at + len].fill(byte);
            }
        } else if op < 60 {
            if let Some(bytes) = model.get_mut(&id) {
                let mut len = dice.next(7 * PART as u64) as usize;
                if dice.next(2) == 0 {
                    len = len / PART * PART;
                }
                if !boundary_cuts && len < bytes.len() && len.is_multiple_of(PART) {
                    len += 1;
                }
                log.push(format!("{step} set_len {id} {len}, from {}", bytes.len()));
                store
                    .file(FileId(id))
                    .expect("is there")
                    .set_len(len as u64)
                    .await
                    .expect("is set");
                bytes.resize(len, 0);
            }
        } else if op < 65 {
            if model.remove(&id).is_some() {
                log.push(format!("{step} drop {id}"));
                store.drop_file(FileId(id), &locker).await.expect("drops");
            }
        } else if op < 78 {
            if flying.is_none() {
                log.push(format!("{step} checkpoint"));
                let made = asks(&store);
                while !made.is_finished() && store.checkpoint_snapshot().owed.is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                flying = Some((made, model.clone()));
            }
        } else if op < 86 {
            if let Some((made, at)) = flying.take() {
                match made.await.expect("ends") {
                    Ok(number) => {
                        log.push(format!("{step} committed {number}"));
                        committed = Some(at);
                    }
                    Err(error) => {
                        log.push(format!("{step} failed {error}"));
                        assert!(
                            matches!(
                                error,
                                Error::TimedOut { .. }
                                    | Error::PartFailed { .. }
                                    | Error::Remote(_)
                            ),
                            "{error:?}"
                        );
                    }
                }
                if let Some(committed) = &committed {
                    let there = rig.restored(Restore::latest()).await;
                    same(&look(&there).await, committed, "restored", &log);
                }
                same(&look(&store).await, &model, "here", &log);
            }
        } else if op < 92 {
            rig.remote.heal();
            rig.remote.refuse_bodies_with(None);
            match dice.next(6) {
                0 => rig.slow_packs(),
                1 => rig.remote.under(
                    None,
                    Some(Call::Put),
                    "packs/",
                    Fault::Delay(Duration::from_secs(30)),
                ),
                2 => rig.remote.under(
                    Some(2),
                    Some(Call::Put),
                    "packs/",
                    Fault::Error(RemoteError::permanent("PutObject", 400, "InvalidArgument")),
                ),
                3 => rig.remote.under(
                    None,
                    Some(Call::Put),
                    "packs/",
                    Fault::Error(RemoteError::transient("PutObject")),
                ),
                4 => rig.remote.under(
                    Some(1),
                    Some(Call::Put),
                    "head",
                    Fault::LostReply(RemoteError::lost("PutObject")),
                ),
                _ => {}
            }
            log.push(format!("{step} faults change"));
        } else if op < 95 {
            let ms = [1, 100, 10_000][dice.next(3) as usize];
            log.push(format!("{step} sleep {ms}"));
            tokio::time::sleep(Duration::from_millis(ms)).await;
        } else if op < 97 {
            log.push(format!(
                "{step} gc {:?}",
                store.gc().await.map(|r| r.deleted)
            ));
        } else if flying.is_none() {
            rig.remote.heal();
            rig.remote.refuse_bodies_with(None);
            if dice.next(2) == 0 {
                log.push(format!("{step} shutdown"));
                store.shutdown().await.expect("ends");
            } else {
                log.push(format!("{step} kill"));
                for id in store.files() {
                    store
                        .file(id)
                        .expect("is there")
                        .sync()
                        .await
                        .expect("syncs");
                }
                rig.fs.crash(dice.next(1000));
            }
            drop(store);
            store = rig.open().await;
            same(&look(&store).await, &model, "after a restart", &log);
        }
    }
    rig.remote.heal();
    rig.remote.refuse_bodies_with(None);
    if let Some((made, _)) = flying.take() {
        let _ = made.await;
    }
    // What is on its way may take longer than a checkpoint.
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.gc().await.expect("looks");
    checkpoint(&store).await;
    store.gc().await.expect("looks");
    let there = rig.restored(Restore::latest().with_bytes()).await;
    same(&look(&there).await, &model, "restored at the end", &log);
    let report = rig.prefix().verify(None).await.expect("verifies");
    let _ = report;
}

#[test]
fn each_checkpoint_of_a_random_walk_has_what_there_was_at_its_line() {
    let from: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let count: u64 = std::env::var("COUNT").map_or(20, |seed| seed.parse().expect("a number"));
    let cuts = std::env::var("CUTS").is_ok();
    for seed in from..from + count {
        let fencing = if seed % 4 == 0 {
            Fencing::Off
        } else {
            Fencing::On
        };
        let done = std::panic::catch_unwind(|| paused(walk(seed, fencing, cuts)));
        assert!(done.is_ok(), "seed {seed}");
    }
}
