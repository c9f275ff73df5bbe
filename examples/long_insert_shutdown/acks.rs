//! The record of what was acknowledged: what must be found in S3 afterwards.
//!
//! Owns: a counter for each series, and the file that survives `kill -9` where one is asked for.
//!
//! | engine | a series is | its counter is |
//! |---|---|---|
//! | log | a writer, whose rows are numbered from 0 and acknowledged in order | how many |
//! | page | a row, whose versions are numbered from 1 | the last that was acknowledged |
//!
//! One number says all there is of a series: memory does not grow with the run.
//!
//! ```text
//! seed 1 row_bytes 1024 writers 4
//! 0 0 32                             writer, first row, one past the last row
//!
//! seed 1 row_bytes 1024 rows 57344
//! 4711 3                             row, version
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

/// Series of one run at most.
pub const MAX_SERIES: u64 = 16_777_216;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// The rows of each writer.
    Writers,
    /// The versions of each row.
    Rows,
}

impl Series {
    fn name(self) -> &'static str {
        match self {
            Self::Writers => "writers",
            Self::Rows => "rows",
        }
    }
}

/// What has been acknowledged so far.
#[derive(Debug)]
pub struct Acks {
    kind: Series,
    counters: Vec<AtomicU64>,
    file: Option<File>,
}

/// What was acknowledged, and how its rows were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub kind: Series,
    pub seed: u64,
    pub row_bytes: u32,
    /// By series.
    pub counters: Vec<u64>,
}

impl Acknowledged {
    /// Rows that must be found.
    pub fn total(&self) -> u64 {
        match self.kind {
            Series::Writers => self.updates(),
            Series::Rows => self.counters.iter().filter(|version| **version > 0).count() as u64,
        }
    }

    /// Writes of rows that were acknowledged, or overtaken by one that was.
    pub fn updates(&self) -> u64 {
        self.counters.iter().sum()
    }
}

impl Acks {
    /// Nothing acknowledged yet. The file must not exist: it would tell of another run.
    pub fn start(
        path: Option<&Path>,
        seed: u64,
        row_bytes: u32,
        kind: Series,
        count: u64,
    ) -> Result<Self, Failure> {
        let open = |path: &Path| -> io::Result<File> {
            let mut file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(path)?;
            let name = kind.name();
            file.write_all(
                format!("seed {seed} row_bytes {row_bytes} {name} {count}\n").as_bytes(),
            )?;
            Ok(file)
        };
        let file = path
            .map(|path| {
                open(path)
                    .map_err(|error| Failure::io(format!("--ack-log {}", path.display()), error))
            })
            .transpose()?;
        Ok(Self {
            kind,
            counters: (0..count).map(|_| AtomicU64::new(0)).collect(),
            file,
        })
    }

    /// Notes that `writer` has its rows from `first` to below `end`: to be called before it goes
    /// on.
    pub fn note(&self, writer: u32, first: u64, end: u64) -> io::Result<()> {
        self.append(format_args!("{writer} {first} {end}\n"))?;
        self.raise(writer as usize, end);
        Ok(())
    }

    /// Notes that these versions of rows are safe: to be called before their writer goes on.
    pub fn note_versions(&self, rows: &[(u32, u64)]) -> io::Result<()> {
        let lines: String = rows
            .iter()
            .map(|(row, version)| format!("{row} {version}\n"))
            .collect();
        self.append(format_args!("{lines}"))?;
        for (row, version) in rows {
            self.raise(*row as usize, *version);
        }
        Ok(())
    }

    /// One write in append mode is in the file as a whole, whoever else writes, and stays there
    /// when the process is killed: killed within one, it is the last and ends with half a line.
    fn append(&self, lines: std::fmt::Arguments<'_>) -> io::Result<()> {
        match self.file.as_ref() {
            Some(mut file) => file.write_all(lines.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    fn raise(&self, series: usize, to: u64) {
        if let Some(counter) = self.counters.get(series) {
            counter.fetch_max(to, Ordering::AcqRel);
        }
    }

    /// All of it, as it is now.
    pub fn acknowledged(&self, seed: u64, row_bytes: u32) -> Acknowledged {
        let counters = self.counters.iter();
        Acknowledged {
            kind: self.kind,
            seed,
            row_bytes,
            counters: counters.map(|c| c.load(Ordering::Acquire)).collect(),
        }
    }

    /// Writes of rows that were acknowledged.
    pub fn updates(&self) -> u64 {
        let counters = self.counters.iter();
        counters.map(|c| c.load(Ordering::Acquire)).sum()
    }
}

/// What the file of an earlier life holds.
pub fn read(path: &Path) -> Result<Acknowledged, Failure> {
    let fail = |error| Failure::io(format!("--ack-log {}", path.display()), error);
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let mut line = String::new();
    file.read_line(&mut line).map_err(fail)?;
    let head = line.trim_end_matches('\n');
    let mut acknowledged =
        parse_head(head).ok_or_else(|| fail(bad(format!("its first line is {head:?}"))))?;
    loop {
        line.clear();
        file.read_line(&mut line).map_err(fail)?;
        // Half a line: killed before it was written, its writer has not gone on.
        let Some(whole) = line.strip_suffix('\n') else {
            return Ok(acknowledged);
        };
        add_line(&mut acknowledged, whole)
            .ok_or_else(|| fail(bad(format!("it has the line {whole:?}"))))?;
    }
}

/// Adds one line; `None` where it does not fit what came before.
fn add_line(acknowledged: &mut Acknowledged, line: &str) -> Option<()> {
    let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
    let (series, first, to) = match (acknowledged.kind, numbers?.as_slice()) {
        (Series::Writers, [writer, first, end]) => (*writer, Some(*first), *end),
        (Series::Rows, [row, version]) => (*row, None, *version),
        _ => return None,
    };
    let counters = &mut acknowledged.counters;
    let counter = counters.get_mut(usize::try_from(series).ok()?)?;
    match first {
        Some(first) if *counter == first && to > first => *counter = to,
        Some(_) => return None,
        // Two writers of one row may be told in either order.
        None => *counter = to.max(*counter),
    }
    Some(())
}

fn parse_head(head: &str) -> Option<Acknowledged> {
    let words: Vec<&str> = head.split(' ').collect();
    let ["seed", seed, "row_bytes", row_bytes, kind, count] = words[..] else {
        return None;
    };
    let kind = [Series::Writers, Series::Rows]
        .into_iter()
        .find(|of| of.name() == kind)?;
    let count = count.parse::<u64>().ok().filter(|n| *n <= MAX_SERIES)?;
    Some(Acknowledged {
        kind,
        seed: seed.parse().ok()?,
        row_bytes: row_bytes.parse().ok()?,
        counters: vec![0; usize::try_from(count).ok()?],
    })
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
