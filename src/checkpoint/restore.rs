//! Restoring a checkpoint into an empty directory.
//!
//! Owns: the order of it, and that a directory that is half restored is not taken for a store.
//! Does not own: what the directory has in it afterwards ([`crate::part::seed`]).
//!
//! 1. The directory is marked before anything else is in it, and the mark goes last, durably: a
//!    marked one is refused by an open, and finished by a restore of the same checkpoint.
//! 2. Without bytes it is a store whose parts are all in S3: they are loaded when they are used.
//!    With bytes they are put into the local files, and checked when they are used first; what an
//!    unfinished restore got is kept.
//! 3. Nothing in S3 is changed: whoever opens the directory claims the prefix, and says that it is
//!    to be taken over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::fs::{Fs, OpenMode, if_there};
use crate::journal::{Journal, JournalOptions};
use crate::part::header::{Address, crc32c};
use crate::part::id::FileId;
use crate::part::seed::{Seed, seed_epochs, seed_file};

use super::Checkpoint;
use super::frame::Object;
use super::head::Listed;
use super::manifest::{FileEntry, Manifest};
use super::pin::Held;
use super::reader::{self, Reader};
use super::request::Requests;
use super::run::{Run, runs};
use super::stand::{Base, Stand, Stands};

/// The name of the mark, and of one that is being made.
const MARK: &str = "RESTORE";
const NEW_MARK: &str = "RESTORE.new";
/// Reads at one time.
const AHEAD: usize = 8;

/// What to restore, and how.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Restore {
    /// The checkpoint's number; `None`: the latest.
    pub checkpoint: Option<u64>,
    /// Whether the bytes of all parts are fetched now. Otherwise each is loaded when it is used
    /// first. Default `false`.
    pub with_bytes: bool,
    /// Told now and then how far it is; must not block.
    pub progress: Option<Arc<dyn Fn(RestoreProgress) + Send + Sync>>,
}

impl std::fmt::Debug for Restore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restore")
            .field("checkpoint", &self.checkpoint)
            .field("with_bytes", &self.with_bytes)
            .finish_non_exhaustive()
    }
}

impl Restore {
    /// The latest checkpoint, loaded as it is used.
    #[must_use]
    pub fn latest() -> Self {
        Self::default()
    }

    /// The checkpoint of this number.
    #[must_use]
    pub fn number(number: u64) -> Self {
        Self {
            checkpoint: Some(number),
            ..Self::default()
        }
    }

    /// With the bytes of all parts.
    #[must_use]
    pub fn with_bytes(self) -> Self {
        Self {
            with_bytes: true,
            ..self
        }
    }

