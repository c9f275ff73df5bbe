//! stub
#[derive(Debug)]
pub struct MultipartUploadState {}
impl MultipartUploadState {
    pub fn upload_id(&self) -> Option<&str> {
        None
    }
}
