//! What goes into a request and comes out of an answer: header values, there and back.
//!
//! Pure functions; what they do not understand is refused, never guessed.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{EncodingType, ServerSideEncryption, StorageClass};

use super::adapting::Way;
use crate::remote::classify::{Failure, Request, Transport};
use crate::remote::validate::{ValidationError, WRITE_ID};
use crate::remote::{Crc64, ETag, ObjectHeaders, RemoteError, WriteCondition};

/// An entity tag as it is sent: in quotes, or bare to a server that wants them so.
pub(super) fn sent_tag(etag: &ETag, bare: bool) -> String {
    if bare || etag.0 == "*" {
        etag.0.clone()
    } else {
        format!("\"{}\"", etag.0)
    }
}

/// An entity tag as it is kept.
pub(super) fn unquoted(etag: &str) -> ETag {
    let bare = etag.strip_prefix("W/").unwrap_or(etag);
    ETag(bare.trim_matches('"').to_owned())
}

/// A checksum as it is sent: base64 of its eight bytes, the highest first.
pub(super) fn encoded(checksum: Crc64) -> String {
    aws_smithy_types::base64::encode(checksum.0.to_be_bytes())
}

/// A full-object checksum as it is kept; one over the checksums of parts (`...-3`) is not one.
pub(super) fn decoded(checksum: Option<&str>) -> Option<Crc64> {
    let bytes = aws_smithy_types::base64::decode(checksum?).ok()?;
    Some(Crc64(u64::from_be_bytes(bytes.try_into().ok()?)))
}

pub(super) fn system_time(time: Option<&DateTime>) -> Option<SystemTime> {
    SystemTime::try_from(*time?).ok()
}

/// A size that a server sent.
pub(super) fn size(length: Option<i64>) -> Option<u64> {
    u64::try_from(length?).ok()
}

/// The whole object's size in `bytes 0-9/100`.
pub(super) fn total_of(content_range: Option<&str>) -> Option<u64> {
    content_range?.rsplit_once('/')?.1.trim().parse().ok()
}

pub(super) fn write_id_of(metadata: Option<&HashMap<String, String>>) -> Option<String> {
    metadata?.get(WRITE_ID).cloned()
}

/// Metadata as it is sent; `None` where there is none.
pub(super) fn metadata(
    headers: &ObjectHeaders,
    write_id: Option<&str>,
) -> Option<HashMap<String, String>> {
    let mut metadata: HashMap<String, String> = headers
        .metadata
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(id) = write_id {
        metadata.insert(WRITE_ID.to_owned(), id.to_owned());
    }
    (!metadata.is_empty()).then_some(metadata)
}

/// The values of `If-Match` and `If-None-Match`.
pub(super) fn conditions(
    condition: Option<&WriteCondition>,
    way: Way,
) -> (Option<String>, Option<String>) {
    match condition {
        None => (None, None),
        Some(WriteCondition::IfAbsent) => (None, Some("*".to_owned())),
        Some(WriteCondition::IfMatch(etag)) => (Some(way.tag(etag)), None),
    }
}

/// The entity tag of an `If-Match`.
pub(super) fn tag_of(condition: Option<&WriteCondition>) -> Option<&ETag> {
    match condition {
        Some(WriteCondition::IfMatch(etag)) => Some(etag),
        _ => None,
    }
}

pub(super) fn storage_class(headers: &ObjectHeaders) -> Option<StorageClass> {
    headers.storage_class.as_deref().map(StorageClass::from)
}

pub(super) fn encryption(headers: &ObjectHeaders) -> Option<ServerSideEncryption> {
    headers
        .server_side_encryption
        .as_deref()
        .map(ServerSideEncryption::from)
}

/// What must be refused is refused as S3 would have, without asking it.
pub(super) fn check<T>(
    request: Request,
    result: Result<T, ValidationError>,
) -> Result<T, RemoteError> {
    result.map_err(|error| {
        let failure = Failure::Transport(Transport::Construction);
        RemoteError::classified(request, failure, &error.to_string())
    })
}

pub(super) fn unreadable(request: Request, what: &str) -> RemoteError {
    RemoteError::classified(request, Failure::Transport(Transport::ResponseParse), what)
}

/// A success whose checksum is not ours is none.
pub(super) fn confirmed(
    request: Request,
    ours: Crc64,
    theirs: Option<&str>,
) -> Result<Option<Crc64>, RemoteError> {
    let theirs = decoded(theirs);
    match theirs {
        Some(theirs) if theirs != ours => {
            let text = format!("sent {:016x}, the server has {:016x}", ours.0, theirs.0);
            let failure = Failure::Transport(Transport::ChecksumMismatch);
            Err(RemoteError::classified(request, failure, &text))
        }
        theirs => Ok(theirs),
    }
}

/// Decodes `%41` and `+` of a listing that was asked for in URL encoding.
pub(super) fn url_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A key of a listing, as it was written.
pub(super) fn listed_key(key: &str, encoding: Option<&EncodingType>) -> Option<String> {
    match encoding {
        Some(EncodingType::Url) => url_decoded(key),
        _ => Some(key.to_owned()),
    }
}
