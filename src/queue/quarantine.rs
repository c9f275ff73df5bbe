//! Quarantine: what cannot go up is kept until somebody decides.
//!
//! Owns: how a task goes there and what is put on record of it, and what an operator does with it:
//! list, show, replay, purge, export. Does not own: the caps (`admission.rs`), or which failure
//! leads there (`worker`).
//!
//! 1. Nothing leaves but by a replay, a purge, or the expiry that was asked for in so many words.
//! 2. It holds its key and what is after it: what was submitted later on the key comes later, so
//!    that a replay never overwrites a newer generation.
//! 3. When it came, why, and after how many attempts and crashes is on record, and so is every
//!    earlier stay that a replay ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::journal::Append;
use crate::journal::fs::{Fs, OpenMode};
use crate::remote::Crc64;
use crate::time::millis;

use super::admission::{Asker, Need, Permit};
use super::body::Source;
use super::receipt::Receipt;
use super::record::{self, Crashes, Parked, kind, slot};
use super::table::{Status, Task};
use super::task::{Action, Cause, TaskId, cut};
use super::{Queue, State};

/// Earlier stays that are kept of one task.
pub const MAX_HISTORY: usize = 8;
/// What is kept of the last error on record: its note has to find room on a full disk too.
const MAX_ERROR_ON_RECORD: usize = 256;

/// A task in quarantine.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantinedTask {
    /// Its id: what `replay`, `purge` and `export` take.
    pub task: TaskId,
    /// Its key, which it holds: later tasks on it wait.
    pub key: String,
    /// Its submitter's name for it.
    pub tag: String,
    /// Bytes of its body.
    pub len: u64,
    /// Whether it deletes its key.
    pub deletes: bool,
    /// Why.
    pub cause: Cause,
    /// When it came here, in milliseconds since the Unix epoch. Survives a restart.
    pub since_unix_ms: u64,
    /// Attempts that had been started by then, since its submission or its last replay. Of those
    /// before a restart only the last is known.
    pub attempts: u32,
    /// Crashes of the process that were charged to it.
    pub crashes: u32,
    /// The last failure of an attempt.
    pub last_error: Option<String>,
    /// Earlier stays, the oldest first; at most the last [`MAX_HISTORY`].
    pub history: Vec<PastQuarantine>,
}

/// An earlier stay in quarantine, which a replay ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastQuarantine {
    /// Why it was there.
    pub cause: Cause,
    /// When it came, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Attempts that had been started by then.
    pub attempts: u32,
    /// Crashes that had been charged to it.
    pub crashes: u32,
    /// When it was replayed, in milliseconds since the Unix epoch.
    pub replayed_unix_ms: u64,
}

/// What [`export`](crate::UploadQueue::export) wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Bytes of the body.
    pub bytes: u64,
    /// Whether they are the ones that were submitted, by their checksum. `None` where none is
    /// known: of a borrowed file that was never read.
    pub intact: Option<bool>,
}

impl Task {
    fn to_quarantined(&self) -> Option<QuarantinedTask> {
        let Status::Quarantined(cause) = &self.status else {
            return None;
        };
        Some(QuarantinedTask {
            task: self.id,
            key: self.key.to_string(),
            tag: self.tag.clone(),
            len: self.len,
            deletes: self.action == Action::Delete,
            cause: cause.clone(),
            since_unix_ms: self.parked_ms,
            attempts: self.attempts,
            crashes: self.crashes,
            last_error: self.last_error.clone(),
            history: self.history.clone(),
        })
    }

    /// The note of its quarantine.
    pub(super) fn quarantine_note(&self, cause: &Cause) -> Append {
        let mut last_error = self.last_error.clone();
        if let Some(error) = &mut last_error {
            let end = error.floor_char_boundary(MAX_ERROR_ON_RECORD);
            error.truncate(end);
        }
        let head = record::encode_quarantine(
            cause,
            &Parked {
                at_unix_ms: self.parked_ms,
                attempts: self.attempts,
                crashes: self.crashes,
                last_error,
            },
        );
        // Before the end of what it depended on, on a full disk too.
        Append::note(kind::NOTE, self.id.0, slot::QUARANTINE, head).vital()
    }
}

/// What a cause says of the attempt that led to it.
fn error_of(cause: &Cause) -> Option<String> {
    match cause {
        Cause::Refused(error) => Some(error.to_string()),
        Cause::Panicked(text)
        | Cause::LocalCorruption(text)
        | Cause::SourceMissing(text)
        | Cause::SourceChanged(text) => Some(text.clone()),
        _ => None,
    }
}

