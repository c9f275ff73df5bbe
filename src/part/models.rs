//! The state word and the lines under loom: every way a few threads can go on beside each other,
//! and every value that an atomic may still be read as.
//!
//! `RUSTFLAGS="--cfg loom_model" cargo test --no-default-features --lib models --release`. A model
//! that needs a thread woken which is not ends in loom's "deadlock". Those that are bounded look at
//! every order with so many preemptions, which is where the faults of locks have always been; the
//! rest look at all.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::Cell;
use loom::thread::{self, Thread};

use crate::error::Error;
use crate::phase::Phase;
use crate::sync::RwLock;

use super::id::{FileId, PartId, PartKey};
use super::lock::Locks;
use super::locker::{LockerState, Place, Role};
use super::state::{AtomicWord, Blocked, MAX_HOLDERS, Mode, Status, Want, Word};
use super::wait::{Asked, WaitTable, Waiting, Words};

const PIN: Want = Want::Mode(Mode::Pin);
const SHARED: Want = Want::Mode(Mode::Shared);
const EXCL: Want = Want::Mode(Mode::Exclusive);
const SOLE: Want = Want::Sole;

const KEY: PartKey = PartKey::new(1, 0);
const PART: PartId = PartId {
    file: FileId(1),
    index: 0,
};

#[derive(Debug)]
struct Parts(Vec<AtomicWord>);

impl Words for Parts {
    fn word(&self, index: u32) -> &AtomicWord {
        &self.0[index as usize]
    }
}

/// A part and its line.
#[derive(Clone)]
struct Part {
    table: Arc<WaitTable>,
    words: Arc<dyn Words>,
}

impl Part {
    fn new(word: Word) -> Self {
        Self {
            table: WaitTable::new(1, 8),
            words: Arc::new(Parts(vec![AtomicWord::new(word)])),
        }
    }

    /// Held already by who makes it.
    fn held(want: Want) -> Self {
        Self::new(Word::ZERO.lock(want, false).unwrap())
    }

    fn word(&self) -> &AtomicWord {
        self.words.word(0)
    }

    fn ask(&self, want: Want) -> Option<Waiting> {
        match self.table.ask(&self.words, KEY, want, None) {
            Asked::Granted => None,
            Asked::Waits(waiting) => Some(waiting),
            other => panic!("{other:?}"),
        }
    }

    fn lock(&self, want: Want) -> Result<(), Error> {
        self.ask(want).map_or(Ok(()), block_on)
    }

    fn try_lock(&self, want: Want) -> Result<Word, Blocked> {
        let locked = self.word().change(|word| word.lock(want, false));
        locked.map(|(_, now)| now)
    }

    fn unlock(&self, want: Want) {
        self.table.release(self.word(), KEY, want);
    }

    /// Asks, looks once, and goes: with the lock, if it has it by then.
    fn give_up(&self, want: Want) {
        let Some(waiting) = self.ask(want) else {
            return self.unlock(want);
        };
        let mut waiting = Box::pin(waiting);
        if poll(waiting.as_mut()).is_ready() {
            self.unlock(want);
        }
    }

    fn is_left_as_it_was_found(&self) {
        let word = self.word().get();
        assert!(!word.is_held(), "nobody is left: {word:?}");
        assert!(!word.has_waiters() && !word.is_closing(), "{word:?}");
        assert_eq!(self.table.waiting(), 0);
        assert!(self.table.lines().is_empty());
    }
}

struct Parker(Thread);

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks a thread, as a blocking form does.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Parker(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    loom::model(model);
}

