//! A full disk: what a later end or a later life must know is on record all the same, and who is
//! not kept is told so.

use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, settled, submit};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, KeyPolicy, Options, PauseWhat, Receipt, Settlement, UploadQueue};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Lives on a disk that can be filled; one worker, where there are not many.
fn shapes() -> [Lives; 2] {
    [16, 1].map(|workers| {
        Lives::of(Rig::with(|config| {
            config.segment_bytes = 4096;
            config.max_tasks = 100_000;
            config.max_disk_bytes = 1 << 30;
            config.workers = workers;
        }))
    })
}

fn rewritable() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    }
}

/// Leaves `room` bytes on the disk and submits what is after `first` until it is full: those that
/// are durable, and the one that is not.
async fn fill(
    lives: &Lives,
    queue: &UploadQueue,
    first: &Receipt,
    room: u64,
) -> (Vec<Receipt>, Receipt) {
    let disk = &lives.rig.fs;
    disk.set_capacity(Some(disk.used() + room));
    let mut durable = Vec::new();
    loop {
        let options = Options {
            after: vec![first.clone()],
            ..Options::default()
        };
        let next = queue
            .submit(format!("after/{:05}", durable.len()), "x", options)
            .await
            .expect("admitted");
        let kept = next.durable().within(Duration::from_millis(100)).await;
        if kept.is_err() {
            assert!(queue.snapshot().tasks.disk_full);
            return (durable, next);
        }
        durable.push(next);
    }
}

/// Submits a task that cannot be in S3, and what is after it, until the disk is full; then lets
/// it fail.
async fn fail_on_a_full_disk(
    lives: &Lives,
    queue: &UploadQueue,
    room: u64,
) -> (Vec<Receipt>, Receipt) {
    lives.rig.remote.plant("first", "somebody else's");
    queue.pause(PauseWhat::Uploads);
    let first = submit(queue, "first", "mine").await;
    first.durable().await.unwrap();
    let after = fill(lives, queue, &first, room).await;
    queue.resume(PauseWhat::Uploads);
    // Its end may have to wait for room; that of the disk is not what this is about.
    let _ = first.settled().within(10 * MINUTE).await;
    after
}

async fn nothing_of_it_goes_up(lives: &Lives, queue: &UploadQueue, durable: usize) {
    assert_eq!(queue.quarantined().len(), durable);
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(lives.rig.remote.keys(), ["first"]);
}

/// A task fails for good while the disk is full, and the process is killed: what is after it is in
/// quarantine in the next life, and does not go up.
#[test]
fn what_is_after_a_failed_task_stays_parked_across_a_kill() {
    for lives in shapes() {
        let durable = lives.live(End::Kill, async |queue| {
            fail_on_a_full_disk(&lives, queue, 256 * 1024).await.0.len()
        });
        assert!(durable > 100, "{durable}");
        lives.rig.fs.set_capacity(None);
        lives.live(End::Clean, async |queue| {
            nothing_of_it_goes_up(&lives, queue, durable).await;
        });
    }
}

/// The same, shut down in order, sealed or not.
#[test]
fn what_is_after_a_failed_task_stays_parked_across_a_shutdown() {
    for lives in shapes() {
        let durable = lives.live(End::Kill, async |queue| {
            let (durable, _) = fail_on_a_full_disk(&lives, queue, 256 * 1024).await;
            queue.shutdown().within(10 * MINUTE).await.unwrap();
            for receipt in &durable {
                let told = receipt.settlement();
                assert!(
                    matches!(told, Some(Settlement::Quarantined(_))),
                    "{}: {told:?}",
                    receipt.key()
                );
            }
            durable.len()
        });
        lives.rig.fs.set_capacity(None);
        lives.live(End::Clean, async |queue| {
            nothing_of_it_goes_up(&lives, queue, durable).await;
        });
    }
}

/// What it is after fails while its own record waits for room, and the queue is shut down: it is
/// told that it is not kept, never that it is durable or in quarantine; and it is not there.
#[test]
fn a_task_that_is_not_kept_is_told_refused() {
    for lives in shapes() {
        let key = lives.live(End::Clean, async |queue| {
            let (_, last) = fail_on_a_full_disk(&lives, queue, 8192).await;
            queue.shutdown().within(MINUTE).await.unwrap();
            let told = settled(&last).await;
            assert!(matches!(told, Settlement::Refused(_)), "{told:?}");
            let durable = last.durable().await;
            assert!(
                matches!(durable, Err(Error::NotUploaded { .. })),
                "{durable:?}"
            );
            last.key().to_owned()
        });
        lives.rig.fs.set_capacity(None);
        lives.live(End::Clean, async |queue| {
            assert!(queue.pending().iter().all(|task| task.key != key));
            assert!(queue.quarantined().iter().all(|task| task.key != key));
        });
        assert!(lives.rig.remote.object(&key).is_none());
    }
}

/// A PUT on a full disk gets no answer and is given up; the process ends, in order or not. The
/// next life knows of it: a DELETE waits until the PUT can take effect no more.
#[test]
fn a_request_given_up_on_a_full_disk_is_remembered() {
    for orderly in [true, false] {
        for lives in shapes() {
            let remote = &lives.rig.remote;
            let sent = lives.live(End::Kill, async |queue| {
                // The server is known before the disk is full.
                let warm = queue.submit("warm", "x", rewritable()).await.unwrap();
                settled(&warm).await;
                queue.pause(PauseWhat::Uploads);
                let receipt = queue.submit("k", "one", rewritable()).await.unwrap();
                receipt.durable().await.unwrap();
                let down = RemoteError::transient("PutObject");
                remote.always(Some(Call::Put), Some("first"), Fault::Error(down));
                let first = submit(queue, "first", "x").await;
                first.durable().await.unwrap();
                fill(&lives, queue, &first, 64 * 1024).await;
                remote.once(Some(Call::Put), Some("k"), Fault::Late);
                let sent = Instant::now();
                queue.resume(PauseWhat::Uploads);
                // Whether it is in S3 by then is not what this is about.
                let _ = receipt.settled().within(10 * MINUTE).await;
                if orderly {
                    let ended = queue.shutdown().within(Duration::from_secs(5)).await;
                    ended.unwrap();
                }
                sent.elapsed()
            });
            lives.rig.fs.set_capacity(None);
            let waited = lives.live(End::Kill, async |queue| {
                assert!(queue.snapshot().outstanding > 0);
                let began = Instant::now();
                let delete = queue.delete("k", rewritable()).await.unwrap();
                let told = delete.settled().within(6 * HOUR).await.unwrap();
                assert_eq!(told, Settlement::Deleted);
                began.elapsed()
            });
            let lifetime = lives.rig.config.signature_lifetime;
            assert!(sent + waited >= lifetime, "orderly {orderly}: {waited:?}");
        }
    }
}
