//! The reference: what each part of each file may read as, and may read as after a crash.
//!
//! 1. `whole` is what a part may read as while the store is open: one content, but after a write
//!    that was cancelled or failed also the one without it, until a read decides.
//! 2. `sectors` is what each sector may be after a power cut: what was synced last, and all that
//!    was written since; or the first bytes of that, and zeros, where the disk had no more.
//! 3. After a crash a part is `torn`: any mix of those, until a read decides.
//! 4. What is behind the end of the file is zeros.

use std::sync::Arc;

pub const SECTOR: usize = 512;

pub type Content = Arc<Vec<u8>>;

fn add<T: PartialEq>(to: &mut Vec<T>, new: T) {
    if !to.contains(&new) {
        to.push(new);
    }
}

fn dedup<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut kept = Vec::with_capacity(all.len());
    for one in all {
        add(&mut kept, one);
    }
    kept
}

/// One part.
#[derive(Debug, Clone)]
pub struct Part {
    pub whole: Vec<Content>,
    pub torn: bool,
    sectors: Vec<Vec<Vec<u8>>>,
    /// After the last crash what is found is on the disk: it was a power cut.
    sure: bool,
}

impl Part {
    pub fn zeros(len: usize) -> Self {
        Self {
            whole: vec![Arc::new(vec![0; len])],
            torn: false,
            sectors: vec![vec![vec![0; SECTOR]]; len / SECTOR],
            sure: true,
        }
    }

    fn written(content: &Content, at: usize, bytes: &[u8]) -> Content {
        let mut new = (**content).clone();
        new[at..at + bytes.len()].copy_from_slice(bytes);
        Arc::new(new)
    }

    /// Notes that these contents may reach the disk, sector by sector.
    fn may_land(&mut self, contents: &[Content], at: usize, len: usize) {
        if len == 0 {
            return;
        }
        for sector in at / SECTOR..=(at + len - 1) / SECTOR {
            for content in contents {
                let bytes = &content[sector * SECTOR..(sector + 1) * SECTOR];
                if !self.sectors[sector].iter().any(|known| known == bytes) {
                    self.sectors[sector].push(bytes.to_vec());
                }
            }
        }
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let covers = bytes.len() == self.sectors.len() * SECTOR;
        assert!(!self.torn || covers, "decided before it is written");
        if covers {
            self.whole.truncate(1);
            if self.whole.is_empty() {
                self.whole.push(Arc::new(bytes.to_vec()));
            }
        }
        let new = self.whole.iter().map(|c| Self::written(c, at, bytes));
        self.whole = dedup(new.collect());
        self.torn = false;
        let contents = self.whole.clone();
        self.may_land(&contents, at, bytes.len());
    }

    /// A write of which nobody knows whether it was made.
    pub fn maybe_write(&mut self, at: usize, bytes: &[u8]) {
        let covers = bytes.len() == self.sectors.len() * SECTOR;
        assert!(!self.torn || covers, "decided before it is written");
        let mut new: Vec<Content> = self
            .whole
            .iter()
            .map(|c| Self::written(c, at, bytes))
            .collect();
        if self.torn {
            new.push(Arc::new(bytes.to_vec()));
            // What is found may be this, and not on the disk.
            self.sure = false;
        }
        self.may_land(&new, at, bytes.len());
        self.whole.extend(new);
        self.whole = dedup(std::mem::take(&mut self.whole));
    }

    /// All that it is now is on the disk.
    pub fn synced(&mut self) {
        if self.torn {
            return;
        }
        for sectors in &mut self.sectors {
            sectors.clear();
        }
        let contents = self.whole.clone();
        self.may_land(&contents, 0, self.sectors.len() * SECTOR);
    }

