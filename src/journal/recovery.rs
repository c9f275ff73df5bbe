//! What the disk says at open.
//!
//! Owns: reading the log without changing anything, and telling a torn tail from damage. Does not
//! own: what open then writes (`open.rs`).
//!
//! Reading is one pass over the segments, oldest first, after a look at the first frame of each;
//! memory is bounded by the number of live owners, a few words each: their heads and payloads stay
//! on the disk (`stored.rs` reads them back).
//!
//! Invariants:
//!
//! 1. A gap is bytes that are not a frame, where there are frames behind. Below a mark (some
//!    frame says that all up to there was durable) it is damage. Above every mark it is a group
//!    that was never acknowledged: it and what lies behind it in that segment is cut off.
//! 2. Records are ordered by location, not by place: copies keep their location, and a record
//!    that is met twice counts once.
//! 3. A read that fails is an error of the open, not damage: nothing is given up because a disk
//!    did not answer.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ahead;
use super::error::JournalError;
use super::frame::{Header, KIND_CLEAN, KIND_START, Mark, SegmentEnd, Start, What};
use super::fs::{Fs, FsFile, OpenMode};
use super::index::{Index, NotePlace, Notes, Place, Segment, put_note};
use super::owners::{Owner, Owners};
use super::record::{Effect, Location};
use super::segment::{At, Layout, Named, Reader, SEGMENT_HEADER_BYTES, SegmentHeader, read_header};

/// A place in the journal that was acknowledged and cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Locations known to be missing; there may be others.
    pub missing: Vec<Location>,
    /// What was found there.
    pub what: String,
    /// Where the raw bytes are kept, if they could be.
    pub kept: Option<PathBuf>,
}

/// An owner that was live when the journal was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredOwner {
    /// Its durable id.
    pub location: Location,
    /// Kind of the record that began it.
    pub kind: u8,
    /// Head of the record that began it.
    pub head: Bytes,
    /// Length of its payload in bytes, if it has one.
    pub payload: Option<u64>,
    /// Its notes, the latest of each slot, by slot.
    pub notes: Vec<RecoveredNote>,
}

/// The latest note of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredNote {
    /// The slot.
    pub slot: u8,
    /// Kind of the record.
    pub kind: u8,
    /// Its location.
    pub location: Location,
    /// Its head.
    pub head: Bytes,
}

/// What open found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Live owners, by location. (None of them where they are asked for one by one:
    /// [`Journal::open_lean`](super::Journal::open_lean).)
    pub owners: Vec<RecoveredOwner>,
    /// Damage, in the order of the log: new, or in a segment that is still there.
    pub damage: Vec<Damage>,
    /// Whether the journal was sealed, and nothing written since.
    pub clean: bool,
    /// The next location that will be assigned.
    pub next_location: Location,
    /// Records read, dead ones and copies included.
    pub records: u64,
    /// The directory is not where it was made: nothing may be sent until
    /// [`Journal::adopt`](super::Journal::adopt).
    pub moved: bool,
    /// Notes of owners whose own record is lost to damage.
    pub orphan_notes: u64,
}

/// Locations that were assigned and handed out, and never reached the disk, are not assigned
/// again: an unclean open goes on this far above the highest that it finds.
const UNSEEN_LOCATIONS: Location = 1 << 24;

/// A frame of the tail that nothing proves to be durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct TailFrame {
    pub header: Header,
    pub place: Place,
}

/// What a look at the disk found.
#[derive(Debug)]
pub(super) struct Scan {
    pub index: Index,
    pub recovered: Recovered,
    pub tail: Vec<TailFrame>,
    /// All before it is known to be durable.
    pub mark: Mark,
    /// Where the segment before `mark`'s ends.
    pub before_mark: Option<SegmentEnd>,
    /// Whether the segment of `mark` holds nothing but marks before it.
    pub mark_only: bool,
    pub next_number: u64,
    /// The journal's id, as the segments say.
    pub journal: Option<u128>,
    /// Segments whose header cannot be read, with the index of their damage.
    pub unreadable: Vec<(PathBuf, usize)>,
    /// Names of segments that were removed, and came back.
    pub returned: Vec<u64>,
}

