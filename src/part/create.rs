//! Files that come.
//!
//! Owns: that two who create a file at one time get one, and in which order its local file, its
//! record and its name come. Does not own: how many there may be (`mod.rs`), or how they go
//! (`length.rs`).

use std::sync::Arc;

use crate::error::{Error, Limit, Result};
use crate::journal::fs::OpenMode;
use crate::journal::{Append, Payload};

use super::Parts;
use super::config::{MAX_PART_BYTES, MIN_PART_BYTES};
use super::file::{Made, PartFile};
use super::id::FileId;
use super::record::{FileRecord, encode, kind};

impl Parts {
    /// Creates a file.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: FileId,
        part_bytes: u32,
    ) -> Result<Arc<PartFile>> {
        self.check_writes(None)?;
        self.check_part_bytes(part_bytes)?;
        let token = self.random.u64();
        let path = self.path_of(id, token);
        let reserved = self.reserve_name(id)?;
        let (parts, made) = (Arc::clone(self), path.clone());
        let disk = self
            .io
            .run(move || {
                let disk = parts.fs.open(&made, OpenMode::CreateNew)?;
                parts.fs.sync_dir(&parts.parts_dir())?;
                Ok::<_, std::io::Error>(disk)
            })
            .await
            .and_then(|disk| disk);
        let record = FileRecord {
            id: id.0,
            part_bytes,
            token,
        };
        let append = Append::begin(kind::FILE, encode(&record), Payload::None);
        let begun = match disk {
            Ok(disk) => self.begin_file(append, |incarnation| {
                let made = Made {
                    no: reserved.no,
                    token,
                    id,
                    incarnation,
                    part_bytes,
                    path: path.clone(),
                    disk,
                };
                reserved.fill(made)
            }),
            Err(error) => Err(Error::directory(&path, &error)),
        };
        let file = match begun {
            Ok(file) => file,
            Err(error) => {
                self.unlink(vec![path]).await;
                return Err(error);
            }
        };
        let incarnation = file.incarnation;
        match self.journal.wait_durable(incarnation).await {
            Ok(()) => Ok(file),
            Err(error) => {
                self.forget(&file);
                Err(error.into())
            }
        }
    }

    /// Puts a file on record and into the table, between two lines: as soon as it is on its way to
    /// the disk, who leaves leaves a file.
    fn begin_file(
        &self,
        record: Append,
        fill: impl FnOnce(u64) -> Arc<PartFile>,
    ) -> Result<Arc<PartFile>> {
        let _gate = self.line.between();
        let incarnation = self.journal.append(record)?;
        Ok(fill(incarnation))
    }

    /// A file, created where it does not exist; whoever else is creating it meanwhile.
    pub(crate) async fn create_or_open(
        self: &Arc<Self>,
        id: FileId,
        part_bytes: u32,
    ) -> Result<Arc<PartFile>> {
        loop {
            if let Ok(file) = self.file(id) {
                if file.part_bytes != part_bytes {
                    return Err(Error::InvalidInput {
                        what: "part size",
                        value: format!("{part_bytes} bytes"),
                        limit: format!("file {id} has parts of {} bytes", file.part_bytes),
                    });
                }
                // Whoever created it may not have stayed for that.
                self.created(&file).await?;
                return Ok(file);
            }
            match self.create(id, part_bytes).await {
                Err(Error::FileExists { .. }) => self.named(id).await,
                created => return created,
            }
        }
    }

    /// Waits until the record that began a file is durable.
    pub(crate) async fn created(&self, file: &PartFile) -> Result<()> {
        Ok(self.journal.wait_durable(file.incarnation).await?)
    }

    pub(crate) fn check_part_bytes(&self, part_bytes: u32) -> Result<()> {
        let most = self.config.max_part_bytes();
        let fits = part_bytes.is_power_of_two()
            && (MIN_PART_BYTES..=MAX_PART_BYTES).contains(&part_bytes)
            && u64::from(part_bytes) <= most;
        if fits {
            return Ok(());
        }
        Err(Error::InvalidInput {
            what: "part size",
            value: format!("{part_bytes} bytes"),
            limit: format!(
                "a power of two from {MIN_PART_BYTES} to {MAX_PART_BYTES}, and at most {most}, \
                 the least of cache_bytes, checkpoint_cache_bytes, dirty_bytes and image_bytes"
            ),
        })
    }
}

/// A name that nobody else takes meanwhile.
pub(crate) struct Reserved {
    pub parts: Arc<Parts>,
    pub id: FileId,
    pub no: u32,
    pub filled: bool,
}

impl Reserved {
    fn fill(mut self, made: Made) -> Arc<PartFile> {
        self.filled = true;
        let file = Arc::new(PartFile::new(made));
        file.born_behind(self.parts.line.drawn());
        self.parts.file_changed(&file);
        self.parts.insert(&file);
        Arc::clone(&file)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.filled {
            self.parts.unreserve(self.id);
        }
    }
}

/// As many files as there may be.
pub(crate) fn too_many(current: u64, max: u64) -> Error {
    Error::QueueFull {
        limit: Limit::Files,
        current,
        max,
        retry_after: std::time::Duration::from_secs(1),
    }
}
