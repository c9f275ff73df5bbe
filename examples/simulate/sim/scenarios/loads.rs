//! Locks and loads: A1, A5, A10, E15, E38.

use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Mode, PartId};
use tokio::time::Instant;

use super::super::life::ENOUGH;
use super::super::pages::{PART, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, file, spawn};
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "a_second_locker_gets_what_was_prefetched",
        rows: &["A1"],
        given: "a part is loading because of a prefetch, and nothing else is in the queue",
        then: "who locks it then gets it when it has come, though nothing is submitted any more",
        play: second_locker,
    },
    Named {
        name: "a_load_that_finds_nothing",
        rows: &["A5"],
        given: "S3 does not have the image that several wait for",
        then: "each is told so once, others go on, and the part comes when the image is back",
        play: load_finds_nothing,
    },
    Named {
        name: "files_come_and_go_around_a_lock",
        rows: &["A10"],
        given: "files are made, grown and dropped in a cache that is too small for them",
        then: "a part that is locked stays, and every pin is given back",
        play: churn,
    },
    Named {
        name: "a_load_outlives_who_began_it",
        rows: &["E15"],
        given: "a checkpointer waits for a load that another began, who leaves or is told the end",
        then: "the checkpointer gets the part, by one request",
        play: load_outlives,
    },
    Named {
        name: "a_holder_reads_its_own_part",
        rows: &["E38"],
        given: "a locker has a part exclusively",
        then: "it reads the part, and is told at once that it has it where it asks again",
        play: holder_reads,
    },
];

/// A file of `parts` parts that are in S3.
pub(super) async fn in_s3(hand: &Hand<'_>, parts: u64) -> u64 {
    let id = file(0);
    hand.filled(id, parts).await;
    hand.sync(id).await.expect("syncs");
    hand.uploaded().await;
    id
}

fn second_locker(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let second = async {
            let id = in_s3(&hand, 12).await;
            hand.evict(id, 0).await;
            // Room, so that it is loaded.
            hand.filled(file(1), 2).await;
            hand.uploaded().await;
            hand.drop_file(file(1)).await.expect("is dropped");
            let queue = hand.env.store.queue();
            queue.drain().await.expect("drains");
            let gate = play.hold_up(1, Call::Get, "packs/");
            let gets = play.remote.count(Call::Get, "packs/");
            assert_eq!(hand.file(id).prefetch(0..PART), 1, "there is room");
            play.seen(Call::Get, "packs/", gets + 1).await;
            let loads = queue.snapshot().tasks.loads;
            assert_eq!(loads, 1, "the only one there is: {:?}", queue.pending());
            let (there, locker) = (hand.file(id), hand.locker("second"));
            let mode = play.one_of(&[Mode::Pin, Mode::Shared, Mode::Exclusive]);
            let wait = there.lock(0, mode, &locker);
            let opens = async {
                play.pause(0..1500).await;
                assert!(
                    there.lock(0, mode, &hand.locker("asks")).now().is_err(),
                    "it is loading"
                );
                gate.notify_one();
                Instant::now()
            };
            let (guard, opened) = futures::future::join(wait.into_future(), opens).await;
            let _guard = guard.expect("is locked");
            let took = opened.elapsed();
            assert!(
                took < Duration::from_millis(200),
                "{took:?} after it had come"
            );
            assert_eq!(play.remote.count(Call::Get, "packs/"), gets + 1, "one load");
            hand.part(id, 0).await.expect("is read");
        };
        crew.during(second).await;
        let report = play.shut_down(&hand, &mut crew, ENOUGH).await;
        assert!(report.sealed && report.dirty_parts == 0, "{report:#?}");
    });
}

