//! The container lane: the suite, and what only a container can do to its server.

use std::net::SocketAddr;
use std::time::Duration;

use s3_writeback::testing::{LinkSpeed, WireCounters, WireProxy};
use s3_writeback::{Options, Receipt, UploadQueue};
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder,
};
use testcontainers::core::IntoContainerPort as _;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};

use crate::lane::{DEADLINE, KEY, Lane, MIB, SECRET, address_of, bytes, config, uploaded};
use crate::suite;

/// As in `minio/compose.yaml`.
const DEFAULT_IMAGE: &str = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z";
/// Marks what this lane starts, so that it can be seen that nothing of it is left.
const LABEL: &str = "s3-writeback.test-lane";
const PORT: u16 = 9000;
/// How long the engine may take to say whether it is there.
const ANSWERS: Duration = Duration::from_secs(10);

fn named() -> Option<String> {
    std::env::var("S3_WRITEBACK_TEST_IMAGE")
        .ok()
        .filter(|image| !image.is_empty())
}

fn image() -> String {
    named().unwrap_or_else(|| DEFAULT_IMAGE.to_owned())
}

async fn engine() -> Result<Docker, String> {
    let engine = docker_client_instance().await;
    let engine = engine.map_err(|error| format!("no container engine: {error}"))?;
    match tokio::time::timeout(ANSWERS, engine.ping()).await {
        Ok(Ok(_)) => Ok(engine),
        Ok(Err(error)) => Err(format!("no container engine answers: {error}")),
        Err(_) => Err(format!("no container engine answers within {ANSWERS:?}")),
    }
}

/// Whether the lane can run, or why not. Nobody's machine loads an image because of a
/// `cargo test`: only one that is named is pulled.
pub async fn ready() -> Result<(), String> {
    let engine = engine().await?;
    let image = image();
    if engine.inspect_image(&image).await.is_ok() {
        return Ok(());
    }
    if named().is_none() {
        let how = "name it in S3_WRITEBACK_TEST_IMAGE to have it pulled";
        return Err(format!("image {image} is not here; {how}"));
    }
    let pulled = generic(&image).pull_image().await;
    pulled
        .map(drop)
        .map_err(|error| format!("image {image} cannot be had: {error}"))
}

/// Name and tag apart; what has no tag is the latest.
fn generic(image: &str) -> GenericImage {
    match image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((name, tag)) => GenericImage::new(name, tag),
        None => GenericImage::new(image, "latest"),
    }
}

/// A server in a container of its own.
struct Server {
    container: ContainerAsync<GenericImage>,
    engine: Docker,
}

impl Server {
    async fn start() -> Self {
        let engine = engine().await.expect("was asked before");
        let request = generic(&image())
            .with_exposed_port(PORT.tcp())
            .with_cmd(["server", "/data", "--console-address", ":9001"])
            .with_env_var("MINIO_ROOT_USER", KEY)
            .with_env_var("MINIO_ROOT_PASSWORD", SECRET)
            .with_label(LABEL, std::process::id().to_string())
            .with_startup_timeout(DEADLINE);
        let container = request.start().await.expect("the container starts");
        Self { container, engine }
    }

    /// Where it is now: the port may be another after each start.
    async fn endpoint(&self) -> String {
        let host = self.container.get_host().await.expect("a host");
        let port = self.container.get_host_port_ipv4(PORT.tcp()).await;
        format!("http://{host}:{}", port.expect("a port"))
    }

    async fn address(&self) -> SocketAddr {
        address_of(&self.endpoint().await)
            .await
            .expect("an address")
    }

    async fn kill(&self) {
        let signal = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        let killed = self
            .engine
            .kill_container(self.container.id(), Some(signal))
            .await;
        killed.expect("is killed");
        while self.container.is_running().await.expect("is known") {
            tokio::task::yield_now().await;
        }
    }

    /// Starts it again, and waits until it answers; where it is now.
    async fn again(&self, lane: &Lane) -> SocketAddr {
        self.container.start().await.expect("starts again");
        let endpoint = self.endpoint().await;
        let remote = lane.remote_by(&endpoint, "again");
        let answers = async {
            while remote.connect(Duration::from_secs(1)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, answers)
            .await
            .expect("it answers");
        self.address().await
    }

    async fn remove(self) {
        let id = self.container.id().to_owned();
        let engine = self.engine.clone();
        self.container.rm().await.expect("is removed");
        assert!(
            engine.inspect_container(&id, None).await.is_err(),
            "{id} is still there"
        );
    }
}

/// Containers of this run, running or not.
async fn ours(engine: &Docker) -> usize {
    let label = format!("{LABEL}={}", std::process::id());
    let filters = [("label".to_owned(), vec![label])].into();
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters);
    let listed = engine.list_containers(Some(options.build())).await;
    listed.expect("lists").len()
}

