//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use s3_writeback::{Config, StoreConfig};
use serde::Serialize;

use crate::acks::{MAX_SERIES, Series};
use crate::page::Shape;
use crate::row;

const MIB: u64 = 1024 * 1024;
/// Short, so that parts go up while they are written to as well.
const MAX_DIRTY_AGE: Duration = Duration::from_secs(1);

/// Inserts rows into a small log-structured engine, or updates rows of a small page engine, shuts
/// it down, reads everything back from S3 and checks every acknowledged row.
///
/// Exit status: 0 where nothing was lost and shutdown kept its deadline, 1 where not, 2 where the
/// run could not be carried through.
#[derive(Debug, Clone, Parser)]
#[command(name = "long_insert_shutdown")]
pub struct Cli {
    /// What the rows are inserted into.
    #[arg(long, value_enum, default_value = "page")]
    pub engine: EngineKind,
    /// How long to insert, in seconds; shutdown starts then.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Writers that insert at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub writers: u32,
    /// Bytes of a row's payload.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub row_bytes: u32,
    /// Rows that a writer commits, and that are acknowledged, together.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub commit_rows: u32,
    /// Bytes a second that all writers together insert at most; 0 inserts as fast as the disk
    /// and S3 take it. The default fills about 16 GiB in 1,000 seconds.
    #[arg(long, default_value_t = 16 * MIB)]
    pub rate: u64,
    /// Bytes of a segment: one object in S3.
    #[arg(long, default_value_t = 4 * MIB, value_parser = clap::value_parser!(u64).range(1..=1_073_741_824))]
    pub segment_bytes: u64,
    /// Segments that may wait for S3 in the queue.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub queue_tasks: u64,
    /// Their bytes.
    #[arg(long, default_value_t = 256 * MIB)]
    pub queue_bytes: u64,
    /// MiB of the page engine's file.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub page_file_mib: u64,
    /// MiB of it that may be here at one time, half of them dirty.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub cache_mib: u64,
    /// How often the page engine has a checkpoint made, in seconds; another is made at shutdown.
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub checkpoint_every: Duration,
    /// KiB of its parts, which are what is locked, uploaded and loaded: a power of two.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=1024))]
    pub part_kib: u32,
    /// Bytes of its pages: a power of two, and no more than a part.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(512..=1_048_576))]
    pub page_bytes: u32,
    /// Requests to S3 at one time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,
    /// The deadline of shutdown, in seconds.
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub shutdown_within: Duration,
    /// How long a directory that is opened again may take to bring S3 up to date, in seconds.
    #[arg(long, default_value = "600", value_parser = seconds)]
    pub drain_within: Duration,
    /// Where the log, the queue and (without --endpoint) the objects of the embedded server are
    /// kept. A temporary directory by default, removed at the end.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Seeds the rows, the queue's jitter and the faults.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// An S3 endpoint; credentials and region come from the usual AWS environment. By default an
    /// embedded server.
    #[arg(long)]
    pub endpoint: Option<String>,
    /// The bucket. It must exist where --endpoint is given.
    #[arg(long, default_value = "long-insert-shutdown")]
    pub bucket: String,
    /// All keys start with this and a slash. Nothing may be there before, unless --resume.
    #[arg(long, default_value = "harness")]
    pub prefix: String,
    /// What the embedded server does wrong.
    #[arg(long, value_enum, default_value = "none")]
    pub fault: Fault,
    /// Ends standard output with one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Answers Prometheus at this address (as 127.0.0.1:9464) while rows are inserted.
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Notes rows here as they are acknowledged, before their writer goes on: survives kill -9.
    #[arg(long)]
    pub ack_log: Option<PathBuf>,
    /// Opens --dir again, inserts nothing, brings S3 up to date, shuts down and checks all rows
    /// that --ack-log holds.
    #[arg(long, requires = "dir", requires = "ack_log")]
    pub resume: bool,
}