    /// Nothing is left from byte `at` on.
    pub fn cut(&mut self, at: usize) {
        let end = self.sectors.len() * SECTOR;
        if at >= end {
            return;
        }
        let whole = self.whole.iter().map(|content| {
            let mut cut = (**content).clone();
            cut[at..].fill(0);
            Arc::new(cut)
        });
        self.whole = dedup(whole.collect());
        if at == 0 {
            self.whole = vec![Arc::new(vec![0; end])];
            self.torn = false;
        }
        for sector in at / SECTOR..self.sectors.len() {
            let from = at.saturating_sub(sector * SECTOR).min(SECTOR);
            for known in &mut self.sectors[sector] {
                known[from..].fill(0);
            }
            self.sectors[sector] = dedup(std::mem::take(&mut self.sectors[sector]));
        }
    }

    /// The same, where a crash may undo it.
    pub fn cut_unsure(&mut self, at: usize) {
        let before = self.sectors.clone();
        self.cut(at);
        for (sector, known) in self.sectors.iter_mut().zip(before) {
            for one in known {
                add(sector, one);
            }
        }
    }

    /// The power went, or the process.
    pub fn crash(&mut self, power: bool) {
        self.whole.clear();
        self.torn = true;
        self.sure = power;
    }

    /// It was read from byte `at` on: whether it may be that.
    pub fn read(&mut self, at: usize, found: &[u8]) -> Result<(), String> {
        assert!(!self.torn, "a torn part is adopted");
        let end = at + found.len();
        let kept: Vec<Content> = self
            .whole
            .iter()
            .filter(|content| content[at..end] == *found)
            .cloned()
            .collect();
        if kept.is_empty() {
            return Err(differences(at, found, &self.whole));
        }
        self.whole = kept;
        Ok(())
    }

    /// The first read after a crash, of all of the part that the file has: whether it may be that,
    /// looking at the bytes `mask` only.
    pub fn adopt(&mut self, found: &[u8], mask: std::ops::Range<usize>) -> Result<(), String> {
        let mut all = found.to_vec();
        all.resize(self.sectors.len() * SECTOR, 0);
        let mask = mask.start..mask.end.min(found.len()).max(mask.start);
        let in_whole = |content: &Content| content[mask.clone()] == all[mask.clone()];
        if !self.whole.iter().any(in_whole) {
            for (number, known) in self.sectors.iter().enumerate() {
                let start = number * SECTOR;
                let from = mask.start.clamp(start, start + SECTOR);
                let to = mask.end.clamp(start, start + SECTOR);
                let (a, b) = (from - start, to - start);
                let is_known = |found: &[u8], a: usize, b: usize| {
                    let mut known = known.iter();
                    known.any(|one| one[a..b] == *found)
                };
                // The file's end on the disk was within the sector, and stayed there.
                let data = all[from..to].iter().rposition(|byte| *byte != 0);
                let data = from + data.map_or(0, |last| last + 1);
                let is_torn = is_known(&all[from..data], a, data - start)
                    && is_known(&all[data..to], data - start, b);
                if !is_known(&all[from..to], a, b) && !is_torn {
                    let known: Vec<Content> = known
                        .iter()
                        .map(|one| {
                            let mut content = all.clone();
                            content[start..start + SECTOR].copy_from_slice(one);
                            Arc::new(content)
                        })
                        .collect();
                    let text = differences(from, &all[from..to], &known);
                    return Err(format!("sector {number}: {text}"));
                }
            }
        }
        self.whole = vec![Arc::new(all)];
        self.torn = false;
        if self.sure {
            self.synced();
        }
        Ok(())
    }

    /// A write is about to be made: it may reach the disk, whatever comes of it.
    pub fn may_be_written(&mut self, at: usize, bytes: &[u8]) {
        let contents = self.whole.iter().map(|c| Self::written(c, at, bytes));
        let contents: Vec<Content> = contents.collect();
        self.may_land(&contents, at, bytes.len());
    }

    /// It is known to be this, here and on the disk.
    pub fn is_now(&mut self, found: &[u8]) {
        let mut all = found.to_vec();
        all.resize(self.sectors.len() * SECTOR, 0);
        self.whole = vec![Arc::new(all)];
        self.torn = false;
        self.synced();
    }
}

