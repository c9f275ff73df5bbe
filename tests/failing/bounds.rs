//! Pile-ups (B4, B6, B12, C4) and memory (B10).

use std::time::Duration;

use s3_writeback::error::Limit;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Cause, Config, Error, KeyPolicy, Lane, Options, PauseWhat, Receipt, Settlement, UploadQueue,
};

use crate::bucket::Bucket;
use crate::child::{run, setting, tell};
use crate::lives::{End, Lives};
use crate::support::{Rig, assert_empty, both, paused, settled, spawn, submit};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const KIB: usize = 1024;

async fn put(queue: &UploadQueue, key: &str, body: Vec<u8>) -> Receipt {
    let submit = queue.submit(key, body, Options::default());
    submit.within(HOUR).await.expect("admitted")
}

fn is_uploaded(settlement: &Settlement) -> bool {
    matches!(settlement, Settlement::Uploaded(_))
}

/// B4: 50,000 submits of one key and content that fails are one task with one record, few attempts,
/// and one result for all who hold a receipt; their number has a limit, and who is refused by it
/// is told so.
#[test]
fn b4_submits_of_one_failing_content_are_one_task() {
    paused(async {
        let rig = Rig::new();
        let refused = RemoteError::transient("PutObject");
        rig.remote
            .always(Some(Call::Put), Some("k"), Fault::Error(refused));
        let queue = rig.open().await;
        let mut receipts = Vec::new();
        let same = Options {
            policy: KeyPolicy::Rewritable,
            coalesce: true,
            ..Options::default()
        };
        for _ in 0..50_000 {
            let receipt = queue.submit("k", "the same", same.clone()).await.unwrap();
            receipts.push(receipt);
        }
        receipts[0].durable().await.unwrap();
        let snapshot = queue.snapshot();
        assert_eq!((snapshot.tasks.tasks, snapshot.admitted_tasks), (1, 1));
        assert_eq!(snapshot.journal.owners, 1);
        tokio::time::sleep(MINUTE).await;
        let attempts = rig.remote.count(Call::Put, "k");
        assert!(
            (1..40).contains(&attempts),
            "{attempts} attempts in a minute"
        );
        rig.remote.heal();
        let end = settled(&receipts[0]).await;
        assert!(is_uploaded(&end));
        let all = receipts.iter().map(Receipt::settlement);
        assert!(all.into_iter().all(|found| found.as_ref() == Some(&end)));
        let journal = queue.snapshot().journal;
        assert!(journal.next_location < 200, "{journal:?}");
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// B4: receipts of one task, and waits on them, are bounded; what is given back counts no more.
#[test]
fn b4_receipts_of_one_task_are_bounded() {
    paused(async {
        let rig = Rig::with(|config| config.max_receipts = 100);
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let mut receipts = Vec::new();
        let error = loop {
            match queue.submit("k", "same", Options::default()).await {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => break error,
            }
            assert!(receipts.len() < 200, "receipts are not bounded");
        };
        assert_eq!(receipts.len(), 100);
        let crowded = |error: &Error| {
            matches!(
                error,
                Error::QueueFull {
                    limit: Limit::Receipts,
                    max: 100,
                    ..
                }
            )
        };
        assert!(crowded(&error), "{error}");
        // A wait is held as well.
        let mut waits = Vec::new();
        let error = loop {
            let wait = receipts[0].settled();
            match wait.now() {
                Err(error) if crowded(&error) => break error,
                _ => waits.push(receipts[0].settled()),
            }
            assert!(waits.len() < 10, "waits are not bounded");
        };
        assert!(crowded(&error), "{error}");
        drop(waits);
        receipts.truncate(50);
        let again = submit(&queue, "k", "same").await;
        assert_eq!(again.task(), receipts[0].task());
        queue.resume(PauseWhat::Uploads);
        assert!(is_uploaded(&settled(&again).await));
        queue.shutdown().await.unwrap();
    });
}

/// B4: so are those of generations that were superseded: past the limit a generation stands in
/// line of its own, and is admitted like any other.
#[test]
fn b4_receipts_of_superseded_generations_are_bounded() {
    paused(async {
        let rig = Rig::with(|config| config.max_receipts = 10);
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let mut receipts = Vec::new();
        for n in 0..35 {
            let options = Options {
                policy: KeyPolicy::Rewritable,
                coalesce: true,
                ..Options::default()
            };
            let body = format!("{n}").into_bytes();
            let receipt = queue.submit("k", body, options).await.unwrap();
            receipt.durable().await.unwrap();
            receipts.push(receipt);
        }
        assert_eq!(queue.snapshot().tasks.tasks, 4);
        queue.resume(PauseWhat::Uploads);
        for receipt in &receipts {
            assert!(is_uploaded(&settled(receipt).await));
        }
        assert_eq!(rig.remote.object("k").unwrap(), "34");
        queue.shutdown().await.unwrap();
    });
}

/// B6: the code of a task panics ten times as often as there is room: every permit and slot is
/// back, the tasks are in quarantine with the panic's text, and the process lives.
#[test]
fn b6_code_that_panics_again_and_again_leaks_nothing() {
    both(async |mut rig| {
        let limit = rig.config.max_tasks.min(50);
        rig.config.max_tasks = limit;
        rig.remote
            .under(None, Some(Call::Put), "bad", Fault::Panic("a bug"));
        let queue = rig.open().await;
        let count = 10 * limit;
        for n in 0..count {
            // Admitted as the ones before it leave.
            submit(&queue, &format!("bad{n}"), "x").await;
        }
        while (queue.quarantined().len() as u64) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for task in queue.quarantined() {
            assert_eq!(task.cause, Cause::Panicked("a bug".to_owned()));
            assert_eq!(task.last_error.as_deref(), Some("a bug"));
            assert_eq!(task.attempts, 1);
        }
        let usage = queue.snapshot();
        assert_eq!((usage.admitted_tasks, usage.tasks.running), (0, 0));
        assert_eq!(
            (usage.memory_bytes, usage.tasks.quarantined as u64),
            (0, count)
        );
        // All slots take work again.
        rig.remote.heal();
        let good = submit(&queue, "good", "x").await;
        assert!(is_uploaded(&settled(&good).await));
        for task in queue.quarantined() {
            queue.purge(task.task).unwrap();
        }
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// B12: admission paused, uploads paused, resumed, in each order, with a kill in between: limits
/// hold meanwhile, and nothing is lost.
#[test]
fn b12_pauses_hold_the_limits_and_lose_nothing() {
    let lives = Lives::of(Rig::with(|config| config.max_tasks = 10));
    let remote = &lives.rig.remote;
    lives.live(End::Kill, async |queue| {
        queue.pause(PauseWhat::Uploads);
        for n in 0..10 {
            let receipt = submit(queue, &format!("a{n}"), "x").await;
            receipt.durable().await.unwrap();
        }
        let waits = queue.submit("more", "x", Options::default());
        let error = waits.within(HOUR).await.unwrap_err();
        assert!(error.to_string().contains("max_tasks"), "{error}");
        assert!(remote.keys().is_empty(), "nothing is sent");
        assert!(matches!(queue.drain().await, Err(Error::Paused("uploads"))));

        queue.pause(PauseWhat::Admission);
        queue.resume(PauseWhat::Uploads);
        while remote.keys().len() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let error = queue.submit("more", "x", Options::default()).now();
        assert!(
            matches!(error, Err(Error::Paused("admission"))),
            "{error:?}"
        );
        assert_eq!(queue.snapshot().tasks.tasks, 0);

        // Who waits for admission is let in when it is resumed.
        let waiting = queue.clone();
        let waiting = spawn(async move { submit(&waiting, "more", "x").await });
        tokio::time::sleep(MINUTE).await;
        assert!(!waiting.is_finished());
        queue.pause(PauseWhat::Uploads);
        queue.resume(PauseWhat::Admission);
        let receipt = waiting.await.unwrap();
        receipt.durable().await.unwrap();
        for n in 0..9 {
            let receipt = submit(queue, &format!("b{n}"), "x").await;
            receipt.durable().await.unwrap();
        }
        assert!(queue.submit("full", "x", Options::default()).now().is_err());
    });
    // A pause is not on record: the next life goes on, with all of it.
    lives.live(End::Clean, async |queue| {
        for task in queue.pending() {
            assert!(is_uploaded(&settled(&task.receipt).await));
        }
    });
    assert_eq!(remote.keys().len(), 20);
}

/// C4: the journal holds ten times today's limits: all of it runs, none is abandoned, and new
/// submits wait until there is room; the checkpoint's reserve is there all the while.
#[test]
fn c4_a_backlog_of_ten_times_todays_limits_runs_and_new_submits_wait() {
    let lives = Lives::of(Rig::with(|config| {
        config.max_tasks = 500;
        config.max_bytes = 500_000;
    }));
    let remote = &lives.rig.remote;
    lives.live(End::Kill, async |queue| {
        queue.pause(PauseWhat::Uploads);
        let mut last = None;
        for n in 0..500 {
            last = Some(put(queue, &format!("old{n:03}"), vec![1; 1000]).await);
        }
        last.unwrap().durable().await.unwrap();
    });
    // All three limits are a tenth now.
    let mut rig = lives.rig.clone();
    rig.config.max_tasks = 50;
    rig.config.max_bytes = 50_000;
    rig.config.max_memory_bytes = 50_000;
    rig.config.workers = 4;
    let slow = Fault::Delay(Duration::from_millis(10));
    rig.remote.always(Some(Call::Put), None, slow);
    let lives = Lives::of(rig);
    lives.live(End::Clean, async |queue| {
        let snapshot = queue.snapshot();
        assert_eq!((snapshot.recovered, snapshot.admitted_tasks), (500, 500));
        let error = queue.submit("new", "x", Options::default()).now();
        assert!(
            matches!(
                error,
                Err(Error::QueueFull {
                    limit: Limit::Tasks,
                    current: 500..,
                    max: 50,
                    ..
                })
            ),
            "{error:?}"
        );
        let urgent = Options {
            lane: Some(Lane::Checkpoint),
            ..Options::default()
        };
        queue.submit("urgent", "x", urgent).now().unwrap();
        let new = put(queue, "new", b"x".to_vec()).await;
        let left = queue.snapshot().admitted_tasks;
        assert!(left <= 50, "{left} are left when the first is admitted");
        assert!(remote.keys().len() >= 450);
        assert!(is_uploaded(&settled(&new).await));
        queue.drain().await.unwrap();
        let peak = queue.snapshot().peak_memory_bytes;
        assert!(peak <= 50_000, "{peak} bytes in memory");
    });
    assert_eq!(remote.keys().len(), 502);
}

/// B10: a backlog that is larger than memory: what is on the disk leaves memory, uploads read it
/// back, and the limit holds all the while.
#[test]
fn b10_bodies_that_are_durable_leave_memory_for_new_ones() {
    for workers in [1, 16] {
        paused(async move {
            let max = 256 * KIB as u64;
            let rig = Rig::with(|config| {
                config.max_memory_bytes = max;
                config.workers = workers;
            });
            let queue = rig.open().await;
            queue.pause(PauseWhat::Uploads);
            // Inline in the journal, and in files of their own.
            let body = |n: usize| {
                vec![
                    n as u8;
                    if n.is_multiple_of(2) {
                        4 * KIB
                    } else {
                        40 * KIB
                    }
                ]
            };
            for n in 0..200 {
                put(&queue, &format!("k{n:03}"), body(n)).await;
                let now = queue.snapshot();
                assert!(now.memory_bytes <= max, "{} bytes", now.memory_bytes);
            }
            let snapshot = queue.snapshot();
            assert_eq!(snapshot.admitted_tasks, 200);
            assert!(snapshot.spilled_bytes > 4_000_000, "{snapshot:?}");
            queue.resume(PauseWhat::Uploads);
            queue.drain().await.unwrap();
            let snapshot = queue.snapshot();
            assert!(snapshot.peak_memory_bytes <= max, "{snapshot:?}");
            assert_eq!(snapshot.memory_bytes, 0, "every byte is given back");
            for n in 0..200 {
                assert_eq!(rig.remote.object(&format!("k{n:03}")).unwrap(), body(n));
            }
            queue.shutdown().await.unwrap();
            assert_empty(&queue);
        });
    }
}

/// B10: what is not on the disk yet cannot leave: submits wait or are refused, with the limit
/// named, and go on only when four fifths are reached.
#[test]
fn b10_submits_wait_with_hysteresis_while_nothing_can_leave_memory() {
    paused(async {
        let rig = Rig::with(|config| {
            config.max_memory_bytes = 100_000;
            config.workers = 1;
            config.attempt_floor = HOUR;
        });
        let queue = rig.open().await;
        rig.remote
            .always(Some(Call::Put), None, Fault::Delay(10 * MINUTE));
        let mut receipts = Vec::new();
        // One in flight with 95 %; it stays in memory though it is durable.
        receipts.push(put(&queue, "large", vec![1; 95_000]).await);
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "large") == 1)
            .await;
        receipts.push(put(&queue, "small", vec![1; 4_000]).await);
        receipts[1].durable().await.unwrap();
        let error = queue
            .submit("new", vec![1; 3_000], Options::default())
            .now();
        assert!(
            matches!(
                &error,
                Err(Error::QueueFull {
                    limit: Limit::MemoryBytes,
                    max: 100_000,
                    ..
                })
            ),
            "{error:?}"
        );
        // It waits, though `small` was dropped for it and 95 % + 3 % would fit.
        let waiting = queue.clone();
        let waiting = spawn(async move { put(&waiting, "new", vec![1; 3_000]).await });
        tokio::time::sleep(MINUTE).await;
        let snapshot = queue.snapshot();
        assert_eq!(
            (snapshot.memory_bytes, snapshot.memory_throttled),
            (95_000, true)
        );
        assert!(!waiting.is_finished(), "above four fifths");
        assert_eq!(queue.pressure(), 100);
        // What brings no bytes along is not kept waiting by memory, once nobody is before it; and
        // what never fits is told so at once.
        let large = queue.submit("huge", vec![1; 100_001], Options::default());
        let error = large.await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::TooLarge {
                    limit: Limit::MemoryBytes,
                    ..
                }
            ),
            "{error}"
        );
        receipts.push(waiting.await.unwrap());
        assert_eq!(rig.remote.keys(), ["large"], "when it left");
        for receipt in &receipts {
            assert!(is_uploaded(&settled(receipt).await));
        }
        let snapshot = queue.snapshot();
        assert_eq!(
            (snapshot.memory_bytes, snapshot.memory_throttled),
            (0, false)
        );
        assert!(snapshot.peak_memory_bytes <= 100_000);
        queue.shutdown().await.unwrap();
    });
}

/// B10: attempts read no more at a time than there is memory, and one of them always reads.
#[test]
fn b10_attempts_read_within_the_limit_and_one_of_them_always() {
    for max in [100_000, 10_000] {
        let lives = Lives::of(Rig::new());
        lives.live(End::Kill, async |queue| {
            queue.pause(PauseWhat::Uploads);
            for n in 0..40 {
                let receipt = put(queue, &format!("k{n:02}"), vec![1; 30_000]).await;
                receipt.durable().await.unwrap();
            }
        });
        let mut rig = lives.rig.clone();
        rig.config.max_memory_bytes = max;
        rig.remote
            .always(Some(Call::Put), None, Fault::Delay(Duration::from_secs(1)));
        let lives = Lives::of(rig);
        lives.live(End::Clean, async |queue| {
            queue.drain().await.unwrap();
            let peak = queue.snapshot().peak_memory_bytes;
            // Three at a time; or one, which is larger than all of it.
            assert_eq!(peak, if max == 100_000 { 90_000 } else { 30_000 });
        });
        assert_eq!(lives.rig.remote.keys().len(), 40);
    }
}

/// Bytes of memory that this process really has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Not a test: a backlog of 64 MiB in a process of its own.
#[test]
#[ignore = "is started by the test below"]
#[allow(
    clippy::disallowed_methods,
    reason = "a process of its own, in the time that there is"
)]
fn backlog() {
    const MIB: u64 = 1 << 20;
    let dir = std::path::PathBuf::from(setting("BACKLOG_DIR"));
    let mut config = Config::new(dir.join("queue"));
    config.max_memory_bytes = setting("BACKLOG_MEMORY").parse().unwrap();
    config.inline_bytes = 0;
    config.segment_bytes = 1 << 20;
    let bucket = std::sync::Arc::new(Bucket::new(dir.join("bucket")));
    let queue = UploadQueue::builder(config, bucket).open().wait().unwrap();
    queue.pause(PauseWhat::Uploads);
    let submit = |n: usize| {
        let body = vec![n as u8; 256 * KIB];
        let receipt = queue.submit(format!("k{n:03}"), body, Options::default());
        receipt.within(MINUTE).wait().unwrap()
    };
    submit(0).durable().wait().unwrap();
    let before = resident();
    let mut most = 0;
    for n in 1..256 {
        submit(n);
        most = most.max(resident());
    }
    queue.resume(PauseWhat::Uploads);
    while queue.snapshot().tasks.tasks > 0 {
        most = most.max(resident());
        std::thread::sleep(Duration::from_millis(1));
    }
    tell("grew_kib", most.saturating_sub(before) / 1024);
    tell("peak_kib", queue.snapshot().peak_memory_bytes / 1024);
    tell("spilled_mib", queue.snapshot().spilled_bytes / MIB);
    queue.shutdown().wait().unwrap();
}

