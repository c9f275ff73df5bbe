//! The line of a checkpoint: what every file and every part was at one instant.
//!
//! Owns: the list that a line has, part to image, and how it stays what it was while parts change.
//! Does not own: when a line is drawn and what is made of it (`checkpoint/`), or the bytes that
//! are set aside (`aside.rs`).
//!
//! 1. Every step is wholly before a line or behind it: a step has the latch of each of its parts,
//!    what changes a file alone has a gate, and the line is drawn by who has all latches and the
//!    gate.
//! 2. Drawing it raises a number, and nothing else. Whoever changes a part first after that puts
//!    its row on the list before, under the latch; the rows of all others are read afterwards.
//! 3. A part that was dirty is captured as always, if nothing is written to it before. Otherwise
//!    its image is set aside first: into room that was reserved before the line was drawn, so that
//!    no write waits for S3, or fails, because of a checkpoint.
//! 4. A capture that was on its way has the image: whether or not a later one comes first.
//! 5. What is on no list is in the table as it was at the line: its row would have been written.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock, RwLockReadGuard};
use crate::watched::Watched;

use super::Parts;
use super::aside::{Aside, AsideRoom};
use super::file::PartFile;
use super::header::Address;
use super::id::PartKey;

const SHARDS: usize = 64;

type Rows = HashMap<PartKey, Row, BuildHasherDefault<Mixed>>;

/// Keys are numbers that nobody outside chooses: mixed, not hashed.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

/// What is known of the image that a part had at the line.
#[derive(Debug, Clone)]
pub(crate) enum Row {
    /// This; `None` of a part that was zeros.
    Is(Option<Address>),
    /// What is here now: it was dirty, and nothing was written since.
    Here,
    /// What this capture has.
    Captured(u64),
    /// What was set aside; and whether it is on its way.
    Aside(Aside, bool),
    /// Nothing any more.
    Lost,
}

impl Row {
    const fn is_open(&self) -> bool {
        matches!(self, Self::Here | Self::Captured(_) | Self::Aside(..))
    }
}

/// A file at the line.
#[derive(Debug, Clone)]
pub(crate) struct FileRow {
    pub file: Arc<PartFile>,
    pub len: u64,
}

#[derive(Debug, Default)]
struct Owed {
    rows: usize,
    /// Images that were set aside and are not on their way yet.
    aside: usize,
    lost: Option<Error>,
}

/// A line that was drawn.
#[derive(Debug)]
pub(crate) struct OpenLine {
    pub number: u64,
    rows: Box<[Mutex<Rows>]>,
    files: Mutex<BTreeMap<u32, FileRow>>,
    owed: Watched<Owed>,
    pub aside: AsideRoom,
}

/// The line that is open, if one is.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// How many were drawn.
    drawn: AtomicU64,
    is_open: AtomicBool,
    open: RwLock<Option<Arc<OpenLine>>>,
    /// What changes a file and none of its parts has this; it is the last lock that is taken.
    gate: RwLock<()>,
    /// Whose images nobody deletes: until what became of it is known.
    kept: Mutex<Option<Arc<OpenLine>>>,
}

impl OpenLine {
    fn new(number: u64, aside: AsideRoom) -> Self {
        Self {
            number,
            rows: (0..SHARDS).map(|_| Mutex::new(Rows::default())).collect(),
            files: Mutex::new(BTreeMap::new()),
            owed: Watched::new(Owed::default()),
            aside,
        }
    }

    fn shard(&self, key: PartKey) -> &Mutex<Rows> {
        let mixed = key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        &self.rows[usize::try_from(mixed).unwrap_or(0) % SHARDS]
    }

    /// The file's length at the line: who changes it asks first.
    pub(crate) fn len_of(&self, file: &Arc<PartFile>) -> u64 {
        let mut files = self.files.lock();
        let row = files.entry(file.no).or_insert_with(|| FileRow {
            file: Arc::clone(file),
            len: file.len(),
        });
        row.len
    }

    /// All files that are on it.
    pub(crate) fn files(&self) -> Vec<FileRow> {
        self.files.lock().values().cloned().collect()
    }

