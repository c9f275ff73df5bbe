//! Snapshots: a file's header as of one record, so that the records before it can go.
//!
//! Owns: the format (`docs/formats/parts.md`), writing it and reading it. Does not own: when.
//!
//! 1. A snapshot is written beside the one that counts, synced, and named; then a note makes it
//!    the one that counts; only when that is durable do the records go that it has.
//! 2. It has everything up to one record, and nothing after: it is copied under the log's lock.
//!    What a cut on record took has no images in it, though their entries may still be there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::journal::fs::{Fs, OpenMode, if_there};
use crate::journal::{Append, Location};

use super::Parts;
use super::file::PartFile;
use super::header::{Address, Entry, PAGE, crc32c};
use super::record::{SnapshotNote, decode, encode, kind, slot};
use super::state::Status;

const MAGIC: &[u8; 8] = b"S3WBHDR\0";
const VERSION: u32 = 1;
/// The oldest release that can read what this one writes.
const MIN_READER: u32 = 1;
const ENTRY_BYTES: usize = 20;
const PAGE_BYTES: usize = 4 + PAGE as usize / 8 + PAGE as usize * ENTRY_BYTES + 4;
/// Changes on record beyond which a snapshot is worth it, whatever the file's size.
const MIN_CHANGES: usize = 4096;

/// What comes before the pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    file: u64,
    incarnation: u64,
    part_bytes: u32,
    len: u64,
    /// The last record that is in it.
    upto: u64,
    cut: Option<u64>,
    intents: Vec<(u32, bool)>,
    /// Numbers and names of epochs that entries may have.
    epochs: Vec<(u32, u64)>,
    pages: u32,
}

/// A snapshot as read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub len: u64,
    pub upto: Location,
    pub cut: Option<u64>,
    pub intents: Vec<(u32, bool)>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

impl PartFile {
    /// The header as of the last record, under the log's lock.
    pub(crate) fn image(&self, log: &super::file::FileLog, epochs: Vec<(u32, u64)>) -> Vec<u8> {
        let mut pages = Vec::new();
        let mut count = 0;
        let behind = self.parts_of(log.len_logged);
        for (first, entries) in self.header.pages() {
            let there = |at: usize| u64::from(first) + (at as u64) < behind;
            let address = |at: usize, entry: &Entry| entry.address().filter(|_| there(at));
            let mut all = entries.iter().enumerate();
            if all.all(|(at, entry)| address(at, entry).is_none() && !entry.word.get().differs()) {
                continue;
            }
            count += 1;
            let from = pages.len();
            pages.extend_from_slice(&first.to_le_bytes());
            // The bit of each entry: whether the last committed checkpoint names another.
            for eight in entries.chunks(8) {
                let bits = eight
                    .iter()
                    .zip(0..)
                    .map(|(entry, bit)| u8::from(entry.word.get().differs()) << bit);
                pages.push(bits.fold(0, |all, bit| all | bit));
            }
            for (at, entry) in entries.iter().enumerate() {
                let a = address(at, entry);
                let words = a.map_or([0; 5], |a| [a.epoch, a.sequence, a.offset, a.len, a.crc]);
                for word in words {
                    pages.extend_from_slice(&word.to_le_bytes());
                }
            }
            let crc = crc32c(&pages[from..]);
            pages.extend_from_slice(&crc.to_le_bytes());
        }
        let head = encode(&Head {
            file: self.id.0,
            incarnation: self.incarnation,
            part_bytes: self.part_bytes,
            len: log.len_logged,
            upto: log.records.last().copied().unwrap_or(0),
            cut: log.cut,
            intents: log
                .intents
                .iter()
                .map(|(index, i)| (*index, i.trusted))
                .collect(),
            epochs,
            pages: count,
        });
        let mut bytes = Vec::with_capacity(32 + head.len() + pages.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&crc32c(&head).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&pages);
        bytes
    }

    /// Fills the header from a snapshot.
    pub(crate) fn read_snapshot(&self, path: &Path, bytes: &[u8]) -> Result<Snapshot> {
        let bad = |what: &str| Error::Damaged(format!("{}: {what}", path.display()));
        let (head, head_len) = head_of(path, bytes)?;
        if head.incarnation != self.incarnation || head.part_bytes != self.part_bytes {
            return Err(bad("is another file's"));
        }
        let pages = &bytes[24 + head_len..];
        if pages.len() != head.pages as usize * PAGE_BYTES {
            return Err(bad("has a wrong length"));
        }
        for page in pages.chunks_exact(PAGE_BYTES) {
            let (body, crc) = page.split_at(PAGE_BYTES - 4);
            if u32_at(crc, 0) != Some(crc32c(body)) {
                return Err(bad("a page has a wrong checksum"));
            }
            let first = u32_at(body, 0).ok_or_else(|| bad("is cut off"))?;
            let (bits, entries) = body[4..].split_at(PAGE as usize / 8);
            let indices = first..=first.saturating_add(PAGE - 1);
            for (index, raw) in indices.zip(entries.chunks_exact(ENTRY_BYTES)) {
                let field = |at: usize| u32_at(raw, at * 4).unwrap_or(0);
                let at = (index % PAGE) as usize;
                let differs = bits[at / 8] >> (at % 8) & 1 == 1;
                if field(0) == 0 {
                    if differs {
                        let word = &self.header.entry(index).word;
                        word.set(|word| word.with_differs(true));
                    }
                    continue;
                }
                let entry = self.header.entry(index);
                entry.set_address(Some(Address {
                    epoch: field(0),
                    sequence: field(1),
                    offset: field(2),
                    len: field(3),
                    crc: field(4),
                }));
                entry
                    .word
                    .set(|word| word.with_status(Status::NotLoaded).with_differs(differs));
            }
        }
        Ok(Snapshot {
            len: head.len,
            upto: head.upto,
            cut: head.cut,
            intents: head.intents,
        })
    }
}

