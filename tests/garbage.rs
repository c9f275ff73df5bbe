//! What is deleted from a prefix, and what never is.
//!
//! Rows of the scenario table are named where they are kept.

mod support;

#[path = "support/owners.rs"]
mod owners;
#[path = "support/wire.rs"]
mod wire;

#[path = "garbage/life.rs"]
mod life;
#[path = "garbage/orphans.rs"]
mod orphans;
#[path = "garbage/pins.rs"]
mod pins;
#[path = "garbage/retention.rs"]
mod retention;
#[path = "garbage/rights.rs"]
mod rights;
#[path = "garbage/slots.rs"]
mod slots;
#[path = "garbage/sparse.rs"]
mod sparse;
#[path = "garbage/unknown.rs"]
mod unknown;
