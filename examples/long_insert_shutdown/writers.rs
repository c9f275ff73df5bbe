//! The log's writers: they insert rows at a bounded rate until they are told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::acks::Acks;
use crate::engine::Commits;
use crate::failure::Failure;
use crate::options::Cli;
use crate::row;

/// Starts all writers.
pub fn start(cli: &Cli, commits: &Commits, acks: &Arc<Acks>) -> JoinSet<Result<(), Failure>> {
    let mut writers = JoinSet::new();
    for writer in 0..cli.writers {
        let (commits, acks) = (commits.clone(), Arc::clone(acks));
        let mut pace = Pace::new(cli);
        let (seed, row_bytes, rows) = (cli.seed, cli.row_bytes, u64::from(cli.commit_rows));
        writers.spawn(async move {
            let mut next = 0;
            let stop = commits.stop().clone();
            while !stop.is_cancelled() {
                let mut bytes = Vec::new();
                for id in next..next + rows {
                    row::write(&mut bytes, seed, writer, id, row_bytes);
                }
                if !commits.commit(bytes).await {
                    // Not acknowledged. Why the log failed is told where the engine ends.
                    return Ok(());
                }
                acks.note(writer, next, next + rows)
                    .map_err(|error| Failure::io("the ack log", error))?;
                next += rows;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep_until(pace.next()) => {}
                }
            }
            Ok(())
        });
    }
    writers
}

/// Waits for all of one engine's writers, after they were told to stop.
pub async fn stopped(mut writers: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

/// When a writer may go on.
pub struct Pace {
    due: Instant,
    /// What one commit takes at the writer's share of the rate.
    commit: Duration,
}

impl Pace {
    /// A writer that was held up may run ahead by this much to make up for it, not by all of it.
    const SLACK: Duration = Duration::from_secs(1);

    pub fn new(cli: &Cli) -> Self {
        let commit = match cli.rate {
            0 => 0.0,
            rate => cli.commit_bytes() as f64 * f64::from(cli.writers) / rate as f64,
        };
        Self {
            due: Instant::now(),
            commit: Duration::try_from_secs_f64(commit).unwrap_or(Duration::MAX),
        }
    }

    /// After one more commit.
    pub fn next(&mut self) -> Instant {
        let oldest = Instant::now().checked_sub(Self::SLACK).unwrap_or(self.due);
        self.due = self.due.max(oldest);
        self.due = self.due.checked_add(self.commit).unwrap_or(self.due);
        self.due
    }
}
