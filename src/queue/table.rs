//! The table of tasks: what state each is in, and what may run next.
//!
//! Owns: every decision about order: per key, after dependencies, by lane, after a crash. Does not
//! own: the journal, receipts' waiters, the clock (a `now` is passed in), or I/O of any kind: its
//! methods say what is to be recorded and told, and the queue (`mod.rs`) does it while it holds
//! the table's lock.
//!
//! 1. A task runs only when it is durable, first of its key, after all that it is after, not in
//!    back-off and not in quarantine; and then it is in the lanes.
//! 2. One task a key runs at a time, in order of submission.
//! 3. Suspects (in flight at a crash) run one at a time, with nothing else running.
//! 4. A task superseded hands its place, age and lane to the later one; its receipts settle with
//!    the later one's outcome.
//! 5. A task that has an `after`, or that another is after, neither supersedes nor is superseded.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;
use tokio::time::Instant;

use crate::mutant::{Mutant, is};
use crate::remote::multipart::MultipartUploadState;
use crate::remote::{Crc64, ObjectHeaders};

use super::admission::Permit;
use super::backlog::Came;
use super::lanes::{Entry, Lanes};
use super::memory::Kept;
use super::quarantine::PastQuarantine;
use super::receipt::{Cell, Settlement};
use super::task::{Action, Cause, Condition, KeyPolicy, Lane, TaskId};

/// A task that is owed.
#[derive(Debug)]
pub(crate) struct Task {
    pub id: TaskId,
    pub key: Arc<str>,
    pub lane: Lane,
    pub policy: KeyPolicy,
    pub action: Action,
    pub condition: Option<Condition>,
    pub coalesce: bool,
    /// What it is after and that is not in S3 yet.
    pub after: Vec<TaskId>,
    pub tag: String,
    pub headers: Arc<ObjectHeaders>,
    pub len: u64,
    pub checksum: Option<Crc64>,
    /// The body, while it is kept in memory too.
    pub memory: Option<Kept>,
    pub permit: Option<Permit>,
    pub cell: Arc<Cell>,
    /// Receipts of tasks that this one superseded.
    pub superseded: Vec<(TaskId, Arc<Cell>)>,
    /// The first task whose place this one has: what a drain counts.
    pub cover: TaskId,
    /// When it, or the task whose place it has, was admitted.
    pub since: Instant,
    pub durable: bool,
    pub status: Status,
    /// Attempts that failed in a row in this life; those of earlier lives are in the journal.
    pub failures: u32,
    /// Attempts that failed in earlier lives, as far as they were noted.
    pub failed_before: u32,
    /// Attempts that were started, as far as is known: what was quarantined has it on record.
    pub attempts: u32,
    pub last_error: Option<String>,
    /// When it went to quarantine, in milliseconds since the Unix epoch.
    pub parked_ms: u64,
    /// Earlier stays there.
    pub history: Vec<PastQuarantine>,
    pub crashes: u32,
    /// An attempt was started, in this life or an earlier one, and so may have reached S3: it is
    /// not superseded any more, and what is found at its key may be its own.
    pub sent: bool,
    /// It was in flight at a crash, and has not come back from an attempt since.
    pub suspect: bool,
    /// It was taken out of its turn, and holds nothing of its prefix's share.
    pub aside: bool,
    pub multipart: Option<MultipartUploadState>,
}

impl Task {
    /// Where its end is, or will be, told. Of a task in quarantine it was told already: its own
    /// cell is for a replay, which is owed an answer of its own.
    pub(crate) fn told_cell(&self) -> Arc<Cell> {
        match &self.status {
            Status::Quarantined(cause) => {
                let cell = Cell::new();
                cell.set_durable();
                cell.settle(Settlement::Quarantined(cause.clone()));
                cell
            }
            _ => Arc::clone(&self.cell),
        }
    }
}

