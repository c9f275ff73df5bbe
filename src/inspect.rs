//! Looking at a directory without opening it: beside the process that has it, or after one that
//! crashes whenever it opens it.
//!
//! Owns: what is found, put together. Does not own: what the records of each layer mean (`queue`,
//! `part`, `checkpoint`).
//!
//! 1. Nothing is written, renamed or removed, no lock is taken, nobody is asked who is not this
//!    disk, and no record is acted on.
//! 2. What cannot be read is said, and what can be read is shown all the same; only a journal of a
//!    format that this release does not know is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::restore;
use crate::checkpoint::stand;
use crate::error::{Error, Result};
use crate::journal;
use crate::journal::fs::{Fs, OsFs, if_there};
use crate::part;
use crate::queue;

pub use crate::checkpoint::stand::InspectedStand;
pub use crate::journal::{Damage, SegmentInfo};
pub use crate::part::inspect::InspectedFile;
pub use crate::queue::inspect::{InspectedAbort, InspectedRequest, InspectedTask, Unreadable};

/// The folders whose sizes are told.
const FOLDERS: [&str; 7] = [
    "segments", "spare", "payload", "staging", "damage", "parts", "headers",
];

/// Files of one folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FolderSize {
    /// How many.
    pub files: u64,
    /// The sum of their lengths, holes included.
    pub bytes: u64,
}

/// What is in the directory of a queue or a part store.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The directory.
    pub dir: PathBuf,
    /// Who opened it last, as that process wrote itself down. It may be gone.
    pub last_holder: Option<String>,
    /// The journal's random id, in hexadecimal; write ids of objects in S3 begin with it.
    pub journal_id: Option<String>,
    /// Whether it was shut down in order and not opened since. If not, its process runs, or died.
    pub clean: bool,
    /// Whether it is a copy, or was moved: then nothing is sent until it is adopted.
    pub moved: bool,
    /// Whether it is the directory of a part store.
    pub is_part_store: bool,
    /// The checkpoint from which it is being restored, where that was begun and not ended; 0 where
    /// that is not known.
    pub unfinished_restore: Option<u64>,
    /// All tasks that have not ended, in order of submission.
    pub tasks: Vec<InspectedTask>,
    /// Bytes of their bodies.
    pub task_bytes: u64,
    /// How many of them are in quarantine.
    pub quarantined: u64,
    /// How many of them are suspected of the last crash, or of one before it.
    pub suspects: u64,
    /// Requests of this directory that were given up and may still land.
    pub given_up: Vec<InspectedRequest>,
    /// Uploads in parts that are to be aborted.
    pub aborts: Vec<InspectedAbort>,
    /// Files in parts.
    pub files: Vec<InspectedFile>,
    /// Files that were dropped, and that a checkpoint may still have.
    pub dropped_files: u64,
    /// What it stands on: a part store's, once it has asked for its turn.
    pub stand: Option<InspectedStand>,
    /// What in the journal is damaged.
    pub damage: Vec<Damage>,
    /// Records that are whole, and that this release cannot read.
    pub unreadable: Vec<Unreadable>,
    /// The journal's segments, oldest first.
    pub segments: Vec<SegmentInfo>,
    /// Files and bytes, by folder.
    pub folders: BTreeMap<String, FolderSize>,
}

/// Reads the directory of a queue or a part store, and changes nothing. Takes no lock and asks
/// nothing of S3: it may be called beside a process that has the directory open (it then sees some
/// instant of the last moments), and of one that no process can open.
///
/// Blocks on the disk: it reads the whole journal, but no bodies. Memory is bounded by the number
/// of tasks and files, not by their bytes.
///
/// # Errors
/// [`Error::Directory`] where it cannot be read, or is of nobody; [`Error::Version`] where it is
/// of a format that this release does not know.
///
/// ```no_run
/// let found = s3_writeback::inspect("/var/lib/engine/queue")?;
/// for task in found.tasks.iter().filter(|task| task.suspect) {
///     println!("{} was in flight at {} crashes", task.key, task.crashes);
/// }
/// # Ok::<(), s3_writeback::Error>(())
/// ```
pub fn inspect(dir: impl AsRef<Path>) -> Result<Inspection> {
    inspect_on(&OsFs, dir.as_ref())
}

/// The same on another file system: for simulations.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_on(fs: &dyn Fs, dir: &Path) -> Result<Inspection> {
    let failed = |error: std::io::Error| Error::directory(dir, &error);
    fs.stat(dir).map_err(failed)?;
    let unfinished_restore = restore::unfinished(fs, dir)?;
    let read = journal::inspect(fs, dir)?;
    if read.journal_id.is_none() && read.segments.is_empty() && unfinished_restore.is_none() {
        let nobodys = "is not the directory of a queue or a part store";
        let error = std::io::Error::new(std::io::ErrorKind::NotFound, nobodys);
        return Err(failed(error));
    }
    let recovered = &read.recovered;
    let of_queue = queue::inspect::inspect(recovered);
    let of_parts = part::inspect::inspect(fs, dir, recovered);
    let mut unreadable = of_queue.unreadable;
    unreadable.extend(
        of_parts
            .unreadable
            .into_iter()
            .map(|(location, kind)| Unreadable { location, kind }),
    );
    let mut found_stand = None;
    for owner in &recovered.owners {
        if owner.kind == part::record::kind::STAND {
            found_stand = stand::inspect(owner);
            if found_stand.is_none() {
                let (location, kind) = (owner.location, owner.kind);
                unreadable.push(Unreadable { location, kind });
            }
        }
    }
    let tasks = of_queue.tasks;
    let count = |is: fn(&&InspectedTask) -> bool| tasks.iter().filter(is).count() as u64;
    Ok(Inspection {
        dir: dir.to_path_buf(),
        last_holder: read.last_holder,
        journal_id: read.journal_id.map(|id| format!("{id:032x}")),
        clean: recovered.clean,
        moved: recovered.moved,
        is_part_store: part::open::is_part_store(recovered),
        unfinished_restore,
        task_bytes: tasks.iter().map(|task| task.len).sum(),
        quarantined: count(|task| task.quarantined.is_some()),
        suspects: count(|task| task.suspect),
        tasks,
        given_up: of_queue.requests,
        aborts: of_queue.aborts,
        files: of_parts.files,
        dropped_files: of_parts.dropped,
        stand: found_stand,
        damage: read.recovered.damage,
        unreadable,
        segments: read.segments,
        folders: folders(fs, dir)?,
    })
}

fn folders(fs: &dyn Fs, dir: &Path) -> Result<BTreeMap<String, FolderSize>> {
    let mut folders = BTreeMap::new();
    for name in FOLDERS {
        let path = dir.join(name);
        let failed = |error: std::io::Error| Error::directory(&path, &error);
        let Some(names) = if_there(fs.read_dir(&path)).map_err(failed)? else {
            continue;
        };
        let mut size = FolderSize::default();
        for file in names {
            // Of a process beside this one: files come and go.
            let stat = if_there(fs.stat(&path.join(file))).map_err(failed)?;
            if let Some(stat) = stat.filter(|stat| stat.is_file) {
                size.files += 1;
                size.bytes += stat.len;
            }
        }
        folders.insert(name.to_owned(), size);
    }
    Ok(folders)
}
