//! Images: uploads of objects whose bytes are in memory, under keys of the store's own.
//!
//! Owns: what such an upload is, and its way through the queue: in back-off the same bytes stay
//! with it, under the same key, which has one content for ever. Does not own: what is in it and
//! what becomes of that: a pack of parts, or of pages of a checkpoint, implements [`ImageSink`].
//! Images are not journaled: the write intents of their parts are their record.
//!
//! 1. A key is used for one content only, so a lost reply needs no question: the same PUT again
//!    makes the same object.
//! 2. Images and tasks take turns. What a checkpoint waits for goes first, and has a slot that
//!    nothing else has.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::remote::multipart::MultipartUploadState;
use crate::remote::{Crc64, RemoteError};

use super::Queue;

/// Who made an image, and is told what became of it.
pub(crate) trait ImageSink: Send + Sync + std::fmt::Debug {
    /// Whether it is still of use.
    fn is_wanted(&self) -> bool {
        true
    }
    /// Whether a checkpoint waits for it.
    fn is_urgent(&self) -> bool;
    /// It is in S3, or never will be; called once, with no lock held. Must not block.
    fn end(self: Arc<Self>, outcome: Result<(), RemoteError>);
}

/// An image to upload.
#[derive(Debug)]
pub(crate) struct Image {
    pub key: Arc<str>,
    pub body: Bytes,
    pub checksum: Crc64,
    pub sink: Arc<dyn ImageSink>,
    pub failures: u32,
    pub last_error: Option<String>,
    /// How far it is, where it goes up in parts.
    pub multipart: Option<MultipartUploadState>,
}

impl Image {
    pub(crate) fn new(key: Arc<str>, body: Bytes, sink: Arc<dyn ImageSink>) -> Self {
        Self {
            key,
            checksum: Crc64::of(&body),
            body,
            sink,
            failures: 0,
            last_error: None,
            multipart: None,
        }
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.sink.is_urgent()
    }
}

impl Queue {
    /// Puts an image into line.
    pub(crate) fn submit_image(&self, image: Image) {
        let late = {
            let mut state = self.lock();
            if state.closed {
                Some(image)
            } else {
                state.images.push(image);
                None
            }
        };
        if let Some(image) = late {
            let error = RemoteError::transient("PutObject").with_message("shut down");
            image.sink.end(Err(error));
        }
        self.moved_on();
    }

    /// An attempt failed in a way that may pass.
    pub(crate) fn retry_image(&self, mut image: Image, until: Instant, error: &RemoteError) {
        image.failures = image.failures.saturating_add(1);
        image.last_error = Some(super::task::cut(error.to_string()));
        self.lock().images.retry(image, until);
        self.changed();
    }

    /// A worker was stopped with it in hand, or S3 refuses everything: no failure of its own.
    pub(crate) fn put_back_image(&self, image: Image) {
        {
            let mut state = self.lock();
            state.images.ended();
            state.images.push(image);
        }
        self.changed();
    }

    pub(crate) fn end_image(&self, image: Image, outcome: Result<(), RemoteError>) {
        if outcome.is_ok() {
            super::Totals::add(&self.totals.images, 1);
            super::Totals::add(&self.totals.image_bytes, image.body.len() as u64);
        }
        image.sink.end(outcome);
        // Not before: who waits for all to be settled finds it in the one place or the other.
        self.lock().images.ended();
        self.moved_on();
    }

    /// Whether an image can still get to S3 before `deadline`.
    pub(crate) fn images_can_move(&self, deadline: Instant) -> bool {
        let state = self.lock();
        let paused = state.is_held() || self.is_parked_past(deadline);
        state.images.running() > 0
            || (!paused && state.images.waiting() > 0 && state.images.may_move(deadline))
    }
}
