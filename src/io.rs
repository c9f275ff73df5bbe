//! Where blocking calls run.
//!
//! Owns: the bound on threads that may wait for the device. Does not own: what they do there
//! (that is [`crate::journal::fs::Fs`]).
//!
//! `Fs` is a blocking trait. Production hands each call to the runtime's blocking pool, a
//! bounded number at a time; a simulation runs it inline, so that one thread and a seed decide
//! everything.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::random::Random;

/// Runs blocking closures for async callers.
#[derive(Debug, Clone)]
pub struct Io {
    mode: Mode,
}

#[derive(Debug, Clone)]
enum Mode {
    Pool {
        handle: Handle,
        threads: Arc<Semaphore>,
    },
    Inline,
    Slow {
        random: Random,
        most: Duration,
    },
}

impl Io {
    /// Runs closures on `handle`'s blocking pool, at most `threads` at a time.
    #[must_use]
    pub fn pool(handle: Handle, threads: usize) -> Self {
        Self {
            mode: Mode::Pool {
                handle,
                threads: Arc::new(Semaphore::new(threads.max(1))),
            },
        }
    }

    /// Runs closures at once on the calling thread: for simulations.
    #[must_use]
    pub fn inline() -> Self {
        Self { mode: Mode::Inline }
    }

    /// Runs closures on the calling thread, up to `most` of virtual time after they were handed
    /// over, and tells what came of them up to `most` later: for simulations of a disk that takes
    /// its time.
    #[must_use]
    pub fn slow(seed: u64, most: Duration) -> Self {
        let random = Random::new(Some(seed));
        Self {
            mode: Mode::Slow { random, most },
        }
    }

    /// Runs `work` where it may block and returns what it returned.
    ///
    /// # Errors
    /// An [`io::Error`] of kind `Other` when `work` panicked or the pool is gone.
    ///
    /// # Cancel safety
    /// Before `work` has started, dropping the future prevents it. Afterwards `work` runs to its
    /// end and its result is dropped: anything it must hand back has to clean up in its `Drop`.
    pub async fn run<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match &self.mode {
            Mode::Inline => Ok(work()),
            Mode::Slow { random, most } => {
                tokio::time::sleep(random.up_to(*most)).await;
                let result = work();
                tokio::time::sleep(random.up_to(*most)).await;
                Ok(result)
            }
            Mode::Pool { handle, threads } => {
                let permit = Arc::clone(threads)
                    .acquire_owned()
                    .await
                    .map_err(|_| io::Error::other("the I/O pool is closed"))?;
                handle
                    .spawn_blocking(move || {
                        let _permit = permit;
                        work()
                    })
                    .await
                    .map_err(|error| io::Error::other(format!("an I/O thread failed: {error}")))
            }
        }
    }
}
