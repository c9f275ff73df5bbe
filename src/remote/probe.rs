//! The capability probe: does this server honour conditions? Tried out, on keys of its own.
//!
//! Owns: the experiments and what they mean. Does not own: what is refused because of them (open
//! does that).
//!
//! 1. An experiment's outcome is only what the server did; trouble on the way (throttling, a lost
//!    reply) makes it be repeated, never be guessed.
//! 2. All of it, cleaning up included, ends within the deadline.
//! 3. Keys are fresh and objects small; what was written is deleted, however the probe ended.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::deadline::{MIN_ATTEMPT, within};
use super::{
    Class, CompleteMultipart, Crc64, CreateMultipart, ETag, Effect, ObjectHeaders, ObjectInfo,
    PutRequest, Remote, RemoteError, UploadPart, WriteCondition,
};

use crate::sync::Mutex;

/// Contestants of the race for one key.
const RACERS: usize = 8;

/// How one capability came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Support {
    /// As S3 does it.
    Honoured,
    /// The server said yes and did something else.
    Ignored {
        /// What it did.
        observed: String,
    },
    /// The server said that it cannot.
    Refused {
        /// What it said.
        observed: String,
    },
}

impl Support {
    /// Whether it can be relied on.
    #[must_use]
    pub fn is_honoured(&self) -> bool {
        matches!(self, Self::Honoured)
    }

    fn ignored(observed: impl Into<String>) -> Self {
        Self::Ignored {
            observed: observed.into(),
        }
    }

    fn when(honoured: bool, observed: impl Into<String>) -> Self {
        if honoured {
            Self::Honoured
        } else {
            Self::ignored(observed)
        }
    }
}

/// What the server was seen to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `If-None-Match: *`: of many at once exactly one wins, and none wins later.
    pub if_none_match: Support,
    /// `If-Match` on a PUT: the right entity tag wins, a stale one loses.
    pub if_match: Support,
    /// `If-Match` on a key that does not exist is refused.
    pub if_match_missing: Support,
    /// `If-None-Match: *` and `If-Match` where an upload in parts is completed: over a key that
    /// exists, and with a stale entity tag, it is refused.
    pub conditional_complete: Support,
    /// `If-Match` on a DELETE: a stale entity tag deletes nothing.
    pub conditional_delete: Support,
    /// `x-amz-meta-write-id` comes back.
    pub write_id_kept: Support,
    /// The full-object CRC-64/NVME comes back.
    pub crc64_kept: Support,
}

impl Capabilities {
    /// Whether an epoch can be fenced on this server: all that a change of `head` relies on.
    #[must_use]
    pub fn can_fence(&self) -> bool {
        self.conditional_writes() && self.if_match_missing.is_honoured()
    }

    /// Whether a key can be protected against its own late writes.
    #[must_use]
    pub fn conditional_writes(&self) -> bool {
        self.if_none_match.is_honoured() && self.if_match.is_honoured()
    }

    /// What is not honoured, and what the server did instead: for the error of who needs it.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        [
            ("If-None-Match: *", &self.if_none_match),
            ("If-Match", &self.if_match),
            ("If-Match on a missing key", &self.if_match_missing),
            ("conditions on a completion", &self.conditional_complete),
            ("If-Match on a DELETE", &self.conditional_delete),
            ("x-amz-meta-write-id", &self.write_id_kept),
            ("x-amz-checksum-crc64nvme", &self.crc64_kept),
        ]
        .into_iter()
        .filter_map(|(name, support)| match support {
            Support::Honoured => None,
            Support::Ignored { observed } => Some(format!("{name} is ignored: {observed}")),
            Support::Refused { observed } => Some(format!("{name} is refused: {observed}")),
        })
        .collect()
    }
}

/// Why the probe came to no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Something else than a capability is missing: permission, credentials, the bucket.
    #[error("the probe cannot be made: {0}")]
    Failed(RemoteError),
    /// No result before the deadline.
    #[error("the probe came to no result within {after:?}; last: {last:?}")]
    Deadline {
        /// The deadline.
        after: Duration,
        /// What stood in the way.
        last: Option<RemoteError>,
    },
}

