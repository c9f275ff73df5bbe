//! A file system in memory that fails, tears and forgets: the other side of
//! [`crate::journal::fs::Fs`].
//!
//! Owns: what is durable and what is not, faults, capacity, locks. Keeps to what Linux file
//! systems may do, at their worst:
//!
//! 1. Data that was not synced is, after a [`SimFs::crash`], there or not, for every 512-byte
//!    sector by itself; a file's length likewise.
//! 2. A name that was not synced is there or not, each by itself and in any order. A rename is
//!    atomic; the old name of a file renamed to another directory may come back until its own
//!    directory is synced.
//! 3. After a failed fsync the data is readable, is *clean*, and is lost at the next crash: a
//!    later fsync that succeeds does not bring it.
//!    The same with names, after a failed fsync of their directory; directories excepted.
//! 4. A failed write may have written a part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::journal::fs::{Fs, FsFile, FsLock, OpenMode, Stat};

use super::hook::Hook;

const SECTOR: usize = 512;

/// A kind of call, to count and to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// Opening an existing file.
    Open,
    /// Creating a file.
    Create,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Preallocating.
    Preallocate,
    /// Punching a hole.
    Punch,
    /// Reserving blocks.
    Reserve,
    /// fsync and fdatasync of a file.
    Sync,
    /// stat.
    Stat,
    /// flock.
    Lock,
    /// mkdir.
    CreateDir,
    /// Listing a directory.
    ReadDir,
    /// rename.
    Rename,
    /// link.
    Link,
    /// unlink.
    Unlink,
    /// fsync of a directory.
    SyncDir,
    /// statvfs.
    FreeSpace,
}

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which calls count; `None`: all of them.
    pub call: Option<Call>,
    /// How many of them pass first.
    pub after: u64,
    /// The errno it fails with (5: EIO, 24: EMFILE, 28: ENOSPC).
    pub errno: i32,
    /// Whether every one from there on fails, or one only.
    pub forever: bool,
}

/// EIO.
pub const EIO: i32 = 5;
/// EMFILE.
pub const EMFILE: i32 = 24;
/// ENOSPC.
pub const ENOSPC: i32 = 28;

#[derive(Debug, Clone, Default)]
struct Node {
    data: Vec<u8>,
    /// Length that survives a crash.
    durable_len: usize,
    /// What a sector holds on the platter, for those written since the last good sync.
    dirty: BTreeMap<usize, Vec<u8>>,
    /// The same for sectors that a failed sync made clean without writing them.
    lost: BTreeMap<usize, Vec<u8>>,
    is_dir: bool,
    born: Duration,
    modified: Duration,
    open: usize,
    links: usize,
}

#[derive(Debug, Clone)]
enum NameOp {
    Add {
        path: PathBuf,
        inode: u64,
    },
    Remove {
        path: PathBuf,
    },
    /// Atomic: the new name appears and the old one goes.
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: u64,
    },
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Add { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            Self::Remove { path } => {
                names.remove(path);
            }
            Self::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
        }
    }
}

/// A fault, and how many calls that it is for there have been.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    under: Option<PathBuf>,
    seen: u64,
}

#[derive(Debug, Default)]
struct Disk {
    nodes: HashMap<u64, Node>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending: Vec<NameOp>,
    next_inode: u64,
    clock: u64,
    locks: BTreeSet<u64>,
    /// Handles of an earlier generation belong to a process that is dead.
    generation: u64,
    faults: Vec<Armed>,
    counts: BTreeMap<Call, u64>,
    total: u64,
    capacity: Option<u64>,
    log: Option<Vec<String>>,
    /// Names that changed and files that were closed since the last look for what is left over.
    left_over: usize,
    hook: Option<Hook<Call>>,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: Mutex<u64>,
}

