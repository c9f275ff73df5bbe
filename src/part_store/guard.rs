//! Guards: what holds a part, and what may be done through it.
//!
//! Owns: that a lock is given back when its guard is dropped. Decides nothing.
//!
//! A guard that is forgotten keeps its part here and its lock held; captures, and so uploads and
//! checkpoints, take latches only and go on.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::op::Operation;
use crate::part::access::Piece;
use crate::part::id::PartId;
use crate::part::locker::Place;
use crate::part::state::{AtomicWord, Mode, Want};

use super::file::File;
use super::{Locker, PartStore};

/// A part lock. Dropped, it is given back.
#[derive(Debug)]
#[must_use = "dropped, a guard gives its lock back"]
pub struct Guard<'a> {
    of: Of<'a>,
    word: &'a AtomicWord,
    /// [`Place::NONE`] of a guard that has been made another.
    place: Place,
}

/// A part lock that borrows nothing. Dropped, it is given back.
#[derive(Debug)]
#[must_use = "dropped, a guard gives its lock back"]
pub struct OwnedGuard {
    file: File,
    locker: Locker,
    index: u32,
    mode: Mode,
    place: Place,
}

/// What a lock is of, and whose it is.
#[derive(Debug, Clone, Copy)]
struct Of<'a> {
    file: &'a File,
    locker: &'a Locker,
    index: u32,
    mode: Mode,
}

impl Drop for Guard<'_> {
    // Always: out of line, the guard would have to be put into memory first.
    #[inline(always)]
    fn drop(&mut self) {
        self.of.unlock(self.word, self.place);
    }
}

impl Drop for OwnedGuard {
    fn drop(&mut self) {
        let word = &self.file.inner.file.header.entry(self.index).word;
        self.of().unlock(word, self.place);
    }
}

impl<'a> Of<'a> {
    #[inline(always)]
    fn unlock(self, word: &AtomicWord, place: Place) {
        if place != Place::NONE {
            let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
            let (key, want) = (file.key(self.index), Want::Mode(self.mode));
            let locker = &self.locker.state;
            parts.locks.unlock(word, key, want, locker, place);
        }
    }

    fn part(self) -> PartId {
        self.file.inner.file.part(self.index)
    }

    fn in_the_way(self) -> Error {
        let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
        parts
            .in_the_way(file, self.index)
            .unwrap_or(Error::WouldWait("the local disk"))
    }

    fn past(self, at: usize, len: usize) -> Error {
        let file = &self.file.inner.file;
        file.past_end(file.start_of(self.index) + at as u64, len as u64)
    }

    fn read_at<'b>(self, buffer: &'b mut [u8], at: usize) -> Operation<'b, ()>
    where
        'a: 'b,
    {
        let inner = &self.file.inner;
        let locker = &self.locker.state;
        let work = async move {
            inner.parts.locks.admits(Some(locker), false)?;
            check_within(inner.file.part_bytes, at, buffer.len())
                .ok_or_else(|| self.past(at, buffer.len()))?;
            let (parts, file) = (&inner.parts, &inner.file);
            parts
                .read_held(file, self.index, at, buffer, Some(locker))
                .await
        };
        self.file.op(work, move || self.in_the_way())
    }

    fn write_at<'b>(self, bytes: &'b [u8], at: usize) -> Operation<'b, ()>
    where
        'a: 'b,
    {
        let inner = &self.file.inner;
        let work = async move {
            check_mode(self.mode)?;
            check_within(inner.file.part_bytes, at, bytes.len())
                .ok_or_else(|| self.past(at, bytes.len()))?;
            let piece = Piece::new(&inner.file, self.index, at, bytes);
            let locker = Some(&self.locker.state);
            inner.parts.write_held(&mut [piece], locker).await
        };
        self.file.op(work, move || self.in_the_way())
    }
}

impl<'a> Guard<'a> {
    #[inline]
    pub(super) fn new(
        file: &'a File,
        locker: &'a Locker,
        index: u32,
        mode: Mode,
        word: &'a AtomicWord,
        place: Place,
    ) -> Self {
        let of = Of {
            file,
            locker,
            index,
            mode,
        };
        Self { of, word, place }
    }

