//! Taking: which of all that waits the next worker gets.
//!
//! Owns: the order among tasks, loads, images, calls and aborts, slot by slot. Does not own: the
//! order among tasks (`table.rs`), or whether anything may go at all (`gate.rs`).

use std::mem;
use std::sync::Arc;

use tokio::time::Instant;

use super::call::Call;
use super::gate::{Gate, May, Way};
use super::image::Image;
use super::line::Line;
use super::load::Load;
use super::table::{Slot, Task};
use super::task::Lane;
use super::{Job, State, TaskJob};

impl State {
    /// Whether this slot may have a load. Of the general slots, loads have at most half, beside the
    /// one that is theirs alone: with one worker none, while theirs is in use, or a stream of loads
    /// would keep every upload out.
    fn for_loads(&self, slot: Slot, may: May, workers: usize) -> bool {
        may.reads
            && match slot {
                Slot::General => self.loads.running() <= workers / 2,
                Slot::Reserved(lane) => matches!(lane, Lane::Load | Lane::Checkpoint),
            }
    }

    /// Whether this slot may send anything. Reading is not sending.
    fn for_sending(&self, slot: Slot, may: May) -> bool {
        may.writes && !self.is_held() && slot != Slot::Reserved(Lane::Load)
    }

    /// Whether it may have what removes: that goes where nothing may be written, too.
    fn for_removing(&self, slot: Slot, may: May) -> bool {
        may.removes && !self.is_held() && slot == Slot::General
    }

    fn for_aborts(&self, slot: Slot, may: May) -> bool {
        self.for_removing(slot, may) && self.aborts.running() == 0
    }

    /// The next job for this slot, of what may go.
    pub(super) fn take(
        &mut self,
        slot: Slot,
        may: May,
        now: Instant,
        gate: &dyn Gate,
        workers: usize,
    ) -> Option<Job> {
        // A call that is refused comes back before the next probe does: every other is another's.
        if may.is_parked
            && self.call_probed
            && let Some(job) = self.take_kept(slot, may, now, gate, workers)
        {
            return Some(job);
        }
        if slot != Slot::Reserved(Lane::Load)
            && let Some(call) = self.take_call(may)
        {
            return Some(Job::Call(call));
        }
        self.take_kept(slot, may, now, gate, workers)
    }

    /// The same of what the queue keeps: of all but calls.
    fn take_kept(
        &mut self,
        slot: Slot,
        may: May,
        now: Instant,
        gate: &dyn Gate,
        workers: usize,
    ) -> Option<Job> {
        let urgent_only = slot == Slot::Reserved(Lane::Checkpoint);
        self.loads.wake(now);
        if self.for_loads(slot, may, workers)
            && let Some(load) = take_load(&mut self.loads, urgent_only)
        {
            return Some(Job::Load(load));
        }
        if !self.for_sending(slot, may) {
            return match self.for_removing(slot, may) {
                true => self.take_removal(slot, may, now, gate),
                false => None,
            };
        }
        self.aborts.wake(now);
        self.wake_retries(now, gate);
        let for_aborts = self.for_aborts(slot, may);
        if urgent_only {
            // Whatever else there is: what a checkpoint waits for has this slot to itself.
            let urgent = self.images.take_such(|_| true, Image::is_urgent);
            return urgent.map(Job::Image).or_else(|| self.take_task(slot, now));
        }
        // At most one at a time, and every other turn: an S3 that refuses them keeps no task out.
        // Turn by turn with tasks: neither keeps the other out.
        if mem::take(&mut self.images_turn)
            && let Some(image) = self.images.take(|_| true)
        {
            return Some(Job::Image(image));
        }
        if for_aborts
            && mem::take(&mut self.aborts_turn)
            && let Some(abort) = self.aborts.take(|_| true)
        {
            return Some(Job::Abort(abort));
        }
        if let Some(job) = self.take_task(slot, now) {
            self.aborts_turn = true;
            self.images_turn = true;
            return Some(job);
        }
        if for_aborts && let Some(abort) = self.aborts.take(|_| true) {
            return Some(Job::Abort(abort));
        }
        self.images.take(|_| true).map(Job::Image)
    }

