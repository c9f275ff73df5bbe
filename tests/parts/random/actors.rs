//! Several at once: actors, each with bytes of its own, and others who only look.
//!
//! While actors are at it the length of the files stays as it is. Each has a copy of the model, in
//! which its own bytes are right. In the end each byte is looked at in its owner's copy: after all
//! have finished, or after a crash in the middle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use s3_writeback::{Error, FileId, Locker, Mode, PartId, PartStore, Role};

use super::life::{Open, World};
use super::model::{FileModel, MAX_PARTS};
use crate::how::{How, Out, polled, run};

/// What one actor knows, and which bytes of each part are its own.
pub struct Shard {
    pub files: BTreeMap<u64, FileModel>,
    pub own: BTreeMap<(u64, usize), Range<usize>>,
}

struct Actor {
    store: PartStore,
    rng: StdRng,
    shard: Shard,
    locker: Locker,
    faulty: bool,
}

/// Whether an error can be, where others hold parts, cut and drop.
pub fn is_excused(error: &Error) -> bool {
    matches!(
        error,
        Error::TimedOut { .. }
            | Error::CacheFull { .. }
            | Error::WouldDeadlock { .. }
            | Error::NoRoom { .. }
            | Error::Locked { .. }
            | Error::Loading { .. }
            | Error::WouldWait(_)
            | Error::PastEnd { .. }
            | Error::Deleted { .. }
            | Error::UnknownFile { .. }
            | Error::ShuttingDown { .. }
    )
}

impl Actor {
    fn how(&mut self) -> How {
        let ms = Duration::from_millis;
        match self.rng.random_range(0..16) {
            0 => How::Polls(self.rng.random_range(0..12)),
            1 => How::Cancel(ms(self.rng.random_range(0..50))),
            2 => How::Now,
            _ if self.faulty => How::Within(ms(self.rng.random_range(1..20_000))),
            _ => How::Full,
        }
    }

    fn check(&self, how: How, error: &Error) {
        let fine = match error {
            Error::TimedOut { .. } => self.faulty,
            Error::CacheFull { .. } | Error::WouldDeadlock { .. } => true,
            Error::NoRoom { .. }
            | Error::Locked { .. }
            | Error::Loading { .. }
            | Error::WouldWait(_) => how == How::Now,
            _ => false,
        };
        assert!(fine, "{how:?}: {error:?} {:#?}", self.store.snapshot());
    }

    /// A run within some of its bytes of a part.
    fn pick(&mut self) -> Option<(u64, usize, usize, usize)> {
        if self.shard.own.is_empty() {
            return None;
        }
        let nth = self.rng.random_range(0..self.shard.own.len());
        let ((id, index), range) = self.shard.own.iter().nth(nth)?;
        let (id, index, range) = (*id, *index, range.clone());
        let here = self.shard.files[&id].len_of(index);
        let range = range.start.min(here)..range.end.min(here);
        if range.is_empty() {
            return None;
        }
        if self.rng.random_bool(0.4) {
            return Some((id, index, range.start, range.len()));
        }
        let at = self.rng.random_range(range.clone());
        Some((id, index, at, self.rng.random_range(1..=range.end - at)))
    }

    fn part(&mut self, id: u64, index: usize) -> &mut super::model::Part {
        let file = self.shard.files.get_mut(&id).expect("is known");
        &mut file.parts[index]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        vec![self.rng.random(); len]
    }

    async fn read(&mut self) {
        let Some((id, index, at, len)) = self.pick() else {
            return;
        };
        let how = self.how();
        let file = self.store.file(FileId(id)).expect("is there");
        let mut bytes = vec![0xEE; len];
        let from = index * self.shard.files[&id].part + at;
        match run(how, file.read_at(&mut bytes, from as u64)).await {
            Out::Done(()) => self.was_read(id, index, at, &bytes),
            Out::Failed(error) => self.check(how, &error),
            Out::Cancelled => (),
        }
    }

    fn was_read(&mut self, id: u64, index: usize, at: usize, bytes: &[u8]) {
        if let Err(text) = self.part(id, index).read(at, bytes) {
            panic!("file {id}, part {index}: {text}");
        }
    }

    async fn write(&mut self) {
        let Some((id, index, at, len)) = self.pick() else {
            return;
        };
        let (how, bytes) = (self.how(), self.bytes(len));
        let file = self.store.file(FileId(id)).expect("is there");
        let from = index * self.shard.files[&id].part + at;
        self.part(id, index).may_be_written(at, &bytes);
        match run(how, file.write_at(&bytes, from as u64)).await {
            Out::Done(()) => self.part(id, index).write(at, &bytes),
            Out::Failed(error) => self.check(how, &error),
            Out::Cancelled => (),
        }
    }

    async fn sync(&mut self) {
        let Some((id, _, _, _)) = self.pick() else {
            return;
        };
        let how = self.how();
        let file = self.store.file(FileId(id)).expect("is there");
        match run(how, file.sync()).await {
            Out::Done(()) => {
                let file = self.shard.files.get_mut(&id).expect("is known");
                file.synced();
            }
            Out::Failed(error) => self.check(how, &error),
            Out::Cancelled => (),
        }
    }

