//! What the queue or the store says of itself, for Prometheus to read while the job runs.
//!
//! `GET /` of `--metrics` answers in Prometheus' text format with what `snapshot()` has, flattened:
//! numbers by their path (`tasks.ready` is `s3_writeback_tasks_ready`), words as labels
//! (`s3_writeback_is{what="phase",value="Running"} 1`), and lists of things by their words.
//! An engine does the same where its other metrics are.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::service::service_fn;
use hyper::{Request, Response, body};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::failure::Failure;

/// Whoever reads so slowly is not waited for: one is served at a time.
const PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "s3_writeback";

/// Answers until it is dropped.
pub struct Exporter(JoinHandle<()>);

impl Drop for Exporter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Exporter {
    /// Listens on `at`, and answers with what `read` gives.
    pub async fn start(
        at: SocketAddr,
        read: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(at).await;
        let listener =
            listener.map_err(|error| Failure::io(format!("listening on {at}"), error))?;
        Ok(Self(tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let answer = service_fn(|_: Request<body::Incoming>| async {
                    let answer =
                        Response::builder().header("content-type", "text/plain; version=0.0.4");
                    Ok::<_, Infallible>(answer.body(text(&read())).unwrap_or_default())
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                // Whoever went away has no answer, and needs none.
                let _ = tokio::time::timeout(PATIENCE, served).await;
            }
        })))
    }
}

/// In Prometheus' text format.
fn text(value: &Value) -> String {
    let mut text = String::new();
    flatten(NAME, "", value, &mut text);
    text
}

fn flatten(path: &str, labels: &str, value: &Value, text: &mut String) {
    let mut line = |labels: &str, number: &dyn std::fmt::Display| {
        let _ = match labels {
            "" => writeln!(text, "{path} {number}"),
            _ => writeln!(text, "{path}{{{labels}}} {number}"),
        };
    };
    match value {
        Value::Null => (),
        Value::Bool(is) => line(labels, &u8::from(*is)),
        Value::Number(number) => line(labels, number),
        Value::String(word) => {
            let what = path.trim_start_matches(NAME).trim_start_matches('_');
            let label = format!("what=\"{what}\",value=\"{}\"", escaped(word));
            let _ = writeln!(text, "{NAME}_is{{{label}}} 1");
        }
        Value::Array(list) => {
            for item in list.iter().filter_map(Value::as_object) {
                let words = item.iter().filter_map(|(name, value)| {
                    let word = value.as_str()?;
                    Some(format!("{name}=\"{}\"", escaped(word)))
                });
                let labels = words.collect::<Vec<_>>().join(",");
                for (name, value) in item.iter().filter(|(_, value)| value.is_number()) {
                    flatten(&format!("{path}_{name}"), &labels, value, text);
                }
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{path}_{}", snake(name)), labels, value, text);
            }
        }
    }
}

fn escaped(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"");
    word.replace('\n', "\\n")
}

/// Names of variants are in capitals.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
