//! Part locks beside what an engine would take instead, in one run.
//!
//! ```text
//! cargo bench --manifest-path benches/peers/Cargo.toml --bench locks
//! ```
//!
//! Uncontended: lock and unlock, one of 1,024 parts after another. Contended: 8 tasks (or
//! threads) that each lock the same part, hold it for a microsecond and let go; the time is that
//! of a turn, and the longest that anybody waited is printed beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use lockable::LockableHashMap;
use s3_writeback::{FileId, FileOptions, Mode, Role, StoreConfig};
use s3_writeback_peers::open;

const PARTS: u32 = 1024;
const TASKS: u64 = 8;

fn uncontended(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(StoreConfig::new(dir.path()));
    let options = FileOptions { part_bytes: 4096 };
    let file = store.create(FileId(1), options).wait().expect("creates");
    file.set_len(u64::from(PARTS) * 4096).wait().expect("grows");
    let locker = store.locker("bench", Role::Foreground).expect("a locker");
    let mut group = criterion.benchmark_group("uncontended");
    for (name, mode) in [("exclusive", Mode::Exclusive), ("shared", Mode::Shared), ("pin", Mode::Pin)] {
        let mut index = 0;
        group.bench_function(format!("part lock, {name}"), |bench| {
            bench.iter(|| {
                index = (index + 1) % PARTS;
                drop(file.lock(index, mode, &locker).now().expect("locks"));
            });
        });
    }
    let locks: Vec<_> = (0..PARTS).map(|_| parking_lot::Mutex::new(())).collect();
    let mut index = 0;
    group.bench_function("parking_lot Mutex", |bench| {
        bench.iter(|| {
            index = (index + 1) % locks.len();
            drop(locks[index].lock());
        });
    });
    let locks: Vec<_> = (0..PARTS).map(|_| tokio::sync::Mutex::new(())).collect();
    let mut index = 0;
    group.bench_function("tokio Mutex", |bench| {
        bench.iter(|| {
            index = (index + 1) % locks.len();
            drop(locks[index].try_lock().expect("free"));
        });
    });
    let map: DashMap<u32, Arc<tokio::sync::Mutex<()>>> = DashMap::new();
    let mut index = 0;
    group.bench_function("DashMap of Arc of tokio Mutex", |bench| {
        bench.iter(|| {
            index = (index + 1) % PARTS;
            let lock = Arc::clone(&map.entry(index).or_default());
            drop(lock.try_lock_owned().expect("free"));
        });
    });
    let map: LockableHashMap<u32, ()> = LockableHashMap::new();
    let mut index = 0;
    group.bench_function("lockable", |bench| {
        bench.iter(|| {
            index = (index + 1) % PARTS;
            drop(map.blocking_lock(index, lockable::SyncLimit::no_limit()).expect("locks"));
        });
    });
    group.finish();
    store.shutdown().wait().expect("shuts down");
}

/// Holds what it has for a microsecond.
fn hold() {
    let began = Instant::now();
    while began.elapsed() < Duration::from_micros(1) {
        std::hint::spin_loop();
    }
}

