//! The header of one file: an entry for each of its parts.
//!
//! Owns: the table, 24 bytes an entry, growing with the file and never moving; and what an entry
//! says of the part's image. Does not own: what the state word means (`state.rs`), or what of the
//! table survives (`record.rs`, `snapshot.rs`).
//!
//! 1. Entries are in pages of 1,024, and a page is made when one of its parts is first used:
//!    growing a file by a tebibyte costs nothing.
//! 2. An address is changed only under the part's latch, and only while a capture of it is in
//!    flight or nobody else has it; whoever reads one under the latch reads it whole.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::sync::{AtomicU32, Ordering};

use super::state::{AtomicWord, Word};

/// Entries of a page.
pub(crate) const PAGE: u32 = 1024;
/// Levels of the directory: each has twice the pages of the one before.
const LEVELS: usize = 23;

/// Where the image of a part is in S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Address {
    /// Number of the epoch that wrote it, never 0; the store's table has its name.
    pub epoch: u32,
    /// The object's number in that epoch.
    pub sequence: u32,
    /// First byte in the object.
    pub offset: u32,
    /// Bytes of the image; what the part has behind them is zeros.
    pub len: u32,
    /// CRC-32C of the image.
    pub crc: u32,
}

/// CRC-32C (Castagnoli).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum & u64::from(u32::MAX)).unwrap_or(0)
}

/// One part's entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub word: AtomicWord,
    address: [AtomicU32; 5],
}

impl Entry {
    fn new() -> Self {
        Self {
            word: AtomicWord::new(Word::ZERO),
            address: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Where the last image is, if there is one.
    pub(crate) fn address(&self) -> Option<Address> {
        let [epoch, sequence, offset, len, crc] =
            std::array::from_fn(|at| self.address[at].load(Ordering::Acquire));
        (epoch != 0).then_some(Address {
            epoch,
            sequence,
            offset,
            len,
            crc,
        })
    }

    pub(crate) fn set_address(&self, address: Option<Address>) {
        let new = address.map_or([0; 5], |a| [a.epoch, a.sequence, a.offset, a.len, a.crc]);
        for (word, new) in self.address.iter().zip(new) {
            word.store(new, Ordering::Release);
        }
    }
}

type Page = OnceLock<Box<[Entry]>>;

/// The entries of one file.
#[derive(Debug)]
pub(crate) struct Header {
    levels: [OnceLock<Box<[Page]>>; LEVELS],
}

/// Level and place of a page.
#[inline]
const fn locate(page: u32) -> (usize, usize) {
    let level = (page + 1).ilog2();
    (level as usize, (page + 1 - (1 << level)) as usize)
}

impl Header {
    pub(crate) fn new() -> Self {
        Self {
            levels: [const { OnceLock::new() }; LEVELS],
        }
    }

    /// The entry of a part, made where it has none yet.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        let (level, at) = locate(index / PAGE);
        let level = self.levels[level]
            .get_or_init(|| (0..1_usize << level).map(|_| OnceLock::new()).collect());
        let page = level[at].get_or_init(|| (0..PAGE).map(|_| Entry::new()).collect());
        &page[(index % PAGE) as usize]
    }

    /// The entry of a part; `None` where the part was never used.
    pub(crate) fn peek(&self, index: u32) -> Option<&Entry> {
        let page = self.page(index / PAGE)?;
        page.get((index % PAGE) as usize)
    }

    fn page(&self, page: u32) -> Option<&[Entry]> {
        let (level, at) = locate(page);
        let page = self.levels.get(level)?.get()?.get(at)?.get()?;
        Some(page)
    }

    /// Pages that were used, with the index of their first part.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u32, &[Entry])> {
        self.levels.iter().enumerate().flat_map(|(level, pages)| {
            let first = (1_u32 << level) - 1;
            let pages = pages.get().into_iter().flat_map(|pages| pages.iter());
            (first..).zip(pages).filter_map(|(number, page)| {
                let entries = page.get()?;
                Some((number * PAGE, &**entries))
            })
        })
    }

    /// Parts from `from` on that were used.
    pub(crate) fn used_from(&self, from: u32) -> impl Iterator<Item = (u32, &Entry)> {
        self.pages()
            .flat_map(|(first, entries)| (first..=first + (PAGE - 1)).zip(entries))
            .filter(move |(index, _)| *index >= from)
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_24_bytes_and_every_part_has_its_own() {
        assert_eq!(size_of::<Entry>(), 24);
        let header = Header::new();
        let some = [
            0,
            1,
            1023,
            1024,
            3071,
            3072,
            1 << 20,
            u32::MAX - 1,
            u32::MAX,
        ];
        for (n, index) in (1..).zip(some) {
            assert!(header.peek(index).is_none_or(|e| e.address().is_none()));
            let address = Address {
                epoch: n,
                sequence: index,
                offset: 0,
                len: 1,
                crc: 2,
            };
            header.entry(index).set_address(Some(address));
        }
        for (n, index) in (1..).zip(some) {
            let found = header.peek(index).and_then(Entry::address).unwrap();
            assert_eq!((found.epoch, found.sequence), (n, index));
        }
        let used: Vec<u32> = header
            .used_from(0)
            .filter(|(_, entry)| entry.address().is_some())
            .map(|(index, _)| index)
            .collect();
        assert_eq!(used, some);
        assert_eq!(
            header.pages().count(),
            6,
            "pages are made where they are used"
        );
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
