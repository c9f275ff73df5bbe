//! Objects: put, get, head, delete, ranges, headers, conditions, keys.

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};

use super::support::{BUCKET, client, is, now, refusal, server};

fn bytes(text: &'static str) -> ByteStream {
    ByteStream::from_static(text.as_bytes())
}

#[tokio::test]
async fn what_is_put_comes_back_with_its_headers() {
    let server = server().await;
    let client = client(&server);
    let put = client
        .put_object()
        .bucket(BUCKET)
        .key("a/b")
        .body(bytes("0123456789"))
        .content_type("text/plain")
        .content_encoding("zstd")
        .cache_control("no-store")
        .storage_class(StorageClass::StandardIa)
        .server_side_encryption(ServerSideEncryption::Aes256)
        .metadata("write-id", "w-1")
        .metadata("other", "x y")
        .send()
        .await
        .unwrap();
    assert!(put.request_id().is_some());
    let etag = "\"781e5e245d69b566979b86e28d23f2c7\"";
    assert_eq!(put.e_tag(), Some(etag));
    let head = client
        .head_object()
        .bucket(BUCKET)
        .key("a/b")
        .send()
        .await
        .unwrap();
    assert_eq!(head.e_tag(), Some(etag));
    assert_eq!(head.content_length(), Some(10));
    assert_eq!(head.content_type(), Some("text/plain"));
    assert_eq!(head.content_encoding(), Some("zstd"));
    assert_eq!(head.cache_control(), Some("no-store"));
    assert_eq!(head.storage_class(), Some(&StorageClass::StandardIa));
    assert_eq!(
        head.server_side_encryption(),
        Some(&ServerSideEncryption::Aes256)
    );
    assert_eq!(head.metadata().unwrap()["write-id"], "w-1");
    assert_eq!(head.metadata().unwrap()["other"], "x y");
    let now = now().secs();
    assert!((now - head.last_modified().unwrap().secs()).abs() < 60);
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key("a/b")
        .send()
        .await
        .unwrap();
    assert_eq!(get.metadata().unwrap()["write-id"], "w-1");
    assert_eq!(&get.body.collect().await.unwrap().to_vec(), b"0123456789");
    assert_eq!(server.object(BUCKET, "a/b").unwrap(), "0123456789");
    assert_eq!(server.objects(BUCKET)[0].metadata["write-id"], "w-1");
    // An overwrite replaces all of it.
    client
        .put_object()
        .bucket(BUCKET)
        .key("a/b")
        .body(bytes("x"))
        .send()
        .await
        .unwrap();
    let head = client
        .head_object()
        .bucket(BUCKET)
        .key("a/b")
        .send()
        .await
        .unwrap();
    assert_eq!(head.content_length(), Some(1));
    assert!(head.metadata().is_none_or(|m| m.is_empty()));
    assert_eq!(head.content_encoding(), None);
    // Deleted, it is gone; deleted again, that is fine.
    for _ in 0..2 {
        client
            .delete_object()
            .bucket(BUCKET)
            .key("a/b")
            .send()
            .await
            .unwrap();
    }
    let get = client.get_object().bucket(BUCKET).key("a/b").send().await;
    assert_eq!(refusal(get), is(404, "NoSuchKey"));
    let head = client.head_object().bucket(BUCKET).key("a/b").send().await;
    assert_eq!(refusal(head).0, 404);
}

