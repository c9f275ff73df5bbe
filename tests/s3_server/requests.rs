//! The remote alone: one request, one outcome, on this server.

use std::sync::atomic::Ordering;

use s3_writeback::remote::{
    Class, CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, ObjectHeaders, PutRequest,
    Remote, UploadPart, WriteCondition,
};

use crate::lane::{Lane, MIB, bytes};

fn put_of(key: &str, body: &bytes::Bytes, condition: Option<WriteCondition>) -> PutRequest {
    PutRequest {
        key: key.to_owned(),
        checksum: Crc64::of(body),
        body: body.clone(),
        condition,
        headers: ObjectHeaders {
            content_type: Some("application/x-lane".to_owned()),
            metadata: [("colour".to_owned(), "blue".to_owned())].into(),
            ..ObjectHeaders::default()
        },
        write_id: Some(id_of(key)),
    }
}

/// Write ids are plain ASCII; keys need not be.
fn id_of(key: &str) -> String {
    format!("id-{:016x}", Crc64::of(key.as_bytes()).0)
}

fn get_of(key: &str, range: Option<(u64, u64)>) -> GetRequest {
    GetRequest {
        key: key.to_owned(),
        range,
    }
}

/// Objects: written, read, listed, deleted, under names that have to be encoded.
pub async fn one_request_one_outcome(lane: &Lane) {
    let remote = lane.remote("requests");
    let body = bytes(100_000, 1);
    let names = [
        "plain",
        "with space",
        "plus+and%25",
        "ümlaut/ß",
        "a/b/c",
        "dots..in",
        "q?=&",
    ];
    for name in names {
        remote.put(put_of(name, &body, None)).await.expect(name);
        let got = remote
            .get(get_of(name, None))
            .await
            .expect(name)
            .expect(name);
        assert_eq!(got.body, body, "{name}");
        let head = remote.head(name).await.expect(name).expect(name);
        assert_eq!(head.size, 100_000);
        assert_eq!(head.etag, got.info.etag);
        if lane.capabilities.write_id_kept.is_honoured() {
            assert_eq!(head.write_id.as_deref(), Some(id_of(name).as_str()));
        }
        if lane.capabilities.crc64_kept.is_honoured() {
            assert_eq!(head.checksum, Some(Crc64::of(&body)), "{name}");
        }
    }
    let page = remote.list("", None).await.expect("lists");
    let mut listed: Vec<String> = page.objects.into_iter().map(|(key, _)| key).collect();
    listed.sort();
    let mut wanted = names.map(str::to_owned).to_vec();
    wanted.sort();
    assert_eq!(listed, wanted);

    for range in [(0, 1), (1, 10), (99_990, 10), (99_990, 100), (0, 100_000)] {
        let got = remote
            .get(get_of("plain", Some(range)))
            .await
            .expect("a range");
        let end = 100_000.min(range.0 + range.1) as usize;
        assert_eq!(
            got.expect("is there").body,
            body.slice(range.0 as usize..end),
            "{range:?}"
        );
    }
    let beyond = remote.get(get_of("plain", Some((100_000, 1)))).await;
    assert_eq!(
        beyond.expect_err("nothing is there").class,
        Class::Permanent
    );
    assert!(
        remote
            .get(get_of("missing", None))
            .await
            .expect("answers")
            .is_none()
    );
    assert!(remote.head("missing").await.expect("answers").is_none());

    let empty = bytes::Bytes::new();
    remote
        .put(put_of("empty", &empty, None))
        .await
        .expect("an empty object");
    let got = remote
        .get(get_of("empty", None))
        .await
        .expect("answers")
        .expect("is there");
    assert!(got.body.is_empty());

    let bad = PutRequest {
        checksum: Crc64(1),
        ..put_of("bad", &body, None)
    };
    match remote.put(bad).await {
        Err(error) => {
            assert!(
                remote.head("bad").await.expect("answers").is_none(),
                "{error}"
            );
        }
        Ok(_) => lane.differs("a body that has not its CRC-64/NVME is taken"),
    }
    for name in names.into_iter().chain(["empty", "bad", "never there"]) {
        remote.delete(name, None).await.expect(name);
    }
    assert!(lane.keys_under("requests").await.is_empty());
}

