//! What a run did, for people and for scripts.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::acks::Acknowledged;
use crate::life::Ended;
use crate::options::EngineKind;
use crate::verify::{Source, Verdict};

/// The result of a run. Fields of one shutdown are of the first life: the one that inserted, or
/// with `--resume` the one that resumed.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub engine: EngineKind,
    pub rows_acknowledged: u64,
    /// Writes of rows that were acknowledged: with pages more than rows.
    pub updates_acknowledged: u64,
    pub rows_verified: u64,
    pub rows_lost: u64,
    /// In S3 and not acknowledged when the process was killed.
    pub rows_unacknowledged: u64,
    /// Where rows were read from, the last time.
    pub verified_from: Source,
    /// How many times they were all read.
    pub verifications: u64,
    pub segments: u64,
    /// Bytes of bodies that went up, of all lives.
    pub bytes_uploaded: u64,
    /// PUT requests that the embedded server saw; with `--endpoint`, all requests of the queue.
    pub puts: u64,
    /// Tasks that were durable and not in S3 when the first shutdown was over.
    pub deferred: u64,
    /// Parts of the page engine that were here and not in S3 as they were when the first shutdown
    /// was over.
    pub dirty_parts: u64,
    /// Checkpoints that were committed, of all lives.
    pub checkpoints: u64,
    /// The number of the last.
    pub last_checkpoint: u64,
    /// How long the restore from the bucket took.
    pub restore_ms: u64,
    /// Images of parts that went up, of all lives; so are those that follow.
    pub parts_uploaded: u64,
    /// Objects that they, and what checkpoints consist of, went up in.
    pub packs: u64,
    pub loads: u64,
    pub evictions: u64,
    /// Locks that were not had at once: another held the part, or it was not here.
    pub lock_waits: u64,
    pub max_lock_wait_ms: u64,
    /// Updates that were begun anew after a timeout, or because a locker had to give way.
    pub refused: u64,
    /// Pages that were read and checked beside the writers.
    pub pages_checked: u64,
    /// The most bytes of parts that were here, and that were dirty, at one time.
    pub max_cache_bytes: u64,
    pub max_dirty_bytes: u64,
    /// Tasks in quarantine, of all lives.
    pub quarantined: u64,
    /// Requests whose answer was lost, of all lives.
    pub unknown: u64,
    pub shutdown_ms: u64,
    pub shutdown_within_ms: u64,
    pub shutdown_in_time: bool,
    /// Of the first shutdown: name to milliseconds.
    pub phases: BTreeMap<String, u64>,
    pub late_holds: Vec<String>,
    pub max_pending_tasks: u64,
    pub max_pending_bytes: u64,
    /// Tasks that were owed when a directory was opened, of all lives.
    pub recovered_tasks: u64,
    /// Sealed segments that the queue did not take before it shut down.
    pub segments_left_local: u64,
    /// How many times the directory was opened.
    pub lives: u64,
    /// What ended in an unexpected way: segments, shutdowns, objects.
    pub faults: Vec<String>,
    /// The most memory that this process ever had, the embedded server included; 0 where the
    /// system does not say.
    pub peak_rss_bytes: u64,
    pub seconds: f64,
}

impl Report {
    /// Adds what one life did.
    pub fn add_life(&mut self, ended: &Ended) {
        let (report, snapshot) = (&ended.report, &ended.snapshot);
        if self.lives == 0 {
            self.deferred = report.deferred;
            self.dirty_parts = report.dirty_parts;
            self.shutdown_ms = millis(ended.shutdown);
            self.shutdown_within_ms = millis(report.within);
            self.shutdown_in_time = true;
            let phases = report.phases.iter();
            self.phases = phases
                .map(|(p, took)| (p.to_string(), millis(*took)))
                .collect();
            self.segments_left_local = ended.shipped.left;
        }
        self.lives += 1;
        self.shutdown_in_time &= ended.is_in_time();
        let holds = report.late_holds.iter().map(|(name, _)| name.clone());
        self.late_holds.extend(holds);
        self.bytes_uploaded += snapshot.uploaded_bytes;
        self.puts += snapshot.requests;
        self.quarantined = self.quarantined.max(report.quarantined);
        self.unknown += snapshot.unknown;
        self.max_pending_tasks = self.max_pending_tasks.max(snapshot.peak_tasks);
        self.max_pending_bytes = self.max_pending_bytes.max(snapshot.peak_bytes);
        self.recovered_tasks += snapshot.recovered;
        self.faults.extend_from_slice(&ended.shipped.failed);
        if let Some((told, store)) = &ended.heap {
            self.parts_uploaded += store.images;
            self.bytes_uploaded += snapshot.pack_bytes_uploaded;
            self.packs += snapshot.packs_uploaded;
            self.checkpoints += store.checkpoints.committed;
            self.last_checkpoint = self
                .last_checkpoint
                .max(store.checkpoints.base.unwrap_or(0));
            self.loads += store.loads;
            self.evictions += store.evictions;
            self.max_cache_bytes = self.max_cache_bytes.max(store.peak_cache_bytes);
            self.max_dirty_bytes = self.max_dirty_bytes.max(store.peak_dirty_bytes);
            self.lock_waits += told.lock_waits;
            self.max_lock_wait_ms = self.max_lock_wait_ms.max(told.max_lock_wait_ms);
            self.refused += told.refused;
            self.pages_checked += told.looks;
            self.faults.extend_from_slice(&told.faults);
            let failing = report.failing_parts.iter();
            self.faults
                .extend(failing.map(|failing| format!("{}: {}", failing.part, failing.cause)));
        }
        if let Some(error) = &report.seal_error {
            self.faults.push(format!("not sealed: {error}"));
        }
    }

