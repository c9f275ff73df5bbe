//! The wire: the real remote and the real queue over real sockets, on which things go wrong.
//!
//! Real sockets, so real time: deadlines are short, and every wait has one.
//! `S3_WRITEBACK_SLOW_WIRE=1` runs the slow link of D16 at its full figures (two minutes).

mod idle;
mod killed;
mod multipart;
mod once;
mod slow;
mod stage;
mod tls;
