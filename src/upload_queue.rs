//! `UploadQueue`: the public face of the queue.
//!
//! Owns: how each call is waited for. Decides nothing. The layers are wired together in `open.rs`;
//! `stack.rs` is how shutdown sees them.

mod open;
mod stack;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::health::Health;
use crate::journal::Damage;
use crate::metrics::Snapshot;
use crate::op::Op;
use crate::queue::admission::Asker;
use crate::queue::receipt::Receipt;
use crate::queue::task::{Body, Options, TaskId};
use crate::queue::{Exported, PauseWhat, PendingTask, QuarantinedTask, Queue, Submission, Totals};
use crate::remote::Remote;
use crate::remote::tally::Errors;
use crate::runtime::{Driver, Runtime};
use crate::shutdown::{Phase, Shutdown, ShutdownHold, ShutdownReport};
use crate::time::millis;
use crate::worker::Workers;

pub use open::Builder;
pub(crate) use open::journal_options;
use stack::Seen;

/// How long a queue that is dropped without shutdown may take to be sealed.
const SEALS_WITHIN: Duration = Duration::from_secs(5);

/// A bounded, durable queue of uploads.
///
/// Clones are of the same queue. Dropping the last one without [`shutdown`](Self::shutdown) loses
/// nothing that is durable, and says so in the log.
#[derive(Debug, Clone)]
pub struct UploadQueue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: Arc<Queue>,
    shutdown: Arc<Shutdown>,
    workers: Arc<Workers>,
    errors: Arc<Errors>,
    remote: Asked,
    driver: Driver,
    seen: Arc<Seen>,
    damage: Vec<Damage>,
    /// Ends the runtime's own thread when the last handle goes.
    _runtime: Arc<Runtime>,
}

/// The remote, for what it tells of itself.
struct Asked(Arc<dyn Remote>);

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.describe())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A shutdown that was asked for, and whose coordinator has not looked yet, is not hurried.
        let asked = self.shutdown.token().is_cancelled();
        if self.shutdown.phase() == Phase::Running && !asked {
            tracing::warn!(
                dir = %self.queue.config().dir.display(),
                "dropped without shutdown: what is durable goes up after the next open"
            );
            // No request; but the disk has a moment to take what is written, and to let go.
            self.shutdown.begin(SEALS_WITHIN);
            self.shutdown.hurry();
        }
    }
}

impl UploadQueue {
    pub(crate) fn driver(&self) -> &Driver {
        &self.inner.driver
    }

    pub(crate) fn owns(&self, hold: &ShutdownHold) -> bool {
        self.inner.shutdown.holds.owns(hold)
    }

    /// A queue that uploads to `remote`.
    pub fn builder(config: Config, remote: Arc<dyn Remote>) -> Builder {
        Builder::new(config, remote)
    }

