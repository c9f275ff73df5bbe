//! A remote whose every request has its attempt's deadline.
//!
//! Owns: nothing but which deadline that is: the body's size at the slowest link that must still
//! work, or the floor.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use crate::mutant::{Mutant, is};

use super::deadline::{attempt_deadline, within};
use super::{
    Adaptations, BucketFacts, CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse,
    ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteFuture, UploadPart,
};

/// What a GET of a whole object may be, in bytes: what is larger is asked for in ranges.
const WHOLE: u64 = 1024 * 1024;

/// A remote that ends each request at its deadline.
#[derive(Clone)]
pub(crate) struct Timed {
    pub remote: Arc<dyn Remote>,
    /// The slowest link, in bytes a second.
    pub min_rate: u64,
    /// The shortest deadline.
    pub floor: Duration,
}

impl Timed {
    fn call<'a, T: Send + 'a>(
        &self,
        operation: &'static str,
        bytes: u64,
        request: RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T> {
        let deadline = match is(Mutant::RequestNeverEnds) {
            true => Duration::MAX,
            false => attempt_deadline(bytes, self.min_rate, self.floor),
        };
        within(operation, deadline, request).boxed()
    }
}

impl Remote for Timed {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        let bytes = request.body.len() as u64;
        self.call("PutObject", bytes, self.remote.put(request))
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        let bytes = request.range.map_or(WHOLE, |(_, len)| len);
        self.call("GetObject", bytes, self.remote.get(request))
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        self.call("HeadObject", 0, self.remote.head(key))
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        self.call("DeleteObject", 0, self.remote.delete(key, if_match))
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        self.call("ListObjectsV2", 0, self.remote.list(prefix, from))
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        let made = self.remote.create_multipart(request);
        self.call("CreateMultipartUpload", 0, made)
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        let bytes = request.body.len() as u64;
        self.call("UploadPart", bytes, self.remote.upload_part(request))
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        let made = self.remote.complete_multipart(request);
        self.call("CompleteMultipartUpload", 0, made)
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let aborted = self.remote.abort_multipart(key, upload_id);
        self.call("AbortMultipartUpload", 0, aborted)
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        self.call("ListMultipartUploads", 0, self.remote.list_multipart(key))
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let listed = self.remote.list_multipart_under(prefix);
        self.call("ListMultipartUploads", 0, listed)
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        self.call("GetBucketVersioning", 0, self.remote.bucket())
    }

    fn refresh_credentials(&self) {
        self.remote.refresh_credentials();
    }

    fn adaptations(&self) -> Option<Adaptations> {
        self.remote.adaptations()
    }

    fn prefix(&self) -> &str {
        self.remote.prefix()
    }

    fn describe(&self) -> String {
        self.remote.describe()
    }
}
