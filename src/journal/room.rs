//! Room for the end: how much preallocated space there must be before a task may begin, and when
//! a segment is worth emptying. Pure decisions; the figures come from the committer.
//!
//! Invariant: whenever a `Begin` is written, free preallocated room covers the `End` of every
//! live owner (the new one too), one copy forward of the oldest segment, and one segment for the
//! next open. So with a full disk everything that is live can still end, and every open can take
//! the clean mark away.

use super::frame;
use super::segment::SEGMENT_HEADER_BYTES;

/// Bytes of head that every end is sure of.
const LEAST_END_HEAD: usize = 8;

/// The figures that decide about room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes of a standard segment.
    pub segment_bytes: u64,
    /// Bytes of the largest `End`.
    pub end_bytes: u64,
    /// Bytes left in the segment that is written to.
    pub active_rest: u64,
    /// Standard segments held ready.
    pub spares: u64,
    /// Live owners, those admitted and not yet written included.
    pub owners: u64,
    /// Live bytes of the oldest segment.
    pub oldest_live: u64,
    /// Bytes of records that are admitted and not yet written.
    pub planned: u64,
}

impl Room {
    /// Bytes of frames that a fresh segment surely takes: a frame that does not fit the rest of
    /// a segment leaves it unused, so one `End` a segment is written off.
    pub(crate) fn usable(&self) -> u64 {
        (self.segment_bytes - 2 * SEGMENT_HEADER_BYTES - frame::START_BYTES)
            .saturating_sub(self.end_bytes)
    }

    /// Preallocated bytes that are free.
    pub(crate) fn free(&self) -> u64 {
        (self.active_rest.saturating_sub(self.end_bytes) + self.spares * self.usable())
            .saturating_sub(self.planned)
    }

    /// Bytes that what is live will need in order to end.
    pub(crate) fn owed(&self) -> u64 {
        self.owners * self.end_bytes + self.oldest_live
    }

    /// Whether an owner may begin with a record of `bytes`. It adds its own end, and one copy of
    /// itself.
    pub(crate) fn admits_begin(&self, bytes: u64) -> bool {
        self.free() >= 2 * bytes + self.owed() + self.end_bytes + self.usable()
    }

    /// Whether a note of `bytes` may be written: it may use the room kept for the next open, not
    /// the room in which tasks end.
    pub(crate) fn admits_note(&self, bytes: u64) -> bool {
        self.free() >= bytes + self.owed()
    }

    /// Whether a record may be written without which an end would be wrong: it may use what the
    /// ends have beyond the least that one needs.
    pub(crate) fn admits_vital(&self, bytes: u64) -> bool {
        let least = frame::frame_len(LEAST_END_HEAD, 0);
        self.free() >= bytes + self.owners * least + self.oldest_live
    }

    /// Whether a note that can be left out may be written.
    pub(crate) fn admits_optional(&self, bytes: u64) -> bool {
        self.free() >= bytes + self.owed() + self.usable()
    }

    /// Whether another spare should be made, with `waiting` bytes of records to come.
    pub(crate) fn wants_spare(&self, waiting: u64) -> bool {
        let ahead = self.usable() / 2;
        self.free() < self.owed() + self.usable() + ahead + 2 * waiting
    }
}

/// What to do with the oldest segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reclaim {
    Nothing,
    /// Nothing in it is live.
    Remove,
    /// Copy what is live in it forward.
    Copy,
}

/// The figures that decide about the oldest segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oldest {
    /// It is the one that is written to.
    pub is_active: bool,
    /// Its live bytes.
    pub live: u64,
    /// Bytes of records in all segments.
    pub all: u64,
    /// How many of them are live.
    pub all_live: u64,
    pub segment_bytes: u64,
    /// Disk is short, and this many dead bytes are known to be out of reach: copying all
    /// segments once did not get rid of them.
    pub short: Option<u64>,
}

impl Oldest {
    pub(crate) fn dead(&self) -> u64 {
        self.all.saturating_sub(self.all_live)
    }

