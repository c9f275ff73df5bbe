//! Configuration: every knob with its unit, default and limits.
//!
//! Owns: the numbers and [`Config::validate`], which reports all faults at once. Does not own:
//! what is done with them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::journal::OnDamage;

const MIB: u64 = 1024 * 1024;

/// How a queue behaves. `Config::new(dir)` gives the defaults; fields are public, and every
/// duration is written in milliseconds (field name with `_ms`) when serialised.
///
/// ```
/// use s3_writeback::Config;
///
/// let mut config = Config::new("/var/lib/engine/queue");
/// config.max_bytes = 512 * 1024 * 1024;
/// config.workers = 8;
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The queue's own directory: journal, payloads, lock. Made `0700` where it does not exist.
    pub dir: PathBuf,
    /// Tasks admitted and not settled. Default 10,000; 1 to 10,000,000.
    #[serde(default = "defaults::max_tasks")]
    pub max_tasks: u64,
    /// Bytes of the bodies of those tasks. Default 256 MiB; 1 byte to 16 TiB.
    #[serde(default = "defaults::max_bytes")]
    pub max_bytes: u64,
    /// Bytes of disk for the journal and its payload files, with the room that ending every task
    /// needs. Default 4 GiB; at least four segments.
    #[serde(default = "defaults::max_disk_bytes")]
    pub max_disk_bytes: u64,
    /// Room for lane `Checkpoint`, on top of the limits above and never lent to others: tasks.
    /// Default 64; 1 to 100,000.
    #[serde(default = "defaults::checkpoint_tasks")]
    pub checkpoint_tasks: u64,
    /// The same: bytes, in memory and on disk each. Default 64 MiB; 1 byte to 1 TiB.
    #[serde(default = "defaults::checkpoint_bytes")]
    pub checkpoint_bytes: u64,
    /// Bytes of bodies in memory: those that were submitted, and those that attempts read back.
    /// Above it bodies that are on the disk are dropped from memory, and read again when their turn
    /// comes; what is submitted as bytes waits until four fifths are reached. An attempt may always
    /// read its body while no other does. Lane `Checkpoint` has its `checkpoint_bytes` on top.
    /// Default 256 MiB; 1 byte to 16 TiB.
    #[serde(default = "defaults::max_memory_bytes")]
    pub max_memory_bytes: u64,
    /// Receipts of one task that may be held at one time, waits on them included; one more is
    /// refused. Default 65,536; 1 to 10,000,000.
    #[serde(default = "defaults::max_receipts")]
    pub max_receipts: u64,
    /// Callers that may wait for room at one time; one more is refused. Default 4,096; 1 to
    /// 1,000,000.
    #[serde(default = "defaults::max_waiters")]
    pub max_waiters: u64,
    /// Reads through [`get`](crate::UploadQueue::get) that may wait for S3 at one time. Default
    /// 256; 1 to 100,000.
    #[serde(default = "defaults::max_loads")]
    pub max_loads: u64,
    /// Requests to S3 at one time, besides one reserved for lane `Load` and one for lane
    /// `Checkpoint`. Default 16; 1 to 1,024.
    #[serde(default = "defaults::workers")]
    pub workers: usize,
    /// The share of `workers` that tasks under one prefix (the key up to its last `/`) may have at
    /// one time, in percent; at least one. Default 75; 1 to 100.
    #[serde(default = "defaults::prefix_share_percent")]
    pub prefix_share_percent: u8,
    /// How long an operation waits where its caller does not say. Default 60 s; 1 ms to 1 day.
    #[serde(
        default = "defaults::op_deadline",
        rename = "op_deadline_ms",
        with = "millis"
    )]
    pub op_deadline: Duration,
    /// The deadline of a shutdown that a token starts. Default 30 s; 0 to 1 day.
    #[serde(
        default = "defaults::shutdown_within",
        rename = "shutdown_within_ms",
        with = "millis"
    )]
    pub shutdown_within: Duration,
    /// Payloads up to this size live in the journal's records, larger ones in files of their own:
    /// a file costs a name, its blocks and two directory syncs, a record two writes' worth of
    /// `max_disk_bytes` and its part of what an open reads. Default 256 KiB; 0 to 1 MiB.
    #[serde(default = "defaults::inline_bytes")]
    pub inline_bytes: u32,
    /// Size of a journal segment. Default 64 MiB; 4 KiB to 1 GiB.
    #[serde(default = "defaults::segment_bytes")]
    pub segment_bytes: u32,
    /// Whether open goes on when it finds damage in the journal. Default
    /// [`OnDamage::Recover`].
    #[serde(default)]
    pub on_damage: OnDamage,
    /// Bodies from this size go up in parts. Default 16 MiB; 5 MiB to 5 GiB.
    #[serde(default = "defaults::multipart_threshold")]
    pub multipart_threshold: u64,
    /// Size of such a part; grown where an object would need more than 10,000. Default 8 MiB;
    /// 5 MiB to 5 GiB.
    #[serde(default = "defaults::part_bytes")]
    pub part_bytes: u64,
    /// Parts of one object in flight at one time. Default 4; 1 to 64.
    #[serde(default = "defaults::part_concurrency")]
    pub part_concurrency: usize,
    /// The shortest deadline of one request. Default 10 s; 1 ms to 1 hour.
    #[serde(
        default = "defaults::attempt_floor",
        rename = "attempt_floor_ms",
        with = "millis"
    )]
    pub attempt_floor: Duration,
    /// The slowest link that must still work: a request with a body has at least the time that
    /// the body takes at this rate, in bytes a second, and 5 s. Default 32 KiB/s; 1 to 1 GiB/s.
    #[serde(default = "defaults::min_rate_bytes")]
    pub min_rate_bytes: u64,
    /// Back-off after the first failure, doubled by each that follows. Default 50 ms; 1 ms to
    /// `retry_cap`.
    #[serde(
        default = "defaults::retry_base",
        rename = "retry_base_ms",
        with = "millis"
    )]
    pub retry_base: Duration,
    /// The longest back-off. Default 20 s; at most 1 hour, and at most `op_deadline`.
    #[serde(
        default = "defaults::retry_cap",
        rename = "retry_cap_ms",
        with = "millis"
    )]
    pub retry_cap: Duration,
    /// Retries that may be made at once before they are limited to `retry_per_second`; each success
    /// allows two more. Default 100; 1 to 100,000.
    #[serde(default = "defaults::retry_burst")]
    pub retry_burst: u32,
    /// Retries a second that are made in any case. Default 10; 1 to 100,000.
    #[serde(default = "defaults::retry_per_second")]
    pub retry_per_second: u32,
    /// While S3 refuses everything (credentials, bucket, storage), one request goes so often to see
    /// whether it still does. Default 30 s; 10 ms to 1 hour.
    #[serde(
        default = "defaults::probe_interval",
        rename = "probe_interval_ms",
        with = "millis"
    )]
    pub probe_interval: Duration,
    /// Requests a second, those of the reserved slots counted but not held back. Default `None`: no
    /// limit; 1 to 1,000,000.
    #[serde(default)]
    pub max_requests_per_second: Option<u32>,
    /// Bytes a second, likewise. Default `None`: no limit; 1 KiB/s to 1 TiB/s.
    #[serde(default)]
    pub max_bytes_per_second: Option<u64>,
    /// The oldest task has waited for this long: health is `Behind`. Default 60 s; 10 ms to 1 day.
    #[serde(
        default = "defaults::behind_after",
        rename = "behind_after_ms",
        with = "millis"
    )]
    pub behind_after: Duration,
    /// How long S3 may still carry out a request that was given up: the life of its signature and
    /// the skew of clocks. Default 20 min; 1 s to 1 day.
    #[serde(
        default = "defaults::signature_lifetime",
        rename = "signature_lifetime_ms",
        with = "millis"
    )]
    pub signature_lifetime: Duration,
    /// A task that was in flight at this many crashes is quarantined. Default 3; 1 to 100.
    #[serde(default = "defaults::crash_limit")]
    pub crash_limit: u32,
    /// Tasks of an earlier life that are brought in at a time, at open and whenever half of them are
    /// through: the rest take some 64 bytes each until their turn, and are read back then. Default
    /// 4,096; 1 to 1,000,000.
    #[serde(default = "defaults::recovery_window")]
    pub recovery_window: usize,
    /// Tasks that may be in quarantine before nothing new is admitted: what fails after that still
    /// goes there, and nothing in it is ever deleted to make room. Default 1,000; 1 to 10,000,000.
    #[serde(default = "defaults::max_quarantined_tasks")]
    pub max_quarantined_tasks: u64,
    /// The same for the bytes of their bodies. They stay on the disk that `max_disk_bytes` is the
    /// limit of. Default 1 GiB; 1 byte to 16 TiB.
    #[serde(default = "defaults::max_quarantined_bytes")]
    pub max_quarantined_bytes: u64,
    /// Purge what has been in quarantine for this long, with its body. Default `None`: an operator
    /// decides. 1 s to 10 years.
    #[serde(
        default,
        rename = "quarantine_expires_ms",
        with = "maybe_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub quarantine_expires: Option<Duration>,
    /// Nothing has moved for this long though there is work: a stall report is logged. Default
    /// 30 s; 10 ms to 1 hour.
    #[serde(
        default = "defaults::stall_after",
        rename = "stall_after_ms",
        with = "millis"
    )]
    pub stall_after: Duration,
    /// Threads that may wait for the disk at one time. Default 4; 1 to 64.
    #[serde(default = "defaults::io_threads")]
    pub io_threads: usize,
    /// Seeds ids and jitter; `None` asks the operating system. Default `None`.
    #[serde(default)]
    pub seed: Option<u64>,
}

