//! A bounded, crash-safe write-back layer between a storage engine and S3.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
    )
)]

pub mod checkpoint;
pub mod config;
mod crash_point;
pub mod error;
mod health;
pub mod inspect;
pub mod io;
pub mod journal;
mod metrics;
#[cfg(mutants)]
pub mod mutant;
#[cfg(not(mutants))]
mod mutant;
pub mod op;
mod panics;
pub mod part;
mod part_store;
mod phase;
pub mod queue;
mod random;
pub mod remote;
mod runtime;
pub mod shutdown;
mod sync;
pub mod time;
mod upload_queue;
mod watched;
mod worker;

#[cfg(feature = "simulated")]
pub mod testing;

pub use checkpoint::{
    Checkpoint, CheckpointSnapshot, GcReport, ReadOnly, Restore, RestoreProgress, Restored,
    VerifyReport,
};
pub use config::Config;
pub use error::{Error, Result};
pub use health::Health;
pub use inspect::{Inspection, inspect};
pub use metrics::Snapshot;
pub use op::{Op, Operation};
pub use part::FailingPart;
pub use part::config::{Fencing, StoreConfig};
pub use part::id::{FileId, PartId};
pub use part::locker::{Holder, Role};
pub use part::state::Mode;
pub use part_store::{
    CheckpointOptions, File, FileBy, FileOptions, Guard, GuardSet, ListedCheckpoint, Lock,
    LockFuture, Locker, OwnedGuard, PartStore, Prefix, StoreBuilder, StoreSnapshot,
};
pub use phase::Phase;
pub use queue::receipt::{Receipt, Settlement};
pub use queue::task::{Body, Cause, Condition, KeyPolicy, Lane, Options, TaskId};
pub use queue::{Exported, PastQuarantine, PauseWhat, PendingTask, QuarantinedTask};
pub use runtime::RunOn;
pub use shutdown::{FailingTask, ShutdownHold, ShutdownReport};
pub use upload_queue::{Builder, UploadQueue};
pub use worker::{Parked, TrafficSnapshot};

/// The code of the README, compiled.
#[cfg(all(doctest, feature = "s3"))]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
