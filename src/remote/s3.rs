//! The production remote: each method one request over `aws-sdk-s3`.
//!
//! Owns: the client and how it is set up, what goes into each request, what comes out of each
//! answer. Does not own: retries (there are none here), attempt deadlines (the layer above has
//! them), what an error means ([`super::classify`]).
//!
//! 1. One call is one attempt: the SDK's retries are off, whatever the host's environment says.
//! 2. The checksum is the caller's, sent as a header with the bytes; never `aws-chunked`, never a
//!    trailer.
//! 3. An answer counts only if it is whole: a body shorter than promised, or a checksum that is
//!    not the one that was sent, is an error.
//! 4. A call is one request, but for the first times that a server is met that wants something
//!    otherwise than S3 ([`learnt`]): then what was refused is sent once more, the other way.
//! 5. Credentials are in no error, log or `Debug` of ours.

mod adapting;
mod body;
mod builder;
mod connect;
mod error;
mod http;
mod identity;
mod learnt;
mod multipart;
mod read;
mod wire;

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, EncodingType};

use super::classify::{Operation, Request};
use super::validate;
use super::{
    Adaptations, BucketFacts, CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest,
    GetResponse, ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteError,
    RemoteFuture, UploadPart,
};

use adapting::{Of, Server, Way};
use body::Framed;
pub use builder::{PayloadSigning, S3Builder};
pub use connect::ConnectError;
use error::{fail, status_of};
use identity::RefreshableCache;
use read::{StatusOf, collect, of_range, refused};
use wire::{
    check, conditions, confirmed, decoded, encoded, encryption, listed_key, metadata, size,
    storage_class, system_time, tag_of, total_of, unquoted, unreadable, write_id_of,
};

/// One bucket and prefix on S3, or on what speaks its protocol.
///
/// Clones share the client, its connections and its credentials.
#[derive(Clone)]
pub struct S3Remote {
    client: Client,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    signing: PayloadSigning,
    identity: Arc<RefreshableCache>,
    server: Arc<Server>,
    credentials: Option<aws_credential_types::provider::SharedCredentialsProvider>,
    region: Option<String>,
    check_bucket: bool,
}

impl std::fmt::Debug for S3Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Remote")
            .field("at", &self.describe())
            .finish_non_exhaustive()
    }
}

impl S3Remote {
    /// Begins to set one up. Credentials, region and endpoint come from `config`; its retries,
    /// timeouts and checksum settings do not count.
    #[must_use]
    pub fn builder(config: &aws_config::SdkConfig) -> S3Builder {
        S3Builder::new(config)
    }

    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix, without a `/` at its end; may be empty.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn full(&self, key: &str) -> String {
        validate::join(&self.prefix, key)
    }

