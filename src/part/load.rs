//! Loads of parts: from S3, or from what an earlier life left here.
//!
//! Owns: one load for however many wait, what its bytes must be, and what becomes of the part.
//! Does not own: requests and back-off (`queue/load.rs`, `worker`), or room (`room.rs`).
//!
//! 1. A load belongs to itself: who asked may leave, time out, or lose its right to wait; that
//!    ends its own wait. No new attempt is made only when nobody is left.
//! 2. It is told once, to everyone who waits, and then is no more: who asks later starts anew.
//!    (In OrioleDB the place to wait for was computed from what had passed already.)
//! 3. Bytes are the part's only if their checksum is the entry's. Others are kept aside.
//! 4. What a load writes here it writes under the latch, and only while it is the part's load: one
//!    that was cut off writes nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::queue::load::{Load, LoadSink, Loaded};
use crate::watched::Watched;

use super::Parts;
use super::file::PartFile;
use super::header::{Address, crc32c};
use super::locker::{LockerState, Role};
use super::room::Taken;
use super::state::Status;
use crate::sync::Mutex;

/// Bad images that are kept.
const MAX_KEPT: usize = 16;

/// A load in progress.
#[derive(Debug)]
pub(crate) struct PartLoad {
    parts: Weak<Parts>,
    file: Arc<PartFile>,
    index: u32,
    address: Address,
    key: Arc<str>,
    cell: Watched<Option<Result<()>>>,
    waiters: AtomicU32,
    /// Wanted by nobody in particular; until somebody else wants its room.
    prefetch: AtomicBool,
    urgent: AtomicBool,
    frame: Mutex<Option<Taken>>,
}

impl LoadSink for PartLoad {
    fn is_wanted(&self) -> bool {
        self.prefetch.load(Ordering::Acquire) || self.waiters.load(Ordering::Acquire) > 0
    }

    fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    fn unwanted(self: Arc<Self>) {
        let Some(parts) = self.parts.upgrade() else {
            return;
        };
        let given_up = {
            let mut loads = self.file.loads.lock();
            let ours = loads
                .get(&self.index)
                .is_some_and(|l| Arc::ptr_eq(l, &self));
            let gone = ours && !self.is_wanted();
            if gone {
                loads.remove(&self.index);
                self.file
                    .header
                    .entry(self.index)
                    .word
                    .make(|word| word.load_failed());
            }
            gone
        };
        if given_up {
            drop(self.frame.lock().take());
            self.file.moved();
            parts.evictor.notify_one();
        } else {
            // Somebody has come since. Not from here: the line that it goes back into is locked.
            parts.clone().spawn(async move { self.submit(&parts) });
        }
    }

    fn end(self: Arc<Self>, outcome: Loaded) {
        let Some(parts) = self.parts.upgrade() else {
            return;
        };
        let tracker = parts.local.clone();
        let landing = {
            let parts = Arc::clone(&parts);
            async move {
                let result = match outcome {
                    Ok(Some((body, _))) => self.land(&parts, body).await,
                    Ok(None) => Err(Error::ImageMissing {
                        part: self.file.part(self.index),
                        object: self.key.to_string(),
                    }),
                    Err(cause) => Err(Error::LoadFailed {
                        part: self.file.part(self.index),
                        object: self.key.to_string(),
                        cause: Box::new(cause),
                    }),
                };
                self.finish(&parts, result);
            }
        };
        parts.spawn(tracker.track_future(landing));
    }
}

impl PartLoad {
    /// Puts it into the line of loads.
    fn submit(self: &Arc<Self>, parts: &Arc<Parts>) {
        let address = self.address;
        if address.len == 0 {
            return Arc::clone(self).end(Ok(Some((Bytes::new(), 0))));
        }
        let sink: Arc<dyn LoadSink> = Arc::clone(self) as Arc<dyn LoadSink>;
        let submitted = parts.queue.submit_load(Load {
            key: Arc::clone(&self.key),
            range: Some((u64::from(address.offset), u64::from(address.len))),
            sink: Arc::downgrade(&sink),
            failures: 0,
        });
        if !submitted {
            let phase = crate::phase::Phase::Closed;
            self.finish(parts, Err(Error::ShuttingDown { phase }));
        }
    }

