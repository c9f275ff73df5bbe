//! What Prometheus is told while the job runs: everything that the dashboard of `minio/` shows.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::process::run;

const DASHBOARD: &str = include_str!("../../../minio/grafana/dashboards/s3-writeback.json");

/// The names of the crate's metrics that the dashboard asks for.
fn shown() -> BTreeSet<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array());
    let asked = targets
        .flatten()
        .filter_map(|target| target["expr"].as_str());
    let words = asked.flat_map(|expr| expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let ours = words.filter(|word| word.starts_with("s3_writeback"));
    ours.map(str::to_owned).collect()
}

async fn told(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let get = format!("GET / HTTP/1.1\r\nhost: {at}\r\n\r\n");
    stream.write_all(get.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, text) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Some(text.to_owned())
}

/// Names in a text of Prometheus', each line of which is a name, labels, and a number.
fn names(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| {
        let (series, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert!(number.parse::<f64>().is_ok(), "{line:?}");
        series.split('{').next().unwrap_or(series).to_owned()
    });
    lines.collect()
}

#[tokio::test]
async fn prometheus_is_told_all_that_the_dashboard_shows() {
    let shown = shown();
    assert!(shown.len() > 20, "{shown:?}");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = free.local_addr().expect("bound");
    drop(free);
    let address = at.to_string();
    let arguments = [
        ["--metrics", &address],
        ["--seconds", "5"],
        ["--fault", "errors"],
        ["--checkpoint-every", "0.3"],
    ];
    let arguments = arguments.as_flattened().to_vec();
    let runs = run(&arguments);
    let missing = RefCell::new(shown);
    let looks = async {
        // It is another process: what it will answer is found out by asking.
        let mut asks = tokio::time::interval(Duration::from_millis(100));
        while !missing.borrow().is_empty() {
            asks.tick().await;
            let told = names(&told(at).await.unwrap_or_default());
            missing.borrow_mut().retain(|name| !told.contains(name));
        }
    };
    tokio::select! {
        biased;
        () = looks => {}
        run = runs => panic!("not told: {missing:?}; {run:?}"),
    }
}
