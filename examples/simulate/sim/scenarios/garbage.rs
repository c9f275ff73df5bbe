//! What is deleted, and what is not: E13, E31, E32, E35.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use s3_writeback::io::Io;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, GcReport, Prefix, RunOn, StoreBuilder};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::super::model::{Reg, UNIT};
use super::super::pages::{self, PART, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, file, spawn};
use super::play::{End, OWNS, Play};

const DAY: Duration = Duration::from_secs(24 * 3600);
const TTL: Duration = Duration::from_secs(600);
/// Parts of a file of which most are nowhere but in S3.
const MANY: u64 = 10;

pub const ALL: &[Named] = &[
    Named {
        name: "a_look_for_garbage_is_stopped",
        rows: &["E13"],
        given: "the owner's look for garbage is stopped at a request while another claims and uploads",
        then: "nothing that the other needs is deleted, and the look is fenced",
        play: look_is_stopped,
    },
    Named {
        name: "the_tool_beside_a_live_directory",
        rows: &["E13"],
        given: "the tool's look is stopped at a request while the owner goes on; the clock is a day off",
        then: "nothing that is needed is deleted",
        play: tool_beside,
    },
    Named {
        name: "a_commit_is_unknown",
        rows: &["E31"],
        given: "the change of head for a checkpoint is unknown, garbage is looked for, and it lands or not",
        then: "that checkpoint is whole, or was never there; no other comes before",
        play: commit_unknown,
    },
    Named {
        name: "what_was_never_committed_is_kept",
        rows: &["E32"],
        given: "an owner syncs, uploads and evicts; another claims, commits and collects garbage",
        then: "what was acknowledged is there for its owner within the retention",
        play: never_committed,
    },
    Named {
        name: "a_reader_and_the_owner",
        rows: &["E35"],
        given: "readers pin while the owner commits and collects; a pin comes after its checkpoint went",
        then: "nobody is fenced, what is read is whole, and the late pin is refused",
        play: reader_and_owner,
    },
];

/// A cache for few parts.
fn small(play: &mut Play) {
    play.config.cache_bytes = 4 * PART;
    play.config.dirty_bytes = 2 * PART;
    play.config.retain_checkpoints = 1;
    play.config.queue.attempt_floor = Duration::from_secs(4);
}

/// Writes parts that are uploaded, and of which most are evicted.
async fn more_than_there_is_room_for(hand: &Hand<'_>) {
    for part in 0..MANY {
        hand.fill(file(0), part).await.expect("is written");
    }
    hand.sync_all().await.expect("syncs");
    hand.uploaded().await;
    all_is_there(hand).await;
}

async fn all_is_there(hand: &Hand<'_>) {
    let id = file(0);
    for part in 0..hand.env.book.last(Reg::Len(id)) / PART {
        hand.part(id, part).await.expect("is there");
    }
}

/// An owner with garbage of several kinds.
async fn with_garbage(hand: &Hand<'_>) {
    let id = file(0);
    hand.filled(id, 1).await;
    for _ in 0..2 {
        hand.fill(id, 0).await.expect("is written");
        hand.uploaded().await;
        hand.fill(id, 0).await.expect("is written");
        hand.checkpoint().await.expect("is committed");
    }
    more_than_there_is_room_for(hand).await;
    hand.checkpoint().await.expect("is committed");
}

/// Has a look for garbage stop at one of its requests, does something else, and lets it go on;
/// whether it came so far, and what it said.
async fn stopped(
    play: &Play,
    looks: impl Future<Output = Result<GcReport, Error>> + Unpin,
    meanwhile: impl AsyncFnOnce(),
) -> (bool, Result<GcReport, Error>) {
    let (gate, after) = (
        Arc::new(Notify::new()),
        usize::try_from(play.roll(0..14)).expect("fits"),
    );
    if after > 0 {
        play.remote
            .times(after, None, None, Fault::Delay(Duration::ZERO));
    }
    let fault = match play.flip() {
        true => Fault::Gate(Arc::clone(&gate)),
        false => Fault::Late,
    };
    play.say(|| format!("stopped at request {after}: {fault:?}"));
    play.remote.once(None, None, fault);
    let seen = play.remote.seen().len();
    let is_reached = play
        .remote
        .wait_for(|remote| remote.seen().len() > seen + after);
    match select(looks, Box::pin(is_reached)).await {
        Either::Left((done, _)) => {
            play.remote.heal();
            (false, done)
        }
        Either::Right(((), looks)) => {
            meanwhile().await;
            gate.notify_one();
            let done = looks.await;
            play.remote.land_late();
            (true, done)
        }
    }
}

