//! A small log-structured engine: group commit, sealed segments, a manifest at the end.
//!
//! Owns: the commit protocol and how the engine ends. Does not own: files ([`crate::log`]), the
//! way to S3 ([`crate::shipper`]).
//!
//! ```text
//! writers --commits--> the log's thread --sealed segments--> the shipper --> UploadQueue
//! ```
//!
//! 1. A commit is acknowledged after fdatasync covered all of its rows.
//! 2. Every channel is bounded: with S3 away, the queue fills, then the shipper waits, then the
//!    log, then the writers.
//! 3. The end runs the same way: writers stop at the hold's token, the log ends when the last
//!    writer has gone and seals its last segment, the shipper ends when the log has, and drops
//!    the hold; only then does the queue drain.

use std::io;
use std::path::Path;

use s3_writeback::UploadQueue;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::log::{Log, Opened};
use crate::shipper::{Shipped, Shipper, Unsettled};

/// Commits that one fdatasync covers at most.
const GROUP: usize = 64;

struct Commit {
    rows: Vec<u8>,
    done: oneshot::Sender<()>,
}

/// A way to commit rows, for one writer.
#[derive(Clone)]
pub struct Commits {
    to_log: mpsc::Sender<Commit>,
    stop: CancellationToken,
}

impl Commits {
    /// Makes whole rows durable on this disk; false where the log has failed.
    pub async fn commit(&self, rows: Vec<u8>) -> bool {
        let (done, wait) = oneshot::channel();
        self.to_log.send(Commit { rows, done }).await.is_ok() && wait.await.is_ok()
    }

    /// Cancelled when the engine's writers are to stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

/// A running engine.
pub struct Engine {
    commits: Commits,
    log: JoinHandle<io::Result<()>>,
    shipper: JoinHandle<io::Result<Unsettled>>,
    caught_up: Option<oneshot::Receiver<()>>,
    had_rows: bool,
}

impl Engine {
    /// Opens the log in `dir` and submits what an earlier life left in it.
    pub fn open(queue: &UploadQueue, dir: &Path, segment_bytes: u64) -> Result<Self, Failure> {
        let Opened { log, sealed } = Log::open(dir, segment_bytes)
            .map_err(|error| Failure::io(format!("the log in {}", dir.display()), error))?;
        let had_rows = log.segments() > 0;
        // Taken before anything else can shut the queue down: what is acknowledged from here on
        // gets its chance to be submitted.
        let hold = queue.hold("log-structured engine")?;
        let (to_log, from_writers) = mpsc::channel(GROUP);
        let (to_shipper, from_log) = mpsc::channel(1);
        let (count, segments) = oneshot::channel();
        let (tell, caught_up) = oneshot::channel();
        let commits = Commits {
            to_log,
            stop: hold.token().clone(),
        };
        let shipper = Shipper {
            queue: queue.clone(),
            hold,
            dir: dir.to_owned(),
            found: sealed,
        };
        Ok(Self {
            commits,
            log: tokio::task::spawn_blocking(move || {
                run_log(log, from_writers, &to_shipper, count)
            }),
            shipper: tokio::spawn(shipper.run(from_log, segments, tell)),
            caught_up: Some(caught_up),
            had_rows,
        })
    }

    /// Whether an earlier life left something in this directory.
    pub fn had_rows(&self) -> bool {
        self.had_rows
    }

    /// A writer's way in. The engine ends when all of them, and its own, are gone.
    pub fn commits(&self) -> Commits {
        self.commits.clone()
    }

    /// Waits until all that was found at open is submitted (or cannot be).
    pub async fn caught_up(&mut self) {
        if let Some(caught_up) = self.caught_up.take() {
            // Lost where the shipper failed, which `finish` reports.
            let _ = caught_up.await;
        }
    }

    /// Ends the engine: to be called once its writers are told to stop. Ends before the queue
    /// does; what is returned is settled after that.
    pub async fn finish(self) -> Result<Unsettled, Failure> {
        let Self {
            commits,
            log,
            shipper,
            ..
        } = self;
        drop(commits);
        let log = log.await.map_err(Failure::task)?;
        let shipper = shipper.await.map_err(Failure::task)?;
        log.map_err(|error| Failure::io("the log", error))?;
        shipper.map_err(|error| Failure::io("removing a segment", error))
    }
}

/// Settles what a life shipped; the queue has shut down.
pub fn settle(unsettled: Unsettled) -> Result<Shipped, Failure> {
    unsettled
        .settle()
        .map_err(|error| Failure::io("removing a segment", error))
}

/// The log's own thread.
fn run_log(
    mut log: Log,
    mut commits: mpsc::Receiver<Commit>,
    sealed: &mpsc::Sender<u64>,
    count: oneshot::Sender<u64>,
) -> io::Result<()> {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = commits.blocking_recv() {
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = commits.try_recv()
        {
            group.push(next);
        }
        for commit in &group {
            if log.is_full_for(commit.rows.len()) {
                ship(&mut log, sealed)?;
            }
            log.append(&commit.rows)?;
        }
        log.sync()?;
        for commit in group.drain(..) {
            // A writer that has gone does not wait for it.
            let _ = commit.done.send(());
        }
    }
    ship(&mut log, sealed)?;
    // The shipper reports itself where it is gone.
    let _ = count.send(log.segments());
    Ok(())
}

fn ship(log: &mut Log, sealed: &mpsc::Sender<u64>) -> io::Result<()> {
    if let Some(number) = log.seal()? {
        // Where the shipper is gone the segment stays here, for the next open.
        let _ = sealed.blocking_send(number);
    }
    Ok(())
}
