//! The queue: bounded, fair, honest.
//!
//! Owns: what is admitted, in which order tasks run, and how each one's end is recorded and told.
//! Does not own: the log under it ([`crate::journal`]), the requests ([`crate::worker`]), or when
//! to stop ([`crate::shutdown`]).
//!
//! | file | concept |
//! |---|---|
//! | `task.rs` | what a task is |
//! | `receipt.rs` | its handle, and how it ended |
//! | `admission.rs` | who may enter |
//! | `table.rs`, `lanes.rs` | what state each task is in, and which runs next |
//! | `take.rs`, `gate.rs` | what the next worker gets, and whether anything may go |
//! | `submit.rs`, `body.rs`, `memory.rs` | the way in, and bodies on their way |
//! | `settle.rs`, `drain.rs` | the way out |
//! | `load.rs`, `image.rs`, `call.rs`, `abort.rs`, `line.rs` | what runs beside tasks |
//! | `control.rs`, `quarantine.rs` | what operators do |
//! | `recover.rs`, `record.rs` | what survives |
//! | `backlog.rs`, `bring.rs` | what of it is not in the table yet, and how it comes in |
//! | `interleavings.rs` | all of it under a model checker |
//!
//! Lock order: the table's mutex, then the journal's or the admission's; none of them is held
//! across a wait, and cells are told after the table's is released.

mod abort;
pub(crate) mod admission;
pub(crate) mod backlog;
pub(crate) mod body;
mod bring;
mod call;
mod charge;
mod control;
mod drain;
pub(crate) mod gate;
pub(crate) mod image;
pub(crate) mod inspect;
#[cfg(all(test, shuttle))]
mod interleavings;
mod lanes;
mod line;
pub(crate) mod load;
pub(crate) mod memory;
pub mod quarantine;
pub mod receipt;
pub(crate) mod record;
mod recover;
mod settle;
mod submit;
pub(crate) mod table;
mod take;
pub mod task;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::io::Io;
use crate::journal::fs::Fs;
use crate::journal::{CommitSink, Journal};
use crate::remote::multipart::MultipartUploadState;
use crate::remote::{Crc64, ObjectHeaders};
use crate::runtime::Driver;
use crate::sync::{Mutex, MutexGuard};
use crate::time::WallClock;

pub(crate) use abort::Abort;
use admission::{Admission, Need};
use backlog::Backlog;
use body::Source;
pub(crate) use call::Call;
use drain::Drains;
use gate::{Gate, Pass, Way};
use image::Image;
use line::Line;
use load::Load;
use memory::Kept;
use receipt::{Cell, Receipt};
use record::Started;
use table::{Ended, Slot, Table};
use task::{Action, Condition, KeyPolicy, Lane, TaskId};

pub use control::{Counts, PauseWhat, PendingTask};
pub use quarantine::{Exported, PastQuarantine, QuarantinedTask};
pub(crate) use recover::Recovery;
pub(crate) use submit::Submission;

/// What the queue is made of.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) journal: Journal,
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) io: Io,
    driver: Driver,
    config: Arc<Config>,
    /// When something came to quarantine is told, and put on record, by it.
    clock: WallClock,
    /// What the remote puts before every key.
    prefix: String,
    /// Wakes a general worker: a task may be ready.
    work: Notify,
    /// The same for the reserved slots, so that none swallows another's wake-up.
    work_load: Notify,
    work_checkpoint: Notify,
    /// Something ended, or stopped being able to move.
    dry: Notify,
    /// The same, for who brings the backlog in.
    room: Notify,
    /// There is a backlog.
    feeding: AtomicBool,
    gate: OnceLock<Arc<dyn Gate>>,
    stopped: AtomicBool,
    pub(crate) totals: Totals,
}

