//! What a scenario does by hand, noted in the book: nothing of it waits past its deadline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{
    Checkpoint, Error, File, FileId, Guard, KeyPolicy, Locker, Op, Operation, Options, PartId,
    Receipt, Role, Settlement,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::acts;
use super::super::env::{Env, lock};
use super::super::how::polled;
use super::super::life::ENOUGH;
use super::super::model::{Act, Reg, UNIT};
use super::super::objects;
use super::super::pages::{self, OPTIONS, OWN, PART, Run, UNITS_OF_PART};
use super::play::Play;

/// What an operation may take beyond its deadline.
const SLACK: Duration = Duration::from_secs(5);

pub struct Hand<'a> {
    pub env: Env,
    play: &'a Play,
}

/// A checkpoint that was asked for.
pub struct Asked {
    since: u64,
    pub made: JoinHandle<Result<Arc<Checkpoint>, Error>>,
}

/// Spawns on the scenario's own runtime, which ends with the life.
#[expect(
    clippy::disallowed_methods,
    reason = "a scenario's tasks end with its runtime"
)]
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

/// The file of a scenario: no actor has it.
pub fn file(number: u64) -> u64 {
    OWN + 4 + number
}

pub fn rewritable() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    }
}

impl<'a> Hand<'a> {
    pub fn new(play: &'a Play, env: &Env) -> Self {
        Self {
            env: env.clone(),
            play,
        }
    }

    /// Waits for an operation, which has its own deadline.
    pub async fn ask<T>(
        &self,
        what: &str,
        most: Duration,
        op: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let waits = self.env.world.waits(what);
        let out = op.await;
        drop(waits);
        let took = began.elapsed();
        let text = out.as_ref().err().map(ToString::to_string);
        self.env.say(|| format!("{what}: {text:?} after {took:?}"));
        assert!(
            took <= most + SLACK,
            "{what} took {took:?} and has {most:?}"
        );
        lock(&self.play.objects).look(&self.play.remote);
        out
    }

    async fn io<T: Send>(&self, what: &str, op: Operation<'_, T>) -> Result<T, Error> {
        let most = self.play.config.io_deadline;
        self.ask(what, most, op.into_future()).await
    }

    pub async fn queued<T: Send>(&self, what: &str, op: Operation<'_, T>) -> Result<T, Error> {
        let most = self.play.config.queue.op_deadline;
        self.ask(what, most, op.into_future()).await
    }

    pub fn file(&self, file: u64) -> File {
        self.env.store.file(FileId(file)).expect("is there")
    }

    pub fn remote(&self) -> &SimRemote {
        &self.play.remote
    }

    pub fn locker(&self, name: &str) -> Locker {
        let locker = self.env.store.locker(name, Role::Foreground);
        locker.expect("a locker")
    }

    pub fn checkpointer(&self, name: &str) -> Locker {
        let locker = self.env.store.locker(name, Role::Checkpointer);
        locker.expect("a locker")
    }

    fn ended<T>(&self, act: &Act, out: Result<T, Error>) -> Result<T, Error> {
        if out.is_ok() {
            self.env.book.end(act);
        }
        out
    }

    // Files.

    pub async fn create(&self, file: u64) {
        let act = acts::create(&self.env.book, file);
        let op = self.env.store.create(FileId(file), OPTIONS);
        let out = self.io(&format!("create {file}"), op).await;
        self.ended(&act, out).expect("is made");
    }

    /// A file of so many parts that were written.
    pub async fn filled(&self, file: u64, parts: u64) {
        self.create(file).await;
        for part in 0..parts {
            self.fill(file, part).await.expect("is written");
        }
    }

    pub async fn drop_file(&self, file: u64) -> Result<(), Error> {
        let locker = self.locker("drops");
        let act = acts::drop_file(&self.env.book, file);
        let op = self.env.store.drop_file(FileId(file), &locker);
        let out = self.io(&format!("drop {file}"), op).await;
        self.ended(&act, out)
    }

