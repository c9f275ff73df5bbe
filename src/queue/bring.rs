//! Bringing in what an earlier life left: from the journal into the table, as there is room for it,
//! or as somebody needs it.
//!
//! Owns: when the backlog is read, by whom, and what becomes of what cannot be read. Does not own:
//! what is in it and in which order it comes (`backlog.rs`), or what a record says (`recover.rs`).
//!
//! 1. Whoever looks at a key, or at a task by its id, brings in first what is to come of it. So
//!    the table answers for the backlog too.
//! 2. What was read counts only if it is still to come when it is put in, under the table's lock:
//!    several may read the same.
//! 3. A record that cannot be read stays to come: it is tried again, all that looks at the queue
//!    names it, it fails drains, and what is on its key waits behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::journal::{Journal, RecoveredOwner};

use super::backlog::{Backlog, MAX_UNREAD, hash_of};
use super::receipt::Receipt;
use super::record::{self, TaskRecord};
use super::task::{TaskId, cut};
use super::{Queue, State};

/// Tasks that are read at a time: others wait for the disk too.
const BATCH: usize = 256;

/// What was read of a task.
type Read = (TaskId, Result<RecoveredOwner>);

/// How a round went.
#[derive(Debug, Default)]
struct Round {
    came: usize,
    /// Why the first of those that were not read was not.
    error: Option<Error>,
}

/// Reads tasks back. Blocks on the disk.
fn read(journal: &Journal, ids: Vec<TaskId>) -> Vec<Read> {
    let read = |id: TaskId| match journal.owner(id.0) {
        Ok(Some(owner)) => Ok(owner),
        // Live until its task ends, and that has not begun: the journal is closed.
        Ok(None) => Err(Error::directory(
            journal.dir(),
            &io::ErrorKind::NotFound.into(),
        )),
        Err(error) => Err(Error::from(error)),
    };
    ids.into_iter().map(|id| (id, read(id))).collect()
}

impl Queue {
    /// Puts in what was read.
    fn take_in(&self, read: Vec<Read>) -> Round {
        let mut round = Round::default();
        {
            let mut state = self.lock();
            for (id, owner) in read {
                match owner {
                    Ok(owner) => round.came += usize::from(self.come_in(&mut state, &owner)),
                    Err(error) if state.backlog.contains(id) => {
                        tracing::error!(task = id.0, %error, "a task cannot be read back");
                        let text = cut(error.to_string());
                        let error = self.not_read(id, &text);
                        state.backlog.failed(id, text);
                        state.drains.failed(id, &error, false);
                        round.error.get_or_insert(error);
                    }
                    // Somebody else could.
                    Err(_) => (),
                }
            }
        }
        if round.came > 0 {
            self.moved_on();
        }
        round
    }

    pub(super) fn not_read(&self, task: TaskId, why: &str) -> Error {
        Error::Directory {
            path: self.config.dir.clone(),
            message: format!("task {task} of an earlier life cannot be read back: {why}"),
            kind: io::ErrorKind::Other,
        }
    }

    /// Brings in whatever `which` names, batch by batch, until it names nothing.
    async fn bring(&self, which: impl Fn(&Backlog) -> Vec<TaskId>) -> Result<()> {
        loop {
            let ids = which(&self.lock().backlog);
            if ids.is_empty() {
                return Ok(());
            }
            let journal = self.journal.clone();
            let read = self.io.run(move || read(&journal, ids)).await;
            let read = read.map_err(|error| Error::directory(&self.config.dir, &error))?;
            if let Some(error) = self.take_in(read).error {
                return Err(match self.admission.closed() {
                    Some(phase) => Error::ShuttingDown { phase },
                    None => error,
                });
            }
        }
    }

    /// The same, on this thread.
    fn bring_now(&self, which: impl Fn(&State) -> Vec<TaskId>) -> Result<()> {
        loop {
            let ids = which(&self.lock());
            if ids.is_empty() {
                return Ok(());
            }
            if let Some(error) = self.take_in(read(&self.journal, ids)).error {
                return Err(error);
            }
        }
    }

    /// Brings in what a submit on `key`, after these, has to see.
    pub(super) async fn bring_for(&self, key: &str, after: &[Receipt]) -> Result<()> {
        if !self.feeding.load(Ordering::Relaxed) {
            return Ok(());
        }
        let hash = hash_of(key);
        self.bring(|backlog| backlog.on_key(hash).take(BATCH).collect())
            .await?;
        self.bring(|backlog| {
            let ours = after
                .iter()
                .filter(|r| r.journal() == self.journal.journal_id());
            let wanted = ours.flat_map(|receipt| backlog.with_those_before(receipt.task(), BATCH));
            let wanted: BTreeSet<TaskId> = wanted.collect();
            wanted.into_iter().take(BATCH).collect()
        })
        .await
    }

