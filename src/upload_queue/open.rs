//! Opening a queue: what it is opened with, and the order in which its parts are made.
//!
//! Owns: the builder, and the one instant at which a queue comes to be: from the recovered journal
//! on nothing waits, so a cancelled open leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::checkpoint::request::Requests;
use crate::checkpoint::restore::refuse_marked;
use crate::checkpoint::stand::Stands;
use crate::checkpoint::{Checkpointer, Made, StoreOptions};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::fs::{Fs, OsFs};
use crate::journal::{Journal, JournalError, JournalOptions, Recovered};
use crate::op::Op;
use crate::part::Parts;
use crate::part::open::{Found, is_part_store};
use crate::queue::Queue;
use crate::queue::backlog;
use crate::queue::record::kind;
use crate::random::Random;
use crate::remote::Remote;
use crate::remote::tally::{Errors, Tally};
use crate::remote::timed::{Deadlines, Timed};
use crate::runtime::{Driver, RunOn, Runtime};
use crate::shutdown::{Layers, Shutdown, Unfinished};
use crate::time::WallClock;
use crate::worker::Workers;
use crate::worker::slots::Slots;

use super::stack::{Seen, Stack};
use super::{Asked, Inner, UploadQueue};

/// How often an open looks again at a directory that is in use, and how far apart.
const LOCK_LOOKS: u32 = 50;
const LOCK_BEAT: Duration = Duration::from_millis(20);
/// Opens in a row in which the process died: the next one comes up paused.
const OPENS_THAT_DIED: u32 = 3;
/// Room in the journal for the records of headers, which no task's admission has charged.
const HEADER_DISK_BYTES: u64 = 64 * 1024 * 1024;
/// Owners of a journal that are looked at in one go.
const OWNERS: usize = 4096;

/// How an [`UploadQueue`] is opened.
#[must_use = "a builder does nothing until `open` is waited for"]
pub struct Builder {
    config: Config,
    remote: Arc<dyn Remote>,
    run_on: RunOn,
    token: CancellationToken,
    fs: Arc<dyn Fs>,
    io: Option<Io>,
    clock: Option<WallClock>,
    /// With a part store on top.
    store: Option<StoreOptions>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(config: Config, remote: Arc<dyn Remote>) -> Self {
        Self {
            config,
            remote,
            run_on: RunOn::default(),
            token: CancellationToken::new(),
            fs: Arc::new(OsFs),
            io: None,
            clock: None,
            store: None,
        }
    }

    /// The queue of a part store.
    pub(crate) fn with_store(self, store: StoreOptions) -> Self {
        Self {
            store: Some(store),
            ..self
        }
    }

    /// Which runtime drives the queue. Default: a thread of its own.
    pub fn run_on(self, run_on: RunOn) -> Self {
        Self { run_on, ..self }
    }

    /// A token whose cancellation starts an ordered shutdown with the configured deadline.
    pub fn cancelled_by(self, parent: &CancellationToken) -> Self {
        Self {
            token: parent.child_token(),
            ..self
        }
    }

    /// Another file system, and where its blocking calls run: for simulations.
    pub fn file_system(self, fs: Arc<dyn Fs>, io: Io) -> Self {
        Self {
            fs,
            io: Some(io),
            ..self
        }
    }