/// A file system in memory. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    gate: Arc<Gate>,
    /// The process that this handle belongs to, if it belongs to one.
    process: Option<u64>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl Disk {
    /// Counts a call; the fault that it meets, if any.
    fn enter(&mut self, call: Call, what: impl Fn() -> String) -> io::Result<()> {
        self.total += 1;
        self.clock += 1;
        *self.counts.entry(call).or_default() += 1;
        if let Some(log) = &mut self.log {
            log.push(format!("{call:?} {}", what()));
        }
        let mut hit = None;
        for armed in &mut self.faults {
            let Armed { fault, under, seen } = armed;
            let elsewhere = |under: &PathBuf| !Path::new(&what()).starts_with(under);
            if fault.call.is_some_and(|only| only != call) || under.as_ref().is_some_and(elsewhere)
            {
                continue;
            }
            *seen += 1;
            let due = if fault.forever {
                *seen > fault.after
            } else {
                *seen == fault.after + 1
            };
            if due {
                hit = hit.or(Some(fault.errno));
            }
        }
        hit.map_or(Ok(()), |errno| Err(os(errno)))
    }

    fn used(&self) -> u64 {
        // What only a crash could bring back takes no room.
        let here = |node: &&Node| !node.is_dir && (node.links > 0 || node.open > 0);
        self.nodes
            .values()
            .filter(here)
            .map(|node| node.data.len() as u64)
            .sum()
    }

    fn room_for(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + more > capacity => Err(os(ENOSPC)),
            _ => Ok(()),
        }
    }

    fn add_node(&mut self, is_dir: bool) -> u64 {
        self.next_inode += 1;
        let at = Duration::from_nanos(self.clock);
        let node = Node {
            is_dir,
            born: at,
            modified: at,
            ..Node::default()
        };
        self.nodes.insert(self.next_inode, node);
        self.next_inode
    }

    fn change(&mut self, op: NameOp) {
        let (gone, new) = match &op {
            NameOp::Add { path, inode } => ([Some(path), None], Some(*inode)),
            NameOp::Remove { path } => ([Some(path), None], None),
            NameOp::Rename { from, to, inode } => ([Some(from), Some(to)], Some(*inode)),
        };
        for path in gone.into_iter().flatten() {
            if let Some(inode) = self.names.get(path)
                && let Some(node) = self.nodes.get_mut(inode)
            {
                node.links = node.links.saturating_sub(1);
            }
        }
        op.apply(&mut self.names);
        if let Some(node) = new.and_then(|inode| self.nodes.get_mut(&inode)) {
            node.links += 1;
        }
        self.pending.push(op);
        self.collect_in_time();
    }

    /// Forgets what nobody can reach, when there may be as much of it as of anything else: each
    /// look is at all there is.
    fn collect_in_time(&mut self) {
        self.left_over += 1;
        if self.left_over > self.nodes.len() {
            self.collect();
        }
    }

    /// Forgets files that nobody can reach.
    fn collect(&mut self) {
        self.left_over = 0;
        let mut named: BTreeSet<u64> = self.names.values().copied().collect();
        named.extend(self.durable_names.values().copied());
        for op in &self.pending {
            if let NameOp::Add { inode, .. } | NameOp::Rename { inode, .. } = op {
                named.insert(*inode);
            }
        }
        let mut current: BTreeMap<u64, usize> = BTreeMap::new();
        for inode in self.names.values() {
            *current.entry(*inode).or_default() += 1;
        }
        self.nodes
            .retain(|inode, node| node.open > 0 || named.contains(inode));
        for (inode, node) in &mut self.nodes {
            node.links = current.get(inode).copied().unwrap_or(0);
        }
    }

    fn inode(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            None => Ok(()),
            Some(parent) if parent.as_os_str().is_empty() || parent == Path::new("/") => Ok(()),
            Some(parent) => self.inode(parent).map(|_| ()),
        }
    }

    fn stat(&self, inode: u64) -> io::Result<Stat> {
        let node = self.nodes.get(&inode).ok_or_else(|| os(EIO))?;
        Ok(Stat {
            len: node.data.len() as u64,
            modified: UNIX_EPOCH + node.modified,
            inode,
            created: Some(UNIX_EPOCH + node.born),
            is_dir: node.is_dir,
            is_file: !node.is_dir,
        })
    }
}

fn in_dir(path: &Path, dir: &Path) -> bool {
    path.parent() == Some(dir)
}

