//! What the queue costs: a submit, a durable submit beside its peers, and a task's whole life
//! with few and with many others waiting.
//!
//! `cargo bench --no-default-features --bench queue`
#![allow(missing_docs, reason = "criterion's macros")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use s3_writeback::journal::fs::{Fs, OpenMode, OsFs};
use s3_writeback::testing::remote::{Call, Fault, SimRemote};
use s3_writeback::{Config, Options, PauseWhat, UploadQueue};
use tempfile::TempDir;
use tokio::time::Instant;

/// As the figures of the field: 100-byte records.
const RECORD: [u8; 100] = [7; 100];
const DAY: Duration = Duration::from_secs(24 * 3600);

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.max_tasks = 2_000_000;
    config.max_bytes = 1 << 40;
    config.max_disk_bytes = 1 << 40;
    config.op_deadline = DAY;
    config
}

fn open(config: Config, remote: SimRemote) -> UploadQueue {
    UploadQueue::builder(config, Arc::new(remote))
        .open()
        .wait()
        .expect("opens")
}

/// A directory in memory, where the machine has one: what is left then is CPU.
fn in_memory() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        TempDir::new_in(shm)
    } else {
        TempDir::new()
    }
    .expect("a directory")
}

fn close(queue: &UploadQueue) {
    queue.hurry();
    queue
        .shutdown()
        .within(Duration::from_secs(60))
        .wait()
        .expect("closes");
}

/// One submit: admitted, in the table, on its way to the journal; not waited for.
fn submit(c: &mut Criterion) {
    const AT_ONCE: u64 = 100_000;
    c.bench_function("submit/100 B, not waited for", |b| {
        b.iter_custom(|iterations| {
            let mut left = iterations;
            let mut took = Duration::ZERO;
            while left > 0 {
                let dir = in_memory();
                let queue = open(config(&dir.path().join("q")), SimRemote::new());
                queue.pause(PauseWhat::Uploads);
                let keys: Vec<_> = (0..left.min(AT_ONCE))
                    .map(|n| format!("wal/{n:08}"))
                    .collect();
                left -= keys.len() as u64;
                let started = Instant::now();
                for key in keys {
                    let body = bytes::Bytes::from_static(&RECORD);
                    queue
                        .submit(key, body, Options::default())
                        .now()
                        .expect("admitted");
                }
                took += started.elapsed();
                close(&queue);
            }
            took
        });
    });
}

/// Submitters, each of which waits until its record is durable before the next: threads, and tasks
/// of one runtime. Beside them what the disk does for such groups, and redb: a thread's own
/// transaction a record, and one thread that puts a whole group into one.
fn durable(c: &mut Criterion) {
    let mut group = c.benchmark_group("durable submit, 100 B");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for submitters in [1_u64, 64] {
        group.bench_function(BenchmarkId::new("s3-writeback, threads", submitters), |b| {
            let dir = tempfile::tempdir().expect("a directory");
            let queue = open(config(&dir.path().join("q")), SimRemote::new());
            queue.pause(PauseWhat::Uploads);
            let mut round = 0;
            b.iter_custom(|iterations| {
                round += 1;
                among_threads(iterations, submitters, |submitter, n| {
                    let submit = queue.submit(key(round, submitter, n), record(), plain());
                    let receipt = submit.wait().expect("admitted");
                    receipt.durable().wait().expect("durable");
                })
            });
            close(&queue);
        });
        group.bench_function(BenchmarkId::new("s3-writeback, tasks", submitters), |b| {
            let dir = tempfile::tempdir().expect("a directory");
            let queue = open(config(&dir.path().join("q")), SimRemote::new());
            queue.pause(PauseWhat::Uploads);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let mut round = 0;
            b.iter_custom(|iterations| {
                round += 1;
                let each = iterations.div_ceil(submitters);
                let started = Instant::now();
                let all = (0..submitters).map(|submitter| {
                    let queue = &queue;
                    async move {
                        for n in 0..each {
                            let submit = queue.submit(key(round, submitter, n), record(), plain());
                            let receipt = submit.await.expect("admitted");
                            receipt.durable().await.expect("durable");
                        }
                    }
                });
                runtime.block_on(futures::future::join_all(all));
                started
                    .elapsed()
                    .mul_f64(iterations as f64 / (each * submitters) as f64)
            });
            close(&queue);
        });
        group.bench_function(
            BenchmarkId::new("raw pwrite + fdatasync", submitters),
            |b| {
                let dir = tempfile::tempdir().expect("a directory");
                let fs = OsFs;
                let bytes = 64 << 20;
                b.iter_custom(|iterations| {
                    let path = dir.path().join("raw");
                    let _absent = std::fs::remove_file(&path);
                    let file = fs.open(&path, OpenMode::CreateNew).expect("a file");
                    file.preallocate(bytes).expect("room");
                    file.sync_all().expect("synced");
                    let record = RECORD.repeat(usize::try_from(submitters).expect("few"));
                    let started = Instant::now();
                    let mut at = 0;
                    for _ in 0..iterations.div_ceil(submitters) {
                        file.write_all_at(&record, at).expect("written");
                        file.sync_data().expect("synced");
                        at = (at + record.len() as u64) % (bytes - record.len() as u64);
                    }
                    started.elapsed()
                });
            },
        );
        group.bench_function(
            BenchmarkId::new("redb, a transaction each", submitters),
            |b| {
                let dir = tempfile::tempdir().expect("a directory");
                let database = redb::Database::create(dir.path().join("db")).expect("a database");
                let mut round = 0;
                b.iter_custom(|iterations| {
                    round += 1;
                    among_threads(iterations, submitters, |submitter, n| {
                        insert(&database, [(round << 40) | (submitter << 32) | n]);
                    })
                });
            },
        );
        group.bench_function(BenchmarkId::new("redb, one for all", submitters), |b| {
            let dir = tempfile::tempdir().expect("a directory");
            let database = redb::Database::create(dir.path().join("db")).expect("a database");
            let mut next = 0;
            b.iter_custom(|iterations| {
                let started = Instant::now();
                for _ in 0..iterations.div_ceil(submitters) {
                    insert(&database, next..next + submitters);
                    next += submitters;
                }
                started.elapsed()
            });
        });
    }
    group.finish();
}

