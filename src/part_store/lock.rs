//! The lock operation: granted at once without an allocation, else waited for.
//!
//! Owns: the forms of waiting for a lock, as [`Operation`](crate::op::Operation) has them for
//! everything else. Decides nothing.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::Result;
use crate::op::{Operation, Waiting};
use crate::part::lock::InLine;
use crate::part::locker::Role;
use crate::part::state::{AtomicWord, Mode, Status, Want, Word};
use crate::part::wait::Request;

use super::Locker;
use super::file::File;
use super::guard::{Guard, OwnedGuard};

fn is_here(word: Word) -> bool {
    matches!(word.status(), Status::Loaded | Status::Zero)
}

/// A lock that has not been asked for: choose how to wait for it, as with an
/// [`Op`](crate::Op).
#[derive(Debug, Clone)]
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

    /// The same lock with another deadline. Default: the store's `op_deadline`. One of a second or
    /// more may be passed by twice `deadlock_timeout`, where the lock is awaited.
    pub fn within(self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// The part's word. Entries of parts that do not exist are not made.
    #[inline]
    fn word(&self) -> Option<&'a AtomicWord> {
        let file = &self.file.inner.file;
        (u64::from(self.index) < file.parts_of(file.len()))
            .then(|| &file.header.entry(self.index).word)
    }

    /// The lock, if nothing at all is in the way.
    #[inline]
    fn at_once(&self, word: &'a AtomicWord) -> Option<Guard<'a>> {
        let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
        let (key, locker) = (file.key(self.index), &self.locker.state);
        let tried = parts.locks.try_lock(word, key, self.mode, locker);
        let Ok((place, now)) = tried else { return None };
        let here = is_here(now)
            && parts.may_hold(locker)
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

    /// A place in the line of a part that is here, if others are all that is in the way.
    fn enter(&self, word: &'a AtomicWord, waker: &Waker) -> Option<InLine<'a>> {
        let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
        let within = self.deadline.unwrap_or(parts.config.queue.op_deadline);
        let here = is_here(word.get())
            && parts.may_hold(&self.locker.state)
            && u64::from(self.index) < file.cutting_from()
            && !file.is_dropped();
        // A checkpointer is counted while it waits: shutdown stops nothing that it needs before.
        let counted = self.locker.state.role == Role::Checkpointer;
        if !here || counted || within < LONG || within < parts.config.deadlock_timeout * 4 {
            return None;
        }
        let request = Request {
            word,
            key: file.key(self.index),
            want: Want::Mode(self.mode),
            locker: Some(&self.locker.state),
            within: Some(within),
            step: false,
        };
        parts.locks.enter(request, file, waker)
    }

    /// The lock that was waited for, if the part is still what it was.
    fn granted(&self, word: &'a AtomicWord) -> Option<Guard<'a>> {
        let (parts, file) = (&self.file.inner.parts, &self.file.inner.file);
        let key = file.key(self.index);
        let place = parts.locks.granted(key, self.mode, &self.locker.state);
        let guard = Guard::new(self.file, self.locker, self.index, self.mode, word, place);
        let here = is_here(word.get())
            && parts.may_hold(&self.locker.state)
            && u64::from(self.index) < file.cutting_from()
            && file.check(self.index).is_ok();
        here.then_some(guard)
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
    /// As [`File::lock`]; [`Error::WouldBlockRuntime`](crate::Error::WouldBlockRuntime) where it would have to wait on a thread of
    /// the runtime that drives the store.
    pub fn wait(self) -> Result<Guard<'a>> {
        match self.word().and_then(|word| self.at_once(word)) {
            Some(guard) => Ok(guard),
            None => self.slow().wait(),
        }
    }

    /// Takes the lock at once, or says why it is not to be had at once.
    ///
    /// # Errors
    /// As [`File::lock`]; [`Locked`](crate::Error::Locked), [`Loading`](crate::Error::Loading) or
    /// [`NoRoom`](crate::Error::NoRoom) with what is
    /// in the way.
    #[inline]
    pub fn now(self) -> Result<Guard<'a>> {
        match self.word().and_then(|word| self.at_once(word)) {
            Some(guard) => Ok(guard),
            None => self.slow().now(),
        }
    }
}

impl<'a> IntoFuture for Lock<'a> {
    type Output = Result<Guard<'a>>;
    type IntoFuture = LockFuture<'a>;

    fn into_future(self) -> LockFuture<'a> {
        LockFuture {
            lock: self,
            state: State::Start,
        }
    }
}

/// The future of a [`Lock`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct LockFuture<'a> {
    lock: Lock<'a>,
    state: State<'a>,
}

#[derive(Debug)]
enum State<'a> {
    Start,
    /// In line, without a timer of its own.
    InLine(InLine<'a>),
    /// Boxed: it is many times the size of the others, which are moved about.
    Waits(Box<Waiting<'a, Guard<'a>>>),
}

/// Deadlines from this on are kept by the store's detector, which looks every `deadlock_timeout`: a
/// timer for each wait would cost as much as the rest of it.
const LONG: Duration = Duration::from_secs(1);

impl<'a> Future for LockFuture<'a> {
    type Output = Result<Guard<'a>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let lock = &this.lock;
        loop {
            match &mut this.state {
                State::Start => {
                    if let Some(word) = lock.word() {
                        if let Some(guard) = lock.at_once(word) {
                            return Poll::Ready(Ok(guard));
                        }
                        if let Some(line) = lock.enter(word, context.waker()) {
                            this.state = State::InLine(line);
                            return Poll::Pending;
                        }
                    }
                }
                State::InLine(line) => {
                    if let Err(error) = std::task::ready!(Pin::new(&mut *line).poll(context)) {
                        return Poll::Ready(Err(error));
                    }
                    if let Some(guard) = lock.granted(line.words) {
                        return Poll::Ready(Ok(guard));
                    }
                }
                State::Waits(waits) => return Pin::new(waits).poll(context),
            }
            this.state = State::Waits(Box::new(lock.slow().into_future()));
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
        parts
            .may_keep(&file.inner.file, index, &locker.state)
            .await?;
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
            parts.uncut(part_file, Some(&locker.state)).await;
        }
    }
}
