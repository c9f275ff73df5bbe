//! Whom a crash is charged to: pure, for recovery and for whoever looks without recovering.

use crate::journal::{RecoveredNote, RecoveredOwner};

use super::record::{self, Crashes, Started, slot};

/// What the notes on a task say of the crashes at which it was in flight.
#[derive(Debug)]
pub(crate) struct Charge {
    /// The attempt that was under way when the last note was written.
    pub in_flight: Option<Started>,
    /// Crashes that it is charged with, the last one included.
    pub crashes: u32,
    /// What is to be put on record, where the last crash is not on it yet.
    pub new: Option<Crashes>,
    /// It is retried alone: also where it was charged earlier and has not had its turn since.
    pub suspect: bool,
}

impl Charge {
    /// Of the notes on a task. A clean end charges nobody, and what is in quarantine was not
    /// running.
    pub(crate) fn of(owner: &RecoveredOwner, clean: bool, quarantined: bool) -> Self {
        let started = note(owner, slot::STARTED);
        let in_flight = started.and_then(|note| record::decode::<Started>(&note.head));
        let counted = note(owner, slot::CRASHES)
            .and_then(|note| record::decode::<Crashes>(&note.head))
            .unwrap_or_default();
        let mut charge = Self {
            in_flight,
            crashes: counted.count,
            new: None,
            suspect: false,
        };
        let running = started.filter(|_| charge.in_flight.is_some() && !quarantined);
        if let Some(started) = running {
            if !clean && started.location > counted.counted_to {
                charge.crashes = charge.crashes.saturating_add(1);
                charge.new = Some(Crashes {
                    count: charge.crashes,
                    counted_to: started.location,
                });
            }
            charge.suspect = charge.crashes > 0;
        }
        charge
    }
}

/// The note in a slot, if it says something.
pub(crate) fn note(owner: &RecoveredOwner, slot: u8) -> Option<&RecoveredNote> {
    owner
        .notes
        .iter()
        .find(|note| note.slot == slot && !note.head.is_empty())
}
