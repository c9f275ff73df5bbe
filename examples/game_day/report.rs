//! What is told at the end.

use s3_writeback::ShutdownReport;
use serde::Serialize;

use crate::audit::Found;
use crate::plan::Plan;
use crate::timeline::{Line, PhaseSeen, Seen, mib, millis};
use crate::verdict::{Promise, promises};

/// All of a day.
#[derive(Debug, Serialize)]
pub struct Report {
    pub good: bool,
    /// Keys that were acknowledged, and how many of them S3 has as they were.
    pub acknowledged: u64,
    pub verified: u64,
    pub lost: u64,
    pub admitted: u64,
    pub refused: u64,
    pub uploaded: u64,
    pub quarantined: u64,
    pub deferred: u64,
    pub window_cuts: u64,
    pub throttled: u64,
    /// Requests whose answer was lost.
    pub unknown: u64,
    pub peak_rss_bytes: u64,
    pub memory_bound_bytes: u64,
    pub peak_tasks: u64,
    pub peak_bytes: u64,
    pub shutdown_ms: u64,
    /// The knobs that are not at their defaults.
    pub max_bytes: u64,
    pub probe_interval_ms: u64,
    pub behind_after_ms: u64,
    pub promises: Vec<Promise>,
    /// What went wrong in words: the first of each kind.
    pub wrong: Vec<String>,
    pub phases: Vec<PhaseSeen>,
    pub timeline: Vec<Line>,
}

impl Report {
    pub fn new(
        plan: &Plan,
        seen: Seen,
        shutdown: &ShutdownReport,
        acknowledged: u64,
        found: Found,
    ) -> Self {
        let promises = promises(plan, &seen, shutdown, &found);
        let sum = |of: fn(&PhaseSeen) -> u64| seen.phases.iter().map(of).sum();
        let mut wrong = seen.faults.first;
        wrong.extend(found.named);
        Self {
            good: promises.iter().all(|promise| promise.kept),
            acknowledged,
            verified: found.right,
            lost: found.missing + found.wrong,
            admitted: sum(|phase| phase.admitted),
            refused: sum(|phase| phase.refused),
            uploaded: seen.last.uploaded,
            quarantined: seen.last.quarantined,
            deferred: shutdown.deferred,
            window_cuts: seen.last.traffic.window_cuts,
            throttled: seen.last.traffic.throttled,
            unknown: seen.last.unknown,
            peak_rss_bytes: seen.peak_rss,
            memory_bound_bytes: plan.memory_bound(),
            peak_tasks: seen.last.peak_tasks,
            peak_bytes: seen.last.peak_bytes,
            shutdown_ms: millis(shutdown.took),
            max_bytes: plan.config.max_bytes,
            probe_interval_ms: millis(plan.config.probe_interval),
            behind_after_ms: millis(plan.config.behind_after),
            promises,
            wrong,
            phases: seen.phases,
            timeline: seen.lines,
        }
    }

    pub fn is_good(&self) -> bool {
        self.good
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "\n{:<11} {:>8} {:>7} {:>8} {:>8} {:>7} {:>10} {:>7} {:>9} {:>9}  health\n",
            "phase",
            "admitted",
            "refused",
            "uploaded",
            "requests",
            "reads",
            "p99 submit",
            "RSS MiB",
            "noticed s",
            "flowing s",
        );
        for phase in &self.phases {
            let healths: Vec<&str> = phase.healths.iter().map(|of| of.health.as_str()).collect();
            text.push_str(&format!(
                "{:<11} {:>8} {:>7} {:>8} {:>8} {:>7} {:>7} us {:>7.1} {:>9} {:>9}  {}\n",
                phase.phase,
                phase.admitted,
                phase.refused,
                phase.uploaded,
                phase.requests,
                phase.reads_right,
                phase.submit_p99_us,
                mib(phase.max_rss_bytes),
                seconds(phase.health_changed_ms),
                seconds(phase.flowed_again_ms),
                healths.join(", "),
            ));
        }
        text.push_str(&format!(
            "\nset: max_bytes {:.1} MiB (full in the middle of a trouble), probe_interval {} ms, \
             behind_after {} ms; all else is the default\n\
             acknowledged: {}; verified: {}; lost: {}; admitted {}, refused {}\n\
             peak memory: {:.1} MiB of {:.1} MiB; shutdown: {} ms\n",
            mib(self.max_bytes),
            self.probe_interval_ms,
            self.behind_after_ms,
            self.acknowledged,
            self.verified,
            self.lost,
            self.admitted,
            self.refused,
            mib(self.peak_rss_bytes),
            mib(self.memory_bound_bytes),
            self.shutdown_ms,
        ));
        for promise in &self.promises {
            let Promise {
                name,
                value,
                at_most,
                because,
                ..
            } = promise;
            text.push_str(&match promise.kept {
                true => format!("kept: {name}: {value}, at most {at_most} ({because})\n"),
                false => format!("BROKEN: {name}: {value}, and at most {at_most} ({because})\n"),
            });
        }
        for wrong in &self.wrong {
            text.push_str(&format!("wrong: {wrong}\n"));
        }
        text
    }
}

fn seconds(ms: Option<u64>) -> String {
    match ms {
        Some(ms) => format!("{:.1}", std::time::Duration::from_millis(ms).as_secs_f64()),
        None => "-".to_owned(),
    }
}