mod defaults {
    use super::{Duration, MIB};

    macro_rules! defaults {
        ($($name:ident: $type:ty = $value:expr;)*) => {
            $(pub(super) const fn $name() -> $type { $value })*
        };
    }

    defaults! {
        max_tasks: u64 = 10_000;
        max_bytes: u64 = 256 * MIB;
        max_disk_bytes: u64 = 4096 * MIB;
        checkpoint_tasks: u64 = 64;
        checkpoint_bytes: u64 = 64 * MIB;
        max_memory_bytes: u64 = 256 * MIB;
        max_receipts: u64 = 65_536;
        max_waiters: u64 = 4096;
        max_loads: u64 = 256;
        workers: usize = 16;
        prefix_share_percent: u8 = 75;
        op_deadline: Duration = Duration::from_secs(60);
        shutdown_within: Duration = Duration::from_secs(30);
        inline_bytes: u32 = 256 * 1024;
        segment_bytes: u32 = 64 * 1024 * 1024;
        multipart_threshold: u64 = 16 * MIB;
        part_bytes: u64 = 8 * MIB;
        part_concurrency: usize = 4;
        attempt_floor: Duration = Duration::from_secs(10);
        min_rate_bytes: u64 = 32 * 1024;
        retry_base: Duration = Duration::from_millis(50);
        retry_cap: Duration = Duration::from_secs(20);
        retry_burst: u32 = 100;
        retry_per_second: u32 = 10;
        probe_interval: Duration = Duration::from_secs(30);
        behind_after: Duration = Duration::from_secs(60);
        signature_lifetime: Duration = Duration::from_secs(20 * 60);
        crash_limit: u32 = 3;
        recovery_window: usize = 4096;
        max_quarantined_tasks: u64 = 1000;
        max_quarantined_bytes: u64 = 1024 * MIB;
        stall_after: Duration = Duration::from_secs(30);
        io_threads: usize = 4;
    }
}

