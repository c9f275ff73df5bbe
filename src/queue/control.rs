//! What callers and operators do to a queue besides submitting: look, wait, pause, take back.
//!
//! Owns: these verbs. Does not own: what state they find (`table.rs`), or quarantine
//! (`quarantine.rs`).

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::{Error, Limit, Result};
use crate::remote::Class;
use crate::time::millis;
use crate::watched::Watched;

use super::admission::{Asker, Need, Pool};
use super::load::{Load, LoadCell};
use super::receipt::{Cell, Receipt, Settlement};
use super::record::{ActionRecord, TaskRecord};
use super::table::Status;
use super::task::{Action, Lane, TaskId, cut};
use super::{Queue, Totals};

/// What is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseWhat {
    /// Nothing new is admitted; what was admitted goes up.
    Admission,
    /// Nothing is sent to S3; submits are admitted up to the limits.
    Uploads,
}

/// A task that is owed.
#[derive(Debug, Clone)]
pub struct PendingTask {
    /// A receipt of it: settles like the one its submitter got.
    pub receipt: Receipt,
    /// Its key.
    pub key: String,
    /// Its submitter's name for it.
    pub tag: String,
    /// Its lane.
    pub lane: Lane,
    /// Bytes of its body.
    pub len: u64,
    /// Whether it deletes its key.
    pub deletes: bool,
    /// What it is doing: `waiting`, `ready`, `running`, `in back-off` or `quarantined`; `unread`
    /// where an earlier life left it and the disk does not give its record back: then nothing else
    /// is known of it, and that is tried again.
    pub state: &'static str,
    /// Attempts that failed in a row since open.
    pub failures: u32,
    /// The last failure, at most 1 KiB; from before open as long as there is none since.
    pub last_error: Option<String>,
}

/// A task that failed.
#[derive(Debug)]
pub(crate) struct Failing {
    pub task: TaskId,
    pub key: String,
    pub quarantined: bool,
    pub failures: u32,
    pub cause: String,
}

enum Body {
    Here(super::body::Source),
    Nothing,
    Remote,
    NotYet(TaskId),
}

impl Queue {
    pub(crate) fn pause(&self, what: PauseWhat, paused: bool) {
        match what {
            PauseWhat::Admission => self.admission.pause(paused),
            PauseWhat::Uploads => {
                let mut state = self.lock();
                state.paused_uploads = paused;
                if !paused {
                    state.crash_loop = None;
                }
                if paused {
                    state.drains.all_failed(&Error::Paused("uploads"));
                }
            }
        }
        self.changed();
    }

    /// The process died in the last `opens` opens: nothing is taken and nothing sent before an
    /// operator has looked.
    pub(crate) fn comes_up_paused(&self, opens: u32) {
        tracing::error!(
            dir = %self.config.dir.display(), opens,
            "the process died in each of the last opens: uploads and admission are paused until they are resumed"
        );
        self.pause(PauseWhat::Admission, true);
        self.pause(PauseWhat::Uploads, true);
        self.lock().crash_loop = Some(opens);
    }

    pub(crate) fn crash_loop(&self) -> Option<u32> {
        self.lock().crash_loop
    }

    /// The directory was copied or moved, and its operator says that this one is to send.
    pub(crate) async fn adopt(&self) -> Result<()> {
        self.takes_records(&self.lock())?;
        let journal = self.journal.clone();
        self.io
            .run(move || journal.adopt())
            .await
            .map_err(|error| Error::directory(&self.config.dir, &error))??;
        self.lock().moved = false;
        self.moved_on();
        Ok(())
    }

    pub(crate) fn is_moved(&self) -> bool {
        self.lock().moved
    }

    /// All that is owed, in order of submission.
    pub(crate) fn pending(&self) -> Vec<PendingTask> {
        let mut records = self.read_all();
        let state = &mut *self.lock();
        let mut pending: Vec<_> = state
            .table
            .iter()
            .map(|task| PendingTask {
                receipt: self.receipt(task.id, &task.key, &task.told_cell()),
                key: task.key.to_string(),
                tag: task.tag.clone(),
                lane: task.lane,
                len: task.len,
                deletes: task.action == Action::Delete,
                state: task.status.name(),
                failures: task.failures,
                last_error: task.last_error.clone(),
            })
            .collect();
        for id in state.backlog.next(usize::MAX) {
            let cell = state.backlog.cell(id);
            let why = state.backlog.why_unread(id).map(str::to_owned);
            pending.push(self.to_come(id, &cell, records.remove(&id), why));
        }
        pending.sort_unstable_by_key(|task| task.receipt.task);
        pending
    }