/// What a task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// Something must happen first: its record's sync, its key's turn, what it is after.
    Waiting,
    /// In the lanes.
    Ready { ticket: u64 },
    /// A worker has it.
    Running { since: Instant },
    /// In back-off.
    Delayed { until: Instant },
    /// Until an operator replays or purges it.
    Quarantined(Cause),
}

impl Status {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready { .. } => "ready",
            Self::Running { .. } => "running",
            Self::Delayed { .. } => "in back-off",
            Self::Quarantined(_) => "quarantined",
        }
    }
}

/// What is to be told once a task's end is on record.
#[derive(Debug)]
pub(crate) struct Ended {
    pub id: TaskId,
    pub key: Arc<str>,
    pub cover: TaskId,
    pub cells: Vec<Arc<Cell>>,
    pub settlement: Settlement,
    /// Given back when this is dropped, after the cells were told.
    pub permit: Option<Permit>,
    /// These were after it, and it will never be in S3: they are in quarantine now. Their notes
    /// must be on record before its end is.
    pub orphaned: Vec<TaskId>,
}

/// A task whose place a later one on its key has taken.
#[derive(Debug)]
pub(crate) struct Superseded {
    pub id: TaskId,
    /// To be dropped without the table's lock: that wakes who waits for room.
    pub permit: Option<Permit>,
}

/// Who asks for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Any lane.
    General,
    /// The slot that a lane has to itself.
    Reserved(Lane),
}

impl Slot {
    const fn lanes(self) -> &'static [Lane] {
        match self {
            Self::General => &Lane::ALL,
            Self::Reserved(Lane::Load) => &[Lane::Load],
            Self::Reserved(Lane::Checkpoint) => &[Lane::Checkpoint],
            Self::Reserved(_) => &[],
        }
    }
}

/// What a submit meets on its key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OnKey {
    /// Go ahead.
    Free,
    /// A pending task may have the same bytes: compare, then join it or ask again.
    Perhaps(TaskId),
    /// A pending task has other bytes, and the key is write-once.
    Taken(TaskId),
}

#[derive(Debug)]
pub(crate) struct Table {
    tasks: Slab<Task>,
    by_id: HashMap<TaskId, usize>,
    keys: HashMap<Arc<str>, VecDeque<usize>>,
    lanes: Lanes,
    delayed: BTreeSet<(Instant, TaskId)>,
    /// Not durable yet, in order of their ids.
    undurable: VecDeque<TaskId>,
    /// Where the heir of a superseded task is, while somebody holds its receipt.
    heirs: HashMap<TaskId, usize>,
    /// Who is after a task.
    dependents: HashMap<TaskId, Vec<TaskId>>,
    /// The covers of all tasks that are not in S3.
    open: BTreeSet<TaskId>,
    suspects: BTreeSet<TaskId>,
    /// Deletes that are ready.
    deletes: BTreeSet<TaskId>,
    quarantined: BTreeMap<TaskId, ()>,
    /// Durable, with a body in memory that could go.
    kept: BTreeSet<TaskId>,
    /// Bodies that have gone, to be dropped without the table's lock.
    spent: Vec<Kept>,
    max_receipts: u64,
    /// The last task that an earlier life left, and those of them that are here.
    recovered: TaskId,
    came: Came,
    running: usize,
    ready: usize,
    void_entries: usize,
    next_ticket: u64,
    suspect_running: bool,
}

impl Table {
    /// A table in which one prefix has at most `share` tasks in flight.
    pub(crate) fn new(share: usize) -> Self {
        Self {
            tasks: Slab::new(),
            by_id: HashMap::new(),
            keys: HashMap::new(),
            lanes: Lanes::new(share),
            delayed: BTreeSet::new(),
            undurable: VecDeque::new(),
            heirs: HashMap::new(),
            dependents: HashMap::new(),
            open: BTreeSet::new(),
            suspects: BTreeSet::new(),
            deletes: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            kept: BTreeSet::new(),
            spent: Vec::new(),
            max_receipts: u64::MAX,
            recovered: TaskId(0),
            came: Came::default(),
            running: 0,
            ready: 0,
            void_entries: 0,
            next_ticket: 0,
            suspect_running: false,
        }
    }

