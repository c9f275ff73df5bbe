//! One call, four ways to wait.
//!
//! Owns: how a caller waits for an operation, and that every wait has a deadline. Does not own:
//! what the operation does, or why it has to wait: that is asked of the operation, so that a
//! timeout and a refusal both say what was in the way.
//!
//! An operation does nothing before it is first polled. Its timer is one of the crate's own
//! runtime, so that an operation can be awaited on any executor; a blocking wait uses a condition
//! variable with its own timeout and no runtime at all.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Sleep;

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::runtime::{Driver, Runtime};

type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
type Start<'a, T> = Box<dyn FnOnce(Duration) -> Work<'a, T> + Send + 'a>;
type Why<'a> = Box<dyn Fn() -> Error + Send + 'a>;

/// An operation that borrows nothing: see [`Operation`].
pub type Op<T> = Operation<'static, T>;

/// How long past its deadline work that bounds itself is waited for by a thread.
const SLACK: Duration = Duration::from_secs(5);

/// Who bounds the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// The operation's waiter, by a timer.
    Waiter,
    /// The work itself, which was told the deadline and always ends by it.
    Work,
}

/// An operation that has not been started: choose how to wait for it.
///
/// | form | waits |
/// |---|---|
/// | `op.await` | until it is done, at most the configured default deadline |
/// | `op.within(duration).await` | at most that long |
/// | `op.wait()`, `op.within(duration).wait()` | the same, blocking the calling thread |
/// | `op.now()` | not at all: done at once, or the reason why not |
///
/// # Cancel safety
/// Dropping the operation, or a future made from it, ends this wait and leaves no trace: what it
/// waited for is handed on to the next in line.
#[must_use = "an operation does nothing until it is awaited or waited for"]
pub struct Operation<'a, T> {
    driver: Driver,
    deadline: Duration,
    bound: Bound,
    start: Start<'a, T>,
    why: Why<'a>,
}

impl<T> std::fmt::Debug for Operation<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Op")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<'a, T> Operation<'a, T> {
    /// An operation that is bounded by whoever waits for it. `why` says what it is waiting for.
    pub(crate) fn new<F>(
        driver: &Driver,
        deadline: Duration,
        work: F,
        why: impl Fn() -> Error + Send + 'a,
    ) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Self {
            driver: driver.clone(),
            deadline,
            bound: Bound::Waiter,
            start: Box::new(move |_| Box::pin(work)),
            why: Box::new(why),
        }
    }

    /// An operation that is told its deadline and always ends by it.
    pub(crate) fn bounded<F>(
        driver: &Driver,
        deadline: Duration,
        work: impl FnOnce(Duration) -> F + Send + 'a,
        why: impl Fn() -> Error + Send + 'a,
    ) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Self {
            driver: driver.clone(),
            deadline,
            bound: Bound::Work,
            start: Box::new(move |deadline| Box::pin(work(deadline))),
            why: Box::new(why),
        }
    }

    /// An operation that is already over.
    pub(crate) fn ready(result: Result<T>) -> Self
    where
        T: Send + 'a,
    {
        Self {
            driver: Driver::none(),
            deadline: Duration::ZERO,
            bound: Bound::Waiter,
            start: Box::new(move |_| Box::pin(std::future::ready(result))),
            why: Box::new(|| Error::WouldWait("nothing")),
        }
    }

    /// The same operation with another deadline.
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Blocks the calling thread until it is done or the deadline has passed.
    ///
    /// # Errors
    /// Those of the operation; [`Error::TimedOut`]; [`Error::WouldBlockRuntime`] at once where the
    /// calling thread belongs to the runtime that drives the operation.
    pub fn wait(self) -> Result<T> {
        if self.driver.is_current() {
            return Err(Error::WouldBlockRuntime);
        }
        let parker = Arc::new(Parker::default());
        let waker = Waker::from(Arc::clone(&parker));
        let mut context = Context::from_waker(&waker);
        let started = parker.start();
        let mut work = (self.start)(self.deadline);
        loop {
            if let Poll::Ready(result) = work.as_mut().poll(&mut context) {
                return result;
            }
            let left = match self.bound {
                Bound::Waiter => self.deadline.saturating_sub(started.elapsed()),
                // The work ends by its deadline, unless what drives it is held up.
                Bound::Work => {
                    (self.deadline.saturating_add(SLACK)).saturating_sub(started.elapsed())
                }
            };
            if left.is_zero() {
                return Err(timed_out(self.deadline, &self.why));
            }
            parker.park(left);
        }
    }

    /// Does it at once, or says why it cannot be done at once.
    ///
    /// # Errors
    /// Those of the operation, or what it would have had to wait for.
    pub fn now(self) -> Result<T> {
        let mut context = Context::from_waker(Waker::noop());
        let mut work = (self.start)(self.deadline);
        match work.as_mut().poll(&mut context) {
            Poll::Ready(result) => result,
            Poll::Pending => Err((self.why)()),
        }
    }
}

