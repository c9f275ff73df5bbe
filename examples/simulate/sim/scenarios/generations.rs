//! Generations of a key, and what comes after what: B5, E10, E28, E37.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Cause, Options, PauseWhat, Receipt, Settlement};

use super::super::env::lock;
use super::super::life::ENOUGH;
use super::super::objects;
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, rewritable, spawn};
use super::keys::{KEY, padding};
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "the_earlier_goes_when_the_later_is_durable",
        rows: &["E10"],
        given: "a durable generation is superseded, and the power goes before the next is durable",
        then: "one of them is there",
        play: superseded_and_cut,
    },
    Named {
        name: "a_drain_waits_for_the_heir",
        rows: &["E10"],
        given: "a drain covers a generation, which another supersedes",
        then: "it ends when that one is in S3",
        play: drain_and_heir,
    },
    Named {
        name: "a_hot_key_goes_up",
        rows: &["E10"],
        given: "a key is superseded every 10 ms",
        then: "it is uploaded within the age bound, and others are not kept waiting",
        play: hot_key,
    },
    Named {
        name: "many_generations_while_s3_is_down",
        rows: &["B5"],
        given: "a thousand generations of a key while S3 is down",
        then: "at most two go up, the last is the last, and the bytes of the others are free",
        play: many_generations,
    },
    Named {
        name: "what_is_after_a_quarantined_object",
        rows: &["E28"],
        given: "an SST is quarantined, with a manifest after it",
        then: "the manifest is parked, across restarts too, and follows the replay",
        play: after_quarantined,
    },
    Named {
        name: "what_is_after_what_never_comes",
        rows: &["E37"],
        given: "an SST fails its condition with a manifest after it; or what B is after is superseded",
        then: "nobody waits for ever: it is told, or goes up",
        play: after_what_never_comes,
    },
];

fn coalescing() -> Options {
    Options {
        coalesce: true,
        ..rewritable()
    }
}

fn after(receipts: &[&Receipt]) -> Options {
    Options {
        after: receipts.iter().map(|receipt| (*receipt).clone()).collect(),
        ..Options::default()
    }
}

