//! What an earlier life left: from the journal's owners to tasks in the table.
//!
//! Owns: how records become tasks again, and who is suspected of a crash. Does not own: reading
//! the log ([`crate::journal`]).
//!
//! 1. Nothing that was persisted is rejected, whatever today's limits are.
//! 2. After a crash, tasks in flight at it are charged: each is a suspect, and after
//!    `crash_limit` crashes it is quarantined. A clean shutdown charges nobody. (Vitess resumed a
//!    persisted task at every boot, and crashed on it, for ever.)

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::error::Result;
use crate::journal::{Append, Location, RecoveredOwner};

use super::abort::Abort;
use super::admission::{Need, Permit};
use super::backlog::Backlog;
use super::charge::{Charge, note};
use super::quarantine::PastQuarantine;
use super::receipt::Cell;
use super::record::{
    self, AbortRecord, ActionRecord, Failed, Multipart, OutstandingRecord, Parked, Started,
    TaskRecord, kind, slot,
};
use super::table::{Status, Task};
use super::task::{Action, Cause, TaskId, cut};
use super::{Queue, State, Totals};

/// Owners that are looked at in one go.
const OWNERS: usize = 4096;

/// A request of an earlier life that may still happen.
#[derive(Debug)]
pub(crate) struct OutstandingFound {
    /// Its own record, which is ended when it has expired; `None` where it has none yet.
    pub location: Option<u64>,
    pub record: OutstandingRecord,
}

/// What is known of a task besides its record.
struct Known {
    status: Status,
    crashes: u32,
    suspect: bool,
    sent: bool,
    parked: Parked,
    history: Vec<PastQuarantine>,
    permit: Permit,
    /// Where its end is told, where somebody has asked for that already.
    cell: Option<Arc<Cell>>,
}

/// What recovery found besides tasks.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub outstanding: Vec<OutstandingFound>,
    pub suspects: u64,
    /// Records that this release cannot read.
    pub unreadable: u64,
}

impl Queue {
    /// Puts what the journal has into the table, and the rest of it into the backlog. `clean`: it
    /// was sealed; `next` is the first location that is new. Called once, before the workers
    /// start. Blocks on the disk.
    pub(crate) fn recover(&self, clean: bool, next: Location) -> Result<Recovery> {
        let mut found = Recovery::default();
        let read_now = {
            let mut state = self.lock();
            state.last_id = TaskId(next.saturating_sub(1));
            state.recovered = state.last_id;
            state.recovered_at = Instant::now();
            let upto = state.recovered;
            state.table.set_recovered(upto);
            let (backlog, read_now) = self.divide();
            state.backlog = backlog;
            let to_come = state.backlog.len();
            Totals::add(&self.totals.recovered, to_come as u64);
            self.feeding.store(to_come > 0, Ordering::Relaxed);
            read_now
        };
        for location in read_now {
            // In order of submission, as far as there is room.
            self.bring_first(Some(TaskId(location)))?;
            let Some(owner) = &self.journal.owner(location)? else {
                continue;
            };
            match owner.kind {
                kind::TASK => self.recover_task(owner, clean, &mut found)?,
                kind::OUTSTANDING => match record::decode::<OutstandingRecord>(&owner.head) {
                    Some(record) => found.outstanding.push(OutstandingFound {
                        location: Some(owner.location),
                        record,
                    }),
                    None => found.unreadable += 1,
                },
                kind::ABORT => match record::decode::<AbortRecord>(&owner.head) {
                    Some(record) => self.lock().aborts.push(Abort {
                        key: Arc::from(record.key),
                        upload_id: record.upload_id,
                        location: Some(owner.location),
                        failures: 0,
                    }),
                    None => found.unreadable += 1,
                },
                _ => found.unreadable += 1,
            }
        }
        self.bring_first(None)?;
        Ok(found)
    }

