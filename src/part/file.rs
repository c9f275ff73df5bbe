//! One file of the engine: its header, its bytes here, and what is in progress on it.
//!
//! Owns: the state of one incarnation, and how bytes and parts map. Does not own: what is done to
//! it (each verb has a file of its own).
//!
//! Lock order: `log`, then a latch, then any of the others, which are leaves. None is held across
//! a wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::journal::Location;
use crate::journal::fs::FsFile;
use crate::sync::Mutex;
use crate::watched::Watched;

use super::header::Header;
use super::id::{FileId, PartId, PartKey};
use super::load::PartLoad;
use super::room::Taken;
use super::state::AtomicWord;
use super::wait::Words;

/// A file.
#[derive(Debug)]
pub(crate) struct PartFile {
    pub no: u32,
    /// Its own among all files that ever had this name.
    pub token: u64,
    pub id: FileId,
    /// The location of the record that created it.
    pub incarnation: Location,
    pub part_bytes: u32,
    shift: u32,
    pub path: PathBuf,
    pub disk: Box<dyn FsFile>,
    pub header: Header,
    len: AtomicU64,
    /// Parts from this one on are being cut off; none at `u64::MAX`.
    cut_from: AtomicU64,
    dropped: AtomicBool,
    /// A cut is in progress.
    pub shaping: Watched<Shaping>,
    pub log: Mutex<FileLog>,
    pub loads: Mutex<BTreeMap<u32, Arc<PartLoad>>>,
    pub captures: Mutex<BTreeMap<u32, Captures>>,
    /// How many captures there have been: their numbers.
    pub captured: AtomicU64,
    /// Goes up when a part stops being on its way in or out.
    pub moves: Watched<u64>,
    /// Parts whose bytes are not known to survive a power cut, and syncs in progress.
    pub unsynced: Mutex<Unsynced>,
    /// One fsync at a time.
    pub syncs: Mutex<()>,
    /// Parts that may not be as the last committed checkpoint has them: dirty, on their way, or
    /// with another image.
    pub changed: Mutex<BTreeSet<u32>>,
    /// It is among the files that may not be.
    pub is_changed: AtomicBool,
    /// A checkpoint may have it.
    listed: AtomicBool,
    /// How many lines had been drawn when it came to be, and when it went.
    born: AtomicU64,
    gone: AtomicU64,
}

/// How far a cut is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shaping {
    No,
    /// It waits for those who hold what goes. Nobody who holds anything waits for it.
    Takes,
    /// It is on record. What grows the file waits until it is carried through.
    Cuts,
}

#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    pub parts: BTreeSet<u32>,
    pub syncing: u32,
}

/// What the journal has of a file beyond its last snapshot, and the intents that are open.
#[derive(Debug, Default)]
pub(crate) struct FileLog {
    pub intents: BTreeMap<u32, Intent>,
    /// Intents that were ended, until the record of it is durable: before that their parts stay.
    pub ending: BTreeMap<u32, Location>,
    /// Live header records.
    pub records: Vec<Location>,
    /// Changes in them.
    pub changes: usize,
    /// The length that is on record.
    pub len_logged: u64,
    /// The end of the file is on its way to the disk: nothing more is said of it.
    pub ended: bool,
    /// The last record that a sync relies on, whoever made it.
    pub last: Location,
    /// Why a change that was made could not be put on record: from here on nothing makes what was
    /// written durable before the next open.
    pub unrecorded: Option<Error>,
    /// The number of the snapshot that counts, and the last that was given; 0 before there is one.
    pub snapshot: u64,
    pub last_snapshot: u64,
    pub snapshotting: bool,
    pub cut: Option<u64>,
}

/// A write intent: from its record on the local bytes of the part count, if they are trusted.
#[derive(Debug)]
pub(crate) struct Intent {
    pub location: Location,
    pub trusted: bool,
    /// Steps in progress that rely on it.
    pub users: u32,
    /// Its share of what may be dirty.
    pub _room: Taken,
}

/// Captures of one part in flight.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    /// The number of the first. Those before it are of what the part was before it was cut off.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// The number of the last whose image is in the entry.
    pub applied: u64,
    pub in_flight: u32,
    /// Those of them whose record is on its way to the disk.
    pub settling: u32,
}

impl Captures {
    /// Whether a capture is one of these.
    pub(crate) fn has(&self, number: u64) -> bool {
        number >= self.first
    }
}

impl Words for PartFile {
    fn word(&self, index: u32) -> &AtomicWord {
        &self.header.entry(index).word
    }
}

/// A run of bytes within one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub index: u32,
    /// First byte, within the part.
    pub at: usize,
    /// Where it is in the caller's buffer.
    pub range: Range<usize>,
}

/// What a file is made of when it is created or found.
#[derive(Debug)]
pub(crate) struct Made {
    pub no: u32,
    /// Its own among all files that ever had this name.
    pub token: u64,
    pub id: FileId,
    pub incarnation: Location,
    pub part_bytes: u32,
    pub path: PathBuf,
    pub disk: Box<dyn FsFile>,
}

