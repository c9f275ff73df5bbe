//! Failing without falling: quarantine and its caps, loops of crashes, pile-ups, memory.

#[path = "failing/bounds.rs"]
mod bounds;
#[path = "support/lives.rs"]
mod lives;
#[path = "support/logged.rs"]
mod logged;
#[path = "failing/quarantine.rs"]
mod quarantine;
mod support;
