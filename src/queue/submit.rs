//! The way in: from a submit to an admitted, journaled task.
//!
//! Owns: the checks, and the order of what is taken: nothing is changed before every check that
//! can be made has been made, and whatever was taken on the way is given back on every way out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, Limit, Result};
use crate::journal::{Append, Payload, StageSource};
use crate::remote::{Crc64, validate};

use super::admission::{Asker, Need, Permit, Pool};
use super::body::Source;
use super::memory::Kept;
use super::receipt::{Cell, Receipt, Settlement};
use super::record::{self, ActionRecord, TaskRecord};
use super::table::{OnKey, Status, Task};
use super::task::{
    Action, Body, Borrowed, Condition, KeyPolicy, Lane, MAX_AFTER, MAX_TAG_BYTES, Options, TaskId,
    cut,
};
use super::{Queue, State};

/// The longest entity tag that is taken: S3's own have 34 bytes, others' a few more.
const MAX_ETAG_BYTES: usize = 1024;
/// As long as any write id: what the metadata must leave room for.
const WRITE_ID_SHAPE: &str = "00000000000000000000000000000000-18446744073709551615";

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct Submission {
    pub key: String,
    /// `None` deletes the key.
    pub body: Option<Body>,
    pub options: Options,
    pub asker: Asker,
}

/// A submission that has passed every check that needs no room.
struct Checked {
    key: Arc<str>,
    action: Action,
    lane: Lane,
    options: Options,
    asker: Asker,
    after: Vec<TaskId>,
    len: u64,
    checksum: Option<Crc64>,
    /// The body, where the journal is to have it.
    keep: Keep,
    head: Bytes,
    record: TaskRecord,
}

enum Keep {
    Nothing,
    Bytes(Bytes),
    Adopt(PathBuf),
}

/// What a submission has taken, until a task has it.
struct Room {
    permit: Option<Permit>,
    payload: Payload,
    memory: Option<Kept>,
}

enum Admitted {
    New(Receipt),
    /// A pending task on its key that it has to be compared with first.
    Meets(TaskId),
}

impl Checked {
    const fn pool(&self) -> Pool {
        if matches!(self.lane, Lane::Checkpoint) {
            Pool::Reserve
        } else {
            Pool::Common
        }
    }

    fn joinable(&self) -> bool {
        self.options.condition.is_none() && self.after.is_empty()
    }

    /// The record. What the task is after may have been superseded since it was checked: its heir
    /// is on record then, for it is the heir that is owed after a restart.
    fn head_after(&self, after: &[TaskId]) -> Bytes {
        if after.iter().all(|id| self.record.after.contains(&id.0)) {
            return self.head.clone();
        }
        let after = after.iter().map(|id| id.0).collect();
        record::encode(&TaskRecord {
            after,
            ..self.record.clone()
        })
        .into()
    }

    fn upload(&self) -> Option<(u64, Option<Crc64>)> {
        (self.action != Action::Delete).then_some((self.len, self.checksum))
    }
}

impl Queue {
    /// Why a submit of `need` would have to wait now.
    pub(crate) fn submit_refusal(&self, lane: Option<Lane>, len: u64) -> Error {
        let pool = if lane == Some(Lane::Checkpoint) {
            Pool::Reserve
        } else {
            Pool::Common
        };
        self.admission.refusal(
            pool,
            Need {
                tasks: 1,
                bytes: len,
                disk: self.journal.need(256, len, self.journal.is_external(len)),
                memory: len,
            },
        )
    }

    /// Admits a task.
    ///
    /// # Cancel safety
    /// Until it returns, dropping the future leaves nothing behind; an adopted file is where it
    /// was.
    pub(crate) async fn submit(self: Arc<Self>, submission: Submission) -> Result<Receipt> {
        self.admission.open_for(submission.asker)?;
        self.bring_for(&submission.key, &submission.options.after)
            .await?;
        let checked = self.check(submission).await?;
        if let Some(joined) = self.join(&checked).await? {
            return Ok(joined);
        }
        let external = matches!(&checked.keep, Keep::Adopt(_))
            || matches!(&checked.keep, Keep::Bytes(b) if self.journal.is_external(b.len() as u64));
        let stored = if matches!(checked.keep, Keep::Nothing) {
            0
        } else {
            checked.len
        };
        let need = Need {
            tasks: 1,
            bytes: checked.len,
            disk: self.journal.need(checked.head.len(), stored, external),
            memory: match &checked.keep {
                Keep::Bytes(bytes) => bytes.len() as u64,
                Keep::Nothing | Keep::Adopt(_) => 0,
            },
        };
        let acquire = self.admission.acquire(checked.pool(), checked.asker, need);
        let mut permit = self.room(acquire).await?;
        let (payload, memory) = self.stage(&checked.keep, external).await?;
        crate::crash_point::crash_point("submit.staged");
        let memory = memory.map(|bytes| Kept::new(bytes, Some(permit.split_memory())));
        let mut room = Room {
            permit: Some(permit),
            payload,
            memory,
        };
        let mut compared = None;
        let receipt = loop {
            match self.admit(&checked, &mut room, compared)? {
                Admitted::New(receipt) => break receipt,
                // Somebody took the key while this one waited.
                Admitted::Meets(other) => match self.join(&checked).await? {
                    Some(joined) => return Ok(joined),
                    None => compared = Some(other),
                },
            }
        };
        Ok(receipt)
    }