fn look_is_stopped(play: &mut Play) {
    small(play);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.has_rival.set(true);
        with_garbage(&hand).await;
        // No other request of it is in the way.
        let looks = spawn(hand.env.store.gc().into_future());
        let looks = Box::pin(async { looks.await.expect("ends") });
        let mut taken = None;
        let (is_stopped, said) = stopped(play, looks, async || {
            let (dir, env) = play.rival().await;
            let rival = play.hand(&env);
            more_than_there_is_room_for(&rival).await;
            rival.checkpoint().await.expect("is committed");
            more_than_there_is_room_for(&rival).await;
            play.pause(0..3_600_000).await;
            taken = Some((dir, env));
        })
        .await;
        play.say(|| format!("it was stopped: {is_stopped}, and said {said:?}"));
        let Some((dir, env)) = taken else {
            said.expect("it was over before");
            return;
        };
        let rival = play.hand(&env);
        all_is_there(&rival).await;
        play.goes_on_in(&dir);
        play.listed().await;
        rival.env.store.gc().await.expect("looks");
        all_is_there(&rival).await;
        play.listed().await;
        let wait = play.config.look_at_head * 2;
        tokio::time::sleep(wait).await;
        let again = hand.env.store.gc().await.map(drop);
        assert!(matches!(again, Err(Error::Fenced { .. })), "{again:?}");
    });
}

/// The bucket as the tool sees it, whose requests meet what they meet.
fn tool(play: &Play) -> Prefix {
    Prefix::new(Arc::new(play.remote.clone()))
        .run_on(RunOn::Handle(Handle::current()))
        .file_system(Arc::new(fs::SimFs::new()), Io::inline())
}

fn tool_beside(play: &mut Play) {
    small(play);
    let is_ahead = play.flip();
    if play.flip() {
        play.clock_goes(is_ahead, DAY);
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        with_garbage(&hand).await;
        more_than_there_is_room_for(&hand).await;
        let prefix = tool(play);
        let looks = Box::pin(async { prefix.collect_garbage().await });
        let (is_stopped, said) = stopped(play, looks, async || {
            hand.checkpoint().await.expect("is committed");
            more_than_there_is_room_for(&hand).await;
            hand.checkpoint().await.expect("is committed");
            hand.env.store.gc().await.expect("looks");
            more_than_there_is_room_for(&hand).await;
        })
        .await;
        // What it was to read may have gone meanwhile.
        play.say(|| format!("it was stopped: {is_stopped}, and said {said:?}"));
        play.listed().await;
        all_is_there(&hand).await;
        hand.sync_all().await.expect("syncs");
    });
    if play.flip() {
        play.clock_goes(!is_ahead, DAY);
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        all_is_there(&hand).await;
        hand.checkpoint().await.expect("is committed");
        let deleted = tool(play).collect_garbage().await.expect("looks").deleted;
        let more = hand.env.store.gc().await.expect("looks").deleted;
        assert!(deleted + more > 0, "there was no garbage");
        play.listed().await;
        all_is_there(&hand).await;
    });
}

