//! What the server saw.
//!
//! Owns: the counters, the bounded log of requests, and waiting for them to say something.
//!
//! Invariants:
//! 1. `in_flight` returns to zero on every way a request can end.
//! 2. The log and the map of keys are bounded; what does not fit is counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::operation::{Operation, Target};

/// How many requests the log keeps.
pub const MAX_LOG: usize = 1024;
/// How many keys have a count of their own.
pub const MAX_KEYS: usize = 100_000;

/// One request, as logged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenRequest {
    /// From 1, in the order of arrival.
    pub number: u64,
    /// What it was.
    pub operation: Operation,
    /// The bucket, where it names one.
    pub bucket: Option<String>,
    /// The key, where it names one.
    pub key: Option<String>,
    /// Its `If-Match`.
    pub if_match: Option<String>,
    /// Its `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Its `x-amz-meta-write-id`.
    pub write_id: Option<String>,
    /// Bytes of its body, as they came over the wire.
    pub body_bytes: u64,
    /// Whether it took effect.
    pub effect: bool,
    /// The status it was answered with; `None` while it is not answered, or for ever.
    pub status: Option<u16>,
    /// Whether it has ended, with or without an answer.
    pub ended: bool,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Requests that arrived.
    pub requests: BTreeMap<Operation, u64>,
    /// Requests that were executed with success, answered or not.
    pub effects: BTreeMap<Operation, u64>,
    /// Bytes of request bodies.
    pub bytes_received: u64,
    /// Requests whose client still waits.
    pub in_flight: u64,
    /// The most of them at one time.
    pub max_in_flight: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests that a fault keeps waiting now.
    pub hung: u64,
    /// Late requests that wait for their gate now.
    pub late_held: u64,
    /// Late requests that were executed in the end, with success or not.
    pub late_landed: u64,
    /// Late requests that were thrown away.
    pub late_discarded: u64,
    /// Requests that a fault was applied to.
    pub faults: u64,
    /// PUTs (PutObject requests that arrived) by `bucket/key`, for the first [`MAX_KEYS`] keys.
    pub puts: BTreeMap<String, u64>,
    /// PUTs of keys beyond that.
    pub puts_untracked: u64,
    /// The last [`MAX_LOG`] requests, oldest first.
    pub log: VecDeque<SeenRequest>,
    next_number: u64,
}

impl Counters {
    /// Requests of one operation that arrived.
    #[must_use]
    pub fn requests(&self, operation: Operation) -> u64 {
        self.requests.get(&operation).copied().unwrap_or(0)
    }

    /// Requests of one operation that were executed with success.
    #[must_use]
    pub fn effects(&self, operation: Operation) -> u64 {
        self.effects.get(&operation).copied().unwrap_or(0)
    }

    /// Requests of all operations that arrived.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// PUTs of one key that arrived.
    #[must_use]
    pub fn puts(&self, bucket: &str, key: &str) -> u64 {
        self.puts
            .get(&format!("{bucket}/{key}"))
            .copied()
            .unwrap_or(0)
    }

    fn entry(&mut self, number: u64) -> Option<&mut SeenRequest> {
        let first = self.log.front()?.number;
        self.log
            .get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}

/// Why waiting for the counters ended without what was waited for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed. The counters as they were then.
    #[error("the server did not come to that within the deadline: {0:?}")]
    Deadline(Box<Counters>),
    /// The server stopped. The counters as they were then.
    #[error("the server stopped: {0:?}")]
    Stopped(Box<Counters>),
}

/// The headers of a request that are logged.
#[derive(Debug, Default)]
pub(super) struct LoggedHeaders {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub write_id: Option<String>,
}

