//! From open to the end: cancelled opens, panicking workers, drops, blocking forms, the watchdog.
//!
//! The scenarios are named by the rows of `docs/guards`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use crate::support::{
    Rig, assert_empty, both, roomy, settled, spawn, submit, submit_all, with_a_real_limit,
};
use parking_lot::{Condvar, Mutex};
use s3_writeback::io::Io;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Cause, Error, Lane, Op, Options, PauseWhat, Phase, RunOn, Settlement, UploadQueue,
};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(3600);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Every worker's attempt panics, with tasks queued behind and waiters on all: those tasks are in
/// quarantine with the panic's text, the rest is uploaded, within a second. (orioledb#373,
/// redpanda#2725: the workers were gone and the waiters stayed.)
#[test]
fn a4_when_every_attempt_panics_the_rest_goes_on() {
    both(async |rig| {
        let panics = rig.config.workers + 2;
        rig.remote.times(
            panics,
            Some(Call::Put),
            None,
            Fault::Panic("a bug in the client"),
        );
        let queue = rig.open().await;
        let started = Instant::now();
        let mut ends = Vec::new();
        let mut waiters = Vec::new();
        for n in 0..40 {
            let lane = if n % 4 == 0 {
                Lane::Checkpoint
            } else {
                Lane::Foreground
            };
            let options = Options {
                lane: Some(lane),
                ..Options::default()
            };
            let op = queue.submit(format!("k/{n}"), "x", options).within(HOUR);
            let receipt = op.await.expect("there is room again");
            waiters.push(spawn(receipt.settled().within(HOUR).into_future()));
        }
        for waiter in waiters {
            ends.push(waiter.await.unwrap().unwrap());
        }
        assert!(started.elapsed() < secs(1), "{:?}", started.elapsed());
        let text = Settlement::Quarantined(Cause::Panicked("a bug in the client".into()));
        let panicked = ends.iter().filter(|end| **end == text).count();
        assert_eq!(panicked, panics);
        let uploaded = ends
            .iter()
            .filter(|end| matches!(end, Settlement::Uploaded(_)));
        assert_eq!(uploaded.count(), 40 - panics);
        for task in queue.quarantined() {
            let receipt = queue.replay(task.task).await.unwrap();
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        }
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// A log that panics whenever a worker says that an attempt failed: in the worker's own code,
/// outside of any attempt.
struct PanickingLog {
    left: Arc<AtomicUsize>,
}

impl tracing::Subscriber for PanickingLog {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(
            &mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                text.push_str(&format!("{value:?} "));
            },
        );
        let one_less = |left: usize| left.checked_sub(1);
        if text.contains("an attempt failed")
            && self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_ok()
        {
            panic!("the log is broken");
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Every worker panics in its own code, more than once: it is replaced, its task comes back to the
/// queue, and everything is uploaded.
#[test]
fn a4_a_worker_that_panics_is_replaced_and_its_task_comes_back() {
    both(async |rig| {
        let panics = 3 * (rig.config.workers + 2);
        let left = Arc::new(AtomicUsize::new(panics));
        let log = PanickingLog {
            left: Arc::clone(&left),
        };
        let _log = tracing::subscriber::set_default(log);
        let failed = RemoteError::transient("PutObject");
        rig.remote
            .times(panics, Some(Call::Put), None, Fault::Error(failed));
        let queue = rig.open().await;
        let started = Instant::now();
        let receipts = submit_all(&queue, (0..60).map(|n| format!("k/{n}"))).await;
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        assert_eq!(left.load(Ordering::SeqCst), 0, "all of them panicked");
        // What takes time is back-off (50 ms after each), not the workers.
        assert!(started.elapsed() < secs(60), "{:?}", started.elapsed());
        let report = queue.shutdown().await.unwrap();
        assert!(report.sealed && report.took < secs(1), "{report:?}");
        assert_empty(&queue);
    });
}

/// Counts wakes, and can be waited for.
#[derive(Default)]
struct Woken {
    wakes: Mutex<usize>,
    changed: Condvar,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.wakes.lock() += 1;
        self.changed.notify_all();
    }
}

/// Polls `op` at most `polls` times, each time it was woken, then drops it: whether it was done.
fn poll_times<T>(op: Op<T>, polls: usize) -> Option<s3_writeback::Result<T>> {
    let woken = Arc::new(Woken::default());
    let waker = std::task::Waker::from(Arc::clone(&woken));
    let mut future = Box::pin(op.within(secs(60)).into_future());
    let mut seen = 0;
    for poll in 0..polls {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(result);
        }
        if poll + 1 < polls {
            let mut wakes = woken.wakes.lock();
            while *wakes == seen {
                let late = woken.changed.wait_for(&mut wakes, secs(60)).timed_out();
                assert!(!late, "nobody woke it");
            }
            seen = *wakes;
        }
    }
    None
}

/// `open` is dropped at every await, while the directory is free and while an earlier queue still
/// has it: it returns promptly, leaves no task behind, and the next open works. (vitess#21052)
#[test]
fn c5_open_can_be_cancelled_at_every_await() {
    for workers in [1, 16] {
        let rig = Rig::with(|config| config.workers = workers);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let tasks = || runtime.metrics().num_alive_tasks();
        let open = || {
            UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
                .run_on(RunOn::Handle(runtime.handle().clone()))
                .file_system(
                    Arc::new(rig.fs.clone()),
                    Io::pool(runtime.handle().clone(), 2),
                )
                .open()
        };
        let quiet = || {
            let started = tokio::time::Instant::now();
            while tasks() > 0 {
                assert!(started.elapsed() < secs(30), "{} tasks are left", tasks());
                std::thread::yield_now();
            }
        };
        let (mut points, mut opened) = (0, 0);
        // Free: every await until it is done.
        for polls in 0.. {
            points += 1;
            let done = poll_times(open(), polls);
            if let Some(queue) = done {
                let queue = queue.unwrap();
                queue
                    .submit(format!("k/{polls}"), "x", Options::default())
                    .wait()
                    .unwrap();
                queue.drain().wait().unwrap();
                queue.shutdown().wait().unwrap();
                drop(queue);
                opened += 1;
                quiet();
                if opened == 3 {
                    break;
                }
                continue;
            }
            quiet();
        }
        // Taken: it waits its turn, and can leave at any point of that.
        let holder = open().wait().unwrap();
        let before = tasks();
        let mut polls = 1;
        while points < 30 {
            points += 1;
            polls = 1 + (polls * 7 + 3) % 41;
            assert!(poll_times(open(), polls).is_none(), "it is taken");
            let started = tokio::time::Instant::now();
            while tasks() > before {
                assert!(started.elapsed() < secs(30), "{} tasks are left", tasks());
                std::thread::yield_now();
            }
        }
        holder
            .submit("held", "x", Options::default())
            .wait()
            .unwrap();
        assert!(holder.shutdown().wait().unwrap().sealed);
        drop(holder);
        let last = open().wait().unwrap();
        assert!(last.pending().is_empty() && last.damage().is_empty());
        assert!(last.shutdown().wait().unwrap().sealed);
        drop(last);
        quiet();
        assert_eq!(rig.remote.keys().len(), 4);
    }
}

/// Cancelled before open, cancelled twice, used after the end: clear errors and no panic. (Vitess:
/// a nil map, a nil watcher)
#[test]
fn c6_cancelled_before_open_and_used_after_the_end() {
    both(async |rig| {
        let token = CancellationToken::new();
        token.cancel();
        token.cancel();
        let queue = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(rig.fs.clone()), Io::inline())
            .cancelled_by(&token)
            .open()
            .await
            .expect("opens, and shuts down");
        let report = queue.shutdown().await.unwrap();
        assert!(report.sealed && report.took < secs(1), "{report:?}");
        token.cancel();
        queue.hurry();
        queue.shutdown_token().cancel();
        assert!(Arc::ptr_eq(&report, &queue.shutdown().await.unwrap()));
        assert_eq!(queue.snapshot().phase, Phase::Closed);

        let shut = |error: Error| matches!(error, Error::ShuttingDown { .. });
        for error in [
            queue
                .submit("k", "x", Options::default())
                .await
                .unwrap_err(),
            queue
                .submit("k", "x", Options::default())
                .now()
                .unwrap_err(),
            queue.delete("k", Options::default()).await.unwrap_err(),
            queue.get("k", None).await.unwrap_err(),
            queue.ready(1).await.unwrap_err(),
            queue.drain().await.unwrap_err(),
            queue.hold("late").unwrap_err(),
        ] {
            assert!(shut(error.clone()), "{error:?}");
        }
        let nobody = s3_writeback::TaskId(7);
        for error in [
            queue.cancel(nobody).unwrap_err(),
            queue.purge(nobody).unwrap_err(),
            queue.replay(nobody).await.unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::NoSuchTask(id) if id == nobody),
                "{error:?}"
            );
        }
        for what in [PauseWhat::Admission, PauseWhat::Uploads] {
            queue.pause(what);
            queue.resume(what);
        }
        assert!(queue.pending().is_empty() && queue.quarantined().is_empty());
        assert_empty(&queue);
    });
}

