//! Shutdown: ordered, bounded, honest, whatever S3, the disk and the callers do.
//!
//! The scenarios are named by the rows of `docs/guards`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    PARTS_OF, Rig, StoreRig, assert_empty, assert_idle, both, fill, paused, roomy, settled, spawn,
    submit, submit_all,
};
use futures::FutureExt;
use s3_writeback::io::Io;
use s3_writeback::journal::{Journal, JournalOptions};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Cause, Error, FileId, Options, PauseWhat, Phase, RunOn, Settlement, UploadQueue,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(3600);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One task fails on every attempt, for good: its waiters get the cause, everything else is
/// uploaded, and the report lists it. (orioledb#373: a failed worker left its waiters behind.)
#[test]
fn a3_a_task_that_is_refused_for_good_is_told_listed_and_in_nobodys_way() {
    both(async |rig| {
        let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        let refused = refused.with_message("no such storage class");
        rig.remote
            .always(Some(Call::Put), Some("bad"), Fault::Error(refused.clone()));
        let queue = rig.open().await;
        let bad = submit(&queue, "bad", "x").await;
        let waiter = spawn(bad.uploaded().within(HOUR).into_future());
        submit_all(&queue, (0..30).map(|n| format!("good/{n}"))).await;
        let report = queue.shutdown().within(secs(10)).await.unwrap();
        let told = Settlement::Quarantined(Cause::Refused(refused));
        assert_eq!(settled(&bad).await, told);
        let waited = waiter.await.unwrap();
        assert!(
            matches!(&waited, Err(Error::NotUploaded { settlement, .. }) if **settlement == told),
            "{waited:?}"
        );
        assert_eq!(rig.remote.keys().len(), 30, "everything else is uploaded");
        assert_eq!(rig.remote.count(Call::Put, "bad"), 1, "one attempt");
        assert_eq!((report.quarantined, report.deferred), (1, 0));
        let [failing] = &report.failing[..] else {
            panic!("{report:?}");
        };
        assert_eq!((failing.task, failing.key.as_str()), (bad.task(), "bad"));
        assert!(failing.quarantined && failing.cause.contains("no such storage class"));
        assert!(report.sealed && report.took < secs(1), "{report:?}");
    });
}

/// The same with an error that may pass: it is deferred, its waiters are released within the
/// deadline, and the report names it with its last error.
#[test]
fn a3_a_task_that_keeps_failing_is_deferred_with_its_cause() {
    roomy(async |rig| {
        let down = RemoteError::transient("PutObject").with_message("out of order today");
        rig.remote
            .always(Some(Call::Put), Some("bad"), Fault::Error(down));
        let queue = rig.open().await;
        let bad = submit(&queue, "bad", "x").await;
        let waiter = spawn(bad.uploaded().within(HOUR).into_future());
        submit_all(&queue, (0..30).map(|n| format!("good/{n}"))).await;
        let report = queue.shutdown().within(secs(10)).await.unwrap();
        assert!(report.took <= secs(10), "{report:?}");
        let waited = waiter.await.unwrap();
        assert!(
            matches!(
                &waited,
                Err(Error::NotUploaded { settlement, .. })
                    if **settlement == Settlement::Deferred
            ),
            "{waited:?}"
        );
        assert_eq!(rig.remote.keys().len(), 30, "everything else is uploaded");
        assert_eq!((report.quarantined, report.deferred), (0, 1));
        let [failing] = &report.failing[..] else {
            panic!("{report:?}");
        };
        assert_eq!((failing.task, failing.key.as_str()), (bad.task(), "bad"));
        assert!(!failing.quarantined && failing.failures > 0);
        assert!(failing.cause.contains("out of order today"), "{failing:?}");
        assert_empty(&queue);
    });
}

