//! The committer: one writer, group by group.
//!
//! Owns: the segment that is written to, what is written and not yet synced, and what happens
//! when the disk refuses. Its one entry is [`Shared::turn`]: a plain function that takes what is
//! pending, writes it, syncs it, and tells everyone. Who calls it, and on which thread, is not
//! its business.
//!
//! Invariants:
//!
//! 1. Nothing is published before the fdatasync that covers it returned Ok.
//! 2. A segment in which a write or an fdatasync failed is never written or synced again. What
//!    was not covered goes, in order, into the next one, whose first frame says where the failed
//!    one ends; that frame is covered by the same fdatasync as the records.
//! 3. A segment is left only when all that is in it is synced, so no frame lies behind an
//!    unsynced one of another segment.
//! 4. What was never written is void when the journal fails, and what was written is
//!    undetermined; nothing is both.
//! 5. A `Begin` is written only where there is room for everything to end (`room.rs`).

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rand::RngExt;

use crate::mutant::{Mutant, is};

use super::error::{JournalFailure, is_space};
use super::frame::{self, Header, KIND_START, Mark, START_BYTES, SegmentEnd, Start, What};
use super::fs::FsFile;
use super::index::{Place, Segment};
use super::open::Opening;
use super::reclaim::Reclaimer;
use super::record::{Effect, Location};
use super::segment::{self, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::shared::{Body, Record, Shared};

/// Segments that may fail in a row before the journal gives up.
const MAX_FAILURES: u32 = 3;
/// Bytes that may lie unsynced before they are synced unasked: they are kept in memory.
const MAX_UNSYNCED_BYTES: u64 = 1024 * 1024;

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub number: u64,
    pub small: u32,
    pub id: u128,
    pub file: Arc<dyn FsFile>,
    /// Where the next frame goes.
    pub offset: u64,
    pub limit: u64,
}

#[derive(Debug)]
pub(super) struct Placed {
    pub(super) record: Record,
    pub(super) header: Header,
    pub(super) place: Place,
}

/// Why writing stopped.
#[derive(Debug)]
pub(super) enum Stall {
    /// No room, for now.
    Room,
    /// Too many segments failed in a row.
    Failed(JournalFailure),
}

enum Fault {
    Room,
    Io(JournalFailure),
}

/// What the committer should do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// There is nothing left to do, for good.
    pub done: bool,
    /// A spare segment should be made.
    pub want_spare: bool,
    /// Call again at once.
    pub more: bool,
}

/// The committer's state.
#[derive(Debug, Default)]
pub(super) struct Core {
    pub active: Option<Active>,
    /// What the next first frame says.
    pub ends: Vec<SegmentEnd>,
    /// All before it is durable.
    pub mark: Mark,
    pub next_number: u64,
    pub queue: VecDeque<Record>,
    pub(super) unsynced: Vec<Placed>,
    pub(super) unsynced_bytes: u64,
    pub(super) sync_wanted: bool,
    /// Vital records wait for room.
    pub(super) vitals: VecDeque<Record>,
    /// Owners wait for room.
    pub(super) begins: VecDeque<Record>,
    /// Notes wait for room, or for their owner.
    pub(super) held: VecDeque<Record>,
    /// Owners that are admitted and not yet in the index.
    pub(super) fresh: HashSet<Location>,
    /// Owners whose end is written and not yet synced: no copy of them may follow it.
    pub(super) ending: HashSet<Location>,
    /// Taken from the inbox, and not yet looked at.
    pub(super) incoming: Vec<Record>,
    /// Locations to report as durable.
    pub(super) finished: Vec<Location>,
    /// Payload files whose owners have durably ended.
    pub(super) unlinks: Vec<(Location, u64)>,
    pub(super) failures: u32,
    pub(super) stalled: bool,
    pub reclaimer: Reclaimer,
    pub opening: Option<Opening>,
    pub(super) buffer: Vec<u8>,
    pub(super) done: bool,
}

/// Whether waiting may help: the disk is full, or the process is short of something.
fn passes(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    is_space(error) || matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE))
}

