//! One attempt: at an upload, a delete or a load.
//!
//! Owns: the order of what one attempt does. Does not own: what its outcome means (`react.rs`),
//! or what becomes of the task (`pool.rs`).
//!
//! 1. What the attempt is conditional on is noted in the journal before its request goes out.
//! 2. A request that was given up, and had a condition, is on record before its task is told so.
//! 3. Bytes are checked against what entered before they are sent; success is said only of an
//!    object whose checksum, where the server tells one, is ours.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::mutant::{Mutant, is};
use crate::queue::gate::Way;
use crate::queue::image::Image;
use crate::queue::load::{Load, Loaded};
use crate::queue::receipt::Settlement;
use crate::queue::record::{KeyState, OutstandingRecord, Started, encode, slot};
use crate::queue::task::{Action, Cause, Condition, KeyPolicy};
use crate::queue::{Abort, Queue, TaskJob, Totals};
use crate::random::Random;
use crate::remote::deadline::attempt_deadline;
use crate::remote::probe::{Capabilities, ProbeError, probe};
use crate::remote::{
    Effect, GetRequest, ObjectHeaders, ObjectInfo, PutRequest, Remote, RemoteError, WriteCondition,
};
use crate::time::{WallClock, millis};

use super::keys::{Keys, Makes};
use super::parts::{self, Failed};
use super::react::{self, Next, Ours};
use super::traffic::Traffic;

/// How long an attempt waits for its note where the disk has no room.
const NOTED_ON_A_FULL_DISK: Duration = Duration::from_millis(100);
/// States of a key that an attempt goes on from before it gives its slot back.
const MAX_REBASES: u32 = 4;

/// What attempts share.
pub(crate) struct Shared {
    pub queue: Arc<Queue>,
    /// All that it is asked is heard by `traffic`.
    pub remote: Arc<dyn Remote>,
    pub traffic: Arc<Traffic>,
    pub keys: Keys,
    pub clock: WallClock,
    pub random: Random,
    /// Cuts requests in flight off.
    pub cut: CancellationToken,
    pub capabilities: OnceCell<Capabilities>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("remote", &self.remote.describe())
            .finish_non_exhaustive()
    }
}

/// How an attempt came back.
#[derive(Debug)]
pub(super) enum Verdict {
    End(Settlement),
    Quarantine(Cause),
    /// Failed in a way that may pass.
    Failed(RemoteError),
    /// Nothing was sent: not before this.
    Wait(Instant),
    /// Cut off by shutdown.
    Cut,
}

impl Shared {
    fn config(&self) -> &Config {
        self.queue.config()
    }

    pub(super) fn remote(&self) -> &dyn Remote {
        &*self.remote
    }

    pub(super) fn deadline(&self, way: Way, bytes: u64) -> Duration {
        attempt_deadline(
            bytes,
            self.traffic.slowest_rate(way),
            self.config().attempt_floor,
        )
    }

    /// Makes one request, within its deadline and until it is cut off.
    pub(super) async fn request<T>(
        &self,
        operation: &str,
        writes: bool,
        bytes: u64,
        request: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let way = match writes {
            true => Way::Write,
            false => Way::Read,
        };
        let deadline = self.deadline(way, bytes);
        self.request_within(operation, writes, deadline, request)
            .await
    }

