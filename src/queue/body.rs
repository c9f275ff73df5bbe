//! Where a body's bytes are, and how they are read back.
//!
//! Owns: one way to read a body, wherever it is. Does not own: what is done with the bytes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::io::Io;
use crate::journal::PayloadHandle;
use crate::journal::fs::{Fs, OpenMode};
use crate::remote::Crc64;

/// Bytes that are read at a time where a body is compared or checksummed.
const CHUNK: usize = 256 * 1024;

/// A body that can be read, more than once and in pieces.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Memory(Bytes),
    Journal(PayloadHandle),
    File {
        fs: Arc<dyn Fs>,
        path: PathBuf,
        len: u64,
    },
}

impl Source {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Journal(payload) => payload.len(),
            Self::File { len, .. } => *len,
        }
    }

    /// The file that it is in, if it has one to itself.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Memory(_) => None,
            Self::Journal(payload) => payload.path(),
            Self::File { path, .. } => Some(path),
        }
    }

    /// Reads `len` bytes at `offset`; blocks unless the body is in memory.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(len);
                if end > bytes.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(bytes.slice(start..end))
            }
            Self::Journal(payload) => payload.read_at(offset, len),
            Self::File { fs, path, .. } => {
                let file = fs.open(path, OpenMode::Read)?;
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.into())
            }
        }
    }

    /// The same for async callers: on an I/O thread unless the body is in memory.
    pub(crate) async fn read(&self, io: &Io, offset: u64, len: usize) -> io::Result<Bytes> {
        if let Self::Memory(_) = self {
            return self.read_at(offset, len);
        }
        let this = self.clone();
        io.run(move || this.read_at(offset, len)).await?
    }

    /// The checksum of all of it; blocks.
    pub(crate) fn checksum(&self) -> io::Result<Crc64> {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        self.chunks(|_, chunk| {
            digest.update(chunk);
            Ok(true)
        })?;
        Ok(Crc64(digest.finalize()))
    }

    /// Whether both have the same bytes; blocks.
    pub(crate) fn same_bytes(&self, other: &Self) -> io::Result<bool> {
        if self.len() != other.len() {
            return Ok(false);
        }
        self.chunks(|offset, chunk| Ok(other.read_at(offset, chunk.len())? == chunk))
    }

    /// The bytes from `offset` on, up to a readable amount; blocks.
    pub(crate) fn next_chunk(&self, offset: u64) -> io::Result<Bytes> {
        let left = usize::try_from(self.len() - offset).unwrap_or(CHUNK);
        self.read_at(offset, left.min(CHUNK))
    }

    fn chunks(&self, mut visit: impl FnMut(u64, &Bytes) -> io::Result<bool>) -> io::Result<bool> {
        let mut offset = 0;
        while offset < self.len() {
            let chunk = self.next_chunk(offset)?;
            if !visit(offset, &chunk)? {
                return Ok(false);
            }
            offset += chunk.len() as u64;
        }
        Ok(true)
    }
}
