//! What may be written now, and what waits for room.
//!
//! Owns: taking a group from the inbox, the order in which records wait for disk room, and saying
//! that room is short. The arithmetic is `room.rs`.
//!
//! Invariants:
//!
//! 1. Vital records are written in the order in which they were appended, and no owner begins
//!    before those that were appended before it: who waits for the last waits for all of them.
//! 2. Owners begin in the order in which they were appended, but for vital ones, which do not wait
//!    for others. Notes and ends do not wait for owners that do, except for those of their own.
//! 3. A record that waits has not been written anywhere.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::commit::Core;
use super::frame::What;
use super::record::Effect;
use super::room::Room;
use super::shared::{Record, Shared, State};

fn begins(record: &Record) -> bool {
    record.what == What::Effect(Effect::Begin)
}

fn fits_vital(room: &Room, record: &Record) -> bool {
    let bytes = record.frame_bytes();
    match begins(record) {
        true => room.admits_begin(bytes) || room.admits_vital(2 * bytes),
        false => room.admits_note(bytes) || room.admits_vital(bytes),
    }
}

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
        while let Some(record) = self.vitals.pop_front_if(|next| fits_vital(&room, next)) {
            self.admit_now(&mut room, record);
        }
        while self.vitals.is_empty()
            && let fits = (|next: &mut Record| room.admits_begin(next.frame_bytes()))
            && let Some(record) = self.begins.pop_front_if(fits)
        {
            self.admit_now(&mut room, record);
        }
        for record in std::mem::take(&mut self.held) {
            self.admit_other(shared, &mut room, record);
        }
        for record in std::mem::take(&mut self.incoming) {
            if !begins(&record) {
                self.admit_other(shared, &mut room, record);
            } else if record.vital {
                self.admit_vital(&mut room, record);
            } else if self.vitals.is_empty()
                && self.begins.is_empty()
                && room.admits_begin(record.frame_bytes())
            {
                self.admit_now(&mut room, record);
            } else {
                self.begins.push_back(record);
            }
        }
    }

    fn admit_now(&mut self, room: &mut Room, record: Record) {
        room.planned += record.frame_bytes();
        if begins(&record) {
            room.owners += 1;
            self.fresh.insert(record.location);
        }
        self.queue.push_back(record);
    }

    /// Behind those that wait, whatever there is room for.
    fn admit_vital(&mut self, room: &mut Room, record: Record) {
        if self.vitals.is_empty() && fits_vital(room, &record) {
            self.admit_now(room, record);
        } else {
            self.vitals.push_back(record);
        }
    }

    /// Whether an owner has been appended, and waits for room.
    fn waits(&self, owner: u64) -> bool {
        let ordinary = self
            .begins
            .binary_search_by_key(&owner, |begin| begin.location);
        let is_it = |record: &Record| begins(record) && record.location == owner;
        ordinary.is_ok() || self.vitals.iter().any(is_it)
    }

    fn admit_other(&mut self, shared: &Shared, room: &mut Room, record: Record) {
        let bytes = record.frame_bytes();
        if self.waits(record.owner()) {
            // Its owner has not begun yet.
            self.held.push_back(record);
            return;
        }
        if matches!(record.what, What::Effect(Effect::Note { .. })) {
            if record.vital {
                return self.admit_vital(room, record);
            }
            let fits = match record.lasting {
                true => room.admits_note(bytes),
                false => room.admits_optional(bytes),
            };
            if !record.sync && !fits {
                // Left out on a disk that is full. Before the first spare is there, which every life
                // begins with, it waits for that: a crash is charged to what was in flight.
                match shared.spare_error.lock().is_some() {
                    true => self.finished.push(record.location),
                    false => self.held.push_back(record),
                }
                return;
            }
            if record.sync && !room.admits_note(bytes) {
                self.held.push_back(record);
                return;
            }
        }
        self.admit_now(room, record);
    }

    /// There was no room after all: owners that have not begun wait again, so that what is
    /// behind them can go on. Whether any did.
    pub(super) fn put_back(&mut self) -> bool {
        let waits =
            |record: &Record| begins(record) && record.reported && !record.written && !record.vital;
        if !self.queue.iter().any(waits) {
            return false;
        }
        let (begins, rest): (VecDeque<_>, VecDeque<_>) = self.queue.drain(..).partition(waits);
        for record in begins.into_iter().rev() {
            self.fresh.remove(&record.location);
            self.begins.push_front(record);
        }
        let back = &self.begins;
        let (held, rest): (VecDeque<_>, VecDeque<_>) = rest.into_iter().partition(|record| {
            record.reported
                && back
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
            .vitals
            .iter()
            .chain(&self.begins)
            .chain(&self.held)
            .map(Record::frame_bytes)
            .sum();
        let wants = self.stalled || self.room(shared).wants_spare(waiting);
        let failed = shared.spare_error.lock().is_some();
        let waits = !self.vitals.is_empty() || !self.begins.is_empty() || !self.held.is_empty();
        let blocked = self.stalled || waits;
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
