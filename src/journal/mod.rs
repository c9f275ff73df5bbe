//! The append-only, checksummed local log.
pub mod fs;
