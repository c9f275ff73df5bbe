//! The S3 operations on multipart uploads: between the types of s3s and the storage.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::body;
use super::checksum::{Algorithm, Stored};
use super::convert::*;
use super::error::StoreError;
use super::multipart::{Completion, NamedPart};
use super::s3::Service;
use super::store::{Headers, time_of};

impl Service {
    pub async fn create_multipart_upload_impl(
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

    pub async fn upload_part_impl(
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

    pub async fn complete_multipart_upload_impl(
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

    pub async fn list_parts_impl(
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

    pub async fn list_multipart_uploads_impl(
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
}