/// The lane: the suite, then pause, stop and kill, then nothing.
pub async fn run() {
    let server = Server::start().await;
    let mut lane = Lane::fresh("container", server.endpoint().await).await;
    lane.say(&format!("image {}", image()));
    suite::behaviours(&lane).await;
    paused(&lane, &server).await;
    stopped(&mut lane, &server).await;
    killed(&mut lane, &server).await;
    suite::finish(&lane).await;
    let engine = server.engine.clone();
    assert_eq!(ours(&engine).await, 1);
    server.remove().await;
    assert_eq!(ours(&engine).await, 0, "containers are left");
    lane.say("removed: no container is left");
}

/// A queue whose uploads go through a slow proxy, so that they are under way for a while.
struct Slow {
    proxy: WireProxy,
    queue: UploadQueue,
    _dir: tempfile::TempDir,
    under: &'static str,
}

impl Slow {
    async fn new(lane: &Lane, server: &Server, under: &'static str) -> Self {
        let link = LinkSpeed {
            up: Some(8 * MIB as u64),
            ..LinkSpeed::default()
        };
        let proxy = WireProxy::to(server.address().await)
            .link(link)
            .start()
            .await
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let remote = lane.remote_by(&proxy.endpoint(), under);
        let queue = UploadQueue::builder(config(dir.path()), remote)
            .open()
            .await
            .unwrap();
        Self {
            proxy,
            queue,
            _dir: dir,
            under,
        }
    }

    async fn submit(&self, sizes: &[usize]) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let (key, body) = (format!("k{n}"), bytes(*size, n as u8));
            receipts.push(
                self.queue
                    .submit(key, body, Options::default())
                    .await
                    .unwrap(),
            );
        }
        receipts
    }

    /// Waits until uploads are in the middle of it.
    async fn under_way(&self, bytes: usize) {
        let before = self.proxy.counters().bytes_up;
        let some = |seen: &WireCounters| seen.bytes_up >= before + bytes as u64;
        self.proxy.wait_for(some, DEADLINE).await.unwrap();
    }

    async fn finish(self, lane: &Lane, sizes: &[usize], receipts: &[Receipt]) {
        for receipt in receipts {
            uploaded(receipt, self.under).await;
        }
        let unknown = self.queue.snapshot().unknown;
        let report = self.queue.shutdown().await.unwrap();
        assert_eq!((report.deferred, report.quarantined), (0, 0), "{report:?}");
        for (n, size) in sizes.iter().enumerate() {
            let found = lane.object(&format!("{}/k{n}", self.under)).await;
            assert_eq!(found, Some(bytes(*size, n as u8)), "k{n}");
        }
        assert_eq!(lane.uploads().await, [""; 0], "{}", self.under);
        lane.sweep(self.under).await;
        lane.say(&format!("{}: ok ({unknown} lost replies)", self.under));
    }
}

const SIZES: [usize; 4] = [MIB, 3 * MIB, 11 * MIB, 1000];

/// Frozen in the middle of uploads, for longer than an attempt may take; then thawed.
async fn paused(lane: &Lane, server: &Server) {
    let slow = Slow::new(lane, server, "paused").await;
    let receipts = slow.submit(&SIZES).await;
    slow.under_way(MIB).await;
    server.container.pause().await.expect("is paused");
    // Nothing is answered: what comes anew has taken the place of an attempt that ended.
    let frozen = slow.proxy.counters().requests;
    let again = |seen: &WireCounters| seen.requests >= frozen + 4;
    let again = slow.proxy.wait_for(again, DEADLINE).await;
    again.expect("attempts end at their deadlines");
    assert!(
        receipts
            .iter()
            .any(|receipt| receipt.settlement().is_none())
    );
    server.container.unpause().await.expect("is thawed");
    slow.finish(lane, &SIZES, &receipts).await;
}

/// Stopped in the middle of uploads; more is submitted; started again, with its data, perhaps on
/// another port.
async fn stopped(lane: &mut Lane, server: &Server) {
    let before = server.address().await;
    let slow = Slow::new(lane, server, "stopped").await;
    let receipts = slow.submit(&SIZES).await;
    slow.under_way(MIB).await;
    server
        .container
        .stop_with_timeout(Some(10))
        .await
        .expect("is stopped");
    assert!(!server.container.is_running().await.expect("is known"));
    let failed = slow.queue.snapshot().requests;
    let tried = async {
        while slow.queue.snapshot().requests < failed + 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, tried)
        .await
        .expect("it is tried on");
    let after = server.again(lane).await;
    lane.say(&format!("stopped at {before}, back at {after}"));
    lane.moved(server.endpoint().await);
    slow.proxy.retarget(after);
    slow.finish(lane, &SIZES, &receipts).await;
}

/// Killed (SIGKILL) in the middle of an upload in parts, and started again.
async fn killed(lane: &mut Lane, server: &Server) {
    let slow = Slow::new(lane, server, "killed").await;
    let sizes = [16 * MIB];
    let receipts = slow.submit(&sizes).await;
    // The first part is there, the next ones are on their way.
    slow.under_way(8 * MIB).await;
    server.kill().await;
    assert!(
        receipts
            .iter()
            .all(|receipt| receipt.settlement().is_none())
    );
    let after = server.again(lane).await;
    lane.moved(server.endpoint().await);
    slow.proxy.retarget(after);
    slow.finish(lane, &sizes, &receipts).await;
}