/// B10: the resident size of a process stays flat while a backlog of 64 MiB is taken and sent, with
/// 4 MiB for bodies; with room for all of it, it grows by the backlog.
#[test]
fn b10_the_resident_size_stays_flat() {
    let grew = |memory: u64| {
        let dir = tempfile::tempdir().unwrap();
        let settings = [
            ("BACKLOG_DIR", dir.path().display().to_string()),
            ("BACKLOG_MEMORY", memory.to_string()),
        ];
        let ended = run("bounds::backlog", &settings, None, 2 * MINUTE);
        assert!(ended.status.success(), "{}", ended.output);
        let [grew, peak] = ["grew_kib", "peak_kib"].map(|name| ended.number(name));
        eprintln!(
            "limit {} KiB: grew by {grew} KiB, peak of bodies {peak} KiB",
            memory / 1024
        );
        // And what one attempt reads, whatever else there is.
        assert!(peak * 1024 <= memory + 256 * KIB as u64);
        (grew, ended.number("spilled_mib"))
    };
    let (flat, spilled) = grew(4 << 20);
    assert!(flat < 24 * 1024, "grew by {flat} KiB");
    assert!(spilled >= 56, "{spilled} MiB");
    let (all, spilled) = grew(256 << 20);
    assert!(
        all > 40 * 1024 && spilled == 0,
        "grew by {all} KiB, spilled {spilled} MiB"
    );
}
