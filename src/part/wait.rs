//! Who waits for which part.
//!
//! Owns: the lines of all parts (`waiters.rs`), in a sharded table, for threads and tasks alike: a
//! waiter is a waker, and a thread's waker is a condition variable ([`crate::op`]). Does not own:
//! what a mode conflicts with (`state.rs`), deadlines (whoever polls), or loads.
//!
//! 1. Who finds a part taken enters the line and sets the waiters' bit in one critical section of
//!    its shard; who releases it and sees the bit takes the same lock: so a release is either seen
//!    by who enters, or sees who entered. No wake-up is lost.
//! 2. A lock is handed on: the word is locked for the next in line before it is woken.
//! 3. Who leaves, in whatever way, takes its place with it, and hands on what it had been given
//!    and not taken.
//! 4. Wakers are called after the shard's lock is released.
//! 5. Between two who want the same part there is nothing but this: a turn costs three sections of
//!    a shard and a wake-up; no allocation, no timer, and no look at the clock.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::error::Error;
use crate::mutant::{Mutant, is};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::time::millis;

use super::id::PartKey;
use super::locker::LockerState;
use super::state::{AtomicWord, Blocked, MAX_HOLDERS, Mode, Want, Word};
use super::waiters::{Line, Waiter};

const PIN: Want = Want::Mode(Mode::Pin);
const EXCLUSIVE: Want = Want::Mode(Mode::Exclusive);

/// Where state words are.
pub(crate) trait Words: Send + Sync + std::fmt::Debug {
    fn word(&self, index: u32) -> &AtomicWord;
}

/// Of one part.
impl Words for AtomicWord {
    fn word(&self, _: u32) -> &AtomicWord {
        self
    }
}

/// One who waits, as it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stands {
    pub key: PartKey,
    /// With the key, it is this wait's alone.
    pub ticket: u64,
    pub want: Want,
    /// The number of the locker that waits.
    pub locker: Option<u64>,
    seen_ms: u64,
}

/// What somebody was told who has not heard it yet.
#[derive(Debug)]
enum Told {
    /// The word is locked for it.
    Granted,
    Refused(Box<Error>),
}

#[derive(Debug, Default)]
struct Shard {
    lines: BTreeMap<PartKey, Line>,
    /// By ticket: mostly told and heard first come, first served.
    told: VecDeque<(u64, Told)>,
    tickets: u64,
}

/// In a cache line of its own: who changes it takes nothing else from who reads.
#[repr(align(128))]
struct Apart<T>(T);

/// The table.
pub(crate) struct WaitTable {
    shards: Box<[Mutex<Shard>]>,
    waiting: Apart<AtomicU64>,
    most: u64,
    started: Instant,
    pub idle: Arc<Idle>,
}

impl std::fmt::Debug for WaitTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitTable")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

/// Who waits for some part, whichever, to be let go of.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    wanted: AtomicU32,
    gone: Notify,
}

impl Idle {
    /// Somebody starts, or stops, to wait. Words are looked at after this, and by
    /// [`AtomicWord::look`]: whoever lets go of one later then sees that somebody waits.
    pub(crate) fn want(&self, on: bool) {
        self.wanted.store(u32::from(on), Ordering::Relaxed);
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        self.gone.notified()
    }

    #[inline]
    fn tell(&self, now: Word) {
        if !now.is_held() && self.wanted.load(Ordering::Relaxed) > 0 {
            self.gone.notify_one();
        }
    }
}

/// What came of asking.
#[derive(Debug)]
pub(crate) enum Asked<W = Waiting> {
    Granted,
    Waits(W),
    Full,
    TooManyWaiters,
}

/// What is asked for, and by whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub word: &'a AtomicWord,
    pub key: PartKey,
    pub want: Want,
    pub locker: Option<&'a Arc<LockerState>>,
    /// How long it may wait, where whoever calls [`WaitTable::expired`] is to end the wait.
    pub within: Option<Duration>,
    /// For one step, which waits where a part has as many pins as it can; a guard is refused.
    pub step: bool,
}

