//! `UploadQueue`: the public face of the queue.
//!
//! Owns: wiring the layers together, and how each call is waited for. Decides nothing.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::fs::{Fs, OsFs};
use crate::journal::{Damage, Journal, JournalOptions, Recovered};
use crate::metrics::Snapshot;
use crate::op::Op;
use crate::panics::text_of;
use crate::queue::admission::Asker;
use crate::queue::receipt::Receipt;
use crate::queue::task::{Body, Options, TaskId};
use crate::queue::{PauseWhat, PendingTask, QuarantinedTask, Queue, Submission, Totals};
use crate::random::Random;
use crate::remote::Remote;
use crate::runtime::{Driver, RunOn, Runtime};
use crate::shutdown::{
    Done, FailingTask, Layers, Left, MAX_FAILING, Phase, Shutdown, ShutdownHold, ShutdownReport,
    Watchdog,
};
use crate::sync::Mutex;
use crate::time::WallClock;
use crate::worker::Workers;

/// How often expired requests are forgotten and a full disk is looked at again.
const TICK: Duration = Duration::from_secs(1);

/// How often an open looks again at a directory that is in use, and how far apart.
const LOCK_LOOKS: u32 = 50;
const LOCK_BEAT: Duration = Duration::from_millis(20);

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
    driver: Driver,
    stall: Arc<Mutex<Option<String>>>,
    damage: Vec<Damage>,
    /// Ends the runtime's own thread when the last handle goes.
    _runtime: Arc<Runtime>,
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
            self.shutdown.begin(Duration::ZERO);
            self.shutdown.hurry();
        }
    }
}

/// How an [`UploadQueue`] is opened.
#[must_use = "a builder does nothing until `open` is waited for"]
pub struct Builder {
    config: Config,
    remote: Arc<dyn Remote>,
    run_on: RunOn,
    token: CancellationToken,
    fs: Arc<dyn Fs>,
    io: Option<Io>,
    clock: Option<WallClock>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Which runtime drives the queue. Default: a thread of its own.
    pub fn run_on(self, run_on: RunOn) -> Self {
        Self { run_on, ..self }
    }

    /// A token whose cancellation starts an ordered shutdown with the configured deadline.
    pub fn cancelled_by(self, parent: &CancellationToken) -> Self {
        Self {
            token: parent.child_token(),
            ..self
        }
    }

    /// Another file system, and where its blocking calls run: for simulations.
    pub fn file_system(self, fs: Arc<dyn Fs>, io: Io) -> Self {
        Self {
            fs,
            io: Some(io),
            ..self
        }
    }

    /// Another wall clock: for simulations.
    pub fn wall_clock(self, clock: WallClock) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// Opens the queue: takes the directory, recovers what an earlier life left, starts the
    /// workers. Needs no answer from S3. A directory that is in use is waited for, for a second.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::DirectoryInUse`], [`Error::Directory`], [`Error::Version`],
    /// [`Error::Damaged`]: nothing was changed. [`Error::Runtime`].
    ///
    /// # Cancel safety
    /// Dropped at any point, it leaves no task behind and the directory free.
    pub fn open(self) -> Op<UploadQueue> {
        let deadline = self.config.op_deadline;
        let runtime = match self.config.validate() {
            Err(errors) => return Op::ready(Err(errors.into())),
            Ok(()) => match Runtime::start(&self.run_on) {
                Err(error) => return Op::ready(Err(error)),
                Ok(runtime) => runtime,
            },
        };
        let driver = runtime.driver();
        Op::new(&driver, deadline, open(self, runtime), || {
            Error::WouldWait("the local disk")
        })
    }
}