impl Shared {
    /// One turn of the committer. Blocks on the disk.
    pub(super) fn turn(&self) -> Turn {
        let core = &mut *self.core.lock();
        if core.done {
            return Turn {
                done: true,
                ..Turn::default()
            };
        }
        let (force, sealing) = core.take(self);
        if core.opening.is_some()
            && let Err(stall) = core.open_log(self)
        {
            return core.stall(self, stall, sealing);
        }
        core.admit(self);
        let written = core
            .place_payloads(self)
            .and_then(|()| core.write_out(self, force || sealing));
        if let Err(stall) = written {
            return core.stall(self, stall, sealing);
        }
        core.stalled = false;
        core.publish(self);
        core.unlink_ended(self);
        let mut more = match core.reclaim_step(self) {
            Ok(did) => did,
            Err(stall @ Stall::Failed(_)) => return core.stall(self, stall, sealing),
            // Copies go on when there is room again.
            Err(Stall::Room) => false,
        };
        core.publish(self);
        if sealing && self.inbox.lock().records.is_empty() {
            core.seal(self);
            return Turn {
                done: true,
                ..Turn::default()
            };
        }
        more |= !self.inbox.lock().records.is_empty();
        let want_spare = core.judge_room(self);
        Turn {
            done: false,
            want_spare,
            more,
        }
    }
}

impl Core {
    fn stall(&mut self, shared: &Shared, stall: Stall, sealing: bool) -> Turn {
        self.publish(shared);
        match stall {
            Stall::Failed(cause) => {
                self.fail(shared, &cause);
                Turn {
                    done: true,
                    ..Turn::default()
                }
            }
            Stall::Room => {
                self.stalled = true;
                if sealing {
                    let full = io::Error::from(io::ErrorKind::StorageFull);
                    let cause = JournalFailure::new("sealing", &shared.layout.dir, full);
                    self.fail(shared, &cause);
                    return Turn {
                        done: true,
                        ..Turn::default()
                    };
                }
                let more = matches!(self.reclaim_step(shared), Ok(true));
                let want_spare = self.judge_room(shared);
                Turn {
                    done: false,
                    want_spare,
                    more,
                }
            }
        }
    }

    /// Writes the queue, and syncs it where somebody asked.
    pub(super) fn write_out(&mut self, shared: &Shared, force: bool) -> Result<(), Stall> {
        while !self.queue.is_empty() || (force && !self.unsynced.is_empty()) {
            match self.write_once(shared, force) {
                Ok(()) => {}
                Err(Fault::Room) if self.put_back() => {}
                Err(Fault::Room) => return Err(Stall::Room),
                Err(Fault::Io(failure)) => self.poison(shared, failure)?,
            }
        }
        Ok(())
    }

    /// Fills the segment with what fits, in one write.
    fn write_once(&mut self, shared: &Shared, force: bool) -> Result<(), Fault> {
        if self.active.is_none() {
            let first = self.queue.front().map_or(0, Record::frame_bytes);
            self.activate(shared, first)?;
        }
        let Some(active) = &mut self.active else {
            return Err(Fault::Room);
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let fresh = active.offset == SEGMENT_HEADER_BYTES;
        if fresh {
            let oldest = oldest(shared, active);
            let start = Start {
                ends: self.ends.clone(),
                oldest,
                ..Start::default()
            };
            let highest = shared.inbox.lock().next - 1;
            encode_start(&mut buffer, active, &start, highest, self.mark);
        }
        let mut full = false;
        let mut placed = false;
        let mut highest = 0;
        {
            let index = shared.index.lock();
            while let Some(front) = self.queue.front() {
                let at = active.offset + buffer.len() as u64;
                let bytes = front.frame_bytes();
                let header = front.header(self.mark);
                let ended = self.ending.contains(&header.owner());
                let moot = match (front.copy_of, front.what) {
                    // The appender drops a copy whose owner has ended, or that was replaced.
                    (Some(from), _) => ended || !index.is_live(&header, from),
                    (None, What::Effect(Effect::Note { owner, .. } | Effect::End { owner })) => {
                        ended || (index.owner(owner).is_none() && !self.fresh.contains(&owner))
                    }
                    (None, _) => false,
                };
                if !moot && at + bytes > active.limit {
                    full = true;
                    break;
                }
                let Some(record) = self.queue.pop_front() else {
                    break;
                };
                if moot {
                    if record.reported {
                        self.finished.push(record.location);
                    }
                    continue;
                }
                frame::encode(
                    &mut buffer,
                    active.id,
                    at,
                    &header,
                    &record.head,
                    record.inline(),
                );
                if let What::Effect(Effect::End { owner }) = header.what {
                    self.ending.insert(owner);
                }
                if record.copy_of.is_none() {
                    highest = highest.max(record.location);
                }
                self.sync_wanted |= record.sync;
                self.unsynced_bytes += bytes;
                // In range: a segment has at most 1 GiB, or is as large as one frame.
                let place = Place {
                    segment: active.small,
                    offset: at as u32,
                    len: bytes as u32,
                };
                self.unsynced.push(Placed {
                    record,
                    header,
                    place,
                });
                placed = true;
            }
        }
        crate::crash_point::crash_point("journal.writing");
        let mut result = Ok(());
        if placed {
            result = active
                .file
                .write_all_at(&buffer, active.offset)
                .map_err(|error| self.fault("writing", shared, error));
        }
        let written = buffer.len() as u64;
        self.buffer = buffer;
        if self.buffer.capacity() > 4 * shared.options.group_bytes as usize {
            self.buffer = Vec::new();
        }
        result?;
        if placed && let Some(active) = &mut self.active {
            active.offset += written;
            crate::crash_point::crash_point("journal.written");
            // Before the sync: this is what a process that dies now leaves.
            for waker in shared.watch.lock().set_written(highest) {
                waker.wake();
            }
        }
        let ripe = self.sync_wanted || self.unsynced_bytes > MAX_UNSYNCED_BYTES;
        if (force || full || ripe) && !self.unsynced.is_empty() {
            self.sync(shared)?;
        }
        if full && !placed {
            self.retire();
        }
        Ok(())
    }

    fn fault(&self, what: &'static str, shared: &Shared, error: io::Error) -> Fault {
        let number = self.active.as_ref().map_or(0, |active| active.number);
        Fault::Io(JournalFailure::new(
            what,
            shared.layout.segment(number),
            error,
        ))
    }

    /// The one fdatasync of a group.
    fn sync(&mut self, shared: &Shared) -> Result<(), Fault> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        if !is(Mutant::DurableBeforeFdatasync) {
            active
                .file
                .sync_data()
                .map_err(|error| self.fault("fdatasync of", shared, error))?;
        }
        shared.groups.fetch_add(1, Ordering::Relaxed);
        crate::crash_point::crash_point("journal.synced");
        self.mark = Mark {
            segment: active.number,
            offset: active.offset as u32,
        };
        self.failures = 0;
        self.ends.clear();
        self.ending.clear();
        self.sync_wanted = false;
        self.unsynced_bytes = 0;
        let mut index = shared.index.lock();
        if let Some(segment) = index.segments.get_mut(&active.number) {
            segment.end = active.offset;
            segment.records += self
                .unsynced
                .iter()
                .filter(|placed| placed.header.what != What::Mark)
                .map(|placed| u64::from(placed.place.len))
                .sum::<u64>();
        }
        for placed in self.unsynced.drain(..) {
            self.unlinks
                .extend(index.apply(&placed.header, placed.place));
            self.fresh.remove(&placed.record.location);
            if placed.record.reported {
                self.finished.push(placed.record.location);
            }
        }
        Ok(())
    }

