//! Segment files.
//!
//! Owns: the header of a segment file (written at both ends, so that one bad sector does not
//! hide all its frames), making spare files, taking one into use, and reading frames back. Does
//! not own: which segment is written to and which goes (`commit.rs`, `reclaim.rs`).
//!
//! Invariants:
//!
//! 1. A file under `segments/` was complete and synced before it got its name there: one whose
//!    header cannot be read is damaged, not half made.
//! 2. No frame is written before the name is durable.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{JournalError, JournalFailure};
use super::frame::{self, ALIGN, HEADER_BYTES, Header};
use super::fs::{Fs, FsFile, OpenMode};

/// Bytes of the header, at the front and again at the very end.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 128;
/// What every format of this release writes.
pub(crate) const VERSION: u32 = 1;
/// The oldest version that this release reads.
pub(crate) const OLDEST_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"S3WBJSEG";
const COVERED: usize = 76;

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Random: no frame of another segment is valid here.
    pub id: u128,
    /// The journal's own id.
    pub journal: u128,
}

/// What the bytes at a header's place are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderRead {
    Ok(SegmentHeader),
    Unknown { version: u32, min_reader: u32 },
    Bad,
}

impl SegmentHeader {
    /// Where frames end at the latest.
    pub(crate) fn limit(&self) -> u64 {
        self.bytes.saturating_sub(SEGMENT_HEADER_BYTES)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_HEADER_BYTES as usize];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&OLDEST_VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        out[32..48].copy_from_slice(&self.id.to_le_bytes());
        out[48..64].copy_from_slice(&self.journal.to_le_bytes());
        let crc = frame::crc32c(&out[..COVERED]);
        out[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> HeaderRead {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let wide = |at: usize| u128::from(long(at)) | u128::from(long(at + 8)) << 64;
        if bytes.len() < SEGMENT_HEADER_BYTES as usize || &bytes[..8] != MAGIC {
            return HeaderRead::Bad;
        }
        if frame::crc32c(&bytes[..COVERED]) != word(COVERED) {
            return HeaderRead::Bad;
        }
        let (version, min_reader) = (word(8), word(12));
        if version < OLDEST_VERSION || min_reader > VERSION {
            return HeaderRead::Unknown {
                version,
                min_reader,
            };
        }
        HeaderRead::Ok(Self {
            number: long(16),
            bytes: long(24),
            id: wide(32),
            journal: wide(48),
        })
    }
}

/// The directories of a journal.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub dir: PathBuf,
    pub segments: PathBuf,
    pub spare: PathBuf,
    pub payload: PathBuf,
    pub staging: PathBuf,
    pub damage: PathBuf,
    pub lock: PathBuf,
    pub identity: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            segments: dir.join("segments"),
            spare: dir.join("spare"),
            payload: dir.join("payload"),
            staging: dir.join("staging"),
            damage: dir.join("damage"),
            lock: dir.join("LOCK"),
            identity: dir.join("IDENTITY"),
        }
    }

    pub(crate) fn segment(&self, number: u64) -> PathBuf {
        self.segments.join(format!("{number:020}"))
    }

    pub(crate) fn payload_of(&self, location: u64) -> PathBuf {
        self.payload.join(format!("{location:020}"))
    }
}

/// How much of a spare is zeroed and synced at a time: a large fdatasync beside the committer's
/// own would make every append wait for it.
const ZERO_STEP: u64 = 4 * 1024 * 1024;

/// Makes a preallocated, zeroed, synced file that [`activate`] can take into use.
pub(crate) fn make_spare(fs: &dyn Fs, path: &Path, bytes: u64) -> Result<(), JournalFailure> {
    let made = (|| {
        let file = fs.open(path, OpenMode::CreateNew)?;
        let mut len = 0;
        while len < bytes {
            len = (len + ZERO_STEP).min(bytes);
            file.preallocate(len)?;
            file.sync_data()?;
        }
        file.sync_all()
    })();
    made.map_err(|error| {
        // Half a spare is worse than none: its blocks are needed.
        let _ = fs.unlink(path);
        JournalFailure::new("preallocating", path, error)
    })
}

/// Takes a spare into use as segment `header.number`: when this returns, it is durable.
pub(crate) fn activate(
    fs: &dyn Fs,
    layout: &Layout,
    spare: &Path,
    header: &SegmentHeader,
) -> Result<Box<dyn FsFile>, JournalFailure> {
    let path = layout.segment(header.number);
    let file = fs
        .open(spare, OpenMode::ReadWrite)
        .map_err(|error| JournalFailure::new("opening", spare, error))?;
    let bytes = header.encode();
    let written = file
        .write_all_at(&bytes, header.limit())
        .and_then(|()| file.write_all_at(&bytes, 0))
        .map_err(|error| JournalFailure::new("writing", spare, error))
        .and_then(|()| {
            file.sync_all()
                .map_err(|error| JournalFailure::new("fsync of", spare, error))
        })
        .and_then(|()| {
            fs.rename(spare, &path)
                .map_err(|error| JournalFailure::new("naming", &path, error))
        })
        .and_then(|()| {
            // Both directories: were the old name to come back after a power cut, the next open
            // would take a segment for a spare.
            fs.sync_dir(&layout.segments)
                .and_then(|()| fs.sync_dir(&layout.spare))
                .map_err(|error| JournalFailure::new("fsync of", &layout.segments, error))
        });
    if let Err(failure) = written {
        let _ = fs.unlink(spare);
        let _ = fs.unlink(&path);
        return Err(failure);
    }
    Ok(file)
}

