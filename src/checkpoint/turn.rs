//! One change of `head` at a time.
//!
//! Owns: what is known of `head` between two changes, and that the next is made only when it is
//! known what became of the one before. Does not own: how a change is sent (`head.rs`), or what it
//! is (`claim.rs`, `commit.rs`, `gc.rs`).

use std::sync::Arc;

use tokio::time::Instant;

use crate::error::{Error, Result};

use super::Checkpointer;
use super::commit::Pending;
use super::head::{self, Change, Changed, Found};
use super::request::Requests;

/// A change of `head` of which nobody knows what came.
#[derive(Debug)]
pub(super) struct Open {
    pub change: Change,
    /// The checkpoint in it.
    pub pending: Option<Box<Pending>>,
}

/// Whoever has this changes `head`; one at a time.
#[derive(Debug, Default)]
pub(super) struct TurnOfHead {
    pub known: Option<Found>,
    pub open: Option<Open>,
    /// The last number that was tried.
    pub tried: u64,
}

impl TurnOfHead {
    /// Sends a change without a checkpoint in it: `head` as it is then; `None` where another was
    /// first.
    pub(super) async fn send(
        &mut self,
        mut change: Change,
        requests: &Requests,
        until: Instant,
    ) -> Result<Option<Found>> {
        match change.send(requests, until).await {
            Changed::Ours(etag) => Ok(Some(Found {
                head: change.head,
                etag,
            })),
            Changed::Lost => Ok(None),
            Changed::Refused(error) => Err(error.into()),
            Changed::Unknown(error) => {
                self.open = Some(Open {
                    change,
                    pending: None,
                });
                Err(error.into())
            }
        }
    }
}

impl Checkpointer {
    /// Finds out what became of a change of `head` whose reply was lost.
    ///
    /// # Errors
    /// [`Error::CheckpointUnknown`], or the request's: it is still not known.
    pub(super) async fn settle_head(
        self: &Arc<Self>,
        turn: &mut TurnOfHead,
        until: Instant,
    ) -> Result<()> {
        let Some(open) = &mut turn.open else {
            return Ok(());
        };
        match open.change.send(&self.requests, until).await {
            Changed::Unknown(error) => match &open.pending {
                None => Err(error.into()),
                Some(pending) => Err(Error::CheckpointUnknown {
                    number: pending.number(),
                    cause: Box::new(error),
                }),
            },
            Changed::Ours(etag) => {
                if let Some(Open { change, pending }) = turn.open.take() {
                    let head = change.head;
                    turn.known = Some(Found { head, etag });
                    if let Some(pending) = pending {
                        let told = self.committed(*pending).await;
                        let on = Arc::clone(self);
                        self.parts.spawn(async move { on.tell(&told).await });
                    }
                }
                Ok(())
            }
            Changed::Lost | Changed::Refused(_) => {
                turn.open = None;
                turn.known = None;
                self.parts.line.forget();
                // Whose it is now is looked at.
                self.look.notify_one();
                Ok(())
            }
        }
    }

    /// Makes `head` known as it was last; where nobody claims, as it is.
    pub(super) async fn know(&self, turn: &mut TurnOfHead, until: Instant) -> Result<()> {
        if turn.known.is_none() || !self.is_fencing() {
            turn.known = head::read(&self.requests, until).await?;
        }
        Ok(())
    }
}
