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

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
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

/// Where state words are.
pub(crate) trait Words: Send + Sync + std::fmt::Debug {
    fn word(&self, index: u32) -> &AtomicWord;
}

/// One who waits.
pub(crate) struct Waiter {
    pub key: PartKey,
    pub want: Want,
    pub locker: Option<Arc<LockerState>>,
    pub since: Instant,
    /// How long it may wait, where it has no timer of its own.
    pub within: Option<Duration>,
    words: Arc<dyn Words>,
    told: Mutex<Told>,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter")
            .field("key", &self.key)
            .field("want", &self.want)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Told {
    Nothing(Option<Waker>),
    /// The word is locked for it.
    Granted,
    Refused(Error),
    /// It has heard.
    Over,
}

type Line = VecDeque<Arc<Waiter>>;

/// The table.
#[derive(Debug)]
pub(crate) struct WaitTable {
    shards: Box<[Mutex<BTreeMap<PartKey, Line>>]>,
    waiting: AtomicU64,
    most: u64,
    pub idle: Arc<Idle>,
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
pub(crate) enum Asked {
    Granted,
    Waits(Waiting),
    Full,
    TooManyWaiters,
}

impl WaitTable {
    /// `most` waiters at one time.
    pub(crate) fn new(shards: usize, most: u64) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..shards.max(1))
                .map(|_| Mutex::new(BTreeMap::new()))
                .collect(),
            waiting: AtomicU64::new(0),
            most,
            idle: Arc::default(),
        })
    }

    fn shard(&self, key: PartKey) -> &Mutex<BTreeMap<PartKey, Line>> {
        let mixed = key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = usize::try_from(mixed).unwrap_or(0) % self.shards.len();
        &self.shards[at]
    }

    /// Locks the part now, or takes a place in its line.
    pub(crate) fn ask(
        self: &Arc<Self>,
        words: &Arc<dyn Words>,
        key: PartKey,
        want: Want,
        locker: Option<&Arc<LockerState>>,
    ) -> Asked {
        self.ask_within(words, key, want, locker, None)
    }

    /// The same, for as long as whoever calls [`expired`](Self::expired) lets it wait.
    pub(crate) fn ask_within(
        self: &Arc<Self>,
        words: &Arc<dyn Words>,
        key: PartKey,
        want: Want,
        locker: Option<&Arc<LockerState>>,
        within: Option<Duration>,
    ) -> Asked {
        let word = words.word(key.index());
        let mut shard = self.shard(key).lock();
        let first = !shard.contains_key(&key);
        let closes = want == Want::Sole;
        // Locked, or the bits that make who releases it look for us: in one move.
        let asked = word.change(|word| match word.lock(want, first) {
            Ok(locked) => Ok(locked),
            // A step waits for one of all the pins to go; a locker is told.
            Err(Blocked::Full) if locker.is_none() => Ok(word.with_waiters(true)),
            Err(Blocked::Full) => Err(()),
            Err(Blocked::Conflict) => {
                Ok(word.with_waiters(true).close(word.is_closing() || closes))
            }
        });
        match asked {
            Err(()) => return Asked::Full,
            Ok((old, _)) if old.lock(want, first).is_ok() => return Asked::Granted,
            Ok(_) => {}
        }
        // Checked and counted in one move: other shards count as well.
        let counted = |waiting| (waiting < self.most).then_some(waiting + 1);
        let counted = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
        if counted.is_err() {
            let told = self.hand_on(&mut shard, key, word);
            drop(shard);
            wake(told);
            return Asked::TooManyWaiters;
        }
        let waiter = Arc::new(Waiter {
            key,
            want,
            locker: locker.cloned(),
            since: Instant::now(),
            within,
            words: Arc::clone(words),
            told: Mutex::new(Told::Nothing(None)),
        });
        let line = shard.entry(key).or_default();
        if closes {
            // What is to be cut off is not handed to anyone before, but who cuts it as well.
            let cuts = line.iter().take_while(|other| other.want == Want::Sole);
            line.insert(cuts.count(), Arc::clone(&waiter));
        } else {
            line.push_back(Arc::clone(&waiter));
        }
        Asked::Waits(Waiting {
            table: Arc::clone(self),
            waiter,
        })
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
    fn hand_on(
        &self,
        shard: &mut BTreeMap<PartKey, Line>,
        key: PartKey,
        word: &AtomicWord,
    ) -> Wakers {
        let mut wakers = Wakers::default();
        let line = shard.entry(key).or_default();
        let (mut blocked, mut closing) = (false, false);
        line.retain(|next| {
            let pin = next.want == PIN;
            let may = if pin { !closing } else { !blocked };
            if may && word.change(|word| word.lock(next.want, true)).is_ok() {
                wakers.extend(next.tell(Told::Granted));
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
            blocked |= !pin;
            closing |= next.want == Want::Sole;
            true
        });
        let waiting = !line.is_empty();
        if !waiting {
            shard.remove(&key);
        }
        word.set(|word| word.with_waiters(waiting).close(closing));
        wakers
    }

    /// Refuses those in one part's line that `which` picks.
    pub(crate) fn refuse(
        &self,
        words: &dyn Words,
        key: PartKey,
        which: impl Fn(&Waiter) -> bool,
        why: impl Fn(&Waiter) -> Error,
    ) -> usize {
        let mut shard = self.shard(key).lock();
        let (refused, mut wakers) = self.drop_from(&mut shard, key, which, why);
        if refused > 0 {
            wakers.extend(self.hand_on(&mut shard, key, words.word(key.index())));
        }
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
            let lines: Vec<_> = shard
                .iter()
                .filter_map(|(key, line)| Some((*key, Arc::clone(&line.front()?.words))))
                .collect();
            let mut wakers = Wakers::default();
            for (key, words) in lines {
                let (refused, told) = self.drop_from(&mut shard, key, &which, &why);
                wakers.extend(told);
                if refused > 0 {
                    wakers.extend(self.hand_on(&mut shard, key, words.word(key.index())));
                }
            }
            drop(shard);
            wake(wakers);
        }
    }

    fn drop_from(
        &self,
        shard: &mut BTreeMap<PartKey, Line>,
        key: PartKey,
        which: impl Fn(&Waiter) -> bool,
        why: impl Fn(&Waiter) -> Error,
    ) -> (usize, Wakers) {
        let mut wakers = Wakers::default();
        let Some(line) = shard.get_mut(&key) else {
            return (0, wakers);
        };
        let before = line.len();
        line.retain(|waiter| {
            let refuse = which(waiter);
            if refuse {
                wakers.extend(waiter.tell(Told::Refused(why(waiter))));
            }
            !refuse
        });
        let refused = before - line.len();
        self.waiting.fetch_sub(refused as u64, Ordering::Relaxed);
        (refused, wakers)
    }

    /// Who leaves of its own.
    fn leave(&self, waiter: &Arc<Waiter>) {
        let word = waiter.words.word(waiter.key.index());
        let mut shard = self.shard(waiter.key).lock();
        // Asked under the shard's lock: nobody hands anything on meanwhile.
        let told = std::mem::replace(&mut *waiter.told.lock(), Told::Over);
        let mut unlocked = None;
        let wakers = match told {
            Told::Nothing(_) => {
                if let Some(line) = shard.get_mut(&waiter.key) {
                    line.retain(|other| !Arc::ptr_eq(other, waiter));
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                self.hand_on(&mut shard, waiter.key, word)
            }
            Told::Granted => {
                unlocked = Some(word.set(|word| word.unlock(waiter.want)));
                self.hand_on(&mut shard, waiter.key, word)
            }
            Told::Refused(_) | Told::Over => Wakers::default(),
        };
        drop(shard);
        wake(wakers);
        if let Some(now) = unlocked {
            self.idle.tell(now);
        }
    }

    /// Everyone who waits, line by line, first come first.
    pub(crate) fn lines(&self) -> Vec<Vec<Arc<Waiter>>> {
        let mut lines = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            lines.extend(shard.values().map(|line| line.iter().cloned().collect()));
        }
        lines
    }

    /// Those that have waited for as long as they may.
    pub(crate) fn expired(&self) -> Vec<Arc<Waiter>> {
        let now = Instant::now();
        let over = |waiter: &Arc<Waiter>| {
            let within = waiter.within;
            within.is_some_and(|within| now.duration_since(waiter.since) >= within)
        };
        self.lines().into_iter().flatten().filter(over).collect()
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Gives one waiter an error instead of the lock; whether it was still waiting.
    pub(crate) fn refuse_one(&self, waiter: &Arc<Waiter>, error: &Error) -> bool {
        self.refuse(
            &*waiter.words,
            waiter.key,
            |other| std::ptr::eq(other, &**waiter),
            |_| error.clone(),
        ) > 0
    }
}

impl Waiter {
    fn tell(&self, news: Told) -> Option<Waker> {
        match std::mem::replace(&mut *self.told.lock(), news) {
            Told::Nothing(waker) => waker,
            Told::Granted | Told::Refused(_) | Told::Over => None,
        }
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
pub(crate) struct Waiting {
    table: Arc<WaitTable>,
    waiter: Arc<Waiter>,
}

impl Future for Waiting {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut told = self.waiter.told.lock();
        match &mut *told {
            Told::Nothing(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Told::Granted => {
                *told = Told::Over;
                Poll::Ready(Ok(()))
            }
            Told::Refused(_) | Told::Over => match std::mem::replace(&mut *told, Told::Over) {
                Told::Refused(error) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let over = matches!(&*self.waiter.told.lock(), Told::Over);
        if !over {
            self.table.leave(&self.waiter);
        }
    }
}
