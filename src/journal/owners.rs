//! A map from location to live owner, for a million of them.
//!
//! Owns: how an owner is packed, and the order by location. Does not own: notes, segments, and what
//! is live in them (`index.rs`).
//!
//! Sorted runs of a bounded length, one after the other: 32 bytes an owner, while it fills up as
//! well as afterwards. (A hash table of the same takes two to three times that when it has just
//! grown, and half as much again while it grows.) Locations grow, so that runs are full.

use super::frame::{Header, PayloadAt, frame_len};
use super::index::Place;
use super::record::Location;

/// Owners in one run.
const RUN: usize = 256;

const HEAD_BITS: u32 = 24;
const LEN_BITS: u32 = 62;
const INLINE: u64 = 1;
const FILE: u64 = 2;

/// One live owner, without its notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub begin: Place,
    pub kind: u8,
    pub head_len: u32,
    pub payload: PayloadAt,
    /// What its caller made of its head at open; 0 of one that is newer.
    pub label: u32,
}

impl Owner {
    /// The owner that the frame at `begin` starts.
    pub(super) fn new(header: &Header, begin: Place) -> Self {
        Self {
            begin,
            kind: header.kind,
            head_len: header.head_len,
            payload: header.payload,
            label: 0,
        }
    }

    /// Whether its bytes live in a file of their own.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.payload, PayloadAt::File(_))
    }
}

#[derive(Debug, Clone, Copy)]
struct Packed {
    location: Location,
    /// Length and, in the uppermost two bits, where.
    payload: u64,
    segment: u32,
    offset: u32,
    /// Kind, in the uppermost eight bits, and length.
    head: u32,
    label: u32,
}

impl Packed {
    fn new(location: Location, owner: &Owner) -> Self {
        debug_assert!(owner.head_len >> HEAD_BITS == 0, "longer than any head");
        let (at, len) = match owner.payload {
            PayloadAt::None => (0, 0),
            PayloadAt::Inline(len) => (INLINE, u64::from(len)),
            PayloadAt::File(len) => (FILE, len.min((1 << LEN_BITS) - 1)),
        };
        Self {
            location,
            payload: at << LEN_BITS | len,
            segment: owner.begin.segment,
            offset: owner.begin.offset,
            head: u32::from(owner.kind) << HEAD_BITS | owner.head_len,
            label: owner.label,
        }
    }

    fn owner(&self) -> Owner {
        let len = self.payload & ((1 << LEN_BITS) - 1);
        let (payload, inline) = match self.payload >> LEN_BITS {
            // It was made of 32 bits.
            INLINE => (PayloadAt::Inline(len as u32), len as usize),
            FILE => (PayloadAt::File(len), 0),
            _ => (PayloadAt::None, 0),
        };
        let head_len = self.head & ((1 << HEAD_BITS) - 1);
        Owner {
            begin: Place {
                segment: self.segment,
                offset: self.offset,
                // As long as its segment at most.
                len: frame_len(head_len as usize, inline) as u32,
            },
            kind: (self.head >> HEAD_BITS) as u8,
            head_len,
            payload,
            label: self.label,
        }
    }
}

/// Where a location is, or would be: which run, and where in it.
type Found = Result<(usize, usize), (usize, usize)>;

/// Owners by location.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// None of them is empty.
    runs: Vec<Vec<Packed>>,
    len: usize,
}

impl Owners {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn find(&self, location: Location) -> Found {
        let behind = |run: &Vec<Packed>| run.first().is_some_and(|first| first.location > location);
        let after = self.runs.partition_point(|run| !behind(run));
        let Some(at) = after.checked_sub(1) else {
            return Err((0, 0));
        };
        let found = self.runs[at].binary_search_by_key(&location, |owner| owner.location);
        found.map(|i| (at, i)).map_err(|i| (at, i))
    }

    pub(super) fn get(&self, location: Location) -> Option<Owner> {
        let (run, at) = self.find(location).ok()?;
        Some(self.runs[run][at].owner())
    }

    pub(super) fn contains(&self, location: Location) -> bool {
        self.find(location).is_ok()
    }

    /// Moves a frame; returns where it was, if the owner is known.
    pub(super) fn replace(&mut self, location: Location, to: Place) -> Option<Place> {
        let (run, at) = self.find(location).ok()?;
        let packed = &mut self.runs[run][at];
        let before = packed.owner().begin;
        packed.segment = to.segment;
        packed.offset = to.offset;
        Some(before)
    }

    /// Puts one in; returns the one that was there.
    pub(super) fn insert(&mut self, location: Location, owner: &Owner) -> Option<Owner> {
        let packed = Packed::new(location, owner);
        let (run, at) = match self.find(location) {
            Ok((run, at)) => {
                return Some(std::mem::replace(&mut self.runs[run][at], packed).owner());
            }
            Err(place) => place,
        };
        self.len += 1;
        let last = self.runs.len().saturating_sub(1);
        match self.runs.get_mut(run) {
            None => self.runs.push(vec![packed]),
            Some(of) if of.len() < RUN => of.insert(at, packed),
            // The usual way: what is new comes last, and leaves full runs behind.
            Some(of) if run == last && at == of.len() => {
                let mut next = Vec::with_capacity(RUN);
                next.push(packed);
                self.runs.push(next);
            }
            Some(of) => {
                let mut upper = of.split_off(RUN / 2);
                match at.checked_sub(RUN / 2) {
                    Some(at) => upper.insert(at, packed),
                    None => of.insert(at, packed),
                }
                self.runs.insert(run + 1, upper);
            }
        }
        None
    }

