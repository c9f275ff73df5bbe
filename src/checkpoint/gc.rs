//! Deleting what nobody needs.
//!
//! Owns: what is needed, and in which order that is found out. Does not own: what is done about
//! each object then (`sweep.rs`), or which checkpoints are kept (retention is decided where `head`
//! is changed).
//!
//! 1. `head` is changed first, and what is not on its list any more is deleted afterwards.
//! 2. Of its own epoch an owner deletes what was settled before it began to look, and that no
//!    listed or pinned checkpoint, no header, and no line names. What nobody named then nobody
//!    will: a key has one content, and headers go to new ones only. So the order is: the lowest
//!    open sequence, the headers, the line, then `head`, and pins last.
//! 3. An object of a higher epoch means that another has claimed the prefix: then nothing more is
//!    deleted.
//! 4. Of what another owner may still have to export, or come back for, nothing is deleted before
//!    a later epoch has committed and `stranded_retention` is over, by the server's dates.
//! 5. Who does not own the prefix deletes only what is below the mark of the latest checkpoint:
//!    what was settled when its line was drawn, and is in none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::part::epoch::Epochs;
use crate::part::file::PartFile;
use crate::part::header::Address;
use crate::phase::Phase;

use super::Checkpointer;
use super::frame::Object;
use super::head::{self, Change, Head, Listed};
use super::manifest::Manifest;
use super::pin::Pin;
use super::reader::{self, Named, Reader};
use super::request::Requests;
use super::sweep::{Name, Names, Sweep};

/// The object that an address which is used here is in; `None` where its epoch has no name.
fn object_of(epochs: &Epochs, address: &Address) -> Option<Name> {
    let epoch = epochs.name(address.epoch)?;
    Some((epoch, address.sequence))
}

/// What a look for garbage did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Checkpoints that were taken off the list.
    pub retired: u64,
    /// Objects that were looked at, manifests and pins included.
    pub objects: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that nobody names and that stay for now: too young, or another owner's to come back
    /// for.
    pub spared: u64,
    /// Multipart uploads that were aborted.
    pub aborted_uploads: u64,
    /// Parts whose images are moved out of objects that hold little else that is needed.
    pub moved_parts: u64,
}

/// Which checkpoints readers have pinned; pins that have expired are deleted.
async fn pinned(
    requests: &Requests,
    now: SystemTime,
    until: Instant,
    report: &mut GcReport,
) -> Result<Vec<Listed>> {
    let mut pins = Vec::new();
    let mut pages = requests.list("pins/", until);
    while let Some(objects) = pages.next().await? {
        for (key, info) in objects {
            report.objects += 1;
            let Some(body) = requests.whole(&key, until).await? else {
                continue;
            };
            let pin: Pin = Object::Pin.open(&key, &body)?;
            let age = info
                .last_modified
                .and_then(|at| now.duration_since(at).ok());
            if age.is_some_and(|age| age > Duration::from_millis(pin.ttl_ms)) {
                requests.delete(&key, until).await?;
                report.deleted += 1;
            } else {
                pins.push(pin.listed);
            }
        }
    }
    Ok(pins)
}

/// What the server's clock says: the date of an object that is written now.
pub(super) async fn server_now(
    requests: &Requests,
    nonce: u64,
    until: Instant,
) -> Result<SystemTime> {
    let key = format!("probe/clock-{nonce:016x}");
    requests
        .put(&key, &Bytes::from_static(b"clock"), until)
        .await?;
    let info = requests.ask(until, |remote| remote.head(&key)).await?;
    requests.delete(&key, until).await?;
    let date = info.and_then(|info| info.last_modified);
    // Without a date nothing is old.
    Ok(date.unwrap_or(SystemTime::UNIX_EPOCH))
}

/// What checkpoints and the store itself name.
#[derive(Default)]
struct Walked {
    named: Names,
    seen: BTreeSet<(u64, u32, u32)>,
    aliases: BTreeSet<u32>,
}

