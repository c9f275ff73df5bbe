//! One connection: exchanges, one after the other, each as the plan has it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::counters::{Open, Recorder, SeenExchange};
use super::http::{
    AnswerHead, Framing, MAX_HEAD, RequestHead, answer_head, end_of_head, request_head,
};
use super::link::{Link, Pace, Way};
use super::plan::{Strike, WireFault, WirePlan};
use super::stream::{Acceptor, Stream};

/// How much is read at one time, in bytes.
const READ: usize = 64 * 1024;
/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub upstream: Mutex<SocketAddr>,
    pub plan: WirePlan,
    pub link: Link,
    pub recorder: Arc<Recorder>,
    /// Resets all connections there are when cancelled; then there is another.
    pub cut: Mutex<CancellationToken>,
    pub stop: CancellationToken,
}

/// One end of the proxy: a stream, and what was read of it and not used.
struct Side {
    stream: Stream,
    read: BytesMut,
}

impl Side {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
        }
    }

    /// Makes its end a RST: with a linger of zero, close forgets what is unsent. Where it cannot
    /// be set the peer has gone already.
    fn reset(&self) {
        let _ = self.stream.tcp().set_zero_linger();
    }
}

/// How a connection ends: what is not here is dropped, which closes it.
enum End {
    /// Both sides as they are.
    Close,
    /// Both sides by a RST.
    Reset,
}

/// Serves one connection to its end.
pub(super) async fn connection(shared: &Shared, acceptor: Acceptor, stream: TcpStream) {
    let _open = Open::new(&shared.recorder);
    let cut = shared.cut.lock().clone();
    // Slower without, not wrong.
    let _ = stream.set_nodelay(true);
    let accepted = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return,
        () = cut.cancelled() => return,
        accepted = acceptor.accept(stream) => accepted,
    };
    let Ok(stream) = accepted else {
        shared
            .recorder
            .update(|counters| counters.failed_handshakes += 1);
        return;
    };
    let mut wire = Wire {
        shared,
        client: Side::new(stream),
        server: None,
    };
    let end = tokio::select! {
        biased;
        () = shared.stop.cancelled() => End::Close,
        () = cut.cancelled() => End::Reset,
        end = wire.run() => end.unwrap_or(End::Close),
    };
    if matches!(end, End::Reset) {
        wire.client.reset();
        if let Some(server) = &wire.server {
            server.reset();
        }
    }
}

/// What became of a request that was sent on.
enum Forwarded {
    /// The head of its answer is here; and whether all of the request had gone before.
    Answered(AnswerHead, BytesMut, bool),
    /// There is none.
    Ended(End),
}

struct Wire<'s> {
    shared: &'s Shared,
    client: Side,
    server: Option<Side>,
}