    /// Locks a part, reads and writes through the guard, and lets go.
    async fn lock(&mut self) {
        let Some((id, index, at, len)) = self.pick() else {
            return;
        };
        let file = self.store.file(FileId(id)).expect("is there");
        let mode = [Mode::Pin, Mode::Shared, Mode::Exclusive][self.rng.random_range(0..3)];
        let how = self.how();
        let locker = self.locker.clone();
        let lock = file.lock(index as u32, mode, &locker);
        let out = match how {
            How::Polls(times) => {
                let ended = polled(lock.into_future(), times).await;
                ended.map_or(Out::Cancelled, Out::of)
            }
            How::Within(time) => Out::of(lock.within(time).await),
            How::Now => Out::of(lock.now()),
            _ => Out::of(lock.await),
        };
        let guard = match out {
            Out::Done(guard) => guard,
            Out::Failed(error) => return self.check(how, &error),
            Out::Cancelled => return,
        };
        for _ in 0..self.rng.random_range(0..3) {
            let how = self.how();
            if mode == Mode::Shared || self.rng.random_bool(0.5) {
                let mut bytes = vec![0xEE; len];
                match run(how, guard.read_at(&mut bytes, at)).await {
                    Out::Done(()) => self.was_read(id, index, at, &bytes),
                    Out::Failed(error) => self.check(how, &error),
                    Out::Cancelled => (),
                }
            } else {
                let bytes = self.bytes(len);
                self.part(id, index).may_be_written(at, &bytes);
                match run(how, guard.write_at(&bytes, at)).await {
                    Out::Done(()) => self.part(id, index).write(at, &bytes),
                    Out::Failed(error) => self.check(how, &error),
                    Out::Cancelled => (),
                }
            }
            let ms = self.rng.random_range(0..50);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    async fn together(&mut self) {
        let mut picked: Vec<(u64, usize, usize, usize)> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            if let Some(one) = self.pick()
                && !picked
                    .iter()
                    .any(|other| (other.0, other.1) == (one.0, one.1))
            {
                picked.push(one);
            }
        }
        let ids: Vec<PartId> = picked
            .iter()
            .map(|(id, index, _, _)| PartId {
                file: FileId(*id),
                index: *index as u32,
            })
            .collect();
        let how = self.how();
        let mode = if self.rng.random_bool(0.5) {
            Mode::Pin
        } else {
            Mode::Exclusive
        };
        let set = match run(how, self.store.lock_many(&ids, mode, &self.locker)).await {
            Out::Done(set) => set,
            Out::Failed(Error::TooLarge { .. }) => return,
            Out::Failed(error) => return self.check(how, &error),
            Out::Cancelled => return,
        };
        let bytes: Vec<Vec<u8>> = picked.iter().map(|one| self.bytes(one.3)).collect();
        for ((id, index, at, _), bytes) in picked.iter().zip(&bytes) {
            self.part(*id, *index).may_be_written(*at, bytes);
        }
        let pieces: Vec<(PartId, usize, &[u8])> = ids
            .iter()
            .zip(picked.iter().zip(&bytes))
            .map(|(part, (one, bytes))| (*part, one.2, &bytes[..]))
            .collect();
        let how = self.how();
        match run(how, set.write(&pieces)).await {
            Out::Done(()) => {
                for ((id, index, at, _), bytes) in picked.iter().zip(&bytes) {
                    self.part(*id, *index).write(*at, bytes);
                }
            }
            Out::Failed(Error::TooLarge { .. }) => (),
            Out::Failed(error) => self.check(how, &error),
            Out::Cancelled => (),
        }
    }

    async fn act(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.random_range(0..20) {
                0..=5 => self.read().await,
                6..=11 => self.write().await,
                12 => self.sync().await,
                13..=15 => self.lock().await,
                16 | 17 => self.together().await,
                _ => {
                    let ms = self.rng.random_range(0..300);
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
            }
        }
    }
}

/// Reads, locks, prefetches and syncs anywhere, and holds nothing for long.
pub async fn look_around(store: PartStore, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let locker = store
        .locker("looks around", Role::Foreground)
        .expect("a locker");
    let fine = |what: &str, error: &Error| {
        assert!(is_excused(error), "{what}: {error:?}");
    };
    let mut buffer = vec![0; 10_000];
    loop {
        let ids = store.files();
        let ms = Duration::from_millis(rng.random_range(0..200));
        tokio::time::sleep(ms).await;
        if ids.is_empty() {
            continue;
        }
        let Ok(file) = store.file(ids[rng.random_range(0..ids.len())]) else {
            continue;
        };
        let from = rng.random_range(0..=file.len());
        let len = rng.random_range(0..buffer.len());
        match rng.random_range(0..8) {
            0..=2 => {
                let read = file.read_at(&mut buffer[..len], from).await;
                read.unwrap_or_else(|error| fine("read", &error));
            }
            3 | 4 => {
                let index = (from / u64::from(file.part_bytes())) as u32;
                let mode = [Mode::Pin, Mode::Shared, Mode::Exclusive][rng.random_range(0..3)];
                let lock = file.lock(index, mode, &locker).within(ms * 20);
                match lock.await {
                    Ok(guard) => {
                        tokio::time::sleep(ms).await;
                        drop(guard);
                    }
                    Err(error) => fine("lock", &error),
                }
            }
            5 => drop(file.prefetch(from..from + len as u64)),
            6 => {
                let read = polled(file.read_at(&mut buffer[..len], from).into_future(), 3).await;
                if let Some(Err(error)) = read {
                    fine("read", &error);
                }
            }
            _ => {
                let synced = file.sync().await;
                synced.unwrap_or_else(|error| fine("sync", &error));
            }
        }
    }
}

impl World {
    /// Whether every part is known to be one thing.
    fn is_settled(&self) -> bool {
        let parts = self.files.values().flat_map(|file| &file.parts);
        parts
            .clone()
            .all(|part| !part.torn && part.whole.len() == 1)
    }

