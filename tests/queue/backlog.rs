//! C3: what an earlier life left and is not in the table yet, with a window of two: whatever is
//! asked is answered as if all of it were.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, assert_empty, paused, settled, spawn, submit};
use s3_writeback::io::Io;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Cause, Error, KeyPolicy, Lane, Options, PauseWhat, Receipt, RunOn, Settlement, TaskId,
    UploadQueue,
};
use tokio::runtime::Handle;

const HOUR: Duration = Duration::from_secs(3600);

fn rewritable(coalesce: bool) -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        coalesce,
        ..Options::default()
    }
}

fn after(receipt: &Receipt) -> Options {
    Options {
        after: vec![receipt.clone()],
        ..Options::default()
    }
}

async fn put(queue: &UploadQueue, key: &str, body: &str, options: Options) -> Receipt {
    let submitted = queue.submit(key, body.to_owned().into_bytes(), options);
    submitted.within(HOUR).await.expect("admitted")
}

fn small_window(config: &mut s3_writeback::Config) {
    config.recovery_window = 2;
    config.workers = 1;
}

/// A life that leaves what `submits` submits, and nothing of it sent.
fn left_by<T>(lives: &Lives, end: End, submits: impl AsyncFnOnce(&UploadQueue) -> T) -> T {
    lives.live(end, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let left = submits(queue).await;
        let last = submit(queue, "last", "last").await;
        last.durable().await.unwrap();
        left
    })
}

/// The same, of tasks on `k0`, `k1`, ...: the second of each life after it is paused as well.
fn with_tasks(count: usize) -> (Lives, Vec<TaskId>) {
    let lives = Lives::of(Rig::with(small_window));
    let left = left_by(&lives, End::Kill, async |queue| {
        let mut left = Vec::new();
        for n in 0..count {
            left.push(
                put(queue, &format!("k{n}"), "old", rewritable(false))
                    .await
                    .task(),
            );
        }
        left
    });
    (lives, left)
}

fn puts(lives: &Lives) -> Vec<String> {
    let seen = lives.rig.remote.seen().into_iter();
    let puts = seen
        .filter(|seen| seen.call == Call::Put)
        .map(|seen| seen.key);
    // Besides what the server is probed with.
    puts.filter(|key| !key.contains("probe")).collect()
}

/// In order of submission, all of it, and what was asked meanwhile counts all of it.
#[test]
fn c3_the_backlog_comes_in_in_order_and_is_counted() {
    let (lives, _) = with_tasks(40);
    lives.live(End::Clean, async |queue| {
        let snapshot = queue.snapshot();
        assert_eq!(snapshot.recovered, 41);
        let counts = &snapshot.tasks;
        // Some may have come in since, one by one.
        assert!((30..40).contains(&counts.backlog), "{counts:?}");
        assert_eq!(counts.tasks, 41, "{counts:?}");
        assert_eq!(
            (snapshot.admitted_tasks, snapshot.admitted_bytes),
            (41, 3 * 40 + 4)
        );
        assert!(counts.recovering);
        queue.drain().within(HOUR).await.unwrap();
        let counts = queue.snapshot().tasks;
        assert!(!counts.recovering && counts.backlog == 0);
        assert_empty(queue);
    });
    let mut order: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    order.push("last".to_owned());
    assert_eq!(puts(&lives), order);
}

/// What is submitted on a key comes after what an earlier life left there, in order.
#[test]
fn c3_a_submit_meets_what_the_backlog_has_on_its_key() {
    let lives = Lives::of(Rig::with(small_window));
    let left = left_by(&lives, End::Kill, async |queue| {
        for n in 0..20 {
            put(queue, &format!("a{n}"), "old", Options::default()).await;
        }
        put(queue, "r", "1", rewritable(false)).await;
        put(queue, "r", "2", rewritable(false)).await;
        let once = put(queue, "once", "same", Options::default()).await;
        put(queue, "c", "old", rewritable(true)).await;
        once.task()
    });
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        // Write-once: refused, or joined.
        let other = queue.submit("once", b"other".to_vec(), Options::default());
        let refused = other.within(HOUR).await.unwrap_err();
        assert!(
            matches!(&refused, Error::KeyPending { pending, .. } if *pending == left),
            "{refused:?}"
        );
        let joined = put(queue, "once", "same", Options::default()).await;
        assert_eq!(joined.task(), left);
        let third = put(queue, "r", "3", rewritable(false)).await;
        let newer = put(queue, "c", "new", rewritable(true)).await;
        assert!(queue.snapshot().tasks.backlog > 10);
        assert_eq!(&queue.get("r", None).await.unwrap()[..], b"3");
        queue.resume(PauseWhat::Uploads);
        for receipt in [third, newer, joined] {
            assert!(settled(&receipt).await.is_in_s3());
        }
        queue.drain().within(HOUR).await.unwrap();
        assert_empty(queue);
    });
    let remote = &lives.rig.remote;
    assert_eq!(remote.object("r").unwrap(), "3");
    assert_eq!(remote.object("c").unwrap(), "new");
    assert_eq!(remote.object("once").unwrap(), "same");
    let on = |key: &str| puts(&lives).iter().filter(|put| *put == key).count();
    assert_eq!(on("r"), 3);
    assert_eq!(on("c"), 1, "the older one was superseded");
}

