//! What is in a checkpoint: A14, E3, E5, E7, E14, E29.

use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Mode};

use super::super::life::ENOUGH;
use super::super::model::Reg;
use super::super::pages::{self, PART, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::file;
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "a_manifest_is_faster_than_its_images",
        rows: &["A14"],
        given: "uploads of parts are slow, and manifests are fast",
        then: "no checkpoint is listed before all that it names is there",
        play: fast_manifest,
    },
    Named {
        name: "a_guard_is_forgotten",
        rows: &["E3"],
        given: "a guard writes and is forgotten; another part is written and let go of; a line",
        then: "both are in it; the part goes up under its guard, and goes away after it",
        play: forgotten_guard,
    },
    Named {
        name: "a_power_cut_behind_a_commit",
        rows: &["E5"],
        given: "a write, a line, more writes to the part, the commit, and a power cut or an end",
        then: "all of the committed line is here",
        play: cut_behind_a_commit,
    },
    Named {
        name: "a_later_image_is_there_before",
        rows: &["E7"],
        given: "an image of after the line is in S3 before the line's own, which comes or never does",
        then: "the manifest names the line's, or the checkpoint fails with the cause",
        play: later_image_first,
    },
    Named {
        name: "what_a_line_has_is_cut_off",
        rows: &["E14"],
        given: "parts and files that a line needs are cut off or dropped before they are captured",
        then: "they are in its checkpoint, and in no later one",
        play: cut_behind_a_line,
    },
    Named {
        name: "a_part_went_up_by_itself",
        rows: &["E29"],
        given: "a part is written and goes up by itself between two checkpoints, or before a restart",
        then: "the next checkpoint names its new image",
        play: went_up_by_itself,
    },
];

pub(super) fn slow_packs(play: &Play) {
    let slow = Fault::Delay(play.ms(500..1500));
    play.remote.under(None, Some(Call::Put), "packs/", slow);
}

fn fast_manifest(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let id = file(0);
            hand.filled(id, 4).await;
            slow_packs(play);
            let asked = hand.asks();
            let mut looked = 0;
            while !asked.made.is_finished() {
                for one in play.prefix().checkpoints().await.expect("are listed") {
                    let report = play
                        .prefix()
                        .verify(Some(one.number))
                        .await
                        .expect("verifies");
                    assert_eq!(report.bad, 0, "{report:?}");
                    assert!(report.images >= 4, "{report:?}");
                }
                looked += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(looked > 10, "it was over before anybody looked");
            hand.made(asked).await.expect("is committed");
            play.remote.heal();
            play.listed().await;
        };
        crew.during(work).await;
    });
}

fn forgotten_guard(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 4 * PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let id = file(0);
            hand.filled(id, 8).await;
            let (there, forgets) = (hand.file(id), hand.locker("forgetful"));
            let mode = play.one_of(&[Mode::Pin, Mode::Exclusive]);
            let guard = there.lock(0, mode, &forgets).await.expect("locks");
            let first = hand.fill_by(&guard).await.expect("writes");
            let second = hand.fill(id, 1).await.expect("is written");
            hand.checkpoint().await.expect("is committed");
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, first);
            assert_eq!(play.latest(Reg::Unit(id, UNITS_OF_PART)).await, second);
            // Under the guard once more: it goes up, and does not go away.
            hand.fill_by(&guard).await.expect("writes");
            hand.uploaded().await;
            let mut bytes = [0; 8];
            hand.evict(id, 0).await;
            guard.read_at(&mut bytes, 0).now().expect("is here");
            drop(guard);
            hand.evict(id, 0).await;
            let gets = play.remote.count(Call::Get, "packs/");
            hand.part(id, 0).await.expect("is read");
            assert!(play.remote.count(Call::Get, "packs/") > gets, "it stays");
        };
        crew.during(work).await;
    });
}

fn cut_behind_a_commit(play: &mut Play) {
    let (id, ends) = (file(0), play.flip());
    play.config.checkpoint_at_shutdown = false;
    let first = play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 1).await;
            hand.sync(id).await.expect("syncs");
            let first = hand.write(id, 0, 2).await.expect("is written");
            // The next image does not get there before the crash.
            let slow = Fault::Delay(play.ms(300..1500));
            play.remote.under(Some(1), Some(Call::Put), "packs/", slow);
            let headers = play.config.queue.workers;
            let asked = hand.drawn().await;
            for _ in 0..play.roll(1..4) {
                let unit = 2 + play.roll(0..6);
                hand.write(id, unit, 1).await.expect("is written");
            }
            hand.made(asked)
                .await
                .unwrap_or_else(|error| panic!("{error} {headers}"));
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, first);
            play.remote
                .under(None, Some(Call::Put), "packs/", Fault::Hang);
            first
        };
        let first = crew.during(work).await;
        if ends {
            play.shut_down(&hand, &mut crew, Duration::from_secs(5))
                .await;
        }
        first
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        assert_eq!(hand.read(id, 0, 1).await.expect("is read"), first);
    });
}

