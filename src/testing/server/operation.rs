//! Which S3 operation an HTTP request is.
//!
//! Owns: the names, and the decision, made from method, path, query and headers alone, so that
//! a fault can be chosen before anything else has looked at the request.

use hyper::HeaderMap;
use hyper::Method;

/// An S3 operation, as far as this server tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// PUT of a whole object.
    PutObject,
    /// GET of an object or a range of it.
    GetObject,
    /// HEAD of an object.
    HeadObject,
    /// DELETE of an object.
    DeleteObject,
    /// DELETE of many objects in one request.
    DeleteObjects,
    /// A page of keys.
    ListObjectsV2,
    /// Starts a multipart upload.
    CreateMultipartUpload,
    /// One part of a multipart upload.
    UploadPart,
    /// Makes an object of parts.
    CompleteMultipartUpload,
    /// Gives a multipart upload up.
    AbortMultipartUpload,
    /// The parts of one upload.
    ListParts,
    /// The unfinished uploads of a bucket.
    ListMultipartUploads,
    /// Whether a bucket exists.
    HeadBucket,
    /// Makes a bucket.
    CreateBucket,
    /// Removes an empty bucket.
    DeleteBucket,
    /// All buckets.
    ListBuckets,
    /// Anything else.
    Other,
}

impl Operation {
    /// The name S3 gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PutObject => "PutObject",
            Self::GetObject => "GetObject",
            Self::HeadObject => "HeadObject",
            Self::DeleteObject => "DeleteObject",
            Self::DeleteObjects => "DeleteObjects",
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::CreateMultipartUpload => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::CompleteMultipartUpload => "CompleteMultipartUpload",
            Self::AbortMultipartUpload => "AbortMultipartUpload",
            Self::ListParts => "ListParts",
            Self::ListMultipartUploads => "ListMultipartUploads",
            Self::HeadBucket => "HeadBucket",
            Self::CreateBucket => "CreateBucket",
            Self::DeleteBucket => "DeleteBucket",
            Self::ListBuckets => "ListBuckets",
            Self::Other => "Other",
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub operation: Operation,
    pub bucket: Option<String>,
    pub key: Option<String>,
}

/// Decides from the request line and headers.
pub(super) fn classify(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Target {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = match path.split_once('/') {
        Some((bucket, key)) => (bucket, key),
        None => (path, ""),
    };
    let has = |name: &str| {
        query.is_some_and(|q| {
            q.split('&')
                .any(|pair| pair.split_once('=').map_or(pair, |(n, _)| n) == name)
        })
    };
    let operation = if bucket.is_empty() {
        if *method == Method::GET {
            Operation::ListBuckets
        } else {
            Operation::Other
        }
    } else if key.is_empty() {
        match *method {
            Method::GET if has("list-type") => Operation::ListObjectsV2,
            Method::GET if has("uploads") => Operation::ListMultipartUploads,
            Method::POST if has("delete") => Operation::DeleteObjects,
            Method::HEAD => Operation::HeadBucket,
            Method::PUT if query.is_none_or(str::is_empty) => Operation::CreateBucket,
            Method::DELETE if query.is_none_or(str::is_empty) => Operation::DeleteBucket,
            _ => Operation::Other,
        }
    } else {
        match *method {
            Method::PUT if headers.contains_key("x-amz-copy-source") => Operation::Other,
            Method::PUT if has("uploadId") => Operation::UploadPart,
            Method::POST if has("uploads") => Operation::CreateMultipartUpload,
            Method::POST if has("uploadId") => Operation::CompleteMultipartUpload,
            Method::DELETE if has("uploadId") => Operation::AbortMultipartUpload,
            Method::GET if has("uploadId") => Operation::ListParts,
            Method::PUT | Method::GET | Method::DELETE
                if ["tagging", "acl", "retention", "legal-hold", "attributes"]
                    .iter()
                    .any(|n| has(n)) =>
            {
                Operation::Other
            }
            Method::PUT => Operation::PutObject,
            Method::GET => Operation::GetObject,
            Method::HEAD => Operation::HeadObject,
            Method::DELETE => Operation::DeleteObject,
            _ => Operation::Other,
        }
    };
    let part = |text: &str| (!text.is_empty()).then(|| percent_decode(text));
    Target {
        operation,
        bucket: part(bucket),
        key: part(key),
    }
}

/// Undoes percent-encoding; what is not UTF-8 afterwards is replaced, as it can only be refused.
fn percent_decode(text: &str) -> String {
    let hex = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%'
            && let (Some(high), Some(low)) = (
                bytes.get(at + 1).copied().and_then(hex),
                bytes.get(at + 2).copied().and_then(hex),
            )
        {
            out.push(high * 16 + low);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, uri: &str) -> Target {
        let (path, query) = uri
            .split_once('?')
            .map_or((uri, None), |(p, q)| (p, Some(q)));
        classify(&method, path, query, &HeaderMap::new())
    }

    #[test]
    fn every_operation_is_told_apart() {
        let cases = [
            (Method::PUT, "/b/k", Operation::PutObject),
            (Method::PUT, "/b/k?x-id=PutObject", Operation::PutObject),
            (Method::GET, "/b/k?x-id=GetObject", Operation::GetObject),
            (Method::HEAD, "/b/k", Operation::HeadObject),
            (Method::DELETE, "/b/k", Operation::DeleteObject),
            (Method::POST, "/b?delete", Operation::DeleteObjects),
            (Method::POST, "/b/?delete", Operation::DeleteObjects),
            (
                Method::GET,
                "/b?list-type=2&prefix=x",
                Operation::ListObjectsV2,
            ),
            (
                Method::POST,
                "/b/k?uploads",
                Operation::CreateMultipartUpload,
            ),
            (
                Method::PUT,
                "/b/k?partNumber=1&uploadId=u",
                Operation::UploadPart,
            ),
            (
                Method::POST,
                "/b/k?uploadId=u",
                Operation::CompleteMultipartUpload,
            ),
            (
                Method::DELETE,
                "/b/k?uploadId=u",
                Operation::AbortMultipartUpload,
            ),
            (Method::GET, "/b/k?uploadId=u", Operation::ListParts),
            (
                Method::GET,
                "/b?uploads&prefix=k",
                Operation::ListMultipartUploads,
            ),
            (Method::HEAD, "/b", Operation::HeadBucket),
            (Method::PUT, "/b", Operation::CreateBucket),
            (Method::DELETE, "/b/", Operation::DeleteBucket),
            (Method::GET, "/", Operation::ListBuckets),
            (Method::GET, "/b/k?tagging", Operation::Other),
            (Method::GET, "/b?location", Operation::Other),
        ];
        for (method, uri, operation) in cases {
            assert_eq!(
                of(method.clone(), uri).operation,
                operation,
                "{method} {uri}"
            );
        }
    }

    #[test]
    fn keys_are_decoded() {
        let target = of(Method::PUT, "/b/a%2Fb//%C3%A9%25+%");
        assert_eq!(target.bucket.as_deref(), Some("b"));
        assert_eq!(target.key.as_deref(), Some("a/b//é%+%"));
    }
}
