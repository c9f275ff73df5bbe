//! A value that can be waited for.
//!
//! Owns: one mutex, one value, and the wakers of those who wait for it to change. Waiters are
//! woken by every change; one that leaves takes its waker with it. Nothing here needs a runtime:
//! deadlines are the business of whoever polls ([`crate::op::Op`]).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// A value with waiters.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    inner: Mutex<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    value: S,
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

impl<S> Watched<S> {
    pub(crate) fn new(value: S) -> Self {
        Self {
            inner: Mutex::new(Inner {
                value,
                next: 0,
                wakers: Vec::new(),
            }),
        }
    }

    /// Looks at the value.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&self.inner.lock().value)
    }

    /// Changes the value and wakes everyone who waits for it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut S) -> T) -> T {
        let (result, wakers) = {
            let mut inner = self.inner.lock();
            let result = change(&mut inner.value);
            (result, std::mem::take(&mut inner.wakers))
        };
        // Woken after the lock is released: a waker may run code that looks at us.
        for (_, waker) in wakers {
            waker.wake();
        }
        result
    }

    /// Changes the value in a way that nobody waits for: wakes no one.
    pub(crate) fn edit<T>(&self, edit: impl FnOnce(&mut S) -> T) -> T {
        edit(&mut self.inner.lock().value)
    }

    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        self.inner.lock().wakers.len()
    }

    /// Waits until `ready` finds what it looks for.
    ///
    /// # Cancel safety
    /// Leaves no trace when dropped.
    pub(crate) fn until<T, F>(&self, ready: F) -> Until<'_, S, F>
    where
        F: FnMut(&S) -> Option<T> + Unpin,
    {
        Until {
            watched: self,
            ready,
            id: None,
        }
    }
}

/// The future of [`Watched::until`].
#[derive(Debug)]
pub(crate) struct Until<'a, S, F> {
    watched: &'a Watched<S>,
    ready: F,
    id: Option<u64>,
}

impl<S, T, F> Future for Until<'_, S, F>
where
    F: FnMut(&S) -> Option<T> + Unpin,
{
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        let mut inner = this.watched.inner.lock();
        if let Some(found) = (this.ready)(&inner.value) {
            return Poll::Ready(found);
        }
        // A change took all wakers, so ours is there only if nothing changed since.
        let id = *this.id.get_or_insert_with(|| {
            inner.next += 1;
            inner.next
        });
        match inner.wakers.iter_mut().find(|(other, _)| *other == id) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => inner.wakers.push((id, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl<S, F> Drop for Until<'_, S, F> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.watched
                .inner
                .lock()
                .wakers
                .retain(|(other, _)| *other != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use super::*;

    #[test]
    fn a_waiter_that_leaves_leaves_no_trace() {
        let watched = Watched::new(0);
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waiting = std::pin::pin!(watched.until(|n| (*n > 0).then_some(*n)));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert_eq!(watched.waiters(), 1);
        }
        assert_eq!(watched.waiters(), 0);
    }

    #[test]
    fn every_change_wakes_and_the_waiter_looks_again() {
        let watched = Watched::new(0);
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = std::pin::pin!(watched.until(|n| (*n > 1).then_some(*n)));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        watched.change(|n| *n = 1);
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        watched.change(|n| *n = 2);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(2));
    }
}