async fn open(builder: Builder, runtime: Arc<Runtime>) -> Result<UploadQueue> {
    let Builder {
        config,
        remote,
        token,
        fs,
        io,
        clock,
        ..
    } = builder;
    let config = Arc::new(config);
    let io = io.unwrap_or_else(|| runtime.io(config.io_threads));
    let driver = runtime.driver();
    let clock = {
        let _inside = driver.context();
        clock.unwrap_or_else(WallClock::system)
    };
    let (journal, recovered) = open_journal(&config, &fs, &io, &driver, clock).await?;
    let prefix = remote.prefix().to_owned();
    // From here on nothing waits: the queue is opened whole, or the journal is dropped.
    let queue = Queue::new(
        Arc::clone(&config),
        journal.clone(),
        fs,
        io,
        driver.clone(),
        prefix,
    );
    let found = queue.recover(&recovered);
    journal.set_sink(queue.sink());
    let _inside = driver.context();
    let random = Random::new(config.seed);
    let shutdown = Shutdown::new(token, config.shutdown_within);
    runtime.spawn(async move { journal.run().await });
    let workers = Workers::start(Arc::clone(&queue), remote, clock, random, found, &runtime);
    let stall = Arc::new(Mutex::new(None));
    let stack = Stack {
        queue: Arc::clone(&queue),
        workers: Arc::clone(&workers),
        shutdown: Arc::downgrade(&shutdown),
        stall: Arc::clone(&stall),
    };
    let coordinator = Arc::clone(&shutdown);
    // The runtime lives until the last phase is over, even where every handle was dropped.
    let kept = Arc::clone(&runtime);
    runtime.spawn(async move {
        tokio::select! {
            () = coordinator.coordinate(&stack) => (),
            () = stack.beats() => (),
        }
        drop(kept);
    });
    Ok(UploadQueue {
        inner: Arc::new(Inner {
            queue,
            shutdown,
            workers,
            driver,
            stall,
            damage: recovered.damage,
            _runtime: runtime,
        }),
    })
}

