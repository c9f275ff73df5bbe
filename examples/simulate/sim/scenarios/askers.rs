//! Who asks for the end, and who is told: C6, C12, D2, D8, E36.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Lane, Options, PauseWhat, Settlement};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::life::ENOUGH;
use super::super::pages::PART;
use super::Named;
use super::crowd::Crowd;
use super::ends::HOUR;
use super::hand::{file, spawn};
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "cancelled_dropped_and_used_after_the_end",
        rows: &["C6"],
        given: "cancelled before the open; used after the end; dropped without one",
        then: "clear errors, and nothing that was durable is lost",
        play: used_after_the_end,
    },
    Named {
        name: "many_short_lives",
        rows: &["C12"],
        given: "opened, used a little and shut down over and over",
        then: "no task, no name and no file is left over, and no id comes twice",
        play: short_lives,
    },
    Named {
        name: "every_way_to_ask_for_the_end",
        rows: &["D2"],
        given: "a drain, two shutdowns, one that is dropped, and a hurry, in any order",
        then: "all return, with the same report",
        play: every_way,
    },
    Named {
        name: "who_waits_for_room_at_the_end",
        rows: &["D8"],
        given: "some wait for room when the store is closed, or its disk fails for good, or it is fenced",
        then: "they are woken with that reason, and at once",
        play: waits_for_room,
    },
    Named {
        name: "a_token_and_a_shutdown",
        rows: &["E36"],
        given: "the token is cancelled, and shutdown is called as well, in either order",
        then: "one drain, not a hurried stop",
        play: token_and_shutdown,
    },
];

fn used_after_the_end(play: &mut Play) {
    let (key, way) = ("objects/named/k", play.roll(0..3));
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let id = file(0);
        crew.during(hand.filled(id, 2)).await;
        let queue = hand.env.store.queue().clone();
        play.remote.always(Some(Call::Put), Some(key), Fault::Hang);
        hand.env.world.storm();
        hand.durable(key, Some(10), Options::default()).await;
        match way {
            0 => {
                let report = play
                    .shut_down(&hand, &mut crew, Duration::from_secs(3))
                    .await;
                queue.shutdown_token().cancel();
                queue.hurry();
                let again = queue.shutdown().await.expect("a report");
                assert!(Arc::ptr_eq(&report, &again));
                let write = hand.file(id).write_at(&[1], 0).await;
                let submit = queue.submit("named/late", "x", Options::default()).await;
                let errors = [
                    write,
                    submit.map(drop),
                    queue
                        .delete("named/late", Options::default())
                        .await
                        .map(drop),
                    queue.get(key, None).await.map(drop),
                    queue.drain().await,
                    queue.ready(1).await,
                    hand.env.store.sync_all().await,
                    hand.env
                        .store
                        .checkpoint(Play::options(&hand.env.book))
                        .await
                        .map(drop),
                    hand.env.store.gc().await.map(drop),
                ];
                for (at, error) in errors.into_iter().enumerate() {
                    let fine = match &error {
                        Err(Error::ShuttingDown { .. }) => true,
                        // All of it is synced.
                        Ok(()) => at == 6,
                        // A look for garbage finds out at its first request.
                        Err(Error::Remote(error)) => error.to_string().contains("shut down"),
                        Err(_) => false,
                    };
                    assert!(fine, "{at}: {error:?}");
                }
            }
            1 => {
                // A token that was cancelled before it is opened; twice.
                play.shut_down(&hand, &mut crew, Duration::from_secs(3))
                    .await;
                let token = CancellationToken::new();
                token.cancel();
                token.cancel();
                let opened = play
                    .open_as(&play.here(), &play.remote, |as_is| {
                        as_is.cancelled_by(&token)
                    })
                    .await;
                match opened {
                    Ok(env) => {
                        let again = play.hand(&env);
                        let ends = env.store.shutdown().within(ENOUGH).into_future();
                        let mut nobody = super::crowd::Crew::default();
                        let report = play.ends(&again, &mut nobody, ENOUGH, ends).await;
                        assert!(report.sealed, "{report:#?}");
                    }
                    Err(error) => assert!(matches!(error, Error::ShuttingDown { .. }), "{error:?}"),
                }
            }
            _ => crew.go(),
        }
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let drained = hand.env.store.queue().drain();
        hand.queued("drain", drained)
            .await
            .expect("what was durable is there");
        assert!(play.remote.object(key).is_some());
    });
}

