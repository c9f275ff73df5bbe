//! Buckets and objects.
//!
//! Owns: the state, and the one lock under which a write compares and happens. Does not own:
//! multipart uploads (their methods are in [`super::multipart`]), file formats
//! ([`super::disk`]).
//!
//! All methods block: they hash, and they touch the disk.
//!
//! Invariants:
//! 1. Conditions are checked under the same hold of the lock as the write they guard.
//! 2. Everything else that can refuse a write has done so before the lock is taken for it.
//! 3. With a directory, the rename happens under the lock, and the index follows it: what a
//!    request sees is what a restart would find.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::checksum::{self, Algorithm, Claims, Stored};
use super::conditions::{Tag, WriteConditions};
use super::disk::{Content, Disk, OpenContent, read_json};
use super::error::StoreError;
use super::list::{self, Page, Query};
use super::multipart::Upload;

/// Headers that are kept with an object and returned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Headers {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub storage_class: Option<String>,
    pub server_side_encryption: Option<String>,
    pub sse_kms_key_id: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl Headers {
    /// Refuses what S3 refuses.
    pub fn validate(&self) -> Result<(), StoreError> {
        let bytes = self.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > 2048 {
            Err(StoreError::MetadataTooLarge(bytes))
        } else {
            Ok(())
        }
    }
}

/// All of an object but its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ObjectMeta {
    pub key: String,
    /// Without quotes.
    pub etag: String,
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: u64,
    pub headers: Headers,
    pub checksum: Stored,
    /// The upload that it was made by.
    pub upload_id: Option<String>,
}

impl ObjectMeta {
    pub fn modified(&self) -> SystemTime {
        time_of(self.modified_ms)
    }
}

/// An object.
#[derive(Debug)]
pub(super) struct Object {
    pub meta: ObjectMeta,
    pub content: Content,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub created_ms: u64,
    pub objects: BTreeMap<String, Arc<Object>>,
    /// By key and upload id.
    pub uploads: BTreeMap<(String, String), Upload>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BucketMeta {
    created_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub buckets: BTreeMap<String, Bucket>,
}

impl State {
    pub fn bucket(&self, bucket: &str) -> Result<&Bucket, StoreError> {
        self.buckets.get(bucket).ok_or(StoreError::NoSuchBucket)
    }

    pub fn bucket_mut(&mut self, bucket: &str) -> Result<&mut Bucket, StoreError> {
        self.buckets.get_mut(bucket).ok_or(StoreError::NoSuchBucket)
    }
}

/// The storage of one server.
#[derive(Debug)]
pub(super) struct Store {
    pub state: Mutex<State>,
    pub disk: Option<Disk>,
    /// The least size of a part that is not the last, in bytes.
    pub min_part_bytes: u64,
}

/// A body to be stored, and what is claimed about it.
#[derive(Debug)]
pub(super) struct NewBody {
    pub body: Bytes,
    pub claims: Claims,
}

/// What a finished body is kept as.
pub(super) enum Prepared {
    Memory(Bytes),
    Staged(super::disk::Staged),
}

impl Store {
    pub fn in_memory(min_part_bytes: u64) -> Self {
        Self {
            state: Mutex::default(),
            disk: None,
            min_part_bytes,
        }
    }

    /// Opens a directory with all that is in it.
    pub fn in_directory(root: &Path, min_part_bytes: u64) -> io::Result<Self> {
        let disk = Disk::open(root)?;
        let mut state = State::default();
        for name in disk.buckets()? {
            // A bucket without its file was never finished.
            let Ok(meta) = read_json::<BucketMeta>(&disk.bucket(&name).join("bucket.json")) else {
                continue;
            };
            let mut bucket = Bucket {
                created_ms: meta.created_ms,
                ..Bucket::default()
            };
            for (meta, content) in disk.objects::<ObjectMeta>(&name)? {
                bucket
                    .objects
                    .insert(meta.key.clone(), Arc::new(Object { meta, content }));
            }
            super::multipart::load(&disk, &name, &mut bucket)?;
            state.buckets.insert(name, bucket);
        }
        Ok(Self {
            state: Mutex::new(state),
            disk: Some(disk),
            min_part_bytes,
        })
    }

