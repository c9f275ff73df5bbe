//! Torn tails, damage, poison: what the log's bytes say after they were cut, flipped or lost.

use bytes::Bytes;
use proptest::prelude::*;
use s3_writeback::journal::fs::Fs;
use s3_writeback::journal::{
    Append, Journal, JournalError, JournalOptions, Location, OnDamage, Payload, Recovered, inspect,
};
use s3_writeback::testing::fs::{Call, EIO, Fault, SimFs};
use std::path::Path;
use std::sync::Arc;

use super::model::{DIR, Sink, driven, open, options, segment, segments, text, try_open};

const HEADER: usize = 128;

fn begin(journal: &Journal, text: &str) -> Location {
    journal
        .append(Append::begin(
            1,
            Bytes::copy_from_slice(text.as_bytes()),
            Payload::None,
        ))
        .unwrap()
}

fn locations(recovered: &Recovered) -> Vec<Location> {
    recovered
        .owners
        .iter()
        .map(|owner| owner.location)
        .collect()
}

/// C7: the last segment cut off at every byte: it opens, everything before the cut is there, and
/// a cut that took nothing acknowledged before it is not called damage.
#[test]
fn c7_a_cut_at_every_byte_takes_only_the_tail() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let mut ends = Vec::new();
    let mut durable = Vec::new();
    for number in 0..12 {
        let owner = begin(&journal, &format!("owner number {number}"));
        journal.drive();
        durable.push(owner);
        ends.push(
            inspect(&fs, Path::new(DIR))
                .unwrap()
                .segments
                .last()
                .unwrap()
                .end,
        );
    }
    drop(journal);
    assert_eq!(segments(&fs).len(), 1, "the test wants one segment");
    let whole = fs.peek(&segment(1)).unwrap();
    for cut in 0..whole.len() {
        let copy = fs.copy_of();
        let mut bytes = whole.clone();
        bytes.truncate(cut);
        copy.poke(&segment(1), bytes);
        let (journal, recovered) = open(&copy, 2);
        let kept = ends.iter().filter(|end| **end <= cut as u64).count();
        assert_eq!(locations(&recovered), durable[..kept], "cut at {cut}");
        if cut >= HEADER {
            assert_eq!(recovered.damage, vec![], "cut at {cut}");
        } else {
            assert_eq!(
                recovered.damage.len(),
                1,
                "the header is gone: that is not a torn tail"
            );
        }
        // It goes on, and the next open has the same and the new.
        let new = begin(&journal, "after");
        journal.drive();
        drop(journal);
        copy.crash(cut as u64);
        let (_, again) = open(&copy, 3);
        let mut all = durable[..kept].to_vec();
        all.push(new);
        assert_eq!(locations(&again), all, "cut at {cut}, second open");
    }
}

fn three_segments(fs: &SimFs) -> Vec<Location> {
    let (journal, _) = open(fs, 1);
    let mut owners = Vec::new();
    while segments(fs).len() < 3 {
        owners.push(
            journal
                .append(Append::begin(
                    1,
                    text(owners.len() as u64, 180),
                    Payload::None,
                ))
                .unwrap(),
        );
        journal.drive();
    }
    driven(&journal, journal.seal()).unwrap();
    owners
}

