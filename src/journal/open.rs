//! Opening a directory.
//!
//! Owns: the order in which a directory is locked, read, checked, tidied and taken into use.
//!
//! Invariants:
//!
//! 1. Nothing is changed before the log was read and, where the options ask for it, refused.
//! 2. The first thing written is a new segment whose first frame takes the clean mark away; with
//!    it goes a copy of the tail that nothing proves to be durable: it may be readable and yet
//!    not on the disk (an fdatasync failed, the process died, the pages are still there).
//! 3. What that makes superfluous (old segments behind the mark, payload files that no record
//!    names) goes only after it is durable: the record that ends an owner may be in the tail.
//! 4. A full disk does not fail an open: the new segment is written as soon as there is room,
//!    and nothing else is before.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::task::AtomicWaker;
use rand::RngExt;

use crate::io::Io;
use crate::sync::Mutex;

use super::commit::{Core, Stall, mark_record};
use super::error::JournalError;
use super::frame::{KIND_OPENED, Mark, SegmentEnd, Start};
use super::fs::{Fs, OpenMode};
use super::identity::{self, Identity};
use super::options::{JournalOptions, OnDamage};
use super::reclaim::{Gone, copy_record};
use super::record::Location;
use super::recovery::{self, Damage, Label, Recovered, Scan, TailFrame};
use super::segment::{At, Layout, Reader};
use super::shared::{Inbox, Record, Shared, State, rng};
use super::tries::Tries;
use super::watch::Watch;

/// Spare files that an open keeps.
const KEEP_SPARES: usize = 8;

/// What the first turn has to write before any other.
#[derive(Debug)]
pub(super) struct Opening {
    tail: Vec<TailFrame>,
    mark: Mark,
    before_mark: Option<SegmentEnd>,
    mark_only: bool,
    clean: bool,
    damaged: bool,
    /// Segments that were removed, and came back.
    returned: Vec<u64>,
}

/// Opens a directory: see [`Journal::open`](super::Journal::open).
pub(super) fn open(
    fs: Arc<dyn Fs>,
    io: Io,
    options: JournalOptions,
    label: &Label,
) -> Result<(Arc<Shared>, Recovered), JournalError> {
    let options = options.checked()?;
    let layout = Layout::new(&options.dir);
    make_dirs(&*fs, &layout)?;
    let lock = identity::lock(&*fs, &layout)?;
    let tries = options.count_opens.then(|| Tries::begin(&fs, &layout));
    crate::crash_point::crash_point("open.counted");
    let stat = fs
        .stat(&layout.lock)
        .map_err(|error| JournalError::io("stat of", &layout.lock, error))?;
    let known = identity::read(&*fs, &layout)?;
    let scan = recovery::scan(&*fs, &layout, label)?;
    crate::crash_point::crash_point("open.scanned");
    if options.on_damage == OnDamage::Refuse && !scan.recovered.damage.is_empty() {
        return Err(JournalError::Damaged(scan.recovered.damage));
    }

    let mut rng = rng(options.seed);
    let Whose { journal, moved } = whose(&layout, known, &scan, &stat, || rng.random())?;
    let Scan {
        mut index,
        mut recovered,
        tail,
        mark,
        before_mark,
        mark_only,
        next_number,
        ..
    } = scan;
    recovered.moved = moved;
    if known.is_none() && scan.journal.is_none() {
        // Whatever is here was never ours to empty.
        for dir in [&layout.staging, &layout.payload, &layout.spare] {
            let names = fs
                .read_dir(dir)
                .map_err(|error| JournalError::io("listing", dir, error))?;
            if !names.is_empty() {
                return Err(JournalError::Corrupt {
                    path: dir.clone(),
                    text: "has files, and the directory is no journal's".into(),
                });
            }
        }
    }
    if known.is_none() && !moved {
        identity::write(&*fs, &layout, &Identity::new(journal, &stat))?;
    }
    identity::sign(&*fs, &layout, options.holder.as_deref());
    keep_damage(
        &*fs,
        &layout,
        &index,
        &scan.unreadable,
        &mut recovered.damage,
    );
    empty(&*fs, &layout.staging)?;
    let spares = keep_spares(&*fs, &layout, &options, &index)?;

    let segments: u64 = index.segments.values().map(|segment| segment.bytes).sum();
    let payloads: u64 = index
        .owners_from(0)
        .filter(|(_, owner)| owner.is_file())
        .filter_map(|(_, owner)| owner.payload.len())
        .sum();
    let disk = segments + payloads + spares.len() as u64 * options.segment_bytes;
    let clean = recovered.clean;
    if !clean && let Some(segment) = index.segments.get_mut(&mark.segment) {
        segment.poisoned = true;
    }
    let core = Core {
        mark,
        next_number,
        opening: Some(Opening {
            tail,
            mark,
            before_mark,
            mark_only,
            clean,
            damaged: !recovered.damage.is_empty(),
            returned: scan.returned,
        }),
        ..Core::default()
    };
    let next = recovered.next_location;
    let shared = Arc::new(Shared {
        fs,
        io,
        options,
        layout,
        journal,
        inbox: Mutex::new(Inbox {
            records: std::collections::VecDeque::new(),
            bytes: 0,
            next,
            state: State::Open,
            force: false,
            poke: false,
        }),
        index: Mutex::new(index),
        watch: Arc::new(Mutex::new(Watch::new(next - 1))),
        spares: Mutex::new(spares),
        spare_error: Mutex::new(None),
        sink: Mutex::new(None),
        wake: AtomicWaker::new(),
        rng: Mutex::new(rng),
        failed_opens: tries.as_ref().map_or(0, Tries::before),
        tries: Mutex::new(tries),
        lock: Mutex::new(Some(lock)),
        disk: Arc::new(AtomicU64::new(disk)),
        moved: AtomicBool::new(moved),
        short: AtomicBool::new(false),
        poisoned: AtomicU64::new(0),
        groups: AtomicU64::new(0),
        core: Mutex::new(core),
    });
    {
        let core = &mut *shared.core.lock();
        match core.open_log(&shared) {
            Ok(()) => {}
            Err(Stall::Room) => {
                tracing::warn!("the journal opens without room: nothing is durable until there is");
                recovered.next_location = skip_locations(&shared);
            }
            Err(Stall::Failed(cause)) => return Err(JournalError::Failed(cause)),
        }
    }
    Ok((shared, recovered))
}

