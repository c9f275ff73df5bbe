//! What both benches need: a store over an S3 that takes everything and keeps nothing.

use std::sync::Arc;

use s3_writeback::remote::{
    CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse, ListPage, MultipartUpload,
    ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture, UploadPart,
};
use s3_writeback::{PartStore, StoreConfig};

/// Takes everything at once, and keeps nothing.
#[derive(Debug, Default)]
pub struct Void;

fn none<T: Send + 'static>(operation: &'static str) -> RemoteFuture<'static, T> {
    Box::pin(async move { Err(RemoteError::permanent(operation, 501, "NotImplemented")) })
}

impl Remote for Void {
    fn describe(&self) -> String {
        "nowhere".to_owned()
    }

    fn prefix(&self) -> &str {
        ""
    }

    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            Ok(ObjectInfo {
                etag: ETag("void".to_owned()),
                size: request.body.len() as u64,
                checksum: Some(request.checksum),
                write_id: request.write_id,
                last_modified: None,
            })
        })
    }

    fn get(&self, _: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        none("GetObject")
    }

    fn head(&self, _: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        Box::pin(async { Ok(None) })
    }

    fn delete(&self, _: &str, _: Option<ETag>) -> RemoteFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self, _: &str, _: Option<String>) -> RemoteFuture<'_, ListPage> {
        none("ListObjectsV2")
    }

    fn create_multipart(&self, _: CreateMultipart) -> RemoteFuture<'_, String> {
        none("CreateMultipartUpload")
    }

    fn upload_part(&self, _: UploadPart) -> RemoteFuture<'_, PartInfo> {
        none("UploadPart")
    }

    fn complete_multipart(&self, _: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        none("CompleteMultipartUpload")
    }

    fn abort_multipart(&self, _: &str, _: &str) -> RemoteFuture<'_, ()> {
        none("AbortMultipartUpload")
    }

    fn list_multipart(&self, _: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        none("ListMultipartUploads")
    }
}

/// Opens a store in `dir`.
pub fn open(mut config: StoreConfig) -> PartStore {
    // It gives back nothing that it was given.
    config.fencing = s3_writeback::Fencing::Off;
    config.checkpoint_at_shutdown = false;
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.gc_every = None;
    PartStore::builder(config, Arc::new(Void))
        .open()
        .wait()
        .expect("opens")
}
