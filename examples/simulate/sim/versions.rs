//! Checkpoints: an actor that asks for them, and looks at what they show.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::io::Io;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{
    CheckpointOptions, Error, FileId, Prefix, ReadOnly, Restore, RunOn, StoreConfig,
};
use tokio::runtime::Handle;

use super::env::{Book, Env, lock};
use super::how::How;
use super::model::{Chronicle, Model, Reg, UNIT};
use super::pages::numbers;

/// What is kept with a checkpoint: the name of its line.
pub fn meta_of(book: &Book) -> Vec<u8> {
    book.line().to_le_bytes().to_vec()
}

/// The line that a checkpoint's `meta` names.
pub fn line_of(meta: &[u8]) -> u64 {
    u64::from_le_bytes(meta.try_into().expect("a line is eight bytes"))
}

/// The bucket, seen by somebody for whom it is always well.
pub fn prefix(remote: &SimRemote) -> Prefix {
    Prefix::new(Arc::new(remote.calm()))
        .run_on(RunOn::Handle(Handle::current()))
        .file_system(Arc::new(SimFs::new()), Io::inline())
}

/// All that a checkpoint shows.
async fn shown(there: &ReadOnly) -> BTreeMap<Reg, u64> {
    let mut shown = BTreeMap::new();
    for id in there.files() {
        let len = there.len(id).expect("is listed");
        shown.insert(Reg::There(id.0), 1);
        shown.insert(Reg::Len(id.0), len);
        let bytes = there.read(id, 0, usize::try_from(len).expect("fits")).await;
        let bytes = bytes.unwrap_or_else(|error| {
            panic!(
                "{} of checkpoint {:?}: {error}",
                FileId(id.0),
                there.checkpoint()
            )
        });
        for (unit, value) in (0..).zip(numbers(&bytes)) {
            shown.insert(Reg::Unit(id.0, unit), value);
        }
        assert_eq!(bytes.len() as u64, len / UNIT * UNIT);
    }
    shown
}

/// What a checkpoint shows (`None`: the latest) is what may have been at its line.
pub async fn check(
    remote: &SimRemote,
    chronicle: &Mutex<Chronicle>,
    number: Option<u64>,
) -> Option<(u64, BTreeMap<Reg, u64>)> {
    check_slowly(remote, chronicle, number, Duration::ZERO).await
}

/// The same, `later` than it was opened: the pin keeps it.
pub async fn check_slowly(
    remote: &SimRemote,
    chronicle: &Mutex<Chronicle>,
    number: Option<u64>,
    later: Duration,
) -> Option<(u64, BTreeMap<Reg, u64>)> {
    let there = prefix(remote)
        .read(number, 1 << 20, Duration::from_secs(600))
        .await;
    let there = match there {
        Ok(there) => there,
        // Retired meanwhile, or there is none.
        Err(Error::NoSuchCheckpoint { .. }) => return None,
        Err(error) => panic!("checkpoint {number:?} cannot be read: {error}"),
    };
    let (at, which) = (line_of(&there.checkpoint().meta), there.checkpoint().number);
    if later > Duration::ZERO {
        tokio::time::sleep(later).await;
    }
    let mut shown = shown(&there).await;
    let found = shown.clone();
    // What is not there was dropped, or not made yet.
    let known = lock(chronicle).regs_of(at);
    for reg in known {
        let is_past_the_end = match reg {
            Reg::Unit(file, unit) => shown
                .get(&Reg::Len(file))
                .is_none_or(|len| unit * UNIT >= *len),
            Reg::There(_) | Reg::Len(_) => false,
        };
        if !is_past_the_end {
            shown.entry(reg).or_insert(0);
        }
    }
    if let Err(text) = lock(chronicle).check(at, &shown) {
        panic!("checkpoint {which}: {text}");
    }
    there.close().await.expect("closes");
    Some((which, found))
}

/// An empty directory into which a checkpoint that shows this is restored.
pub async fn elsewhere(
    remote: &SimRemote,
    chronicle: &Arc<Mutex<Chronicle>>,
    config: &StoreConfig,
    what: Restore,
    shown: &BTreeMap<Reg, u64>,
) -> Result<(SimFs, Book), Error> {
    let fs = SimFs::new();
    let prefix = prefix(remote).file_system(Arc::new(fs.process()), Io::inline());
    prefix.restore(config, what).await?;
    let model = Model::restored(&mut lock(chronicle), shown);
    let book = Book {
        model: Arc::new(Mutex::new(model)),
        chronicle: Arc::clone(chronicle),
    };
    Ok((fs, book))
}

