//! Sync: what was written is durable on this disk.
//!
//! Owns: which parts a sync makes durable, and what is put on record when it has; and what becomes
//! of the store when an fsync fails. Does not own: S3 (that is what draining and checkpoints are).
//!
//! 1. Bytes first: an intent's bytes are trusted only by a record that was made after the fsync
//!    that covers them has returned, and is durable before sync says Ok.
//! 2. A part that is changed while a sync is in progress is not covered by it.
//! 3. What an earlier one put on record, and did not stay for, is waited for as well.
//! 4. Where something that became of a part could not be put on record, sync says so: the next life
//!    would take the part for what it was before that.
//! 5. A failed fsync is never asked again. It is a power cut: nothing that was written since the
//!    last good one is captured, and nothing more is written; the next open makes what the file
//!    reads as durable, and goes on from there.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::journal::Append;
use crate::mutant::{Mutant, is};

use super::Parts;
use super::file::PartFile;
use super::record::{Change, LengthNote, encode, kind, slot};
use super::state::Status;

impl Parts {
    /// Makes what was written to a file durable here, and its length.
    ///
    /// # Cancel safety
    /// Dropped, it may still be done.
    pub(crate) async fn sync(self: &Arc<Self>, file: &Arc<PartFile>) -> Result<()> {
        if let Some(cause) = self.failed.get() {
            return Err(Error::StoreFailed(cause.clone()));
        }
        let (on, parts) = (Arc::clone(file), Arc::clone(self));
        let covered = self.io.run(move || parts.sync_bytes(&on)).await;
        let covered = covered
            .and_then(|covered| covered)
            .map_err(|error| Error::StoreFailed(error.to_string()))?;
        {
            let log = &mut *file.log.lock();
            if log.ended {
                return Err(file.deleted(0));
            }
            if let Some(error) = &log.unrecorded {
                return Err(error.clone());
            }
            let mut changes = Vec::new();
            for (index, location) in covered {
                let open = log.intents.get_mut(&index);
                if let Some(intent) = open.filter(|i| i.location == location && !i.trusted) {
                    intent.trusted = true;
                    changes.push(Change::Trusted { index });
                }
            }
            if !changes.is_empty() {
                self.append_changes(file, log, changes, true)?;
            }
        }
        let location = self.log_length(file)?;
        if !is(Mutant::SyncBeforeJournal) {
            self.journal.wait_durable(location).await?;
        }
        self.snapshot_if_due(file);
        Ok(())
    }

    /// Puts the length on record where it is not; the last record of the file, which has it.
    pub(crate) fn log_length(&self, file: &PartFile) -> Result<u64> {
        let log = &mut *file.log.lock();
        let len = file.len();
        if log.len_logged == len || log.ended {
            return Ok(log.last);
        }
        let head = encode(&LengthNote { len });
        let note = Append::note(kind::NOTE, file.incarnation, slot::LENGTH, head);
        let location = self.journal.append(note.vital())?;
        log.len_logged = len;
        log.last = location;
        Ok(location)
    }

    /// fdatasync; the untrusted intents that it covers.
    fn sync_bytes(&self, file: &PartFile) -> std::io::Result<Vec<(u32, u64)>> {
        let parts = {
            let mut unsynced = file.unsynced.lock();
            unsynced.syncing += 1;
            std::mem::take(&mut unsynced.parts)
        };
        for index in &parts {
            // Under the latch no write is half done: what is written from here on says so anew.
            let _latch = self.latches.copy(file.key(*index));
            let word = &file.header.entry(*index).word;
            word.set(|word| word.with_unsynced(false));
        }
        let covered: Vec<(u32, u64)> = {
            let log = file.log.lock();
            let untrusted = log.intents.iter().filter(|(_, intent)| !intent.trusted);
            untrusted
                // Its bytes are here, all of them: a load or a whole write has finished.
                .filter(|(index, _)| {
                    let word = file.header.entry(**index).word.get();
                    word.status() == Status::Loaded
                })
                .map(|(index, intent)| (*index, intent.location))
                .collect()
        };
        let synced = match is(Mutant::SyncWithoutFsync) {
            true => Ok(()),
            false => self.fsync(file),
        };
        file.unsynced.lock().syncing -= 1;
        synced.map(|()| covered)
    }

    /// fdatasync. The disk says only once that it failed: that is heard here, whether or not
    /// anybody waits for it any more, and before anybody else asks.
    pub(crate) fn fsync(&self, file: &PartFile) -> std::io::Result<()> {
        let _turn = file.syncs.lock();
        if let Some(cause) = self.failed.get() {
            return Err(std::io::Error::other(cause.clone()));
        }
        let synced = file.disk.sync_data();
        if let Err(error) = &synced {
            self.fail(file, error);
        }
        synced
    }

    /// An fsync failed: see the head of this file.
    fn fail(&self, file: &PartFile, error: &std::io::Error) {
        let cause = format!("fsync of {}: {error}", file.path.display());
        if self.failed.set(cause.clone()).is_err() {
            return;
        }
        tracing::error!(%cause, "the part store has failed: nothing more is written");
        {
            let log = file.log.lock();
            let note = Append::note(kind::NOTE, file.incarnation, slot::FAILED, vec![1]);
            if !log.ended
                && let Err(error) = self.journal.append(note.vital())
            {
                tracing::error!(%error, "and the journal cannot say so");
            }
        }
        let error = Error::StoreFailed(cause);
        // Who waits for room may be about to write; who reads asks again, and is served.
        self.cache.refuse(|_| true, &error);
        self.dirty.shut(&error);
        self.images.shut(&error);
    }

    /// The same for all files: what was written to one that is as the last committed checkpoint has
    /// it was synced before that was told.
    pub(crate) async fn sync_all(self: &Arc<Self>) -> Result<()> {
        for file in self.changed_files() {
            match self.sync(&file).await {
                // It went meanwhile.
                Err(Error::Deleted { .. }) => (),
                synced => synced?,
            }
        }
        Ok(())
    }
}
