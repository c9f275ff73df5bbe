//! A server, the way to it, and a prefix of one's own in its bucket.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, ResponseChecksumValidation, SharedCredentialsProvider};
use bytes::Bytes;
use s3_writeback::remote::S3Remote;
use s3_writeback::remote::probe::{Capabilities, probe};
use s3_writeback::testing::S3Server;
use s3_writeback::{Config, Receipt, StoreConfig, UploadQueue};

pub const KEY: &str = "lane-key";
pub const SECRET: &str = "lane-secret-key";
pub const BUCKET: &str = "s3-writeback-test";
/// Nothing here takes this long; what does has hung.
pub const DEADLINE: Duration = Duration::from_secs(120);
pub const MIB: usize = 1024 * 1024;
/// The most keys of the bucket that are not ours and are looked at.
const MAX_FOREIGN: usize = 10_000;

/// One lane of the suite.
pub struct Lane {
    pub name: &'static str,
    pub endpoint: String,
    pub bucket: String,
    pub prefix: String,
    /// What a child process needs in its environment; nothing where it has it already.
    pub credentials: Option<(String, String)>,
    pub capabilities: Capabilities,
    /// Whether an object that was made of parts can be read whole: not where the server sends
    /// something with it that is not its checksum.
    pub reads_whole: AtomicBool,
    sdk: SdkConfig,
    foreign: BTreeSet<String>,
    differs: Mutex<BTreeSet<String>>,
    _server: Option<S3Server>,
}

impl Lane {
    /// The server of this crate's own tests.
    pub async fn embedded() -> Self {
        let server = S3Server::builder().credentials(KEY, SECRET).bucket(BUCKET);
        let server = server.start().await.expect("starts");
        let endpoint = server.endpoint();
        let sdk = sdk(&endpoint);
        let keys = Some((KEY.to_owned(), SECRET.to_owned()));
        Self::at(
            "embedded",
            endpoint,
            BUCKET.to_owned(),
            sdk,
            keys,
            Some(server),
        )
        .await
    }

    /// A server that was started for this lane, with the suite's credentials; its bucket is made.
    pub async fn fresh(name: &'static str, endpoint: String) -> Self {
        let sdk = sdk(&endpoint);
        let client = client(&sdk);
        let made = async {
            // It has only just been started.
            while client.create_bucket().bucket(BUCKET).send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, made)
            .await
            .expect("the server takes a bucket");
        let keys = Some((KEY.to_owned(), SECRET.to_owned()));
        Self::at(name, endpoint, BUCKET.to_owned(), sdk, keys, None).await
    }

    /// The same server is somewhere else now.
    pub fn moved(&mut self, endpoint: String) {
        self.sdk = self.sdk.to_builder().endpoint_url(&endpoint).build();
        self.endpoint = endpoint;
    }

    /// Whether an endpoint is named, or what is missing.
    pub fn endpoint_ready() -> Result<(), String> {
        for name in ["S3_WRITEBACK_TEST_ENDPOINT", "S3_WRITEBACK_TEST_BUCKET"] {
            if std::env::var(name).is_err() {
                return Err(format!("{name} is not set"));
            }
        }
        Ok(())
    }

    /// The endpoint of the environment.
    pub async fn endpoint() -> Self {
        let set = |name: &str| std::env::var(name).expect("was looked at");
        let endpoint = set("S3_WRITEBACK_TEST_ENDPOINT");
        let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        let sdk = loader.endpoint_url(&endpoint).load().await;
        let bucket = set("S3_WRITEBACK_TEST_BUCKET");
        Self::at("endpoint", endpoint, bucket, sdk, None, None).await
    }

