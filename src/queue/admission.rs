//! Admission: who may enter the queue, and how much of it.
//!
//! Owns: the counters of tasks, bytes and disk, and the line of those who wait for room. Does not
//! own: what is done with the room.
//!
//! 1. Tasks, bytes and disk are taken as one: all three or none.
//! 2. First come, first served: a request that fits does not pass one that waits, or a large one
//!    would starve. (This is tokio's `Semaphore`, for three counters at once.)
//! 3. A [`Permit`] gives back what it took when it is dropped, whatever way out was taken.
//! 4. A waiter that leaves gives back what it was granted and had not taken, and whoever fits
//!    next gets it.
//! 5. The reserve (lane `Checkpoint`) is a pool of its own: never lent, and not overdrawn by
//!    recovery, which counts against the common pool only.
//! 6. Memory for bodies is one limit for who submits and for attempts that read; where it is short,
//!    who submits waits until four fifths are reached.
//! 7. What is in quarantine is a pool of its own, and never refused: where it is full nothing new
//!    enters the common pool, except replays, which are what empties it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Limit, Result};
use crate::mutant::{Mutant, is};
use crate::phase::Phase;
use crate::sync::Mutex;

/// What a task takes of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    pub tasks: u64,
    pub bytes: u64,
    pub disk: u64,
    /// Bytes of a body in memory. They are given back on their own, when the body is dropped.
    pub memory: u64,
}

impl Need {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            tasks: self.tasks.saturating_add(other.tasks),
            bytes: self.bytes.saturating_add(other.bytes),
            disk: self.disk.saturating_add(other.disk),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    const fn minus(self, other: Self) -> Self {
        debug_assert!(
            self.tasks >= other.tasks
                && self.bytes >= other.bytes
                && self.disk >= other.disk
                && self.memory >= other.memory,
            "more was given back than had been taken"
        );
        Self {
            tasks: self.tasks.saturating_sub(other.tasks),
            bytes: self.bytes.saturating_sub(other.bytes),
            disk: self.disk.saturating_sub(other.disk),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// The first limit of `max` that is exceeded: which, how much, and the limit.
    const fn over(self, max: Self) -> Option<(Limit, u64, u64)> {
        if self.tasks > max.tasks {
            Some((Limit::Tasks, self.tasks, max.tasks))
        } else if self.bytes > max.bytes {
            Some((Limit::Bytes, self.bytes, max.bytes))
        } else if self.disk > max.disk {
            Some((Limit::DiskBytes, self.disk, max.disk))
        } else if self.memory > max.memory {
            Some((Limit::MemoryBytes, self.memory, max.memory))
        } else {
            None
        }
    }
}

/// Which pool a task takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    Common,
    Reserve,
    /// Nobody waits here.
    Quarantine,
    /// Bodies that attempts read: memory of the common pool, had before anybody else, and by one
    /// of them always.
    Reads,
}

/// Who asks: shutdown lets the holders of holds in for a while longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    Anyone,
    Holder,
}

/// Who is still let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    HoldersOnly(Phase),
    Closed(Phase),
}

#[derive(Debug)]
struct Waiter {
    need: Need,
    asker: Asker,
    replays: bool,
    granted: bool,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Line {
    used: Need,
    max: Need,
    waiters: BTreeMap<u64, Waiter>,
}

#[derive(Debug)]
struct State {
    lines: [Line; 4],
    /// Memory was short: who brings more waits until there is less of it.
    throttled: bool,
    peak_memory: u64,
    next_ticket: u64,
    door: Door,
    paused: bool,
    disk_full: bool,
    /// Nobody enters any more, and why: the journal takes nothing more, or the store is fenced.
    failed: Option<Error>,
    max_waiters: u64,
    /// Moving average of the time between two tasks that leave.
    leaving_every: Duration,
    left_at: Option<Instant>,
    peak: Need,
}

/// The gate of the queue.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
    pressure: AtomicU8,
    dir: std::path::PathBuf,
}

/// Room in the queue; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    pool: Pool,
    need: Need,
}

impl Permit {
    /// Takes the room in memory out of it: that is given back when the body goes.
    pub(crate) fn split_memory(&mut self) -> Self {
        let memory = std::mem::take(&mut self.need.memory);
        Self {
            admission: Arc::clone(&self.admission),
            pool: self.pool,
            need: Need {
                memory,
                ..Need::default()
            },
        }
    }

    /// Takes a part of the room out of it.
    pub(crate) fn split(&mut self, need: Need) -> Self {
        self.need = self.need.minus(need);
        Self {
            admission: Arc::clone(&self.admission),
            pool: self.pool,
            need,
        }
    }

