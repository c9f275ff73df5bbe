//! Which owners are live, and where their records lie.
//!
//! Owns: a few words for every live owner, and the table of segments with how much of each is
//! live. Does not own: heads and payloads; they stay on disk.
//!
//! Invariants:
//!
//! 1. A segment's live bytes are the sum of the frames that the index points to in it.
//! 2. Of two notes for one slot the one with the higher location is live, in whatever order they
//!    are met: a copy of the older one may lie behind the newer one.
//! 3. What the index says is durable: it is changed after the fdatasync that covers the record.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::frame::{Header, PayloadAt, What};
use super::fs::FsFile;
use super::record::{Effect, Location};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u32,
    pub offset: u32,
    /// Bytes of the frame, padding included.
    pub len: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct NotePlace {
    pub slot: u8,
    pub location: Location,
    pub place: Place,
}

/// One live owner.
#[derive(Debug)]
pub(super) struct Owner {
    pub begin: Place,
    pub head_len: u32,
    pub payload: PayloadAt,
    /// Boxed: most owners have none, and there are a million of them.
    #[allow(clippy::box_collection)]
    notes: Option<Box<Vec<NotePlace>>>,
}

impl Owner {
    pub(super) fn new(begin: Place, head_len: u32, payload: PayloadAt) -> Self {
        Self {
            begin,
            head_len,
            payload,
            notes: None,
        }
    }

    /// Whether its bytes live in a file of their own.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.payload, PayloadAt::File(_))
    }

    pub(super) fn notes(&self) -> &[NotePlace] {
        self.notes.as_deref().map_or(&[], Vec::as_slice)
    }
}

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    pub id: u128,
    pub file: Arc<dyn FsFile>,
    /// Where its frames end.
    pub end: u64,
    /// Bytes of records, dead ones included. (The journal's own frames are not: no copying
    /// would get rid of them.)
    pub records: u64,
    /// Bytes of live records.
    pub live: u64,
    /// A write or an fdatasync of it failed: it is never asked again.
    pub poisoned: bool,
}

/// Live owners and segments.
#[derive(Debug, Default)]
pub(super) struct Index {
    owners: HashMap<Location, Owner>,
    pub segments: BTreeMap<u64, Segment>,
    live: u64,
}

impl Index {
    pub(super) fn len(&self) -> u64 {
        self.owners.len() as u64
    }

    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Bytes of callers' records in all segments, dead ones included.
    pub(super) fn used(&self) -> u64 {
        self.segments.values().map(|segment| segment.records).sum()
    }

    pub(super) fn owner(&self, location: Location) -> Option<&Owner> {
        self.owners.get(&location)
    }

    pub(super) fn oldest(&self) -> Option<&Segment> {
        self.segments.first_key_value().map(|(_, segment)| segment)
    }

    fn add(&mut self, place: Place) {
        self.live += u64::from(place.len);
        if let Some(segment) = self.segments.get_mut(&u64::from(place.segment)) {
            segment.live += u64::from(place.len);
        }
    }

    fn remove(&mut self, place: Place) {
        self.live = self.live.saturating_sub(u64::from(place.len));
        if let Some(segment) = self.segments.get_mut(&u64::from(place.segment)) {
            segment.live = segment.live.saturating_sub(u64::from(place.len));
        }
    }

    /// Puts an owner in, with its notes: from recovery.
    pub(super) fn insert(&mut self, location: Location, owner: Owner, notes: Vec<NotePlace>) {
        self.add(owner.begin);
        for note in &notes {
            self.add(note.place);
        }
        let notes = (!notes.is_empty()).then(|| Box::new(notes));
        if let Some(old) = self.owners.insert(location, Owner { notes, ..owner }) {
            self.remove(old.begin);
            let places: Vec<Place> = old.notes().iter().map(|note| note.place).collect();
            for place in places {
                self.remove(place);
            }
        }
    }

    /// Whether the frame at `place` is what the index points to.
    pub(super) fn is_live(&self, header: &Header, place: Place) -> bool {
        let Some(owner) = self.owners.get(&header.owner()) else {
            return false;
        };
        match header.what {
            What::Effect(Effect::Begin) => owner.begin == place,
            What::Effect(Effect::Note { .. }) => owner.notes().iter().any(|n| n.place == place),
            What::Effect(Effect::End { .. }) | What::Mark => false,
        }
    }

    /// A record is durable at `place`. Returns the owner whose payload file has nobody to name it
    /// any more, and the file's length.
    pub(super) fn apply(&mut self, header: &Header, place: Place) -> Option<(Location, u64)> {
        match header.what {
            What::Mark => None,
            What::Effect(Effect::Begin) => {
                if let Some(owner) = self.owners.get_mut(&header.location) {
                    // A copy, or the same record again after a failed fdatasync.
                    let old = std::mem::replace(&mut owner.begin, place);
                    self.remove(old);
                } else {
                    let owner = Owner::new(place, header.head_len, header.payload);
                    self.owners.insert(header.location, owner);
                }
                self.add(place);
                None
            }
            What::Effect(Effect::Note { owner, slot }) => {
                let entry = self.owners.get_mut(&owner)?;
                let notes = entry.notes.get_or_insert_default();
                let new = NotePlace {
                    slot,
                    location: header.location,
                    place,
                };
                let old = match notes.iter_mut().find(|note| note.slot == slot) {
                    Some(note) if note.location > header.location => return None,
                    Some(note) => Some(std::mem::replace(note, new).place),
                    None => {
                        notes.push(new);
                        None
                    }
                };
                if let Some(old) = old {
                    self.remove(old);
                }
                self.add(place);
                None
            }
            What::Effect(Effect::End { owner }) => {
                let old = self.owners.remove(&owner)?;
                self.remove(old.begin);
                for note in old.notes() {
                    self.remove(note.place);
                }
                match old.payload {
                    PayloadAt::File(len) => Some((owner, len)),
                    PayloadAt::None | PayloadAt::Inline(_) => None,
                }
            }
        }
    }

    /// Forgets everything and closes the files.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
