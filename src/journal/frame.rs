//! stub
pub(crate) const HEADER_BYTES: usize = 56;
