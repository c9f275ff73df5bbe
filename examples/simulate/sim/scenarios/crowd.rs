//! Who else is there while a scenario is played.

use std::time::Duration;

use futures::future::{LocalBoxFuture, join_all};

use super::super::objects::Producer;
use super::super::pages::{self, Pages};
use super::super::versions::{self, Checkpoints};
use super::super::watch;
use super::super::woken::Woken;
use super::hand::Hand;
use super::play::Play;

/// How many of each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Crowd {
    /// Who read and write files.
    pub pages: u64,
    /// Who submit named objects.
    pub producers: u64,
    /// Who read anywhere.
    pub lookers: u64,
    /// Who asks for checkpoints, and for looks for garbage.
    pub checkpoints: bool,
}

impl Crowd {
    pub const NOBODY: Self = Self {
        pages: 0,
        producers: 0,
        lookers: 0,
        checkpoints: false,
    };

    /// Some, as the seed says.
    pub fn some(play: &Play) -> Self {
        Self {
            pages: play.roll(0..3),
            producers: play.roll(0..2),
            lookers: play.roll(0..2),
            checkpoints: false,
        }
    }

    /// Some, who use files only.
    pub fn of_pages(play: &Play) -> Self {
        Self {
            producers: 0,
            ..Self::some(play)
        }
    }
}

/// Those who are there, and who looks on.
#[derive(Default)]
pub struct Crew(Vec<Woken>);

impl Crew {
    /// Does something while they go on.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let others = async {
            join_all(self.0.iter_mut()).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            done = work => done,
            () = others => unreachable!("it goes on"),
        }
    }

    pub async fn for_a_while(&mut self, play: &Play, ms: std::ops::Range<u64>) {
        let long: Duration = play.ms(ms);
        self.during(tokio::time::sleep(long)).await;
    }

    /// They go.
    pub fn go(&mut self) {
        self.0.clear();
    }
}

impl Play {
    /// Who looks on, and some others.
    pub async fn crew(&self, hand: &Hand<'_>, crowd: Crowd) -> Crew {
        let env = &hand.env;
        if crowd.pages + crowd.lookers > 0 {
            pages::found(env).await;
        }
        let mut all: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        let seed = || self.roll(0..u64::MAX);
        let remote = || self.remote.clone();
        all.push(Box::pin(self.kept.clone().watch(remote())));
        all.push(Box::pin(watch::watch(
            env.clone(),
            self.config.clone(),
            self.objects.clone(),
            remote(),
            true,
        )));
        for number in 0..crowd.pages {
            all.push(Box::pin(Pages::new(env, number, crowd.pages, seed()).act()));
        }
        for number in 0..crowd.producers {
            let (objects, receipts) = (&self.objects, &self.receipts);
            let producer =
                Producer::new(env, objects, &self.remote, receipts, number, true, seed());
            all.push(Box::pin(producer.act()));
        }
        for _ in 0..crowd.lookers {
            all.push(Box::pin(pages::look_around(env.clone(), seed())));
        }
        if crowd.checkpoints {
            let checked = self.checked();
            all.push(Box::pin(
                Checkpoints::new(env, &remote(), &checked, seed()).act(),
            ));
            all.push(Box::pin(versions::read_slowly(
                env.clone(),
                remote(),
                seed(),
            )));
        }
        Crew(all.into_iter().map(Woken::new).collect())
    }
}