fn superseded_and_cut(play: &mut Play) {
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.env.store.queue().pause(PauseWhat::Uploads);
            hand.env.world.pauses.set(true);
            let first = hand.durable(KEY, padding(play), coalescing()).await;
            hand.env.world.disk_is_bad.set(true);
            play.here().fs.fail(fs::Fault {
                call: Some(fs::Call::Sync),
                after: 0,
                errno: fs::EIO,
                forever: true,
            });
            let (_, second) = hand
                .submit(KEY, padding(play), coalescing())
                .await
                .expect("is admitted");
            let durable = second.durable().within(Duration::from_secs(1)).await;
            assert!(durable.is_err(), "the disk takes nothing");
            assert_eq!(play.remote.count(Call::Put, KEY), 0, "{first:?}");
            for receipt in [&first, &second] {
                let end = receipt.settlement();
                assert!(!matches!(end, Some(Settlement::Uploaded(_))), "{end:?}");
            }
        };
        crew.during(work).await;
    });
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let drained = hand.env.store.queue().drain();
        crew.during(hand.queued("drain", drained))
            .await
            .expect("goes up");
        assert!(play.remote.object(KEY).is_some(), "neither is there");
        play.at_rest(&[KEY]);
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn drain_and_heir(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let slow = Fault::Delay(play.ms(500..1900));
            play.remote.always(Some(Call::Put), Some(KEY), slow);
            // It has the key's turn, so that the next waits.
            let running = hand.durable(KEY, padding(play), coalescing()).await;
            play.seen(Call::Put, KEY, 1).await;
            let first = hand.durable(KEY, padding(play), coalescing()).await;
            let queue = hand.env.store.queue();
            let drain = spawn(queue.drain().within(ENOUGH).into_future());
            tokio::task::yield_now().await;
            let mut heirs = Vec::new();
            for _ in 0..play.roll(1..4) {
                heirs.push(hand.durable(KEY, padding(play), coalescing()).await);
            }
            assert!(
                !drain.is_finished() && running.settlement().is_none(),
                "it waits"
            );
            drain.await.expect("ends").expect("all is in S3");
            // What it covered is in S3; its end may be on its way to the disk.
            play.at_rest(&[KEY]);
            let last = heirs.last().expect("one at least");
            let end = hand.settled(last).await;
            assert!(end.is_in_s3(), "{end:?}");
            assert_eq!(first.settlement(), Some(end), "one outcome");
            assert_eq!(
                play.remote.count(Call::Put, KEY),
                2,
                "the first and the last"
            );
            play.at_rest(&[KEY]);
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn hot_key(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let crowd = Crowd {
            producers: play.roll(0..2),
            ..Crowd::NOBODY
        };
        let mut crew = play.crew(&hand, crowd).await;
        let work = async {
            let slow = Fault::Delay(play.ms(20..80));
            play.remote
                .under(None, Some(Call::Put), "objects/named/", slow);
            let queue = hand.env.store.queue();
            let mut oldest = 0;
            for n in 0..300 {
                hand.submit(KEY, Some(10), coalescing())
                    .await
                    .expect("is admitted");
                if n % 20 == 0 {
                    let cold = format!("objects/named/cold{n}");
                    hand.submit(&cold, Some(10), Options::default())
                        .await
                        .expect("is admitted");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                oldest = oldest.max(queue.snapshot().tasks.oldest_ms);
            }
            assert!(oldest <= 3000, "the oldest waited for {oldest} ms");
            let puts = play.remote.count(Call::Put, KEY);
            assert!((10..=290).contains(&puts), "{puts} PUTs of 300 generations");
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn many_generations(play: &mut Play) {
    let restarts = play.flip();
    let down = Fault::Error(RemoteError::transient("PutObject"));
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            play.remote.always(Some(Call::Put), Some(KEY), down.clone());
            let mut last = hand.durable(KEY, Some(500), coalescing()).await;
            for _ in 1..1000 {
                last = hand
                    .submit(KEY, Some(500), coalescing())
                    .await
                    .expect("is admitted")
                    .1;
            }
            let durable = last.durable().await;
            durable.expect("is durable");
            lock(&play.objects).durable(KEY, 999);
            let now = hand.env.store.queue().snapshot();
            // One that has begun, the one behind it, and no more.
            assert!(now.admitted_bytes <= 3 * 600, "{now:#?}");
            assert!(now.tasks.tasks <= 2, "{now:#?}");
        };
        crew.during(work).await;
        if !restarts {
            crew.during(healed(play, &hand, false)).await;
        }
    });
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        if restarts {
            healed(play, &hand, true).await;
        }
    });
}

/// S3 is back.
async fn healed(play: &Play, hand: &Hand<'_>, is_reborn: bool) {
    let before = play.remote.count(Call::Put, KEY);
    play.remote.heal();
    let drained = hand.env.store.queue().drain();
    hand.queued("drain", drained).await.expect("goes up");
    let puts = play.remote.count(Call::Put, KEY) - before;
    let seen = play.remote.seen().into_iter();
    let all: Vec<_> = seen.filter(|seen| seen.key == KEY).skip(before).collect();
    // What a kill comes between, a record and the end of what it supersedes, goes up once more.
    let most = 2 + usize::from(is_reborn);
    assert!((1..=most).contains(&puts), "{puts} PUTs: {all:?}");
    let body = objects::body(KEY, 999, 500);
    assert_eq!(play.remote.object(KEY), Some(body), "the last is the last");
    play.at_rest(&[KEY]);
}

