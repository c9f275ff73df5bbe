//! A bucket that is a directory: it outlives the processes that upload to it.
//!
//! An object is a file: its write id, a line feed, its bytes. Entity tags are checksums, conditions
//! are honoured, uploads in parts are kept as directories.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3_writeback::remote::{
    CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, GetResponse, ListPage,
    MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture,
    UploadPart, WriteCondition,
};

/// What happens before a PUT is looked at.
pub type BeforePut = Arc<dyn Fn(&str) + Send + Sync>;

/// Why a PUT is refused, if it is.
pub type Refuses = Arc<dyn Fn(&str) -> Option<RemoteError> + Send + Sync>;

pub struct Bucket {
    dir: PathBuf,
    before_put: BeforePut,
    refuses: Refuses,
    forgets: bool,
    takes: Duration,
}

impl Bucket {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("objects")).unwrap();
        std::fs::create_dir_all(dir.join("parts")).unwrap();
        Self {
            dir,
            before_put: Arc::new(|_| ()),
            refuses: Arc::new(|_| None),
            forgets: false,
            takes: Duration::ZERO,
        }
    }

    /// Called at every PUT, with its key.
    pub fn before_put(mut self, run: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.before_put = Arc::new(run);
        self
    }

    /// Asked at every PUT whether it is refused.
    pub fn refuse_once(
        mut self,
        why: impl Fn(&str) -> Option<RemoteError> + Send + Sync + 'static,
    ) -> Self {
        self.refuses = Arc::new(why);
        self
    }

    /// Says yes to every PUT, and keeps nothing.
    pub fn forgets(mut self) -> Self {
        self.forgets = true;
        self
    }

    /// How long a request takes.
    pub fn takes(mut self, time: Duration) -> Self {
        self.takes = time;
        self
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join("objects").join(key.replace('/', "%"))
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = std::fs::read_dir(self.dir.join("objects"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".new"))
            .map(|name| name.replace('%', "/"))
            .collect();
        keys.sort_unstable();
        keys
    }

    pub fn object(&self, key: &str) -> Option<(ObjectInfo, Bytes)> {
        let bytes = std::fs::read(self.path(key)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let write_id = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let body = Bytes::from(bytes).slice(end + 1..);
        Some((info(&body, write_id), body))
    }

    /// Parts of uploads that were begun and neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        std::fs::read_dir(self.dir.join("parts")).unwrap().count()
    }

    fn holds(&self, key: &str, condition: Option<&WriteCondition>) -> bool {
        let found = self.object(key).map(|(info, _)| info.etag);
        match condition {
            None => true,
            Some(WriteCondition::IfAbsent) => found.is_none(),
            Some(WriteCondition::IfMatch(etag)) => found.as_ref() == Some(etag),
        }
    }

    fn write(&self, key: &str, write_id: &str, body: &[u8]) {
        let path = self.path(key);
        let aside = path.with_extension("new");
        let bytes = [write_id.as_bytes(), b"\n", body].concat();
        std::fs::write(&aside, bytes).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }

    fn upload(&self, id: &str) -> PathBuf {
        self.dir.join("parts").join(id)
    }
}

fn info(body: &[u8], write_id: String) -> ObjectInfo {
    let checksum = Crc64::of(body);
    ObjectInfo {
        etag: ETag(format!("{:016x}", checksum.0)),
        size: body.len() as u64,
        checksum: Some(checksum),
        write_id: (!write_id.is_empty()).then_some(write_id),
        last_modified: None,
    }
}

fn gone(path: &Path) -> Result<(), RemoteError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RemoteError::transient("AbortMultipartUpload"))
        }
        _ => Ok(()),
    }
}

