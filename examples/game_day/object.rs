//! How keys and bytes follow from a number: nothing has to be remembered of an object but that it
//! was acknowledged.

use bytes::Bytes;

/// Prefixes that objects are spread over; half of them are reset in an outage, the others get 500.
pub const SHARDS: u64 = 8;
/// Keys that are written again and again.
pub const REWRITTEN: u64 = 4;

const SMALLEST: u64 = 1024;
const LARGEST: u64 = 16 * 1024;
/// Bytes of an object on average.
pub const MEAN_BYTES: u64 = (SMALLEST + LARGEST) / 2;

/// One object, or one version of it.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// A write-once one, by its number.
    Once(u64),
    /// A rewritten one: which, and its version from 1.
    Version(u64, u64),
}

impl Object {
    pub fn key(self) -> String {
        match self {
            Self::Once(number) => format!("data/{}/{number:08}", number % SHARDS),
            Self::Version(which, _) => format!("state/{which}"),
        }
    }

    pub fn body(self) -> Bytes {
        bytes_of(match self {
            Self::Once(number) => number,
            Self::Version(which, version) => (which + 1) << 48 | version,
        })
    }
}

fn bytes_of(seed: u64) -> Bytes {
    let mut state = seed;
    let len = SMALLEST + mix(&mut state) % (LARGEST - SMALLEST + 1);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 8);
    bytes.extend_from_slice(&seed.to_le_bytes());
    while (bytes.len() as u64) < len {
        bytes.extend_from_slice(&mix(&mut state).to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).unwrap_or(0));
    bytes.into()
}

/// One step of SplitMix64.
pub fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
