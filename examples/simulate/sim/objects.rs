//! An actor that submits and deletes named objects, and what S3 may have of them.
//!
//! A key is one actor's. Its generations are numbered; a body says which one it is.
//!
//! 1. S3 never goes back to an earlier generation, late requests included.
//! 2. Once nothing is on its way, it has a generation no earlier than the last that was durable.
//! 3. What is told to be in S3 is there, and an object that is after another is not there without
//!    it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{Error, KeyPolicy, Options, PauseWhat, Receipt, Settlement};

use super::env::{Env, lock};
use super::how::{How, Out};

const KEYS: u64 = 3;
pub const UNDER: &str = "objects/";
/// An actor has so many receipts whose end it did not see.
const MOST_RECEIPTS: usize = 64;

/// One state that a key was to have.
#[derive(Debug, Clone)]
struct Generation {
    /// `None`: deleted.
    body: Option<Bytes>,
    is_durable: bool,
}

#[derive(Debug, Default, Clone)]
struct Key {
    generations: Vec<Generation>,
    /// The latest that S3 was seen to have.
    seen: usize,
}

/// All keys of a bucket.
#[derive(Debug, Default)]
pub struct Objects {
    keys: BTreeMap<String, Key>,
    /// Objects, and the one that each is after.
    after: BTreeMap<String, String>,
    /// How many names were used up.
    names: u64,
}

/// The body of a generation of a key.
pub fn body(key: &str, generation: usize, padding: usize) -> Bytes {
    let mut text = format!("{key} {generation} ").into_bytes();
    text.resize(text.len() + padding, b'.');
    text.into()
}

impl Objects {
    /// None yet, and so many names are not to be used again.
    pub fn after(names: u64) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    pub fn names(&self) -> u64 {
        self.names
    }

    /// A key is to have another state; its number.
    pub fn begin(&mut self, key: &str, body: impl FnOnce(usize) -> Option<Bytes>) -> usize {
        let of = self.keys.entry(key.to_owned()).or_default();
        let at = of.generations.len();
        of.generations.push(Generation {
            body: body(at),
            is_durable: false,
        });
        at
    }

    pub fn body(&self, key: &str, at: usize) -> Option<Bytes> {
        let generation = self.keys.get(key)?.generations.get(at)?;
        generation.body.clone()
    }

    /// It cannot be lost any more.
    pub fn durable(&mut self, key: &str, at: usize) {
        if let Some(of) = self.keys.get_mut(key) {
            of.generations[at].is_durable = true;
        }
    }

    /// One object is there only with another.
    pub fn is_after(&mut self, second: &str, first: &str) {
        self.after.insert(second.to_owned(), first.to_owned());
    }

    fn is_last(&self, key: &str, at: usize) -> bool {
        self.keys
            .get(key)
            .is_some_and(|of| of.generations.len() == at + 1)
    }

    /// Looks at what S3 has, at any time.
    pub fn look(&mut self, remote: &SimRemote) {
        for (key, of) in &mut self.keys {
            let Some(found) = remote.object(key) else {
                continue;
            };
            let is_it = |one: &Generation| one.body.as_ref() == Some(&found);
            // Two of them may have the same bytes.
            let later = of.generations.iter().skip(of.seen).position(is_it);
            let later = later.map(|at| of.seen + at);
            let Some(at) = later.or_else(|| of.generations.iter().position(is_it)) else {
                panic!("{key} has bytes that nobody gave it: {found:?}");
            };
            assert!(
                at >= of.seen,
                "{key} went back from generation {} to {at}",
                of.seen
            );
            of.seen = at;
        }
        for (key, first) in &self.after {
            assert!(
                remote.object(key).is_none() || remote.object(first).is_some(),
                "{key} is there, and {first}, which it is after, is not"
            );
        }
    }

    /// Looks at what S3 has when nothing is on its way any more.
    pub fn look_at_rest(&mut self, remote: &SimRemote) {
        self.look_at(remote, |_| true);
    }

    /// The same of some of the keys.
    pub fn look_at(&mut self, remote: &SimRemote, which: impl Fn(&str) -> bool) {
        self.look(remote);
        for (key, of) in self.keys.iter().filter(|(key, _)| which(key)) {
            let found = remote.object(key);
            let least = of.generations.iter().rposition(|one| one.is_durable);
            let from = least.unwrap_or(0);
            let allowed = &of.generations[from..];
            let fits =
                allowed.iter().any(|one| one.body == found) || (least.is_none() && found.is_none());
            assert!(
                fits,
                "{key} is {found:?} in S3, the last durable generation is {least:?} of {}",
                of.generations.len()
            );
        }
    }
}

