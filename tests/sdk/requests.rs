//! The real SDK client against a scripted server: what it puts on the wire, and what it makes of
//! what comes back. (What each error means: `classification.rs`.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::scripted::{Action, Captured, Scripted, error_body};
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{
    ProvideCredentials, SharedCredentialsProvider, future::ProvideCredentials as Provided,
};
use bytes::Bytes;
use s3_writeback::remote::Class::{Conflict, Environment, Permanent, Transient};
use s3_writeback::remote::Effect::{NotApplied, Unknown};
use s3_writeback::remote::deadline::within;
use s3_writeback::remote::s3::{ConnectError, PayloadSigning};
use s3_writeback::remote::*;
use tokio::time::Instant;

const SECRET: &str = "very-secret-indeed";

fn config(endpoint: &str, provider: impl ProvideCredentials + 'static) -> SdkConfig {
    SdkConfig::builder()
        .endpoint_url(endpoint)
        .region(Region::new("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .build()
}

fn keys() -> Credentials {
    Credentials::new("AKIDTEST", SECRET, None, None, "test")
}

fn remote_at(endpoint: &str) -> S3Remote {
    S3Remote::builder(&config(endpoint, keys()))
        .bucket("bucket")
        .prefix("pre/fix")
        .build()
        .unwrap()
}

async fn serving(script: impl IntoIterator<Item = Action>) -> (Scripted, S3Remote) {
    let server = Scripted::start(script).await;
    let remote = remote_at(&server.endpoint());
    (server, remote)
}

fn put_of(body: impl Into<Bytes>) -> PutRequest {
    let body = body.into();
    PutRequest {
        key: "some/key".to_owned(),
        checksum: Crc64::of(&body),
        body,
        condition: Some(WriteCondition::IfAbsent),
        headers: ObjectHeaders::default(),
        write_id: Some("write-1".to_owned()),
    }
}

fn put() -> PutRequest {
    put_of(vec![7_u8; 1024])
}

fn complete() -> CompleteMultipart {
    let part = PartInfo {
        number: 1,
        etag: ETag("part".to_owned()),
        checksum: Crc64(1),
    };
    CompleteMultipart {
        key: "some/key".to_owned(),
        upload_id: "upload".to_owned(),
        parts: vec![part],
        checksum: Crc64(1),
        size: 10,
        condition: None,
    }
}

/// Real sockets, so real time: two seconds, and no other way to see that nothing else ends it.
#[tokio::test]
async fn a_hang_ends_at_the_attempt_deadline_as_unknown() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let large = || put_of(vec![1_u8; 32 << 20]);
    let hang = async |action: Action, request: PutRequest| {
        let (server, remote) = serving([action]).await;
        let start = Instant::now();
        let error = within("PutObject", DEADLINE, remote.put(request))
            .await
            .unwrap_err();
        let took = start.elapsed();
        assert_eq!((error.class, error.effect), (Transient, Unknown));
        assert!(
            took >= DEADLINE && took <= DEADLINE.mul_f32(1.1),
            "{took:?}"
        );
        assert_eq!(server.attempts(), 1);
    };
    tokio::join!(
        hang(Action::NeverAnswer, put()),
        hang(Action::NeverAnswer, large()),
        hang(Action::NeverRead, large()),
    );
}

fn no_chunks(request: &Captured) {
    for (name, value) in &request.headers {
        assert!(!value.contains("aws-chunked"), "{name}: {value}");
        assert!(!value.contains("STREAMING"), "{name}: {value}");
        assert!(!name.contains("trailer"), "{name}: {value}");
        assert!(
            ![
                "transfer-encoding",
                "expect",
                "x-amz-decoded-content-length"
            ]
            .contains(&name.as_str()),
            "{name}: {value}"
        );
        assert!(!value.contains(SECRET));
    }
}

fn base64_of(checksum: Crc64) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(checksum.0.to_be_bytes())
}

