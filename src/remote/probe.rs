//! stub
#[derive(Debug, Clone, serde::Serialize)]
pub struct Capabilities {}
impl Capabilities {
    pub fn honours_conditions(&self) -> bool {
        true
    }
}
pub async fn probe(
    _: &dyn super::Remote,
    _: &str,
    _: std::time::Duration,
) -> Result<Capabilities, super::RemoteError> {
    Ok(Capabilities {})
}