impl Wire<'_> {
    async fn run(&mut self) -> io::Result<End> {
        let mut is_reused = false;
        loop {
            let Some((head, bytes)) = self.next_request().await? else {
                return Ok(End::Close);
            };
            let strike = self.shared.plan.decide(&head, is_reused);
            self.shared.recorder.exchange(SeenExchange {
                method: head.method.clone(),
                target: head.target.clone(),
                at: Duration::ZERO,
                is_reused,
                fault: strike.as_ref().map(|strike| strike.fault),
            });
            if let Some(end) = self.exchange(head, bytes, strike).await? {
                return Ok(end);
            }
            is_reused = true;
        }
    }

    /// The next request's head; `None` where either side has gone.
    async fn next_request(&mut self) -> io::Result<Option<(RequestHead, BytesMut)>> {
        let head = read_head(&mut self.client.stream, &mut self.client.read);
        let bytes = match &mut self.server {
            None => head.await?,
            // A server that closes while nothing is asked of it takes the client's side with it.
            Some(server) => tokio::select! {
                biased;
                bytes = head => bytes?,
                _ = more(&mut server.stream, &mut server.read) => None,
            },
        };
        match bytes {
            Some(bytes) => Ok(Some((request_head(&bytes)?, bytes))),
            None => Ok(None),
        }
    }

    /// One exchange; how the connection ends, if it does.
    async fn exchange(
        &mut self,
        head: RequestHead,
        bytes: BytesMut,
        strike: Option<Strike>,
    ) -> io::Result<Option<End>> {
        let fault = strike.as_ref().map(|strike| strike.fault);
        match fault {
            Some(WireFault::CloseIdle) => return Ok(Some(End::Close)),
            Some(WireFault::ResetBeforeBody) => return Ok(Some(End::Reset)),
            Some(WireFault::HalfOpen) => {
                released(strike).await;
                return Ok(Some(End::Reset));
            }
            _ => {}
        }
        self.shared.link.latency().await;
        if !self.connect().await {
            return Ok(Some(End::Reset));
        }
        let (answer, bytes, is_whole) = match self.forward(head, bytes, fault).await? {
            Forwarded::Answered(answer, bytes, is_whole) => (answer, bytes, is_whole),
            Forwarded::Ended(end) => return Ok(Some(end)),
        };
        self.shared
            .recorder
            .update(|counters| counters.answers += 1);
        match fault {
            Some(WireFault::ResetBeforeAnswer) => return Ok(Some(End::Reset)),
            Some(WireFault::CloseBeforeAnswer) => return Ok(Some(End::Close)),
            Some(WireFault::AnswerLost) => {
                released(strike).await;
                return Ok(Some(End::Reset));
            }
            _ => {}
        }
        // Of a request that was answered before all of it came, the rest is not waited for.
        let is_last = answer.is_last || !is_whole || fault == Some(WireFault::HalfAnswer);
        self.answer(answer, bytes, fault).await?;
        Ok(is_last.then_some(End::Close))
    }

    /// Sends the request on, up to the head of its answer.
    async fn forward(
        &mut self,
        head: RequestHead,
        bytes: BytesMut,
        fault: Option<WireFault>,
    ) -> io::Result<Forwarded> {
        let Some(server) = &mut self.server else {
            return Ok(Forwarded::Ended(End::Reset));
        };
        let limit = match fault {
            Some(WireFault::ResetMidBody) => Some(head.framing.length().unwrap_or(2) / 2),
            _ => None,
        };
        let mut up = Up {
            shared: self.shared,
            pace: Pace::new(&self.shared.link, Way::Up, rate(fault, Way::Up)),
            limit,
        };
        let (mut from_client, mut to_client) = tokio::io::split(&mut self.client.stream);
        let (mut from_server, mut to_server) = tokio::io::split(&mut server.stream);
        let request = (bytes, head.framing);
        let read = &mut self.client.read;
        let sent = up.send(&mut from_client, read, &mut to_server, request);
        let read = &mut server.read;
        let answered = final_head(&mut from_server, read, &mut to_client, &head.method);
        tokio::pin!(sent, answered);
        let mut is_whole = false;
        loop {
            tokio::select! {
                biased;
                done = &mut sent, if !is_whole => {
                    done?;
                    is_whole = true;
                    if limit.is_some() {
                        return Ok(Forwarded::Ended(End::Reset));
                    }
                }
                answer = &mut answered => return Ok(match answer? {
                    Some((answer, bytes)) => Forwarded::Answered(answer, bytes, is_whole),
                    None => Forwarded::Ended(End::Close),
                }),
            }
        }
    }

    /// Passes the answer on, or half of it.
    async fn answer(
        &mut self,
        answer: AnswerHead,
        mut bytes: BytesMut,
        fault: Option<WireFault>,
    ) -> io::Result<()> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let shared = self.shared;
        shared.link.latency().await;
        let mut limit = None;
        if fault == Some(WireFault::HalfAnswer) {
            match answer.framing.length() {
                Some(0) => bytes.truncate(bytes.len() / 2),
                length => limit = Some(length.unwrap_or(2) / 2),
            }
        }
        let has_body = bytes.ends_with(b"\r\n\r\n");
        let mut pace = Pace::new(&shared.link, Way::Down, rate(fault, Way::Down));
        let count = |n: u64| shared.recorder.update(|counters| counters.bytes_down += n);
        let to = &mut self.client.stream;
        relay_bytes(bytes, to, &mut pace, count).await?;
        if has_body {
            let mut body = Body {
                framing: answer.framing,
                limit,
            };
            let from = &mut server.stream;
            body.relay(from, &mut server.read, to, &mut pace, count)
                .await?;
        }
        to.flush().await
    }

    async fn connect(&mut self) -> bool {
        if self.server.is_some() {
            return true;
        }
        let upstream = *self.shared.upstream.lock();
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(upstream)).await;
        let Ok(Ok(stream)) = connected else {
            return false;
        };
        let _ = stream.set_nodelay(true);
        self.server = Some(Side::new(Stream::Plain(stream)));
        true
    }
}

