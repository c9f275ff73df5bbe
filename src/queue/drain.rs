//! Drains: waiting until all that was submitted before is in S3.
//!
//! Owns: who waits for which tasks. Does not own: when a task is in S3 (`table.rs`).
//!
//! 1. `Ok` is said only when no task with a cover up to the drain's is open; a task that
//!    supersedes another has the other's cover, and so is waited for in its stead.
//! 2. A covered task that ends other than in S3, unless it was taken back, fails the drain at
//!    once; so does a pause. A drain never waits for an operator.

use std::sync::{Arc, Weak};

use crate::error::{Error, Result};
use crate::watched::Watched;

use super::task::TaskId;

/// One caller's wait.
#[derive(Debug)]
pub(crate) struct Drain {
    upto: TaskId,
    outcome: Watched<Option<Result<()>>>,
}

impl Drain {
    pub(crate) async fn done(&self) -> Result<()> {
        self.outcome.until(Clone::clone).await
    }

    fn end(&self, outcome: Result<()>) {
        self.outcome.change(|state| {
            state.get_or_insert(outcome);
        });
    }
}

/// All drains that are waited for.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    waiting: Vec<Weak<Drain>>,
}

impl Drains {
    /// A drain of everything up to `upto`. Who drops it leaves no more than a dead pointer, and
    /// those are removed here.
    pub(crate) fn add(&mut self, upto: TaskId) -> Arc<Drain> {
        self.waiting.retain(|drain| drain.strong_count() > 0);
        let drain = Arc::new(Drain {
            upto,
            outcome: Watched::new(None),
        });
        self.waiting.push(Arc::downgrade(&drain));
        drain
    }

    /// `first_open` is the lowest cover that is not in S3.
    pub(crate) fn moved(&mut self, first_open: Option<TaskId>) {
        self.end(|drain| {
            first_open
                .is_none_or(|open| open > drain.upto)
                .then_some(Ok(()))
        });
    }

    /// A task with this cover will not be in S3.
    pub(crate) fn failed(&mut self, cover: TaskId, error: &Error) {
        self.end(|drain| (drain.upto >= cover).then(|| Err(error.clone())));
    }

    /// Nothing will be in S3 for now.
    pub(crate) fn all_failed(&mut self, error: &Error) {
        self.end(|_| Some(Err(error.clone())));
    }

    fn end(&mut self, outcome: impl Fn(&Drain) -> Option<Result<()>>) {
        self.waiting.retain(|drain| {
            let Some(drain) = drain.upgrade() else {
                return false;
            };
            match outcome(&drain) {
                Some(result) => {
                    drain.end(result);
                    false
                }
                None => true,
            }
        });
    }
}
