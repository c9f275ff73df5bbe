//! Shutdown: ordered, bounded and honest.
//!
//! Owns: the phases, the one deadline and the report. Does not own: what the layers do: it knows
//! them only by the verbs of [`Layers`].
//!
//! 1. Phases go forward only, and one coordinator walks them: whoever calls joins it.
//! 2. No phase is waited for past its share of the deadline; what is left is reported.
//! 3. Every caller gets the same report, however many there are and however often they ask.
//! 4. The coordinator waits for no one who waits for it: it holds no permit, no lock and no slot.
//! 5. A layer that panics ends the walk, not the wait: everyone gets a report that says so.

mod hold;
mod phases;
mod report;
mod watchdog;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mutant::{Mutant, is};
use crate::panics::text_of;
use crate::watched::Watched;

pub use crate::phase::Phase;
pub(crate) use hold::Holds;
pub use hold::ShutdownHold;
pub use report::{FailingTask, MAX_FAILING, ShutdownReport};
pub(crate) use watchdog::Watchdog;

/// The longest deadline: what is above it is as good as none, and no instant is that far away.
const MAX_WITHIN: Duration = Duration::from_secs(365 * 24 * 3600);

/// The verbs by which shutdown knows the layers under it.
pub(crate) trait Layers: Send + Sync + 'static {
    /// Lets only holders of holds in.
    fn close_to_all_but_holders(&self, phase: Phase);
    /// Lets nobody in.
    fn close(&self, phase: Phase);
    /// Makes the last checkpoint, if there are checkpoints.
    fn checkpointed(&self, deadline: Instant) -> BoxFuture<'_, Result<Option<u64>, String>>;
    /// Waits until nothing is left that can move by itself before `deadline`.
    fn drained(&self, deadline: Instant) -> BoxFuture<'_, ()>;
    /// No new request; waits until those in flight have come back.
    fn stop(&self) -> BoxFuture<'_, ()>;
    /// Cuts off what is in flight.
    fn cut(&self);
    /// Makes all of it durable and marks it clean.
    fn seal(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Settles every receipt; called once.
    fn settle(&self, sealed: Result<(), String>) -> Left;
    /// Tasks done and requests given up so far.
    fn done(&self) -> Done;
}

/// What was left when the layers were settled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left {
    pub dirty_parts: u64,
    pub stranded: u64,
    pub failing_parts: Vec<crate::part::FailingPart>,
    pub failing: Vec<FailingTask>,
    pub deferred: u64,
    pub undetermined: u64,
    pub quarantined: u64,
}

/// Counts since open.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub uploaded: u64,
    pub unknown: u64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    within: Option<Duration>,
    started: Option<Instant>,
    report: Option<Arc<ShutdownReport>>,
}

/// The shutdown of one queue.
#[derive(Debug)]
pub(crate) struct Shutdown {
    state: Watched<State>,
    token: CancellationToken,
    hurry: CancellationToken,
    pub(crate) holds: Arc<Holds>,
    default_within: Duration,
}

