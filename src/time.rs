//! The time seam: tokio's clock, and a wall clock derived from it.
//!
//! Deadlines and ages use [`tokio::time::Instant`], which tests pause. The wall clock is needed
//! for one thing only, the expiry of request signatures across restarts; it is read once at open
//! and moved on by tokio's clock, so that a step of the machine's clock moves nothing here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A wall clock that follows tokio's.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    at: Instant,
    unix: Duration,
}

impl WallClock {
    /// The machine's wall clock, read now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn system() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::starting_at(unix)
    }

    /// A wall clock that reads `unix` (since the Unix epoch) now: for simulations.
    #[must_use]
    pub fn starting_at(unix: Duration) -> Self {
        Self {
            at: Instant::now(),
            unix,
        }
    }

    /// Time since the Unix epoch.
    #[must_use]
    pub fn unix(&self) -> Duration {
        self.unix + self.at.elapsed()
    }

    /// The same in milliseconds.
    pub(crate) fn unix_ms(&self) -> u64 {
        millis(self.unix())
    }

    /// The same as a [`SystemTime`].
    #[must_use]
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.unix()
    }
}

/// A duration in milliseconds, as it is stored and told.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
