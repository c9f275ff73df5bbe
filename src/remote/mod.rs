//! The remote: one S3 request, one outcome.
//!
//! Owns: the [`Remote`] trait, what a request and an outcome are, and the one production
//! implementation (over `aws-sdk-s3`, feature `s3`). Does not own: retries, deadlines of whole
//! tasks, ordering. A call is one request on the wire; what to do about its outcome is decided by
//! the layers above.
//!
//! Every call ends in one of three ways, and the type says which: `Ok` is *applied*; an error
//! carries an [`Effect`], which is `NotApplied` or `Unknown` (the reply was lost: it may have
//! happened, and may still happen).
//!
//! | file | owns |
//! |---|---|
//! | `outcome` | [`RemoteError`]: effect, class, what it carries |
//! | `classify` | which status, code or broken connection means which effect and class |
//! | `deadline` | how long one attempt may take |
//! | `validate` | what S3 must refuse, refused before it is sent |
//! | `multipart` | one upload in parts, resumed across attempts |
//! | `timed` | every request within its deadline |
//! | `around` | something around every request: a deadline, an ear |
//! | `tally` | what it has said no with, counted by code |
//! | `adapt` | what a server needs otherwise than S3 |
//! | `probe` | whether conditions are honoured, tried out |
//! | `s3` | the production implementation (feature `s3`) |

pub mod adapt;
pub(crate) mod around;
pub mod classify;
pub mod deadline;
#[cfg(test)]
mod fake;
pub mod multipart;
pub mod outcome;
pub mod probe;
#[cfg(feature = "s3")]
pub mod s3;
pub(crate) mod tally;
pub(crate) mod timed;
pub mod validate;

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use adapt::{Adaptation, Adaptations};
pub use classify::Operation;
pub use deadline::attempt_deadline;
pub use outcome::{Class, Effect, RemoteError};
#[cfg(feature = "s3")]
pub use s3::S3Remote;
pub use tally::ErrorCount;
pub use validate::ValidationError;

/// What every call on a [`Remote`] returns.
pub type RemoteFuture<'a, T> = BoxFuture<'a, Result<T, RemoteError>>;

/// An entity tag, without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag(pub String);

/// What must be true of the key for the server to carry out a write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriteCondition {
    /// `If-None-Match: *`: the key does not exist.
    IfAbsent,
    /// `If-Match`: the key's current object has this entity tag.
    IfMatch(ETag),
}

/// CRC-64/NVME of an object's bytes: S3's own default for whole objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Crc64(pub u64);

impl Crc64 {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes))
    }
}

/// Headers that are passed through to S3 with an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectHeaders {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `x-amz-storage-class`, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// `x-amz-server-side-encryption`, such as `AES256` or `aws:kms`.
    pub server_side_encryption: Option<String>,
    /// `x-amz-server-side-encryption-aws-kms-key-id`.
    pub sse_kms_key_id: Option<String>,
    /// `x-amz-meta-*`: names without the prefix, at most 2 KiB in all.
    pub metadata: BTreeMap<String, String>,
}

/// One PUT of a whole object.
#[derive(Debug, Clone)]
pub struct PutRequest {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// The object's bytes.
    pub body: Bytes,
    /// Computed once, when the bytes entered; sent with the request and verified by the server.
    pub checksum: Crc64,
    /// The condition, if any.
    pub condition: Option<WriteCondition>,
    /// Passed through.
    pub headers: ObjectHeaders,
    /// Stored as `x-amz-meta-write-id`, so that a lost reply can be told from a foreign write.
    pub write_id: Option<String>,
}

/// What S3 says of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its entity tag.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
    /// Its full-object CRC-64/NVME, where the server keeps one.
    pub checksum: Option<Crc64>,
    /// Its `x-amz-meta-write-id`.
    pub write_id: Option<String>,
    /// When the server says it was written.
    pub last_modified: Option<SystemTime>,
}