/// Where all orders would take half a minute and more: those with at most so many preemptions.
fn check_up_to(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn who_waits_is_woken_by_who_goes() {
    for (holds, wants) in [
        (EXCL, EXCL),
        (EXCL, SHARED),
        (SHARED, EXCL),
        (PIN, SOLE),
        (SOLE, PIN),
    ] {
        check(move || {
            let part = Part::held(holds);
            let waiter = {
                let part = part.clone();
                thread::spawn(move || {
                    part.lock(wants).unwrap();
                    part.unlock(wants);
                })
            };
            part.unlock(holds);
            waiter.join().unwrap();
            part.is_left_as_it_was_found();
        });
    }
}

#[test]
fn two_who_want_it_alone_have_it_one_after_the_other() {
    check_up_to(3, || {
        let part = Part::new(Word::ZERO);
        let count = Rc::new(Cell::new(0));
        let others: Vec<_> = [EXCL, SOLE]
            .into_iter()
            .map(|want| {
                let (part, count) = (part.clone(), Rc::clone(&count));
                thread::spawn(move || {
                    part.lock(want).unwrap();
                    count.set(count.get() + 1);
                    part.unlock(want);
                })
            })
            .collect();
        // The fast path, beside those who take the slow one.
        let mut counted = 2;
        if part.try_lock(EXCL).is_ok() {
            count.set(count.get() + 1);
            counted += 1;
            part.unlock(EXCL);
        }
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(count.get(), counted);
        part.is_left_as_it_was_found();
    });
}

#[test]
fn who_shares_sees_all_that_who_had_it_alone_did() {
    check_up_to(3, || {
        let part = Part::new(Word::ZERO);
        let pair = Rc::new((Cell::new(0), Cell::new(0)));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (part, pair) = (part.clone(), Rc::clone(&pair));
                thread::spawn(move || {
                    part.lock(SHARED).unwrap();
                    assert_eq!(pair.0.get(), pair.1.get());
                    part.unlock(SHARED);
                })
            })
            .collect();
        part.lock(EXCL).unwrap();
        pair.0.set(1);
        pair.1.set(1);
        part.unlock(EXCL);
        for reader in readers {
            reader.join().unwrap();
        }
        part.is_left_as_it_was_found();
    });
}

#[test]
fn who_comes_later_does_not_overtake() {
    check(|| {
        let part = Part::held(SHARED);
        let written = Rc::new(Cell::new(false));
        let writer = part.ask(EXCL).unwrap();
        let reader = {
            let (part, written) = (part.clone(), Rc::clone(&written));
            thread::spawn(move || {
                if part.try_lock(SHARED).is_err() {
                    part.lock(SHARED).unwrap();
                }
                assert!(written.get(), "it overtook");
                part.unlock(SHARED);
            })
        };
        part.unlock(SHARED);
        block_on(writer).unwrap();
        written.set(true);
        part.unlock(EXCL);
        reader.join().unwrap();
        part.is_left_as_it_was_found();
    });
}

#[test]
fn who_gives_up_takes_nothing_with_it() {
    for wants in [EXCL, SHARED, SOLE] {
        check(move || {
            let part = Part::held(EXCL);
            let leaver = {
                let part = part.clone();
                thread::spawn(move || part.give_up(wants))
            };
            part.unlock(EXCL);
            leaver.join().unwrap();
            part.is_left_as_it_was_found();
        });
    }
}

#[test]
fn who_is_behind_one_that_gives_up_has_its_turn() {
    for (holds, leaves, stays) in [
        (EXCL, EXCL, EXCL),
        (SHARED, EXCL, SHARED),
        (PIN, SOLE, PIN),
        (PIN, SOLE, EXCL),
    ] {
        check_up_to(3, move || {
            let part = Part::held(holds);
            // In line for certain, and first.
            let leaver = part.ask(leaves).unwrap();
            let leaver = thread::spawn(move || drop(leaver));
            let stayer = {
                let part = part.clone();
                thread::spawn(move || {
                    part.lock(stays).unwrap();
                    part.unlock(stays);
                })
            };
            part.unlock(holds);
            leaver.join().unwrap();
            stayer.join().unwrap();
            part.is_left_as_it_was_found();
        });
    }
}