    /// A task of the backlog as it is listed; without its record nothing is known of it.
    fn to_come(
        &self,
        id: TaskId,
        cell: &Arc<Cell>,
        record: Option<TaskRecord>,
        why: Option<String>,
    ) -> PendingTask {
        let state = match record {
            Some(_) => Status::Waiting.name(),
            None => "unread",
        };
        let (key, tag, lane, len, deletes) = record.map_or_else(
            || (String::new(), String::new(), Lane::Background, 0, false),
            |record| {
                let deletes = record.action == ActionRecord::Delete;
                (record.key, record.tag, record.lane, record.len, deletes)
            },
        );
        PendingTask {
            receipt: self.receipt(id, &Arc::from(key.as_str()), cell),
            key,
            tag,
            lane,
            len,
            deletes,
            state,
            failures: 0,
            last_error: why,
        }
    }

    /// Takes back a task that is not in flight.
    pub(crate) fn cancel(&self, id: TaskId) -> Result<()> {
        self.take_back(id, |task| match task.status {
            Status::Running { .. } => Err(Error::WrongState {
                task: id,
                state: task.status.name(),
                wanted: "a task that is not in flight",
            }),
            _ => Ok(()),
        })
    }

    /// Waits until all that was submitted before is in S3.
    pub(crate) async fn drain(self: Arc<Self>) -> Result<()> {
        let drain = {
            let mut state = self.lock();
            if state.closed {
                // What was left has been settled, and is not in the table any more.
                let phase = crate::phase::Phase::Closed;
                return Err(Error::ShuttingDown { phase });
            }
            if let Some(missed) = state.drains.take_missed() {
                return Err(missed);
            }
            let upto = state.last_id;
            if state.first_open().is_none_or(|open| open > upto) {
                return Ok(());
            }
            if let Some(task) = state.table.quarantined().find(|task| task.cover <= upto) {
                let Status::Quarantined(cause) = &task.status else {
                    return Ok(());
                };
                return Err(Error::NotUploaded {
                    task: task.id,
                    key: task.key.to_string(),
                    settlement: Box::new(Settlement::Quarantined(cause.clone())),
                });
            }
            if let Some((task, why)) = state.backlog.unread().next() {
                return Err(self.not_read(task, why));
            }
            if state.paused_uploads {
                return Err(Error::Paused("uploads"));
            }
            if state.moved {
                return Err(Error::Paused(
                    "the directory was moved or copied: adopt it first",
                ));
            }
            state.drains.add(upto)
        };
        drain.done().await
    }

    /// Waits until a task of `bytes` would be admitted.
    pub(crate) async fn ready(self: Arc<Self>, bytes: u64) -> Result<()> {
        let need = Need {
            tasks: 1,
            bytes,
            // What is larger than the queue is refused before its disk matters.
            disk: self
                .journal
                .need(256, bytes.min(self.config.max_bytes), false),
            memory: bytes.min(self.config.max_memory_bytes),
        };
        let acquire = self.admission.acquire(Pool::Common, Asker::Anyone, need);
        self.room(acquire).await.map(drop)
    }