    /// The same guard, borrowing nothing.
    pub fn into_owned(mut self) -> OwnedGuard {
        let Of {
            file,
            locker,
            index,
            mode,
        } = self.of;
        let place = std::mem::replace(&mut self.place, Place::NONE);
        OwnedGuard::new(file, locker, index, mode, place)
    }

    /// The part.
    #[must_use]
    pub fn part(&self) -> PartId {
        self.of.part()
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.of.mode
    }

    /// Fills `buffer` from byte `at` of the part on. In mode `Pin` others may be writing.
    ///
    /// # Errors
    /// [`Error::PastEnd`], [`Error::Directory`], [`Error::ShuttingDown`].
    pub fn read_at<'b>(&'b self, buffer: &'b mut [u8], at: usize) -> Operation<'b, ()> {
        self.of.read_at(buffer, at)
    }

    /// Writes `bytes` from byte `at` of the part on, in one step. It may wait for room for what is
    /// dirty and for the intent, never for a lock; the file grows where they end behind it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] in mode `Shared`; [`Error::PastEnd`] behind the part;
    /// [`Error::DiskFull`], [`Error::StoreFailed`], [`Error::JournalFailed`],
    /// [`Error::ShuttingDown`], [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Nothing has been written before it is done.
    pub fn write_at<'b>(&'b self, bytes: &'b [u8], at: usize) -> Operation<'b, ()> {
        self.of.write_at(bytes, at)
    }
}

impl OwnedGuard {
    pub(super) fn new(file: &File, locker: &Locker, index: u32, mode: Mode, place: Place) -> Self {
        Self {
            file: file.clone(),
            locker: locker.clone(),
            index,
            mode,
            place,
        }
    }

    /// The same guard, borrowing from who has what it is of.
    pub(super) fn into_guard<'a>(mut self, file: &'a File, locker: &'a Locker) -> Guard<'a> {
        let place = std::mem::replace(&mut self.place, Place::NONE);
        let word = &file.inner.file.header.entry(self.index).word;
        Guard::new(file, locker, self.index, self.mode, word, place)
    }

    fn of(&self) -> Of<'_> {
        Of {
            file: &self.file,
            locker: &self.locker,
            index: self.index,
            mode: self.mode,
        }
    }

    /// The part.
    #[must_use]
    pub fn part(&self) -> PartId {
        self.of().part()
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// As [`Guard::read_at`].
    pub fn read_at<'b>(&'b self, buffer: &'b mut [u8], at: usize) -> Operation<'b, ()> {
        self.of().read_at(buffer, at)
    }

    /// As [`Guard::write_at`].
    pub fn write_at<'b>(&'b self, bytes: &'b [u8], at: usize) -> Operation<'b, ()> {
        self.of().write_at(bytes, at)
    }
}

fn check_within(part_bytes: u32, at: usize, len: usize) -> Option<()> {
    let end = at.checked_add(len)?;
    (end <= part_bytes as usize).then_some(())
}

fn check_mode(mode: Mode) -> Result<()> {
    if mode == Mode::Shared {
        return Err(Error::InvalidInput {
            what: "mode of a guard that is written through",
            value: mode.to_string(),
            limit: "Exclusive, or Pin where the engine orders its own writes".to_owned(),
        });
    }
    Ok(())
}

/// Several parts, locked together; dropped, all of them are given back.
#[derive(Debug)]
#[must_use = "dropped, guards give their locks back"]
pub struct GuardSet {
    store: PartStore,
    locker: Locker,
    mode: Mode,
    guards: Vec<OwnedGuard>,
}

impl GuardSet {
    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> Vec<PartId> {
        self.guards.iter().map(OwnedGuard::part).collect()
    }

    /// One of the guards.
    #[must_use]
    pub fn guard(&self, part: PartId) -> Option<&OwnedGuard> {
        self.guards.iter().find(|guard| guard.part() == part)
    }

