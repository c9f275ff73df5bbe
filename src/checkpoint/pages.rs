//! What of a checkpoint is new: pages of headers as they were at the line, and the tree of files
//! with them in it.
//!
//! Owns: what is kept of the last checkpoint for the next, and which pages are built anew. Does not
//! own: which parts changed ([`crate::part::line`]), or how it gets to S3 (`writer.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::part::Parts;
use crate::part::file::PartFile;
use crate::part::header::{Address, PAGE};
use crate::part::id::PartKey;
use crate::part::line::{FileRow, OpenLine, Row};
use crate::part::record::DroppedRecord;

use super::Checkpointer;
use super::frame::Leaf;
use super::head::Listed;
use super::manifest::{FEW, FileEntry, Page, Pages, Root};
use super::reader::{self, Reader};
use super::tree::Tree;
use super::writer::Writer;

/// The files of the last checkpoint, as far as they were looked at.
#[derive(Debug)]
pub(super) struct Kept {
    pub base: Option<Listed>,
    tree: Tree,
    /// Pages of files that have many, by token.
    roots: BTreeMap<u64, BTreeMap<u32, Address>>,
}

impl Kept {
    pub(super) fn files(&self) -> u64 {
        self.tree.files()
    }

    /// Has what is new of the tree written; where its top will be.
    pub(super) fn store(&mut self, writer: &mut Writer) -> Result<Option<Address>> {
        self.tree
            .store(|stored| writer.push(&Leaf::Node.seal(stored)))
    }
}

/// A file whose pages were built.
pub(super) struct Built {
    file: Arc<PartFile>,
    len: u64,
    pages: Vec<(u32, Page)>,
}

impl Checkpointer {
    /// The files of the checkpoint that this directory stands on.
    pub(super) async fn base(&self, kept: Option<Kept>, until: Instant) -> Result<Kept> {
        let base = self.stands.now().base.map(|base| base.listed);
        if let Some(kept) = kept.filter(|kept| kept.base == base) {
            return Ok(kept);
        }
        let tree = match &base {
            None => Tree::of(None, 0),
            Some(listed) => {
                let manifest = reader::manifest(&self.requests, listed, until).await?;
                self.parts.epochs.learn(&manifest.epochs);
                Tree::of(manifest.tree, manifest.files)
            }
        };
        Ok(Kept {
            base,
            tree,
            roots: BTreeMap::new(),
        })
    }

    fn reader(&self, until: Instant) -> Reader {
        Reader::new(self.requests.clone(), self.parts.epochs.table(), until)
    }

    /// Loads what is needed of the tree to look at a file's entry.
    async fn load(&self, tree: &mut Tree, id: u64, until: Instant) -> Result<()> {
        while let Some(address) = tree.missing(id) {
            let stored = self.reader(until).node(address).await?;
            tree.loaded(id, address, stored);
        }
        Ok(())
    }

    /// Puts a file into the tree, with its new pages.
    pub(super) async fn put(
        &self,
        kept: &mut Kept,
        built: Built,
        writer: &mut Writer,
        until: Instant,
    ) -> Result<()> {
        let Built { file, len, pages } = built;
        self.load(&mut kept.tree, file.id.0, until).await?;
        let old = kept
            .tree
            .get(file.id.0)
            .filter(|old| old.token == file.token);
        let mut all = match (kept.roots.remove(&file.token), old) {
            (Some(root), Some(_)) => root,
            (_, Some(old)) => {
                let pages = self.reader(until).pages(&old.pages).await?;
                pages.into_iter().collect()
            }
            (_, None) => BTreeMap::new(),
        };
        let behind = file.parts_of(len).div_ceil(u64::from(PAGE));
        all.retain(|page, _| u64::from(*page) < behind);
        for (number, page) in pages {
            if page.0.is_empty() {
                all.remove(&number);
            } else {
                all.insert(number, writer.push(&Leaf::Page.seal(&page))?);
            }
        }
        let list: Vec<(u32, Address)> = all.iter().map(|(page, at)| (*page, *at)).collect();
        let pages = if list.len() <= FEW {
            Pages::Few(list)
        } else {
            let root = Pages::Root(writer.push(&Leaf::Root.seal(&Root(list)))?);
            kept.roots.insert(file.token, all);
            root
        };
        kept.tree.put(FileEntry {
            id: file.id.0,
            token: file.token,
            part_bytes: file.part_bytes,
            len,
            pages,
        })
    }

    /// Takes a file that was dropped out of the tree.
    pub(super) async fn take_out(
        &self,
        kept: &mut Kept,
        gone: &DroppedRecord,
        until: Instant,
    ) -> Result<()> {
        self.load(&mut kept.tree, gone.id, until).await?;
        let there = kept.tree.get(gone.id);
        if there.is_some_and(|file| file.token == gone.token) {
            kept.tree.remove(gone.id)?;
            kept.roots.remove(&gone.token);
        }
        Ok(())
    }
}

/// The pages that have something on the list, as they were at the line. Blocks.
pub(super) fn build(parts: &Parts, line: &OpenLine) -> Result<Vec<Built>> {
    let rows = line.known();
    let mut all = Vec::new();
    for FileRow { file, len } in line.files() {
        if !file.is_at(line.number) {
            continue;
        }
        let behind = file.parts_of(len);
        let mut pages: BTreeMap<u32, Page> = BTreeMap::new();
        for (key, _) in rows.range(PartKey::all_of(file.no)) {
            if u64::from(key.index() / PAGE) < behind.div_ceil(u64::from(PAGE)) {
                pages.entry(key.index() / PAGE).or_default();
            }
        }
        for (number, page) in &mut pages {
            for at in 0..PAGE {
                let index = number * PAGE + at;
                if u64::from(index) >= behind {
                    break;
                }
                let address = parts.at_line(line, &file, index)?;
                if let Some(address) = address {
                    page.0.push((u16::try_from(at).unwrap_or(0), address));
                }
            }
        }
        all.push(Built {
            file,
            len,
            pages: pages.into_iter().collect(),
        });
    }
    Ok(all)
}

impl Parts {
    /// The image of a part at the line: what the list says, or what the table does where the list
    /// says nothing.
    fn at_line(
        &self,
        line: &OpenLine,
        file: &Arc<PartFile>,
        index: u32,
    ) -> Result<Option<Address>> {
        // Whoever puts it on the list from here on has this latch to himself first.
        let _latch = self.latches().copy(file.key(index));
        match line.row(file.key(index)) {
            Some(Row::Is(address)) => Ok(address),
            Some(_) => Err(Error::NotInS3 { images: 1 }),
            None => Ok(file.header.peek(index).and_then(|entry| entry.address())),
        }
    }
}
