//! The layers of one queue, as shutdown and the watchdog see them.
//!
//! Owns: which verb of shutdown is which call, and what is done now and then because nothing else
//! causes it. Does not own: when.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::checkpoint::Checkpointer;
use crate::health::{Facts, Health};
use crate::panics::text_of;
use crate::part::Parts;
use crate::queue::{Queue, Totals};
use crate::shutdown::{Done, FailingTask, Layers, Left, MAX_FAILING, Phase, Shutdown, Watchdog};
use crate::sync::Mutex;
use crate::time::WallClock;
use crate::worker::Workers;

/// How often expired requests are forgotten and a full disk is looked at again.
const TICK: Duration = Duration::from_secs(1);

/// What was seen of them, for who looks.
#[derive(Debug)]
pub(super) struct Seen {
    /// The last stall.
    pub stall: Mutex<Option<String>>,
    pub health: watch::Sender<Health>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            stall: Mutex::new(None),
            health: watch::Sender::new(Health::Ok),
        }
    }
}

/// The layers, as shutdown and the watchdog see them.
pub(super) struct Stack {
    pub queue: Arc<Queue>,
    pub workers: Arc<Workers>,
    pub shutdown: Weak<Shutdown>,
    pub seen: Arc<Seen>,
    pub clock: WallClock,
    pub parts: Option<Arc<Parts>>,
    pub checkpointer: Option<Arc<Checkpointer>>,
}

impl Stack {
    /// A panic on the side does not keep shutdown from being walked.
    pub(super) async fn beats(&self) {
        loop {
            if let Err(panic) = AssertUnwindSafe(self.beat()).catch_unwind().await {
                tracing::error!(panic = %text_of(&*panic), "the watchdog starts anew");
            }
        }
    }

    /// Does now and then what nothing else causes.
    async fn beat(&self) {
        let mut watchdog = Watchdog::new(self.queue.config().stall_after);
        let every = TICK.min(watchdog.beat());
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(every) => (),
                () = self.workers.parked_or_not() => (),
            }
            self.look_at_health();
            self.queue.tick();
            self.workers.expire();
            let (progress, work) = (self.queue.progress(), self.queue.ought_to_move());
            if let Some(still) = watchdog.look(progress, work, Instant::now()) {
                let picture = self.picture(still);
                tracing::warn!(stall = %picture, "nothing has moved");
                *self.seen.stall.lock() = Some(picture);
            }
        }
    }

    /// Says how it is, where that has changed.
    pub(super) fn look_at_health(&self) {
        let health = self.health();
        self.seen.health.send_if_modified(|now| {
            let health = health.after(now);
            let is_news = *now != health;
            *now = health;
            is_news
        });
    }

    fn health(&self) -> Health {
        let (counts, traffic) = (self.queue.counts(), self.workers.traffic());
        let parts = self.parts.as_ref();
        let parked = traffic.writes_parked.or(traffic.reads_parked);
        let facts = Facts {
            failed: counts
                .journal_failed
                .or_else(|| parts?.failure().map(str::to_owned)),
            fenced: parts.and_then(|parts| parts.fenced()),
            crash_loop: counts.crash_loop,
            disk_full: counts.disk_full,
            quarantine_full: self.queue.admission.quarantine_is_full(),
            parked: parked.map(|parked| {
                let since = self.clock.now() - Duration::from_millis(parked.for_ms);
                (parked.reason, since)
            }),
            recovering: counts.recovering,
            throttled: traffic
                .throttled_ago_ms
                .is_some_and(|ago| ago < THROTTLED_MS),
            oldest: Duration::from_millis(counts.oldest_ms),
            bytes: self.queue.admission.usage().used.bytes
                + parts.map_or(0, |parts| parts.dirty.used().0),
        };
        Health::of(facts, self.queue.config().behind_after)
    }

    /// Waits until records wait for room that is not to be had: nothing makes any from here on.
    async fn disk_stays_full(&self) {
        let mut looks = 0;
        while looks < FULL_LOOKS {
            tokio::time::sleep(LOOKS_EVERY).await;
            looks = match self.queue.journal.status().short_of_space {
                true => looks + 1,
                false => 0,
            };
        }
    }

    /// Who waits for what and since when, what is in flight, and the last errors.
    fn picture(&self, still: Duration) -> String {
        let counts = self.queue.counts();
        let usage = self.queue.admission.usage();
        let holds = self.shutdown.upgrade().map(|shutdown| {
            let held = shutdown.holds.held().into_iter();
            held.map(|(name, since)| format!("{name:?} for {:?}", since.elapsed()))
                .collect::<Vec<_>>()
        });
        let waits = self.parts.as_ref().map(|parts| parts.picture());
        format!(
            "nothing moved for {still:?}; phase {:?}; {counts:?}; waiting for room: {}; traffic: \
             {:?}; holds: {:?}; journal: {:?}; parts: {}; tasks: {:#?}",
            self.shutdown.upgrade().map(|shutdown| shutdown.phase()),
            usage.waiters,
            self.workers.traffic(),
            holds.unwrap_or_default(),
            self.queue.journal.status(),
            waits.unwrap_or_else(|| "none".to_owned()),
            self.queue.notable(32),
        )
    }
}

