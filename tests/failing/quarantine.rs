//! Quarantine: kept, shown, capped, exported, replayed, purged (B9).

use std::path::Path;
use std::time::Duration;

use s3_writeback::error::Limit;
use s3_writeback::journal::fs::Fs;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Body, Cause, Error, Exported, Health, KeyPolicy, Options, PauseWhat, Receipt, Settlement,
    TaskId, UploadQueue,
};
use tracing::Level;

use crate::lives::{End, Lives};
use crate::logged::logged;
use crate::support::{Rig, both, paused, settled, spawn, submit};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn refused() -> Fault {
    Fault::Error(RemoteError::permanent("PutObject", 400, "InvalidArgument"))
}

/// S3 refuses every key that starts with `bad`.
fn refuses_bad(rig: &Rig) {
    rig.remote.under(None, Some(Call::Put), "bad", refused());
}

async fn put(queue: &UploadQueue, key: &str, body: impl Into<Body>, options: Options) -> Receipt {
    let submit = queue.submit(key, body, options);
    submit.within(HOUR).await.expect("admitted")
}

async fn goes_to_quarantine(queue: &UploadQueue, key: &str, body: &str) -> TaskId {
    let receipt = submit(queue, key, body).await;
    let settlement = settled(&receipt).await;
    assert!(
        matches!(settlement, Settlement::Quarantined(_)),
        "{settlement:?}"
    );
    receipt.task()
}

fn now(queue: &UploadQueue, key: &str) -> Result<Receipt, Error> {
    queue.submit(key, "x", Options::default()).now()
}

fn full_of_tasks(error: &Error, found: u64) -> bool {
    matches!(
        error,
        Error::QuarantineFull { limit: Limit::QuarantinedTasks, current, max: 3 } if *current == found
    )
}

/// B9: at the cap new submits are refused or wait, by their form, with the limit named, and one
/// line is logged; what fails later is kept all the same, and nothing is deleted.
#[test]
fn b9_a_full_quarantine_refuses_new_submits_and_deletes_nothing() {
    let lines = logged(Level::ERROR, || {
        paused(async {
            let rig = Rig::with(|config| config.max_quarantined_tasks = 3);
            refuses_bad(&rig);
            let queue = rig.open().await;
            for n in 0..2 {
                goes_to_quarantine(&queue, &format!("bad{n}"), "x").await;
            }
            assert_eq!(queue.pressure(), 0);
            queue.pause(PauseWhat::Uploads);
            let mut late = Vec::new();
            for n in 2..5 {
                late.push(submit(&queue, &format!("bad{n}"), "x").await);
            }
            queue.resume(PauseWhat::Uploads);
            for receipt in &late {
                settled(receipt).await;
            }
            assert_eq!(queue.quarantined().len(), 5, "over the cap, and kept");
            assert_eq!(queue.snapshot().quarantined_bytes, 5);
            assert_eq!(queue.pressure(), 100);
            let mut health = queue.watch_health();
            let full = health.wait_for(|health| *health == Health::QuarantineFull);
            tokio::time::timeout(MINUTE, full).await.unwrap().unwrap();

            let error = now(&queue, "new").unwrap_err();
            assert!(full_of_tasks(&error, 5), "{error}");
            let waits = queue.submit("new", "x", Options::default());
            let error = waits.within(MINUTE).await.unwrap_err();
            let Error::TimedOut { waiting_for, .. } = &error else {
                panic!("{error}")
            };
            assert!(full_of_tasks(waiting_for, 5), "{error}");
            queue.ready(1).now().unwrap_err();

            // Whoever waits is let in by the purge that makes room, and by none before it.
            let waiting = queue.clone();
            let waiting = spawn(async move { submit(&waiting, "new", "x").await });
            let tasks: Vec<_> = queue.quarantined().iter().map(|task| task.task).collect();
            for (purged, task) in tasks.iter().take(3).enumerate() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(!waiting.is_finished(), "{purged} purged");
                queue.purge(*task).unwrap();
            }
            let receipt = waiting.await.unwrap();
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
            assert_eq!(queue.quarantined().len(), 2);
            assert_eq!(queue.pressure(), 0);
            let well = health.wait_for(|health| *health == Health::Ok);
            tokio::time::timeout(MINUTE, well).await.unwrap().unwrap();
            queue.shutdown().await.unwrap();
        });
    });
    let told: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("the quarantine is full"))
        .collect();
    assert_eq!(told.len(), 1, "{lines:#?}");
    assert!(told[0].contains("max_quarantined_tasks"), "{told:?}");
}

