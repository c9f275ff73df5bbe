//! Between the types of s3s and ours.
//!
//! s3s has a type for each operation, alike in most fields but with nothing in common: what is
//! the same for several of them is a macro here.

use hyper::HeaderMap;
use hyper::header::{ETAG, HeaderValue, LAST_MODIFIED};
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Result, s3_error};

use super::conditions::{Tag, WriteConditions};
use super::error::StoreError;
use super::store::Object;

/// On a request whose conditions are to be ignored.
#[derive(Debug, Clone, Copy)]
pub(super) struct IgnoreConditions;

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

pub(super) fn stored_encoding(encoding: String) -> Option<String> {
    let kept: Vec<_> = encoding
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty() && *e != "aws-chunked")
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

pub(super) fn checksum_type(full_object: bool) -> ChecksumType {
    ChecksumType::from_static(if full_object {
        ChecksumType::FULL_OBJECT
    } else {
        ChecksumType::COMPOSITE
    })
}

pub(super) fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|m| m.as_str() == ChecksumMode::ENABLED)
}

/// Whole seconds since the Unix epoch.
pub(super) fn seconds(time: Option<Timestamp>) -> Option<i64> {
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

/// Runs on a thread of the runtime's blocking pool.
#[expect(
    clippy::disallowed_methods,
    reason = "each server is given a runtime, whose blocking pool has a bound of its own"
)]
pub(super) fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> S3Result<T> {
    match off_the_runtime(work).await {
        Ok(result) => result.map_err(S3Error::from),
        Err(error) => Err(s3_error!(InternalError, "the storage failed: {error}")),
    }
}

pub(super) fn write_conditions<T>(
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
pub(super) fn with_validators(error: StoreError, object: &Object) -> S3Error {
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
pub(super) fn page_size(asked: Option<i32>) -> S3Result<usize> {
    let asked = usize::try_from(asked.unwrap_or(1000))
        .map_err(|_| S3Error::from(StoreError::InvalidArgument("a page cannot be negative")))?;
    Ok(asked.min(1000))
}

/// Percent-encodes a key for `encoding-type=url`.
pub(super) fn url_encode(text: &str) -> String {
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

pub(super) use {checksums_of, describe, headers_of, set_checksum};
