//! Many at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::CompletedPart;
use futures::future::join_all;
use s3_writeback::testing::{Operation, S3Server};

use super::multipart::{create, of, part};
use super::support::{BUCKET, KEY, SECRET, at_once, client, is, refusal, server, until};

/// The same in memory and in a directory.
async fn both() -> Vec<(S3Server, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let builder = S3Server::builder()
        .credentials(KEY, SECRET)
        .bucket(BUCKET)
        .dir(dir.path());
    vec![
        (server().await, None),
        (builder.start().await.unwrap(), Some(dir)),
    ]
}

#[tokio::test]
async fn if_none_match_has_one_winner() {
    for (server, _dir) in both().await {
        let client = client(&server);
        for round in 0..10 {
            let key = format!("k{round}");
            let puts = (0..32_u8).map(|n| {
                let put = client
                    .put_object()
                    .bucket(BUCKET)
                    .key(&key)
                    .if_none_match("*");
                put.body(ByteStream::from(vec![n; 200_000])).send()
            });
            let results = at_once(&server, puts.collect()).await;
            let winners: Vec<_> = (0..32)
                .filter(|n| results[*n as usize].is_ok())
                .collect::<Vec<u32>>();
            assert_eq!(winners.len(), 1, "{winners:?}");
            let body = server.object(BUCKET, &key).unwrap();
            assert_eq!(body, vec![winners[0] as u8; 200_000]);
            for result in results.into_iter().filter(Result::is_err) {
                assert_eq!(refusal(result), is(412, "PreconditionFailed"));
            }
        }
        assert_eq!(server.counters().effects(Operation::PutObject), 10);
    }
}

#[tokio::test]
async fn compare_and_swap_loses_no_increment() {
    for (server, _dir) in both().await {
        let client = client(&server);
        server.insert(BUCKET, "n", "0".into()).unwrap();
        join_all((0..8).map(|_| async {
            for _ in 0..10 {
                loop {
                    let get = client
                        .get_object()
                        .bucket(BUCKET)
                        .key("n")
                        .send()
                        .await
                        .unwrap();
                    let etag = get.e_tag().unwrap().to_owned();
                    let text = get.body.collect().await.unwrap().to_vec();
                    let n: u64 = String::from_utf8(text).unwrap().parse().unwrap();
                    let put = client.put_object().bucket(BUCKET).key("n").if_match(etag);
                    let body = ByteStream::from((n + 1).to_string().into_bytes());
                    match put.body(body).send().await {
                        Ok(_) => break,
                        error => assert_eq!(refusal(error), is(412, "PreconditionFailed")),
                    }
                }
            }
        }))
        .await;
        assert_eq!(server.object(BUCKET, "n").unwrap(), "80");
    }
}

#[tokio::test]
async fn a_reader_sees_one_version_whole() {
    for (server, _dir) in both().await {
        let client = client(&server);
        let body = |n: usize| vec![b'a' + n as u8; 20_000 + n];
        server.insert(BUCKET, "k", body(0).into()).unwrap();
        let writers = join_all((0..4).map(|w| {
            let client = client.clone();
            async move {
                for round in 0..10 {
                    let body = ByteStream::from(body((w * 5 + round) % 20));
                    client
                        .put_object()
                        .bucket(BUCKET)
                        .key("k")
                        .body(body)
                        .send()
                        .await
                        .unwrap();
                }
            }
        }));
        let readers = join_all((0..4).map(|_| {
            let client = client.clone();
            async move {
                let mut seen = BTreeSet::new();
                for _ in 0..30 {
                    // The SDK checks the checksum of what it reads.
                    let get = client
                        .get_object()
                        .bucket(BUCKET)
                        .key("k")
                        .send()
                        .await
                        .unwrap();
                    let bytes = get.body.collect().await.unwrap().to_vec();
                    let n = usize::from(bytes[0] - b'a');
                    assert_eq!(bytes, body(n));
                    seen.insert(n);
                }
                seen.len()
            }
        }));
        let (_, seen) = futures::join!(writers, readers);
        assert!(
            seen.into_iter().max().unwrap() > 1,
            "the readers saw writes"
        );
    }
}

