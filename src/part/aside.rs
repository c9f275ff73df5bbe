//! Room for images that are set aside for a line.
//!
//! Owns: so much memory, and a local file for the rest, reserved whole before the line is drawn;
//! whoever sets an image aside finds room. The file goes when nobody needs it; one that a crash
//! left goes at the next open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::journal::fs::{Fs, FsFile, OpenMode, if_there};

/// Where an image was put.
#[derive(Debug, Clone)]
pub(crate) enum Aside {
    Memory(Bytes),
    File { at: u64, len: usize },
}

impl Aside {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File { len, .. } => *len,
        }
    }
}

#[derive(Debug)]
struct Spill {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    file: Box<dyn FsFile>,
}

impl Drop for Spill {
    fn drop(&mut self) {
        if let Err(error) = if_there(self.fs.unlink(&self.path)) {
            tracing::debug!(path = %self.path.display(), %error, "stays until the next open");
        }
    }
}

/// Room for the images of one line.
#[derive(Debug)]
pub(crate) struct AsideRoom {
    reserved: u64,
    /// Bytes that may be in memory.
    memory: u64,
    in_memory: AtomicU64,
    in_file: AtomicU64,
    spill: Option<Spill>,
}

impl AsideRoom {
    /// Reserves `bytes`, of which `memory` may be there. Blocks on the disk.
    pub(crate) fn reserve(
        fs: &Arc<dyn Fs>,
        path: &Path,
        bytes: u64,
        memory: u64,
    ) -> io::Result<Self> {
        let mut room = Self {
            reserved: bytes,
            memory,
            in_memory: AtomicU64::new(0),
            in_file: AtomicU64::new(0),
            spill: None,
        };
        if bytes > memory {
            if let Some(dir) = path.parent() {
                fs.create_dir_all(dir)?;
            }
            if_there(fs.unlink(path))?;
            let file = fs.open(path, OpenMode::CreateNew)?;
            let spill = Spill {
                fs: Arc::clone(fs),
                path: path.to_owned(),
                file,
            };
            spill.file.reserve(0, bytes)?;
            room.spill = Some(spill);
        }
        Ok(room)
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Keeps an image.
    pub(crate) fn keep(&self, bytes: Vec<u8>) -> io::Result<Aside> {
        let len = bytes.len() as u64;
        let fits = |used: u64| used.checked_add(len).filter(|used| *used <= self.memory);
        let in_memory = &self.in_memory;
        if in_memory
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
        {
            return Ok(Aside::Memory(bytes.into()));
        }
        let Some(spill) = &self.spill else {
            return Err(io::Error::other("no room was reserved for it"));
        };
        let at = self.in_file.fetch_add(len, Ordering::AcqRel);
        spill.file.write_all_at(&bytes, at)?;
        Ok(Aside::File {
            at,
            len: bytes.len(),
        })
    }

    /// Copies an image out.
    pub(crate) fn read(&self, aside: &Aside, into: &mut [u8]) -> io::Result<()> {
        match (aside, &self.spill) {
            (Aside::Memory(bytes), _) => {
                into.copy_from_slice(bytes);
                Ok(())
            }
            (Aside::File { at, .. }, Some(spill)) => spill.file.read_exact_at(into, *at),
            (Aside::File { .. }, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