    /// Brings in one task, where it is still to come. Blocks on the disk then.
    pub(super) fn bring_task(&self, id: TaskId) -> Result<()> {
        self.bring_now(|state| state.backlog.with_those_before(id, BATCH))
    }

    /// Brings in those before `id` whose keys may be `key`. Blocks on the disk.
    pub(super) fn bring_before(&self, id: TaskId, key: &str) -> Result<()> {
        let hash = hash_of(key);
        self.bring_now(|state| {
            let earlier = state.backlog.on_key(hash).take_while(|other| *other < id);
            earlier.take(BATCH).collect()
        })
    }

    /// Reads all of the backlog, and leaves it where it is: for who lists it. Blocks on the disk.
    pub(super) fn read_all(&self) -> BTreeMap<TaskId, TaskRecord> {
        let mut records = BTreeMap::new();
        let mut from = TaskId(0);
        loop {
            let ids = self.lock().backlog.next_from(from, BATCH);
            let Some(last) = ids.last() else {
                return records;
            };
            from = TaskId(last.0 + 1);
            for (id, owner) in read(&self.journal, ids) {
                let record = owner.map(|owner| record::decode::<TaskRecord>(&owner.head));
                if let Ok(Some(record)) = record {
                    records.insert(id, record);
                }
            }
        }
    }

    /// Brings in those before `below` as far as there is room, at open. Blocks on the disk.
    pub(super) fn bring_first(&self, below: Option<TaskId>) -> Result<()> {
        let window = self.config.recovery_window;
        self.bring_now(|state| {
            let room = Backlog::room(window, state.table.came());
            let next = state.backlog.next(room.min(BATCH)).into_iter();
            next.take_while(|id| below.is_none_or(|below| *id < below))
                .collect()
        })
    }

    /// Whether more of the backlog is about to come in.
    pub(super) fn is_coming(&self, state: &State) -> bool {
        let wanted = state
            .backlog
            .wanted(self.config.recovery_window, state.table.came());
        wanted > 0 && state.backlog.unread().count() < state.backlog.len().min(MAX_UNREAD)
    }

    /// Brings the backlog in as there is room for it, until it is empty or the queue has stopped.
    pub(crate) async fn feed(self: Arc<Self>) {
        let (base, cap) = (self.config.retry_base, self.config.retry_cap);
        let (mut pause, mut again) = (base, None::<Instant>);
        loop {
            let mut moved = std::pin::pin!(self.room.notified());
            // Listening before looking: what makes room in between is not missed.
            moved.as_mut().enable();
            if self.stopped.load(Ordering::Acquire) || !self.feeding.load(Ordering::Relaxed) {
                return;
            }
            let is_due = again.is_none_or(|again| again <= Instant::now());
            let Some(ids) = self.next_to_come(is_due) else {
                return;
            };
            let mut came = 0;
            if !ids.is_empty() {
                let journal = self.journal.clone();
                let round = match self.io.run(move || read(&journal, ids)).await {
                    Ok(read) => self.take_in(read),
                    Err(error) => Round {
                        came: 0,
                        error: Some(Error::directory(&self.config.dir, &error)),
                    },
                };
                came = round.came;
                if round.error.is_some() {
                    again = Some(Instant::now() + pause);
                    pause = pause.saturating_mul(2).min(cap);
                } else if is_due {
                    (pause, again) = (base, None);
                }
            }
            if came > 0 {
                continue;
            }
            let until = again.filter(|again| *again > Instant::now());
            tokio::select! {
                biased;
                () = moved => (),
                () = sleep_until(until) => (),
            }
        }
    }

    /// What is read next, `None` once all have come in. Those that could not be read are tried
    /// when it is time to.
    fn next_to_come(&self, is_due: bool) -> Option<Vec<TaskId>> {
        let state = self.lock();
        let backlog = &state.backlog;
        if backlog.is_empty() {
            self.feeding.store(false, Ordering::Relaxed);
            return None;
        }
        let wanted = backlog.wanted(self.config.recovery_window, state.table.came());
        let unread = backlog.unread().count();
        if wanted == 0 || (unread >= MAX_UNREAD && !is_due) {
            return Some(Vec::new());
        }
        let mut ids = backlog.next(wanted.min(BATCH) + unread);
        ids.retain(|id| is_due || backlog.why_unread(*id).is_none());
        Some(ids)
    }
}

/// For ever, where there is nothing to wait for.
async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