    pub(crate) fn row(&self, key: PartKey) -> Option<Row> {
        self.shard(key).lock().get(&key).cloned()
    }

    /// Changes a row; what is owed follows.
    fn edit<T>(&self, key: PartKey, edit: impl FnOnce(&mut Option<Row>) -> T) -> T {
        let (result, rows, aside) = {
            let mut shard = self.shard(key).lock();
            let mut row = shard.remove(&key);
            let open = |row: &Option<Row>| row.as_ref().is_some_and(Row::is_open);
            let waits = |row: &Option<Row>| matches!(row, Some(Row::Aside(_, false)));
            let (was_open, was_waiting) = (open(&row), waits(&row));
            let result = edit(&mut row);
            let (rows, aside) = (
                i8::from(open(&row)) - i8::from(was_open),
                i8::from(waits(&row)) - i8::from(was_waiting),
            );
            if let Some(row) = row {
                shard.insert(key, row);
            }
            (result, rows, aside)
        };
        if rows != 0 || aside != 0 {
            self.owed.change(|owed| {
                owed.rows = owed.rows.saturating_add_signed(isize::from(rows));
                owed.aside = owed.aside.saturating_add_signed(isize::from(aside));
            });
        }
        result
    }

    /// Puts a part on the list as it is now, if it is not there yet. Under its latch, before it is
    /// changed. Nothing is owed of a file that was made, or dropped, at another time.
    pub(crate) fn touch(&self, file: &Arc<PartFile>, index: u32) {
        if !file.is_at(self.number) {
            return;
        }
        let key = file.key(index);
        if self.shard(key).lock().contains_key(&key) {
            return;
        }
        let len = self.len_of(file);
        self.edit(key, |row| {
            if row.is_none() {
                let is_there = u64::from(index) < file.parts_of(len);
                *row = Some(if is_there {
                    now(file, index)
                } else {
                    Row::Is(None)
                });
            }
        });
    }

    /// A part is to be written to, or cut off: what it was is set aside where nobody else has it.
    /// Under its latch.
    pub(crate) fn set_aside(&self, file: &Arc<PartFile>, index: u32) {
        self.touch(file, index);
        let key = file.key(index);
        if !matches!(self.row(key), Some(Row::Here)) {
            return;
        }
        let start = file.start_of(index);
        let left = self.len_of(file).saturating_sub(start);
        let len = usize::try_from(left).map_or(file.part_bytes as usize, |left| {
            left.min(file.part_bytes as usize)
        });
        let mut bytes = vec![0; len];
        let kept = file
            .read_here(&mut bytes, start)
            .and_then(|()| self.aside.keep(bytes));
        match kept {
            Ok(aside) => self.edit(key, |row| *row = Some(Row::Aside(aside, false))),
            Err(error) => self.lost(key, Error::directory(&file.path, &error)),
        }
    }

    /// A capture was made: under the latch, before the part can be written to.
    pub(crate) fn captured(&self, key: PartKey, number: u64) {
        self.edit(key, |row| {
            if matches!(row, Some(Row::Here)) {
                *row = Some(Row::Captured(number));
            }
        });
    }

    /// An image is in S3.
    pub(crate) fn arrived(&self, key: PartKey, number: u64, address: Address) {
        self.edit(key, |row| {
            if matches!(row, Some(Row::Captured(n)) if *n == number) {
                *row = Some(Row::Is(Some(address)));
            }
        });
    }

    /// What was set aside is in S3.
    pub(crate) fn aside_arrived(&self, key: PartKey, address: Address) {
        self.edit(key, |row| *row = Some(Row::Is(Some(address))));
    }

    /// A capture came to nothing.
    pub(crate) fn failed(&self, key: PartKey, number: u64, error: impl FnOnce() -> Error) {
        if self.needs_capture(key, number) {
            self.lost(key, error());
        }
    }

    /// An image of it is nowhere any more: the checkpoint cannot be.
    pub(crate) fn lost(&self, key: PartKey, error: Error) {
        self.edit(key, |row| *row = Some(Row::Lost));
        self.give_up(error);
    }

