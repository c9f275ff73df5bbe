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
    for (name, mode) in [
        ("exclusive", Mode::Exclusive),
        ("shared", Mode::Shared),
        ("pin", Mode::Pin),
    ] {
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
            drop(
                map.blocking_lock(index, lockable::SyncLimit::no_limit())
                    .expect("locks"),
            );
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

/// The longest that somebody waited.
#[derive(Clone, Default)]
struct Longest(Arc<AtomicU64>);

impl Longest {
    fn is(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_max(took, Ordering::Relaxed);
    }
}

/// One of 8 tasks that take turns: locks, holds for a microsecond and lets go, as often as `$turns`
/// says, with what it needs at hand.
macro_rules! take_turns {
    ($turns:expr, $longest:expr, $lock:expr) => {
        async move {
            for _ in 0..$turns {
                let began = Instant::now();
                let guard = $lock;
                $longest.is(began.elapsed());
                hold();
                drop(guard);
            }
        }
    };
}

/// Runs 8 tasks; how long it took.
async fn crowd<F>(task: impl Fn(u64) -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let began = Instant::now();
    let tasks: Vec<_> = (0..TASKS).map(|n| tokio::spawn(task(n))).collect();
    for task in tasks {
        task.await.expect("ends");
    }
    began.elapsed()
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
        .map(|n| {
            store
                .locker(&n.to_string(), Role::Foreground)
                .expect("a locker")
        })
        .collect();
    let mut group = criterion.benchmark_group("contended, 8 tasks, 1 us held");
    group.sample_size(20);
    let print = |name: &str, longest: Longest| {
        let longest = Duration::from_nanos(longest.0.load(Ordering::Relaxed));
        println!("{name}: longest wait {longest:?}");
    };

    let all = Longest::default();
    group.bench_function("part lock", |bench| {
        bench.iter_custom(|turns| {
            runtime.block_on(crowd(|task| {
                let (file, locker) = (file.clone(), lockers[task as usize].clone());
                let longest = all.clone();
                let lock = Mode::Exclusive;
                take_turns!(turns.div_ceil(TASKS), longest, {
                    file.lock(0, lock, &locker).await.expect("locks")
                })
            }))
        });
    });
    print("part lock", all);

    let mutex = Arc::new(tokio::sync::Mutex::new(()));
    let all = Longest::default();
    group.bench_function("tokio Mutex", |bench| {
        bench.iter_custom(|turns| {
            runtime.block_on(crowd(|_| {
                let (mutex, longest) = (Arc::clone(&mutex), all.clone());
                take_turns!(turns.div_ceil(TASKS), longest, mutex.lock().await)
            }))
        });
    });
    print("tokio Mutex", all);

    let map: Arc<DashMap<u32, Arc<tokio::sync::Mutex<()>>>> = Arc::default();
    let all = Longest::default();
    group.bench_function("DashMap of Arc of tokio Mutex", |bench| {
        bench.iter_custom(|turns| {
            runtime.block_on(crowd(|_| {
                let (map, longest) = (Arc::clone(&map), all.clone());
                take_turns!(turns.div_ceil(TASKS), longest, {
                    let mutex = Arc::clone(&map.entry(0).or_default());
                    mutex.lock_owned().await
                })
            }))
        });
    });
    print("DashMap of Arc of tokio Mutex", all);

    let map: Arc<LockableHashMap<u32, ()>> = Arc::new(LockableHashMap::new());
    let all = Longest::default();
    group.bench_function("lockable", |bench| {
        bench.iter_custom(|turns| {
            runtime.block_on(crowd(|_| {
                let (map, longest) = (Arc::clone(&map), all.clone());
                take_turns!(turns.div_ceil(TASKS), longest, {
                    let limit = lockable::AsyncLimit::no_limit();
                    map.async_lock(0, limit).await.expect("locks")
                })
            }))
        });
    });
    print("lockable", all);

    let lock = Arc::new(parking_lot::Mutex::new(()));
    let all = Longest::default();
    group.bench_function("parking_lot Mutex (8 threads)", |bench| {
        bench.iter_custom(|turns| {
            let began = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..TASKS {
                    scope.spawn(|| {
                        for _ in 0..turns.div_ceil(TASKS) {
                            let began = Instant::now();
                            let guard = lock.lock();
                            all.is(began.elapsed());
                            hold();
                            drop(guard);
                        }
                    });
                }
            });
            began.elapsed()
        });
    });
    print("parking_lot Mutex (8 threads)", all);
    group.finish();
    store.shutdown().wait().expect("shuts down");
}

criterion_group!(benches, uncontended, contended);
criterion_main!(benches);