/// Read from the backlog's body, not from S3: that has nothing yet.
#[test]
fn c3_a_get_finds_the_body_that_the_backlog_has() {
    let (lives, _) = with_tasks(20);
    lives.live(End::Kill, async |queue| {
        queue.pause(PauseWhat::Uploads);
        assert_eq!(&queue.get("k15", None).await.unwrap()[..], b"old");
        assert!(queue.snapshot().tasks.backlog > 10);
    });
    assert!(lives.rig.remote.seen().is_empty());
}

/// A receipt of an earlier life names a task in the backlog; the new task comes after it.
#[test]
fn c3_a_task_may_be_after_one_in_the_backlog() {
    let lives = Lives::of(Rig::with(small_window));
    let old = left_by(&lives, End::Clean, async |queue| {
        let mut last = None;
        for n in 0..20 {
            last = Some(put(queue, &format!("k{n}"), "old", Options::default()).await);
        }
        last.unwrap()
    });
    assert_eq!(old.settlement(), Some(Settlement::Deferred));
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let next = put(queue, "next", "n", after(&old)).await;
        queue.resume(PauseWhat::Uploads);
        assert!(settled(&next).await.is_in_s3());
        queue.drain().within(HOUR).await.unwrap();
    });
    let order = puts(&lives);
    let at = |key: &str| order.iter().position(|put| put == key).unwrap();
    assert!(at("k19") < at("next"), "{order:?}");
}

/// Who is after a task in the backlog waits for it, and goes where it is sent if that fails.
#[test]
fn c3_what_is_after_a_task_in_the_backlog_shares_its_fate() {
    for replayed in [false, true] {
        let lives = Lives::of(Rig::with(small_window));
        let remote = lives.rig.remote.clone();
        left_by(&lives, End::Kill, async |queue| {
            for n in 0..20 {
                put(queue, &format!("a{n}"), "old", Options::default()).await;
            }
            let bad = put(queue, "bad", "b", Options::default()).await;
            put(queue, "commit", "c", after(&bad)).await;
        });
        let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        remote.always(Some(Call::Put), Some("bad"), Fault::Error(refused));
        lives.live(End::Clean, async |queue| {
            while queue.quarantined().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let bad = queue.quarantined()[0].task;
            assert_eq!(remote.object("commit"), None);
            if replayed {
                remote.heal();
                queue.replay(bad).await.unwrap();
                queue.drain().within(HOUR).await.unwrap();
            } else {
                queue.purge(bad).unwrap();
                let left = queue.quarantined();
                assert_eq!(left[0].key, "commit");
                assert_eq!(left[0].cause, Cause::Dependency(bad));
            }
        });
        assert_eq!(remote.object("commit").is_some(), replayed);
    }
}

/// Taken back before its turn: what is after it would wait for nothing, or run all the same.
#[test]
fn c3_what_is_after_a_task_that_is_taken_back_is_not_forgotten() {
    let lives = Lives::of(Rig::with(small_window));
    let first = left_by(&lives, End::Kill, async |queue| {
        for n in 0..20 {
            put(queue, &format!("a{n}"), "old", Options::default()).await;
        }
        let first = put(queue, "first", "f", Options::default()).await;
        put(queue, "second", "s", after(&first)).await;
        first.task()
    });
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        queue.cancel(first).unwrap();
        queue.resume(PauseWhat::Uploads);
        while queue.snapshot().tasks.tasks > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(queue.quarantined()[0].cause, Cause::Dependency(first));
    });
    assert_eq!(lives.rig.remote.object("second"), None);
}

