//! Who waits for one part, in order.
//!
//! Owns: the order, and who can have the part when somebody lets go of it. Does not own: what a
//! mode conflicts with (`state.rs`), or who is woken when (`wait.rs`, under whose locks all of this
//! is).
//!
//! 1. First come, first served: nobody overtakes, and so nobody starves: not a writer among
//!    readers, because a reader that comes after it waits behind it.
//! 2. Pins are beside the line, but for who wants all of the part; and who wants all of it comes
//!    before the others, because it will be nobody's any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::state::{AtomicWord, Mode, Want};
use super::wait::Words;

const PIN: Want = Want::Mode(Mode::Pin);
const SHARED: Want = Want::Mode(Mode::Shared);
const EXCLUSIVE: Want = Want::Mode(Mode::Exclusive);

/// One who waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its number among all that have waited in the same shard.
    pub ticket: u64,
    pub want: Want,
    /// The number of the locker that waits.
    pub locker: Option<u64>,
    /// How long it may wait, where it has no timer of its own.
    pub within: Option<Duration>,
    /// When it was first seen waiting, in milliseconds of the table's clock; 0 before that.
    pub seen_ms: u64,
    pub waker: Option<Waker>,
}

impl Waiter {
    /// Whether it is not simply behind the one before it.
    fn is_odd(&self) -> bool {
        matches!(self.want, PIN | Want::Sole)
    }
}

/// Those who wait for one part.
#[derive(Debug)]
pub(crate) struct Line {
    pub words: Arc<dyn Words>,
    waiters: VecDeque<Waiter>,
    /// How many of them want a pin, or all of it.
    odd: usize,
}

impl Line {
    pub(crate) fn new(words: Arc<dyn Words>) -> Self {
        Self {
            words,
            waiters: VecDeque::new(),
            odd: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(crate) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter()
    }

    pub(crate) fn waiters_mut(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.waiters.iter_mut()
    }

    /// Whether somebody wants all of the part, to cut it off.
    pub(crate) fn closes(&self) -> bool {
        self.odd > 0 && self.waiters.iter().any(|other| other.want == Want::Sole)
    }

    pub(crate) fn enter(&mut self, waiter: Waiter) {
        self.odd += usize::from(waiter.is_odd());
        if waiter.want == Want::Sole {
            // What is to be cut off is not handed to anyone before, but who cuts it as well.
            let cuts = self.waiters.iter();
            let cuts = cuts.take_while(|other| other.want == Want::Sole).count();
            self.waiters.insert(cuts, waiter);
        } else {
            self.waiters.push_back(waiter);
        }
    }

    /// One of those in line; who came last is found first.
    pub(crate) fn find(&mut self, ticket: u64) -> Option<&mut Waiter> {
        let mut last_first = self.waiters.iter_mut().rev();
        last_first.find(|waiter| waiter.ticket == ticket)
    }

    fn remove(&mut self, at: usize) -> Option<Waiter> {
        let gone = self.waiters.remove(at);
        self.odd -= usize::from(gone.as_ref().is_some_and(Waiter::is_odd));
        gone
    }

    /// Takes out those that `which` picks.
    pub(crate) fn take(&mut self, which: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let mut taken = Vec::new();
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            if which(waiter) {
                taken.extend(self.remove(at));
            } else {
                at += 1;
            }
        }
        taken
    }

    /// Who had the part `Exclusive` goes, and the next one has it so: nothing changes but whose it
    /// is.
    pub(crate) fn pass_on(&mut self) -> Option<Waiter> {
        // Who comes first: nobody who wants all of it, who would be before, is there.
        self.waiters.pop_front_if(|next| next.want == EXCLUSIVE)
    }

    /// Locks the word for as many as can have it, in order, and takes them out. A pin is in
    /// nobody's way, and nobody in a pin's, but who wants all of it: who came later than the pin
    /// would not wait for it.
    pub(crate) fn hand_on(&mut self, word: &AtomicWord, mut tell: impl FnMut(Waiter)) {
        let grant = |want: Want| word.change(|word| word.lock(want, true)).is_ok();
        if self.odd == 0 {
            while let Some(next) = self.waiters.pop_front_if(|next| grant(next.want)) {
                let more = next.want == SHARED;
                tell(next);
                if !more {
                    return;
                }
            }
            return;
        }
        let (mut blocked, mut closing) = (false, false);
        let mut at = 0;
        while let Some(next) = self.waiters.get(at) {
            let want = next.want;
            let pin = want == PIN;
            let may = if pin { !closing } else { !blocked };
            if may && grant(want) {
                if let Some(next) = self.remove(at) {
                    tell(next);
                }
                continue;
            }
            blocked |= !pin;
            closing |= want == Want::Sole;
            at += 1;
        }
    }
}
