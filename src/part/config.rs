//! How a part store behaves: every knob with its unit, default and limits.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigErrors};

const MIB: u64 = 1024 * 1024;

/// The smallest part, in bytes.
pub const MIN_PART_BYTES: u32 = 4 * 1024;
/// The largest part, in bytes.
pub const MAX_PART_BYTES: u32 = 16 * 1024 * 1024;
/// The part size of a file that does not say, in bytes.
pub const DEFAULT_PART_BYTES: u32 = 64 * 1024;

/// Whether the prefix is claimed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fencing {
    /// Every open claims an epoch by a conditional PUT of `head`: an owner before it changes
    /// nothing that anyone reads any more. Needs a server that honours conditions, which is tried
    /// out.
    #[default]
    On,
    /// Nothing is claimed: only for servers that ignore conditions, and where something else
    /// makes sure that there is one owner. Two at one time undo each other's checkpoints; and so does
    /// a change of `head` of one owner's that was given up and lands late.
    Off,
}

impl Fencing {
    pub(crate) const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

/// How a [`PartStore`](crate::PartStore) behaves. `StoreConfig::new(dir)` gives the defaults.
///
/// ```
/// use s3_writeback::StoreConfig;
///
/// let mut config = StoreConfig::new("/var/lib/engine/store");
/// config.cache_bytes = 8 << 30;
/// config.dirty_bytes = 2 << 30;
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The queue under the store, with its directory, journal, workers and shutdown.
    pub queue: Config,
    /// Bytes of parts that may be here at one time: the local files take that much disk. Default
    /// 1 GiB; 4 KiB to 1 PiB.
    #[serde(default = "defaults::cache_bytes")]
    pub cache_bytes: u64,
    /// Room in the cache on top of that, for parts that lockers of role `Checkpointer` load.
    /// Default 32 MiB; 4 KiB to 1 TiB, and at least one part of every file.
    #[serde(default = "defaults::checkpoint_cache_bytes")]
    pub checkpoint_cache_bytes: u64,
    /// Bytes of parts that S3 may be behind by: a write to a part that is clean waits while this
    /// much is dirty. Uploads begin at half of it. Default 512 MiB; 4 KiB to `cache_bytes`.
    #[serde(default = "defaults::dirty_bytes")]
    pub dirty_bytes: u64,
    /// A part that is dirty for this long goes up whatever else. Default 10 s; 1 ms to 1 day.
    #[serde(
        default = "defaults::max_dirty_age",
        rename = "max_dirty_age_ms",
        with = "crate::config::millis"
    )]
    pub max_dirty_age: Duration,
    /// Bytes of images in memory on their way to S3, back-off included. Default 64 MiB; 4 KiB to
    /// 1 TiB, and at least one part of every file.
    #[serde(default = "defaults::image_bytes")]
    pub image_bytes: u64,
    /// Bytes of images that travel in one object: what is dirty together goes up together, in as
    /// few requests as this allows; a larger part is alone in its object. Default 8 MiB; 4 KiB to
    /// 1 GiB; no more than a quarter of `image_bytes` is used.
    #[serde(default = "defaults::pack_bytes")]
    pub pack_bytes: u64,
    /// Callers that may wait for part locks at one time; one more is refused. Default 65,536; 1 to
    /// 10,000,000.
    #[serde(default = "defaults::max_lock_waiters")]
    pub max_lock_waiters: u64,
    /// Files at one time. Default 10,000; 1 to 1,000,000. Each has a file descriptor.
    #[serde(default = "defaults::max_files")]
    pub max_files: u64,
    /// Header records in the journal, of all files, beyond which those of the file with most are
    /// written down in a snapshot. Each takes up to 1 KiB of disk, on top of the queue's
    /// `max_disk_bytes`. Default 65,536; 64 to 1,000,000.
    #[serde(default = "defaults::max_header_records")]
    pub max_header_records: u64,
    /// Bytes that one step of a guard set may write. Default 16 MiB; 4 KiB to 1 GiB.
    #[serde(default = "defaults::max_step_bytes")]
    pub max_step_bytes: u64,
    /// Whether the prefix is claimed before anything is sent, so that of two owners one is fenced.
    /// Default [`Fencing::On`].
    #[serde(default)]
    pub fencing: Fencing,
    /// How long an open waits for its claim. A directory that has owned the prefix opens without
    /// it, and claims later. Default 30 s; 1 ms to 1 hour.
    #[serde(
        default = "defaults::claim_within",
        rename = "claim_within_ms",
        with = "crate::config::millis"
    )]
    pub claim_within: Duration,
    /// How often it is looked whether another has claimed the prefix. Default 10 s; 1 ms to 1
    /// hour.
    #[serde(
        default = "defaults::look_at_head",
        rename = "look_at_head_ms",
        with = "crate::config::millis"
    )]
    pub look_at_head: Duration,
    /// A checkpoint is made this long after the last, if anything has changed; `None`: only where
    /// one is asked for, or due by bytes. Default 5 min; 1 ms to 1 year.
    #[serde(
        default = "defaults::checkpoint_every",
        rename = "checkpoint_every_ms",
        with = "crate::config::maybe_millis"
    )]
    pub checkpoint_every: Option<Duration>,
    /// A checkpoint is made when so many bytes were written since the last; `None`: not by bytes.
    /// Default 4 GiB; at least 4 KiB.
    #[serde(default = "defaults::checkpoint_after_bytes")]
    pub checkpoint_after_bytes: Option<u64>,
    /// How long a checkpoint may take, whoever asked for it: then its line is given up, and the
    /// next draws another. Default 10 min; 1 ms to 1 day.
    #[serde(
        default = "defaults::checkpoint_within",
        rename = "checkpoint_within_ms",
        with = "crate::config::millis"
    )]
    pub checkpoint_within: Duration,
    /// Whether shutdown makes a last checkpoint. Default `true`.
    #[serde(default = "defaults::checkpoint_at_shutdown")]
    pub checkpoint_at_shutdown: bool,
    /// Memory for images that are set aside because their parts are written to before they are
    /// captured for a checkpoint; the rest goes to a local file. Default 16 MiB; up to 1 TiB.
    #[serde(default = "defaults::aside_memory")]
    pub aside_memory: u64,
    /// Checkpoints that are kept, the latest included. Default 8; 1 to 1,000.
    #[serde(default = "defaults::retain_checkpoints")]
    pub retain_checkpoints: usize,
    /// Checkpoints that are older are not kept, but for the latest, by this machine's clock.
    /// Default 30 days; 1 s to 100 years.
    #[serde(
        default = "defaults::retain_age",
        rename = "retain_age_ms",
        with = "crate::config::millis"
    )]
    pub retain_age: Duration,
    /// How long what another owner uploaded and never committed is kept for it once the prefix was
    /// taken over, by the server's dates. Default 7 days; 0 to 100 years.
    #[serde(
        default = "defaults::stranded_retention",
        rename = "stranded_retention_ms",
        with = "crate::config::millis"
    )]
    pub stranded_retention: Duration,
    /// How often garbage is looked for; `None`: only where it is asked for. Default 10 min; 1 ms to
    /// 1 year.
    #[serde(
        default = "defaults::gc_every",
        rename = "gc_every_ms",
        with = "crate::config::maybe_millis"
    )]
    pub gc_every: Option<Duration>,
    /// An object of which less than this is needed has that written anew, so that it can go.
    /// Default 25 %; 0 (never) to 90.
    #[serde(default = "defaults::sparse_percent")]
    pub sparse_percent: u8,
    /// Bytes that one look for garbage has written anew at most. Default 64 MiB; up to 1 TiB.
    #[serde(default = "defaults::sparse_bytes")]
    pub sparse_bytes: u64,
    /// How long each read, write and sync waits where its caller does not say. Default 10 min;
    /// 1 ms to 1 day.
    #[serde(
        default = "defaults::io_deadline",
        rename = "io_deadline_ms",
        with = "crate::config::millis"
    )]
    pub io_deadline: Duration,
    /// How often those who wait are looked at for deadlocks. Default 100 ms; 1 ms to 1 min.
    #[serde(
        default = "defaults::deadlock_timeout",
        rename = "deadlock_timeout_ms",
        with = "crate::config::millis"
    )]
    pub deadlock_timeout: Duration,
}

