//! What a part store keeps of what is over: nothing on its disk that is of no more use, and no
//! attempts that nobody owes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::journal::{Journal, JournalOptions};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{self, EIO};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, File, FileId, PartStore, Role};
use tokio::time::Instant;

use crate::support::{PART, PARTS_OF, StoreRig, fill, paused, read, uploaded};

const FILE: FileId = FileId(1);
/// The kind of the record that says what the number of an epoch stands for.
const EPOCH: u8 = 18;

/// Records of a kind that are live in a directory that nobody has open.
fn records(rig: &StoreRig, kind: u8) -> usize {
    let mut options = JournalOptions::new("/q");
    options.segment_bytes = rig.config.queue.segment_bytes.into();
    let opened = Journal::open(Arc::new(rig.fs.copy_of()), Io::inline(), options);
    let (_journal, recovered) = opened.expect("opens");
    let owners = recovered.owners.iter();
    owners.filter(|owner| owner.kind == kind).count()
}

#[test]
fn an_epoch_that_no_entry_names_is_forgotten() {
    paused(async {
        let rig = StoreRig::new(8);
        for life in 0..12_u8 {
            let store = rig.open().await;
            let file = match life {
                0 => store.create(FILE, PARTS_OF).await.expect("creates"),
                _ => store.file(FILE).expect("is there"),
            };
            // One part stays what the first life made it; the other is the last one's.
            fill(&file, usize::from(life > 0), life).await;
            uploaded(&store).await;
            store.shutdown().await.expect("shuts down");
            drop((file, store));
            let store = rig.open().await;
            let file = store.file(FILE).expect("is there");
            // What is here is not asked for.
            for path in rig.fs.names(Path::new("/q/parts")) {
                rig.fs.poke(&path, vec![0x55; 2 * PART]);
            }
            for (index, byte) in [(0, 0), (1, life)] {
                if index <= usize::from(life > 0) {
                    let bytes = read(&file, index * PART, PART).await;
                    assert_eq!(bytes.expect("reads"), [byte; PART], "part {index}");
                }
            }
            store.shutdown().await.expect("shuts down");
        }
        assert_eq!(records(&rig, EPOCH), 2, "the first and the last");
    });
}

/// Writes until the header has a snapshot that it did not have, and what that stands in for has
/// gone.
async fn another_snapshot(rig: &StoreRig, store: &PartStore, file: &File) {
    let before = headers(rig);
    for round in 0..200 {
        for index in 0..64 {
            fill(file, index, round).await;
        }
        uploaded(store).await;
        if headers(rig).iter().any(|name| !before.contains(name)) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        }
    }
    panic!("no snapshot");
}

/// A snapshot's number among those of its file.
fn number(path: &Path) -> u64 {
    let name = path.to_string_lossy();
    let digits = name.rsplit('-').next().expect("has a number");
    u64::from_str_radix(digits, 16).expect("is a number")
}

fn headers(rig: &StoreRig) -> Vec<PathBuf> {
    rig.fs.names(Path::new("/q/headers"))
}

#[test]
fn a_header_has_one_snapshot_and_a_dropped_file_none() {
    paused(async {
        let rig = StoreRig::new(64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        another_snapshot(&rig, &store, &file).await;
        another_snapshot(&rig, &store, &file).await;
        assert_eq!(headers(&rig).len(), 1);
        // One that fails counts for nothing; the one before it goes when there is another.
        let before = number(&headers(&rig)[0]);
        let fault = fs::Fault {
            call: Some(fs::Call::Rename),
            after: 0,
            errno: EIO,
            forever: false,
        };
        rig.fs.fail_under(Path::new("/q/headers"), fault);
        another_snapshot(&rig, &store, &file).await;
        assert_eq!(headers(&rig).len(), 1, "{:?}", headers(&rig));
        assert_eq!(number(&headers(&rig)[0]), before + 2);
        let locker = store.locker("drops", Role::Foreground).expect("a locker");
        store.drop_file(FILE, &locker).await.expect("drops");
        assert_eq!(headers(&rig), Vec::<PathBuf>::new());
        store.shutdown().await.expect("shuts down");
    });
}

#[test]
fn nothing_more_is_said_of_a_dropped_file() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        let locker = store.locker("drops", Role::Foreground).expect("a locker");
        store.drop_file(FILE, &locker).await.expect("drops");
        let synced = file.sync().await;
        assert!(matches!(synced, Err(Error::Deleted { .. })), "{synced:?}");
        store.sync_all().await.expect("syncs what is there");
        store.shutdown().await.expect("shuts down");
        let mut options = JournalOptions::new("/q");
        options.segment_bytes = rig.config.queue.segment_bytes.into();
        let opened = Journal::open(Arc::new(rig.fs.copy_of()), Io::inline(), options);
        let (_journal, recovered) = opened.expect("opens");
        assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
        let left: Vec<u8> = recovered.owners.iter().map(|owner| owner.kind).collect();
        assert!(left.iter().all(|kind| *kind == EPOCH), "{left:?}");
    });
}

#[test]
fn writes_do_not_shorten_the_back_off_of_a_part_that_s3_refuses() {
    paused(async {
        let rig = StoreRig::with(8, |config| config.max_dirty_age = Duration::from_millis(10));
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let refused = RemoteError::permanent("PutObject", 403, "AccessDenied");
        let late = Duration::from_millis(20);
        rig.remote
            .always(Some(Call::Put), None, Fault::ErrorAfter(late, refused));
        let began = Instant::now();
        let mut writes = 0_u64;
        // Some of them come between a capture and its end.
        while began.elapsed() < Duration::from_secs(60) {
            fill(&file, 0, (writes % 251) as u8).await;
            writes += 1;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        let tried = rig.remote.count(Call::Put, "");
        // At 0, 2, 6, 14, 30 and, at the earliest, 62 s; two at a time.
        assert!((5..=12).contains(&tried), "{tried} of {writes}");
        let failing = store.snapshot().failing;
        assert_eq!(failing.len(), 1, "{failing:?}");
        rig.remote.heal();
        tokio::time::sleep(Duration::from_secs(120)).await;
        uploaded(&store).await;
        assert!(store.snapshot().failing.is_empty());
    });
}
