//! From an error of the SDK to a [`RemoteError`]: taking it apart.
//!
//! Owns: where in the SDK's error the status, the code, the wish to be left alone and the kind of
//! a broken connection are. Does not own what they mean ([`crate::remote::classify`]).

use std::error::Error;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::remote::RemoteError;
use crate::remote::classify::{Failure, Request, Transport, classify};
use crate::remote::outcome::{Class, Effect, cut, parse_retry_after};

/// The most links of a chain of causes that are looked at.
const MAX_CHAIN: usize = 16;

/// Codes that say that the bytes are not those of the checksum.
const DIGEST_CODES: [&str; 4] = [
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
];

/// An error and its causes.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    let mut next = Some(error);
    let causes = std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    });
    causes.take(MAX_CHAIN)
}

/// An error and its causes as text, bounded.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        // Many errors print their cause too.
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
        if text.len() > crate::remote::outcome::MAX_MESSAGE_BYTES {
            break;
        }
    }
    cut(&text)
}

/// The HTTP status, where there was an answer.
pub(super) fn status_of<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error
        .raw_response()
        .map(|response| response.status().as_u16())
}

/// How a connection failed, from the chain of causes.
pub(super) fn transport_of(error: &(dyn Error + 'static), timeout: bool) -> Transport {
    let connecting = causes(error).any(|cause| {
        cause
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect)
    });
    let text = chain(error).to_ascii_lowercase();
    if connecting {
        if text.contains("certificate") || text.contains("tls") || text.contains("handshake") {
            return Transport::Tls;
        }
        if text.contains("dns error") || text.contains("failed to lookup address") {
            return Transport::Dns;
        }
        return Transport::ConnectRefused;
    }
    if timeout {
        Transport::Timeout
    } else {
        Transport::Io
    }
}

/// Whether it is about credentials that could not be had.
fn about_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<aws_credential_types::provider::error::CredentialsError>())
        || {
            let text = chain(error).to_ascii_lowercase();
            text.contains("credential") || text.contains("identity")
        }
}

/// The error of `request`. `intact` looks at the bytes again; it is asked only where the server
/// says that they do not have their checksum.
pub(super) fn fail<E>(
    request: Request,
    error: SdkError<E, HttpResponse>,
    intact: impl FnOnce() -> bool,
) -> RemoteError
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let retry_after = error.raw_response().and_then(|response| {
        let header = |name: &str| response.headers().get(name);
        parse_retry_after(header("retry-after"), header("x-amz-retry-after"))
    });
    let status = status_of(&error);
    let region = region_in(&error);
    let made = match &error {
        SdkError::ServiceError(context) => {
            let inner = context.err();
            let code = inner.code().filter(|code| !code.is_empty());
            let mut text = match inner.message() {
                Some(message) => cut(message),
                None => chain(inner),
            };
            if let Some(region) = region
                && (is_elsewhere(code) || matches!(status, Some(300..400)))
            {
                text = cut(&format!("the bucket is in region {region}: {text}"));
            }
            let about_digest = code.is_some_and(|code| DIGEST_CODES.contains(&code));
            let request = if about_digest {
                request.body_intact(intact())
            } else {
                request
            };
            let status = status.unwrap_or(500);
            let failure = Failure::Answer {
                status,
                code,
                message: &text,
            };
            RemoteError::classified(request, failure, &text)
        }
        SdkError::ResponseError(_) => cut_off(request, status, &chain(&error)),
        SdkError::ConstructionFailure(_) => {
            let kind = if about_credentials(&error) {
                Transport::Credentials
            } else {
                Transport::Construction
            };
            RemoteError::classified(request, Failure::Transport(kind), &chain(&error))
        }
        SdkError::TimeoutError(_) => {
            let kind = transport_of(&error, true);
            RemoteError::classified(request, Failure::Transport(kind), &chain(&error))
        }
        SdkError::DispatchFailure(failure) => {
            let kind = match failure.as_connector_error() {
                Some(_) if about_credentials(&error) => Transport::Credentials,
                Some(connector) if connector.is_user() => Transport::Construction,
                Some(connector) => transport_of(connector, connector.is_timeout()),
                None => Transport::Io,
            };
            RemoteError::classified(request, Failure::Transport(kind), &chain(&error))
        }
        // The SDK may add kinds: of what is not known, nothing is.
        _ => RemoteError::classified(request, Failure::Transport(Transport::Io), &chain(&error)),
    };
    made.with_retry_after(retry_after)
}

/// The region that the server says the bucket is in.
pub(super) fn region_in<E>(error: &SdkError<E, HttpResponse>) -> Option<String> {
    let headers = error.raw_response()?.headers();
    let region = headers.get("x-amz-bucket-region")?;
    // A word; from a server that is not what we take it for, too.
    Some(region.chars().take(64).collect())
}

/// Whether a code says that the bucket is in another region.
pub(super) fn is_elsewhere(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(
            "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
        )
    )
}

/// An answer that broke off, or is not S3's. Its status still tells whether to slow down or to
/// look at the world; that it was definite, it does not.
fn cut_off(request: Request, status: Option<u16>, text: &str) -> RemoteError {
    let failure = Failure::Transport(Transport::ResponseParse);
    let mut made = RemoteError::classified(request, failure, text);
    made.status = status;
    if let Some(status) = status.filter(|status| *status >= 300) {
        let failure = Failure::Answer {
            status,
            code: None,
            message: text,
        };
        let class = classify(request, failure).class;
        if matches!(class, Class::Throttle | Class::Environment) {
            made.class = class;
        }
    }
    if request.operation.is_write() {
        made.effect = Effect::Unknown;
    }
    made
}
