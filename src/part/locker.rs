//! Lockers: the parties that hold part locks and wait for them (Berkeley DB's term).
//!
//! Owns: who there is, and what each holds since when. Does not own: whether a lock is granted
//! (`lock.rs`).
//!
//! 1. What a locker holds is on its own list from just after the lock was granted until just
//!    before it is released: a list never names what is not held. For an instant it may not name
//!    what is; who looks for holders looks again.
//! 2. Who cuts a file off has the parts from where it began to where it has come to in one range.
//! 3. The first eight are in slots that are taken with one compare-and-swap and left with one
//!    store: the cost of a lock that nobody waits for is that and the one on the state word.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Mutex, Ordering};

use super::id::{PartId, PartKey};
use super::state::{Mode, Want};

/// What a locker is for: decides which lane its loads take, which frames it may have, and what
/// shutdown still grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Role {
    /// The engine's threads and transactions. Refused from the start of a shutdown, but through a
    /// hold.
    Foreground,
    /// The engine's checkpoint code. Has frames and a load slot that nobody else can take, and is
    /// granted what it asks for until draining ends.
    Checkpointer,
}

/// Most lockers at one time.
pub(crate) const MAX_LOCKERS: usize = 1_000_000;
/// Longest name, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 256;
const SLOTS: usize = 8;
/// A slot that is being filled.
const CLAIMED: u64 = u64::MAX;

/// Who holds a part, or waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The locker's name.
    pub locker: String,
    /// The thread or task that made the locker.
    pub made_by: String,
    /// The mode; `None` for who cuts the part off.
    pub mode: Option<Mode>,
    /// For how long, to within `deadlock_timeout`: 0.1 s if you do not say.
    pub held_for: Duration,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({}) in mode ", self.locker, self.made_by)?;
        match self.mode {
            Some(mode) => write!(f, "{mode}")?,
            None => f.write_str("cut")?,
        }
        write!(f, " for {:?}", self.held_for)
    }
}

impl Serialize for Mode {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A part that a locker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub key: PartKey,
    pub want: Want,
    /// On the lock manager's clock, in milliseconds.
    pub since_ms: u64,
}

#[derive(Debug, Default)]
struct Slot {
    part: AtomicU64,
    meta: AtomicU64,
}

/// Where a locker's list has a part: the number of a slot, or one of those that come after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    /// Of what is on no list.
    pub(crate) const NONE: Self = Self(u64::MAX);
}

/// Parts of one file that a locker has for itself.
#[derive(Debug, Clone, Copy)]
struct Cut {
    file: u32,
    first: u32,
    /// It has those before this one.
    upto: u32,
    since_ms: u64,
}

/// One locker.
#[derive(Debug)]
pub(crate) struct LockerState {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// What shutdown still grants to holders of holds is granted to it.
    pub(crate) through_hold: bool,
    made_by: String,
    slots: [Slot; SLOTS],
    more: Mutex<(u64, Vec<(u64, Held)>)>,
    /// How many those are, and the ranges.
    many: AtomicU64,
    cuts: Mutex<Vec<Cut>>,
    all: Weak<Lockers>,
}

impl Drop for LockerState {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            all.live.lock().remove(&self.id);
        }
    }
}

const fn pack(want: Want, since_ms: u64) -> u64 {
    let mode = match want {
        Want::Mode(Mode::Pin) => 0,
        Want::Mode(Mode::Shared) => 1,
        Want::Mode(Mode::Exclusive) => 2,
        Want::Sole => 3,
    };
    since_ms << 2 | mode
}

const fn unpack(meta: u64) -> (Want, u64) {
    let want = match meta & 3 {
        0 => Want::Mode(Mode::Pin),
        1 => Want::Mode(Mode::Shared),
        2 => Want::Mode(Mode::Exclusive),
        _ => Want::Sole,
    };
    (want, meta >> 2)
}

