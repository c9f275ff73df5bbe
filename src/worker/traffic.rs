//! How much is sent, and whether anything is: what workers may take, and what answers change in it.
//!
//! Owns: the window, the breaker, the budget for retries, the operator's limits and the measured
//! link, under one lock, and that each answer is heard by all of them. Does not own: any of their
//! rules, or what becomes of the task that an answer is for.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::queue::gate::{Gate, May, Pass, Way};
use crate::queue::table::Slot;
use crate::remote::around::{Around, Made};
use crate::remote::{Class, Remote, RemoteError, RemoteFuture};
use crate::sync::Mutex;
use crate::time::millis;

use super::breaker::{About, Breaker, Change, FORBIDDEN, FULL, Says, about};
use super::budget::Budget;
use super::link::Link;
use super::pace::Pace;
use super::window::Window;

/// Failures that are expected are told so often, with how many they were.
const TELLS_EVERY: Duration = Duration::from_secs(30);

/// Why nothing is sent one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// S3's code, or what else was wrong.
    pub reason: String,
    /// For how long it has been so, in milliseconds.
    pub for_ms: u64,
    /// In how many milliseconds the next probe goes; 0: it is on its way.
    pub probe_in_ms: u64,
}

/// How much is sent to S3, and why not more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrafficSnapshot {
    /// Requests that may be in flight, besides the reserved ones.
    pub window: usize,
    /// The most that this can be: `workers`.
    pub window_max: usize,
    /// How many are.
    pub in_flight: usize,
    /// How often S3 asked for less and the window was halved.
    pub window_cuts: u64,
    /// Answers that asked for less.
    pub throttled: u64,
    /// How long ago the last of them came, in milliseconds.
    pub throttled_ago_ms: Option<u64>,
    /// Retries that may be made at once.
    pub retry_tokens: u32,
    /// Why nothing is read.
    pub reads_parked: Option<Parked>,
    /// Why nothing is written: tasks stay in line, and no attempt of theirs is counted.
    pub writes_parked: Option<Parked>,
    /// Why nothing is removed, but for what stands in line as a task: garbage stays, and uploads in
    /// parts that were given up.
    pub removes_parked: Option<Parked>,
    /// What one request was seen to move, in bytes a second.
    pub link_bytes_per_s: Option<u64>,
}

#[derive(Debug)]
struct State {
    window: Window,
    breaker: Breaker,
    budget: Budget,
    pace: Pace,
    /// Of what is written.
    link: Link,
    /// Of what is read: the other way may be another link.
    reads: Link,
    throttled: u64,
    throttled_at: Option<Instant>,
    failures: Failures,
}

/// Failures that nobody has been told of.
#[derive(Debug)]
struct Failures {
    count: u64,
    told: Instant,
}

impl Failures {
    /// One more; how many there were, where it is time to say so.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if now.saturating_duration_since(self.told) < TELLS_EVERY {
            return None;
        }
        self.told = now;
        Some(std::mem::take(&mut self.count))
    }
}

/// What is known of one request.
enum Heard<'a> {
    Done,
    Failed(&'a RemoteError),
    GaveUp,
}

tokio::task_local! {
    /// Whether what is done now is done in a slot of its own, outside window and pace.
    pub(super) static RESERVED: bool;
}

/// All of it.
pub(crate) struct Traffic {
    state: Mutex<State>,
    remote: Arc<dyn Remote>,
    min_rate: u64,
    floor: Duration,
    /// It is told when the breaker opens, and when it closes.
    turned: Notify,
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traffic").finish_non_exhaustive()
    }
}

