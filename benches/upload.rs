//! What the queue costs on top of S3: objects carried by it, by a loop over its own remote, and by
//! a loop over the SDK as it comes. All against the embedded server, which has the same cores.
//!
//! `cargo bench --bench upload`
#![allow(missing_docs, reason = "criterion's macros")]

use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region, SharedCredentialsProvider};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt as _;
use s3_writeback::remote::s3::S3Remote;
use s3_writeback::remote::{Crc64, ObjectHeaders, PutRequest, Remote, WriteCondition};
use s3_writeback::testing::S3Server;
use s3_writeback::{Config, Options, UploadQueue};
use tokio::runtime::Runtime;
use tokio::time::Instant;

const BUCKET: &str = "bench";
const IN_FLIGHT: usize = 16;

struct World {
    server: S3Server,
    sdk: SdkConfig,
    runtime: Runtime,
    next: std::cell::Cell<u64>,
}

impl World {
    fn start() -> Self {
        let server = S3Server::builder()
            .bucket(BUCKET)
            .memory()
            .start_blocking()
            .expect("a server");
        let credentials = Credentials::new("test", "test-secret", None, None, "bench");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(server.endpoint())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        Self {
            server,
            sdk,
            runtime,
            next: std::cell::Cell::new(0),
        }
    }

    fn remote(&self) -> S3Remote {
        S3Remote::builder(&self.sdk)
            .bucket(BUCKET)
            .build()
            .expect("a remote")
    }

    /// Times `carry`, which takes `objects` keys that were never used to S3.
    fn timed(&self, objects: u64, carry: impl FnOnce(&[String])) -> Duration {
        let from = self.next.get();
        self.next.set(from + objects);
        let keys: Vec<_> = (from..from + objects)
            .map(|n| format!("o/{n:012}"))
            .collect();
        let started = Instant::now();
        carry(&keys);
        let took = started.elapsed();
        // So that the server's memory does not grow with the samples.
        for key in &keys {
            self.server.remove(BUCKET, key).expect("removed");
        }
        took
    }
}

fn upload(c: &mut Criterion) {
    let world = World::start();
    for kib in [8_usize, 256, 4096] {
        let body = Bytes::from(vec![7; kib * 1024]);
        let mut group = c.benchmark_group(format!("an object of {kib} KiB"));
        group
            .throughput(Throughput::Bytes(body.len() as u64))
            .sample_size(10);
        group.bench_function(BenchmarkId::from_parameter("the SDK as it comes"), |b| {
            let config = aws_sdk_s3::config::Builder::from(&world.sdk)
                .force_path_style(true)
                .build();
            let client = Client::from_conf(config);
            b.iter_custom(|objects| {
                world.timed(objects, |keys| {
                    let puts = futures::stream::iter(keys).for_each_concurrent(IN_FLIGHT, |key| {
                        let put = client.put_object().bucket(BUCKET).key(key);
                        let put = put.body(body.clone().into());
                        async move { drop(put.send().await.expect("put")) }
                    });
                    world.runtime.block_on(puts);
                })
            });
        });
        group.bench_function(BenchmarkId::from_parameter("a loop over the remote"), |b| {
            let remote = world.remote();
            b.iter_custom(|objects| {
                world.timed(objects, |keys| {
                    let puts = futures::stream::iter(keys).for_each_concurrent(IN_FLIGHT, |key| {
                        let put = remote.put(PutRequest {
                            key: key.clone(),
                            body: body.clone(),
                            checksum: Crc64::of(&body),
                            condition: Some(WriteCondition::IfAbsent),
                            headers: ObjectHeaders::default(),
                            write_id: Some(format!("bench-{key}")),
                        });
                        async move { drop(put.await.expect("put")) }
                    });
                    world.runtime.block_on(puts);
                })
            });
        });
        group.bench_function(BenchmarkId::from_parameter("the queue, durable"), |b| {
            let dir = tempfile::tempdir().expect("a directory");
            let mut config = Config::new(dir.path().join("q"));
            config.workers = IN_FLIGHT;
            let queue = UploadQueue::builder(config, Arc::new(world.remote()))
                .open()
                .wait()
                .expect("opens");
            b.iter_custom(|objects| {
                world.timed(objects, |keys| {
                    let receipts: Vec<_> = keys
                        .iter()
                        .map(|key| {
                            let submit = queue.submit(key, body.clone(), Options::default());
                            submit.wait().expect("admitted")
                        })
                        .collect();
                    for receipt in receipts {
                        receipt.uploaded().wait().expect("uploaded");
                    }
                })
            });
            queue.shutdown().wait().expect("closes");
        });
        group.finish();
    }
}

criterion_group!(benches, upload);
criterion_main!(benches);
