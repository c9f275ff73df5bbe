//! The server on bad days.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use s3_writeback::testing::{Action, FaultRule, Gate, Operation, S3Server, WaitError};

use super::multipart::{create, of, part};
use super::support::{
    BUCKET, DEADLINE, KEY, Raw, SECRET, client, client_with, is, refusal, server, until,
};

fn put(client: &Client, key: &str, body: &'static str) -> PutObjectFluentBuilder {
    let body = ByteStream::from_static(body.as_bytes());
    client.put_object().bucket(BUCKET).key(key).body(body)
}

/// A client that gives up soon.
fn impatient(server: &S3Server) -> Client {
    client_with(server, KEY, SECRET, "us-east-1", Duration::from_millis(200))
}

#[tokio::test]
async fn error_responses_by_status_and_code() {
    let server = server().await;
    let client = client(&server);
    for (status, code) in [
        (503, "SlowDown"),
        (500, "InternalError"),
        (429, "TooManyRequests"),
        (400, "RequestTimeout"),
        (403, "AccessDenied"),
        (409, "ConditionalRequestConflict"),
        (507, "XMinioStorageFull"),
    ] {
        server.faults().add(FaultRule::respond(status, code).once());
        assert_eq!(
            refusal(put(&client, "k", "x").send().await),
            is(status, code)
        );
    }
    assert!(server.objects(BUCKET).is_empty());
    put(&client, "k", "x").send().await.unwrap();
    // With a hint when to come again.
    server
        .faults()
        .add(FaultRule::slow_down().retry_after(7).once());
    let error = put(&client, "k", "y").send().await.unwrap_err();
    assert_eq!(
        error.raw_response().unwrap().headers().get("retry-after"),
        Some("7")
    );
    // After the effect.
    server
        .faults()
        .add(FaultRule::internal_error().after_effect().once());
    assert_eq!(
        refusal(put(&client, "k", "z").send().await),
        is(500, "InternalError")
    );
    assert_eq!(server.object(BUCKET, "k").unwrap(), "z");
    // To everything.
    server.faults().slow_down_all();
    assert_eq!(refusal(client.list_buckets().send().await).0, 503);
    assert_eq!(
        refusal(client.head_object().bucket(BUCKET).key("k").send().await).0,
        503
    );
    server.faults().clear();
    client.list_buckets().send().await.unwrap();
}

#[tokio::test]
async fn hangs_before_and_after_the_effect() {
    let server = server().await;
    let hurried = impatient(&server);
    // Released by nothing but the client's patience.
    server.faults().add(FaultRule::hang().key("before"));
    server
        .faults()
        .add(FaultRule::hang().key("after").after_effect());
    assert_eq!(
        refusal(put(&hurried, "before", "x").send().await),
        is(0, "timeout")
    );
    assert_eq!(
        refusal(put(&hurried, "after", "x").send().await),
        is(0, "timeout")
    );
    // The server sees that they have gone, and nothing is left of them.
    until(&server, |c| c.in_flight == 0 && c.hung == 0).await;
    assert!(server.object(BUCKET, "before").is_none());
    assert_eq!(server.object(BUCKET, "after").unwrap(), "x");
    // Released by removing the rule: it goes on as if nothing had been.
    server.faults().clear();
    let all = server.faults().hang_all();
    let client = client(&server);
    let (result, ()) = futures::join!(put(&client, "before", "y").send(), async {
        until(&server, |c| c.hung == 1).await;
        assert!(server.faults().remove(all));
    });
    result.unwrap();
    assert_eq!(server.object(BUCKET, "before").unwrap(), "y");
}

#[tokio::test]
async fn a_body_that_nobody_reads() {
    let server = server().await;
    let rule = server.faults().add(FaultRule::new(Action::HangUnread));
    let hurried = impatient(&server);
    let big = ByteStream::from(vec![0; 32 << 20]);
    let send = hurried
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .body(big)
        .send();
    assert_eq!(refusal(send.await), is(0, "timeout"));
    assert_eq!(server.counters().bytes_received, 0);
    server.faults().remove(rule);
    until(&server, |c| c.in_flight == 0).await;
    assert!(server.objects(BUCKET).is_empty());
}

