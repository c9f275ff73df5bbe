//! Starting a server: its configuration, its thread, its accept loop.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::S3Server;
use super::conn::{Control, Stream};
use super::convert;
use super::counters::{Gauge, Recorder};
use super::error::StoreError;
use super::faults::FaultPlan;
use super::front::{Front, MAX_LATE};
use super::s3::Service;
use super::store::Store;

/// How many connections are served at one time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// How long stopping waits for tasks, and then for the threads of the runtime.
const STOP_DEADLINE: Duration = Duration::from_secs(4);
/// The threads of the server's own runtime.
const THREADS: usize = 2;

/// How a server is to be. See [`S3Server::builder`] for the defaults.
#[derive(Debug, Clone)]
pub struct S3ServerBuilder {
    credentials: HashMap<String, Secret>,
    buckets: Vec<String>,
    directory: Option<PathBuf>,
    listen: SocketAddr,
    region: String,
    min_part_bytes: u64,
    max_body_bytes: u64,
    runtime: Option<Handle>,
}

/// A secret key, which does not show itself.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl S3ServerBuilder {
    pub(super) fn new() -> Self {
        Self {
            credentials: HashMap::new(),
            buckets: Vec::new(),
            directory: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            region: "us-east-1".to_owned(),
            min_part_bytes: 5 << 20,
            max_body_bytes: 5 << 30,
            runtime: None,
        }
    }

    /// Accepts these credentials; may be called more than once. Default: `test`, `test-secret`.
    #[must_use]
    pub fn credentials(mut self, access_key: &str, secret_key: &str) -> Self {
        self.credentials
            .insert(access_key.to_owned(), Secret(secret_key.to_owned()));
        self
    }

    /// Makes this bucket where it is not there yet; may be called more than once.
    #[must_use]
    pub fn bucket(mut self, name: &str) -> Self {
        self.buckets.push(name.to_owned());
        self
    }

    /// Keeps everything in this directory: it survives the server, and a `kill` of its process,
    /// but is not synced. One server at a time.
    #[must_use]
    pub fn dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Keeps everything in memory: the default.
    #[must_use]
    pub fn memory(mut self) -> Self {
        self.directory = None;
        self
    }

    /// Listens here. Default: a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The region that requests must be signed for. Default: `us-east-1`.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.region);
        self
    }

    /// The least size of a part that is not the last, in bytes. Default: 5 MiB, as S3's.
    #[must_use]
    pub fn min_part_bytes(mut self, bytes: u64) -> Self {
        self.min_part_bytes = bytes;
        self
    }

    /// The largest body, in bytes. Default: 5 GiB, as S3's.
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: u64) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// Runs on this runtime instead of a thread of its own. It must have I/O and time enabled.
    #[must_use]
    pub fn on_runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Starts the server; it accepts connections when this returns.
    ///
    /// # Errors
    /// Where the address is taken, the directory cannot be read or is in use, or a bucket's
    /// name is not allowed.
    ///
    /// # Cancel safety
    /// Dropped, a server that has started meanwhile stops again.
    pub async fn start(self) -> io::Result<S3Server> {
        match self.launch().await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other(
                "the server's thread ended while it started",
            )),
        }
    }

    /// As [`S3ServerBuilder::start`], for a caller without a runtime.
    ///
    /// # Errors
    /// As there; also on a thread of an async runtime, which must not block.
    pub fn start_blocking(self) -> io::Result<S3Server> {
        if Handle::try_current().is_ok() {
            return Err(io::Error::other(
                "start_blocking on a thread of an async runtime",
            ));
        }
        match self.launch().blocking_recv() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other(
                "the server's thread ended while it started",
            )),
        }
    }

    fn launch(mut self) -> oneshot::Receiver<io::Result<S3Server>> {
        let (started, receiver) = oneshot::channel();
        let (stopped_tx, stopped) = watch::channel(false);
        if let Some(runtime) = self.runtime.take() {
            runtime.clone().spawn(async move {
                // Dropped with the task, also where the runtime goes first.
                let stopped_tx = stopped_tx;
                self.run(runtime, started, stopped, None).await;
                stopped_tx.send_replace(true);
            });
            return receiver;
        }
        let (thread_tx, thread) = mpsc::sync_channel(1);
        let name = "s3-test-server".to_owned();
        // Where no thread can be had, `started` is dropped, which `start` reports.
        let _ = std::thread::Builder::new().name(name).spawn(move || {
            let _thread = thread_tx;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("s3-test-server")
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let handle = runtime.handle().clone();
            runtime.block_on(self.run(handle, started, stopped, Some(thread)));
            runtime.shutdown_timeout(STOP_DEADLINE);
            stopped_tx.send_replace(true);
        });
        receiver
    }

    /// Runs the server from its start to its end.
    async fn run(
        self,
        runtime: Handle,
        started: oneshot::Sender<io::Result<S3Server>>,
        stopped: watch::Receiver<bool>,
        thread: Option<mpsc::Receiver<()>>,
    ) {
        let (listener, store) = match self.open().await {
            Ok(opened) => opened,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let address = listener.local_addr().unwrap_or(self.listen);
        let store = Arc::new(store);
        let recorder = Recorder::new();
        let faults = FaultPlan::default();
        let stop = CancellationToken::new();
        let front = Arc::new(self.front(&store, &recorder, &faults, &stop));
        let server = S3Server {
            address,
            store,
            faults,
            recorder,
            stop,
            runtime,
            stopped,
            thread: Mutex::new(thread),
        };
        if let Err(unwanted) = started.send(Ok(server)) {
            if let Ok(server) = &unwanted {
                // Dropped here, it must not wait for the thread that it is dropped on.
                server.thread.lock().take();
            }
            return;
        }
        serve(listener, &front).await;
        front.tasks.close();
        // What does not end in time ends with the runtime.
        let _ = tokio::time::timeout(STOP_DEADLINE, front.tasks.wait()).await;
    }

    async fn open(&self) -> io::Result<(TcpListener, Store)> {
        for name in &self.buckets {
            if !s3s::path::check_bucket_name(name) {
                let text = format!("'{name}' cannot be the name of a bucket");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        let listener = TcpListener::bind(self.listen).await?;
        let (directory, min_part_bytes) = (self.directory.clone(), self.min_part_bytes);
        let buckets = self.buckets.clone();
        let store = convert::off_the_runtime(move || {
            let store = match directory {
                Some(directory) => Store::in_directory(&directory, min_part_bytes)?,
                None => Store::in_memory(min_part_bytes),
            };
            for name in buckets {
                match store.create_bucket(&name) {
                    Ok(()) | Err(StoreError::BucketAlreadyOwnedByYou) => {}
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            Ok(store)
        })
        .await
        .map_err(io::Error::other)??;
        Ok((listener, store))
    }

    fn front(
        &self,
        store: &Arc<Store>,
        recorder: &Arc<Recorder>,
        faults: &FaultPlan,
        stop: &CancellationToken,
    ) -> Front {
        let region: Arc<str> = self.region.as_str().into();
        let mut keys: HashMap<String, SecretKey> = self
            .credentials
            .iter()
            .map(|(key, secret)| (key.clone(), SecretKey::from(secret.0.as_str())))
            .collect();
        if keys.is_empty() {
            keys.insert("test".to_owned(), SecretKey::from("test-secret"));
        }
        let service = Service {
            store: Arc::clone(store),
            region: Arc::clone(&region),
        };
        let mut builder = S3ServiceBuilder::new(service);
        builder.set_auth(Keys(keys));
        Front {
            s3: builder.build(),
            region,
            faults: faults.clone(),
            recorder: Arc::clone(recorder),
            max_body_bytes: self.max_body_bytes,
            late: Arc::new(Semaphore::new(MAX_LATE)),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        }
    }
}

/// The credentials that are accepted, with S3's answer to others.
struct Keys(HashMap<String, SecretKey>);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.0
            .get(access_key)
            .cloned()
            .ok_or_else(|| s3_error!(InvalidAccessKeyId, "the access key does not exist"))
    }
}

/// Accepts connections until told to stop.
async fn serve(listener: TcpListener, front: &Arc<Front>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    front
                        .tasks
                        .spawn(connection(Arc::clone(front), stream, permit));
                }
                // Out of file descriptors, most likely: others must close theirs first.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::select! {
        () = front.stop.cancelled() => {}
        () = accept => {}
    }
}

async fn connection(front: Arc<Front>, stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let _gauge = Gauge::raise(&front.recorder, |c| &mut c.connections);
    // Slower without, not wrong.
    let _ = stream.set_nodelay(true);
    let control = Arc::new(Control::default());
    let service = service_fn(|request| Arc::clone(&front).handle(Arc::clone(&control), request));
    let stream = TokioIo::new(Stream::new(stream, Arc::clone(&control)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(stream, service);
    tokio::select! {
        // Its errors are the client's, which sees them itself.
        _ = connection => {}
        () = control.end.cancelled() => {}
        () = front.stop.cancelled() => {}
    }
}