/// Those who wait for one part, as they stood.
#[derive(Debug)]
pub(crate) struct InOrder {
    pub key: PartKey,
    pub waiters: Vec<Stands>,
}

impl WaitTable {
    /// `most` waiters at one time.
    pub(crate) fn new(shards: usize, most: u64) -> Arc<Self> {
        Arc::new(Self {
            // A power of two: a mask, where a division would cost as much as the rest of it.
            shards: (0..shards.next_power_of_two())
                .map(|_| Mutex::new(Shard::default()))
                .collect(),
            waiting: Apart(AtomicU64::new(0)),
            most,
            started: Instant::now(),
            idle: Arc::default(),
        })
    }

    fn shard(&self, key: PartKey) -> &Mutex<Shard> {
        let mixed = key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = usize::try_from(mixed).unwrap_or(0);
        &self.shards[at & (self.shards.len() - 1)]
    }

    /// Locks the part now, or takes a place in its line.
    pub(crate) fn ask(
        self: &Arc<Self>,
        words: &Arc<dyn Words>,
        key: PartKey,
        want: Want,
        locker: Option<&Arc<LockerState>>,
    ) -> Asked {
        let request = Request {
            word: words.word(key.index()),
            key,
            want,
            locker,
            within: None,
            step: false,
        };
        self.ask_as(request, words)
    }

    /// The same, of what is asked for in whatever way.
    pub(crate) fn ask_as(self: &Arc<Self>, request: Request<'_>, words: &Arc<dyn Words>) -> Asked {
        match self.enter(request, || Arc::clone(words), None) {
            Asked::Granted => Asked::Granted,
            Asked::Waits(ticket) => {
                let (table, words) = (Arc::clone(self), Arc::clone(words));
                Asked::Waits(Waiting::new(table, words, request, ticket))
            }
            Asked::Full => Asked::Full,
            Asked::TooManyWaiters => Asked::TooManyWaiters,
        }
    }