    pub async fn set_len(&self, file: u64, units: u64) -> Result<(), Error> {
        let act = acts::set_len(&self.env.book, file, units);
        let there = self.file(file);
        let out = self
            .io(
                &format!("set_len {file} {units}"),
                there.set_len(units * UNIT),
            )
            .await;
        self.ended(&act, out)
    }

    /// Writes units; the number that they are full of.
    pub async fn write(&self, file: u64, from: u64, units: u64) -> Result<u64, Error> {
        let run = Run { file, from, units };
        let (act, _) = acts::write(&self.env.book, run, run.is_in_one_part());
        let bytes = pages::filled(act.id, units);
        let there = self.file(file);
        let op = there.write_at(&bytes, from * UNIT);
        let out = self.io(&format!("write {run:?} = {}", act.id), op).await;
        self.ended(&act, out).map(|()| act.id)
    }

    /// Writes all of a part.
    pub async fn fill(&self, file: u64, part: u64) -> Result<u64, Error> {
        self.write(file, part * UNITS_OF_PART, UNITS_OF_PART).await
    }

    /// Reads units, which are what they may be; the first of them.
    pub async fn read(&self, file: u64, from: u64, units: u64) -> Result<u64, Error> {
        let there = self.file(file);
        let mut bytes = pages::filled(u64::MAX - 1, units);
        let op = there.read_at(&mut bytes, from * UNIT);
        self.io(&format!("read {file} {from}+{units}"), op).await?;
        let numbers = pages::numbers(&bytes);
        for (unit, value) in (from..).zip(&numbers) {
            self.env.book.seen(Reg::Unit(file, unit), *value);
        }
        Ok(numbers[0])
    }

    /// What a part begins with; all of it is what it may be.
    pub async fn part(&self, file: u64, part: u64) -> Result<u64, Error> {
        self.read(file, part * UNITS_OF_PART, UNITS_OF_PART).await
    }

    /// Begins to write, and gives up when it was polled so many times.
    pub async fn begin_to_write(&self, file: u64, from: u64, units: u64, polls: u32) {
        let run = Run { file, from, units };
        let (act, _) = acts::write(&self.env.book, run, run.is_in_one_part());
        let bytes = pages::filled(act.id, units);
        let there = self.file(file);
        let op = there.write_at(&bytes, from * UNIT);
        if let Some(Ok(())) = polled(op.into_future(), polls).await {
            self.env.book.end(&act);
        }
    }

    /// Writes all of a part that a guard of somebody else has.
    pub async fn fill_by(&self, guard: &Guard<'_>) -> Result<u64, Error> {
        let PartId { file, index } = guard.part();
        let run = Run {
            file: file.0,
            from: u64::from(index) * UNITS_OF_PART,
            units: UNITS_OF_PART,
        };
        let (act, _) = acts::write(&self.env.book, run, true);
        let bytes = pages::filled(act.id, UNITS_OF_PART);
        let op = guard.write_at(&bytes, 0);
        let out = self.io(&format!("write {run:?} by guard"), op).await;
        self.ended(&act, out).map(|()| act.id)
    }

    pub async fn sync(&self, id: u64) -> Result<(), Error> {
        let since = self.env.book.now();
        let there = self.file(id);
        self.io(&format!("sync {id}"), there.sync()).await?;
        self.env.book.synced(since, |reg| match reg {
            Reg::There(file) | Reg::Len(file) | Reg::Unit(file, _) => file == id,
        });
        Ok(())
    }

    pub async fn sync_all(&self) -> Result<(), Error> {
        let since = self.env.book.now();
        self.io("sync_all", self.env.store.sync_all()).await?;
        self.env.book.synced(since, |_| true);
        Ok(())
    }

    /// Waits until S3 has all that was written.
    pub async fn uploaded(&self) {
        let store = &self.env.store;
        let is_up = self
            .play
            .until("S3 has it", || store.snapshot().dirty_bytes == 0);
        is_up.await;
    }

