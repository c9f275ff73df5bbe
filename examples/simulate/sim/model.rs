//! What the files may look like: the reference that everything is compared with.
//!
//! Owns: the history of every register of a directory's files, what a read, a crash and a
//! checkpoint may show of it, and the failures that it tells. Does not own: doing anything.
//!
//! A file is registers: whether it is there, its length, and each [`UNIT`] bytes of it, which hold
//! one number over and over. Whatever changes a file is an *act*, which puts values into
//! registers, and which has begun, and has ended or not.
//!
//! 1. A read shows the last value whose act has ended, or one whose act began after it and was cut
//!    off.
//! 2. After a kill or a power cut it shows any value from the last synced one on. After a kill the
//!    earlier ones may come back with the next power cut, until a sync.
//! 3. A checkpoint shows what was there in one instant between its line being asked for and its
//!    being told: every act is wholly before or after it where it is one step, and where one act
//!    ended before another began, the other is not in it alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are written as one: a sector, so that no power cut tears them.
pub const UNIT: u64 = 512;
/// What a unit holds of which only a part was written: a write that failed may leave that.
pub const TORN: u64 = u64::MAX;

/// What has a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reg {
    /// Whether there is such a file: 1 or 0.
    There(u64),
    /// Its length in bytes.
    Len(u64),
    /// The number that fills a unit of it; 0 where nothing was written.
    Unit(u64, u64),
}

/// What puts values into registers.
#[derive(Debug)]
pub struct Act {
    /// When it began; its name as well.
    pub id: u64,
    /// When it ended; 0 where it has not.
    done: AtomicU64,
    is_one_step: bool,
}

impl Act {
    fn done(&self) -> Option<u64> {
        Some(self.done.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }
}

/// A value, and who put it there.
#[derive(Debug, Clone)]
pub struct Put {
    value: u64,
    act: Arc<Act>,
}

impl Put {
    /// Whether it was put there at all, nobody knows.
    fn cut_off(&mut self) {
        self.act = Arc::new(Act {
            id: self.act.id,
            done: AtomicU64::new(0),
            is_one_step: false,
        });
    }

    fn may_be(&self, value: u64) -> bool {
        self.value == value || (value == TORN && self.act.done().is_none())
    }
}

/// What is known of one register: the first value cannot be lost, the others came after it.
#[derive(Debug, Clone)]
struct History {
    puts: Vec<Put>,
    /// What happened since it was last looked at: then which of them it is, nobody knows.
    crash: Option<Crash>,
}

/// How a process ended that was not shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// What was written stays, what was to be written does not.
    Kill,
    /// What was not synced stays or not.
    PowerCut,
}

impl History {
    fn of(value: u64, act: &Arc<Act>) -> Self {
        Self {
            puts: vec![Put {
                value,
                act: Arc::clone(act),
            }],
            crash: None,
        }
    }

    /// The last one that is sure to have been there.
    fn last_done(&self) -> usize {
        let ended = |put: &Put| put.act.done().is_some();
        self.puts.iter().rposition(ended).unwrap_or(0)
    }

    fn first_allowed(&self) -> usize {
        match self.crash {
            Some(_) => 0,
            None => self.last_done(),
        }
    }
}

/// What a checkpoint may show: of each register the value that was sure when its line was asked
/// for, and all that began since.
#[derive(Debug, Clone)]
pub struct Line {
    owner: u64,
    is_open: bool,
    regs: BTreeMap<Reg, Vec<Put>>,
}

/// The lines of all owners of a prefix, by when they were asked for.
pub type Lines = BTreeMap<u64, Line>;

/// Lines that are kept: more than checkpoints are retained.
const MOST_LINES: usize = 256;

/// What a world has one of: the count of everything that happens, and the lines.
#[derive(Debug, Default)]
pub struct Chronicle {
    tick: u64,
    lines: Lines,
}

/// The files of one directory.
#[derive(Debug)]
pub struct Model {
    owner: u64,
    founder: Arc<Act>,
    regs: BTreeMap<Reg, History>,
}

fn tell(puts: &[Put]) -> String {
    let each = puts.iter().map(|put| match put.act.done() {
        Some(done) => format!("{} ({}..{done})", put.value, put.act.id),
        None => format!("{} ({}..)", put.value, put.act.id),
    });
    each.collect::<Vec<_>>().join(", ")
}