/// A task in quarantine that is after one in the backlog too: replayed, it waits for that one.
#[test]
fn c3_a_replay_does_not_forget_what_is_still_to_come() {
    let lives = Lives::of(Rig::with(small_window));
    left_by(&lives, End::Kill, async |queue| {
        for n in 0..20 {
            put(queue, &format!("a{n}"), "old", Options::default()).await;
        }
        let first = put(queue, "first", "f", Options::default()).await;
        let gone = put(queue, "gone", "g", Options::default()).await;
        let mut both = after(&first);
        both.after.push(gone.clone());
        put(queue, "second", "s", both).await;
        queue.cancel(gone.task()).unwrap();
    });
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let second = queue.quarantined()[0].task;
        assert!(queue.snapshot().tasks.backlog > 10);
        let second = queue.replay(second).await.unwrap();
        queue.resume(PauseWhat::Uploads);
        assert!(settled(&second).await.is_in_s3());
        queue.drain().within(HOUR).await.unwrap();
    });
    let order = puts(&lives);
    let at = |key: &str| order.iter().position(|put| put == key).unwrap();
    assert!(at("first") < at("second"), "{order:?}");
}

/// The list is whole, and its receipts are told.
#[test]
fn c3_all_of_the_backlog_is_listed_with_receipts() {
    let (lives, left) = with_tasks(30);
    lives.live(End::Clean, async |queue| {
        let pending = queue.pending();
        let listed: Vec<TaskId> = pending.iter().map(|task| task.receipt.task()).collect();
        assert_eq!(listed[..30], left[..]);
        assert_eq!((&pending[17].key[..], pending[17].len), ("k17", 3));
        assert!(queue.snapshot().tasks.backlog > 20, "it stays where it is");
        for task in pending {
            assert!(settled(&task.receipt).await.is_in_s3());
        }
        assert_empty(queue);
    });
}

/// Taken back before its turn; its key's other task goes up.
#[test]
fn c3_a_task_in_the_backlog_is_cancelled() {
    let (lives, left) = with_tasks(30);
    lives.live(End::Kill, async |queue| {
        queue.pause(PauseWhat::Uploads);
        queue.cancel(left[20]).unwrap();
        let error = queue.purge(left[21]).unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
        let error = queue.quarantined_task(left[22]).unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
        let error = queue.replay(left[23]).await.unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
        let error = queue.export(left[24], "/out").await.unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
        assert!(queue.snapshot().tasks.backlog > 10);
        let last = submit(queue, "flush", "f").await;
        last.durable().await.unwrap();
    });
    lives.live(End::Clean, async |queue| {
        queue.drain().within(HOUR).await.unwrap();
    });
    assert_eq!(lives.rig.remote.object("k20"), None);
    assert_eq!(lives.rig.remote.keys().len(), 31);
}

/// Shut down before it is through: what has not come in is deferred like the rest, and all of it
/// is there at the next open.
#[test]
fn c3_what_a_shutdown_leaves_of_the_backlog_is_reported_and_kept() {
    let (lives, _) = with_tasks(30);
    let remote = lives.rig.remote.clone();
    let told = lives.live(End::Kill, async |queue| {
        remote.always(Some(Call::Put), None, Fault::Hang);
        let report = queue
            .shutdown()
            .within(Duration::from_secs(1))
            .await
            .unwrap();
        assert!(report.sealed);
        assert_eq!((report.deferred, report.quarantined), (31, 0));
        report.deferred
    });
    assert_eq!(told, 31);
    remote.heal();
    lives.live(End::Clean, async |queue| {
        assert_eq!(queue.snapshot().recovered, 31);
        queue.drain().within(HOUR).await.unwrap();
    });
    assert_eq!(remote.keys().len(), 31);
}

/// A shutdown with time uploads the backlog too.
#[test]
fn c3_a_shutdown_waits_for_the_backlog() {
    let (lives, _) = with_tasks(30);
    lives.live(End::Kill, async |queue| {
        let report = queue.shutdown().within(HOUR).await.unwrap();
        assert_eq!((report.deferred, report.sealed), (0, true));
    });
    assert_eq!(lives.rig.remote.keys().len(), 31);
}

/// The same where the table is empty while the next are being read.
#[test]
fn c3_a_shutdown_waits_for_what_is_being_read() {
    for seed in 0..5 {
        let (lives, _) = with_tasks(30);
        let rig = &lives.rig;
        paused(async {
            let slow = Io::slow(seed, Duration::from_millis(50));
            let builder = UploadQueue::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
                .run_on(RunOn::Handle(Handle::current()))
                .file_system(Arc::new(rig.fs.clone()), slow);
            let queue = builder.open().await.unwrap();
            let report = queue.shutdown().within(HOUR).await.unwrap();
            assert_eq!((report.deferred, report.sealed), (0, true));
        });
        assert_eq!(rig.remote.keys().len(), 31);
    }
}

