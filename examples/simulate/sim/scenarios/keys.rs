//! Keys and their past: D4, D5, D6, E9, E26, E33.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Condition, Error, Options, Settlement};
use tokio::time::Instant;

use super::super::env::lock;
use super::super::life::ENOUGH;
use super::super::objects;
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, rewritable};
use super::play::{End, Play};

pub(super) const KEY: &str = "objects/named/k";

pub const ALL: &[Named] = &[
    Named {
        name: "a_request_of_the_past_lands_late",
        rows: &["D6", "E9"],
        given: "a PUT or DELETE was given up and is still on its way; the next state is in S3",
        then: "it changes nothing when it lands, in the same life or across a crash",
        play: late_past,
    },
    Named {
        name: "a_put_is_cut_off_anywhere",
        rows: &["D4"],
        given: "a PUT hangs, is lost or late before or after its effect, and shutdown comes",
        then: "it is deferred, not told as uploaded, and right after the next open",
        play: put_cut_off,
    },
    Named {
        name: "a_lost_reply_is_our_own",
        rows: &["D5"],
        given: "a conditional PUT took effect, its reply is lost, and the retry meets 412",
        then: "it is known as ours, and foreign bytes are not",
        play: own_412,
    },
    Named {
        name: "a_condition_of_the_caller_fails",
        rows: &["E26"],
        given: "IfAbsent meets an object",
        then: "that is an outcome, and equal bytes are a success where the caller says so",
        play: callers_condition,
    },
    Named {
        name: "a_state_that_comes_back",
        rows: &["E33"],
        given: "a; b is unknown; c; a again, with b still on its way",
        then: "the second a waits for b's signature, across a crash too, and b changes nothing",
        play: state_comes_back,
    },
    Named {
        name: "a_delete_waits_for_what_may_land",
        rows: &["E33"],
        given: "PUT-if-absent is unknown, then its key is deleted, and the PUT lands",
        then: "the DELETE is told when the object is gone for good",
        play: delete_and_late_put,
    },
];

fn lost() -> Fault {
    Fault::LostReply(RemoteError::lost("PutObject"))
}

/// Bytes of a body beyond its text: in a record, or in a file of its own.
pub(super) fn padding(play: &Play) -> Option<usize> {
    Some(play.one_of(&[0, 40, 700, 6000]))
}

fn late_past(play: &mut Play) {
    play.config.queue.signature_lifetime = Duration::from_secs(600);
    let (deletes, crosses) = (play.flip(), play.flip());
    let call = if deletes { Call::Delete } else { Call::Put };
    let crowd = Crowd::some(play);
    let late = async |play: &Play, hand: &Hand<'_>| {
        hand.up(KEY, padding(play), rewritable()).await;
        let before = play.remote.count(call, KEY);
        play.remote.once(Some(call), Some(KEY), Fault::Late);
        if crosses {
            // Nothing else of it arrives in this life.
            play.remote.always(Some(call), Some(KEY), Fault::Hang);
        }
        let padding = padding(play).filter(|_| !deletes);
        let receipt = hand.durable(KEY, padding, rewritable()).await;
        play.seen(call, KEY, before + 1).await;
        if !crosses && play.flip() {
            hand.settled(&receipt).await;
        }
    };
    let lands = async |play: &Play, hand: &Hand<'_>| {
        hand.up(KEY, padding(play), rewritable()).await;
        play.pause(0..2000).await;
        let landed = play.remote.land_late();
        assert_eq!(landed, [false], "it was on its way, and changes nothing");
        play.at_rest(&[KEY]);
    };
    if crosses {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            hand.env.world.storm();
            let mut crew = play.crew(&hand, crowd).await;
            crew.during(late(play, &hand)).await;
            crew.for_a_while(play, 0..3000).await;
        });
        play.remote.heal();
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, crowd).await;
        let all = async {
            if !crosses {
                late(play, &hand).await;
            }
            lands(play, &hand).await;
        };
        crew.during(all).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn put_cut_off(play: &mut Play) {
    let fault = match play.roll(0..6) {
        0 => Fault::Hang,
        1 => Fault::HangAfter,
        2 => Fault::Late,
        3 => Fault::Delay(ENOUGH),
        4 => lost(),
        _ => Fault::Error(RemoteError::lost("PutObject")),
    };
    let options = play.one_of(&[Options::default(), rewritable()]);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::some(play)).await;
        let work = async {
            play.remote
                .always(Some(Call::Put), Some(KEY), fault.clone());
            // Nobody can ask what became of it.
            play.remote.always(Some(Call::Head), Some(KEY), Fault::Hang);
            let receipt = hand.durable(KEY, padding(play), options.clone()).await;
            if matches!(options.policy, s3_writeback::KeyPolicy::WriteOnce) {
                play.seen(Call::Put, KEY, 1).await;
            }
            play.pause(0..500).await;
            assert_eq!(receipt.settlement(), None, "{fault:?}");
            receipt
        };
        let receipt = crew.during(work).await;
        let within = play.ms(500..3000);
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.sealed && report.deferred > 0, "{report:#?}");
        assert_eq!(
            receipt.settlement(),
            Some(Settlement::Deferred),
            "{fault:?}"
        );
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        // Unless it is there already.
        let pending = hand.env.store.queue().pending();
        if let Some(task) = pending.iter().find(|task| task.key == KEY) {
            let end = hand.settled(&task.receipt).await;
            assert!(end.is_in_s3(), "{end:?}");
        }
        play.remote.land_late();
        play.at_rest(&[KEY]);
    });
}

