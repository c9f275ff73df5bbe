//! Captures: what a part looks like at one instant, on its way to S3.
//!
//! Owns: taking an image, and its number among the images of its part. Does not own: when
//! (`flush.rs`), the object it travels in (`pack.rs`), or what becomes of it (`settle.rs`).
//!
//! 1. Under the latch: copied, numbered, dirty off, captures up by one. A write is wholly in an
//!    image, or sets dirty again after it.
//! 2. A capture takes a latch and nothing else: no guard that the engine holds, or has forgotten,
//!    delays it.
//! 3. Bytes behind the end of the file are not read: an image ends where the file does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::mutant::{Mutant, is};

use super::Parts;
use super::epoch::Issued;
use super::file::{Captures, PartFile};
use super::header::Address;
use super::id::PartKey;
use super::pack::PackBytes;
use super::room::Taken;

/// An image of a part on its way.
#[derive(Debug)]
pub(crate) struct Captured {
    pub file: Arc<PartFile>,
    pub index: u32,
    /// Rising among the captures of one file, so that none of a part that was cut off is taken for
    /// one of the part that came after it.
    pub number: u64,
    pub address: Address,
    /// Its object is nobody's garbage meanwhile.
    issued: Arc<Issued>,
    /// Its share of the memory that images may take.
    _room: Taken,
}

impl Captured {
    pub(crate) fn key(&self) -> PartKey {
        self.file.key(self.index)
    }

    /// It goes up in another object.
    pub(crate) fn moved(&mut self, address: Address, issued: &Arc<Issued>) {
        self.address = address;
        self.issued = Arc::clone(issued);
    }
}

impl Parts {
    /// Whether somebody has a use for an image.
    pub(crate) fn wants(&self, image: &Captured) -> bool {
        let is_a_parts = {
            let captures = image.file.captures.lock();
            let part = captures.get(&image.index);
            part.is_some_and(|part| part.has(image.number))
        };
        let line = || self.line.open();
        is_a_parts || line().is_some_and(|line| line.needs_capture(image.key(), image.number))
    }

    /// Captures a part into a pack, if it is dirty.
    pub(crate) fn capture(
        &self,
        file: &Arc<PartFile>,
        index: u32,
        pack: &mut PackBytes,
        room: Taken,
    ) -> std::io::Result<Option<Captured>> {
        let key = file.key(index);
        let word = &file.header.entry(index).word;
        let _latch = self.latches.copy(key);
        let line = self.line.open();
        if let Some(line) = &line {
            line.touch(file, index);
        }
        // Being cut off: whoever cuts it sets it aside.
        if file.check(index).is_err() {
            return Ok(None);
        }
        if word.make(|word| word.captured()).is_none() {
            return Ok(None);
        }
        let number = {
            let mut captures = file.captures.lock();
            let number = file.captured.fetch_add(1, Ordering::Relaxed) + 1;
            let part = captures.entry(index).or_insert_with(|| Captures {
                first: number,
                ..Captures::default()
            });
            part.in_flight += 1;
            part.last = number;
            number
        };
        if let Some(line) = &line {
            line.captured(key, number);
        }
        let start = file.start_of(index);
        let len = file.len_of(index) as usize;
        let copied = pack.push(len, |into| file.read_here(into, start));
        if is(Mutant::HeadBeforeImages)
            && let (Some(line), Ok(address)) = (&line, &copied)
        {
            line.arrived(key, number, *address);
        }
        match copied {
            Ok(address) => Ok(Some(Captured {
                file: Arc::clone(file),
                index,
                number,
                address,
                issued: Arc::clone(pack.issued()),
                _room: room,
            })),
            Err(error) => {
                let cause = || crate::error::Error::directory(&file.path, &error);
                if let Some(line) = &line {
                    line.failed(key, number, cause);
                }
                self.uncapture_latched(file, index, number);
                Err(error)
            }
        }
    }

    /// A capture that came to nothing: the part is dirty again. Whether it was still in flight: a
    /// part that was cut off has none.
    pub(crate) fn uncapture(&self, file: &Arc<PartFile>, index: u32, number: u64) -> bool {
        let _latch = self.latches.step(file.key(index));
        if let Some(line) = self.line.open() {
            line.touch(file, index);
        }
        self.uncapture_latched(file, index, number)
    }

    fn uncapture_latched(&self, file: &PartFile, index: u32, number: u64) -> bool {
        let mut captures = file.captures.lock();
        let std::collections::btree_map::Entry::Occupied(mut part) = captures.entry(index) else {
            return false;
        };
        if !part.get().has(number) {
            return false;
        }
        part.get_mut().in_flight -= 1;
        if part.get().in_flight == 0 {
            part.remove();
        }
        let word = &file.header.entry(index).word;
        word.set(|word| word.capture_ended(true));
        true
    }
}
