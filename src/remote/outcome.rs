//! Errors of one request: what it did, and what to do about it.
//!
//! Owns: [`RemoteError`], its effect and class, and the bounds of what it carries. Does not own:
//! how a status, a code or a broken connection becomes one (that is [`super::classify`]).
//!
//! 1. A message is at most [`MAX_MESSAGE_BYTES`] long and ends at a character.
//! 2. A server's wish to be left alone is honoured up to [`MAX_RETRY_AFTER`] and no longer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::classify::{Failure, Operation, Request, Verdict, classify};

/// What a failed request may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Nothing: the server refused it, or never saw it.
    NotApplied,
    /// The reply was lost: it may have happened, and may still happen.
    Unknown,
}

/// What kind of failure it was, and so how it is reacted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Back off and retry, for ever.
    Transient,
    /// As transient, and send less.
    Throttle,
    /// The world is not right (credentials, bucket, storage, clock): park, probe.
    Environment,
    /// This request will never succeed.
    Permanent,
    /// A condition did not hold.
    Conflict,
}

impl Class {
    /// Whether what failed so is tried again, by whoever made the request. Of one request
    /// [`RemoteError::retryable`] says it more exactly.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Transient | Self::Throttle | Self::Environment => true,
            Self::Permanent | Self::Conflict => false,
        }
    }
}

/// The longest error text that is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// The longest that a server can tell us to stay away.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A request that did not end as applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{operation}: {class:?}, {effect:?}: {}{}{message}",
    .status.map(|s| format!("{s} ")).unwrap_or_default(),
    .code.as_deref().map(|c| format!("{c}: ")).unwrap_or_default())]
pub struct RemoteError {
    /// The S3 operation, such as `PutObject`.
    pub operation: String,
    /// What it may have done.
    pub effect: Effect,
    /// What kind of failure.
    pub class: Class,
    /// Whether the very same request can succeed later. Not the same as its class: an upload in
    /// parts that the server has lost is transient, for another one is begun, and no request with
    /// its id will ever succeed.
    pub retryable: bool,
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
    /// S3's error code, where there was one.
    pub code: Option<String>,
    /// At most [`MAX_MESSAGE_BYTES`], cut at a character.
    pub message: String,
    /// From `Retry-After` or `x-amz-retry-after`, at most [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
}

impl RemoteError {
    /// The error of `request` that failed as `failure`, classified.
    #[must_use]
    pub fn classified(request: Request, failure: Failure<'_>, message: &str) -> Self {
        let Verdict {
            effect,
            class,
            retryable,
        } = classify(request, failure);
        let (status, code) = match failure {
            Failure::Answer { status, code, .. } => (Some(status), code.map(cut_code)),
            Failure::Transport(kind) => (None, kind.code().map(str::to_owned)),
        };
        Self {
            operation: request.operation.name().to_owned(),
            effect,
            class,
            retryable,
            status,
            code,
            message: cut(message),
            retry_after: None,
        }
    }

    fn made(operation: impl Into<String>, effect: Effect, class: Class, message: &str) -> Self {
        Self {
            operation: operation.into(),
            effect,
            class,
            retryable: class.is_retryable(),
            status: None,
            code: None,
            message: cut(message),
            retry_after: None,
        }
    }

    fn answered(mut self, status: u16, code: &str) -> Self {
        self.status = Some(status);
        self.code = Some(cut_code(code));
        self
    }

    /// A transient failure that did nothing, such as a refused connection.
    #[must_use]
    pub fn transient(operation: impl Into<String>) -> Self {
        Self::made(
            operation,
            Effect::NotApplied,
            Class::Transient,
            "transient failure",
        )
    }

    /// An attempt that ended at its deadline: of a write, nobody knows what it did.
    #[must_use]
    pub fn timed_out(operation: impl Into<String>) -> Self {
        let operation = operation.into();
        let effect = lost_reply_effect(&operation);
        Self::made(
            operation,
            effect,
            Class::Transient,
            "no answer before the attempt's deadline",
        )
    }

    /// An attempt whose reply was lost: of a write, nobody knows what it did.
    #[must_use]
    pub fn lost(operation: impl Into<String>) -> Self {
        let operation = operation.into();
        let effect = lost_reply_effect(&operation);
        Self::made(
            operation,
            effect,
            Class::Transient,
            "the connection ended before an answer",
        )
    }

    /// A `503 SlowDown`.
    #[must_use]
    pub fn throttled(operation: impl Into<String>) -> Self {
        Self::made(
            operation,
            Effect::NotApplied,
            Class::Throttle,
            "please reduce your rate",
        )
        .answered(503, "SlowDown")
    }

    /// A refusal that is not the request's fault, such as `403 AccessDenied`.
    #[must_use]
    pub fn environment(operation: impl Into<String>, status: u16, code: &str) -> Self {
        Self::made(operation, Effect::NotApplied, Class::Environment, "refused")
            .answered(status, code)
    }

    /// A refusal that the same request will always get, such as `400 InvalidArgument`.
    #[must_use]
    pub fn permanent(operation: impl Into<String>, status: u16, code: &str) -> Self {
        Self::made(operation, Effect::NotApplied, Class::Permanent, "refused")
            .answered(status, code)
    }

    /// A `412 PreconditionFailed`.
    #[must_use]
    pub fn conflict(operation: impl Into<String>) -> Self {
        Self::made(
            operation,
            Effect::NotApplied,
            Class::Conflict,
            "a precondition did not hold",
        )
        .answered(412, "PreconditionFailed")
    }

