//! Images that lie together are read together.
//!
//! Owns: which those are, and what is said of each. Does not own: what they are of.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::part::header::{Address, crc32c};

use super::reader::Reader;

/// Bytes that are read at one time, and what may lie between two images that are read together.
const RUN: u64 = 8 * 1024 * 1024;
const GAP: u64 = 64 * 1024;

/// Images of parts that are read at one time: all of one object.
#[derive(Debug, Clone)]
pub(super) struct Run {
    from: u64,
    len: u64,
    images: Vec<(u32, Address)>,
}

/// Puts together what lies together.
pub(super) fn runs(images: Vec<(u32, Address)>) -> Vec<Run> {
    let mut by_object: BTreeMap<(u32, u32), Vec<(u32, Address)>> = BTreeMap::new();
    for (index, address) in images {
        let of = by_object.entry((address.epoch, address.sequence));
        of.or_default().push((index, address));
    }
    let mut runs: Vec<Run> = Vec::new();
    for mut images in by_object.into_values() {
        images.sort_by_key(|(_, address)| address.offset);
        let mut open: Option<Run> = None;
        for (index, address) in images {
            let (at, len) = (u64::from(address.offset), u64::from(address.len));
            let joins = open.as_ref().is_some_and(|run| {
                let end = run.from + run.len;
                at <= end + GAP && at + len - run.from <= RUN
            });
            match open.as_mut().filter(|_| joins) {
                Some(run) => {
                    run.len = run.len.max(at + len - run.from);
                    run.images.push((index, address));
                }
                None => runs.extend(open.replace(Run {
                    from: at,
                    len,
                    images: vec![(index, address)],
                })),
            }
        }
        runs.extend(open);
    }
    runs
}

impl Run {
    /// The image at an address, of the bytes of all; `None` where it is not what it was.
    fn image(&self, body: &Bytes, address: &Address) -> Option<Bytes> {
        let at = usize::try_from(u64::from(address.offset) - self.from).ok()?;
        let range = at..at + address.len as usize;
        let image = (range.end <= body.len()).then(|| body.slice(range))?;
        (crc32c(&image) == address.crc).then_some(image)
    }
}

impl Reader {
    /// The images of a run, each with its bytes or what is wrong with them.
    pub(super) async fn run(&self, run: Run) -> Vec<(u32, Address, Result<Bytes>)> {
        let Some((_, first)) = run.images.first() else {
            return Vec::new();
        };
        let read = self.range(*first, run.from, run.len).await;
        let image = |address: &Address| match &read {
            Err(error) => Err(error.clone()),
            Ok((key, body)) => {
                let image = run.image(body, address);
                image.ok_or_else(|| Error::ObjectDamaged {
                    key: key.to_string(),
                    message: format!("image {}+{}", address.offset, address.len),
                })
            }
        };
        let images = run.images.iter();
        let told = images.map(|(index, address)| (*index, *address, image(address)));
        told.collect()
    }
}