    fn is_current(self: &Arc<Self>) -> bool {
        let loads = self.file.loads.lock();
        loads.get(&self.index).is_some_and(|l| Arc::ptr_eq(l, self))
    }

    /// Checks the bytes and puts them where the part's are.
    async fn land(self: &Arc<Self>, parts: &Arc<Parts>, body: Bytes) -> Result<()> {
        let found = crc32c(&body);
        if found != self.address.crc || body.len() != self.address.len as usize {
            return Err(Error::ImageCorrupt {
                part: self.file.part(self.index),
                object: self.key.to_string(),
                expected: self.address.crc,
                found,
                kept: self.keep(parts, body).await,
            });
        }
        let (load, on) = (Arc::clone(self), Arc::clone(parts));
        let written = parts.io.run(move || load.write(&on, &body)).await;
        written
            .and_then(|written| written)
            .map_err(|error| Error::directory(&self.file.path, &error))
    }

    fn write(self: &Arc<Self>, parts: &Parts, body: &[u8]) -> std::io::Result<()> {
        let file = &self.file;
        let _latch = parts.latches.step(file.key(self.index));
        if !self.is_current() {
            return Ok(());
        }
        let start = file.start_of(self.index);
        let rest = u64::from(file.part_bytes) - body.len() as u64;
        if rest > 0 {
            // A load of an earlier life may have left something there.
            file.disk.punch(start + body.len() as u64, rest)?;
        }
        file.disk.write_all_at(body, start)
    }

    /// Keeps bad bytes for whoever wants to know what they are.
    async fn keep(&self, parts: &Arc<Parts>, body: Bytes) -> Option<std::path::PathBuf> {
        let dir = parts.dir.join("damage");
        let name = format!("image-{}", self.key.replace('/', "_"));
        let (fs, path) = (Arc::clone(&parts.fs), dir.join(name));
        let kept = parts
            .io
            .run(move || -> std::io::Result<Option<std::path::PathBuf>> {
                fs.create_dir_all(&dir)?;
                let here = fs.read_dir(&dir)?;
                let ours = here
                    .iter()
                    .filter(|n| n.to_string_lossy().starts_with("image-"));
                if ours.count() >= MAX_KEPT {
                    return Ok(None);
                }
                let file = match fs.open(&path, crate::journal::fs::OpenMode::CreateNew) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        return Ok(Some(path));
                    }
                    other => other?,
                };
                file.write_all_at(&body, 0)?;
                Ok(Some(path))
            })
            .await;
        kept.ok().and_then(std::result::Result::ok).flatten()
    }

    /// It is over: the part is loaded, or not, and everyone is told.
    fn finish(self: &Arc<Self>, parts: &Arc<Parts>, result: Result<()>) {
        let file = &self.file;
        let key = file.key(self.index);
        {
            let _latch = parts.latches.step(key);
            let mut loads = file.loads.lock();
            if loads.get(&self.index).is_some_and(|l| Arc::ptr_eq(l, self)) {
                loads.remove(&self.index);
                drop(loads);
                let word = &file.header.entry(self.index).word;
                if result.is_ok() {
                    file.is_unsynced(self.index);
                    if word.make(|word| word.loaded()).is_some()
                        && let Some(frame) = self.frame.lock().take()
                    {
                        parts.resident.add(file, self.index, frame);
                        parts.totals.loads.fetch_add(1, Ordering::Relaxed);
                    }
                } else {
                    word.make(|word| word.load_failed());
                }
            }
        }
        drop(self.frame.lock().take());
        if let Err(error) = &result {
            tracing::debug!(part = %file.part(self.index), %error, "a load failed");
        }
        if !(result.is_err() && is(Mutant::FailedLoadTellsNobody)) {
            self.cell.change(|cell| {
                cell.get_or_insert(result);
            });
        }
        file.moved();
        parts.evictor.notify_one();
    }

    /// It was cut off: nobody has a use for it.
    pub(crate) fn void(&self, error: Error) {
        drop(self.frame.lock().take());
        self.cell.change(|cell| {
            cell.get_or_insert(Err(error));
        });
    }
}