    /// Every check that needs no room, and what they find out.
    async fn check(&self, submission: Submission) -> Result<Checked> {
        let Submission {
            key,
            body,
            options,
            asker,
        } = submission;
        validate::key(&self.prefix, &key)?;
        validate::headers(&options.headers, Some(WRITE_ID_SHAPE))?;
        check_options(&options, body.is_some())?;
        if options.policy == KeyPolicy::Rewritable && self.lock().conditions_ignored {
            return Err(Error::ConditionsUnsupported(
                "the server was seen to ignore the conditions of requests".to_owned(),
            ));
        }
        let after = self.dependencies(&options)?;
        let lane = options.lane.unwrap_or(match body {
            Some(_) => Lane::Foreground,
            None => Lane::Background,
        });
        let (action, len, checksum, keep) = match body {
            None => (Action::Delete, 0, None, Keep::Nothing),
            Some(Body::Bytes(bytes)) => {
                let (len, checksum) = (bytes.len() as u64, Crc64::of(&bytes));
                (Action::Upload, len, Some(checksum), Keep::Bytes(bytes))
            }
            Some(Body::Adopt(path)) => {
                let path = absolute(&path)?;
                let len = self.stat(&path).await?.len;
                let source = Source::File {
                    fs: Arc::clone(&self.fs),
                    path: path.clone(),
                    len,
                };
                let checksum = self
                    .io
                    .run(move || source.checksum())
                    .await
                    .and_then(|read| read)
                    .map_err(|error| Error::directory(&path, &error))?;
                (Action::Upload, len, Some(checksum), Keep::Adopt(path))
            }
            Some(Body::Borrow(path)) => {
                let path = absolute(&path)?;
                let stat = self.stat(&path).await?;
                let Some(name) = path.to_str() else {
                    return Err(Error::InvalidInput {
                        what: "path",
                        value: path.display().to_string(),
                        limit: "a borrowed file's path is UTF-8".to_owned(),
                    });
                };
                let borrowed = Borrowed::new(name.to_owned(), &stat);
                (
                    Action::UploadBorrowed(Arc::new(borrowed)),
                    stat.len,
                    None,
                    Keep::Nothing,
                )
            }
        };
        validate::object(len)?;
        let record = TaskRecord {
            key: key.clone(),
            lane,
            policy: options.policy,
            action: ActionRecord::from(&action),
            condition: options.condition.clone(),
            coalesce: options.coalesce,
            after: after.iter().map(|id| id.0).collect(),
            tag: options.tag.clone(),
            headers: options.headers.clone(),
            len,
            checksum,
        };
        let checked = Checked {
            key: Arc::from(key),
            action,
            lane,
            options,
            asker,
            after,
            len,
            checksum,
            keep,
            head: record::encode(&record).into(),
            record,
        };
        Ok(checked)
    }