struct Found {
    header: SegmentHeader,
    len: u64,
    file: Arc<dyn FsFile>,
    path: PathBuf,
}

/// A segment whose header cannot be read, and what is lost with it.
type Unreadable = (PathBuf, Damage);

/// What a caller wants to know of an owner without reading it again: made of the kind and head of
/// the record that begins it, while that passes by.
pub type Label = dyn Fn(u8, &[u8]) -> u32 + Send + Sync;

/// What the frames read so far add up to.
struct State<'a> {
    label: &'a Label,
    owners: Owners,
    /// Also of owners whose begin has not been met: a copy of it lies further on.
    notes: Notes,
    tail: VecDeque<TailFrame>,
    mark: Mark,
    highest: Location,
    records: u64,
    clean: bool,
}

impl State<'_> {
    fn apply(&mut self, header: &Header, body: &[u8], place: Place) {
        self.highest = self.highest.max(header.location);
        self.mark = self.mark.max(header.mark);
        while let Some(frame) = self.tail.front()
            && before(frame.place, self.mark)
        {
            self.tail.pop_front();
        }
        self.clean = header.what == What::Mark && header.kind == KIND_CLEAN;
        let What::Effect(effect) = header.what else {
            return;
        };
        self.records += 1;
        self.tail.push_back(TailFrame {
            header: *header,
            place,
        });
        match effect {
            Effect::Begin => {
                if self.owners.replace(header.location, place).is_none() {
                    let head = &body[..header.head_len as usize];
                    let owner = Owner {
                        label: (self.label)(header.kind, head),
                        ..Owner::new(header, place)
                    };
                    self.owners.insert(header.location, &owner);
                }
            }
            Effect::Note { owner, slot } => {
                let note = NotePlace {
                    slot,
                    location: header.location,
                    place,
                };
                put_note(self.notes.entry(owner).or_default(), note);
            }
            Effect::End { owner } => {
                self.owners.remove(owner);
                self.notes.remove(&owner);
            }
        }
    }
}

fn before(place: Place, mark: Mark) -> bool {
    Mark {
        segment: u64::from(place.segment),
        offset: place.offset,
    } < mark
}

/// Segment numbers in a directory.
pub(super) fn list(fs: &dyn Fs, layout: &Layout) -> Result<Vec<u64>, JournalError> {
    let names = match fs.read_dir(&layout.segments) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(JournalError::io("listing", &layout.segments, error)),
    };
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What lies under the names of segments.
#[derive(Default)]
struct Files {
    found: Vec<Found>,
    unreadable: Vec<Unreadable>,
    /// Names whose files have become other segments, with the header found there.
    stale: Vec<(u64, SegmentHeader)>,
}

fn open_all(fs: &dyn Fs, layout: &Layout, numbers: &[u64]) -> Result<Files, JournalError> {
    let mut files = Files::default();
    for &number in numbers {
        let path = layout.segment(number);
        let file: Arc<dyn FsFile> = match fs.open(&path, OpenMode::Read) {
            Ok(file) => file.into(),
            // Reclaimed while an inspection looks on.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(JournalError::io("opening", path, error)),
        };
        match read_header(&*file, &path, number)? {
            Named::Segment(header, len) => files.found.push(Found {
                header,
                len,
                file,
                path,
            }),
            Named::Another(header) => files.stale.push((number, header)),
            Named::Unreadable => {
                let len = file
                    .stat()
                    .map_err(|error| JournalError::io("stat of", &path, error))?
                    .len;
                let damage = Damage {
                    segment: number,
                    offset: 0,
                    len,
                    missing: Vec::new(),
                    what: "the segment's header cannot be read, so none of its frames can".into(),
                    kept: None,
                };
                files.unreadable.push((path, damage));
            }
        }
    }
    Ok(files)
}

/// Where the first frames say that segments end, and the highest mark among them.
struct Ends {
    stated: HashMap<u64, SegmentEnd>,
    mark: Mark,
    oldest: u64,
}

