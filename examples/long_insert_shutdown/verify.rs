//! Reading the log back, and checking it against what was acknowledged.
//!
//! Owns: the judgement, and its form for both engines ([`crate::audit`] is the heap's). Uses a plain `aws-sdk-s3` client and nothing of the crate under test.
//!
//! Rows of one writer are committed in order into segments that are numbered in order, so they
//! must come back in order: a counter for each writer is all that has to be remembered.

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use crate::acks::Acknowledged;
use crate::failure::Failure;
use crate::row;
use crate::shipper::{self, Keys};
use crate::world::Bucket;

/// Segments that are fetched ahead of the one that is read.
const AHEAD: usize = 2;
/// Faults that are told one by one.
const TOLD: usize = 10;

/// Where rows were read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// S3 alone.
    #[default]
    S3,
    /// The store's directory, and S3 where it has them.
    Directory,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::S3 => "s3",
            Self::Directory => "directory",
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Acknowledged rows that are there, once, with the right bytes.
    pub verified: u64,
    /// Acknowledged rows that are not.
    pub lost: u64,
    /// Rows, or later versions of rows, that were not acknowledged before the end: allowed.
    pub unacknowledged: u64,
    pub segments: u64,
    /// Where they were read from.
    pub from: Source,
    /// How long it took to restore what was read.
    pub restore_ms: u64,
    /// What is wrong, the first few.
    pub faults: Vec<String>,
    /// How many there are in all.
    pub fault_count: u64,
}

impl Verdict {
    pub fn fault(&mut self, text: String) {
        self.fault_count += 1;
        if self.faults.len() < TOLD {
            self.faults.push(text);
        }
    }
}

/// Reads the bucket and checks every acknowledged row.
pub async fn verify(bucket: &Bucket, acknowledged: &Acknowledged) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::default();
    let mut check = Check {
        acknowledged,
        next: vec![0; acknowledged.counters.len()],
        right: 0,
        scratch: Vec::new(),
    };
    let mut after = None;
    loop {
        let keys = page(bucket, Keys::SEGMENTS, after).await?;
        let Some(last) = keys.last().cloned() else {
            break;
        };
        let mut bodies = stream::iter(keys)
            .map(|key| fetch(bucket, key))
            .buffered(AHEAD);
        while let Some((key, body)) = bodies.try_next().await? {
            let wanted = Keys::segment(verdict.segments);
            if key != wanted {
                verdict.fault(format!("{key} where {wanted} was to come"));
            }
            verdict.segments += 1;
            check.segment(&key, &body, &mut verdict);
        }
        after = Some(last);
    }
    check_manifest(bucket, &mut verdict).await?;
    verdict.verified = check.right;
    verdict.lost = acknowledged.total() - check.right;
    Ok(verdict)
}

/// What has been seen so far.
struct Check<'a> {
    acknowledged: &'a Acknowledged,
    /// The next id of each writer.
    next: Vec<u64>,
    /// Acknowledged rows that were right.
    right: u64,
    scratch: Vec<u8>,
}

impl Check<'_> {
    fn segment(&mut self, key: &str, body: &[u8], verdict: &mut Verdict) {
        let mut rest = body;
        while !rest.is_empty() {
            let Some((row, after)) = row::read(rest) else {
                let at = body.len() - rest.len();
                verdict.fault(format!("{key}: no whole row at byte {at}"));
                return;
            };
            rest = after;
            self.row(key, &row, verdict);
        }
    }

    fn row(&mut self, key: &str, row: &row::Row<'_>, verdict: &mut Verdict) {
        let writer = row.series as usize;
        let (Some(next), Some(acknowledged)) = (
            self.next.get_mut(writer),
            self.acknowledged.counters.get(writer),
        ) else {
            verdict.fault(format!("{key}: a row of writer {writer}, who never was"));
            return;
        };
        if row.id != *next {
            verdict.fault(format!(
                "{key}: writer {writer}: row {} where {next} was to come",
                row.id
            ));
        }
        let (repeated, id) = (row.id < *next, row.id);
        *next = (*next).max(id.saturating_add(1));
        let Acknowledged {
            seed, row_bytes, ..
        } = *self.acknowledged;
        if !row::is_right(row, seed, row_bytes, &mut self.scratch) {
            verdict.fault(format!("{key}: writer {writer}: row {id} has other bytes"));
        } else if id >= *acknowledged {
            verdict.unacknowledged += 1;
        } else if !repeated {
            self.right += 1;
        }
    }
}

/// The last manifest counts exactly the segments that are there.
async fn check_manifest(bucket: &Bucket, verdict: &mut Verdict) -> Result<(), Failure> {
    if verdict.segments == 0 {
        return Ok(());
    }
    let key = Keys::manifest(verdict.segments);
    let mut last = None;
    loop {
        let mut keys = page(bucket, Keys::MANIFESTS, last.clone()).await?;
        match keys.pop() {
            Some(key) => last = Some(key),
            None => break,
        }
    }
    if last.as_deref() != Some(key.as_str()) {
        verdict.fault(format!("the last manifest is {last:?}, not {key}"));
        return Ok(());
    }
    let (_, body) = fetch(bucket, key.clone()).await?;
    if body != shipper::manifest(verdict.segments) {
        verdict.fault(format!("{key} says {body:?}"));
    }
    Ok(())
}

/// One page of keys, without the prefix of the run.
async fn page(bucket: &Bucket, below: &str, after: Option<String>) -> Result<Vec<String>, Failure> {
    let list = bucket
        .client
        .list_objects_v2()
        .bucket(&bucket.name)
        .prefix(format!("{}{below}", bucket.prefix))
        .set_start_after(after.map(|key| format!("{}{key}", bucket.prefix)));
    let answer = list.send().await.map_err(Failure::s3)?;
    let keys = answer.contents().iter().filter_map(|object| object.key());
    Ok(keys
        .filter_map(|key| key.strip_prefix(&bucket.prefix))
        .map(str::to_owned)
        .collect())
}

async fn fetch(bucket: &Bucket, key: String) -> Result<(String, Bytes), Failure> {
    let full = format!("{}{key}", bucket.prefix);
    let get = bucket.client.get_object().bucket(&bucket.name).key(full);
    let body = get.send().await.map_err(Failure::s3)?.body;
    let body = body.collect().await.map_err(Failure::s3)?;
    Ok((key, body.into_bytes()))
}
