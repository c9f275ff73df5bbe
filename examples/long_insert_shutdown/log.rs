//! The engine's log on the local disk: one active segment, and sealed ones that wait for S3.
//!
//! Owns: the files, and what is found after a crash. Does not own: when a segment goes to S3, or
//! when its file is removed ([`crate::shipper`]).
//!
//! ```text
//! seg-00000007.open     the active segment: appended to, synced before rows are acknowledged
//! seg-00000006.sealed   never changed again; removed once its object is in S3
//! ```
//!
//! 1. A row that was acknowledged is in a file here, or its segment is in S3.
//! 2. The file of segment n+1 exists before segment n is sealed: numbers are never used twice,
//!    also where every sealed segment has gone.
//! 3. Segments that were sealed are numbered from 0 without a gap.
//! 4. After a failed write or sync the log is not used again: what a failed sync left in the file
//!    is not known, so nothing after it may be acknowledged.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::row;

/// The log, open for appending.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    segment_bytes: u64,
    number: u64,
    file: File,
    len: u64,
}

/// What opening found.
#[derive(Debug)]
pub struct Opened {
    pub log: Log,
    /// Sealed segments whose files are still here, oldest first.
    pub sealed: Vec<u64>,
}

/// The file of a sealed segment.
pub fn sealed_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("seg-{number:08}.sealed"))
}

fn open_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("seg-{number:08}.open"))
}

impl Log {
    /// Opens or makes the log in `dir`. What a crash left in an active segment is cut to its last
    /// whole row and sealed.
    pub fn open(dir: &Path, segment_bytes: u64) -> io::Result<Opened> {
        fs::create_dir_all(dir)?;
        let (mut active, mut sealed) = list(dir)?;
        let newest = active.pop();
        for number in active {
            // A crash came between making the next segment and sealing this one.
            if cut_to_whole_rows(&open_path(dir, number))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("segment {number} is not the last and has no whole row"),
                ));
            }
            fs::rename(open_path(dir, number), sealed_path(dir, number))?;
            sealed.push(number);
        }
        let number = newest.unwrap_or_else(|| sealed.last().map_or(0, |last| last + 1));
        let path = open_path(dir, number);
        let file = File::options().create(true).append(true).open(&path)?;
        let len = cut_to_whole_rows(&path)?;
        sync_dir(dir)?;
        let mut log = Self {
            dir: dir.to_owned(),
            segment_bytes,
            number,
            file,
            len,
        };
        sealed.extend(log.seal()?);
        Ok(Opened { log, sealed })
    }

    /// How many segments have been sealed since the log was made.
    pub fn segments(&self) -> u64 {
        self.number
    }

    /// Whether `bytes` more would make the active segment too large.
    pub fn is_full_for(&self, bytes: usize) -> bool {
        self.len > 0 && self.len + bytes as u64 > self.segment_bytes
    }

    /// Appends whole rows. They survive the process at once, the machine after [`Log::sync`].
    pub fn append(&mut self, rows: &[u8]) -> io::Result<()> {
        self.file.write_all(rows)?;
        self.len += rows.len() as u64;
        Ok(())
    }

    /// Makes all that was appended durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Seals the active segment and starts the next; its number, or `None` where it is empty.
    pub fn seal(&mut self) -> io::Result<Option<u64>> {
        if self.len == 0 {
            return Ok(None);
        }
        self.sync()?;
        let next = File::options()
            .create(true)
            .append(true)
            .open(open_path(&self.dir, self.number + 1))?;
        sync_dir(&self.dir)?;
        let number = self.number;
        fs::rename(open_path(&self.dir, number), sealed_path(&self.dir, number))?;
        sync_dir(&self.dir)?;
        self.file = next;
        self.number += 1;
        self.len = 0;
        Ok(Some(number))
    }
}

/// The numbers of active and of sealed segments, in order.
fn list(dir: &Path) -> io::Result<(Vec<u64>, Vec<u64>)> {
    let (mut active, mut sealed) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let parts = name
            .to_str()
            .and_then(|name| name.strip_prefix("seg-"))
            .and_then(|name| name.split_once('.'));
        match parts.map(|(number, kind)| (number.parse(), kind)) {
            Some((Ok(number), "open")) => active.push(number),
            Some((Ok(number), "sealed")) => sealed.push(number),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} has a file that is not the log's: {name:?}",
                        dir.display()
                    ),
                ));
            }
        }
    }
    active.sort_unstable();
    sealed.sort_unstable();
    Ok((active, sealed))
}

/// Cuts what a crash left behind the last whole row; the length that remains.
fn cut_to_whole_rows(path: &Path) -> io::Result<u64> {
    let bytes = fs::read(path)?;
    let mut rest = bytes.as_slice();
    while let Some((_, after)) = row::read(rest) {
        rest = after;
    }
    let whole = (bytes.len() - rest.len()) as u64;
    let file = File::options().write(true).open(path)?;
    if !rest.is_empty() {
        file.set_len(whole)?;
    }
    // Its rows may have been written and not synced when the process was killed.
    file.sync_all()?;
    Ok(whole)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
