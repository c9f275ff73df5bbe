//! One key: its own past, other writers, equal and other bytes, conditions, and servers that lie.

use std::sync::Arc;
use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, assert_empty, both, paused, settled, submit};
use s3_writeback::remote::{RemoteError, WriteCondition};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Cause, Condition, Error, KeyPolicy, Options, PauseWhat, Receipt, Settlement, UploadQueue,
};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
const LIFETIME: Duration = Duration::from_secs(20 * 60);

fn rewritable() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    }
}

fn lost(operation: &str) -> Fault {
    Fault::LostReply(RemoteError::lost(operation))
}

async fn put(queue: &UploadQueue, key: &str, body: &str, options: Options) -> Receipt {
    let submitted = queue.submit(key, body.as_bytes().to_vec(), options);
    submitted.within(HOUR).await.expect("admitted")
}

/// Puts and waits until it is in S3.
async fn up(queue: &UploadQueue, key: &str, body: &str, options: Options) {
    let settlement = settled(&put(queue, key, body, options).await).await;
    assert!(
        matches!(settlement, Settlement::Uploaded(_)),
        "{body}: {settlement:?}"
    );
}

async fn deleted(queue: &UploadQueue, key: &str) {
    let receipt = queue
        .delete(key, Options::default())
        .within(HOUR)
        .await
        .expect("admitted");
    assert_eq!(settled(&receipt).await, Settlement::Deleted);
}