impl Shutdown {
    /// `token` starts it; so does [`Shutdown::begin`].
    pub(crate) fn new(token: CancellationToken, default_within: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Watched::new(State {
                phase: Phase::Running,
                within: None,
                started: None,
                report: None,
            }),
            token,
            hurry: CancellationToken::new(),
            holds: Holds::new(),
            default_within,
        })
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state.read(|state| state.phase)
    }

    pub(crate) fn report(&self) -> Option<Arc<ShutdownReport>> {
        self.state.read(|state| state.report.clone())
    }

    /// Starts it, or joins one that is under way; the earlier of two deadlines counts.
    pub(crate) fn begin(&self, within: Duration) {
        let within = within.min(MAX_WITHIN);
        self.state.change(|state| {
            let running = state
                .started
                .map_or(Duration::ZERO, |started| started.elapsed());
            let asked = running.saturating_add(within);
            state.within = Some(state.within.map_or(asked, |before| before.min(asked)));
        });
        self.token.cancel();
    }

    /// Moves to `Stopping` at once: what a second signal calls.
    pub(crate) fn hurry(&self) {
        self.hurry.cancel();
        self.token.cancel();
    }

    /// Waits for the report.
    pub(crate) async fn done(&self) -> Arc<ShutdownReport> {
        self.state.until(|state| state.report.clone()).await
    }

    /// Waits for the token, then walks the phases. Run once, as a task of its own.
    pub(crate) async fn coordinate(&self, layers: &dyn Layers) {
        let walk = AssertUnwindSafe(self.walk(layers)).catch_unwind().await;
        if let Err(panic) = walk {
            self.give_up(layers, &format!("shutdown panicked: {}", text_of(&*panic)));
        }
    }

    /// The walk cannot go on: no new request, nothing sealed, everyone told.
    fn give_up(&self, layers: &dyn Layers, cause: &str) {
        tracing::error!(cause, "shutdown is given up");
        let (started, phase) = self
            .state
            .read(|state| (state.started.unwrap_or_else(Instant::now), state.phase));
        // Any of these may be what panicked; the others are still owed.
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            layers.close(phase);
            layers.cut();
            drop(layers.stop());
        }));
        let settled = catch_unwind(AssertUnwindSafe(|| {
            (layers.settle(Err(cause.to_owned())), layers.done())
        }));
        for panic in [stopped.as_ref().err(), settled.as_ref().err()]
            .into_iter()
            .flatten()
        {
            tracing::error!(panic = %text_of(&**panic), "nor does it end well");
        }
        let (left, done) = settled.unwrap_or_default();
        self.report_end(ShutdownReport {
            within: self.within(),
            took: started.elapsed(),
            phases: BTreeMap::new(),
            uploaded: done.uploaded,
            deferred: left.deferred,
            unknown: done.unknown,
            quarantined: left.quarantined,
            undetermined: left.undetermined,
            failing: left.failing,
            dirty_parts: left.dirty_parts,
            failing_parts: left.failing_parts,
            checkpoint: None,
            checkpoint_error: None,
            stranded: left.stranded,
            late_holds: Vec::new(),
            sealed: false,
            seal_error: Some(cause.to_owned()),
        });
    }

    fn report_end(&self, report: ShutdownReport) {
        tracing::info!(took = ?report.took, deferred = report.deferred, sealed = report.sealed, "closed");
        self.state.change(|state| {
            state.phase = Phase::Closed;
            state.report = Some(Arc::new(report));
        });
    }

    async fn walk(&self, layers: &dyn Layers) {
        self.token.cancelled().await;
        let started = Instant::now();
        self.state.change(|state| {
            state.started = Some(started);
            state.within.get_or_insert(self.default_within);
        });
        let before = layers.done();
        let mut walk = Walk {
            shutdown: self,
            started,
            phases: BTreeMap::new(),
        };

        let late_holds = walk
            .phase(Phase::Quiescing, async {
                layers.close_to_all_but_holders(Phase::Quiescing);
                self.holds.close();
                let released = self.holds.released();
                if walk_until(self, started, Phase::Quiescing, true, released)
                    .await
                    .is_some()
                {
                    return Vec::new();
                }
                let held = self.holds.held();
                held.into_iter()
                    .map(|(name, since)| (name, since.elapsed()))
                    .collect()
            })
            .await;
        let checkpoint = walk
            .phase(Phase::Checkpointing, async {
                layers.close(Phase::Checkpointing);
                let until = started + self.over_after(Phase::Checkpointing);
                let made = layers.checkpointed(until);
                walk_until(self, started, Phase::Checkpointing, true, made)
                    .await
                    .unwrap_or_else(|| Err("it was not committed in time".to_owned()))
            })
            .await;
        walk.phase(Phase::Draining, async {
            layers.close(Phase::Draining);
            let until = started + self.over_after(Phase::Draining);
            let drained = layers.drained(until);
            walk_until(self, started, Phase::Draining, true, drained).await;
        })
        .await;
        walk.phase(Phase::Stopping, async {
            let grace = tokio::time::sleep(phases::grace(self.within()));
            let stopped = walk_until(self, started, Phase::Stopping, false, async {
                tokio::select! {
                    biased;
                    () = layers.stop() => true,
                    () = grace => false,
                }
            })
            .await;
            if stopped != Some(true) {
                layers.cut();
                // Cut off, they come back without waiting for anything outside. One that is held
                // up by the local disk sends nothing any more, and is not waited for.
                let rest = phases::return_grace(self.within());
                let back = walk_until(self, started, Phase::Sealing, false, layers.stop());
                if tokio::time::timeout(rest, back).await.is_err() {
                    tracing::warn!("a worker has not come back from the local disk");
                }
            }
        })
        .await;
        let sealed = walk
            .phase(Phase::Sealing, async {
                walk_until(self, started, Phase::Sealing, false, layers.seal())
                    .await
                    .unwrap_or_else(|| Err("the disk did not answer in time".to_owned()))
            })
            .await;
        let left = layers.settle(sealed.clone());
        let after = layers.done();
        self.report_end(ShutdownReport {
            within: self.within(),
            took: started.elapsed(),
            phases: walk.phases,
            uploaded: after.uploaded - before.uploaded,
            deferred: left.deferred,
            unknown: after.unknown - before.unknown,
            quarantined: left.quarantined,
            undetermined: left.undetermined,
            failing: left.failing,
            dirty_parts: left.dirty_parts,
            failing_parts: left.failing_parts,
            checkpoint: checkpoint.clone().ok().flatten(),
            checkpoint_error: checkpoint.err(),
            stranded: left.stranded,
            late_holds,
            sealed: sealed.is_ok(),
            seal_error: sealed.err(),
        });
    }

    fn within(&self) -> Duration {
        self.state
            .read(|state| state.within)
            .unwrap_or(self.default_within)
    }

    fn over_after(&self, phase: Phase) -> Duration {
        phases::over_after(phase, self.within())
    }
}