    /// Writes (part, first byte within it, bytes) in one step.
    ///
    /// # Errors
    /// As [`Guard::write_at`]; [`Error::InvalidInput`] for a part that is not in the set, one that
    /// is named twice, or more than `max_step_bytes`; [`Error::TooLarge`] for parts that are more
    /// than `dirty_bytes` or `cache_bytes` together. Nothing has been written then. Where the disk
    /// refuses a piece, those before it have been written.
    ///
    /// # Cancel safety
    /// Nothing has been written before it is done.
    pub fn write<'b>(&'b self, pieces: &'b [(PartId, usize, &'b [u8])]) -> Operation<'b, ()> {
        let work = async move {
            check_mode(self.mode)?;
            let total: u64 = pieces.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
            let most = self.store.parts.config.max_step_bytes;
            if total > most {
                return Err(Error::InvalidInput {
                    what: "step",
                    value: format!("{total} bytes"),
                    limit: format!("max_step_bytes = {most}"),
                });
            }
            let mut ready = Vec::with_capacity(pieces.len());
            for (at_piece, (part, at, bytes)) in pieces.iter().enumerate() {
                let twice = pieces[..at_piece].iter().any(|(other, _, _)| other == part);
                let guard =
                    self.guard(*part)
                        .filter(|_| !twice)
                        .ok_or_else(|| Error::InvalidInput {
                            what: "part of a step",
                            value: part.to_string(),
                            limit: "one of the set's, and each once".to_owned(),
                        })?;
                let file = &guard.file.inner.file;
                check_within(file.part_bytes, *at, bytes.len())
                    .ok_or_else(|| guard.of().past(*at, bytes.len()))?;
                ready.push(Piece::new(file, part.index, *at, bytes));
            }
            let locker = Some(&self.locker.state);
            self.store.parts.write_held(&mut ready, locker).await
        };
        let parts = &self.store.parts;
        Operation::new(
            self.store.queue.driver(),
            parts.config.io_deadline,
            work,
            || Error::WouldWait("room for what is dirty, or the local disk"),
        )
    }
}

/// Locks several parts, in order.
pub(super) async fn lock_many(
    store: &PartStore,
    mut parts: Vec<PartId>,
    mode: Mode,
    locker: &Locker,
) -> Result<GuardSet> {
    parts.sort_unstable();
    if let Some(twice) = parts.windows(2).find(|two| two[0] == two[1]) {
        return Err(Error::InvalidInput {
            what: "part",
            value: twice[0].to_string(),
            limit: "each part once".to_owned(),
        });
    }
    let mut files: Vec<File> = Vec::new();
    for part in &parts {
        let file = store.file(part.file)?;
        file.inner.file.check(part.index)?;
        let key = file.inner.file.key(part.index);
        if let Some(held) = locker.state.holds(key) {
            return Err(locker.state.already_holds(*part, &held));
        }
        files.push(file);
    }
    let _counted = store.parts.checkpointing(Some(&locker.state));
    // Locks before room: what is here stays here then, and nobody has room in hand while he waits
    // for a lock.
    let mut guards = Vec::with_capacity(parts.len());
    for (part, file) in parts.iter().zip(&files) {
        guards.push(OwnedGuard::lock(file, locker, part.index, mode).await?);
    }
    let by = Some(&locker.state);
    let inner = &store.parts;
    let mut room = loop {
        let mut missing = Vec::new();
        for (part, file) in parts.iter().zip(&files) {
            let file = &file.inner.file;
            if inner.lacks_room(file, part.index).await {
                missing.push((Arc::clone(file), part.index));
            }
        }
        if missing.is_empty() {
            break None;
        }
        if let Some(room) = inner.room_for(&missing, by).await? {
            break Some(room);
        }
    };
    for (part, file) in parts.iter().zip(&files) {
        let (file, room) = (&file.inner.file, room.as_mut());
        inner.present_in(file, part.index, by, room).await?;
    }
    // Nobody waits for room with room in hand.
    drop(room);
    for (part, file) in parts.iter().zip(&files) {
        let file = &file.inner.file;
        inner.may_keep(file, part.index, &locker.state).await?;
    }
    Ok(GuardSet {
        store: store.clone(),
        locker: locker.clone(),
        mode,
        guards,
    })
}
