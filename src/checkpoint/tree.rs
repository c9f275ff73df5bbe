//! The tree of files of a checkpoint.
//!
//! Owns: where a file's entry is, and which nodes are new when some of them change: those on the
//! way to it, and no others. Does not own: where nodes are kept (`reader.rs`, `writer.rs`).
//!
//! A trie of 64 ways over a hash of the file's id. A node is a leaf while it has at most
//! [`LEAF`] files; so a change of one file among a million rewrites some four small nodes. What is
//! not needed is not loaded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::part::header::Address;

use super::manifest::FileEntry;

/// Files of a leaf.
const LEAF: usize = 64;
const BITS: u32 = 6;
/// Below this depth a leaf has whatever it has: no two ids have the same hash.
const DEPTH: u32 = 10;

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stored {
    Leaf(Vec<FileEntry>),
    /// Way, where that node is, and how many files are below it.
    Inner(Vec<(u8, Address, u64)>),
}

#[derive(Debug)]
enum Node {
    /// Not loaded.
    There(Address, u64),
    Leaf {
        entries: BTreeMap<u64, FileEntry>,
        at: Option<Address>,
    },
    Inner {
        ways: BTreeMap<u8, Node>,
        at: Option<Address>,
    },
}

/// The files of a checkpoint that is being made.
#[derive(Debug)]
pub(crate) struct Tree(Node);

