//! stub
pub fn key(_: &str) -> Result<(), crate::error::Error> {
    Ok(())
}
pub fn headers(_: &super::ObjectHeaders) -> Result<(), crate::error::Error> {
    Ok(())
}
pub fn object_size(_: u64) -> Result<(), crate::error::Error> {
    Ok(())
}