    /// The same, with the waker of who polls first: the ticket of its place, which is given up by
    /// [`leave`](Self::leave), which [`Waiting`] sees to.
    pub(crate) fn enter(
        &self,
        request: Request<'_>,
        words: impl FnOnce() -> Arc<dyn Words>,
        waker: Option<Waker>,
    ) -> Asked<u64> {
        let Request {
            word, key, want, ..
        } = request;
        let shard = &mut *self.shard(key).lock();
        let first = !shard.lines.contains_key(&key);
        let closes = want == Want::Sole;
        // Locked, or the bits that make who releases it look for us: in one move.
        let asked = |word: Word| match word.lock(want, first) {
            Ok(locked) => Ok(locked),
            Err(Blocked::Full) if request.step => Ok(word.with_waiters(true)),
            Err(Blocked::Full) => Err(()),
            Err(Blocked::Conflict) => {
                Ok(word.with_waiters(true).close(word.is_closing() || closes))
            }
        };
        // Where the bits are there already, who releases it comes to this shard in any case.
        let now = word.get();
        if asked(now) != Ok(now) {
            match word.change(asked) {
                Err(()) => return Asked::Full,
                Ok((old, _)) if old.lock(want, first).is_ok() => return Asked::Granted,
                Ok(_) => {}
            }
        }
        // Counted first: other shards count as well, and none goes over.
        if self.waiting.0.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.waiting.0.fetch_sub(1, Ordering::Relaxed);
            // The bits may be ours alone. Nobody else can be handed anything that he could not
            // have had before we came.
            shard.look_again(key, word);
            return Asked::TooManyWaiters;
        }
        shard.tickets += 1;
        let ticket = shard.tickets;
        let line = shard.lines.entry(key);
        line.or_insert_with(|| Line::new(words())).enter(Waiter {
            ticket,
            want,
            locker: request.locker.map(|locker| locker.id),
            within: request.within,
            seen_ms: 0,
            waker,
        });
        Asked::Waits(ticket)
    }

    /// A holder goes.
    #[inline(always)]
    pub(crate) fn release(&self, word: &AtomicWord, key: PartKey, want: Want) {
        let unlocked = word.change(|word| {
            let passes = want == EXCLUSIVE && word.has_waiters();
            if passes {
                Err(())
            } else {
                Ok(word.unlock(want))
            }
        });
        match unlocked {
            Ok((_, now)) => self.unlocked(word, key, want, now),
            Err(()) => self.release_exclusive(word, key),
        }
    }

    #[inline(always)]
    fn unlocked(&self, word: &AtomicWord, key: PartKey, want: Want, now: Word) {
        if now.has_waiters() {
            self.released(word, key, want, now);
        }
        self.idle.tell(now);
    }

    #[cold]
    fn release_exclusive(&self, word: &AtomicWord, key: PartKey) {
        if !self.pass_on(word, key) {
            let now = word.set(|word| word.unlock(EXCLUSIVE));
            self.unlocked(word, key, EXCLUSIVE, now);
        }
    }

    /// From one who has it `Exclusive` to the next one, if he is to have it so.
    fn pass_on(&self, word: &AtomicWord, key: PartKey) -> bool {
        let waker = {
            let shard = &mut *self.shard(key).lock();
            let Some(line) = shard.lines.get_mut(&key) else {
                return false;
            };
            let Some(next) = line.pass_on() else {
                return false;
            };
            let last = line.is_empty();
            tell(&mut shard.told, next.ticket, Told::Granted);
            if last {
                shard.look_again(key, word);
            }
            next.waker
        };
        self.waiting.0.fetch_sub(1, Ordering::Relaxed);
        if let Some(waker) = waker
            && !is(Mutant::LockHandedOnInSilence)
        {
            waker.wake();
        }
        true
    }

    #[cold]
    fn released(&self, word: &AtomicWord, key: PartKey, want: Want, now: Word) {
        let pin = want == PIN;
        // A pin that goes matters to nobody but who waits for all of them to go, or for one more.
        let matters = !pin || now.is_closing() || now.pins() == MAX_HOLDERS - 1;
        if matters {
            let told = self.hand_on(&mut self.shard(key).lock(), key, word);
            wake(told);
        }
    }

    /// Locks the word for as many as can have it, in order.
    fn hand_on(&self, shard: &mut Shard, key: PartKey, word: &AtomicWord) -> Wakers {
        let mut wakers = Wakers::default();
        let mut granted = 0;
        let Shard { lines, told, .. } = shard;
        if let Some(line) = lines.get_mut(&key) {
            line.hand_on(word, |next| {
                granted += 1;
                tell(told, next.ticket, Told::Granted);
                wakers.extend(next.waker.filter(|_| !is(Mutant::LockHandedOnInSilence)));
            });
        }
        shard.look_again(key, word);
        if granted > 0 {
            self.waiting.0.fetch_sub(granted, Ordering::Relaxed);
        }
        wakers
    }

    /// Refuses those in one part's line that `which` picks.
    pub(crate) fn refuse(
        &self,
        key: PartKey,
        which: impl Fn(&Waiter) -> bool,
        why: impl Fn(&Waiter) -> Error,
    ) -> usize {
        let mut shard = self.shard(key).lock();
        let (refused, wakers) = self.refuse_in(&mut shard, key, which, why);
        drop(shard);
        wake(wakers);
        refused
    }

    /// The same in every line.
    pub(crate) fn refuse_all(
        &self,
        which: impl Fn(&Waiter) -> bool,
        why: impl Fn(&Waiter) -> Error,
    ) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let keys: Vec<PartKey> = shard.lines.keys().copied().collect();
            let mut wakers = Wakers::default();
            for key in keys {
                wakers.extend(self.refuse_in(&mut shard, key, &which, &why).1);
            }
            drop(shard);
            wake(wakers);
        }
    }

    fn refuse_in(
        &self,
        shard: &mut Shard,
        key: PartKey,
        which: impl Fn(&Waiter) -> bool,
        why: impl Fn(&Waiter) -> Error,
    ) -> (usize, Wakers) {
        let mut wakers = Wakers::default();
        let Some(line) = shard.lines.get_mut(&key) else {
            return (0, wakers);
        };
        let words = Arc::clone(&line.words);
        let gone = line.take(which);
        let refused = gone.len();
        if refused == 0 {
            return (0, wakers);
        }
        for waiter in gone {
            let error = Box::new(why(&waiter));
            tell(&mut shard.told, waiter.ticket, Told::Refused(error));
            wakers.extend(waiter.waker);
        }
        self.waiting.0.fetch_sub(refused as u64, Ordering::Relaxed);
        wakers.extend(self.hand_on(shard, key, words.word(key.index())));
        (refused, wakers)
    }

    /// Who leaves of its own.
    fn leave(&self, word: &AtomicWord, key: PartKey, ticket: u64, want: Want) {
        let mut unlocked = None;
        let wakers = {
            let shard = &mut *self.shard(key).lock();
            match shard.hear(ticket) {
                Some(Told::Granted) => unlocked = Some(word.set(|word| word.unlock(want))),
                Some(Told::Refused(_)) => return,
                None if is(Mutant::PlaceInLineKept) => (),
                None => {
                    let line = shard.lines.get_mut(&key);
                    let gone = line.map_or(0, |line| line.take(|w| w.ticket == ticket).len());
                    self.waiting.0.fetch_sub(gone as u64, Ordering::Relaxed);
                }
            }
            self.hand_on(shard, key, word)
        };
        wake(wakers);
        if let Some(now) = unlocked {
            self.idle.tell(now);
        }
    }

    /// What somebody was told, if anything; else it is to be woken when it is.
    fn hear(&self, key: PartKey, ticket: u64, waker: &Waker) -> Poll<Result<(), Error>> {
        let shard = &mut *self.shard(key).lock();
        match shard.hear(ticket) {
            Some(Told::Granted) => return Poll::Ready(Ok(())),
            Some(Told::Refused(error)) => return Poll::Ready(Err(*error)),
            None => {}
        }
        let line = shard.lines.get_mut(&key);
        if let Some(waiter) = line.and_then(|line| line.find(ticket)) {
            match &mut waiter.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        Poll::Pending
    }

    /// Everyone who waits, line by line, first come first.
    pub(crate) fn lines(&self) -> Vec<InOrder> {
        let mut lines = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            lines.extend(shard.lines.iter().map(|(key, line)| InOrder {
                key: *key,
                waiters: line.waiters().map(|waiter| stands(*key, waiter)).collect(),
            }));
        }
        lines
    }

    /// The same, without their lines.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = Stands> {
        self.lines().into_iter().flat_map(|line| line.waiters)
    }

    /// Those that have waited for as long as they may. A wait begins when this first finds it:
    /// whoever takes a place does not look at the clock.
    pub(crate) fn expired(&self) -> Vec<Stands> {
        let now = self.now_ms();
        let mut expired = Vec::new();
        for shard in &self.shards {
            for (key, line) in &mut shard.lock().lines {
                for waiter in line.waiters_mut() {
                    if waiter.seen_ms == 0 {
                        waiter.seen_ms = now;
                    }
                    let waited = Duration::from_millis(now - waiter.seen_ms);
                    if waiter.within.is_some_and(|within| waited >= within) {
                        expired.push(stands(*key, waiter));
                    }
                }
            }
        }
        expired
    }

    /// Milliseconds since this was made, and one.
    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed()).saturating_add(1)
    }

    /// For how long somebody has been seen waiting.
    pub(crate) fn waited(&self, waiter: &Stands) -> Duration {
        match waiter.seen_ms {
            0 => Duration::ZERO,
            seen => Duration::from_millis(self.now_ms().saturating_sub(seen)),
        }
    }

    /// How many may.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.0.load(Ordering::Relaxed)
    }

    /// Gives one waiter an error instead of the lock; whether it was still waiting.
    pub(crate) fn refuse_one(&self, waiter: &Stands, error: &Error) -> bool {
        let is_it = |other: &Waiter| other.ticket == waiter.ticket;
        self.refuse(waiter.key, is_it, |_| error.clone()) > 0
    }
}

