//! Epochs: under which names this open puts its objects.
//!
//! Owns: the table from an epoch's number, which addresses have, to its name, which keys have; the
//! sequence, and which sequences are open. Does not own: claiming an epoch (`checkpoint/claim.rs`).
//!
//! 1. Every open has an epoch of its own before it issues a key, and the record of it is durable
//!    before the first PUT: a key that an earlier life issued, and whose PUT may still land, is
//!    never issued again.
//! 2. A sequence is used once; it is *open* until what has it is a part's image, is named by a
//!    checkpoint, or is nobody's for good.
//! 3. Where epochs are fenced the name is what was claimed, and there is none before that; where
//!    they are not it is random.
//! 4. The record of an epoch goes when nothing names it: there are as many as are named, and one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::journal::{Append, Journal, Location, Payload};
use crate::random::Random;
use crate::sync::Mutex;

use super::header::{Address, crc32c};
use super::record::{EpochRecord, encode, kind};

/// All epochs that this store names, and the one it writes under.
#[derive(Debug)]
pub(crate) struct Epochs {
    names: Mutex<BTreeMap<u32, Named>>,
    /// Ours: number in the high half, next sequence in the low one; 0 before there is one.
    next: AtomicU64,
    /// The record of ours.
    record: AtomicU64,
    open: Mutex<BTreeSet<(u32, u32)>>,
    claimed: bool,
    /// A new one has to be claimed.
    wanted: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Named {
    name: u64,
    record: Location,
}

/// A sequence, open as long as somebody has this.
#[derive(Debug)]
pub(crate) struct Issued {
    epochs: Arc<Epochs>,
    pub epoch: u32,
    pub sequence: u32,
}

impl Drop for Issued {
    fn drop(&mut self) {
        let mut open = self.epochs.open.lock();
        open.remove(&(self.epoch, self.sequence));
    }
}

/// The name of an object: relative to the prefix, spread by hash, because S3 scales by prefix.
pub(crate) fn pack_key(name: u64, sequence: u32) -> Arc<str> {
    let object = format!("{name:016x}-{sequence:08x}");
    let hash = crc32c(object.as_bytes()) >> 16;
    Arc::from(format!("packs/{hash:04x}/{object}"))
}

/// Epoch's name and sequence of a pack's key.
pub(crate) fn parse_pack_key(key: &str) -> Option<(u64, u32)> {
    let object = key.strip_prefix("packs/")?.get(5..)?;
    let (name, sequence) = object.split_once('-')?;
    if name.len() != 16 || sequence.len() != 8 {
        return None;
    }
    let name = u64::from_str_radix(name, 16).ok()?;
    let sequence = u32::from_str_radix(sequence, 16).ok()?;
    (*pack_key(name, sequence) == *key).then_some((name, sequence))
}

impl Epochs {
    /// Of what the journal has, by location. `claimed`: a name comes by [`adopt`](Self::adopt).
    pub(crate) fn new(
        found: impl IntoIterator<Item = (Location, EpochRecord)>,
        claimed: bool,
    ) -> Arc<Self> {
        let names = found.into_iter().map(|(record, epoch)| {
            let EpochRecord { number, name } = epoch;
            (number, Named { name, record })
        });
        Arc::new(Self {
            names: Mutex::new(names.collect()),
            next: AtomicU64::new(0),
            record: AtomicU64::new(0),
            open: Mutex::new(BTreeSet::new()),
            claimed,
            wanted: Notify::new(),
        })
    }

    /// Makes sure that there is an epoch to write under, durably.
    pub(crate) async fn ready(&self, journal: &Journal, random: &Random) -> Result<()> {
        // Used up, all but what is issued before somebody looks again.
        if self.next.load(Ordering::Acquire) & 0xffff_ffff >= 0xffff_0000 {
            self.next.store(0, Ordering::Release);
        }
        if self.next.load(Ordering::Acquire) == 0 {
            if self.claimed {
                self.wanted.notify_one();
                return Err(Error::Unclaimed);
            }
            self.begin(random.u64(), journal)?;
        }
        let location = self.record.load(Ordering::Acquire);
        Ok(journal.wait_durable(location).await?)
    }

    /// Writes under an epoch that was claimed, once that is on record.
    pub(crate) async fn adopt(&self, name: u64, journal: &Journal) -> Result<()> {
        let location = self.begin(name, journal)?;
        Ok(journal.wait_durable(location).await?)
    }

