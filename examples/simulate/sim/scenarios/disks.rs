//! The journal and its disk: C2, C7, C8, C9, C10, E11, E12, E20.

use std::path::{Path, PathBuf};
use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Cause, Error, Options, PauseWhat, Receipt, Settlement};

use super::super::env::lock;
use super::super::life::ENOUGH;
use super::Named;
use super::crowd::Crowd;
use super::hand::{Hand, file};
use super::play::{End, Play};

pub(super) const MIB: usize = 1 << 20;

pub const ALL: &[Named] = &[
    Named {
        name: "a_crash_loop",
        rows: &["C2"],
        given: "the process dies whenever one task runs, and others wait",
        then: "after some crashes only that one is in quarantine, and the others are uploaded",
        play: crash_loop,
    },
    Named {
        name: "the_last_segment_is_torn",
        rows: &["C7", "C8"],
        given: "the journal's last segment is cut off, or a byte in it is another",
        then: "it opens; what is before the cut, and all but one record, is there; the loss is told",
        play: torn_segment,
    },
    Named {
        name: "the_disk_is_full_and_has_room_again",
        rows: &["C9", "E20"],
        given: "the disk is full with much to acknowledge",
        then: "all that is durable goes up and ends; with room, all goes on without a restart",
        play: full_disk,
    },
    Named {
        name: "an_fsync_fails",
        rows: &["C10"],
        given: "an fsync fails, once or for ever, and the power goes",
        then: "who was told durable is there, and nobody is told so who is not",
        play: fsync_fails,
    },
    Named {
        name: "what_ended_stays_ended",
        rows: &["E11"],
        given: "many tasks in small segments, which are reclaimed, and power cuts",
        then: "nothing that ended runs again",
        play: stays_ended,
    },
    Named {
        name: "a_payload_that_is_a_journal",
        rows: &["E12"],
        given: "bodies that are segments of another journal, and the power goes in a group",
        then: "no foreign frame runs, and no false loss is told",
        play: payload_is_a_journal,
    },
];

fn padding(play: &Play) -> Option<usize> {
    Some(play.one_of(&[0, 40, 700, 6000]))
}

fn crash_loop(play: &mut Play) {
    play.config.queue.crash_limit = 3;
    // It is in flight when the process dies, and not in back-off.
    play.config.queue.attempt_floor = Duration::from_secs(600);
    let (culprit, others) = ("objects/named/culprit", play.roll(3..15));
    // A power cut may take the note that it had begun along.
    play.life(End::Kill, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        play.remote
            .under(None, Some(Call::Put), "objects/", Fault::Hang);
        hand.durable(culprit, padding(play), Options::default())
            .await;
        for n in 0..others {
            let key = format!("objects/named/other{n}");
            hand.durable(&key, padding(play), Options::default()).await;
        }
        play.seen(Call::Put, culprit, 1).await;
        play.pause(100..1000).await;
    });
    play.remote.heal();
    play.remote
        .always(Some(Call::Put), Some(culprit), Fault::Hang);
    for _ in 2..=3 {
        let before = play.remote.count(Call::Put, culprit);
        play.life(End::Kill, async |play| {
            let opened = play
                .open_as(&play.here(), &play.remote, |as_is| as_is)
                .await;
            let env = opened.expect("opens");
            assert!(env.store.queue().quarantined().is_empty(), "too early");
            // It dies when that one runs, and not before the note of that is written: that is not
            // waited for.
            play.seen(Call::Put, culprit, before + 1).await;
            play.pause(100..1000).await;
        });
    }
    let before = play.remote.count(Call::Put, culprit);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        let queue = hand.env.store.queue();
        let [task] = &queue.quarantined()[..] else {
            panic!("{:?}", queue.quarantined())
        };
        assert_eq!(
            (&task.key[..], &task.cause),
            (culprit, &Cause::CrashLoop { crashes: 3 })
        );
        for n in 0..others {
            let key = format!("objects/named/other{n}");
            play.until("the others go up", || play.remote.object(&key).is_some())
                .await;
        }
        assert_eq!(play.remote.count(Call::Put, culprit), before);
        play.remote.heal();
        let again = queue.replay(task.task).await.expect("is taken up again");
        assert!(hand.settled(&again).await.is_in_s3());
    });
}

/// The segment that has these bytes last, where it is, and where they are in it.
fn segment_with(disk: &fs::SimFs, what: &[u8]) -> Option<(PathBuf, Vec<u8>, usize)> {
    let names = disk.names(Path::new("/store")).into_iter();
    let mut found = names.filter_map(|path| {
        let bytes = disk.peek(&path)?;
        let at = bytes.windows(what.len()).rposition(|is| is == what)?;
        Some((path, bytes, at))
    });
    found.next()
}

