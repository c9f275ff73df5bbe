//! Files that go, and change their length.
//!
//! Owns: drop and set_len: what is waited for, what is put on record, and in which order the local
//! file follows. Does not own: growth by writing (`access.rs`).
//!
//! 1. What is cut off is held by nobody else: the cut has it `Sole`, part by part, before anything
//!    is changed; those who wait for it are told that it is gone, loads and captures of it end
//!    without effect.
//! 2. The cut is on record before a byte goes; its range is punched and synced, and that is on
//!    record, before anything can be written there again. After a crash in between, open does it.
//!    So no old byte comes back, and none that was written later is taken.
//! 3. A part that is cut inside has its local bytes trusted first: its old image is longer.
//! 4. Who takes parts for a cut waits for nothing else meanwhile: not for a load, because what is
//!    taken cannot be evicted to make room for it; and whoever holds such a part, and grows the
//!    file by it, does not wait for the cut.
//! 5. From the record on a cut is carried through, whoever asked for it may have gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::journal::fs::if_there;
use crate::journal::{Append, Payload};

use super::Parts;
use super::file::{PartFile, Shaping};
use super::intent::Opened;
use super::locker::LockerState;
use super::record::{Change, DroppedRecord, encode, kind};
use super::state::{Status, Want};

/// Parts that somebody has to himself.
struct Cutting {
    parts: Arc<Parts>,
    file: Arc<PartFile>,
    locker: Arc<LockerState>,
    held: Vec<u32>,
    /// Its parts are not given back, but gone.
    done: bool,
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.locker.end_cut(self.file.no);
        for index in self.held.drain(..) {
            let word = &self.file.header.entry(index).word;
            let key = self.file.key(index);
            if self.done {
                let gone = self.file.deleted(index);
                self.parts.locks.refuse(key, &gone);
            }
            self.parts.locks.release(word, key, Want::Sole);
        }
        self.file.cut_from(u64::MAX);
        self.file.shaping.change(|shaping| *shaping = Shaping::No);
    }
}

impl Cutting {
    /// Nothing is grown from here on.
    fn cuts(&self) {
        self.file.shaping.change(|shaping| *shaping = Shaping::Cuts);
    }
}

impl Parts {
    /// Drops a file: waits for those who hold parts of it, as long as `locker` is waited for.
    pub(crate) async fn drop_file(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        locker: &Arc<LockerState>,
    ) -> Result<()> {
        self.check_writes(Some(locker))?;
        self.holds_none(file, 0, locker)?;
        let mut cutting = self.shape(file, locker).await?;
        self.take_all(&mut cutting, 0).await?;
        let (parts, on) = (Arc::clone(self), Arc::clone(file));
        let mut record = None;
        let location = loop {
            if record.is_none() && self.may_be_in_a_checkpoint(file) {
                // Durable before the end is on its way: whatever the disk has left.
                let dropped = self.log_drop(file)?;
                self.journal.wait_durable(dropped.0).await?;
                record = Some(dropped);
            }
            let mut log = file.log.lock();
            let _gate = self.line.between();
            if record.is_none() && self.may_be_in_a_checkpoint(file) {
                continue;
            }
            let end = Append::end(kind::END, file.incarnation, bytes::Bytes::new());
            let location = self.journal.append(end)?;
            log.ended = true;
            if let Some((at, dropped)) = record {
                self.dropped.lock().insert(at, (dropped, self.line.drawn()));
            }
            file.gone_behind(self.line.drawn());
            cutting.cuts();
            break location;
        };
        let carried = self.carry(async move {
            if let Err(error) = parts.journal.wait_durable(location).await {
                on.log.lock().ended = false;
                on.gone_behind(u64::MAX);
                return Err(error.into());
            }
            on.set_dropped();
            let cutting = parts.cut_words(cutting).await?;
            parts.forget(&on);
            drop(cutting);
            let (records, intents, snapshot) = {
                let log = &mut *on.log.lock();
                let records = std::mem::take(&mut log.records);
                parts
                    .header_records
                    .fetch_sub(records.len() as u64, Ordering::Relaxed);
                (records, std::mem::take(&mut log.intents), log.snapshot)
            };
            // Whoever keeps a handle keeps no room.
            drop(intents);
            parts.end_records(&records);
            let mut paths = vec![on.path.clone()];
            if snapshot > 0 {
                paths.push(parts.snapshot_path(&on, snapshot));
            }
            parts.unlink(paths).await;
            Ok(())
        });
        carried.await
    }

