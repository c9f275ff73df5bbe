//! Objects, parts and uploads in a directory.
//!
//! Owns: file names and formats. Does not own: what may be written when (that is
//! [`super::store`], under its lock).
//!
//! ```text
//! LOCK                                   held while a server uses the directory
//! tmp/<n>                                being written; removed at open
//! buckets/<bucket>/bucket.json
//! buckets/<bucket>/objects/<hh>/<hash>   one object: magic, header length, header (JSON), bytes
//! buckets/<bucket>/uploads/<id>/upload.json
//! buckets/<bucket>/uploads/<id>/p<number>-<n>   one part, in the same form
//! ```
//!
//! Invariants:
//! 1. A name that a client chooses never becomes part of a path: a key's file is named by the
//!    SHA-256 of the key, and the key itself stands in the header.
//! 2. A file is written aside and renamed: it is there whole or not at all, and one rename is
//!    what makes a write happen. Nothing is synced: a directory survives the process, however
//!    it ends, not the machine.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use s3s::crypto::{Checksum as _, Sha256};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checksum::hex;

const MAGIC: &[u8; 8] = b"S3WBOBJ1";
/// A header is a few KiB at most: metadata is limited to 2 KiB.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// Bytes of an object or a part.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Memory(Bytes),
    File { path: PathBuf, offset: u64 },
}

impl Content {
    /// Opens it, so that it can be read also after its name is gone.
    pub fn open(&self) -> io::Result<OpenContent> {
        Ok(match self {
            Self::Memory(bytes) => OpenContent::Memory(bytes.clone()),
            Self::File { path, offset } => OpenContent::File {
                file: File::open(path)?,
                offset: *offset,
            },
        })
    }
}

/// Opened bytes.
#[derive(Debug)]
pub(super) enum OpenContent {
    Memory(Bytes),
    File { file: File, offset: u64 },
}

impl OpenContent {
    /// Reads `len` bytes from `start`.
    pub fn read(&mut self, start: u64, len: u64) -> io::Result<Bytes> {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(start).map_err(io::Error::other)?;
                let end = start.checked_add(size).filter(|end| *end <= bytes.len());
                match end {
                    Some(end) => Ok(bytes.slice(start..end)),
                    None => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            Self::File { file, offset } => {
                file.seek(SeekFrom::Start(*offset + start))?;
                let mut buffer = vec![0; size];
                file.read_exact(&mut buffer)?;
                Ok(buffer.into())
            }
        }
    }
}

/// A file that is written but has no name yet; removed unless committed.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    offset: u64,
    committed: bool,
}

