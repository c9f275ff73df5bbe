//! For tests of this crate and of engines that link it (feature `testing`).
pub mod fs;