    /// What may wait for its turn, and what has to be read now.
    fn divide(&self) -> (Backlog, Vec<Location>) {
        let most = usize::try_from(self.journal.status().owners).unwrap_or(0);
        let (mut backlog, mut now) = (Backlog::with_capacity(most), Vec::new());
        let mut room = Need::default();
        let mut from = 0;
        loop {
            let owners = self.journal.owners(from, OWNERS);
            let Some(last) = owners.last() else {
                break;
            };
            from = last.location + 1;
            for owner in owners {
                if owner.kind >= kind::OTHERS {
                    // Those of parts are theirs.
                } else if owner.label == 0 || owner.notes {
                    now.push(owner.location);
                } else {
                    backlog.push(TaskId(owner.location), owner.label);
                    let stored = owner.payload.unwrap_or(0);
                    room = room.plus(self.need_of(owner.head_len as usize, stored, stored));
                }
            }
        }
        backlog.complete(self.admission.recover(room));
        (backlog, now)
    }

    /// The room of a recovered task.
    fn need_of(&self, head: usize, stored: u64, bytes: u64) -> Need {
        let external = self.journal.is_external(stored);
        Need {
            tasks: 1,
            bytes,
            disk: self.journal.need(head, stored, external),
            memory: 0,
        }
    }

    /// Makes a task of one that was to come; whether it is in the table now.
    pub(super) fn come_in(&self, state: &mut State, owner: &RecoveredOwner) -> bool {
        let id = TaskId(owner.location);
        let Some(record) = record::decode::<TaskRecord>(&owner.head) else {
            // It was read at open, as these bytes.
            tracing::error!(task = id.0, "a task's record cannot be read any more");
            return false;
        };
        let stored = owner.payload.unwrap_or(0);
        let need = self.need_of(owner.head.len(), stored, stored);
        let Some((permit, cell)) = state.backlog.take(id, need) else {
            return false;
        };
        let known = Known {
            status: Status::Waiting,
            crashes: 0,
            suspect: false,
            sent: false,
            parked: Parked::default(),
            history: Vec::new(),
            permit,
            cell,
        };
        insert_recovered(state, id, owner, record, known);
        true
    }

    fn recover_task(
        &self,
        owner: &RecoveredOwner,
        clean: bool,
        found: &mut Recovery,
    ) -> Result<()> {
        let id = TaskId(owner.location);
        let Some(record) = record::decode::<TaskRecord>(&owner.head) else {
            tracing::error!(
                task = id.0,
                "a task's record cannot be read: it stays where it is"
            );
            found.unreadable += 1;
            return Ok(());
        };
        self.bring_before(id, &record.key)?;
        let quarantined =
            note(owner, slot::QUARANTINE).and_then(|note| record::decode_quarantine(&note.head));
        let (quarantined, parked) = quarantined.unzip();
        // Of one that an earlier release put there, the time is not known.
        let mut parked = parked.flatten().unwrap_or_else(|| Parked {
            at_unix_ms: self.clock.unix_ms(),
            ..Parked::default()
        });
        let history = note(owner, slot::HISTORY)
            .and_then(|note| record::decode::<Vec<PastQuarantine>>(&note.head))
            .unwrap_or_default();
        let Charge {
            in_flight,
            crashes,
            new,
            mut suspect,
        } = Charge::of(owner, clean, quarantined.is_some());
        if let Some(Started {
            condition: Some(condition),
            expires_unix_ms,
        }) = &in_flight
        {
            found.outstanding.push(OutstandingFound {
                location: None,
                record: OutstandingRecord {
                    key: record.key.clone(),
                    condition: condition.clone(),
                    expires_unix_ms: *expires_unix_ms,
                },
            });
        }
        if let Some(counted) = new {
            self.note(id, slot::CRASHES, record::encode(&counted).into(), true);
        }
        found.suspects += u64::from(suspect);
        let upload =
            note(owner, slot::MULTIPART).and_then(|note| record::decode::<Multipart>(&note.head));
        if let Some(upload) = upload {
            let key = Arc::from(record.key.as_str());
            let state = &mut *self.lock();
            if let Some(id) = upload.upload_id {
                self.abandon_upload(state, &key, Some(id));
            }
            // Only the last one's id is on record, and the one after it may have been started.
            self.abandon_upload(state, &key, None);
            self.note_multipart(id, None);
        }
        let mut status = quarantined.map_or(Status::Waiting, Status::Quarantined);
        if suspect && crashes >= self.config.crash_limit {
            let cause = Cause::CrashLoop { crashes };
            tracing::warn!(
                task = id.0,
                crashes,
                "quarantined: in flight at every crash"
            );
            parked = Parked {
                at_unix_ms: self.clock.unix_ms(),
                // Of the attempts of earlier lives only those that a crash ended are known.
                attempts: crashes,
                crashes,
                last_error: None,
            };
            let head = record::encode_quarantine(&cause, &parked);
            self.note(id, slot::QUARANTINE, head.into(), true);
            status = Status::Quarantined(cause);
            suspect = false;
        }
        // An empty note says that no attempt is in flight, but one was.
        let sent = owner.notes.iter().any(|note| note.slot == slot::STARTED);
        let permit = match status {
            Status::Quarantined(_) => self.admission.quarantine(record.len),
            _ => {
                let stored = owner.payload.unwrap_or(0);
                let need = self.need_of(owner.head.len(), stored, record.len);
                self.admission.recover(need)
            }
        };
        Totals::add(&self.totals.recovered, 1);
        let known = Known {
            status,
            crashes,
            suspect,
            sent,
            parked,
            history,
            permit,
            cell: None,
        };
        insert_recovered(&mut self.lock(), id, owner, record, known);
        Ok(())
    }

