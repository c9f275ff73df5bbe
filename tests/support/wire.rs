//! One owner's way to a bucket, which is cut while everybody else's goes on.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use s3_writeback::remote::{
    BucketFacts, CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse, ListPage,
    MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture,
    UploadPart,
};
use s3_writeback::testing::remote::SimRemote;

/// Clones are the same way.
#[derive(Debug, Clone)]
pub struct Wire {
    inner: SimRemote,
    is_cut: Arc<AtomicBool>,
}

impl Wire {
    pub fn to(inner: &SimRemote) -> Self {
        Self {
            inner: inner.clone(),
            is_cut: Arc::default(),
        }
    }

    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    fn pass<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(&'a SimRemote) -> RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T> {
        if self.is_cut.load(Ordering::Relaxed) {
            let error = RemoteError::transient("any").with_message("no way there");
            return Box::pin(std::future::ready(Err(error)));
        }
        call(&self.inner)
    }
}

impl Remote for Wire {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        self.pass(|to| to.put(request))
    }
    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        self.pass(|to| to.get(request))
    }
    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let key = key.to_owned();
        self.pass(move |to| Box::pin(async move { to.head(&key).await }))
    }
    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let key = key.to_owned();
        self.pass(move |to| Box::pin(async move { to.delete(&key, if_match).await }))
    }
    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let prefix = prefix.to_owned();
        self.pass(move |to| Box::pin(async move { to.list(&prefix, from).await }))
    }
    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        self.pass(|to| to.create_multipart(request))
    }
    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        self.pass(|to| to.upload_part(request))
    }
    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        self.pass(|to| to.complete_multipart(request))
    }
    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let (key, id) = (key.to_owned(), upload_id.to_owned());
        self.pass(move |to| Box::pin(async move { to.abort_multipart(&key, &id).await }))
    }
    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let key = key.to_owned();
        self.pass(move |to| Box::pin(async move { to.list_multipart(&key).await }))
    }
    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let prefix = prefix.to_owned();
        self.pass(move |to| Box::pin(async move { to.list_multipart_under(&prefix).await }))
    }
    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        self.pass(|to| to.bucket())
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}
