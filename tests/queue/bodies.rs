//! Bodies: bytes, adopted and borrowed files, parts; and how they are read back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, assert_empty, both, paused, settled, submit};
use s3_writeback::journal::fs::{Fs, OpenMode};
use s3_writeback::remote::{Effect, RemoteError};
use s3_writeback::testing::fs::{self, EIO};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    Body, Cause, Error, KeyPolicy, Options, PauseWhat, Receipt, Settlement, UploadQueue,
};

const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1024 * 1024;

async fn put(queue: &UploadQueue, key: &str, body: impl Into<Body>, options: Options) -> Receipt {
    queue
        .submit(key, body, options)
        .within(HOUR)
        .await
        .expect("admitted")
}

fn in_parts(rig: &mut Rig) {
    rig.config.multipart_threshold = 5 * MIB as u64;
    rig.config.part_bytes = 5 * MIB as u64;
    rig.config.max_bytes = 256 * MIB as u64;
}

fn large() -> Vec<u8> {
    (0..11 * MIB).map(|at| (at / 997) as u8).collect()
}

/// A file of the caller's, durable.
fn file(rig: &Rig, path: &str, bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(path);
    if rig.fs.stat(path.parent().unwrap()).is_err() {
        rig.fs.create_dir_all(path.parent().unwrap()).unwrap();
    }
    let _replaced = rig.fs.unlink(&path);
    let file = rig.fs.open(&path, OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
    rig.fs.sync_dir(path.parent().unwrap()).unwrap();
    path
}

/// A12: the local file of a task has vanished: `SourceMissing`, visible, one attempt; never a
/// success (orioledb#323, Neon's upload of a vanished layer). Borrowed, adopted, and a body of the
/// queue's own; before submit, and before upload.
#[test]
fn a12_a_vanished_file_is_source_missing_and_never_a_success() {
    both(async |mut rig| {
        rig.config.inline_bytes = 16;
        let queue = rig.open().await;
        for body in [Body::Borrow, Body::Adopt] {
            let error = queue
                .submit("k", body("/f/none".into()), Options::default())
                .await;
            assert!(
                matches!(error, Err(Error::SourceMissing { .. })),
                "{error:?}"
            );
        }
        assert_empty(&queue);
        queue.pause(PauseWhat::Uploads);
        let path = file(&rig, "/f/borrowed", b"some bytes of a file");
        let borrowed = put(&queue, "k", Body::Borrow(path.clone()), Options::default()).await;
        rig.fs.unlink(&path).unwrap();
        queue.resume(PauseWhat::Uploads);
        let cause = Cause::SourceMissing("/f/borrowed".to_owned());
        assert_eq!(
            settled(&borrowed).await,
            Settlement::Quarantined(cause.clone())
        );
        assert_eq!(queue.quarantined()[0].cause, cause);
        assert_eq!(rig.remote.count(Call::Put, "k"), 0);
        queue.pause(PauseWhat::Uploads);
        let path = file(&rig, "/f/adopted", b"some bytes of another file");
        let adopted = put(&queue, "a", Body::Adopt(path), Options::default()).await;
        adopted.durable().await.unwrap();
        let names = rig.fs.names(Path::new("/q"));
        let kept = names.iter().find(|path| {
            rig.fs
                .peek(path)
                .is_some_and(|bytes| bytes == b"some bytes of another file")
        });
        rig.fs.unlink(kept.expect("its own file")).unwrap();
        queue.resume(PauseWhat::Uploads);
        let settlement = settled(&adopted).await;
        assert!(
            matches!(
                &settlement,
                Settlement::Quarantined(Cause::SourceMissing(_))
            ),
            "{settlement:?}"
        );
        assert_eq!(rig.remote.keys(), [""; 0]);
        tokio::time::sleep(HOUR).await;
        assert_eq!(
            rig.remote.seen(),
            [],
            "one attempt, and nothing was sent in it"
        );
        queue.shutdown().await.unwrap();
    });
}

/// E27: a borrowed file is changed or replaced before its upload: `SourceChanged`, one attempt,
/// nothing torn in S3. Whole, and in parts; before the attempt, and between its parts.
#[test]
fn e27_a_borrowed_file_that_changes_is_source_changed_and_nothing_of_it_is_in_s3() {
    for bytes in [b"short".to_vec(), large()] {
        let bytes = &bytes;
        both(async move |mut rig| {
            in_parts(&mut rig);
            let queue = rig.open().await;
            let other: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
            for (n, how) in ["rewrite", "replace", "grow", "shrink"]
                .into_iter()
                .enumerate()
            {
                let key = format!("k{n}");
                let path = file(&rig, &format!("/f/{n}"), bytes);
                queue.pause(PauseWhat::Uploads);
                let receipt =
                    put(&queue, &key, Body::Borrow(path.clone()), Options::default()).await;
                receipt.durable().await.unwrap();
                let open = rig.fs.open(&path, OpenMode::ReadWrite);
                match how {
                    "rewrite" => open.unwrap().write_all_at(&other, 0).unwrap(),
                    "replace" => drop(file(&rig, path.to_str().unwrap(), bytes)),
                    "grow" => open
                        .unwrap()
                        .write_all_at(b"more", bytes.len() as u64)
                        .unwrap(),
                    _ => drop(file(&rig, path.to_str().unwrap(), &bytes[1..])),
                }
                queue.resume(PauseWhat::Uploads);
                let cause = Cause::SourceChanged(path.display().to_string());
                assert_eq!(
                    settled(&receipt).await,
                    Settlement::Quarantined(cause),
                    "{how}"
                );
                assert_eq!(rig.remote.object(&key), None);
            }
            assert_eq!(rig.remote.seen(), []);
            // Unchanged, it goes up.
            let path = file(&rig, "/f/good", bytes);
            let receipt = put(&queue, "good", Body::Borrow(path), Options::default()).await;
            assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
            assert_eq!(rig.remote.object("good").unwrap(), *bytes);
            queue.shutdown().await.unwrap();
        });
    }
    both(async |mut rig| {
        in_parts(&mut rig);
        rig.config.part_concurrency = 1;
        let queue = rig.open().await;
        let path = file(&rig, "/f/torn", &large());
        rig.remote.always(
            Some(Call::UploadPart),
            None,
            Fault::Delay(Duration::from_secs(1)),
        );
        let receipt = put(
            &queue,
            "torn",
            Body::Borrow(path.clone()),
            Options::default(),
        )
        .await;
        rig.remote
            .wait_for(|remote| remote.count(Call::UploadPart, "torn") == 2)
            .await;
        let open = rig.fs.open(&path, OpenMode::ReadWrite).unwrap();
        open.write_all_at(b"torn", 10 * MIB as u64 + 7).unwrap();
        let cause = Cause::SourceChanged("/f/torn".to_owned());
        assert_eq!(settled(&receipt).await, Settlement::Quarantined(cause));
        queue.shutdown().await.unwrap();
        assert_eq!(rig.remote.object("torn"), None);
        assert_eq!(rig.remote.unfinished(), 0, "its parts are thrown away");
    });
}

/// An adopted file is ours once it is durable here, and not before: refused or cut off by a power
/// cut, it is still under its old name.
#[test]
fn an_adopted_file_is_never_in_neither_place() {
    paused(async {
        let rig = Rig::new();
        let queue = rig.open().await;
        let path = file(&rig, "/f/a", b"adopted bytes");
        rig.fs.fail(fs::Fault {
            call: Some(fs::Call::Rename),
            after: 0,
            errno: EIO,
            forever: false,
        });
        let receipt = queue
            .submit("k", Body::Adopt(path.clone()), Options::default())
            .now()
            .unwrap();
        assert!(matches!(settled(&receipt).await, Settlement::Refused(_)));
        assert_eq!(
            rig.fs.peek(&path).unwrap(),
            b"adopted bytes",
            "refused: still the caller's"
        );
        let receipt = put(&queue, "k", Body::Adopt(path.clone()), Options::default()).await;
        assert_eq!(
            queue.get("k", None).await.unwrap(),
            "adopted bytes",
            "also on its way in"
        );
        assert!(matches!(settled(&receipt).await, Settlement::Uploaded(_)));
        assert_eq!(rig.fs.peek(&path), None);
        assert_eq!(rig.remote.object("k").unwrap(), "adopted bytes");
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
    for seed in 0..40 {
        let lives = Lives::of(Rig::new());
        let path = file(&lives.rig, "/f/a", b"adopted bytes");
        lives.rig.remote.always(None, None, Fault::Hang);
        lives.live(End::PowerCut(seed), async |queue| {
            let _receipt = queue
                .submit("k", Body::Adopt(path.clone()), Options::default())
                .now();
            for _ in 0..seed / 8 {
                tokio::task::yield_now().await;
            }
        });
        lives.live(End::Kill, async |queue| {
            let ours = !queue.pending().is_empty();
            let theirs = lives
                .rig
                .fs
                .peek(&path)
                .is_some_and(|bytes| bytes == b"adopted bytes");
            assert!(ours || theirs, "{seed}: it is in neither place");
            if ours {
                assert_eq!(queue.get("k", None).await.unwrap(), "adopted bytes");
            }
        });
    }
}

/// D14: a completion that fails after it was sent, with and without an effect: an error in a 200,
/// and `NoSuchUpload` on the retry after a success (AWS's page on CompleteMultipartUpload,
/// minio#3110).
#[test]
fn d14_a_completion_that_fails_is_told_right_whatever_it_did() {
    let in_a_200 = || RemoteError {
        status: Some(200),
        code: Some("InternalError".to_owned()),
        ..RemoteError::transient("CompleteMultipartUpload").with_effect(Effect::Unknown)
    };
    for policy in [KeyPolicy::WriteOnce, KeyPolicy::Rewritable] {
        for (fault, ignoring) in [
            (Fault::Error(in_a_200()), false),
            (Fault::LostReply(in_a_200()), false),
            // The retry is not stopped by its condition: it meets `NoSuchUpload`.
            (Fault::LostReply(in_a_200()), true),
        ] {
            if ignoring && policy == KeyPolicy::Rewritable {
                continue;
            }
            let fault = &fault;
            both(async move |mut rig| {
                in_parts(&mut rig);
                rig.remote.ignore_conditions(ignoring);
                let queue = rig.open().await;
                rig.remote
                    .once(Some(Call::CompleteMultipart), Some("k"), fault.clone());
                let options = Options {
                    policy,
                    ..Options::default()
                };
                let receipt = put(&queue, "k", large(), options).await;
                let settlement = settled(&receipt).await;
                assert!(
                    matches!(settlement, Settlement::Uploaded(_)),
                    "{settlement:?}"
                );
                assert_eq!(rig.remote.object("k").unwrap(), large());
                assert_eq!(
                    rig.remote.count(Call::UploadPart, "k"),
                    3,
                    "no part is sent twice"
                );
                queue.shutdown().await.unwrap();
                assert_eq!(rig.remote.unfinished(), 0);
                assert_empty(&queue);
            });
        }
    }
}

/// D13: however an upload in parts ends, nothing unfinished is left in the bucket: a failed
/// condition, a refusal for good, a panic, an upload whose id never came.
#[test]
fn d13_no_end_of_a_multipart_upload_leaves_one_behind() {
    for (call, fault, uploaded) in [
        (Call::CompleteMultipart, None, false),
        (
            Call::UploadPart,
            Some(Fault::Error(RemoteError::permanent(
                "UploadPart",
                400,
                "InvalidArgument",
            ))),
            false,
        ),
        (Call::UploadPart, Some(Fault::Panic("in a part")), false),
        (
            Call::CreateMultipart,
            Some(Fault::LostReply(RemoteError::lost("CreateMultipartUpload"))),
            true,
        ),
        (Call::CreateMultipart, Some(Fault::HangAfter), true),
    ] {
        let fault = &fault;
        both(async move |mut rig| {
            in_parts(&mut rig);
            let queue = rig.open().await;
            match fault {
                Some(fault) => rig.remote.once(Some(call), Some("k"), fault.clone()),
                None => rig.remote.plant("k", "theirs"),
            }
            let receipt = put(&queue, "k", large(), Options::default()).await;
            let settlement = settled(&receipt).await;
            assert_eq!(
                matches!(settlement, Settlement::Uploaded(_)),
                uploaded,
                "{fault:?}: {settlement:?}"
            );
            queue.shutdown().await.unwrap();
            assert_eq!(rig.remote.unfinished(), 0, "{fault:?}");
        });
    }
}

/// `get`: a body that is still here, a pending delete, S3, ranges.
#[test]
fn get_serves_what_was_submitted_last_wherever_it_is() {
    both(async |rig| {
        let queue = rig.open().await;
        let rewritable = || Options {
            policy: KeyPolicy::Rewritable,
            ..Options::default()
        };
        rig.remote.plant("theirs", "0123456789");
        assert_eq!(queue.get("theirs", None).await.unwrap(), "0123456789");
        assert_eq!(queue.get("theirs", Some((2, 3))).await.unwrap(), "234");
        assert!(matches!(
            queue.get("theirs", Some((8, 3))).await,
            Err(Error::OutOfRange { .. })
        ));
        assert!(matches!(
            queue.get("none", None).await,
            Err(Error::NotFound { .. })
        ));
        let first = put(&queue, "k", "first", rewritable()).await;
        settled(&first).await;
        queue.pause(PauseWhat::Uploads);
        let second = put(&queue, "k", "second", rewritable()).await;
        assert_eq!(queue.get("k", None).await.unwrap(), "second");
        assert_eq!(queue.get("k", Some((1, 2))).await.unwrap(), "ec");
        assert!(matches!(
            queue.get("k", Some((6, 1))).await,
            Err(Error::OutOfRange { .. })
        ));
        assert_eq!(rig.remote.count(Call::Get, "k"), 0);
        queue.resume(PauseWhat::Uploads);
        settled(&second).await;
        rig.remote.always(
            Some(Call::Delete),
            Some("k"),
            Fault::Delay(Duration::from_secs(5)),
        );
        let delete = queue
            .delete("k", Options::default())
            .within(HOUR)
            .await
            .unwrap();
        assert!(matches!(
            queue.get("k", None).await,
            Err(Error::NotFound { .. })
        ));
        assert!(rig.remote.object("k").is_some(), "it is still there");
        assert_eq!(settled(&delete).await, Settlement::Deleted);
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
    });
}

/// Quarantine in its plain form: kept across a restart, replayed, purged; cancel takes back what
/// is not in flight.
#[test]
fn quarantine_is_kept_replayed_and_purged() {
    both(async |rig| {
        let refusal = || Fault::Error(RemoteError::permanent("PutObject", 400, "InvalidArgument"));
        for key in ["a", "b"] {
            rig.remote.once(Some(Call::Put), Some(key), refusal());
        }
        let queue = rig.open().await;
        let a = submit(&queue, "a", "1").await;
        assert!(matches!(
            settled(&a).await,
            Settlement::Quarantined(Cause::Refused(_))
        ));
        let b = submit(&queue, "b", "2").await;
        settled(&b).await;
        assert_eq!(rig.remote.count(Call::Put, ""), 2, "one attempt each");
        assert!(matches!(
            queue.drain().await,
            Err(Error::NotUploaded { .. })
        ));
        queue.shutdown().await.unwrap();
        drop(queue);
        let queue = rig.open().await;
        assert_eq!(queue.quarantined().len(), 2);
        assert_eq!(
            queue.get("a", None).await.unwrap(),
            "1",
            "its bytes are kept"
        );
        let replayed = queue.replay(a.task()).await.unwrap();
        assert!(matches!(settled(&replayed).await, Settlement::Uploaded(_)));
        assert!(matches!(
            queue.replay(a.task()).await,
            Err(Error::NoSuchTask(_))
        ));
        queue.purge(b.task()).unwrap();
        assert!(matches!(queue.purge(b.task()), Err(Error::NoSuchTask(_))));
        queue.pause(PauseWhat::Uploads);
        let c = submit(&queue, "c", "3").await;
        assert!(matches!(
            queue.purge(c.task()),
            Err(Error::WrongState { .. })
        ));
        queue.cancel(c.task()).unwrap();
        assert_eq!(settled(&c).await, Settlement::Cancelled);
        queue.resume(PauseWhat::Uploads);
        queue.drain().await.unwrap();
        queue.shutdown().await.unwrap();
        assert_empty(&queue);
        drop(queue);
        let queue = rig.open().await;
        assert!(queue.pending().is_empty() && queue.quarantined().is_empty());
        assert_eq!(rig.remote.keys(), ["a"]);
        queue.shutdown().await.unwrap();
    });
}
