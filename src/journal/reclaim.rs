//! Giving space back: the oldest segment first, and only the oldest.
//!
//! Owns: emptying the oldest segment and removing it. Its copies pass the one appender.
//!
//! Invariants:
//!
//! 1. A segment is removed only when nothing in it is live, everything written is synced, and
//!    the removal of the one before it is durable. So the record that ends a task outlives every
//!    copy of the task: the end lies in the same segment as the last copy, or in a later one.
//! 2. A failed fsync of the directory stops reclaiming until the next open: nobody can say any
//!    more whether the last removal is durable.
//! 3. A file that a payload handle still reads is unlinked, never used again.

use std::sync::Arc;

use bytes::Bytes;

use super::commit::{Core, Stall};
use super::frame::{PayloadAt, What};
use super::index::{Place, Segment};
use super::room::{Oldest, Reclaim};
use super::segment::{At, Reader, SEGMENT_HEADER_BYTES};
use super::shared::{Body, Record, Shared};
use crate::journal::record::Effect;

/// Bytes that are copied in one turn: new records wait no longer than that.
const COPY_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Reclaimer {
    /// The segment that is being emptied, and how far.
    copying: Option<(u64, u64)>,
    /// Copying for want of room goes once through all segments, up to this one.
    round: Option<u64>,
    /// Dead bytes that such a round has left.
    floor: u64,
    /// Until somebody asks to look again.
    pub paused: bool,
    /// Until the next open.
    off: bool,
}

impl Core {
    /// Does one step of reclaiming; whether there may be another at once.
    pub(super) fn reclaim_step(&mut self, shared: &Shared) -> Result<bool, Stall> {
        if self.reclaimer.off || self.reclaimer.paused || self.opening.is_some() {
            return Ok(false);
        }
        let short = shared.spare_error.lock().is_some();
        if !short {
            self.reclaimer.round = None;
            self.reclaimer.floor = 0;
        }
        let (oldest, number, active) = {
            let index = shared.index.lock();
            let Some(oldest) = index.oldest() else {
                return Ok(false);
            };
            let active = self
                .active
                .as_ref()
                .map_or(self.mark.segment, |active| active.number);
            let figures = Oldest {
                is_active: oldest.number >= active,
                live: oldest.live,
                all: index.used(),
                all_live: index.live(),
                segment_bytes: shared.options.segment_bytes,
                short: short.then_some(self.reclaimer.floor),
            };
            (figures, oldest.number, active)
        };
        if self.reclaimer.round.is_some_and(|last| number > last) {
            // Everything was copied once. What is dead now only moves around.
            self.reclaimer.round = None;
            self.reclaimer.floor = oldest.dead();
            return Ok(true);
        }
        let decision = oldest.decide();
        if decision == Reclaim::Copy && short {
            self.reclaimer.round.get_or_insert(active);
        }
        match decision {
            Reclaim::Nothing => Ok(false),
            Reclaim::Remove => self.remove_oldest(shared, number),
            Reclaim::Copy => match self.copy_some(shared, number) {
                Err(Stall::Room) => {
                    // Still live where they are.
                    self.queue.retain(|record| record.copy_of.is_none());
                    self.reclaimer.copying = None;
                    self.reclaimer.paused = true;
                    Err(Stall::Room)
                }
                other => other,
            },
        }
    }

