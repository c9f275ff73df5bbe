//! Locks, outages, a full disk and a backlog: who waits for whom, and who does not.

use std::future::IntoFuture as _;
use std::path::Path;
use std::time::Duration;

use s3_writeback::error::Advice;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, Mode, Restore, Role};

use super::{FILE, byte, part};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, contents, drawn, fill, paused, spawn};

/// A write over three parts, the second held; a line meanwhile: the line is not delayed.
#[test]
fn e17_a_write_that_waits_for_a_lock_does_not_delay_a_line() {
    paused(async {
        let rig = StoreRig::owner(16);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..3 {
            fill(&file, index, 1).await;
        }
        let holder = store.locker("holder", Role::Foreground).expect("a locker");
        let guard = file.lock(1, Mode::Exclusive, &holder).await.expect("locks");
        let writer = store.locker("writer", Role::Foreground).expect("a locker");
        let on = store.clone();
        let write = spawn(async move {
            let parts = [part(0), part(1), part(2)];
            let set = on.lock_many(&parts, Mode::Exclusive, &writer).await?;
            let bytes = [2; PART];
            set.write(&[
                (part(0), 0, &bytes),
                (part(1), 0, &bytes),
                (part(2), 0, &bytes),
            ])
            .await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 3 * PART]);
        drop(guard);
        write.await.expect("ends").expect("writes");
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![2; 3 * PART]);
    });
}

/// S3 goes down during a checkpoint: writes go on until a limit is reached, and what is committed
/// when it is back is what was there at the line.
#[test]
fn e17_an_outage_during_a_checkpoint_stops_no_write_before_a_limit() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.dirty_bytes = 32 * PART as u64;
            config.aside_memory = 4 * PART as u64;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        rig.remote
            .always(None, None, Fault::Error(RemoteError::transient("any")));
        let made = drawn(&store).await;
        for round in 2..6 {
            for index in 0..32 {
                let bytes = [round; PART];
                let write = file.write_at(&bytes, (index * PART) as u64);
                write
                    .within(Duration::from_millis(10))
                    .await
                    .expect("no write waits for S3");
            }
        }
        let error = file
            .write_at(&[9; PART], 32 * PART as u64)
            .within(Duration::from_secs(1))
            .await
            .expect_err("here is the limit");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        rig.remote.heal();
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 16 * PART]);
    });
}

/// Without room to set images aside no line is drawn; and nothing has changed.
#[test]
fn a_disk_without_room_for_what_may_be_set_aside_fails_the_checkpoint_before_the_line() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.aside_memory = 0;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        let fault = fs::Fault {
            call: Some(fs::Call::Reserve),
            after: 0,
            errno: fs::ENOSPC,
            forever: true,
        };
        rig.fs.fail_under(Path::new("/q/lines"), fault);
        let error = store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect_err("no room");
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(error.advice(), Advice::Retry);
        assert!(store.checkpoint_snapshot().owed.is_none());
        rig.fs.heal();
        checkpoint(&store).await;
    });
}

/// E20: a backlog of ten times today's limit, S3 down: the checkpointer has its way as soon as S3
/// is there, before the backlog is.
#[test]
fn e20_a_backlog_above_the_limits_keeps_no_checkpoint_back() {
    paused(async {
        let mut rig = StoreRig::owner(16);
        rig.config.queue.max_tasks = 1000;
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Error(RemoteError::transient("PutObject")),
        );
        for task in 0..1000 {
            let key = format!("log/{task}");
            let options = s3_writeback::Options::default();
            let receipt = store.queue().submit(key, vec![1_u8; 10], options).await;
            receipt
                .expect("is admitted")
                .durable()
                .await
                .expect("is durable");
        }
        file.sync().await.expect("syncs");
        rig.fs.crash(1);
        drop((store, file));
        rig.config.queue.max_tasks = 100;
        // Slow, one at a time: the backlog takes a quarter of an hour.
        rig.remote.heal();
        rig.remote.under(
            None,
            Some(Call::Put),
            "log/",
            Fault::Delay(Duration::from_secs(1)),
        );
        rig.config.queue.workers = 1;
        let store = rig.open().await;
        let started = tokio::time::Instant::now();
        checkpoint(&store).await;
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{:?}",
            started.elapsed()
        );
        assert!(
            store.queue().snapshot().tasks.tasks > 100,
            "the backlog is not gone"
        );
    });
}

