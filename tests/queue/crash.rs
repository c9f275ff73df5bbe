//! What survives: crashes, copies of the directory, damage, full and failing disks.

use std::path::Path;
use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, assert_empty, both, paused, settled, spawn, submit};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{self, EIO};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Body, Cause, Error, KeyPolicy, Lane, Options, PauseWhat, Receipt, Settlement, UploadQueue,
};

const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1024 * 1024;

fn coalescing() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        coalesce: true,
        ..Options::default()
    }
}

async fn put(queue: &UploadQueue, key: &str, body: impl Into<Body>, options: Options) -> Receipt {
    queue
        .submit(key, body, options)
        .within(HOUR)
        .await
        .expect("admitted")
}

async fn all_up(queue: &UploadQueue) {
    for task in queue.pending() {
        let settlement = settled(&task.receipt).await;
        assert!(
            matches!(settlement, Settlement::Uploaded(_)),
            "{}: {settlement:?}",
            task.key
        );
    }
}

fn in_parts() -> Rig {
    Rig::with(|config| {
        config.multipart_threshold = 5 * MIB as u64;
        config.part_bytes = 5 * MIB as u64;
    })
}

fn large(seed: u8) -> Vec<u8> {
    (0..11 * MIB).map(|at| (at / 1000) as u8 ^ seed).collect()
}

/// D13: the process dies at every step of an upload in parts; after the next open the object is
/// right and nothing unfinished is left in the bucket (ocis#4968, scylla#20425).
#[test]
fn d13_a_crash_at_every_step_of_a_multipart_upload_leaves_no_upload_behind() {
    let body = large(1);
    let steps: Vec<(Call, usize)> = [
        (Call::CreateMultipart, 0),
        (Call::UploadPart, 0),
        (Call::UploadPart, 1),
        (Call::UploadPart, 2),
        (Call::CompleteMultipart, 0),
    ]
    .into();
    // Before the step has an effect, and after it.
    for (at, fault) in steps
        .iter()
        .flat_map(|step| [Fault::Hang, Fault::HangAfter].map(|fault| (*step, fault)))
    {
        for end in [
            End::Kill,
            End::PowerCut(0),
            End::PowerCut(1),
            End::PowerCut(3),
        ] {
            let lives = Lives::of(in_parts());
            let remote = &lives.rig.remote;
            let (call, nth) = at;
            lives.live(end, async |queue| {
                for _ in 0..nth {
                    remote.once(Some(call), Some("k"), Fault::Delay(Duration::ZERO));
                }
                remote.always(Some(call), Some("k"), fault.clone());
                let receipt = put(queue, "k", body.clone(), Options::default()).await;
                receipt.durable().await.unwrap();
                remote
                    .wait_for(|remote| remote.count(call, "k") > nth)
                    .await;
            });
            remote.heal();
            lives.live(End::Clean, async |queue| all_up(queue).await);
            assert_eq!(
                remote.object("k").unwrap(),
                body,
                "{at:?} {fault:?} {end:?}"
            );
            assert_eq!(remote.unfinished(), 0, "{at:?} {fault:?} {end:?}");
        }
    }
}

/// D13: an upload that was begun again, because the server lost the first one: a crash between
/// its answer and its record. The id on record is the first one's.
#[test]
fn d13_an_upload_that_was_begun_again_is_found_too() {
    let lives = Lives::of(in_parts());
    let remote = &lives.rig.remote;
    lives.live(End::Kill, async |queue| {
        let gone = RemoteError::transient("UploadPart");
        let gone = RemoteError {
            code: Some("NoSuchUpload".to_owned()),
            ..gone
        };
        remote.once(
            Some(Call::CreateMultipart),
            Some("k"),
            Fault::Delay(Duration::ZERO),
        );
        remote.once(Some(Call::UploadPart), Some("k"), Fault::Error(gone));
        remote.once(Some(Call::CreateMultipart), Some("k"), Fault::HangAfter);
        put(queue, "k", large(2), Options::default())
            .await
            .durable()
            .await
            .unwrap();
        remote
            .wait_for(|remote| remote.count(Call::CreateMultipart, "k") == 2)
            .await;
    });
    remote.heal();
    lives.live(End::Clean, async |queue| all_up(queue).await);
    assert_eq!(remote.object("k").unwrap(), large(2));
    assert_eq!(remote.unfinished(), 0);
}

