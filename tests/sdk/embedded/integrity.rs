//! Damaged, truncated and lying uploads change nothing; checksums are kept and returned.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::support::{BUCKET, Raw, client, is, read_answer, refusal, server, until};

const BODY: &[u8] = b"the bytes that were meant";
const OTHER: &[u8] = b"the bytes that were ment.";

fn all(body: &[u8]) -> [(&'static str, String); 5] {
    [
        ("x-amz-checksum-crc32", BASE64.encode(Crc32::checksum(body))),
        (
            "x-amz-checksum-crc32c",
            BASE64.encode(Crc32c::checksum(body)),
        ),
        (
            "x-amz-checksum-crc64nvme",
            BASE64.encode(Crc64Nvme::checksum(body)),
        ),
        ("x-amz-checksum-sha1", BASE64.encode(Sha1::checksum(body))),
        (
            "x-amz-checksum-sha256",
            BASE64.encode(Sha256::checksum(body)),
        ),
    ]
}

#[tokio::test]
async fn every_checksum_is_verified_kept_and_returned() {
    let server = server().await;
    for ((name, good), (_, bad)) in all(BODY).into_iter().zip(all(OTHER)) {
        server.insert(BUCKET, "k", "before".into()).unwrap();
        let put = |value: &str| Raw::new("PUT", "/bucket/k", BODY).header(name, value);
        let answer = put(&bad).send(&server).await;
        assert_eq!((answer.status, answer.code()), (400, "BadDigest"), "{name}");
        let answer = put("AAAA").send(&server).await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "InvalidRequest"),
            "{name}"
        );
        assert_eq!(server.object(BUCKET, "k").unwrap(), "before", "{name}");
        let answer = put(&good).send(&server).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.body);
        assert!(
            answer.head.contains(&format!("{name}: {good}")),
            "{}",
            answer.head
        );
        // Returned where it is asked for, and only there.
        for method in ["HEAD", "GET"] {
            let raw = Raw::new(method, "/bucket/k", b"").header("x-amz-checksum-mode", "ENABLED");
            let head = raw.send(&server).await.head;
            assert!(head.contains(&format!("{name}: {good}")), "{method} {head}");
            assert!(
                head.contains("x-amz-checksum-type: FULL_OBJECT"),
                "{method} {head}"
            );
            let head = Raw::new(method, "/bucket/k", b"").send(&server).await.head;
            assert!(!head.contains("x-amz-checksum"), "{method} {head}");
        }
    }
}

#[tokio::test]
async fn two_checksums_or_none_where_one_is_promised() {
    let server = server().await;
    let [(crc32, value32), _, (crc64, value64), ..] = all(BODY);
    let raw = Raw::new("PUT", "/bucket/k", BODY)
        .header(crc32, &value32)
        .header(crc64, &value64);
    assert_eq!(raw.send(&server).await.code(), "InvalidRequest");
    let raw = Raw::new("PUT", "/bucket/k", BODY).header("x-amz-sdk-checksum-algorithm", "CRC32");
    assert_eq!(raw.send(&server).await.code(), "InvalidRequest");
    assert!(server.objects(BUCKET).is_empty());
}

#[tokio::test]
async fn content_md5_and_the_signed_sha256() {
    let server = server().await;
    let put = |md5: &str| Raw::new("PUT", "/bucket/k", BODY).header("content-md5", md5);
    let wrong = BASE64.encode(Md5::checksum(OTHER));
    assert_eq!(put(&wrong).send(&server).await.code(), "BadDigest");
    assert_eq!(put("AAAA").send(&server).await.code(), "InvalidDigest");
    // The body is not the one that was signed.
    let mut raw = Raw::new("PUT", "/bucket/k", BODY);
    raw.body = OTHER.to_vec();
    let answer = raw.send(&server).await;
    assert_eq!(
        (answer.status, answer.code()),
        (400, "XAmzContentSHA256Mismatch")
    );
    assert!(server.objects(BUCKET).is_empty());
    assert_eq!(
        put(&BASE64.encode(Md5::checksum(BODY)))
            .send(&server)
            .await
            .status,
        200
    );
}

