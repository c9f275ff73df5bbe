//! Whose directory it is, what may be opened, and what a whole life leaves behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, OsFs};
use s3_writeback::journal::{
    Append, Journal, JournalError, JournalOptions, Location, Payload, StageSource, inspect,
};
use s3_writeback::testing::fs::{Call, EIO, Fault, SimFs};

use super::model::{DIR, Sink, driven, open, segment, segments, text, try_open};

fn begin(journal: &Journal, head: Bytes) -> Location {
    journal
        .append(Append::begin(1, head, Payload::None))
        .unwrap()
}

/// The second open, in this process or another, gets an error that names the first.
#[test]
fn lock_names_its_holder() {
    let fs = SimFs::new();
    let (first, _) = open(&fs, 1);
    let Err(JournalError::Locked { holder, .. }) = try_open(&fs, 2) else {
        panic!("opened twice")
    };
    assert_eq!(holder, "the test");
    assert_eq!(
        inspect(&fs, Path::new(DIR)).unwrap().last_holder.unwrap(),
        "the test"
    );
    drop(first);
    open(&fs, 3);

    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        segment_bytes: 64 * 1024,
        ..JournalOptions::new(dir.path())
    };
    let open_os = || Journal::open(Arc::new(OsFs), Io::inline(), options.clone());
    let first = open_os().unwrap();
    let Err(JournalError::Locked { holder, .. }) = open_os() else {
        panic!("opened twice")
    };
    assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    drop(first);
    open_os().unwrap();
}

/// Directories are 0700 and files 0600, on the operating system's file system.
#[test]
fn nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("made").join("here");
    let options = JournalOptions {
        segment_bytes: 64 * 1024,
        ..JournalOptions::new(&dir)
    };
    let (journal, _) = Journal::open(Arc::new(OsFs), Io::inline(), options).unwrap();
    let staged = driven(
        &journal,
        journal.stage(StageSource::Bytes(text(1, 100_000))),
    )
    .unwrap();
    let owner = journal
        .append(Append::begin(1, "x", Payload::Staged(staged)))
        .unwrap();
    journal.drive();
    assert_eq!(
        journal.payload(owner).unwrap().read_at(0, 100_000).unwrap(),
        text(1, 100_000)
    );
    let mut seen = 0;
    let mut todo = vec![dir];
    while let Some(dir) = todo.pop() {
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700,
            "{dir:?}"
        );
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                seen += 1;
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{:?}", entry.path());
            }
        }
    }
    assert!(seen >= 4, "{seen}");
}

/// E24: a copy of the directory is moved until it is adopted; the original is not.
#[test]
fn e24_a_copied_directory_is_moved() {
    let fs = SimFs::new();
    let (journal, recovered) = open(&fs, 1);
    assert!(!recovered.moved);
    let owner = begin(&journal, text(1, 30));
    journal.drive();
    driven(&journal, journal.seal()).unwrap();
    let copy = fs.copy_of();
    let (original, recovered) = open(&fs, 2);
    assert!(!recovered.moved && !original.moved());
    let (copied, recovered) = open(&copy, 3);
    assert!(recovered.moved && copied.moved());
    assert_eq!(recovered.owners[0].location, owner);
    assert_eq!(copied.journal_id(), original.journal_id());
    // Opening it changes nothing about that; adopting does, for good.
    drop(copied);
    let (copied, recovered) = open(&copy, 4);
    assert!(recovered.moved);
    assert!(inspect(&copy, Path::new(DIR)).unwrap().recovered.moved);
    copied.adopt().unwrap();
    assert!(!copied.moved());
    drop(copied);
    copy.crash(1);
    assert!(!open(&copy, 5).1.moved);
}

