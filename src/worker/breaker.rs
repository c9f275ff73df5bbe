//! The breaker: while the world is not right, nothing is sent but one probe now and then.
//!
//! Credentials that have expired, a bucket that is gone, a store that is full: no retry of one
//! request mends that, and thousands of them are a storm. So tasks stay in line, no attempt of
//! theirs is charged, and the next that would have gone is the probe. Reads and writes have a half
//! each: a store that is full is still read. (Nygard, "Release It!", 2007.) A pure structure: no
//! clock, no lock.
//!
//! 1. Credentials are thrown away once, and one request made with new ones, before anything waits
//!    for the interval.
//! 2. What is refused to one key only (`AccessDenied`, and a refusal that does not say why) says
//!    nothing about others until it has been so several times in a row; what cannot be about a key
//!    opens both halves at once.
//! 3. An answer that could not have been given if the world were not right closes it: success, and
//!    refusals that are the request's own fault. Silence and throttling say nothing.
//! 4. What was sent before it opened is no news.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::gate::Way;

/// So many refusals in a row are not about one key.
const IN_A_ROW: u32 = 3;

/// What an answer says of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says<'a> {
    /// It is right.
    Right,
    /// It is not, for this reason.
    Wrong(&'a str),
    Nothing,
}

/// What came of hearing an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Credentials are to be thrown away: the next request is a probe.
    Refresh,
    /// That one was refused as well.
    Opened(Arc<str>),
    Closed(Arc<str>),
}

/// Why nothing goes one way, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub reason: Arc<str>,
    pub since: Instant,
    /// When the next probe may go.
    pub next: Instant,
    probing: bool,
    /// A probe with new credentials was refused too.
    pub confirmed: bool,
    /// It is about no single key, and no single way.
    of_all: bool,
}

#[derive(Debug, Default)]
struct Half {
    in_a_row: u32,
    open: Option<Open>,
}

#[derive(Debug)]
pub(super) struct Breaker {
    reads: Half,
    writes: Half,
    interval: Duration,
}

/// The reason of a refusal without a code: of those to HEAD, and a proxy's.
pub(super) const FORBIDDEN: &str = "Forbidden";

/// Whether a reason cannot be about one key, or about one way only.
pub(super) fn is_of_all(reason: &str) -> bool {
    !matches!(
        reason,
        "AccessDenied"
            | FORBIDDEN
            | "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "QuotaExceeded"
            | "ObjectLocked"
            // Of a store that has no space left, by its message.
            | "InternalError"
    ) && !reason.starts_with("KMS.")
}

