//! Checkpoints, whatever else goes on: E17, E18, E20, E21.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Mode, Options, PartId, Phase};
use tokio::time::Instant;

use super::super::acts;
use super::super::life::ENOUGH;
use super::super::model::Reg;
use super::super::pages::{self, PART, Run, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::{file, spawn};
use super::lines::slow_packs;
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "a_write_waits_while_a_line_is_drawn",
        rows: &["E17"],
        given: "a write over three parts of which the second is held; a line",
        then: "the line is not delayed, and the write is whole",
        play: write_waits,
    },
    Named {
        name: "an_outage_in_a_checkpoint",
        rows: &["E17"],
        given: "S3 goes down while a checkpoint is made",
        then: "writes go on up to a limit, and what is committed later is the line",
        play: outage,
    },
    Named {
        name: "roots_are_written_through_a_hold",
        rows: &["E18"],
        given: "the engine writes its roots during shutdown, through a hold, in time or late, or without",
        then: "they are in the last checkpoint, or refused",
        play: roots,
    },
    Named {
        name: "a_backlog_over_the_limit",
        rows: &["E20"],
        given: "reopened with a backlog over its limits, which goes up slowly",
        then: "a checkpoint has its permits, and is made before the backlog is through",
        play: backlog,
    },
    Named {
        name: "one_image_is_refused",
        rows: &["E21"],
        given: "S3 refuses one image of a pack for good",
        then: "all others are there, the part is named as failing, a checkpoint says so at once",
        play: one_refused,
    },
];

fn write_waits(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let id = file(0);
            hand.filled(id, 3).await;
            let before = hand.env.book.last(Reg::Unit(id, 0));
            let (there, holder) = (hand.file(id), hand.locker("holder"));
            let guard = there
                .lock(1, Mode::Exclusive, &holder)
                .await
                .expect("locks");
            let writer = hand.locker("writer");
            let ids = [0, 1, 2].map(|index| PartId {
                file: FileId(id),
                index,
            });
            let writes = async {
                let set = hand
                    .env
                    .store
                    .lock_many(&ids, Mode::Exclusive, &writer)
                    .await;
                let set = set.expect("locks");
                let run = Run {
                    file: id,
                    from: 0,
                    units: 3 * UNITS_OF_PART,
                };
                let (act, _) = acts::write(&hand.env.book, run, true);
                let bytes = pages::filled(act.id, UNITS_OF_PART);
                let pieces = ids.map(|id| (id, 0, &bytes[..]));
                set.write(&pieces).await.expect("writes");
                hand.env.book.end(&act);
                act.id
            };
            let line = async {
                play.pause(10..100).await;
                let waiters = hand.env.store.snapshot().lock_waiters;
                assert!(waiters > 0, "the write waits");
                let began = Instant::now();
                hand.checkpoint().await.expect("is committed");
                assert!(began.elapsed() < Duration::from_secs(10), "it is delayed");
                assert_eq!(play.latest(Reg::Unit(id, 0)).await, before);
                drop(guard);
            };
            let (written, ()) = futures::future::join(writes, line).await;
            hand.checkpoint().await.expect("is committed");
            for part in 0..3 {
                let reg = Reg::Unit(id, part * UNITS_OF_PART);
                assert_eq!(play.latest(reg).await, written, "the write is cut");
            }
        };
        crew.during(work).await;
    });
}

fn outage(play: &mut Play) {
    play.config.cache_bytes = 64 * PART;
    play.config.dirty_bytes = 24 * PART;
    play.config.checkpoint_within = Duration::from_secs(600);
    play.disk = Duration::ZERO;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let id = file(0);
            hand.filled(id, 12).await;
            let lines = hand.env.book.last(Reg::Unit(id, 0));
            let down = match play.flip() {
                true => Fault::Error(RemoteError::transient("any")),
                false => Fault::Hang,
            };
            play.remote.always(None, None, down);
            let asked = hand.drawn().await;
            for part in (0..24).chain(0..24) {
                let began = Instant::now();
                hand.fill(id, part).await.expect("no write waits for S3");
                assert!(
                    began.elapsed() < Duration::from_millis(10),
                    "{:?}",
                    began.elapsed()
                );
            }
            let there = hand.file(id);
            let bytes = pages::filled(1, UNITS_OF_PART);
            let over = there
                .write_at(&bytes, 30 * PART)
                .within(Duration::from_secs(1))
                .await;
            assert!(
                matches!(over, Err(Error::TimedOut { .. })),
                "here is the limit: {over:?}"
            );
            assert!(!asked.made.is_finished(), "S3 is down");
            play.pause(0..20_000).await;
            play.remote.heal();
            hand.made(asked).await.expect("is committed");
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, lines);
            assert_eq!(play.latest(Reg::Len(id)).await, 12 * PART);
        };
        crew.during(work).await;
    });
}

