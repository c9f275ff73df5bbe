//! From an answer, or the lack of one, to an effect and a class: tables and pure functions.
//!
//! Owns: which S3 code or HTTP status means what. Does not own: how an SDK error is taken apart
//! (`s3`), nor what is done about a class (the workers).
//!
//! 1. A read has no effect, whatever happened to it.
//! 2. A definite refusal (4xx) of a write is `NotApplied`; an answer that may hide a success (any
//!    2xx with an error in it, a 5xx that does not say that nothing was done, no answer after the
//!    request had left) is `Unknown`. This holds for unconditional writes too: whether that
//!    matters is for the caller, who knows whether sending the same bytes again is harmless.
//! 3. What nobody has heard of is transient: never dropped, never quarantined.

use super::outcome::{Class, Effect};

/// The S3 operations that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// PUT of a whole object.
    PutObject,
    /// GET, whole or ranged.
    GetObject,
    /// HEAD.
    HeadObject,
    /// DELETE.
    DeleteObject,
    /// A page of keys.
    ListObjectsV2,
    /// The start of a multipart upload.
    CreateMultipartUpload,
    /// One part.
    UploadPart,
    /// The end of a multipart upload.
    CompleteMultipartUpload,
    /// Giving a multipart upload up.
    AbortMultipartUpload,
    /// The unfinished multipart uploads.
    ListMultipartUploads,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PutObject,
        Self::GetObject,
        Self::HeadObject,
        Self::DeleteObject,
        Self::ListObjectsV2,
        Self::CreateMultipartUpload,
        Self::UploadPart,
        Self::CompleteMultipartUpload,
        Self::AbortMultipartUpload,
        Self::ListMultipartUploads,
    ];

    /// S3's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PutObject => "PutObject",
            Self::GetObject => "GetObject",
            Self::HeadObject => "HeadObject",
            Self::DeleteObject => "DeleteObject",
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::CreateMultipartUpload => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::CompleteMultipartUpload => "CompleteMultipartUpload",
            Self::AbortMultipartUpload => "AbortMultipartUpload",
            Self::ListMultipartUploads => "ListMultipartUploads",
        }
    }

    /// The operation of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.name() == name)
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn is_write(self) -> bool {
        !matches!(
            self,
            Self::GetObject | Self::HeadObject | Self::ListObjectsV2 | Self::ListMultipartUploads
        )
    }
}

/// What of a request matters for its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which operation.
    pub operation: Operation,
    /// Whether it carried `If-Match` or `If-None-Match`.
    pub conditional: bool,
    /// Whether the bytes in memory still have the checksum they came with. Only looked at when
    /// the server says that they do not.
    pub body_intact: bool,
}

impl Request {
    /// An unconditional one, with an intact body.
    #[must_use]
    pub fn new(operation: Operation) -> Self {
        Self {
            operation,
            conditional: false,
            body_intact: true,
        }
    }

    /// The same, with or without a condition.
    #[must_use]
    pub fn conditional(mut self, conditional: bool) -> Self {
        self.conditional = conditional;
        self
    }

    /// The same, with what was found when its bytes were checksummed again.
    #[must_use]
    pub fn body_intact(mut self, intact: bool) -> Self {
        self.body_intact = intact;
        self
    }
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure<'a> {
    /// The server answered.
    Answer {
        /// The HTTP status; 2xx where an error came in the body.
        status: u16,
        /// S3's code, where there was one.
        code: Option<&'a str>,
        /// S3's message, or nothing.
        message: &'a str,
    },
    /// There was no answer, or none that can be read.
    Transport(Transport),
}

/// How the transport failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// No connection: refused, unreachable, connect timeout.
    ConnectRefused,
    /// The name has no address, now.
    Dns,
    /// No trust: certificate expired, unknown or of another name.
    Tls,
    /// No credentials could be had.
    Credentials,
    /// It could not be built, by fault of what was asked for.
    Construction,
    /// It failed before a byte was sent, in another way.
    DispatchBeforeSend,
    /// The connection broke after the request, or a part of it, had left.
    Io,
    /// No answer in time.
    Timeout,
    /// An answer that cannot be read: cut off, or not S3's.
    ResponseParse,
    /// The answer's body is shorter than promised, or has another checksum.
    BodyDamaged,
    /// A 2xx whose checksum is not ours.
    ChecksumMismatch,
}

