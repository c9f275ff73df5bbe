//! The record of what was acknowledged: what must be found in S3 afterwards.
//!
//! Owns: a counter for each writer, and the file that survives `kill -9` where one is asked for.
//! Rows of one writer are numbered from 0 and acknowledged in order, so that a count names all
//! of them and memory does not grow with the rows.
//!
//! ```text
//! seed 1 row_bytes 1024 writers 4
//! 0 0 32                             writer, first row, one past the last row
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

/// What has been acknowledged so far.
#[derive(Debug)]
pub struct Acks {
    rows: Vec<AtomicU64>,
    file: Option<File>,
}

/// What was acknowledged, and how its rows were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub seed: u64,
    pub row_bytes: u32,
    /// Rows by writer.
    pub rows: Vec<u64>,
}

impl Acknowledged {
    pub fn total(&self) -> u64 {
        self.rows.iter().sum()
    }
}

impl Acks {
    /// Nothing acknowledged yet. The file must not exist: it would tell of another run.
    pub fn start(
        path: Option<&Path>,
        seed: u64,
        row_bytes: u32,
        writers: u32,
    ) -> Result<Self, Failure> {
        let open = |path: &Path| -> io::Result<File> {
            let mut file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(path)?;
            file.write_all(
                format!("seed {seed} row_bytes {row_bytes} writers {writers}\n").as_bytes(),
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
            rows: (0..writers).map(|_| AtomicU64::new(0)).collect(),
            file,
        })
    }

    /// Notes that `writer` has its rows from `first` to below `end`: to be called before it goes
    /// on. One write in append mode is in the file as a whole, whoever else writes, and stays
    /// there when the process is killed.
    pub fn note(&self, writer: u32, first: u64, end: u64) -> io::Result<()> {
        if let Some(mut file) = self.file.as_ref() {
            file.write_all(format!("{writer} {first} {end}\n").as_bytes())?;
        }
        if let Some(rows) = self.rows.get(writer as usize) {
            rows.store(end, Ordering::Release);
        }
        Ok(())
    }

    /// Rows by writer.
    pub fn rows(&self) -> Vec<u64> {
        self.rows
            .iter()
            .map(|rows| rows.load(Ordering::Acquire))
            .collect()
    }

    /// Rows of all writers.
    pub fn total(&self) -> u64 {
        self.rows
            .iter()
            .map(|rows| rows.load(Ordering::Acquire))
            .sum()
    }
}

/// What the file of an earlier life holds.
pub fn read(path: &Path) -> Result<Acknowledged, Failure> {
    let fail = |error| Failure::io(format!("--ack-log {}", path.display()), error);
    let mut lines = BufReader::new(File::open(path).map_err(fail)?).lines();
    let head = lines.next().transpose().map_err(fail)?.unwrap_or_default();
    let mut acknowledged =
        parse_head(&head).ok_or_else(|| fail(bad(format!("its first line is {head:?}"))))?;
    for line in lines {
        let line = line.map_err(fail)?;
        let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        let next = match numbers.as_deref() {
            Some([writer, first, end]) => usize::try_from(*writer)
                .ok()
                .and_then(|writer| acknowledged.rows.get_mut(writer))
                .filter(|rows| **rows == *first && end > first)
                .map(|rows| (rows, *end)),
            _ => None,
        };
        match next {
            Some((rows, end)) => *rows = end,
            None => return Err(fail(bad(format!("it has the line {line:?}")))),
        }
    }
    Ok(acknowledged)
}

fn parse_head(head: &str) -> Option<Acknowledged> {
    let words: Vec<&str> = head.split(' ').collect();
    let ["seed", seed, "row_bytes", row_bytes, "writers", writers] = words[..] else {
        return None;
    };
    let writers: u32 = writers.parse().ok()?;
    Some(Acknowledged {
        seed: seed.parse().ok()?,
        row_bytes: row_bytes.parse().ok()?,
        rows: (writers <= 1024).then(|| vec![0; writers as usize])?,
    })
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