impl Staged {
    /// Gives it its name, replacing what had it.
    pub fn commit(mut self, path: PathBuf) -> io::Result<Content> {
        fs::rename(&self.path, &path)?;
        self.committed = true;
        Ok(Content::File {
            path,
            offset: self.offset,
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes a staged file bit by bit.
pub(super) struct Staging {
    file: File,
    staged: Staged,
}

impl Staging {
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    pub fn finish(self) -> Staged {
        self.staged
    }
}

/// The directory.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    next: AtomicU64,
    _lock: File,
}

impl Disk {
    /// Opens or makes it.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join("buckets"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("LOCK"))?;
        if let Err(error) = lock.try_lock() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("another server uses {}: {error}", root.display()),
            ));
        }
        let tmp = root.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&tmp)?,
        }
        Ok(Self {
            root: root.to_owned(),
            next: AtomicU64::new(1),
            _lock: lock,
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn bucket(&self, bucket: &str) -> PathBuf {
        self.root.join("buckets").join(bucket)
    }

    /// Where an object lies; makes the directory.
    pub fn object_path(&self, bucket: &str, key: &str) -> io::Result<PathBuf> {
        let name = hex(&Sha256::checksum(key.as_bytes()));
        let dir = self
            .bucket(bucket)
            .join("objects")
            .join(name.get(..2).unwrap_or_default());
        fs::create_dir_all(&dir)?;
        Ok(dir.join(name))
    }

    pub fn upload_dir(&self, bucket: &str, id: &str) -> PathBuf {
        self.bucket(bucket).join("uploads").join(id)
    }

    /// Where a part lies: a new place each time.
    pub fn part_path(&self, bucket: &str, id: &str, part: i32) -> PathBuf {
        self.upload_dir(bucket, id)
            .join(format!("p{part}-{}", self.number()))
    }

    /// Starts a file with this header.
    pub fn stage(&self, header: &impl Serialize) -> io::Result<Staging> {
        let path = self.root.join("tmp").join(self.number().to_string());
        let header = serde_json::to_vec(header).map_err(io::Error::other)?;
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        let file = File::create_new(&path)?;
        let offset = MAGIC.len() as u64 + 4 + u64::from(length);
        let staged = Staged {
            path,
            offset,
            committed: false,
        };
        let mut staging = Staging { file, staged };
        staging.write(MAGIC)?;
        staging.write(&length.to_le_bytes())?;
        staging.write(&header)?;
        Ok(staging)
    }

    /// Writes a file of JSON, whole.
    pub fn write_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        let aside = self.root.join("tmp").join(self.number().to_string());
        fs::write(&aside, serde_json::to_vec(value).map_err(io::Error::other)?)?;
        fs::rename(&aside, path)
    }

    /// The names of all buckets.
    pub fn buckets(&self) -> io::Result<Vec<String>> {
        Ok(entries(&self.root.join("buckets"))?
            .iter()
            .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    /// The headers and bytes of all objects of a bucket.
    pub fn objects<T: DeserializeOwned>(&self, bucket: &str) -> io::Result<Vec<(T, Content)>> {
        let mut objects = Vec::new();
        for dir in entries(&self.bucket(bucket).join("objects"))? {
            for path in entries(&dir)? {
                objects.push(read_header(path)?);
            }
        }
        Ok(objects)
    }

    /// The directories of all uploads of a bucket.
    pub fn uploads(&self, bucket: &str) -> io::Result<Vec<PathBuf>> {
        entries(&self.bucket(bucket).join("uploads"))
    }

    /// The parts in an upload's directory, older versions of one first.
    pub fn parts<T: DeserializeOwned>(&self, upload: &Path) -> io::Result<Vec<(T, Content)>> {
        let mut files = Vec::new();
        for path in entries(upload)? {
            let number = path.file_name().and_then(|n| {
                n.to_str()?
                    .strip_prefix('p')?
                    .split_once('-')?
                    .1
                    .parse::<u64>()
                    .ok()
            });
            if let Some(number) = number {
                self.next.fetch_max(number + 1, Ordering::Relaxed);
                files.push((number, path));
            }
        }
        files.sort();
        files
            .into_iter()
            .map(|(_, path)| read_header(path))
            .collect()
    }
}

/// What lies in a directory; nothing where there is none.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| Ok(e?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Reads a file of JSON.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

fn read_header<T: DeserializeOwned>(path: PathBuf) -> io::Result<(T, Content)> {
    let bad = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {what}", path.display()),
        )
    };
    let mut file = File::open(&path)?;
    let mut start = [0; 12];
    file.read_exact(&mut start).map_err(|_| bad("too short"))?;
    let (magic, length) = start.split_at(8);
    if magic != MAGIC {
        return Err(bad(
            "not a file of this server, or of another version of it",
        ));
    }
    let length = u32::from_le_bytes(length.try_into().map_err(|_| bad("too short"))?);
    if length > MAX_HEADER_BYTES {
        return Err(bad("the header is too long"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|_| bad("too short"))?;
    let header = serde_json::from_slice(&header).map_err(|e| bad(&e.to_string()))?;
    Ok((
        header,
        Content::File {
            path,
            offset: 12 + u64::from(length),
        },
    ))
}