impl<'a, T: Send + 'a> Operation<'a, Result<T>> {
    /// An operation whose result is a result.
    pub(crate) fn flatten(self) -> Operation<'a, T> {
        let start = self.start;
        Operation {
            driver: self.driver,
            deadline: self.deadline,
            bound: self.bound,
            start: Box::new(move |deadline| {
                let work = start(deadline);
                Box::pin(async move { work.await? })
            }),
            why: self.why,
        }
    }
}

impl<'a, T> IntoFuture for Operation<'a, T> {
    type Output = Result<T>;
    type IntoFuture = Waiting<'a, T>;

    fn into_future(self) -> Waiting<'a, T> {
        Waiting {
            work: (self.start)(self.deadline),
            timer: None,
            driver: self.driver,
            deadline: self.deadline,
            bound: self.bound,
            why: self.why,
        }
    }
}

/// The future of an [`Operation`].
#[must_use = "futures do nothing unless polled"]
pub struct Waiting<'a, T> {
    work: Work<'a, T>,
    /// The runtime is kept while its timer is in use.
    timer: Option<(Pin<Box<Sleep>>, Arc<Runtime>)>,
    driver: Driver,
    deadline: Duration,
    bound: Bound,
    why: Why<'a>,
}

impl<T> std::fmt::Debug for Waiting<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<T> Future for Waiting<'_, T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = this.work.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        if this.bound == Bound::Work || is(Mutant::WaitNeverEnds) {
            return Poll::Pending;
        }
        if this.timer.is_none() {
            let Some(runtime) = this.driver.enter() else {
                // Everything was settled before the runtime ended; what still waits came later.
                return match this.work.as_mut().poll(context) {
                    Poll::Ready(result) => Poll::Ready(result),
                    Poll::Pending => Poll::Ready(Err((this.why)())),
                };
            };
            // The timer belongs to our runtime, whatever executor polls it.
            let _inside = this.driver.context();
            this.timer = Some((Box::pin(tokio::time::sleep(this.deadline)), runtime));
        }
        let Some((timer, _)) = &mut this.timer else {
            return Poll::Pending;
        };
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out(this.deadline, &this.why))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn timed_out(waited: Duration, why: &Why<'_>) -> Error {
    Error::TimedOut {
        waited,
        waiting_for: Box::new(why()),
    }
}

/// A condition variable that a waker signals.
#[derive(Default)]
struct Parker {
    woken: Mutex<bool>,
    signal: Condvar,
}

impl Parker {
    #[allow(
        clippy::disallowed_methods,
        reason = "a blocking wait has no runtime to ask the time"
    )]
    fn start(&self) -> std::time::Instant {
        std::time::Instant::now()
    }

    fn park(&self, at_most: Duration) {
        let mut woken = self.woken.lock();
        if !*woken {
            self.signal.wait_for(&mut woken, at_most);
        }
        *woken = false;
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.signal.notify_one();
    }
}
