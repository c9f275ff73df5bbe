//! Reading the body of a GET: whole, or an error.

use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::error::chain;
use crate::remote::RemoteError;
use crate::remote::classify::{Failure, Request, Transport};

/// The largest buffer that is made because a server promised bytes, before they come.
const MAX_PROMISED_BUFFER: u64 = 64 << 20;

/// Reads a body to its end; fewer bytes than promised are an error.
pub(super) async fn collect(
    request: Request,
    mut body: ByteStream,
    promised: Option<u64>,
) -> Result<Bytes, RemoteError> {
    let room = promised.unwrap_or_default().min(MAX_PROMISED_BUFFER);
    let mut bytes = BytesMut::with_capacity(usize::try_from(room).unwrap_or_default());
    while let Some(next) = body.next().await {
        match next {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => {
                let text = format!("after {} bytes: {}", bytes.len(), chain(&error));
                return Err(damaged(request, &text));
            }
        }
    }
    match promised {
        Some(promised) if promised != bytes.len() as u64 => {
            let text = format!("{} bytes came, {promised} were promised", bytes.len());
            Err(damaged(request, &text))
        }
        _ => Ok(bytes.freeze()),
    }
}

pub(super) fn damaged(request: Request, text: &str) -> RemoteError {
    RemoteError::classified(request, Failure::Transport(Transport::BodyDamaged), text)
}

/// The bytes of a range, as many of them as the object has. A server may answer with the whole
/// object (it then says 200, without a content range); then it is cut here.
pub(super) fn of_range(
    request: Request,
    body: Bytes,
    (first, length): (u64, u64),
    size: u64,
    partial: bool,
) -> Result<Bytes, RemoteError> {
    let expected = length.min(size.saturating_sub(first));
    if partial {
        return if body.len() as u64 == expected {
            Ok(body)
        } else {
            let text = format!("{} bytes came of a range of {expected}", body.len());
            Err(damaged(request, &text))
        };
    }
    let start = usize::try_from(first).ok();
    let end = usize::try_from(first.saturating_add(expected)).ok();
    match start.zip(end) {
        Some((start, end)) if start < end && end <= body.len() => Ok(body.slice(start..end)),
        _ => Err(RemoteError::permanent(
            request.operation.name(),
            416,
            "InvalidRange",
        )),
    }
}
