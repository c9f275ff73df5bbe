//! The embedded S3 server, alone: for trying a client against it.
//!
//! ```text
//! cargo run --example s3_server -- --listen 127.0.0.1:9000 --access-key K --secret-key S \
//!     [--dir D] [--bucket B ...] [--region R]
//! ```
//!
//! `s3_server server DIR [--address :9000]` does the same from MinIO's command line, with MinIO's
//! variables for the credentials: an image of it stands where one of MinIO's does.
//!
//! Prints one line when it is ready, `listening on http://ADDRESS`, and stops cleanly on ctrl-c
//! or SIGTERM.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use s3_writeback::testing::S3Server;
use tokio::signal::unix::{SignalKind, signal};

/// An S3 server for tests: one process, in memory or in a directory.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    own: Own,
    #[command(subcommand)]
    as_minio: Option<AsMinio>,
}

#[derive(Debug, Subcommand)]
enum AsMinio {
    /// As MinIO is started: credentials from MINIO_ROOT_USER and MINIO_ROOT_PASSWORD.
    Server {
        /// Where objects are kept.
        dir: PathBuf,
        /// Where to listen: `:PORT` for all addresses.
        #[arg(long, default_value = ":9000")]
        address: String,
        /// There is no console.
        #[arg(long, hide = true)]
        console_address: Option<String>,
    },
}

impl Cli {
    fn own(self) -> io::Result<Own> {
        let Some(AsMinio::Server { dir, address, .. }) = self.as_minio else {
            return Ok(self.own);
        };
        let all = match address.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => address,
        };
        let listen = all.parse().map_err(io::Error::other)?;
        let set = |name: &str| std::env::var(name).unwrap_or_else(|_| "minioadmin".to_owned());
        Ok(Own {
            listen,
            access_key: set("MINIO_ROOT_USER"),
            secret_key: set("MINIO_ROOT_PASSWORD"),
            dir: Some(dir),
            ..self.own
        })
    }
}

#[derive(Debug, Args)]
struct Own {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The access key that is accepted.
    #[arg(long, default_value = "test")]
    access_key: String,
    /// Its secret key.
    #[arg(long, default_value = "test-secret")]
    secret_key: String,
    /// Where objects are kept; in memory where it is not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A bucket to make; may be given more than once.
    #[arg(long)]
    bucket: Vec<String>,
    /// The region requests must be signed for.
    #[arg(long, default_value = "us-east-1")]
    region: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Cli::parse().own()?;
    // Before the line is printed: whoever reads it may signal at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut builder = S3Server::builder()
        .listen(args.listen)
        .credentials(&args.access_key, &args.secret_key)
        .region(&args.region);
    for bucket in &args.bucket {
        builder = builder.bucket(bucket);
    }
    if let Some(dir) = args.dir {
        builder = builder.dir(dir);
    }
    let server = builder.start().await?;
    {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "listening on {}", server.endpoint())?;
        stdout.flush()?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}