    /// Whether it is room that everybody shares.
    pub(crate) fn is_common(&self) -> bool {
        self.pool == Pool::Common
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.give_back(self.pool, self.need);
    }
}

/// How much is used, of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub used: Need,
    pub peak: Need,
    pub reserve_used: Need,
    pub quarantined: Need,
    /// Bytes of bodies that attempts have read.
    pub reading: u64,
    pub peak_memory: u64,
    pub throttled: bool,
    pub waiters: usize,
}

impl Admission {
    pub(crate) fn new(
        max: Need,
        reserve: Need,
        quarantine: Need,
        max_waiters: u64,
        dir: std::path::PathBuf,
    ) -> Arc<Self> {
        let line = |max| Line {
            max,
            ..Line::default()
        };
        Arc::new(Self {
            state: Mutex::new(State {
                lines: [line(max), line(reserve), line(quarantine), line(max)],
                throttled: false,
                peak_memory: 0,
                next_ticket: 0,
                door: Door::Open,
                paused: false,
                disk_full: false,
                failed: None,
                max_waiters,
                leaving_every: Duration::from_millis(100),
                left_at: None,
                peak: Need::default(),
            }),
            pressure: AtomicU8::new(0),
            dir,
        })
    }

    /// Takes room for a task that was admitted in an earlier life, limits or not.
    pub(crate) fn recover(self: &Arc<Self>, need: Need) -> Permit {
        let mut state = self.state.lock();
        state.take(Pool::Common, need);
        self.publish(&state);
        Permit {
            admission: Arc::clone(self),
            pool: Pool::Common,
            need,
        }
    }

    /// Takes a place in quarantine, limits or not: what cannot go up is kept.
    pub(crate) fn quarantine(self: &Arc<Self>, bytes: u64) -> Permit {
        let need = Need {
            tasks: 1,
            bytes,
            ..Need::default()
        };
        let mut state = self.state.lock();
        let before = state.quarantine_over().is_some();
        state.take(Pool::Quarantine, need);
        if let Some((limit, current, max)) = state.quarantine_over()
            && !before
        {
            tracing::error!(
                dir = %self.dir.display(), %limit, current, max,
                "the quarantine is full: nothing new is admitted until tasks in it are replayed or purged"
            );
        }
        self.publish(&state);
        Permit {
            admission: Arc::clone(self),
            pool: Pool::Quarantine,
            need,
        }
    }

    /// Waits for room, in order. What no wait would help is refused at once.
    pub(crate) fn acquire(self: &Arc<Self>, pool: Pool, asker: Asker, need: Need) -> Acquire {
        Acquire {
            admission: Arc::clone(self),
            pool,
            asker,
            need,
            replays: false,
            ticket: None,
        }
    }

    /// Memory for a body that an attempt reads.
    pub(crate) fn acquire_to_read(self: &Arc<Self>, bytes: u64) -> Acquire {
        let need = Need {
            tasks: 1,
            memory: bytes,
            ..Need::default()
        };
        self.acquire(Pool::Reads, Asker::Anyone, need)
    }

    /// By how much memory would be exceeded with `bytes` more.
    pub(crate) fn memory_over(&self, bytes: u64) -> u64 {
        let state = self.state.lock();
        let max = state.lines[Pool::Common as usize].max.memory;
        state.memory().saturating_add(bytes).saturating_sub(max)
    }

    /// Bytes of bodies that should leave memory now: somebody waits for them.
    pub(crate) fn wanted_memory(&self) -> u64 {
        let state = self.state.lock();
        let waits = |pool: Pool| {
            let mut waiters = state.lines[pool as usize].waiters.values();
            let first = waiters.find(|waiter| !waiter.granted && state.flows(pool, waiter.replays));
            first.map_or(0, |waiter| waiter.need.memory)
        };
        let need = match waits(Pool::Reads) {
            0 => waits(Pool::Common),
            need => need,
        };
        if need == 0 {
            return 0;
        }
        let used = state.memory();
        let above = if state.throttled {
            state.low()
        } else {
            u64::MAX
        };
        let max = state.lines[Pool::Common as usize].max.memory;
        let over = used.saturating_add(need).saturating_sub(max);
        used.saturating_sub(above).max(over)
    }

    /// The same for a task that comes back from quarantine: one that is full is no obstacle.
    pub(crate) fn acquire_to_replay(self: &Arc<Self>, need: Need) -> Acquire {
        let mut acquire = self.acquire(Pool::Common, Asker::Anyone, need);
        acquire.replays = true;
        acquire
    }

