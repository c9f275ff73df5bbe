//! Which locations are durable, and who waits for one.
//!
//! Owns: the durable location, what is durable ahead of it, what is void, and the waiters. Does
//! not own: how records become durable (`commit.rs`).
//!
//! Invariants:
//!
//! 1. A location has one answer, for good: durable, void or undetermined.
//! 2. Every waiter is woken by each of them, and by the journal's failure or end; a waiter whose
//!    location is not concerned is not woken.
//! 3. What is durable ahead, and what is void, are ranges: their number is bounded by the number
//!    of records that wait for room, and by [`MAX_VOID_RANGES`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::error::{JournalError, JournalFailure};
use super::record::Location;

use crate::sync::Mutex;

/// Ranges of void locations that are remembered. Each is a payload that the disk refused: when
/// there are more, the journal stops.
const MAX_VOID_RANGES: usize = 10_000;

/// A set of locations as disjoint, inclusive ranges.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<Location, Location>);

impl Ranges {
    pub(super) fn contains(&self, location: Location) -> bool {
        self.0
            .range(..=location)
            .next_back()
            .is_some_and(|(_, end)| *end >= location)
    }

    pub(super) fn insert(&mut self, location: Location) {
        if self.contains(location) {
            return;
        }
        let mut start = location;
        let mut end = location;
        if let Some((before, last)) = self.0.range(..location).next_back().map(|(a, b)| (*a, *b))
            && last.checked_add(1) == Some(location)
        {
            start = before;
        }
        if let Some(after) = location
            .checked_add(1)
            .and_then(|next| self.0.remove(&next))
        {
            end = after;
        }
        self.0.insert(start, end);
    }

