//! Part locks, loads and room: who gets what, when, and what they are told (scenarios A, D8, E15,
//! E16, E38, E39).

use std::sync::Arc;
use std::time::Duration;

use crate::support::{PART, PARTS_OF, StoreRig, assert_idle, fill, paused, read, spawn, uploaded};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, Locker, Mode, PartId, PartStore, Role};
use tokio::sync::Notify;
use tokio::time::Instant;

const FILE: FileId = FileId(1);
const SOON: Duration = Duration::from_secs(5);

/// A file of `parts` parts, each filled with its number and one, all of them in S3.
async fn filled(store: &PartStore, parts: usize) -> File {
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    for index in 0..parts {
        fill(&file, index, index as u8 + 1).await;
    }
    uploaded(store).await;
    file
}

fn foreground(store: &PartStore, name: &str) -> Locker {
    store.locker(name, Role::Foreground).expect("a locker")
}

fn checkpointer(store: &PartStore, name: &str) -> Locker {
    store.locker(name, Role::Checkpointer).expect("a locker")
}

/// Makes room for others by reading everything else.
async fn evict(store: &PartStore, file: &File, all_but: std::ops::Range<usize>) {
    let before = store.snapshot().evictions;
    let parts = (file.len() as usize).div_ceil(PART);
    for round in 0..4 {
        for index in (0..parts).filter(|index| !all_but.contains(index)) {
            read(file, index * PART, 1).await.expect("reads");
        }
        if round > 1 && store.snapshot().evictions > before {
            return;
        }
    }
}

#[test]
fn a_locker_that_finds_a_prefetch_gets_the_part_when_it_has_come() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 16).await;
        evict(&store, &file, 0..1).await;
        let gate = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Get), None, Fault::Gate(Arc::clone(&gate)));
        uploaded(&store).await;
        drop(read(&file, 15 * PART, 1).await);
        // Room, so that the prefetch is made.
        let locker = foreground(&store, "second");
        let all = file.prefetch(0..file.len());
        assert!(all <= 16);
        let waits = {
            let (file, locker) = (file.clone(), locker.clone());
            spawn(async move {
                let guard = file.lock(0, Mode::Shared, &locker).await?;
                let mut byte = [0];
                guard.read_at(&mut byte, 0).await?;
                Ok::<_, Error>(byte[0])
            })
        };
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.notify_one();
        assert_eq!(waits.await.expect("ends").expect("is locked"), 1);
        assert_idle(&store);
    });
}

#[test]
fn a_shutdown_after_long_inserts_ends_in_time_with_all_of_it_in_s3() {
    // The incident: dirty parts without end, a checkpointer that must read parts that are being
    // loaded, and a shutdown.
    paused(async {
        let parts = 50_000;
        let rig = StoreRig::with(60_000, |config| {
            config.dirty_bytes = config.cache_bytes;
            config.max_dirty_age = Duration::from_secs(3600);
            config.queue.segment_bytes = 1024 * 1024;
            config.queue.max_disk_bytes = 256 * 1024 * 1024;
            config.queue.shutdown_within = Duration::from_secs(60);
        });
        let other = FileId(2);
        {
            let store = rig.open().await;
            let file = store.create(other, PARTS_OF).await.expect("creates");
            for index in 0..64 {
                fill(&file, index, index as u8 + 1).await;
            }
            store.shutdown().await.expect("shuts down");
        }
        for name in rig.fs.names(std::path::Path::new("/q/parts")) {
            let len = rig.fs.peek(&name).map_or(0, |bytes| bytes.len());
            rig.fs.poke(&name, vec![0; len]);
        }
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..parts {
            let byte = [index as u8; 16];
            file.write_at(&byte, (index * PART) as u64)
                .await
                .expect("writes");
        }
        assert!(store.snapshot().dirty_bytes >= (parts * PART / 2) as u64);
        rig.remote.always(
            Some(Call::Put),
            None,
            Fault::Delay(Duration::from_millis(5)),
        );
        rig.remote.always(
            Some(Call::Get),
            None,
            Fault::Delay(Duration::from_millis(400)),
        );
        let old = store.file(other).expect("is there");
        let prefetched = old.prefetch(0..old.len());
        assert!(prefetched > 32, "{prefetched} are on their way");
        let reader = checkpointer(&store, "checkpointer");
        let reads = spawn(async move {
            for index in 0..64_u32 {
                let guard = old.lock(index, Mode::Shared, &reader).await?;
                let mut byte = [0];
                guard.read_at(&mut byte, 0).await?;
                assert_eq!(byte[0], index as u8 + 1);
            }
            Ok::<_, Error>(())
        });
        let began = Instant::now();
        let report = store.shutdown().await.expect("shuts down");
        assert!(began.elapsed() <= Duration::from_secs(60), "{report:?}");
        assert!(report.sealed, "{report:?}");
        assert_eq!(report.dirty_parts, 0, "{report:?}");
        reads
            .await
            .expect("ends")
            .expect("the checkpointer read all of it");
        assert_idle(&store);
    });
}

