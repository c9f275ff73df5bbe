//! One record's bytes on disk.
//!
//! Owns: the layout of a frame and its checksums. Does not own: where frames lie (`segment.rs`)
//! and what they mean together (`recovery.rs`). The layout is in `docs/formats/journal.md`.
//!
//! Invariants:
//!
//! 1. A frame is never forged: the header's checksum covers the segment's random id and the
//!    frame's own offset, and the header holds the body's checksum. Bytes that somebody submitted
//!    are not a frame, wherever they lie, even a copy of a frame of this very segment.
//! 2. A header is verified alone, so a search for the next frame costs a constant per position,
//!    whatever lengths the bytes in between claim; and a frame whose body is damaged still says
//!    which record is missing.

use super::record::{Effect, Location};

/// Bytes of a frame before its head.
pub(crate) const HEADER_BYTES: usize = 56;
/// Frames begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;
/// Longest head.
pub(crate) const MAX_HEAD_BYTES: usize = 1024 * 1024;

/// A place in the log: all before it was durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Mark {
    pub segment: u64,
    pub offset: u32,
}

/// What a frame is for: the three effects of callers, and the journal's own marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Effect(Effect),
    Mark,
}

/// Where an owner's bytes are, as its frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PayloadAt {
    None,
    /// Behind the head, this long.
    Inline(u32),
    /// In a file of its own, this long.
    File(u64),
}

impl PayloadAt {
    pub(crate) fn len(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Inline(len) => Some(u64::from(len)),
            Self::File(len) => Some(len),
        }
    }
}

/// The fields of a frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: u8,
    pub what: What,
    pub location: Location,
    pub mark: Mark,
    pub head_len: u32,
    pub payload: PayloadAt,
}

impl Header {
    /// The owner that the frame begins, speaks of, or ends; 0 for a mark.
    pub(crate) fn owner(&self) -> Location {
        match self.what {
            What::Effect(Effect::Begin) => self.location,
            What::Effect(Effect::Note { owner, .. } | Effect::End { owner }) => owner,
            What::Mark => 0,
        }
    }

    /// Bytes behind the header.
    pub(crate) fn body_len(&self) -> usize {
        let inline = match self.payload {
            PayloadAt::Inline(len) => len as usize,
            PayloadAt::None | PayloadAt::File(_) => 0,
        };
        self.head_len as usize + inline
    }

    /// Bytes of the whole frame, padding included.
    pub(crate) fn frame_len(&self) -> u64 {
        frame_len(
            self.head_len as usize,
            self.body_len() - self.head_len as usize,
        )
    }
}

/// Bytes of a frame with such a head and inline payload, padding included.
pub(crate) fn frame_len(head: usize, inline: usize) -> u64 {
    ((HEADER_BYTES + head + inline) as u64).next_multiple_of(ALIGN)
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's width is 32 bits: the upper half is zero.
    (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff) as u32
}

const FLAG_INLINE: u8 = 1;
const FLAG_FILE: u8 = 2;

const EFFECT_BEGIN: u8 = 1;
const EFFECT_NOTE: u8 = 2;
const EFFECT_END: u8 = 3;
const EFFECT_MARK: u8 = 4;

/// Appends a frame that will lie at `offset` of the segment with `id`.
pub(crate) fn encode(
    buffer: &mut Vec<u8>,
    id: u128,
    offset: u64,
    header: &Header,
    head: &[u8],
    inline: &[u8],
) {
    let start = buffer.len();
    debug_assert_eq!(head.len(), header.head_len as usize);
    debug_assert_eq!(head.len() + inline.len(), header.body_len());
    buffer.resize(start + HEADER_BYTES, 0);
    buffer.extend_from_slice(head);
    buffer.extend_from_slice(inline);
    let end = buffer.len();
    let padded = (end - start).next_multiple_of(8) + start;
    buffer.resize(padded, 0);

    let (effect, slot, owner) = match header.what {
        What::Effect(Effect::Begin) => (EFFECT_BEGIN, 0, header.location),
        What::Effect(Effect::Note { owner, slot }) => (EFFECT_NOTE, slot, owner),
        What::Effect(Effect::End { owner }) => (EFFECT_END, 0, owner),
        What::Mark => (EFFECT_MARK, 0, 0),
    };
    let (flags, external) = match header.payload {
        PayloadAt::None => (0, 0),
        PayloadAt::Inline(_) => (FLAG_INLINE, 0),
        PayloadAt::File(len) => (FLAG_FILE, len),
    };
    let body_crc = crc32c(&buffer[start + HEADER_BYTES..end]);
    // Lengths are bounded by the caller's limits, far below 4 GiB.
    let total = (end - start) as u32;
    let out = &mut buffer[start..start + HEADER_BYTES];
    out[4..8].copy_from_slice(&body_crc.to_le_bytes());
    out[8..12].copy_from_slice(&total.to_le_bytes());
    out[12..16].copy_from_slice(&header.head_len.to_le_bytes());
    out[16] = header.kind;
    out[17] = effect;
    out[18] = slot;
    out[19] = flags;
    out[20..24].copy_from_slice(&header.mark.offset.to_le_bytes());
    out[24..32].copy_from_slice(&header.location.to_le_bytes());
    out[32..40].copy_from_slice(&owner.to_le_bytes());
    out[40..48].copy_from_slice(&header.mark.segment.to_le_bytes());
    out[48..56].copy_from_slice(&external.to_le_bytes());
    let crc = header_crc(id, offset, out);
    out[0..4].copy_from_slice(&crc.to_le_bytes());
}