impl Queue {
    /// Writes down that a task is in quarantine now, and gives it its place there. Returns the
    /// note that is to be put on record.
    pub(super) fn park(&self, state: &mut State, id: TaskId, cause: &Cause) -> Option<Append> {
        let now = self.clock.unix_ms();
        let task = state.table.get_mut(id)?;
        task.parked_ms = now;
        if let Some(error) = error_of(cause) {
            task.last_error = Some(cut(error));
        }
        task.permit = Some(self.admission.quarantine(task.len));
        Some(task.quarantine_note(cause))
    }

    pub(crate) fn quarantined(&self) -> Vec<QuarantinedTask> {
        let state = self.lock();
        state
            .table
            .quarantined()
            .filter_map(Task::to_quarantined)
            .collect()
    }

    pub(crate) fn quarantined_task(&self, id: TaskId) -> Result<QuarantinedTask> {
        self.bring_task(id)?;
        let state = self.lock();
        let task = state.table.get(id).ok_or(Error::NoSuchTask(id))?;
        task.to_quarantined().ok_or_else(|| not_quarantined(task))
    }

    /// Puts a task that is in quarantine into line again.
    pub(crate) async fn replay(self: Arc<Self>, id: TaskId) -> Result<Receipt> {
        // What was admitted under larger limits comes back under smaller ones: alone.
        let need = Need {
            tasks: 1,
            bytes: self.quarantined_task(id)?.len.min(self.config.max_bytes),
            ..Need::default()
        };
        let permit = self.admission.acquire_to_replay(need).await?;
        let (receipt, place) = self.replay_with(id, permit)?;
        // Not before: this may let somebody in.
        drop(place);
        self.moved_on();
        Ok(receipt)
    }

    fn replay_with(&self, id: TaskId, permit: Permit) -> Result<(Receipt, Option<Permit>)> {
        let mut state = self.lock();
        self.admission.open_for(Asker::Anyone)?;
        // Purged or replayed by somebody else meanwhile.
        let task = state.table.get(id).ok_or(Error::NoSuchTask(id))?;
        let Status::Quarantined(cause) = &task.status else {
            return Err(not_quarantined(task));
        };
        let key = Arc::clone(&task.key);
        let mut history = task.history.clone();
        history.push(PastQuarantine {
            cause: cause.clone(),
            since_unix_ms: task.parked_ms,
            attempts: task.attempts,
            crashes: task.crashes,
            replayed_unix_ms: self.clock.unix_ms(),
        });
        history.drain(..history.len().saturating_sub(MAX_HISTORY));
        // On its way to the disk before anything is changed: a journal that has failed takes none.
        // Whatever of it a crash leaves is sound: that it starts anew, and none of its attempts so
        // far is charged any more, comes before that it has left.
        let counted_to = self.journal.status().next_location.saturating_sub(1);
        let forgiven = record::encode(&Crashes {
            count: 0,
            counted_to,
        });
        let past = record::encode(&history);
        for (slot, head) in [
            (slot::CRASHES, forgiven),
            (slot::FAILED, Vec::new()),
            (slot::QUARANTINE, Vec::new()),
            (slot::HISTORY, past),
        ] {
            self.journal
                .append(Append::note(kind::NOTE, id.0, slot, head))?;
        }
        crate::crash_point::crash_point("quarantine.replayed");
        let State { table, backlog, .. } = &mut *state;
        let owed = |task| backlog.contains(task);
        let Some((cell, place)) = table.replay(id, permit, Instant::now(), owed) else {
            return Err(Error::NoSuchTask(id));
        };
        if let Some(task) = state.table.get_mut(id) {
            task.history = history;
            task.attempts = 0;
        }
        Ok((self.receipt(id, &key, &cell), place))
    }

    /// Throws a task that is in quarantine away.
    pub(crate) fn purge(&self, id: TaskId) -> Result<()> {
        self.take_back(id, |task| match task.status {
            Status::Quarantined(_) => Ok(()),
            _ => Err(not_quarantined(task)),
        })
    }