/// What is on the wire, by raw capture: small, empty and larger than a frame; signed and not.
#[tokio::test]
async fn a_put_on_the_wire() {
    for signing in [
        PayloadSigning::OverPlainHttp,
        PayloadSigning::Always,
        PayloadSigning::Never,
    ] {
        for length in [0, 1, 1024, 128 * 1024, 1_000_000] {
            let server = Scripted::start([Action::ok()]).await;
            let remote = S3Remote::builder(&config(&server.endpoint(), keys()))
                .bucket("bucket")
                .prefix("pre/fix/")
                .expected_bucket_owner("123456789012")
                .payload_signing(signing)
                .build()
                .unwrap();
            let body: Bytes = (0..length).map(|at| (at % 251) as u8).collect();
            let mut request = put_of(body.clone());
            request.headers.content_type = Some("application/x-pack".to_owned());
            request.headers.storage_class = Some("STANDARD_IA".to_owned());
            request.headers.server_side_encryption = Some("aws:kms".to_owned());
            request.headers.sse_kms_key_id = Some("key-1".to_owned());
            request
                .headers
                .metadata
                .insert("origin".to_owned(), "test".to_owned());
            let info = remote.put(request).await.unwrap();
            assert_eq!(info.etag, ETag("abc".to_owned()));
            let captured = server.captured();
            assert_eq!(captured.len(), 1);
            let sent = &captured[0];
            no_chunks(sent);
            assert_eq!(sent.method, "PUT");
            assert_eq!(
                sent.target, "/bucket/pre/fix/some/key?x-id=PutObject",
                "path style"
            );
            assert_eq!(sent.body, body);
            let header = |name| sent.header(name).unwrap_or_default();
            assert_eq!(header("content-length"), length.to_string());
            assert_eq!(
                header("x-amz-checksum-crc64nvme"),
                base64_of(Crc64::of(&body))
            );
            let checksums = sent
                .headers
                .iter()
                .filter(|(name, _)| name.contains("checksum-crc"));
            assert_eq!(
                checksums.count(),
                1,
                "no second checksum: {:?}",
                sent.headers
            );
            assert_eq!(header("if-none-match"), "*");
            assert_eq!(header("x-amz-meta-write-id"), "write-1");
            assert_eq!(header("x-amz-meta-origin"), "test");
            assert_eq!(header("x-amz-storage-class"), "STANDARD_IA");
            assert_eq!(header("x-amz-server-side-encryption"), "aws:kms");
            assert_eq!(
                header("x-amz-server-side-encryption-aws-kms-key-id"),
                "key-1"
            );
            assert_eq!(header("x-amz-expected-bucket-owner"), "123456789012");
            assert_eq!(header("content-type"), "application/x-pack");
            let unsigned = header("x-amz-content-sha256") == "UNSIGNED-PAYLOAD";
            // Of no bytes there is nothing to save by not signing them.
            assert_eq!(
                unsigned,
                signing == PayloadSigning::Never && length > 0,
                "{signing:?}"
            );
            let signed_headers = header("authorization");
            assert!(
                signed_headers.contains("x-amz-checksum-crc64nvme"),
                "{signed_headers}"
            );
        }
    }
}