/// C8: damage in the middle: everything else is there, the loss is reported by location and kept
/// as bytes, and thirty opens leave no litter.
#[test]
fn c8_damage_takes_its_record_only_and_is_kept() {
    let fs = SimFs::new();
    let owners = three_segments(&fs);
    let path = segments(&fs)[0].clone();
    let mut bytes = fs.peek(&path).unwrap();
    // In the third owner's head.
    let at = bytes.windows(3).position(|three| three == b"<2>").unwrap();
    bytes[at] ^= 0x40;
    fs.poke(&path, bytes.clone());
    let mut litter = None;
    for round in 0..30 {
        let (journal, recovered) = open(&fs, 10 + round);
        let expected: Vec<_> = owners
            .iter()
            .copied()
            .filter(|owner| *owner != owners[2])
            .collect();
        assert_eq!(locations(&recovered), expected, "open {round}");
        assert_eq!(recovered.damage.len(), 1);
        let damage = &recovered.damage[0];
        assert_eq!(
            (damage.segment, damage.missing.clone()),
            (1, vec![owners[2]])
        );
        assert!((damage.offset..damage.offset + damage.len).contains(&(at as u64)));
        let kept = fs.peek(damage.kept.as_ref().unwrap()).unwrap();
        let from = damage.offset as usize;
        assert_eq!(kept, bytes[from..from + damage.len as usize]);
        if round % 2 == 0 {
            driven(&journal, journal.seal()).unwrap();
        } else {
            drop(journal);
            fs.kill();
        }
        let names = fs.names(Path::new(DIR)).len();
        assert!(
            litter.is_none_or(|before| names <= before + 1),
            "open {round}: {names} names"
        );
        litter = litter.or(Some(names + 2));
    }
}

