//! Several owners of one prefix.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use s3_writeback::io::Io;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{
    Error, File, FileId, PartStore, Restore, Result, RunOn, StoreBuilder, VerifyReport,
};
use tokio::runtime::Handle;

use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, fill, read};
use crate::wire::Wire;

/// The file that all of these tests use.
pub const FILE: FileId = FileId(1);

/// An empty directory of somebody else on the same bucket: what is random there is not what it is
/// here.
pub fn other(rig: &StoreRig, seed: u64) -> StoreRig {
    let mut other = rig.elsewhere();
    other.config.queue.seed = Some(seed);
    other
}

/// The same directory after a restart, by a process of its own.
pub fn reborn(rig: &StoreRig, seed: u64) -> StoreRig {
    let mut reborn = rig.clone();
    reborn.config.queue.seed = Some(seed);
    reborn
}

/// Another directory with the latest checkpoint in it.
pub async fn restored_elsewhere(rig: &StoreRig, seed: u64) -> StoreRig {
    let there = other(rig, seed);
    let restored = there.prefix().restore(&there.config, Restore::latest());
    restored.await.expect("is restored");
    there
}

/// Another directory with the latest checkpoint in it, which takes the prefix over.
pub async fn taken_over(rig: &StoreRig, seed: u64) -> (StoreRig, PartStore) {
    let there = restored_elsewhere(rig, seed).await;
    let store = there.open_as(StoreBuilder::take_over).await;
    (there, store.expect("takes over"))
}

/// Opens a store that reaches the bucket this way.
pub async fn open_by(
    rig: &StoreRig,
    wire: &Wire,
    say: impl FnOnce(StoreBuilder) -> StoreBuilder,
) -> Result<PartStore> {
    let remote = std::sync::Arc::new(wire.clone());
    let builder = PartStore::builder(rig.config.clone(), remote)
        .run_on(RunOn::Handle(Handle::current()))
        .file_system(std::sync::Arc::new(rig.fs.process()), Io::inline());
    say(builder).open().await
}

/// A store with one file, of one part that is `byte`, and a checkpoint of that.
pub async fn founded(rig: &StoreRig, byte: u8) -> (PartStore, File) {
    let store = rig.open().await;
    let file = store.create(FILE, PARTS_OF).await.expect("creates");
    fill(&file, 0, byte).await;
    checkpoint(&store).await;
    (store, file)
}

/// The only file.
pub fn the_file(store: &PartStore) -> File {
    store.file(FILE).expect("there is such a file")
}

/// The byte that part `index` is full of.
pub async fn byte_of(store: &PartStore, index: usize) -> u8 {
    let bytes = read(&the_file(store), index * PART, PART).await;
    let bytes = bytes.expect("is read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "torn");
    bytes[0]
}

/// All objects, but for what a probe may have left.
pub fn objects(remote: &SimRemote) -> BTreeMap<String, Bytes> {
    let keys = remote.keys().into_iter();
    keys.filter(|key| !key.starts_with("probe/"))
        .map(|key| (key.clone(), remote.object(&key).expect("is there")))
        .collect()
}

/// The number of the latest checkpoint.
pub async fn latest(rig: &StoreRig) -> Option<u64> {
    let listed = rig.prefix().checkpoints().await.expect("are listed");
    listed.last().map(|one| one.number)
}

/// Reads every image of every checkpoint that is listed.
pub async fn assert_whole(rig: &StoreRig) -> Vec<u64> {
    let mut numbers = Vec::new();
    for one in rig.prefix().checkpoints().await.expect("are listed") {
        let report: VerifyReport = rig
            .prefix()
            .verify(Some(one.number))
            .await
            .unwrap_or_else(|error| panic!("checkpoint {}: {error}", one.number));
        assert_eq!(report.bad, 0, "{:?}", report.faults);
        numbers.push(one.number);
    }
    numbers
}

pub fn is_fenced(error: &Error) -> bool {
    matches!(error, Error::Fenced { .. })
}

/// Waits so long that whoever looks at `head` has.
pub async fn a_look_at_head() {
    tokio::time::sleep(Duration::from_secs(11)).await;
}
