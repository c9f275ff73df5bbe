//! The breaker: while the world is not right, nothing is sent but one probe now and then.
//!
//! Credentials that have expired, a bucket that is gone, a store that is full: no retry of one
//! request mends that, and thousands of them are a storm. So tasks stay in line, no attempt of
//! theirs is charged, and the next that would have gone is the probe. Reads, writes and what
//! removes have a part each: a store that is full is still read, and what is deleted makes room.
//! (Nygard, "Release It!", 2007.) A pure structure: no clock, no lock.
//!
//! 1. Credentials are thrown away, and one request made with new ones, before anything waits for the
//!    interval; then again with each probe that is refused, at most once an interval.
//! 2. What is refused to one key only (`AccessDenied`, and a refusal that does not say why) says
//!    nothing about others until it has been so several times in a row. Where another key's success
//!    has closed it, such refusals are known to be about keys, and it stays closed for as long as
//!    there is a success an interval: who may not write under one prefix keeps no other waiting.
//!    What cannot be about a key opens at once: for one way, or for all.
//! 3. What opened it is mended where an answer shows it: for a store that is full nothing but a
//!    success; for credentials any answer, a refusal that is the request's own fault too. Silence
//!    and throttling say nothing.
//! 4. What was sent before it opened is no news.
//! 5. A probe that came back without having asked anything cost nothing, and the next goes at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::gate::Way;

/// So many refusals in a row are not about one key.
const IN_A_ROW: u32 = 3;

/// What an answer says of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says<'a> {
    /// It is right: what was asked for was done.
    Done,
    /// Whoever asked may ask for such a thing; it was the request that was wrong.
    Answered,
    /// Whoever asked is known, and S3 is there; what was asked for is nothing that others need.
    Known,
    /// It is not, for this reason.
    Wrong(&'a str),
    /// It is not, and what was asked for is nothing that others need.
    Refused,
    Nothing,
}

/// What came of hearing an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Credentials are to be thrown away: the next request is a probe.
    Refresh,
    /// Nothing goes any more.
    Opened(Arc<str>),
    Closed(Arc<str>),
    /// It closed before anybody was told that it had opened.
    Mended,
}

/// What a reason may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// One key, or all of them.
    Key,
    /// Whatever goes this way.
    Way,
    /// Everything.
    All,
}

/// Why nothing goes one way, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub reason: Arc<str>,
    pub since: Instant,
    /// When the next probe may go.
    pub next: Instant,
    about: About,
    probing: bool,
    /// Something was asked since the probe was taken.
    asked: bool,
    /// A probe with new credentials was refused too.
    pub confirmed: bool,
}

#[derive(Debug, Default)]
struct Part {
    in_a_row: u32,
    /// The last success.
    done: Option<Instant>,
    /// Refusals were seen to be about keys.
    mixed: bool,
    open: Option<Open>,
}

#[derive(Debug)]
pub(super) struct Breaker {
    parts: [Part; Way::ALL.len()],
    interval: Duration,
    refreshed: Option<Instant>,
}

/// The reason of a refusal without a code: of those to HEAD, and a proxy's.
pub(super) const FORBIDDEN: &str = "Forbidden";
/// That of 507 without a code.
pub(super) const FULL: &str = "InsufficientStorage";

/// What a reason may be about.
pub(super) fn about(reason: &str) -> About {
    match reason {
        "AccessDenied" | FORBIDDEN | "ObjectLocked" => About::Key,
        FULL | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "QuotaExceeded" => {
            About::Way
        }
        // Of a store that has no space left, by its message.
        "InternalError" => About::Way,
        kms if kms.starts_with("KMS.") => About::Key,
        _ => About::All,
    }
}

/// Whether a request would have found out what its part is open for. (Lists find out nothing, and
/// spend no probe.)
const fn one_that_asks(says: Says<'_>) -> bool {
    !matches!(says, Says::Known)
}

/// Whether an answer is only given to who is known, of a bucket that is there. A refusal without a
/// code may be of who is not.
fn shows_who_we_are(says: Says<'_>) -> bool {
    match says {
        Says::Done | Says::Answered | Says::Known => true,
        Says::Wrong(reason) => about(reason) != About::All && reason != FORBIDDEN,
        Says::Refused | Says::Nothing => false,
    }
}