impl Node {
    fn remember(&mut self, from: usize, to: usize) {
        if from >= to {
            return;
        }
        for sector in from / SECTOR..=(to - 1) / SECTOR {
            if self.dirty.contains_key(&sector) {
                continue;
            }
            // Written again after a failed sync: what is on the platter is what was there before.
            let old = self.lost.remove(&sector).unwrap_or_else(|| {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(self.data.len());
                let mut old = self.data.get(start..end).unwrap_or_default().to_vec();
                old.resize(SECTOR, 0);
                old
            });
            self.dirty.insert(sector, old);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        self.remember(offset, end);
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
    }

    fn revert(&mut self, sector: usize, old: &[u8]) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.data.len());
        if start < end {
            self.data[start..end].copy_from_slice(&old[..end - start]);
        }
    }

    fn crash(&mut self, mode: Tear, rng: &mut StdRng) {
        let dirty = std::mem::take(&mut self.dirty);
        for (sector, old) in &dirty {
            if mode.loses(rng) {
                self.revert(*sector, old);
            }
        }
        for (sector, old) in std::mem::take(&mut self.lost) {
            if !rng.random_bool(0.25) {
                self.revert(sector, &old);
            }
        }
        if self.data.len() > self.durable_len && mode.loses(rng) {
            self.data.truncate(self.durable_len);
        }
        self.durable_len = self.data.len();
        self.open = 0;
    }
}

#[derive(Debug, Clone, Copy)]
enum Tear {
    DropAll,
    KeepAll,
    Mixed,
}

impl Tear {
    fn loses(self, rng: &mut StdRng) -> bool {
        match self {
            Self::DropAll => true,
            Self::KeepAll => false,
            Self::Mixed => rng.random_bool(0.5),
        }
    }
}