    async fn stat(&self, path: &Path) -> Result<crate::journal::fs::Stat> {
        let (fs, at) = (Arc::clone(&self.fs), path.to_owned());
        match self
            .io
            .run(move || fs.stat(&at))
            .await
            .and_then(|stat| stat)
        {
            Ok(stat) if !stat.is_file => Err(Error::InvalidInput {
                what: "path",
                value: path.display().to_string(),
                limit: "a regular file".to_owned(),
            }),
            Ok(stat) => Ok(stat),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::SourceMissing {
                    path: path.to_owned(),
                })
            }
            Err(error) => Err(Error::directory(path, &error)),
        }
    }

    /// What the task must really wait for, of what it was said to be after.
    fn dependencies(&self, options: &Options) -> Result<Vec<TaskId>> {
        let mut after = Vec::with_capacity(options.after.len());
        for receipt in &options.after {
            if receipt.journal != self.journal.journal_id() {
                return Err(Error::ForeignReceipt(receipt.task));
            }
            match receipt.settlement() {
                None => after.push(receipt.task),
                Some(settlement) if settlement.is_in_s3() => (),
                // It may be replayed: the new task is parked behind it.
                // The same after a restart, of a task that is still owed.
                Some(Settlement::Quarantined(_) | Settlement::Deferred)
                    if self.lock().table.get(receipt.task).is_some() =>
                {
                    after.push(receipt.task);
                }
                Some(settlement) => {
                    return Err(Error::DependencyFailed {
                        task: receipt.task,
                        settlement: Box::new(settlement),
                    });
                }
            }
        }
        after.sort_unstable();
        after.dedup();
        Ok(after)
    }

    /// A receipt of the pending task with the same bytes, where there is one.
    async fn join(&self, checked: &Checked) -> Result<Option<Receipt>> {
        let (candidate, theirs) = {
            let state = self.lock();
            let on_key = state.table.on_key(
                &checked.key,
                checked.options.policy,
                checked.upload(),
                &checked.options.headers,
                checked.joinable(),
            );
            match on_key {
                OnKey::Free => return Ok(None),
                OnKey::Taken(pending) => {
                    return Err(Error::KeyPending {
                        key: checked.key.to_string(),
                        pending,
                    });
                }
                OnKey::Perhaps(id) => {
                    let memory = state.table.get(id).and_then(|task| task.memory.as_ref());
                    (id, memory.map(|kept| Source::Memory(kept.bytes())))
                }
            }
        };
        let on_disk = || self.journal.payload(candidate.0).map(Source::Journal);
        let theirs = match theirs.or_else(on_disk) {
            // A file on its way into the journal.
            None => {
                let _ = self.journal.wait_durable(candidate.0).await;
                on_disk()
            }
            found => found,
        };
        let ours = match &checked.keep {
            Keep::Bytes(bytes) => Some(Source::Memory(bytes.clone())),
            Keep::Adopt(path) => Some(Source::File {
                fs: Arc::clone(&self.fs),
                path: path.clone(),
                len: checked.len,
            }),
            Keep::Nothing => None,
        };
        let same = match (ours, theirs) {
            (Some(Source::Memory(ours)), Some(Source::Memory(theirs))) => ours == theirs,
            (Some(ours), Some(theirs)) => self
                .io
                .run(move || ours.same_bytes(&theirs))
                .await
                .and_then(|read| read)
                .map_err(|error| Error::directory(&self.config.dir, &error))?,
            _ => false,
        };
        let state = self.lock();
        match state.table.get(candidate) {
            Some(task) if same => {
                let cell = task.told_cell();
                self.may_have_another(&cell)?;
                Ok(Some(self.receipt(candidate, &task.key, &cell)))
            }
            Some(task) if checked.options.policy == KeyPolicy::WriteOnce => {
                Err(Error::KeyPending {
                    key: checked.key.to_string(),
                    pending: task.id,
                })
            }
            _ => Ok(None),
        }
    }

    /// Whether one more may hold a receipt of this task.
    fn may_have_another(&self, cell: &Arc<Cell>) -> Result<()> {
        // The table has one, and this call another.
        let held = (Arc::strong_count(cell) as u64).saturating_sub(2);
        match held < self.config.max_receipts {
            true => Ok(()),
            false => Err(Error::QueueFull {
                limit: Limit::Receipts,
                current: held,
                max: self.config.max_receipts,
                retry_after: self.config.retry_base,
            }),
        }
    }

    /// Puts the body where the journal wants it. Small ones stay in memory and go into the record.
    async fn stage(&self, keep: &Keep, external: bool) -> Result<(Payload, Option<Bytes>)> {
        Ok(match keep {
            Keep::Nothing => (Payload::None, None),
            Keep::Bytes(bytes) if external => {
                let staged = self
                    .journal
                    .stage(StageSource::Bytes(bytes.clone()))
                    .await?;
                (Payload::Staged(staged), Some(bytes.clone()))
            }
            Keep::Bytes(bytes) => (Payload::Inline(bytes.clone()), Some(bytes.clone())),
            Keep::Adopt(path) => (
                Payload::Staged(self.journal.stage(StageSource::Link(path.clone())).await?),
                None,
            ),
        })
    }

    /// The one instant at which a task comes to be: its record is on its way and it is in the
    /// table, or neither. `compared` is a task that is known to have other bytes.
    fn admit(
        &self,
        checked: &Checked,
        room: &mut Room,
        compared: Option<TaskId>,
    ) -> Result<Admitted> {
        let mut state = self.lock();
        self.admission.open_for(checked.asker)?;
        match state.table.on_key(
            &checked.key,
            checked.options.policy,
            checked.upload(),
            &checked.options.headers,
            checked.joinable(),
        ) {
            OnKey::Free => (),
            OnKey::Perhaps(other) if Some(other) == compared => (),
            OnKey::Perhaps(other) => return Ok(Admitted::Meets(other)),
            OnKey::Taken(pending) => {
                return Err(Error::KeyPending {
                    key: checked.key.to_string(),
                    pending,
                });
            }
        }
        let after = still_owed(&state, checked)?;
        let payload = std::mem::take(&mut room.payload);
        let record = Append::begin(record::kind::TASK, checked.head_after(&after), payload);
        let id = TaskId(self.journal.append(record)?);
        crate::crash_point::crash_point("submit.appended");
        state.last_id = id;
        if let Keep::Adopt(path) = &checked.keep {
            // Linked into our directory; its old name goes when the record is durable.
            state.adopted.insert(id, path.clone());
        }
        let cell = Cell::new();
        let receipt = self.receipt(id, &checked.key, &cell);
        state.table.insert(Task {
            id,
            key: Arc::clone(&checked.key),
            lane: checked.lane,
            policy: checked.options.policy,
            action: checked.action.clone(),
            condition: checked.options.condition.clone(),
            coalesce: checked.options.coalesce,
            after,
            tag: checked.options.tag.clone(),
            headers: Arc::new(checked.options.headers.clone()),
            len: checked.len,
            checksum: checked.checksum,
            memory: room.memory.take(),
            permit: room.permit.take(),
            cell,
            superseded: Vec::new(),
            cover: id,
            since: Instant::now(),
            durable: false,
            status: Status::Waiting,
            failures: 0,
            failed_before: 0,
            attempts: 0,
            last_error: None,
            parked_ms: 0,
            history: Vec::new(),
            crashes: 0,
            sent: false,
            suspect: false,
            aside: false,
            multipart: None,
        });
        Ok(Admitted::New(receipt))
    }
}

