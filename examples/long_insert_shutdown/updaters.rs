//! The page engine's writers: they update random rows until they are told to stop.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::acks::Acks;
use crate::failure::Failure;
use crate::heap::{Heap, Writer};
use crate::options::Cli;
use crate::writers::Pace;

/// Starts all writers.
pub fn start(
    cli: &Cli,
    heap: &Heap,
    acks: &Arc<Acks>,
) -> Result<JoinSet<Result<(), Failure>>, Failure> {
    let mut writers = JoinSet::new();
    for number in 0..cli.writers {
        let updater = Updater {
            writer: heap.writer(&format!("writer {number}"))?,
            random: StdRng::seed_from_u64(cli.seed ^ (u64::from(number) + 1) << 32),
            commit_rows: cli.commit_rows,
            pace: Pace::new(cli),
            acks: Arc::clone(acks),
        };
        writers.spawn(updater.run());
    }
    Ok(writers)
}

struct Updater {
    writer: Writer,
    random: StdRng,
    commit_rows: u32,
    pace: Pace,
    acks: Arc<Acks>,
}

impl Updater {
    async fn run(mut self) -> Result<(), Failure> {
        let stop = self.writer.stop().clone();
        while !stop.is_cancelled() {
            let mut written = Vec::new();
            for _ in 0..self.commit_rows {
                let row = self.random.random_range(0..self.writer.shape().rows());
                let row = u32::try_from(row).unwrap_or(0);
                match self.writer.update(row).await? {
                    Some(version) => written.push((row, version)),
                    None => break,
                }
            }
            // What was written before the end came is committed like all else.
            if written.is_empty() || !self.writer.commit().await {
                return Ok(());
            }
            let noted = self.acks.note_versions(&written);
            noted.map_err(|error| Failure::io("the ack log", error))?;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(self.pace.next()) => {}
            }
        }
        Ok(())
    }
}
