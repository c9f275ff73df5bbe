//! Rows: how one is made from its id, written, and read back.
//!
//! Owns: the format, and that a row's payload follows from the seed, the series and the id alone,
//! so that every row can be checked later and none has to be remembered.
//!
//! ```text
//! checksum  8 bytes, little-endian: CRC-64/NVME of all that follows
//! series    4 bytes: in the log a writer, in the heap a row
//! length    4 bytes: of the payload
//! id        8 bytes: in the log consecutive from 0, in the heap the row's version from 1
//! payload   `length` bytes
//! ```

use crc_fast::{CrcAlgorithm, checksum};

/// Bytes of a row beside its payload.
pub const HEADER: usize = 24;

/// A row that was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    pub series: u32,
    pub id: u64,
    pub payload: &'a [u8],
}

/// Appends one row to `out`.
pub fn write(out: &mut Vec<u8>, seed: u64, series: u32, id: u64, payload_bytes: u32) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&series.to_le_bytes());
    out.extend_from_slice(&payload_bytes.to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    fill(out, seed, series, id, payload_bytes as usize);
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &out[start + 8..]);
    out[start..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// The first row of `bytes` and what follows it; `None` where there is no whole, undamaged one.
pub fn read(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let number = |at: usize, len: usize| {
        let mut wide = [0; 8];
        wide[..len].copy_from_slice(&header[at..at + len]);
        u64::from_le_bytes(wide)
    };
    let payload_bytes = usize::try_from(number(12, 4)).ok()?;
    let payload = rest.get(..payload_bytes)?;
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &bytes[8..HEADER + payload_bytes]);
    let row = Row {
        series: u32::try_from(number(8, 4)).ok()?,
        id: number(16, 8),
        payload,
    };
    (sum == number(0, 8)).then_some((row, &rest[payload_bytes..]))
}

/// Whether a row's payload is the one that was written; `scratch` is reused between rows.
pub fn is_right(row: &Row<'_>, seed: u64, payload_bytes: u32, scratch: &mut Vec<u8>) -> bool {
    scratch.clear();
    fill(scratch, seed, row.series, row.id, payload_bytes as usize);
    row.payload == scratch.as_slice()
}

/// Appends `len` bytes that follow from the three numbers (SplitMix64).
fn fill(out: &mut Vec<u8>, seed: u64, series: u32, id: u64, len: usize) {
    let mut state = mix(seed ^ mix(id ^ mix(u64::from(series))));
    let end = out.len() + len;
    while out.len() < end {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = mix(state).to_le_bytes();
        let take = bytes.len().min(end - out.len());
        out.extend_from_slice(&bytes[..take]);
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
