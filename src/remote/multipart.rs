//! One upload in parts, over any [`Remote`]: resumed where the last attempt ended.
//!
//! Owns: the order create, write the id down, parts (several at once), complete; what a lost
//! reply of each means; giving an upload up. Does not own: back-off between attempts, upload
//! slots, or what survives the process (the caller journals the id and, after a crash, aborts).
//!
//! 1. No part is sent before the journal has the upload's id.
//! 2. Every request has an attempt deadline of its own; every local wait has one too.
//! 3. Acknowledged parts are never sent again, unless the server refuses or has lost them.
//! 4. An object is made only of parts whose checksums add up to the whole's.
//! 5. After a completion whose reply was lost, "no such upload" or a failed condition is first
//!    taken for our own success: HEAD, then write id, then checksum and size.
//! 6. An upload given up is aborted, or stays in the state as one to be aborted; there are never
//!    more than a few of those.

mod plan;
mod source;
mod state;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout};

use super::deadline::{DEFAULT_MIN_RATE, MIN_ATTEMPT, attempt_deadline, within};
use super::validate::{MAX_PUT_BYTES, ValidationError};
use super::{
    Class, CompleteMultipart, Crc64, CreateMultipart, Effect, ObjectHeaders, ObjectInfo, PartInfo,
    Remote, RemoteError, UploadPart, WriteCondition,
};

pub use plan::PartPlan;
pub use source::{PartSource, Unjournaled, UploadJournal};
use state::MAX_ABANDONED;
pub use state::MultipartUploadState;

/// What is uploaded.
#[derive(Debug, Clone)]
pub struct MultipartRequest {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// Of the whole object, where it is known; otherwise what the parts add up to is sent.
    pub checksum: Option<Crc64>,
    /// The condition of the completion, if any.
    pub condition: Option<WriteCondition>,
    /// Passed through.
    pub headers: ObjectHeaders,
    /// Stored as `x-amz-meta-write-id`.
    pub write_id: Option<String>,
    /// An earlier attempt may have made the object: one without any write id, and with equal
    /// bytes, is then taken for ours.
    pub sent_before: bool,
}

/// How it is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipartOptions {
    /// Parts on the wire at once, at least 1; memory is this times the part size. Default 4.
    pub concurrency: usize,
    /// The slowest link that is waited for, in bytes a second. Default 64 KiB.
    pub min_rate: u64,
    /// The shortest deadline of a part. Default 10 s.
    pub floor: Duration,
    /// For one read of the source or one write of the journal. Default 60 s.
    pub local_deadline: Duration,
}

impl Default for MultipartOptions {
    fn default() -> Self {
        Self {
            concurrency: 4,
            min_rate: DEFAULT_MIN_RATE,
            floor: MIN_ATTEMPT,
            local_deadline: Duration::from_secs(60),
        }
    }
}

/// Why an attempt ended. The state says how far it came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultipartError {
    /// A request failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The source could not be read.
    #[error("the source of the upload: {0}")]
    Source(#[source] io::Error),
    /// The upload's id could not be written down.
    #[error("the journal of the upload: {0}")]
    Journal(#[source] io::Error),
    /// What was read is not what was promised: nothing was made of it.
    #[error("the source changed: its checksum is {found:016x}, not {expected:016x}")]
    SourceChanged {
        /// What was promised.
        expected: u64,
        /// What the parts add up to.
        found: u64,
    },
    /// A part larger than a request may be.
    #[error(transparent)]
    Invalid(#[from] ValidationError),
}

impl MultipartError {
    /// The failed request, if that is what it was.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(error) => Some(error),
            _ => None,
        }
    }
}

/// An upload and what it needs.
#[derive(Clone, Copy)]
pub struct MultipartTransfer<'a> {
    /// Where to.
    pub remote: &'a dyn Remote,
    /// What.
    pub request: &'a MultipartRequest,
    /// The bytes.
    pub source: &'a dyn PartSource,
    /// Who must know of it first.
    pub journal: &'a dyn UploadJournal,
    /// How.
    pub options: MultipartOptions,
}

impl std::fmt::Debug for MultipartTransfer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MultipartTransfer")
            .field("remote", &self.remote.describe())
            .field("key", &self.request.key)
            .finish_non_exhaustive()
    }
}

