//! The remote through the real SDK: scripted answers, a server on loopback, and a wire that breaks.

mod adaptations;
mod checkpoint_crashes;
mod classification;
mod embedded;
mod requests;
mod wire;

#[path = "../support/scripted.rs"]
mod scripted;