/// Uploads in parts: made, listed, given up, asked for when they are gone.
pub async fn multipart_uploads(lane: &Lane) {
    let remote = lane.remote("multipart");
    let create = |key: &str| CreateMultipart {
        key: key.to_owned(),
        headers: ObjectHeaders::default(),
        write_id: Some(id_of(key)),
    };
    let id = remote.create_multipart(create("k")).await.expect("begins");
    let other = remote.create_multipart(create("k")).await.expect("begins");
    let beside = remote.create_multipart(create("k2")).await.expect("begins");
    let found = remote.list_multipart("k").await.expect("lists");
    let mut found: Vec<String> = found.into_iter().map(|upload| upload.upload_id).collect();
    found.sort();
    let mut wanted = vec![id.clone(), other.clone()];
    wanted.sort();
    assert_eq!(found, wanted, "exactly those of this key");

    let body = bytes(5 * MIB + 1000, 2);
    let mut parts = Vec::new();
    for (number, part) in [(1, body.slice(..5 * MIB)), (2, body.slice(5 * MIB..))] {
        let part = UploadPart {
            key: "k".to_owned(),
            upload_id: id.clone(),
            number,
            checksum: Crc64::of(&part),
            body: part,
        };
        parts.push(remote.upload_part(part).await.expect("a part"));
    }
    let complete = CompleteMultipart {
        key: "k".to_owned(),
        upload_id: id.clone(),
        parts,
        checksum: Crc64::of(&body),
        size: body.len() as u64,
        condition: None,
    };
    remote
        .complete_multipart(complete.clone())
        .await
        .expect("is completed");
    match remote.get(get_of("k", None)).await {
        Ok(got) => assert_eq!(got.expect("is there").body, body),
        Err(error) if error.has_code("BodyDamaged") => {
            lane.reads_whole.store(false, Ordering::Relaxed);
            lane.differs(format!(
                "an object made of parts has another CRC-64: {error}"
            ));
        }
        Err(error) => panic!("{error}"),
    }
    let range = Some((0, body.len() as u64));
    let got = remote
        .get(get_of("k", range))
        .await
        .expect("answers")
        .expect("is there");
    assert_eq!(got.body, body);
    if lane.capabilities.write_id_kept.is_honoured() {
        assert_eq!(got.info.write_id.as_deref(), Some(id_of("k").as_str()));
    }
    match remote.complete_multipart(complete).await {
        Err(error) if error.has_code("NoSuchUpload") => {}
        Err(error) => lane.differs(format!("a second completion: {error}")),
        Ok(_) => lane.differs("a completion can be made twice"),
    }
    for (key, id) in [("k", &other), ("k2", &beside), ("k", &other)] {
        remote.abort_multipart(key, id).await.expect("is given up");
    }
    assert!(remote.list_multipart("k").await.expect("lists").is_empty());

    if lane.capabilities.if_none_match.is_honoured() {
        let id = remote.create_multipart(create("k")).await.expect("begins");
        let part = UploadPart {
            key: "k".to_owned(),
            upload_id: id.clone(),
            number: 1,
            checksum: Crc64::of(b"other"),
            body: bytes::Bytes::from_static(b"other"),
        };
        let parts = vec![remote.upload_part(part).await.expect("a part")];
        let onto = CompleteMultipart {
            key: "k".to_owned(),
            upload_id: id.clone(),
            parts,
            checksum: Crc64::of(b"other"),
            size: 5,
            condition: Some(WriteCondition::IfAbsent),
        };
        match remote.complete_multipart(onto).await {
            Err(error) => assert_eq!(error.class, Class::Conflict, "{error}"),
            Ok(_) => lane.differs("If-None-Match on a completion is ignored"),
        }
        remote.abort_multipart("k", &id).await.expect("is given up");
    }
    let stale = Some(ETag("d41d8cd98f00b204e9800998ecf8427e".to_owned()));
    if lane.capabilities.conditional_delete.is_honoured() {
        let error = remote.delete("k", stale).await.expect_err("is stale");
        assert_eq!(error.class, Class::Conflict, "{error}");
    }
    remote.delete("k", None).await.expect("is deleted");
    assert!(lane.keys_under("multipart").await.is_empty());
}