#[derive(Debug)]
struct State {
    table: Table,
    backlog: Backlog,
    loads: Line<Load>,
    images: Line<Image>,
    calls: VecDeque<Call>,
    /// The last probe was one of them.
    call_probed: bool,
    /// A task was taken since the last image.
    images_turn: bool,
    aborts: Line<Abort>,
    /// A task was taken since the last abort.
    aborts_turn: bool,
    /// The server was seen to ignore conditions.
    conditions_ignored: bool,
    drains: Drains,
    /// Ends on their way to the disk, by the location of their record.
    settling: BTreeMap<u64, Ended>,
    /// Old names of adopted files whose records are not durable yet.
    adopted: BTreeMap<TaskId, PathBuf>,
    last_id: TaskId,
    /// The last that an earlier life left.
    recovered: TaskId,
    /// When that was.
    recovered_at: Instant,
    paused_uploads: bool,
    /// The process died in this many opens in a row, and nobody has resumed uploads since.
    crash_loop: Option<u32>,
    moved: bool,
    /// Nobody knows yet whether this directory may send anything.
    unclaimed: bool,
    disk_full: bool,
    journal_failed: Option<String>,
    /// Everything has been settled, by shutdown.
    closed: bool,
}

/// The state, while it is locked. Bodies that went meanwhile are dropped once it is not: that wakes
/// who waits for memory.
struct Locked<'a>(Option<MutexGuard<'a, State>>);

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    #[allow(
        clippy::expect_used,
        reason = "the guard is taken out when this is dropped"
    )]
    fn deref(&self) -> &State {
        self.0.as_ref().expect("locked")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    #[allow(
        clippy::expect_used,
        reason = "the guard is taken out when this is dropped"
    )]
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().expect("locked")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut guard) = self.0.take() else {
            return;
        };
        let spent = guard.table.take_spent();
        drop(guard);
        drop(spent);
    }
}

impl State {
    /// The lowest cover that is not in S3.
    fn first_open(&self) -> Option<TaskId> {
        let (here, to_come) = (self.table.first_open(), self.backlog.first());
        here.into_iter().chain(to_come).min()
    }

    /// Nothing is sent for now.
    fn is_held(&self) -> bool {
        self.paused_uploads || self.moved || self.unclaimed
    }
}

/// Counts since open.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub uploaded: AtomicU64,
    pub uploaded_bytes: AtomicU64,
    pub deleted: AtomicU64,
    pub requests: AtomicU64,
    pub unknown: AtomicU64,
    pub quarantined: AtomicU64,
    pub recovered: AtomicU64,
    /// Bytes of bodies that were dropped from memory.
    pub spilled: AtomicU64,
    pub images: AtomicU64,
    pub image_bytes: AtomicU64,
    /// Goes up whenever anything moves: what the watchdog looks at.
    pub progress: AtomicU64,
}

impl Totals {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// A task as a worker has it.
#[derive(Debug)]
pub(crate) struct TaskJob {
    pub id: TaskId,
    /// As what it was taken.
    pub way: Way,
    pub key: Arc<str>,
    pub policy: KeyPolicy,
    pub action: Action,
    pub condition: Option<Condition>,
    pub headers: Arc<ObjectHeaders>,
    pub len: u64,
    pub checksum: Option<Crc64>,
    pub memory: Option<Kept>,
    /// Attempts that failed in a row before this one.
    pub failures: u32,
    /// An earlier attempt may have reached S3.
    pub sent_before: bool,
    /// What was noted of the write that is on the wire now.
    pub in_flight: Option<Started>,
    pub multipart: Option<MultipartUploadState>,
}

/// Something for a worker to do.
#[derive(Debug)]
pub(crate) enum Job {
    Task(Box<TaskJob>),
    Load(Load),
    Image(Image),
    Call(Call),
    Abort(Abort),
}

impl Job {
    fn way(&self) -> Way {
        match self {
            Self::Task(task) => task.way,
            Self::Image(_) => Way::Write,
            Self::Load(_) => Way::Read,
            Self::Abort(_) => Way::Remove,
            Self::Call(call) => call.way,
        }
    }