    /// Purges what has been there for longer than it may, where that was asked for.
    pub(super) fn expire_quarantine(&self) {
        let Some(after) = self.config.quarantine_expires.map(millis) else {
            return;
        };
        let now = self.clock.unix_ms();
        let due = |task: &Task| {
            matches!(task.status, Status::Quarantined(_))
                && now.saturating_sub(task.parked_ms) >= after
        };
        let expired: Vec<_> = {
            let state = self.lock();
            let found = state.table.quarantined().filter(|task| due(task));
            found.map(|task| (task.id, Arc::clone(&task.key))).collect()
        };
        for (id, key) in expired {
            // Looked at again: it may have been replayed, and have come back.
            let purged = self.take_back(id, |task| match due(task) {
                true => Ok(()),
                false => Err(not_quarantined(task)),
            });
            match purged {
                Ok(()) => {
                    tracing::warn!(task = id.0, %key, "purged: it has been in quarantine too long");
                }
                Err(error) => tracing::debug!(task = id.0, %error, "not purged"),
            }
        }
    }

    /// Writes the body of a task that is in quarantine to a file of its own.
    pub(crate) async fn export(self: Arc<Self>, id: TaskId, path: PathBuf) -> Result<Exported> {
        self.bring_task(id)?;
        let (source, checksum) = {
            let state = self.lock();
            let task = state.table.get(id).ok_or(Error::NoSuchTask(id))?;
            if !matches!(task.status, Status::Quarantined(_)) {
                return Err(not_quarantined(task));
            }
            let source = match &task.action {
                Action::Delete => {
                    return Err(Error::WrongState {
                        task: id,
                        state: "a delete",
                        wanted: "a task with a body",
                    });
                }
                Action::Upload => self.journal.payload(id.0).map(Source::Journal),
                Action::UploadBorrowed(borrowed) => Some(Source::File {
                    fs: Arc::clone(&self.fs),
                    path: borrowed.path.clone().into(),
                    len: borrowed.len,
                }),
            };
            (source, task.checksum)
        };
        let gone = || Error::SourceMissing {
            path: self.config.dir.clone(),
        };
        let source = source.ok_or_else(gone)?;
        let to = super::submit::absolute(&path)?;
        let (fs, at) = (Arc::clone(&self.fs), to.clone());
        let written = self
            .io
            .run(move || write_out(&*fs, &source, checksum, &at))
            .await
            .and_then(|written| {
                written.map_err(|(error, from)| match from {
                    From::Source => std::io::Error::new(error.kind(), format!("the body: {error}")),
                    From::File => error,
                })
            });
        written.map_err(|error| Error::directory(&to, &error))
    }
}

/// Which of the two files an error is of.
#[derive(Debug, Clone, Copy)]
enum From {
    Source,
    File,
}

/// Beside, synced, then under its name, which must be free. Blocks.
fn write_out(
    fs: &dyn Fs,
    source: &Source,
    checksum: Option<Crc64>,
    to: &Path,
) -> Result<Exported, (std::io::Error, From)> {
    static EXPORTS: AtomicU64 = AtomicU64::new(0);
    let of_file = |error| (error, From::File);
    let (Some(dir), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(of_file(std::io::ErrorKind::InvalidInput.into()));
    };
    if fs.stat(to).is_ok() {
        return Err(of_file(exists()));
    }
    let n = EXPORTS.fetch_add(1, Ordering::Relaxed);
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}-{n}.partial", std::process::id()));
    let beside = dir.join(beside);
    let file = fs.open(&beside, OpenMode::CreateNew).map_err(of_file)?;
    let written = (|| {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        let mut at = 0;
        while at < source.len() {
            let chunk = source
                .next_chunk(at)
                .map_err(|error| (error, From::Source))?;
            digest.update(&chunk);
            file.write_all_at(&chunk, at).map_err(of_file)?;
            at += chunk.len() as u64;
        }
        file.sync_all().map_err(of_file)?;
        let found = Crc64(digest.finalize());
        put_at(fs, &beside, to).map_err(of_file)?;
        fs.sync_dir(dir).map_err(of_file)?;
        Ok(Exported {
            bytes: at,
            intact: checksum.map(|expected| expected == found),
        })
    })();
    if written.is_err() {
        let _ = fs.unlink(&beside);
    }
    written
}

/// Gives a file its name, if nothing has it. A rename would replace what has.
fn put_at(fs: &dyn Fs, beside: &Path, to: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    match fs.link(beside, to) {
        Ok(()) => fs.unlink(beside),
        // A file system without hard links.
        Err(error) if matches!(error.kind(), PermissionDenied | Unsupported) => match fs.stat(to) {
            Ok(_) => Err(exists()),
            Err(_) => fs.rename(beside, to),
        },
        Err(error) => Err(error),
    }
}

fn exists() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::AlreadyExists, "exists already")
}

fn not_quarantined(task: &Task) -> Error {
    Error::WrongState {
        task: task.id,
        state: task.status.name(),
        wanted: "a task in quarantine",
    }
}
