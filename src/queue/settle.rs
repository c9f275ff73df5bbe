//! The way out: how a task's end is recorded, then told.
//!
//! Owns: the order of both. Does not own: which end it is (`worker`, `control.rs`).
//!
//! 1. An end is told only when its record is durable: what was told once is never owed again
//!    after a crash. (Where the journal has failed there is no record to wait for, and what
//!    happened in S3 is told as it is.)
//! 2. Who is after a task that will never be in S3 goes to quarantine on record before the task's
//!    own end is: no crash leaves it waiting for nothing.
//! 3. Its key, and who is after it, go on at once: they do not wait for the disk.
//! 4. A permit is given back after the end was told.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::Error;
use crate::journal::{Append, CommitSink, JournalFailure, Location};
use crate::mutant::{Mutant, is};
use crate::remote::RemoteError;

use super::load::{Load, Loaded};
use super::receipt::{Cell, Settlement};
use super::record::{self, Failed, kind, slot};
use super::table::{Ended, Status, Task};
use super::task::{Cause, TaskId, cut};
use super::{Queue, State, Totals};

impl Queue {
    /// Ends a task for good.
    pub(crate) fn settle(&self, id: TaskId, settlement: Settlement) {
        let told = self.end_of(&mut self.lock(), id, settlement);
        tell(told);
        self.moved_on();
    }

    /// Takes a task back, if `may` says so of what it is doing now. Asked and done under one
    /// lock: a worker that took it in between would upload what its submitter was told is
    /// cancelled.
    pub(crate) fn take_back(
        &self,
        id: TaskId,
        may: impl FnOnce(&Task) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.bring_task(id)?;
        let told = {
            let mut state = self.lock();
            let task = state.table.get(id).ok_or(Error::NoSuchTask(id))?;
            may(task)?;
            // Without a record the next life would upload it all the same.
            self.takes_records(&state)?;
            self.end_of(&mut state, id, Settlement::Cancelled)
        };
        tell(told);
        self.moved_on();
        Ok(())
    }

    /// Whether what is decided now can go on record.
    pub(super) fn takes_records(&self, state: &State) -> Result<(), Error> {
        if state.closed {
            let phase = crate::phase::Phase::Closed;
            return Err(Error::ShuttingDown { phase });
        }
        match &state.journal_failed {
            Some(cause) => Err(Error::JournalFailed(cause.clone())),
            None => Ok(()),
        }
    }

    fn end_of(&self, state: &mut State, id: TaskId, settlement: Settlement) -> Vec<Ended> {
        let len = state.table.get(id).map_or(0, |task| task.len);
        self.abandon_upload_of(state, id);
        let Some(ended) = state.table.end(id, settlement) else {
            return Vec::new();
        };
        self.count(&ended.settlement, len);
        let mut told = self.park_all(state, &ended.orphaned);
        let record = Append::end(kind::END, id.0, Bytes::from_static(&[1]));
        told.extend(self.record_end(state, ended, record));
        told
    }

    /// Puts a task into quarantine, where it holds its key and what is after it.
    pub(crate) fn quarantine(&self, id: TaskId, cause: Cause) {
        tracing::warn!(task = id.0, ?cause, "quarantined");
        let told = {
            let mut state = self.lock();
            self.abandon_upload_of(&mut state, id);
            let Some(ended) = state.table.quarantine(id, cause.clone()) else {
                return;
            };
            Totals::add(&self.totals.quarantined, 1);
            let Some(note) = self.park(&mut state, id, &cause) else {
                return;
            };
            let told = self.record_end(&mut state, ended, note);
            crate::crash_point::crash_point("settle.quarantined");
            told
        };
        tell(told);
        self.moved_on();
    }

    fn abandon_upload_of(&self, state: &mut State, id: TaskId) {
        let Some(task) = state.table.get_mut(id) else {
            return;
        };
        if let Some(upload) = task.multipart.take() {
            let key = Arc::clone(&task.key);
            let current = upload.upload_id().map(str::to_owned).into_iter();
            for id in current.chain(upload.abandoned().iter().cloned()) {
                self.abandon_upload(state, &key, Some(id));
            }
            if upload.may_have_strays() {
                self.abandon_upload(state, &key, None);
            }
        }
    }

    /// A worker gives back what it knows of a task's upload in parts, before the task ends: what
    /// of it is unfinished is aborted then.
    pub(crate) fn hand_back(
        &self,
        id: TaskId,
        multipart: Option<crate::remote::multipart::MultipartUploadState>,
    ) {
        if let Some(task) = self.lock().table.get_mut(id) {
            task.multipart = multipart;
        }
    }

