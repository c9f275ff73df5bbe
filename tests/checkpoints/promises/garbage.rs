//! What the header on the disk still names when garbage is looked for.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::testing::fs;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, PartStore};
use tokio::sync::Notify;

use super::{FILE, Hung, threaded, until};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, fill, paused, read, spawn, uploaded};

fn owner() -> StoreRig {
    StoreRig::owner_with(16, |config| {
        config.max_dirty_age = Duration::from_millis(10);
    })
}

/// Part 0 has an image of 2, in no checkpoint; one of 3 is on its way until it is let go.
async fn replaced(rig: &StoreRig, store: &PartStore) -> Arc<Notify> {
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    fill(&file, 0, 2).await;
    uploaded(store).await;
    let gate = Arc::new(Notify::new());
    let held = Fault::Gate(Arc::clone(&gate));
    rig.remote.under(Some(1), Some(Call::Put), "packs/", held);
    let before = rig.remote.count(Call::Put, "packs/");
    fill(&file, 0, 3).await;
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "packs/") > before)
        .await;
    gate
}

/// The power goes; whatever the disk kept, the part is there.
async fn assert_outlived(rig: &StoreRig, store: PartStore, seed: u64) {
    rig.fs.crash(seed);
    drop(store);
    let mut rig = rig.clone();
    rig.config.queue.seed = Some(9);
    let store = rig.open().await;
    let file = store.file(FILE).expect("is there");
    let bytes = read(&file, 0, PART).await;
    let bytes = bytes.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(bytes == [2; PART] || bytes == [3; PART], "seed {seed}");
    assert_eq!(rig.remote.count(Call::Delete, "packs/"), 0);
}

#[test]
fn an_image_is_kept_while_the_record_of_the_next_one_is_not_durable() {
    for seed in 0..4 {
        paused(async {
            let rig = owner();
            let store = threaded(&rig, 8).await;
            let gate = replaced(&rig, &store).await;
            let hung = Hung::syncs(&rig);
            gate.notify_one();
            until(|| rig.fs.hanging() > 0).await;
            let looks = {
                let store = store.clone();
                spawn(async move { store.gc().await })
            };
            // It waits; what it must not do it would have done by then.
            for _ in 0..20_000 {
                tokio::task::yield_now().await;
                std::thread::yield_now();
                if looks.is_finished() {
                    break;
                }
            }
            assert_outlived(&rig, store, seed).await;
            drop(hung);
            looks.abort();
        });
    }
}

#[test]
fn an_image_is_kept_when_the_next_one_could_not_be_put_on_record() {
    for seed in 0..4 {
        paused(async {
            let rig = owner();
            let store = rig.open().await;
            let gate = replaced(&rig, &store).await;
            rig.fs.fail(fs::Fault {
                call: Some(fs::Call::Sync),
                after: 0,
                errno: fs::EIO,
                forever: true,
            });
            gate.notify_one();
            while store.snapshot().image_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let looked = store.gc().await;
            assert_outlived(&rig, store, seed).await;
            looked.expect_err("nobody knows what the disk names");
        });
    }
}

/// It said "Remote" of what was over, and one that S3 kept waiting outlived its store.
#[test]
fn a_look_for_garbage_ends_with_its_store() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        rig.remote.always(Some(Call::List), None, Fault::Hang);
        let looks = store.clone();
        let under_way = spawn(async move { looks.gc().await });
        rig.remote
            .wait_for(|remote| remote.count(Call::List, "") > 0)
            .await;
        store.shutdown().await.expect("ends");
        let over = |error: &Error| matches!(error, Error::ShuttingDown { .. });
        let error = under_way.await.expect("no panic").expect_err("S3 hangs");
        assert!(over(&error), "{error:?}");
        let asked = tokio::time::Instant::now();
        let error = store.gc().await.expect_err("is over");
        assert!(over(&error) && asked.elapsed().is_zero(), "{error:?}");
    });
}