    /// Adds what was read back. Lost is what was not found any one time.
    pub fn add_verdict(&mut self, acknowledged: &Acknowledged, verdict: &Verdict) {
        self.rows_acknowledged = acknowledged.total();
        self.updates_acknowledged = acknowledged.updates();
        let before = (self.verifications > 0).then_some(self.rows_verified);
        self.rows_verified = before.map_or(verdict.verified, |rows| rows.min(verdict.verified));
        self.rows_lost = self.rows_lost.max(verdict.lost);
        self.rows_unacknowledged = verdict.unacknowledged;
        self.verified_from = verdict.from;
        self.restore_ms = verdict.restore_ms;
        self.verifications += 1;
        self.segments = verdict.segments;
        self.faults.extend_from_slice(&verdict.faults);
        let untold = verdict.fault_count - verdict.faults.len() as u64;
        if untold > 0 {
            self.faults.push(format!("and {untold} more"));
        }
    }

    /// Whether nothing was lost, nothing was odd and every deadline was kept.
    pub fn is_good(&self) -> bool {
        self.rows_lost == 0 && self.shutdown_in_time && self.faults.is_empty()
    }

    /// For people.
    pub fn text(&self) -> String {
        let phases: Vec<String> = self
            .phases
            .iter()
            .map(|(name, ms)| format!("{name} {ms}"))
            .collect();
        let mut text = format!(
            "rows_acknowledged: {}\nrows_verified: {}\nrows_lost: {}\n\
             uploaded: {} bytes in {} segments, {} PUTs, at most {} tasks and {} bytes pending\n\
             shutdown: {} ms of {} ms ({}); deferred {}, quarantined {}, recovered {}\n\
             peak memory: {} bytes; {:.1} s in all\n",
            self.rows_acknowledged,
            self.rows_verified,
            self.rows_lost,
            self.bytes_uploaded,
            self.segments,
            self.puts,
            self.max_pending_tasks,
            self.max_pending_bytes,
            self.shutdown_ms,
            self.shutdown_within_ms,
            phases.join(", "),
            self.deferred,
            self.quarantined,
            self.recovered_tasks,
            self.peak_rss_bytes,
            self.seconds,
        );
        if self.engine == EngineKind::Page {
            text.push_str(&format!(
                "pages: {} updates; {} images in {} objects, {} loads, {} evictions; at most {} \
                 bytes here, {} dirty\n\
                 checkpoints: {}, the last is {}; restored in {} ms\n\
                 locks: {} waits, the longest {} ms; {} updates begun anew; {} pages checked\n\
                 dirty_parts: {}; verified_from: {}, {} time(s)\n",
                self.updates_acknowledged,
                self.parts_uploaded,
                self.packs,
                self.loads,
                self.evictions,
                self.max_cache_bytes,
                self.max_dirty_bytes,
                self.checkpoints,
                self.last_checkpoint,
                self.restore_ms,
                self.lock_waits,
                self.max_lock_wait_ms,
                self.refused,
                self.pages_checked,
                self.dirty_parts,
                self.verified_from,
                self.verifications,
            ));
        }
        for fault in &self.faults {
            text.push_str(&format!("wrong: {fault}\n"));
        }
        if !self.shutdown_in_time {
            text.push_str("wrong: a shutdown took longer than its deadline\n");
        }
        text
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The most memory that this process ever had.
pub fn peak_rss_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
