//! What is true of parts after a crash, and that images and local bytes never change places
//! (scenarios A6, A9, A11, D12, E4, E6, E8, E14, E25, E30, E34).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{PART, PARTS_OF, StoreRig, assert_idle, fill, paused, read, spawn, uploaded};
use s3_writeback::testing::fs::{EIO, Fault as FsFault};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, Mode, PartStore, Role};
use tokio::sync::Notify;

const FILE: FileId = FileId(1);

/// Reads other parts until this one has gone.
async fn evicted(store: &PartStore, file: &File, index: u32) {
    let locker = store.locker("evicts", Role::Foreground).expect("a locker");
    let parts = (file.len() as usize).div_ceil(PART) as u32;
    for _ in 0..8 {
        for other in (0..parts).filter(|other| *other != index) {
            drop(file.lock(other, Mode::Pin, &locker).await.expect("loads"));
        }
    }
}

/// How often the images of parts that begin with `byte` were read.
fn gets(rig: &StoreRig) -> usize {
    rig.remote.count(Call::Get, "")
}

#[test]
fn a_part_that_was_never_uploaded_is_never_evicted() {
    paused(async {
        let rig = StoreRig::with(2, |config| config.dirty_bytes = 2 * PART as u64);
        let store = rig.open().await;
        let one = store.create(FILE, PARTS_OF).await.expect("creates");
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        let locker = store.locker("asks", Role::Foreground).expect("a locker");
        for index in 0..4 {
            fill(&other, index, 0x77).await;
        }
        // So slow that it is not in S3 when room is wanted.
        let slow = Fault::Delay(Duration::from_millis(50));
        rig.remote.always(Some(Call::Put), None, slow);
        for round in 0..2_500_u32 {
            // Exactly one full part, each byte of it new.
            fill(&one, 0, round as u8).await;
            for index in 0..4 {
                let got = read(&other, index * PART, 1).await.expect("reads");
                assert_eq!(got, [0x77]);
            }
            let bytes = read(&one, 0, PART).await.expect("reads");
            assert_eq!(bytes, [round as u8; PART], "round {round}");
            let phantom = one.lock(1, Mode::Shared, &locker).await.map(drop);
            assert!(
                matches!(phantom, Err(Error::Deleted { index: 1, .. })),
                "{phantom:?}"
            );
        }
        assert!(
            store.snapshot().evictions >= 10_000,
            "{:?}",
            store.snapshot()
        );
        assert_eq!(one.len(), PART as u64);
        uploaded(&store).await;
        assert_idle(&store);
    });
}

#[test]
fn two_captures_that_finish_in_either_order_leave_the_later_one() {
    for first_ends_first in [true, false] {
        paused(async move {
            let rig = StoreRig::with(4, |config| {
                config.max_dirty_age = Duration::from_millis(10);
                config.queue.attempt_floor = Duration::from_secs(3600);
            });
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 1..8 {
                fill(&file, index, 50).await;
            }
            uploaded(&store).await;
            let gates = [Arc::new(Notify::new()), Arc::new(Notify::new())];
            for gate in &gates {
                rig.remote
                    .once(Some(Call::Put), None, Fault::Gate(Arc::clone(gate)));
            }
            fill(&file, 0, 1).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            fill(&file, 0, 2).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(
                store.snapshot().queue.tasks.images,
                2,
                "both are on their way"
            );
            let order = if first_ends_first { [0, 1] } else { [1, 0] };
            gates[order[0]].notify_one();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(store.snapshot().dirty_bytes > 0, "one is still on its way");
            let before = gets(&rig);
            evicted(&store, &file, 0).await;
            let here = read(&file, 0, PART).await.expect("reads");
            assert_eq!(here, [2; PART]);
            let of_others = gets(&rig) - before;
            gates[order[1]].notify_one();
            uploaded(&store).await;
            assert!(of_others > 0);
            evicted(&store, &file, 0).await;
            assert_eq!(read(&file, 0, PART).await.expect("reads"), [2; PART]);
            // And after a crash, from what is on record.
            drop((file, store));
            rig.fs.crash(5);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            assert_eq!(read(&file, 0, PART).await.expect("reads"), [2; PART]);
        });
    }
}

