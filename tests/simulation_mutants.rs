//! The simulation notices each guard of the product that is taken out: see
//! `docs/testing-mutants.md`.
//!
//! | variable | |
//! |---|---|
//! | `MUTANT` | only those whose name has this in it |
//! | `MUTANT_FROM` | the seed to begin with, whatever is known to notice it |

#![cfg(mutants)]

#[path = "../examples/simulate/sim/mod.rs"]
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use s3_writeback::mutant::{Mutant, set};

/// Seeds at most, for one mutant.
const MOST: u64 = 1500;

/// Seeds that are known to notice a mutant: tried first.
const KNOWN: &[(Mutant, u64)] = &[
    (Mutant::AttemptNeverEnds, 24),
    (Mutant::RequestNeverEnds, 24),
    (Mutant::WaitNeverEnds, 4),
    (Mutant::PhaseNeverEnds, 106),
    (Mutant::ShutForgetsWaiters, 4),
    (Mutant::FailedLoadTellsNobody, 14),
    (Mutant::LockHandedOnInSilence, 7),
    (Mutant::DoorClosesInSilence, 23),
    (Mutant::EndWakesNobody, 2),
    (Mutant::EvictedInSilence, 461),
    (Mutant::DurableWakesNobody, 274),
    (Mutant::RestNotTold, 23),
    (Mutant::SupersededNotTold, 101),
    (Mutant::PlaceInQueueKept, 1),
    (Mutant::PlaceKept, 0),
    (Mutant::PlaceInLineKept, 51),
    (Mutant::LoadKept, 46),
    (Mutant::ReserveLent, 0),
    (Mutant::CheckpointerStandsInLine, 46),
    (Mutant::QuiescingStopsCheckpointer, 1),
    (Mutant::SyncBeforeJournal, 92),
    (Mutant::SyncWithoutFsync, 4),
    (Mutant::DurableBeforeFdatasync, 0),
    (Mutant::HeadBeforePacks, 2),
    (Mutant::HeadBeforeManifest, 14),
    (Mutant::HeadBeforeImages, 1),
    (Mutant::GcForgetsHeaders, 4),
    (Mutant::GcForgetsLine, 361),
    (Mutant::GcForgetsOlder, 0),
    (Mutant::GcForgetsInFlight, 8),
    (Mutant::GcForgetsPins, 4),
    (Mutant::CommitUnconditional, 3),
    (Mutant::LookSeesNoOther, 43),
    (Mutant::OwnerNotChecked, 3),
    (Mutant::DirtyRoomNotWaitedFor, 2),
    (Mutant::CacheRoomNotWaitedFor, 0),
    (Mutant::ImageRoomNotWaitedFor, 14),
    (Mutant::AdmissionNotWaitedFor, 8),
];

/// The first of these seeds, in their order, that fails: which, after how many, and with what.
fn killed(seeds: &[u64], all: &Mutex<sim::Tally>) -> Option<(u64, usize, String)> {
    let next = AtomicU64::new(0);
    let found: Mutex<Option<(usize, String)>> = Mutex::default();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while found.lock().unwrap().is_none() {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(seed) = seeds.get(at) else { return };
                    let outcome = sim::run(*seed, false);
                    all.lock().unwrap().add(&outcome.tally);
                    let hash = outcome.hash;
                    let Some((text, _)) = outcome.failure else {
                        continue;
                    };
                    let mut found = found.lock().unwrap();
                    if found.as_ref().is_none_or(|(first, _)| at < *first) {
                        *found = Some((at, format!("{text}\n{hash:x}")));
                    }
                }
            });
        }
    });
    let (at, text) = found.into_inner().unwrap()?;
    let line = text.lines().next().unwrap_or_default();
    Some((seeds[at], at + 1, line.chars().take(160).collect()))
}

#[test]
fn every_guard_that_is_taken_out_is_noticed() {
    let only = std::env::var("MUTANT").unwrap_or_default();
    let from = std::env::var("MUTANT_FROM").ok();
    let from: Option<u64> = from.map(|text| text.parse().expect("a seed"));
    // What a seed fails with is told below.
    std::panic::set_hook(Box::new(|_| ()));
    let mut alive = Vec::new();
    let all = Mutex::default();
    for mutant in Mutant::ALL {
        if !format!("{mutant:?}").contains(&only) {
            continue;
        }
        let known = KNOWN.iter().find(|(known, _)| known == mutant);
        let known = known.map(|(_, seed)| *seed).filter(|_| from.is_none());
        let first = from.unwrap_or(0);
        let seeds: Vec<u64> = known.into_iter().chain(first..first + MOST).collect();
        set(Some(*mutant));
        let killed = killed(&seeds, &all);
        set(None);
        match killed {
            Some((seed, after, text)) => {
                println!("{mutant:?} | {seed} | {after} seeds | {text}");
            }
            None => {
                println!("{mutant:?} | lives");
                alive.push(*mutant);
            }
        }
    }
    drop(std::panic::take_hook());
    let all = all.into_inner().unwrap();
    println!(
        "{:.1} simulated hours",
        all.simulated.as_secs_f64() / 3600.0
    );
    assert!(alive.is_empty(), "nobody notices {alive:?}");
}
