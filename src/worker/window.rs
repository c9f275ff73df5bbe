//! How many requests are in flight at one time: a window that follows what S3 can take.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and
//! Decrease Algorithms for Congestion Avoidance", 1989). A pure structure: no clock, no lock.
//!
//! 1. Throttled, it is half of what it was, and at least one; once for each round trip: what was
//!    sent before the last cut says nothing about the window of today.
//! 2. It grows by one for each window of successes, and only while half of it is used; never by a
//!    failure.

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Window {
    limit: f64,
    most: usize,
    in_flight: usize,
    cut: Option<Instant>,
    cuts: u64,
}

impl Window {
    /// A window of `most`, all of it open.
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: whole(most),
            most,
            in_flight: 0,
            cut: None,
            cuts: 0,
        }
    }

    /// How many may be in flight.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between one and `most`"
    )]
    pub(super) fn limit(&self) -> usize {
        (self.limit as usize).clamp(1, self.most.max(1))
    }

    pub(super) const fn most(&self) -> usize {
        self.most
    }

    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How often it was halved.
    pub(super) const fn cuts(&self) -> u64 {
        self.cuts
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.limit()
    }

    pub(super) fn took(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn left(&mut self) {
        debug_assert!(self.in_flight > 0, "more came back than went");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn is_of_today(&self, started: Instant) -> bool {
        self.cut.is_none_or(|cut| started >= cut)
    }

    /// S3 asks for less, of a request that began at `started`; whether the window was cut.
    pub(super) fn throttled(&mut self, started: Instant, now: Instant) -> bool {
        let cuts = self.is_of_today(started);
        if cuts {
            self.cuts += u64::from(self.limit > 1.0);
            self.limit = (self.limit / 2.0).max(1.0);
            self.cut = Some(now);
        }
        cuts
    }

    /// A request that began at `started` did what it should.
    pub(super) fn succeeded(&mut self, started: Instant) {
        // A share that one prefix has of it may be all that is used.
        if self.is_of_today(started) && self.in_flight * 2 >= self.limit() {
            self.limit = (self.limit + 1.0 / self.limit).min(whole(self.most));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most a thousand")]
fn whole(number: usize) -> f64 {
    number.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    #[test]
    fn it_is_halved_once_a_round_trip_and_climbs_by_one_a_window() {
        let start = Instant::now();
        let mut window = Window::new(16);
        (0..16).for_each(|_| window.took());
        assert!(!window.has_room());
        // All sixteen are told the same.
        for _ in 0..16 {
            window.throttled(start, start + RTT);
            window.left();
        }
        assert_eq!((window.limit(), window.cuts()), (8, 1));
        let again = start + RTT;
        window.throttled(again, again + RTT);
        assert_eq!(window.limit(), 4);
        // What was sent before that is over is no news.
        window.succeeded(start);
        let mut at = again + RTT;
        for expected in 5..=16 {
            for _ in 0..expected {
                while window.has_room() {
                    window.took();
                }
                window.succeeded(at);
                window.left();
            }
            at += RTT;
            assert!(
                window.limit().abs_diff(expected) <= 1,
                "{expected}: {window:?}"
            );
        }
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let start = Instant::now();
        let mut window = Window::new(64);
        for _ in 0..10 {
            window.throttled(
                start + RTT * window.cuts() as u32,
                start + RTT * (window.cuts() as u32 + 1),
            );
        }
        assert_eq!(window.limit(), 1);
        let later = start + RTT * 100;
        window.took();
        window.succeeded(later);
        window.left();
        assert_eq!(window.limit(), 2);
        for _ in 0..100 {
            window.took();
            window.succeeded(later);
            window.left();
        }
        assert_eq!(window.limit(), 3, "one at a time says nothing about more");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            most in 1_usize..40,
            steps in proptest::collection::vec((0_u8..4, 0_u64..50), 1..300)
        ) {
            let start = Instant::now();
            let mut window = Window::new(most);
            let mut now = start;
            for (step, back) in steps {
                now += Duration::from_millis(5);
                let began = now.checked_sub(Duration::from_millis(back)).unwrap_or(start);
                let before = window.limit();
                match step {
                    0 if window.has_room() => window.took(),
                    1 if window.in_flight() > 0 => window.left(),
                    2 => {
                        window.throttled(began, now);
                        prop_assert!(window.limit() <= before);
                    }
                    _ => window.succeeded(began),
                }
                prop_assert!((1..=most).contains(&window.limit()), "{window:?}");
                prop_assert!(window.limit() <= before + 1);
            }
        }
    }
}
