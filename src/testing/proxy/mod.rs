//! A TCP proxy in front of an S3 server, on which the wire goes wrong as it is told.
//!
//! Owns: [`WireProxy`], its thread, its door. The server behind it answers as it always does; what
//! fails here is the way there: connections that are refused, reset at a known byte, half open,
//! slow, or closed while they lie idle in a client's pool. It knows just enough HTTP/1.1 to tell
//! where a request's body begins and an answer ends.
//!
//! | file | owns |
//! |---|---|
//! | `plan` | [`WireFault`], [`WireRule`]: which exchange goes wrong, and how |
//! | `link` | [`LinkSpeed`]: bandwidth and latency |
//! | `http` | where heads and bodies end |
//! | `counters` | [`WireCounters`] |
//! | `serve`, `stream` | one connection, with or without TLS |
//! | `tls` | certificates, good and bad (feature `testing-tls`) |
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use s3_writeback::testing::{S3Server, WireFault, WireProxy, WireRule};
//!
//! let server = S3Server::builder().bucket("b").start().await?;
//! let proxy = WireProxy::to(server.address()).start().await?;
//! // The server carries the first PUT out, and its client does not hear of it.
//! proxy.plan().add(WireRule::new(WireFault::ResetBeforeAnswer).method("PUT").once());
//! println!("{}", proxy.endpoint());
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! 1. It runs on a thread of its own: a caller's runtime that blocks, or whose clock is paused,
//!    does not stall it.
//! 2. Connections, rules and buffers are bounded. After [`WireProxy::stop`] nothing of it runs.
//! 3. What no rule is about passes unchanged, byte for byte.

mod counters;
mod http;
mod link;
mod plan;
mod serve;
mod stream;
#[cfg(feature = "testing-tls")]
mod tls;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use counters::{SeenExchange, WireCounters, WireWaitError};
pub use link::LinkSpeed;
pub use plan::{WireFault, WirePlan, WireRule, WireRuleId};
#[cfg(feature = "testing-tls")]
pub use tls::ProxyCertificate;

use counters::Recorder;
use link::Link;
use serve::Shared;

/// How many connections there are at one time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 1024;
/// What the kernel may keep of a client's bytes that the proxy has not read, in bytes: small, so
/// that a slow link is felt.
const RECEIVE_BUFFER: u32 = 64 * 1024;
/// How long stopping waits for connections, and dropping for the thread.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How a proxy is to be. See [`WireProxy::to`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `start` is waited for"]
pub struct WireProxyBuilder {
    upstream: SocketAddr,
    listen: SocketAddr,
    link: LinkSpeed,
    #[cfg(feature = "testing-tls")]
    certificate: Option<ProxyCertificate>,
}

impl WireProxyBuilder {
    /// Listens here. Default: a free port of 127.0.0.1.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The link from the start on. Default: as fast as it goes.
    pub fn link(mut self, link: LinkSpeed) -> Self {
        self.link = link;
        self
    }