fn roots(play: &mut Play) {
    let way = play.roll(0..3);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let id = file(0);
        crew.during(hand.filled(id, 2)).await;
        let queue = hand.env.store.queue();
        let hold = queue.hold("roots").expect("a hold");
        let through = hand
            .env
            .store
            .locker_through(&hold, "roots")
            .expect("a locker");
        let (asked, store) = (Instant::now(), hand.env.store.clone());
        let within = Duration::from_secs(60);
        hand.env.world.is_ending.set(true);
        let shutdown = spawn(store.shutdown().within(within).into_future());
        let engine = async {
            hold.token().cancelled().await;
            let refused = hand.fill(id, 1).await;
            assert!(
                matches!(refused, Err(Error::ShuttingDown { .. })),
                "{refused:?}"
            );
            let there = hand.file(id);
            let guard = there
                .lock(0, Mode::Exclusive, &through)
                .await
                .expect("locks");
            let mut root = hand.env.book.last(Reg::Unit(id, 0));
            match way {
                0 => play.pause(0..3000).await,
                1 => {
                    play.pause(0..3000).await;
                    root = hand.fill_by(&guard).await.expect("through the hold");
                }
                _ => {
                    slow_packs(play);
                    play.until("the last line", || {
                        queue.snapshot().phase >= Phase::Checkpointing
                    })
                    .await;
                    let late = hand.fill_by(&guard).await;
                    assert!(matches!(late, Err(Error::ShuttingDown { .. })), "{late:?}");
                }
            }
            drop(guard);
            root
        };
        let root = crew.during(engine).await;
        drop((through, hold));
        let ends = async { shutdown.await.expect("ends") };
        let report = play.ends(&hand, &mut crew, within, ends).await;
        assert!(asked.elapsed() <= within + Duration::from_secs(6));
        assert!(report.sealed && report.dirty_parts == 0, "{report:#?}");
        assert!(report.checkpoint.is_some(), "{report:#?}");
        assert_eq!(
            report.late_holds.len(),
            usize::from(way == 2),
            "{report:#?}"
        );
        assert_eq!(play.latest(Reg::Unit(id, 0)).await, root, "way {way}");
    });
}

fn backlog(play: &mut Play) {
    let id = file(0);
    let most = play.roll(60..200);
    play.config.queue.max_tasks = most;
    let down = Fault::Error(RemoteError::transient("PutObject"));
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 1).await;
            play.remote
                .under(None, Some(Call::Put), "objects/log/", down.clone());
            for task in 0..most {
                hand.durable(&format!("objects/log/{task}"), Some(10), Options::default())
                    .await;
            }
            hand.fill(id, 0).await.expect("is written");
            hand.sync(id).await.expect("syncs");
        };
        crew.during(work).await;
    });
    // Slow, one at a time.
    play.config.queue.max_tasks = most / 10;
    play.config.queue.workers = 1;
    play.remote.heal();
    let slow = Fault::Delay(Duration::from_secs(1));
    play.remote
        .under(None, Some(Call::Put), "objects/log/", slow);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let queue = hand.env.store.queue();
            let left = || queue.snapshot().tasks.tasks as u64;
            assert!(left() > most / 2, "{} of {most} are left", left());
            let full = queue.submit("named/new", "x", Options::default()).now();
            assert!(matches!(full, Err(Error::QueueFull { .. })), "{full:?}");
            let began = Instant::now();
            hand.checkpoint().await.expect("is committed");
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{:?}",
                began.elapsed()
            );
            assert!(left() > most / 4, "the backlog is through");
            play.remote.heal();
            hand.queued("ready", queue.ready(1).within(ENOUGH))
                .await
                .expect("there is room again");
        };
        crew.during(work).await;
    });
}

fn one_refused(play: &mut Play) {
    let parts = play.roll(10..60);
    play.config.cache_bytes = 128 * PART;
    play.config.dirty_bytes = 64 * PART;
    play.config.image_bytes = 256 * PART;
    play.config.pack_bytes = 64 * PART;
    play.config.max_dirty_age = Duration::from_secs(60);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let (id, bad) = (file(0), play.roll(0..parts));
            hand.create(id).await;
            for part in 0..parts {
                let value = hand.fill(id, part).await.expect("is written");
                if part == bad {
                    let poison = pages::filled(value, 1)[..64].to_vec();
                    play.remote.refuse_bodies_with(Some(poison.into()));
                }
            }
            let began = Instant::now();
            let error = hand.checkpoint().await.expect_err("one is refused");
            let at = |part: PartId| part.file.0 == id && u64::from(part.index) == bad;
            assert!(
                matches!(error, Error::PartFailed { part, .. } if at(part)),
                "{error}"
            );
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "at once: {:?}",
                began.elapsed()
            );
            let others = || hand.env.store.snapshot().dirty_bytes <= PART;
            play.until("all others are in S3", others).await;
            let failing = hand.env.store.snapshot().failing;
            assert!(failing.len() == 1 && at(failing[0].part), "{failing:?}");
            let puts = play.remote.count(Call::Put, "packs/");
            assert!(puts <= 40, "{puts} requests");
            play.remote.refuse_bodies_with(None);
            hand.checkpoint().await.expect("is committed");
        };
        crew.during(work).await;
    });
}