/// C2, its basis: a task in flight at three crashes is quarantined, the others go up; suspects
/// run one at a time, and only who was in flight is charged (vitess#17637, vitess#19140).
#[test]
fn c2_only_the_culprit_of_a_crash_loop_is_quarantined() {
    for workers in [1, 16] {
        let lives = Lives::of(Rig::with(|config| config.workers = workers));
        let remote = &lives.rig.remote;
        // Whoever runs hangs; the process dies when the culprit does.
        remote.always(Some(Call::Put), None, Fault::Hang);
        lives.live(End::Kill, async |queue| {
            for n in 0..20 {
                submit(queue, &format!("k{n:02}"), "x")
                    .await
                    .durable()
                    .await
                    .unwrap();
            }
            let in_flight = workers.min(12);
            remote
                .wait_for(|remote| remote.in_flight().0 == in_flight)
                .await;
        });
        remote.heal();
        remote.always(Some(Call::Put), Some("k00"), Fault::Hang);
        for _boot in 2..=3 {
            let before = remote.count(Call::Put, "k00");
            lives.live(End::Kill, async |queue| {
                assert!(queue.quarantined().is_empty());
                remote
                    .wait_for(|remote| remote.count(Call::Put, "k00") > before)
                    .await;
                assert_eq!(remote.in_flight().0, 1, "a suspect runs alone");
            });
        }
        let before = remote.count(Call::Put, "k00");
        lives.live(End::Clean, async |queue| {
            let [culprit] = &queue.quarantined()[..] else {
                panic!("{:?}", queue.quarantined())
            };
            assert_eq!(culprit.key, "k00");
            assert_eq!(culprit.cause, Cause::CrashLoop { crashes: 3 });
            for task in queue.pending().into_iter().filter(|task| task.key != "k00") {
                assert!(matches!(
                    settled(&task.receipt).await,
                    Settlement::Uploaded(_)
                ));
            }
        });
        assert_eq!(remote.keys().len(), 19);
        assert_eq!(remote.count(Call::Put, "k00"), before);
        // It stays there, until somebody replays it; then it starts anew.
        remote.heal();
        lives.live(End::Kill, async |queue| {
            let task = queue.quarantined()[0].task;
            remote.once(
                Some(Call::Put),
                Some("k00"),
                Fault::Error(RemoteError::transient("x")),
            );
            remote.once(Some(Call::Put), Some("k00"), Fault::Delay(HOUR));
            let _receipt = queue.replay(task).await.unwrap();
            remote
                .wait_for(|remote| remote.count(Call::Put, "k00") == before + 2)
                .await;
        });
        lives.live(End::Clean, async |queue| all_up(queue).await);
        assert_eq!(remote.keys().len(), 20);
    }
}

/// C2: a clean shutdown charges nobody, however often, and whatever is in flight at it.
#[test]
fn c2_a_clean_shutdown_charges_nobody() {
    let lives = Lives::of(Rig::new());
    lives.rig.remote.always(Some(Call::Put), None, Fault::Hang);
    for life in 0..6 {
        lives.live(End::Clean, async |queue| {
            if life == 0 {
                submit(queue, "k", "x").await;
            }
            let remote = &lives.rig.remote;
            remote
                .wait_for(|remote| remote.count(Call::Put, "k") > life)
                .await;
            assert!(queue.quarantined().is_empty());
        });
    }
}

