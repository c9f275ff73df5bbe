//! A remote in memory for the unit tests of this folder: honours conditions, or not, on demand,
//! and fails as told. (Simulations have a richer one; this one has no clock and no network.)

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use super::*;

/// What happens to the next request of an operation.
pub(super) enum Fault {
    /// It does nothing and fails.
    Before(RemoteError),
    /// It is carried out and fails.
    After(RemoteError),
    /// It never answers, and does nothing.
    Hang,
    /// It is carried out and never answers.
    HangAfter,
}

/// What the server does not do.
#[derive(Default, Clone, Copy)]
pub(super) struct Manners {
    pub ignores_if_none_match: bool,
    /// Looks only at writes under way: honoured in a race, and not afterwards.
    pub forgets_if_none_match: bool,
    /// Looks only at what is finished: any number wins a race, and none afterwards.
    pub races_if_none_match: bool,
    pub ignores_if_match: bool,
    pub creates_on_missing: bool,
    pub ignores_conditional_complete: bool,
    pub ignores_conditional_delete: bool,
    pub deletes_and_refuses: bool,
    pub drops_write_id: bool,
    pub drops_crc: bool,
    pub not_implemented: bool,
    pub equal_etags: bool,
}

#[derive(Clone)]
pub(super) struct Object {
    pub body: Bytes,
    pub info: ObjectInfo,
}

#[derive(Default)]
struct Upload {
    key: String,
    write_id: Option<String>,
    parts: BTreeMap<i32, (Bytes, PartInfo)>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    log: Vec<String>,
    next: u64,
}

impl Inner {
    /// Uploads that are not finished, of some keys.
    fn uploads_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<MultipartUpload> {
        let found = self.uploads.iter();
        let found = found.filter(|(_, upload)| wanted(&upload.key));
        found
            .map(|(id, upload)| MultipartUpload {
                key: upload.key.clone(),
                upload_id: id.clone(),
                initiated: None,
            })
            .collect()
    }
}

#[derive(Default)]
pub(super) struct Fake {
    pub manners: Manners,
    inner: Mutex<Inner>,
}

impl Fake {
    pub fn with(manners: Manners) -> Self {
        Self {
            manners,
            ..Self::default()
        }
    }

    pub fn fault(&self, operation: Operation, fault: Fault) {
        self.inner
            .lock()
            .faults
            .entry(operation.name())
            .or_default()
            .push_back(fault);
    }

    pub fn log(&self) -> Vec<String> {
        self.inner.lock().log.clone()
    }

    pub fn count(&self, operation: Operation) -> usize {
        self.log()
            .iter()
            .filter(|line| line.split(' ').next() == Some(operation.name()))
            .count()
    }

    pub fn object(&self, key: &str) -> Option<Object> {
        self.inner.lock().objects.get(key).cloned()
    }

    pub fn objects(&self) -> usize {
        self.inner.lock().objects.len()
    }

    pub fn uploads(&self) -> Vec<String> {
        self.inner.lock().uploads.keys().cloned().collect()
    }

    pub fn lose_uploads(&self) {
        self.inner.lock().uploads.clear();
    }

    pub fn insert(&self, key: &str, body: &[u8], write_id: Option<&str>) {
        let mut inner = self.inner.lock();
        self.store(
            &mut inner,
            key,
            Bytes::copy_from_slice(body),
            write_id.map(str::to_owned),
        );
    }

    fn store(
        &self,
        inner: &mut Inner,
        key: &str,
        body: Bytes,
        write_id: Option<String>,
    ) -> ObjectInfo {
        inner.next += 1;
        let etag = if self.manners.equal_etags {
            0
        } else {
            inner.next
        };
        let crc = Crc64::of(&body);
        let info = ObjectInfo {
            etag: ETag(format!("etag-{etag}")),
            size: body.len() as u64,
            checksum: (!self.manners.drops_crc).then_some(crc),
            write_id: write_id.filter(|_| !self.manners.drops_write_id),
            last_modified: None,
        };
        inner.objects.insert(
            key.to_owned(),
            Object {
                body,
                info: info.clone(),
            },
        );
        info
    }

    fn allowed(
        &self,
        inner: &Inner,
        operation: Operation,
        key: &str,
        condition: Option<&WriteCondition>,
    ) -> Result<(), RemoteError> {
        let current = inner.objects.get(key).map(|object| &object.info.etag);
        let name = operation.name();
        if condition.is_some() && self.manners.not_implemented {
            return Err(RemoteError::permanent(name, 501, "NotImplemented"));
        }
        let holds = match condition {
            None => true,
            Some(WriteCondition::IfAbsent) => {
                let line = format!("{name} {key}");
                let late = inner.log.iter().filter(|logged| **logged == line).count() > 8;
                self.manners.ignores_if_none_match
                    || (self.manners.forgets_if_none_match && late)
                    || (self.manners.races_if_none_match && !late)
                    || current.is_none()
            }
            Some(WriteCondition::IfMatch(etag)) => match current {
                None => self.manners.creates_on_missing,
                Some(current) => self.manners.ignores_if_match || current == etag,
            },
        };
        if holds {
            Ok(())
        } else {
            Err(RemoteError::conflict(name))
        }
    }

