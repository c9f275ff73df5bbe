//! Several who want one prefix: A16, E1, E2, E40.

use std::time::Duration;

use futures::future::{join, join_all};
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, StoreBuilder};

use super::super::env::Book;
use super::super::life::ENOUGH;
use super::super::model::Reg;
use super::super::pages::{self};
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, file};
use super::play::{Dir, End, OWNS, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "many_race_for_a_prefix",
        rows: &["A16"],
        given: "several, or a directory and its clone, open at once and have all looked before one claims",
        then: "one has it, and the others are told who",
        play: race,
    },
    Named {
        name: "a_commit_of_who_was_fenced_arrives",
        rows: &["E1"],
        given: "a commit, or all that belongs to it, is on the wire while another claims and commits",
        then: "its owner is fenced, the other goes on, nobody reads what arrives",
        play: late_commit,
    },
    Named {
        name: "a_commit_comes_before_the_claim",
        rows: &["E1"],
        given: "a claim has looked and is on the wire when the owner commits",
        then: "the commit stays, and the claim is refused",
        play: commit_before_claim,
    },
    Named {
        name: "an_old_directory_is_started_again",
        rows: &["E2"],
        given: "another has claimed and committed; the old directory is started again and again",
        then: "it is refused and changes nothing, and the other is not fenced",
        play: old_directory,
    },
    Named {
        name: "who_has_claimed_and_not_committed",
        rows: &["E40"],
        given: "another has claimed and not committed when the old owner is started again",
        then: "it is asked to say so; if it does, all that was acknowledged is there",
        play: claimed_not_committed,
    },
];

/// Waits so long that whoever looks at `head` has.
async fn a_look(play: &Play) {
    tokio::time::sleep(play.config.look_at_head * 2 + Duration::from_secs(2)).await;
}

fn race(play: &mut Play) {
    let clones = play.flip();
    if clones {
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            hand.filled(file(0), 2).await;
            hand.checkpoint().await.expect("is committed");
            let mut nobody = play.crew(&hand, Crowd::NOBODY).await;
            play.shut_down(&hand, &mut nobody, ENOUGH).await;
        });
    }
    play.life(End::Any, async |play| {
        let chronicle = play.here().book.chronicle;
        let mut dirs = vec![play.here()];
        for _ in 0..play.roll(1..5) {
            let other = match clones {
                true => Dir {
                    fs: play.here().fs.copy_of(),
                    book: play.here().book,
                },
                false => Dir {
                    fs: fs::SimFs::new(),
                    book: Book::new(&chronicle),
                },
            };
            dirs.push(other);
        }
        let puts = play.remote.count(Call::Put, "head");
        // All of them have looked before the first of them has it.
        let slow = Fault::Delay(Duration::from_millis(200));
        play.remote.always(Some(Call::Put), Some("head"), slow);
        let opens = dirs
            .iter()
            .map(|dir| play.open_as(dir, &play.remote, |as_is| as_is));
        let opened = join_all(opens).await;
        play.remote.heal();
        let tried = play.remote.count(Call::Put, "head") - puts;
        assert!(tried >= dirs.len(), "{tried} claims of {}", dirs.len());
        let mut owner = None;
        for (dir, opened) in dirs.iter().zip(opened) {
            match opened {
                Ok(env) => assert!(owner.replace((dir, env)).is_none(), "two own it"),
                Err(Error::TakeOverNeeded { .. }) => (),
                Err(error) => panic!("{error:?}"),
            }
        }
        let (dir, env) = owner.expect("one has it");
        play.goes_on_in(dir);
        if env.store.queue().is_moved() {
            env.store.queue().adopt().await.expect("is adopted");
        }
        let hand = play.hand(&env);
        pages::audit(&env, OWNS).await;
        if !clones {
            hand.create(file(0)).await;
        }
        hand.fill(file(0), 0).await.expect("is written");
        hand.checkpoint().await.expect("is committed");
        a_look(play).await;
        assert!(env.store.check_fenced().is_ok());
    });
}

/// An owner with a file of two parts in a checkpoint.
pub(super) async fn founded(hand: &Hand<'_>) -> u64 {
    let id = file(0);
    hand.filled(id, 2).await;
    hand.checkpoint().await.expect("is committed");
    hand.fill(id, 0).await.expect("is written");
    id
}

fn late_commit(play: &mut Play) {
    play.config.queue.signature_lifetime = Duration::from_secs(3600);
    let all_is_late = play.flip();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.has_rival.set(true);
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let id = founded(&hand).await;
            let since = *play.listed().await.last().expect("there is one");
            let under = if all_is_late { "packs/" } else { "head" };
            if all_is_late {
                play.remote.always(Some(Call::Put), None, Fault::Late);
            } else {
                play.remote.once(Some(Call::Put), Some("head"), Fault::Late);
            }
            let puts = play.remote.count(Call::Put, under);
            hand.write(id, 1, 1).await.expect("is written");
            let asked = hand.asks();
            play.seen(Call::Put, under, puts + 1).await;
            play.remote.heal();
            let (dir, env) = play.rival().await;
            let rival = play.hand(&env);
            rival.fill(id, 1).await.expect("is written");
            rival.checkpoint().await.expect("is committed");
            let head = play.remote.object("head");
            if all_is_late {
                a_look(play).await;
            }
            let landed = play.remote.land_late();
            assert!(!landed.is_empty(), "it was on the wire");
            assert!(all_is_late || landed == [false], "{landed:?}");
            assert_eq!(play.remote.object("head"), head, "head is another");
            let told = hand.made(asked).await.expect_err("it is not committed");
            assert!(matches!(told, Error::Fenced { .. }), "{told}");
            let told = hand.fill(id, 0).await.expect_err("it is fenced");
            assert!(matches!(told, Error::Fenced { .. }), "{told}");
            assert!(env.store.check_fenced().is_ok(), "the other way round");
            let last = rival.fill(id, 0).await.expect("is written");
            rival.checkpoint().await.expect("is committed");
            play.only_commits(&dir, since).await;
            // What is acknowledged is there for its owner to read.
            hand.part(id, 0).await.expect("is read");
            play.goes_on_in(&dir);
            assert_eq!(play.latest(Reg::Unit(id, 0)).await, last);
        };
        crew.during(work).await;
    });
}

