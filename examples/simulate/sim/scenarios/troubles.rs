//! Workers in trouble, and opens that are given up: A4, B6, B7, B8, B12, C5.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Cause, Error, Options, PauseWhat, Settlement};
use tokio::time::Instant;

use super::super::env::lock;
use super::super::life::ENOUGH;
use super::Named;
use super::crowd::Crowd;
use super::hand::{file, spawn};
use super::play::{End, Play};
use super::queue::{HOUR, all_up, submit_all};

pub const ALL: &[Named] = &[
    Named {
        name: "every_attempt_panics",
        rows: &["A4", "B6"],
        given: "the code of more attempts panics than there are workers, with tasks queued",
        then: "each is quarantined with the text, the rest goes on within a second, no slot leaks",
        play: every_attempt_panics,
    },
    Named {
        name: "one_is_refused_and_credentials_expire",
        rows: &["B7"],
        given: "one object is refused for good; then 403 to everything for minutes",
        then: "one attempt, the others unaffected; nothing is quarantined, and it drains when mended",
        play: refused_and_expired,
    },
    Named {
        name: "errors_past_any_count",
        rows: &["B8"],
        given: "transient errors for long, or throttling",
        then: "nothing is quarantined, and when S3 is well all goes up",
        play: errors_past_any_count,
    },
    Named {
        name: "paused_and_resumed",
        rows: &["B12"],
        given: "admission or uploads are paused and resumed",
        then: "nothing is admitted or sent meanwhile, and nothing is lost",
        play: paused_and_resumed,
    },
    Named {
        name: "an_open_is_cancelled",
        rows: &["C5"],
        given: "an open is dropped after any number of polls, over and over",
        then: "the next one works, and nothing was lost",
        play: open_cancelled,
    },
];

fn every_attempt_panics(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let panics = play.config.queue.workers as u64 + play.roll(2..12);
            let times = usize::try_from(panics).expect("fits");
            let all = panics + play.roll(10..30);
            let queue = hand.env.store.queue();
            queue.pause(PauseWhat::Uploads);
            let receipts = submit_all(&hand, "", all).await;
            let bug = Fault::Panic("a bug in the client");
            play.remote
                .under(Some(times), Some(Call::Put), "objects/", bug);
            let began = Instant::now();
            queue.resume(PauseWhat::Uploads);
            let mut panicked = 0;
            for receipt in &receipts {
                match hand.settled(receipt).await {
                    Settlement::Quarantined(Cause::Panicked(text)) => {
                        assert_eq!(text, "a bug in the client");
                        panicked += 1;
                    }
                    end => assert!(end.is_in_s3(), "{end:?}"),
                }
            }
            assert_eq!(panicked, panics);
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{:?}",
                began.elapsed()
            );
            for task in queue.quarantined() {
                let again = queue.replay(task.task).await.expect("is taken up again");
                assert!(hand.settled(&again).await.is_in_s3());
            }
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn refused_and_expired(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.may_quarantine.set(true);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let (queue, bad) = (hand.env.store.queue(), "named/bad");
            let refused = RemoteError::permanent("PutObject", 400, "EntityTooLarge");
            play.remote
                .always(Some(Call::Put), Some(bad), Fault::Error(refused));
            let op = queue.submit(bad, "x", Options::default());
            let receipt = op.await.expect("is admitted");
            let others = submit_all(&hand, "good", play.roll(1..20)).await;
            let end = hand.settled(&receipt).await;
            assert!(
                matches!(end, Settlement::Quarantined(Cause::Refused(_))),
                "{end:?}"
            );
            all_up(&hand, &others).await;
            assert_eq!(play.remote.count(Call::Put, bad), 1, "one attempt");
            queue.purge(receipt.task()).expect("is purged");
            let expired = RemoteError::environment("any", 403, "AccessDenied");
            play.remote.always(None, None, Fault::Error(expired));
            let from = play.remote.seen().len();
            let all = submit_all(&hand, "later", play.roll(2..20)).await;
            play.pause(10_000..300_000).await;
            assert!(play.remote.seen().len() - from >= 2, "it is not tried");
            assert!(queue.quarantined().is_empty());
            assert!(all.iter().all(|receipt| receipt.settlement().is_none()));
            play.remote.heal();
            all_up(&hand, &all).await;
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn errors_past_any_count(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let down = match play.flip() {
                true => RemoteError::transient("any"),
                false => RemoteError::throttled("any"),
            };
            play.remote
                .always(Some(Call::Put), None, Fault::Error(down));
            let all = submit_all(&hand, "k", play.roll(1..20)).await;
            hand.filled(file(0), 2).await;
            let long = play.ms(60_000..180_000);
            tokio::time::sleep(long).await;
            let queue = hand.env.store.queue();
            let tries = play.remote.count(Call::Put, all[0].key());
            assert!(tries >= 10, "{tries} tries in {long:?}");
            assert!(queue.quarantined().is_empty());
            play.remote.heal();
            all_up(&hand, &all).await;
            hand.uploaded().await;
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn paused_and_resumed(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.pauses.set(true);
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let queue = hand.env.store.queue();
            let mut all = submit_all(&hand, "before", 3).await;
            for round in 0..play.roll(2..5) {
                if play.flip() {
                    queue.pause(PauseWhat::Uploads);
                    // What is in flight may come to its end.
                    play.pause(100..200).await;
                    all.extend(submit_all(&hand, &format!("u{round}/"), 3).await);
                    let puts = play.remote.count(Call::Put, "objects/");
                    play.pause(0..20_000).await;
                    assert_eq!(
                        play.remote.count(Call::Put, "objects/"),
                        puts,
                        "it is paused"
                    );
                    assert!(matches!(queue.drain().await, Err(Error::Paused(_))));
                    queue.resume(PauseWhat::Uploads);
                } else {
                    queue.pause(PauseWhat::Admission);
                    let key = format!("objects/named/a{round}");
                    let refused = queue.submit(key.clone(), "x", Options::default()).now();
                    assert!(matches!(refused, Err(Error::Paused(_))), "{refused:?}");
                    let waits = queue.submit(key, "x", Options::default());
                    let waits = spawn(waits.within(HOUR).into_future());
                    play.pause(10..20_000).await;
                    assert!(!waits.is_finished(), "admission is paused");
                    queue.resume(PauseWhat::Admission);
                    all.push(waits.await.expect("ends").expect("is admitted"));
                }
            }
            all_up(&hand, &all).await;
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn open_cancelled(play: &mut Play) {
    let key = "objects/named/k";
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(file(0), 2).await;
            hand.sync_all().await.expect("syncs");
            play.remote.always(Some(Call::Put), Some(key), Fault::Hang);
            hand.durable(key, Some(10), Options::default()).await;
        };
        crew.during(work).await;
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let mut given_up = 0;
        for _ in 0..play.roll(3..10) {
            let polls = u32::try_from(play.roll(0..40)).expect("fits");
            if !play.open_and_give_up(polls).await {
                break;
            }
            given_up += 1;
            play.pause(0..20).await;
        }
        let began = Instant::now();
        let hand = play.open().await;
        assert!(began.elapsed() < ENOUGH, "{:?}", began.elapsed());
        play.say(|| format!("{given_up} opens were given up"));
        let drained = hand.env.store.queue().drain();
        hand.queued("drain", drained).await.expect("goes up");
        assert!(play.remote.object(key).is_some());
        lock(&play.objects).look_at_rest(&play.remote);
    });
}
