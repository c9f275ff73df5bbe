//! The lives of a store: each has a runtime of its own, and ends in one of many ways; the
//! directory, the bucket and the wall clock go on.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{LocalBoxFuture, join_all};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::testing::weather::Weather;
use s3_writeback::{
    CheckpointOptions, Error, Fencing, PartStore, PauseWhat, Receipt, Restore, Result,
    ShutdownReport, StoreBuilder,
};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::Tally;
use super::env::{Book, Env, State, lock};
use super::how::How;
use super::knobs::Knobs;
use super::model::{Crash, Reg};
use super::objects::{Objects, Producer};
use super::pages::{self, Pages};
use super::skies::{self, Climate};
use super::stage::{self, Stage};
use super::trace::Trace;
use super::versions::{self, Checkpoints};
use super::watch;
use super::woken::Woken;

/// What a shutdown may take beyond its deadline: the time to notice, and a slow disk.
pub const GRACE: Duration = Duration::from_secs(3);
/// For so long something is waited for that is worth dying at.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// So long after the end nobody waits any more who did so before.
pub const AFTER_THE_END: Duration = Duration::from_secs(2);
/// In this time all goes up, where nothing is wrong.
pub const ENOUGH: Duration = Duration::from_secs(120);

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Shutdown,
    Kill,
    PowerCut,
    /// Everybody lets go of the store.
    Drop,
    /// Another directory takes the prefix over.
    TakenOver,
}

/// What outlives the stores.
pub struct World {
    rng: StdRng,
    knobs: Knobs,
    fs: SimFs,
    remote: SimRemote,
    book: Book,
    objects: Arc<Mutex<Objects>>,
    trace: Arc<Trace>,
    /// Time since 1970.
    now: Duration,
    opens: u64,
    seed: u64,
    checked: Rc<Cell<u64>>,
    /// The last shutdown was whole.
    is_sealed: bool,
    /// The disk has failed a call.
    disk_was_bad: bool,
    pub tally: Tally,
}

type Actors = Vec<Woken>;

impl World {
    pub fn new(seed: u64, trace: &Arc<Trace>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let knobs = Knobs::of(&mut rng);
        trace.say(|| format!("seed {seed}: {knobs:?}"));
        let remote = SimRemote::new();
        remote.set_weather(Some(Weather::new(rng.random())));
        remote.ignore_conditions(knobs.ignores_conditions);
        Self {
            knobs,
            fs: SimFs::new(),
            remote,
            book: Book::new(&Arc::default()),
            objects: Arc::default(),
            trace: Arc::clone(trace),
            now: Duration::from_secs(1_700_000_000),
            opens: 0,
            seed,
            checked: Rc::default(),
            is_sealed: false,
            disk_was_bad: false,
            tally: Tally::default(),
            rng,
        }
    }

    fn stage(&self) -> Stage {
        Stage {
            remote: self.remote.clone(),
            trace: Arc::clone(&self.trace),
            now: self.now,
        }
    }

    /// Runs in a runtime of its own, which ends with what it returns.
    fn run<T>(&mut self, life: impl AsyncFnOnce(&mut Self) -> T) -> (Runtime, T) {
        let (stage, lifetime) = (self.stage(), self.knobs.config.queue.signature_lifetime);
        let (runtime, result, took) = stage.run(lifetime, life(self));
        self.now += took;
        self.tally.simulated += took;
        (runtime, result)
    }

    fn io(&mut self) -> Io {
        match self.knobs.disk {
            Duration::ZERO => Io::inline(),
            most => Io::slow(self.rng.random(), most),
        }
    }

    fn builder(&mut self, fs: &SimFs, book: &Book) -> StoreBuilder {
        self.opens += 1;
        let mut config = self.knobs.config.clone();
        config.queue.seed = Some(self.seed.wrapping_mul(1000) + self.opens);
        let io = self.io();
        self.stage().store(config, fs, io, book)
    }

    fn env(&self, store: PartStore, book: &Book) -> Env {
        Env {
            store,
            book: book.clone(),
            trace: Arc::clone(&self.trace),
            world: Rc::new(State::after(self.disk_was_bad)),
        }
    }