    /// The same with at most so many receipts of superseded tasks on one that has their place.
    pub(crate) fn with_receipts(self, max_receipts: u64) -> Self {
        Self {
            max_receipts,
            ..self
        }
    }

    /// Tasks up to this one are of an earlier life.
    pub(super) fn set_recovered(&mut self, upto: TaskId) {
        debug_assert!(self.tasks.is_empty());
        self.recovered = upto;
    }

    /// How many of an earlier life's are here.
    pub(super) fn came(&self) -> Came {
        self.came
    }

    fn count(&mut self, id: TaskId, was: Option<&Status>, is: Option<&Status>) {
        if id > self.recovered {
            return;
        }
        if let Some(was) = was {
            self.came.forget(was);
        }
        if let Some(is) = is {
            self.came.count(is);
        }
    }

    /// Changes what a task is doing; returns what that was.
    fn set(&mut self, slot: usize, status: Status) -> Option<Status> {
        let task = self.tasks.get_mut(slot)?;
        let (id, is) = (task.id, status.clone());
        if task.action == Action::Delete {
            match is.is_ready() {
                true => self.deletes.insert(id),
                false => self.deletes.remove(&id),
            };
        }
        let was = std::mem::replace(&mut task.status, status);
        self.count(id, Some(&was), Some(&is));
        Some(was)
    }

    /// Takes a task off the table.
    fn remove(&mut self, slot: usize) -> Option<Task> {
        let task = self.tasks.try_remove(slot)?;
        self.deletes.remove(&task.id);
        self.count(task.id, Some(&task.status), None);
        Some(task)
    }

    /// Takes bodies out of memory that are on the disk and not in flight, the latest first, until
    /// `wanted` bytes are given back, or none is left. Returns how many bytes have gone.
    pub(crate) fn spill(&mut self, wanted: u64) -> u64 {
        let mut spilled = 0;
        let mut gone = Vec::new();
        for id in self.kept.iter().rev() {
            if spilled >= wanted {
                break;
            }
            let Some(task) = self.by_id.get(id).and_then(|at| self.tasks.get_mut(*at)) else {
                gone.push(*id);
                continue;
            };
            let idle = !matches!(task.status, Status::Running { .. });
            if let Some(kept) = task.memory.take_if(|kept| idle && kept.is_common()) {
                spilled += kept.len();
                self.spent.push(kept);
                gone.push(*id);
            }
        }
        for id in gone {
            self.kept.remove(&id);
        }
        spilled
    }

    /// Bodies that have gone since this was asked last.
    pub(super) fn take_spent(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.spent)
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&Task> {
        self.by_id.get(&id).and_then(|slot| self.tasks.get(*slot))
    }

    /// The task that now stands for this one: itself, or the one that superseded it.
    pub(crate) fn resolve(&self, id: TaskId) -> Option<TaskId> {
        let slot = self.by_id.get(&id).or_else(|| self.heirs.get(&id))?;
        self.tasks.get(*slot).map(|task| task.id)
    }

    pub(crate) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.by_id
            .get(&id)
            .and_then(|slot| self.tasks.get_mut(*slot))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter().map(|(_, task)| task)
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn quarantined(&self) -> impl Iterator<Item = &Task> {
        self.quarantined.keys().filter_map(|id| self.get(*id))
    }

    /// Whether a task waits for an operator: it is in quarantine, or behind one on its key that is,
    /// or after one.
    fn waits_for_operator(&self, task: &Task) -> bool {
        let in_quarantine = |task: &Task| matches!(task.status, Status::Quarantined(_));
        if self.quarantined.is_empty() {
            return false;
        }
        let first = self.keys.get(&task.key).and_then(|queue| queue.front());
        let first = first.and_then(|slot| self.tasks.get(*slot));
        let mut after = task.after.iter().filter_map(|id| self.get(*id));
        in_quarantine(task) || first.is_some_and(in_quarantine) || after.any(in_quarantine)
    }

