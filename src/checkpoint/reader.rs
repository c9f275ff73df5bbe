//! Reading a checkpoint: its manifest, its files, their pages, and images.
//!
//! Owns: what is fetched to get there, and that it is what was written: every byte has a checksum
//! above it. Does not own: where it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::part::epoch::pack_key;
use crate::part::header::{Address, crc32c};

use super::frame::{Leaf, Object};
use super::head::Listed;
use super::manifest::{self, FileEntry, Manifest, Page, Pages, Root};
use super::request::Requests;
use super::tree::Stored;

/// What an address in a checkpoint is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Node,
    Root,
    Page { file: u64, page: u32 },
    Image { file: u64, index: u32 },
}

/// Reads objects that addresses with these epochs name.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    requests: Requests,
    epochs: BTreeMap<u32, u64>,
    /// Each read has until then.
    until: Instant,
}

impl Reader {
    /// Of addresses whose epochs have these names.
    pub(crate) fn new(
        requests: Requests,
        epochs: impl IntoIterator<Item = (u32, u64)>,
        until: Instant,
    ) -> Self {
        Self {
            requests,
            epochs: epochs.into_iter().collect(),
            until,
        }
    }

    fn key(&self, address: Address) -> Result<Arc<str>> {
        let name = self.epochs.get(&address.epoch);
        let name = name.ok_or_else(|| Error::ObjectDamaged {
            key: format!("epoch {}", address.epoch),
            message: "the manifest does not name it".to_owned(),
        })?;
        Ok(pack_key(*name, address.sequence))
    }

    /// Bytes of the object that an address is in, and its key.
    pub(super) async fn range(
        &self,
        of: Address,
        from: u64,
        len: u64,
    ) -> Result<(Arc<str>, Bytes)> {
        let key = self.key(of)?;
        if len == 0 {
            return Ok((key, Bytes::new()));
        }
        match self.requests.get(&key, (from, len), self.until).await? {
            Some(got) => Ok((key, got.body)),
            None => Err(Error::ObjectMissing {
                key: key.to_string(),
            }),
        }
    }

    /// An image; its checksum is right.
    pub(crate) async fn image(&self, address: Address) -> Result<Bytes> {
        let (from, len) = (u64::from(address.offset), u64::from(address.len));
        let (key, bytes) = self.range(address, from, len).await?;
        let found = crc32c(&bytes);
        if len > 0 && (found != address.crc || bytes.len() as u64 != len) {
            return Err(Error::ObjectDamaged {
                key: key.to_string(),
                message: format!(
                    "bytes {from}+{len} have checksum {found:08x}, expected {:08x}",
                    address.crc
                ),
            });
        }
        Ok(bytes)
    }

    pub(crate) async fn node(&self, address: Address) -> Result<Stored> {
        let bytes = self.image(address).await?;
        Leaf::Node.open(&self.key(address)?, &bytes)
    }

    pub(crate) async fn page(&self, address: Address) -> Result<Page> {
        let bytes = self.image(address).await?;
        Leaf::Page.open(&self.key(address)?, &bytes)
    }

    /// The pages of a file.
    pub(crate) async fn pages(&self, pages: &Pages) -> Result<Vec<(u32, Address)>> {
        match pages {
            Pages::Few(pages) => Ok(pages.clone()),
            Pages::Root(address) => {
                let bytes = self.image(*address).await?;
                let root: Root = Leaf::Root.open(&self.key(*address)?, &bytes)?;
                Ok(root.0)
            }
        }
    }

    /// The parts of a file that have an image, and where that is.
    pub(crate) async fn parts(&self, pages: &Pages) -> Result<Vec<(u32, Address)>> {
        let mut parts = Vec::new();
        for (number, page) in self.pages(pages).await? {
            parts.extend(self.page(page).await?.parts(number));
        }
        Ok(parts)
    }

    /// All files of a checkpoint.
    pub(crate) async fn files(&self, top: Option<Address>) -> Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        let mut open: Vec<Address> = top.into_iter().collect();
        while let Some(address) = open.pop() {
            match self.node(address).await? {
                Stored::Leaf(entries) => files.extend(entries),
                Stored::Inner(ways) => open.extend(ways.iter().map(|(_, address, _)| *address)),
            }
        }
        files.sort_unstable_by_key(|file| file.id);
        Ok(files)
    }

    /// Everything that a checkpoint names is told to `name`; what was `seen` before is not looked
    /// into again.
    pub(crate) async fn walk(
        &self,
        top: Option<Address>,
        seen: &mut BTreeSet<(u64, u32, u32)>,
        name: &mut impl FnMut(u64, Named, &Address),
    ) -> Result<()> {
        let named = |address: &Address| self.epochs.get(&address.epoch).copied().unwrap_or(0);
        let mut visit = |address: &Address, what, name: &mut dyn FnMut(u64, Named, &Address)| {
            name(named(address), what, address);
            seen.insert((named(address), address.sequence, address.offset))
        };
        let mut nodes: Vec<Address> = top.into_iter().collect();
        while let Some(node) = nodes.pop() {
            if !visit(&node, Named::Node, name) {
                continue;
            }
            let files = match self.node(node).await? {
                Stored::Inner(ways) => {
                    nodes.extend(ways.iter().map(|(_, address, _)| *address));
                    continue;
                }
                Stored::Leaf(files) => files,
            };
            for file in files {
                if let Pages::Root(root) = &file.pages
                    && !visit(root, Named::Root, name)
                {
                    continue;
                }
                let id = file.id;
                for (number, page) in self.pages(&file.pages).await? {
                    let what = Named::Page {
                        file: id,
                        page: number,
                    };
                    if !visit(&page, what, name) {
                        continue;
                    }
                    for (index, image) in self.page(page).await?.parts(number) {
                        name(named(&image), Named::Image { file: id, index }, &image);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The manifest of a checkpoint that is listed.
pub(crate) async fn manifest(
    requests: &Requests,
    listed: &Listed,
    until: Instant,
) -> Result<Manifest> {
    let key = manifest::key(listed.number, listed.epoch);
    let Some(body) = requests.whole(&key, until).await? else {
        return Err(Error::ObjectMissing { key });
    };
    let manifest: Manifest = Object::Manifest.open(&key, &body)?;
    if manifest.number != listed.number || manifest.write_id != listed.write_id {
        return Err(Error::ObjectDamaged {
            key,
            message: "it is not the one that is listed".to_owned(),
        });
    }
    Ok(manifest)
}
