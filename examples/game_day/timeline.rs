//! What is seen of the queue: ten times a second, of each phase, and a line of a table now and
//! then.

use std::future::Future;
use std::io::{self, Write as _};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use s3_writeback::{Health, Snapshot, UploadQueue};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::load::{Faults, Tally};
use crate::memory;
use crate::plan::{Phase, Plan, Weather};
use crate::reader::Reads;
use crate::s3::Counted;

const LOOKS_EVERY: Duration = Duration::from_millis(100);
/// Changes of health that are kept of a phase.
const CHANGES: usize = 32;

/// What counts up, at one instant.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    admitted: u64,
    refused: u64,
    uploaded: u64,
    right: u64,
    failed: u64,
}

/// A line of the table: the queue at an instant, and what happened since the line before.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub at_s: u64,
    pub phase: &'static str,
    pub health: String,
    /// What is admitted and not in S3.
    pub tasks: u64,
    pub bytes: u64,
    pub oldest_ms: u64,
    pub pressure: u8,
    pub window: usize,
    pub in_flight: usize,
    pub retry_tokens: u32,
    /// Why the breaker is open for writes.
    pub writes_parked: Option<String>,
    pub admitted: u64,
    pub refused: u64,
    pub uploaded: u64,
    pub rss_bytes: u64,
}

/// How the queue was, from some instant of a phase on.
#[derive(Debug, Clone, Serialize)]
pub struct HealthFrom {
    pub after_ms: u64,
    pub health: String,
}

/// What was seen of a phase.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PhaseSeen {
    pub phase: &'static str,
    pub lasted_ms: u64,
    pub admitted: u64,
    pub refused: u64,
    pub uploaded: u64,
    pub reads_right: u64,
    pub reads_failed: u64,
    /// Requests of all kinds that arrived at S3, PUTs among them, and those that something was
    /// done to.
    pub requests: u64,
    pub puts: u64,
    pub faults: u64,
    /// Of a submit, admitted or refused.
    pub submit_p99_us: u32,
    pub submit_max_us: u32,
    pub max_rss_bytes: u64,
    /// Tasks at its beginning, and the most.
    pub tasks_at_start: u64,
    pub max_tasks: u64,
    pub max_oldest_ms: u64,
    pub min_window: usize,
    pub min_retry_tokens: u32,
    /// The health it began with, and each that was seen after it.
    pub healths: Vec<HealthFrom>,
    /// How long it took until health was not what it was when the phase began.
    pub health_changed_ms: Option<u64>,
    /// Of a trouble: how long after its end the next upload was done.
    pub flowed_again_ms: Option<u64>,
    #[serde(skip)]
    pub is_trouble: bool,
}

/// All that was seen of a day.
#[derive(Debug)]
pub struct Seen {
    pub phases: Vec<PhaseSeen>,
    pub lines: Vec<Line>,
    pub peak_rss: u64,
    pub faults: Faults,
    pub last: Snapshot,
}

/// Watches a day.
pub struct Timeline {
    queue: UploadQueue,
    tally: Arc<Tally>,
    reads: Arc<Reads>,
    line_every: Duration,
    began: Instant,
    phase_began: Instant,
    at_phase: Totals,
    counted: Counted,
    next_line: Instant,
    at_line: Totals,
    /// When a trouble ended, what was uploaded by then, and which phase it was.
    ended: Option<(Instant, u64, usize)>,
    phases: Vec<PhaseSeen>,
    lines: Vec<Line>,
}

