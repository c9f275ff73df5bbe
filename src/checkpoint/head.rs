//! `head`: who owns the prefix, and which checkpoints there are.
//!
//! Owns: its format, and that each change of it is one conditional PUT, so that claiming an epoch,
//! committing a checkpoint and retiring one are in one order. Does not own: what is changed
//! (`claim.rs`, `commit.rs`, `gc.rs`).
//!
//! 1. A change is sent on the condition that nothing has changed since `head` was read.
//! 2. A change whose reply was lost is sent again, the same bytes on the same condition, until the
//!    entity tag is another: then it is known whether it was ours, and none of its requests can
//!    still land.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::Result;
use crate::mutant::{Mutant, is};
use crate::remote::{Class, ETag, Effect, RemoteError, WriteCondition};

use super::frame::Object;
use super::request::{Requests, request};

pub(crate) const KEY: &str = "head";
/// The most checkpoints that are listed at one time.
pub const MAX_LISTED: usize = 1000;
/// More bytes than it ever has: a request for so many that gets no answer is given up after some
/// seconds, while one for an object of any size is not.
const MOST: u64 = 256 * 1024;

/// A checkpoint as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub number: u64,
    /// Name of the epoch that committed it.
    pub epoch: u64,
    pub write_id: u128,
    /// By its owner's clock.
    pub unix_ms: u64,
}

/// What `head` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The epoch that owns the prefix.
    pub epoch: u64,
    /// Host and process of who claimed it, and which directory: information.
    pub owner: String,
    /// Of the change that made it what it is.
    pub write_id: u128,
    /// By number.
    pub checkpoints: Vec<Listed>,
}

impl Head {
    pub(crate) fn latest(&self) -> Option<&Listed> {
        self.checkpoints.last()
    }

    pub(crate) fn lists(&self, listed: &Listed) -> bool {
        self.checkpoints.contains(listed)
    }

    pub(crate) fn numbers(&self) -> BTreeSet<u64> {
        self.checkpoints
            .iter()
            .map(|listed| listed.number)
            .collect()
    }
}

/// `head` as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub head: Head,
    pub etag: ETag,
}

/// What came of a change.
#[derive(Debug)]
pub(crate) enum Changed {
    /// It is as we made it.
    Ours(ETag),
    /// Somebody else has changed it: nothing of ours is in it, nor will be.
    Lost,
    /// Nobody knows: it may be ours, or become so.
    Unknown(RemoteError),
    /// It was refused, and will not be.
    Refused(RemoteError),
}

/// Reads it; `None` where there is none.
pub(crate) async fn read(requests: &Requests, until: Instant) -> Result<Option<Found>> {
    let got = requests.get(KEY, (0, MOST), until).await?;
    let Some(got) = got else { return Ok(None) };
    Ok(Some(Found {
        head: Object::Head.open(KEY, &got.body)?,
        etag: got.info.etag,
    }))
}

/// The checkpoints that it lists; none, where there is none.
pub(crate) async fn listed(requests: &Requests, until: Instant) -> Result<Vec<Listed>> {
    let found = read(requests, until).await?;
    Ok(found.map_or_else(Vec::new, |found| found.head.checkpoints))
}

/// A change of it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub head: Head,
    body: Bytes,
    /// `None`: whatever is there, where conditions are not honoured.
    condition: Option<WriteCondition>,
    /// A request of it may have been carried out.
    sent: bool,
}

impl Change {
    /// From what was found. Not `fenced`: without a condition.
    pub(crate) fn new(head: Head, found: Option<&Found>, fenced: bool) -> Self {
        let condition = match found {
            _ if !fenced || is(Mutant::CommitUnconditional) => None,
            None => Some(WriteCondition::IfAbsent),
            Some(found) => Some(WriteCondition::IfMatch(found.etag.clone())),
        };
        Self {
            body: Object::Head.seal(&head).into(),
            head,
            condition,
            sent: false,
        }
    }

    /// Sends it until it is known what came of it, at most until `until`. Called again, it goes
    /// on.
    pub(crate) async fn send(&mut self, requests: &Requests, until: Instant) -> Changed {
        let mut failures = 0;
        loop {
            if requests.stop.is_cancelled() {
                return self.open(RemoteError::transient("PutObject").with_message("shut down"));
            }
            let put = request(
                KEY,
                &self.body,
                self.condition.clone(),
                Some(self.head.write_id),
            );
            // From here on it may be carried out, whenever this is left.
            let before = std::mem::replace(&mut self.sent, true);
            let answer = tokio::select! {
                biased;
                answer = requests.remote.put(put) => answer,
                () = requests.stop.cancelled() => {
                    return Changed::Unknown(RemoteError::lost("PutObject").with_message("shut down"));
                }
                () = tokio::time::sleep_until(until) => {
                    return Changed::Unknown(RemoteError::timed_out("PutObject"));
                }
            };
            let error = match answer {
                Ok(info) => return Changed::Ours(info.etag),
                Err(error) => error,
            };
            let lost = error.class == Class::Conflict || error.has_code("NoSuchKey");
            if lost {
                // One of ours that was taken for lost may be what is there now.
                match self.look(requests, until).await {
                    Ok(Some(outcome)) => return outcome,
                    Ok(None) => {}
                    Err(error) => return self.open(error),
                }
            } else {
                self.sent = before || error.effect == Effect::Unknown;
                if !error.class.is_retryable() {
                    return self.open(error);
                }
            }
            failures += 1;
            requests.pause(failures, &error, until).await;
            if Instant::now() >= until {
                return self.open(error);
            }
        }
    }

    /// No request of it is on its way.
    fn open(&self, error: RemoteError) -> Changed {
        if self.sent {
            Changed::Unknown(error)
        } else {
            Changed::Refused(error)
        }
    }

    /// Whose what is there is; `None` where it is as we found it.
    async fn look(
        &self,
        requests: &Requests,
        until: Instant,
    ) -> Result<Option<Changed>, RemoteError> {
        let got = requests.get(KEY, (0, MOST), until).await?;
        let Some(got) = got else {
            // There was one, and it is gone; or another made it, and it went.
            let expected = matches!(self.condition, Some(WriteCondition::IfMatch(_)));
            return Ok(expected.then_some(Changed::Lost));
        };
        let theirs: Result<Head> = Object::Head.open(KEY, &got.body);
        if theirs.is_ok_and(|head| head.write_id == self.head.write_id) {
            return Ok(Some(Changed::Ours(got.info.etag)));
        }
        let same = matches!(&self.condition, Some(WriteCondition::IfMatch(etag)) if *etag == got.info.etag);
        Ok((!same).then_some(Changed::Lost))
    }
}
