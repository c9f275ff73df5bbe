//! Corners of the part store: each was found by a random life (`parts_model.rs`), and is kept here
//! as small as it gets.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, FileId, FileOptions, Mode, PartId, Role};
use tokio::sync::Notify;

use crate::support::{
    PART, PARTS_OF, StoreRig, fill, paused, read, spawn, uploaded, with_a_real_limit,
};

const FILE: FileId = FileId(1);

#[test]
fn a_shutdown_waits_for_parts_that_wait_for_memory_of_images() {
    paused(async {
        for ms in 0..40 {
            let rig = StoreRig::with(8, |config| config.image_bytes = PART as u64);
            let delay = Fault::Delay(Duration::from_millis(10));
            rig.remote.always(Some(Call::Put), None, delay);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..4 {
                fill(&file, index, 1).await;
            }
            tokio::time::sleep(Duration::from_millis(ms)).await;
            let report = store.shutdown().await.expect("shuts down");
            assert!(report.sealed && report.dirty_parts == 0, "{ms}: {report:?}");
        }
    });
}

#[test]
fn a_part_that_lost_its_length_in_a_power_cut_reads_as_zeros() {
    paused(async {
        for seed in 0..40 {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            file.set_len(4 * PART as u64).await.expect("grows");
            fill(&file, 2, 7).await;
            rig.fs.crash(seed);
            drop((file, store));
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 2 * PART, PART).await.expect("reads");
            assert!(
                bytes.iter().all(|byte| matches!(byte, 0 | 7)),
                "seed {seed}"
            );
        }
    });
}

/// The power goes; what still runs of a store does nothing any more.
fn power_cut(rig: &mut StoreRig, seed: u64) {
    rig.fs.crash(seed);
    rig.fs = rig.fs.process();
}

/// Polls a future so many times, then drops it.
async fn leave<F: Future>(future: F, times: u32) {
    let mut future = std::pin::pin!(future);
    for nth in 0..times {
        if nth > 0 {
            tokio::task::yield_now().await;
        }
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
        });
        if polled.await {
            return;
        }
    }
}

#[test]
fn a_sync_is_done_when_what_another_began_is_durable() {
    paused(async {
        for (times, seed) in (1..5).flat_map(|times| (0..10).map(move |seed| (times, seed))) {
            let what = format!("left after {times}, seed {seed}");
            let mut rig = StoreRig::new(4);
            rig.fs = rig.fs.process();
            let store = rig.open().await;
            leave(store.create(FILE, PARTS_OF).into_future(), times).await;
            let file = store.create_or_open(FILE, PARTS_OF).await.expect("opens");
            drop((file, store));
            power_cut(&mut rig, seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect(&what);
            fill(&file, 0, 1).await;
            leave(file.sync().into_future(), times).await;
            file.sync().await.expect("syncs");
            power_cut(&mut rig, seed);
            drop((file, store));
            let store = rig.open().await;
            let file = store.file(FILE).expect(&what);
            assert_eq!(file.len(), PART as u64, "{what}");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert_eq!(bytes, vec![1; PART], "{what}");
            leave(file.set_len(100).into_future(), times).await;
            if file.len() == 100 {
                file.sync().await.expect("syncs");
                power_cut(&mut rig, seed);
                drop((file, store));
                let store = rig.open().await;
                let file = store.file(FILE).expect(&what);
                assert_eq!(file.len(), 100, "{what}");
            }
        }
    });
}

#[test]
fn a_dropped_file_gives_its_room_back_whoever_has_a_handle() {
    paused(async {
        let rig = StoreRig::new(4);
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1, 1).await;
        assert_eq!(store.snapshot().dirty_bytes, rig.config.dirty_bytes);
        let locker = store.locker("dropper", Role::Foreground).expect("a locker");
        store.drop_file(FILE, &locker).await.expect("drops");
        let snapshot = store.snapshot();
        assert_eq!((snapshot.dirty_bytes, snapshot.cache_bytes), (0, 0));
        drop(file);
    });
}

