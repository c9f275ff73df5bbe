//! A checkpoint that is read by whoever likes to, without a directory.
//!
//! Owns: a cache of what was read, and that the pin lives as long as somebody reads. Does not own:
//! the pin (`pin.rs`), or what a checkpoint consists of (`reader.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::op::Op;
use crate::part::header::{Address, PAGE};
use crate::part::id::FileId;
use crate::runtime::{Driver, Runtime};
use crate::sync::Mutex;

use super::Checkpoint;
use super::head::Listed;
use super::manifest::FileEntry;
use super::pin::{Held, choose};
use super::reader::{self, Reader};
use super::request::Requests;

/// What was read lately, up to so many bytes.
#[derive(Debug)]
struct Cache {
    most: usize,
    bytes: usize,
    clock: u64,
    /// By file and part: when it was used last, and its bytes.
    parts: BTreeMap<(u64, u32), (u64, Bytes)>,
    by_use: BTreeMap<u64, (u64, u32)>,
}

impl Cache {
    fn get(&mut self, key: (u64, u32)) -> Option<Bytes> {
        self.clock += 1;
        let now = self.clock;
        let (used, bytes) = self.parts.get_mut(&key)?;
        self.by_use.remove(used);
        *used = now;
        self.by_use.insert(now, key);
        Some(bytes.clone())
    }

    fn put(&mut self, key: (u64, u32), bytes: &Bytes) {
        if bytes.len() > self.most || self.parts.contains_key(&key) {
            return;
        }
        self.clock += 1;
        self.bytes += bytes.len();
        self.parts.insert(key, (self.clock, bytes.clone()));
        self.by_use.insert(self.clock, key);
        while self.bytes > self.most {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            if let Some((_, gone)) = self.parts.remove(&oldest) {
                self.bytes -= gone.len();
            }
        }
    }
}

/// Parts of a page, and where their images are.
type PageParts = Arc<BTreeMap<u32, Address>>;

#[derive(Debug)]
struct Inner {
    requests: Requests,
    listed: Listed,
    checkpoint: Checkpoint,
    epochs: Vec<(u32, u64)>,
    files: BTreeMap<u64, FileEntry>,
    pages: tokio::sync::Mutex<BTreeMap<(u64, u32), PageParts>>,
    cache: Mutex<Cache>,
    pin: Held,
    ttl: Duration,
    renewed: tokio::sync::Mutex<Instant>,
    deadline: Duration,
    driver: Driver,
    _runtime: Arc<Runtime>,
}

/// Headers' pages that are kept: each is at most some 24 KiB.
const MAX_PAGES: usize = 1024;

/// A checkpoint that is read, and kept meanwhile.
///
/// Clones read the same one. Its pin goes with [`close`](Self::close), or `pin_ttl` after the last
/// read.
#[derive(Debug, Clone)]
pub struct ReadOnly {
    inner: Arc<Inner>,
}

/// What a reader is opened with.
pub(crate) struct OpenReader {
    pub requests: Requests,
    pub number: Option<u64>,
    pub cache_bytes: u64,
    pub ttl: Duration,
    pub deadline: Duration,
    pub driver: Driver,
    pub runtime: Arc<Runtime>,
}