#[tokio::test]
async fn parts_on_the_wire() {
    let created = "<InitiateMultipartUploadResult><UploadId>up-1</UploadId>\
                   </InitiateMultipartUploadResult>";
    let completed = "<CompleteMultipartUploadResult><ETag>\"whole-1\"</ETag>\
                     </CompleteMultipartUploadResult>";
    let (server, remote) = serving([
        Action::with(200, &[], created),
        Action::ok(),
        Action::with(200, &[], completed),
        Action::with(204, &[], ""),
    ])
    .await;
    let request = CreateMultipart {
        key: "some/key".to_owned(),
        headers: ObjectHeaders::default(),
        write_id: Some("write-1".to_owned()),
    };
    let upload_id = remote.create_multipart(request).await.unwrap();
    assert_eq!(upload_id, "up-1");
    let body = Bytes::from(vec![3_u8; 300_000]);
    let part = UploadPart {
        key: "some/key".to_owned(),
        upload_id: upload_id.clone(),
        number: 1,
        checksum: Crc64::of(&body),
        body: body.clone(),
    };
    let part = remote.upload_part(part).await.unwrap();
    let request = CompleteMultipart {
        upload_id: upload_id.clone(),
        parts: vec![part],
        checksum: Crc64::of(&body),
        size: 300_000,
        condition: Some(WriteCondition::IfMatch(ETag("old".to_owned()))),
        ..complete()
    };
    let info = remote.complete_multipart(request).await.unwrap();
    assert_eq!(info.etag, ETag("whole-1".to_owned()));
    remote
        .abort_multipart("some/key", &upload_id)
        .await
        .unwrap();
    let captured = server.captured();
    assert_eq!(captured.len(), 4);
    captured.iter().for_each(no_chunks);
    assert_eq!(
        captured[0].header("x-amz-checksum-algorithm"),
        Some("CRC64NVME")
    );
    assert_eq!(
        captured[0].header("x-amz-checksum-type"),
        Some("FULL_OBJECT")
    );
    assert_eq!(captured[0].header("x-amz-meta-write-id"), Some("write-1"));
    let crc = base64_of(Crc64::of(&body));
    assert_eq!(captured[1].body, body);
    assert_eq!(
        captured[1].header("x-amz-checksum-crc64nvme"),
        Some(crc.as_str())
    );
    assert_eq!(
        captured[2].header("x-amz-checksum-crc64nvme"),
        Some(crc.as_str())
    );
    assert_eq!(
        captured[2].header("x-amz-checksum-type"),
        Some("FULL_OBJECT")
    );
    assert_eq!(captured[2].header("x-amz-mp-object-size"), Some("300000"));
    assert_eq!(captured[2].header("if-match"), Some("\"old\""));
    assert!(String::from_utf8_lossy(&captured[2].body).contains(&crc));
    assert_eq!(captured[3].method, "DELETE");
}

#[tokio::test]
async fn reads_are_whole_or_errors() {
    let body = b"0123456789".as_slice();
    let crc = base64_of(Crc64::of(body));
    let whole = |crc: &str| {
        let headers = [
            ("etag", "\"e\""),
            ("x-amz-checksum-crc64nvme", crc),
            ("x-amz-meta-write-id", "write-1"),
            ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
        ];
        Action::with(200, &headers, body)
    };
    let get = || GetRequest {
        key: "k".to_owned(),
        range: None,
    };

    let (server, remote) = serving([whole(&crc)]).await;
    let got = remote.get(get()).await.unwrap().unwrap();
    assert_eq!(got.body, body);
    assert_eq!(got.info.size, 10);
    assert_eq!(got.info.checksum, Some(Crc64::of(body)));
    assert_eq!(got.info.write_id.as_deref(), Some("write-1"));
    assert!(got.info.last_modified.is_some());
    assert_eq!(
        server.captured()[0].header("x-amz-checksum-mode"),
        Some("ENABLED")
    );
    let head = remote.head("k").await.unwrap().unwrap();
    assert_eq!(head, got.info);
    assert_eq!(
        server.captured()[1].header("x-amz-checksum-mode"),
        Some("ENABLED")
    );

    // Another checksum than the one it has.
    let (_server, remote) = serving([whole("AAAAAAAAAAE=")]).await;
    let error = remote.get(get()).await.unwrap_err();
    assert_eq!(
        (error.class, error.effect),
        (Transient, NotApplied),
        "{error}"
    );
    assert!(error.has_code("BodyDamaged"), "{error}");

    // Fewer bytes than promised.
    let short = Action::CutOff {
        status: 200,
        headers: vec![("etag".to_owned(), "\"e\"".to_owned())],
        promised: 100,
        body: body.to_vec(),
    };
    let (_server, remote) = serving([short]).await;
    let error = remote.get(get()).await.unwrap_err();
    assert!(error.has_code("BodyDamaged"), "{error}");

    // A range.
    let headers = [("etag", "\"e\""), ("content-range", "bytes 2-4/10")];
    let (server, remote) = serving([Action::with(206, &headers, "234")]).await;
    let ranged = GetRequest {
        key: "k".to_owned(),
        range: Some((2, 3)),
    };
    let got = remote.get(ranged).await.unwrap().unwrap();
    assert_eq!((got.body.as_ref(), got.info.size), (b"234".as_slice(), 10));
    assert_eq!(server.captured()[0].header("range"), Some("bytes=2-4"));
    assert_eq!(server.captured()[0].header("x-amz-checksum-mode"), None);
}

