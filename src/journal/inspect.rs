//! Looking at a directory without opening it: for a command-line tool, also beside a process
//! that has it open, or one that crashes whenever it does.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::JournalError;
use super::fs::Fs;
use super::identity::{self, Identity};
use super::recovery::{self, Recovered};
use super::segment::Layout;

/// One segment, as [`inspect`] found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Where its records end.
    pub end: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
}

/// What a look at a directory found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What an open would recover.
    pub recovered: Recovered,
    /// Who opened the directory last, as that process wrote itself into `LOCK`. It may be gone.
    pub last_holder: Option<String>,
    /// The journal's random id.
    pub journal_id: Option<u128>,
    /// Opens in a row in which the process died.
    pub failed_opens: u32,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentInfo>,
}

/// Reads a directory as an open would, changes nothing and takes no lock. Beside a process that
/// writes, it sees some instant of the last group or two.
///
/// # Errors
/// [`JournalError::Io`] where the directory cannot be read, [`JournalError::Version`] where it
/// is of an unknown format.
pub fn inspect(fs: &dyn Fs, dir: &Path) -> Result<Inspection, JournalError> {
    let layout = Layout::new(dir);
    let known = identity::read(fs, &layout)?;
    let mut scan = recovery::scan(fs, &layout, &|_, _| 0)?;
    scan.recovered.owners = scan.index.read_all(&layout)?;
    let lock = fs.stat(&layout.lock).ok();
    scan.recovered.moved = match (known, lock) {
        (Some(known), Some(lock)) => known != Identity::new(known.journal, &lock),
        (None, None) => false,
        _ => scan.journal.is_some(),
    };
    let segments = scan
        .index
        .segments
        .values()
        .map(|segment| SegmentInfo {
            number: segment.number,
            bytes: segment.bytes,
            end: segment.end,
            live_bytes: segment.live,
        })
        .collect();
    Ok(Inspection {
        recovered: scan.recovered,
        last_holder: identity::holder(fs, &layout),
        failed_opens: super::tries::read(fs, &layout),
        journal_id: known.map(|known| known.journal).or(scan.journal),
        segments,
    })
}
