//! What the actors of one life have in common.
//!
//! Owns: what is wrong with the world just now, and so which errors may be; how long an operation
//! may take. Does not own: making things go wrong ([`crate::sim::weather`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use s3_writeback::{Error, Operation, PartStore};
use tokio::time::Instant;

use super::how::{self, How, Out};
use super::model::{Act, Chronicle, Model, Reg};
use super::trace::Trace;

/// How long after S3 was mended the longest wait that began before may last: attempts in flight
/// come to their deadlines, and back-offs end.
const AFTERMATH: Duration = Duration::from_secs(120);
/// What an operation may take beyond its deadline: the disk is slow.
const SLACK: Duration = Duration::from_secs(5);

/// A model and the chronicle that it shares with others.
#[derive(Debug, Clone)]
pub struct Book {
    pub model: Arc<Mutex<Model>>,
    pub chronicle: Arc<Mutex<Chronicle>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    pub fn new(chronicle: &Arc<Mutex<Chronicle>>) -> Self {
        let model = Model::new(&mut lock(chronicle));
        Self {
            model: Arc::new(Mutex::new(model)),
            chronicle: Arc::clone(chronicle),
        }
    }

    pub fn begin(&self, one_step: bool, puts: impl FnOnce(u64) -> Vec<(Reg, u64)>) -> Arc<Act> {
        lock(&self.model).begin(&mut lock(&self.chronicle), one_step, puts)
    }

    pub fn end(&self, act: &Act) {
        lock(&self.model).end(&mut lock(&self.chronicle), act);
    }

    pub fn now(&self) -> u64 {
        lock(&self.model).now(&mut lock(&self.chronicle))
    }

    pub fn line(&self) -> u64 {
        lock(&self.model).line(&mut lock(&self.chronicle))
    }

    pub fn last(&self, reg: Reg) -> u64 {
        lock(&self.model).last(reg)
    }

    /// It was seen to be so.
    pub fn seen(&self, reg: Reg, value: u64) {
        if let Err(text) = lock(&self.model).seen(reg, value) {
            panic!("{text}");
        }
    }

    pub fn gone(&self, reg: Reg) {
        lock(&self.model).gone(reg);
    }

    pub fn synced(&self, since: u64, which: impl Fn(Reg) -> bool) {
        lock(&self.model).synced(since, which);
    }
}

/// One life of one store, as its actors see it.
#[derive(Clone)]
pub struct Env {
    pub store: PartStore,
    pub book: Book,
    pub trace: Arc<Trace>,
    pub world: Rc<State>,
}

/// What is wrong, and what was.
#[derive(Debug, Default)]
pub struct State {
    /// S3 is not well.
    pub s3_is_bad: Cell<bool>,
    /// Since when it is well again.
    pub s3_mended: Cell<Option<Instant>>,
    /// The disk has failed a call.
    pub disk_is_bad: Cell<bool>,
    /// It did in an earlier life: what was after something that it refused is in quarantine.
    pub disk_was_bad: Cell<bool>,
    /// What is submitted may end in quarantine: it is to.
    pub may_quarantine: Cell<bool>,
    /// Somebody else wants the prefix.
    pub has_rival: Cell<bool>,
    /// Shutdown has begun.
    pub is_ending: Cell<bool>,
    /// S3 stays as it is for the rest of this life.
    pub weather_is_over: Cell<bool>,
    /// Uploads or admission are paused now and then.
    pub pauses: Cell<bool>,
    /// Some of those who write do so in the role of checkpoint code.
    pub has_checkpointers: Cell<bool>,
    /// Somebody was told that something is durable.
    pub told: tokio::sync::Notify,
    waits: RefCell<BTreeMap<u64, Wait>>,
    waited: Cell<u64>,
}

/// An operation that is waited for.
#[derive(Debug)]
struct Wait {
    what: String,
    since: Instant,
}

/// On the list of those while it is there.
#[derive(Debug)]
pub struct Waits {
    world: Rc<State>,
    number: u64,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.world.waits.borrow_mut().remove(&self.number);
    }
}

impl State {
    /// In a life after one whose disk failed, or not.
    pub fn after(disk_was_bad: bool) -> Self {
        let state = Self::default();
        state.disk_was_bad.set(disk_was_bad);
        state
    }