/// C8: by option, open refuses and changes nothing at all.
#[test]
fn c8_refusing_changes_nothing() {
    let fs = SimFs::new();
    three_segments(&fs);
    let path = segments(&fs)[0].clone();
    let mut bytes = fs.peek(&path).unwrap();
    bytes[600] ^= 1;
    fs.poke(&path, bytes);
    let before: Vec<_> = fs
        .names(Path::new("/"))
        .into_iter()
        .map(|name| (fs.peek(&name), name))
        .collect();
    let refusing = JournalOptions {
        on_damage: OnDamage::Refuse,
        ..options(5)
    };
    let refused = Journal::open(
        Arc::new(fs.clone()),
        s3_writeback::io::Io::inline(),
        refusing,
    );
    let Err(JournalError::Damaged(damage)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(damage.len(), 1);
    let after: Vec<_> = fs
        .names(Path::new("/"))
        .into_iter()
        .map(|name| (fs.peek(&name), name))
        .collect();
    assert!(before == after, "something was changed");
    // And the lock is free again.
    open(&fs, 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// C8: any one byte of a sealed journal's segments flipped: it opens, and what is missing is
    /// at most one record of that segment, reported.
    #[test]
    fn c8_any_flipped_byte_costs_at_most_one_record(which in 0_usize..3, at in 0_usize..4096, bit in 0_u8..8) {
        let fs = SimFs::new();
        let owners = three_segments(&fs);
        let path = segments(&fs)[which].clone();
        let mut bytes = fs.peek(&path).unwrap();
        bytes[at] ^= 1 << bit;
        fs.poke(&path, bytes);
        let (_, recovered) = open(&fs, 4);
        let missing: Vec<_> =
            owners.iter().filter(|owner| !locations(&recovered).contains(owner)).copied().collect();
        prop_assert!(missing.len() <= 1, "{missing:?}");
        if let Some(missing) = missing.first() {
            prop_assert_eq!(recovered.damage.len(), 1);
            // Where the header is what was hit, nobody can say which.
            let said = &recovered.damage[0].missing;
            prop_assert!(said.is_empty() || said == &vec![*missing]);
        }
    }
}

/// E12: a payload that is itself a segment of this journal, with its frame damaged: no frame in
/// it is taken for one.
#[test]
fn e12_a_payload_that_is_a_segment_is_not_one() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    for number in 0..4 {
        begin(&journal, &format!("bait {number}"));
    }
    journal.drive();
    let bait = fs.peek(&segment(1)).unwrap()[HEADER..HEADER + 500].to_vec();
    let carrier = journal
        .append(Append::begin(
            1,
            "carrier",
            Payload::Inline(Bytes::from(bait)),
        ))
        .unwrap();
    let after = begin(&journal, "after");
    journal.drive();
    driven(&journal, journal.seal()).unwrap();
    let mut bytes = fs.peek(&segment(1)).unwrap();
    let at = bytes
        .windows(7)
        .position(|seven| seven == b"carrier")
        .unwrap();
    // The header of the frame that carries it: so the search goes through the payload.
    bytes[at - 40] ^= 1;
    fs.poke(&segment(1), bytes);
    let (_, recovered) = open(&fs, 2);
    assert_eq!(locations(&recovered), [1, 2, 3, 4, after]);
    assert_eq!(
        recovered.records, 5,
        "a frame of the payload was read as one: {carrier}"
    );
    assert_eq!(recovered.damage.len(), 1);
}

/// E12: a group torn in its middle by a power cut is no damage, and nothing behind the tear runs.
#[test]
fn e12_a_group_torn_in_its_middle_is_cut_off_whole() {
    let mut torn = 0;
    for seed in 0..200 {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        let first = begin(&journal, "acknowledged");
        journal.drive();
        for number in 0..12 {
            journal
                .append(Append::begin(1, text(number, 180), Payload::None))
                .unwrap();
        }
        fs.fail(Fault {
            call: Some(Call::Sync),
            after: 0,
            errno: EIO,
            forever: true,
        });
        fs.fail(Fault {
            call: Some(Call::Create),
            after: 0,
            errno: EIO,
            forever: true,
        });
        fs.fail(Fault {
            call: Some(Call::Open),
            after: 0,
            errno: EIO,
            forever: true,
        });
        // The fdatasync fails, and the power goes before anything else is done about it.
        journal.drive();
        fs.crash(seed);
        drop(journal);
        let bytes = fs.peek(&segment(1)).unwrap();
        let there: Vec<bool> = (0..12)
            .map(|n| {
                let head = text(n, 180);
                bytes.windows(180).any(|window| window == &head[..])
            })
            .collect();
        let (_, recovered) = open(&fs, 2);
        assert_eq!(recovered.damage, vec![], "seed {seed}");
        let kept = there.iter().take_while(|there| **there).count();
        let behind = there[kept..].iter().any(|there| *there);
        torn += u64::from(behind);
        let found = locations(&recovered);
        assert_eq!(found[0], first);
        assert!(
            found.len() <= kept + 1,
            "seed {seed}: a record behind the tear was recovered"
        );
    }
    assert!(torn > 10, "the test tears: {torn}");
}

/// A name that its file had before it was reclaimed, and that a power cut brings back, is no
/// damage: the file says which segment it has become since.
#[test]
fn c8_a_name_that_came_back_is_not_damage() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let first = begin(&journal, "first");
    journal.drive();
    drop(journal);
    fs.kill();
    let file = segments(&fs).pop().unwrap();
    let stale = segment(9);
    fs.link(&file, &stale).unwrap();
    let (journal, recovered) = open(&fs, 2);
    assert_eq!(recovered.damage, vec![]);
    assert_eq!(locations(&recovered), [first]);
    assert!(!segments(&fs).contains(&stale), "the name goes");
    drop(journal);
    fs.crash(3);
    assert_eq!(locations(&open(&fs, 3).1), [first]);
}

/// Two names of one spare, as a power cut may leave them: the file becomes one segment, not two.
#[test]
fn c8_a_spare_with_two_names_is_taken_once() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    journal.drive();
    drop(journal);
    fs.kill();
    let dir = Path::new(DIR).join("spare");
    let spare = fs.names(&dir).pop().unwrap();
    for n in 0..3 {
        fs.link(&spare, &dir.join(format!("again-{n}"))).unwrap();
    }
    let (journal, _) = open(&fs, 2);
    let mut owners = Vec::new();
    while segments(&fs).len() < 6 {
        owners.push(begin(&journal, &"x".repeat(400)));
        journal.drive();
    }
    drop(journal);
    fs.crash(3);
    let (_, recovered) = open(&fs, 3);
    assert_eq!(recovered.damage, vec![]);
    assert_eq!(locations(&recovered), owners);
}

