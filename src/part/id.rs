//! What files and parts are called.
//!
//! Owns: the engine's names ([`FileId`], [`PartId`]) and the short one that everything here is
//! keyed by. Does not own: which files there are (`mod.rs`).

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The engine's name for a file: any number it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A part of a file: the `index`th run of its part size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartId {
    /// The file.
    pub file: FileId,
    /// The part's number, from 0.
    pub index: u32,
}

impl std::fmt::Display for PartId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "part {} of file {}", self.index, self.file)
    }
}

/// A part of one incarnation of a file: the number of the open file (never 0, never used twice
/// while the store is open) and the part's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PartKey(u64);

impl PartKey {
    pub(crate) const fn new(file: u32, index: u32) -> Self {
        Self((file as u64) << 32 | index as u64)
    }

    /// All parts of a file.
    pub(crate) const fn all_of(file: u32) -> RangeInclusive<Self> {
        Self::new(file, 0)..=Self::new(file, u32::MAX)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn file(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) const fn index(self) -> u32 {
        self.0 as u32
    }
}
