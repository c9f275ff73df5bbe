//! Room: bytes of the cache, and bytes that may be dirty.
//!
//! Owns: how much is used, who waits for how much, first come first served in each class, and
//! that what was taken comes back. Does not own: how room is made (`evict.rs`, `flush.rs`).
//!
//! 1. A class that must always go on has a reserve that nobody else can use: `Foreground` is
//!    given room up to the limit, `Checkpointer` up to the limit and the reserve.
//! 2. What recovery finds is never refused: it may be over the limit, and then nobody is given
//!    room until it is not.
//! 3. A waiter that leaves leaves no trace.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Limit, Result};
use crate::mutant::{Mutant, is};
use crate::watched::Watched;

use super::locker::{LockerState, Role};

/// One kind of room.
#[derive(Debug)]
pub(crate) struct Room {
    state: Watched<State>,
    limit: u64,
    reserve: u64,
    what: Limit,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    peak: u64,
    next: u64,
    waiting: BTreeMap<(Class, u64), Wait>,
    shut: Option<Error>,
}

/// Checkpointers first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Checkpointer,
    Foreground,
}

/// One who waits for room.
#[derive(Debug, Clone)]
pub(crate) struct Wait {
    pub bytes: u64,
    pub locker: Option<Arc<LockerState>>,
    refused: Option<Error>,
}

/// Room that was taken; dropped, it comes back.
#[derive(Debug)]
pub(crate) struct Taken {
    room: Arc<Room>,
    bytes: u64,
    /// Some of it is of the reserve.
    of_reserve: bool,
}

impl Taken {
    /// Splits `bytes` off.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            room: Arc::clone(&self.room),
            bytes,
            of_reserve: self.of_reserve,
        }
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether some of it was taken of the reserve.
    pub(crate) const fn is_of_reserve(&self) -> bool {
        self.of_reserve
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.room.state.change(|state| {
                debug_assert!(state.used >= self.bytes, "more came back than was taken");
                state.used = state.used.saturating_sub(self.bytes);
            });
        }
    }
}

fn class_of(locker: Option<&Arc<LockerState>>) -> Class {
    match locker.map(|locker| locker.role) {
        Some(Role::Checkpointer) if !is(Mutant::CheckpointerStandsInLine) => Class::Checkpointer,
        Some(_) | None => Class::Foreground,
    }
}