    /// Bytes that it moves, as far as that is known before.
    fn bytes(&self) -> u64 {
        match self {
            Self::Task(task) => task.len,
            Self::Load(load) => load.range.map_or(0, |(_, len)| len),
            Self::Image(image) => image.body.len() as u64,
            Self::Call(_) | Self::Abort(_) => 0,
        }
    }
}

impl Queue {
    pub(crate) fn new(
        config: Arc<Config>,
        journal: Journal,
        fs: Arc<dyn Fs>,
        io: Io,
        driver: Driver,
        clock: WallClock,
        prefix: String,
    ) -> Arc<Self> {
        let share = config.workers * usize::from(config.prefix_share_percent) / 100;
        let moved = journal.moved();
        Arc::new(Self {
            state: Mutex::new(State {
                table: Table::new(share).with_receipts(config.max_receipts),
                backlog: Backlog::default(),
                loads: Line::default(),
                images: Line::default(),
                calls: VecDeque::new(),
                call_probed: false,
                images_turn: true,
                aborts: Line::default(),
                aborts_turn: true,
                conditions_ignored: false,
                drains: Drains::default(),
                settling: BTreeMap::new(),
                adopted: BTreeMap::new(),
                last_id: TaskId(0),
                recovered: TaskId(0),
                recovered_at: Instant::now(),
                paused_uploads: false,
                crash_loop: None,
                moved,
                unclaimed: false,
                disk_full: false,
                journal_failed: None,
                closed: false,
            }),
            admission: Admission::new(
                Need {
                    tasks: config.max_tasks,
                    bytes: config.max_bytes,
                    disk: config.max_disk_bytes,
                    memory: config.max_memory_bytes,
                },
                Need {
                    tasks: config.checkpoint_tasks,
                    bytes: config.checkpoint_bytes,
                    disk: config.checkpoint_disk_bytes(),
                    memory: config.checkpoint_bytes,
                },
                Need {
                    tasks: config.max_quarantined_tasks,
                    bytes: config.max_quarantined_bytes,
                    disk: u64::MAX,
                    memory: u64::MAX,
                },
                config.max_waiters,
                config.dir.clone(),
            ),
            journal,
            fs,
            io,
            driver,
            config,
            clock,
            prefix,
            work: Notify::new(),
            work_load: Notify::new(),
            work_checkpoint: Notify::new(),
            dry: Notify::new(),
            room: Notify::new(),
            feeding: AtomicBool::new(false),
            gate: OnceLock::new(),
            stopped: AtomicBool::new(false),
            totals: Totals::default(),
        })
    }

    /// What the journal's committer tells us through.
    pub(crate) fn sink(self: &Arc<Self>) -> Arc<dyn CommitSink> {
        Arc::new(settle::Sink(Arc::downgrade(self)))
    }

    fn lock(&self) -> Locked<'_> {
        Locked(Some(self.state.lock()))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    fn receipt(&self, task: TaskId, key: &Arc<str>, cell: &Arc<Cell>) -> Receipt {
        Receipt {
            task,
            key: Arc::clone(key),
            journal: self.journal.journal_id(),
            cell: Arc::clone(cell),
            driver: self.driver.clone(),
            deadline: self.config.op_deadline,
            most: self.config.max_receipts,
        }
    }

    /// Something may be ready: each worker that takes a job wakes the next.
    fn wake_workers(&self) {
        self.work.notify_one();
        self.work_load.notify_one();
        self.work_checkpoint.notify_one();
    }

    /// From here on it is asked what may be taken.
    pub(crate) fn guard_with(&self, gate: Arc<dyn Gate>) {
        // Once, before there is a worker.
        let _ = self.gate.set(gate);
    }

    fn gate(&self) -> &dyn Gate {
        self.gate.get().map_or(&gate::Open, |gate| &**gate)
    }

