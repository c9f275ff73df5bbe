//! What the embedded server does wrong, and when.

use std::time::Duration;

use s3_writeback::testing::{Action, FaultPlan, FaultRule, Operation};
use tokio::task::JoinHandle;

use crate::options::{EngineKind, Fault};

/// How often `--fault errors` strikes.
const EVERY: Duration = Duration::from_millis(250);
const SLOW: Duration = Duration::from_millis(200);
/// How long the writers may take to owe S3 something.
const OWES_WITHIN: Duration = Duration::from_secs(3);
const ASKS_EVERY: Duration = Duration::from_millis(5);

/// The faults of a run, as long as it lives.
pub struct Weather {
    plan: FaultPlan,
    changes: Option<JoinHandle<()>>,
}

impl Weather {
    /// Starts what goes wrong while rows are inserted for `inserting`.
    pub fn start(plan: FaultPlan, fault: Fault, engine: EngineKind, inserting: Duration) -> Self {
        let changes = match fault {
            Fault::None | Fault::HangAtShutdown => None,
            Fault::Slow => {
                plan.add(FaultRule::new(Action::Delay(SLOW)).on(Operation::PutObject));
                None
            }
            Fault::Errors => Some(tokio::spawn(errors(plan.clone(), used(engine)))),
            Fault::Hang => Some(tokio::spawn(hang(plan.clone(), inserting / 3))),
        };
        Self { plan, changes }
    }

    /// Called just before shutdown begins. Where S3 is to hang, it is owed something first: what
    /// `acknowledged` counts has grown by `more` since S3 last took anything, or can grow no more.
    pub async fn shutdown_begins(&self, fault: Fault, acknowledged: impl Fn() -> u64, more: u64) {
        if fault != Fault::HangAtShutdown {
            return;
        }
        // Loads still work, so that the writers go on.
        for uploads in [Operation::PutObject, Operation::UploadPart] {
            self.plan.add(FaultRule::hang().on(uploads));
        }
        let enough = acknowledged().saturating_add(more);
        let grown = async {
            while acknowledged() < enough {
                tokio::time::sleep(ASKS_EVERY).await;
            }
        };
        // Writers that found all room taken by what is not in S3 are stopped by that.
        let _ = tokio::time::timeout(OWES_WITHIN, grown).await;
        self.plan.hang_all();
    }

    /// S3 is well from here on.
    pub fn clear(&mut self) {
        if let Some(changes) = self.changes.take() {
            changes.abort();
        }
        self.plan.clear();
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The requests that an engine makes all the time.
const fn used(engine: EngineKind) -> &'static [Operation] {
    match engine {
        EngineKind::Log => &[Operation::PutObject],
        EngineKind::Page => &[Operation::PutObject, Operation::GetObject],
    }
}

/// One fault at a time, of one kind after the other, of each kind on each operation. Never ends:
/// it goes with its handle.
async fn errors(plan: FaultPlan, operations: &'static [Operation]) {
    let kinds = [
        FaultRule::slow_down(),
        FaultRule::internal_error(),
        FaultRule::reset(),
        FaultRule::reset().after_effect(),
    ];
    let mut tick = tokio::time::interval(EVERY);
    let mut last = None;
    let mut every = Vec::new();
    for kind in kinds {
        every.extend(operations.iter().map(|on| kind.clone().on(*on)));
    }
    for kind in every.into_iter().cycle() {
        tick.tick().await;
        // A rule that met no request meanwhile must not pile up.
        last.map(|rule| plan.remove(rule));
        last = Some(plan.add(kind.once()));
    }
}

async fn hang(plan: FaultPlan, third: Duration) {
    tokio::time::sleep(third).await;
    let rule = plan.hang_all();
    tokio::time::sleep(third).await;
    plan.remove(rule);
}
