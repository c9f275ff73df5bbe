//! What a journal owes, kept beside it: the reference model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use s3_writeback::io::Io;
use s3_writeback::journal::{
    Append, CommitSink, Journal, JournalError, JournalFailure, JournalOptions, Location, Payload,
    Recovered, StageSource,
};
use s3_writeback::testing::fs::SimFs;

pub const DIR: &str = "/data/journal";

pub fn options(seed: u64) -> JournalOptions {
    JournalOptions {
        segment_bytes: 4096,
        inline_bytes: 512,
        end_head_bytes: 40,
        group_bytes: 4096,
        seed: Some(seed),
        holder: Some("the test".into()),
        ..JournalOptions::new(DIR)
    }
}

pub fn try_open(fs: &SimFs, seed: u64) -> Result<(Journal, Recovered), JournalError> {
    Journal::open(Arc::new(fs.clone()), Io::inline(), options(seed))
}

#[track_caller]
pub fn open(fs: &SimFs, seed: u64) -> (Journal, Recovered) {
    match try_open(fs, seed) {
        Ok(opened) => opened,
        Err(error) => panic!("open: {error}"),
    }
}

/// Polls a future, and runs the committer in between.
#[track_caller]
pub fn driven<T>(journal: &Journal, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
        journal.drive();
    }
    panic!("nothing that the committer does ends this wait");
}

pub fn segment(number: u64) -> PathBuf {
    PathBuf::from(DIR)
        .join("segments")
        .join(format!("{number:020}"))
}

/// Segment files, oldest first.
pub fn segments(fs: &SimFs) -> Vec<PathBuf> {
    fs.names(&PathBuf::from(DIR).join("segments"))
}

/// What a sink heard.
#[derive(Debug, Default)]
pub struct Heard {
    pub durable: Location,
    pub ahead: Vec<Location>,
    pub void: Vec<Location>,
    pub undetermined: Vec<Location>,
    pub space: Vec<bool>,
    pub failed: u32,
}

impl Heard {
    pub fn is_durable(&self, location: Location) -> bool {
        (location <= self.durable || self.ahead.contains(&location))
            && !self.void.contains(&location)
    }
}

#[derive(Debug, Default, Clone)]
pub struct Sink(pub Arc<Mutex<Heard>>);

impl CommitSink for Sink {
    fn durable(&self, upto: Location) {
        let mut heard = self.0.lock().unwrap();
        assert!(upto > heard.durable, "durable goes forward");
        heard.durable = upto;
    }
    fn void(&self, locations: &[Location], _: &JournalFailure) {
        let mut heard = self.0.lock().unwrap();
        for location in locations {
            assert!(
                !heard.is_durable(*location),
                "{location} was durable, and is void"
            );
            assert!(!heard.undetermined.contains(location));
        }
        heard.void.extend(locations);
    }
    fn space(&self, short: bool) {
        self.0.lock().unwrap().space.push(short);
    }
    fn durable_ahead(&self, locations: &[Location]) {
        self.0.lock().unwrap().ahead.extend(locations);
    }
    fn undetermined(&self, locations: &[Location], _: &JournalFailure) {
        let mut heard = self.0.lock().unwrap();
        for location in locations {
            assert!(
                !heard.is_durable(*location),
                "{location} was durable, and is undetermined"
            );
            assert!(
                !heard.void.contains(location),
                "{location} is void and undetermined"
            );
        }
        heard.undetermined.extend(locations);
    }
    fn failed(&self, _: &JournalFailure) {
        self.0.lock().unwrap().failed += 1;
    }
}

/// How sure a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It must be there.
    Durable,
    /// It must not be there.
    Void,
    /// Either.
    Open,
}

#[derive(Debug, Clone)]
pub struct ModelNote {
    pub location: Location,
    pub slot: u8,
    pub head: Bytes,
    pub fate: Fate,
    pub optional: bool,
}

#[derive(Debug, Clone)]
pub struct ModelOwner {
    pub head: Bytes,
    pub body: Option<Bytes>,
    pub fate: Fate,
    pub notes: Vec<ModelNote>,
    pub end: Option<(Location, Fate)>,
}

/// The reference: every owner of the current life, with what is known of each record.
#[derive(Debug, Default)]
pub struct Model {
    pub owners: BTreeMap<Location, ModelOwner>,
    pub used: BTreeSet<Location>,
}

pub fn text(location_hint: u64, len: usize) -> Bytes {
    let mut bytes = format!("<{location_hint}>").into_bytes();
    while bytes.len() < len {
        bytes.push(b'a' + (bytes.len() % 26) as u8);
    }
    Bytes::from(bytes)
}

impl Model {
    fn assigned(&mut self, location: Location) {
        assert!(
            self.used.insert(location),
            "location {location} was used before"
        );
    }

