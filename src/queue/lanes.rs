//! Lanes: which of the eligible tasks goes next.
//!
//! Owns: the order among tasks that could run now. Does not own: whether a task is eligible
//! (`table.rs`). A pure structure: no clock, no lock, no I/O.
//!
//! 1. Every lane with work gets at least its weight's share of turns: credits are refilled only
//!    when no lane with work has any left. So a lane waits for at most the sum of all weights.
//! 2. Within a lane, prefixes take turns; within a prefix, first come, first served. So an
//!    eligible task waits for a bounded number of turns, whatever arrives after it.
//! 3. A prefix has at most `share` tasks in flight; at that bound it leaves the ring, and comes
//!    back when one of them ends.
//! 4. The cost of a push or a pop does not depend on how many wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::task::Lane;

/// Something that can run: whose slot it is, and the ticket under which it was pushed (an entry
/// with an old ticket is void).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub slot: usize,
    pub ticket: u64,
}

#[derive(Debug, Default)]
struct Prefix {
    waiting: [VecDeque<Entry>; Lane::ALL.len()],
    in_ring: [bool; Lane::ALL.len()],
    in_flight: usize,
}

impl Prefix {
    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting.iter().all(VecDeque::is_empty)
    }
}

/// The lanes.
#[derive(Debug)]
pub(crate) struct Lanes {
    rings: [VecDeque<Arc<str>>; Lane::ALL.len()],
    credits: [u32; Lane::ALL.len()],
    prefixes: HashMap<Arc<str>, Prefix>,
    share: usize,
}

/// The part of a key that shares a prefix's slots: up to its last `/`.
pub(crate) fn prefix_of(key: &str) -> &str {
    key.rfind('/').map_or("", |at| &key[..=at])
}

/// Whether a prefix has a share of this lane's slots. Those of their own that `Load` and
/// `Checkpoint` have are nobody's share.
const fn is_shared(lane: Lane) -> bool {
    !matches!(lane, Lane::Load | Lane::Checkpoint)
}

impl Lanes {
    /// Lanes in which one prefix has at most `share` tasks in flight.
    pub(crate) fn new(share: usize) -> Self {
        Self {
            rings: Default::default(),
            credits: Lane::ALL.map(Lane::weight),
            prefixes: HashMap::new(),
            share: share.max(1),
        }
    }

    pub(crate) fn push(&mut self, lane: Lane, key: &str, entry: Entry) {
        let name = prefix_of(key);
        if !self.prefixes.contains_key(name) {
            self.prefixes.insert(Arc::from(name), Prefix::default());
        }
        if let Some(prefix) = self.prefixes.get_mut(name) {
            prefix.waiting[lane.index()].push_back(entry);
        }
        self.enter_ring(lane, name);
    }

    /// The next entry of the `allowed` lanes; `valid` says whether it still counts. What is
    /// returned is in flight until [`Lanes::ended`].
    pub(crate) fn pop(
        &mut self,
        allowed: &[Lane],
        mut valid: impl FnMut(Entry) -> bool,
    ) -> Option<Entry> {
        loop {
            let lane = self.choose(allowed)?;
            let name = self.rings[lane.index()].pop_front()?;
            let Some(prefix) = self.prefixes.get_mut(&name) else {
                continue;
            };
            prefix.in_ring[lane.index()] = false;
            if is_shared(lane) && prefix.in_flight >= self.share {
                // Another lane's task took the last of its share; it comes back with `ended`.
                continue;
            }
            let entry = prefix.waiting[lane.index()].pop_front();
            let Some(entry) = entry else {
                self.forget_if_idle(&name);
                continue;
            };
            if !valid(entry) {
                self.enter_ring(lane, &name);
                self.forget_if_idle(&name);
                continue;
            }
            prefix.in_flight += 1;
            self.credits[lane.index()] = self.credits[lane.index()].saturating_sub(1);
            self.enter_ring(lane, &name);
            return Some(entry);
        }
    }

    /// A task that was popped is not in flight any more.
    pub(crate) fn ended(&mut self, key: &str) {
        let name = prefix_of(key);
        if let Some(prefix) = self.prefixes.get_mut(name) {
            debug_assert!(prefix.in_flight > 0, "more tasks ended than were started");
            prefix.in_flight = prefix.in_flight.saturating_sub(1);
        }
        for lane in Lane::ALL {
            self.enter_ring(lane, name);
        }
        self.forget_if_idle(name);
    }

