//! The main job: long inserts, then a shutdown, then the proof that nothing was lost.
//!
//! ```text
//! cargo run --release --example long_insert_shutdown
//! cargo run --release --example long_insert_shutdown -- --engine page
//! ```
//!
//! Writers insert rows into a small log-structured engine that keeps its segments in S3 through
//! an `UploadQueue`. After `--seconds` a token is cancelled, the engine hands over its last
//! partial segment and its manifest through a shutdown hold, and the queue drains, stops and
//! seals. Then a plain `aws-sdk-s3` client reads the bucket and every acknowledged row is looked
//! for. Where S3 was away at the end, the directory is opened a second time first.
//!
//! With `--engine page` writers update rows in pages of a file that is bigger than the cache of
//! the `PartStore` that keeps it: its parts go up, are evicted and loaded again all the time.
//! Afterwards the local bytes of all parts are taken away, the store is opened once more, and the
//! last acknowledged version of every row is looked for. Where S3 was away at the end, or the
//! process was killed, all is read once before as well, from the directory.
//!
//! | file | what it is |
//! |---|---|
//! | `options` | the command line |
//! | `row` | how a row follows from its id, and its format |
//! | `log` | segments on the local disk |
//! | `engine` | group commit, and how the log engine ends |
//! | `shipper` | sealed segments to the queue, with a hold and receipts |
//! | `page` | where a row is in pages and parts, and their format |
//! | `heap` | part locks, updates, group sync, and how the page engine ends |
//! | `writers`, `updaters`, `acks` | who inserts, who updates, and what was acknowledged |
//! | `world`, `faults` | the S3, and what it does wrong |
//! | `life` | from open to the end of shutdown, of either engine |
//! | `metrics` | what the queue says of itself, for Prometheus |
//! | `verify`, `audit`, `report` | the proof for the log, for pages, and what is told |
//!
//! To use the crate in an engine of your own, `shipper`, `heap` and `life` are the ones to read.
#![allow(
    clippy::disallowed_methods,
    reason = "the bans are the library's: an engine brings its own tasks and threads"
)]

mod acks;
mod audit;
mod engine;
mod faults;
mod heap;
mod life;
mod log;
mod metrics;
mod options;
mod page;
mod progress;
mod report;
mod row;
mod shipper;
mod updaters;
mod verify;
mod world;
mod writers;

#[path = "../common/cli.rs"]
mod cli;
#[path = "../common/failure.rs"]
mod failure;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use tokio::time::Instant;

use acks::{Acknowledged, Acks, Series};
use failure::Failure;
use faults::Weather;
use life::{Ended, Life};
use metrics::Exporter;
use options::{Cli, EngineKind};
use report::Report;
use verify::Source;
use world::World;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(text) = cli.validate() {
        Cli::command()
            .error(clap::error::ErrorKind::ValueValidation, text)
            .exit();
    }
    cli::log("warn");
    cli::exit(run(&cli).await.and_then(|report| tell(&cli, &report)))
}

/// Prints the report; whether the run was good.
fn tell(cli: &Cli, report: &Report) -> Result<bool, Failure> {
    cli::print(report.text(), report, cli.json)?;
    Ok(report.is_good())
}

async fn run(cli: &Cli) -> Result<Report, Failure> {
    let started = Instant::now();
    // Removed when dropped, which is after everything that uses it has ended.
    let (_temporary, dir): (_, PathBuf) = match &cli.dir {
        Some(dir) => (None, dir.clone()),
        None => {
            let dir =
                tempfile::tempdir().map_err(|error| Failure::io("a temporary directory", error))?;
            let path = dir.path().to_owned();
            (Some(dir), path)
        }
    };
    let world = World::start(cli, &dir.join("s3")).await?;
    let mut report = Report {
        engine: cli.engine,
        ..Report::default()
    };
    let (mut last, acknowledged, mut weather) = if cli.resume {
        resume(cli, &world, &dir, &mut report).await?
    } else {
        insert(cli, &world, &dir).await?
    };
    report.add_life(&last);
    // S3 is well again.
    if let Some(weather) = &mut weather {
        weather.clear();
    }
    if last.owes() {
        read_here(cli, &world, &dir, &acknowledged, &mut report).await?;
        let mut life = Life::open(cli, &world, &dir).await?;
        life.catch_up(cli.drain_within).await?;
        last = life.end().await?;
        report.add_life(&last);
    }
    if let Some(puts) = world.puts() {
        report.puts = puts;
    }
    let verdict = match cli.engine {
        EngineKind::Log => verify::verify(&world.bucket(), &acknowledged).await?,
        EngineKind::Page => {
            let from = match last.is_clean() {
                true => Source::S3,
                false => Source::Directory,
            };
            audit::audit(cli, &world, &dir, &acknowledged, from).await?
        }
    };
    report.add_verdict(&acknowledged, &verdict);
    report.peak_rss_bytes = report::peak_rss_bytes();
    report.seconds = started.elapsed().as_secs_f64();
    if let Some(server) = &world.server {
        server.stop().await;
    }
    Ok(report)
}

