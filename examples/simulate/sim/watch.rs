//! What has to be so at any instant: looked at all the while.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3_writeback::StoreConfig;
use s3_writeback::testing::remote::SimRemote;

use super::env::{Env, lock};
use super::objects::Objects;

const SEEN: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(100);

/// Limits hold, whatever S3 does; nothing goes back.
pub async fn watch(
    env: Env,
    config: StoreConfig,
    objects: Arc<Mutex<Objects>>,
    remote: SimRemote,
    has_checkpoint_code: bool,
) {
    // What recovery found may be more than today's limits: it is never refused.
    let at_open = env.store.snapshot();
    // Nobody but checkpoint code has its reserve.
    let reserve = match env.world.has_checkpointers.get() || has_checkpoint_code {
        true => config.checkpoint_cache_bytes,
        false => 0,
    };
    let most = |limit: u64, found: u64| limit.max(found) + reserve;
    let cache = most(config.cache_bytes, at_open.cache_bytes);
    let dirty = most(config.dirty_bytes, at_open.dirty_bytes);
    let images = config.image_bytes + config.pack_bytes.max(config.max_part_bytes());
    let tasks = config.queue.max_tasks.max(at_open.queue.admitted_tasks);
    let bytes = config.queue.max_bytes.max(at_open.queue.admitted_bytes);
    loop {
        tokio::time::sleep(EVERY).await;
        let now = env.store.snapshot();
        let within = [
            ("cache_bytes", now.cache_bytes, cache),
            ("dirty_bytes", now.dirty_bytes, dirty),
            ("image_bytes", now.image_bytes, images),
            ("admitted_tasks", now.queue.admitted_tasks, tasks),
            ("admitted_bytes", now.queue.admitted_bytes, bytes),
        ];
        for (what, is, limit) in within {
            assert!(is <= limit, "{what} is {is} and may be {limit}: {now:#?}");
        }
        // What is after something that the disk refused is left alone.
        let before = at_open.queue.quarantined;
        let fine = now.queue.quarantined <= before
            || env.world.disk_is_bad.get()
            || env.world.may_quarantine.get();
        assert!(fine, "{:?}", env.store.queue().quarantined());
        lock(&objects).look(&remote);
    }
}

/// Every gauge of a store that has ended is at zero, as soon as its tasks have seen the end.
pub async fn at_rest(env: &Env) {
    tokio::time::sleep(SEEN).await;
    let now = env.store.snapshot();
    let gauges = [
        ("lock_waiters", now.lock_waiters),
        ("cache_waiters", now.cache_waiters as u64),
        ("image_bytes", now.image_bytes),
        ("loads", now.queue.tasks.loads as u64),
        ("images", now.queue.tasks.images as u64),
        ("running", now.queue.tasks.running as u64),
        ("admission_waiters", now.queue.admission_waiters as u64),
        ("reserve_tasks", now.queue.reserve_tasks),
        ("admitted_tasks", now.queue.admitted_tasks),
        ("admitted_bytes", now.queue.admitted_bytes),
    ];
    for (what, is) in gauges {
        assert_eq!(is, 0, "{what} after the end: {now:#?}");
    }
}
