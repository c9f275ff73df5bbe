//! What S3 has at the end, read by a client that is not the queue's.

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectError;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::failure::Failure;
use crate::load::Acknowledged;
use crate::object::{Object, REWRITTEN};
use crate::s3::{BUCKET, PREFIX};

/// Reads at one time.
const AT_ONCE: usize = 16;
/// So many are named.
const NAMED: usize = 10;

/// What was found of what was acknowledged.
#[derive(Debug, Default)]
pub struct Found {
    pub right: u64,
    pub missing: u64,
    pub wrong: u64,
    /// The first that are not right.
    pub named: Vec<String>,
}

enum Is {
    Right,
    Missing(String),
    Wrong(String),
}

/// Reads every acknowledged key. Of a rewritten one, the last version must be there.
pub async fn audit(client: &Client, acknowledged: &Acknowledged) -> Result<Found, Failure> {
    let once = (0..acknowledged.objects).map(Object::Once);
    let rewritten = (0..REWRITTEN).zip(acknowledged.versions);
    let rewritten = rewritten.filter(|(_, version)| *version > 0);
    let all = once.chain(rewritten.map(|(which, version)| Object::Version(which, version)));
    let looks = futures::stream::iter(all.map(|object| look(client, object)));
    let mut looks = looks.buffer_unordered(AT_ONCE);
    let mut found = Found::default();
    while let Some(is) = looks.try_next().await? {
        let named = match is {
            Is::Right => {
                found.right += 1;
                continue;
            }
            Is::Missing(key) => {
                found.missing += 1;
                format!("{key} is not in S3")
            }
            Is::Wrong(key) => {
                found.wrong += 1;
                format!("{key} has other bytes in S3")
            }
        };
        if found.named.len() < NAMED {
            found.named.push(named);
        }
    }
    Ok(found)
}

async fn look(client: &Client, wanted: Object) -> Result<Is, Failure> {
    let key = wanted.key();
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key(format!("{PREFIX}/{key}"));
    let found = match get.send().await {
        Ok(found) => found,
        Err(error) => match error.as_service_error() {
            Some(GetObjectError::NoSuchKey(_)) => return Ok(Is::Missing(key)),
            _ => return Err(Failure::S3(format!("{key} cannot be read: {error:?}"))),
        },
    };
    let bytes = found.body.collect().await;
    let bytes = bytes.map_err(|error| Failure::S3(format!("{key}: {error}")))?;
    Ok(match bytes.into_bytes() == wanted.body() {
        true => Is::Right,
        false => Is::Wrong(key),
    })
}