impl Timeline {
    pub fn new(plan: &Plan, queue: &UploadQueue, tally: &Arc<Tally>, reads: &Arc<Reads>) -> Self {
        let now = Instant::now();
        print(&format!(
            "{:>5} {:<11} {:<26} {:>6} {:>6} {:>8} {:>4} {:>6} {:>8} {:>6} {:>8} {:>7} {:>8} {:>7}",
            "s",
            "phase",
            "health",
            "tasks",
            "MiB",
            "oldest s",
            "full",
            "window",
            "inflight",
            "tokens",
            "admitted",
            "refused",
            "uploaded",
            "RSS MiB",
        ));
        Self {
            queue: queue.clone(),
            tally: Arc::clone(tally),
            reads: Arc::clone(reads),
            line_every: plan.line_every,
            began: now,
            phase_began: now,
            at_phase: Totals::default(),
            counted: Counted::default(),
            next_line: now + plan.line_every,
            at_line: Totals::default(),
            ended: None,
            phases: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Watches a phase to its end. `counted` is what arrived at S3 before it.
    pub async fn walk(&mut self, phase: &Phase, counted: Counted) {
        self.begin(phase.name, phase.weather != Weather::Fine, counted);
        let ends = tokio::time::sleep_until(self.phase_began + phase.lasts);
        self.watch_until(ends).await;
    }

    /// Watches the shutdown: whatever `ends` is.
    pub async fn walk_to_the_end<T>(
        &mut self,
        counted: Counted,
        ends: impl Future<Output = T>,
    ) -> T {
        self.begin("shutdown", false, counted);
        self.watch_until(ends).await
    }

    /// What was seen; `counted` is what arrived at S3 in all.
    pub fn end(mut self, counted: Counted) -> Seen {
        let last = self.look();
        self.tell(&last);
        self.finish(counted);
        Seen {
            phases: self.phases,
            lines: self.lines,
            peak_rss: memory::peak(),
            faults: self.tally.faults(),
            last,
        }
    }

    async fn watch_until<T>(&mut self, ends: impl Future<Output = T>) -> T {
        let mut ends = pin!(ends);
        let mut tick = interval(LOOKS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ended = &mut ends => return ended,
                _ = tick.tick() => {}
            }
            let snapshot = self.look();
            if Instant::now() >= self.next_line {
                self.next_line += self.line_every;
                self.tell(&snapshot);
            }
        }
    }

    fn totals(&self, snapshot: &Snapshot) -> Totals {
        Totals {
            admitted: self.tally.admitted.load(Ordering::Relaxed),
            refused: self.tally.refused.load(Ordering::Relaxed),
            uploaded: snapshot.uploaded,
            right: self.reads.right.load(Ordering::Relaxed),
            failed: self.reads.failed.load(Ordering::Relaxed),
        }
    }

    fn begin(&mut self, phase: &'static str, is_trouble: bool, counted: Counted) {
        self.finish(counted);
        let snapshot = self.queue.snapshot();
        self.phase_began = Instant::now();
        self.at_phase = self.totals(&snapshot);
        self.phases.push(PhaseSeen {
            phase,
            tasks_at_start: snapshot.admitted_tasks,
            min_window: snapshot.traffic.window,
            min_retry_tokens: snapshot.traffic.retry_tokens,
            is_trouble,
            ..PhaseSeen::default()
        });
        self.look();
    }

    /// The last phase is over.
    fn finish(&mut self, counted: Counted) {
        let (now, arrived) = (Instant::now(), counted.since(self.counted));
        self.counted = counted;
        let totals = self.totals(&self.queue.snapshot());
        let at = self.phases.len();
        let Some(phase) = self.phases.last_mut() else {
            return;
        };
        let mut times = self.tally.take_times();
        times.sort_unstable();
        phase.submit_p99_us = times.get(times.len() * 99 / 100).copied().unwrap_or(0);
        phase.submit_max_us = times.last().copied().unwrap_or(0);
        phase.lasted_ms = millis(now - self.phase_began);
        phase.admitted = totals.admitted - self.at_phase.admitted;
        phase.refused = totals.refused - self.at_phase.refused;
        phase.uploaded = totals.uploaded - self.at_phase.uploaded;
        phase.reads_right = totals.right - self.at_phase.right;
        phase.reads_failed = totals.failed - self.at_phase.failed;
        phase.requests = arrived.requests;
        phase.puts = arrived.puts;
        phase.faults = arrived.faults;
        if phase.is_trouble {
            self.ended = Some((now, totals.uploaded, at - 1));
        }
    }

    fn look(&mut self) -> Snapshot {
        let (snapshot, rss) = (self.queue.snapshot(), memory::resident());
        let health = name_of(&self.queue.health());
        let after_ms = millis(self.phase_began.elapsed());
        if let Some((ended, uploaded, at)) = self.ended
            && snapshot.uploaded > uploaded
        {
            self.phases[at].flowed_again_ms = Some(millis(ended.elapsed()));
            self.ended = None;
        }
        if let Some(phase) = self.phases.last_mut() {
            phase.max_rss_bytes = phase.max_rss_bytes.max(rss);
            phase.max_tasks = phase.max_tasks.max(snapshot.admitted_tasks);
            phase.max_oldest_ms = phase.max_oldest_ms.max(snapshot.tasks.oldest_ms);
            phase.min_window = phase.min_window.min(snapshot.traffic.window);
            phase.min_retry_tokens = phase.min_retry_tokens.min(snapshot.traffic.retry_tokens);
            let is_news = phase
                .healths
                .last()
                .is_none_or(|last| last.health != health);
            if is_news && phase.healths.len() < CHANGES {
                if phase.healths.len() == 1 {
                    phase.health_changed_ms = Some(after_ms);
                }
                phase.healths.push(HealthFrom { after_ms, health });
            }
        }
        snapshot
    }

    fn tell(&mut self, snapshot: &Snapshot) {
        let totals = self.totals(snapshot);
        let parked = snapshot.traffic.writes_parked.as_ref();
        let line = Line {
            at_s: self.began.elapsed().as_secs(),
            phase: self.phases.last().map_or("", |phase| phase.phase),
            health: name_of(&self.queue.health()),
            tasks: snapshot.admitted_tasks,
            bytes: snapshot.admitted_bytes,
            oldest_ms: snapshot.tasks.oldest_ms,
            pressure: snapshot.pressure,
            window: snapshot.traffic.window,
            in_flight: snapshot.traffic.in_flight,
            retry_tokens: snapshot.traffic.retry_tokens,
            writes_parked: parked.map(|parked| parked.reason.clone()),
            admitted: totals.admitted - self.at_line.admitted,
            refused: totals.refused - self.at_line.refused,
            uploaded: totals.uploaded - self.at_line.uploaded,
            rss_bytes: memory::resident(),
        };
        self.at_line = totals;
        print(&format!(
            "{:>5} {:<11} {:<26} {:>6} {:>6.1} {:>8.1} {:>4} {:>6} {:>8} {:>6} {:>8} {:>7} {:>8} {:>7.1}",
            line.at_s,
            line.phase,
            line.health,
            line.tasks,
            mib(line.bytes),
            Duration::from_millis(line.oldest_ms).as_secs_f64(),
            line.pressure,
            line.window,
            line.in_flight,
            line.retry_tokens,
            line.admitted,
            line.refused,
            line.uploaded,
            mib(line.rss_bytes),
        ));
        self.lines.push(line);
    }
}

/// Nobody may listen any more: the day goes on.
fn print(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// In a word, or two.
fn name_of(health: &Health) -> String {
    let name = match health {
        Health::Ok => "ok",
        Health::Behind { .. } => "behind",
        Health::Throttled => "throttled",
        Health::Parked { reason, .. } => return format!("parked {reason}"),
        Health::Recovering => "recovering",
        Health::DiskFull => "disk full",
        Health::QuarantineFull => "quarantine full",
        Health::Fenced { .. } => "fenced",
        Health::Failed { .. } => "failed",
        _ => "?",
    };
    name.to_owned()
}
