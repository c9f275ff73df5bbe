//! The one source of randomness: seeded, so that a seed replays a run.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sync::Mutex;

/// A seeded generator that is shared by everything in one queue.
#[derive(Debug, Clone)]
pub struct Random {
    rng: Arc<Mutex<StdRng>>,
}

impl Random {
    /// A generator that repeats itself for the same `seed`; without one, seeded by the operating
    /// system.
    #[must_use]
    pub fn new(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            match rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes) {
                Ok(()) => u64::from_le_bytes(bytes),
                // Ids stay unique through the process id; only jitter becomes predictable.
                Err(_) => u64::from(std::process::id()) << 32,
            }
        });
        Self {
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        }
    }

    /// A uniformly random number.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.rng.lock().random()
    }

    /// A uniformly random duration from zero to `max`, both included.
    #[must_use]
    pub fn up_to(&self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.rng.lock().random_range(0..=nanos))
    }
}
