//! Outages, restores and copies of a directory: E22, E24.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Options, StoreBuilder};
use tokio::time::Instant;

use super::super::env::{Book, Env};
use super::super::life::ENOUGH;
use super::super::model::Reg;
use super::super::pages::{self, UNITS_OF_PART};
use super::Named;
use super::crowd::Crowd;
use super::hand::file;
use super::owners::founded;
use super::play::{Dir, End, OWNS, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "a_restart_in_an_outage",
        rows: &["E22"],
        given: "a restart while S3 is away, and perhaps another that claims meanwhile",
        then: "it takes writes, and claims when S3 is back; or stops, and all of it can be exported",
        play: restart_in_outage,
    },
    Named {
        name: "a_restore_is_cut_short",
        rows: &["E22"],
        given: "a restore dies at any call of the disk",
        then: "the directory is refused, or the restore is finished",
        play: restore_cut_short,
    },
    Named {
        name: "a_directory_is_copied",
        rows: &["E24"],
        given: "a directory is copied while it is stopped, and both are opened",
        then: "the copy is moved, and sends none of its objects until it is adopted",
        play: copied,
    },
];

fn restart_in_outage(play: &mut Play) {
    play.config.checkpoint_within = Duration::from_secs(20);
    play.config.claim_within = play.ms(100..5000);
    let id = file(0);
    let is_fenced = play.flip();
    let ours = play.here();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        crew.during(founded(&hand)).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
    let moved = play.life(End::Any, async |play| {
        let before = play.remote.keys();
        match play.roll(0..3) {
            0 => {
                let refused = RemoteError::transient("any");
                play.remote.always(None, None, Fault::Error(refused));
            }
            1 => play.remote.always(None, None, Fault::Hang),
            // All but the claim itself would get through.
            _ => {
                let refused = Fault::Error(RemoteError::transient("PutObject"));
                play.remote.always(Some(Call::Put), Some("head"), refused);
            }
        }
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let store = &hand.env.store;
        assert_eq!(store.checkpoint_snapshot().epoch, None, "S3 is away");
        let writes = async {
            hand.fill(id, 1).await.expect("it takes writes");
            hand.sync_all().await.expect("syncs");
            let error = hand.checkpoint().await.expect_err("nothing is claimed");
            assert!(matches!(error, Error::Unclaimed), "{error}");
        };
        crew.during(writes).await;
        let moved = match is_fenced {
            false => None,
            true => {
                let (dir, env) = crew.during(play.rival()).await;
                let rival = play.hand(&env);
                rival.fill(id, 0).await.expect("is written");
                if play.flip() {
                    rival.checkpoint().await.expect("is committed");
                }
                Some(dir)
            }
        };
        crew.for_a_while(play, 0..600_000).await;
        let keys = play.remote.keys();
        assert!(is_fenced || keys == before, "it sends, and has not claimed");
        play.remote.heal();
        let (back, look) = (Instant::now(), play.config.look_at_head);
        if moved.is_some() {
            play.until("it is told", || store.check_fenced().is_err())
                .await;
            assert!(
                back.elapsed() <= look + Duration::from_secs(1),
                "{:?}",
                back.elapsed()
            );
            let error = store.check_fenced().expect_err("fenced");
            let diverged = matches!(error, Error::Diverged { .. } | Error::TakeOverNeeded { .. });
            assert!(diverged, "{error}");
            assert!(
                hand.fill(id, 0).await.is_err(),
                "it takes no writes any more"
            );
            assert_eq!(play.remote.keys(), keys, "it sent something");
            let report = play.shut_down(&hand, &mut crew, ENOUGH).await;
            assert!(report.stranded > 0, "{report:#?}");
        } else {
            let claimed = || store.checkpoint_snapshot().epoch.is_some();
            play.until("it claims", claimed).await;
            hand.env.world.mend();
            crew.during(hand.checkpoint()).await.expect("is committed");
        }
        moved
    });
    let Some(moved) = moved else { return };
    // What it had acknowledged is there, for it to read.
    play.life(End::Any, async |play| {
        let opened = play
            .open_as(&ours, &play.remote, StoreBuilder::stranded)
            .await;
        let env: Env = opened.expect("can be exported");
        pages::audit(&env, OWNS).await;
        let refused = play.hand(&env).fill(id, 0).await;
        assert!(matches!(refused, Err(Error::Stranded)), "{refused:?}");
    });
    play.goes_on_in(&moved);
}