    pub fn storm(&self) {
        self.s3_is_bad.set(true);
    }

    pub fn mend(&self) {
        self.s3_is_bad.set(false);
        self.s3_mended.set(Some(Instant::now()));
    }

    /// Somebody waits, until what is returned goes.
    #[must_use]
    pub fn waits(self: &Rc<Self>, what: &str) -> Waits {
        let number = self.waited.get() + 1;
        self.waited.set(number);
        let wait = Wait {
            what: what.to_owned(),
            since: Instant::now(),
        };
        self.waits.borrow_mut().insert(number, wait);
        let world = Rc::clone(self);
        Waits { world, number }
    }

    /// Who has waited for that long, and for how long.
    pub fn waiting_for(&self, long: Duration) -> Vec<String> {
        let waits = self.waits.borrow();
        let waits = waits.values().map(|wait| (wait, wait.since.elapsed()));
        waits
            .filter(|(_, since)| *since >= long)
            .map(|(wait, since)| format!("{} for {since:?}", wait.what))
            .collect()
    }

    /// Whether somebody may still feel that S3 was not well.
    pub fn s3_was_bad(&self) -> bool {
        let lately = |mended: Instant| mended.elapsed() < AFTERMATH;
        self.s3_is_bad.get() || self.s3_mended.get().is_some_and(lately)
    }

    /// Whether this error can be, for who waited like this.
    pub fn excuses(&self, how: How, error: &Error) -> bool {
        let impatient = matches!(how, How::Within(_) | How::Now | How::Cancel(_));
        match error {
            Error::CacheFull { .. } | Error::WouldDeadlock { .. } => true,
            Error::NoRoom { .. }
            | Error::Locked { .. }
            | Error::Loading { .. }
            | Error::WouldWait(_)
            | Error::QueueFull { .. }
            | Error::Paused(_) => {
                how == How::Now || self.s3_was_bad() || self.pauses.get() || self.disk_is_bad.get()
            }
            Error::TimedOut { .. } => {
                impatient || self.s3_was_bad() || self.pauses.get() || self.has_rival.get()
            }
            Error::Remote(_)
            | Error::LoadFailed { .. }
            | Error::Unclaimed
            | Error::CheckpointUnknown { .. }
            | Error::PartFailed { .. } => {
                self.s3_was_bad() || self.has_rival.get() || self.is_ending.get()
            }
            Error::Fenced { .. }
            | Error::Diverged { .. }
            // It looked before the other claimed, and deletes nothing for it.
            | Error::ObjectMissing { .. }
            | Error::HeadChanged
            | Error::Stranded
            | Error::TakeOverNeeded { .. } => self.has_rival.get(),
            Error::StoreFailed(_)
            | Error::JournalFailed(_)
            | Error::Directory { .. }
            | Error::DiskFull { .. } => self.disk_is_bad.get(),
            // It is not known of everything whether it is on the disk, where there was no time.
            Error::NotUploaded { .. } => {
                self.disk_is_bad.get() || self.disk_was_bad.get() || self.is_ending.get()
            }
            Error::ShuttingDown { .. } => self.is_ending.get(),
            _ => false,
        }
    }
}

impl Env {
    pub fn say(&self, text: impl FnOnce() -> String) {
        self.trace.say(text);
    }

    /// Runs an operation as it is to be waited for; an error that cannot be, and a wait beyond its
    /// deadline, are failures.
    pub async fn run<T: Send>(&self, what: &str, how: How, op: Operation<'_, T>) -> Out<T> {
        let began = Instant::now();
        let waits = self.world.waits(what);
        let out = how::run(how, op).await;
        drop(waits);
        let took = began.elapsed();
        if let How::Within(limit) = how {
            assert!(
                took <= limit + SLACK,
                "{what} took {took:?} and was given {limit:?}"
            );
        }
        if let Out::Failed(error) = &out {
            self.check(what, how, error);
        }
        out
    }

    pub fn check(&self, what: &str, how: How, error: &Error) {
        assert!(
            self.world.excuses(how, error),
            "{what}, {how:?}: {error} ({error:?})\n{:?}\n{:#?}",
            self.world,
            self.store.snapshot()
        );
    }
}