#[test]
fn what_a_shutdown_cannot_upload_it_names_and_ends_in_time() {
    paused(async {
        let rig = StoreRig::with(64, |config| {
            config.dirty_bytes = config.cache_bytes;
            config.queue.shutdown_within = Duration::from_secs(20);
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.always(Some(Call::Put), None, Fault::Hang);
        for index in 0..40 {
            fill(&file, index, 9).await;
        }
        let began = Instant::now();
        let report = store.shutdown().await.expect("shuts down");
        assert!(began.elapsed() <= Duration::from_secs(20), "{report:?}");
        assert_eq!(report.dirty_parts, 40);
        assert!(report.sealed, "{report:?}");
        assert_eq!(store.snapshot().lock_waiters, 0);
        drop((store, file));
        // Durable here, and uploaded in the next life.
        rig.remote.heal();
        rig.fs.crash(3);
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        assert_eq!(
            read(&file, 39 * PART, PART).await.expect("reads"),
            [9; PART]
        );
        let report = store.shutdown().await.expect("shuts down");
        assert_eq!(report.dirty_parts, 0);
    });
}

#[test]
fn a_load_that_finds_nothing_tells_everyone_once_and_others_go_on() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.pack_bytes = PART as u64);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        evict(&store, &file, 0..1).await;
        rig.remote.heal();
        let before = rig.remote.count(Call::Get, "");
        rig.remote
            .always(Some(Call::Get), None, Fault::Delay(Duration::from_secs(1)));
        for key in rig.remote.keys() {
            if rig.remote.object(&key).is_some_and(|body| body[16] == 1) {
                rig.remote.remove(&key);
            }
        }
        let mut waits = Vec::new();
        for n in 0..4 {
            let (file, locker) = (file.clone(), foreground(&store, &format!("l{n}")));
            waits.push(spawn(async move {
                file.lock(0, Mode::Shared, &locker).await.map(drop)
            }));
        }
        for wait in waits {
            let told = wait.await.expect("ends");
            assert!(matches!(told, Err(Error::ImageMissing { .. })), "{told:?}");
        }
        assert_eq!(
            rig.remote.count(Call::Get, "") - before,
            1,
            "one load for all of them"
        );
        let bytes = read(&file, PART, PART).await.expect("others go on");
        assert_eq!(bytes, [2; PART]);
        // It is not loaded again, and not for ever on its way: who asks again starts anew.
        let again = read(&file, 0, 1).await;
        assert!(
            matches!(again, Err(Error::ImageMissing { .. })),
            "{again:?}"
        );
        assert_idle(&store);
    });
}