#[test]
fn who_is_refused_has_not_got_it_and_who_is_behind_has() {
    check(|| {
        let part = Part::held(EXCL);
        let refused = part.ask(EXCL).unwrap();
        let behind = part.ask(SHARED).unwrap();
        let waiter = {
            let part = part.clone();
            thread::spawn(move || {
                let granted = block_on(refused).is_ok();
                if granted {
                    assert!(part.word().get().is_exclusive());
                    part.unlock(EXCL);
                }
                granted
            })
        };
        let refuser = {
            let part = part.clone();
            thread::spawn(move || {
                let which = |waiter: &super::waiters::Waiter| waiter.want == EXCL;
                let why = |_: &_| Error::WouldWait("the part is cut");
                part.table.refuse(KEY, which, why)
            })
        };
        part.unlock(EXCL);
        block_on(behind).unwrap();
        part.unlock(SHARED);
        let (granted, refused) = (waiter.join().unwrap(), refuser.join().unwrap());
        assert_eq!(u8::from(granted) + u8::try_from(refused).unwrap(), 1);
        part.is_left_as_it_was_found();
    });
}

#[test]
fn who_pins_and_who_wants_it_all_are_never_there_together() {
    check_up_to(3, || {
        let part = Part::held(PIN);
        let bytes = Rc::new(Cell::new(7));
        let cutter = {
            let (part, bytes) = (part.clone(), Rc::clone(&bytes));
            thread::spawn(move || {
                part.lock(SOLE).unwrap();
                bytes.set(8);
                part.unlock(SOLE);
            })
        };
        let pinner = {
            let (part, bytes) = (part.clone(), Rc::clone(&bytes));
            thread::spawn(move || {
                if part.try_lock(PIN).is_err() {
                    part.lock(PIN).unwrap();
                }
                assert!([7, 8].contains(&bytes.get()));
                part.unlock(PIN);
            })
        };
        assert_eq!(bytes.get(), 7, "it is pinned");
        part.unlock(PIN);
        cutter.join().unwrap();
        pinner.join().unwrap();
        part.is_left_as_it_was_found();
    });
}

#[test]
fn what_is_to_be_cut_off_is_pinned_no_more() {
    check(|| {
        let part = Part::held(PIN);
        let cut = Rc::new(Cell::new(false));
        let cutter = part.ask(SOLE).unwrap();
        assert_eq!(part.try_lock(PIN), Err(Blocked::Conflict));
        let pinner = part.ask(PIN).unwrap();
        let pinner = {
            let (part, cut) = (part.clone(), Rc::clone(&cut));
            thread::spawn(move || {
                block_on(pinner).unwrap();
                assert!(cut.get(), "it overtook");
                part.unlock(PIN);
            })
        };
        let cutter = {
            let (part, cut) = (part.clone(), Rc::clone(&cut));
            thread::spawn(move || {
                block_on(cutter).unwrap();
                cut.set(true);
                part.unlock(SOLE);
            })
        };
        part.unlock(PIN);
        cutter.join().unwrap();
        pinner.join().unwrap();
        part.is_left_as_it_was_found();
    });
}

/// A part that was loaded, and is clean.
fn loaded() -> Word {
    let word = Word::ZERO.with_status(Status::NotLoaded);
    word.load().unwrap().loaded().unwrap()
}

/// The same, written to: with `captures` of it in flight, and nothing written since.
fn captured(captures: u32) -> Word {
    (0..captures).fold(loaded().open_intent().unwrap(), |word, _| {
        word.dirtied().unwrap().captured().unwrap()
    })
}

#[test]
fn what_is_locked_and_here_stays_here() {
    for want in [PIN, SHARED, EXCL] {
        check(move || {
            let part = Part::new(loaded());
            let bytes = Rc::new(Cell::new(7));
            let evictor = {
                let (part, bytes) = (part.clone(), Rc::clone(&bytes));
                thread::spawn(move || {
                    if part.word().make(Word::evict).is_some() {
                        bytes.set(0);
                        part.word().make(Word::evicted).unwrap();
                    }
                })
            };
            let now = part.try_lock(want).unwrap();
            if now.status() == Status::Loaded {
                assert_eq!(bytes.get(), 7);
                assert_eq!(part.word().get().status(), Status::Loaded);
            }
            part.unlock(want);
            evictor.join().unwrap();
            part.is_left_as_it_was_found();
        });
    }
}

