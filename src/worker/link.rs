//! How fast the link is, as measured: so that a dead one is found early, and a slow one works.
//!
//! A request with a body has the time that the body takes at the slowest rate that must still work.
//! On a link that was seen to be a thousand times faster, that is a thousand times too long to find
//! out that it is dead. So a body has sixteen times what it should take; and an attempt that ends at
//! its deadline halves what the link is thought to do, down to the slowest rate. A pure structure.

use std::time::Duration;

/// Bodies that are smaller measure the server's latency, and not the link.
const LEAST: u64 = 256 * 1024;
/// How much slower than it was the link may be.
const SLACK: u64 = 16;

#[derive(Debug, Default)]
pub(super) struct Link {
    /// Bytes a second of one request.
    rate: Option<u64>,
}

fn rate_of(bytes: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

impl Link {
    /// A request moved so many bytes in this time.
    pub(super) fn moved(&mut self, bytes: u64, took: Duration) {
        if bytes < LEAST {
            return;
        }
        let seen = rate_of(bytes, took);
        self.rate = Some(match self.rate {
            None => seen,
            Some(rate) => rate / 8 * 7 + seen / 8,
        });
    }

    /// A request was given up after this time.
    pub(super) fn gave_up(&mut self, bytes: u64, after: Duration) {
        if bytes >= LEAST
            && let Some(rate) = self.rate
        {
            self.rate = Some(rate.min(rate_of(bytes, after)) / 2);
        }
    }

    pub(super) const fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// The slowest rate that is waited for, where `least` must work in any case.
    pub(super) fn slowest(&self, least: u64) -> u64 {
        self.rate.map_or(least, |rate| least.max(rate / SLACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const LEAST_RATE: u64 = 32 * 1024;

    #[test]
    fn a_fast_link_is_expected_to_stay_within_a_sixteenth_of_its_rate() {
        let mut link = Link::default();
        assert_eq!(link.slowest(LEAST_RATE), LEAST_RATE);
        for _ in 0..100 {
            link.moved(16 * MIB, Duration::from_secs(1));
        }
        let slowest = link.slowest(LEAST_RATE);
        assert!(slowest > MIB - 1024 && slowest <= MIB, "{slowest}");
        link.moved(100, Duration::from_secs(100));
        assert_eq!(link.slowest(LEAST_RATE), slowest, "too small to measure");
    }

    #[test]
    fn a_link_that_has_become_slow_works_after_a_few_attempts() {
        let mut link = Link::default();
        link.moved(16 * MIB, Duration::from_millis(100));
        // 64 KiB a second from here on: 8 MiB take 128 s.
        let takes = Duration::from_secs(128);
        let mut attempts = 0;
        loop {
            let within = Duration::from_secs(8 * MIB / link.slowest(LEAST_RATE) + 5);
            if within >= takes {
                break;
            }
            link.gave_up(8 * MIB, within);
            attempts += 1;
        }
        assert!(attempts <= 4, "{attempts}");
        link.gave_up(8 * MIB, Duration::from_secs(1000));
        assert!(link.slowest(LEAST_RATE) >= LEAST_RATE);
    }
}