    /// A key of ours as its caller knows it; `None` where it is not under the prefix.
    fn relative<'k>(&self, key: &'k str) -> Option<&'k str> {
        if self.prefix.is_empty() {
            return Some(key);
        }
        key.strip_prefix(self.prefix.as_str())?.strip_prefix('/')
    }

    async fn put_object(&self, put: PutRequest) -> Result<ObjectInfo, RemoteError> {
        let (key, tag) = (&put.key, tag_of(put.condition.as_ref()));
        self.adapting(Of::Object, key, tag, |way| self.put_once(&put, way))
            .await
    }

    async fn put_once(&self, put: &PutRequest, way: Way) -> Result<ObjectInfo, RemoteError> {
        let request = Request::new(Operation::PutObject).conditional(put.condition.is_some());
        check(request, validate::key(&self.prefix, &put.key))?;
        check(request, validate::body(put.body.len() as u64))?;
        check(
            request,
            validate::headers(&put.headers, put.write_id.as_deref()),
        )?;
        let (if_match, if_none_match) = conditions(put.condition.as_ref(), way);
        let sent = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(&put.key))
            .set_expected_bucket_owner(self.owner.clone())
            .set_if_match(if_match)
            .set_if_none_match(if_none_match)
            .set_checksum_crc64_nvme(way.summed(encoded(put.checksum)))
            .set_content_type(put.headers.content_type.clone())
            .set_content_encoding(put.headers.content_encoding.clone())
            .set_cache_control(put.headers.cache_control.clone())
            .set_storage_class(storage_class(&put.headers))
            .set_server_side_encryption(encryption(&put.headers))
            .set_ssekms_key_id(put.headers.sse_kms_key_id.clone())
            .set_metadata(metadata(&put.headers, put.write_id.as_deref()))
            .body(ByteStream::from(put.body.clone()))
            .customize()
            .interceptor(Framed::new(put.body.clone(), self.signing(way)))
            .send()
            .await;
        let intact = || Crc64::of(&put.body) == put.checksum;
        let done = sent.map_err(|error| fail(request, error, intact))?;
        let checksum = confirmed(request, put.checksum, done.checksum_crc64_nvme())?;
        let etag = done
            .e_tag()
            .ok_or_else(|| unreadable(request, "no entity tag"))?;
        Ok(ObjectInfo {
            etag: unquoted(etag),
            size: put.body.len() as u64,
            checksum,
            write_id: put.write_id.clone(),
            last_modified: None,
        })
    }

    async fn get_object(&self, get: GetRequest) -> Result<Option<GetResponse>, RemoteError> {
        let request = Request::new(Operation::GetObject);
        check(request, validate::key(&self.prefix, &get.key))?;
        let mut call = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(&get.key))
            .set_expected_bucket_owner(self.owner.clone());
        match get.range {
            Some((first, length)) => {
                check(request, validate::range(first, length))?;
                call = call.range(format!("bytes={first}-{}", first + (length - 1)));
            }
            // Of a range there is no checksum to check.
            None => call = call.checksum_mode(ChecksumMode::Enabled),
        }
        let status = StatusOf::default();
        let sent = call.customize().interceptor(status.clone()).send().await;
        let got = match sent {
            Ok(got) => got,
            Err(error) => {
                let error = fail(request, error, || true);
                return if error.has_code("NoSuchKey") {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        let promised = size(got.content_length());
        let total = total_of(got.content_range()).or(promised);
        let partial = got.content_range().is_some();
        let Some(etag) = got.e_tag() else {
            return Err(refused(request, status.get(), got.body).await);
        };
        let info = ObjectInfo {
            etag: unquoted(etag),
            size: total.unwrap_or_default(),
            checksum: decoded(got.checksum_crc64_nvme()),
            write_id: write_id_of(got.metadata()),
            last_modified: system_time(got.last_modified()),
        };
        let body = collect(request, got.body, promised).await?;
        let size = total.unwrap_or(body.len() as u64);
        let body = match get.range {
            None => body,
            Some(range) => of_range(request, body, range, size, partial)?,
        };
        Ok(Some(GetResponse {
            body,
            info: ObjectInfo { size, ..info },
        }))
    }

    async fn head_object(&self, key: String) -> Result<Option<ObjectInfo>, RemoteError> {
        let request = Request::new(Operation::HeadObject);
        check(request, validate::key(&self.prefix, &key))?;
        let sent = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(&key))
            .set_expected_bucket_owner(self.owner.clone())
            .checksum_mode(ChecksumMode::Enabled)
            .send()
            .await;
        let head = match sent {
            Ok(head) => head,
            // Without a body there is no code: a missing bucket looks the same. Whoever then
            // writes is told so.
            Err(error) if status_of(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(fail(request, error, || true)),
        };
        let etag = head
            .e_tag()
            .ok_or_else(|| unreadable(request, "no entity tag"))?;
        let size = size(head.content_length()).ok_or_else(|| unreadable(request, "no length"))?;
        Ok(Some(ObjectInfo {
            etag: unquoted(etag),
            size,
            checksum: decoded(head.checksum_crc64_nvme()),
            write_id: write_id_of(head.metadata()),
            last_modified: system_time(head.last_modified()),
        }))
    }

    async fn delete_object(&self, key: String, if_match: Option<ETag>) -> Result<(), RemoteError> {
        let tag = if_match.as_ref();
        self.adapting(Of::Nothing, &key, tag, |way| {
            self.delete_once(&key, tag, way)
        })
        .await
    }

    async fn delete_once(
        &self,
        key: &str,
        if_match: Option<&ETag>,
        way: Way,
    ) -> Result<(), RemoteError> {
        let conditional = if_match.is_some();
        let request = Request::new(Operation::DeleteObject).conditional(conditional);
        check(request, validate::key(&self.prefix, key))?;
        let sent = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .set_expected_bucket_owner(self.owner.clone())
            .set_if_match(if_match.map(|etag| way.tag(etag)))
            .send()
            .await;
        match sent.map_err(|error| fail(request, error, || true)) {
            Ok(_) => Ok(()),
            // Some servers say so where S3 says 204.
            Err(error) if !conditional && error.has_code("NoSuchKey") => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list_objects(
        &self,
        prefix: String,
        from: Option<String>,
    ) -> Result<ListPage, RemoteError> {
        let request = Request::new(Operation::ListObjectsV2);
        let sent = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(&prefix))
            .set_continuation_token(from)
            .encoding_type(EncodingType::Url)
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await;
        let listed = sent.map_err(|error| fail(request, error, || true))?;
        let mut page = ListPage::default();
        for object in listed.contents() {
            let key = object
                .key()
                .and_then(|key| listed_key(key, listed.encoding_type()));
            let key = key.ok_or_else(|| unreadable(request, "a key that cannot be read"))?;
            // A server that lists what was not asked for is not believed.
            let Some(relative) = self.relative(&key) else {
                continue;
            };
            let info = ObjectInfo {
                etag: unquoted(object.e_tag().unwrap_or_default()),
                size: size(object.size()).unwrap_or_default(),
                checksum: None,
                write_id: None,
                last_modified: system_time(object.last_modified()),
            };
            page.objects.push((relative.to_owned(), info));
        }
        if listed.is_truncated().unwrap_or(false) {
            let next = listed.next_continuation_token();
            let next = next.ok_or_else(|| unreadable(request, "more pages, and no way to them"))?;
            page.next = Some(next.to_owned());
        }
        Ok(page)
    }
}

impl S3Remote {
    /// What the server refuses to tell, or does not know, is not so.
    async fn bucket_facts(&self) -> Result<BucketFacts, RemoteError> {
        let request = Request::new(Operation::HeadObject);
        let locked = self
            .client
            .get_object_lock_configuration()
            .bucket(&self.bucket)
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await;
        let object_lock = match locked {
            Ok(lock) => lock
                .object_lock_configuration()
                .is_some_and(|lock| lock.object_lock_enabled().is_some()),
            Err(error) if error.as_service_error().is_some() => false,
            Err(error) => return Err(fail(request, error, || true)),
        };
        let versions = self
            .client
            .get_bucket_versioning()
            .bucket(&self.bucket)
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await;
        let versioning = match versions {
            Ok(versions) => versions.status().is_some_and(|status| {
                *status == aws_sdk_s3::types::BucketVersioningStatus::Enabled
            }),
            Err(error) if error.as_service_error().is_some() => false,
            Err(error) => return Err(fail(request, error, || true)),
        };
        Ok(BucketFacts {
            object_lock,
            versioning,
        })
    }
}

impl Remote for S3Remote {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(self.put_object(request))
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        Box::pin(self.get_object(request))
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        Box::pin(self.head_object(key.to_owned()))
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        Box::pin(self.delete_object(key.to_owned(), if_match))
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        Box::pin(self.list_objects(prefix.to_owned(), from))
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        Box::pin(self.create(request))
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        Box::pin(self.upload(request))
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(self.complete(request))
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        Box::pin(self.abort(key.to_owned(), upload_id.to_owned()))
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        Box::pin(self.uploads_of(key.to_owned(), true))
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        Box::pin(self.uploads_of(prefix.to_owned(), false))
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        Box::pin(self.bucket_facts())
    }

    fn refresh_credentials(&self) {
        self.identity.refresh();
    }

    fn adaptations(&self) -> Option<Adaptations> {
        Some(self.server.adaptations())
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests;