    /// Leaves a segment that is full; all of it is synced.
    fn retire(&mut self) {
        if let Some(active) = self.active.take() {
            self.ends.push(SegmentEnd {
                segment: active.number,
                offset: active.offset as u32,
                poisoned: false,
            });
        }
    }

    /// Gives a segment up: what it did not cover goes again, into the next one.
    fn poison(&mut self, shared: &Shared, failure: JournalFailure) -> Result<(), Stall> {
        tracing::error!(cause = %failure, "the journal leaves a segment that the disk failed");
        self.failures += 1;
        if let Some(active) = self.active.take() {
            shared.poisoned.fetch_add(1, Ordering::Relaxed);
            let offset = if self.mark.segment == active.number {
                self.mark.offset
            } else {
                SEGMENT_HEADER_BYTES as u32
            };
            self.ends.push(SegmentEnd {
                segment: active.number,
                offset,
                poisoned: true,
            });
            if let Some(segment) = shared.index.lock().segments.get_mut(&active.number) {
                segment.poisoned = true;
                segment.end = u64::from(offset);
            }
        }
        for placed in self.unsynced.drain(..).rev() {
            let mut record = placed.record;
            record.written = true;
            self.queue.push_front(record);
        }
        self.ending.clear();
        self.unsynced_bytes = 0;
        if self.failures >= MAX_FAILURES {
            return Err(Stall::Failed(failure));
        }
        Ok(())
    }

    /// Gives up a segment in which nothing is unsynced.
    pub(super) fn retire_failed(&mut self, shared: &Shared, error: io::Error) {
        if let Fault::Io(failure) = self.fault("fdatasync of", shared, error) {
            // One failure is never the third: a success was before it.
            let _ = self.poison(shared, failure);
        }
    }

