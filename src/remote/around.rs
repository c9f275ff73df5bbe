//! A remote with something around each of its requests: a deadline, an ear.
//!
//! Owns: the way through all of a remote's methods, once. Does not own: what is put around a
//! request.

use std::sync::Arc;

use super::{
    Adaptations, BucketFacts, CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse,
    ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteFuture, UploadPart,
};

/// What a GET of a whole object may be, in bytes: what is larger is asked for in ranges.
const WHOLE: u64 = 1024 * 1024;

/// What a request is, as far as it matters to what is put around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    /// S3's name of it.
    pub operation: &'static str,
    /// Bytes that it moves, or may move.
    pub bytes: u64,
    /// Whether it moves exactly so many.
    pub exact: bool,
}

/// Something that is put around requests.
pub(crate) trait Around: Send + Sync + 'static {
    fn around<'a, T: Send + 'a>(
        &'a self,
        made: Made,
        request: RemoteFuture<'a, T>,
    ) -> RemoteFuture<'a, T>;
}

/// A remote with something around each of its requests.
#[derive(Clone)]
pub(crate) struct Wrapped<A> {
    pub remote: Arc<dyn Remote>,
    pub with: A,
}

const fn made(operation: &'static str, bytes: u64) -> Made {
    Made {
        operation,
        bytes,
        exact: true,
    }
}

impl<A: Around> Remote for Wrapped<A> {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        let made = made("PutObject", request.body.len() as u64);
        self.with.around(made, self.remote.put(request))
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        let made = Made {
            exact: request.range.is_some(),
            ..made("GetObject", request.range.map_or(WHOLE, |(_, len)| len))
        };
        self.with.around(made, self.remote.get(request))
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let made = made("HeadObject", 0);
        self.with.around(made, self.remote.head(key))
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let made = made("DeleteObject", 0);
        self.with.around(made, self.remote.delete(key, if_match))
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let made = made("ListObjectsV2", 0);
        self.with.around(made, self.remote.list(prefix, from))
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        let made = made("CreateMultipartUpload", 0);
        self.with
            .around(made, self.remote.create_multipart(request))
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        let made = made("UploadPart", request.body.len() as u64);
        self.with.around(made, self.remote.upload_part(request))
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        let made = made("CompleteMultipartUpload", 0);
        self.with
            .around(made, self.remote.complete_multipart(request))
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let made = made("AbortMultipartUpload", 0);
        self.with
            .around(made, self.remote.abort_multipart(key, upload_id))
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let made = made("ListMultipartUploads", 0);
        self.with.around(made, self.remote.list_multipart(key))
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let made = made("ListMultipartUploads", 0);
        self.with
            .around(made, self.remote.list_multipart_under(prefix))
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        let made = made("GetBucketVersioning", 0);
        self.with.around(made, self.remote.bucket())
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
