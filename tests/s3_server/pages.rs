//! Parts, checkpoints and epochs.

use std::path::Path;

use s3_writeback::{
    CheckpointOptions, Error, Fencing, FileId, FileOptions, PartStore, Prefix, Restore, StoreConfig,
};

use crate::lane::{DEADLINE, Lane, MIB, store_config};

const FILE: FileId = FileId(1);
const PART: usize = 64 * 1024;
const LEN: usize = 6 * MIB;

/// As the server allows: without conditions there are no epochs.
fn config(lane: &Lane, dir: &Path) -> StoreConfig {
    let mut config = store_config(dir);
    if !lane.capabilities.can_fence() {
        config.fencing = Fencing::Off;
    }
    config
}

async fn open(lane: &Lane, under: &str, dir: &Path, take_over: bool) -> PartStore {
    let builder = PartStore::builder(config(lane, dir), lane.remote(under));
    let builder = match take_over {
        true => builder.take_over(),
        false => builder,
    };
    builder.open().within(DEADLINE).await.expect("opens")
}

/// The bytes of part `at` in this generation.
fn part(at: usize, generation: u8) -> Vec<u8> {
    (0..PART)
        .map(|byte| (byte / 251) as u8 ^ at as u8 ^ generation)
        .collect()
}

/// Writes every `step`-th part in this generation, more than the cache holds.
async fn write(store: &PartStore, generation: u8, step: usize) {
    let options = FileOptions {
        part_bytes: PART as u32,
    };
    let file = store.create_or_open(FILE, options).await.expect("is there");
    if file.is_empty() {
        file.set_len(LEN as u64).await.expect("grows");
    }
    for at in (0..LEN / PART).step_by(step) {
        let bytes = part(at, generation);
        file.write_at(&bytes, (at * PART) as u64)
            .within(DEADLINE)
            .await
            .expect("writes");
    }
}

/// Reads all of it: `newer` in every `step`-th part, `older` in the others.
async fn check(store: &PartStore, older: u8, newer: u8, step: usize) {
    let file = store.file(FILE).expect("is there");
    let mut read = vec![0; PART];
    for at in 0..LEN / PART {
        file.read_at(&mut read, (at * PART) as u64)
            .within(DEADLINE)
            .await
            .expect("reads");
        let generation = if at.is_multiple_of(step) {
            newer
        } else {
            older
        };
        assert!(
            read == part(at, generation),
            "part {at} is not of {generation}"
        );
    }
}

/// A file that is larger than its cache: what is evicted comes back from S3, also in the next
/// life.
pub async fn load(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(lane, "load", dir.path(), false).await;
    write(&store, 1, 1).await;
    check(&store, 0, 1, 1).await;
    let snapshot = store.snapshot();
    assert!(snapshot.evictions > 0 && snapshot.loads > 0, "{snapshot:?}");
    assert!(snapshot.peak_cache_bytes <= 2 * MIB as u64, "{snapshot:?}");
    store.shutdown().await.unwrap();
    let store = open(lane, "load", dir.path(), false).await;
    check(&store, 0, 1, 1).await;
    store.shutdown().await.unwrap();
    lane.sweep("load").await;
}

/// Two versions, each restored into an empty directory, one of them by its number.
pub async fn checkpoint_and_restore(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(lane, "restore", &dir.path().join("first"), false).await;
    write(&store, 1, 1).await;
    let one = store
        .checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");
    write(&store, 2, 3).await;
    let two = store
        .checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");
    // Of this nothing is in either.
    write(&store, 3, 1).await;
    store.shutdown().await.unwrap();

    let prefix = Prefix::new(lane.remote("restore"));
    for (number, step) in [(one.number, None), (two.number, Some(3))] {
        let report = prefix.verify(Some(number)).await.expect("verifies");
        assert_eq!(report.bad, 0, "{report:?}");
        let at = dir.path().join(format!("restored-{number}"));
        let what = match number == two.number {
            true => Restore::latest(),
            false => Restore::number(number).with_bytes(),
        };
        let restored = prefix
            .restore(&config(lane, &at), what)
            .await
            .expect("is restored");
        assert_eq!(restored.checkpoint.number, number);
        let store = PartStore::builder(config(lane, &at), lane.remote("restore"));
        let store = store.stranded().open().await.expect("opens");
        match step {
            None => check(&store, 0, 1, 1).await,
            Some(step) => check(&store, 1, 2, step).await,
        }
        store.shutdown().await.unwrap();
    }
    lane.sweep("restore").await;
}

