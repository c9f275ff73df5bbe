//! Multipart uploads.
//!
//! Owns: uploads and their parts, and what completing one requires. Does not own: making the
//! object (that is [`Store::commit`]).
//!
//! Invariants:
//! 1. A refused completion changes nothing: the upload and its parts stay.
//! 2. Of completions of one upload at one time at most one succeeds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::checksum::{self, Algorithm, Stored};
use super::conditions::WriteConditions;
use super::disk::{Content, Disk, read_json};
use super::error::StoreError;
use super::store::{Bucket, Headers, NewBody, Object, ObjectMeta, Prepared, Store, now_ms};

/// How many bytes of a part are copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// The highest part number.
pub(super) const MAX_PART: i32 = 10_000;

/// All of an upload but its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct UploadMeta {
    pub key: String,
    pub id: String,
    pub headers: Headers,
    pub algorithm: Algorithm,
    pub full_object: bool,
    pub initiated_ms: u64,
}

/// All of a part but its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PartMeta {
    pub number: i32,
    pub md5: [u8; 16],
    pub size: u64,
    /// By the upload's algorithm.
    pub checksum: String,
    pub modified_ms: u64,
}

impl PartMeta {
    pub fn etag(&self) -> String {
        checksum::hex(&self.md5)
    }
}

#[derive(Debug)]
pub(super) struct Part {
    pub meta: PartMeta,
    content: Content,
}

/// An unfinished upload.
#[derive(Debug)]
pub(super) struct Upload {
    pub meta: UploadMeta,
    pub parts: BTreeMap<i32, Arc<Part>>,
}

/// A part as a completion names it.
#[derive(Debug, Clone)]
pub(super) struct NamedPart {
    pub number: i32,
    /// Without quotes.
    pub etag: Option<String>,
    pub checksums: Vec<(Algorithm, String)>,
}

/// What a completion says.
#[derive(Debug, Default)]
pub(super) struct Completion {
    pub parts: Vec<NamedPart>,
    /// Of the whole object.
    pub checksums: Vec<(Algorithm, String)>,
    pub size: Option<u64>,
    pub full_object: Option<bool>,
}

/// The parts an object is to be made of, or why not.
fn choose(
    parts: &BTreeMap<i32, Arc<Part>>,
    algorithm: Algorithm,
    named: &[NamedPart],
    minimum: u64,
) -> Result<Vec<Arc<Part>>, StoreError> {
    if named.is_empty() {
        return Err(StoreError::InvalidRequest(
            "a completion needs at least one part".into(),
        ));
    }
    if !named.is_sorted_by(|a, b| a.number < b.number) {
        return Err(StoreError::InvalidPartOrder);
    }
    let mut chosen = Vec::with_capacity(named.len());
    for (at, name) in named.iter().enumerate() {
        let invalid = || StoreError::InvalidPart(name.number);
        let part = parts.get(&name.number).ok_or_else(invalid)?;
        if name
            .etag
            .as_deref()
            .is_none_or(|etag| etag != part.meta.etag())
        {
            return Err(invalid());
        }
        if name
            .checksums
            .iter()
            .any(|(a, v)| *a != algorithm || *v != part.meta.checksum)
        {
            return Err(invalid());
        }
        if at + 1 < named.len() && part.meta.size < minimum {
            let size = part.meta.size;
            return Err(StoreError::EntityTooSmall {
                part: name.number,
                size,
                minimum,
            });
        }
        chosen.push(Arc::clone(part));
    }
    Ok(chosen)
}

