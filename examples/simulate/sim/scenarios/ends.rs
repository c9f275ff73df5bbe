//! What an end has to do: A2, A3, D1, D3, D17, E19.

use std::time::Duration;

use futures::FutureExt as _;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Cause, Error, Options, Phase, Settlement};
use tokio::time::Instant;

use super::super::life::ENOUGH;
use super::super::pages::PART;
use super::Named;
use super::crowd::Crowd;
use super::hand::{file, spawn};
use super::play::{End, Play};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub const ALL: &[Named] = &[
    Named {
        name: "an_end_after_long_inserts",
        rows: &["A2"],
        given: "many dirty parts, a checkpointer that reads parts that are being loaded, and a shutdown",
        then: "it ends in time with all in S3, or names what is left, and nobody waits",
        play: after_long_inserts,
    },
    Named {
        name: "a_task_that_never_succeeds",
        rows: &["A3"],
        given: "one object is refused, or fails on every attempt, and the store is shut down",
        then: "its waiters get the cause, all else is uploaded, and the report lists it",
        play: never_succeeds,
    },
    Named {
        name: "s3_never_answers",
        rows: &["D1"],
        given: "S3 takes connections and never answers; much is pending, many wait; shutdown in 5 s",
        then: "it is back in time, everybody is told, all is durable here and goes up later",
        play: never_answers,
    },
    Named {
        name: "what_lingers_for_a_pack",
        rows: &["D3"],
        given: "parts linger for a pack for an hour, and shutdown has 5 s, with S3 there or silent",
        then: "they are in S3, or durable here, in time",
        play: lingers,
    },
    Named {
        name: "gauges_after_any_end",
        rows: &["D17"],
        given: "work of all kinds is under way, and is left in all ways",
        then: "every gauge is back at zero",
        play: gauges,
    },
    Named {
        name: "an_end_that_cannot_move",
        rows: &["E19"],
        given: "the breaker is open for longer than the deadline; or the disk fails at sealing",
        then: "draining ends early; shutdown returns, and marks nothing as clean",
        play: cannot_move,
    },
];

fn after_long_inserts(play: &mut Play) {
    let parts = play.roll(60..300);
    let answers = play.flip();
    play.config.cache_bytes = (parts + 32) * PART;
    play.config.dirty_bytes = play.config.cache_bytes;
    play.config.max_dirty_age = HOUR;
    play.config.pack_bytes = 16 * PART;
    play.config.image_bytes = 128 * PART;
    play.config.queue.attempt_floor = Duration::from_secs(2);
    let (cold, id) = (file(0), file(1));
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.filled(cold, 16).await;
        let mut nobody = play.crew(&hand, Crowd::NOBODY).await;
        play.shut_down(&hand, &mut nobody, ENOUGH).await;
    });
    play.forget_local_bytes();
    play.life(End::Any, async |play| {
        let opened = play
            .open_as(&play.here(), &play.remote, |as_is| as_is)
            .await;
        let hand = play.hand(&opened.expect("opens"));
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let inserts = async {
            hand.create(id).await;
            for part in 0..parts {
                hand.fill(id, part).await.expect("is written");
            }
        };
        crew.during(inserts).await;
        let store = &hand.env.store;
        assert!(
            store.snapshot().dirty_bytes >= parts * PART / 4,
            "{:#?}",
            store.snapshot()
        );
        let slow = Fault::Delay(play.ms(50..500));
        play.remote.under(None, Some(Call::Get), "packs/", slow);
        if !answers {
            play.remote.always(Some(Call::Put), None, Fault::Hang);
        }
        let there = hand.file(cold);
        let ahead = there.prefetch(0..there.len());
        assert!(ahead > 4, "{ahead} are on their way");
        let reader = hand.checkpointer("checkpointer");
        let reads = spawn(async move {
            for index in 0..16 {
                let guard = there
                    .lock(index, s3_writeback::Mode::Shared, &reader)
                    .await?;
                guard.read_at(&mut [0], 0).await?;
            }
            Ok::<_, Error>(())
        });
        let within = if answers {
            ENOUGH
        } else {
            play.ms(5_000..20_000)
        };
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.sealed, "{report:#?}");
        assert_eq!(report.dirty_parts == 0, answers, "{report:#?}");
        assert_eq!(report.checkpoint.is_some(), answers, "{report:#?}");
        let read = reads.await.expect("ends");
        assert!(
            matches!(read, Ok(()) | Err(Error::ShuttingDown { .. })),
            "{read:?}"
        );
        let now = store.snapshot();
        assert_eq!((now.lock_waiters, now.cache_waiters), (0, 0), "{now:#?}");
    });
}

