//! Which objects go.
//!
//! Owns: what is done about each object that is there, by whose it is, how old it is, and whether
//! it is named. Does not own: what is named (`gc.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::part::epoch::parse_pack_key;

use super::gc::GcReport;
use super::manifest::{self, Stranded};
use super::request::Requests;

/// Name of an object: epoch's name and sequence.
pub(super) type Name = (u64, u32);
pub(super) type Names = BTreeSet<Name>;

/// Who looks, and what may go.
pub(super) struct Sweep<'a> {
    pub requests: &'a Requests,
    pub until: Instant,
    /// Our epoch, and the lowest of its sequences that may still be on its way; `None` of who does
    /// not own the prefix.
    pub ours: Option<Name>,
    /// Names that are ours, where epochs have no order.
    pub only: Option<BTreeSet<u64>>,
    /// Below it everything was settled.
    pub mark: Option<Name>,
    pub stranded: Vec<Stranded>,
    pub retention: Duration,
    pub now: SystemTime,
    pub named: Names,
    pub report: GcReport,
}

/// What is done about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Spare,
    Delete,
    /// Another owns the prefix.
    Higher,
}

impl Sweep<'_> {
    fn fate(&self, object: Name, modified: Option<SystemTime>) -> Fate {
        if self.named.contains(&object) {
            return Fate::Keep;
        }
        if let Some(only) = &self.only {
            let settled = self
                .ours
                .is_none_or(|ours| object.0 != ours.0 || object < ours);
            return match only.contains(&object.0) && settled {
                true => Fate::Delete,
                false => Fate::Spare,
            };
        }
        match (self.ours, self.mark) {
            (Some((epoch, _)), _) if object.0 > epoch => return Fate::Higher,
            (Some(lowest), _) if object >= lowest && !is(Mutant::GcForgetsInFlight) => {
                return Fate::Spare;
            }
            (None, Some(mark)) if object < mark => {}
            (None, _) => return Fate::Spare,
            _ => {}
        }
        let mut ranges = self.stranded.iter().filter(|range| range.has(object));
        let young = ranges.any(|range| {
            let since = modified.map(|at| at.max(range.since()));
            let age = since.and_then(|since| self.now.duration_since(since).ok());
            age.is_none_or(|age| age <= self.retention)
        });
        match young {
            true => Fate::Spare,
            false => Fate::Delete,
        }
    }

    /// Packs that nobody names; how large each is that somebody does.
    pub(super) async fn packs(&mut self) -> Result<BTreeMap<Name, u64>> {
        let mut sizes = BTreeMap::new();
        let mut pages = self.requests.list("packs/", self.until);
        while let Some(objects) = pages.next().await? {
            for (key, info) in objects {
                let Some(object) = parse_pack_key(&key) else {
                    continue;
                };
                self.report.objects += 1;
                match self.fate(object, info.last_modified) {
                    Fate::Keep => {
                        sizes.insert(object, info.size);
                    }
                    Fate::Spare => self.report.spared += 1,
                    Fate::Delete => self.delete(&key, info.size).await?,
                    Fate::Higher => return Err(Error::HeadChanged),
                }
            }
        }
        Ok(sizes)
    }

    async fn delete(&mut self, key: &str, size: u64) -> Result<()> {
        self.requests.delete(key, self.until).await?;
        self.report.deleted += 1;
        self.report.deleted_bytes += size;
        Ok(())
    }

    /// Uploads in parts that a crash left.
    pub(super) async fn uploads(&mut self) -> Result<()> {
        let listed = self
            .requests
            .ask(self.until, |remote| remote.list_multipart_under("packs/"))
            .await?;
        for upload in listed {
            let Some(object) = parse_pack_key(&upload.key) else {
                continue;
            };
            // By their dates a stranded owner's may go too: what is not an object is in no file.
            if self.fate(object, upload.initiated) == Fate::Delete {
                let (key, id) = (&upload.key, &upload.upload_id);
                self.requests
                    .ask(self.until, |remote| remote.abort_multipart(key, id))
                    .await?;
                self.report.aborted_uploads += 1;
            }
        }
        Ok(())
    }

    /// Manifests that nobody lists. `keep` says which of the others stay.
    pub(super) async fn manifests(
        &mut self,
        keep: &BTreeSet<(u64, u64)>,
        latest: u64,
    ) -> Result<()> {
        let mut pages = self.requests.list("checkpoints/", self.until);
        while let Some(objects) = pages.next().await? {
            for (key, info) in objects {
                let Some((number, epoch)) = manifest::parse_key(&key) else {
                    continue;
                };
                self.report.objects += 1;
                if keep.contains(&(number, epoch)) {
                    continue;
                }
                let may_go = match (&self.only, self.ours) {
                    (Some(only), _) => only.contains(&epoch) && number <= latest,
                    (None, Some((ours, _))) if epoch > ours => return Err(Error::HeadChanged),
                    // One that is being made has a higher number.
                    (None, _) => number <= latest,
                };
                match may_go {
                    true => self.delete(&key, info.size).await?,
                    false => self.report.spared += 1,
                }
            }
        }
        Ok(())
    }
}