    /// The same, within a deadline of its own.
    async fn request_within<T>(
        &self,
        operation: &str,
        writes: bool,
        deadline: Duration,
        request: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        Totals::add(&self.queue.totals.requests, 1);
        let deadline = match is(Mutant::AttemptNeverEnds) {
            true => Duration::MAX,
            false => deadline,
        };
        let given_up = |mut error: RemoteError| {
            if !writes {
                error.effect = Effect::NotApplied;
            }
            error
        };
        if self.cut.is_cancelled() {
            // Nothing was sent, and nothing is.
            return Err(RemoteError::transient(operation).with_message("cut off by shutdown"));
        }
        let result = tokio::select! {
            biased;
            result = tokio::time::timeout(deadline, request) => match result {
                Ok(result) => result,
                Err(_) => Err(given_up(RemoteError::timed_out(operation))),
            },
            () = self.cut.cancelled() => Err(given_up(cut_off(operation))),
        };
        if let Err(RemoteError {
            effect: Effect::Unknown,
            ..
        }) = &result
        {
            Totals::add(&self.queue.totals.unknown, 1);
        }
        result
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, RemoteError> {
        self.request("HeadObject", false, 0, self.remote().head(key))
            .await
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    fn write_id(&self, job: &TaskJob) -> String {
        format!("{}{}", self.journal_prefix(), job.id)
    }

    /// How all write ids of this directory start.
    fn journal_prefix(&self) -> String {
        format!("{:032x}-", self.queue.journal.journal_id())
    }

    fn is_from_here(&self, found: &ObjectInfo) -> bool {
        react::is_from(found, &self.journal_prefix())
    }

    /// Notes what is about to be sent, on what condition, and how long it may take effect.
    ///
    /// For a write-once upload the note is not synced, and only has to survive this process: one
    /// that its request kills is charged by it. Everything else is protected against its own past,
    /// which must be on the disk before it can become one: after a power cut nobody else knows of
    /// the request.
    async fn note_started(
        &self,
        job: &mut TaskJob,
        condition: Option<&KeyState>,
    ) -> Result<u64, RemoteError> {
        let lifetime = self.config().signature_lifetime + self.deadline(Way::Write, job.len);
        let expires_unix_ms = self.now_ms().saturating_add(millis(lifetime));
        let started = Started {
            condition: condition.cloned(),
            expires_unix_ms,
        };
        let head = encode(&started).into();
        let protected = job.policy == KeyPolicy::Rewritable
            || job.action == Action::Delete
            || job.condition.is_some();
        let noted = match protected {
            true => self.queue.note(job.id, slot::STARTED, head, true),
            false => self.queue.note_attempt(job.id, head),
        };
        if let Some(location) = noted.filter(|_| !protected) {
            self.is_written(location).await;
        }
        if let Some(location) = noted.filter(|_| protected) {
            // A disk that is full, hangs or has failed does not keep uploads from going on.
            let wait = self.queue.journal.wait_durable(location);
            tokio::select! {
                biased;
                waited = tokio::time::timeout(self.config().attempt_floor, wait) => {
                    if !matches!(waited, Ok(Ok(()))) {
                        tracing::warn!(task = job.id.0, "an attempt is made without its note");
                    }
                }
                () = self.cut.cancelled() => {
                    return Err(RemoteError::transient("note of an attempt"));
                }
            }
        }
        crate::crash_point::crash_point("attempt.noted");
        job.in_flight = Some(started);
        Ok(expires_unix_ms)
    }

    /// Waits until a note of an attempt survives the process: not for long.
    async fn is_written(&self, location: u64) {
        let within = match self.queue.journal.is_short() {
            true => NOTED_ON_A_FULL_DISK,
            false => self.config().attempt_floor / 2,
        };
        let wait = self.queue.journal.wait_written(location);
        tokio::select! {
            biased;
            waited = tokio::time::timeout(within, wait) => {
                if !matches!(waited, Ok(Ok(()))) {
                    tracing::debug!(location, "an attempt is made without its note");
                }
            }
            () = self.cut.cancelled() => (),
        }
    }

    /// The code that made a request panicked: what it had on the wire may still land.
    pub(super) fn lost_hold_of(&self, job: &mut TaskJob) {
        if let Some(Started {
            condition,
            expires_unix_ms,
        }) = job.in_flight.take()
        {
            self.gave_up(job, condition, expires_unix_ms);
        }
    }

    /// A request with this condition may still land.
    fn gave_up(&self, job: &TaskJob, condition: Option<KeyState>, expires_unix_ms: u64) {
        self.keys.forget(&job.key);
        let Some(condition) = condition else { return };
        let record = OutstandingRecord {
            key: job.key.to_string(),
            condition,
            expires_unix_ms,
        };
        let location = self.queue.record_outstanding(&record);
        if let Some(replaced) = self.keys.gave_up(&record, location) {
            self.queue.end_owner(replaced);
        }
    }

    /// Until when the operation must wait, because it could remake a state that a given-up
    /// request needs.
    fn hazard(&self, job: &TaskJob, makes: Makes) -> Option<Instant> {
        let now = self.now_ms();
        let until = self.keys.must_wait(&job.key, makes, now)?;
        Some(Instant::now() + Duration::from_millis(until - now))
    }

    /// Whether the server honours the conditions that a key needs which is written again.
    async fn conditions(&self) -> Result<bool, RemoteError> {
        let capabilities = self.capabilities().await?;
        Ok(capabilities.conditional_writes() && capabilities.conditional_delete.is_honoured())
    }

    /// What the server does: asked once, when it first matters.
    async fn capabilities(&self) -> Result<&Capabilities, RemoteError> {
        self
            .capabilities
            .get_or_try_init(|| async {
                let deadline = self.config().attempt_floor * 4;
                let under = "s3-writeback-probe";
                let nonce = self.random.u64();
                tokio::select! {
                    biased;
                    probed = probe(self.remote(), under, nonce, deadline) => probed.map_err(unprobed),
                    () = self.cut.cancelled() => Err(cut_off("probe")),
                }
            })
            .await
    }

    pub(super) async fn attempt(&self, job: &mut TaskJob) -> Verdict {
        let result = match job.action {
            Action::Delete => self.delete(job).await,
            Action::Upload | Action::UploadBorrowed(_) => self.upload(job).await,
        };
        match result {
            Ok(verdict) => verdict,
            Err(error) if self.cut.is_cancelled() => {
                tracing::debug!(task = job.id.0, %error, "cut off by shutdown");
                Verdict::Cut
            }
            Err(error) => Verdict::Failed(error),
        }
    }

    /// The state that a write is to be conditional on; an early verdict where the key already
    /// says how it ends.
    async fn basis(
        &self,
        job: &TaskJob,
        ours: &Ours<'_>,
    ) -> Result<Result<Option<KeyState>, Verdict>, RemoteError> {
        Ok(Ok(match (&job.condition, job.policy) {
            (Some(Condition::IfAbsent { .. }), _) | (None, KeyPolicy::WriteOnce) => {
                Some(KeyState::Absent)
            }
            (Some(Condition::IfMatch(etag)), _) => Some(KeyState::Object {
                etag: etag.clone(),
                size: None,
                checksum: None,
            }),
            (None, KeyPolicy::Rewritable) => {
                if !self.conditions().await? {
                    self.queue.refuse_rewritable();
                    return Ok(Err(Verdict::Quarantine(Cause::ConditionsUnsupported)));
                }
                let in_parts = job.len >= self.config().multipart_threshold;
                if in_parts
                    && !self
                        .capabilities()
                        .await?
                        .conditional_complete
                        .is_honoured()
                {
                    // Smaller ones are protected.
                    return Ok(Err(Verdict::Quarantine(Cause::ConditionsUnsupported)));
                }
                match self.keys.seen(&job.key) {
                    Some(seen) => Some(seen),
                    None => match self.head_or_none(&job.key).await? {
                        None => Some(KeyState::Absent),
                        Some(found) if job.sent_before && ours.wrote(&found) => {
                            return Ok(Err(self.uploaded(job, found)));
                        }
                        Some(found) => Some(react::state_of(&found)),
                    },
                }
            }
        }))
    }

    /// Who may not list is told "forbidden" of a key that is not there. Should it be there all the
    /// same, the condition that follows from this fails.
    async fn head_or_none(&self, key: &str) -> Result<Option<ObjectInfo>, RemoteError> {
        match self.head(key).await {
            Err(error) if error.status == Some(403) && is_about_access(&error) => Ok(None),
            found => found,
        }
    }

    fn uploaded(&self, job: &TaskJob, info: ObjectInfo) -> Verdict {
        if job.policy == KeyPolicy::Rewritable {
            self.keys.saw(&job.key, react::state_of(&info));
        }
        Verdict::End(Settlement::Uploaded(info))
    }

    async fn upload(&self, job: &mut TaskJob) -> Result<Verdict, RemoteError> {
        if job.memory.is_none() {
            // Reading it is what may kill the process: it is charged for that too.
            let begun = Started {
                condition: None,
                expires_unix_ms: self.now_ms(),
            };
            let noted = self.queue.note_attempt(job.id, encode(&begun).into());
            if let Some(location) = noted {
                self.is_written(location).await;
            }
        }
        let source = match self.open_body(job).await {
            Ok(source) => source,
            Err(verdict) => return Ok(verdict),
        };
        let write_id = self.write_id(job);
        let whole = source.len() < self.config().multipart_threshold;
        let _room = match self.room_to_read(job, source.len(), whole).await {
            Ok(room) => room,
            Err(verdict) => return Ok(verdict),
        };
        let body = if whole {
            match self.read_whole(job, &source).await {
                Ok(body) => Some(body),
                Err(verdict) => return Ok(verdict),
            }
        } else {
            None
        };
        let Some(checksum) = job.checksum else {
            return Ok(Verdict::Quarantine(Cause::LocalCorruption(
                "no checksum".to_owned(),
            )));
        };
        let len = job.len;
        let ours = Ours {
            write_id: &write_id,
            len,
            checksum: Some(checksum),
        };
        let mut basis = match self.basis(job, &ours).await? {
            Ok(basis) => basis,
            Err(verdict) => return Ok(verdict),
        };
        let makes = Makes::Object {
            size: len,
            checksum: Some(checksum),
        };
        for _ in 0..MAX_REBASES {
            if let Some(until) = self.hazard(job, makes) {
                // Our own earlier request may be what there is.
                if job.sent_before
                    && let Some(found) = self.head(&job.key).await?
                    && ours.wrote(&found)
                {
                    return Ok(self.uploaded(job, found));
                }
                return Ok(Verdict::Wait(until));
            }
            let condition = basis.as_ref().map(write_condition);
            let expires = self.note_started(job, basis.as_ref()).await?;
            let result = match &body {
                Some(body) => {
                    let request = PutRequest {
                        key: job.key.to_string(),
                        body: body.clone(),
                        checksum,
                        condition: condition.clone(),
                        headers: (*job.headers).clone(),
                        write_id: Some(write_id.clone()),
                    };
                    self.request("PutObject", true, len, self.remote().put(request))
                        .await
                }
                None => {
                    let condition = condition.clone();
                    match parts::upload(self, job, &source, checksum, condition, &write_id).await {
                        Ok(info) => Ok(info),
                        Err(Failed::Request(error)) => Err(error),
                        Err(Failed::Local(verdict)) => return Ok(verdict),
                    }
                }
            };
            crate::crash_point::crash_point("attempt.sent");
            job.in_flight = None;
            let error = match result {
                Ok(info)
                    if ours.same_bytes(&ObjectInfo {
                        size: len,
                        ..info.clone()
                    }) =>
                {
                    return Ok(self.uploaded(job, info));
                }
                Ok(info) => {
                    // The server says yes, and holds something else: not what we call a success.
                    let found = format!("the server's checksum is {:?}", info.checksum);
                    RemoteError::lost("PutObject").with_message(&found)
                }
                Err(error) => error,
            };
            if react::may_make_the_object(&error) {
                self.gave_up(job, basis.clone(), expires);
                job.sent_before = true;
            }
            let next = match react::failed(&error, job.failures) {
                Next::Look => {
                    let found = self.head(&job.key).await?;
                    react::put_conflict(
                        &ours,
                        found.as_ref(),
                        job.policy,
                        job.condition.as_ref(),
                        job.sent_before,
                        &self.journal_prefix(),
                    )
                }
                next => next,
            };
            match next {
                Next::Rebase(found) => {
                    self.keys.saw(&job.key, found.clone());
                    basis = Some(found);
                }
                Next::End(Settlement::Uploaded(info)) => return Ok(self.uploaded(job, info)),
                Next::End(settlement) => return Ok(Verdict::End(settlement)),
                Next::Quarantine(cause) => return Ok(Verdict::Quarantine(cause)),
                Next::Again | Next::Look => {
                    self.keys.forget(&job.key);
                    return Err(error);
                }
            }
        }
        Err(RemoteError::transient("PutObject")
            .with_message("the key changes faster than it can be written"))
    }

    async fn delete(&self, job: &mut TaskJob) -> Result<Verdict, RemoteError> {
        let deleted = || Verdict::End(Settlement::Deleted);
        if job.policy == KeyPolicy::Rewritable && !self.conditions().await? {
            self.queue.refuse_rewritable();
            return Ok(Verdict::Quarantine(Cause::ConditionsUnsupported));
        }
        let mut state = match &job.condition {
            Some(Condition::IfMatch(etag)) => KeyState::Object {
                etag: etag.clone(),
                size: None,
                checksum: None,
            },
            _ => match (self.keys.seen(&job.key), job.policy) {
                // As a PUT: what somebody else wrote meanwhile is not ours to delete.
                (Some(seen @ KeyState::Object { .. }), KeyPolicy::Rewritable) => seen,
                (seen, _) => match self.head(&job.key).await? {
                    None => KeyState::Absent,
                    Some(found) if seen.is_some() && !self.is_from_here(&found) => {
                        let found = Some(found.etag);
                        return Ok(Verdict::Quarantine(Cause::ForeignWrite { found }));
                    }
                    Some(found) => react::state_of(&found),
                },
            },
        };
        for _ in 0..MAX_REBASES {
            // Also where there is nothing to delete: a write that needs the key absent may land.
            if let Some(until) = self.hazard(job, Makes::Absent) {
                return Ok(Verdict::Wait(until));
            }
            let KeyState::Object { etag, .. } = &state else {
                self.keys.saw(&job.key, KeyState::Absent);
                return Ok(deleted());
            };
            let expires = self.note_started(job, Some(&state)).await?;
            let request = self.remote().delete(&job.key, Some(etag.clone()));
            let result = self.request("DeleteObject", true, 0, request).await;
            job.in_flight = None;
            let error = match result {
                Ok(()) => {
                    self.keys.saw(&job.key, KeyState::Absent);
                    return Ok(deleted());
                }
                Err(error) => error,
            };
            if error.effect == Effect::Unknown {
                self.gave_up(job, Some(state.clone()), expires);
                job.sent_before = true;
            }
            let next = match react::failed(&error, job.failures) {
                Next::Look => {
                    let found = self.head(&job.key).await?;
                    react::delete_conflict(
                        found.as_ref(),
                        job.condition.as_ref(),
                        job.sent_before,
                        &self.journal_prefix(),
                    )
                }
                next => next,
            };
            match next {
                Next::Rebase(found) => state = found,
                Next::End(settlement) => return Ok(Verdict::End(settlement)),
                Next::Quarantine(cause) => return Ok(Verdict::Quarantine(cause)),
                Next::Again | Next::Look => return Err(error),
            }
        }
        Err(RemoteError::transient("DeleteObject")
            .with_message("the key changes faster than it can be deleted"))
    }

    pub(super) async fn abort(&self, abort: &Abort) -> Result<(), RemoteError> {
        let ids = match &abort.upload_id {
            Some(id) => vec![id.clone()],
            None => {
                let request = self.remote().list_multipart(&abort.key);
                let listed = self
                    .request("ListMultipartUploads", false, 0, request)
                    .await?;
                listed.into_iter().map(|upload| upload.upload_id).collect()
            }
        };
        for id in ids {
            let request = self.remote().abort_multipart(&abort.key, &id);
            self.request("AbortMultipartUpload", false, 0, request)
                .await?;
        }
        Ok(())
    }

    /// Uploads an image. Its key has this content and no other: no condition is needed.
    pub(super) async fn put_image(&self, image: &mut Image) -> Result<(), RemoteError> {
        let len = image.body.len() as u64;
        let info = if len >= self.config().multipart_threshold {
            parts::upload_image(self, image).await?
        } else {
            let request = PutRequest {
                key: image.key.to_string(),
                body: image.body.clone(),
                checksum: image.checksum,
                condition: None,
                headers: ObjectHeaders::default(),
                write_id: None,
            };
            self.request("PutObject", true, len, self.remote().put(request))
                .await?
        };
        match info.checksum {
            Some(found) if found != image.checksum => {
                let found = format!("the server's checksum is {found:?}");
                Err(RemoteError::lost("PutObject").with_message(&found))
            }
            _ => Ok(()),
        }
    }

    /// Aborts what was begun of an image that is not wanted any more; where that fails, who looks
    /// for garbage finds it.
    pub(super) async fn give_up_image(&self, image: &mut Image) {
        let Some(state) = image.multipart.take() else {
            return;
        };
        for upload_id in state.into_aborts() {
            let abort = self.remote().abort_multipart(&image.key, &upload_id);
            if let Err(error) = self.request("AbortMultipartUpload", true, 0, abort).await {
                tracing::debug!(key = %image.key, %error, "left for who looks for garbage");
            }
        }
    }

    pub(super) async fn load(&self, load: &Load) -> Loaded {
        let deadline = match load.range {
            Some((_, len)) => self.deadline(Way::Read, len),
            // Nobody knows how large it is: however fast the link is, it has the most time.
            None => attempt_deadline(
                self.config().multipart_threshold,
                self.config().min_rate_bytes,
                self.config().attempt_floor,
            ),
        };
        let request = GetRequest {
            key: load.key.to_string(),
            range: load.range,
        };
        let got = self
            .request_within("GetObject", false, deadline, self.remote().get(request))
            .await?;
        Ok(got.map(|got| (got.body, got.info.size)))
    }
}

/// Whether it was refused for want of a right, as far as it is said at all: HEAD has no body.
fn is_about_access(error: &RemoteError) -> bool {
    matches!(error.code.as_deref(), None | Some("AccessDenied"))
}

pub(super) fn write_condition(state: &KeyState) -> WriteCondition {
    match state {
        KeyState::Absent => WriteCondition::IfAbsent,
        KeyState::Object { etag, .. } => WriteCondition::IfMatch(etag.clone()),
    }
}

/// No capabilities are known yet: the probe is made again.
fn unprobed(error: ProbeError) -> RemoteError {
    match error {
        ProbeError::Failed(error) => error,
        ProbeError::Deadline {
            last: Some(error), ..
        } => error,
        other => RemoteError::transient("probe").with_message(&other.to_string()),
    }
}

/// Shutdown did not wait for the answer.
pub(crate) fn cut_off(operation: &str) -> RemoteError {
    RemoteError::lost(operation).with_message("cut off by shutdown")
}