#[test]
fn a_cut_inside_a_part_that_is_not_here_needs_no_room_that_it_holds_itself() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        // Only what is to be cut off is here.
        for index in 4..8 {
            drop(read(&file, index * PART, PART).await.expect("reads"));
        }
        let cut = file.set_len(2 * PART as u64 + 5);
        cut.within(Duration::from_secs(5)).await.expect("cuts");
        let bytes = read(&file, 2 * PART, 5).await.expect("reads");
        assert_eq!(bytes, [1; 5]);
    });
}

#[test]
fn a_cut_needs_no_dirty_room_that_it_keeps_itself() {
    paused(async {
        let rig = StoreRig::with(8, |config| config.dirty_bytes = PART as u64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        uploaded(&store).await;
        for times in 1..6 {
            // An intent under which nothing was written.
            leave(file.write_at(&[2], 7 * PART as u64).into_future(), times).await;
            let cut = file.set_len(7 * PART as u64 - times as u64);
            cut.within(Duration::from_secs(5)).await.expect("cuts");
            file.set_len(8 * PART as u64).await.expect("grows");
        }
    });
}

#[test]
fn who_grows_a_file_through_a_guard_does_not_wait_for_who_waits_for_the_guard() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        file.write_at(&[1], PART as u64).await.expect("writes");
        let locker = store.locker("grower", Role::Foreground).expect("a locker");
        let guard = file.lock(1, Mode::Exclusive, &locker).await.expect("locks");
        let grow = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let write = guard.write_at(&[2; 100], 0).within(Duration::from_secs(5));
            write.await.expect("writes");
            drop(guard);
        };
        let cut = file.set_len(10).within(Duration::from_secs(10));
        let (cut, ()) = futures::future::join(cut.into_future(), grow).await;
        cut.expect("cuts");
        assert_eq!(file.len(), 10);
    });
}

#[test]
fn a_write_that_comes_during_a_cut_writes_behind_it() {
    paused(async {
        for times in 1..8 {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            fill(&file, 1, 1).await;
            leave(file.set_len(10).into_future(), times).await;
            file.write_at(&[2; 9], PART as u64 + 1)
                .await
                .expect("writes");
            let bytes = read(&file, PART, 10).await.expect("reads");
            let before = u8::from(file.len() > PART as u64 + 10);
            assert_eq!(
                bytes,
                [before, 2, 2, 2, 2, 2, 2, 2, 2, 2],
                "left after {times}"
            );
        }
    });
}

#[test]
fn a_step_over_several_parts_has_room_for_all_of_them_or_none() {
    paused(async {
        let rig = StoreRig::with(8, |config| config.dirty_bytes = 2 * PART as u64);
        let store = rig.open().await;
        let files = [FILE, FileId(2)];
        for id in files {
            let file = store.create(id, PARTS_OF).await.expect("creates");
            file.set_len(8 * PART as u64).await.expect("grows");
        }
        let part = |(file, index)| PartId {
            file: files[file],
            index,
        };
        let sets: [&[(usize, u32)]; 5] = [
            &[(0, 0), (1, 0)],
            &[(0, 1), (1, 1)],
            &[(0, 2), (1, 1)],
            &[(1, 4)],
            &[(0, 4), (0, 5), (1, 5)],
        ];
        let works = sets.map(|set| {
            let store = store.clone();
            async move {
                let locker = store.locker("stepper", Role::Foreground).expect("a locker");
                let ids: Vec<PartId> = set.iter().copied().map(part).collect();
                for round in 0..10 {
                    let file = store.file(ids[0].file).expect("is there");
                    let write = file.write_at(&[1], u64::from(ids[0].index) * PART as u64);
                    write.await.expect("writes");
                    let set = store.lock_many(&ids, Mode::Pin, &locker);
                    let set = set.await.expect("locks");
                    let bytes = [round + 1; 9];
                    let pieces: Vec<_> = ids.iter().map(|id| (*id, 7, &bytes[..])).collect();
                    let written = set.write(&pieces).within(Duration::from_secs(60)).await;
                    match written {
                        Err(Error::TooLarge { .. }) if ids.len() > 2 => return,
                        written => written.expect("writes"),
                    }
                    drop(set);
                }
                assert!(ids.len() <= 2);
            }
        });
        futures::future::join_all(works).await;
    });
}

