//! What may be written now, and what waits for room.
//!
//! Owns: taking a group from the inbox, the order in which records wait for disk room, and saying
//! that room is short. The arithmetic is `room.rs`.
//!
//! Invariants:
//!
//! 1. Owners begin in the order in which they were appended, but for vital ones. Notes and ends
//!    do not wait for owners that do, except for those of their own.
//! 2. A record that waits has not been written anywhere.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::commit::Core;
use super::frame::What;
use super::record::Effect;
use super::room::Room;
use super::shared::{Record, Shared, State};

impl Core {
    /// Takes a group from the inbox.
    pub(super) fn take(&mut self, shared: &Shared) -> (bool, bool) {
        let mut inbox = shared.inbox.lock();
        let group = &mut self.incoming;
        let mut bytes = 0;
        while let Some(record) = inbox.records.front() {
            let next = record.frame_bytes();
            if !group.is_empty() && bytes + next > shared.options.group_bytes {
                break;
            }
            bytes += next;
            inbox.bytes = inbox.bytes.saturating_sub(next);
            group.extend(inbox.records.pop_front());
        }
        // A flush covers what is still behind: it stays asked for until that was taken.
        let force = inbox.force && inbox.records.is_empty();
        inbox.force &= !force;
        if std::mem::take(&mut inbox.poke) {
            *shared.spare_error.lock() = None;
            self.reclaimer.paused = false;
        }
        (force, inbox.state == State::Sealing)
    }

    /// The figures for [`Room`].
    pub(super) fn room(&self, shared: &Shared) -> Room {
        let index = shared.index.lock();
        Room {
            segment_bytes: shared.options.segment_bytes,
            end_bytes: shared.end_bytes(),
            active_rest: self
                .active
                .as_ref()
                .map_or(0, |active| active.limit - active.offset),
            spares: shared.spares.lock().len() as u64,
            owners: index.len() + self.fresh.len() as u64,
            oldest_live: index.oldest().map_or(0, |segment| segment.live),
            planned: self.queue.iter().map(Record::frame_bytes).sum(),
        }
    }

    /// Moves what may be written into the queue.
    pub(super) fn admit(&mut self, shared: &Shared) {
        let mut room = self.room(shared);
        while let Some(record) = self.begins.front() {
            let bytes = record.frame_bytes();
            if !room.admits_begin(bytes) {
                break;
            }
            if let Some(record) = self.begins.pop_front() {
                self.admit_begin(&mut room, record);
            }
        }
        for record in std::mem::take(&mut self.held) {
            self.admit_other(&mut room, record);
        }
        for record in std::mem::take(&mut self.incoming) {
            let bytes = record.frame_bytes();
            if record.what != What::Effect(Effect::Begin) {
                self.admit_other(&mut room, record);
            } else if (record.vital && room.admits_vital(2 * bytes))
                || (self.begins.is_empty() && room.admits_begin(bytes))
            {
                self.admit_begin(&mut room, record);
            } else {
                self.begins.push_back(record);
            }
        }
    }

    pub(super) fn admit_begin(&mut self, room: &mut Room, record: Record) {
        room.planned += record.frame_bytes();
        room.owners += 1;
        self.fresh.insert(record.location);
        self.queue.push_back(record);
    }

    pub(super) fn admit_other(&mut self, room: &mut Room, record: Record) {
        let owner = record.owner();
        let bytes = record.frame_bytes();
        if self
            .begins
            .binary_search_by_key(&owner, |begin| begin.location)
            .is_ok()
        {
            // Its owner has not begun yet.
            self.held.push_back(record);
            return;
        }
        if matches!(record.what, What::Effect(Effect::Note { .. })) {
            if !record.sync && !room.admits_optional(bytes) {
                self.finished.push(record.location);
                return;
            }
            let fits = room.admits_note(bytes) || (record.vital && room.admits_vital(bytes));
            if record.sync && !fits {
                self.held.push_back(record);
                return;
            }
        }
        room.planned += bytes;
        self.queue.push_back(record);
    }

    /// There was no room after all: owners that have not begun wait again, so that what is
    /// behind them can go on. Whether any did.
    pub(super) fn put_back(&mut self) -> bool {
        let waits = |record: &Record| {
            let begins = record.what == What::Effect(Effect::Begin);
            begins && record.reported && !record.written && !record.vital
        };
        if !self.queue.iter().any(waits) {
            return false;
        }
        let (begins, rest): (VecDeque<_>, VecDeque<_>) = self.queue.drain(..).partition(waits);
        for record in begins.into_iter().rev() {
            self.fresh.remove(&record.location);
            self.begins.push_front(record);
        }
        let begins = &self.begins;
        let (held, rest): (VecDeque<_>, VecDeque<_>) = rest.into_iter().partition(|record| {
            record.reported
                && begins
                    .binary_search_by_key(&record.owner(), |begin| begin.location)
                    .is_ok()
        });
        self.held.extend(held);
        self.queue = rest;
        true
    }

    /// Whether another spare is wanted; says so when room becomes short, and when it is back.
    pub(super) fn judge_room(&mut self, shared: &Shared) -> bool {
        let waiting: u64 = self
            .begins
            .iter()
            .chain(&self.held)
            .map(Record::frame_bytes)
            .sum();
        let wants = self.stalled || self.room(shared).wants_spare(waiting);
        let failed = shared.spare_error.lock().is_some();
        let blocked = self.stalled || !self.begins.is_empty() || !self.held.is_empty();
        let short = failed && blocked;
        if shared.short.swap(short, Ordering::Relaxed) != short {
            if short {
                tracing::warn!("the journal is short of disk room: new tasks wait");
            }
            if let Some(sink) = shared.sink() {
                sink.space(short);
            }
        }
        wants && !failed
    }
}