fn restore_cut_short(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        founded(&hand).await;
        hand.checkpoint().await.expect("is committed");
    });
    let there = play.life(End::Any, async |play| {
        let dir = fs::SimFs::new();
        let calls = play.roll(0..60);
        dir.fail(fs::Fault {
            call: None,
            after: calls,
            errno: fs::EIO,
            forever: true,
        });
        let what = || match calls % 2 {
            0 => s3_writeback::Restore::latest(),
            _ => s3_writeback::Restore::latest().with_bytes(),
        };
        let prefix = |dir: &fs::SimFs| {
            let io = s3_writeback::io::Io::inline();
            play.prefix().file_system(Arc::new(dir.process()), io)
        };
        let first = prefix(&dir).restore(&play.config, what()).await;
        play.say(|| format!("after {calls} calls: {:?}", first.as_ref().err()));
        match play.flip() {
            true => dir.kill(),
            false => dir.crash(play.roll(0..1000)),
        }
        dir.heal();
        let half = Dir {
            fs: dir.clone(),
            book: Book::new(&play.here().book.chronicle),
        };
        if first.is_err() {
            let store = Path::new("/store");
            if dir.names(store).contains(&store.join("RESTORE")) {
                let opened = play
                    .open_as(&half, &play.remote, StoreBuilder::take_over)
                    .await;
                let error = opened.map(drop).expect_err("half of it is no store");
                assert!(
                    matches!(error, Error::RestoreUnfinished { .. }),
                    "{error:?}"
                );
            }
            // Whoever tried has let go of the directory.
            let again = prefix(&dir).restore(&play.config, what()).await;
            again.expect("is finished");
        }
        // What it has to show is what the checkpoint has.
        let whole = play.restored(false).await;
        let there = Dir {
            fs: dir,
            book: whole.book,
        };
        let opened = play
            .open_as(&there, &play.remote, StoreBuilder::take_over)
            .await;
        let env = opened.expect("is opened");
        pages::audit(&env, OWNS).await;
        assert!(
            env.book.last(Reg::Unit(file(0), UNITS_OF_PART)) > 0,
            "there is nothing"
        );
        there
    });
    play.goes_on_in(&there);
}

fn copied(play: &mut Play) {
    let key = "objects/named/k";
    let fenced = play.flip();
    if !fenced {
        play.config.fencing = s3_writeback::Fencing::Off;
        play.config.checkpoint_at_shutdown = false;
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            founded(&hand).await;
            let down = Fault::Error(RemoteError::transient("PutObject"));
            play.remote.always(Some(Call::Put), Some(key), down);
            hand.durable(key, Some(100), Options::default()).await;
        };
        crew.during(work).await;
        let within = Duration::from_secs(5);
        let report = play.shut_down(&hand, &mut crew, within).await;
        assert!(report.sealed && report.deferred == 1, "{report:#?}");
    });
    play.remote.heal();
    let before = play.remote.count(Call::Put, key);
    let copy = Dir {
        fs: play.here().fs.copy_of(),
        book: play.here().book,
    };
    let original = play.here();
    if play.flip() {
        // The original first.
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            assert!(!hand.env.store.queue().is_moved());
            let drained = hand.env.store.queue().drain();
            hand.queued("drain", drained).await.expect("goes up");
            hand.fill(file(0), 0).await.expect("is written");
            hand.checkpoint().await.expect("is committed");
            let head = play.remote.object("head");
            let puts = play.remote.count(Call::Put, key);
            let opened = play.open_as(&copy, &play.remote, |as_is| as_is).await;
            match opened {
                Ok(env) => {
                    assert!(!fenced && env.store.queue().is_moved(), "it is a copy");
                    play.pause(1000..100_000).await;
                }
                Err(error) => assert!(matches!(error, Error::Diverged { .. }), "{error:?}"),
            }
            assert_eq!(play.remote.object("head"), head);
            assert_eq!(
                play.remote.count(Call::Put, key),
                puts,
                "it sends something"
            );
        });
        return;
    }
    let adopts = play.flip();
    play.goes_on_in(&copy);
    play.life(End::Any, async |play| {
        let opened = play.open_as(&copy, &play.remote, |as_is| as_is).await;
        let env = opened.expect("opens");
        let queue = env.store.queue();
        let hand = play.hand(&env);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        // Where there are epochs they decide, and nobody is asked.
        assert_eq!(queue.is_moved(), !fenced, "it is a copy");
        if fenced {
            let opened = play.open_as(&original, &play.remote, |as_is| as_is).await;
            let error = opened.map(drop).expect_err("one of them goes on");
            assert!(matches!(error, Error::TakeOverNeeded { .. }), "{error:?}");
            hand.queued("drain", queue.drain()).await.expect("goes up");
            return;
        }
        crew.for_a_while(play, 1000..100_000).await;
        assert_eq!(
            play.remote.count(Call::Put, key),
            before,
            "it sends something"
        );
        assert!(matches!(queue.drain().await, Err(Error::Paused(_))));
        if adopts {
            queue.adopt().await.expect("is adopted");
            hand.queued("drain", queue.drain()).await.expect("goes up");
            assert!(play.remote.object(key).is_some());
        } else {
            play.shut_down(&hand, &mut crew, Duration::from_secs(10))
                .await;
        }
    });
    if !fenced && !adopts {
        play.goes_on_in(&original);
        play.life(End::Any, async |play| {
            let hand = play.open().await;
            assert!(!hand.env.store.queue().is_moved());
            let drained = hand.env.store.queue().drain();
            hand.queued("drain", drained).await.expect("goes up");
            assert!(play.remote.object(key).is_some());
        });
    }
}
