//! The lock manager: part locks, granted at once or waited for.
//!
//! Owns: the order of what is done to lock and unlock a part, and who is refused by the phase of a
//! shutdown. Does not own: the conflict table (`state.rs`), the lines (`wait.rs`), what a locker is
//! (`locker.rs`), cycles of them (`deadlock.rs`), or the bytes.
//!
//! 1. The fast path is one compare-and-swap on the state word, and one on the locker's own list.
//! 2. Not re-entrant: the same locker asking for what it holds is refused at once, whatever the
//!    modes. (It would wait for itself.)
//! 3. A lock that was granted to who has gone is handed on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::phase::Phase;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::time::millis;
use crate::watched::Watched;

use super::id::{PartId, PartKey};
use super::locker::{Held, Holder, LockerState, Lockers, Place, Role};
use super::state::{AtomicWord, MAX_HOLDERS, Mode, Want, Word};
use super::wait::{Asked, Idle, Request, WaitTable, Waiting, Words};

/// The most holders that an error names.
const MAX_NAMED: usize = 8;

/// Who is still granted what, as shutdown goes on. Rising only.
const OPEN: u32 = 0;
const HOLDERS_ONLY: u32 = 1;
const READ_ONLY: u32 = 2;
const SHUT: u32 = 3;

/// The lock manager of one store.
#[derive(Debug)]
pub(crate) struct Locks {
    pub(super) table: Arc<WaitTable>,
    pub(crate) lockers: Arc<Lockers>,
    gate: AtomicU32,
    /// Milliseconds since `started`, as of the last tick: what a lock is stamped with.
    now_ms: AtomicU64,
    started: Instant,
    /// Changes when the gate is closed further.
    closing: Watched<()>,
    /// Who waits until a cut is over, and how many they are.
    uncut: Mutex<Uncut>,
    uncut_waits: AtomicU64,
    /// Where who waits for room is told of a part that was let go of.
    pub(crate) idle: Arc<Idle>,
}

/// Those who wait until a cut is over, by ticket.
#[derive(Debug, Default)]
struct Uncut {
    tickets: u64,
    waits: BTreeMap<u64, CutWait>,
}

/// A locker that waits until a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CutWait {
    ticket: u64,
    pub locker: u64,
    pub file: u32,
}

/// On the list of those while it is there.
struct UntilUncut<'a>(&'a Locks, u64);

impl Drop for UntilUncut<'_> {
    fn drop(&mut self) {
        let mut uncut = self.0.uncut.lock();
        uncut.waits.remove(&self.1);
        let left = uncut.waits.len() as u64;
        self.0.uncut_waits.store(left, Ordering::Release);
    }
}

/// A place in a line that borrows all it needs.
pub(crate) type InLine<'a> = Waiting<&'a WaitTable, &'a AtomicWord>;

/// A lock was not granted at once: what is in the way is asked for where it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAtOnce;

impl Locks {
    pub(crate) fn new(shards: usize, max_waiters: u64) -> Self {
        let table = WaitTable::new(shards, max_waiters);
        Self {
            idle: Arc::clone(&table.idle),
            table,
            lockers: Arc::new(Lockers::default()),
            gate: AtomicU32::new(OPEN),
            now_ms: AtomicU64::new(0),
            started: Instant::now(),
            closing: Watched::new(()),
            uncut: Mutex::new(Uncut::default()),
            uncut_waits: AtomicU64::new(0),
        }
    }

    /// Moves the clock that locks are stamped with.
    pub(crate) fn tick(&self) {
        let now = millis(self.started.elapsed());
        self.now_ms.store(now, Ordering::Relaxed);
    }

