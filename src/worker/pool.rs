//! The pool: one worker a slot.
//!
//! Owns: the workers, what they do with an attempt's verdict, and how they stop. Does not own:
//! which job is next (the queue).
//!
//! 1. A worker has a slot only while it has a job; a task in back-off is with the queue.
//! 2. A panic in an attempt ends that attempt's task, in quarantine with the panic's text; a
//!    panic of the worker itself brings the job back and the worker is replaced at once. (In
//!    OrioleDB a failed worker left its waiters behind for ever.)
//! 3. Stopping: no new job; then, after a grace, requests in flight are cut off.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::panics;
use crate::queue::Job;
use crate::queue::gate::{Pass, Way};
use crate::queue::image::Image;
use crate::queue::load::Load;
use crate::queue::table::Slot;
use crate::queue::task::{Cause, Lane, TaskId, cut};
use crate::queue::{Abort, Call, TaskJob};
use crate::remote::{Class, RemoteError};
use crate::runtime::Runtime;

use super::attempt::{Shared, Verdict};
use super::retry;
use super::traffic::RESERVED;

/// How long what waits for something else to end waits before it looks again: an abort for its
/// key's own task, a load for its last waiter.
const BUSY: Duration = Duration::from_secs(1);

/// The workers of one queue.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: TaskTracker,
}

impl Pool {
    /// Starts all workers on `runtime`.
    pub(crate) fn start(shared: Arc<Shared>, runtime: &Runtime) -> Arc<Self> {
        let pool = Arc::new(Self {
            shared,
            workers: TaskTracker::new(),
        });
        let general = pool.shared.queue.config().workers;
        let slots = std::iter::repeat_n(Slot::General, general)
            .chain([Slot::Reserved(Lane::Load), Slot::Reserved(Lane::Checkpoint)]);
        for slot in slots {
            let pool = Arc::clone(&pool);
            let token = pool.workers.token();
            runtime.spawn(async move {
                let _token = token;
                pool.work(slot).await;
            });
        }
        pool.workers.close();
        pool
    }

    /// Waits until every worker has stopped.
    pub(crate) async fn stopped(&self) {
        self.workers.wait().await;
    }

    /// One slot's worker, replaced as often as it panics.
    async fn work(&self, slot: Slot) {
        loop {
            let run = AssertUnwindSafe(self.run(slot)).catch_unwind().await;
            match run {
                Ok(()) => return,
                Err(panic) => {
                    tracing::error!(?slot, panic = %text_of(&*panic), "a worker is replaced");
                }
            }
        }
    }

    async fn run(&self, slot: Slot) {
        while let Some((job, pass)) = self.shared.queue.next(slot).await {
            let _passed = Passed { pool: self, pass };
            let work = async {
                match job {
                    Job::Task(job) => self.run_task(*job).await,
                    Job::Load(load) => self.run_load(load).await,
                    Job::Image(image) => self.run_image(image).await,
                    Job::Call(call) => self.run_call(call).await,
                    Job::Abort(abort) => self.run_abort(abort).await,
                }
            };
            RESERVED.scope(slot != Slot::General, work).await;
        }
    }

    async fn run_task(&self, mut job: TaskJob) {
        let queue = &self.shared.queue;
        // Whatever happens to this worker, the task goes back to the queue.
        let mut back = Back {
            pool: self,
            id: Some(job.id),
        };
        let verdict = AssertUnwindSafe(self.shared.attempt(&mut job))
            .catch_unwind()
            .await;
        let id = job.id;
        if verdict.is_err() {
            self.shared.lost_hold_of(&mut job);
        }
        if matches!(
            verdict,
            Ok(Verdict::End(_) | Verdict::Quarantine(_)) | Err(_)
        ) {
            queue.hand_back(id, job.multipart.take());
        }
        match verdict {
            Ok(Verdict::End(settlement)) => queue.settle(id, settlement),
            Ok(Verdict::Quarantine(cause)) => queue.quarantine(id, cause),
            Ok(Verdict::Failed(error)) if self.is_parked(job.way, &error) => {
                queue.put_back(id, Some(&error), job.multipart.take());
            }
            Ok(Verdict::Failed(error)) => {
                let until = self.next_try(job.failures, &error);
                tracing::debug!(task = id.0, %error, "an attempt failed");
                queue.retry(id, until, Some(&error), job.multipart.take());
            }
            Ok(Verdict::Wait(until)) => queue.retry(id, until, None, job.multipart.take()),
            Ok(Verdict::Cut) => queue.put_back(id, None, job.multipart.take()),
            Err(panic) => queue.quarantine(id, Cause::Panicked(text_of(&*panic))),
        }
        back.id = None;
    }