impl LockerState {
    /// Puts a part on the list, once it is held.
    #[inline]
    pub(crate) fn add(&self, key: PartKey, want: Want, since_ms: u64) -> Place {
        for (at, slot) in (0..).zip(&self.slots) {
            let free = slot.part.load(Ordering::Relaxed) == 0
                && slot
                    .part
                    .compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok();
            if free {
                // Who sees it sees, from then on, that the slot was claimed anew.
                slot.meta.store(pack(want, since_ms), Ordering::Release);
                slot.part.store(key.bits(), Ordering::Release);
                return Place(at);
            }
        }
        self.add_more(Held {
            key,
            want,
            since_ms,
        })
    }

    #[cold]
    fn add_more(&self, held: Held) -> Place {
        let (next, more) = &mut *self.more.lock();
        *next += 1;
        let number = *next + SLOTS as u64;
        more.push((number, held));
        self.many.fetch_add(1, Ordering::AcqRel);
        Place(number)
    }

    /// Takes it off, before it is released.
    #[inline]
    pub(crate) fn remove(&self, place: Place) {
        let slot = usize::try_from(place.0)
            .ok()
            .and_then(|at| self.slots.get(at));
        match slot {
            Some(slot) => slot.part.store(0, Ordering::Release),
            None => self.remove_more(place),
        }
    }

