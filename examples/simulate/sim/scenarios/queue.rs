//! The queue: A7, A15, B2, B3, D9, D10.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use s3_writeback::error::Limit;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Options, PauseWhat, Receipt};
use tokio::time::Instant;

use super::super::life::ENOUGH;
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, spawn};
use super::play::{End, Play};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub const ALL: &[Named] = &[
    Named {
        name: "a_blocked_submit_is_dropped",
        rows: &["A7"],
        given: "the queue is full, many wait for room, and some of them leave",
        then: "all others are admitted and uploaded, and no room is lost",
        play: blocked_submit_dropped,
    },
    Named {
        name: "larger_than_the_queue",
        rows: &["A15", "B3"],
        given: "bodies of a quarter of the limit, one that is one too many, and one above the limit",
        then: "four are admitted, the fifth waits, and the large one is refused at once with the limit",
        play: larger_than_the_queue,
    },
    Named {
        name: "many_submitters_at_once",
        rows: &["B2"],
        given: "twice as many submitters as the limit, over and over, while tasks come and go",
        then: "never more than the limit are in",
        play: many_submitters,
    },
    Named {
        name: "as_many_that_fail_as_there_are_slots",
        rows: &["D9"],
        given: "as many tasks as slots fail and back off for minutes",
        then: "others go on at once, and the slots are never more",
        play: back_off_holds_no_slot,
    },
    Named {
        name: "idle_holders",
        rows: &["D10"],
        given: "many operations were made and not begun, and holds are held",
        then: "they use no slot and no room, and others go on",
        play: idle_holders,
    },
];

/// Submits many; each when there is room.
pub(super) async fn submit_all(hand: &Hand<'_>, name: &str, count: u64) -> Vec<Receipt> {
    let mut all = Vec::new();
    for n in 0..count {
        let key = format!("objects/named/{name}{n}");
        all.push(hand.durable(&key, Some(20), Options::default()).await);
    }
    all
}

pub(super) async fn all_up(hand: &Hand<'_>, receipts: &[Receipt]) {
    for receipt in receipts {
        let end = hand.settled(receipt).await;
        assert!(end.is_in_s3(), "{}: {end:?}", receipt.key());
    }
}

fn blocked_submit_dropped(play: &mut Play) {
    play.config.queue.max_tasks = play.roll(1..4);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let most = usize::try_from(play.config.queue.max_tasks).expect("fits");
            let gate = play.hold_up(most, Call::Put, "objects/named/held");
            hand.env.world.storm();
            let held = submit_all(&hand, "held", most as u64).await;
            let queue = hand.env.store.queue();
            let mut line: Vec<_> = (0..30)
                .map(|n| {
                    let op = queue.submit(format!("named/w{n}"), "x", Options::default());
                    Box::pin(op.within(HOUR).into_future())
                })
                .collect();
            for waiting in &mut line {
                assert!(
                    waiting.as_mut().now_or_never().is_none(),
                    "the queue is full"
                );
            }
            assert_eq!(queue.snapshot().admission_waiters, 30);
            line.retain(|_| play.roll(0..3) > 0);
            assert_eq!(queue.snapshot().admission_waiters, line.len());
            for _ in 0..most {
                gate.notify_one();
                play.pause(0..20).await;
            }
            all_up(&hand, &held).await;
            // Who has been granted room by now leaves without taking it.
            for _ in 0..play.roll(0..3).min(line.len() as u64) {
                drop(line.remove(0));
            }
            let ends = line.into_iter().map(async |waiting| {
                let receipt = waiting.await.expect("is admitted");
                assert!(hand.settled(&receipt).await.is_in_s3());
            });
            join_all(ends).await;
            all_up(&hand, &submit_all(&hand, "last", 5).await).await;
            hand.env.world.mend();
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn larger_than_the_queue(play: &mut Play) {
    let quarter = play.roll(1000..20_000);
    play.config.queue.max_bytes = 4 * quarter + play.roll(0..1000);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            play.remote.under(None, Some(Call::Put), "named/", Fault::Hang);
            let queue = hand.env.store.queue();
            let bytes = |size: u64| vec![7_u8; usize::try_from(size).expect("fits")];
            let submit = |n: u64, size: u64| {
                queue.submit(format!("named/{n}"), bytes(size), Options::default())
            };
            for n in 0..4 {
                submit(n, quarter).await.expect("has room");
            }
            let max = play.config.queue.max_bytes;
            let over = submit(4, quarter.max(1001)).now();
            let is_full = matches!(over, Err(Error::QueueFull { limit: Limit::Bytes, .. }));
            assert!(is_full, "{over:?}");
            let waits = submit(4, quarter.max(1001)).within(play.ms(1..5000)).await;
            assert!(matches!(waits, Err(Error::TimedOut { .. })), "{waits:?}");
            if play.flip() {
                queue.pause(PauseWhat::Admission);
                hand.env.world.pauses.set(true);
            }
            let began = Instant::now();
            let large = submit(5, max + play.roll(1..1000)).await;
            let is_so = matches!(large, Err(Error::TooLarge { limit: Limit::Bytes, max: is, .. }) if is == max);
            assert!(is_so, "{large:?}");
            assert_eq!(began.elapsed(), Duration::ZERO, "at once");
            queue.resume(PauseWhat::Admission);
            assert_eq!(queue.snapshot().admission_waiters, 0);
            // As one goes up, the fifth has its room.
            let fifth = spawn(submit(4, quarter.max(1001)).within(HOUR).into_future());
            play.pause(0..100).await;
            play.remote.heal();
            fifth.await.expect("ends").expect("has room");
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn many_submitters(play: &mut Play) {
    let most = play.roll(1..40);
    play.config.queue.max_tasks = most;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let queue = hand.env.store.queue();
            for round in 0..play.roll(3..8) {
                let all = (0..2 * most + 1).map(async |n| {
                    let key = format!("objects/named/{round}/{n}");
                    let patient = play.flip();
                    let options = Options::default();
                    let op = queue.submit(key, "x", options);
                    let out = if patient {
                        op.within(HOUR).await
                    } else {
                        op.now()
                    };
                    let is = queue.snapshot().admitted_tasks;
                    assert!(is <= most, "{is} of {most}");
                    match out {
                        Ok(receipt) => assert!(hand.settled(&receipt).await.is_in_s3()),
                        Err(Error::QueueFull { max, .. }) => assert!(!patient && max == most),
                        Err(Error::WouldWait(_)) => assert!(!patient),
                        Err(error) => panic!("{error:?}"),
                    }
                });
                join_all(all).await;
            }
            assert_eq!(queue.snapshot().admitted_tasks, 0);
        };
        crew.during(work).await;
    });
}