/// An unknown format is refused with both versions in the error, and nothing is changed.
#[test]
fn an_unknown_version_is_refused() {
    for which in ["IDENTITY", "segment"] {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        begin(&journal, text(1, 30));
        journal.drive();
        drop(journal);
        let path = if which == "segment" {
            segment(1)
        } else {
            Path::new(DIR).join("IDENTITY")
        };
        let mut bytes = fs.peek(&path).unwrap();
        let covered = if which == "segment" { 76 } else { 60 };
        let len = bytes.len();
        let starts = if which == "segment" {
            vec![0, len - 128]
        } else {
            vec![0]
        };
        for at in starts {
            bytes[at + 8] = 9;
            bytes[at + 12] = 8;
            let crc =
                crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[at..at + covered]);
            bytes[at + covered..at + covered + 4].copy_from_slice(&(crc as u32).to_le_bytes());
        }
        fs.poke(&path, bytes);
        let before = fs.names(Path::new("/"));
        let error = try_open(&fs, 2).unwrap_err();
        let JournalError::Version {
            found,
            min_reader,
            newest,
            ..
        } = &error
        else {
            panic!("{which}: {error}")
        };
        assert_eq!((*found, *min_reader, *newest), (9, 8, 1));
        assert_eq!(fs.names(Path::new("/")), before);
    }
}

/// C12 (journal side): a hundred opens and seals in one process: no location twice, no litter, no
/// lock left, and the disk stays flat.
#[test]
fn c12_a_hundred_lives_leave_nothing_behind() {
    let fs = SimFs::new();
    let mut used = BTreeSet::new();
    let mut most = 0;
    for life in 0..100 {
        let (journal, recovered) = open(&fs, life);
        assert_eq!(recovered.clean, life > 0, "life {life}");
        assert_eq!(recovered.owners.len(), usize::from(life > 0));
        for number in 0..5 {
            assert!(used.insert(begin(&journal, text(number, 40))));
        }
        journal.drive();
        let owners: Vec<_> = used.iter().copied().rev().take(5).collect();
        for owner in recovered
            .owners
            .iter()
            .map(|owner| owner.location)
            .chain(owners[1..].to_vec())
        {
            journal
                .append(Append::end(1, owner, ""))
                .map(|at| used.insert(at))
                .unwrap();
        }
        driven(&journal, journal.seal()).unwrap();
        driven(&journal, journal.seal()).unwrap();
        assert!(matches!(
            journal.append(Append::begin(1, "", Payload::None)),
            Err(JournalError::Closed)
        ));
        drop(journal);
        if life == 10 {
            most = fs.used();
        }
        assert!(
            life <= 10 || fs.used() <= most,
            "life {life}: {} of {most}",
            fs.used()
        );
    }
}

/// A crash loop (every life ends by a kill, with no record written) does not grow the journal.
#[test]
fn a_crash_loop_does_not_grow_the_journal() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 0);
    let owners: Vec<_> = (0..30).map(|n| begin(&journal, text(n, 150))).collect();
    journal.drive();
    fs.kill();
    drop(journal);
    let mut most = 0;
    for life in 1..60 {
        let (journal, recovered) = open(&fs, life);
        assert_eq!(recovered.owners.len(), owners.len());
        if life == 3 {
            most = fs.used();
        }
        assert!(
            life <= 3 || fs.used() <= most,
            "life {life}: {} of {most}",
            fs.used()
        );
        if life % 2 == 0 {
            fs.kill()
        } else {
            fs.crash(life)
        }
        drop(journal);
    }
}

