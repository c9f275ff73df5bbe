//! When a checkpoint is made: when somebody asks for one, and when one is due.
//!
//! Owns: who asked, what is due, and that one is made at a time: who asks meanwhile gets the next,
//! and all who asked share it. Does not own: making it (`commit.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::phase::Phase;
use crate::queue::receipt::Receipt;
use crate::sync::Mutex;

use super::{Checkpoint, Checkpointer, Meta};

/// The most that may ask for one checkpoint.
const MAX_ASKS: usize = 10_000;

/// One who asks.
struct Ask {
    meta: Option<Meta>,
    after: Vec<Receipt>,
    told: oneshot::Sender<Result<Arc<Checkpoint>>>,
}

/// Who asks.
#[derive(Default)]
pub(crate) struct Schedule {
    asks: Mutex<Vec<Ask>>,
    some: Notify,
}

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schedule({} ask)", self.asks.lock().len())
    }
}

impl Checkpointer {
    /// Asks for a checkpoint whose line is drawn from here on, and waits for it.
    ///
    /// # Cancel safety
    /// It is made all the same.
    pub(crate) async fn checkpoint(
        &self,
        meta: Option<Meta>,
        after: Vec<Receipt>,
    ) -> Result<Arc<Checkpoint>> {
        if self.stranded {
            return Err(Error::Unclaimed);
        }
        let over = || Error::ShuttingDown {
            phase: Phase::Stopping,
        };
        if self.requests.stop.is_cancelled() {
            return Err(over());
        }
        let ours = self.parts.queue().journal.journal_id();
        if let Some(foreign) = after.iter().find(|receipt| receipt.journal() != ours) {
            return Err(Error::ForeignReceipt(foreign.task()));
        }
        let (told, hears) = oneshot::channel();
        {
            let mut asks = self.schedule.asks.lock();
            if asks.len() >= MAX_ASKS {
                return Err(Error::InvalidInput {
                    what: "checkpoint",
                    value: asks.len().to_string(),
                    limit: format!("{MAX_ASKS} callers may wait for one"),
                });
            }
            asks.push(Ask { meta, after, told });
        }
        self.schedule.some.notify_one();
        hears.await.unwrap_or_else(|_| Err(over()))
    }

    /// Makes checkpoints as they are asked for and as they are due, until the store stops.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut last = Instant::now();
        let mut written = self.written();
        loop {
            let asks = std::mem::take(&mut *self.schedule.asks.lock());
            let is_due = self.is_due(last, written);
            if asks.is_empty() && !is_due {
                let beat = self.beat();
                tokio::select! {
                    biased;
                    () = self.requests.stop.cancelled() => break,
                    () = self.schedule.some.notified() => (),
                    () = tokio::time::sleep(beat) => (),
                }
                continue;
            }
            last = Instant::now();
            written = self.written();
            self.make_for(asks).await;
            if self.requests.stop.is_cancelled() {
                break;
            }
        }
        // Dropped, they are told that it is over.
        self.schedule.asks.lock().clear();
    }

    async fn make_for(self: &Arc<Self>, asks: Vec<Ask>) {
        let mut meta = None;
        let mut after = Vec::new();
        let mut tell = Vec::with_capacity(asks.len());
        for ask in asks {
            meta = ask.meta.or(meta);
            after.extend(ask.after);
            tell.push(ask.told);
        }
        let until = Instant::now() + self.config.checkpoint_within;
        let made = tokio::select! {
            biased;
            made = self.make(meta, &after, until) => made,
            () = self.requests.stop.cancelled() => {
                self.parts.line.close();
                Err(Error::ShuttingDown { phase: Phase::Stopping })
            }
        };
        if made.is_err() {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        for told in tell {
            // Whoever asked may have gone.
            let _ = told.send(made.clone());
        }
    }

    fn written(&self) -> u64 {
        self.parts.totals.written_bytes.load(Ordering::Relaxed)
    }

    /// Whether something may have changed since the last one.
    pub(crate) fn has_changed(&self) -> bool {
        !self.parts.changed_files().is_empty() || self.parts.has_dropped()
    }

    fn is_due(&self, last: Instant, written: u64) -> bool {
        if self.stranded || self.parts.fenced().is_some() {
            return false;
        }
        let by_time = self
            .config
            .checkpoint_every
            .is_some_and(|every| last.elapsed() >= every);
        let since = self.written().saturating_sub(written);
        let by_bytes = self
            .config
            .checkpoint_after_bytes
            .is_some_and(|bytes| since >= bytes);
        (by_time || by_bytes) && self.has_changed()
    }

    /// How long until it is looked again whether one is due.
    fn beat(&self) -> std::time::Duration {
        let beat = self
            .config
            .checkpoint_every
            .unwrap_or(self.config.checkpoint_within);
        match self.config.checkpoint_after_bytes {
            Some(_) => beat.min(std::time::Duration::from_secs(1)),
            None => beat,
        }
    }
}
