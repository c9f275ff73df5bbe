//! The embedded S3 server, alone: for trying a client against it.
//!
//! ```text
//! cargo run --example s3_server -- --listen 127.0.0.1:9000 --access-key K --secret-key S \
//!     [--dir D] [--bucket B ...] [--region R]
//! ```
//!
//! Prints one line when it is ready, `listening on http://ADDRESS`, and stops cleanly on ctrl-c
//! or SIGTERM.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use s3_writeback::testing::S3Server;
use tokio::signal::unix::{SignalKind, signal};

/// An S3 server for tests: one process, in memory or in a directory.
#[derive(Debug, Parser)]
struct Args {
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
    let args = Args::parse();
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
