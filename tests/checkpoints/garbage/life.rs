//! Random lives of a prefix: whatever its owners do, nothing that anybody needs is deleted.
//!
//! A failure prints its seed; `GARBAGE_SEED=<seed> cargo test --test checkpoints garbage::life` runs
//! it alone.
//! `GARBAGE_CASES` is how many there are (default 24).

use std::collections::BTreeMap;
use std::time::Duration;

use s3_writeback::{CheckpointOptions, FileId, PartStore, Restore, Role, StoreBuilder};

use crate::owners::{assert_whole, other, reborn};
use crate::support::{PART, PARTS_OF, StoreRig, contents, fill, paused, read, uploaded};

const FILES: u64 = 4;
const PARTS: u64 = 10;

/// File, and the byte that each of its parts is full of.
type Files = BTreeMap<u64, Vec<u8>>;

/// File, part, and the byte that it is full of.
type Own = Vec<(u64, usize, u8)>;

/// xorshift64*: a seed is a run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// The owner, what its files are, and what there is of others.
struct Life {
    dice: Dice,
    seeds: u64,
    rig: StoreRig,
    store: PartStore,
    files: Files,
    /// What each checkpoint has.
    made: BTreeMap<u64, Files>,
    /// Directories of those who were fenced, and what is in no checkpoint of theirs.
    stranded: Vec<(StoreRig, Own)>,
}

async fn is_so(store: &PartStore, files: &Files, what: &str) {
    let ids: Vec<u64> = store.files().into_iter().map(|id| id.0).collect();
    let expected: Vec<u64> = files.keys().copied().collect();
    assert_eq!(ids, expected, "{what}: files");
    for (id, parts) in files {
        let bytes = contents(store, *id).await;
        assert_eq!(bytes.len(), parts.len() * PART, "{what}: length of {id}");
        for (index, byte) in parts.iter().enumerate() {
            let part = &bytes[index * PART..(index + 1) * PART];
            assert!(
                part.iter().all(|is| is == byte),
                "{what}: part {index} of {id} is {} and not {byte}",
                part[0]
            );
        }
    }
}

