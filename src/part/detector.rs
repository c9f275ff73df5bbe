//! Who waits for whom: cycles among lockers.
//!
//! Owns: the search for a cycle, and which of its lockers gives way; pure. Does not own: where the
//! edges come from (`deadlock.rs`), or when somebody looks.
//!
//! A locker that holds nothing is in no cycle: nobody waits for it. What is found is a deadlock
//! only if it is still there when looked at again: edges are read one after another while others
//! lock and unlock, and a real cycle does not move.

use std::collections::BTreeMap;

/// `from` waits for `to`; both are lockers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub from: u64,
    pub to: u64,
}

/// A cycle among the edges, in order, if there is one.
pub(crate) fn cycle(edges: &[Edge]) -> Option<Vec<u64>> {
    let mut next: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for edge in edges {
        next.entry(edge.from).or_default().push(edge.to);
    }
    // Who was looked at and leads to no cycle.
    let mut done: BTreeMap<u64, bool> = BTreeMap::new();
    for start in next.keys() {
        let mut path: Vec<(u64, usize)> = vec![(*start, 0)];
        if done.contains_key(start) {
            continue;
        }
        done.insert(*start, false);
        while let Some((at, tried)) = path.last_mut() {
            let to = next.get(at).and_then(|to| to.get(*tried)).copied();
            *tried += 1;
            match to {
                None => {
                    done.insert(*at, true);
                    path.pop();
                }
                Some(to) => match done.get(&to) {
                    Some(true) => {}
                    Some(false) => {
                        let from = path.iter().position(|(on, _)| *on == to)?;
                        return Some(path[from..].iter().map(|(on, _)| *on).collect());
                    }
                    None => {
                        done.insert(to, false);
                        path.push((to, 0));
                    }
                },
            }
        }
    }
    None
}

/// Which of a cycle's lockers gives way: not a checkpointer if there is anybody else, and of the
/// rest the youngest, which has done the least.
pub(crate) fn victim(cycle: &[u64], is_checkpointer: impl Fn(u64) -> bool) -> Option<u64> {
    let foreground = cycle.iter().filter(|locker| !is_checkpointer(**locker));
    foreground.max().or_else(|| cycle.iter().max()).copied()
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edges(of: &[(u64, u64)]) -> Vec<Edge> {
        of.iter()
            .map(|(from, to)| Edge {
                from: *from,
                to: *to,
            })
            .collect()
    }

    #[test]
    fn a_mere_wait_is_no_cycle_and_the_young_give_way() {
        assert_eq!(cycle(&edges(&[(1, 2), (2, 3), (4, 3)])), None);
        let found = cycle(&edges(&[(9, 1), (1, 2), (2, 3), (3, 1)])).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(victim(&found, |_| false), Some(3));
        assert_eq!(victim(&found, |locker| locker == 3), Some(2));
        assert_eq!(victim(&found, |_| true), Some(3));
        assert_eq!(cycle(&edges(&[(5, 5)])), Some(vec![5]));
    }

    proptest! {
        #[test]
        fn it_finds_a_cycle_exactly_where_there_is_one(
            pairs in proptest::collection::vec((0_u64..8, 0_u64..8), 0..20)
        ) {
            let edges = edges(&pairs);
            // Repeatedly taking away who waits for nobody leaves nothing, or a cycle.
            let mut left = edges.clone();
            loop {
                let before = left.len();
                let waits: Vec<u64> = left.iter().map(|edge| edge.from).collect();
                left.retain(|edge| waits.contains(&edge.to));
                if left.len() == before {
                    break;
                }
            }
            let found = cycle(&edges);
            prop_assert_eq!(found.is_some(), !left.is_empty());
            if let Some(found) = found {
                for (at, from) in found.iter().enumerate() {
                    let to = found[(at + 1) % found.len()];
                    let edge = Edge { from: *from, to };
                    prop_assert!(edges.contains(&edge));
                }
            }
        }
    }
}