mod defaults {
    use super::{Duration, MIB};

    macro_rules! defaults {
        ($($name:ident: $type:ty = $value:expr;)*) => {
            $(pub(super) const fn $name() -> $type { $value })*
        };
    }

    defaults! {
        cache_bytes: u64 = 1024 * MIB;
        checkpoint_cache_bytes: u64 = 32 * MIB;
        dirty_bytes: u64 = 512 * MIB;
        max_dirty_age: Duration = Duration::from_secs(10);
        image_bytes: u64 = 64 * MIB;
        pack_bytes: u64 = 8 * MIB;
        max_lock_waiters: u64 = 65_536;
        max_files: u64 = 10_000;
        max_header_records: u64 = 65_536;
        max_step_bytes: u64 = 16 * MIB;
        claim_within: Duration = Duration::from_secs(30);
        look_at_head: Duration = Duration::from_secs(10);
        checkpoint_every: Option<Duration> = Some(Duration::from_secs(300));
        checkpoint_after_bytes: Option<u64> = Some(4096 * MIB);
        checkpoint_within: Duration = Duration::from_secs(600);
        checkpoint_at_shutdown: bool = true;
        aside_memory: u64 = 16 * MIB;
        retain_checkpoints: usize = 8;
        retain_age: Duration = Duration::from_secs(30 * 24 * 3600);
        stranded_retention: Duration = Duration::from_secs(7 * 24 * 3600);
        gc_every: Option<Duration> = Some(Duration::from_secs(600));
        sparse_percent: u8 = 25;
        sparse_bytes: u64 = 64 * MIB;
        io_deadline: Duration = Duration::from_secs(600);
        deadlock_timeout: Duration = Duration::from_millis(100);
    }
}