    /// The object at a key, or a range of it: from a body that is still here, else from S3.
    pub(crate) async fn get(
        self: Arc<Self>,
        key: String,
        range: Option<(u64, u64)>,
    ) -> Result<Bytes> {
        crate::remote::validate::key(&self.prefix, &key)?;
        self.bring_for(&key, &[]).await?;
        let mut looks = 0;
        loop {
            looks += 1;
            match self.find(&key) {
                Body::Nothing => return Err(Error::NotFound { key }),
                Body::Here(source) => {
                    let (from, len) = within(&key, range, source.len())?;
                    let len = usize::try_from(len).unwrap_or(usize::MAX);
                    match source.read(&self.io, from, len).await {
                        Ok(bytes) => return Ok(bytes),
                        // Its task has ended meanwhile, and its file is gone: look again.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound && looks < 8 => {
                        }
                        Err(error) => return Err(Error::directory(&self.config.dir, &error)),
                    }
                }
                Body::NotYet(id) if looks < 8 => {
                    // Refused or not: what became of it is looked at again.
                    let _ = self.journal.wait_durable(id.0).await;
                }
                Body::Remote | Body::NotYet(_) => return self.load(key, range).await,
            }
        }
    }

    /// Where the bytes are that the last submit on a key left.
    fn find(&self, key: &str) -> Body {
        let state = self.lock();
        let Some(task) = state.table.last_on(key) else {
            return Body::Remote;
        };
        match (&task.action, &task.memory) {
            (Action::Delete, _) => Body::Nothing,
            (_, Some(kept)) => Body::Here(super::body::Source::Memory(kept.bytes())),
            (Action::UploadBorrowed(borrowed), None) => Body::Here(super::body::Source::File {
                fs: Arc::clone(&self.fs),
                path: borrowed.path.clone().into(),
                len: borrowed.len,
            }),
            (Action::Upload, None) => match self.journal.payload(task.id.0) {
                Some(payload) => Body::Here(super::body::Source::Journal(payload)),
                // A file on its way into the journal: what S3 has is older than it.
                None if !task.durable => Body::NotYet(task.id),
                None => Body::Remote,
            },
        }
    }

    /// Puts a load into line that is bounded by who makes it; `false` once all is closed.
    pub(crate) fn submit_load(&self, load: Load) -> bool {
        {
            let mut state = self.lock();
            if state.closed {
                return false;
            }
            state.loads.push(load);
        }
        self.moved_on();
        true
    }

    /// A load that waits has become urgent.
    pub(crate) fn wake_for_load(&self) {
        self.changed();
    }

    async fn load(&self, key: String, range: Option<(u64, u64)>) -> Result<Bytes> {
        let cell = {
            let mut state = self.lock();
            // Refused as an upload would be, once shutdown has closed the door. Looked at under
            // the lock: what comes after the end has settled everything would wait for ever.
            if let Some(phase) = self.admission.closed() {
                return Err(Error::ShuttingDown { phase });
            }
            if state.loads.len() as u64 >= self.config.max_loads {
                state.loads.prune(Load::is_kept);
            }
            let waiting = state.loads.len() as u64;
            if waiting >= self.config.max_loads {
                return Err(Error::QueueFull {
                    limit: Limit::Loads,
                    current: waiting,
                    max: self.config.max_loads,
                    retry_after: self.config.retry_base,
                });
            }
            let cell = Arc::new(LoadCell(Watched::new(None)));
            let weak = Arc::downgrade(&cell);
            state.loads.push(Load {
                key: Arc::from(key.as_str()),
                range,
                sink: weak,
                failures: 0,
            });
            cell
        };
        self.moved_on();
        let loaded = match (cell.0.until(Clone::clone).await, self.admission.closed()) {
            // Cut off, or not tried again: that is what shutdown does, and says.
            (Err(error), Some(phase)) if error.class == Class::Transient => {
                return Err(Error::ShuttingDown { phase });
            }
            (loaded, _) => loaded?,
        };
        match loaded {
            None => Err(Error::NotFound { key }),
            Some((bytes, size)) => {
                within(&key, range, size)?;
                Ok(bytes)
            }
        }
    }

    /// Counts for the snapshot.
    pub(crate) fn counts(&self) -> Counts {
        let state = self.lock();
        let [waiting, ready, running, delayed, quarantined] = state.table.counts();
        let backlog = state.backlog.len();
        let [oldest, oldest_ready] = state.table.oldest();
        let oldest = oldest.or((backlog > 0).then_some(state.recovered_at));
        let age = |since: Option<Instant>| since.map_or(0, |since| millis(since.elapsed()));
        Counts {
            tasks: state.table.len() + backlog,
            waiting: waiting + backlog,
            backlog,
            ready,
            running,
            delayed,
            quarantined,
            settling: state.settling.len(),
            loads: state.loads.len(),
            images: state.images.len(),
            oldest_ms: age(oldest),
            oldest_ready_ms: age(oldest_ready),
            recovering: backlog > 0 || state.table.is_recovering(state.recovered),
            paused_uploads: state.paused_uploads,
            crash_loop: state.crash_loop,
            moved: state.moved,
            disk_full: state.disk_full,
            journal_failed: state.journal_failed.clone(),
        }
    }

    /// Up to `most` tasks that a worker has, or that failed: for the stall report.
    pub(crate) fn notable(&self, most: usize) -> Vec<String> {
        let state = self.lock();
        let mut notable = Vec::new();
        for task in state.table.iter() {
            if notable.len() == most {
                break;
            }
            let doing = match &task.status {
                Status::Running { since } => format!("in flight for {:?}", since.elapsed()),
                Status::Delayed { until } => {
                    format!(
                        "in back-off for {:?}",
                        until.saturating_duration_since(Instant::now())
                    )
                }
                _ => continue,
            };
            let error = task.last_error.as_deref().unwrap_or("none");
            notable.push(format!(
                "task {} on {:?}: {doing}, failures {}, last error {error}",
                task.id, task.key, task.failures
            ));
        }
        if !state.backlog.is_empty() {
            notable.push(format!(
                "{} tasks of an earlier life have not come in yet",
                state.backlog.len()
            ));
        }
        for (id, why) in state.backlog.unread().take(most) {
            notable.push(format!("task {id} cannot be read back: {why}"));
        }
        notable
    }

    /// Up to `most` tasks that have failed, the oldest first.
    pub(crate) fn failing(&self, most: usize) -> Vec<Failing> {
        let state = self.lock();
        let mut failing: Vec<_> = state
            .table
            .iter()
            .filter_map(|task| {
                let quarantined = match &task.status {
                    Status::Quarantined(cause) => Some(format!("{cause:?}")),
                    _ => None,
                };
                Some(Failing {
                    task: task.id,
                    key: task.key.to_string(),
                    quarantined: quarantined.is_some(),
                    failures: task.failures,
                    cause: cut(quarantined.or_else(|| task.last_error.clone())?),
                })
            })
            .collect();
        failing.extend(state.backlog.unread().map(|(task, why)| Failing {
            task,
            key: String::new(),
            quarantined: false,
            failures: 0,
            cause: cut(format!("its record cannot be read back: {why}")),
        }));
        failing.sort_unstable_by_key(|task| task.task);
        failing.truncate(most);
        failing
    }

    /// Whether there is work that ought to move.
    pub(crate) fn ought_to_move(&self) -> bool {
        let state = self.lock();
        let [waiting, ready, running, delayed, _] = state.table.counts();
        let stuck_by_choice = state.is_held();
        !stuck_by_choice
            && (waiting + ready + running + delayed + state.backlog.len() > 0
                || state.loads.len() > 0
                || state.images.len() > 0
                || !state.settling.is_empty())
    }

    /// The progress counter: equal twice, nothing has moved in between.
    pub(crate) fn progress(&self) -> u64 {
        Totals::read(&self.totals.progress)
    }
}