/// Where the server counts.
#[derive(Debug)]
pub(super) struct Recorder {
    counters: Mutex<Counters>,
    version: watch::Sender<u64>,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counters: Mutex::new(Counters::default()),
            version: watch::Sender::new(0),
        })
    }

    pub fn snapshot(&self) -> Counters {
        self.counters.lock().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub fn check(&self, mut test: impl FnMut(&Counters) -> bool) -> bool {
        test(&self.counters.lock())
    }

    pub fn update(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.lock());
        self.version.send_modify(|v| *v = v.wrapping_add(1));
    }

    /// Counts a request in; the guard counts it out.
    pub fn begin(self: &Arc<Self>, target: &Target, headers: LoggedHeaders) -> InFlight {
        let mut number = 0;
        self.update(|c| {
            c.next_number += 1;
            number = c.next_number;
            *c.requests.entry(target.operation).or_default() += 1;
            c.in_flight += 1;
            c.max_in_flight = c.max_in_flight.max(c.in_flight);
            if target.operation == Operation::PutObject
                && let (Some(bucket), Some(key)) = (&target.bucket, &target.key)
            {
                let name = format!("{bucket}/{key}");
                if c.puts.len() < MAX_KEYS || c.puts.contains_key(&name) {
                    *c.puts.entry(name).or_default() += 1;
                } else {
                    c.puts_untracked += 1;
                }
            }
            if c.log.len() >= MAX_LOG {
                c.log.pop_front();
            }
            c.log.push_back(SeenRequest {
                number,
                operation: target.operation,
                bucket: target.bucket.clone(),
                key: target.key.clone(),
                if_match: headers.if_match,
                if_none_match: headers.if_none_match,
                write_id: headers.write_id,
                body_bytes: 0,
                effect: false,
                status: None,
                ended: false,
            });
        });
        InFlight {
            recorder: Arc::clone(self),
            number,
            operation: target.operation,
        }
    }
}

/// A request that its client waits for.
#[derive(Debug)]
pub(super) struct InFlight {
    recorder: Arc<Recorder>,
    number: u64,
    operation: Operation,
}

impl InFlight {
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What may outlive this guard: the request, once its client has gone.
    pub fn effect_recorder(&self) -> EffectRecorder {
        EffectRecorder {
            recorder: Arc::clone(&self.recorder),
            number: self.number,
            operation: self.operation,
        }
    }

    pub fn received(&self, bytes: u64) {
        let number = self.number;
        self.recorder.update(|c| {
            c.bytes_received += bytes;
            if let Some(entry) = c.entry(number) {
                entry.body_bytes += bytes;
            }
        });
    }

    pub fn answered(&self, status: u16) {
        let number = self.number;
        self.recorder.update(|c| {
            if let Some(entry) = c.entry(number) {
                entry.status = Some(status);
            }
        });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let number = self.number;
        self.recorder.update(|c| {
            c.in_flight = c.in_flight.saturating_sub(1);
            if let Some(entry) = c.entry(number) {
                entry.ended = true;
            }
        });
    }
}

/// Counts the effect of one request.
#[derive(Debug, Clone)]
pub(super) struct EffectRecorder {
    recorder: Arc<Recorder>,
    number: u64,
    operation: Operation,
}

impl EffectRecorder {
    pub fn applied(&self) {
        let Self {
            recorder,
            number,
            operation,
        } = self;
        recorder.update(|c| {
            *c.effects.entry(*operation).or_default() += 1;
            if let Some(entry) = c.entry(*number) {
                entry.effect = true;
            }
        });
    }
}

/// Moves a gauge up, and down again when dropped.
pub(super) struct Gauge {
    recorder: Arc<Recorder>,
    field: fn(&mut Counters) -> &mut u64,
}

impl Gauge {
    pub fn raise(recorder: &Arc<Recorder>, field: fn(&mut Counters) -> &mut u64) -> Self {
        recorder.update(|c| *field(c) += 1);
        Self {
            recorder: Arc::clone(recorder),
            field,
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        let field = self.field;
        self.recorder.update(|c| {
            let value = field(c);
            *value = value.saturating_sub(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Target {
        Target {
            operation: Operation::PutObject,
            bucket: Some("b".into()),
            key: Some(key.into()),
        }
    }

    #[test]
    fn gauges_return_to_zero_and_the_log_is_bounded() {
        let recorder = Recorder::new();
        let first = recorder.begin(&put("k"), LoggedHeaders::default());
        for _ in 0..MAX_LOG + 10 {
            let request = recorder.begin(&put("k"), LoggedHeaders::default());
            request.answered(200);
        }
        // The first has left the log; ending it must not touch another's entry.
        first.answered(500);
        drop(first);
        let counters = recorder.snapshot();
        assert_eq!(counters.in_flight, 0);
        assert_eq!(counters.max_in_flight, 2);
        assert_eq!(counters.log.len(), MAX_LOG);
        assert!(
            counters
                .log
                .iter()
                .all(|r| r.status == Some(200) && r.ended)
        );
        assert_eq!(counters.puts("b", "k"), 1 + (MAX_LOG as u64) + 10);
    }
}