impl Transport {
    /// A word for [`RemoteError::code`](super::RemoteError::code), where one helps.
    #[must_use]
    pub fn code(self) -> Option<&'static str> {
        match self {
            Self::Tls => Some("TlsFailure"),
            Self::Credentials => Some("CredentialsUnavailable"),
            Self::Construction => Some("RequestNotBuilt"),
            Self::Dns => Some("DnsFailure"),
            Self::ConnectRefused => Some("ConnectFailure"),
            Self::BodyDamaged => Some("BodyDamaged"),
            Self::ChecksumMismatch => Some("ChecksumMismatch"),
            Self::DispatchBeforeSend | Self::Io | Self::Timeout | Self::ResponseParse => None,
        }
    }
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What the request may have done.
    pub effect: Effect,
    /// How to react.
    pub class: Class,
    /// Whether the very same request can succeed later.
    pub retryable: bool,
}

/// For which requests a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    ConditionalWrite,
    Complete,
    Head,
    BodyBad,
    /// The message says that the server's disk is full.
    NoSpace,
}

/// Which code a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Is(&'static str),
    StartsWith(&'static str),
    None,
    Any,
}

/// Which status a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Any,
    Is(u16),
    Hundreds(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    status: Status,
    code: Code,
    when: When,
    class: Class,
    /// Of a write; a read has none.
    effect: Effect,
    /// Whether the same request can succeed later.
    retryable: bool,
}

const fn code(name: &'static str, class: Class, effect: Effect) -> Row {
    Row {
        status: Status::Any,
        code: Code::Is(name),
        when: When::Always,
        class,
        effect,
        retryable: class.is_retryable(),
    }
}

const fn status(status: u16, class: Class, effect: Effect) -> Row {
    Row {
        status: Status::Is(status),
        code: Code::Any,
        when: When::Always,
        class,
        effect,
        retryable: class.is_retryable(),
    }
}

/// Any status of these hundreds.
const fn hundreds(hundreds: u16, class: Class, effect: Effect) -> Row {
    let mut row = status(0, class, effect);
    row.status = Status::Hundreds(hundreds);
    row
}

const fn with_code(mut row: Row, code: Code) -> Row {
    row.code = code;
    row
}

/// The failure passes, and this request does not: another one takes its place.
const fn not_the_same(mut row: Row) -> Row {
    row.retryable = false;
    row
}

const fn when(mut row: Row, when: When) -> Row {
    row.when = when;
    row
}

use Class::{Conflict, Environment, Permanent, Throttle, Transient};
use Effect::{NotApplied, Unknown};

