//! How much is sent while S3 throttles, refuses, fails or hangs, and what is said of it: scenarios
//! B7, B8, B11, D11, E19.

use std::time::{Duration, SystemTime};

use crate::support::{
    PART, PARTS_OF, Rig, StoreRig, assert_empty, fill, paused, settled, spawn, submit, submit_all,
    uploaded,
};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{FileId, Health, Options, PauseWhat, Settlement, UploadQueue};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const PROBE: Duration = Duration::from_secs(30);

fn keys(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|at| format!("sst/{at:06}"))
}

fn refused(code: &str) -> Fault {
    Fault::Error(RemoteError::environment("PutObject", 403, code))
}

fn slow_down() -> Fault {
    let error = RemoteError::throttled("PutObject");
    Fault::ErrorAfter(Duration::from_millis(20), error)
}

/// Waits until all is in S3; how long that took.
async fn drained(queue: &UploadQueue) -> Duration {
    let from = Instant::now();
    queue.drain().within(HOUR).await.expect("all goes up");
    from.elapsed()
}

async fn becomes(queue: &UploadQueue, is_so: impl Fn(&Health) -> bool) -> Health {
    let mut watch = queue.watch_health();
    let found = tokio::time::timeout(MINUTE, watch.wait_for(is_so)).await;
    let found = found.unwrap_or_else(|_| panic!("it is {:?}", queue.health()));
    found.expect("the queue is there").clone()
}

#[test]
fn b7_an_hour_of_refusals_is_one_request_a_probe_interval_and_no_fault_of_any_task() {
    for code in ["AccessDenied", "ExpiredToken", "NoSuchBucket"] {
        paused(async {
            let rig = Rig::with(|config| config.workers = 4);
            let queue = rig.open().await;
            let began = SystemTime::UNIX_EPOCH;
            rig.remote.always(None, None, refused(code));
            let receipts = submit_all(&queue, keys(100)).await;
            let parked = becomes(&queue, |health| matches!(health, Health::Parked { .. })).await;
            let Health::Parked { reason, since } = parked else {
                unreachable!()
            };
            assert_eq!(reason, code);
            assert!(since > began);
            // What is in flight when it opens, and one with new credentials.
            let before = rig.remote.seen().len();
            assert!(before <= 4 + 2, "{before}");
            tokio::time::sleep(HOUR).await;
            let probes = rig.remote.seen().len() - before;
            assert!(
                (118..=121).contains(&probes),
                "{probes} requests in an hour"
            );
            let now = queue.snapshot();
            assert_eq!((now.tasks.tasks, now.tasks.quarantined), (100, 0));
            assert_eq!(now.tasks.delayed, 0, "nothing backs off: {now:?}");
            let failures: u32 = queue.pending().iter().map(|task| task.failures).sum();
            assert!(failures <= 8, "{failures} failures are charged");
            let told = now.traffic.writes_parked.expect("is parked");
            assert!(
                told.for_ms >= 3_600_000 && told.probe_in_ms <= 30_000,
                "{told:?}"
            );
            // Mended, it goes on by itself.
            rig.remote.heal();
            let took = drained(&queue).await;
            assert!(took <= PROBE + Duration::from_secs(2), "{took:?}");
            becomes(&queue, |health| *health == Health::Ok).await;
            for receipt in &receipts {
                assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
            }
            assert_empty(&queue);
        });
    }
}

#[test]
fn b7_a_bad_request_is_tried_once_and_holds_nobody_up() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let bad = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        rig.remote
            .always(Some(Call::Put), Some("sst/bad"), Fault::Error(bad));
        let bad = submit(&queue, "sst/bad", "bad").await;
        let others = submit_all(&queue, keys(50)).await;
        for receipt in &others {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        assert!(matches!(settled(&bad).await, Settlement::Quarantined(_)));
        assert_eq!(rig.remote.count(Call::Put, "sst/bad"), 1);
        assert_eq!(queue.snapshot().traffic.writes_parked, None);
    });
}

