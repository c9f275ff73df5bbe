//! Reading and writing bytes of files.
//!
//! Owns: what is got before a step, in which order, and the step itself. Does not own: any of
//! what is got (locks, loads, room and intents have files of their own).
//!
//! 1. Everything that may have to be waited for comes first: pin, load, room, intent. The step
//!    copies and pwrites under the latch and waits for nothing; cancelled before it, nothing has
//!    changed.
//! 2. What a step relies on is looked at again under the latch: if it has gone, all is got again.
//! 3. One part at a time, in order, like pread and pwrite; several at once only by a guard set.
//! 4. Bytes come before the length that shows them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};

use super::Parts;
use super::file::{PartFile, Shaping};
use super::id::PartKey;
use super::intent::Opened;
use super::locker::LockerState;
use super::room::Taken;
use super::state::{Mode, Status, Want};

/// A pin for one step.
#[derive(Debug)]
pub(crate) struct StepPin<'a> {
    parts: &'a Parts,
    file: &'a PartFile,
    index: u32,
}

impl Drop for StepPin<'_> {
    fn drop(&mut self) {
        let word = &self.file.header.entry(self.index).word;
        let pin = Want::Mode(Mode::Pin);
        self.parts
            .locks
            .release(word, self.file.key(self.index), pin);
    }
}

/// Bytes for one part.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub file: Arc<PartFile>,
    pub index: u32,
    /// First byte, within the part.
    pub at: usize,
    pub bytes: &'a [u8],
    /// Room in the cache, where the part has none yet.
    frame: Option<Frame>,
}

/// Room in the cache for a part, and blocks of the disk.
#[derive(Debug)]
struct Frame {
    room: Taken,
    blocks: Reserved,
}

/// Blocks of the disk for a part that has none; given back when dropped, unless somebody has
/// written there.
#[derive(Debug)]
struct Reserved {
    parts: Arc<Parts>,
    file: Arc<PartFile>,
    index: u32,
    kept: bool,
    /// Shared with the thread that reserves, which may come to it when nobody wants it any more.
    wanted: Arc<()>,
}

impl Reserved {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (parts, file, index) = (Arc::clone(&self.parts), Arc::clone(&self.file), self.index);
        self.parts.spawn_local(async move {
            let on = Arc::clone(&parts);
            let given = parts.io.run(move || on.punch(&file, index)).await;
            if let Err(error) = given.and_then(|given| given) {
                tracing::debug!(%error, "blocks that nobody uses stay");
            }
        });
    }
}

impl<'a> Piece<'a> {
    pub(crate) fn new(file: &Arc<PartFile>, index: u32, at: usize, bytes: &'a [u8]) -> Self {
        Self {
            file: Arc::clone(file),
            index,
            at,
            bytes,
            frame: None,
        }
    }

    fn is_whole(&self) -> bool {
        self.bytes.len() == self.file.part_bytes as usize
    }

    fn key(&self) -> PartKey {
        self.file.key(self.index)
    }

    fn status(&self) -> Status {
        self.file.header.entry(self.index).word.get().status()
    }

    fn needs_load(&self) -> bool {
        match self.status() {
            Status::Zero | Status::Loaded => false,
            // Nothing of what S3 has would be left.
            Status::NotLoaded => !self.is_whole(),
            Status::Loading | Status::Evicting => true,
        }
    }

    fn lacks_frame(&self) -> bool {
        let wants = matches!(self.status(), Status::Zero | Status::NotLoaded);
        wants && self.frame.is_none()
    }

    fn grows(&self) -> bool {
        self.end() > self.file.len()
    }

    fn end(&self) -> u64 {
        self.file.start_of(self.index) + (self.at + self.bytes.len()) as u64
    }
}

/// Parts that a step has taken for itself, to write over them whole; those that it has not written
/// when it is over are what they were.
struct Claimed(Vec<(Arc<PartFile>, u32)>);

impl Drop for Claimed {
    fn drop(&mut self) {
        for (file, index) in &self.0 {
            file.header
                .entry(*index)
                .word
                .make(|word| word.load_failed());
            file.moved();
        }
    }
}

