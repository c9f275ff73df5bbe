//! The flusher: dirty parts go to S3 before anybody has to wait for it.
//!
//! Owns: which parts are dirty since when, and which of them is captured next. Does not own: what
//! a capture is (`capture.rs`), or requests.
//!
//! 1. It starts at half of what may be dirty, or when the oldest has been dirty for
//!    `max_dirty_age`, or when somebody waits for room.
//! 2. What is on its way has bounded memory: the images, back-off included.
//! 3. A part that fails for good is *failing*: it stays here and dirty, is named with its cause,
//!    and is tried again with back-off, which no later write of it shortens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::remote::RemoteError;
use crate::sync::Mutex;

use super::Parts;
use super::file::PartFile;
use super::id::{PartId, PartKey};

/// Parts captured on one trip to an I/O thread.
const BATCH: usize = 16;
/// Captures of one part in flight, beyond which it waits.
const CAPTURES: u32 = 2;
/// How long a part waits that has that many.
const AGAIN: Duration = Duration::from_millis(50);

/// A part that S3 refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailingPart {
    /// The part.
    pub part: PartId,
    /// How often in a row.
    pub failures: u32,
    /// Why.
    pub cause: String,
}

/// What is dirty, in the order in which it became so.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    state: Mutex<State>,
    wake: Notify,
    /// Somebody waits for room: age does not matter.
    hurry: AtomicBool,
    /// Everything goes: the store is draining.
    all: AtomicBool,
    /// Parts that were taken out of the line and are not captured yet.
    in_hand: AtomicUsize,
    /// The next capture waits for memory, which images on their way have.
    blocked: AtomicBool,
    /// Something went, or stopped being able to.
    pub(crate) moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    dirty: VecDeque<Dirty>,
    delayed: BTreeMap<(Instant, u64), Dirty>,
    next: u64,
    failing: BTreeMap<PartKey, Failing>,
}

#[derive(Debug)]
struct Dirty {
    file: Arc<PartFile>,
    index: u32,
    since: Instant,
}

#[derive(Debug)]
struct Failing {
    part: FailingPart,
    /// When it may be tried again.
    due: Instant,
    /// It is among those that are delayed until then.
    waits: bool,
}

impl State {
    fn delay(&mut self, dirty: Dirty, until: Instant) {
        self.next += 1;
        self.delayed.insert((until, self.next), dirty);
    }

    /// A part whose turn has come; `None` where it has failed, and waits.
    fn due(&mut self, dirty: Dirty, now: Instant) -> Option<Dirty> {
        let Some(failing) = self.failing.get_mut(&dirty.file.key(dirty.index)) else {
            return Some(dirty);
        };
        if failing.due <= now {
            failing.waits = false;
            return Some(dirty);
        }
        if !std::mem::replace(&mut failing.waits, true) {
            let due = failing.due;
            self.delay(dirty, due);
        }
        None
    }
}