    fn op<T, F>(&self, work: F, why: impl Fn() -> Error + Send + 'static) -> Op<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        Op::new(
            &self.inner.driver,
            self.inner.queue.op_deadline(),
            work,
            why,
        )
    }

    /// Submits `body` under `key`. Done at admission: the receipt says when it is durable here,
    /// and when it is in S3.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::Refused`], [`Error::TooLarge`], [`Error::KeyPending`],
    /// [`Error::SourceMissing`], [`Error::Directory`], [`Error::ConditionsUnsupported`], [`Error::ForeignReceipt`], [`Error::DependencyFailed`],
    /// [`Error::ShuttingDown`], [`Error::JournalFailed`]: nothing was changed. By
    /// [`now`](Op::now): [`Error::QueueFull`], [`Error::QuarantineFull`], [`Error::DiskFull`] or
    /// [`Error::Paused`], and [`Error::WouldWait`] where there is room, and the body goes to the
    /// disk first; by the other forms, these inside [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, nothing was submitted and no room is taken.
    pub fn submit(
        &self,
        key: impl Into<String>,
        body: impl Into<Body>,
        options: Options,
    ) -> Op<Receipt> {
        self.enqueue(key.into(), Some(body.into()), options, Asker::Anyone)
    }

    /// Deletes `key` in S3, after what is pending on it. Errors and cancel safety as
    /// [`submit`](Self::submit).
    pub fn delete(&self, key: impl Into<String>, options: Options) -> Op<Receipt> {
        self.enqueue(key.into(), None, options, Asker::Anyone)
    }

    /// The same as [`submit`](Self::submit), and still taken while shutdown waits for `hold`.
    pub fn submit_through(
        &self,
        hold: &ShutdownHold,
        key: impl Into<String>,
        body: impl Into<Body>,
        options: Options,
    ) -> Op<Receipt> {
        self.enqueue(key.into(), Some(body.into()), options, self.asker(hold))
    }

    /// The same as [`delete`](Self::delete), and still taken while shutdown waits for `hold`.
    pub fn delete_through(
        &self,
        hold: &ShutdownHold,
        key: impl Into<String>,
        options: Options,
    ) -> Op<Receipt> {
        self.enqueue(key.into(), None, options, self.asker(hold))
    }

    /// A hold of another queue gives no right here.
    fn asker(&self, hold: &ShutdownHold) -> Asker {
        if self.inner.shutdown.holds.owns(hold) {
            Asker::Holder
        } else {
            Asker::Anyone
        }
    }

    fn enqueue(
        &self,
        key: String,
        body: Option<Body>,
        options: Options,
        asker: Asker,
    ) -> Op<Receipt> {
        let lane = options.lane;
        let len = match &body {
            Some(Body::Bytes(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        let queue = Arc::clone(&self.inner.queue);
        let submission = Submission {
            key,
            body,
            options,
            asker,
        };
        let work = Arc::clone(&queue).submit(submission);
        self.op(work, move || queue.submit_refusal(lane, len))
    }

    /// The bytes of `key`, or of `range` of it (first byte, length): from a body that is still
    /// here, else from S3.
    ///
    /// # Errors
    /// [`Error::NotFound`], also where a delete is pending; [`Error::OutOfRange`];
    /// [`Error::Remote`]; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Ends this caller's wait only.
    pub fn get(&self, key: impl Into<String>, range: Option<(u64, u64)>) -> Op<Bytes> {
        let work = Arc::clone(&self.inner.queue).get(key.into(), range);
        self.op(work, || Error::WouldWait("a read from S3"))
    }

    /// Waits until everything submitted before this call is in S3.
    ///
    /// # Errors
    /// [`Error::NotUploaded`] as soon as something it covers is in quarantine or has ended
    /// otherwise (taken back excepted); also where that happened before this call and no earlier
    /// `drain` has told of it. [`Error::Paused`]; [`Error::ShuttingDown`]; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Ends this caller's wait only.
    pub fn drain(&self) -> Op<()> {
        let work = Arc::clone(&self.inner.queue).drain();
        self.op(work, || Error::WouldWait("uploads"))
    }

    /// Waits until a task of `bytes` would be admitted: before a transaction instead of in the
    /// middle of one. Takes nothing.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) for want of room.
    ///
    /// # Cancel safety
    /// Leaves no trace.
    pub fn ready(&self, bytes: u64) -> Op<()> {
        let queue = Arc::clone(&self.inner.queue);
        let work = Arc::clone(&queue).ready(bytes);
        self.op(work, move || queue.submit_refusal(None, bytes))
    }

    /// How full the queue is, from 0 to 100: one atomic load.
    #[must_use]
    pub fn pressure(&self) -> u8 {
        self.inner.queue.admission.pressure()
    }

    /// All that is owed, in order of submission, with receipts. After a restart: what this does
    /// not list is settled. What an earlier life left and has not come in yet
    /// ([`recovery_window`](Config::recovery_window)) is read for it, on this thread.
    #[must_use]
    pub fn pending(&self) -> Vec<PendingTask> {
        self.inner.queue.pending()
    }

    /// All that is in quarantine, in order of submission.
    #[must_use]
    pub fn quarantined(&self) -> Vec<QuarantinedTask> {
        self.inner.queue.quarantined()
    }

    /// One task that is in quarantine.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`], [`Error::WrongState`].
    pub fn quarantined_task(&self, task: TaskId) -> Result<QuarantinedTask> {
        self.inner.queue.quarantined_task(task)
    }

    /// Writes the body of a task that is in quarantine to the file `path`, which must not exist:
    /// beside it first, synced, then under its name. The task stays as it is. Bytes that are not
    /// the submitted ones any more are written all the same, and
    /// [`intact`](Exported::intact) says so.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`]; [`Error::WrongState`], also for a delete; [`Error::Directory`] where
    /// the body cannot be read or the file not be written (kind `AlreadyExists`: it exists);
    /// [`Error::SourceMissing`].
    ///
    /// # Cancel safety
    /// Dropped once it has begun, the file may appear later, whole.
    pub fn export(&self, task: TaskId, path: impl Into<PathBuf>) -> Op<Exported> {
        let work = Arc::clone(&self.inner.queue).export(task, path.into());
        self.op(work, || Error::WouldWait("the local disk"))
    }

    /// Puts a task that is in quarantine into line again, with a new receipt. It is first on its
    /// key, before what was submitted later; a full quarantine does not keep it from leaving.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`], [`Error::WrongState`], and as [`submit`](Self::submit).
    ///
    /// # Cancel safety
    /// Dropped before it is done, the task stays where it is.
    pub fn replay(&self, task: TaskId) -> Op<Receipt> {
        let queue = Arc::clone(&self.inner.queue);
        let work = Arc::clone(&queue).replay(task);
        self.op(work, move || queue.submit_refusal(None, 0))
    }

    /// Throws a task that is in quarantine away, and its body with it. What is after it goes to
    /// quarantine; its key is free.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`], [`Error::WrongState`]; [`Error::ShuttingDown`] after the end and
    /// [`Error::JournalFailed`], for nothing would remember it.
    pub fn purge(&self, task: TaskId) -> Result<()> {
        self.inner.queue.purge(task)
    }

    /// Takes back a task that is not in flight. An earlier attempt whose reply was lost may have
    /// put its object there all the same. One that an earlier life left and that has not come in
    /// yet is read for it, on this thread.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`]; [`Error::WrongState`] where it is in flight; [`Error::Directory`]
    /// where it cannot be read;
    /// [`Error::ShuttingDown`] after the end and [`Error::JournalFailed`], for nothing would
    /// remember it.
    pub fn cancel(&self, task: TaskId) -> Result<()> {
        self.inner.queue.cancel(task)
    }

    /// Stops admission or uploads until [`resume`](Self::resume). Nothing is lost meanwhile.
    pub fn pause(&self, what: PauseWhat) {
        self.inner.queue.pause(what, true);
    }

    /// Undoes a [`pause`](Self::pause).
    pub fn resume(&self, what: PauseWhat) {
        self.inner.queue.pause(what, false);
    }

    /// The number of opens in a row in which the process died, where there were three or more: then
    /// this one came up with admission and uploads paused, and all that looks at the queue answers.
    /// `None` once uploads were [resumed](Self::resume). Counted is a death from the moment the
    /// directory's lock was taken until what is in it was recovered: not one by a request, which
    /// [`crash_limit`](Config::crash_limit) is for, nor an open that ended with an error.
    #[must_use]
    pub fn crash_loop(&self) -> Option<u32> {
        self.inner.queue.crash_loop()
    }

    /// Whether the directory was moved or copied since it was last used: then nothing is sent
    /// until [`adopt`](Self::adopt).
    #[must_use]
    pub fn is_moved(&self) -> bool {
        self.inner.queue.is_moved()
    }

    /// Says that this directory, not the one that it was copied from, is the one to send.
    ///
    /// # Errors
    /// [`Error::Directory`].
    ///
    /// # Cancel safety
    /// It may have happened.
    pub fn adopt(&self) -> Op<()> {
        let queue = Arc::clone(&self.inner.queue);
        self.op(async move { queue.adopt().await }, || {
            Error::WouldWait("the local disk")
        })
    }

    /// Makes shutdown wait (for its share of the deadline) until the hold is dropped, and lets
    /// submits through the hold in meanwhile.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] once it has begun.
    pub fn hold(&self, name: &str) -> Result<ShutdownHold> {
        self.inner.shutdown.holds.take(name)
    }

    /// Shuts down in order: finishes what holders must, drains, stops, seals. Its deadline is the
    /// operation's (`shutdown().within(..)`), by default the configured one; it always returns by
    /// then, and says what is left. Joins a shutdown that is under way; the earlier deadline
    /// counts.
    ///
    /// # Errors
    /// None by `await`; by `wait`, [`Error::WouldBlockRuntime`], and [`Error::TimedOut`] five
    /// seconds past the deadline where somebody blocks the runtime that drives the queue; by
    /// [`now`](Op::now), [`Error::WouldWait`] while it is not over.
    ///
    /// # Cancel safety
    /// The shutdown goes on; ask again for the report.
    pub fn shutdown(&self) -> Op<Arc<ShutdownReport>> {
        let inner = Arc::clone(&self.inner);
        Op::bounded(
            &self.inner.driver,
            self.inner.queue.config().shutdown_within,
            move |within| async move {
                inner.shutdown.begin(within);
                Ok(inner.shutdown.done().await)
            },
            || Error::WouldWait("the end of the shutdown"),
        )
    }

    /// Moves a shutdown to `Stopping` at once: what a second signal calls. Starts one where none
    /// is under way.
    pub fn hurry(&self) {
        self.inner.shutdown.hurry();
    }

    /// The token that starts a shutdown.
    #[must_use]
    pub fn shutdown_token(&self) -> &CancellationToken {
        self.inner.shutdown.token()
    }

    /// The report, once the shutdown is over.
    #[must_use]
    pub fn report(&self) -> Option<Arc<ShutdownReport>> {
        self.inner.shutdown.report()
    }

    /// Damage that open found in the journal.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.inner.damage
    }

    /// The queue's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.inner.queue.config().dir.clone()
    }

    /// How the queue is, as of the last look: they are at most a second apart.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.seen.health.borrow().clone()
    }

    /// The same, to be told of what changes.
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.inner.seen.health.subscribe()
    }

    /// What can be seen of the queue now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = &self.inner;
        let (queue, totals) = (&inner.queue, &inner.queue.totals);
        let usage = queue.admission.usage();
        let age = |since: Instant| millis(since.elapsed());
        Snapshot {
            phase: inner.shutdown.phase(),
            pressure: queue.admission.pressure(),
            tasks: queue.counts(),
            admitted_tasks: usage.used.tasks,
            admitted_bytes: usage.used.bytes,
            admitted_disk_bytes: usage.used.disk,
            memory_bytes: usage.used.memory + usage.reading,
            memory_reading_bytes: usage.reading,
            peak_memory_bytes: usage.peak_memory,
            memory_throttled: usage.throttled,
            spilled_bytes: Totals::read(&totals.spilled),
            peak_tasks: usage.peak.tasks,
            peak_bytes: usage.peak.bytes,
            reserve_tasks: usage.reserve_used.tasks,
            admission_waiters: usage.waiters,
            holds: inner
                .shutdown
                .holds
                .held()
                .into_iter()
                .map(|(n, s)| (n, age(s)))
                .collect(),
            uploaded: Totals::read(&totals.uploaded),
            uploaded_bytes: Totals::read(&totals.uploaded_bytes),
            packs_uploaded: Totals::read(&totals.images),
            pack_bytes_uploaded: Totals::read(&totals.image_bytes),
            deleted: Totals::read(&totals.deleted),
            requests: Totals::read(&totals.requests),
            unknown: Totals::read(&totals.unknown),
            remote_errors: inner.errors.list(),
            outstanding: inner.workers.outstanding(),
            quarantined: Totals::read(&totals.quarantined),
            quarantined_bytes: usage.quarantined.bytes,
            recovered: Totals::read(&totals.recovered),
            traffic: inner.workers.traffic(),
            capabilities: inner.workers.capabilities(),
            adaptations: inner.remote.0.adaptations(),
            journal: queue.journal.status(),
            last_stall: inner.seen.stall.lock().clone(),
        }
    }
}
