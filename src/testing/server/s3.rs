//! The S3 operations: between the types of s3s and the storage.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{ETAG, HeaderValue, LAST_MODIFIED};
use s3s::dto::*;
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::body;
use super::checksum::{Algorithm, Stored};
use super::conditions::{ReadConditions, Tag, WriteConditions};
use super::error::StoreError;
use super::list::{After, Query};
use super::multipart::{Completion, NamedPart};
use super::store::{Headers, Object, Store, time_of};

/// On a request whose conditions are to be ignored.
#[derive(Debug, Clone, Copy)]
pub(super) struct IgnoreConditions;

/// The service behind s3s.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub store: Arc<Store>,
    pub region: Arc<str>,
}

/// Puts a checksum into the field of its algorithm.
macro_rules! set_checksum {
    ($output:expr, $algorithm:expr, $value:expr) => {
        match $algorithm {
            Algorithm::Crc32 => $output.checksum_crc32 = Some($value),
            Algorithm::Crc32c => $output.checksum_crc32c = Some($value),
            Algorithm::Crc64Nvme => $output.checksum_crc64nvme = Some($value),
            Algorithm::Sha1 => $output.checksum_sha1 = Some($value),
            Algorithm::Sha256 => $output.checksum_sha256 = Some($value),
        }
    };
}

/// Takes all checksums out of their fields.
macro_rules! checksums_of {
    ($input:expr) => {
        [
            (Algorithm::Crc32, $input.checksum_crc32.take()),
            (Algorithm::Crc32c, $input.checksum_crc32c.take()),
            (Algorithm::Crc64Nvme, $input.checksum_crc64nvme.take()),
            (Algorithm::Sha1, $input.checksum_sha1.take()),
            (Algorithm::Sha256, $input.checksum_sha256.take()),
        ]
        .into_iter()
        .filter_map(|(algorithm, value)| Some((algorithm, value?)))
        .collect::<Vec<_>>()
    };
}

/// Takes the headers that are kept with an object.
macro_rules! headers_of {
    ($input:expr) => {
        Headers {
            content_type: $input.content_type.take(),
            content_encoding: $input.content_encoding.take(),
            content_disposition: $input.content_disposition.take(),
            content_language: $input.content_language.take(),
            cache_control: $input.cache_control.take(),
            storage_class: $input.storage_class.take().map(|s| s.as_str().to_owned()),
            server_side_encryption: $input
                .server_side_encryption
                .take()
                .map(|s| s.as_str().to_owned()),
            sse_kms_key_id: $input.ssekms_key_id.take(),
            metadata: $input
                .metadata
                .take()
                .unwrap_or_default()
                .into_iter()
                .collect(),
        }
    };
}

/// Fills the fields that GET and HEAD have in common.
macro_rules! describe {
    ($output:expr, $object:expr, $with_checksum:expr) => {{
        let meta = &$object.meta;
        let headers = meta.headers.clone();
        $output.e_tag = Some(ETag::Strong(meta.etag.clone()));
        $output.last_modified = Some(Timestamp::from(meta.modified()));
        $output.accept_ranges = Some("bytes".to_owned());
        $output.content_type = headers
            .content_type
            .or_else(|| Some("binary/octet-stream".to_owned()));
        // `aws-chunked` is of the transfer, not of the object.
        $output.content_encoding = headers.content_encoding.and_then(stored_encoding);
        $output.content_disposition = headers.content_disposition;
        $output.content_language = headers.content_language;
        $output.cache_control = headers.cache_control;
        $output.storage_class = headers.storage_class.map(StorageClass::from);
        $output.server_side_encryption = headers
            .server_side_encryption
            .map(ServerSideEncryption::from);
        $output.ssekms_key_id = headers.sse_kms_key_id;
        $output.metadata = Some(headers.metadata.into_iter().collect());
        if $with_checksum {
            let Stored {
                algorithm,
                value,
                full_object,
            } = meta.checksum.clone();
            set_checksum!($output, algorithm, value);
            $output.checksum_type = Some(checksum_type(full_object));
        }
    }};
}

