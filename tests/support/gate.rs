//! A disk that holds one call up while everything else goes on, and whose journal may be full.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, FsFile, FsLock, OpenMode, Stat};
use s3_writeback::testing::fs::{Call, EIO, ENOSPC, Fault, SimFs};
use s3_writeback::{PartStore, RunOn};
use tokio::runtime::Handle;

use super::StoreRig;

/// What takes longer does not come.
const LIMIT: Duration = Duration::from_secs(20);

/// A call on the local file of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The write that begins at this byte.
    Write(u64),
    /// The punch that begins at this byte.
    Punch(u64),
    /// An fsync.
    Sync,
}

#[derive(Debug, Default)]
struct State {
    holds: Option<Held>,
    /// The call has come, and waits.
    reached: bool,
    open: bool,
    full: bool,
    bad_sync: bool,
    /// It is for header snapshots, and not for the parts' bytes.
    headers: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn pass(&self, call: Held) {
        let mut state = self.state.lock().unwrap();
        if state.holds != Some(call) {
            return;
        }
        state.holds = None;
        state.reached = true;
        self.changed.notify_all();
        let opened = self.changed.wait_while(state, |state| !state.open);
        drop(opened.unwrap());
    }

    fn under(&self) -> &'static str {
        match self.state.lock().unwrap().headers {
            true => "/headers/",
            false => "/parts/",
        }
    }

    fn may_write(&self, of_parts: bool) -> io::Result<()> {
        if !of_parts && self.state.lock().unwrap().full {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(())
    }
}

/// What a test does with such a disk. Dropped, it lets go of what it holds: a test that fails ends.
#[derive(Debug, Default)]
pub struct Gate(Arc<Shared>);

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, for snapshots of headers.
    pub fn of_headers() -> Self {
        let gate = Self::default();
        gate.0.state.lock().unwrap().headers = true;
        gate
    }

    /// The next such call is held up.
    pub fn hold(&self, call: Held) {
        let mut state = self.0.state.lock().unwrap();
        (state.holds, state.reached, state.open) = (Some(call), false, false);
    }

    pub fn open(&self) {
        self.0.state.lock().unwrap().open = true;
        self.0.changed.notify_all();
    }

    /// Waits until the call has come. Time that is paused stands still meanwhile.
    pub async fn reached(&self) {
        let shared = Arc::clone(&self.0);
        let waits = move || {
            let state = shared.state.lock().unwrap();
            let waited = shared
                .changed
                .wait_timeout_while(state, LIMIT, |state| !state.reached);
            waited.unwrap().1.timed_out()
        };
        let late = Io::pool(Handle::current(), 1).run(waits).await;
        assert!(!late.expect("runs"), "the call never comes");
    }

    /// The journal's disk is full: it takes nothing until it has room again.
    pub fn fill_journal(&self, full: bool) {
        self.0.state.lock().unwrap().full = full;
    }

    /// The next fsync of parts fails.
    pub fn fail_a_sync(&self) {
        self.0.state.lock().unwrap().bad_sync = true;
    }

    /// Opens a store on it, driven by the test's own runtime.
    pub async fn open_store(&self, rig: &StoreRig, io: Io) -> s3_writeback::Result<PartStore> {
        let disk = GateFs(rig.fs.process(), Arc::clone(&self.0));
        PartStore::builder(rig.config.clone(), Arc::new(rig.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(disk), io)
            .open()
            .await
    }

    /// The same, with threads for I/O, of which one may be held up.
    pub async fn threads(&self, rig: &StoreRig) -> PartStore {
        let io = Io::pool(Handle::current(), 8);
        self.open_store(rig, io).await.expect("opens")
    }
}

#[derive(Debug, Clone)]
struct GateFs(SimFs, Arc<Shared>);

#[derive(Debug)]
struct GateFile {
    disk: SimFs,
    file: Box<dyn FsFile>,
    gate: Arc<Shared>,
    of_parts: bool,
}

impl GateFile {
    fn pass(&self, call: Held) {
        if self.of_parts {
            self.gate.pass(call);
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.pass(Held::Sync);
        let mut state = self.gate.state.lock().unwrap();
        if self.of_parts && std::mem::take(&mut state.bad_sync) {
            self.disk.fail(Fault {
                call: Some(Call::Sync),
                after: 0,
                errno: EIO,
                forever: false,
            });
        }
        drop(state);
        self.file.sync_data()
    }
}

impl FsFile for GateFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.pass(Held::Write(offset));
        self.gate.may_write(self.of_parts)?;
        self.file.write_all_at(bytes, offset)
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.gate.may_write(self.of_parts)?;
        self.file.preallocate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pass(Held::Punch(offset));
        self.file.punch(offset, len)
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve(offset, len)
    }
    fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        self.file.data_ranges()
    }
    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }
}

impl Fs for GateFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(GateFile {
            disk: self.0.clone(),
            file: self.0.open(path, mode)?,
            gate: Arc::clone(&self.1),
            of_parts: path.to_string_lossy().contains(self.1.under()),
        }))
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        self.0.lock(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.0.read_dir(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.0.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.unlink(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.0.free_space(path)
    }
}