fn never_succeeds(play: &mut Play) {
    let (bad, is_refused) = ("objects/named/bad", play.flip());
    let error = match is_refused {
        true => RemoteError::permanent("PutObject", 400, "InvalidArgument"),
        false => RemoteError::transient("PutObject"),
    };
    let error = error.with_message("out of order today");
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.may_quarantine.set(true);
        play.remote
            .always(Some(Call::Put), Some(bad), Fault::Error(error));
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let receipt = hand.durable(bad, Some(20), Options::default()).await;
            for n in 0..play.roll(5..40) {
                let key = format!("objects/named/good{n}");
                hand.submit(&key, Some(20), Options::default())
                    .await
                    .expect("is admitted");
            }
            receipt
        };
        let receipt = crew.during(work).await;
        let waiter = spawn(receipt.uploaded().within(HOUR).into_future());
        let report = play
            .shut_down(&hand, &mut crew, Duration::from_secs(20))
            .await;
        let told = waiter.await.expect("ends").expect_err("it is not in S3");
        let Error::NotUploaded { settlement, .. } = &told else {
            panic!("{told:?}")
        };
        match is_refused {
            true => assert!(matches!(
                &**settlement,
                Settlement::Quarantined(Cause::Refused(_))
            )),
            false => assert_eq!(**settlement, Settlement::Deferred),
        }
        let [failing] = &report.failing[..] else {
            panic!("{report:#?}")
        };
        assert_eq!((&failing.key[..], failing.quarantined), (bad, is_refused));
        assert!(failing.cause.contains("out of order today"), "{failing:?}");
        let left = (report.quarantined, report.deferred);
        assert_eq!(
            left,
            (u64::from(is_refused), u64::from(!is_refused)),
            "{report:#?}"
        );
        assert!(report.sealed, "{report:#?}");
        if is_refused {
            assert_eq!(play.remote.count(Call::Put, bad), 1, "one attempt");
        }
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        for task in hand.env.store.queue().quarantined() {
            assert_eq!(task.key, bad);
            let again = hand
                .env
                .store
                .queue()
                .replay(task.task)
                .await
                .expect("is taken up");
            assert!(hand.settled(&again).await.is_in_s3());
        }
    });
}

fn never_answers(play: &mut Play) {
    let pending = play.roll(50..300);
    play.config.queue.max_tasks = pending;
    play.config.cache_bytes = 64 * PART;
    play.config.dirty_bytes = 32 * PART;
    let within = Duration::from_secs(5);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let queue = hand.env.store.queue().clone();
        let work = async {
            let id = file(0);
            hand.filled(id, 8).await;
            hand.sync_all().await.expect("syncs");
            hand.uploaded().await;
            play.remote.always(None, None, Fault::Hang);
            for part in 0..8 {
                hand.fill(id, part).await.expect("is written");
            }
            let mut receipts = Vec::new();
            for n in 0..pending {
                let key = format!("objects/named/{n}");
                receipts.push(hand.durable(&key, Some(30), Options::default()).await);
            }
            receipts
        };
        let receipts = crew.during(work).await;
        let mut waiters = Vec::new();
        for (n, receipt) in receipts.iter().take(50).enumerate() {
            let is_err = |done: Result<Settlement, Error>| done.is_err();
            waiters.push(spawn(
                receipt.uploaded().within(HOUR).into_future().map(is_err),
            ));
            let room = queue.submit(format!("named/more{n}"), "x", Options::default());
            waiters.push(spawn(
                room.within(HOUR).into_future().map(|done| done.is_err()),
            ));
            waiters.push(spawn(
                queue
                    .drain()
                    .within(HOUR)
                    .into_future()
                    .map(|done| done.is_err()),
            ));
            let get = queue.get(format!("named/absent{n}"), None);
            waiters.push(spawn(
                get.within(HOUR).into_future().map(|done| done.is_err()),
            ));
            let made = hand.env.store.checkpoint(Play::options(&hand.env.book));
            waiters.push(spawn(
                made.within(HOUR).into_future().map(|done| done.is_err()),
            ));
        }
        crew.for_a_while(play, 500..3000).await;
        let told = waiters.iter().filter(|waiter| waiter.is_finished()).count();
        assert_eq!(told, 0, "all of them wait");
        let began = Instant::now();
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.took <= Duration::from_millis(5500), "{report:#?}");
        for waiter in waiters {
            assert!(
                waiter.is_finished(),
                "told only {:?} after the end",
                began.elapsed()
            );
            assert!(waiter.await.expect("ends"), "nothing is told as done");
        }
        assert!(report.sealed && report.deferred == pending, "{report:#?}");
        assert!(report.dirty_parts >= 1, "{report:#?}");
        for receipt in &receipts {
            assert_eq!(receipt.settlement(), Some(Settlement::Deferred));
        }
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let drained = hand.env.store.queue().drain();
        hand.queued("drain", drained)
            .await
            .expect("all is durable here");
    });
}