/// C10: a failed fdatasync is never followed by another on that file, nothing is acknowledged by
/// it, and what was pending is acknowledged by the next segment.
#[test]
fn c10_a_failed_sync_poisons_its_segment() {
    for call in [Call::Sync, Call::Write] {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        let sink = Sink::default();
        journal.set_sink(Arc::new(sink.clone()));
        let first = begin(&journal, "first");
        journal.drive();
        let started = journal
            .append(Append::note(2, first, 1, "started").unsynced())
            .unwrap();
        journal.drive();
        assert!(
            journal.durable() < started,
            "a note without a sync is not durable yet"
        );
        let second = begin(&journal, "second");
        fs.start_log();
        fs.fail(Fault {
            call: Some(call),
            after: 0,
            errno: EIO,
            forever: false,
        });
        journal.drive();
        assert_eq!(journal.durable(), second);
        assert_eq!(journal.status().poisoned_segments, 1);
        let log = fs.take_log();
        // A handle keeps the path by which it was opened. The first line that ends with the
        // failing call names the poisoned file; nothing else may touch it.
        let verb = format!("{call:?} ");
        let failed = log.iter().find(|line| line.starts_with(&verb)).unwrap();
        let path = failed.split(' ').nth(1).unwrap();
        let touched = |what: &str| {
            log.iter()
                .filter(|line| line.starts_with(what) && line.contains(path))
                .count()
        };
        assert_eq!(touched("Sync"), usize::from(call == Call::Sync), "{log:#?}");
        assert_eq!(touched("Write"), 1, "{log:#?}");
        fs.crash(9);
        drop(journal);
        let (_, recovered) = open(&fs, 2);
        assert_eq!(locations(&recovered), [first, second]);
        assert_eq!(recovered.damage, vec![]);
        assert_eq!(&recovered.owners[0].notes[0].head[..], b"started");
    }
}

/// C10: fsync fails for ever: never acknowledged, said once and loudly, and each record has one
/// answer: undetermined where it was written, void where it was not.
#[test]
fn c10_a_disk_that_fails_for_ever_ends_the_journal() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let sink = Sink::default();
    journal.set_sink(Arc::new(sink.clone()));
    let first = begin(&journal, "first");
    journal.drive();
    // More than one segment takes: the last ones are never written.
    let rest: Vec<_> = (0..40)
        .map(|n| begin(&journal, &"x".repeat(150 + n)))
        .collect();
    let wait = journal.wait_durable(rest[0]);
    fs.fail(Fault {
        call: Some(Call::Sync),
        after: 0,
        errno: EIO,
        forever: true,
    });
    journal.drive();
    let heard = sink.0.lock().unwrap();
    assert_eq!((heard.durable, heard.failed), (first, 1));
    assert!(
        !heard.void.is_empty() && !heard.undetermined.is_empty(),
        "{heard:?}"
    );
    let mut all: Vec<_> = heard
        .void
        .iter()
        .chain(&heard.undetermined)
        .copied()
        .collect();
    all.sort_unstable();
    assert_eq!(all, rest);
    assert!(matches!(
        driven(&journal, wait),
        Err(JournalError::Undetermined(_))
    ));
    let void = journal.wait_durable(heard.void[0]);
    assert!(matches!(driven(&journal, void), Err(JournalError::Void(_))));
    assert!(matches!(
        journal.append(Append::end(1, first, "")),
        Err(JournalError::Failed(_))
    ));
    assert!(matches!(
        driven(&journal, journal.seal()),
        Err(JournalError::Failed(_))
    ));
    // Void is void: also when all that the kernel has reaches the disk after all.
    fs.kill();
    drop(journal);
    let (_journal, recovered) = open(&fs, 2);
    for owner in locations(&recovered) {
        assert!(
            !heard.void.contains(&owner),
            "void record {owner} came back"
        );
    }
    assert!(try_open(&fs, 3).is_err(), "the lock is held by the second");
}