impl Room {
    pub(crate) fn new(what: Limit, limit: u64, reserve: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Watched::new(State::default()),
            limit,
            reserve,
            what,
        })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn most(&self, class: Class) -> u64 {
        match class {
            Class::Checkpointer => self.limit.saturating_add(self.reserve),
            Class::Foreground if is(Mutant::ReserveLent) => self.limit.saturating_add(self.reserve),
            Class::Foreground => self.limit,
        }
    }

    fn fits(&self, state: &State, class: Class, bytes: u64) -> bool {
        state.used.saturating_add(bytes) <= self.most(class)
    }

    fn taken(self: &Arc<Self>, state: &mut State, class: Class, bytes: u64) -> Taken {
        state.used += bytes;
        state.peak = state.peak.max(state.used);
        Taken {
            room: Arc::clone(self),
            bytes,
            of_reserve: class == Class::Checkpointer && state.used > self.limit,
        }
    }

    /// Whether all that is in use would be there without the reserve.
    pub(crate) fn is_within_limit(&self) -> bool {
        self.state.read(|state| state.used <= self.limit)
    }

    /// Takes room if there is some now, and nobody waits for it.
    pub(crate) fn try_take(
        self: &Arc<Self>,
        bytes: u64,
        locker: Option<&Arc<LockerState>>,
    ) -> Option<Taken> {
        let class = class_of(locker);
        // Not a change that anybody waits for, so nobody is woken.
        self.state.edit(|state| {
            let behind = state.waiting.keys().any(|(other, _)| *other <= class);
            (!behind && state.shut.is_none() && self.fits(state, class, bytes))
                .then(|| self.taken(state, class, bytes))
        })
    }

    /// Takes room for what is here already, whatever the limit.
    pub(crate) fn force(self: &Arc<Self>, bytes: u64) -> Taken {
        self.state
            .edit(|state| self.taken(state, Class::Foreground, bytes))
    }

    /// Whether anybody can have so much at once.
    pub(crate) fn may_have(&self, bytes: u64) -> Result<()> {
        if bytes > self.limit {
            return Err(Error::TooLarge {
                limit: self.what,
                size: bytes,
                max: self.limit,
            });
        }
        Ok(())
    }

    /// Takes room, in its turn. `waits` is called before the first wait: somebody has to make
    /// room.
    pub(crate) async fn take(
        self: &Arc<Self>,
        bytes: u64,
        locker: Option<&Arc<LockerState>>,
        waits: impl Fn(),
    ) -> Result<Taken> {
        self.may_have(bytes)?;
        if let Some(taken) = self.try_take(bytes, locker) {
            return Ok(taken);
        }
        let class = class_of(locker);
        let key = self.state.edit(|state| {
            state.next += 1;
            let key = (class, state.next);
            let wait = Wait {
                bytes,
                locker: locker.cloned(),
                refused: None,
            };
            state.waiting.insert(key, wait);
            key
        });
        let _place = Place { room: self, key };
        waits();
        loop {
            self.state
                .until(|state| {
                    let refused = state.waiting.get(&key).is_none_or(|w| w.refused.is_some());
                    let first = state.waiting.keys().find(|(other, _)| *other == class);
                    let turn = first == Some(&key) && self.fits(state, class, bytes);
                    (refused || turn || state.shut.is_some()).then_some(())
                })
                .await;
            let taken = self.state.edit(|state| {
                if let Some(error) = &state.shut {
                    return Some(Err(error.clone()));
                }
                match state.waiting.get(&key) {
                    Some(Wait {
                        refused: Some(error),
                        ..
                    }) => Some(Err(error.clone())),
                    Some(_) if self.fits(state, class, bytes) => {
                        Some(Ok(self.taken(state, class, bytes)))
                    }
                    _ => None,
                }
            });
            if let Some(taken) = taken {
                return taken;
            }
        }
    }

    /// Nobody is given room any more, and who waits is told so.
    pub(crate) fn shut(&self, error: &Error) {
        if is(Mutant::ShutForgetsWaiters) {
            return;
        }
        self.state.change(|state| {
            state.shut.get_or_insert_with(|| error.clone());
        });
    }

    /// Refuses those who wait and are picked.
    pub(crate) fn refuse(&self, which: impl Fn(&Wait) -> bool, error: &Error) {
        if is(Mutant::ShutForgetsWaiters) {
            return;
        }
        self.state.change(|state| {
            for wait in state.waiting.values_mut() {
                if wait.refused.is_none() && which(wait) {
                    wait.refused = Some(error.clone());
                }
            }
        });
    }

    /// Those who wait and were not refused.
    pub(crate) fn waiting(&self) -> Vec<Wait> {
        self.state.read(|state| {
            let waiting = state.waiting.values();
            waiting.filter(|w| w.refused.is_none()).cloned().collect()
        })
    }

    /// Whether somebody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.state
            .read(|state| state.waiting.values().any(|w| w.refused.is_none()))
    }

    /// How many bytes must come back before the next in line has its room; `None` where nobody
    /// waits for that.
    pub(crate) fn short_by(&self) -> Option<u64> {
        self.state.read(|state| {
            let next = state.waiting.iter().filter(|(_, w)| w.refused.is_none());
            next.map(|((class, _), wait)| {
                let most = self.most(*class);
                state.used.saturating_add(wait.bytes).saturating_sub(most)
            })
            .filter(|short| *short > 0)
            .min()
        })
    }

    /// Bytes in use, and the most that were.
    pub(crate) fn used(&self) -> (u64, u64) {
        self.state.read(|state| (state.used, state.peak))
    }

    /// Why there is none.
    pub(crate) fn none(&self) -> Error {
        Error::NoRoom {
            limit: self.what,
            used: self.used().0,
            max: self.limit,
        }
    }
}

struct Place<'a> {
    room: &'a Room,
    key: (Class, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if is(Mutant::PlaceKept) {
            return;
        }
        // Who comes after may have been waiting for this one only.
        self.room
            .state
            .change(|state| state.waiting.remove(&self.key));
    }
}
