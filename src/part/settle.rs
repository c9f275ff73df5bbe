//! What becomes of images: the entry, and the end of the intent.
//!
//! Owns: the order in which an uploaded image becomes a part's. Does not own: the upload
//! (`worker`).
//!
//! 1. The entry becomes an image only if no later capture is in it already: two that are in
//!    flight may come back in either order.
//! 2. New entry and end of intent are one record, and durable, before the part is clean: before
//!    its hole can be punched.
//! 3. The intent ends only with the last capture in flight, and only if nothing was written since
//!    it was taken. Decided under the latch, with the bit in the word: whoever writes next opens a
//!    new one, behind this record.
//! 4. A part whose image fails for good stays dirty and is named; it is captured again later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::error::Error;
use crate::remote::RemoteError;
use crate::sync::Mutex;

use super::Parts;
use super::capture::Captured;
use super::file::PartFile;
use super::record::Change;

type Came = (Captured, Result<(), RemoteError>);

/// Images that have come back.
#[derive(Debug, Default)]
pub(crate) struct Settler {
    came: Mutex<Vec<Came>>,
    /// One batch at a time.
    turn: tokio::sync::Mutex<()>,
    busy: AtomicBool,
    some: Notify,
}

impl Settler {
    pub(crate) fn push(&self, images: impl Iterator<Item = Came>) {
        self.came.lock().extend(images);
        self.some.notify_one();
    }

    fn take(&self) -> Vec<Came> {
        let mut came = self.came.lock();
        self.busy.store(!came.is_empty(), Ordering::Release);
        std::mem::take(&mut *came)
    }

    /// Whether an image that came back is not settled yet.
    pub(crate) fn is_busy(&self) -> bool {
        let came = self.came.lock();
        !came.is_empty() || self.busy.load(Ordering::Acquire)
    }
}

impl Parts {
    /// Settles images as they come back, until the store stops.
    pub(crate) async fn run_settler(self: Arc<Self>) {
        loop {
            let came = self.settler.take();
            if came.is_empty() {
                self.flusher.moved.notify_waiters();
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = self.settler.some.notified() => continue,
                }
            }
            self.settle(came).await;
        }
    }

    /// What is left when everything else has stopped.
    pub(crate) async fn settle_rest(self: &Arc<Self>) {
        let came = self.settler.take();
        // Behind whatever batch is being settled.
        self.settle(came).await;
    }

    /// Lets go of what came back after that: nobody settles it any more.
    pub(crate) fn forget_rest(&self) {
        drop(self.settler.take());
    }

    async fn settle(self: &Arc<Self>, came: Vec<Came>) {
        let _turn = self.settler.turn.lock().await;
        let mut files: BTreeMap<u32, (Arc<PartFile>, Vec<Captured>)> = BTreeMap::new();
        for (image, outcome) in came {
            match outcome {
                Ok(()) => {
                    let of = files
                        .entry(image.file.no)
                        .or_insert_with(|| (Arc::clone(&image.file), Vec::new()));
                    of.1.push(image);
                }
                Err(error) => {
                    if let Some(line) = self.line.open() {
                        line.failed(image.key(), image.number, || Error::PartFailed {
                            part: image.file.part(image.index),
                            cause: Box::new(error.clone()),
                        });
                    }
                    let dirty = self.uncapture(&image.file, image.index, image.number);
                    // Cut off by shutdown, it is not S3 that refused it.
                    if dirty && !self.stop.is_cancelled() {
                        self.part_failed(&image.file, image.index, &error);
                    }
                }
            }
        }
        for (file, images) in files.into_values() {
            self.settle_file(&file, images).await;
            self.snapshot_if_due(&file);
        }
    }

    async fn settle_file(self: &Arc<Self>, file: &Arc<PartFile>, mut images: Vec<Captured>) {
        crate::crash_point::crash_point("pack.sent");
        // First: entries behind the length on record would be parts that do not exist.
        let length = self.log_length(file);
        let (location, ended) = {
            let log = &mut *file.log.lock();
            let mut changes = Vec::new();
            let mut ended = Vec::new();
            images.retain(|image| self.enter(file, image, log, &mut changes, &mut ended));
            let appended = match changes.is_empty() {
                true => Ok(0),
                false => self.append_changes(file, log, changes, true),
            };
            (length.and(appended), ended)
        };
        let durable = match location {
            Ok(0) => Ok(()),
            Ok(location) => self
                .journal
                .wait_durable(location)
                .await
                .map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = durable {
            tracing::error!(file = %file.id, %error, "images are in S3, and not on record");
            // They keep their captures: nothing of them is evicted. And what their entries named
            // before is needed after a crash.
            self.has_unrecorded.store(true, Ordering::Release);
            return drop(ended);
        }
        crate::crash_point::crash_point("pack.recorded");
        for image in &images {
            self.capture_ended(file, image);
            self.flusher.healed(file.key(image.index));
        }
        // Room for what is dirty comes back now that it is not.
        drop(ended);
        self.evictor.notify_one();
        self.flusher.moved();
    }

    /// Puts one image into its entry, and closes the intent, where that is right. Whether it is
    /// still the image of a part.
    fn enter(
        &self,
        file: &Arc<PartFile>,
        image: &Captured,
        log: &mut super::file::FileLog,
        changes: &mut Vec<Change>,
        ended: &mut Vec<super::file::Intent>,
    ) -> bool {
        let index = image.index;
        let _latch = self.latches.step(file.key(index));
        if let Some(line) = self.line.open() {
            // Whether or not it is the part's image still.
            line.touch(file, index);
            line.arrived(image.key(), image.number, image.address);
        }
        let entry = file.header.entry(index);
        let (latest, uploaded) = {
            let mut captures = file.captures.lock();
            let ours = captures.get_mut(&index).filter(|c| c.has(image.number));
            // Cut off, by the record that comes before, it is no part's image any more.
            let Some(captures) = ours.filter(|_| file.check(index).is_ok()) else {
                return false;
            };
            let latest = image.number > captures.applied;
            if latest {
                captures.applied = image.number;
            }
            // All that are in flight are in S3, this one with them.
            let all = captures.settling + 1;
            (latest, (captures.in_flight == all).then_some(all))
        };
        let word = &entry.word;
        let closes = uploaded.is_some_and(|n| word.make(|word| word.close_intent(n)).is_some());
        let mut closed = false;
        if closes && let Some(intent) = log.intents.remove(&index) {
            ended.push(intent);
            closed = true;
        }
        if let Some(captures) = file.captures.lock().get_mut(&index) {
            captures.settling += 1;
        }
        if latest {
            entry.set_address(Some(image.address));
            word.set(|word| word.with_differs(true));
            self.part_changed(file, index);
            changes.push(Change::Entry {
                index,
                address: image.address,
                ends: closed,
            });
        } else if closed {
            changes.push(Change::IntentEnded { index });
        }
        true
    }

    /// A capture is over, durably.
    fn capture_ended(&self, file: &PartFile, image: &Captured) {
        let index = image.index;
        let mut captures = file.captures.lock();
        let std::collections::btree_map::Entry::Occupied(mut part) = captures.entry(index) else {
            return;
        };
        let captures = part.get_mut();
        if !captures.has(image.number) {
            return;
        }
        captures.in_flight -= 1;
        captures.settling -= 1;
        if captures.in_flight == 0 {
            part.remove();
        }
        let word = &file.header.entry(index).word;
        word.set(|word| word.capture_ended(false));
        self.totals.images.fetch_add(1, Ordering::Relaxed);
    }
}