#[test]
fn a_load_of_other_bytes_is_refused_by_name_and_the_bytes_are_kept() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.pack_bytes = PART as u64);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        evict(&store, &file, 0..1).await;
        let key = rig
            .remote
            .keys()
            .into_iter()
            .find(|key| rig.remote.object(key).is_some_and(|body| body[16] == 1))
            .expect("its image");
        rig.remote.plant(&key, vec![0x55; PART + 16]);
        let got = read(&file, 0, 1).await;
        let Err(Error::ImageCorrupt {
            part,
            object,
            expected,
            found,
            kept: Some(kept),
        }) = got
        else {
            panic!("{got:?}")
        };
        assert_eq!(
            part,
            PartId {
                file: FILE,
                index: 0
            }
        );
        assert_eq!(object, key);
        assert_ne!(expected, found);
        assert_eq!(rig.fs.peek(&kept).expect("kept"), vec![0x55; PART]);
        rig.remote.plant(&key, vec![1; PART + 16]);
        assert_eq!(read(&file, 0, PART).await.expect("reads"), [1; PART]);
    });
}

#[test]
fn transient_failures_of_a_load_are_tried_again() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        evict(&store, &file, 0..1).await;
        let error = RemoteError::transient("GetObject");
        rig.remote
            .times(3, Some(Call::Get), None, Fault::Error(error));
        assert_eq!(read(&file, 0, PART).await.expect("reads"), [1; PART]);
    });
}

#[test]
fn files_come_and_go_and_what_is_held_stays() {
    paused(async {
        // Fewer than a file needs beside what is held: each round something has to go.
        let rig = StoreRig::new(6);
        let store = rig.open().await;
        let held = filled(&store, 4).await;
        let holder = foreground(&store, "holder");
        let guard = held.lock(2, Mode::Shared, &holder).await.expect("locks");
        let gets = || {
            let of = |seen: &s3_writeback::testing::remote::Seen| seen.call == Call::Get;
            rig.remote.seen().into_iter().filter(of).count()
        };
        for round in 0..200_u64 {
            let id = FileId(100 + round % 5);
            let file = store.create(id, PARTS_OF).await.expect("creates");
            for index in 0..6 {
                fill(&file, index, round as u8).await;
            }
            let locker = foreground(&store, "churn");
            let pinned = file
                .lock(round as u32 % 6, Mode::Pin, &locker)
                .await
                .expect("pins");
            file.set_len(file.len() + 1).await.expect("grows");
            assert_eq!(read(&file, 0, 1).await.expect("reads"), [round as u8]);
            drop(pinned);
            let before = gets();
            let mut bytes = [0; PART];
            guard.read_at(&mut bytes, 0).await.expect("reads");
            assert_eq!(bytes, [3; PART], "round {round}");
            assert_eq!(gets(), before, "what is held is here");
            store.drop_file(id, &locker).await.expect("drops");
        }
        drop(guard);
        assert_idle(&store);
        store
            .drop_file(FILE, &holder)
            .await
            .expect("nobody holds it");
        assert_eq!(store.snapshot().resident_parts, 0);
        assert_eq!(store.snapshot().cache_bytes, 0);
    });
}

#[test]
fn a_prefetch_gives_up_at_once_where_there_is_no_room() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 12).await;
        let locker = foreground(&store, "holder");
        let mut guards = Vec::new();
        for index in 0..4 {
            guards.push(file.lock(index, Mode::Pin, &locker).await.expect("pins"));
        }
        let began = Instant::now();
        assert_eq!(file.prefetch(0..file.len()), 4, "what is here, and no more");
        assert_eq!(began.elapsed(), Duration::ZERO);
        // And where S3 takes nothing, so that all is dirty.
        drop(guards);
        rig.remote.always(None, None, Fault::Hang);
        for index in 4..6 {
            fill(&file, index, 77).await;
        }
        let _guard = file.lock(4, Mode::Exclusive, &locker).await.expect("locks");
        let began = Instant::now();
        let _ = file.prefetch(0..file.len());
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

