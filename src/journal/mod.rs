//! The append-only, checksummed local log: what survives `kill -9` and a power cut.
//!
//! Owns: records and payload files in one directory, group commit, recovery, reclaiming space.
//! Does not own: what records mean. It knows *owners* (begun by a record, live until another
//! ends them) and their notes; tasks, keys and receipts are the queue's.
//!
//! Nothing here needs an async runtime to decide anything: [`Journal::append`] puts a record
//! into a list, one committer ([`Journal::run`]) writes what is pending as one group through
//! [`Io`], and [`Journal::wait_durable`] is a plain future. [`Journal::drive`] runs the committer
//! on the calling thread: for simulations.
//!
//! Invariants, each with the file that keeps it:
//!
//! 1. *Durable* is said only of a record that an fdatasync covered, in a segment whose creation
//!    is durable (`commit.rs`, `segment.rs`).
//! 2. A file whose fsync failed is never asked again (`commit.rs`).
//! 3. No frame is forged, and no torn tail is taken for damage, nor the other way round
//!    (`frame.rs`, `recovery.rs`).
//! 4. An owner that ended durably never comes back, and a live one never goes (`reclaim.rs`).
//! 5. What has begun can end, whatever the disk has left (`room.rs`).
//!
//! The format is described in `docs/formats/journal.md`.

mod admit;
mod ahead;
mod commit;
mod error;
mod frame;
pub mod fs;
mod identity;
mod index;
mod inspect;
mod open;
mod options;
mod owners;
mod payload;
mod reclaim;
mod record;
mod recovery;
mod room;
mod segment;
mod settle;
mod shared;
mod stage;
mod stored;
mod tries;
mod watch;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::io::Io;

use commit::Turn;
pub use error::{JournalError, JournalFailure};
use frame::{HEADER_BYTES, MAX_HEAD_BYTES, PayloadAt, What, frame_len};
use fs::Fs;
pub(crate) use identity::this_process;
pub use inspect::{Inspection, SegmentInfo, inspect};
pub use options::{JournalOptions, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, OnDamage};
pub use payload::PayloadHandle;
pub use record::{Append, CommitSink, Effect, Location, Payload};
pub use recovery::{Damage, Label, Recovered, RecoveredNote, RecoveredOwner};
use shared::{Body, Record, Shared, State};
pub use stage::{StageSource, StagedPayload};
pub use stored::OwnerEntry;
pub use watch::WaitDurable;
use watch::Waits;

/// How long a committer that is short of room waits before it looks again.
const ROOM_RETRY: Duration = Duration::from_secs(1);
/// Turns on one trip to an I/O thread: then others get their turn.
const TURNS_A_TRIP: usize = 64;

/// A journal. A clone is the same journal.
///
/// Dropping the last one without [`Journal::seal`] loses nothing that was acknowledged; the next
/// open finds the journal unclean.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

/// A journal's figures at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    /// Location of the last record that, with all before it, is durable.
    pub durable: Location,
    /// The next location that will be assigned.
    pub next_location: Location,
    /// Records appended that the committer has not taken yet.
    pub pending_records: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Live owners.
    pub owners: u64,
    /// Bytes of live records in segments.
    pub live_bytes: u64,
    /// Segment files with records.
    pub segments: u64,
    /// Segment files held ready.
    pub spares: u64,
    /// Bytes on disk.
    pub disk_used_bytes: u64,
    /// New owners wait for disk room.
    pub short_of_space: bool,
    /// Segments given up because a write or an fdatasync failed, since open.
    pub poisoned_segments: u64,
    /// Group commits since open.
    pub groups: u64,
    /// The journal has failed, and why.
    pub failed: Option<String>,
}

