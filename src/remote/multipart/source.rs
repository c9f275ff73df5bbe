//! Where the bytes of an upload in parts come from, and where its id is written down.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;

/// The bytes of an object, read a part at a time, and again where a part is retried.
pub trait PartSource: Send + Sync {
    /// Reads exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// Any; the upload's attempt ends with it, its state kept.
    fn read(&self, offset: u64, length: u64) -> BoxFuture<'_, io::Result<Bytes>>;
}

impl PartSource for Bytes {
    fn read(&self, offset: u64, length: u64) -> BoxFuture<'_, io::Result<Bytes>> {
        let start = usize::try_from(offset).ok();
        let end = offset
            .checked_add(length)
            .and_then(|end| usize::try_from(end).ok());
        let range = start.zip(end).filter(|(_, end)| *end <= self.len());
        let result = match range {
            Some((start, end)) => Ok(self.slice(start..end)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        Box::pin(std::future::ready(result))
    }
}

/// Who must know of an upload before any part of it is sent, so that no crash leaves it behind.
pub trait UploadJournal: Send + Sync {
    /// Writes `upload_id` down; the first part goes when this is done.
    ///
    /// # Errors
    /// Any; the attempt ends with it, and the next one asks again before it sends a part.
    fn created<'a>(&'a self, upload_id: &'a str) -> BoxFuture<'a, io::Result<()>>;
}

/// Writes nothing down: for uploads that nobody would resume or clean up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unjournaled;

impl UploadJournal for Unjournaled {
    fn created<'a>(&'a self, _upload_id: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
