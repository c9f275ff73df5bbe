//! B1: while S3 fails, is slow, or never answers, work does not pile up behind it: the queue is
//! full, says so at once, and memory does not grow. (In the incident there was no limit, and the
//! service and its store died of the tasks that were retried.)
//!
//! In a binary of its own: all that it allocates is counted.

mod support;

use std::time::{Duration, Instant as WallTime};

use peak_alloc::PeakAlloc;
use s3_writeback::error::Limit;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Options};
use support::{Rig, assert_empty, paused};
use tokio::time::Instant;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const TASKS: u64 = 1000;
const SUBMITS: usize = 100_000;
/// In a millisecond.
const PACE: usize = 5;
const MIB: usize = 1 << 20;

/// What S3 does, and what came of it.
#[expect(
    clippy::disallowed_methods,
    reason = "a refusal takes no simulated time: how long it takes is told by the clock on the wall"
)]
async fn piles_up(how: &str, fault: Fault) {
    let rig = Rig::with(|config| {
        config.max_tasks = TASKS;
        config.retry_cap = Duration::from_millis(500);
        config.attempt_floor = Duration::from_secs(3);
    });
    let queue = rig.open().await;
    rig.remote.always(Some(Call::Put), None, fault);
    let body = bytes::Bytes::from(vec![b'x'; 1024]);
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let (mut admitted, mut refused) = (Vec::new(), Vec::with_capacity(SUBMITS));
    for at in 0..SUBMITS {
        if at % PACE == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let key = format!("sst/{at:06}");
        let body = body.clone();
        let began = WallTime::now();
        match queue.submit(key, body, Options::default()).now() {
            Ok(receipt) => admitted.push(receipt),
            Err(Error::QueueFull {
                limit: Limit::Tasks,
                current,
                max: TASKS,
                ..
            }) => {
                refused.push(began.elapsed());
                assert_eq!(current, TASKS);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let grown = HEAP.peak_usage() - before;
    refused.sort_unstable();
    let p99 = refused[refused.len() * 99 / 100];
    println!(
        "{how}: {} admitted, {} refused, p99 of a refusal {p99:?}, heap grew by {} KiB at most, \
         {} requests",
        admitted.len(),
        refused.len(),
        grown / 1024,
        rig.remote.seen().len(),
    );
    // Where S3 is slow, some were uploaded meanwhile, and made room.
    let uploaded = queue.snapshot().uploaded;
    assert_eq!(admitted.len() as u64, TASKS + uploaded);
    assert!(p99 < Duration::from_millis(1), "{p99:?}");
    assert!(grown < 32 * MIB, "{grown} bytes");
    rig.remote.heal();
    // Admission works again within a second of its answering.
    let from = Instant::now();
    while queue
        .submit("again", "1", Options::default())
        .now()
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let limit = match how {
            "hanging" => rig.config.attempt_floor + Duration::from_secs(1),
            _ => Duration::from_secs(1),
        };
        assert!(from.elapsed() < limit, "{how}: {:?}", from.elapsed());
    }
    queue.drain().await.expect("all goes up");
    for receipt in &admitted {
        assert!(
            rig.remote.object(receipt.key()).is_some(),
            "{}",
            receipt.key()
        );
    }
    drop(admitted);
    assert_empty(&queue);
}

#[test]
fn b1_work_does_not_pile_up_behind_an_s3_that_fails_is_slow_or_hangs() {
    paused(piles_up(
        "failing",
        Fault::Error(RemoteError::throttled("PutObject")),
    ));
    paused(piles_up("slow", Fault::Delay(Duration::from_secs(2))));
    paused(piles_up("hanging", Fault::Hang));
}
