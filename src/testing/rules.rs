//! Rules that come, apply so many times, and go: what the plans of the server and of the proxy are.
//!
//! Owns: the list, its bound, and the counts. Does not own: what a rule fits, and what it does.
//!
//! Invariants:
//! 1. Removing a rule, in whatever way, cancels its token: nothing that it keeps waiting stays.
//! 2. A list is bounded: at most [`MAX_RULES`]; the oldest goes first.

use tokio_util::sync::CancellationToken;

/// How many rules a plan holds; one more removes the oldest.
pub const MAX_RULES: usize = 4096;

/// One rule of a list.
#[derive(Debug)]
pub(super) struct Listed<R> {
    id: u64,
    pub rule: R,
    /// Of those that fit, so many more pass.
    skip: u64,
    /// It applies so many times more; `None`: for ever.
    times: Option<u64>,
    applied: u64,
    pub removed: CancellationToken,
}

impl<R> Listed<R> {
    /// Counts one thing that fits; whether the rule applies to it.
    fn take(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        self.applied += 1;
        true
    }
}

/// Rules, in the order in which they were added.
#[derive(Debug)]
pub(super) struct Rules<R> {
    next: u64,
    list: Vec<Listed<R>>,
}

impl<R> Default for Rules<R> {
    fn default() -> Self {
        Self {
            next: 0,
            list: Vec::new(),
        }
    }
}

impl<R> Rules<R> {
    /// Adds a rule behind the others; its number, which no other has.
    pub(super) fn add(&mut self, rule: R, skip: u64, times: Option<u64>) -> u64 {
        if self.list.len() >= MAX_RULES {
            self.list.remove(0).removed.cancel();
        }
        self.next += 1;
        self.list.push(Listed {
            id: self.next,
            rule,
            skip,
            times,
            applied: 0,
            removed: CancellationToken::new(),
        });
        self.next
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        let Some(at) = self.list.iter().position(|rule| rule.id == id) else {
            return false;
        };
        self.list.remove(at).removed.cancel();
        true
    }

    pub(super) fn clear(&mut self) {
        for rule in self.list.drain(..) {
            rule.removed.cancel();
        }
    }

    /// How many times it was applied; `None` where it was removed.
    pub(super) fn applied(&self, id: u64) -> Option<u64> {
        let found = self.list.iter().find(|rule| rule.id == id);
        found.map(|rule| rule.applied)
    }

    /// Those that apply, in order. Each is asked, and counts, as it is come to.
    pub(super) fn apply(&mut self, fits: impl Fn(&R) -> bool) -> impl Iterator<Item = &Listed<R>> {
        self.list
            .iter_mut()
            .filter_map(move |rule| (fits(&rule.rule) && rule.take()).then_some(&*rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_whoever_it_keeps_waiting_goes_on() {
        let mut rules = Rules::default();
        let first = rules.add(0, 0, None);
        let waits = rules
            .apply(|_| true)
            .next()
            .map(|rule| rule.removed.clone());
        for n in 1..=MAX_RULES {
            rules.add(n, 0, None);
        }
        assert_eq!(rules.applied(first), None);
        assert!(waits.is_some_and(|removed| removed.is_cancelled()));
        assert_eq!(rules.apply(|_| true).count(), MAX_RULES);
        assert!(!rules.remove(first));
    }
}
