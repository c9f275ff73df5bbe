//! Eviction: room for parts that are wanted, at the cost of those that are not.
//!
//! Owns: what is here, the clock's hand, and what to do when nothing can go. Does not own: how
//! room is shared out (`room.rs`), or making parts clean (`flush.rs`).
//!
//! 1. Only a clean part goes: not dirty, no capture in flight, no intent open, nobody holding it
//!    or waiting for it. That it is clean is durable: its entry is (`settle.rs`).
//! 2. It goes in order: out of use, hole punched, not loaded, room given back.
//! 3. Where nothing can go there is a reason, and whoever waits hears it: uploads are awaited;
//!    reads and writes in progress are awaited; guards are not: who waits gets the names of those
//!    who hold them, or the cycle. Nor are uploads of a store that uploads nothing any more, or a
//!    disk that refuses to let anything go: who waits gets the cause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::sync::Mutex;

use super::Parts;
use super::file::PartFile;
use super::id::PartKey;
use super::lent::Lent;
use super::locker::Role;
use super::room::{Taken, Wait};
use super::state::Status;

/// Parts evicted on one trip to an I/O thread.
const BATCH: usize = 16;
/// Rounds of the hand after which everything has been found in use.
const ROUNDS: usize = 5;
/// A disk that has refused for so long to let anything go is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Parts that are here.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    ring: Mutex<Ring>,
    /// Those that are in the checkpointer's reserve.
    pub(super) lent: Lent,
}

#[derive(Debug, Default)]
struct Ring {
    parts: BTreeMap<PartKey, Here>,
    hand: Option<PartKey>,
    /// Bytes of an earlier life that have not been looked at.
    leftover: BTreeMap<PartKey, (Arc<PartFile>, Taken)>,
}

#[derive(Debug)]
struct Here {
    file: Arc<PartFile>,
    index: u32,
    frame: Taken,
}

impl Resident {
    pub(crate) fn add(&self, file: &Arc<PartFile>, index: u32, frame: Taken) {
        let here = Here {
            file: Arc::clone(file),
            index,
            frame,
        };
        let key = file.key(index);
        if here.frame.is_of_reserve() {
            self.lent.add(key);
        }
        self.ring.lock().parts.insert(key, here);
    }

    pub(crate) fn remove(&self, key: PartKey) {
        self.lent.remove(|lent| lent == key);
        let gone = {
            let mut ring = self.ring.lock();
            (ring.parts.remove(&key), ring.leftover.remove(&key))
        };
        // Room is given back without the lock: it wakes who waits.
        drop(gone);
    }

    pub(crate) fn add_leftover(&self, file: &Arc<PartFile>, index: u32, frame: Taken) {
        let entry = (Arc::clone(file), frame);
        self.ring.lock().leftover.insert(file.key(index), entry);
    }

    pub(crate) fn take_leftover(&self, key: PartKey) -> Option<Taken> {
        let found = self.ring.lock().leftover.remove(&key);
        found.map(|(_, frame)| frame)
    }

    /// All of a file, which is gone.
    pub(crate) fn remove_file(&self, file: u32) {
        let of = |key: &PartKey| key.file() == file;
        self.lent.remove(|key| of(&key));
        let gone = {
            let mut ring = self.ring.lock();
            let parts: Vec<_> = ring.parts.extract_if(.., |key, _| of(key)).collect();
            let left: Vec<_> = ring.leftover.extract_if(.., |key, _| of(key)).collect();
            (parts, left)
        };
        drop(gone);
    }

    pub(crate) fn count(&self) -> usize {
        self.ring.lock().parts.len()
    }
}

/// Why nothing can go.
enum Stuck {
    /// Some of it is on its way to S3, or will be.
    Uploads,
    /// Somebody is reading or writing, or a load is on its way.
    Busy,
    /// All of it is held by the guards of these lockers.
    Held(BTreeSet<u64>),
}

