//! Checkpoints: what is in them, who may make them, and what is deleted afterwards.

mod consistency;
mod content;
mod fencing;
mod garbage;
mod line;
mod promises;

#[path = "../support/owners.rs"]
mod owners;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wire.rs"]
mod wire;