#[test]
fn a_step_that_was_left_keeps_no_room_while_its_guard_is_held() {
    paused(async {
        for times in 1..6 {
            let rig = StoreRig::with(8, |config| config.dirty_bytes = PART as u64);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            file.set_len(2 * PART as u64).await.expect("grows");
            let locker = store.locker("holder", Role::Foreground).expect("a locker");
            let guard = file.lock(0, Mode::Exclusive, &locker).await.expect("locks");
            leave(guard.write_at(&[1], 0).into_future(), times).await;
            let write = file.write_at(&[2], PART as u64);
            write.within(Duration::from_secs(60)).await.expect("writes");
        }
    });
}

#[test]
fn a_step_that_has_no_room_because_of_guards_says_so() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1, 1).await;
        file.set_len(8 * PART as u64).await.expect("grows");
        uploaded(&store).await;
        let holder = store.locker("holder", Role::Foreground).expect("a locker");
        let one = file.lock(0, Mode::Pin, &holder).await.expect("locks");
        let two = file.lock(1, Mode::Pin, &holder).await.expect("locks");
        let part = |index| PartId { file: FILE, index };
        let locker = store.locker("stepper", Role::Foreground).expect("a locker");
        let ids = [part(4), part(5)];
        let pieces = ids.map(|id| (id, 0, &[1_u8; 3][..]));
        let set = store
            .lock_many(&ids, Mode::Exclusive, &locker)
            .await
            .expect("locks");
        set.write(&pieces).await.expect("writes");
        drop(set);
        uploaded(&store).await;
        let three = file.lock(4, Mode::Pin, &holder).await.expect("locks");
        let ids = [part(6), part(7)];
        let pieces = ids.map(|id| (id, 0, &[1_u8; 3][..]));
        let set = store
            .lock_many(&ids, Mode::Exclusive, &locker)
            .await
            .expect("locks");
        let written = set.write(&pieces).within(Duration::from_secs(60)).await;
        assert!(
            matches!(written, Err(Error::CacheFull { .. })),
            "{written:?}"
        );
        drop((one, two, three));
        set.write(&pieces).await.expect("writes");
    });
}

#[test]
fn an_image_of_what_was_cut_off_is_not_taken_for_one_of_what_came_after() {
    paused(async {
        for seed in 0..8 {
            let mut rig = StoreRig::with(4, |config| {
                config.max_dirty_age = Duration::from_millis(1);
                config.dirty_bytes = 4 * PART as u64;
            });
            rig.fs = rig.fs.process();
            let (first, second) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            for gate in [&first, &second] {
                let gate = Fault::Gate(Arc::clone(gate));
                rig.remote.once(Some(Call::Put), None, gate);
            }
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            rig.remote
                .wait_for(|remote| remote.in_flight().0 == 1)
                .await;
            file.set_len(0).await.expect("cuts");
            fill(&file, 0, 2).await;
            file.sync().await.expect("syncs");
            rig.remote
                .wait_for(|remote| remote.in_flight().0 == 2)
                .await;
            first.notify_one();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop((file, store));
            power_cut(&mut rig, seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            assert_eq!(bytes, [2; PART], "seed {seed}");
        }
    });
}

#[test]
fn parts_that_do_not_fit_beside_what_is_held_are_refused_with_who_holds_it() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.dirty_bytes = 4 * PART as u64);
        let store = rig.open().await;
        let small = store.create(FILE, PARTS_OF).await.expect("creates");
        let options = FileOptions {
            part_bytes: 2 * PART as u32,
        };
        let large = FileId(2);
        let file = store.create(large, options).await.expect("creates");
        file.write_at(&[1; 9], 0).await.expect("writes");
        for index in 0..4 {
            fill(&small, index, 1).await;
        }
        uploaded(&store).await;
        let holder = store.locker("holder", Role::Foreground).expect("a locker");
        let one = small.lock(0, Mode::Pin, &holder).await.expect("locks");
        let two = small.lock(2, Mode::Pin, &holder).await.expect("locks");
        // Here, and goes when room is made for the other.
        drop(read(&small, PART, PART).await.expect("reads"));
        let parts = [(FILE, 1), (large, 0)].map(|(file, index)| PartId { file, index });
        let locker = store.locker("asker", Role::Foreground).expect("a locker");
        let set = store.lock_many(&parts, Mode::Exclusive, &locker);
        let set = set.within(Duration::from_secs(60)).await;
        assert!(matches!(set, Err(Error::CacheFull { .. })), "{set:?}");
        drop((one, two));
        let set = store.lock_many(&parts, Mode::Exclusive, &locker).await;
        drop(set.expect("locks"));
    });
}