/// Takes a task back as soon as it is not in flight.
async fn cancel(queue: &UploadQueue, receipt: &Receipt) {
    while let Err(error) = queue.cancel(receipt.task()) {
        assert!(matches!(error, Error::WrongState { .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// D4: cancelled at every point of a PUT, a receipt says `Uploaded` only after a success
/// (redpanda#10107, slatedb#1391).
#[test]
fn d4_cut_at_every_point_of_a_put_it_is_deferred_and_right_after_the_next_open() {
    let faults: [fn() -> Fault; 6] = [
        || Fault::Hang,
        || Fault::HangAfter,
        || Fault::Late,
        || Fault::Delay(HOUR),
        || lost("PutObject"),
        || Fault::Error(RemoteError::lost("PutObject")),
    ];
    for fault in faults {
        both(async move |rig| {
            let fault = fault();
            rig.remote.always(Some(Call::Put), Some("k"), fault.clone());
            if matches!(fault, Fault::LostReply(_)) {
                // Nobody can ask what became of it.
                rig.remote.always(Some(Call::Head), Some("k"), Fault::Hang);
            }
            let queue = rig.open().await;
            let receipt = submit(&queue, "k", "body").await;
            rig.remote
                .wait_for(|remote| remote.count(Call::Put, "k") > 0)
                .await;
            assert_eq!(receipt.settlement(), None, "{fault:?}");
            let report = queue
                .shutdown()
                .within(Duration::from_secs(1))
                .await
                .unwrap();
            assert!(
                report.sealed && report.took <= Duration::from_millis(1100),
                "{report:?}"
            );
            assert_eq!(settled(&receipt).await, Settlement::Deferred, "{fault:?}");
            assert_empty(&queue);
            drop(queue);
            rig.remote.heal();
            let queue = rig.open().await;
            let pending = queue.pending();
            assert!(matches!(
                settled(&pending[0].receipt).await,
                Settlement::Uploaded(_)
            ));
            rig.remote.land_late();
            assert_eq!(rig.remote.object("k").unwrap(), "body");
            queue.shutdown().await.unwrap();
        });
    }
}

/// D4: a 200 whose checksum is not ours is no success. Where the object is right after all, that
/// is found out; where it is not, nobody is told that it is.
#[test]
fn d4_a_reply_whose_checksum_is_not_ours_is_not_believed() {
    for (corrupt, options) in [
        (false, Options::default()),
        (true, Options::default()),
        (true, rewritable()),
    ] {
        paused(async move {
            let rig = Rig::new();
            let liar = crate::liar::Liar::new(rig.remote.clone(), "k", corrupt);
            let queue = rig.open_on(Arc::new(liar)).await;
            let rewrites = options.policy == KeyPolicy::Rewritable;
            let settlement = settled(&put(&queue, "k", "body", options).await).await;
            if corrupt && !rewrites {
                assert_eq!(settlement, Settlement::PreconditionFailed);
                assert_ne!(rig.remote.object("k").unwrap(), "body");
            } else {
                assert!(
                    matches!(settlement, Settlement::Uploaded(_)),
                    "{settlement:?}"
                );
                assert_eq!(rig.remote.object("k").unwrap(), "body");
            }
            queue.shutdown().await.unwrap();
        });
    }
}

/// D5: a conditional PUT was committed and its reply lost; the retry's 412 is our own success
/// (slatedb#766, hudi#14373).
#[test]
fn d5_our_own_412_is_recognised_on_named_keys() {
    for options in [
        Options::default(),
        rewritable(),
        Options {
            condition: Some(Condition::IfAbsent { same_is_ok: false }),
            ..Options::default()
        },
    ] {
        both(async move |rig| {
            let queue = rig.open().await;
            rig.remote
                .once(Some(Call::Put), Some("k"), lost("PutObject"));
            up(&queue, "k", "mine", options.clone()).await;
            assert_eq!(rig.remote.object("k").unwrap(), "mine");
            // Foreign bytes are not: also where a PUT of ours may have been there.
            rig.remote.plant("other", "theirs");
            rig.remote
                .once(Some(Call::Put), Some("other"), lost("PutObject"));
            let settlement = settled(&put(&queue, "other", "mine", options.clone()).await).await;
            match options.policy {
                KeyPolicy::WriteOnce => assert_eq!(settlement, Settlement::PreconditionFailed),
                KeyPolicy::Rewritable => {
                    assert!(
                        matches!(settlement, Settlement::Uploaded(_)),
                        "{settlement:?}"
                    );
                }
            }
            queue.shutdown().await.unwrap();
        });
    }
}

/// D6: delete then upload of one key, the delete late: the upload survives. PUT 1 late after
/// PUT 2: PUT 2 is what is read (neon#9844, neon#10283, juicefs#3143). E9 in one life.
#[test]
fn d6_e9_a_late_delete_or_put_changes_nothing_that_came_after_it() {
    both(async |rig| {
        let queue = rig.open().await;
        up(&queue, "k", "zero", rewritable()).await;
        rig.remote.once(Some(Call::Delete), Some("k"), Fault::Late);
        deleted(&queue, "k").await;
        up(&queue, "k", "one", rewritable()).await;
        assert_eq!(rig.remote.land_late(), [false]);
        assert_eq!(rig.remote.object("k").unwrap(), "one");
        rig.remote.once(Some(Call::Put), Some("k"), Fault::Late);
        up(&queue, "k", "two", rewritable()).await;
        up(&queue, "k", "three", rewritable()).await;
        assert_eq!(rig.remote.land_late(), [false]);
        assert_eq!(rig.remote.object("k").unwrap(), "three");
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// D6, E33: the late delete needs the very bytes that are uploaded again: the upload waits until
/// the delete's signature has expired.
#[test]
fn d6_equal_bytes_after_a_late_delete_wait_for_its_signature() {
    both(async |rig| {
        let queue = rig.open().await;
        up(&queue, "k", "same", rewritable()).await;
        rig.remote.once(Some(Call::Delete), Some("k"), Fault::Late);
        let sent = Instant::now();
        deleted(&queue, "k").await;
        let again = put(&queue, "k", "same", rewritable()).await;
        tokio::time::sleep(LIFETIME - Duration::from_secs(60)).await;
        assert_eq!(
            rig.remote.land_late(),
            [false],
            "there is nothing that it could delete"
        );
        assert!(matches!(settled(&again).await, Settlement::Uploaded(_)));
        assert!(sent.elapsed() >= LIFETIME, "{:?}", sent.elapsed());
        assert_eq!(rig.remote.object("k").unwrap(), "same");
        queue.shutdown().await.unwrap();
    });
}

/// E9 across a crash: generation 1 is still queued at the server when the process dies;
/// generation 2 is acknowledged by the next one; generation 1 executes.
#[test]
fn e9_a_put_or_delete_of_an_earlier_life_that_lands_late_loses() {
    for end in [
        End::Kill,
        End::PowerCut(0),
        End::PowerCut(1),
        End::PowerCut(2),
        End::PowerCut(3),
    ] {
        for delete in [false, true] {
            let lives = Lives::of(Rig::new());
            let remote = &lives.rig.remote;
            lives.live(end, async |queue| {
                up(queue, "k", "zero", rewritable()).await;
                let receipt = if delete {
                    remote.always(Some(Call::Delete), Some("k"), Fault::Late);
                    queue.delete("k", Options::default()).await.unwrap()
                } else {
                    remote.always(Some(Call::Put), Some("k"), Fault::Late);
                    put(queue, "k", "one", rewritable()).await
                };
                receipt.durable().await.unwrap();
                let call = if delete { Call::Delete } else { Call::Put };
                let most = if delete { 1 } else { 2 };
                remote
                    .wait_for(|remote| remote.count(call, "k") == most)
                    .await;
            });
            remote.heal();
            lives.live(End::Clean, async |queue| {
                up(queue, "k", "two", rewritable()).await;
                assert_eq!(remote.land_late(), [false], "{end:?}");
                assert_eq!(remote.object("k").unwrap(), "two");
            });
        }
    }
}

/// E33, first half: k = a; PUT b is Unknown; PUT c; PUT a again (an equal entity tag); b lands
/// late. The second PUT of a waits until b's signature has expired, and no longer.
#[test]
fn e33_a_state_that_can_come_back_waits_for_the_signature_of_who_needs_it() {
    both(async |rig| {
        let queue = rig.open().await;
        up(&queue, "k", "a", rewritable()).await;
        rig.remote.once(Some(Call::Put), Some("k"), Fault::Late);
        let sent = Instant::now();
        up(&queue, "k", "b", rewritable()).await;
        up(&queue, "k", "c", rewritable()).await;
        assert!(
            sent.elapsed() < Duration::from_secs(60),
            "nothing else waits"
        );
        let again = put(&queue, "k", "a", rewritable()).await;
        if rig.config.max_tasks > 1 {
            let elsewhere = Instant::now();
            up(&queue, "other", "a", rewritable()).await;
            assert!(
                elsewhere.elapsed() < Duration::from_secs(1),
                "other keys do not wait"
            );
        }
        tokio::time::sleep(LIFETIME - Duration::from_secs(60)).await;
        assert_eq!(rig.remote.land_late(), [false]);
        assert!(matches!(settled(&again).await, Settlement::Uploaded(_)));
        let waited = sent.elapsed();
        assert!(
            waited >= LIFETIME && waited < LIFETIME + Duration::from_secs(60),
            "{waited:?}"
        );
        assert_eq!(rig.remote.object("k").unwrap(), "a");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            queue.snapshot().outstanding,
            0,
            "forgotten once it has expired"
        );
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// E33 across a crash: b is on the wire when the process dies, by `kill -9` or by a power cut.
#[test]
fn e33_what_a_dead_process_had_on_the_wire_is_waited_for() {
    let ends = (0..12).map(End::PowerCut).chain([End::Kill]);
    for end in ends {
        let lives = Lives::of(Rig::new());
        let remote = &lives.rig.remote;
        lives.live(end, async |queue| {
            up(queue, "k", "a", rewritable()).await;
            remote.once(Some(Call::Put), Some("k"), Fault::Late);
            let b = put(queue, "k", "b", rewritable()).await;
            b.durable().await.unwrap();
            remote
                .wait_for(|remote| remote.count(Call::Put, "k") == 2)
                .await;
        });
        lives.pass(Duration::from_secs(60));
        // Another crash, with b done and over.
        lives.live(end, async |queue| {
            for task in queue.pending() {
                assert!(matches!(
                    settled(&task.receipt).await,
                    Settlement::Uploaded(_)
                ));
            }
            up(queue, "k", "c", rewritable()).await;
            let again = put(queue, "k", "a", rewritable()).await;
            again.durable().await.unwrap();
        });
        lives.live(End::Clean, async |queue| {
            let born = Instant::now();
            let [again] = &queue.pending()[..] else {
                panic!("one is owed")
            };
            tokio::time::sleep(LIFETIME - Duration::from_secs(120)).await;
            assert_eq!(
                remote.land_late(),
                [false],
                "{end:?}: {:?}",
                remote.object("k")
            );
            assert!(matches!(
                settled(&again.receipt).await,
                Settlement::Uploaded(_)
            ));
            assert!(
                born.elapsed() >= LIFETIME - Duration::from_secs(90),
                "{end:?}"
            );
            assert_eq!(remote.object("k").unwrap(), "a", "{end:?}");
        });
    }
}

/// E33, second half: PUT-if-absent is Unknown; DELETE sees 404; the PUT lands. The DELETE says
/// `Deleted` only when that cannot happen any more. In one life, and across a crash.
#[test]
fn e33_a_delete_waits_for_a_put_that_may_still_make_the_object() {
    for end in [End::Clean, End::Kill, End::PowerCut(0), End::PowerCut(5)] {
        let lives = Lives::of(Rig::new());
        let remote = &lives.rig.remote;
        let end_it = async |queue: &UploadQueue, early: Duration| {
            let receipt = queue.delete("k", Options::default()).await.unwrap();
            tokio::time::sleep(early).await;
            assert_eq!(receipt.settlement(), None, "a write may still land");
            assert_eq!(remote.land_late(), [true]);
            assert_eq!(settled(&receipt).await, Settlement::Deleted);
            assert_eq!(remote.object("k"), None, "{end:?}");
        };
        lives.live(end, async |queue| {
            remote.once(Some(Call::Put), Some("k"), Fault::Late);
            remote.always(
                Some(Call::Put),
                Some("k"),
                Fault::Error(RemoteError::transient("PutObject")),
            );
            let receipt = submit(queue, "k", "x").await;
            remote
                .wait_for(|remote| remote.count(Call::Put, "k") >= 3)
                .await;
            cancel(queue, &receipt).await;
            assert_eq!(settled(&receipt).await, Settlement::Cancelled);
            remote.heal();
            if let End::Clean = end {
                end_it(queue, LIFETIME - Duration::from_secs(60)).await;
            }
        });
        if !matches!(end, End::Clean) {
            lives.live(End::Clean, async |queue| {
                end_it(queue, LIFETIME - Duration::from_secs(60)).await;
            });
        }
    }
}

/// E33: the code that made a request panicked, and its task was thrown away: what it had on the
/// wire is waited for like any other.
#[test]
fn e33_a_request_whose_code_panicked_may_still_land() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        rig.remote
            .once(Some(Call::Put), Some("k"), Fault::Panic("mid-request"));
        let receipt = submit(&queue, "k", "x").await;
        let settlement = settled(&receipt).await;
        assert!(matches!(
            settlement,
            Settlement::Quarantined(Cause::Panicked(_))
        ));
        queue.purge(receipt.task()).unwrap();
        let begun = Instant::now();
        deleted(&queue, "k").await;
        assert!(begun.elapsed() >= LIFETIME, "{:?}", begun.elapsed());
        queue.shutdown().await.unwrap();
    });
}

/// E26: a caller's `IfAbsent` meets an existing object: an outcome; with `same_is_ok` and equal
/// bytes, `Uploaded`.
#[test]
fn e26_a_callers_condition_that_fails_is_an_outcome() {
    both(async |rig| {
        let queue = rig.open().await;
        rig.remote.plant("k", "there");
        let absent = |same_is_ok| Options {
            condition: Some(Condition::IfAbsent { same_is_ok }),
            ..Options::default()
        };
        for (body, same_is_ok, uploaded) in [
            ("mine", false, false),
            ("there", false, false),
            ("mine", true, false),
            ("there", true, true),
        ] {
            let settlement = settled(&put(&queue, "k", body, absent(same_is_ok)).await).await;
            assert_eq!(
                matches!(settlement, Settlement::Uploaded(_)),
                uploaded,
                "{settlement:?}"
            );
            if !uploaded {
                assert_eq!(settlement, Settlement::PreconditionFailed);
            }
            assert_eq!(rig.remote.object("k").unwrap(), "there");
        }
        // IfMatch: the right tag wins once, a stale one loses.
        up(&queue, "new", "1", absent(false)).await;
        let Settlement::Uploaded(info) =
            settled(&put(&queue, "tag", "1", Options::default()).await).await
        else {
            panic!("uploaded")
        };
        let matching = Options {
            condition: Some(Condition::IfMatch(info.etag.clone())),
            ..Options::default()
        };
        up(&queue, "tag", "2", matching.clone()).await;
        let stale = settled(&put(&queue, "tag", "3", matching.clone()).await).await;
        assert_eq!(stale, Settlement::PreconditionFailed);
        let stale = queue.delete("tag", matching).within(HOUR).await.unwrap();
        assert_eq!(settled(&stale).await, Settlement::PreconditionFailed);
        assert_eq!(rig.remote.object("tag").unwrap(), "2");
        assert!(queue.quarantined().is_empty());
        queue.shutdown().await.unwrap();
    });
}

/// Rewritable keys rely on conditions: where the server ignores them, they are refused, and no
/// byte of theirs is sent.
#[test]
fn a_rewritable_key_is_not_sent_to_a_server_that_ignores_conditions() {
    both(async |rig| {
        rig.remote.ignore_conditions(true);
        let queue = rig.open().await;
        let settlement = settled(&put(&queue, "k", "x", rewritable()).await).await;
        assert_eq!(
            settlement,
            Settlement::Quarantined(Cause::ConditionsUnsupported)
        );
        assert_eq!(rig.remote.count(Call::Put, "k"), 0);
        // Now it is known: nothing more of the kind is taken.
        for refused in [
            queue.delete("d", rewritable()).within(HOUR).await,
            queue.submit("e", "x", rewritable()).within(HOUR).await,
        ] {
            assert!(
                matches!(refused, Err(Error::ConditionsUnsupported(_))),
                "{refused:?}"
            );
        }
        // Write-once keys do not need them.
        up(&queue, "once", "x", Options::default()).await;
        assert!(queue.snapshot().capabilities.is_some());
        queue.shutdown().await.unwrap();
    });
}

/// Some servers look at the conditions of a PUT, and not at those of a completion of parts.
#[test]
fn a_rewritable_key_goes_up_in_parts_only_where_completions_heed_conditions() {
    both(async |mut rig| {
        rig.config.multipart_threshold = 5 << 20;
        rig.remote.complete_always(true);
        let queue = rig.open().await;
        let large = "x".repeat(6 << 20);
        up(&queue, "small", "x", rewritable()).await;
        let settlement = settled(&put(&queue, "large", &large, rewritable()).await).await;
        assert_eq!(
            settlement,
            Settlement::Quarantined(Cause::ConditionsUnsupported)
        );
        assert_eq!(rig.remote.count(Call::CreateMultipart, "large"), 0);
        // Smaller ones go on, and so does what needs no condition of its own.
        up(&queue, "small", "y", rewritable()).await;
        up(&queue, "once", &large, Options::default()).await;
        let seen = queue.snapshot().capabilities.expect("were asked for");
        assert!(!seen.conditional_complete.is_honoured(), "{seen:?}");
        assert!(seen.can_fence(), "`head` is no upload in parts");
        queue.shutdown().await.unwrap();
        assert_eq!(rig.remote.unfinished(), 0);
    });
}

/// A foreign object at a rewritable key that we have written is not overwritten.
#[test]
fn a_foreign_write_to_a_rewritable_key_is_kept_and_named() {
    both(async |rig| {
        let queue = rig.open().await;
        up(&queue, "k", "one", rewritable()).await;
        rig.remote.plant("k", "theirs");
        let settlement = settled(&put(&queue, "k", "two", rewritable()).await).await;
        assert!(
            matches!(
                settlement,
                Settlement::Quarantined(Cause::ForeignWrite { found: Some(_) })
            ),
            "{settlement:?}"
        );
        assert_eq!(rig.remote.object("k").unwrap(), "theirs");
        queue.shutdown().await.unwrap();
    });
}

/// B4: equal bytes of a pending task join it: one task, one record, few attempts, one result.
/// Other bytes are refused while it is pending (GreptimeDB: random ids defeated its check).
#[test]
fn joins_equal_bytes_and_refuses_others_while_a_key_is_pending() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let first = submit(&queue, "k", "same").await;
        let records = queue.snapshot().journal.next_location;
        let mut joined = Vec::new();
        for n in 0..100 {
            // Half of them at the same time.
            let (a, b) = tokio::join!(submit(&queue, "k", "same"), submit(&queue, "k", "same"));
            assert_eq!((a.task(), b.task()), (first.task(), first.task()), "{n}");
            joined.extend([a, b]);
        }
        assert_eq!(
            queue.snapshot().journal.next_location,
            records,
            "no record of their own"
        );
        assert_eq!(queue.snapshot().admitted_tasks, 1);
        for body in ["diff", "other length"] {
            let error = queue
                .submit("k", body, Options::default())
                .await
                .unwrap_err();
            assert!(
                matches!(&error, Error::KeyPending { pending, .. } if *pending == first.task()),
                "{error}"
            );
        }
        // Other headers are not the same object.
        let mut other = Options::default();
        other.headers.content_type = Some("text/html".to_owned());
        let error = queue.submit("k", "same", other).await.unwrap_err();
        assert!(matches!(error, Error::KeyPending { .. }), "{error}");
        queue.resume(PauseWhat::Uploads);
        for receipt in joined {
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        }
        assert_eq!(rig.remote.count(Call::Put, "k"), 1);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// Concurrent submits of the same new key and bytes are one task, however they interleave; also
/// where the room has to be waited for.
#[test]
fn joins_concurrent_submits_of_one_key_and_bytes() {
    both(async |rig| {
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Delay(Duration::from_millis(100)),
        );
        let queue = rig.open().await;
        let filler = submit(&queue, "filler", "f").await;
        let submits = (0..32).map(|_| submit(&queue, "k", "same"));
        let receipts = futures::future::join_all(submits).await;
        let mut uploaded = 0;
        for receipt in &receipts {
            match settled(receipt).await {
                Settlement::Uploaded(_) => uploaded += 1,
                // Admitted after the first had ended: a write-once key that is taken.
                Settlement::PreconditionFailed => assert_eq!(rig.config.max_tasks, 1),
                other => panic!("{other:?}"),
            }
        }
        assert!(
            uploaded == 32 || rig.config.max_tasks == 1 && uploaded >= 1,
            "{uploaded}"
        );
        settled(&filler).await;
        assert_eq!(rig.remote.object("k").unwrap(), "same");
        assert!(queue.snapshot().peak_tasks <= rig.config.max_tasks);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// Every write of a protected key names the state that it was decided on.
#[test]
fn every_put_is_conditional() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        up(&queue, "once", "x", Options::default()).await;
        up(&queue, "k", "1", rewritable()).await;
        up(&queue, "k", "2", rewritable()).await;
        let seen = rig.remote.seen();
        let of = |key: &str| -> Vec<_> {
            let puts = seen
                .iter()
                .filter(|seen| seen.call == Call::Put && seen.key == key);
            puts.map(|seen| seen.condition.clone()).collect()
        };
        assert_eq!(of("once"), [Some(WriteCondition::IfAbsent)]);
        assert!(
            matches!(
                of("k")[..],
                [
                    Some(WriteCondition::IfAbsent),
                    Some(WriteCondition::IfMatch(_))
                ]
            ),
            "{:?}",
            of("k")
        );
        queue.shutdown().await.unwrap();
    });
}
