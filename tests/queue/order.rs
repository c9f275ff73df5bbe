//! What is admitted, in which order it goes up, and that whatever happens to one task leaves room,
//! slots and the others alone. The scenarios are named by the rows of `docs/guards`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Rig, assert_empty, both, paused, roomy, settled, spawn, submit, submit_all, with_a_real_limit,
};
use futures::FutureExt;
use s3_writeback::error::Limit;
use s3_writeback::io::Io;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault, SimRemote};
use s3_writeback::{
    Cause, Error, KeyPolicy, Lane, Options, PauseWhat, Receipt, RunOn, Settlement, UploadQueue,
};
use tokio::sync::Notify;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;

fn after(receipts: &[&Receipt]) -> Options {
    Options {
        after: receipts.iter().map(|receipt| (*receipt).clone()).collect(),
        ..Options::default()
    }
}

fn lane(lane: Lane) -> Options {
    Options {
        lane: Some(lane),
        ..Options::default()
    }
}

fn rewritable() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        coalesce: true,
        ..Options::default()
    }
}

fn internal() -> Fault {
    Fault::Error(RemoteError::transient("PutObject").with_message("500"))
}

fn refused() -> Fault {
    Fault::Error(RemoteError::permanent("PutObject", 400, "InvalidArgument"))
}

async fn submit_with(queue: &UploadQueue, key: &str, options: Options) -> Receipt {
    queue
        .submit(key, key.as_bytes().to_vec(), options)
        .await
        .expect("admitted")
}

/// Looks again and again, for at most a minute.
async fn eventually(mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("comes to be");
}

/// Waits until a worker has sent a PUT on `key`.
async fn put_seen(remote: &SimRemote, key: &str, times: usize) {
    tokio::time::timeout(
        Duration::from_secs(3600),
        remote.wait_for(|remote| remote.count(Call::Put, key) >= times),
    )
    .await
    .expect("is sent");
}

#[test]
fn what_is_submitted_is_durable_then_in_s3_and_shutdown_is_clean() {
    both(async |rig| {
        let queue = rig.open().await;
        let receipt = submit(&queue, "wal/1", "one").await;
        receipt.durable().await.unwrap();
        assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        assert_eq!(rig.remote.object("wal/1").unwrap(), "one");
        submit_all(&queue, (0..20).map(|n| format!("sst/{n}"))).await;
        queue.drain().await.unwrap();
        assert_eq!(rig.remote.keys().len(), 21);
        let report = queue
            .shutdown()
            .within(Duration::from_secs(10))
            .await
            .unwrap();
        assert!(report.sealed, "{report:?}");
        assert_eq!(report.deferred, 0);
        assert_empty(&queue);
        drop(queue);
        let again = rig.open().await;
        assert!(again.pending().is_empty());
        assert!(again.damage().is_empty());
        again.shutdown().await.unwrap();
    });
}

#[test]
fn what_was_not_sent_is_deferred_and_goes_after_the_next_open() {
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let receipt = submit(&queue, "a", "x").await;
        receipt.durable().await.unwrap();
        let report = queue
            .shutdown()
            .within(Duration::from_secs(5))
            .await
            .unwrap();
        assert!(report.took <= Duration::from_millis(5500), "{report:?}");
        assert_eq!(settled(&receipt).await, Settlement::Deferred);
        drop(queue);
        rig.remote.heal();
        let again = rig.open().await;
        let pending = again.pending();
        assert_eq!(pending.len(), 1);
        assert_eq!(
            (pending[0].receipt.task(), pending[0].key.as_str()),
            (receipt.task(), "a")
        );
        assert!(matches!(
            settled(&pending[0].receipt).await,
            Settlement::Uploaded(_)
        ));
        again.shutdown().await.unwrap();
        assert_eq!(rig.remote.object("a").unwrap(), "x");
        assert!(rig.remote.count(Call::Put, "a") >= 2);
    });
}

/// A submit that is blocked on a full queue and dropped leaves nothing behind: later ones run, and
/// no permit and no place in line leaks. (OrioleDB's queue: a producer that was cancelled left a
/// hole that nobody passed.)
#[test]
fn a7_a_blocked_submit_that_is_dropped_leaves_no_hole() {
    for shape in [1, 16] {
        paused(async {
            let rig = Rig::with(|config| {
                config.max_tasks = 1;
                config.workers = shape;
            });
            let gate = Arc::new(Notify::new());
            rig.remote
                .once(Some(Call::Put), Some("held"), Fault::Gate(gate.clone()));
            let queue = rig.open().await;
            let held = submit(&queue, "held", "x").await;
            put_seen(&rig.remote, "held", 1).await;
            let mut line: Vec<_> = (0..50)
                .map(|n| {
                    let op = queue.submit(format!("w/{n}"), "x", Options::default());
                    Box::pin(op.within(Duration::from_secs(7200)).into_future())
                })
                .collect();
            for waiting in &mut line {
                assert!(
                    waiting.as_mut().now_or_never().is_none(),
                    "the queue is full"
                );
            }
            assert_eq!(queue.snapshot().admission_waiters, 50);
            // Every third leaves while it waits.
            let mut n = 0;
            line.retain(|_| {
                n += 1;
                n % 3 != 0
            });
            assert_eq!(queue.snapshot().admission_waiters, 34);
            gate.notify_one();
            settled(&held).await;
            // The first in line has been granted the room by now, and leaves without taking it.
            drop(line.remove(0));
            for waiting in line {
                settled(&waiting.await.expect("admitted")).await;
            }
            settled(&submit(&queue, "last", "x").await).await;
            assert_eq!(rig.remote.keys().len(), 35);
            assert_empty(&queue);
            queue.shutdown().await.unwrap();
        });
    }
}

