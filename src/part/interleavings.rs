//! The lock manager under a model checker: more lockers and parts, for longer, than every order
//! of could be looked at (`models.rs`), in as many orders as there is time for.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --no-default-features --features simulated --lib interleavings`, with
//! `S3_WRITEBACK_SCHEDULES` for another number than 3,000, shared out among the tests. A failing
//! schedule prints itself, and how to replay it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{future, thread};

use crate::error::Error;
use crate::phase::Phase;

use super::id::{FileId, PartId, PartKey};
use super::lock::Locks;
use super::locker::{LockerState, Place, Role};
use super::state::{AtomicWord, Mode, Want, Word};
use super::wait::Words;

const PARTS: u32 = 2;
/// What the schedules are shared out among.
const SHARES: usize = 6;

#[derive(Debug)]
struct Parts(Vec<AtomicWord>);

impl Words for Parts {
    fn word(&self, index: u32) -> &AtomicWord {
        &self.0[index as usize]
    }
}

/// Who has a part, by what it was told. Not the checker's atomics: to count is not to interleave.
#[derive(Debug, Default)]
struct Count {
    pins: AtomicU32,
    sharers: AtomicU32,
    alone: AtomicU32,
    sole: AtomicU32,
}

impl Count {
    fn of(&self, want: Want) -> &AtomicU32 {
        match want {
            Want::Mode(Mode::Pin) => &self.pins,
            Want::Mode(Mode::Shared) => &self.sharers,
            Want::Mode(Mode::Exclusive) => &self.alone,
            Want::Sole => &self.sole,
        }
    }

    fn come(&self, want: Want) {
        self.of(want).fetch_add(1, Ordering::SeqCst);
        let count = |count: &AtomicU32| count.load(Ordering::SeqCst);
        let (pins, sharers) = (count(&self.pins), count(&self.sharers));
        let (alone, sole) = (count(&self.alone), count(&self.sole));
        assert!(alone + sole <= 1, "two have it alone: {self:?}");
        assert!(alone == 0 || sharers == 0, "shared, and not: {self:?}");
        assert!(sole == 0 || pins + sharers == 0, "not sole: {self:?}");
    }

    fn go(&self, want: Want) {
        self.of(want).fetch_sub(1, Ordering::SeqCst);
    }
}

/// A lock, as its holder has it.
struct Held {
    index: u32,
    want: Want,
    place: Place,
}

struct Model {
    locks: Locks,
    words: Arc<dyn Words>,
    counts: Vec<Count>,
    deadlocks: AtomicU32,
}

impl Model {
    fn new() -> Arc<Self> {
        let words = (0..PARTS).map(|_| AtomicWord::new(Word::ZERO)).collect();
        Arc::new(Self {
            locks: Locks::new(2, 16),
            words: Arc::new(Parts(words)),
            counts: (0..PARTS).map(|_| Count::default()).collect(),
            deadlocks: AtomicU32::new(0),
        })
    }

    fn key(index: u32) -> PartKey {
        PartKey::new(1, index)
    }

    fn locker(&self, name: &str, role: Role, through_hold: bool) -> Arc<LockerState> {
        self.locks.lockers.make(name, role, through_hold).unwrap()
    }

    fn granted(&self, index: u32, want: Want, place: Place) -> Held {
        self.counts[index as usize].come(want);
        Held { index, want, place }
    }

    async fn lock(&self, index: u32, want: Want, who: &Arc<LockerState>) -> Result<Held, Error> {
        let file = FileId(1);
        let (part, key) = (PartId { file, index }, Self::key(index));
        let place = self.locks.lock(&self.words, part, key, want, who).await?;
        Ok(self.granted(index, want, place))
    }

    /// One that may go before it has it.
    async fn lock_or_leave(
        &self,
        index: u32,
        want: Want,
        who: &Arc<LockerState>,
        looks: u32,
    ) -> Option<Result<Held, Error>> {
        let mut locking = Box::pin(self.lock(index, want, who));
        for _ in 0..looks {
            if let std::task::Poll::Ready(held) = futures::poll!(locking.as_mut()) {
                return Some(held);
            }
            future::yield_now().await;
        }
        None
    }

    fn try_lock(&self, index: u32, mode: Mode, who: &LockerState) -> Option<Held> {
        let word = self.words.word(index);
        let tried = self.locks.try_lock(word, Self::key(index), mode, who);
        let (place, _) = tried.ok()?;
        Some(self.granted(index, Want::Mode(mode), place))
    }

