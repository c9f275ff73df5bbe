//! What workers may take now: the queue asks before it gives anything out.
//!
//! Owns: the question. Does not own: the answer, which is the workers': a window, a breaker, a
//! budget for retries.
//!
//! What may not go stays in line: it holds no slot, and no attempt is charged.

use tokio::time::Instant;

use crate::remote::classify::Operation;

use super::table::Slot;

/// Which way a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
    /// It takes away what is there: a delete, or the abort of an upload.
    Remove,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Remove];

    /// That of a request by S3's name of it.
    pub(crate) fn of(operation: &str) -> Self {
        match Operation::by_name(operation) {
            Some(Operation::DeleteObject | Operation::AbortMultipartUpload) => Self::Remove,
            Some(operation) if operation.is_write() => Self::Write,
            _ => Self::Read,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// What may be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct May {
    pub reads: bool,
    pub writes: bool,
    pub removes: bool,
    /// What is written now is a probe.
    pub is_parked: bool,
    /// When it may be more, without anything's ending before.
    pub again: Option<Instant>,
}

impl May {
    /// All of it.
    pub(crate) const ALL: Self = Self {
        reads: true,
        writes: true,
        removes: true,
        is_parked: false,
        again: None,
    };

    /// Nothing, before `again`.
    pub(crate) const fn none(again: Option<Instant>) -> Self {
        Self {
            reads: false,
            writes: false,
            removes: false,
            is_parked: false,
            again,
        }
    }

    pub(crate) const fn go(self, way: Way) -> bool {
        match way {
            Way::Read => self.reads,
            Way::Write => self.writes,
            Way::Remove => self.removes,
        }
    }
}

/// What was given to who took a job: to be given back when the job is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    pub slot: Slot,
    pub way: Way,
    /// Bytes that it was taken for.
    pub bytes: u64,
    /// It is the one that finds out whether the world is right again.
    pub probes: bool,
}

/// Who decides. Called under the queue's lock: must not block, and must not call the queue.
pub(crate) trait Gate: Send + Sync + std::fmt::Debug {
    fn may(&self, slot: Slot, now: Instant) -> May;

    /// A job of so many bytes is taken; only where [`may`](Self::may) said so.
    fn took(&self, slot: Slot, way: Way, bytes: u64, now: Instant) -> Pass;

    /// Whether something that failed before may be tried again: if so, it is paid for.
    fn affords_retry(&self, now: Instant) -> bool;

    /// When the next of those may be.
    fn next_retry(&self, now: Instant) -> Instant;

    /// Until when nothing is written, for the world is not right; `None`: it is.
    fn parked_until(&self, now: Instant) -> Option<Instant>;
}

/// Everything may go: where there are no workers yet.
#[derive(Debug)]
pub(super) struct Open;

impl Gate for Open {
    fn may(&self, _: Slot, _: Instant) -> May {
        May::ALL
    }

    fn took(&self, slot: Slot, way: Way, bytes: u64, _: Instant) -> Pass {
        Pass {
            slot,
            way,
            bytes,
            probes: false,
        }
    }

    fn affords_retry(&self, _: Instant) -> bool {
        true
    }

    fn next_retry(&self, now: Instant) -> Instant {
        now
    }

    fn parked_until(&self, _: Instant) -> Option<Instant> {
        None
    }
}