/// Runs `turn` in 8 tasks, `turns` in all; the longest that one of them took.
async fn crowd<F, Fut>(turns: u64, turn: F) -> Duration
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let longest = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (turn, longest) = (turn.clone(), Arc::clone(&longest));
            tokio::spawn(async move {
                for _ in 0..turns / TASKS {
                    let began = Instant::now();
                    turn(task).await;
                    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    longest.fetch_max(took, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("ends");
    }
    Duration::from_nanos(longest.load(Ordering::Relaxed))
}

fn contended(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(StoreConfig::new(dir.path()));
    let options = FileOptions { part_bytes: 4096 };
    let file = store.create(FileId(1), options).wait().expect("creates");
    file.set_len(4096).wait().expect("grows");
    let lockers: Vec<_> = (0..TASKS)
        .map(|n| store.locker(&n.to_string(), Role::Foreground).expect("a locker"))
        .collect();
    let mut group = criterion.benchmark_group("contended, 8 tasks, 1 us held");
    group.sample_size(20);
    let longest = |name: &str, longest: Duration| println!("{name}: longest wait {longest:?}");

    let mut worst = Duration::ZERO;
    group.bench_function("part lock", |bench| {
        bench.iter_custom(|turns| {
            let (file, lockers) = (file.clone(), lockers.clone());
            let began = Instant::now();
            let max = runtime.block_on(crowd(turns.max(TASKS), move |task| {
                let (file, locker) = (file.clone(), lockers[task as usize].clone());
                async move {
                    let _guard = file.lock(0, Mode::Exclusive, &locker).await.expect("locks");
                    hold();
                }
            }));
            worst = worst.max(max);
            began.elapsed()
        });
    });
    longest("part lock", worst);

    let lock = Arc::new(tokio::sync::Mutex::new(()));
    let mut worst = Duration::ZERO;
    group.bench_function("tokio Mutex", |bench| {
        bench.iter_custom(|turns| {
            let lock = Arc::clone(&lock);
            let began = Instant::now();
            let max = runtime.block_on(crowd(turns.max(TASKS), move |_| {
                let lock = Arc::clone(&lock);
                async move {
                    let _guard = lock.lock().await;
                    hold();
                }
            }));
            worst = worst.max(max);
            began.elapsed()
        });
    });
    longest("tokio Mutex", worst);

    let map: Arc<DashMap<u32, Arc<tokio::sync::Mutex<()>>>> = Arc::default();
    let mut worst = Duration::ZERO;
    group.bench_function("DashMap of Arc of tokio Mutex", |bench| {
        bench.iter_custom(|turns| {
            let map = Arc::clone(&map);
            let began = Instant::now();
            let max = runtime.block_on(crowd(turns.max(TASKS), move |_| {
                let lock = Arc::clone(&map.entry(0).or_default());
                async move {
                    let _guard = lock.lock().await;
                    hold();
                }
            }));
            worst = worst.max(max);
            began.elapsed()
        });
    });
    longest("DashMap of Arc of tokio Mutex", worst);

    let map: Arc<LockableHashMap<u32, ()>> = Arc::new(LockableHashMap::new());
    let mut worst = Duration::ZERO;
    group.bench_function("lockable", |bench| {
        bench.iter_custom(|turns| {
            let map = Arc::clone(&map);
            let began = Instant::now();
            let max = runtime.block_on(crowd(turns.max(TASKS), move |_| {
                let map = Arc::clone(&map);
                async move {
                    let limit = lockable::AsyncLimit::no_limit();
                    let _guard = map.async_lock(0, limit).await.expect("locks");
                    hold();
                }
            }));
            worst = worst.max(max);
            began.elapsed()
        });
    });
    longest("lockable", worst);

    let lock = Arc::new(parking_lot::Mutex::new(()));
    let mut worst = Duration::ZERO;
    group.bench_function("parking_lot Mutex (8 threads)", |bench| {
        bench.iter_custom(|turns| {
            let longest = AtomicU64::new(0);
            let began = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..TASKS {
                    scope.spawn(|| {
                        for _ in 0..turns.max(TASKS) / TASKS {
                            let began = Instant::now();
                            let _guard = lock.lock();
                            hold();
                            let took = began.elapsed().as_nanos();
                            let took = u64::try_from(took).unwrap_or(u64::MAX);
                            longest.fetch_max(took, Ordering::Relaxed);
                        }
                    });
                }
            });
            worst = worst.max(Duration::from_nanos(longest.load(Ordering::Relaxed)));
            began.elapsed()
        });
    });
    longest("parking_lot Mutex (8 threads)", worst);
    group.finish();
    store.shutdown().wait().expect("shuts down");
}

criterion_group!(benches, uncontended, contended);
criterion_main!(benches);