#[test]
fn who_waits_for_room_is_told_why_it_comes_no_more() {
    for fails in [false, true] {
        paused(async move {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = filled(&store, 8).await;
            rig.remote.always(Some(Call::Put), None, Fault::Hang);
            fill(&file, 6, 1).await;
            fill(&file, 7, 1).await;
            let waits = {
                let file = file.clone();
                spawn(async move {
                    let bytes = [5; PART];
                    file.write_at(&bytes, 5 * PART as u64)
                        .within(Duration::from_secs(3600))
                        .await
                })
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            let began = Instant::now();
            if fails {
                rig.fs.fail(s3_writeback::testing::fs::Fault {
                    call: Some(s3_writeback::testing::fs::Call::Sync),
                    after: 0,
                    errno: s3_writeback::testing::fs::EIO,
                    forever: false,
                });
                let synced = file.sync().await;
                assert!(matches!(synced, Err(Error::StoreFailed(_))), "{synced:?}");
                let told = waits.await.expect("ends");
                assert!(matches!(told, Err(Error::StoreFailed(_))), "{told:?}");
                let later = file.sync().await;
                assert!(matches!(later, Err(Error::StoreFailed(_))), "{later:?}");
            } else {
                let told = async {
                    let told = waits.await.expect("ends");
                    // Not only when all is over.
                    assert!(began.elapsed() < SOON / 5, "{:?}", began.elapsed());
                    told
                };
                let (shut, told) = tokio::join!(store.shutdown().within(SOON), told);
                shut.expect("shuts down");
                assert!(matches!(told, Err(Error::ShuttingDown { .. })), "{told:?}");
            }
            assert!(began.elapsed() <= SOON);
        });
    }
}

#[test]
fn a_load_outlives_who_asked_for_it_first() {
    for shuts_down in [false, true] {
        paused(async move {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = filled(&store, 8).await;
            evict(&store, &file, 0..1).await;
            let before = rig.remote.count(Call::Get, "");
            rig.remote
                .once(Some(Call::Get), None, Fault::Delay(Duration::from_secs(2)));
            let (first, second) = (foreground(&store, "first"), checkpointer(&store, "second"));
            let wait = if shuts_down {
                SOON
            } else {
                Duration::from_millis(10)
            };
            let leaves = {
                let file = file.clone();
                spawn(async move {
                    file.lock(0, Mode::Shared, &first)
                        .within(wait)
                        .await
                        .map(drop)
                })
            };
            tokio::time::sleep(Duration::from_millis(5)).await;
            let joins = {
                let file = file.clone();
                spawn(async move { file.lock(0, Mode::Shared, &second).await.map(drop) })
            };
            tokio::time::sleep(Duration::from_millis(1)).await;
            let shutdown = shuts_down.then(|| {
                let store = store.clone();
                spawn(async move { store.shutdown().within(Duration::from_secs(30)).await })
            });
            let left = leaves.await.expect("ends");
            if shuts_down {
                assert!(matches!(left, Err(Error::ShuttingDown { .. })), "{left:?}");
            } else {
                let Err(Error::TimedOut { waiting_for, .. }) = left else {
                    panic!("{left:?}")
                };
                assert!(
                    matches!(*waiting_for, Error::Loading { .. }),
                    "{waiting_for}"
                );
            }
            joins.await.expect("ends").expect("gets the part");
            if let Some(shutdown) = shutdown {
                shutdown.await.expect("ends").expect("shuts down");
            }
            assert_eq!(
                rig.remote.count(Call::Get, "") - before,
                1,
                "one load for both"
            );
        });
    }
}

#[test]
fn a_cycle_for_room_ends_with_one_who_gives_way() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        let asks = |name: &str, holds: [u32; 2], wants: u32| {
            let (file, locker) = (file.clone(), foreground(&store, name));
            spawn(async move {
                let one = file.lock(holds[0], Mode::Pin, &locker).await?;
                let two = file.lock(holds[1], Mode::Pin, &locker).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                let began = Instant::now();
                let got = file.lock(wants, Mode::Pin, &locker).await.map(drop);
                drop((one, two));
                Ok::<_, Error>((got, began.elapsed()))
            })
        };
        let (one, two) = (asks("one", [1, 2], 5), asks("two", [3, 4], 6));
        let (one, took_one) = one.await.expect("ends").expect("has its two");
        let (two, took_two) = two.await.expect("ends").expect("has its two");
        let errors: Vec<_> = [one, two].into_iter().filter_map(Result::err).collect();
        let [Error::WouldDeadlock { cycle }] = &errors[..] else {
            panic!("{errors:?}")
        };
        assert_eq!(cycle, &["one", "two"]);
        assert!(took_one.min(took_two) < Duration::from_millis(200));
        assert_idle(&store);
    });
}

