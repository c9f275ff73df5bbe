//! Packs: one object with the images of many parts.
//!
//! Owns: the format (`docs/formats/parts.md`), where in its object an image is, and what becomes
//! of those of a pack that S3 refuses. Does not own: what is captured (`capture.rs`), or what
//! becomes of an image that is in S3 (`settle.rs`).
//!
//! 1. A pack has a sequence of its own before its first image, and is sent with one content only:
//!    one that is refused whole is made anew, in halves, under two other sequences.
//! 2. Its sequence is open until each of its images is a part's, or is nobody's for good: until
//!    then nobody who looks for garbage takes it for that.

use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::queue::image::{Image, ImageSink};
use crate::remote::{Class, RemoteError};
use crate::sync::Mutex;

use super::Parts;
use super::capture::Captured;
use super::epoch::Issued;
use super::header::{Address, crc32c};

const MAGIC: &[u8; 8] = b"S3WBPAK\0";
const VERSION: u32 = 1;
/// The oldest release that can read what this one writes.
const MIN_READER: u32 = 1;
/// Bytes before the first image.
pub(crate) const PREAMBLE: usize = 16;

/// An object that is being filled with images.
#[derive(Debug)]
pub(crate) struct PackBytes {
    issued: Arc<Issued>,
    bytes: Vec<u8>,
}

impl PackBytes {
    pub(crate) fn new(issued: Issued, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.saturating_add(PREAMBLE));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        Self {
            issued: Arc::new(issued),
            bytes,
        }
    }

    pub(crate) fn issued(&self) -> &Arc<Issued> {
        &self.issued
    }

    /// Bytes of images so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - PREAMBLE
    }

    /// Adds an image of `len` bytes, which `fill` writes; where that fails, nothing is added.
    pub(crate) fn push(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<Address> {
        let at = self.bytes.len();
        let (Ok(offset), Ok(size)) = (u32::try_from(at), u32::try_from(len)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.bytes.resize(at + len, 0);
        let image = &mut self.bytes[at..];
        if let Err(error) = fill(image) {
            self.bytes.truncate(at);
            return Err(error);
        }
        Ok(Address {
            epoch: self.issued.epoch,
            sequence: self.issued.sequence,
            offset,
            len: size,
            crc: crc32c(image),
        })
    }

    /// The same, of bytes that are there.
    pub(crate) fn push_bytes(&mut self, image: &[u8]) -> io::Result<Address> {
        self.push(image.len(), |into| {
            into.copy_from_slice(image);
            Ok(())
        })
    }

    /// What is to be uploaded.
    pub(crate) fn body(self) -> (Arc<Issued>, Bytes) {
        (self.issued, Bytes::from(self.bytes))
    }
}

/// A pack of parts on its way.
#[derive(Debug)]
pub(crate) struct Pack {
    parts: Weak<Parts>,
    body: Bytes,
    images: Mutex<Vec<Captured>>,
}

impl ImageSink for Pack {
    fn is_wanted(&self) -> bool {
        let parts = self.parts.upgrade();
        parts.is_some_and(|parts| {
            let images = self.images.lock();
            images.iter().any(|image| parts.wants(image))
        })
    }

    fn is_urgent(&self) -> bool {
        let parts = self.parts.upgrade();
        parts.is_some_and(|parts| {
            let line = parts.line.open();
            let owes = |line: Arc<super::line::OpenLine>| {
                let images = self.images.lock();
                images.iter().any(|image| line.owes(image.key()))
            };
            line.is_some_and(owes)
        })
    }

    fn end(self: Arc<Self>, outcome: Result<(), RemoteError>) {
        let Some(parts) = self.parts.upgrade() else {
            return;
        };
        let images = std::mem::take(&mut *self.images.lock());
        match outcome {
            // One of them may be to blame for all.
            Err(error) if refused(&error) && images.len() > 1 => {
                tracing::warn!(%error, images = images.len(), "a pack is refused: tried in halves");
                parts.halve(&self.body, images, &error);
            }
            outcome => parts.came_back(images, &outcome),
        }
    }
}

fn refused(error: &RemoteError) -> bool {
    matches!(error.class, Class::Permanent | Class::Conflict)
}

impl Parts {
    /// A pack as an upload.
    pub(crate) fn pack(self: &Arc<Self>, bytes: PackBytes, images: Vec<Captured>) -> Image {
        let (issued, body) = bytes.body();
        let sink = Pack {
            parts: Arc::downgrade(self),
            body: body.clone(),
            images: Mutex::new(images),
        };
        Image::new(self.epochs.key_of(&issued), body, Arc::new(sink))
    }

    /// Makes two packs of one.
    fn halve(self: &Arc<Self>, body: &Bytes, mut images: Vec<Captured>, error: &RemoteError) {
        let second = images.split_off(images.len() / 2);
        for half in [images, second] {
            let issued = match self.epochs.issue() {
                Ok(issued) => issued,
                Err(_) => {
                    self.came_back(half, &Err(error.clone()));
                    continue;
                }
            };
            let len = half.iter().map(|image| image.address.len as usize).sum();
            let mut bytes = PackBytes::new(issued, len);
            let mut moved = Vec::with_capacity(half.len());
            for mut image in half {
                let from = image.address.offset as usize;
                let old = body.slice(from..from + image.address.len as usize);
                match bytes.push_bytes(&old) {
                    Ok(address) => {
                        image.moved(address, bytes.issued());
                        moved.push(image);
                    }
                    // It cannot be longer than it was.
                    Err(_) => self.came_back(vec![image], &Err(error.clone())),
                }
            }
            let image = self.pack(bytes, moved);
            self.queue.submit_image(image);
        }
    }

    /// What became of images, for the settler.
    pub(crate) fn came_back(
        self: &Arc<Self>,
        images: Vec<Captured>,
        outcome: &Result<(), RemoteError>,
    ) {
        let came = images.into_iter().map(|image| (image, outcome.clone()));
        self.settler.push(came);
    }
}