/// E11: the record that ends a task outlives every copy of it, with a reclaim between each step
/// and the power cut at each call; a copy of an old note never hides a newer one.
#[test]
fn e11_what_ended_stays_ended_when_segments_go() {
    for cut in 0..400 {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        let sink = Sink::default();
        journal.set_sink(Arc::new(sink.clone()));
        let kept = begin(&journal, text(1, 100));
        let ended = begin(&journal, text(2, 100));
        journal.append(Append::note(1, kept, 1, "old")).unwrap();
        journal.drive();
        fs.fail(Fault {
            call: None,
            after: cut,
            errno: EIO,
            forever: true,
        });
        let mut end = None;
        let mut newer = None;
        for round in 0..120 {
            // Churn that dies at once, so that the oldest segment is copied and goes.
            if let Ok(owner) = journal.append(Append::begin(1, text(round, 150), Payload::None)) {
                let _ = journal.append(Append::end(1, owner, ""));
            }
            if round == 20 {
                newer = journal.append(Append::note(1, kept, 1, "new")).ok();
            }
            if round == 40 {
                end = journal.append(Append::end(1, ended, "")).ok();
            }
            journal.drive();
        }
        let heard = sink.0.lock().unwrap();
        let end_durable = end.is_some_and(|at| heard.is_durable(at));
        let newer_durable = newer.is_some_and(|at| heard.is_durable(at));
        fs.crash(cut);
        drop(journal);
        let (_, recovered) = open(&fs, 2);
        assert_eq!(recovered.damage, vec![], "cut {cut}");
        let found = |owner| {
            recovered
                .owners
                .iter()
                .find(|found| found.location == owner)
        };
        let note = &found(kept)
            .unwrap_or_else(|| panic!("cut {cut}: lost"))
            .notes[0]
            .head;
        assert!(!newer_durable || &note[..] == b"new", "cut {cut}: {note:?}");
        assert!(
            !end_durable || found(ended).is_none(),
            "cut {cut}: an ended task came back"
        );
    }
}

/// E10 (journal side): a record that replaces another does so by location: both are there until
/// the end of the earlier is durable, and that end is in the log behind the later record.
#[test]
fn e10_the_earlier_stays_until_its_end_is_durable() {
    for seed in 0..60 {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        let first = begin(&journal, text(1, 60));
        journal.drive();
        let second = begin(&journal, text(2, 60));
        let end = journal.append(Append::end(1, first, "superseded")).unwrap();
        // The group that holds both is torn.
        fs.fail(Fault {
            call: Some(Call::Sync),
            after: 0,
            errno: EIO,
            forever: true,
        });
        journal.drive();
        assert!(journal.durable() < end);
        fs.crash(seed);
        drop(journal);
        let (_, recovered) = open(&fs, 2);
        let found: Vec<_> = recovered
            .owners
            .iter()
            .map(|owner| owner.location)
            .collect();
        assert!(
            [vec![first], vec![first, second], vec![second]].contains(&found),
            "seed {seed}: {found:?}"
        );
    }
}

/// C11 (journal side): a head over its limit is refused at append, with the limit; nothing is
/// written.
#[test]
fn c11_a_head_has_a_limit() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let owner = begin(&journal, text(1, 10));
    journal.drive();
    let long = Bytes::from(vec![b'x'; 5 * 1024 * 1024]);
    for record in [
        Append::begin(1, long.clone(), Payload::None),
        Append::note(1, owner, 1, long.clone()),
        Append::end(1, owner, long.clone()),
        Append::begin(1, "", Payload::Inline(long)),
    ] {
        let refused = journal.append(record);
        assert!(
            matches!(refused, Err(JournalError::TooLarge { .. })),
            "{refused:?}"
        );
    }
    // A head larger than a segment is taken all the same: it gets a segment of its own size.
    let large = begin(&journal, Bytes::from(vec![b'y'; 50_000]));
    journal.drive();
    assert_eq!(journal.durable(), large);
    drop(journal);
    fs.crash(1);
    let (_, recovered) = open(&fs, 2);
    assert_eq!(recovered.owners[1].head.len(), 50_000);
}

