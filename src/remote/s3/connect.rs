//! The first contact: are there credentials, is there the bucket, is it here?
//!
//! Owns: the question and the typed answers. What is trouble of the world later on is an error of
//! the configuration here, before anything was accepted.

use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials;
use tokio::time::{Instant, timeout_at};

use super::S3Remote;
use super::error::{chain, fail, is_elsewhere, region_in};
use crate::remote::classify::{Operation, Request};
use crate::remote::{Class, RemoteError};

/// Why there is no connection to work with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing says which region.
    #[error("no region is configured for bucket {bucket:?}")]
    NoRegion {
        /// The bucket.
        bucket: String,
    },
    /// Nothing gives credentials.
    #[error("no credentials for bucket {bucket:?}: {cause}")]
    NoCredentials {
        /// The bucket.
        bucket: String,
        /// What the provider said.
        cause: String,
    },
    /// The server does not take the credentials.
    #[error("bucket {bucket:?} does not accept the credentials: {error}")]
    CredentialsRejected {
        /// The bucket.
        bucket: String,
        /// What the server said.
        error: RemoteError,
    },
    /// The credentials are good, and not for this.
    #[error("no access to bucket {bucket:?}, or it belongs to another account: {error}")]
    AccessDenied {
        /// The bucket.
        bucket: String,
        /// What the server said.
        error: RemoteError,
    },
    /// There is no such bucket.
    #[error("there is no bucket {bucket:?}")]
    NoSuchBucket {
        /// The bucket.
        bucket: String,
    },
    /// The bucket is in another region.
    #[error(
        "bucket {bucket:?} is in region {}, not in {configured:?}",
        .actual.as_deref().unwrap_or("(the server does not say which)")
    )]
    OtherRegion {
        /// The bucket.
        bucket: String,
        /// The region that is configured.
        configured: String,
        /// The region the server names, if it does.
        actual: Option<String>,
    },
    /// The clock is too far off for signatures to be believed.
    #[error("the clock of this machine and that of bucket {bucket:?} are too far apart: {error}")]
    ClockSkewed {
        /// The bucket.
        bucket: String,
        /// What the server said.
        error: RemoteError,
    },
    /// No answer before the deadline.
    #[error("bucket {bucket:?}: {what} took longer than {after:?}")]
    Deadline {
        /// The bucket.
        bucket: String,
        /// What did.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// Anything else; [`RemoteError::retryable`] says whether to ask again.
    #[error("bucket {bucket:?} cannot be used: {error}")]
    Failed {
        /// The bucket.
        bucket: String,
        /// What went wrong.
        error: RemoteError,
    },
}

const HERE: Request = Request {
    operation: Operation::ListObjectsV2,
    conditional: false,
    body_intact: true,
};

/// Whether this says that the bucket is elsewhere.
fn elsewhere(error: &RemoteError) -> bool {
    is_elsewhere(error.code.as_deref()) || matches!(error.status, Some(301 | 302 | 303 | 307 | 308))
}

impl S3Remote {
    /// Resolves credentials and asks the bucket one question, all within `deadline`.
    ///
    /// # Errors
    /// [`ConnectError`], which names the bucket and what is wrong with it.
    ///
    /// # Cancel safety
    /// Changes nothing; may be dropped and called again.
    pub async fn connect(&self, deadline: Duration) -> Result<(), ConnectError> {
        let until = Instant::now() + deadline;
        let bucket = || self.bucket.clone();
        let late = |what| ConnectError::Deadline {
            bucket: bucket(),
            what,
            after: deadline,
        };
        let Some(configured) = self.region.clone() else {
            return Err(ConnectError::NoRegion { bucket: bucket() });
        };
        let Some(provider) = &self.credentials else {
            let cause = "no provider is configured".to_owned();
            return Err(ConnectError::NoCredentials {
                bucket: bucket(),
                cause,
            });
        };
        match timeout_at(until, provider.provide_credentials()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let cause = chain(&error);
                return Err(ConnectError::NoCredentials {
                    bucket: bucket(),
                    cause,
                });
            }
            Err(_) => return Err(late("resolving credentials")),
        }
        if !self.check_bucket {
            return Ok(());
        }
        // Not HeadBucket: an answer to HEAD has no body, so that a wrong key, a missing
        // permission and a wrong clock look the same.
        let question = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(""))
            .max_keys(1)
            .set_expected_bucket_owner(self.owner.clone())
            .send();
        let error = match timeout_at(until, question).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => return Err(late("the first request")),
        };
        let actual = region_in(&error);
        let error = fail(HERE, error, || true);
        if elsewhere(&error) {
            return Err(ConnectError::OtherRegion {
                bucket: bucket(),
                configured,
                actual,
            });
        }
        Err(match error.code.as_deref() {
            Some("NoSuchBucket") => ConnectError::NoSuchBucket { bucket: bucket() },
            Some("RequestTimeTooSkewed") => ConnectError::ClockSkewed {
                bucket: bucket(),
                error,
            },
            Some(
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "InvalidTokenId"
                | "TokenRefreshRequired",
            ) => ConnectError::CredentialsRejected {
                bucket: bucket(),
                error,
            },
            Some("CredentialsUnavailable") => {
                let cause = error.message;
                ConnectError::NoCredentials {
                    bucket: bucket(),
                    cause,
                }
            }
            _ if error.class == Class::Environment && error.status == Some(403) => {
                ConnectError::AccessDenied {
                    bucket: bucket(),
                    error,
                }
            }
            _ => ConnectError::Failed {
                bucket: bucket(),
                error,
            },
        })
    }
}
