//! One attempt at an upload in parts.
//!
//! Owns: how a task's body becomes parts, and what is on record before a part is sent. Does not
//! own: the order of requests ([`crate::remote::multipart`]).
//!
//! 1. "About to start an upload" is durable before one is asked for, and its id before its first
//!    part is sent: a crash at any point leaves something to find it by.
//! 2. The state stays with the job, so that the next attempt goes on where this one ended.

use std::io;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::Config;
use crate::queue::body::Source;
use crate::queue::gate::Way;
use crate::queue::image::Image;
use crate::queue::record::Multipart;
use crate::queue::task::{Action, Cause, TaskId};
use crate::queue::{Queue, TaskJob, Totals};
use crate::remote::multipart::{
    MultipartError, MultipartOptions, MultipartRequest, MultipartTransfer, MultipartUploadState,
    PartPlan, PartSource, UploadJournal,
};
use crate::remote::{Crc64, ObjectInfo, RemoteError, WriteCondition};

use super::attempt::{Shared, Verdict, cut_off};

/// Why an attempt ended.
pub(super) enum Failed {
    Request(RemoteError),
    /// Nothing that S3 could help with.
    Local(Verdict),
}

impl From<RemoteError> for Failed {
    fn from(error: RemoteError) -> Self {
        Self::Request(error)
    }
}

struct Body<'a> {
    source: &'a Source,
    queue: &'a Queue,
}

impl PartSource for Body<'_> {
    fn read(&self, offset: u64, length: u64) -> BoxFuture<'_, io::Result<Bytes>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.source.read(&self.queue.io, offset, length).boxed()
    }
}

struct OnRecord<'a> {
    queue: &'a Queue,
    task: TaskId,
}

impl OnRecord<'_> {
    async fn note(&self, upload_id: Option<String>) -> io::Result<()> {
        let note = Multipart { upload_id };
        match self.queue.note_multipart(self.task, Some(&note)) {
            // A journal that has failed keeps nothing; the upload is then aborted in this life.
            None => Ok(()),
            Some(location) => self
                .queue
                .journal
                .wait_durable(location)
                .await
                .map_err(io::Error::other),
        }
    }
}

impl UploadJournal for OnRecord<'_> {
    fn created<'a>(&'a self, upload_id: &'a str) -> BoxFuture<'a, io::Result<()>> {
        self.note(Some(upload_id.to_owned())).boxed()
    }
}

/// The bytes of an image.
struct InMemory(Bytes);

impl PartSource for InMemory {
    fn read(&self, offset: u64, length: u64) -> BoxFuture<'_, io::Result<Bytes>> {
        let range = usize::try_from(offset).ok().and_then(|from| {
            let to = from.checked_add(usize::try_from(length).ok()?)?;
            (to <= self.0.len()).then_some(from..to)
        });
        let bytes = range.map(|range| self.0.slice(range));
        let bytes = bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        std::future::ready(bytes).boxed()
    }
}

/// What is begun of an image is found by its key: nothing is put on record.
struct Unrecorded;

impl UploadJournal for Unrecorded {
    fn created<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<()>> {
        std::future::ready(Ok(())).boxed()
    }
}

/// One attempt at an image that is so large that it goes up in parts, several at a time.
pub(super) async fn upload_image(
    shared: &Shared,
    image: &mut Image,
) -> Result<ObjectInfo, RemoteError> {
    let config = shared.queue.config();
    let plan = plan_of(config, image.body.len() as u64)?;
    let request = MultipartRequest {
        key: image.key.to_string(),
        checksum: Some(image.checksum),
        condition: None,
        headers: crate::remote::ObjectHeaders::default(),
        // One content for ever: the key says whose it is.
        write_id: Some(image.key.to_string()),
        sent_before: image.failures > 0,
    };
    let transfer = MultipartTransfer {
        remote: shared.remote(),
        request: &request,
        source: &InMemory(image.body.clone()),
        journal: &Unrecorded,
        options: options_of(shared),
    };
    let fresh = || MultipartUploadState::new(plan);
    let state = image.multipart.get_or_insert_with(fresh);
    let before = state.parts_done();
    let result = tokio::select! {
        biased;
        result = transfer.attempt(state) => result,
        () = shared.cut.cancelled() => return Err(cut_off("CompleteMultipartUpload")),
    };
    let sent = state.parts_done().saturating_sub(before) as u64 + 1;
    Totals::add(&shared.queue.totals.requests, sent);
    match result {
        Ok(info) => {
            image.multipart = None;
            Ok(info)
        }
        Err(MultipartError::Remote(error)) => Err(error),
        Err(error) => Err(too_large(&error)),
    }
}