/// A second owner fences the first; on a server that cannot, the open is refused and says why.
pub async fn fence_or_refusal(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    if !lane.capabilities.can_fence() {
        let refused = PartStore::builder(store_config(&first), lane.remote("fence"));
        let refused = refused
            .open()
            .within(DEADLINE)
            .await
            .expect_err("is refused");
        assert!(matches!(refused, Error::FencingUnsupported(_)), "{refused}");
        lane.differs(format!("fenced mode is refused: {refused}"));
        lane.sweep("fence").await;
        return;
    }
    let old = open(lane, "fence", &first, false).await;
    write(&old, 1, 1).await;
    old.checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");

    let prefix = Prefix::new(lane.remote("fence"));
    let restored = prefix
        .restore(&store_config(&second), Restore::latest())
        .await;
    restored.expect("is restored");
    let refused = PartStore::builder(store_config(&second), lane.remote("fence"));
    let refused = refused
        .open()
        .within(DEADLINE)
        .await
        .expect_err("it has an owner");
    assert!(matches!(refused, Error::TakeOverNeeded { .. }), "{refused}");
    let new = open(lane, "fence", &second, true).await;
    write(&new, 2, 2).await;
    let ours = new
        .checkpoint(CheckpointOptions::new())
        .await
        .expect("is committed");

    let late = old
        .checkpoint(CheckpointOptions::new())
        .within(DEADLINE)
        .await;
    let late = late.expect_err("another owns it");
    assert!(matches!(late, Error::Fenced { .. }), "{late}");
    assert!(old.check_fenced().is_err());
    let listed = new.checkpoints().await.expect("lists");
    assert_eq!(listed.last().map(|last| last.number), Some(ours.number));
    old.shutdown().await.unwrap();
    check(&new, 1, 2, 2).await;
    new.shutdown().await.unwrap();
    lane.sweep("fence").await;
}

/// Of many versions two are kept: what only the others needed goes, and those two are whole.
pub async fn garbage(lane: &Lane) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(lane, "garbage", dir.path(), false).await;
    for generation in 1..=5 {
        write(&store, generation, 1).await;
        store
            .checkpoint(CheckpointOptions::new())
            .await
            .expect("is committed");
    }
    let before = lane.keys_under("garbage").await.len();
    let report = if lane.capabilities.can_fence() {
        store.gc().within(DEADLINE).await.expect("looks")
    } else {
        match store.gc().within(DEADLINE).await {
            Ok(report) => report,
            Err(error) => {
                lane.differs(format!("garbage stays: {error}"));
                store.shutdown().await.unwrap();
                lane.sweep("garbage").await;
                return;
            }
        }
    };
    let after = lane.keys_under("garbage").await.len();
    assert!(
        report.deleted > 0 && after < before,
        "{report:?}: {before} to {after} objects"
    );
    let listed = store.checkpoints().await.expect("lists");
    assert_eq!(listed.len(), 2);
    let prefix = Prefix::new(lane.remote("garbage"));
    for one in listed {
        let report = prefix.verify(Some(one.number)).await.expect("verifies");
        assert_eq!(report.bad, 0, "{report:?}");
    }
    check(&store, 0, 5, 1).await;
    store.shutdown().await.unwrap();
    lane.say(&format!("{before} objects before gc, {after} after"));
    lane.sweep("garbage").await;
}