    async fn run_load(&self, load: Load) {
        let queue = &self.shared.queue;
        let attempt = AssertUnwindSafe(self.shared.load(&load)).catch_unwind();
        let outcome = tokio::select! {
            biased;
            outcome = attempt => outcome,
            () = given_up(&load) => return queue.retry_load(load, Instant::now()),
        };
        match outcome {
            Ok(Ok(found)) => queue.end_load(&load, Ok(found)),
            Ok(Err(error))
                if matches!(error.class, Class::Permanent | Class::Conflict)
                    || self.shared.cut.is_cancelled() =>
            {
                queue.end_load(&load, Err(error));
            }
            Ok(Err(error)) if self.is_parked(Way::Read, &error) => queue.put_back_load(load),
            Ok(Err(error)) => {
                let until = self.next_try(load.failures, &error);
                queue.retry_load(load, until);
            }
            Err(panic) => {
                let text = text_of(&*panic);
                queue.end_load(
                    &load,
                    Err(RemoteError::transient("GetObject").with_message(&text)),
                );
            }
        }
    }

    /// Whoever made it learns that it was cut off by its being dropped; a panic likewise.
    async fn run_call(&self, call: Call) {
        let made = AssertUnwindSafe(call.made).catch_unwind();
        tokio::select! {
            biased;
            made = made => if let Err(panic) = made {
                tracing::error!(panic = %text_of(&*panic), "a request panicked");
            },
            () = self.shared.cut.cancelled() => (),
        }
    }

    async fn run_image(&self, mut image: Image) {
        let queue = &self.shared.queue;
        if !image.sink.is_wanted() {
            let error = RemoteError::transient("PutObject").with_message("nobody needs it");
            self.shared.give_up_image(&mut image).await;
            return queue.end_image(image, Err(error));
        }
        let put = AssertUnwindSafe(self.shared.put_image(&mut image))
            .catch_unwind()
            .await;
        match put {
            Ok(Ok(())) => queue.end_image(image, Ok(())),
            Ok(Err(_)) if self.shared.cut.is_cancelled() => queue.put_back_image(image),
            Ok(Err(error)) if self.is_parked(Way::Write, &error) => {
                image.last_error = Some(cut(error.to_string()));
                queue.put_back_image(image);
            }
            Ok(Err(error)) if matches!(error.class, Class::Permanent | Class::Conflict) => {
                self.shared.give_up_image(&mut image).await;
                queue.end_image(image, Err(error));
            }
            Ok(Err(error)) => {
                let until = self.next_try(image.failures, &error);
                tracing::debug!(key = %image.key, %error, "an image is not in S3 yet");
                queue.retry_image(image, until, &error);
            }
            Err(panic) => {
                let error = RemoteError::transient("PutObject").with_message(&text_of(&*panic));
                let until = self.next_try(image.failures, &error);
                queue.retry_image(image, until, &error);
            }
        }
    }

    async fn run_abort(&self, abort: Abort) {
        let queue = &self.shared.queue;
        if abort.upload_id.is_none() && queue.is_busy(&abort.key) {
            return queue.postpone_abort(abort, Instant::now() + BUSY);
        }
        let aborted = AssertUnwindSafe(self.shared.abort(&abort))
            .catch_unwind()
            .await;
        match aborted {
            Ok(Ok(())) => queue.end_abort(&abort),
            Ok(Err(error)) => {
                tracing::debug!(key = %abort.key, %error, "a multipart upload is not aborted yet");
                let until = self.next_try(abort.failures, &error);
                queue.retry_abort(abort, until);
            }
            Err(panic) => {
                let error =
                    RemoteError::transient("AbortMultipartUpload").with_message(&text_of(&*panic));
                let until = self.next_try(abort.failures, &error);
                queue.retry_abort(abort, until);
            }
        }
    }

    /// Whether an attempt failed because S3 refuses everything: no failure of what it was for.
    fn is_parked(&self, way: Way, error: &RemoteError) -> bool {
        error.class == Class::Environment && self.shared.traffic.is_parked(way)
    }

    fn next_try(&self, failures: u32, error: &RemoteError) -> Instant {
        let config = self.shared.queue.config();
        let ceiling = retry::ceiling(
            failures.saturating_add(1),
            config.retry_base,
            config.retry_cap,
        );
        let drawn = self.shared.random.up_to(ceiling);
        Instant::now() + retry::wait(drawn, error.retry_after, config.retry_cap)
    }
}

/// What a worker was given with its job, until that is over.
struct Passed<'a> {
    pool: &'a Pool,
    pass: Pass,
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.pool.shared.traffic.left(self.pass);
        if self.pass.probes {
            // Whoever looked while it was under way waits for its end, and for no time.
            self.pool.shared.queue.changed();
        }
    }
}

/// Waits until nobody waits for a load any more.
async fn given_up(load: &Load) {
    while load.is_wanted() {
        tokio::time::sleep(BUSY).await;
    }
}

/// Brings a task back to the queue if its worker does not.
struct Back<'a> {
    pool: &'a Pool,
    id: Option<TaskId>,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let until = Instant::now() + self.pool.shared.queue.config().retry_base;
            let error = RemoteError::transient("worker").with_message("the worker was lost");
            self.pool.shared.queue.retry(id, until, Some(&error), None);
        }
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    cut(panics::text_of(panic))
}