    /// Ends TLS here, with such a certificate; the server behind is spoken to in plain HTTP.
    #[cfg(feature = "testing-tls")]
    pub fn tls(mut self, certificate: ProxyCertificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Starts it; it accepts connections when this returns.
    ///
    /// # Errors
    /// Where the address is taken, or no thread or certificate can be had.
    ///
    /// # Cancel safety
    /// Dropped, a proxy that has started meanwhile stops again.
    pub async fn start(self) -> io::Result<WireProxy> {
        let (started, receiver) = oneshot::channel();
        let (ended, thread) = mpsc::sync_channel(1);
        let name = "s3-wire-proxy".to_owned();
        std::thread::Builder::new().name(name).spawn(move || {
            let _ended: mpsc::SyncSender<()> = ended;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(self.run(started, thread)),
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        let died = |_| io::Error::other("the proxy's thread ended while it started");
        receiver.await.map_err(died)?
    }

    async fn run(
        self,
        started: oneshot::Sender<io::Result<WireProxy>>,
        thread: mpsc::Receiver<()>,
    ) {
        let made = self.make(thread);
        let (proxy, listener, acceptor) = match made {
            Ok(made) => made,
            Err(error) => return drop(started.send(Err(error))),
        };
        let (shared, door) = (Arc::clone(&proxy.shared), proxy.door.subscribe());
        let is_open = proxy.is_open.clone();
        let address = proxy.address;
        if let Err(unwanted) = started.send(Ok(proxy)) {
            if let Ok(proxy) = &unwanted {
                // Dropped here, it must not wait for the thread that it is dropped on.
                proxy.thread.lock().take();
            }
            return;
        }
        let tasks = TaskTracker::new();
        let doorman = Doorman {
            address,
            door,
            is_open,
            acceptor,
        };
        let is_open = Arc::clone(&doorman.is_open);
        let why = doorman.run(listener, &shared, &tasks).await;
        tasks.close();
        // What does not end in time ends with the runtime.
        let _ = tokio::time::timeout(STOP_DEADLINE, tasks.wait()).await;
        is_open.send_modify(|now| *now = Err(why));
    }

    fn make(self, thread: mpsc::Receiver<()>) -> io::Result<Made> {
        let listener = open(self.listen)?;
        let address = listener.local_addr()?;
        let (acceptor, authority) = self.acceptor()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(self.upstream),
            plan: WirePlan::default(),
            link: Link::new(self.link),
            recorder: Recorder::new(),
            cut: Mutex::new(CancellationToken::new()),
            stop: CancellationToken::new(),
        });
        let proxy = WireProxy {
            address,
            authority,
            is_tls: acceptor.is_tls(),
            shared,
            door: watch::Sender::new(true),
            is_open: Arc::new(watch::Sender::new(Ok(true))),
            runtime: Handle::current(),
            thread: Mutex::new(Some(thread)),
        };
        Ok((proxy, listener, acceptor))
    }

    #[cfg(feature = "testing-tls")]
    fn acceptor(&self) -> io::Result<(stream::Acceptor, Option<String>)> {
        let Some(certificate) = self.certificate else {
            return Ok((stream::Acceptor::Plain, None));
        };
        let made = tls::make(certificate).map_err(io::Error::other)?;
        Ok((stream::Acceptor::Tls(made.acceptor), Some(made.authority)))
    }

    #[cfg(not(feature = "testing-tls"))]
    fn acceptor(&self) -> io::Result<(stream::Acceptor, Option<String>)> {
        Ok((stream::Acceptor::Plain, None))
    }
}

type Made = (WireProxy, TcpListener, stream::Acceptor);

/// Whether the door is as it was asked to be, or why it cannot be.
type Door = Result<bool, String>;

/// A running proxy. Dropping it stops it.
#[derive(Debug)]
pub struct WireProxy {
    address: SocketAddr,
    authority: Option<String>,
    is_tls: bool,
    shared: Arc<Shared>,
    /// Whether it is to accept connections.
    door: watch::Sender<bool>,
    /// Whether it does.
    is_open: Arc<watch::Sender<Door>>,
    runtime: Handle,
    /// Loses its sender when the thread has ended.
    thread: Mutex<Option<mpsc::Receiver<()>>>,
}

impl WireProxy {
    /// A proxy to the server at `upstream`, on a free port of 127.0.0.1, over which everything
    /// passes until it is told otherwise.
    pub fn to(upstream: SocketAddr) -> WireProxyBuilder {
        WireProxyBuilder {
            upstream,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            link: LinkSpeed::default(),
            #[cfg(feature = "testing-tls")]
            certificate: None,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, for a client with path-style addressing.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Who signed its certificate, in PEM, for a client to trust; `None` without TLS.
    #[must_use]
    pub fn authority_pem(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// What goes wrong.
    #[must_use]
    pub fn plan(&self) -> &WirePlan {
        &self.shared.plan
    }

    /// Changes the link, also for what is on its way.
    pub fn set_link(&self, speed: LinkSpeed) {
        self.shared.link.set(speed);
    }

    /// New connections go to this server: it has come back on another port.
    pub fn retarget(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock() = upstream;
    }

    /// Resets every connection there is now.
    pub fn cut_all(&self) {
        let fresh = CancellationToken::new();
        std::mem::replace(&mut *self.shared.cut.lock(), fresh).cancel();
    }

    /// Refuses new connections (`ECONNREFUSED`) from its return on; those there are stay.
    ///
    /// # Errors
    /// Where the port cannot be kept, or the proxy has stopped.
    ///
    /// # Cancel safety
    /// It happens all the same.
    pub async fn refuse(&self) -> io::Result<()> {
        self.turn(false).await
    }

    /// Undoes [`WireProxy::refuse`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// It happens all the same.
    pub async fn accept(&self) -> io::Result<()> {
        self.turn(true).await
    }

    async fn turn(&self, open: bool) -> io::Result<()> {
        let mut is_open = self.is_open.subscribe();
        self.door.send_replace(open);
        let turned =
            is_open.wait_for(|now| now.as_ref().is_ok_and(|now| *now == open) || now.is_err());
        // Its sender lives as long as this proxy.
        match turned.await.as_deref() {
            Ok(Err(why)) => Err(io::Error::other(why.clone())),
            _ => Ok(()),
        }
    }

    /// What it saw, as of now.
    #[must_use]
    pub fn counters(&self) -> WireCounters {
        self.shared.recorder.snapshot()
    }

    /// Waits until the counters say so; the counters then. The deadline is of real time, also
    /// where the caller's clock is paused. `test` runs under their lock.
    ///
    /// # Errors
    /// [`WireWaitError`] where the deadline passes first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for(
        &self,
        test: impl FnMut(&WireCounters) -> bool,
        deadline: Duration,
    ) -> Result<WireCounters, WireWaitError> {
        let recorder = &self.shared.recorder;
        recorder.wait_for(test, deadline, &self.runtime).await
    }

    /// Closes the door and all connections, and waits for them: at most five seconds. May be
    /// called more than once.
    ///
    /// # Cancel safety
    /// Cancel safe: it stops all the same.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let mut is_open = self.is_open.subscribe();
        let gone = is_open.wait_for(|now| now.is_err());
        let _ = tokio::time::timeout(STOP_DEADLINE, gone).await;
    }
}

impl Drop for WireProxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.lock().take() {
            // Whoever drops it may listen on its port at once.
            let _ = thread.recv_timeout(STOP_DEADLINE);
        }
    }
}

