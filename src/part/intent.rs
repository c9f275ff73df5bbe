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
//! 4. An intent that a step in progress relies on is not closed, but by the image that has all that
//!    was written under it.
//! 5. What may be dirty is bounded by room that is taken before the record is made.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use crate::error::{Error, Result};
use crate::journal::{Append, Location, Payload};
use crate::mutant::{Mutant, is};

use super::Parts;
use super::file::{FileLog, Intent, PartFile};
use super::locker::LockerState;
use super::record::{Change, HeaderRecord, encode, kind};
use super::room::Taken;
use super::state::{Status, Word};

/// Changes that one record carries at most: so few that a full disk has room for it soon.
const MAX_CHANGES: usize = 1024;

/// Intents that a step relies on. Dropped, they are left: those that nobody else relies on, and
/// under which nothing was written, end, whoever goes on holding their parts.
#[derive(Debug)]
pub(crate) struct Opened {
    store: Arc<Parts>,
    intents: Vec<(Arc<PartFile>, u32, Location)>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        for (file, index, location) in self.intents.drain(..) {
            self.store.leave_intent(&file, index, location);
        }
    }
}

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
            last = match self.journal.append(append) {
                Ok(location) => location,
                Err(error) => {
                    let error = Error::from(error);
                    if vital {
                        // Some of them are made already, and others rely on those before.
                        log.unrecorded.get_or_insert_with(|| error.clone());
                    }
                    return Err(error);
                }
            };
            log.records.push(last);
            log.changes += chunk.len();
            self.header_records.fetch_add(1, Ordering::Relaxed);
        }
        if vital {
            log.last = last;
        }
        Ok(last)
    }

    /// Opens intents on parts that their caller keeps here, in their order, and waits until they
    /// are durable: one record a file.
    ///
    /// # Cancel safety
    /// What was put on record ends again if nobody else relies on it.
    pub(crate) async fn open_intents(
        self: &Arc<Self>,
        parts: &[(Arc<PartFile>, u32)],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<Opened> {
        self.check_writes(locker)?;
        let bytes_of = |lacks: &dyn Fn(&PartFile, u32) -> bool| -> u64 {
            let lacking = parts.iter().filter(|(file, index)| lacks(file, *index));
            lacking.map(|(file, _)| u64::from(file.part_bytes)).sum()
        };
        let missing = bytes_of(&|file, index| !file.log.lock().intents.contains_key(&index));
        let mut room = match missing {
            0 => None,
            bytes => self.dirty.try_take(bytes, locker),
        };
        if missing > 0 && room.is_none() {
            // For all that may be missing when there is room: what is not dirty has its intent
            // only as long as somebody else relies on it.
            let idle = bytes_of(&|file, index| !file.header.entry(index).word.get().is_dirty());
            let bytes = idle.max(missing);
            let taken = self.dirty.take(bytes, locker, || self.flusher.hurry());
            room = Some(match is(Mutant::DirtyRoomNotWaitedFor) {
                true => self.dirty.force(bytes),
                false => taken.await?,
            });
        }
        self.check_writes(locker)?;
        let mut opened = Opened {
            store: Arc::clone(self),
            intents: Vec::with_capacity(parts.len()),
        };
        let mut logged = Vec::new();
        for of_file in parts.chunk_by(|(a, _), (b, _)| a.no == b.no) {
            let Some((file, _)) = of_file.first() else {
                continue;
            };
            let indexes: Vec<u32> = of_file.iter().map(|(_, index)| *index).collect();
            let location = self.log_intents(file, &indexes, room.as_mut(), &mut opened)?;
            logged.push((file, indexes, location));
        }
        drop(room);
        for (file, indexes, location) in logged {
            self.opened(file, &indexes, location).await?;
        }
        Ok(opened)
    }

    /// Waits until intents are durable, and says so in their words.
    async fn opened(&self, file: &Arc<PartFile>, parts: &[u32], location: Location) -> Result<()> {
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
        file: &Arc<PartFile>,
        parts: &[u32],
        mut room: Option<&mut Taken>,
        opened: &mut Opened,
    ) -> Result<Location> {
        let each = u64::from(file.part_bytes);
        // Lock order: the log before what says whether a sync is in progress.
        let log = &mut *file.log.lock();
        let mut upto = 0;
        let mut changes = Vec::new();
        let mut new = Vec::new();
        for index in parts {
            if let Some(intent) = log.intents.get_mut(index) {
                upto = upto.max(intent.location);
                intent.users += 1;
                opened
                    .intents
                    .push((Arc::clone(file), *index, intent.location));
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
                // Looked at after the word: a sync takes the bit off before its fsync.
                Status::Loaded => !word.is_unsynced() && file.unsynced.lock().syncing == 0,
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
            self.has_intents(file);
            for (index, trusted, room) in new {
                let intent = Intent {
                    location,
                    trusted,
                    users: 1,
                    _room: room,
                };
                log.intents.insert(index, intent);
                opened.intents.push((Arc::clone(file), index, location));
            }
        }
        Ok(upto)
    }

    /// Ends all intents under which nothing was written that the entry does not have.
    pub(crate) fn close_all_idle_intents(&self) {
        for file in self.files_with_intents() {
            self.close_idle_intents(&file);
        }
    }

    /// The same of one file.
    pub(crate) fn close_idle_intents(&self, file: &PartFile) {
        let closed = {
            let log = &mut *file.log.lock();
            let all: Vec<u32> = log.intents.keys().copied().collect();
            let closed = self.close_intents(file, log, &all);
            if log.intents.is_empty() {
                self.intending.lock().remove(&file.no);
            }
            closed
        };
        self.closed(closed);
    }

    /// Files that have intents, and some that had until a moment ago.
    pub(crate) fn files_with_intents(&self) -> Vec<Arc<PartFile>> {
        let mut intending = self.intending.lock();
        intending.retain(|_, file| file.strong_count() > 0);
        intending.values().filter_map(Weak::upgrade).collect()
    }

    /// A file has an intent. By who has its log.
    pub(crate) fn has_intents(&self, file: &Arc<PartFile>) {
        let mut intending = self.intending.lock();
        intending
            .entry(file.no)
            .or_insert_with(|| Arc::downgrade(file));
    }

    /// A step that relied on an intent is over.
    fn leave_intent(&self, file: &PartFile, index: u32, location: Location) {
        let closed = {
            let log = &mut *file.log.lock();
            let ours = log.intents.get_mut(&index);
            let Some(intent) = ours.filter(|intent| intent.location == location) else {
                return;
            };
            intent.users -= 1;
            self.close_intents(file, log, &[index])
        };
        self.closed(closed);
    }

    fn closed(&self, closed: Vec<Intent>) {
        if !closed.is_empty() {
            // Room is given back without a lock: it wakes who waits.
            drop(closed);
            self.evictor.notify_one();
        }
    }

    fn close_intents(&self, file: &PartFile, log: &mut FileLog, parts: &[u32]) -> Vec<Intent> {
        let mut changes = Vec::new();
        for index in parts {
            let word = &file.header.entry(*index).word;
            let unused = log.intents.get(index).is_some_and(|i| i.users == 0);
            if word.get().is_dirty() || !unused {
                continue;
            }
            // Under the latch: a step that found the intent there, and was not counted, is over, or
            // asks for another.
            let _latch = self.latches.step(file.key(*index));
            let idle = |word: Word| {
                let here = matches!(
                    word.status(),
                    Status::Zero | Status::NotLoaded | Status::Loaded
                );
                (word.captures() == 0 && here)
                    .then_some(word)
                    .and_then(|word| word.close_intent(0))
            };
            if word.make(idle).is_some() {
                changes.push(Change::IntentEnded { index: *index });
            }
        }
        if changes.is_empty() {
            return Vec::new();
        }
        let location = match self.append_changes(file, log, changes.clone(), true) {
            Ok(location) => location,
            Err(error) => {
                tracing::debug!(%error, "intents stay open");
                return Vec::new();
            }
        };
        for change in &changes {
            if let Change::IntentEnded { index } = change {
                log.ending.insert(*index, location);
            }
        }
        let ended = changes.into_iter().filter_map(|change| match change {
            Change::IntentEnded { index } => log.intents.remove(&index),
            _ => None,
        });
        ended.collect()
    }

    /// Whether a write may be made now.
    pub(crate) fn check_writes(&self, locker: Option<&Arc<LockerState>>) -> Result<()> {
        self.locks.admits(locker.map(|l| &**l), true)?;
        if let Some(error) = self.fenced.get() {
            return Err(error.clone());
        }
        match self.failed.get() {
            Some(cause) => Err(Error::StoreFailed(cause.clone())),
            None => Ok(()),
        }
    }
}
