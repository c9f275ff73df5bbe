//! C13: a directory is looked at without opening it, and without changing it: beside its process,
//! after one that crashes in a loop, and of a part store.

#[path = "support/lives.rs"]
mod lives;
#[path = "inspect/process.rs"]
mod process;
#[path = "inspect/simulated.rs"]
mod simulated;
mod support;
