//! Reading every byte of a checkpoint, to know that it is there.
//!
//! Owns: the figures. Does not own: how it is read (`reader.rs`, `run.rs`), or what is done about
//! what is missing.

use futures::StreamExt as _;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::Result;

use super::Checkpoint;
use super::head::Listed;
use super::reader::{self, Reader};
use super::request::Requests;
use super::run::runs;

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
        let parts = reader.parts(&file.pages).await?;
        let mut read = futures::stream::iter(runs(parts))
            .map(|run| reader.run(run))
            .buffered(AHEAD);
        while let Some(images) = read.next().await {
            for (index, address, bytes) in images {
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