impl Walked {
    /// What an address that is used here names; nothing, where its epoch has no name.
    fn name(&mut self, epochs: &Epochs, address: &Address) {
        if let Some(object) = object_of(epochs, address) {
            self.named.insert(object);
            self.aliases.insert(address.epoch);
        }
    }

    async fn walk(
        &mut self,
        requests: &Requests,
        listed: &Listed,
        until: Instant,
        mut each: impl FnMut(u64, Named, &Address),
    ) -> Result<Manifest> {
        let manifest = reader::manifest(requests, listed, until).await?;
        let reader = Reader::new(requests.clone(), manifest.epochs.clone(), until);
        let (named, aliases) = (&mut self.named, &mut self.aliases);
        let mut name = |epoch: u64, what: Named, address: &Address| {
            named.insert((epoch, address.sequence));
            aliases.insert(address.epoch);
            each(epoch, what, address);
        };
        reader
            .walk(manifest.tree, &mut self.seen, &mut name)
            .await?;
        Ok(manifest)
    }
}

/// How much of each object is needed, and what for.
#[derive(Default)]
struct Used {
    bytes: BTreeMap<Name, u64>,
    /// File and number of the pages of the latest checkpoint.
    pages: BTreeMap<Name, Vec<(u64, u32)>>,
}

impl Used {
    /// Of the latest checkpoint all but images of parts: of those the headers tell.
    fn by_latest(&mut self, epoch: u64, what: Named, address: &Address) {
        let object = (epoch, address.sequence);
        match what {
            Named::Image { .. } => return,
            Named::Page { file, page } => {
                self.pages.entry(object).or_default().push((file, page));
            }
            Named::Node | Named::Root => {}
        }
        self.add(object, address);
    }

    fn add(&mut self, object: Name, address: &Address) {
        *self.bytes.entry(object).or_default() += u64::from(address.len);
    }

    /// The objects of which little is needed, and something.
    fn sparse(&self, sizes: &BTreeMap<Name, u64>, percent: u64) -> Names {
        let is_sparse = |object: &Name, size: u64| {
            let used = self.bytes.get(object).copied().unwrap_or(0);
            used > 0 && used * 100 < size * percent
        };
        let sparse = sizes
            .iter()
            .filter(|(object, size)| is_sparse(object, **size));
        sparse.map(|(object, _)| *object).collect()
    }
}

impl Checkpointer {
    /// Takes off the list what is not kept any longer, and deletes what nobody needs.
    pub(crate) async fn collect(self: &Arc<Self>, until: Instant) -> Result<GcReport> {
        let _turn = self.gc_turn.lock().await;
        let parts = &self.parts;
        let over = || Error::ShuttingDown {
            phase: Phase::Stopping,
        };
        if self.requests.stop.is_cancelled() {
            return Err(over());
        }
        if let Some(error) = parts.fenced() {
            return Err(error.clone());
        }
        if self.is_fencing() && self.epoch().is_none() {
            return Err(Error::Unclaimed);
        }
        let swept = tokio::select! {
            biased;
            () = self.requests.stop.cancelled() => Err(over()),
            swept = self.sweep(until) => swept,
            // What it waits for may be a disk that is full.
            error = parts.until_fenced() => Err(error),
        };
        if matches!(swept, Err(Error::HeadChanged)) {
            self.look.notify_one();
        }
        swept
    }

