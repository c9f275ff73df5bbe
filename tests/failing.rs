//! Failing without falling: quarantine and its caps, loops of crashes, pile-ups, memory.

#[path = "failing/bounds.rs"]
mod bounds;
#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/child.rs"]
mod child;
#[path = "support/lives.rs"]
mod lives;
#[path = "support/logged.rs"]
mod logged;
#[path = "failing/loops.rs"]
mod loops;
#[path = "failing/points.rs"]
mod points;
#[path = "failing/quarantine.rs"]
mod quarantine;
#[path = "failing/recovery.rs"]
mod recovery;
mod support;