/// B9: the same by bytes; after a restart the cap counts what was there before.
#[test]
fn b9_the_cap_by_bytes_holds_after_a_restart_too() {
    let lives = Lives::of(Rig::with(|config| config.max_quarantined_bytes = 100));
    refuses_bad(&lives.rig);
    lives.live(End::Clean, async |queue| {
        goes_to_quarantine(queue, "bad0", &"x".repeat(99)).await;
        let good = now(queue, "good").unwrap();
        assert!(matches!(settled(&good).await, Settlement::Uploaded(_)));
        goes_to_quarantine(queue, "bad1", "x").await;
    });
    lives.live(End::Kill, async |queue| {
        let error = now(queue, "new").unwrap_err();
        assert!(
            matches!(
                error,
                Error::QuarantineFull {
                    limit: Limit::QuarantinedBytes,
                    current: 100,
                    max: 100
                }
            ),
            "{error}"
        );
        assert_eq!(queue.quarantined().len(), 2);
    });
}

/// What was admitted under larger limits leaves quarantine under smaller ones.
#[test]
fn a_replay_of_what_is_larger_than_todays_limits_goes_up() {
    let mut lives = Lives::of(Rig::new());
    refuses_bad(&lives.rig);
    let body = "x".repeat(2 << 20);
    let task = lives.live(End::Clean, async |queue| {
        goes_to_quarantine(queue, "bad", &body).await
    });
    lives.rig.config.max_bytes = 1 << 20;
    lives.rig.remote.heal();
    lives.live(End::Clean, async |queue| {
        let receipt = queue.replay(task).within(MINUTE).await.unwrap();
        assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        assert_eq!(queue.snapshot().admitted_bytes, 0);
    });
    assert_eq!(lives.rig.remote.object("bad").unwrap().len(), body.len());
}

