//! Deadlocks among those who wait for parts.
//!
//! Owns: who waits for whom, by what is held and by the lines, and that one of a cycle gives way.
//! Does not own: the search for a cycle (`detector.rs`), or when somebody looks (`mod.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;

use super::detector::{self, Edge};
use super::id::PartKey;
use super::lock::{CutWait, Locks};
use super::locker::Role;
use super::state::{Mode, Want};
use super::wait::{InOrder, Stands};

/// Holders of a part whom each who waits for it is said to wait for.
const FEW: usize = 8;

impl Locks {
    /// Who waits for whom, by these lines and for cuts. Whoever stands behind another waits for
    /// him, and by him for all that are before: so that there are no more edges than a few times
    /// the waiters. Those to who holds the part come first: they are the shorter way round.
    /// Those edges alone, and all.
    fn edges(&self, lines: &[InOrder], uncut: &[CutWait]) -> (BTreeSet<Edge>, Vec<Edge>) {
        if lines.is_empty() && uncut.is_empty() {
            return (BTreeSet::new(), Vec::new());
        }
        let mut by_holding = BTreeSet::new();
        let keys: BTreeSet<PartKey> = lines.iter().map(|line| line.key).collect();
        let mut holders: BTreeMap<PartKey, Vec<(u64, Want)>> = BTreeMap::new();
        let mut cutters = BTreeMap::new();
        for locker in self.lockers.live() {
            for held in locker.held() {
                if keys.contains(&held.key) {
                    let of = holders.entry(held.key).or_default();
                    of.push((locker.id, held.want));
                }
            }
            for cut in locker.cuts() {
                cutters.insert(cut.start.file(), locker.id);
                for key in keys.range(cut) {
                    holders
                        .entry(*key)
                        .or_default()
                        .push((locker.id, Want::Sole));
                }
            }
        }
        let mut edges = Vec::new();
        for line in lines {
            let holders = holders.get(&line.key).map_or(&[][..], |holders| holders);
            let (mut before, mut cuts) = (None, None);
            for waiter in &line.waiters {
                let Some(from) = waiter.locker else {
                    continue;
                };
                let pin = waiter.want == Want::Mode(Mode::Pin);
                let ahead = if pin { cuts } else { before };
                if ahead.is_none() || holders.len() <= FEW {
                    let held = holders.iter();
                    let held = held.filter(|(_, want)| want.conflicts_with(waiter.want));
                    let held = held.map(|(to, _)| Edge { from, to: *to });
                    by_holding.extend(held.clone());
                    edges.extend(held);
                }
                edges.extend(ahead.map(|to| Edge { from, to }));
                if !pin {
                    before = Some(from);
                }
                if waiter.want == Want::Sole {
                    cuts = Some(from);
                }
            }
        }
        let uncut = uncut.iter().filter_map(|wait| {
            let to = *cutters.get(&wait.file)?;
            let from = wait.locker;
            Some(Edge { from, to })
        });
        by_holding.extend(uncut.clone());
        edges.extend(uncut);
        // A locker may wait in several places at once, for itself as well: that is no circle.
        edges.retain(|edge| edge.from != edge.to);
        (by_holding, edges)
    }

