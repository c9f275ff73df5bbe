//! Latches: held for one copy of a part's bytes, and for nothing else.
//!
//! Owns: which of a fixed number of locks is a part's. A write step has it exclusively, a read or
//! a capture shared. No wait is made under one, and the only call that is made is the copy.
//!
//! Several are taken in rising order of their number, by who writes several parts in one step.

use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::id::PartKey;

const LATCHES: usize = 1024;

/// The latches of all parts of a store.
#[derive(Debug)]
pub(crate) struct Latches(Box<[RwLock<()>]>);

impl Latches {
    pub(crate) fn new() -> Self {
        Self((0..LATCHES).map(|_| RwLock::new(())).collect())
    }

    /// Which latch is a part's.
    pub(crate) fn of(&self, key: PartKey) -> usize {
        let mixed = key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(mixed).unwrap_or(0) % self.0.len()
    }

    pub(crate) fn copy(&self, key: PartKey) -> RwLockReadGuard<'_, ()> {
        self.0[self.of(key)].read()
    }

    pub(crate) fn step(&self, key: PartKey) -> RwLockWriteGuard<'_, ()> {
        self.0[self.of(key)].write()
    }

    /// All of them: whoever has this is between any two steps.
    pub(crate) fn all(&self) -> Vec<RwLockWriteGuard<'_, ()>> {
        self.0.iter().map(RwLock::write).collect()
    }

    /// Waits for every step and copy that is in progress.
    pub(crate) fn pass_all(&self) {
        for latch in &self.0 {
            drop(latch.write());
        }
    }

    /// Those of several parts.
    pub(crate) fn step_all(
        &self,
        keys: impl Iterator<Item = PartKey>,
    ) -> Vec<RwLockWriteGuard<'_, ()>> {
        let mut numbers: Vec<usize> = keys.map(|key| self.of(key)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|at| self.0[at].write()).collect()
    }
}
