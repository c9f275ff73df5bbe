//! How a request's body is sent: in frames, and with or without a signature over it.
//!
//! Owns: the frames, and the choice between a signed and an unsigned payload. Does not own the
//! bytes' checksum, which is a header of the request and signed with it either way.
//!
//! The SDK is given the bytes in memory, so that it sets the length and leaves `aws-chunked`
//! alone; an interceptor then swaps the body:
//!
//! - Before signing, where the payload is not to be signed: the signer sees a body that is not in
//!   memory and writes `UNSIGNED-PAYLOAD`.
//! - Before transmission otherwise: the signature covers the bytes, and the wire gets frames.
//!
//! Frames bound what hyper copies: over TLS it flattens what it sends into one buffer, and a body
//! of one frame would be copied whole.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::builder::PayloadSigning;

/// The size of a frame in bytes.
pub(super) const FRAME: usize = 128 * 1024;

/// Bytes, handed over a frame at a time without copying.
struct Frames {
    left: Bytes,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(FRAME);
        let frame = self.left.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

fn framed(bytes: &Bytes) -> SdkBody {
    let bytes = bytes.clone();
    SdkBody::retryable(move || {
        SdkBody::from_body_1_x(Frames {
            left: bytes.clone(),
        })
    })
}

/// Swaps the body of one request for frames of it.
#[derive(Debug)]
pub(super) struct Framed {
    bytes: Bytes,
    signing: PayloadSigning,
}

impl Framed {
    pub(super) fn new(bytes: Bytes, signing: PayloadSigning) -> Self {
        Self { bytes, signing }
    }

    fn signs(&self, uri: &str) -> bool {
        match self.signing {
            PayloadSigning::Always => true,
            PayloadSigning::Never => false,
            PayloadSigning::OverPlainHttp => !uri.starts_with("https:"),
        }
    }
}

#[dyn_dispatch_hint]
impl Intercept for Framed {
    fn name(&self) -> &'static str {
        "FramedBody"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        if !self.signs(request.uri()) && !self.bytes.is_empty() {
            *request.body_mut() = framed(&self.bytes);
        }
        Ok(())
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        if self.bytes.len() > FRAME && request.body().bytes().is_some() {
            *request.body_mut() = framed(&self.bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn frames_are_the_bytes_in_order_and_the_hint_is_exact() {
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 7] {
            let bytes: Bytes = (0..length).map(|at| (at % 251) as u8).collect();
            let mut frames = Frames {
                left: bytes.clone(),
            };
            let mut seen = Vec::new();
            loop {
                let left = bytes.len() - seen.len();
                assert_eq!(frames.size_hint().exact(), Some(left as u64));
                assert_eq!(frames.is_end_stream(), left == 0);
                let next = poll_fn(|cx| Pin::new(&mut frames).poll_frame(cx)).await;
                let Some(Ok(frame)) = next else { break };
                let data = frame.into_data().unwrap();
                assert!(!data.is_empty() && data.len() <= FRAME);
                seen.extend_from_slice(&data);
            }
            assert_eq!(seen, bytes);
        }
    }

    #[test]
    fn only_plain_http_signs_by_default() {
        let framed = |signing| Framed::new(Bytes::new(), signing);
        assert!(framed(PayloadSigning::OverPlainHttp).signs("http://host/key"));
        assert!(!framed(PayloadSigning::OverPlainHttp).signs("https://host/key"));
        assert!(framed(PayloadSigning::Always).signs("https://host/key"));
        assert!(!framed(PayloadSigning::Never).signs("http://host/key"));
    }
}