/// A hash without collisions: splitmix64's mixing, which can be undone.
const fn mix(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

const fn way(id: u64, depth: u32) -> u8 {
    (mix(id) >> (depth * BITS) & 63) as u8
}

impl Node {
    fn empty() -> Self {
        Self::Leaf {
            entries: BTreeMap::new(),
            at: None,
        }
    }

    fn files(&self) -> u64 {
        match self {
            Self::There(_, files) => *files,
            Self::Leaf { entries, .. } => entries.len() as u64,
            Self::Inner { ways, .. } => ways.values().map(Self::files).sum(),
        }
    }

    fn of(stored: Stored, at: Address) -> Self {
        match stored {
            Stored::Leaf(entries) => Self::Leaf {
                entries: entries.into_iter().map(|entry| (entry.id, entry)).collect(),
                at: Some(at),
            },
            Stored::Inner(ways) => Self::Inner {
                ways: ways
                    .into_iter()
                    .map(|(way, address, files)| (way, Self::There(address, files)))
                    .collect(),
                at: Some(at),
            },
        }
    }

    /// The first node on the way to a file that is not loaded.
    fn missing(&mut self, id: u64) -> Option<(&mut Self, Address)> {
        let mut node = self;
        let mut depth = 0;
        loop {
            match node {
                Self::There(address, _) => {
                    let address = *address;
                    return Some((node, address));
                }
                Self::Leaf { .. } => return None,
                Self::Inner { ways, .. } => node = ways.get_mut(&way(id, depth))?,
            }
            depth += 1;
        }
    }

    fn put(&mut self, entry: FileEntry, depth: u32) {
        match self {
            Self::There(..) => {}
            Self::Leaf { entries, at } => {
                *at = None;
                entries.insert(entry.id, entry);
                if entries.len() > LEAF && depth < DEPTH {
                    let mut inner = Self::Inner {
                        ways: BTreeMap::new(),
                        at: None,
                    };
                    for entry in std::mem::take(entries).into_values() {
                        inner.put(entry, depth);
                    }
                    *self = inner;
                }
            }
            Self::Inner { ways, at } => {
                *at = None;
                let next = ways.entry(way(entry.id, depth)).or_insert_with(Self::empty);
                next.put(entry, depth + 1);
            }
        }
    }

    fn remove(&mut self, id: u64, depth: u32) {
        match self {
            Self::There(..) => {}
            Self::Leaf { entries, at } => {
                if entries.remove(&id).is_some() {
                    *at = None;
                }
            }
            Self::Inner { ways, at } => {
                let next = way(id, depth);
                if let Some(node) = ways.get_mut(&next) {
                    *at = None;
                    node.remove(id, depth + 1);
                    if node.files() == 0 {
                        ways.remove(&next);
                    }
                }
            }
        }
    }

    fn get(&self, id: u64) -> Option<&FileEntry> {
        let mut node = self;
        let mut depth = 0;
        loop {
            match node {
                Self::There(..) => return None,
                Self::Leaf { entries, .. } => return entries.get(&id),
                Self::Inner { ways, .. } => node = ways.get(&way(id, depth))?,
            }
            depth += 1;
        }
    }

    /// Stores what is new, from below; where it is then, and how many files it has.
    fn store(
        &mut self,
        store: &mut impl FnMut(&Stored) -> Result<Address>,
    ) -> Result<(Address, u64)> {
        let files = self.files();
        let (stored, at) = match self {
            Self::There(address, files) => return Ok((*address, *files)),
            Self::Leaf { at: Some(at), .. } | Self::Inner { at: Some(at), .. } => {
                return Ok((*at, files));
            }
            Self::Leaf { entries, at } => (Stored::Leaf(entries.values().cloned().collect()), at),
            Self::Inner { ways, at } => {
                let mut stored = Vec::with_capacity(ways.len());
                for (way, node) in ways {
                    let (address, files) = node.store(store)?;
                    stored.push((*way, address, files));
                }
                (Stored::Inner(stored), at)
            }
        };
        let address = store(&stored)?;
        *at = Some(address);
        Ok((address, files))
    }
}

impl Tree {
    /// The tree of a checkpoint; `None`: of none yet.
    pub(crate) fn of(top: Option<Address>, files: u64) -> Self {
        Self(top.map_or_else(Node::empty, |top| Node::There(top, files)))
    }

    pub(crate) fn files(&self) -> u64 {
        self.0.files()
    }

    /// What has to be loaded before a file's entry can be looked at or changed: called until it
    /// says nothing more.
    pub(crate) fn missing(&mut self, id: u64) -> Option<Address> {
        self.0.missing(id).map(|(_, address)| address)
    }

    /// Puts a node that was loaded where it is missing.
    pub(crate) fn loaded(&mut self, id: u64, address: Address, stored: Stored) {
        if let Some((node, missing)) = self.0.missing(id)
            && missing == address
        {
            *node = Node::of(stored, address);
        }
    }

    /// A file, once nothing is missing.
    pub(crate) fn get(&self, id: u64) -> Option<&FileEntry> {
        self.0.get(id)
    }

    pub(crate) fn put(&mut self, entry: FileEntry) -> Result<()> {
        self.complete(entry.id)?;
        self.0.put(entry, 0);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: u64) -> Result<()> {
        self.complete(id)?;
        self.0.remove(id, 0);
        Ok(())
    }

    fn complete(&mut self, id: u64) -> Result<()> {
        match self.0.missing(id) {
            None => Ok(()),
            Some((_, address)) => Err(Error::ObjectDamaged {
                key: format!("sequence {}", address.sequence),
                message: "a node of the tree of files is not loaded".to_owned(),
            }),
        }
    }

    /// Stores what is new; where the top is then. `None` where there are no files.
    pub(crate) fn store(
        &mut self,
        mut store: impl FnMut(&Stored) -> Result<Address>,
    ) -> Result<Option<Address>> {
        if self.files() == 0 {
            self.0 = Node::empty();
            return Ok(None);
        }
        Ok(Some(self.0.store(&mut store)?.0))
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::manifest::Pages;
    use super::*;

    #[derive(Default)]
    struct Objects(Vec<Stored>);

    impl Objects {
        fn put(&mut self, stored: &Stored) -> Address {
            self.0.push(stored.clone());
            Address {
                epoch: 1,
                sequence: u32::try_from(self.0.len()).unwrap(),
                offset: 0,
                len: 1,
                crc: 0,
            }
        }

        fn get(&self, address: Address) -> Stored {
            self.0[address.sequence as usize - 1].clone()
        }

        fn load(&self, tree: &mut Tree, id: u64) {
            while let Some(address) = tree.missing(id) {
                tree.loaded(id, address, self.get(address));
            }
        }
    }

    fn entry(id: u64, len: u64) -> FileEntry {
        FileEntry {
            id,
            token: id,
            part_bytes: 4096,
            len,
            pages: Pages::Few(Vec::new()),
        }
    }

    fn all(objects: &Objects, top: Option<Address>) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        let mut open: Vec<Address> = top.into_iter().collect();
        while let Some(address) = open.pop() {
            match objects.get(address) {
                Stored::Leaf(entries) => found.extend(entries.iter().map(|e| (e.id, e.len))),
                Stored::Inner(ways) => open.extend(ways.iter().map(|(_, address, _)| *address)),
            }
        }
        found
    }

    proptest! {
        #[test]
        fn it_is_a_map_whatever_is_loaded(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0_u64..300, proptest::option::of(0_u64..9)), 0..120),
                1..6,
            )
        ) {
            let mut objects = Objects::default();
            let mut model = BTreeMap::new();
            let (mut top, mut files) = (None, 0);
            for round in rounds {
                let mut tree = Tree::of(top, files);
                for (id, len) in round {
                    objects.load(&mut tree, id);
                    prop_assert_eq!(tree.get(id).map(|e| e.len), model.get(&id).copied());
                    match len {
                        Some(len) => {
                            tree.put(entry(id, len))?;
                            model.insert(id, len);
                        }
                        None => {
                            tree.remove(id)?;
                            model.remove(&id);
                        }
                    }
                }
                files = tree.files();
                prop_assert_eq!(files, model.len() as u64);
                top = tree.store(|stored| Ok(objects.put(stored)))?;
                prop_assert_eq!(&all(&objects, top), &model);
            }
        }
    }

    #[test]
    fn one_file_among_many_rewrites_few_nodes_and_what_is_not_loaded_is_refused() {
        let mut objects = Objects::default();
        let mut tree = Tree::of(None, 0);
        for id in 0..100_000 {
            tree.put(entry(id, id)).unwrap();
        }
        let top = tree.store(|stored| Ok(objects.put(stored))).unwrap();
        let before = objects.0.len();
        let mut tree = Tree::of(top, 100_000);
        assert!(tree.put(entry(5, 0)).is_err(), "not loaded");
        objects.load(&mut tree, 5);
        tree.put(entry(5, 0)).unwrap();
        tree.store(|stored| Ok(objects.put(stored))).unwrap();
        assert!(
            objects.0.len() - before <= 4,
            "{}",
            objects.0.len() - before
        );
    }
}
