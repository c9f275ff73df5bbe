//! The plan of the day: which weather when, how the queue is set, and the bounds that follow.
//!
//! Between two kinds of trouble S3 is well for a while, so that of each it can be told how long
//! the queue took to come back.

use std::path::Path;
use std::time::Duration;

use s3_writeback::Config;

use crate::object;
use crate::options::Cli;

/// What S3 is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fine,
    /// 503 `SlowDown` to every PUT beyond half of the load, some with `Retry-After`.
    Throttling,
    /// 500 to one half of the keys, a reset to the other.
    Outage,
    /// Requests are accepted and not answered.
    Hang,
    /// 403, with one code and then another.
    Credentials,
    /// 507 to every PUT.
    Full,
}

impl Weather {
    pub const ALL: [Self; 6] = [
        Self::Fine,
        Self::Throttling,
        Self::Outage,
        Self::Hang,
        Self::Credentials,
        Self::Full,
    ];

    /// Its name, also between the two processes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Throttling => "throttling",
            Self::Outage => "outage",
            Self::Hang => "hang",
            Self::Credentials => "credentials",
            Self::Full => "full",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|weather| weather.name() == name)
    }
}

/// A part of the day.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    pub name: &'static str,
    pub weather: Weather,
    pub lasts: Duration,
}

/// The day, in parts of six hundred.
const DAY: [(&str, Weather, u64); 11] = [
    ("calm", Weather::Fine, 60),
    ("throttling", Weather::Throttling, TROUBLE),
    ("mended", Weather::Fine, 30),
    ("outage", Weather::Outage, TROUBLE),
    ("mended", Weather::Fine, 30),
    ("hang", Weather::Hang, TROUBLE),
    ("mended", Weather::Fine, 30),
    ("credentials", Weather::Credentials, TROUBLE),
    ("mended", Weather::Fine, 30),
    ("full", Weather::Full, TROUBLE),
    ("recovery", Weather::Fine, 45),
];
const TROUBLE: u64 = 75;
const PARTS: u64 = 600;

/// How many lines come out, about.
const LINES: u64 = 60;
/// What a process takes that queues nothing: code, threads, the SDK, the journal's buffers, and
/// what an allocator keeps.
const FIXED_MEMORY: u64 = 64 << 20;
/// What a task takes besides its body.
const TASK_MEMORY: u64 = 2048;

/// All of it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub phases: Vec<Phase>,
    pub config: Config,
    /// Between two lines of the table.
    pub line_every: Duration,
    pub shutdown_within: Duration,
}

impl Plan {
    /// The day of `cli`, for a queue in `dir`.
    pub fn new(cli: &Cli, dir: &Path) -> Self {
        let lasts = |parts| Duration::from_millis(cli.seconds * 1000 * parts / PARTS);
        let phases = DAY.map(|(name, weather, parts)| Phase {
            name,
            weather,
            lasts: lasts(parts),
        });
        let trouble = lasts(TROUBLE);
        let mut config = Config::new(dir);
        // Full in the middle of each trouble, so that it is seen what comes then.
        let load = u64::from(cli.rate) * object::MEAN_BYTES;
        config.max_bytes = (load * crate::timeline::millis(trouble) / 2000).max(1 << 20);
        // What retries go by is left as it is; but several probes are to fit into a phase, and the
        // oldest task is to be old before it ends.
        config.probe_interval = trouble / 10;
        config.behind_after = trouble / 5;
        config.seed = Some(cli.seed);
        let every = cli.every.unwrap_or_else(|| (cli.seconds / LINES).max(1));
        Self {
            phases: phases.to_vec(),
            config,
            line_every: Duration::from_secs(every),
            shutdown_within: Duration::from_secs(60),
        }
    }

    /// The most memory that the process may ever have.
    pub fn memory_bound(&self) -> u64 {
        let tasks = (self.config.max_bytes / object::MEAN_BYTES).min(self.config.max_tasks);
        self.config.max_bytes + tasks * TASK_MEMORY + FIXED_MEMORY
    }

    /// The most requests that can be in flight at one time.
    pub fn at_once(&self) -> u64 {
        // One is reserved for loads, one for checkpoints.
        self.config.workers as u64 + 2
    }

    /// Probes that fit into so long.
    pub fn probes(&self, lasts: Duration) -> u64 {
        let probes = lasts.as_secs_f64() / self.config.probe_interval.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some ten"
        )]
        let probes = probes.ceil() as u64;
        probes
    }

    /// Retries that the budget allows in so long, of `successes` meanwhile.
    pub fn retries(&self, lasts: Duration, successes: u64) -> u64 {
        let floor = u64::from(self.config.retry_per_second) * lasts.as_secs().saturating_add(1);
        u64::from(self.config.retry_burst) + floor + 2 * successes
    }

    /// How long after a trouble uploads may take to flow again: a back-off may have just begun.
    pub fn flows_again_within(&self) -> Duration {
        self.config.retry_cap.max(self.config.probe_interval) + Duration::from_secs(2)
    }
}