/// One key that is refused says nothing about the others, and keeps nobody from going on.
#[test]
fn what_is_refused_to_one_key_parks_nothing() {
    paused(async {
        let rig = Rig::with(|config| config.workers = 2);
        let queue = rig.open().await;
        rig.remote
            .always(Some(Call::Put), Some("sst/mine"), refused("AccessDenied"));
        let mine = submit(&queue, "sst/mine", "1").await;
        for round in 0..20 {
            let others = submit_all(&queue, (0..10).map(|at| format!("log/{round}-{at}"))).await;
            for receipt in &others {
                assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
            }
            assert_eq!(queue.snapshot().traffic.writes_parked, None);
        }
        rig.remote.heal();
        assert!(matches!(settled(&mine).await, Settlement::Uploaded(_)));
    });
}

/// Nor does a whole prefix, once another has been seen to be written to.
#[test]
fn a_prefix_that_is_refused_holds_no_other_up() {
    paused(async {
        let rig = Rig::with(|config| config.workers = 4);
        let queue = rig.open().await;
        rig.remote
            .under(None, Some(Call::Put), "sst/", refused("AccessDenied"));
        let slow = Fault::Delay(Duration::from_millis(20));
        rig.remote.under(None, Some(Call::Put), "log/", slow);
        let denied = submit_all(&queue, keys(50)).await;
        for round in 0..20 {
            let from = Instant::now();
            let others = submit_all(&queue, (0..40).map(|at| format!("log/{round}-{at}"))).await;
            for receipt in &others {
                assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
            }
            let (took, parked) = (from.elapsed(), queue.snapshot().traffic.writes_parked);
            match round {
                // It is not known yet whether it is about keys.
                0 => assert!(took <= PROBE + Duration::from_secs(2), "{took:?}"),
                _ => assert!(took < Duration::from_secs(2), "{round}: {took:?}"),
            }
            assert_eq!(parked, None, "{round}");
            tokio::time::sleep(PROBE / 2).await;
        }
        assert!(rig.remote.refreshes() <= 1, "{}", rig.remote.refreshes());
        rig.remote.heal();
        let took = drained(&queue).await;
        assert!(
            took <= rig.config.retry_cap + Duration::from_secs(2),
            "{took:?}"
        );
        for receipt in &denied {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        assert_empty(&queue);
    });
}

/// A store that is full lets go of what is deleted: at once, and in no turn of the probe's.
#[test]
fn a_store_that_is_full_is_emptied() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        submit_all(&queue, keys(20)).await;
        drained(&queue).await;
        let full = RemoteError::environment("PutObject", 507, "XMinioStorageFull");
        rig.remote.always(Some(Call::Put), None, Fault::Error(full));
        submit_all(&queue, (0..20).map(|at| format!("log/{at}"))).await;
        becomes(&queue, |health| matches!(health, Health::Parked { .. })).await;
        let mut deletes = Vec::new();
        for key in keys(20) {
            let delete = queue.delete(&key, Options::default()).await;
            deletes.push(delete.expect("is admitted"));
        }
        let (from, before) = (Instant::now(), rig.remote.count(Call::Put, ""));
        for delete in &deletes {
            assert!(matches!(settled(delete).await, Settlement::Deleted));
        }
        let (took, puts) = (from.elapsed(), rig.remote.count(Call::Put, "") - before);
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(puts <= 1, "{puts}");
        assert!(queue.snapshot().traffic.writes_parked.is_some());
        rig.remote.heal();
        drained(&queue).await;
    });
}

/// A store that is full is read, and its tasks wait.
#[test]
fn a_store_that_is_full_parks_writes_and_no_reads() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        submit(&queue, "there", "bytes").await;
        drained(&queue).await;
        let full = RemoteError::environment("PutObject", 507, "XMinioStorageFull");
        rig.remote.always(Some(Call::Put), None, Fault::Error(full));
        submit_all(&queue, keys(20)).await;
        becomes(&queue, |health| matches!(health, Health::Parked { .. })).await;
        for _ in 0..100 {
            let read = queue
                .get("there", None)
                .within(Duration::from_secs(1))
                .await;
            assert_eq!(read.expect("is read"), "bytes");
        }
        let now = queue.snapshot().traffic;
        assert!(now.writes_parked.is_some() && now.reads_parked.is_none());
        rig.remote.heal();
        drained(&queue).await;
    });
}

