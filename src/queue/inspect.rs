//! What the records of a journal say of tasks, without recovering them.
//!
//! Owns: the shapes of what is found, and reading it. Does not own: what recovery does with the
//! same records (`recover.rs`); the two agree on whom a crash is charged to by `charge.rs`.

use std::path::PathBuf;

use serde::Serialize;

use crate::journal::{Recovered, RecoveredOwner};

use super::charge::{Charge, note};
use super::record::{
    self, AbortRecord, ActionRecord, Failed, Multipart, OutstandingRecord, TaskRecord, kind, slot,
};
use super::task::{Cause, KeyPolicy, Lane, TaskId, cut};

/// A task that is on record and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedTask {
    /// Its id.
    pub task: TaskId,
    /// Its key, relative to the remote's prefix.
    pub key: String,
    /// Its submitter's name for it.
    pub tag: String,
    /// Its lane.
    pub lane: Lane,
    /// Whether its key may get other bytes later.
    pub policy: KeyPolicy,
    /// Whether it deletes its key.
    pub deletes: bool,
    /// Bytes of its body.
    pub len: u64,
    /// The caller's own file that it uploads, if it does not upload a copy.
    pub borrows: Option<PathBuf>,
    /// Tasks that it is after, and that have not ended either.
    pub after: Vec<TaskId>,
    /// Why it is in quarantine, if it is.
    pub quarantined: Option<Cause>,
    /// An attempt was under way when the journal was last written: it runs now, or it did when
    /// its process died.
    pub in_flight: bool,
    /// Until when that attempt may take effect, in milliseconds since the Unix epoch.
    pub may_land_until_unix_ms: Option<u64>,
    /// Crashes at which it was in flight, as the next open will count them if the process is dead
    /// by now.
    pub crashes: u32,
    /// The next open retries it alone, or puts it into quarantine for its crashes.
    pub suspect: bool,
    /// Attempts that failed, over all lives: at least so many, for they are noted at the first,
    /// second, fourth, eighth, ... of a life.
    pub attempts_failed: u32,
    /// The error of the last attempt of those that was noted, at most 1 KiB.
    pub last_error: Option<String>,
    /// An upload in parts is under way.
    pub in_parts: bool,
    /// Its id, if the server had told one.
    pub upload_id: Option<String>,
}

/// A request that was given up and may still land.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedRequest {
    /// On this key.
    pub key: String,
    /// Until then, in milliseconds since the Unix epoch.
    pub until_unix_ms: u64,
}

/// An upload in parts that is to be aborted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedAbort {
    /// Of this key.
    pub key: String,
    /// Its id; all of the key where it is not known.
    pub upload_id: Option<String>,
}

/// A record that this release cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its location in the journal.
    pub location: u64,
    /// Its kind.
    pub kind: u8,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub tasks: Vec<InspectedTask>,
    pub requests: Vec<InspectedRequest>,
    pub aborts: Vec<InspectedAbort>,
    pub unreadable: Vec<Unreadable>,
}

/// Reads the records of the queue.
pub(crate) fn inspect(recovered: &Recovered) -> Inspected {
    let mut found = Inspected::default();
    for owner in &recovered.owners {
        let read = match owner.kind {
            kind::TASK => task(owner, recovered).map(|task| found.tasks.push(task)),
            kind::OUTSTANDING => {
                let record = record::decode::<OutstandingRecord>(&owner.head);
                record.map(|record| {
                    found.requests.push(InspectedRequest {
                        key: record.key,
                        until_unix_ms: record.expires_unix_ms,
                    });
                })
            }
            kind::ABORT => record::decode::<AbortRecord>(&owner.head).map(|record| {
                found.aborts.push(InspectedAbort {
                    key: record.key,
                    upload_id: record.upload_id,
                });
            }),
            // Those of parts are theirs.
            other if other >= kind::OTHERS => Some(()),
            _ => None,
        };
        if read.is_none() {
            found.unreadable.push(Unreadable {
                location: owner.location,
                kind: owner.kind,
            });
        }
    }
    found
}

fn task(owner: &RecoveredOwner, recovered: &Recovered) -> Option<InspectedTask> {
    let record = record::decode::<TaskRecord>(&owner.head)?;
    let quarantined =
        note(owner, slot::QUARANTINE).and_then(|note| record::decode_quarantine(&note.head));
    let (quarantined, parked) = quarantined.unzip();
    let parked = parked.flatten().and_then(|parked| parked.last_error);
    let charge = Charge::of(owner, recovered.clean, quarantined.is_some());
    let failed = note(owner, slot::FAILED).and_then(|note| record::decode::<Failed>(&note.head));
    let upload =
        note(owner, slot::MULTIPART).and_then(|note| record::decode::<Multipart>(&note.head));
    let is_owed = |id: &u64| {
        let found = recovered
            .owners
            .binary_search_by_key(id, |owner| owner.location);
        found.is_ok()
    };
    Some(InspectedTask {
        task: TaskId(owner.location),
        tag: record.tag,
        lane: record.lane,
        policy: record.policy,
        deletes: record.action == ActionRecord::Delete,
        len: record.len,
        borrows: match record.action {
            ActionRecord::UploadBorrowed(borrowed) => Some(borrowed.path.into()),
            ActionRecord::Upload | ActionRecord::Delete => None,
        },
        after: record
            .after
            .into_iter()
            .filter(is_owed)
            .map(TaskId)
            .collect(),
        key: record.key,
        in_flight: charge.in_flight.is_some() && quarantined.is_none(),
        may_land_until_unix_ms: charge.in_flight.map(|started| started.expires_unix_ms),
        crashes: charge.crashes,
        suspect: charge.suspect,
        quarantined,
        attempts_failed: failed.as_ref().map_or(0, |failed| failed.attempts),
        last_error: parked.or_else(|| failed.map(|failed| cut(failed.error))),
        in_parts: upload.is_some(),
        upload_id: upload.and_then(|upload| upload.upload_id),
    })
}
