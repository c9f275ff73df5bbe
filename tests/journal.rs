//! The journal's promises, over a file system that fails, tears and forgets.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use s3_writeback::io::Io;
use s3_writeback::journal::*;
use s3_writeback::testing::fs::SimFs;

fn options(seed: u64) -> JournalOptions {
    JournalOptions {
        segment_bytes: 4096,
        end_head_bytes: 40,
        seed: Some(seed),
        holder: Some("the test".into()),
        ..JournalOptions::new("/j")
    }
}

fn open(fs: &SimFs, seed: u64) -> (Journal, Recovered) {
    Journal::open(Arc::new(fs.clone()), Io::inline(), options(seed)).unwrap()
}

#[test]
fn smoke() {
    let fs = SimFs::new();
    let (journal, recovered) = open(&fs, 1);
    assert_eq!(recovered.owners, vec![]);
    let a = journal
        .append(Append::begin(
            1,
            "head",
            Payload::Inline(Bytes::from_static(b"body")),
        ))
        .unwrap();
    let b = journal
        .append(Append::begin(1, "head b", Payload::None))
        .unwrap();
    journal.append(Append::note(2, a, 1, "noted")).unwrap();
    journal.append(Append::end(3, b, "done")).unwrap();
    journal.drive();
    assert_eq!(journal.durable(), 4);
    assert_eq!(
        &journal.payload(a).unwrap().read_at(0, 4).unwrap()[..],
        b"body"
    );
    drop(journal);
    fs.crash(7);
    let (journal, recovered) = open(&fs, 2);
    assert_eq!(recovered.owners.len(), 1);
    assert!(!recovered.clean);
    assert_eq!(recovered.damage, vec![]);
    assert_eq!(&recovered.owners[0].head[..], b"head");
    assert_eq!(&recovered.owners[0].notes[0].head[..], b"noted");
    assert_eq!(
        &journal.payload(a).unwrap().read_at(0, 4).unwrap()[..],
        b"body"
    );
    let _ = (Path::new("/"), PathBuf::new());
}
