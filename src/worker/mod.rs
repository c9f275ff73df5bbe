//! Workers: they carry tasks to S3, one request slot each.
//!
//! Owns: what one attempt does, what its outcome means, and the pool that makes attempts. Does
//! not own: which task is next, or how its end is recorded and told ([`crate::queue`]).
//!
//! | file | concept |
//! |---|---|
//! | `pool.rs` | slots, panics, stopping |
//! | `attempt.rs` | one attempt at an upload, a delete or a load |
//! | `slots.rs` | single requests of the checkpoint layer |
//! | `local.rs` | what an attempt reads here |
//! | `parts.rs` | one attempt at an upload in parts |
//! | `react.rs` | what an outcome means: pure |
//! | `keys.rs` | what is known of keys, and which given-up requests may still land |
//! | `retry.rs` | how long to back off: pure |
//! | `traffic.rs` | how much is sent, and whether anything is |
//! | `window.rs`, `breaker.rs`, `budget.rs`, `link.rs`, `pace.rs` | what that is decided by: pure |
//!
//! A worker holds a slot and a request, and never waits for a lock, for room or for a back-off.

mod attempt;
mod breaker;
mod budget;
mod keys;
mod link;
mod local;
mod pace;
mod parts;
mod pool;
mod react;
pub(crate) mod retry;
pub(crate) mod slots;
mod traffic;
mod window;

use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::queue::gate::Gate;
use crate::queue::{Queue, Recovery};
use crate::random::Random;
use crate::remote::Remote;
use crate::remote::around::Wrapped;
use crate::remote::probe::Capabilities;
use crate::runtime::Runtime;
use crate::time::WallClock;

use attempt::Shared;
use keys::Keys;
use pool::Pool;
use traffic::{Listens, Traffic};

pub use traffic::{Parked, TrafficSnapshot};

/// The workers of one queue, and what they share.
#[derive(Debug)]
pub(crate) struct Workers {
    pool: Arc<Pool>,
    shared: Arc<Shared>,
}

impl Workers {
    /// Starts them. `found` is what an earlier life gave up and may still land.
    pub(crate) fn start(
        queue: Arc<Queue>,
        remote: Arc<dyn Remote>,
        clock: WallClock,
        random: Random,
        found: Recovery,
        runtime: &Runtime,
    ) -> Arc<Self> {
        let keys = Keys::default();
        for outstanding in found.outstanding {
            let record = &outstanding.record;
            let location = outstanding
                .location
                .or_else(|| queue.record_outstanding(record));
            if let Some(replaced) = keys.gave_up(record, location) {
                queue.end_owner(replaced);
            }
        }
        let traffic = Traffic::new(queue.config(), Arc::clone(&remote));
        queue.guard_with(Arc::clone(&traffic) as Arc<dyn Gate>);
        let shared = Arc::new(Shared {
            queue,
            remote: Arc::new(Wrapped {
                remote,
                with: Listens(Arc::clone(&traffic)),
            }),
            traffic,
            keys,
            clock,
            random,
            cut: CancellationToken::new(),
            capabilities: OnceCell::new(),
        });
        let pool = Pool::start(Arc::clone(&shared), runtime);
        Arc::new(Self { pool, shared })
    }

    /// Waits until every worker has stopped.
    pub(crate) async fn stopped(&self) {
        self.pool.stopped().await;
    }

    /// Cuts requests in flight off; what they did is then unknown.
    pub(crate) fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Forgets given-up requests whose signatures have expired.
    pub(crate) fn expire(&self) {
        for location in self.shared.keys.expire(self.shared.now_ms()) {
            self.shared.queue.end_owner(location);
        }
    }

    /// Given-up requests that may still take effect.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.keys.outstanding()
    }

    /// The remote, with whatever it is asked heard by what decides how much is sent.
    pub(crate) fn remote(&self) -> Arc<dyn Remote> {
        Arc::clone(&self.shared.remote)
    }

    /// Waits until S3 begins to refuse everything, or stops doing so.
    pub(crate) async fn parked_or_not(&self) {
        self.shared.traffic.turned().await;
        // Workers that looked while a probe was under way wait for nothing else.
        self.shared.queue.changed();
    }

    /// How much is sent, and why not more.
    pub(crate) fn traffic(&self) -> TrafficSnapshot {
        self.shared.traffic.snapshot()
    }

    /// What the server was seen to do, once it was asked.
    pub(crate) fn capabilities(&self) -> Option<Capabilities> {
        self.shared.capabilities.get().cloned()
    }
}
