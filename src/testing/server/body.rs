//! The body of an upload as s3s hands it over, and what was claimed about it.

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::HeaderMap;
use s3s::dto::StreamingBlob;
use s3s::{StdError, TrailingHeaders};

use super::checksum::{Algorithm, Claims};
use super::error::StoreError;
use super::store::NewBody;

/// Reads all of it and collects the checksums that came in headers and trailers.
///
/// `expected` is the length that the request promised.
pub(super) async fn read(
    body: Option<StreamingBlob>,
    expected: Option<i64>,
    headers: &HeaderMap,
    trailers: Option<&TrailingHeaders>,
) -> Result<NewBody, StoreError> {
    let body = match body {
        Some(body) => collect(body).await?,
        None => Bytes::new(),
    };
    // s3s ends an aws-chunked body quietly where it is cut between chunks.
    if expected.is_some_and(|n| u64::try_from(n).ok() != Some(body.len() as u64)) {
        return Err(StoreError::IncompleteBody(format!(
            "after {} bytes",
            body.len()
        )));
    }
    let trailers = trailers
        .and_then(|t| t.read(HeaderMap::clone))
        .unwrap_or_default();
    for promised in headers.get_all("x-amz-trailer") {
        let promised = promised.to_str().unwrap_or_default();
        for name in promised
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            if !trailers.contains_key(name) {
                return Err(StoreError::MalformedTrailer(format!("{name} is missing")));
            }
        }
    }
    let text = |map: &HeaderMap, name: &str| {
        map.get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    let mut claims = Claims {
        md5: text(headers, "content-md5"),
        checksums: Vec::new(),
    };
    for algorithm in Algorithm::ALL {
        for map in [headers, &trailers] {
            if let Some(value) = text(map, algorithm.header()) {
                claims.checksums.push((algorithm, value));
            }
        }
    }
    if headers.contains_key("x-amz-sdk-checksum-algorithm") && claims.checksums.is_empty() {
        return Err(StoreError::InvalidRequest(
            "x-amz-sdk-checksum-algorithm without a checksum header or trailer".into(),
        ));
    }
    Ok(NewBody { body, claims })
}

async fn collect(mut body: StreamingBlob) -> Result<Bytes, StoreError> {
    let mut first = Bytes::new();
    let mut whole: Option<BytesMut> = None;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| refused(&error))?;
        match &mut whole {
            Some(whole) => whole.extend_from_slice(&chunk),
            None if first.is_empty() => first = chunk,
            None => {
                let mut bytes = BytesMut::from(first.as_ref());
                bytes.extend_from_slice(&chunk);
                whole = Some(bytes);
            }
        }
    }
    Ok(whole.map_or(first, BytesMut::freeze))
}

/// s3s verifies signatures of bodies; its error types are private, their texts are not.
fn refused(error: &StdError) -> StoreError {
    let text = error.to_string();
    if text.contains("Sha256Mismatch") {
        StoreError::ContentSha256Mismatch
    } else if text.contains("SignatureMismatch") {
        StoreError::ChunkSignature
    } else if text.contains("FormatError") || text.contains("TooLarge") || text.contains("TooMany")
    {
        StoreError::InvalidRequest(text)
    } else {
        StoreError::IncompleteBody(text)
    }
}
