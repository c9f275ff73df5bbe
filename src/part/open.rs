//! Opening: what is true of every file, by the journal, and what its local bytes are worth.
//!
//! Owns: the order of it. Does not own: records (`replay.rs`), snapshots.
//!
//! 1. The journal decides. A part with an open, trusted intent: its local bytes. Any other: its
//!    entry; local bytes count only if they are the image (looked at when the part is first used),
//!    and where there is no image the part is zeros, here as well.
//! 2. Nothing that a crash left in a local file can be read: what is behind the end, of a part
//!    that is zeros, or in the range of a cut, is punched, and synced, before the store opens.
//! 3. After a failed fsync the file is copied as it reads, the copy synced and put in its place:
//!    then what it reads as is what is on the disk. Where the journal could not be told of one, for
//!    it had failed as well, nobody knows: local bytes that count are written again, and synced.
//! 4. It asks nothing of S3.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::journal::fs::{Fs, OpenMode, if_there};
use crate::journal::{Append, Location, Recovered, RecoveredOwner};

use super::Parts;
use super::file::{Intent, Made, PartFile};
use super::id::FileId;
use super::record::{
    Change, DroppedRecord, EpochRecord, FileRecord, HeaderRecord, LengthNote, SnapshotNote, decode,
    kind, slot,
};
use super::replay::Replayed;
use super::state::Status;

/// Bytes copied at a time.
const COPY: usize = 1024 * 1024;

/// What the journal has for the part store.
#[derive(Debug, Default)]
pub(crate) struct Found<'a> {
    files: Vec<&'a RecoveredOwner>,
    headers: BTreeMap<u64, Vec<(u64, HeaderRecord)>>,
    pub epochs: Vec<(Location, EpochRecord)>,
    dropped: Vec<(Location, DroppedRecord)>,
    /// What the directory stands on: the checkpoint layer's.
    pub stand: Option<&'a RecoveredOwner>,
    /// Some records are lost.
    damaged: bool,
}

