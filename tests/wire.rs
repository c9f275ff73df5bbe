//! The wire: the real remote and the real queue over real sockets, on which things go wrong.
//!
//! Real sockets, so real time: deadlines are short, and every wait has one.
//! `S3_WRITEBACK_SLOW_WIRE=1` runs the slow link of D16 at its full figures (two minutes).

#[path = "wire/idle.rs"]
mod idle;
#[path = "wire/killed.rs"]
mod killed;
#[path = "wire/multipart.rs"]
mod multipart;
#[path = "wire/once.rs"]
mod once;
#[path = "wire/slow.rs"]
mod slow;
#[path = "wire/stage.rs"]
mod stage;
#[path = "wire/tls.rs"]
mod tls;
