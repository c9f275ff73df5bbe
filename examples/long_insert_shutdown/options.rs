//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use s3_writeback::Config;

use crate::row;

const MIB: u64 = 1024 * 1024;

/// Inserts rows into a small log-structured engine, shuts it down, reads everything back from S3
/// and checks every acknowledged row.
///
/// Exit status: 0 where nothing was lost and shutdown kept its deadline, 1 where not, 2 where the
/// run could not be carried through.
#[derive(Debug, Clone, Parser)]
#[command(name = "long_insert_shutdown")]
pub struct Cli {
    /// What the rows are inserted into.
    #[arg(long, value_enum, default_value = "log")]
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
    /// Notes rows here as they are acknowledged, before their writer goes on: survives kill -9.
    #[arg(long)]
    pub ack_log: Option<PathBuf>,
    /// Opens --dir again, inserts nothing, brings S3 up to date, shuts down and checks all rows
    /// that --ack-log holds.
    #[arg(long, requires = "dir", requires = "ack_log")]
    pub resume: bool,
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Log-structured: rows are appended to segments, segments are uploaded.
    Log,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every PUT takes 200 ms longer.
    Slow,
    /// Every quarter of a second one PUT fails: by 503, by 500, by a reset before its effect, by a
    /// reset after it, in turn.
    Errors,
    /// S3 answers nothing in the middle third of the run.
    Hang,
    /// S3 stops answering just before shutdown, and is well again before the directory is opened
    /// a second time.
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
