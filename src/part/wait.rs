//! Who waits for which part.
//!
//! Owns: a first-in-first-out line per part, in a sharded table, for threads and tasks alike: a
//! waiter is a waker, and a thread's waker is a condition variable ([`crate::op`]). Does not own:
//! what a mode conflicts with (`state.rs`), deadlines (whoever polls), or loads.
//!
//! 1. Who finds a part taken enters the line and sets the waiters' bit in one critical section of
//!    its shard; who releases it and sees the bit takes the same lock: so a release is either seen
//!    by who enters, or sees who entered. No wake-up is lost.
//! 2. A lock is handed on: the word is locked for the first in line before it is woken. Nobody
//!    overtakes, and so nobody starves: not a writer among readers, because a reader that comes
//!    after it waits behind it. Pins are beside the line, but for who wants all of the part.
//! 3. Who leaves, in whatever way, takes its place with it, and hands on what it had been given
//!    and not taken.
//! 4. Wakers are called after the shard's lock is released.
//! 5. Between two who want the same part there is nothing but this: the cost of a turn is an
//!    allocation, two sections of a shard, and a wake-up; no timer, and no look at the clock.

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
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};

use super::id::PartKey;
use super::locker::LockerState;
use super::state::{AtomicWord, Blocked, MAX_HOLDERS, Mode, Want, Word};

const PIN: Want = Want::Mode(Mode::Pin);
const SHARED: Want = Want::Mode(Mode::Shared);

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

/// One who waits.
pub(crate) struct Waiter {
    pub key: PartKey,
    pub want: Want,
    /// The number of the locker that waits.
    pub locker: Option<u64>,
    /// How long it may wait, where it has no timer of its own.
    pub within: Option<Duration>,
    /// When it was first seen waiting, in milliseconds of the table's clock; 0 before that.
    seen_ms: AtomicU64,
    /// What it was told: changed under the shard's lock, but for the last of them.
    told: AtomicU32,
    hears: Mutex<Hears>,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter")
            .field("key", &self.key)
            .field("want", &self.want)
            .finish_non_exhaustive()
    }
}

const NOTHING: u32 = 0;
/// The word is locked for it.
const GRANTED: u32 = 1;
const REFUSED: u32 = 2;
/// It has heard.
const OVER: u32 = 3;

/// Who is to be woken, and why it is refused.
struct Hears {
    waker: Option<Waker>,
    error: Option<Error>,
}

/// Those who wait for one part.
struct Line {
    words: Arc<dyn Words>,
    waiters: VecDeque<Arc<Waiter>>,
    /// How many of them want a pin, or all of it: those who are not simply behind the one before
    /// them.
    odd: usize,
}

impl Line {
    fn new(words: Arc<dyn Words>) -> Self {
        Self {
            words,
            waiters: VecDeque::new(),
            odd: 0,
        }
    }

    fn push_back(&mut self, waiter: Arc<Waiter>) {
        self.odd += usize::from(waiter.is_odd());
        self.waiters.push_back(waiter);
    }

    fn insert(&mut self, at: usize, waiter: Arc<Waiter>) {
        self.odd += usize::from(waiter.is_odd());
        self.waiters.insert(at, waiter);
    }

    /// Takes out those that `keeps` does not keep; how many.
    fn retain(&mut self, keeps: impl FnMut(&Arc<Waiter>) -> bool) -> usize {
        let before = self.waiters.len();
        self.waiters.retain(keeps);
        self.odd = self.waiters.iter().filter(|waiter| waiter.is_odd()).count();
        before - self.waiters.len()
    }
}

type Shard = BTreeMap<PartKey, Line>;

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
#[derive(Debug)]
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
    pub waiters: Vec<Arc<Waiter>>,
}