#[tokio::test]
async fn what_is_not_there_is_none_and_what_is_not_s3_is_an_error() {
    let get = || GetRequest {
        key: "k".to_owned(),
        range: None,
    };
    let (_server, remote) = serving([Action::error(404, "NoSuchKey")]).await;
    assert!(remote.get(get()).await.unwrap().is_none());
    assert!(remote.head("k").await.unwrap().is_none());
    remote.delete("k", None).await.unwrap();
    let stale = Some(ETag("e".to_owned()));
    assert_eq!(remote.delete("k", stale).await.unwrap_err().class, Conflict);

    let (_server, remote) = serving([Action::error(404, "NoSuchBucket")]).await;
    assert_eq!(remote.get(get()).await.unwrap_err().class, Environment);
    // A 404 that S3 did not say does not make an object vanish.
    let (_server, remote) = serving([Action::with(404, &[], "<html>not here</html>")]).await;
    assert_eq!(remote.get(get()).await.unwrap_err().class, Transient);
}

#[tokio::test]
async fn a_conditional_delete_says_so() {
    let (server, remote) = serving([Action::with(204, &[], "")]).await;
    remote
        .delete("k", Some(ETag("e".to_owned())))
        .await
        .unwrap();
    assert_eq!(server.captured()[0].header("if-match"), Some("\"e\""));
    assert_eq!(server.captured()[0].method, "DELETE");
}

#[tokio::test]
async fn listings_are_decoded_and_relative() {
    let page = "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>more</NextContinuationToken>\
        <Contents><Key>pre/fix/a+b%26c</Key><ETag>\"1\"</ETag><Size>5</Size></Contents>\
        <Contents><Key>pre/fixed</Key><ETag>\"2\"</ETag><Size>6</Size></Contents>\
        </ListBucketResult>";
    let (server, remote) = serving([Action::with(200, &[], page)]).await;
    let listed = remote.list("a", None).await.unwrap();
    let keys: Vec<&str> = listed.objects.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a b&c"]);
    assert_eq!(listed.next.as_deref(), Some("more"));
    remote.list("a", listed.next).await.unwrap();
    assert!(server.captured()[0].target.contains("prefix=pre%2Ffix%2Fa"));
    assert!(
        server.captured()[1]
            .target
            .contains("continuation-token=more")
    );
}

#[tokio::test]
async fn unfinished_uploads_are_those_of_exactly_one_key() {
    let page = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>\
        <Upload><Key>pre/fix/k</Key><UploadId>one</UploadId></Upload>\
        <Upload><Key>pre/fix/k</Key><UploadId>two</UploadId></Upload>\
        <Upload><Key>pre/fix/k2</Key><UploadId>three</UploadId></Upload>\
        </ListMultipartUploadsResult>";
    let (_server, remote) = serving([Action::with(200, &[], page)]).await;
    let found = remote.list_multipart("k").await.unwrap();
    let ids: Vec<&str> = found
        .iter()
        .map(|upload| upload.upload_id.as_str())
        .collect();
    assert_eq!(ids, ["one", "two"]);
    assert!(found.iter().all(|upload| upload.key == "k"));
}

#[tokio::test]
async fn what_s3_must_refuse_is_not_sent() {
    let (server, remote) = serving([Action::ok()]).await;
    let long = PutRequest {
        key: "k".repeat(1017),
        ..put()
    };
    let error = remote.put(long).await.unwrap_err();
    assert_eq!((error.class, error.effect), (Permanent, NotApplied));
    assert!(
        error.message.contains("1025") && error.message.contains("1024"),
        "{error}"
    );
    let mut evil = put();
    evil.headers
        .metadata
        .insert("n".to_owned(), "a\r\nx-evil: 1".to_owned());
    assert_eq!(remote.put(evil).await.unwrap_err().class, Permanent);
    assert_eq!(server.attempts(), 0);
}

/// Hands out other keys each time it is asked.
#[derive(Debug, Clone, Default)]
struct Rotating(Arc<AtomicUsize>);