impl ReadOnly {
    pub(crate) async fn open(with: OpenReader) -> Result<Self> {
        let OpenReader {
            requests,
            number,
            cache_bytes,
            ttl,
            deadline,
            driver,
            runtime,
        } = with;
        let until = Instant::now() + deadline;
        let listed = choose(&requests, number, until).await?;
        let (pin, again) = Held::pin(&requests, &listed, ttl, until).await?;
        let opened = async {
            if again != listed {
                return Err(Error::NoSuchCheckpoint {
                    number: Some(listed.number),
                    listed: vec![again.number],
                });
            }
            let manifest = reader::manifest(&requests, &listed, until).await?;
            let reader = Reader::new(requests.clone(), manifest.epochs.clone(), until);
            let files = reader.files(manifest.tree).await?;
            Ok((manifest, files))
        };
        let (manifest, files) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                pin.give_back(until).await;
                return Err(error);
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                checkpoint: Checkpoint::of(&manifest),
                requests,
                listed,
                epochs: manifest.epochs,
                files: files.into_iter().map(|file| (file.id, file)).collect(),
                pages: tokio::sync::Mutex::new(BTreeMap::new()),
                cache: Mutex::new(Cache {
                    most: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
                    bytes: 0,
                    clock: 0,
                    parts: BTreeMap::new(),
                    by_use: BTreeMap::new(),
                }),
                pin,
                ttl,
                renewed: tokio::sync::Mutex::new(Instant::now()),
                deadline,
                driver,
                _runtime: runtime,
            }),
        })
    }

    /// The checkpoint that is read.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.inner.checkpoint
    }

    /// Its files, in order.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.inner.files.keys().map(|id| FileId(*id)).collect()
    }

    /// Length of a file, in bytes.
    ///
    /// # Errors
    /// [`Error::UnknownFile`].
    pub fn len(&self, file: FileId) -> Result<u64> {
        Ok(self.inner.file(file)?.len)
    }

    /// Whether the checkpoint has no files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.files.is_empty()
    }

    /// `len` bytes of a file, from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::UnknownFile`], [`Error::PastEnd`]; [`Error::ObjectMissing`],
    /// [`Error::ObjectDamaged`]; [`Error::Remote`]; [`Error::NoSuchCheckpoint`] where nothing was
    /// read for longer than the pin lives, and the checkpoint has gone.
    ///
    /// # Cancel safety
    /// Leaves no trace but in the cache.
    pub fn read(&self, file: FileId, offset: u64, len: usize) -> Op<Bytes> {
        let inner = Arc::clone(&self.inner);
        let work = async move { inner.read(file, offset, len).await };
        Op::new(&self.inner.driver, self.inner.deadline, work, || {
            Error::WouldWait("a read from S3")
        })
    }

    /// Gives the checkpoint back.
    ///
    /// # Errors
    /// [`Error::Remote`]: then the pin goes when it expires.
    pub fn close(self) -> Op<()> {
        let inner = Arc::clone(&self.inner);
        let driver = inner.driver.clone();
        let deadline = inner.deadline;
        let work = async move {
            let until = Instant::now() + deadline;
            inner.pin.delete(until).await
        };
        Op::new(&driver, deadline, work, || Error::WouldWait("S3"))
    }
}

impl Inner {
    fn file(&self, file: FileId) -> Result<&FileEntry> {
        self.files.get(&file.0).ok_or(Error::UnknownFile { file })
    }

    /// Renews the pin, where half of its life is over.
    async fn renew(&self, until: Instant) -> Result<()> {
        let mut renewed = self.renewed.lock().await;
        let age = renewed.elapsed();
        if age * 2 < self.ttl {
            return Ok(());
        }
        self.pin.put(&self.listed, self.ttl, until).await?;
        if age >= self.ttl {
            // It may have been taken for nobody's meanwhile.
            choose(&self.requests, Some(self.listed.number), until).await?;
        }
        *renewed = Instant::now();
        Ok(())
    }

    async fn read(&self, id: FileId, offset: u64, len: usize) -> Result<Bytes> {
        let until = Instant::now() + self.deadline;
        let file = self.file(id)?;
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > file.len) {
            return Err(Error::PastEnd {
                file: id,
                from: offset,
                len: len as u64,
                size: file.len,
            });
        }
        self.renew(until).await?;
        let each = u64::from(file.part_bytes.max(1));
        let mut into = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let index = u32::try_from(at / each).unwrap_or(u32::MAX);
            let from = usize::try_from(at % each).unwrap_or(0);
            let run = (len - done).min(file.part_bytes as usize - from);
            let image = self.image(file, index, until).await?;
            // What the image does not have is zeros.
            if let Some(have) = image.get(from..) {
                let have = &have[..have.len().min(run)];
                into[done..done + have.len()].copy_from_slice(have);
            }
            done += run;
        }
        Ok(into.into())
    }

    async fn image(&self, file: &FileEntry, index: u32, until: Instant) -> Result<Bytes> {
        let key = (file.id, index);
        if let Some(bytes) = self.cache.lock().get(key) {
            return Ok(bytes);
        }
        let reader = Reader::new(self.requests.clone(), self.epochs.clone(), until);
        let page = self.page(&reader, file, index / PAGE).await?;
        let Some(address) = page.get(&index) else {
            return Ok(Bytes::new());
        };
        let bytes = reader.image(*address).await?;
        self.cache.lock().put(key, &bytes);
        Ok(bytes)
    }

    async fn page(&self, reader: &Reader, file: &FileEntry, number: u32) -> Result<PageParts> {
        let mut pages = self.pages.lock().await;
        if let Some(page) = pages.get(&(file.id, number)) {
            return Ok(Arc::clone(page));
        }
        let all = reader.pages(&file.pages).await?;
        let parts = match all.iter().find(|(page, _)| *page == number) {
            Some((_, address)) => reader.page(*address).await?.parts(number).collect(),
            None => BTreeMap::new(),
        };
        if pages.len() >= MAX_PAGES {
            pages.pop_first();
        }
        let parts = Arc::new(parts);
        pages.insert((file.id, number), Arc::clone(&parts));
        Ok(parts)
    }
}
