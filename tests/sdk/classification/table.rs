//! The table: what a server does, to which request, and what that means. One line a row.

use std::time::Duration;

use s3_writeback::remote::Class::{self, Conflict, Environment, Permanent, Throttle, Transient};
use s3_writeback::remote::Effect::{self, NotApplied, Unknown};

use crate::scripted::{Action, error_body};

/// What the server does.
#[derive(Debug, Clone)]
pub enum Does {
    /// Answers with a status and a code; without a body where the code is empty.
    Says(u16, &'static str),
    /// The same, with headers.
    SaysWith(u16, &'static str, &'static [(&'static str, &'static str)]),
    /// The same, with a message.
    SaysBecause(u16, &'static str, &'static str),
    /// Begins an answer with this status, and closes in the middle of its body.
    CutOff(u16),
    /// Promises more bytes of the object than come.
    Short,
    /// Sends the object's bytes with the checksum of others.
    Damaged,
    /// Says that it has stored other bytes than were sent.
    StoresOther,
    /// Something else on the same connection.
    Wire(Action),
    /// There is no server.
    Nobody,
    /// There is no such name.
    NoName,
    /// It speaks no TLS, and we do; or says nothing to it.
    Plain,
    SilentToTls,
    /// Nobody gives us credentials.
    NoCredentials,
    /// The request cannot be made.
    Refused,
}

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// `If-None-Match: *`.
    Put,
    /// `If-Match`.
    Swap,
    /// No condition.
    Overwrite,
    /// No condition; 32 MiB.
    Large,
    /// No condition; bytes that are not those of their checksum any more.
    Corrupt,
    Get,
    Range,
    Head,
    /// `If-Match`.
    Delete,
    Part,
    /// No condition.
    Complete,
    /// `If-None-Match: *`.
    CompleteNew,
}

/// What becomes of a write-once task whose PUT meets this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Again after a back-off; never given up, never in quarantine.
    Again,
    /// Quarantined after this one attempt.
    Quarantine,
    /// It is asked what is there, and whose it is decides.
    Look,
    /// Not one PUT of a task: what the upload in parts does about it is tested beside it
    /// (`src/remote/multipart/tests.rs`), a reader is told.
    Other,
}
use On::*;
use Then::{Again, Look, Other, Quarantine};

#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub does: Does,
    pub on: On,
    pub class: Class,
    pub effect: Effect,
    pub retryable: bool,
    /// Empty for none.
    pub code: &'static str,
    pub then: Then,
    /// What its message must have in it.
    pub says: &'static str,
    pub retry_after: Option<Duration>,
}

#[allow(clippy::too_many_arguments, reason = "the columns of the table")]
fn row(
    name: &'static str,
    does: Does,
    on: On,
    class: Class,
    effect: Effect,
    retryable: bool,
    code: &'static str,
    then: Then,
) -> Row {
    Row {
        name,
        does,
        on,
        class,
        effect,
        retryable,
        code,
        then,
        says: "",
        retry_after: None,
    }
}

impl Row {
    fn saying(self, says: &'static str) -> Self {
        Self { says, ..self }
    }

    fn after(self, millis: u64) -> Self {
        let retry_after = Some(Duration::from_millis(millis));
        Self {
            retry_after,
            ..self
        }
    }