    /// It will not be a checkpoint.
    pub(crate) fn give_up(&self, error: Error) {
        self.owed.change(|owed| {
            owed.lost.get_or_insert(error);
        });
    }

    /// Whether this capture has the image of a part.
    pub(crate) fn needs_capture(&self, key: PartKey, number: u64) -> bool {
        matches!(self.row(key), Some(Row::Captured(n)) if n == number)
    }

    /// Whether an image of a part is still owed.
    pub(crate) fn owes(&self, key: PartKey) -> bool {
        self.row(key).is_some_and(|row| row.is_open())
    }

    /// Images that were set aside and are not on their way yet, some of them; they are from here
    /// on.
    pub(crate) fn take_aside(&self, most: usize) -> Vec<(PartKey, Aside)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for shard in &self.rows {
            let keys: Vec<PartKey> = {
                let shard = shard.lock();
                let waiting = shard
                    .iter()
                    .filter(|(_, row)| matches!(row, Row::Aside(_, false)));
                waiting.map(|(key, _)| *key).collect()
            };
            for key in keys {
                if bytes >= most {
                    return taken;
                }
                let aside = self.edit(key, |row| match row {
                    Some(Row::Aside(aside, sent)) if !*sent => {
                        *sent = true;
                        Some(aside.clone())
                    }
                    _ => None,
                });
                if let Some(aside) = aside {
                    bytes += aside.len();
                    taken.push((key, aside));
                }
            }
        }
        taken
    }

    /// Waits until something was set aside (`false`), or nothing is owed any more (`true`).
    ///
    /// # Errors
    /// Why there will be no checkpoint.
    pub(crate) async fn settled(&self) -> Result<bool> {
        self.owed
            .until(|owed| match &owed.lost {
                Some(error) => Some(Err(error.clone())),
                None if owed.aside > 0 => Some(Ok(false)),
                None if owed.rows == 0 => Some(Ok(true)),
                None => None,
            })
            .await
    }

    /// Whether it is known that there will be no checkpoint.
    pub(crate) fn is_given_up(&self) -> bool {
        self.owed.read(|owed| owed.lost.is_some())
    }

    /// Waits until it is known that there will be no checkpoint.
    pub(crate) async fn given_up(&self) -> Error {
        self.owed.until(|owed| owed.lost.clone()).await
    }

    /// Rows whose images are not in S3 yet.
    pub(crate) fn owed(&self) -> usize {
        self.owed.read(|owed| owed.rows)
    }

    /// All rows of which it is known what they are.
    pub(crate) fn known(&self) -> BTreeMap<PartKey, Option<Address>> {
        let mut known = BTreeMap::new();
        for shard in &self.rows {
            for (key, row) in &*shard.lock() {
                if let Row::Is(address) = row {
                    known.insert(*key, *address);
                }
            }
        }
        known
    }
}

/// What a part is, under its latch.
fn now(file: &PartFile, index: u32) -> Row {
    let Some(entry) = file.header.peek(index) else {
        return Row::Is(None);
    };
    let word = entry.word.get();
    if word.is_dirty() {
        return Row::Here;
    }
    if word.captures() > 0 {
        let captures = file.captures.lock();
        if let Some(part) = captures.get(&index)
            && part.applied < part.last
        {
            return Row::Captured(part.last);
        }
    }
    Row::Is(entry.address())
}

impl Line {
    /// The line that is open.
    #[inline]
    pub(crate) fn open(&self) -> Option<Arc<OpenLine>> {
        // Under a latch, which orders it behind the drawing.
        if !self.is_open.load(Ordering::Acquire) {
            return None;
        }
        self.open.read().clone()
    }

    /// Between two lines, as long as it is held: for what is no step.
    pub(crate) fn between(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// How many were drawn so far: what happens now is behind that one.
    pub(crate) fn drawn(&self) -> u64 {
        self.drawn.load(Ordering::Acquire)
    }

    pub(crate) fn needs(&self, key: PartKey) -> bool {
        self.open().is_some_and(|line| line.owes(key))
    }

    /// Whether it waits for captures.
    pub(crate) fn is_owed(&self) -> bool {
        self.open().is_some_and(|line| line.owed() > 0)
    }

    /// Nothing more is put on the list; its images are kept all the same.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::Release);
        *self.open.write() = None;
    }