fn back_off_holds_no_slot(play: &mut Play) {
    play.config.queue.retry_base = Duration::from_secs(300);
    play.config.queue.retry_cap = Duration::from_secs(300);
    play.config.queue.op_deadline = Duration::from_secs(300);
    play.config.queue.prefix_share_percent = 100;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let slots = play.config.queue.workers as u64;
            let down = Fault::Error(RemoteError::transient("PutObject"));
            for n in 0..slots {
                let key = format!("objects/named/bad{n}");
                let times = usize::try_from(play.roll(1..3)).expect("fits");
                play.remote
                    .times(times, Some(Call::Put), Some(&key), down.clone());
            }
            let bad = submit_all(&hand, "bad", slots).await;
            let tried = usize::try_from(slots).expect("fits");
            play.seen(Call::Put, "objects/named/bad", tried).await;
            let began = Instant::now();
            let good = submit_all(&hand, "good", 30).await;
            all_up(&hand, &good).await;
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{:?}",
                began.elapsed()
            );
            let waiting = bad
                .iter()
                .filter(|receipt| receipt.settlement().is_none())
                .count();
            assert!(waiting > 0, "none of them was in back-off");
            for receipt in &bad {
                let end = receipt.settled().within(HOUR).await.expect("ends");
                assert!(end.is_in_s3(), "{end:?}");
            }
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn idle_holders(play: &mut Play) {
    play.config.queue.max_tasks = play.roll(1..4);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let queue = hand.env.store.queue();
            let mut idle: Vec<_> = (0..100)
                .map(|n| queue.submit(format!("named/idle{n}"), "x", Options::default()))
                .collect();
            let gets: Vec<_> = (0..100)
                .map(|n| queue.get(format!("named/idle{n}"), None))
                .collect();
            let hold = queue.hold("idle").expect("a hold");
            for _ in 0..100 {
                queue.ready(1).now().expect("asking takes no room");
            }
            all_up(&hand, &submit_all(&hand, "busy", 20).await).await;
            assert_eq!(play.remote.count(Call::Put, "named/idle"), 0);
            assert_eq!(play.remote.count(Call::Get, "named/idle"), 0);
            let late = idle.pop().expect("one of them").await.expect("is admitted");
            assert!(hand.settled(&late).await.is_in_s3());
            drop((idle, gets, hold));
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}
