//! One step of a life: an operation, how it is waited for, and what the model makes of its end.

use std::time::Duration;

use rand::RngExt;
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, FileOptions, Mode, PartId};

use super::life::{FRAME, Held, Open, World};
use super::model::{FileModel, MAX_PARTS, SECTOR};
use crate::how::{self, How, Out, run};

pub fn conflicts(a: Mode, b: Mode) -> bool {
    match (a, b) {
        (Mode::Pin, _) | (_, Mode::Pin) => false,
        (Mode::Exclusive, _) | (_, Mode::Exclusive) => true,
        (Mode::Shared, Mode::Shared) => false,
    }
}

impl World {
    pub fn how(&mut self) -> How {
        let ms = Duration::from_millis;
        match self.rng.random_range(0..20) {
            0 => How::Within(ms(self.rng.random_range(1..2000))),
            1 | 2 => How::Polls(self.rng.random_range(0..12)),
            3 => How::Cancel(ms(self.rng.random_range(0..50))),
            4 => How::Now,
            _ if self.faulty => How::Within(ms(self.rng.random_range(1..20_000))),
            _ => How::Full,
        }
    }

    pub fn mode(&mut self) -> Mode {
        [Mode::Pin, Mode::Shared, Mode::Exclusive][self.rng.random_range(0..3)]
    }

    /// Whether an error can be: what `how` and the others who are there excuse.
    pub fn check(&self, open: &Open, how: How, error: &Error) {
        let others = !open.guards.is_empty() || self.crowded;
        let fine = match error {
            Error::TimedOut { .. } => matches!(how, How::Within(_) | How::Now) || self.faulty,
            Error::CacheFull { .. } | Error::WouldDeadlock { .. } => others,
            Error::NoRoom { .. }
            | Error::Locked { .. }
            | Error::Loading { .. }
            | Error::WouldWait(_) => how == How::Now,
            _ => false,
        };
        assert!(fine, "{how:?}: {error:?} {:#?}", open.store.snapshot());
    }

    fn file(&mut self, open: &Open) -> Option<(u64, File)> {
        if open.files.is_empty() {
            return None;
        }
        let nth = self.rng.random_range(0..open.files.len());
        let (id, file) = open.files.iter().nth(nth)?;
        Some((*id, file.clone()))
    }

    pub fn model(&mut self, id: u64) -> &mut FileModel {
        self.files.get_mut(&id).expect("is known")
    }