fn read_ends(found: &[Found]) -> Result<Ends, JournalError> {
    let mut ends = Ends {
        stated: HashMap::new(),
        mark: Mark::default(),
        oldest: 0,
    };
    // Newest first: a condition holds also where a later frame says that it was durable.
    for segment in found.iter().rev() {
        let failed = |error| JournalError::io("reading", &segment.path, error);
        let limit = segment.header.limit().min(segment.len);
        let mut reader = Reader::new(&*segment.file, segment.header.id, limit);
        let (header, start) = match reader.at(SEGMENT_HEADER_BYTES).map_err(failed)? {
            At::Frame(header, body) if header.what == What::Mark && header.kind == KIND_START => {
                let Some(start) = Start::decode(body) else {
                    continue;
                };
                (header, start)
            }
            At::Frame(header, _) => {
                ends.mark = ends.mark.max(header.mark);
                continue;
            }
            // The frame that would say is gone: any other that counts will do for the mark.
            At::BadBody(_) | At::Nothing => {
                let mark = reader.highest_mark(SEGMENT_HEADER_BYTES).map_err(failed)?;
                ends.mark = ends.mark.max(mark);
                continue;
            }
        };
        ends.oldest = ends.oldest.max(start.oldest);
        if start.condition > 0 {
            let copied = Mark {
                segment: segment.header.number,
                offset: start.condition,
            };
            let mut holds = ends.mark >= copied || intact(&mut reader, &start).map_err(failed)?;
            if !holds {
                ends.mark = ends
                    .mark
                    .max(reader.highest_mark(SEGMENT_HEADER_BYTES).map_err(failed)?);
                holds = ends.mark >= copied;
            }
            ends.mark = ends.mark.max(header.mark);
            if !holds {
                // An open that was cut short: nothing in it was acknowledged, and what it copied
                // is where it was. Some of its copies alone would bring back what has ended.
                let end = SegmentEnd {
                    segment: segment.header.number,
                    offset: (SEGMENT_HEADER_BYTES + header.frame_len()) as u32,
                    poisoned: true,
                };
                ends.stated.entry(end.segment).or_insert(end);
                continue;
            }
            for earlier in found {
                let number = earlier.header.number;
                let offset = if number == header.mark.segment {
                    header.mark.offset
                } else if number > header.mark.segment && number < segment.header.number {
                    SEGMENT_HEADER_BYTES as u32
                } else {
                    continue;
                };
                let poisoned = !start.after_clean;
                let end = SegmentEnd {
                    segment: number,
                    offset,
                    poisoned,
                };
                ends.stated.entry(number).or_insert(end);
            }
        }
        ends.mark = ends.mark.max(header.mark);
        for end in &start.ends {
            ends.stated.entry(end.segment).or_insert(*end);
        }
    }
    Ok(ends)
}

/// Whether all frames up to a start's condition are here.
fn intact(reader: &mut Reader<'_>, start: &Start) -> std::io::Result<bool> {
    let mut offset = SEGMENT_HEADER_BYTES;
    while offset < u64::from(start.condition) {
        let At::Frame(header, _) = reader.at(offset)? else {
            return Ok(false);
        };
        offset += header.frame_len();
    }
    Ok(true)
}

/// What a gap is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// Never acknowledged: the segment ends here.
    Cut,
    /// Acknowledged, and unreadable up to there; nothing is known behind it.
    DamageToEnd(u64),
    /// Acknowledged, and unreadable up to there, where frames go on.
    DamageTo(u64),
    /// The segment's own end, as far as anyone can tell.
    End,
}

/// Classifies bytes at `here` that are not a frame. `mark`: the highest of any frame that counts;
/// `next`: the next frame in this segment; `stated`: where a later segment says that this one
/// ends.
pub(super) fn classify(here: Mark, mark: Mark, next: Option<u64>, stated: Option<u64>) -> Gap {
    if mark <= here {
        return Gap::Cut;
    }
    match (next, stated) {
        (Some(next), _) => Gap::DamageTo(next),
        (None, Some(end)) if end > u64::from(here.offset) => Gap::DamageToEnd(end),
        (None, None) if mark.segment == here.segment => Gap::DamageToEnd(u64::from(mark.offset)),
        (None, _) => Gap::End,
    }
}

