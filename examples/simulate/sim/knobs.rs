//! The configuration of a seed: too small for what is done, so that corners are common.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use s3_writeback::{Fencing, StoreConfig};

use super::pages::PART;
use super::skies::Climate;

/// What a seed decides before anything happens.
#[derive(Debug, Clone)]
pub struct Knobs {
    pub config: StoreConfig,
    pub climate: Climate,
    pub actors: u64,
    pub producers: u64,
    pub lookers: u64,
    /// S3 does not look at conditions, and the store was told so.
    pub ignores_conditions: bool,
    /// Lockers that read in the role of checkpoint code.
    pub checkpoint_code: u64,
    pub slow_readers: u64,
    /// The longest call on the disk.
    pub disk: Duration,
    /// The disk fails calls now and then.
    pub disk_fails: bool,
    pub lives: u32,
    /// The longest life.
    pub life: Duration,
}

fn one_of<T: Copy, const N: usize>(rng: &mut StdRng, of: [T; N]) -> T {
    of[rng.random_range(0..N)]
}

impl Knobs {
    pub fn of(rng: &mut StdRng) -> Self {
        let ms = Duration::from_millis;
        let mut config = StoreConfig::new("/store");
        let frames = rng.random_range(4..=10);
        config.cache_bytes = frames * PART;
        config.dirty_bytes = rng.random_range(1..=frames) * PART;
        config.checkpoint_cache_bytes = rng.random_range(1..=2) * PART;
        config.image_bytes = rng.random_range(1..=6) * PART;
        config.pack_bytes = rng.random_range(1..=8) * PART;
        config.aside_memory = rng.random_range(1..=4) * PART;
        config.max_dirty_age = ms(one_of(rng, [5, 50, 500, 10_000]));
        config.max_step_bytes = 16 * PART;
        config.max_header_records = one_of(rng, [64, 256, 4096]);
        config.fencing = match rng.random_bool(0.85) {
            true => Fencing::On,
            false => Fencing::Off,
        };
        config.look_at_head = ms(one_of(rng, [1000, 10_000]));
        config.claim_within = ms(one_of(rng, [200, 30_000]));
        config.checkpoint_every = one_of(rng, [None, Some(ms(500)), Some(ms(5000))]);
        config.checkpoint_after_bytes = one_of(rng, [None, Some(8 * PART)]);
        config.checkpoint_at_shutdown = rng.random_bool(0.8);
        config.retain_checkpoints = rng.random_range(1..=4);
        config.gc_every = one_of(rng, [None, Some(ms(3000))]);
        config.sparse_percent = one_of(rng, [0, 50, 90]);
        let queue = &mut config.queue;
        queue.max_tasks = one_of(rng, [1, 2, 16, 1000]);
        queue.max_bytes = one_of(rng, [8 << 10, 64 << 10, 1 << 20]);
        queue.workers = one_of(rng, [1, 1, 2, 8]);
        queue.segment_bytes = one_of(rng, [4096, 16 << 10, 64 << 10]);
        queue.inline_bytes = one_of(rng, [0, 512, 4096]);
        queue.max_disk_bytes = 16 << 20;
        queue.attempt_floor = ms(one_of(rng, [500, 2000]));
        queue.retry_base = ms(10);
        queue.retry_cap = ms(one_of(rng, [100, 2000]));
        queue.probe_interval = queue.retry_cap * 2;
        queue.signature_lifetime = ms(one_of(rng, [1000, 20_000]));
        queue.crash_limit = 100;
        // Of what was drawn already: a seed keeps the rest of its meaning.
        let drawn = frames as usize + queue.workers;
        queue.recovery_window = [1, 2, 4, 4096][drawn % 4];
        let unfenced = config.fencing == Fencing::Off;
        Self {
            config,
            ignores_conditions: unfenced && rng.random_bool(0.5),
            climate: one_of(
                rng,
                [
                    Climate::Fine,
                    Climate::Mixed,
                    Climate::Rough,
                    Climate::Rough,
                ],
            ),
            actors: rng.random_range(1..=4),
            producers: rng.random_range(0..=2),
            lookers: rng.random_range(0..=2),
            disk: ms(one_of(rng, [0, 0, 1, 20])),
            disk_fails: rng.random_bool(0.2),
            lives: rng.random_range(1..=4),
            life: ms(one_of(rng, [500, 5000, 20_000, 40_000])),
            checkpoint_code: rng.random_range(0..=1),
            slow_readers: rng.random_range(0..=1),
        }
    }
}