/// S3 accepts connections and never answers; 1,000 pending, 50 waiters of each kind; shutdown
/// within 5 s: back in 5.5 s, every waiter resolved, everything durable here. (neon#8709,
/// vector#9739)
#[test]
fn d1_a_server_that_never_answers_does_not_hold_shutdown_up() {
    roomy(async |mut rig| {
        rig.config.max_tasks = 1000;
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let receipts = submit_all(&queue, (0..1000).map(|n| format!("k/{n}"))).await;
        let mut waiters = Vec::new();
        for receipt in &receipts[..50] {
            waiters.push(spawn(
                receipt
                    .uploaded()
                    .within(HOUR)
                    .into_future()
                    .map(|e| e.is_err()),
            ));
            let room = queue.submit(format!("more/{}", receipt.task()), "x", Options::default());
            waiters.push(spawn(room.within(HOUR).into_future().map(|e| e.is_err())));
            waiters.push(spawn(
                queue.drain().within(HOUR).into_future().map(|e| e.is_err()),
            ));
            let load = queue.get(format!("absent/{}", receipt.task()), None);
            waiters.push(spawn(load.within(HOUR).into_future().map(|e| e.is_err())));
        }
        tokio::time::sleep(secs(1)).await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        let started = Instant::now();
        let report = queue.shutdown().within(secs(5)).await.unwrap();
        assert!(
            started.elapsed() <= Duration::from_millis(5500),
            "{report:?}"
        );
        for waiter in waiters {
            let failed = tokio::time::timeout(secs(1), waiter).await;
            assert!(
                failed.expect("resolved").unwrap(),
                "nothing is told as done"
            );
        }
        assert!(
            started.elapsed() <= Duration::from_millis(5500),
            "waiters too"
        );
        assert_eq!(report.deferred, 1000);
        assert!(report.unknown > 0 && report.sealed, "{report:?}");
        for receipt in &receipts {
            assert_eq!(receipt.settlement(), Some(Settlement::Deferred));
        }
        assert_empty(&queue);
        drop(queue);
        rig.remote.heal();
        let again = rig.open().await;
        assert_eq!(again.pending().len(), 1000, "everything is durable here");
        again.drain().within(HOUR).await.unwrap();
        assert_eq!(rig.remote.keys().len(), 1000);
        again.shutdown().await.unwrap();
    });
}

/// A drain and a hard stop in either order, shutdown asked for twice and at once, a shutdown
/// future dropped and asked again: all return, with the same report. (Neon's `stop_impl`)
#[test]
fn d2_every_way_to_ask_for_the_end_gets_the_same_report() {
    for drain_first in [true, false] {
        both(async |rig| {
            rig.remote.always(None, None, Fault::Hang);
            let queue = rig.open().await;
            let receipt = submit(&queue, "k", "x").await;
            receipt.durable().await.unwrap();
            let drain = || spawn(queue.drain().within(HOUR).into_future());
            let mut drains = Vec::new();
            if drain_first {
                drains.push(drain());
                tokio::task::yield_now().await;
            }
            let mut dropped = Box::pin(queue.shutdown().within(secs(20)).into_future());
            assert!(dropped.as_mut().now_or_never().is_none());
            drop(dropped);
            let twice = [
                spawn(queue.shutdown().within(secs(20)).into_future()),
                spawn(queue.shutdown().within(secs(20)).into_future()),
            ];
            tokio::time::sleep(secs(1)).await;
            queue.hurry();
            drains.push(drain());
            let report = queue.shutdown().await.unwrap();
            for other in twice {
                assert!(Arc::ptr_eq(&report, &other.await.unwrap().unwrap()));
            }
            for drain in drains {
                let drained = drain.await.unwrap();
                assert!(
                    matches!(drained, Err(Error::ShuttingDown { .. })),
                    "{drained:?}"
                );
            }
            // After the end, too: it is not in S3, and nothing says so.
            let drained = queue.drain().await;
            assert!(
                matches!(drained, Err(Error::ShuttingDown { .. })),
                "{drained:?}"
            );
            assert!(Arc::ptr_eq(&report, &queue.shutdown().await.unwrap()));
            assert!(Arc::ptr_eq(&report, &queue.shutdown().now().unwrap()));
            assert!(Arc::ptr_eq(&report, &queue.report().unwrap()));
            assert_eq!(settled(&receipt).await, Settlement::Deferred);
            assert_empty(&queue);
        });
    }
}