/// Opens the journal on an I/O thread. Whoever has the directory may be on its way out (an open of
/// this very process that was cancelled, or the process before this one): it is waited for.
async fn open_journal(
    config: &Config,
    fs: &Arc<dyn Fs>,
    io: &Io,
    driver: &Driver,
    clock: WallClock,
) -> Result<(Journal, Recovered)> {
    let mut options = JournalOptions::new(&config.dir);
    options.segment_bytes = config.segment_bytes.into();
    options.inline_bytes = config.inline_bytes.into();
    // The reserve is room on top of the limit, here as at admission.
    options.disk_limit = config
        .max_disk_bytes
        .saturating_add(config.checkpoint_disk_bytes());
    options.on_damage = config.on_damage;
    // Segment ids must not repeat from one open to the next.
    let now = u64::try_from(clock.unix().as_nanos()).unwrap_or(u64::MAX);
    options.seed = config.seed.map(|seed| seed ^ now);
    let mut looks = 0;
    loop {
        let (fs, io_too, options) = (Arc::clone(fs), io.clone(), options.clone());
        let opened = io
            .run(move || Journal::open(fs, io_too, options))
            .await
            .map_err(|error| Error::directory(&config.dir, &error))?;
        match opened.map_err(Error::from) {
            Ok(opened) => return Ok(opened),
            Err(Error::DirectoryInUse { .. }) if looks < LOCK_LOOKS => {
                looks += 1;
                let pause = {
                    let _inside = driver.context();
                    tokio::time::sleep(LOCK_BEAT)
                };
                pause.await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The layers, as shutdown and the watchdog see them.
struct Stack {
    queue: Arc<Queue>,
    workers: Arc<Workers>,
    shutdown: Weak<Shutdown>,
    stall: Arc<Mutex<Option<String>>>,
}

impl Stack {
    /// A panic on the side does not keep shutdown from being walked.
    async fn beats(&self) {
        loop {
            if let Err(panic) = AssertUnwindSafe(self.beat()).catch_unwind().await {
                tracing::error!(panic = %text_of(&*panic), "the watchdog starts anew");
            }
        }
    }

    /// Does now and then what nothing else causes.
    async fn beat(&self) {
        let mut watchdog = Watchdog::new(self.queue.config().stall_after);
        let every = TICK.min(watchdog.beat());
        loop {
            tokio::time::sleep(every).await;
            self.queue.tick();
            self.workers.expire();
            let (progress, work) = (self.queue.progress(), self.queue.ought_to_move());
            if let Some(still) = watchdog.look(progress, work, Instant::now()) {
                let picture = self.picture(still);
                tracing::warn!(stall = %picture, "nothing has moved");
                *self.stall.lock() = Some(picture);
            }
        }
    }

    /// Who waits for what and since when, what is in flight, and the last errors.
    fn picture(&self, still: Duration) -> String {
        let counts = self.queue.counts();
        let usage = self.queue.admission.usage();
        let holds = self.shutdown.upgrade().map(|shutdown| {
            let held = shutdown.holds.held().into_iter();
            held.map(|(name, since)| format!("{name:?} for {:?}", since.elapsed()))
                .collect::<Vec<_>>()
        });
        format!(
            "nothing moved for {still:?}; phase {:?}; {counts:?}; waiting for room: {}; holds: \
             {:?}; journal: {:?}; tasks: {:#?}",
            self.shutdown.upgrade().map(|shutdown| shutdown.phase()),
            usage.waiters,
            holds.unwrap_or_default(),
            self.queue.journal.status(),
            self.queue.notable(32),
        )
    }
}

impl Layers for Stack {
    fn close_to_all_but_holders(&self, phase: Phase) {
        self.queue.admission.holders_only(phase);
    }

    fn close(&self, phase: Phase) {
        self.queue.admission.close(phase);
    }

    fn drained(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(self.queue.run_dry(deadline))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.queue.stop();
        Box::pin(self.workers.stopped())
    }

    fn cut(&self) {
        self.workers.cut();
    }

    fn seal(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            self.queue
                .journal
                .seal()
                .await
                .map_err(|error| error.to_string())
        })
    }

    fn settle(&self, sealed: Result<(), String>) -> Left {
        let notable = self.queue.failing(MAX_FAILING);
        let rest = self.queue.settle_rest(sealed);
        let failing = notable.into_iter().map(|task| FailingTask {
            task: task.task,
            key: task.key,
            quarantined: task.quarantined,
            failures: task.failures,
            cause: task.cause,
        });
        Left {
            failing: failing.collect(),
            deferred: rest.deferred,
            undetermined: rest.undetermined,
            quarantined: rest.quarantined,
        }
    }

    fn done(&self) -> Done {
        let totals = &self.queue.totals;
        Done {
            uploaded: Totals::read(&totals.uploaded) + Totals::read(&totals.deleted),
            unknown: Totals::read(&totals.unknown),
        }
    }
}

impl UploadQueue {
    /// A queue that uploads to `remote`.
    pub fn builder(config: Config, remote: Arc<dyn Remote>) -> Builder {
        Builder {
            config,
            remote,
            run_on: RunOn::default(),
            token: CancellationToken::new(),
            fs: Arc::new(OsFs),
            io: None,
            clock: None,
        }
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
    /// [`now`](Op::now): [`Error::QueueFull`], [`Error::DiskFull`] or [`Error::Paused`]; by the
    /// other forms, these inside [`Error::TimedOut`].
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
    /// not list is settled.
    #[must_use]
    pub fn pending(&self) -> Vec<PendingTask> {
        self.inner.queue.pending()
    }

    /// All that is in quarantine.
    #[must_use]
    pub fn quarantined(&self) -> Vec<QuarantinedTask> {
        self.inner.queue.quarantined()
    }

    /// Puts a task that is in quarantine into line again, with a new receipt.
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
    /// put its object there all the same.
    ///
    /// # Errors
    /// [`Error::NoSuchTask`]; [`Error::WrongState`] where it is in flight;
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

    /// What can be seen of the queue now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = &self.inner;
        let (queue, totals) = (&inner.queue, &inner.queue.totals);
        let usage = queue.admission.usage();
        let age = |since: Instant| since.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        Snapshot {
            phase: inner.shutdown.phase(),
            pressure: queue.admission.pressure(),
            tasks: queue.counts(),
            admitted_tasks: usage.used.tasks,
            admitted_bytes: usage.used.bytes,
            admitted_disk_bytes: usage.used.disk,
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
            deleted: Totals::read(&totals.deleted),
            requests: Totals::read(&totals.requests),
            unknown: Totals::read(&totals.unknown),
            outstanding: inner.workers.outstanding(),
            quarantined: Totals::read(&totals.quarantined),
            recovered: Totals::read(&totals.recovered),
            capabilities: inner.workers.capabilities(),
            journal: queue.journal.status(),
            last_stall: inner.stall.lock().clone(),
        }
    }
}