fn tell(told: &mut VecDeque<(u64, Told)>, ticket: u64, news: Told) {
    let at = match told.back() {
        Some((last, _)) if *last > ticket => told.partition_point(|(other, _)| *other < ticket),
        _ => told.len(),
    };
    told.insert(at, (ticket, news));
}

impl Shard {
    fn hear(&mut self, ticket: u64) -> Option<Told> {
        let at = self.told.binary_search_by_key(&ticket, |(other, _)| *other);
        self.told.remove(at.ok()?).map(|(_, news)| news)
    }

    /// Has the word's bits, and the table, say what there is of a line.
    fn look_again(&mut self, key: PartKey, word: &AtomicWord) {
        let line = self.lines.get(&key);
        let waiting = line.is_some_and(|line| !line.is_empty());
        let closing = line.is_some_and(Line::closes);
        if !waiting {
            self.lines.remove(&key);
        }
        let now = word.get();
        // Changed under this shard's lock only.
        if now.has_waiters() != waiting || now.is_closing() != closing {
            word.set(|word| word.with_waiters(waiting).close(closing));
        }
    }
}

fn stands(key: PartKey, waiter: &Waiter) -> Stands {
    Stands {
        key,
        ticket: waiter.ticket,
        want: waiter.want,
        locker: waiter.locker,
        seen_ms: waiter.seen_ms,
    }
}

