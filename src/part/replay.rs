//! Replay: from a file's snapshot and records to what it is after a crash.
//!
//! Owns: what each change does to a header, in order. Does not own: the local bytes (`open.rs`).
//! Replaying twice is replaying once: records say what is, not what changes.

use std::collections::BTreeMap;

use super::file::PartFile;
use super::record::Change;
use super::state::Status;

/// What replay knows besides the header's entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    pub len: u64,
    /// Parts with an open intent, and whether their local bytes are trusted.
    pub intents: BTreeMap<u32, bool>,
    /// A cut that may not have been carried through: the least length of those.
    pub cut: Option<u64>,
}

impl Replayed {
    pub(crate) fn apply(&mut self, file: &PartFile, change: Change) {
        match change {
            Change::Intent { index, trusted } => {
                self.intents.insert(index, trusted);
            }
            Change::Trusted { index } => {
                if let Some(trusted) = self.intents.get_mut(&index) {
                    *trusted = true;
                }
            }
            Change::Entry {
                index,
                address,
                ends,
            } => {
                let entry = file.header.entry(index);
                entry.set_address(Some(address));
                entry
                    .word
                    .set(|word| word.with_status(Status::NotLoaded).with_differs(true));
                if ends {
                    self.intents.remove(&index);
                }
            }
            Change::IntentEnded { index } => {
                self.intents.remove(&index);
            }
            Change::Cut { len } => {
                self.len = len;
                self.cut = Some(self.cut.map_or(len, |before| before.min(len)));
                let first = u32::try_from(file.parts_of(len)).unwrap_or(u32::MAX);
                self.intents.split_off(&first);
                for (_, entry) in file.header.used_from(first) {
                    entry.set_address(None);
                    entry.word.set(|word| word.with_status(Status::Zero));
                }
            }
            Change::CutDone => self.cut = None,
        }
    }
}