/// After the end, nothing that was left is told as done: not by a drain, and nobody waits on it.
#[test]
fn c6_after_the_end_nothing_that_was_left_is_told_as_done() {
    roomy(async |rig| {
        let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        rig.remote
            .once(Some(Call::Put), Some("bad"), Fault::Error(refused));
        let queue = rig.open().await;
        let bad = submit(&queue, "bad", "x").await;
        assert!(matches!(settled(&bad).await, Settlement::Quarantined(_)));
        rig.remote.always(None, None, Fault::Hang);
        submit(&queue, "k", "x").await;
        let pending = queue.pending();
        assert_eq!(pending.len(), 2);
        let waiters: Vec<_> = pending
            .iter()
            .map(|task| spawn(task.receipt.settled().within(HOUR).into_future()))
            .collect();
        queue.hurry();
        queue.shutdown().await.unwrap();
        let started = Instant::now();
        let mut ends = Vec::new();
        for waiter in waiters {
            ends.push(waiter.await.unwrap().expect("settled by the end"));
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert!(
            matches!(ends[..], [Settlement::Quarantined(_), Settlement::Deferred]),
            "{ends:?}"
        );
        let drained = queue.drain().await;
        assert!(
            matches!(drained, Err(Error::ShuttingDown { .. })),
            "{drained:?}"
        );
    });
}

/// Dropped without shutdown: nothing that is durable is lost, receipts are settled, and the
/// directory is free again.
#[test]
fn c6_dropped_without_shutdown_nothing_durable_is_lost() {
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        let receipt = submit(&queue, "k", "x").await;
        receipt.durable().await.unwrap();
        let copy = queue.clone();
        drop(queue);
        tokio::time::sleep(secs(1)).await;
        assert_eq!(copy.snapshot().phase, Phase::Running, "a clone keeps it");
        let started = Instant::now();
        drop(copy);
        assert_eq!(settled(&receipt).await, Settlement::Deferred);
        rig.remote.heal();
        let again = rig.open().await;
        assert!(started.elapsed() <= secs(2));
        assert_eq!(again.pending().len(), 1);
        again.drain().await.unwrap();
        assert_eq!(rig.remote.object("k").unwrap(), "x");
        again.shutdown().await.unwrap();
    });
}

