//! Steady load: so many submits a second, whatever comes of them, and what was acknowledged.
//!
//! 1. A refusal is counted, and the load stays as steady as it was: the next submit comes when it
//!    would have come anyway.
//! 2. Numbers are used in order and only by what was admitted, and tasks become durable in order:
//!    all that was acknowledged is one number, and a version for each rewritten key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use s3_writeback::error::Error;
use s3_writeback::{KeyPolicy, Options, Receipt, UploadQueue};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::object::{Object, REWRITTEN};

/// Receipts that wait to be durable. Where there are more, the disk is what is slow.
const UNACKNOWLEDGED: usize = 4096;
/// How long the disk may take.
const DURABLE_WITHIN: Duration = Duration::from_secs(30);
/// One submit of so many rewrites a key.
const REWRITES: u64 = 10;
/// So many faults are told in words.
const TOLD: usize = 10;
const REWRITTEN_KEYS: usize = REWRITTEN as usize;

/// What came of the load so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub admitted: AtomicU64,
    pub refused: AtomicU64,
    objects: AtomicU64,
    versions: [AtomicU64; REWRITTEN_KEYS],
    /// How long each submit took, in microseconds, since somebody took them.
    took: Mutex<Vec<u32>>,
    faults: Mutex<Faults>,
}

/// What should not have happened.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub count: u64,
    pub first: Vec<String>,
}

/// What must be in S3 at the end.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// The objects of all numbers below this.
    pub objects: u64,
    /// The last version of each rewritten key; 0: none.
    pub versions: [u64; REWRITTEN_KEYS],
}

impl Acknowledged {
    /// How many keys that is.
    pub fn total(&self) -> u64 {
        self.objects + self.versions.iter().filter(|version| **version > 0).count() as u64
    }
}

impl Tally {
    pub fn acknowledged(&self) -> Acknowledged {
        Acknowledged {
            objects: self.objects.load(Ordering::Acquire),
            versions: std::array::from_fn(|at| self.versions[at].load(Ordering::Acquire)),
        }
    }

    /// Takes the times of all submits since the last call.
    pub fn take_times(&self) -> Vec<u32> {
        std::mem::take(&mut *self.took.lock())
    }

    pub fn faults(&self) -> Faults {
        self.faults.lock().clone()
    }

    pub fn fault(&self, text: String) {
        let mut faults = self.faults.lock();
        faults.count += 1;
        if faults.first.len() < TOLD {
            faults.first.push(text);
        }
    }
}

/// The load, as long as it lasts.
pub struct Load {
    tally: Arc<Tally>,
    stop: CancellationToken,
    submits: JoinHandle<()>,
    acknowledges: JoinHandle<()>,
}

impl Load {
    /// Starts `rate` submits a second.
    pub fn start(queue: &UploadQueue, rate: u32) -> Self {
        let (tally, stop) = (Arc::new(Tally::default()), CancellationToken::new());
        let (told, hears) = mpsc::channel(UNACKNOWLEDGED);
        let (queue, counts, stopped) = (queue.clone(), Arc::clone(&tally), stop.clone());
        let submits = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = submit(&queue, &counts, rate, &told) => {}
            }
        });
        let acknowledges = tokio::spawn(acknowledge(Arc::clone(&tally), hears));
        Self {
            tally,
            stop,
            submits,
            acknowledges,
        }
    }

    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Ends it; whatever was admitted is acknowledged then.
    pub async fn stop(&self) -> Result<(), Failure> {
        self.stop.cancel();
        let both = async {
            while !(self.submits.is_finished() && self.acknowledges.is_finished()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let late = |_| Failure::Stuck("what was admitted is not durable");
        tokio::time::timeout(2 * DURABLE_WITHIN, both)
            .await
            .map_err(late)
    }
}

/// Where a rewritten key is among them.
fn at(which: u64) -> usize {
    usize::try_from(which % REWRITTEN).unwrap_or(0)
}

async fn submit(
    queue: &UploadQueue,
    tally: &Tally,
    rate: u32,
    told: &mpsc::Sender<(Object, Receipt)>,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let (mut turn, mut next) = (0_u64, 0_u64);
    let mut versions = [1_u64; REWRITTEN_KEYS];
    loop {
        tick.tick().await;
        turn += 1;
        let object = match turn % REWRITES {
            0 => {
                let which = turn / REWRITES % REWRITTEN;
                Object::Version(which, versions[at(which)])
            }
            _ => Object::Once(next),
        };
        let options = match object {
            Object::Once(_) => Options::default(),
            Object::Version(..) => Options {
                policy: KeyPolicy::Rewritable,
                coalesce: true,
                ..Options::default()
            },
        };
        let (key, body) = (object.key(), object.body());
        let began = Instant::now();
        let submitted = queue.submit(key, body, options).now();
        let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        tally.took.lock().push(took);
        match submitted {
            Ok(receipt) => {
                tally.admitted.fetch_add(1, Ordering::Relaxed);
                match object {
                    Object::Once(_) => next += 1,
                    Object::Version(which, _) => versions[at(which)] += 1,
                }
                if told.send((object, receipt)).await.is_err() {
                    return;
                }
            }
            // The other where room came between the refusal and its reason.
            Err(Error::QueueFull { .. } | Error::WouldWait(_)) => {
                tally.refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tally.fault(format!("a submit: {error}")),
        }
    }
}

async fn acknowledge(tally: Arc<Tally>, mut hears: mpsc::Receiver<(Object, Receipt)>) {
    let mut in_order = true;
    while let Some((object, receipt)) = hears.recv().await {
        if let Err(error) = receipt.durable().within(DURABLE_WITHIN).await {
            tally.fault(format!("{} is not durable: {error}", receipt.key()));
            in_order = false;
        }
        // What comes after a gap is not one number any more, and the day has failed.
        if !in_order {
            continue;
        }
        match object {
            Object::Once(number) => tally.objects.store(number + 1, Ordering::Release),
            Object::Version(which, version) => {
                tally.versions[at(which)].store(version, Ordering::Release);
            }
        }
    }
}
