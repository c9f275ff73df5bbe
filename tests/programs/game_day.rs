//! A game day, short, as a real process: nothing is lost, each trouble is seen for what it is, and
//! memory stays within its bound.
//!
//! It runs the compiled example `game_day`, which `cargo test` builds (and `cargo test --test
//! game_day` alone does not).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// No such day takes this long; what does has hung.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where cargo puts the example: beside the tests' own folder.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples/game_day");
    assert!(
        example.is_file(),
        "{} is missing: `cargo test` builds it, or `cargo build --example game_day`",
        example.display()
    );
    example
}

/// The JSON of a day of `seconds` on which every promise was kept.
async fn day(seconds: &str) -> Value {
    let mut command = Command::new(example());
    command
        .args(["--seconds", seconds, "--json"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.to_ascii_uppercase().ends_with("_PROXY") {
            command.env_remove(&name);
        }
    }
    let output = timeout(DEADLINE, command.output()).await;
    let output = output.expect("the day hangs").unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

fn number(json: &Value, name: &str) -> u64 {
    json[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name}: {json}"))
}

fn phase<'a>(day: &'a Value, name: &str) -> &'a Value {
    let phases = day["phases"].as_array().unwrap();
    let found = phases.iter().find(|phase| phase["phase"] == name);
    found.unwrap_or_else(|| panic!("no phase {name}: {day}"))
}

fn was(phase: &Value, health: &str) -> bool {
    let mut healths = phase["healths"].as_array().unwrap().iter();
    healths.any(|from| from["health"].as_str().unwrap().starts_with(health))
}

#[tokio::test]
async fn a_game_day_loses_nothing_and_stays_within_its_bounds() {
    let day = day("25").await;
    assert_eq!(number(&day, "lost"), 0, "{day}");
    assert_eq!(number(&day, "verified"), number(&day, "acknowledged"));
    assert_eq!(number(&day, "quarantined"), 0);
    assert_eq!(number(&day, "deferred"), 0);
    assert!(number(&day, "peak_rss_bytes") <= number(&day, "memory_bound_bytes"));
    // It was a day of trouble, and the queue was full in it.
    assert!(number(&day, "acknowledged") > 500, "{day}");
    assert!(number(&day, "refused") > 0, "{day}");
    assert!(number(&day, "throttled") > 0, "{day}");
    assert!(number(&day, "window_cuts") > 0, "{day}");
    for name in ["throttling", "outage", "hang", "credentials", "full"] {
        let phase = phase(&day, name);
        assert!(number(phase, "faults") > 0, "{phase}");
        assert!(number(phase, "admitted") > 0, "{phase}");
        assert!(phase["flowed_again_ms"].is_u64(), "{phase}");
    }
    // S3 takes half of the load while it throttles, and nothing afterwards.
    assert!(number(phase(&day, "throttling"), "uploaded") > 50, "{day}");
    for name in ["outage", "hang", "credentials", "full"] {
        let (refused, uploaded) = (
            number(phase(&day, name), "refused"),
            number(phase(&day, name), "uploaded"),
        );
        assert!(refused > 0, "{name}: {day}");
        // What was on its way when it began.
        assert!(uploaded <= 32, "{name}: {day}");
    }
    // Each is seen for what it is. (That S3 throttled is said for 5 s more, over the outage.)
    for (name, health) in [
        ("throttling", "throttled"),
        ("hang", "behind"),
        ("credentials", "parked InvalidAccessKeyId"),
        ("full", "parked XMinioStorageFull"),
    ] {
        assert!(was(phase(&day, name), health), "{name}: {day}");
    }
    assert!(number(phase(&day, "outage"), "min_retry_tokens") < 10);
    // The table tells of each.
    let lines = day["timeline"].as_array().unwrap();
    assert!((15..=90).contains(&lines.len()), "{} lines", lines.len());
    assert!(
        lines.iter().any(|line| line["writes_parked"].is_string()),
        "{day}"
    );
}
