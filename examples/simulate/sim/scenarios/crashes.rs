//! What is true of parts after a crash: A9, D12, E4, E6, E8, E14, E25, E30, E34.

use std::time::Duration;

use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Mode};

use super::super::life::ENOUGH;
use super::super::model::{Reg, UNIT};
use super::super::pages::{PART, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, file};
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "two_images_come_in_any_order",
        rows: &["A9", "E6"],
        given: "two images of a part are on their way, and land in either order",
        then: "it stays until the later one is there, and is that one: here, from S3, in a checkpoint",
        play: two_images,
    },
    Named {
        name: "a_crash_around_a_load",
        rows: &["E4"],
        given: "a crash in a load, after an upload before its record, or after a small write over a load",
        then: "the image or the acknowledged bytes, never half of it",
        play: around_a_load,
    },
    Named {
        name: "a_put_of_a_dead_process_lands",
        rows: &["E8"],
        given: "a PUT was given up before a crash, and lands when parts were written anew",
        then: "no key has two contents, and nobody reads it",
        play: put_of_the_dead,
    },
    Named {
        name: "a_file_is_dropped_while_it_uploads",
        rows: &["E14"],
        given: "a file is dropped while its part uploads, and made again; or grows by a tebibyte",
        then: "no old byte comes back, and growth costs no cache and no load",
        play: dropped_while_uploading,
    },
    Named {
        name: "an_image_is_the_truth",
        rows: &["E25"],
        given: "a part is in S3 and was not synced here, and the power goes",
        then: "it is its image, and not the older bytes of the disk",
        play: image_is_the_truth,
    },
    Named {
        name: "an_intent_without_a_write",
        rows: &["E30"],
        given: "a write that was given up; one over a part that is not here; a disk that dies in a sync",
        then: "after a power cut it is the image or the acknowledged bytes",
        play: intents,
    },
    Named {
        name: "what_was_cut_off_does_not_come_back",
        rows: &["E34"],
        given: "a file is cut, its holes are not punched, the power goes, it grows and is written",
        then: "zeros around the write, and what is synced later stays",
        play: cut_off,
    },
    Named {
        name: "evictor_uploader_and_crash",
        rows: &["D12"],
        given: "few frames, slow uploads, syncs, and crashes at any time",
        then: "nothing that was synced is lost",
        play: evictor_and_crash,
    },
];

fn two_images(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.config.max_dirty_age = Duration::from_millis(10);
    play.config.queue.attempt_floor = Duration::from_secs(600);
    play.config.queue.workers = 8;
    play.config.sparse_percent = 90;
    let id = file(0);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 8).await;
            hand.uploaded().await;
            let images = || hand.env.store.snapshot().queue.tasks.images;
            let gates = [
                play.hold_up(1, Call::Put, "packs/"),
                play.hold_up(1, Call::Put, "packs/"),
            ];
            let puts = play.remote.count(Call::Put, "packs/");
            hand.fill(id, 0).await.expect("is written");
            play.seen(Call::Put, "packs/", puts + 1).await;
            let later = hand.fill(id, 0).await.expect("is written");
            play.seen(Call::Put, "packs/", puts + 2).await;
            assert_eq!(images(), 2, "both are on their way");
            let order = play.one_of(&[[0, 1], [1, 0]]);
            gates[order[0]].notify_one();
            play.until("one has come", || play.remote.in_flight().0 < 2)
                .await;
            play.pause(0..1000).await;
            assert!(
                hand.env.store.snapshot().dirty_bytes > 0,
                "one is on its way"
            );
            let gets = play.remote.count(Call::Get, "packs/");
            hand.evict(id, 0).await;
            assert!(
                play.remote.count(Call::Get, "packs/") > gets,
                "others are evicted"
            );
            assert_eq!(hand.part(id, 0).await.expect("is read"), later);
            let gone_sparse = async {
                if play.flip() {
                    // What is still needed of old objects is written anew meanwhile.
                    let _made = hand.checkpoint().await.expect("is committed");
                    hand.env.store.gc().await.expect("looks");
                }
            };
            let lands = async {
                play.pause(0..1000).await;
                gates[order[1]].notify_one();
            };
            futures::future::join(gone_sparse, lands).await;
            hand.uploaded().await;
            hand.evict(id, 0).await;
            assert_eq!(hand.part(id, 0).await.expect("is read"), later);
            hand.checkpoint().await.expect("is committed");
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, later);
        };
        crew.during(work).await;
    });
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.evict(id, 0).await;
        hand.part(id, 0).await.expect("is read");
    });
}

/// A file of eight parts that are in S3 and synced; the fourth is not here.
async fn evicted(hand: &Hand<'_>) -> u64 {
    let id = file(0);
    hand.filled(id, 8).await;
    hand.sync(id).await.expect("syncs");
    hand.uploaded().await;
    hand.evict(id, 3).await;
    id
}