impl<'a> Found<'a> {
    pub(crate) fn new(recovered: &'a Recovered) -> Result<Self> {
        let unreadable = |owner: &RecoveredOwner| {
            Error::Damaged(format!(
                "record {} of kind {} cannot be read by this release",
                owner.location, owner.kind
            ))
        };
        let mut found = Self {
            damaged: !recovered.damage.is_empty(),
            ..Self::default()
        };
        for owner in &recovered.owners {
            match owner.kind {
                kind::FILE => found.files.push(owner),
                kind::HEADER => {
                    let record: HeaderRecord =
                        decode(&owner.head).ok_or_else(|| unreadable(owner))?;
                    let of = found.headers.entry(record.file).or_default();
                    of.push((owner.location, record));
                }
                kind::EPOCH => {
                    let epoch = decode(&owner.head).ok_or_else(|| unreadable(owner))?;
                    found.epochs.push((owner.location, epoch));
                }
                kind::DROPPED => {
                    let dropped = decode(&owner.head).ok_or_else(|| unreadable(owner))?;
                    found.dropped.push((owner.location, dropped));
                }
                kind::STAND => found.stand = Some(owner),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Whether a directory has records of a part store.
pub(crate) fn is_part_store(recovered: &Recovered) -> bool {
    recovered
        .owners
        .iter()
        .any(|owner| kind::is_parts(owner.kind))
}

fn note(owner: &RecoveredOwner, slot: u8) -> Option<(u64, &[u8])> {
    let note = owner.notes.iter().find(|note| note.slot == slot)?;
    (!note.head.is_empty()).then_some((note.location, &note.head[..]))
}

impl Parts {
    /// Recovers all files; what is on record up to `listed` is in a checkpoint. Blocks on the disk.
    pub(crate) fn recover(self: &Arc<Self>, found: Found<'_>, listed: Location) -> Result<()> {
        let io = |path: &Path, error: &io::Error| Error::directory(path, error);
        for dir in [self.parts_dir(), self.headers_dir()] {
            self.fs.create_dir_all(&dir).map_err(|e| io(&dir, &e))?;
        }
        self.fs.sync_dir(&self.dir).map_err(|e| io(&self.dir, &e))?;
        let Found {
            files,
            mut headers,
            damaged,
            dropped,
            ..
        } = found;
        let mut named = BTreeSet::new();
        for owner in files {
            let records = headers.remove(&owner.location).unwrap_or_default();
            let (file, last) = self.recover_file(owner, records)?;
            named.extend(file.path.file_name().map(ToOwned::to_owned));
            let snapshot = self.snapshot_path(&file, file.log.lock().snapshot);
            named.extend(snapshot.file_name().map(ToOwned::to_owned));
            self.insert(&file);
            file.set_listed();
            if last > listed {
                self.file_changed(&file);
            }
            for (index, entry) in file.header.used_from(0) {
                let word = entry.word.get();
                if word.differs() || word.is_dirty() {
                    self.part_changed(&file, index);
                }
            }
        }
        for (record, gone) in dropped {
            // A crash may have come before the end of it.
            let is_there = |file: &Arc<PartFile>| file.id.0 == gone.id && file.token == gone.token;
            if self.all_files().iter().any(is_there) {
                self.end_records(&[record]);
            } else {
                self.dropped.lock().insert(record, (gone, 0));
            }
        }
        let mut used = BTreeSet::new();
        for file in self.all_files() {
            let entries = file.header.used_from(0);
            used.extend(entries.filter_map(|(_, entry)| Some(entry.address()?.epoch)));
        }
        self.end_records(&self.epochs.forget_unused(&used));
        // Of files that were dropped.
        for (_, records) in headers.into_iter().filter(|_| !damaged) {
            let locations: Vec<u64> = records.iter().map(|(location, _)| *location).collect();
            self.end_records(&locations);
        }
        for dir in [self.parts_dir(), self.headers_dir()] {
            for name in self.fs.read_dir(&dir).map_err(|e| io(&dir, &e))? {
                if named.contains(&name) {
                    continue;
                }
                let path = dir.join(&name);
                if damaged {
                    // What named it may be what is damaged.
                    let aside = self.dir.join("damage");
                    self.fs.create_dir_all(&aside).map_err(|e| io(&aside, &e))?;
                    let to = aside.join(name);
                    tracing::error!(path = %to.display(), "no record names it: kept aside");
                    self.fs.rename(&path, &to).map_err(|e| io(&path, &e))?;
                } else {
                    self.fs.unlink(&path).map_err(|e| io(&path, &e))?;
                }
            }
            // What an open before this one renamed, too, and could not say was on the disk.
            self.fs.sync_dir(&dir).map_err(|e| io(&dir, &e))?;
        }
        Ok(())
    }

    fn recover_file(
        self: &Arc<Self>,
        owner: &RecoveredOwner,
        mut records: Vec<(u64, HeaderRecord)>,
    ) -> Result<(Arc<PartFile>, Location)> {
        let Some(record) = decode::<FileRecord>(&owner.head) else {
            let text = format!("record {} of a file cannot be read", owner.location);
            return Err(Error::Damaged(text));
        };
        let id = FileId(record.id);
        if let Err(Error::InvalidInput { what, value, limit }) =
            self.check_part_bytes(record.part_bytes)
        {
            let value = format!("{value}, of file {id}");
            return Err(Error::InvalidInput { what, value, limit });
        }
        let path = self.path_of(id, record.token);
        let failed = note(owner, slot::FAILED).is_some();
        let disk = self.open_disk(&path, failed);
        let disk = disk.map_err(|error| Error::directory(&path, &error))?;
        let file = Arc::new(PartFile::new(Made {
            no: self.next_no(),
            token: record.token,
            id,
            incarnation: owner.location,
            part_bytes: record.part_bytes,
            path,
            disk,
        }));
        let mut replayed = Replayed::default();
        let mut upto = 0;
        if let Some((_, head)) = note(owner, slot::SNAPSHOT) {
            let Some(note) = decode::<SnapshotNote>(head) else {
                return Err(Error::Damaged(format!("file {id}: which snapshot counts")));
            };
            let path = self.snapshot_path(&file, note.number);
            let bytes = read_whole(&*self.fs, &path);
            let bytes = bytes.map_err(|error| Error::directory(&path, &error))?;
            let snapshot = file.read_snapshot(&path, &bytes)?;
            upto = snapshot.upto;
            replayed = Replayed {
                len: snapshot.len,
                intents: snapshot.intents.into_iter().collect(),
                cut: snapshot.cut,
            };
            let mut log = file.log.lock();
            log.snapshot = note.number;
            log.last_snapshot = note.number;
        }
        let length = note(owner, slot::LENGTH)
            .and_then(|(location, head)| Some((location, decode::<LengthNote>(head)?)));
        records.sort_unstable_by_key(|(location, _)| *location);
        let (over, records): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|(location, _)| *location <= upto);
        let over: Vec<u64> = over.into_iter().map(|(location, _)| location).collect();
        self.end_records(&over);
        let last = [
            Some(owner.location),
            Some(upto),
            length.as_ref().map(|(at, _)| *at),
            records.last().map(|(at, _)| *at),
        ];
        let last = last.into_iter().flatten().max().unwrap_or(0);
        // A length that was put on record before a cut is not what counts after it.
        let mut length = length.filter(|(at, _)| *at > upto);
        for (location, record) in &records {
            if let Some((at, note)) = &length
                && at < location
            {
                replayed.len = replayed.len.max(note.len);
                length = None;
            }
            for change in &record.changes {
                replayed.apply(&file, *change);
            }
        }
        if let Some((_, note)) = length {
            replayed.len = replayed.len.max(note.len);
        }
        {
            let mut log = file.log.lock();
            log.changes = records.iter().map(|(_, record)| record.changes.len()).sum();
            log.records = records.iter().map(|(location, _)| *location).collect();
            self.header_records
                .fetch_add(log.records.len() as u64, Ordering::Relaxed);
            log.len_logged = replayed.len;
        }
        file.set_len(replayed.len);
        // Of writes behind the length that was on record: nobody was told that they are safe.
        let behind = u32::try_from(file.parts_of(replayed.len)).unwrap_or(u32::MAX);
        replayed.intents.split_off(&behind);
        for (_, entry) in file.header.used_from(behind) {
            let had = entry.address().is_some();
            entry.set_address(None);
            entry.word.set(|word| {
                let differs = word.differs() || had;
                word.with_status(Status::Zero).with_differs(differs)
            });
        }
        let settled = self.settle_bytes(&file, replayed);
        settled.map_err(|error| {
            self.set_aside(&file.path);
            Error::directory(&file.path, &error)
        })??;
        if failed {
            let healed = Append::note(kind::NOTE, file.incarnation, slot::FAILED, Vec::new());
            self.journal.append(healed)?;
        }
        Ok((file, last))
    }

    /// Has the next open take a copy of a local file: an fsync of it failed, and another would say
    /// that all is well. In the names only: a power cut takes the name back, and what was not on
    /// the disk with it.
    fn set_aside(&self, path: &Path) {
        if let Err(error) = self.fs.rename(path, &suspect_of(path)) {
            tracing::error!(path = %path.display(), %error, "cannot be set aside");
        }
    }

    /// Opens a local file; after a failed fsync, a copy of it that is known to be on the disk.
    fn open_disk(
        &self,
        path: &Path,
        failed: bool,
    ) -> io::Result<Box<dyn crate::journal::fs::FsFile>> {
        let fs = &*self.fs;
        let open = |path: &Path| if_there(fs.open(path, OpenMode::Read));
        // What an open set aside goes only when its copy's name is on the disk: until then a copy
        // is taken again, of what is in its place, or of itself.
        let set_aside = open(&suspect_of(path))?;
        let doubtful = if failed || set_aside.is_some() {
            open(path)?.or(set_aside)
        } else {
            None
        };
        if let Some(old) = doubtful {
            let beside = path.with_extension("copy");
            if_there(fs.unlink(&beside))?;
            let new = fs.open(&beside, OpenMode::CreateNew)?;
            for (from, len) in old.data_ranges()? {
                let mut at = from;
                while at < from + len {
                    let run = usize::try_from(from + len - at).map_or(COPY, |n| n.min(COPY));
                    let mut bytes = vec![0; run];
                    old.read_exact_at(&mut bytes, at)?;
                    new.write_all_at(&bytes, at)?;
                    at += run as u64;
                }
            }
            new.sync_all()?;
            fs.rename(&beside, path)?;
            fs.sync_dir(&self.parts_dir())?;
        }
        match fs.open(path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Its name was synced before its record: somebody has removed it.
                tracing::error!(path = %path.display(), "a local file is gone");
                Err(error)
            }
            other => other,
        }
    }

    /// Has the local bytes agree with the records.
    fn settle_bytes(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        replayed: Replayed,
    ) -> io::Result<Result<()>> {
        let each = u64::from(file.part_bytes);
        let len = replayed.len;
        let mut have = Vec::new();
        for (from, run) in file.disk.data_ranges()? {
            let end = from + run;
            if end > len {
                // Behind the end, or in the range of a cut.
                file.disk.punch(from.max(len), end - from.max(len))?;
            }
            let mut part = from / each;
            while part * each < end.min(len) {
                if have.last() != Some(&part) {
                    have.push(part);
                }
                part += 1;
            }
        }
        let mut changes = Vec::new();
        for part in have {
            let Ok(index) = u32::try_from(part) else {
                continue;
            };
            if replayed.intents.get(&index) == Some(&true) {
                write_again(file, index)?;
                continue;
            }
            let entry = file.header.entry(index);
            if entry.address().is_some() {
                let frame = self.cache.force(each);
                self.resident.add_leftover(file, index, frame);
            } else {
                file.disk.punch(file.start_of(index), each)?;
            }
        }
        // Whatever it punched itself: an open before this one may have punched, and been killed.
        file.disk.sync_data()?;
        let mut log = file.log.lock();
        for (index, trusted) in &replayed.intents {
            if !*trusted {
                // The entry counts; what was written was never synced.
                changes.push(Change::IntentEnded { index: *index });
                continue;
            }
            let word = &file.header.entry(*index).word;
            word.set(|word| {
                let word = word.with_status(Status::Zero);
                word.open_intent()
                    .and_then(super::state::Word::filled)
                    .unwrap_or(word)
            });
            self.resident.add(file, *index, self.cache.force(each));
            file.is_unsynced(*index);
            self.flusher.dirty(file, *index);
            let intent = Intent {
                location: 0,
                trusted: true,
                users: 0,
                _room: self.dirty.force(each),
            };
            self.has_intents(file);
            log.intents.insert(*index, intent);
        }
        if replayed.cut.is_some() {
            changes.push(Change::CutDone);
        }
        if !changes.is_empty()
            && let Err(error) = self.append_changes(file, &mut log, changes, true)
        {
            return Ok(Err(error));
        }
        Ok(Ok(()))
    }
}

/// Writes what a part reads as once more. In an earlier life an fsync may have failed of which
/// nothing could be put on record, for the journal's had failed as well: then the page cache holds
/// what the disk does not, and takes it for written. (PostgreSQL's "fsyncgate", 2018.)
fn write_again(file: &PartFile, index: u32) -> io::Result<()> {
    let from = file.start_of(index);
    let end = file.disk.stat()?.len.min(from + u64::from(file.part_bytes));
    let len = usize::try_from(end.saturating_sub(from)).unwrap_or(0);
    let mut bytes = vec![0; len];
    file.disk.read_exact_at(&mut bytes, from)?;
    file.disk.write_all_at(&bytes, from)
}

fn suspect_of(path: &Path) -> std::path::PathBuf {
    path.with_extension("suspect")
}

fn read_whole(fs: &dyn Fs, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.stat()?.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
