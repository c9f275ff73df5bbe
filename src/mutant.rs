//! Deliberate breaks, one at a time: what the tests are to notice.
//!
//! Owns: their names, and which of them is on. Does not own: the guards that each takes out, which
//! say so where they are. Without `--cfg mutants` none can be: then [`is`] is a constant.

/// A guard that is taken out; the number is the invariant's (`docs/testing-mutants.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// 1: an attempt at a task, a load or an image has no deadline.
    AttemptNeverEnds,
    /// 1: a request of the checkpoint layer has no deadline.
    RequestNeverEnds,
    /// 1: a caller's deadline does not end its wait.
    WaitNeverEnds,
    /// 1: a phase of shutdown is waited for past its share.
    PhaseNeverEnds,
    /// 2: who waits for room is not told that there will be none any more.
    ShutForgetsWaiters,
    /// 2: who waits for a load is not told that it failed.
    FailedLoadTellsNobody,
    /// 2: who waits for a part lock is not woken when it is handed on to him.
    LockHandedOnInSilence,
    /// 2: who waits for admission is not woken when the door closes.
    DoorClosesInSilence,
    /// 2: who waits for a task's end is not woken by it.
    EndWakesNobody,
    /// 2: who waits for an eviction to be over is not woken.
    EvictedInSilence,
    /// 2: who waits for a task to be durable is not woken.
    DurableWakesNobody,
    /// 3: what is left at the end of a shutdown is not told so.
    RestNotTold,
    /// 3: a task that was superseded is never told its end.
    SupersededNotTold,
    /// 4: who stops waiting for admission keeps its place, and is given the room.
    PlaceInQueueKept,
    /// 4: who stops waiting for room keeps its place.
    PlaceKept,
    /// 4: who stops waiting for a part lock keeps its place, and is given the lock.
    PlaceInLineKept,
    /// 4: a load that nobody wants any more counts as running.
    LoadKept,
    /// 5: foreground takes the room that is kept for checkpointers.
    ReserveLent,
    /// 5: a checkpointer waits for room behind foreground.
    CheckpointerStandsInLine,
    /// 5: a checkpointer is let in no more when shutdown begins.
    QuiescingStopsCheckpointer,
    /// 6: sync does not wait for its records.
    SyncBeforeJournal,
    /// 6: sync does not sync the bytes.
    SyncWithoutFsync,
    /// 6: the journal tells records durable that it did not sync.
    DurableBeforeFdatasync,
    /// 7: a checkpoint is committed before its pages are in S3.
    HeadBeforePacks,
    /// 7: a checkpoint is committed before its manifest is in S3.
    HeadBeforeManifest,
    /// 7: a checkpoint names images that are on their way.
    HeadBeforeImages,
    /// 8: what headers name is garbage.
    GcForgetsHeaders,
    /// 8: what the line of a checkpoint in the making names is garbage.
    GcForgetsLine,
    /// 8: what only an earlier listed checkpoint names is garbage.
    GcForgetsOlder,
    /// 8: what is on its way is garbage.
    GcForgetsInFlight,
    /// 8: what only a pinned checkpoint names is garbage.
    GcForgetsPins,
    /// 9: head is changed whatever was found there.
    CommitUnconditional,
    /// 9: whoever looks at head does not mind another's epoch.
    LookSeesNoOther,
    /// 9: who changes head, or deletes, does not mind whose it is.
    OwnerNotChecked,
    /// 10: a write does not wait for what is dirty to be less.
    DirtyRoomNotWaitedFor,
    /// 10: a load does not wait for room in the cache.
    CacheRoomNotWaitedFor,
    /// 10: images on their way have no bound.
    ImageRoomNotWaitedFor,
    /// 10: the queue has no bound.
    AdmissionNotWaitedFor,
}

/// Whether this guard is taken out.
#[cfg(not(mutants))]
#[inline(always)]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}

#[cfg(mutants)]
mod on {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Mutant;

    /// The one that is on, and one more; 0 for none.
    static ON: AtomicUsize = AtomicUsize::new(0);

    /// Whether this guard is taken out.
    pub(crate) fn is(mutant: Mutant) -> bool {
        ON.load(Ordering::Relaxed) == mutant as usize + 1
    }

    /// Takes out this guard, or none, in all of the process.
    pub fn set(mutant: Option<Mutant>) {
        let number = mutant.map_or(0, |mutant| mutant as usize + 1);
        ON.store(number, Ordering::Relaxed);
    }
}

#[cfg(mutants)]
pub(crate) use on::is;
#[cfg(mutants)]
pub use on::set;

#[cfg(mutants)]
impl Mutant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::AttemptNeverEnds,
        Self::RequestNeverEnds,
        Self::WaitNeverEnds,
        Self::PhaseNeverEnds,
        Self::ShutForgetsWaiters,
        Self::FailedLoadTellsNobody,
        Self::LockHandedOnInSilence,
        Self::DoorClosesInSilence,
        Self::EndWakesNobody,
        Self::EvictedInSilence,
        Self::DurableWakesNobody,
        Self::RestNotTold,
        Self::SupersededNotTold,
        Self::PlaceInQueueKept,
        Self::PlaceKept,
        Self::PlaceInLineKept,
        Self::LoadKept,
        Self::ReserveLent,
        Self::CheckpointerStandsInLine,
        Self::QuiescingStopsCheckpointer,
        Self::SyncBeforeJournal,
        Self::SyncWithoutFsync,
        Self::DurableBeforeFdatasync,
        Self::HeadBeforePacks,
        Self::HeadBeforeManifest,
        Self::HeadBeforeImages,
        Self::GcForgetsHeaders,
        Self::GcForgetsLine,
        Self::GcForgetsOlder,
        Self::GcForgetsInFlight,
        Self::GcForgetsPins,
        Self::CommitUnconditional,
        Self::LookSeesNoOther,
        Self::OwnerNotChecked,
        Self::DirtyRoomNotWaitedFor,
        Self::CacheRoomNotWaitedFor,
        Self::ImageRoomNotWaitedFor,
        Self::AdmissionNotWaitedFor,
    ];
}