/// B9: a replay is the way out of a full quarantine: it is not kept out by it, nor by those who
/// wait because of it, and it lets them in.
#[test]
fn b9_a_replay_leaves_a_full_quarantine_past_those_who_wait() {
    both(async |mut rig| {
        rig.config.max_quarantined_tasks = 1;
        refuses_bad(&rig);
        let queue = rig.open().await;
        let task = goes_to_quarantine(&queue, "bad", "x").await;
        let waiting: Vec<_> = (0..3)
            .map(|n| {
                let queue = queue.clone();
                spawn(async move { submit(&queue, &format!("new{n}"), "x").await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(queue.snapshot().admission_waiters, 3);
        rig.remote.heal();
        let receipt = queue.replay(task).within(MINUTE).await.unwrap();
        assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        for waiting in waiting {
            let receipt = waiting.await.unwrap();
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        }
        queue.shutdown().await.unwrap();
    });
}

/// What is known of a task in quarantine, and of its earlier stays, survives a restart.
#[test]
fn what_is_known_of_a_quarantined_task_survives_a_restart() {
    let lives = Lives::of(Rig::new());
    let remote = &lives.rig.remote;
    let shown = |queue: &UploadQueue| {
        let [task] = &queue.quarantined()[..] else {
            panic!("{:?}", queue.quarantined())
        };
        queue.quarantined_task(task.task).unwrap()
    };
    let before = lives.live(End::Kill, async |queue| {
        let transient = RemoteError::transient("PutObject").with_message("not now");
        remote.times(2, Some(Call::Put), Some("k"), Fault::Error(transient));
        remote.once(Some(Call::Put), Some("k"), refused());
        let receipt = put(
            queue,
            "k",
            "four",
            Options {
                tag: "mine".to_owned(),
                ..Options::default()
            },
        )
        .await;
        settled(&receipt).await;
        shown(queue)
    });
    assert_eq!((before.attempts, before.crashes, before.len), (3, 0, 4));
    assert!(
        matches!(&before.cause, Cause::Refused(error) if error.code.as_deref() == Some("InvalidArgument"))
    );
    let error = before.last_error.clone().unwrap();
    assert!(error.contains("InvalidArgument"), "{error}");
    assert!(before.since_unix_ms >= 1_700_000_000_000);
    assert!(before.history.is_empty() && !before.deletes);

    lives.pass(HOUR);
    let after = lives.live(End::Kill, async |queue| shown(queue));
    assert_eq!(format!("{after:?}"), format!("{before:?}"));

    // A replay that fails again is a stay of its own.
    lives.pass(HOUR);
    let again = lives.live(End::Kill, async |queue| {
        remote.once(Some(Call::Put), Some("k"), refused());
        let receipt = queue.replay(before.task).await.unwrap();
        settled(&receipt).await;
        shown(queue)
    });
    let [past] = &again.history[..] else {
        panic!("{again:?}")
    };
    assert_eq!((past.attempts, again.attempts), (3, 1));
    assert_eq!(past.since_unix_ms, before.since_unix_ms);
    assert!(past.replayed_unix_ms >= before.since_unix_ms + 2 * 3_600_000);
    assert!(again.since_unix_ms >= past.replayed_unix_ms);
    let after = lives.live(End::Clean, async |queue| shown(queue));
    assert_eq!(format!("{after:?}"), format!("{again:?}"));

    let unknown = lives.live(End::Clean, async |queue| {
        queue.purge(before.task).unwrap();
        queue.quarantined_task(before.task).unwrap_err()
    });
    assert!(matches!(unknown, Error::NoSuchTask(_)), "{unknown}");
}

/// The history of a task is bounded.
#[test]
fn the_history_of_a_task_is_bounded() {
    paused(async {
        let rig = Rig::new();
        refuses_bad(&rig);
        let queue = rig.open().await;
        let task = goes_to_quarantine(&queue, "bad", "x").await;
        for _ in 0..20 {
            let receipt = queue.replay(task).await.unwrap();
            settled(&receipt).await;
        }
        let shown = queue.quarantined_task(task).unwrap();
        assert_eq!(shown.history.len(), 8);
        let last = shown.history.last().unwrap();
        assert!(shown.since_unix_ms >= last.replayed_unix_ms);
        queue.shutdown().await.unwrap();
    });
}

/// The body is written to a file of its own, whole or not at all; a file that exists is left as
/// it is, and so is the task.
#[test]
fn an_export_writes_the_body_beside_and_leaves_what_is_there() {
    both(async |rig| {
        refuses_bad(&rig);
        rig.fs.create_dir_all(Path::new("/out")).unwrap();
        let queue = rig.open().await;
        // In the journal, and in a file of its own.
        for (key, body) in [("bad0", "x".repeat(100)), ("bad1", "y".repeat(600_000))] {
            let task = goes_to_quarantine(&queue, key, &body).await;
            let to = format!("/out/{key}");
            let wrote = queue.export(task, &to).await.unwrap();
            let whole = Exported {
                bytes: body.len() as u64,
                intact: Some(true),
            };
            assert_eq!(wrote, whole);
            assert_eq!(rig.fs.peek(Path::new(&to)).unwrap(), body.as_bytes());

            rig.fs.poke(Path::new(&to), b"mine".to_vec());
            let error = queue.export(task, &to).await.unwrap_err();
            assert!(
                matches!(&error, Error::Directory { kind, .. } if *kind == std::io::ErrorKind::AlreadyExists),
                "{error}"
            );
            assert_eq!(rig.fs.peek(Path::new(&to)).unwrap(), b"mine");
            queue.quarantined_task(task).unwrap();
        }
        assert_eq!(rig.fs.names(Path::new("/out")).len(), 2, "nothing beside");
        let running = submit(&queue, "good", "x").await;
        settled(&running).await;
        let error = queue.export(running.task(), "/out/good").await.unwrap_err();
        assert!(matches!(error, Error::NoSuchTask(_)), "{error}");
        queue.shutdown().await.unwrap();
    });
}

/// An export that cannot be finished leaves nothing at its name, nor beside it.
#[test]
fn an_export_that_fails_leaves_nothing() {
    use s3_writeback::testing::fs;
    paused(async {
        let rig = Rig::new();
        refuses_bad(&rig);
        rig.fs.create_dir_all(Path::new("/out")).unwrap();
        let queue = rig.open().await;
        let task = goes_to_quarantine(&queue, "bad", &"z".repeat(600_000)).await;
        for call in [fs::Call::Write, fs::Call::Sync, fs::Call::Link] {
            rig.fs.fail_under(
                Path::new("/out"),
                fs::Fault {
                    call: Some(call),
                    after: 0,
                    errno: fs::EIO,
                    forever: false,
                },
            );
            let error = queue.export(task, "/out/body").await.unwrap_err();
            assert!(matches!(error, Error::Directory { .. }), "{error}");
            assert!(rig.fs.names(Path::new("/out")).is_empty(), "{call:?}");
        }
        queue.export(task, "/out/body").await.unwrap();
        queue.shutdown().await.unwrap();
    });
}

/// Nothing expires unless it was asked for; then it goes after that time, across restarts.
#[test]
fn b9_only_an_explicit_option_lets_a_quarantined_task_expire() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    for (expires, left) in [(None, 1), (Some(2 * YEAR), 1), (Some(HOUR), 0)] {
        let lives = Lives::of(Rig::with(|config| config.quarantine_expires = expires));
        refuses_bad(&lives.rig);
        lives.live(End::Kill, async |queue| {
            goes_to_quarantine(queue, "bad", "x").await;
            tokio::time::sleep(MINUTE).await;
            assert_eq!(queue.quarantined().len(), 1);
        });
        lives.pass(YEAR);
        lives.live(End::Clean, async |queue| {
            tokio::time::sleep(MINUTE).await;
            assert_eq!(queue.quarantined().len(), left, "{expires:?}");
        });
        lives.live(End::Clean, async |queue| {
            assert_eq!(queue.quarantined().len(), left, "{expires:?}");
        });
    }
}

fn generations(coalesce: bool) -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        coalesce,
        ..Options::default()
    }
}

/// B9: generation 2 is submitted while 1 is in quarantine: it waits, and whenever 1 is replayed
/// (or purged), in this life or the next, 2 is what stays in S3.
#[test]
fn b9_a_replay_never_overwrites_a_newer_generation() {
    for coalesce in [false, true] {
        for end in [End::Clean, End::Kill, End::PowerCut(3)] {
            for replays in [true, false] {
                replay_or_purge(coalesce, end, replays);
            }
        }
    }
}

fn replay_or_purge(coalesce: bool, end: End, replays: bool) {
    let lives = Lives::of(Rig::new());
    let remote = &lives.rig.remote;
    let task = lives.live(end, async |queue| {
        put(queue, "k", "zero", generations(coalesce))
            .await
            .uploaded()
            .await
            .unwrap();
        remote.once(Some(Call::Put), Some("k"), refused());
        let first = put(queue, "k", "one", generations(coalesce)).await;
        settled(&first).await;
        let second = put(queue, "k", "two", generations(coalesce)).await;
        second.durable().await.unwrap();
        tokio::time::sleep(HOUR).await;
        assert_eq!(second.settlement(), None, "the head holds its key");
        assert_eq!(remote.object("k").unwrap(), "zero");
        first.task()
    });
    // The next life looks at what is there, acts, and dies in the middle.
    lives.live(end, async |queue| {
        assert_eq!(queue.quarantined_task(task).unwrap().task, task);
        remote.always(Some(Call::Put), Some("k"), Fault::HangAfter);
        if replays {
            queue.replay(task).await.unwrap();
        } else {
            queue.purge(task).unwrap();
        }
        let before = remote.count(Call::Put, "k");
        remote
            .wait_for(|remote| remote.count(Call::Put, "k") > before)
            .await;
    });
    remote.heal();
    lives.live(End::Clean, async |queue| {
        // Whatever was cut off: its turn comes again, in the same order.
        for task in queue.pending() {
            let settlement = settled(&task.receipt).await;
            assert!(
                matches!(settlement, Settlement::Uploaded(_)),
                "{settlement:?}"
            );
        }
    });
    assert_eq!(
        remote.object("k").unwrap(),
        "two",
        "coalesce {coalesce}, {end:?}, replays {replays}"
    );
}