    pub(super) fn remove(&mut self, location: Location) -> Option<Owner> {
        let (run, at) = self.find(location).ok()?;
        let gone = self.runs[run].remove(at).owner();
        self.len -= 1;
        let left = self.runs[run].len();
        if left == 0 {
            self.runs.remove(run);
        } else if left < RUN / 4 {
            // Two that fit into one become one: what is left takes room for what is left.
            let fits = |a: usize, b: usize| self.runs[a].len() + self.runs[b].len() <= RUN / 2;
            let lower = [run, run.wrapping_sub(1)].into_iter().find(|lower| {
                lower
                    .checked_add(1)
                    .is_some_and(|upper| upper < self.runs.len())
                    && fits(*lower, lower + 1)
            });
            if let Some(lower) = lower {
                let upper = self.runs.remove(lower + 1);
                self.runs[lower].extend(upper);
            }
        }
        if self.runs.capacity() > 64 && self.runs.len() < self.runs.capacity() / 4 {
            self.runs.shrink_to(self.runs.len() * 2);
        }
        Some(gone)
    }

    /// Those from `from` on, in order.
    pub(super) fn range(&self, from: Location) -> impl Iterator<Item = (Location, Owner)> {
        let (run, at) = self.find(from).unwrap_or_else(|place| place);
        let first = self.runs.get(run).and_then(|of| of.get(at..));
        let rest = self.runs.get(run + 1..).unwrap_or_default();
        let all = first.into_iter().chain(rest.iter().map(Vec::as_slice));
        all.flatten()
            .map(|packed| (packed.location, packed.owner()))
    }

    /// Bytes that it takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let each = size_of::<Packed>();
        let runs = self.runs.iter().map(|run| run.capacity() * each);
        runs.sum::<usize>() + self.runs.capacity() * size_of::<Vec<Packed>>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::random::Random;

    fn owner(n: u64) -> Owner {
        let payload = match n % 3 {
            0 => PayloadAt::None,
            1 => PayloadAt::Inline(n as u32),
            _ => PayloadAt::File(n << 20),
        };
        let inline = if n % 3 == 1 { n as usize } else { 0 };
        Owner {
            begin: Place {
                segment: n as u32,
                offset: 8 * n as u32,
                len: frame_len(n as usize, inline) as u32,
            },
            kind: n as u8,
            head_len: n as u32,
            payload,
            label: !(n as u32),
        }
    }

    /// The bytes of a million: what the memory of an open is reckoned with.
    #[test]
    fn an_owner_takes_a_few_words_whatever_has_gone() {
        let mut owners = Owners::default();
        for n in 1..=100_000 {
            owners.insert(n, &owner(n));
        }
        assert!(owners.bytes() < 33 * 100_000, "{}", owners.bytes());
        // One in ten stays, in each run.
        for n in (1..=100_000).filter(|n| n % 10 != 0) {
            owners.remove(n);
        }
        assert_eq!(owners.len(), 10_000);
        assert!(owners.bytes() < 4 * 33 * 10_000, "{}", owners.bytes());
        for n in (1..=100_000).filter(|n| n % 10 == 0) {
            owners.remove(n);
        }
        assert!(owners.bytes() < 4096, "{}", owners.bytes());
    }

    #[test]
    fn it_does_what_a_map_does() {
        for seed in 0..20 {
            let random = Random::new(Some(seed));
            let mut owners = Owners::default();
            let mut model = BTreeMap::new();
            let mut next = 1;
            for _ in 0..4000 {
                let any = random.u64() % (next + 2);
                match random.u64() % 10 {
                    // In order, and with holes that are filled later.
                    0..5 => {
                        next += 1 + random.u64() % 3;
                        let is = owner(next);
                        assert_eq!(owners.insert(next, &is), model.insert(next, is));
                    }
                    5 => assert_eq!(owners.insert(any, &owner(7)), model.insert(any, owner(7))),
                    6 => {
                        let to = Place {
                            segment: 9,
                            offset: 16,
                            ..owner(any).begin
                        };
                        let was = model.get_mut(&any).map(|owner| {
                            let was = owner.begin;
                            (owner.begin.segment, owner.begin.offset) = (9, 16);
                            was
                        });
                        assert_eq!(owners.replace(any, to), was);
                    }
                    _ => assert_eq!(owners.remove(any), model.remove(&any)),
                }
                assert_eq!(owners.get(any), model.get(&any).copied());
                assert_eq!(owners.contains(any), model.contains_key(&any));
            }
            assert_eq!(owners.len(), model.len());
            for from in [0, 1, next / 2, next, next + 1] {
                let rest = model.range(from..).map(|(at, owner)| (*at, *owner));
                assert!(owners.range(from).eq(rest), "seed {seed}");
            }
        }
    }
}