    /// Tells how far it is.
    #[must_use]
    pub fn progress(self, tell: impl Fn(RestoreProgress) + Send + Sync + 'static) -> Self {
        Self {
            progress: Some(Arc::new(tell)),
            ..self
        }
    }
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RestoreProgress {
    /// Files whose headers are here, of how many.
    pub files: u64,
    /// All of them.
    pub files_in_all: u64,
    /// Bytes of parts that are here.
    pub bytes: u64,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// The checkpoint, with what the engine gave it.
    pub checkpoint: Checkpoint,
    /// Images of parts.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were fetched now; the others are loaded when they are used, or were here.
    pub fetched_bytes: u64,
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    listed: Listed,
}

/// Where a restore goes.
pub(crate) struct Target {
    pub requests: Requests,
    pub fs: Arc<dyn Fs>,
    pub io: Io,
    pub dir: PathBuf,
    pub options: JournalOptions,
    /// Of the store that will be opened on it.
    pub max_part_bytes: u64,
    pub until: Instant,
}

/// Refuses a directory that is half restored. Blocks on the disk.
pub(crate) fn refuse_marked(fs: &dyn Fs, dir: &Path) -> Result<()> {
    match read_mark(fs, dir)? {
        None => Ok(()),
        Some(mark) => Err(Error::RestoreUnfinished {
            path: dir.to_owned(),
            number: mark.listed.number,
        }),
    }
}

/// The checkpoint that a directory is being restored from, if that was begun and not ended.
pub(crate) fn unfinished(fs: &dyn Fs, dir: &Path) -> Result<Option<u64>> {
    Ok(read_mark(fs, dir)?.map(|mark| mark.listed.number))
}

fn read_mark(fs: &dyn Fs, dir: &Path) -> Result<Option<Mark>> {
    let path = dir.join(MARK);
    let failed = |error: &std::io::Error| Error::directory(&path, error);
    let Some(file) = if_there(fs.open(&path, OpenMode::Read)).map_err(|e| failed(&e))? else {
        return Ok(None);
    };
    let len = file.stat().map_err(|e| failed(&e))?.len;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(|e| failed(&e))?;
    match Object::Mark.open(&path.display().to_string(), &bytes) {
        Ok(mark) => Ok(Some(mark)),
        // Cut short by a crash: whatever it was, nothing else is here yet.
        Err(Error::ObjectDamaged { .. }) => Ok(Some(Mark {
            listed: Listed {
                number: 0,
                epoch: 0,
                write_id: 0,
                unix_ms: 0,
            },
        })),
        Err(error) => Err(error),
    }
}

/// Makes the directory ready, and marks it. Blocks on the disk.
fn prepare(fs: &dyn Fs, dir: &Path, mark: &Mark) -> Result<()> {
    let failed = |path: &Path, error: &std::io::Error| Error::directory(path, error);
    let here = if_there(fs.read_dir(dir)).map_err(|e| failed(dir, &e))?;
    let mut here = here.unwrap_or_default();
    // A mark that was not named yet marks nothing.
    here.retain(|name| name != NEW_MARK);
    if !here.is_empty() {
        match read_mark(fs, dir)? {
            None => {
                return Err(Error::NotEmpty {
                    path: dir.to_owned(),
                });
            }
            Some(old) if old.listed.number != 0 && old != *mark => {
                return Err(Error::RestoreUnfinished {
                    path: dir.to_owned(),
                    number: old.listed.number,
                });
            }
            Some(_) => {}
        }
        // All but the bytes of parts is made anew.
        for name in ["segments", "spare", "payload", "staging", "headers"] {
            let sub = dir.join(name);
            let names = if_there(fs.read_dir(&sub)).map_err(|e| failed(&sub, &e))?;
            for name in names.unwrap_or_default() {
                let path = sub.join(name);
                fs.unlink(&path).map_err(|e| failed(&path, &e))?;
            }
        }
        let identity = dir.join("IDENTITY");
        if_there(fs.unlink(&identity)).map_err(|e| failed(&identity, &e))?;
    }
    fs.create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    let (path, beside) = (dir.join(MARK), dir.join(NEW_MARK));
    let written = (|| {
        if_there(fs.unlink(&beside))?;
        let file = fs.open(&beside, OpenMode::CreateNew)?;
        file.write_all_at(&Object::Mark.seal(mark), 0)?;
        file.sync_all()?;
        fs.rename(&beside, &path)?;
        fs.sync_dir(dir)?;
        for sub in ["parts", "headers"] {
            fs.create_dir_all(&dir.join(sub))?;
        }
        fs.sync_dir(dir)
    })();
    written.map_err(|error| failed(&path, &error))
}

impl Target {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<dyn Fs>, &Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (fs, dir) = (Arc::clone(&self.fs), self.dir.clone());
        let done = self.io.run(move || work(&fs, &dir)).await;
        done.map_err(|error| Error::directory(&self.dir, &error))?
    }

    /// Restores.
    pub(crate) async fn restore(
        &self,
        what: &Restore,
        run: impl FnOnce(Journal),
    ) -> Result<Restored> {
        let (pin, listed) = Held::take(&self.requests, what.checkpoint, self.until).await?;
        let restored = self.restore_listed(what, listed, run).await;
        pin.give_back(self.until).await;
        restored
    }

    async fn restore_listed(
        &self,
        what: &Restore,
        listed: Listed,
        run: impl FnOnce(Journal),
    ) -> Result<Restored> {
        let manifest = reader::manifest(&self.requests, &listed, self.until).await?;
        let reader = Reader::new(self.requests.clone(), manifest.epochs.clone(), self.until);
        let files = reader.files(manifest.tree).await?;
        for file in &files {
            if u64::from(file.part_bytes) > self.max_part_bytes {
                return Err(Error::InvalidInput {
                    what: "part size",
                    value: format!("{} bytes, of file {}", file.part_bytes, FileId(file.id)),
                    limit: format!(
                        "a store of this configuration has parts of at most {}",
                        self.max_part_bytes
                    ),
                });
            }
        }
        let mark = Mark {
            listed: listed.clone(),
        };
        self.blocking(move |fs, dir| prepare(&**fs, dir, &mark))
            .await?;
        let mut restored = Restored {
            checkpoint: Checkpoint::of(&manifest),
            parts: 0,
            bytes: 0,
            fetched_bytes: 0,
        };
        let (fs, io, options) = (Arc::clone(&self.fs), self.io.clone(), self.options.clone());
        let open = move || Journal::open_lean(fs, io, options, &|_, _| 0);
        let opened = self.io.run(open).await;
        let opened = opened.map_err(|error| Error::directory(&self.dir, &error))?;
        let (journal, _) = opened?;
        run(journal.clone());
        let stood = async {
            let last = self
                .fill(what, &journal, &reader, &manifest, files, &mut restored)
                .await?;
            // All of it, before anything says that it is there.
            journal.flush().await?;
            self.stand(&journal, listed, &manifest, last).await
        };
        let stood = stood.await;
        let sealed = journal.seal().await;
        stood?;
        sealed?;
        self.blocking(|fs, dir| {
            let mark = dir.join(MARK);
            let gone = fs.unlink(&mark).and_then(|()| fs.sync_dir(dir));
            gone.map_err(|error| Error::directory(&mark, &error))
        })
        .await?;
        Ok(restored)
    }