fn torn_segment(play: &mut Play) {
    play.config.queue.segment_bytes = 64 << 10;
    play.config.queue.inline_bytes = 4096;
    // Nothing goes up, so that the journal has all of it.
    play.remote
        .under(None, Some(Call::Put), "objects/", Fault::Hang);
    let count = play.roll(6..20);
    let key = |n: u64| format!("objects/named/torn{n:02}");
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.store.queue().pause(PauseWhat::Uploads);
        for n in 0..count {
            let (_, receipt) = hand
                .submit(&key(n), Some(300), Options::default())
                .await
                .expect("is admitted");
            receipt.durable().await.expect("is durable");
        }
    });
    let disk = play.here().fs;
    let is_cut = play.flip();
    // What nobody wrote behind may be a group that was torn.
    let nth = play.roll(count / 2..count - u64::from(!is_cut));
    let found = segment_with(&disk, key(nth).as_bytes()).expect("is in the journal");
    let (path, mut bytes, at) = found;
    if is_cut {
        let upto = at + usize::try_from(play.roll(0..300)).expect("fits");
        bytes.truncate(upto);
    } else {
        bytes[at + 40] ^= 0x55;
    }
    play.say(|| format!("{} is damaged in task {nth}, cut: {is_cut}", path.display()));
    disk.poke(&path, bytes);
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let queue = hand.env.store.queue();
        let lost: Vec<u64> = (0..count)
            .filter(|n| {
                let is_owed = queue.pending().iter().any(|task| task.key == key(*n));
                !is_owed && play.remote.object(&key(*n)).is_none()
            })
            .collect();
        let is_so = match is_cut {
            true => lost == (nth..count).collect::<Vec<_>>(),
            false => lost == [nth] && queue.damage().len() == 1,
        };
        assert!(is_so, "lost {lost:?} of {count}: {:?}", queue.damage());
        assert!(queue.damage().iter().all(|damage| damage.kept.is_some()));
        hand.queued("drain", queue.drain()).await.expect("goes up");
        for n in (0..count).filter(|n| !lost.contains(n)) {
            assert!(play.remote.object(&key(n)).is_some(), "{n}");
        }
    });
}

fn full_disk(play: &mut Play) {
    play.disk = Duration::ZERO;
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.pauses.set(true);
        let mut crew = play.crew(&hand, Crowd::NOBODY).await;
        let work = async {
            let (queue, disk) = (hand.env.store.queue(), play.here().fs);
            hand.filled(file(0), 2).await;
            hand.sync_all().await.expect("syncs");
            hand.uploaded().await;
            queue.pause(PauseWhat::Uploads);
            let mut receipts = Vec::new();
            for n in 0..play.roll(20..200) {
                let key = format!("objects/named/{n}");
                receipts.push(hand.durable(&key, Some(100), Options::default()).await);
            }
            // What comes now stays here.
            let down = Fault::Error(RemoteError::transient("PutObject"));
            play.remote.under(None, Some(Call::Put), "named/more", down);
            hand.env.world.disk_is_bad.set(true);
            disk.set_capacity(Some(disk.used() + play.roll(0..3) * 4096));
            queue.resume(PauseWhat::Uploads);
            let mut more = Vec::new();
            let mut is_full = false;
            for n in 0..400 {
                let key = format!("named/more{n}");
                match queue
                    .submit(key, vec![7_u8; 3000], Options::default())
                    .now()
                {
                    Ok(receipt) => more.push(receipt),
                    Err(Error::DiskFull { .. } | Error::QueueFull { .. } | Error::WouldWait(_)) => {
                        is_full = true;
                        break;
                    }
                    Err(error) => panic!("{error:?}"),
                }
                play.pause(0..20).await;
            }
            for receipt in &receipts {
                let end = hand.settled(receipt).await;
                assert!(end.is_in_s3(), "a full disk takes the end of all: {end:?}");
            }
            let undone = more
                .iter()
                .filter(|receipt| receipt.durable().now().is_err())
                .count();
            assert!(is_full || undone > 0, "the disk was not full");
            disk.set_capacity(None);
            play.remote.heal();
            for receipt in &more {
                let end = hand.settled(receipt).await;
                assert!(end.is_in_s3(), "{end:?}");
            }
            hand.durable("objects/named/last", Some(10), Options::default())
                .await;
        };
        crew.during(work).await;
        let report = play.shut_down(&hand, &mut crew, ENOUGH).await;
        assert!(report.sealed && report.deferred == 0, "{report:#?}");
    });
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        // Told means recorded: nothing of it comes again.
        assert!(hand.env.store.queue().pending().is_empty());
    });
}

