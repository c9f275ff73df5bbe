//! From sealed segments to S3: the part of the engine that talks to the queue.
//!
//! Owns: the shutdown hold, the receipts of what is not in S3 yet, and the removal of local files
//! whose objects are. Does not own: retries, order or durability of uploads: that is the queue's.
//!
//! 1. A local segment is removed only after its receipt said `Uploaded`.
//! 2. Every sealed segment is submitted before the hold is dropped, or stays a local file that
//!    the next open submits.
//! 3. The manifest goes `after` every segment it counts: who reads it finds all of them.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::PathBuf;

use s3_writeback::{
    Body, Condition, Error, Options, Receipt, Settlement, ShutdownHold, UploadQueue,
};
use tokio::sync::{mpsc, oneshot};

use crate::log;

/// Where the objects of an engine are.
#[derive(Debug, Clone, Copy)]
pub struct Keys;

impl Keys {
    pub const SEGMENTS: &'static str = "segments/";
    pub const MANIFESTS: &'static str = "manifests/";

    pub fn segment(number: u64) -> String {
        format!("{}{number:08}", Self::SEGMENTS)
    }

    /// The manifest that counts this many segments.
    pub fn manifest(segments: u64) -> String {
        format!("{}{segments:08}", Self::MANIFESTS)
    }
}

/// What a manifest says.
pub fn manifest(segments: u64) -> String {
    format!("{{\"version\":1,\"segments\":{segments}}}\n")
}

/// What was done with the segments of one life of the engine.
#[derive(Debug, Default)]
pub struct Shipped {
    /// Segments that are sealed here and that the queue did not take before it shut down.
    pub left: u64,
    /// Segments, or the manifest, that ended other than in S3 or deferred.
    pub failed: Vec<String>,
}

/// Submits what is sealed.
pub struct Shipper {
    pub queue: UploadQueue,
    pub hold: ShutdownHold,
    pub dir: PathBuf,
    /// Sealed segments that were found when the log was opened.
    pub found: Vec<u64>,
}

/// What is submitted and not settled.
struct Submitted {
    /// `None` is the manifest.
    segment: Option<u64>,
    key: String,
    receipt: Receipt,
}

/// What is known until the queue has shut down, and settled with its help then.
pub struct Unsettled {
    dir: PathBuf,
    submitted: VecDeque<Submitted>,
    shipped: Shipped,
}

impl Shipper {
    /// Runs until `sealed` is closed, then submits the manifest and drops the hold. `caught_up`
    /// is told when all that was found at open is submitted.
    pub async fn run(
        self,
        mut sealed: mpsc::Receiver<u64>,
        segments: oneshot::Receiver<u64>,
        caught_up: oneshot::Sender<()>,
    ) -> io::Result<Unsettled> {
        let Self {
            queue,
            hold,
            dir,
            found,
        } = self;
        let mut state = Unsettled {
            dir,
            submitted: VecDeque::new(),
            shipped: Shipped::default(),
        };
        // What the queue's journal has is not submitted again: it goes up by itself.
        let mut owed: HashMap<String, Receipt> = queue
            .pending()
            .into_iter()
            .map(|task| (task.key, task.receipt))
            .collect();
        for number in found {
            let key = Keys::segment(number);
            match owed.remove(&key) {
                Some(receipt) => state.submitted.push_back(Submitted {
                    segment: Some(number),
                    key,
                    receipt,
                }),
                None => state.ship(&queue, &hold, Some(number), key).await,
            }
        }
        // Nobody may care.
        let _ = caught_up.send(());
        while let Some(number) = sealed.recv().await {
            state
                .ship(&queue, &hold, Some(number), Keys::segment(number))
                .await;
            state.reap()?;
        }
        // A manifest of a log that failed would count what may not be there.
        if let Ok(segments) = segments.await
            && segments > 0
        {
            let key = Keys::manifest(segments);
            match owed.remove(&key) {
                Some(receipt) => state.submitted.push_back(Submitted {
                    segment: None,
                    key,
                    receipt,
                }),
                None if state.shipped.left == 0 => state.ship(&queue, &hold, None, key).await,
                None => {}
            }
        }
        drop(hold);
        Ok(state)
    }
}

impl Unsettled {
    /// Submits one segment, or the manifest, through the hold: also while shutdown waits for it.
    async fn ship(
        &mut self,
        queue: &UploadQueue,
        hold: &ShutdownHold,
        segment: Option<u64>,
        key: String,
    ) {
        loop {
            let mut options = Options {
                // After a crash a segment may be in S3 already, and the record of it gone: the
                // same bytes under its key are no conflict.
                condition: Some(Condition::IfAbsent { same_is_ok: true }),
                ..Options::default()
            };
            let body = match segment {
                // It stays ours, and where it is, until its receipt says that it is in S3.
                Some(number) => Body::Borrow(log::sealed_path(&self.dir, number)),
                None => {
                    options.after = self.receipts();
                    let segments = key.trim_start_matches(Keys::MANIFESTS).parse();
                    manifest(segments.unwrap_or_default()).into_bytes().into()
                }
            };
            match queue.submit_through(hold, &key, body, options).await {
                Ok(receipt) => {
                    self.submitted.push_back(Submitted {
                        segment,
                        key,
                        receipt,
                    });
                    return;
                }
                // The queue is full because S3 is slow or away. The log waits with us, and its
                // writers with the log: that is what the limits are for.
                Err(Error::TimedOut { .. }) => {}
                Err(Error::ShuttingDown { .. }) => {
                    self.shipped.left += u64::from(segment.is_some());
                    return;
                }
                Err(error) => {
                    self.shipped.failed.push(format!("{key}: {error}"));
                    return;
                }
            }
        }
    }

    /// Of everything that is not settled yet: at most as many as the queue takes tasks.
    fn receipts(&self) -> Vec<Receipt> {
        let receipts = self.submitted.iter().map(|s| s.receipt.clone());
        receipts.filter(|r| r.settlement().is_none()).collect()
    }

    /// Removes the files of segments that are in S3.
    fn reap(&mut self) -> io::Result<()> {
        let mut waiting = VecDeque::with_capacity(self.submitted.len());
        for submitted in self.submitted.drain(..) {
            let Submitted { segment, key, .. } = &submitted;
            match submitted.receipt.settlement() {
                None => waiting.push_back(submitted),
                Some(Settlement::Uploaded(_)) => {
                    if let Some(number) = segment {
                        fs::remove_file(log::sealed_path(&self.dir, *number))?;
                    }
                }
                // Durable in the queue's journal, and its file is still here.
                Some(Settlement::Deferred) => {}
                Some(other) => self.shipped.failed.push(format!("{key}: {other:?}")),
            }
        }
        self.submitted = waiting;
        Ok(())
    }

    /// To be called once the queue has shut down: every receipt is settled then.
    pub fn settle(mut self) -> io::Result<Shipped> {
        self.reap()?;
        for submitted in self.submitted {
            let text = format!("{}: not settled by shutdown", submitted.key);
            self.shipped.failed.push(text);
        }
        Ok(self.shipped)
    }
}
