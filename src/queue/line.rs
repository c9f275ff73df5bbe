//! A line of jobs that come back: first come, first served, with back-off.
//!
//! Owns: what is ready, what is in back-off and how many are out. Used for what has no key order
//! and no lanes of its own: loads, and the aborting of multipart uploads.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

/// Jobs of one kind.
#[derive(Debug)]
pub(super) struct Line<T> {
    ready: VecDeque<T>,
    delayed: BTreeMap<(Instant, u64), T>,
    running: usize,
    next: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            running: 0,
            next: 0,
        }
    }
}

impl<T> Line<T> {
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.delayed.len() + self.running
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn push(&mut self, job: T) {
        self.ready.push_back(job);
    }

    /// What has backed off for long enough is ready.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            self.wake_first();
        }
    }

    /// Takes the first of those in back-off out of it.
    pub(super) fn wake_first(&mut self) {
        let first = self.delayed.pop_first();
        self.ready.extend(first.map(|(_, job)| job));
    }

    /// The next job that is still `wanted`; what is not is dropped.
    pub(super) fn take(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        self.take_such(wanted, |_| true)
    }

    /// The same, of those that are `such`.
    pub(super) fn take_such(
        &mut self,
        wanted: impl Fn(&T) -> bool,
        such: impl Fn(&T) -> bool,
    ) -> Option<T> {
        loop {
            let at = self.ready.iter().position(&such)?;
            let job = self.ready.remove(at)?;
            if wanted(&job) {
                self.running += 1;
                return Some(job);
            }
        }
    }

    /// Jobs that wait, ready or in back-off.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.delayed.len()
    }

    /// Whether such a job waits.
    pub(super) fn has(&self, such: impl Fn(&T) -> bool) -> bool {
        self.ready.iter().chain(self.delayed.values()).any(such)
    }

    /// Whether one is ready, or will be before `deadline`.
    pub(super) fn may_move(&self, deadline: Instant) -> bool {
        !self.ready.is_empty() || self.next_due().is_some_and(|due| due < deadline)
    }

    /// Takes out what has waited longest.
    pub(super) fn drop_oldest(&mut self) -> Option<T> {
        let ready = self.ready.pop_front();
        ready.or_else(|| self.delayed.pop_first().map(|(_, job)| job))
    }

    /// Drops what waits and is not `wanted`.
    pub(super) fn prune(&mut self, wanted: impl Fn(&T) -> bool) {
        self.ready.retain(&wanted);
        self.delayed.retain(|_, job| wanted(job));
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// A job came back: again at `until`.
    pub(super) fn retry(&mut self, job: T, until: Instant) {
        self.ended();
        self.next += 1;
        self.delayed.insert((until, self.next), job);
    }

    /// A job came back for good.
    pub(super) fn ended(&mut self) {
        debug_assert!(self.running > 0, "more jobs ended than were taken");
        self.running = self.running.saturating_sub(1);
    }

    /// Takes out all that are not running: there will be no more attempts.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let delayed = std::mem::take(&mut self.delayed).into_values();
        self.ready.drain(..).chain(delayed).collect()
    }
}
