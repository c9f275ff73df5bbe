//! Claiming the prefix: an epoch of its own for every open.
//!
//! Owns: the order of a claim, and noticing that another has made one since. Does not own: whose
//! turn it is (`stand.rs`).
//!
//! 1. What a claim will be known by is on record before its PUT, and the epoch it gave before a
//!    key is issued under it.
//! 2. A claim never waits for the old owner, and an epoch is never used twice.
//! 3. `head` is looked at now and then, and after every request on it whose reply was lost: who
//!    finds another's epoch there stops.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::remote::probe::{Capabilities, probe};
use crate::time::millis;

use super::Checkpointer;
use super::gc::server_now;
use super::head::{self, Change, Head};
use super::manifest::Stranded;
use super::reader;
use super::stand::Turn;

/// What the probe may take of the time that a claim has.
const PROBE: Duration = Duration::from_secs(20);
/// Between two tries where S3 does not answer.
const SOON: Duration = Duration::from_secs(1);

impl Checkpointer {
    /// Finds out whether the endpoint can be trusted with `head`.
    async fn check_server(&self, until: Instant) -> Result<()> {
        let facts = self.requests.ask(until, |remote| remote.bucket()).await?;
        if facts.object_lock {
            return Err(Error::ObjectLock {
                bucket: self.requests.remote.describe(),
            });
        }
        if facts.versioning {
            tracing::warn!(
                bucket = %self.requests.remote.describe(),
                "has versions: what is deleted stays, unless a lifecycle rule removes it"
            );
        }
        let left = until.saturating_duration_since(Instant::now()).min(PROBE);
        let nonce = self.requests.random.u64();
        let found = probe(&*self.requests.remote, "probe/", nonce, left).await;
        let found = found.map_err(|error| match error {
            crate::remote::probe::ProbeError::Failed(error)
            | crate::remote::probe::ProbeError::Deadline {
                last: Some(error), ..
            } => error.into(),
            other => Error::from(
                crate::remote::RemoteError::transient("probe").with_message(&other.to_string()),
            ),
        })?;
        let can = found.can_fence();
        let complaints = found.complaints();
        *self.capabilities.lock() = Some(found);
        if !can {
            return Err(Error::FencingUnsupported(complaints.join("; ")));
        }
        Ok(())
    }

    /// What the server was seen to do.
    pub(crate) fn capabilities(&self) -> Option<Capabilities> {
        self.capabilities.lock().clone()
    }

    /// Claims the prefix, and has the store write under the new epoch.
    pub(crate) async fn claim(self: &Arc<Self>, until: Instant) -> Result<()> {
        if self.capabilities.lock().is_none() {
            self.check_server(until).await?;
        }
        let mut turn_of_head = self.head.lock().await;
        self.settle_head(&mut turn_of_head, until).await?;
        loop {
            let found = head::read(&self.requests, until).await?;
            let stand = self.stands.now();
            // What was found stays found: another claim in between loses the PUT.
            let over = self.take_over && !self.claimed_once();
            let theirs = found.as_ref().map(|found| &found.head);
            let Turn { base, epoch } = stand.turn(theirs, over)?;
            let stranded = self.stranded_by(theirs, epoch, until).await?;
            let write_id = self.new_write_id();
            let new = Head {
                epoch,
                owner: self.owner.clone(),
                write_id,
                checkpoints: theirs.map_or_else(Vec::new, |head| head.checkpoints.clone()),
            };
            let journal = &self.parts.queue().journal;
            self.stands
                .change(journal, |stand| stand.claims(write_id))
                .await?;
            let change = Change::new(new, found.as_ref(), true);
            let sent = turn_of_head.send(change, &self.requests, until).await?;
            let Some(claimed) = sent else {
                continue;
            };
            self.stands
                .change(journal, |stand| {
                    stand.base = base;
                    stand.attempt = None;
                    stand.held = Some(epoch);
                    stand.claims = vec![write_id];
                    if let Some(new) = stranded {
                        // What is over protects nothing any more, however often that was.
                        let over = 2 * self.config.stranded_retention;
                        let age = |old: &Stranded| new.since_ms.saturating_sub(old.since_ms);
                        stand
                            .stranded
                            .retain(|old| u128::from(age(old)) <= over.as_millis());
                        stand.stranded.push(new);
                    }
                    stand.fenced = false;
                })
                .await?;
            self.parts.epochs.adopt(epoch, journal).await?;
            turn_of_head.known = Some(claimed);
            self.epoch_is(epoch);
            self.parts.queue().hold_sending(false);
            self.parts.flusher.moved();
            tracing::info!(epoch, "claimed");
            return Ok(());
        }
    }

