//! Runs seeds of the simulation, or its sweep, on all cores.
//!
//! ```text
//! cargo run --release --example simulate -- --seeds 0..10000
//! cargo run --release --example simulate -- --seed 17 --log
//! cargo run --release --example simulate -- --sweep
//! cargo run --release --example simulate -- --case lost-reply@17 --log
//! cargo run --release --example simulate -- --scenarios --seeds 0..100
//! cargo run --release --example simulate -- --scenario E9 --seed 3 --log
//! ```

#![allow(
    clippy::disallowed_methods,
    reason = "how long it takes is told by the clock on the wall"
)]

mod sim;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use sim::scenarios;
use sim::sweep::{self, Case, Swept};
use sim::{Outcome, Tally};

/// Lives of a store with everything that can go wrong, by seed.
#[derive(Debug, Parser)]
struct Cli {
    /// Seeds to run: FIRST..END, without END. Without it 0..1000, and of each scenario 0..20.
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Prints all that happens: with one seed.
    #[arg(long)]
    log: bool,
    /// Threads; as many as there are cores where it is not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Goes on after a failure, and names all failed seeds at the end.
    #[arg(long)]
    go_on: bool,
    /// Instead of seeds: the same work over and over, and each time another of its calls goes
    /// wrong, until there is none left.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    sweep: bool,
    /// Of a sweep, every so manyth call only.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// One run of a sweep only: WHAT@N.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "sweep"])]
    case: Option<Case>,
    /// Instead of seeds of everything: each scenario that has a name.
    #[arg(long, conflicts_with_all = ["sweep", "case"])]
    scenarios: bool,
    /// Those of one row of the table, or the one of this name.
    #[arg(long, conflicts_with_all = ["sweep", "case", "scenarios"])]
    scenario: Option<String>,
    /// Prints simulated hours and what happened in them, by kind.
    #[arg(long)]
    hours_report: bool,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parse = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("{text:?}: {error}"))
    };
    let (first, end) = text.split_once("..").ok_or("not FIRST..END")?;
    let range = parse(first)?..parse(end)?;
    if range.is_empty() {
        return Err(format!("{text} has no seed in it"));
    }
    Ok(range)
}

/// What all threads know.
struct Shared {
    next: AtomicU64,
    end: u64,
    stop: AtomicBool,
    tally: Mutex<Tally>,
    failed: Mutex<Vec<(u64, String)>>,
    /// What each thread is at, and since when.
    running: Mutex<Vec<Option<(u64, Instant)>>>,
}

fn replay(seed: u64) -> String {
    format!("cargo run --release --example simulate -- --seed {seed} --log")
}

fn tell(seed: u64, outcome: &Outcome) {
    let Some((text, last)) = &outcome.failure else {
        return;
    };
    let mut stderr = std::io::stderr().lock();
    for line in last {
        let _ = writeln!(stderr, "  {line}");
    }
    let _ = writeln!(stderr, "seed {seed}: {text}\nreplay: {}", replay(seed));
}

