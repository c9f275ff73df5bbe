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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::mutant::{Mutant, is};
use crate::remote::RemoteError;
use crate::sync::Mutex;

use super::Parts;
use super::file::PartFile;
use super::id::{PartId, PartKey};
use super::pack::PackBytes;

/// Parts of one pack at most: so many that a pack is full by its bytes.
const BATCH: usize = 4096;
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
    /// A file that is dropped is not kept open by what waits here.
    file: Weak<PartFile>,
    key: PartKey,
    bytes: u32,
    since: Instant,
}

impl Dirty {
    fn new(file: &Arc<PartFile>, index: u32, since: Instant) -> Self {
        Self {
            file: Arc::downgrade(file),
            key: file.key(index),
            bytes: file.part_bytes,
            since,
        }
    }
}

/// A part that is captured now.
#[derive(Debug)]
struct Now {
    file: Arc<PartFile>,
    index: u32,
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
        let Some(failing) = self.failing.get_mut(&dirty.key) else {
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
        let dirty = Dirty::new(file, index, Instant::now());
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
                state.delay(Dirty::new(file, index, now), due);
            }
        }
        self.moved();
    }

    pub(crate) fn failing(&self, most: usize) -> Vec<FailingPart> {
        let state = self.state.lock();
        let failing = state.failing.values().take(most);
        failing.map(|failing| failing.part.clone()).collect()
    }

    /// Whatever waits because it failed is tried again now: a checkpoint needs it.
    pub(crate) fn retry_now(&self) {
        {
            let state = &mut *self.state.lock();
            let now = Instant::now();
            for failing in state.failing.values_mut() {
                failing.due = now;
            }
            let delayed = std::mem::take(&mut state.delayed);
            for dirty in delayed.into_values().rev() {
                state.dirty.push_front(dirty);
            }
        }
        self.wake.notify_one();
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

    /// What is to be captured now, a pack of at most `bytes`, or one part; and when to look again,
    /// if nothing calls earlier.
    fn take(
        &self,
        early: bool,
        age: Duration,
        now: Instant,
        bytes: u64,
    ) -> (Vec<Dirty>, Option<Instant>) {
        let state = &mut *self.state.lock();
        let mut taken: Vec<Dirty> = Vec::new();
        let (mut room, mut count) = (bytes, 0);
        let mut fits = |next: &Dirty| {
            let each = u64::from(next.bytes);
            let fits = count == 0 || (count < BATCH && each <= room);
            if fits {
                room = room.saturating_sub(each);
                count += 1;
            }
            fits
        };
        // Whatever has waited for its time is due, and in nobody's way.
        while let Some(due) = state.delayed.first_entry() {
            if due.key().0 > now || !fits(due.get()) {
                break;
            }
            let due = due.remove();
            taken.extend(state.due(due, now));
        }
        let mut is_due = |dirty: &mut Dirty| (early || dirty.since + age <= now) && fits(dirty);
        while let Some(dirty) = state.dirty.pop_front_if(&mut is_due) {
            taken.extend(state.due(dirty, now));
        }
        self.in_hand.store(taken.len(), Ordering::Release);
        let by_age = state.dirty.front().map(|dirty| dirty.since + age);
        let delayed = state.delayed.keys().next().map(|(due, _)| *due);
        (taken, by_age.into_iter().chain(delayed).min())
    }

    fn again(&self, dirty: Dirty, at: Instant) {
        self.state.lock().delay(dirty, at);
    }

    /// There is nothing to name their pack by.
    fn later(&self, parts: &[Now]) {
        let now = Instant::now();
        for Now { file, index } in parts {
            self.again(Dirty::new(file, *index, now), now + AGAIN * 20);
        }
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
            let early = all
                || hurry
                || used * 2 >= self.dirty.limit()
                || self.dirty.is_wanted()
                || self.line.is_owed();
            let now = Instant::now();
            let age = self.config.max_dirty_age;
            let (taken, due) = self
                .flusher
                .take(early, age, now, self.config.pack_target());
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
                    self.close_all_idle_intents();
                }
                self.flusher.moved.notify_waiters();
                let beat = closed + every;
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = wake => (),
                    () = tokio::time::sleep_until(due.unwrap_or(beat).min(beat)) => (),
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.flush_pack(taken) => (),
            }
            self.flusher.in_hand.store(0, Ordering::Release);
        }
    }

    /// Whether a part that was taken is captured now.
    fn is_due(&self, now: &Now) -> Option<bool> {
        let word = now.file.header.entry(now.index).word.get();
        let is_over = self.failed.get().is_some() || self.fenced.get().is_some();
        if !word.is_dirty() || is_over {
            return None;
        }
        Some(word.captures() < CAPTURES)
    }

    async fn flush_pack(self: &Arc<Self>, taken: Vec<Dirty>) {
        let mut parts = Vec::with_capacity(taken.len());
        for dirty in taken {
            let Some(file) = dirty.file.upgrade() else {
                continue;
            };
            let index = dirty.key.index();
            let now = Now { file, index };
            match self.is_due(&now) {
                None => {}
                Some(true) => parts.push(now),
                Some(false) => self.flusher.again(dirty, Instant::now() + AGAIN),
            }
        }
        if parts.is_empty() {
            return;
        }
        if let Err(error) = self.epochs.ready(&self.journal, &self.random).await {
            tracing::debug!(%error, "no epoch to write under");
            self.flusher.later(&parts);
            return;
        }
        let each = parts.iter().map(|now| u64::from(now.file.part_bytes));
        let bytes: u64 = each.sum();
        let blocked = || {
            self.flusher.blocked.store(true, Ordering::Release);
            self.flusher.moved.notify_waiters();
        };
        // What a checkpoint waits for has room that nothing else has.
        let owed = |now: &Now| self.line.needs(now.file.key(now.index));
        let by = parts.iter().any(owed).then(|| Arc::clone(&self.ours));
        let room = match is(Mutant::ImageRoomNotWaitedFor) {
            true => Ok(self.images.force(bytes)),
            false => self.images.take(bytes, by.as_ref(), blocked).await,
        };
        self.flusher.blocked.store(false, Ordering::Release);
        let Ok(mut room) = room else { return };
        let Ok(issued) = self.epochs.issue() else {
            self.flusher.later(&parts);
            return;
        };
        let on = Arc::clone(self);
        let capture = move || {
            let mut pack = PackBytes::new(issued, usize::try_from(bytes).unwrap_or(0));
            let (mut captured, mut failed) = (Vec::with_capacity(parts.len()), Vec::new());
            for Now { file, index } in parts {
                let share = room.split(file.part_bytes.into());
                match on.capture(&file, index, &mut pack, share) {
                    Ok(image) => captured.extend(image),
                    Err(error) => failed.push((file, index, error)),
                }
            }
            let image = (!captured.is_empty()).then(|| on.pack(pack, captured));
            (image, failed)
        };
        let (image, failed) = match self.io.run(capture).await {
            Ok(done) => done,
            Err(error) => return tracing::error!(%error, "a pack was not made"),
        };
        for (file, index, error) in failed {
            let error = RemoteError::transient("capture").with_message(&error.to_string());
            self.part_failed(&file, index, &error);
        }
        if let Some(image) = image {
            crate::crash_point::crash_point("pack.captured");
            self.queue.submit_image(image);
        }
    }

    /// Parts that S3 does not have as they are here.
    pub(crate) fn owed(&self) -> u64 {
        let mut owed = 0;
        for file in self.files_with_intents() {
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
            biased;
            () = tokio::time::sleep_until(deadline) => return,
            _ = self.io.run(move || parts.latches.pass_all()) => (),
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
            if !moves || self.failed.get().is_some() || self.fenced.get().is_some() {
                self.close_all_idle_intents();
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => return,
                () = moved => (),
                () = tokio::time::sleep(AGAIN) => (),
            }
        }
    }
}