    fn unlock(&self, held: Held, who: &LockerState) {
        let Held { index, want, place } = held;
        self.counts[index as usize].go(want);
        let (word, key) = (self.words.word(index), Self::key(index));
        if want == Want::Sole && thread_rng().gen_bool(0.5) {
            word.make(Word::cut).unwrap();
            let gone = Error::WouldWait("the part is cut off");
            self.locks.refuse(key, &gone);
        }
        self.locks.unlock(word, key, want, who, place);
    }

    /// Locks parts in whatever order and mode, some while it has others, and leaves some lines.
    async fn wander(&self, who: &Arc<LockerState>, steps: u32, modes: &[Want]) {
        let mut held: Vec<Held> = Vec::new();
        for _ in 0..steps {
            let index = thread_rng().gen_range(0..PARTS);
            let want = modes[thread_rng().gen_range(0..modes.len())];
            let got = match (thread_rng().gen_range(0..4), want) {
                (0, Want::Mode(mode)) => self.try_lock(index, mode, who).map(Ok),
                (1, _) => {
                    let looks = thread_rng().gen_range(0..3);
                    self.lock_or_leave(index, want, who, looks).await
                }
                _ => Some(self.lock(index, want, who).await),
            };
            match got {
                Some(Ok(one)) => held.push(one),
                Some(Err(Error::WouldDeadlock { .. })) => {
                    self.deadlocks.fetch_add(1, Ordering::SeqCst);
                    for one in held.drain(..) {
                        self.unlock(one, who);
                    }
                }
                Some(Err(
                    Error::AlreadyHeld { .. } | Error::ShuttingDown { .. } | Error::WouldWait(_),
                ))
                | None => {}
                Some(Err(other)) => panic!("{other:?}"),
            }
            future::yield_now().await;
            if !held.is_empty() && thread_rng().gen_bool(0.5) {
                let at = thread_rng().gen_range(0..held.len());
                self.unlock(held.swap_remove(at), who);
            }
        }
        for one in held {
            self.unlock(one, who);
        }
        assert_eq!(who.held(), [], "it holds nothing any more");
    }

    /// Looks for deadlocks until it is told to stop.
    fn detector(self: &Arc<Self>) -> (thread::JoinHandle<u32>, Arc<AtomicBool>) {
        let (model, stop) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let detector = thread::spawn(move || {
            let mut found = 0;
            while !stopped.load(Ordering::SeqCst) {
                found += u32::from(model.locks.detect());
                thread::yield_now();
            }
            found
        });
        (detector, stop)
    }

    fn is_left_as_it_was_found(&self) {
        for index in 0..PARTS {
            let word = self.words.word(index).get();
            assert!(!word.is_held(), "nobody is left: {word:?}");
            assert!(!word.has_waiters() && !word.is_closing(), "{word:?}");
        }
        assert_eq!(self.locks.waiting(), 0);
        assert_eq!(self.locks.lockers.live().len(), 0);
    }
}

fn rounds() -> usize {
    let all = std::env::var("S3_WRITEBACK_SCHEDULES");
    all.map_or(3_000, |all| all.parse().unwrap()) / SHARES
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::default();
    config.stack_size = 512 * 1024;
    shuttle::Runner::new(scheduler, config).run(scenario);
}

fn check(scenario: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new(rounds()), scenario);
}

const ANY: [Want; 6] = [
    Want::Mode(Mode::Pin),
    Want::Mode(Mode::Shared),
    Want::Mode(Mode::Shared),
    Want::Mode(Mode::Exclusive),
    Want::Mode(Mode::Exclusive),
    Want::Sole,
];

/// Tasks and a thread, all over the parts, while deadlocks are looked for.
fn crowd(closed: &[Phase]) {
    let model = Model::new();
    let (detector, stop) = model.detector();
    let tasks: Vec<_> = (0..3)
        .map(|task| {
            let model = Arc::clone(&model);
            future::spawn(async move {
                let (role, hold) = match task {
                    0 => (Role::Checkpointer, false),
                    _ => (Role::Foreground, task == 1),
                };
                let who = model.locker(&format!("task {task}"), role, hold);
                model.wander(&who, 3, &ANY).await;
            })
        })
        .collect();
    let blocking = {
        let model = Arc::clone(&model);
        thread::spawn(move || {
            let who = model.locker("thread", Role::Foreground, false);
            future::block_on(model.wander(&who, 3, &ANY));
        })
    };
    for phase in closed {
        for _ in 0..thread_rng().gen_range(0..20) {
            thread::yield_now();
        }
        model.locks.close(*phase);
    }
    for task in tasks {
        future::block_on(task).unwrap();
    }
    blocking.join().unwrap();
    stop.store(true, Ordering::SeqCst);
    let found = detector.join().unwrap();
    // Some leave before they hear of it.
    assert!(model.deadlocks.load(Ordering::SeqCst) <= found);
    model.is_left_as_it_was_found();
}

