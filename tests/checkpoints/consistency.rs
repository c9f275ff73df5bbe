//! Every checkpoint is a state that a power cut could have left.
//!
//! Writers move money between accounts that lie on different parts, and log each transfer before
//! they write it, as an engine does; the total never changes. Checkpoints are made all the while.
//! Each of them is restored and recovered as the engine would recover after a power cut: what the
//! log says was begun is finished. Then the total must be what it always was.
//!
//! Some transfers are made as one step of a guard set: of those both sides are in a checkpoint, or
//! neither, with no log to help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{
    CheckpointOptions, File, FileId, Locker, Mode, PartId, PartStore, Restore, Role,
};

use crate::support::{PART, PARTS_OF, StoreRig, on_threads, paused, spawn};

/// Accounts, each at the start of a part of its own.
const ACCOUNTS: u32 = 12;
const START: u64 = 1000;
const MONEY: FileId = FileId(1);
/// A slot for each writer that logs: the transfer that it is in the middle of.
const LOG: FileId = FileId(2);
/// Accounts of those who write in steps.
const STEPS: FileId = FileId(3);
const WRITERS: usize = 3;
const CHECKPOINTS: usize = 150;

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

async fn balance(file: &File, account: u32) -> (u64, u64) {
    let mut bytes = [0; 16];
    let at = u64::from(account) * PART as u64;
    file.read_at(&mut bytes, at).await.expect("reads");
    (number(&bytes, 0), number(&bytes, 8))
}

fn account_bytes(balance: u64, version: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&balance.to_le_bytes());
    bytes[8..].copy_from_slice(&version.to_le_bytes());
    bytes
}

fn two(random: &mut StdRng) -> (u32, u32) {
    let from = random.random_range(0..ACCOUNTS);
    let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
    (from, to)
}

async fn pause(random: &mut StdRng) {
    tokio::time::sleep(Duration::from_micros(random.random_range(0..400))).await;
}

/// A transfer as logged: both accounts, and what each will have and at which version.
type Entry = [u64; 7];

fn entry_bytes(entry: &Entry) -> Vec<u8> {
    entry.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Writes the two sides one after the other, each after the log has both.
async fn log_writer(store: PartStore, id: usize, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed ^ id as u64);
    let money = store.file(MONEY).expect("is there");
    let log = store.file(LOG).expect("is there");
    let locker = store
        .locker(&format!("writer {id}"), Role::Foreground)
        .expect("a locker");
    let mut count = 0;
    while !stop.load(Ordering::Acquire) {
        pause(&mut random).await;
        let (from, to) = two(&mut random);
        let (first, second) = (from.min(to), from.max(to));
        let Ok(one) = money.lock(first, Mode::Exclusive, &locker).await else {
            continue;
        };
        let Ok(other) = money.lock(second, Mode::Exclusive, &locker).await else {
            continue;
        };
        let (a, b) = (balance(&money, from).await, balance(&money, to).await);
        let amount = random.random_range(0..=a.0.min(50));
        count += 1;
        let entry = [
            count,
            u64::from(from),
            a.0 - amount,
            a.1 + 1,
            u64::from(to),
            b.0 + amount,
            b.1 + 1,
        ];
        log.write_at(&entry_bytes(&entry), (id * PART) as u64)
            .await
            .expect("logs");
        pause(&mut random).await;
        let (of_from, of_to) = if from == first {
            (&one, &other)
        } else {
            (&other, &one)
        };
        let side = account_bytes(entry[2], entry[3]);
        of_from.write_at(&side, 0).await.expect("writes");
        pause(&mut random).await;
        let side = account_bytes(entry[5], entry[6]);
        of_to.write_at(&side, 0).await.expect("writes");
        // Both are written: the entry is over, before anybody else has the accounts.
        pause(&mut random).await;
    }
}

/// Writes both sides in one step, and logs nothing.
async fn step_writer(store: PartStore, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed ^ 99);
    let locker = store.locker("steps", Role::Foreground).expect("a locker");
    while !stop.load(Ordering::Acquire) {
        pause(&mut random).await;
        step(&store, &locker, &mut random).await;
    }
}

/// A transfer in one step.
async fn step(store: &PartStore, locker: &Locker, random: &mut StdRng) {
    let steps = store.file(STEPS).expect("is there");
    let (from, to) = two(random);
    let part = |index| PartId { file: STEPS, index };
    let parts = [part(from), part(to)];
    let set = store.lock_many(&parts, Mode::Exclusive, locker).await;
    let set = set.expect("locks");
    let (a, b) = (balance(&steps, from).await, balance(&steps, to).await);
    let amount = random.random_range(0..=a.0.min(50));
    let (minus, plus) = (
        account_bytes(a.0 - amount, a.1 + 1),
        account_bytes(b.0 + amount, b.1 + 1),
    );
    set.write(&[(part(from), 0, &minus), (part(to), 0, &plus)])
        .await
        .expect("writes");
}

async fn seeded(store: &PartStore) {
    for id in [MONEY, STEPS] {
        let file = store.create(id, PARTS_OF).await.expect("creates");
        for account in 0..ACCOUNTS {
            let at = u64::from(account) * PART as u64;
            file.write_at(&account_bytes(START, 0), at)
                .await
                .expect("writes");
        }
    }
    let log = store.create(LOG, PARTS_OF).await.expect("creates");
    log.set_len((WRITERS * PART) as u64).await.expect("grows");
}