#[test]
fn forgotten_guards_keep_nobody_but_the_foreground_out() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        let forgets = foreground(&store, "forgets");
        let mut forgotten = Vec::new();
        for index in 0..4 {
            let guard = file.lock(index, Mode::Exclusive, &forgets).await;
            forgotten.push(guard.expect("locks"));
        }
        let other = foreground(&store, "other");
        let began = Instant::now();
        let got = file.lock(6, Mode::Shared, &other).await.map(drop);
        let Err(Error::CacheFull { pinned_by, .. }) = got else {
            panic!("{got:?}")
        };
        assert_eq!(pinned_by, ["forgets"]);
        assert!(
            began.elapsed() < Duration::from_millis(200),
            "it is told at once"
        );
        let checkpoints = checkpointer(&store, "checkpointer");
        for index in 4..8 {
            let guard = file
                .lock(index, Mode::Shared, &checkpoints)
                .await
                .expect("loads");
            let mut byte = [0];
            guard.read_at(&mut byte, 0).await.expect("reads");
            assert_eq!(byte[0], index as u8 + 1);
        }
        // Written under forgotten guards, it still goes up.
        forgotten[0].write_at(&[99; PART], 0).await.expect("writes");
        uploaded(&store).await;
    });
}

#[test]
fn a_deadlock_on_locks_ends_with_one_who_gives_way() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let asks = |name: &str, first: u32, then: u32| {
            let (file, locker) = (file.clone(), foreground(&store, name));
            spawn(async move {
                let _held = file.lock(first, Mode::Exclusive, &locker).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
                file.lock(then, Mode::Shared, &locker).await.map(drop)
            })
        };
        let began = Instant::now();
        let (one, two) = (asks("one", 0, 1), asks("two", 1, 0));
        let ends = [one.await.expect("ends"), two.await.expect("ends")];
        let gave_way: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
        assert!(
            matches!(&gave_way[..], [Error::WouldDeadlock { .. }]),
            "{gave_way:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_idle(&store);
    });
}

/// Who cuts a file off has the parts before the one that it waits for.
#[test]
fn a_deadlock_with_who_cuts_a_file_off_ends_with_one_who_gives_way() {
    paused(async {
        for locks in [true, false] {
            let rig = StoreRig::new(8);
            let store = rig.open().await;
            let file = filled(&store, 4).await;
            let (holds, cuts) = (foreground(&store, "holds"), foreground(&store, "cuts"));
            let guard = file.lock(3, Mode::Shared, &holds).await.expect("locks");
            let began = Instant::now();
            let cutting = spawn({
                let (file, cuts) = (file.clone(), cuts.clone());
                async move { file.by(&cuts).set_len(0).await }
            });
            tokio::time::sleep(Duration::from_millis(10)).await;
            let asks = foreground(&store, "asks");
            let busy = file.lock(1, Mode::Pin, &asks).now();
            let Err(Error::Locked { holders, .. }) = busy.map(drop) else {
                panic!("it is being cut off");
            };
            let names: Vec<_> = holders.iter().map(|h| (&h.locker[..], h.mode)).collect();
            assert_eq!(names, [("cuts", None)]);
            let waited = match locks {
                true => file.lock(1, Mode::Shared, &holds).await.map(drop),
                false => file.by(&holds).read_at(&mut [0], PART as u64).await,
            };
            drop(guard);
            let cut = cutting.await.expect("ends");
            let gave_way: Vec<_> = [&waited, &cut].into_iter().filter(|r| r.is_err()).collect();
            assert!(
                matches!(&gave_way[..], [Err(Error::WouldDeadlock { .. })]),
                "{gave_way:?}"
            );
            assert!(began.elapsed() < Duration::from_secs(1));
            assert_idle(&store);
        }
    });
}

