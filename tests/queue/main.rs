//! The queue as an engine sees it, over a simulated S3 and file system, on paused time.
//!
//! The scenarios are named by the rows of `docs/scenarios.md`; each guard was taken out once to see
//! its test fail (`docs/guards`).

mod backlog;
mod bad_input;
mod bodies;
mod corners;
mod crash;
mod error_text;
mod full_disk;
mod inspect;
mod keys;
mod lifecycle;
mod order;
mod shutdown;
mod traffic;

#[path = "../support/liar.rs"]
mod liar;
#[path = "../support/lives.rs"]
mod lives;
#[path = "../support/logged.rs"]
mod logged;
#[path = "../support/mod.rs"]
mod support;