impl ProvideCredentials for Rotating {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        let turn = self.0.fetch_add(1, Ordering::SeqCst);
        Provided::ready(Ok(Credentials::new(
            format!("AKID{turn}"),
            SECRET,
            None,
            None,
            "test",
        )))
    }
}

#[tokio::test]
async fn refreshing_credentials_asks_for_them_again_once() {
    let server = Scripted::start([Action::ok()]).await;
    let provider = Rotating::default();
    let config = config(&server.endpoint(), provider.clone());
    let remote = S3Remote::builder(&config).bucket("bucket").build().unwrap();
    remote.put(put()).await.unwrap();
    remote.put(put()).await.unwrap();
    assert_eq!(provider.0.load(Ordering::SeqCst), 1, "cached");
    // Many tasks fail at once and each asks for new ones.
    for _ in 0..64 {
        remote.refresh_credentials();
    }
    remote.put(put()).await.unwrap();
    remote.put(put()).await.unwrap();
    assert_eq!(provider.0.load(Ordering::SeqCst), 2);
    let used: Vec<bool> = server
        .captured()
        .iter()
        .map(|sent| {
            sent.header("authorization")
                .unwrap()
                .contains("Credential=AKID1/")
        })
        .collect();
    assert_eq!(used, [false, false, true, true]);
}

/// Hands out keys at once the first time, and when it is let the other times.
#[derive(Debug, Clone)]
struct Slow {
    asked: Arc<AtomicUsize>,
    called: Arc<tokio::sync::Notify>,
    gate: Arc<tokio::sync::Semaphore>,
}

impl ProvideCredentials for Slow {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::new(async move {
            let turn = self.asked.fetch_add(1, Ordering::SeqCst);
            self.called.notify_one();
            if turn > 0 {
                let _open = self.gate.acquire().await;
            }
            Ok(keys())
        })
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test's tasks need no register")]
async fn a_refresh_while_new_credentials_are_on_their_way_does_not_ask_again() {
    let server = Scripted::start([Action::ok()]).await;
    let slow = Slow {
        asked: Arc::default(),
        called: Arc::default(),
        gate: Arc::new(tokio::sync::Semaphore::new(0)),
    };
    let config = config(&server.endpoint(), slow.clone());
    let remote = S3Remote::builder(&config).bucket("bucket").build().unwrap();
    remote.put(put()).await.unwrap();
    slow.called.notified().await;
    remote.refresh_credentials();
    let first = tokio::spawn({
        let remote = remote.clone();
        async move { remote.put(put()).await }
    });
    slow.called.notified().await;
    // Another task that failed with the old ones, late.
    remote.refresh_credentials();
    let second = tokio::spawn({
        let remote = remote.clone();
        async move { remote.put(put()).await }
    });
    slow.gate.add_permits(2);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(slow.asked.load(Ordering::SeqCst), 2);
}

/// Has none, or does not answer.
#[derive(Debug)]
struct Failing {
    hangs: bool,
}

impl ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        if self.hangs {
            return Provided::new(std::future::pending());
        }
        Provided::ready(Err(CredentialsError::not_loaded("nothing here")))
    }
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn missing_credentials_are_the_environments_fault() {
    let server = Scripted::start([Action::ok()]).await;
    let config = config(&server.endpoint(), Failing { hangs: false });
    let remote = S3Remote::builder(&config).bucket("bucket").build().unwrap();
    let error = remote.put(put()).await.unwrap_err();
    assert_eq!(
        (error.class, error.effect),
        (Environment, NotApplied),
        "{error}"
    );
    assert!(error.has_code("CredentialsUnavailable"), "{error}");
    let error = remote.connect(LIMIT).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::NoCredentials { .. }),
        "{error}"
    );
    assert_eq!(server.attempts(), 0);
}