    /// Another wall clock: for simulations.
    pub fn wall_clock(self, clock: WallClock) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// Opens the queue: takes the directory, recovers what an earlier life left, starts the
    /// workers. Needs no answer from S3. A directory that is in use is waited for, for a second.
    /// Where the process died in three opens in a row, the next one comes up paused:
    /// [`UploadQueue::crash_loop`].
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::DirectoryInUse`], [`Error::Directory`], [`Error::Version`],
    /// [`Error::Damaged`]: nothing was changed. [`Error::Runtime`].
    ///
    /// # Cancel safety
    /// Dropped at any point, it leaves no task behind and the directory free.
    pub fn open(self) -> Op<UploadQueue> {
        self.open_and(|queue, _| queue)
    }

    /// Opens it, with the part layer of the store it is opened for.
    pub(crate) fn open_and<T: Send + 'static>(
        self,
        then: impl FnOnce(UploadQueue, Option<Arc<Checkpointer>>) -> T + Send + 'static,
    ) -> Op<T> {
        let deadline = self.config.op_deadline;
        let runtime = match self.config.validate() {
            Err(errors) => return Op::ready(Err(errors.into())),
            Ok(()) => match Runtime::start(&self.run_on) {
                Err(error) => return Op::ready(Err(error)),
                Ok(runtime) => runtime,
            },
        };
        let driver = runtime.driver();
        let work = async move {
            let (queue, checkpointer) = open(self, runtime).await?;
            if let Some(checkpointer) = &checkpointer {
                if let Err(error) = checkpointer.first_claim().await {
                    // As if it had not been opened: nothing was sent.
                    queue.hurry();
                    queue.shutdown().await?;
                    return Err(error);
                }
                checkpointer.start();
            }
            Ok(then(queue, checkpointer))
        };
        let work = driver.clone().inside(work);
        Op::new(&driver, deadline, work, || {
            Error::WouldWait("the local disk")
        })
    }
}

async fn open(
    builder: Builder,
    runtime: Arc<Runtime>,
) -> Result<(UploadQueue, Option<Arc<Checkpointer>>)> {
    let Builder {
        config,
        remote,
        token,
        fs,
        io,
        clock,
        store,
        ..
    } = builder;
    let config = Arc::new(config);
    let io = io.unwrap_or_else(|| runtime.io(config.io_threads));
    let driver = runtime.driver();
    let clock = {
        let _inside = driver.context();
        clock.unwrap_or_else(WallClock::system)
    };
    {
        let (fs, dir) = (Arc::clone(&fs), config.dir.clone());
        let marked = io.run(move || refuse_marked(&*fs, &dir)).await;
        marked.map_err(|error| Error::directory(&config.dir, &error))??;
    }
    let (journal, recovered) = open_journal(&config, &fs, &io, &driver, clock).await?;
    if store.is_none() && is_part_store(&recovered) {
        let message = "is the directory of a part store: open it as one".to_owned();
        return Err(Error::Directory {
            path: config.dir.clone(),
            message,
            kind: std::io::ErrorKind::InvalidInput,
        });
    }
    let errors = Arc::new(Errors::default());
    let remote: Arc<dyn Remote> = Arc::new(Tally {
        remote,
        with: Arc::clone(&errors),
    });
    let prefix = remote.prefix().to_owned();
    let queue = Queue::new(
        Arc::clone(&config),
        journal.clone(),
        Arc::clone(&fs),
        io.clone(),
        driver.clone(),
        clock,
        prefix,
    );
    let random = Random::new(config.seed);
    let (parts, recovered) = match &store {
        None => (None, recovered),
        Some(store) => {
            let layer = Layer {
                config: Arc::clone(&store.config),
                queue: Arc::clone(&queue),
                fs,
                io: io.clone(),
                // Names of objects must not repeat from one open to the next.
                random: Random::new(config.seed.map(|seed| seed ^ unix_nanos(clock))),
            };
            if store.config.fencing.is_on() {
                // Whose turn it is `head` decides.
                queue.is_no_copy();
                queue.hold_sending(true);
            }
            let (parts, stands, recovered) = open_parts(layer, &runtime, recovered).await?;
            (Some((parts, stands)), recovered)
        }
    };
    let found = {
        let (queue, clean, next) = (Arc::clone(&queue), recovered.clean, recovered.next_location);
        let found = io.run(move || queue.recover(clean, next)).await;
        found.map_err(|error| Error::directory(&config.dir, &error))??
    };
    journal.set_sink(queue.sink());
    crate::crash_point::crash_point("open.recovered");
    if journal.failed_opens() >= OPENS_THAT_DIED {
        queue.comes_up_paused(journal.failed_opens());
    }
    {
        // A crash from here on is an attempt's, and is charged to its task.
        let journal = journal.clone();
        let over = io.run(move || journal.opened()).await;
        over.map_err(|error| Error::directory(&config.dir, &error))?;
    }
    // From here on nothing waits: the queue is opened whole, or the journal is dropped.
    let _inside = driver.context();
    let shutdown = Shutdown::new(token, config.shutdown_within);
    runtime.spawn(async move { journal.run().await });
    let asked = Asked(Arc::clone(&remote));
    // Ids of claims and commits must not repeat from one open to the next.
    let again = Random::new(
        config
            .seed
            .map(|seed| seed ^ unix_nanos(clock).rotate_left(32)),
    );
    runtime.spawn(Arc::clone(&queue).feed());
    let workers = Workers::start(Arc::clone(&queue), remote, clock, random, found, &runtime);
    let checkpointer = store.zip(parts).map(|(store, (parts, stands))| {
        let requests = Requests {
            remote: Arc::new(Slots {
                queue: Arc::clone(&queue),
                remote: Arc::new(Timed {
                    remote: workers.remote(),
                    with: Deadlines {
                        min_rate: config.min_rate_bytes,
                        floor: config.attempt_floor,
                    },
                }),
            }),
            retry_base: config.retry_base,
            retry_cap: config.retry_cap,
            random: again,
            stop: CancellationToken::new(),
        };
        Checkpointer::new(Made {
            parts,
            requests,
            stands,
            clock,
            options: store,
        })
    });
    let parts = checkpointer
        .as_ref()
        .map(|checkpointer| Arc::clone(&checkpointer.parts));
    let seen = Arc::new(Seen::default());
    let stack = Arc::new(Stack {
        queue: Arc::clone(&queue),
        workers: Arc::clone(&workers),
        shutdown: Arc::downgrade(&shutdown),
        seen: Arc::clone(&seen),
        clock,
        parts: parts.clone(),
        checkpointer: checkpointer.clone(),
    });
    if let Some(parts) = &parts {
        parts.start();
    }
    let coordinator = Arc::clone(&shutdown);
    // The runtime lives until the last phase is over, even where every handle was dropped.
    let kept = Arc::clone(&runtime);
    let unfinished = Unfinished {
        shutdown: Arc::clone(&shutdown),
        layers: Arc::clone(&stack) as Arc<dyn Layers>,
    };
    runtime.spawn(async move {
        tokio::select! {
            biased;
            () = coordinator.coordinate(&*stack) => (),
            () = stack.beats() => (),
        }
        drop(unfinished);
        drop(kept);
    });
    let queue = UploadQueue {
        inner: Arc::new(Inner {
            queue,
            shutdown,
            workers,
            errors,
            remote: asked,
            driver,
            seen,
            damage: recovered.damage,
            _runtime: runtime,
        }),
    };
    Ok((queue, checkpointer))
}

fn unix_nanos(clock: WallClock) -> u64 {
    u64::try_from(clock.unix().as_nanos()).unwrap_or(u64::MAX)
}

/// What the part layer is made of.
struct Layer {
    config: Arc<crate::part::config::StoreConfig>,
    queue: Arc<Queue>,
    fs: Arc<dyn Fs>,
    io: Io,
    random: Random,
}

/// Makes the part layer, and recovers its files on an I/O thread.
async fn open_parts(
    layer: Layer,
    runtime: &Arc<Runtime>,
    recovered: Recovered,
) -> Result<(Arc<Parts>, Stands, Recovered)> {
    let Layer {
        config,
        queue,
        fs,
        io,
        random,
    } = layer;
    let dir = config.queue.dir.clone();
    let (epochs, stands) = {
        let found = Found::new(&recovered)?;
        (found.epochs, Stands::new(found.stand)?)
    };
    let listed = stands.now().base.map_or(0, |base| base.upto);
    let parts = Parts::new(config, queue, fs, io.clone(), runtime, random, epochs);
    let on = Arc::clone(&parts);
    let done = io
        .run(move || {
            let found = Found::new(&recovered)?;
            on.recover(found, listed)?;
            Ok::<_, Error>(recovered)
        })
        .await;
    let recovered = done.map_err(|error| Error::directory(&dir, &error))??;
    Ok((parts, stands, recovered))
}

/// How the journal of a directory is opened.
pub(crate) fn journal_options(config: &Config) -> JournalOptions {
    let mut options = JournalOptions::new(&config.dir);
    options.segment_bytes = config.segment_bytes.into();
    options.inline_bytes = config.inline_bytes.into();
    // The reserve is room on top of the limit, here as at admission.
    options.disk_limit = config
        .max_disk_bytes
        .saturating_add(config.checkpoint_disk_bytes())
        .saturating_add(HEADER_DISK_BYTES);
    options.on_damage = config.on_damage;
    options.count_opens = true;
    options
}

/// Opens the journal. Of its owners those of parts are read: the queue's are read as it has room
/// for them.
fn open_with_parts(
    fs: Arc<dyn Fs>,
    io: Io,
    options: JournalOptions,
) -> std::result::Result<(Journal, Recovered), JournalError> {
    let (journal, mut recovered) = Journal::open_lean(fs, io, options, &backlog::label)?;
    let mut from = 0;
    loop {
        let owners = journal.owners(from, OWNERS);
        let Some(last) = owners.last() else {
            return Ok((journal, recovered));
        };
        from = last.location + 1;
        for owner in owners.iter().filter(|owner| owner.kind >= kind::OTHERS) {
            recovered.owners.extend(journal.owner(owner.location)?);
        }
    }
}

/// Opens the journal on an I/O thread. Whoever has the directory may be on its way out (an open of
/// this very process that was cancelled, or the process before this one): it is waited for.
async fn open_journal(
    config: &Config,
    fs: &Arc<dyn Fs>,
    io: &Io,
    driver: &Driver,
    clock: WallClock,
) -> Result<(Journal, Recovered)> {
    let mut options = journal_options(config);
    // Segment ids must not repeat from one open to the next.
    let now = unix_nanos(clock);
    options.seed = config.seed.map(|seed| seed ^ now);
    let mut looks = 0;
    loop {
        let (fs, io_too, options) = (Arc::clone(fs), io.clone(), options.clone());
        let opened = io
            .run(move || open_with_parts(fs, io_too, options))
            .await
            .map_err(|error| Error::directory(&config.dir, &error))?;
        match opened.map_err(Error::from) {
            Ok(opened) => return Ok(opened),
            Err(Error::DirectoryInUse { .. }) if looks < LOCK_LOOKS => {
                looks += 1;
                let pause = {
                    let _inside = driver.context();
                    tokio::time::sleep(LOCK_BEAT)
                };
                pause.await;
            }
            Err(error) => return Err(error),
        }
    }
}
