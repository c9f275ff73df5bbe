//! One run of the sweep: a life in which the nth call goes wrong, one in which nothing does, and
//! one that has its bytes from S3.
//!
//! Owns: what the nth call meets, and what has to be so afterwards. Does not own: the work
//! ([`super::script`]), or which calls are tried ([`super::sweep`]).

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{self, SimFs};
use s3_writeback::testing::remote::{self, SimRemote};
use s3_writeback::testing::weather::{Outage, Weather};
use s3_writeback::{Error, PartStore, Receipt, Result, StoreConfig};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::env::{Book, Env, State, lock};
use super::life::{ENOUGH, GRACE, all_told};
use super::model::Crash;
use super::objects::Objects;
use super::pages::{self, PART};
use super::script::{self, Script};
use super::stage::{self, Stage};
use super::sweep::{Case, What};
use super::trace::Trace;
use super::{versions, watch};

/// What the first life meets, as all of it know.
#[derive(Debug, Default, Clone)]
pub struct Fate(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// What it is; `None`: nothing.
    what: Option<What>,
    /// The call that met it.
    struck: Mutex<Option<String>>,
    /// The process is dead: nothing that it still seems to do has been.
    is_over: AtomicBool,
    over: Notify,
    /// S3 is well again at once.
    is_brief: AtomicBool,
    is_noted: AtomicBool,
}

impl Fate {
    fn of(what: What) -> Self {
        Self(Arc::new(Told {
            what: Some(what),
            ..Told::default()
        }))
    }

    /// Whether it waited for a disk that is never well again in this life: a full one is waited
    /// for, and from one that fails nothing is evicted, so that there is no room. Each wait ends by
    /// its deadline all the same.
    fn is_waited_for(&self, error: &Error) -> bool {
        let is_for_ever = matches!(self.0.what, Some(What::Disk { forever: true, .. }));
        is_for_ever && matches!(error, Error::TimedOut { .. })
    }

    fn strike(&self, call: String) {
        *lock(&self.0.struck) = Some(call);
    }

    fn end(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.0.over.notify_one();
    }

    /// The call that was struck.
    pub fn struck(&self) -> Option<String> {
        lock(&self.0.struck).clone()
    }

    fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    /// Never, where the process is dead.
    pub async fn live_on(&self) {
        if self.is_over() {
            std::future::pending().await
        }
    }

    /// An error is to come from what went wrong.
    pub fn excuse(&self, env: &Env, what: &str, error: &Error) {
        let struck = self.struck();
        assert!(struck.is_some(), "{what}: {error:?}, and nothing was wrong");
        assert!(!script::is_of_a_crowd(error), "{what}: {error:?}");
        self.note(&env.world);
        if !self.is_waited_for(error) {
            env.check(what, script::HOW, error);
        }
    }

    /// Tells the world that S3 is not well, or was not.
    fn note(&self, world: &State) {
        let is_disk = world.disk_is_bad.get();
        if is_disk || self.struck().is_none() || self.0.is_noted.swap(true, Ordering::Relaxed) {
            return;
        }
        world.storm();
        if self.0.is_brief.load(Ordering::Relaxed) {
            world.mend();
        }
    }
}

/// What outlives the lives.
pub struct Nth {
    case: Case,
    config: StoreConfig,
    fs: SimFs,
    remote: SimRemote,
    book: Book,
    objects: Arc<Mutex<Objects>>,
    trace: Arc<Trace>,
    now: Duration,
    opens: u64,
    pub fate: Fate,
}

fn config() -> StoreConfig {
    let ms = Duration::from_millis;
    let mut config = StoreConfig::new("/store");
    config.cache_bytes = 3 * PART;
    config.dirty_bytes = 2 * PART;
    config.checkpoint_cache_bytes = PART;
    config.image_bytes = 8 * PART;
    config.pack_bytes = 2 * PART;
    config.aside_memory = PART;
    config.max_dirty_age = ms(50);
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.checkpoint_within = ms(60_000);
    config.retain_checkpoints = 1;
    config.gc_every = None;
    config.sparse_percent = 50;
    config.io_deadline = ms(20_000);
    let queue = &mut config.queue;
    queue.max_tasks = 16;
    queue.op_deadline = ms(30_000);
    queue.workers = 2;
    queue.segment_bytes = 4096;
    queue.inline_bytes = 512;
    queue.max_disk_bytes = 1 << 20;
    queue.attempt_floor = ms(1000);
    queue.retry_base = ms(10);
    queue.retry_cap = ms(1000);
    queue.probe_interval = ms(1000);
    queue.signature_lifetime = ms(20_000);
    queue.crash_limit = 100;
    queue.recovery_window = 1;
    config
}