fn short_lives(play: &mut Play) {
    let mut ids = std::collections::BTreeSet::new();
    for round in 0..play.roll(5..15) {
        let new = play.life(End::Any, async |play| {
            let hand = play.open().await;
            let mut crew = play.crew(&hand, Crowd::NOBODY).await;
            assert!(hand.env.store.queue().pending().is_empty(), "round {round}");
            let work = async {
                let mut new = Vec::new();
                for name in 0..3 {
                    let key = format!("objects/named/{round}/{name}");
                    new.push(hand.up(&key, Some(10), Options::default()).await.task());
                }
                if round == 0 {
                    hand.filled(file(0), 2).await;
                }
                hand.fill(file(0), 0).await.expect("is written");
                new
            };
            let new = crew.during(work).await;
            let report = play.shut_down(&hand, &mut crew, ENOUGH).await;
            assert!(
                report.sealed && report.deferred == 0 && report.dirty_parts == 0,
                "{report:#?}"
            );
            new
        });
        for id in new {
            assert!(ids.insert(id), "{id} twice");
        }
        let litter = play.here().fs.names(std::path::Path::new("/store"));
        assert!(litter.len() < 32, "{litter:?}");
    }
}

fn every_way(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        crew.during(hand.filled(file(0), 2)).await;
        crew.for_a_while(play, 0..1000).await;
        play.remote.always(None, None, Fault::Hang);
        let key = "objects/named/k";
        let receipt = crew
            .during(hand.durable(key, Some(10), Options::default()))
            .await;
        let queue = hand.env.store.queue().clone();
        hand.env.world.is_ending.set(true);
        let drain = || spawn(queue.drain().within(HOUR).into_future());
        let mut drains = Vec::new();
        if play.flip() {
            drains.push(drain());
            tokio::task::yield_now().await;
        }
        let within = play.ms(5_000..20_000);
        let mut dropped = Box::pin(queue.shutdown().within(within).into_future());
        assert!(dropped.as_mut().now_or_never().is_none());
        drop(dropped);
        let twice = [
            spawn(queue.shutdown().within(within).into_future()),
            spawn(hand.env.store.shutdown().within(within).into_future()),
        ];
        crew.for_a_while(play, 0..3000).await;
        if play.flip() {
            queue.hurry();
        }
        drains.push(drain());
        let ends = queue.shutdown().within(within).into_future();
        let report = play.ends(&hand, &mut crew, within, ends).await;
        for other in twice {
            let other = other.await.expect("ends").expect("a report");
            assert!(Arc::ptr_eq(&report, &other), "{other:#?}\n{report:#?}");
        }
        assert!(Arc::ptr_eq(&report, &queue.report().expect("a report")));
        drains.push(drain());
        for drain in drains {
            let drained = drain.await.expect("ends");
            assert!(
                matches!(drained, Err(Error::ShuttingDown { .. })),
                "{drained:?}"
            );
        }
        assert_eq!(receipt.settlement(), Some(Settlement::Deferred));
    });
}

