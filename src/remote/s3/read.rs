//! Reading the body of a GET: whole, or an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::{Bytes, BytesMut};

use super::error::chain;
use super::wire::unreadable;
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

/// How much of a body is looked at for an error.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// The error of a GET that was answered with a success and no object. MinIO says so, with 206, of
/// an object whose bytes it finds damaged; the SDK takes it for the object.
pub(super) async fn refused(request: Request, status: u16, mut body: ByteStream) -> RemoteError {
    let mut bytes = BytesMut::new();
    while bytes.len() < MAX_ERROR_BODY
        && let Some(Ok(chunk)) = body.next().await
    {
        bytes.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&bytes);
    let within = |name: &str| {
        let (_, from) = text.split_once(&format!("<{name}>"))?;
        from.split_once(&format!("</{name}>"))
            .map(|(inside, _)| inside)
    };
    let code = text
        .contains("<Error>")
        .then(|| within("Code"))
        .flatten()
        .filter(|code| !code.is_empty());
    let Some(code) = code else {
        return unreadable(request, "no entity tag");
    };
    let message = within("Message").unwrap_or_default();
    let failure = Failure::Answer {
        status,
        code: Some(code),
        message,
    };
    RemoteError::classified(request, failure, message)
}

/// Remembers the status of an answer, which the SDK does not tell of a success.
#[derive(Debug, Clone, Default)]
pub(super) struct StatusOf(Arc<AtomicU16>);

impl StatusOf {
    pub(super) fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }
}

#[dyn_dispatch_hint]
impl Intercept for StatusOf {
    fn name(&self) -> &'static str {
        "StatusOf"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let status = context.response().status().as_u16();
        self.0.store(status, Ordering::Relaxed);
        Ok(())
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