/// As it is used: a writer dirties the word under the write latch before it writes, and who
/// captures does so under the read latch.
#[test]
fn what_is_clean_is_what_was_saved() {
    check_up_to(3, || {
        let part = Part::new(captured(0).dirtied().unwrap());
        let latch = Rc::new(RwLock::new(1));
        let saved = Rc::new(Cell::new(0));
        let writer = {
            let (part, latch) = (part.clone(), Rc::clone(&latch));
            thread::spawn(move || {
                let pinned = part.try_lock(PIN).unwrap();
                // Gone already, it would have to be loaded first.
                while pinned.status() == Status::Loaded {
                    part.word().make(Word::open_intent).unwrap();
                    let mut value = latch.write();
                    // Else the intent was closed meanwhile.
                    if part.word().make(Word::dirtied).is_some() {
                        *value = 2;
                        break;
                    }
                }
                part.unlock(PIN);
            })
        };
        let evictor = {
            let (part, latch, saved) = (part.clone(), Rc::clone(&latch), Rc::clone(&saved));
            thread::spawn(move || {
                if part.word().make(Word::evict).is_some() {
                    assert_eq!(*latch.read(), saved.get(), "it goes, and was not saved");
                    part.word().make(Word::evicted).unwrap();
                }
            })
        };
        let value = latch.read();
        part.word().make(Word::captured).unwrap();
        let copy = *value;
        drop(value);
        saved.set(copy);
        part.word().set(|word| word.capture_ended(false));
        part.word().make(|word| word.close_intent(0));
        writer.join().unwrap();
        evictor.join().unwrap();
        let word = part.word().get();
        assert!(!word.is_clean() || *latch.read() == saved.get(), "{word:?}");
        part.is_left_as_it_was_found();
    });
}

#[test]
fn a_part_stays_until_the_last_of_its_captures_came_back() {
    check(|| {
        let part = Part::new(captured(2));
        let ended = Rc::new([Cell::new(false), Cell::new(false)]);
        let end = |which: usize| {
            let (part, ended) = (part.clone(), Rc::clone(&ended));
            move || {
                ended[which].set(true);
                part.word().set(|word| word.capture_ended(false));
                part.word().make(|word| word.close_intent(0));
            }
        };
        let evictor = {
            let (part, ended) = (part.clone(), Rc::clone(&ended));
            thread::spawn(move || {
                if part.word().make(Word::evict).is_some() {
                    assert!(ended.iter().all(Cell::get), "one is in flight");
                    part.word().make(Word::evicted).unwrap();
                }
            })
        };
        let other = thread::spawn(end(1));
        end(0)();
        evictor.join().unwrap();
        other.join().unwrap();
        let word = part.word().get();
        assert!(word.is_clean(), "{word:?}");
    });
}

/// A whole lock manager, with one part.
#[derive(Clone)]
struct Manager {
    locks: Arc<Locks>,
    words: Arc<dyn Words>,
}

impl Manager {
    fn new() -> Self {
        Self {
            locks: Arc::new(Locks::new(1, 8)),
            words: Arc::new(Parts(vec![AtomicWord::new(loaded())])),
        }
    }

    fn word(&self) -> &AtomicWord {
        self.words.word(0)
    }

    fn locker(&self, name: &str) -> Arc<LockerState> {
        let made = self.locks.lockers.make(name, Role::Foreground, false);
        made.unwrap()
    }

    /// Locks it, and lets it go.
    fn pass(&self, locker: &Arc<LockerState>, want: Want) -> Result<(), Error> {
        let place = block_on(self.locks.lock(&self.words, PART, KEY, want, locker))?;
        self.locks.unlock(self.word(), KEY, want, locker, place);
        Ok(())
    }
}