    /// Whether nothing new is admitted for what is in quarantine.
    pub(crate) fn quarantine_is_full(&self) -> bool {
        self.state.lock().quarantine_over().is_some()
    }

    /// Why there is no room now.
    pub(crate) fn refusal(&self, pool: Pool, need: Need) -> Error {
        let state = self.state.lock();
        if state.paused {
            return Error::Paused("admission");
        }
        if state.disk_full && pool == Pool::Common {
            return Error::DiskFull {
                path: self.dir.clone(),
            };
        }
        if let Some((limit, current, max)) = state.quarantine_over()
            && pool == Pool::Common
        {
            return Error::QuarantineFull {
                limit,
                current,
                max,
            };
        }
        let line = &state.lines[pool as usize];
        if pool == Pool::Common && need.memory > 0 && state.throttled {
            let retry_after = state.leaving_every.max(Duration::from_millis(1));
            return Error::QueueFull {
                limit: Limit::MemoryBytes,
                current: state.memory(),
                max: line.max.memory,
                retry_after: retry_after.min(Duration::from_secs(60)),
            };
        }
        let ahead = line
            .waiters
            .values()
            .fold(need, |sum, waiter| sum.plus(waiter.need));
        let Some((limit, _, max)) = state.used(pool).plus(ahead).over(line.max) else {
            // There is room: what takes its time is the disk, where a large body goes first.
            return Error::WouldWait("the local disk");
        };
        let current = match limit {
            Limit::Bytes => line.used.bytes,
            Limit::DiskBytes => line.used.disk,
            Limit::MemoryBytes => state.used(pool).memory,
            _ => line.used.tasks,
        };
        let turns = u32::try_from(line.waiters.len() + 1).unwrap_or(u32::MAX);
        let retry_after = state
            .leaving_every
            .saturating_mul(turns)
            .clamp(Duration::from_millis(1), Duration::from_secs(60));
        Error::QueueFull {
            limit,
            current,
            max,
            retry_after,
        }
    }