fn waits_for_room(play: &mut Play) {
    play.config.queue.max_tasks = 1;
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    let way = play.roll(0..3);
    let moved = play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let id = file(0);
        let work = async {
            hand.filled(id, 4).await;
            hand.sync_all().await.expect("syncs");
            hand.checkpoint().await.expect("is committed");
            hand.uploaded().await;
            play.remote.always(Some(Call::Put), None, Fault::Hang);
            hand.durable("objects/named/held", Some(5), Options::default())
                .await;
            for part in 0..2 {
                hand.fill(id, part).await.expect("is written");
            }
        };
        crew.during(work).await;
        let queue = hand.env.store.queue().clone();
        let (there, other) = (hand.file(id), hand.file(id));
        let mut waiters: Vec<_> = (0..play.roll(2..6))
            .map(|n| {
                let room = queue.submit(format!("named/{n}"), "x", Options::default());
                spawn(room.within(HOUR).into_future().map(|done| done.map(drop)))
            })
            .collect();
        let of_queue = waiters.len();
        waiters.push(spawn(async move {
            there.write_at(&[1; 512], 2 * PART).within(HOUR).await
        }));
        waiters.push(spawn(async move {
            other.write_at(&[2; 512], 3 * PART).within(HOUR).await
        }));
        crew.for_a_while(play, 100..3000).await;
        assert!(
            waiters.iter().all(|waiter| !waiter.is_finished()),
            "they wait for room"
        );
        let began = Instant::now();
        let mut moved = None;
        match way {
            0 => {
                hand.env.world.is_ending.set(true);
                queue.shutdown_token().cancel();
            }
            1 => {
                hand.env.world.disk_is_bad.set(true);
                play.here().fs.fail(fs::Fault {
                    call: Some(fs::Call::Sync),
                    after: 0,
                    errno: fs::EIO,
                    forever: true,
                });
                let lane = Options {
                    lane: Some(Lane::Checkpoint),
                    ..Options::default()
                };
                // Has room of its own, and makes the journal look at its disk.
                let _receipt = queue.submit("named/checkpoint", "x", lane).await;
                let _synced = hand.sync(id).await;
            }
            _ => {
                play.remote.heal();
                play.remote.under(None, Some(Call::Put), "", Fault::Hang);
                moved = Some(crew.during(play.rival()).await.0);
                let store = hand.env.store.clone();
                play.until("it is told", || store.check_fenced().is_err())
                    .await;
            }
        }
        let soon = match way {
            2 => Duration::from_secs(30),
            _ => Duration::from_secs(5),
        };
        for (n, waiter) in waiters.into_iter().enumerate() {
            if way == 2 && n < of_queue {
                // Named objects are nobody else's.
                waiter.abort();
                continue;
            }
            let told = tokio::time::timeout(soon, waiter).await;
            let told = told.expect("it is told").expect("ends");
            let fine = matches!(
                (way, &told),
                (0, Err(Error::ShuttingDown { .. }))
                    | (1, Err(Error::JournalFailed(_) | Error::StoreFailed(_)))
                    | (2, Err(Error::Fenced { .. }))
            );
            assert!(fine, "{n}: {told:?}");
        }
        let took = began.elapsed();
        assert!(took <= soon || way == 2, "{took:?}");
        crew.go();
        moved
    });
    play.remote.heal();
    if let Some(dir) = moved {
        play.goes_on_in(&dir);
    }
}

fn token_and_shutdown(play: &mut Play) {
    let way = play.roll(0..4);
    play.life(End::Any, async |play| {
        let token = CancellationToken::new();
        let opened = play
            .open_as(&play.here(), &play.remote, |as_is| {
                as_is.cancelled_by(&token)
            })
            .await;
        let hand = play.hand(&opened.expect("opens"));
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let slow = Fault::Delay(play.ms(500..1900));
        play.remote.always(Some(Call::Put), None, slow);
        let work = async {
            let receipt = hand
                .durable("objects/named/k", Some(10), Options::default())
                .await;
            hand.filled(file(0), 2).await;
            receipt
        };
        let receipt = crew.during(work).await;
        hand.env.world.is_ending.set(true);
        let store = hand.env.store.clone();
        match way {
            0 => token.cancel(),
            1 => {
                let mut asked = Box::pin(store.shutdown().into_future());
                assert!(asked.as_mut().now_or_never().is_none());
                token.cancel();
            }
            2 => {
                token.cancel();
                crew.for_a_while(play, 0..2000).await;
            }
            _ => store.queue().pause(PauseWhat::Admission),
        }
        let within = play.config.queue.shutdown_within;
        let ends = store.shutdown().into_future();
        let report = play.ends(&hand, &mut crew, within + within, ends).await;
        assert_eq!(
            (report.deferred, report.dirty_parts),
            (0, 0),
            "hurried: {report:#?}"
        );
        assert!(report.sealed && report.checkpoint.is_some(), "{report:#?}");
        let end = receipt.settlement();
        assert!(matches!(end, Some(Settlement::Uploaded(_))), "{end:?}");
    });
}