    fn park_all(&self, state: &mut State, orphaned: &[TaskId]) -> Vec<Ended> {
        let mut told = Vec::new();
        for id in orphaned {
            let Some(cause) = state.table.cause_of(*id) else {
                continue;
            };
            let Some(ended) = state.table.parked(*id, cause.clone()) else {
                continue;
            };
            Totals::add(&self.totals.quarantined, 1);
            if let Some(note) = self.park(state, *id, &cause) {
                told.extend(self.record_end(state, ended, note));
            }
        }
        told
    }

    /// Appends the record of an end. What it returns is to be told at once.
    fn record_end(&self, state: &mut State, ended: Ended, record: Append) -> Vec<Ended> {
        if !ended.settlement.is_in_s3() && ended.settlement != Settlement::Cancelled {
            let error = Error::NotUploaded {
                task: ended.id,
                key: ended.key.to_string(),
                settlement: Box::new(ended.settlement.clone()),
            };
            let for_good = !matches!(ended.settlement, Settlement::Quarantined(_));
            state.drains.failed(ended.cover, &error, for_good);
        }
        let first_open = state.first_open();
        state.drains.moved(first_open);
        match self.journal.append(record) {
            Ok(location) => {
                crate::crash_point::crash_point("settle.ended");
                state.settling.insert(location, ended);
                Vec::new()
            }
            Err(error) => {
                tracing::debug!(%error, task = ended.id.0, "an end is told without a record");
                vec![ended]
            }
        }
    }

    fn count(&self, settlement: &Settlement, len: u64) {
        match settlement {
            Settlement::Uploaded(_) => {
                Totals::add(&self.totals.uploaded, 1);
                Totals::add(&self.totals.uploaded_bytes, len);
            }
            Settlement::Deleted => Totals::add(&self.totals.deleted, 1),
            _ => (),
        }
    }

    /// An attempt failed in a way that may pass: again at `until`.
    pub(crate) fn retry(
        &self,
        id: TaskId,
        until: Instant,
        error: Option<&RemoteError>,
        multipart: Option<crate::remote::multipart::MultipartUploadState>,
    ) {
        // The latest note says that it is not in flight any more: a crash is not charged to it.
        self.note(id, slot::STARTED, Bytes::new(), false);
        let failed = {
            let mut state = self.lock();
            if let Some(task) = state.table.get_mut(id) {
                task.multipart = multipart;
            }
            state
                .table
                .retry(id, until, error.map(|error| cut(error.to_string())));
            state.table.get(id).and_then(|task| {
                let error = error.and(task.last_error.clone())?;
                let attempts = task.failed_before.saturating_add(task.failures);
                task.failures
                    .is_power_of_two()
                    .then_some(Failed { attempts, error })
            })
        };
        if let Some(failed) = failed {
            self.note(id, slot::FAILED, record::encode(&failed).into(), false);
        }
        self.relieve();
        self.changed();
    }

    /// A worker was stopped with this task in hand, or was refused what is not its fault: it is
    /// where it was, and no failure is counted.
    pub(crate) fn put_back(
        &self,
        id: TaskId,
        error: Option<&RemoteError>,
        multipart: Option<crate::remote::multipart::MultipartUploadState>,
    ) {
        self.note(id, slot::STARTED, Bytes::new(), false);
        {
            let mut state = self.lock();
            if let Some(task) = state.table.get_mut(id) {
                task.multipart = multipart;
            }
            let error = error.map(|error| cut(error.to_string()));
            state.table.put_back(id, error);
        }
        self.changed();
    }

    /// Notes an attempt that begins: it is to survive this process, which it may end.
    pub(crate) fn note_attempt(&self, id: TaskId, head: Bytes) -> Option<Location> {
        let note = Append::note(kind::NOTE, id.0, slot::STARTED, head);
        self.journal.append(note.lasting()).ok()
    }

    /// Writes a note on a task. Notes are dropped where the disk has no room for them.
    pub(crate) fn note(&self, id: TaskId, slot: u8, head: Bytes, sync: bool) -> Option<Location> {
        let note = Append::note(kind::NOTE, id.0, slot, head);
        let note = if sync { note } else { note.unsynced() };
        self.journal.append(note).ok()
    }

    /// A load came back without an answer.
    pub(crate) fn retry_load(&self, mut load: Load, until: Instant) {
        load.failures = load.failures.saturating_add(1);
        let mut state = self.lock();
        if load.is_kept() {
            state.loads.retry(load, until);
        } else if !is(Mutant::LoadKept) {
            state.loads.ended();
        }
        drop(state);
        self.changed();
    }

    /// S3 refuses everything: it goes as soon as anything does.
    pub(crate) fn put_back_load(&self, load: Load) {
        let mut state = self.lock();
        state.loads.ended();
        state.loads.push(load);
        drop(state);
        self.changed();
    }

