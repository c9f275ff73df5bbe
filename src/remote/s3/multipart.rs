//! Uploads in parts: begun, filled, completed, given up, looked for.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, EncodingType,
};

use super::S3Remote;
use super::adapting::{Of, Way};
use super::body::Framed;
use super::error::fail;
use super::wire::{
    check, conditions, confirmed, encoded, encryption, listed_key, metadata, storage_class,
    system_time, tag_of, unquoted, unreadable,
};
use crate::remote::classify::{Operation, Request};
use crate::remote::validate;
use crate::remote::{
    CompleteMultipart, Crc64, CreateMultipart, MultipartUpload, ObjectInfo, PartInfo, RemoteError,
    UploadPart,
};

/// The most pages that one listing of unfinished uploads reads.
const MAX_UPLOAD_PAGES: usize = 10;

impl S3Remote {
    pub(super) async fn create(&self, create: CreateMultipart) -> Result<String, RemoteError> {
        self.adapting(Of::Upload, &create.key, None, |way| {
            self.create_once(&create, way)
        })
        .await
    }

    async fn create_once(&self, create: &CreateMultipart, way: Way) -> Result<String, RemoteError> {
        let request = Request::new(Operation::CreateMultipartUpload);
        check(request, validate::key(&self.prefix, &create.key))?;
        check(
            request,
            validate::headers(&create.headers, create.write_id.as_deref()),
        )?;
        let sent = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(&create.key))
            .set_expected_bucket_owner(self.owner.clone())
            .set_checksum_algorithm(way.summed(ChecksumAlgorithm::Crc64Nvme))
            .set_checksum_type(way.summed(ChecksumType::FullObject))
            .set_content_type(create.headers.content_type.clone())
            .set_content_encoding(create.headers.content_encoding.clone())
            .set_cache_control(create.headers.cache_control.clone())
            .set_storage_class(storage_class(&create.headers))
            .set_server_side_encryption(encryption(&create.headers))
            .set_ssekms_key_id(create.headers.sse_kms_key_id.clone())
            .set_metadata(metadata(&create.headers, create.write_id.as_deref()))
            .send()
            .await;
        let created = sent.map_err(|error| fail(request, error, || true))?;
        match created.upload_id() {
            Some(id) if !id.is_empty() => Ok(id.to_owned()),
            _ => Err(unreadable(request, "no upload id")),
        }
    }

    pub(super) async fn upload(&self, part: UploadPart) -> Result<PartInfo, RemoteError> {
        self.adapting(Of::Part, &part.key, None, |way| {
            self.upload_once(&part, way)
        })
        .await
    }

    async fn upload_once(&self, part: &UploadPart, way: Way) -> Result<PartInfo, RemoteError> {
        let request = Request::new(Operation::UploadPart);
        check(request, validate::key(&self.prefix, &part.key))?;
        check(request, validate::part(part.number, part.body.len() as u64))?;
        let sent = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.full(&part.key))
            .set_expected_bucket_owner(self.owner.clone())
            .upload_id(&part.upload_id)
            .part_number(part.number)
            .set_checksum_crc64_nvme(way.summed(encoded(part.checksum)))
            .body(ByteStream::from(part.body.clone()))
            .customize()
            .interceptor(Framed::new(part.body.clone(), self.signing(way)))
            .send()
            .await;
        let intact = || Crc64::of(&part.body) == part.checksum;
        let done = sent.map_err(|error| fail(request, error, intact))?;
        confirmed(request, part.checksum, done.checksum_crc64_nvme())?;
        let etag = done
            .e_tag()
            .ok_or_else(|| unreadable(request, "no entity tag"))?;
        Ok(PartInfo {
            number: part.number,
            etag: unquoted(etag),
            checksum: part.checksum,
        })
    }

    pub(super) async fn complete(
        &self,
        complete: CompleteMultipart,
    ) -> Result<ObjectInfo, RemoteError> {
        let (key, tag) = (&complete.key, tag_of(complete.condition.as_ref()));
        self.adapting(Of::Upload, key, tag, |way| {
            self.complete_once(&complete, way)
        })
        .await
    }

    async fn complete_once(
        &self,
        complete: &CompleteMultipart,
        way: Way,
    ) -> Result<ObjectInfo, RemoteError> {
        let request = Request::new(Operation::CompleteMultipartUpload)
            .conditional(complete.condition.is_some());
        check(request, validate::key(&self.prefix, &complete.key))?;
        check(request, validate::object(complete.size))?;
        let (if_match, if_none_match) = conditions(complete.condition.as_ref(), way);
        let parts = complete.parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(part.number)
                .e_tag(way.tag(&part.etag))
                .set_checksum_crc64_nvme(way.summed(encoded(part.checksum)))
                .build()
        });
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts.collect()))
            .build();
        let sent = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(&complete.key))
            .set_expected_bucket_owner(self.owner.clone())
            .upload_id(&complete.upload_id)
            .set_if_match(if_match)
            .set_if_none_match(if_none_match)
            .set_checksum_crc64_nvme(way.summed(encoded(complete.checksum)))
            .set_checksum_type(way.summed(ChecksumType::FullObject))
            .set_mpu_object_size(i64::try_from(complete.size).ok())
            .multipart_upload(parts)
            .send()
            .await;
        let done = sent.map_err(|error| fail(request, error, || true))?;
        let checksum = confirmed(request, complete.checksum, done.checksum_crc64_nvme())?;
        let etag = done
            .e_tag()
            .ok_or_else(|| unreadable(request, "no entity tag"))?;
        Ok(ObjectInfo {
            etag: unquoted(etag),
            size: complete.size,
            checksum,
            write_id: None,
            last_modified: None,
        })
    }

    pub(super) async fn abort(&self, key: String, upload_id: String) -> Result<(), RemoteError> {
        let request = Request::new(Operation::AbortMultipartUpload);
        check(request, validate::key(&self.prefix, &key))?;
        let sent = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(&key))
            .set_expected_bucket_owner(self.owner.clone())
            .upload_id(upload_id)
            .send()
            .await;
        match sent.map_err(|error| fail(request, error, || true)) {
            Ok(_) => Ok(()),
            Err(error) if error.has_code("NoSuchUpload") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The uploads of one key: those of keys that merely begin like it follow it in the listing,
    /// so that the first of them ends the search. Or, not `exact`, those of all that begin so.
    pub(super) async fn uploads_of(
        &self,
        key: String,
        exact: bool,
    ) -> Result<Vec<MultipartUpload>, RemoteError> {
        let request = Request::new(Operation::ListMultipartUploads);
        check(request, validate::key(&self.prefix, &key))?;
        let full = self.full(&key);
        let mut found = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        for _ in 0..MAX_UPLOAD_PAGES {
            let sent = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(&full)
                .set_key_marker(key_marker.take())
                .set_upload_id_marker(id_marker.take())
                .encoding_type(EncodingType::Url)
                .set_expected_bucket_owner(self.owner.clone())
                .send()
                .await;
            let page = sent.map_err(|error| fail(request, error, || true))?;
            let encoding = page.encoding_type();
            let mut beyond = false;
            for upload in page.uploads() {
                let listed = upload.key().and_then(|key| listed_key(key, encoding));
                let listed = listed.ok_or_else(|| unreadable(request, "no key"))?;
                if exact && listed != full {
                    beyond = true;
                    continue;
                }
                let Some(key) = self.relative(&listed).map(str::to_owned) else {
                    continue;
                };
                let id = upload
                    .upload_id()
                    .ok_or_else(|| unreadable(request, "no upload id"))?;
                found.push(MultipartUpload {
                    key,
                    upload_id: id.to_owned(),
                    initiated: system_time(upload.initiated()),
                });
            }
            if beyond || !page.is_truncated().unwrap_or(false) {
                break;
            }
            key_marker = page
                .next_key_marker()
                .and_then(|key| listed_key(key, encoding));
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if key_marker.is_none() {
                break;
            }
        }
        Ok(found)
    }
}