fn header_crc(id: u128, offset: u64, header: &[u8]) -> u32 {
    let mut covered = [0_u8; 16 + 8 + HEADER_BYTES - 4];
    covered[..16].copy_from_slice(&id.to_le_bytes());
    covered[16..24].copy_from_slice(&offset.to_le_bytes());
    covered[24..].copy_from_slice(&header[4..HEADER_BYTES]);
    crc32c(&covered)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The header at `offset` of the segment with `id`, if these bytes are one; `room` is how many
/// bytes the segment has from there on.
pub(crate) fn decode_header(bytes: &[u8], id: u128, offset: u64, room: u64) -> Option<Header> {
    if bytes.len() < HEADER_BYTES {
        return None;
    }
    // Cheap refusals first: most positions of a search are not a header.
    let (effect, slot, flags) = (bytes[17], bytes[18], bytes[19]);
    if !(EFFECT_BEGIN..=EFFECT_MARK).contains(&effect) || flags > FLAG_FILE {
        return None;
    }
    let total = u32_at(bytes, 8);
    let head_len = u32_at(bytes, 12);
    let body = total.checked_sub(HEADER_BYTES as u32)?;
    let inline = body.checked_sub(head_len)?;
    if u64::from(total).next_multiple_of(ALIGN) > room {
        return None;
    }
    if header_crc(id, offset, bytes) != u32_at(bytes, 0) {
        return None;
    }
    let location = u64_at(bytes, 24);
    let owner = u64_at(bytes, 32);
    let what = match effect {
        EFFECT_BEGIN => What::Effect(Effect::Begin),
        EFFECT_NOTE => What::Effect(Effect::Note { owner, slot }),
        EFFECT_END => What::Effect(Effect::End { owner }),
        _ => What::Mark,
    };
    let payload = match flags {
        FLAG_INLINE => PayloadAt::Inline(inline),
        FLAG_FILE => PayloadAt::File(u64_at(bytes, 48)),
        _ => PayloadAt::None,
    };
    if inline > 0 && flags != FLAG_INLINE {
        return None;
    }
    let mark = Mark {
        segment: u64_at(bytes, 40),
        offset: u32_at(bytes, 20),
    };
    Some(Header {
        kind: bytes[16],
        what,
        location,
        mark,
        head_len,
        payload,
    })
}

/// Whether `body` is what the header in `bytes` was written with.
pub(crate) fn body_matches(bytes: &[u8], body: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES && crc32c(body) == u32_at(bytes, 4)
}

/// What the first frame of a segment says: where earlier ones end.
///
/// A segment that was filled ends where its last frame does. One that was poisoned ends where the
/// last good fdatasync ended: what lies behind is void.
///
/// The first segment of an open has a `condition`. The tail that nothing proves to be durable
/// was appended again, into this segment, up to that offset. If all of that is here, everything
/// between the frame's own mark and this segment is void (the copies are here instead); if not,
/// the frame says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Start {
    pub ends: Vec<SegmentEnd>,
    /// 0: none.
    pub condition: u32,
    /// All segments below this one were removed. One that is there all the same came back after
    /// a power cut, because the fsync of the directory had failed: what ended its tasks may be
    /// gone since.
    pub oldest: u64,
    /// The journal was sealed before this open: the segment it ended in may be used again.
    pub after_clean: bool,
}

/// Where a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentEnd {
    pub segment: u64,
    pub offset: u32,
    /// A write or an fdatasync of the file failed.
    pub poisoned: bool,
}

/// Kind of the frame that opens a segment.
pub(crate) const KIND_START: u8 = 0;
/// Kind of the frame that says the journal was sealed.
pub(crate) const KIND_CLEAN: u8 = 1;
/// Kind of a frame that only moves the mark on.
pub(crate) const KIND_OPENED: u8 = 2;
/// Most ends that one segment states.
pub(crate) const MAX_ENDS: usize = 12;
/// Room that a first frame may take.
pub(crate) const START_BYTES: u64 = (HEADER_BYTES + 16 + MAX_ENDS * 12) as u64;

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.ends.len() * 12);
        // Offsets are multiples of 8: their lowest bit is free for a flag.
        out.extend_from_slice(&(self.condition | u32::from(self.after_clean)).to_le_bytes());
        out.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.oldest.to_le_bytes());
        for end in &self.ends {
            out.extend_from_slice(&end.segment.to_le_bytes());
            out.extend_from_slice(&(end.offset | u32::from(end.poisoned)).to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 16 {
            return None;
        }
        let count = u32_at(bytes, 4) as usize;
        if count > MAX_ENDS || bytes.len() < 16 + count * 12 {
            return None;
        }
        let ends = (0..count)
            .map(|index| {
                let at = 16 + index * 12;
                let offset = u32_at(bytes, at + 8);
                SegmentEnd {
                    segment: u64_at(bytes, at),
                    offset: offset & !1,
                    poisoned: offset & 1 == 1,
                }
            })
            .collect();
        let condition = u32_at(bytes, 0);
        Some(Self {
            ends,
            condition: condition & !1,
            oldest: u64_at(bytes, 8),
            after_clean: condition & 1 == 1,
        })
    }
}

/// A frame of the journal's own.
pub(crate) fn mark_header(kind: u8, highest: Location, mark: Mark, head_len: u32) -> Header {
    Header {
        kind,
        what: What::Mark,
        location: highest,
        mark,
        head_len,
        payload: PayloadAt::None,
    }
}