/// The first row that fits decides: codes first, then statuses, then the rest.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Throttles.
    code("SlowDown", Throttle, NotApplied),
    code("SlowDownRead", Throttle, NotApplied),
    code("SlowDownWrite", Throttle, NotApplied),
    code("ServiceUnavailable", Throttle, NotApplied),
    code("TooManyRequests", Throttle, NotApplied),
    code("TooManyRequestsException", Throttle, NotApplied),
    code("Throttling", Throttle, NotApplied),
    code("ThrottlingException", Throttle, NotApplied),
    code("ThrottledException", Throttle, NotApplied),
    code("RequestThrottled", Throttle, NotApplied),
    code("RequestThrottledException", Throttle, NotApplied),
    code("RequestLimitExceeded", Throttle, NotApplied),
    code("BandwidthLimitExceeded", Throttle, NotApplied),
    code("KMS.ThrottlingException", Throttle, NotApplied),
    // The server's own trouble. A full disk behind it is not trouble that backing off cures.
    when(code("InternalError", Environment, Unknown), When::NoSpace),
    code("InternalError", Transient, Unknown),
    code("RequestTimeout", Transient, NotApplied),
    code("XMinioServerNotInitialized", Transient, NotApplied),
    code("XMinioBackendDown", Transient, NotApplied),
    code("XMinioAdminConfigNoQuorum", Transient, NotApplied),
    // Races that the server resolved by refusing this one: nothing happened, try again.
    // Of a completion: the upload is spent, and its parts with it.
    when(not_the_same(code("ConditionalRequestConflict", Transient, NotApplied)), When::Complete),
    code("ConditionalRequestConflict", Transient, NotApplied),
    code("OperationAborted", Transient, NotApplied),
    // The request arrived short.
    code("IncompleteBody", Transient, NotApplied),
    code("MissingContentLength", Transient, NotApplied),
    // The bytes arrived changed: bad here, or bad on the wire?
    when(code("BadDigest", Permanent, NotApplied), When::BodyBad),
    code("BadDigest", Transient, NotApplied),
    when(code("InvalidDigest", Permanent, NotApplied), When::BodyBad),
    code("InvalidDigest", Transient, NotApplied),
    when(code("XAmzContentSHA256Mismatch", Permanent, NotApplied), When::BodyBad),
    code("XAmzContentSHA256Mismatch", Transient, NotApplied),
    when(code("XAmzContentChecksumMismatch", Permanent, NotApplied), When::BodyBad),
    code("XAmzContentChecksumMismatch", Transient, NotApplied),
    // Clock and credentials.
    code("RequestTimeTooSkewed", Environment, NotApplied),
    code("ExpiredToken", Environment, NotApplied),
    code("ExpiredTokenException", Environment, NotApplied),
    code("TokenRefreshRequired", Environment, NotApplied),
    code("InvalidToken", Environment, NotApplied),
    code("InvalidTokenId", Environment, NotApplied),
    code("InvalidAccessKeyId", Environment, NotApplied),
    code("SignatureDoesNotMatch", Environment, NotApplied),
    code("AccessDenied", Environment, NotApplied),
    code("AllAccessDisabled", Environment, NotApplied),
    code("AccountProblem", Environment, NotApplied),
    code("NotSignedUp", Environment, NotApplied),
    // Bucket and region.
    code("NoSuchBucket", Environment, NotApplied),
    code("PermanentRedirect", Environment, NotApplied),
    code("TemporaryRedirect", Environment, NotApplied),
    code("Redirect", Environment, NotApplied),
    code("AuthorizationHeaderMalformed", Environment, NotApplied),
    code("IllegalLocationConstraintException", Environment, NotApplied),
    // Storage is full.
    code("XMinioStorageFull", Environment, NotApplied),
    code("XMinioAdminBucketQuotaExceeded", Environment, NotApplied),
    code("QuotaExceeded", Environment, NotApplied),
    // Conditions. If-Match on a key that does not exist is 404 on S3, 412 elsewhere.
    code("PreconditionFailed", Conflict, NotApplied),
    when(code("NoSuchKey", Conflict, NotApplied), When::ConditionalWrite),
    // The SDK's word for a 404 without a body: not S3's, which would have said what is not there.
    code("NotFound", Transient, NotApplied),
    // A lost upload: of a completion it may mean that an earlier one went through.
    when(not_the_same(code("NoSuchUpload", Transient, Unknown)), When::Complete),
    not_the_same(code("NoSuchUpload", Transient, NotApplied)),
    // What this request can never have.
    code("EntityTooLarge", Permanent, NotApplied),
    code("EntityTooSmall", Permanent, NotApplied),
    code("KeyTooLongError", Permanent, NotApplied),
    code("KeyTooLong", Permanent, NotApplied),
    code("MetadataTooLarge", Permanent, NotApplied),
    code("InvalidArgument", Permanent, NotApplied),
    code("InvalidRequest", Permanent, NotApplied),
    code("InvalidPart", Permanent, NotApplied),
    code("InvalidPartOrder", Permanent, NotApplied),
    code("InvalidStorageClass", Permanent, NotApplied),
    code("InvalidEncryptionAlgorithmError", Permanent, NotApplied),
    code("InvalidBucketName", Permanent, NotApplied),
    code("InvalidURI", Permanent, NotApplied),
    code("InvalidRange", Permanent, NotApplied),
    code("InvalidObjectState", Permanent, NotApplied),
    code("InvalidTag", Permanent, NotApplied),
    code("MalformedXML", Permanent, NotApplied),
    code("MethodNotAllowed", Permanent, NotApplied),
    code("NotImplemented", Permanent, NotApplied),
    code("ObjectLocked", Permanent, NotApplied),
    code("XMinioInvalidObjectName", Permanent, NotApplied),
    code("XMinioParentIsObject", Permanent, NotApplied),
    code("XMinioObjectExistsAsDirectory", Permanent, NotApplied),
    code("XMinioObjectTampered", Permanent, NotApplied),
    // What a key service refuses; its own trouble comes as 5xx and passes.
    with_code(hundreds(4, Permanent, NotApplied), Code::StartsWith("KMS.")),
    // By status, where the code is missing or unknown.
    status(429, Throttle, NotApplied),
    status(507, Environment, NotApplied),
    status(401, Environment, NotApplied),
    status(403, Environment, NotApplied),
    status(301, Environment, NotApplied),
    status(307, Environment, NotApplied),
    status(308, Environment, NotApplied),
    status(412, Conflict, NotApplied),
    status(411, Transient, NotApplied),
    status(405, Permanent, NotApplied),
    status(413, Permanent, NotApplied),
    status(416, Permanent, NotApplied),
    status(501, Permanent, NotApplied),
    // An answer to HEAD has no body, so no code: 400 stands for an expired token or another
    // region, neither of which backing off cures.
    when(with_code(status(400, Environment, NotApplied), Code::None), When::Head),
    // A proxy's 408 or 503 is not S3's: what lies behind it may have gone through.
    status(408, Transient, Unknown),
    with_code(status(503, Throttle, Unknown), Code::None),
    hundreds(4, Transient, NotApplied),
    hundreds(3, Environment, NotApplied),
    Row { status: Status::Any, ..hundreds(0, Transient, Unknown) },
];