fn scan_segment(
    segment: &Found,
    ends: &Ends,
    state: &mut State<'_>,
    damage: &mut Vec<Damage>,
) -> Result<Segment, JournalError> {
    let failed = |error| JournalError::io("reading", &segment.path, error);
    let number = segment.header.number;
    let small = u32::try_from(number).map_err(|_| JournalError::Corrupt {
        path: segment.path.clone(),
        text: format!("segment number {number} is out of range"),
    })?;
    let stated = ends.stated.get(&number).map(|end| u64::from(end.offset));
    let readable = segment.header.limit().min(segment.len);
    let limit = stated.map_or(readable, |end| end.min(readable));
    let mut reader = Reader::new(&*segment.file, segment.header.id, limit);
    let mut offset = SEGMENT_HEADER_BYTES;
    let mut rest: Option<Mark> = None;
    let mut records = 0;
    loop {
        let mut missing = Vec::new();
        if stated.map_or(offset >= limit, |end| offset >= end) {
            break;
        }
        match reader.at(offset).map_err(failed)? {
            At::Frame(header, body) => {
                let len = header.frame_len();
                // Bounded by the segment's length, which is checked to fit.
                let place = Place {
                    segment: small,
                    offset: offset as u32,
                    len: len as u32,
                };
                state.apply(&header, body, place);
                if header.what != What::Mark {
                    records += len;
                }
                offset += len;
                continue;
            }
            At::BadBody(header) => {
                if matches!(header.what, What::Effect(_)) {
                    missing.push(header.location);
                }
            }
            At::Nothing => {}
        }
        let behind = match rest {
            Some(mark) => mark,
            None => {
                let mark = reader.highest_mark(offset + 8).map_err(failed)?;
                *rest.insert(mark)
            }
        };
        let next = reader.next_valid(offset + 8).map_err(failed)?;
        let here = Mark {
            segment: number,
            offset: offset as u32,
        };
        let mark = behind.max(ends.mark).max(state.mark);
        let (to, go_on) = match classify(here, mark, next, stated) {
            Gap::Cut | Gap::End => break,
            Gap::DamageTo(to) => (to, true),
            Gap::DamageToEnd(to) => (to, false),
        };
        let what = if missing.is_empty() {
            "no frame can be read"
        } else {
            "a frame's bytes differ"
        };
        damage.push(Damage {
            segment: number,
            offset,
            len: to - offset,
            missing,
            what: what.into(),
            kept: None,
        });
        offset = to;
        if !go_on {
            break;
        }
    }
    Ok(Segment {
        number,
        bytes: segment.header.bytes,
        id: segment.header.id,
        file: Arc::clone(&segment.file),
        end: offset,
        records,
        live: 0,
        poisoned: ends.stated.get(&number).is_some_and(|end| end.poisoned),
    })
}