    /// Whether the phase lets this locker have or use locks.
    pub(crate) fn admits(&self, locker: Option<&LockerState>, writes: bool) -> Result<()> {
        let gate = self.gate.load(Ordering::Relaxed);
        if gate == OPEN {
            return Ok(());
        }
        let (role, holds) = locker.map_or((Role::Foreground, false), |locker| {
            (locker.role, locker.through_hold)
        });
        let phase = match gate {
            HOLDERS_ONLY | READ_ONLY if is(Mutant::QuiescingStopsCheckpointer) => Phase::Quiescing,
            HOLDERS_ONLY if holds || role == Role::Checkpointer => return Ok(()),
            HOLDERS_ONLY => Phase::Quiescing,
            READ_ONLY if role == Role::Checkpointer && !writes => return Ok(()),
            READ_ONLY => Phase::Checkpointing,
            _ => Phase::Stopping,
        };
        Err(Error::ShuttingDown { phase })
    }

    /// Waits until the phase lets this locker go on no longer.
    pub(crate) async fn refused(&self, locker: Option<&LockerState>) -> Error {
        let refused = |(): &()| self.admits(locker, false).err();
        self.closing.until(refused).await
    }

    /// Closes the gate a step further, and refuses who waits and is let in no more.
    pub(crate) fn close(&self, phase: Phase) {
        let gate = match phase {
            Phase::Running => OPEN,
            Phase::Quiescing => HOLDERS_ONLY,
            Phase::Checkpointing | Phase::Draining => READ_ONLY,
            Phase::Stopping | Phase::Sealing | Phase::Closed => SHUT,
        };
        self.gate.fetch_max(gate, Ordering::AcqRel);
        self.closing.change(|()| ());
        self.table.refuse_all(
            |waiter| {
                let locker = waiter.locker.and_then(|id| self.lockers.get(id));
                self.admits(locker.as_deref(), false).is_err()
            },
            |_| Error::ShuttingDown { phase },
        );
    }

    /// Locks a part, if nothing is in the way.
    #[inline]
    pub(crate) fn try_lock(
        &self,
        word: &AtomicWord,
        key: PartKey,
        mode: Mode,
        locker: &LockerState,
    ) -> Result<(Place, Word), NotAtOnce> {
        if self.gate.load(Ordering::Relaxed) != OPEN && self.admits(Some(locker), false).is_err() {
            return Err(NotAtOnce);
        }
        let want = Want::Mode(mode);
        let Ok((old, now)) = word.change(|word| word.lock(want, false)) else {
            return Err(NotAtOnce);
        };
        if old.is_held() && locker.holds(key).is_some() {
            self.release(word, key, want);
            return Err(NotAtOnce);
        }
        Ok((self.note(locker, key, want), now))
    }

    #[inline]
    fn note(&self, locker: &LockerState, key: PartKey, want: Want) -> Place {
        locker.add(key, want, self.now_ms.load(Ordering::Relaxed))
    }

    /// Locks a part, in its turn.
    ///
    /// # Cancel safety
    /// Leaves no trace; a lock that had been granted is handed on.
    pub(crate) async fn lock(
        &self,
        words: &Arc<dyn Words>,
        part: PartId,
        key: PartKey,
        want: Want,
        locker: &Arc<LockerState>,
    ) -> Result<Place> {
        self.admits(Some(locker), false)?;
        if let Some(held) = locker.holds(key) {
            return Err(locker.already_holds(part, &held));
        }
        match self.table.ask(words, key, want, Some(locker)) {
            Asked::Granted => Ok(self.note(locker, key, want)),
            Asked::Waits(waiting) => {
                // Shut meanwhile: whoever closed the gate looked at the lines before we were in.
                if let Err(error) = self.admits(Some(locker), false) {
                    drop(waiting);
                    return Err(error);
                }
                waiting.await?;
                Ok(self.note(locker, key, want))
            }
            Asked::Full => Err(Error::TooManyHolders {
                part,
                mode: want.mode(),
                max: MAX_HOLDERS,
            }),
            Asked::TooManyWaiters => Err(Error::QueueFull {
                limit: crate::error::Limit::LockWaiters,
                current: self.table.waiting(),
                max: self.table.most(),
                retry_after: Duration::from_millis(10),
            }),
        }
    }

