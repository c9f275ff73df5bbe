//! The checkpointer's reserve of the cache, and those who come to hold what is in it.
//!
//! Owns: which parts are here only by way of the reserve, and that whoever of the foreground is to
//! hold one has room of the foreground for it first. Does not own: room (`room.rs`), or how it is
//! made (`evict.rs`).
//!
//! A part that a checkpointer had loaded is there for everyone. If the foreground could hold it as
//! it is, the reserve would be lent: with all other frames held as well, the next load of a
//! checkpointer would find nothing that can go. Only guards count: what is held for one step is let
//! go of again.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::Result;
use crate::sync::{AtomicU64, Mutex, Ordering};

use super::Parts;
use super::file::PartFile;
use super::id::PartKey;
use super::locker::{LockerState, Role};

/// Parts whose room is of the reserve.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    parts: Mutex<BTreeSet<PartKey>>,
    /// How many: looked at by every lock.
    count: AtomicU64,
}

impl Lent {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeSet<PartKey>) -> T) -> T {
        let parts = &mut *self.parts.lock();
        let done = change(parts);
        self.count.store(parts.len() as u64, Ordering::Release);
        done
    }

    pub(super) fn add(&self, key: PartKey) {
        self.change(|parts| parts.insert(key));
    }

    pub(super) fn remove(&self, which: impl Fn(PartKey) -> bool) {
        if !self.is_empty() {
            self.change(|parts| parts.retain(|key| !which(*key)));
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn has(&self, key: PartKey) -> bool {
        !self.is_empty() && self.parts.lock().contains(&key)
    }
}

impl Parts {
    /// Whether a locker may hold any part that is here as it is.
    #[inline]
    pub(crate) fn may_hold(&self, locker: &LockerState) -> bool {
        self.resident.lent.is_empty() || locker.role == Role::Checkpointer
    }

    /// Waits until a part that its caller has locked has room that he may keep: while it is in the
    /// reserve, until there is as much again of what everybody has.
    pub(crate) async fn may_keep(
        &self,
        file: &Arc<PartFile>,
        index: u32,
        locker: &Arc<LockerState>,
    ) -> Result<()> {
        let (lent, key) = (&self.resident.lent, file.key(index));
        if self.may_hold(locker) || !lent.has(key) {
            return Ok(());
        }
        // Nothing more than what is here: as soon as all of that fits.
        let fits = self.cache.take(0, Some(locker), || self.needs_room());
        drop(fits.await?);
        lent.remove(|part| part == key || self.cache.is_within_limit());
        Ok(())
    }
}