    /// Removes local files that no record names.
    pub(crate) async fn unlink(self: &Arc<Self>, paths: Vec<std::path::PathBuf>) {
        let parts = Arc::clone(self);
        let unlink = move || {
            for path in paths {
                if let Err(error) = if_there(parts.fs.unlink(&path)) {
                    // The next open removes it.
                    tracing::warn!(path = %path.display(), %error, "stays until the next open");
                }
            }
        };
        if let Err(error) = self.io.run(unlink).await {
            tracing::warn!(%error, "local files stay until the next open");
        }
    }

    /// Cuts a file, or lets it grow.
    pub(crate) async fn set_len(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        len: u64,
        locker: &Arc<LockerState>,
    ) -> Result<()> {
        self.check_writes(Some(locker))?;
        if len > file.max_len() {
            return Err(file.past_end(0, len));
        }
        if file.is_dropped() {
            return Err(file.deleted(0));
        }
        if len >= file.len() {
            return self.lengthen(file, len).await;
        }
        let keeps = u32::try_from(file.parts_of(len)).unwrap_or(u32::MAX);
        let inside = usize::try_from(len % u64::from(file.part_bytes)).unwrap_or(0);
        let last = keeps.saturating_sub(1);
        self.holds_none(file, keeps, locker)?;
        let (cutting, pin) = loop {
            if inside > 0 {
                let _pin = self.pin(file, last, Some(locker)).await?;
                self.present(file, last, Some(locker)).await?;
            }
            let mut cutting = self.shape(file, locker).await?;
            if len >= file.len() {
                drop(cutting);
                return self.lengthen(file, len).await;
            }
            // Here still, and kept here: nobody else cuts it off now.
            let pin = (inside > 0).then(|| OwnedPin::new(self, file, last));
            let here = || {
                let status = file.header.entry(last).word.get().status();
                matches!(status, Status::Zero | Status::Loaded)
            };
            match pin {
                Some(Some(_)) if !here() => continue,
                Some(None) => continue,
                _ => {}
            }
            self.take_all(&mut cutting, keeps).await?;
            break (cutting, pin.flatten());
        };
        let location = loop {
            let _opened = match inside {
                0 => None,
                _ => self.trust(file, last, locker).await?,
            };
            if let Some(location) = self.log_cut(&cutting, len, inside, last)? {
                break location;
            }
        };
        let (parts, on) = (Arc::clone(self), Arc::clone(file));
        let carried = self.carry(async move {
            let result = parts.cut(&on, len, inside, last, location, cutting).await;
            drop(pin);
            result
        });
        carried.await
    }

    /// Puts a cut on record, and makes it true; `None` where the part that is cut inside went up
    /// to S3 in the meantime, with its intent: that is to be opened anew.
    fn log_cut(
        &self,
        cutting: &Cutting,
        len: u64,
        inside: usize,
        last: u32,
    ) -> Result<Option<u64>> {
        let file = &cutting.file;
        let log = &mut *file.log.lock();
        let _latch = (inside > 0).then(|| self.latches.step(file.key(last)));
        // Between two lines, too, where no part is cut inside.
        let _gate = self.line.between();
        if inside > 0 {
            if let Some(line) = self.line.open() {
                line.set_aside(file, last);
            }
            let word = &file.header.entry(last).word;
            // Its image is longer than the part will be: dirty, a new one is made.
            match word.make(|word| word.dirtied()) {
                Some((old, _)) => {
                    if !old.is_dirty() {
                        self.flusher.dirty(file, last);
                        self.part_changed(file, last);
                    }
                    file.is_unsynced(last);
                }
                None if word.get().status() == Status::Zero => {}
                None => return Ok(None),
            }
        }
        let location = self.append_changes(file, log, vec![Change::Cut { len }], true)?;
        cutting.cuts();
        log.cut = Some(len);
        log.len_logged = len;
        if let Some(line) = self.line.open() {
            line.len_of(file);
        }
        file.set_len(len);
        self.file_changed(file);
        let keeps = u32::try_from(file.parts_of(len)).unwrap_or(u32::MAX);
        drop(log.intents.split_off(&keeps));
        Ok(Some(location))
    }

