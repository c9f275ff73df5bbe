//! Setting a remote up: what is taken from the host's configuration, and what is not.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};

use super::identity::{RefreshableCache, SharedCache};
use super::{S3Remote, http};
use crate::remote::validate::{self, ValidationError};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// Whether the bytes of uploads are covered by the request's signature. Their CRC-64 always is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PayloadSigning {
    /// Signed over plain HTTP; over HTTPS, where TLS covers them, not (`UNSIGNED-PAYLOAD`): a
    /// SHA-256 of every byte is most of what an upload costs in CPU. The default.
    #[default]
    OverPlainHttp,
    /// Always signed.
    Always,
    /// Never signed.
    Never,
}

/// Sets an [`S3Remote`] up.
#[derive(Debug, Clone)]
pub struct S3Builder {
    config: SdkConfig,
    bucket: String,
    prefix: String,
    owner: Option<String>,
    path_style: Option<bool>,
    signing: PayloadSigning,
    check_bucket: bool,
}

impl S3Builder {
    pub(super) fn new(config: &SdkConfig) -> Self {
        Self {
            config: config.clone(),
            bucket: String::new(),
            prefix: String::new(),
            owner: None,
            path_style: None,
            signing: PayloadSigning::default(),
            check_bucket: true,
        }
    }

    /// The bucket. Required.
    #[must_use]
    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = bucket.into();
        self
    }

    /// What all keys begin with, such as `databases/seven`. Default: nothing.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The account that must own the bucket (`x-amz-expected-bucket-owner`). Default: any.
    #[must_use]
    pub fn expected_bucket_owner(mut self, account: impl Into<String>) -> Self {
        self.owner = Some(account.into());
        self
    }

    /// Whether the bucket is in the path (`https://host/bucket/key`) and not in the host's name.
    /// Default: where `config` has an endpoint. An endpoint for S3 alone
    /// (`AWS_ENDPOINT_URL_S3`) is not seen here; set this with it.
    #[must_use]
    pub fn path_style(mut self, path_style: bool) -> Self {
        self.path_style = Some(path_style);
        self
    }

    /// Whether uploads are signed over their bytes. Default: [`PayloadSigning::OverPlainHttp`].
    #[must_use]
    pub fn payload_signing(mut self, signing: PayloadSigning) -> Self {
        self.signing = signing;
        self
    }

    /// Whether [`S3Remote::connect`] asks the bucket a question (it lists one key, which needs
    /// `s3:ListBucket`). Default: yes.
    #[must_use]
    pub fn check_bucket(mut self, check: bool) -> Self {
        self.check_bucket = check;
        self
    }

    /// Builds it. Nothing is sent; see [`S3Remote::connect`].
    ///
    /// An HTTP client in `config` is used as it is; without one there is one of our own.
    ///
    /// # Errors
    /// [`ValidationError`]: the bucket's name, or the prefix.
    pub fn build(self) -> Result<S3Remote, ValidationError> {
        validate::bucket(&self.bucket)?;
        let prefix = validate::prefix(&self.prefix)?;
        let identity = Arc::new(RefreshableCache::new());
        let has_endpoint = self.config.endpoint_url().is_some();
        // No read, attempt or operation timeout: the layer above ends attempts by their size.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .disable_read_timeout()
            .disable_operation_attempt_timeout()
            .disable_operation_timeout()
            .build();
        let mut client = aws_sdk_s3::config::Builder::from(&self.config)
            .behavior_version(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // A second opinion on when an attempt is dead; it has ended healthy uploads over slow
            // links, and the attempt deadline says it better.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .identity_cache(SharedCache(Arc::clone(&identity)))
            .force_path_style(self.path_style.unwrap_or(has_endpoint));
        if self.config.http_client().is_none() {
            client = client.http_client(http::client());
        }
        // Servers with an endpoint of their own seldom have regions; signing needs one.
        let mut region = self
            .config
            .region()
            .map(|region| region.as_ref().to_owned());
        if region.is_none() && has_endpoint {
            client = client.region(Region::from_static("us-east-1"));
            region = Some("us-east-1".to_owned());
        }
        Ok(S3Remote {
            client: Client::from_conf(client.build()),
            bucket: self.bucket,
            prefix,
            owner: self.owner,
            signing: self.signing,
            identity,
            server: Arc::default(),
            credentials: self.config.credentials_provider(),
            region,
            check_bucket: self.check_bucket,
        })
    }
}
