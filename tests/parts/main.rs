//! Parts of files: locks, loads, room, what survives, and what is promised of it.

mod corners;
mod crash;
mod faults;
mod files;
mod late;
mod locks;
mod order;
mod promises;
mod random;
mod room;
mod threads;
mod upkeep;

#[path = "../support/how.rs"]
mod how;
#[path = "../support/mod.rs"]
mod support;