    /// What to do with it.
    pub(crate) fn decide(&self) -> Reclaim {
        if self.is_active {
            Reclaim::Nothing
        } else if self.live == 0 {
            Reclaim::Remove
        } else if self.all_live * 2 < self.all
            || self
                .short
                .is_some_and(|floor| self.dead() >= floor + self.segment_bytes / 4)
        {
            Reclaim::Copy
        } else {
            Reclaim::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn room() -> impl Strategy<Value = Room> {
        (
            12_u64..20,
            64_u64..512,
            0_u64..65_536,
            0_u64..6,
            0_u64..200,
            0_u64..65_536,
        )
            .prop_map(|(shift, end, rest, spares, owners, oldest)| {
                let segment_bytes = 1 << shift;
                Room {
                    segment_bytes,
                    end_bytes: end.next_multiple_of(8),
                    active_rest: rest.min(segment_bytes),
                    spares,
                    owners,
                    oldest_live: oldest.min(segment_bytes),
                    planned: 0,
                }
            })
    }

    /// Writes a frame, in a fresh segment if the last one has no room for it.
    fn write(room: &mut Room, bytes: u64) -> bool {
        if room.active_rest < bytes {
            if room.spares == 0 {
                return false;
            }
            room.spares -= 1;
            room.active_rest = room.segment_bytes - 2 * SEGMENT_HEADER_BYTES - frame::START_BYTES;
        }
        let fits = room.active_rest >= bytes;
        room.active_rest = room.active_rest.saturating_sub(bytes);
        fits
    }

    proptest! {
        /// E20, C9: what has begun can end. After any admitted Begin, all Ends fit, one by one,
        /// and so does a copy of the oldest segment, without a new file.
        #[test]
        fn what_begins_can_end(mut room in room(), bytes in 64_u64..4096) {
            let bytes = bytes.next_multiple_of(8);
            prop_assume!(room.admits_begin(bytes));
            // The record is written, at worst at the front of a fresh segment.
            if room.active_rest >= bytes {
                room.active_rest -= bytes;
            } else {
                room.spares -= 1;
                room.active_rest = room.segment_bytes - 2 * SEGMENT_HEADER_BYTES
                    - frame::START_BYTES - bytes.min(room.usable());
            }
            room.owners += 1;
            for _ in 0..room.owners {
                let end = room.end_bytes;
                prop_assert!(write(&mut room, end), "no room for an end: {room:?}");
            }
            prop_assert!(
                room.active_rest + room.spares * room.usable() >= room.oldest_live,
                "no room for a copy: {room:?}"
            );
        }

        /// Whatever vital records take, each live owner can end with the least that an end needs,
        /// and the oldest segment can be copied.
        #[test]
        fn vital_records_leave_room_for_the_least_of_ends(
            mut room in room(), notes in prop::collection::vec(56_u64..400, 0..300),
        ) {
            // A note may take an end's bytes at most; a record that begins an owner takes them
            // twice, for it may have to be copied.
            for bytes in notes {
                let bytes = bytes.next_multiple_of(8);
                let begins = bytes > room.end_bytes;
                if room.admits_vital(if begins { 2 * bytes } else { bytes }) {
                    prop_assert!(write(&mut room, bytes), "no room for a vital record: {room:?}");
                    room.owners += u64::from(begins);
                }
            }
            prop_assume!(room.admits_vital(0));
            for _ in 0..room.owners {
                let least = frame::frame_len(LEAST_END_HEAD, 0);
                prop_assert!(write(&mut room, least), "no room for an end: {room:?}");
            }
            prop_assert!(
                room.active_rest + room.spares * room.usable() >= room.oldest_live,
                "no room for a copy: {room:?}"
            );
        }

        /// The oldest segment is copied only where that gains something.
        #[test]
        fn copying_needs_a_reason(
            live in 0_u64..100_000, dead in 0_u64..100_000, short: bool, floor in 0_u64..9000,
            is_active: bool,
        ) {
            let oldest = Oldest {
                is_active,
                live: live.min(4096),
                all: live + dead,
                all_live: live,
                segment_bytes: 4096,
                short: short.then_some(floor),
            };
            match oldest.decide() {
                Reclaim::Copy => {
                    prop_assert!(!is_active);
                    prop_assert!(live < dead || (short && dead >= floor + 1024));
                }
                Reclaim::Remove => prop_assert!(!is_active && live == 0),
                Reclaim::Nothing => prop_assert!(is_active || live >= dead),
            }
        }
    }
}
