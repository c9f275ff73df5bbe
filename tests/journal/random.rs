//! A random workload with crashes, kills, faults and a disk that fills up, against the model.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use s3_writeback::journal::{Journal, JournalError, Recovered};
use s3_writeback::testing::fs::{Call, EIO, EMFILE, ENOSPC, Fault, SimFs};

use super::model::{Model, Sink, driven, open, text, try_open};

fn random_fault(rng: &mut StdRng) -> Fault {
    let calls = [
        None,
        Some(Call::Sync),
        Some(Call::Write),
        Some(Call::Create),
        Some(Call::Preallocate),
        Some(Call::Rename),
        Some(Call::SyncDir),
        Some(Call::Unlink),
        Some(Call::Open),
    ];
    Fault {
        call: calls[rng.random_range(0..calls.len())],
        after: rng.random_range(0..40),
        errno: [EIO, ENOSPC, EMFILE][rng.random_range(0..3)],
        forever: rng.random_bool(0.3),
    }
}

fn step(journal: &Journal, model: &mut Model, rng: &mut StdRng, hint: u64) {
    let live: Vec<u64> = model
        .owners
        .iter()
        .filter(|(_, owner)| owner.end.is_none())
        .map(|(location, _)| *location)
        .collect();
    match rng.random_range(0..10) {
        0..=3 if live.len() < 40 => {
            let head = text(hint, rng.random_range(4..120));
            let body = match rng.random_range(0..4) {
                0 => None,
                1 | 2 => Some((text(hint + 1, rng.random_range(4..300)), false)),
                _ => Some((text(hint + 2, rng.random_range(4..3000)), true)),
            };
            model.begin(journal, head, body);
        }
        4..=5 if !live.is_empty() => {
            let owner = live[rng.random_range(0..live.len())];
            let head = text(hint, rng.random_range(0..60));
            model.note(
                journal,
                owner,
                rng.random_range(0..3),
                head,
                rng.random_bool(0.5),
            );
        }
        6..=7 if !live.is_empty() => {
            model.end(journal, live[rng.random_range(0..live.len())]);
        }
        _ => journal.drive(),
    }
}

/// An open that faults may fail; healed, it must succeed.
fn open_somehow(fs: &SimFs, rng: &mut StdRng, what: &str) -> (Journal, Recovered) {
    if rng.random_bool(0.3) {
        for _ in 0..rng.random_range(1..3) {
            let fault = random_fault(rng);
            fs.fail(fault);
            let opened = try_open(fs, rng.random());
            fs.heal();
            if std::env::var("JOURNAL_SEED").is_ok() {
                println!(
                    "seed: {fault:?} {:?}",
                    opened.as_ref().map(|o| o.1.next_location)
                );
            }
            match opened {
                Ok(opened) => return opened,
                Err(JournalError::Io(_) | JournalError::Failed(_)) => {}
                Err(error) => panic!("{what}: open under faults: {error}"),
            }
            if rng.random_bool(0.5) {
                fs.crash(rng.random());
            }
        }
    }
    fs.heal();
    open(fs, rng.random())
}

fn life(seed: u64) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let fs = SimFs::new();
    let mut model = Model::default();
    for round in 0..rng.random_range(2..7) {
        let what = format!("seed {seed}, round {round}");
        let (journal, recovered) = open_somehow(&fs, rng, &what);
        assert_eq!(
            recovered.damage,
            vec![],
            "{what}: a torn tail is not damage"
        );
        model.check(&journal, &recovered, &what);
        if let Ok(watched) = std::env::var("JOURNAL_OWNER") {
            let watched: u64 = watched.parse().unwrap();
            println!(
                "owner {watched}: {:?}",
                model.owners.get(&watched).map(|o| (o.fate, o.end))
            );
        }
        let sink = Sink::default();
        journal.set_sink(std::sync::Arc::new(sink.clone()));
        let hinted = rng.random_range(5..120);
        let fault_at = rng.random_bool(0.5).then(|| rng.random_range(0..hinted));
        let full_at = rng.random_bool(0.2).then(|| rng.random_range(0..hinted));
        for at in 0..hinted {
            if Some(at) == fault_at {
                fs.fail(random_fault(rng));
            }
            if Some(at) == full_at {
                fs.set_capacity(Some(fs.used() + rng.random_range(0..6000)));
            }
            if rng.random_bool(0.02) {
                journal.retry_space();
            }
            step(&journal, &mut model, rng, seed * 1000 + round * 100 + at);
        }
        match rng.random_range(0..6) {
            0 => {
                fs.heal();
                fs.set_capacity(None);
                let was_failed = journal.status().failed.is_some();
                let sealed = driven(&journal, journal.seal());
                assert_eq!(sealed.is_err(), was_failed, "{what}: {sealed:?}");
                model.hear(&sink);
                drop(journal);
            }
            1 => {
                // Dropped without a word, with everything the kernel has.
                model.hear(&sink);
                drop(journal);
            }
            2 => {
                model.hear(&sink);
                fs.kill();
                drop(journal);
            }
            _ => {
                model.hear(&sink);
                fs.crash(rng.random());
                drop(journal);
            }
        }
        if std::env::var("JOURNAL_SEED").is_ok() {
            println!(
                "{what} segments {:?}",
                super::model::segments(&fs)
                    .iter()
                    .map(|p| p.file_name().unwrap().to_str().unwrap()[15..].to_string())
                    .collect::<Vec<_>>()
            );
            println!("{what} ends: {:?}", sink.0.lock().unwrap());
        }
        fs.heal();
        fs.set_capacity(None);
    }
    let what = format!("seed {seed}, at last");
    let (journal, recovered) = open(&fs, rng.random());
    assert_eq!(recovered.damage, vec![], "{what}");
    model.check(&journal, &recovered, &what);
}

/// C1 (journal side), C9, C10, E10, E11, E12: whatever fails and whenever the power goes, what was
/// acknowledged is there, what ended stays ended, what was refused stays away.
#[test]
fn random_lives_keep_their_promises() {
    if let Ok(seed) = std::env::var("JOURNAL_SEED") {
        return life(seed.parse().unwrap());
    }
    let lives: u64 = std::env::var("JOURNAL_LIVES").map_or(3000, |n| n.parse().unwrap());
    for seed in 0..lives {
        life(seed);
    }
}
