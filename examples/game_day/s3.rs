//! The S3 as seen from here: a child process, and the ways to it.
//!
//! The queue's remote and the client that verifies are made from one `SdkConfig`. Nothing else is
//! shared between the two: what verifies does not use the code that it verifies.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region, SharedCredentialsProvider};
use s3_writeback::remote::Remote;
use s3_writeback::remote::s3::S3Remote;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::plan::Weather;

pub const BUCKET: &str = "game-day";
pub const PREFIX: &str = "day";

/// How long the server may take to start, to answer, or to end; and the first contact.
const WITHIN: Duration = Duration::from_secs(20);

/// What arrived at the server, since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub requests: u64,
    pub puts: u64,
    /// Requests that something was done to.
    pub faults: u64,
}

impl Counted {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            puts: self.puts - earlier.puts,
            faults: self.faults - earlier.faults,
        }
    }
}

/// The server's process.
pub struct S3 {
    child: Child,
    told: ChildStdin,
    says: Lines<BufReader<ChildStdout>>,
    config: SdkConfig,
}

impl S3 {
    /// Starts it, with its objects in `dir`.
    pub async fn start(dir: &Path, rate: u32) -> Result<Self, Failure> {
        let process = |error| Failure::io("the process of the S3", error);
        let mut child = Command::new(std::env::current_exe().map_err(process)?)
            .arg("--serve")
            .arg(dir)
            .arg("--rate")
            .arg(rate.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(process)?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (told, says) = ends.ok_or(Failure::Stuck("the S3 has no pipes"))?;
        let mut says = BufReader::new(says).lines();
        let endpoint = line(&mut says).await?;
        let credentials = Credentials::new("test", "test-secret", None, None, "embedded");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        Ok(Self {
            child,
            told,
            says,
            config,
        })
    }

    /// The weather is so from now on; what arrived before.
    pub async fn weather(&mut self, weather: Weather) -> Result<Counted, Failure> {
        let told = format!("{}\n", weather.name());
        let tells = async {
            self.told.write_all(told.as_bytes()).await?;
            self.told.flush().await
        };
        match timeout(WITHIN, tells).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure::io("the input of the S3", error)),
            Err(_) => return Err(Failure::Stuck("the S3 does not listen")),
        }
        let said = line(&mut self.says).await?;
        let numbers: Vec<u64> = said.split(' ').filter_map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [requests, puts, faults] => Ok(Counted {
                requests,
                puts,
                faults,
            }),
            _ => Err(Failure::S3(format!("it said {said:?}"))),
        }
    }

    /// The queue's way to it.
    pub async fn remote(&self) -> Result<Arc<dyn Remote>, Failure> {
        let remote = S3Remote::builder(&self.config)
            .bucket(BUCKET)
            .prefix(PREFIX)
            .build()
            .map_err(|error| Failure::S3(error.to_string()))?;
        let connected = remote.connect(WITHIN).await;
        connected.map_err(|error| Failure::S3(error.to_string()))?;
        Ok(Arc::new(remote))
    }

    /// A plain client.
    pub fn bucket(&self) -> Client {
        let config = aws_sdk_s3::config::Builder::from(&self.config)
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }

    /// Ends the process.
    pub async fn stop(self) -> Result<(), Failure> {
        let Self {
            mut child, told, ..
        } = self;
        drop(told);
        match timeout(WITHIN, child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Failure::io("the process of the S3", error)),
            Err(_) => Err(Failure::Stuck("the S3 does not end")),
        }
    }
}

async fn line(says: &mut Lines<BufReader<ChildStdout>>) -> Result<String, Failure> {
    match timeout(WITHIN, says.next_line()).await {
        Ok(Ok(Some(line))) => Ok(line),
        Ok(Ok(None)) => Err(Failure::Stuck("the S3 has ended")),
        Ok(Err(error)) => Err(Failure::io("the output of the S3", error)),
        Err(_) => Err(Failure::Stuck("the S3 does not answer")),
    }
}
