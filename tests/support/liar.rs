//! A server whose first answer on one key has a checksum that is not of the bytes sent.

use std::sync::atomic::{AtomicBool, Ordering};

use s3_writeback::remote::{
    CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, GetResponse, ListPage,
    MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteFuture, UploadPart,
};
use s3_writeback::testing::remote::SimRemote;

#[derive(Debug)]
pub struct Liar {
    inner: SimRemote,
    key: &'static str,
    /// The bytes are not right either; otherwise only the answer is not.
    corrupt: bool,
    lied: AtomicBool,
}

impl Liar {
    pub fn new(inner: SimRemote, key: &'static str, corrupt: bool) -> Self {
        Self { inner, key, corrupt, lied: AtomicBool::new(false) }
    }
}

impl Remote for Liar {
    fn put(&self, mut request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        let lie = request.key == self.key && !self.lied.swap(true, Ordering::Relaxed);
        Box::pin(async move {
            if lie && self.corrupt {
                request.body = vec![b'?'; request.body.len()].into();
                request.checksum = Crc64::of(&request.body);
            }
            let mut info = self.inner.put(request).await?;
            if lie {
                info.checksum = Some(Crc64::of(b"something else"));
            }
            Ok(info)
        })
    }
    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        self.inner.get(request)
    }
    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        self.inner.head(key)
    }
    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        self.inner.delete(key, if_match)
    }
    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        self.inner.list(prefix, from)
    }
    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        self.inner.create_multipart(request)
    }
    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        self.inner.upload_part(request)
    }
    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        self.inner.complete_multipart(request)
    }
    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        self.inner.abort_multipart(key, upload_id)
    }
    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        self.inner.list_multipart(key)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}
