//! What an S3 server can do: whether fenced mode is safe on it, and what else there is to know.
//!
//! ```text
//! cargo run --example probe -- --endpoint http://127.0.0.1:9000 --bucket b [--json]
//! ```
//!
//! Credentials and region come from the usual AWS environment. What is written is under a prefix
//! of its own, and deleted again.
//!
//! Exit status: 0 where fenced mode is safe, 1 where it is not, 2 where that could not be found out.
#![allow(
    clippy::disallowed_methods,
    reason = "the bans are the library's: this looks at the machine's clock"
)]

mod more;
mod report;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::retry::RetryConfig;
use clap::Parser;
use s3_writeback::remote::probe::probe;
use s3_writeback::remote::{Remote as _, S3Remote};

use report::Report;

/// Finds out what an S3 server can do, and whether fenced mode is safe on it.
#[derive(Debug, Parser)]
#[command(name = "probe")]
struct Cli {
    /// The server's URL; by default AWS.
    #[arg(long)]
    endpoint: Option<String>,
    /// The bucket.
    #[arg(long)]
    bucket: String,
    /// What is written is under this.
    #[arg(long, default_value = "s3-writeback-probe")]
    prefix: String,
    /// Makes the bucket first, where it is not there.
    #[arg(long)]
    make_bucket: bool,
    /// How long all of it may take, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    within: u64,
    /// One line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let within = Duration::from_secs(cli.within);
    let found = tokio::time::timeout(within, find_out(&cli, within)).await;
    let found = found.unwrap_or_else(|_| Err(format!("no result within {within:?}")));
    let (text, status) = match found {
        Ok(report) => {
            let text = match cli.json {
                true => serde_json::to_string(&report).map_err(|error| error.to_string()),
                false => Ok(report.text()),
            };
            (text, if report.fenced_mode_is_safe { 0 } else { 1 })
        }
        Err(why) => (Err(why), 2),
    };
    let said = match &text {
        Ok(text) => writeln!(io::stdout(), "{}", text.trim_end()),
        Err(why) => writeln!(io::stderr(), "could not tell: {why}"),
    };
    match (said, text) {
        (Ok(()), Ok(_)) => ExitCode::from(status),
        _ => ExitCode::from(2),
    }
}

async fn find_out(cli: &Cli, within: Duration) -> Result<Report, String> {
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    let loader = match &cli.endpoint {
        Some(endpoint) => loader.endpoint_url(endpoint),
        None => loader,
    };
    let sdk = loader.load().await;
    // A plain client, for what the crate itself never asks.
    let plain = aws_sdk_s3::config::Builder::from(&sdk)
        .force_path_style(cli.endpoint.is_some())
        .retry_config(RetryConfig::disabled())
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    let plain = Client::from_conf(plain);
    if cli.make_bucket {
        // That it is there already is said in many ways; whether it is, the next request shows.
        let _ = plain.create_bucket().bucket(&cli.bucket).send().await;
    }
    let nonce = SystemTime::now().duration_since(UNIX_EPOCH);
    let nonce = nonce.map_err(|error| error.to_string())?.as_nanos() as u64;
    let prefix = format!("{}/{nonce:016x}", cli.prefix);
    let remote = S3Remote::builder(&sdk)
        .bucket(&cli.bucket)
        .prefix(&prefix)
        .build();
    let remote = remote.map_err(|error| error.to_string())?;
    remote
        .connect(within / 4)
        .await
        .map_err(|error| error.to_string())?;
    let capabilities = probe(&remote, "fence/", nonce, within / 2).await;
    let capabilities = capabilities.map_err(|error| error.to_string())?;

    let more = more::More {
        plain,
        bucket: cli.bucket.clone(),
        prefix: prefix.clone(),
    };
    let checksums = more.checksums().await;
    let trailers = more.trailers().await;
    let multipart = more.multipart().await;
    let clock = more.clock().await;
    let latency = more::latency(&remote).await;
    more.clean_up().await;
    Ok(Report {
        endpoint: cli.endpoint.clone().unwrap_or_else(|| "AWS".to_owned()),
        bucket: cli.bucket.clone(),
        fenced_mode_is_safe: capabilities.can_fence(),
        capabilities,
        checksums,
        trailers,
        multipart,
        clock_ahead_ms: clock,
        latency,
        adaptations: remote.adaptations(),
    })
}