#[tokio::test]
async fn one_completion_of_an_upload_wins() {
    for (server, _dir) in both().await {
        let client = client(&server);
        for round in 0..5 {
            let key = format!("k{round}");
            let id = create(&client, &key).await;
            // Large, so that all are at work before the first is done.
            let upload = client.upload_part().bucket(BUCKET).key(&key).upload_id(&id);
            let body = ByteStream::from(vec![b'x'; 1 << 20]);
            let one = upload.part_number(1).body(body).send().await.unwrap();
            let one = CompletedPart::builder()
                .part_number(1)
                .set_e_tag(one.e_tag().map(str::to_owned))
                .build();
            let completions = (0..16).map(|_| {
                let complete = client.complete_multipart_upload().bucket(BUCKET).key(&key);
                complete
                    .upload_id(&id)
                    .multipart_upload(of(std::slice::from_ref(&one)))
                    .send()
            });
            let results = at_once(&server, completions.collect()).await;
            assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
            for result in results.into_iter().filter(Result::is_err) {
                assert_eq!(refusal(result), is(404, "NoSuchUpload"));
            }
        }
        // Two uploads of one key, both to create it.
        let mut completions = Vec::new();
        for _ in 0..8 {
            let id = create(&client, "one").await;
            let one = part(&client, "one", &id, 1, "aaaa").await;
            let complete = client.complete_multipart_upload().bucket(BUCKET).key("one");
            let complete = complete.if_none_match("*").upload_id(id);
            completions.push(complete.multipart_upload(of(&[one])).send());
        }
        let results = at_once(&server, completions).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert_eq!(
            server.uploads(BUCKET).len(),
            7,
            "the losers keep their uploads"
        );
    }
}

#[tokio::test]
async fn the_counters_add_up() {
    let server = server().await;
    let client = client(&server);
    let hang = server.faults().hang_all();
    let work = join_all((0..20).map(|n| {
        let put = client
            .put_object()
            .bucket(BUCKET)
            .key(format!("k{}", n % 4));
        put.metadata("write-id", n.to_string())
            .body(ByteStream::from_static(b"12345"))
            .send()
    }));
    let (results, ()) = futures::join!(work, async {
        let held = server
            .wait_for(|c| c.hung == 20, Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!((held.in_flight, held.max_in_flight), (20, 20));
        assert_eq!(held.effects(Operation::PutObject), 0);
        assert!(held.log.iter().all(|r| !r.ended && r.status.is_none()));
        server.faults().remove(hang);
    });
    assert!(results.iter().all(Result::is_ok));
    let counters = server
        .wait_for(|c| c.in_flight == 0, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(counters.requests(Operation::PutObject), 20);
    assert_eq!(counters.effects(Operation::PutObject), 20);
    assert_eq!((counters.faults, counters.hung), (20, 0));
    assert_eq!(counters.puts(BUCKET, "k1"), 5);
    assert!(counters.bytes_received >= 100);
    let ids: BTreeSet<_> = counters
        .log
        .iter()
        .map(|r| r.write_id.clone().unwrap())
        .collect();
    assert_eq!(ids.len(), 20);
    assert!(
        counters
            .log
            .iter()
            .all(|r| r.ended && r.effect && r.status == Some(200))
    );
}

/// A client that hangs up at once: what it sent whole happens to its end, and is counted.
#[tokio::test]
async fn hanging_up_leaves_nothing_half_done() {
    use tokio::io::AsyncWriteExt as _;

    for (server, _dir) in both().await {
        let body = vec![b'x'; 300_000];
        for n in 0..60_u64 {
            let raw = super::support::Raw::new("PUT", &format!("/{BUCKET}/k{n}"), &body);
            let mut stream = tokio::net::TcpStream::connect(server.address())
                .await
                .unwrap();
            stream.write_all(&raw.encode(&server)).await.unwrap();
            until(&server, |c| c.bytes_received == (n + 1) * body.len() as u64).await;
        }
        let quiet = until(&server, |c| {
            let objects = server.objects(BUCKET).len() as u64;
            c.in_flight == 0 && c.connections == 0 && c.effects(Operation::PutObject) == objects
        });
        assert!(quiet.await.effects(Operation::PutObject) > 0);
        assert!(
            server
                .objects(BUCKET)
                .iter()
                .all(|o| o.size == body.len() as u64)
        );
    }
}