fn commit_before_claim(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.has_rival.set(true);
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let id = founded(&hand).await;
            let there = play.restored(play.flip()).await;
            let gate = play.hold_up(1, Call::Put, "head");
            let puts = play.remote.count(Call::Put, "head");
            let claim = play.open_as(&there, &play.remote, StoreBuilder::take_over);
            let commits = async {
                play.seen(Call::Put, "head", puts + 1).await;
                for _ in 0..play.roll(1..3) {
                    hand.fill(id, 0).await.expect("is written");
                    hand.checkpoint().await.expect("is committed");
                }
                gate.notify_one();
            };
            let (claimed, ()) = join(claim, commits).await;
            let error = claimed.map(drop).expect_err("it is refused");
            assert!(matches!(error, Error::Diverged { .. }), "{error}");
            a_look(play).await;
            assert!(hand.env.store.check_fenced().is_ok());
            hand.fill(id, 1).await.expect("is written");
            hand.checkpoint().await.expect("is committed");
        };
        crew.during(work).await;
    });
}

fn old_directory(play: &mut Play) {
    let ours = play.here();
    let there = play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        crew.during(founded(&hand)).await;
        if play.flip() {
            play.shut_down(&hand, &mut crew, ENOUGH).await;
        }
        crew.go();
        let (there, env) = play.rival().await;
        let rival = play.hand(&env);
        for _ in 0..play.roll(1..10) {
            rival.fill(file(0), 0).await.expect("is written");
            rival.checkpoint().await.expect("is committed");
        }
        there
    });
    play.goes_on_in(&there);
    for _ in 0..play.roll(1..4) {
        play.life(End::Any, async |play| {
            // Two supervisors, each of which starts its own.
            let theirs = play.open().await;
            theirs.env.world.has_rival.set(true);
            let mut crew = play.crew(&theirs, Crowd::of_pages(play)).await;
            let work = async {
                let epoch = theirs.env.store.checkpoint_snapshot().epoch;
                let head = play.remote.object("head");
                for _ in 0..play.roll(1..4) {
                    let opened = match play.flip() {
                        true => {
                            play.open_as(&ours, &play.remote, StoreBuilder::take_over)
                                .await
                        }
                        false => play.open_as(&ours, &play.remote, |as_is| as_is).await,
                    };
                    let error = opened.map(drop).expect_err("it is refused");
                    assert!(matches!(error, Error::Diverged { .. }), "{error}");
                    play.pause(0..10_000).await;
                }
                assert_eq!(play.remote.object("head"), head, "something was changed");
                a_look(play).await;
                assert!(theirs.env.store.check_fenced().is_ok());
                assert_eq!(theirs.env.store.checkpoint_snapshot().epoch, epoch);
                theirs.fill(file(0), 0).await.expect("is written");
                theirs.checkpoint().await.expect("is committed");
            };
            crew.during(work).await;
        });
    }
}

fn claimed_not_committed(play: &mut Play) {
    let (ours, says_so) = (play.here(), play.flip());
    let there = play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            founded(&hand).await;
            hand.sync_all().await.expect("syncs");
        };
        crew.during(work).await;
        hand.env.world.storm();
        if play.flip() {
            // What it does in its last checkpoint is another's.
            let hurried = Duration::from_secs(1);
            play.remote
                .always(Some(Call::Put), Some("head"), Fault::Hang);
            play.shut_down(&hand, &mut crew, hurried).await;
            play.remote.heal();
        }
        crew.go();
        ours.fs.kill();
        let (there, env) = play.rival().await;
        play.hand(&env).fill(file(0), 0).await.expect("is written");
        let epoch = env.store.checkpoint_snapshot().epoch;
        let opened = play.open_as(&ours, &play.remote, |as_is| as_is).await;
        let error = opened.map(drop).expect_err("the prefix is another's");
        assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error:?}");
        a_look(play).await;
        assert!(env.store.check_fenced().is_ok());
        assert_eq!(env.store.checkpoint_snapshot().epoch, epoch);
        if !says_so {
            play.hand(&env).checkpoint().await.expect("goes on");
        }
        there
    });
    if !says_so {
        return play.goes_on_in(&there);
    }
    play.life(End::Any, async |play| {
        let opened = play
            .open_as(&ours, &play.remote, StoreBuilder::take_over)
            .await;
        let env = opened.expect("has it back");
        pages::audit(&env, OWNS).await;
        play.hand(&env).checkpoint().await.expect("is committed");
    });
}
