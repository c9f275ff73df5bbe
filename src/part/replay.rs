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
                    let had = entry.address().is_some();
                    entry.set_address(None);
                    entry.word.set(|word| {
                        let differs = word.differs() || had;
                        word.with_status(Status::Zero).with_differs(differs)
                    });
                }
            }
            Change::CutDone => self.cut = None,
        }
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::fs::{Fs, OpenMode};
    use crate::part::file::Made;
    use crate::part::header::Address;
    use crate::part::id::FileId;
    use crate::testing::fs::SimFs;

    fn file() -> PartFile {
        let path = PathBuf::from("/f");
        let disk = SimFs::new()
            .open(&path, OpenMode::CreateNew)
            .expect("a file");
        PartFile::new(Made {
            no: 1,
            token: 1,
            id: FileId(1),
            incarnation: 1,
            part_bytes: 4096,
            path,
            disk,
        })
    }

    fn change() -> impl Strategy<Value = Change> {
        let index = 0_u32..6;
        prop_oneof![
            (index.clone(), any::<bool>())
                .prop_map(|(index, trusted)| Change::Intent { index, trusted }),
            index.clone().prop_map(|index| Change::Trusted { index }),
            (index.clone(), 1_u32..9, any::<bool>()).prop_map(|(index, sequence, ends)| {
                let address = Address {
                    epoch: 1,
                    sequence,
                    offset: 0,
                    len: 1,
                    crc: 1,
                };
                Change::Entry {
                    index,
                    address,
                    ends,
                }
            }),
            index.prop_map(|index| Change::IntentEnded { index }),
            (0_u64..6 * 4096).prop_map(|len| Change::Cut { len }),
            Just(Change::CutDone),
        ]
    }

    fn replay(changes: &[Change], times: usize) -> (Replayed, Vec<Option<Address>>) {
        let file = file();
        let mut replayed = Replayed::default();
        for _ in 0..times {
            for change in changes {
                replayed.apply(&file, *change);
            }
        }
        let addresses = (0..6).map(|index| file.header.entry(index).address());
        (replayed, addresses.collect())
    }

    proptest! {
        /// A11: what a crash has replayed already is replayed again.
        #[test]
        fn replaying_twice_is_replaying_once(
            changes in proptest::collection::vec(change(), 0..40)
        ) {
            let (once, entries) = replay(&changes, 1);
            let (twice, again) = replay(&changes, 2);
            // Entries of parts that a cut took come and go again; intents and length end the same.
            prop_assert_eq!(entries, again);
            prop_assert_eq!(once.intents, twice.intents);
            prop_assert_eq!(once.len, twice.len);
        }
    }
}
