//! One life of the engine: from open to the end of shutdown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::{ShutdownReport, Snapshot, UploadQueue};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::{self, Engine};
use crate::failure::Failure;
use crate::options::Cli;
use crate::shipper::Shipped;
use crate::world::World;

/// What a shutdown may take beyond its deadline: the time to notice, and to wake who waits.
pub const GRACE: Duration = Duration::from_millis(500);

/// An open queue with a running engine on it.
pub struct Life {
    pub engine: Engine,
    pub queue: UploadQueue,
    /// Cancelled, it starts the shutdown of everything.
    pub token: CancellationToken,
    within: Duration,
}

/// How it ended.
pub struct Ended {
    pub report: Arc<ShutdownReport>,
    pub snapshot: Snapshot,
    pub shipped: Shipped,
    /// From the cancellation until the report was there, as a caller sees it.
    pub shutdown: Duration,
}

impl Life {
    /// Opens queue and engine below `dir`.
    pub async fn open(cli: &Cli, world: &World, dir: &Path) -> Result<Self, Failure> {
        let token = CancellationToken::new();
        let queue = UploadQueue::builder(cli.config(dir.join("queue")), world.remote().await?)
            .cancelled_by(&token)
            .open()
            .await?;
        let engine = Engine::open(&queue, &dir.join("log"), cli.segment_bytes)?;
        Ok(Self {
            engine,
            queue,
            token,
            within: cli.shutdown_within,
        })
    }

    /// Waits until S3 has all that this directory owed.
    pub async fn catch_up(&mut self, within: Duration) -> Result<(), Failure> {
        self.engine.caught_up().await;
        self.queue.drain().within(within).await?;
        Ok(())
    }

    /// Cancels the token and waits for the end of everything.
    pub async fn end(self) -> Result<Ended, Failure> {
        let started = Instant::now();
        self.token.cancel();
        let queue = &self.queue;
        let shut = async {
            // Joins what the token started; this deadline is the same one.
            let report = queue.shutdown().within(self.within).await?;
            Ok::<_, Failure>((report, started.elapsed()))
        };
        let (shut, unsettled) = tokio::join!(shut, self.engine.finish_in_time());
        let (report, shutdown) = shut?;
        Ok(Ended {
            report,
            snapshot: queue.snapshot(),
            shipped: engine::settle(unsettled?)?,
            shutdown,
        })
    }
}

impl Ended {
    pub fn is_in_time(&self) -> bool {
        self.shutdown <= self.report.within + GRACE
    }

    /// Whether something is durable here and not in S3.
    pub fn owes(&self) -> bool {
        self.report.deferred > 0 || self.report.undetermined > 0 || self.shipped.left > 0
    }
}