/// E10: generation 1 is durable, superseded by 2, and the power goes before 2 is durable: one of
/// them is there, and never neither. `drain` covers 1 and 2 supersedes it: Ok only when 2 is in S3.
#[test]
fn e10_the_earlier_generation_goes_only_when_the_later_one_is_durable() {
    for seed in 0..40 {
        let lives = Lives::of(Rig::new());
        lives.live(End::PowerCut(seed), async |queue| {
            queue.pause(PauseWhat::Uploads);
            put(queue, "k", "one", coalescing())
                .await
                .durable()
                .await
                .unwrap();
            // The disk stops syncing before generation 2 has been synced.
            lives.rig.fs.fail(fs::Fault {
                call: Some(fs::Call::Sync),
                after: 0,
                errno: EIO,
                forever: true,
            });
            let second = put(queue, "k", "two", coalescing()).await;
            let _not_durable = second.durable().within(Duration::from_secs(1)).await;
            assert!(!matches!(
                second.settlement(),
                Some(Settlement::Uploaded(_))
            ));
        });
        lives.live(End::Clean, async |queue| all_up(queue).await);
        let found = lives.rig.remote.object("k").expect("one of them is there");
        assert!(found == "one" || found == "two", "{found:?}");
    }
}

/// E10: a drain that covers generation 1 waits for the generation that has its place.
#[test]
fn e10_a_drain_that_covers_a_superseded_generation_waits_for_its_heir() {
    paused(async {
        let rig = Rig::new();
        rig.remote.always(
            Some(Call::Put),
            Some("k"),
            Fault::Delay(Duration::from_secs(5)),
        );
        let queue = rig.open().await;
        // Fills the key's turn, so that the next one waits.
        let running = put(&queue, "k", "zero", coalescing()).await;
        rig.remote
            .wait_for(|remote| remote.count(Call::Put, "k") == 1)
            .await;
        let first = put(&queue, "k", "one", coalescing()).await;
        first.durable().await.unwrap();
        let drain = queue.drain();
        let drain = spawn(async move { drain.await });
        tokio::task::yield_now().await;
        let second = put(&queue, "k", "two", coalescing()).await;
        second.durable().await.unwrap();
        settled(&running).await;
        drain.await.unwrap().unwrap();
        assert_eq!(rig.remote.object("k").unwrap(), "two");
        assert_eq!(settled(&first).await, settled(&second).await, "one outcome");
        assert_eq!(rig.remote.count(Call::Put, "k"), 2, "zero and two");
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// E10: a key that is superseded every 10 ms is uploaded again and again, and other keys are not
/// kept waiting by it.
#[test]
fn e10_a_key_superseded_every_10_ms_is_uploaded_within_the_age_bound() {
    for workers in [1, 16] {
        paused(async move {
            let rig = Rig::with(|config| config.workers = workers);
            rig.remote.always(
                Some(Call::Put),
                None,
                Fault::Delay(Duration::from_millis(50)),
            );
            let queue = rig.open().await;
            let mut oldest = 0;
            for n in 0..1000 {
                put(&queue, "hot", format!("{n}").into_bytes(), coalescing()).await;
                if n % 10 == 0 {
                    submit(&queue, &format!("cold{n}"), "x").await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                oldest = oldest.max(queue.snapshot().tasks.oldest_ms);
            }
            assert!(oldest <= 1000, "the oldest waited for {oldest} ms");
            let puts = rig.remote.count(Call::Put, "hot");
            assert!((50..=250).contains(&puts), "{puts} PUTs in 10 s");
            queue.drain().await.unwrap();
            assert_eq!(rig.remote.object("hot").unwrap(), "999");
            queue.shutdown().await.unwrap();
        });
    }
}

/// E11: an ended task never runs again, whatever segments are reclaimed and wherever the power is
/// cut.
#[test]
fn e11_an_ended_task_never_runs_again() {
    for seed in 0..30 {
        let lives = Lives::of(Rig::with(|config| {
            config.segment_bytes = if seed % 2 == 0 { 4096 } else { 16384 }
        }));
        let remote = &lives.rig.remote;
        let told = lives.live(End::PowerCut(seed), async |queue| {
            let mut told = Vec::new();
            for n in 0..(40 + seed) {
                let key = format!("k{n}");
                let receipt = submit(queue, &key, &"x".repeat(200)).await;
                if n % 7 == 3 {
                    receipt.durable().await.unwrap();
                } else {
                    assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
                    told.push(key);
                }
            }
            told
        });
        let puts = |key: &str| {
            remote
                .seen()
                .iter()
                .filter(|seen| seen.call == Call::Put && seen.key == key)
                .count()
        };
        for end in [End::PowerCut(seed + 1000), End::Clean] {
            lives.live(end, async |queue| {
                for task in queue.pending() {
                    assert!(
                        !told.contains(&task.key),
                        "{} was told as uploaded",
                        task.key
                    );
                }
                all_up(queue).await;
            });
        }
        for key in &told {
            assert_eq!(puts(key), 1, "{key}");
        }
        assert_eq!(remote.keys().len() as u64, 40 + seed);
    }
}

/// E12: a payload that is itself a journal segment: no frame in it runs, and no loss is reported.
#[test]
fn e12_a_payload_that_is_a_journal_segment_is_only_a_payload() {
    let donor = Lives::of(Rig::new());
    donor.rig.remote.always(None, None, Fault::Hang);
    donor.live(End::Kill, async |queue| {
        for n in 0..5 {
            submit(queue, &format!("foreign{n}"), "not ours")
                .await
                .durable()
                .await
                .unwrap();
        }
    });
    let segments: Vec<_> = donor
        .rig
        .fs
        .names(Path::new("/q"))
        .into_iter()
        .filter_map(|path| donor.rig.fs.peek(&path))
        .filter(|bytes| bytes.len() >= 1024)
        .collect();
    assert!(!segments.is_empty());
    for segment in segments {
        // In the record itself, and in a file of its own.
        for inline in [64 * 1024, 0] {
            for seed in 0..6 {
                let lives = Lives::of(Rig::with(|config| {
                    config.segment_bytes = 1 << 20;
                    config.inline_bytes = inline;
                }));
                lives.rig.remote.always(Some(Call::Put), None, Fault::Hang);
                let body = segment[..segment.len().min(48 * 1024)].to_vec();
                lives.live(End::PowerCut(seed), async |queue| {
                    for key in ["a", "b"] {
                        let receipt = put(queue, key, body.clone(), Options::default()).await;
                        receipt.durable().await.unwrap();
                    }
                });
                lives.rig.remote.heal();
                lives.live(End::Clean, async |queue| {
                    assert!(queue.damage().is_empty(), "{:?}", queue.damage());
                    assert_eq!(queue.pending().len(), 2);
                    all_up(queue).await;
                });
                assert_eq!(lives.rig.remote.keys(), ["a", "b"]);
                assert_eq!(lives.rig.remote.object("a").unwrap(), body);
            }
        }
    }
}

/// E12: the frame around such a payload is damaged, so that reading goes on inside the payload:
/// the loss is reported, and nothing in the payload is taken for a record.
#[test]
fn e12_a_damaged_frame_around_a_journal_segment_lets_nothing_of_it_run() {
    let donor = Lives::of(Rig::new());
    donor.rig.remote.always(None, None, Fault::Hang);
    donor.live(End::Kill, async |queue| {
        for n in 0..40 {
            submit(queue, &format!("foreign{n}"), "not ours")
                .await
                .durable()
                .await
                .unwrap();
        }
    });
    let holds = |rig: &Rig, what: &[u8]| {
        let names = rig.fs.names(Path::new("/q")).into_iter();
        let found = names.filter_map(|path| Some((rig.fs.peek(&path)?, path)));
        let found = found.map(|(bytes, path)| {
            let at = bytes.windows(what.len()).position(|window| window == what);
            (at, bytes, path)
        });
        found
            .into_iter()
            .find_map(|(at, bytes, path)| Some((at?, bytes, path)))
            .expect("held")
    };
    let (_, segment, _) = holds(&donor.rig, b"foreign0");
    // One of these puts its frames where frames may stand.
    for shift in 0..16 {
        let lives = Lives::of(Rig::with(|config| {
            config.segment_bytes = 1 << 20;
            config.inline_bytes = 64 * 1024;
        }));
        lives.rig.remote.always(Some(Call::Put), None, Fault::Hang);
        let body = segment[shift..32 * 1024].to_vec();
        lives.live(End::Kill, async |queue| {
            for (key, body) in [
                ("first", b"1".to_vec()),
                ("outer", body),
                ("last", b"3".to_vec()),
            ] {
                let receipt = put(queue, key, body, Options::default()).await;
                receipt.durable().await.unwrap();
            }
        });
        lives.rig.remote.heal();
        let (at, mut bytes, path) = holds(&lives.rig, b"outer");
        // Its header, which comes before the key: how long the frame is, is not known any more.
        bytes[at - 10] ^= 0xff;
        lives.rig.fs.poke(&path, bytes);
        lives.live(End::Clean, async |queue| {
            assert_eq!(queue.damage().len(), 1, "{:?}", queue.damage());
            let keys: Vec<_> = queue.pending().into_iter().map(|task| task.key).collect();
            assert_eq!(keys, ["first", "last"], "{shift}");
            all_up(queue).await;
        });
        assert_eq!(lives.rig.remote.keys(), ["first", "last"]);
    }
}

/// E24: the directory is copied while stopped and both copies are opened: the copy is moved, and
/// sends nothing until it is adopted.
#[test]
fn e24_a_copy_of_the_directory_sends_nothing_until_it_is_adopted() {
    both(async |rig| {
        rig.remote.always(None, None, Fault::Hang);
        let queue = rig.open().await;
        submit(&queue, "k", "x").await;
        queue
            .shutdown()
            .within(Duration::from_secs(1))
            .await
            .unwrap();
        drop(queue);
        rig.remote.heal();
        let copy = Rig {
            fs: rig.fs.copy_of(),
            ..Rig::with(|_| ())
        };
        let copied = copy.open().await;
        assert!(copied.is_moved());
        tokio::time::sleep(HOUR).await;
        assert_eq!(copy.remote.seen(), []);
        assert!(matches!(copied.drain().await, Err(Error::Paused(_))));
        // A life of being moved does not make it ours.
        let report = copied
            .shutdown()
            .within(Duration::from_secs(10))
            .await
            .unwrap();
        assert!(report.took < Duration::from_secs(1), "{report:?}");
        drop(copied);
        let copied = copy.open().await;
        assert!(copied.is_moved());
        tokio::time::sleep(HOUR).await;
        assert_eq!(copy.remote.seen(), []);
        // The original goes on.
        let original = rig.open().await;
        assert!(!original.is_moved());
        original.drain().await.unwrap();
        assert_eq!(rig.remote.object("k").unwrap(), "x");
        original.shutdown().await.unwrap();
        copied.adopt().await.unwrap();
        assert!(!copied.is_moved());
        copied.drain().await.unwrap();
        assert_eq!(copy.remote.object("k").unwrap(), "x");
        copied.shutdown().await.unwrap();
        drop(copied);
        assert!(!copy.open().await.is_moved(), "adopted for good");
    });
}

/// Lanes, tags, `after` and conditions hold across a restart: nothing starts before what it is
/// after, and what was superseded is waited for by its heir's name.
#[test]
fn after_holds_across_a_crash_also_behind_a_superseded_task() {
    for end in [End::Clean, End::Kill, End::PowerCut(3)] {
        let lives = Lives::of(Rig::new());
        let remote = &lives.rig.remote;
        remote.always(None, None, Fault::Hang);
        lives.live(end, async |queue| {
            queue.pause(PauseWhat::Uploads);
            let first = put(queue, "k", "one", coalescing()).await;
            first.durable().await.unwrap();
            put(queue, "k", "two", coalescing())
                .await
                .durable()
                .await
                .unwrap();
            let manifest = Options {
                after: vec![first],
                lane: Some(Lane::Checkpoint),
                tag: "manifest".to_owned(),
                ..Options::default()
            };
            put(queue, "manifest", "m", manifest)
                .await
                .durable()
                .await
                .unwrap();
            queue.resume(PauseWhat::Uploads);
        });
        remote.heal();
        remote.always(
            Some(Call::Put),
            Some("k"),
            Fault::Delay(Duration::from_secs(5)),
        );
        lives.live(End::Clean, async |queue| {
            let pending = queue.pending();
            let [k, manifest] = &pending[..] else {
                panic!("{pending:?}")
            };
            assert_eq!((k.lane, k.key.as_str()), (Lane::Foreground, "k"));
            assert_eq!(
                (manifest.lane, manifest.tag.as_str()),
                (Lane::Checkpoint, "manifest")
            );
            remote
                .wait_for(|remote| remote.object("manifest").is_some())
                .await;
            assert_eq!(
                remote.object("k").unwrap(),
                "two",
                "in S3 before the manifest"
            );
        });
    }
}

/// C7: the last segment is truncated at many places: the queue opens, what was acknowledged
/// before is there or reported, and nothing else runs.
#[test]
fn c7_c8_truncation_and_damage_are_survived_and_damage_is_reported() {
    let donor = Lives::of(Rig::new());
    donor.rig.remote.always(None, None, Fault::Hang);
    donor.live(End::Kill, async |queue| {
        for n in 0..20 {
            submit(queue, &format!("k{n:02}"), &"y".repeat(300))
                .await
                .durable()
                .await
                .unwrap();
        }
    });
    let segment = donor
        .rig
        .fs
        .names(Path::new("/q"))
        .into_iter()
        .find(|path| {
            let bytes = donor.rig.fs.peek(path).unwrap_or_default();
            bytes.windows(3).any(|window| window == b"k19")
        })
        .expect("the segment");
    let bytes = donor.rig.fs.peek(&segment).unwrap();
    let used = bytes
        .windows(3)
        .rposition(|window| window == b"yyy")
        .unwrap();
    let mut reports = 0;
    // A flipped byte in the middle: all but one are there, and the loss is reported.
    for at in (used / 4..used / 2).step_by(97) {
        let lives = Lives::of(Rig {
            fs: donor.rig.fs.copy_of(),
            ..Rig::new()
        });
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        lives.rig.fs.poke(&segment, damaged);
        let reported = lives.live(End::Clean, async |queue| {
            queue.adopt().await.unwrap();
            all_up(queue).await;
            queue.damage().to_vec()
        });
        let there = lives
            .rig
            .remote
            .keys()
            .iter()
            .filter(|key| key.starts_with('k'))
            .count();
        assert!(
            there >= 19 && (there == 20 || reported.len() == 1),
            "{at}: {there} {reported:?}"
        );
        for damage in &reported {
            assert!(damage.kept.is_some(), "the raw bytes are kept: {damage:?}");
        }
        // A byte between two frames is nobody's.
        reports += reported.len();
    }
    assert!(reports >= 10, "{reports}");
    // Truncated: a prefix is there.
    for at in (used - 700..used).step_by(53) {
        let lives = Lives::of(Rig {
            fs: donor.rig.fs.copy_of(),
            ..Rig::new()
        });
        lives.rig.fs.poke(&segment, bytes[..at].to_vec());
        lives.live(End::Clean, async |queue| {
            queue.adopt().await.unwrap();
            all_up(queue).await;
        });
        let there = lives
            .rig
            .remote
            .keys()
            .iter()
            .filter(|key| key.starts_with('k'))
            .count();
        assert!((17..20).contains(&there), "{at}: {there}");
    }
}

/// C9: the disk is full, then has room: nothing is acknowledged meanwhile that is not durable,
/// uploads and their ends go on, and admission resumes without a restart.
#[test]
fn c9_a_full_disk_holds_new_tasks_back_and_resumes_without_a_restart() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        rig.remote
            .always(Some(Call::Put), None, Fault::Delay(Duration::from_secs(5)));
        let mut waiting = Vec::new();
        rig.fs.set_capacity(Some(rig.fs.used() + 512 * 1024));
        let mut full = None;
        for n in 0..2000 {
            let submitted = queue.submit(
                format!("k{n}"),
                "x".repeat(1000).into_bytes(),
                Options::default(),
            );
            match submitted.now() {
                Ok(receipt) => waiting.push(receipt),
                Err(error) => {
                    full = Some(error);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(matches!(full, Some(Error::DiskFull { .. })), "{full:?}");
        assert!(queue.snapshot().tasks.disk_full);
        let durable: Vec<_> = waiting
            .iter()
            .filter(|receipt| receipt.durable().now().is_ok())
            .cloned()
            .collect();
        assert!(
            !durable.is_empty() && durable.len() < waiting.len(),
            "{}",
            durable.len()
        );
        // What is durable goes up and is acknowledged with the disk still full.
        for receipt in &durable {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        rig.fs.set_capacity(None);
        for receipt in &waiting {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        let more = submit(&queue, "more", "x").await;
        more.durable().await.unwrap();
        assert!(!queue.snapshot().tasks.disk_full);
        queue.shutdown().within(HOUR).await.unwrap();
        assert_empty(&queue);
    });
}

/// C10: an fsync fails, once or for ever. Who was told durable finds it after a power cut; who
/// was refused does not; a receipt never says durable for what is not (fsyncgate).
#[test]
fn c10_a_failing_fsync_is_never_a_false_durable() {
    for forever in [false, true] {
        for seed in 0..24 {
            let lives = Lives::of(Rig::new());
            let remote = &lives.rig.remote;
            remote.always(None, None, Fault::Hang);
            let (durable, refused) = lives.live(End::PowerCut(seed), async |queue| {
                lives.rig.fs.fail(fs::Fault {
                    call: Some(fs::Call::Sync),
                    after: seed % 6,
                    errno: EIO,
                    forever,
                });
                let (mut durable, mut refused) = (Vec::new(), Vec::new());
                for n in 0..12 {
                    let key = format!("k{n}");
                    // Some bodies have a file of their own.
                    let body = vec![b'z'; if n % 3 == 0 { 8192 } else { 100 }];
                    let submitted = queue.submit(key.clone(), body, Options::default());
                    let Ok(receipt) = submitted.within(Duration::from_secs(1)).await else {
                        continue;
                    };
                    match receipt.durable().within(Duration::from_secs(5)).await {
                        Ok(()) => durable.push(key),
                        Err(Error::NotUploaded { settlement, .. }) => match *settlement {
                            Settlement::Refused(_) => refused.push(key),
                            Settlement::Undetermined(_) => (),
                            other => panic!("{key}: {other:?}"),
                        },
                        // It is not known to be anything, and nobody says so.
                        Err(Error::TimedOut { .. }) => assert!(forever, "{key}"),
                        Err(error) => panic!("{key}: {error}"),
                    }
                }
                if forever {
                    let counts = queue.snapshot().tasks;
                    assert!(
                        counts.journal_failed.is_some() || counts.disk_full,
                        "{counts:?}"
                    );
                } else {
                    assert!(durable.len() >= 11, "{durable:?}");
                }
                (durable, refused)
            });
            remote.heal();
            lives.live(End::Clean, async |queue| {
                let pending: Vec<_> = queue.pending().into_iter().map(|task| task.key).collect();
                for key in &durable {
                    assert!(pending.contains(key), "{key} was durable: {pending:?}");
                }
                for key in &refused {
                    assert!(!pending.contains(key), "{key} was refused: {pending:?}");
                }
                assert!(queue.damage().is_empty(), "{:?}", queue.damage());
                all_up(queue).await;
            });
        }
    }
}

/// A body that the disk refuses takes what is after it along: it is told, on record, and does not
/// run after a restart either.
#[test]
fn what_is_after_a_refused_body_is_quarantined_on_record() {
    let lives = Lives::of(Rig::new());
    let remote = &lives.rig.remote;
    lives.live(End::Kill, async |queue| {
        lives.rig.fs.fail(fs::Fault {
            call: Some(fs::Call::Rename),
            after: 0,
            errno: EIO,
            forever: false,
        });
        let body = queue.submit("sst", vec![b'z'; 8192], Options::default());
        let sst = body.now().unwrap();
        let after = Options {
            after: vec![sst.clone()],
            ..Options::default()
        };
        let manifest = queue.submit("manifest", "m", after).now().unwrap();
        assert!(matches!(settled(&sst).await, Settlement::Refused(_)));
        assert_eq!(
            settled(&manifest).await,
            Settlement::Quarantined(Cause::Dependency(sst.task()))
        );
        manifest.durable().await.unwrap();
        submit(queue, "later", "x").await.durable().await.unwrap();
    });
    lives.live(End::Clean, async |queue| {
        assert_eq!(queue.quarantined().len(), 1);
        tokio::time::sleep(HOUR).await;
        assert_eq!(remote.count(Call::Put, "manifest"), 0);
    });
}
