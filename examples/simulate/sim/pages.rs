//! An actor that reads and writes parts: some of one file are its own, and another file is.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::{Error, File, FileId, FileOptions, Locker, Mode, PartId, Phase, Role};

use super::env::Env;
use super::how::{self, How, Out};
use super::model::{Act, Reg, TORN, UNIT};

/// The file that all actors write to, each to units of its own.
pub const SHARED: u64 = 1;
/// The file of one part that the engine writes its roots to while shutdown waits for it.
pub const ROOTS: u64 = 2;
/// Files from here on belong to one actor each.
pub const OWN: u64 = 10;
pub const PART: u64 = 4096;
pub const OPTIONS: FileOptions = FileOptions {
    part_bytes: PART as u32,
};
/// Parts of a file at most.
pub const PARTS: u64 = 6;
pub const UNITS_OF_PART: u64 = PART / UNIT;
/// A holder lets go after this long at the latest.
const HOLDS: u64 = 200;

pub struct Pages {
    env: Env,
    rng: StdRng,
    locker: Locker,
    /// Its number, of so many.
    number: u64,
    of: u64,
    /// Nobody knows how its file is until the next open.
    is_lost: bool,
}

/// The numbers that units hold.
pub fn numbers(bytes: &[u8]) -> Vec<u64> {
    let unit = |unit: &[u8]| {
        let words: Vec<u64> = unit
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        match words.iter().all(|word| *word == words[0]) {
            true => words[0],
            false => TORN,
        }
    };
    bytes.chunks_exact(UNIT as usize).map(unit).collect()
}

/// Units that all hold one number.
pub fn filled(number: u64, units: u64) -> Vec<u8> {
    let words = usize::try_from(units * UNIT / 8).expect("fits");
    number.to_le_bytes().repeat(words)
}

/// A run of units of one file.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub file: u64,
    pub from: u64,
    pub units: u64,
}

impl Run {
    pub fn puts(self, value: u64) -> Vec<(Reg, u64)> {
        (self.from..self.from + self.units)
            .map(|unit| (Reg::Unit(self.file, unit), value))
            .collect()
    }

    pub fn is_in_one_part(self) -> bool {
        self.from / UNITS_OF_PART == (self.from + self.units - 1) / UNITS_OF_PART
    }
}

impl Pages {
    pub fn new(env: &Env, number: u64, of: u64, seed: u64) -> Self {
        // One in a few writes in the role of checkpoint code.
        let role = match seed % 5 {
            0 => Role::Checkpointer,
            _ => Role::Foreground,
        };
        if role == Role::Checkpointer {
            env.world.has_checkpointers.set(true);
        }
        let locker = env.store.locker(&format!("actor {number}"), role);
        Self {
            env: env.clone(),
            rng: StdRng::seed_from_u64(seed),
            locker: locker.expect("a locker"),
            number,
            of,
            is_lost: false,
        }
    }

    fn own(&self) -> u64 {
        OWN + self.number
    }

    fn how(&mut self) -> How {
        let ms = Duration::from_millis;
        match self.rng.random_range(0..20) {
            0 => How::Within(ms(self.rng.random_range(1..2000))),
            1 => How::Polls(self.rng.random_range(0..12)),
            2 => How::Cancel(ms(self.rng.random_range(0..50))),
            3 => How::Now,
            _ => How::Full,
        }
    }

    fn file(&self, id: u64) -> Option<File> {
        self.env.store.file(FileId(id)).ok()
    }

    fn units_of(&self, file: u64) -> u64 {
        self.env.book.last(Reg::Len(file)) / UNIT
    }

    /// A run of its own: of its own file, or one unit or a few next to each other of the shared
    /// one.
    fn pick(&mut self) -> Option<Run> {
        let own = self.own();
        let units = self.units_of(own);
        if !self.is_lost && units > 0 && self.rng.random_bool(0.6) {
            let from = self.rng.random_range(0..units);
            let most = (units - from).min(2 * UNITS_OF_PART);
            let units = match self.rng.random_range(0..4) {
                0 => most,
                _ => self.rng.random_range(1..=most.min(3)),
            };
            return Some(Run {
                file: own,
                from,
                units,
            });
        }
        let mine = self.units_of(SHARED) / self.of;
        (mine > 0).then(|| Run {
            file: SHARED,
            from: self.rng.random_range(0..mine) * self.of + self.number,
            units: 1,
        })
    }

