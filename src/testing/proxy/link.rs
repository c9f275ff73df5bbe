//! How fast the link is: one for all connections, both ways apart.
//!
//! Owns: when bytes are through. A direction is a queue: whoever sends takes the time that its
//! bytes need, behind all who took theirs before.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

/// How long the bytes of one step should take at most: smaller steps are smoother.
const STEP: Duration = Duration::from_millis(20);
/// The most bytes of one step.
const MAX_STEP_BYTES: u64 = 64 * 1024;

/// What a link can do. The default: everything, at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkSpeed {
    /// Bytes a second towards the server, over all connections; `None` for no limit, 0 counts as 1.
    pub up: Option<u64>,
    /// The same towards the client.
    pub down: Option<u64>,
    /// What each request, and each answer, is late by.
    pub latency: Duration,
}

/// Which way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Up,
    Down,
}

/// A rate with its queue.
#[derive(Debug, Default)]
struct Lane {
    rate: Option<u64>,
    /// When all that was taken is through.
    free: Option<Instant>,
}

impl Lane {
    /// Takes the time of so many bytes; when they are through.
    fn take(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?.max(1);
        // Who wakes late has its time back: the rate is right over a second, not over a step.
        let earliest = now.checked_sub(5 * STEP).unwrap_or(now);
        let from = self.free.map_or(now, |free| free.max(earliest));
        let through = from + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.free = Some(through);
        Some(through)
    }

    fn step(&self) -> usize {
        let bytes = self.rate.map_or(MAX_STEP_BYTES, |rate| {
            (rate * STEP.as_millis() as u64 / 1000).clamp(1, MAX_STEP_BYTES)
        });
        usize::try_from(bytes).unwrap_or(1)
    }
}

/// The link of one proxy.
#[derive(Debug)]
pub(super) struct Link {
    up: Mutex<Lane>,
    down: Mutex<Lane>,
    latency: Mutex<Duration>,
}

impl Link {
    pub fn new(speed: LinkSpeed) -> Self {
        let link = Self {
            up: Mutex::default(),
            down: Mutex::default(),
            latency: Mutex::default(),
        };
        link.set(speed);
        link
    }

    /// What is on its way keeps its time.
    pub fn set(&self, speed: LinkSpeed) {
        *self.up.lock() = Lane {
            rate: speed.up,
            free: None,
        };
        *self.down.lock() = Lane {
            rate: speed.down,
            free: None,
        };
        *self.latency.lock() = speed.latency;
    }

    fn lane(&self, way: Way) -> &Mutex<Lane> {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    pub async fn latency(&self) {
        let latency = *self.latency.lock();
        if !latency.is_zero() {
            sleep(latency).await;
        }
    }
}

/// How fast one message goes: over the link, and no faster than its own rate.
#[derive(Debug)]
pub(super) struct Pace<'l> {
    link: &'l Link,
    way: Way,
    own: Lane,
}

impl<'l> Pace<'l> {
    pub fn new(link: &'l Link, way: Way, own: Option<u64>) -> Self {
        Self {
            link,
            way,
            own: Lane {
                rate: own,
                free: None,
            },
        }
    }

    /// How many bytes to send in one step.
    pub fn step(&self) -> usize {
        self.own.step().min(self.link.lane(self.way).lock().step())
    }

    /// Waits until so many bytes are through.
    pub async fn pass(&mut self, bytes: usize) {
        let (bytes, now) = (bytes as u64, Instant::now());
        let link = self.link.lane(self.way).lock().take(bytes, now);
        if let Some(through) = link.max(self.own.take(bytes, now)) {
            sleep_until(through).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_link_is_shared_and_a_message_no_faster_than_itself() {
        let link = Link::new(LinkSpeed {
            up: Some(1000),
            ..LinkSpeed::default()
        });
        let start = Instant::now();
        let send = async |own: Option<u64>, bytes: usize| {
            let mut pace = Pace::new(&link, Way::Up, own);
            let mut left = bytes;
            while left > 0 {
                let step = pace.step().min(left);
                pace.pass(step).await;
                left -= step;
            }
            start.elapsed().as_secs_f64()
        };
        let (one, other) = tokio::join!(send(None, 1000), send(None, 1000));
        assert!((1.9..2.1).contains(&one.max(other)), "{one} {other}");
        let alone = send(Some(1), 3).await;
        assert!((4.9..5.1).contains(&alone), "{alone}");
        let mut down = Pace::new(&link, Way::Down, None);
        down.pass(1 << 30).await;
        assert!((4.9..5.1).contains(&start.elapsed().as_secs_f64()));
    }
}
