//! Loads: reads from S3, for callers who wait for them.
//!
//! Owns: what a load is, and how its end is told. Does not own: the requests (`worker`), or what
//! is done with the bytes: whoever wants a load implements [`LoadSink`]. Loads are not journaled:
//! whoever wanted one asks again after a crash.
//!
//! 1. A load belongs to its task, not to who asked: one that leaves ends its own wait, and the
//!    load ends within a second once nobody is left.
//! 2. Loads never queue behind uploads: one slot is theirs alone, and half of the others if they
//!    have use for them. One that a checkpoint waits for goes first, and has the checkpoint's slot
//!    as well.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::remote::RemoteError;
use crate::watched::Watched;

/// How a load ended: the bytes and the size of the whole object, or that there is no object.
pub(crate) type Loaded = Result<Option<(Bytes, u64)>, RemoteError>;

/// Who wants a load, and is told its end.
pub(crate) trait LoadSink: Send + Sync + std::fmt::Debug {
    /// Whether anybody still waits for it. Nobody left, no new attempt is made.
    fn is_wanted(&self) -> bool {
        true
    }
    /// Whether a checkpoint waits for it.
    fn is_urgent(&self) -> bool {
        false
    }
    /// It was taken out of the line because nobody wants it: it is over, unless somebody has come
    /// since. Called under the queue's lock: must hand on whatever takes one.
    fn unwanted(self: Arc<Self>) {}
    /// It has ended; called once, with no lock held. Must not block.
    fn end(self: Arc<Self>, outcome: Loaded);
}

/// A load whose end is waited for; wanted as long as somebody has it.
#[derive(Debug)]
pub(crate) struct LoadCell(pub Watched<Option<Loaded>>);

impl LoadSink for LoadCell {
    fn end(self: Arc<Self>, outcome: Loaded) {
        self.0.change(|cell| {
            cell.get_or_insert(outcome);
        });
    }
}

/// A read of an object or a range of it.
#[derive(Debug)]
pub(crate) struct Load {
    pub key: Arc<str>,
    pub range: Option<(u64, u64)>,
    pub sink: Weak<dyn LoadSink>,
    pub failures: u32,
}

impl Load {
    /// Whether anybody wants it; nobody does, it is told so.
    pub(crate) fn is_wanted(&self) -> bool {
        self.sink.upgrade().is_some_and(|sink| sink.is_wanted())
    }

    /// The same; where nobody does, its sink is told so.
    pub(crate) fn is_kept(&self) -> bool {
        let wanted = self.is_wanted();
        if !wanted && let Some(sink) = self.sink.upgrade() {
            sink.unwanted();
        }
        wanted
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.sink.upgrade().is_some_and(|sink| sink.is_urgent())
    }

    pub(crate) fn end(&self, outcome: Loaded) {
        if let Some(sink) = self.sink.upgrade() {
            sink.end(outcome);
        }
    }
}