fn fsync_fails(play: &mut Play) {
    play.remote
        .under(None, Some(Call::Put), "objects/", Fault::Hang);
    let (durable, refused) = play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        hand.env.world.disk_is_bad.set(true);
        let forever = play.flip();
        play.here().fs.fail(fs::Fault {
            call: Some(fs::Call::Sync),
            after: play.roll(0..6),
            errno: fs::EIO,
            forever,
        });
        let (mut durable, mut refused, mut failed) = (Vec::new(), Vec::new(), 0);
        for n in 0..12 {
            let key = format!("objects/named/{n}");
            let submitted = hand.submit(&key, padding(play), Options::default()).await;
            let Ok((at, receipt)) = submitted else {
                failed += 1;
                continue;
            };
            match receipt.durable().within(Duration::from_secs(5)).await {
                Ok(()) => {
                    lock(&play.objects).durable(&key, at);
                    durable.push(key);
                }
                Err(error) => {
                    failed += 1;
                    if let Error::NotUploaded { settlement, .. } = &error
                        && matches!(**settlement, Settlement::Refused(_))
                    {
                        refused.push(key);
                    }
                }
            }
        }
        let disk = play.here().fs;
        let tried = disk.count(fs::Call::Sync) > 0;
        assert!(tried && (failed > 0 || !forever), "the disk was fine");
        (durable, refused)
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let queue = hand.env.store.queue();
        for key in &durable {
            let is_owed = queue.pending().iter().any(|task| task.key == *key);
            assert!(
                is_owed || play.remote.object(key).is_some(),
                "{key} was durable"
            );
        }
        assert!(queue.damage().is_empty(), "{:?}", queue.damage());
        hand.queued("drain", queue.drain()).await.expect("goes up");
        for key in &refused {
            assert!(play.remote.object(key).is_none(), "{key} was refused");
        }
    });
}

fn stays_ended(play: &mut Play) {
    play.config.queue.segment_bytes = 4096;
    let (mut told, mut next) = (Vec::new(), 0);
    for life in 0..3 {
        let (new, upto) = play.life(End::Any, async |play| {
            let hand = play.open().await;
            let queue = hand.env.store.queue();
            for task in queue.pending() {
                assert!(!told.contains(&task.key), "{} runs again", task.key);
            }
            let mut crew = play.crew(&hand, Crowd::NOBODY).await;
            let work = async {
                let (mut new, mut n) = (Vec::new(), next);
                for _ in 0..play.roll(20..50) {
                    n += 1;
                    let key = format!("objects/named/{n}/");
                    let receipt = hand.durable(&key, Some(200), Options::default()).await;
                    if play.roll(0..7) > 0 {
                        assert!(hand.settled(&receipt).await.is_in_s3());
                        new.push(key);
                    }
                }
                (new, n)
            };
            let done = crew.during(work).await;
            let taken = queue.snapshot().journal.next_location;
            assert!(taken > 20, "{taken} in life {life}");
            done
        });
        told.extend(new);
        next = upto;
    }
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let drained = hand.env.store.queue().drain();
        hand.queued("drain", drained).await.expect("goes up");
    });
    for key in &told {
        assert_eq!(play.remote.count(Call::Put, key), 1, "{key} ran again");
    }
}

fn payload_is_a_journal(play: &mut Play) {
    play.config.queue.segment_bytes = 64 << 10;
    play.config.queue.inline_bytes = play.one_of(&[0, 64 << 10]);
    play.config.queue.max_disk_bytes = 64 * MIB as u64;
    // Somebody else's journal, with tasks in it.
    let donor = Play::new("donor", play.roll(0..1000), &play.trace);
    let mut donor = donor;
    donor.config.queue.segment_bytes = 32 << 10;
    donor.config.queue.inline_bytes = 4096;
    donor
        .remote
        .under(None, Some(Call::Put), "objects/", Fault::Hang);
    donor.life(End::Any, async |donor| {
        let hand = donor.open().await;
        hand.env.world.storm();
        for n in 0..10 {
            let key = format!("objects/named/foreign{n}");
            hand.durable(&key, Some(30), Options::default()).await;
        }
    });
    let (_, segment, _) =
        segment_with(&donor.here().fs, b"objects/named/foreign3").expect("is there");
    let shift = usize::try_from(play.roll(0..16)).expect("fits");
    let body = segment[shift..].to_vec();
    play.remote
        .under(None, Some(Call::Put), "named/", Fault::Hang);
    let count = play.roll(1..4);
    let receipts = async |hand: &Hand<'_>| {
        let mut all: Vec<Receipt> = Vec::new();
        for n in 0..count {
            let op = hand.env.store.queue().submit(
                format!("named/outer{n}"),
                body.clone(),
                Options::default(),
            );
            all.push(op.await.expect("is admitted"));
        }
        all
    };
    play.life(End::PowerCut, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        for receipt in receipts(&hand).await {
            receipt.durable().await.expect("is durable");
        }
        // A group of which the power cut takes what it likes.
        let queue = hand.env.store.queue();
        for n in 0..play.roll(1..5) {
            let op = queue.submit(format!("named/torn{n}"), body.clone(), Options::default());
            let _receipt = op.now();
        }
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let queue = hand.env.store.queue();
        assert!(queue.damage().is_empty(), "{:?}", queue.damage());
        hand.queued("drain", queue.drain()).await.expect("goes up");
        let keys = play.remote.keys();
        assert!(!keys.iter().any(|key| key.contains("foreign")), "{keys:?}");
        for n in 0..count {
            let found = play.remote.object(&format!("named/outer{n}"));
            assert_eq!(found.as_deref(), Some(&body[..]), "outer{n}");
        }
    });
}