/// What the task is after, looked at again under the lock: one that ended meanwhile is known by
/// its receipt.
fn still_owed(state: &State, checked: &Checked) -> Result<Vec<TaskId>> {
    let mut after = Vec::with_capacity(checked.after.len());
    for id in &checked.after {
        if let Some(owed) = state.table.resolve(*id) {
            after.push(owed);
            continue;
        }
        let receipt = checked
            .options
            .after
            .iter()
            .find(|receipt| receipt.task == *id);
        let settlement = receipt
            .and_then(Receipt::settlement)
            .or_else(|| state.settling_of(*id))
            .unwrap_or(Settlement::Cancelled);
        if !settlement.is_in_s3() {
            return Err(Error::DependencyFailed {
                task: *id,
                settlement: Box::new(settlement),
            });
        }
    }
    Ok(after)
}

impl State {
    /// How a task ended whose end is on its way to the disk.
    fn settling_of(&self, id: TaskId) -> Option<Settlement> {
        self.settling
            .values()
            .find(|ended| ended.id == id)
            .map(|ended| ended.settlement.clone())
    }
}

/// The path as it is whatever becomes of the working directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::InvalidInput {
        what: "path",
        value: path.display().to_string(),
        limit: error.to_string(),
    })
}

fn check_options(options: &Options, uploads: bool) -> Result<()> {
    let bad = |what, value: String, limit: &str| {
        Err(Error::InvalidInput {
            what,
            value,
            limit: limit.to_owned(),
        })
    };
    if options.lane == Some(Lane::Load) {
        return bad(
            "lane",
            "Load".to_owned(),
            "uploads and deletes go by the other lanes",
        );
    }
    if options.tag.len() > MAX_TAG_BYTES {
        return bad(
            "tag",
            format!("{} bytes", options.tag.len()),
            "at most 256 bytes",
        );
    }
    if options.after.len() > MAX_AFTER {
        return bad(
            "after",
            format!("{} receipts", options.after.len()),
            "at most 1,024",
        );
    }
    if options.coalesce && options.policy == KeyPolicy::WriteOnce {
        return bad(
            "coalesce",
            "true".to_owned(),
            "only rewritable keys are coalesced",
        );
    }
    if let Some(Condition::IfMatch(etag)) = &options.condition {
        let visible = |byte: u8| (0x21..=0x7e).contains(&byte) || byte >= 0x80;
        let fits = (1..=MAX_ETAG_BYTES).contains(&etag.0.len());
        if !fits || !etag.0.bytes().all(visible) {
            return bad(
                "entity tag",
                cut(etag.0.clone()),
                "1 to 1,024 bytes, none of them white space or a control character",
            );
        }
    }
    if !uploads && matches!(options.condition, Some(Condition::IfAbsent { .. })) {
        return bad(
            "condition",
            "IfAbsent".to_owned(),
            "a delete takes no IfAbsent",
        );
    }
    Ok(())
}