/// What a file under a segment's name is.
#[derive(Debug)]
pub(crate) enum Named {
    /// That segment, and the file's length.
    Segment(SegmentHeader, u64),
    /// Another segment: the name was its file's before that was a spare, and its removal was not
    /// durable when the power went.
    Another(SegmentHeader),
    /// Nothing that can be read.
    Unreadable,
}

/// Reads a segment's header, from either end.
pub(crate) fn read_header(
    file: &dyn FsFile,
    path: &Path,
    number: u64,
) -> Result<Named, JournalError> {
    let failed = |error| JournalError::io("reading", path, error);
    let len = file.stat().map_err(failed)?.len;
    let mut unknown = None;
    let mut another = None;
    for at in [0, len.saturating_sub(SEGMENT_HEADER_BYTES)] {
        if len < at + SEGMENT_HEADER_BYTES {
            continue;
        }
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, at).map_err(failed)?;
        match SegmentHeader::decode(&bytes) {
            HeaderRead::Ok(header) if header.number == number && header.bytes >= at => {
                return Ok(Named::Segment(header, len));
            }
            HeaderRead::Ok(header) if header.number != number => another = Some(header),
            HeaderRead::Unknown {
                version,
                min_reader,
            } => unknown = Some((version, min_reader)),
            HeaderRead::Ok(_) | HeaderRead::Bad => {}
        }
    }
    if let Some((found, min_reader)) = unknown {
        return Err(JournalError::Version {
            path: path.to_path_buf(),
            found,
            min_reader,
            oldest: OLDEST_VERSION,
            newest: VERSION,
        });
    }
    Ok(another.map_or(Named::Unreadable, Named::Another))
}

/// What lies at an offset.
#[derive(Debug)]
pub(crate) enum At<'a> {
    Frame(Header, &'a [u8]),
    /// The header is good, the bytes behind it are not.
    BadBody(Header),
    Nothing,
}

/// Reads frames through a window.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    file: &'a dyn FsFile,
    id: u128,
    /// Frames end here at the latest.
    pub limit: u64,
    window: Vec<u8>,
    start: u64,
}

const WINDOW_BYTES: u64 = 1024 * 1024;

impl<'a> Reader<'a> {
    /// A reader up to `limit`, which must not lie behind the end of the file.
    pub(crate) fn new(file: &'a dyn FsFile, id: u128, limit: u64) -> Self {
        Self {
            file,
            id,
            limit,
            window: Vec::new(),
            start: 0,
        }
    }

    /// `len` bytes at `offset`; fewer only before the limit.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let want = (len as u64).min(self.limit.saturating_sub(offset));
        let have = self.start + self.window.len() as u64;
        if offset < self.start || offset + want > have {
            let take = want
                .max(WINDOW_BYTES)
                .min(self.limit.saturating_sub(offset));
            self.window.resize(take as usize, 0);
            self.start = offset;
            self.file.read_exact_at(&mut self.window, offset)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.window[from..from + want as usize])
    }

    fn header_at(&mut self, offset: u64) -> io::Result<Option<Header>> {
        let (id, room) = (self.id, self.limit.saturating_sub(offset));
        if room < HEADER_BYTES as u64 {
            return Ok(None);
        }
        Ok(frame::decode_header(
            self.bytes(offset, HEADER_BYTES)?,
            id,
            offset,
            room,
        ))
    }

    /// What lies at `offset`.
    pub(crate) fn at(&mut self, offset: u64) -> io::Result<At<'_>> {
        let Some(header) = self.header_at(offset)? else {
            return Ok(At::Nothing);
        };
        let bytes = self.bytes(offset, HEADER_BYTES + header.body_len())?;
        let (front, body) = bytes.split_at(HEADER_BYTES);
        if frame::body_matches(front, body) {
            Ok(At::Frame(header, body))
        } else {
            Ok(At::BadBody(header))
        }
    }

    /// The first valid frame at or behind `from`.
    pub(crate) fn next_valid(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut offset = from.next_multiple_of(ALIGN);
        while offset + HEADER_BYTES as u64 <= self.limit {
            if self.header_at(offset)?.is_some() && matches!(self.at(offset)?, At::Frame(..)) {
                return Ok(Some(offset));
            }
            offset += ALIGN;
        }
        Ok(None)
    }

    /// The highest mark of any valid frame at or behind `from`.
    pub(crate) fn highest_mark(&mut self, from: u64) -> io::Result<frame::Mark> {
        let mut highest = frame::Mark::default();
        let mut offset = from;
        while let Some(found) = self.next_valid(offset)? {
            let At::Frame(header, _) = self.at(found)? else {
                break;
            };
            highest = highest.max(header.mark);
            offset = found + header.frame_len();
        }
        Ok(highest)
    }
}