/// Every slot but one is with foreground work that S3 does not answer: that one is enough.
#[test]
fn a_checkpoint_has_a_slot_that_nothing_else_has() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.queue.workers = 1;
            config.queue.attempt_floor = Duration::from_secs(3600);
            config.checkpoint_within = Duration::from_secs(600);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.under(None, Some(Call::Put), "log/", Fault::Hang);
        let options = s3_writeback::Options::default();
        let receipt = store.queue().submit("log/1", vec![1_u8; 10], options).await;
        receipt
            .expect("is admitted")
            .durable()
            .await
            .expect("is durable");
        rig.remote
            .wait_for(|remote| remote.in_flight().0 == 1)
            .await;
        checkpoint(&store).await;
    });
}

/// With the queue full of foreground work, every part lock held by lockers that sleep, and half of
/// the requests failing, a checkpoint commits; so does the last one, at shutdown.
#[test]
fn a_checkpoint_makes_progress_whatever_the_engine_and_s3_do() {
    paused(async {
        let rig = StoreRig::owner_with(64, |config| {
            config.checkpoint_at_shutdown = true;
            config.queue.max_tasks = 100;
            config.queue.workers = 2;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, 1).await;
        }
        let sleeper = store.locker("sleeper", Role::Foreground).expect("a locker");
        let mut guards = Vec::new();
        for index in 0..16 {
            let guard = file
                .lock(index, Mode::Exclusive, &sleeper)
                .await
                .expect("locks");
            guards.push(guard);
        }
        guards[3].write_at(&[2; PART], 0).await.expect("writes");
        let fails = Fault::Error(RemoteError::transient("any"));
        let slow = Fault::Delay(Duration::from_millis(20));
        for _ in 0..2000 {
            rig.remote.once(None, None, fails.clone());
            rig.remote.once(None, None, slow.clone());
        }
        rig.remote.under(None, None, "log/", slow);
        let queue = store.queue().clone();
        let full = spawn(async move {
            for task in 0_u32.. {
                let options = s3_writeback::Options::default();
                let key = format!("log/{task}");
                if queue.submit(key, vec![1_u8; 100], options).await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            store.queue().pressure() >= 90,
            "{}",
            store.queue().pressure()
        );
        checkpoint(&store).await;
        let first = rig.prefix().checkpoints().await.expect("lists");
        assert_eq!(first.len(), 1);
        guards[5].write_at(&[3; PART], 0).await.expect("writes");
        let report = store
            .shutdown()
            .within(Duration::from_secs(600))
            .await
            .expect("ends");
        assert_eq!(report.checkpoint, Some(2), "{report:?}");
        full.await.expect("ends");
        drop(guards);
        rig.remote.heal();
        let there = rig.restored(Restore::latest()).await;
        assert_eq!((byte(&there, 3).await, byte(&there, 5).await), (2, 3));
    });
}

/// Nothing is said to be late that is not: a checkpoint that S3 does not take ends at its deadline,
/// with what is owed, and the next is made when S3 is back.
#[test]
fn a_checkpoint_that_s3_does_not_take_ends_at_its_deadline() {
    paused(async {
        let rig = StoreRig::owner_with(8, |config| {
            config.checkpoint_within = Duration::from_secs(60);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.remote.under(
            None,
            Some(Call::Put),
            "packs/",
            Fault::Error(RemoteError::throttled("PutObject")),
        );
        let made = store
            .checkpoint(CheckpointOptions::new())
            .within(Duration::from_secs(120));
        let error = spawn(made.into_future())
            .await
            .expect("ends")
            .expect_err("not in time");
        assert!(
            matches!(&error, Error::TimedOut { waiting_for, .. }
            if matches!(**waiting_for, Error::NotInS3 { images: 1 })),
            "{error}"
        );
        assert!(store.checkpoint_snapshot().owed.is_none());
        rig.remote.heal();
        checkpoint(&store).await;
    });
}
