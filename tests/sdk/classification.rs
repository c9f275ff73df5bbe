//! Every way in which S3 says no, through the real SDK: what it means, and what a worker does.

mod server;
mod table;
mod worker;

use std::time::Duration;

use crate::scripted::{Action, Scripted};
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{
    ProvideCredentials, SharedCredentialsProvider, future::ProvideCredentials as Provided,
};
use bytes::Bytes;
use futures::StreamExt;
use s3_writeback::remote::deadline::within;
use s3_writeback::remote::*;
use table::{Does, On, Row, rows};

/// How long an attempt may take here.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Rows that run together.
const TOGETHER: usize = 16;

/// Gives no credentials.
#[derive(Debug)]
struct Nothing;

impl ProvideCredentials for Nothing {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::ready(Err(CredentialsError::not_loaded("nothing here")))
    }
}

fn remote_at(endpoint: &str, credentials: bool) -> S3Remote {
    let config = SdkConfig::builder()
        .endpoint_url(endpoint)
        .region(Region::new("eu-central-1"));
    let keys = Credentials::new("AKIDTEST", "secret", None, None, "test");
    let config = config.credentials_provider(match credentials {
        true => SharedCredentialsProvider::new(keys),
        false => SharedCredentialsProvider::new(Nothing),
    });
    let builder = S3Remote::builder(&config.build()).bucket("bucket");
    builder.build().unwrap()
}

fn put(body: impl Into<Bytes>, condition: Option<WriteCondition>) -> PutRequest {
    let body = body.into();
    PutRequest {
        key: "k".to_owned(),
        checksum: Crc64::of(&body),
        body,
        condition,
        headers: ObjectHeaders::default(),
        write_id: Some("w".to_owned()),
    }
}

fn complete(condition: Option<WriteCondition>) -> CompleteMultipart {
    let part = PartInfo {
        number: 1,
        etag: ETag("part".to_owned()),
        checksum: Crc64(1),
    };
    CompleteMultipart {
        key: "k".to_owned(),
        upload_id: "upload".to_owned(),
        parts: vec![part],
        checksum: Crc64(1),
        size: 10,
        condition,
    }
}

/// Makes the row's request, as the workers do: within its attempt's deadline.
async fn request(row: &Row, remote: &S3Remote) -> Result<(), RemoteError> {
    let etag = || ETag("e".to_owned());
    let small = || vec![7_u8; 1024];
    let get = |range| GetRequest {
        key: "k".to_owned(),
        range,
    };
    let of = |condition| remote.put(put(small(), condition));
    match row.on {
        On::Put if matches!(row.does, Does::Refused) => {
            let long = PutRequest {
                key: "k".repeat(1025),
                ..put(small(), None)
            };
            remote.put(long).await.map(drop)
        }
        On::Put => within("PutObject", ATTEMPT, of(Some(WriteCondition::IfAbsent)))
            .await
            .map(drop),
        On::Swap => of(Some(WriteCondition::IfMatch(etag()))).await.map(drop),
        On::Overwrite => of(None).await.map(drop),
        On::Large => {
            let large = remote.put(put(vec![1_u8; 32 << 20], None));
            within("PutObject", ATTEMPT, large).await.map(drop)
        }
        On::Corrupt => {
            let corrupt = PutRequest {
                checksum: Crc64(1),
                ..put(small(), None)
            };
            remote.put(corrupt).await.map(drop)
        }
        On::Get => within("GetObject", ATTEMPT, remote.get(get(None)))
            .await
            .map(drop),
        On::Range => remote.get(get(Some((0, 10)))).await.map(drop),
        On::Head => remote.head("k").await.map(drop),
        On::Delete => remote.delete("k", Some(etag())).await,
        On::Part => {
            let body = Bytes::from(small());
            let part = UploadPart {
                key: "k".to_owned(),
                upload_id: "upload".to_owned(),
                number: 1,
                checksum: Crc64::of(&body),
                body,
            };
            remote.upload_part(part).await.map(drop)
        }
        On::Complete => remote.complete_multipart(complete(None)).await.map(drop),
        On::CompleteNew => {
            let new = complete(Some(WriteCondition::IfAbsent));
            remote.complete_multipart(new).await.map(drop)
        }
    }
}

