//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// A day of everything that S3 can do to a queue, at steady load.
///
/// Exit status: 0 where every promise was kept, 1 where one was not, 2 where the day could not be
/// carried through.
#[derive(Debug, Clone, Parser)]
#[command(name = "game_day")]
pub struct Cli {
    /// How long the day is, in seconds, without shutdown and verification: all phases grow and
    /// shrink with it.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    pub seconds: u64,
    /// Submits a second. While S3 throttles, it takes half as many.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=2000))]
    pub rate: u32,
    /// Reads a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub reads: u32,
    /// Seconds between two lines of the table. By default about 60 lines come out.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub every: Option<u64>,
    /// Seeds the queue's jitter.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ends standard output with one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Is the S3 that keeps its objects in this directory: what the day itself starts.
    #[arg(long, hide = true)]
    pub serve: Option<PathBuf>,
}