    fn ended<T>(&self, act: &Act, out: &Out<T>) {
        if out.is_done() {
            self.env.book.end(act);
        }
    }

    async fn write(&mut self) {
        let Some(run) = self.pick() else { return };
        let how = self.how();
        let Some(file) = self.file(run.file) else {
            return self.lost();
        };
        let act = self.env.book.begin(run.is_in_one_part(), |id| run.puts(id));
        let bytes = filled(act.id, run.units);
        let op = file.write_at(&bytes, run.from * UNIT);
        let out = self.env.run("write", how, op).await;
        self.ended(&act, &out);
        let (number, id) = (self.number, act.id);
        self.env
            .say(|| format!("{number}: write {run:?} = {id}, {how:?}: {}", out.text()));
    }

    async fn read(&mut self) {
        let Some(run) = self.pick() else { return };
        let how = self.how();
        let Some(file) = self.file(run.file) else {
            return self.lost();
        };
        let mut bytes = filled(u64::MAX - 1, run.units);
        let op = file.read_at(&mut bytes, run.from * UNIT);
        let out = self.env.run("read", how, op).await;
        if out.is_done() {
            self.was_read(run, &bytes);
        }
        let number = self.number;
        self.env
            .say(|| format!("{number}: read {run:?}, {how:?}: {}", out.text()));
    }

    fn was_read(&self, run: Run, bytes: &[u8]) {
        for (unit, value) in (run.from..).zip(numbers(bytes)) {
            self.env.book.seen(Reg::Unit(run.file, unit), value);
        }
    }

    /// The file is not there: somebody else has the prefix, or it was never made.
    fn lost(&mut self) {
        self.is_lost = true;
    }

    /// Makes, drops, cuts or grows its own file.
    async fn shape(&mut self) {
        let (own, book) = (self.own(), self.env.book.clone());
        if self.is_lost {
            return;
        }
        let is_there = book.last(Reg::There(own)) == 1;
        let len = book.last(Reg::Len(own));
        let (act, done, what) = if !is_there {
            let act = book.begin(true, |_| vec![(Reg::There(own), 1)]);
            let create = self.env.store.create(FileId(own), OPTIONS);
            let out = self.env.run("create", How::Full, create).await;
            (act, out.is_done(), "create".to_owned())
        } else if self.rng.random_bool(0.1) {
            let act = book.begin(true, |_| {
                let mut puts: Vec<(Reg, u64)> = (0..len / UNIT)
                    .map(|unit| (Reg::Unit(own, unit), 0))
                    .collect();
                puts.extend([(Reg::Len(own), 0), (Reg::There(own), 0)]);
                puts
            });
            let drop = self.env.store.drop_file(FileId(own), &self.locker);
            let out = self.env.run("drop", How::Full, drop).await;
            (act, out.is_done(), "drop".to_owned())
        } else {
            let Some(file) = self.file(own) else {
                return self.lost();
            };
            let new = self.rng.random_range(0..=PARTS * UNITS_OF_PART) * UNIT;
            let act = book.begin(true, |_| {
                let mut puts: Vec<(Reg, u64)> = (new / UNIT..len / UNIT)
                    .map(|unit| (Reg::Unit(own, unit), 0))
                    .collect();
                puts.push((Reg::Len(own), new));
                puts
            });
            let out = self.env.run("set_len", How::Full, file.set_len(new)).await;
            (act, out.is_done(), format!("set_len {new}"))
        };
        if done {
            book.end(&act);
        } else {
            self.lost();
        }
        let number = self.number;
        self.env.say(|| format!("{number}: {what}: {done}"));
    }

    /// Writes past the end, within a part.
    async fn append(&mut self) {
        let own = self.own();
        if self.is_lost || self.env.book.last(Reg::There(own)) == 0 {
            return;
        }
        let units = self.units_of(own);
        let room = UNITS_OF_PART - units % UNITS_OF_PART;
        if units + room > PARTS * UNITS_OF_PART {
            return;
        }
        let Some(file) = self.file(own) else {
            return self.lost();
        };
        let run = Run {
            file: own,
            from: units,
            units: self.rng.random_range(1..=room),
        };
        let act = self.env.book.begin(true, |id| {
            let mut puts = run.puts(id);
            puts.push((Reg::Len(own), (run.from + run.units) * UNIT));
            puts
        });
        let bytes = filled(act.id, run.units);
        let op = file.write_at(&bytes, run.from * UNIT);
        let out = self.env.run("append", How::Full, op).await;
        self.ended(&act, &out);
        if !out.is_done() {
            self.lost();
        }
        let (number, id) = (self.number, act.id);
        self.env
            .say(|| format!("{number}: append {run:?} = {id}: {}", out.text()));
    }

