//! What the queue promises of such a day, held against what was seen of it.

use std::time::Duration;

use s3_writeback::ShutdownReport;
use serde::Serialize;

use crate::audit::Found;
use crate::plan::{Phase, Plan, Weather};
use crate::timeline::{PhaseSeen, Seen, millis};

/// A number, and what it must not be above.
#[derive(Debug, Clone, Serialize)]
pub struct Promise {
    pub name: String,
    pub value: u64,
    pub at_most: u64,
    pub kept: bool,
    /// How the limit comes about.
    pub because: String,
}

impl Promise {
    fn new(name: impl Into<String>, value: u64, at_most: u64, because: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value,
            at_most,
            kept: value <= at_most,
            because: because.into(),
        }
    }

    fn none(name: &str, value: u64) -> Self {
        Self::new(name, value, 0, "none may be")
    }
}

/// Requests with new credentials, before the breaker opens.
const REFRESHES: u64 = 1;

/// Each promise, kept or not.
pub fn promises(
    plan: &Plan,
    seen: &Seen,
    shutdown: &ShutdownReport,
    found: &Found,
) -> Vec<Promise> {
    let mut promises = vec![
        Promise::none(
            "acknowledged objects that are lost",
            found.missing + found.wrong,
        ),
        Promise::none("tasks in quarantine", seen.last.quarantined),
        Promise::none(
            "tasks that shutdown left",
            shutdown.deferred + shutdown.undetermined,
        ),
        Promise::none(
            "submits, acknowledgements and reads gone wrong",
            seen.faults.count,
        ),
        Promise::new(
            "bytes of memory",
            seen.peak_rss,
            plan.memory_bound(),
            "max_bytes, 2 KiB a task, and 64 MiB for the process",
        ),
        Promise::new(
            "bytes queued",
            seen.last.peak_bytes,
            plan.config.max_bytes,
            "max_bytes",
        ),
        Promise::new(
            "milliseconds of shutdown",
            millis(shutdown.took),
            millis(plan.shutdown_within),
            "its deadline",
        ),
    ];
    let phases = seen.phases.iter().zip(&plan.phases);
    for (phase, planned) in phases.clone() {
        match planned.weather {
            Weather::Fine | Weather::Throttling | Weather::Hang => {}
            // Reads and writes have a probe each.
            Weather::Credentials => promises.extend([
                probes(plan, planned, "writes", phase.puts),
                probes(plan, planned, "reads", phase.requests - phase.puts),
            ]),
            Weather::Full => promises.push(probes(plan, planned, "writes", phase.puts)),
            Weather::Outage => promises.push(outage(plan, phase, planned.lasts)),
        }
    }
    for (phase, _) in phases.filter(|(phase, _)| phase.is_trouble) {
        promises.push(Promise::new(
            format!("milliseconds to flow again after: {}", phase.phase),
            phase.flowed_again_ms.unwrap_or(u64::MAX),
            millis(plan.flows_again_within()),
            "the longest back-off or probe interval, and two seconds",
        ));
    }
    promises
}

/// What is in flight when it begins, one request with new credentials, and from then on a probe an
/// interval.
fn probes(plan: &Plan, planned: &Phase, of: &str, sent: u64) -> Promise {
    let (first, probes) = (plan.at_once(), 1 + plan.probes(planned.lasts));
    let every = plan.config.probe_interval;
    Promise::new(
        format!("{of} sent in: {}", planned.name),
        sent,
        first + REFRESHES + probes,
        format!(
            "{first} until it is seen, {REFRESHES} with new credentials, a probe each {every:?}"
        ),
    )
}

/// Each task may be tried once; trying again is paid for.
fn outage(plan: &Plan, phase: &PhaseSeen, lasts: Duration) -> Promise {
    let first = phase.tasks_at_start + phase.admitted;
    let retries = plan.retries(lasts, phase.uploaded);
    Promise::new(
        "PUTs while S3 was away",
        phase.puts,
        first + retries + plan.at_once(),
        format!(
            "{first} first attempts, {retries} retries that the budget allows, and what was in flight"
        ),
    )
}
