//! A server that does what it is told, for one request after the other: answers, breaks off,
//! resets, hangs. It speaks just enough HTTP/1.1 for the S3 SDK and remembers what it was sent.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What is done with one request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answers.
    Reply {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Promises `promised` bytes, sends `body`, and closes.
    CutOff {
        status: u16,
        headers: Vec<(String, String)>,
        promised: usize,
        body: Vec<u8>,
    },
    /// Reads the whole request and resets the connection.
    Reset,
    /// Reads the whole request and closes the connection.
    Close,
    /// Reads the whole request and never answers.
    NeverAnswer,
    /// Accepts the connection and never reads.
    NeverRead,
    /// Answers the first bytes of a connection, whatever they are, and closes it.
    Babble(Vec<u8>),
}

impl Action {
    pub fn ok() -> Self {
        Self::with(200, &[("etag", "\"abc\"")], "")
    }

    pub fn with(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self::Reply {
            status,
            headers: headers.iter().map(own).collect(),
            body: body.into(),
        }
    }

    /// S3's way to say no; without a body where there is no code.
    pub fn error(status: u16, code: &str) -> Self {
        if code.is_empty() {
            return Self::with(status, &[], "");
        }
        Self::with(
            status,
            &[("content-type", "application/xml")],
            error_body(code),
        )
    }
}

pub fn error_body(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>scripted</Message><RequestId>1</RequestId></Error>"
    )
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Captured {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Captured {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Action>>,
    captured: Mutex<Vec<Captured>>,
    /// Requests, and connections that were not read.
    attempts: Mutex<usize>,
    connections: Mutex<usize>,
}

impl Shared {
    /// The next action; the last one stays.
    fn next(&self) -> Action {
        *self.attempts.lock().unwrap() += 1;
        let mut script = self.script.lock().unwrap();
        if script.len() > 1 {
            script.pop_front().unwrap()
        } else {
            script.front().cloned().unwrap_or_else(Action::ok)
        }
    }
}

/// The server; it ends when it is dropped.
pub struct Scripted {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    pub async fn start(script: impl IntoIterator<Item = Action>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        shared.script.lock().unwrap().extend(script);
        let mut tasks = JoinSet::new();
        let inside = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                *inside.connections.lock().unwrap() += 1;
                connections.spawn(serve(stream, Arc::clone(&inside)));
            }
        });
        Self {
            address,
            shared,
            _tasks: tasks,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn attempts(&self) -> usize {
        *self.shared.attempts.lock().unwrap()
    }

    pub fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }

    pub fn captured(&self) -> Vec<Captured> {
        self.shared.captured.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    loop {
        let first = shared.script.lock().unwrap().front().cloned();
        if let Some(Action::NeverRead) = first {
            shared.next();
            std::future::pending::<()>().await;
        }
        if let Some(Action::Babble(bytes)) = first {
            shared.next();
            let _ = stream.read_buf(&mut buffer).await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            // Until the other side has closed too: a reset could overtake what was said.
            while let Ok(1..) = stream.read_buf(&mut buffer).await {}
            return;
        }
        let Some(request) = read_request(&mut stream, &mut buffer).await else {
            return;
        };
        let head = request.method == "HEAD";
        shared.captured.lock().unwrap().push(request);
        match shared.next() {
            Action::Reply {
                status,
                headers,
                body,
            } => {
                let length = body.len();
                let body = if head { Vec::new() } else { body };
                if !write(&mut stream, status, &headers, length, &body).await {
                    return;
                }
            }
            Action::CutOff {
                status,
                headers,
                promised,
                body,
            } => {
                write(&mut stream, status, &headers, promised, &body).await;
                let _ = stream.shutdown().await;
                return;
            }
            Action::Reset => {
                stream.set_zero_linger().unwrap();
                return;
            }
            Action::Close => return,
            Action::NeverAnswer | Action::NeverRead | Action::Babble(_) => {
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn write(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(String, String)],
    length: usize,
    body: &[u8],
) -> bool {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\nx-amz-request-id: 1\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        && status != 204
    {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(body).await.is_ok()
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Captured> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(Ok(0), |(_, value)| value.parse()).ok()?;
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Some(Captured {
        method,
        target,
        headers,
        body,
    })
}