fn after_quarantined(play: &mut Play) {
    let (sst, manifest) = ("objects/named/sst", "objects/named/manifest");
    let late = "objects/named/late";
    for second in [manifest, late] {
        lock(&play.objects).is_after(second, sst);
    }
    let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
    play.remote
        .always(Some(Call::Put), Some(sst), Fault::Error(refused));
    let restarts = play.roll(0..3);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let first = hand.durable(sst, padding(play), Options::default()).await;
            hand.durable(manifest, Some(10), after(&[&first])).await;
            let end = hand.settled(&first).await;
            assert!(
                matches!(end, Settlement::Quarantined(Cause::Refused(_))),
                "{end:?}"
            );
            assert_eq!(play.remote.count(Call::Put, sst), 1, "one attempt");
            hand.durable(late, Some(10), after(&[&first])).await;
            play.pause(0..5000).await;
        };
        crew.during(work).await;
    });
    for _ in 0..restarts {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            hand.env.world.may_quarantine.set(true);
            let mut crew = play.crew(&hand, Crowd::NOBODY).await;
            crew.for_a_while(play, 0..20_000).await;
            if play.flip() {
                play.shut_down(&hand, &mut crew, Duration::from_secs(5))
                    .await;
            }
        });
    }
    for key in [manifest, late] {
        assert_eq!(play.remote.count(Call::Put, key), 0, "{key} is parked");
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        let queue = hand.env.store.queue();
        let [task] = &queue.quarantined()[..] else {
            panic!("{:?}", queue.quarantined())
        };
        assert_eq!(task.key, sst);
        let parked: Vec<Receipt> = queue
            .pending()
            .into_iter()
            .map(|task| task.receipt)
            .collect();
        play.remote.heal();
        let again = queue.replay(task.task).await.expect("is taken up again");
        let replayed = hand.settled(&again).await;
        assert!(replayed.is_in_s3(), "{replayed:?}");
        for receipt in parked {
            let end = hand.settled(&receipt).await;
            assert!(
                end.is_in_s3() || receipt.task() == task.task,
                "{}: {end:?}",
                receipt.key()
            );
        }
        let seen = play.remote.seen();
        let last = seen.iter().rposition(|seen| seen.key == sst);
        let first = seen
            .iter()
            .position(|seen| seen.key == manifest || seen.key == late);
        assert!(last < first && first.is_some(), "never first");
    });
}

fn after_what_never_comes(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        hand.env.world.pauses.set(true);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let queue = hand.env.store.queue();
            let submit = async |key: &str, options: Options| {
                queue.submit(key, "x", options).await.expect("is admitted")
            };
            play.remote.plant("named/sst", "somebody else's");
            queue.pause(PauseWhat::Uploads);
            let sst = submit("named/sst", Options::default()).await;
            let manifest = submit("named/manifest", after(&[&sst])).await;
            let behind = submit("named/behind", after(&[&manifest])).await;
            queue.resume(PauseWhat::Uploads);
            assert_eq!(hand.settled(&sst).await, Settlement::PreconditionFailed);
            let end = hand.settled(&manifest).await;
            assert_eq!(end, Settlement::Quarantined(Cause::Dependency(sst.task())));
            queue.purge(manifest.task()).expect("is purged");
            let end = hand.settled(&behind).await;
            assert_eq!(
                end,
                Settlement::Quarantined(Cause::Dependency(manifest.task()))
            );
            queue.purge(behind.task()).expect("is purged");
            assert_eq!(play.remote.count(Call::Put, "named/manifest"), 0);
            // K1, B after K1, then K2 supersedes K1; or the other way round.
            queue.pause(PauseWhat::Uploads);
            let first = hand.durable(KEY, padding(play), coalescing()).await;
            let superseded_first = play.flip();
            let mut heir = None;
            if superseded_first {
                heir = Some(hand.durable(KEY, padding(play), coalescing()).await);
            }
            let b = hand
                .durable("objects/named/b", Some(3), after(&[&first]))
                .await;
            if !superseded_first {
                heir = Some(hand.durable(KEY, padding(play), coalescing()).await);
            }
            play.pause(0..100).await;
            queue.resume(PauseWhat::Uploads);
            let heir = heir.expect("there is one");
            for receipt in [&first, &b, &heir] {
                let end = hand.settled(receipt).await;
                assert!(end.is_in_s3(), "{}: {end:?}", receipt.key());
            }
            let seen = play.remote.seen();
            let put = |key: &str| seen.iter().position(|seen| seen.key == key);
            assert!(put(KEY) < put("objects/named/b"), "never first");
            play.at_rest(&[KEY]);
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}
