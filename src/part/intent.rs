//! Write intents: said durably before the first byte of a part is changed.
//!
//! Owns: opening intents, in batches; and closing those under which nothing was written. Does not
//! own: the end of those under which something was (`settle.rs`), or when their bytes become
//! trusted (`sync.rs`).
//!
//! 1. No pwrite without an intent that is durable: the bit in the word says so.
//! 2. An intent is in the file's log from the instant its record is on its way: whoever asked for
//!    it may leave, and the part is not evicted all the same.
//! 3. An intent trusts the local bytes only if they are on the disk: a part that reads as zeros
//!    has none, and one that was synced has them. Otherwise the entry counts until a sync.
//! 4. What may be dirty is bounded by room that is taken before the record is made.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::journal::{Append, Location, Payload};

use super::Parts;
use super::file::{FileLog, Intent, PartFile};
use super::locker::LockerState;
use super::record::{Change, HeaderRecord, encode, kind};
use super::room::Taken;
use super::state::Status;

/// Changes that one record carries at most.
const MAX_CHANGES: usize = 16 * 1024;

impl Parts {
    /// Puts changes of a file's header on record. Under the file's log lock, with the change made
    /// in memory under the same: the log's order is the order in which they happened.
    pub(crate) fn append_changes(
        &self,
        file: &PartFile,
        log: &mut FileLog,
        changes: Vec<Change>,
        vital: bool,
    ) -> Result<Location> {
        let mut last = 0;
        for chunk in changes.chunks(MAX_CHANGES) {
            let record = HeaderRecord {
                file: file.incarnation,
                changes: chunk.to_vec(),
            };
            let append = Append::begin(kind::HEADER, encode(&record), Payload::None);
            let append = if vital { append.vital() } else { append };
            last = self.journal.append(append)?;
            log.records.push(last);
            log.changes += chunk.len();
        }
        if vital {
            log.last = last;
        }
        Ok(last)
    }

    /// Opens intents on parts of one file that their caller keeps here, and waits until they are
    /// durable.
    ///
    /// # Cancel safety
    /// What was put on record stays so, and ends later if nothing is written.
    pub(crate) async fn open_intents(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        parts: &[u32],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<()> {
        self.check_writes(locker)?;
        let each = u64::from(file.part_bytes);
        let missing = {
            let log = file.log.lock();
            parts
                .iter()
                .filter(|index| !log.intents.contains_key(index))
                .count()
        };
        let mut room = match missing {
            0 => None,
            n => Some(
                self.dirty
                    .take(each * n as u64, locker, || self.flusher.hurry())
                    .await?,
            ),
        };
        self.check_writes(locker)?;
        let location = self.log_intents(file, parts, room.as_mut())?;
        drop(room);
        match self.journal.wait_durable(location).await {
            Ok(()) => {
                let log = file.log.lock();
                for index in parts {
                    if log
                        .intents
                        .get(index)
                        .is_some_and(|i| i.location <= location)
                    {
                        let word = &file.header.entry(*index).word;
                        word.make(|word| word.open_intent());
                    }
                }
                Ok(())
            }
            Err(error) => {
                // Not on record, and never will be.
                let log = &mut *file.log.lock();
                log.intents.retain(|_, intent| intent.location != location);
                log.records.retain(|record| *record != location);
                Err(error.into())
            }
        }
    }

    fn log_intents(
        &self,
        file: &PartFile,
        parts: &[u32],
        mut room: Option<&mut Taken>,
    ) -> Result<Location> {
        let each = u64::from(file.part_bytes);
        // Lock order: the log before what says whether a sync is in progress.
        let log = &mut *file.log.lock();
        let syncing = file.unsynced.lock().syncing > 0;
        let mut upto = 0;
        let mut changes = Vec::new();
        let mut new = Vec::new();
        for index in parts {
            if let Some(intent) = log.intents.get(index) {
                upto = upto.max(intent.location);
                continue;
            }
            let Some(share) = room
                .as_mut()
                .filter(|r| r.bytes() >= each)
                .map(|r| r.split(each))
            else {
                // It had one a moment ago, and it was closed: whoever asked asks again.
                continue;
            };
            let word = file.header.entry(*index).word.get();
            let trusted = match word.status() {
                Status::Zero => true,
                Status::Loaded => !word.is_unsynced() && !syncing,
                Status::NotLoaded | Status::Loading | Status::Evicting => false,
            };
            changes.push(Change::Intent {
                index: *index,
                trusted,
            });
            new.push((*index, trusted, share));
        }
        if !changes.is_empty() {
            let location = self.append_changes(file, log, changes, false)?;
            upto = upto.max(location);
            for (index, trusted, room) in new {
                let intent = Intent {
                    location,
                    trusted,
                    _room: room,
                };
                log.intents.insert(index, intent);
            }
        }
        Ok(upto)
    }

    /// Ends the intents of a file under which nothing was written that the entry does not have.
    pub(crate) fn close_idle_intents(&self, file: &PartFile) {
        let mut closed = Vec::new();
        {
            let log = &mut *file.log.lock();
            let mut changes = Vec::new();
            for index in log.intents.keys() {
                let word = &file.header.entry(*index).word;
                let idle = |word: super::state::Word| {
                    // Who has it to himself does not write to it.
                    let still = (!word.is_held() || word.is_sole()) && word.captures() == 0;
                    let here = matches!(
                        word.status(),
                        Status::Zero | Status::NotLoaded | Status::Loaded
                    );
                    (still && here)
                        .then_some(word)
                        .and_then(|word| word.close_intent(0))
                };
                if word.make(idle).is_some() {
                    changes.push(Change::IntentEnded { index: *index });
                }
            }
            if changes.is_empty() {
                return;
            }
            if let Err(error) = self.append_changes(file, log, changes.clone(), true) {
                tracing::debug!(%error, "intents stay open");
                return;
            }
            for change in changes {
                if let Change::IntentEnded { index } = change {
                    closed.extend(log.intents.remove(&index));
                }
            }
        }
        drop(closed);
        self.evictor.notify_one();
    }

    /// Whether a write may be made now.
    pub(crate) fn check_writes(&self, locker: Option<&Arc<LockerState>>) -> Result<()> {
        self.locks.admits(locker.map(|l| &**l), true)?;
        match self.failed.get() {
            Some(cause) => Err(Error::StoreFailed(cause.clone())),
            None => Ok(()),
        }
    }
}
