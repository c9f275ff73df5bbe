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

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use tokio::sync::Notify;

    use crate::testing::remote::{Call, Fault, SimRemote};

    use super::*;

    const KEY: &str = "k";

    fn requests(remote: &SimRemote) -> Requests {
        Requests {
            remote: Arc::new(remote.clone()),
            retry_base: Duration::from_secs(1),
            retry_cap: Duration::from_secs(1),
            random: Random::new(Some(7)),
            stop: CancellationToken::new(),
        }
    }

    /// No two pieces are alike.
    fn bytes(len: u64, seed: u64) -> Bytes {
        (0..len).map(|at| (at / 251 + at + seed) as u8).collect()
    }

    async fn whole(remote: &SimRemote) -> Option<Bytes> {
        let until = Instant::now() + Duration::from_secs(60);
        requests(remote).whole(KEY, until).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_comes_whole_in_as_many_pieces_as_it_takes() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let remote = SimRemote::new();
            assert_eq!(whole(&remote).await, None);
            remote.plant(KEY, bytes(len, 0));
            let before = remote.count(Call::Get, KEY);
            assert!(whole(&remote).await == Some(bytes(len, 0)), "{len}");
            let asked = (remote.count(Call::Get, KEY) - before) as u64;
            assert_eq!(asked, len.div_ceil(PIECE).max(1), "{len}");
        }
    }

    /// S3 has no range of what has no bytes.
    #[tokio::test(start_paused = true)]
    async fn an_object_without_bytes_comes_though_its_range_is_refused() {
        let remote = SimRemote::new();
        remote.plant(KEY, Bytes::new());
        let refusal = RemoteError::permanent("GetObject", 416, "InvalidRange");
        remote.once(Some(Call::Get), Some(KEY), Fault::Error(refusal));
        assert_eq!(whole(&remote).await, Some(Bytes::new()));
    }

    /// Another one, shorter or longer, or none.
    #[tokio::test(start_paused = true)]
    async fn an_object_that_changes_between_its_pieces_is_of_one_kind() {
        for later in [None, Some(7), Some(2 * PIECE), Some(3 * PIECE + 7)] {
            let remote = SimRemote::new();
            remote.plant(KEY, bytes(2 * PIECE, 0));
            let gate = Arc::new(Notify::new());
            let at_once = Fault::Delay(Duration::ZERO);
            remote.once(Some(Call::Get), Some(KEY), at_once);
            remote.once(Some(Call::Get), Some(KEY), Fault::Gate(Arc::clone(&gate)));
            let changes = async {
                remote
                    .wait_for(|remote| remote.count(Call::Get, KEY) == 2)
                    .await;
                match later {
                    None => remote.remove(KEY),
                    Some(len) => remote.plant(KEY, bytes(len, 1)),
                }
                gate.notify_one();
            };
            let both = async { tokio::join!(whole(&remote), changes) };
            let (got, ()) = tokio::time::timeout(Duration::from_secs(60), both)
                .await
                .unwrap();
            assert!(got == later.map(|len| bytes(len, 1)), "{later:?}");
        }
    }
}