#[test]
fn who_comes_while_the_gate_closes_is_not_left_behind_it() {
    check(|| {
        let manager = Manager::new();
        let holder = manager.locker("holds");
        let (locks, word) = (&manager.locks, manager.word());
        let held = locks.try_lock(word, KEY, Mode::Exclusive, &holder);
        let (place, _) = held.unwrap();
        let waiter = {
            let manager = manager.clone();
            let locker = manager.locker("waits");
            thread::spawn(move || manager.pass(&locker, EXCL))
        };
        locks.close(Phase::Draining);
        // Nobody lets go: whoever is not refused waits for ever.
        let told = waiter.join().unwrap();
        assert!(matches!(told, Err(Error::ShuttingDown { .. })), "{told:?}");
        locks.unlock(word, KEY, EXCL, &holder, place);
        assert!(!word.get().is_held() && !word.get().has_waiters());
        assert_eq!(locks.waiting(), 0);
    });
}

#[test]
fn the_gate_and_who_goes_tell_a_waiter_one_thing() {
    check(|| {
        let manager = Manager::new();
        let holder = manager.locker("holds");
        let (locks, word) = (&manager.locks, manager.word());
        let held = locks.try_lock(word, KEY, Mode::Exclusive, &holder);
        let (place, _) = held.unwrap();
        let waiter = {
            let manager = manager.clone();
            let locker = manager.locker("waits");
            thread::spawn(move || {
                let told = manager.pass(&locker, EXCL);
                assert!(matches!(told, Ok(()) | Err(Error::ShuttingDown { .. })));
                assert_eq!(locker.held(), []);
            })
        };
        let closer = {
            let locks = Arc::clone(locks);
            thread::spawn(move || locks.close(Phase::Stopping))
        };
        locks.unlock(word, KEY, EXCL, &holder, place);
        waiter.join().unwrap();
        closer.join().unwrap();
        assert!(!word.get().is_held() && !word.get().has_waiters());
        assert_eq!(locks.waiting(), 0);
    });
}

#[test]
fn who_pins_waits_for_nobody_but_a_cut() {
    check(|| {
        let part = Part::held(SHARED);
        let cutter = part.ask(SOLE).unwrap();
        let writer = part.ask(EXCL).unwrap();
        let pinner = part.ask(PIN).unwrap();
        let cutter = thread::spawn(move || drop(cutter));
        // With the writer still before it: who shares may need the pin to get done.
        block_on(pinner).unwrap();
        part.unlock(PIN);
        part.unlock(SHARED);
        block_on(writer).unwrap();
        part.unlock(EXCL);
        cutter.join().unwrap();
        part.is_left_as_it_was_found();
    });
}

#[test]
fn who_waits_for_one_of_all_pins_has_the_first_that_goes() {
    check(|| {
        let pinned = (0..MAX_HOLDERS).fold(Word::ZERO, |word, _| word.lock(PIN, false).unwrap());
        let part = Part::new(pinned);
        let cutter = part.ask(SOLE).unwrap();
        let pinner = part.ask(PIN).unwrap();
        let cutter = thread::spawn(move || drop(cutter));
        part.unlock(PIN);
        block_on(pinner).unwrap();
        cutter.join().unwrap();
        assert_eq!(part.table.waiting(), 0);
    });
}

#[test]
fn who_cuts_after_another_cut_has_its_turn() {
    check(|| {
        let part = Part::held(SOLE);
        let second = part.ask(SOLE).unwrap();
        let pinner = {
            let part = part.clone();
            thread::spawn(move || {
                if part.try_lock(PIN).is_ok() {
                    part.unlock(PIN);
                }
            })
        };
        part.word().make(Word::cut).unwrap();
        part.unlock(SOLE);
        block_on(second).unwrap();
        part.unlock(SOLE);
        pinner.join().unwrap();
        part.is_left_as_it_was_found();
    });
}