fn stored_encoding(encoding: String) -> Option<String> {
    let kept: Vec<_> = encoding
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty() && *e != "aws-chunked")
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

fn checksum_type(full_object: bool) -> ChecksumType {
    ChecksumType::from_static(if full_object {
        ChecksumType::FULL_OBJECT
    } else {
        ChecksumType::COMPOSITE
    })
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|m| m.as_str() == ChecksumMode::ENABLED)
}

/// Whole seconds since the Unix epoch.
fn seconds(time: Option<Timestamp>) -> Option<i64> {
    // The type behind it belongs to a crate we do not link; its text is a stable way out.
    let mut text = Vec::new();
    time?
        .format(TimestampFormat::EpochSeconds, &mut text)
        .ok()?;
    String::from_utf8(text)
        .ok()?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> S3Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(S3Error::from),
        Err(error) => Err(s3_error!(InternalError, "the storage failed: {error}")),
    }
}

fn write_conditions<T>(
    request: &S3Request<T>,
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> WriteConditions {
    if request.extensions.get::<IgnoreConditions>().is_some() {
        return WriteConditions::default();
    }
    WriteConditions {
        if_match: if_match.map(Tag::from_header),
        if_none_match: if_none_match.map(Tag::from_header),
    }
}

/// What a 304 and a 412 say of the version that is there.
fn with_validators(error: StoreError, object: &Object) -> S3Error {
    let mut error = S3Error::from(error);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", object.meta.etag)) {
        headers.insert(ETAG, value);
    }
    let mut text = Vec::new();
    let modified = Timestamp::from(object.meta.modified());
    if modified
        .format(TimestampFormat::HttpDate, &mut text)
        .is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&text)
    {
        headers.insert(LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    error
}

/// What S3 answers with: 1 to 1,000, also where more is asked for.
fn page_size(asked: Option<i32>) -> S3Result<usize> {
    let asked = usize::try_from(asked.unwrap_or(1000))
        .map_err(|_| S3Error::from(StoreError::InvalidArgument("a page cannot be negative")))?;
    Ok(asked.min(1000))
}

/// Percent-encodes a key for `encoding-type=url`.
fn url_encode(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
            out
        })
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn put_object(
        &self,
        mut req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let (if_match, if_none_match) = (req.input.if_match.take(), req.input.if_none_match.take());
        let conditions = write_conditions(&req, if_match, if_none_match);
        let new = body::read(
            req.input.body.take(),
            req.input.content_length,
            &req.headers,
            req.trailing_headers.as_ref(),
        )
        .await?;
        let mut input = req.input;
        let headers = headers_of!(input);
        let store = Arc::clone(&self.store);
        let object =
            blocking(move || store.put(&input.bucket, &input.key, headers, new, &conditions))
                .await?;
        let mut output = PutObjectOutput {
            e_tag: Some(ETag::Strong(object.meta.etag.clone())),
            checksum_type: Some(checksum_type(true)),
            server_side_encryption: object
                .meta
                .headers
                .server_side_encryption
                .clone()
                .map(ServerSideEncryption::from),
            ..Default::default()
        };
        let Stored {
            algorithm, value, ..
        } = object.meta.checksum.clone();
        set_checksum!(output, algorithm, value);
        Ok(S3Response::new(output))
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        if input.part_number.is_some() {
            return Err(s3_error!(NotImplemented, "partNumber"));
        }
        let conditions = ReadConditions {
            if_match: input.if_match.map(Tag::from_header),
            if_none_match: input.if_none_match.map(Tag::from_header),
            if_modified_since: seconds(input.if_modified_since),
            if_unmodified_since: seconds(input.if_unmodified_since),
        };
        let store = Arc::clone(&self.store);
        let (bucket, key) = (input.bucket, input.key);
        let (object, mut content) = blocking(move || store.open(&bucket, &key)).await?;
        let modified = i64::try_from(object.meta.modified_ms / 1000).unwrap_or(i64::MAX);
        conditions
            .check(&object.meta.etag, modified)
            .map_err(|error| with_validators(error, &object))?;
        let size = object.meta.size;
        let range = match input.range {
            Some(range) => range
                .check(size)
                .map_err(|_| S3Error::from(StoreError::InvalidRange))?,
            None => 0..size,
        };
        let (start, length) = (range.start, range.end - range.start);
        let bytes: Bytes = blocking(move || Ok(content.read(start, length)?)).await?;
        let mut output = GetObjectOutput {
            content_length: i64::try_from(length).ok(),
            content_range: input.range.map(|_| {
                format!(
                    "bytes {}-{}/{size}",
                    range.start,
                    range.end.saturating_sub(1)
                )
            }),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            ..Default::default()
        };
        // The checksum is of the whole object: with a range it would be refused as wrong.
        let whole = length == size;
        describe!(
            output,
            object,
            whole && wants_checksum(input.checksum_mode.as_ref())
        );
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let conditions = ReadConditions {
            if_match: input.if_match.map(Tag::from_header),
            if_none_match: input.if_none_match.map(Tag::from_header),
            if_modified_since: seconds(input.if_modified_since),
            if_unmodified_since: seconds(input.if_unmodified_since),
        };
        let store = Arc::clone(&self.store);
        let (bucket, key) = (input.bucket, input.key);
        let (object, _) = blocking(move || store.open(&bucket, &key)).await?;
        let modified = i64::try_from(object.meta.modified_ms / 1000).unwrap_or(i64::MAX);
        conditions
            .check(&object.meta.etag, modified)
            .map_err(|error| with_validators(error, &object))?;
        let mut output = HeadObjectOutput {
            content_length: i64::try_from(object.meta.size).ok(),
            ..Default::default()
        };
        describe!(output, object, wants_checksum(input.checksum_mode.as_ref()));
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        mut req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let if_match = req.input.if_match.take();
        let conditions = write_conditions(&req, if_match, None);
        let input = req.input;
        let store = Arc::clone(&self.store);
        blocking(move || store.delete(&input.bucket, &input.key, conditions.if_match.as_ref()))
            .await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = req.input;
        if input.delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "more than 1000 keys"));
        }
        let store = Arc::clone(&self.store);
        let quiet = input.delete.quiet.unwrap_or(false);
        let (deleted, errors) = blocking(move || {
            let (mut deleted, mut errors) = (Vec::new(), Vec::new());
            for object in input.delete.objects {
                let tag = object
                    .e_tag
                    .map(|tag| Tag::from_header(ETagCondition::ETag(tag)));
                match store.delete(&input.bucket, &object.key, tag.as_ref()) {
                    Ok(()) if quiet => {}
                    Ok(()) => deleted.push(DeletedObject {
                        key: Some(object.key),
                        ..Default::default()
                    }),
                    Err(StoreError::NoSuchBucket) => return Err(StoreError::NoSuchBucket),
                    Err(error) => {
                        let message = error.to_string();
                        let error = S3Error::from(error);
                        errors.push(Error {
                            code: Some(error.code().as_str().to_owned()),
                            key: Some(object.key),
                            message: Some(message),
                            ..Default::default()
                        });
                    }
                }
            }
            Ok((deleted, errors))
        })
        .await?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => After::from_token(token).ok_or_else(|| {
                S3Error::from(StoreError::InvalidArgument("not a continuation token"))
            })?,
            (None, Some(key)) => After::Key(key.clone()),
            (None, None) => After::Start,
        };
        let max = page_size(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().filter(|d| !d.is_empty()),
            after,
            max,
        };
        let url = input
            .encoding_type
            .as_ref()
            .is_some_and(|e| e.as_str() == EncodingType::URL);
        let text = move |text: &str| {
            if url {
                url_encode(text)
            } else {
                text.to_owned()
            }
        };
        let store = Arc::clone(&self.store);
        let bucket = input.bucket.clone();
        let (contents, prefixes, next) = blocking(move || {
            store.list(&bucket, &query, |page| {
                let contents: Vec<_> = page
                    .objects
                    .into_iter()
                    .map(|(key, object)| s3s::dto::Object {
                        key: Some(text(key)),
                        e_tag: Some(ETag::Strong(object.meta.etag.clone())),
                        size: i64::try_from(object.meta.size).ok(),
                        last_modified: Some(Timestamp::from(object.meta.modified())),
                        storage_class: Some(ObjectStorageClass::from(
                            object
                                .meta
                                .headers
                                .storage_class
                                .clone()
                                .unwrap_or("STANDARD".into()),
                        )),
                        checksum_algorithm: Some(vec![ChecksumAlgorithm::from_static(
                            object.meta.checksum.algorithm.name(),
                        )]),
                        checksum_type: Some(checksum_type(object.meta.checksum.full_object)),
                        ..Default::default()
                    })
                    .collect();
                let prefixes: Vec<_> = page
                    .prefixes
                    .iter()
                    .map(|prefix| CommonPrefix {
                        prefix: Some(text(prefix)),
                    })
                    .collect();
                (contents, prefixes, page.next)
            })
        })
        .await?;
        let encoded = |value: Option<String>| value.map(|v| if url { url_encode(&v) } else { v });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            max_keys: i32::try_from(max).ok(),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next.map(|n| n.to_token()),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            prefix: encoded(input.prefix),
            delimiter: encoded(input.delimiter),
            start_after: encoded(input.start_after),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut input = req.input;
        let headers = headers_of!(input);
        let algorithm = match &input.checksum_algorithm {
            None => Algorithm::Crc64Nvme,
            Some(name) => Algorithm::from_name(name.as_str()).ok_or_else(|| {
                S3Error::from(StoreError::InvalidRequest(
                    "an unknown checksum algorithm".into(),
                ))
            })?,
        };
        let full_object = match input.checksum_type.as_ref().map(ChecksumType::as_str) {
            Some(ChecksumType::FULL_OBJECT) => true,
            Some(ChecksumType::COMPOSITE) if algorithm == Algorithm::Crc64Nvme => {
                let text = "CRC64NVME cannot be COMPOSITE".to_owned();
                return Err(StoreError::InvalidRequest(text).into());
            }
            Some(ChecksumType::COMPOSITE) => false,
            Some(_) => {
                let text = "an unknown checksum type".to_owned();
                return Err(StoreError::InvalidRequest(text).into());
            }
            None => algorithm == Algorithm::Crc64Nvme,
        };
        let store = Arc::clone(&self.store);
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        let upload =
            blocking(move || store.create_upload(&bucket, &key, headers, algorithm, full_object))
                .await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload.id),
            checksum_algorithm: Some(ChecksumAlgorithm::from_static(algorithm.name())),
            checksum_type: Some(checksum_type(full_object)),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let new = body::read(
            req.input.body.take(),
            req.input.content_length,
            &req.headers,
            req.trailing_headers.as_ref(),
        )
        .await?;
        let input = req.input;
        let store = Arc::clone(&self.store);
        let (upload, part) = blocking(move || {
            let UploadPartInput {
                bucket,
                key,
                upload_id,
                part_number,
                ..
            } = input;
            store.upload_part(&bucket, &key, &upload_id, part_number, new)
        })
        .await?;
        let mut output = UploadPartOutput {
            e_tag: Some(ETag::Strong(part.etag())),
            ..Default::default()
        };
        set_checksum!(output, upload.algorithm, part.checksum);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let (if_match, if_none_match) = (req.input.if_match.take(), req.input.if_none_match.take());
        let conditions = write_conditions(&req, if_match, if_none_match);
        let mut input = req.input;
        let mut completion = Completion {
            checksums: checksums_of!(input),
            size: input.mpu_object_size.and_then(|n| u64::try_from(n).ok()),
            full_object: input
                .checksum_type
                .as_ref()
                .map(|t| t.as_str() == ChecksumType::FULL_OBJECT),
            ..Completion::default()
        };
        for mut part in input
            .multipart_upload
            .and_then(|m| m.parts)
            .unwrap_or_default()
        {
            let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML))?;
            completion.parts.push(NamedPart {
                number,
                checksums: checksums_of!(part),
                etag: part.e_tag.map(ETag::into_value),
            });
        }
        let store = Arc::clone(&self.store);
        let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id);
        let object =
            blocking(move || store.complete(&bucket, &key, &id, &completion, &conditions)).await?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(object.meta.etag.clone())),
            checksum_type: Some(checksum_type(object.meta.checksum.full_object)),
            ..Default::default()
        };
        let Stored {
            algorithm, value, ..
        } = object.meta.checksum.clone();
        set_checksum!(output, algorithm, value);
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let store = Arc::clone(&self.store);
        blocking(move || store.abort(&input.bucket, &input.key, &input.upload_id)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(
        &self,
        req: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let max = page_size(input.max_parts)?;
        let after = input.part_number_marker.unwrap_or(0);
        let (upload, parts) = self
            .store
            .parts(&input.bucket, &input.key, &input.upload_id)?;
        let mut rest = parts.into_iter().filter(|p| p.number > after);
        let parts: Vec<_> = rest
            .by_ref()
            .take(max)
            .map(|part| {
                let mut output = Part {
                    part_number: Some(part.number),
                    e_tag: Some(ETag::Strong(part.etag())),
                    size: i64::try_from(part.size).ok(),
                    last_modified: Some(Timestamp::from(time_of(part.modified_ms))),
                    ..Default::default()
                };
                set_checksum!(output, upload.algorithm, part.checksum);
                output
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: i32::try_from(max).ok(),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: parts.last().and_then(|p| p.part_number),
            is_truncated: Some(rest.next().is_some()),
            parts: Some(parts),
            checksum_algorithm: Some(ChecksumAlgorithm::from_static(upload.algorithm.name())),
            checksum_type: Some(checksum_type(upload.full_object)),
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        if input.delimiter.as_ref().is_some_and(|d| !d.is_empty()) {
            return Err(s3_error!(
                NotImplemented,
                "delimiter of ListMultipartUploads"
            ));
        }
        let max = page_size(input.max_uploads)?;
        let after = input
            .key_marker
            .as_deref()
            .map(|key| (key, input.upload_id_marker.as_deref()));
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let (uploads, more) = self.store.uploads(&input.bucket, prefix, after, max)?;
        let url = input
            .encoding_type
            .as_ref()
            .is_some_and(|e| e.as_str() == EncodingType::URL);
        let text = |text: &str| {
            if url {
                url_encode(text)
            } else {
                text.to_owned()
            }
        };
        let last = uploads.last().filter(|_| more);
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            max_uploads: i32::try_from(max).ok(),
            is_truncated: Some(more),
            next_key_marker: last.map(|u| text(&u.key)),
            next_upload_id_marker: last.map(|u| u.id.clone()),
            uploads: Some(
                uploads
                    .iter()
                    .map(|upload| MultipartUpload {
                        key: Some(text(&upload.key)),
                        upload_id: Some(upload.id.clone()),
                        initiated: Some(Timestamp::from(time_of(upload.initiated_ms))),
                        checksum_algorithm: Some(ChecksumAlgorithm::from_static(
                            upload.algorithm.name(),
                        )),
                        checksum_type: Some(checksum_type(upload.full_object)),
                        ..Default::default()
                    })
                    .collect(),
            ),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        if !self.store.has_bucket(&req.input.bucket) {
            return Err(StoreError::NoSuchBucket.into());
        }
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(self.region.to_string()),
            ..Default::default()
        }))
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let store = Arc::clone(&self.store);
        let name = req.input.bucket;
        let location = Some(format!("/{name}"));
        blocking(move || store.create_bucket(&name)).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let store = Arc::clone(&self.store);
        blocking(move || store.delete_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn list_buckets(
        &self,
        _req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self
            .store
            .buckets()
            .into_iter()
            .map(|(name, created)| s3s::dto::Bucket {
                name: Some(name),
                creation_date: Some(Timestamp::from(created)),
                bucket_region: Some(self.region.to_string()),
            })
            .collect();
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets),
            ..Default::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        if !self.store.has_bucket(&req.input.bucket) {
            return Err(StoreError::NoSuchBucket.into());
        }
        let location = (&*self.region != "us-east-1")
            .then(|| BucketLocationConstraint::from(self.region.to_string()));
        Ok(S3Response::new(GetBucketLocationOutput {
            location_constraint: location,
        }))
    }
}
