//! What the queue promises of such a day, held against what was seen of it.

use s3_writeback::ShutdownReport;
use serde::Serialize;

use crate::audit::Found;
use crate::plan::{Plan, Weather};
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

/// Requests with new credentials, before the breaker opens: a read and a write.
const REFRESHES: u64 = 2;
/// Refusals in a row before what can be about one key is taken for more.
const IN_A_ROW: u64 = 3;

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
        let at_once = plan.at_once();
        match planned.weather {
            Weather::Fine | Weather::Throttling | Weather::Hang => {}
            Weather::Credentials => promises.push(Promise::new(
                "requests while credentials were wrong",
                phase.requests,
                at_once + REFRESHES + 1 + plan.probes(planned.lasts),
                format!("{at_once} at one time, {REFRESHES} with new credentials, then a probe each {:?}", plan.config.probe_interval),
            )),
            Weather::Full => promises.push(Promise::new(
                "PUTs while storage was full",
                phase.puts,
                at_once + IN_A_ROW + REFRESHES + 1 + plan.probes(planned.lasts),
                format!("{at_once} at one time, {IN_A_ROW} in a row, {REFRESHES} with new credentials, then a probe each {:?}", plan.config.probe_interval),
            )),
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

/// Each task may be tried once; trying again is paid for.
fn outage(plan: &Plan, phase: &PhaseSeen, lasts: std::time::Duration) -> Promise {
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