/// Tasks by state, and what stands in their way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All that are owed.
    pub tasks: usize,
    /// Not yet durable, behind another on their key, or after one that is not in S3.
    pub waiting: usize,
    /// Of those: left by an earlier life, and not read back yet.
    pub backlog: usize,
    /// Could run now.
    pub ready: usize,
    /// In flight.
    pub running: usize,
    /// In back-off.
    pub delayed: usize,
    /// In quarantine.
    pub quarantined: usize,
    /// Ended, and on their way to the disk.
    pub settling: usize,
    /// Reads that wait for S3 or are in flight.
    pub loads: usize,
    /// Images of parts that wait for S3 or are in flight.
    pub images: usize,
    /// Age of the oldest task that is neither in quarantine nor behind one that is, in milliseconds.
    pub oldest_ms: u64,
    /// Age of the oldest task that could run and does not, in milliseconds.
    pub oldest_ready_ms: u64,
    /// Some of what an earlier life left is not in S3 yet.
    pub recovering: bool,
    /// An operator paused uploads.
    pub paused_uploads: bool,
    /// The process died in this many opens in a row, so that this one came up paused.
    pub crash_loop: Option<u32>,
    /// The directory was moved or copied, and sends nothing until it is adopted.
    pub moved: bool,
    /// The disk has no room for new records.
    pub disk_full: bool,
    /// Why the journal takes nothing more, if so.
    pub journal_failed: Option<String>,
}

/// A range within `size` bytes.
fn within(key: &str, range: Option<(u64, u64)>, size: u64) -> Result<(u64, u64)> {
    let Some((from, len)) = range else {
        return Ok((0, size));
    };
    match from.checked_add(len) {
        Some(end) if end <= size => Ok((from, len)),
        _ => Err(Error::OutOfRange {
            key: key.to_owned(),
            from,
            len,
            size,
        }),
    }
}