#[test]
fn b8_transient_errors_past_any_count_end_with_s3s_and_block_nothing() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let down = RemoteError::transient("PutObject").with_message("500");
        rig.remote.always(Some(Call::Put), None, Fault::Error(down));
        let receipts = submit_all(&queue, keys(50)).await;
        tokio::time::sleep(HOUR).await;
        let now = queue.snapshot();
        assert_eq!((now.tasks.tasks, now.tasks.quarantined), (50, 0));
        assert!(queue.pending().iter().all(|task| task.failures > 10));
        assert!(
            matches!(queue.health(), Health::Behind { .. }),
            "{:?}",
            queue.health()
        );
        rig.remote.heal();
        let took = drained(&queue).await;
        assert!(
            took <= rig.config.retry_cap + Duration::from_secs(2),
            "{took:?}"
        );
        for receipt in &receipts {
            assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
        }
        // And the keys go on.
        let again = Options {
            policy: s3_writeback::KeyPolicy::Rewritable,
            ..Options::default()
        };
        let again = queue.submit("sst/000000", b"new".to_vec(), again).await;
        let again = settled(&again.expect("is admitted")).await;
        assert!(matches!(again, Settlement::Uploaded(_)), "{again:?}");
        assert_empty(&queue);
    });
}

/// However many tasks there are: an S3 that fails is asked at the rate of the budget.
#[test]
fn an_s3_that_fails_is_asked_no_more_often_for_there_being_more_to_do() {
    paused(async {
        for tasks in [100, 2000] {
            let rig = Rig::with(|config| config.retry_cap = Duration::from_secs(1));
            let queue = rig.open().await;
            let down = RemoteError::transient("PutObject").with_message("500");
            rig.remote.always(Some(Call::Put), None, Fault::Error(down));
            submit_all(&queue, keys(tasks)).await;
            // All have been tried once, and the burst is used up.
            tokio::time::sleep(MINUTE).await;
            let before = rig.remote.count(Call::Put, "");
            tokio::time::sleep(10 * MINUTE).await;
            let asked = rig.remote.count(Call::Put, "") - before;
            assert!((5900..=6100).contains(&asked), "{asked} for {tasks} tasks");
            rig.remote.heal();
            let took = drained(&queue).await;
            assert!(took < Duration::from_secs(5), "{tasks} tasks took {took:?}");
        }
    });
}

/// The probe was a request of the checkpoint layer, in the slot that is its own, and its asker gave
/// up: who looked for work meanwhile hears that the next may go in an interval.
#[test]
fn a_probe_that_is_given_up_leaves_nobody_asleep() {
    paused(async {
        let seconds = Duration::from_secs;
        let rig = StoreRig::with(8, |config| {
            config.queue.workers = 1;
            config.queue.attempt_floor = MINUTE;
        });
        let store = rig.open().await;
        let queue = store.queue();
        settled(&submit(queue, "there", "bytes").await).await;
        // In the only general slot until the probe is under way.
        let slow = Fault::Delay(seconds(35));
        rig.remote.once(Some(Call::Put), Some("slow"), slow);
        let slow = submit(queue, "slow", "1").await;
        while rig.remote.count(Call::Put, "slow") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.remote
            .times(2, Some(Call::Get), None, refused("ExpiredToken"));
        let read = queue.get("there", None).within(seconds(10)).await;
        read.expect_err("nothing is read");
        rig.remote
            .always(Some(Call::Get), Some("head"), Fault::Hang);
        let (asks, began) = (store.clone(), Instant::now());
        let asked = spawn(async move { asks.checkpoints().within(seconds(30)).await });
        rig.remote
            .wait_for(|remote| remote.count(Call::Get, "head") > 0)
            .await;
        assert!(began.elapsed() > seconds(15), "it waits to be the probe");
        let reads = queue.clone();
        let read = spawn(async move { reads.get("there", None).within(10 * MINUTE).await });
        settled(&slow).await;
        asked.await.expect("ends").expect_err("gets no answer");
        let ended = Instant::now();
        assert_eq!(read.await.expect("ends").expect("is read"), "bytes");
        let took = ended.elapsed();
        assert!(took <= PROBE + seconds(1), "{took:?}");
    });
}

