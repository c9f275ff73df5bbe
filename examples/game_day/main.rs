//! A game day: steady load while S3 throttles, fails, hangs, refuses and is full, one after the
//! other, and the proof that nothing was lost and nothing grew.
//!
//! ```text
//! cargo run --release --example game_day
//! cargo run --release --example game_day -- --seconds 60 --json
//! ```
//!
//! Objects of 1 to 16 KiB are submitted at a steady rate, whatever S3 does; what the queue refuses
//! is counted and not pressed upon it. A reader reads back what was acknowledged. A table tells how
//! it goes; at the end a plain `aws-sdk-s3` client looks for every acknowledged object, and what
//! the queue promises of such a day is held against what was seen.
//!
//! The S3 is the embedded server, in a process of its own: the memory that is measured is the
//! queue's and its caller's.
//!
//! | file | what it is |
//! |---|---|
//! | `options` | the command line |
//! | `plan` | the phases of the day, the queue's configuration, and the bounds that follow |
//! | `serve`, `s3` | the S3 and its faults; that process as seen from this one |
//! | `object` | how keys and bytes follow from a number |
//! | `load`, `reader` | who submits, and who reads |
//! | `timeline`, `memory` | what is seen, all the time and of each phase |
//! | `audit`, `verdict` | what S3 has at the end, and which promises were kept |
//! | `report` | what is told |
#![allow(
    clippy::disallowed_methods,
    reason = "the bans are the library's: an engine brings its own tasks and threads"
)]

mod audit;
mod load;
mod memory;
mod object;
mod options;
mod plan;
mod reader;
mod report;
mod s3;
mod serve;
mod timeline;
mod verdict;

#[path = "../common/cli.rs"]
mod cli;
#[path = "../common/failure.rs"]
mod failure;

use std::process::ExitCode;

use clap::Parser as _;
use s3_writeback::UploadQueue;

use failure::Failure;
use load::Load;
use options::Cli;
use plan::{Plan, Weather};
use reader::Reader;
use report::Report;
use s3::S3;
use timeline::Timeline;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // A stall and its picture are no news on such a day: `RUST_LOG=warn` tells them.
    cli::log("error");
    cli::exit(match &cli.serve {
        Some(dir) => serve::serve(dir, cli.rate).await.map(|()| true),
        None => run(&cli).await.and_then(|report| tell(&cli, &report)),
    })
}

/// Prints the report; whether every promise was kept.
fn tell(cli: &Cli, report: &Report) -> Result<bool, Failure> {
    cli::print(report.text(), report, cli.json)?;
    Ok(report.is_good())
}

async fn run(cli: &Cli) -> Result<Report, Failure> {
    // Removed when dropped, which is after everything that uses it has ended.
    let dir = tempfile::tempdir().map_err(|error| Failure::io("a temporary directory", error))?;
    let plan = Plan::new(cli, &dir.path().join("queue"));
    let mut s3 = S3::start(&dir.path().join("s3"), cli.rate).await?;
    let remote = s3.remote().await?;
    let queue = UploadQueue::builder(plan.config.clone(), remote)
        .open()
        .await?;
    let load = Load::start(&queue, cli.rate);
    let reader = Reader::start(&queue, load.tally(), cli.reads);
    let mut timeline = Timeline::new(&plan, &queue, load.tally(), reader.tally());
    for phase in &plan.phases {
        let counted = s3.weather(phase.weather).await?;
        timeline.walk(phase, counted).await;
    }
    let counted = s3.weather(Weather::Fine).await?;
    let ends = async {
        load.stop().await?;
        reader.stop().await?;
        Ok::<_, Failure>(queue.shutdown().within(plan.shutdown_within).await?)
    };
    let shutdown = timeline.walk_to_the_end(counted, ends).await?;
    let seen = timeline.end(s3.weather(Weather::Fine).await?);
    let acknowledged = load.tally().acknowledged();
    let found = audit::audit(&s3.bucket(), &acknowledged).await?;
    s3.stop().await?;
    Ok(Report::new(
        &plan,
        seen,
        &shutdown,
        acknowledged.total(),
        found,
    ))
}
