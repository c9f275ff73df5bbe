//! Opens that did not return: how a loop of crashes in recovery itself is seen.
//!
//! Owns: the file `OPENING`. It is written, and synced, when the lock has been taken and before
//! anything is read; whoever opened the directory says [`done`](Tries::done) when it has recovered,
//! and before anything is sent. Then the file is removed, and so it is where the open ends with an
//! error or is given up: what is left of it is the work of processes that died in between.
//!
//! It is best effort: a disk that takes no file does not keep a journal from opening.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::fs::{Fs, OpenMode};
use super::segment::Layout;

/// Length of the file: a number with spaces before it and a line feed behind.
const BYTES: usize = 11;

/// The file, while an open is under way. It goes when this is dropped, which must be before the
/// directory's lock is given back.
#[derive(Debug)]
pub(super) struct Tries {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    path: PathBuf,
    before: u32,
}

impl Tries {
    /// Counts the open that begins.
    pub(super) fn begin(fs: &Arc<dyn Fs>, layout: &Layout) -> Self {
        let path = layout.dir.join("OPENING");
        let before = read(&**fs, layout);
        let this = Self {
            fs: Arc::clone(fs),
            dir: layout.dir.clone(),
            path,
            before,
        };
        if let Err(error) = this.write(before.saturating_add(1)) {
            tracing::warn!(%error, path = %this.path.display(), "this open is not counted");
        }
        this
    }

    /// Opens in a row, before this one, in which the process died.
    pub(super) const fn before(&self) -> u32 {
        self.before
    }

    fn write(&self, count: u32) -> io::Result<()> {
        let file = match self.fs.open(&self.path, OpenMode::CreateNew) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.fs.open(&self.path, OpenMode::ReadWrite)?
            }
            opened => opened?,
        };
        // In one sector: the old number or the new one.
        file.write_all_at(format!("{count:>10}\n").as_bytes(), 0)?;
        file.sync_all()?;
        self.fs.sync_dir(&self.dir)
    }

    fn remove(&self) -> io::Result<()> {
        self.fs.unlink(&self.path)?;
        // Durably: were it to come back after a power cut, this open would count as one that died.
        self.fs.sync_dir(&self.dir)
    }
}

impl Drop for Tries {
    fn drop(&mut self) {
        match self.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "counts as an open that died");
            }
            _ => (),
        }
    }
}

/// Opens in a row in which the process died, as the directory says. A file that was made and not
/// written is one of them.
pub(super) fn read(fs: &dyn Fs, layout: &Layout) -> u32 {
    let Ok(file) = fs.open(&layout.dir.join("OPENING"), OpenMode::Read) else {
        return 0;
    };
    let mut bytes = [0; BYTES];
    let text = file.read_exact_at(&mut bytes, 0).ok();
    let number = text.and_then(|()| std::str::from_utf8(&bytes).ok()?.trim().parse().ok());
    number.unwrap_or(1)
}