/// E19: the disk hangs in fdatasync while the journal is sealed: the caller's deadline ends its
/// wait, there is no clean mark, and `LOCK` stays until the process goes.
#[test]
fn e19_a_hanging_disk_keeps_the_lock() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let fs = SimFs::new();
    // Should an assertion fail, the runtime must not wait for the hanging thread.
    struct Release(SimFs);
    impl Drop for Release {
        fn drop(&mut self) {
            self.0.release_syncs();
        }
    }
    let _release = Release(fs.clone());
    let (journal, _) = Journal::open(
        Arc::new(fs.process()),
        Io::pool(runtime.handle().clone(), 2),
        super::model::options(1),
    )
    .unwrap();
    let running = journal.clone();
    let committer = runtime.spawn(async move { running.run().await });
    let owner = begin(&journal, text(1, 30));
    runtime.block_on(journal.wait_durable(owner)).unwrap();
    fs.hang_syncs();
    let sealed = runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(200), journal.seal()).await });
    assert!(sealed.is_err(), "{sealed:?}");
    assert_eq!(fs.hanging(), 1);
    // The engine lets go of everything it has. The I/O thread has not.
    drop(journal);
    committer.abort();
    assert!(matches!(try_open(&fs, 2), Err(JournalError::Locked { .. })));
    assert!(!inspect(&fs, Path::new(DIR)).unwrap().recovered.clean);
    // The process goes.
    fs.crash(3);
    let (_, recovered) = open(&fs, 3);
    assert!(!recovered.clean);
    assert_eq!(recovered.owners.len(), 1);
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// `kill -9` keeps a `started` note that asked for no sync, and a clean mark is gone before
/// anything else is written.
#[test]
fn a_kill_keeps_what_was_written_and_not_synced() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let owner = begin(&journal, text(1, 30));
    driven(&journal, async { journal.flush().await }).unwrap();
    let syncs = fs.count(Call::Sync);
    journal
        .append(Append::note(2, owner, 1, "started").unsynced())
        .unwrap();
    journal.drive();
    assert_eq!(
        fs.count(Call::Sync),
        syncs,
        "a started note costs no fdatasync"
    );
    fs.kill();
    drop(journal);
    let (journal, recovered) = open(&fs, 2);
    assert_eq!(&recovered.owners[0].notes[0].head[..], b"started");
    driven(&journal, journal.seal()).unwrap();
    drop(journal);
    // Sealed, opened, and the power goes before a record is written.
    let (journal, recovered) = open(&fs, 3);
    assert!(recovered.clean);
    fs.crash(4);
    drop(journal);
    assert!(!open(&fs, 4).1.clean);
}

/// Staged payloads: removed when dropped, adopted by rename and by link, gone when their owner
/// has ended durably, and swept when no record names them.
#[test]
fn payload_files_come_and_go_with_their_owners() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let payloads = || fs.names(&Path::new(DIR).join("payload")).len();
    let staging = || fs.names(&Path::new(DIR).join("staging")).len();
    let base = journal.disk_used();
    drop(driven(&journal, journal.stage(StageSource::Bytes(text(1, 2000)))).unwrap());
    assert_eq!((staging(), payloads(), journal.disk_used()), (0, 0, base));
    let (mine, linked) = (Path::new("/data/mine"), Path::new("/data/linked"));
    for path in [mine, linked] {
        let file = fs
            .open(path, s3_writeback::journal::fs::OpenMode::CreateNew)
            .unwrap();
        file.write_all_at(&text(7, 3000), 0).unwrap();
    }
    let mut owners = Vec::new();
    for source in [
        StageSource::Rename(mine.into()),
        StageSource::Link(linked.into()),
    ] {
        let staged = driven(&journal, journal.stage(source)).unwrap();
        assert_eq!(staged.len(), 3000);
        owners.push(
            journal
                .append(Append::begin(1, "adopted", Payload::Staged(staged)))
                .unwrap(),
        );
    }
    assert!(fs.peek(mine).is_none() && fs.peek(linked).is_some());
    journal.drive();
    assert_eq!((staging(), payloads()), (0, 2));
    assert_eq!(journal.disk_used(), fs.used() - 256 - 64);
    // A payload the disk refuses is void, and so is its record; the others go on.
    let staged = driven(&journal, journal.stage(StageSource::Bytes(text(3, 2000)))).unwrap();
    let refused = journal
        .append(Append::begin(1, "refused", Payload::Staged(staged)))
        .unwrap();
    let fine = begin(&journal, text(4, 20));
    fs.fail(Fault {
        call: Some(Call::Sync),
        after: 0,
        errno: EIO,
        forever: false,
    });
    journal.drive();
    assert!(matches!(
        driven(&journal, journal.wait_durable(refused)),
        Err(JournalError::Void(_))
    ));
    assert_eq!(journal.durable(), fine);
    assert!(matches!(
        driven(&journal, journal.wait_durable(refused)),
        Err(JournalError::Void(_))
    ));
    journal.append(Append::end(1, owners[0], "")).unwrap();
    journal.drive();
    assert_eq!(payloads(), 1);
    assert!(journal.payload(owners[0]).is_none());
    // What nobody names is swept.
    let stray = Path::new(DIR).join("payload").join("00000000000000099999");
    fs.open(&stray, s3_writeback::journal::fs::OpenMode::CreateNew)
        .unwrap();
    drop(journal);
    let (journal, _) = open(&fs, 2);
    assert_eq!(payloads(), 1);
    assert_eq!(
        journal.payload(owners[1]).unwrap().read_at(10, 20).unwrap(),
        text(7, 3000)[10..30]
    );
}

