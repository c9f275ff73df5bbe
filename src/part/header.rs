//! The header of one file: an entry for each of its parts.
//!
//! Owns: the table, 24 bytes an entry, growing with the file and never moving; and what an entry
//! says of the part's image. Does not own: what the state word means (`state.rs`), or what of the
//! table survives (`record.rs`, `snapshot.rs`).
//!
//! 1. Entries are in pages of 1,024, and a page is made when one of its parts is first used; so is
//!    the run of the directory that it is in: a part at the end of the largest file that can be
//!    takes 150 KB, and growing a file by a tebibyte nothing.
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
/// Pages of a run: levels that are larger are in runs, each made when it is first used.
const RUN: usize = 1 << RUN_BITS;
const RUN_BITS: usize = 10;

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
type Run = OnceLock<Box<[Page]>>;

/// The entries of one file.
#[derive(Debug)]
pub(crate) struct Header {
    /// Of one run each, as long as the level.
    near: [Run; RUN_BITS],
    far: [OnceLock<Box<[Run]>>; LEVELS - RUN_BITS],
}

fn empty<T>(len: usize) -> Box<[OnceLock<T>]> {
    (0..len).map(|_| OnceLock::new()).collect()
}

/// Level and place of a page.
#[inline]
const fn locate(page: u32) -> (usize, usize) {
    let level = (page + 1).ilog2();
    (level as usize, (page + 1 - (1 << level)) as usize)
}

/// The first page of a level.
const fn first_of(level: usize) -> u32 {
    (1 << level) - 1
}

impl Header {
    pub(crate) fn new() -> Self {
        Self {
            near: [const { OnceLock::new() }; RUN_BITS],
            far: [const { OnceLock::new() }; LEVELS - RUN_BITS],
        }
    }

    /// The entry of a part, made where it has none yet.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> &Entry {
        let (level, at) = locate(index / PAGE);
        let page = match self.near.get(level) {
            Some(run) => &run.get_or_init(|| empty(1 << level))[at],
            None => self.far_page(level, at),
        };
        let page = page.get_or_init(|| (0..PAGE).map(|_| Entry::new()).collect());
        &page[(index % PAGE) as usize]
    }

    fn far_page(&self, level: usize, at: usize) -> &Page {
        let runs = &self.far[level - RUN_BITS];
        let runs = runs.get_or_init(|| empty(1 << (level - RUN_BITS)));
        &runs[at / RUN].get_or_init(|| empty(RUN))[at % RUN]
    }

    /// The entry of a part; `None` where the part was never used.
    pub(crate) fn peek(&self, index: u32) -> Option<&Entry> {
        let page = self.page(index / PAGE)?;
        page.get((index % PAGE) as usize)
    }

    fn page(&self, page: u32) -> Option<&[Entry]> {
        let (level, at) = locate(page);
        let page = match self.near.get(level) {
            Some(run) => run.get()?.get(at)?,
            None => {
                let runs = self.far.get(level - RUN_BITS)?.get()?;
                runs.get(at / RUN)?.get()?.get(at % RUN)?
            }
        };
        Some(page.get()?)
    }

    /// Pages that were used, with the index of their first part.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u32, &[Entry])> {
        let near = (0..)
            .zip(&self.near)
            .map(|(level, run)| (first_of(level), run));
        let far = (0..).zip(&self.far).flat_map(|(level, runs)| {
            let runs = runs.get().into_iter().flat_map(|runs| runs.iter());
            let firsts = (first_of(level + RUN_BITS)..).step_by(RUN);
            firsts.zip(runs)
        });
        near.chain(far).flat_map(|(first, run)| {
            let pages = run.get().into_iter().flat_map(|run| run.iter());
            (first..).zip(pages).filter_map(|(number, page)| {
                let entries = page.get()?;
                Some((number * PAGE, &**entries))
            })
        })
    }

    /// Bytes that the directory and the pages take.
    #[cfg(all(test, not(loom_model), not(shuttle)))]
    fn bytes(&self) -> usize {
        let runs = self.far.iter().filter_map(OnceLock::get);
        let runs: usize = runs.map(|runs| size_of_val(&**runs)).sum();
        let far = self.far.iter().filter_map(OnceLock::get);
        let pages = self.near.iter().chain(far.flat_map(|runs| runs.iter()));
        let pages: usize = pages
            .filter_map(OnceLock::get)
            .map(|pages| size_of_val(&**pages))
            .sum();
        runs + pages
            + self
                .pages()
                .map(|(_, page)| size_of_val(page))
                .sum::<usize>()
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
            1023 * 1024 - 1,
            1023 * 1024,
            1 << 20,
            2047 * 1024,
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
            9,
            "pages are made where they are used"
        );
    }

    #[test]
    fn a_part_far_out_takes_little() {
        let header = Header::new();
        header.entry(u32::MAX - 1);
        assert!(header.bytes() < 160_000, "{}", header.bytes());
        header.entry(0);
        let first = Header::new();
        first.entry(0);
        assert!(first.bytes() < 25_000, "{}", first.bytes());
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
