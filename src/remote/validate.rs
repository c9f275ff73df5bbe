//! Local checks, before anything is journaled or sent: what S3 must refuse is refused here.
//!
//! Owns: the limits, as constants, and the typed refusals. Does not own: what only the server can
//! know (quota, policy, whether a storage class exists), which is passed through.
//!
//! Only what S3 *must* refuse is refused. Servers that keep objects as files refuse more (a key
//! `a` beside `a/b`, segments `.` and `..`); they say so themselves, and that is permanent.

use std::collections::BTreeSet;

use super::ObjectHeaders;
use super::multipart::PartPlan;

/// The longest key, prefix included, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;
/// The largest body of a single PUT, and of one part.
pub const MAX_PUT_BYTES: u64 = 5 << 30;
/// The largest object that is uploaded in parts: 5 TiB. S3 has since raised its own limit to
/// 48.8 TiB (10,000 parts of 5 GiB); other servers have not, so the older one is kept.
pub const MAX_OBJECT_BYTES: u64 = 5 << 40;
/// The smallest part, except the last one.
pub const MIN_PART_BYTES: u64 = 5 << 20;
/// The most parts of one upload.
pub const MAX_PARTS: u64 = 10_000;
/// User metadata: names (without `x-amz-meta-`) and values together, in bytes.
pub const MAX_METADATA_BYTES: usize = 2048;
/// The longest value of any other header that is passed through, in bytes.
pub const MAX_HEADER_BYTES: usize = 1024;
/// The name under which the write id is kept, without `x-amz-meta-`.
pub const WRITE_ID: &str = "write-id";

