//! What is asked beyond conditions, by a plain client: none of it decides whether fenced mode is
//! safe.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use s3_writeback::remote::{Crc64, ObjectHeaders, PutRequest, Remote as _, S3Remote};

use crate::report::{Latency, Multipart, Spread};

/// How many requests latency is measured over.
const ROUNDS: usize = 20;
const BODY: &[u8] = b"the probe's own bytes";

/// The algorithms S3 knows, with a checksum of each that is of other bytes.
const ALGORITHMS: [(ChecksumAlgorithm, &str); 5] = [
    (ChecksumAlgorithm::Crc32, "AAAAAA=="),
    (ChecksumAlgorithm::Crc32C, "AAAAAA=="),
    (ChecksumAlgorithm::Crc64Nvme, "AAAAAAAAAAA="),
    (ChecksumAlgorithm::Sha1, "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    (
        ChecksumAlgorithm::Sha256,
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ),
];

pub struct More {
    pub plain: Client,
    pub bucket: String,
    pub prefix: String,
}

/// What a server said, short.
fn said<E: ProvideErrorMetadata>(error: &SdkError<E>) -> String {
    let status = error
        .raw_response()
        .map(|response| response.status().as_u16());
    match (error.code(), status) {
        (Some(code), Some(status)) => format!("{status} {code}"),
        (None, Some(status)) => status.to_string(),
        _ => "no answer".to_owned(),
    }
}

impl More {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// By algorithm: a right checksum, and a wrong one.
    pub async fn checksums(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (algorithm, wrong) in ALGORITHMS {
            let key = self.key(algorithm.as_str());
            let put = || {
                let put = self.plain.put_object().bucket(&self.bucket).key(&key);
                put.body(ByteStream::from_static(BODY))
            };
            let right = put().checksum_algorithm(algorithm.clone()).send().await;
            let wrong = match algorithm {
                ChecksumAlgorithm::Crc32 => put().checksum_crc32(wrong),
                ChecksumAlgorithm::Crc32C => put().checksum_crc32_c(wrong),
                ChecksumAlgorithm::Sha1 => put().checksum_sha1(wrong),
                ChecksumAlgorithm::Sha256 => put().checksum_sha256(wrong),
                _ => put().checksum_crc64_nvme(wrong),
            };
            let verdict = match right {
                Err(error) => format!("refused: {}", said(&error)),
                Ok(_) => match wrong.send().await {
                    Ok(_) => "taken, not verified".to_owned(),
                    Err(error) => format!("verified ({})", said(&error)),
                },
            };
            found.push((algorithm.as_str().to_owned(), verdict));
        }
        found
    }

    /// A checksum behind the body: `aws-chunked`. The crate never sends one.
    pub async fn trailers(&self) -> String {
        let body = SdkBody::from_body_1_x(Once(Some(Bytes::from_static(BODY))));
        let put = self
            .plain
            .put_object()
            .bucket(&self.bucket)
            .key(self.key("trailer"));
        let put = put
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(ByteStream::new(body));
        match put.send().await {
            Ok(_) => "taken".to_owned(),
            Err(error) => format!("refused: {}", said(&error)),
        }
    }

    /// Limits of uploads in parts.
    pub async fn multipart(&self) -> Multipart {
        let key = self.key("parts");
        let create = self
            .plain
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(&key);
        let upload = match create.send().await {
            Ok(created) => created.upload_id().unwrap_or_default().to_owned(),
            Err(error) => {
                let refused = format!("refused: {}", said(&error));
                return Multipart {
                    small_parts: refused.clone(),
                    part_10_001: refused,
                };
            }
        };
        let part = |number: i32| {
            let part = self.plain.upload_part().bucket(&self.bucket).key(&key);
            let part = part.upload_id(&upload).part_number(number);
            part.body(ByteStream::from_static(BODY)).send()
        };
        let part_10_001 = match part(10_001).await {
            Ok(_) => "taken".to_owned(),
            Err(error) => format!("refused: {}", said(&error)),
        };
        let mut parts = Vec::new();
        for number in [1, 2] {
            if let Ok(done) = part(number).await {
                let done = CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(done.e_tag().map(str::to_owned));
                parts.push(done.build());
            }
        }
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let complete = self
            .plain
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(&key);
        let small_parts = match complete
            .upload_id(&upload)
            .multipart_upload(parts)
            .send()
            .await
        {
            Ok(_) => "taken".to_owned(),
            Err(error) => format!("refused: {}", said(&error)),
        };
        let abort = self
            .plain
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(&key);
        // Where it was completed, or is gone, there is nothing to give up.
        let _ = abort.upload_id(&upload).send().await;
        Multipart {
            small_parts,
            part_10_001,
        }
    }

    /// How far the server's clock is ahead of this machine's, in milliseconds: to a second or so,
    /// because that is how it tells the time.
    pub async fn clock(&self) -> Option<i64> {
        let date = Date::default();
        let asked = SystemTime::now();
        let list = self
            .plain
            .list_objects_v2()
            .bucket(&self.bucket)
            .max_keys(1);
        let _ = list.customize().interceptor(date.clone()).send().await;
        let seen = date.0.lock().ok()?.take()?;
        let theirs = DateTime::from_str(&seen, DateTimeFormat::HttpDate).ok()?;
        let ours = DateTime::from(asked).to_millis().ok()?;
        Some(theirs.to_millis().ok()? - ours)
    }

    /// Deletes what was written.
    pub async fn clean_up(&self) {
        let list = self.plain.list_objects_v2().bucket(&self.bucket);
        let Ok(listed) = list.prefix(&self.prefix).send().await else {
            return;
        };
        for object in listed.contents() {
            let delete = self.plain.delete_object().bucket(&self.bucket);
            // What cannot be deleted is under a prefix that says whose it is.
            let _ = delete.set_key(object.key().map(str::to_owned)).send().await;
        }
    }
}

/// How long small requests take.
pub async fn latency(remote: &S3Remote) -> Option<Latency> {
    let (mut heads, mut puts) = (Vec::new(), Vec::new());
    let body = Bytes::from_static(&[7; 1024]);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        remote.head("latency").await.ok()?;
        heads.push(start.elapsed());
        let put = PutRequest {
            key: "latency".to_owned(),
            checksum: Crc64::of(&body),
            body: body.clone(),
            condition: None,
            headers: ObjectHeaders::default(),
            write_id: None,
        };
        let start = Instant::now();
        remote.put(put).await.ok()?;
        puts.push(start.elapsed());
    }
    Some(Latency {
        head_ms: Spread::of(heads),
        put_1_kib_ms: Spread::of(puts),
    })
}

/// The `Date` of an answer.
#[derive(Debug, Clone, Default)]
struct Date(Arc<Mutex<Option<String>>>);

#[dyn_dispatch_hint]
impl Intercept for Date {
    fn name(&self) -> &'static str {
        "Date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        if let Ok(mut seen) = self.0.lock() {
            *seen = date;
        }
        Ok(())
    }
}

/// A body that is not in memory, as the SDK sees it: it has to put the checksum behind it.
struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}