    async fn at(
        name: &'static str,
        endpoint: String,
        bucket: String,
        sdk: SdkConfig,
        credentials: Option<(String, String)>,
        server: Option<S3Server>,
    ) -> Self {
        // Unlike any other run's: a temporary directory's name is.
        let unlike = tempfile::tempdir().expect("a directory");
        let unlike = unlike.path().file_name().expect("a name").to_string_lossy();
        let unlike = unlike.trim_start_matches('.').to_owned();
        let prefix = format!("s3-writeback-test-{}-{unlike}", std::process::id());
        let remote = S3Remote::builder(&sdk).bucket(&bucket).prefix(&prefix);
        let remote = remote.build().expect("a remote");
        remote
            .connect(DEADLINE)
            .await
            .expect("the lane's bucket is there");
        let capabilities = probe(&remote, "probe/", 1, DEADLINE)
            .await
            .expect("is probed");
        let mut lane = Self {
            name,
            endpoint,
            bucket,
            prefix,
            credentials,
            capabilities,
            reads_whole: AtomicBool::new(true),
            sdk,
            foreign: BTreeSet::new(),
            differs: Mutex::default(),
            _server: server,
        };
        lane.foreign = lane.keys("").await;
        for complaint in lane.capabilities.complaints() {
            lane.differs(complaint);
        }
        lane.say(&format!(
            "s3://{}/{} at {}",
            lane.bucket, lane.prefix, lane.endpoint
        ));
        lane
    }

    pub fn say(&self, what: &str) {
        println!("lane {}: {what}", self.name);
    }

    /// The server does this otherwise than S3.
    pub fn differs(&self, how: impl Into<String>) {
        self.differs.lock().unwrap().insert(how.into());
    }

    pub fn differences(&self) -> BTreeSet<String> {
        self.differs.lock().unwrap().clone()
    }

    /// A remote below the lane's prefix.
    pub fn remote(&self, under: &str) -> Arc<S3Remote> {
        self.remote_by(&self.endpoint, under)
    }

    /// The same, by another way to the server.
    pub fn remote_by(&self, endpoint: &str, under: &str) -> Arc<S3Remote> {
        let sdk = self.sdk.to_builder().endpoint_url(endpoint).build();
        let prefix = format!("{}/{under}", self.prefix);
        let remote = S3Remote::builder(&sdk).bucket(&self.bucket).prefix(prefix);
        Arc::new(remote.build().expect("a remote"))
    }

    /// A plain client.
    pub fn client(&self) -> Client {
        client(&self.sdk)
    }

    /// Where a proxy would go to; `None` where TLS is in the way.
    pub async fn address(&self) -> Option<SocketAddr> {
        address_of(&self.endpoint).await
    }

    /// A queue below the lane's prefix, in `dir`.
    pub async fn queue(&self, under: &str, dir: &Path) -> UploadQueue {
        let remote = self.remote(under);
        UploadQueue::builder(config(dir), remote)
            .open()
            .await
            .expect("opens")
    }

    /// The bytes of an object, by a plain client.
    pub async fn object(&self, key: &str) -> Option<Bytes> {
        let get = self.client().get_object().bucket(&self.bucket);
        let got = get
            .key(format!("{}/{key}", self.prefix))
            .send()
            .await
            .ok()?;
        Some(got.body.collect().await.expect("a body").into_bytes())
    }

    /// Keys under the lane's prefix, and this.
    pub async fn keys_under(&self, under: &str) -> BTreeSet<String> {
        self.keys(&format!("{}/{under}", self.prefix)).await
    }