    /// Since when the oldest task that no operator has to look at has been here, and the oldest of
    /// those that could run.
    pub(crate) fn oldest(&self) -> [Option<Instant>; 2] {
        let mut oldest = [None; 2];
        let earlier = |known: &mut Option<Instant>, since| {
            *known = Some(known.map_or(since, |known| since.min(known)));
        };
        for task in self.iter() {
            if !self.waits_for_operator(task) {
                earlier(&mut oldest[0], task.since);
            }
            if task.status.is_ready() {
                earlier(&mut oldest[1], task.since);
            }
        }
        oldest
    }

    /// The last task submitted on a key, whatever its state.
    pub(crate) fn last_on(&self, key: &str) -> Option<&Task> {
        self.keys
            .get(key)
            .and_then(|queue| queue.back())
            .and_then(|slot| self.tasks.get(*slot))
    }

    /// Whether a task on this key is in flight.
    pub(crate) fn is_running(&self, key: &str) -> bool {
        let first = self.keys.get(key).and_then(|queue| queue.front());
        let task = first.and_then(|slot| self.tasks.get(*slot));
        task.is_some_and(|task| matches!(task.status, Status::Running { .. }))
    }

    /// What a submit of these bytes meets on its key. `joinable` is false for a submit with a
    /// condition or an `after`.
    pub(crate) fn on_key(
        &self,
        key: &str,
        policy: KeyPolicy,
        upload: Option<(u64, Option<Crc64>)>,
        headers: &ObjectHeaders,
        joinable: bool,
    ) -> OnKey {
        let (Some(last), Some((len, checksum))) = (self.last_on(key), upload) else {
            return OnKey::Free;
        };
        let last_uploads = matches!(last.action, Action::Upload | Action::UploadBorrowed(_));
        let same_so_far = last_uploads
            && joinable
            && last.condition.is_none()
            && last.policy == policy
            && last.len == len
            && last.checksum.is_some()
            && last.checksum == checksum
            && *last.headers == *headers;
        if same_so_far {
            return OnKey::Perhaps(last.id);
        }
        if policy == KeyPolicy::WriteOnce && last_uploads {
            return OnKey::Taken(last.id);
        }
        OnKey::Free
    }

    /// Adds a task at the end of its key's line.
    pub(crate) fn insert(&mut self, task: Task) {
        let id = task.id;
        self.open.insert(task.cover);
        for dependency in &task.after {
            self.dependents.entry(*dependency).or_default().push(id);
        }
        if !task.durable {
            self.undurable.push_back(id);
        }
        if task.suspect {
            self.suspects.insert(id);
        }
        if matches!(task.status, Status::Quarantined(_)) {
            self.quarantined.insert(id, ());
        }
        self.count(id, None, Some(&task.status));
        let key = Arc::clone(&task.key);
        let slot = self.tasks.insert(task);
        self.by_id.insert(id, slot);
        self.keys.entry(key).or_default().push_back(slot);
        self.reconsider(slot);
    }

    /// Everything up to `upto` is durable. Returns the cells to tell, and the tasks that were
    /// superseded by one of these.
    pub(crate) fn durable(&mut self, upto: TaskId) -> (Vec<Arc<Cell>>, Vec<Superseded>) {
        let mut cells = Vec::new();
        let mut superseded = Vec::new();
        while let Some(id) = self.undurable.front().copied().filter(|id| *id <= upto) {
            self.undurable.pop_front();
            let Some(slot) = self.by_id.get(&id).copied() else {
                continue;
            };
            if let Some(task) = self.tasks.get_mut(slot) {
                task.durable = true;
                if task.memory.is_some() && task.action == Action::Upload {
                    self.kept.insert(id);
                }
                cells.push(Arc::clone(&task.cell));
            }
            match self.supersede(slot) {
                Some(old) => superseded.push(old),
                None => self.reconsider(slot),
            }
        }
        (cells, superseded)
    }

