//! Loads: reads from S3, for callers who wait for them.
//!
//! Owns: what a load is, and how its end is told. Does not own: the requests (`worker`). Loads are
//! not journaled: whoever wanted one asks again after a crash.
//!
//! 1. A load belongs to its task, not to who asked: one that leaves ends its own wait, and the
//!    load ends within a second once nobody is left.
//! 2. Loads never queue behind uploads: one slot is theirs alone, and half of the others if they
//!    have use for them.

use std::sync::Arc;

use bytes::Bytes;

use crate::remote::RemoteError;
use crate::watched::Watched;

/// How a load ended: the bytes and the size of the whole object, or that there is no object.
pub(crate) type Loaded = Result<Option<(Bytes, u64)>, RemoteError>;

/// Where a load's end is told.
pub(crate) type LoadCell = Watched<Option<Loaded>>;

/// A read of an object or a range of it.
#[derive(Debug)]
pub(crate) struct Load {
    pub key: Arc<str>,
    pub range: Option<(u64, u64)>,
    pub cell: Arc<LoadCell>,
    pub failures: u32,
}

impl Load {
    pub(crate) fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.cell) > 1
    }

    pub(crate) fn end(&self, outcome: Loaded) {
        self.cell.change(|cell| {
            cell.get_or_insert(outcome);
        });
    }
}
