//! Whose directory this is.
//!
//! Owns: `LOCK` (an flock, with who holds it as information) and `IDENTITY` (the journal's random
//! id and which `LOCK` it was made beside). A copy of a directory has another `LOCK` inode: it is
//! *moved*, and whoever owns the journal sends nothing until it was adopted.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::JournalError;
use super::frame::crc32c;
use super::fs::{Fs, FsLock, OpenMode, Stat};
use super::segment::{Layout, OLDEST_VERSION, VERSION};

const MAGIC: &[u8; 8] = b"S3WBJRNL";
const BYTES: usize = 64;
const COVERED: usize = 60;
/// Bytes of `LOCK`: fixed, so that it is rewritten in place.
const LOCK_BYTES: usize = 256;

/// What `IDENTITY` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub journal: u128,
    pub lock_inode: u64,
    /// `LOCK`'s birth time since the Unix epoch; zero where the file system keeps none.
    pub lock_born: Duration,
}

impl Identity {
    pub(super) fn new(journal: u128, lock: &Stat) -> Self {
        let born = lock
            .created
            .and_then(|at: SystemTime| at.duration_since(UNIX_EPOCH).ok());
        Self {
            journal,
            lock_inode: lock.inode,
            lock_born: born.unwrap_or_default(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&OLDEST_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.journal.to_le_bytes());
        out[32..40].copy_from_slice(&self.lock_inode.to_le_bytes());
        out[40..48].copy_from_slice(&self.lock_born.as_secs().to_le_bytes());
        out[48..52].copy_from_slice(&self.lock_born.subsec_nanos().to_le_bytes());
        let crc = crc32c(&out[..COVERED]);
        out[COVERED..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` where the bytes are not an identity; an error where it is of an unknown version.
    fn decode(bytes: &[u8], path: &Path) -> Result<Option<Self>, JournalError> {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes.len() != BYTES
            || &bytes[..8] != MAGIC
            || crc32c(&bytes[..COVERED]) != word(COVERED)
        {
            return Ok(None);
        }
        let (found, min_reader) = (word(8), word(12));
        if found < OLDEST_VERSION || min_reader > VERSION {
            return Err(JournalError::Version {
                path: path.to_path_buf(),
                found,
                min_reader,
                oldest: OLDEST_VERSION,
                newest: VERSION,
            });
        }
        Ok(Some(Self {
            journal: u128::from(long(16)) | u128::from(long(24)) << 64,
            lock_inode: long(32),
            lock_born: Duration::new(long(40), word(48).min(999_999_999)),
        }))
    }
}

/// Reads `IDENTITY`; `None` where there is none, or it cannot be made out.
pub(super) fn read(fs: &dyn Fs, layout: &Layout) -> Result<Option<Identity>, JournalError> {
    let path = &layout.identity;
    let failed = |error| JournalError::io("reading", path, error);
    let file = match fs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if file.stat().map_err(failed)?.len != BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Identity::decode(&bytes, path)
}

/// Writes `IDENTITY`: aside, synced, renamed, synced.
pub(super) fn write(fs: &dyn Fs, layout: &Layout, identity: &Identity) -> Result<(), JournalError> {
    let aside = layout.dir.join("IDENTITY.new");
    let failed = |error| JournalError::io("writing", &layout.identity, error);
    match fs.unlink(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = fs.open(&aside, OpenMode::CreateNew).map_err(failed)?;
    file.write_all_at(&identity.encode(), 0).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs.rename(&aside, &layout.identity).map_err(failed)?;
    fs.sync_dir(&layout.dir).map_err(|error| {
        // A name whose fsync failed may be seen and yet not be there after a power cut.
        let _ = fs.unlink(&layout.identity);
        failed(error)
    })
}

/// Who is written in `LOCK`. Information only.
pub(super) fn holder(fs: &dyn Fs, layout: &Layout) -> Option<String> {
    let file = fs.open(&layout.lock, OpenMode::Read).ok()?;
    let len = file.stat().ok()?.len.min(LOCK_BYTES as u64);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Takes the lock, making the file where it is missing.
pub(super) fn lock(fs: &dyn Fs, layout: &Layout) -> Result<Box<dyn FsLock>, JournalError> {
    let failed = |error| JournalError::io("locking", &layout.lock, error);
    match fs.open(&layout.lock, OpenMode::CreateNew) {
        // Durable before `IDENTITY` speaks of it: else a power cut would make it look moved.
        Ok(_) => fs.sync_dir(&layout.dir).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    match fs.lock(&layout.lock) {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(JournalError::Locked {
            path: layout.lock.clone(),
            holder: holder(fs, layout).unwrap_or_else(|| "an unnamed process".into()),
        }),
        Err(error) => Err(failed(error)),
    }
}

/// Writes who holds the lock into it. Not synced, and best effort: it is information.
pub(super) fn sign(fs: &dyn Fs, layout: &Layout, holder: Option<&str>) {
    let text = holder.map_or_else(this_process, str::to_owned);
    let mut end = text.len().min(LOCK_BYTES - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = text.as_bytes()[..end].to_vec();
    bytes.resize(LOCK_BYTES - 1, b' ');
    bytes.push(b'\n');
    if let Ok(file) = fs.open(&layout.lock, OpenMode::ReadWrite) {
        let _ = file.write_all_at(&bytes, 0);
    }
}

pub(crate) fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned());
    format!("process {} on host {host}", std::process::id())
}
