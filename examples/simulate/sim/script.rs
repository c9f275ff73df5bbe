//! The work of a life in which nothing is left to chance: one actor, one thing after another.
//!
//! Owns: what is done, and what is noted of it in the book. Does not own: what goes wrong
//! ([`super::nth`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{
    CheckpointOptions, Error, FileId, KeyPolicy, Locker, Mode, Operation, Options, PartId, Receipt,
    Role, StoreConfig,
};
use tokio::time::Instant;

use super::acts;
use super::env::{Env, lock};
use super::how::{How, Out};
use super::model::{Act, Reg, UNIT};
use super::nth::Fate;
use super::objects::{self, Objects};
use super::pages::{self, OPTIONS, OWN, PART, Run, SHARED, UNITS_OF_PART};
use super::versions;

/// What an operation may take beyond its deadline.
const SLACK: Duration = Duration::from_secs(1);

pub struct Script<'a> {
    pub env: &'a Env,
    pub config: &'a StoreConfig,
    pub fate: &'a Fate,
    pub objects: &'a Arc<Mutex<Objects>>,
    pub remote: &'a SimRemote,
    /// Names what this life submits.
    pub life: u64,
    locker: Locker,
    receipts: Arc<Mutex<Vec<Receipt>>>,
    /// Files of which nobody knows how they are until the next open.
    lost: BTreeSet<u64>,
}

impl<'a> Script<'a> {
    pub fn new(
        env: &'a Env,
        config: &'a StoreConfig,
        fate: &'a Fate,
        objects: &'a Arc<Mutex<Objects>>,
        remote: &'a SimRemote,
        life: u64,
    ) -> Self {
        let locker = env.store.locker("the script", Role::Foreground);
        Self {
            env,
            config,
            fate,
            objects,
            remote,
            life,
            locker: locker.expect("a locker"),
            receipts: Arc::default(),
            lost: BTreeSet::new(),
        }
    }

    pub fn receipts(&self) -> Arc<Mutex<Vec<Receipt>>> {
        Arc::clone(&self.receipts)
    }

    /// Waits for an operation, which has its own deadline: an error has to come from what went
    /// wrong.
    async fn ask<T: Send>(&self, what: &str, most: Duration, op: Operation<'_, T>) -> Option<T> {
        let began = Instant::now();
        let out = Out::of(op.await);
        self.fate.live_on().await;
        let took = began.elapsed();
        self.env
            .say(|| format!("{what}: {} after {took:?}", out.text()));
        assert!(
            took <= most + SLACK,
            "{what} took {took:?} and has {most:?}"
        );
        lock(self.objects).look(self.remote);
        match out {
            Out::Done(done) => Some(done),
            Out::Failed(error) => {
                self.fate.excuse(self.env, what, &error);
                None
            }
            Out::Cancelled => unreachable!("nobody cancels"),
        }
    }

    async fn io<T: Send>(&self, what: &str, op: Operation<'_, T>) -> Option<T> {
        self.ask(what, self.config.io_deadline, op).await
    }

    async fn queued<T: Send>(&self, what: &str, op: Operation<'_, T>) -> Option<T> {
        self.ask(what, self.config.queue.op_deadline, op).await
    }

    fn knows(&self, file: u64) -> bool {
        !self.lost.contains(&file) && self.env.book.last(Reg::There(file)) == 1
    }

    /// What makes, cuts or grows a file has ended; if it has failed, the file is not known.
    fn shaped(&mut self, file: u64, act: &Act, done: Option<()>) {
        match done {
            Some(()) => self.env.book.end(act),
            None => drop(self.lost.insert(file)),
        }
    }

    async fn create(&mut self, file: u64) {
        if self.knows(file) || self.lost.contains(&file) {
            return;
        }
        let act = acts::create(&self.env.book, file);
        let op = self.env.store.create(FileId(file), OPTIONS);
        let done = self.io(&format!("create {file}"), op).await.map(drop);
        self.shaped(file, &act, done);
    }