fn commit_unknown(play: &mut Play) {
    play.config.retain_checkpoints = 2;
    play.config.checkpoint_within = Duration::from_secs(30);
    play.config.queue.signature_lifetime = Duration::from_secs(3600);
    let (id, way, lands) = (file(0), play.roll(0..3), play.flip());
    let unknown = async |hand: &Hand<'_>| {
        hand.filled(id, 2).await;
        hand.checkpoint().await.expect("is committed");
        let second = hand.fill(id, 0).await.expect("is written");
        hand.env.world.storm();
        play_late(hand).await;
        let error = hand.checkpoint().await.expect_err("nobody knows");
        assert!(
            matches!(error, Error::CheckpointUnknown { number: 2, .. }),
            "{error}"
        );
        // All that it names is written over, and garbage is looked for.
        hand.fill(id, 0).await.expect("is written");
        hand.uploaded().await;
        let error = hand
            .env
            .store
            .gc()
            .await
            .map(drop)
            .expect_err("not before it is known");
        assert!(
            matches!(error, Error::CheckpointUnknown { number: 2, .. }),
            "{error}"
        );
        let error = hand.checkpoint().await.expect_err("no other before");
        assert!(
            matches!(error, Error::CheckpointUnknown { number: 2, .. }),
            "{error}"
        );
        second
    };
    let taken = play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let second = unknown(&hand).await;
            tool(play).collect_garbage().await.expect("looks");
            match way {
                // In this life.
                0 => {
                    if lands {
                        let landed = play.remote.land_late();
                        let took = landed.iter().filter(|landed| **landed).count();
                        assert_eq!(took, 1, "one of them: {landed:?}");
                        assert_eq!(play.listed().await, [1, 2]);
                    }
                    play.remote.heal();
                    hand.env.store.gc().await.expect("looks");
                    assert_eq!(play.listed().await, [1, 2], "it is made");
                    assert_eq!(play.latest(Reg::Unit(id, 0)).await, second);
                    assert!(play.remote.land_late().iter().all(|landed| !landed));
                    assert_eq!(hand.checkpoint().await.expect("is committed").number, 3);
                    None
                }
                // After a crash.
                1 => {
                    hand.sync_all().await.expect("syncs");
                    None
                }
                // Another claims.
                _ => {
                    play.remote.heal();
                    let (dir, env) = play.rival().await;
                    let rival = play.hand(&env);
                    rival.fill(id, 0).await.expect("is written");
                    assert_eq!(rival.checkpoint().await.expect("is committed").number, 2);
                    env.store.gc().await.expect("looks");
                    assert!(play.remote.land_late().iter().all(|landed| !landed));
                    assert_eq!(play.listed().await, [1, 2]);
                    let look = play.config.look_at_head * 2;
                    tokio::time::sleep(look).await;
                    let error = hand.fill(id, 0).await.expect_err("it is fenced");
                    assert!(matches!(error, Error::Fenced { .. }), "{error}");
                    Some(dir)
                }
            }
        };
        crew.during(work).await
    });
    play.remote.heal();
    if let Some(dir) = taken {
        return play.goes_on_in(&dir);
    }
    if way == 0 {
        return;
    }
    if lands {
        play.remote.land_late();
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.store.gc().await.expect("looks");
        let expected: &[u64] = if lands { &[1, 2] } else { &[1] };
        assert_eq!(play.listed().await, expected);
        // The claim came first.
        assert!(play.remote.land_late().iter().all(|landed| !landed));
        assert_eq!(play.listed().await, expected);
        hand.checkpoint().await.expect("is committed");
        hand.env.store.gc().await.expect("looks");
        play.listed().await;
    });
}

/// Changes of `head` are late from here on.
async fn play_late(hand: &Hand<'_>) {
    hand.remote()
        .always(Some(Call::Put), Some("head"), Fault::Late);
}

