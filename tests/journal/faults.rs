//! Every call of a fixed workload fails once, and from there on; and the power goes at each.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use s3_writeback::journal::{Append, Journal, Payload, StageSource};
use s3_writeback::testing::fs::{Call, EIO, EMFILE, ENOSPC, Fault, SimFs};

use super::model::{Model, Sink, driven, open, options, segments, text, try_open};

/// Opens, writes inline and in files, notes, ends, rolls segments, reclaims, seals.
fn workload(fs: &SimFs, model: &mut Model, sink: &Sink) -> Option<Journal> {
    let (journal, recovered) = try_open(fs, 7).ok()?;
    model
        .owners
        .retain(|at, _| recovered.owners.iter().any(|owner| owner.location == *at));
    journal.set_sink(Arc::new(sink.clone()));
    let mut live = Vec::new();
    for round in 0..12_u64 {
        live.extend(model.begin(&journal, text(round, 100), Some((text(round, 200), false))));
        if round % 3 == 0 {
            live.extend(model.begin(&journal, text(round, 60), Some((text(round, 1500), true))));
        }
        if let Some(owner) = live.last() {
            model.note(&journal, *owner, 1, text(round, 20), round % 2 == 0);
        }
        journal.drive();
        if live.len() > 3 {
            model.end(&journal, live.remove(0));
            journal.drive();
        }
    }
    let _ = driven_or_stuck(&journal);
    Some(journal)
}

/// Seals; a journal that is short of room for ever cannot, and says so.
fn driven_or_stuck(journal: &Journal) -> bool {
    driven(journal, journal.seal()).is_ok()
}

fn calls() -> u64 {
    let fs = SimFs::new();
    let sink = Sink::default();
    workload(&fs, &mut Model::default(), &sink).unwrap();
    assert_eq!(sink.0.lock().unwrap().failed, 0);
    fs.total()
}

fn check(fs: &SimFs, mut model: Model, sink: &Sink, what: &str) {
    model.hear(sink);
    fs.heal();
    let (journal, recovered) = open(fs, 8);
    assert_eq!(recovered.damage, vec![], "{what}");
    model.check(&journal, &recovered, what);
}

/// The first, second, third ... call fails, once or for ever; then the power goes.
#[test]
fn every_call_fails_once_and_for_ever() {
    let total = calls();
    assert!(total > 150, "the workload does something: {total}");
    for errno in [EIO, ENOSPC, EMFILE] {
        for forever in [false, true] {
            for after in 0..total {
                let what = format!("call {after} of {total}, errno {errno}, for ever: {forever}");
                let fs = SimFs::new();
                let (mut model, sink) = (Model::default(), Sink::default());
                fs.fail(Fault {
                    call: None,
                    after,
                    errno,
                    forever,
                });
                let journal = workload(&fs, &mut model, &sink);
                fs.crash(after * 7 + u64::from(forever));
                drop(journal);
                check(&fs, model, &sink, &what);
            }
        }
    }
}

/// C9: a disk that is full at every point of run and recovery, and then has room: the journal
/// goes on without being opened again, and everything that was appended becomes durable.
#[test]
fn c9_a_full_disk_is_waited_out() {
    for after in 0..40 {
        for call in [Call::Preallocate, Call::Create] {
            let what = format!("{call:?} {after}");
            let fs = SimFs::new();
            let (journal, _) = open(&fs, 7);
            let sink = Sink::default();
            journal.set_sink(Arc::new(sink.clone()));
            let mut model = Model::default();
            let mut live = Vec::new();
            for round in 0..4 {
                live.extend(model.begin(&journal, text(round, 100), None));
                journal.drive();
            }
            fs.fail(Fault {
                call: Some(call),
                after: after / 4,
                errno: ENOSPC,
                forever: true,
            });
            for round in 4..100 + after * 8 {
                live.extend(model.begin(&journal, text(round, 100), None));
                journal.drive();
            }
            assert!(journal.status().short_of_space, "{what}");
            assert_eq!(sink.0.lock().unwrap().space, [true], "{what}");
            // What has begun ends meanwhile, and is acknowledged.
            model.hear(&sink);
            let durable = journal.durable();
            let first = live[0];
            assert!(first <= durable);
            let end = journal.append(Append::end(3, first, "e")).unwrap();
            journal.drive();
            assert_eq!(
                driven(&journal, journal.wait_durable(end)).ok(),
                Some(()),
                "{what}"
            );
            model.owners.remove(&first);
            fs.heal();
            journal.retry_space();
            journal.drive();
            assert_eq!(journal.durable(), end, "{what}: all that waited is durable");
            assert_eq!(sink.0.lock().unwrap().space, [true, false], "{what}");
            model.hear(&sink);
            fs.crash(after);
            drop(journal);
            check(&fs, model, &sink, &what);
        }
    }
}