/// Opened and shut down 100 times in one process: no lock, permit, task or id is left or used
/// twice. (GreptimeDB#8174)
#[test]
fn c12_open_and_shut_down_100_times() {
    both(async |rig| {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let (before, mut ids) = (tasks(), std::collections::BTreeSet::new());
        for n in 0..100 {
            let queue = rig.open().await;
            assert!(queue.pending().is_empty(), "round {n}");
            let keys = [format!("a/{n}"), format!("b/{n}"), format!("c/{n}")];
            for receipt in submit_all(&queue, keys).await {
                assert!(ids.insert(receipt.task()), "{} twice", receipt.task());
            }
            let report = queue.shutdown().await.unwrap();
            assert!(report.sealed && report.deferred == 0, "{report:?}");
            assert_empty(&queue);
            drop(queue);
            tokio::task::yield_now().await;
            assert_eq!(tasks(), before, "round {n}: a task is left");
        }
        assert_eq!((ids.len(), rig.remote.keys().len()), (300, 300));
        assert_eq!(rig.remote.count(Call::Put, ""), 300);
        let litter = rig.fs.names(std::path::Path::new("/q")).len();
        assert!(litter < 16, "{litter} files are left");
    });
}

/// A blocking form on a thread of the runtime that drives the queue fails at once: it would wait
/// for itself.
#[test]
fn e23_a_blocking_form_on_the_runtime_that_drives_us_fails_at_once() {
    let scenario = async |rig: Rig| {
        let queue = rig.open().await;
        let receipt = submit(&queue, "k", "x").await;
        let open = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .open();
        let would = [
            open.wait().map(drop),
            queue.submit("a", "x", Options::default()).wait().map(drop),
            queue.delete("a", Options::default()).wait().map(drop),
            queue.get("a", None).wait().map(drop),
            queue.drain().wait(),
            queue.ready(1).wait(),
            queue.shutdown().wait().map(drop),
            queue.shutdown().within(HOUR).wait().map(drop),
            receipt.settled().wait().map(drop),
            receipt.durable().wait(),
            receipt.uploaded().wait().map(drop),
        ];
        for result in would {
            assert!(
                matches!(result, Err(Error::WouldBlockRuntime)),
                "{result:?}"
            );
        }
        assert_eq!(queue.snapshot().phase, Phase::Running, "nothing was begun");
        settled(&receipt).await;
        queue.shutdown().await.unwrap();
    };
    with_a_real_limit(move || both(scenario));
}

