//! Room in the cache: A6, A13, E16, E39.

use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Mode};
use tokio::time::Instant;

use super::super::life::ENOUGH;
use super::super::pages::{PART, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::file;
use super::loads::in_s3;
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "what_was_not_uploaded_stays",
        rows: &["A6"],
        given: "a file of one full part, in a cache that is too small, while uploads are slow",
        then: "it is never evicted before it is in S3, and there is no part behind it",
        play: never_uploaded,
    },
    Named {
        name: "a_prefetch_never_waits",
        rows: &["A13"],
        given: "all of the cache is held, or dirty and S3 silent",
        then: "a prefetch gives up at once",
        play: prefetch_gives_up,
    },
    Named {
        name: "a_cycle_for_room",
        rows: &["E16"],
        given: "two lockers hold all of the cache and each wants one part more",
        then: "one of them gets the cycle at once; and with forgotten guards a checkpointer loads",
        play: cycle_for_room,
    },
    Named {
        name: "a_cache_full_of_what_was_never_synced",
        rows: &["E39"],
        given: "an engine that never syncs, and more readers than frames",
        then: "both make progress",
        play: never_synced,
    },
];

fn never_uploaded(play: &mut Play) {
    play.config.cache_bytes = 2 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let cycles = async {
            let (one, other) = (file(0), file(1));
            hand.create(one).await;
            hand.filled(other, 4).await;
            let slow = Fault::Delay(play.ms(20..200));
            play.remote.under(None, Some(Call::Put), "packs/", slow);
            let locker = hand.locker("asks");
            for _ in 0..play.roll(20..60) {
                let puts = play.remote.count(Call::Put, "packs/");
                hand.fill(one, 0).await.expect("is written");
                // All of the room: it has to go, and to be in S3 before.
                let there = hand.file(other);
                let all = [0, 1].map(|part| there.lock(part, Mode::Pin, &locker).into_future());
                let pins = futures::future::join_all(all).await;
                assert!(pins.iter().all(Result::is_ok), "{pins:?}");
                let up = play.remote.count(Call::Put, "packs/") - puts;
                assert!(up > 0, "it went, and is not in S3");
                drop(pins);
                for part in 0..4 {
                    hand.read(other, part * UNITS_OF_PART, 1)
                        .await
                        .expect("is read");
                }
                hand.part(one, 0).await.expect("is read");

                let phantom = hand
                    .file(one)
                    .lock(1, Mode::Shared, &locker)
                    .await
                    .map(drop);
                assert!(
                    matches!(phantom, Err(Error::Deleted { index: 1, .. })),
                    "{phantom:?}"
                );
            }
            assert!(
                hand.env.store.snapshot().evictions >= 40,
                "nothing is evicted"
            );
            play.remote.heal();
        };
        crew.during(cycles).await;
        if play.flip() {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
    });
}

fn prefetch_gives_up(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 4 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let prefetches = async {
            let id = in_s3(&hand, 12).await;
            let (there, locker) = (hand.file(id), hand.locker("holder"));
            let all = |wants: usize, why: &str| {
                let began = Instant::now();
                let here = there.prefetch(0..there.len());
                assert!(here <= wants, "{here} parts are here where {why}");
                assert_eq!(began.elapsed(), Duration::ZERO);
            };
            let gets = play.remote.count(Call::Get, "packs/");
            let mut guards = Vec::new();
            for part in 0..4 {
                guards.push(there.lock(part, Mode::Pin, &locker).await.expect("pins"));
            }
            let loaded = play.remote.count(Call::Get, "packs/");
            all(4, "all is held");
            assert_eq!(play.remote.count(Call::Get, "packs/"), loaded, "{gets}");
            drop(guards);
            hand.env.world.storm();
            play.remote.always(None, None, Fault::Hang);
            for part in 4..8 {
                hand.fill(id, part).await.expect("is written");
            }
            all(4, "all is dirty");
            assert_eq!(
                hand.env.store.snapshot().dirty_bytes,
                4 * PART,
                "all is dirty"
            );
            play.remote.heal();
            hand.env.world.mend();
        };
        crew.during(prefetches).await;
    });
}

fn cycle_for_room(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let cycle = async {
            let id = in_s3(&hand, 8).await;
            assert_eq!(hand.env.store.snapshot().dirty_bytes, 0, "nothing is dirty");
            let then = Instant::now() + Duration::from_secs(5);
            let asks = async |name: &str, holds: [u32; 2], wants: u32| {
                let (there, locker) = (hand.file(id), hand.locker(name));
                let mode = play.one_of(&[Mode::Pin, Mode::Shared, Mode::Exclusive]);
                let one = there.lock(holds[0], mode, &locker).await.expect("has it");
                let two = there.lock(holds[1], mode, &locker).await.expect("has it");
                tokio::time::sleep_until(then).await;
                let began = Instant::now();
                let got = there.lock(wants, mode, &locker).await.map(drop);
                drop((one, two));
                (got, began.elapsed())
            };
            let both = futures::future::join(asks("one", [1, 2], 5), asks("two", [3, 4], 6));
            let ((one, took_one), (two, took_two)) = both.await;
            let errors: Vec<_> = [one, two].into_iter().filter_map(Result::err).collect();
            let [Error::WouldDeadlock { cycle }] = &errors[..] else {
                panic!("{errors:?}")
            };
            assert_eq!(cycle, &["one", "two"]);
            let soon = Duration::from_millis(500);
            assert!(took_one.min(took_two) < soon, "{took_one:?} {took_two:?}");
            // Forgotten guards keep nobody but the foreground out.
            let (there, forgets) = (hand.file(id), hand.locker("forgets"));
            let mut forgotten = Vec::new();
            for part in 0..4 {
                forgotten.push(
                    there
                        .lock(part, Mode::Exclusive, &forgets)
                        .await
                        .expect("locks"),
                );
            }
            let (began, other) = (Instant::now(), hand.locker("other"));
            let got = there.lock(6, Mode::Shared, &other).await.map(drop);
            let Err(Error::CacheFull { pinned_by, .. }) = got else {
                panic!("{got:?}")
            };
            assert_eq!(pinned_by, ["forgets"]);
            assert!(began.elapsed() < soon, "at once");
            let checkpoints = hand.checkpointer("checkpointer");
            for part in 4..8 {
                drop(
                    there
                        .lock(part, Mode::Shared, &checkpoints)
                        .await
                        .expect("loads"),
                );
            }
        };
        crew.during(cycle).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn never_synced(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let both = async {
            let id = in_s3(&hand, 16).await;
            // S3 fails the odd request.
            hand.env.world.storm();
            let error = RemoteError::transient("any");
            play.remote.times(4, None, None, Fault::Error(error));
            let began = Instant::now();
            let writes = async {
                for round in 0..play.roll(30..60) {
                    hand.fill(id, 8 + round % 8).await.expect("is written");
                }
            };
            let reads = (0..8).map(async |n| {
                for round in 0..15 {
                    hand.part(id, (n * 3 + round * 5) % 8)
                        .await
                        .expect("is read");
                }
            });
            futures::future::join(writes, futures::future::join_all(reads)).await;
            let took = began.elapsed();
            assert!(took < ENOUGH, "{took:?}");
            hand.env.world.mend();
            let now = hand.env.store.snapshot();
            assert!(now.peak_cache_bytes <= 4 * PART, "{now:#?}");
            assert!(now.evictions > 16, "{now:#?}");
        };
        crew.during(both).await;
    });
}