    /// A load came back with one.
    pub(crate) fn end_load(&self, load: &Load, outcome: Loaded) {
        self.lock().loads.ended();
        load.end(outcome);
        self.moved_on();
    }

    /// Everything that is left is told why it does not go on. `sealed` says whether the journal
    /// has all of it.
    pub(crate) fn settle_rest(&self, sealed: Result<(), String>) -> Rest {
        let (told, loads, images, calls, rest, cells, room) = {
            let mut state = self.lock();
            state.closed = true;
            let mut rest = Rest::default();
            // They were durable before this life.
            let (to_come, cells, room) = state.backlog.close();
            rest.deferred += to_come as u64;
            let mut told: Vec<Ended> = std::mem::take(&mut state.settling).into_values().collect();
            let open: Vec<(TaskId, bool, bool)> = state
                .table
                .iter()
                .map(|task| {
                    let quarantined = matches!(task.status, Status::Quarantined(_));
                    (task.id, task.durable, quarantined)
                })
                .collect();
            for (id, durable, quarantined) in open {
                let settlement = if quarantined {
                    rest.quarantined += 1;
                    continue;
                } else if durable || sealed.is_ok() {
                    rest.deferred += 1;
                    Settlement::Deferred
                } else {
                    rest.undetermined += 1;
                    Settlement::Undetermined(sealed.clone().err().unwrap_or_default())
                };
                if let Some(ended) = state.table.close(id, settlement) {
                    told.push(ended);
                }
            }
            let phase = crate::phase::Phase::Closed;
            state.drains.all_failed(&Error::ShuttingDown { phase });
            let calls = std::mem::take(&mut state.calls);
            let (loads, images) = (state.loads.drain(), state.images.drain());
            (told, loads, images, calls, rest, cells, room)
        };
        for cell in cells {
            cell.settle(Settlement::Deferred);
        }
        drop(room);
        if !is(Mutant::RestNotTold) {
            tell(told);
        }
        drop(calls);
        for load in loads {
            load.end(Err(RemoteError::lost("GetObject").with_message("shut down")));
        }
        for image in images {
            let error = RemoteError::lost("PutObject").with_message("shut down");
            image.sink.end(Err(error));
        }
        rest
    }

    /// Something ended, became durable or came in: what the watchdog calls progress.
    pub(super) fn moved_on(&self) {
        Totals::add(&self.totals.progress, 1);
        self.changed();
    }

    /// Something may be ready, or have stopped being able to move. An attempt that failed is no
    /// progress: a server that refuses everything is what the watchdog is to report.
    pub(crate) fn changed(&self) {
        self.wake_workers();
        self.dry.notify_waiters();
        if self.feeding.load(Ordering::Relaxed) {
            self.room.notify_one();
        }
    }
}

/// What was left at the end of a shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    pub deferred: u64,
    pub undetermined: u64,
    pub quarantined: u64,
}

/// Tells ends to whoever holds a receipt; called without locks.
fn tell(told: Vec<Ended>) {
    for ended in told {
        for cell in &ended.cells {
            cell.settle(ended.settlement.clone());
        }
        drop(ended.permit);
    }
}

/// The queue as the journal's committer sees it: it keeps neither of the two alive.
#[derive(Debug)]
pub(crate) struct Sink(pub Weak<Queue>);

impl Queue {
    fn on_record(&self, mut take: impl FnMut(&mut State) -> Vec<Ended>) {
        let told = take(&mut self.lock());
        self.told(Vec::new(), told);
    }

    /// Tells what is on record now. Notes of attempts come to the disk too, and are no progress.
    fn told(&self, cells: Vec<Arc<Cell>>, told: Vec<Ended>) {
        let progress = !cells.is_empty() || !told.is_empty();
        for cell in cells {
            cell.set_durable();
        }
        tell(told);
        if progress {
            self.moved_on();
        } else {
            self.changed();
        }
    }
}

impl CommitSink for Sink {
    fn durable(&self, upto: Location) {
        if let Some(queue) = self.0.upgrade() {
            queue.on_durable(upto);
        }
    }

    fn durable_ahead(&self, locations: &[Location]) {
        if let Some(queue) = self.0.upgrade() {
            queue.on_record(|state| {
                let ahead = locations.iter();
                ahead
                    .filter_map(|location| state.settling.remove(location))
                    .collect()
            });
        }
    }

    fn void(&self, locations: &[Location], cause: &JournalFailure) {
        if let Some(queue) = self.0.upgrade() {
            queue.gone(locations, &Settlement::Refused(cut(cause.to_string())));
        }
    }

    fn undetermined(&self, locations: &[Location], cause: &JournalFailure) {
        if let Some(queue) = self.0.upgrade() {
            queue.gone(locations, &Settlement::Undetermined(cut(cause.to_string())));
        }
    }