/// Of two deadlines the earlier counts, whoever came first.
#[test]
fn d2_of_two_deadlines_the_earlier_counts() {
    for within in [[5, 100], [100, 5]] {
        both(async |rig| {
            rig.remote.always(None, None, Fault::Hang);
            let queue = rig.open().await;
            submit(&queue, "k", "x").await.durable().await.unwrap();
            let started = Instant::now();
            let callers =
                within.map(|within| spawn(queue.shutdown().within(secs(within)).into_future()));
            for caller in callers {
                let report = caller.await.unwrap().unwrap();
                assert_eq!((report.within, report.deferred), (secs(5), 1));
            }
            assert!(started.elapsed() <= secs(5), "{:?}", started.elapsed());
        });
    }
}

/// `hurry` does not wait out the deadline: requests in flight get their short grace and no more.
#[test]
fn hurry_moves_on_at_once_and_gives_requests_in_flight_a_short_grace() {
    both(async |rig| {
        let gate = Arc::new(Notify::new());
        rig.remote.once(
            Some(Call::Put),
            Some("finishes"),
            Fault::Delay(Duration::from_millis(500)),
        );
        let queue = rig.open().await;
        let finishes = submit(&queue, "finishes", "x").await;
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "finishes") == 1)
            .await;
        let hold = queue.hold("never dropped").unwrap();
        let shutdown = spawn(queue.shutdown().within(HOUR).into_future());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(queue.snapshot().phase, Phase::Quiescing);
        let started = Instant::now();
        queue.hurry();
        let report = shutdown.await.unwrap().unwrap();
        assert!(started.elapsed() <= secs(1), "{report:?}");
        assert!(
            matches!(settled(&finishes).await, Settlement::Uploaded(_)),
            "it had its grace"
        );
        assert_eq!(report.late_holds.len(), 1);
        drop((hold, gate));
    });
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let hangs = submit(&queue, "hangs", "x").await;
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "hangs") == 1)
            .await;
        let shutdown = spawn(queue.shutdown().within(HOUR).into_future());
        tokio::time::sleep(secs(1)).await;
        assert_eq!(queue.snapshot().phase, Phase::Draining);
        let started = Instant::now();
        queue.hurry();
        let report = shutdown.await.unwrap().unwrap();
        assert!(started.elapsed() <= secs(3), "{report:?}");
        assert_eq!(settled(&hangs).await, Settlement::Deferred);
        assert!(report.sealed);
    });
}

/// A token is cancelled, then shutdown is asked for: one orderly drain, not a hurried stop, in
/// either order and also when the queue is dropped right after.
#[test]
fn e36_a_cancelled_token_and_a_shutdown_are_one_drain() {
    both(async |rig| {
        for way in 0..4 {
            rig.remote
                .always(Some(Call::Put), None, Fault::Delay(secs(2)));
            let token = CancellationToken::new();
            let queue = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
                .run_on(RunOn::Handle(tokio::runtime::Handle::current()))
                .file_system(Arc::new(rig.fs.clone()), Io::inline())
                .cancelled_by(&token)
                .open()
                .await
                .unwrap();
            let receipt = submit(&queue, &format!("k/{way}"), "x").await;
            match way {
                0 => {
                    token.cancel();
                    let report = queue.shutdown().await.unwrap();
                    assert_eq!((report.uploaded, report.deferred), (1, 0), "{report:?}");
                    assert_eq!(report.within, rig.config.shutdown_within);
                }
                1 => {
                    let shutdown = spawn(queue.shutdown().into_future());
                    tokio::task::yield_now().await;
                    token.cancel();
                    let report = shutdown.await.unwrap().unwrap();
                    assert_eq!((report.uploaded, report.deferred), (1, 0), "{report:?}");
                }
                2 => token.cancel(),
                _ => {
                    let mut asked = Box::pin(queue.shutdown().into_future());
                    assert!(asked.as_mut().now_or_never().is_none());
                }
            }
            drop(queue);
            let end = settled(&receipt).await;
            assert!(matches!(end, Settlement::Uploaded(_)), "{way}: {end:?}");
        }
    });
}

