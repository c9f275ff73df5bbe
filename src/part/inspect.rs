//! What the records of a journal say of files in parts, without recovering them.
//!
//! Owns: the shape of what is found, and reading it. Does not own: what recovery does with the same
//! records (`open.rs`, `replay.rs`): this says how much there is of it, and touches no local file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::journal::fs::{Fs, if_there};
use crate::journal::{Location, Recovered, RecoveredOwner};

use super::id::FileId;
use super::part_path;
use super::record::{
    Change, FileRecord, HeaderRecord, LengthNote, SnapshotNote, decode, kind, slot,
};
use super::snapshot::{Snapshot, header_path, read_head};

/// A file of a part store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedFile {
    /// Which.
    pub file: FileId,
    /// Bytes of each of its parts.
    pub part_bytes: u32,
    /// Its length in bytes, as far as it is on record.
    pub len: u64,
    /// Parts with an open intent: written here, and not in S3 as they are, or about to be written.
    pub dirty_parts: u64,
    /// Of those, parts of which the next open goes by the local bytes; of the others it goes by
    /// their images in S3.
    pub trusted_parts: u64,
    /// Header records that the next open replays.
    pub header_records: u64,
    /// Changes in them.
    pub header_changes: u64,
    /// An fsync of its local file failed: the next open takes a copy of what it reads as.
    pub fsync_failed: bool,
    /// Where its local bytes are.
    pub local: PathBuf,
    /// Length of that file, holes included; `None` where it is gone.
    pub local_len: Option<u64>,
    /// What of it could not be read, if anything.
    pub problem: Option<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub files: Vec<InspectedFile>,
    /// Files that were dropped, and that a checkpoint may still have.
    pub dropped: u64,
    /// Records that cannot be read: location and kind.
    pub unreadable: Vec<(Location, u8)>,
}

/// Reads the records of the part store.
pub(crate) fn inspect(fs: &dyn Fs, dir: &Path, recovered: &Recovered) -> Inspected {
    let mut found = Inspected::default();
    let mut headers: BTreeMap<u64, Vec<(Location, HeaderRecord)>> = BTreeMap::new();
    for owner in &recovered.owners {
        match owner.kind {
            kind::HEADER => match decode::<HeaderRecord>(&owner.head) {
                Some(record) => headers
                    .entry(record.file)
                    .or_default()
                    .push((owner.location, record)),
                None => found.unreadable.push((owner.location, owner.kind)),
            },
            kind::DROPPED => found.dropped += 1,
            _ => {}
        }
    }
    for owner in &recovered.owners {
        if owner.kind != kind::FILE {
            continue;
        }
        let Some(record) = decode::<FileRecord>(&owner.head) else {
            found.unreadable.push((owner.location, owner.kind));
            continue;
        };
        let records = headers.remove(&owner.location).unwrap_or_default();
        found.files.push(file(fs, dir, owner, record, &records));
    }
    found
}

fn note(owner: &RecoveredOwner, slot: u8) -> Option<(Location, &[u8])> {
    let note = owner.notes.iter().find(|note| note.slot == slot)?;
    (!note.head.is_empty()).then_some((note.location, &note.head[..]))
}

fn file(
    fs: &dyn Fs,
    dir: &Path,
    owner: &RecoveredOwner,
    record: FileRecord,
    records: &[(Location, HeaderRecord)],
) -> InspectedFile {
    let id = FileId(record.id);
    let local = part_path(dir, id, record.token);
    let mut problem = None;
    let local_len = if_there(fs.stat(&local)).unwrap_or_else(|error| {
        problem = Some(format!("its local file: {error}"));
        None
    });
    let start = snapshot(fs, dir, owner).unwrap_or_else(|error| {
        problem = Some(error.to_string());
        None
    });
    let (mut len, upto, mut intents) = start.map_or_else(Default::default, |start| {
        let intents: BTreeMap<u32, bool> = start.intents.into_iter().collect();
        (start.len, start.upto, intents)
    });
    // A length that was put on record before a cut is not what counts after it.
    let mut noted = note(owner, slot::LENGTH)
        .and_then(|(at, head)| Some((at, decode::<LengthNote>(head)?.len)))
        .filter(|(at, _)| *at > upto);
    let (mut replayed, mut changes) = (0, 0);
    let part_bytes = u64::from(record.part_bytes);
    for (location, record) in records.iter().filter(|(location, _)| *location > upto) {
        replayed += 1;
        if let Some((_, longer)) = noted.take_if(|(at, _)| *at < *location) {
            len = len.max(longer);
        }
        for change in &record.changes {
            changes += 1;
            match *change {
                Change::Intent { index, trusted } => {
                    intents.insert(index, trusted);
                }
                Change::Trusted { index } => {
                    if let Some(trusted) = intents.get_mut(&index) {
                        *trusted = true;
                    }
                }
                Change::Entry { index, ends, .. } if ends => {
                    intents.remove(&index);
                }
                Change::IntentEnded { index } => {
                    intents.remove(&index);
                }
                Change::Cut { len: shorter } => {
                    len = shorter;
                    behind(&mut intents, len, part_bytes);
                }
                Change::Entry { .. } | Change::CutDone => {}
            }
        }
    }
    if let Some((_, longer)) = noted {
        len = len.max(longer);
    }
    behind(&mut intents, len, part_bytes);
    InspectedFile {
        file: id,
        part_bytes: record.part_bytes,
        len,
        dirty_parts: intents.len() as u64,
        trusted_parts: intents.values().filter(|trusted| **trusted).count() as u64,
        header_records: replayed,
        header_changes: changes,
        fsync_failed: note(owner, slot::FAILED).is_some(),
        local,
        local_len: local_len.map(|stat| stat.len),
        problem,
    }
}

/// Takes the parts away that begin behind the end.
fn behind(intents: &mut BTreeMap<u32, bool>, len: u64, part_bytes: u64) {
    let first = u32::try_from(len.div_ceil(part_bytes.max(1))).unwrap_or(u32::MAX);
    intents.split_off(&first);
}

fn snapshot(fs: &dyn Fs, dir: &Path, owner: &RecoveredOwner) -> Result<Option<Snapshot>> {
    let noted = note(owner, slot::SNAPSHOT);
    let Some(noted) = noted.and_then(|(_, head)| decode::<SnapshotNote>(head)) else {
        return Ok(None);
    };
    let path = header_path(dir, owner.location, noted.number);
    read_head(fs, &path).map(Some)
}