    pub async fn act(&mut self, open: &mut Open) {
        open.guards.clear();
        self.read_all(open).await;
        if self.files.is_empty() || !self.is_settled() {
            return;
        }
        let count = self.rng.random_range(2..5);
        let mut actors = Vec::new();
        let mut own = vec![BTreeMap::new(); count];
        for (id, file) in &self.files {
            let mut ends: Vec<usize> = (1..count)
                .map(|_| self.rng.random_range(0..=file.part))
                .collect();
            ends.push(file.part);
            ends.sort_unstable();
            for index in 0..file.parts_now() {
                if self.rng.random_bool(0.3) {
                    own[self.rng.random_range(0..count)].insert((*id, index), 0..file.part);
                    continue;
                }
                let mut from = 0;
                for (nth, end) in ends.iter().enumerate() {
                    if from < *end {
                        own[nth].insert((*id, index), from..*end);
                    }
                    from = *end;
                }
            }
        }
        for (nth, own) in own.into_iter().enumerate() {
            let locker = open.store.locker(&format!("actor {nth}"), Role::Foreground);
            actors.push(Actor {
                store: open.store.clone(),
                rng: StdRng::seed_from_u64(self.rng.random()),
                shard: Shard {
                    files: self.files.clone(),
                    own,
                },
                locker: locker.expect("a locker"),
                faulty: self.faulty,
            });
        }
        let steps = self.rng.random_range(3..30);
        let most = match self.rng.random_bool(0.5) {
            true => Duration::from_millis(self.rng.random_range(0..3000)),
            false => Duration::from_secs(3600 * 24),
        };
        self.say(format!("{count} actors, {steps} steps each, for {most:?}"));
        let all = futures::future::join_all(actors.iter_mut().map(|actor| actor.act(steps)));
        let ended = tokio::time::timeout(most, all).await.is_ok();
        self.shards = actors.into_iter().map(|actor| actor.shard).collect();
        if ended && self.rng.random_bool(0.5) {
            self.join(open).await;
        } else {
            self.crash_now = true;
        }
    }

    /// Reads everything, and has each actor's copy say whether it may be that.
    pub async fn join(&mut self, open: &Open) {
        self.heal();
        let mut shards = std::mem::take(&mut self.shards);
        let mut found = Vec::new();
        for (id, file) in &self.files {
            for index in 0..MAX_PARTS {
                let mut bytes = vec![0xEE; file.len_of(index)];
                if !bytes.is_empty() {
                    let from = (index * file.part) as u64;
                    loop {
                        match open.files[id].read_at(&mut bytes, from).await {
                            // Others hold what they look at.
                            Err(Error::CacheFull { .. }) if self.crowded => {
                                tokio::time::sleep(Duration::from_millis(10)).await;
                            }
                            read => break read.expect("reads"),
                        }
                    }
                }
                for shard in &mut shards {
                    let Some(mask) = shard.own.get(&(*id, index)) else {
                        continue;
                    };
                    let mask = mask.start..mask.end.min(bytes.len()).max(mask.start);
                    let model = shard.files.get_mut(id).expect("is known");
                    let part = &mut model.parts[index];
                    let fits = if part.torn {
                        part.adopt(&bytes, mask)
                    } else {
                        let mine = bytes.get(mask.clone()).unwrap_or_default();
                        part.read(mask.start, mine)
                    };
                    if let Err(text) = fits {
                        panic!("file {id}, part {index}, of an actor: {text}");
                    }
                }
                found.push((*id, index, bytes));
            }
        }
        open.store.sync_all().await.expect("syncs");
        for (id, index, bytes) in found {
            self.model(id).parts[index].is_now(&bytes);
        }
        for file in self.files.values_mut() {
            file.synced();
        }
    }
}