/// The blocking forms, from plain threads, on the crate's own thread and a real disk.
#[test]
fn blocking_forms_work_from_plain_threads() {
    for (workers, max_tasks) in [(16, 10_000), (1, 10_000), (16, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::with(|config| {
            config.dir = dir.path().join("q");
            config.workers = workers;
            config.max_tasks = max_tasks;
        });
        let open = || {
            UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
                .open()
                .wait()
                .unwrap()
        };
        let queue = open();
        let taken = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
            .open()
            .wait();
        assert!(
            matches!(taken, Err(Error::DirectoryInUse { .. })),
            "{taken:?}"
        );
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let queue = &queue;
                scope.spawn(move || {
                    for n in 0..10 {
                        let key = format!("{thread}/{n}");
                        let body = key.clone().into_bytes();
                        let op = queue.submit(key.as_str(), body, Options::default());
                        let receipt = op.within(secs(60)).wait().unwrap();
                        receipt.durable().wait().unwrap();
                        assert!(receipt.uploaded().within(secs(60)).wait().is_ok());
                        assert_eq!(queue.get(key.as_str(), None).wait().unwrap(), key);
                    }
                });
            }
        });
        queue.ready(1).wait().unwrap();
        queue.drain().wait().unwrap();
        queue.pause(PauseWhat::Uploads);
        let receipt = queue
            .submit("left", "x", Options::default())
            .wait()
            .unwrap();
        receipt.durable().wait().unwrap();
        let short = Duration::from_millis(30);
        let late = receipt.settled().within(short).wait();
        assert!(
            matches!(&late, Err(Error::TimedOut { waited, .. }) if *waited == short),
            "{late:?}"
        );
        // Two threads ask for the end at once, and one of an executor of its own.
        let reports: Vec<_> = std::thread::scope(|scope| {
            let asks: Vec<_> = (0..3)
                .map(|n| {
                    let queue = &queue;
                    scope.spawn(move || match n {
                        // A runtime without timers: those are ours.
                        0 => tokio::runtime::Builder::new_current_thread()
                            .build()
                            .unwrap()
                            .block_on(queue.shutdown().into_future()),
                        _ => queue.shutdown().wait(),
                    })
                })
                .collect();
            asks.into_iter()
                .map(|ask| ask.join().unwrap().unwrap())
                .collect()
        });
        assert!(
            reports
                .iter()
                .all(|report| Arc::ptr_eq(report, &reports[0]))
        );
        assert!(
            reports[0].sealed && reports[0].deferred == 1,
            "{:?}",
            reports[0]
        );
        assert_empty(&queue);
        drop(queue);
        // Its receipt outlives it.
        assert_eq!(receipt.settled().wait().unwrap(), Settlement::Deferred);
        let again = open();
        again.drain().wait().unwrap();
        assert_eq!(rig.remote.keys().len(), 41);
        assert!(again.shutdown().wait().unwrap().sealed);
    }
}

