//! What an attempt reads here: the body of its task, and whether it is still what was submitted.
//!
//! Owns: the checks before a byte is sent, and what a body that cannot be read means. Does not own:
//! where bodies are (the queue).

use std::sync::Arc;

use bytes::Bytes;

use crate::queue::TaskJob;
use crate::queue::admission::Permit;
use crate::queue::body::Source;
use crate::queue::task::{Action, Borrowed, Cause};
use crate::remote::{Crc64, RemoteError};

use super::attempt::{Shared, Verdict};

impl Shared {
    /// Where the body is, once it is known to be what was submitted.
    pub(super) async fn open_body(&self, job: &mut TaskJob) -> Result<Source, Verdict> {
        if let Action::UploadBorrowed(borrowed) = job.action.clone() {
            self.check_borrowed(&borrowed).await?;
        }
        let source = self.queue.body(job).ok_or_else(|| {
            Verdict::Quarantine(Cause::LocalCorruption(
                "the journal has no such body".to_owned(),
            ))
        })?;
        if job.checksum.is_none() {
            let reading = source.clone();
            let read = self.queue.io.run(move || reading.checksum()).await;
            match read.and_then(|checksum| checksum) {
                Ok(checksum) => job.checksum = Some(checksum),
                Err(error) => return Err(unreadable(job, &source, &error)),
            }
            if let Action::UploadBorrowed(borrowed) = job.action.clone() {
                // Unchanged before and after: this is the checksum of what was submitted, and
                // what goes up later must have it.
                self.check_borrowed(&borrowed).await?;
            }
        }
        Ok(source)
    }

    /// Memory for what an attempt has of its body at one time, unless that is in memory already.
    pub(super) async fn room_to_read(
        &self,
        job: &TaskJob,
        len: u64,
        whole: bool,
    ) -> Result<Option<Permit>, Verdict> {
        if job.memory.is_some() {
            return Ok(None);
        }
        let config = self.queue.config();
        let part = config.part_bytes.max(len.div_ceil(10_000));
        let bytes = match whole {
            true => len,
            false => len.min(part.saturating_mul(config.part_concurrency as u64)),
        };
        tokio::select! {
            biased;
            // Who reads is never refused, and waits for others' attempts, which end.
            room = self.queue.room_to_read(bytes) => Ok(room.ok()),
            () = self.cut.cancelled() => Err(Verdict::Cut),
        }
    }

    pub(super) async fn read_whole(
        &self,
        job: &TaskJob,
        source: &Source,
    ) -> Result<Bytes, Verdict> {
        let len = usize::try_from(source.len()).unwrap_or(usize::MAX);
        let body = source
            .read(&self.queue.io, 0, len)
            .await
            .map_err(|error| unreadable(job, source, &error))?;
        if let Action::UploadBorrowed(borrowed) = &job.action {
            // Unchanged before and after it was read: these are the bytes that were submitted.
            self.check_borrowed(borrowed).await?;
        }
        if Some(Crc64::of(&body)) != job.checksum {
            let what = format!(
                "checksum {:?}, expected {:?}",
                Crc64::of(&body),
                job.checksum
            );
            return Err(Verdict::Quarantine(Cause::LocalCorruption(what)));
        }
        Ok(body)
    }

    pub(super) async fn check_borrowed(&self, borrowed: &Arc<Borrowed>) -> Result<(), Verdict> {
        let (fs, expected) = (Arc::clone(&self.queue.fs), Arc::clone(borrowed));
        let path = borrowed.path.clone();
        let stat = self
            .queue
            .io
            .run(move || fs.stat(expected.path.as_ref()))
            .await;
        match stat.and_then(|stat| stat) {
            Ok(stat) if Borrowed::new(path.clone(), &stat) == **borrowed => Ok(()),
            Ok(_) => Err(Verdict::Quarantine(Cause::SourceChanged(path))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Verdict::Quarantine(Cause::SourceMissing(path)))
            }
            Err(error) => Err(local_trouble(&error)),
        }
    }
}

/// The body could not be read: gone for good, or for now.
fn unreadable(job: &TaskJob, source: &Source, error: &std::io::Error) -> Verdict {
    use std::io::ErrorKind::{NotFound, UnexpectedEof};
    match (&job.action, error.kind()) {
        (Action::UploadBorrowed(borrowed), NotFound) => {
            Verdict::Quarantine(Cause::SourceMissing(borrowed.path.clone()))
        }
        (Action::UploadBorrowed(borrowed), UnexpectedEof) => {
            Verdict::Quarantine(Cause::SourceChanged(borrowed.path.clone()))
        }
        (_, NotFound) if source.path().is_some() => {
            let path = source.path().map(|path| path.display().to_string());
            Verdict::Quarantine(Cause::SourceMissing(path.unwrap_or_default()))
        }
        (_, NotFound | UnexpectedEof) => {
            Verdict::Quarantine(Cause::LocalCorruption(error.to_string()))
        }
        _ => local_trouble(error),
    }
}

/// The local disk may be well again later: nothing was sent.
fn local_trouble(error: &std::io::Error) -> Verdict {
    Verdict::Failed(RemoteError::transient("read of the body").with_message(&error.to_string()))
}