#[test]
fn a_put_that_was_given_up_before_a_crash_changes_nothing_when_it_lands() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        rig.remote.times(3, Some(Call::Put), None, Fault::Late);
        for index in 0..2 {
            fill(&file, index, 1).await;
        }
        file.sync().await.expect("syncs");
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop((file, store));
        rig.fs.crash(1);
        rig.remote.heal();
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        for index in 0..8 {
            fill(&file, index, 2).await;
        }
        uploaded(&store).await;
        rig.remote.land_late();
        let puts: Vec<String> = rig
            .remote
            .seen()
            .into_iter()
            .filter(|seen| seen.call == Call::Put)
            .map(|seen| seen.key)
            .collect();
        let lives: BTreeSet<&str> = puts
            .iter()
            .filter_map(|key| key.rsplit('/').next()?.split('-').next())
            .collect();
        assert_eq!(lives.len(), 2, "a name of its own for each life: {lives:?}");
        evicted(&store, &file, 0).await;
        for index in 0..8 {
            let bytes = read(&file, index * PART, PART).await.expect("reads");
            assert_eq!(bytes, [2; PART], "part {index}");
        }
    });
}

#[test]
fn a_file_that_is_dropped_while_it_uploads_leaves_nothing_to_its_successor() {
    paused(async {
        let rig = StoreRig::with(4, |config| config.max_dirty_age = Duration::from_millis(10));
        let store = rig.open().await;
        let gate = Arc::new(Notify::new());
        rig.remote
            .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&gate)));
        let old = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&old, 0, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let locker = store.locker("drops", Role::Foreground).expect("a locker");
        store.drop_file(FILE, &locker).await.expect("drops");
        let new = store
            .create(FILE, PARTS_OF)
            .await
            .expect("creates it again");
        new.set_len(3 * PART as u64).await.expect("grows");
        gate.notify_one();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(read(&new, 0, PART).await.expect("reads"), [0; PART]);
        let gone = old.write_at(&[1], 0).await;
        assert!(matches!(gone, Err(Error::Deleted { .. })), "{gone:?}");
        assert_eq!(store.snapshot().dirty_bytes, 0);
        drop((old, new, store));
        rig.fs.crash(2);
        let store = rig.open().await;
        let new = store.file(FILE).expect("is there");
        assert_eq!(new.len(), 3 * PART as u64);
        assert_eq!(read(&new, 0, PART).await.expect("reads"), [0; PART]);
    });
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..6 {
            fill(&file, index, 9).await;
        }
        uploaded(&store).await;
        evicted(&store, &file, 1).await;
        let cut = PART as u64 + 100;
        file.set_len(cut).await.expect("cuts");
        assert_eq!(file.len(), cut);
        file.set_len(6 * PART as u64).await.expect("grows");
        let check = async |file: &File, when: &str| {
            let bytes = read(file, 0, 6 * PART).await.expect("reads");
            let (kept, gone) = bytes.split_at(PART + 100);
            assert!(kept.iter().all(|byte| *byte == 9), "{when}");
            let old = gone.iter().position(|byte| *byte != 0);
            assert_eq!(old, None, "{when}: an old byte came back");
        };
        check(&file, "at once").await;
        uploaded(&store).await;
        evicted(&store, &file, 1).await;
        check(&file, "loaded again").await;
        file.sync().await.expect("syncs");
        drop((file, store));
        rig.fs.crash(4);
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        check(&file, "after a crash").await;
    });
}

#[test]
fn growing_by_a_tebibyte_costs_no_cache_and_no_load() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        file.write_at(b"x", 0).await.expect("writes");
        let before = store.snapshot();
        file.set_len(1 << 40).await.expect("grows");
        assert_eq!(read(&file, (1 << 40) - 5, 5).await.expect("reads"), [0; 5]);
        let locker = store.locker("asks", Role::Foreground).expect("a locker");
        let last = ((1_u64 << 40) / PART as u64 - 1) as u32;
        drop(
            file.lock(last, Mode::Exclusive, &locker)
                .await
                .expect("locks"),
        );
        let after = store.snapshot();
        assert_eq!(after.cache_bytes, before.cache_bytes);
        assert_eq!(gets(&rig), 0);
        file.set_len(1).await.expect("shrinks");
        assert_eq!(read(&file, 0, 1).await.expect("reads"), b"x");
    });
}