    /// Reads other parts until all but this one of it have been here, and it has not.
    pub async fn evict(&self, file: u64, part: u64) {
        let parts = self.env.book.last(Reg::Len(file)).div_ceil(PART);
        for _ in 0..4 {
            for other in (0..parts).filter(|other| *other != part) {
                self.read(file, other * UNITS_OF_PART, 1)
                    .await
                    .expect("is read");
            }
        }
    }

    // Checkpoints.

    pub async fn checkpoint(&self) -> Result<Arc<Checkpoint>, Error> {
        let since = self.env.book.now();
        // As long again as one that is under way.
        let most = 2 * self.play.config.checkpoint_within;
        let op = self.env.store.checkpoint(Play::options(&self.env.book));
        let made = self.ask("checkpoint", most, op.into_future()).await?;
        self.env.book.synced(since, |_| true);
        Ok(made)
    }

    /// Asks for a checkpoint, and goes on.
    pub fn asks(&self) -> Asked {
        let since = self.env.book.now();
        let op = self.env.store.checkpoint(Play::options(&self.env.book));
        let made = spawn(op.into_future());
        Asked { since, made }
    }

    /// The same, and waits until its line is drawn and images are owed; whoever calls holds them
    /// up.
    pub async fn drawn(&self) -> Asked {
        let store = &self.env.store;
        let owed = || {
            store
                .checkpoint_snapshot()
                .owed
                .is_some_and(|owed| owed > 0)
        };
        assert!(!owed(), "no other is under way");
        let made = self.asks();
        self.play.until("a line is drawn", owed).await;
        made
    }

    /// What became of it.
    pub async fn made(&self, asked: Asked) -> Result<Arc<Checkpoint>, Error> {
        let most = 2 * self.play.config.checkpoint_within;
        let ends = async { asked.made.await.expect("ends") };
        let made = self.ask("checkpoint", most, ends).await?;
        self.env.book.synced(asked.since, |_| true);
        Ok(made)
    }

    // Named objects.

    /// Gives a named object another state (`None`: deletes it); its number, and the receipt.
    pub async fn submit(
        &self,
        key: &str,
        padding: Option<usize>,
        options: Options,
    ) -> Result<(usize, Receipt), Error> {
        let body = |at: usize| padding.map(|padding| objects::body(key, at, padding));
        self.submit_as(key, body, options).await
    }

    /// The same with these bytes.
    pub async fn submit_as(
        &self,
        key: &str,
        body: impl FnOnce(usize) -> Option<Bytes>,
        options: Options,
    ) -> Result<(usize, Receipt), Error> {
        let at = lock(&self.play.objects).begin(key, body);
        let queue = self.env.store.queue();
        let body = lock(&self.play.objects).body(key, at);
        let op: Op<Receipt> = match body {
            Some(body) => queue.submit(key, body, options),
            None => queue.delete(key, options),
        };
        let receipt = self.queued(&format!("submit {key} {at}"), op).await?;
        lock(&self.play.receipts).push(receipt.clone());
        Ok((at, receipt))
    }

    /// The same, until it is durable.
    pub async fn durable(&self, key: &str, padding: Option<usize>, options: Options) -> Receipt {
        let (at, receipt) = self
            .submit(key, padding, options)
            .await
            .expect("is admitted");
        let durable = self
            .queued(&format!("durable {key}"), receipt.durable())
            .await;
        durable.expect("is durable");
        lock(&self.play.objects).durable(key, at);
        receipt
    }

    /// The same, until it is in S3.
    pub async fn up(&self, key: &str, padding: Option<usize>, options: Options) -> Receipt {
        let receipt = self.durable(key, padding, options).await;
        let settled = self.settled(&receipt).await;
        assert!(settled.is_in_s3(), "{key}: {settled:?}");
        receipt
    }

    pub async fn settled(&self, receipt: &Receipt) -> Settlement {
        let what = format!("settled {}", receipt.key());
        let op = receipt.settled().within(4 * ENOUGH);
        let settled = self.ask(&what, 4 * ENOUGH, op.into_future()).await;
        settled.expect("it ends")
    }
}