    /// Puts a request that may still happen on record. It is not waited for: the end of the task
    /// that made it comes later in the log.
    pub(crate) fn record_outstanding(&self, record: &OutstandingRecord) -> Option<u64> {
        let head = record::encode(record);
        let append = Append::begin(kind::OUTSTANDING, head, crate::journal::Payload::None);
        self.journal.append(append.vital()).ok()
    }

    /// Ends the record of something that is not a task.
    pub(crate) fn end_owner(&self, location: u64) {
        let end = Append::end(kind::END, location, bytes::Bytes::from_static(&[3]));
        if let Err(error) = self.journal.append(end.unsynced()) {
            tracing::debug!(%error, "what is over stays on record");
        }
    }
}

/// Puts a task of an earlier life into the table.
fn insert_recovered(
    state: &mut State,
    id: TaskId,
    owner: &RecoveredOwner,
    record: TaskRecord,
    known: Known,
) {
    let Known {
        status,
        crashes,
        suspect,
        sent,
        parked,
        history,
        permit,
        cell,
    } = known;
    // What it was after and is not owed any more is in S3: any other end would have put this
    // one into quarantine, on record first.
    let after = record
        .after
        .iter()
        .map(|id| TaskId(*id))
        .filter(|id| state.table.get(*id).is_some() || state.backlog.contains(*id))
        .collect();
    let failed = note(owner, slot::FAILED).and_then(|note| record::decode::<Failed>(&note.head));
    let cell = cell.unwrap_or_else(|| {
        let cell = Cell::new();
        cell.set_durable();
        cell
    });
    let since = state.recovered_at;
    state.table.insert(Task {
        id,
        key: Arc::from(record.key),
        lane: record.lane,
        policy: record.policy,
        action: match record.action {
            ActionRecord::Upload => Action::Upload,
            ActionRecord::UploadBorrowed(borrowed) => Action::UploadBorrowed(Arc::new(borrowed)),
            ActionRecord::Delete => Action::Delete,
        },
        condition: record.condition,
        coalesce: record.coalesce,
        after,
        tag: record.tag,
        headers: Arc::new(record.headers),
        len: record.len,
        checksum: record.checksum,
        memory: None,
        permit: Some(permit),
        cell,
        superseded: Vec::new(),
        cover: id,
        since,
        durable: true,
        status,
        failures: 0,
        failed_before: failed.as_ref().map_or(0, |failed| failed.attempts),
        attempts: parked
            .attempts
            .max(failed.as_ref().map_or(0, |failed| failed.attempts)),
        last_error: parked
            .last_error
            .or_else(|| failed.map(|failed| cut(failed.error))),
        parked_ms: parked.at_unix_ms,
        history,
        crashes,
        sent,
        suspect,
        aside: false,
        multipart: None,
    });
}