/// The watchdog prints the whole picture, once, when nothing has moved though there is work: what
/// is in flight and since when, who waits, the last error. A server that refuses everything is a
/// stall as much as one that does not answer. When it moves again and stops again, once more.
#[test]
fn the_watchdog_reports_a_stall_with_the_whole_picture() {
    let down = RemoteError::transient("PutObject").with_message("the disk array is on fire");
    for fault in [Fault::Hang, Fault::Error(down)] {
        both(async |rig| {
            rig.remote.always(None, None, fault.clone());
            let queue = rig.open().await;
            let _hold = queue.hold("the engine").unwrap();
            submit(&queue, "stuck", "x").await;
            tokio::time::sleep(secs(20)).await;
            assert_eq!(queue.snapshot().last_stall, None, "not yet");
            tokio::time::sleep(secs(40)).await;
            let picture = queue.snapshot().last_stall.expect("a report");
            let error = match fault {
                Fault::Hang => "PutObject",
                _ => "the disk array is on fire",
            };
            for part in ["stuck", "the engine", "Running", error] {
                assert!(picture.contains(part), "{part:?} is not in {picture}");
            }
            // Once: the picture does not change until something has moved.
            tokio::time::sleep(secs(600)).await;
            assert_eq!(
                queue.snapshot().last_stall.as_deref(),
                Some(picture.as_str())
            );
            rig.remote.heal();
            queue.drain().within(HOUR).await.unwrap();
            tokio::time::sleep(secs(600)).await;
            assert_eq!(
                queue.snapshot().last_stall.as_deref(),
                Some(picture.as_str()),
                "idle"
            );
            rig.remote.always(None, None, fault.clone());
            submit(&queue, "again", "x").await;
            tokio::time::sleep(secs(60)).await;
            let second = queue.snapshot().last_stall.expect("a report");
            assert!(second.contains("again"), "{second}");
            queue.hurry();
            queue.shutdown().await.unwrap();
        });
    }
}

/// Nothing is a stall that an operator asked for, and an idle queue is none.
#[test]
fn the_watchdog_is_silent_when_nothing_ought_to_move() {
    roomy(async |rig| {
        let queue = rig.open().await;
        tokio::time::sleep(HOUR).await;
        queue.pause(PauseWhat::Uploads);
        submit(&queue, "k", "x").await;
        tokio::time::sleep(HOUR).await;
        assert_eq!(queue.snapshot().last_stall, None);
        queue.shutdown().await.unwrap();
    });
}