pub struct Producer {
    env: Env,
    rng: StdRng,
    objects: Arc<Mutex<Objects>>,
    remote: SimRemote,
    number: u64,
    receipts: Vec<Receipt>,
    /// S3 looks at conditions: keys can be rewritten.
    rewrites: bool,
    /// All receipts of a life, by whoever got them.
    all: Arc<Mutex<Vec<Receipt>>>,
}

impl Producer {
    pub fn new(
        env: &Env,
        objects: &Arc<Mutex<Objects>>,
        remote: &SimRemote,
        all: &Arc<Mutex<Vec<Receipt>>>,
        number: u64,
        rewrites: bool,
        seed: u64,
    ) -> Self {
        Self {
            env: env.clone(),
            rng: StdRng::seed_from_u64(seed),
            rewrites,
            objects: Arc::clone(objects),
            remote: remote.clone(),
            number,
            receipts: Vec::new(),
            all: Arc::clone(all),
        }
    }

    fn how(&mut self) -> How {
        let ms = Duration::from_millis;
        match self.rng.random_range(0..12) {
            0 => How::Within(ms(self.rng.random_range(1..2000))),
            1 => How::Polls(self.rng.random_range(0..12)),
            2 => How::Cancel(ms(self.rng.random_range(0..50))),
            3 => How::Now,
            _ => How::Full,
        }
    }

    fn key(&mut self) -> String {
        let key = self.rng.random_range(0..KEYS);
        format!("{UNDER}{}/{key}", self.number)
    }

    /// Waits until a task's record is durable, now and then; whether it is.
    async fn durable(&mut self, receipt: &Receipt) -> bool {
        let how = self.how();
        let out = self.env.run("durable", how, receipt.durable()).await;
        if out.is_done() {
            self.env.world.told.notify_waiters();
        }
        out.is_done()
    }

    fn keep(&mut self, receipt: Receipt) {
        lock(&self.all).push(receipt.clone());
        if self.receipts.len() < MOST_RECEIPTS {
            self.receipts.push(receipt);
        }
    }

    /// A rewritable key gets another state.
    async fn rewrite(&mut self, delete: bool) {
        let key = self.key();
        let padding = [0, 40, 700, 6000][self.rng.random_range(0..4)];
        let at = lock(&self.objects).begin(&key, |at| (!delete).then(|| body(&key, at, padding)));
        let options = Options {
            policy: KeyPolicy::Rewritable,
            coalesce: self.rng.random_bool(0.5),
            ..Options::default()
        };
        let how = self.how();
        let queue = self.env.store.queue();
        let bytes = lock(&self.objects).body(&key, at);
        let op = match &bytes {
            Some(bytes) => queue.submit(key.clone(), bytes.clone(), options),
            None => queue.delete(
                key.clone(),
                Options {
                    coalesce: false,
                    ..options
                },
            ),
        };
        let out = self.env.run("submit", how, op).await;
        let (text, number) = (out.text(), self.number);
        self.env
            .say(|| format!("{number}: {key} generation {at}, {how:?}: {text}"));
        let Out::Done(receipt) = out else { return };
        self.keep(receipt.clone());
        if self.durable(&receipt).await {
            lock(&self.objects).durable(&key, at);
        }
        if self.rng.random_bool(0.3) {
            self.settled(&receipt, &key, at, bytes.as_ref()).await;
        }
    }

    async fn settled(&mut self, receipt: &Receipt, key: &str, at: usize, bytes: Option<&Bytes>) {
        let how = self.how();
        let out = self.env.run("settled", how, receipt.settled()).await;
        let Out::Done(settlement) = out else { return };
        let number = self.number;
        self.env
            .say(|| format!("{number}: {key} generation {at} ended: {settlement:?}"));
        match settlement {
            Settlement::Uploaded(_) | Settlement::Deleted => {
                let mut objects = lock(&self.objects);
                objects.durable(key, at);
                if objects.is_last(key, at) {
                    let found = self.remote.object(key);
                    assert_eq!(
                        found.as_ref(),
                        bytes,
                        "{key}, generation {at} of it, is told to be in S3"
                    );
                }
            }
            Settlement::Deferred => {
                assert!(self.env.world.is_ending.get(), "{key}: deferred");
                lock(&self.objects).durable(key, at);
            }
            Settlement::Undetermined(_) if self.env.world.is_ending.get() => (),
            Settlement::Undetermined(_) | Settlement::Refused(_) => {
                assert!(self.env.world.disk_is_bad.get(), "{key}: {settlement:?}");
            }
            other => panic!("{key}, generation {at}: {other:?}"),
        }
    }