/// Everything that is wrong with a [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// The defaults, for a queue in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        use defaults as d;
        Self {
            dir: dir.into(),
            max_tasks: d::max_tasks(),
            max_bytes: d::max_bytes(),
            max_disk_bytes: d::max_disk_bytes(),
            checkpoint_tasks: d::checkpoint_tasks(),
            checkpoint_bytes: d::checkpoint_bytes(),
            max_memory_bytes: d::max_memory_bytes(),
            max_receipts: d::max_receipts(),
            max_waiters: d::max_waiters(),
            max_loads: d::max_loads(),
            workers: d::workers(),
            prefix_share_percent: d::prefix_share_percent(),
            op_deadline: d::op_deadline(),
            shutdown_within: d::shutdown_within(),
            inline_bytes: d::inline_bytes(),
            segment_bytes: d::segment_bytes(),
            on_damage: OnDamage::default(),
            multipart_threshold: d::multipart_threshold(),
            part_bytes: d::part_bytes(),
            part_concurrency: d::part_concurrency(),
            attempt_floor: d::attempt_floor(),
            min_rate_bytes: d::min_rate_bytes(),
            retry_base: d::retry_base(),
            retry_cap: d::retry_cap(),
            retry_burst: d::retry_burst(),
            retry_per_second: d::retry_per_second(),
            probe_interval: d::probe_interval(),
            max_requests_per_second: None,
            max_bytes_per_second: None,
            behind_after: d::behind_after(),
            signature_lifetime: d::signature_lifetime(),
            crash_limit: d::crash_limit(),
            recovery_window: d::recovery_window(),
            max_quarantined_tasks: d::max_quarantined_tasks(),
            max_quarantined_bytes: d::max_quarantined_bytes(),
            quarantine_expires: None,
            stall_after: d::stall_after(),
            io_threads: d::io_threads(),
            seed: None,
        }
    }

    /// Disk room of lane `Checkpoint`, on top of `max_disk_bytes`.
    pub(crate) const fn checkpoint_disk_bytes(&self) -> u64 {
        self.checkpoint_bytes
            .saturating_mul(2)
            .saturating_add(1 << 20)
    }

    /// Checks every knob and every pair that must fit together.
    ///
    /// # Errors
    /// All faults at once, each with the knob, its value and its limits.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let mut faults = Vec::new();
        let mut number = |name: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                faults.push(format!("{name} = {value} is not within {min} to {max}"));
            }
        };
        number("max_tasks", self.max_tasks, 1, 10_000_000);
        number("max_bytes", self.max_bytes, 1, 16 << 40);
        number(
            "max_disk_bytes",
            self.max_disk_bytes,
            4 * u64::from(self.segment_bytes.max(4096)),
            1 << 50,
        );
        number("checkpoint_tasks", self.checkpoint_tasks, 1, 100_000);
        number("checkpoint_bytes", self.checkpoint_bytes, 1, 1 << 40);
        number("max_memory_bytes", self.max_memory_bytes, 1, 16 << 40);
        number("max_receipts", self.max_receipts, 1, 10_000_000);
        number("max_waiters", self.max_waiters, 1, 1_000_000);
        number("max_loads", self.max_loads, 1, 100_000);
        number("workers", self.workers as u64, 1, 1024);
        number(
            "prefix_share_percent",
            u64::from(self.prefix_share_percent),
            1,
            100,
        );
        number("inline_bytes", u64::from(self.inline_bytes), 0, MIB);
        number(
            "segment_bytes",
            u64::from(self.segment_bytes),
            4096,
            1 << 30,
        );
        number(
            "multipart_threshold",
            self.multipart_threshold,
            5 * MIB,
            5 << 30,
        );
        number("part_bytes", self.part_bytes, 5 * MIB, 5 << 30);
        number("part_concurrency", self.part_concurrency as u64, 1, 64);
        number("min_rate_bytes", self.min_rate_bytes, 1, 1 << 30);
        number("retry_burst", u64::from(self.retry_burst), 1, 100_000);
        number(
            "retry_per_second",
            u64::from(self.retry_per_second),
            1,
            100_000,
        );
        if let Some(most) = self.max_requests_per_second {
            number("max_requests_per_second", u64::from(most), 1, 1_000_000);
        }
        if let Some(most) = self.max_bytes_per_second {
            number("max_bytes_per_second", most, 1024, 1 << 40);
        }
        number("crash_limit", u64::from(self.crash_limit), 1, 100);
        number("recovery_window", self.recovery_window as u64, 1, 1_000_000);
        number(
            "max_quarantined_tasks",
            self.max_quarantined_tasks,
            1,
            10_000_000,
        );
        number(
            "max_quarantined_bytes",
            self.max_quarantined_bytes,
            1,
            16 << 40,
        );
        number("io_threads", self.io_threads as u64, 1, 64);

        const DAY: Duration = Duration::from_secs(24 * 3600);
        const HOUR: Duration = Duration::from_secs(3600);
        const MS: Duration = Duration::from_millis(1);
        let mut duration = |name: &str, value: Duration, min: Duration, max: Duration| {
            if !(min..=max).contains(&value) {
                faults.push(format!(
                    "{name} = {value:?} is not within {min:?} to {max:?}"
                ));
            }
        };
        duration("op_deadline", self.op_deadline, MS, DAY);
        duration("shutdown_within", self.shutdown_within, Duration::ZERO, DAY);
        duration("attempt_floor", self.attempt_floor, MS, HOUR);
        duration("retry_base", self.retry_base, MS, HOUR);
        duration("retry_cap", self.retry_cap, MS, HOUR);
        duration(
            "signature_lifetime",
            self.signature_lifetime,
            Duration::from_secs(1),
            DAY,
        );
        duration("probe_interval", self.probe_interval, 10 * MS, HOUR);
        duration("behind_after", self.behind_after, 10 * MS, DAY);
        duration("stall_after", self.stall_after, 10 * MS, HOUR);
        if let Some(expires) = self.quarantine_expires {
            let second = Duration::from_secs(1);
            duration("quarantine_expires", expires, second, 3650 * DAY);
        }

        if self.retry_base > self.retry_cap {
            faults.push(format!(
                "retry_base = {:?} is above retry_cap = {:?}",
                self.retry_base, self.retry_cap
            ));
        }
        if self.retry_cap > self.op_deadline {
            faults.push(format!(
                "retry_cap = {:?} is above op_deadline = {:?}: nobody would see the attempt after it",
                self.retry_cap, self.op_deadline
            ));
        }
        if self.dir.as_os_str().is_empty() {
            faults.push("dir is empty".to_owned());
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigErrors(faults))
        }
    }
}