impl PartFile {
    pub(crate) fn new(made: Made) -> Self {
        let log = FileLog {
            last: made.incarnation,
            ..FileLog::default()
        };
        Self {
            no: made.no,
            token: made.token,
            id: made.id,
            incarnation: made.incarnation,
            part_bytes: made.part_bytes,
            shift: made.part_bytes.trailing_zeros(),
            path: made.path,
            disk: made.disk,
            header: Header::new(),
            len: AtomicU64::new(0),
            cut_from: AtomicU64::new(u64::MAX),
            dropped: AtomicBool::new(false),
            shaping: Watched::new(Shaping::No),
            log: Mutex::new(log),
            loads: Mutex::new(BTreeMap::new()),
            captures: Mutex::new(BTreeMap::new()),
            captured: AtomicU64::new(0),
            moves: Watched::new(0),
            unsynced: Mutex::new(Unsynced::default()),
            syncs: Mutex::new(()),
            changed: Mutex::new(BTreeSet::new()),
            is_changed: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            born: AtomicU64::new(0),
            gone: AtomicU64::new(u64::MAX),
        }
    }

    #[inline]
    pub(crate) fn key(&self, index: u32) -> PartKey {
        PartKey::new(self.no, index)
    }

    pub(crate) fn part(&self, index: u32) -> PartId {
        PartId {
            file: self.id,
            index,
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(crate) fn set_len(&self, len: u64) {
        self.len.store(len, Ordering::Release);
    }

    /// Grows it; under the latch of the part that was written.
    pub(crate) fn grow(&self, len: u64) {
        self.len.fetch_max(len, Ordering::AcqRel);
    }

    /// The largest length that a file with parts of this size can have.
    pub(crate) fn max_len(&self) -> u64 {
        // So that every count of parts is a number of 32 bits.
        u64::from(u32::MAX) << self.shift
    }

    /// Parts that a length has.
    #[inline]
    pub(crate) fn parts_of(&self, len: u64) -> u64 {
        // A power of two: a shift, where a division would cost as much as the lock does.
        (len >> self.shift) + u64::from(len & (u64::from(self.part_bytes) - 1) != 0)
    }

    pub(crate) fn start_of(&self, index: u32) -> u64 {
        u64::from(index) << self.shift
    }

    /// Bytes of a part before the file's end.
    pub(crate) fn len_of(&self, index: u32) -> u32 {
        let left = self.len().saturating_sub(self.start_of(index));
        u32::try_from(left).map_or(self.part_bytes, |left| left.min(self.part_bytes))
    }

    /// Whether a checkpoint may have it.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    pub(crate) fn set_listed(&self) {
        self.listed.store(true, Ordering::Release);
    }

    /// It came to be behind so many lines.
    pub(crate) fn born_behind(&self, lines: u64) {
        self.born.store(lines, Ordering::Release);
    }

    /// It went behind so many lines; [`u64::MAX`], it did not.
    pub(crate) fn gone_behind(&self, lines: u64) {
        self.gone.store(lines, Ordering::Release);
    }

    /// Whether it was there when a line was drawn.
    pub(crate) fn is_at(&self, line: u64) -> bool {
        self.born.load(Ordering::Acquire) < line && self.gone.load(Ordering::Acquire) >= line
    }

    #[inline]
    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(crate) fn set_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    pub(crate) fn deleted(&self, index: u32) -> Error {
        Error::Deleted {
            file: self.id,
            index,
        }
    }

    /// Waits while the file cannot grow.
    pub(crate) async fn may_grow(&self) {
        let may = |shaping: &Shaping| (*shaping < Shaping::Cuts).then_some(());
        self.shaping.until(may).await;
    }

    /// Waits until no cut is in progress.
    pub(crate) async fn uncut(&self) {
        let over = |shaping: &Shaping| (*shaping == Shaping::No).then_some(());
        self.shaping.until(over).await;
    }

    /// Parts from this one on are being cut off.
    #[inline]
    pub(crate) fn cutting_from(&self) -> u64 {
        self.cut_from.load(Ordering::SeqCst)
    }

    pub(crate) fn cut_from(&self, first: u64) {
        self.cut_from.store(first, Ordering::SeqCst);
    }

    /// Whether a part is there, and stays.
    #[inline]
    pub(crate) fn check(&self, index: u32) -> Result<()> {
        if self.is_dropped() || u64::from(index) >= self.parts_of(self.len()) {
            return Err(self.deleted(index));
        }
        Ok(())
    }

    pub(crate) fn past_end(&self, from: u64, len: u64) -> Error {
        Error::PastEnd {
            file: self.id,
            from,
            len,
            size: self.len(),
        }
    }

    /// Cuts a range of the file into runs within one part each.
    pub(crate) fn spans(&self, offset: u64, len: usize) -> impl Iterator<Item = Span> + use<> {
        let part = u64::from(self.part_bytes);
        let mut done = 0;
        std::iter::from_fn(move || {
            if done >= len {
                return None;
            }
            let from = offset + done as u64;
            let index = u32::try_from(from / part).ok()?;
            let at = usize::try_from(from % part).ok()?;
            let run = (len - done).min(usize::try_from(part).ok()? - at);
            let span = Span {
                index,
                at,
                range: done..done + run,
            };
            done += run;
            Some(span)
        })
    }

    /// Something stopped being on its way.
    pub(crate) fn moved(&self) {
        self.moves.change(|moves| *moves += 1);
    }

    /// Reads local bytes; what the local file does not have is zeros.
    pub(crate) fn read_here(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self.disk.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let have = self.disk.stat()?.len.saturating_sub(offset);
                let have = usize::try_from(have).map_or(buffer.len(), |n| n.min(buffer.len()));
                let (data, zeros) = buffer.split_at_mut(have);
                if !data.is_empty() {
                    self.disk.read_exact_at(data, offset)?;
                }
                zeros.fill(0);
                Ok(())
            }
            other => other,
        }
    }

    /// A part's bytes are not on the disk yet.
    pub(crate) fn is_unsynced(&self, index: u32) {
        self.unsynced.lock().parts.insert(index);
    }
}