    /// Whether the task in `slot`, durable now, takes the place of the one before it on its key.
    fn supersede(&mut self, slot: usize) -> Option<Superseded> {
        let later = self.tasks.get(slot)?;
        let queue = self.keys.get(&later.key)?;
        let at = queue.iter().rposition(|other| *other == slot)?;
        let before = *queue.get(at.checked_sub(1)?)?;
        let earlier = self.tasks.get(before)?;
        if !self.may_supersede(earlier, later) {
            return None;
        }
        let key = Arc::clone(&later.key);
        if let Some(queue) = self.keys.get_mut(&key) {
            queue.remove(at);
        }
        let mut later = self.remove(slot)?;
        self.by_id.remove(&later.id);
        self.open.remove(&later.cover);
        let place = self.tasks.get_mut(before)?;
        // The entry in the lanes names the place; so the later task gets there what it has.
        later.cover = place.cover;
        later.since = place.since;
        later.lane = place.lane;
        later.status = place.status.clone();
        let (status, new) = (later.status.clone(), later.id);
        let mut earlier = std::mem::replace(place, later);
        self.count(earlier.id, Some(&earlier.status), None);
        self.count(new, None, Some(&status));
        self.kept.remove(&earlier.id);
        self.spent.extend(earlier.memory.take());
        // Only receipts that somebody holds are owed an answer.
        let mut cells = earlier.superseded;
        cells.push((earlier.id, earlier.cell));
        self.heirs.insert(earlier.id, before);
        cells.retain(|(id, cell)| {
            let held = Arc::strong_count(cell) > 1;
            if !held {
                self.heirs.remove(id);
            }
            held
        });
        if is(Mutant::SupersededNotTold) {
            cells.clear();
        }
        let old = earlier.id;
        self.tasks.get_mut(before)?.superseded = cells;
        self.by_id.remove(&old);
        self.by_id.insert(new, before);
        Some(Superseded {
            id: old,
            permit: earlier.permit,
        })
    }

    fn may_supersede(&self, earlier: &Task, later: &Task) -> bool {
        let alone = |task: &Task| {
            task.coalesce
                && task.policy == KeyPolicy::Rewritable
                && task.condition.is_none()
                && task.action != Action::Delete
                && task.after.is_empty()
                && !self.dependents.contains_key(&task.id)
        };
        // A body that is kept here does not go for one that is not.
        let kept = |task: &Task| !matches!(task.action, Action::UploadBorrowed(_));
        alone(earlier)
            && alone(later)
            && (kept(later) || !kept(earlier))
            && earlier.durable
            && (earlier.superseded.len() as u64) < self.max_receipts
            && !earlier.sent
            && matches!(earlier.status, Status::Waiting | Status::Ready { .. })
    }

    /// Puts a task into the lanes if nothing is in its way.
    fn reconsider(&mut self, slot: usize) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let first = self.keys.get(&task.key).and_then(|queue| queue.front()) == Some(&slot);
        if task.status != Status::Waiting || !task.durable || !task.after.is_empty() || !first {
            return;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.set(slot, Status::Ready { ticket });
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        self.ready += 1;
        self.lanes
            .push(task.lane, &task.key, Entry { slot, ticket });
    }

    /// The next task for this slot, if one may run.
    pub(crate) fn take(&mut self, slot: Slot, now: Instant) -> Option<&mut Task> {
        if self.suspect_running {
            return None;
        }
        let suspect = self
            .suspects
            .iter()
            .filter_map(|id| self.by_id.get(id).copied())
            .find(|at| matches!(self.tasks.get(*at), Some(task) if task.status.is_ready()));
        let taken = match suspect {
            // Alone, so that the next crash names its culprit.
            Some(_) if self.running > 0 || slot != Slot::General => return None,
            Some(at) => {
                self.void_entries += 1;
                self.suspect_running = true;
                at
            }
            None => {
                let (tasks, void) = (&self.tasks, &mut self.void_entries);
                let popped = self.lanes.pop(slot.lanes(), |entry| {
                    let valid = is_valid(tasks, entry);
                    *void = void.saturating_sub(usize::from(!valid));
                    valid
                });
                popped?.slot
            }
        };
        self.start(taken, now)
    }

