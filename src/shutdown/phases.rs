//! The phases of a shutdown, and how one deadline is split between them.
//!
//! Owns: the order of phases and the arithmetic of deadlines, as pure functions. Does not own:
//! what happens in a phase.

use std::time::Duration;

use crate::phase::Phase;

/// How long after its start each phase must be over, for a shutdown that may take `within` in
/// all. Time that a phase does not use goes to those that follow.
///
/// | phase | is over after | because |
/// |---|---|---|
/// | Quiescing | a quarter | holders were told; uploads go on meanwhile |
/// | Checkpointing | three quarters | the last line is drawn, and all that it lists goes up |
/// | Draining | all but the two that follow | this is what the time is for |
/// | Stopping | all but sealing's, and [`grace`] after it began | a tenth, at most 2 s: requests in flight end or are given up |
/// | Sealing | all | a tenth, at most 2 s: a sync of the journal |
#[must_use]
pub(crate) fn over_after(phase: Phase, within: Duration) -> Duration {
    let tail = grace(within);
    match phase {
        Phase::Running => Duration::ZERO,
        Phase::Quiescing => within / 4,
        Phase::Checkpointing => within / 4 * 3,
        Phase::Draining => within.saturating_sub(2 * tail),
        Phase::Stopping => within.saturating_sub(tail),
        Phase::Sealing | Phase::Closed => within,
    }
}

/// How long requests in flight are waited for once no new one is made, however early that is:
/// the time that draining did not use is not spent on a server that does not answer.
#[must_use]
pub(crate) fn grace(within: Duration) -> Duration {
    (within / 10).min(Duration::from_secs(2))
}

/// How long workers that were cut off are waited for: they come back at once, unless the local
/// disk holds them up, and what is left is for sealing.
#[must_use]
pub(crate) fn return_grace(within: Duration) -> Duration {
    grace(within) / 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_grow_and_end_at_the_deadline(ms in 0u64..100_000_000) {
            let within = Duration::from_millis(ms);
            let phases = [
                Phase::Quiescing,
                Phase::Checkpointing,
                Phase::Draining,
                Phase::Stopping,
                Phase::Sealing,
            ];
            let ends: Vec<_> = phases.iter().map(|phase| over_after(*phase, within)).collect();
            prop_assert!(ends.is_sorted());
            prop_assert_eq!(ends[4], within);
            prop_assert!(ends[2] >= within * 3 / 4);
        }
    }
}
