//! Requests of this layer: tried again until they are answered, or it is over.
//!
//! Owns: how often and how long. Does not own: what an answer means. Everything that is written by
//! way of here has one content for ever, or a condition: sending it again does no harm.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::remote::{
    Crc64, ETag, GetRequest, GetResponse, ObjectHeaders, ObjectInfo, PutRequest, Remote,
    RemoteError, RemoteFuture, WriteCondition,
};
use crate::worker::retry;

/// Bytes that one request asks for: at the slowest link that is waited for, a few seconds.
const PIECE: u64 = 256 * 1024;

/// A remote, and how it is asked.
#[derive(Clone)]
pub(crate) struct Requests {
    pub remote: Arc<dyn Remote>,
    pub retry_base: Duration,
    pub retry_cap: Duration,
    pub random: Random,
    /// Nothing more is asked.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Requests({})", self.remote.describe())
    }
}

impl Requests {
    /// Asks until there is an answer that another try would not change, at most until `until`.
    pub(crate) async fn ask<'a, T>(
        &'a self,
        until: Instant,
        mut make: impl FnMut(&'a dyn Remote) -> RemoteFuture<'a, T>,
    ) -> Result<T, RemoteError> {
        let mut failures = 0;
        let mut last = None;
        loop {
            let answer = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(stopped(last)),
                answer = make(&*self.remote) => answer,
                () = tokio::time::sleep_until(until) => {
                    return Err(last.unwrap_or_else(|| RemoteError::timed_out("request")));
                }
            };
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if !error.class.is_retryable() => return Err(error),
                Err(error) => error,
            };
            failures += 1;
            self.pause(failures, &error, until).await;
            if Instant::now() >= until {
                return Err(error);
            }
            last = Some(error);
        }
    }

    /// Waits before the next try.
    pub(crate) async fn pause(&self, failures: u32, error: &RemoteError, until: Instant) {
        let ceiling = retry::ceiling(failures, self.retry_base, self.retry_cap);
        let wait = retry::wait(
            self.random.up_to(ceiling),
            error.retry_after,
            self.retry_cap,
        );
        let wake = (Instant::now() + wait).min(until);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(wake) => (),
            () = self.stop.cancelled() => (),
        }
    }

    /// A range of an object: first byte, and how many.
    pub(crate) async fn get(
        &self,
        key: &str,
        range: (u64, u64),
        until: Instant,
    ) -> Result<Option<GetResponse>, RemoteError> {
        self.ask(until, |remote| {
            remote.get(GetRequest {
                key: key.to_owned(),
                range: Some(range),
            })
        })
        .await
    }

    /// All of an object, a piece at a time: a request's deadline, and with it how long one that
    /// hangs keeps a slot from everybody else, goes by what it asks for.
    pub(crate) async fn whole(
        &self,
        key: &str,
        until: Instant,
    ) -> Result<Option<Bytes>, RemoteError> {
        let mut so_far: Option<(ETag, BytesMut)> = None;
        loop {
            let from = so_far.as_ref().map_or(0, |(_, body)| body.len() as u64);
            let got = match self.get(key, (from, PIECE), until).await {
                // There is no range of an object without bytes.
                Err(error) if error.has_code("InvalidRange") && from == 0 => {
                    return Ok(Some(Bytes::new()));
                }
                got => got?,
            };
            let Some(got) = got else { return Ok(None) };
            let (etag, mut body) = so_far
                .take()
                .unwrap_or_else(|| (got.info.etag.clone(), BytesMut::new()));
            if etag != got.info.etag {
                // It became another one in between: from its beginning.
                continue;
            }
            body.extend_from_slice(&got.body);
            if got.body.is_empty() || body.len() as u64 >= got.info.size {
                return Ok(Some(body.freeze()));
            }
            so_far = Some((etag, body));
        }
    }

    /// Puts an object under a key that has one content for ever.
    pub(crate) async fn put(
        &self,
        key: &str,
        body: &Bytes,
        until: Instant,
    ) -> Result<ObjectInfo, RemoteError> {
        self.ask(until, |remote| remote.put(request(key, body, None, None)))
            .await
    }

    pub(crate) async fn delete(&self, key: &str, until: Instant) -> Result<(), RemoteError> {
        self.ask(until, |remote| remote.delete(key, None)).await
    }

    /// What starts with `prefix`, page by page.
    pub(crate) fn list<'a>(&'a self, prefix: &'a str, until: Instant) -> Listing<'a> {
        Listing {
            requests: self,
            prefix,
            until,
            from: Some(None),
        }
    }
}

/// A listing, as far as it was read.
pub(crate) struct Listing<'a> {
    requests: &'a Requests,
    prefix: &'a str,
    until: Instant,
    /// Where the next page starts; `None` behind the last.
    from: Option<Option<String>>,
}

impl Listing<'_> {
    /// The objects of the next page, if there is one.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<(String, ObjectInfo)>>, RemoteError> {
        let Some(from) = &self.from else {
            return Ok(None);
        };
        let page = self
            .requests
            .ask(self.until, |remote| remote.list(self.prefix, from.clone()));
        let page = page.await?;
        self.from = page.next.map(Some);
        Ok(Some(page.objects))
    }
}

/// A PUT.
pub(crate) fn request(
    key: &str,
    body: &Bytes,
    condition: Option<WriteCondition>,
    write_id: Option<u128>,
) -> PutRequest {
    PutRequest {
        key: key.to_owned(),
        body: body.clone(),
        checksum: Crc64::of(body),
        condition,
        headers: ObjectHeaders::default(),
        write_id: write_id.map(|id| format!("{id:032x}")),
    }
}

fn stopped(last: Option<RemoteError>) -> RemoteError {
    last.unwrap_or_else(|| RemoteError::transient("request").with_message("shut down"))
}
