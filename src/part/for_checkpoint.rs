//! What the checkpoint layer asks of parts.
//!
//! Owns: the few verbs by which it knows this layer. Decides nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::Location;
use crate::journal::fs::Fs;
use crate::queue::Queue;

use super::Parts;
use super::file::PartFile;
use super::header::{Address, PAGE};
use super::id::FileId;
use super::latch::Latches;
use super::record::DroppedRecord;
use super::room::Taken;

/// A part, and where its image is.
pub(crate) type Image = (Arc<PartFile>, u32, Address);

impl Parts {
    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    pub(crate) fn io(&self) -> &Io {
        &self.io
    }

    pub(crate) fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn latches(&self) -> &Latches {
        &self.latches
    }

    /// Whether a checkpoint may be made now.
    pub(crate) fn check_writes_of_ours(&self) -> Result<()> {
        match self.failed.get() {
            Some(cause) => Err(crate::error::Error::StoreFailed(cause.clone())),
            None => Ok(()),
        }
    }

    /// Makes sure that there is an epoch to write under; its name.
    pub(crate) async fn epoch_ready(&self) -> Result<u64> {
        self.epochs.ready(&self.journal, &self.random).await?;
        self.epochs.current().ok_or(crate::error::Error::Unclaimed)
    }

    /// Room in memory for an object of the checkpoint layer: of what parts do not use, or of what
    /// is reserved; none is counted for one that is larger than all of it.
    pub(crate) async fn room_for_images(&self, bytes: u64) -> Result<Option<Taken>> {
        if self.images.may_have(bytes).is_err() {
            return Ok(None);
        }
        let room = self.images.take(bytes, Some(&self.ours), || ()).await?;
        Ok(Some(room))
    }

    /// Files that were dropped before a line, and that a checkpoint may have.
    pub(crate) fn dropped_before(&self, line: u64) -> Vec<(Location, DroppedRecord)> {
        let dropped = self.dropped.lock();
        let before = dropped.iter().filter(|(_, (_, behind))| *behind < line);
        before.map(|(at, (record, _))| (*at, *record)).collect()
    }

    pub(crate) fn has_dropped(&self) -> bool {
        !self.dropped.lock().is_empty()
    }

    /// No checkpoint has them any more.
    pub(crate) fn forget_dropped(&self, records: &[Location]) {
        {
            let mut dropped = self.dropped.lock();
            dropped.retain(|at, _| !records.contains(at));
        }
        self.end_records(records);
    }

    /// Records that say nothing any more; those that are in no journal are passed over.
    pub(crate) fn end_records_of(&self, records: &[Location]) {
        let there: Vec<Location> = records.iter().copied().filter(|at| *at > 0).collect();
        self.end_records(&there);
    }

    /// All parts that have an image, and where that is: here, and on the disk. What an entry named
    /// before is named by nothing that a crash could bring back.
    ///
    /// # Errors
    /// Those of the journal: then an entry on the disk may name what none here does.
    pub(crate) async fn images_named(self: &Arc<Self>) -> Result<Vec<Image>> {
        let on = Arc::clone(self);
        let named = self.io.run(move || on.images_here()).await;
        let named = named.map_err(|error| Error::Runtime(error.to_string()))?;
        // The records of all that was read above were appended by then.
        self.journal.flush().await?;
        if self.has_unrecorded.load(Ordering::Acquire) {
            let cause = "entries of parts could not be put on record".to_owned();
            return Err(Error::JournalFailed(cause));
        }
        Ok(named)
    }

    /// Blocks.
    fn images_here(&self) -> Vec<Image> {
        let mut named = Vec::new();
        for file in self.all_files() {
            let mut used = file.header.used_from(0).peekable();
            while used.peek().is_some() {
                // An entry changes and is put on record by who has the log.
                let _log = file.log.lock();
                for (index, entry) in used.by_ref().take(PAGE as usize) {
                    let _latch = self.latches.copy(file.key(index));
                    if let Some(address) = entry.address() {
                        named.push((Arc::clone(&file), index, address));
                    }
                }
            }
        }
        named
    }

    /// A page of a header is to be written anew with the next checkpoint.
    pub(crate) fn page_changed(&self, id: u64, page: u32) {
        let Ok(file) = self.file(FileId(id)) else {
            return;
        };
        let first = page.saturating_mul(PAGE);
        let of_page = file.header.used_from(first).take(PAGE as usize);
        let one = of_page.map(|(index, _)| index).next();
        if let Some(index) = one.filter(|index| index / PAGE == page) {
            let _latch = self.latches.step(file.key(index));
            self.part_changed(&file, index);
        }
    }

    /// Has a part uploaded anew, unless it has another image by now; whether it is. Loads it where
    /// it is not here.
    pub(crate) async fn write_anew(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        address: Address,
    ) -> Result<bool> {
        let by = Some(&self.ours);
        file.check(index)?;
        let _pin = self.pin(file, index, by).await?;
        let still = || file.header.entry(index).address() == Some(address);
        if !still() {
            return Ok(false);
        }
        self.present(file, index, by).await?;
        let part = [(Arc::clone(file), index)];
        let _opened = self.open_intents(&part, by).await?;
        let _latch = self.latches.step(file.key(index));
        let word = &file.header.entry(index).word;
        if !still() || word.get().is_dirty() {
            return Ok(false);
        }
        if let Some(line) = self.line.open() {
            line.touch(file, index);
        }
        if word.make(|word| word.dirtied()).is_none() {
            return Ok(false);
        }
        file.is_unsynced(index);
        self.flusher.dirty(file, index);
        self.part_changed(file, index);
        Ok(true)
    }

    /// Parts that the last committed checkpoint does not have as they are: what would be stranded.
    pub(crate) fn uncommitted(&self) -> u64 {
        let files = self.changed_files();
        files
            .iter()
            .map(|file| file.changed.lock().len() as u64)
            .sum()
    }
}