/// Found by a named scenario of the simulation (B8): twelve packs used the budget up, and named
/// objects were tried every twenty seconds.
#[test]
fn many_packs_that_fail_keep_no_named_object_from_being_tried() {
    paused(async {
        let rig = StoreRig::with(64, |config| {
            config.queue.retry_cap = Duration::from_secs(1);
            config.pack_bytes = PART as u64;
            config.max_dirty_age = Duration::from_millis(10);
        });
        let store = rig.open().await;
        let down = RemoteError::transient("PutObject").with_message("500");
        rig.remote.always(Some(Call::Put), None, Fault::Error(down));
        let file = store.create(FileId(1), PARTS_OF).await.expect("creates");
        for index in 0..32 {
            fill(&file, index, 1).await;
        }
        submit(store.queue(), "sst/1", "1").await;
        // Until the burst is used up.
        tokio::time::sleep(MINUTE).await;
        let before = rig.remote.count(Call::Put, "sst/");
        tokio::time::sleep(10 * MINUTE).await;
        let tried = rig.remote.count(Call::Put, "sst/") - before;
        let packs = store.snapshot().queue.tasks.images;
        assert!(packs > 10, "{packs}");
        // A fair share of ten a second.
        let share = 6000 / (packs + 1);
        assert!(
            tried >= share / 2,
            "{tried} of {share} beside {packs} packs"
        );
        rig.remote.heal();
        drained(store.queue()).await;
        uploaded(&store).await;
    });
}

#[test]
fn b11_a_burst_of_slow_downs_halves_the_window_and_it_climbs_back() {
    paused(async {
        let rig = Rig::with(|config| config.workers = 16);
        let queue = rig.open().await;
        assert_eq!(queue.snapshot().traffic.window, 16);
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Delay(Duration::from_millis(20)),
        );
        let feeds = {
            let queue = queue.clone();
            spawn(async move { submit_all(&queue, keys(5000)).await })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.remote.heal();
        rig.remote.times(40, Some(Call::Put), None, slow_down());
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Delay(Duration::from_millis(20)),
        );
        let from = Instant::now();
        let (mut halved, mut windows) = (None, Vec::new());
        while windows.len() < 400 {
            let now = queue.snapshot().traffic.window;
            if now <= 8 {
                halved.get_or_insert(from.elapsed());
            }
            windows.push(now);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let halved = halved.unwrap_or_else(|| panic!("{windows:?}"));
        assert!(halved < Duration::from_secs(1), "{halved:?}");
        becomes(&queue, |health| *health == Health::Throttled).await;
        let least = windows.iter().min().copied().unwrap_or_default();
        let lowest = windows.iter().rposition(|window| *window == least);
        let climb = &windows[lowest.unwrap_or_default()..];
        assert!(
            climb.windows(2).all(|two| two[1] <= two[0] + 1),
            "{climb:?}"
        );
        assert!(climb.last() >= Some(&14), "{climb:?}");
        feeds.await.expect("all are admitted");
        drained(&queue).await;
        let done = queue.snapshot();
        assert!(
            done.traffic.throttled >= 16 && done.traffic.window_cuts <= 5,
            "{done:?}"
        );
        assert_eq!(
            becomes(&queue, |health| *health == Health::Ok).await,
            Health::Ok
        );
    });
}

/// What is expected is told now and then, with how often it was; and is no error.
#[test]
fn b11_back_off_that_is_expected_is_no_error_and_no_flood() {
    for error in [
        RemoteError::throttled("PutObject"),
        RemoteError::transient("PutObject").with_message("500"),
    ] {
        let scenario = || {
            paused(async {
                let rig = Rig::new();
                let queue = rig.open().await;
                rig.remote
                    .always(Some(Call::Put), None, Fault::Error(error.clone()));
                submit_all(&queue, keys(50)).await;
                tokio::time::sleep(10 * MINUTE).await;
                rig.remote.heal();
                drained(&queue).await;
                queue.shutdown().await.expect("ends");
            });
        };
        let lines = crate::logged::logged(tracing::Level::WARN, scenario);
        let errors: Vec<_> = lines.iter().filter(|line| line.contains("ERROR")).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let told = |line: &&String| line.contains("requests failed, and are tried again");
        let told = lines.iter().filter(told).count();
        assert!((10..=22).contains(&told), "{told} of {lines:#?}");
        assert!(lines.len() <= told + 4, "{lines:#?}");
    }
}