impl Parts {
    /// Makes room whenever somebody waits for it.
    pub(crate) async fn run_evictor(self: Arc<Self>) {
        let mut gave_way: Option<Instant> = None;
        let mut refusing: Option<Instant> = None;
        loop {
            match self.make_room(&mut gave_way).await {
                Ok(()) => refusing = None,
                Err(error) if refusing.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                    tracing::warn!(%error, "the disk lets nothing go");
                }
                Err(error) => self.cache.refuse(|_| true, &error),
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.evictor.notified() => (),
                () = self.locks.idle.notified() => (),
                () = tokio::time::sleep(self.config.deadlock_timeout), if self.cache.is_wanted() => (),
            }
        }
    }

    /// Somebody waits for room.
    pub(crate) fn needs_room(&self) {
        self.evictor.notify_one();
    }

    /// # Errors
    /// The disk refused to let something go; it is asked again at the next beat.
    async fn make_room(self: &Arc<Self>, gave_way: &mut Option<Instant>) -> Result<()> {
        loop {
            let Some(short) = self.cache.short_by() else {
                self.locks.want_idle(false);
                return Ok(());
            };
            // Said before looking: who lets go from here on tells us.
            self.locks.want_idle(true);
            let victims = self.victims(short);
            if victims.is_empty() {
                if let Some((file, index, frame)) = self.a_leftover() {
                    let on = Arc::clone(self);
                    let punched = self.io.run(move || on.punch(&file, index)).await;
                    if let Err(error) = punched.and_then(|punched| punched) {
                        tracing::warn!(%error, "bytes of an earlier life stay where they are");
                    }
                    drop(frame);
                    continue;
                }
                self.explain(gave_way);
                return Ok(());
            }
            let parts = Arc::clone(self);
            let gone = self.io.run(move || parts.evict_all(victims)).await;
            gone.map_err(|error| Error::Runtime(error.to_string()))??;
        }
    }

    fn a_leftover(&self) -> Option<(Arc<PartFile>, u32, Taken)> {
        let (key, (file, frame)) = self.resident.ring.lock().leftover.pop_first()?;
        Some((file, key.index(), frame))
    }

    /// Punches out what the local file has of a part that is not here.
    pub(super) fn punch(&self, file: &PartFile, index: u32) -> std::io::Result<()> {
        let _latch = self.latches.step(file.key(index));
        // Loaded or written meanwhile, it is not ours any more.
        let status = file.header.entry(index).word.get().status();
        if !matches!(status, Status::NotLoaded | Status::Zero) {
            return Ok(());
        }
        file.disk
            .punch(file.start_of(index), u64::from(file.part_bytes))
    }

    /// Takes parts out of use, as many as make `bytes` of room, by the clock.
    fn victims(&self, bytes: u64) -> Vec<(Arc<PartFile>, u32)> {
        let mut ring = self.resident.ring.lock();
        let mut victims = Vec::new();
        let mut freed = 0;
        let mut looks = ring.parts.len() * ROUNDS;
        while freed < bytes && victims.len() < BATCH && looks > 0 {
            looks -= 1;
            let after = ring
                .hand
                .map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
            let mut from_here = ring.parts.range((after, std::ops::Bound::Unbounded));
            let next = from_here.next().or_else(|| ring.parts.iter().next());
            let Some((key, here)) = next else { break };
            let key = *key;
            let (file, index) = (Arc::clone(&here.file), here.index);
            let held = here.frame.bytes();
            ring.hand = Some(key);
            let word = &file.header.entry(index).word;
            // The last that was made of it: who lets go of it later tells us.
            let now = word.look();
            if !now.is_clean() || now.is_held() {
                continue;
            }
            if word.make(|word| word.aged()).is_some() {
                continue;
            }
            if word.make(|word| word.evict()).is_none() {
                continue;
            }
            freed += held;
            victims.push((file, index));
        }
        // Logs come before this lock.
        drop(ring);
        victims.retain(|(file, index)| {
            let goes = self.may_go(file, *index);
            if !goes {
                let word = &file.header.entry(*index).word;
                word.make(|word| word.evict_undone());
                file.moved();
            }
            goes
        });
        victims
    }

    /// Whether the journal has it that a part's local bytes do not count.
    fn may_go(&self, file: &PartFile, index: u32) -> bool {
        let log = &mut *file.log.lock();
        // An intent that is on its way to the disk is not in the word yet; the end of one has left
        // the word, and may not be on the disk.
        let durable = self.journal.durable();
        log.ending.retain(|_, location| *location > durable);
        !log.intents.contains_key(&index) && !log.ending.contains_key(&index)
    }

    /// Punches them out and gives their room back.
    ///
    /// # Errors
    /// Why one of them stays.
    fn evict_all(&self, victims: Vec<(Arc<PartFile>, u32)>) -> Result<()> {
        let mut all = Ok(());
        for (file, index) in victims {
            let key = file.key(index);
            let word = &file.header.entry(index).word;
            let gone = {
                let _latch = self.latches.step(key);
                // Cut off meanwhile, and perhaps written anew, it is not ours any more.
                if word.get().status() != Status::Evicting {
                    continue;
                }
                let start = file.start_of(index);
                match file.disk.punch(start, u64::from(file.part_bytes)) {
                    Ok(()) => {
                        crate::crash_point::crash_point("part.punched");
                        word.make(|word| word.evicted());
                        true
                    }
                    Err(error) => {
                        tracing::debug!(part = %file.part(index), %error, "is not evicted");
                        word.make(|word| word.evict_undone());
                        all = Err(self.disk_error(&file, &error));
                        false
                    }
                }
            };
            if gone {
                self.totals
                    .evictions
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.resident.remove(key);
            }
            if !is(Mutant::EvictedInSilence) {
                file.moved();
            }
        }
        all
    }

    /// Nothing can go: does what can be done about it.
    fn explain(&self, gave_way: &mut Option<Instant>) {
        let lockers = match self.stuck() {
            Stuck::Uploads => {
                return match self.uploads_no_more() {
                    Some(error) => self.cache.refuse(|_| true, &error),
                    None => self.flusher.hurry(),
                };
            }
            Stuck::Busy => return self.give_up_prefetches(),
            Stuck::Held(lockers) => lockers,
        };
        // Who was told to give way gets a moment to do so.
        if gave_way.is_some_and(|at| at.elapsed() < self.config.deadlock_timeout) {
            return;
        }
        let waiting = self.cache.waiting();
        let waits = |id: u64| {
            let for_room = waiting
                .iter()
                .any(|wait| wait.locker.as_ref().is_some_and(|l| l.id == id));
            for_room || self.locks.is_waiting(id)
        };
        let names = |ids: &BTreeSet<u64>| -> Vec<String> {
            let live = self.locks.lockers.live();
            let named = live.iter().filter(|locker| ids.contains(&locker.id));
            named.map(|locker| locker.name.clone()).collect()
        };
        let victim = waiting
            .iter()
            .filter_map(|wait| wait.locker.as_ref())
            .filter(|locker| locker.role == Role::Foreground && lockers.contains(&locker.id))
            .map(|locker| locker.id)
            .max();
        match victim {
            // Each of them waits for what the others hold.
            Some(victim) if lockers.len() > 1 && lockers.iter().all(|id| waits(*id)) => {
                let cycle = names(&lockers);
                tracing::warn!(?cycle, "deadlock for room: a locker gives way");
                let gives = |l: &Arc<super::locker::LockerState>| l.id == victim;
                self.cache.refuse(
                    |wait| wait.locker.as_ref().is_some_and(gives),
                    &Error::WouldDeadlock { cycle },
                );
                *gave_way = Some(Instant::now());
            }
            _ => {
                let error = Error::CacheFull {
                    max: self.cache.limit(),
                    pinned_by: names(&lockers),
                };
                // What they let go of then may be all that a checkpointer needs.
                let is_foreground = |wait: &Wait| {
                    let locker = wait.locker.as_ref();
                    locker.is_none_or(|locker| locker.role == Role::Foreground)
                };
                let everybody = !waiting.iter().any(is_foreground);
                self.cache
                    .refuse(|wait| everybody || is_foreground(wait), &error);
                if !waiting.iter().all(is_foreground) {
                    *gave_way = Some(Instant::now());
                }
            }
        }
    }

    /// Why nothing that is dirty will ever be clean in this life.
    fn uploads_no_more(&self) -> Option<Error> {
        let failed = self.failed.get();
        let failed = failed.map(|cause| Error::StoreFailed(cause.clone()));
        failed.or_else(|| self.fenced().cloned())
    }

    fn stuck(&self) -> Stuck {
        let here: Vec<(Arc<PartFile>, u32, u64)> = {
            let ring = self.resident.ring.lock();
            let here = ring.parts.values();
            here.map(|h| (Arc::clone(&h.file), h.index, h.frame.bytes()))
                .collect()
        };
        let mut uploads = false;
        let mut busy = here.iter().map(|(_, _, bytes)| bytes).sum::<u64>() < self.cache.used().0;
        let mut held_parts = BTreeSet::new();
        for (file, index, _) in &here {
            let word = file.header.entry(*index).word.look();
            uploads |= !word.is_clean() || file.log.lock().intents.contains_key(index);
            if word.is_held() {
                held_parts.insert(file.key(*index));
            } else {
                // In nobody's hands: it went in or out of use just now.
                busy = true;
            }
        }
        if uploads {
            return Stuck::Uploads;
        }
        let mut lockers = BTreeSet::new();
        let mut by_guards = BTreeSet::new();
        for locker in self.locks.lockers.live() {
            for held in locker.held() {
                if held_parts.contains(&held.key) {
                    lockers.insert(locker.id);
                    by_guards.insert(held.key);
                }
            }
        }
        // What no guard holds is held for one step only.
        if busy || by_guards.len() < held_parts.len() || here.is_empty() {
            return Stuck::Busy;
        }
        Stuck::Held(lockers)
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tokio::runtime::Handle;

    use crate::io::Io;
    use crate::testing::fs::SimFs;
    use crate::testing::remote::SimRemote;
    use crate::{FileId, FileOptions, PartStore, RunOn, StoreConfig};

    use super::*;

    const PART: usize = 4096;
    /// What takes longer does not come.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Who ends intents has a log and waits for a latch, and who writes has the latch and waits
    /// for the ring: the evictor, who waits for the log, must not have the ring meanwhile.
    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::disallowed_methods,
        reason = "threads that wait for each other, and may hang"
    )]
    async fn who_waits_for_a_log_does_not_have_the_ring() {
        let mut config = StoreConfig::new("/q");
        config.fencing = crate::Fencing::Off;
        config.checkpoint_at_shutdown = false;
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.cache_bytes = 8 * PART as u64;
        config.dirty_bytes = 4 * PART as u64;
        config.checkpoint_cache_bytes = PART as u64;
        config.queue.segment_bytes = 64 * 1024;
        config.queue.max_disk_bytes = 64 * 1024 * 1024;
        let store = PartStore::builder(config, Arc::new(SimRemote::new()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(SimFs::new()), Io::inline())
            .open()
            .await
            .expect("opens");
        let options = FileOptions { part_bytes: 4096 };
        let file = store.create(FileId(1), options).await.expect("creates");
        let bytes = [7; PART];
        file.write_at(&bytes, 0).await.expect("writes");
        while store.snapshot().dirty_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let parts = store.parts();
        let part_file = parts.file(FileId(1)).expect("is there");
        let (taken, has_taken) = sync_channel(1);
        let (counted, has_counted) = sync_channel(1);
        let log = part_file.log.lock();
        let (evictor, looks) = (Arc::clone(&parts), Arc::clone(&part_file));
        let victims = std::thread::spawn(move || evictor.victims(PART as u64).len());
        std::thread::spawn(move || {
            while looks.header.entry(0).word.get().status() != Status::Evicting {
                std::thread::yield_now();
            }
            taken.send(())
        });
        has_taken.recv_timeout(LIMIT).expect("takes a victim");
        let writer = Arc::clone(&parts);
        std::thread::spawn(move || counted.send(writer.resident()));
        let here = has_counted.recv_timeout(LIMIT);
        drop(log);
        assert_eq!(victims.join().expect("ends"), 1);
        assert_eq!(here, Ok(1), "the ring is free");
    }
}
