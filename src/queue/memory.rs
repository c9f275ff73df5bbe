//! Bodies in memory: exactly as many bytes as are counted, and not more than the limit.
//!
//! Owns: what a body in memory is, and its spilling: dropped here, read from the journal when its
//! turn comes. Does not own: the limit and who waits for it (`admission.rs`).
//!
//! 1. A body has its room in memory for as long as anybody here has its bytes: the table, or an
//!    attempt.
//! 2. Spilled is only what is durable and not in flight; what was submitted last first, for it runs
//!    last.
//! 3. Whoever waits for memory has it asked for when they begin to wait, and again whenever more
//!    bodies can go.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;

use super::admission::{Acquire, Permit};
use super::{Queue, Totals};

/// A body in memory, and the room that it has there.
#[derive(Debug, Clone)]
pub(crate) struct Kept(Arc<Body>);

#[derive(Debug)]
struct Body {
    bytes: Bytes,
    room: Option<Permit>,
}

impl Kept {
    pub(crate) fn new(bytes: Bytes, room: Option<Permit>) -> Self {
        Self(Arc::new(Body { bytes, room }))
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.0.bytes.clone()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.bytes.len() as u64
    }

    /// Whether dropping it makes room for everybody.
    pub(super) fn is_common(&self) -> bool {
        self.0.room.as_ref().is_some_and(Permit::is_common)
    }
}

impl Queue {
    /// Waits for room, and makes some where it is memory that is short.
    pub(super) async fn room(&self, acquire: Acquire) -> Result<Permit> {
        let mut acquire = std::pin::pin!(acquire);
        let first = futures::future::poll_immediate(acquire.as_mut()).await;
        match first {
            Some(permit) => permit,
            None => {
                self.relieve();
                acquire.await
            }
        }
    }

    /// Memory for the body that an attempt is about to read.
    pub(crate) async fn room_to_read(&self, bytes: u64) -> Result<Permit> {
        // It may be let in whatever there is: first what can go, goes.
        self.spill(self.admission.memory_over(bytes));
        self.room(self.admission.acquire_to_read(bytes)).await
    }

    /// Drops bodies from memory that are on the disk, as far as somebody waits for room.
    pub(super) fn relieve(&self) {
        self.spill(self.admission.wanted_memory());
    }

    fn spill(&self, wanted: u64) {
        if wanted == 0 {
            return;
        }
        let spilled = self.lock().table.spill(wanted);
        Totals::add(&self.totals.spilled, spilled);
    }
}
