//! Lives of a scenario: how they end, the last ones, and what has to be so then.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use s3_writeback::testing::weather::Weather;
use s3_writeback::{Error, ShutdownReport};
use tokio::time::Instant;

use super::super::env::lock;
use super::super::how::How;
use super::super::life::{AFTER_THE_END, ENOUGH, GRACE, all_told};
use super::super::model::Crash;
use super::super::stage::{self};
use super::super::watch;
use super::crowd::Crew;
use super::hand::Hand;

use super::play::{Dir, End, Open, Play};

impl Play {
    /// A life: a runtime of its own, in which the stores that are open at its end die.
    pub fn life<T>(&mut self, end: End, life: impl AsyncFnOnce(&Self) -> T) -> T {
        self.trace.say(|| "--- a life".to_owned());
        let lifetime = self.config.queue.signature_lifetime;
        let stage = self.stage(&self.remote);
        let lived = async {
            self.born.set(Some(Instant::now()));
            life(self).await
        };
        let (runtime, out, took) = stage.run(lifetime, lived);
        self.born.set(None);
        self.now += took;
        self.simulated += took;
        let opened = std::mem::take(&mut *self.opened.borrow_mut());
        let mut ended: Vec<Dir> = Vec::new();
        for open in opened.iter().rev() {
            if ended.iter().any(|dir| dir.is(&open.dir)) {
                continue;
            }
            ended.push(open.dir.clone());
            let how = match end {
                End::Kill => Crash::Kill,
                End::PowerCut => Crash::PowerCut,
                End::Any if self.flip() => Crash::Kill,
                End::Any => Crash::PowerCut,
            };
            if open.sealed && self.flip() {
                continue;
            }
            self.crash(&open.dir, if open.sealed { Crash::PowerCut } else { how });
        }
        drop(runtime);
        drop(opened);
        for dir in ended {
            let owner = lock(&dir.book.model).owner();
            lock(&dir.book.chronicle).close(owner);
            dir.fs.heal();
        }
        lock(&self.receipts).clear();
        out
    }

    fn crash(&mut self, dir: &Dir, how: Crash) {
        self.trace.say(|| format!("ends: {how:?}"));
        self.crashes += 1;
        lock(&dir.book.model).crash(how);
        match how {
            Crash::Kill => dir.fs.kill(),
            Crash::PowerCut => dir.fs.crash(self.rng.borrow_mut().random()),
        }
    }

    /// Shuts down: in time, everybody is told, nobody waits.
    pub async fn shut_down(
        &self,
        hand: &Hand<'_>,
        crew: &mut Crew,
        within: Duration,
    ) -> Arc<ShutdownReport> {
        hand.env.world.is_ending.set(true);
        let shutdown = hand.env.store.shutdown().within(within);
        self.ends(hand, crew, within, shutdown.into_future()).await
    }

    /// The same, of a shutdown that was begun somehow.
    pub async fn ends(
        &self,
        hand: &Hand<'_>,
        crew: &mut Crew,
        within: Duration,
        shutdown: impl Future<Output = Result<Arc<ShutdownReport>, Error>>,
    ) -> Arc<ShutdownReport> {
        let env = &hand.env;
        env.world.is_ending.set(true);
        let began = Instant::now();
        let report = crew.during(shutdown).await.expect("a report");
        let took = began.elapsed();
        self.say(|| format!("shut down within {within:?} in {took:?}: {report:?}"));
        assert!(
            took <= within + GRACE,
            "{took:?} of {within:?}: {report:#?}"
        );
        let ended = Instant::now();
        crew.during(tokio::time::sleep(AFTER_THE_END)).await;
        let waiting = env.world.waiting_for(ended.elapsed());
        assert!(
            waiting.is_empty() || !report.sealed,
            "after the end they wait for ever: {waiting:?}\n{:#?}",
            env.store.snapshot()
        );
        crew.go();
        all_told(&self.receipts);
        if report.sealed {
            env.book.synced(env.book.now(), |_| true);
            watch::at_rest(env).await;
        }
        let same = |open: &&mut Open| Rc::ptr_eq(&open.env.world, &env.world);
        let mut opened = self.opened.borrow_mut();
        if let Some(open) = opened.iter_mut().find(same) {
            open.sealed = report.sealed;
        }
        report
    }

    /// Everything of the directory has to come from S3 from here on.
    pub fn forget_local_bytes(&self) {
        self.say(|| "local bytes are gone".to_owned());
        stage::forget_local_bytes(&self.here().fs);
    }

    /// All is well, at last: what is there is there, goes up, is in a checkpoint, and comes back
    /// from S3 alone.
    pub fn end(&mut self) {
        self.say(|| "--- at last".to_owned());
        self.remote.heal();
        self.remote.refuse_bodies_with(None);
        self.remote.change_weather(Weather::clear);
        self.here().fs.set_capacity(None);
        self.config.max_dirty_age = Duration::from_secs(1);
        let shown = |play: &Self| {
            let objects = &mut *lock(&play.objects);
            objects.look_at_rest(&play.remote);
        };
        self.life(End::Any, async |play| {
            let hand = play.open().await;
            hand.uploaded().await;
            let drained = hand.env.store.queue().drain().within(ENOUGH).await;
            drained.unwrap_or_else(|error| {
                panic!("drain: {error}\n{:#?}", hand.env.store.queue().pending())
            });
            shown(play);
            play.listed().await;
            hand.checkpoint().await.expect("is committed");
            hand.env.run("gc", How::Full, hand.env.store.gc()).await;
            play.listed().await;
            drop(play.remote.land_late());
            shown(play);
            let mut nobody = Crew::default();
            let report = play.shut_down(&hand, &mut nobody, ENOUGH).await;
            let is_clean = report.sealed && report.dirty_parts == 0 && report.deferred == 0;
            assert!(is_clean, "{report:#?}");
        });
        self.forget_local_bytes();
        self.life(End::Any, async |play| {
            let hand = play.open().await;
            let mut nobody = Crew::default();
            let report = play.shut_down(&hand, &mut nobody, ENOUGH).await;
            assert!(report.sealed, "{report:#?}");
        });
    }
}