    /// What the owner from whom the prefix is taken over may have uploaded and not committed;
    /// nothing, where that was this directory.
    async fn stranded_by(
        &self,
        head: Option<&Head>,
        epoch: u64,
        until: Instant,
    ) -> Result<Option<Stranded>> {
        let Some(head) = head.filter(|head| !self.stands.now().holds(head)) else {
            return Ok(None);
        };
        let from = match head.latest() {
            None => (0, 0),
            Some(listed) => {
                let manifest = reader::manifest(&self.requests, listed, until).await?;
                manifest.mark.unwrap_or((0, 0))
            }
        };
        let now = server_now(&self.requests, self.requests.random.u64(), until).await?;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some(Stranded {
            from,
            to: epoch,
            since_ms: millis(since),
        }))
    }

    /// Claims as long as nobody did, and looks now and then whether another has since; until the
    /// store stops.
    pub(crate) async fn keep_claim(self: Arc<Self>) {
        let mut seen = true;
        loop {
            if self.parts.fenced().is_some() || self.requests.stop.is_cancelled() {
                return;
            }
            if self.epoch().is_none() {
                match self.claim(Instant::now() + self.a_try()).await {
                    Ok(()) => seen = true,
                    Err(error @ (Error::Diverged { .. } | Error::TakeOverNeeded { .. })) => {
                        return self.fence(error).await;
                    }
                    Err(error) => tracing::debug!(%error, "the prefix is not claimed yet"),
                }
            }
            let every = match self.epoch() {
                Some(_) if seen => self.config.look_at_head,
                // S3 did not answer: whoever was fenced meanwhile is to stop soon after it does.
                _ => SOON.min(self.config.look_at_head),
            };
            tokio::select! {
                biased;
                () = self.requests.stop.cancelled() => return,
                () = tokio::time::sleep(every) => (),
                () = self.look.notified() => (),
                // Its sequences are used up.
                () = self.parts.epochs.spent(), if self.epoch().is_some() => self.epoch_over(),
            }
            if let Some(epoch) = self.epoch() {
                seen = self.look_at_head(epoch).await;
            }
        }
    }

    /// How long is waited for S3 before it is asked anew: back-off included, an outage that ends
    /// is noticed within `look_at_head`.
    fn a_try(&self) -> Duration {
        let half = self.config.look_at_head / 2;
        half.max(SOON).min(self.config.claim_within)
    }

    /// Looks whether `head` still has our epoch; whether it could be seen.
    async fn look_at_head(self: &Arc<Self>, epoch: u64) -> bool {
        let until = Instant::now() + self.a_try();
        match head::read(&self.requests, until).await {
            Ok(Some(found)) if found.head.epoch == epoch || is(Mutant::LookSeesNoOther) => true,
            Ok(found) => {
                // A claim of ours may have been made meanwhile.
                if self.epoch() == Some(epoch) {
                    let head = found.map(|found| found.head).unwrap_or_default();
                    self.fence_by(epoch, &head).await;
                }
                true
            }
            Err(error) => {
                tracing::debug!(%error, "head cannot be looked at");
                false
            }
        }
    }

    /// Whether `head` is ours still; where it is another's, the store is fenced.
    pub(super) async fn check_owner(self: &Arc<Self>, head: &Head) -> Result<()> {
        if !self.is_fencing() || is(Mutant::OwnerNotChecked) {
            return Ok(());
        }
        if self.holds(head) {
            return Ok(());
        }
        let ours = self.stands.now().held.unwrap_or(0);
        Err(self.fence_by(ours, head).await)
    }

    async fn fence_by(self: &Arc<Self>, ours: u64, head: &Head) -> Error {
        let error = Error::Fenced {
            ours,
            theirs: head.epoch,
            owner: head.owner.clone(),
        };
        self.fence(error.clone()).await;
        error
    }

    async fn fence(self: &Arc<Self>, error: Error) {
        self.parts.fence(&error);
        let journal = &self.parts.queue().journal;
        let noted = self.stands.change(journal, |stand| stand.fenced = true);
        if let Err(error) = noted.await {
            tracing::warn!(%error, "that it is fenced is not on record");
        }
    }
}
