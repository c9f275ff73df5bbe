//! Lives of one queue: each has a runtime of its own, and ends in a shutdown, a kill or a power
//! cut; the directory, the bucket and the wall clock go on.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::time::WallClock;
use s3_writeback::{RunOn, UploadQueue};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::support::Rig;

/// How a life ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// Shut down in order.
    Clean,
    /// `kill -9`: what was written stays.
    Kill,
    /// What was not synced is kept, dropped or torn, as the seed says.
    PowerCut(u64),
}

/// A directory, a bucket and a clock that outlive the queues.
#[derive(Debug)]
pub struct Lives {
    pub rig: Rig,
    clock: Cell<Duration>,
}

impl Lives {
    pub fn of(rig: Rig) -> Self {
        Self { rig, clock: Cell::new(Duration::from_secs(1_700_000_000)) }
    }

    /// Time passes while no queue is open.
    pub fn pass(&self, time: Duration) {
        self.clock.set(self.clock.get() + time);
    }

    /// Opens the queue, runs `life` and ends it as `end` says.
    pub fn live<T>(&self, end: End, life: impl AsyncFnOnce(&UploadQueue) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let (queue, result, passed) = runtime.block_on(async {
            let born = Instant::now();
            let clock = WallClock::starting_at(self.clock.get());
            let queue =
                UploadQueue::builder(self.rig.config.clone(), Arc::new(self.rig.remote.clone()))
                    .run_on(RunOn::Handle(Handle::current()))
                    .file_system(Arc::new(self.rig.fs.clone()), Io::inline())
                    .wall_clock(clock)
                    .open()
                    .await
                    .expect("opens");
            let week = Duration::from_secs(7 * 24 * 3600);
            let result =
                tokio::time::timeout(week, life(&queue)).await.expect("nobody waits for ever");
            if let End::Clean = end {
                let report = queue.shutdown().within(Duration::from_secs(3600)).await;
                assert!(report.expect("a report").sealed);
            }
            (queue, result, born.elapsed())
        });
        match end {
            End::Clean => (),
            // First of all, so that nothing that ends with the process reaches the disk.
            End::Kill => self.rig.fs.kill(),
            End::PowerCut(seed) => self.rig.fs.crash(seed),
        }
        drop(runtime);
        drop(queue);
        self.clock.set(self.clock.get() + passed);
        result
    }
}
