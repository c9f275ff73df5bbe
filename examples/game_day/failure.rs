//! What can go wrong in the day itself, as one error.

use std::io;

/// Why a day could not be carried through. A broken promise is not a failure: it is the result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Queue(Box<s3_writeback::Error>),
    #[error("S3: {0}")]
    S3(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("a task of the day ended badly: {0}")]
    Task(#[from] tokio::task::JoinError),
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
}
