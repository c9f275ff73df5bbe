//! An S3 server in this process, on loopback.
//!
//! Owns: [`S3Server`], its thread, its listener. The protocol (routes, XML, signatures) is the
//! `s3s` crate's; the storage is ours, because what matters here is what happens
//! when two writers race, when bytes are damaged, and when the connection goes.
//!
//! Does not own: TLS, versions, access policies, copies, tags; those answer `NotImplemented`.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use std::time::Duration;
//! use s3_writeback::testing::{FaultRule, Operation, S3Server};
//!
//! let server = S3Server::builder().credentials("key", "secret").bucket("b").start().await?;
//! println!("{}", server.endpoint());
//! server.faults().add(FaultRule::slow_down().on(Operation::PutObject).times(3));
//! // ... a client works ...
//! server.wait_for(|c| c.effects(Operation::PutObject) == 1, Duration::from_secs(10)).await.ok();
//! server.faults().hang_all();
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! 1. A write happens whole or not at all, and its conditions are true at the instant it does.
//! 2. A refused write changes nothing.
//! 3. The server runs on a thread of its own: a caller's runtime that blocks, or whose clock is
//!    paused, does not stall it.
//! 4. After [`S3Server::stop`] nothing of it runs, and every connection is closed.

mod body;
mod checksum;
mod conditions;
mod conn;
mod convert;
mod counters;
mod disk;
mod error;
mod faults;
mod front;
mod list;
mod multipart;
mod operation;
mod s3;
mod s3_multipart;
mod start;
mod store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use super::rules::MAX_RULES;
pub use counters::{Counters, MAX_KEYS, MAX_LOG, SeenRequest, WaitError};
pub use faults::{Action, FaultPlan, FaultRule, Gate, KeyMatch, RuleId, When};
pub use operation::Operation;
pub use start::S3ServerBuilder;

use conditions::WriteConditions;
use counters::Recorder;
use store::{Headers, NewBody, Store};

/// How long dropping a server waits for its thread.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// An object as the storage has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredObject {
    /// Its key.
    pub key: String,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// In bytes.
    pub size: u64,
    /// Its user metadata, without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    store: Arc<Store>,
    faults: FaultPlan,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    runtime: Handle,
    /// Turns true, or loses its sender, when nothing runs any more.
    stopped: watch::Receiver<bool>,
    /// Loses its sender when the server's own thread has ended.
    thread: Mutex<Option<mpsc::Receiver<()>>>,
}

impl S3Server {
    /// A server in memory, on a free port of 127.0.0.1, with the credentials `test` and
    /// `test-secret`, in `us-east-1`, without buckets, unless told otherwise.
    #[must_use]
    pub fn builder() -> S3ServerBuilder {
        S3ServerBuilder::new()
    }

    /// Its URL, for a client with path-style addressing.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// What it saw, as of now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.recorder.snapshot()
    }

    /// Waits until the counters say so; the counters then. The deadline is of real time, also
    /// where the caller's clock is paused. `test` looks at the counters it is given and must not
    /// ask [`S3Server::counters`]: it runs under their lock.
    ///
    /// # Errors
    /// [`WaitError`] where the deadline passes or the server stops first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for(
        &self,
        mut test: impl FnMut(&Counters) -> bool,
        deadline: Duration,
    ) -> Result<Counters, WaitError> {
        let mut changes = self.recorder.subscribe();
        let sleep = self
            .runtime
            .spawn(async move { tokio::time::sleep(deadline).await });
        let _stop_sleeping = AbortOnDrop(sleep.abort_handle());
        tokio::pin!(sleep);
        loop {
            changes.mark_unchanged();
            if self.recorder.check(&mut test) {
                return Ok(self.recorder.snapshot());
            }
            tokio::select! {
                // The recorder lives as long as this server: its sender is never lost.
                _ = changes.changed() => {}
                slept = &mut sleep => {
                    let counters = Box::new(self.recorder.snapshot());
                    return Err(match slept {
                        Ok(()) => WaitError::Deadline(counters),
                        Err(_) => WaitError::Stopped(counters),
                    });
                }
            }
        }
    }

    /// The objects of a bucket in byte order of their keys, without asking over HTTP. Empty
    /// where there is no such bucket.
    #[must_use]
    pub fn objects(&self, bucket: &str) -> Vec<StoredObject> {
        self.store
            .all(bucket)
            .into_iter()
            .map(|object| StoredObject {
                key: object.meta.key.clone(),
                etag: object.meta.etag.clone(),
                size: object.meta.size,
                metadata: object.meta.headers.metadata.clone(),
            })
            .collect()
    }

    /// The bytes of an object, without asking over HTTP. Blocks where they are in a file.
    #[must_use]
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let (object, mut content) = self.store.open(bucket, key).ok()?;
        content.read(0, object.meta.size).ok()
    }

    /// The unfinished multipart uploads of a bucket: keys and upload ids.
    #[must_use]
    pub fn uploads(&self, bucket: &str) -> Vec<(String, String)> {
        let uploads = self.store.uploads(bucket, "", None, usize::MAX);
        uploads
            .map(|(u, _)| u)
            .unwrap_or_default()
            .into_iter()
            .map(|u| (u.key, u.id))
            .collect()
    }

    /// Writes an object past HTTP, faults and counters: what somebody else would have done.
    /// Blocks where there is a directory.
    ///
    /// # Errors
    /// Where there is no such bucket, or the disk fails.
    pub fn insert(&self, bucket: &str, key: &str, body: Bytes) -> std::io::Result<()> {
        let new = NewBody {
            body,
            claims: checksum::Claims::default(),
        };
        self.store
            .put(
                bucket,
                key,
                Headers::default(),
                new,
                &WriteConditions::default(),
            )
            .map(drop)
            .map_err(std::io::Error::other)
    }

    /// Removes an object past HTTP, faults and counters. Blocks where there is a directory.
    ///
    /// # Errors
    /// Where there is no such bucket, or the disk fails.
    pub fn remove(&self, bucket: &str, key: &str) -> std::io::Result<()> {
        self.store
            .delete(bucket, key, None)
            .map_err(std::io::Error::other)
    }

    /// Closes the listener and all connections, drops held requests, waits for the rest.
    /// Bounded by the server's own deadline (a few seconds). May be called more than once.
    ///
    /// # Cancel safety
    /// Cancel safe: the server stops all the same.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut stopped = self.stopped.clone();
        // An error says that the sender is gone, and the server with it.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.lock().take() {
            // Whoever drops a server may open its directory again at once.
            let _ = thread.recv_timeout(DROP_DEADLINE);
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
