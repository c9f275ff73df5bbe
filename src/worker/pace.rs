//! Limits that an operator sets: requests and bytes a second.
//!
//! Owns: what was sent and is not paid for yet; the buckets are the `governor` crate's (GCRA).
//!
//! Nobody waits with a request in hand: a job is charged when it is taken, and that is paid for
//! before the next is taken. So a second may see one job more than its share, and no more than that
//! in the long run. What a job sends beyond what it was charged for is charged as it is sent. Of what
//! the reserved slots send, who waits for the others pays a second's worth at most: it is counted,
//! and keeps nobody out for longer than that.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// Bytes are counted in so many at a time: a bucket holds no more than `u32::MAX` of anything.
const UNIT: u64 = 1024;

/// Tokio's time, which tests pause.
#[derive(Debug, Clone)]
struct Since(Instant);

impl Clock for Since {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Since, NoOpMiddleware<Duration>>;

/// One limit.
#[derive(Debug)]
struct Limit {
    limiter: Limiter,
    started: Instant,
    /// The most that is paid for at once: a second's worth.
    most: NonZeroU32,
    owed: u64,
    /// Charged and not sent yet.
    ahead: u64,
    /// What the jobs in hand were charged for: no more can be ahead.
    in_hand: u64,
}

impl Limit {
    fn new(a_second: u64, now: Instant) -> Option<Self> {
        let most = u32::try_from(a_second).unwrap_or(u32::MAX);
        let most = NonZeroU32::new(most)?;
        Some(Self {
            limiter: RateLimiter::direct_with_clock(Quota::per_second(most), Since(now)),
            started: now,
            most,
            owed: 0,
            ahead: 0,
            in_hand: 0,
        })
    }

    fn takes(&mut self, n: u64) {
        self.owed += n;
        self.ahead += n;
        self.in_hand += n;
    }

    fn sends(&mut self, n: u64) {
        let charged = n.min(self.ahead);
        self.ahead -= charged;
        self.owed += n - charged;
    }

    fn sends_aside(&mut self, n: u64) {
        let room = u64::from(self.most.get()).saturating_sub(self.owed);
        self.owed += n.min(room);
    }

    fn left(&mut self, n: u64) {
        self.in_hand = self.in_hand.saturating_sub(n);
        self.ahead = self.ahead.min(self.in_hand);
    }

    /// Pays what is owed; when it can be, if not now.
    fn pay(&mut self) -> Option<Instant> {
        while let Some(owed) = NonZeroU32::new(u32::try_from(self.owed).unwrap_or(u32::MAX)) {
            let now = owed.min(self.most);
            match self.limiter.check_n(now) {
                Ok(Ok(())) => self.owed -= u64::from(now.get()),
                Ok(Err(until)) => {
                    let at = until.earliest_possible();
                    return Some(self.started + at.duration_since(Duration::ZERO).into());
                }
                // More than the bucket ever holds: it is not, by `min`.
                Err(_) => return None,
            }
        }
        None
    }
}

/// Both limits.
#[derive(Debug)]
pub(super) struct Pace {
    requests: Option<Limit>,
    bytes: Option<Limit>,
}

impl Pace {
    /// Limits a second; `None`: as many as there are.
    pub(super) fn new(requests: Option<u32>, bytes: Option<u64>, now: Instant) -> Self {
        Self {
            requests: requests.and_then(|most| Limit::new(u64::from(most), now)),
            bytes: bytes.and_then(|most| Limit::new(most.div_ceil(UNIT), now)),
        }
    }

    /// A job of so many bytes is taken: a request, at least.
    pub(super) fn takes(&mut self, bytes: u64) {
        self.each(bytes, Limit::takes);
    }

    /// A request is sent.
    pub(super) fn sends(&mut self, bytes: u64) {
        self.each(bytes, Limit::sends);
    }

    /// A request is sent in a slot that is not held back.
    pub(super) fn sends_aside(&mut self, bytes: u64) {
        self.each(bytes, Limit::sends_aside);
    }

    /// A job that was taken is over.
    pub(super) fn left(&mut self, bytes: u64) {
        self.each(bytes, Limit::left);
    }

    fn each(&mut self, bytes: u64, does: fn(&mut Limit, u64)) {
        if let Some(limit) = &mut self.requests {
            does(limit, 1);
        }
        if let Some(limit) = &mut self.bytes {
            does(limit, bytes.div_ceil(UNIT));
        }
    }

    /// When something may be taken again, if not now.
    pub(super) fn pay(&mut self) -> Option<Instant> {
        let limits = [&mut self.requests, &mut self.bytes];
        let waits = limits.into_iter().flatten().map(Limit::pay);
        waits.flatten().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much goes in a minute to who sends as much as he may.
    async fn in_a_minute(mut pace: Pace, bytes: u64) -> u64 {
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < Duration::from_secs(60) {
            match pace.pay() {
                Some(until) => tokio::time::sleep_until(until).await,
                None => {
                    pace.sends(bytes);
                    sent += 1;
                }
            }
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_in_the_long_run() {
        let now = Instant::now();
        let requests = in_a_minute(Pace::new(Some(10), None, now), 1 << 20).await;
        assert!((600..=615).contains(&requests), "{requests}");
        // Each of them is more than a second's worth.
        let now = Instant::now();
        let large = in_a_minute(Pace::new(None, Some(1 << 20), now), 8 << 20).await;
        assert!((7..=9).contains(&large), "{large}");
        let now = Instant::now();
        let both = in_a_minute(Pace::new(Some(100), Some(1 << 20), now), 64 << 10).await;
        assert!((960..=990).contains(&both), "{both}");
    }

    /// However many are taken before any of them is sent, and whatever they turn out to send.
    #[tokio::test(start_paused = true)]
    async fn what_is_taken_is_charged_once() {
        let mut pace = Pace::new(Some(10), None, Instant::now());
        for _ in 0..10 {
            assert_eq!(pace.pay(), None);
            pace.takes(0);
        }
        assert_eq!(
            pace.pay(),
            None,
            "a second's worth, before anything is sent"
        );
        pace.takes(0);
        assert!(pace.pay().is_some(), "and no more");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(pace.pay(), None);
        for _ in 0..11 {
            pace.sends(0);
            pace.left(0);
        }
        assert_eq!(pace.pay(), None, "was charged");
        for _ in 0..11 {
            pace.sends(0);
        }
        assert!(pace.pay().is_some(), "a retry within a job is charged too");
    }
}