/// Four producers and four workers on a full queue, on real threads: no task is lost and none runs
/// twice. (OrioleDB's queue cleared a slot after it had published it.)
#[test]
fn a8_four_producers_and_four_workers_lose_nothing_and_run_nothing_twice() {
    const EACH: usize = 1500;
    for max_tasks in [4, 1] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let rig = Rig::with(|config| {
            config.max_tasks = max_tasks;
            config.workers = 4;
        });
        let queue = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
            .run_on(RunOn::Handle(runtime.handle().clone()))
            .file_system(
                Arc::new(rig.fs.clone()),
                Io::pool(runtime.handle().clone(), 4),
            )
            .open()
            .wait()
            .unwrap();
        std::thread::scope(|scope| {
            for producer in 0..4 {
                let queue = &queue;
                scope.spawn(move || {
                    let receipts: Vec<_> = (0..EACH)
                        .map(|n| {
                            let op =
                                queue.submit(format!("{producer}/{n}"), "x", Options::default());
                            op.within(Duration::from_secs(120))
                                .wait()
                                .expect("admitted")
                        })
                        .collect();
                    for receipt in receipts {
                        let end = receipt.settled().within(Duration::from_secs(120)).wait();
                        assert!(matches!(end, Ok(Settlement::Uploaded(_))), "{end:?}");
                    }
                });
            }
        });
        assert_eq!(rig.remote.keys().len(), 4 * EACH);
        assert_eq!(rig.remote.count(Call::Put, ""), 4 * EACH, "none runs twice");
        assert!(queue.snapshot().peak_tasks <= max_tasks);
        assert!(queue.shutdown().wait().unwrap().sealed);
        assert_empty(&queue);
    }
}