impl StoreConfig {
    /// The defaults, for a store in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        use defaults as d;
        Self {
            queue: Config::new(dir),
            cache_bytes: d::cache_bytes(),
            checkpoint_cache_bytes: d::checkpoint_cache_bytes(),
            dirty_bytes: d::dirty_bytes(),
            max_dirty_age: d::max_dirty_age(),
            image_bytes: d::image_bytes(),
            pack_bytes: d::pack_bytes(),
            max_lock_waiters: d::max_lock_waiters(),
            max_files: d::max_files(),
            max_header_records: d::max_header_records(),
            max_step_bytes: d::max_step_bytes(),
            fencing: Fencing::default(),
            claim_within: d::claim_within(),
            look_at_head: d::look_at_head(),
            checkpoint_every: d::checkpoint_every(),
            checkpoint_after_bytes: d::checkpoint_after_bytes(),
            checkpoint_within: d::checkpoint_within(),
            checkpoint_at_shutdown: d::checkpoint_at_shutdown(),
            aside_memory: d::aside_memory(),
            retain_checkpoints: d::retain_checkpoints(),
            retain_age: d::retain_age(),
            stranded_retention: d::stranded_retention(),
            gc_every: d::gc_every(),
            sparse_percent: d::sparse_percent(),
            sparse_bytes: d::sparse_bytes(),
            io_deadline: d::io_deadline(),
            deadlock_timeout: d::deadlock_timeout(),
        }
    }

    /// Checks every knob and every pair that must fit together, the queue's too.
    ///
    /// # Errors
    /// All faults at once, each with the knob, its value and its limits.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let mut faults = match self.queue.validate() {
            Ok(()) => Vec::new(),
            Err(ConfigErrors(faults)) => faults,
        };
        let least = u64::from(MIN_PART_BYTES);
        for (name, value, min, max) in [
            ("cache_bytes", self.cache_bytes, least, 1 << 50),
            (
                "checkpoint_cache_bytes",
                self.checkpoint_cache_bytes,
                least,
                1 << 40,
            ),
            ("dirty_bytes", self.dirty_bytes, least, 1 << 50),
            ("image_bytes", self.image_bytes, least, 1 << 40),
            ("pack_bytes", self.pack_bytes, least, 1 << 30),
            ("max_lock_waiters", self.max_lock_waiters, 1, 10_000_000),
            ("max_files", self.max_files, 1, 1_000_000),
            ("max_header_records", self.max_header_records, 64, 1_000_000),
            ("max_step_bytes", self.max_step_bytes, least, 1 << 30),
            ("aside_memory", self.aside_memory, 0, 1 << 40),
            (
                "checkpoint_after_bytes",
                self.checkpoint_after_bytes.unwrap_or(least),
                least,
                1 << 60,
            ),
            (
                "retain_checkpoints",
                self.retain_checkpoints as u64,
                1,
                1000,
            ),
            ("sparse_percent", self.sparse_percent.into(), 0, 90),
            ("sparse_bytes", self.sparse_bytes, 0, 1 << 40),
        ] {
            if !(min..=max).contains(&value) {
                faults.push(format!("{name} = {value} is not within {min} to {max}"));
            }
        }
        let day = Duration::from_secs(24 * 3600);
        let hour = Duration::from_secs(3600);
        let year = 365 * day;
        let ms = Duration::from_millis(1);
        for (name, value, max) in [
            ("max_dirty_age", self.max_dirty_age, day),
            ("io_deadline", self.io_deadline, day),
            ("claim_within", self.claim_within, hour),
            ("look_at_head", self.look_at_head, hour),
            ("checkpoint_within", self.checkpoint_within, day),
            (
                "checkpoint_every",
                self.checkpoint_every.unwrap_or(ms),
                year,
            ),
            ("gc_every", self.gc_every.unwrap_or(ms), year),
            ("retain_age", self.retain_age, 100 * year),
            (
                "stranded_retention",
                self.stranded_retention.max(ms),
                100 * year,
            ),
            (
                "deadlock_timeout",
                self.deadlock_timeout,
                Duration::from_secs(60),
            ),
        ] {
            if !(ms..=max).contains(&value) {
                faults.push(format!(
                    "{name} = {value:?} is not within {ms:?} to {max:?}"
                ));
            }
        }
        if self.dirty_bytes > self.cache_bytes {
            faults.push(format!(
                "dirty_bytes = {} is above cache_bytes = {}",
                self.dirty_bytes, self.cache_bytes
            ));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigErrors(faults))
        }
    }

    /// Bytes of images that go into one object.
    pub(crate) fn pack_target(&self) -> u64 {
        self.pack_bytes.min(self.image_bytes / 4)
    }

    /// The largest part that a file of this store can have.
    #[must_use]
    pub fn max_part_bytes(&self) -> u64 {
        u64::from(MAX_PART_BYTES)
            .min(self.cache_bytes)
            .min(self.dirty_bytes)
            .min(self.image_bytes)
            .min(self.checkpoint_cache_bytes)
    }
}
