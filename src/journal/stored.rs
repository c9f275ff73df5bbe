//! Owners as they lie on the disk: reading one's head and notes back.
//!
//! Owns: that what is read is the record that was asked for, whole. Does not own: where it lies
//! (`index.rs`); a place that is read while its segment is being emptied is still good, for the
//! file is unlinked at most (`reclaim.rs`).

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::error::JournalError;
use super::frame::{Header, What};
use super::fs::FsFile;
use super::index::{Index, Place};
use super::owners::Owner;
use super::record::{Effect, Location};
use super::recovery::{RecoveredNote, RecoveredOwner};
use super::segment::{At, Layout, Reader};

/// A live owner, without what is in its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerEntry {
    /// Its durable id.
    pub location: Location,
    /// Kind of the record that began it.
    pub kind: u8,
    /// Length of that record's head in bytes.
    pub head_len: u32,
    /// Length of its payload in bytes, if it has one.
    pub payload: Option<u64>,
    /// Whether there are notes on it.
    pub notes: bool,
    /// What the label said of it at open.
    pub label: u32,
}

/// Where a frame is.
struct Frame {
    file: Arc<dyn FsFile>,
    id: u128,
    path: PathBuf,
    place: Place,
}

/// Where a live owner's records are.
pub(super) struct Stored {
    location: Location,
    owner: Owner,
    begin: Frame,
    notes: Vec<(u8, Location, Frame)>,
}

impl Index {
    /// Up to `most` live owners from `from` on, in order.
    pub(super) fn entries(&self, from: Location, most: usize) -> Vec<OwnerEntry> {
        let owners = self.owners_from(from).take(most);
        owners
            .map(|(location, owner)| OwnerEntry {
                location,
                kind: owner.kind,
                head_len: owner.head_len,
                payload: owner.payload.len(),
                notes: !self.notes(location).is_empty(),
                label: owner.label,
            })
            .collect()
    }

    /// Where the records of a live owner are.
    pub(super) fn stored(&self, layout: &Layout, location: Location) -> Option<Stored> {
        let frame = |place: Place| {
            let number = u64::from(place.segment);
            let segment = self.segments.get(&number)?;
            Some(Frame {
                file: Arc::clone(&segment.file),
                id: segment.id,
                path: layout.segment(number),
                place,
            })
        };
        let owner = self.owner(location)?;
        let notes = self.notes(location).iter();
        let mut notes = notes
            .map(|note| Some((note.slot, note.location, frame(note.place)?)))
            .collect::<Option<Vec<_>>>()?;
        notes.sort_unstable_by_key(|(slot, ..)| *slot);
        Some(Stored {
            location,
            owner,
            begin: frame(owner.begin)?,
            notes,
        })
    }

    /// Reads all live owners: for who wants them all at once.
    pub(super) fn read_all(&self, layout: &Layout) -> Result<Vec<RecoveredOwner>, JournalError> {
        let owners = self.owners_from(0);
        let stored = owners.filter_map(|(location, _)| self.stored(layout, location));
        stored.map(|stored| stored.read()).collect()
    }
}

impl Stored {
    /// Reads it. Blocks on the disk.
    pub(super) fn read(&self) -> Result<RecoveredOwner, JournalError> {
        let is_begin = |header: &Header| {
            header.what == What::Effect(Effect::Begin) && header.location == self.location
        };
        let begin = self.begin.read(is_begin)?;
        let notes = self.notes.iter().map(|(slot, location, frame)| {
            let what = What::Effect(Effect::Note {
                owner: self.location,
                slot: *slot,
            });
            let read = frame.read(|h| h.what == what && h.location == *location)?;
            Ok(RecoveredNote {
                slot: *slot,
                kind: read.kind,
                location: *location,
                head: read.head,
            })
        });
        Ok(RecoveredOwner {
            location: self.location,
            kind: begin.kind,
            head: begin.head,
            payload: self.owner.payload.len(),
            notes: notes.collect::<Result<_, JournalError>>()?,
        })
    }
}

struct Read {
    kind: u8,
    head: Bytes,
}

impl Frame {
    fn read(&self, is_it: impl Fn(&Header) -> bool) -> Result<Read, JournalError> {
        let from = u64::from(self.place.offset);
        let mut reader = Reader::new(&*self.file, self.id, from + u64::from(self.place.len));
        match reader.at(from) {
            Ok(At::Frame(header, body)) if is_it(&header) => Ok(Read {
                kind: header.kind,
                head: Bytes::copy_from_slice(&body[..header.head_len as usize]),
            }),
            Ok(_) => Err(JournalError::Corrupt {
                path: self.path.clone(),
                text: format!("the record at {from} is not what it was when it was written"),
            }),
            Err(error) => Err(JournalError::io("reading", &self.path, error)),
        }
    }
}