    async fn lengthen(self: &Arc<Self>, file: &Arc<PartFile>, len: u64) -> Result<()> {
        loop {
            file.may_grow().await;
            // Whoever puts a cut on record has the log.
            let _log = file.log.lock();
            if file.is_dropped() {
                return Err(file.deleted(0));
            }
            let _gate = self.line.between();
            if file.shaping.read(|shaping| *shaping < Shaping::Cuts) {
                if let Some(line) = self.line.open() {
                    line.len_of(file);
                }
                file.grow(len);
                self.file_changed(file);
                break;
            }
        }
        let location = self.log_length(file)?;
        Ok(self.journal.wait_durable(location).await?)
    }

    /// Has the local bytes of a part be the truth, whatever they are; for as long as its caller
    /// relies on it.
    async fn trust(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        index: u32,
        locker: &Arc<LockerState>,
    ) -> Result<Option<Opened>> {
        loop {
            self.present(file, index, Some(locker)).await?;
            if file.header.entry(index).word.get().status() == Status::Zero {
                return Ok(None);
            }
            let part = [(Arc::clone(file), index)];
            let opened = self.open_intents(&part, Some(locker)).await?;
            self.sync(file).await?;
            let log = file.log.lock();
            let is_trusted = log.intents.get(&index).is_some_and(|intent| intent.trusted);
            drop(log);
            if is_trusted {
                return Ok(Some(opened));
            }
        }
    }

    /// The cut itself; nobody else has what goes.
    async fn cut(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        len: u64,
        inside: usize,
        last: u32,
        location: u64,
        cutting: Cutting,
    ) -> Result<()> {
        let cutting = self.cut_words(cutting).await?;
        self.journal.wait_durable(location).await?;
        self.punch_behind(file, len, inside, last).await?;
        let location = {
            let log = &mut *file.log.lock();
            log.cut = None;
            self.append_changes(file, log, vec![Change::CutDone], true)?
        };
        self.journal.wait_durable(location).await?;
        drop(cutting);
        self.evictor.notify_one();
        Ok(())
    }

    async fn punch_behind(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        len: u64,
        inside: usize,
        last: u32,
    ) -> Result<()> {
        let (parts, on) = (Arc::clone(self), Arc::clone(file));
        let punched = self
            .io
            .run(move || {
                let have = on.disk.stat()?.len;
                if inside > 0 {
                    let _latch = parts.latches.step(on.key(last));
                    let end = on.start_of(last) + u64::from(on.part_bytes);
                    // Nobody has written there since: the file does not grow during a cut.
                    on.disk.punch(len, end - len)?;
                }
                let behind = on.start_of(last).saturating_add(u64::from(on.part_bytes));
                let behind = if inside > 0 { behind } else { len };
                if behind < have {
                    on.disk.punch(behind, have - behind)?;
                }
                parts.fsync(&on)
            })
            .await
            .and_then(|punched| punched);
        punched.map_err(|error| Error::StoreFailed(error.to_string()))
    }

    /// Waits until no cut of a file is in progress.
    pub(crate) async fn uncut(&self, file: &PartFile, locker: Option<&Arc<LockerState>>) {
        let locker = locker.map(|locker| &**locker);
        self.locks.until_uncut(file.no, locker, file.uncut()).await;
    }

    /// Who has a part of what he is to cut off would wait for himself.
    fn holds_none(&self, file: &PartFile, first: u32, locker: &LockerState) -> Result<()> {
        match locker.holds_from(file.key(first)) {
            Some(held) => Err(locker.already_holds(file.part(held.key.index()), &held)),
            None => Ok(()),
        }
    }

    /// Becomes the one who cuts a file, in turn.
    async fn shape(
        self: &Arc<Self>,
        file: &Arc<PartFile>,
        locker: &Arc<LockerState>,
    ) -> Result<Cutting> {
        loop {
            let ours = file.shaping.change(|shaping| {
                let ours = *shaping == Shaping::No;
                if ours {
                    *shaping = Shaping::Takes;
                }
                ours
            });
            if ours {
                break;
            }
            self.uncut(file, Some(locker)).await;
        }
        let cutting = Cutting {
            parts: Arc::clone(self),
            file: Arc::clone(file),
            locker: Arc::clone(locker),
            held: Vec::new(),
            done: false,
        };
        if file.is_dropped() {
            return Err(file.deleted(0));
        }
        Ok(cutting)
    }

