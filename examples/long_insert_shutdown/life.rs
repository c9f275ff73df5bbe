//! One life of an engine: from open to the end of shutdown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::{PartStore, ShutdownReport, Snapshot, StoreSnapshot, UploadQueue};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::acks::Acks;
use crate::engine::{self, Engine};
use crate::failure::Failure;
use crate::heap::{Heap, Told};
use crate::options::{Cli, EngineKind};
use crate::shipper::{Shipped, Unsettled};
use crate::world::World;
use crate::{updaters, writers};

/// What a shutdown may take beyond its deadline: the time to notice, and to wake who waits.
pub const GRACE: Duration = Duration::from_millis(500);
/// The engine ends right after the queue has closed; where it does not, something is wrong.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// How often a store is asked whether S3 is up to date.
const ASKS_EVERY: Duration = Duration::from_millis(20);

/// An open queue with a running engine on it.
pub struct Life {
    engine: Running,
    pub queue: UploadQueue,
    /// Cancelled, it starts the shutdown of everything.
    pub token: CancellationToken,
    within: Duration,
}

enum Running {
    /// On the queue itself.
    Log(Engine),
    /// On a part store, which is on the queue.
    Page(Heap, PartStore),
}

/// What an engine left to be told.
enum Rest {
    Log(Unsettled),
    Page(Told, PartStore),
}

/// How it ended.
pub struct Ended {
    pub report: Arc<ShutdownReport>,
    pub snapshot: Snapshot,
    /// Of the log.
    pub shipped: Shipped,
    /// Of the heap.
    pub heap: Option<(Told, StoreSnapshot)>,
    /// From the cancellation until the report was there, as a caller sees it.
    pub shutdown: Duration,
}

/// Opens the part store below `dir`; one that was restored takes the prefix over.
pub async fn open_store(
    cli: &Cli,
    world: &World,
    dir: &Path,
    token: &CancellationToken,
    take_over: bool,
) -> Result<PartStore, Failure> {
    let config = cli.store_config(dir.join("store"));
    let mut builder = PartStore::builder(config, world.remote().await?).cancelled_by(token);
    if take_over {
        builder = builder.take_over();
    }
    Ok(builder.open().await?)
}

impl Life {
    /// Opens queue and engine below `dir`.
    pub async fn open(cli: &Cli, world: &World, dir: &Path) -> Result<Self, Failure> {
        let token = CancellationToken::new();
        let (queue, engine) = match cli.engine {
            EngineKind::Log => {
                let config = cli.config(dir.join("queue"));
                let builder = UploadQueue::builder(config, world.remote().await?);
                let queue = builder.cancelled_by(&token).open().await?;
                let engine = Engine::open(&queue, &dir.join("log"), cli.segment_bytes)?;
                (queue, Running::Log(engine))
            }
            EngineKind::Page => {
                let store = open_store(cli, world, dir, &token, cli.resume).await?;
                let heap = Heap::open(&store, cli.shape(), cli.seed).await?;
                (store.queue().clone(), Running::Page(heap, store))
            }
        };
        Ok(Self {
            engine,
            queue,
            token,
            within: cli.shutdown_within,
        })
    }

    /// Whether an earlier life left something in this directory.
    pub fn had_rows(&self) -> bool {
        match &self.engine {
            Running::Log(engine) => engine.had_rows(),
            Running::Page(heap, _) => heap.had_rows(),
        }
    }

    /// Starts the engine's writers.
    pub fn writers(
        &self,
        cli: &Cli,
        acks: &Arc<Acks>,
    ) -> Result<JoinSet<Result<(), Failure>>, Failure> {
        match &self.engine {
            Running::Log(engine) => Ok(writers::start(cli, &engine.commits(), acks)),
            Running::Page(heap, _) => updaters::start(cli, heap, acks),
        }
    }