/// Whether `found` is what an upload of `size` bytes with this write id and checksum would have
/// made: by the write id where both sides have one, otherwise by checksum and size.
#[must_use]
pub fn is_ours(found: &ObjectInfo, write_id: Option<&str>, size: u64, checksum: Crc64) -> bool {
    match (write_id, found.write_id.as_deref()) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => found.size == size && found.checksum == Some(checksum),
    }
}

/// How one pass over the state ended, when not well.
enum Ended {
    /// The server has lost the upload: begin again.
    Lost(MultipartError),
    /// The server refuses the parts that it acknowledged: begin again, once.
    Refused(MultipartError),
    Failed(MultipartError),
}

impl<E: Into<MultipartError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl MultipartTransfer<'_> {
    /// One attempt: goes on from `state` to the object, or to the first failure. Restarts once by
    /// itself where the server has lost the upload or refuses its own parts.
    ///
    /// # Errors
    /// What ended the attempt. `state` has what was reached; the next attempt takes it from there.
    ///
    /// # Cancel safety
    /// `state` stays good. Requests on the wire are aborted: parts that were not acknowledged are
    /// sent again; a completion is reconciled by the next attempt.
    pub async fn attempt(
        &self,
        state: &mut MultipartUploadState,
    ) -> Result<ObjectInfo, MultipartError> {
        // What one part costs in memory and on the wire is decided by the plan alone.
        super::validate::body(state.plan.part_size().min(MAX_PUT_BYTES + 1))?;
        let mut restarted = false;
        loop {
            self.abort_abandoned(state).await?;
            let ended = match self.pass(state).await {
                Ok(info) => return Ok(info),
                Err(ended) => ended,
            };
            match ended {
                Ended::Failed(error) => return Err(error),
                Ended::Lost(error) => {
                    state.restart(false);
                    if restarted {
                        // Somebody aborts them as fast as they are begun; the body is good.
                        return Err(later(error));
                    }
                }
                Ended::Refused(error) => {
                    state.restart(true);
                    state.refused = state.refused.saturating_add(1);
                    if restarted || state.refused > 1 {
                        return Err(error);
                    }
                }
            }
            restarted = true;
        }
    }

    async fn pass(&self, state: &mut MultipartUploadState) -> Result<ObjectInfo, Ended> {
        let upload_id = self.begin(state).await?;
        self.parts(state, &upload_id).await?;
        self.complete(state, &upload_id).await
    }

    /// Creates the upload where there is none, and has its id written down.
    async fn begin(&self, state: &mut MultipartUploadState) -> Result<String, Ended> {
        let upload_id = match &state.upload_id {
            Some(id) => id.clone(),
            None => {
                let request = CreateMultipart {
                    key: self.request.key.clone(),
                    headers: self.request.headers.clone(),
                    write_id: self.request.write_id.clone(),
                };
                // Until the answer is here, an upload may exist that nobody has the id of; a drop
                // of this future must not forget that.
                let before = std::mem::replace(&mut state.strays, true);
                let created = within(
                    "CreateMultipartUpload",
                    MIN_ATTEMPT,
                    self.remote.create_multipart(request),
                )
                .await;
                if !created
                    .as_ref()
                    .is_err_and(|error| error.effect == Effect::Unknown)
                {
                    state.strays = before;
                }
                let id = created?;
                crate::crash_point::crash_point("multipart.created");
                state.upload_id = Some(id.clone());
                id
            }
        };
        if !state.journaled {
            let written = timeout(
                self.options.local_deadline,
                self.journal.created(&upload_id),
            );
            match written.await {
                Ok(Ok(())) => {
                    crate::crash_point::crash_point("multipart.journaled");
                    state.journaled = true;
                }
                Ok(Err(error)) => return Err(MultipartError::Journal(error).into()),
                Err(_) => {
                    return Err(MultipartError::Journal(io::ErrorKind::TimedOut.into()).into());
                }
            }
        }
        Ok(upload_id)
    }

    /// Sends the parts that are missing. After a failure no new one is begun; those on the wire
    /// are waited for (each has its deadline), so that what they carried is not carried twice.
    async fn parts(&self, state: &mut MultipartUploadState, upload_id: &str) -> Result<(), Ended> {
        let plan = state.plan;
        let missing: Vec<i32> = (1..=plan.parts())
            .filter(|number| !state.done.contains_key(number))
            .collect();
        let mut missing = missing.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut failed: Option<MultipartError> = None;
        loop {
            while failed.is_none() && under_way.len() < self.options.concurrency.max(1) {
                let Some(number) = missing.next() else { break };
                under_way.push(self.part(plan, upload_id, number));
            }
            match under_way.next().await {
                None => break,
                Some(Ok(part)) => {
                    state.done.insert(part.number, part);
                }
                Some(Err(error)) => {
                    let lost = is_lost(&error);
                    if failed.is_none() || lost {
                        failed = Some(error);
                    }
                    if lost {
                        // What is on the wire can go nowhere.
                        break;
                    }
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(error) if is_lost(&error) => Err(Ended::Lost(error)),
            Some(error) => Err(Ended::Failed(error)),
        }
    }

    async fn part(
        &self,
        plan: PartPlan,
        upload_id: &str,
        number: i32,
    ) -> Result<PartInfo, MultipartError> {
        let Some((offset, length)) = plan.range(number) else {
            let limit = super::validate::MAX_PARTS;
            return Err(ValidationError::PartNumber {
                number: number.into(),
                limit,
            }
            .into());
        };
        let body = self
            .read(offset, length)
            .await
            .map_err(MultipartError::Source)?;
        let checksum = Crc64::of(&body);
        let request = UploadPart {
            key: self.request.key.clone(),
            upload_id: upload_id.to_owned(),
            number,
            body,
            checksum,
        };
        let deadline = attempt_deadline(length, self.options.min_rate, self.options.floor);
        let part = within("UploadPart", deadline, self.remote.upload_part(request)).await?;
        crate::crash_point::crash_point("multipart.part");
        // Ours, whatever a remote echoes: the completion names what was read here.
        Ok(PartInfo {
            number,
            etag: part.etag,
            checksum,
        })
    }

    async fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let read = timeout(
            self.options.local_deadline,
            self.source.read(offset, length),
        );
        let body = read
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let found = body.len();
        if u64::try_from(found).ok() != Some(length) {
            let text = format!("{found} bytes at {offset}, {length} were asked for");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(body)
    }

    async fn complete(
        &self,
        state: &mut MultipartUploadState,
        upload_id: &str,
    ) -> Result<ObjectInfo, Ended> {
        let Some(checksum) = state.combined() else {
            return Err(RemoteError::transient("UploadPart").with_message("a part is missing"))?;
        };
        if let Some(expected) = self.request.checksum
            && expected != checksum
        {
            // What was acknowledged is of bytes that nobody promised: none of it can be used.
            state.restart(true);
            let (expected, found) = (expected.0, checksum.0);
            return Err(MultipartError::SourceChanged { expected, found }.into());
        }
        let size = state.plan.total();
        let request = CompleteMultipart {
            key: self.request.key.clone(),
            upload_id: upload_id.to_owned(),
            parts: state.done.values().cloned().collect(),
            checksum,
            size,
            condition: self.request.condition.clone(),
        };
        // Making one object of 10,000 parts takes the server a while: it may copy.
        let deadline = complete_deadline(state.plan);
        crate::crash_point::crash_point("multipart.completing");
        let completed = within(
            "CompleteMultipartUpload",
            deadline,
            self.remote.complete_multipart(request),
        );
        let error = match completed.await {
            Ok(info) => {
                crate::crash_point::crash_point("multipart.completed");
                return Ok(info);
            }
            Err(error) => error,
        };
        let code = error.code.as_deref().unwrap_or_default();
        match code {
            "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => {
                Err(Ended::Refused(error.into()))
            }
            "NoSuchUpload" => match self.find_ours(size, checksum).await? {
                Some(info) => Ok(info),
                None => Err(Ended::Lost(error.into())),
            },
            "ConditionalRequestConflict" => {
                // S3 asks for a new upload after this one; the parts cannot be used again.
                let found = self.find_ours(size, checksum).await?;
                state.restart(true);
                if let Some(info) = found {
                    return Ok(info);
                }
                Err(error.into())
            }
            _ if error.class == Class::Conflict => {
                // An earlier completion of ours, its reply lost, makes its own repetition fail.
                match self.find_ours(size, checksum).await? {
                    Some(info) => {
                        // Or one of an earlier life: then this upload is still unfinished.
                        state.restart(true);
                        Ok(info)
                    }
                    None => Err(error.into()),
                }
            }
            _ => Err(error.into()),
        }
    }

    /// The object, if it is what this upload would have made.
    async fn find_ours(
        &self,
        size: u64,
        checksum: Crc64,
    ) -> Result<Option<ObjectInfo>, RemoteError> {
        let found = within(
            "HeadObject",
            MIN_ATTEMPT,
            self.remote.head(&self.request.key),
        )
        .await;
        // The completion's own outcome stays open until this question is answered.
        let found = found.map_err(|error| error.with_effect(Effect::Unknown))?;
        let write_id = self.request.write_id.as_deref();
        let may_be = |info: &ObjectInfo| {
            write_id.is_none() || info.write_id.is_some() || self.request.sent_before
        };
        Ok(found.filter(|info| may_be(info) && is_ours(info, write_id, size, checksum)))
    }

    /// One try to abort each upload that was given up.
    async fn abort_abandoned(&self, state: &mut MultipartUploadState) -> Result<(), RemoteError> {
        let mut last = None;
        let mut at = 0;
        // An id leaves the state only when it is known to be aborted: this may be dropped.
        while let Some(id) = state.abandoned.get(at) {
            let request = self.remote.abort_multipart(&self.request.key, id);
            match within("AbortMultipartUpload", MIN_ATTEMPT, request).await {
                Ok(()) => {
                    state.abandoned.remove(at);
                }
                Err(error) => {
                    last = Some(error);
                    at += 1;
                }
            }
        }
        match last {
            Some(error) if state.abandoned.len() >= MAX_ABANDONED => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether the server has no such upload (any more).
fn is_lost(error: &MultipartError) -> bool {
    error
        .remote()
        .is_some_and(|error| error.has_code("NoSuchUpload"))
}

/// The same failure, as one that may pass.
fn later(error: MultipartError) -> MultipartError {
    match error {
        MultipartError::Remote(error) => MultipartError::Remote(RemoteError {
            class: Class::Transient,
            retryable: true,
            ..error
        }),
        other => other,
    }
}

/// A completion: as long as any other small request, and some for each part.
fn complete_deadline(plan: PartPlan) -> Duration {
    let parts = u64::try_from(plan.parts()).unwrap_or(0);
    MIN_ATTEMPT + Duration::from_millis(20).saturating_mul(u32::try_from(parts).unwrap_or(0))
}

/// Gives an upload up, and all that were given up before it: tries until it is done or `deadline`
/// is over.
///
/// # Errors
/// The last failure; `state` keeps what is left, to be tried again.
///
/// # Cancel safety
/// `state` keeps what is not known to be aborted.
pub async fn abort(
    remote: &dyn Remote,
    key: &str,
    state: &mut MultipartUploadState,
    deadline: Duration,
) -> Result<(), RemoteError> {
    let until = Instant::now() + deadline;
    state.restart(true);
    while let Some(id) = state.abandoned.last() {
        abort_until(remote, key, id, until).await?;
        state.abandoned.pop();
    }
    Ok(())
}

/// Aborts every unfinished upload of exactly this key, whoever started it: for keys that nobody
/// else writes, after a crash or where [`MultipartUploadState::may_have_strays`]. How many.
///
/// # Errors
/// The last failure at `deadline`.
///
/// # Cancel safety
/// What was aborted stays so; call it again for the rest.
pub async fn abort_all(
    remote: &dyn Remote,
    key: &str,
    deadline: Duration,
) -> Result<usize, RemoteError> {
    let until = Instant::now() + deadline;
    let found = retry_until(until, "ListMultipartUploads", || remote.list_multipart(key)).await?;
    for upload in &found {
        abort_until(remote, key, &upload.upload_id, until).await?;
    }
    Ok(found.len())
}

async fn abort_until(
    remote: &dyn Remote,
    key: &str,
    id: &str,
    until: Instant,
) -> Result<(), RemoteError> {
    retry_until(until, "AbortMultipartUpload", || {
        remote.abort_multipart(key, id)
    })
    .await
}

/// Repeats a request until it is done, will never be, or `until` has passed.
async fn retry_until<'a, T>(
    until: Instant,
    operation: &'static str,
    request: impl Fn() -> super::RemoteFuture<'a, T>,
) -> Result<T, RemoteError> {
    let mut pause = Duration::from_millis(50);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let error = match within(operation, left.min(MIN_ATTEMPT), request()).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let wish = error.retry_after.unwrap_or(pause).max(pause);
        if !error.retryable || Instant::now() + wish >= until {
            return Err(error);
        }
        tokio::time::sleep(wish).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests;