impl SimFs {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A power cut: what was not synced is dropped, kept or torn, as `seed` says; every open
    /// handle and lock is dead, faults are over.
    pub fn crash(&self, seed: u64) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let disk = &mut *guard(&self.disk);
        let mode = match rng.random_range(0..4) {
            0 => Tear::DropAll,
            1 => Tear::KeepAll,
            _ => Tear::Mixed,
        };
        let mut names = disk.durable_names.clone();
        for op in std::mem::take(&mut disk.pending) {
            if !mode.loses(rng) {
                op.apply(&mut names);
            }
        }
        // A file whose directory was lost is lost with it.
        let all = names.clone();
        names.retain(|path, _| {
            path.ancestors().skip(1).all(|dir| {
                dir.as_os_str().is_empty() || dir == Path::new("/") || all.contains_key(dir)
            })
        });
        let mut inodes: Vec<u64> = disk.nodes.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            if let Some(node) = disk.nodes.get_mut(&inode) {
                node.crash(mode, rng);
            }
        }
        disk.durable_names.clone_from(&names);
        disk.names = names;
        self.end_process(disk);
    }

    /// `kill -9`: every handle and lock is dead; what was written stays, synced or not.
    pub fn kill(&self) {
        let disk = &mut *guard(&self.disk);
        for node in disk.nodes.values_mut() {
            node.open = 0;
        }
        self.end_process(disk);
    }

    fn end_process(&self, disk: &mut Disk) {
        disk.generation += 1;
        disk.locks.clear();
        disk.faults.clear();
        disk.collect();
        *guard(&self.gate.closed) = false;
        self.gate.opened.notify_all();
    }

    /// Adds a fault.
    pub fn fail(&self, fault: Fault) {
        guard(&self.disk).faults.push(Armed {
            fault,
            under: None,
            seen: 0,
        });
    }

    /// Adds a fault that only calls on paths under `dir` meet.
    pub fn fail_under(&self, dir: &Path, fault: Fault) {
        guard(&self.disk).faults.push(Armed {
            fault,
            under: Some(dir.to_owned()),
            seen: 0,
        });
    }

    /// At the `nth` call of any kind from here on, before it has any effect, does this: it may add
    /// a fault, which the call meets, or end the process. For who makes calls on one thread.
    pub fn at_call(&self, nth: u64, run: impl FnOnce(Call) + Send + 'static) {
        let disk = &mut *guard(&self.disk);
        disk.hook = Some(Hook::new(disk.total + nth, run));
    }

    fn arrive(&self, call: Call, generation: u64) {
        let mut disk = guard(&self.disk);
        let next = disk.total + 1;
        let is_alive = disk.generation == generation;
        let due = is_alive.then(|| Hook::due(&mut disk.hook, next)).flatten();
        drop(disk);
        if let Some(hook) = due {
            hook.run(call);
        }
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        guard(&self.disk).faults.clear();
    }

    /// Limits the bytes of all files; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        guard(&self.disk).capacity = bytes;
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        guard(&self.disk).used()
    }

    /// Calls of one kind so far.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        guard(&self.disk).counts.get(&call).copied().unwrap_or(0)
    }

    /// Calls of all kinds so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        guard(&self.disk).total
    }

    /// From here on, syncs of files block until [`SimFs::release_syncs`], a crash or a kill.
    pub fn hang_syncs(&self) {
        *guard(&self.gate.closed) = true;
    }

    /// Lets blocked syncs go on.
    pub fn release_syncs(&self) {
        *guard(&self.gate.closed) = false;
        self.gate.opened.notify_all();
    }

    /// Syncs that are blocked now.
    #[must_use]
    pub fn hanging(&self) -> u64 {
        *guard(&self.gate.waiting)
    }

    /// Starts to note every call.
    pub fn start_log(&self) {
        guard(&self.disk).log = Some(Vec::new());
    }

    /// The calls noted since [`SimFs::start_log`].
    #[must_use]
    pub fn take_log(&self) -> Vec<String> {
        guard(&self.disk)
            .log
            .replace(Vec::new())
            .unwrap_or_default()
    }

    /// A copy of everything, made by `cp -a` at this instant: the same names and bytes, all
    /// durable, other inodes and birth times.
    #[must_use]
    pub fn copy_of(&self) -> Self {
        let disk = guard(&self.disk);
        let mut copy = Disk {
            next_inode: disk.next_inode,
            clock: disk.clock + 1_000_000,
            ..Disk::default()
        };
        let mut inodes = HashMap::new();
        for (path, inode) in &disk.names {
            let Some(node) = disk.nodes.get(inode) else {
                continue;
            };
            let new = *inodes.entry(*inode).or_insert_with(|| {
                let new = copy.add_node(node.is_dir);
                if let Some(made) = copy.nodes.get_mut(&new) {
                    made.data.clone_from(&node.data);
                    made.durable_len = node.data.len();
                }
                new
            });
            copy.names.insert(path.clone(), new);
        }
        copy.durable_names.clone_from(&copy.names);
        copy.collect();
        Self {
            disk: Arc::new(Mutex::new(copy)),
            gate: Arc::default(),
            process: None,
        }
    }

    /// A handle of one process: dead from the next crash or kill on, when every call fails. For
    /// code on other threads, which would otherwise go on as if nothing had happened.
    #[must_use]
    pub fn process(&self) -> Self {
        let process = Some(guard(&self.disk).generation);
        Self {
            process,
            ..self.clone()
        }
    }

    fn alive(&self, disk: &Disk) -> io::Result<()> {
        match self.process {
            Some(process) if process != disk.generation => Err(os(EIO)),
            _ => Ok(()),
        }
    }

    /// The bytes of a file, as a test sees them: no call is counted.
    #[must_use]
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = guard(&self.disk);
        let inode = disk.names.get(path)?;
        disk.nodes.get(inode).map(|node| node.data.clone())
    }

    /// Replaces the bytes of a file, durably: damage made by a test.
    pub fn poke(&self, path: &Path, bytes: Vec<u8>) {
        let disk = &mut *guard(&self.disk);
        if let Some(inode) = disk.names.get(path).copied()
            && let Some(node) = disk.nodes.get_mut(&inode)
        {
            node.durable_len = bytes.len();
            node.data = bytes;
            node.dirty.clear();
            node.lost.clear();
        }
    }

    /// All names below `dir`, sorted.
    #[must_use]
    pub fn names(&self, dir: &Path) -> Vec<PathBuf> {
        let disk = guard(&self.disk);
        disk.names
            .keys()
            .filter(|path| path.starts_with(dir) && *path != dir)
            .cloned()
            .collect()
    }

    fn pass_gate(&self) {
        let mut closed = guard(&self.gate.closed);
        if *closed {
            *guard(&self.gate.waiting) += 1;
            while *closed {
                closed = self
                    .gate
                    .opened
                    .wait(closed)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            *guard(&self.gate.waiting) -= 1;
        }
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    inode: u64,
    generation: u64,
    writable: bool,
    path: PathBuf,
}

impl SimFile {
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        self.fs.arrive(call, self.generation);
        let mut disk = guard(&self.fs.disk);
        if disk.generation != self.generation {
            return Err(os(EIO));
        }
        disk.enter(call, || self.path.display().to_string())?;
        Ok(disk)
    }

    fn sync(&self) -> io::Result<()> {
        self.fs.pass_gate();
        self.fs.arrive(Call::Sync, self.generation);
        let mut disk = guard(&self.fs.disk);
        if disk.generation != self.generation {
            return Err(os(EIO));
        }
        let entered = disk.enter(Call::Sync, || self.path.display().to_string());
        let node = disk.nodes.get_mut(&self.inode).ok_or_else(|| os(EIO))?;
        let dirty = std::mem::take(&mut node.dirty);
        match entered {
            Ok(()) => {
                node.durable_len = node.data.len();
                Ok(())
            }
            Err(error) => {
                // The pages are clean now, and not on the platter.
                for (sector, old) in dirty {
                    node.lost.entry(sector).or_insert(old);
                }
                Err(error)
            }
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut disk = guard(&self.fs.disk);
        if disk.generation == self.generation {
            if let Some(node) = disk.nodes.get_mut(&self.inode) {
                node.open = node.open.saturating_sub(1);
            }
            disk.collect_in_time();
        }
    }
}

impl FsFile for SimFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.enter(Call::Read)?;
        let node = disk.nodes.get(&self.inode).ok_or_else(|| os(EIO))?;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start
            .checked_add(buffer.len())
            .and_then(|end| node.data.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.fs.arrive(Call::Write, self.generation);
        let mut disk = guard(&self.fs.disk);
        if disk.generation != self.generation {
            return Err(os(EIO));
        }
        if !self.writable {
            return Err(os(9));
        }
        let entered = disk.enter(Call::Write, || {
            format!("{} {}", self.path.display(), bytes.len())
        });
        let start = usize::try_from(offset).map_err(|_| os(EIO))?;
        let len = disk
            .nodes
            .get(&self.inode)
            .ok_or_else(|| os(EIO))?
            .data
            .len();
        let more = (start + bytes.len()).saturating_sub(len) as u64;
        let room = disk.room_for(more);
        let now = Duration::from_nanos(disk.clock);
        let node = disk.nodes.get_mut(&self.inode).ok_or_else(|| os(EIO))?;
        node.modified = now;
        if let Err(error) = entered.and(room) {
            // A part of it may have been written, where there was room.
            let part = (bytes.len() / 2).min(len.saturating_sub(start));
            node.write(&bytes[..part], start);
            return Err(error);
        }
        node.write(bytes, start);
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.enter(Call::Preallocate)?;
        let have = disk
            .nodes
            .get(&self.inode)
            .ok_or_else(|| os(EIO))?
            .data
            .len() as u64;
        disk.room_for(len.saturating_sub(have))?;
        if len > have
            && let Some(node) = disk.nodes.get_mut(&self.inode)
        {
            node.data
                .resize(usize::try_from(len).map_err(|_| os(ENOSPC))?, 0);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.enter(Call::Punch)?;
        let node = disk.nodes.get_mut(&self.inode).ok_or_else(|| os(EIO))?;
        let have = node.data.len();
        let from = usize::try_from(offset).map_or(have, |from| from.min(have));
        let to = usize::try_from(offset.saturating_add(len)).map_or(have, |to| to.min(have));
        if from < to {
            // As a write it reaches the platter with the next sync, or sector by sector before.
            node.write(&vec![0; to - from], from);
        }
        Ok(())
    }

    fn reserve(&self, _offset: u64, len: u64) -> io::Result<()> {
        self.enter(Call::Reserve)?.room_for(len.min(1))
    }

    fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let disk = self.enter(Call::Stat)?;
        let node = disk.nodes.get(&self.inode).ok_or_else(|| os(EIO))?;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, sector) in (0_u64..).zip(node.data.chunks(SECTOR)) {
            if sector.iter().all(|byte| *byte == 0) {
                continue;
            }
            let from = number * SECTOR as u64;
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == from => *len += sector.len() as u64,
                _ => ranges.push((from, sector.len() as u64)),
            }
        }
        Ok(ranges)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn stat(&self) -> io::Result<Stat> {
        self.enter(Call::Stat)?.stat(self.inode)
    }
}