/// Tries out what the server does, under keys that begin with `under` (relative to the remote's
/// prefix) and go on with `nonce`, a number that no other probe of this prefix has used (a random
/// one). At most `deadline`, of which a quarter is kept for cleaning up.
///
/// # Errors
/// [`ProbeError`]: no result, as opposed to a bad one.
///
/// # Cancel safety
/// Dropping it leaves small objects under `under`.
pub async fn probe(
    remote: &dyn Remote,
    under: &str,
    nonce: u64,
    deadline: Duration,
) -> Result<Capabilities, ProbeError> {
    let end = Instant::now() + deadline;
    let experiments = deadline.mul_f32(0.75);
    let probe = Probe {
        remote,
        under,
        nonce,
        written: Mutex::new(BTreeSet::new()),
        begun: Mutex::new(Vec::new()),
        last: Mutex::new(None),
    };
    let result = timeout(experiments, probe.run()).await;
    let left = end.saturating_duration_since(Instant::now());
    if timeout(left, probe.clean_up()).await.is_err() {
        tracing::debug!(
            remote = remote.describe(),
            under,
            "probe objects may be left"
        );
    }
    match result {
        Ok(result) => result,
        Err(_) => Err(ProbeError::Deadline {
            after: deadline,
            last: probe.last.into_inner(),
        }),
    }
}

struct Probe<'a> {
    remote: &'a dyn Remote,
    under: &'a str,
    nonce: u64,
    /// Keys that may exist: at most one per try of an experiment, and tries back off.
    written: Mutex<BTreeSet<String>>,
    /// Uploads in parts that may be unfinished: two per try.
    begun: Mutex<Vec<(String, String)>>,
    last: Mutex<Option<RemoteError>>,
}

/// What one conditional request did.
enum Did {
    Won(ObjectInfo),
    Lost,
    Refused(RemoteError),
}