    /// Drops entries that do not count any more: the table calls it when there are many of them.
    pub(crate) fn sweep(&mut self, mut valid: impl FnMut(Entry) -> bool) {
        for prefix in self.prefixes.values_mut() {
            for waiting in &mut prefix.waiting {
                waiting.retain(|entry| valid(*entry));
            }
        }
        self.prefixes.retain(|_, prefix| !prefix.is_idle());
    }

    /// Prefixes that are known at all: bounded by the tasks that wait or run.
    #[cfg(test)]
    fn prefixes(&self) -> usize {
        self.prefixes.len()
    }

    fn choose(&mut self, allowed: &[Lane]) -> Option<Lane> {
        let has_work = |lane: &Lane| !self.rings[lane.index()].is_empty();
        let with_credit = allowed
            .iter()
            .find(|lane| has_work(lane) && self.credits[lane.index()] > 0);
        if let Some(lane) = with_credit {
            return Some(*lane);
        }
        let lane = *allowed.iter().find(|lane| has_work(lane))?;
        self.credits = Lane::ALL.map(Lane::weight);
        Some(lane)
    }

    fn enter_ring(&mut self, lane: Lane, name: &str) {
        let at = lane.index();
        let Some((name, prefix)) = self
            .prefixes
            .get_key_value(name)
            .map(|(name, _)| Arc::clone(name))
            .and_then(|name| self.prefixes.get_mut(&name).map(|prefix| (name, prefix)))
        else {
            return;
        };
        let below_share = !is_shared(lane) || prefix.in_flight < self.share;
        if !prefix.in_ring[at] && !prefix.waiting[at].is_empty() && below_share {
            prefix.in_ring[at] = true;
            self.rings[at].push_back(name);
        }
    }

    fn forget_if_idle(&mut self, name: &str) {
        if self.prefixes.get(name).is_some_and(Prefix::is_idle) {
            self.prefixes.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: usize) -> Entry {
        Entry { slot, ticket: 0 }
    }

    fn all(lanes: &mut Lanes) -> Vec<usize> {
        std::iter::from_fn(|| lanes.pop(&Lane::ALL, |_| true).map(|e| e.slot)).collect()
    }

    #[test]
    fn one_prefix_cannot_take_all_slots_and_gets_them_back() {
        let mut lanes = Lanes::new(2);
        for slot in 0..5 {
            lanes.push(Lane::Foreground, "hot/x", entry(slot));
        }
        lanes.push(Lane::Foreground, "cold/x", entry(9));
        assert_eq!(all(&mut lanes), [0, 9, 1]);
        lanes.ended("hot/x");
        assert_eq!(all(&mut lanes), [2]);
        lanes.ended("hot/x");
        lanes.ended("hot/x");
        lanes.ended("cold/x");
        assert_eq!(all(&mut lanes), [3, 4]);
        lanes.ended("hot/x");
        lanes.ended("hot/x");
        assert_eq!(
            lanes.prefixes(),
            0,
            "nothing is remembered of prefixes without tasks"
        );
    }

    #[test]
    fn no_lane_waits_more_turns_than_the_sum_of_weights() {
        let mut lanes = Lanes::new(usize::MAX);
        for slot in 0..1000 {
            lanes.push(Lane::Load, "l", entry(slot));
            lanes.push(Lane::Foreground, "f", entry(10_000 + slot));
        }
        lanes.push(Lane::Background, "b", entry(77));
        let bound: u32 = Lane::ALL.iter().map(|lane| lane.weight()).sum();
        let order = all(&mut lanes);
        let waited = order.iter().position(|slot| *slot == 77).unwrap();
        assert!(waited <= bound as usize, "waited {waited} turns");
        assert_eq!(order.len(), 2001);
    }

    #[test]
    fn a_late_crowd_does_not_delay_an_early_task() {
        let mut lanes = Lanes::new(usize::MAX);
        lanes.push(Lane::Foreground, "a/1", entry(1));
        for slot in 0..100 {
            lanes.push(Lane::Foreground, &format!("p{slot}/x"), entry(100 + slot));
        }
        assert_eq!(lanes.pop(&Lane::ALL, |_| true), Some(entry(1)));
    }

    #[test]
    fn void_entries_are_passed_over() {
        let mut lanes = Lanes::new(2);
        for slot in 0..4 {
            lanes.push(Lane::Foreground, "p/x", entry(slot));
        }
        assert_eq!(lanes.pop(&Lane::ALL, |e| e.slot == 3), Some(entry(3)));
        lanes.ended("p/x");
        assert_eq!(lanes.prefixes(), 0);
    }
}