    async fn sweep(self: &Arc<Self>, until: Instant) -> Result<GcReport> {
        let parts = &self.parts;
        // First: of an epoch that begins from here on nothing is known to be settled.
        let only = (!self.is_fencing()).then(|| {
            let table = parts.epochs.table().into_iter();
            table.map(|(_, name)| name).collect()
        });
        let ours = parts.epochs.lowest_open();
        let (head, retired) = self.retire_now(until).await?;
        let now = server_now(&self.requests, self.requests.random.u64(), until).await?;
        let mut report = GcReport {
            retired,
            ..GcReport::default()
        };
        // In this order: see the head of this file.
        let live = parts.images_named().await?;
        let mut walked = Walked::default();
        for (_, _, address) in &live {
            if is(Mutant::GcForgetsHeaders) {
                walked.aliases.insert(address.epoch);
                continue;
            }
            walked.name(&parts.epochs, address);
        }
        if let Some(line) = parts.line.kept().filter(|_| !is(Mutant::GcForgetsLine)) {
            for address in line.known().into_values().flatten() {
                walked.name(&parts.epochs, &address);
            }
        }
        let last = head::read(&self.requests, until).await?;
        let head = last.map_or(head, |found| found.head);
        // After the last look at `head`, which some commit may have changed since the first.
        let pins = pinned(&self.requests, now, until, &mut report).await?;
        if self.is_fencing() && !self.holds(&head) && !is(Mutant::OwnerNotChecked) {
            return Err(Error::HeadChanged);
        }
        let mut keep: BTreeSet<(u64, u64)> = BTreeSet::new();
        let mut latest = None;
        let mut used = Used::default();
        // The latest first: what is in it is counted once, as its.
        for listed in head.checkpoints.iter().rev() {
            keep.insert((listed.number, listed.epoch));
            let is_latest = latest.is_none();
            if is(Mutant::GcForgetsOlder) && !is_latest {
                continue;
            }
            let manifest = walked
                .walk(&self.requests, listed, until, |epoch, what, address| {
                    if is_latest {
                        used.by_latest(epoch, what, address);
                    }
                })
                .await?;
            latest.get_or_insert(manifest);
        }
        for listed in pins.iter().filter(|_| !is(Mutant::GcForgetsPins)) {
            if keep.insert((listed.number, listed.epoch)) {
                match walked
                    .walk(&self.requests, listed, until, |_, _, _| ())
                    .await
                {
                    // Retired before it was pinned: its reader was told so.
                    Err(Error::ObjectMissing { .. }) => {}
                    walked => drop(walked?),
                }
            }
        }
        let mut sweep = Sweep {
            requests: &self.requests,
            until,
            ours,
            only,
            mark: latest.as_ref().and_then(|manifest| manifest.mark),
            stranded: self.stands.now().stranded,
            retention: self.config.stranded_retention,
            now,
            named: std::mem::take(&mut walked.named),
            report,
        };
        let committed = latest.as_ref().map(|manifest| manifest.epoch);
        if self.is_fencing() && committed != self.epoch() {
            // Nothing of another's goes before we have committed something.
            sweep.retention = Duration::MAX;
        }
        let sizes = sweep.packs().await?;
        sweep.uploads().await?;
        let upto = head.latest().map_or(0, |listed| listed.number);
        sweep.manifests(&keep, upto).await?;
        let mut report = sweep.report;

        for (_, _, address) in &live {
            if let Some(object) = object_of(&parts.epochs, address) {
                used.add(object, address);
            }
        }
        let sparse = used.sparse(&sizes, self.config.sparse_percent.into());
        report.moved_parts = self.empty(&sparse, &live, &used, until).await?;
        parts.end_records_of(&parts.epochs.forget_unused(&walked.aliases));
        Ok(report)
    }

    /// Takes what is not kept any longer off the list.
    async fn retire_now(self: &Arc<Self>, until: Instant) -> Result<(Head, u64)> {
        let mut turn = self.head.lock().await;
        self.settle_head(&mut turn, until).await?;
        loop {
            let Some(found) = head::read(&self.requests, until).await? else {
                return Ok((Head::default(), 0));
            };
            self.check_owner(&found.head).await?;
            let mut head = found.head.clone();
            let retired = self.retire(&mut head).len() as u64;
            turn.known = Some(found.clone());
            if retired == 0 {
                return Ok((head, 0));
            }
            head.write_id = self.new_write_id();
            let change = Change::new(head, Some(&found), self.is_fencing());
            if let Some(found) = turn.send(change, &self.requests, until).await? {
                turn.known = Some(found.clone());
                return Ok((found.head, retired));
            }
        }
    }

