//! Seeding a directory with files that are in S3: what a restore leaves for the next open.
//!
//! Owns: the records and the header snapshot that make a file, all of whose parts have images and
//! none of which is here. Does not own: where its bytes come from, or when that is done.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::journal::fs::{Fs, OpenMode, if_there};
use crate::journal::{Append, Journal, Location, Payload};

use super::file::{Made, PartFile};
use super::header::Address;
use super::id::FileId;
use super::record::{EpochRecord, FileRecord, LengthNote, SnapshotNote, encode, kind, slot};
use super::snapshot::{header_path, write_durably};
use super::state::Status;

/// A file as it is to be found.
#[derive(Debug)]
pub(crate) struct Seed {
    pub id: FileId,
    pub token: u64,
    pub part_bytes: u32,
    pub len: u64,
    pub entries: Vec<(u32, Address)>,
}

/// Makes a file; its local file is there, or is made. Blocks on the disk. Where its records are
/// durable, it is what the next open finds; the location of the last of them.
pub(crate) fn seed_file(
    journal: &Journal,
    fs: &Arc<dyn Fs>,
    dir: &Path,
    epochs: &[(u32, u64)],
    seed: Seed,
) -> Result<Location> {
    let failed = |path: &Path, error: &std::io::Error| Error::directory(path, error);
    let path = super::part_path(dir, seed.id, seed.token);
    let found = if_there(fs.open(&path, OpenMode::ReadWrite)).map_err(|e| failed(&path, &e))?;
    let disk = match found {
        Some(disk) => disk,
        None => fs
            .open(&path, OpenMode::CreateNew)
            .map_err(|e| failed(&path, &e))?,
    };
    let record = FileRecord {
        id: seed.id.0,
        part_bytes: seed.part_bytes,
        token: seed.token,
    };
    let incarnation = journal.append(Append::begin(kind::FILE, encode(&record), Payload::None))?;
    let file = PartFile::new(Made {
        no: 0,
        token: seed.token,
        id: seed.id,
        incarnation,
        part_bytes: seed.part_bytes,
        path,
        disk,
    });
    file.set_len(seed.len);
    for (index, address) in seed.entries {
        let entry = file.header.entry(index);
        entry.set_address(Some(address));
        entry.word.set(|word| word.with_status(Status::NotLoaded));
    }
    let bytes = {
        let mut log = file.log.lock();
        log.len_logged = seed.len;
        file.image(&log, epochs.to_vec())
    };
    let header = header_path(dir, incarnation, 1);
    write_durably(&**fs, &header, &bytes).map_err(|e| failed(&header, &e))?;
    let length = encode(&LengthNote { len: seed.len });
    journal.append(Append::note(kind::NOTE, incarnation, slot::LENGTH, length))?;
    let snapshot = encode(&SnapshotNote { number: 1, upto: 0 });
    Ok(journal.append(Append::note(
        kind::NOTE,
        incarnation,
        slot::SNAPSHOT,
        snapshot,
    ))?)
}

/// Puts the names of epochs on record.
pub(crate) fn seed_epochs(journal: &Journal, epochs: &[(u32, u64)]) -> Result<()> {
    for (number, name) in epochs {
        let record = EpochRecord {
            number: *number,
            name: *name,
        };
        journal.append(Append::begin(kind::EPOCH, encode(&record), Payload::None))?;
    }
    Ok(())
}
