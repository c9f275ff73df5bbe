//! A client by the SDK, and one that signs by hand and may lie about everything else.

use std::net::SocketAddr;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use s3_writeback::testing::{Counters, S3Server};
use s3s::crypto::{Checksum as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub const KEY: &str = "access";
pub const SECRET: &str = "not so secret";
pub const BUCKET: &str = "bucket";
/// Nothing here takes this long; what does has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn server() -> S3Server {
    S3Server::builder()
        .credentials(KEY, SECRET)
        .bucket(BUCKET)
        .start()
        .await
        .unwrap()
}

pub fn client(server: &S3Server) -> Client {
    client_with(server, KEY, SECRET, "us-east-1", DEADLINE)
}

/// No retries: one call is one request. An older behaviour, because newer ones take a proxy from
/// the environment.
#[allow(deprecated)]
pub fn client_with(
    server: &S3Server,
    key: &str,
    secret: &str,
    region: &str,
    timeout: Duration,
) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2025_01_17())
        .region(Region::new(region.to_owned()))
        .credentials_provider(Credentials::new(key, secret, None, None, "test"))
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(timeout)
                .build(),
        )
        .build();
    Client::from_conf(config)
}

/// What the server said: the status and S3's code (or the kind of failure where there is none).
pub fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata>(
    result: Result<T, SdkError<E>>,
) -> (u16, String) {
    match result {
        Ok(value) => panic!("it succeeded: {value:?}"),
        Err(SdkError::ServiceError(error)) => (
            error.raw().status().as_u16(),
            error.err().code().unwrap_or("no code").to_owned(),
        ),
        Err(SdkError::TimeoutError(_)) => (0, "timeout".to_owned()),
        Err(SdkError::DispatchFailure(_)) => (0, "dispatch".to_owned()),
        Err(SdkError::ResponseError(_)) => (0, "response".to_owned()),
        Err(_) => (0, "construction".to_owned()),
    }
}

pub fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Waits until the server has come to this.
pub async fn until(server: &S3Server, test: impl FnMut(&Counters) -> bool) -> Counters {
    server.wait_for(test, DEADLINE).await.unwrap()
}

/// Holds requests at the server until all are there, then lets all of them go: a real race.
pub async fn at_once<F: Future>(server: &S3Server, requests: Vec<F>) -> Vec<F::Output> {
    let count = requests.len() as u64;
    let held = server.faults().hang_all();
    let release = async {
        until(server, |c| c.hung == count).await;
        server.faults().remove(held);
    };
    futures::join!(futures::future::join_all(requests), release).0
}

/// A request by hand.
pub struct Raw {
    pub method: &'static str,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub payload: String,
    pub body: Vec<u8>,
    /// How far the client's clock is off.
    pub skew_seconds: i64,
    pub content_length: Option<usize>,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// Whether the connection ended in an error instead of an end.
    pub reset: bool,
}

impl Answer {
    pub fn code(&self) -> &str {
        let rest = self.body.split_once("<Code>").map_or("", |(_, rest)| rest);
        rest.split_once("</Code>").map_or("", |(code, _)| code)
    }
}

impl Raw {
    pub fn new(method: &'static str, path: &str, body: &[u8]) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: String::new(),
            headers: Vec::new(),
            payload: hex(&Sha256::checksum(body)),
            body: body.to_vec(),
            skew_seconds: 0,
            content_length: None,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The request on the wire, signed.
    pub fn encode(&self, server: &S3Server) -> Vec<u8> {
        self.encode_for(server.address())
    }

    fn encode_for(&self, address: SocketAddr) -> Vec<u8> {
        let now = now();
        let now = DateTime::from_secs(now.secs() + self.skew_seconds);
        let time = now
            .fmt(DateTimeFormat::DateTime)
            .unwrap()
            .replace(['-', ':'], "");
        let date = &time[..8];
        let mut headers: Vec<(String, String)> = vec![
            ("host".into(), address.to_string()),
            ("x-amz-content-sha256".into(), self.payload.clone()),
            ("x-amz-date".into(), time.clone()),
        ];
        headers.extend(self.headers.clone());
        headers.sort();
        let canonical: String = headers
            .iter()
            .map(|(n, v)| format!("{n}:{}\n", v.trim()))
            .collect();
        let signed = headers
            .iter()
            .map(|(n, _)| n.as_str())
            .collect::<Vec<_>>()
            .join(";");
        let request = format!(
            "{}\n{}\n{}\n{canonical}\n{signed}\n{}",
            self.method, self.path, self.query, self.payload
        );
        let scope = format!("{date}/us-east-1/s3/aws4_request");
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
            hex(&Sha256::checksum(request.as_bytes()))
        );
        let mut key = hmac(format!("AWS4{SECRET}").as_bytes(), date.as_bytes());
        for step in ["us-east-1", "s3", "aws4_request"] {
            key = hmac(&key, step.as_bytes());
        }
        let signature = hex(&hmac(&key, to_sign.as_bytes()));
        let question = if self.query.is_empty() { "" } else { "?" };
        let mut head = format!(
            "{} {}{question}{} HTTP/1.1\r\n",
            self.method, self.path, self.query
        );
        for (name, value) in &headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "content-length: {}\r\nconnection: close\r\nauthorization: AWS4-HMAC-SHA256 \
             Credential={KEY}/{scope}, SignedHeaders={signed}, Signature={signature}\r\n\r\n",
            self.content_length.unwrap_or(self.body.len())
        ));
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Sends it and reads all there is.
    pub async fn send(&self, server: &S3Server) -> Answer {
        self.send_to(server.address()).await
    }

    /// Sends it there and reads all there is.
    pub async fn send_to(&self, address: SocketAddr) -> Answer {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&self.encode_for(address)).await.unwrap();
        read_answer(stream).await
    }
}

pub async fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await;
    let reset = read
        .expect("the server neither answered nor closed")
        .is_err();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.as_str(), ""));
    Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
        reset,
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if key.len() > 64 {
        block[..32].copy_from_slice(&Sha256::checksum(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = block.map(|b| b ^ 0x36).to_vec();
    inner.extend_from_slice(message);
    let mut outer = block.map(|b| b ^ 0x5c).to_vec();
    outer.extend_from_slice(&Sha256::checksum(&inner));
    Sha256::checksum(&outer)
}

/// The time by which the server judges signatures and dates objects.
#[expect(
    clippy::disallowed_methods,
    reason = "it goes by the machine's clock, as every S3 server does"
)]
pub fn now() -> DateTime {
    DateTime::from(std::time::SystemTime::now())
}