    /// Takes all parts of a file from `first` on for its caller alone.
    async fn take_all(self: &Arc<Self>, cutting: &mut Cutting, first: u32) -> Result<()> {
        let (file, locker) = (Arc::clone(&cutting.file), Arc::clone(&cutting.locker));
        // Said before looking: who takes a part from here on looks again when he has it.
        file.cut_from(u64::from(first));
        // Reads and writes that wait for something else give way.
        file.moved();
        self.locks.begin_cut(file.key(first), &locker);
        let words: Arc<dyn super::wait::Words> = Arc::clone(&file) as _;
        let used: Vec<u32> = file
            .header
            .used_from(first)
            .map(|(index, _)| index)
            .collect();
        for index in used {
            let word = &file.header.entry(index).word;
            // Nobody has it, nobody waits for it.
            if word.change(|word| word.lock(Want::Sole, false)).is_ok() {
                cutting.held.push(index);
                locker.cut_through(file.key(index));
                continue;
            }
            let (part, key) = (file.part(index), file.key(index));
            let place = self
                .locks
                .lock(&words, part, key, Want::Sole, &locker)
                .await?;
            cutting.held.push(index);
            // In the range instead.
            locker.cut_through(key);
            locker.remove(place);
        }
        Ok(())
    }

    /// Nothing is left of these parts: images, loads, captures, room.
    /// Bytes that a line still needs are set aside.
    async fn cut_words(self: &Arc<Self>, mut cutting: Cutting) -> Result<Cutting> {
        let parts = Arc::clone(self);
        let cut = self.io.run(move || {
            parts.cut_each(&cutting.file, &cutting.held);
            cutting.done = true;
            cutting
        });
        cut.await.map_err(|error| Error::Runtime(error.to_string()))
    }

    fn cut_each(&self, file: &Arc<PartFile>, indexes: &[u32]) {
        for index in indexes.iter().copied() {
            let key = file.key(index);
            let _latch = self.latches.step(key);
            if let Some(line) = self.line.open() {
                line.set_aside(file, index);
            }
            let load = file.loads.lock().remove(&index);
            file.captures.lock().remove(&index);
            file.unsynced.lock().parts.remove(&index);
            let entry = file.header.entry(index);
            let had = entry.address().is_some();
            entry.set_address(None);
            entry.word.make(|word| word.cut());
            if had {
                entry.word.set(|word| word.with_differs(true));
            }
            if entry.word.get().differs() && !file.is_dropped() {
                self.part_changed(file, index);
            }
            if let Some(load) = load {
                load.void(file.deleted(index));
            }
            self.flusher.healed(key);
            self.resident.remove(key);
        }
        file.moved();
    }

    /// Whether a checkpoint has a file, or the line has that was drawn last.
    fn may_be_in_a_checkpoint(&self, file: &PartFile) -> bool {
        file.is_listed() || file.is_at(self.line.drawn())
    }

    /// A file that a checkpoint may have is to be taken out of the next: on record, before its end
    /// is. A record of a file that is there says nothing, and goes at the next open.
    fn log_drop(&self, file: &PartFile) -> Result<(u64, DroppedRecord)> {
        let dropped = DroppedRecord {
            id: file.id.0,
            token: file.token,
        };
        let append = Append::begin(kind::DROPPED, encode(&dropped), Payload::None);
        Ok((self.journal.append(append.vital())?, dropped))
    }
}

/// A pin that does not borrow.
struct OwnedPin {
    parts: Arc<Parts>,
    file: Arc<PartFile>,
    index: u32,
}

impl OwnedPin {
    /// Pins a part that is not being cut off.
    fn new(parts: &Arc<Parts>, file: &Arc<PartFile>, index: u32) -> Option<Self> {
        let word = &file.header.entry(index).word;
        parts.locks.try_pin(word).map(|_| Self {
            parts: Arc::clone(parts),
            file: Arc::clone(file),
            index,
        })
    }
}

impl Drop for OwnedPin {
    fn drop(&mut self) {
        let word = &self.file.header.entry(self.index).word;
        let pin = Want::Mode(super::state::Mode::Pin);
        self.parts
            .locks
            .release(word, self.file.key(self.index), pin);
    }
}