impl Chronicle {
    fn next(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Of the owner whose checkpoints nobody tells any more, none is added to.
    pub fn close(&mut self, owner: u64) {
        for line in self.lines.values_mut().filter(|line| line.owner == owner) {
            line.is_open = false;
        }
    }

    /// A checkpoint of this line was told: what begins now is not in it.
    pub fn told(&mut self, at: u64) {
        let Some(owner) = self.lines.get(&at).map(|line| line.owner) else {
            return;
        };
        for (_, line) in self.lines.range_mut(..=at) {
            if line.owner == owner {
                line.is_open = false;
            }
        }
    }

    /// Whose line it is.
    pub fn owner_of(&self, at: u64) -> Option<u64> {
        self.lines.get(&at).map(|line| line.owner)
    }

    /// All registers that a line knows of.
    pub fn regs_of(&self, at: u64) -> Vec<Reg> {
        let line = self.lines.get(&at).map(|line| &line.regs);
        line.into_iter().flatten().map(|(reg, _)| *reg).collect()
    }

    /// Whether what a checkpoint shows can have been there in one instant of its line.
    pub fn check(&self, at: u64, shown: &BTreeMap<Reg, u64>) -> Result<(), String> {
        let Some(line) = self.lines.get(&at) else {
            return Err(format!("nobody asked for a line at {at}"));
        };
        line.check(shown)
            .map_err(|text| format!("the line asked for at {at}: {text}"))
    }
}

/// Where the value that is shown stands in a history: the first and the last place it may be at.
#[derive(Debug, Clone, Copy)]
struct Found {
    first: usize,
    last: usize,
}

impl Line {
    fn check(&self, shown: &BTreeMap<Reg, u64>) -> Result<(), String> {
        let mut found = BTreeMap::new();
        for (reg, value) in shown {
            let Some(puts) = self.regs.get(reg) else {
                if *value == 0 {
                    continue;
                }
                return Err(format!("{reg:?} is {value}, and was never written"));
            };
            let at = |put: &Put| put.may_be(*value);
            match (puts.iter().position(at), puts.iter().rposition(at)) {
                (Some(first), Some(last)) => {
                    found.insert(*reg, Found { first, last });
                }
                _ => {
                    let puts = tell(puts);
                    return Err(format!("{reg:?} is {value} and not one of {puts}"));
                }
            }
        }
        self.one_step_is_whole(&found)?;
        self.nothing_is_missing(&found)
    }

    /// Of an act that is one step, all is shown or nothing.
    fn one_step_is_whole(&self, found: &BTreeMap<Reg, Found>) -> Result<(), String> {
        let mut acts: BTreeMap<u64, (Reg, bool)> = BTreeMap::new();
        for (reg, found) in found {
            let puts = self.regs.get(reg).into_iter().flatten().enumerate();
            for (at, put) in puts.filter(|(at, put)| *at > 0 && put.act.is_one_step) {
                // What it put there may be what was there before; and whether one that was cut off
                // came before what is shown, nobody knows.
                let has_ended = put.act.done().is_some();
                let is_in = match at {
                    at if found.last < at => false,
                    at if found.first == at => true,
                    at if found.first > at && has_ended => true,
                    _ => continue,
                };
                match acts.get(&put.act.id) {
                    Some((other, other_is_in)) if *other_is_in != is_in => {
                        return Err(format!(
                            "half of the step {}: {reg:?} has it: {is_in}, {other:?}: {}",
                            put.act.id, !is_in
                        ));
                    }
                    _ => drop(acts.insert(put.act.id, (*reg, is_in))),
                }
            }
        }
        Ok(())
    }