/// What is larger than the queue itself is refused at once, with the limit in the error, in every
/// lane, full or paused. (OrioleDB's ring: such a task was blocked for ever.)
#[test]
fn a15_a_task_larger_than_the_queue_is_refused_at_once_with_the_limit() {
    both(async |mut rig| {
        rig.config.max_bytes = MIB;
        rig.config.checkpoint_bytes = 1000;
        rig.config.max_disk_bytes = 8 * 64 * 1024;
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let held = submit(&queue, "held", "x").await;
        held.durable().await.unwrap();
        let before = (rig.fs.used(), queue.snapshot().journal.next_location);
        for paused in [false, true] {
            if paused {
                queue.pause(PauseWhat::Admission);
            }
            let large = vec![0; 1 + MIB as usize];
            let started = Instant::now();
            for result in [
                queue
                    .submit("large", large.clone(), Options::default())
                    .now(),
                queue.submit("large", large, Options::default()).await,
            ] {
                assert!(
                    matches!(
                        result,
                        Err(Error::TooLarge { limit: Limit::Bytes, size, max })
                            if size == MIB + 1 && max == MIB
                    ),
                    "{result:?}"
                );
            }
            let result = queue
                .submit("large", vec![0; 1001], lane(Lane::Checkpoint))
                .await;
            assert!(
                matches!(
                    result,
                    Err(Error::TooLarge {
                        limit: Limit::Bytes,
                        size: 1001,
                        max: 1000
                    })
                ),
                "{result:?}"
            );
            let result = queue
                .submit("large", vec![0; 600 * 1024], Options::default())
                .await;
            assert!(
                matches!(
                    result,
                    Err(Error::TooLarge { limit: Limit::DiskBytes, max, .. })
                        if max == 8 * 64 * 1024
                ),
                "{result:?}"
            );
            assert_eq!(started.elapsed(), Duration::ZERO, "nobody waited");
        }
        let after = (rig.fs.used(), queue.snapshot().journal.next_location);
        assert_eq!(before, after, "nothing was changed");
        assert_eq!(queue.snapshot().admission_waiters, 0);
        queue.resume(PauseWhat::Admission);
        queue.hurry();
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// 256 submitters at once against a limit of 128: never more than 128 are in. (GreptimeDB's first
/// fix counted, then inserted: GreptimeDB#5793. The gate alone does 10,000 rounds in
/// `queue::admission`.)
#[test]
fn b2_a_limit_of_128_holds_against_256_submitters_at_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let rig = Rig::with(|config| config.max_tasks = 128);
    runtime.block_on(async {
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        for round in 0..40 {
            let admitted = Arc::new(AtomicUsize::new(0));
            let submitters: Vec<_> = (0..256)
                .map(|n| {
                    let (queue, admitted) = (queue.clone(), Arc::clone(&admitted));
                    spawn(async move {
                        match queue
                            .submit(format!("{round}/{n}"), "x", Options::default())
                            .now()
                        {
                            Ok(receipt) => {
                                admitted.fetch_add(1, Ordering::SeqCst);
                                Some(receipt)
                            }
                            Err(Error::QueueFull {
                                limit: Limit::Tasks,
                                max: 128,
                                ..
                            }) => None,
                            Err(error) => panic!("{error}"),
                        }
                    })
                })
                .collect();
            let mut receipts = Vec::new();
            for submitter in submitters {
                receipts.extend(submitter.await.unwrap());
            }
            assert_eq!(admitted.load(Ordering::SeqCst), 128, "round {round}");
            assert_eq!(queue.snapshot().admitted_tasks, 128);
            for receipt in receipts {
                queue.cancel(receipt.task()).unwrap();
                receipt.settled().await.unwrap();
            }
            // Room is given back after the end was told.
            queue.ready(1).await.unwrap();
            eventually(|| queue.snapshot().admitted_tasks == 0).await;
        }
        assert_eq!(queue.snapshot().peak_tasks, 128);
        queue.shutdown().await.unwrap();
    });
}

/// Bytes are a limit of their own: of 64 MiB, 4 MiB at a time, 16 get in; the next waits, or is
/// refused; 65 MiB are refused at once.
#[test]
fn b3_bytes_are_a_limit_beside_the_count() {
    roomy(async |mut rig| {
        rig.config.max_bytes = 64 * MIB;
        rig.config.max_disk_bytes = 1024 * MIB;
        let gate = Arc::new(Notify::new());
        rig.remote
            .always(Some(Call::Put), None, Fault::Gate(gate.clone()));
        let queue = rig.open().await;
        let body = vec![0; 4 * MIB as usize];
        let mut held = Vec::new();
        for n in 0..16 {
            let op = queue.submit(format!("k/{n}"), body.clone(), Options::default());
            held.push(op.now().unwrap());
        }
        let full = queue.submit("k/16", body.clone(), Options::default()).now();
        assert!(
            matches!(
                full,
                Err(Error::QueueFull { limit: Limit::Bytes, current, max, .. })
                    if current == 64 * MIB && max == 64 * MIB
            ),
            "{full:?}"
        );
        let huge = vec![0; 65 * MIB as usize];
        let huge = queue.submit("huge", huge, Options::default()).now();
        assert!(
            matches!(huge, Err(Error::TooLarge { limit: Limit::Bytes, size, max })
                if size == 65 * MIB && max == 64 * MIB),
            "{huge:?}"
        );
        assert_eq!(queue.pressure(), 100);
        let mut waits = Box::pin(queue.submit("k/16", body, Options::default()).into_future());
        assert!(waits.as_mut().now_or_never().is_none(), "the 17th waits");
        rig.remote.heal();
        for _ in 0..16 {
            gate.notify_one();
            tokio::task::yield_now().await;
        }
        gate.notify_waiters();
        held.push(waits.await.unwrap());
        for receipt in &held {
            settled(receipt).await;
        }
        assert_eq!(queue.snapshot().peak_bytes, 64 * MIB);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// Who waits for room is woken with the reason when there will never be any: the store closes, or
/// the journal fails for good. (slatedb#1609: the waiter slept on.)
#[test]
fn d8_who_waits_for_room_is_told_when_there_will_never_be_any() {
    for journal_fails in [false, true] {
        both(async |mut rig| {
            rig.config.max_tasks = 1;
            rig.remote.always(None, None, Fault::Hang);
            let queue = rig.open().await;
            let held = submit(&queue, "held", "x").await;
            held.durable().await.unwrap();
            let hour = Duration::from_secs(3600);
            let waiters: Vec<_> = (0..10)
                .map(|n| {
                    let op = queue.submit(format!("w/{n}"), "x", Options::default());
                    spawn(op.within(hour).into_future())
                })
                .collect();
            let ready = spawn(queue.ready(1).within(hour).into_future());
            while queue.snapshot().admission_waiters < 11 {
                tokio::task::yield_now().await;
            }
            let started = Instant::now();
            if journal_fails {
                rig.fs.fail(FsFault {
                    call: Some(FsCall::Sync),
                    after: 0,
                    errno: EIO,
                    forever: true,
                });
                // Has room of its own, and makes the journal look at its disk.
                submit_with(&queue, "checkpoint", lane(Lane::Checkpoint)).await;
            } else {
                queue.shutdown_token().cancel();
            }
            let right = |error: Error| match error {
                Error::JournalFailed(_) => journal_fails,
                Error::ShuttingDown { .. } => !journal_fails,
                _ => false,
            };
            for waiter in waiters {
                let error = waiter.await.unwrap().unwrap_err();
                assert!(right(error.clone()), "{error:?}");
            }
            let error = ready.await.unwrap().unwrap_err();
            assert!(right(error.clone()), "{error:?}");
            assert!(started.elapsed() < Duration::from_secs(1), "at once");
            assert_eq!(queue.snapshot().admission_waiters, 0);
            queue.hurry();
            queue.shutdown().await.unwrap();
            assert_empty(&queue);
        });
    }
}

/// As many tasks as there are slots, and each of them has to try again: a task gives its slot back
/// before it waits for the next try, so nothing wedges and others go meanwhile. (neon#12873: a
/// retry asked for a second permit while it held its first.)
#[test]
fn d9_a_task_that_has_to_try_again_holds_no_slot() {
    roomy(async |mut rig| {
        // Back-off is long, so that a slot held through it would show.
        rig.config.retry_base = Duration::from_secs(600);
        rig.config.retry_cap = Duration::from_secs(600);
        rig.config.op_deadline = Duration::from_secs(600);
        rig.config.prefix_share_percent = 100;
        let slots = rig.config.workers;
        for n in 0..slots {
            let key = format!("bad/{n}");
            rig.remote.times(3, Some(Call::Put), Some(&key), internal());
        }
        let queue = rig.open().await;
        let mut receipts = Vec::new();
        for n in 0..slots {
            receipts.push(submit(&queue, &format!("bad/{n}"), "x").await);
        }
        put_seen(&rig.remote, "bad/", slots).await;
        let started = Instant::now();
        let others = submit_all(&queue, (0..50).map(|n| format!("good/{n}"))).await;
        for other in &others {
            assert!(matches!(settled(other).await, Settlement::Uploaded(_)));
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        assert_eq!(rig.remote.count(Call::Put, "bad/"), 4 * slots);
        assert!(rig.remote.in_flight().1 <= slots);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// Who holds a handle and does nothing with it uses no room and no slot: operations that were not
/// started, receipts, holds, and who asked whether there is room. (mountpoint-s3#828: idle file
/// handles starved the others.)
#[test]
fn d10_idle_holders_use_no_slot_and_no_room() {
    both(async |rig| {
        let queue = rig.open().await;
        let mut idle: Vec<_> = (0..200)
            .map(|n| queue.submit(format!("idle/{n}"), "x", Options::default()))
            .collect();
        let loads: Vec<_> = (0..200)
            .map(|n| queue.get(format!("idle/{n}"), None))
            .collect();
        let hold = queue.hold("idle").unwrap();
        for _ in 0..200 {
            queue
                .ready(1)
                .now()
                .expect("there is room, and asking takes none");
        }
        assert_eq!(queue.pressure(), 0);
        let receipts = submit_all(&queue, (0..50).map(|n| format!("busy/{n}"))).await;
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        assert_eq!(rig.remote.count(Call::Put, "idle/"), 0);
        assert_eq!(rig.remote.count(Call::Get, ""), 0);
        // One that is started later works as any other.
        settled(&idle.pop().unwrap().await.unwrap()).await;
        drop((idle, loads, hold));
        assert_empty(&queue);
        queue.shutdown().await.unwrap();
    });
}

/// A drain says Ok only of what is in S3: what had failed before the call, be it an hour ago, is
/// told by the next drain, once; what its submitter took back is not.
#[test]
fn a_drain_hears_of_what_failed_before_it() {
    both(async |rig| {
        rig.remote.plant("taken", "others");
        let queue = rig.open().await;
        let taken = submit(&queue, "taken", "ours").await;
        assert_eq!(settled(&taken).await, Settlement::PreconditionFailed);
        let told = queue.drain().await;
        assert!(
            matches!(&told, Err(Error::NotUploaded { task, key, settlement })
                if *task == taken.task() && key == "taken"
                    && **settlement == Settlement::PreconditionFailed),
            "{told:?}"
        );
        queue.drain().await.expect("told already");
        // Under way, it hears of it at once, and nobody hears of it again.
        let gate = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Put), Some("taken"), Fault::Gate(gate.clone()));
        let again = submit(&queue, "taken", "again").await;
        let drain = spawn(queue.drain().into_future());
        tokio::task::yield_now().await;
        gate.notify_one();
        assert!(drain.await.unwrap().is_err());
        assert_eq!(settled(&again).await, Settlement::PreconditionFailed);
        queue.drain().await.expect("told already");
        queue.pause(PauseWhat::Uploads);
        let back = submit(&queue, "back", "x").await;
        queue.cancel(back.task()).unwrap();
        queue.resume(PauseWhat::Uploads);
        queue.drain().await.expect("taken back is not failed");
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// What is due and has no slot is looked for by nobody in a loop: a load in back-off while the
/// slots for loads are taken.
#[test]
fn d10_what_is_due_and_has_no_slot_keeps_no_worker_busy() {
    with_a_real_limit(|| {
        paused(async {
            let rig = Rig::with(|config| config.workers = 1);
            rig.remote.times(
                1,
                Some(Call::Get),
                Some("again"),
                Fault::Error(RemoteError::transient("GetObject")),
            );
            rig.remote
                .always(Some(Call::Get), Some("stuck"), Fault::Hang);
            let queue = rig.open().await;
            let load = |key: &str| {
                spawn(
                    queue
                        .get(key, None)
                        .within(Duration::from_secs(7200))
                        .into_future(),
                )
            };
            let again = load("again");
            rig.remote
                .wait_for(|remote| remote.count(Call::Get, "again") == 1)
                .await;
            let stuck = [load("stuck"), load("stuck")];
            rig.remote
                .wait_for(|remote| remote.count(Call::Get, "stuck") >= 1)
                .await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let uploaded = settled(&submit(&queue, "up", "x").await).await;
            assert!(matches!(uploaded, Settlement::Uploaded(_)));
            assert!(matches!(again.await.unwrap(), Err(Error::NotFound { .. })));
            for stuck in stuck {
                stuck.abort();
            }
            queue.shutdown().await.unwrap();
        });
    });
}

/// Loads never keep uploads out, be there one worker and ever so many loads.
#[test]
fn a_stream_of_loads_does_not_starve_an_upload() {
    let scenario = async |rig: Rig| {
        rig.remote.plant("there", "x");
        let slow = Fault::Delay(Duration::from_millis(100));
        rig.remote.always(Some(Call::Get), None, slow);
        let queue = rig.open().await;
        let readers: Vec<_> = (0..64)
            .map(|_| {
                let queue = queue.clone();
                spawn(async move { while queue.get("there", None).await.is_ok() {} })
            })
            .collect();
        rig.remote
            .wait_for(|remote| remote.count(Call::Get, "") > 100)
            .await;
        let started = Instant::now();
        for n in 0..10 {
            settled(&submit(&queue, &format!("up/{n}"), "x").await).await;
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        for reader in readers {
            reader.abort();
        }
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    };
    with_a_real_limit(move || roomy(scenario));
}

/// Every gauge is at zero after any way out: uploaded, deleted, condition failed, quarantined and
/// purged, cancelled, panicked, timed out, dropped, refused, deferred. (Neon guards its unfinished
/// operations in the same way.)
#[test]
fn d17_every_gauge_is_back_at_zero_after_any_way_out() {
    roomy(async |rig| {
        rig.remote.plant("taken", "theirs");
        rig.remote.plant("old", "x");
        rig.remote
            .always(Some(Call::Put), Some("refused"), refused());
        rig.remote
            .once(Some(Call::Put), Some("panics"), Fault::Panic("boom"));
        rig.remote
            .once(Some(Call::Get), Some("panics"), Fault::Panic("boom"));
        let queue = rig.open().await;
        settled(&submit(&queue, "uploaded", "x").await).await;
        settled(&queue.delete("old", Options::default()).await.unwrap()).await;
        let taken = settled(&submit(&queue, "taken", "x").await).await;
        assert_eq!(taken, Settlement::PreconditionFailed);
        for key in ["refused", "panics"] {
            let receipt = submit(&queue, key, "x").await;
            let dependent = submit_with(&queue, &format!("{key}/2"), after(&[&receipt])).await;
            assert!(matches!(
                settled(&receipt).await,
                Settlement::Quarantined(_)
            ));
            eventually(|| queue.snapshot().admitted_tasks == 1).await;
            queue.purge(receipt.task()).unwrap();
            let orphan = settled(&dependent).await;
            assert!(matches!(
                orphan,
                Settlement::Quarantined(Cause::Dependency(_))
            ));
            queue.purge(dependent.task()).unwrap();
        }
        queue.get("panics", None).await.unwrap_err();
        queue.get("nowhere", None).await.unwrap_err();
        drop(submit_with(&queue, "checkpoint", lane(Lane::Checkpoint)).await);
        drop(queue.hold("held").unwrap());
        queue.drain().await.expect_err("tells of \"taken\"");
        queue.drain().await.unwrap();
        assert_empty(&queue);

        queue.pause(PauseWhat::Uploads);
        let taken_back = submit(&queue, "cancelled", "x").await;
        queue.cancel(taken_back.task()).unwrap();
        assert_eq!(settled(&taken_back).await, Settlement::Cancelled);
        let one = submit_with(&queue, "coalesced", rewritable()).await;
        one.durable().await.unwrap();
        let two = queue
            .submit("coalesced", "other", rewritable())
            .await
            .unwrap();
        two.durable().await.unwrap();
        assert_eq!(
            queue.snapshot().admitted_tasks,
            1,
            "superseded room is given back"
        );
        queue.pause(PauseWhat::Admission);
        let second = Duration::from_secs(1);
        let late = queue
            .submit("late", "x", Options::default())
            .within(second)
            .await;
        assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
        let mut dropped = Box::pin(queue.ready(1).into_future());
        assert!(dropped.as_mut().now_or_never().is_none());
        drop(dropped);
        queue.resume(PauseWhat::Admission);
        let deferred = submit(&queue, "deferred", "x").await;
        let waits = queue.get("coalesced", Some((0, 2))).await.unwrap();
        assert_eq!(waits, "ot");
        queue.shutdown().await.unwrap();
        for receipt in [&one, &two, &deferred] {
            assert_eq!(settled(receipt).await, Settlement::Deferred);
        }
        assert_empty(&queue);
    });
}

/// Reopened with a limit of 1,000 and a backlog of 10,000 while S3 is down: the checkpointer has
/// its permits, the others wait until there is room.
#[test]
fn e20_the_checkpoint_lane_has_room_behind_a_backlog_over_the_limit() {
    roomy(async |mut rig| {
        rig.config.max_disk_bytes = 512 * MIB;
        let down = Fault::Error(RemoteError::transient("PutObject"));
        rig.remote.always(None, None, down);
        let queue = rig.open().await;
        for n in 0..10_000 {
            submit(&queue, &format!("backlog/{n}"), "x").await;
        }
        queue.hurry();
        queue.shutdown().await.unwrap();
        drop(queue);
        rig.config.max_tasks = 1000;
        let queue = rig.open().await;
        let snapshot = queue.snapshot();
        assert_eq!((snapshot.recovered, snapshot.reserve_tasks), (10_000, 0));
        let full = queue.submit("new", "x", Options::default()).now();
        assert!(
            matches!(
                full,
                Err(Error::QueueFull {
                    current: 10_000,
                    max: 1000,
                    ..
                })
            ),
            "{full:?}"
        );
        let mut receipts = Vec::new();
        for n in 0..rig.config.checkpoint_tasks {
            let op = queue.submit(format!("checkpoint/{n}"), "x", lane(Lane::Checkpoint));
            receipts.push(op.now().expect("has room of its own"));
        }
        for receipt in &receipts {
            receipt.durable().await.unwrap();
        }
        let over = queue
            .submit("checkpoint/x", "x", lane(Lane::Checkpoint))
            .now();
        assert!(
            matches!(
                over,
                Err(Error::QueueFull {
                    current: 64,
                    max: 64,
                    ..
                })
            ),
            "{over:?}"
        );
        rig.remote.heal();
        let hour = Duration::from_secs(3600);
        queue
            .ready(1)
            .within(hour)
            .await
            .expect("the backlog goes up and makes room");
        queue.drain().within(hour).await.unwrap();
        assert_eq!(rig.remote.keys().len(), 10_064);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// The disk is full while many uploads are to be acknowledged: all are, for their room was taken
/// when they came in.
#[test]
fn e20_a_full_disk_still_takes_the_end_of_everything() {
    const TASKS: usize = 5000;
    roomy(async |mut rig| {
        rig.config.max_disk_bytes = 512 * MIB;
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let receipts = submit_all(&queue, (0..TASKS).map(|n| format!("k/{n}"))).await;
        receipts.last().unwrap().durable().await.unwrap();
        rig.fs.set_capacity(Some(rig.fs.used()));
        queue.resume(PauseWhat::Uploads);
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        queue.drain().await.unwrap();
        assert!(queue.shutdown().await.unwrap().sealed);
        assert_empty(&queue);
        // Told means recorded: nothing of it comes again.
        drop(queue);
        let again = rig.open().await;
        assert_eq!(again.pending().len(), 0);
        assert_eq!(rig.remote.count(Call::Put, ""), TASKS);
        again.shutdown().await.unwrap();
    });
}

/// An SST, then its manifest `after` it; the SST goes to quarantine: the manifest is parked, also
/// across a restart, and follows once the SST was replayed. It is never first.
#[test]
fn e28_a_manifest_waits_for_its_sst_in_quarantine_and_follows_its_replay() {
    for restart in [false, true] {
        roomy(async |rig| {
            rig.remote.always(Some(Call::Put), Some("sst"), refused());
            let mut queue = rig.open().await;
            let sst = submit(&queue, "sst", "x").await;
            let manifest = submit_with(&queue, "manifest", after(&[&sst])).await;
            assert!(matches!(settled(&sst).await, Settlement::Quarantined(_)));
            // One that comes when it is in quarantine already is parked too.
            let late = submit_with(&queue, "late", after(&[&sst])).await;
            late.durable().await.unwrap();
            let (sst, mut parked) = (sst.task(), vec![manifest, late]);
            if restart {
                queue.shutdown().await.unwrap();
                drop(queue);
                queue = rig.open().await;
                let pending = queue.pending();
                parked = pending
                    .into_iter()
                    .filter(|task| task.receipt.task() != sst)
                    .map(|task| task.receipt)
                    .collect();
                assert_eq!(parked.len(), 2);
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(rig.remote.count(Call::Put, "manifest"), 0);
            assert_eq!(rig.remote.count(Call::Put, "late"), 0);
            assert!(parked.iter().all(|receipt| receipt.settlement().is_none()));
            rig.remote.heal();
            let replayed = queue.replay(sst).await.unwrap();
            assert!(matches!(settled(&replayed).await, Settlement::Uploaded(_)));
            for receipt in &parked {
                assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
            }
            let puts: Vec<_> = rig.remote.seen();
            let last_sst = puts.iter().rposition(|seen| seen.key == "sst").unwrap();
            let first = puts.iter().position(|seen| seen.key == "manifest").unwrap();
            assert!(last_sst < first);
            queue.shutdown().await.unwrap();
            assert_empty(&queue);
        });
    }
}

/// What is after something that will never be in S3 does not wait for ever: it goes to quarantine,
/// whatever the other end was.
#[test]
fn e37_what_is_after_a_failed_condition_goes_to_quarantine() {
    roomy(async |rig| {
        rig.remote.plant("sst", "somebody else's");
        let queue = rig.open().await;
        let sst = submit(&queue, "sst", "x").await;
        let manifest = submit_with(&queue, "manifest", after(&[&sst])).await;
        let behind = submit_with(&queue, "behind", after(&[&manifest])).await;
        assert_eq!(settled(&sst).await, Settlement::PreconditionFailed);
        let end = settled(&manifest).await;
        assert_eq!(end, Settlement::Quarantined(Cause::Dependency(sst.task())));
        let refused = queue.submit("late", "x", after(&[&sst])).await;
        assert!(matches!(refused, Err(Error::DependencyFailed { task, .. }) if task == sst.task()));
        let covered = queue.drain().await;
        assert!(
            matches!(covered, Err(Error::NotUploaded { .. })),
            "{covered:?}"
        );
        // The chain goes on from where it broke.
        queue.purge(manifest.task()).unwrap();
        let end = settled(&behind).await;
        assert_eq!(
            end,
            Settlement::Quarantined(Cause::Dependency(manifest.task()))
        );
        assert_eq!(rig.remote.count(Call::Put, "manifest"), 0);
        queue.purge(behind.task()).unwrap();
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// K1, B after K1, then K2, which would supersede K1: it does not, because B is after K1. And B
/// after a K1 that K2 has superseded already goes up after K2. Nothing waits for ever.
#[test]
fn e37_what_is_after_a_superseded_task_does_not_wait_for_ever() {
    for superseded_first in [false, true] {
        roomy(async |rig| {
            let queue = rig.open().await;
            queue.pause(PauseWhat::Uploads);
            let k1 = queue.submit("k", "1", rewritable()).await.unwrap();
            k1.durable().await.unwrap();
            let submit_k2 = async || {
                let k2 = queue.submit("k", "2", rewritable()).await.unwrap();
                k2.durable().await.unwrap();
                k2
            };
            let (b, k2) = if superseded_first {
                let k2 = submit_k2().await;
                (submit_with(&queue, "b", after(&[&k1])).await, k2)
            } else {
                let b = submit_with(&queue, "b", after(&[&k1])).await;
                b.durable().await.unwrap();
                (b, submit_k2().await)
            };
            let tasks = if superseded_first { 2 } else { 3 };
            assert_eq!(queue.snapshot().tasks.tasks, tasks);
            queue.resume(PauseWhat::Uploads);
            for receipt in [&k1, &b, &k2] {
                assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
            }
            assert_eq!(rig.remote.object("k").unwrap(), "2");
            let seen = rig.remote.seen();
            let k = seen
                .iter()
                .position(|s| (s.call, s.key.as_str()) == (Call::Put, "k"));
            let b = seen
                .iter()
                .position(|s| (s.call, s.key.as_str()) == (Call::Put, "b"));
            assert!(k < b, "never first");
            queue.shutdown().await.unwrap();
            assert_empty(&queue);
        });
    }
}

/// Nothing is sent while uploads are paused, nothing is admitted while admission is, limits hold
/// and nothing is lost. A drain does not wait for the operator. (GreptimeDB#6393, redpanda#7916)
#[test]
fn pausing_holds_and_loses_nothing() {
    roomy(async |mut rig| {
        rig.config.max_tasks = 10;
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let receipts = submit_all(&queue, (0..10).map(|n| format!("k/{n}"))).await;
        assert_eq!(queue.pressure(), 100);
        let full = queue.submit("k/10", "x", Options::default()).now();
        assert!(
            matches!(
                full,
                Err(Error::QueueFull {
                    current: 10,
                    max: 10,
                    ..
                })
            ),
            "{full:?}"
        );
        let started = Instant::now();
        let drained = queue.drain().await;
        assert!(
            matches!(drained, Err(Error::Paused("uploads"))),
            "{drained:?}"
        );
        assert_eq!(started.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(rig.remote.seen(), []);

        queue.pause(PauseWhat::Admission);
        queue.resume(PauseWhat::Uploads);
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        queue.drain().await.expect("uploads go on");
        assert_eq!(queue.pressure(), 100, "paused is as good as full");
        for refused in [
            queue
                .submit("k/10", "x", Options::default())
                .now()
                .map(drop),
            queue.ready(1).now(),
        ] {
            assert!(
                matches!(refused, Err(Error::Paused("admission"))),
                "{refused:?}"
            );
        }
        let hour = Duration::from_secs(3600);
        let waits = queue.submit("k/10", "x", Options::default()).within(hour);
        let waits = spawn(waits.into_future());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waits.is_finished());
        queue.resume(PauseWhat::Admission);
        settled(&waits.await.unwrap().unwrap()).await;
        assert_eq!((queue.pressure(), rig.remote.keys().len()), (0, 11));
        assert_eq!(queue.snapshot().peak_tasks, 10);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// A drain that waits is told at once when uploads are paused under it.
#[test]
fn a_drain_under_way_is_told_of_a_pause_at_once() {
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        submit(&queue, "k", "x").await;
        let drain = spawn(
            queue
                .drain()
                .within(Duration::from_secs(3600))
                .into_future(),
        );
        put_seen(&rig.remote, "k", 1).await;
        let started = Instant::now();
        queue.pause(PauseWhat::Uploads);
        let drained = drain.await.unwrap();
        assert!(matches!(drained, Err(Error::Paused(_))), "{drained:?}");
        assert_eq!(started.elapsed(), Duration::ZERO);
        queue.hurry();
        queue.shutdown().await.unwrap();
    });
}

/// `ready` waits for room of the size asked for, takes none, and wakes in order.
#[test]
fn ready_waits_for_the_room_that_is_asked_for_and_takes_none() {
    roomy(async |mut rig| {
        rig.config.max_bytes = 100;
        let gate = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Put), Some("held"), Fault::Gate(gate.clone()));
        let queue = rig.open().await;
        let held = queue
            .submit("held", vec![0; 60], Options::default())
            .await
            .unwrap();
        put_seen(&rig.remote, "held", 1).await;
        assert_eq!(queue.pressure(), 60);
        queue.ready(40).now().expect("fits");
        let full = queue.ready(41).now();
        assert!(
            matches!(
                full,
                Err(Error::QueueFull {
                    limit: Limit::Bytes,
                    current: 60,
                    max: 100,
                    ..
                })
            ),
            "{full:?}"
        );
        let huge = queue.ready(101).await;
        assert!(
            matches!(
                huge,
                Err(Error::TooLarge {
                    size: 101,
                    max: 100,
                    ..
                })
            ),
            "{huge:?}"
        );
        let second = Duration::from_secs(1);
        let late = queue.ready(41).within(second).await;
        let Err(Error::TimedOut {
            waited,
            waiting_for,
        }) = late
        else {
            panic!("{late:?}");
        };
        assert_eq!(waited, second);
        assert!(matches!(
            *waiting_for,
            Error::QueueFull {
                limit: Limit::Bytes,
                ..
            }
        ));
        let waits = spawn(queue.ready(100).within(second * 3600).into_future());
        tokio::task::yield_now().await;
        gate.notify_one();
        settled(&held).await;
        waits.await.unwrap().unwrap();
        assert_empty(&queue);
        queue.shutdown().await.unwrap();
    });
}

/// Told `Cancelled`, it is not in S3: asked and done are one step, whatever the workers do at the
/// same instant.
#[test]
fn a_cancelled_task_is_never_uploaded() {
    const TASKS: usize = 4000;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let rig = Rig::with(|config| config.workers = 4);
    let queue = runtime.block_on(rig.open());
    let mut cancelled = Vec::new();
    for n in 0..TASKS {
        let key = format!("{}/{n}", n % 64);
        let receipt = queue
            .submit(key.as_str(), "x", Options::default())
            .wait()
            .unwrap();
        // In the instant in which it becomes ready.
        receipt.durable().wait().unwrap();
        match queue.cancel(receipt.task()) {
            Ok(()) => cancelled.push((key, receipt)),
            Err(Error::NoSuchTask(_) | Error::WrongState { .. }) => (),
            Err(error) => panic!("{error}"),
        }
    }
    queue.drain().wait().unwrap();
    for (key, receipt) in &cancelled {
        assert_eq!(receipt.settled().wait().unwrap(), Settlement::Cancelled);
        assert!(rig.remote.object(key).is_none(), "{key} was sent");
    }
    assert_eq!(rig.remote.keys().len() + cancelled.len(), TASKS);
    assert!(queue.shutdown().wait().unwrap().sealed);
    assert_empty(&queue);
}

/// At once or the reason why not: where there is room, it is not the queue that is in the way.
#[test]
fn a_large_body_that_cannot_be_taken_at_once_is_not_told_that_the_queue_is_full() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rig = Rig::default();
    let queue = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
        .run_on(RunOn::Handle(runtime.handle().clone()))
        .file_system(
            Arc::new(rig.fs.clone()),
            Io::pool(runtime.handle().clone(), 1),
        )
        .open()
        .wait()
        .unwrap();
    let body = vec![0; 1 << 20];
    let result = queue
        .submit("large", body.clone(), Options::default())
        .now();
    assert!(matches!(result, Err(Error::WouldWait(_))), "{result:?}");
    let receipt = queue
        .submit("large", body, Options::default())
        .wait()
        .unwrap();
    assert!(receipt.uploaded().wait().is_ok());
    queue.shutdown().wait().unwrap();
    assert_empty(&queue);
}