impl Remote for Bucket {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            (self.before_put)(&request.key);
            tokio::time::sleep(self.takes).await;
            if let Some(error) = (self.refuses)(&request.key) {
                return Err(error);
            }
            if self.forgets {
                let write_id = request.write_id.unwrap_or_default();
                return Ok(info(&request.body, write_id));
            }
            if !self.holds(&request.key, request.condition.as_ref()) {
                return Err(RemoteError::conflict("PutObject"));
            }
            let write_id = request.write_id.unwrap_or_default();
            self.write(&request.key, &write_id, &request.body);
            Ok(info(&request.body, write_id))
        })
    }
    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        Box::pin(async move {
            Ok(self.object(&request.key).map(|(info, body)| {
                let body = match request.range {
                    None => body,
                    Some((from, len)) => {
                        // As S3: what there is of it.
                        let from = (from as usize).min(body.len());
                        body.slice(from..(from + len as usize).min(body.len()))
                    }
                };
                GetResponse { body, info }
            }))
        })
    }
    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let found = self.object(key).map(|(info, _)| info);
        Box::pin(async move { Ok(found) })
    }
    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let holds = self.holds(key, if_match.map(WriteCondition::IfMatch).as_ref());
        let path = self.path(key);
        Box::pin(async move {
            if !holds {
                return Err(RemoteError::conflict("DeleteObject"));
            }
            let _ = std::fs::remove_file(path);
            Ok(())
        })
    }
    fn list(&self, prefix: &str, _: Option<String>) -> RemoteFuture<'_, ListPage> {
        let keys = self.keys().into_iter();
        let objects = keys
            .filter(|key| key.starts_with(prefix))
            .filter_map(|key| Some((key.clone(), self.object(&key)?.0)))
            .collect();
        Box::pin(async move {
            Ok(ListPage {
                objects,
                next: None,
            })
        })
    }
    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        Box::pin(async move {
            (self.before_put)(&request.key);
            let n = std::fs::read_dir(self.dir.join("parts")).unwrap().count();
            let key = request.key.replace('/', "%");
            let id = (n..)
                .map(|n| format!("{key}@{n}"))
                .find(|id| std::fs::create_dir(self.upload(id)).is_ok())
                .unwrap();
            std::fs::write(
                self.upload(&id).join("id"),
                request.write_id.unwrap_or_default(),
            )
            .unwrap();
            Ok(id)
        })
    }
    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        Box::pin(async move {
            let part = self
                .upload(&request.upload_id)
                .join(request.number.to_string());
            let wrote = std::fs::write(part, &request.body);
            wrote.map_err(|_| {
                let lost = RemoteError::transient("UploadPart");
                RemoteError {
                    code: Some("NoSuchUpload".to_owned()),
                    ..lost
                }
            })?;
            Ok(PartInfo {
                number: request.number,
                etag: ETag(format!("{:016x}", request.checksum.0)),
                checksum: request.checksum,
            })
        })
    }
    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            let dir = self.upload(&request.upload_id);
            let Ok(write_id) = std::fs::read_to_string(dir.join("id")) else {
                let lost = RemoteError::transient("CompleteMultipartUpload");
                return Err(RemoteError {
                    code: Some("NoSuchUpload".to_owned()),
                    ..lost
                });
            };
            if !self.holds(&request.key, request.condition.as_ref()) {
                return Err(RemoteError::conflict("CompleteMultipartUpload"));
            }
            let parts = request.parts.iter();
            let body: Vec<u8> = parts
                .flat_map(|part| std::fs::read(dir.join(part.number.to_string())).unwrap())
                .collect();
            self.write(&request.key, &write_id, &body);
            gone(&dir)?;
            Ok(info(&body, write_id))
        })
    }
    fn abort_multipart(&self, _: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let gone = gone(&self.upload(upload_id));
        Box::pin(async move { gone })
    }
    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let under = format!("{}@", key.replace('/', "%"));
        let names = std::fs::read_dir(self.dir.join("parts")).unwrap();
        let uploads = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|id| id.starts_with(&under))
            .map(|upload_id| MultipartUpload {
                key: key.to_owned(),
                upload_id,
                initiated: None,
            })
            .collect();
        Box::pin(async move { Ok(uploads) })
    }
    fn describe(&self) -> String {
        self.dir.display().to_string()
    }
}