impl Parts {
    /// Waits until a part that somebody holds is here, loading it where it is not.
    ///
    /// # Cancel safety
    /// Ends this wait only: a load goes on as long as somebody else waits for it.
    pub(crate) async fn present(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        locker: Option<&Arc<LockerState>>,
    ) -> Result<()> {
        self.present_in(file, index, locker, None).await
    }

    /// The same, with room that was taken before.
    pub(crate) async fn present_in(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        locker: Option<&Arc<LockerState>>,
        mut room: Option<&mut Taken>,
    ) -> Result<()> {
        let word = &file.header.entry(index).word;
        loop {
            match word.get().status() {
                Status::Zero | Status::Loaded => return Ok(()),
                Status::Evicting => {
                    let gone = || word.get().status() != Status::Evicting;
                    file.moves.until(|_| gone().then_some(())).await;
                }
                Status::Loading => {
                    #[cfg(test)]
                    drop(self.between.lock().await);
                    match self.join(file, index) {
                        Some(joined) => self.told(joined, locker).await?,
                        // Written whole, by somebody else, in this very moment.
                        None => {
                            let gone = || {
                                word.get().status() != Status::Loading
                                    || file.loads.lock().contains_key(&index)
                            };
                            file.moves.until(|_| gone().then_some(())).await;
                        }
                    }
                }
                Status::NotLoaded => {
                    self.locks.admits(locker.map(|l| &**l), false)?;
                    let bytes = u64::from(file.part_bytes);
                    let (frame, here) = match self.resident.take_leftover(file.key(index)) {
                        Some(frame) => (frame, true),
                        None if room.as_ref().is_some_and(|room| room.bytes() >= bytes) => {
                            match room.as_mut() {
                                Some(room) => (room.split(bytes), false),
                                None => continue,
                            }
                        }
                        None => {
                            let part = [(Arc::clone(file), index)];
                            match self.room_for(&part, locker).await? {
                                Some(frame) => (frame, false),
                                None => continue,
                            }
                        }
                    };
                    if let Started::Ours(joined) = self.start_load(file, index, frame, here, false)
                    {
                        self.told(joined, locker).await?;
                    }
                }
            }
        }
    }

    /// Takes room for parts that have none; `None` where somebody else brought one of them here
    /// before there was any. (Whoever waits keeps it here: he would wait for the very room that it
    /// has.)
    pub(crate) async fn room_for(
        &self,
        parts: &[(Arc<PartFile>, u32)],
        locker: Option<&Arc<LockerState>>,
    ) -> Result<Option<Taken>> {
        let each = parts.iter().map(|(file, _)| u64::from(file.part_bytes));
        let bytes = each.sum();
        if is(Mutant::CacheRoomNotWaitedFor) {
            return Ok(Some(self.cache.force(bytes)));
        }
        if let Some(room) = self.cache.try_take(bytes, locker) {
            return Ok(Some(room));
        }
        let comes = parts.iter().map(|(file, index)| {
            let word = &file.header.entry(*index).word;
            let is_none = || matches!(word.get().status(), Status::Zero | Status::NotLoaded);
            file.moves.until(move |_| (!is_none()).then_some(()))
        });
        tokio::select! {
            biased;
            room = self.cache.take(bytes, locker, || self.needs_room()) => room.map(Some),
            _ = futures::future::select_all(comes) => Ok(None),
        }
    }

