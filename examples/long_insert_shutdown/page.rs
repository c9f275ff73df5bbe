//! Pages: where a row is, and what a page looks like.
//!
//! Owns: the arithmetic from a row to its part, page and slot, and the format. Does not own: how
//! pages are locked, read and written ([`crate::heap`]).
//!
//! ```text
//! checksum  8 bytes, little-endian: CRC-64/NVME of all that follows
//! number    8 bytes: the page's place in the file
//! slots     as many as fit, each one row (see `row`), or zeros: never written
//! zeros     to the end of the page
//! ```
//!
//! A page of zeros is one that was never written. A row is updated where it is.

use std::ops::Range;

use crc_fast::{CrcAlgorithm, checksum};

use crate::row;

/// Bytes of a page before its slots.
const HEADER: usize = 16;

/// The shape of a heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub page_bytes: u32,
    pub part_bytes: u32,
    pub file_bytes: u64,
    pub row_bytes: u32,
}

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The part, which is what is locked.
    pub part: u32,
    /// First byte of the page, within the part.
    pub at: usize,
    pub page: u64,
    pub slot: u32,
}

impl Shape {
    fn slot_bytes(&self) -> usize {
        row::HEADER + self.row_bytes as usize
    }

    /// Rows of a page.
    pub fn slots(&self) -> u32 {
        let room = (self.page_bytes as usize).saturating_sub(HEADER);
        u32::try_from(room / self.slot_bytes()).unwrap_or(u32::MAX)
    }

    pub fn pages(&self) -> u64 {
        self.file_bytes / u64::from(self.page_bytes)
    }

    /// Rows of the file.
    pub fn rows(&self) -> u64 {
        self.pages().saturating_mul(u64::from(self.slots()))
    }

    pub fn parts(&self) -> u32 {
        u32::try_from(self.file_bytes / u64::from(self.part_bytes)).unwrap_or(u32::MAX)
    }

    /// Pages of a part.
    pub fn pages_of_part(&self) -> u32 {
        self.part_bytes / self.page_bytes
    }

    pub fn place(&self, row: u32) -> Place {
        let slots = self.slots().max(1);
        self.place_in(u64::from(row / slots), row % slots)
    }

    fn place_in(&self, page: u64, slot: u32) -> Place {
        let pages = u64::from(self.pages_of_part());
        Place {
            part: u32::try_from(page / pages).unwrap_or(u32::MAX),
            at: usize::try_from(page % pages).unwrap_or(0) * self.page_bytes as usize,
            page,
            slot,
        }
    }

    /// The page's row in a slot.
    pub fn row(&self, page: u64, slot: u32) -> u32 {
        let row = page * u64::from(self.slots()) + u64::from(slot);
        u32::try_from(row).unwrap_or(u32::MAX)
    }
}

/// A page in memory.
#[derive(Debug)]
pub struct Page<'a> {
    shape: &'a Shape,
    number: u64,
    bytes: &'a mut [u8],
}

impl<'a> Page<'a> {
    /// A page as it was read; otherwise what is wrong with it.
    pub fn read(shape: &'a Shape, number: u64, bytes: &'a mut [u8]) -> Result<Self, String> {
        if bytes.iter().any(|byte| *byte != 0) {
            let (sum, rest) = bytes.split_at(8);
            if sum != checksum(CrcAlgorithm::Crc64Nvme, rest).to_le_bytes() {
                return Err(format!("page {number} has a wrong checksum"));
            }
            if rest[..8] != number.to_le_bytes() {
                return Err(format!("page {number} has the bytes of another"));
            }
        }
        Ok(Self {
            shape,
            number,
            bytes,
        })
    }

    fn range(&self, slot: u32) -> Range<usize> {
        let each = self.shape.slot_bytes();
        let start = HEADER + slot as usize * each;
        start..start + each
    }

    /// The version of the row in a slot, 0 where there is none yet; otherwise what is wrong.
    pub fn version(&self, slot: u32, seed: u64, scratch: &mut Vec<u8>) -> Result<u64, String> {
        let bytes = &self.bytes[self.range(slot)];
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let id = self.shape.row(self.number, slot);
        match row::read(bytes) {
            Some((row, [])) if row.series == id && row.id > 0 => {
                if row::is_right(&row, seed, self.shape.row_bytes, scratch) {
                    Ok(row.id)
                } else {
                    Err(format!("row {id} has other bytes"))
                }
            }
            _ => Err(format!("row {id} is not whole, or another's")),
        }
    }

    /// Puts a version of a row into its slot.
    pub fn put(&mut self, slot: u32, seed: u64, version: u64) {
        let id = self.shape.row(self.number, slot);
        let mut row = Vec::with_capacity(self.shape.slot_bytes());
        row::write(&mut row, seed, id, version, self.shape.row_bytes);
        let range = self.range(slot);
        self.bytes[range].copy_from_slice(&row);
        self.bytes[8..HEADER].copy_from_slice(&self.number.to_le_bytes());
        let sum = checksum(CrcAlgorithm::Crc64Nvme, &self.bytes[8..]);
        self.bytes[..8].copy_from_slice(&sum.to_le_bytes());
    }
}
