//! The embedded server, the proxy before it, and a remote and a queue that go through it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use bytes::Bytes;
use s3_writeback::remote::{Crc64, ObjectHeaders, PutRequest, S3Remote, WriteCondition};
use s3_writeback::testing::{Counters, Operation, S3Server, WireProxy};
use s3_writeback::{Config, Options, Receipt, UploadQueue};

pub const BUCKET: &str = "bucket";
pub const PREFIX: &str = "wire";
/// Nothing here takes this long; what does has hung.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MIB: usize = 1024 * 1024;

pub struct Stage {
    pub server: S3Server,
    pub proxy: WireProxy,
}

impl Stage {
    pub async fn new() -> Self {
        let server = S3Server::builder().bucket(BUCKET).start().await.unwrap();
        let proxy = WireProxy::to(server.address()).start().await.unwrap();
        Self { server, proxy }
    }

    pub fn remote(&self) -> S3Remote {
        remote(&self.proxy.endpoint())
    }

    pub async fn queue(&self, dir: &Path) -> UploadQueue {
        self.queue_with(dir, |_| ()).await
    }

    pub async fn queue_with(&self, dir: &Path, set: impl FnOnce(&mut Config)) -> UploadQueue {
        let mut config = config(dir);
        set(&mut config);
        let queue = UploadQueue::builder(config, Arc::new(self.remote()));
        queue.open().await.unwrap()
    }

    /// PUTs of a key that were carried out.
    pub fn effects(&self, operation: Operation, key: &str) -> usize {
        let full = format!("{PREFIX}/{key}");
        let counters = self.server.counters();
        let of_key = counters.log.iter().filter(|seen| {
            seen.operation == operation && seen.key.as_deref() == Some(full.as_str())
        });
        of_key.filter(|seen| seen.effect).count()
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.server.object(BUCKET, &format!("{PREFIX}/{key}"))
    }

    pub async fn server_is_idle(&self) -> Counters {
        let idle = |counters: &Counters| counters.in_flight == 0;
        self.server.wait_for(idle, DEADLINE).await.unwrap()
    }
}

/// How the server is reached, by this client where there is one.
pub fn aws(endpoint: &str, client: Option<SharedHttpClient>) -> SdkConfig {
    let credentials = Credentials::new("test", "test-secret", None, None, "test");
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials));
    config.set_http_client(client);
    config.build()
}

pub fn remote(endpoint: &str) -> S3Remote {
    let remote = S3Remote::builder(&aws(endpoint, None));
    remote.bucket(BUCKET).prefix(PREFIX).build().unwrap()
}

/// Attempts end after a second, so that what hangs is given up soon.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.attempt_floor = Duration::from_secs(1);
    config.min_rate_bytes = 2 * MIB as u64;
    config.retry_base = Duration::from_millis(2);
    config.retry_cap = Duration::from_millis(50);
    config.segment_bytes = MIB as u32;
    config.multipart_threshold = 5 * MIB as u64;
    config.part_bytes = 5 * MIB as u64;
    config.part_concurrency = 2;
    config
}

/// Bytes that are not all the same.
pub fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len)
        .map(|at| ((at / 251) as u8) ^ (at as u8) ^ seed)
        .collect()
}

pub fn put_of(key: &str, body: &Bytes, condition: Option<WriteCondition>) -> PutRequest {
    PutRequest {
        key: key.to_owned(),
        checksum: Crc64::of(body),
        body: body.clone(),
        condition,
        headers: ObjectHeaders::default(),
        write_id: Some(format!("write-{key}")),
    }
}

pub async fn submit(queue: &UploadQueue, key: &str, body: &Bytes, options: Options) -> Receipt {
    queue.submit(key, body.clone(), options).await.unwrap()
}

pub async fn uploaded(receipt: &Receipt, what: &str) {
    let settled = receipt.uploaded().within(DEADLINE).await;
    assert!(settled.is_ok(), "{what}: {settled:?}");
}

/// Shuts down, with nothing left anywhere.
pub async fn shut_down(stage: &Stage, queue: &UploadQueue) {
    let report = queue.shutdown().await.unwrap();
    assert_eq!(report.deferred, 0, "{report:?}");
    assert!(stage.server.uploads(BUCKET).is_empty());
    let snapshot = queue.snapshot();
    assert_eq!(
        (snapshot.admitted_tasks, snapshot.quarantined),
        (0, 0),
        "{snapshot:?}"
    );
}