    /// From 0 (empty) to 100 (full): one atomic load.
    pub(crate) fn pressure(&self) -> u8 {
        self.pressure.load(Ordering::Relaxed)
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            used: state.lines[0].used,
            peak: state.peak,
            reserve_used: state.lines[1].used,
            quarantined: state.lines[2].used,
            reading: state.lines[3].used.memory,
            peak_memory: state.peak_memory,
            throttled: state.throttled,
            waiters: state.lines.iter().map(|line| line.waiters.len()).sum(),
        }
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.update(|state| state.paused = paused);
    }

    /// The journal has, or has not, room for new records.
    pub(crate) fn disk_full(&self, full: bool) {
        self.update(|state| state.disk_full = full);
    }

    /// The journal has failed for good: nobody enters, and who waits is told why.
    pub(crate) fn fail(&self, cause: &str) {
        self.refuse(&Error::JournalFailed(cause.to_owned()));
    }

    /// Nobody enters any more, and who waits is told why.
    pub(crate) fn refuse(&self, error: &Error) {
        self.update(|state| {
            state.failed.get_or_insert_with(|| error.clone());
        });
    }

    /// Shutdown has begun: only holders of holds may enter.
    pub(crate) fn holders_only(&self, phase: Phase) {
        self.update(|state| {
            if state.door == Door::Open {
                state.door = Door::HoldersOnly(phase);
            }
        });
    }

    /// Nobody may enter any more.
    pub(crate) fn close(&self, phase: Phase) {
        self.update(|state| state.door = Door::Closed(phase));
    }

    /// The phase that shutdown is in, once nobody may enter any more.
    pub(crate) fn closed(&self) -> Option<Phase> {
        match self.state.lock().door {
            Door::Closed(phase) => Some(phase),
            Door::Open | Door::HoldersOnly(_) => None,
        }
    }

    /// Whether this asker may still enter.
    pub(crate) fn open_for(&self, asker: Asker) -> Result<()> {
        self.state.lock().open_for(asker)
    }

    fn give_back(&self, pool: Pool, need: Need) {
        self.update(|state| {
            let line = &mut state.lines[pool as usize];
            line.used = line.used.minus(need);
            if need.tasks == 0 || matches!(pool, Pool::Quarantine | Pool::Reads) {
                return;
            }
            let now = Instant::now();
            if let Some(before) = state.left_at.replace(now) {
                let gap = now
                    .saturating_duration_since(before)
                    .min(Duration::from_secs(60));
                state.leaving_every = (state.leaving_every * 7 + gap) / 8;
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state.lock();
            change(&mut state);
            let wakers = state.grant();
            self.publish(&state);
            wakers
        };
        for waker in wakers {
            waker.wake();
        }
    }

    fn publish(&self, state: &State) {
        let line = &state.lines[Pool::Common as usize];
        let percent = |used: u64, max: u64| {
            u8::try_from((u128::from(used) * 100 / u128::from(max.max(1))).min(100)).unwrap_or(100)
        };
        let pressure = percent(line.used.tasks, line.max.tasks)
            .max(percent(line.used.bytes, line.max.bytes))
            .max(percent(line.used.disk, line.max.disk));
        let held = state.paused || state.disk_full || state.throttled;
        let pressure = if held || state.quarantine_over().is_some() {
            100
        } else {
            pressure
        };
        self.pressure.store(pressure, Ordering::Relaxed);
    }
}

impl State {
    fn take(&mut self, pool: Pool, need: Need) {
        let line = &mut self.lines[pool as usize];
        line.used = line.used.plus(need);
        self.peak_memory = self.peak_memory.max(self.memory());
        let line = &self.lines[pool as usize];
        if pool == Pool::Common {
            let used = line.used;
            self.peak.tasks = self.peak.tasks.max(used.tasks);
            self.peak.bytes = self.peak.bytes.max(used.bytes);
            self.peak.disk = self.peak.disk.max(used.disk);
        }
    }

    fn open_for(&self, asker: Asker) -> Result<()> {
        match (self.door, &self.failed) {
            (Door::HoldersOnly(phase), _) if asker != Asker::Holder => {
                Err(Error::ShuttingDown { phase })
            }
            (Door::Closed(phase), _) => Err(Error::ShuttingDown { phase }),
            (_, Some(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn lets_all_in(&self) -> bool {
        self.door == Door::Open && self.failed.is_none()
    }

    /// Whether room is given out at all in this pool.
    fn flows(&self, pool: Pool, replays: bool) -> bool {
        if pool == Pool::Reads {
            return true;
        }
        let no_disk = self.disk_full && pool == Pool::Common;
        let full = pool == Pool::Common && !replays && self.quarantine_over().is_some();
        !self.paused && !no_disk && !full
    }

    /// The limit that the quarantine has reached: which, how much is in it, and the limit.
    fn quarantine_over(&self) -> Option<(Limit, u64, u64)> {
        let Line { used, max, .. } = &self.lines[Pool::Quarantine as usize];
        if used.tasks >= max.tasks {
            Some((Limit::QuarantinedTasks, used.tasks, max.tasks))
        } else if used.bytes >= max.bytes {
            Some((Limit::QuarantinedBytes, used.bytes, max.bytes))
        } else {
            None
        }
    }

    /// Whether nobody waits for room that would be given to them first. Who was granted it and
    /// has not looked yet does not count: nobody would wake a newcomer that stood behind.
    fn nobody_before(&self, pool: Pool) -> bool {
        let mut waiters = self.lines[pool as usize].waiters.values();
        !waiters.any(|waiter| !waiter.granted && self.flows(pool, waiter.replays))
    }

    fn fits(&self, pool: Pool, need: Need) -> bool {
        let line = &self.lines[pool as usize];
        if pool == Pool::Reads && line.used.tasks == 0 {
            return true;
        }
        let held = self.throttled && pool == Pool::Common && need.memory > 0;
        let over = self.used(pool).plus(need).over(line.max);
        is(Mutant::AdmissionNotWaitedFor) || (over.is_none() && !held)
    }

    /// Somebody waits for room: if it is memory that is short, who brings more waits until there
    /// is clearly less of it.
    fn waits_for(&mut self, pool: Pool, need: Need) {
        let max = self.lines[Pool::Common as usize].max.memory;
        let short = self.memory().saturating_add(need.memory) > max;
        if short && need.memory > 0 && matches!(pool, Pool::Common | Pool::Reads) {
            self.throttled = self.memory() > self.low();
        }
    }

    /// Bytes of bodies in memory, but for those of the reserve.
    fn memory(&self) -> u64 {
        let of = |pool: Pool| self.lines[pool as usize].used.memory;
        of(Pool::Common).saturating_add(of(Pool::Reads))
    }

    /// Where memory is not short any more.
    fn low(&self) -> u64 {
        let max = self.lines[Pool::Common as usize].max.memory;
        u64::try_from(u128::from(max) * 4 / 5).unwrap_or(max)
    }

    /// What is used of a pool's limits: its memory is shared with who reads.
    fn used(&self, pool: Pool) -> Need {
        let used = self.lines[pool as usize].used;
        match pool {
            Pool::Common => Need {
                memory: self.memory(),
                ..used
            },
            Pool::Reads => Need {
                memory: self.memory(),
                ..Need::default()
            },
            Pool::Reserve | Pool::Quarantine => used,
        }
    }

    /// Gives room to those who wait, in order, as far as it goes; returns whom to wake. Those who
    /// lost their right to wait are woken too.
    fn grant(&mut self) -> Vec<Waker> {
        let mut wake = Vec::new();
        self.throttled &= self.memory() > self.low();
        for pool in [Pool::Reads, Pool::Common, Pool::Reserve] {
            let tickets: Vec<u64> = if self.lines[pool as usize].waiters.is_empty() {
                continue;
            } else if self.lets_all_in() || pool == Pool::Reads {
                Vec::new()
            } else {
                let line = &self.lines[pool as usize];
                let lost =
                    |waiter: &Waiter| !waiter.granted && self.open_for(waiter.asker).is_err();
                line.waiters
                    .iter()
                    .filter(|(_, w)| lost(w))
                    .map(|(t, _)| *t)
                    .collect()
            };
            for ticket in tickets {
                if let Some(waiter) = self.lines[pool as usize].waiters.remove(&ticket)
                    && !is(Mutant::DoorClosesInSilence)
                {
                    wake.push(waiter.waker);
                }
            }
            while let Some((ticket, need)) = self.lines[pool as usize]
                .waiters
                .iter()
                .find(|(_, waiter)| !waiter.granted && self.flows(pool, waiter.replays))
                .map(|(ticket, waiter)| (*ticket, waiter.need))
            {
                if !self.fits(pool, need) {
                    self.waits_for(pool, need);
                    break;
                }
                self.take(pool, need);
                if let Some(waiter) = self.lines[pool as usize].waiters.get_mut(&ticket) {
                    waiter.granted = true;
                    wake.push(waiter.waker.clone());
                }
            }
        }
        wake
    }
}

/// The future of [`Admission::acquire`].
#[derive(Debug)]
pub(crate) struct Acquire {
    admission: Arc<Admission>,
    pool: Pool,
    asker: Asker,
    need: Need,
    replays: bool,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Result<Permit>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (pool, need) = (this.pool, this.need);
        let mut state = this.admission.state.lock();
        let granted = |admission: &Arc<Admission>| {
            Poll::Ready(Ok(Permit {
                admission: Arc::clone(admission),
                pool,
                need,
            }))
        };
        let line = pool as usize;
        if let Some(ticket) = this.ticket {
            match state.lines[line].waiters.get_mut(&ticket) {
                Some(waiter) if waiter.granted => {
                    state.lines[line].waiters.remove(&ticket);
                    this.ticket = None;
                    return granted(&this.admission);
                }
                Some(waiter) => {
                    waiter.waker.clone_from(context.waker());
                    return Poll::Pending;
                }
                // Sent away by a closing door.
                None => this.ticket = None,
            }
        }
        if pool != Pool::Reads {
            state.open_for(this.asker)?;
        }
        if let Some((limit, size, max)) = need.over(state.lines[line].max)
            && pool != Pool::Reads
        {
            return Poll::Ready(Err(Error::TooLarge { limit, size, max }));
        }
        let flows = state.flows(pool, this.replays);
        if flows && state.nobody_before(pool) && state.fits(pool, need) {
            state.take(pool, need);
            this.admission.publish(&state);
            return granted(&this.admission);
        }
        state.waits_for(pool, need);
        this.admission.publish(&state);
        let waiting = state.lines[line].waiters.len() as u64;
        if pool != Pool::Reads && waiting >= state.max_waiters {
            return Poll::Ready(Err(Error::QueueFull {
                limit: Limit::Waiters,
                current: waiting,
                max: state.max_waiters,
                retry_after: state
                    .leaving_every
                    .clamp(Duration::from_millis(1), Duration::from_secs(60)),
            }));
        }
        state.next_ticket += 1;
        let ticket = state.next_ticket;
        let waiter = Waiter {
            need,
            asker: this.asker,
            replays: this.replays,
            granted: false,
            waker: context.waker().clone(),
        };
        state.lines[line].waiters.insert(ticket, waiter);
        this.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if is(Mutant::PlaceInQueueKept) {
            return;
        }
        let Some(ticket) = self.ticket else { return };
        let removed = {
            let mut state = self.admission.state.lock();
            state.lines[self.pool as usize].waiters.remove(&ticket)
        };
        match removed {
            Some(waiter) if waiter.granted => self.admission.give_back(self.pool, self.need),
            // Whoever stood behind may fit where this one did not.
            Some(_) => self.admission.update(|_| ()),
            None => (),
        }
    }
}

#[cfg(test)]
mod tests;