/// Nothing on the disk will tell the next open which locations this one assigned, if it ends
/// before there is room: so it takes them from a place of its own.
fn skip_locations(shared: &Shared) -> Location {
    let jump = shared.rng.lock().random_range(1..1_u64 << 20) << 20;
    let next = {
        let mut inbox = shared.inbox.lock();
        inbox.next += jump;
        inbox.next
    };
    shared.watch.lock().advance(&[], next - 1);
    next
}

struct Whose {
    journal: u128,
    moved: bool,
}

fn whose(
    layout: &Layout,
    known: Option<Identity>,
    scan: &Scan,
    lock: &super::fs::Stat,
    fresh: impl FnOnce() -> u128,
) -> Result<Whose, JournalError> {
    match (known, scan.journal) {
        (Some(known), Some(segments)) if known.journal != segments => Err(JournalError::Corrupt {
            path: layout.identity.clone(),
            text: "the segments belong to another journal".into(),
        }),
        (Some(known), _) => Ok(Whose {
            journal: known.journal,
            moved: known != Identity::new(known.journal, lock),
        }),
        // Segments without an identity: somebody copied a part of a directory.
        (None, Some(journal)) => Ok(Whose {
            journal,
            moved: true,
        }),
        (None, None) => Ok(Whose {
            journal: fresh(),
            moved: !scan.unreadable.is_empty(),
        }),
    }
}

fn make_dirs(fs: &dyn Fs, layout: &Layout) -> Result<(), JournalError> {
    for dir in [
        &layout.dir,
        &layout.segments,
        &layout.spare,
        &layout.payload,
        &layout.staging,
        &layout.damage,
    ] {
        if fs.stat(dir).is_err() {
            fs.create_dir_all(dir)
                .map_err(|error| JournalError::io("making", dir, error))?;
        }
    }
    // Whoever made them may have died before they were durable: only `IDENTITY`, which comes
    // after this, proves that they are.
    if fs.stat(&layout.identity).is_ok() {
        return Ok(());
    }
    for dir in layout
        .dir
        .ancestors()
        .filter(|dir| !dir.as_os_str().is_empty())
    {
        match fs.sync_dir(dir) {
            // Further up lie directories that are not ours to open, and were there before.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            synced => synced.map_err(|error| JournalError::io("fsync of", dir, error))?,
        }
    }
    Ok(())
}