    /// The next job for this slot; `None` once the queue has stopped.
    ///
    /// # Cancel safety
    /// A job that was returned is the caller's; dropped before that, nothing is taken.
    pub(crate) async fn next(&self, slot: Slot) -> Option<(Job, Pass)> {
        let wake = match slot {
            Slot::General => &self.work,
            Slot::Reserved(Lane::Load) => &self.work_load,
            Slot::Reserved(_) => &self.work_checkpoint,
        };
        loop {
            let mut notified = std::pin::pin!(wake.notified());
            // Listening before looking: what becomes ready in between is not missed.
            notified.as_mut().enable();
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            let (job, due) = self.take(slot);
            if job.is_some() {
                return job;
            }
            match due {
                Some(due) => tokio::select! {
                    biased;
                    () = notified => (),
                    () = tokio::time::sleep_until(due) => (),
                },
                None => notified.await,
            }
        }
    }

    fn take(&self, slot: Slot) -> (Option<(Job, Pass)>, Option<Instant>) {
        let (now, gate) = (Instant::now(), self.gate());
        let mut state = self.lock();
        // Asked and told under one lock: what one worker takes, the next does not.
        let may = gate.may(slot, now);
        let job = state.take(slot, may, now, gate, self.config.workers);
        let Some(job) = job else {
            let due = state.next_due(slot, may, now, gate, self.config.workers);
            return (None, due.into_iter().chain(may.again).min());
        };
        let pass = gate.took(slot, job.way(), job.bytes(), now);
        if pass.probes {
            state.call_probed = matches!(job, Job::Call(_));
        }
        drop(state);
        self.wake_workers();
        (Some((job, pass)), None)
    }

    /// Where the body of a task is; `None` once it has ended.
    pub(crate) fn body(&self, job: &TaskJob) -> Option<Source> {
        match (&job.action, &job.memory) {
            (Action::Delete, _) => None,
            (_, Some(kept)) => Some(Source::Memory(kept.bytes())),
            (Action::UploadBorrowed(borrowed), None) => Some(Source::File {
                fs: Arc::clone(&self.fs),
                path: borrowed.path.clone().into(),
                len: borrowed.len,
            }),
            (Action::Upload, None) => self.journal.payload(job.id.0).map(Source::Journal),
        }
    }

    /// The server ignores conditions: nothing new is taken that needs them.
    pub(crate) fn refuse_rewritable(&self) {
        self.lock().conditions_ignored = true;
    }

    /// No worker gets anything any more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.work.notify_waiters();
        self.work_load.notify_waiters();
        self.work_checkpoint.notify_waiters();
        self.room.notify_waiters();
    }

    /// Asks the journal again whether the disk has room, and the like: called now and then.
    pub(crate) fn tick(&self) {
        if self.lock().disk_full {
            self.journal.retry_space();
        }
        self.expire_quarantine();
    }

    /// The default deadline of operations.
    pub(crate) fn op_deadline(&self) -> Duration {
        self.config.op_deadline
    }

    /// Whether nothing is written before `deadline`, for the world is not right.
    fn is_parked_past(&self, deadline: Instant) -> bool {
        let until = self.gate().parked_until(Instant::now());
        until.is_some_and(|until| until >= deadline)
    }

    /// Waits until nothing is left that can move before `deadline` by itself.
    pub(crate) async fn run_dry(&self, deadline: Instant) {
        loop {
            let mut moved = std::pin::pin!(self.dry.notified());
            moved.as_mut().enable();
            {
                let state = self.lock();
                let paused = state.is_held() || self.is_parked_past(deadline);
                let disk_full = state.disk_full || state.journal_failed.is_some();
                let settling = !state.settling.is_empty() && !disk_full;
                let aborting = !paused
                    && (state.aborts.running() > 0
                        || state.aborts.has(|abort| abort.failures == 0));
                let moving = state.table.can_move(deadline, paused, disk_full)
                    || (!paused && self.is_coming(&state));
                if !settling && !aborting && !moving {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => return,
                () = moved => (),
            }
        }
    }
}