#[test]
fn steps_that_share_a_part_do_not_take_its_intent_from_each_other_for_ever() {
    with_a_real_limit(|| {
        paused(async {
            let rig = StoreRig::with(8, |config| config.dirty_bytes = 2 * PART as u64);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            file.set_len(8 * PART as u64).await.expect("grows");
            let part = |index| PartId { file: FILE, index };
            let works = [1, 2, 3, 4].map(|other| {
                let store = store.clone();
                spawn(async move {
                    let locker = store.locker("stepper", Role::Foreground).expect("a locker");
                    for _ in 0..20 {
                        let ids = [part(0), part(other)];
                        let set = store.lock_many(&ids, Mode::Pin, &locker);
                        let set = set.await.expect("locks");
                        let pieces = ids.map(|id| (id, 7, &[1_u8; 9][..]));
                        let written = set.write(&pieces).within(Duration::from_secs(60));
                        written.await.expect("writes");
                        drop(set);
                        if other > 2 {
                            uploaded(&store).await;
                        }
                    }
                })
            });
            for work in works {
                work.await.expect("ends");
            }
        });
    });
}

/// A file of eight parts, all in S3; part 3 alone is not here.
async fn all_but_one(store: &s3_writeback::PartStore) -> s3_writeback::File {
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    for index in 0..8 {
        fill(&file, index, 7).await;
    }
    file.sync().await.expect("syncs");
    uploaded(store).await;
    without_part_3(&file).await;
    file
}

async fn without_part_3(file: &s3_writeback::File) {
    for _ in 0..8 {
        for index in [0, 1, 2, 4, 5, 6, 7] {
            drop(read(file, index * PART, 1).await.expect("reads"));
        }
    }
}

#[test]
fn an_intent_that_a_cut_left_behind_keeps_its_part_here() {
    paused(async {
        for times in 1..16 {
            // So that nobody looks for such intents before the power goes.
            let rig = StoreRig::with(4, |config| {
                config.max_dirty_age = Duration::from_secs(3600);
            });
            let store = rig.open().await;
            let file = all_but_one(&store).await;
            drop(read(&file, 3 * PART, 1).await.expect("reads"));
            file.sync().await.expect("syncs");
            leave(file.set_len(3 * PART as u64 + 100).into_future(), times).await;
            if file.len() < 8 * PART as u64 {
                continue;
            }
            without_part_3(&file).await;
            file.sync().await.expect("syncs");
            drop((file, store));
            rig.fs.crash(times.into());
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 3 * PART, PART).await.expect("reads");
            assert_eq!(bytes, [7; PART], "left after {times}");
        }
    });
}

#[test]
fn a_sync_does_not_vouch_for_bytes_that_are_about_to_be_written() {
    paused(async {
        for times in 1..16 {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = all_but_one(&store).await;
            let bytes = [8; PART];
            // Over a part that is not here, whole: the power goes between its intent and its step.
            let mut write = Box::pin(file.write_at(&bytes, 3 * PART as u64).into_future());
            let mut done = false;
            for _ in 0..times {
                let poll = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(write.as_mut().poll(context).is_ready())
                });
                done = poll.await;
                if done {
                    break;
                }
                tokio::task::yield_now().await;
            }
            file.sync().await.expect("syncs");
            rig.fs.crash(times);
            drop(write);
            drop((file, store));
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 3 * PART, PART).await.expect("reads");
            let expected = if done { 8 } else { 7 };
            assert_eq!(bytes, [expected; PART], "after {times}");
        }
    });
}

#[test]
fn who_waits_for_dirty_room_does_not_wait_until_it_is_old() {
    paused(async {
        let age = Duration::from_secs(3600);
        let rig = StoreRig::with(8, |config| config.max_dirty_age = age);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let began = tokio::time::Instant::now();
        for index in 0..32 {
            let bytes = [1; PART];
            let write = file.write_at(&bytes, (index * PART) as u64);
            write.within(2 * age).await.expect("writes");
        }
        assert!(began.elapsed() < age, "{:?}", began.elapsed());
    });
}