fn own_412(play: &mut Play) {
    let absent = Options {
        condition: Some(Condition::IfAbsent { same_is_ok: false }),
        ..Options::default()
    };
    let options = play.one_of(&[Options::default(), rewritable(), absent]);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let times = usize::try_from(play.roll(1..3)).expect("fits");
            play.remote.times(times, Some(Call::Put), Some(KEY), lost());
            hand.up(KEY, padding(play), options.clone()).await;
            let ours = play.remote.seen().into_iter();
            let ours: Vec<_> = ours.filter(|seen| seen.key == KEY).collect();
            assert!(ours.len() >= 2, "it was not asked again: {ours:?}");
            // Foreign bytes are not ours, also where a PUT of ours may have been there.
            let theirs = "named/other";
            play.remote.plant(theirs, "theirs");
            play.remote.once(Some(Call::Put), Some(theirs), lost());
            let once = Options {
                policy: s3_writeback::KeyPolicy::WriteOnce,
                ..options.clone()
            };
            let queue = hand.env.store.queue();
            let receipt = queue
                .submit(theirs, "mine", once)
                .await
                .expect("is admitted");
            let end = hand.settled(&receipt).await;
            assert_eq!(end, Settlement::PreconditionFailed);
            assert_eq!(play.remote.object(theirs).expect("is there"), "theirs");
        };
        crew.during(work).await;
    });
}

fn callers_condition(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let key = "named/lease";
            play.remote.plant(key, "there");
            for _ in 0..6 {
                let (body, same_is_ok) = (play.one_of(&["mine", "there"]), play.flip());
                // Equal bytes that nobody signed are taken for ours where it may be.
                if body == "mine" && play.flip() {
                    play.remote.once(Some(Call::Put), Some(key), lost_request());
                }
                let options = Options {
                    condition: Some(Condition::IfAbsent { same_is_ok }),
                    ..Options::default()
                };
                let queue = hand.env.store.queue();
                let receipt = queue.submit(key, body, options).await.expect("is admitted");
                let end = hand.settled(&receipt).await;
                match same_is_ok && body == "there" {
                    true => assert!(matches!(end, Settlement::Uploaded(_)), "{end:?}"),
                    false => assert_eq!(end, Settlement::PreconditionFailed),
                }
                assert_eq!(play.remote.object(key).expect("is there"), "there");
                assert!(
                    hand.env.store.check_fenced().is_ok(),
                    "nobody is fenced by it"
                );
            }
            assert!(hand.env.store.queue().quarantined().is_empty());
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn lost_request() -> Fault {
    Fault::Error(RemoteError::lost("PutObject"))
}

fn state_comes_back(play: &mut Play) {
    let lifetime = Duration::from_secs(300);
    play.config.queue.signature_lifetime = lifetime;
    play.config.queue.op_deadline = Duration::from_secs(3600);
    let crosses = play.flip();
    let size = padding(play).unwrap_or_default();
    let a = objects::body(KEY, 0, size);
    // So that the times of lives are those of the wall's clock.
    let began = play.clock();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.up(KEY, Some(size), rewritable()).await;
            play.remote.once(Some(Call::Put), Some(KEY), Fault::Late);
            let b = hand.durable(KEY, padding(play), rewritable()).await;
            play.seen(Call::Put, KEY, 2).await;
            if !crosses {
                assert!(hand.settled(&b).await.is_in_s3());
                came_back(play, &hand, &a, began + lifetime).await;
            }
        };
        crew.during(work).await;
        if !crosses {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
    });
    if crosses {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            hand.env.world.storm();
            for task in hand.env.store.queue().pending() {
                assert!(hand.settled(&task.receipt).await.is_in_s3());
            }
            came_back(play, &hand, &a, began + lifetime).await;
        });
    }
}