impl Life {
    async fn begin(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut rig = StoreRig::owner([4, 8, 64][usize::try_from(dice.below(3)).unwrap()]);
        rig.config.retain_checkpoints = usize::try_from(1 + dice.below(4)).unwrap();
        rig.config.pack_bytes = PART as u64 * (1 + dice.below(8));
        rig.config.sparse_percent = [0, 50, 90][usize::try_from(dice.below(3)).unwrap()];
        rig.config.queue.seed = Some(seed + 1_000_000);
        let store = rig.open().await;
        Self {
            dice,
            seeds: seed * 1000,
            rig,
            store,
            files: Files::new(),
            made: BTreeMap::new(),
            stranded: Vec::new(),
        }
    }

    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds
    }

    async fn write(&mut self) {
        let id = self.dice.below(FILES);
        let file = self.store.create_or_open(FileId(id), PARTS_OF);
        let file = file.await.expect("is there");
        let parts = self.files.entry(id).or_default();
        let index = usize::try_from(self.dice.below(PARTS)).unwrap();
        let byte = u8::try_from(1 + self.dice.below(250)).unwrap();
        fill(&file, index, byte).await;
        if parts.len() <= index {
            parts.resize(index + 1, 0);
        }
        parts[index] = byte;
    }

    async fn cut(&mut self) {
        let id = self.dice.below(FILES);
        let Some(parts) = self.files.get_mut(&id) else {
            return;
        };
        if self.dice.below(2) == 0 {
            let locker = self.store.locker("test", Role::Foreground).unwrap();
            let dropped = self.store.drop_file(FileId(id), &locker);
            dropped.await.expect("is dropped");
            self.files.remove(&id);
        } else {
            let len = usize::try_from(self.dice.below(parts.len() as u64 + 1)).unwrap();
            parts.truncate(len);
            let file = self.store.file(FileId(id)).expect("is there");
            file.set_len((len * PART) as u64).await.expect("is cut");
        }
    }

    async fn checkpoint(&mut self) {
        let made = self.store.checkpoint(CheckpointOptions::new()).await;
        self.made
            .insert(made.expect("is made").number, self.files.clone());
    }

    async fn restart(&mut self) {
        self.store.sync_all().await.expect("is synced");
        match self.dice.below(3) {
            0 => drop(self.store.shutdown().await.expect("shuts down")),
            1 => self.rig.fs.kill(),
            _ => {
                let seed = self.dice.below(1000);
                self.rig.fs.crash(seed);
            }
        }
        let seed = self.seed();
        self.rig = reborn(&self.rig, seed);
        self.store = self.rig.open().await;
        is_so(&self.store, &self.files, "after a restart").await;
    }

    /// Somebody else goes on from the latest checkpoint, or he who was stranded comes back.
    async fn another(&mut self) {
        let listed = self.rig.prefix().checkpoints().await.expect("are listed");
        let Some(latest) = listed.last() else { return };
        self.store.sync_all().await.expect("is synced");
        let made = &self.made[&latest.number];
        let mut own = Own::new();
        for (id, parts) in &self.files {
            for (index, byte) in parts.iter().enumerate() {
                let committed = made.get(id).and_then(|parts| parts.get(index));
                if *byte != 0 && committed != Some(byte) {
                    own.push((*id, index, *byte));
                }
            }
        }
        let old = (self.rig.clone(), own);
        let seed = self.seed();
        self.rig = other(&self.rig, seed);
        let what = match self.dice.below(2) {
            0 => Restore::latest(),
            _ => Restore::latest().with_bytes(),
        };
        let restored = self.rig.prefix().restore(&self.rig.config, what);
        restored.await.expect("is restored");
        let store = self.rig.open_as(StoreBuilder::take_over).await;
        self.store = store.expect("takes over");
        tokio::time::sleep(Duration::from_secs(11)).await;
        old.0.fs.kill();
        self.stranded.push(old);
        self.files = self.made[&latest.number].clone();
        is_so(&self.store, &self.files, "after a restore").await;
    }

    async fn look_for_garbage(&mut self) {
        match self.dice.below(4) {
            0 => drop(self.rig.prefix().collect_garbage().await.expect("looks")),
            _ => drop(self.store.gc().await.expect("looks")),
        }
        let numbers = assert_whole(&self.rig).await;
        is_so(&self.store, &self.files, "after a look for garbage").await;
        if !numbers.is_empty() {
            let which = self.dice.below(numbers.len() as u64);
            let number = numbers[usize::try_from(which).unwrap()];
            let restored = self.rig.restored(Restore::number(number)).await;
            let what = format!("checkpoint {number}");
            is_so(&restored, &self.made[&number], &what).await;
        }
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..=54 => self.write().await,
            55..=60 => self.cut().await,
            61..=68 => uploaded(&self.store).await,
            69..=80 => self.checkpoint().await,
            81..=92 => self.look_for_garbage().await,
            93..=96 => self.restart().await,
            97..=98 => self.another().await,
            _ => {
                let pause = Duration::from_secs(3600 * self.dice.below(10));
                self.rig.remote.advance_clock(pause);
            }
        }
    }

    /// All that anybody was told is there is there.
    async fn end(mut self) {
        self.checkpoint().await;
        for _ in 0..3 {
            self.look_for_garbage().await;
        }
        for (rig, own) in std::mem::take(&mut self.stranded) {
            let seed = self.seed();
            let rig = reborn(&rig, seed);
            let store = rig.open_as(StoreBuilder::stranded).await.expect("opens");
            for (id, index, byte) in own {
                let file = store.file(FileId(id)).expect("is there");
                let bytes = read(&file, index * PART, PART).await;
                assert_eq!(bytes.expect("is read"), [byte; PART], "{id}: part {index}");
            }
        }
    }
}

#[test]
fn nothing_that_is_needed_is_deleted_in_random_lives() {
    let setting = |name| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().expect("a number"))
    };
    let all = 0..setting("GARBAGE_CASES").unwrap_or(24);
    let seeds = setting("GARBAGE_SEED").map_or(all, |seed| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| {
            paused(async {
                let mut life = Life::begin(seed).await;
                for _ in 0..150 {
                    life.step().await;
                }
                life.end().await;
            });
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("GARBAGE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
