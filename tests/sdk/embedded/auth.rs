//! Who may, where, when; and buckets.

use aws_sdk_s3::primitives::ByteStream;

use super::support::{
    BUCKET, DEADLINE, KEY, Raw, SECRET, client, client_with, is, refusal, server,
};

#[tokio::test]
async fn wrong_credentials_are_refused_and_change_nothing() {
    let server = server().await;
    for (key, secret, code) in [
        ("who", SECRET, "InvalidAccessKeyId"),
        (KEY, "wrong", "SignatureDoesNotMatch"),
    ] {
        let client = client_with(&server, key, secret, "us-east-1", DEADLINE);
        let put = client.put_object().bucket(BUCKET).key("k");
        let put = put.body(ByteStream::from_static(b"x")).send().await;
        assert_eq!(refusal(put), is(403, code));
        let get = client.get_object().bucket(BUCKET).key("k").send().await;
        assert_eq!(refusal(get), is(403, code));
    }
    // Without any.
    let host = server.address();
    let request = format!(
        "PUT /bucket/k HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx"
    );
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    let answer = super::support::read_answer(stream).await;
    assert_eq!((answer.status, answer.code()), (403, "AccessDenied"));
    // A header changed after signing.
    let mut signed = Raw::new("PUT", "/bucket/k", b"x")
        .header("if-none-match", "*")
        .encode(&server);
    let at = signed
        .windows(16)
        .position(|w| w == b"if-none-match: *")
        .unwrap();
    signed[at + 15] = b'x';
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &signed)
        .await
        .unwrap();
    let answer = super::support::read_answer(stream).await;
    assert_eq!(answer.status / 100, 4, "{}", answer.body);
    assert!(server.objects(BUCKET).is_empty());
    assert!(server.counters().effects.is_empty());
}

#[tokio::test]
async fn a_wrong_region_is_named() {
    let server = server().await;
    let client = client_with(&server, KEY, SECRET, "eu-west-1", DEADLINE);
    let put = client.put_object().bucket(BUCKET).key("k");
    let put = put
        .body(ByteStream::from_static(b"x"))
        .send()
        .await
        .unwrap_err();
    let headers = put.raw_response().unwrap().headers();
    assert_eq!(headers.get("x-amz-bucket-region"), Some("us-east-1"));
    assert_eq!(
        refusal::<(), _>(Err(put)),
        is(400, "AuthorizationHeaderMalformed")
    );
    assert!(server.objects(BUCKET).is_empty());
}

#[tokio::test]
async fn a_clock_may_be_off_by_a_quarter_of_an_hour() {
    let server = server().await;
    for skew_seconds in [-20 * 60, 20 * 60] {
        let raw = Raw {
            skew_seconds,
            ..Raw::new("PUT", "/bucket/k", b"x")
        };
        let answer = raw.send(&server).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "RequestTimeTooSkewed")
        );
    }
    assert!(server.objects(BUCKET).is_empty());
    for skew_seconds in [-10 * 60, 10 * 60] {
        let raw = Raw {
            skew_seconds,
            ..Raw::new("PUT", "/bucket/k", b"x")
        };
        assert_eq!(raw.send(&server).await.status, 200);
    }
}

#[tokio::test]
async fn buckets() {
    let server = server().await;
    let client = client(&server);
    let head = client.head_bucket().bucket(BUCKET).send().await.unwrap();
    assert_eq!(head.bucket_region(), Some("us-east-1"));
    assert_eq!(
        refusal(client.head_bucket().bucket("missing").send().await).0,
        404
    );
    let put = client.put_object().bucket("missing").key("k");
    let put = put.body(ByteStream::from_static(b"x")).send().await;
    assert_eq!(refusal(put), is(404, "NoSuchBucket"));
    let list = client.list_objects_v2().bucket("missing").send().await;
    assert_eq!(refusal(list), is(404, "NoSuchBucket"));
    let get = client.get_object().bucket("missing").key("k").send().await;
    assert_eq!(refusal(get), is(404, "NoSuchBucket"));
    let create = client
        .create_multipart_upload()
        .bucket("missing")
        .key("k")
        .send()
        .await;
    assert_eq!(refusal(create), is(404, "NoSuchBucket"));

    client
        .create_bucket()
        .bucket("another")
        .send()
        .await
        .unwrap();
    let again = client.create_bucket().bucket("another").send().await;
    assert_eq!(refusal(again), is(409, "BucketAlreadyOwnedByYou"));
    let names: Vec<_> = client
        .list_buckets()
        .send()
        .await
        .unwrap()
        .buckets()
        .to_vec();
    let names: Vec<_> = names.iter().filter_map(|b| b.name()).collect();
    assert_eq!(names, ["another", BUCKET]);
    server.insert("another", "k", "x".into()).unwrap();
    let delete = client.delete_bucket().bucket("another").send().await;
    assert_eq!(refusal(delete), is(409, "BucketNotEmpty"));
    server.remove("another", "k").unwrap();
    client
        .delete_bucket()
        .bucket("another")
        .send()
        .await
        .unwrap();
    assert_eq!(
        refusal(client.head_bucket().bucket("another").send().await).0,
        404
    );
}
