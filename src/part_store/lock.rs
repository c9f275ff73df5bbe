//! The lock operation: granted at once without an allocation, else waited for.
//!
//! Owns: the forms of waiting for a lock, as [`Operation`](crate::op::Operation) has them for
//! everything else. Decides nothing.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::Result;
use crate::op::{Operation, Waiting};
use crate::part::state::{Mode, Status};

use super::Locker;
use super::file::File;
use super::guard::{Guard, OwnedGuard};

/// A lock that has not been asked for: choose how to wait for it, as with an
/// [`Op`](crate::Op).
#[derive(Debug)]
#[must_use = "a lock is not asked for until it is awaited or waited for"]
pub struct Lock<'a> {
    file: &'a File,
    index: u32,
    mode: Mode,
    locker: &'a Locker,
    deadline: Option<Duration>,
}

impl<'a> Lock<'a> {
    pub(super) fn new(file: &'a File, index: u32, mode: Mode, locker: &'a Locker) -> Self {
        Self {
            file,
            index,
            mode,
            locker,
            deadline: None,
        }
    }

    /// The same lock with another deadline. Default: the store's `op_deadline`.
    pub fn within(self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// The lock, if nothing at all is in the way.
    #[inline]
    fn at_once(&self) -> Option<Guard<'a>> {
        let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
        // Entries of parts that do not exist are not made.
        if u64::from(self.index) >= file.parts_of(file.len()) {
            return None;
        }
        let word = &file.header.entry(self.index).word;
        let (key, locker) = (file.key(self.index), &self.locker.state);
        let tried = parts.locks.try_lock(word, key, self.mode, locker);
        let Ok((place, now)) = tried else { return None };
        let here = matches!(now.status(), Status::Loaded | Status::Zero)
            && u64::from(self.index) < file.cutting_from()
            && file.check(self.index).is_ok();
        let guard = Guard::new(self.file, self.locker, self.index, self.mode, word, place);
        if here {
            return Some(guard);
        }
        // Not here, or cut off between the look and the lock: given back, and asked for anew.
        drop(guard);
        None
    }

    /// The rest of the way, where the first look was not enough.
    #[cold]
    fn slow(&self) -> Operation<'a, Guard<'a>> {
        let (file, locker, index, mode) = (self.file, self.locker, self.index, self.mode);
        let parts = &file.inner.parts;
        let deadline = self.deadline.unwrap_or(parts.config.queue.op_deadline);
        let work = async move {
            let guard = OwnedGuard::get(file, locker, index, mode).await?;
            Ok(guard.into_guard(file, locker))
        };
        let why = move || {
            let (parts, file) = (&file.inner.parts, &file.inner.file);
            let held_by_us = locker.state.holds(file.key(index)).is_some();
            match parts.in_the_way(file, index) {
                Some(error) if held_by_us => error,
                _ => parts
                    .locks
                    .busy(file.part(index), file.key(index), mode, &locker.state),
            }
        };
        Operation::new(&file.inner.driver, deadline, work, why)
    }

    /// Blocks the calling thread until it has the lock or the deadline has passed.
    ///
    /// # Errors
    /// As [`File::lock`]; [`Error::WouldBlockRuntime`] where it would have to wait on a thread of
    /// the runtime that drives the store.
    pub fn wait(self) -> Result<Guard<'a>> {
        match self.at_once() {
            Some(guard) => Ok(guard),
            None => self.slow().wait(),
        }
    }

    /// Takes the lock at once, or says why it is not to be had at once.
    ///
    /// # Errors
    /// As [`File::lock`]; [`Error::Locked`], [`Error::Loading`] or [`Error::NoRoom`] with what is
    /// in the way.
    #[inline]
    pub fn now(self) -> Result<Guard<'a>> {
        match self.at_once() {
            Some(guard) => Ok(guard),
            None => self.slow().now(),
        }
    }
}

impl<'a> IntoFuture for Lock<'a> {
    type Output = Result<Guard<'a>>;
    type IntoFuture = LockFuture<'a>;

    fn into_future(self) -> LockFuture<'a> {
        LockFuture(State::Start(self))
    }
}

/// The future of a [`Lock`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct LockFuture<'a>(State<'a>);

#[derive(Debug)]
enum State<'a> {
    Start(Lock<'a>),
    Waits(Waiting<'a, Guard<'a>>),
}

impl<'a> Future for LockFuture<'a> {
    type Output = Result<Guard<'a>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.0 {
                State::Start(lock) => {
                    if let Some(guard) = lock.at_once() {
                        return Poll::Ready(Ok(guard));
                    }
                    let waits = lock.slow().into_future();
                    this.0 = State::Waits(waits);
                }
                State::Waits(waits) => return Pin::new(waits).poll(context),
            }
        }
    }
}

impl OwnedGuard {
    /// Gets a lock, in its turn, and has the part here.
    async fn get(file: &File, locker: &Locker, index: u32, mode: Mode) -> Result<Self> {
        let (parts, by) = (&file.inner.parts, Some(&locker.state));
        let _counted = parts.checkpointing(Some(&locker.state));
        let held = Self::lock(file, locker, index, mode).await?;
        parts.present(&file.inner.file, index, by).await?;
        Ok(held)
    }

    /// Gets a lock, in its turn.
    pub(super) async fn lock(file: &File, locker: &Locker, index: u32, mode: Mode) -> Result<Self> {
        let (parts, part_file) = (&file.inner.parts, &file.inner.file);
        let words: Arc<dyn crate::part::wait::Words> = Arc::clone(part_file) as _;
        loop {
            let (part, key) = (part_file.part(index), part_file.key(index));
            part_file.check(index)?;
            let want = crate::part::state::Want::Mode(mode);
            let place = parts
                .locks
                .lock(&words, part, key, want, &locker.state)
                .await?;
            let now = Self::new(file, locker, index, mode, place);
            part_file.check(index)?;
            if u64::from(index) < part_file.cutting_from() {
                return Ok(now);
            }
            // Behind the back of who is cutting it off: he looked before we were there.
            drop(now);
            part_file.uncut().await;
        }
    }
}
