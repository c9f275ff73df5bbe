//! Who owns a prefix: of all who come, one; and whoever did before changes nothing any more.
//!
//! Rows of the scenario table are named where they are kept.

mod commits;
mod outage;
mod refused;
mod restarts;
mod restores;
mod takeover;