    /// Forgets everything up to `location`.
    pub(super) fn forget_to(&mut self, location: Location) {
        while let Some((start, end)) = self.0.first_key_value().map(|(a, b)| (*a, *b)) {
            if start > location {
                break;
            }
            self.0.remove(&start);
            if end > location {
                self.0.insert(location + 1, end);
                break;
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn first_in(&self, from: Location, to: Location) -> bool {
        self.0
            .range(..=to)
            .next_back()
            .is_some_and(|(_, end)| *end >= from)
    }
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    durable: Location,
    ahead: Ranges,
    void: Ranges,
    void_cause: Option<JournalFailure>,
    failed: Option<JournalFailure>,
    /// How sealing ended.
    ended: Option<Result<(), JournalError>>,
    waiters: BTreeMap<(Location, u64), Waker>,
    /// Up to here all is written that is not held back: it survives the process.
    written: Location,
    for_written: BTreeMap<(Location, u64), Waker>,
    next_waiter: u64,
}

impl Watch {
    pub(super) fn new(durable: Location) -> Self {
        Self {
            durable,
            ..Self::default()
        }
    }

    pub(super) fn durable(&self) -> Location {
        self.durable
    }

    pub(super) fn failed(&self) -> Option<&JournalFailure> {
        self.failed.as_ref()
    }

    /// The answer for one location, if there is one.
    fn one(&self, location: Location) -> Option<Result<(), JournalError>> {
        if self.void.contains(location) {
            return Some(
                self.void_cause
                    .clone()
                    .map_or(Ok(()), |c| Err(JournalError::Void(c))),
            );
        }
        if location <= self.durable || self.ahead.contains(location) {
            return Some(Ok(()));
        }
        if let Some(cause) = &self.failed {
            return Some(Err(JournalError::Undetermined(cause.clone())));
        }
        self.ended.as_ref().map(|_| Err(JournalError::Closed))
    }

    /// The answer for all locations in `from..=to`, if there is one.
    fn all(&self, from: Location, to: Location) -> Option<Result<(), JournalError>> {
        if self.void.first_in(from, to)
            && let Some(cause) = &self.void_cause
        {
            return Some(Err(JournalError::Void(cause.clone())));
        }
        if to <= self.durable {
            return Some(Ok(()));
        }
        if let Some(cause) = &self.failed {
            return Some(Err(JournalError::Undetermined(cause.clone())));
        }
        self.ended.as_ref().map(|_| Err(JournalError::Closed))
    }

    fn answer(&self, what: Waits) -> Option<Result<(), JournalError>> {
        match what {
            Waits::One(location) => self.one(location),
            Waits::Written(location) if location <= self.written => Some(Ok(())),
            Waits::Written(location) => self.one(location),
            Waits::All { from, to } => self.all(from, to),
            Waits::End => self.ended.clone(),
        }
    }

    /// Everything up to `upto` is written, but for what waits for room. Returns who to wake.
    pub(super) fn set_written(&mut self, upto: Location) -> Vec<Waker> {
        self.written = self.written.max(upto);
        let later = self.for_written.split_off(&(upto.saturating_add(1), 0));
        let woken = std::mem::replace(&mut self.for_written, later);
        woken.into_values().collect()
    }

    /// Everyone, whatever they wait for.
    fn all_waiters(&mut self) -> Vec<Waker> {
        let written = std::mem::take(&mut self.for_written).into_values();
        let durable = std::mem::take(&mut self.waiters).into_values();
        durable.chain(written).collect()
    }

    fn waiters_of(&mut self, what: Waits) -> &mut BTreeMap<(Location, u64), Waker> {
        match what {
            Waits::Written(_) => &mut self.for_written,
            _ => &mut self.waiters,
        }
    }

    /// These are durable now, and all up to `upto` is, or was reported otherwise. Returns who to
    /// wake, and those of `locations` that lie above `upto`.
    pub(super) fn advance(
        &mut self,
        locations: &[Location],
        upto: Location,
    ) -> (Vec<Waker>, Vec<Location>) {
        let mut wake = Vec::new();
        let mut ahead = Vec::new();
        for &location in locations {
            if location > upto {
                self.ahead.insert(location);
                ahead.push(location);
                self.collect(location, &mut wake);
            }
        }
        if upto > self.durable {
            self.durable = upto;
            self.ahead.forget_to(upto);
            let later = self.waiters.split_off(&(upto.saturating_add(1), 0));
            wake.extend(std::mem::replace(&mut self.waiters, later).into_values());
            wake.extend(self.set_written(upto));
        }
        (wake, ahead)
    }

    fn collect(&mut self, location: Location, wake: &mut Vec<Waker>) {
        let keys: Vec<_> = self
            .waiters
            .range((location, 0)..=(location, u64::MAX))
            .map(|(key, _)| *key)
            .collect();
        wake.extend(keys.iter().filter_map(|key| self.waiters.remove(key)));
    }

    /// Whether there are more void ranges than are to be remembered.
    pub(super) fn too_many_void(&self) -> bool {
        self.void.len() > MAX_VOID_RANGES
    }

    /// These are void. Returns who to wake.
    pub(super) fn set_void(
        &mut self,
        locations: &[Location],
        cause: &JournalFailure,
    ) -> Vec<Waker> {
        self.void_cause = Some(cause.clone());
        for location in locations {
            self.void.insert(*location);
        }
        // Whoever waits for a range that one of them lies in is concerned as well.
        self.all_waiters()
    }

    pub(super) fn set_failed(&mut self, cause: &JournalFailure) -> Vec<Waker> {
        self.failed.get_or_insert_with(|| cause.clone());
        self.all_waiters()
    }

    pub(super) fn set_ended(&mut self, result: Result<(), JournalError>) -> Vec<Waker> {
        self.ended.get_or_insert(result);
        self.all_waiters()
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Waits {
    One(Location),
    /// That it survives the process, if not the power.
    Written(Location),
    All {
        from: Location,
        to: Location,
    },
    End,
}

impl Waits {
    fn key(self) -> Location {
        match self {
            Self::One(location) | Self::Written(location) => location,
            Self::All { to, .. } => to,
            Self::End => Location::MAX,
        }
    }
}

/// Waits until a location is durable, or will not be.
///
/// # Cancel safety
/// Dropping it cancels the wait and nothing else. It needs no particular executor, and has no
/// deadline of its own: its caller applies one.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct WaitDurable {
    watch: Arc<Mutex<Watch>>,
    what: Waits,
    key: Option<(Location, u64)>,
}

impl WaitDurable {
    pub(super) fn new(watch: Arc<Mutex<Watch>>, what: Waits) -> Self {
        Self {
            watch,
            what,
            key: None,
        }
    }
}

impl Future for WaitDurable {
    type Output = Result<(), JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let watch = &mut *this.watch.lock();
        if let Some(answer) = watch.answer(this.what) {
            if let Some(key) = this.key.take() {
                watch.waiters_of(this.what).remove(&key);
            }
            return Poll::Ready(answer);
        }
        let key = *this.key.get_or_insert_with(|| {
            watch.next_waiter += 1;
            (this.what.key(), watch.next_waiter)
        });
        let waiters = watch.waiters_of(this.what);
        match waiters.get_mut(&key) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                waiters.insert(key, context.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Drop for WaitDurable {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.watch.lock().waiters_of(self.what).remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_are_a_set(
            inserts in proptest::collection::vec(1_u64..60, 0..80), cut in 0_u64..60,
        ) {
            let mut ranges = Ranges::default();
            let mut model = BTreeSet::new();
            for location in inserts {
                ranges.insert(location);
                model.insert(location);
            }
            ranges.forget_to(cut);
            model.retain(|location| *location > cut);
            for location in 0..62 {
                prop_assert_eq!(ranges.contains(location), model.contains(&location));
            }
            let runs = model.iter().filter(|at| !model.contains(&(**at - 1))).count();
            prop_assert_eq!(ranges.len(), runs);
        }
    }
}
