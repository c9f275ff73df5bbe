//! What a remote has said no with: counted by code.
//!
//! Owns: the counts, and their bound. Does not own: what a code means ([`super::classify`]).
//!
//! 1. Every request that fails is counted once, one whose caller gave it up as well.
//! 2. An error's texts are bounded here, whoever made the remote: they reach the journal.
//! 3. The number of codes is bounded, whatever a server makes up; what comes beyond is counted
//!    together.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use serde::{Deserialize, Serialize};

use crate::sync::Mutex;

use super::around::{Around, Made, Wrapped};
use super::classify::is_listed;
use super::{Class, RemoteError, RemoteFuture};

/// The most codes that are counted by themselves: listed ones, and ones that nobody has heard of.
const MAX_LISTED: usize = 128;
const MAX_UNLISTED: usize = 32;

/// Under which failures without a code are counted, those that were given up, and those whose
/// code is one too many.
const NO_CODE: &str = "(none)";
const GIVEN_UP: &str = "(given up)";
const OTHERS: &str = "(others)";

/// Requests that failed alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorCount {
    /// S3's code, or `(none)`; `(given up)` where the caller did not wait for an answer any
    /// longer, mostly at the attempt's deadline; `(others)` for codes beyond the first 160.
    pub code: String,
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
    /// How the last of them was classified.
    pub class: Class,
    /// Whether the code is in the table of `remote::classify`. One that is not is transient (or
    /// what its status says), and tried again for as long as it lasts: somebody should look.
    pub listed: bool,
    /// How many.
    pub count: u64,
    /// What the last of them said, at most 1 KiB.
    pub last: String,
}

#[derive(Debug, Default)]
struct Counted {
    by: BTreeMap<(String, Option<u16>), ErrorCount>,
    unlisted: usize,
}

/// Counts of failed requests, since they were made.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    counted: Mutex<Counted>,
}

impl Errors {
    fn add(&self, error: &RemoteError) {
        let code = error.code.as_deref().unwrap_or(NO_CODE);
        // What has no status has a word of our own for a code.
        let listed = error.code.is_none() || error.status.is_none() || is_listed(code);
        let last = || error.to_string();
        self.count(code, error.status, error.class, listed, last);
    }

    fn count(
        &self,
        code: &str,
        status: Option<u16>,
        class: Class,
        listed: bool,
        last: impl FnOnce() -> String,
    ) {
        let counted = &mut *self.counted.lock();
        let mut key = (code.to_owned(), status);
        let mut listed = listed;
        if !counted.by.contains_key(&key) {
            let full = match listed {
                true => counted.by.len() - counted.unlisted >= MAX_LISTED,
                false => counted.unlisted >= MAX_UNLISTED,
            };
            if full {
                key = (OTHERS.to_owned(), None);
                listed = true;
            } else if !listed {
                counted.unlisted += 1;
                // Once a code, so that a server cannot fill the log with it.
                tracing::warn!(code, status, ?class, "an error code that is not known");
            }
        }
        let last = super::outcome::cut(&last());
        let code = key.0.clone();
        let entry = counted.by.entry(key).or_insert_with_key(|key| ErrorCount {
            code,
            status: key.1,
            class,
            listed,
            count: 0,
            last: String::new(),
        });
        entry.count += 1;
        entry.class = class;
        entry.last = last;
    }

    /// The counts, those that nobody has heard of first, then the most frequent.
    pub(crate) fn list(&self) -> Vec<ErrorCount> {
        let mut all: Vec<_> = self.counted.lock().by.values().cloned().collect();
        all.sort_by_key(|error| (error.listed, std::cmp::Reverse(error.count)));
        all
    }
}

/// Counts a request whose future is dropped before it is done.
struct UntilDone<'a> {
    errors: &'a Errors,
    operation: &'static str,
    done: bool,
}

impl Drop for UntilDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            let last = || self.operation.to_owned();
            let class = Class::Transient;
            self.errors.count(GIVEN_UP, None, class, true, last);
        }
    }
}

/// A remote whose failures are counted.
pub(crate) type Tally = Wrapped<Arc<Errors>>;

impl Around for Arc<Errors> {
    fn around<'a, T: Send + 'a>(
        &'a self,
        made: Made,
        request: RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T> {
        async move {
            let mut until = UntilDone {
                errors: self,
                operation: made.operation,
                done: false,
            };
            let result = request.await;
            until.done = true;
            let result = result.map_err(RemoteError::bounded);
            result.inspect_err(|error| self.add(error))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::classify::{Failure, Operation, Request};

    fn said(status: u16, code: Option<&str>) -> RemoteError {
        let failure = Failure::Answer {
            status,
            code,
            message: "",
        };
        RemoteError::classified(Request::new(Operation::PutObject), failure, "m")
    }

    #[test]
    fn a_server_that_makes_codes_up_fills_no_memory() {
        let errors = Errors::default();
        for at in 0..10_000 {
            errors.add(&said(400, Some(&format!("Made{at}"))));
        }
        // Of which none is crowded out by the others.
        for _ in 0..3 {
            errors.add(&said(503, Some("SlowDown")));
        }
        errors.add(&said(502, None));
        let list = errors.list();
        assert_eq!(list.iter().filter(|error| !error.listed).count(), 32);
        assert_eq!(list.iter().map(|error| error.count).sum::<u64>(), 10_004);
        let count = |code: &str| list.iter().find(|error| error.code == code);
        assert_eq!(count("Made0").map(|error| error.count), Some(1));
        assert_eq!(count(OTHERS).map(|error| error.count), Some(10_000 - 32));
        assert_eq!(count("SlowDown").map(|error| error.count), Some(3));
        assert_eq!(count(NO_CODE).map(|error| error.listed), Some(true));
        assert!(!list[0].listed, "what nobody has heard of comes first");
        // The same code with as many statuses as there are.
        for status in 400..1000 {
            errors.add(&said(status, Some("SlowDown")));
        }
        assert!(errors.list().len() <= MAX_LISTED + MAX_UNLISTED + 1);
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_is_counted() {
        let errors = Arc::new(Errors::default());
        let made = Made {
            operation: "PutObject",
            bytes: 0,
            exact: true,
        };
        let never: RemoteFuture<'_, ()> = std::future::pending().boxed();
        assert!(errors.around(made, never).now_or_never().is_none());
        // One that was never sent is none.
        let never: RemoteFuture<'_, ()> = std::future::pending().boxed();
        drop(errors.around(made, never));
        let list = errors.list();
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!((list[0].code.as_str(), list[0].count), (GIVEN_UP, 1));
    }
}
