//! Reading the heap back, and checking it against what was acknowledged.
//!
//! Owns: what becomes of the local directory before, and the judgement. The pages are read through
//! a part store, which alone knows where they are: so that S3 has all of them is shown by deleting
//! the directory, and restoring the latest checkpoint from the bucket alone.

use std::fs;
use std::path::Path;

use futures::stream::{self, StreamExt as _};
use s3_writeback::{Error, File, PartStore, Prefix, Restore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acks::Acknowledged;
use crate::failure::Failure;
use crate::heap;
use crate::life;
use crate::options::Cli;
use crate::page::{Page, Shape};
use crate::verify::{Source, Verdict};
use crate::world::World;

/// Parts that are read at one time.
const AHEAD: usize = 4;

/// Opens the store once more, reads all of the heap and checks every acknowledged row. From S3
/// alone: only after a shutdown that left nothing dirty.
pub async fn audit(
    cli: &Cli,
    world: &World,
    dir: &Path,
    acknowledged: &Acknowledged,
    from: Source,
) -> Result<Verdict, Failure> {
    let restored = from == Source::S3;
    let restore_ms = match restored {
        true => restore(cli, world, dir).await?,
        false => 0,
    };
    let token = CancellationToken::new();
    let store = life::open_store(cli, world, dir, &token, restored || cli.resume).await?;
    let shape = cli.shape();
    let (file, _) = heap::open_file(&store, &shape).await?;
    let mut check = Check {
        shape: &shape,
        acknowledged,
        used: 0,
        verdict: Verdict {
            from,
            restore_ms,
            ..Verdict::default()
        },
    };
    let mut parts = stream::iter(0..shape.parts())
        .map(|part| read(&file, &shape, part))
        .buffered(AHEAD);
    while let Some((part, bytes)) = parts.next().await {
        match bytes {
            Ok(bytes) => check.part(part, bytes),
            Err(error) => check.verdict.fault(format!("part {part}: {error}")),
        }
    }
    drop(parts);
    let Check {
        used, mut verdict, ..
    } = check;
    verdict.lost = acknowledged.total() - verdict.verified;
    close(&store, &mut verdict, used).await?;
    Ok(verdict)
}

/// Deletes the store's directory, and restores it from the bucket; how long that took.
async fn restore(cli: &Cli, world: &World, dir: &Path) -> Result<u64, Failure> {
    let store = dir.join("store");
    fs::remove_dir_all(&store).map_err(|error| Failure::io(store.display().to_string(), error))?;
    let started = Instant::now();
    let prefix = Prefix::new(world.remote().await?);
    let config = cli.store_config(store);
    let restored = prefix.restore(&config, Restore::latest().with_bytes());
    match restored.await {
        Ok(_) => {}
        // Which rows are lost is found out when they are read.
        Err(error @ (Error::ObjectMissing { .. } | Error::ObjectDamaged { .. })) => {
            tracing::error!(%error, "not all of it is there");
            prefix.restore(&config, Restore::latest()).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

async fn read(
    file: &File,
    shape: &Shape,
    part: u32,
) -> (u32, Result<Vec<u8>, s3_writeback::Error>) {
    let mut bytes = vec![0; shape.part_bytes as usize];
    let at = u64::from(part) * u64::from(shape.part_bytes);
    let read = file.read_at(&mut bytes, at).await;
    (part, read.map(|()| bytes))
}

async fn close(store: &PartStore, verdict: &mut Verdict, used: u64) -> Result<(), Failure> {
    let loads = store.snapshot().loads;
    if verdict.from == Source::S3 && loads < used {
        verdict.fault(format!(
            "{used} parts have rows, and {loads} were loaded: the rest was not read from S3"
        ));
    }
    if verdict.from == Source::Directory {
        // What is owed is left for the life that catches up.
        store.queue().hurry();
    }
    let report = store.shutdown().await?;
    if let Some(error) = &report.seal_error {
        verdict.fault(format!("not sealed after reading: {error}"));
    }
    Ok(())
}

struct Check<'a> {
    shape: &'a Shape,
    acknowledged: &'a Acknowledged,
    /// Parts that have rows.
    used: u64,
    verdict: Verdict,
}

impl Check<'_> {
    fn part(&mut self, part: u32, mut bytes: Vec<u8>) {
        self.used += u64::from(bytes.iter().any(|byte| *byte != 0));
        let first = u64::from(part) * u64::from(self.shape.pages_of_part());
        let pages = bytes.chunks_exact_mut(self.shape.page_bytes as usize);
        for (number, page) in (first..).zip(pages) {
            match Page::read(self.shape, number, page) {
                Ok(page) => self.page(number, &page),
                Err(text) => self.verdict.fault(text),
            }
        }
    }

    fn page(&mut self, number: u64, page: &Page<'_>) {
        let mut scratch = Vec::new();
        for slot in 0..self.shape.slots() {
            let row = self.shape.row(number, slot);
            let must = self.acknowledged.counters.get(row as usize).copied();
            let must = must.unwrap_or(0);
            match page.version(slot, self.acknowledged.seed, &mut scratch) {
                Ok(version) => {
                    self.verdict.unacknowledged += u64::from(version > must);
                    if version < must {
                        self.verdict.fault(format!(
                            "row {row} is at version {version}, acknowledged was {must}"
                        ));
                    } else if must > 0 {
                        self.verdict.verified += 1;
                    }
                }
                Err(text) => self.verdict.fault(text),
            }
        }
    }
}
