//! Where lives are lived: a runtime for each, and a store as a simulation opens one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3_writeback::io::Io;
use s3_writeback::testing::fs::SimFs;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::time::WallClock;
use s3_writeback::{PartStore, RunOn, StoreBuilder, StoreConfig};
use tokio::runtime::{Handle, Runtime};
use tokio::time::Instant;

use super::env::{Book, lock};
use super::trace::Trace;
use super::versions;

/// Nothing takes this long: who still waits then waits for ever.
const FOR_EVER: Duration = Duration::from_secs(2 * 24 * 3600);

/// What outlives the stores, as they see it.
#[derive(Clone)]
pub struct Stage {
    pub remote: SimRemote,
    pub trace: Arc<Trace>,
    /// Time since 1970.
    pub now: Duration,
}

impl Stage {
    /// Runs a life in a runtime of its own, which ends with what it returns; how long it took.
    pub fn run<T>(
        &self,
        lifetime: Duration,
        life: impl Future<Output = T>,
    ) -> (Runtime, T, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let (result, took) = runtime.block_on(async {
            let born = Instant::now();
            self.remote
                .signed_by(WallClock::starting_at(self.now), lifetime);
            self.trace.life();
            let ended = tokio::time::timeout(FOR_EVER, life).await;
            (ended.expect("nobody waits for ever"), born.elapsed())
        });
        self.trace.life_is_over();
        (runtime, result, took)
    }

    /// A store on this disk, whose checkpoints are noted in this book.
    pub fn store(&self, config: StoreConfig, fs: &SimFs, io: Io, book: &Book) -> StoreBuilder {
        let (told, asked) = (book.clone(), book.clone());
        PartStore::builder(config, Arc::new(self.remote.clone()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(fs.process()), io)
            .wall_clock(WallClock::starting_at(self.now))
            .checkpoint_meta(move || versions::meta_of(&asked))
            .on_checkpoint(move |made| {
                lock(&told.chronicle).told(versions::line_of(&made.meta));
            })
    }
}

/// Everything of it has to come from S3.
pub fn forget_local_bytes(fs: &SimFs) {
    for name in fs.names(Path::new("/store/parts")) {
        let len = fs.peek(&name).map_or(0, |bytes| bytes.len());
        fs.poke(&name, vec![0; len]);
    }
}
