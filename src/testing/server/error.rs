//! Why the storage refused, and what S3 calls that.

use std::io;

use s3s::{S3Error, S3ErrorCode};

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the bucket does not exist")]
    NoSuchBucket,
    #[error("the key does not exist")]
    NoSuchKey,
    #[error("the upload does not exist: it was completed, given up, or never started")]
    NoSuchUpload,
    #[error("the bucket exists and is yours")]
    BucketAlreadyOwnedByYou,
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    #[error("the condition {0} does not hold")]
    PreconditionFailed(&'static str),
    #[error("not modified")]
    NotModified,
    #[error("part {0} is missing, or not the one that was uploaded")]
    InvalidPart(i32),
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    #[error("part {part} has {size} bytes, less than the minimum of {minimum}")]
    EntityTooSmall { part: i32, size: u64, minimum: u64 },
    #[error("the {0} that was sent is not that of the bytes that arrived")]
    BadDigest(&'static str),
    #[error("the {0} that was sent is not one")]
    InvalidDigest(&'static str),
    #[error("{0}")]
    InvalidRequest(String),
    #[error("{0}")]
    InvalidArgument(&'static str),
    #[error("{0}")]
    MalformedTrailer(String),
    #[error("the body ended early: {0}")]
    IncompleteBody(String),
    #[error("the SHA-256 of the body is not the one that was signed")]
    ContentSha256Mismatch,
    #[error("the signature of a chunk does not match")]
    ChunkSignature,
    #[error("metadata of {0} bytes is more than 2048")]
    MetadataTooLarge(usize),
    #[error("the range cannot be satisfied")]
    InvalidRange,
    #[error("{0}")]
    NotImplemented(&'static str),
    #[error("the storage failed: {0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    fn code(&self) -> S3ErrorCode {
        match self {
            Self::NoSuchBucket => S3ErrorCode::NoSuchBucket,
            Self::NoSuchKey => S3ErrorCode::NoSuchKey,
            Self::NoSuchUpload => S3ErrorCode::NoSuchUpload,
            Self::BucketAlreadyOwnedByYou => S3ErrorCode::BucketAlreadyOwnedByYou,
            Self::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
            Self::PreconditionFailed(_) => S3ErrorCode::PreconditionFailed,
            Self::NotModified => S3ErrorCode::NotModified,
            Self::InvalidPart(_) => S3ErrorCode::InvalidPart,
            Self::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
            Self::EntityTooSmall { .. } => S3ErrorCode::EntityTooSmall,
            Self::BadDigest(_) => S3ErrorCode::BadDigest,
            Self::InvalidDigest(_) => S3ErrorCode::InvalidDigest,
            Self::InvalidRequest(_) => S3ErrorCode::InvalidRequest,
            Self::InvalidArgument(_) => S3ErrorCode::InvalidArgument,
            Self::MalformedTrailer(_) => S3ErrorCode::Custom("MalformedTrailerError".into()),
            Self::IncompleteBody(_) => S3ErrorCode::IncompleteBody,
            Self::ContentSha256Mismatch => S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            Self::ChunkSignature => S3ErrorCode::SignatureDoesNotMatch,
            Self::MetadataTooLarge(_) => S3ErrorCode::MetadataTooLarge,
            Self::InvalidRange => S3ErrorCode::InvalidRange,
            Self::NotImplemented(_) => S3ErrorCode::NotImplemented,
            Self::Io(_) => S3ErrorCode::InternalError,
        }
    }
}

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> Self {
        let custom = matches!(
            error,
            StoreError::MalformedTrailer(_) | StoreError::ContentSha256Mismatch
        );
        let mut s3 = S3Error::with_message(error.code(), error.to_string());
        if custom {
            s3.set_status_code(hyper::StatusCode::BAD_REQUEST);
        }
        s3
    }
}