impl Probe<'_> {
    async fn run(&self) -> Result<Capabilities, ProbeError> {
        let if_none_match = self.create_race().await?;
        let (if_match, write_id_kept, crc64_kept) = self.swap().await?;
        let if_match_missing = self.match_missing().await?;
        let conditional_complete = self.complete().await?;
        let conditional_delete = self.delete().await?;
        Ok(Capabilities {
            if_none_match,
            if_match,
            if_match_missing,
            conditional_complete,
            conditional_delete,
            write_id_kept,
            crc64_kept,
        })
    }

    fn fresh_key(&self) -> String {
        let mut written = self.written.lock();
        let key = format!("{}{:016x}-{}", self.under, self.nonce, written.len());
        written.insert(key.clone());
        key
    }

    async fn put(
        &self,
        key: &str,
        body: String,
        condition: Option<WriteCondition>,
    ) -> Result<ObjectInfo, RemoteError> {
        let body = Bytes::from(body);
        let request = PutRequest {
            key: key.to_owned(),
            checksum: Crc64::of(&body),
            write_id: Some(write_id_of(key)),
            body,
            condition,
            headers: ObjectHeaders::default(),
        };
        within("PutObject", MIN_ATTEMPT, self.remote.put(request)).await
    }

    /// Sorts an outcome; `None` where it says nothing about the condition.
    fn sort(&self, result: Result<ObjectInfo, RemoteError>) -> Result<Option<Did>, ProbeError> {
        let error = match result {
            Ok(info) => return Ok(Some(Did::Won(info))),
            Err(error) => error,
        };
        if error.class == Class::Conflict || error.has_code("ConditionalRequestConflict") {
            return Ok(Some(Did::Lost));
        }
        if says_not_implemented(&error) {
            return Ok(Some(Did::Refused(error)));
        }
        match error.class {
            Class::Transient | Class::Throttle => {
                *self.last.lock() = Some(error);
                Ok(None)
            }
            _ => Err(ProbeError::Failed(error)),
        }
    }

    /// Waits before a try is repeated; the deadline is outside.
    async fn pause(&self, tried: &mut u32) {
        let pause = Duration::from_millis(50).saturating_mul(1 << (*tried).min(6));
        *tried += 1;
        let wish = self
            .last
            .lock()
            .as_ref()
            .and_then(|error| error.retry_after);
        tokio::time::sleep(pause.max(wish.unwrap_or_default())).await;
    }

    /// A plain PUT that must work: what comes before an experiment.
    async fn prepare(&self, key: &str, body: &str) -> Result<ObjectInfo, ProbeError> {
        let mut tried = 0;
        loop {
            match self.put(key, body.to_owned(), None).await {
                Ok(info) => return Ok(info),
                Err(error) if matches!(error.class, Class::Transient | Class::Throttle) => {
                    *self.last.lock() = Some(error);
                    self.pause(&mut tried).await;
                }
                Err(error) => return Err(ProbeError::Failed(error)),
            }
        }
    }

    /// Many create one fresh key at once, and one more afterwards.
    async fn create_race(&self) -> Result<Support, ProbeError> {
        let mut tried = 0;
        loop {
            let key = self.fresh_key();
            let create = |racer: usize| {
                self.put(
                    &key,
                    format!("racer {racer}"),
                    Some(WriteCondition::IfAbsent),
                )
            };
            let mut winners = 0_usize;
            let mut open = false;
            for result in join_all((0..RACERS).map(create)).await {
                match self.sort(result)? {
                    Some(Did::Won(_)) => winners += 1,
                    Some(Did::Lost) => {}
                    Some(Did::Refused(error)) => return Ok(refused(&error)),
                    None => open = true,
                }
            }
            if winners > 1 {
                return Ok(Support::ignored(format!(
                    "{winners} of {RACERS} created one key"
                )));
            }
            if winners == 1 && !open {
                match self.sort(create(RACERS).await)? {
                    Some(Did::Won(_)) => {
                        return Ok(Support::ignored("a key that exists was created again"));
                    }
                    Some(Did::Lost) => return Ok(Support::Honoured),
                    Some(Did::Refused(error)) => return Ok(refused(&error)),
                    None => {}
                }
            }
            // No winner, or a contestant whose outcome nobody knows: says nothing. Again.
            self.pause(&mut tried).await;
        }
    }

    /// Compare-and-swap; and what a HEAD gives back, as the object is there.
    async fn swap(&self) -> Result<(Support, Support, Support), ProbeError> {
        let mut tried = 0;
        loop {
            let key = self.fresh_key();
            let first = self.prepare(&key, "first").await?;
            let (write_id, crc64) = self.kept(&key).await?;
            let swap = |body: &str, etag: ETag| {
                self.put(&key, body.to_owned(), Some(WriteCondition::IfMatch(etag)))
            };
            let right = self.sort(swap("second", first.etag.clone()).await)?;
            let if_match = match right {
                None => None,
                Some(Did::Refused(error)) => Some(refused(&error)),
                Some(Did::Lost) => Some(Support::ignored("the right entity tag lost")),
                Some(Did::Won(second)) if second.etag == first.etag => {
                    Some(Support::ignored("other bytes got the same entity tag"))
                }
                Some(Did::Won(_)) => match self.sort(swap("third", first.etag).await)? {
                    None => None,
                    Some(Did::Won(_)) => Some(Support::ignored("a stale entity tag won")),
                    Some(Did::Lost) => Some(Support::Honoured),
                    Some(Did::Refused(error)) => Some(refused(&error)),
                },
            };
            if let Some(if_match) = if_match {
                return Ok((if_match, write_id, crc64));
            }
            self.pause(&mut tried).await;
        }
    }

    async fn kept(&self, key: &str) -> Result<(Support, Support), ProbeError> {
        let mut tried = 0;
        loop {
            match within("HeadObject", MIN_ATTEMPT, self.remote.head(key)).await {
                Ok(Some(info)) => {
                    let expected = Crc64::of(b"first");
                    let crc64 = match info.checksum {
                        Some(found) => Support::when(found == expected, "another checksum"),
                        None => Support::ignored("HEAD gives no checksum back"),
                    };
                    let write_id = match info.write_id {
                        Some(found) => Support::when(found == write_id_of(key), "another write id"),
                        None => Support::ignored("HEAD gives no write id back"),
                    };
                    return Ok((write_id, crc64));
                }
                Ok(None) => {
                    let observed = "HEAD does not see an object that was just written";
                    return Ok((Support::ignored(observed), Support::ignored(observed)));
                }
                Err(error) if matches!(error.class, Class::Transient | Class::Throttle) => {
                    *self.last.lock() = Some(error);
                    self.pause(&mut tried).await;
                }
                Err(error) => return Err(ProbeError::Failed(error)),
            }
        }
    }

    /// `If-Match` on a key that was never there.
    async fn match_missing(&self) -> Result<Support, ProbeError> {
        let mut tried = 0;
        loop {
            let key = self.fresh_key();
            let etag = ETag("d41d8cd98f00b204e9800998ecf8427e".to_owned());
            let put = self
                .put(&key, "made".to_owned(), Some(WriteCondition::IfMatch(etag)))
                .await;
            match self.sort(put)? {
                Some(Did::Won(_)) => return Ok(Support::ignored("the key was created")),
                Some(Did::Lost) => return Ok(Support::Honoured),
                Some(Did::Refused(error)) => return Ok(refused(&error)),
                None => self.pause(&mut tried).await,
            }
        }
    }

    /// An upload in parts, completed where its condition does not hold.
    async fn complete(&self) -> Result<Support, ProbeError> {
        let mut tried = 0;
        'again: loop {
            let key = self.fresh_key();
            let stale = self.prepare(&key, "one").await?.etag;
            self.prepare(&key, "two").await?;
            for (condition, observed) in [
                (
                    WriteCondition::IfAbsent,
                    "a key that exists was created again",
                ),
                (WriteCondition::IfMatch(stale), "a stale entity tag won"),
            ] {
                let completed = self.complete_with(&key, condition).await;
                match self.sort(completed)? {
                    Some(Did::Won(_)) => return Ok(Support::ignored(observed)),
                    Some(Did::Lost) => {}
                    Some(Did::Refused(error)) if error.has_code("NoSuchUpload") => {
                        self.pause(&mut tried).await;
                        continue 'again;
                    }
                    Some(Did::Refused(error)) => return Ok(refused(&error)),
                    None => {
                        self.pause(&mut tried).await;
                        continue 'again;
                    }
                }
            }
            return Ok(Support::Honoured);
        }
    }

    async fn complete_with(
        &self,
        key: &str,
        condition: WriteCondition,
    ) -> Result<ObjectInfo, RemoteError> {
        let create = self.remote.create_multipart(CreateMultipart {
            key: key.to_owned(),
            headers: ObjectHeaders::default(),
            write_id: Some(write_id_of(key)),
        });
        let upload_id = within("CreateMultipartUpload", MIN_ATTEMPT, create).await?;
        let begun = (key.to_owned(), upload_id.clone());
        self.begun.lock().push(begun);
        let body = Bytes::from_static(b"in parts");
        let checksum = Crc64::of(&body);
        let size = body.len() as u64;
        let part = self.remote.upload_part(UploadPart {
            key: key.to_owned(),
            upload_id: upload_id.clone(),
            number: 1,
            body,
            checksum,
        });
        let part = within("UploadPart", MIN_ATTEMPT, part).await?;
        let complete = self.remote.complete_multipart(CompleteMultipart {
            key: key.to_owned(),
            upload_id,
            parts: vec![part],
            checksum,
            size,
            condition: Some(condition),
        });
        within("CompleteMultipartUpload", MIN_ATTEMPT, complete).await
    }

    /// A DELETE with a stale entity tag.
    async fn delete(&self) -> Result<Support, ProbeError> {
        let mut tried = 0;
        loop {
            let key = self.fresh_key();
            let stale = self.prepare(&key, "one").await?.etag;
            let current = self.prepare(&key, "two").await?;
            let delete = self.remote.delete(&key, Some(stale));
            let deleted = within("DeleteObject", MIN_ATTEMPT, delete).await;
            match self.sort(deleted.map(|()| current))? {
                Some(Did::Won(_)) => {
                    return Ok(Support::ignored(
                        "a stale entity tag was answered with success",
                    ));
                }
                Some(Did::Lost) => {}
                Some(Did::Refused(error)) => return Ok(refused(&error)),
                None => {
                    self.pause(&mut tried).await;
                    continue;
                }
            }
            // It said no; did it also do nothing?
            match within("HeadObject", MIN_ATTEMPT, self.remote.head(&key)).await {
                Ok(found) => {
                    return Ok(Support::when(
                        found.is_some(),
                        "refused, and deleted all the same",
                    ));
                }
                Err(error) if matches!(error.class, Class::Transient | Class::Throttle) => {
                    *self.last.lock() = Some(error);
                    self.pause(&mut tried).await;
                }
                Err(error) => return Err(ProbeError::Failed(error)),
            }
        }
    }

    async fn clean_up(&self) {
        let begun = self.begun.lock().clone();
        for (key, upload_id) in begun {
            // Where it is gone, or may not be aborted: whoever looks for garbage finds what is left.
            let abort = self.remote.abort_multipart(&key, &upload_id);
            if let Err(error) = within("AbortMultipartUpload", MIN_ATTEMPT, abort).await {
                tracing::debug!(key, %error, "the probe's upload may be left");
            }
        }
        let keys = self.written.lock().clone();
        for key in keys {
            for _ in 0..3 {
                let delete = self.remote.delete(&key, None);
                match within("DeleteObject", MIN_ATTEMPT, delete).await {
                    Ok(()) => break,
                    Err(error) if error.retryable => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(_) => break,
                }
            }
        }
    }
}

/// The write id of what is written under `key`.
fn write_id_of(key: &str) -> String {
    format!("probe-{:016x}", Crc64::of(key.as_bytes()).0)
}

/// Whether the server says that it does not know the header: a plain request would have worked.
fn says_not_implemented(error: &RemoteError) -> bool {
    error.class == Class::Permanent && error.effect == Effect::NotApplied
}

fn refused(error: &RemoteError) -> Support {
    Support::Refused {
        observed: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
