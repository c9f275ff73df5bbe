//! Looks at the directory of a queue or a part store: what is owed, what failed and how, what is
//! suspected of crashes. Changes nothing, takes no lock, asks nothing of S3: also beside the
//! process that has it open, and after one that crashes whenever it opens it.
//!
//! ```text
//! cargo run --no-default-features --example inspect -- /var/lib/engine/queue [--json]
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use s3_writeback::Inspection;
use s3_writeback::inspect::{InspectedFile, InspectedTask};

/// What is in the directory of a queue or a part store.
#[derive(Debug, Parser)]
struct Arguments {
    /// The directory.
    dir: PathBuf,
    /// Everything, as JSON.
    #[arg(long)]
    json: bool,
    /// Tasks and files that are listed; there may be many.
    #[arg(long, default_value_t = 100)]
    most: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let found = match s3_writeback::inspect(&arguments.dir) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        match serde_json::to_string(&found) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        print(&found, arguments.most);
    }
    ExitCode::SUCCESS
}

fn print(found: &Inspection, most: usize) {
    let what = match found.is_part_store {
        true => "part store",
        false => "queue",
    };
    let ended = match found.clean {
        true => "shut down in order",
        false => "in use, or not shut down",
    };
    println!("{}: a {what}, {ended}", found.dir.display());
    if let Some(holder) = &found.last_holder {
        println!("last opened by {holder}");
    }
    if let Some(id) = &found.journal_id {
        println!("journal {id}");
    }
    if found.moved {
        println!("it is a copy, or was moved: it sends nothing until it is adopted");
    }
    if let Some(number) = found.unfinished_restore {
        println!("a restore of checkpoint {number} was begun, and not ended");
    }
    if let Some(stand) = &found.stand {
        let number = |number: Option<u64>| number.map_or("none".to_owned(), |n| n.to_string());
        let (checkpoint, epoch) = (number(stand.checkpoint), number(stand.epoch));
        println!("checkpoint {checkpoint}, epoch {epoch}");
        if let Some(attempt) = stand.attempt {
            println!("checkpoint {attempt} was about to be committed");
        }
        if stand.fenced {
            println!("another has claimed its prefix");
        }
    }
    println!(
        "{} tasks, {} bytes: {} in quarantine, {} suspected of a crash",
        found.tasks.len(),
        found.task_bytes,
        found.quarantined,
        found.suspects
    );
    for task in found.tasks.iter().take(most) {
        print_task(task);
    }
    rest(found.tasks.len(), most);
    if !found.files.is_empty() {
        println!("{} files", found.files.len());
    }
    for file in found.files.iter().take(most) {
        print_file(file);
    }
    rest(found.files.len(), most);
    for request in &found.given_up {
        let until = request.until_unix_ms;
        println!("given up on {:?}, may land until {until} ms", request.key);
    }
    for abort in &found.aborts {
        let id = abort.upload_id.as_deref().unwrap_or("(any)");
        println!("to be aborted on {:?}: upload {id}", abort.key);
    }
    for damage in &found.damage {
        let (segment, at, len) = (damage.segment, damage.offset, damage.len);
        println!(
            "DAMAGE: {len} bytes at {at} of segment {segment}: {}",
            damage.what
        );
    }
    for record in &found.unreadable {
        println!(
            "cannot be read: record {} of kind {}",
            record.location, record.kind
        );
    }
    for (name, size) in &found.folders {
        println!("{name}: {} files, {} bytes", size.files, size.bytes);
    }
}

fn rest(all: usize, most: usize) {
    if all > most {
        println!("  ... and {} more (--most, --json)", all - most);
    }
}

fn print_task(task: &InspectedTask) {
    let does = if task.deletes { "delete" } else { "upload" };
    let state = match &task.quarantined {
        Some(cause) => format!("QUARANTINED {cause:?}"),
        None if task.in_flight => "in flight".to_owned(),
        None if !task.after.is_empty() => format!("after {:?}", task.after),
        None => "waits".to_owned(),
    };
    let suspect = if task.suspect { ", SUSPECT" } else { "" };
    println!(
        "  {} {does} {:?} ({} bytes, {:?}): {state}{suspect}; crashes {}, failed at least {} times",
        task.task, task.key, task.len, task.lane, task.crashes, task.attempts_failed
    );
    if let Some(error) = &task.last_error {
        println!("    {error}");
    }
}

fn print_file(file: &InspectedFile) {
    println!(
        "  file {}: {} bytes in parts of {}; {} dirty parts, {} of them trusted; {} header records",
        file.file,
        file.len,
        file.part_bytes,
        file.dirty_parts,
        file.trusted_parts,
        file.header_records
    );
    if file.fsync_failed {
        println!("    an fsync of it FAILED");
    }
    if let Some(problem) = &file.problem {
        println!("    {problem}");
    }
}