    /// The files, one after another; the location of the last of their records.
    async fn fill(
        &self,
        what: &Restore,
        journal: &Journal,
        reader: &Reader,
        manifest: &Manifest,
        files: Vec<FileEntry>,
        restored: &mut Restored,
    ) -> Result<u64> {
        seed_epochs(journal, &manifest.epochs)?;
        let mut progress = RestoreProgress {
            files_in_all: files.len() as u64,
            ..RestoreProgress::default()
        };
        let mut last = 0;
        for file in files {
            let entries = reader.parts(&file.pages).await?;
            restored.parts += entries.len() as u64;
            let bytes = entries.iter().map(|(_, address)| u64::from(address.len));
            restored.bytes += bytes.sum::<u64>();
            if what.with_bytes {
                restored.fetched_bytes += self.fetch(reader, &file, &entries).await?;
            }
            let seed = Seed {
                id: FileId(file.id),
                token: file.token,
                part_bytes: file.part_bytes,
                len: file.len,
                entries,
            };
            let (journal, epochs) = (journal.clone(), manifest.epochs.clone());
            last = self
                .blocking(move |fs, dir| seed_file(&journal, fs, dir, &epochs, seed))
                .await?;
            progress.files += 1;
            progress.bytes = restored.bytes;
            if let Some(tell) = &what.progress {
                tell(progress);
            }
        }
        self.blocking(|fs, dir| {
            let parts = dir.join("parts");
            let synced = fs.sync_dir(&parts).and_then(|()| fs.sync_dir(dir));
            synced.map_err(|error| Error::directory(&parts, &error))
        })
        .await?;
        Ok(last)
    }

    /// Puts the bytes of a file's parts where they are looked for; how many were not there.
    async fn fetch(
        &self,
        reader: &Reader,
        file: &FileEntry,
        entries: &[(u32, Address)],
    ) -> Result<u64> {
        let (id, token, each) = (FileId(file.id), file.token, u64::from(file.part_bytes));
        let wanted = entries.to_vec();
        let (disk, missing) = self
            .blocking(move |fs, dir| {
                let path = crate::part::part_path(dir, id, token);
                let opened = (|| {
                    let Some(disk) = if_there(fs.open(&path, OpenMode::ReadWrite))? else {
                        return Ok((fs.open(&path, OpenMode::CreateNew)?, wanted));
                    };
                    let mut missing = Vec::new();
                    for (index, address) in wanted {
                        let mut here = vec![0; address.len as usize];
                        let read = disk.read_exact_at(&mut here, u64::from(index) * each);
                        if read.is_err() || crc32c(&here) != address.crc {
                            missing.push((index, address));
                        }
                    }
                    Ok::<_, std::io::Error>((disk, missing))
                })();
                opened.map_err(|error| Error::directory(&path, &error))
            })
            .await?;
        let disk: Arc<dyn crate::journal::fs::FsFile> = Arc::from(disk);
        let fetched = AtomicU64::new(0);
        let put = |run: Run| {
            let (disk, fetched) = (Arc::clone(&disk), &fetched);
            async move {
                for (index, address, bytes) in reader.run(run).await {
                    let bytes = bytes?;
                    let on = Arc::clone(&disk);
                    let at = u64::from(index) * each;
                    self.blocking(move |_, dir| {
                        let written = on.write_all_at(&bytes, at);
                        written.map_err(|error| Error::directory(dir, &error))
                    })
                    .await?;
                    fetched.fetch_add(u64::from(address.len), Ordering::Relaxed);
                }
                Ok::<_, Error>(())
            }
        };
        let mut all = futures::stream::iter(runs(missing))
            .map(put)
            .buffer_unordered(AHEAD);
        while let Some(done) = all.next().await {
            done?;
        }
        drop(all);
        self.blocking(move |_, dir| {
            let synced = disk.sync_all();
            synced.map_err(|error| Error::directory(dir, &error))
        })
        .await?;
        Ok(fetched.into_inner())
    }

    /// What the directory stands on.
    async fn stand(
        &self,
        journal: &Journal,
        listed: Listed,
        manifest: &Manifest,
        last: u64,
    ) -> Result<()> {
        let stand = Stand {
            base: Some(Base { listed, upto: last }),
            stranded: manifest.stranded.clone(),
            ..Stand::default()
        };
        Stands::new(None)?.change(journal, |now| *now = stand).await
    }
}
