//! Epochs: under which names this open puts its objects.
//!
//! Owns: the table from an epoch's number, which addresses have, to its name, which keys have; and
//! the sequence. Does not own: claiming (a random name stands in until `head` exists).
//!
//! 1. Every open has a name of its own before it issues a key, and the record of it is durable
//!    before the first PUT: a key that an earlier life issued, and whose PUT may still land, is
//!    never issued again.
//! 2. A sequence is used once.
//! 3. The record of an epoch goes at the first open that finds no entry which names it: there are
//!    as many as entries name, and one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::journal::{Append, Journal, Location, Payload};
use crate::random::Random;
use crate::sync::Mutex;

use super::header::{Address, crc32c};
use super::record::{EpochRecord, encode, kind};

/// All epochs that entries of this store name, and the one it writes under.
#[derive(Debug)]
pub(crate) struct Epochs {
    names: Mutex<BTreeMap<u32, Named>>,
    /// Ours: number in the high half, next sequence in the low one; 0 before there is one.
    next: AtomicU64,
    /// The record of ours.
    record: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Named {
    name: u64,
    record: Location,
}

impl Epochs {
    /// Of what the journal has, by location.
    pub(crate) fn new(found: impl IntoIterator<Item = (Location, EpochRecord)>) -> Self {
        let names = found.into_iter().map(|(record, epoch)| {
            let EpochRecord { number, name } = epoch;
            (number, Named { name, record })
        });
        Self {
            names: Mutex::new(names.collect()),
            next: AtomicU64::new(0),
            record: AtomicU64::new(0),
        }
    }

    /// Makes sure that there is an epoch to write under, durably.
    pub(crate) async fn ready(&self, journal: &Journal, random: &Random) -> Result<()> {
        // Used up, all but what is issued before somebody looks again.
        if self.next.load(Ordering::Acquire) & 0xffff_ffff >= 0xffff_0000 {
            self.next.store(0, Ordering::Release);
        }
        if self.next.load(Ordering::Acquire) == 0 {
            let mut names = self.names.lock();
            let last = names.last_key_value().map_or(0, |(number, _)| *number);
            let number = last.checked_add(1).ok_or_else(|| Error::InvalidInput {
                what: "epoch",
                value: last.to_string(),
                limit: "a store can be opened 4,294,967,295 times".to_owned(),
            })?;
            let record = EpochRecord {
                number,
                name: random.u64(),
            };
            let append = Append::begin(kind::EPOCH, encode(&record), Payload::None);
            let location = journal.append(append.vital())?;
            let name = record.name;
            names.insert(
                number,
                Named {
                    name,
                    record: location,
                },
            );
            self.record.store(location, Ordering::Release);
            self.next.store(u64::from(number) << 32, Ordering::Release);
        }
        let location = self.record.load(Ordering::Acquire);
        Ok(journal.wait_durable(location).await?)
    }

    /// A new key: the epoch's number and a sequence.
    pub(crate) fn issue(&self) -> (u32, u32) {
        let next = self.next.fetch_add(1, Ordering::AcqRel);
        ((next >> 32) as u32, next as u32)
    }

    /// The key of an image's object.
    pub(crate) fn key(&self, address: &Address) -> Arc<str> {
        let name = self
            .names
            .lock()
            .get(&address.epoch)
            .map_or(0, |named| named.name);
        let object = format!("{name:016x}-{:08x}", address.sequence);
        // Spread by hash: S3 scales by prefix.
        let hash = crc32c(object.as_bytes()) >> 16;
        Arc::from(format!("packs/{hash:04x}/{object}"))
    }

    /// The table, for snapshots of headers.
    pub(crate) fn table(&self) -> Vec<(u32, u64)> {
        let names = self.names.lock();
        names
            .iter()
            .map(|(number, named)| (*number, named.name))
            .collect()
    }

    /// Forgets the epochs that no entry names, but the last, whose number is not given again: the
    /// records that go with them.
    pub(crate) fn forget_unused(&self, used: &BTreeSet<u32>) -> Vec<Location> {
        let mut names = self.names.lock();
        let Some(last) = names.last_key_value().map(|(number, _)| *number) else {
            return Vec::new();
        };
        let unused = |number: &u32| *number != last && !used.contains(number);
        let gone = names.extract_if(.., |number, _| unused(number));
        gone.map(|(_, named)| named.record).collect()
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_from_epoch_and_sequence_alone() {
        let name = 0xabcd;
        let epochs = Epochs::new([(1, EpochRecord { number: 7, name })]);
        let address = Address {
            epoch: 7,
            sequence: 9,
            offset: 0,
            len: 1,
            crc: 1,
        };
        let key = epochs.key(&address);
        let parts: Vec<&str> = key.split('/').collect();
        assert_eq!(parts[0], "packs");
        assert_eq!(parts[1].len(), 4);
        assert_eq!(parts[2], "000000000000abcd-00000009");
    }
}