fn later_image_first(play: &mut Play) {
    play.config.max_dirty_age = Duration::from_millis(10);
    play.config.queue.workers = 8;
    play.config.queue.attempt_floor = Duration::from_secs(600);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let (id, fails) = (file(0), play.flip());
            hand.create(id).await;
            let gate = play.hold_up(1, Call::Put, "packs/");
            let lines = hand.fill(id, 0).await.expect("is written");
            if fails {
                let poison = pages::filled(lines, 1)[..64].to_vec();
                play.remote.refuse_bodies_with(Some(poison.into()));
            }
            play.seen(Call::Put, "packs/", 1).await;
            let asked = hand.drawn().await;
            let puts = play.remote.count(Call::Put, "packs/");
            let later = hand.fill(id, 0).await.expect("is written");
            play.seen(Call::Put, "packs/", puts + 1).await;
            play.pause(100..1000).await;
            assert!(!asked.made.is_finished(), "its own image is on its way");
            gate.notify_one();
            let made = hand.made(asked).await;
            if fails {
                let error = made.expect_err("nothing is committed");
                assert!(matches!(error, Error::PartFailed { .. }), "{error}");
                assert!(play.listed().await.is_empty());
            } else {
                made.expect("is committed");
                assert_eq!(play.latest(Reg::Unit(id, 0)).await, lines);
            }
            hand.uploaded().await;
            hand.checkpoint().await.expect("is committed");
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, later);
        };
        crew.during(work).await;
    });
}

fn cut_behind_a_line(play: &mut Play) {
    play.config.cache_bytes = 32 * PART;
    play.config.dirty_bytes = 16 * PART;
    // Of those that the line owes some are captured, and some are set aside.
    play.config.image_bytes = play.roll(1..3) * PART;
    play.config.checkpoint_cache_bytes = PART;
    play.config.pack_bytes = PART;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let (gone, cut) = (file(0), file(1));
            hand.filled(gone, 4).await;
            hand.filled(cut, 4).await;
            hand.checkpoint().await.expect("is committed");
            let mut is = Vec::new();
            for part in [2, 3] {
                is.push((gone, part, hand.fill(gone, part).await.expect("is written")));
                is.push((cut, part, hand.fill(cut, part).await.expect("is written")));
            }
            slow_packs(play);
            let asked = hand.drawn().await;
            hand.drop_file(gone).await.expect("is dropped");
            let kept = UNITS_OF_PART + play.roll(1..UNITS_OF_PART);
            hand.set_len(cut, kept).await.expect("is cut");
            hand.set_len(cut, 4 * UNITS_OF_PART).await.expect("grows");
            hand.create(gone).await;
            let anew = hand.fill(gone, 0).await.expect("is written");
            assert!(!asked.made.is_finished(), "it was over before");
            hand.made(asked).await.expect("is committed");
            for (file, part, value) in is {
                let reg = Reg::Unit(file, part * UNITS_OF_PART);
                assert_eq!(play.latest(reg).await, value, "{reg:?}");
            }
            play.remote.heal();
            hand.checkpoint().await.expect("is committed");
            assert_eq!(play.latest(Reg::Unit(gone, 0)).await, anew);
            for unit in kept..4 * UNITS_OF_PART {
                assert_eq!(play.latest(Reg::Unit(cut, unit)).await, 0, "an old byte");
            }
        };
        crew.during(work).await;
    });
}

fn went_up_by_itself(play: &mut Play) {
    play.config.max_dirty_age = play.ms(1..100);
    let (id, restarts) = (file(0), play.flip());
    let newer = play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            hand.filled(id, 2).await;
            hand.checkpoint().await.expect("is committed");
            let newer = hand.fill(id, 0).await.expect("is written");
            hand.uploaded().await;
            assert_eq!(hand.env.store.snapshot().dirty_bytes, 0, "it is clean");
            if restarts {
                hand.sync(id).await.expect("syncs");
            } else {
                hand.checkpoint().await.expect("is committed");
            }
            newer
        };
        let newer = crew.during(work).await;
        if restarts && play.flip() {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
        newer
    });
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        if restarts {
            hand.checkpoint().await.expect("is committed");
        }
        assert_eq!(play.latest(Reg::Unit(id, 0)).await, newer);
    });
}