    /// An answer by its status and code alone, which the error repeats.
    fn by(
        on: On,
        (status, code): (u16, &'static str),
        class: Class,
        effect: Effect,
        then: Then,
    ) -> Self {
        let retryable = !matches!(class, Permanent | Conflict);
        row(
            code,
            Does::Says(status, code),
            on,
            class,
            effect,
            retryable,
            code,
            then,
        )
    }

    pub fn status(&self) -> Option<u16> {
        match self.does {
            Does::Says(status, _)
            | Does::SaysWith(status, ..)
            | Does::SaysBecause(status, ..)
            | Does::CutOff(status) => Some(status),
            _ => None,
        }
    }

    /// What a scripted server is told; `None` where there is none.
    pub fn action(&self) -> Option<Action> {
        let xml = |code: &str, headers: &[(&str, &str)], status| {
            Action::with(status, headers, error_body(code))
        };
        Some(match &self.does {
            Does::Says(status, code) => Action::error(*status, code),
            Does::SaysWith(status, code, headers) => xml(code, headers, *status),
            Does::SaysBecause(status, code, why) => {
                let body = error_body(code).replace("scripted", why);
                Action::with(*status, &[], body)
            }
            Does::CutOff(status) => Action::CutOff {
                status: *status,
                headers: Vec::new(),
                promised: 500,
                body: error_body("InternalError").into_bytes()[..40].to_vec(),
            },
            Does::Short => Action::CutOff {
                status: 200,
                headers: vec![("etag".to_owned(), "\"e\"".to_owned())],
                promised: 500,
                body: vec![1; 40],
            },
            Does::Damaged => {
                let headers = [
                    ("etag", "\"e\""),
                    ("x-amz-checksum-crc64nvme", "AAAAAAAAAAE="),
                ];
                Action::with(200, &headers, "other bytes")
            }
            Does::StoresOther => {
                let headers = [
                    ("etag", "\"e\""),
                    ("x-amz-checksum-crc64nvme", "AAAAAAAAAAE="),
                ];
                Action::with(200, &headers, "")
            }
            Does::Wire(action) => action.clone(),
            Does::Plain => Action::Babble(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            Does::SilentToTls => Action::NeverRead,
            Does::NoCredentials | Does::Refused => Action::ok(),
            Does::Nobody | Does::NoName => return None,
        })
    }
}

const REGION: &[(&str, &str)] = &[("x-amz-bucket-region", "eu-west-7")];
const SECONDS: &[(&str, &str)] = &[("retry-after", "7")];
const MILLIS: &[(&str, &str)] = &[("x-amz-retry-after", "1500")];
const BOTH: &[(&str, &str)] = &[("retry-after", "1"), ("x-amz-retry-after", "1500")];
const LONG: &[(&str, &str)] = &[("retry-after", "86400")];
const SKEWED: &[(&str, &str)] = &[("date", "Thu, 01 Jan 2099 00:00:00 GMT")];

#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
    use Does::*;
    let on_put = |status, code, class, effect, then| Row::by(Put, (status, code), class, effect, then);
    vec![
        // Throttles: again, and less of it.
        on_put(503, "SlowDown", Throttle, NotApplied, Again),
        on_put(503, "SlowDownRead", Throttle, NotApplied, Again),
        on_put(503, "SlowDownWrite", Throttle, NotApplied, Again),
        on_put(503, "ServiceUnavailable", Throttle, NotApplied, Again),
        on_put(429, "TooManyRequests", Throttle, NotApplied, Again),
        on_put(429, "", Throttle, NotApplied, Again),
        on_put(429, "NeverHeardOf", Throttle, NotApplied, Again),
        on_put(400, "KMS.ThrottlingException", Throttle, NotApplied, Again),
        row("503 of a proxy", Says(503, ""), Put, Throttle, Unknown, true, "", Again),
        row("503 in seconds", SaysWith(503, "SlowDown", SECONDS), Put, Throttle, NotApplied, true, "SlowDown", Again).after(7_000),
        row("503 in milliseconds", SaysWith(503, "SlowDown", MILLIS), Put, Throttle, NotApplied, true, "SlowDown", Again).after(1_500),
        row("503 in both", SaysWith(503, "SlowDown", BOTH), Put, Throttle, NotApplied, true, "SlowDown", Again).after(1_500),
        row("503 for a day", SaysWith(503, "SlowDown", LONG), Put, Throttle, NotApplied, true, "SlowDown", Again).after(300_000),
        row("429 in seconds", SaysWith(429, "TooManyRequests", SECONDS), Put, Throttle, NotApplied, true, "TooManyRequests", Again).after(7_000),
        row("500 in milliseconds", SaysWith(500, "InternalError", MILLIS), Put, Transient, Unknown, true, "InternalError", Again).after(1_500),

        // The server's own trouble.
        on_put(500, "InternalError", Transient, Unknown, Again),
        on_put(502, "", Transient, Unknown, Again),
        on_put(504, "", Transient, Unknown, Again),
        on_put(400, "RequestTimeout", Transient, NotApplied, Again),
        on_put(503, "RequestTimeout", Transient, NotApplied, Again),
        on_put(408, "", Transient, Unknown, Again),
        on_put(503, "XMinioServerNotInitialized", Transient, NotApplied, Again),
        on_put(503, "XMinioBackendDown", Transient, NotApplied, Again),
        on_put(503, "XMinioAdminConfigNoQuorum", Transient, NotApplied, Again),
        on_put(500, "KMS.InternalException", Transient, Unknown, Again),

        // Races that the server resolved by refusing this one.
        on_put(409, "ConditionalRequestConflict", Transient, NotApplied, Again),
        on_put(409, "OperationAborted", Transient, NotApplied, Again),

        // It arrived short, or changed.
        on_put(400, "IncompleteBody", Transient, NotApplied, Again),
        on_put(411, "MissingContentLength", Transient, NotApplied, Again),
        on_put(400, "BadDigest", Transient, NotApplied, Again),
        on_put(400, "InvalidDigest", Transient, NotApplied, Again),
        on_put(400, "XAmzContentSHA256Mismatch", Transient, NotApplied, Again),
        on_put(400, "XAmzContentChecksumMismatch", Transient, NotApplied, Again),
        row("bad here: digest", Says(400, "BadDigest"), Corrupt, Permanent, NotApplied, false, "BadDigest", Other),
        row("bad here: SHA-256", Says(400, "XAmzContentSHA256Mismatch"), Corrupt, Permanent, NotApplied, false, "XAmzContentSHA256Mismatch", Other),

        // Clock and credentials.
        row("clock", SaysWith(403, "RequestTimeTooSkewed", SKEWED), Put, Environment, NotApplied, true, "RequestTimeTooSkewed", Again),
        on_put(400, "ExpiredToken", Environment, NotApplied, Again),
        on_put(400, "TokenRefreshRequired", Environment, NotApplied, Again),
        on_put(403, "InvalidTokenId", Environment, NotApplied, Again),
        on_put(403, "InvalidAccessKeyId", Environment, NotApplied, Again),
        on_put(403, "SignatureDoesNotMatch", Environment, NotApplied, Again),
        on_put(403, "AccessDenied", Environment, NotApplied, Again),
        on_put(403, "AllAccessDisabled", Environment, NotApplied, Again),
        on_put(403, "AccountProblem", Environment, NotApplied, Again),
        on_put(403, "", Environment, NotApplied, Again),
        on_put(403, "NeverHeardOf", Environment, NotApplied, Again),
        row("no credentials", NoCredentials, Put, Environment, NotApplied, true, "CredentialsUnavailable", Other),
        row("a 400 to HEAD", Says(400, ""), Head, Environment, NotApplied, true, "", Other),
        row("a 403 to HEAD", Says(403, ""), Head, Environment, NotApplied, true, "", Other),

        // Bucket and region.
        on_put(404, "NoSuchBucket", Environment, NotApplied, Again),
        row("bucket gone, read", Says(404, "NoSuchBucket"), Get, Environment, NotApplied, true, "NoSuchBucket", Other),
        row("301", SaysWith(301, "PermanentRedirect", REGION), Put, Environment, NotApplied, true, "PermanentRedirect", Again).saying("region eu-west-7"),
        row("307", SaysWith(307, "TemporaryRedirect", REGION), Put, Environment, NotApplied, true, "TemporaryRedirect", Again).saying("region eu-west-7"),
        row("400, another region", SaysWith(400, "AuthorizationHeaderMalformed", REGION), Put, Environment, NotApplied, true, "AuthorizationHeaderMalformed", Again).saying("region eu-west-7"),
        on_put(400, "IllegalLocationConstraintException", Environment, NotApplied, Again),

        // Storage is full.
        on_put(507, "XMinioStorageFull", Environment, NotApplied, Again),
        on_put(507, "", Environment, NotApplied, Again),
        on_put(400, "XMinioAdminBucketQuotaExceeded", Environment, NotApplied, Again),
        on_put(403, "QuotaExceeded", Environment, NotApplied, Again),
        row("500, and its disk is full", SaysBecause(500, "InternalError", "write: no space left on device"), Put, Environment, Unknown, true, "InternalError", Again),

        // Conditions.
        on_put(412, "PreconditionFailed", Conflict, NotApplied, Look),
        on_put(412, "", Conflict, NotApplied, Look),
        row("swap of what changed", Says(412, "PreconditionFailed"), Swap, Conflict, NotApplied, false, "PreconditionFailed", Other),
        row("swap of what is gone", Says(404, "NoSuchKey"), Swap, Conflict, NotApplied, false, "NoSuchKey", Other),
        row("delete of what changed", Says(412, "PreconditionFailed"), Delete, Conflict, NotApplied, false, "PreconditionFailed", Other),
        row("delete of what is gone", Says(404, "NoSuchKey"), Delete, Conflict, NotApplied, false, "NoSuchKey", Other),
        row("completion too late", Says(412, "PreconditionFailed"), CompleteNew, Conflict, NotApplied, false, "PreconditionFailed", Other),
        row("completion in a race", Says(409, "ConditionalRequestConflict"), CompleteNew, Transient, NotApplied, false, "ConditionalRequestConflict", Other),

        // What this request can never have.
        on_put(501, "NotImplemented", Permanent, NotApplied, Quarantine),
        on_put(400, "EntityTooLarge", Permanent, NotApplied, Quarantine),
        on_put(413, "", Permanent, NotApplied, Quarantine),
        on_put(400, "KeyTooLongError", Permanent, NotApplied, Quarantine),
        on_put(400, "MetadataTooLarge", Permanent, NotApplied, Quarantine),
        on_put(400, "InvalidArgument", Permanent, NotApplied, Quarantine),
        on_put(400, "InvalidRequest", Permanent, NotApplied, Quarantine),
        on_put(403, "ObjectLocked", Permanent, NotApplied, Quarantine),
        on_put(403, "KMS.DisabledException", Permanent, NotApplied, Quarantine),
        on_put(400, "KMS.NotFoundException", Permanent, NotApplied, Quarantine),
        on_put(400, "XMinioInvalidObjectName", Permanent, NotApplied, Quarantine),
        on_put(400, "XMinioParentIsObject", Permanent, NotApplied, Quarantine),
        on_put(409, "XMinioObjectExistsAsDirectory", Permanent, NotApplied, Quarantine),
        row("refused here", Refused, Put, Permanent, NotApplied, false, "RequestNotBuilt", Other),
        row("found damaged there", Says(206, "XMinioObjectTampered"), Get, Permanent, NotApplied, false, "XMinioObjectTampered", Other),
        row("range found damaged", Says(206, "XMinioObjectTampered"), Range, Permanent, NotApplied, false, "XMinioObjectTampered", Other),

        // Uploads in parts.
        row("part of a lost upload", Says(404, "NoSuchUpload"), Part, Transient, NotApplied, false, "NoSuchUpload", Other),
        row("completion of a lost one", Says(404, "NoSuchUpload"), Complete, Transient, Unknown, false, "NoSuchUpload", Other),
        row("a part is not there", Says(400, "InvalidPart"), Complete, Permanent, NotApplied, false, "InvalidPart", Other),
        row("parts out of order", Says(400, "InvalidPartOrder"), Complete, Permanent, NotApplied, false, "InvalidPartOrder", Other),
        row("a part is too small", Says(400, "EntityTooSmall"), Complete, Permanent, NotApplied, false, "EntityTooSmall", Other),
        row("a part refused in a 503", Says(503, "SlowDown"), Part, Throttle, NotApplied, true, "SlowDown", Other),
        row("a part without answer", Wire(Action::Reset), Part, Transient, Unknown, true, "", Other),

        // An error in a success.
        on_put(200, "InternalError", Transient, Unknown, Again),
        row("200, slow down", Says(200, "SlowDown"), Put, Throttle, Unknown, true, "SlowDown", Again),
        row("completed, and not", Says(200, "InternalError"), Complete, Transient, Unknown, true, "InternalError", Other),
        row("completed, slow down", Says(200, "SlowDown"), Complete, Throttle, Unknown, true, "SlowDown", Other),

        // What nobody has heard of: by its status.
        on_put(400, "NeverHeardOf", Transient, NotApplied, Again),
        on_put(409, "NeverHeardOf", Transient, NotApplied, Again),
        on_put(418, "", Transient, NotApplied, Again),
        on_put(500, "NeverHeardOf", Transient, Unknown, Again),
        on_put(503, "NeverHeardOf", Transient, Unknown, Again),
        on_put(599, "", Transient, Unknown, Again),
        row("a 404 that is not S3's", Says(404, ""), Get, Transient, NotApplied, true, "NotFound", Other),

        // No answer, or a part of one.
        row("cut off: 500", CutOff(500), Put, Transient, Unknown, true, "", Again),
        row("cut off: 503", CutOff(503), Put, Throttle, Unknown, true, "", Again),
        row("cut off: 403", CutOff(403), Put, Environment, Unknown, true, "", Again),
        row("cut off: 412", CutOff(412), Put, Transient, Unknown, true, "", Again),
        row("cut off: read", CutOff(500), Get, Transient, NotApplied, true, "", Other),
        row("object cut off", Short, Get, Transient, NotApplied, true, "BodyDamaged", Other),
        row("object damaged on its way", Damaged, Get, Transient, NotApplied, true, "BodyDamaged", Other),
        row("stored otherwise", StoresOther, Put, Transient, Unknown, true, "ChecksumMismatch", Again),
        row("no entity tag", Wire(Action::with(200, &[], "")), Put, Transient, Unknown, true, "", Again),
        row("RST after the body", Wire(Action::Reset), Put, Transient, Unknown, true, "", Again),
        row("RST, unconditional", Wire(Action::Reset), Overwrite, Transient, Unknown, true, "", Other),
        row("RST to a read", Wire(Action::Reset), Get, Transient, NotApplied, true, "", Other),
        row("FIN after the body", Wire(Action::Close), Put, Transient, Unknown, true, "", Again),
        row("FIN to a read", Wire(Action::Close), Head, Transient, NotApplied, true, "", Other),
        row("never answers", Wire(Action::NeverAnswer), Put, Transient, Unknown, true, "", Again),
        row("never answers 32 MiB", Wire(Action::NeverAnswer), Large, Transient, Unknown, true, "", Other),
        row("never reads 32 MiB", Wire(Action::NeverRead), Large, Transient, Unknown, true, "", Other),
        row("never answers a read", Wire(Action::NeverAnswer), Get, Transient, NotApplied, true, "", Other),

        // No connection.
        row("nobody there", Nobody, Put, Transient, NotApplied, true, "ConnectFailure", Other),
        row("no such name", NoName, Put, Transient, NotApplied, true, "DnsFailure", Other),
        row("no TLS there", Plain, Put, Environment, NotApplied, true, "TlsFailure", Other),
        row("TLS without an answer", SilentToTls, Put, Transient, NotApplied, true, "ConnectFailure", Other),
    ]
}
