//! Payloads on their way into the journal.
//!
//! Owns: files under `staging/`. They are not durable, and open empties the directory; the
//! committer makes one durable and moves it under `payload/` before it writes the record that
//! names it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::error::JournalError;
use super::fs::{Fs, OpenMode};

/// What a payload file is made of.
#[derive(Debug, Clone)]
pub enum StageSource {
    /// These bytes, written to a new file.
    Bytes(Bytes),
    /// This file, renamed into the journal: it is gone from its old place.
    Rename(PathBuf),
    /// This file, hard-linked into the journal: its owner must not change it any more.
    Link(PathBuf),
}

/// A payload file that no record names yet. Dropping it removes the file.
pub struct StagedPayload {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    len: u64,
    /// Bytes of staged files, which `disk_used` counts.
    gauge: Arc<AtomicU64>,
    /// The file has been renamed away.
    taken: bool,
}

impl fmt::Debug for StagedPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedPayload")
            .field("path", &self.path)
            .field("len", &self.len)
            .finish()
    }
}

impl StagedPayload {
    /// Makes the file; blocks.
    pub(super) fn make(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        source: &StageSource,
        gauge: Arc<AtomicU64>,
    ) -> Result<Self, JournalError> {
        // From here on, whatever fails, the drop takes the file away.
        let mut staged = Self {
            fs,
            path,
            len: 0,
            gauge,
            taken: false,
        };
        match source {
            StageSource::Bytes(bytes) => {
                let file = staged
                    .fs
                    .open(&staged.path, OpenMode::CreateNew)
                    .map_err(|error| JournalError::io("creating", &staged.path, error))?;
                file.write_all_at(bytes, 0)
                    .map_err(|error| JournalError::io("writing", &staged.path, error))?;
                staged.count(bytes.len() as u64);
            }
            StageSource::Rename(from) => {
                staged
                    .fs
                    .rename(from, &staged.path)
                    .map_err(|error| JournalError::io("adopting by rename", from, error))?;
                staged.measure()?;
            }
            StageSource::Link(from) => {
                staged
                    .fs
                    .link(from, &staged.path)
                    .map_err(|error| JournalError::io("adopting by link", from, error))?;
                staged.measure()?;
            }
        }
        Ok(staged)
    }

    fn measure(&mut self) -> Result<(), JournalError> {
        let stat = self
            .fs
            .stat(&self.path)
            .map_err(|error| JournalError::io("stat of", &self.path, error))?;
        self.count(stat.len);
        Ok(())
    }

    fn count(&mut self, len: u64) {
        self.len = len;
        self.gauge.fetch_add(len, Ordering::Relaxed);
    }

    /// Length in bytes.
    #[must_use]
    #[allow(
        clippy::len_without_is_empty,
        reason = "an empty payload is never staged apart"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file has been renamed: nothing is left to remove.
    pub(super) fn take(&mut self) {
        self.taken = true;
    }
}

impl Drop for StagedPayload {
    fn drop(&mut self) {
        // A file that was taken is still on the disk, and still counted.
        if !self.taken {
            self.gauge.fetch_sub(self.len, Ordering::Relaxed);
            // Best effort: what stays is removed by the next open.
            let _ = self.fs.unlink(&self.path);
        }
    }
}