    /// Waits until the sequences of ours are used up, and a new one has to be claimed.
    pub(crate) async fn spent(&self) {
        loop {
            self.wanted.notified().await;
            // Who asked may have done so before there was one.
            if self.next.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    fn begin(&self, name: u64, journal: &Journal) -> Result<Location> {
        let mut names = self.names.lock();
        let last = names.last_key_value().map_or(0, |(number, _)| *number);
        let number = last.checked_add(1).ok_or_else(|| Error::InvalidInput {
            what: "epoch",
            value: last.to_string(),
            limit: "a store can be opened 4,294,967,295 times".to_owned(),
        })?;
        let record = EpochRecord { number, name };
        let append = Append::begin(kind::EPOCH, encode(&record), Payload::None);
        let record = journal.append(append.vital())?;
        names.insert(number, Named { name, record });
        self.record.store(record, Ordering::Release);
        self.next.store(u64::from(number) << 32, Ordering::Release);
        Ok(record)
    }

    /// A new sequence.
    ///
    /// # Errors
    /// [`Error::Unclaimed`] where there is no epoch to write under (any more).
    pub(crate) fn issue(self: &Arc<Self>) -> Result<Issued> {
        let mut open = self.open.lock();
        let given = self
            .next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |next| {
                (next >> 32 != 0 && next & 0xffff_ffff < 0xffff_ffff).then(|| next + 1)
            });
        let next = given.map_err(|_| Error::Unclaimed)?;
        let (epoch, sequence) = ((next >> 32) as u32, next as u32);
        open.insert((epoch, sequence));
        Ok(Issued {
            epochs: Arc::clone(self),
            epoch,
            sequence,
        })
    }

    /// The lowest that is open, or would be issued next: name and sequence. `None` before the
    /// first.
    pub(crate) fn lowest_open(&self) -> Option<(u64, u32)> {
        let open = self.open.lock();
        let next = self.next.load(Ordering::Acquire);
        let first = open.first().copied();
        let (epoch, sequence) = first.unwrap_or(((next >> 32) as u32, next as u32));
        drop(open);
        let names = self.names.lock();
        names.get(&epoch).map(|named| (named.name, sequence))
    }

    /// The key of an image's object.
    pub(crate) fn key(&self, address: &Address) -> Arc<str> {
        pack_key(self.name(address.epoch).unwrap_or(0), address.sequence)
    }

    pub(crate) fn key_of(&self, issued: &Issued) -> Arc<str> {
        pack_key(self.name(issued.epoch).unwrap_or(0), issued.sequence)
    }

    /// The name of ours, once there is one.
    pub(crate) fn current(&self) -> Option<u64> {
        let number = (self.next.load(Ordering::Acquire) >> 32) as u32;
        self.name(number)
    }

    /// Names that a checkpoint has and that no record here does: they are known as long as this
    /// store is open.
    pub(crate) fn learn(&self, epochs: &[(u32, u64)]) {
        let mut names = self.names.lock();
        for (number, name) in epochs {
            let unrecorded = Named {
                name: *name,
                record: 0,
            };
            names.entry(*number).or_insert(unrecorded);
        }
    }

    pub(crate) fn name(&self, number: u32) -> Option<u64> {
        let names = self.names.lock();
        names.get(&number).map(|named| named.name)
    }

    /// The table: numbers and names.
    pub(crate) fn table(&self) -> Vec<(u32, u64)> {
        let names = self.names.lock();
        names
            .iter()
            .map(|(number, named)| (*number, named.name))
            .collect()
    }

    /// Forgets the epochs that nothing names, but the last, whose number is not given again: the
    /// records that go with them.
    pub(crate) fn forget_unused(&self, used: &BTreeSet<u32>) -> Vec<Location> {
        let open: BTreeSet<u32> = self.open.lock().iter().map(|(epoch, _)| *epoch).collect();
        let mut names = self.names.lock();
        let Some(last) = names.last_key_value().map(|(number, _)| *number) else {
            return Vec::new();
        };
        let unused =
            |number: &u32| *number != last && !used.contains(number) && !open.contains(number);
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
        let epochs = Epochs::new([(1, EpochRecord { number: 7, name })], false);
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
        assert_eq!(parse_pack_key(&key), Some((name, 9)));
        for odd in [
            "packs/0000/000000000000abcd-00000009",
            "packs/x",
            "head",
            "packs/",
        ] {
            assert_eq!(parse_pack_key(odd), None, "{odd}");
        }
    }
}
