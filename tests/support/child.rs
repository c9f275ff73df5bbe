//! A process of this very test binary: one `#[ignore]`d test of it, with settings.
#![allow(
    clippy::disallowed_methods,
    reason = "it waits for a process, in the time that there is"
)]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a child ended, and what it told: lines `@name value`.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub told: BTreeMap<String, String>,
    pub output: String,
    pub took: Duration,
}

impl Ended {
    pub fn number(&self, name: &str) -> u64 {
        let value = self.told.get(name);
        let value = value.unwrap_or_else(|| panic!("it did not tell {name}: {}", self.output));
        value.parse().expect("a number")
    }
}

/// What a child says to its parent.
pub fn tell(name: &str, value: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // On a line of its own, whatever the test harness has begun to write.
    writeln!(out, "\n@{name} {value}").unwrap();
    out.flush().unwrap();
}

/// A setting of a child.
pub fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by the parent"))
}

/// Runs the test `name` of this binary in a process of its own, within `kib` of address space
/// where a limit is given. It is killed after `within`.
pub fn run(name: &str, settings: &[(&str, String)], kib: Option<u64>, within: Duration) -> Ended {
    let exe = std::env::current_exe().expect("this test");
    let mut command = match kib {
        None => Command::new(exe),
        Some(kib) => {
            let mut shell = Command::new("sh");
            let limit = format!("ulimit -v {kib}; ulimit -c 0; exec \"$0\" \"$@\"");
            shell.arg("-c").arg(limit).arg(exe);
            shell
        }
    };
    command
        .args([
            name,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .envs(settings.iter().map(|(name, value)| (*name, value)))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().expect("starts");
    let reader = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = from.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = reader(Box::new(child.stdout.take().expect("is piped")));
    let stderr = reader(Box::new(child.stderr.take().expect("is piped")));
    let status = loop {
        if let Some(status) = child.try_wait().expect("its state") {
            break status;
        }
        if began.elapsed() > within {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{name} does not end: {} {}",
                stdout.join().unwrap(),
                stderr.join().unwrap()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = began.elapsed();
    let stdout = stdout.join().unwrap();
    let told = stdout
        .lines()
        .filter_map(|line| line.strip_prefix('@')?.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Ended {
        status,
        told,
        output: format!("{stdout}{}", stderr.join().unwrap()),
        took,
    }
}