/// Goes with the coordinator's task: dropped before everyone has been told, because the runtime
/// that drives it has ended, it tells them.
pub(crate) struct Unfinished {
    pub shutdown: Arc<Shutdown>,
    pub layers: Arc<dyn Layers>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.shutdown.report().is_none() {
            let cause = "the runtime that drives the queue has ended";
            self.shutdown.give_up(&*self.layers, cause);
        }
    }
}

struct Walk<'a> {
    shutdown: &'a Shutdown,
    started: Instant,
    phases: BTreeMap<Phase, Duration>,
}

impl Walk<'_> {
    async fn phase<T>(&mut self, phase: Phase, work: impl Future<Output = T>) -> T {
        self.shutdown.state.change(|state| {
            assert!(state.phase < phase, "phases go forward only");
            state.phase = phase;
        });
        tracing::info!(%phase, after = ?self.started.elapsed(), "shutdown");
        let entered = Instant::now();
        let result = work.await;
        self.phases.insert(phase, entered.elapsed());
        result
    }
}

/// Waits for `work` until the share of `phase` is over, or somebody is in a hurry (where that cuts
/// this phase short). The deadline may be moved forward meanwhile.
async fn walk_until<T>(
    shutdown: &Shutdown,
    started: Instant,
    phase: Phase,
    hurries: bool,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let within = shutdown.within();
        let until = started + phases::over_after(phase, within);
        let moved = shutdown
            .state
            .until(|state| (state.within != Some(within)).then_some(()));
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            () = shutdown.hurry.cancelled(), if hurries => return None,
            () = tokio::time::sleep_until(until), if !is(Mutant::PhaseNeverEnds) => return None,
            () = moved => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics in one of its verbs.
    #[derive(Default)]
    struct Fragile {
        in_drained: bool,
        in_settle: bool,
        closed: std::sync::atomic::AtomicBool,
    }

    impl Layers for Fragile {
        fn close_to_all_but_holders(&self, _: Phase) {}

        fn close(&self, _: Phase) {
            self.closed
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }

        fn checkpointed(&self, _: Instant) -> BoxFuture<'_, Result<Option<u64>, String>> {
            Box::pin(async { Ok(None) })
        }

        fn drained(&self, _: Instant) -> BoxFuture<'_, ()> {
            assert!(!self.in_drained, "in drained");
            Box::pin(async {})
        }

        fn stop(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn cut(&self) {}

        fn seal(&self) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }

        fn settle(&self, _: Result<(), String>) -> Left {
            assert!(!self.in_settle, "in settle");
            Left {
                deferred: 3,
                ..Left::default()
            }
        }

        fn done(&self) -> Done {
            Done::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_panics_everyone_gets_a_report() {
        for (in_drained, in_settle) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let layers = Fragile {
                in_drained,
                in_settle,
                ..Fragile::default()
            };
            let shutdown = Shutdown::new(CancellationToken::new(), Duration::from_secs(9));
            let waits = shutdown.done();
            shutdown.begin(Duration::from_secs(5));
            shutdown.coordinate(&layers).await;
            let report = waits.now_or_never().expect("everyone is told");
            assert_eq!(report.sealed, !in_drained && !in_settle);
            assert_eq!(report.deferred, if in_settle { 0 } else { 3 });
            let error = report.seal_error.clone().unwrap_or_default();
            assert_eq!(error.contains("in drained"), in_drained, "{error}");
            assert_eq!(
                error.contains("in settle"),
                in_settle && !in_drained,
                "{error}"
            );
            assert_eq!(shutdown.phase(), Phase::Closed);
            assert!(layers.closed.load(std::sync::atomic::Ordering::Relaxed));
        }
    }
}