#[derive(Debug)]
struct SimLock {
    fs: SimFs,
    inode: u64,
    generation: u64,
}

impl FsLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = guard(&self.fs.disk);
        if disk.generation == self.generation {
            disk.locks.remove(&self.inode);
        }
    }
}

impl SimFs {
    fn begin(&self, call: Call) {
        let generation = self.process.unwrap_or_else(|| guard(&self.disk).generation);
        self.arrive(call, generation);
    }

    fn enter(&self, call: Call, path: &Path) -> io::Result<MutexGuard<'_, Disk>> {
        self.begin(call);
        let mut disk = guard(&self.disk);
        self.alive(&disk)?;
        disk.enter(call, || path.display().to_string())?;
        Ok(disk)
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        let create = mode == OpenMode::CreateNew;
        let mut disk = self.enter(if create { Call::Create } else { Call::Open }, path)?;
        let inode = if create {
            if disk.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            disk.parent_exists(path)?;
            let inode = disk.add_node(false);
            disk.change(NameOp::Add {
                path: path.to_path_buf(),
                inode,
            });
            inode
        } else {
            disk.inode(path)?
        };
        let generation = disk.generation;
        if let Some(node) = disk.nodes.get_mut(&inode) {
            node.open += 1;
        }
        drop(disk);
        Ok(Box::new(SimFile {
            fs: self.clone(),
            inode,
            generation,
            writable: mode != OpenMode::Read,
            path: path.to_path_buf(),
        }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        let mut disk = self.enter(Call::Lock, path)?;
        let inode = disk.inode(path)?;
        if !disk.locks.insert(inode) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            fs: self.clone(),
            inode,
            generation: disk.generation,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.enter(Call::CreateDir, path)?;
        let mut missing: Vec<&Path> = path
            .ancestors()
            .filter(|dir| !dir.as_os_str().is_empty() && *dir != Path::new("/"))
            .take_while(|dir| !disk.names.contains_key(*dir))
            .collect();
        missing.reverse();
        for dir in missing {
            let inode = disk.add_node(true);
            disk.change(NameOp::Add {
                path: dir.to_path_buf(),
                inode,
            });
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let disk = self.enter(Call::ReadDir, path)?;
        disk.inode(path)?;
        Ok(disk
            .names
            .keys()
            .filter(|name| in_dir(name, path))
            .filter_map(|name| name.file_name().map(OsString::from))
            .collect())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let disk = self.enter(Call::Stat, path)?;
        disk.stat(disk.inode(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.enter(Call::Rename, from)?;
        let inode = disk.inode(from)?;
        disk.parent_exists(to)?;
        disk.change(NameOp::Rename {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
            inode,
        });
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.enter(Call::Link, from)?;
        let inode = disk.inode(from)?;
        disk.parent_exists(to)?;
        if disk.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.change(NameOp::Add {
            path: to.to_path_buf(),
            inode,
        });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.enter(Call::Unlink, path)?;
        disk.inode(path)?;
        disk.change(NameOp::Remove {
            path: path.to_path_buf(),
        });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::SyncDir);
        let mut disk = guard(&self.disk);
        self.alive(&disk)?;
        let entered = disk.enter(Call::SyncDir, || path.display().to_string());
        let disk = &mut *disk;
        let mut left = Vec::new();
        for op in std::mem::take(&mut disk.pending) {
            let concerned = match &op {
                NameOp::Add { path: name, .. } | NameOp::Remove { path: name } => {
                    in_dir(name, path)
                }
                NameOp::Rename { from, to, .. } => in_dir(from, path) || in_dir(to, path),
            };
            if !concerned {
                left.push(op);
                continue;
            }
            if entered.is_err() {
                // As with data: gone from what is to be written, and not written.
                let stays = matches!(&op, NameOp::Add { inode, .. }
                    if disk.nodes.get(inode).is_some_and(|node| node.is_dir));
                if stays {
                    left.push(op);
                }
                continue;
            }
            match &op {
                NameOp::Rename { from, to, inode } if !in_dir(from, path) => {
                    disk.durable_names.insert(to.clone(), *inode);
                    left.push(NameOp::Remove { path: from.clone() });
                }
                _ => op.apply(&mut disk.durable_names),
            }
        }
        disk.pending = left;
        entered
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let disk = self.enter(Call::FreeSpace, path)?;
        Ok(disk
            .capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used())))
    }
}

/// The time at which a simulated disk begins.
#[must_use]
pub fn epoch() -> SystemTime {
    UNIX_EPOCH
}
