//! The stage of a scenario: directories, a bucket, lives, how they end, and what is looked at.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::{self, SimFs};
use s3_writeback::testing::remote::{Call, Fault, SimRemote};
use s3_writeback::testing::weather::Weather;
use s3_writeback::{CheckpointOptions, Error, Prefix, Receipt, Restore, StoreBuilder, StoreConfig};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::Tally;
use super::super::env::{Book, Env, State, lock};
use super::super::how::polled;
use super::super::life::{ENOUGH, GRACE};
use super::super::objects::{self, Objects};
use super::super::pages::{self, PART};
use super::super::stage::Stage;
use super::super::trace::Trace;
use super::super::versions;
use super::crowd::Crew;
use super::hand::Hand;
use super::kept::Kept;

/// Files of actors, and of scenarios: `pages::OWN` and so many that follow.
pub const OWNS: u64 = 12;

/// A directory, and what is known of it.
#[derive(Debug, Clone)]
pub struct Dir {
    pub fs: SimFs,
    pub book: Book,
}

impl Dir {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.book.model, &other.book.model)
    }
}

/// How the processes of a life end that were not shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Kill,
    PowerCut,
    /// One of them.
    Any,
}

/// A store that was opened in this life.
pub(super) struct Open {
    pub dir: Dir,
    pub env: Env,
    pub sealed: bool,
}

/// What outlives the stores.
pub struct Play {
    /// As the next open has it.
    pub config: StoreConfig,
    pub remote: SimRemote,
    pub objects: Arc<Mutex<Objects>>,
    pub trace: Arc<Trace>,
    /// The longest call on the disk.
    pub disk: Duration,
    pub(super) here: RefCell<Dir>,
    pub(super) rng: RefCell<StdRng>,
    pub(super) now: Duration,
    /// When this life began.
    pub(super) born: Cell<Option<Instant>>,
    pub(super) opens: Cell<u64>,
    pub(super) seed: u64,
    pub(super) checked: Rc<Cell<u64>>,
    pub(super) simulated: Duration,
    pub(super) crashes: u64,
    pub(super) opened: RefCell<Vec<Open>>,
    pub receipts: Arc<Mutex<Vec<Receipt>>>,
    pub kept: Kept,
}

fn config(rng: &mut StdRng) -> StoreConfig {
    let ms = Duration::from_millis;
    let mut config = StoreConfig::new("/store");
    config.cache_bytes = 16 * PART;
    config.dirty_bytes = 8 * PART;
    config.checkpoint_cache_bytes = 2 * PART;
    config.image_bytes = 16 * PART;
    config.pack_bytes = rng.random_range(1..=4) * PART;
    config.aside_memory = rng.random_range(0..=4) * PART;
    config.max_dirty_age = ms(rng.random_range(20..2000));
    config.max_step_bytes = 16 * PART;
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.checkpoint_within = ms(60_000);
    config.retain_checkpoints = rng.random_range(2..=8);
    config.gc_every = None;
    config.sparse_percent = [0, 50][rng.random_range(0..2)];
    config.io_deadline = ms(120_000);
    let queue = &mut config.queue;
    queue.op_deadline = ms(120_000);
    queue.workers = [1, 2, 8][rng.random_range(0..3)];
    queue.segment_bytes = [4096, 64 << 10][rng.random_range(0..2)];
    queue.inline_bytes = [0, 512, 4096][rng.random_range(0..3)];
    queue.max_disk_bytes = 16 << 20;
    queue.attempt_floor = ms(2000);
    queue.retry_base = ms(10);
    queue.retry_cap = ms(1000);
    queue.signature_lifetime = ms(20_000);
    queue.crash_limit = 100;
    queue.recovery_window = [1, 2, 4096][rng.random_range(0..3)];
    config
}

impl Play {
    pub fn new(name: &str, seed: u64, trace: &Arc<Trace>) -> Self {
        let named = name.bytes().fold(seed, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        let mut rng = StdRng::seed_from_u64(named);
        let remote = SimRemote::new();
        remote.set_weather(Some(Weather::new(rng.random())));
        let config = config(&mut rng);
        trace.say(|| format!("{name}, seed {seed}: {config:?}"));
        let here = Dir {
            fs: SimFs::new(),
            book: Book::new(&Arc::default()),
        };
        Self {
            config,
            remote,
            objects: Arc::default(),
            trace: Arc::clone(trace),
            disk: Duration::from_millis([0, 0, 1, 10][rng.random_range(0..4)]),
            here: RefCell::new(here),
            rng: RefCell::new(rng),
            now: Duration::from_secs(1_700_000_000),
            born: Cell::new(None),
            opens: Cell::new(0),
            seed,
            checked: Rc::default(),
            simulated: Duration::ZERO,
            crashes: 0,
            opened: RefCell::default(),
            receipts: Arc::default(),
            kept: Kept::default(),
        }
    }

    // What the seed decides.

    pub fn roll(&self, range: Range<u64>) -> u64 {
        self.rng.borrow_mut().random_range(range)
    }

    /// Half of the time.
    pub fn flip(&self) -> bool {
        self.rng.borrow_mut().random_bool(0.5)
    }

    pub fn one_of<T: Clone>(&self, of: &[T]) -> T {
        let at = self.rng.borrow_mut().random_range(0..of.len());
        of[at].clone()
    }

    pub fn ms(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.roll(range))
    }