impl Row {
    fn fits(&self, request: Request, http: u16, said: Option<&str>, message: &str) -> bool {
        let status = match self.status {
            Status::Any => true,
            Status::Is(status) => status == http,
            Status::Hundreds(hundreds) => http / 100 == hundreds,
        };
        let code = match self.code {
            Code::Any => true,
            Code::None => said.is_none(),
            Code::Is(code) => said == Some(code),
            Code::StartsWith(start) => said.is_some_and(|said| said.starts_with(start)),
        };
        let when = match self.when {
            When::Always => true,
            When::ConditionalWrite => request.conditional && request.operation.is_write(),
            When::Complete => request.operation == Operation::CompleteMultipartUpload,
            When::Head => request.operation == Operation::HeadObject,
            When::BodyBad => !request.body_intact,
            When::NoSpace => message
                .to_ascii_lowercase()
                .contains("no space left on device"),
        };
        status && code && when
    }
}

/// What a failure of a request means: see the rows.
#[must_use]
pub fn classify(request: Request, failure: Failure<'_>) -> Verdict {
    let verdict = match failure {
        Failure::Transport(kind) => classify_transport(kind),
        Failure::Answer {
            status,
            code,
            message,
        } => {
            let code = code.filter(|code| !code.is_empty());
            let row = ROWS
                .iter()
                .find(|row| row.fits(request, status, code, message));
            let (class, effect, retryable) = row.map_or((Transient, Unknown, true), |row| {
                (row.class, row.effect, row.retryable)
            });
            // An error inside a success: S3 had begun to carry it out.
            let effect = if status / 100 == 2 { Unknown } else { effect };
            Verdict {
                effect,
                class,
                retryable,
            }
        }
    };
    if request.operation.is_write() {
        verdict
    } else {
        Verdict {
            effect: NotApplied,
            ..verdict
        }
    }
}

/// Whether some row names this code. What none names is transient by its status alone, which
/// somebody should look at: it is counted by name.
#[must_use]
pub fn is_listed(code: &str) -> bool {
    ROWS.iter().any(|row| match row.code {
        Code::Is(listed) => listed == code,
        Code::StartsWith(start) => code.starts_with(start),
        Code::None | Code::Any => false,
    })
}

fn classify_transport(kind: Transport) -> Verdict {
    let (effect, class) = match kind {
        Transport::ConnectRefused | Transport::Dns | Transport::DispatchBeforeSend => {
            (NotApplied, Transient)
        }
        Transport::Tls | Transport::Credentials => (NotApplied, Environment),
        Transport::Construction => (NotApplied, Permanent),
        Transport::Io
        | Transport::Timeout
        | Transport::ResponseParse
        | Transport::BodyDamaged
        | Transport::ChecksumMismatch => (Unknown, Transient),
    };
    Verdict {
        effect,
        class,
        retryable: class.is_retryable(),
    }
}

#[cfg(test)]
mod tests;