fn never_committed(play: &mut Play) {
    small(play);
    let (ours, commits) = (play.here(), play.flip());
    let there = play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.filled(file(0), 1).await;
        hand.checkpoint().await.expect("is committed");
        more_than_there_is_room_for(&hand).await;
        let is_here = hand.env.store.snapshot().cache_bytes;
        assert!(is_here <= 4 * PART, "most of it is only in S3: {is_here}");
        // It was a while without a checkpoint before anybody took over.
        play.remote
            .advance_clock(play.one_of(&[Duration::ZERO, 8 * DAY]));
        let (there, env) = play.rival().await;
        let rival = play.hand(&env);
        env.store.gc().await.expect("looks");
        if commits {
            for _ in 0..play.roll(1..4) {
                rival.fill(file(0), 0).await.expect("is written");
                rival.checkpoint().await.expect("is committed");
                env.store.gc().await.expect("looks");
                tool(play).collect_garbage().await.expect("looks");
            }
            play.remote
                .advance_clock(play.one_of(&[Duration::ZERO, 6 * DAY]));
            env.store.gc().await.expect("looks");
        } else {
            play.remote
                .advance_clock(play.one_of(&[Duration::ZERO, 30 * DAY]));
            env.store.gc().await.expect("looks");
        }
        there
    });
    if commits {
        play.goes_on_in(&there);
    }
    play.life(End::Any, async |play| {
        let opened = match commits {
            true => {
                play.open_as(&ours, &play.remote, StoreBuilder::stranded)
                    .await
            }
            false => {
                play.open_as(&ours, &play.remote, StoreBuilder::take_over)
                    .await
            }
        };
        let env = opened.expect("opens");
        pages::audit(&env, OWNS).await;
        assert_eq!(
            env.book.last(Reg::Len(file(0))),
            MANY * UNITS_OF_PART * UNIT
        );
        if !commits {
            let hand = play.hand(&env);
            env.store.gc().await.expect("looks");
            hand.checkpoint().await.expect("is committed");
            env.store.gc().await.expect("looks");
            all_is_there(&hand).await;
        }
    });
}

fn reader_and_owner(play: &mut Play) {
    play.config.retain_checkpoints = 1;
    let id = file(0);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let pins = || {
            play.remote
                .keys()
                .iter()
                .filter(|key| key.starts_with("pins/"))
                .count()
        };
        let len = usize::try_from(PART).expect("fits");
        let work = async {
            hand.filled(id, 1).await;
            hand.checkpoint().await.expect("is committed");
            let first = hand.env.book.last(Reg::Unit(id, 0));
            let reader = play.prefix().read(None, 0, TTL).await.expect("opens");
            assert_eq!(pins(), 1);
            for _ in 0..play.roll(2..6) {
                hand.fill(id, 0).await.expect("is written");
                let commits = hand.checkpoint();
                let reads = async {
                    play.pause(0..30).await;
                    // One that opens while the owner commits.
                    // Where one is kept only, it may have gone before the pin.
                    let there = match tool(play).read(None, 1 << 20, TTL).await {
                        Ok(there) => there,
                        Err(Error::NoSuchCheckpoint { .. }) => return,
                        Err(error) => panic!("{error}"),
                    };
                    there
                        .read(s3_writeback::FileId(id), 0, len)
                        .await
                        .expect("is read");
                    there.close().await.expect("closes");
                };
                let (made, ()) = futures::future::join(commits, reads).await;
                made.expect("is committed");
                hand.env.store.gc().await.expect("looks");
                tool(play).collect_garbage().await.expect("looks");
                let bytes = reader
                    .read(s3_writeback::FileId(id), 0, len)
                    .await
                    .expect("is pinned");
                assert!(
                    pages::numbers(&bytes).iter().all(|is| *is == first),
                    "not what was read"
                );
            }
            reader.close().await.expect("closes");
            assert_eq!(pins(), 0);
            // One has chosen, and its pin is on the wire while its checkpoint goes.
            let gate = play.hold_up(1, Call::Put, "pins/");
            let puts = play.remote.count(Call::Put, "pins/");
            let prefix = tool(play);
            let late = spawn(async move { prefix.read(None, 0, TTL).await.map(drop) });
            play.seen(Call::Put, "pins/", puts + 1).await;
            hand.fill(id, 0).await.expect("is written");
            hand.checkpoint().await.expect("is committed");
            hand.env.store.gc().await.expect("looks");
            gate.notify_one();
            let error = late.await.expect("ends").expect_err("it came too late");
            assert!(matches!(error, Error::NoSuchCheckpoint { .. }), "{error}");
            assert_eq!(pins(), 0, "it goes with who wrote it");
            tokio::time::sleep(play.config.look_at_head * 2).await;
            assert!(hand.env.store.check_fenced().is_ok(), "nobody is fenced");
            assert_eq!(hand.env.store.checkpoint_snapshot().epoch, Some(1));
        };
        crew.during(work).await;
    });
}