    pub fn create_bucket(&self, name: &str) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.buckets.contains_key(name) {
            return Err(StoreError::BucketAlreadyOwnedByYou);
        }
        let created_ms = now_ms();
        if let Some(disk) = &self.disk {
            let dir = disk.bucket(name);
            fs::create_dir_all(dir.join("objects"))?;
            fs::create_dir_all(dir.join("uploads"))?;
            disk.write_json(&dir.join("bucket.json"), &BucketMeta { created_ms })?;
        }
        state.buckets.insert(
            name.to_owned(),
            Bucket {
                created_ms,
                ..Bucket::default()
            },
        );
        Ok(())
    }

    pub fn delete_bucket(&self, name: &str) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if !state.bucket(name)?.objects.is_empty() {
            return Err(StoreError::BucketNotEmpty);
        }
        if let Some(disk) = &self.disk {
            fs::remove_file(disk.bucket(name).join("bucket.json"))?;
            fs::remove_dir_all(disk.bucket(name))?;
        }
        state.buckets.remove(name);
        Ok(())
    }

    pub fn has_bucket(&self, name: &str) -> bool {
        self.state.lock().buckets.contains_key(name)
    }

    /// Names and times of creation.
    pub fn buckets(&self) -> Vec<(String, SystemTime)> {
        let state = self.state.lock();
        state
            .buckets
            .iter()
            .map(|(n, b)| (n.clone(), time_of(b.created_ms)))
            .collect()
    }

    pub fn put(
        &self,
        bucket: &str,
        key: &str,
        headers: Headers,
        new: NewBody,
        conditions: &WriteConditions,
    ) -> Result<Arc<Object>, StoreError> {
        conditions.validate()?;
        headers.validate()?;
        let NewBody { body, claims } = new;
        let md5 = checksum::md5(&body);
        let checksum = claims.verify(&body, md5, Algorithm::Crc64Nvme)?;
        // Not needed, but spares the disk what would be refused anyway.
        self.check(bucket, key, conditions)?;
        let meta = ObjectMeta {
            key: key.to_owned(),
            etag: checksum::hex(&md5),
            size: body.len() as u64,
            modified_ms: now_ms(),
            headers,
            checksum,
            upload_id: None,
        };
        let prepared = match &self.disk {
            None => Prepared::Memory(body),
            Some(disk) => {
                let mut staging = disk.stage(&meta)?;
                staging.write(&body)?;
                Prepared::Staged(staging.finish())
            }
        };
        self.commit(&mut self.state.lock(), bucket, meta, prepared, conditions)
    }

    fn check(
        &self,
        bucket: &str,
        key: &str,
        conditions: &WriteConditions,
    ) -> Result<(), StoreError> {
        let state = self.state.lock();
        let current = state.bucket(bucket)?.objects.get(key);
        conditions.check(current.map(|o| o.meta.etag.as_str()))
    }

    /// Makes a write happen, under the lock that the caller holds.
    pub fn commit(
        &self,
        state: &mut State,
        bucket_name: &str,
        meta: ObjectMeta,
        prepared: Prepared,
        conditions: &WriteConditions,
    ) -> Result<Arc<Object>, StoreError> {
        let bucket = state.bucket_mut(bucket_name)?;
        conditions.check(bucket.objects.get(&meta.key).map(|o| o.meta.etag.as_str()))?;
        let content = match (prepared, &self.disk) {
            (Prepared::Memory(bytes), _) => Content::Memory(bytes),
            (Prepared::Staged(staged), Some(disk)) => {
                staged.commit(disk.object_path(bucket_name, &meta.key)?)?
            }
            (Prepared::Staged(_), None) => {
                return Err(io::Error::other("a file without a directory").into());
            }
        };
        let object = Arc::new(Object { meta, content });
        bucket
            .objects
            .insert(object.meta.key.clone(), Arc::clone(&object));
        Ok(object)
    }

    /// One version of an object: what it is and its bytes belong together.
    pub fn open(&self, bucket: &str, key: &str) -> Result<(Arc<Object>, OpenContent), StoreError> {
        let state = self.state.lock();
        let object = state
            .bucket(bucket)?
            .objects
            .get(key)
            .ok_or(StoreError::NoSuchKey)?;
        Ok((Arc::clone(object), object.content.open()?))
    }

    /// Removes an object; also `Ok` where it does not exist and there is no condition.
    pub fn delete(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&Tag>,
    ) -> Result<(), StoreError> {
        let conditions = WriteConditions {
            if_match: if_match.cloned(),
            if_none_match: None,
        };
        let mut state = self.state.lock();
        let bucket = state.bucket_mut(bucket)?;
        let current = bucket.objects.get(key);
        conditions.check(current.map(|o| o.meta.etag.as_str()))?;
        if let Some(Content::File { path, .. }) = current.map(|o| &o.content) {
            fs::remove_file(path)?;
        }
        bucket.objects.remove(key);
        Ok(())
    }

    /// Lists objects and hands the page to `with`.
    pub fn list<T>(
        &self,
        bucket: &str,
        query: &Query,
        with: impl FnOnce(Page<'_, Arc<Object>>) -> T,
    ) -> Result<T, StoreError> {
        let state = self.state.lock();
        Ok(with(list::list(&state.bucket(bucket)?.objects, query)))
    }

    /// All objects of a bucket, in byte order of their keys.
    pub fn all(&self, bucket: &str) -> Vec<Arc<Object>> {
        let state = self.state.lock();
        let objects = state.buckets.get(bucket).map(|b| &b.objects);
        objects
            .into_iter()
            .flat_map(|o| o.values())
            .cloned()
            .collect()
    }
}