impl Store {
    pub fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        headers: Headers,
        algorithm: Algorithm,
        full_object: bool,
    ) -> Result<UploadMeta, StoreError> {
        headers.validate()?;
        if full_object && !algorithm.can_be_full_object() {
            return Err(StoreError::InvalidRequest(format!(
                "{} cannot be FULL_OBJECT",
                algorithm.name()
            )));
        }
        let meta = UploadMeta {
            key: key.to_owned(),
            id: upload_id(),
            headers,
            algorithm,
            full_object,
            initiated_ms: now_ms(),
        };
        let mut state = self.state.lock();
        let uploads = &mut state.bucket_mut(bucket)?.uploads;
        if let Some(disk) = &self.disk {
            let dir = disk.upload_dir(bucket, &meta.id);
            fs::create_dir_all(&dir)?;
            disk.write_json(&dir.join("upload.json"), &meta)?;
        }
        let upload = Upload {
            meta: meta.clone(),
            parts: BTreeMap::new(),
        };
        uploads.insert((meta.key.clone(), meta.id.clone()), upload);
        Ok(meta)
    }

    /// What an upload is.
    pub fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<UploadMeta, StoreError> {
        let state = self.state.lock();
        let upload = state
            .bucket(bucket)?
            .uploads
            .get(&(key.to_owned(), id.to_owned()));
        Ok(upload.ok_or(StoreError::NoSuchUpload)?.meta.clone())
    }

    pub fn upload_part(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        number: i32,
        new: NewBody,
    ) -> Result<(UploadMeta, PartMeta), StoreError> {
        if !(1..=MAX_PART).contains(&number) {
            return Err(StoreError::InvalidArgument(
                "a part number is from 1 to 10000",
            ));
        }
        let upload = self.upload(bucket, key, id)?;
        let NewBody { body, claims } = new;
        let md5 = checksum::md5(&body);
        let mut stored = claims.verify(&body, md5, upload.algorithm)?;
        if stored.algorithm != upload.algorithm {
            // Verified, but the upload keeps another one.
            stored.value = upload.algorithm.of(&body);
        }
        let size = body.len() as u64;
        let meta = PartMeta {
            number,
            md5,
            size,
            checksum: stored.value,
            modified_ms: now_ms(),
        };
        let staged = match &self.disk {
            None => None,
            Some(disk) => {
                let mut staging = disk.stage(&meta)?;
                staging.write(&body)?;
                Some((staging.finish(), disk.part_path(bucket, id, number)))
            }
        };
        let mut state = self.state.lock();
        let uploads = &mut state.bucket_mut(bucket)?.uploads;
        let place = uploads
            .get_mut(&(key.to_owned(), id.to_owned()))
            .ok_or(StoreError::NoSuchUpload)?;
        let content = match staged {
            None => Content::Memory(body),
            Some((staged, path)) => staged.commit(path)?,
        };
        let part = Part {
            meta: meta.clone(),
            content,
        };
        if let Some(old) = place.parts.insert(number, Arc::new(part))
            && let Content::File { path, .. } = &old.content
        {
            fs::remove_file(path)?;
        }
        Ok((upload, meta))
    }

    /// The parts of an upload, in order.
    pub fn parts(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
    ) -> Result<(UploadMeta, Vec<PartMeta>), StoreError> {
        let state = self.state.lock();
        let upload = state
            .bucket(bucket)?
            .uploads
            .get(&(key.to_owned(), id.to_owned()));
        let upload = upload.ok_or(StoreError::NoSuchUpload)?;
        Ok((
            upload.meta.clone(),
            upload.parts.values().map(|p| p.meta.clone()).collect(),
        ))
    }

    /// The unfinished uploads of a bucket behind a key (and an id of that key), in order.
    pub fn uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<(&str, Option<&str>)>,
        max: usize,
    ) -> Result<(Vec<UploadMeta>, bool), StoreError> {
        let state = self.state.lock();
        let mut found = state
            .bucket(bucket)?
            .uploads
            .values()
            .map(|u| &u.meta)
            .filter(|u| {
                u.key.starts_with(prefix)
                    && after.is_none_or(|(key, id)| {
                        u.key.as_str() > key
                            || (u.key == key && id.is_some_and(|id| u.id.as_str() > id))
                    })
            });
        let page = found.by_ref().take(max).cloned().collect();
        Ok((page, found.next().is_some()))
    }

    pub fn abort(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let uploads = &mut state.bucket_mut(bucket)?.uploads;
        uploads
            .remove(&(key.to_owned(), id.to_owned()))
            .ok_or(StoreError::NoSuchUpload)?;
        self.remove_upload_dir(bucket, id)?;
        Ok(())
    }

    /// Parts vanish under a completion when another one, or an abort, was first.
    fn why_lost(
        &self,
        bucket: &str,
        (key, id): &(String, String),
        error: StoreError,
    ) -> StoreError {
        match error {
            StoreError::InvalidPart(_) => self.upload(bucket, key, id).err().unwrap_or(error),
            other => other,
        }
    }

    fn remove_upload_dir(&self, bucket: &str, id: &str) -> io::Result<()> {
        match &self.disk {
            Some(disk) => fs::remove_dir_all(disk.upload_dir(bucket, id)),
            None => Ok(()),
        }
    }

    pub fn complete(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        completion: &Completion,
        conditions: &WriteConditions,
    ) -> Result<Arc<Object>, StoreError> {
        conditions.validate()?;
        let name = (key.to_owned(), id.to_owned());
        let (upload, parts) = {
            let state = self.state.lock();
            let bucket = state.bucket(bucket)?;
            let upload = bucket.uploads.get(&name).ok_or(StoreError::NoSuchUpload)?;
            let algorithm = upload.meta.algorithm;
            let parts = choose(
                &upload.parts,
                algorithm,
                &completion.parts,
                self.min_part_bytes,
            )?;
            conditions.check(bucket.objects.get(key).map(|o| o.meta.etag.as_str()))?;
            (upload.meta.clone(), parts)
        };
        let size = parts.iter().map(|p| p.meta.size).sum();
        if completion.size.is_some_and(|claimed| claimed != size) {
            return Err(StoreError::InvalidRequest(
                "the object does not have that size".into(),
            ));
        }
        if completion
            .full_object
            .is_some_and(|claimed| claimed != upload.full_object)
        {
            return Err(StoreError::InvalidRequest(
                "not the upload's checksum type".into(),
            ));
        }
        let value = checksum_of(&upload, &parts).map_err(|e| self.why_lost(bucket, &name, e))?;
        for (algorithm, claimed) in &completion.checksums {
            if *algorithm != upload.algorithm {
                return Err(StoreError::InvalidRequest(
                    "not the upload's algorithm".into(),
                ));
            }
            if *claimed != value {
                return Err(StoreError::BadDigest(algorithm.name()));
            }
        }
        let meta = ObjectMeta {
            key: key.to_owned(),
            etag: checksum::multipart_etag(parts.iter().map(|p| &p.meta.md5)),
            size,
            modified_ms: now_ms(),
            headers: upload.headers.clone(),
            checksum: Stored {
                algorithm: upload.algorithm,
                value,
                full_object: upload.full_object,
            },
            upload_id: Some(upload.id.clone()),
        };
        let prepared = match &self.disk {
            None => {
                let mut whole = BytesMut::new();
                each_chunk(&parts, |chunk| {
                    whole.extend_from_slice(&chunk);
                    Ok(())
                })
                .map_err(|e| self.why_lost(bucket, &name, e))?;
                Prepared::Memory(whole.freeze())
            }
            Some(disk) => {
                let mut staging = disk.stage(&meta)?;
                each_chunk(&parts, |chunk| staging.write(&chunk))
                    .map_err(|e| self.why_lost(bucket, &name, e))?;
                Prepared::Staged(staging.finish())
            }
        };
        let mut state = self.state.lock();
        if !state.bucket(bucket)?.uploads.contains_key(&name) {
            return Err(StoreError::NoSuchUpload);
        }
        let object = self.commit(&mut state, bucket, meta, prepared, conditions)?;
        state.bucket_mut(bucket)?.uploads.remove(&name);
        // A directory that stays is known at the next open by the object's upload id.
        let _ = self.remove_upload_dir(bucket, id);
        Ok(object)
    }
}