    /// Bytes to write: of one kind, with a few of another, or zeros.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let byte: u8 = match self.rng.random_range(0..8) {
            0 => 0,
            _ => self.rng.random(),
        };
        let mut bytes = vec![byte; len];
        if len > SECTOR && self.rng.random_bool(0.5) {
            let at = self.rng.random_range(0..len);
            let end = self.rng.random_range(at..len);
            bytes[at..end].fill(self.rng.random());
        }
        bytes
    }

    /// Decides what a part is after a crash; `false` where it cannot be read now.
    pub async fn adopt(&mut self, open: &Open, id: u64, index: usize) -> bool {
        let model = self.model(id);
        if !model.parts[index].torn {
            return true;
        }
        let mut found = vec![0xEE; model.len_of(index)];
        let from = (index * model.part) as u64;
        if !found.is_empty() {
            let how = if self.faulty {
                How::Within(Duration::from_secs(20))
            } else {
                How::Full
            };
            let read = run(how, open.files[&id].read_at(&mut found, from)).await;
            if let Out::Failed(error) = &read {
                self.check(open, how, error);
                return false;
            }
        }
        let part = self.model(id).part;
        if let Err(text) = self.model(id).parts[index].adopt(&found, 0..part) {
            panic!("file {id}, part {index}, after a crash: {text}");
        }
        true
    }

    async fn adopt_range(&mut self, open: &Open, id: u64, offset: u64, len: usize) -> bool {
        for (index, _, _) in self.model(id).spans(offset, len) {
            if !self.adopt(open, id, index).await {
                return false;
            }
        }
        true
    }

    /// Reads all of every file; it must be readable.
    pub async fn read_all(&mut self, open: &Open) {
        let ids: Vec<u64> = self.files.keys().copied().collect();
        for id in ids {
            for index in 0..MAX_PARTS {
                if !self.adopt(open, id, index).await {
                    continue;
                }
                let (from, len) = {
                    let model = self.model(id);
                    (index * model.part, model.len_of(index))
                };
                if len > 0 {
                    let how = if self.faulty {
                        How::Within(Duration::from_secs(5))
                    } else {
                        How::Full
                    };
                    self.read(open, id, from as u64, len, how).await;
                }
            }
        }
    }

    pub async fn read(&mut self, open: &Open, id: u64, offset: u64, len: usize, how: How) {
        let mut bytes = vec![0xEE; len];
        let file = &open.files[&id];
        let past = offset + len as u64 > self.model(id).len;
        if !past && !self.adopt_range(open, id, offset, len).await {
            return;
        }
        let out = run(how, file.read_at(&mut bytes, offset)).await;
        self.say(format!(
            "read file {id} {offset}+{len} {how:?}: {}",
            out.text()
        ));
        if past {
            let told =
                matches!(out, Out::Failed(Error::PastEnd { .. })) || matches!(out, Out::Cancelled);
            assert!(told, "{out:?}");
            return;
        }
        match out {
            Out::Done(()) => self.was_read(id, offset, &bytes),
            Out::Failed(error) => self.check(open, how, &error),
            Out::Cancelled => (),
        }
    }

    fn was_read(&mut self, id: u64, offset: u64, bytes: &[u8]) {
        for (index, at, range) in self.model(id).spans(offset, bytes.len()) {
            if let Err(text) = self.model(id).parts[index].read(at, &bytes[range]) {
                panic!("file {id}, part {index}: {text}");
            }
        }
    }

    /// A range to write: aligned or not, of a part or across some, in the file or behind it.
    fn range(&mut self, id: u64) -> (u64, usize) {
        let (part, len, most) = {
            let model = self.model(id);
            (model.part, model.len, model.max_len())
        };
        let reach = (len + 2 * part as u64).min(most);
        let (offset, run) = match self.rng.random_range(0..8) {
            // Whole parts.
            0..=2 => {
                let index = self.rng.random_range(0..reach.div_ceil(part as u64).max(1));
                (index * part as u64, part * self.rng.random_range(1..3))
            }
            // Sectors.
            3 => {
                let sector = self.rng.random_range(0..(reach / SECTOR as u64).max(1));
                (sector * SECTOR as u64, SECTOR * self.rng.random_range(1..9))
            }
            // Across the end of a part.
            4 => {
                let index = self.rng.random_range(1..MAX_PARTS) as u64;
                let before = self.rng.random_range(1..part / 2);
                (index * part as u64 - before as u64, before * 2)
            }
            // At the end.
            5 => (len, self.rng.random_range(1..part)),
            _ => (
                self.rng.random_range(0..=reach),
                self.rng.random_range(1..part * 5 / 2),
            ),
        };
        let offset = offset.min(most - 1);
        (offset, run.min((most - offset) as usize))
    }

    async fn write(&mut self, open: &Open, id: u64) {
        let (offset, len) = self.range(id);
        let bytes = self.bytes(len);
        let how = self.how();
        let spans = self.model(id).spans(offset, len);
        for (index, _, range) in &spans {
            let covers = range.len() == self.model(id).part && self.rng.random_bool(0.5);
            if !covers && !self.adopt(open, id, *index).await {
                return;
            }
        }
        let file = &open.files[&id];
        let out = run(how, file.write_at(&bytes, offset)).await;
        let now = file.len();
        let (first, text) = (bytes[0], out.text());
        self.say(format!(
            "write file {id} {offset}+{len} of {first:02x} {how:?}: {text}, length {now}"
        ));
        if let Out::Failed(error) = &out {
            self.check(open, how, error);
        }
        let done = out.is_done();
        let model = self.model(id);
        let before = model.len;
        let ends: Vec<u64> = spans
            .iter()
            .map(|(_, _, r)| offset + r.end as u64)
            .collect();
        let grown = now > before;
        assert!(!grown || ends.contains(&now), "length {now} of {before}");
        // In order: if a part has grown the file, those before it have been written.
        let sure = match done {
            true => spans.len(),
            false if grown => ends
                .iter()
                .position(|end| *end == now)
                .map_or(0, |at| at + 1),
            false => 0,
        };
        for (nth, (index, at, range)) in spans.into_iter().enumerate() {
            let (part, bytes) = (&mut model.parts[index], &bytes[range]);
            if nth < sure {
                part.write(at, bytes);
                model.grow(ends[nth]);
            } else if ends[nth] <= now && nth + 1 < ends.len() {
                // The last would have been the end of it.
                part.maybe_write(at, bytes);
            }
        }
        assert_eq!(model.len, now, "length after a write");
        if !done && self.rng.random_bool(0.7) {
            // What is not there is there no later.
            let len = len.min(now.saturating_sub(offset) as usize);
            let how = if self.faulty {
                How::Within(Duration::from_secs(5))
            } else {
                How::Full
            };
            self.read(open, id, offset, len, how).await;
        }
    }

    async fn set_len(&mut self, open: &Open, id: u64) {
        let (part, before, most) = {
            let model = self.model(id);
            (model.part as u64, model.len, model.max_len())
        };
        let len = match self.rng.random_range(0..8) {
            0 => 0,
            1 => before,
            2 => self.rng.random_range(0..=before) / part * part,
            3 => self.rng.random_range(before..=most),
            4 => (before + self.rng.random_range(0..part)).min(most),
            5 => before.saturating_sub(self.rng.random_range(0..part)),
            _ => self.rng.random_range(0..=before),
        };
        let keeps = len.div_ceil(part) as usize;
        let held: Vec<usize> = open
            .guards
            .iter()
            .filter(|held| held.file == id && held.index >= keeps)
            .map(|held| held.locker)
            .collect();
        let blocked = len < before && !held.is_empty();
        if len % part != 0 && len < before && !self.adopt(open, id, keeps - 1).await {
            return;
        }
        let how = match self.how() {
            How::Full if blocked => How::Within(Duration::from_millis(200)),
            how => how,
        };
        let file = &open.files[&id];
        let by = self
            .rng
            .random_bool(0.3)
            .then(|| self.rng.random_range(0..open.lockers.len()));
        let out = match by {
            Some(by) => run(how, file.by(&open.lockers[by]).set_len(len)).await,
            None => run(how, file.set_len(len)).await,
        };
        let now = file.len();
        let text = out.text();
        self.say(format!(
            "set_len file {id} {before} to {len} {how:?}: {text}, length {now}"
        ));
        let model = self.model(id);
        match out {
            Out::Done(()) => {
                assert!(!blocked, "cut under a guard");
                assert_eq!(now, len);
                model.set_len(len, true);
                return;
            }
            _ if now == before => (),
            _ => {
                assert_eq!(now, len);
                assert!(!blocked, "cut under a guard");
                model.set_len(len, false);
            }
        }
        if let Out::Failed(error) = out {
            let already = matches!(error, Error::AlreadyHeld { .. });
            if !(already && by.is_some_and(|by| held.contains(&by))) {
                self.check(open, how, &error);
            }
        }
    }

    async fn sync(&mut self, open: &Open, id: u64) {
        let how = self.how();
        let all = self.rng.random_bool(0.2);
        let out = if all {
            run(how, open.store.sync_all()).await
        } else {
            run(how, open.files[&id].sync()).await
        };
        let which = if all {
            "all".to_owned()
        } else {
            format!("file {id}")
        };
        self.say(format!("sync {which} {how:?}: {}", out.text()));
        match out {
            Out::Done(()) if all => self.files.values_mut().for_each(FileModel::synced),
            Out::Done(()) => self.model(id).synced(),
            Out::Failed(error) => self.check(open, how, &error),
            Out::Cancelled => (),
        }
    }

    async fn create(&mut self, open: &mut Open) {
        let id = self.rng.random_range(1..4);
        let most = self.config.max_part_bytes();
        let part = if most >= 2 * FRAME && self.rng.random_bool(0.2) {
            2 * FRAME
        } else {
            FRAME
        };
        let how = self.how();
        let options = FileOptions {
            part_bytes: part as u32,
        };
        let out = run(how, open.store.create(FileId(id), options)).await;
        self.say(format!(
            "create file {id} of {part} {how:?}: {}",
            out.text()
        ));
        if self.files.contains_key(&id) {
            let told = matches!(out, Out::Failed(Error::FileExists { .. }));
            assert!(told || matches!(out, Out::Cancelled), "{out:?}");
            return;
        }
        let done = out.is_done();
        if let Out::Failed(error) = &out {
            self.check(open, how, error);
        }
        if let Ok(file) = open.store.file(FileId(id)) {
            open.files.insert(id, file);
            self.files.insert(id, FileModel::new(part as usize, done));
        } else {
            assert!(!done, "it was created");
        }
    }

    async fn drop_file(&mut self, open: &mut Open, id: u64) {
        let blocked = open.guards.iter().any(|held| held.file == id);
        let how = match self.how() {
            How::Full if blocked => How::Within(Duration::from_millis(200)),
            how => how,
        };
        let by = self.rng.random_range(0..open.lockers.len());
        let out = run(how, open.store.drop_file(FileId(id), &open.lockers[by])).await;
        self.say(format!("drop file {id} {how:?}: {}", out.text()));
        let done = out.is_done();
        if let Out::Failed(error) = &out
            && !(blocked && matches!(error, Error::AlreadyHeld { .. }))
        {
            self.check(open, how, error);
        }
        assert!(!(done && blocked), "dropped under a guard");
        if !done && self.rng.random_bool(0.3) {
            self.model(id).sure &= blocked;
            self.crash_now = true;
            return;
        }
        if !done {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let gone = open.store.file(FileId(id)).is_err();
        assert!(gone || !done, "it was dropped");
        if gone {
            assert!(!blocked, "dropped under a guard");
            self.files.remove(&id);
            open.stale.extend(open.files.remove(&id));
        }
    }

    async fn lock(&mut self, open: &mut Open, id: u64) {
        let parts = self.model(id).parts_now();
        let index = self.rng.random_range(0..=parts);
        let (mode, locker) = (self.mode(), self.rng.random_range(0..open.lockers.len()));
        let here = |held: &&Held| held.file == id && held.index == index;
        let held = open.guards.iter().filter(here);
        let already = held.clone().any(|held| held.locker == locker);
        let taken = held.clone().any(|held| conflicts(held.guard.mode(), mode));
        let how = match self.how() {
            How::Full if taken => How::Within(Duration::from_millis(200)),
            how => how,
        };
        let (file, by) = (open.files[&id].clone(), &open.lockers[locker]);
        let lock = file.lock(index as u32, mode, by);
        let out = how::lock(how, lock).await;
        self.say(format!(
            "lock file {id} part {index} {mode} by {locker} {how:?}: {}",
            out.text()
        ));
        match out {
            Out::Done(guard) => {
                assert!(index < parts && !already && !taken, "granted");
                let guard = guard.into_owned();
                open.guards.push(Held {
                    guard,
                    file: id,
                    index,
                    locker,
                });
            }
            Out::Failed(Error::Deleted { .. }) => assert!(index >= parts, "it is there"),
            Out::Failed(Error::AlreadyHeld { .. }) => assert!(already, "nobody has it"),
            Out::Failed(error) => self.check(open, how, &error),
            Out::Cancelled => (),
        }
    }

    async fn use_guard(&mut self, open: &Open) {
        let held = &open.guards[self.rng.random_range(0..open.guards.len())];
        let (id, index) = (held.file, held.index);
        if !self.adopt(open, id, index).await {
            return;
        }
        let how = self.how();
        let (part, here) = {
            let model = self.model(id);
            (model.part, model.len_of(index))
        };
        let at = self.rng.random_range(0..part);
        let len = self.rng.random_range(1..=part - at);
        let mode = held.guard.mode();
        if self.rng.random_bool(0.5) {
            let mut bytes = vec![0xEE; len];
            let out = run(how, held.guard.read_at(&mut bytes, at)).await;
            self.say(format!(
                "guarded read file {id} part {index} {at}+{len} {how:?}: {}",
                out.text()
            ));
            match out {
                Out::Done(()) => {
                    assert!(at + len <= here, "read past the end");
                    let offset = (index * part + at) as u64;
                    self.was_read(id, offset, &bytes);
                }
                Out::Failed(Error::PastEnd { .. }) => assert!(at + len > here, "it is there"),
                Out::Failed(error) => self.check(open, how, &error),
                Out::Cancelled => (),
            }
            return;
        }
        let (at, len) = if self.rng.random_bool(0.3) {
            (0, part)
        } else {
            (at, len)
        };
        let bytes = self.bytes(len);
        let out = run(how, held.guard.write_at(&bytes, at)).await;
        self.say(format!(
            "guarded write file {id} part {index} {at}+{len} {how:?}: {}",
            out.text()
        ));
        match out {
            Out::Done(()) => {
                assert_ne!(mode, Mode::Shared);
                let model = self.model(id);
                model.parts[index].write(at, &bytes);
                model.grow((index * part + at + len) as u64);
            }
            Out::Failed(Error::InvalidInput { .. }) => assert_eq!(mode, Mode::Shared),
            Out::Failed(error) => self.check(open, how, &error),
            Out::Cancelled => (),
        }
        // Nothing has been written where it is not done.
        assert_eq!(open.files[&id].len(), self.model(id).len);
    }

    /// Some parts, of one file or several, written in one step.
    async fn together(&mut self, open: &Open) {
        let mut parts: Vec<(u64, usize)> = Vec::new();
        let mut frames = 0;
        for _ in 0..self.rng.random_range(1..5) {
            let Some((id, _)) = self.file(open) else {
                return;
            };
            let model = self.model(id);
            let (now, part) = (model.parts_now(), model.part as u64);
            if now == 0 || frames + part > self.config.cache_bytes {
                continue;
            }
            let one = (id, self.rng.random_range(0..now));
            let held = open
                .guards
                .iter()
                .any(|held| (held.file, held.index) == one);
            if held || parts.contains(&one) || !self.adopt(open, id, one.1).await {
                continue;
            }
            frames += part;
            parts.push(one);
        }
        let ids: Vec<PartId> = parts
            .iter()
            .map(|(id, index)| PartId {
                file: FileId(*id),
                index: *index as u32,
            })
            .collect();
        let how = self.how();
        let mode = if self.rng.random_bool(0.3) {
            Mode::Pin
        } else {
            Mode::Exclusive
        };
        let locker = &open.lockers[self.rng.random_range(0..open.lockers.len())];
        let out = run(how, open.store.lock_many(&ids, mode, locker)).await;
        self.say(format!("lock together {parts:?} {how:?}: {}", out.text()));
        let set = match out {
            Out::Done(set) => set,
            Out::Failed(error) => return self.check(open, how, &error),
            Out::Cancelled => return,
        };
        let how = self.how();
        let mut bytes = Vec::new();
        for (id, _) in &parts {
            let part = self.model(*id).part;
            let at = self.rng.random_range(0..part);
            let len = self.rng.random_range(1..=part - at);
            let (at, len) = if self.rng.random_bool(0.3) {
                (0, part)
            } else {
                (at, len)
            };
            bytes.push((at, self.bytes(len)));
        }
        let pieces: Vec<(PartId, usize, &[u8])> = ids
            .iter()
            .zip(&bytes)
            .map(|(part, (at, bytes))| (*part, *at, &bytes[..]))
            .collect();
        let out = run(how, set.write(&pieces)).await;
        self.say(format!("write together {parts:?} {how:?}: {}", out.text()));
        match out {
            Out::Done(()) => {
                for ((id, index), (at, bytes)) in parts.iter().zip(&bytes) {
                    let model = self.model(*id);
                    model.parts[*index].write(*at, bytes);
                    let start = index * model.part;
                    model.grow((start + at + bytes.len()) as u64);
                }
            }
            Out::Failed(Error::TooLarge { .. }) => {
                let room = self.config.dirty_bytes.min(self.config.cache_bytes);
                assert!(frames > room, "there is room");
            }
            Out::Failed(error) => self.check(open, how, &error),
            Out::Cancelled => (),
        }
        drop(set);
        for (id, index) in parts {
            let (part, now) = (self.model(id).part, self.model(id).len_of(index));
            assert_eq!(open.files[&id].len(), self.model(id).len);
            let how = if self.faulty {
                How::Within(Duration::from_secs(5))
            } else {
                How::Full
            };
            if self.rng.random_bool(0.3) {
                self.read(open, id, (index * part) as u64, now, how).await;
            }
        }
    }

    fn fault(&mut self) {
        let error = || RemoteError::transient("x").with_message("500");
        let delay = Duration::from_millis([1, 50, 900, 5000][self.rng.random_range(0..4)]);
        let fault = match self.rng.random_range(0..8) {
            0 | 1 => Fault::Error(error()),
            2 => Fault::Hang,
            3 => Fault::LostReply(error()),
            4 => Fault::HangAfter,
            5 => Fault::Late,
            _ => Fault::Delay(delay),
        };
        let call = [None, Some(Call::Put), Some(Call::Get)][self.rng.random_range(0..3)];
        self.say(format!("S3: {call:?} {fault:?}"));
        match self.rng.random_range(0..4) {
            0 => self.remote.always(call, None, fault),
            _ => {
                let times = self.rng.random_range(1..6);
                self.remote.times(times, call, None, fault);
            }
        }
        self.faulty = true;
    }

    async fn wait(&mut self) {
        let ms = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..10),
            1 => self.rng.random_range(0..200),
            2 => self.rng.random_range(0..3000),
            _ => self.rng.random_range(0..20_000),
        };
        self.say(format!("wait {ms} ms"));
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub async fn step(&mut self, open: &mut Open) {
        let Some((id, file)) = self.file(open) else {
            return self.create(open).await;
        };
        while open.guards.len() > 3 || !open.guards.is_empty() && self.rng.random_bool(0.2) {
            let nth = self.rng.random_range(0..open.guards.len());
            let held = open.guards.remove(nth);
            self.say(format!("unlock file {} part {}", held.file, held.index));
            drop(held);
        }
        match self.rng.random_range(0..100) {
            0..=27 => self.write(open, id).await,
            28..=47 => {
                let (offset, len) = self.range(id);
                let end = self.model(id).len;
                let (offset, len) = match self.rng.random_range(0..10) {
                    0 => (offset, len),
                    _ if offset >= end => (0, len.min(end as usize)),
                    _ => (offset, len.min((end - offset) as usize)),
                };
                let how = self.how();
                self.read(open, id, offset, len, how).await;
            }
            48..=54 => self.set_len(open, id).await,
            55..=60 => self.sync(open, id).await,
            61..=68 => self.lock(open, id).await,
            69..=76 if !open.guards.is_empty() => self.use_guard(open).await,
            77..=80 => self.together(open).await,
            81..=83 => {
                let (offset, len) = self.range(id);
                let parts = file.prefetch(offset..offset + len as u64);
                self.say(format!("prefetch file {id} {offset}+{len}: {parts}"));
            }
            84 | 85 => self.create(open).await,
            86 => self.drop_file(open, id).await,
            87 | 88 if !self.faulty => self.fault(),
            87..=89 if self.faulty => {
                self.say("S3 is well".to_owned());
                self.heal();
            }
            90 => {
                if let Some(stale) = open.stale.last() {
                    let mut byte = [0];
                    let read = stale.read_at(&mut byte, 0).await;
                    assert!(matches!(read, Err(Error::Deleted { .. })), "{read:?}");
                    let written = stale.write_at(&[1], 0).await;
                    assert!(matches!(written, Err(Error::Deleted { .. })), "{written:?}");
                }
            }
            _ => self.wait().await,
        }
    }
}