impl Breaker {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            reads: Half::default(),
            writes: Half::default(),
            interval,
        }
    }

    fn half(&mut self, way: Way) -> &mut Half {
        match way {
            Way::Read => &mut self.reads,
            Way::Write => &mut self.writes,
        }
    }

    /// Why nothing goes this way, if so.
    pub(super) fn open(&self, way: Way) -> Option<&Open> {
        match way {
            Way::Read => self.reads.open.as_ref(),
            Way::Write => self.writes.open.as_ref(),
        }
    }

    /// Whether something may go this way now; if not, when a probe may, unless one is on its way.
    pub(super) fn may(&self, way: Way, now: Instant) -> Result<(), Option<Instant>> {
        match self.open(way) {
            None => Ok(()),
            Some(open) if open.probing => Err(None),
            Some(open) if now >= open.next => Ok(()),
            Some(open) => Err(Some(open.next)),
        }
    }

    /// Something goes; whether it is a probe.
    pub(super) fn took(&mut self, way: Way) -> bool {
        let open = self.half(way).open.as_mut();
        open.map(|open| open.probing = true).is_some()
    }

    /// A probe is over, whatever came of it.
    pub(super) fn probed(&mut self, way: Way, now: Instant) {
        let interval = self.interval;
        if let Some(open) = &mut self.half(way).open {
            open.probing = false;
            open.next = open.next.max(now + interval);
        }
    }

    /// What was heard of a request that went this way, at `started`.
    pub(super) fn heard(
        &mut self,
        way: Way,
        started: Instant,
        says: Says<'_>,
        now: Instant,
    ) -> Change {
        match says {
            Says::Nothing => Change::None,
            Says::Right => self.right(way, started),
            Says::Wrong(reason) => self.wrong(way, started, reason, now),
        }
    }

    fn right(&mut self, way: Way, started: Instant) -> Change {
        let mut change = Change::None;
        let mut of_all = false;
        let half = self.half(way);
        half.in_a_row = 0;
        if let Some(open) = half.open.take_if(|open| started >= open.since) {
            of_all = open.of_all;
            if open.confirmed {
                change = Change::Closed(open.reason);
            }
        }
        if of_all {
            for half in [&mut self.reads, &mut self.writes] {
                half.open.take_if(|open| open.of_all);
            }
        }
        change
    }

    fn wrong(&mut self, way: Way, started: Instant, reason: &str, now: Instant) -> Change {
        let of_all = is_of_all(reason);
        let interval = self.interval;
        let ways: &[Way] = match of_all {
            true => &[Way::Read, Way::Write],
            false => match way {
                Way::Read => &[Way::Read],
                Way::Write => &[Way::Write],
            },
        };
        let mut change = Change::None;
        for one in ways {
            let half = self.half(*one);
            match &mut half.open {
                Some(open) if started < open.since => {}
                Some(open) => {
                    open.next = now + interval;
                    open.reason = Arc::from(reason);
                    open.of_all |= of_all;
                    if !std::mem::replace(&mut open.confirmed, true) {
                        change = Change::Opened(Arc::clone(&open.reason));
                    }
                }
                None => {
                    half.in_a_row += 1;
                    if !of_all && half.in_a_row < IN_A_ROW {
                        continue;
                    }
                    half.in_a_row = 0;
                    half.open = Some(Open {
                        reason: Arc::from(reason),
                        since: now,
                        next: now,
                        probing: false,
                        confirmed: false,
                        of_all,
                    });
                    change = Change::Refresh;
                }
            }
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn wrong(breaker: &mut Breaker, way: Way, reason: &str, at: Instant) -> Change {
        breaker.heard(way, at, Says::Wrong(reason), at)
    }

    #[test]
    fn credentials_are_refreshed_once_and_then_one_probe_an_interval_goes() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        assert_eq!(
            wrong(&mut breaker, Way::Write, "ExpiredToken", start),
            Change::Refresh
        );
        // With new ones, at once; and nothing else meanwhile, either way.
        assert_eq!(breaker.may(Way::Write, start), Ok(()));
        assert!(breaker.took(Way::Write));
        assert_eq!(breaker.may(Way::Write, start), Err(None));
        let at = start + SECOND;
        assert!(matches!(
            wrong(&mut breaker, Way::Write, "ExpiredToken", at),
            Change::Opened(_)
        ));
        breaker.probed(Way::Write, at);
        let mut probes = 0;
        for second in 0..3600 {
            let now = at + SECOND * second;
            if breaker.may(Way::Write, now).is_ok() {
                breaker.took(Way::Write);
                assert_eq!(
                    wrong(&mut breaker, Way::Write, "ExpiredToken", now),
                    Change::None,
                    "told once"
                );
                breaker.probed(Way::Write, now);
                probes += 1;
            }
        }
        assert!((118..=120).contains(&probes), "{probes}");
        let mended = at + SECOND * 4000;
        assert!(breaker.took(Way::Read), "either way finds out");
        assert!(matches!(
            breaker.heard(Way::Read, mended, Says::Right, mended),
            Change::Closed(_)
        ));
        assert_eq!(breaker.may(Way::Write, mended), Ok(()), "of both");
    }

    #[test]
    fn what_is_refused_to_one_key_does_not_stop_the_others() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        for _ in 0..100 {
            for _ in 0..2 {
                wrong(&mut breaker, Way::Write, "AccessDenied", start);
                assert_eq!(breaker.may(Way::Write, start), Ok(()));
            }
            breaker.heard(Way::Write, start, Says::Right, start);
        }
        for _ in 0..3 {
            wrong(&mut breaker, Way::Write, "AccessDenied", start);
        }
        assert!(breaker.open(Way::Write).is_some());
        assert_eq!(breaker.may(Way::Read, start), Ok(()), "reads go on");
    }

    #[test]
    fn a_store_that_is_full_is_read() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        for _ in 0..4 {
            wrong(&mut breaker, Way::Write, "XMinioStorageFull", start);
        }
        assert!(breaker.open(Way::Write).is_some());
        assert!(breaker.open(Way::Read).is_none());
        // And what is read says nothing about whether there is room.
        breaker.heard(Way::Read, start + SECOND, Says::Right, start + SECOND);
        assert!(breaker.open(Way::Write).is_some());
    }

    #[test]
    fn what_was_sent_before_it_opened_is_no_news_and_silence_says_nothing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        let opened = start + SECOND;
        wrong(&mut breaker, Way::Write, "NoSuchBucket", opened);
        breaker.took(Way::Write);
        wrong(&mut breaker, Way::Write, "NoSuchBucket", opened);
        breaker.probed(Way::Write, opened);
        let late = opened + SECOND;
        assert_eq!(
            breaker.heard(Way::Write, start, Says::Right, late),
            Change::None
        );
        assert!(breaker.open(Way::Write).is_some());
        let next = opened + EVERY;
        assert_eq!(breaker.may(Way::Write, late), Err(Some(next)));
        assert!(breaker.took(Way::Write));
        breaker.heard(Way::Write, next, Says::Nothing, next);
        breaker.probed(Way::Write, next);
        assert_eq!(breaker.may(Way::Write, next), Err(Some(next + EVERY)));
    }
}
