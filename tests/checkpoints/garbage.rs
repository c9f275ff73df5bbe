//! What is deleted from a prefix, and what never is.
//!
//! Rows of the scenario table are named where they are kept.

mod life;
mod orphans;
mod pins;
mod retention;
mod rights;
mod slots;
mod sparse;
mod unknown;