impl Breaker {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            parts: Default::default(),
            interval,
            refreshed: None,
        }
    }

    fn part(&mut self, way: Way) -> &mut Part {
        &mut self.parts[way.index()]
    }

    /// Why nothing goes this way, if so.
    pub(super) fn open(&self, way: Way) -> Option<&Open> {
        self.parts[way.index()].open.as_ref()
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
        let open = self.part(way).open.as_mut();
        open.map(|open| {
            open.probing = true;
            open.asked = false;
        })
        .is_some()
    }

    /// A probe is over, whatever came of it.
    pub(super) fn probed(&mut self, way: Way, now: Instant) -> Change {
        let interval = self.interval;
        let Some(open) = &mut self.part(way).open else {
            return Change::None;
        };
        open.probing = false;
        if !open.asked {
            return Change::None;
        }
        open.next = open.next.max(now + interval);
        // No answer, but nothing goes for an interval.
        match std::mem::replace(&mut open.confirmed, true) {
            true => Change::None,
            false => Change::Opened(Arc::clone(&open.reason)),
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
        // A probe that is refused anything has asked, or the same one would go at once, for ever.
        let refused = matches!(says, Says::Wrong(_) | Says::Refused);
        let asks = one_that_asks(says);
        for one in Way::ALL {
            if let Some(open) = &mut self.part(one).open {
                open.asked |= refused || (asks && one == way);
            }
        }
        let mended = match shows_who_we_are(says) {
            true => self.mended_for_all(started),
            false => Change::None,
        };
        let change = match says {
            Says::Nothing | Says::Refused | Says::Known => Change::None,
            Says::Done | Says::Answered => self.right(way, started, says, now),
            Says::Wrong(reason) => self.wrong(way, started, reason, now),
        };
        match change {
            Change::None => mended,
            change => change,
        }
    }

    /// What was about everything is over, whichever way it was found out.
    fn mended_for_all(&mut self, started: Instant) -> Change {
        let mut change = Change::None;
        for part in &mut self.parts {
            let is_over = |open: &mut Open| open.about == About::All && started >= open.since;
            match part.open.take_if(is_over) {
                Some(open) if open.confirmed => change = Change::Closed(open.reason),
                Some(_) if change == Change::None => change = Change::Mended,
                _ => (),
            }
        }
        change
    }

    fn right(&mut self, way: Way, started: Instant, says: Says<'_>, now: Instant) -> Change {
        let part = self.part(way);
        part.in_a_row = 0;
        if says == Says::Done {
            part.done = Some(now);
        }
        let shows = |open: &Open| open.about == About::Key || says == Says::Done;
        let mended = part
            .open
            .take_if(|open| started >= open.since && shows(open));
        let Some(open) = mended else {
            return Change::None;
        };
        part.mixed |= open.about == About::Key;
        match open.confirmed {
            true => Change::Closed(open.reason),
            false => Change::Mended,
        }
    }

    fn wrong(&mut self, way: Way, started: Instant, reason: &str, now: Instant) -> Change {
        let about = about(reason);
        let (mut change, mut refresh) = (Change::None, false);
        for one in Way::ALL {
            if one != way && about != About::All {
                continue;
            }
            match self.refused(one, started, reason, about, now) {
                Change::None => (),
                Change::Refresh => refresh = true,
                opened => change = opened,
            }
        }
        let again = self.refreshed.is_none_or(|at| now >= at + self.interval);
        if change == Change::None && refresh && again {
            self.refreshed = Some(now);
            return Change::Refresh;
        }
        change
    }

    /// One way was refused, for what is about it at least.
    fn refused(
        &mut self,
        way: Way,
        started: Instant,
        reason: &str,
        about: About,
        now: Instant,
    ) -> Change {
        let interval = self.interval;
        let part = self.part(way);
        if let Some(open) = &mut part.open {
            if started < open.since {
                return Change::None;
            }
            open.reason = Arc::from(reason);
            open.about = about;
            return match std::mem::replace(&mut open.confirmed, true) {
                // They may have been renewed since.
                true if about != About::Way => Change::Refresh,
                true => Change::None,
                false => Change::Opened(Arc::clone(&open.reason)),
            };
        }
        if about == About::Key {
            part.mixed &= part.done.is_some_and(|at| now < at + interval);
            if part.mixed {
                return Change::None;
            }
            part.in_a_row += 1;
            if part.in_a_row < IN_A_ROW {
                return Change::None;
            }
        }
        part.in_a_row = 0;
        // New credentials make no room.
        let confirmed = about == About::Way;
        let reason: Arc<str> = Arc::from(reason);
        part.open = Some(Open {
            reason: Arc::clone(&reason),
            since: now,
            next: if confirmed { now + interval } else { now },
            about,
            probing: false,
            asked: false,
            confirmed,
        });
        match confirmed {
            true => Change::Opened(reason),
            false => Change::Refresh,
        }
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
                    Change::Refresh,
                    "told once, and with new credentials each time: they may be good again"
                );
                breaker.probed(Way::Write, now);
                probes += 1;
            }
        }
        assert!((118..=120).contains(&probes), "{probes}");
        let mended = at + SECOND * 4000;
        assert!(breaker.took(Way::Read), "either way finds out");
        assert!(matches!(
            breaker.heard(Way::Read, mended, Says::Done, mended),
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
            breaker.heard(Way::Write, start, Says::Done, start);
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
        assert!(
            matches!(
                wrong(&mut breaker, Way::Write, "XMinioStorageFull", start),
                Change::Opened(_)
            ),
            "at once, and no new credentials make room"
        );
        assert_eq!(breaker.may(Way::Write, start), Err(Some(start + EVERY)));
        assert!(breaker.open(Way::Read).is_none());
        assert!(breaker.open(Way::Remove).is_none(), "which makes room");
        // What is read, what is deleted, and what would be refused anyhow, say nothing of room.
        let at = start + SECOND;
        breaker.heard(Way::Read, at, Says::Done, at);
        breaker.heard(Way::Remove, at, Says::Done, at);
        breaker.heard(Way::Write, at, Says::Answered, at);
        assert!(breaker.open(Way::Write).is_some());
        assert!(matches!(
            breaker.heard(Way::Write, at, Says::Done, at),
            Change::Closed(_)
        ));
    }

    #[test]
    fn what_is_known_to_be_about_keys_stops_nothing_while_others_succeed() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        let denied = |breaker: &mut Breaker, at| wrong(breaker, Way::Write, "AccessDenied", at);
        for _ in 0..3 {
            denied(&mut breaker, start);
        }
        assert!(breaker.took(Way::Write));
        denied(&mut breaker, start);
        breaker.probed(Way::Write, start);
        let mut now = start + EVERY;
        assert!(breaker.took(Way::Write));
        assert!(matches!(
            breaker.heard(Way::Write, now, Says::Done, now),
            Change::Closed(_)
        ));
        for _ in 0..100 {
            for _ in 0..50 {
                assert_eq!(denied(&mut breaker, now), Change::None);
            }
            assert!(breaker.open(Way::Write).is_none());
            now += EVERY - SECOND;
            assert_eq!(denied(&mut breaker, now), Change::None);
            breaker.heard(Way::Write, now, Says::Done, now);
        }
        // No success an interval: it may be all of them.
        now += EVERY;
        assert_eq!(denied(&mut breaker, now), Change::None);
        assert_eq!(denied(&mut breaker, now), Change::None);
        assert_eq!(denied(&mut breaker, now), Change::Refresh);
        assert!(breaker.open(Way::Write).is_some());
    }

    #[test]
    fn what_others_do_not_need_shows_only_that_credentials_are_good() {
        let start = Instant::now();
        let at = start + SECOND;
        for (reason, closes) in [("AccessDenied", false), ("ExpiredToken", true)] {
            let mut breaker = Breaker::new(EVERY);
            for _ in 0..3 {
                wrong(&mut breaker, Way::Read, reason, start);
            }
            assert!(breaker.open(Way::Read).is_some());
            breaker.heard(Way::Read, at, Says::Refused, at);
            breaker.heard(Way::Read, at, Says::Known, at);
            assert_eq!(breaker.open(Way::Read).is_none(), closes, "{reason}");
            assert!(breaker.open(Way::Write).is_none(), "{reason}");
        }
    }

    #[test]
    fn credentials_are_refreshed_no_more_than_once_an_interval() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        let mut refreshed = 0;
        // One of two servers behind one name has another clock.
        for at in 0..600 {
            let now = start + SECOND * at;
            let change = wrong(&mut breaker, Way::Write, "RequestTimeTooSkewed", now);
            refreshed += u32::from(change == Change::Refresh);
            breaker.heard(Way::Write, now, Says::Done, now);
            assert!(breaker.open(Way::Write).is_none());
        }
        assert_eq!(refreshed, 20);
    }

    #[test]
    fn what_was_about_everything_ends_with_an_answer_of_any_kind() {
        let start = Instant::now();
        let later = start + EVERY;
        for says in [
            Says::Known,
            Says::Answered,
            Says::Wrong("AccessDenied"),
            Says::Wrong("QuotaExceeded"),
        ] {
            let mut breaker = Breaker::new(EVERY);
            wrong(&mut breaker, Way::Write, "ExpiredToken", start);
            assert!(breaker.open(Way::Read).is_some());
            breaker.heard(Way::Write, later, says, later);
            assert_eq!(breaker.open(Way::Read), None, "{says:?}");
            assert_eq!(breaker.open(Way::Remove), None, "{says:?}");
        }
        let mut breaker = Breaker::new(EVERY);
        wrong(&mut breaker, Way::Write, "ExpiredToken", start);
        for says in [Says::Refused, Says::Wrong(FORBIDDEN), Says::Nothing] {
            breaker.heard(Way::Write, later, says, later);
            assert!(breaker.open(Way::Read).is_some(), "{says:?}");
        }
    }

    #[test]
    fn what_gets_no_answer_as_a_probe_is_told_as_well() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        wrong(&mut breaker, Way::Write, "ExpiredToken", start);
        breaker.took(Way::Write);
        breaker.heard(Way::Write, start, Says::Nothing, start);
        assert!(matches!(
            breaker.probed(Way::Write, start),
            Change::Opened(_)
        ));
        assert!(breaker.open(Way::Write).is_some_and(|open| open.confirmed));
        assert_eq!(breaker.may(Way::Write, start), Err(Some(start + EVERY)));
    }

    #[test]
    fn what_is_refused_and_is_no_probe_puts_no_probe_off() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        for _ in 0..3 {
            wrong(&mut breaker, Way::Read, "AccessDenied", start);
        }
        breaker.took(Way::Read);
        wrong(&mut breaker, Way::Read, "AccessDenied", start);
        breaker.probed(Way::Read, start);
        for second in 1..30 {
            let now = start + SECOND * second;
            wrong(&mut breaker, Way::Read, "AccessDenied", now);
        }
        assert_eq!(breaker.may(Way::Read, start + EVERY), Ok(()));
    }

    #[test]
    fn a_probe_that_asked_nothing_cost_nothing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(EVERY);
        wrong(&mut breaker, Way::Write, "QuotaExceeded", start);
        let next = start + EVERY;
        assert!(breaker.took(Way::Write));
        breaker.probed(Way::Write, next);
        assert_eq!(breaker.may(Way::Write, next), Ok(()), "its body was gone");
        assert!(breaker.took(Way::Write));
        breaker.heard(Way::Read, next, Says::Done, next);
        breaker.heard(Way::Remove, next, Says::Done, next);
        breaker.probed(Way::Write, next);
        assert_eq!(breaker.may(Way::Write, next), Ok(()), "it was a delete");
        assert!(breaker.took(Way::Write));
        breaker.heard(Way::Remove, next, Says::Refused, next);
        breaker.probed(Way::Write, next);
        assert_eq!(
            breaker.may(Way::Write, next),
            Err(Some(next + EVERY)),
            "one that was refused would be the next again"
        );
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
            breaker.heard(Way::Write, start, Says::Done, late),
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