impl Traffic {
    /// For requests to `remote`.
    pub(super) fn new(config: &Config, remote: Arc<dyn Remote>) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                window: Window::new(config.workers),
                breaker: Breaker::new(config.probe_interval),
                budget: Budget::new(config.retry_burst, config.retry_per_second, now),
                pace: Pace::new(
                    config.max_requests_per_second,
                    config.max_bytes_per_second,
                    now,
                ),
                link: Link::default(),
                reads: Link::default(),
                throttled: 0,
                throttled_at: None,
                failures: Failures {
                    count: 0,
                    told: now,
                },
            }),
            remote,
            min_rate: config.min_rate_bytes,
            floor: config.attempt_floor,
            turned: Notify::new(),
        })
    }

    /// The slowest rate that a body's deadline allows for.
    pub(super) fn slowest_rate(&self, way: Way) -> u64 {
        let state = self.state.lock();
        let link = match way {
            Way::Read => &state.reads,
            Way::Write | Way::Remove => &state.link,
        };
        link.slowest(self.min_rate)
    }

    /// Requests that an upload in parts may have in flight.
    pub(super) fn at_once(&self, most: usize) -> usize {
        let state = self.state.lock();
        match state.breaker.open(Way::Write) {
            // The probe is one request.
            Some(_) => 1,
            None => most.min(state.window.limit()).max(1),
        }
    }

    /// Whether a failure is the world's, and not the task's.
    pub(super) fn is_parked(&self, way: Way) -> bool {
        self.state.lock().breaker.open(way).is_some()
    }

    /// Waits until the breaker opens or closes.
    pub(super) async fn turned(&self) {
        self.turned.notified().await;
    }

    /// A job is over.
    pub(super) fn left(&self, pass: Pass) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if pass.slot == Slot::General {
            state.window.left();
            state.pace.left(pass.bytes);
        }
        let change = match pass.probes {
            true => state.breaker.probed(pass.way, Instant::now()),
            false => Change::None,
        };
        drop(guard);
        self.tell(change);
    }

    /// Says what has changed, to whom it matters. Not under the lock.
    fn tell(&self, change: Change) {
        if !matches!(change, Change::None | Change::Refresh) {
            self.turned.notify_one();
        }
        match change {
            Change::None | Change::Mended => {}
            Change::Refresh => self.remote.refresh_credentials(),
            Change::Opened(reason) => {
                tracing::warn!(remote = %self.remote.describe(), %reason,
                    "S3 refuses us: what is to be sent waits, and a probe goes now and then");
            }
            Change::Closed(reason) => {
                tracing::info!(remote = %self.remote.describe(), %reason, "S3 takes requests again");
            }
        }
    }

    fn hear(&self, made: Made, started: Instant, heard: &Heard<'_>) {
        let now = Instant::now();
        let took = now.saturating_duration_since(started);
        let way = Way::of(made.operation);
        let (change, failures) = {
            let state = &mut *self.state.lock();
            let says = match heard {
                Heard::Done => {
                    state.window.succeeded(started);
                    state.budget.succeeded();
                    match way {
                        Way::Write => state.link.moved(made.bytes, took),
                        Way::Read if made.exact => state.reads.moved(made.bytes, took),
                        Way::Read | Way::Remove => (),
                    }
                    match is_needed(made.operation) || way == Way::Remove {
                        true => Says::Done,
                        false => Says::Known,
                    }
                }
                Heard::GaveUp => {
                    match way {
                        Way::Write => state.link.gave_up(made.bytes, took),
                        // Sooner, it was the reader who gave up, and not the link that was slow.
                        Way::Read if made.exact && took >= self.floor => {
                            state.reads.gave_up(made.bytes, took);
                        }
                        Way::Read | Way::Remove => (),
                    }
                    Says::Nothing
                }
                Heard::Failed(error) => match error.class {
                    Class::Environment => {
                        let reason = reason_of(error);
                        match about(reason) != About::Key || is_told_why(made.operation) {
                            true => Says::Wrong(reason),
                            false => Says::Refused,
                        }
                    }
                    Class::Permanent | Class::Conflict => match is_needed(made.operation) {
                        true => Says::Answered,
                        false => Says::Known,
                    },
                    Class::Throttle => {
                        state.throttled += 1;
                        state.throttled_at = Some(now);
                        state.window.throttled(started, now);
                        Says::Nothing
                    }
                    Class::Transient => Says::Nothing,
                },
            };
            let change = state.breaker.heard(way, started, says, now);
            let fails = matches!(heard, Heard::Failed(error) if error.retryable);
            let failures = match fails || matches!(heard, Heard::GaveUp) {
                true => state.failures.add(now),
                false => None,
            };
            (change, failures)
        };
        self.tell(change);
        if let Some(count) = failures {
            let last = match heard {
                Heard::Failed(error) => error.to_string(),
                _ => format!("{} got no answer", made.operation),
            };
            tracing::warn!(count, last, "requests failed, and are tried again");
        }
    }

    /// How it stands.
    pub(crate) fn snapshot(&self) -> TrafficSnapshot {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let parked = |way| {
            let open = state.breaker.open(way).filter(|open| open.confirmed)?;
            Some(Parked {
                reason: open.reason.to_string(),
                for_ms: millis(now.saturating_duration_since(open.since)),
                probe_in_ms: millis(open.next.saturating_duration_since(now)),
            })
        };
        TrafficSnapshot {
            window: state.window.limit(),
            window_max: state.window.most(),
            in_flight: state.window.in_flight(),
            window_cuts: state.window.cuts(),
            throttled: state.throttled,
            throttled_ago_ms: state
                .throttled_at
                .map(|at| millis(now.saturating_duration_since(at))),
            reads_parked: parked(Way::Read),
            writes_parked: parked(Way::Write),
            removes_parked: parked(Way::Remove),
            retry_tokens: state.budget.left(now),
            link_bytes_per_s: state.link.rate(),
        }
    }
}

