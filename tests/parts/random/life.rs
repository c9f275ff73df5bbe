//! A case: a configuration, and lives that end in every way.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::time::WallClock;
use s3_writeback::{Error, File, FileId, Locker, OwnedGuard, PartStore, Role, RunOn, StoreConfig};
use tokio::runtime::Handle;

use super::actors::{Shard, look_around};
use super::model::FileModel;
use crate::support::{StoreRig, assert_idle, spawn, uploaded};

/// Bytes that the cache is measured in.
pub const FRAME: u64 = 4096;
/// How long a shutdown is given.
const SHUTDOWN: Duration = Duration::from_secs(300);

/// What outlives the stores, and what is known of it.
pub struct World {
    pub rng: StdRng,
    pub fs: SimFs,
    pub remote: SimRemote,
    pub config: StoreConfig,
    pub files: BTreeMap<u64, FileModel>,
    /// S3 may be failing.
    pub faulty: bool,
    /// Others hold parts now and then.
    pub crowded: bool,
    /// The life has to end in a crash, now.
    pub crash_now: bool,
    /// What actors know that is not in `files` yet.
    pub shards: Vec<Shard>,
    opens: u64,
    seed: u64,
    verbose: bool,
    trace: Vec<String>,
    hash: DefaultHasher,
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Shutdown,
    PowerCut,
    Kill,
    /// Everybody lets go of the store.
    Drop,
}

/// What one life has.
pub struct Open {
    pub store: PartStore,
    pub files: BTreeMap<u64, File>,
    pub lockers: Vec<Locker>,
    pub guards: Vec<Held>,
    /// Handles of files that were dropped.
    pub stale: Vec<File>,
}

/// A guard, and what it is known by.
pub struct Held {
    pub guard: OwnedGuard,
    pub file: u64,
    pub index: usize,
    pub locker: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.verbose {
            let from = self.trace.len().saturating_sub(60);
            eprintln!("seed {}, the last steps:", self.seed);
            for line in &self.trace[from..] {
                eprintln!("  {line}");
            }
        }
    }
}