#[test]
fn a_holder_reads_its_own_part_and_asks_for_it_only_once() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = filled(&store, 4).await;
        let locker = foreground(&store, "holder");
        let guard = file.lock(1, Mode::Exclusive, &locker).await.expect("locks");
        let mut byte = [0];
        file.by(&locker)
            .read_at(&mut byte, PART as u64)
            .await
            .expect("reads");
        assert_eq!(byte, [2]);
        file.read_at(&mut byte, PART as u64)
            .await
            .expect("anybody reads");
        let began = Instant::now();
        for mode in [Mode::Shared, Mode::Exclusive, Mode::Pin] {
            let again = file.lock(1, mode, &locker).await.map(drop);
            let Err(Error::AlreadyHeld { mode: held, .. }) = again else {
                panic!("{again:?}")
            };
            assert_eq!(held, Some(Mode::Exclusive));
        }
        let cut = file.by(&locker).set_len(0).await;
        assert!(matches!(cut, Err(Error::AlreadyHeld { .. })), "{cut:?}");
        assert_eq!(began.elapsed(), Duration::ZERO);
        let other = foreground(&store, "other");
        let busy = file.lock(1, Mode::Shared, &other).now().map(drop);
        let Err(Error::Locked { holders, .. }) = busy else {
            panic!("{busy:?}")
        };
        assert_eq!(holders[0].locker, "holder");
        let waited = file
            .lock(1, Mode::Shared, &other)
            .within(SOON)
            .await
            .map(drop);
        let Err(Error::TimedOut { waiting_for, .. }) = waited else {
            panic!("{waited:?}")
        };
        assert!(
            matches!(*waiting_for, Error::Locked { .. }),
            "{waiting_for}"
        );
        drop(guard);
        assert_idle(&store);
    });
}

#[test]
fn an_engine_that_never_syncs_and_readers_in_few_frames_both_go_on() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.max_dirty_age = Duration::from_millis(50));
        let store = rig.open().await;
        let file = filled(&store, 16).await;
        let writer = {
            let file = file.clone();
            spawn(async move {
                for round in 0..100_usize {
                    fill(&file, 8 + round % 8, round as u8).await;
                }
            })
        };
        let readers: Vec<_> = (0..8_usize)
            .map(|n| {
                let file = file.clone();
                spawn(async move {
                    for round in 0..50 {
                        let index = (n * 3 + round * 5) % 8;
                        let bytes = read(&file, index * PART, PART).await.expect("reads");
                        assert_eq!(bytes, [index as u8 + 1; PART]);
                    }
                })
            })
            .collect();
        writer.await.expect("goes on");
        for reader in readers {
            reader.await.expect("goes on");
        }
        assert!(store.snapshot().peak_cache_bytes <= 4 * PART as u64);
        assert_idle(&store);
    });
}