    /// Opens the directory; in bad weather it may take more than one try.
    async fn open(&mut self, had_s3: bool) -> Env {
        let (fs, book) = (self.fs.clone(), self.book.clone());
        for attempt in 0..3 {
            if attempt == 2 {
                self.remote.change_weather(Weather::clear);
            }
            let within = match self.rng.random_range(0..10) {
                0 if attempt == 0 => Duration::from_millis(self.rng.random_range(0..200)),
                _ => Duration::from_secs(300),
            };
            match self.builder(&fs, &book).open().within(within).await {
                Ok(store) => return self.env(store, &book),
                Err(error) => {
                    let patient = within > Duration::from_secs(1);
                    self.trace.say(|| format!("open: {error}"));
                    let fine = match error {
                        Error::TimedOut { .. } => !patient || had_s3,
                        Error::Remote(_) => had_s3,
                        _ => false,
                    };
                    assert!(fine && attempt < 2, "open: {error:?}");
                    // What was left of it lets go of the directory.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        }
        unreachable!("the last try succeeds or fails the seed");
    }

    /// Everything of it has to come from S3.
    fn forget_local_bytes(&mut self) {
        self.trace.say(|| "local bytes are gone".to_owned());
        stage::forget_local_bytes(&self.fs);
    }

    fn actors(&mut self, env: &Env, receipts: &Arc<Mutex<Vec<Receipt>>>) -> Actors {
        let mut all: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        let of = self.knobs.actors;
        for number in 0..of {
            all.push(Box::pin(
                Pages::new(env, number, of, self.rng.random()).act(),
            ));
        }
        for number in 0..self.knobs.producers {
            let (objects, seed) = (&self.objects, self.rng.random());
            let rewrites = !self.knobs.ignores_conditions;
            let producer =
                Producer::new(env, objects, &self.remote, receipts, number, rewrites, seed);
            all.push(Box::pin(producer.act()));
        }
        for _ in 0..self.knobs.lookers {
            all.push(Box::pin(pages::look_around(env.clone(), self.rng.random())));
        }
        for _ in 0..self.knobs.checkpoint_code {
            let code = pages::checkpoint_code(env.clone(), self.rng.random());
            all.push(Box::pin(code));
        }
        for _ in 0..self.knobs.slow_readers {
            let (remote, seed) = (self.remote.clone(), self.rng.random());
            all.push(Box::pin(versions::read_slowly(env.clone(), remote, seed)));
        }
        let checked = &self.checked;
        let checkpoints = Checkpoints::new(env, &self.remote, checked, self.rng.random());
        all.push(Box::pin(checkpoints.act()));
        all.push(Box::pin(skies::over_s3(
            env.clone(),
            self.remote.clone(),
            self.knobs.climate,
            self.knobs.config.fencing == Fencing::On,
            self.rng.random(),
        )));
        all.push(Box::pin(watch::watch(
            env.clone(),
            self.knobs.config.clone(),
            Arc::clone(&self.objects),
            self.remote.clone(),
            self.knobs.checkpoint_code > 0,
        )));
        if self.knobs.disk_fails && self.rng.random_bool(0.5) {
            let (env, fs) = (env.clone(), self.fs.clone());
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            let most = u64::try_from(self.knobs.life.as_millis()).unwrap_or(1);
            all.push(Box::pin(async move {
                let ms = rng.random_range(0..most);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                skies::on_the_disk(&env, &fs, &mut rng);
                std::future::pending().await
            }));
        }
        all.into_iter().map(Woken::new).collect()
    }

    /// One life, and how it ends.
    fn live(&mut self, number: u32) {
        if self.opens > 0 && self.rng.random_bool(0.2) {
            self.reconfigure();
        }
        let had_s3 = self.knobs.climate != Climate::Fine;
        if self.opens > 0 && self.rng.random_bool(0.05) {
            // The directory is copied, and the copy goes on.
            self.fs = self.fs.copy_of();
        }
        let (runtime, (env, actors, end)) = self.run(async |world| {
            world.trace.say(|| format!("--- life {number}"));
            let env = world.open(had_s3).await;
            skies::clear(&env, &world.remote);
            if env.store.queue().is_moved() {
                world.trace.say(|| "the directory is a copy".to_owned());
                env.store.queue().adopt().await.expect("is adopted");
            }
            pages::audit(&env, world.knobs.actors).await;
            pages::found(&env).await;
            let receipts = Arc::default();
            let mut actors: Actors = world.actors(&env, &receipts);
            let most = u64::try_from(world.knobs.life.as_millis()).unwrap_or(1);
            let long = Duration::from_millis(world.rng.random_range(0..most));
            let end = world.choose_end();
            {
                let all = join_all(actors.iter_mut());
                let mut all = Box::pin(all);
                let _ended = tokio::time::timeout(long, &mut all).await;
                if world.rng.random_bool(0.5) && matches!(end, End::Kill | End::PowerCut) {
                    // In the moment in which somebody is told that it is durable.
                    tokio::select! {
                        biased;
                        () = env.world.told.notified() => (),
                        () = tokio::time::sleep(LAST_WORDS) => (),
                        _ = &mut all => (),
                    }
                }
            }
            world.trace.say(|| format!("ends: {end:?}"));
            match end {
                End::Shutdown => {
                    world.shut_down(&env, &mut actors).await;
                    all_told(&receipts);
                }
                End::TakenOver => world.take_over(&env, &mut actors).await,
                End::Drop => {
                    actors.clear();
                    world.disk_was_bad |= env.world.disk_is_bad.get();
                    drop(env);
                    return (None, actors, end);
                }
                End::Kill | End::PowerCut => (),
            }
            (Some(env), actors, end)
        });
        self.disk_was_bad |= env.as_ref().is_some_and(|env| env.world.disk_is_bad.get());
        *self.tally.ends.entry(format!("{end:?}")).or_default() += 1;
        let seed = self.rng.random();
        match end {
            // Its journal has no clean end: as if it had been killed.
            End::Shutdown | End::TakenOver if !self.is_sealed => {
                lock(&self.book.model).crash(Crash::Kill);
                self.fs.kill();
            }
            End::Shutdown | End::TakenOver if self.rng.random_bool(0.7) => (),
            End::Shutdown | End::TakenOver | End::PowerCut => {
                lock(&self.book.model).crash(Crash::PowerCut);
                self.fs.crash(seed);
            }
            End::Kill | End::Drop => {
                lock(&self.book.model).crash(Crash::Kill);
                self.fs.kill();
            }
        }
        drop(runtime);
        drop((actors, env));
        let owner = lock(&self.book.model).owner();
        lock(&self.book.chronicle).close(owner);
        self.fs.heal();
    }

    fn choose_end(&mut self) -> End {
        let may_be_taken = self.knobs.config.fencing == Fencing::On;
        match self.rng.random_range(0..20) {
            0..=6 => End::Shutdown,
            7..=11 => End::Kill,
            12..=16 => End::PowerCut,
            17 => End::Drop,
            _ if may_be_taken => End::TakenOver,
            _ => End::Kill,
        }
    }

    /// Today's limits are not yesterday's.
    fn reconfigure(&mut self) {
        let before = &self.knobs;
        let mut after = Knobs::of(&mut self.rng);
        after.config.fencing = before.config.fencing;
        after.ignores_conditions = before.ignores_conditions;
        after.actors = before.actors;
        after.lives = before.lives;
        self.knobs = after;
        let config = &self.knobs.config;
        self.trace.say(|| format!("reconfigured: {config:?}"));
    }

    async fn shut_down(&mut self, env: &Env, actors: &mut Actors) {
        let ms = Duration::from_millis;
        let limits = [ms(0), ms(10), ms(1000), ms(30_000), ms(300_000)];
        let mut within = limits[self.rng.random_range(0..limits.len())];
        if self.rng.random_bool(0.6) {
            skies::clear(env, &self.remote);
        }
        let hurries = self.rng.random_bool(0.1);
        let waits = self.rng.random_bool(0.5) && !env.world.disk_is_bad.get();
        if waits && !hurries {
            // Until nobody feels any more that S3 was not well.
            skies::clear_for_good(env, &self.remote);
            let quiet: Duration = ENOUGH;
            let mut all = Box::pin(join_all(actors.drain(..)));
            let ended = tokio::time::timeout(ms(1), &mut all).await;
            drop((ended, all));
            // Somebody was in the middle of a pause.
            for what in [PauseWhat::Admission, PauseWhat::Uploads] {
                env.store.queue().resume(what);
            }
            tokio::time::sleep(quiet).await;
            within = ENOUGH;
        }
        let hold = env.store.queue().hold("the engine").ok().and_then(|hold| {
            let locker = env.store.locker_through(&hold, "the engine");
            Some((hold, locker.ok()?))
        });
        let wrote = Cell::new(false);
        env.world.is_ending.set(true);
        let began = Instant::now();
        let shutdown = env.store.shutdown().within(within);
        let queue = env.store.queue().clone();
        let (delay, keeps) = (
            ms(self.rng.random_range(0..500)),
            ms(self.rng.random_range(0..3000)),
        );
        let report = {
            let others = async {
                let all = join_all(actors.iter_mut());
                let held = async {
                    tokio::time::sleep(keeps).await;
                    if let Some((hold, locker)) = hold {
                        wrote.set(pages::write_roots(env, &locker).await);
                        drop((locker, hold));
                    }
                    std::future::pending::<()>().await;
                };
                let hurry = async {
                    tokio::time::sleep(delay).await;
                    if hurries {
                        queue.hurry();
                    }
                    std::future::pending::<()>().await;
                };
                futures::future::join3(all, held, hurry).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                report = shutdown.into_future() => report.expect("a report"),
                () = others => unreachable!("it goes on"),
            }
        };
        let took = began.elapsed();
        self.trace.say(|| {
            format!(
                "shut down within {within:?} in {took:?}: {} dirty, {} deferred, sealed: {}",
                report.dirty_parts, report.deferred, report.sealed
            )
        });
        assert!(
            took <= within + GRACE,
            "{took:?} of {within:?}: {report:#?}"
        );
        self.is_sealed = report.sealed;
        self.nobody_waits(env, actors).await;
        let is_fine = waits && !hurries && !env.world.disk_is_bad.get();
        if is_fine {
            assert!(wrote.get(), "the engine's hold was not waited for");
            self.check_roots(env, &report).await;
        }
        self.check_report(env, &report, is_fine).await;
    }

    /// What the engine wrote through its hold is in the last checkpoint.
    async fn check_roots(&mut self, env: &Env, report: &ShutdownReport) {
        if !self.knobs.config.checkpoint_at_shutdown {
            return;
        }
        let last = versions::check(&self.remote, &env.book.chronicle, None).await;
        let (number, shown) = last.expect("there is one");
        assert_eq!(Some(number), report.checkpoint, "{report:#?}");
        let root = Reg::Unit(pages::ROOTS, 0);
        assert_eq!(shown.get(&root), Some(&env.book.last(root)), "{report:#?}");
    }

    /// Whoever waited when the store ended has been told.
    async fn nobody_waits(&mut self, env: &Env, actors: &mut Actors) {
        let began = Instant::now();
        let all = join_all(actors.iter_mut());
        let _ended = tokio::time::timeout(AFTER_THE_END, all).await;
        let waiting = env.world.waiting_for(began.elapsed());
        // A disk that does not answer keeps who waits for it.
        let excused = env.world.disk_is_bad.get() && !self.is_sealed;
        let now = env.store.snapshot();
        assert!(
            waiting.is_empty() || excused,
            "after the end they wait for ever: {waiting:?}\n{now:#?}"
        );
    }

    async fn check_report(&mut self, env: &Env, report: &ShutdownReport, nothing_is_wrong: bool) {
        self.is_sealed = report.sealed;
        let bad_disk = env.world.disk_is_bad.get();
        if nothing_is_wrong {
            let is_clean = report.sealed && report.dirty_parts == 0 && report.deferred == 0;
            assert!(is_clean, "{report:#?}\n{:#?}", env.store.snapshot());
            if self.knobs.config.checkpoint_at_shutdown {
                assert_eq!(report.checkpoint_error, None, "{report:#?}");
            }
        }
        if report.sealed {
            let since = env.book.now();
            env.book.synced(since, |_| true);
            watch::at_rest(env).await;
        }
        if report.sealed && report.deferred == 0 && report.undetermined == 0 && !bad_disk {
            lock(&self.objects).look_at_rest(&self.remote);
        }
        if report.sealed && report.dirty_parts == 0 && self.rng.random_bool(0.5) {
            self.forget_local_bytes();
        }
    }

    /// Another directory goes on from the latest checkpoint, while this one is at it.
    async fn take_over(&mut self, env: &Env, actors: &mut Actors) {
        env.world.has_rival.set(true);
        skies::clear_for_good(env, &self.remote);
        let taken = {
            let mut all = Box::pin(async {
                join_all(actors.iter_mut()).await;
                std::future::pending::<()>().await;
            });
            tokio::select! {
                biased;
                taken = self.rival() => taken,
                () = &mut all => unreachable!("it goes on"),
            }
        };
        let Some((number, fs, book, store)) = taken else {
            self.is_sealed = false;
            return;
        };
        let rival = self.env(store, &book);
        rival.world.has_rival.set(true);
        // The old owner finds out by itself, whether or not anybody does anything.
        if self.rng.random_bool(0.5) {
            actors.clear();
        }
        let look = self.knobs.config.look_at_head * 2 + Duration::from_secs(30);
        let all = async {
            join_all(actors.iter_mut()).await;
            std::future::pending::<()>().await;
        };
        let _ended = tokio::time::timeout(look, all).await;
        assert!(
            env.store.check_fenced().is_err(),
            "the old owner does not know\n{:#?}",
            env.store.checkpoint_snapshot()
        );
        // With S3 well, whoever waited before it knew has been told.
        let waiting = env.world.waiting_for(look);
        let waiting: Vec<_> = waiting
            .into_iter()
            // What was not sent goes up after the next open; a GET has its own time.
            .filter(|what| !what.starts_with("settled") && !what.starts_with("get"))
            .collect();
        let now = env.store.snapshot();
        assert!(
            waiting.is_empty(),
            "fenced, they wait for ever: {waiting:?}\n{now:#?}"
        );
        // Whatever it still does, nobody reads it.
        pages::audit(&rival, self.knobs.actors).await;
        pages::found(&rival).await;
        let asked = book.clone();
        let options = CheckpointOptions::new().meta(move || versions::meta_of(&asked));
        let since = book.now();
        let made = rival.store.checkpoint(options).await;
        made.expect("the new owner's is committed");
        book.synced(since, |_| true);
        let chronicle = Arc::clone(&book.chronicle);
        versions::check_all(&self.remote, &chronicle).await;
        let owner = lock(&book.model).owner();
        versions::nobody_else_commits(&self.remote, &chronicle, number, owner).await;
        env.world.is_ending.set(true);
        actors.clear();
        self.fs.kill();
        let report = rival.store.shutdown().within(ENOUGH).await.expect("ends");
        assert!(report.sealed, "{report:#?}");
        self.is_sealed = true;
        let since = book.now();
        book.synced(since, |_| true);
        let owner = lock(&self.book.model).owner();
        lock(&self.book.chronicle).close(owner);
        self.fs = fs;
        self.book = book;
        // Named objects are the old owner's journal's, and nobody fences them: their keys are over.
        let names = lock(&self.objects).names();
        self.objects = Arc::new(Mutex::new(Objects::after(names)));
        drop(self.remote.land_late());
        for key in self.remote.keys() {
            if key.starts_with("objects/") {
                self.remote.remove(&key);
            }
        }
    }

    /// Restores the latest checkpoint elsewhere, and claims the prefix.
    async fn rival(&mut self) -> Option<(u64, SimFs, Book, PartStore)> {
        for _ in 0..20 {
            let latest = versions::check(&self.remote, &self.book.chronicle, None).await;
            let Some((number, shown)) = latest else {
                self.trace
                    .say(|| "there is nothing to take over".to_owned());
                return None;
            };
            let what = match self.rng.random_bool(0.5) {
                true => Restore::number(number),
                false => Restore::number(number).with_bytes(),
            };
            let config = &self.knobs.config;
            let chronicle = &self.book.chronicle;
            let restored = versions::elsewhere(&self.remote, chronicle, config, what, &shown).await;
            let (fs, book) = match restored {
                Ok(restored) => restored,
                Err(Error::NoSuchCheckpoint { .. }) => continue,
                Err(error) => panic!("checkpoint {number} is not restored: {error}"),
            };
            let opened: Result<PartStore> = self.builder(&fs, &book).take_over().open().await;
            match opened {
                Ok(store) => {
                    self.trace
                        .say(|| format!("taken over at checkpoint {number}"));
                    self.tally.taken_over += 1;
                    return Some((number, fs, book, store));
                }
                // The owner has committed another meanwhile, or changed head.
                Err(
                    Error::Diverged { .. }
                    | Error::HeadChanged
                    | Error::TakeOverNeeded { .. }
                    | Error::NoSuchCheckpoint { .. },
                ) => (),
                Err(error) => panic!("checkpoint {number} is not taken over: {error:?}"),
            }
        }
        self.trace.say(|| "the owner is always faster".to_owned());
        None
    }

    /// The last life: all is well, and stays so.
    fn end(&mut self) {
        let (runtime, env) = self.run(async |world| {
            world.trace.say(|| "--- at last".to_owned());
            world.remote.change_weather(Weather::clear);
            let env = world.open(false).await;
            pages::audit(&env, world.knobs.actors).await;
            let clean = async {
                while env.store.snapshot().dirty_bytes > 0 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let clean = tokio::time::timeout(ENOUGH, clean).await;
            assert!(
                clean.is_ok(),
                "S3 does not get it: {:#?}",
                env.store.snapshot()
            );
            let drained = env.store.queue().drain().within(ENOUGH).await;
            if let Err(error) = drained {
                let left = env.store.queue().quarantined();
                let pending = env.store.queue().pending();
                assert!(!left.is_empty(), "drain: {error}\n{pending:#?}");
                // It ended there; whatever that is not in the way of goes up all the same.
                tokio::time::sleep(ENOUGH).await;
            }
            lock(&world.objects).look_at_rest(&world.remote);
            let chronicle = Arc::clone(&world.book.chronicle);
            let mut checked = versions::check_all(&world.remote, &chronicle).await;
            let asked = world.book.clone();
            let options = CheckpointOptions::new().meta(move || versions::meta_of(&asked));
            let made = env.store.checkpoint(options).await;
            made.unwrap_or_else(|error| panic!("{error:?}\n{:#?}", env.store.snapshot()));
            env.run("gc", How::Full, env.store.gc()).await;
            checked += versions::check_all(&world.remote, &chronicle).await;
            world.checked.set(world.checked.get() + checked);
            // Whatever was late and is not over yet.
            drop(world.remote.land_late());
            lock(&world.objects).look_at_rest(&world.remote);
            tokio::time::sleep(Duration::from_secs(60)).await;
            env.world.is_ending.set(true);
            let report = env.store.shutdown().within(ENOUGH).await.expect("ends");
            let is_clean = report.sealed && report.dirty_parts == 0 && report.deferred == 0;
            assert!(is_clean, "{report:#?}");
            env.book.synced(env.book.now(), |_| true);
            watch::at_rest(&env).await;
            env
        });
        drop((runtime, env));
        self.forget_local_bytes();
        let (runtime, env) = self.run(async |world| {
            let env = world.open(false).await;
            pages::audit(&env, world.knobs.actors).await;
            let report = env.store.shutdown().within(ENOUGH).await.expect("ends");
            assert!(report.sealed, "{report:#?}");
            watch::at_rest(&env).await;
            env
        });
        drop((runtime, env));
    }

    /// All lives.
    pub fn go(&mut self) {
        for number in 0..self.knobs.lives {
            self.live(number);
        }
        self.end();
        self.tally.checked = self.checked.get();
        self.remote.change_weather(|weather| {
            for (name, count) in weather.met() {
                *self.tally.faults.entry((*name).to_owned()).or_default() += count;
            }
        });
        self.tally.events = self.trace.events();
    }
}

/// Every receipt has an end.
pub fn all_told(receipts: &Arc<Mutex<Vec<Receipt>>>) {
    for receipt in lock(receipts).iter() {
        assert!(
            receipt.settlement().is_some(),
            "the receipt of {} was never told its end",
            receipt.key()
        );
    }
}