    /// Enters the line for a part, without a timer: [`expire`](Self::expire) ends the wait. `None`
    /// where there is more in the way than others: [`lock`](Self::lock) says what.
    pub(crate) fn enter<'a, W: Words + 'static>(
        &'a self,
        request: Request<'a>,
        words: &Arc<W>,
        waker: &Waker,
    ) -> Option<InLine<'a>> {
        let Request {
            word, key, want, ..
        } = request;
        let locker = &**request.locker?;
        if self.admits(Some(locker), false).is_err() || locker.holds(key).is_some() {
            return None;
        }
        let line = || Arc::clone(words) as Arc<dyn Words>;
        match self.table.enter(request, line, Some(waker.clone())) {
            Asked::Waits(ticket) => {
                let line = Waiting::new(&*self.table, word, request, ticket);
                // Dropped, it leaves the line.
                self.admits(Some(locker), false).is_ok().then_some(line)
            }
            Asked::Granted => {
                self.release(word, key, want);
                None
            }
            Asked::Full | Asked::TooManyWaiters => None,
        }
    }

    /// A locker begins to take parts of a file for itself, from this one on: see
    /// [`LockerState::cut_through`].
    pub(crate) fn begin_cut(&self, first: PartKey, locker: &LockerState) {
        locker.begin_cut(first, self.now_ms.load(Ordering::Relaxed));
    }

    /// What was waited for has been granted.
    pub(crate) fn granted(&self, key: PartKey, mode: Mode, locker: &LockerState) -> Place {
        self.note(locker, key, Want::Mode(mode))
    }

    /// Ends the waits that have no timer and have lasted as long as they may.
    pub(crate) fn expire(&self, name: impl Fn(PartKey) -> Option<PartId>) {
        for waiter in self.table.expired() {
            let waiting_for = match (name(waiter.key), waiter.want) {
                (Some(part), Want::Mode(mode)) => Error::Locked {
                    part,
                    mode,
                    holders: self.holders(waiter.key, waiter.want),
                },
                _ => Error::WouldWait("a part lock"),
            };
            let error = Error::TimedOut {
                waited: self.table.waited(&waiter),
                waiting_for: Box::new(waiting_for),
            };
            self.table.refuse_one(&waiter, &error);
        }
    }

    /// Pins a part for one step, for nobody in particular; `None` while it is being cut off.
    pub(crate) fn try_pin(&self, word: &AtomicWord) -> Option<Word> {
        let pin = Want::Mode(Mode::Pin);
        word.change(|word| word.lock(pin, false))
            .ok()
            .map(|(_, now)| now)
    }

    /// The same, waiting while the part is being cut off, or has as many pins as it can.
    pub(crate) fn ask_pin(
        &self,
        words: &Arc<dyn Words>,
        key: PartKey,
        locker: Option<&Arc<LockerState>>,
    ) -> Result<Option<Waiting>> {
        let request = Request {
            word: words.word(key.index()),
            key,
            want: Want::Mode(Mode::Pin),
            locker,
            within: None,
            step: true,
        };
        match self.table.ask_as(request, words) {
            Asked::Granted => Ok(None),
            Asked::Waits(waiting) => Ok(Some(waiting)),
            Asked::Full | Asked::TooManyWaiters => Err(Error::WouldWait("a pin of the part")),
        }
    }

    /// Gives back what was granted.
    #[inline(always)]
    pub(crate) fn release(&self, word: &AtomicWord, key: PartKey, want: Want) {
        self.table.release(word, key, want);
    }

    /// Takes a part off its locker's list and gives it back.
    #[inline(always)]
    pub(crate) fn unlock(
        &self,
        word: &AtomicWord,
        key: PartKey,
        want: Want,
        locker: &LockerState,
        place: Place,
    ) {
        locker.remove(place);
        self.release(word, key, want);
    }

    /// Somebody starts, or stops, waiting for a part to be let go of: see [`Idle::want`].
    pub(crate) fn want_idle(&self, on: bool) {
        self.idle.want(on);
    }

    /// Everyone in a part's line is told that it is no more.
    pub(crate) fn refuse(&self, key: PartKey, error: &Error) {
        self.table.refuse(key, |_| true, |_| error.clone());
    }

    /// Whether anybody waits for a part.
    pub(crate) fn waiting(&self) -> u64 {
        self.table.waiting()
    }

    /// Waits for the end of a cut, so that a deadlock with who cuts is found.
    pub(crate) async fn until_uncut(
        &self,
        file: u32,
        locker: Option<&LockerState>,
        uncut: impl Future<Output = ()>,
    ) {
        let _listed = locker.map(|locker| {
            let mut list = self.uncut.lock();
            list.tickets += 1;
            let ticket = list.tickets;
            let wait = CutWait {
                ticket,
                locker: locker.id,
                file,
            };
            list.waits.insert(ticket, wait);
            let all = list.waits.len() as u64;
            self.uncut_waits.store(all, Ordering::Release);
            UntilUncut(self, ticket)
        });
        uncut.await;
    }

    pub(super) fn until_uncut_now(&self) -> Vec<CutWait> {
        match self.uncut_waits.load(Ordering::Acquire) {
            0 => Vec::new(),
            _ => self.uncut.lock().waits.values().copied().collect(),
        }
    }

    /// Whether there may be a deadlock at all.
    pub(crate) fn may_be_stuck(&self) -> bool {
        self.table.waiting() + self.uncut_waits.load(Ordering::Acquire) > 1
    }

    fn held_for(&self, held: &Held) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(held.since_ms))
    }

    /// Who holds a part in a mode that keeps `want` out.
    pub(crate) fn holders(&self, key: PartKey, want: Want) -> Vec<Holder> {
        let mut holders: Vec<_> = self
            .lockers
            .holders(key)
            .into_iter()
            .filter(|(_, held)| held.want.conflicts_with(want))
            .map(|(locker, held)| locker.describe(held.want, self.held_for(&held)))
            .collect();
        holders.truncate(MAX_NAMED);
        holders
    }

    /// Everything that is held, with the part's name as `name` has it.
    pub(crate) fn all_held(
        &self,
        name: impl Fn(PartKey) -> Option<PartId>,
    ) -> Vec<(PartId, Holder)> {
        let mut all = Vec::new();
        for locker in self.lockers.live() {
            for held in locker.held() {
                let holder = locker.describe(held.want, self.held_for(&held));
                all.extend(name(held.key).map(|part| (part, holder)));
            }
        }
        all
    }

    /// The refusal of a lock that others have.
    pub(crate) fn busy(
        &self,
        part: PartId,
        key: PartKey,
        mode: Mode,
        locker: &LockerState,
    ) -> Error {
        match locker.holds(key) {
            Some(held) => locker.already_holds(part, &held),
            None => Error::Locked {
                part,
                mode,
                holders: self.holders(key, Want::Mode(mode)),
            },
        }
    }

    /// Whether a locker waits for a part.
    pub(crate) fn is_waiting(&self, locker: u64) -> bool {
        self.table
            .waiters()
            .any(|waiter| waiter.locker == Some(locker))
    }

    /// Who waits for what, and since when: for the stall report.
    pub(crate) fn waits(&self, most: usize) -> Vec<(PartKey, String)> {
        self.table
            .waiters()
            .take(most)
            .map(|waiter| {
                let locker = waiter.locker.and_then(|id| self.lockers.get(id));
                let name = locker
                    .as_ref()
                    .map_or("a read or write", |l| l.name.as_str());
                let holders: Vec<String> = self
                    .holders(waiter.key, waiter.want)
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                let since = self.table.waited(&waiter);
                (
                    waiter.key,
                    format!("{name:?} for {since:?}, held by {holders:?}"),
                )
            })
            .collect()
    }
}
