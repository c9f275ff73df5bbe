//! A budget for trying again: so that an S3 that fails is not asked ever more often.
//!
//! A token bucket, as in AWS's SDKs ("retry quota") and in Finagle, and other than there with a
//! floor: what is owed is tried again for ever, at a rate that does not depend on how much of it
//! there is. A pure structure: no clock, no lock.
//!
//! 1. Each retry costs one token. A success brings its own back and one more: when S3 is well
//!    again the rate doubles with every round trip, up to the burst.
//! 2. Tokens come back at the floor's rate in any case.

use std::time::Duration;

use tokio::time::Instant;

/// What a success brings.
const FED: f64 = 2.0;

#[derive(Debug)]
pub(super) struct Budget {
    tokens: f64,
    burst: f64,
    /// A second.
    floor: f64,
    at: Instant,
}

impl Budget {
    /// A full one: `burst` at once, `floor` a second for ever.
    pub(super) fn new(burst: u32, floor: u32, now: Instant) -> Self {
        Self {
            tokens: f64::from(burst.max(1)),
            burst: f64::from(burst.max(1)),
            floor: f64::from(floor.max(1)),
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.floor).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Pays for a retry, if there is enough.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    /// When there is enough for one.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        self.fill(now);
        let lacking = (1.0 - self.tokens).max(0.0) / self.floor;
        // A little more: a fraction that is lost must not have anybody look twice.
        match lacking > 0.0 {
            true => now + Duration::from_secs_f64(lacking) + Duration::from_millis(1),
            false => now,
        }
    }

    /// A request did what it should.
    pub(super) fn succeeded(&mut self) {
        self.tokens = (self.tokens + FED).min(self.burst);
    }

    /// Whole tokens that are left.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and the burst"
    )]
    pub(super) fn left(&mut self, now: Instant) -> u32 {
        self.fill(now);
        self.tokens as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_s3_that_fails_is_asked_at_the_floors_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(100, 10, start);
        let mut asked = 0;
        let mut now = start;
        // Ten minutes in which as many as can be want to try again at any time.
        while now < start + Duration::from_secs(600) {
            while budget.take(now) {
                asked += 1;
            }
            let next = budget.next(now);
            assert!(next > now, "who waits for a token waits");
            now = next;
        }
        assert!((6000..=6200).contains(&asked), "{asked}");
    }

    #[test]
    fn when_it_is_well_again_the_rate_doubles_with_every_round_trip() {
        let start = Instant::now();
        let mut budget = Budget::new(1000, 1, start);
        while budget.take(start) {}
        let mut now = start + Duration::from_secs(1);
        let mut at_once = Vec::new();
        for _ in 0..10 {
            let mut sent = 0;
            while budget.take(now) {
                sent += 1;
            }
            (0..sent).for_each(|_| budget.succeeded());
            at_once.push(sent);
            now += Duration::from_millis(20);
        }
        assert_eq!(at_once[..8], [1, 2, 4, 8, 16, 32, 64, 128]);
    }

    #[test]
    fn it_never_has_more_than_its_burst() {
        let start = Instant::now();
        let mut budget = Budget::new(5, 1, start);
        (0..100).for_each(|_| budget.succeeded());
        assert_eq!(budget.left(start + Duration::from_secs(3600)), 5);
    }
}
