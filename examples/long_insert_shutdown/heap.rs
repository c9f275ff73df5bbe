//! A small page engine: rows that are updated in place, in a file that is bigger than its cache.
//!
//! Owns: how a row is updated and becomes durable, and how the engine ends. Does not own: the
//! format ([`crate::page`]), who updates what ([`crate::updaters`]).
//!
//! ```text
//! writers --lock, read, change, write--> the part store --dirty parts--> S3
//!         --commits--> the syncer: one sync for all who wait
//! ```
//!
//! 1. A page is read and written with its part locked exclusively: no update is lost.
//! 2. A commit is acknowledged after a sync that began when all of its rows were written.
//! 3. Nobody waits for a lock with another held. A wait that takes too long is ended and begun
//!    anew, with nothing held in between; what was refused has written nothing.
//! 4. The end: writers stop at the hold's token, with what they have written committed; the
//!    syncer ends when the last of them has gone, and drops the hold; only then does the store
//!    drain.
//!
//! There is no log in front of the pages: a power cut may tear a page that was being written. A
//! process that is killed tears none.

use std::future::IntoFuture as _;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::poll_immediate;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::error::Advice;
use s3_writeback::{
    Error, File, FileId, FileOptions, Guard, Locker, Mode, PartStore, Role, ShutdownHold,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::page::{Page, Place, Shape};

/// The one file of the heap.
pub const FILE: FileId = FileId(1);
/// Commits that one sync covers at most.
const GROUP: usize = 64;
/// How long a lock, a read or a write is waited for before all is let go and begun anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long who was refused stays away.
const AWAY: Duration = Duration::from_millis(10);
/// How often the checkpointer looks at a page.
const LOOKS_EVERY: Duration = Duration::from_millis(2);
/// Faults that are told one by one.
const TOLD: usize = 10;

/// What writers and the checkpointer share.
struct Shared {
    store: PartStore,
    file: File,
    shape: Shape,
    seed: u64,
    /// The version of each row that was written last, changed with its part locked: what is read
    /// must be exactly this.
    latest: Vec<AtomicU64>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    lock_waits: AtomicU64,
    max_lock_wait_ms: AtomicU64,
    refused: AtomicU64,
    looks: AtomicU64,
    faults: Mutex<Vec<String>>,
}

/// What a life of the heap has to tell.
#[derive(Debug, Default)]
pub struct Told {
    /// Locks that were not had at once: another held the part, or it was not here.
    pub lock_waits: u64,
    pub max_lock_wait_ms: u64,
    /// Updates that were begun anew after a timeout, or because a locker had to give way.
    pub refused: u64,
    /// Pages that the checkpointer read and checked.
    pub looks: u64,
    /// Pages and rows that were not what they had to be.
    pub faults: Vec<String>,
}

/// How many rows there are, of which shape.
fn latest(shape: &Shape) -> Vec<AtomicU64> {
    (0..shape.rows()).map(|_| AtomicU64::new(0)).collect()
}

struct Commit {
    done: oneshot::Sender<()>,
}

/// A running heap.
pub struct Heap {
    shared: Arc<Shared>,
    hold: Arc<ShutdownHold>,
    to_syncer: mpsc::Sender<Commit>,
    syncer: JoinHandle<Result<(), Error>>,
    checkpointer: JoinHandle<Result<(), Error>>,
    had_rows: bool,
}

/// Opens the file of a heap, made where there is none yet; whether there was.
pub async fn open_file(store: &PartStore, shape: &Shape) -> Result<(File, bool), Failure> {
    let had_rows = store.file(FILE).is_ok();
    let options = FileOptions {
        part_bytes: shape.part_bytes,
    };
    let file = store.create_or_open(FILE, options).await?;
    // A crash may have come between the two.
    if file.is_empty() {
        file.set_len(shape.file_bytes).await?;
    }
    if file.len() != shape.file_bytes {
        return Err(Failure::Usage(format!(
            "the heap has {} bytes, --page-file-mib says {}",
            file.len(),
            shape.file_bytes
        )));
    }
    Ok((file, had_rows))
}

impl Heap {
    /// Opens the heap. What an earlier life left dirty goes up by itself.
    pub async fn open(store: &PartStore, shape: Shape, seed: u64) -> Result<Self, Failure> {
        // Taken before anything else can shut the store down.
        let hold = Arc::new(store.queue().hold("page engine")?);
        let (file, had_rows) = open_file(store, &shape).await?;
        let shared = Arc::new(Shared {
            store: store.clone(),
            file,
            shape,
            seed,
            latest: latest(&shape),
            counts: Counts::default(),
        });
        let (to_syncer, commits) = mpsc::channel(GROUP);
        let locker = store.locker("checkpointer", Role::Checkpointer)?;
        let stop = hold.token().clone();
        Ok(Self {
            syncer: tokio::spawn(sync(shared.file.clone(), commits, Arc::clone(&hold))),
            checkpointer: tokio::spawn(look(Arc::clone(&shared), locker, stop, !had_rows)),
            shared,
            hold,
            to_syncer,
            had_rows,
        })
    }

    /// Whether an earlier life left something in this directory.
    pub fn had_rows(&self) -> bool {
        self.had_rows
    }

    /// A writer's way in. The engine ends when all of them, and its own, are gone.
    pub fn writer(&self, name: &str) -> Result<Writer, Failure> {
        Ok(Writer {
            shared: Arc::clone(&self.shared),
            // What is in the middle of a change when shutdown begins is let through.
            locker: self.shared.store.locker_through(&self.hold, name)?,
            to_syncer: self.to_syncer.clone(),
            stop: self.hold.token().clone(),
        })
    }

    /// Ends the engine: to be called once its writers are told to stop.
    pub async fn finish(self) -> Result<Told, Failure> {
        let Self {
            shared,
            hold,
            to_syncer,
            syncer,
            checkpointer,
            ..
        } = self;
        drop((hold, to_syncer));
        let synced = syncer.await.map_err(Failure::task)?;
        let looked = checkpointer.await.map_err(Failure::task)?;
        synced?;
        looked?;
        Ok(shared.counts.told())
    }
}

/// The syncer: one sync for all who came while the one before was under way.
async fn sync(
    file: File,
    mut commits: mpsc::Receiver<Commit>,
    hold: Arc<ShutdownHold>,
) -> Result<(), Error> {
    let mut group = Vec::with_capacity(GROUP);
    while commits.recv_many(&mut group, GROUP).await > 0 {
        file.sync().await?;
        for commit in group.drain(..) {
            // A writer that has gone does not wait for it.
            let _ = commit.done.send(());
        }
    }
    drop(hold);
    Ok(())
}

/// The checkpointer: reads random pages beside the writers. `knows` says whether it can know what
/// must be in them.
async fn look(
    shared: Arc<Shared>,
    locker: Locker,
    stop: CancellationToken,
    knows: bool,
) -> Result<(), Error> {
    let mut random = StdRng::seed_from_u64(shared.seed ^ 0x0063_6865_636b);
    let mut page = vec![0; shared.shape.page_bytes as usize];
    loop {
        let any = random.random_range(0..shared.shape.rows());
        let place = shared.shape.place(u32::try_from(any).unwrap_or(0));
        let looked = tokio::select! {
            biased;
            looked = shared.look_at(&locker, place, &mut page, knows) => looked,
            () = stop.cancelled() => return Ok(()),
        };
        match looked {
            Ok(()) => {}
            // Before the token was looked at.
            Err(Error::ShuttingDown { .. }) => return Ok(()),
            Err(error) => shared.refusal(error)?,
        }
        tokio::select! {
            () = sleep(LOOKS_EVERY) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

impl Shared {
    /// Locks a part, and has it here.
    async fn lock<'a>(
        &'a self,
        part: u32,
        mode: Mode,
        locker: &'a Locker,
    ) -> Result<Guard<'a>, Error> {
        let mut lock = pin!(
            self.file
                .lock(part, mode, locker)
                .within(PATIENCE)
                .into_future()
        );
        if let Some(had) = poll_immediate(lock.as_mut()).await {
            return had;
        }
        let started = Instant::now();
        let had = lock.await;
        let waited = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counts.lock_waits.fetch_add(1, Ordering::Relaxed);
        self.counts
            .max_lock_wait_ms
            .fetch_max(waited, Ordering::Relaxed);
        had
    }

    /// What must be the version of a row whose part is locked.
    fn latest(&self, row: u32) -> &AtomicU64 {
        &self.latest[row as usize]
    }

    /// Reads a page and checks all of its rows.
    async fn look_at(
        &self,
        locker: &Locker,
        place: Place,
        page: &mut [u8],
        knows: bool,
    ) -> Result<(), Error> {
        let guard = self.lock(place.part, Mode::Shared, locker).await?;
        guard.read_at(page, place.at).within(PATIENCE).await?;
        let mut scratch = Vec::new();
        let read = match Page::read(&self.shape, place.page, page) {
            Ok(read) => read,
            Err(text) => {
                self.counts.fault(text);
                return Ok(());
            }
        };
        for slot in 0..self.shape.slots() {
            let row = self.shape.row(place.page, slot);
            let must = self.latest(row).load(Ordering::Acquire);
            match read.version(slot, self.seed, &mut scratch) {
                Ok(version) if knows && version != must => self.counts.stale(row, version, must),
                Ok(_) => {}
                Err(text) => self.counts.fault(text),
            }
        }
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the next version of a row.
    ///
    /// Dropped at any point, the row has been written and its version told, or neither.
    async fn update(&self, locker: &Locker, row: u32, page: &mut [u8]) -> Result<u64, Error> {
        let place = self.shape.place(row);
        let guard = self.lock(place.part, Mode::Exclusive, locker).await?;
        guard.read_at(page, place.at).within(PATIENCE).await?;
        let latest = self.latest(row);
        let must = latest.load(Ordering::Acquire);
        match Page::read(&self.shape, place.page, page) {
            Ok(mut read) => {
                match read.version(place.slot, self.seed, &mut Vec::new()) {
                    Ok(version) if version == must => {}
                    Ok(version) => self.counts.stale(row, version, must),
                    Err(text) => self.counts.fault(text),
                }
                read.put(place.slot, self.seed, must + 1);
            }
            Err(text) => {
                // Left as it is, for whoever looks into it.
                self.counts.fault(text);
                return Err(Error::WouldWait("a page that is whole"));
            }
        }
        guard.write_at(page, place.at).within(PATIENCE).await?;
        latest.store(must + 1, Ordering::Release);
        Ok(must + 1)
    }

    /// Whether it may be tried again; otherwise the error.
    fn refusal(&self, error: Error) -> Result<(), Error> {
        match error.advice() {
            Advice::Retry | Advice::Wait => {
                tracing::debug!(%error, "begun anew");
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl Counts {
    fn stale(&self, row: u32, version: u64, must: u64) {
        self.fault(format!(
            "row {row} was read at version {version}, last written was {must}"
        ));
    }

    fn fault(&self, text: String) {
        tracing::error!("{text}");
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < TOLD {
            faults.push(text);
        }
    }

    fn told(&self) -> Told {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        Told {
            lock_waits: self.lock_waits.load(Ordering::Relaxed),
            max_lock_wait_ms: self.max_lock_wait_ms.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            looks: self.looks.load(Ordering::Relaxed),
            faults: faults.clone(),
        }
    }
}

/// A way to update rows, for one writer.
pub struct Writer {
    shared: Arc<Shared>,
    locker: Locker,
    to_syncer: mpsc::Sender<Commit>,
    stop: CancellationToken,
}

impl Writer {
    pub fn shape(&self) -> &Shape {
        &self.shared.shape
    }

    /// Cancelled when the engine's writers are to stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Writes the next version of a row, and returns it; `None` where the engine stops.
    pub async fn update(&self, row: u32) -> Result<Option<u64>, Error> {
        let shared = &self.shared;
        let mut page = vec![0; shared.shape.page_bytes as usize];
        while !self.stop.is_cancelled() {
            let updated = tokio::select! {
                biased;
                updated = shared.update(&self.locker, row, &mut page) => updated,
                // S3 may not answer: what needs it is left undone.
                () = self.stop.cancelled() => break,
            };
            match updated {
                Ok(version) => return Ok(Some(version)),
                Err(Error::ShuttingDown { .. }) => break,
                Err(error) => shared.refusal(error)?,
            }
            sleep(AWAY).await;
        }
        Ok(None)
    }

    /// Makes all that this writer has written durable on this disk; false where the store has
    /// failed, which is told where the engine ends.
    pub async fn commit(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.to_syncer.send(Commit { done }).await.is_ok() && wait.await.is_ok()
    }
}
