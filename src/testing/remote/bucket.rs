//! What a simulated bucket has in it.
//!
//! Owns: objects, unfinished uploads, conditions and dates: what a request does at the instant at
//! which it takes effect. Does not own: whether and when it arrives (`remote.rs`).

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use crate::remote::{
    BucketFacts, CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, GetResponse,
    ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, RemoteError, UploadPart,
    WriteCondition,
};

/// The most objects of one page of a listing.
const PAGE: usize = 1000;

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub body: Bytes,
    pub info: ObjectInfo,
}

#[derive(Debug)]
pub(super) struct Upload {
    key: String,
    write_id: Option<String>,
    parts: BTreeMap<i32, (Bytes, PartInfo)>,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub objects: BTreeMap<String, Object>,
    pub uploads: BTreeMap<String, Upload>,
    pub facts: BucketFacts,
    pub ignore_conditions: bool,
    /// Those of a completion only.
    pub complete_always: bool,
    /// A PUT with these bytes in it is refused for good.
    pub poison: Option<Bytes>,
    /// Seconds that are added to the server's clock.
    pub skew: u64,
    next: u64,
}

impl Bucket {
    fn check(&self, key: &str, condition: Option<&WriteCondition>) -> Result<(), RemoteError> {
        let found = self.objects.get(key);
        let holds = match condition {
            _ if self.ignore_conditions => true,
            None => true,
            Some(WriteCondition::IfAbsent) => found.is_none(),
            Some(WriteCondition::IfMatch(etag)) => {
                found.is_some_and(|object| object.info.etag == *etag)
            }
        };
        if holds {
            Ok(())
        } else {
            Err(RemoteError::conflict("PutObject"))
        }
    }

    pub(super) fn put(&mut self, request: &PutRequest) -> Result<ObjectInfo, RemoteError> {
        if Crc64::of(&request.body) != request.checksum {
            return Err(RemoteError::permanent("PutObject", 400, "BadDigest"));
        }
        if let Some(poison) = &self.poison
            && request
                .body
                .windows(poison.len().max(1))
                .any(|bytes| bytes == poison)
        {
            return Err(RemoteError::permanent("PutObject", 400, "InvalidArgument"));
        }
        self.check(&request.key, request.condition.as_ref())?;
        Ok(self.store(&request.key, request.body.clone(), request.write_id.clone()))
    }

    fn store(&mut self, key: &str, body: Bytes, write_id: Option<String>) -> ObjectInfo {
        self.next += 1;
        let checksum = Crc64::of(&body);
        let info = ObjectInfo {
            // Equal bytes have equal entity tags, as with S3's MD5.
            etag: ETag(format!("{:016x}{:x}", checksum.0, body.len())),
            size: body.len() as u64,
            checksum: Some(checksum),
            write_id,
            last_modified: Some(UNIX_EPOCH + Duration::from_secs(self.next + self.skew)),
        };
        self.objects.insert(
            key.to_owned(),
            Object {
                body,
                info: info.clone(),
            },
        );
        info
    }

    pub(super) fn delete(&mut self, key: &str, if_match: Option<&ETag>) -> Result<(), RemoteError> {
        if let Some(etag) = if_match {
            self.check(key, Some(&WriteCondition::IfMatch(etag.clone())))?;
        }
        self.objects.remove(key);
        Ok(())
    }

    /// Uploads that are not finished, of some keys.
    pub(super) fn uploads_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<MultipartUpload> {
        let uploads = self.uploads.iter();
        let found = uploads.filter(|(_, upload)| wanted(&upload.key));
        found
            .map(|(id, upload)| MultipartUpload {
                key: upload.key.clone(),
                upload_id: id.clone(),
                initiated: None,
            })
            .collect()
    }

    pub(super) fn complete(
        &mut self,
        request: &CompleteMultipart,
    ) -> Result<ObjectInfo, RemoteError> {
        let operation = "CompleteMultipartUpload";
        let condition = request.condition.as_ref();
        self.check(&request.key, condition.filter(|_| !self.complete_always))?;
        let Some(upload) = self.uploads.get(&request.upload_id) else {
            return Err(RemoteError::permanent(operation, 404, "NoSuchUpload"));
        };
        let mut body = BytesMut::new();
        for part in &request.parts {
            match upload.parts.get(&part.number) {
                Some((bytes, info)) if info == part => body.extend_from_slice(bytes),
                _ => return Err(RemoteError::permanent(operation, 400, "InvalidPart")),
            }
        }
        if Crc64::of(&body) != request.checksum {
            return Err(RemoteError::permanent(operation, 400, "BadDigest"));
        }
        let write_id = upload.write_id.clone();
        self.uploads.remove(&request.upload_id);
        Ok(self.store(&request.key, body.freeze(), write_id))
    }

    pub(super) fn get(&self, request: &GetRequest) -> Option<GetResponse> {
        let object = self.objects.get(&request.key)?;
        let body = match request.range {
            None => object.body.clone(),
            Some((from, len)) => {
                let end = from.saturating_add(len).min(object.info.size);
                let range =
                    usize::try_from(from.min(end)).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
                object.body.slice(range)
            }
        };
        Some(GetResponse {
            body,
            info: object.info.clone(),
        })
    }

    pub(super) fn list(&self, prefix: &str, from: Option<String>) -> ListPage {
        let start = from.unwrap_or_else(|| prefix.to_owned());
        let objects = self.objects.range(start..);
        let mut objects = objects.take_while(|(key, _)| key.starts_with(prefix));
        let page = objects.by_ref().take(PAGE);
        ListPage {
            objects: page
                .map(|(key, object)| (key.clone(), object.info.clone()))
                .collect(),
            next: objects.next().map(|(key, _)| key.clone()),
        }
    }

    pub(super) fn create(&mut self, request: CreateMultipart) -> String {
        self.next += 1;
        let id = format!("upload-{}", self.next);
        let CreateMultipart { key, write_id, .. } = request;
        self.uploads.insert(
            id.clone(),
            Upload {
                key,
                write_id,
                parts: BTreeMap::new(),
            },
        );
        id
    }

    pub(super) fn upload(&mut self, request: UploadPart) -> Result<PartInfo, RemoteError> {
        let Some(upload) = self.uploads.get_mut(&request.upload_id) else {
            return Err(RemoteError::permanent("UploadPart", 404, "NoSuchUpload"));
        };
        let checksum = Crc64::of(&request.body);
        if checksum != request.checksum {
            return Err(RemoteError::permanent("UploadPart", 400, "BadDigest"));
        }
        let info = PartInfo {
            number: request.number,
            etag: ETag(format!("{:016x}", checksum.0)),
            checksum,
        };
        let part = (request.body, info.clone());
        upload.parts.insert(request.number, part);
        Ok(info)
    }
}