pub(crate) mod maybe_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let millis = value.map(crate::time::millis);
        millis.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(crate::time::millis(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_survive_serde() {
        let config = Config::new("q");
        assert_eq!(config.validate(), Ok(()));
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.contains("\"op_deadline_ms\":60000"));
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<Config>(r#"{"dir":"q"}"#).unwrap(),
            config
        );
        assert!(serde_json::from_str::<Config>(r#"{"dir":"q","max_task":1}"#).is_err());
    }

    #[test]
    fn all_faults_are_named_at_once_with_value_and_limit() {
        let mut config = Config::new("");
        config.max_tasks = 0;
        config.workers = 5000;
        config.segment_bytes = 100;
        config.retry_base = Duration::from_secs(60);
        config.op_deadline = Duration::from_secs(10);
        let ConfigErrors(faults) = config.validate().unwrap_err();
        assert_eq!(faults.len(), 6, "{faults:?}");
        let pair = "retry_cap = 20s is above op_deadline = 10s";
        assert!(faults.iter().any(|fault| fault.starts_with(pair)));
        assert!(faults.contains(&"max_tasks = 0 is not within 1 to 10000000".to_owned()));
        assert!(faults.contains(&"workers = 5000 is not within 1 to 1024".to_owned()));
        assert!(
            faults
                .iter()
                .any(|f| f.starts_with("retry_base = 60s is above retry_cap"))
        );
    }
}
