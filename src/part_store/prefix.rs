//! A prefix of a bucket, looked at without owning it.
//!
//! Owns: how each call is waited for. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::pin::Held;
use crate::checkpoint::read_only::OpenReader;
use crate::checkpoint::request::Requests;
use crate::checkpoint::restore::Target;
use crate::checkpoint::{GcReport, ReadOnly, Restore, Restored, VerifyReport, gc, head, verify};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::journal::fs::{Fs, OsFs};
use crate::op::Op;
use crate::part::config::StoreConfig;
use crate::random::Random;
use crate::remote::Remote;
use crate::remote::deadline::{DEFAULT_MIN_RATE, MIN_ATTEMPT};
use crate::remote::timed::{Deadlines, Timed};
use crate::runtime::{RunOn, Runtime};
use crate::upload_queue::journal_options;

use super::checkpoints::ListedCheckpoint;

/// A prefix with checkpoints in it: to list, read, verify and restore them.
///
/// Nothing here claims the prefix or fences its owner.
#[derive(Clone)]
pub struct Prefix {
    remote: Arc<dyn Remote>,
    run_on: RunOn,
    fs: Arc<dyn Fs>,
    io: Option<Io>,
    seed: Option<u64>,
    deadline: Duration,
}

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prefix({})", self.remote.describe())
    }
}

/// How long a call may take where its caller does not say.
const WITHIN: Duration = Duration::from_secs(3600);

impl Prefix {
    /// What `remote` writes to.
    pub fn new(remote: Arc<dyn Remote>) -> Self {
        Self {
            remote,
            run_on: RunOn::default(),
            fs: Arc::new(OsFs),
            io: None,
            seed: None,
            deadline: WITHIN,
        }
    }

    /// Which runtime drives it. Default: a thread of its own for each call.
    #[must_use]
    pub fn run_on(self, run_on: RunOn) -> Self {
        Self { run_on, ..self }
    }

    /// Another file system, and where its blocking calls run: for simulations.
    #[must_use]
    pub fn file_system(self, fs: Arc<dyn Fs>, io: Io) -> Self {
        Self {
            fs,
            io: Some(io),
            ..self
        }
    }

    /// How long each call may take where its caller does not say. Default 1 hour.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    fn op<T, F>(&self, work: impl FnOnce(Requests, Instant, Arc<Runtime>) -> F) -> Op<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let runtime = match Runtime::start(&self.run_on) {
            Ok(runtime) => runtime,
            Err(error) => return Op::ready(Err(error)),
        };
        let driver = runtime.driver();
        let requests = Requests {
            remote: Arc::new(Timed {
                remote: Arc::clone(&self.remote),
                with: Deadlines {
                    min_rate: DEFAULT_MIN_RATE,
                    floor: MIN_ATTEMPT,
                },
            }),
            retry_base: Duration::from_millis(50),
            retry_cap: Duration::from_secs(10),
            random: Random::new(self.seed),
            stop: CancellationToken::new(),
        };
        let until = {
            let _inside = driver.context();
            Instant::now() + self.deadline
        };
        let kept = Arc::clone(&runtime);
        let work = work(requests, until, runtime);
        let work = async move {
            let done = work.await;
            drop(kept);
            done
        };
        Op::new(&driver, self.deadline, work, || Error::WouldWait("S3"))
    }

    /// The checkpoints that are listed, by number.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::ObjectDamaged`], [`Error::Version`], [`Error::TimedOut`].
    pub fn checkpoints(&self) -> Op<Vec<ListedCheckpoint>> {
        self.op(|requests, until, _| async move {
            let listed = head::listed(&requests, until).await?;
            Ok(ListedCheckpoint::all(listed))
        })
    }

    /// Reads every image of a checkpoint (`None`: the latest), and says what is missing.
    ///
    /// # Errors
    /// [`Error::NoSuchCheckpoint`]; [`Error::ObjectMissing`], [`Error::ObjectDamaged`],
    /// [`Error::Version`] for its manifest and headers; [`Error::Remote`]. Images that are missing
    /// or damaged are in the report.
    pub fn verify(&self, checkpoint: Option<u64>) -> Op<VerifyReport> {
        self.op(move |requests, until, _| async move {
            let (pin, listed) = Held::take(&requests, checkpoint, until).await?;
            let report = verify::verify(&requests, &listed, until).await;
            pin.give_back(until).await;
            report
        })
    }

    /// Reads a checkpoint (`None`: the latest) with a cache of `cache_bytes`, and keeps it: a pin
    /// says that it is needed, until the reader is closed or nothing was read for `pin_ttl`.
    ///
    /// # Errors
    /// [`Error::NoSuchCheckpoint`], also where it was retired in this very moment;
    /// [`Error::ObjectMissing`], [`Error::ObjectDamaged`], [`Error::Version`]; [`Error::Remote`].
    pub fn read(
        &self,
        checkpoint: Option<u64>,
        cache_bytes: u64,
        pin_ttl: Duration,
    ) -> Op<ReadOnly> {
        let deadline = self.deadline;
        self.op(move |requests, _, runtime| async move {
            let driver = runtime.driver();
            ReadOnly::open(OpenReader {
                requests,
                number: checkpoint,
                cache_bytes,
                ttl: pin_ttl,
                deadline,
                driver,
                runtime,
            })
            .await
        })
    }

    /// Restores a checkpoint into the directory of `config`, which must be empty or not exist. The
    /// store is opened afterwards, by [`take_over`](super::StoreBuilder::take_over). What was not
    /// finished is finished by the same call.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::NoSuchCheckpoint`], [`Error::NotEmpty`],
    /// [`Error::RestoreUnfinished`] where the directory is half of another checkpoint: nothing was
    /// changed. [`Error::ObjectMissing`], [`Error::ObjectDamaged`], [`Error::Version`],
    /// [`Error::Remote`], [`Error::Directory`], [`Error::DirectoryInUse`]: to be called again.
    ///
    /// # Cancel safety
    /// As an error: to be called again.
    pub fn restore(&self, config: &StoreConfig, what: Restore) -> Op<Restored> {
        if let Err(errors) = config.validate() {
            return Op::ready(Err(errors.into()));
        }
        let max_part_bytes = config.max_part_bytes();
        let (fs, io, config) = (Arc::clone(&self.fs), self.io.clone(), config.queue.clone());
        self.op(move |requests, until, runtime| async move {
            let io = io.unwrap_or_else(|| runtime.io(config.io_threads));
            let target = Target {
                requests,
                fs,
                io,
                dir: config.dir.clone(),
                options: journal_options(&config),
                max_part_bytes,
                until,
            };
            let on = Arc::clone(&runtime);
            let run = |journal: crate::journal::Journal| {
                on.spawn(async move { journal.run().await });
            };
            target.restore(&what, run).await
        })
    }

    /// Deletes what nobody needs of a prefix, whoever owns it: only what is below the mark of the
    /// latest checkpoint, and in none that is listed or pinned. Takes no checkpoint off the list.
    ///
    /// # Errors
    /// [`Error::FencingUnsupported`] where the prefix is not fenced; [`Error::Remote`],
    /// [`Error::ObjectMissing`], [`Error::ObjectDamaged`].
    ///
    /// # Cancel safety
    /// What was deleted was garbage.
    pub fn collect_garbage(&self) -> Op<GcReport> {
        self.op(|requests, until, _| async move { gc::collect_offline(&requests, until).await })
    }
}