/// Reads what a life left of the page engine, before anything else is done about it: the log's
/// rows are read when S3 has them.
async fn read_here(
    cli: &Cli,
    world: &World,
    dir: &Path,
    acknowledged: &Acknowledged,
    report: &mut Report,
) -> Result<(), Failure> {
    if cli.engine == EngineKind::Page {
        let verdict = audit::audit(cli, world, dir, acknowledged, Source::Directory).await?;
        report.add_verdict(acknowledged, &verdict);
    }
    Ok(())
}

type First = (Ended, Acknowledged, Option<Weather>);

/// The life that inserts.
async fn insert(cli: &Cli, world: &World, dir: &Path) -> Result<First, Failure> {
    world.bucket().must_be_empty().await?;
    let life = Life::open(cli, world, dir).await?;
    if life.had_rows() {
        life.end().await?;
        return Err(Failure::Usage(format!(
            "{} has rows of an earlier run: give --resume, or another --dir",
            dir.display()
        )));
    }
    let (kind, count) = cli.series();
    let acks = Acks::start(cli.ack_log.as_deref(), cli.seed, cli.row_bytes, kind, count)?;
    let acks = Arc::new(acks);
    let inserting = Duration::from_secs(cli.seconds);
    let weather = world
        .server
        .as_ref()
        .map(|server| Weather::start(server.faults().clone(), cli.fault, cli.engine, inserting));
    let writers = life.writers(cli, &acks)?;
    let _exporter = match cli.metrics {
        Some(at) => Some(Exporter::start(at, life.figures(&acks)).await?),
        None => None,
    };
    let bar = progress::show(inserting, life.progress(&acks));
    // Whichever comes first: the end of the time, or somebody who starts the shutdown by hand.
    tokio::select! {
        () = bar => {}
        () = life.token.cancelled() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    if let Some(weather) = &weather {
        // One commit more than there are writers: one of them was begun after uploads hung.
        let more = u64::from(cli.commit_rows) * (u64::from(cli.writers) + 1);
        let acknowledged = || acks.updates();
        weather.shutdown_begins(cli.fault, acknowledged, more).await;
    }
    let hurry = on_second_signal(&life);
    let (ended, stopped) = tokio::join!(life.end(), writers::stopped(writers));
    hurry.abort();
    stopped?;
    let acknowledged = acks.acknowledged(cli.seed, cli.row_bytes);
    Ok((ended?, acknowledged, weather))
}

/// Once shutdown is under way, one more ctrl-c moves it to its end.
fn on_second_signal(life: &Life) -> tokio::task::JoinHandle<()> {
    let queue = life.queue.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            queue.hurry();
        }
    })
}

/// The life that inserts nothing.
async fn resume(
    cli: &Cli,
    world: &World,
    dir: &Path,
    report: &mut Report,
) -> Result<First, Failure> {
    let acknowledged = match &cli.ack_log {
        Some(path) => acks::read(path)?,
        None => return Err(Failure::Usage("--resume needs --ack-log".to_owned())),
    };
    let (kind, count) = cli.series();
    let counters = acknowledged.counters.len() as u64;
    // The log's writers may be more or fewer this time.
    if acknowledged.kind != kind || (kind == Series::Rows && counters != count) {
        return Err(Failure::Usage(
            "--ack-log is of a run with another --engine or another shape of pages".to_owned(),
        ));
    }
    read_here(cli, world, dir, &acknowledged, report).await?;
    let mut life = Life::open(cli, world, dir).await?;
    life.catch_up(cli.drain_within).await?;
    Ok((life.end().await?, acknowledged, None))
}