    /// How it goes, for people.
    pub fn progress(&self, acks: &Arc<Acks>) -> Box<dyn Fn() -> String + Send> {
        let acks = Arc::clone(acks);
        match &self.engine {
            Running::Log(_) => {
                let queue = self.queue.clone();
                Box::new(move || {
                    let snapshot = queue.snapshot();
                    format!(
                        "{} rows acknowledged, {} segments in S3, {} waiting (pressure {})",
                        acks.updates(),
                        snapshot.uploaded,
                        snapshot.admitted_tasks,
                        snapshot.pressure,
                    )
                })
            }
            Running::Page(_, store) => {
                let store = store.clone();
                Box::new(move || {
                    let snapshot = store.snapshot();
                    format!(
                        "{} updates acknowledged, {} images in S3, {} checkpoints, {} loads, \
                         {} evictions, {} bytes dirty",
                        acks.updates(),
                        snapshot.images,
                        snapshot.checkpoints.committed,
                        snapshot.loads,
                        snapshot.evictions,
                        snapshot.dirty_bytes,
                    )
                })
            }
        }
    }

    /// How it goes, for machines.
    pub fn figures(&self, acks: &Arc<Acks>) -> impl Fn() -> Value + Send + Sync + use<> {
        let (acks, queue) = (Arc::clone(acks), self.queue.clone());
        let store = match &self.engine {
            Running::Log(_) => None,
            Running::Page(_, store) => Some(store.clone()),
        };
        move || {
            let mut store = store.as_ref().map(|store| json!(store.snapshot()));
            // It is told once, whoever has it.
            if let Some(Value::Object(store)) = &mut store {
                store.remove("queue");
            }
            json!({
                "rows_acknowledged": acks.updates(),
                "queue": queue.snapshot(),
                "health": word(&json!(queue.health())),
                "store": store,
            })
        }
    }

    /// Waits until S3 has all that this directory owed.
    pub async fn catch_up(&mut self, within: Duration) -> Result<(), Failure> {
        if let Running::Log(engine) = &mut self.engine {
            engine.caught_up().await;
        }
        self.queue.drain().within(within).await?;
        if let Running::Page(_, store) = &self.engine {
            let clean = async {
                while store.snapshot().dirty_bytes > 0 {
                    sleep(ASKS_EVERY).await;
                }
            };
            let late = |_| Failure::Stuck("S3 was not brought up to date within --drain-within");
            tokio::time::timeout(within, clean).await.map_err(late)?;
        }
        Ok(())
    }

    /// Cancels the token and waits for the end of everything.
    pub async fn end(self) -> Result<Ended, Failure> {
        let started = Instant::now();
        self.token.cancel();
        let queue = &self.queue;
        let shut = async {
            // Joins what the token started; this deadline is the same one.
            let report = queue.shutdown().within(self.within).await?;
            Ok::<_, Failure>((report, started.elapsed()))
        };
        let (shut, rest) = tokio::join!(shut, self.engine.finish_in_time());
        let (report, shutdown) = shut?;
        let (shipped, heap) = match rest? {
            Rest::Log(unsettled) => (engine::settle(unsettled)?, None),
            Rest::Page(told, store) => (Shipped::default(), Some((told, store.snapshot()))),
        };
        Ok(Ended {
            report,
            snapshot: queue.snapshot(),
            shipped,
            heap,
            shutdown,
        })
    }
}

/// Which of an enum's values it is, without what it says besides.
fn word(value: &Value) -> Option<&str> {
    let name = value.as_object().and_then(|fields| fields.keys().next());
    value.as_str().or_else(|| name.map(String::as_str))
}

impl Running {
    /// Ends the engine, beside the queue's own shutdown.
    async fn finish_in_time(self) -> Result<Rest, Failure> {
        let finish = async {
            match self {
                Self::Log(engine) => engine.finish().await.map(Rest::Log),
                Self::Page(heap, store) => heap.finish().await.map(|told| Rest::Page(told, store)),
            }
        };
        match tokio::time::timeout(END_DEADLINE, finish).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Stuck("the engine did not end after its queue")),
        }
    }
}

impl Ended {
    pub fn is_in_time(&self) -> bool {
        self.shutdown <= self.report.within + GRACE
    }

    /// Whether something is durable here and not in S3.
    pub fn owes(&self) -> bool {
        self.report.deferred > 0
            || self.report.undetermined > 0
            || self.report.dirty_parts > 0
            || self.report.checkpoint_error.is_some()
            || self.shipped.left > 0
    }

    /// Whether the directory needs none of its bytes of parts any more.
    pub fn is_clean(&self) -> bool {
        self.report.sealed && !self.owes()
    }
}