fn plan_of(config: &Config, len: u64) -> Result<PartPlan, RemoteError> {
    PartPlan::for_size(len, config.part_bytes).map_err(|error| too_large(&error))
}

fn too_large(error: &dyn std::fmt::Display) -> RemoteError {
    RemoteError::permanent("CreateMultipartUpload", 400, "EntityTooLarge")
        .with_message(&error.to_string())
}

fn options_of(shared: &Shared) -> MultipartOptions {
    let config = shared.queue.config();
    MultipartOptions {
        concurrency: shared.traffic.at_once(config.part_concurrency),
        min_rate: shared.traffic.slowest_rate(Way::Write),
        floor: config.attempt_floor,
        ..MultipartOptions::default()
    }
}

/// One attempt at a task's body in parts; what is begun is on record.
pub(super) async fn upload(
    shared: &Shared,
    job: &mut TaskJob,
    source: &Source,
    checksum: Crc64,
    condition: Option<WriteCondition>,
    write_id: &str,
) -> Result<ObjectInfo, Failed> {
    let config = shared.queue.config();
    let plan = plan_of(config, job.len)?;
    let request = MultipartRequest {
        key: job.key.to_string(),
        checksum: Some(checksum),
        condition,
        headers: (*job.headers).clone(),
        write_id: Some(write_id.to_owned()),
        sent_before: job.sent_before,
    };
    let journal = OnRecord {
        queue: &shared.queue,
        task: job.id,
    };
    let body = Body {
        source,
        queue: &shared.queue,
    };
    let transfer = MultipartTransfer {
        remote: shared.remote(),
        request: &request,
        source: &body,
        journal: &journal,
        options: options_of(shared),
    };
    let state = job
        .multipart
        .get_or_insert_with(|| MultipartUploadState::new(plan));
    let before = state.parts_done();
    let attempt = async {
        if state.upload_id().is_none() {
            journal.note(None).await.map_err(MultipartError::Journal)?;
        }
        transfer.attempt(state).await
    };
    let result = tokio::select! {
        biased;
        result = attempt => result,
        () = shared.cut.cancelled() => return Err(cut_off("CompleteMultipartUpload").into()),
    };
    let sent = job
        .multipart
        .as_ref()
        .map_or(0, MultipartUploadState::parts_done);
    Totals::add(
        &shared.queue.totals.requests,
        sent.saturating_sub(before) as u64 + 1,
    );
    let error = match result {
        Ok(info) => {
            // What was given up on the way is still to be aborted.
            job.multipart
                .iter_mut()
                .for_each(MultipartUploadState::finished);
            return Ok(info);
        }
        Err(error) => error,
    };
    let open = |error: &RemoteError| super::react::may_make_the_object(error);
    if let MultipartError::Remote(error) = &error
        && open(error)
    {
        // It may still make the object: that comes first. The next attempt looks at the file.
        return Err(Failed::Request(error.clone()));
    }
    if let Action::UploadBorrowed(borrowed) = job.action.clone() {
        shared
            .check_borrowed(&borrowed)
            .await
            .map_err(Failed::Local)?;
    }
    Err(match error {
        MultipartError::Remote(error) => Failed::Request(error),
        MultipartError::SourceChanged { .. } | MultipartError::Invalid(_) => Failed::Local(
            Verdict::Quarantine(Cause::LocalCorruption(error.to_string())),
        ),
        error => Failed::Request(
            RemoteError::transient("read of the body").with_message(&error.to_string()),
        ),
    })
}