    #[cold]
    fn remove_more(&self, place: Place) {
        let (_, more) = &mut *self.more.lock();
        if let Some(at) = more.iter().position(|(other, _)| *other == place.0) {
            more.swap_remove(at);
            self.many.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// What its slots have.
    fn in_slots(&self) -> impl Iterator<Item = Held> {
        self.slots.iter().filter_map(|slot| {
            let part = slot.part.load(Ordering::Acquire);
            if part == 0 || part == CLAIMED {
                return None;
            }
            let (want, since_ms) = unpack(slot.meta.load(Ordering::Acquire));
            // Left and taken again in between, it is looked at the next time.
            (slot.part.load(Ordering::Acquire) == part).then_some(Held {
                key: PartKey::from_bits(part),
                want,
                since_ms,
            })
        })
    }

    /// All that it holds.
    pub(crate) fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> = self.in_slots().collect();
        if self.many.load(Ordering::Acquire) > 0 {
            held.extend(self.more.lock().1.iter().map(|(_, held)| *held));
        }
        held
    }

    /// Whether it holds a part, and how.
    pub(crate) fn holds(&self, key: PartKey) -> Option<Held> {
        let is_it = |held: &Held| held.key == key;
        self.in_slots().find(is_it).or_else(|| {
            if self.many.load(Ordering::Acquire) == 0 {
                return None;
            }
            let more = self.more.lock();
            let found = more.1.iter().map(|(_, held)| *held).find(is_it);
            drop(more);
            found.or_else(|| self.cuts_off(key))
        })
    }

    /// The refusal of what it holds already.
    pub(crate) fn already_holds(&self, part: PartId, held: &Held) -> Error {
        Error::AlreadyHeld {
            part,
            locker: self.name.clone(),
            mode: held.want.mode(),
        }
    }

    fn cuts_off(&self, key: PartKey) -> Option<Held> {
        let cuts = self.cuts.lock();
        let cut = cuts
            .iter()
            .find(|cut| cut.file == key.file() && (cut.first..cut.upto).contains(&key.index()))?;
        Some(Held {
            key,
            want: Want::Sole,
            since_ms: cut.since_ms,
        })
    }

    /// What it has of the files that it cuts off, from the first part to before the last.
    pub(crate) fn cuts(&self) -> Vec<std::ops::Range<PartKey>> {
        if self.many.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let cuts = self.cuts.lock();
        let key = |file, index| PartKey::new(file, index);
        let range = |cut: &Cut| key(cut.file, cut.first)..key(cut.file, cut.upto);
        cuts.iter().map(range).collect()
    }

    /// What it holds of a file from a part on.
    pub(crate) fn holds_from(&self, first: PartKey) -> Option<Held> {
        let after = |held: &Held| held.key.file() == first.file() && held.key >= first;
        self.held().into_iter().find(after)
    }

    /// It begins to cut a file off, from a part on; one cut of a file at a time.
    pub(crate) fn begin_cut(&self, first: PartKey, since_ms: u64) {
        self.cuts.lock().push(Cut {
            file: first.file(),
            first: first.index(),
            upto: first.index(),
            since_ms,
        });
        self.many.fetch_add(1, Ordering::AcqRel);
    }

    /// It has come to a part, and has it.
    pub(crate) fn cut_through(&self, part: PartKey) {
        let mut cuts = self.cuts.lock();
        if let Some(cut) = cuts.iter_mut().find(|cut| cut.file == part.file()) {
            cut.upto = part.index().saturating_add(1);
        }
    }

    pub(crate) fn end_cut(&self, file: u32) {
        let mut cuts = self.cuts.lock();
        if let Some(at) = cuts.iter().position(|cut| cut.file == file) {
            cuts.swap_remove(at);
            self.many.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn describe(&self, want: Want, held_for: Duration) -> Holder {
        Holder {
            locker: self.name.clone(),
            made_by: self.made_by.clone(),
            mode: want.mode(),
            held_for,
        }
    }
}

/// All lockers of one store.
#[derive(Debug, Default)]
pub(crate) struct Lockers {
    live: Mutex<BTreeMap<u64, Weak<LockerState>>>,
    next: AtomicU64,
}

impl LockerState {
    /// One that holds no locks, and is none of those that are looked at: it takes room.
    pub(crate) fn apart(name: &str, role: Role) -> Arc<Self> {
        Arc::new(Self {
            id: 0,
            name: name.to_owned(),
            role,
            through_hold: false,
            made_by: String::new(),
            slots: Default::default(),
            more: Mutex::new((0, Vec::new())),
            many: AtomicU64::new(0),
            cuts: Mutex::new(Vec::new()),
            all: Weak::new(),
        })
    }
}

impl Lockers {
    pub(crate) fn make(
        self: &Arc<Self>,
        name: &str,
        role: Role,
        through_hold: bool,
    ) -> Result<Arc<LockerState>> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::InvalidInput {
                what: "locker name",
                value: format!("{} bytes", name.len()),
                limit: format!("at most {MAX_NAME_BYTES} bytes"),
            });
        }
        let mut live = self.live.lock();
        if live.len() >= MAX_LOCKERS {
            return Err(Error::InvalidInput {
                what: "locker",
                value: name.to_owned(),
                limit: format!("at most {MAX_LOCKERS} lockers at one time"),
            });
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let locker = Arc::new(LockerState {
            id,
            name: name.to_owned(),
            role,
            through_hold,
            made_by: who(),
            slots: Default::default(),
            more: Mutex::new((0, Vec::new())),
            many: AtomicU64::new(0),
            cuts: Mutex::new(Vec::new()),
            all: Arc::downgrade(self),
        });
        live.insert(id, Arc::downgrade(&locker));
        Ok(locker)
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<LockerState>> {
        // Upgraded under the lock and dropped after it: dropping the last takes it.
        let live = self.live.lock();
        live.get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn live(&self) -> Vec<Arc<LockerState>> {
        // Upgraded ones are dropped by the caller, after the lock: dropping the last takes it.
        let live = self.live.lock();
        live.values().filter_map(Weak::upgrade).collect()
    }

    /// Who holds a part.
    pub(crate) fn holders(&self, key: PartKey) -> Vec<(Arc<LockerState>, Held)> {
        self.live()
            .into_iter()
            .filter_map(|locker| locker.holds(key).map(|held| (locker, held)))
            .collect()
    }
}

/// The task, else the thread, that calls.
fn who() -> String {
    if let Some(task) = tokio::task::try_id() {
        return format!("task {task}");
    }
    let thread = std::thread::current();
    match thread.name() {
        Some(name) => format!("thread {name:?}"),
        None => format!("{:?}", thread.id()),
    }
}