    async fn sync(&mut self) {
        let how = self.how();
        let since = self.env.book.now();
        let number = self.number;
        let (what, out) = if self.rng.random_bool(0.5) {
            let out = self
                .env
                .run("sync_all", how, self.env.store.sync_all())
                .await;
            if out.is_done() {
                self.env.book.synced(since, |_| true);
            }
            ("sync_all", out)
        } else {
            let id = [SHARED, self.own()][self.rng.random_range(0..2)];
            let Some(file) = self.file(id) else { return };
            let out = self.env.run("sync", how, file.sync()).await;
            if out.is_done() {
                self.env.book.synced(since, |reg| match reg {
                    Reg::There(file) | Reg::Len(file) | Reg::Unit(file, _) => file == id,
                });
            }
            ("sync", out)
        };
        if out.is_done() {
            self.env.world.told.notify_waiters();
        }
        self.env
            .say(|| format!("{number}: {what}, {how:?}: {}", out.text()));
    }

    fn mode(&mut self) -> Mode {
        [Mode::Pin, Mode::Shared, Mode::Exclusive][self.rng.random_range(0..3)]
    }

    async fn hold_on(&mut self) {
        let ms = self.rng.random_range(0..HOLDS);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Locks a part of a run, and reads and writes through the guard.
    async fn guarded(&mut self) {
        let Some(mut run) = self.pick() else { return };
        let in_part = run.from % UNITS_OF_PART;
        run.units = run.units.min(UNITS_OF_PART - in_part);
        let (mode, how) = (self.mode(), self.how());
        let Some(file) = self.file(run.file) else {
            return self.lost();
        };
        let index = u32::try_from(run.from / UNITS_OF_PART).expect("fits");
        let locker = self.locker.clone();
        let lock = file.lock(index, mode, &locker);
        let waits = self.env.world.waits("lock");
        let out = how::lock(how, lock).await;
        drop(waits);
        let number = self.number;
        self.env
            .say(|| format!("{number}: lock {run:?} {mode:?}, {how:?}: {}", out.text()));
        let guard = match out {
            Out::Done(guard) => guard,
            Out::Failed(error) => return self.env.check("lock", how, &error),
            Out::Cancelled => return,
        };
        let at = usize::try_from(in_part * UNIT).expect("fits");
        for _ in 0..self.rng.random_range(1..4) {
            let how = self.how();
            if mode == Mode::Shared || self.rng.random_bool(0.3) {
                let mut bytes = filled(u64::MAX - 1, run.units);
                let op = guard.read_at(&mut bytes, at);
                if self.env.run("read by guard", how, op).await.is_done() {
                    self.was_read(run, &bytes);
                }
            } else {
                let act = self.env.book.begin(true, |id| run.puts(id));
                let bytes = filled(act.id, run.units);
                let out = self
                    .env
                    .run("write by guard", how, guard.write_at(&bytes, at))
                    .await;
                self.ended(&act, &out);
            }
            self.hold_on().await;
        }
    }

    /// Several runs, of several parts, in one step.
    async fn together(&mut self) {
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..self.rng.random_range(2..5) {
            let Some(mut run) = self.pick() else { continue };
            run.units = run.units.min(UNITS_OF_PART - run.from % UNITS_OF_PART);
            let part = |run: &Run| (run.file, run.from / UNITS_OF_PART);
            if !runs.iter().any(|other| part(other) == part(&run)) {
                runs.push(run);
            }
        }
        let part = |run: &Run| PartId {
            file: FileId(run.file),
            index: u32::try_from(run.from / UNITS_OF_PART).expect("fits"),
        };
        let ids: Vec<PartId> = runs.iter().map(part).collect();
        if ids.is_empty() || ids.iter().any(|id| self.file(id.file.0).is_none()) {
            return;
        }
        let how = self.how();
        let mode = match self.rng.random_bool(0.5) {
            true => Mode::Pin,
            false => Mode::Exclusive,
        };
        let locked = self.env.store.lock_many(&ids, mode, &self.locker);
        let waits = self.env.world.waits("lock many");
        let locked = how::run(how, locked).await;
        drop(waits);
        let set = match locked {
            Out::Done(set) => set,
            // More at once than all of the room.
            Out::Failed(Error::TooLarge { .. }) | Out::Cancelled => return,
            Out::Failed(error) => return self.env.check("lock many", how, &error),
        };
        // A write that the disk fails may leave a part of it.
        let is_one_step = !self.env.world.disk_is_bad.get();
        let act = self.env.book.begin(is_one_step, |id| {
            runs.iter().flat_map(|run| run.puts(id)).collect()
        });
        let bytes: Vec<Vec<u8>> = runs.iter().map(|run| filled(act.id, run.units)).collect();
        let at = |run: &Run| usize::try_from(run.from % UNITS_OF_PART * UNIT).expect("fits");
        let pieces: Vec<(PartId, usize, &[u8])> = runs
            .iter()
            .zip(&bytes)
            .map(|(run, bytes)| (part(run), at(run), &bytes[..]))
            .collect();
        let how = self.how();
        let waits = self.env.world.waits("write together");
        let out = how::run(how, set.write(&pieces)).await;
        drop(waits);
        self.ended(&act, &out);
        match &out {
            Out::Failed(Error::TooLarge { .. }) => (),
            Out::Failed(error) => self.env.check("write together", how, error),
            Out::Done(()) | Out::Cancelled => (),
        }
        let (number, id) = (self.number, act.id);
        self.env
            .say(|| format!("{number}: together {runs:?} = {id}: {}", out.text()));
        self.hold_on().await;
    }

    pub async fn act(mut self) {
        loop {
            match self.rng.random_range(0..100) {
                0..=29 => self.write().await,
                30..=49 => self.read().await,
                50..=57 => self.guarded().await,
                58..=65 => self.together().await,
                66..=73 => self.append().await,
                74..=80 => self.shape().await,
                81..=85 => self.sync().await,
                _ => (),
            }
            let most = match self.rng.random_range(0..10) {
                0 => 3000,
                _ => 60,
            };
            let ms = self.rng.random_range(0..most);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }
}

/// One of the files that there are.
fn any_file(env: &Env, rng: &mut StdRng) -> Option<File> {
    let ids = env.store.files();
    if ids.is_empty() {
        return None;
    }
    env.store.file(ids[rng.random_range(0..ids.len())]).ok()
}

/// Others cut and drop.
fn is_cut(error: &Error) -> bool {
    matches!(
        error,
        Error::PastEnd { .. }
            | Error::OutOfRange { .. }
            | Error::Deleted { .. }
            | Error::UnknownFile { .. }
    )
}

/// Reads, locks, prefetches and syncs anywhere, and holds nothing for long.
pub async fn look_around(env: Env, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let locker = env.store.locker("looks around", Role::Foreground);
    let locker = locker.expect("a locker");
    let mut buffer = vec![0; usize::try_from(3 * PART).expect("fits")];
    loop {
        let ms = Duration::from_millis(rng.random_range(0..400));
        tokio::time::sleep(ms).await;
        let Some(file) = any_file(&env, &mut rng) else {
            continue;
        };
        let from = rng.random_range(0..=file.len());
        let _waits = env.world.waits("a look around");
        let result = match rng.random_range(0..6) {
            0..=2 => {
                let len = rng.random_range(0..buffer.len());
                file.read_at(&mut buffer[..len], from).await
            }
            3 | 4 => {
                let index = u32::try_from(from / PART).expect("fits");
                let mode = [Mode::Pin, Mode::Shared, Mode::Exclusive][rng.random_range(0..3)];
                match file.lock(index, mode, &locker).within(ms * 20).await {
                    Ok(guard) => {
                        tokio::time::sleep(ms / 2).await;
                        drop(guard);
                        Ok(())
                    }
                    Err(Error::TimedOut { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            _ => {
                let _asked = file.prefetch(from..from + PART);
                Ok(())
            }
        };
        match result {
            Ok(()) => (),
            Err(error) if is_cut(&error) => (),
            Err(error) => env.check("a look around", How::Full, &error),
        }
    }
}

/// Reads in the role of checkpoint code, one part at a time, and never has to wait for S3 to take
/// what others wrote, or for what they hold: up to `Draining`.
pub async fn checkpoint_code(env: Env, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let locker = env.store.locker("checkpoint code", Role::Checkpointer);
    let locker = locker.expect("a locker");
    let mut buffer = vec![0; usize::try_from(PART).expect("fits")];
    loop {
        let ms = Duration::from_millis(rng.random_range(0..400));
        tokio::time::sleep(ms).await;
        let Some(file) = any_file(&env, &mut rng) else {
            continue;
        };
        let index = rng.random_range(0..PARTS);
        let from = index * PART;
        let len = file.len().saturating_sub(from).min(PART);
        if len == 0 {
            continue;
        }
        let waits = env.world.waits("checkpoint code");
        let index = u32::try_from(index).expect("fits");
        let result = async {
            let guard = file.lock(index, Mode::Pin, &locker).await?;
            let len = usize::try_from(len).expect("fits");
            guard.read_at(&mut buffer[..len], 0).await
        };
        let result = result.await;
        drop(waits);
        match result {
            Ok(()) => (),
            Err(error) if is_cut(&error) => (),
            Err(Error::ShuttingDown { phase }) => {
                assert!(
                    phase > Phase::Draining,
                    "checkpoint code is refused in {phase}"
                );
            }
            Err(error @ (Error::CacheFull { .. } | Error::WouldDeadlock { .. }))
                if !env.world.has_checkpointers.get() =>
            {
                panic!("checkpoint code has nothing and waits for one part: {error}");
            }
            Err(error) => env.check("checkpoint code", How::Full, &error),
        }
    }
}

/// Makes the files that are nobody's own.
pub async fn found(env: &Env) {
    let book = &env.book;
    for (id, len) in [(SHARED, PARTS * PART), (ROOTS, PART)] {
        if book.last(Reg::There(id)) == 0 {
            let act = book.begin(true, |_| vec![(Reg::There(id), 1)]);
            let created = env.store.create(FileId(id), OPTIONS).await;
            created.expect("is made");
            book.end(&act);
        }
        if book.last(Reg::Len(id)) == 0 {
            let act: Arc<Act> = book.begin(true, |_| vec![(Reg::Len(id), len)]);
            let file = env.store.file(FileId(id)).expect("is there");
            file.set_len(len).await.expect("grows");
            book.end(&act);
        }
    }
}

/// What the engine writes while shutdown waits for its hold; whether it was let.
pub async fn write_roots(env: &Env, locker: &Locker) -> bool {
    let Ok(file) = env.store.file(FileId(ROOTS)) else {
        return false;
    };
    let run = Run {
        file: ROOTS,
        from: 0,
        units: UNITS_OF_PART,
    };
    let act = env.book.begin(true, |id| run.puts(id));
    let bytes = filled(act.id, run.units);
    let by = file.by(locker);
    let out = env.run("roots", How::Full, by.write_at(&bytes, 0)).await;
    if out.is_done() {
        env.book.end(&act);
    }
    let id = act.id;
    env.say(|| format!("the engine's roots = {id}: {}", out.text()));
    out.is_done()
}

/// Looks at all there is, while nobody changes anything.
pub async fn audit(env: &Env, actors: u64) {
    let ids = [SHARED, ROOTS]
        .into_iter()
        .chain((0..actors).map(|number| OWN + number));
    for id in ids {
        let known = super::env::lock(&env.book.model).regs();
        let of_file = |reg: &Reg| matches!(reg, Reg::Unit(file, _) | Reg::Len(file) if *file == id);
        let Ok(file) = env.store.file(FileId(id)) else {
            env.book.seen(Reg::There(id), 0);
            for reg in known.into_iter().filter(of_file) {
                env.book.gone(reg);
            }
            continue;
        };
        env.book.seen(Reg::There(id), 1);
        let len = file.len();
        env.book.seen(Reg::Len(id), len);
        for at in (0..len).step_by(PART as usize) {
            let units = (len - at).min(PART) / UNIT;
            let mut bytes = filled(u64::MAX - 1, units);
            let read = file.read_at(&mut bytes, at).await;
            if let Err(error) = read {
                panic!("file {id} at {at}: {error}\n{:#?}", env.store.snapshot());
            }
            for (unit, value) in (at / UNIT..).zip(numbers(&bytes)) {
                env.book.seen(Reg::Unit(id, unit), value);
            }
        }
        for reg in known.into_iter().filter(of_file) {
            if matches!(reg, Reg::Unit(_, unit) if unit >= len / UNIT) {
                env.book.gone(reg);
            }
        }
    }
}