#[test]
fn an_image_is_the_truth_where_its_bytes_were_never_synced_here() {
    for (seed, again) in (0..30).flat_map(|seed| [(seed, false), (seed, true)]) {
        paused(async move {
            let rig = StoreRig::with(8, |config| config.max_dirty_age = Duration::from_millis(50));
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            file.sync().await.expect("syncs");
            fill(&file, 0, 2).await;
            uploaded(&store).await;
            if again {
                // Its intent trusts nothing: what it writes over was not synced either.
                file.write_at(&[3; 10], 0).await.expect("writes");
            }
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 0, PART).await.expect("reads");
            let allowed = |byte: &u8| *byte == 2 || (again && *byte == 3);
            assert!(bytes.iter().all(allowed), "seed {seed}, {again}");
        });
    }
}

#[test]
fn a_small_write_over_a_load_that_was_never_synced_leaves_no_half_of_it() {
    for synced in [false, true] {
        for seed in 0..30 {
            paused(async move {
                let rig = StoreRig::new(4);
                let store = rig.open().await;
                let file = store.create(FILE, PARTS_OF).await.expect("creates");
                for index in 0..8 {
                    fill(&file, index, 7).await;
                }
                file.sync().await.expect("syncs");
                uploaded(&store).await;
                evicted(&store, &file, 3).await;
                file.write_at(b"small", 3 * PART as u64 + 700)
                    .await
                    .expect("writes");
                if synced {
                    file.sync().await.expect("syncs");
                }
                drop((file, store));
                rig.fs.crash(seed);
                let store = rig.open().await;
                let file = store.file(FILE).expect("is there");
                let bytes = read(&file, 3 * PART, PART).await.expect("reads");
                let mut new = [7; PART];
                new[700..705].copy_from_slice(b"small");
                let whole = bytes == new || (!synced && bytes == [7; PART]);
                assert!(whole, "synced {synced}, seed {seed}");
            });
        }
    }
}