/// What an engine's recovery does, and what must be so then; how many transfers it finished.
async fn recover(store: &PartStore, number: u64) -> u64 {
    let money = store.file(MONEY).expect("is there");
    let log = store.file(LOG).expect("is there");
    let mut accounts = Vec::new();
    for account in 0..ACCOUNTS {
        accounts.push(balance(&money, account).await);
    }
    let mut finished = 0;
    for writer in 0..WRITERS {
        let mut bytes = [0; 56];
        log.read_at(&mut bytes, (writer * PART) as u64)
            .await
            .expect("reads");
        let entry: Vec<u64> = (0..7).map(|word| number_at(&bytes, word)).collect();
        if entry[0] == 0 {
            continue;
        }
        for side in [1, 4] {
            let account = &mut accounts[usize::try_from(entry[side]).expect("an account")];
            // Not yet written when the line was drawn.
            if account.1 + 1 == entry[side + 2] {
                *account = (entry[side + 1], entry[side + 2]);
                finished += 1;
            }
        }
    }
    let total: u64 = accounts.iter().map(|(balance, _)| balance).sum();
    assert_eq!(
        total,
        START * u64::from(ACCOUNTS),
        "checkpoint {number}: {accounts:?}"
    );
    let steps = store.file(STEPS).expect("is there");
    let mut total = 0;
    for account in 0..ACCOUNTS {
        total += balance(&steps, account).await.0;
    }
    assert_eq!(
        total,
        START * u64::from(ACCOUNTS),
        "checkpoint {number}: half of a step"
    );
    finished
}

fn number_at(bytes: &[u8], word: usize) -> u64 {
    number(bytes, word * 8)
}

fn life(seed: u64) -> u64 {
    let mut finished = 0;
    let counted = &mut finished;
    paused(async move {
        let rig = StoreRig::owner_with(64, |config| {
            config.retain_checkpoints = 1000;
            config.max_dirty_age = Duration::from_millis(3);
            config.queue.seed = Some(seed);
            // In turn: enough room to capture all at once, and so little that most is set aside,
            // some of it in a file.
            if seed.is_multiple_of(2) {
                config.image_bytes = PART as u64;
                config.aside_memory = 2 * PART as u64;
            }
        });
        let slow = Fault::Delay(Duration::from_millis(2));
        rig.remote.under(None, Some(Call::Put), "packs/", slow);
        let store = rig.open().await;
        seeded(&store).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for id in 0..WRITERS {
            writers.push(spawn(log_writer(
                store.clone(),
                id,
                seed,
                Arc::clone(&stop),
            )));
        }
        writers.push(spawn(step_writer(store.clone(), seed, Arc::clone(&stop))));
        let mut numbers = Vec::new();
        for _ in 0..CHECKPOINTS {
            let made = store.checkpoint(CheckpointOptions::new()).await;
            numbers.push(made.expect("is committed").number);
        }
        stop.store(true, Ordering::Release);
        for writer in writers {
            writer.await.expect("ends");
        }
        store.shutdown().await.expect("shuts down");
        for number in numbers {
            let there = rig.restored(Restore::number(number)).await;
            *counted += recover(&there, number).await;
            there.shutdown().await.expect("shuts down");
        }
    });
    finished
}

/// The same with threads that run at the same time, and a real disk: between any two copies of a
/// step a line may be drawn, if it is let.
#[test]
fn on_threads_too_every_step_is_wholly_in_a_checkpoint_or_out_of_it() {
    const STEPPERS: u64 = 4;
    on_threads(4, async {
        let dir = tempfile::tempdir().expect("a directory");
        let mut rig = StoreRig::owner(64);
        rig.config.queue.dir = dir.path().join("store");
        rig.config.retain_checkpoints = 1000;
        let remote: Arc<dyn s3_writeback::remote::Remote> = Arc::new(rig.remote.clone());
        let opened = PartStore::builder(rig.config.clone(), Arc::clone(&remote))
            .open()
            .await;
        let store = opened.expect("opens");
        seeded(&store).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for seed in 0..STEPPERS {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            writers.push(spawn(async move { hasty_writer(store, seed, stop).await }));
        }
        let mut numbers = Vec::new();
        for _ in 0..CHECKPOINTS {
            let made = store.checkpoint(CheckpointOptions::new()).await;
            numbers.push(made.expect("is committed").number);
        }
        stop.store(true, Ordering::Release);
        let mut steps = 0;
        for writer in writers {
            steps += writer.await.expect("ends");
        }
        assert!(steps > 1000, "{steps} steps");
        store.shutdown().await.expect("shuts down");
        let prefix = s3_writeback::Prefix::new(remote);
        for number in numbers {
            let read = prefix
                .read(Some(number), 1 << 20, Duration::from_secs(60))
                .await;
            let read = read.expect("is there");
            let mut total = 0;
            for account in 0..ACCOUNTS {
                let at = u64::from(account) * PART as u64;
                let bytes = read.read(STEPS, at, 8).await.expect("reads");
                total += number_at(&bytes, 0);
            }
            assert_eq!(total, START * u64::from(ACCOUNTS), "checkpoint {number}");
            read.close().await.expect("closes");
        }
    });
}

/// Steps one after the other, without a pause; how many.
async fn hasty_writer(store: PartStore, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let locker = store
        .locker(&format!("hasty {seed}"), Role::Foreground)
        .expect("a locker");
    let mut made = 0;
    while !stop.load(Ordering::Acquire) {
        step(&store, &locker, &mut random).await;
        made += 1;
    }
    made
}

#[test]
fn every_checkpoint_restores_to_a_state_that_a_power_cut_could_have_left() {
    let finished: u64 = (0..2).map(life).sum();
    assert!(
        finished > 20,
        "lines in the middle of transfers: {finished}"
    );
}
