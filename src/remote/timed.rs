//! A remote whose every request has its attempt's deadline.
//!
//! Owns: nothing but which deadline that is: the body's size at the slowest link that must still
//! work, or the floor.

use std::time::Duration;

use futures::FutureExt;

use crate::mutant::{Mutant, is};

use super::RemoteFuture;
use super::around::{Around, Made, Wrapped};
use super::deadline::{attempt_deadline, within};

/// A remote that ends each request at its deadline.
pub(crate) type Timed = Wrapped<Deadlines>;

/// The deadlines of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// The slowest link, in bytes a second.
    pub min_rate: u64,
    /// The shortest deadline.
    pub floor: Duration,
}

impl Around for Deadlines {
    fn around<'a, T: Send + 'a>(
        &'a self,
        made: Made,
        request: RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T> {
        let deadline = match is(Mutant::RequestNeverEnds) {
            true => Duration::MAX,
            false => attempt_deadline(made.bytes, self.min_rate, self.floor),
        };
        within(made.operation, deadline, request).boxed()
    }
}