/// C9: an open on a full disk is not refused; it goes on when there is room.
#[test]
fn c9_an_open_without_room_waits_for_it() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let owner = journal
        .append(Append::begin(1, "one", Payload::None))
        .unwrap();
    journal.drive();
    drop(journal);
    fs.kill();
    for spare in fs.names(&std::path::Path::new(super::model::DIR).join("spare")) {
        use s3_writeback::journal::fs::Fs;
        fs.unlink(&spare).unwrap();
    }
    fs.set_capacity(Some(fs.used()));
    let (journal, recovered) = open(&fs, 2);
    assert_eq!(recovered.owners.len(), 1);
    let sink = Sink::default();
    journal.set_sink(Arc::new(sink.clone()));
    let end = journal.append(Append::end(1, owner, "")).unwrap();
    journal.drive();
    assert!(journal.durable() < end);
    assert_eq!(sink.0.lock().unwrap().space, [true]);
    fs.set_capacity(None);
    journal.retry_space();
    journal.drive();
    assert_eq!(journal.durable(), end);
    drop(journal);
    fs.crash(3);
    assert_eq!(open(&fs, 3).1.owners, vec![]);
}

/// A journal in which one owner began and durably ended, after notes of `bytes` in all; and whether
/// the end was the first record of a segment.
fn ended_after(bytes: usize) -> (SimFs, bool) {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let owner = journal
        .append(Append::begin(1, "one", Payload::None))
        .unwrap();
    // Live, so that the first segment is not reclaimed.
    for n in 0..5 {
        journal
            .append(Append::begin(1, text(n, 400), Payload::None))
            .unwrap();
    }
    for at in (0..bytes).step_by(500) {
        journal
            .append(Append::note(2, owner, 0, text(1, (bytes - at).min(500))))
            .unwrap();
        journal.drive();
    }
    let before = segments(&fs).pop();
    let end = journal.append(Append::end(1, owner, "")).unwrap();
    journal.drive();
    assert_eq!(journal.durable(), end);
    let first = segments(&fs).pop() > before;
    drop(journal);
    (fs, first)
}

/// What ended durably stays ended, whichever call of the next open fails, once or for ever, and
/// whether the power goes after it or the process only: that open copies the record of the end;
/// what it tidies up behind the copy is never the copy itself, and a part of its copies counts
/// for nothing.
#[test]
fn e11_an_open_that_is_cut_short_brings_nothing_back() {
    let rolls = (0..2000)
        .step_by(8)
        .find(|bytes| ended_after(*bytes).1)
        .expect("one fits");
    for bytes in [0, rolls] {
        for variant in 0..8 {
            let (forever, power) = (variant & 1 > 0, variant & 2 > 0);
            let errno = if variant & 4 > 0 { EIO } else { ENOSPC };
            for after in 0.. {
                let what = format!(
                    "{bytes} bytes, call {after}, errno {errno}, for ever: {forever}, the power \
                     goes: {power}"
                );
                let (fs, _) = ended_after(bytes);
                fs.crash(after);
                let before = fs.total();
                fs.fail(Fault {
                    call: None,
                    after,
                    errno,
                    forever,
                });
                let opened = try_open(&fs, 2);
                let calls = fs.total() - before;
                fs.heal();
                drop(opened);
                if power {
                    fs.crash(after + 1);
                }
                assert_eq!(open(&fs, 3).1.owners.len(), 5, "{what}");
                if after > calls {
                    assert!(after > 20, "the open did something: {after}");
                    break;
                }
            }
        }
    }
}