    fn take_call(&mut self, may: May) -> Option<Call> {
        loop {
            let at = self.calls.iter().position(|call| may.go(call.way))?;
            let call = self.calls.remove(at).filter(Call::is_wanted);
            if call.is_some() {
                return call;
            }
        }
    }

    /// The next of what only removes.
    fn take_removal(&mut self, slot: Slot, may: May, now: Instant, gate: &dyn Gate) -> Option<Job> {
        self.aborts.wake(now);
        self.wake_retries(now, gate);
        if let Some(task) = self.table.take_delete(now) {
            return Some(job_of(task, Way::Remove));
        }
        let abort = self
            .for_aborts(slot, may)
            .then(|| self.aborts.take(|_| true));
        abort.flatten().map(Job::Abort)
    }

    /// What has backed off for long enough is ready, as far as it can be paid for: whoever has waited
    /// longest first, so that many of one kind do not keep the other out.
    fn wake_retries(&mut self, now: Instant, gate: &dyn Gate) {
        let is_due = |due: &Instant| *due <= now;
        loop {
            let image = self.images.next_due().filter(is_due);
            let task = self.table.next_due().filter(is_due);
            let task_first = match (task, image) {
                (None, None) => return,
                (Some(task), Some(image)) => task <= image,
                (task, None) => task.is_some(),
                (None, Some(_)) => false,
            };
            if !gate.affords_retry(now) {
                return;
            }
            match task_first {
                true => self.table.wake_first(),
                false => self.images.wake_first(),
            }
        }
    }

    fn take_task(&mut self, slot: Slot, now: Instant) -> Option<Job> {
        let task = self.table.take(slot, now)?;
        Some(job_of(task, Way::Write))
    }

    /// When there may be more for this slot. Only of what it may take: of anything else, one that
    /// is due and has to wait for another slot would have this worker look again without a pause.
    pub(super) fn next_due(
        &self,
        slot: Slot,
        may: May,
        now: Instant,
        gate: &dyn Gate,
        workers: usize,
    ) -> Option<Instant> {
        let urgent_only = slot == Slot::Reserved(Lane::Checkpoint);
        let sends = self.for_sending(slot, may);
        // What is due and still in back-off has to be paid for first.
        let paid = |due: Instant| match due > now {
            true => due,
            false => gate.next_retry(now),
        };
        let loads = self.for_loads(slot, may, workers);
        let tasks = sends || self.for_removing(slot, may);
        let images = sends && (!urgent_only || self.images.has(Image::is_urgent));
        let dues = [
            self.loads.next_due().filter(|_| loads),
            self.table.next_due().filter(|_| tasks).map(paid),
            self.images.next_due().filter(|_| images).map(paid),
            self.aborts
                .next_due()
                .filter(|_| self.for_aborts(slot, may)),
        ];
        dues.into_iter().flatten().min()
    }
}

/// A task as a worker has it. Deletes go as writes as well: they have their turn among them.
fn job_of(task: &mut Task, way: Way) -> Job {
    Job::Task(Box::new(TaskJob {
        id: task.id,
        way,
        key: Arc::clone(&task.key),
        policy: task.policy,
        action: task.action.clone(),
        condition: task.condition.clone(),
        headers: Arc::clone(&task.headers),
        len: task.len,
        checksum: task.checksum,
        memory: task.memory.clone(),
        failures: task.failures,
        sent_before: mem::replace(&mut task.sent, true),
        in_flight: None,
        multipart: task.multipart.take(),
    }))
}

fn take_load(loads: &mut Line<Load>, urgent_only: bool) -> Option<Load> {
    let urgent = loads.take_such(Load::is_kept, Load::is_urgent);
    urgent.or_else(|| match urgent_only {
        true => None,
        false => loads.take(Load::is_kept),
    })
}