fn load_finds_nothing(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.config.pack_bytes = PART;
    play.config.image_bytes = 4 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let asks = async {
            let id = in_s3(&hand, 8).await;
            // Its image is the last: nothing else is in that object.
            let before = play.remote.keys();
            hand.fill(id, 0).await.expect("is written");
            hand.uploaded().await;
            let new: Vec<String> = play
                .remote
                .keys()
                .into_iter()
                .filter(|key| !before.contains(key))
                .collect();
            let [key] = &new[..] else { panic!("{new:?}") };
            let body = play.remote.object(key).expect("is there");
            hand.evict(id, 0).await;
            play.remote.remove(key);
            let gets = play.remote.count(Call::Get, key);
            let slow = Fault::Delay(play.ms(100..1000));
            play.remote.always(Some(Call::Get), Some(key), slow);
            let ask = async |n: u64| {
                play.pause(0..50).await;
                let (there, locker) = (hand.file(id), hand.locker(&format!("l{n}")));
                there.lock(0, Mode::Shared, &locker).await.map(drop)
            };
            let all = (0..play.roll(2..6)).map(ask);
            for told in futures::future::join_all(all).await {
                assert!(matches!(told, Err(Error::ImageMissing { .. })), "{told:?}");
            }
            let loads = play.remote.count(Call::Get, key) - gets;
            assert_eq!(loads, 1, "one load for all of them");
            hand.part(id, 1).await.expect("others go on");
            let again = hand.read(id, 0, 1).await;
            assert!(
                matches!(again, Err(Error::ImageMissing { .. })),
                "{again:?}"
            );
            play.remote.heal();
            play.remote.plant(key, body);
            hand.part(id, 0).await.expect("is back");
        };
        crew.during(asks).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn churn(play: &mut Play) {
    play.config.cache_bytes = 6 * PART;
    play.config.dirty_bytes = 3 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let crowd = Crowd {
            lookers: play.roll(0..2),
            ..Crowd::NOBODY
        };
        let mut crew = play.crew(&hand, crowd).await;
        let comes_and_goes = async {
            let held = in_s3(&hand, 4).await;
            let there = hand.file(held);
            let holder = hand.locker("holder");
            let part = u32::try_from(play.roll(0..4)).expect("fits");
            let guard = there
                .lock(part, Mode::Shared, &holder)
                .await
                .expect("locks");
            for round in 0..play.roll(10..30) {
                let id = file(1 + round % 3);
                hand.filled(id, 6).await;
                let evictions = hand.env.store.snapshot().evictions;
                hand.write(id, 6 * UNITS_OF_PART, 1).await.expect("grows");
                hand.part(id, 0).await.expect("is read");
                assert!(evictions > 0, "something has to go");
                let mut bytes = vec![0; usize::try_from(PART).expect("fits")];
                guard
                    .read_at(&mut bytes, 0)
                    .now()
                    .expect("what is held is here");
                hand.drop_file(id).await.expect("is dropped");
            }
            drop(guard);
            let exclusive = there.lock(part, Mode::Exclusive, &holder);
            drop(
                exclusive
                    .within(Duration::from_secs(5))
                    .await
                    .expect("no pin is left"),
            );
        };
        crew.during(comes_and_goes).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn load_outlives(play: &mut Play) {
    play.config.checkpoint_at_shutdown = false;
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let ends = play.flip();
        let id = crew.during(in_s3(&hand, 8)).await;
        crew.during(hand.evict(id, 0)).await;
        let gets = play.remote.count(Call::Get, "packs/");
        let slow = Fault::Delay(play.ms(300..1500));
        play.remote.under(Some(1), Some(Call::Get), "packs/", slow);
        let there = hand.file(id);
        let (first, second) = (hand.locker("first"), hand.checkpointer("second"));
        let patience = if ends { ENOUGH } else { play.ms(5..100) };
        let leaves = spawn({
            let there = there.clone();
            async move {
                there
                    .lock(0, Mode::Shared, &first)
                    .within(patience)
                    .await
                    .map(drop)
            }
        });
        crew.during(play.seen(Call::Get, "packs/", gets + 1)).await;
        let joins = spawn(async move { there.lock(0, Mode::Shared, &second).await.map(drop) });
        crew.for_a_while(play, 1..5).await;
        assert!(!leaves.is_finished() && !joins.is_finished(), "both wait");
        if ends {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
        let left = leaves.await.expect("ends");
        match (ends, left) {
            (true, Err(Error::ShuttingDown { .. })) => (),
            (false, Err(Error::TimedOut { waiting_for, .. })) => {
                assert!(
                    matches!(*waiting_for, Error::Loading { .. }),
                    "{waiting_for}"
                );
            }
            (_, left) => panic!("{left:?}"),
        }
        joins.await.expect("ends").expect("the checkpointer has it");
        let loads = play.remote.count(Call::Get, "packs/") - gets;
        assert_eq!(loads, 1, "one load for both");
    });
}

fn holder_reads(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::some(play)).await;
        let reads = async {
            let id = in_s3(&hand, 4).await;
            let (there, locker) = (hand.file(id), hand.locker("holder"));
            let part = play.roll(0..4);
            let index = u32::try_from(part).expect("fits");
            let guard = there
                .lock(index, Mode::Exclusive, &locker)
                .await
                .expect("locks");
            let mut bytes = vec![0; 512];
            let by = there.by(&locker);
            by.read_at(&mut bytes, part * PART).await.expect("reads");
            hand.part(id, part).await.expect("anybody reads");
            let began = Instant::now();
            for mode in [Mode::Shared, Mode::Exclusive, Mode::Pin] {
                let again = there.lock(index, mode, &locker).await.map(drop);
                let held = Some(Mode::Exclusive);
                assert!(
                    matches!(&again, Err(Error::AlreadyHeld { mode, .. }) if *mode == held),
                    "{again:?}"
                );
            }
            let ids = [
                PartId {
                    file: FileId(id),
                    index: (index + 1) % 4,
                },
                PartId {
                    file: FileId(id),
                    index,
                },
            ];
            let set = hand
                .env
                .store
                .lock_many(&ids, Mode::Pin, &locker)
                .await
                .map(drop);
            assert!(matches!(set, Err(Error::AlreadyHeld { .. })), "{set:?}");
            let cut = there.by(&locker).set_len(0).await;
            assert!(matches!(cut, Err(Error::AlreadyHeld { .. })), "{cut:?}");
            assert_eq!(began.elapsed(), Duration::ZERO, "at once");
            drop(guard);
        };
        crew.during(reads).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}
