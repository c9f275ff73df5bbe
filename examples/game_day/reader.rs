//! Who reads what was acknowledged, wherever it is: one read at a time, so that what S3 does not
//! answer does not pile up here either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use s3_writeback::UploadQueue;
use s3_writeback::error::Error;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::load::Tally;
use crate::object::{self, Object};

/// How long a read may take before it counts as failed.
const WITHIN: Duration = Duration::from_secs(2);

/// What came of reads so far.
#[derive(Debug, Default)]
pub struct Reads {
    pub right: AtomicU64,
    /// No answer: S3 has it, and did not give it in time.
    pub failed: AtomicU64,
}

pub struct Reader {
    reads: Arc<Reads>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Reader {
    /// Starts up to `rate` reads a second. What is wrong is a fault of `tally`.
    pub fn start(queue: &UploadQueue, tally: &Arc<Tally>, rate: u32) -> Self {
        let (reads, stop) = (Arc::new(Reads::default()), CancellationToken::new());
        let (queue, tally) = (queue.clone(), Arc::clone(tally));
        let (counts, stopped) = (Arc::clone(&reads), stop.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = read(&queue, &tally, &counts, rate) => {}
            }
        });
        Self { reads, stop, task }
    }

    pub fn tally(&self) -> &Arc<Reads> {
        &self.reads
    }

    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn read(queue: &UploadQueue, tally: &Tally, reads: &Reads, rate: u32) {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut dice = 0;
    loop {
        tick.tick().await;
        let Some(number) = object::mix(&mut dice).checked_rem(tally.acknowledged().objects) else {
            continue;
        };
        let object = Object::Once(number);
        let key = object.key();
        match queue.get(&key, None).within(WITHIN).await {
            Ok(bytes) if bytes == object.body() => {
                reads.right.fetch_add(1, Ordering::Relaxed);
            }
            Ok(bytes) => tally.fault(format!("{key}: other {} bytes were read", bytes.len())),
            Err(error @ (Error::NotFound { .. } | Error::OutOfRange { .. })) => {
                tally.fault(format!("{key} was acknowledged: {error}"));
            }
            Err(_) => {
                reads.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