/// So long after S3 asked for less, it is said that it did.
const THROTTLED_MS: u64 = 5000;

/// How often it is looked whether the disk is full, and how often it is to be in a row.
const LOOKS_EVERY: Duration = Duration::from_millis(50);
const FULL_LOOKS: u32 = 5;

impl Layers for Stack {
    fn close_to_all_but_holders(&self, phase: Phase) {
        if let Some(parts) = &self.parts {
            parts.close(phase);
        }
        self.queue.admission.holders_only(phase);
    }

    fn close(&self, phase: Phase) {
        if let Some(parts) = &self.parts {
            parts.close(phase);
        }
        self.queue.admission.close(phase);
    }

    fn checkpointed(&self, _: Instant) -> BoxFuture<'_, Result<Option<u64>, String>> {
        Box::pin(async {
            match &self.checkpointer {
                None => Ok(None),
                Some(checkpointer) => {
                    let last = checkpointer.last_one().await;
                    last.map_err(|error| error.to_string())
                }
            }
        })
    }

    fn drained(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(parts) = &self.parts {
                // What is flushed goes through the queue, which is not dry before.
                parts.flushed(deadline).await;
            }
            self.queue.run_dry(deadline).await;
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        if let Some(parts) = &self.parts {
            parts.close(Phase::Stopping);
        }
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.stop();
        }
        self.queue.stop();
        Box::pin(self.workers.stopped())
    }

    fn cut(&self) {
        self.workers.cut();
    }

    fn seal(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            // In this order: part files, headers, journal.
            let parts = match &self.parts {
                None => Ok(()),
                Some(parts) => {
                    parts.shut(Phase::Sealing);
                    tokio::select! {
                        biased;
                        sealed = parts.seal() => sealed.map_err(|error| error.to_string()),
                        // What waits for room is void when the journal is sealed, and not before.
                        () = self.disk_stays_full() => Err("the disk is full".to_owned()),
                    }
                }
            };
            let sealed = self.queue.journal.seal().await;
            sealed.map_err(|error| error.to_string()).and(parts)
        })
    }

    fn settle(&self, sealed: Result<(), String>) -> Left {
        let notable = self.queue.failing(MAX_FAILING);
        let rest = self.queue.settle_rest(sealed);
        let failing = notable.into_iter().map(|task| FailingTask {
            task: task.task,
            key: task.key,
            quarantined: task.quarantined,
            failures: task.failures,
            cause: task.cause,
        });
        let (dirty_parts, stranded, failing_parts) =
            self.parts.as_ref().map_or_else(Default::default, |parts| {
                parts.shut(Phase::Closed);
                parts.forget_rest();
                let stranded = parts.fenced().map_or(0, |_| parts.uncommitted());
                (parts.owed(), stranded, parts.flusher.failing(MAX_FAILING))
            });
        Left {
            dirty_parts,
            stranded,
            failing_parts,
            failing: failing.collect(),
            deferred: rest.deferred,
            undetermined: rest.undetermined,
            quarantined: rest.quarantined,
        }
    }

    fn done(&self) -> Done {
        let totals = &self.queue.totals;
        Done {
            uploaded: Totals::read(&totals.uploaded) + Totals::read(&totals.deleted),
            unknown: Totals::read(&totals.unknown),
        }
    }
}
