//! Where a queue is between open and closed.
//!
//! Owns: the names of the phases and their order. Known to every layer; which one it is, and for
//! how long, is decided by [`crate::shutdown`].

use serde::{Deserialize, Serialize};

/// Where a queue is between open and closed. Phases go forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Everything is taken.
    Running,
    /// Nothing new is taken, except through a hold that was taken before.
    Quiescing,
    /// Writing has ended: the last checkpoint is made.
    Checkpointing,
    /// Lanes run empty.
    Draining,
    /// No new request to S3; those in flight get a short grace.
    Stopping,
    /// No request to S3: the journal is synced and marked clean.
    Sealing,
    /// Every receipt is settled, every task joined, every gauge zero.
    Closed,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Quiescing => "quiescing",
            Self::Checkpointing => "checkpointing",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Sealing => "sealing",
            Self::Closed => "closed",
        })
    }
}