/// One task hangs: the others flow by, and what could run and does not is never old.
#[test]
fn d11_one_task_that_hangs_is_seen_and_keeps_nobody_waiting() {
    paused(async {
        let rig = Rig::with(|config| {
            config.workers = 4;
            config.max_tasks = 64;
            config.attempt_floor = HOUR;
        });
        let queue = rig.open().await;
        rig.remote
            .under(Some(1), Some(Call::Put), "hangs", Fault::Hang);
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Delay(Duration::from_micros(500)),
        );
        let hangs = submit(&queue, "hangs", "1").await;
        let feeds = {
            let queue = queue.clone();
            spawn(async move {
                for key in keys(100_000) {
                    submit(&queue, &key, "x").await;
                }
            })
        };
        let mut oldest = 0;
        while !feeds.is_finished() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            oldest = oldest.max(queue.snapshot().tasks.oldest_ready_ms);
        }
        feeds.await.expect("all are admitted");
        assert!(oldest < 1000, "{oldest} ms");
        let now = queue.snapshot();
        assert!(
            now.tasks.oldest_ms > 10_000,
            "the hung one is seen: {now:?}"
        );
        let pending = queue.pending();
        let found = pending.iter().find(|task| task.key == "hangs");
        assert_eq!(found.expect("is there").state, "running");
        assert!(
            matches!(settled(&hangs).await, Settlement::Uploaded(_)),
            "in the end"
        );
    });
}

#[test]
fn e19_draining_ends_early_where_the_next_probe_comes_too_late() {
    paused(async {
        for (within, early) in [(Duration::from_secs(20), true), (2 * MINUTE, false)] {
            let rig = Rig::new();
            let queue = rig.open().await;
            rig.remote.always(None, None, refused("ExpiredToken"));
            submit_all(&queue, keys(20)).await;
            becomes(&queue, |health| matches!(health, Health::Parked { .. })).await;
            let from = Instant::now();
            let ending = {
                let queue = queue.clone();
                spawn(async move { queue.shutdown().within(within).await })
            };
            if !early {
                // Mended before the probe, which shutdown waits for.
                tokio::time::sleep(Duration::from_secs(1)).await;
                rig.remote.heal();
            }
            let report = ending.await.expect("ends").expect("a report");
            let took = from.elapsed();
            assert!(report.sealed, "{report:?}");
            match early {
                true => {
                    assert!(took < Duration::from_secs(2), "{took:?}");
                    assert_eq!((report.uploaded, report.deferred), (0, 20));
                }
                false => {
                    assert!(took < PROBE + Duration::from_secs(2), "{took:?}");
                    assert_eq!((report.uploaded, report.deferred), (20, 0));
                }
            }
            rig.remote.heal();
            let again = rig.open().await;
            drained(&again).await;
        }
    });
}

#[test]
fn limits_by_option_hold() {
    paused(async {
        let rig = Rig::with(|config| config.max_requests_per_second = Some(10));
        let queue = rig.open().await;
        let from = Instant::now();
        submit_all(&queue, keys(600)).await;
        drained(&queue).await;
        let took = from.elapsed();
        assert!(
            took > Duration::from_secs(58) && took < Duration::from_secs(62),
            "{took:?}"
        );

        let rig = Rig::with(|config| config.max_bytes_per_second = Some(64 * 1024));
        let queue = rig.open().await;
        let body = "x".repeat(16 * 1024);
        let from = Instant::now();
        for key in keys(240) {
            submit(&queue, &key, &body).await;
        }
        drained(&queue).await;
        let took = from.elapsed();
        assert!(
            took > Duration::from_secs(58) && took < Duration::from_secs(62),
            "{took:?}"
        );
    });
}