#[tokio::test]
async fn a_late_effect_lands_when_the_test_says_so() {
    let server = server().await;
    let client = client(&server);
    let hurried = impatient(&server);
    let gate = Gate::new();
    server
        .faults()
        .add(FaultRule::late(&gate).on(Operation::PutObject).times(2));
    let first = put(&hurried, "plain", "late").send().await;
    assert_eq!(refusal(first), is(0, "timeout"));
    let first = put(&hurried, "once", "late")
        .if_none_match("*")
        .send()
        .await;
    assert_eq!(refusal(first), is(0, "timeout"));
    until(&server, |c| c.late_held == 2 && c.in_flight == 0).await;
    assert!(server.objects(BUCKET).is_empty());
    // Meanwhile the world goes on; removing the rule does not let them land.
    server.faults().clear();
    put(&client, "plain", "new").send().await.unwrap();
    put(&client, "once", "new")
        .if_none_match("*")
        .send()
        .await
        .unwrap();
    assert_eq!(server.counters().late_held, 2);
    gate.open();
    let counters = until(&server, |c| c.late_landed == 2).await;
    assert_eq!(
        server.object(BUCKET, "plain").unwrap(),
        "late",
        "unconditional: it wins"
    );
    assert_eq!(
        server.object(BUCKET, "once").unwrap(),
        "new",
        "its condition was judged then"
    );
    assert_eq!(counters.effects(Operation::PutObject), 3);
}

#[tokio::test]
async fn a_late_effect_lands_when_its_client_has_gone() {
    let server = server().await;
    let gate = Gate::when_client_gone();
    server.faults().add(FaultRule::late(&gate).once());
    assert_eq!(
        refusal(put(&impatient(&server), "k", "x").send().await),
        is(0, "timeout")
    );
    until(&server, |c| c.late_landed == 1).await;
    assert_eq!(server.object(BUCKET, "k").unwrap(), "x");
    // Or never.
    let gate = Gate::new();
    server.faults().add(FaultRule::late(&gate).once());
    assert_eq!(
        refusal(put(&impatient(&server), "k", "y").send().await),
        is(0, "timeout")
    );
    gate.discard();
    until(&server, |c| c.late_discarded == 1 && c.late_held == 0).await;
    assert_eq!(server.object(BUCKET, "k").unwrap(), "x");
}

#[tokio::test]
async fn resets_and_closes() {
    let server = server().await;
    let client = client(&server);
    server.faults().add(FaultRule::reset().key("before").once());
    server
        .faults()
        .add(FaultRule::reset().key("after").after_effect().once());
    server
        .faults()
        .add(FaultRule::new(Action::Close).key("closed").once());
    for key in ["before", "after", "closed"] {
        assert_eq!(
            refusal(put(&client, key, "x").send().await),
            is(0, "dispatch"),
            "{key}"
        );
    }
    let keys: Vec<_> = server.objects(BUCKET).into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["after"]);
    // On the wire: a reset is one, a close is not.
    server.faults().add(FaultRule::reset().once());
    let answer = Raw::new("GET", "/bucket/after", b"").send(&server).await;
    assert!(answer.reset && answer.head.is_empty());
    server.faults().add(FaultRule::new(Action::Close).once());
    let answer = Raw::new("GET", "/bucket/after", b"").send(&server).await;
    assert!(!answer.reset && answer.head.is_empty());
    until(&server, |c| c.in_flight == 0).await;
}

#[tokio::test]
async fn half_an_answer() {
    let server = server().await;
    server
        .insert(BUCKET, "k", vec![b'x'; 100_000].into())
        .unwrap();
    server.faults().add(FaultRule::new(Action::CutAnswer));
    let answer = Raw::new("GET", "/bucket/k", b"").send(&server).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.contains("content-length: 100000"),
        "{}",
        answer.head
    );
    assert_eq!(answer.body.len(), 50_000);
    // A PUT has no body to be cut in: the head is.
    let answer = Raw::new("PUT", "/bucket/p", b"x").send(&server).await;
    assert_eq!(answer.head.len(), 20);
    assert_eq!(server.object(BUCKET, "p").unwrap(), "x");
    let client = client(&server);
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key("k")
        .send()
        .await
        .unwrap();
    get.body.collect().await.unwrap_err();
    assert_eq!(refusal(put(&client, "q", "x").send().await).0, 0);
}

#[tokio::test]
async fn an_error_in_a_200() {
    let server = server().await;
    let client = client(&server);
    server
        .faults()
        .add(FaultRule::new(Action::ErrorIn200("InternalError".into())).times(2));
    assert_eq!(
        refusal(put(&client, "k", "x").send().await),
        is(200, "InternalError")
    );
    assert!(server.objects(BUCKET).is_empty());
    server.faults().clear();
    let id = create(&client, "m").await;
    let one = part(&client, "m", &id, 1, "aaaa").await;
    let complete = || {
        let complete = client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("m")
            .upload_id(&id);
        complete
            .multipart_upload(of(std::slice::from_ref(&one)))
            .send()
    };
    let rule = FaultRule::new(Action::ErrorIn200("SlowDown".into()));
    server
        .faults()
        .add(rule.on(Operation::CompleteMultipartUpload).once());
    assert_eq!(refusal(complete().await), is(200, "SlowDown"));
    assert!(server.objects(BUCKET).is_empty());
    complete().await.unwrap();
    assert_eq!(server.object(BUCKET, "m").unwrap(), "aaaa");
}

