//! A part store under threads, on its own runtime and in real time: what only happens where things
//! happen at once.
#![allow(
    clippy::disallowed_methods,
    reason = "the threads are the engine's, and one that hangs must not be joined"
)]

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::support::{PART, PARTS_OF, StoreRig};
use s3_writeback::io::Io;
use s3_writeback::{FileId, PartStore};

const FILE: FileId = FileId(1);
const PARTS: usize = 64;
/// What takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A load is taken by a worker before anybody waits for it, and somebody comes in that very
/// moment: it goes back into the line, which is locked then.
#[test]
fn a_load_that_is_wanted_again_while_it_is_given_up_goes_on() {
    let rig = StoreRig::new(8);
    let builder = PartStore::builder(rig.config.clone(), Arc::new(rig.remote.clone()));
    let builder = builder.file_system(Arc::new(rig.fs.clone()), Io::inline());
    let store = builder.open().wait().expect("opens");
    let file = store.create(FILE, PARTS_OF).wait().expect("creates");
    for part in 0..PARTS {
        let bytes = [part as u8 + 1; PART];
        let written = file.write_at(&bytes, (part * PART) as u64).wait();
        written.expect("is written");
    }
    let (done, all) = sync_channel(4);
    for thread in 0..4 {
        let (file, done) = (file.clone(), done.clone());
        std::thread::spawn(move || {
            let mut part = thread * PARTS / 4;
            for _ in 0..10_000 {
                // Far from the one before, and from what the others read.
                part = (part + 29) % PARTS;
                let mut bytes = [0; PART];
                let read = file.read_at(&mut bytes, (part * PART) as u64).wait();
                read.expect("reads");
                assert_eq!(bytes, [part as u8 + 1; PART], "part {part}");
            }
            done.send(()).expect("is waited for");
        });
    }
    for _ in 0..4 {
        all.recv_timeout(DEADLINE).expect("nobody hangs");
    }
    assert!(store.snapshot().loads > 10_000, "{:?}", store.snapshot());
}