/// Every checkpoint that is listed is whole.
pub async fn check_all(remote: &SimRemote, chronicle: &Mutex<Chronicle>) -> u64 {
    let listed = prefix(remote).checkpoints().await;
    let listed = match listed {
        Ok(listed) => listed,
        Err(Error::NoSuchCheckpoint { .. }) => Vec::new(),
        Err(error) => panic!("checkpoints cannot be listed: {error}"),
    };
    let mut checked = 0;
    for one in listed {
        checked += u64::from(check(remote, chronicle, Some(one.number)).await.is_some());
    }
    checked
}

/// Nobody but `owner` has committed anything since this checkpoint.
pub async fn nobody_else_commits(
    remote: &SimRemote,
    chronicle: &Mutex<Chronicle>,
    since: u64,
    owner: u64,
) {
    let listed = prefix(remote).checkpoints().await.expect("are listed");
    for one in listed.iter().filter(|one| one.number > since) {
        let there = prefix(remote)
            .read(Some(one.number), 1 << 20, Duration::from_secs(600))
            .await;
        let there = match there {
            Ok(there) => there,
            Err(Error::NoSuchCheckpoint { .. }) => continue,
            Err(error) => panic!("checkpoint {} cannot be read: {error}", one.number),
        };
        let at = line_of(&there.checkpoint().meta);
        there.close().await.expect("closes");
        let whose = lock(chronicle).owner_of(at);
        assert_eq!(
            whose,
            Some(owner),
            "checkpoint {} is committed by who was fenced",
            one.number
        );
    }
}

/// Reads what was the latest checkpoint a while ago, and has perhaps been retired since.
pub async fn read_slowly(env: Env, remote: SimRemote, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let ms = Duration::from_millis(rng.random_range(1..15_000));
        check_slowly(&remote, &env.book.chronicle, None, ms).await;
        let ms = Duration::from_millis(rng.random_range(0..5000));
        tokio::time::sleep(ms).await;
    }
}

pub struct Checkpoints {
    env: Env,
    rng: StdRng,
    remote: SimRemote,
    checked: std::rc::Rc<std::cell::Cell<u64>>,
}

impl Checkpoints {
    pub fn new(
        env: &Env,
        remote: &SimRemote,
        checked: &std::rc::Rc<std::cell::Cell<u64>>,
        seed: u64,
    ) -> Self {
        Self {
            env: env.clone(),
            rng: StdRng::seed_from_u64(seed),
            remote: remote.clone(),
            checked: std::rc::Rc::clone(checked),
        }
    }

    async fn make(&mut self) {
        let book = self.env.book.clone();
        let since = book.now();
        let options = CheckpointOptions::new().meta(move || meta_of(&book));
        let how = match self.rng.random_range(0..8) {
            0 => How::Within(Duration::from_millis(self.rng.random_range(1..2000))),
            1 => How::Polls(self.rng.random_range(0..12)),
            _ => How::Full,
        };
        let out = self
            .env
            .run("checkpoint", how, self.env.store.checkpoint(options))
            .await;
        self.env.say(|| match &out {
            super::how::Out::Done(made) => format!("checkpoint {}", made.number),
            other => format!("checkpoint, {how:?}: {}", other.text()),
        });
        if let super::how::Out::Done(made) = out {
            // It was synced up to its line at least.
            self.env.book.synced(since, |_| true);
            if self.rng.random_bool(0.3)
                && check(&self.remote, &self.env.book.chronicle, Some(made.number))
                    .await
                    .is_some()
            {
                self.checked.set(self.checked.get() + 1);
            }
        }
    }

    async fn collect(&mut self) {
        let waits = self.env.world.waits("gc");
        let collected = self.env.store.gc().await;
        drop(waits);
        match collected {
            Ok(report) => self.env.say(|| format!("gc: {} deleted", report.deleted)),
            Err(error) => {
                self.env.check("gc", How::Full, &error);
                self.env.say(|| format!("gc: {error}"));
            }
        }
    }

    pub async fn act(mut self) {
        loop {
            let ms = self.rng.random_range(0..3000);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            match self.rng.random_range(0..10) {
                0..=6 => self.make().await,
                7 => self.collect().await,
                8 => {
                    let number = None;
                    if check(&self.remote, &self.env.book.chronicle, number)
                        .await
                        .is_some()
                    {
                        self.checked.set(self.checked.get() + 1);
                    }
                }
                _ => (),
            }
        }
    }
}