/// Holds: quiescing waits for those who took one, for its share of the deadline; submits through a
/// hold are taken meanwhile, all others refused; who is late is named, and what it submits then is
/// refused. No hold is given any more.
#[test]
fn holders_finish_what_they_must_and_the_late_are_named() {
    roomy(async |rig| {
        let queue = rig.open().await;
        let other = Rig::default().open().await;
        let foreign = other.hold("foreign").unwrap();
        let (prompt, late) = (queue.hold("prompt").unwrap(), queue.hold("late").unwrap());
        assert!(!prompt.token().is_cancelled());
        let shutdown = spawn(queue.shutdown().within(secs(40)).into_future());
        tokio::time::timeout(secs(1), prompt.token().cancelled())
            .await
            .expect("holders are told");
        assert_eq!(queue.snapshot().phase, Phase::Quiescing);
        for refused in [
            queue.submit("a", "x", Options::default()).await,
            queue.delete("a", Options::default()).await,
            queue
                .submit_through(&foreign, "a", "x", Options::default())
                .await,
        ] {
            assert!(
                matches!(
                    refused,
                    Err(Error::ShuttingDown {
                        phase: Phase::Quiescing
                    })
                ),
                "{refused:?}"
            );
        }
        assert!(matches!(
            queue.hold("more"),
            Err(Error::ShuttingDown { .. })
        ));
        assert!(matches!(
            queue.ready(1).await,
            Err(Error::ShuttingDown { .. })
        ));
        let root = queue
            .submit_through(&prompt, "root", "x", Options::default())
            .await
            .unwrap();
        assert!(
            matches!(settled(&root).await, Settlement::Uploaded(_)),
            "uploads go on"
        );
        let last = queue
            .submit_through(&late, "last", "x", Options::default())
            .await
            .unwrap();
        drop(prompt);
        tokio::time::sleep(secs(9)).await;
        assert_eq!(
            queue.snapshot().phase,
            Phase::Quiescing,
            "its share is 10 s"
        );
        let report = shutdown.await.unwrap().unwrap();
        assert!(report.took < secs(11), "{report:?}");
        let [(name, held)] = &report.late_holds[..] else {
            panic!("{report:?}");
        };
        assert_eq!(name, "late");
        assert!(*held >= secs(10), "{held:?}");
        assert!(matches!(settled(&last).await, Settlement::Uploaded(_)));
        let refused = queue
            .submit_through(&late, "too late", "x", Options::default())
            .await;
        assert!(
            matches!(refused, Err(Error::ShuttingDown { .. })),
            "{refused:?}"
        );
        drop(late);
        assert_empty(&queue);
        drop(foreign);
        other.shutdown().await.unwrap();
    });
}

/// A holder that waits for room goes on to wait while it has its hold; anyone else is woken.
#[test]
fn a_holder_waits_for_room_through_quiescing() {
    paused(async {
        let rig = Rig::with(|config| config.max_tasks = 1);
        rig.remote
            .once(Some(Call::Put), Some("held"), Fault::Delay(secs(5)));
        let queue = rig.open().await;
        submit(&queue, "held", "x").await;
        let hold = queue.hold("engine").unwrap();
        let through = queue.submit_through(&hold, "through", "x", Options::default());
        let through = spawn(through.within(HOUR).into_future());
        let beside = queue.submit("beside", "x", Options::default());
        let beside = spawn(beside.within(HOUR).into_future());
        tokio::time::sleep(secs(1)).await;
        let started = Instant::now();
        let shutdown = spawn(queue.shutdown().within(secs(60)).into_future());
        let refused = beside.await.unwrap();
        assert!(
            matches!(refused, Err(Error::ShuttingDown { .. })),
            "{refused:?}"
        );
        assert!(started.elapsed() < secs(1));
        let through = through.await.unwrap().expect("there is room after 5 s");
        drop(hold);
        let report = shutdown.await.unwrap().unwrap();
        assert!(
            report.late_holds.is_empty() && report.took < secs(10),
            "{report:?}"
        );
        assert!(matches!(settled(&through).await, Settlement::Uploaded(_)));
    });
}

/// What is paused does not move by itself: shutdown does not wait for it.
#[test]
fn paused_uploads_are_not_waited_for() {
    roomy(async |rig| {
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        submit_all(&queue, (0..10).map(|n| format!("k/{n}"))).await;
        let report = queue.shutdown().within(HOUR).await.unwrap();
        assert!(report.took < secs(1), "{report:?}");
        assert_eq!((report.deferred, report.sealed), (10, true));
        assert_eq!(rig.remote.seen(), []);
        assert_empty(&queue);
    });
}