#[allow(clippy::disallowed_methods, reason = "a server has a clock of its own")]
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn time_of(ms: u64) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once() -> WriteConditions {
        WriteConditions {
            if_match: None,
            if_none_match: Some(Tag::Any),
        }
    }

    fn meta(key: &str, body: &str) -> ObjectMeta {
        ObjectMeta {
            key: key.to_owned(),
            etag: checksum::hex(&checksum::md5(body.as_bytes())),
            size: body.len() as u64,
            modified_ms: 0,
            headers: Headers::default(),
            checksum: Stored {
                algorithm: Algorithm::Crc32,
                value: Algorithm::Crc32.of(body.as_bytes()),
                full_object: true,
            },
            upload_id: None,
        }
    }

    /// Two writers that both passed every check before either of them wrote.
    fn two_at_the_line(store: &Store) {
        store.create_bucket("b").unwrap();
        let prepared = ["first", "second"].map(|body| {
            let meta = meta("k", body);
            store.check("b", "k", &once()).unwrap();
            let prepared = match &store.disk {
                None => Prepared::Memory(Bytes::from_static(body.as_bytes())),
                Some(disk) => {
                    let mut staging = disk.stage(&meta).unwrap();
                    staging.write(body.as_bytes()).unwrap();
                    Prepared::Staged(staging.finish())
                }
            };
            (meta, prepared)
        });
        let results = prepared.map(|(meta, prepared)| {
            store.commit(&mut store.state.lock(), "b", meta, prepared, &once())
        });
        assert!(matches!(
            results,
            [Ok(_), Err(StoreError::PreconditionFailed(_))]
        ));
        let (object, mut content) = store.open("b", "k").unwrap();
        assert_eq!(content.read(0, object.meta.size).unwrap(), "first");
    }

    #[test]
    fn conditions_hold_at_the_instant_of_the_write() {
        two_at_the_line(&Store::in_memory(0));
        let dir = tempfile::tempdir().unwrap();
        two_at_the_line(&Store::in_directory(dir.path(), 0).unwrap());
        let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "what was refused is removed");
    }
}
