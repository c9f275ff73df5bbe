//! Servers that want something otherwise than S3: tried once, remembered, told.

use std::sync::Arc;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, SharedCredentialsProvider};
use bytes::Bytes;
use s3_writeback::remote::probe::probe;
use s3_writeback::remote::{
    Adaptation, Adaptations, Class, Crc64, ObjectHeaders, ObjectInfo, PutRequest, Remote,
    RemoteError, S3Remote, WriteCondition,
};
use s3_writeback::testing::{Action, FaultRule, Operation, S3Server};
use s3_writeback::{Config, KeyPolicy, Options, UploadQueue};

const BUCKET: &str = "bucket";
const MIB: usize = 1024 * 1024;

async fn stage() -> (S3Server, S3Remote) {
    let server = S3Server::builder().bucket(BUCKET).start().await.unwrap();
    let credentials = Credentials::new("test", "test-secret", None, None, "test");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let remote = S3Remote::builder(&config).bucket(BUCKET).build().unwrap();
    (server, remote)
}

async fn put(
    remote: &S3Remote,
    key: &str,
    body: &'static str,
    condition: Option<WriteCondition>,
) -> Result<ObjectInfo, RemoteError> {
    let body = Bytes::from_static(body.as_bytes());
    let request = PutRequest {
        key: key.to_owned(),
        checksum: Crc64::of(&body),
        body,
        condition,
        headers: ObjectHeaders::default(),
        write_id: Some("id".to_owned()),
    };
    remote.put(request).await
}

fn told(remote: &S3Remote) -> Adaptations {
    remote.adaptations().expect("it tells")
}

/// A server as S3: each thing is known after its first success, and nothing was sent twice.
#[tokio::test]
async fn a_server_as_s3_is_asked_nothing_twice() {
    let (server, remote) = stage().await;
    assert_eq!(told(&remote), Adaptations::default());
    let first = put(&remote, "k", "one", None).await.unwrap();
    assert_eq!(told(&remote).checksum_headers, Adaptation::AsS3);
    let second = put(
        &remote,
        "k",
        "two",
        Some(WriteCondition::IfMatch(first.etag.clone())),
    );
    second.await.unwrap();
    assert_eq!(told(&remote).entity_tags, Adaptation::AsS3);
    let stale = put(
        &remote,
        "k",
        "three",
        Some(WriteCondition::IfMatch(first.etag)),
    );
    assert_eq!(stale.await.unwrap_err().class, Class::Conflict);
    let counters = server.counters();
    assert_eq!(counters.requests(Operation::PutObject), 3);
    assert_eq!(counters.requests(Operation::HeadObject), 0);
    assert!(!told(&remote).trailers);
}

/// Entity tags without quotes: the first condition is sent twice, the next ones once; a stale tag
/// still loses, and the probe finds that such a server can be fenced on.
#[tokio::test]
async fn entity_tags_are_sent_bare_to_a_server_that_wants_them_so() {
    let (server, remote) = stage().await;
    server.faults().add(FaultRule::new(Action::BareTags));
    let first = put(&remote, "k", "one", None).await.unwrap();
    // A stale tag says nothing about quotes: it is not sent again, bare.
    put(&remote, "other", "foreign", None).await.unwrap();
    let foreign = WriteCondition::IfMatch(first.etag.clone());
    let lost = put(&remote, "other", "mine", Some(foreign))
        .await
        .unwrap_err();
    assert_eq!(lost.class, Class::Conflict);
    assert_eq!(server.counters().requests(Operation::PutObject), 3);
    assert_eq!(told(&remote).entity_tags, Adaptation::Untried);

    let is_first = || Some(WriteCondition::IfMatch(first.etag.clone()));
    let second = put(&remote, "k", "two", is_first()).await.unwrap();
    assert_eq!(told(&remote).entity_tags, Adaptation::Adapted);
    assert_eq!(server.counters().requests(Operation::PutObject), 5);
    let stale = put(&remote, "k", "three", is_first()).await.unwrap_err();
    assert_eq!(stale.class, Class::Conflict);
    let is_second = Some(WriteCondition::IfMatch(second.etag));
    put(&remote, "k", "three", is_second).await.unwrap();
    let counters = server.counters();
    assert_eq!(counters.requests(Operation::PutObject), 7, "once each");
    assert_eq!(counters.effects(Operation::PutObject), 4);
    assert_eq!(server.object(BUCKET, "k").as_deref(), Some(&b"three"[..]));

    let (server, remote) = stage().await;
    server.faults().add(FaultRule::new(Action::BareTags));
    let capabilities = probe(&remote, "probe/", 1, Duration::from_secs(20))
        .await
        .unwrap();
    assert!(capabilities.can_fence(), "{capabilities:?}");
    assert!(
        capabilities.conditional_delete.is_honoured(),
        "{capabilities:?}"
    );
    assert_eq!(told(&remote).entity_tags, Adaptation::Adapted);
}