#[test]
fn of_two_who_cut_the_first_goes_first() {
    check(|| {
        let part = Part::held(PIN);
        let (first, mut second) = (part.ask(SOLE).unwrap(), part.ask(SOLE).unwrap());
        part.unlock(PIN);
        assert!(poll(Pin::new(&mut second)).is_pending());
        block_on(first).unwrap();
        part.unlock(SOLE);
        block_on(second).unwrap();
        part.unlock(SOLE);
    });
}

#[test]
fn no_more_wait_than_may() {
    check(|| {
        let table = WaitTable::new(2, 1);
        let held = || AtomicWord::new(Word::ZERO.lock(EXCL, false).unwrap());
        let words: Arc<dyn Words> = Arc::new(Parts(vec![held(), held()]));
        let ask = |index| {
            let (table, words) = (Arc::clone(&table), Arc::clone(&words));
            move || table.ask(&words, PartKey::new(1, index), EXCL, None)
        };
        let other = thread::spawn(ask(1));
        let asked = [ask(0)(), other.join().unwrap()];
        assert_eq!(table.waiting(), 1, "{asked:?}");
    });
}

#[test]
fn a_dirty_part_has_an_intent_whichever_of_its_captures_failed() {
    check(|| {
        let part = Part::new(captured(2));
        let failing = {
            let part = part.clone();
            thread::spawn(move || {
                part.word().set(|word| word.capture_ended(true));
            })
        };
        part.word().set(|word| word.capture_ended(false));
        part.word().make(|word| word.close_intent(0));
        failing.join().unwrap();
        let word = part.word().get();
        assert!(word.is_dirty() && word.has_intent(), "{word:?}");
    });
}

#[test]
fn a_list_names_no_part_in_a_mode_that_it_was_not_held_in() {
    check(|| {
        let locks = Locks::new(1, 8);
        let made = locks.lockers.make("locks", Role::Foreground, false);
        let locker = made.unwrap();
        let other = PartKey::new(1, 1);
        let place = locker.add(KEY, PIN, 0);
        let reader = {
            let locker = Arc::clone(&locker);
            thread::spawn(move || {
                for held in locker.held() {
                    let want = if held.key == KEY { PIN } else { EXCL };
                    assert_eq!(held.want, want, "{held:?}");
                }
            })
        };
        locker.remove(place);
        locker.add(other, EXCL, 0);
        reader.join().unwrap();
    });
}

/// Waits until nobody holds the part, as who makes room does.
fn wait_for_room(manager: &Manager) {
    manager.locks.want_idle(true);
    while manager.word().look().is_held() {
        block_on(manager.locks.idle.notified());
    }
}

#[test]
fn who_makes_room_hears_of_the_last_who_goes() {
    check(|| {
        let manager = Manager::new();
        let holder = manager.locker("holds");
        let held = manager
            .locks
            .try_lock(manager.word(), KEY, Mode::Shared, &holder);
        let (place, _) = held.unwrap();
        let going = {
            let manager = manager.clone();
            thread::spawn(move || {
                let (locks, word) = (&manager.locks, manager.word());
                locks.unlock(word, KEY, SHARED, &holder, place);
            })
        };
        wait_for_room(&manager);
        going.join().unwrap();
    });
}

#[test]
fn who_makes_room_hears_of_a_lock_that_nobody_took() {
    check(|| {
        let manager = Manager::new();
        let holder = manager.locker("holds");
        let held = manager
            .locks
            .try_lock(manager.word(), KEY, Mode::Exclusive, &holder);
        let (place, _) = held.unwrap();
        let going = {
            let manager = manager.clone();
            thread::spawn(move || {
                let (locks, words, word) = (&manager.locks, &manager.words, manager.word());
                let leaver = manager.locker("leaves");
                let mut leaving = Box::pin(locks.lock(words, PART, KEY, EXCL, &leaver));
                assert!(poll(leaving.as_mut()).is_pending());
                locks.unlock(word, KEY, EXCL, &holder, place);
                assert!(word.get().is_exclusive(), "it is handed on");
                drop(leaving);
            })
        };
        wait_for_room(&manager);
        going.join().unwrap();
    });
}