/// Draining ends early when all that is left is backing off past the deadline.
#[test]
fn draining_ends_early_when_nothing_can_move_in_time() {
    roomy(async |mut rig| {
        rig.config.retry_base = HOUR;
        rig.config.retry_cap = HOUR;
        rig.config.op_deadline = HOUR;
        let down = Fault::Error(RemoteError::transient("PutObject"));
        rig.remote.always(Some(Call::Put), None, down);
        let queue = rig.open().await;
        submit(&queue, "k", "x").await;
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "k") == 1)
            .await;
        let report = queue.shutdown().within(secs(10)).await.unwrap();
        assert!(report.took < secs(1), "{report:?}");
        assert_eq!(report.deferred, 1);
    });
}

/// What S3 did not take by the end has no room in memory any more.
#[test]
fn images_that_are_backing_off_at_the_end_give_their_room_back() {
    paused(async {
        let rig = StoreRig::with(16, |config| {
            config.max_dirty_age = Duration::from_millis(10);
            config.queue.retry_base = HOUR;
            config.queue.retry_cap = HOUR;
            config.queue.op_deadline = HOUR;
        });
        let down = Fault::Error(RemoteError::transient("PutObject"));
        rig.remote.always(Some(Call::Put), None, down);
        let store = rig.open().await;
        let file = store.create(FileId(1), PARTS_OF).await.unwrap();
        fill(&file, 0, 1).await;
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "packs/") == 1)
            .await;
        let report = store.shutdown().within(secs(10)).await.unwrap();
        assert_eq!((report.dirty_parts, report.sealed), (1, true), "{report:?}");
        assert_eq!(rig.remote.count(Call::Put, "packs/"), 1);
        assert_idle(&store);
    });
}

/// The disk hangs in fsync at sealing: shutdown returns by its deadline and says so, there is no
/// clean mark, and `LOCK` stays with the process. Nothing that was durable is lost.
#[test]
fn e19_a_disk_that_hangs_at_sealing_does_not_hold_shutdown_up() {
    for workers in [1, 16] {
        let rig = Rig::with(|config| config.workers = workers);
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        rig.remote.always(None, None, Fault::Hang);
        let open = || {
            UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
                .file_system(
                    Arc::new(rig.fs.clone()),
                    Io::pool(threads.handle().clone(), 2),
                )
                .open()
                .wait()
        };
        let queue = open().unwrap();
        let receipt = queue.submit("k", "x", Options::default()).wait().unwrap();
        receipt.durable().wait().unwrap();
        rig.fs.hang_syncs();
        // Its record meets the hanging disk.
        let lost = queue
            .submit("undurable", "x", Options::default())
            .wait()
            .unwrap();
        let within = Duration::from_secs(1);
        let report = queue.shutdown().within(within).wait().unwrap();
        assert!(report.took <= within.mul_f32(1.1), "{report:?}");
        assert!(!report.sealed, "{report:?}");
        assert!(report.seal_error.is_some());
        assert_eq!((report.deferred, report.undetermined), (1, 1), "{report:?}");
        assert_eq!(receipt.settlement(), Some(Settlement::Deferred));
        assert!(matches!(
            lost.settlement(),
            Some(Settlement::Undetermined(_))
        ));
        assert!(lost.durable().wait().is_err(), "not told durable");
        drop(queue);
        let refused = open().unwrap_err();
        assert!(
            matches!(refused, Error::DirectoryInUse { .. }),
            "LOCK stays: {refused:?}"
        );

        // The process dies. What was durable is there, without a clean mark.
        rig.fs.kill();
        let options = JournalOptions {
            segment_bytes: rig.config.segment_bytes.into(),
            inline_bytes: rig.config.inline_bytes.into(),
            ..JournalOptions::new(Path::new("/q"))
        };
        let (journal, recovered) =
            Journal::open(Arc::new(rig.fs.clone()), Io::inline(), options).unwrap();
        assert!(!recovered.clean, "no clean mark");
        let owed = recovered
            .owners
            .iter()
            .filter(|owner| owner.location == receipt.task().0);
        assert_eq!(owed.count(), 1);
        drop(journal);
    }
}