/// A handle on an inline payload reads on after its segment was reclaimed.
#[test]
fn a_handle_outlives_its_segment() {
    let fs = SimFs::new();
    let (journal, _) = open(&fs, 1);
    let owner = journal
        .append(Append::begin(1, "h", Payload::Inline(text(5, 400))))
        .unwrap();
    journal.drive();
    let handle = journal.payload(owner).unwrap();
    journal.append(Append::end(1, owner, "")).unwrap();
    for round in 0..100 {
        let churn = begin(&journal, text(round, 150));
        journal.append(Append::end(1, churn, "")).unwrap();
        journal.drive();
    }
    assert!(!segments(&fs).contains(&segment(1)), "its segment is gone");
    assert_eq!(handle.read_at(0, 400).unwrap(), text(5, 400));
    assert!(handle.read_at(390, 11).is_err());
}

/// The committer on a real runtime and a real disk: what 16 threads append is durable and comes
/// back.
#[test]
fn many_threads_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        segment_bytes: 256 * 1024,
        ..JournalOptions::new(dir.path())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let io = Io::pool(runtime.handle().clone(), 2);
    let (journal, _) = Journal::open(Arc::new(OsFs), io, options.clone()).unwrap();
    let running = journal.clone();
    let committer = runtime.spawn(async move { running.run().await });
    let tasks: Vec<_> = (0..16_u64)
        .map(|submitter| {
            let journal = journal.clone();
            runtime.spawn(async move {
                let mut live = Vec::new();
                for round in 0..100 {
                    let owner = begin(&journal, text(submitter * 1000 + round, 300));
                    journal.wait_durable(owner).await.unwrap();
                    if round % 10 == 0 {
                        live.push(owner);
                    } else {
                        journal.append(Append::end(1, owner, "")).unwrap();
                    }
                }
                live
            })
        })
        .collect();
    let mut live: Vec<Location> = tasks
        .into_iter()
        .flat_map(|task| runtime.block_on(task).unwrap())
        .collect();
    live.sort_unstable();
    runtime.block_on(journal.seal()).unwrap();
    runtime.block_on(committer).unwrap();
    drop(journal);
    let (_, recovered) = Journal::open(Arc::new(OsFs), Io::inline(), options).unwrap();
    assert!(recovered.clean);
    let found: Vec<_> = recovered
        .owners
        .iter()
        .map(|owner| owner.location)
        .collect();
    assert_eq!(found, live);
}

/// The first note of a life is the one that matters when every life ends at the same attempt: it
/// comes before there is a spare segment, and waits for one instead of being left out.
#[test]
fn a_note_right_after_an_open_is_not_left_out() {
    for owners in [1, 20, 100] {
        let fs = SimFs::new();
        let (journal, _) = open(&fs, 1);
        let first = begin(&journal, text(1, 30));
        for _ in 1..owners {
            begin(&journal, text(1, 300));
        }
        journal.drive();
        fs.kill();
        drop(journal);
        for life in 2..5_u8 {
            let (journal, _) = open(&fs, life.into());
            let note = Append::note(2, first, 1, vec![life; 40]).unsynced();
            journal.append(note).unwrap();
            journal.drive();
            fs.kill();
            drop(journal);
            let found = inspect(&fs, Path::new(DIR)).unwrap().recovered;
            let notes = &found.owners[0].notes;
            assert_eq!(notes.len(), 1, "{owners} owners, life {life}");
            assert_eq!(
                notes[0].head[..],
                [life; 40],
                "{owners} owners, life {life}"
            );
        }
    }
}