impl Journal {
    /// Opens the directory, making it where it is missing, and recovers what is live.
    ///
    /// Blocks on the disk: call it through [`Io`]. A full disk does not fail it. What it returns
    /// takes memory by the number of live owners and the bytes of their heads;
    /// [`open_lean`](Self::open_lean) does not.
    ///
    /// # Errors
    /// [`JournalError::Locked`] where the directory is open already, here or in another process;
    /// [`JournalError::Version`]; [`JournalError::Damaged`] where the options ask for it (nothing
    /// was changed); [`JournalError::Failed`] where the disk refused to take the new segment;
    /// [`JournalError::Io`] where it could not be read.
    pub fn open(
        fs: Arc<dyn Fs>,
        io: Io,
        options: JournalOptions,
    ) -> Result<(Self, Recovered), JournalError> {
        let (journal, mut recovered) = Self::open_lean(fs, io, options, &|_, _| 0)?;
        let shared = &journal.shared;
        recovered.owners = shared.index.lock().read_all(&shared.layout)?;
        Ok((journal, recovered))
    }

    /// The same without the owners: they are read as they are wanted
    /// ([`owners`](Self::owners), [`owner`](Self::owner)). So it takes some 32 bytes for each of
    /// them, and as much again for each note. `label` is asked about each begin that is read.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_lean(
        fs: Arc<dyn Fs>,
        io: Io,
        options: JournalOptions,
        label: &Label,
    ) -> Result<(Self, Recovered), JournalError> {
        let (shared, recovered) = open::open(fs, io, options, label)?;
        Ok((Self { shared }, recovered))
    }

    /// Up to `most` live owners from `from` on, in order of location; those only whose begin is
    /// durable.
    #[must_use]
    pub fn owners(&self, from: Location, most: usize) -> Vec<OwnerEntry> {
        self.shared.index.lock().entries(from, most)
    }

    /// Reads a live owner's head and notes back; `None` where it is not live. Blocks on the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`]; [`JournalError::Corrupt`] where its record is not any more what was
    /// written.
    pub fn owner(&self, location: Location) -> Result<Option<RecoveredOwner>, JournalError> {
        let layout = &self.shared.layout;
        let stored = self.shared.index.lock().stored(layout, location);
        stored.map(|stored| stored.read()).transpose()
    }

    /// Opens in a row, before this one, in which the process died: between taking the lock and
    /// [`opened`](Self::opened). Counted where [`JournalOptions::count_opens`] says so.
    #[must_use]
    pub fn failed_opens(&self) -> u32 {
        self.shared.failed_opens
    }

    /// The open is over: a crash from here on is none of it. Blocks on the disk, for a removal
    /// and an fsync of the directory.
    pub fn opened(&self) {
        let tries = self.shared.tries.lock().take();
        drop(tries);
    }

    /// Says who hears what becomes of records. Before [`Journal::run`]: what was reported before
    /// is not repeated.
    pub fn set_sink(&self, sink: Arc<dyn CommitSink>) {
        *self.shared.sink.lock() = Some(sink);
    }

    /// The committer. It returns after [`Journal::seal`], or when the journal has failed; spawn
    /// it once.
    ///
    /// Where it is polled on a tokio runtime it looks for room by itself, once a second while it
    /// is short; elsewhere [`Journal::retry_space`] makes it look.
    ///
    /// # Cancel safety
    /// A group that is being written is finished and published on its I/O thread; then the
    /// journal stands still until `run` is called again.
    pub async fn run(&self) {
        let shared = &self.shared;
        let mut spare: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
        loop {
            let on_thread = Arc::clone(shared);
            let turn = match shared.io.run(move || on_thread.turns()).await {
                Ok(turn) => turn,
                Err(error) => {
                    let cause = JournalFailure::new("committing in", &shared.layout.dir, error);
                    shared.core.lock().fail(shared, &cause);
                    return;
                }
            };
            if turn.done {
                return;
            }
            if turn.want_spare && spare.is_none() {
                let on_thread = Arc::clone(shared);
                let io = shared.io.clone();
                spare = Some(Box::pin(async move {
                    // A failure is noted where the committer looks for it.
                    let _ = io.run(move || on_thread.make_spare()).await;
                }));
            }
            if turn.more {
                continue;
            }
            let short = shared.short.load(Ordering::Relaxed);
            let mut timer = (short && tokio::runtime::Handle::try_current().is_ok())
                .then(|| Box::pin(tokio::time::sleep(ROOM_RETRY)));
            poll_fn(|context| {
                shared.wake.register(context.waker());
                if let Some(making) = &mut spare
                    && making.as_mut().poll(context).is_ready()
                {
                    spare = None;
                    return Poll::Ready(());
                }
                if let Some(timer) = &mut timer
                    && timer.as_mut().poll(context).is_ready()
                {
                    shared.inbox.lock().poke = true;
                    return Poll::Ready(());
                }
                if shared.has_work() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        }
    }

    /// Runs the committer on this thread until nothing is left to do, spare segments included.
    /// For simulations, and for programs without a runtime: never beside [`Journal::run`].
    pub fn drive(&self) {
        loop {
            let turn = self.shared.turns();
            if turn.done {
                return;
            }
            if turn.want_spare {
                self.shared.make_spare();
                continue;
            }
            if !turn.more && !self.shared.has_work() {
                return;
            }
        }
    }

    /// Appends a record: assigns its location and wakes the committer. Does not block.
    ///
    /// What is pending is kept in memory; how much that may be is for the caller's admission to
    /// bound ([`JournalStatus::pending_bytes`]).
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] where a part of the record is over its limit (nothing was
    /// appended); [`JournalError::Closed`]; [`JournalError::Failed`].
    pub fn append(&self, record: Append) -> Result<Location, JournalError> {
        let shared = &*self.shared;
        self.check(&record)?;
        let optional = !record.sync && matches!(record.effect, Effect::Note { .. });
        let body = match record.payload {
            Payload::None => Body::None,
            Payload::Inline(bytes) => Body::Inline(bytes),
            Payload::Staged(staged) => Body::Staged(staged),
        };
        let mut record = Record {
            location: 0,
            kind: record.kind,
            what: What::Effect(record.effect),
            head: record.head,
            body,
            sync: !optional,
            vital: record.vital,
            lasting: record.lasting,
            copy_of: None,
            reported: true,
            written: false,
        };
        let bytes = record.frame_bytes();
        let location = {
            let mut inbox = shared.inbox.lock();
            match inbox.state {
                State::Open => {}
                State::Sealing | State::Closed => return Err(JournalError::Closed),
                State::Failed => {
                    drop(inbox);
                    return Err(self.failure());
                }
            }
            record.location = inbox.next;
            inbox.next += 1;
            inbox.bytes += bytes;
            let location = record.location;
            inbox.records.push_back(record);
            location
        };
        shared.wake.wake();
        Ok(location)
    }

    fn check(&self, record: &Append) -> Result<(), JournalError> {
        let limit = |what, len: usize, max: usize| {
            if len > max {
                Err(JournalError::TooLarge {
                    what,
                    len: len as u64,
                    max: max as u64,
                })
            } else {
                Ok(())
            }
        };
        match record.effect {
            Effect::End { .. } => {
                limit("the head of an end", record.head.len(), self.end_head_max())?
            }
            Effect::Begin | Effect::Note { .. } => {
                limit("a record's head", record.head.len(), MAX_HEAD_BYTES)?;
            }
        }
        if let Payload::Inline(bytes) = &record.payload {
            limit(
                "an inline payload",
                bytes.len(),
                self.inline_limit() as usize,
            )?;
        }
        if record.effect != Effect::Begin && !matches!(record.payload, Payload::None) {
            return limit("the payload of a note or end", 1, 0);
        }
        Ok(())
    }

    fn failure(&self) -> JournalError {
        let watch = self.shared.watch.lock();
        watch.failed().map_or(JournalError::Closed, |cause| {
            JournalError::Failed(cause.clone())
        })
    }

    /// Makes a payload file from `source`, on an I/O thread and without an fsync: the committer
    /// makes it durable before the record that names it. Dropped without being appended, it is
    /// removed.
    ///
    /// # Errors
    /// [`JournalError::Io`]. A source that was to be renamed or linked is then where it was.
    ///
    /// # Cancel safety
    /// Cancelled after it has begun, it finishes and removes what it made; a file that was to be
    /// adopted by rename is then gone.
    pub async fn stage(&self, source: StageSource) -> Result<StagedPayload, JournalError> {
        let shared = Arc::clone(&self.shared);
        let staging = shared.layout.staging.clone();
        let work = move || {
            let path = shared.layout.staging.join(shared.random_name());
            let gauge = Arc::clone(&shared.disk);
            StagedPayload::make(Arc::clone(&shared.fs), path, &source, gauge)
        };
        match self.shared.io.run(work).await {
            Ok(staged) => staged,
            Err(error) => Err(JournalError::io("staging in", staging, error)),
        }
    }

    /// Waits until `location` is durable, or will not be. Waits for no other location.
    pub fn wait_durable(&self, location: Location) -> WaitDurable {
        WaitDurable::new(Arc::clone(&self.shared.watch), Waits::One(location))
    }

    /// Waits until a record is written, so that it survives this process, if not the power: no
    /// fdatasync is waited for. One that waits for room is not waited for either.
    pub(crate) fn wait_written(&self, location: Location) -> WaitDurable {
        WaitDurable::new(Arc::clone(&self.shared.watch), Waits::Written(location))
    }

    /// Whether records wait for room on the disk.
    pub(crate) fn is_short(&self) -> bool {
        self.shared.short.load(Ordering::Relaxed)
    }

    /// The last location that, with all before it, is durable (or was reported otherwise).
    #[must_use]
    pub fn durable(&self) -> Location {
        self.shared.watch.lock().durable()
    }

    /// Makes everything appended so far durable, notes that asked for no sync included.
    ///
    /// # Errors
    /// [`JournalError::Void`] or [`JournalError::Undetermined`] where one of those records is.
    ///
    /// # Cancel safety
    /// Dropping it cancels the wait only.
    pub async fn flush(&self) -> Result<(), JournalError> {
        let from = self.durable().saturating_add(1);
        let to = {
            let mut inbox = self.shared.inbox.lock();
            inbox.force |= inbox.state == State::Open;
            inbox.next - 1
        };
        self.shared.wake.wake();
        WaitDurable::new(Arc::clone(&self.shared.watch), Waits::All { from, to }).await
    }

    /// Takes no more records, makes what was appended durable, writes the clean mark, closes all
    /// files and releases `LOCK`. Asked again, it gives the same answer.
    ///
    /// Records that still wait for disk room are void then. With a disk that hangs this waits:
    /// the caller's own deadline ends the wait, no clean mark is written, and `LOCK` stays with
    /// the process.
    ///
    /// # Errors
    /// Where the clean mark could not be made durable; nothing that was acknowledged is lost.
    ///
    /// # Cancel safety
    /// Sealing goes on; asked again, it is joined.
    pub async fn seal(&self) -> Result<(), JournalError> {
        {
            let mut inbox = self.shared.inbox.lock();
            if inbox.state == State::Open {
                inbox.state = State::Sealing;
            }
            if inbox.state == State::Failed {
                drop(inbox);
                self.shared.close(Err(self.failure()));
            }
        }
        self.shared.wake.wake();
        WaitDurable::new(Arc::clone(&self.shared.watch), Waits::End).await
    }

    /// Where a live owner's bytes are; `None` where it has none, or is not live. An owner is known
    /// here once it is durable.
    #[must_use]
    pub fn payload(&self, owner: Location) -> Option<PayloadHandle> {
        let index = self.shared.index.lock();
        let entry = index.owner(owner)?;
        match entry.payload {
            PayloadAt::None => None,
            PayloadAt::Inline(len) => {
                let segment = index.segments.get(&u64::from(entry.begin.segment))?;
                let offset =
                    u64::from(entry.begin.offset) + HEADER_BYTES as u64 + u64::from(entry.head_len);
                Some(PayloadHandle::inline(
                    Arc::clone(&segment.file),
                    offset,
                    u64::from(len),
                ))
            }
            PayloadAt::File(len) => {
                let path = self.shared.layout.payload_of(owner);
                Some(PayloadHandle::file(Arc::clone(&self.shared.fs), path, len))
            }
        }
    }

    /// Disk bytes that admission must charge for an owner: its record, one copy of it, its end,
    /// and its payload file.
    #[must_use]
    pub fn need(&self, head_len: usize, payload_len: u64, external: bool) -> u64 {
        let inline = if external { 0 } else { payload_len };
        let record = frame_len(head_len, usize::try_from(inline).unwrap_or(usize::MAX / 4));
        let file = if external { payload_len } else { 0 };
        2 * record + self.shared.end_bytes() + file
    }

    /// Payloads of up to this many bytes may be inline.
    #[must_use]
    pub fn inline_limit(&self) -> u64 {
        self.shared.options.inline_limit()
    }

    /// Whether a payload of this length must be staged.
    #[must_use]
    pub fn is_external(&self, payload_len: u64) -> bool {
        payload_len > self.inline_limit()
    }

    /// Longest head of a record that ends an owner, in bytes.
    #[must_use]
    pub fn end_head_max(&self) -> usize {
        self.shared.options.end_head_bytes as usize
    }

    /// Bytes of all files in the directory: segments, spares, payloads, staged files.
    #[must_use]
    pub fn disk_used(&self) -> u64 {
        self.shared.disk.load(Ordering::Relaxed)
    }

    /// Whether the directory is a copy, or was moved to another file system: nothing may be sent
    /// until [`Journal::adopt`].
    #[must_use]
    pub fn moved(&self) -> bool {
        self.shared.moved.load(Ordering::Relaxed)
    }

    /// Says that this directory is the journal now. Blocks on the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it is still moved then.
    pub fn adopt(&self) -> Result<(), JournalError> {
        let shared = &*self.shared;
        let stat = shared
            .fs
            .stat(&shared.layout.lock)
            .map_err(|error| JournalError::io("stat of", &shared.layout.lock, error))?;
        let new = identity::Identity::new(shared.journal, &stat);
        identity::write(&*shared.fs, &shared.layout, &new)?;
        shared.moved.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the committer look again whether there is room.
    pub fn retry_space(&self) {
        self.shared.inbox.lock().poke = true;
        self.shared.wake.wake();
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.shared.layout.dir
    }

    /// The journal's random id: a copy of the directory has the same.
    #[must_use]
    pub fn journal_id(&self) -> u128 {
        self.shared.journal
    }

    /// The journal's figures now.
    #[must_use]
    pub fn status(&self) -> JournalStatus {
        let shared = &*self.shared;
        let (next_location, pending_records, pending_bytes) = {
            let inbox = shared.inbox.lock();
            (inbox.next, inbox.records.len() as u64, inbox.bytes)
        };
        let (durable, failed) = {
            let watch = shared.watch.lock();
            (watch.durable(), watch.failed().map(ToString::to_string))
        };
        let index = shared.index.lock();
        JournalStatus {
            durable,
            next_location,
            pending_records,
            pending_bytes,
            owners: index.len(),
            live_bytes: index.live(),
            segments: index.segments.len() as u64,
            spares: shared.spares.lock().len() as u64,
            disk_used_bytes: self.disk_used(),
            short_of_space: shared.short.load(Ordering::Relaxed),
            poisoned_segments: shared.poisoned.load(Ordering::Relaxed),
            groups: shared.groups.load(Ordering::Relaxed),
            failed,
        }
    }
}

impl Shared {
    /// Turns until nothing is pending, or others should have theirs.
    fn turns(&self) -> Turn {
        let mut turn = Turn::default();
        for _ in 0..TURNS_A_TRIP {
            turn = self.turn();
            if turn.done || turn.want_spare || !turn.more {
                break;
            }
        }
        turn
    }
}