    /// A new object, and another that names it and is after it.
    async fn chain(&mut self) {
        let name = {
            let mut objects = lock(&self.objects);
            objects.names += 1;
            objects.names
        };
        let first = format!("{UNDER}data/{name}");
        let second = format!("{UNDER}manifest/{name}");
        lock(&self.objects).is_after(&second, &first);
        let at = lock(&self.objects).begin(&first, |at| Some(body(&first, at, 100)));
        let bytes = lock(&self.objects).body(&first, at).expect("has bytes");
        let how = self.how();
        let queue = self.env.store.queue();
        let op = queue.submit(first.clone(), bytes, Options::default());
        let Out::Done(receipt) = self.env.run("submit", how, op).await else {
            return;
        };
        self.keep(receipt.clone());
        let at = lock(&self.objects).begin(&second, |at| Some(body(&second, at, 10)));
        let bytes = lock(&self.objects).body(&second, at).expect("has bytes");
        let options = Options {
            after: vec![receipt],
            ..Options::default()
        };
        let how = self.how();
        let queue = self.env.store.queue();
        let op = queue.submit(second.clone(), bytes, options);
        let waits = self.env.world.waits("submit after");
        let out = super::how::run(how, op).await;
        drop(waits);
        let out = match out {
            // Refused for what it is after: the disk failed, or the end came.
            Out::Failed(Error::DependencyFailed { .. }) => return,
            out => out,
        };
        if let Out::Failed(error) = &out {
            self.env.check("submit after", how, error);
        }
        if let Out::Done(receipt) = out {
            self.keep(receipt.clone());
            // What a disk refuses of the first keeps the second back.
            let both = !self.env.world.disk_is_bad.get();
            if self.durable(&receipt).await && both {
                let objects = &mut *lock(&self.objects);
                objects.durable(&first, 0);
                objects.durable(&second, 0);
            }
        }
    }

    async fn pause(&mut self) {
        let what = match self.rng.random_bool(0.5) {
            true => PauseWhat::Admission,
            false => PauseWhat::Uploads,
        };
        self.env.world.pauses.set(true);
        self.env.store.queue().pause(what);
        let ms = self.rng.random_range(0..2000);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.env.store.queue().resume(what);
    }

    async fn drain(&mut self) {
        let how = match self.how() {
            How::Full => How::Within(Duration::from_secs(20)),
            how => how,
        };
        let drained = self.env.store.queue().drain();
        let out = self.env.run("drain", how, drained).await;
        let number = self.number;
        self.env.say(|| format!("{number}: drain: {}", out.text()));
    }

    async fn get(&mut self) {
        let key = self.key();
        let how = self.how();
        let waits = self.env.world.waits("get");
        let got = super::how::run(how, self.env.store.queue().get(key.clone(), None)).await;
        drop(waits);
        match got {
            Out::Failed(Error::NotFound { .. }) | Out::Cancelled => (),
            Out::Failed(error) => self.env.check("get", how, &error),
            Out::Done(bytes) => {
                let known = lock(&self.objects)
                    .keys
                    .get(&key)
                    .cloned()
                    .unwrap_or_default();
                let fits = known
                    .generations
                    .iter()
                    .any(|one| one.body.as_ref() == Some(&bytes));
                assert!(fits, "{key} reads as {bytes:?}");
            }
        }
    }

    pub async fn act(mut self) {
        let pauses = self.rng.random_bool(0.1);
        loop {
            match self.rng.random_range(0..100) {
                0..=59 if self.rewrites => self.rewrite(false).await,
                60..=69 if self.rewrites => self.rewrite(true).await,
                0..=79 => self.chain().await,
                80..=84 => self.drain().await,
                85..=89 => self.get().await,
                90..=92 if pauses => self.pause().await,
                _ => (),
            }
            let ms = self.rng.random_range(0..300);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }
}
