//! Drains: waiting until all that was submitted before is in S3.
//!
//! Owns: who waits for which tasks. Does not own: when a task is in S3 (`table.rs`).
//!
//! 1. `Ok` is said only when no task with a cover up to the drain's is open; a task that
//!    supersedes another has the other's cover, and so is waited for in its stead.
//! 2. A covered task that ends other than in S3, unless it was taken back, fails the drain at
//!    once; so does a pause. A drain never waits for an operator.
//! 3. Such an end that no drain was there to hear fails the next one, and only that: as with
//!    fsync, whether a failure is heard of does not depend on how fast it came. (What is in
//!    quarantine fails every drain, until it is replayed or purged.)

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
    /// The first end other than in S3 that no drain has heard of.
    missed: Option<Error>,
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

    /// A task with this cover will not be in S3; `for_good` unless it may be replayed.
    pub(crate) fn failed(&mut self, cover: TaskId, error: &Error, for_good: bool) {
        let mut heard = false;
        self.end(|drain| {
            let covers = drain.upto >= cover;
            heard |= covers;
            covers.then(|| Err(error.clone()))
        });
        if for_good && !heard {
            self.missed.get_or_insert_with(|| error.clone());
        }
    }

    /// The failure that no drain has heard of: whoever takes it tells its caller.
    pub(crate) fn take_missed(&mut self) -> Option<Error> {
        self.missed.take()
    }

    /// Nothing will be in S3 for now.
    pub(crate) fn all_failed(&mut self, error: &Error) {
        self.end(|_| Some(Err(error.clone())));
    }

    fn end(&mut self, mut outcome: impl FnMut(&Drain) -> Option<Result<()>>) {
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