    fn run<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        detail: String,
        act: impl FnOnce(&mut Inner) -> Result<T, RemoteError> + Send + 'a,
    ) -> RemoteFuture<'a, T> {
        Box::pin(async move {
            // Requests that are started together are on the wire together.
            tokio::task::yield_now().await;
            let fault = {
                let mut inner = self.inner.lock();
                inner.log.push(format!("{} {detail}", operation.name()));
                inner
                    .faults
                    .get_mut(operation.name())
                    .and_then(VecDeque::pop_front)
            };
            match fault {
                None => act(&mut self.inner.lock()),
                Some(Fault::Before(error)) => Err(error),
                Some(Fault::After(error)) => {
                    let _ = act(&mut self.inner.lock());
                    Err(error)
                }
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::HangAfter) => {
                    let _ = act(&mut self.inner.lock());
                    std::future::pending().await
                }
            }
        })
    }
}

fn lost_upload(operation: Operation) -> RemoteError {
    let failure = classify::Failure::Answer {
        status: 404,
        code: Some("NoSuchUpload"),
        message: "",
    };
    RemoteError::classified(classify::Request::new(operation), failure, "")
}

impl Remote for Fake {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        let operation = Operation::PutObject;
        self.run(operation, request.key.clone(), move |inner| {
            self.allowed(inner, operation, &request.key, request.condition.as_ref())?;
            Ok(self.store(inner, &request.key, request.body, request.write_id))
        })
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        self.run(Operation::GetObject, request.key.clone(), move |inner| {
            let object = inner.objects.get(&request.key);
            Ok(object.map(|object| GetResponse {
                body: object.body.clone(),
                info: object.info.clone(),
            }))
        })
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let key = key.to_owned();
        self.run(Operation::HeadObject, key.clone(), move |inner| {
            Ok(inner.objects.get(&key).map(|object| object.info.clone()))
        })
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let key = key.to_owned();
        let operation = Operation::DeleteObject;
        self.run(operation, key.clone(), move |inner| {
            let condition = if_match.map(WriteCondition::IfMatch);
            let condition = condition.filter(|_| !self.manners.ignores_conditional_delete);
            if let Err(error) = self.allowed(inner, operation, &key, condition.as_ref()) {
                if self.manners.deletes_and_refuses {
                    inner.objects.remove(&key);
                }
                return Err(error);
            }
            inner.objects.remove(&key);
            Ok(())
        })
    }

    fn list(&self, prefix: &str, _from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let prefix = prefix.to_owned();
        self.run(Operation::ListObjectsV2, prefix.clone(), move |inner| {
            let found = inner
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(&prefix));
            let objects = found
                .map(|(key, object)| (key.clone(), object.info.clone()))
                .collect();
            Ok(ListPage {
                objects,
                next: None,
            })
        })
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        let operation = Operation::CreateMultipartUpload;
        self.run(operation, request.key.clone(), move |inner| {
            inner.next += 1;
            let id = format!("upload-{}", inner.next);
            let upload = Upload {
                key: request.key,
                write_id: request.write_id,
                ..Upload::default()
            };
            inner.uploads.insert(id.clone(), upload);
            Ok(id)
        })
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        let operation = Operation::UploadPart;
        self.run(operation, request.number.to_string(), move |inner| {
            assert_eq!(Crc64::of(&request.body), request.checksum);
            let upload = inner.uploads.get_mut(&request.upload_id);
            let upload = upload.ok_or_else(|| lost_upload(operation))?;
            let etag = ETag(format!("part-{}", request.number));
            let info = PartInfo {
                number: request.number,
                etag,
                checksum: request.checksum,
            };
            upload
                .parts
                .insert(request.number, (request.body, info.clone()));
            Ok(info)
        })
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        let operation = Operation::CompleteMultipartUpload;
        self.run(operation, request.key.clone(), move |inner| {
            let upload = inner.uploads.get(&request.upload_id);
            let upload = upload.ok_or_else(|| lost_upload(operation))?;
            let mut body = Vec::new();
            let mut sent = Vec::new();
            for (bytes, info) in upload.parts.values() {
                body.extend_from_slice(bytes);
                sent.push(info.clone());
            }
            assert_eq!(request.parts, sent, "parts in order, each once");
            assert_eq!(Crc64::of(&body), request.checksum, "full-object checksum");
            assert_eq!(body.len() as u64, request.size);
            let write_id = upload.write_id.clone();
            let condition = request.condition.as_ref();
            let condition = condition.filter(|_| !self.manners.ignores_conditional_complete);
            self.allowed(inner, operation, &request.key, condition)?;
            inner.uploads.remove(&request.upload_id);
            Ok(self.store(inner, &request.key, body.into(), write_id))
        })
    }

    fn abort_multipart(&self, _key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let id = upload_id.to_owned();
        self.run(Operation::AbortMultipartUpload, id.clone(), move |inner| {
            inner.uploads.remove(&id);
            Ok(())
        })
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let key = key.to_owned();
        self.run(Operation::ListMultipartUploads, key.clone(), move |inner| {
            Ok(inner.uploads_of(|of| of == key))
        })
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let prefix = prefix.to_owned();
        self.run(
            Operation::ListMultipartUploads,
            prefix.clone(),
            move |inner| Ok(inner.uploads_of(|of| of.starts_with(&prefix))),
        )
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }
}
