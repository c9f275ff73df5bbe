//! The file-system seam: every file access of this crate goes through [`Fs`].
//!
//! Owns: the trait and its production implementation. A test's implementation
//! ([`crate::testing`]) fails the Nth call, tears a write, and drops what was never synced.
//!
//! All calls block; callers run them through [`crate::io::Io`]. Directories are made `0700` and
//! files `0600`.

mod os;

use std::fmt;
use std::io;
use std::path::Path;
use std::time::SystemTime;

pub use os::OsFs;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A file that must not exist yet, for reading and writing.
    CreateNew,
}

/// What a file is, to tell whether it is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Length in bytes.
    pub len: u64,
    /// Last modification.
    pub modified: SystemTime,
    /// Inode number.
    pub inode: u64,
    /// Birth time, where the file system keeps one.
    pub created: Option<SystemTime>,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it is a regular file: no directory, device, socket or pipe.
    pub is_file: bool,
}

/// An open file.
pub trait FsFile: Send + Sync + fmt::Debug {
    /// Reads at `offset` until `buffer` is full.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends first.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves room for the first `len` bytes and fills what was not there with zeros.
    fn preallocate(&self, len: u64) -> io::Result<()>;
    /// Gives the blocks of a range back: it reads as zeros, and the file keeps its length.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves blocks for a range, so that writing there does not run out of space. Changes no
    /// byte; the file may become as long as the end of it, where [`punch`](Self::punch) gives the
    /// blocks back.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Ranges (first byte, length) that may have bytes other than zero, in order. Beyond the last
    /// of them, and between them, the file reads as zeros.
    fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>>;
    /// `fdatasync`.
    fn sync_data(&self) -> io::Result<()>;
    /// `fsync`.
    fn sync_all(&self) -> io::Result<()>;
    /// `fstat`.
    fn stat(&self) -> io::Result<Stat>;
    /// Has the first `len` bytes at hand for whoever reads them next. A hint: it changes nothing
    /// but how long that takes.
    fn warm(&self, len: u64) {
        let _ = len;
    }
}

/// What came of a call on a file that need not be there.
pub(crate) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// An advisory lock on a file, released when dropped or when the process ends.
pub trait FsLock: Send + Sync + fmt::Debug {}

/// A file system.
pub trait Fs: Send + Sync + fmt::Debug + 'static {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>>;
    /// Takes an exclusive advisory lock on an existing file; `WouldBlock` where it is taken.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>>;
    /// Creates a directory and its missing parents; fine where it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>>;
    /// `stat`, following links.
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// Atomic rename within a file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Hard link.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// `fsync` of a directory: makes creations, renames and removals in it durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes that may still be written on the file system that holds `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
}