#[test]
fn no_schedule_lets_two_in_who_conflict_or_forgets_who_waits() {
    check(|| crowd(&[]));
}

#[test]
fn no_schedule_of_few_preemptions_does_either() {
    run(PctScheduler::new(4, rounds()), || crowd(&[]));
}

#[test]
fn no_schedule_leaves_a_waiter_behind_a_closed_gate() {
    check(|| crowd(&[Phase::Quiescing, Phase::Draining, Phase::Stopping]));
}

/// Two hold a part each, and want the other's.
#[test]
fn a_deadlock_costs_one_of_its_lockers_its_wait_and_nobody_else() {
    check(|| {
        let model = Model::new();
        let (detector, stop) = model.detector();
        let both = Arc::new(shuttle::sync::Barrier::new(2));
        let lockers: Vec<_> = (0..2)
            .map(|first| {
                let (model, both) = (Arc::clone(&model), Arc::clone(&both));
                thread::spawn(move || {
                    let who = model.locker(&format!("{first}"), Role::Foreground, false);
                    let want = Want::Mode(Mode::Exclusive);
                    let held = future::block_on(model.lock(first, want, &who)).unwrap();
                    both.wait();
                    let other = future::block_on(model.lock(1 - first, want, &who));
                    model.unlock(held, &who);
                    match other {
                        Ok(other) => {
                            model.unlock(other, &who);
                            0
                        }
                        Err(Error::WouldDeadlock { cycle }) => {
                            assert_eq!(cycle.len(), 2);
                            1
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                })
            })
            .collect();
        // Who only wants what they have waits, and is no part of it.
        let bystander = {
            let model = Arc::clone(&model);
            future::spawn(async move {
                let who = model.locker("bystander", Role::Foreground, false);
                let want = Want::Mode(Mode::Shared);
                let held = model.lock(0, want, &who).await.unwrap();
                model.unlock(held, &who);
            })
        };
        let gave_way = lockers.into_iter().map(|locker| locker.join().unwrap());
        assert_eq!(gave_way.sum::<u32>(), 1);
        future::block_on(bystander).unwrap();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(detector.join().unwrap(), 1);
        model.is_left_as_it_was_found();
    });
}

#[test]
fn who_locks_parts_in_order_is_never_refused_for_a_deadlock() {
    check(|| {
        let model = Model::new();
        let (detector, stop) = model.detector();
        let lockers: Vec<_> = (0..3)
            .map(|number| {
                let model = Arc::clone(&model);
                future::spawn(async move {
                    let who = model.locker(&format!("{number}"), Role::Foreground, false);
                    let want = Want::Mode(Mode::Exclusive);
                    for _ in 0..3 {
                        let first = model.lock(0, want, &who).await.unwrap();
                        let second = model.lock(1, want, &who).await.unwrap();
                        model.unlock(first, &who);
                        model.unlock(second, &who);
                    }
                })
            })
            .collect();
        for locker in lockers {
            future::block_on(locker).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        assert_eq!(detector.join().unwrap(), 0);
        model.is_left_as_it_was_found();
    });
}

/// No detector: pins alone, beside whoever shares or cuts, need none.
#[test]
fn who_holds_one_part_at_a_time_needs_no_detector() {
    check(|| {
        let model = Model::new();
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    let who = model.locker(&format!("{number}"), Role::Foreground, false);
                    for _ in 0..3 {
                        let want = ANY[thread_rng().gen_range(0..ANY.len())];
                        let looks = thread_rng().gen_range(0..6);
                        let held = future::block_on(async {
                            match looks {
                                0..3 => model.lock_or_leave(0, want, &who, looks).await,
                                _ => Some(model.lock(0, want, &who).await),
                            }
                        });
                        if let Some(Ok(held)) = held {
                            thread::yield_now();
                            model.unlock(held, &who);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        model.is_left_as_it_was_found();
    });
}