impl WaitTable {
    /// `most` waiters at one time.
    pub(crate) fn new(shards: usize, most: u64) -> Arc<Self> {
        Arc::new(Self {
            // A power of two: a mask, where a division would cost as much as the rest of it.
            shards: (0..shards.next_power_of_two())
                .map(|_| Mutex::new(BTreeMap::new()))
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
            Asked::Waits(waiter) => {
                let (table, words) = (Arc::clone(self), Arc::clone(words));
                Asked::Waits(Waiting::new(table, words, waiter))
            }
            Asked::Full => Asked::Full,
            Asked::TooManyWaiters => Asked::TooManyWaiters,
        }
    }

    /// The same, with the waker of who polls first; its place is given up by
    /// [`leave`](Self::leave), which [`Waiting`] sees to.
    pub(crate) fn enter(
        &self,
        request: Request<'_>,
        words: impl FnOnce() -> Arc<dyn Words>,
        waker: Option<Waker>,
    ) -> Asked<Arc<Waiter>> {
        let Request {
            word, key, want, ..
        } = request;
        let mut shard = self.shard(key).lock();
        let first = !shard.contains_key(&key);
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
            let told = self.hand_on(&mut shard, key, word);
            drop(shard);
            wake(told);
            return Asked::TooManyWaiters;
        }
        let waiter = Arc::new(Waiter {
            key,
            want,
            locker: request.locker.map(|locker| locker.id),
            within: request.within,
            seen_ms: AtomicU64::new(0),
            told: AtomicU32::new(NOTHING),
            hears: Mutex::new(Hears { waker, error: None }),
        });
        let line = shard.entry(key).or_insert_with(|| Line::new(words()));
        if closes {
            // What is to be cut off is not handed to anyone before, but who cuts it as well.
            let cuts = line.waiters.iter();
            let cuts = cuts.take_while(|other| other.want == Want::Sole).count();
            line.insert(cuts, Arc::clone(&waiter));
        } else {
            line.push_back(Arc::clone(&waiter));
        }
        Asked::Waits(waiter)
    }

    /// A holder goes.
    #[inline(always)]
    pub(crate) fn release(&self, word: &AtomicWord, key: PartKey, want: Want) {
        let now = word.set(|word| word.unlock(want));
        if now.has_waiters() {
            self.released(word, key, want, now);
        }
        self.idle.tell(now);
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

    /// Locks the word for as many as can have it, in order. A pin is in nobody's way, and nobody
    /// in a pin's, but who wants all of it: who came later than the pin would not wait for it.
    fn hand_on(&self, shard: &mut Shard, key: PartKey, word: &AtomicWord) -> Wakers {
        let mut wakers = Wakers::default();
        let Some(line) = shard.get_mut(&key) else {
            word.set(|word| word.with_waiters(false).close(false));
            return wakers;
        };
        let grant = |next: &Waiter| word.change(|word| word.lock(next.want, true)).is_ok();
        let mut granted = 0;
        if line.odd == 0 {
            while line.waiters.front().is_some_and(|next| grant(next))
                && let Some(next) = line.waiters.pop_front()
            {
                wakers.extend(next.tell(GRANTED, None));
                granted += 1;
                if next.want != SHARED {
                    break;
                }
            }
        } else {
            let (mut blocked, mut closing) = (false, false);
            granted = line.retain(|next| {
                let pin = next.want == PIN;
                let may = if pin { !closing } else { !blocked };
                if may && grant(next) {
                    wakers.extend(next.tell(GRANTED, None));
                    return false;
                }
                blocked |= !pin;
                closing |= next.want == Want::Sole;
                true
            });
        }
        let closing = line.odd > 0 && line.waiters.iter().any(|next| next.want == Want::Sole);
        let waiting = !line.waiters.is_empty();
        if !waiting {
            shard.remove(&key);
        }
        let now = word.get();
        // Changed under this shard's lock only.
        if now.has_waiters() != waiting || now.is_closing() != closing {
            word.set(|word| word.with_waiters(waiting).close(closing));
        }
        if granted > 0 {
            self.waiting.0.fetch_sub(granted as u64, Ordering::Relaxed);
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
            let keys: Vec<PartKey> = shard.keys().copied().collect();
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
        let Some(line) = shard.get_mut(&key) else {
            return (0, wakers);
        };
        let refused = line.retain(|waiter| {
            let refuse = which(waiter);
            if refuse {
                wakers.extend(waiter.tell(REFUSED, Some(why(waiter))));
            }
            !refuse
        });
        if refused > 0 {
            self.waiting.0.fetch_sub(refused as u64, Ordering::Relaxed);
            let words = Arc::clone(&line.words);
            wakers.extend(self.hand_on(shard, key, words.word(key.index())));
        }
        (refused, wakers)
    }

    /// Who leaves of its own.
    fn leave(&self, word: &AtomicWord, waiter: &Arc<Waiter>) {
        let mut shard = self.shard(waiter.key).lock();
        // Asked under the shard's lock: nobody hands anything on meanwhile.
        let told = waiter.told.load(Ordering::Acquire);
        waiter.told.store(OVER, Ordering::Release);
        let mut unlocked = None;
        let wakers = match told {
            NOTHING => {
                if let Some(line) = shard.get_mut(&waiter.key) {
                    line.retain(|other| !Arc::ptr_eq(other, waiter));
                    self.waiting.0.fetch_sub(1, Ordering::Relaxed);
                }
                self.hand_on(&mut shard, waiter.key, word)
            }
            GRANTED => {
                unlocked = Some(word.set(|word| word.unlock(waiter.want)));
                self.hand_on(&mut shard, waiter.key, word)
            }
            _ => Wakers::default(),
        };
        drop(shard);
        wake(wakers);
        if let Some(now) = unlocked {
            self.idle.tell(now);
        }
    }

    /// Everyone who waits, line by line, first come first.
    pub(crate) fn lines(&self) -> Vec<InOrder> {
        let mut lines = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            lines.extend(shard.iter().map(|(key, line)| InOrder {
                key: *key,
                waiters: line.waiters.iter().cloned().collect(),
            }));
        }
        lines
    }

    /// The same, without their lines.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = Arc<Waiter>> {
        self.lines().into_iter().flat_map(|line| line.waiters)
    }

