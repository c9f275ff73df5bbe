//! Writing images that are not captures: pages, nodes, and what was set aside.
//!
//! Owns: packs of them, and that they are in S3. Does not own: what is in them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::part::Parts;
use crate::part::aside::Aside;
use crate::part::epoch::Issued;
use crate::part::header::Address;
use crate::part::id::PartKey;
use crate::part::line::OpenLine;
use crate::part::pack::PackBytes;
use crate::part::room::Taken;
use crate::queue::image::{Image, ImageSink};
use crate::remote::RemoteError;
use crate::sync::Mutex;

/// Images of a checkpoint, on their way into as few objects as they fit in.
#[derive(Debug)]
pub(crate) struct Writer {
    parts: Arc<Parts>,
    target: usize,
    open: Option<PackBytes>,
    full: Vec<(Arc<Issued>, Bytes)>,
}

impl Writer {
    pub(crate) fn new(parts: &Arc<Parts>, target: u64) -> Self {
        Self {
            parts: Arc::clone(parts),
            target: usize::try_from(target).unwrap_or(usize::MAX),
            open: None,
            full: Vec::new(),
        }
    }

    /// Adds an image; where it will be.
    pub(crate) fn push(&mut self, image: &[u8]) -> Result<Address> {
        let is_full = |pack: &PackBytes| pack.len() > 0 && pack.len() + image.len() > self.target;
        if self.open.as_ref().is_some_and(is_full) {
            self.close();
        }
        let pack = match &mut self.open {
            Some(pack) => pack,
            open => {
                let issued = self.parts.epochs.issue()?;
                open.insert(PackBytes::new(issued, image.len()))
            }
        };
        let pushed = pack.push_bytes(image);
        pushed.map_err(|error| Error::Runtime(error.to_string()))
    }

    fn close(&mut self) {
        self.full.extend(self.open.take().map(PackBytes::body));
    }

    /// Uploads all of them, and waits until they are in S3. Their sequences stay open as long as
    /// what is returned.
    ///
    /// # Errors
    /// Why one of them is not; the others may be.
    pub(crate) async fn upload(mut self) -> Result<Vec<Arc<Issued>>> {
        self.close();
        let mut waits = Vec::new();
        let mut issued = Vec::new();
        for (sequence, body) in self.full {
            let key = self.parts.epochs.key_of(&sequence);
            let room = self.parts.room_for_images(body.len() as u64).await?;
            let (told, hears) = oneshot::channel();
            let sink = Arc::new(Sent {
                told: Mutex::new(Some(told)),
                _room: room,
            });
            let image = Image::new(key, body, sink);
            self.parts.queue().submit_image(image);
            waits.push(hears);
            issued.push(sequence);
        }
        if is(Mutant::HeadBeforePacks) {
            let rest = futures::future::join_all(waits);
            self.parts.spawn(async { drop(rest.await) });
            return Ok(issued);
        }
        for hears in waits {
            match hears.await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(Error::Runtime("an upload was dropped".to_owned())),
            }
        }
        Ok(issued)
    }
}

/// An object whose upload is waited for.
#[derive(Debug)]
struct Sent {
    told: Mutex<Option<oneshot::Sender<Result<(), RemoteError>>>>,
    _room: Option<Taken>,
}

impl ImageSink for Sent {
    fn is_urgent(&self) -> bool {
        true
    }

    fn is_wanted(&self) -> bool {
        let told = self.told.lock();
        told.as_ref().is_some_and(|told| !told.is_closed())
    }

    fn end(self: Arc<Self>, outcome: Result<(), RemoteError>) {
        if let Some(told) = self.told.lock().take() {
            // Whoever waited may have gone.
            let _ = told.send(outcome);
        }
    }
}

/// A pack of images that were set aside.
#[derive(Debug)]
struct AsidePack {
    line: Arc<OpenLine>,
    images: Vec<(PartKey, Address)>,
    /// Kept until the line has them.
    issued: Arc<Issued>,
    _room: Option<Taken>,
}

impl ImageSink for AsidePack {
    fn is_urgent(&self) -> bool {
        true
    }

    fn is_wanted(&self) -> bool {
        !self.line.is_given_up()
    }

    fn end(self: Arc<Self>, outcome: Result<(), RemoteError>) {
        for (key, address) in &self.images {
            match &outcome {
                Ok(()) => self.line.aside_arrived(*key, *address),
                Err(error) => self.line.lost(*key, error.clone().into()),
            }
        }
        debug_assert!(self.issued.epoch > 0);
    }
}

/// Sends images that were set aside on their way, a pack of them.
pub(crate) async fn send_aside(
    parts: &Arc<Parts>,
    line: &Arc<OpenLine>,
    target: u64,
) -> Result<()> {
    let most = usize::try_from(target).unwrap_or(usize::MAX);
    let taken = line.take_aside(most);
    if taken.is_empty() {
        return Ok(());
    }
    let bytes: usize = taken.iter().map(|(_, aside)| aside.len()).sum();
    let room = parts.room_for_images(bytes as u64).await?;
    let issued = parts.epochs.issue()?;
    let from = Arc::clone(line);
    let read = move || -> std::io::Result<_> {
        let mut pack = PackBytes::new(issued, bytes);
        let mut images = Vec::with_capacity(taken.len());
        for (key, aside) in taken {
            let len = Aside::len(&aside);
            let address = pack.push(len, |into| from.aside.read(&aside, into))?;
            images.push((key, address));
        }
        Ok((pack.body(), images))
    };
    let read = parts.io().run(read).await.and_then(|read| read);
    let ((issued, body), images) = read.map_err(|error| Error::directory(parts.dir(), &error))?;
    let key = parts.epochs.key_of(&issued);
    let sink = AsidePack {
        line: Arc::clone(line),
        images,
        issued,
        _room: room,
    };
    let image = Image::new(key, body, Arc::new(sink));
    parts.queue().submit_image(image);
    Ok(())
}
