//! A bounded, crash-safe write-back layer between a storage engine and S3.
#![forbid(unsafe_code)]

pub mod journal;
pub mod remote;

pub mod io;
pub mod time;

#[cfg(feature = "testing")]
pub mod testing;