impl Nth {
    pub fn new(case: Case, trace: &Arc<Trace>) -> Self {
        trace.say(|| case.to_string());
        let remote = SimRemote::new();
        remote.set_weather(Some(Weather::new(1)));
        Self {
            case,
            config: config(),
            fs: SimFs::new(),
            remote,
            book: Book::new(&Arc::default()),
            objects: Arc::default(),
            trace: Arc::clone(trace),
            now: Duration::from_secs(1_700_000_000),
            opens: 0,
            fate: Fate::of(case.what),
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
        let (stage, lifetime) = (self.stage(), self.config.queue.signature_lifetime);
        let (runtime, result, took) = stage.run(lifetime, life(self));
        self.now += took;
        (runtime, result)
    }

    async fn open(&mut self) -> Result<PartStore> {
        self.opens += 1;
        let mut config = self.config.clone();
        config.queue.seed = Some(self.opens);
        self.stage()
            .store(config, &self.fs, Io::inline(), &self.book)
            .open()
            .within(ENOUGH)
            .await
    }

    fn env(&self, store: PartStore, world: &Rc<State>) -> Env {
        Env {
            store,
            book: self.book.clone(),
            trace: Arc::clone(&self.trace),
            world: Rc::clone(world),
        }
    }

    /// Sees to it that the nth call goes wrong.
    fn arm(&self) {
        let (nth, what) = (self.case.nth, self.case.what);
        let (fate, fs, remote) = (self.fate.clone(), self.fs.clone(), self.remote.clone());
        let brief = matches!(what, What::Refused | What::LostReply | What::Hang);
        fate.0.is_brief.store(brief, Ordering::Relaxed);
        if what.is_on_the_disk() {
            self.fs.at_call(nth, move |call| {
                fate.strike(format!("{call:?}"));
                match what {
                    What::Disk { errno, forever, .. } => fs.fail(fs::Fault {
                        call: None,
                        after: 0,
                        errno,
                        forever,
                    }),
                    _ => die(&fate, &fs, &remote, what, nth),
                }
            });
            return;
        }
        let at = usize::try_from(nth).expect("fits");
        self.remote.at_request(at, move |call| {
            fate.strike(format!("{call:?}"));
            let (to, name) = (remote.clone(), call.operation());
            let meets = |fault| to.once(None, None, fault);
            match what {
                What::Refused => meets(remote::Fault::Error(RemoteError::transient(name))),
                What::LostReply => meets(remote::Fault::LostReply(RemoteError::lost(name))),
                What::Hang => meets(remote::Fault::Hang),
                What::Away => to.change_weather(|weather| weather.outage = Some(Outage::Refused)),
                _ => {
                    if matches!(what, What::DiesAfterRequest(_)) {
                        meets(remote::Fault::HangAfter);
                    }
                    die(&fate, &fs, &remote, what, nth);
                }
            }
        });
    }

    /// The life in which something goes wrong.
    fn first(&mut self) {
        self.arm();
        let fate = self.fate.clone();
        let world: Rc<State> = Rc::default();
        world
            .disk_is_bad
            .set(matches!(self.case.what, What::Disk { .. }));
        let (runtime, is_sealed) = self.run(async |nth| {
            tokio::select! {
                biased;
                () = fate.0.over.notified() => None,
                is_sealed = nth.live(&world) => Some(is_sealed),
            }
        });
        match (is_sealed, self.case.what) {
            // It has happened already.
            (None, what) => lock(&self.book.model).crash(what.end()),
            (Some(is_sealed), what) => {
                // Where it is sealed nothing is lost, whatever it ends with.
                let end = match is_sealed {
                    true => Crash::PowerCut,
                    false => what.end(),
                };
                lock(&self.book.model).crash(end);
                match end {
                    Crash::Kill => self.fs.kill(),
                    Crash::PowerCut => self.fs.crash(self.case.nth),
                }
            }
        }
        drop(runtime);
        let owner = lock(&self.book.model).owner();
        lock(&self.book.chronicle).close(owner);
        self.fs.heal();
        self.remote.heal();
        self.remote.change_weather(Weather::clear);
    }

    /// Opens, works and shuts down; whether that was whole.
    async fn live(&mut self, world: &Rc<State>) -> bool {
        let fate = self.fate.clone();
        let began = Instant::now();
        let store = self.open().await;
        fate.live_on().await;
        assert!(began.elapsed() <= ENOUGH + GRACE, "open takes too long");
        let store = match store {
            Ok(store) => store,
            Err(error) => {
                self.trace.say(|| format!("open: {error}"));
                assert!(fate.struck().is_some(), "open: {error:?}");
                fate.note(world);
                let fine = world.excuses(script::HOW, &error) || fate.is_waited_for(&error);
                assert!(fine, "open: {error:?}");
                return false;
            }
        };
        let env = self.env(store, world);
        let (config, objects, remote) = (&self.config, &self.objects, &self.remote);
        let mut script = Script::new(&env, config, &fate, objects, remote, 1);
        script.act().await;
        fate.live_on().await;
        let receipts = script.receipts();
        fate.note(world);
        self.shut_down(&env, &receipts).await
    }

    async fn shut_down(&self, env: &Env, receipts: &Arc<Mutex<Vec<Receipt>>>) -> bool {
        env.world.is_ending.set(true);
        let began = Instant::now();
        let report = env.store.shutdown().within(ENOUGH).await;
        self.fate.live_on().await;
        let report = report.expect("a report");
        let took = began.elapsed();
        let error = &report.seal_error;
        env.say(|| {
            format!(
                "shut down in {took:?}, sealed: {}, {error:?}",
                report.sealed
            )
        });
        assert!(took <= ENOUGH + GRACE, "{took:?}: {report:#?}");
        all_told(receipts);
        let is_bad = env.world.disk_is_bad.get();
        assert!(report.sealed || is_bad, "{report:#?}");
        if report.sealed {
            env.book.synced(env.book.now(), |_| true);
        }
        watch::at_rest(env).await;
        if !is_bad && self.case.what != What::Away {
            let is_clean = report.dirty_parts == 0 && report.deferred == 0;
            assert!(is_clean, "{report:#?}\n{:#?}", env.store.snapshot());
            assert_eq!(report.checkpoint_error, None, "{report:#?}");
            lock(&self.objects).look_at_rest(&self.remote);
        }
        report.sealed
    }

    /// All is well: what was there is there, and the same work is done again.
    fn second(&mut self) {
        let world: Rc<State> = Rc::default();
        let (runtime, env) = self.run(async |nth| {
            nth.trace.say(|| "--- all is well".to_owned());
            let store = nth.open().await;
            let store = store.unwrap_or_else(|error| panic!("open: {error:?}"));
            let env = nth.env(store, &world);
            pages::audit(&env, 1).await;
            let chronicle = Arc::clone(&nth.book.chronicle);
            versions::check_all(&nth.remote, &chronicle).await;
            nth.drain(&env).await;
            let calm = Fate::default();
            let (config, objects, remote) = (&nth.config, &nth.objects, &nth.remote);
            let mut script = Script::new(&env, config, &calm, objects, remote, 2);
            script.act().await;
            let receipts = script.receipts();
            let checked = versions::check_all(&nth.remote, &chronicle).await;
            assert!(checked > 0, "no checkpoint is listed");
            nth.finish(&env).await;
            all_told(&receipts);
            env
        });
        drop((runtime, env));
    }

    /// Everything of it has to come from S3.
    fn third(&mut self) {
        stage::forget_local_bytes(&self.fs);
        let world: Rc<State> = Rc::default();
        let (runtime, env) = self.run(async |nth| {
            nth.trace.say(|| "--- from S3".to_owned());
            let store = nth.open().await;
            let store = store.unwrap_or_else(|error| panic!("open: {error:?}"));
            let env = nth.env(store, &world);
            pages::audit(&env, 1).await;
            nth.finish(&env).await;
            env
        });
        drop((runtime, env));
    }

    /// What was durable goes up.
    async fn drain(&self, env: &Env) {
        let drained = env.store.queue().drain().within(ENOUGH).await;
        if let Err(error) = drained {
            // What is after something that the disk refused is left alone.
            let left = env.store.queue().quarantined();
            let is_left = !left.is_empty() && matches!(self.case.what, What::Disk { .. });
            assert!(
                is_left,
                "drain: {error}\n{:#?}",
                env.store.queue().pending()
            );
        }
        lock(&self.objects).look_at_rest(&self.remote);
    }

    async fn finish(&self, env: &Env) {
        env.world.is_ending.set(true);
        let report = env.store.shutdown().within(ENOUGH).await.expect("ends");
        let is_clean = report.sealed && report.dirty_parts == 0 && report.deferred == 0;
        assert!(is_clean, "{report:#?}\n{:#?}", env.store.snapshot());
        env.book.synced(env.book.now(), |_| true);
        lock(&self.objects).look_at_rest(&self.remote);
        watch::at_rest(env).await;
    }

    pub fn go(&mut self) {
        self.first();
        if self.fate.struck().is_some() {
            self.second();
            self.third();
        }
    }
}

/// The process ends, and nothing that it sends from here on arrives.
fn die(fate: &Fate, fs: &SimFs, remote: &SimRemote, what: What, nth: u64) {
    match what.end() {
        Crash::Kill => fs.kill(),
        Crash::PowerCut => fs.crash(nth),
    }
    remote.always(None, None, remote::Fault::Hang);
    fate.end();
}
