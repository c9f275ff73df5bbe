//! Bodies in files and in parts: A12, D13, D14, E27.

use std::path::PathBuf;
use std::time::Duration;

use s3_writeback::journal::fs::{Fs as _, OpenMode};
use s3_writeback::remote::{Effect, RemoteError};
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Body, Cause, Options, PauseWhat, Settlement};

use super::super::env::lock;
use super::super::life::ENOUGH;
use super::Named;
use super::crowd::Crowd;
use super::disks::MIB;
use super::play::{End, Play};

pub const ALL: &[Named] = &[
    Named {
        name: "a_source_vanishes_or_changes",
        rows: &["A12", "E27"],
        given: "the file of a body is gone, or another one, before its upload",
        then: "SourceMissing or SourceChanged, in one attempt, and nothing of it is in S3",
        play: source_changes,
    },
    Named {
        name: "a_crash_in_a_multipart_upload",
        rows: &["D13"],
        given: "the process dies at a step of an upload in parts, before or after its effect",
        then: "the object is right after the next open, and no upload is left over",
        play: crash_in_parts,
    },
    Named {
        name: "a_completion_fails_somehow",
        rows: &["D14"],
        given: "CompleteMultipartUpload answers 200 with an error in it, done or not",
        then: "the answer is right, and no part is sent twice",
        play: completion_fails,
    },
];

/// A file of the caller's, durable.
fn caller_file(fs: &fs::SimFs, path: &str, bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(path);
    let dir = path.parent().expect("has one");
    if fs.stat(dir).is_err() {
        fs.create_dir_all(dir).expect("is made");
    }
    let _replaced = fs.unlink(&path);
    let file = fs.open(&path, OpenMode::CreateNew).expect("is made");
    file.write_all_at(bytes, 0).expect("is written");
    file.sync_all().expect("is synced");
    fs.sync_dir(dir).expect("is synced");
    path
}

fn source_changes(play: &mut Play) {
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.may_quarantine.set(true);
        hand.env.world.pauses.set(true);
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let (queue, disk) = (hand.env.store.queue(), play.here().fs);
            for n in 0..4 {
                let bytes = vec![b'a' + n; usize::try_from(play.roll(10..9000)).expect("fits")];
                let path = caller_file(&disk, &format!("/f/{n}"), &bytes);
                let key = format!("named/source{n}");
                queue.pause(PauseWhat::Uploads);
                let body = Body::Borrow(path.clone());
                let receipt = queue.submit(key.clone(), body, Options::default()).await;
                let receipt = receipt.expect("is admitted");
                receipt.durable().await.expect("is durable");
                let open = || disk.open(&path, OpenMode::ReadWrite).expect("is there");
                let is_missing = match play.roll(0..5) {
                    0 => {
                        disk.unlink(&path).expect("goes");
                        true
                    }
                    1 => {
                        open().write_all_at(b"other", 0).expect("is written");
                        false
                    }
                    2 => {
                        drop(caller_file(&disk, &format!("/f/{n}"), &bytes));
                        false
                    }
                    3 => {
                        let end = bytes.len() as u64;
                        open().write_all_at(b"more", end).expect("is written");
                        false
                    }
                    _ => {
                        drop(caller_file(&disk, &format!("/f/{n}"), &bytes[1..]));
                        false
                    }
                };
                play.pause(0..200).await;
                queue.resume(PauseWhat::Uploads);
                let end = hand.settled(&receipt).await;
                let text = path.display().to_string();
                let cause = match is_missing {
                    true => Cause::SourceMissing(text),
                    false => Cause::SourceChanged(text),
                };
                assert_eq!(end, Settlement::Quarantined(cause));
                assert_eq!(
                    play.remote.count(Call::Put, &key),
                    0,
                    "nothing of it is sent"
                );
                assert!(play.remote.object(&key).is_none());
                queue.purge(receipt.task()).expect("is purged");
            }
            let good = caller_file(&disk, "/f/good", b"as it was");
            let op = queue.submit("named/good", Body::Borrow(good), Options::default());
            let receipt = op.await.expect("is admitted");
            assert!(hand.settled(&receipt).await.is_in_s3());
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}

fn in_parts(play: &mut Play) {
    play.config.queue.multipart_threshold = 5 * MIB as u64;
    play.config.queue.part_bytes = 5 * MIB as u64;
    play.config.queue.max_disk_bytes = 64 * MIB as u64;
}

fn crash_in_parts(play: &mut Play) {
    in_parts(play);
    let key = "objects/named/large";
    let steps = [
        (Call::CreateMultipart, 0),
        (Call::UploadPart, 0),
        (Call::UploadPart, 1),
        (Call::CompleteMultipart, 0),
    ];
    let (call, nth) = play.one_of(&steps);
    let fault = play.one_of(&[Fault::Hang, Fault::HangAfter]);
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        if nth > 0 {
            play.remote
                .times(nth, Some(call), Some(key), Fault::Delay(Duration::ZERO));
        }
        play.remote.always(Some(call), Some(key), fault.clone());
        hand.durable(key, Some(6 * MIB), Options::default()).await;
        play.seen(call, key, nth + 1).await;
        play.pause(0..20).await;
    });
    play.remote.heal();
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        let queue = hand.env.store.queue();
        hand.queued("drain", queue.drain()).await.expect("goes up");
        assert_eq!(
            play.remote.object(key).map(|body| body.len() / MIB),
            Some(6)
        );
        play.until("nothing is left over", || play.remote.unfinished() == 0)
            .await;
    });
}

fn completion_fails(play: &mut Play) {
    in_parts(play);
    let key = "objects/named/large";
    let error = RemoteError {
        status: Some(200),
        code: Some("InternalError".to_owned()),
        ..RemoteError::transient("CompleteMultipartUpload").with_effect(Effect::Unknown)
    };
    play.life(End::Any, async |play| {
        let hand = play.open().await;
        hand.env.world.storm();
        let mut crew = play.crew(&hand, Crowd::of_pages(play)).await;
        let work = async {
            let fault = match play.flip() {
                true => Fault::Error(error),
                false => Fault::LostReply(error),
            };
            let times = usize::try_from(play.roll(1..3)).expect("fits");
            play.remote
                .times(times, Some(Call::CompleteMultipart), Some(key), fault);
            let options = play.one_of(&[Options::default(), super::hand::rewritable()]);
            hand.up(key, Some(6 * MIB), options).await;
            let tries = play.remote.count(Call::CompleteMultipart, key);
            assert!(tries >= 1, "it was in parts");
            assert_eq!(
                play.remote.count(Call::UploadPart, key),
                2,
                "no part is sent twice"
            );
            lock(&play.objects).look_at(&play.remote, |is| is == key);
            play.until("nothing is left over", || play.remote.unfinished() == 0)
                .await;
        };
        crew.during(work).await;
        play.shut_down(&hand, &mut crew, ENOUGH).await;
    });
}