/// Keeps the raw bytes of what is damaged, under a name that is the same at every open.
fn keep_damage(
    fs: &dyn Fs,
    layout: &Layout,
    index: &super::index::Index,
    unreadable: &[(PathBuf, usize)],
    damage: &mut [Damage],
) {
    let mut made = false;
    for (at, lost) in damage.iter_mut().enumerate() {
        let name = format!("segment-{:020}-{}-{}", lost.segment, lost.offset, lost.len);
        let to = layout.damage.join(name);
        let kept = match unreadable.iter().find(|(_, which)| *which == at) {
            Some((path, _)) => {
                made = true;
                fs.rename(path, &to)
            }
            None if fs.stat(&to).is_ok() => Ok(()),
            None => {
                made = true;
                keep_bytes(fs, layout, index, lost, &to)
            }
        };
        match kept {
            Ok(()) => lost.kept = Some(to),
            // A full disk must not keep a journal from opening: the bytes are where they were
            // until the segment goes.
            Err(error) => {
                tracing::error!(%error, path = %to.display(), "damaged bytes were not kept");
            }
        }
    }
    if made {
        for dir in [&layout.damage, &layout.segments] {
            if let Err(error) = fs.sync_dir(dir) {
                tracing::error!(%error, "damaged bytes may not be kept durably");
            }
        }
    }
}

fn keep_bytes(
    fs: &dyn Fs,
    layout: &Layout,
    index: &super::index::Index,
    lost: &Damage,
    to: &Path,
) -> io::Result<()> {
    let Some(segment) = index.segments.get(&lost.segment) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let bytes = recovery::raw(&*segment.file, lost, &layout.segment(lost.segment))
        .map_err(io::Error::other)?;
    // Written aside: a half-written file must not pass for a kept one at the next open.
    let aside = layout.damage.join("writing");
    let _ = fs.unlink(&aside);
    let written = (|| {
        let file = fs.open(&aside, OpenMode::CreateNew)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs.rename(&aside, to)
    })();
    if written.is_err() {
        let _ = fs.unlink(&aside);
    }
    written
}