/// A lock manager with two parts, and two lockers.
struct Pair {
    locks: Locks,
    words: Arc<dyn Words>,
    old: Arc<LockerState>,
    young: Arc<LockerState>,
}

impl Pair {
    fn new() -> Arc<Self> {
        let locks = Locks::new(2, 8);
        let locker = |name| locks.lockers.make(name, Role::Foreground, false).unwrap();
        let parts = [loaded(), loaded()].map(AtomicWord::new);
        Arc::new(Self {
            old: locker("old"),
            young: locker("young"),
            words: Arc::new(Parts(parts.into())),
            locks,
        })
    }

    fn lock(&self, index: u32, who: &LockerState) -> Place {
        let (word, key) = (self.words.word(index), PartKey::new(1, index));
        let locked = self.locks.try_lock(word, key, Mode::Exclusive, who);
        locked.unwrap().0
    }

    fn unlock(&self, index: u32, who: &LockerState, place: Place) {
        let (word, key) = (self.words.word(index), PartKey::new(1, index));
        self.locks.unlock(word, key, EXCL, who, place);
    }

    /// In line, where somebody else has it.
    fn wait<'a>(
        &'a self,
        index: u32,
        who: &'a Arc<LockerState>,
    ) -> Pin<Box<impl Future<Output = Result<Place, Error>> + 'a>> {
        let key = PartKey::new(1, index);
        let mut waiting = Box::pin(self.locks.lock(&self.words, PART, key, EXCL, who));
        assert!(poll(waiting.as_mut()).is_pending());
        waiting
    }
}

#[test]
fn who_is_in_a_deadlock_that_another_left_is_not_refused() {
    check_up_to(3, || {
        let pair = Pair::new();
        let (_, place) = (pair.lock(0, &pair.old), pair.lock(1, &pair.young));
        let waits = pair.wait(1, &pair.old);
        let leaves = pair.wait(0, &pair.young);
        let detector = {
            let pair = Arc::clone(&pair);
            thread::spawn(move || pair.locks.detect())
        };
        drop(leaves);
        pair.unlock(1, &pair.young, place);
        block_on(waits).expect("the young one gives way");
        detector.join().unwrap();
    });
}

/// One waits for the other, and then the other for the one, time and again: lines that are read
/// one before and one after the change look like a deadlock.
#[test]
fn who_waits_in_turns_is_in_no_deadlock() {
    // The line of the first is read before that of the second.
    let (first, second) = (1, 0);
    check_up_to(3, move || {
        let pair = Pair::new();
        let detector = {
            let pair = Arc::clone(&pair);
            thread::spawn(move || pair.locks.detect())
        };
        let (old, young) = (&pair.old, &pair.young);
        let mut held = pair.lock(first, young);
        for _ in 0..2 {
            let waiting = pair.wait(first, old);
            pair.unlock(first, young, held);
            let has_first = block_on(waiting).unwrap();
            let has_second = pair.lock(second, old);
            pair.unlock(first, old, has_first);
            held = pair.lock(first, young);
            let waiting = pair.wait(second, young);
            pair.unlock(second, old, has_second);
            let has_second = block_on(waiting).unwrap();
            pair.unlock(second, young, has_second);
        }
        assert!(!detector.join().unwrap());
    });
}

#[test]
fn a_list_names_no_part_that_was_let_go_of() {
    check(|| {
        let pair = Pair::new();
        let place = pair.lock(0, &pair.old);
        let reader = {
            let pair = Arc::clone(&pair);
            thread::spawn(move || {
                if !pair.words.word(0).look().is_held() {
                    assert_eq!(pair.old.held(), []);
                }
            })
        };
        pair.unlock(0, &pair.old, place);
        reader.join().unwrap();
    });
}