    pub async fn pause(&self, range: Range<u64>) {
        tokio::time::sleep(self.ms(range)).await;
    }

    pub fn checked(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.checked)
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        self.trace.say(text);
    }

    /// Time since 1970.
    pub fn clock(&self) -> Duration {
        self.now
            + self
                .born
                .get()
                .map_or(Duration::ZERO, |born| born.elapsed())
    }

    // Directories and stores.

    pub fn here(&self) -> Dir {
        self.here.borrow().clone()
    }

    /// From here on the directory is another. Named objects are those of its own journal: where
    /// that is another, the old owner's keys are over.
    pub fn goes_on_in(&self, dir: &Dir) {
        let was = self.here.replace(dir.clone());
        if was.is(dir) {
            return;
        }
        let mut objects = lock(&self.objects);
        *objects = Objects::after(objects.names());
        drop(self.remote.land_late());
        for key in self.remote.keys() {
            if key.starts_with(objects::UNDER) {
                self.remote.remove(&key);
            }
        }
    }

    pub(super) fn stage(&self, remote: &SimRemote) -> Stage {
        Stage {
            remote: remote.clone(),
            trace: Arc::clone(&self.trace),
            now: self.now,
        }
    }

    /// Opens a directory.
    pub async fn open_as(
        &self,
        dir: &Dir,
        remote: &SimRemote,
        say: impl FnOnce(StoreBuilder) -> StoreBuilder,
    ) -> Result<Env, Error> {
        self.opens.set(self.opens.get() + 1);
        let mut config = self.config.clone();
        config.queue.seed = Some(self.seed.wrapping_mul(1000) + self.opens.get());
        let io = match self.disk {
            Duration::ZERO => Io::inline(),
            most => Io::slow(self.rng.borrow_mut().random(), most),
        };
        let began = Instant::now();
        let builder = self.stage(remote).store(config, &dir.fs, io, &dir.book);
        let opened = say(builder).open().within(ENOUGH).await;
        assert!(began.elapsed() <= ENOUGH + GRACE, "open takes too long");
        let store = opened.inspect_err(|error| self.say(|| format!("open: {error}")))?;
        let env = Env {
            store,
            book: dir.book.clone(),
            trace: Arc::clone(&self.trace),
            world: Rc::new(State::default()),
        };
        self.opened.borrow_mut().push(Open {
            dir: dir.clone(),
            env: env.clone(),
            sealed: false,
        });
        Ok(env)
    }

    /// Opens the directory that this is about; what is in it is what may be in it.
    pub async fn open(&self) -> Hand<'_> {
        let env = self
            .open_as(&self.here(), &self.remote, |as_is| as_is)
            .await;
        let env = env.unwrap_or_else(|error| panic!("open: {error:?}"));
        pages::audit(&env, OWNS).await;
        self.hand(&env)
    }

    /// Begins to open the directory, and gives up after so many polls; whether it did.
    pub async fn open_and_give_up(&self, polls: u32) -> bool {
        let here = self.here();
        let opening = self.open_as(&here, &self.remote, |as_is| as_is);
        match polled(opening, polls).await {
            None => true,
            Some(opened) => {
                let env = opened.unwrap_or_else(|error| panic!("open: {error:?}"));
                let mut nobody = Crew::default();
                self.shut_down(&self.hand(&env), &mut nobody, ENOUGH).await;
                false
            }
        }
    }

    pub fn hand(&self, env: &Env) -> Hand<'_> {
        Hand::new(self, env)
    }

    /// An empty directory with a checkpoint in it: the latest.
    pub async fn restored(&self, with_bytes: bool) -> Dir {
        let chronicle = &self.here().book.chronicle;
        let latest = versions::check(&self.remote, chronicle, None).await;
        let (number, shown) = latest.expect("there is a checkpoint");
        let what = match with_bytes {
            true => Restore::number(number).with_bytes(),
            false => Restore::number(number),
        };
        let restored =
            versions::elsewhere(&self.remote, chronicle, &self.config, what, &shown).await;
        let (fs, book) = restored.expect("is restored");
        self.say(|| format!("checkpoint {number} is restored elsewhere"));
        Dir { fs, book }
    }

    /// Another directory takes the prefix over from the latest checkpoint; for it all is well.
    pub async fn rival(&self) -> (Dir, Env) {
        for open in self.opened.borrow().iter() {
            open.env.world.has_rival.set(true);
        }
        let dir = self.restored(self.flip()).await;
        let calm = self.remote.calm();
        let opened = self.open_as(&dir, &calm, StoreBuilder::take_over).await;
        let env = opened.unwrap_or_else(|error| panic!("take over: {error:?}"));
        env.world.has_rival.set(true);
        pages::audit(&env, OWNS).await;
        (dir, env)
    }

    /// The bucket, looked at from outside.
    pub fn prefix(&self) -> Prefix {
        versions::prefix(&self.remote)
    }

    /// The numbers of the checkpoints that are listed, each of which is whole.
    pub async fn listed(&self) -> Vec<u64> {
        self.kept.look(&self.remote);
        let chronicle = Arc::clone(&self.here().book.chronicle);
        let checked = versions::check_all(&self.remote, &chronicle).await;
        self.checked.set(self.checked.get() + checked);
        match self.prefix().checkpoints().await {
            Ok(listed) => listed.iter().map(|one| one.number).collect(),
            Err(Error::NoSuchCheckpoint { .. }) => Vec::new(),
            Err(error) => panic!("checkpoints cannot be listed: {error}"),
        }
    }

    /// Nothing of these keys is on its way: they are what they may be.
    pub fn at_rest(&self, keys: &[&str]) {
        lock(&self.objects).look_at(&self.remote, |key| keys.contains(&key));
    }

    /// Since this checkpoint, nobody has committed but who has this directory.
    pub async fn only_commits(&self, dir: &Dir, since: u64) {
        let owner = lock(&dir.book.model).owner();
        let chronicle = Arc::clone(&dir.book.chronicle);
        versions::nobody_else_commits(&self.remote, &chronicle, since, owner).await;
    }

    /// The clock of this machine is somewhere else from the next life on.
    pub fn clock_goes(&mut self, on: bool, by: Duration) {
        self.now = if on {
            self.now + by
        } else {
            self.now.saturating_sub(by)
        };
    }

    /// What the latest checkpoint shows of a unit; it is whole.
    pub async fn latest(&self, reg: super::super::model::Reg) -> u64 {
        let chronicle = Arc::clone(&self.here().book.chronicle);
        let latest = versions::check(&self.remote, &chronicle, None).await;
        let (_, shown) = latest.expect("there is a checkpoint");
        shown.get(&reg).copied().unwrap_or(0)
    }

    // What goes wrong.

    /// The next requests of this kind under this prefix are held up until they are let go, one by
    /// one.
    pub fn hold_up(&self, times: usize, call: Call, under: &str) -> Arc<Notify> {
        let gate = Arc::new(Notify::new());
        let held = Fault::Gate(Arc::clone(&gate));
        self.remote.under(Some(times), Some(call), under, held);
        gate
    }

    /// Waits until so many requests of this kind were seen under this prefix, and fails where they
    /// are not.
    pub async fn seen(&self, call: Call, under: &str, least: usize) {
        let seen = self
            .remote
            .wait_for(|remote| remote.count(call, under) >= least);
        let seen = tokio::time::timeout(ENOUGH, seen).await;
        let is = self.remote.count(call, under);
        assert!(seen.is_ok(), "{is} {call:?} of {under}* and not {least}");
    }

    /// Waits until something is so, and fails where it never is.
    pub async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < 4 * ENOUGH, "never: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// From the nth call on, the disk of this directory fails everything.
    pub fn disk_fails_after(&self, hand: &Hand<'_>, calls: u64) {
        hand.env.world.disk_is_bad.set(true);
        self.say(|| format!("the disk fails after {calls} calls"));
        self.here().fs.fail(fs::Fault {
            call: None,
            after: calls,
            errno: fs::EIO,
            forever: true,
        });
    }

    pub fn tally(&self) -> Tally {
        let mut tally = Tally {
            simulated: self.simulated,
            checked: self.checked.get(),
            events: self.trace.events(),
            ..Tally::default()
        };
        tally.ends.insert("Kill".to_owned(), self.crashes);
        tally
    }

    /// Options of a checkpoint whose line the book knows.
    pub fn options(book: &Book) -> CheckpointOptions {
        let book = book.clone();
        CheckpointOptions::new().meta(move || versions::meta_of(&book))
    }
}