#[tokio::test]
async fn ranges() {
    let server = server().await;
    let client = client(&server);
    client
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .body(bytes("0123456789"))
        .send()
        .await
        .unwrap();
    for (range, expected, content_range) in [
        ("bytes=0-3", "0123", "bytes 0-3/10"),
        ("bytes=4-4", "4", "bytes 4-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
        ("bytes=0-9", "0123456789", "bytes 0-9/10"),
    ] {
        let get = client
            .get_object()
            .bucket(BUCKET)
            .key("k")
            .range(range)
            .send()
            .await
            .unwrap();
        assert_eq!(get.content_range(), Some(content_range), "{range}");
        assert_eq!(get.content_length(), Some(expected.len() as i64), "{range}");
        assert_eq!(
            get.body.collect().await.unwrap().to_vec(),
            expected.as_bytes(),
            "{range}"
        );
    }
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key("k")
        .range("bytes=10-")
        .send()
        .await;
    assert_eq!(refusal(get), is(416, "InvalidRange"));
    // An object without bytes.
    client
        .put_object()
        .bucket(BUCKET)
        .key("e")
        .body(bytes(""))
        .send()
        .await
        .unwrap();
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key("e")
        .send()
        .await
        .unwrap();
    assert_eq!(get.content_length(), Some(0));
    assert!(get.body.collect().await.unwrap().to_vec().is_empty());
}

#[tokio::test]
async fn conditional_writes() {
    let server = server().await;
    let client = client(&server);
    let put = || client.put_object().bucket(BUCKET).key("k");
    assert_eq!(
        refusal(put().if_match("\"00\"").body(bytes("a")).send().await),
        is(404, "NoSuchKey")
    );
    assert!(server.objects(BUCKET).is_empty());
    let first = put()
        .if_none_match("*")
        .body(bytes("a"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        refusal(put().if_none_match("*").body(bytes("b")).send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(
        refusal(put().if_match("\"00\"").body(bytes("b")).send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(server.object(BUCKET, "k").unwrap(), "a");
    put()
        .if_match(first.e_tag().unwrap())
        .body(bytes("c"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        refusal(
            put()
                .if_match(first.e_tag().unwrap())
                .body(bytes("d"))
                .send()
                .await
        ),
        is(412, "PreconditionFailed")
    );
    assert_eq!(server.object(BUCKET, "k").unwrap(), "c");
    // Deletes.
    let delete = || client.delete_object().bucket(BUCKET).key("k");
    assert_eq!(
        refusal(delete().if_match(first.e_tag().unwrap()).send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(server.object(BUCKET, "k").unwrap(), "c");
    let now = client
        .head_object()
        .bucket(BUCKET)
        .key("k")
        .send()
        .await
        .unwrap();
    delete()
        .if_match(now.e_tag().unwrap())
        .send()
        .await
        .unwrap();
    assert!(server.object(BUCKET, "k").is_none());
    assert_eq!(
        refusal(delete().if_match(now.e_tag().unwrap()).send().await),
        is(404, "NoSuchKey")
    );
    // What the server logged of it.
    let log = server.counters().log;
    assert!(
        log.iter()
            .any(|r| r.if_none_match.as_deref() == Some("*") && r.status == Some(412))
    );
    assert!(
        log.iter()
            .all(|r| r.effect == r.status.is_some_and(|s| s < 300))
    );
}

#[tokio::test]
async fn conditional_reads() {
    let server = server().await;
    let client = client(&server);
    let put = client
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .body(bytes("a"))
        .send()
        .await
        .unwrap();
    let etag = put.e_tag().unwrap();
    let get = || client.get_object().bucket(BUCKET).key("k");
    let head = || client.head_object().bucket(BUCKET).key("k");
    let past = DateTime::from_secs(1_000_000_000);
    let future = DateTime::from_secs(4_000_000_000);
    get().if_match(etag).send().await.unwrap();
    get().if_none_match("\"00\"").send().await.unwrap();
    get().if_modified_since(past).send().await.unwrap();
    get().if_unmodified_since(future).send().await.unwrap();
    assert_eq!(
        refusal(get().if_match("\"00\"").send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(
        refusal(get().if_unmodified_since(past).send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(refusal(get().if_none_match(etag).send().await).0, 304);
    assert_eq!(refusal(get().if_modified_since(future).send().await).0, 304);
    head().if_match(etag).send().await.unwrap();
    assert_eq!(refusal(head().if_match("\"00\"").send().await).0, 412);
    assert_eq!(refusal(head().if_none_match(etag).send().await).0, 304);
    assert_eq!(
        refusal(head().if_modified_since(future).send().await).0,
        304
    );
}

#[tokio::test]
async fn limits_of_keys_and_metadata() {
    let server = server().await;
    let client = client(&server);
    let put = |key: String| client.put_object().bucket(BUCKET).key(key).body(bytes("a"));
    put("k".repeat(1024)).send().await.unwrap();
    assert_eq!(
        refusal(put("k".repeat(1025)).send().await),
        is(400, "KeyTooLongError")
    );
    // 1,024 bytes, not characters.
    assert_eq!(
        refusal(put("é".repeat(513)).send().await),
        is(400, "KeyTooLongError")
    );
    let big = put("m".into()).metadata("m", "x".repeat(2048)).send().await;
    assert_eq!(refusal(big), is(400, "MetadataTooLarge"));
    put("m".into())
        .metadata("m", "x".repeat(2047))
        .send()
        .await
        .unwrap();
    assert_eq!(server.objects(BUCKET).len(), 2);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let server = s3_writeback::testing::S3Server::builder()
        .credentials(super::support::KEY, super::support::SECRET)
        .bucket(BUCKET)
        .max_body_bytes(10)
        .start()
        .await
        .unwrap();
    let raw = super::support::Raw::new("PUT", "/bucket/k", b"0123456789");
    assert_eq!(raw.send(&server).await.status, 200);
    let raw = super::support::Raw::new("PUT", "/bucket/k", b"0123456789a");
    assert_eq!(raw.send(&server).await.code(), "EntityTooLarge");
    assert_eq!(server.object(BUCKET, "k").unwrap(), "0123456789");
}