/// Something S3 would refuse, or cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValidationError {
    /// No key.
    #[error("the key is empty")]
    KeyEmpty,
    /// Too long, with the prefix.
    #[error("key {key:?} has {bytes} bytes with its prefix, the limit is {limit}")]
    KeyTooLong {
        /// Its beginning.
        key: String,
        /// Its length with the prefix.
        bytes: usize,
        /// [`MAX_KEY_BYTES`].
        limit: usize,
    },
    /// A character that S3's XML cannot carry, so that the key could never be listed.
    #[error("key {key:?} has the character U+{character:04X} at byte {at}, which XML cannot carry")]
    KeyCharacter {
        /// Its beginning.
        key: String,
        /// The character.
        character: u32,
        /// Where it is.
        at: usize,
    },
    /// More `..` segments than segments before them.
    #[error("key {key:?} climbs above the bucket with its `..` segments")]
    KeyClimbs {
        /// Its beginning.
        key: String,
    },
    /// The prefix is not one.
    #[error("prefix {prefix:?}: {reason}")]
    Prefix {
        /// Its beginning.
        prefix: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The bucket's name is not one.
    #[error("bucket {bucket:?}: {reason}")]
    Bucket {
        /// Its beginning.
        bucket: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Too large for one PUT or part.
    #[error("a body of {bytes} bytes, the limit of one PUT is {limit}")]
    BodyTooLarge {
        /// Its size.
        bytes: u64,
        /// [`MAX_PUT_BYTES`].
        limit: u64,
    },
    /// Too large for any upload.
    #[error("an object of {bytes} bytes, the limit is {limit}")]
    ObjectTooLarge {
        /// Its size.
        bytes: u64,
        /// [`MAX_OBJECT_BYTES`].
        limit: u64,
    },
    /// A part size that cannot be.
    #[error("parts of {bytes} bytes, must be from {min} to {max}")]
    PartSize {
        /// What was asked for.
        bytes: u64,
        /// [`MIN_PART_BYTES`].
        min: u64,
        /// [`MAX_PUT_BYTES`].
        max: u64,
    },
    /// A part number that cannot be.
    #[error("part number {number}, must be from 1 to {limit}")]
    PartNumber {
        /// What was asked for.
        number: i64,
        /// [`MAX_PARTS`].
        limit: u64,
    },
    /// Too much metadata.
    #[error("metadata of {bytes} bytes with the write id, the limit is {limit}")]
    MetadataTooLarge {
        /// Its size.
        bytes: usize,
        /// [`MAX_METADATA_BYTES`].
        limit: usize,
    },
    /// A metadata name that is not a header name, or is ours, or is there twice.
    #[error("metadata name {name:?}: {reason}")]
    MetadataName {
        /// Its beginning.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A header's value that cannot be sent, or would come back changed.
    #[error("the value of {header} ({value:?}): {reason}")]
    HeaderValue {
        /// Which header.
        header: String,
        /// Its beginning.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A range of no bytes, or past the end of numbers.
    #[error("a range of {length} bytes from {first} cannot be asked for")]
    Range {
        /// First byte.
        first: u64,
        /// Length.
        length: u64,
    },
}

/// The beginning of a value, for an error: never more than 64 characters.
fn head(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// `prefix` and `key` as one key: with a `/` between them where there is a prefix.
#[must_use]
pub fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}/{key}")
    }
}

/// Whether XML 1.0 has a way to carry `c`.
fn in_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r') || (c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// Whether `..` segments outnumber the segments before them anywhere.
fn climbs(key: &str) -> bool {
    let mut depth = 0_usize;
    for segment in key.split('/') {
        match segment {
            ".." if depth == 0 => return true,
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
    }
    false
}

/// Checks a key that will be written under `prefix`.
///
/// # Errors
/// The first thing that S3 must refuse.
pub fn key(prefix: &str, key: &str) -> Result<(), ValidationError> {
    if key.is_empty() {
        return Err(ValidationError::KeyEmpty);
    }
    let bytes = if prefix.is_empty() {
        key.len()
    } else {
        prefix.len() + 1 + key.len()
    };
    if bytes > MAX_KEY_BYTES {
        return Err(ValidationError::KeyTooLong {
            key: head(key),
            bytes,
            limit: MAX_KEY_BYTES,
        });
    }
    if let Some((at, c)) = key.char_indices().find(|(_, c)| !in_xml(*c)) {
        let character = u32::from(c);
        return Err(ValidationError::KeyCharacter {
            key: head(key),
            character,
            at,
        });
    }
    if climbs(&join(prefix, key)) {
        return Err(ValidationError::KeyClimbs { key: head(key) });
    }
    Ok(())
}

/// Checks a prefix and returns it in its one form: without a `/` at its end. Empty is no prefix.
///
/// # Errors
/// [`ValidationError::Prefix`]: a `/` at its beginning, an empty or relative segment (a mistake
/// in every case that was seen), a character XML cannot carry, or no room for a key behind it.
pub fn prefix(prefix: &str) -> Result<String, ValidationError> {
    let bare = prefix.strip_suffix('/').unwrap_or(prefix);
    let refuse = |reason| {
        Err(ValidationError::Prefix {
            prefix: head(prefix),
            reason,
        })
    };
    if bare.is_empty() {
        return if prefix.is_empty() {
            Ok(String::new())
        } else {
            refuse("it is only a `/`")
        };
    }
    if bare.split('/').any(str::is_empty) {
        return refuse("it has an empty segment");
    }
    if bare.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refuse("it has a relative segment");
    }
    if !bare.chars().all(in_xml) {
        return refuse("it has a character that XML cannot carry");
    }
    if bare.len() + 2 > MAX_KEY_BYTES {
        return refuse("it leaves no room for a key");
    }
    Ok(bare.to_owned())
}

/// Checks a bucket's name: 3 to 63 of lower-case letters, digits, `-` and `.`. Aliases of access
/// points fit; ARNs are not taken.
///
/// # Errors
/// [`ValidationError::Bucket`].
pub fn bucket(bucket: &str) -> Result<(), ValidationError> {
    let refuse = |reason| {
        Err(ValidationError::Bucket {
            bucket: head(bucket),
            reason,
        })
    };
    if !(3..=63).contains(&bucket.len()) {
        return refuse("must have 3 to 63 bytes");
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !bucket
        .chars()
        .all(|c| alphanumeric(c) || c == '-' || c == '.')
    {
        return refuse("may have lower-case letters, digits, `-` and `.` only");
    }
    if !bucket.starts_with(alphanumeric) || !bucket.ends_with(alphanumeric) {
        return refuse("must begin and end with a letter or digit");
    }
    if bucket.contains("..") {
        return refuse("has two dots in a row");
    }
    if bucket.parse::<std::net::Ipv4Addr>().is_ok() {
        return refuse("looks like an IP address");
    }
    Ok(())
}

/// Checks the size of a single PUT or part.
///
/// # Errors
/// [`ValidationError::BodyTooLarge`].
pub fn body(bytes: u64) -> Result<(), ValidationError> {
    if bytes > MAX_PUT_BYTES {
        return Err(ValidationError::BodyTooLarge {
            bytes,
            limit: MAX_PUT_BYTES,
        });
    }
    Ok(())
}

/// Checks the size of an object, whichever way it is uploaded.
///
/// # Errors
/// [`ValidationError::ObjectTooLarge`].
pub fn object(bytes: u64) -> Result<(), ValidationError> {
    if bytes > MAX_OBJECT_BYTES {
        return Err(ValidationError::ObjectTooLarge {
            bytes,
            limit: MAX_OBJECT_BYTES,
        });
    }
    Ok(())
}

/// Checks one part's number and size.
///
/// # Errors
/// [`ValidationError::PartNumber`], [`ValidationError::BodyTooLarge`].
pub fn part(number: i32, bytes: u64) -> Result<(), ValidationError> {
    let in_range = u64::try_from(number).is_ok_and(|number| (1..=MAX_PARTS).contains(&number));
    if !in_range {
        return Err(ValidationError::PartNumber {
            number: number.into(),
            limit: MAX_PARTS,
        });
    }
    body(bytes)
}

/// Checks a range to be read.
///
/// # Errors
/// [`ValidationError::Range`].
pub fn range(first: u64, length: u64) -> Result<(), ValidationError> {
    if length == 0 || first.checked_add(length).is_none() {
        return Err(ValidationError::Range { first, length });
    }
    Ok(())
}

/// A value that survives the way there and back: visible ASCII and inner spaces.
fn header_value(header: &str, value: &str, limit: usize) -> Result<(), ValidationError> {
    let refuse = |reason| {
        let (header, value) = (header.to_owned(), head(value));
        Err(ValidationError::HeaderValue {
            header,
            value,
            reason,
        })
    };
    if value.len() > limit {
        return refuse("is too long");
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return refuse("has a character that is not visible ASCII");
    }
    if value.starts_with(' ') || value.ends_with(' ') {
        return refuse("begins or ends with a space, which is not kept");
    }
    Ok(())
}

/// A character that may be in the name of a header (RFC 9110, `tchar`).
fn in_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Checks headers that are passed through, and the write id that goes with them.
///
/// # Errors
/// The first thing that cannot be sent or would be refused.
pub fn headers(headers: &ObjectHeaders, write_id: Option<&str>) -> Result<(), ValidationError> {
    let passed = [
        ("Content-Type", &headers.content_type),
        ("Content-Encoding", &headers.content_encoding),
        ("Cache-Control", &headers.cache_control),
        ("x-amz-storage-class", &headers.storage_class),
        (
            "x-amz-server-side-encryption",
            &headers.server_side_encryption,
        ),
        (
            "x-amz-server-side-encryption-aws-kms-key-id",
            &headers.sse_kms_key_id,
        ),
    ];
    for (header, value) in passed {
        let Some(value) = value else { continue };
        header_value(header, value, MAX_HEADER_BYTES)?;
        if value.is_empty() {
            let (header, value) = (header.to_owned(), String::new());
            return Err(ValidationError::HeaderValue {
                header,
                value,
                reason: "is empty",
            });
        }
    }
    if let Some(encoding) = &headers.content_encoding
        && encoding
            .split(',')
            .any(|word| word.trim().eq_ignore_ascii_case("aws-chunked"))
    {
        return Err(ValidationError::HeaderValue {
            header: "Content-Encoding".to_owned(),
            value: head(encoding),
            reason: "`aws-chunked` is a transfer detail, and never used here",
        });
    }
    if headers.sse_kms_key_id.is_some()
        && !headers
            .server_side_encryption
            .as_deref()
            .is_some_and(|sse| sse.starts_with("aws:kms"))
    {
        return Err(ValidationError::HeaderValue {
            header: "x-amz-server-side-encryption".to_owned(),
            value: head(
                headers
                    .server_side_encryption
                    .as_deref()
                    .unwrap_or_default(),
            ),
            reason: "a KMS key needs `aws:kms` here",
        });
    }
    metadata(headers, write_id)
}

fn metadata(headers: &ObjectHeaders, write_id: Option<&str>) -> Result<(), ValidationError> {
    let mut bytes = 0_usize;
    let mut seen = BTreeSet::new();
    for (name, value) in &headers.metadata {
        let refuse = |reason| {
            Err(ValidationError::MetadataName {
                name: head(name),
                reason,
            })
        };
        if name.is_empty() || !name.bytes().all(in_token) {
            return refuse("is not the name of a header");
        }
        let lower = name.to_ascii_lowercase();
        if lower == WRITE_ID {
            return refuse("is this crate's own");
        }
        if !seen.insert(lower) {
            return refuse("is there twice: names do not differ by case");
        }
        header_value(name, value, MAX_METADATA_BYTES)?;
        bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
    }
    if let Some(id) = write_id {
        header_value("x-amz-meta-write-id", id, MAX_METADATA_BYTES)?;
        bytes = bytes
            .saturating_add(WRITE_ID.len())
            .saturating_add(id.len());
    }
    if bytes > MAX_METADATA_BYTES {
        return Err(ValidationError::MetadataTooLarge {
            bytes,
            limit: MAX_METADATA_BYTES,
        });
    }
    Ok(())
}

/// Checks all of what an upload of `size` bytes under `prefix` and `key` is made of, before it is
/// accepted: key, size (in parts or not), headers.
///
/// # Errors
/// The first thing that S3 must refuse.
pub fn upload(
    under: &str,
    name: &str,
    size: u64,
    with: &ObjectHeaders,
    write_id: Option<&str>,
) -> Result<(), ValidationError> {
    key(under, name)?;
    PartPlan::for_size(size, MIN_PART_BYTES)?;
    headers(with, write_id)
}

#[cfg(test)]
mod tests;