#[tokio::test]
async fn connecting_has_a_deadline() {
    let server = Scripted::start([Action::NeverAnswer]).await;
    let short = Duration::from_millis(300);
    let stuck = config(&server.endpoint(), Failing { hangs: true });
    let remote = S3Remote::builder(&stuck).bucket("bucket").build().unwrap();
    let error = remote.connect(short).await.unwrap_err();
    assert!(error.to_string().contains("credentials"), "{error}");
    assert!(matches!(error, ConnectError::Deadline { .. }));
    let error = remote_at(&server.endpoint())
        .connect(short)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("first request"), "{error}");
}

#[tokio::test]
async fn connecting_names_the_bucket_and_what_is_wrong_with_it() {
    let connect = async |action: Action| {
        let (server, remote) = serving([action]).await;
        let result = remote.connect(LIMIT).await;
        assert_eq!(server.attempts(), 1);
        result.inspect_err(|error| {
            let text = error.to_string();
            assert!(text.contains("bucket") && !text.contains(SECRET), "{text}");
        })
    };
    let listing = "<ListBucketResult></ListBucketResult>";
    connect(Action::with(200, &[], listing)).await.unwrap();

    let region = [("x-amz-bucket-region", "us-west-2")];
    for (status, code) in [
        (301, "PermanentRedirect"),
        (400, "AuthorizationHeaderMalformed"),
    ] {
        let error = connect(Action::with(status, &region, error_body(code)))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ConnectError::OtherRegion { .. }),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("us-west-2") && text.contains("eu-central-1"),
            "{text}"
        );
    }
    let error = connect(Action::error(404, "NoSuchBucket"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::NoSuchBucket { .. }),
        "{error}"
    );
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch"] {
        let error = connect(Action::error(403, code)).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::CredentialsRejected { .. }),
            "{error}"
        );
    }
    let error = connect(Action::error(403, "AccessDenied"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::AccessDenied { .. }),
        "{error}"
    );
    let error = connect(Action::error(403, "RequestTimeTooSkewed"))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::ClockSkewed { .. }), "{error}");
    let error = connect(Action::error(503, "SlowDown")).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Failed { error, .. } if error.retryable));
}

#[tokio::test]
async fn secrets_are_in_no_debug_and_no_error() {
    let (_server, remote) = serving([Action::error(403, "SignatureDoesNotMatch")]).await;
    let error = remote.put(put()).await.unwrap_err();
    for text in [
        format!("{remote:?}"),
        format!("{error:?}"),
        error.to_string(),
        remote.describe(),
    ] {
        assert!(
            !text.contains(SECRET) && !text.contains("AKIDTEST"),
            "{text}"
        );
    }
    let builder = S3Remote::builder(&config("http://127.0.0.1:9", keys()));
    assert!(!format!("{builder:?}").contains(SECRET));
}

/// What the host's environment says of retries and checksums does not count. The environment
/// belongs to the process, so this runs as one of its own: the test below.
#[tokio::test]
async fn the_environment_changes_neither_attempts_nor_what_is_sent() {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "requests::in_a_hostile_environment",
            "--ignored",
            "--test-threads=1",
        ])
        .env("AWS_NEW_RETRIES_2026", "true")
        .env("AWS_MAX_ATTEMPTS", "10")
        .env("AWS_RETRY_MODE", "adaptive")
        .env("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
        .env("AWS_RESPONSE_CHECKSUM_VALIDATION", "WHEN_SUPPORTED")
        .env("AWS_ACCESS_KEY_ID", "AKIDENV")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .kill_on_drop(true);
    let ran = tokio::time::timeout(Duration::from_secs(60), child.output()).await;
    let ran = ran.expect("within a minute").unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "run by the test above, in an environment of its own"]
async fn in_a_hostile_environment() {
    let answers = [
        Action::error(503, "SlowDown"),
        Action::error(500, "InternalError"),
        Action::Reset,
    ];
    for action in answers {
        let server = Scripted::start([action]).await;
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .endpoint_url(server.endpoint())
            .load()
            .await;
        let remote = S3Remote::builder(&config).bucket("bucket").build().unwrap();
        remote.put(put_of(vec![1_u8; 300_000])).await.unwrap_err();
        assert_eq!(server.attempts(), 1);
        for sent in server.captured() {
            no_chunks(&sent);
            assert_eq!(sent.header("x-amz-checksum-crc32"), None);
        }
    }
}