    /// Finds a cycle among those who wait for parts, and gives one of its lockers an error; whether
    /// there was one.
    pub(crate) fn detect(&self) -> bool {
        // The lockers of a cycle, and how they wait.
        let look = || {
            let lines = self.table.lines();
            let uncut = self.until_uncut_now();
            let (by_holding, edges) = self.edges(&lines, &uncut);
            let found = detector::cycle(&edges)?;
            // Who is waited for only because he stands in line would give way for nothing.
            let before = found.iter().cycle().skip(found.len() - 1);
            let held = |from: u64, to: u64| by_holding.contains(&Edge { from, to });
            let holders: Vec<u64> = before
                .zip(&found)
                .filter(|(from, to)| held(**from, **to))
                .map(|(_, to)| *to)
                .collect();
            let is_in = |waiter: &Stands| waiter.locker.is_some_and(|id| found.contains(&id));
            let waits = lines.into_iter().flat_map(|line| line.waiters);
            let waits: Vec<_> = waits.filter(is_in).collect();
            let uncut: Vec<_> = uncut
                .into_iter()
                .filter(|wait| found.contains(&wait.locker))
                .collect();
            Some((found, waits, uncut, holders))
        };
        // Read one after another while others go on. But who waits lets go of nothing: where the
        // waits are the same ones, and not only the lockers, the cycle was there in between.
        let (Some((found, waits, uncut, mut candidates)), Some((again, still, uncut_still, _))) =
            (look(), look())
        else {
            return false;
        };
        let places =
            |waits: &[Stands]| -> Vec<_> { waits.iter().map(|w| (w.key, w.ticket)).collect() };
        if found != again || places(&waits) != places(&still) || uncut != uncut_still {
            return false;
        }
        let live = self.lockers.live();
        let by_id = |id: u64| live.iter().find(|locker| locker.id == id);
        let is_checkpointer =
            |id: u64| by_id(id).is_some_and(|locker| locker.role == Role::Checkpointer);
        let cycle: Vec<String> = found
            .iter()
            .map(|id| by_id(*id).map_or_else(|| id.to_string(), |l| l.name.clone()))
            .collect();
        while let Some(victim) = detector::victim(&candidates, is_checkpointer) {
            let error = Error::WouldDeadlock {
                cycle: cycle.clone(),
            };
            let is_its = |waiter: &&Stands| waiter.locker == Some(victim);
            if let Some(waiter) = waits.iter().find(is_its) {
                // Else it has left of its own, and nobody else need give way.
                let gave_way = self.table.refuse_one(waiter, &error);
                if gave_way {
                    tracing::warn!(?cycle, "deadlock: a locker gives way");
                }
                return gave_way;
            }
            // It waits for something else, in which case another gives way.
            candidates.retain(|id| *id != victim);
        }
        false
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::sync::Arc;

    use super::super::state::{AtomicWord, Word};
    use super::super::wait::Words;
    use super::*;

    /// 65,536 may wait in one line by default: an edge from each to all before it would be two
    /// thousand millions.
    #[test]
    fn edges_grow_with_the_waiters_and_a_cycle_through_all_of_them_is_found() {
        const WAITERS: u64 = 500;
        let locks = Locks::new(4, WAITERS);
        let parts = [(); 2].map(|()| Arc::new(AtomicWord::new(Word::ZERO)));
        let words = |part: usize| Arc::clone(&parts[part]) as Arc<dyn Words>;
        let key = |part| PartKey::new(1, part);
        let made = |name: &str| locks.lockers.make(name, Role::Foreground, false).unwrap();
        let (first, last) = (made("first"), made("last"));
        let (place, _) = locks
            .try_lock(&parts[0], key(0), Mode::Exclusive, &first)
            .unwrap();
        let (other, _) = locks
            .try_lock(&parts[1], key(1), Mode::Exclusive, &last)
            .unwrap();
        let between: Vec<_> = (2..WAITERS).map(|n| made(&n.to_string())).collect();
        let mut waits = Vec::new();
        for (n, locker) in between.iter().enumerate() {
            let mode = if n % 3 == 0 {
                Mode::Shared
            } else {
                Mode::Exclusive
            };
            waits.push(
                locks
                    .table
                    .ask(&words(0), key(0), Want::Mode(mode), Some(locker)),
            );
        }
        waits.push(
            locks
                .table
                .ask(&words(0), key(0), Want::Mode(Mode::Shared), Some(&last)),
        );
        let lines = locks.table.lines();
        let edges = locks.edges(&lines, &[]).1.len() as u64;
        assert!(edges < 2 * WAITERS, "{edges}");
        assert!(!locks.detect());
        // From the last in line through all of them to who holds the part, and back.
        waits.push(
            locks
                .table
                .ask(&words(1), key(1), Want::Mode(Mode::Shared), Some(&first)),
        );
        assert!(locks.detect());
        drop(waits);
        locks.unlock(
            &parts[0],
            key(0),
            Want::Mode(Mode::Exclusive),
            &first,
            place,
        );
        locks.unlock(&parts[1], key(1), Want::Mode(Mode::Exclusive), &last, other);
    }
}