    /// What became of it is known.
    pub(crate) fn forget(&self) {
        self.close();
        *self.kept.lock() = None;
    }

    /// What became of this one is known; of another, nothing is said.
    pub(crate) fn forget_one(&self, number: u64) {
        if self.kept().is_some_and(|line| line.number == number) {
            self.forget();
        }
    }

    /// Objects that the list names.
    pub(crate) fn kept(&self) -> Option<Arc<OpenLine>> {
        self.kept.lock().clone()
    }
}

impl Parts {
    /// Draws a line; `None` where more is dirty by now than room was reserved for. Blocks until
    /// the steps and copies in progress are over.
    pub(crate) fn draw(&self, aside: AsideRoom) -> std::result::Result<Arc<OpenLine>, AsideRoom> {
        let _all = self.latches.all();
        let _gate = self.line.gate.write();
        if self.dirty.used().0 > aside.reserved() {
            return Err(aside);
        }
        let number = self.line.drawn.fetch_add(1, Ordering::AcqRel) + 1;
        let line = Arc::new(OpenLine::new(number, aside));
        *self.line.open.write() = Some(Arc::clone(&line));
        *self.line.kept.lock() = Some(Arc::clone(&line));
        self.line.is_open.store(true, Ordering::Release);
        Ok(line)
    }

    /// Puts all on the list that may not be as the last committed checkpoint has it.
    pub(crate) fn list(&self, line: &OpenLine) {
        for file in self.changed_files() {
            // Made, or dropped, at another time.
            if !file.is_at(line.number) {
                if file.is_dropped() {
                    self.unchanged(&file);
                }
                continue;
            }
            // From here on a checkpoint may have it.
            file.set_listed();
            line.len_of(&file);
            let changed: Vec<u32> = file.changed.lock().iter().copied().collect();
            for index in changed {
                let _latch = self.latches.step(file.key(index));
                line.touch(&file, index);
            }
        }
    }

    /// A checkpoint of this line was committed: what is as it has it does not differ any more.
    pub(crate) fn committed(&self, line: &OpenLine) {
        let rows = line.known();
        for FileRow { file, len } in line.files() {
            if file.is_dropped() || !file.is_at(line.number) {
                continue;
            }
            for (key, address) in rows.range(PartKey::all_of(file.no)) {
                let _latch = self.latches.step(*key);
                let Some(entry) = file.header.peek(key.index()) else {
                    continue;
                };
                if entry.address() != *address {
                    continue;
                }
                let word = entry.word.set(|word| word.with_differs(false));
                if !word.is_dirty() && word.captures() == 0 {
                    file.changed.lock().remove(&key.index());
                }
            }
            // Before looking: who changes it from here on says so anew.
            self.unchanged(&file);
            if file.len() != len || !file.changed.lock().is_empty() {
                self.file_changed(&file);
            }
        }
    }

    /// Files that may not be as the last committed checkpoint has them.
    pub(crate) fn changed_files(&self) -> Vec<Arc<PartFile>> {
        self.changed.lock().values().cloned().collect()
    }

    /// A part is not what the last committed checkpoint has. Under its latch.
    pub(crate) fn part_changed(&self, file: &Arc<PartFile>, index: u32) {
        file.changed.lock().insert(index);
        self.file_changed(file);
    }

    pub(crate) fn file_changed(&self, file: &Arc<PartFile>) {
        use std::sync::atomic::Ordering;
        if !file.is_changed.swap(true, Ordering::AcqRel) {
            self.changed.lock().insert(file.no, Arc::clone(file));
        }
    }

    fn unchanged(&self, file: &PartFile) {
        use std::sync::atomic::Ordering;
        self.changed.lock().remove(&file.no);
        file.is_changed.store(false, Ordering::Release);
    }
}
