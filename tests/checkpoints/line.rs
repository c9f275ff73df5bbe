//! The line: what a checkpoint has in it while everything goes on.

mod content;
mod cuts;
mod images;
mod last;
mod progress;

use s3_writeback::{FileId, PartId, PartStore};

use crate::support::{PART, contents};

const FILE: FileId = FileId(1);

fn part(index: u32) -> PartId {
    PartId { file: FILE, index }
}

/// What part `index` of the restored file is filled with.
async fn byte(store: &PartStore, index: usize) -> u8 {
    let bytes = contents(store, 1).await;
    let part = &bytes[index * PART..];
    let part = &part[..part.len().min(PART)];
    assert!(
        part.iter().all(|byte| *byte == part[0]),
        "part {index} is torn"
    );
    part[0]
}
