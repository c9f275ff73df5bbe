//! Holds: an engine's right to finish what it must before the queue drains.
//!
//! Owns: who holds one, since when, and that `Quiescing` ends when the last is dropped. Does not
//! own: what is done through a hold (the facade), or when quiescing gives up waiting (`mod.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::watched::Watched;

use super::Phase;

/// The most holds at one time.
pub(crate) const MAX_HOLDS: usize = 10_000;

/// All holds of one queue.
#[derive(Debug)]
pub(crate) struct Holds {
    state: Watched<State>,
    /// Cancelled when quiescing starts; each hold has a child.
    told: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, (String, Instant)>,
    closed: bool,
}

impl Holds {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Watched::new(State::default()),
            told: CancellationToken::new(),
        })
    }

    pub(crate) fn take(self: &Arc<Self>, name: &str) -> Result<ShutdownHold> {
        let id = self.state.change(|state| {
            if state.closed {
                return Err(Error::ShuttingDown {
                    phase: Phase::Quiescing,
                });
            }
            if state.held.len() >= MAX_HOLDS {
                return Err(Error::InvalidInput {
                    what: "hold",
                    value: name.to_owned(),
                    limit: format!("at most {MAX_HOLDS} holds at one time"),
                });
            }
            state.next += 1;
            state
                .held
                .insert(state.next, (name.to_owned(), Instant::now()));
            Ok(state.next)
        })?;
        Ok(ShutdownHold {
            holds: Arc::clone(self),
            id,
            token: self.told.child_token(),
        })
    }

    /// Whether a hold is one of these, and not of another queue.
    pub(crate) fn owns(self: &Arc<Self>, hold: &ShutdownHold) -> bool {
        Arc::ptr_eq(self, &hold.holds)
    }

    /// No new holds; those who have one are told.
    pub(crate) fn close(&self) {
        self.state.change(|state| state.closed = true);
        self.told.cancel();
    }

    /// Waits until no hold is left.
    pub(crate) async fn released(&self) {
        self.state
            .until(|state| state.held.is_empty().then_some(()))
            .await;
    }

    /// Who holds one, and since when.
    pub(crate) fn held(&self) -> Vec<(String, Instant)> {
        self.state
            .read(|state| state.held.values().cloned().collect())
    }
}

/// While this is held, shutdown waits (for its share of the deadline) before it drains, and
/// submits made through the hold are still taken.
///
/// Take one before shutdown begins; its [`token`](Self::token) says when that happens. Dropping
/// it lets shutdown go on.
#[derive(Debug)]
pub struct ShutdownHold {
    holds: Arc<Holds>,
    id: u64,
    token: CancellationToken,
}

impl ShutdownHold {
    /// Cancelled when shutdown begins: finish, then drop the hold.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for ShutdownHold {
    fn drop(&mut self) {
        self.holds.state.change(|state| state.held.remove(&self.id));
    }
}