    async fn drop_file(&mut self, file: u64) {
        if !self.knows(file) {
            return;
        }
        let act = acts::drop_file(&self.env.book, file);
        let op = self.env.store.drop_file(FileId(file), &self.locker);
        let done = self.io(&format!("drop {file}"), op).await;
        self.shaped(file, &act, done);
    }

    async fn set_len(&mut self, file: u64, units: u64) {
        if !self.knows(file) {
            return;
        }
        let act = acts::set_len(&self.env.book, file, units);
        let there = self.env.store.file(FileId(file)).expect("is there");
        let op = there.set_len(units * UNIT);
        let done = self.io(&format!("set_len {file}"), op).await;
        self.shaped(file, &act, done);
    }

    /// Writes units of a file, which may be past its end.
    async fn write(&mut self, file: u64, from: u64, units: u64) {
        if !self.knows(file) {
            return;
        }
        let run = Run { file, from, units };
        // A write that the disk fails may leave a part of it.
        let is_one_step = run.is_in_one_part() && !self.env.world.disk_is_bad.get();
        let (act, grows) = acts::write(&self.env.book, run, is_one_step);
        let there = self.env.store.file(FileId(file)).expect("is there");
        let bytes = pages::filled(act.id, units);
        let op = there.write_at(&bytes, from * UNIT);
        match self.io(&format!("write {run:?}"), op).await {
            Some(()) => self.env.book.end(&act),
            None if grows => drop(self.lost.insert(file)),
            None => (),
        }
    }

    /// Writes the first units of two parts in one step.
    async fn together(&self, parts: [(u64, u32); 2], units: u64) {
        if parts.iter().any(|(file, _)| !self.knows(*file)) {
            return;
        }
        let run = |(file, index): &(u64, u32)| Run {
            file: *file,
            from: u64::from(*index) * UNITS_OF_PART,
            units,
        };
        let part = |(file, index): &(u64, u32)| PartId {
            file: FileId(*file),
            index: *index,
        };
        let ids: Vec<PartId> = parts.iter().map(part).collect();
        let (store, locker) = (&self.env.store, &self.locker);
        let op = store.lock_many(&ids, Mode::Exclusive, locker);
        let Some(set) = self.io("lock two parts", op).await else {
            return;
        };
        let is_one_step = !self.env.world.disk_is_bad.get();
        let act = self.env.book.begin(is_one_step, |id| {
            parts.iter().flat_map(|part| run(part).puts(id)).collect()
        });
        let bytes = pages::filled(act.id, units);
        let pieces: Vec<(PartId, usize, &[u8])> =
            ids.into_iter().map(|id| (id, 0, &bytes[..])).collect();
        if self
            .io("write two parts", set.write(&pieces))
            .await
            .is_some()
        {
            self.env.book.end(&act);
        }
    }

    /// Reads all of a file, part by part.
    async fn read(&self, file: u64) {
        if !self.knows(file) {
            return;
        }
        let there = self.env.store.file(FileId(file)).expect("is there");
        let len = self.env.book.last(Reg::Len(file));
        for at in (0..len).step_by(PART as usize) {
            let units = (len - at).min(PART) / UNIT;
            let mut bytes = pages::filled(u64::MAX - 1, units);
            let op = there.read_at(&mut bytes, at);
            if self.io(&format!("read {file} at {at}"), op).await.is_some() {
                for (unit, value) in (at / UNIT..).zip(pages::numbers(&bytes)) {
                    self.env.book.seen(Reg::Unit(file, unit), value);
                }
            }
        }
    }

    async fn sync(&self, id: u64) {
        let Ok(file) = self.env.store.file(FileId(id)) else {
            return;
        };
        let since = self.env.book.now();
        if self.io(&format!("sync {id}"), file.sync()).await.is_some() {
            self.env.book.synced(since, |reg| match reg {
                Reg::There(file) | Reg::Len(file) | Reg::Unit(file, _) => file == id,
            });
        }
    }

