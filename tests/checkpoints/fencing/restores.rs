//! Restores that are killed, and restores of what cannot be, or into what is not empty.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use s3_writeback::testing::fs::{EIO, Fault as DiskFault, SimFs};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Restore, StoreBuilder};
use tokio::sync::Notify;

use crate::owners::{byte_of, founded, objects, other};
use crate::support::{PARTS_OF, StoreRig, checkpoint, contents, fill, spawn};

fn on_disk(fs: &SimFs) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let names = fs.names(Path::new("/q")).into_iter();
    names.map(|path| (path.clone(), fs.peek(&path))).collect()
}

/// A bucket with two checkpoints of three files.
async fn a_bucket() -> StoreRig {
    let rig = StoreRig::owner(64);
    let (store, file) = founded(&rig, 1).await;
    for id in 2..4 {
        let file = store.create(FileId(id), PARTS_OF).await.unwrap();
        for index in 0..3 {
            fill(&file, index, 40 + u8::try_from(id).unwrap()).await;
        }
    }
    fill(&file, 1, 2).await;
    checkpoint(&store).await;
    store.shutdown().await.unwrap();
    rig
}

/// It is the second checkpoint, and can be gone on from.
async fn assert_restored(there: &StoreRig) {
    let opened = there.open_as(StoreBuilder::take_over).await;
    let store = opened.expect("opens what was restored");
    assert_eq!((byte_of(&store, 0).await, byte_of(&store, 1).await), (1, 2));
    for id in 2..4_u8 {
        let bytes = contents(&store, id.into()).await;
        assert!(bytes.iter().all(|byte| *byte == 40 + id), "file {id}");
    }
    store.shutdown().await.unwrap();
}

fn latest(with_bytes: bool) -> Restore {
    match with_bytes {
        true => Restore::latest().with_bytes(),
        false => Restore::latest(),
    }
}