/// All that came in first is refused, or backs off: the rest has its turn all the same.
#[test]
fn c3_what_cannot_move_does_not_keep_the_backlog_out() {
    let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
    let failing = RemoteError::transient("PutObject");
    for (error, parked) in [(refused, 5), (failing, 0)] {
        let (lives, _) = with_tasks(30);
        let remote = lives.rig.remote.clone();
        for n in 0..5 {
            let key = format!("k{n}");
            remote.always(Some(Call::Put), Some(&key), Fault::Error(error.clone()));
        }
        lives.live(End::Kill, async |queue| {
            while queue.snapshot().tasks.tasks > 5 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(queue.quarantined().len(), parked);
        });
        assert_eq!(remote.keys().len(), 31 - 5);
    }
}

/// Admission knows of all that is to come: what is new waits until it is through.
#[test]
fn c3_the_backlog_takes_its_room() {
    let (mut lives, _) = with_tasks(30);
    lives.rig.config.max_tasks = 10;
    lives.live(End::Clean, async |queue| {
        let refused = queue.submit("new", b"n".to_vec(), Options::default()).now();
        let error = refused.unwrap_err();
        assert!(
            matches!(
                error,
                Error::QueueFull {
                    current: 31,
                    max: 10,
                    ..
                }
            ),
            "{error:?}"
        );
        let new = put(queue, "new", "n", Options::default()).await;
        assert!(lives.rig.remote.keys().len() >= 21);
        assert!(settled(&new).await.is_in_s3());
        queue.drain().within(HOUR).await.unwrap();
        assert_empty(queue);
    });
}

/// What was submitted for a checkpoint is no backlog: it goes first, as it always did.
#[test]
fn c3_lane_checkpoint_does_not_wait_for_the_backlog() {
    let lives = Lives::of(Rig::with(small_window));
    left_by(&lives, End::Kill, async |queue| {
        for n in 0..20 {
            put(queue, &format!("k{n}"), "old", Options::default()).await;
        }
        let urgent = Options {
            lane: Some(Lane::Checkpoint),
            ..Options::default()
        };
        put(queue, "urgent", "u", urgent).await;
    });
    lives.live(End::Clean, async |queue| {
        queue.drain().within(HOUR).await.unwrap();
    });
    let order = puts(&lives);
    let at = order.iter().position(|key| key == "urgent").unwrap();
    assert!(at < 5, "{order:?}");
}

/// Made at open, and yet behind what its key has in the backlog.
#[test]
fn c3_what_is_made_at_open_comes_after_what_its_key_has() {
    let lives = Lives::of(Rig::with(small_window));
    left_by(&lives, End::Kill, async |queue| {
        for n in 0..20 {
            put(queue, &format!("k{n}"), "old", Options::default()).await;
        }
        for body in ["1", "2"] {
            put(queue, "r", body, rewritable(false)).await;
        }
        let urgent = Options {
            lane: Some(Lane::Checkpoint),
            ..rewritable(false)
        };
        put(queue, "r", "3", urgent).await;
    });
    lives.live(End::Clean, async |queue| {
        queue.drain().within(HOUR).await.unwrap();
    });
    assert_eq!(lives.rig.remote.object("r").unwrap(), "3");
}

/// A record that goes bad after the open: it is named, it fails drains, its key waits, the rest
/// goes up; and when the disk has it again, so does it.
#[test]
fn c3_a_record_that_cannot_be_read_back_is_named_and_kept() {
    let (lives, left) = with_tasks(30);
    let fs = lives.rig.fs.clone();
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let were = spoil(&lives.rig, "k25");
        queue.resume(PauseWhat::Uploads);
        while lives.rig.remote.keys().len() < 30 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = queue.drain().within(HOUR).await.unwrap_err();
        assert!(error.to_string().contains("cannot be read back"), "{error}");
        let pending = queue.pending();
        assert_eq!((pending.len(), pending[0].state), (1, "unread"));
        assert_eq!(pending[0].receipt.task(), left[25]);
        let counts = queue.snapshot().tasks;
        assert_eq!((counts.tasks, counts.backlog), (1, 1));
        let submit = queue.submit("k25", b"new".to_vec(), rewritable(false));
        let error = submit.within(HOUR).await.unwrap_err();
        assert!(error.to_string().contains("cannot be read back"), "{error}");
        for (name, good) in were {
            fs.poke(&name, good);
        }
        assert!(settled(&pending[0].receipt).await.is_in_s3());
        queue.drain().within(HOUR).await.unwrap();
        assert_empty(queue);
    });
    assert_eq!(lives.rig.remote.object("k25").unwrap(), "old");
}