impl Flusher {
    /// A part has become dirty.
    pub(crate) fn dirty(&self, file: &Arc<PartFile>, index: u32) {
        let dirty = Dirty {
            file: Arc::clone(file),
            index,
            since: Instant::now(),
        };
        let first = {
            let mut state = self.state.lock();
            state.dirty.push_back(dirty);
            state.dirty.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// Somebody waits for what is dirty to be in S3.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Everything goes, from here on.
    pub(crate) fn drain(&self) {
        self.all.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(crate) fn moved(&self) {
        self.moved.notify_waiters();
        self.wake.notify_one();
    }

    /// A part failed: it waits.
    fn failed(&self, file: &Arc<PartFile>, index: u32, error: &RemoteError) {
        let now = Instant::now();
        {
            let state = &mut *self.state.lock();
            let failing = state
                .failing
                .entry(file.key(index))
                .or_insert_with(|| Failing {
                    part: FailingPart {
                        part: file.part(index),
                        failures: 0,
                        cause: String::new(),
                    },
                    due: now,
                    waits: false,
                });
            let part = &mut failing.part;
            part.failures = part.failures.saturating_add(1);
            part.cause = crate::queue::task::cut(error.to_string());
            // Of two captures in flight the second adds nothing to the wait.
            if !std::mem::replace(&mut failing.waits, true) {
                let due = now + Duration::from_secs(1) * (1 << part.failures.min(6));
                failing.due = due;
                let dirty = Dirty {
                    file: Arc::clone(file),
                    index,
                    since: now,
                };
                state.delay(dirty, due);
            }
        }
        self.moved();
    }

    pub(crate) fn failing(&self, most: usize) -> Vec<FailingPart> {
        let state = self.state.lock();
        let failing = state.failing.values().take(most);
        failing.map(|failing| failing.part.clone()).collect()
    }

    pub(crate) fn healed(&self, key: PartKey) {
        self.state.lock().failing.remove(&key);
    }

    /// Whether something dirty can still be captured before `deadline`.
    fn may_move(&self, deadline: Instant) -> bool {
        let state = self.state.lock();
        let due = state.delayed.first_key_value();
        self.in_hand.load(Ordering::Acquire) > 0
            || !state.dirty.is_empty()
            || due.is_some_and(|((due, _), _)| *due < deadline)
    }

    /// What is to be captured now; and when to look again, if nothing calls earlier.
    fn take(&self, early: bool, age: Duration, now: Instant) -> (Vec<Dirty>, Option<Instant>) {
        let state = &mut *self.state.lock();
        let mut taken = Vec::new();
        // Whatever has waited for its time is due, and in nobody's way.
        while taken.len() < BATCH
            && let Some(due) = state.delayed.first_entry().filter(|due| due.key().0 <= now)
        {
            let due = due.remove();
            taken.extend(state.due(due, now));
        }
        while taken.len() < BATCH {
            let due = |dirty: &Dirty| early || dirty.since + age <= now;
            match state.dirty.pop_front_if(|dirty| due(dirty)) {
                Some(dirty) => taken.extend(state.due(dirty, now)),
                None => break,
            }
        }
        self.in_hand.store(taken.len(), Ordering::Release);
        let by_age = state.dirty.front().map(|dirty| dirty.since + age);
        let delayed = state.delayed.keys().next().map(|(due, _)| *due);
        (taken, by_age.into_iter().chain(delayed).min())
    }

    fn again(&self, dirty: Dirty, at: Instant) {
        self.state.lock().delay(dirty, at);
    }
}

impl Parts {
    /// S3 refuses a part, or the disk does not read it; nothing, where it was cut off meanwhile.
    pub(crate) fn part_failed(&self, file: &Arc<PartFile>, index: u32, error: &RemoteError) {
        // Under the latch: a cut comes before it, or takes it back.
        let _latch = self.latches.step(file.key(index));
        if file.header.entry(index).word.get().is_dirty() {
            self.flusher.failed(file, index, error);
        }
    }

    /// Captures what is due, until the store stops.
    pub(crate) async fn run_flusher(self: Arc<Self>) {
        let mut closed = Instant::now();
        loop {
            let mut wake = std::pin::pin!(self.flusher.wake.notified());
            wake.as_mut().enable();
            let all = self.flusher.all.load(Ordering::Acquire);
            let (used, _) = self.dirty.used();
            let hurry = self.flusher.hurry.swap(false, Ordering::AcqRel);
            let early = all || hurry || used * 2 >= self.dirty.limit() || self.dirty.is_wanted();
            let now = Instant::now();
            let (taken, due) = self.flusher.take(early, self.config.max_dirty_age, now);
            if taken.is_empty() {
                // What is not dirty and still holds its share: intents without a write. Looked
                // for now and then: each look is at all of them.
                let every = if early {
                    AGAIN
                } else {
                    self.config.max_dirty_age
                };
                if closed + every <= now {
                    closed = now;
                    for file in self.all_files() {
                        self.close_idle_intents(&file);
                    }
                }
                self.flusher.moved.notify_waiters();
                let beat = closed + every;
                tokio::select! {
                    () = wake => (),
                    () = tokio::time::sleep_until(due.unwrap_or(beat).min(beat)) => (),
                    () = self.stop.cancelled() => return,
                }
                continue;
            }
            for dirty in taken {
                tokio::select! {
                    () = self.flush_one(dirty) => (),
                    () = self.stop.cancelled() => return,
                }
                self.flusher.in_hand.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    async fn flush_one(self: &Arc<Self>, dirty: Dirty) {
        let (file, index) = (Arc::clone(&dirty.file), dirty.index);
        let word = file.header.entry(index).word.get();
        if !word.is_dirty() || self.failed.get().is_some() {
            return;
        }
        if word.captures() >= CAPTURES {
            return self.flusher.again(dirty, Instant::now() + AGAIN);
        }
        if let Err(error) = self.epochs.ready(&self.journal, &self.random).await {
            tracing::warn!(%error, "no epoch to write under");
            return self.flusher.again(dirty, Instant::now() + AGAIN * 20);
        }
        let each = u64::from(file.part_bytes);
        let blocked = || {
            self.flusher.blocked.store(true, Ordering::Release);
            self.flusher.moved.notify_waiters();
        };
        let room = self.images.take(each, None, blocked).await;
        self.flusher.blocked.store(false, Ordering::Release);
        let Ok(room) = room else { return };
        let (parts, on) = (Arc::clone(self), Arc::clone(&file));
        let captured = self.io.run(move || parts.capture(&on, index, room)).await;
        match captured.and_then(|captured| captured) {
            Ok(Some(image)) => self.queue.submit_image(image),
            Ok(None) => {}
            Err(error) => {
                let error = RemoteError::transient("capture").with_message(&error.to_string());
                self.part_failed(&file, index, &error);
            }
        }
    }

    /// Parts that S3 does not have as they are here.
    pub(crate) fn owed(&self) -> u64 {
        let mut owed = 0;
        for file in self.all_files() {
            let log = file.log.lock();
            let words = log
                .intents
                .keys()
                .map(|index| file.header.entry(*index).word.get());
            owed += words
                .filter(|word| word.is_dirty() || word.captures() > 0)
                .count() as u64;
        }
        owed
    }

    /// Waits until all that was written is in S3, or what is left cannot get there by itself
    /// before `deadline`.
    pub(crate) async fn flushed(self: &Arc<Self>, deadline: Instant) {
        self.flusher.drain();
        // Steps that were let in before the gate was closed are over after this.
        let parts = Arc::clone(self);
        tokio::select! {
            _ = self.io.run(move || parts.latches.pass_all()) => (),
            () = tokio::time::sleep_until(deadline) => return,
        }
        loop {
            let mut moved = std::pin::pin!(self.flusher.moved.notified());
            moved.as_mut().enable();
            // Memory that has come back is not blocked, though nobody has looked yet.
            let blocked =
                self.flusher.blocked.load(Ordering::Acquire) && self.images.short_by().is_some();
            let moves = (!blocked && self.flusher.may_move(deadline))
                || self.queue.images_can_move(deadline)
                || self.settler.is_busy()
                || self.checkpointing.load(Ordering::Acquire) > 0;
            if !moves || self.failed.get().is_some() {
                for file in self.all_files() {
                    self.close_idle_intents(&file);
                }
                return;
            }
            tokio::select! {
                () = moved => (),
                () = tokio::time::sleep(AGAIN) => (),
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}
