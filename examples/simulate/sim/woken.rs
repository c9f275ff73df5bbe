//! An actor that is polled when it was woken, and not because somebody else was.
//!
//! Who forgets to wake somebody is not to get away with it because others share its task.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::LocalBoxFuture;

use super::env::lock;

#[derive(Debug)]
struct Bell {
    has_rung: AtomicBool,
    above: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.has_rung.store(true, Ordering::SeqCst);
        let above = lock(&self.above).clone();
        if let Some(above) = above {
            above.wake();
        }
    }
}

/// A future that is polled once for each time that it was woken.
pub struct Woken {
    inner: LocalBoxFuture<'static, ()>,
    bell: Arc<Bell>,
}

impl Woken {
    pub fn new(inner: LocalBoxFuture<'static, ()>) -> Self {
        let bell = Bell {
            has_rung: AtomicBool::new(true),
            above: Mutex::default(),
        };
        Self {
            inner,
            bell: Arc::new(bell),
        }
    }
}

impl Future for Woken {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        *lock(&self.bell.above) = Some(context.waker().clone());
        if !self.bell.has_rung.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        self.inner.as_mut().poll(&mut Context::from_waker(&waker))
    }
}
