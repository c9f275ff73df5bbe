//! Health: one word that an engine can act on.
//!
//! Owns: the words, and which of several that are true is said. Does not own: the facts, which each
//! layer tells of itself.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::error::Error;

/// How a queue or a store is. Of several that hold, the first in this order is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Health {
    /// The journal or a part file could not be synced: nothing is written any more until the next
    /// open. What was acknowledged is here or in S3.
    Failed {
        /// What failed.
        cause: String,
    },
    /// Another has claimed the prefix: nothing is written or sent any more.
    Fenced {
        /// Who, as far as it is known.
        by: String,
    },
    /// The process died in several opens in a row, so this one came up paused: somebody should look
    /// at what is in the directory, and `resume`.
    CrashLoop {
        /// How many.
        opens: u32,
    },
    /// The local disk is full: nothing new is taken, what is here goes up, and makes room.
    DiskFull,
    /// The quarantine is full: nothing new is taken until tasks in it are replayed or purged.
    QuarantineFull,
    /// S3 refuses everything one way; nothing is sent that way but a probe each `probe_interval`.
    /// Credentials, permissions, the bucket or its storage want somebody's attention; nothing is
    /// lost, and it goes on by itself when they are right.
    Parked {
        /// S3's code, or what else was wrong.
        reason: String,
        /// Since when.
        since: SystemTime,
    },
    /// What an earlier life left is going up.
    Recovering,
    /// S3 asked for less within the last 5 s: fewer requests than `workers` are in flight.
    Throttled,
    /// The oldest task has waited for longer than `behind_after`: S3 is slow, failing or away, or
    /// there is more to do than it takes.
    Behind {
        /// How long the oldest task has waited.
        age: Duration,
        /// Bytes that S3 does not have.
        bytes: u64,
    },
    /// Nothing to tell.
    Ok,
}

/// What it goes by.
#[derive(Debug, Default)]
pub(crate) struct Facts<'a> {
    pub failed: Option<String>,
    pub fenced: Option<&'a Error>,
    pub crash_loop: Option<u32>,
    pub disk_full: bool,
    pub quarantine_full: bool,
    pub parked: Option<(String, SystemTime)>,
    pub recovering: bool,
    pub throttled: bool,
    pub oldest: Duration,
    pub bytes: u64,
}

/// Two clocks tell one beginning so differently at most, unless the wall clock was set.
const SAME: Duration = Duration::from_secs(2);

impl Health {
    /// The same as seen after `before`: what began then has not begun anew, though it is worked out
    /// from two clocks.
    pub(crate) fn after(self, before: &Self) -> Self {
        match (self, before) {
            (Self::Parked { reason, since }, Self::Parked { since: was, .. }) => {
                let apart = since
                    .duration_since(*was)
                    .or_else(|_| was.duration_since(since));
                let is_same = apart.is_ok_and(|apart| apart < SAME);
                let since = if is_same { *was } else { since };
                Self::Parked { reason, since }
            }
            (health, _) => health,
        }
    }

    pub(crate) fn of(facts: Facts<'_>, behind_after: Duration) -> Self {
        let Facts {
            failed,
            fenced,
            crash_loop,
            disk_full,
            quarantine_full,
            parked,
            recovering,
            throttled,
            oldest,
            bytes,
        } = facts;
        if let Some(cause) = failed {
            return Self::Failed { cause };
        }
        if let Some(error) = fenced {
            let by = match error {
                Error::Fenced { owner, .. } => owner.clone(),
                error => error.to_string(),
            };
            return Self::Fenced { by };
        }
        if let Some(opens) = crash_loop {
            return Self::CrashLoop { opens };
        }
        if disk_full {
            return Self::DiskFull;
        }
        if quarantine_full {
            return Self::QuarantineFull;
        }
        if let Some((reason, since)) = parked {
            return Self::Parked { reason, since };
        }
        if recovering {
            return Self::Recovering;
        }
        if throttled {
            return Self::Throttled;
        }
        match oldest >= behind_after {
            true => Self::Behind { age: oldest, bytes },
            false => Self::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_once_has_one_beginning() {
        let parked = |reason: &str, ms| Health::Parked {
            reason: reason.to_owned(),
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(ms),
        };
        let first = parked("ExpiredToken", 10_000);
        assert_eq!(parked("ExpiredToken", 10_003).after(&first), first);
        assert_eq!(parked("ExpiredToken", 9_998).after(&first), first);
        let other = parked("NoSuchBucket", 10_000);
        assert_eq!(parked("NoSuchBucket", 10_001).after(&first), other);
        let later = parked("ExpiredToken", 70_000);
        assert_eq!(later.clone().after(&first), later, "mended meanwhile");
        assert_eq!(Health::Ok.after(&first), Health::Ok);
    }

    #[test]
    fn the_worst_is_said() {
        let limit = Duration::from_secs(60);
        let all = || Facts {
            failed: Some("fsync".to_owned()),
            fenced: None,
            crash_loop: Some(3),
            disk_full: true,
            quarantine_full: true,
            parked: Some(("ExpiredToken".to_owned(), SystemTime::UNIX_EPOCH)),
            recovering: true,
            throttled: true,
            oldest: limit,
            bytes: 7,
        };
        let mut facts = all();
        let mut said = Vec::new();
        let cures: [fn(&mut Facts<'_>); 8] = [
            |facts| facts.failed = None,
            |facts| facts.crash_loop = None,
            |facts| facts.disk_full = false,
            |facts| facts.quarantine_full = false,
            |facts| facts.parked = None,
            |facts| facts.recovering = false,
            |facts| facts.throttled = false,
            |facts| facts.oldest = Duration::ZERO,
        ];
        for cured in 0..cures.len() {
            said.push(Health::of(facts, limit));
            facts = all();
            for cure in &cures[..=cured] {
                cure(&mut facts);
            }
        }
        said.push(Health::of(facts, limit));
        assert_eq!(
            said,
            [
                Health::Failed {
                    cause: "fsync".to_owned()
                },
                Health::CrashLoop { opens: 3 },
                Health::DiskFull,
                Health::QuarantineFull,
                Health::Parked {
                    reason: "ExpiredToken".to_owned(),
                    since: SystemTime::UNIX_EPOCH
                },
                Health::Recovering,
                Health::Throttled,
                Health::Behind {
                    age: limit,
                    bytes: 7
                },
                Health::Ok,
            ]
        );
    }
}