fn around_a_load(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    let way = play.roll(0..3);
    let unit = 3 * UNITS_OF_PART + play.roll(0..UNITS_OF_PART);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let id = evicted(&hand).await;
            let gets = play.remote.count(Call::Get, "packs/");
            match way {
                0 => {
                    // Loaded and not synced, a small write, perhaps a sync.
                    hand.write(id, unit, 1).await.expect("is written");
                    assert!(
                        play.remote.count(Call::Get, "packs/") > gets,
                        "it was loaded"
                    );
                    if play.flip() {
                        hand.sync(id).await.expect("syncs");
                    }
                }
                1 => {
                    // The load comes, and the disk dies somewhere in what follows.
                    let gate = play.hold_up(1, Call::Get, "packs/");
                    let (there, locker) = (hand.file(id), hand.locker("asks"));
                    let wait = there
                        .lock(3, Mode::Shared, &locker)
                        .within(Duration::from_secs(5));
                    let opens = async {
                        play.seen(Call::Get, "packs/", gets + 1).await;
                        play.disk_fails_after(&hand, play.roll(0..6));
                        gate.notify_one();
                    };
                    let (_told, ()) = futures::future::join(wait.into_future(), opens).await;
                }
                _ => {
                    // In S3, and the disk dies before that is on record, or the hole is punched.
                    let gate = play.hold_up(1, Call::Put, "packs/");
                    let puts = play.remote.count(Call::Put, "packs/");
                    hand.fill(id, 3).await.expect("is written");
                    hand.sync(id).await.expect("syncs");
                    play.seen(Call::Put, "packs/", puts + 1).await;
                    play.disk_fails_after(&hand, play.roll(0..6));
                    gate.notify_one();
                    play.pause(0..100).await;
                    for part in [0, 1, 2, 4, 5, 6] {
                        let mut byte = [0];
                        let there = hand.file(id);
                        let read = there.read_at(&mut byte, part * PART);
                        let _read = read.within(Duration::from_secs(1)).await;
                    }
                }
            }
        };
        crew.during(work).await;
    });
}

fn put_of_the_dead(play: &mut Play) {
    play.config.queue.signature_lifetime = Duration::from_secs(3600);
    let id = file(0);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let late = usize::try_from(play.roll(1..4)).expect("fits");
        play.remote
            .under(Some(late), Some(Call::Put), "packs/", Fault::Late);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 3).await;
            hand.sync(id).await.expect("syncs");
            play.seen(Call::Put, "packs/", 1).await;
        };
        crew.during(work).await;
        crew.for_a_while(play, 0..10_000).await;
    });
    play.remote.heal();
    let before: Vec<String> = play
        .remote
        .seen()
        .into_iter()
        .map(|seen| seen.key)
        .collect();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let from = play.remote.seen().len();
            for part in 0..6 {
                hand.fill(id, part).await.expect("is written");
            }
            hand.uploaded().await;
            let landed = play.remote.land_late();
            assert!(!landed.is_empty(), "it was on its way");
            play.kept.look(&play.remote);
            let seen = play.remote.seen();
            for seen in seen.iter().skip(from).filter(|seen| seen.call == Call::Put) {
                let is_new = !seen.key.starts_with("packs/") || !before.contains(&seen.key);
                assert!(is_new, "{} is issued again", seen.key);
            }
            for part in 0..6 {
                hand.evict(id, part).await;
                hand.part(id, part).await.expect("is read");
            }
        };
        crew.during(work).await;
    });
}

fn dropped_while_uploading(play: &mut Play) {
    play.config.max_dirty_age = Duration::from_millis(10);
    play.config.queue.attempt_floor = Duration::from_secs(600);
    let id = file(0);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let gate = play.hold_up(1, Call::Put, "packs/");
            hand.filled(id, play.roll(1..4)).await;
            play.seen(Call::Put, "packs/", 1).await;
            let old = hand.file(id);
            hand.drop_file(id).await.expect("is dropped");
            let again = async {
                hand.create(id).await;
                hand.set_len(id, 3 * UNITS_OF_PART).await.expect("grows");
            };
            if play.flip() {
                again.await;
                gate.notify_one();
            } else {
                gate.notify_one();
                again.await;
            }
            play.pause(0..2000).await;
            assert_eq!(hand.part(id, 0).await.expect("is read"), 0);
            let gone = old.write_at(&[1], 0).await;
            assert!(matches!(gone, Err(Error::Deleted { .. })), "{gone:?}");
            hand.uploaded().await;
            if play.flip() {
                hand.fill(id, 1).await.expect("is written");
            }
            // Growth costs nothing.
            let there = hand.file(id);
            hand.uploaded().await;
            let (len, before) = (there.len(), hand.env.store.snapshot());
            let gets = play.remote.count(Call::Get, "packs/");
            there.set_len(1 << 40).await.expect("grows");
            let mut bytes = [1; 5];
            there
                .read_at(&mut bytes, (1 << 40) - 5)
                .await
                .expect("is read");
            assert_eq!(bytes, [0; 5]);
            let after = hand.env.store.snapshot();
            assert_eq!(after.cache_bytes, before.cache_bytes);
            assert_eq!(play.remote.count(Call::Get, "packs/"), gets);
            there.set_len(len).await.expect("shrinks");
        };
        crew.during(work).await;
        if play.flip() {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
    });
}