    /// The same error with another effect.
    #[must_use]
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    /// The same error with another message, cut to [`MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn with_message(mut self, message: &str) -> Self {
        self.message = cut(message);
        self
    }

    /// The same error with the server's wish, cut to [`MAX_RETRY_AFTER`].
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after.map(|wish| wish.min(MAX_RETRY_AFTER));
        self
    }

    /// The same error, with no text longer than is kept: what made it may be somebody else's.
    #[must_use]
    pub(crate) fn bounded(mut self) -> Self {
        self.operation = cut_code(&self.operation);
        self.code = self.code.as_deref().map(cut_code);
        if self.message.len() > MAX_MESSAGE_BYTES {
            self.message = cut(&self.message);
        }
        self.retry_after = self.retry_after.map(|wish| wish.min(MAX_RETRY_AFTER));
        self
    }

    /// Whether S3 said exactly this code.
    #[must_use]
    pub fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// What a lost reply of `operation` leaves open; anything not known to be a read is a write.
fn lost_reply_effect(operation: &str) -> Effect {
    match Operation::by_name(operation) {
        Some(operation) if !operation.is_write() => Effect::NotApplied,
        _ => Effect::Unknown,
    }
}

/// `text`, at most [`MAX_MESSAGE_BYTES`] long, cut at a character.
#[must_use]
pub fn cut(text: &str) -> String {
    cut_to(text, MAX_MESSAGE_BYTES).to_owned()
}

/// A code is a word; a server that sends a page where the word belongs is cut short.
fn cut_code(code: &str) -> String {
    cut_to(code, 128).to_owned()
}

fn cut_to(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    &text[..end]
}

/// How long the server asks to be left alone, from the values of `Retry-After` (seconds; the form
/// with a date is not used by S3 and ignored) and `x-amz-retry-after` (milliseconds). The longer
/// one counts, up to [`MAX_RETRY_AFTER`].
#[must_use]
pub fn parse_retry_after(
    retry_after: Option<&str>,
    x_amz_retry_after: Option<&str>,
) -> Option<Duration> {
    let seconds = retry_after
        .and_then(|value| value.trim().parse::<u64>().ok())
        .map(Duration::from_secs);
    let millis = x_amz_retry_after
        .and_then(|value| value.trim().parse::<u64>().ok())
        .map(Duration::from_millis);
    seconds.max(millis).map(|wish| wish.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::classify::Transport;
    use proptest::prelude::*;

    #[test]
    fn a_message_of_5_mib_is_cut_at_a_character() {
        // 3 bytes each: 1,024 is not a multiple of 3, so a cut at the byte would tear one.
        let text = "\u{20ac}".repeat(5 << 20);
        let request = Request::new(Operation::PutObject);
        let error = RemoteError::classified(
            request,
            Failure::Answer {
                status: 500,
                code: Some("InternalError"),
                message: &text,
            },
            &text,
        );
        assert_eq!(error.message.len(), 1023);
        assert!(error.message.chars().all(|c| c == '\u{20ac}'));
        assert!(serde_json::to_string(&error).is_ok());
    }

    #[test]
    fn a_code_that_is_a_page_is_cut() {
        let page = "x".repeat(10_000);
        let failure = Failure::Answer {
            status: 500,
            code: Some(&page),
            message: "",
        };
        let error = RemoteError::classified(Request::new(Operation::GetObject), failure, "");
        assert_eq!(error.code.map(|code| code.len()), Some(128));
    }

    proptest! {
        #[test]
        fn a_cut_is_a_prefix_within_the_limit(text in "\\PC{0,600}") {
            let short = cut(&text);
            prop_assert!(short.len() <= MAX_MESSAGE_BYTES);
            prop_assert!(text.starts_with(&short));
            prop_assert!(text.len() <= MAX_MESSAGE_BYTES || short.len() > MAX_MESSAGE_BYTES - 4);
        }
    }

    #[test]
    fn retry_after_is_seconds_and_milliseconds() {
        assert_eq!(
            parse_retry_after(Some("7"), None),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            parse_retry_after(None, Some("1500")),
            Some(Duration::from_millis(1500))
        );
        assert_eq!(
            parse_retry_after(Some("1"), Some("1500")),
            Some(Duration::from_millis(1500))
        );
        assert_eq!(
            parse_retry_after(Some("Wed, 21 Oct 2026 07:28:00 GMT"), None),
            None
        );
        assert_eq!(parse_retry_after(Some("-1"), Some("")), None);
        assert_eq!(
            parse_retry_after(Some("999999999999"), None),
            Some(MAX_RETRY_AFTER)
        );
        assert_eq!(parse_retry_after(None, None), None);
    }

    #[test]
    fn a_read_that_timed_out_did_nothing_and_a_write_is_unknown() {
        assert_eq!(
            RemoteError::timed_out("GetObject").effect,
            Effect::NotApplied
        );
        assert_eq!(
            RemoteError::timed_out("HeadObject").effect,
            Effect::NotApplied
        );
        assert_eq!(RemoteError::timed_out("PutObject").effect, Effect::Unknown);
        assert_eq!(
            RemoteError::timed_out("SomethingNew").effect,
            Effect::Unknown
        );
        assert_eq!(
            RemoteError::lost("CompleteMultipartUpload").effect,
            Effect::Unknown
        );
    }

    #[test]
    fn what_is_displayed_names_operation_class_effect_status_and_code() {
        let text = RemoteError::throttled("PutObject").to_string();
        for word in ["PutObject", "Throttle", "NotApplied", "503", "SlowDown"] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
    }

    #[test]
    fn a_transport_failure_has_no_status() {
        let failure = Failure::Transport(Transport::Io);
        let error = RemoteError::classified(Request::new(Operation::PutObject), failure, "reset");
        assert_eq!((error.status, error.effect), (None, Effect::Unknown));
    }
}
