//! How an operation is waited for, and what came of it.

use std::task::Poll;
use std::time::Duration;

use s3_writeback::{Error, Guard, Lock, Operation};

/// How an operation is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Full,
    Within(Duration),
    /// Polled so many times, then dropped.
    Polls(u32),
    /// Dropped after that long.
    Cancel(Duration),
    Now,
}

/// What came of it.
#[derive(Debug)]
pub enum Out<T> {
    Done(T),
    Failed(Error),
    Cancelled,
}

impl<T> Out<T> {
    pub fn of(result: Result<T, Error>) -> Self {
        match result {
            Ok(done) => Self::Done(done),
            Err(error) => Self::Failed(error),
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    pub fn text(&self) -> String {
        match self {
            Self::Done(_) => "done".to_owned(),
            Self::Failed(error) => format!("{error}"),
            Self::Cancelled => "cancelled".to_owned(),
        }
    }
}

/// Polls a future a few times, whether it was woken or not, then drops it.
pub async fn polled<F: Future>(future: F, times: u32) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

pub async fn run<T: Send>(how: How, op: Operation<'_, T>) -> Out<T> {
    match how {
        How::Full => Out::of(op.await),
        How::Within(time) => Out::of(op.within(time).await),
        How::Polls(times) => {
            let ended = polled(op.into_future(), times).await;
            ended.map_or(Out::Cancelled, Out::of)
        }
        How::Cancel(time) => {
            let ended = tokio::time::timeout(time, op.into_future()).await;
            ended.map_or(Out::Cancelled, Out::of)
        }
        How::Now => Out::of(op.now()),
    }
}

/// The same for a part lock.
pub async fn lock<'a>(how: How, lock: Lock<'a>) -> Out<Guard<'a>> {
    match how {
        How::Full => Out::of(lock.await),
        How::Within(time) => Out::of(lock.within(time).await),
        How::Polls(times) => {
            let ended = polled(lock.into_future(), times).await;
            ended.map_or(Out::Cancelled, Out::of)
        }
        How::Cancel(time) => {
            let ended = tokio::time::timeout(time, lock.into_future()).await;
            ended.map_or(Out::Cancelled, Out::of)
        }
        How::Now => Out::of(lock.now()),
    }
}
