//! Failing without falling: quarantine and its caps, loops of crashes, pile-ups, memory.

mod bounds;
mod inspect;
mod loops;
mod points;
mod quarantine;
mod recovery;

#[path = "../support/bucket.rs"]
mod bucket;
#[path = "../support/child.rs"]
mod child;
#[path = "../support/lives.rs"]
mod lives;
#[path = "../support/logged.rs"]
mod logged;
#[path = "../support/mod.rs"]
mod support;
