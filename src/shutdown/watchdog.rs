//! The watchdog: notices when nothing has moved for a while though there is work.
//!
//! Owns: when a stall is reported. Does not own: what is in the report: each layer describes
//! itself. In the incident that this crate exists for, someone had to collect this picture by
//! hand, with a debugger.
//!
//! A stall is reported once; again only after something has moved in between.

use std::time::Duration;

use tokio::time::Instant;

/// The decision, apart from clocks and I/O.
#[derive(Debug)]
pub(crate) struct Watchdog {
    after: Duration,
    last: Option<(u64, Instant)>,
    reported: bool,
}

impl Watchdog {
    pub(crate) const fn new(after: Duration) -> Self {
        Self {
            after,
            last: None,
            reported: false,
        }
    }

    /// How often to look.
    pub(crate) fn beat(&self) -> Duration {
        self.after / 4
    }

    /// Looks: `progress` goes up whenever something moves. Returns how long nothing has moved,
    /// once, when that is too long.
    pub(crate) fn look(&mut self, progress: u64, work: bool, now: Instant) -> Option<Duration> {
        match self.last {
            Some((before, since)) if before == progress && work => {
                let still = now.saturating_duration_since(since);
                let report = still >= self.after && !self.reported;
                self.reported |= report;
                report.then_some(still)
            }
            _ => {
                self.last = Some((progress, now));
                self.reported = false;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_reported_once_until_something_moves() {
        let mut watchdog = Watchdog::new(Duration::from_secs(8));
        let mut look = async |progress, work| {
            tokio::time::advance(Duration::from_secs(2)).await;
            watchdog.look(progress, work, Instant::now()).is_some()
        };
        let mut reports = Vec::new();
        for (progress, work) in [(1, true); 7]
            .into_iter()
            .chain([(2, true); 6])
            .chain([(2, false); 7])
        {
            reports.push(look(progress, work).await);
        }
        let at: Vec<_> = reports
            .iter()
            .enumerate()
            .filter(|(_, r)| **r)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(at, [4, 11]);
    }
}