/// What is loaded while nothing may be sent is loaded all the same.
#[test]
fn a_pause_and_a_full_window_keep_no_load_waiting() {
    paused(async {
        let rig = Rig::with(|config| {
            config.workers = 1;
            config.attempt_floor = HOUR;
        });
        let queue = rig.open().await;
        submit(&queue, "there", "bytes").await;
        drained(&queue).await;
        rig.remote
            .under(Some(1), Some(Call::Put), "hangs", Fault::Hang);
        submit(&queue, "hangs", "1").await;
        while queue.snapshot().traffic.in_flight == 0 {
            tokio::task::yield_now().await;
        }
        let read = queue
            .get("there", None)
            .within(Duration::from_secs(1))
            .await;
        assert_eq!(read.expect("is read"), "bytes");
        queue.pause(PauseWhat::Uploads);
        let read = queue
            .get("there", None)
            .within(Duration::from_secs(1))
            .await;
        assert_eq!(read.expect("is read"), "bytes");
    });
}

/// What waits for an operator is not on its way: it hides nothing of what is.
#[test]
fn what_an_earlier_life_left_in_quarantine_is_no_recovery() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let bad = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        rig.remote
            .always(Some(Call::Put), Some("bad"), Fault::Error(bad));
        let bad = submit(&queue, "bad", "bad").await;
        assert!(matches!(settled(&bad).await, Settlement::Quarantined(_)));
        // And one that waits behind it.
        let delete = queue.delete("bad", Options::default()).await;
        delete.expect("is admitted");
        queue.shutdown().await.expect("ends");
        let queue = rig.open().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(queue.quarantined().len(), 1);
        assert_eq!(queue.health(), Health::Ok);
        assert!(!queue.snapshot().tasks.recovering);
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        // What waits behind it is never late.
        tokio::time::sleep(rig.config.behind_after * 2).await;
        assert_eq!(queue.health(), Health::Ok);
        submit(&queue, "late", "1").await;
        tokio::time::sleep(rig.config.behind_after * 2).await;
        let health = queue.health();
        assert!(matches!(health, Health::Behind { .. }), "{health:?}");
    });
}

/// HEAD's answers have no body, so no code, and neither have many proxies': such a refusal may be
/// about one key as well.
#[test]
fn what_is_refused_to_one_key_without_a_code_parks_nothing() {
    let mut wordless = RemoteError::environment("HeadObject", 403, "");
    wordless.code = None;
    for (call, error) in [(Call::Head, wordless.clone()), (Call::Put, wordless)] {
        paused(async {
            let rig = Rig::with(|config| config.workers = 2);
            let queue = rig.open().await;
            let fault = Fault::Error(error);
            rig.remote.always(Some(call), Some("sst/mine"), fault);
            let rewritable = Options {
                policy: s3_writeback::KeyPolicy::Rewritable,
                ..Options::default()
            };
            let mine = queue.submit("sst/mine", b"1".to_vec(), rewritable).await;
            let mine = mine.expect("is admitted");
            for round in 0..20 {
                let from = Instant::now();
                let keys = (0..10).map(|at| format!("log/{round}-{at}"));
                for receipt in &submit_all(&queue, keys).await {
                    assert!(matches!(settled(receipt).await, Settlement::Uploaded(_)));
                }
                let took = from.elapsed();
                assert!(took < Duration::from_secs(1), "{call:?}: {took:?}");
                assert_eq!(queue.snapshot().traffic.writes_parked, None);
            }
            rig.remote.heal();
            assert!(matches!(settled(&mine).await, Settlement::Uploaded(_)));
        });
    }
}

/// Who may not list is told "forbidden" of a key that is not there.
#[test]
fn who_may_not_list_writes_keys_that_are_not_there() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let rewritable = || Options {
            policy: s3_writeback::KeyPolicy::Rewritable,
            ..Options::default()
        };
        let mut wordless = RemoteError::environment("HeadObject", 403, "");
        wordless.code = None;
        let fault = Fault::Error(wordless);
        rig.remote.plant("sst/theirs", "1");
        rig.remote.under(None, Some(Call::Head), "sst/", fault);
        for generation in ["1", "2"] {
            for key in keys(10) {
                let from = Instant::now();
                let receipt = queue.submit(&key, generation, rewritable()).await;
                let ended = settled(&receipt.expect("is admitted")).await;
                assert!(matches!(ended, Settlement::Uploaded(_)), "{ended:?}");
                let took = from.elapsed();
                assert!(took < Duration::from_secs(1), "{took:?}");
            }
        }
        let read = queue.get("sst/000000", None).within(Duration::from_secs(1));
        assert_eq!(read.await.expect("reads are not parked"), "2");
        // What is there is not written over for nobody's having seen it.
        let theirs = queue.submit("sst/theirs", "2", rewritable()).await;
        let theirs = theirs.expect("is admitted");
        tokio::time::sleep(10 * MINUTE).await;
        assert_eq!(rig.remote.object("sst/theirs").as_deref(), Some(&b"1"[..]));
        assert_eq!(queue.quarantined().len(), 0);
        rig.remote.heal();
        assert!(matches!(settled(&theirs).await, Settlement::Uploaded(_)));
    });
}