    /// Has what is needed of sparse objects written anew, by the way that everything goes.
    async fn empty(
        self: &Arc<Self>,
        sparse: &Names,
        live: &[(Arc<PartFile>, u32, Address)],
        used: &Used,
        until: Instant,
    ) -> Result<u64> {
        let parts = &self.parts;
        let pages = sparse.iter().filter_map(|object| used.pages.get(object));
        for (file, page) in pages.flatten() {
            parts.page_changed(*file, *page);
        }
        let mut moved = 0;
        let mut bytes = 0;
        for (file, index, address) in live {
            let object = object_of(&parts.epochs, address);
            if object.is_none_or(|object| !sparse.contains(&object)) {
                continue;
            }
            if bytes >= self.config.sparse_bytes || Instant::now() >= until {
                break;
            }
            match parts.write_anew(file, *index, *address).await {
                Ok(true) => {
                    moved += 1;
                    bytes += u64::from(address.len);
                }
                Ok(false) | Err(Error::Deleted { .. }) => {}
                // Room is not to be had: another time.
                Err(error) => {
                    tracing::debug!(%error, "a sparse object stays");
                    break;
                }
            }
        }
        Ok(moved)
    }

    /// Looks for garbage now and then, until the store stops.
    pub(crate) async fn keep_clean(self: Arc<Self>) {
        let Some(every) = self.config.gc_every else {
            return;
        };
        loop {
            tokio::select! {
                biased;
                () = self.requests.stop.cancelled() => return,
                () = tokio::time::sleep(every) => (),
            }
            let until = Instant::now() + self.config.checkpoint_within;
            let collected = tokio::select! {
                biased;
                () = self.requests.stop.cancelled() => return,
                collected = self.collect(until) => collected,
            };
            match collected {
                Ok(report) => tracing::debug!(?report, "looked for garbage"),
                Err(error) => tracing::debug!(%error, "no look for garbage"),
            }
        }
    }
}

/// Deletes what nobody needs of a prefix that somebody else owns, or nobody: what is below the
/// mark of the latest checkpoint, and in none that is listed or pinned.
pub(crate) async fn collect_offline(requests: &Requests, until: Instant) -> Result<GcReport> {
    // Names first, and `head` before any of them: what is listed later was never below the mark.
    let Some(found) = head::read(requests, until).await? else {
        return Ok(GcReport::default());
    };
    if found.head.epoch == 0 {
        return Err(Error::FencingUnsupported(
            "the prefix is not fenced: which objects are settled only its owner knows".to_owned(),
        ));
    }
    let now = server_now(requests, requests.random.u64(), until).await?;
    let mut report = GcReport::default();
    let pins = pinned(requests, now, until, &mut report).await?;
    let mut walked = Walked::default();
    let mut keep = BTreeSet::new();
    let mut latest: Option<Manifest> = None;
    for listed in found.head.checkpoints.iter().rev().chain(&pins) {
        if keep.insert((listed.number, listed.epoch)) {
            match walked.walk(requests, listed, until, |_, _, _| ()).await {
                Ok(manifest) => {
                    latest.get_or_insert(manifest);
                }
                Err(Error::ObjectMissing { .. }) if !found.head.lists(listed) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let Some(latest) = latest else {
        return Ok(report);
    };
    let mut sweep = Sweep {
        requests,
        until,
        ours: None,
        only: None,
        mark: latest.mark,
        stranded: latest.stranded.clone(),
        // Only its owner knows whether somebody comes back for it.
        retention: Duration::MAX,
        now,
        named: walked.named,
        report,
    };
    sweep.packs().await?;
    sweep.uploads().await?;
    Ok(sweep.report)
}
