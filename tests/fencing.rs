//! Who owns a prefix: of all who come, one; and whoever did before changes nothing any more.
//!
//! Rows of the scenario table are named where they are kept.

mod support;

#[path = "support/owners.rs"]
mod owners;
#[path = "support/wire.rs"]
mod wire;

#[path = "fencing/commits.rs"]
mod commits;
#[path = "fencing/outage.rs"]
mod outage;
#[path = "fencing/refused.rs"]
mod refused;
#[path = "fencing/restarts.rs"]
mod restarts;
#[path = "fencing/restores.rs"]
mod restores;
#[path = "fencing/takeover.rs"]
mod takeover;