/// Who is to be woken when the shard's lock has been released. Mostly one, who takes no memory.
#[derive(Default)]
struct Wakers {
    one: Option<Waker>,
    more: Vec<Waker>,
}

impl Extend<Waker> for Wakers {
    fn extend<T: IntoIterator<Item = Waker>>(&mut self, wakers: T) {
        for waker in wakers {
            match &self.one {
                None => self.one = Some(waker),
                Some(_) => self.more.push(waker),
            }
        }
    }
}

impl IntoIterator for Wakers {
    type Item = Waker;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Waker>, std::vec::IntoIter<Waker>>;

    fn into_iter(self) -> Self::IntoIter {
        self.one.into_iter().chain(self.more)
    }
}

fn wake(wakers: Wakers) {
    for waker in wakers {
        waker.wake();
    }
}

/// A place in a line; done when the part is locked for who holds it.
#[derive(Debug)]
pub(crate) struct Waiting<T = Arc<WaitTable>, W = Arc<dyn Words>>
where
    T: Deref<Target = WaitTable>,
    W: Deref<Target: Words>,
{
    table: T,
    pub words: W,
    key: PartKey,
    want: Want,
    ticket: u64,
    /// It has heard.
    over: bool,
}

impl<T: Deref<Target = WaitTable>, W: Deref<Target: Words>> Waiting<T, W> {
    pub(crate) fn new(table: T, words: W, request: Request<'_>, ticket: u64) -> Self {
        Self {
            table,
            words,
            key: request.key,
            want: request.want,
            ticket,
            over: false,
        }
    }
}

impl<T, W> Future for Waiting<T, W>
where
    T: Deref<Target = WaitTable> + Unpin,
    W: Deref<Target: Words> + Unpin,
{
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let heard = self.table.hear(self.key, self.ticket, context.waker());
        self.over |= heard.is_ready();
        heard
    }
}

impl<T: Deref<Target = WaitTable>, W: Deref<Target: Words>> Drop for Waiting<T, W> {
    fn drop(&mut self) {
        if !self.over {
            let word = self.words.word(self.key.index());
            self.table.leave(word, self.key, self.ticket, self.want);
        }
    }
}