#[test]
fn a_write_behind_a_cut_within_its_part_stays() {
    paused(async {
        for times in 1..8 {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            fill(&file, 1, 1).await;
            leave(file.set_len(10).into_future(), times).await;
            file.write_at(&[2; 9], 100).await.expect("writes");
            tokio::time::sleep(Duration::from_secs(1)).await;
            let bytes = read(&file, 100, 9).await.expect("reads");
            assert_eq!(bytes, [2; 9], "left after {times}");
        }
    });
}

#[test]
fn what_is_written_anew_behind_a_cut_is_as_safe_as_before() {
    paused(async {
        let rig = StoreRig::new(8);
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 7).await;
        }
        file.sync().await.expect("syncs");
        file.set_len(PART as u64).await.expect("cuts");
        fill(&file, 2, 9).await;
        file.sync().await.expect("syncs");
        drop((file, store));
        rig.fs.crash(1);
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        let bytes = read(&file, PART, 2 * PART).await.expect("reads");
        assert_eq!(bytes[..PART], [0; PART]);
        assert_eq!(bytes[PART..], [9; PART]);
    });
}

#[test]
fn a_shutdown_with_nothing_left_to_do_ends_at_once() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        uploaded(&store).await;
        let began = tokio::time::Instant::now();
        store.shutdown().await.expect("shuts down");
        assert!(began.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn an_image_that_s3_refuses_leaves_its_part_dirty() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = all_but_one(&store).await;
        let refused = RemoteError::permanent("PutObject", 403, "AccessDenied");
        rig.remote
            .once(Some(Call::Put), None, Fault::Error(refused));
        fill(&file, 3, 9).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        uploaded(&store).await;
        without_part_3(&file).await;
        let bytes = read(&file, 3 * PART, PART).await.expect("reads");
        assert_eq!(bytes, [9; PART]);
    });
}

#[test]
fn a_load_of_a_short_image_leaves_nothing_behind_it() {
    paused(async {
        for seed in 0..20 {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..3 {
                fill(&file, index, 7).await;
            }
            let short = 3 * PART as u64;
            file.write_at(&[7; 100], short).await.expect("writes");
            uploaded(&store).await;
            file.set_len(8 * PART as u64).await.expect("grows");
            for index in 4..8 {
                fill(&file, index, 7).await;
            }
            file.sync().await.expect("syncs");
            uploaded(&store).await;
            without_part_3(&file).await;
            // Never synced, over a load that was not either.
            file.write_at(&[9; 2000], short + 1000)
                .await
                .expect("writes");
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 3 * PART, PART).await.expect("reads");
            assert_eq!(bytes[..100], [7; 100], "seed {seed}");
            assert_eq!(bytes[100..], [0; PART - 100], "seed {seed}");
        }
    });
}

#[test]
fn who_waits_for_room_for_a_part_that_others_bring_does_not_wait_on() {
    paused(async {
        for whole in [false, true] {
            let rig = StoreRig::with(4, |config| {
                config.dirty_bytes = 4 * PART as u64;
            });
            let each = 2 * PART;
            let store = rig.open().await;
            let options = FileOptions {
                part_bytes: each as u32,
            };
            let file = store.create(FILE, options).await.expect("creates");
            for index in 0..6 {
                let bytes = vec![1; each];
                let write = file.write_at(&bytes, (index * each) as u64);
                write.await.expect("writes");
            }
            uploaded(&store).await;
            let works = (0..8).map(|one| {
                let file = file.clone();
                spawn(async move {
                    let bytes = vec![1; each];
                    for nth in 0..40 {
                        let at = (nth * (one + 3) / 2 + one) % 6 * each;
                        if whole && nth % 3 == 0 {
                            let write = file.write_at(&bytes, at as u64);
                            let write = write.within(Duration::from_secs(60));
                            write.await.expect("writes");
                        }
                        let mut buffer = vec![0; each];
                        let read = file.read_at(&mut buffer, at as u64);
                        let read = read.within(Duration::from_secs(60));
                        read.await.expect("reads");
                    }
                })
            });
            for work in works.collect::<Vec<_>>() {
                work.await.expect("ends");
            }
        }
    });
}
