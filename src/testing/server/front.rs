//! The HTTP layer in front of s3s.
//!
//! Owns: one request from its head to its answer: receiving the body whole, the fault that the
//! plan has for it, counting, the region check. Does not own: what the request means (s3s and
//! [`super::s3`]).
//!
//! Invariants:
//! 1. A body is received whole before anything acts on it: one that breaks off changes nothing.
//! 2. A request that was received whole is executed to its end, whether or not its client waits:
//!    nothing is half done because somebody hung up.
//! 3. Nothing outlives [`Front::stop`]; held requests are bounded by connections and [`MAX_LATE`].

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use s3s::service::S3Service;
use s3s::{Body, HttpError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conn::{Control, Cut};
use super::convert::IgnoreConditions;
use super::counters::{EffectRecorder, Gauge, InFlight, LoggedHeaders, Recorder};
use super::faults::{Action, Decision, FaultPlan, Verdict, When};
use super::operation::classify;

/// How many late requests are held at one time; one more is answered 503.
pub(super) const MAX_LATE: usize = 1024;
/// How much is reserved for a body on the word of its `Content-Length` alone, in bytes.
const MAX_RESERVE: u64 = 16 << 20;
/// Where an answer without a body is cut.
const CUT_HEAD_AT: usize = 20;

/// What all requests share.
pub(super) struct Front {
    pub s3: S3Service,
    pub region: Arc<str>,
    pub faults: FaultPlan,
    pub recorder: Arc<Recorder>,
    pub max_body_bytes: u64,
    pub late: Arc<Semaphore>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// A request received whole.
struct Received {
    parts: Parts,
    body: Bytes,
    effect: EffectRecorder,
    number: u64,
}

impl Front {
    /// Answers one request; never returns where the fault is that there is no answer.
    pub async fn handle(
        self: Arc<Self>,
        control: Arc<Control>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, HttpError> {
        let (mut parts, body) = request.into_parts();
        let target = classify(
            &parts.method,
            parts.uri.path(),
            parts.uri.query(),
            &parts.headers,
        );
        let in_flight = self.recorder.begin(&target, logged(&parts.headers));
        let decision = self.faults.decide(&target);
        if decision.is_fault() {
            self.recorder.update(|c| c.faults += 1);
        }
        if let Some(Verdict {
            action: Action::HangUnread,
            removed,
            ..
        }) = &decision.verdict
        {
            self.hang(removed).await;
        }
        let number = in_flight.number();
        let body = match self.receive(&in_flight, &parts.headers, body).await {
            Ok(body) => body,
            Err((code, message)) => {
                return Ok(done(&in_flight, error_response(400, code, message, number)));
            }
        };
        if let Some((status, code)) = unlike_s3(&decision, &parts.headers) {
            let response = error_response(status, code, "a server of this kind", number);
            return Ok(done(&in_flight, response));
        }
        if decision.ignore_conditions {
            parts.extensions.insert(IgnoreConditions);
        }
        for (time, removed) in decision.delays {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = removed.cancelled() => {}
            }
        }
        let head_only = parts.method == Method::HEAD;
        let received = Received {
            parts,
            body,
            effect: in_flight.effect_recorder(),
            number,
        };

        let verdict = match decision.verdict {
            Some(Verdict {
                action: Action::Late(gate),
                removed,
                ..
            }) => {
                let Ok(permit) = Arc::clone(&self.late).try_acquire_owned() else {
                    let response = error_response(503, "SlowDown", "too many late ones", number);
                    return Ok(done(&in_flight, response));
                };
                let client_gone = CancellationToken::new();
                let _client = client_gone.clone().drop_guard();
                let this = Arc::clone(&self);
                self.tasks.spawn(async move {
                    let _permit = permit;
                    this.land_late(&gate, &client_gone, received).await;
                });
                removed.cancelled().await;
                control.reset();
                return never().await;
            }
            Some(verdict) if verdict.when == When::BeforeEffect => {
                match self.strike(&verdict, &control, number).await {
                    Some(response) => return Ok(done(&in_flight, response)),
                    None => Some(verdict),
                }
            }
            other => other,
        };

        let response = self.clone().execute_detached(received).await;
        let response = match verdict {
            Some(Verdict {
                action: Action::CutAnswer,
                ..
            }) => cut(response, &control, head_only).await,
            Some(verdict) if verdict.when == When::AfterEffect => self
                .strike(&verdict, &control, number)
                .await
                .unwrap_or(response),
            _ => response,
        };
        Ok(done(&in_flight, response))
    }

    /// Does what a verdict says; `Some` replaces the answer.
    async fn strike(
        &self,
        verdict: &Verdict,
        control: &Control,
        number: u64,
    ) -> Option<Response<Body>> {
        match &verdict.action {
            Action::Respond {
                status,
                code,
                retry_after,
            } => {
                let mut response = error_response(*status, code, "injected", number);
                if let Some(seconds) = retry_after {
                    response
                        .headers_mut()
                        .insert(RETRY_AFTER, HeaderValue::from(*seconds));
                }
                Some(response)
            }
            Action::ErrorIn200(code) => Some(error_response(200, code, "injected", number)),
            Action::Hang => {
                self.hang(&verdict.removed).await;
                None
            }
            Action::Reset => {
                control.reset();
                never().await
            }
            Action::Close => {
                control.close();
                never().await
            }
            // Done elsewhere.
            Action::HangUnread
            | Action::Delay(_)
            | Action::Late(_)
            | Action::CutAnswer
            | Action::IgnoreConditions
            | Action::RefuseChecksums
            | Action::BareTags => None,
        }
    }

    /// Waits until the rule is removed.
    async fn hang(&self, removed: &CancellationToken) {
        let _gauge = Gauge::raise(&self.recorder, |c| &mut c.hung);
        removed.cancelled().await;
    }

    async fn land_late(
        &self,
        gate: &super::faults::Gate,
        client_gone: &CancellationToken,
        received: Received,
    ) {
        let held = Gauge::raise(&self.recorder, |c| &mut c.late_held);
        let land = tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = gate.discard.cancelled() => false,
            () = gate.open.cancelled() => true,
            () = client_gone.cancelled(), if gate.client_gone => true,
        };
        drop(held);
        if land {
            self.execute(received).await;
        }
        self.recorder.update(|c| {
            if land {
                c.late_landed += 1;
            } else {
                c.late_discarded += 1;
            }
        });
    }

    /// Executes a request on a task of its own, so that it ends however the client does.
    async fn execute_detached(self: Arc<Self>, received: Received) -> Response<Body> {
        let number = received.number;
        let this = Arc::clone(&self);
        match self
            .tasks
            .spawn(async move { this.execute(received).await })
            .await
        {
            Ok(response) => response,
            Err(error) => error_response(500, "InternalError", &error.to_string(), number),
        }
    }

    async fn execute(&self, received: Received) -> Response<Body> {
        let Received {
            parts,
            body,
            effect,
            number,
        } = received;
        let bodiless = parts.method == Method::HEAD;
        if let Some(region) = scope_region(&parts)
            && region != &*self.region
        {
            let message = format!(
                "the region '{region}' is wrong; expecting '{}'",
                self.region
            );
            let mut response =
                error_response(400, "AuthorizationHeaderMalformed", &message, number);
            if let Ok(region) = HeaderValue::from_str(&self.region) {
                response.headers_mut().insert("x-amz-bucket-region", region);
            }
            return response;
        }
        let request = Request::from_parts(parts, Body::from(body));
        let mut response = match self.s3.call(request).await {
            Ok(response) => response,
            Err(error) => {
                return error_response(500, "InternalError", &format!("{error:?}"), number);
            }
        };
        if response.status().is_success() {
            effect.applied();
        }
        if (bodiless && !response.status().is_success())
            || response.status() == StatusCode::NOT_MODIFIED
        {
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(CONTENT_TYPE);
        }
        response
            .headers_mut()
            .insert("x-amz-request-id", HeaderValue::from(number));
        response
    }

    /// Receives a body whole.
    async fn receive(
        &self,
        in_flight: &InFlight,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Bytes, (&'static str, &'static str)> {
        const TOO_LARGE: (&str, &str) = ("EntityTooLarge", "the body is larger than is allowed");
        let promised = headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse::<u64>().ok())
            .unwrap_or(0);
        if promised > self.max_body_bytes {
            return Err(TOO_LARGE);
        }
        let reserve = usize::try_from(promised.min(MAX_RESERVE)).unwrap_or(0);
        let mut whole = BytesMut::with_capacity(reserve);
        let mut body = Body::from(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| ("IncompleteBody", "the body broke off"))?;
            in_flight.received(chunk.len() as u64);
            if (whole.len() + chunk.len()) as u64 > self.max_body_bytes {
                return Err(TOO_LARGE);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}

/// What a server answers that does these things otherwise than S3.
fn unlike_s3(decision: &Decision, headers: &HeaderMap) -> Option<(u16, &'static str)> {
    let says = |what: &str| headers.keys().any(|name| name.as_str().starts_with(what));
    let sums = says("x-amz-checksum-") && !headers.contains_key("x-amz-checksum-mode");
    if decision.refuse_checksums && (sums || says("x-amz-sdk-checksum-")) {
        return Some((501, "NotImplemented"));
    }
    let tag = headers.get("if-match").map(HeaderValue::as_bytes);
    let quoted = tag.is_some_and(|tag| tag.starts_with(b"\""));
    (decision.bare_tags && quoted).then_some((412, "PreconditionFailed"))
}

/// Until the connection, and this future with it, is dropped.
async fn never<T>() -> T {
    match std::future::pending::<Infallible>().await {}
}

fn done(in_flight: &InFlight, response: Response<Body>) -> Response<Body> {
    in_flight.answered(response.status().as_u16());
    response
}

fn logged(headers: &HeaderMap) -> LoggedHeaders {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    LoggedHeaders {
        if_match: text("if-match"),
        if_none_match: text("if-none-match"),
        write_id: text("x-amz-meta-write-id"),
    }
}

/// Arranges for the connection to end in the middle of this answer.
async fn cut(response: Response<Body>, control: &Control, head_only: bool) -> Response<Body> {
    let (parts, mut body) = response.into_parts();
    let bytes = body.store_all_limited(usize::MAX).await.unwrap_or_default();
    control.cut_answer(if head_only || bytes.is_empty() {
        Cut::in_head(CUT_HEAD_AT)
    } else {
        Cut::in_body(bytes.len() / 2)
    });
    Response::from_parts(parts, Body::from(bytes))
}

/// The region that a request was signed for, where it says one.
fn scope_region(parts: &Parts) -> Option<&str> {
    let credential = match parts.headers.get("authorization") {
        Some(value) => value.to_str().ok()?.split_once("Credential=")?.1,
        None => parts.uri.query()?.split_once("X-Amz-Credential=")?.1,
    };
    let credential = credential.split([',', '&', ' ']).next()?;
    let separator = if credential.contains('/') { "/" } else { "%2F" };
    // key / date / region / service / aws4_request, and the key may hold anything.
    credential.rsplit(separator).nth(2)
}

fn error_response(status: u16, code: &str, message: &str, number: u64) -> Response<Body> {
    let body = if code.is_empty() {
        Body::empty()
    } else {
        Body::from(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code>\
             <Message>{}</Message><RequestId>{number}</RequestId></Error>",
            escape(code),
            escape(message),
        ))
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !code.is_empty() {
        let xml = HeaderValue::from_static("application/xml");
        response.headers_mut().insert(CONTENT_TYPE, xml);
    }
    response
        .headers_mut()
        .insert("x-amz-request-id", HeaderValue::from(number));
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(uri: &str, authorization: Option<&str>) -> Option<String> {
        let mut request = Request::builder().uri(uri);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        scope_region(&parts).map(str::to_owned)
    }

    #[test]
    fn the_region_of_a_signature() {
        let header = "AWS4-HMAC-SHA256 Credential=a/b/20260101/eu-west-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=00";
        assert_eq!(region("/b/k", Some(header)).as_deref(), Some("eu-west-1"));
        let presigned = "/b/k?x=1&X-Amz-Credential=a%2F20260101%2Fus-east-1%2Fs3%2Faws4_request\
                         &X-Amz-Date=1";
        assert_eq!(region(presigned, None).as_deref(), Some("us-east-1"));
        assert_eq!(region("/b/k", None), None);
        assert_eq!(region("/b/k", Some("AWS a:b")), None);
    }

    #[test]
    fn codes_cannot_break_the_body() {
        assert_eq!(escape("<a&b>"), "&lt;a&amp;b&gt;");
    }
}