/// What is wrong with one row, if something is.
async fn look_at(row: &Row) -> Result<(), String> {
    let server = match row.action() {
        Some(action) => Some(Scripted::start([action]).await),
        None => None,
    };
    let endpoint = match (&row.does, &server) {
        (Does::NoName, _) => "http://no-such-name.invalid".to_owned(),
        (Does::Plain | Does::SilentToTls, Some(server)) => format!("https://{}", server.address),
        (_, Some(server)) => server.endpoint(),
        (_, None) => {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        }
    };
    let remote = remote_at(&endpoint, !matches!(row.does, Does::NoCredentials));
    let result = match row.does {
        // The SDK's client gives a connection 3 s.
        Does::SilentToTls => remote.put(put("", None)).await.map(drop),
        _ => request(row, &remote).await,
    };
    let Err(error) = result else {
        return Err("no error".to_owned());
    };
    let found = (
        error.class,
        error.effect,
        error.retryable,
        error.code.as_deref().unwrap_or_default(),
        error.status,
        error.retry_after,
    );
    let expected = (
        row.class,
        row.effect,
        row.retryable,
        row.code,
        row.status(),
        row.retry_after,
    );
    if found != expected {
        return Err(format!("{found:?} and not {expected:?}: {error}"));
    }
    if !error.message.contains(row.says) {
        return Err(format!("says nothing of {:?}: {error}", row.says));
    }
    let attempts = server.map_or(0, |server| server.attempts());
    let expected = match row.does {
        Does::Nobody | Does::NoName | Does::NoCredentials | Does::Refused => 0,
        // What is not implemented may be a checksum's header: without it once more.
        Does::Says(501, _) => 2,
        // Nor does every server take a tag in quotes: bare once more.
        Does::Says(412, _) if matches!(row.on, On::Swap | On::Delete) => 2,
        _ => 1,
    };
    if attempts != expected {
        return Err(format!("{attempts} requests and not {expected}"));
    }
    Ok(())
}

/// The rows of the table through the real SDK: one attempt each, its class, effect, code, status,
/// and whether it can be made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_classified_through_the_sdk() {
    let rows = rows();
    assert!(rows.len() > 100);
    let looked = futures::stream::iter(&rows).map(async |row| {
        let found = look_at(row).await;
        found.map_err(|wrong| format!("{} {:?} on {:?}: {wrong}", row.name, row.does, row.on))
    });
    let wrong: Vec<String> = looked
        .buffer_unordered(TOGETHER)
        .filter_map(async |result| result.err())
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// S3 gives a connection up on which a request was too slow: the next one goes on another.
#[tokio::test]
async fn a_connection_that_timed_out_is_not_used_again() {
    let server = Scripted::start([
        Action::ok(),
        Action::ok(),
        Action::error(400, "RequestTimeout"),
        Action::ok(),
    ])
    .await;
    let remote = remote_at(&server.endpoint(), true);
    let of = || remote.put(put("x", None));
    of().await.unwrap();
    of().await.unwrap();
    assert_eq!(server.connections(), 1, "it is kept otherwise");
    of().await.unwrap_err();
    of().await.unwrap();
    assert_eq!((server.attempts(), server.connections()), (4, 2));
}

/// C11: an error text of 5 MiB, of which a kibibyte is kept, cut at a character.
#[tokio::test]
async fn c11_an_error_text_of_5_mib_is_cut_at_a_character() {
    for (one, kept) in [
        ("x", 1024),
        ("\u{20ac}", 1023),
        ("\u{1d11e}", 1024),
        ("a\u{20ac}", 1024),
    ] {
        let text = one.repeat((5 << 20) / one.len());
        let body = crate::scripted::error_body("InvalidArgument").replace("scripted", &text);
        let server = Scripted::start([Action::with(400, &[], body)]).await;
        let remote = remote_at(&server.endpoint(), true);
        let error = remote.put(put("x", None)).await.unwrap_err();
        assert_eq!(error.message.len(), kept, "{one}");
        assert!(text.starts_with(&error.message), "{one}");
        assert!(error.has_code("InvalidArgument"));
    }
}
