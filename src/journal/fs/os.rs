//! The operating system's file system.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};

use super::{Fs, FsFile, FsLock, OpenMode, Stat};

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFs;

#[derive(Debug)]
struct OsFile(File);

#[derive(Debug)]
struct OsLock {
    // Closing it releases the lock.
    _file: File,
}

impl FsLock for OsLock {}

fn stat_of(meta: &fs::Metadata) -> Stat {
    Stat {
        len: meta.len(),
        modified: meta.modified().unwrap_or(UNIX_EPOCH),
        inode: meta.ino(),
        created: meta.created().ok(),
        is_dir: meta.is_dir(),
        is_file: meta.is_file(),
    }
}

const ZEROS: usize = 1024 * 1024;
const WARMED: usize = 256 * 1024;

impl FsFile for OsFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let have = self.0.metadata()?.len();
        if len <= have {
            return Ok(());
        }
        // Asked for as a whole first, so that a full disk says so before anything is written.
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        // Really written: an fdatasync over blocks that are only reserved has to turn them into
        // written ones in the file system's own journal, and takes twice as long.
        let zeros = vec![0; ZEROS.min(usize::try_from(len - have).unwrap_or(ZEROS))];
        let mut at = have;
        while at < len {
            let step = usize::try_from(len - at).unwrap_or(ZEROS).min(zeros.len());
            self.0.write_all_at(&zeros[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            other => return Ok(other?),
        }
        // A file system without holes: the bytes go, the blocks stay.
        let end = offset.saturating_add(len).min(self.0.metadata()?.len());
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut at = offset;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(ZEROS).min(zeros.len());
            self.0.write_all_at(&zeros[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        loop {
            let from = match rustix::fs::seek(&self.0, SeekFrom::Data(at)) {
                Ok(from) => from,
                // Nothing but a hole from here to the end.
                Err(rustix::io::Errno::NXIO) => return Ok(ranges),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                    return Ok(vec![(0, self.0.metadata()?.len())]);
                }
                Err(error) => return Err(error.into()),
            };
            let to = rustix::fs::seek(&self.0, SeekFrom::Hole(from))?;
            ranges.push((from, to - from));
            at = to;
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(stat_of(&self.0.metadata()?))
    }

    fn warm(&self, len: u64) {
        // Read, and thrown away: advice of the same (`WILLNEED`) was slower than doing nothing.
        let mut piece = vec![0; WARMED];
        let mut at = 0;
        while at < len {
            match self.0.read_at(&mut piece, at) {
                // Whoever needs it hears of the error.
                Ok(0) | Err(_) => return,
                Ok(read) => at += read as u64,
            }
        }
    }
}

impl Fs for OsFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Box::new(OsFile(options.open(path)?)))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(OsLock { _file: file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        Ok(stat_of(&fs::metadata(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
