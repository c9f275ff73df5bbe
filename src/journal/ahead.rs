//! Reading ahead: a disk gives more to several who read than to one.
//!
//! Owns: who reads which file ahead of a reader that takes one after the other, and how far. Does
//! not own: what is read, which is thrown away: whoever reads next finds it in memory.

use parking_lot::{Condvar, Mutex};

use super::fs::FsFile;

/// How many read at once.
const READERS: usize = 4;
/// Bytes that are read and not needed yet: they are in the page cache and nowhere else.
const MOST: u64 = 256 * 1024 * 1024;
/// Less than this is read before anybody is ahead of anybody.
const WORTH_IT: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
struct At {
    /// The file that the reader is at.
    reader: usize,
    /// The next that nobody has read.
    next: usize,
    is_over: bool,
}

/// Where the reader is, and where those before it are.
#[derive(Debug)]
pub(super) struct Reads<'a> {
    files: &'a [(&'a dyn FsFile, u64)],
    at: Mutex<At>,
    moved: Condvar,
}

impl Reads<'_> {
    /// The reader begins with this one now.
    pub(super) fn has_come_to(&self, file: usize) {
        let at = &mut *self.at.lock();
        at.reader = file;
        // This one it reads itself.
        at.next = at.next.max(file + 1);
        self.moved.notify_all();
    }

    /// Bytes that are not needed yet.
    fn ahead(&self, at: &At) -> u64 {
        let files = self.files.get(at.reader + 1..at.next);
        files.into_iter().flatten().map(|(_, len)| len).sum()
    }

    fn read_ahead(&self) {
        loop {
            let (file, len) = {
                let mut at = self.at.lock();
                while !at.is_over && self.ahead(&at) >= MOST {
                    self.moved.wait(&mut at);
                }
                let next = self.files.get(at.next).filter(|_| !at.is_over);
                let Some(next) = next else {
                    return;
                };
                at.next += 1;
                *next
            };
            file.warm(len);
        }
    }
}

/// However the reader ends, those before it do.
struct Over<'a, 'f>(&'a Reads<'f>);

impl Drop for Over<'_, '_> {
    fn drop(&mut self) {
        self.0.at.lock().is_over = true;
        self.0.moved.notify_all();
    }
}

/// Has files read ahead for as long as `reader` goes through them, in order.
pub(super) fn while_reading<T>(
    files: &[(&dyn FsFile, u64)],
    reader: impl FnOnce(&Reads<'_>) -> T,
) -> T {
    let reads = Reads {
        files,
        at: Mutex::new(At {
            reader: 0,
            next: 1,
            is_over: false,
        }),
        moved: Condvar::new(),
    };
    let bytes: u64 = files.iter().map(|(_, len)| len).sum();
    let readers = if bytes > WORTH_IT { READERS } else { 0 };
    std::thread::scope(|scope| {
        let _over = Over(&reads);
        for _ in 0..readers {
            let named = std::thread::Builder::new().name("s3-writeback-io".to_owned());
            // Without it, it only takes longer.
            if let Err(error) = named.spawn_scoped(scope, || reads.read_ahead()) {
                tracing::debug!(%error, "nobody reads ahead");
            }
        }
        reader(&reads)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::fs::Stat;
    use super::*;

    const LEN: u64 = 16 << 20;

    type Warmed = Arc<(Mutex<BTreeMap<usize, usize>>, Condvar)>;

    /// Counts how often it was warmed.
    #[derive(Debug)]
    struct File(usize, Warmed);

    impl FsFile for File {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn preallocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn data_ranges(&self) -> io::Result<Vec<(u64, u64)>> {
            Ok(Vec::new())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }
        fn stat(&self) -> io::Result<Stat> {
            Ok(Stat {
                len: LEN,
                modified: SystemTime::UNIX_EPOCH,
                inode: 0,
                created: None,
                is_dir: false,
                is_file: true,
            })
        }
        fn warm(&self, len: u64) {
            assert_eq!(len, LEN);
            *self.1.0.lock().entry(self.0).or_default() += 1;
            self.1.1.notify_all();
        }
    }

    fn files(n: usize) -> (Vec<File>, Warmed) {
        let warmed = Warmed::default();
        let files = (0..n).map(|at| File(at, Arc::clone(&warmed)));
        (files.collect(), warmed)
    }

    fn of(files: &[File]) -> Vec<(&dyn FsFile, u64)> {
        files
            .iter()
            .map(|file| (file as &dyn FsFile, LEN))
            .collect()
    }

    #[test]
    fn each_is_read_once_and_never_further_ahead_than_that() {
        let (all, warmed) = files(100);
        let most = usize::try_from(MOST / LEN).expect("fits");
        while_reading(&of(&all), |reads| {
            for at in 0..all.len() {
                reads.has_come_to(at);
                // They come as far as they may, and no further.
                let last = (at + most).min(all.len() - 1);
                let mut seen = warmed.0.lock();
                while at < last && !seen.contains_key(&last) {
                    warmed.1.wait(&mut seen);
                }
                assert!(seen.keys().all(|file| *file <= last), "{at}: {seen:?}");
            }
        });
        let seen = warmed.0.lock();
        assert!(seen.values().all(|times| *times == 1), "{seen:?}");
        assert!(!seen.contains_key(&0), "the reader does that itself");
    }

    #[test]
    fn they_end_with_the_reader_wherever_it_is() {
        let (all, warmed) = files(1000);
        let given_up = while_reading(&of(&all), |reads| {
            reads.has_come_to(0);
            Err::<(), _>("damaged")
        });
        assert_eq!(given_up, Err("damaged"));
        assert!(warmed.0.lock().len() < 100);
    }

    #[test]
    fn what_is_small_is_left_alone() {
        let (all, warmed) = files(4);
        while_reading(&of(&all), |reads| reads.has_come_to(0));
        assert!(warmed.0.lock().is_empty());
    }
}