/// Reads the log. Changes nothing.
pub(super) fn scan(fs: &dyn Fs, layout: &Layout, label: &Label) -> Result<Scan, JournalError> {
    let numbers = list(fs, layout)?;
    let Files {
        mut found,
        unreadable: mut bad,
        stale,
    } = open_all(fs, layout, &numbers)?;
    let newest = found.last().map(|segment| &segment.header);
    let journal = newest.or_else(|| stale.last().map(|(_, header)| header));
    let journal = journal.map(|header| header.journal);
    let mut all = found
        .iter()
        .map(|segment| (segment.header.number, segment.header.journal));
    let mut others = stale.iter().map(|(name, header)| (*name, header.journal));
    let foreign = |(_, of): &(u64, u128)| Some(*of) != journal;
    if let Some((name, _)) = all.find(foreign).or_else(|| others.find(foreign)) {
        return Err(JournalError::Corrupt {
            path: layout.segment(name),
            text: "the segment belongs to another journal".into(),
        });
    }
    let ends = read_ends(&found)?;
    found.retain(|segment| segment.header.number >= ends.oldest);
    bad.retain(|(_, damage)| damage.segment >= ends.oldest);
    let stale = |number: &u64| stale.iter().any(|(name, _)| name == number);
    let returned = numbers
        .iter()
        .copied()
        .filter(|number| *number < ends.oldest || stale(number))
        .collect();
    let mut state = State {
        label,
        owners: Owners::default(),
        notes: Notes::default(),
        tail: VecDeque::new(),
        mark: Mark::default(),
        highest: 0,
        records: 0,
        clean: false,
    };
    let mut damage = Vec::new();
    let mut segments = BTreeMap::new();
    let mut with_records = HashSet::new();
    let files: Vec<_> = found
        .iter()
        .map(|segment| (&*segment.file, segment.len))
        .collect();
    ahead::while_reading(&files, |reads| {
        for (at, segment) in found.iter().enumerate() {
            reads.has_come_to(at);
            let records = state.records;
            let scanned = scan_segment(segment, &ends, &mut state, &mut damage)?;
            if state.records > records {
                with_records.insert(scanned.number);
            }
            segments.insert(scanned.number, scanned);
        }
        Ok::<_, JournalError>(())
    })?;
    let mark = state.mark.max(ends.mark);
    let mut unreadable = Vec::new();
    for (path, lost) in bad {
        unreadable.push((path, damage.len()));
        damage.push(lost);
    }

    let before_mark = segments
        .range(..mark.segment)
        .next_back()
        .and_then(|(number, _)| ends.stated.get(number).copied());
    let mark_only = !with_records.contains(&mark.segment);
    let next_number = numbers
        .last()
        .map_or(1, |last| last + 1)
        .max(mark.segment + 1);
    let next_location = state.highest
        + if state.clean || (state.highest == 0 && numbers.is_empty()) {
            1
        } else {
            UNSEEN_LOCATIONS
        };
    let orphan_notes = orphans(&mut state, &mut damage);
    let tail = dedupe(std::mem::take(&mut state.tail));
    let recovered = Recovered {
        owners: Vec::new(),
        damage,
        clean: state.clean,
        next_location,
        records: state.records,
        moved: false,
        orphan_notes,
    };
    let index = Index::new(state.owners, state.notes, segments);
    Ok(Scan {
        index,
        recovered,
        tail,
        mark,
        before_mark,
        mark_only,
        next_number,
        journal,
        unreadable,
        returned,
    })
}

/// Notes whose owner is missing go, and name what the damage took.
fn orphans(state: &mut State<'_>, damage: &mut [Damage]) -> u64 {
    let mut lost: Vec<Location> = Vec::new();
    let mut count = 0;
    let owners = &state.owners;
    state.notes.retain(|owner, notes| {
        let known = owners.contains(*owner);
        if !known {
            lost.push(*owner);
            count += notes.len() as u64;
        }
        known
    });
    let Some(first) = damage.first_mut() else {
        return 0;
    };
    lost.sort_unstable();
    for location in lost {
        if !first.missing.contains(&location) {
            first.missing.push(location);
        }
    }
    count
}

/// Of a record that lies in the tail twice (an open that did not get through had copied it), the
/// later copy.
fn dedupe(tail: VecDeque<TailFrame>) -> Vec<TailFrame> {
    let mut last = HashMap::new();
    for (at, frame) in tail.iter().enumerate() {
        last.insert(frame.header.location, at);
    }
    tail.into_iter()
        .enumerate()
        .filter(|(at, frame)| last.get(&frame.header.location) == Some(at))
        .map(|(_, frame)| frame)
        .collect()
}

/// Reads the raw bytes of a damaged place, as far as the file has them.
pub(super) fn raw(
    file: &dyn FsFile,
    damage: &Damage,
    path: &Path,
) -> Result<Vec<u8>, JournalError> {
    let failed = |error| JournalError::io("reading", path, error);
    let len = file.stat().map_err(failed)?.len;
    let take = damage.len.min(len.saturating_sub(damage.offset));
    let mut bytes = vec![0; take as usize];
    file.read_exact_at(&mut bytes, damage.offset)
        .map_err(failed)?;
    Ok(bytes)
}