    /// The oldest delete that may run, whatever else is in line before it: for when nothing but
    /// deletes may go.
    pub(crate) fn take_delete(&mut self, now: Instant) -> Option<&mut Task> {
        if self.suspect_running {
            return None;
        }
        let is_suspect = |id: &&TaskId| self.suspects.contains(*id);
        let first = self.deletes.iter().find(|id| !is_suspect(id))?;
        let at = self.by_id.get(first).copied()?;
        let task = self.tasks.get_mut(at)?;
        task.aside = true;
        self.void_entries += 1;
        self.sweep_if_many();
        self.start(at, now)
    }

    fn start(&mut self, at: usize, now: Instant) -> Option<&mut Task> {
        self.running += 1;
        self.ready -= 1;
        self.set(at, Status::Running { since: now });
        let task = self.tasks.get_mut(at)?;
        task.attempts = task.attempts.saturating_add(1);
        Some(task)
    }

    /// Takes the first of those in back-off out of it.
    pub(crate) fn wake_first(&mut self) {
        let first = self.delayed.pop_first();
        if let Some(slot) = first.and_then(|(_, id)| self.by_id.get(&id).copied()) {
            self.set(slot, Status::Waiting);
            self.reconsider(slot);
        }
    }

    /// When the next task's back-off ends.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(until, _)| *until)
    }

    /// A worker has brought a task back: it is not in flight, and not suspect, any more.
    fn came_back(&mut self, id: TaskId) {
        let Some(slot) = self.by_id.get(&id).copied() else {
            return;
        };
        let Some(task) = self.tasks.get_mut(slot) else {
            return;
        };
        if !matches!(task.status, Status::Running { .. }) {
            return;
        }
        let was_suspect = std::mem::take(&mut task.suspect);
        let aside = std::mem::take(&mut task.aside);
        let key = Arc::clone(&task.key);
        self.set(slot, Status::Waiting);
        self.running -= 1;
        if was_suspect {
            self.suspects.remove(&id);
            self.suspect_running = false;
        } else if !aside {
            self.lanes.ended(&key);
        }
    }

    /// An attempt failed: again at `until`.
    pub(crate) fn retry(&mut self, id: TaskId, until: Instant, error: Option<String>) {
        self.came_back(id);
        if let Some(task) = self.get_mut(id) {
            if error.is_some() {
                task.failures = task.failures.saturating_add(1);
                task.last_error = error;
            } else {
                // Nothing was sent.
                task.attempts = task.attempts.saturating_sub(1);
            }
            self.delayed.insert((until, id));
        }
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.set(slot, Status::Delayed { until });
        }
    }

    /// A worker stopped before it had done anything for this task, or was refused what is not this
    /// task's fault: no failure of its own.
    pub(crate) fn put_back(&mut self, id: TaskId, error: Option<String>) {
        self.came_back(id);
        if let Some(task) = self.get_mut(id).filter(|_| error.is_some()) {
            task.last_error = error;
        }
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.reconsider(slot);
        }
    }

    /// Takes a task out of whatever it is doing, short of running.
    fn unplug(&mut self, id: TaskId) {
        let Some(slot) = self.by_id.get(&id).copied() else {
            return;
        };
        let Some(was) = self.set(slot, Status::Waiting) else {
            return;
        };
        match was {
            Status::Ready { .. } => {
                self.ready -= 1;
                self.void_entries += 1;
            }
            Status::Delayed { until } => {
                self.delayed.remove(&(until, id));
            }
            Status::Quarantined(_) => {
                self.quarantined.remove(&id);
            }
            Status::Waiting | Status::Running { .. } => (),
        }
        self.suspects.remove(&id);
        self.sweep_if_many();
    }

    /// Entries that a cancel or a takeover left behind must not pile up while nothing runs.
    fn sweep_if_many(&mut self) {
        if self.void_entries > 64 + self.ready {
            self.void_entries = 0;
            let tasks = &self.tasks;
            self.lanes.sweep(|entry| is_valid(tasks, entry));
        }
    }

    /// Ends a task. Whoever was next on its key, or after it, may run now.
    pub(crate) fn end(&mut self, id: TaskId, settlement: Settlement) -> Option<Ended> {
        self.came_back(id);
        self.unplug(id);
        let slot = self.by_id.remove(&id)?;
        let mut task = self.remove(slot)?;
        self.kept.remove(&id);
        self.spent.extend(task.memory.take());
        self.open.remove(&task.cover);
        if !task.durable {
            self.undurable.retain(|other| *other != id);
        }
        self.leave_key(&task.key, slot);
        for dependency in &task.after {
            self.forget_dependent(*dependency, id);
        }
        let dependents = self.dependents.remove(&id).unwrap_or_default();
        let mut orphaned = Vec::new();
        for dependent in dependents {
            if settlement.is_in_s3() {
                if let Some(other) = self.get_mut(dependent) {
                    other.after.retain(|dependency| *dependency != id);
                }
                if let Some(slot) = self.by_id.get(&dependent).copied() {
                    self.reconsider(slot);
                }
            } else if self.set_quarantined(dependent, Cause::Dependency(id)) {
                orphaned.push(dependent);
            }
        }
        let mut cells = self.disinherit(task.superseded);
        cells.push(task.cell);
        Some(Ended {
            id,
            key: task.key,
            cover: task.cover,
            cells,
            settlement,
            permit: task.permit,
            orphaned,
        })
    }

    fn disinherit(&mut self, superseded: Vec<(TaskId, Arc<Cell>)>) -> Vec<Arc<Cell>> {
        let mut cells = Vec::with_capacity(superseded.len() + 1);
        for (id, cell) in superseded {
            self.heirs.remove(&id);
            cells.push(cell);
        }
        cells
    }

    fn leave_key(&mut self, key: &str, slot: usize) {
        let Some(queue) = self.keys.get_mut(key) else {
            return;
        };
        if queue.front() == Some(&slot) {
            queue.pop_front();
        } else {
            queue.retain(|other| *other != slot);
        }
        match queue.front().copied() {
            Some(next) => self.reconsider(next),
            None => {
                self.keys.remove(key);
            }
        }
    }

    fn forget_dependent(&mut self, dependency: TaskId, dependent: TaskId) {
        if let Some(list) = self.dependents.get_mut(&dependency) {
            list.retain(|other| *other != dependent);
            if list.is_empty() {
                self.dependents.remove(&dependency);
            }
        }
    }

    fn set_quarantined(&mut self, id: TaskId, cause: Cause) -> bool {
        self.came_back(id);
        self.unplug(id);
        let Some(slot) = self.by_id.get(&id).copied() else {
            return false;
        };
        if self.set(slot, Status::Quarantined(cause)).is_none() {
            return false;
        }
        self.quarantined.insert(id, ());
        true
    }

    /// Puts a task into quarantine; it goes on to hold its key. Returns what is to be told.
    pub(crate) fn quarantine(&mut self, id: TaskId, cause: Cause) -> Option<Ended> {
        self.set_quarantined(id, cause.clone()).then_some(())?;
        self.parked(id, cause)
    }

    /// What is to be told of a task that is in quarantine now.
    pub(crate) fn parked(&mut self, id: TaskId, cause: Cause) -> Option<Ended> {
        let superseded = std::mem::take(&mut self.get_mut(id)?.superseded);
        let mut cells = self.disinherit(superseded);
        let task = self.get_mut(id)?;
        // A replay is owed an answer of its own.
        cells.push(std::mem::replace(&mut task.cell, Cell::new()));
        let memory = task.memory.take();
        let ended = Ended {
            id,
            key: Arc::clone(&task.key),
            cover: task.cover,
            cells,
            settlement: Settlement::Quarantined(cause),
            permit: task.permit.take(),
            orphaned: Vec::new(),
        };
        self.kept.remove(&id);
        self.spent.extend(memory);
        Some(ended)
    }

    /// Why a task is in quarantine.
    pub(crate) fn cause_of(&self, id: TaskId) -> Option<Cause> {
        match &self.get(id)?.status {
            Status::Quarantined(cause) => Some(cause.clone()),
            _ => None,
        }
    }

    /// Takes a task off the table at the end of a shutdown: nothing else runs because of it.
    pub(crate) fn close(&mut self, id: TaskId, settlement: Settlement) -> Option<Ended> {
        self.came_back(id);
        self.unplug(id);
        let slot = self.by_id.remove(&id)?;
        let mut task = self.remove(slot)?;
        self.kept.remove(&id);
        self.spent.extend(task.memory.take());
        self.open.remove(&task.cover);
        let mut cells = self.disinherit(task.superseded);
        cells.push(task.cell);
        Some(Ended {
            id,
            key: task.key,
            cover: task.cover,
            cells,
            settlement,
            permit: task.permit,
            orphaned: Vec::new(),
        })
    }

    /// Takes a task out of quarantine and into its key's line again. What it was after and will
    /// never be in S3 does not hold it any more: that is what replaying it says.
    ///
    /// With its cell comes its place in quarantine, to be dropped without the table's lock. `owed`
    /// says of what is not here whether it is still to come.
    pub(crate) fn replay(
        &mut self,
        id: TaskId,
        permit: Permit,
        now: Instant,
        owed: impl Fn(TaskId) -> bool,
    ) -> Option<(Arc<Cell>, Option<Permit>)> {
        if !self.quarantined.contains_key(&id) {
            return None;
        }
        self.unplug(id);
        let gone: Vec<TaskId> = self
            .get(id)?
            .after
            .iter()
            .copied()
            .filter(|dependency| !self.by_id.contains_key(dependency) && !owed(*dependency))
            .collect();
        let task = self.get_mut(id)?;
        task.after.retain(|dependency| !gone.contains(dependency));
        let place = task.permit.replace(permit);
        task.since = now;
        task.failures = 0;
        task.failed_before = 0;
        task.crashes = 0;
        task.last_error = None;
        let cell = Arc::clone(&task.cell);
        let slot = self.by_id.get(&id).copied()?;
        self.reconsider(slot);
        Some((cell, place))
    }

    /// The lowest cover that is not in S3: everything before it is.
    pub(crate) fn first_open(&self) -> Option<TaskId> {
        self.open.first().copied()
    }

    /// Whether any of the tasks up to `upto` is on its way to S3.
    pub(crate) fn is_recovering(&self, upto: TaskId) -> bool {
        let moves = |task: &Task| task.cover <= upto && !self.waits_for_operator(task);
        self.first_open().is_some_and(|open| open <= upto) && self.iter().any(moves)
    }

    /// Whether anything can move before `deadline` without help from outside.
    pub(crate) fn can_move(&self, deadline: Instant, paused: bool, disk_full: bool) -> bool {
        self.running > 0
            || (!paused && self.ready > 0)
            || (!paused && self.next_due().is_some_and(|due| due < deadline))
            || (!disk_full && !self.undurable.is_empty())
    }

    /// Counts by state: waiting, ready, running, delayed, quarantined.
    pub(crate) fn counts(&self) -> [usize; 5] {
        let delayed = self.delayed.len();
        let quarantined = self.quarantined.len();
        let known = self.ready + self.running + delayed + quarantined;
        [
            self.tasks.len().saturating_sub(known),
            self.ready,
            self.running,
            delayed,
            quarantined,
        ]
    }
}

impl Status {
    const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

fn is_valid(tasks: &Slab<Task>, entry: Entry) -> bool {
    tasks.get(entry.slot).is_some_and(|task| {
        task.status
            == Status::Ready {
                ticket: entry.ticket,
            }
    })
}

#[cfg(test)]
mod tests;