fn lingers(play: &mut Play) {
    play.config.cache_bytes = 64 * PART;
    play.config.dirty_bytes = 32 * PART;
    play.config.pack_bytes = 64 * PART;
    play.config.image_bytes = 256 * PART;
    play.config.max_dirty_age = HOUR;
    let hangs = play.flip();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let parts = play.roll(1..6);
        crew.during(hand.filled(file(0), parts)).await;
        crew.for_a_while(play, 60_000..600_000).await;
        assert_eq!(play.remote.count(Call::Put, "packs/"), 0, "it lingers");
        if hangs {
            play.remote.always(None, None, Fault::Hang);
        }
        let within = Duration::from_secs(5);
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.took <= Duration::from_millis(5500), "{report:#?}");
        assert!(report.sealed, "{report:#?}");
        assert_eq!(
            report.dirty_parts,
            if hangs { parts } else { 0 },
            "{report:#?}"
        );
        assert_eq!(report.checkpoint.is_some(), !hangs, "{report:#?}");
    });
}

fn gauges(play: &mut Play) {
    play.config.cache_bytes = 6 * PART;
    play.config.dirty_bytes = 3 * PART;
    play.config.queue.max_tasks = play.one_of(&[1, 4, 100]);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let crowd = Crowd {
            pages: 3,
            producers: 2,
            lookers: 2,
            checkpoints: true,
        };
        let mut crew = play.crew(&hand, crowd).await;
        crew.for_a_while(play, 500..8000).await;
        let busy = hand.env.store.snapshot();
        assert!(
            busy.queue.uploaded + busy.loads > 0,
            "nothing was done: {busy:#?}"
        );
        let down = match play.roll(0..3) {
            0 => Fault::Hang,
            1 => Fault::Error(RemoteError::throttled("any")),
            _ => Fault::Delay(Duration::from_secs(1)),
        };
        play.remote.always(None, None, down);
        crew.for_a_while(play, 0..3000).await;
        if play.flip() {
            // They leave in the middle of all of it.
            crew.go();
        }
        let within = play.one_of(&[
            Duration::ZERO,
            Duration::from_secs(1),
            Duration::from_secs(20),
        ]);
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.sealed || within.is_zero(), "{report:#?}");
    });
}

fn cannot_move(play: &mut Play) {
    let is_disk = play.flip();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let key = "objects/named/k";
        let work = async {
            hand.filled(file(0), 2).await;
            hand.sync_all().await.expect("syncs");
            let expired = RemoteError::environment("any", 403, "ExpiredToken");
            play.remote.always(None, None, Fault::Error(expired));
            hand.durable(key, Some(10), Options::default()).await;
            if play.flip() {
                hand.fill(file(0), 0).await.expect("is written");
            }
            play.pause(3_000..8_000).await;
        };
        crew.during(work).await;
        let puts = play.remote.count(Call::Put, key);
        assert!(puts >= 1, "it was tried");
        if is_disk {
            hand.fill(file(0), 1).await.expect("is written");
            hand.env.world.disk_is_bad.set(true);
            play.here().fs.fail(fs::Fault {
                call: Some(fs::Call::Sync),
                after: play.roll(0..3),
                errno: fs::EIO,
                forever: true,
            });
        }
        let within = Duration::from_secs(20);
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert_eq!(report.sealed, !is_disk, "{report:#?}");
        assert_eq!(report.seal_error.is_some(), is_disk, "{report:#?}");
        if !is_disk {
            assert_eq!(report.deferred, 1, "{report:#?}");
            let draining = report
                .phases
                .get(&Phase::Draining)
                .copied()
                .unwrap_or_default();
            assert!(draining < Duration::from_secs(10), "{report:#?}");
        }
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let drained = hand.env.store.queue().drain();
        hand.queued("drain", drained).await.expect("goes up");
    });
}
