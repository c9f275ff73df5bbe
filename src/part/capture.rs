//! Captures: what a part looks like at one instant, on its way to S3.
//!
//! Owns: taking an image, and its number among the images of its part. Does not own: when
//! (`flush.rs`), or what becomes of it (`settle.rs`).
//!
//! 1. Under the latch: copied, numbered, dirty off, captures up by one. A write is wholly in an
//!    image, or sets dirty again after it.
//! 2. A capture takes a latch and nothing else: no guard that the engine holds, or has forgotten,
//!    delays it.
//! 3. Bytes behind the end of the file are not read: an image ends where the file does.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::queue::image::{Image, ImageSink};
use crate::remote::{Crc64, RemoteError};

use super::Parts;
use super::file::{Captures, PartFile};
use super::header::{Address, crc32c};
use super::room::Taken;

/// An image of a part on its way.
#[derive(Debug)]
pub(crate) struct Captured {
    parts: Weak<Parts>,
    pub file: Arc<PartFile>,
    pub index: u32,
    /// Rising among the captures of one file, so that none of a part that was cut off is taken for
    /// one of the part that came after it.
    pub number: u64,
    pub address: Address,
    /// Its share of the memory that images may take.
    _room: Taken,
}

impl ImageSink for Captured {
    fn is_wanted(&self) -> bool {
        let captures = self.file.captures.lock();
        let part = captures.get(&self.index);
        part.is_some_and(|part| part.has(self.number))
    }

    fn end(self: Arc<Self>, outcome: Result<(), RemoteError>) {
        if let Some(parts) = self.parts.upgrade() {
            parts.settler.push(self, outcome);
        }
    }
}

impl Parts {
    /// Captures a part, if it is dirty: the image to upload.
    pub(crate) fn capture(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        room: Taken,
    ) -> std::io::Result<Option<Image>> {
        let key = file.key(index);
        let word = &file.header.entry(index).word;
        let latch = self.latches.copy(key);
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
            number
        };
        let mut bytes = vec![0; file.len_of(index) as usize];
        let read = file.read_here(&mut bytes, file.start_of(index));
        if let Err(error) = read {
            self.uncapture(file, index, number);
            return Err(error);
        }
        drop(latch);
        let (epoch, sequence) = self.epochs.issue();
        let address = Address {
            epoch,
            sequence,
            offset: 0,
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            crc: crc32c(&bytes),
        };
        let body = Bytes::from(bytes);
        let sink = Arc::new(Captured {
            parts: Arc::downgrade(self),
            file: Arc::clone(file),
            index,
            number,
            address,
            _room: room,
        });
        Ok(Some(Image {
            key: self.epochs.key(&address),
            checksum: Crc64::of(&body),
            body,
            sink,
            failures: 0,
            last_error: None,
        }))
    }

    /// A capture that came to nothing: the part is dirty again. Whether it was still in flight: a
    /// part that was cut off has none.
    pub(crate) fn uncapture(&self, file: &PartFile, index: u32, number: u64) -> bool {
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