/// Who may not delete may well write.
#[test]
fn a_right_that_writes_do_not_need_parks_no_writes() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        submit_all(&queue, keys(5)).await;
        drained(&queue).await;
        let denied = RemoteError::environment("DeleteObject", 403, "AccessDenied");
        rig.remote
            .always(Some(Call::Delete), None, Fault::Error(denied));
        for key in keys(5) {
            queue
                .delete(&key, Options::default())
                .await
                .expect("is admitted");
        }
        for round in 0..20 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let from = Instant::now();
            let receipt = submit(&queue, &format!("log/{round}"), "1").await;
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
            let took = from.elapsed();
            assert!(took < Duration::from_secs(1), "{round}: {took:?}");
            assert_eq!(queue.snapshot().traffic.writes_parked, None);
        }
        rig.remote.heal();
        drained(&queue).await;
        assert!(!rig.remote.keys().iter().any(|key| key.starts_with("sst/")));
    });
}

/// What was written fast says nothing about what is read, nor how large that is.
#[test]
fn a_slow_read_ends_however_fast_the_writes_were() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let body = vec![7; 1 << 20];
        for key in keys(20) {
            let receipt = queue.submit(&key, body.clone(), Options::default()).await;
            settled(&receipt.expect("is admitted")).await;
        }
        assert!(queue.snapshot().traffic.link_bytes_per_s > Some(1 << 30));
        let slow = || Fault::Delay(rig.config.attempt_floor * 3 / 2);
        rig.remote.always(Some(Call::Get), None, slow());
        let whole = queue.get("sst/000000", None).within(10 * MINUTE).await;
        assert_eq!(whole.expect("is read").len(), 1 << 20);
        // Reads have been fast, and are slow now.
        let read = |at: u64| queue.get("sst/000001", Some((at, (1 << 20) - 64)));
        rig.remote.heal();
        for at in 0..20 {
            read(at).within(MINUTE).await.expect("is read");
        }
        rig.remote.always(Some(Call::Get), None, slow());
        read(0).within(10 * MINUTE).await.expect("is read");
    });
}

/// What is read in the slot that is not held back keeps no upload out, and leaves no debt behind:
/// five bytes are not counted as a megabyte either.
#[test]
fn reads_leave_uploads_their_share_of_a_limit() {
    let bytes: fn(&mut s3_writeback::Config) = |config| config.max_bytes_per_second = Some(1 << 20);
    let requests: fn(&mut s3_writeback::Config) =
        |config| config.max_requests_per_second = Some(10);
    for limit in [bytes, requests] {
        paused(async {
            let rig = Rig::with(limit);
            let queue = rig.open().await;
            let body = vec![7; 64 * 1024];
            let there = queue.submit("there", body, Options::default()).await;
            settled(&there.expect("is admitted")).await;
            let fault = Fault::Delay(Duration::from_millis(10));
            rig.remote.always(Some(Call::Get), None, fault);
            let mut uploads = Vec::new();
            for at in 0..6000_u64 {
                if at % 1000 == 0 {
                    uploads.push(submit(&queue, &format!("up/{at}"), "1").await);
                }
                let range = (at % 2 == 0).then_some((0, 64 * 1024));
                let read = queue.get("there", range).within(MINUTE).await;
                assert_eq!(read.expect("is read").len(), 64 * 1024);
            }
            let took = drained(&queue).await;
            assert!(took <= Duration::from_secs(5), "{took:?}");
            for receipt in &uploads[..5] {
                assert!(receipt.settlement().is_some(), "while there were reads");
            }
        });
    }
}