/// What comes of `work`, unless it has to wait, and its part is to be cut off: a read or a write
/// has no guard, and keeps nobody from that while it waits for something else.
async fn unless_cut<T>(
    file: &PartFile,
    index: u32,
    work: impl Future<Output = Result<T>>,
) -> Option<Result<T>> {
    let is_cut = || u64::from(index) >= file.cutting_from();
    tokio::select! {
        biased;
        done = work => Some(done),
        () = file.moves.until(|_| is_cut().then_some(())) => None,
    }
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepped {
    Done,
    /// Something that it relied on has gone.
    Again,
}

impl Parts {
    /// Keeps a part here for a step. It need not exist yet, where it is to be written.
    pub(super) async fn pin<'a>(
        self: &'a Arc<Self>,
        file: &'a Arc<PartFile>,
        index: u32,
        locker: Option<&Arc<LockerState>>,
    ) -> Result<StepPin<'a>> {
        let word = &file.header.entry(index).word;
        loop {
            if self.locks.try_pin(word).is_none() {
                let words: Arc<dyn super::wait::Words> = Arc::clone(file) as _;
                let asked = self.locks.ask_pin(&words, file.key(index), locker);
                if let Some(waiting) = asked? {
                    match waiting.await {
                        // Cut off, it can be written anew; or read past the end.
                        Err(Error::Deleted { .. }) if !file.is_dropped() => {
                            self.uncut(file, locker).await;
                            continue;
                        }
                        waited => waited?,
                    }
                }
            }
            let pin = StepPin {
                parts: self,
                file,
                index,
            };
            if file.is_dropped() {
                return Err(file.deleted(index));
            }
            // Pinned behind the back of who is cutting it off, who looked before we were there.
            if u64::from(index) < file.cutting_from() {
                return Ok(pin);
            }
            drop(pin);
            self.uncut(file, locker).await;
        }
    }

    /// Reads into `buffer`, which ends within the file.
    pub(crate) async fn read(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        locker: Option<&Arc<LockerState>>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.locks.admits(locker.map(|l| &**l), false)?;
        let _counted = self.checkpointing(locker.map(|l| &**l));
        let end = offset.checked_add(buffer.len() as u64);
        if file.is_dropped() {
            return Err(file.deleted(0));
        }
        if end.is_none_or(|end| end > file.len()) {
            return Err(file.past_end(offset, buffer.len() as u64));
        }
        for span in file.spans(offset, buffer.len()) {
            loop {
                let _pin = self.pin(file, span.index, locker).await?;
                let into = &mut buffer[span.range.clone()];
                let read = self.read_held(file, span.index, span.at, into, locker);
                if let Some(read) = unless_cut(file, span.index, read).await {
                    read?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads from a part that its caller keeps here.
    pub(crate) async fn read_held(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        at: usize,
        buffer: &mut [u8],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<()> {
        loop {
            self.present(file, index, locker).await?;
            if self.copy(file, index, at, buffer)? {
                return Ok(());
            }
        }
    }

    /// Copies bytes out of a part; `false` where they are not here.
    fn copy(&self, file: &PartFile, index: u32, at: usize, buffer: &mut [u8]) -> Result<bool> {
        let _latch = self.latches.copy(file.key(index));
        let from = file.start_of(index) + at as u64;
        if from + buffer.len() as u64 > file.len() {
            return Err(file.past_end(from, buffer.len() as u64));
        }
        match file.header.entry(index).word.get().status() {
            Status::Zero => buffer.fill(0),
            Status::Loaded => file
                .read_here(buffer, from)
                .map_err(|error| Error::directory(&file.path, &error))?,
            Status::NotLoaded | Status::Loading | Status::Evicting => return Ok(false),
        }
        Ok(true)
    }

    /// Writes `bytes`, one part after another; the file grows where they end behind it.
    pub(crate) async fn write(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        locker: Option<&Arc<LockerState>>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.check_writes(locker)?;
        let len = bytes.len() as u64;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > file.max_len())
        {
            return Err(file.past_end(offset, len));
        }
        for span in file.spans(offset, bytes.len()) {
            loop {
                let _pin = self.pin(file, span.index, locker).await?;
                let mut piece = [Piece::new(
                    file,
                    span.index,
                    span.at,
                    &bytes[span.range.clone()],
                )];
                let write = self.write_held(&mut piece, locker);
                if let Some(written) = unless_cut(file, span.index, write).await {
                    written?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes to parts that their caller keeps here, in one step.
    ///
    /// # Cancel safety
    /// Nothing has been written before it is done.
    pub(crate) async fn write_held(
        self: &Arc<Self>,
        pieces: &mut [Piece<'_>],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<()> {
        if pieces.iter().all(|piece| piece.bytes.is_empty()) {
            // It changes nothing, and no length either.
            return self.check_writes(locker);
        }
        let total: u64 = pieces.iter().map(|p| u64::from(p.file.part_bytes)).sum();
        for room in [&self.dirty, &self.cache] {
            room.may_have(total)?;
        }
        loop {
            self.get_frames(pieces, locker).await?;
            let _opened = self.get_intents(pieces, locker).await?;
            for piece in &*pieces {
                if piece.grows() {
                    piece.file.may_grow().await;
                }
            }
            if self.step(pieces, locker)? == Stepped::Done {
                return Ok(());
            }
        }
    }

    /// Their bytes are here, or there is room for them: all of it is taken at once, because nobody
    /// waits for room with room in hand.
    async fn get_frames(
        self: &Arc<Self>,
        pieces: &mut [Piece<'_>],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<()> {
        loop {
            if let Some(missing) = pieces.iter().position(Piece::needs_load) {
                let file = Arc::clone(&pieces[missing].file);
                let index = pieces[missing].index;
                pieces.iter_mut().for_each(|piece| piece.frame = None);
                self.present(&file, index, locker).await?;
                continue;
            }
            let lacking = |pieces: &[Piece<'_>]| -> Vec<(Arc<PartFile>, u32)> {
                let lacking = pieces.iter().filter(|piece| piece.lacks_frame());
                lacking
                    .map(|piece| (Arc::clone(&piece.file), piece.index))
                    .collect()
            };
            let parts = lacking(pieces);
            if parts.is_empty() {
                return Ok(());
            }
            let bytes = parts.iter().map(|(file, _)| u64::from(file.part_bytes));
            let mut room = match self.cache.try_take(bytes.sum(), locker) {
                Some(room) => room,
                None => {
                    pieces.iter_mut().for_each(|piece| piece.frame = None);
                    match self.room_for(&lacking(pieces), locker).await? {
                        Some(room) => room,
                        None => continue,
                    }
                }
            };
            for piece in pieces.iter_mut() {
                let each = u64::from(piece.file.part_bytes);
                if !piece.lacks_frame() || room.bytes() < each {
                    continue;
                }
                let blocks = Reserved {
                    parts: Arc::clone(self),
                    file: Arc::clone(&piece.file),
                    index: piece.index,
                    kept: false,
                    wanted: Arc::new(()),
                };
                let room = room.split(each);
                // Blocks too, so that the step does not run out of disk.
                let (on, index) = (Arc::clone(&piece.file), piece.index);
                let (parts, wanted) = (Arc::clone(self), Arc::clone(&blocks.wanted));
                piece.frame = Some(Frame { room, blocks });
                // Sealing waits for it, whoever asked may have gone.
                let tracked = self.local.token();
                let reserved = self.io.run(move || {
                    let _tracked = tracked;
                    on.disk.reserve(on.start_of(index), each)?;
                    match Arc::strong_count(&wanted) {
                        1 => parts.punch(&on, index),
                        _ => Ok(()),
                    }
                });
                reserved
                    .await
                    .and_then(|reserved| reserved)
                    .map_err(|error| self.disk_error(&piece.file, &error))?;
            }
        }
    }

    pub(crate) fn disk_error(&self, file: &PartFile, error: &std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Error::DiskFull {
                path: file.path.clone(),
            };
        }
        Error::directory(&file.path, error)
    }

    /// All of them have an intent: those of one file in one record.
    async fn get_intents(
        self: &Arc<Self>,
        pieces: &[Piece<'_>],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<Option<Opened>> {
        let lacks = |piece: &Piece<'_>| {
            let word = piece.file.header.entry(piece.index).word.get();
            !word.has_intent()
        };
        if !pieces.iter().any(lacks) {
            return Ok(None);
        }
        let mut parts: Vec<(Arc<PartFile>, u32)> = pieces
            .iter()
            .map(|piece| (Arc::clone(&piece.file), piece.index))
            .collect();
        parts.sort_unstable_by_key(|(file, index)| file.key(*index));
        parts.dedup_by_key(|(file, index)| file.key(*index));
        Ok(Some(self.open_intents(&parts, locker).await?))
    }

    /// The step: from here on nothing is waited for.
    fn step(
        self: &Arc<Self>,
        pieces: &mut [Piece<'_>],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<Stepped> {
        // One latch for one part, without a list of them.
        let (_one, _several) = match pieces {
            [piece] => (Some(self.latches.step(piece.key())), Vec::new()),
            _ => {
                let keys = pieces.iter().map(Piece::key);
                (None, self.latches.step_all(keys))
            }
        };
        self.check_writes(locker)?;
        let mut claimed = Claimed(Vec::new());
        for piece in &*pieces {
            let file = &piece.file;
            if file.is_dropped() {
                return Err(file.deleted(piece.index));
            }
            let entry = &file.header.entry(piece.index).word;
            let word = entry.get();
            let ready = word.has_intent()
                && match word.status() {
                    Status::Loaded => true,
                    Status::Zero => piece.frame.is_some(),
                    // Ours from here on: nobody starts a load that would land on what is written.
                    Status::NotLoaded if piece.is_whole() && piece.frame.is_some() => {
                        let ours = entry.make(|word| word.load()).is_some();
                        if ours {
                            claimed.0.push((Arc::clone(file), piece.index));
                        }
                        ours
                    }
                    Status::NotLoaded | Status::Loading | Status::Evicting => false,
                };
            // Behind a cut that is not carried through yet a crash would take the bytes.
            let must_wait = piece.grows() && file.shaping.read(|s| *s == Shaping::Cuts);
            if !ready || must_wait {
                return Ok(Stepped::Again);
            }
        }
        let line = self.line.open();
        for piece in pieces.iter_mut() {
            if let Some(line) = line.as_ref().filter(|_| !piece.bytes.is_empty()) {
                line.set_aside(&piece.file, piece.index);
            }
            // Intents are closed under the latch, and only of parts that nobody holds: what was
            // so a moment ago still is.
            if !piece.bytes.is_empty() {
                self.put(piece)?;
            }
        }
        Ok(Stepped::Done)
    }

    fn put(self: &Arc<Self>, piece: &mut Piece<'_>) -> Result<()> {
        let file = &piece.file;
        let word = &file.header.entry(piece.index).word;
        let from = file.start_of(piece.index) + piece.at as u64;
        let write = || {
            file.disk
                .write_all_at(piece.bytes, from)
                .map_err(|error| self.disk_error(file, &error))
        };
        let (written, old) = match word.get().status() {
            Status::Loaded => {
                // Before its first byte: a capture that comes next has all of it.
                let made = word.make(|word| word.dirtied());
                (write(), made.map(|(old, _)| old))
            }
            status => {
                let claimed = status == Status::Loading;
                let written = write();
                if claimed && written.is_err() {
                    // What is in S3 is still what the part is.
                    word.make(|word| word.load_failed());
                    file.moved();
                    return written;
                }
                // It is zeros, and stays so: behind the end nobody would ever upload it.
                let each = u64::from(file.part_bytes);
                let clean = || file.disk.punch(file.start_of(piece.index), each).is_ok();
                if written.is_err() && clean() {
                    return written;
                }
                // Part of it may have been written over zeros: it is what it is, as by pwrite.
                let made = word.make(|word| word.filled());
                if let Some(Frame { room, blocks }) = piece.frame.take() {
                    blocks.keep();
                    self.resident.add(file, piece.index, room);
                }
                // Who waits for it, or for room for it, looks again.
                file.moved();
                (written, made.map(|(old, _)| old))
            }
        };
        if let Some(old) = old {
            if !old.is_dirty() {
                self.flusher.dirty(file, piece.index);
                self.part_changed(file, piece.index);
            }
            if !old.is_unsynced() || old.status() != Status::Loaded {
                file.is_unsynced(piece.index);
            }
        }
        written?;
        if piece.grows() {
            file.grow(piece.end());
            self.file_changed(file);
        }
        self.totals
            .written_bytes
            .fetch_add(piece.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