/// What comes before the pages, and its length.
fn head_of(path: &Path, bytes: &[u8]) -> Result<(Head, usize)> {
    let bad = |what: &str| Error::Damaged(format!("{}: {what}", path.display()));
    if bytes.get(..8) != Some(MAGIC) {
        return Err(bad("is no header snapshot"));
    }
    let word = |at| u32_at(bytes, at).ok_or_else(|| bad("is cut off"));
    let (version, min_reader) = (word(8)?, word(12)?);
    if min_reader > VERSION {
        return Err(Error::Version {
            path: path.to_owned(),
            found: version,
            oldest: MIN_READER,
            newest: VERSION,
        });
    }
    let len = word(16)? as usize;
    let head = bytes.get(24..24 + len).ok_or_else(|| bad("is cut off"))?;
    if crc32c(head) != word(20)? {
        return Err(bad("its head has a wrong checksum"));
    }
    let head = decode(head).ok_or_else(|| bad("its head cannot be read"))?;
    Ok((head, len))
}

/// Reads what comes before the pages, and not the pages.
pub(crate) fn read_head(fs: &dyn Fs, path: &Path) -> Result<Snapshot> {
    let failed = |error: io::Error| Error::directory(path, &error);
    let file = fs.open(path, OpenMode::Read).map_err(failed)?;
    let len = file.stat().map_err(failed)?.len;
    let mut bytes = vec![0; usize::try_from(len.min(24)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let whole = u64::from(u32_at(&bytes, 16).unwrap_or(0)) + 24;
    bytes.resize(usize::try_from(whole.min(len)).unwrap_or(0), 0);
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let (head, _) = head_of(path, &bytes)?;
    Ok(Snapshot {
        len: head.len,
        upto: head.upto,
        cut: head.cut,
        intents: head.intents,
    })
}

/// Where a snapshot is.
pub(crate) fn header_path(dir: &Path, incarnation: Location, number: u64) -> PathBuf {
    dir.join("headers")
        .join(format!("{incarnation:016x}-{number:08x}"))
}

/// Writes a file whole, under its final name only when it is durable.
pub(crate) fn write_durably(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    if_there(fs.unlink(&beside))?;
    let file = fs.open(&beside, OpenMode::CreateNew)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    fs.rename(&beside, path)?;
    path.parent().map_or(Ok(()), |dir| fs.sync_dir(dir))
}

impl Parts {
    pub(crate) fn snapshot_path(&self, file: &PartFile, number: u64) -> PathBuf {
        header_path(&self.dir, file.incarnation, number)
    }

    /// Writes a snapshot of a file's header, if its records have become many.
    pub(crate) fn snapshot_if_due(self: &Arc<Self>, file: &Arc<PartFile>) {
        self.keep_records_few();
        {
            let mut log = file.log.lock();
            let entries = file.header.pages().count() * PAGE as usize;
            let due = log.changes >= MIN_CHANGES.max(entries / 4);
            if !due || std::mem::replace(&mut log.snapshotting, true) {
                return;
            }
        }
        let (parts, file) = (Arc::clone(self), Arc::clone(file));
        self.spawn_local(async move {
            parts.write_down(&file).await;
        });
    }

    async fn write_down(self: &Arc<Self>, file: &Arc<PartFile>) -> bool {
        let written = self.snapshot(file).await;
        if let Err(error) = &written {
            tracing::warn!(file = %file.id, %error, "no snapshot of the header");
        }
        file.log.lock().snapshotting = false;
        written.is_ok()
    }

    /// Writes down the headers with most records, where those of all files are too many: many
    /// files of which none has many of its own.
    pub(crate) fn keep_records_few(self: &Arc<Self>) {
        let most = self.config.max_header_records;
        let many = || self.header_records.load(Ordering::Relaxed);
        if many() < most || self.writing_down.swap(true, Ordering::AcqRel) {
            return;
        }
        let parts = Arc::clone(self);
        self.spawn_local(async move {
            while parts.header_records.load(Ordering::Relaxed) > most / 2 {
                let all = parts.all_files();
                let next = all.iter().max_by_key(|file| {
                    let log = file.log.lock();
                    if log.snapshotting {
                        0
                    } else {
                        log.records.len()
                    }
                });
                let Some(file) = next else { break };
                let few = {
                    let mut log = file.log.lock();
                    log.records.is_empty() || std::mem::replace(&mut log.snapshotting, true)
                };
                if few || !parts.write_down(file).await {
                    break;
                }
            }
            parts.writing_down.store(false, Ordering::Release);
        });
    }

    /// Writes a snapshot, and has it count.
    pub(crate) async fn snapshot(self: &Arc<Self>, file: &Arc<PartFile>) -> Result<()> {
        let (bytes, upto, number, records, changes) = {
            let log = &mut *file.log.lock();
            log.last_snapshot += 1;
            let upto = log.records.last().copied().unwrap_or(0);
            let bytes = file.image(log, self.epochs.table());
            let number = log.last_snapshot;
            (bytes, upto, number, log.records.clone(), log.changes)
        };
        // It says nothing that the journal does not.
        if upto > 0 {
            self.journal.wait_durable(upto).await?;
        }
        let path = self.snapshot_path(file, number);
        let (fs, to) = (Arc::clone(&self.fs), path.clone());
        let write = move || write_durably(&*fs, &to, &bytes);
        if let Err(error) = self.io.run(write).await.and_then(|written| written) {
            let left = vec![path.with_extension("new"), path.clone()];
            self.unlink(left).await;
            return Err(Error::directory(&path, &error));
        }
        let note = {
            // Under the log: the end of the file comes before it, or behind.
            let log = file.log.lock();
            let head = encode(&SnapshotNote { number, upto });
            let note = Append::note(kind::NOTE, file.incarnation, slot::SNAPSHOT, head);
            match log.ended {
                true => None,
                false => Some(self.journal.append(note)?),
            }
        };
        let Some(noted) = note else {
            self.unlink(vec![path]).await;
            return Ok(());
        };
        self.journal.wait_durable(noted).await?;
        let old = {
            let log = &mut *file.log.lock();
            let before = log.records.len();
            log.records.retain(|location| *location > upto);
            let gone = (before - log.records.len()) as u64;
            self.header_records.fetch_sub(gone, Ordering::Relaxed);
            log.changes = log.changes.saturating_sub(changes);
            std::mem::replace(&mut log.snapshot, number)
        };
        self.end_records(&records);
        let mut over = Vec::new();
        if old > 0 {
            over.push(self.snapshot_path(file, old));
        }
        if file.is_dropped() {
            // Whoever dropped it knew of the old one only.
            over.push(path);
        }
        self.unlink(over).await;
        Ok(())
    }

    /// Records that say nothing any more.
    pub(crate) fn end_records(&self, records: &[Location]) {
        for location in records {
            let end = Append::end(kind::END, *location, bytes::Bytes::new());
            if let Err(error) = self.journal.append(end.unsynced()) {
                tracing::debug!(%error, "a record that is over stays");
                return;
            }
        }
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;

    use crate::io::Io;
    use crate::testing::fs::SimFs;
    use crate::testing::remote::SimRemote;
    use crate::{FileId, FileOptions, PartStore, RunOn, StoreConfig};

    use super::*;

    const PART: usize = 4096;

    /// E14: the snapshot has no record of a cut, only what it left.
    #[tokio::test(start_paused = true)]
    async fn a_snapshot_behind_a_cut_has_no_images_of_what_was_cut_off() {
        let mut config = StoreConfig::new("/q");
        config.fencing = crate::Fencing::Off;
        config.checkpoint_at_shutdown = false;
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.cache_bytes = 8 * PART as u64;
        config.dirty_bytes = 4 * PART as u64;
        config.checkpoint_cache_bytes = PART as u64;
        config.queue.segment_bytes = 64 * 1024;
        config.queue.max_disk_bytes = 64 * 1024 * 1024;
        let (fs, remote) = (SimFs::new(), SimRemote::new());
        let open = async || {
            PartStore::builder(config.clone(), Arc::new(remote.clone()))
                .run_on(RunOn::Handle(Handle::current()))
                .file_system(Arc::new(fs.process()), Io::inline())
                .open()
                .await
                .expect("opens")
        };
        let store = open().await;
        let options = FileOptions { part_bytes: 4096 };
        let file = store.create(FileId(1), options).await.expect("creates");
        let bytes = [7; 4 * PART];
        file.write_at(&bytes, 0).await.expect("writes");
        while store.snapshot().dirty_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        file.set_len(PART as u64).await.expect("cuts");
        let parts = store.parts();
        let part_file = parts.file(FileId(1)).expect("is there");
        parts.snapshot(&part_file).await.expect("is written");
        drop((part_file, parts));
        file.set_len(4 * PART as u64).await.expect("grows");
        drop((file, store));
        fs.crash(1);
        assert_eq!(fs.names(Path::new("/q/headers")).len(), 1, "it is there");
        let store = open().await;
        let file = store.file(FileId(1)).expect("is there");
        let mut bytes = [1; 4 * PART];
        file.read_at(&mut bytes, 0).await.expect("reads");
        assert!(bytes[..PART].iter().all(|byte| *byte == 7));
        let old = bytes[PART..].iter().position(|byte| *byte != 0);
        assert_eq!(old, None, "an old byte came back");
    }
}
