//! Reading every byte of a checkpoint, to know that it is there.
//!
//! Owns: the figures, and that images which lie together are read together. Does not own: what is
//! done about what is missing.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::part::header::{Address, crc32c};

use super::Checkpoint;
use super::head::Listed;
use super::reader::{self, Reader};
use super::request::Requests;

/// Bytes that are read at one time, and what may lie between two images that are read together.
const RUN: u64 = 8 * 1024 * 1024;
const GAP: u64 = 64 * 1024;
/// Reads at one time.
const AHEAD: usize = 4;
/// Faults that are told one by one.
const MAX_TOLD: usize = 100;

/// What reading all of a checkpoint found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Images of parts that are there and right.
    pub images: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Images that are missing or damaged.
    pub bad: u64,
    /// What is wrong with them; the first hundred.
    pub faults: Vec<String>,
}

/// Images that are read at one time: all of one object.
#[derive(Debug, Clone)]
pub(super) struct Run<T> {
    from: u64,
    len: u64,
    pub images: Vec<(Address, T)>,
}

/// Puts together what lies together.
pub(super) fn runs<T>(images: impl IntoIterator<Item = (Address, T)>) -> Vec<Run<T>> {
    let mut by_object: BTreeMap<(u32, u32), Vec<(Address, T)>> = BTreeMap::new();
    for (address, what) in images {
        let of = by_object.entry((address.epoch, address.sequence));
        of.or_default().push((address, what));
    }
    let mut runs: Vec<Run<T>> = Vec::new();
    for mut images in by_object.into_values() {
        images.sort_by_key(|(address, _)| address.offset);
        let mut open: Option<Run<T>> = None;
        for (address, what) in images {
            let (at, len) = (u64::from(address.offset), u64::from(address.len));
            let joins = open.as_ref().is_some_and(|run| {
                let end = run.from + run.len;
                at <= end + GAP && at + len - run.from <= RUN
            });
            match open.as_mut().filter(|_| joins) {
                Some(run) => {
                    run.len = run.len.max(at + len - run.from);
                    run.images.push((address, what));
                }
                None => runs.extend(open.replace(Run {
                    from: at,
                    len,
                    images: vec![(address, what)],
                })),
            }
        }
        runs.extend(open);
    }
    runs
}

impl Reader {
    /// The images of a run, each with its bytes or what is wrong with them.
    pub(super) async fn run<T>(&self, run: Run<T>) -> Vec<(Address, T, Result<bytes::Bytes>)> {
        let read = async {
            let Some((first, _)) = run.images.first() else {
                return Err(Error::WouldWait("nothing"));
            };
            let key = self.key(*first)?;
            if run.len == 0 {
                return Ok((key, bytes::Bytes::new()));
            }
            let got = self
                .requests
                .get(&key, Some((run.from, run.len)), self.until)
                .await?;
            let missing = || Error::ObjectMissing {
                key: key.to_string(),
            };
            let body = got.ok_or_else(missing)?.body;
            Ok((key, body))
        };
        let read = read.await;
        let mut out = Vec::with_capacity(run.images.len());
        for (address, what) in run.images {
            let bytes = match &read {
                Err(error) => Err(error.clone()),
                Ok((key, body)) => {
                    let at = usize::try_from(u64::from(address.offset) - run.from);
                    let range = at.ok().map(|at| at..at + address.len as usize);
                    let image = range.filter(|range| range.end <= body.len());
                    let image = image.map(|range| body.slice(range));
                    match image {
                        Some(image) if crc32c(&image) == address.crc => Ok(image),
                        _ => Err(Error::ObjectDamaged {
                            key: key.to_string(),
                            message: format!("image {}+{}", address.offset, address.len),
                        }),
                    }
                }
            };
            out.push((address, what, bytes));
        }
        out
    }
}

/// Reads every image of a checkpoint.
pub(crate) async fn verify(
    requests: &Requests,
    listed: &Listed,
    until: Instant,
) -> Result<VerifyReport> {
    let manifest = reader::manifest(requests, listed, until).await?;
    let reader = Reader::new(requests.clone(), manifest.epochs.clone(), until);
    let mut report = VerifyReport {
        checkpoint: Checkpoint::of(&manifest),
        images: 0,
        bytes: 0,
        bad: 0,
        faults: Vec::new(),
    };
    for file in reader.files(manifest.tree).await? {
        let mut images = Vec::new();
        for (number, page) in reader.pages(&file.pages).await? {
            let parts: Vec<(u32, Address)> = reader.page(page).await?.parts(number).collect();
            images.extend(parts.into_iter().map(|(index, address)| (address, index)));
        }
        let mut read = futures::stream::iter(runs(images))
            .map(|run| reader.run(run))
            .buffered(AHEAD);
        while let Some(images) = read.next().await {
            for (address, index, bytes) in images {
                match bytes {
                    Ok(_) => {
                        report.images += 1;
                        report.bytes += u64::from(address.len);
                    }
                    Err(error) => {
                        report.bad += 1;
                        if report.faults.len() < MAX_TOLD {
                            let fault = format!("part {index} of file {}: {error}", file.id);
                            report.faults.push(fault);
                        }
                    }
                }
            }
        }
    }
    Ok(report)
}