/// Puts c, then a again, while b is on its way until `until` at the earliest.
async fn came_back(play: &Play, hand: &Hand<'_>, a: &bytes::Bytes, until: Duration) {
    hand.up(KEY, padding(play), rewritable()).await;
    let as_before = |_| Some(a.clone());
    let submitted = hand.submit_as(KEY, as_before, rewritable()).await;
    let (at, again) = submitted.expect("is admitted");
    again.durable().await.expect("is durable");
    lock(&play.objects).durable(KEY, at);
    let other = Instant::now();
    hand.up("objects/named/other", Some(10), rewritable()).await;
    assert!(
        other.elapsed() < Duration::from_secs(20),
        "other keys do not wait"
    );
    let left = until.saturating_sub(play.clock());
    tokio::time::sleep(left.saturating_sub(Duration::from_secs(2))).await;
    assert_eq!(again.settlement(), None, "b may still land");
    assert_eq!(
        play.remote.land_late(),
        [false],
        "b, and it changes nothing"
    );
    let end = hand.settled(&again).await;
    assert!(end.is_in_s3(), "{end:?}");
    assert!(play.clock() >= until, "{:?} of {until:?}", play.clock());
    assert_eq!(play.remote.object(KEY).as_ref(), Some(a));
}

fn delete_and_late_put(play: &mut Play) {
    let lifetime = Duration::from_secs(300);
    play.config.queue.signature_lifetime = lifetime;
    play.config.queue.op_deadline = Duration::from_secs(3600);
    let crosses = play.flip();
    let began = play.clock();
    let deletes = async |play: &Play, hand: &Hand<'_>| {
        let submitted = hand.submit(KEY, None, Options::default()).await;
        let (_, receipt) = submitted.expect("is admitted");
        let left = (began + lifetime).saturating_sub(play.clock());
        tokio::time::sleep(left.saturating_sub(play.ms(2000..100_000))).await;
        assert_eq!(receipt.settlement(), None, "a write may still land");
        assert_eq!(play.remote.object(KEY), None);
        assert_eq!(
            play.remote.land_late(),
            [true],
            "it was on its way, and lands"
        );
        let end = hand.settled(&receipt).await;
        assert_eq!(end, Settlement::Deleted);
        lock(&play.objects).durable(KEY, 1);
        play.at_rest(&[KEY]);
    };
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        play.remote.once(Some(Call::Put), Some(KEY), Fault::Late);
        let down = Fault::Error(RemoteError::transient("PutObject"));
        play.remote.always(Some(Call::Put), Some(KEY), down);
        let submitted = hand.submit(KEY, padding(play), Options::default()).await;
        let (_, receipt) = submitted.expect("is admitted");
        play.seen(Call::Put, KEY, 3).await;
        let queue = hand.env.store.queue();
        while let Err(error) = queue.cancel(receipt.task()) {
            assert!(matches!(error, Error::WrongState { .. }), "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(hand.settled(&receipt).await, Settlement::Cancelled);
        play.remote.heal();
        if !crosses {
            deletes(play, &hand).await;
        }
    });
    if crosses {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            deletes(play, &hand).await;
        });
    }
}
