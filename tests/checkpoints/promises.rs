//! What is promised of checkpoints where it is easily missed: each test was seen to fail.
//!
//! Owns: lines beside cuts, drops and growth; callbacks and callers that do wrong; what is left
//! open or behind; random walks and threads around lines. Does not own: the checkpoint as such
//! (`checkpoints.rs`), the line as such (`line.rs`), or who may commit (`fencing.rs`).

mod callers;
mod cuts;
mod garbage;
mod images;
mod instants;
mod left;
mod threads;
mod walk;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use s3_writeback::io::Io;
use s3_writeback::{FileId, PartStore};
use tokio::runtime::Handle;

use crate::support::StoreRig;

const FILE: FileId = FileId(1);

/// A store whose blocking calls run on so many threads.
async fn threaded(rig: &StoreRig, threads: usize) -> PartStore {
    let opened = rig.open_as(|store| {
        store.file_system(
            Arc::new(rig.fs.process()),
            Io::pool(Handle::current(), threads),
        )
    });
    opened.await.expect("opens")
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Gives the runtime a turn, and the threads some time, until something is so.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..5_000_000 {
        tokio::task::yield_now().await;
        std::thread::yield_now();
        if what() {
            return;
        }
    }
    panic!("it is never so");
}

/// Syncs hang as long as it is there: whoever fails meanwhile does not hang, too.
struct Hung<'a>(&'a StoreRig);

impl<'a> Hung<'a> {
    fn syncs(rig: &'a StoreRig) -> Self {
        rig.fs.hang_syncs();
        Self(rig)
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.0.fs.release_syncs();
    }
}
