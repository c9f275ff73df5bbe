//! Where our tasks and timers run.
//!
//! Owns: the crate's own runtime thread, or the engine's runtime where it was asked for, and the
//! register of tasks spawned on it. Does not own: what they do.
//!
//! 1. The own thread lives as long as somebody holds the [`Runtime`], waits in progress included:
//!    a timer never outlives its driver.
//! 2. Every task is registered, so that shutdown can join it.

use std::future::Future;
use std::sync::{Arc, Weak};

use tokio::runtime::{EnterGuard, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::io::Io;

/// Which runtime drives the queue.
#[derive(Debug, Clone, Default)]
pub enum RunOn {
    /// A thread of the crate's own: the engine's runtime may block or go first, and strands
    /// nothing. The default.
    #[default]
    OwnThread,
    /// The engine's runtime, whose timers must be enabled. It must outlive the queue's shutdown,
    /// and blocking calls on any of its threads are refused with
    /// [`Error::WouldBlockRuntime`].
    Handle(Handle),
}

/// A runtime in use.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    tasks: TaskTracker,
    /// Ends the own thread.
    stop: CancellationToken,
}

impl Runtime {
    pub(crate) fn start(on: &RunOn) -> Result<Arc<Self>> {
        let stop = CancellationToken::new();
        let handle = match on {
            RunOn::Handle(handle) => handle.clone(),
            RunOn::OwnThread => own_thread(stop.clone())?,
        };
        Ok(Arc::new(Self {
            handle,
            tasks: TaskTracker::new(),
            stop,
        }))
    }

    /// Spawns a registered task.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_on(task, &self.handle)
    }

    pub(crate) fn io(&self, threads: usize) -> Io {
        Io::pool(self.handle.clone(), threads)
    }

    pub(crate) fn driver(self: &Arc<Self>) -> Driver {
        Driver {
            handle: Some(self.handle.clone()),
            runtime: Arc::downgrade(self),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn own_thread(stop: CancellationToken) -> Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("s3-writeback-io")
        .build()
        .map_err(|error| Error::Runtime(error.to_string()))?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("s3-writeback".to_owned())
        .spawn(move || {
            runtime.block_on(stop.cancelled());
            // A thread that hangs in the disk must not hang us.
            runtime.shutdown_background();
        })
        .map_err(|error| Error::Runtime(error.to_string()))?;
    Ok(handle)
}

/// What an operation needs of the runtime: held by receipts, and so without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    /// `None` for an operation that never waits.
    handle: Option<Handle>,
    runtime: Weak<Runtime>,
}

impl Driver {
    /// The runtime, kept alive while a wait has a timer on it; `None` after it has ended.
    pub(crate) fn enter(&self) -> Option<Arc<Runtime>> {
        self.runtime.upgrade()
    }

    /// Polls `work` in the runtime's context, whoever polls it: timers that it makes are ours.
    pub(crate) async fn inside<F: Future>(self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            let _inside = self.context();
            work.as_mut().poll(context)
        })
        .await
    }

    /// Enters the runtime's context: what makes timers.
    pub(crate) fn context(&self) -> Option<EnterGuard<'_>> {
        self.handle.as_ref().map(Handle::enter)
    }

    /// Of an operation that never waits.
    pub(crate) const fn none() -> Self {
        Self {
            handle: None,
            runtime: Weak::new(),
        }
    }

    /// Whether the calling thread is inside this runtime.
    pub(crate) fn is_current(&self) -> bool {
        let ours = self.handle.as_ref().map(Handle::id);
        ours.is_some() && Handle::try_current().ok().map(|current| current.id()) == ours
    }
}
