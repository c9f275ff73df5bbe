//! Parts: files cut into parts that can be locked, read, written, uploaded, loaded and evicted.

pub(crate) mod detector;
pub mod id;
#[cfg(all(test, shuttle))]
mod interleavings;
pub(crate) mod lock;
pub mod locker;
#[cfg(all(test, loom_model))]
mod models;
pub mod state;
pub(crate) mod wait;