/// A GET, whole or ranged.
#[derive(Debug, Clone)]
pub struct GetRequest {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// First byte and length; `None` for the whole object.
    pub range: Option<(u64, u64)>,
}

/// The answer to a GET.
#[derive(Debug, Clone)]
pub struct GetResponse {
    /// The bytes asked for: never fewer than the server promised.
    pub body: Bytes,
    /// The object they are of; `size` is the whole object's.
    pub info: ObjectInfo,
}

/// A page of ListObjectsV2.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects in byte order of their keys (relative to the remote's prefix).
    pub objects: Vec<(String, ObjectInfo)>,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

/// The start of a multipart upload.
#[derive(Debug, Clone)]
pub struct CreateMultipart {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// Passed through.
    pub headers: ObjectHeaders,
    /// Stored as `x-amz-meta-write-id`.
    pub write_id: Option<String>,
}

/// One part of a multipart upload.
#[derive(Debug, Clone)]
pub struct UploadPart {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// From [`Remote::create_multipart`].
    pub upload_id: String,
    /// From 1 to 10,000.
    pub number: i32,
    /// The part's bytes.
    pub body: Bytes,
    /// Of this part.
    pub checksum: Crc64,
}

/// A part that the server has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// From 1 to 10,000.
    pub number: i32,
    /// The part's entity tag.
    pub etag: ETag,
    /// The part's checksum.
    pub checksum: Crc64,
}

/// The end of a multipart upload.
#[derive(Debug, Clone)]
pub struct CompleteMultipart {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// From [`Remote::create_multipart`].
    pub upload_id: String,
    /// All parts, in order of their numbers.
    pub parts: Vec<PartInfo>,
    /// Of the whole object.
    pub checksum: Crc64,
    /// Its size in bytes.
    pub size: u64,
    /// The condition, if any.
    pub condition: Option<WriteCondition>,
}

/// An unfinished multipart upload, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipartUpload {
    /// The key, relative to the remote's prefix.
    pub key: String,
    /// Its upload id.
    pub upload_id: String,
    /// When the server says it was started.
    pub initiated: Option<SystemTime>,
}

/// What is so of a bucket as a whole, as far as the server tells; nothing, where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketFacts {
    /// Objects are locked: what is deleted stays, and is paid for.
    pub object_lock: bool,
    /// Objects have versions: what is deleted stays until a lifecycle rule removes it.
    pub versioning: bool,
}

/// One bucket and prefix: every method is one request.
///
/// # Cancel safety
/// Dropping a future of a write aborts the request: whether it happened is then unknown.
pub trait Remote: Send + Sync + 'static {
    /// PUT of a whole object.
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo>;
    /// GET of an object or a range of it; `None` where it does not exist.
    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>>;
    /// HEAD of an object; `None` where it does not exist.
    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>>;
    /// DELETE of an object, conditional where an entity tag is given.
    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()>;
    /// One page of the keys that start with `prefix`.
    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage>;
    /// Starts a multipart upload; its upload id.
    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String>;
    /// Uploads one part.
    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo>;
    /// Makes an object of the parts.
    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo>;
    /// Gives a multipart upload up; also `Ok` where it does not exist any more.
    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()>;
    /// The unfinished multipart uploads of exactly this key.
    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>>;
    /// Unfinished multipart uploads of keys that start with `prefix`, the first thousand.
    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let _ = prefix;
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// What is so of the bucket as a whole.
    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        Box::pin(std::future::ready(Ok(BucketFacts::default())))
    }
    /// Throws cached credentials away, so that the next request resolves them again.
    fn refresh_credentials(&self) {}
    /// What it does for its server otherwise than for S3; `None` where it never does.
    fn adaptations(&self) -> Option<Adaptations> {
        None
    }
    /// What is put before every key, with a `/` between; empty for nothing.
    fn prefix(&self) -> &str {
        ""
    }
    /// Where it writes, for errors and logs: `s3://bucket/prefix`.
    fn describe(&self) -> String;
}