fn runs(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last = None;
    for (at, byte) in bytes.iter().enumerate() {
        if last != Some(*byte) {
            if text.len() > 100 {
                text.push_str(" ...");
                break;
            }
            text.push_str(&format!(" {at}:{byte:02x}"));
        }
        last = Some(*byte);
    }
    text
}

fn differences(at: usize, found: &[u8], known: &[Content]) -> String {
    let mut text = format!("found{}", runs(found));
    for content in known {
        let expected = &content[at..at + found.len()];
        let first = expected.iter().zip(found).position(|(a, b)| a != b);
        let last = expected.iter().zip(found).rposition(|(a, b)| a != b);
        text.push_str(&format!(
            "\n  not{} (differs from {:?} to {:?}, counted from byte {at})",
            runs(expected),
            first,
            last
        ));
    }
    text
}

/// One file.
#[derive(Debug, Clone)]
pub struct FileModel {
    pub part: usize,
    pub len: u64,
    /// Lengths that may be found after a crash.
    pub lens: Vec<u64>,
    pub parts: Vec<Part>,
    /// It is there after a crash.
    pub sure: bool,
}

/// Parts of a file at most.
pub const MAX_PARTS: usize = 12;

impl FileModel {
    pub fn new(part: usize, sure: bool) -> Self {
        Self {
            part,
            len: 0,
            lens: vec![0],
            parts: (0..MAX_PARTS).map(|_| Part::zeros(part)).collect(),
            sure,
        }
    }

    pub fn max_len(&self) -> u64 {
        (MAX_PARTS * self.part) as u64
    }

    /// Part, first byte in it, and place in the buffer.
    pub fn spans(&self, offset: u64, len: usize) -> Vec<(usize, usize, std::ops::Range<usize>)> {
        let mut spans = Vec::new();
        let (mut at, mut done) = (offset as usize, 0);
        while done < len {
            let run = (self.part - at % self.part).min(len - done);
            spans.push((at / self.part, at % self.part, done..done + run));
            at += run;
            done += run;
        }
        spans
    }

    /// Bytes of a part before the end of the file.
    pub fn len_of(&self, index: usize) -> usize {
        let start = (index * self.part) as u64;
        (self.len.saturating_sub(start) as usize).min(self.part)
    }

    pub fn parts_now(&self) -> usize {
        self.len.div_ceil(self.part as u64) as usize
    }

    pub fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            add(&mut self.lens, len);
        }
    }

    fn each_cut(&mut self, len: u64, cut: impl Fn(&mut Part, usize)) {
        for index in 0..self.parts.len() {
            let start = (index * self.part) as u64;
            let at = (len.saturating_sub(start) as usize).min(self.part);
            cut(&mut self.parts[index], at);
        }
    }

    /// The length was set, durably or perhaps not.
    pub fn set_len(&mut self, len: u64, sure: bool) {
        self.len = len;
        if sure {
            self.lens = vec![len];
            self.each_cut(len, Part::cut);
        } else {
            add(&mut self.lens, len);
            self.each_cut(len, Part::cut_unsure);
        }
    }

    pub fn synced(&mut self) {
        self.lens = vec![self.len];
        self.sure = true;
        for part in &mut self.parts {
            part.synced();
        }
    }

    pub fn crash(&mut self, power: bool) {
        for part in &mut self.parts {
            part.crash(power);
        }
    }

    /// What a reopened store says of its length.
    pub fn found(&mut self, len: u64, power: bool) -> Result<(), String> {
        if !self.lens.contains(&len) {
            return Err(format!("length {len}, not one of {:?}", self.lens));
        }
        self.len = len;
        if power {
            self.lens = vec![len];
            self.sure = true;
        }
        self.each_cut(len, Part::cut);
        Ok(())
    }
}