    /// Loads a part if that takes no wait; whether it is here or on its way.
    pub(crate) fn prefetch(self: &Arc<Self>, file: &Arc<PartFile>, index: u32) -> bool {
        // A part that has no entry yet is zeros.
        let entry = file.header.peek(index);
        if entry.is_none_or(|entry| entry.word.get().status() != Status::NotLoaded) {
            return true;
        }
        if let Some(frame) = self.resident.take_leftover(file.key(index)) {
            self.start_load(file, index, frame, true, true);
            return true;
        }
        let frame = self.cache.try_take(u64::from(file.part_bytes), None);
        frame.is_some_and(|frame| {
            self.start_load(file, index, frame, false, true);
            true
        })
    }

    /// Somebody wants room that loads have which nobody waits for: they are given up when they have
    /// not come by the end of their attempt.
    pub(crate) fn give_up_prefetches(&self) {
        for file in self.all_files() {
            for load in file.loads.lock().values() {
                load.prefetch.store(false, Ordering::Release);
            }
        }
    }

    /// Waits for a load, as long as the phase lets its waiter.
    async fn told(&self, joined: Joined, locker: Option<&Arc<LockerState>>) -> Result<()> {
        if locker.is_some_and(|locker| locker.role == Role::Checkpointer)
            && !joined.0.urgent.swap(true, Ordering::Relaxed)
        {
            self.queue.wake_for_load();
        }
        tokio::select! {
            biased;
            told = joined.0.cell.until(Clone::clone) => told,
            error = self.locks.refused(locker.map(|l| &**l)), if !is(Mutant::FailedLoadTellsNobody) => {
                Err(error)
            }
        }
    }

    fn join(&self, file: &PartFile, index: u32) -> Option<Joined> {
        let load = {
            // Counted under the lock under which a load that nobody wants is given up.
            let loads = file.loads.lock();
            let load = loads.get(&index)?;
            load.waiters.fetch_add(1, Ordering::AcqRel);
            Arc::clone(load)
        };
        Some(Joined(load))
    }

    /// Starts a load, unless somebody else did. Whoever starts one waits for it from the start: a
    /// worker that is quick does not find that nobody does.
    fn start_load(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        frame: Taken,
        here: bool,
        prefetch: bool,
    ) -> Started {
        let entry = file.header.entry(index);
        let load = {
            let mut loads = file.loads.lock();
            let Some(address) = entry.address() else {
                return Started::No;
            };
            if file.check(index).is_err() || entry.word.make(|word| word.load()).is_none() {
                return Started::No;
            }
            let load = Arc::new(PartLoad {
                parts: Arc::downgrade(self),
                file: Arc::clone(file),
                index,
                address,
                key: self.epochs.key(&address),
                cell: Watched::new(None),
                waiters: AtomicU32::new(1),
                prefetch: AtomicBool::new(prefetch),
                urgent: AtomicBool::new(false),
                frame: Mutex::new(Some(frame)),
            });
            loads.insert(index, Arc::clone(&load));
            load
        };
        // Who waits because there was no load to join looks again.
        file.moved();
        let joined = Joined(Arc::clone(&load));
        let parts = Arc::clone(self);
        self.spawn(async move {
            if here && parts.was_left_here(&load).await {
                load.finish(&parts, Ok(()));
                return;
            }
            load.submit(&parts);
        });
        Started::Ours(joined)
    }

    /// Whether what is in the local file is the image already.
    async fn was_left_here(self: &Arc<Self>, load: &Arc<PartLoad>) -> bool {
        let (load, parts) = (Arc::clone(load), Arc::clone(self));
        let same = self.io.run(move || -> std::io::Result<bool> {
            let file = &load.file;
            let _latch = parts.latches.copy(file.key(load.index));
            let mut here = vec![0; file.part_bytes as usize];
            file.read_here(&mut here, file.start_of(load.index))?;
            let (image, rest) = here.split_at(load.address.len as usize);
            Ok(crc32c(image) == load.address.crc && rest.iter().all(|byte| *byte == 0))
        });
        matches!(same.await, Ok(Ok(true)))
    }
}

/// What came of starting a load.
enum Started {
    Ours(Joined),
    /// Somebody else's, or there is nothing to load: the part is looked at again.
    No,
}

