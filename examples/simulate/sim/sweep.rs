//! The sweep: the same work, over and over, and each time another of its calls goes wrong: to S3,
//! on the disk, the first, the second, until there is none left.
//!
//! Owns: which calls are tried with what, on how many threads, and the count. Does not own: a run
//! ([`super::nth`]).

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use s3_writeback::testing::fs::{EIO, ENOSPC};

use super::env::lock;
use super::model::Crash;
use super::nth::Nth;
use super::text_of;
use super::trace::Trace;

/// What the nth call meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A request is refused, and has no effect.
    Refused,
    /// It has one, and its answer is lost.
    LostReply,
    /// Nothing is ever heard of it.
    Hang,
    /// It is refused, and so are all that follow.
    Away,
    /// The process ends as it makes a request, which never arrives.
    DiesAtRequest(Crash),
    /// The process ends when its request has arrived.
    DiesAfterRequest(Crash),
    /// A call on the disk fails, or all from there on, and the process ends like this.
    Disk {
        errno: i32,
        forever: bool,
        end: Crash,
    },
    /// The process ends as it makes a call on the disk.
    DiesAtCall(Crash),
}

impl What {
    pub fn is_on_the_disk(self) -> bool {
        matches!(self, Self::Disk { .. } | Self::DiesAtCall(_))
    }

    /// How its process ends, where it does not end well.
    pub fn end(self) -> Crash {
        match self {
            Self::DiesAtRequest(end) | Self::DiesAfterRequest(end) | Self::DiesAtCall(end) => end,
            Self::Disk { end, .. } => end,
            Self::Refused | Self::LostReply | Self::Hang | Self::Away => Crash::Kill,
        }
    }

    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Refused, Self::LostReply, Self::Hang, Self::Away];
        let ends = [Crash::Kill, Crash::PowerCut];
        for end in ends {
            let dies = [
                Self::DiesAtRequest(end),
                Self::DiesAfterRequest(end),
                Self::DiesAtCall(end),
            ];
            all.extend(dies);
            for (errno, forever) in [(EIO, false), (EIO, true), (ENOSPC, false), (ENOSPC, true)] {
                all.push(Self::Disk {
                    errno,
                    forever,
                    end,
                });
            }
        }
        all
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |end| match end {
            Crash::Kill => "kill",
            Crash::PowerCut => "power-cut",
        };
        match *self {
            Self::Refused => f.write_str("refused"),
            Self::LostReply => f.write_str("lost-reply"),
            Self::Hang => f.write_str("hang"),
            Self::Away => f.write_str("away"),
            Self::DiesAtRequest(end) => write!(f, "{}-at-request", name(end)),
            Self::DiesAfterRequest(end) => write!(f, "{}-after-request", name(end)),
            Self::DiesAtCall(end) => write!(f, "{}-at-disk", name(end)),
            Self::Disk {
                errno,
                forever,
                end,
            } => {
                let errno = match errno {
                    EIO => "eio",
                    _ => "enospc",
                };
                let long = match forever {
                    true => "-for-ever",
                    false => "",
                };
                write!(f, "{errno}{long}-then-{}", name(end))
            }
        }
    }
}

/// Which call meets what: `WHAT@N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub what: What,
    /// From 1.
    pub nth: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.what, self.nth)
    }
}

impl std::str::FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || {
            let all = What::all().into_iter();
            all.map(|what| what.to_string()).collect::<Vec<_>>()
        };
        let (name, nth) = text.split_once('@').ok_or("not WHAT@N")?;
        let mut all = What::all().into_iter();
        let what = all.find(|what| what.to_string() == name);
        Ok(Self {
            what: what.ok_or_else(|| format!("{name} is not one of {:?}", names()))?,
            nth: nth.parse().map_err(|error| format!("{nth:?}: {error}"))?,
        })
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    /// The call that went wrong; `None`: there were not so many.
    pub struck: Option<String>,
    /// What was wrong, and the last that happened before.
    pub failure: Option<(String, Vec<String>)>,
}

/// One run.
pub fn run(case: Case, is_told: bool) -> Run {
    let trace = Arc::new(Trace::new(is_told));
    let mut nth = Nth::new(case, &trace);
    let lived = catch_unwind(AssertUnwindSafe(|| nth.go()));
    Run {
        struck: nth.fate.struck(),
        failure: lived.err().map(|panic| (text_of(&*panic), trace.last())),
    }
}

/// What the sweep did.
#[derive(Debug, Default, Clone)]
pub struct Swept {
    /// Runs in which a call went wrong, by what it met and by its kind.
    pub struck: BTreeMap<String, BTreeMap<String, u64>>,
    pub failed: Vec<(Case, String, Vec<String>)>,
}

impl Swept {
    /// Counts a run.
    pub fn add(&mut self, case: Case, run: Run) {
        if let Some(call) = run.struck {
            let by_call = self.struck.entry(case.what.to_string()).or_default();
            *by_call.entry(call).or_default() += 1;
        }
        if let Some((text, last)) = run.failure {
            self.failed.push((case, text, last));
        }
    }

    pub fn runs(&self) -> u64 {
        self.struck.values().flat_map(BTreeMap::values).sum()
    }
}

/// What is still to be tried.
#[derive(Debug)]
struct Ahead {
    all: Vec<What>,
    at: usize,
    next: u64,
}

impl Ahead {
    fn take(&mut self, step: impl Fn(What) -> u64) -> Option<Case> {
        let what = *self.all.get(self.at)?;
        let step = step(what);
        // Where not every call is tried, not the same ones are left out each time.
        let first = 1 + self.at as u64 % step;
        let nth = self.next.max(first);
        self.next = nth + step;
        Some(Case { what, nth })
    }

    /// There was no such call: on with the next.
    fn none_left(&mut self, what: What) {
        if self.all.get(self.at) == Some(&what) {
            self.at += 1;
            self.next = 0;
        }
    }
}

/// Tries every call with everything, or every `step`th.
pub fn sweep(jobs: usize, step: impl Fn(What) -> u64 + Sync) -> Swept {
    let ahead = Mutex::new(Ahead {
        all: What::all(),
        at: 0,
        next: 0,
    });
    let swept = Mutex::new(Swept::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = { lock(&ahead).take(&step) } {
                    let run = run(case, false);
                    let is_struck = run.struck.is_some();
                    lock(&swept).add(case, run);
                    if !is_struck {
                        lock(&ahead).none_left(case.what);
                    }
                }
            });
        }
    });
    swept.into_inner().unwrap_or_default()
}