fn image_is_the_truth(play: &mut Play) {
    play.config.max_dirty_age = Duration::from_millis(50);
    let (id, again) = (file(0), play.flip());
    let image = play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 2).await;
            hand.sync(id).await.expect("syncs");
            let image = hand.fill(id, 0).await.expect("is written");
            hand.uploaded().await;
            if again {
                // Its intent trusts nothing: what it writes over was not synced either.
                play.remote.always(Some(Call::Put), None, Fault::Hang);
                let unit = play.roll(1..UNITS_OF_PART);
                hand.write(id, unit, 1).await.expect("is written");
            }
            image
        };
        crew.during(work).await
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        assert_eq!(
            hand.read(id, 0, 1).await.expect("is read"),
            image,
            "older bytes are back"
        );
    });
}

fn intents(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    let way = play.roll(0..3);
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let id = evicted(&hand).await;
            match way {
                0 => {
                    for polls in 0..12 {
                        hand.begin_to_write(id, 3 * UNITS_OF_PART, 1, polls).await;
                    }
                    if play.flip() {
                        hand.evict(id, 3).await;
                        hand.uploaded().await;
                        hand.evict(id, 3).await;
                    }
                    hand.part(id, 3).await.expect("is read");
                }
                1 => {
                    let gets = play.remote.count(Call::Get, "packs/");
                    hand.fill(id, 3).await.expect("is written");
                    assert_eq!(
                        play.remote.count(Call::Get, "packs/"),
                        gets,
                        "it is not here"
                    );
                }
                _ => {
                    hand.fill(id, 3).await.expect("is written");
                    hand.write(id, UNITS_OF_PART, 2).await.expect("is written");
                    play.disk_fails_after(&hand, play.roll(0..12));
                    let _synced = hand.sync(id).await;
                }
            }
            play.pause(0..200).await;
        };
        crew.during(work).await;
    });
}

fn cut_off(play: &mut Play) {
    let id = file(0);
    let kept = UNITS_OF_PART + play.roll(0..UNITS_OF_PART);
    let grown = 6 * UNITS_OF_PART;
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 6).await;
            hand.sync(id).await.expect("syncs");
            if play.flip() {
                hand.uploaded().await;
            }
            let punches = play.here().fs.count(fs::Call::Punch);
            if play.flip() {
                hand.env.world.disk_is_bad.set(true);
                play.here().fs.fail(fs::Fault {
                    call: Some(fs::Call::Punch),
                    after: 0,
                    errno: fs::EIO,
                    forever: true,
                });
            }
            let cut = hand.set_len(id, kept).await;
            let tried = play.here().fs.count(fs::Call::Punch) > punches;
            assert!(tried || cut.is_err(), "nothing was to be punched");
        };
        crew.during(work).await;
    });
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let was = hand.env.book.last(Reg::Len(id)) / UNIT;
            hand.set_len(id, kept).await.expect("is cut, or was");
            hand.set_len(id, grown).await.expect("grows");
            let unit = kept + play.roll(0..grown - kept);
            hand.write(id, unit, 1).await.expect("is written");
            for part in 0..6 {
                hand.part(id, part).await.expect("is read");
            }
            for at in (kept..grown).filter(|at| *at != unit) {
                let is = hand.read(id, at, 1).await.expect("is read");
                assert_eq!(is, 0, "an old byte at {at}, it was {was} units long");
            }
            hand.sync(id).await.expect("syncs");
        };
        crew.during(work).await;
    });
}

fn evictor_and_crash(play: &mut Play) {
    play.config.cache_bytes = play.roll(2..6) * PART;
    play.config.dirty_bytes = 2 * PART;
    play.config.max_dirty_age = play.ms(1..200);
    let id = file(0);
    for life in 0..3 {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            let mut crew = play.crew(&hand, Crowd::NOBODY).await;
            let work = async {
                if life == 0 {
                    hand.filled(id, 8).await;
                }
                let slow = Fault::Delay(play.ms(10..400));
                play.remote.under(Some(4), Some(Call::Put), "packs/", slow);
                for _ in 0..play.roll(10..40) {
                    let part = play.roll(0..8);
                    match play.roll(0..10) {
                        0..4 => drop(hand.fill(id, part).await.expect("is written")),
                        4..7 => drop(hand.part(id, part).await.expect("is read")),
                        7 => hand.sync(id).await.expect("syncs"),
                        _ => play.pause(0..150).await,
                    }
                }
            };
            crew.during(work).await;
            play.remote.heal();
        });
    }
}