    fn copy_some(&mut self, shared: &Shared, number: u64) -> Result<bool, Stall> {
        let from = match self.reclaimer.copying {
            Some((segment, offset)) if segment == number => offset,
            _ => SEGMENT_HEADER_BYTES,
        };
        let read = self.read_live(shared, number, from);
        let (copies, next, end) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, segment = number, "cannot read a segment to reclaim it");
                self.reclaimer.paused = true;
                return Ok(false);
            }
        };
        self.queue.extend(copies);
        let finished = next >= end;
        self.write_out(shared, finished)?;
        self.reclaimer.copying = Some((number, next));
        if finished {
            self.reclaimer.copying = None;
            let left = shared
                .index
                .lock()
                .segments
                .get(&number)
                .map_or(0, |segment| segment.live);
            if left > 0 {
                // A live record went bad since open. It stays where it is, and so does the rest.
                tracing::error!(
                    segment = number,
                    bytes = left,
                    "live records cannot be copied"
                );
                self.reclaimer.off = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Live records of a segment from `from` on, up to a bounded number of bytes; where they
    /// stop, and where the segment ends.
    fn read_live(
        &self,
        shared: &Shared,
        number: u64,
        from: u64,
    ) -> std::io::Result<(Vec<Record>, u64, u64)> {
        let segment = shared
            .index
            .lock()
            .segments
            .get(&number)
            .map(|segment| (Arc::clone(&segment.file), segment.id, segment.end));
        let Some((file, id, end)) = segment else {
            return Ok((Vec::new(), from, from));
        };
        let mut reader = Reader::new(&*file, id, end);
        let mut copies = Vec::new();
        let (mut offset, mut bytes) = (from, 0);
        while offset < end && bytes < COPY_BYTES {
            let At::Frame(header, body) = reader.at(offset)? else {
                // Damage that open reported.
                offset = reader.next_valid(offset + 8)?.unwrap_or(end);
                continue;
            };
            let len = header.frame_len();
            let place = Place {
                segment: number as u32,
                offset: offset as u32,
                len: len as u32,
            };
            offset += len;
            if !shared.index.lock().is_live(&header, place) {
                continue;
            }
            bytes += len;
            copies.push(copy_record(&header, body, Some(place)));
        }
        Ok((copies, offset, end))
    }

    /// Removes the oldest segment, in which nothing is live.
    fn remove_oldest(&mut self, shared: &Shared, number: u64) -> Result<bool, Stall> {
        // What made its records dead must be durable, notes that asked for no sync included.
        self.write_out(shared, true)?;
        let wanted = self.room(shared).wants_spare(0);
        let Some(segment) = shared.index.lock().segments.remove(&number) else {
            return Ok(false);
        };
        match self.remove_file(shared, &segment, wanted) {
            Ok(()) => {
                // There is room that was not there before.
                *shared.spare_error.lock() = None;
                Ok(true)
            }
            Err(Gone::No(error)) => {
                tracing::error!(%error, segment = number, "cannot remove a segment");
                shared.index.lock().segments.insert(number, segment);
                self.reclaimer.paused = true;
                Ok(false)
            }
            Err(Gone::Unknown(error)) => {
                tracing::error!(%error, segment = number, "removal of a segment may not be durable");
                self.reclaimer.off = true;
                Ok(false)
            }
        }
    }

    /// Takes a segment's file away durably, or makes a spare of it.
    pub(super) fn remove_file(
        &mut self,
        shared: &Shared,
        segment: &Segment,
        wanted: bool,
    ) -> Result<(), Gone> {
        crate::crash_point::crash_point("journal.removing");
        let path = shared.layout.segment(segment.number);
        // A spare needs no zeros: frames of another segment id are not frames.
        let reuse = wanted
            && !segment.poisoned
            && segment.bytes == shared.options.segment_bytes
            && Arc::strong_count(&segment.file) == 1;
        let spare = shared.layout.spare.join(shared.random_name());
        let moved = if reuse {
            shared.fs.rename(&path, &spare)
        } else {
            shared.fs.unlink(&path)
        };
        match moved {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Gone::No(error)),
            Ok(()) => {}
        }
        let synced = shared.fs.sync_dir(&shared.layout.segments);
        if !reuse {
            shared.shrink(segment.bytes);
            return synced.map_err(Gone::Unknown);
        }
        match synced.and_then(|()| shared.fs.sync_dir(&shared.layout.spare)) {
            Ok(()) => {
                shared.spares.lock().push(spare);
                Ok(())
            }
            Err(error) => Err(Gone::Unknown(error)),
        }
    }
}

/// Why a segment's file may still be there.
#[derive(Debug)]
pub(super) enum Gone {
    /// It is still there.
    No(std::io::Error),
    /// It is gone, and may come back after a power cut.
    Unknown(std::io::Error),
}

/// A record as it was read, to be appended again under its own location.
pub(super) fn copy_record(
    header: &super::frame::Header,
    body: &[u8],
    copy_of: Option<Place>,
) -> Record {
    let (head, inline) = body.split_at(header.head_len as usize);
    Record {
        location: header.location,
        kind: header.kind,
        what: header.what,
        head: Bytes::copy_from_slice(head),
        body: match header.payload {
            PayloadAt::None => Body::None,
            PayloadAt::Inline(_) => Body::Inline(Bytes::copy_from_slice(inline)),
            PayloadAt::File(len) => Body::File(len),
        },
        sync: matches!(header.what, What::Effect(Effect::End { .. })),
        vital: false,
        lasting: false,
        copy_of,
        reported: false,
        written: true,
    }
}