/// A directory that is half restored is no store; nor is one that is hardly begun.
async fn assert_refused(there: &StoreRig) {
    let mut copy = there.clone();
    copy.fs = there.fs.copy_of();
    let was_marked = on_disk(&copy.fs).contains_key(Path::new("/q/RESTORE"));
    for take_over in [false, true] {
        let opened = copy.open_as(|as_is| match take_over {
            true => as_is.take_over(),
            false => as_is.stranded(),
        });
        let error = match opened.await {
            Err(error) => error,
            // Nothing was there, and nothing is.
            Ok(store) if !was_marked && store.files().is_empty() => return,
            Ok(store) => panic!("opens with {:?}", store.files()),
        };
        match error {
            Error::RestoreUnfinished { .. } => assert!(was_marked),
            Error::Diverged { ours: None, .. } => assert!(!was_marked),
            error => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e22_a_restore_that_is_killed_between_any_two_requests_is_refused_and_then_finished() {
    for with_bytes in [false, true] {
        let rig = a_bucket().await;
        for after in 0.. {
            let there = other(&rig, 50 + after as u64);
            let gate = Arc::new(Notify::new());
            if after > 0 {
                let at_once = Fault::Delay(std::time::Duration::ZERO);
                rig.remote.times(after, Some(Call::Get), None, at_once);
            }
            rig.remote
                .once(Some(Call::Get), None, Fault::Gate(Arc::clone(&gate)));
            let asked = rig.remote.count(Call::Get, "");
            let restoring = {
                let there = there.clone();
                spawn(async move {
                    let restored = there.prefix().restore(&there.config, latest(with_bytes));
                    restored.await.map(drop)
                })
            };
            let reached = rig
                .remote
                .wait_for(|remote| remote.count(Call::Get, "") > asked + after);
            tokio::pin!(restoring);
            tokio::select! {
                biased;
                () = reached => (),
                done = &mut restoring => {
                    done.unwrap().unwrap();
                    assert!(after > 4, "{after}");
                    break;
                }
            }
            restoring.abort();
            assert!(restoring.await.is_err());
            match after % 2 {
                0 => there.fs.kill(),
                _ => there.fs.crash(after as u64),
            }
            rig.remote.heal();
            assert_refused(&there).await;
            let restored = there.prefix().restore(&there.config, latest(with_bytes));
            restored.await.expect("is finished");
            assert_restored_without_owning(&there).await;
        }
    }
}

/// The same without taking the prefix over.
async fn assert_restored_without_owning(there: &StoreRig) {
    let store = there.open_as(StoreBuilder::stranded).await.unwrap();
    assert_eq!((byte_of(&store, 0).await, byte_of(&store, 1).await), (1, 2));
    for id in 2..4_u8 {
        let bytes = contents(&store, id.into()).await;
        assert!(bytes.iter().all(|byte| *byte == 40 + id), "file {id}");
    }
}

#[tokio::test(start_paused = true)]
async fn e22_a_restore_that_a_power_cut_ends_after_any_call_of_the_disk_is_refused_and_finished() {
    for with_bytes in [false, true] {
        let rig = a_bucket().await;
        for after in 0.. {
            let there = other(&rig, 500 + after);
            there.fs.fail(DiskFault {
                call: None,
                after,
                errno: EIO,
                forever: true,
            });
            let restoring = there.prefix().restore(&there.config, latest(with_bytes));
            if restoring.await.is_ok() {
                assert!(after > 20, "{after}");
                break;
            }
            there.fs.crash(after);
            assert_refused(&there).await;
            let restored = there.prefix().restore(&there.config, latest(with_bytes));
            let restored = restored.await;
            restored.unwrap_or_else(|error| panic!("after {after} calls: {error}"));
            assert_restored_without_owning(&there).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e22_a_restore_that_is_done_survives_a_power_cut() {
    for seed in 0..20 {
        let rig = a_bucket().await;
        let there = other(&rig, 900 + seed);
        let restored = there.prefix().restore(&there.config, latest(seed % 2 == 0));
        restored.await.unwrap();
        there.fs.crash(seed);
        assert_restored(&there).await;
    }
}

#[tokio::test(start_paused = true)]
async fn e22_a_directory_that_is_half_of_one_checkpoint_is_not_made_another() {
    let rig = a_bucket().await;
    let there = other(&rig, 70);
    there.fs.fail(DiskFault {
        call: None,
        after: 20,
        errno: EIO,
        forever: true,
    });
    let first = there.prefix().restore(&there.config, Restore::number(1));
    assert!(first.await.is_err());
    there.fs.kill();
    let before = on_disk(&there.fs);
    let second = there.prefix().restore(&there.config, Restore::latest());
    let error = second.await.unwrap_err();
    assert!(
        matches!(error, Error::RestoreUnfinished { number: 1, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("checkpoint 1"), "{error}");
    assert_eq!(on_disk(&there.fs), before);
    let first = there.prefix().restore(&there.config, Restore::number(1));
    assert_eq!(first.await.unwrap().checkpoint.number, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restore_into_a_directory_that_is_not_empty_is_refused_and_changes_nothing() {
    let rig = a_bucket().await;
    let objects_before = objects(&rig.remote);
    // A store that was shut down, and one that is open.
    let open = other(&rig, 71);
    let restored = open.prefix().restore(&open.config, Restore::number(1));
    restored.await.unwrap();
    let _reads = open.open_as(StoreBuilder::stranded).await.unwrap();
    for there in [&rig, &open] {
        let before = on_disk(&there.fs);
        let restored = there.prefix().restore(&there.config, Restore::latest());
        let error = restored.await.unwrap_err();
        assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
        assert_eq!(on_disk(&there.fs), before);
    }
    assert_eq!(objects(&rig.remote), objects_before);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_does_not_exist_is_refused_by_naming_those_that_do() {
    let rig = a_bucket().await;
    let there = other(&rig, 72);
    let error = there.prefix().restore(&there.config, Restore::number(9));
    let error = error.await.unwrap_err();
    let names = matches!(&error, Error::NoSuchCheckpoint { number: Some(9), listed }
        if *listed == [1, 2]);
    assert!(names, "{error}");
    assert!(error.to_string().contains('9') && error.to_string().contains("1"));
    assert!(on_disk(&there.fs).is_empty());
    let error = rig.prefix().verify(Some(9)).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchCheckpoint { .. }), "{error}");
    let ttl = std::time::Duration::from_secs(60);
    let error = rig.prefix().read(Some(9), 4096, ttl).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchCheckpoint { .. }), "{error}");
    // There is none at all.
    let empty = StoreRig::owner(16);
    let error = empty.prefix().restore(&empty.config, Restore::latest());
    let error = error.await.unwrap_err();
    let none = matches!(&error, Error::NoSuchCheckpoint { number: None, listed }
        if listed.is_empty());
    assert!(none, "{error}");
    assert!(on_disk(&empty.fs).is_empty());
}