    /// Takes a segment into use that has room for a frame of `first` bytes.
    fn activate(&mut self, shared: &Shared, first: u64) -> Result<(), Fault> {
        crate::crash_point::crash_point("journal.segment");
        let need = (first + START_BYTES + 2 * SEGMENT_HEADER_BYTES).next_multiple_of(4096);
        let standard = shared.options.segment_bytes;
        let number = self.next_number;
        let Ok(small) = u32::try_from(number) else {
            let error = io::Error::other("segment numbers are used up");
            return Err(Fault::Io(JournalFailure::new(
                "creating",
                &shared.layout.segments,
                error,
            )));
        };
        let judge = |failure: JournalFailure| {
            if passes(&failure.source) {
                *shared.spare_error.lock() = Some(failure);
                Fault::Room
            } else {
                Fault::Io(failure)
            }
        };
        let (spare, bytes) = if need > standard {
            let path = shared.layout.spare.join(shared.random_name());
            segment::make_spare(&*shared.fs, &path, need).map_err(judge)?;
            shared.grow(need);
            (path, need)
        } else {
            if shared.spares.lock().is_empty() {
                shared.make_spare();
            }
            let ready = shared.spares.lock().pop();
            let Some(path) = ready else {
                let failure = shared.spare_error.lock().clone();
                return Err(failure.map_or(Fault::Room, judge));
            };
            (path, standard)
        };
        let id = shared.rng.lock().random();
        let header = SegmentHeader {
            number,
            bytes,
            id,
            journal: shared.journal,
        };
        // Whatever becomes of it, the number is used.
        self.next_number += 1;
        let file: Arc<dyn FsFile> =
            match segment::activate(&*shared.fs, &shared.layout, &spare, &header) {
                Ok(file) => file.into(),
                Err(failure) => {
                    shared.shrink(bytes);
                    return Err(judge(failure));
                }
            };
        let segment = Segment {
            number,
            bytes,
            id,
            file: Arc::clone(&file),
            end: SEGMENT_HEADER_BYTES,
            records: 0,
            live: 0,
            poisoned: false,
        };
        shared.index.lock().segments.insert(number, segment);
        self.active = Some(Active {
            number,
            small,
            id,
            file,
            offset: SEGMENT_HEADER_BYTES,
            limit: header.limit(),
        });
        Ok(())
    }

    /// Writes the first segment of this open: `start`, then `records`, synced in one go.
    pub(super) fn write_first(
        &mut self,
        shared: &Shared,
        start: &Start,
        records: Vec<Record>,
    ) -> Result<(), Stall> {
        let bytes: u64 = records.iter().map(Record::frame_bytes).sum();
        self.queue.extend(records);
        loop {
            let tried = self.activate(shared, bytes).and_then(|()| {
                let Some(active) = &mut self.active else {
                    return Err(Fault::Room);
                };
                let mut buffer = Vec::new();
                let highest = shared.inbox.lock().next - 1;
                let oldest = oldest(shared, active);
                // Where the copies end depends on the first frame's own length, not its values.
                encode_start(&mut buffer, active, start, highest, self.mark);
                let condition = (active.offset + buffer.len() as u64 + bytes) as u32;
                let start = Start {
                    condition,
                    oldest,
                    ..start.clone()
                };
                buffer.clear();
                encode_start(&mut buffer, active, &start, highest, self.mark);
                while let Some(record) = self.queue.pop_front() {
                    let at = active.offset + buffer.len() as u64;
                    let header = record.header(self.mark);
                    frame::encode(
                        &mut buffer,
                        active.id,
                        at,
                        &header,
                        &record.head,
                        record.inline(),
                    );
                    let len = record.frame_bytes() as u32;
                    let place = Place {
                        segment: active.small,
                        offset: at as u32,
                        len,
                    };
                    self.unsynced.push(Placed {
                        record,
                        header,
                        place,
                    });
                }
                let written = active.file.write_all_at(&buffer, active.offset);
                if let Err(error) = written {
                    return Err(self.fault("writing", shared, error));
                }
                active.offset += buffer.len() as u64;
                self.sync(shared)
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(Fault::Room) => return Err(Stall::Room),
                Err(Fault::Io(failure)) => {
                    self.poison(shared, failure)?;
                    // The condition voids all segments in between.
                    self.ends.clear();
                }
            }
        }
    }
}

/// The lowest segment that is not removed.
fn oldest(shared: &Shared, active: &Active) -> u64 {
    shared
        .index
        .lock()
        .oldest()
        .map_or(active.number, |segment| segment.number)
}

fn encode_start(buffer: &mut Vec<u8>, active: &Active, start: &Start, highest: u64, mark: Mark) {
    let head = start.encode();
    let header = frame::mark_header(KIND_START, highest, mark, head.len() as u32);
    let at = active.offset + buffer.len() as u64;
    frame::encode(buffer, active.id, at, &header, &head, &[]);
}

/// A frame of the journal's own, as a record.
pub(super) fn mark_record(kind: u8, highest: Location) -> Record {
    Record {
        location: highest,
        kind,
        what: What::Mark,
        head: Bytes::new(),
        body: Body::None,
        sync: true,
        vital: false,
        lasting: false,
        copy_of: None,
        reported: false,
        written: false,
    }
}
