//! Listing, odd keys, many deletes.

use std::collections::BTreeSet;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use super::support::{BUCKET, client, server};

/// Keys that a careless server would mangle.
pub fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "a/b",
        "a/b/",
        "a//b",
        "/a",
        "..",
        "../up",
        "a/../b",
        ".",
        "con",
        "with space",
        "plus+plus",
        "percent%41",
        "%2F",
        "é/ü/漢字",
        "q?x=1&y=2#z",
        "<xml>&\"'",
        "star*",
        "back\\slash",
        "colon:semi;",
        "A",
        "~tilde",
        "tab\there",
        "new\nline",
        "carriage\rreturn",
        " leading and trailing ",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.push("l/".repeat(512));
    keys
}

#[tokio::test]
async fn odd_keys_are_kept_apart_and_come_back() {
    let server = server().await;
    let client = client(&server);
    for key in odd_keys() {
        let body = ByteStream::from(key.clone().into_bytes());
        client
            .put_object()
            .bucket(BUCKET)
            .key(&key)
            .body(body)
            .send()
            .await
            .unwrap();
    }
    for key in odd_keys() {
        let get = client
            .get_object()
            .bucket(BUCKET)
            .key(&key)
            .send()
            .await
            .unwrap();
        assert_eq!(
            get.body.collect().await.unwrap().to_vec(),
            key.as_bytes(),
            "{key}"
        );
    }
    let listed = client
        .list_objects_v2()
        .bucket(BUCKET)
        .send()
        .await
        .unwrap();
    let listed: Vec<_> = listed
        .contents()
        .iter()
        .map(|o| o.key().unwrap().to_owned())
        .collect();
    let expected: Vec<_> = odd_keys()
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(listed, expected, "all of them, in byte order");
}

#[tokio::test]
async fn pages_prefixes_and_delimiters() {
    let server = server().await;
    let client = client(&server);
    for n in 0..25 {
        for dir in ["x", "y/z"] {
            let key = format!("{dir}/{n:02}");
            server.insert(BUCKET, &key, "body".into()).unwrap();
        }
    }
    let (mut keys, mut token, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = client
            .list_objects_v2()
            .bucket(BUCKET)
            .max_keys(7)
            .set_continuation_token(token)
            .send()
            .await
            .unwrap();
        pages += 1;
        assert!(page.key_count().unwrap() <= 7);
        keys.extend(page.contents().iter().map(|o| o.key().unwrap().to_owned()));
        assert!(page.contents().iter().all(|o| o.size() == Some(4)));
        assert!(
            page.contents()
                .iter()
                .all(|o| o.e_tag() == Some("\"841a2d689ad86bd1611447453c22c6fc\""))
        );
        token = page.next_continuation_token().map(str::to_owned);
        assert_eq!(token.is_some(), page.is_truncated().unwrap());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(pages, 8);
    assert_eq!(keys.len(), 50);
    assert!(keys.is_sorted());

    let page = client
        .list_objects_v2()
        .bucket(BUCKET)
        .delimiter("/")
        .send()
        .await
        .unwrap();
    let prefixes: Vec<_> = page
        .common_prefixes()
        .iter()
        .map(|p| p.prefix().unwrap())
        .collect();
    assert_eq!(prefixes, ["x/", "y/"]);
    assert!(page.contents().is_empty());
    let page = client
        .list_objects_v2()
        .bucket(BUCKET)
        .prefix("y/z/")
        .start_after("y/z/22")
        .send()
        .await
        .unwrap();
    let keys: Vec<_> = page.contents().iter().map(|o| o.key().unwrap()).collect();
    assert_eq!(keys, ["y/z/23", "y/z/24"]);
    let page = client
        .list_objects_v2()
        .bucket(BUCKET)
        .max_keys(0)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (page.key_count(), page.is_truncated()),
        (Some(0), Some(false))
    );
    let bad = client
        .list_objects_v2()
        .bucket(BUCKET)
        .continuation_token("!")
        .send()
        .await;
    assert_eq!(
        super::support::refusal(bad),
        super::support::is(400, "InvalidArgument")
    );
}

#[tokio::test]
async fn many_deletes_in_one_request() {
    let server = server().await;
    let client = client(&server);
    for key in ["a", "b", "c"] {
        server.insert(BUCKET, key, "x".into()).unwrap();
    }
    let id = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder()
        .objects(id("a"))
        .objects(id("c"))
        .objects(id("no"))
        .build();
    let done = client
        .delete_objects()
        .bucket(BUCKET)
        .delete(delete.unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(done.deleted().len(), 3);
    assert!(done.errors().is_empty());
    let left: Vec<_> = server.objects(BUCKET).into_iter().map(|o| o.key).collect();
    assert_eq!(left, ["b"]);
}