#[test]
fn an_intent_under_which_nothing_was_written_takes_nothing_away() {
    for seed in 0..20 {
        paused(async move {
            let rig = StoreRig::new(4);
            let store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            for index in 0..8 {
                fill(&file, index, 7).await;
            }
            file.sync().await.expect("syncs");
            uploaded(&store).await;
            evicted(&store, &file, 3).await;
            drop(read(&file, 3 * PART, 1).await);
            // Given up at every point up to its step, among them when its intent is on its way.
            for polls in 0..12 {
                let bytes = [8; 10];
                let mut write =
                    std::pin::pin!(file.write_at(&bytes, 3 * PART as u64).into_future());
                for _ in 0..polls {
                    let waker = std::task::Waker::noop();
                    let mut context = std::task::Context::from_waker(waker);
                    if write.as_mut().poll(&mut context).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let now = read(&file, 3 * PART, PART).await.expect("reads");
            evicted(&store, &file, 3).await;
            uploaded(&store).await;
            evicted(&store, &file, 3).await;
            assert_eq!(read(&file, 3 * PART, PART).await.expect("reads"), now);
            evicted(&store, &file, 3).await;
            drop((file, store));
            rig.fs.crash(seed);
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            let bytes = read(&file, 3 * PART, PART).await.expect("reads");
            assert_eq!(bytes, now, "seed {seed}");
        });
    }
}

use std::future::IntoFuture;

/// What a workload was told, part by part: the bytes that are safe, and those that may be there.
#[derive(Debug, Default, Clone)]
struct Told {
    /// By part: what a sync has promised.
    safe: Vec<u8>,
    /// By part: what was written since, or may have been.
    since: Vec<Vec<u8>>,
}

const PARTS: usize = 6;

impl Told {
    fn write(&mut self, index: usize, byte: u8) {
        self.since[index].push(byte);
    }

    fn synced(&mut self) {
        for (safe, since) in self.safe.iter_mut().zip(&mut self.since) {
            if let Some(last) = since.last() {
                *safe = *last;
            }
            since.clear();
        }
    }
}

/// Writes, syncs, uploads, evicts, loads, overwrites whole, cuts and grows, until something is
/// refused.
async fn workload(store: &PartStore, told: &mut Told) -> Result<(), Error> {
    let file = store.create_or_open(FILE, PARTS_OF).await?;
    let put = async |told: &mut Told, index: usize, byte: u8| {
        told.write(index, byte);
        file.write_at(&[byte; PART], (index * PART) as u64).await
    };
    let sync = async |told: &mut Told| {
        file.sync().await?;
        told.synced();
        Ok::<_, Error>(())
    };
    for index in 0..PARTS {
        put(told, index, 10 + index as u8).await?;
    }
    sync(told).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Evicted and loaded again, and written in part: the whole part gets the byte, bit by bit.
    for index in 0..PARTS {
        let mut byte = [0];
        file.read_at(&mut byte, (index * PART) as u64).await?;
    }
    // Over a part that is not here, whole.
    put(told, 0, 30).await?;
    put(told, 1, 31).await?;
    sync(told).await?;
    // And without a sync.
    put(told, 2, 32).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for index in (0..PARTS).rev() {
        let mut byte = [0];
        file.read_at(&mut byte, (index * PART) as u64).await?;
    }
    // Cut inside part 3, and grown again.
    told.write(3, 0);
    for index in 4..PARTS {
        told.write(index, 0);
    }
    file.set_len(3 * PART as u64).await?;
    file.set_len((PARTS * PART) as u64).await?;
    sync(told).await?;
    put(told, 5, 45).await?;
    put(told, 3, 43).await?;
    sync(told).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(())
}

#[test]
fn whichever_call_of_the_disk_fails_and_crashes_what_was_synced_is_there() {
    let rig = |fs: &s3_writeback::testing::fs::SimFs| {
        let mut rig = StoreRig::with(3, |config| {
            config.dirty_bytes = 2 * PART as u64;
            config.max_dirty_age = Duration::from_millis(100);
            config.io_deadline = Duration::from_secs(20);
            config.queue.op_deadline = Duration::from_secs(20);
        });
        rig.fs = fs.clone();
        rig
    };
    let mut nth = 0;
    let step: u64 =
        std::env::var("S3_WRITEBACK_SWEEP").map_or(3, |step| step.parse().expect("a number"));
    loop {
        let went_through = paused(async {
            let fs = s3_writeback::testing::fs::SimFs::new();
            let rig = rig(&fs);
            let mut told = Told {
                safe: vec![0; PARTS],
                since: vec![Vec::new(); PARTS],
            };
            let store = rig.open().await;
            rig.fs.fail(FsFault {
                call: None,
                after: nth,
                errno: EIO,
                forever: true,
            });
            let result = workload(&store, &mut told).await;
            drop(store);
            rig.fs.heal();
            rig.fs.crash(nth);
            let store = rig.open().await;
            if let Ok(file) = store.file(FILE) {
                for index in 0..PARTS {
                    let len = (file.len() as usize).saturating_sub(index * PART).min(PART);
                    if len == 0 {
                        continue;
                    }
                    let bytes = read(&file, index * PART, len).await.expect("reads");
                    let allowed =
                        |byte: u8| byte == told.safe[index] || told.since[index].contains(&byte);
                    let since = &told.since[index];
                    if since.is_empty() {
                        let safe = vec![told.safe[index]; PART];
                        let fits = bytes == safe
                            || (told.safe[index] == 0 && bytes.iter().all(|b| *b == 0));
                        assert!(
                            fits,
                            "call {nth}: part {index}: {:?}, {told:?}",
                            &bytes[..bytes.len().min(4)]
                        );
                    }
                    // Torn by sector, but of nothing else; zeros where the file was cut or new.
                    let other = bytes.iter().find(|byte| !allowed(**byte));
                    assert_eq!(other, None, "call {nth}: part {index}, {told:?}");
                }
            } else {
                assert_eq!(told.safe, vec![0; PARTS], "call {nth}: the file is gone");
            }
            // And it goes on from there.
            let file = store
                .create_or_open(FILE, PARTS_OF)
                .await
                .expect("is there");
            fill(&file, 1, 99).await;
            file.sync().await.expect("syncs");
            let report = store
                .shutdown()
                .within(Duration::from_secs(60))
                .await
                .expect("shuts down");
            assert!(
                report.sealed && report.dirty_parts == 0,
                "call {nth}: {report:?}"
            );
            result.is_ok()
        });
        if went_through {
            assert!(nth > 50, "only {nth} calls were made to fail");
            return;
        }
        nth += step;
    }
}

#[test]
fn evictor_uploader_and_crash_in_any_order_lose_nothing_that_was_synced() {
    let cases: u64 =
        std::env::var("S3_WRITEBACK_CASES").map_or(150, |n| n.parse().expect("a number"));
    let only: Option<u64> = std::env::var("S3_WRITEBACK_SEED")
        .ok()
        .map(|n| n.parse().expect("a number"));
    for seed in only.map_or(0..cases, |seed| seed..seed + 1) {
        paused(async move {
            use rand_like::Steps;
            let mut steps = Steps::new(seed);
            let rig = StoreRig::with(2 + steps.up_to(4), |config| {
                config.max_dirty_age = Duration::from_millis(1 + steps.up_to(200));
            });
            let mut safe = [0_u8; 8];
            let mut since: [Vec<u8>; 8] = Default::default();
            for life in 0..4 {
                let store = rig.open().await;
                let file = store.create_or_open(FILE, PARTS_OF).await.expect("opens");
                if file.is_empty() {
                    file.set_len(8 * PART as u64).await.expect("grows");
                }
                for index in 0..8 {
                    let bytes = read(&file, index * PART, PART).await.expect("reads");
                    // What was written and not synced may be there, by sector.
                    let lost = bytes
                        .iter()
                        .find(|b| **b != safe[index] && !since[index].contains(b));
                    assert_eq!(
                        lost, None,
                        "life {life}, part {index}, safe {}, since {:?}; replay with \
                         S3_WRITEBACK_SEED={seed}",
                        safe[index], since[index]
                    );
                    if bytes.iter().any(|b| *b != bytes[0]) {
                        fill(&file, index, safe[index]).await;
                    } else {
                        safe[index] = bytes[0];
                    }
                    since[index].clear();
                }
                file.sync().await.expect("syncs");
                if steps.up_to(2) == 0 {
                    let slow = Fault::Delay(Duration::from_millis(300));
                    rig.remote.once(Some(Call::Put), None, slow);
                }
                for _ in 0..30 {
                    let index = steps.up_to(8) as usize;
                    match steps.up_to(10) {
                        0..4 => {
                            let byte = steps.up_to(250) as u8 + 1;
                            since[index].push(byte);
                            fill(&file, index, byte).await;
                        }
                        4..7 => drop(read(&file, index * PART, 1).await.expect("reads")),
                        7 => {
                            file.sync().await.expect("syncs");
                            for (safe, since) in safe.iter_mut().zip(&mut since) {
                                *safe = since.last().copied().unwrap_or(*safe);
                                since.clear();
                            }
                        }
                        _ => tokio::time::sleep(Duration::from_millis(steps.up_to(150))).await,
                    }
                }
                drop((file, store));
                rig.fs.crash(seed * 7 + life);
                rig.remote.heal();
            }
        });
    }
}

mod rand_like {
    /// A small generator: what it draws follows from its seed alone.
    pub struct Steps(u64);

    impl Steps {
        pub fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        }

        pub fn up_to(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % n
        }
    }
}

#[test]
fn a_write_in_the_way_of_a_cut_is_before_it_or_after_it() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 5).await;
        }
        let writer = {
            let file = file.clone();
            spawn(async move {
                for round in 0..200_u32 {
                    let at = u64::from(round % 4) * PART as u64 + 50;
                    file.write_at(&[6; 100], at).await.expect("writes");
                    tokio::task::yield_now().await;
                }
            })
        };
        for round in 0..50_u64 {
            file.set_len(100 + round * 40).await.expect("cuts");
            tokio::task::yield_now().await;
            file.set_len(4 * PART as u64).await.expect("grows");
        }
        writer.await.expect("goes on");
        let bytes = read(&file, 0, file.len() as usize).await.expect("reads");
        assert!(bytes.iter().all(|byte| [0, 5, 6].contains(byte)));
        assert_idle(&store);
        let report = store.shutdown().await.expect("shuts down");
        assert!(report.sealed && report.dirty_parts == 0, "{report:?}");
    });
}
