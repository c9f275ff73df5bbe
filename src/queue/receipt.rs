//! Receipts: the handle of a submitted task.
//!
//! Owns: how a task's end is told, exactly once, to all who hold a receipt of it. Does not own:
//! when a task ends (`table.rs`). Locations in the queue are never public: who waits, waits for a
//! task's own end and never for a place in the queue to be passed.
//!
//! 1. A cell goes from open to settled once and never back.
//! 2. A cell is durable or settled before anybody is told `durable`.
//! 3. Dropping a receipt, or a future that waits on it, changes nothing for the task.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Limit};
use crate::mutant::{Mutant, is};
use crate::op::Op;
use crate::remote::ObjectInfo;
use crate::runtime::Driver;
use crate::watched::Watched;

use super::task::{Cause, TaskId};

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Settlement {
    /// It is in S3.
    Uploaded(ObjectInfo),
    /// The key does not exist in S3 any more.
    Deleted,
    /// Its condition did not hold, or its write-once key already has an object that is not ours.
    PreconditionFailed,
    /// It cannot go up; it is kept, listed and can be replayed.
    Quarantined(Cause),
    /// Its submitter, or an operator, took it back.
    Cancelled,
    /// Shutdown came first: it is durable here and goes up after the next open.
    Deferred,
    /// Not kept and not sent: its record is durably void.
    Refused(String),
    /// The disk failed before its record was known to be durable, and before it was in S3: it may
    /// or may not be there at the next open.
    Undetermined(String),
}

impl Settlement {
    /// Whether what the task was to do is done in S3.
    #[must_use]
    pub const fn is_in_s3(&self) -> bool {
        matches!(self, Self::Uploaded(_) | Self::Deleted)
    }
}

/// Where a task's end is told.
#[derive(Debug)]
pub(crate) struct Cell {
    state: Watched<State>,
}

#[derive(Debug, Default)]
struct State {
    durable: bool,
    settlement: Option<Settlement>,
}

impl Cell {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Watched::new(State::default()),
        })
    }

    pub(crate) fn set_durable(&self) {
        let durable = |state: &mut State| state.durable = true;
        match is(Mutant::DurableWakesNobody) {
            true => self.state.edit(durable),
            false => self.state.change(durable),
        }
    }

    /// Tells the end. Returns false, and changes nothing, where it had been told before.
    pub(crate) fn settle(&self, settlement: Settlement) -> bool {
        let settle = |state: &mut State| {
            let first = state.settlement.is_none();
            debug_assert!(
                first,
                "settled twice: {:?}, then {settlement:?}",
                state.settlement
            );
            if first {
                state.settlement = Some(settlement);
            }
            first
        };
        match is(Mutant::EndWakesNobody) {
            true => self.state.edit(settle),
            false => self.state.change(settle),
        }
    }

    /// Waits for the end.
    pub(super) async fn settled(&self) -> Settlement {
        self.state.until(|state| state.settlement.clone()).await
    }

    fn settlement(&self) -> Option<Settlement> {
        self.state.read(|state| state.settlement.clone())
    }
}

/// The handle of a submitted task. Clones are of the same task; dropping one cancels nothing.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub(crate) task: TaskId,
    pub(crate) key: Arc<str>,
    pub(crate) journal: u128,
    pub(crate) cell: Arc<Cell>,
    pub(crate) driver: Driver,
    pub(crate) deadline: Duration,
    /// Receipts and waits that there may be of one task.
    pub(crate) most: u64,
}

impl Receipt {
    /// The task's durable id.
    #[must_use]
    pub const fn task(&self) -> TaskId {
        self.task
    }

    /// Which journal it is of.
    pub(crate) const fn journal(&self) -> u128 {
        self.journal
    }

    /// The key it was submitted under.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    fn not_uploaded(task: TaskId, key: &str, settlement: Settlement) -> Error {
        Error::NotUploaded {
            task,
            key: key.to_owned(),
            settlement: Box::new(settlement),
        }
    }

    /// Why no further wait can begin: there are too many.
    fn crowded(&self) -> Option<Error> {
        let held = (Arc::strong_count(&self.cell) as u64).saturating_sub(1);
        (held > self.most).then(|| Error::QueueFull {
            limit: Limit::Receipts,
            current: held,
            max: self.most,
            retry_after: Duration::from_millis(50),
        })
    }

    /// Waits until the task is durable on this disk; then so is every task submitted before it.
    ///
    /// # Errors
    /// [`Error::NotUploaded`] where it was refused or its durability is undetermined;
    /// [`Error::QueueFull`] at `max_receipts`; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Cancels nothing but the wait.
    pub fn durable(&self) -> Op<()> {
        if let Some(error) = self.crowded() {
            return Op::ready(Err(error));
        }
        let (cell, task, key) = (Arc::clone(&self.cell), self.task, Arc::clone(&self.key));
        let work = async move {
            cell.state
                .until(|state| match &state.settlement {
                    Some(end @ (Settlement::Refused(_) | Settlement::Undetermined(_))) => {
                        Some(Err(Self::not_uploaded(task, &key, end.clone())))
                    }
                    Some(_) => Some(Ok(())),
                    None => state.durable.then_some(Ok(())),
                })
                .await
        };
        Op::new(&self.driver, self.deadline, work, || {
            Error::WouldWait("the journal's next sync")
        })
    }

    /// Waits for the task's end, whatever it is.
    ///
    /// # Errors
    /// [`Error::TimedOut`], and [`Error::QueueFull`] at `max_receipts`: how the task ended is the
    /// value.
    ///
    /// # Cancel safety
    /// Cancels nothing but the wait.
    pub fn settled(&self) -> Op<Settlement> {
        if let Some(error) = self.crowded() {
            return Op::ready(Err(error));
        }
        let cell = Arc::clone(&self.cell);
        let work = async move { Ok(cell.settled().await) };
        Op::new(&self.driver, self.deadline, work, || {
            Error::WouldWait("the task's upload")
        })
    }

    /// How the task ended, if it has.
    #[must_use]
    pub fn settlement(&self) -> Option<Settlement> {
        self.cell.settlement()
    }

    /// Waits until the task is in S3.
    ///
    /// # Errors
    /// [`Error::NotUploaded`] with the way it ended instead; [`Error::QueueFull`] at
    /// `max_receipts`; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Cancels nothing but the wait.
    pub fn uploaded(&self) -> Op<Settlement> {
        if let Some(error) = self.crowded() {
            return Op::ready(Err(error));
        }
        let (cell, task, key) = (Arc::clone(&self.cell), self.task, Arc::clone(&self.key));
        let work = async move {
            let settlement = cell.settled().await;
            if settlement.is_in_s3() {
                Ok(settlement)
            } else {
                Err(Self::not_uploaded(task, &key, settlement))
            }
        };
        Op::new(&self.driver, self.deadline, work, || {
            Error::WouldWait("the task's upload")
        })
    }
}