/// Which engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Log-structured: rows are appended to segments, segments are uploaded.
    Log,
    /// Pages: rows are updated in place, in a file that is bigger than its cache; parts of it are
    /// uploaded, evicted and loaded again, and checkpoints are made of all of it.
    #[default]
    Page,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every PUT takes 200 ms longer.
    Slow,
    /// Every quarter of a second one PUT (or with pages one PUT or GET) fails: by 503, by 500, by
    /// a reset before its effect, by a reset after it, in turn.
    Errors,
    /// S3 answers nothing in the middle third of the run.
    Hang,
    /// S3 stops answering just before shutdown, uploads first, so that something is owed to it;
    /// it is well again before the directory is opened a second time.
    HangAtShutdown,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= Duration::from_secs(24 * 3600) => Ok(duration),
        _ => Err("not within 0 and 86400 seconds".to_owned()),
    }
}

impl Cli {
    /// Bytes of one commit.
    pub fn commit_bytes(&self) -> u64 {
        u64::from(self.commit_rows) * (u64::from(self.row_bytes) + row::HEADER as u64)
    }

    /// What clap cannot see: values that do not fit each other.
    pub fn validate(&self) -> Result<(), String> {
        let largest = self.segment_bytes.max(self.commit_bytes());
        if self.queue_bytes < largest {
            return Err(format!(
                "--queue-bytes {} is less than one segment of {largest} bytes",
                self.queue_bytes
            ));
        }
        if self.engine == EngineKind::Page {
            self.validate_pages()?;
        }
        if self.checkpoint_every.is_zero() {
            return Err("--checkpoint-every must not be 0".to_owned());
        }
        if self.endpoint.is_some() && self.fault != Fault::None {
            return Err("--fault is for the embedded server, not for --endpoint".to_owned());
        }
        if self.prefix.is_empty() || self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            return Err(format!(
                "--prefix {:?} must not be empty, nor start or end with a slash",
                self.prefix
            ));
        }
        Ok(())
    }

    fn validate_pages(&self) -> Result<(), String> {
        let shape = self.shape();
        if !shape.part_bytes.is_power_of_two() {
            return Err(format!("--part-kib {} is no power of two", self.part_kib));
        }
        if !shape.page_bytes.is_power_of_two() || shape.page_bytes > shape.part_bytes {
            return Err(format!(
                "--page-bytes {} is no power of two, or more than a part of {} bytes",
                shape.page_bytes, shape.part_bytes
            ));
        }
        if shape.slots() == 0 {
            return Err(format!(
                "--row-bytes {}: no such row fits into a page of {} bytes",
                self.row_bytes, shape.page_bytes
            ));
        }
        if shape.rows() > MAX_SERIES {
            return Err(format!(
                "--page-file-mib {} has {} rows, and {MAX_SERIES} is the most",
                self.page_file_mib,
                shape.rows()
            ));
        }
        Ok(())
    }

    /// What the page engine's file is like.
    pub fn shape(&self) -> Shape {
        Shape {
            page_bytes: self.page_bytes,
            part_bytes: self.part_kib * 1024,
            file_bytes: self.page_file_mib * MIB,
            row_bytes: self.row_bytes,
        }
    }

    /// What is acknowledged, and how many of them there are.
    pub fn series(&self) -> (Series, u64) {
        match self.engine {
            EngineKind::Log => (Series::Writers, u64::from(self.writers)),
            EngineKind::Page => (Series::Rows, self.shape().rows()),
        }
    }

    /// The part store's configuration, in `dir`.
    pub fn store_config(&self, dir: PathBuf) -> StoreConfig {
        let mut config = StoreConfig::new(dir.clone());
        config.queue = self.config(dir);
        config.cache_bytes = self.cache_mib * MIB;
        config.dirty_bytes = config.cache_bytes / 2;
        config.checkpoint_cache_bytes = (config.cache_bytes / 16).max(MIB);
        config.image_bytes = config.dirty_bytes.max(MIB);
        config.max_dirty_age = MAX_DIRTY_AGE;
        config.checkpoint_every = Some(self.checkpoint_every);
        config.gc_every = Some(self.checkpoint_every * 5);
        config.retain_checkpoints = 4;
        config.checkpoint_within = self.drain_within;
        config
    }

    /// The queue's configuration, in `dir`.
    pub fn config(&self, dir: PathBuf) -> Config {
        let mut config = Config::new(dir);
        config.max_tasks = self.queue_tasks;
        config.max_bytes = self.queue_bytes;
        config.workers = usize::from(self.workers);
        // All segments are under one prefix.
        config.prefix_share_percent = 100;
        config.shutdown_within = self.shutdown_within;
        config.seed = Some(self.seed);
        config
    }
}