/// An aws-chunked body of two chunks, with what stands behind them.
fn chunked(trailer: &str) -> Vec<u8> {
    let (a, b) = BODY.split_at(10);
    let mut body = Vec::new();
    for chunk in [a, b] {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
    body
}

fn streamed(body: Vec<u8>, declared: Option<&str>) -> Raw {
    let mut raw = Raw::new("PUT", "/bucket/k", &body)
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", &BODY.len().to_string());
    if let Some(declared) = declared {
        raw = raw.header("x-amz-trailer", declared);
    }
    raw.payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER".to_owned();
    raw
}

#[tokio::test]
async fn trailers_are_verified() {
    let server = server().await;
    for ((name, good), (_, bad)) in all(BODY).into_iter().zip(all(OTHER)) {
        server.remove(BUCKET, "k").unwrap();
        let answer = streamed(chunked(&format!("{name}:{bad}\r\n")), Some(name))
            .send(&server)
            .await;
        assert_eq!((answer.status, answer.code()), (400, "BadDigest"), "{name}");
        let answer = streamed(chunked(""), Some(name)).send(&server).await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "MalformedTrailerError"),
            "{name}"
        );
        assert!(server.objects(BUCKET).is_empty(), "{name}");
        let answer = streamed(chunked(&format!("{name}:{good}\r\n")), Some(name))
            .send(&server)
            .await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.body);
        assert_eq!(server.object(BUCKET, "k").unwrap(), BODY);
    }
}

#[tokio::test]
async fn a_truncated_body_changes_nothing() {
    let server = server().await;
    server.insert(BUCKET, "k", "before".into()).unwrap();
    // Cut by HTTP: the connection ends early.
    let mut raw = Raw::new("PUT", "/bucket/k", BODY);
    raw.body.truncate(10);
    raw.content_length = Some(BODY.len());
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(&raw.encode(&server)).await.unwrap();
    until(&server, |c| c.bytes_received >= 10).await;
    stream.shutdown().await.unwrap();
    let answer = read_answer(stream).await;
    assert!(
        answer.status == 400 || answer.status == 0,
        "{}",
        answer.head
    );
    // Cut between chunks and in the middle of one: the HTTP body itself is whole.
    let (name, good) = all(BODY)[0].clone();
    let whole = chunked(&format!("{name}:{good}\r\n"));
    let first_chunk = 3 + 10 + 2;
    for len in [first_chunk, first_chunk + 6, whole.len() / 2, 1] {
        let answer = streamed(whole[..len].to_vec(), Some(name))
            .send(&server)
            .await;
        assert_eq!(answer.status, 400, "cut at {len}: {}", answer.body);
    }
    // Cut where nothing else shows it: every chunk and the trailer are right, the length is not.
    let mut raw = streamed(whole.clone(), Some(name));
    for (header, value) in &mut raw.headers {
        if header == "x-amz-decoded-content-length" {
            *value = (BODY.len() + 1).to_string();
        }
    }
    let answer = raw.send(&server).await;
    assert_eq!((answer.status, answer.code()), (400, "IncompleteBody"));
    let counters = until(&server, |c| c.in_flight == 0).await;
    assert_eq!(counters.effects.len(), 0);
    assert_eq!(server.object(BUCKET, "k").unwrap(), "before");
    assert_eq!(streamed(whole, Some(name)).send(&server).await.status, 200);
}

#[tokio::test]
async fn the_sdk_agrees() {
    let server = server().await;
    let client = client(&server);
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        // From memory: a header. As a stream of unknown bytes: a trailer.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), BODY).unwrap();
        let stream = ByteStream::from_path(file.path()).await.unwrap();
        for body in [ByteStream::from_static(BODY), stream] {
            let put = client
                .put_object()
                .bucket(BUCKET)
                .key("k")
                .checksum_algorithm(algorithm.clone())
                .body(body)
                .send()
                .await
                .unwrap();
            assert_eq!(put.checksum_type(), Some(&ChecksumType::FullObject));
            let get = client
                .get_object()
                .bucket(BUCKET)
                .key("k")
                .checksum_mode(ChecksumMode::Enabled)
                .send()
                .await
                .unwrap();
            assert_eq!(get.checksum_crc32(), put.checksum_crc32());
            assert_eq!(get.checksum_sha256(), put.checksum_sha256());
            assert_eq!(get.content_encoding(), None);
            // The SDK verifies what it reads.
            assert_eq!(get.body.collect().await.unwrap().to_vec(), BODY);
        }
    }
    let lie = client
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .checksum_crc64_nvme(BASE64.encode(Crc64Nvme::checksum(OTHER)))
        .body(ByteStream::from_static(BODY))
        .send()
        .await;
    assert_eq!(refusal(lie), is(400, "BadDigest"));
}
