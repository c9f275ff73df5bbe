//! Which owners are live, and where their records lie.
//!
//! Owns: where the records of every live owner lie, and the table of segments with how much of
//! each is live. Does not own: how owners are kept by the million (`owners.rs`), or heads and
//! payloads; they stay on disk (`stored.rs` reads them).
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
use super::owners::{Owner, Owners};
use super::record::{Effect, Location};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u32,
    pub offset: u32,
    /// Bytes of the frame, padding included.
    pub len: u32,
}

/// The latest note of one slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct NotePlace {
    pub slot: u8,
    pub location: Location,
    pub place: Place,
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

/// Notes by owner: most owners have none.
pub(super) type Notes = HashMap<Location, Vec<NotePlace>>;

/// Puts a note in its slot, if none there is later. Returns `None` then, and otherwise what was
/// there.
pub(super) fn put_note(notes: &mut Vec<NotePlace>, new: NotePlace) -> Option<Option<Place>> {
    match notes.iter_mut().find(|note| note.slot == new.slot) {
        Some(note) if note.location > new.location => None,
        Some(note) => Some(Some(std::mem::replace(note, new).place)),
        None => {
            notes.push(new);
            Some(None)
        }
    }
}

/// Live owners and segments.
#[derive(Debug, Default)]
pub(super) struct Index {
    owners: Owners,
    /// Of live owners only.
    notes: Notes,
    pub segments: BTreeMap<u64, Segment>,
    live: u64,
}

impl Index {
    /// What a scan found.
    pub(super) fn new(owners: Owners, notes: Notes, segments: BTreeMap<u64, Segment>) -> Self {
        let mut index = Self {
            segments,
            ..Self::default()
        };
        for (_, owner) in owners.range(0) {
            index.add(owner.begin);
        }
        for note in notes.values().flatten() {
            index.add(note.place);
        }
        Self {
            owners,
            notes,
            ..index
        }
    }

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

    pub(super) fn owner(&self, location: Location) -> Option<Owner> {
        self.owners.get(location)
    }

    pub(super) fn notes(&self, owner: Location) -> &[NotePlace] {
        self.notes.get(&owner).map_or(&[], Vec::as_slice)
    }

    /// Live owners from `from` on, in order.
    pub(super) fn owners_from(&self, from: Location) -> impl Iterator<Item = (Location, Owner)> {
        self.owners.range(from)
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

    /// Whether the frame at `place` is what the index points to.
    pub(super) fn is_live(&self, header: &Header, place: Place) -> bool {
        match header.what {
            What::Effect(Effect::Begin) => {
                let owner = self.owners.get(header.location);
                owner.is_some_and(|owner| owner.begin == place)
            }
            What::Effect(Effect::Note { owner, .. }) => {
                self.notes(owner).iter().any(|note| note.place == place)
            }
            What::Effect(Effect::End { .. }) | What::Mark => false,
        }
    }

    /// A record is durable at `place`. Returns the owner whose payload file has nobody to name it
    /// any more, and the file's length.
    pub(super) fn apply(&mut self, header: &Header, place: Place) -> Option<(Location, u64)> {
        match header.what {
            What::Mark => None,
            What::Effect(Effect::Begin) => {
                // Known: a copy, or the same record again after a failed fdatasync.
                match self.owners.replace(header.location, place) {
                    Some(old) => self.remove(old),
                    None => {
                        let owner = Owner::new(header, place);
                        self.owners.insert(header.location, &owner);
                    }
                }
                self.add(place);
                None
            }
            What::Effect(Effect::Note { owner, slot }) => {
                if !self.owners.contains(owner) {
                    return None;
                }
                let new = NotePlace {
                    slot,
                    location: header.location,
                    place,
                };
                if let Some(old) = put_note(self.notes.entry(owner).or_default(), new)? {
                    self.remove(old);
                }
                self.add(place);
                None
            }
            What::Effect(Effect::End { owner }) => {
                let old = self.owners.remove(owner)?;
                self.remove(old.begin);
                for note in self.notes.remove(&owner).unwrap_or_default() {
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
