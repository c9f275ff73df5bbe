//! The queue under a model checker: the real queue and journal, on a disk in memory, with every
//! lock a point at which another thread may go on.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --no-default-features --features simulated --lib interleavings`, with
//! `SHUTTLE_ROUNDS` for more schedules than the thousand of each. A failing schedule prints itself,
//! and how to replay it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use shuttle::future;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

use crate::config::Config;
use crate::io::Io;
use crate::journal::{Journal, JournalOptions};
use crate::remote::{ETag, ObjectInfo};
use crate::runtime::Driver;
use crate::sync::Mutex;
use crate::testing::fs::SimFs;

use super::admission::Asker;
use super::receipt::Settlement;
use super::table::Slot;
use super::task::{Body, Options};
use super::{Job, Queue, Submission};

const PRODUCERS: usize = 4;
const CONSUMERS: usize = 4;
const EACH: usize = 2;

struct Model {
    queue: Arc<Queue>,
    committer: future::JoinHandle<()>,
    /// How often each key was handed to a consumer.
    runs: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Model {
    fn open(max_tasks: u64) -> Self {
        let fs = Arc::new(SimFs::new());
        let mut config = Config::new("/q");
        config.max_tasks = max_tasks;
        config.workers = CONSUMERS;
        let options = JournalOptions {
            segment_bytes: 16 * 1024,
            seed: Some(7),
            holder: Some("the model".to_owned()),
            ..JournalOptions::new("/q")
        };
        let (journal, _) = Journal::open(fs.clone(), Io::inline(), options).unwrap();
        let queue = Queue::new(
            Arc::new(config),
            journal.clone(),
            fs,
            Io::inline(),
            Driver::none(),
            crate::time::WallClock::starting_at(std::time::Duration::ZERO),
            String::new(),
        );
        journal.set_sink(queue.sink());
        let committer = future::spawn(async move { journal.run().await });
        Self {
            queue,
            committer,
            runs: Arc::default(),
        }
    }

    fn submission(key: &str) -> Submission {
        Submission {
            key: key.to_owned(),
            body: Some(Body::Bytes(Bytes::from_static(b"x"))),
            options: Options::default(),
            asker: Asker::Anyone,
        }
    }

    /// What a worker does, without S3.
    fn consumer(&self) -> future::JoinHandle<()> {
        let (queue, runs) = (Arc::clone(&self.queue), Arc::clone(&self.runs));
        future::spawn(async move {
            while let Some((job, _)) = queue.next(Slot::General).await {
                let Job::Task(job) = job else {
                    unreachable!("only uploads were submitted")
                };
                *runs.lock().entry(job.key.to_string()).or_default() += 1;
                let found = ObjectInfo {
                    etag: ETag("e".to_owned()),
                    size: job.len,
                    checksum: job.checksum,
                    write_id: None,
                    last_modified: None,
                };
                queue.settle(job.id, Settlement::Uploaded(found));
            }
        })
    }

    async fn close(self, consumers: Vec<future::JoinHandle<()>>) {
        self.queue.stop();
        for consumer in consumers {
            consumer.await.unwrap();
        }
        self.queue.journal.seal().await.unwrap();
        self.committer.await.unwrap();
        let usage = self.queue.admission.usage();
        assert_eq!((usage.used.tasks, usage.waiters), (0, 0), "room leaks");
        assert_eq!(self.queue.counts().tasks, 0);
    }
}

fn check(scenario: impl Fn() + Send + Sync + 'static) {
    let rounds = std::env::var("SHUTTLE_ROUNDS").map_or(1000, |rounds| rounds.parse().unwrap());
    let scenario = Arc::new(scenario);
    let again = Arc::clone(&scenario);
    let mut config = shuttle::Config::default();
    // A submit goes deeper than the checker's threads usually do.
    config.stack_size = 512 * 1024;
    let random = RandomScheduler::new(rounds);
    shuttle::Runner::new(random, config.clone()).run(move || scenario());
    let pct = PctScheduler::new(3, rounds);
    shuttle::Runner::new(pct, config).run(move || again());
}

/// A8: four producers and four consumers on a full queue: no task is lost, none runs twice, and
/// the limit holds. (OrioleDB's queue cleared a slot after it had published it.)
#[test]
fn a8_no_schedule_loses_a_task_or_runs_one_twice() {
    for max_tasks in [1, 2] {
        check(move || {
            future::block_on(async {
                let model = Model::open(max_tasks);
                let consumers: Vec<_> = (0..CONSUMERS).map(|_| model.consumer()).collect();
                let producers: Vec<_> = (0..PRODUCERS)
                    .map(|producer| {
                        let queue = Arc::clone(&model.queue);
                        future::spawn(async move {
                            for n in 0..EACH {
                                let submission = Model::submission(&format!("{producer}/{n}"));
                                let receipt = Arc::clone(&queue).submit(submission).await.unwrap();
                                let end = receipt.cell.settled().await;
                                assert!(matches!(end, Settlement::Uploaded(_)), "{end:?}");
                            }
                        })
                    })
                    .collect();
                for producer in producers {
                    producer.await.unwrap();
                }
                let runs = model.runs.lock().clone();
                assert_eq!(runs.len(), PRODUCERS * EACH);
                assert!(runs.values().all(|times| *times == 1), "{runs:?}");
                assert!(model.queue.admission.usage().peak.tasks <= max_tasks);
                model.close(consumers).await;
            });
        });
    }
}

/// A7: a submit that waits for room and is dropped, at whatever moment, leaves no hole.
#[test]
fn a7_no_schedule_lets_a_dropped_submit_keep_room() {
    check(|| {
        future::block_on(async {
            let model = Model::open(1);
            let consumers = vec![model.consumer()];
            let leavers: Vec<_> = (0..2)
                .map(|leaver| {
                    let queue = Arc::clone(&model.queue);
                    let submission = Model::submission(&format!("leaves/{leaver}"));
                    future::spawn(async move {
                        let mut submit = Box::pin(queue.submit(submission));
                        // Polled once or twice, then dropped, admitted or not.
                        for _ in 0..=leaver {
                            if futures::poll!(submit.as_mut()).is_ready() {
                                return;
                            }
                            future::yield_now().await;
                        }
                    })
                })
                .collect();
            let stays = Model::submission("stays");
            let receipt = Arc::clone(&model.queue).submit(stays).await.unwrap();
            let end = receipt.cell.settled().await;
            assert!(matches!(end, Settlement::Uploaded(_)), "{end:?}");
            for leaver in leavers {
                leaver.await.unwrap();
            }
            // What the leavers submitted, if they did, is on its way.
            let last = Model::submission("last");
            let receipt = Arc::clone(&model.queue).submit(last).await.unwrap();
            receipt.cell.settled().await;
            while model.queue.counts().tasks > 0 || model.queue.counts().settling > 0 {
                future::yield_now().await;
            }
            model.close(consumers).await;
        });
    });
}

/// D8: whoever waits for room while the door closes is told so, in every schedule.
#[test]
fn d8_no_schedule_leaves_a_waiter_behind_a_closed_door() {
    check(|| {
        future::block_on(async {
            let model = Model::open(1);
            let told = Arc::new(AtomicBool::new(false));
            // Nobody serves the queue: the first takes the room for good.
            let first = Model::submission("first");
            let receipt = Arc::clone(&model.queue).submit(first).await.unwrap();
            let waiters: Vec<_> = (0..3)
                .map(|waiter| {
                    let queue = Arc::clone(&model.queue);
                    let submission = Model::submission(&format!("waits/{waiter}"));
                    future::spawn(async move { queue.submit(submission).await.is_err() })
                })
                .collect();
            let closer = {
                let (queue, told) = (Arc::clone(&model.queue), Arc::clone(&told));
                future::spawn(async move {
                    queue.admission.close(crate::phase::Phase::Draining);
                    told.store(true, Ordering::Relaxed);
                })
            };
            for waiter in waiters {
                assert!(waiter.await.unwrap(), "nothing is admitted");
            }
            closer.await.unwrap();
            assert!(told.load(Ordering::Relaxed));
            let consumers = vec![model.consumer()];
            receipt.cell.settled().await;
            model.close(consumers).await;
        });
    });
}