    fn space(&self, short: bool) {
        if let Some(queue) = self.0.upgrade() {
            queue.on_space(short);
        }
    }

    fn failed(&self, cause: &JournalFailure) {
        if let Some(queue) = self.0.upgrade() {
            queue.on_failed(cause);
        }
    }
}

impl Queue {
    fn on_durable(&self, upto: Location) {
        crate::crash_point::crash_point("settle.recorded");
        let (cells, told, adopted, superseded) = {
            let mut state = self.lock();
            let rest = state.adopted.split_off(&TaskId(upto + 1));
            let adopted = std::mem::replace(&mut state.adopted, rest);
            let (cells, superseded) = state.table.durable(TaskId(upto));
            for old in &superseded {
                let record = Append::end(kind::END, old.id.0, Bytes::from_static(&[2]));
                if let Err(error) = self.journal.append(record) {
                    // It will be superseded again after the next open.
                    tracing::debug!(%error, task = old.id.0, "a superseded task stays on record");
                }
            }
            let rest = state.settling.split_off(&(upto + 1));
            let told = std::mem::replace(&mut state.settling, rest);
            let told: Vec<_> = told.into_values().collect();
            (cells, told, adopted, superseded)
        };
        // Whoever waits for the room that this gives back is woken without the table's lock.
        for old in superseded {
            drop(old.permit);
        }
        self.relieve();
        for path in adopted.into_values() {
            crate::crash_point::crash_point("submit.adopted");
            // Only now: had the record been refused, this would have been the only copy.
            // Durably, before its submitter is told: were the name to come back after a power cut,
            // whoever writes it anew would write into our body.
            let gone = self.fs.unlink(&path).and_then(|()| match path.parent() {
                Some(dir) => self.fs.sync_dir(dir),
                None => Ok(()),
            });
            if let Err(error) = gone {
                tracing::warn!(%error, "an adopted file may keep its old name");
            }
        }
        self.told(cells, told);
    }

    fn on_space(&self, short: bool) {
        self.admission.disk_full(short);
        self.lock().disk_full = short;
        if short {
            tracing::warn!(dir = %self.config.dir.display(), "the disk is full");
        } else {
            tracing::info!(dir = %self.config.dir.display(), "the disk has room again");
        }
        self.moved_on();
    }

    fn on_failed(&self, cause: &JournalFailure) {
        tracing::error!(%cause, "the journal has failed: nothing new is taken; uploads go on");
        let cause = cut(cause.to_string());
        self.admission.fail(&cause);
        let unknown = Settlement::Undetermined(cause.clone());
        self.on_record(|state| {
            state.journal_failed = Some(cause.clone());
            let rest = std::mem::take(&mut state.settling).into_values();
            rest.map(|ended| unrecorded(ended, &HashSet::new(), &unknown))
                .collect()
        });
    }
}

impl Queue {
    /// These records are not, or may not be, on the disk. Of a task that has none: it ends. Of an
    /// end: it is told, for it is true.
    fn gone(&self, locations: &[Location], settlement: &Settlement) {
        let gone: HashSet<Location> = locations.iter().copied().collect();
        self.on_record(|state| {
            let mut told = Vec::new();
            // The last first: who is after a task came later, and is told the same.
            for location in locations.iter().rev() {
                if let Some(ended) = state.settling.remove(location) {
                    told.push(unrecorded(ended, &gone, settlement));
                }
                let id = TaskId(*location);
                state.adopted.remove(&id);
                if state.table.get(id).is_none_or(|task| task.durable) {
                    continue;
                }
                let Some(ended) = state.table.end(id, settlement.clone()) else {
                    continue;
                };
                let error = Error::NotUploaded {
                    task: id,
                    key: ended.key.to_string(),
                    settlement: Box::new(settlement.clone()),
                };
                state.drains.failed(ended.cover, &error, true);
                // A body may be refused alone: who is after it is durable, and would run.
                told.extend(self.park_all(state, &ended.orphaned));
                told.push(ended);
            }
            told
        });
    }
}

/// What is told of an end that is not on record, for these records are `gone`. What happened in S3
/// is true all the same; what was only decided here is not.
fn unrecorded(mut ended: Ended, gone: &HashSet<Location>, settlement: &Settlement) -> Ended {
    if gone.contains(&ended.id.0) {
        // The task itself is not on record.
        ended.settlement = settlement.clone();
    } else if ended.settlement == Settlement::Cancelled {
        ended.settlement = match settlement {
            // Still owed, for certain.
            Settlement::Refused(_) => Settlement::Deferred,
            other => other.clone(),
        };
    }
    ended
}
