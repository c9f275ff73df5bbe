//! The example as a child process, and what it printed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use s3_writeback::testing::S3Server;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// No run here takes this long; what does has hung.
pub const DEADLINE: Duration = Duration::from_secs(120);
pub const BUCKET: &str = "bucket";
pub const KEY: &str = "harness-key";
pub const SECRET: &str = "harness-secret";

/// Where cargo puts the example: beside the tests' own folder.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples/long_insert_shutdown");
    assert!(
        example.is_file(),
        "{} is missing: `cargo test` builds it, or `cargo build --example long_insert_shutdown`",
        example.display()
    );
    example
}

/// An S3 that outlives the harness.
pub async fn server() -> S3Server {
    let builder = S3Server::builder().credentials(KEY, SECRET).bucket(BUCKET);
    builder.start().await.unwrap()
}

/// The harness with these arguments, and with nothing of this machine's AWS settings.
pub fn harness(arguments: &[&str]) -> Command {
    let mut command = Command::new(example());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().to_ascii_uppercase();
        if name.starts_with("AWS_") || name.ends_with("_PROXY") {
            command
                .env_remove(&name)
                .env_remove(name.to_ascii_lowercase());
        }
    }
    command
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Waits for the end of `child`.
    pub async fn of(child: Child) -> Self {
        let output = timeout(DEADLINE, child.wait_with_output()).await;
        let output = output.expect("the harness hangs").unwrap();
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The JSON of the last line.
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON of a run that lost nothing and kept its deadline.
    pub fn good(&self) -> Value {
        assert_eq!(self.status, Some(0), "{self:#?}");
        let json = self.json();
        assert_eq!(json["rows_lost"], 0, "{self:#?}");
        assert_eq!(
            json["rows_verified"], json["rows_acknowledged"],
            "{self:#?}"
        );
        assert_eq!(json["quarantined"], 0, "{self:#?}");
        json
    }
}

/// Runs the harness to its end.
pub async fn run(arguments: &[&str]) -> Run {
    Run::of(harness(arguments).spawn().unwrap()).await
}

pub fn number(json: &Value, name: &str) -> u64 {
    json[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name}: {json}"))
}