#[tokio::test]
async fn a_server_that_ignores_conditions() {
    let server = server().await;
    let client = client(&server);
    server
        .faults()
        .add(FaultRule::new(Action::IgnoreConditions));
    put(&client, "k", "a")
        .if_match("\"00\"")
        .send()
        .await
        .unwrap();
    put(&client, "k", "b")
        .if_none_match("*")
        .send()
        .await
        .unwrap();
    assert_eq!(server.object(BUCKET, "k").unwrap(), "b");
    let delete = client
        .delete_object()
        .bucket(BUCKET)
        .key("k")
        .if_match("\"00\"");
    delete.send().await.unwrap();
    assert!(server.objects(BUCKET).is_empty());
    server.faults().clear();
    let honest = put(&client, "k", "a").if_match("\"00\"").send().await;
    assert_eq!(refusal(honest), is(404, "NoSuchKey"));
}

#[tokio::test]
async fn delays() {
    let server = server().await;
    let delay = Duration::from_millis(300);
    server
        .faults()
        .add(FaultRule::new(Action::Delay(delay)).on(Operation::PutObject));
    let started = tokio::time::Instant::now();
    put(&client(&server), "k", "x").send().await.unwrap();
    assert!(started.elapsed() >= delay);
    // One that is far too long ends with its rule.
    let rule = server
        .faults()
        .add(FaultRule::new(Action::Delay(DEADLINE * 10)));
    let client = client(&server);
    let (list, ()) = futures::join!(client.list_buckets().send(), async {
        until(&server, |c| c.requests(Operation::ListBuckets) == 1).await;
        server.faults().remove(rule);
    });
    list.unwrap();
}

#[tokio::test]
async fn stopping_ends_what_hangs_and_frees_the_port() {
    let server = server().await;
    let address = server.address();
    server.faults().add(FaultRule::hang().key("hung"));
    server
        .faults()
        .add(FaultRule::late(&Gate::new()).key("late"));
    let client = client(&server);
    let (hung, late, ()) = futures::join!(
        put(&client, "hung", "x").send(),
        put(&client, "late", "x").send(),
        async {
            until(&server, |c| c.hung == 1 && c.late_held == 1).await;
            let started = tokio::time::Instant::now();
            server.stop().await;
            assert!(
                started.elapsed() < Duration::from_secs(3),
                "nothing had to be waited for"
            );
        }
    );
    assert_eq!(refusal(hung), is(0, "dispatch"));
    assert_eq!(refusal(late), is(0, "dispatch"));
    let counters = server.counters();
    assert_eq!(
        (counters.connections, counters.in_flight, counters.hung),
        (0, 0, 0)
    );
    assert_eq!((counters.late_held, counters.late_discarded), (0, 1));
    assert!(server.objects(BUCKET).is_empty());
    let waited = server.wait_for(|_| false, DEADLINE).await;
    assert!(matches!(waited, Err(WaitError::Stopped(_))));
    server.stop().await;
    let again = S3Server::builder().listen(address).start().await.unwrap();
    assert_eq!(again.address(), address);
}

#[tokio::test]
async fn dropping_a_server_stops_it() {
    let address = {
        let server = server().await;
        client(&server).list_buckets().send().await.unwrap();
        server.address()
    };
    let error = tokio::net::TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
#[expect(
    clippy::disallowed_methods,
    reason = "that real time passes is what it tests"
)]
async fn a_paused_clock_and_a_blocked_runtime_do_not_stall_the_server() {
    let server = server().await;
    let waited = server.wait_for(
        |c| c.requests(Operation::Other) > 0,
        Duration::from_millis(50),
    );
    let started = std::time::Instant::now();
    assert!(matches!(waited.await, Err(WaitError::Deadline(_))));
    assert!(
        started.elapsed() >= Duration::from_millis(50),
        "a deadline of real time"
    );
    // This thread is the runtime, and it blocks.
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[test]
fn without_a_runtime_and_on_the_callers() {
    let server = S3Server::builder().start_blocking().unwrap();
    assert!(server.endpoint().starts_with("http://127.0.0.1:"));
    drop(server);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let own = S3Server::builder().start_blocking();
        assert!(own.is_err(), "it would block the runtime");
        let handle = tokio::runtime::Handle::current();
        let builder = S3Server::builder().credentials(KEY, SECRET).bucket(BUCKET);
        let server = builder.on_runtime(handle).start().await.unwrap();
        put(&client(&server), "k", "x").send().await.unwrap();
        server.stop().await;
    });
}