fn key(round: u64, submitter: u64, n: u64) -> String {
    format!("wal/{round}/{submitter}/{n}")
}

fn record() -> bytes::Bytes {
    bytes::Bytes::from_static(&RECORD)
}

fn plain() -> Options {
    Options::default()
}

/// Runs `work(submitter, n)` on that many threads; how long `iterations` of them took.
fn among_threads(iterations: u64, threads: u64, work: impl Fn(u64, u64) + Sync) -> Duration {
    let each = iterations.div_ceil(threads);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for submitter in 0..threads {
            let work = &work;
            scope.spawn(move || (0..each).for_each(|n| work(submitter, n)));
        }
    });
    started
        .elapsed()
        .mul_f64(iterations as f64 / (each * threads) as f64)
}

fn insert(database: &redb::Database, keys: impl IntoIterator<Item = u64>) {
    let definition: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("t");
    let write = database.begin_write().expect("begins");
    {
        let mut table = write.open_table(definition).expect("opens");
        for key in keys {
            table.insert(key, RECORD.as_slice()).expect("inserted");
        }
    }
    write.commit().expect("committed");
}

/// A task from submit to told, over S3 and a disk that answer at once, with others waiting.
fn with_others_waiting(c: &mut Criterion) {
    const BATCH: u64 = 500;
    let mut group = c.benchmark_group("a task's life beside waiting ones");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for waiting in [10_u64, 1_000, 100_000] {
        group.bench_function(BenchmarkId::from_parameter(waiting), |b| {
            let remote = SimRemote::new();
            remote.always(Some(Call::Put), Some("stuck"), Fault::Hang);
            let dir = in_memory();
            let queue = open(config(&dir.path().join("q")), remote);
            let stuck = queue
                .submit("stuck", "stuck", Options::default())
                .wait()
                .expect("admitted");
            for n in 0..waiting {
                let options = Options {
                    after: vec![stuck.clone()],
                    ..Options::default()
                };
                queue
                    .submit(format!("waits/{n}"), "x", options)
                    .wait()
                    .expect("admitted");
            }
            let mut next = 0;
            b.iter_custom(|iterations| {
                let started = Instant::now();
                let mut left = iterations;
                while left > 0 {
                    let batch = left.min(BATCH);
                    left -= batch;
                    let receipts: Vec<_> = (0..batch)
                        .map(|_| {
                            next += 1;
                            let body = bytes::Bytes::from_static(&RECORD);
                            let key = format!("goes/{next}");
                            queue
                                .submit(key, body, Options::default())
                                .wait()
                                .expect("admitted")
                        })
                        .collect();
                    for receipt in receipts {
                        receipt.uploaded().wait().expect("uploaded");
                    }
                }
                started.elapsed()
            });
            close(&queue);
        });
    }
    group.finish();
}

criterion_group!(benches, submit, durable, with_others_waiting);
criterion_main!(benches);
