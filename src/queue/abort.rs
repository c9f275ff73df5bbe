//! Multipart uploads that nobody will finish: they are aborted, or S3 bills their parts for ever.
//!
//! Owns: what is to be aborted, on record until it has been. Does not own: the requests.
//!
//! 1. An upload id is on record before its first part is sent; "about to start one" is on record
//!    before it is asked for. So a crash at any point leaves something to find it by.
//! 2. What is to be aborted has a record of its own, because its task may be over.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::journal::{Append, Payload};

use super::record::{self, AbortRecord, Multipart, kind, slot};
use super::task::TaskId;
use super::{Queue, State};

/// The most that are kept: of more, the oldest is given up and named in the log.
const MAX_ABORTS: usize = 10_000;

/// A multipart upload to abort.
#[derive(Debug, Clone)]
pub(crate) struct Abort {
    pub key: Arc<str>,
    /// `None`: whatever is unfinished on this key.
    pub upload_id: Option<String>,
    pub(super) location: Option<u64>,
    pub failures: u32,
}

impl Queue {
    /// Notes that a task is about to start a multipart upload, or has; `None` that it is over.
    pub(crate) fn note_multipart(&self, id: TaskId, upload: Option<&Multipart>) -> Option<u64> {
        let head = upload.map(record::encode).unwrap_or_default();
        self.note(id, slot::MULTIPART, Bytes::from(head), upload.is_some())
    }

    /// What a task that is over leaves unfinished goes into the line; on record before the task's
    /// end is.
    pub(super) fn abandon_upload(
        &self,
        state: &mut State,
        key: &Arc<str>,
        upload_id: Option<String>,
    ) {
        let head = record::encode(&AbortRecord {
            key: key.to_string(),
            upload_id: upload_id.clone(),
        });
        if state.aborts.waiting() >= MAX_ABORTS
            && let Some(oldest) = state.aborts.drop_oldest()
        {
            tracing::error!(key = %oldest.key, upload = ?oldest.upload_id, "a multipart upload is left unaborted");
            if let Some(location) = oldest.location {
                self.end_owner(location);
            }
        }
        let append = Append::begin(kind::ABORT, head, Payload::None);
        let location = self.journal.append(append.vital()).ok();
        state.aborts.push(Abort {
            key: Arc::clone(key),
            upload_id,
            location,
            failures: 0,
        });
    }

    /// Whether a task on this key is in flight: what is unfinished there may be its own upload.
    pub(crate) fn is_busy(&self, key: &str) -> bool {
        self.lock().table.is_running(key)
    }

    /// Not yet: its key is busy.
    pub(crate) fn postpone_abort(&self, abort: Abort, until: Instant) {
        self.lock().aborts.retry(abort, until);
        self.changed();
    }

    pub(crate) fn retry_abort(&self, mut abort: Abort, until: Instant) {
        abort.failures = abort.failures.saturating_add(1);
        self.lock().aborts.retry(abort, until);
        self.changed();
    }

    pub(crate) fn end_abort(&self, abort: &Abort) {
        self.lock().aborts.ended();
        if let Some(location) = abort.location {
            self.end_owner(location);
        }
        self.moved_on();
    }
}