#[test]
fn several_parts_are_locked_together_and_written_in_one_step() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = filled(&store, 8).await;
        let locker = foreground(&store, "transfer");
        let part = |index| PartId { file: FILE, index };
        let parts = [part(5), part(1), part(3)];
        let set = store
            .lock_many(&parts, Mode::Exclusive, &locker)
            .await
            .expect("locks");
        assert_eq!(set.parts(), [part(1), part(3), part(5)]);
        set.write(&[(part(1), 0, b"one"), (part(5), 9, b"five")])
            .await
            .expect("writes");
        let foreign = set.write(&[(part(2), 0, b"no")]).await;
        assert!(
            matches!(foreign, Err(Error::InvalidInput { .. })),
            "{foreign:?}"
        );
        let twice = store
            .lock_many(&[part(6), part(6)], Mode::Pin, &locker)
            .await
            .map(drop);
        assert!(
            matches!(twice, Err(Error::InvalidInput { .. })),
            "{twice:?}"
        );
        let again = store
            .lock_many(&[part(6), part(1)], Mode::Pin, &locker)
            .await
            .map(drop);
        assert!(matches!(again, Err(Error::AlreadyHeld { .. })), "{again:?}");
        drop(set);
        assert_eq!(read(&file, PART, 4).await.expect("reads"), b"one\x02");
        assert_eq!(
            read(&file, 5 * PART + 9, 5).await.expect("reads"),
            b"five\x06"
        );
        assert_idle(&store);
    });
}

#[test]
fn a_thread_locks_and_waits_as_a_task_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = s3_writeback::StoreConfig::new(dir.path());
    config.fencing = s3_writeback::Fencing::Off;
    config.checkpoint_at_shutdown = false;
    config.checkpoint_every = None;
    config.checkpoint_after_bytes = None;
    config.gc_every = None;
    config.queue.segment_bytes = 64 * 1024;
    config.queue.max_disk_bytes = 64 * 1024 * 1024;
    let remote = s3_writeback::testing::remote::SimRemote::new();
    let store = PartStore::builder(config, Arc::new(remote))
        .open()
        .wait()
        .expect("opens");
    let file = store.create(FILE, PARTS_OF).wait().expect("creates");
    file.write_at(&[0; 8], 0).wait().expect("writes");
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (store, file) = (&store, &file);
            scope.spawn(move || {
                let locker = foreground(store, &format!("thread {n}"));
                for _ in 0..250 {
                    let guard = file
                        .lock(0, Mode::Exclusive, &locker)
                        .wait()
                        .expect("locks");
                    let mut count = [0; 8];
                    guard.read_at(&mut count, 0).wait().expect("reads");
                    let next = u64::from_le_bytes(count) + 1;
                    guard
                        .write_at(&next.to_le_bytes(), 0)
                        .wait()
                        .expect("writes");
                }
            });
        }
    });
    let mut count = [0; 8];
    file.read_at(&mut count, 0).wait().expect("reads");
    assert_eq!(u64::from_le_bytes(count), 1000);
    let report = store.shutdown().wait().expect("shuts down");
    assert!(report.sealed && report.dirty_parts == 0, "{report:?}");
}

/// E15: what a checkpointer waits for does not wait behind what others wait for.
#[test]
fn a_load_that_a_checkpointer_waits_for_goes_ahead_of_those_in_line() {
    for joins in [false, true] {
        paused(async move {
            let rig = StoreRig::with(16, |config| {
                config.queue.workers = 2;
                config.queue.attempt_floor = Duration::from_secs(3600);
            });
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..32 {
                fill(&file, index, 7).await;
            }
            uploaded(&store).await;
            for index in 16..32 {
                read(&file, index * PART, 1).await.expect("reads");
            }
            rig.remote.always(Some(Call::Get), None, Fault::Hang);
            let readers: Vec<_> = (0..8)
                .map(|index| {
                    let file = file.clone();
                    spawn(async move { read(&file, index * PART, 1).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(store.snapshot().queue.tasks.loads, 8);
            let asked = rig.remote.in_flight().0;
            assert!(asked < 7, "the last of them are in line: {asked}");
            rig.remote.heal();
            let checkpointer = checkpointer(&store, "checkpoint");
            // One of those in line, or one behind them all.
            let part = if joins { 7 } else { 8 };
            let guard = file.lock(part, Mode::Shared, &checkpointer);
            let guard = guard.within(Duration::from_secs(60)).await;
            assert!(guard.is_ok(), "joins {joins}: {guard:?}");
            for reader in readers {
                reader.abort();
            }
        });
    }
}