/// Removes all files in a directory.
fn empty(fs: &dyn Fs, dir: &Path) -> Result<(), JournalError> {
    let names = fs
        .read_dir(dir)
        .map_err(|error| JournalError::io("listing", dir, error))?;
    for name in names {
        let path = dir.join(name);
        match fs.unlink(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(JournalError::io("removing", path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keeps whole spares, and removes the rest of that directory.
fn keep_spares(
    fs: &dyn Fs,
    layout: &Layout,
    options: &JournalOptions,
    index: &super::index::Index,
) -> Result<Vec<PathBuf>, JournalError> {
    let failed = |error| JournalError::io("listing", &layout.spare, error);
    // A power cut may bring back the old name of a segment that once was a spare, and of a spare
    // that was a segment in between: no file is taken twice.
    let mut inodes = HashSet::new();
    for number in index.segments.keys() {
        let path = layout.segment(*number);
        let stat = fs
            .stat(&path)
            .map_err(|error| JournalError::io("stat of", &path, error))?;
        inodes.insert(stat.inode);
    }
    let mut spares = Vec::new();
    for name in fs.read_dir(&layout.spare).map_err(failed)? {
        let path = layout.spare.join(name);
        let stat = fs
            .stat(&path)
            .map_err(|error| JournalError::io("stat of", &path, error))?;
        let whole = stat.len == options.segment_bytes && inodes.insert(stat.inode);
        if whole && spares.len() < KEEP_SPARES {
            spares.push(path);
        } else {
            fs.unlink(&path)
                .map_err(|error| JournalError::io("removing", &path, error))?;
        }
    }
    Ok(spares)
}

impl Core {
    /// Writes the first segment of this open, then tidies up behind it.
    pub(super) fn open_log(&mut self, shared: &Shared) -> Result<(), Stall> {
        let Some(opening) = self.opening.take() else {
            return Ok(());
        };
        match self.write_opening(shared, &opening) {
            Ok(first) => {
                self.tidy(shared, &opening, first);
                Ok(())
            }
            Err(stall) => {
                self.queue.clear();
                self.opening = Some(opening);
                Err(stall)
            }
        }
    }

    /// Returns the number of the segment that has the tail now: it may have been left already.
    fn write_opening(&mut self, shared: &Shared, opening: &Opening) -> Result<u64, Stall> {
        let copies = self.read_tail(shared, opening).map_err(|error| {
            Stall::Failed(super::error::JournalFailure::new(
                "reading",
                &shared.layout.segments,
                error,
            ))
        })?;
        let start = Start {
            ends: opening.before_mark.into_iter().collect(),
            condition: 0,
            oldest: 0,
            after_clean: opening.clean,
        };
        let copied = !copies.is_empty();
        self.write_first(shared, &start, copies)?;
        let first = self.mark.segment;
        if copied {
            // Proves that the copies are durable: the next open need not copy them again.
            let highest = shared.inbox.lock().next - 1;
            self.queue.push_back(mark_record(KIND_OPENED, highest));
            match self.write_out(shared, true) {
                // It is written with what comes next.
                Ok(()) | Err(Stall::Room) => {}
                Err(failed @ Stall::Failed(_)) => return Err(failed),
            }
        }
        Ok(first)
    }

    fn read_tail(&self, shared: &Shared, opening: &Opening) -> io::Result<Vec<Record>> {
        let index = shared.index.lock();
        let mut copies = Vec::with_capacity(opening.tail.len());
        for frame in &opening.tail {
            let Some(segment) = index.segments.get(&u64::from(frame.place.segment)) else {
                continue;
            };
            let offset = u64::from(frame.place.offset);
            let limit = offset + u64::from(frame.place.len);
            let mut reader = Reader::new(&*segment.file, segment.id, limit);
            let At::Frame(header, body) = reader.at(offset)? else {
                return Err(io::Error::other(
                    "a record changed while the journal was opened",
                ));
            };
            copies.push(copy_record(&header, body, None));
        }
        Ok(copies)
    }

    /// Removes what the new segment, `first`, has made superfluous.
    fn tidy(&mut self, shared: &Shared, opening: &Opening, first: u64) {
        let mark = opening.mark.segment;
        let gone: Vec<u64> = {
            let index = shared.index.lock();
            let numbers = index.segments.values().filter(|segment| segment.live == 0);
            numbers
                .map(|segment| segment.number)
                .filter(|number| {
                    (*number > mark || (*number == mark && opening.mark_only)) && *number < first
                })
                .collect()
        };
        for number in &opening.returned {
            // If this fails as well, the first frames still say that it does not count.
            let _ = shared.fs.unlink(&shared.layout.segment(*number));
        }
        // Newest first: their ends were stated by the one behind them, and now by the new one.
        for number in gone.into_iter().rev() {
            let Some(segment) = shared.index.lock().segments.remove(&number) else {
                continue;
            };
            match self.remove_file(shared, &segment, true) {
                Ok(()) => {}
                Err(Gone::No(error) | Gone::Unknown(error)) => {
                    // It holds nothing that counts; the next open tries again.
                    tracing::warn!(%error, segment = number, "cannot remove an empty segment");
                    break;
                }
            }
        }
        if let Err(error) = remove_unnamed(shared, opening.damaged) {
            tracing::warn!(%error, "payload files that no record names are left");
        }
        let damage = match shared.fs.read_dir(&shared.layout.damage) {
            Ok(names) => names
                .iter()
                .filter_map(|name| shared.fs.stat(&shared.layout.damage.join(name)).ok())
                .map(|stat| stat.len)
                .sum(),
            Err(_) => 0,
        };
        shared.disk.fetch_add(damage, Ordering::Relaxed);
    }
}

/// Removes payload files that no record names; where records were lost to damage, keeps them
/// with it: one of them may be theirs.
fn remove_unnamed(shared: &Shared, damaged: bool) -> io::Result<()> {
    for name in shared.fs.read_dir(&shared.layout.payload)? {
        let location = name.to_str().and_then(|name| name.parse::<Location>().ok());
        let named = location.is_some_and(|location| {
            shared
                .index
                .lock()
                .owner(location)
                .is_some_and(|owner| owner.is_file())
        });
        if named {
            continue;
        }
        let path = shared.layout.payload.join(&name);
        if damaged {
            let mut kept = std::ffi::OsString::from("payload-");
            kept.push(&name);
            shared.fs.rename(&path, &shared.layout.damage.join(kept))?;
        } else {
            shared.fs.unlink(&path)?;
        }
    }
    Ok(())
}
