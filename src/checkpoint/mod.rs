//! Checkpoints: numbered versions of all files in S3, one of which can be restored.
//!
//! Owns: when a checkpoint is made, what it consists of, who may make one, and what is deleted.
//! Does not own: what a part or a file is ([`crate::part`]), or how a request is made
//! ([`crate::worker`]).
//!
//! | file | concept |
//! |---|---|
//! | `head.rs` | the one object that is changed: who owns the prefix, which checkpoints there are |
//! | `turn.rs` | one change of it at a time, and what became of the one before |
//! | `stand.rs`, `claim.rs` | who may own the prefix, and claiming it |
//! | `commit.rs`, `pages.rs`, `writer.rs` | from a line to `head` |
//! | `manifest.rs`, `tree.rs`, `frame.rs` | what a checkpoint is made of |
//! | `reader.rs`, `run.rs`, `request.rs` | reading it back |
//! | `gc.rs`, `sweep.rs` | deleting what nobody needs |
//! | `restore.rs`, `verify.rs`, `read_only.rs`, `pin.rs` | for who has no store |
//! | `schedule.rs` | when one is due |
//!
//! Everything below a prefix is named relative to it: a copied prefix is a valid store.

pub(crate) mod claim;
pub(crate) mod commit;
pub(crate) mod frame;
pub(crate) mod gc;
pub(crate) mod head;
pub(crate) mod manifest;
pub(crate) mod pages;
pub(crate) mod pin;
pub(crate) mod read_only;
pub(crate) mod reader;
pub(crate) mod request;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod stand;
pub(crate) mod sweep;
pub(crate) mod tree;
pub(crate) mod turn;
pub(crate) mod verify;
pub(crate) mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::part::Parts;
use crate::part::config::StoreConfig;
use crate::remote::probe::Capabilities;
use crate::sync::Mutex;
use crate::time::{WallClock, millis};
use crate::watched::Watched;

use head::{Head, Listed};
use manifest::Manifest;
use pages::Kept;
use request::Requests;
use schedule::Schedule;
use stand::Stands;
use turn::TurnOfHead;

pub use gc::GcReport;
pub use manifest::MAX_META_BYTES;
pub use read_only::ReadOnly;
pub use restore::{Restore, RestoreProgress, Restored};
pub use verify::VerifyReport;

/// What an engine has kept with a checkpoint: asked for just before the line.
pub(crate) type Meta = Box<dyn FnOnce() -> Vec<u8> + Send>;
/// The same, for every checkpoint that nobody asked for.
pub(crate) type EveryMeta = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;
/// Told of every checkpoint that is committed.
pub(crate) type Callback = Arc<dyn Fn(&Checkpoint) + Send + Sync>;

/// A checkpoint that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Its number: rising, with gaps where one failed.
    pub number: u64,
    /// The id of its commit.
    pub write_id: u128,
    /// The epoch that committed it.
    pub epoch: u64,
    /// When its line was drawn, in milliseconds since 1970 by its owner's clock.
    pub unix_ms: u64,
    /// Files in it.
    pub files: u64,
    /// What the engine gave it.
    pub meta: Vec<u8>,
}

impl Checkpoint {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        Self {
            number: manifest.number,
            write_id: manifest.write_id,
            epoch: manifest.epoch,
            unix_ms: manifest.unix_ms,
            files: manifest.files,
            meta: manifest.meta.clone(),
        }
    }
}

/// Counts since open.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    committed: AtomicU64,
    last: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn committed(&self, number: u64) {
        self.committed.fetch_add(1, Ordering::Relaxed);
        self.last.fetch_max(number, Ordering::Relaxed);
    }
}

/// How a checkpointer is made.
pub(crate) struct Made {
    pub parts: Arc<Parts>,
    pub requests: Requests,
    pub stands: Stands,
    pub clock: WallClock,
    pub options: StoreOptions,
}

/// What a store is opened with.
#[derive(Clone)]
pub(crate) struct StoreOptions {
    pub config: Arc<StoreConfig>,
    pub take_over: bool,
    /// Nothing is claimed, and nothing sent: what is here is read.
    pub stranded: bool,
    pub meta: Option<EveryMeta>,
    pub callback: Option<Callback>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("config", &self.config)
            .field("take_over", &self.take_over)
            .field("stranded", &self.stranded)
            .finish_non_exhaustive()
    }
}

/// The checkpoints of one store.
pub(crate) struct Checkpointer {
    pub parts: Arc<Parts>,
    config: Arc<StoreConfig>,
    requests: Requests,
    stands: Stands,
    clock: WallClock,
    owner: String,
    take_over: bool,
    pub stranded: bool,
    claimed: Watched<u64>,
    once: AtomicBool,
    capabilities: Mutex<Option<Capabilities>>,
    head: tokio::sync::Mutex<TurnOfHead>,
    kept: tokio::sync::Mutex<Option<Kept>>,
    /// `head` is to be looked at.
    look: Notify,
    schedule: Schedule,
    last: Watched<Option<Arc<Checkpoint>>>,
    meta: Option<EveryMeta>,
    callback: Option<Callback>,
    counts: Counts,
    /// One look for garbage at a time.
    gc_turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpointer")
            .field("epoch", &self.epoch())
            .field("stand", &self.stands.now())
            .finish_non_exhaustive()
    }
}