/// What was wrong, in a word.
fn reason_of(error: &RemoteError) -> &str {
    match (&error.code, error.status) {
        (Some(code), _) => code,
        // To HEAD, which has no body to say why in.
        (None, Some(400 | 401 | 403)) => FORBIDDEN,
        (None, Some(507)) => FULL,
        (None, _) => &error.message,
    }
}

/// Whether it is by such requests that objects are written and read. The right to all others
/// (lists, deletes, aborts) may be missing for good, and says nothing about these.
fn is_needed(operation: &str) -> bool {
    matches!(
        operation,
        "PutObject"
            | "CreateMultipartUpload"
            | "UploadPart"
            | "CompleteMultipartUpload"
            | "GetObject"
            | "HeadObject"
    )
}

/// Whether a refusal of one key counts towards one of all: it is of what objects are written and
/// read by, and says why. Of HEAD it does not, and may mean no more than that there is no such key.
fn is_told_why(operation: &str) -> bool {
    is_needed(operation) && operation != "HeadObject"
}

impl Gate for Traffic {
    fn may(&self, slot: Slot, now: Instant) -> May {
        let state = &mut *self.state.lock();
        if slot == Slot::General {
            if !state.window.has_room() {
                // Whoever comes back makes some.
                return May::none(None);
            }
            if let Some(until) = state.pace.pay() {
                return May::none(Some(until));
            }
        }
        let ways = Way::ALL.map(|way| state.breaker.may(way, now));
        May {
            reads: ways[Way::Read.index()].is_ok(),
            writes: ways[Way::Write.index()].is_ok(),
            removes: ways[Way::Remove.index()].is_ok(),
            is_parked: state.breaker.open(Way::Write).is_some(),
            again: ways.into_iter().filter_map(|may| may.err()?).min(),
        }
    }

    fn took(&self, slot: Slot, way: Way, bytes: u64, _: Instant) -> Pass {
        let state = &mut *self.state.lock();
        if slot == Slot::General {
            state.window.took();
            state.pace.takes(bytes);
        }
        Pass {
            slot,
            way,
            bytes,
            probes: state.breaker.took(way),
        }
    }

    fn affords_retry(&self, now: Instant) -> bool {
        self.state.lock().budget.take(now)
    }

    fn next_retry(&self, now: Instant) -> Instant {
        self.state.lock().budget.next(now)
    }

    fn parked_until(&self, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        let open = state.breaker.open(Way::Write)?;
        Some(open.next.max(now))
    }
}

/// The ear: hears of every request, whoever makes it.
#[derive(Debug, Clone)]
pub(crate) struct Listens(pub Arc<Traffic>);

/// A request that got no answer is heard of as well.
struct OnItsWay<'a> {
    traffic: &'a Traffic,
    made: Made,
    started: Instant,
    is_over: bool,
}

impl OnItsWay<'_> {
    fn hear(&mut self, heard: &Heard<'_>) {
        self.is_over = true;
        self.traffic.hear(self.made, self.started, heard);
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.hear(&Heard::GaveUp);
        }
    }
}

impl Around for Listens {
    fn around<'a, T: Send + 'a>(
        &'a self,
        made: Made,
        request: RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T> {
        async move {
            // How much a whole object is, nobody knows.
            let bytes = if made.exact { made.bytes } else { 0 };
            match RESERVED.try_with(|reserved| *reserved).unwrap_or(false) {
                true => self.0.state.lock().pace.sends_aside(bytes),
                false => self.0.state.lock().pace.sends(bytes),
            }
            let mut on_its_way = OnItsWay {
                traffic: &self.0,
                made,
                started: Instant::now(),
                is_over: false,
            };
            let answer = request.await;
            on_its_way.hear(&match &answer {
                Ok(_) => Heard::Done,
                Err(error) => Heard::Failed(error),
            });
            answer
        }
        .boxed()
    }
}
