//! The S3 operations: between the types of s3s and the storage. Those on multipart uploads are
//! in [`super::s3_multipart`].

use std::sync::Arc;

use bytes::Bytes;
use s3s::dto::*;
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::body;
use super::checksum::{Algorithm, Stored};
use super::conditions::{ReadConditions, Tag};
use super::convert::*;
use super::error::StoreError;
use super::list::{After, Query};
use super::store::{Headers, Store};

/// The service behind s3s.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub store: Arc<Store>,
    pub region: Arc<str>,
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
        self.create_multipart_upload_impl(req).await
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.upload_part_impl(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.complete_multipart_upload_impl(req).await
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
        self.list_parts_impl(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.list_multipart_uploads_impl(req).await
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

    /// Buckets have no versions.
    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        if !self.store.has_bucket(&req.input.bucket) {
            return Err(StoreError::NoSuchBucket.into());
        }
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    /// Nor locks.
    async fn get_object_lock_configuration(
        &self,
        req: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        if !self.store.has_bucket(&req.input.bucket) {
            return Err(StoreError::NoSuchBucket.into());
        }
        Err(s3_error!(
            ObjectLockConfigurationNotFoundError,
            "objects are not locked"
        ))
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