/// Checkpoints at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckpointSnapshot {
    /// The epoch that this store has; `None` before it has claimed one, and without fencing.
    pub epoch: Option<u64>,
    /// Whether another has claimed the prefix since, and which error that is.
    pub fenced: Option<String>,
    /// Committed since open.
    pub committed: u64,
    /// Failed since open.
    pub failed: u64,
    /// The checkpoint that the files follow.
    pub base: Option<u64>,
    /// Images of the line that is open, which S3 does not have yet.
    pub owed: Option<usize>,
    /// What the server was seen to do, where it was asked.
    pub capabilities: Option<Capabilities>,
}

impl Checkpointer {
    pub(crate) fn new(made: Made) -> Arc<Self> {
        let StoreOptions {
            config,
            take_over,
            stranded,
            meta,
            callback,
        } = made.options;
        Arc::new(Self {
            config,
            parts: made.parts,
            requests: made.requests,
            stands: made.stands,
            clock: made.clock,
            owner: crate::journal::this_process(),
            take_over,
            stranded,
            claimed: Watched::new(0),
            once: AtomicBool::new(false),
            capabilities: Mutex::new(None),
            head: tokio::sync::Mutex::new(TurnOfHead::default()),
            kept: tokio::sync::Mutex::new(None),
            look: Notify::new(),
            schedule: Schedule::default(),
            last: Watched::new(None),
            meta,
            callback,
            counts: Counts::default(),
            gc_turn: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn is_fencing(&self) -> bool {
        self.config.fencing.is_on()
    }

    /// The epoch that was claimed.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.claimed.read(|epoch| (*epoch != 0).then_some(*epoch))
    }

    fn epoch_is(&self, epoch: u64) {
        self.once.store(true, Ordering::Release);
        self.claimed.change(|claimed| *claimed = epoch);
    }

    fn epoch_over(&self) {
        self.claimed.change(|claimed| *claimed = 0);
    }

    fn claimed_once(&self) -> bool {
        self.once.load(Ordering::Acquire)
    }

    /// Whether the last claim was ours: also while a new epoch is wanted because the sequences of
    /// the one before are used up, and there is none to write under.
    fn holds(&self, head: &Head) -> bool {
        self.stands.now().holds(head)
    }

    /// Whether the directory ever owned the prefix.
    pub(crate) fn has_owned(&self) -> bool {
        self.stands.now().has_owned()
    }

    fn new_write_id(&self) -> u128 {
        u128::from(self.requests.random.u64()) << 64 | u128::from(self.requests.random.u64())
    }

    /// Takes off the list what is not kept any longer; never the latest.
    fn retire(&self, head: &mut Head) -> Vec<Listed> {
        let now = self.clock.unix_ms();
        let most = self.config.retain_checkpoints.clamp(1, head::MAX_LISTED);
        let age = millis(self.config.retain_age);
        let listed = std::mem::take(&mut head.checkpoints);
        let last = listed.len().saturating_sub(1);
        let mut retired = Vec::new();
        for (at, one) in listed.into_iter().enumerate() {
            let too_many = last - at >= most;
            let too_old = now.saturating_sub(one.unix_ms) > age;
            if at < last && (too_many || too_old) {
                retired.push(one);
            } else {
                head.checkpoints.push(one);
            }
        }
        retired
    }

    /// The last checkpoint, at shutdown: its number, where there was something to commit.
    pub(crate) async fn last_one(&self) -> Result<Option<u64>> {
        let wanted = self.config.checkpoint_at_shutdown && !self.stranded;
        if !wanted || self.parts.fenced().is_some() || !self.has_changed() {
            return Ok(None);
        }
        let made = self.checkpoint(None, Vec::new()).await?;
        Ok(Some(made.number))
    }

    /// No more requests of ours.
    pub(crate) fn stop(&self) {
        self.requests.stop.cancel();
    }

    /// Starts what runs beside.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.stranded {
            return;
        }
        if self.is_fencing() {
            self.parts.spawn(Arc::clone(self).keep_claim());
        }
        self.parts.spawn(Arc::clone(self).run());
        self.parts.spawn(Arc::clone(self).keep_clean());
    }

    /// The claim of an open: whether the store may go on without it for now.
    pub(crate) async fn first_claim(self: &Arc<Self>) -> Result<()> {
        if self.stranded {
            self.parts.fence(&Error::Stranded);
            return Ok(());
        }
        if !self.is_fencing() {
            return Ok(());
        }
        let until = Instant::now() + self.config.claim_within;
        match self.claim(until).await {
            Err(Error::Remote(error)) if self.has_owned() && error.class.is_retryable() => {
                tracing::warn!(%error, "opened without a claim: nothing is sent before there is one");
                Ok(())
            }
            claimed => claimed,
        }
    }

    /// The checkpoints that are listed.
    pub(crate) async fn list(&self, until: Instant) -> Result<Vec<Listed>> {
        head::listed(&self.requests, until).await
    }

    pub(crate) fn snapshot(&self) -> CheckpointSnapshot {
        CheckpointSnapshot {
            epoch: self.epoch(),
            fenced: self.parts.fenced().map(ToString::to_string),
            committed: self.counts.committed.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            base: self.stands.now().base.map(|base| base.listed.number),
            owed: self.parts.line.open().map(|line| line.owed()),
            capabilities: self.capabilities(),
        }
    }
}