/// Until the rule is removed.
async fn released(strike: Option<Strike>) {
    if let Some(strike) = strike {
        strike.removed.cancelled().await;
    }
}

/// The rate of a fault's own, if it has one for this way.
fn rate(fault: Option<WireFault>, way: Way) -> Option<u64> {
    match (fault, way) {
        (Some(WireFault::Trickle(rate)), Way::Up)
        | (Some(WireFault::TrickleAnswer(rate)), Way::Down) => Some(rate),
        _ => None,
    }
}

/// A request on its way to the server.
struct Up<'s> {
    shared: &'s Shared,
    pace: Pace<'s>,
    limit: Option<u64>,
}

impl Up<'_> {
    async fn send(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        read: &mut BytesMut,
        to: &mut (impl AsyncWrite + Unpin),
        (head, framing): (BytesMut, Framing),
    ) -> io::Result<()> {
        let recorder = &self.shared.recorder;
        let count = |n: u64| recorder.update(|counters| counters.bytes_up += n);
        relay_bytes(head, to, &mut self.pace, count).await?;
        let mut body = Body {
            framing,
            limit: self.limit,
        };
        body.relay(from, read, to, &mut self.pace, count).await?;
        to.flush().await
    }
}

/// Passes bytes on that are here.
async fn relay_bytes(
    mut bytes: BytesMut,
    to: &mut (impl AsyncWrite + Unpin),
    pace: &mut Pace<'_>,
    count: impl Fn(u64),
) -> io::Result<()> {
    while !bytes.is_empty() {
        let step = bytes.split_to(pace.step().min(bytes.len()));
        pace.pass(step.len()).await;
        to.write_all(&step).await?;
        count(step.len() as u64);
    }
    Ok(())
}

/// A body on its way.
struct Body {
    framing: Framing,
    /// How much of it passes.
    limit: Option<u64>,
}

impl Body {
    async fn relay(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        read: &mut BytesMut,
        to: &mut (impl AsyncWrite + Unpin),
        pace: &mut Pace<'_>,
        count: impl Fn(u64),
    ) -> io::Result<()> {
        while !self.framing.is_done() && self.limit != Some(0) {
            if read.is_empty() && more(from, read).await? == 0 {
                return match self.framing {
                    Framing::UntilClose => Ok(()),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let most = self
                .limit
                .map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX));
            let step = read.len().min(pace.step()).min(most);
            let taken = self.framing.consume(read.get(..step).unwrap_or_default())?;
            let step = read.split_to(taken);
            if let Some(limit) = &mut self.limit {
                *limit -= taken as u64;
            }
            pace.pass(taken).await;
            to.write_all(&step).await?;
            count(taken as u64);
        }
        Ok(())
    }
}

/// Reads what is there, up to a bound.
async fn more(from: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> io::Result<usize> {
    // Left to itself, a buffer that was emptied grows by a few bytes at a time.
    read.reserve(READ);
    from.read_buf(read).await
}

/// Reads a head; `None` where the stream ends before it begins.
async fn read_head(
    from: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
) -> io::Result<Option<BytesMut>> {
    loop {
        if let Some(end) = end_of_head(read) {
            return Ok(Some(read.split_to(end)));
        }
        if read.len() > MAX_HEAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a head has no end",
            ));
        }
        if more(from, read).await? == 0 {
            return if read.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
}

/// The head of the answer that counts; interim ones (`100 Continue`) are passed on.
async fn final_head(
    from: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
    to: &mut (impl AsyncWrite + Unpin),
    method: &str,
) -> io::Result<Option<(AnswerHead, BytesMut)>> {
    loop {
        let Some(bytes) = read_head(from, read).await? else {
            return Ok(None);
        };
        let head = answer_head(&bytes, method)?;
        if !(100..200).contains(&head.status) {
            return Ok(Some((head, bytes)));
        }
        to.write_all(&bytes).await?;
        to.flush().await?;
    }
}
