//! What the committer and its callers share.
//!
//! Owns: the inbox, and the gauges. Each lock here is held for a few instructions and never
//! across a call on the file system; only the committer's own state is, and nobody but the
//! committer takes that.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::task::AtomicWaker;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::io::Io;
use crate::sync::Mutex;

use super::commit::Core;
use super::error::{JournalError, JournalFailure};
use super::frame::{Header, Mark, PayloadAt, What, frame_len};
use super::fs::{Fs, FsLock};
use super::index::{Index, Place};
use super::options::JournalOptions;
use super::record::{CommitSink, Location};
use super::segment::{self, Layout};
use super::stage::StagedPayload;
use super::tries::Tries;
use super::watch::Watch;

/// The bytes of a record, on their way.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Inline(Bytes),
    Staged(StagedPayload),
    /// Durable under `payload/`.
    File(u64),
}

/// A record, on its way.
#[derive(Debug)]
pub(super) struct Record {
    pub location: Location,
    pub kind: u8,
    pub what: What,
    pub head: Bytes,
    pub body: Body,
    pub sync: bool,
    pub vital: bool,
    /// Left out only where a synced note would wait.
    pub lasting: bool,
    /// Where it was copied from; `None` for one that is new.
    pub copy_of: Option<Place>,
    /// Somebody hears what becomes of it.
    pub reported: bool,
    /// It has been written to some segment, so a later open might find it.
    pub written: bool,
}

impl Record {
    pub(super) fn header(&self, mark: Mark) -> Header {
        let payload = match &self.body {
            Body::None => PayloadAt::None,
            // Lengths are bounded at append.
            Body::Inline(bytes) => PayloadAt::Inline(bytes.len() as u32),
            Body::Staged(staged) => PayloadAt::File(staged.len()),
            Body::File(len) => PayloadAt::File(*len),
        };
        Header {
            kind: self.kind,
            what: self.what,
            location: self.location,
            mark,
            head_len: self.head.len() as u32,
            payload,
        }
    }

    pub(super) fn inline(&self) -> &[u8] {
        match &self.body {
            Body::Inline(bytes) => bytes,
            Body::None | Body::Staged(_) | Body::File(_) => &[],
        }
    }

    pub(super) fn frame_bytes(&self) -> u64 {
        frame_len(self.head.len(), self.inline().len())
    }

    pub(super) fn owner(&self) -> Location {
        self.header(Mark::default()).owner()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Sealing,
    Closed,
    Failed,
}

/// Records that the committer has not taken yet.
#[derive(Debug)]
pub(super) struct Inbox {
    pub records: VecDeque<Record>,
    pub bytes: u64,
    pub next: Location,
    pub state: State,
    /// Somebody flushes: sync even what did not ask for it.
    pub force: bool,
    /// Look again whether there is room.
    pub poke: bool,
}

pub(super) struct Shared {
    pub fs: Arc<dyn Fs>,
    pub io: Io,
    pub options: JournalOptions,
    pub layout: Layout,
    pub journal: u128,
    pub inbox: Mutex<Inbox>,
    pub index: Mutex<Index>,
    pub watch: Arc<Mutex<Watch>>,
    pub spares: Mutex<Vec<PathBuf>>,
    /// Why the last spare could not be made.
    pub spare_error: Mutex<Option<JournalFailure>>,
    pub sink: Mutex<Option<Arc<dyn CommitSink>>>,
    pub wake: AtomicWaker,
    pub rng: Mutex<StdRng>,
    /// The open that is not over yet. Goes before the lock does.
    pub tries: Mutex<Option<Tries>>,
    pub failed_opens: u32,
    pub lock: Mutex<Option<Box<dyn FsLock>>>,
    /// Bytes of all files.
    pub disk: Arc<AtomicU64>,
    pub moved: AtomicBool,
    pub short: AtomicBool,
    pub poisoned: AtomicU64,
    pub groups: AtomicU64,
    pub core: Mutex<Core>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.layout.dir)
            .finish_non_exhaustive()
    }
}

pub(super) fn rng(seed: Option<u64>) -> StdRng {
    match seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::try_from_rng(&mut rand::rngs::SysRng)
            .unwrap_or_else(|_| StdRng::seed_from_u64(fallback_seed())),
    }
}

/// Where the operating system has no randomness to give: the address of a local and the process
/// id differ from process to process, which is what segment ids need.
fn fallback_seed() -> u64 {
    let here = 0_u8;
    (std::ptr::from_ref(&here).addr() as u64) ^ (u64::from(std::process::id()) << 32)
}

impl Shared {
    pub(super) fn sink(&self) -> Option<Arc<dyn CommitSink>> {
        self.sink.lock().clone()
    }

    pub(super) fn random_name(&self) -> String {
        format!("{:032x}", self.rng.lock().random::<u128>())
    }

    pub(super) fn grow(&self, bytes: u64) {
        self.disk.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn shrink(&self, bytes: u64) {
        self.disk.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of the largest frame that ends an owner.
    pub(super) fn end_bytes(&self) -> u64 {
        frame_len(self.options.end_head_bytes as usize, 0)
    }

    /// Makes one spare segment. Blocks.
    pub(super) fn make_spare(&self) {
        let bytes = self.options.segment_bytes;
        // One after the other: who has the index looks at the spares.
        let spares = self.spares.lock().len();
        let held = spares + self.index.lock().segments.len();
        let used = self.disk.load(Ordering::Relaxed);
        // What the journal needs to stand is not refused by its own limit.
        let limited = held >= 4 && used.saturating_add(bytes) > self.options.disk_limit;
        let path = self.layout.spare.join(self.random_name());
        let made = if limited {
            let full = std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!(
                    "disk_limit of {} bytes, {used} in use",
                    self.options.disk_limit
                ),
            );
            Err(JournalFailure::new("preallocating", &path, full))
        } else {
            segment::make_spare(&*self.fs, &path, bytes)
        };
        match made {
            Ok(()) => {
                self.grow(bytes);
                self.spares.lock().push(path);
                *self.spare_error.lock() = None;
            }
            Err(failure) => *self.spare_error.lock() = Some(failure),
        }
        self.wake.wake();
    }

    /// Whether the committer has something to do.
    pub(super) fn has_work(&self) -> bool {
        let inbox = self.inbox.lock();
        !inbox.records.is_empty() || inbox.force || inbox.poke || inbox.state == State::Sealing
    }

    /// Ends the journal: nothing is taken any more, files are closed, the lock is released.
    pub(super) fn close(&self, result: Result<(), JournalError>) {
        {
            let mut inbox = self.inbox.lock();
            if inbox.state != State::Failed {
                inbox.state = State::Closed;
            }
        }
        self.index.lock().clear();
        let tries = self.tries.lock().take();
        drop(tries);
        let lock = self.lock.lock().take();
        drop(lock);
        for waker in self.watch.lock().set_ended(result) {
            waker.wake();
        }
    }
}
