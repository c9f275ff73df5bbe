//! The backlog: what an earlier life left and is not a task in the table yet.
//!
//! Owns: which recovered tasks are still to come, a few words each, and how many come in at a time.
//! Does not own: reading them (`bring.rs`), or what they are once they are in the table. Pure: no
//! clock, no lock, no I/O.
//!
//! 1. What has to be known before its turn is never here (`label`): only uploads and deletes of
//!    the common lanes that are after nothing, were never tried and are no file of the caller's.
//! 2. They come in by id, in order of submission, while few of those that came before can move.
//!    Lanes hold among what is in the table.
//! 3. Of those whose keys may be one (equal labels), none comes in before an earlier one: whoever
//!    needs one of them brings all before it. So in the table a key's order is whole.
//! 4. It holds their room: all that is here is charged, whatever today's limits are.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::admission::{Need, Permit};
use super::receipt::Cell;
use super::record::{self, ActionRecord, TaskRecord, kind};
use super::table::Status;
use super::task::{Lane, TaskId};

/// So many times the window may be in the table at once, where most of them cannot move.
const CROWD: usize = 4;

/// Of so many that could not be read it is known why.
pub(super) const MAX_UNREAD: usize = 64;

/// Of the record that begins an owner: 0 where it has to become a task at open. Of any other task,
/// a hash of its key; never the same for one key as 0.
pub(crate) fn label(kind: u8, head: &[u8]) -> u32 {
    if kind != kind::TASK {
        return 0;
    }
    let Some(record) = record::decode::<TaskRecord>(head) else {
        return 0;
    };
    let plain = record.lane != Lane::Checkpoint
        && record.after.is_empty()
        && !matches!(record.action, ActionRecord::UploadBorrowed(_));
    if plain { hash_of(&record.key) } else { 0 }
}

pub(super) fn hash_of(key: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // Any of its bits will do.
    (hasher.finish() as u32).max(1)
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: TaskId,
    hash: u32,
    is_in: bool,
}

/// Recovered tasks in the table, as far as they are counted here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Came {
    /// Ready, or in flight.
    pub active: usize,
    /// In back-off.
    pub delayed: usize,
    /// All but those in quarantine.
    pub all: usize,
}

impl Came {
    pub(super) fn count(&mut self, status: &Status) {
        for count in self.of(status).into_iter().flatten() {
            *count += 1;
        }
    }

    pub(super) fn forget(&mut self, status: &Status) {
        for count in self.of(status).into_iter().flatten() {
            *count -= 1;
        }
    }

    fn of(&mut self, status: &Status) -> [Option<&mut usize>; 2] {
        match status {
            Status::Ready { .. } | Status::Running { .. } => {
                [Some(&mut self.all), Some(&mut self.active)]
            }
            Status::Delayed { .. } => [Some(&mut self.all), Some(&mut self.delayed)],
            Status::Waiting => [Some(&mut self.all), None],
            Status::Quarantined(_) => [None, None],
        }
    }
}

/// What is still to come.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// By id.
    entries: Vec<Entry>,
    /// Places in `entries`, by hash and id.
    by_hash: Vec<u32>,
    /// All before it are in.
    first: usize,
    left: usize,
    permit: Option<Permit>,
    /// Of those that are listed to a caller already.
    cells: BTreeMap<TaskId, Arc<Cell>>,
    /// Of those whose records could not be read: when it was tried last.
    unread: BTreeMap<TaskId, String>,
}

impl Backlog {
    pub(super) fn with_capacity(most: usize) -> Self {
        Self {
            entries: Vec::with_capacity(most),
            ..Self::default()
        }
    }

    /// Adds one; in order of their ids.
    pub(super) fn push(&mut self, id: TaskId, label: u32) {
        debug_assert!(self.entries.last().is_none_or(|last| last.id < id));
        self.entries.push(Entry {
            id,
            hash: label,
            is_in: false,
        });
    }

    /// From here on it is asked. `permit` is the room of all of them.
    pub(super) fn complete(&mut self, permit: Permit) {
        let entries = &self.entries;
        // Ids are locations, and there are fewer than 2^32 in one journal.
        let mut by_hash: Vec<u32> = (0..entries.len() as u32).collect();
        by_hash.sort_unstable_by_key(|at| (entries[*at as usize].hash, *at));
        self.by_hash = by_hash;
        self.left = entries.len();
        self.permit = Some(permit);
    }