/// C9: where room is short, a small vital record does not overtake a large one: whoever waits for
/// the last of them may rely on all.
#[test]
fn c9_vital_records_are_durable_in_their_order() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    fs.set_capacity(Some(40_000));
    let begin = |bytes| Append::begin(1, text(1, bytes), Payload::None);
    let mut owners = Vec::new();
    while !journal.status().short_of_space {
        owners.push(journal.append(begin(80)).unwrap());
        journal.drive();
    }
    let is_durable = |location| journal.wait_durable(location).now_or_never().is_some();
    let mut vital = Vec::new();
    let mut waited = 0;
    for (round, bytes) in [700, 20, 300, 5].into_iter().cycle().take(60).enumerate() {
        // A note among them, of an owner that is durable.
        let note = Append::note(2, owners[0], 1, text(1, bytes));
        let record = if round % 3 == 2 { note } else { begin(bytes) };
        vital.push(journal.append(record.vital()).unwrap());
        journal.drive();
        let first = vital.iter().position(|location| !is_durable(*location));
        let first = first.unwrap_or(vital.len());
        assert!(
            vital[first..].iter().all(|location| !is_durable(*location)),
            "round {round}"
        );
        waited += usize::from(first < vital.len());
        // Room for the small ones comes first.
        if round % 2 == 0 {
            let end = Append::end(3, owners.remove(1), Bytes::new());
            journal.append(end).unwrap();
            journal.drive();
        }
    }
    assert!(waited > 10, "{waited}");
    fs.set_capacity(None);
    journal.retry_space();
    journal.drive();
    assert!(vital.iter().all(|location| is_durable(*location)));
}

/// E20, C9: the disk is full, for good, with thousands of uploads to acknowledge: all of them
/// end, their payload files go, and the journal is sealed. No new file is needed for any of it.
#[test]
fn e20_everything_ends_on_a_full_disk() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let sink = Sink::default();
    journal.set_sink(Arc::new(sink.clone()));
    fs.set_capacity(Some(600_000));
    let mut owners = Vec::new();
    for round in 0..5000 {
        let payload = if round % 16 == 0 {
            let bytes = StageSource::Bytes(text(round, 1200));
            let Ok(staged) = driven(&journal, journal.stage(bytes)) else {
                continue;
            };
            Payload::Staged(staged)
        } else {
            Payload::None
        };
        owners.push(
            journal
                .append(Append::begin(1, text(round, 80), payload))
                .unwrap(),
        );
        journal.drive();
        if journal.status().short_of_space {
            break;
        }
    }
    assert!(owners.len() > 500, "{}", owners.len());
    assert!(journal.status().short_of_space);
    // Now also what is freed is taken by somebody else at once.
    let waiting = owners.pop().unwrap();
    assert!(journal.durable() < waiting);
    for (at, owner) in owners.iter().enumerate() {
        fs.set_capacity(Some(fs.used()));
        // Attempts go on as well: such notes are left out where there is no room for them.
        journal
            .append(Append::note(2, *owner, 1, "started").unsynced())
            .unwrap();
        journal
            .append(Append::note(2, *owner, 2, text(1, 30)))
            .unwrap();
        let end = journal
            .append(Append::end(
                3,
                *owner,
                "an etag of some forty characters, say",
            ))
            .unwrap();
        journal.drive();
        let done = driven(&journal, journal.wait_durable(end));
        assert!(
            done.is_ok(),
            "end {at} of {}: {done:?} {:?}",
            owners.len(),
            journal.status()
        );
    }
    driven(&journal, journal.seal()).unwrap();
    drop(journal);
    fs.crash(5);
    fs.set_capacity(None);
    let (_, recovered) = open(&fs, 2);
    assert!(
        recovered
            .owners
            .iter()
            .all(|owner| owner.location == waiting)
    );
    assert!(recovered.clean || !recovered.owners.is_empty());
    assert_eq!(options(1).segment_bytes, 4096);
}
