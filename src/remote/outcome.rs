//! Errors of one request: what it did, and what to do about it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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

/// The longest error text that is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;

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
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
    /// S3's error code, where there was one.
    pub code: Option<String>,
    /// At most [`MAX_MESSAGE_BYTES`], cut at a character.
    pub message: String,
    /// From `Retry-After` or `x-amz-retry-after`.
    pub retry_after: Option<Duration>,
}