    pub(super) fn len(&self) -> usize {
        self.left
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    fn place(&self, id: TaskId) -> Option<usize> {
        let found = self.entries.binary_search_by_key(&id, |entry| entry.id);
        found.ok().filter(|at| !self.entries[*at].is_in)
    }

    pub(super) fn contains(&self, id: TaskId) -> bool {
        self.left > 0 && self.place(id).is_some()
    }

    /// The lowest id that is still to come.
    pub(super) fn first(&self) -> Option<TaskId> {
        self.entries.get(self.first).map(|entry| entry.id)
    }

    /// Up to `most` of those that are still to come, in order.
    pub(super) fn next(&self, most: usize) -> Vec<TaskId> {
        self.next_from(TaskId(0), most)
    }

    /// The same from `from` on.
    pub(super) fn next_from(&self, from: TaskId, most: usize) -> Vec<TaskId> {
        let rest = self.entries.get(self.first..).unwrap_or_default();
        let from = rest.partition_point(|entry| entry.id < from);
        let rest = rest.get(from..).unwrap_or_default().iter();
        let rest = rest.filter(|entry| !entry.is_in).map(|entry| entry.id);
        rest.take(most).collect()
    }

    /// Those still to come whose key may be this one, in order.
    pub(super) fn on_key(&self, hash: u32) -> impl Iterator<Item = TaskId> {
        let hash_at = |at: &u32| self.entries[*at as usize].hash;
        let from = self.by_hash.partition_point(|at| hash_at(at) < hash);
        let to = self.by_hash.partition_point(|at| hash_at(at) <= hash);
        let all = self.by_hash.get(from..to).unwrap_or_default();
        // They come in in order: those that are in are in front.
        let come = all.partition_point(|at| self.entries[*at as usize].is_in);
        let rest = all.get(come..).unwrap_or_default().iter();
        rest.map(|at| self.entries[*at as usize].id)
    }

    /// What has to come in for `id` to be in the table, up to `most` of it: the earlier ones whose
    /// keys may be the same, and itself.
    pub(super) fn with_those_before(&self, id: TaskId, most: usize) -> Vec<TaskId> {
        let Some(at) = self.place(id) else {
            return Vec::new();
        };
        let on_key = self.on_key(self.entries[at].hash);
        let ours = on_key.take_while(|other| *other <= id);
        ours.take(most).collect()
    }

    /// Takes one out, with its room and the cell that somebody has already; `None` where it is
    /// not here, or an earlier one has to come in first.
    pub(super) fn take(&mut self, id: TaskId, need: Need) -> Option<(Permit, Option<Arc<Cell>>)> {
        let at = self.place(id)?;
        if self.on_key(self.entries[at].hash).next() != Some(id) {
            return None;
        }
        let permit = self.permit.as_mut()?.split(need);
        self.entries[at].is_in = true;
        self.left -= 1;
        self.unread.remove(&id);
        let cell = self.cells.remove(&id);
        while self.entries.get(self.first).is_some_and(|e| e.is_in) {
            self.first += 1;
        }
        if self.left == 0 {
            // What is left of the permit is of nothing: it goes with the queue.
            self.entries = Vec::new();
            self.by_hash = Vec::new();
            self.first = 0;
        }
        Some((permit, cell))
    }

    /// How many are to come in now: up to `window` that can move by themselves.
    pub(super) fn wanted(&self, window: usize, came: Came) -> usize {
        if self.left == 0 {
            return 0;
        }
        // In bulk, so that they are not read one by one.
        match came.active <= window / 2 {
            true => Self::room(window, came),
            false => 0,
        }
    }

    /// How many of those that came before leave room for.
    pub(super) fn room(window: usize, came: Came) -> usize {
        // Whatever they wait for, it may be behind them.
        if came.active + came.delayed == 0 {
            return window;
        }
        let crowd = window.saturating_mul(CROWD).saturating_sub(came.all);
        window.saturating_sub(came.active).min(crowd)
    }

    /// The cell of one that is still to come.
    pub(super) fn cell(&mut self, id: TaskId) -> Arc<Cell> {
        let new = || {
            let cell = Cell::new();
            cell.set_durable();
            cell
        };
        Arc::clone(self.cells.entry(id).or_insert_with(new))
    }

    /// Its record could not be read. The first of many are remembered.
    pub(super) fn failed(&mut self, id: TaskId, error: String) {
        if self.contains(id) && self.unread.len() < MAX_UNREAD {
            self.unread.insert(id, error);
        }
    }

    /// Those that could not be read when it was tried last, and why.
    pub(super) fn unread(&self) -> impl Iterator<Item = (TaskId, &str)> {
        self.unread.iter().map(|(id, error)| (*id, error.as_str()))
    }

    /// Why this one could not be read.
    pub(super) fn why_unread(&self, id: TaskId) -> Option<&str> {
        self.unread.get(&id).map(String::as_str)
    }

    /// Ends it: how many were to come, the cells of those that somebody was told of, and the room
    /// of all, to be dropped without the table's lock.
    pub(super) fn close(&mut self) -> (usize, Vec<Arc<Cell>>, Option<Permit>) {
        let all = std::mem::take(self);
        (all.left, all.cells.into_values().collect(), all.permit)
    }
}

#[cfg(test)]
mod tests;