    async fn keys(&self, prefix: &str) -> BTreeSet<String> {
        let list = self
            .client()
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix);
        let mut pages = list.into_paginator().send();
        let mut keys = BTreeSet::new();
        while let Some(page) = pages.next().await {
            let page = page.expect("lists");
            keys.extend(
                page.contents()
                    .iter()
                    .filter_map(|object| object.key().map(str::to_owned)),
            );
            if keys.len() > MAX_FOREIGN {
                break;
            }
        }
        keys
    }

    /// Unfinished uploads under the lane's prefix.
    pub async fn uploads(&self) -> Vec<String> {
        let list = self.client().list_multipart_uploads().bucket(&self.bucket);
        let listed = list.prefix(&self.prefix).send().await.expect("lists");
        let ours = listed.uploads().iter().filter_map(|upload| upload.key());
        // A server that does not look at the prefix lists others' as well.
        let ours = ours.filter(|key| key.starts_with(&self.prefix));
        ours.map(str::to_owned).collect()
    }

    /// Deletes what is under the lane's prefix, by a plain client; how much it was.
    pub async fn sweep(&self, under: &str) -> usize {
        let keys = self.keys_under(under).await;
        for key in &keys {
            let delete = self.client().delete_object().bucket(&self.bucket).key(key);
            delete.send().await.expect("is deleted");
        }
        keys.len()
    }

    /// Nothing of this lane is in the bucket any more, and nothing else has come or gone.
    pub async fn must_be_left_as_found(&self) {
        assert_eq!(self.uploads().await, [""; 0], "unfinished uploads are left");
        let left = self.keys("").await;
        let ours: Vec<_> = left
            .iter()
            .filter(|key| key.starts_with(&self.prefix))
            .collect();
        assert!(ours.is_empty(), "objects are left: {ours:?}");
        assert_eq!(left, self.foreign, "what is not ours was touched");
        self.say("nothing is left: no object, no upload, nothing outside the prefix touched");
    }
}

/// The suite's own credentials.
pub fn sdk(endpoint: &str) -> SdkConfig {
    let credentials = Credentials::new(KEY, SECRET, None, None, "lane");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

fn client(sdk: &SdkConfig) -> Client {
    // The suite compares bytes itself; not every server sends a checksum that is one.
    let config = aws_sdk_s3::config::Builder::from(sdk)
        .force_path_style(true)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    Client::from_conf(config.build())
}

pub async fn address_of(endpoint: &str) -> Option<SocketAddr> {
    let authority = endpoint.strip_prefix("http://")?.trim_end_matches('/');
    let with_port = match authority.contains(':') {
        true => authority.to_owned(),
        false => format!("{authority}:80"),
    };
    let mut found = tokio::net::lookup_host(with_port)
        .await
        .ok()?
        .collect::<Vec<_>>();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.into_iter().next()
}

/// A queue's configuration: small limits, short back-offs.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.attempt_floor = Duration::from_secs(5);
    config.min_rate_bytes = MIB as u64;
    config.retry_base = Duration::from_millis(5);
    config.retry_cap = Duration::from_millis(200);
    config.segment_bytes = MIB as u32;
    config.multipart_threshold = 5 * MIB as u64;
    config.part_bytes = 5 * MIB as u64;
    config.part_concurrency = 2;
    config.signature_lifetime = Duration::from_secs(1);
    config
}

/// A store's: a cache that its file does not fit into, and checkpoints by hand.
pub fn store_config(dir: &Path) -> StoreConfig {
    let mut store = StoreConfig::new(dir);
    store.queue = config(dir);
    store.cache_bytes = 2 * MIB as u64;
    store.dirty_bytes = MIB as u64;
    store.checkpoint_cache_bytes = MIB as u64;
    store.image_bytes = MIB as u64;
    store.pack_bytes = 256 * 1024;
    store.max_dirty_age = Duration::from_millis(50);
    store.checkpoint_every = None;
    store.checkpoint_after_bytes = None;
    store.checkpoint_at_shutdown = false;
    store.gc_every = None;
    store.look_at_head = Duration::from_millis(100);
    store.retain_checkpoints = 2;
    store
}

/// Bytes that are not all the same.
pub fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len)
        .map(|at| ((at / 251) as u8) ^ (at as u8) ^ seed)
        .collect()
}

pub async fn uploaded(receipt: &Receipt, what: &str) {
    let settled = receipt.uploaded().within(DEADLINE).await;
    assert!(settled.is_ok(), "{what}: {settled:?}");
}