fn work(shared: &Shared, cli: &Cli, nth: usize, bar: &ProgressBar) {
    while !shared.stop.load(Ordering::Relaxed) {
        let seed = shared.next.fetch_add(1, Ordering::Relaxed);
        if seed >= shared.end {
            return;
        }
        let at = |what| shared.running.lock().expect("nobody panicked")[nth] = what;
        at(Some((seed, Instant::now())));
        let outcome = sim::run(seed, cli.log);
        at(None);
        if cli.log {
            println!("the trace is {:016x}", outcome.hash);
        }
        bar.inc(1);
        if cli.log {
            println!("{} events: {:016x}", outcome.tally.events, outcome.hash);
        }
        shared
            .tally
            .lock()
            .expect("nobody panicked")
            .add(&outcome.tally);
        if cli.log {
            println!("seed {seed}: {:016x}", outcome.hash);
        }
        if let Some((text, _)) = &outcome.failure {
            tell(seed, &outcome);
            let first = text.lines().next().unwrap_or_default().to_owned();
            shared
                .failed
                .lock()
                .expect("nobody panicked")
                .push((seed, first));
            if !cli.go_on {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Names the seeds that do not end: they spin, or the clock stands still.
fn watch(shared: &Shared) {
    let mut told = BTreeSet::new();
    while !shared.stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_secs(1));
        for (seed, since) in shared
            .running
            .lock()
            .expect("nobody panicked")
            .iter()
            .flatten()
        {
            if since.elapsed() > Duration::from_secs(60) && told.insert(*seed) {
                eprintln!("seed {seed} has not ended for a minute: {}", replay(*seed));
            }
        }
    }
}

fn jobs(cli: &Cli) -> usize {
    let cores = || std::thread::available_parallelism().ok().map(usize::from);
    cli.jobs.or_else(cores).unwrap_or(1).max(1)
}

/// Each call fails once, or one of them.
fn sweep_all(cli: &Cli) -> ExitCode {
    let began = Instant::now();
    let mut swept = Swept::default();
    match cli.case {
        Some(case) => swept.add(case, sweep::run(case, cli.log)),
        None => swept = sweep::sweep(jobs(cli), |_| cli.every),
    }
    for (case, text, last) in swept.failed.iter().take(1) {
        eprintln!("  {}\n{case}: {text}", last.join("\n  "));
    }
    for (case, text, _) in &swept.failed {
        let first = text.lines().next().unwrap_or_default();
        eprintln!("{case}: {}", first.chars().take(200).collect::<String>());
        eprintln!("replay: cargo run --release --example simulate -- --case {case} --log");
    }
    for (what, calls) in &swept.struck {
        let all: u64 = calls.values().sum();
        println!("{what}: {all} calls: {calls:?}");
    }
    println!(
        "{} runs in {:.0} s, {} failures",
        swept.runs(),
        began.elapsed().as_secs_f64(),
        swept.failed.len()
    );
    match swept.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

/// Scenarios with a name, or those of one row.
fn play_all(cli: &Cli) -> ExitCode {
    let began = Instant::now();
    let which = match &cli.scenario {
        Some(what) => scenarios::of(what),
        None => scenarios::all(),
    };
    if which.is_empty() {
        eprintln!("there is no such scenario; there are:");
        for one in scenarios::all() {
            eprintln!("  {} ({})", one.name, one.rows.join(" "));
        }
        return ExitCode::from(2);
    }
    let seeds = cli.seed.map(|seed| seed..seed + 1);
    let seeds = seeds.or_else(|| cli.seeds.clone()).unwrap_or(0..20);
    let count = seeds.end - seeds.start;
    let jobs = if cli.log { 1 } else { jobs(cli) };
    let (tally, failed) = scenarios::play(&which, seeds, jobs, cli.log);
    let mut named = BTreeSet::new();
    for one in &failed {
        if named.insert(one.scenario.name) {
            eprintln!("  {}\n{}", one.last.join("\n  "), one.told());
        }
    }
    for one in &failed {
        let first = one.text.lines().next().unwrap_or_default();
        let first: String = first.chars().take(200).collect();
        eprintln!("{}, seed {}: {first}", one.scenario.name, one.seed);
    }
    println!(
        "{} scenarios, {count} seeds each, {:.1} simulated hours in {:.0} s, {} checkpoints \
         verified, {} events, {} failures",
        which.len(),
        tally.simulated.as_secs_f64() / 3600.0,
        began.elapsed().as_secs_f64(),
        tally.checked,
        tally.events,
        failed.len()
    );
    match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What a seed fails with is told with its trace.
    std::panic::set_hook(Box::new(|panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
    if cli.sweep || cli.case.is_some() {
        return sweep_all(&cli);
    }
    if cli.scenarios || cli.scenario.is_some() {
        return play_all(&cli);
    }
    let seeds = cli.seed.map(|seed| seed..seed + 1);
    let seeds = seeds.or_else(|| cli.seeds.clone()).unwrap_or(0..1000);
    let jobs = jobs(&cli);
    let count = seeds.end - seeds.start;
    let bar = match cli.log {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(count),
    };
    let style = "{elapsed_precise} {wide_bar} {pos}/{len} seeds, {eta} to go";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let shared = Shared {
        next: AtomicU64::new(seeds.start),
        end: seeds.end,
        stop: AtomicBool::new(false),
        tally: Mutex::default(),
        failed: Mutex::default(),
        running: Mutex::new(vec![None; jobs]),
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&shared));
        let (shared, cli, bar) = (&shared, &cli, &bar);
        let workers: Vec<_> = (0..jobs)
            .map(|nth| scope.spawn(move || work(shared, cli, nth, bar)))
            .collect();
        for worker in workers {
            worker.join().expect("a seed's panic is caught");
        }
        shared.stop.store(true, Ordering::Relaxed);
        watching.thread().unpark();
    });
    bar.finish_and_clear();
    let failed = shared.failed.lock().expect("nobody panicked");
    for (seed, text) in failed.iter() {
        eprintln!(
            "seed {seed}: {}",
            text.chars().take(200).collect::<String>()
        );
    }
    report(
        &cli,
        count,
        began.elapsed(),
        &shared.tally.lock().expect("nobody panicked"),
        failed.len(),
    );
    match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

fn report(cli: &Cli, seeds: u64, took: Duration, tally: &Tally, failures: usize) {
    let hours = tally.simulated.as_secs_f64() / 3600.0;
    let faults: u64 = tally.faults.values().sum();
    let crashes: u64 = ["Kill", "PowerCut", "Drop"]
        .iter()
        .filter_map(|end| tally.ends.get(*end))
        .sum();
    if cli.hours_report {
        println!("faults: {:?}", tally.faults);
        println!("ends of lives: {:?}", tally.ends);
    }
    println!(
        "{seeds} seeds, {hours:.1} simulated hours in {:.0} s, {faults} faults ({} kinds), {crashes} crashes, \
         {} taken over, {} checkpoints verified, {} events, {failures} failures",
        took.as_secs_f64(),
        tally.faults.len(),
        tally.taken_over,
        tally.checked,
        tally.events,
    );
}