/// A server that knows no checksum headers: whole objects and uploads in parts go up through the
/// queue all the same, each refused once, and the queue's snapshot tells it.
#[tokio::test]
async fn checksum_headers_are_withheld_from_a_server_that_refuses_them() {
    let (server, remote) = stage().await;
    let refuse = server.faults().add(FaultRule::new(Action::RefuseChecksums));
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.multipart_threshold = 5 * MIB as u64;
    config.part_bytes = 5 * MIB as u64;
    config.workers = 1;
    let queue = UploadQueue::builder(config, Arc::new(remote))
        .open()
        .await
        .unwrap();
    let bytes = |len: usize| -> Bytes { (0..len).map(|at| (at / 251) as u8).collect() };
    for (key, len) in [
        ("small", 1000),
        ("again", 2000),
        ("large", 11 * MIB),
        ("more", 6 * MIB),
    ] {
        let options = Options {
            policy: KeyPolicy::Rewritable,
            ..Options::default()
        };
        let receipt = queue.submit(key, bytes(len), options).await.unwrap();
        let settled = receipt.uploaded().within(Duration::from_secs(60)).await;
        assert!(settled.is_ok(), "{key}: {settled:?}");
        assert_eq!(server.object(BUCKET, key), Some(bytes(len)), "{key}");
    }
    let snapshot = queue.snapshot();
    let told = snapshot.adaptations.expect("it tells");
    assert_eq!(told.checksum_headers, Adaptation::Adapted);
    // What is begun after that is begun without, before anybody refuses it.
    assert_eq!(told.multipart_checksums, Adaptation::Untried);
    let json = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(json["adaptations"]["checksum_headers"], "adapted");
    let log = server.counters().log;
    let refused = log.iter().filter(|seen| seen.status == Some(501));
    // The probe's eight racers may all be refused before one of them knows.
    assert!((1..=9).contains(&refused.count()), "{log:#?}");
    assert!(server.faults().applied(refuse) > Some(8));
    queue.shutdown().await.unwrap();
    assert!(server.uploads(BUCKET).is_empty());
}

/// Refused where an upload in parts begins: its parts go without from the first on.
#[tokio::test]
async fn an_upload_in_parts_whose_beginning_takes_no_checksums() {
    let (server, remote) = stage().await;
    for operation in [Operation::CreateMultipartUpload, Operation::UploadPart] {
        let rule = FaultRule::new(Action::RefuseChecksums).on(operation);
        server.faults().add(rule);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.multipart_threshold = 5 * MIB as u64;
    config.part_bytes = 5 * MIB as u64;
    let queue = UploadQueue::builder(config, Arc::new(remote))
        .open()
        .await
        .unwrap();
    let body: Bytes = (0..11 * MIB).map(|at| (at / 251) as u8).collect();
    for key in ["a", "b"] {
        let receipt = queue
            .submit(key, body.clone(), Options::default())
            .await
            .unwrap();
        receipt
            .uploaded()
            .within(Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(server.object(BUCKET, key), Some(body.clone()));
    }
    let told = queue.snapshot().adaptations.expect("it tells");
    assert_eq!(told.multipart_checksums, Adaptation::Adapted);
    let counters = server.counters();
    assert_eq!(counters.requests(Operation::CreateMultipartUpload), 3);
    assert_eq!(
        counters.requests(Operation::UploadPart),
        6,
        "none was refused"
    );
    queue.shutdown().await.unwrap();
}

/// What is refused for another reason is not sent a third time, and the error is the first one.
#[tokio::test]
async fn a_refusal_that_is_about_something_else_stays_one() {
    let (server, remote) = stage().await;
    let faults = server.faults();
    faults.add(FaultRule::respond(501, "NotImplemented").on(Operation::PutObject));
    for attempt in 1..=3 {
        let error = put(&remote, "k", "one", None).await.unwrap_err();
        assert_eq!((error.status, error.class), (Some(501), Class::Permanent));
        // Twice the first time, once from then on.
        assert_eq!(
            server.counters().requests(Operation::PutObject),
            attempt + 1
        );
    }
    assert_eq!(told(&remote).checksum_headers, Adaptation::AsS3);
}
