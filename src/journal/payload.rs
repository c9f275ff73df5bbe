//! Reading back what an owner carries.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::fs::{Fs, FsFile, OpenMode};

/// The bytes of one owner, where they are now. A handle keeps an unlinked segment readable.
#[derive(Debug, Clone)]
pub struct PayloadHandle {
    place: Arc<Place>,
    len: u64,
}

#[derive(Debug)]
enum Place {
    Inline {
        file: Arc<dyn FsFile>,
        offset: u64,
    },
    File {
        fs: Arc<dyn Fs>,
        path: PathBuf,
        open: OnceLock<Box<dyn FsFile>>,
    },
}

impl PayloadHandle {
    pub(super) fn inline(file: Arc<dyn FsFile>, offset: u64, len: u64) -> Self {
        Self {
            place: Arc::new(Place::Inline { file, offset }),
            len,
        }
    }

    pub(super) fn file(fs: Arc<dyn Fs>, path: PathBuf, len: u64) -> Self {
        Self {
            place: Arc::new(Place::File {
                fs,
                path,
                open: OnceLock::new(),
            }),
            len,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the bytes live in a file of their own.
    #[must_use]
    pub fn is_external(&self) -> bool {
        matches!(*self.place, Place::File { .. })
    }

    /// The file, if the bytes live in one of their own.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &*self.place {
            Place::Inline { .. } => None,
            Place::File { path, .. } => Some(path),
        }
    }

    /// Reads `len` bytes at `offset`. Blocks: call it through [`crate::io::Io`].
    ///
    /// # Errors
    /// `UnexpectedEof` past the end; `NotFound` where the file has vanished; what the file
    /// system says. The bytes are not verified here: whoever submitted them has their checksum.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{len} bytes at {offset} of a payload of {}", self.len),
            ));
        }
        let mut buffer = vec![0; len];
        match &*self.place {
            Place::Inline { file, offset: base } => {
                file.read_exact_at(&mut buffer, base + offset)?;
            }
            Place::File { fs, path, open } => {
                let file = match open.get() {
                    Some(file) => file,
                    None => {
                        let file = fs.open(path, OpenMode::Read)?;
                        open.get_or_init(|| file)
                    }
                };
                file.read_exact_at(&mut buffer, offset)?;
            }
        }
        Ok(Bytes::from(buffer))
    }
}
