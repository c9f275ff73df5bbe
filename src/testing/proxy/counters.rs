//! What the proxy saw.
//!
//! Invariants:
//! 1. `open` returns to zero on every way a connection can end.
//! 2. The log is bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::WireFault;

/// How many exchanges the log keeps.
const MAX_LOG: usize = 1024;

/// One exchange, as logged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenExchange {
    /// The HTTP method.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// When its head had come, since the proxy's start.
    pub at: Duration,
    /// Whether its connection had carried another before.
    pub is_reused: bool,
    /// What happened to it.
    pub fault: Option<WireFault>,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WireCounters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open.
    pub open: u64,
    /// TLS handshakes that the client broke off.
    pub failed_handshakes: u64,
    /// Requests whose head came.
    pub requests: u64,
    /// Exchanges that a rule was applied to.
    pub struck: u64,
    /// Answers of the server, whether they were passed on or not.
    pub answers: u64,
    /// Bytes of heads and bodies that were passed to the server.
    pub bytes_up: u64,
    /// The same to the client.
    pub bytes_down: u64,
    /// The last 1,024 exchanges, oldest first.
    pub log: VecDeque<SeenExchange>,
}

/// The deadline passed before the counters said what was waited for. The counters as they were.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the wire did not come to that within the deadline: {0:?}")]
pub struct WireWaitError(pub Box<WireCounters>);

/// Where the proxy counts.
#[derive(Debug)]
pub(super) struct Recorder {
    counters: Mutex<WireCounters>,
    version: watch::Sender<u64>,
    started: Instant,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counters: Mutex::default(),
            version: watch::Sender::new(0),
            started: Instant::now(),
        })
    }

    pub fn snapshot(&self) -> WireCounters {
        self.counters.lock().clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut WireCounters)) {
        change(&mut self.counters.lock());
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    pub fn exchange(&self, mut seen: SeenExchange) {
        seen.at = self.started.elapsed();
        self.update(|counters| {
            counters.requests += 1;
            counters.struck += u64::from(seen.fault.is_some());
            if counters.log.len() >= MAX_LOG {
                counters.log.pop_front();
            }
            counters.log.push_back(seen);
        });
    }

    pub async fn wait_for(
        &self,
        mut test: impl FnMut(&WireCounters) -> bool,
        deadline: Duration,
        runtime: &Handle,
    ) -> Result<WireCounters, WireWaitError> {
        let mut changes = self.version.subscribe();
        let sleep = runtime.spawn(async move { tokio::time::sleep(deadline).await });
        let _stop_sleeping = AbortOnDrop(sleep.abort_handle());
        tokio::pin!(sleep);
        loop {
            changes.mark_unchanged();
            if test(&self.counters.lock()) {
                return Ok(self.snapshot());
            }
            tokio::select! {
                biased;
                // The recorder lives as long as its proxy: its sender is never lost.
                _ = changes.changed() => {}
                _ = &mut sleep => return Err(WireWaitError(Box::new(self.snapshot()))),
            }
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection that is open.
pub(super) struct Open<'r>(&'r Recorder);

impl<'r> Open<'r> {
    pub fn new(recorder: &'r Recorder) -> Self {
        recorder.update(|counters| {
            counters.connections += 1;
            counters.open += 1;
        });
        Self(recorder)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0
            .update(|counters| counters.open = counters.open.saturating_sub(1));
    }
}