    /// Those that have waited for as long as they may. A wait begins when this first finds it:
    /// whoever takes a place does not look at the clock.
    pub(crate) fn expired(&self) -> Vec<Arc<Waiter>> {
        let now = self.now_ms();
        let over = |waiter: &Arc<Waiter>| match waiter.seen_ms.load(Ordering::Relaxed) {
            0 => {
                waiter.seen_ms.store(now, Ordering::Relaxed);
                false
            }
            seen => {
                let waited = Duration::from_millis(now.saturating_sub(seen));
                waiter.within.is_some_and(|within| waited >= within)
            }
        };
        self.waiters().filter(over).collect()
    }

    /// Milliseconds since this was made, and one.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).map_or(u64::MAX, |ms| ms + 1)
    }

    /// For how long somebody has been seen waiting.
    pub(crate) fn waited(&self, waiter: &Waiter) -> Duration {
        match waiter.seen_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            seen => Duration::from_millis(self.now_ms().saturating_sub(seen)),
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.0.load(Ordering::Relaxed)
    }

    /// Gives one waiter an error instead of the lock; whether it was still waiting.
    pub(crate) fn refuse_one(&self, waiter: &Arc<Waiter>, error: &Error) -> bool {
        self.refuse(
            waiter.key,
            |other| std::ptr::eq(other, &**waiter),
            |_| error.clone(),
        ) > 0
    }
}

impl Waiter {
    fn is_odd(&self) -> bool {
        matches!(self.want, PIN | Want::Sole)
    }

    /// Under the shard's lock, to who is in line.
    fn tell(&self, news: u32, error: Option<Error>) -> Option<Waker> {
        let hears = &mut *self.hears.lock();
        hears.error = error;
        self.told.store(news, Ordering::Release);
        hears.waker.take()
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
    waiter: Arc<Waiter>,
    /// It has heard.
    over: bool,
}

impl<T: Deref<Target = WaitTable>, W: Deref<Target: Words>> Waiting<T, W> {
    pub(crate) fn new(table: T, words: W, waiter: Arc<Waiter>) -> Self {
        Self {
            table,
            words,
            waiter,
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
        let this = &mut *self;
        let waiter = &*this.waiter;
        if waiter.told.load(Ordering::Acquire) == NOTHING {
            let hears = &mut *waiter.hears.lock();
            // Told meanwhile, it has taken the waker of before, or none.
            if waiter.told.load(Ordering::Acquire) == NOTHING {
                match &mut hears.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                return Poll::Pending;
            }
        }
        // From here on nobody else changes it.
        let answer = match waiter.told.load(Ordering::Acquire) {
            GRANTED => Ok(()),
            _ => match waiter.hears.lock().error.take() {
                Some(error) => Err(error),
                None => return Poll::Pending,
            },
        };
        waiter.told.store(OVER, Ordering::Release);
        this.over = true;
        Poll::Ready(answer)
    }
}

impl<T: Deref<Target = WaitTable>, W: Deref<Target: Words>> Drop for Waiting<T, W> {
    fn drop(&mut self) {
        if !self.over {
            let word = self.words.word(self.waiter.key.index());
            self.table.leave(word, &self.waiter);
        }
    }
}