/// The same at the end: it is deferred, and the report names it.
#[test]
fn c3_a_shutdown_names_what_could_not_be_read_back() {
    let (lives, left) = with_tasks(30);
    lives.live(End::Kill, async |queue| {
        queue.pause(PauseWhat::Uploads);
        spoil(&lives.rig, "k25");
        queue.resume(PauseWhat::Uploads);
        let report = queue.shutdown().within(HOUR).await.unwrap();
        assert_eq!((report.deferred, report.sealed), (1, true));
        assert_eq!(report.failing.len(), 1, "{report:?}");
        assert_eq!(report.failing[0].task, left[25]);
    });
}

/// Turns a byte of the key over wherever its record lies; returns the files as they were.
fn spoil(rig: &Rig, key: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut were = Vec::new();
    for name in rig.fs.names(Path::new("/q/segments")) {
        let good = rig.fs.peek(&name).unwrap();
        let mut bad = good.clone();
        for at in 0..good.len() - key.len() {
            if good[at..].starts_with(key.as_bytes()) {
                bad[at] ^= 1;
            }
        }
        if bad != good {
            rig.fs.poke(&name, bad);
            were.push((name, good));
        }
    }
    assert!(!were.is_empty(), "no record has {key}");
    were
}

/// A disk that fails for a while holds things up, and no more.
#[test]
fn c3_a_disk_that_fails_for_a_while_loses_nothing_of_the_backlog() {
    let (lives, _) = with_tasks(300);
    let fs = lives.rig.fs.clone();
    lives.live(End::Clean, async |queue| {
        fs.fail(FsFault {
            call: Some(FsCall::Read),
            after: 40,
            errno: EIO,
            forever: true,
        });
        tokio::time::sleep(HOUR).await;
        fs.heal();
        while queue.snapshot().tasks.backlog > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // What was read for an upload meanwhile is in quarantine, or was tried again.
        for task in queue.quarantined() {
            queue.replay(task.task).await.unwrap();
        }
        queue.drain().within(HOUR).await.unwrap();
        assert_empty(queue);
    });
    assert_eq!(lives.rig.remote.keys().len(), 301);
}

/// Many ask for the same at once, while it comes in by itself: each task is there once.
#[test]
fn c3_several_who_bring_in_the_same_meet_one_task() {
    let (lives, left) = with_tasks(60);
    lives.live(End::Clean, async |queue| {
        let queue = Arc::new(queue.clone());
        let mut asked = Vec::new();
        for n in 0..240 {
            let (queue, n) = (Arc::clone(&queue), n % 60);
            asked.push(spawn(async move {
                put(&queue, &format!("k{n}"), "old", rewritable(false)).await
            }));
        }
        for (n, asked) in asked.into_iter().enumerate() {
            let receipt = asked.await.unwrap();
            // Joined, if it was still owed.
            assert!(receipt.task() >= left[n % 60]);
            assert!(settled(&receipt).await.is_in_s3());
        }
        queue.drain().within(HOUR).await.unwrap();
        assert_empty(&queue);
    });
    assert_eq!(lives.rig.remote.keys().len(), 61);
}

/// A clean shutdown and an open without a backlog are as before: nothing is read twice.
#[test]
fn c3_what_fits_into_the_window_is_there_at_once() {
    let mut lives = with_tasks(30).0;
    lives.rig.config.recovery_window = 4096;
    lives.live(End::Clean, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let counts = queue.snapshot().tasks;
        assert_eq!((counts.tasks, counts.backlog), (31, 0));
        queue.resume(PauseWhat::Uploads);
        queue.drain().within(HOUR).await.unwrap();
    });
}

#[test]
fn the_window_has_limits() {
    for (window, fits) in [(0, false), (1, true), (1_000_000, true), (1_000_001, false)] {
        let rig = Rig::with(|config| config.recovery_window = window);
        assert_eq!(rig.config.validate().is_ok(), fits, "{window}");
    }
    paused(async {
        let rig = Rig::with(|config| config.recovery_window = 0);
        assert!(matches!(rig.try_open().await, Err(Error::Config(_))));
    });
}
