//! What can go wrong in an example itself, as one error.
#![allow(dead_code, reason = "each example uses a part of it")]

use std::io;

/// Why a run could not be carried through. Lost rows and broken promises are not a failure of the
/// run: they are its result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Queue(Box<s3_writeback::Error>),
    #[error("S3: {0}")]
    S3(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("a task of the example ended badly: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Stuck(&'static str),
}

impl From<s3_writeback::Error> for Failure {
    fn from(error: s3_writeback::Error) -> Self {
        Self::Queue(Box::new(error))
    }
}

impl Failure {
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        Self::Io { what, source }
    }

    pub fn task(error: tokio::task::JoinError) -> Self {
        Self::Task(error)
    }

    /// An error of the SDK, with the causes that its own text leaves out.
    pub fn s3(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::S3(text)
    }
}
