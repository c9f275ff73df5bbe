//! stub
use super::attempt::Shared;
use crate::queue::TaskJob;
use crate::queue::body::Source;
use crate::remote::*;
pub(super) async fn upload(
    _: &Shared,
    _: &mut TaskJob,
    _: &Source,
    _: Crc64,
    _: Option<WriteCondition>,
    _: &str,
) -> Result<ObjectInfo, RemoteError> {
    Err(RemoteError::transient("x"))
}