/// The checksum of the object to be.
fn checksum_of(upload: &UploadMeta, parts: &[Arc<Part>]) -> Result<String, StoreError> {
    if !upload.full_object {
        let checksums = parts.iter().map(|p| p.meta.checksum.as_str());
        return Ok(checksum::composite(upload.algorithm, checksums));
    }
    let mut hasher = upload.algorithm.hasher();
    each_chunk(parts, |chunk| {
        hasher.update(&chunk);
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// The bytes of parts, one after the other.
fn each_chunk(
    parts: &[Arc<Part>],
    mut with: impl FnMut(Bytes) -> io::Result<()>,
) -> Result<(), StoreError> {
    for part in parts {
        let mut content = part.content.open().map_err(|error| match error.kind() {
            // It was replaced or given up meanwhile.
            io::ErrorKind::NotFound => StoreError::InvalidPart(part.meta.number),
            _ => error.into(),
        })?;
        let mut at = 0;
        while at < part.meta.size {
            let n = COPY_BYTES.min(part.meta.size - at);
            with(content.read(at, n)?)?;
            at += n;
        }
    }
    Ok(())
}

/// Reads the uploads of a bucket whose objects are read already.
pub(super) fn load(disk: &Disk, name: &str, bucket: &mut Bucket) -> io::Result<()> {
    for dir in disk.uploads(name)? {
        let meta = match read_json::<UploadMeta>(&dir.join("upload.json")) {
            // Never started, or removed halfway.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::remove_dir_all(&dir)?;
                continue;
            }
            other => other?,
        };
        let made = bucket
            .objects
            .get(&meta.key)
            .and_then(|o| o.meta.upload_id.as_ref());
        if made == Some(&meta.id) {
            fs::remove_dir_all(&dir)?;
            continue;
        }
        let mut parts = BTreeMap::new();
        for (meta, content) in disk.parts::<PartMeta>(&dir)? {
            parts.insert(meta.number, Arc::new(Part { meta, content }));
        }
        bucket
            .uploads
            .insert((meta.key.clone(), meta.id.clone()), Upload { meta, parts });
    }
    Ok(())
}

/// Unlike any other, also of another process on the same directory.
fn upload_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let text = format!("{}-{}-{number}", now_ms(), std::process::id());
    checksum::hex(&checksum::md5(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: i32, size: u64) -> (i32, Arc<Part>) {
        let md5 = checksum::md5(&number.to_le_bytes());
        let checksum = Algorithm::Crc32.of(&number.to_le_bytes());
        let meta = PartMeta {
            number,
            md5,
            size,
            checksum,
            modified_ms: 0,
        };
        (
            number,
            Arc::new(Part {
                meta,
                content: Content::Memory(Bytes::new()),
            }),
        )
    }

    fn named(part: &Arc<Part>) -> NamedPart {
        NamedPart {
            number: part.meta.number,
            etag: Some(part.meta.etag()),
            checksums: vec![(Algorithm::Crc32, part.meta.checksum.clone())],
        }
    }

    #[test]
    fn what_completing_requires() {
        let parts: BTreeMap<_, _> = [part(1, 10), part(2, 9), part(5, 1)].into();
        let names: Vec<_> = parts.values().map(named).collect();
        let choose = |names: &[NamedPart], min| choose(&parts, Algorithm::Crc32, names, min);
        assert_eq!(choose(&names, 9).unwrap().len(), 3);
        assert!(matches!(
            choose(&names, 10),
            Err(StoreError::EntityTooSmall { part: 2, .. })
        ));
        assert_eq!(
            choose(&names[2..], 10).unwrap().len(),
            1,
            "the last may be small"
        );
        assert!(matches!(choose(&[], 0), Err(StoreError::InvalidRequest(_))));
        let swapped = [names[1].clone(), names[0].clone()];
        assert!(matches!(
            choose(&swapped, 0),
            Err(StoreError::InvalidPartOrder)
        ));
        let twice = [names[0].clone(), names[0].clone()];
        assert!(matches!(
            choose(&twice, 0),
            Err(StoreError::InvalidPartOrder)
        ));
        let mut wrong = names.clone();
        wrong[1].etag = Some("0".into());
        assert!(matches!(choose(&wrong, 0), Err(StoreError::InvalidPart(2))));
        let mut wrong = names.clone();
        wrong[1].checksums = vec![(Algorithm::Crc32, "AAAAAA==".into())];
        assert!(matches!(choose(&wrong, 0), Err(StoreError::InvalidPart(2))));
        let mut missing = names.clone();
        missing[1].number = 3;
        assert!(matches!(
            choose(&missing, 0),
            Err(StoreError::InvalidPart(3))
        ));
    }
}