    async fn sync_all(&self) {
        let since = self.env.book.now();
        let op = self.env.store.sync_all();
        if self.io("sync_all", op).await.is_some() {
            self.env.book.synced(since, |_| true);
        }
    }

    /// Gives a named object another state (`None`: deletes it), and waits until that is durable.
    async fn name(&self, name: &str, padding: Option<usize>, options: Options) -> Option<Receipt> {
        let key = format!("{}{name}", objects::UNDER);
        let at = lock(self.objects).begin(&key, |at| {
            padding.map(|padding| objects::body(&key, at, padding))
        });
        let queue = self.env.store.queue();
        let op = match lock(self.objects).body(&key, at) {
            Some(body) => queue.submit(key.clone(), body, options),
            None => queue.delete(key.clone(), options),
        };
        let receipt = self.queued(&format!("submit {key}"), op).await?;
        lock(&self.receipts).push(receipt.clone());
        let what = format!("durable {key}");
        self.queued(&what, receipt.durable()).await?;
        lock(self.objects).durable(&key, at);
        Some(receipt)
    }

    async fn checkpoint(&self) {
        let book = self.env.book.clone();
        let since = book.now();
        let options = CheckpointOptions::new().meta(move || versions::meta_of(&book));
        // As long again as one that is under way, and a moment.
        let most = 2 * self.config.checkpoint_within + SLACK;
        let op = self.env.store.checkpoint(options);
        if self.ask("checkpoint", most, op).await.is_some() {
            self.env.book.synced(since, |_| true);
        }
    }

    /// All of it, but for the end.
    pub async fn act(&mut self) {
        let rewritable = Options {
            policy: KeyPolicy::Rewritable,
            ..Options::default()
        };
        self.create(SHARED).await;
        self.create(OWN).await;
        self.set_len(SHARED, 4 * UNITS_OF_PART).await;
        for part in 0..4 {
            self.write(SHARED, part * UNITS_OF_PART, 3).await;
        }
        // What grows a file is within a part: cut off, it has grown by all or nothing.
        self.write(OWN, 0, UNITS_OF_PART).await;
        self.write(OWN, UNITS_OF_PART, UNITS_OF_PART).await;
        self.write(OWN, 5, 6).await;
        self.sync(SHARED).await;
        self.sync_all().await;
        // In a file of its own, and in the journal.
        let first = self.name("first", Some(700), rewritable.clone()).await;
        let options = Options {
            after: first.into_iter().collect(),
            ..Options::default()
        };
        let second = format!("second/{}", self.life);
        let _receipt = self.name(&second, Some(40), options).await;
        self.checkpoint().await;
        let _receipt = self.name("first", None, rewritable).await;
        self.write(SHARED, 1, 1).await;
        self.write(OWN, 2 * UNITS_OF_PART, 4).await;
        self.together([(SHARED, 1), (OWN, 0)], 2).await;
        self.set_len(OWN, 5).await;
        self.set_len(OWN, UNITS_OF_PART + 3).await;
        self.read(SHARED).await;
        self.read(OWN).await;
        self.sync(SHARED).await;
        self.drop_file(OWN).await;
        self.checkpoint().await;
        let most = self.config.checkpoint_within + SLACK;
        let _report = self.ask("gc", most, self.env.store.gc()).await;
        self.drain().await;
    }

    async fn drain(&self) {
        let drained = self.queued("drain", self.env.store.queue().drain()).await;
        if drained.is_some() {
            lock(self.objects).look_at_rest(self.remote);
        }
    }
}

/// How an operation of the script is waited for.
pub const HOW: How = How::Full;

/// Errors that one actor alone never gets.
pub fn is_of_a_crowd(error: &Error) -> bool {
    matches!(
        error,
        Error::CacheFull { .. } | Error::WouldDeadlock { .. } | Error::Locked { .. }
    )
}
