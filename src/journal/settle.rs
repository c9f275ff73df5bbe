//! Telling everyone what became of records.
//!
//! Owns: the durable location, void and undetermined records, payload files on their way in and
//! out, and the journal's end, good or bad.
//!
//! Invariants:
//!
//! 1. Every record that was appended gets one answer: durable, void or undetermined.
//! 2. A payload file is durable, name and bytes, before the record that names it is written, and
//!    goes only after the record that ends its owner is durable.

use std::io;

use super::commit::{Core, Stall, mark_record};
use super::error::{JournalError, JournalFailure};
use super::frame::{KIND_CLEAN, What};
use super::fs::OpenMode;
use super::record::{Effect, Location};
use super::shared::{Body, Record, Shared, State};

/// Notes that nobody waits for, and that say nothing to whoever finds the clean mark.
fn is_left_out(record: &Record) -> bool {
    let is_note = matches!(record.what, What::Effect(Effect::Note { .. }));
    is_note && !record.sync && !record.vital
}

impl Core {
    /// Makes staged payloads durable and gives them their names, before any record names them.
    pub(super) fn place_payloads(&mut self, shared: &Shared) -> Result<(), Stall> {
        let mut refused: Vec<(Location, JournalFailure)> = Vec::new();
        let mut placed = Vec::new();
        for record in &mut self.queue {
            let Body::Staged(staged) = &mut record.body else {
                continue;
            };
            let to = shared.layout.payload_of(record.location);
            let synced = shared
                .fs
                .open(staged.path(), OpenMode::ReadWrite)
                .and_then(|file| file.sync_data())
                .map_err(|error| JournalFailure::new("fdatasync of", staged.path(), error))
                .and_then(|()| {
                    shared
                        .fs
                        .rename(staged.path(), &to)
                        .map_err(|error| JournalFailure::new("naming", &to, error))
                });
            match synced {
                Ok(()) => {
                    staged.take();
                    record.body = Body::File(staged.len());
                    placed.push(record.location);
                    crate::crash_point::crash_point("journal.placed");
                }
                Err(failure) => refused.push((record.location, failure)),
            }
        }
        if !placed.is_empty()
            && let Err(error) = shared.fs.sync_dir(&shared.layout.payload)
        {
            let failure = JournalFailure::new("fsync of", &shared.layout.payload, error);
            for location in placed {
                let _ = shared.fs.unlink(&shared.layout.payload_of(location));
                refused.push((location, failure.clone()));
            }
        }
        let Some((_, cause)) = refused.first().cloned() else {
            return Ok(());
        };
        let locations: Vec<Location> = refused.into_iter().map(|(location, _)| location).collect();
        for record in &self.queue {
            if let Body::File(len) = record.body
                && locations.contains(&record.location)
            {
                shared.shrink(len);
            }
        }
        self.queue
            .retain(|record| !locations.contains(&record.location));
        for location in &locations {
            self.fresh.remove(location);
        }
        // Their records were never written: no recovery can bring them back.
        self.void(shared, &locations, &cause);
        if shared.watch.lock().too_many_void() {
            Err(Stall::Failed(cause))
        } else {
            Ok(())
        }
    }

