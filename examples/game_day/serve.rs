//! The S3: the embedded server as a process of its own, and what it does wrong.
//!
//! A line on standard input is a weather; the answer is a line with what arrived so far. It ends
//! with its input.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use s3_writeback::testing::{FaultPlan, FaultRule, Operation, S3Server};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::object;
use crate::plan::Weather;
use crate::s3::{BUCKET, PREFIX};

/// How often what may pass is counted anew while S3 throttles.
const TURN: Duration = Duration::from_millis(100);
/// In each turn, so many are told when to come again.
const TOLD_WHEN: u64 = 2;
/// Refusals with the first code, before those with the second.
const FIRST_CODE: u64 = 20;

/// Serves objects in `dir` until standard input ends. `rate` is what it takes with ease.
pub async fn serve(dir: &Path, rate: u32) -> Result<(), Failure> {
    let server = S3Server::builder().bucket(BUCKET).dir(dir).start().await;
    let server = server.map_err(|error| Failure::io("the embedded server", error))?;
    say(&server.endpoint())?;
    let mut sky = Sky {
        plan: server.faults().clone(),
        rate,
        turns: None,
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let next = |error| Failure::io("standard input", error);
    while let Some(line) = lines.next_line().await.map_err(next)? {
        let weather = Weather::by_name(&line);
        let weather = weather.ok_or_else(|| Failure::S3(format!("no weather: {line:?}")))?;
        // Before the change, so that what comes after it is counted with it.
        let counters = server.counters();
        sky.turn(weather);
        let (all, puts) = (
            counters.total_requests(),
            counters.requests(Operation::PutObject),
        );
        say(&format!("{all} {puts} {}", counters.faults))?;
    }
    server.stop().await;
    Ok(())
}

fn say(line: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::io("standard output", error))
}

struct Sky {
    plan: FaultPlan,
    rate: u32,
    turns: Option<JoinHandle<()>>,
}

impl Sky {
    fn turn(&mut self, weather: Weather) {
        if let Some(turns) = self.turns.take() {
            turns.abort();
        }
        self.plan.clear();
        match weather {
            Weather::Fine => {}
            Weather::Throttling => {
                self.turns = Some(tokio::spawn(throttle(self.plan.clone(), self.rate)));
            }
            Weather::Outage => {
                for shard in 0..object::SHARDS / 2 {
                    let prefix = format!("{PREFIX}/data/{shard}/");
                    self.plan.add(FaultRule::reset().prefix(&prefix));
                }
                self.plan.add(FaultRule::internal_error());
            }
            Weather::Hang => {
                self.plan.hang_all();
            }
            Weather::Credentials => {
                let first = FaultRule::respond(403, "InvalidAccessKeyId");
                self.plan.add(first.times(FIRST_CODE));
                self.plan.add(FaultRule::respond(403, "ExpiredToken"));
            }
            Weather::Full => {
                let full = FaultRule::respond(507, "XMinioStorageFull");
                self.plan.add(full.on(Operation::PutObject));
            }
        }
    }
}

/// Half of the rate passes. Never ends: it goes with its handle.
async fn throttle(plan: FaultPlan, rate: u32) {
    let mut tick = tokio::time::interval(TURN);
    let passes = u64::from(rate) * u64::try_from(TURN.as_millis()).unwrap_or(0) / 2000;
    let slow_down = FaultRule::slow_down().on(Operation::PutObject).skip(passes);
    loop {
        tick.tick().await;
        plan.clear();
        plan.add(slow_down.clone().retry_after(1).times(TOLD_WHEN));
        plan.add(slow_down.clone());
    }
}
