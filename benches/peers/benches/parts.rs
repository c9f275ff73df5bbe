//! What it costs a client to get a dirty part of 8 KiB to S3: CPU, user and system, of this process
//! alone. The server is another process, over loopback.
//!
//! ```text
//! cargo bench --manifest-path benches/peers/Cargo.toml --bench parts
//! ```
//!
//! Beside it, in the same run: one PUT a part by `aws-sdk-s3` and by `object_store`, both as they
//! come, 16 in flight; each reads its part from a local file first, as the store does. Over plain
//! HTTP the SDK signs over the bytes; over HTTPS this crate has it not do that, so the store is
//! measured both ways.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, SharedCredentialsProvider};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::aws::AmazonS3Builder;
use s3_writeback::remote::S3Remote;
use s3_writeback::remote::s3::PayloadSigning;
use s3_writeback::testing::S3Server;
use s3_writeback::{
    CheckpointOptions, FileId, FileOptions, Locker, Mode, PartId, PartStore, Role, StoreConfig,
};

const PART: usize = 8192;
/// Parts of the store a round, and PUTs a round of who makes one for each.
const PARTS: u32 = 32_768;
const PUTS: u32 = 4096;
const ROUNDS: usize = 5;
const AT_ONCE: usize = 16;
const BUCKET: &str = "bucket";

/// CPU of all threads of this process.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn tell(what: &str, mut each: Vec<f64>) {
    each.sort_by(f64::total_cmp);
    println!(
        "{what}: {:.2} us of CPU a part (from {:.2} to {:.2})",
        each[each.len() / 2],
        each[0],
        each[each.len() - 1]
    );
}

fn a_part(since: Duration, parts: u32) -> f64 {
    (cpu() - since).as_secs_f64() * 1e6 / f64::from(parts)
}

/// The server, until its standard input ends.
fn serve() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let server = S3Server::builder()
            .bucket(BUCKET)
            .start()
            .await
            .expect("starts");
        println!("{}", server.endpoint());
        let mut nothing = String::new();
        tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut nothing))
            .await
            .expect("ends")
            .expect("is read");
        drop(server);
    });
}

fn main() {
    if std::env::args().any(|argument| argument == "serve") {
        return serve();
    }
    let mut child = Command::new(std::env::current_exe().expect("this bench"))
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut endpoint = String::new();
    let mut said = std::io::BufReader::new(child.stdout.take().expect("is piped"));
    std::io::BufRead::read_line(&mut said, &mut endpoint).expect("says where it is");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(endpoint.trim()));
    drop(child.stdin.take());
    child.wait().expect("ends");
}

async fn measure(endpoint: &str) {
    let credentials = Credentials::new("test", "test-secret", None, None, "bench");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("parts");
    std::fs::write(&path, vec![7_u8; PART * PUTS as usize]).expect("writes");
    let file = Arc::new(std::fs::File::open(&path).expect("opens"));
    let read = |index: u32| {
        let mut part = vec![0; PART];
        file.read_exact_at(&mut part, u64::from(index) * PART as u64)
            .expect("reads");
        Bytes::from(part)
    };
    let (mut ours, mut sdk, mut other) = ((Vec::new(), Vec::new()), Vec::new(), Vec::new());

    let signed = Ours::open(&config, dir.path(), PayloadSigning::Always).await;
    let unsigned = Ours::open(&config, dir.path(), PayloadSigning::Never).await;

    let builder = aws_sdk_s3::config::Builder::from(&config).force_path_style(true);
    let client = Client::from_conf(builder.build());
    let peer = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id("test")
        .with_secret_access_key("test-secret")
        .build()
        .expect("a client");

    for round in 0..=ROUNDS {
        let of_signed = signed.checkpoint(round as u8).await;
        let of_unsigned = unsigned.checkpoint(round as u8).await;

        let before = cpu();
        futures::stream::iter(0..PUTS)
            .map(|index| {
                let put = client
                    .put_object()
                    .bucket(BUCKET)
                    .key(format!("sdk/{index}"));
                put.body(ByteStream::from(read(index))).send()
            })
            .buffer_unordered(AT_ONCE)
            .for_each(|put| async move {
                put.expect("is put");
            })
            .await;
        let of_sdk = a_part(before, PUTS);

        let before = cpu();
        futures::stream::iter(0..PUTS)
            .map(|index| {
                let (peer, body) = (&peer, read(index));
                async move {
                    let at = object_store::path::Path::from(format!("peer/{index}"));
                    peer.put(&at, body.into()).await
                }
            })
            .buffer_unordered(AT_ONCE)
            .for_each(|put| async move {
                put.expect("is put");
            })
            .await;
        // The first round warms up.
        if round > 0 {
            ours.0.push(of_signed);
            ours.1.push(of_unsigned);
            sdk.push(of_sdk);
            other.push(a_part(before, PUTS));
        }
    }
    tell("a checkpoint of this store, as over HTTPS", ours.1);
    tell("the same, its bytes signed", ours.0);
    tell("aws-sdk-s3, one PUT a part", sdk);
    tell("object_store, one PUT a part", other);
    for store in [signed.store, unsigned.store] {
        store.shutdown().await.expect("shuts down");
    }
}

/// This store.
struct Ours {
    store: PartStore,
    locker: Locker,
}

impl Ours {
    async fn open(config: &SdkConfig, dir: &Path, signing: PayloadSigning) -> Self {
        let name = format!("{signing:?}");
        let remote = S3Remote::builder(config).bucket(BUCKET).prefix(&name);
        let remote = remote.payload_signing(signing).build().expect("a remote");
        let mut config = StoreConfig::new(dir.join(name));
        config.dirty_bytes = 512 << 20;
        config.max_dirty_age = Duration::from_secs(3600);
        config.checkpoint_every = None;
        config.checkpoint_after_bytes = None;
        config.gc_every = None;
        config.pack_bytes = 16 << 20;
        let opened = PartStore::builder(config, Arc::new(remote)).open().await;
        let store = opened.expect("opens");
        let part_bytes = PART as u32;
        let options = FileOptions { part_bytes };
        let file = store.create(FileId(1), options).await.expect("creates");
        file.set_len(u64::from(PARTS) * PART as u64)
            .await
            .expect("grows");
        let locker = store.locker("bench", Role::Foreground).expect("a locker");
        Self { store, locker }
    }

    /// Writes to all parts, and makes a checkpoint: CPU a part, headers and commit included.
    async fn checkpoint(&self, byte: u8) -> f64 {
        let store = &self.store;
        let bytes = vec![byte; PART];
        for first in (0..PARTS).step_by(1024) {
            let these: Vec<PartId> = (first..first + 1024)
                .map(|index| PartId {
                    file: FileId(1),
                    index,
                })
                .collect();
            let set = store.lock_many(&these, Mode::Exclusive, &self.locker).await;
            let set = set.expect("locks");
            let pieces: Vec<_> = these.iter().map(|part| (*part, 0, &bytes[..])).collect();
            set.write(&pieces).await.expect("writes");
        }
        // What is measured is the way to S3, not to the disk.
        store.sync_all().await.expect("syncs");
        let before = cpu();
        store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect("is committed");
        a_part(before, PARTS)
    }
}