/// One who waits for a load: gone when dropped.
#[derive(Debug)]
struct Joined(Arc<PartLoad>);

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::sync::Notify;
    use tokio::time::Instant;

    use std::future::IntoFuture;

    use super::*;
    use crate::io::Io;
    use crate::testing::fs::SimFs;
    use crate::testing::remote::{Call, Fault, SimRemote};
    use crate::{FileId, FileOptions, Mode, PartStore, RunOn, StoreConfig};

    const PART: usize = 4096;

    /// A1: the state was read while the part was on its way, and what to wait for is chosen after
    /// it has come and nothing is on its way any more.
    #[tokio::test(start_paused = true)]
    async fn what_has_come_between_the_look_and_the_wait_is_not_waited_for() {
        let mut config = StoreConfig::new("/q");
        config.fencing = crate::Fencing::Off;
        config.checkpoint_at_shutdown = false;
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.cache_bytes = 4 * PART as u64;
        config.dirty_bytes = 4 * PART as u64;
        config.checkpoint_cache_bytes = PART as u64;
        config.queue.segment_bytes = 64 * 1024;
        config.queue.max_disk_bytes = 64 * 1024 * 1024;
        let (fs, remote) = (SimFs::new(), SimRemote::new());
        let open = async || {
            PartStore::builder(config.clone(), Arc::new(remote.clone()))
                .run_on(RunOn::Handle(Handle::current()))
                .file_system(Arc::new(fs.clone()), Io::inline())
                .open()
                .await
                .expect("opens")
        };
        let store = open().await;
        let options = FileOptions { part_bytes: 4096 };
        let file = store.create(FileId(1), options).await.expect("creates");
        for index in 0..6_u64 {
            let bytes = [7; PART];
            file.write_at(&bytes, index * PART as u64)
                .await
                .expect("writes");
        }
        store.shutdown().await.expect("shuts down");
        drop((file, store));
        for path in fs.names(std::path::Path::new("/q/parts")) {
            fs.poke(&path, vec![0; 6 * PART]);
        }
        let store = open().await;
        let file = store.file(FileId(1)).expect("is there");
        let gate = Arc::new(Notify::new());
        remote.once(Some(Call::Get), None, Fault::Gate(Arc::clone(&gate)));
        assert_eq!(file.prefetch(0..1), 1);
        let parts = store.parts();
        let hook = parts.between.lock().await;
        let locker = store
            .locker("second", crate::Role::Foreground)
            .expect("a locker");
        let mut lock = std::pin::pin!(file.lock(0, Mode::Shared, &locker).into_future());
        tokio::select! {
            biased;
            _ = &mut lock => panic!("it has not come"),
            () = tokio::time::sleep(Duration::from_secs(1)) => (),
        }
        gate.notify_one();
        // It comes, the queue drains, and nothing is submitted any more.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(store.snapshot().queue.tasks.loads, 0);
        let part = parts.file(FileId(1)).expect("is there");
        assert_eq!(part.header.entry(0).word.get().status(), Status::Loaded);
        let began = Instant::now();
        drop(hook);
        let guard = lock.await.expect("gets the lock");
        assert_eq!(began.elapsed(), Duration::ZERO, "at once");
        drop(guard);
    }

    /// A hint about a hole costs nothing: there is nothing to load, and no page of the header.
    #[tokio::test(start_paused = true)]
    async fn a_prefetch_of_a_hole_makes_no_pages_of_the_header() {
        let mut config = StoreConfig::new("/q");
        config.fencing = crate::Fencing::Off;
        let store = PartStore::builder(config, Arc::new(SimRemote::new()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(SimFs::new()), Io::inline())
            .open()
            .await
            .expect("opens");
        let options = FileOptions { part_bytes: 4096 };
        let file = store.create(FileId(1), options).await.expect("creates");
        let len = 1 << 30;
        file.set_len(len).await.expect("grows");
        let _ = file.prefetch(0..len);
        let part_file = store.parts().file(FileId(1)).expect("is there");
        assert_eq!(part_file.header.pages().count(), 0);
    }
}