    pub(super) fn void(&mut self, shared: &Shared, locations: &[Location], cause: &JournalFailure) {
        if locations.is_empty() {
            return;
        }
        tracing::error!(%cause, records = locations.len(), "records refused by the disk");
        let wakers = shared.watch.lock().set_void(locations, cause);
        if let Some(sink) = shared.sink() {
            sink.void(locations, cause);
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// The lowest location that is still on its way, less one.
    pub(super) fn watermark(&self, shared: &Shared) -> Location {
        let inbox = shared.inbox.lock();
        let first = inbox
            .records
            .front()
            .map_or(inbox.next, |record| record.location);
        let pending = self
            .queue
            .iter()
            .chain(&self.vitals)
            .chain(&self.begins)
            .chain(&self.held)
            .chain(&self.incoming);
        let pending = pending.chain(self.unsynced.iter().map(|placed| &placed.record));
        pending
            .filter(|record| record.reported)
            .map(|record| record.location)
            .fold(first, Location::min)
            - 1
    }

    /// Tells everyone what has become durable.
    pub(super) fn publish(&mut self, shared: &Shared) {
        let upto = self.watermark(shared);
        let (wakers, ahead, moved) = {
            let mut watch = shared.watch.lock();
            let before = watch.durable();
            let (wakers, ahead) = watch.advance(&self.finished, upto);
            (wakers, ahead, upto > before)
        };
        self.finished.clear();
        if let Some(sink) = shared.sink() {
            if moved {
                sink.durable(upto);
            }
            if !ahead.is_empty() {
                sink.durable_ahead(&ahead);
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// Removes payload files whose owners' ends are durable.
    pub(super) fn unlink_ended(&mut self, shared: &Shared) {
        for (owner, len) in self.unlinks.drain(..) {
            crate::crash_point::crash_point("journal.unlinking");
            // One that stays is removed by the next open: no record names it.
            if shared.fs.unlink(&shared.layout.payload_of(owner)).is_ok() {
                shared.shrink(len);
            }
        }
    }

    /// The last turn.
    pub(super) fn seal(&mut self, shared: &Shared) {
        let all = self.vitals.drain(..).chain(self.begins.drain(..));
        let (waiting, left_out): (Vec<Record>, Vec<Record>) = all
            .chain(self.held.drain(..))
            .partition(|record| !is_left_out(record));
        let left_out = left_out.iter().map(|record| record.location);
        self.finished.extend(left_out);
        let waiting: Vec<Location> = waiting.iter().map(|record| record.location).collect();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let cause = JournalFailure::new("waiting for room in", &shared.layout.dir, full);
        self.void(shared, &waiting, &cause);
        self.publish(shared);
        let highest = shared.inbox.lock().next - 1;
        // A disk that hangs shall hang here, before the mark can be read.
        let asked = self
            .active
            .as_ref()
            .map_or(Ok(()), |active| active.file.sync_data());
        if let Err(error) = asked {
            tracing::warn!(%error, "fdatasync before the clean mark");
            self.retire_failed(shared, error);
        }
        crate::crash_point::crash_point("journal.sealing");
        self.queue.push_back(mark_record(KIND_CLEAN, highest));
        let result = match self.write_out(shared, true) {
            Ok(()) => Ok(()),
            Err(Stall::Failed(cause)) => {
                self.fail(shared, &cause);
                Err(JournalError::Failed(cause))
            }
            Err(Stall::Room) => Err(JournalError::Io(cause)),
        };
        self.done = true;
        self.active = None;
        shared.close(result);
    }

    /// The journal stops. Everything on its way gets its one answer.
    pub(super) fn fail(&mut self, shared: &Shared, cause: &JournalFailure) {
        self.done = true;
        let (rest, sealing): (Vec<Record>, bool) = {
            let mut inbox = shared.inbox.lock();
            let sealing = inbox.state == State::Sealing;
            inbox.state = State::Failed;
            inbox.bytes = 0;
            (inbox.records.drain(..).collect(), sealing)
        };
        let unsynced = std::mem::take(&mut self.unsynced);
        let unsynced = unsynced.into_iter().map(|placed| Record {
            written: true,
            ..placed.record
        });
        let all = self
            .queue
            .drain(..)
            .chain(self.vitals.drain(..))
            .chain(self.begins.drain(..))
            .chain(self.held.drain(..))
            .chain(self.incoming.drain(..));
        let (mut void, mut unknown) = (Vec::new(), Vec::new());
        for record in all
            .chain(unsynced)
            .chain(rest)
            .filter(|record| record.reported)
        {
            if record.written {
                unknown.push(record.location)
            } else {
                void.push(record.location)
            }
        }
        void.sort_unstable();
        unknown.sort_unstable();
        tracing::error!(%cause, void = void.len(), undetermined = unknown.len(), "the journal has failed");
        let wakers = {
            let mut watch = shared.watch.lock();
            let mut wakers = watch.set_void(&void, cause);
            wakers.extend(watch.set_failed(cause));
            wakers
        };
        if let Some(sink) = shared.sink() {
            if !void.is_empty() {
                sink.void(&void, cause);
            }
            if !unknown.is_empty() {
                sink.undetermined(&unknown, cause);
            }
            sink.failed(cause);
        }
        for waker in wakers {
            waker.wake();
        }
        if sealing {
            shared.close(Err(JournalError::Failed(cause.clone())));
        }
    }
}