impl World {
    pub fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rig = StoreRig::new(4);
        let mut config = rig.config;
        let frames = rng.random_range(4..=8);
        let ms = Duration::from_millis;
        config.cache_bytes = frames * FRAME;
        config.dirty_bytes = rng.random_range(1..=frames) * FRAME;
        config.checkpoint_cache_bytes = rng.random_range(1..=2) * FRAME;
        config.image_bytes = rng.random_range(1..=4) * FRAME;
        config.max_dirty_age = ms([1, 10, 100, 1000, 10_000][rng.random_range(0..5)]);
        config.max_step_bytes = 16 * FRAME;
        config.queue.workers = [1, 1, 2, 4][rng.random_range(0..4)];
        config.queue.segment_bytes = [4096, 16 * 1024, 64 * 1024][rng.random_range(0..3)];
        config.queue.attempt_floor = ms(1000);
        config.queue.retry_base = ms(10);
        config.queue.retry_cap = ms(2000);
        config.queue.seed = Some(seed);
        Self {
            rng,
            fs: rig.fs,
            remote: rig.remote,
            config,
            files: BTreeMap::new(),
            faulty: false,
            crowded: false,
            crash_now: false,
            shards: Vec::new(),
            opens: 0,
            seed,
            verbose,
            trace: Vec::new(),
            hash: DefaultHasher::new(),
        }
    }

    /// Notes what was done.
    pub fn say(&mut self, text: String) {
        text.hash(&mut self.hash);
        if self.verbose {
            println!("{text}");
        } else {
            self.trace.push(text);
        }
    }

    /// Runs in a runtime of its own, which ends with it.
    fn run<T>(&mut self, life: impl AsyncFnOnce(&mut Self) -> T) -> (tokio::runtime::Runtime, T) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let week = Duration::from_secs(7 * 24 * 3600);
        let result = runtime.block_on(async {
            let ended = tokio::time::timeout(week, life(self)).await;
            ended.expect("nobody waits for ever")
        });
        (runtime, result)
    }

    pub async fn open(&mut self) -> Open {
        self.opens += 1;
        let clock = WallClock::starting_at(Duration::from_secs(1_700_000_000 + self.opens));
        let mut config = self.config.clone();
        config.queue.seed = Some(self.seed * 100 + self.opens);
        let store = PartStore::builder(config, Arc::new(self.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(self.fs.process()), Io::inline())
            .wall_clock(clock)
            .open()
            .within(Duration::from_secs(60))
            .await
            .expect("opens");
        let lockers = ["a", "b", "c"].map(|name| {
            let role = if name == "c" {
                Role::Checkpointer
            } else {
                Role::Foreground
            };
            store.locker(name, role).expect("a locker")
        });
        Open {
            store,
            files: BTreeMap::new(),
            lockers: lockers.into(),
            guards: Vec::new(),
            stale: Vec::new(),
        }
    }

    /// Looks at which files there are, and how long they are.
    fn find(&mut self, open: &mut Open, after: Option<End>) {
        let found: Vec<u64> = open.store.files().iter().map(|id| id.0).collect();
        for id in &found {
            assert!(
                self.files.contains_key(id),
                "file {id} came back: {found:?}"
            );
        }
        let crash = match after {
            None | Some(End::Shutdown) => None,
            Some(End::PowerCut) => Some(true),
            Some(End::Kill | End::Drop) => Some(false),
        };
        let ids: Vec<u64> = self.files.keys().copied().collect();
        for id in ids {
            let Ok(file) = open.store.file(FileId(id)) else {
                let model = self.files.remove(&id).expect("is known");
                assert!(crash.is_some() && !model.sure, "file {id} is lost");
                self.say(format!("file {id} is not there"));
                continue;
            };
            let model = self.files.get_mut(&id).expect("is known");
            assert_eq!(file.part_bytes() as usize, model.part);
            let len = file.len();
            match crash {
                None => assert_eq!(len, model.len, "length of file {id} after a shutdown"),
                Some(power) => {
                    model.crash(power);
                    if let Err(text) = model.found(len, power) {
                        panic!("file {id}: {text}");
                    }
                    for shard in &mut self.shards {
                        let model = shard.files.get_mut(&id).expect("is known");
                        model.crash(power);
                        model.found(len, power).expect("the length is as it was");
                    }
                }
            }
            self.say(format!("file {id} has {len} bytes"));
            open.files.insert(id, file);
        }
    }

    /// Everything of it has to come from S3.
    fn forget_local_bytes(&mut self) {
        self.say("local bytes are gone".to_owned());
        for name in self.fs.names(Path::new("/q/parts")) {
            let len = self.fs.peek(&name).map_or(0, |bytes| bytes.len());
            self.fs.poke(&name, vec![0; len]);
        }
    }

    pub fn heal(&mut self) {
        self.remote.heal();
        if self.rng.random_bool(0.5) {
            let _landed = self.remote.land_late();
        }
        self.faulty = false;
    }

    async fn shut_down(&mut self, open: &Open) {
        let healthy = !self.faulty;
        let report = open.store.shutdown().within(SHUTDOWN).await.expect("ends");
        self.say(format!("shut down: {} dirty parts", report.dirty_parts));
        assert!(report.took <= SHUTDOWN, "{report:#?}");
        assert!(report.sealed, "{report:#?}");
        if healthy {
            assert_eq!(
                report.dirty_parts,
                0,
                "{report:#?} {:#?}",
                open.store.snapshot()
            );
        }
        for (id, file) in &open.files {
            let late = file.write_at(&[1], 0).await;
            let refused = matches!(late, Err(Error::ShuttingDown { .. }));
            assert!(refused, "file {id}: {late:?}");
        }
        for model in self.files.values_mut() {
            model.synced();
        }
        if report.dirty_parts == 0 && self.rng.random_bool(0.5) {
            self.forget_local_bytes();
        }
    }

    /// One life: what is done in it, and how it ends.
    fn live(&mut self, after: Option<End>, steps: usize, actors: bool) -> End {
        self.say(format!("--- open {} after {after:?}", self.opens + 1));
        let (runtime, (open, end)) = self.run(async |world| {
            let mut open = world.open().await;
            world.find(&mut open, after);
            if !world.shards.is_empty() {
                world.join(&open).await;
            } else if world.rng.random_bool(0.5) {
                world.read_all(&open).await;
            }
            world.crowded = actors && world.rng.random_bool(0.5);
            let others = if world.crowded {
                world.rng.random_range(1..4)
            } else {
                0
            };
            let others: Vec<_> = (0..others)
                .map(|_| spawn(look_around(open.store.clone(), world.rng.random())))
                .collect();
            for _ in 0..steps {
                if world.crash_now {
                    break;
                }
                world.step(&mut open).await;
            }
            if actors && !world.crash_now {
                world.act(&mut open).await;
            }
            for other in others {
                other.abort();
                if let Err(error) = other.await
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
            world.crowded = false;
            let end = match world.rng.random_range(0..10) {
                0..=2 if !world.crash_now => End::Shutdown,
                3 if !world.crash_now => End::Drop,
                4..=5 => End::Kill,
                _ => End::PowerCut,
            };
            world.crash_now = false;
            world.say(format!("ends: {end:?}"));
            if end == End::Shutdown {
                if world.rng.random_bool(0.85) {
                    world.heal();
                }
                world.shut_down(&open).await;
            }
            if end == End::Drop {
                drop(open);
                return (None, end);
            }
            (Some(open), end)
        });
        let seed = self.rng.random();
        match end {
            End::Shutdown if self.rng.random_bool(0.3) => self.fs.crash(seed),
            End::Shutdown => (),
            End::Drop => (),
            End::PowerCut => self.fs.crash(seed),
            End::Kill => self.fs.kill(),
        }
        drop(runtime);
        drop(open);
        end
    }

    /// The last life: all is well, and stays so.
    fn end(&mut self, after: End) {
        self.say("--- at last".to_owned());
        self.heal();
        let (runtime, open) = self.run(async |world| {
            let mut open = world.open().await;
            world.find(&mut open, Some(after));
            if !world.shards.is_empty() {
                world.join(&open).await;
            }
            world.read_all(&open).await;
            uploaded(&open.store).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_idle(&open.store);
            let snapshot = open.store.snapshot();
            assert!(
                snapshot.failing.is_empty() && snapshot.failed.is_none(),
                "{snapshot:#?}"
            );
            world.shut_down(&open).await;
            let snapshot = open.store.snapshot();
            assert_eq!(
                (snapshot.dirty_bytes, snapshot.image_bytes),
                (0, 0),
                "{snapshot:#?}"
            );
            open
        });
        drop((runtime, open));
        self.forget_local_bytes();
        let (runtime, open) = self.run(async |world| {
            let mut open = world.open().await;
            world.find(&mut open, Some(End::Shutdown));
            world.read_all(&open).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_idle(&open.store);
            world.shut_down(&open).await;
            open
        });
        drop((runtime, open));
    }
}

fn lives(seed: u64, verbose: bool, actors: bool) -> u64 {
    let mut world = World::new(seed, verbose);
    let config = format!("seed {seed}: {:?}", world.config);
    world.say(config);
    let mut after = None;
    for _ in 0..world.rng.random_range(1..6) {
        let steps = world.rng.random_range(1..60);
        let with = actors && world.rng.random_bool(0.5);
        after = Some(world.live(after, steps, with));
    }
    world.end(after.unwrap_or(End::Shutdown));
    world.hash.finish()
}

/// One case.
pub fn case(seed: u64, verbose: bool) {
    lives(seed, verbose, seed.is_multiple_of(2));
}

/// One without actors; the hash of all that happened.
pub fn sequential(seed: u64) -> u64 {
    lives(seed, false, false)
}