    /// What had ended before something began that is shown is shown as well.
    fn nothing_is_missing(&self, found: &BTreeMap<Reg, Found>) -> Result<(), String> {
        let sure = found.iter().filter(|(reg, found)| {
            matches!(reg, Reg::Unit(..)) && found.first == found.last && found.first > 0
        });
        let latest = sure.filter_map(|(reg, found)| {
            let put = self.regs.get(reg)?.get(found.first)?;
            Some((put.act.id, *reg))
        });
        let Some((began, with)) = latest.max() else {
            return Ok(());
        };
        for (reg, found) in found {
            for put in self
                .regs
                .get(reg)
                .into_iter()
                .flatten()
                .skip(found.last + 1)
            {
                if put.act.done().is_some_and(|done| done < began) {
                    return Err(format!(
                        "{with:?} has act {began}, and {reg:?} lacks act {}, which had ended",
                        put.act.id
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Model {
    /// An empty directory.
    pub fn new(chronicle: &mut Chronicle) -> Self {
        let at = chronicle.next();
        let founder = Act {
            id: at,
            done: AtomicU64::new(at),
            is_one_step: false,
        };
        Self {
            owner: at,
            founder: Arc::new(founder),
            regs: BTreeMap::new(),
        }
    }

    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// Now, as the chronicle counts.
    pub fn now(&self, chronicle: &mut Chronicle) -> u64 {
        chronicle.next()
    }

    /// An act begins: `puts` says what it puts where, by its id.
    pub fn begin(
        &mut self,
        chronicle: &mut Chronicle,
        is_one_step: bool,
        puts: impl FnOnce(u64) -> Vec<(Reg, u64)>,
    ) -> Arc<Act> {
        let id = chronicle.next();
        let act = Arc::new(Act {
            id,
            done: AtomicU64::new(0),
            is_one_step,
        });
        for (reg, value) in puts(id) {
            let put = Put {
                value,
                act: Arc::clone(&act),
            };
            let open = chronicle.lines.values_mut();
            for line in open.filter(|line| line.is_open && line.owner == self.owner) {
                let founder = &self.founder;
                line.regs
                    .entry(reg)
                    .or_insert_with(|| History::of(0, founder).puts)
                    .push(put.clone());
            }
            self.history(reg).puts.push(put);
        }
        act
    }

    /// It has ended well.
    pub fn end(&mut self, chronicle: &mut Chronicle, act: &Act) {
        act.done.store(chronicle.next(), Ordering::Relaxed);
    }

    fn history(&mut self, reg: Reg) -> &mut History {
        let founder = &self.founder;
        self.regs
            .entry(reg)
            .or_insert_with(|| History::of(0, founder))
    }

    /// What it was last known to be.
    pub fn last(&self, reg: Reg) -> u64 {
        self.regs.get(&reg).map_or(0, |history| {
            history
                .puts
                .get(history.last_done())
                .map_or(0, |put| put.value)
        })
    }

    /// It was seen to be `value`, while nobody changes it.
    pub fn seen(&mut self, reg: Reg, value: u64) -> Result<(), String> {
        let founder = Arc::clone(&self.founder);
        let history = self.history(reg);
        let from = history.first_allowed();
        let at = history.puts.iter().rposition(|put| put.may_be(value));
        let Some(at) = at.filter(|at| *at >= from) else {
            let (before, may) = history.puts.split_at(from);
            let (before, may) = (tell(before), tell(may));
            return Err(format!(
                "{reg:?} is {value} and not one of {may} (before: {before})"
            ));
        };
        if history.crash.take() == Some(Crash::PowerCut) {
            *history = History::of(value, &founder);
        } else {
            // What was cut off after it never happened.
            history.puts.truncate(at + 1);
            if let Some(put) = history
                .puts
                .get_mut(at)
                .filter(|put| put.act.done().is_none())
            {
                put.value = value;
                let of_its_own = Act {
                    id: put.act.id,
                    done: AtomicU64::new(put.act.id),
                    is_one_step: put.act.is_one_step,
                };
                put.act = Arc::new(of_its_own);
            }
        }
        Ok(())
    }

    /// Nobody can see it any more: it is nothing.
    pub fn gone(&mut self, reg: Reg) {
        let founder = Arc::clone(&self.founder);
        *self.history(reg) = History::of(0, &founder);
    }

    /// What had ended by then cannot be lost.
    pub fn synced(&mut self, since: u64, which: impl Fn(Reg) -> bool) {
        for (reg, history) in &mut self.regs {
            if history.crash.is_some() || !which(*reg) {
                continue;
            }
            let ended = |put: &Put| put.act.done().is_some_and(|done| done <= since);
            if let Some(at) = history.puts.iter().rposition(ended) {
                drop(history.puts.drain(..at));
            }
        }
    }

    /// The process ended like this.
    pub fn crash(&mut self, how: Crash) {
        for history in self.regs.values_mut() {
            history.crash = (history.puts.len() > 1).then_some(how);
        }
    }

    /// A line is asked for; its name.
    pub fn line(&self, chronicle: &mut Chronicle) -> u64 {
        let at = chronicle.next();
        let sure = |history: &History| {
            let from = history.first_allowed();
            let mut puts = history.puts.get(from..).unwrap_or_default().to_vec();
            if history.crash.is_some() {
                // Each of them may be gone, whatever came after it.
                puts.iter_mut().for_each(Put::cut_off);
            }
            puts
        };
        let regs = self.regs.iter().map(|(reg, history)| (*reg, sure(history)));
        let line = Line {
            owner: self.owner,
            is_open: true,
            regs: regs.collect(),
        };
        chronicle.lines.insert(at, line);
        while chronicle.lines.len() > MOST_LINES {
            chronicle.lines.pop_first();
        }
        at
    }

    /// Another directory, which begins with what a checkpoint has.
    pub fn restored(chronicle: &mut Chronicle, shown: &BTreeMap<Reg, u64>) -> Self {
        let mut model = Self::new(chronicle);
        let founder = Arc::clone(&model.founder);
        for (reg, value) in shown {
            model.regs.insert(*reg, History::of(*value, &founder));
        }
        model
    }

    /// All that it knows of.
    pub fn regs(&self) -> Vec<Reg> {
        self.regs.keys().copied().collect()
    }
}
