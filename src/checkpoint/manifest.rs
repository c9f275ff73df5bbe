//! What a checkpoint is made of: its manifest, the files in it, and their pages.
//!
//! Owns: the formats (`docs/formats/checkpoints.md`). Does not own: the tree that files are in
//! (`tree.rs`), or how any of it gets to S3 (`commit.rs`).
//!
//! ```text
//! manifest -> tree of files -> file: length, its pages (or a root that lists them) -> images
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::part::header::{Address, PAGE};

/// The most bytes of an engine's own that a checkpoint carries.
pub const MAX_META_BYTES: usize = 4096;
/// Pages that are in the file's own entry; more are in a root.
pub(crate) const FEW: usize = 4;

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub number: u64,
    /// Name of the epoch that committed it.
    pub epoch: u64,
    pub write_id: u128,
    /// When its line was drawn, by its owner's clock: information.
    pub unix_ms: u64,
    /// The one that it follows.
    pub previous: Option<u64>,
    /// The top of the tree of files; `None` where there is no file.
    pub tree: Option<Address>,
    pub files: u64,
    /// Numbers and names of the epochs that addresses below here may have.
    pub epochs: Vec<(u32, u64)>,
    /// Epoch's name and sequence: what is below was settled when the line was drawn.
    pub mark: Option<(u64, u32)>,
    /// What an owner before may have uploaded and never committed.
    pub stranded: Vec<Stranded>,
    /// The engine's own.
    pub meta: Vec<u8>,
}

/// Objects of an owner from whom the prefix was taken over: from this epoch's name and sequence
/// on, up to this epoch, which is another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stranded {
    pub from: (u64, u32),
    pub to: u64,
    /// When it was taken over, in milliseconds since 1970 by the server's clock: what is kept for
    /// a while is kept from then on, however old it was.
    pub since_ms: u64,
}

impl Stranded {
    pub(crate) fn has(&self, object: (u64, u32)) -> bool {
        object >= self.from && object.0 < self.to
    }

    pub(crate) fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.since_ms)
    }
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub id: u64,
    /// Its own among all files that ever had this id.
    pub token: u64,
    pub part_bytes: u32,
    pub len: u64,
    pub pages: Pages,
}

/// Where the pages of a file's header are: number and address of those that have an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pages {
    Few(Vec<(u32, Address)>),
    Root(Address),
}

/// A page of a header: of each part that has an image, its place in the page, and where that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page(pub Vec<(u16, Address)>);

/// All pages of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root(pub Vec<(u32, Address)>);

impl Page {
    /// Parts and their images.
    pub(crate) fn parts(&self, page: u32) -> impl Iterator<Item = (u32, Address)> {
        let first = page.saturating_mul(PAGE);
        self.0
            .iter()
            .map(move |(at, address)| (first.saturating_add(u32::from(*at)), *address))
    }
}

/// The key of a manifest: an epoch never gives a number twice.
pub(crate) fn key(number: u64, epoch: u64) -> String {
    format!("checkpoints/{number:016x}-{epoch:016x}")
}

/// Number and epoch of a manifest's key.
pub(crate) fn parse_key(name: &str) -> Option<(u64, u64)> {
    let (number, epoch) = name.strip_prefix("checkpoints/")?.split_once('-')?;
    let number = u64::from_str_radix(number, 16).ok()?;
    let epoch = u64::from_str_radix(epoch, 16).ok()?;
    (key(number, epoch) == name).then_some((number, epoch))
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_number_and_epoch() {
        assert_eq!(parse_key(&key(12, 3)), Some((12, 3)));
        for odd in ["checkpoints/1-2", "head", "checkpoints/", "checkpoints/-"] {
            assert_eq!(parse_key(odd), None);
        }
    }
}
