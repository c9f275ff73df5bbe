//! What examples do that are programs: a log, a report, an exit status.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// The log goes to standard error; what of it by `RUST_LOG`, otherwise by `default`.
pub fn log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Prints a report, and after it the same as a line of JSON, if that is asked for.
pub fn print(mut text: String, report: &impl Serialize, json: bool) -> Result<(), Failure> {
    if json {
        let json = serde_json::to_string(report);
        text.push_str(&json.map_err(|error| Failure::io("the report", error.into()))?);
        text.push('\n');
    }
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::io("standard output", error))
}

/// 0: all is good; 1: it is not; 2: it could not be carried through, and why.
pub fn exit(done: Result<bool, Failure>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}
