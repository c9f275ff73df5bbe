//! The S3 that a run talks to: an embedded server, or somebody's endpoint.
//!
//! Owns: the server and the one `SdkConfig` that both the queue's remote and the plain client for
//! verification are made from. Nothing else is shared between the two: what verifies does not use
//! the code that it verifies.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region, SharedCredentialsProvider};
use s3_writeback::remote::Remote;
use s3_writeback::remote::s3::S3Remote;
use s3_writeback::testing::{Operation, S3Server};

use crate::failure::Failure;
use crate::options::Cli;

/// How long the first contact may take.
const CONNECT: Duration = Duration::from_secs(10);

/// An S3, and the way to it.
pub struct World {
    pub server: Option<S3Server>,
    config: SdkConfig,
    bucket: String,
    prefix: String,
}

impl World {
    /// The endpoint of the command line, or an embedded server that keeps its objects in `dir`.
    pub async fn start(cli: &Cli, dir: &Path) -> Result<Self, Failure> {
        let (server, config) = match &cli.endpoint {
            Some(endpoint) => {
                let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
                (None, loader.endpoint_url(endpoint).load().await)
            }
            None => {
                let server = S3Server::builder()
                    .bucket(&cli.bucket)
                    .dir(dir)
                    .start()
                    .await;
                let server = server.map_err(|error| Failure::io("the embedded server", error))?;
                let credentials = Credentials::new("test", "test-secret", None, None, "embedded");
                let config = SdkConfig::builder()
                    .behavior_version(BehaviorVersion::v2026_01_12())
                    .region(Region::new("us-east-1"))
                    .endpoint_url(server.endpoint())
                    .credentials_provider(SharedCredentialsProvider::new(credentials))
                    .build();
                (Some(server), config)
            }
        };
        Ok(Self {
            server,
            config,
            bucket: cli.bucket.clone(),
            prefix: cli.prefix.clone(),
        })
    }

    /// The queue's way to S3.
    pub async fn remote(&self) -> Result<Arc<dyn Remote>, Failure> {
        let remote = S3Remote::builder(&self.config)
            .bucket(&self.bucket)
            .prefix(&self.prefix)
            .build()
            .map_err(|error| Failure::S3(error.to_string()))?;
        remote
            .connect(CONNECT)
            .await
            .map_err(|error| Failure::S3(error.to_string()))?;
        Ok(Arc::new(remote))
    }

    /// A plain client of the bucket.
    pub fn bucket(&self) -> Bucket {
        let config = aws_sdk_s3::config::Builder::from(&self.config)
            .force_path_style(true)
            .build();
        Bucket {
            client: Client::from_conf(config),
            name: self.bucket.clone(),
            prefix: format!("{}/", self.prefix),
        }
    }

    /// PUTs that the embedded server saw.
    pub fn puts(&self) -> Option<u64> {
        let server = self.server.as_ref()?;
        Some(server.counters().requests(Operation::PutObject))
    }
}

/// A bucket as a plain client sees it, below the prefix of the run.
pub struct Bucket {
    pub client: Client,
    pub name: String,
    pub prefix: String,
}

impl Bucket {
    /// Refuses a prefix that holds anything: keys are write-once.
    pub async fn must_be_empty(&self) -> Result<(), Failure> {
        let list = self.client.list_objects_v2().bucket(&self.name);
        let found = list.prefix(&self.prefix).max_keys(1).send().await;
        match found.map_err(Failure::s3)?.contents().first() {
            None => Ok(()),
            Some(object) => Err(Failure::Usage(format!(
                "{:?} in bucket {} is there already: give another --prefix",
                object.key().unwrap_or_default(),
                self.name
            ))),
        }
    }
}