/// A listener that can be closed and opened again on its port.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    closed(address)?.listen(MAX_CONNECTIONS as u32)
}

/// A socket that has the port, and refuses.
fn closed(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Handed on to what it accepts.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Accepts connections, or refuses them.
struct Doorman {
    address: SocketAddr,
    door: watch::Receiver<bool>,
    is_open: Arc<watch::Sender<Door>>,
    acceptor: stream::Acceptor,
}

impl Doorman {
    /// Until it is told to stop, or cannot go on; why it ended.
    async fn run(
        mut self,
        listener: TcpListener,
        shared: &Arc<Shared>,
        tasks: &TaskTracker,
    ) -> String {
        let stop = shared.stop.clone();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = self.turns(listener, shared, tasks) => ended,
        };
        shared.stop.cancel();
        match ended {
            Ok(()) => "the proxy has stopped".to_owned(),
            Err(error) => format!("the proxy has stopped: {error}"),
        }
    }

    async fn turns(
        &mut self,
        mut listener: TcpListener,
        shared: &Arc<Shared>,
        tasks: &TaskTracker,
    ) -> io::Result<()> {
        loop {
            self.is_open.send_modify(|now| *now = Ok(true));
            let mut door = self.door.clone();
            tokio::select! {
                biased;
                asked = door.wait_for(|open| !open) => drop(asked.map_err(io::Error::other)?),
                () = self.accept(&listener, shared, tasks) => {}
            }
            drop(listener);
            let kept = closed(self.address)?;
            self.is_open.send_modify(|now| *now = Ok(false));
            let asked = self.door.wait_for(|open| *open).await;
            drop(asked.map_err(io::Error::other)?);
            listener = kept.listen(MAX_CONNECTIONS as u32)?;
        }
    }

    async fn accept(&self, listener: &TcpListener, shared: &Arc<Shared>, tasks: &TaskTracker) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (shared, acceptor) = (Arc::clone(shared), self.acceptor.clone());
                    tasks.spawn(async move {
                        let _place = place;
                        serve::connection(&shared, acceptor, stream).await;
                    });
                }
                // Out of file descriptors, most likely: others must close theirs first.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