    pub fn begin(
        &mut self,
        journal: &Journal,
        head: Bytes,
        body: Option<(Bytes, bool)>,
    ) -> Option<Location> {
        let payload = match &body {
            None => Payload::None,
            Some((bytes, false)) => Payload::Inline(bytes.clone()),
            Some((bytes, true)) => {
                let staged = driven(journal, journal.stage(StageSource::Bytes(bytes.clone())));
                Payload::Staged(staged.ok()?)
            }
        };
        let location = journal
            .append(Append::begin(1, head.clone(), payload))
            .ok()?;
        self.assigned(location);
        let body = body.map(|(bytes, _)| bytes);
        let owner = ModelOwner {
            head,
            body,
            fate: Fate::Open,
            notes: Vec::new(),
            end: None,
        };
        self.owners.insert(location, owner);
        Some(location)
    }

    pub fn note(&mut self, journal: &Journal, owner: Location, slot: u8, head: Bytes, sync: bool) {
        let mut record = Append::note(2, owner, slot, head.clone());
        if !sync {
            record = record.unsynced();
        }
        let Ok(location) = journal.append(record) else {
            return;
        };
        self.assigned(location);
        let note = ModelNote {
            location,
            slot,
            head,
            fate: Fate::Open,
            optional: !sync,
        };
        self.owners.get_mut(&owner).unwrap().notes.push(note);
    }

    pub fn end(&mut self, journal: &Journal, owner: Location) {
        let Ok(location) = journal.append(Append::end(3, owner, "end")) else {
            return;
        };
        self.assigned(location);
        self.owners.get_mut(&owner).unwrap().end = Some((location, Fate::Open));
    }

    /// Takes over what the sink heard.
    pub fn hear(&mut self, sink: &Sink) {
        let heard = sink.0.lock().unwrap();
        let fate = |location: Location, old: Fate| match old {
            Fate::Open if heard.void.contains(&location) => Fate::Void,
            Fate::Open if heard.undetermined.contains(&location) => Fate::Open,
            Fate::Open if heard.is_durable(location) => Fate::Durable,
            old => old,
        };
        for (location, owner) in &mut self.owners {
            owner.fate = fate(*location, owner.fate);
            for note in &mut owner.notes {
                note.fate = fate(note.location, note.fate);
            }
            if let Some((location, old)) = owner.end {
                owner.end = Some((location, fate(location, old)));
            }
        }
        self.owners
            .retain(|_, owner| !matches!(owner.end, Some((_, Fate::Durable))));
    }

    /// Checks what was recovered, and goes on from it.
    #[track_caller]
    pub fn check(&mut self, journal: &Journal, recovered: &Recovered, what: &str) {
        let found: BTreeMap<_, _> = recovered
            .owners
            .iter()
            .map(|owner| (owner.location, owner))
            .collect();
        for (location, owner) in &self.owners {
            let Some(found) = found.get(location) else {
                let may_miss = owner.fate != Fate::Durable
                    || owner.end.is_some_and(|(_, fate)| fate != Fate::Void);
                assert!(may_miss, "{what}: owner {location} was durable and is gone");
                continue;
            };
            assert_ne!(
                owner.fate,
                Fate::Void,
                "{what}: void owner {location} came back"
            );
            assert_eq!(found.head, owner.head, "{what}: head of {location}");
            assert_eq!(
                found.payload,
                owner.body.as_ref().map(|body| body.len() as u64)
            );
            if let Some(body) = &owner.body {
                let handle = journal
                    .payload(*location)
                    .unwrap_or_else(|| panic!("{what}: owner {location} has no payload handle"));
                let read = handle.read_at(0, body.len()).unwrap_or_else(|error| {
                    panic!(
                        "{what}: payload of {location} ({}): {error}",
                        handle.is_external()
                    )
                });
                assert_eq!(&read, body, "{what}: payload of {location}");
            }
            for slot in 0..4 {
                let notes: Vec<_> = owner
                    .notes
                    .iter()
                    .filter(|note| note.slot == slot)
                    .collect();
                let got = found.notes.iter().find(|note| note.slot == slot);
                // The latest that is durable must be there, or a later one. What may be left
                // out for want of room counts as durable, and may be missing.
                let least = notes
                    .iter()
                    .filter(|note| note.fate == Fate::Durable && !note.optional)
                    .map(|note| note.location)
                    .max()
                    .unwrap_or(0);
                let got_at = got.map_or(0, |note| note.location);
                assert!(
                    got_at >= least,
                    "{what}: note {least} of {location}/{slot}: got {got_at}"
                );
                if let Some(got) = got {
                    let known = notes.iter().find(|note| note.location == got.location);
                    let known = known.unwrap_or_else(|| panic!("{what}: a note nobody wrote"));
                    assert_eq!(known.head, got.head);
                    assert_ne!(known.fate, Fate::Void, "{what}: a void note came back");
                }
            }
        }
        for location in found.keys() {
            let known = self.owners.contains_key(location);
            assert!(known, "{what}: owner {location} had ended, or never was");
        }
        // From here on, what was recovered is owed.
        self.owners
            .retain(|location, _| found.contains_key(location));
        for (location, owner) in &mut self.owners {
            owner.fate = Fate::Durable;
            owner.end = None;
            let got = &found[location].notes;
            owner
                .notes
                .retain(|note| got.iter().any(|got| got.location == note.location));
            for note in &mut owner.notes {
                note.fate = Fate::Durable;
                note.optional = false;
            }
        }
    }
}
