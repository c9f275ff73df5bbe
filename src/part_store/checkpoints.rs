//! Checkpoints of a store.
//!
//! Owns: how each call is waited for. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::checkpoint::head::Listed;
use crate::checkpoint::{Checkpoint, CheckpointSnapshot, GcReport, Meta};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::queue::receipt::Receipt;

use super::PartStore;

/// How much longer a caller waits than what it waits for may take: the outcome says more than that
/// the time is over.
const A_MOMENT: Duration = Duration::from_secs(1);

/// What a checkpoint is asked for with.
#[derive(Default)]
#[must_use = "options do nothing by themselves"]
pub struct CheckpointOptions {
    meta: Option<Meta>,
    after: Vec<Receipt>,
}

impl std::fmt::Debug for CheckpointOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointOptions")
            .field("has_meta", &self.meta.is_some())
            .field("after", &self.after)
            .finish()
    }
}

impl CheckpointOptions {
    /// Neither anything of the engine's nor anything before it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is kept with it, at most 4 KiB: asked for just before the line is drawn, so that
    /// whatever it says was written is in the checkpoint. Called on an I/O thread. Of several who
    /// share a checkpoint, the last to ask gives it.
    pub fn meta(mut self, meta: impl FnOnce() -> Vec<u8> + Send + 'static) -> Self {
        self.meta = Some(Box::new(meta));
        self
    }

    /// It is committed only when these are in S3: the engine's log before what it describes.
    pub fn after(mut self, receipts: impl IntoIterator<Item = Receipt>) -> Self {
        self.after.extend(receipts);
        self
    }
}

/// A checkpoint as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub struct ListedCheckpoint {
    /// Its number.
    pub number: u64,
    /// The id of its commit.
    pub write_id: u128,
    /// When its line was drawn, in milliseconds since 1970 by its owner's clock.
    pub unix_ms: u64,
}

impl ListedCheckpoint {
    pub(crate) fn all(listed: Vec<Listed>) -> Vec<Self> {
        let one = |one: Listed| Self {
            number: one.number,
            write_id: one.write_id,
            unix_ms: one.unix_ms,
        };
        listed.into_iter().map(one).collect()
    }
}

impl PartStore {
    /// Makes a version of all files: every write step is wholly in it or wholly not, and it is
    /// what a power cut would have left when its line was drawn. Writers go on meanwhile; guards
    /// that the engine holds delay nothing. Done when it can be restored, and when all that was
    /// written before its line is durable here, too.
    ///
    /// One is made at a time: who asks meanwhile shares the next.
    ///
    /// # Errors
    /// [`Error::Unclaimed`] while S3 has not answered since open, [`Error::Fenced`];
    /// [`Error::PartFailed`] where S3 refuses an image, [`Error::Remote`]; [`Error::DiskFull`]
    /// without room for what may have to be set aside; [`Error::StoreFailed`],
    /// [`Error::JournalFailed`]; [`Error::InvalidInput`] for too much meta,
    /// [`Error::ForeignReceipt`], [`Error::NotUploaded`] for what was to come before it;
    /// [`Error::CheckpointUnknown`]; [`Error::ShuttingDown`]. Nothing was committed then, but for
    /// `CheckpointUnknown`. [`Error::TimedOut`] after `checkpoint_within` and what one that is
    /// under way takes, or where the caller waits no longer: then it goes on.
    ///
    /// # Cancel safety
    /// It is made all the same.
    pub fn checkpoint(&self, options: CheckpointOptions) -> Op<Arc<Checkpoint>> {
        let CheckpointOptions { meta, after } = options;
        let checkpointer = Arc::clone(&self.checkpointer);
        let work = async move { checkpointer.checkpoint(meta, after).await };
        // The one before may take all of its time; and what ours says at the end of its is heard.
        let within = 2 * self.parts.config.checkpoint_within + A_MOMENT;
        Op::new(self.queue.driver(), within, work, || {
            Error::WouldWait("a checkpoint")
        })
    }

    /// The checkpoints that are listed, by number.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::ObjectDamaged`], [`Error::Version`], [`Error::TimedOut`].
    pub fn checkpoints(&self) -> Op<Vec<ListedCheckpoint>> {
        let checkpointer = Arc::clone(&self.checkpointer);
        let within = self.parts.config.claim_within;
        let work = async move {
            let listed = checkpointer.list(Instant::now() + within).await?;
            Ok(ListedCheckpoint::all(listed))
        };
        Op::new(self.queue.driver(), within + A_MOMENT, work, || {
            Error::WouldWait("a read from S3")
        })
    }

    /// Retires checkpoints that are not kept any longer, and deletes what nobody needs; also done
    /// every `gc_every`.
    ///
    /// # Errors
    /// [`Error::Unclaimed`], [`Error::Fenced`], [`Error::HeadChanged`] where another has claimed
    /// the prefix; [`Error::CheckpointUnknown`]; [`Error::Remote`], [`Error::ObjectDamaged`],
    /// [`Error::ObjectMissing`] where a checkpoint cannot be read: what it needs is not known, and
    /// nothing is deleted. [`Error::ShuttingDown`] once the store stops.
    ///
    /// # Cancel safety
    /// What was deleted was garbage.
    pub fn gc(&self) -> Op<GcReport> {
        let checkpointer = Arc::clone(&self.checkpointer);
        let within = self.parts.config.checkpoint_within;
        let work = async move { checkpointer.collect(Instant::now() + within).await };
        Op::new(self.queue.driver(), within + A_MOMENT, work, || {
            Error::WouldWait("a look for garbage")
        })
    }

    /// Checkpoints at this instant.
    #[must_use]
    pub fn checkpoint_snapshot(&self) -> CheckpointSnapshot {
        self.checkpointer.snapshot()
    }

    /// Whether another has claimed the prefix since: the error that writes get.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Diverged`], [`Error::TakeOverNeeded`], [`Error::Stranded`].
    pub fn check_fenced(&self) -> Result<()> {
        match self.parts.fenced() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
