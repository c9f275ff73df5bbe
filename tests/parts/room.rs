//! Room in the cache that does not come, and who is told why: the disk lets nothing go, nothing
//! will be clean any more, or somebody else holds all of it.

use std::path::Path;
use std::time::Duration;

use crate::support::{PART, PARTS_OF, StoreRig, assert_idle, fill, paused, read, uploaded};
use s3_writeback::testing::fs::{Call as FsCall, EIO, ENOSPC, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, Mode, PartId, Role};
use tokio::time::Instant;

const FILE: FileId = FileId(1);

/// A read waited for all of its `io_deadline`, ten minutes.
#[test]
fn a_disk_that_lets_nothing_go_is_named_to_who_waits_for_room() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        let refuses = |errno| FsFault {
            call: Some(FsCall::Punch),
            after: 0,
            errno,
            forever: true,
        };
        for errno in [EIO, ENOSPC] {
            rig.fs.fail(refuses(errno));
            let before = store.snapshot().loads;
            let began = Instant::now();
            let mut refused = Ok(Vec::new());
            for index in 0..8 {
                refused = read(&file, index * PART, 1).await;
                if refused.is_err() {
                    break;
                }
            }
            match refused.expect_err("there is no room for all of them") {
                Error::Directory { .. } => assert_eq!(errno, EIO),
                Error::DiskFull { .. } => assert_eq!(errno, ENOSPC),
                error => panic!("{error:?}"),
            }
            assert!(began.elapsed() < Duration::from_secs(5));
            assert_eq!(store.snapshot().loads, before);
            rig.fs.heal();
        }
        for index in 0..8 {
            assert_eq!(read(&file, index * PART, 1).await.expect("reads"), [1]);
        }
        assert_idle(&store);
    });
}

/// Once is not for ever: whoever waits does not hear of it.
#[test]
fn a_disk_that_refuses_for_a_moment_is_asked_again() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        for _ in 0..3 {
            rig.fs.fail(FsFault {
                call: Some(FsCall::Punch),
                after: 0,
                errno: EIO,
                forever: false,
            });
            for index in 0..8 {
                assert_eq!(read(&file, index * PART, 1).await.expect("reads"), [1]);
            }
        }
        assert_idle(&store);
    });
}

/// Nothing that is dirty in a store that has failed will ever be clean, and so make room.
#[test]
fn who_waits_for_what_a_failed_store_has_dirty_is_told_why() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.dirty_bytes = 4 * PART as u64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        for index in 0..4 {
            fill(&file, index, 2).await;
        }
        let refuses = FsFault {
            call: Some(FsCall::Sync),
            after: 0,
            errno: EIO,
            forever: true,
        };
        rig.fs.fail_under(Path::new("/q/parts"), refuses);
        assert!(file.sync().await.is_err());
        rig.fs.heal();
        let read = tokio::time::timeout(Duration::from_secs(5), read(&file, 7 * PART, 1)).await;
        let error = read.expect("is told soon").expect_err("there is no room");
        assert!(matches!(error, Error::StoreFailed(_)), "{error:?}");
    });
}

/// Found by seed 9519 of the simulation: with five parts of a cache of four in guards of the
/// foreground, the next load of a checkpointer had nothing that could go.
#[test]
fn what_a_checkpointer_brought_here_is_held_by_the_foreground_in_room_of_its_own() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.checkpoint_cache_bytes = PART as u64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        let locker = |name, role| store.locker(name, role).expect("a locker");
        let holds = locker("holds", Role::Foreground);
        let mut held = Vec::new();
        for index in 0..4 {
            held.push(file.lock(index, Mode::Pin, &holds).await.expect("locks"));
        }
        let checkpoints = locker("checkpointer", Role::Checkpointer);
        let brought = file.lock(4, Mode::Shared, &checkpoints).await;
        let brought = brought.expect("loads");
        let got = file.lock(4, Mode::Pin, &holds).now().map(drop);
        assert!(matches!(got, Err(Error::NoRoom { .. })), "{got:?}");
        let got = file.lock(4, Mode::Pin, &holds).await.map(drop);
        assert!(matches!(got, Err(Error::CacheFull { .. })), "{got:?}");
        let part = PartId {
            file: FILE,
            index: 4,
        };
        let got = store.lock_many(&[part], Mode::Pin, &holds).await.map(drop);
        assert!(matches!(got, Err(Error::CacheFull { .. })), "{got:?}");
        drop(brought);
        for index in 5..8 {
            // In line for it, as a load is; both before anybody has looked for room.
            let waits = locker("waits", Role::Foreground);
            let (waited, guard) = futures::join!(
                file.lock(index - 1, Mode::Pin, &waits).into_future(),
                file.lock(index, Mode::Shared, &checkpoints).into_future()
            );
            assert!(matches!(waited, Err(Error::CacheFull { .. })), "{waited:?}");
            drop(guard.expect("loads"));
        }
        // As soon as there is as much room as that, it is the foreground's.
        held.pop();
        held.push(file.lock(7, Mode::Pin, &holds).await.expect("locks"));
        assert_eq!(store.snapshot().cache_bytes, 4 * PART as u64);
        let guard = file.lock(0, Mode::Pin, &checkpoints).await;
        drop(guard.expect("is here"));
        drop(held);
        assert_idle(&store);
    });
}
