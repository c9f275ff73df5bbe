//! Checkpoints: what is in them, and that they come back.

mod support;

use s3_writeback::testing::remote::Call;
use s3_writeback::{CheckpointOptions, FileId, Restore};

use support::{PART, PARTS_OF, StoreRig, checkpoint, contents, fill, read};

#[tokio::test(start_paused = true)]
async fn what_was_written_before_the_line_comes_back_and_nothing_else() {
    let rig = StoreRig::owner(16);
    let store = rig.open().await;
    let file = store.create(FileId(1), PARTS_OF).await.unwrap();
    let other = store.create(FileId(2), PARTS_OF).await.unwrap();
    fill(&file, 0, 1).await;
    fill(&file, 2, 3).await;
    other.write_at(b"short", 10).await.unwrap();
    let first = store
        .checkpoint(CheckpointOptions::new().meta(|| b"redo 17".to_vec()))
        .await
        .unwrap();
    assert_eq!((first.number, first.files), (1, 2));
    assert_eq!(first.meta, b"redo 17");
    fill(&file, 0, 9).await;
    store.create(FileId(3), PARTS_OF).await.unwrap();

    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(restored.files(), [FileId(1), FileId(2)]);
    let bytes = contents(&restored, 1).await;
    assert_eq!(bytes.len(), 3 * PART);
    assert!(bytes[..PART].iter().all(|byte| *byte == 1));
    assert!(bytes[PART..2 * PART].iter().all(|byte| *byte == 0));
    assert!(bytes[2 * PART..].iter().all(|byte| *byte == 3));
    let bytes = contents(&restored, 2).await;
    assert_eq!(&bytes[10..], b"short");
    assert_eq!(bytes.len(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_parts_go_up_in_four_objects_and_the_next_checkpoint_writes_what_changed() {
    let rig = {
        let mut rig = StoreRig::owner(2048);
        rig.config.image_bytes = 64 << 20;
        rig
    };
    let store = rig.open().await;
    let file = store.create(FileId(1), PARTS_OF).await.unwrap();
    for index in 0..1000 {
        fill(&file, index, 7).await;
    }
    let before = rig.remote.count(Call::Put, "");
    checkpoint(&store).await;
    let puts = rig.remote.count(Call::Put, "") - before;
    // The parts, their headers, the manifest, and head.
    assert_eq!(puts, 4, "{:?}", rig.remote.keys());
    fill(&file, 500, 8).await;
    let before = rig.remote.count(Call::Put, "");
    let bytes = rig.remote.keys().len();
    checkpoint(&store).await;
    assert_eq!(rig.remote.count(Call::Put, "") - before, 4);
    assert_eq!(rig.remote.keys().len(), bytes + 3);
    let restored = rig.restored(Restore::latest()).await;
    let file = restored.file(FileId(1)).unwrap();
    assert_eq!(read(&file, 500 * PART, 1).await.unwrap(), [8]);
    assert_eq!(read(&file, 501 * PART, 1).await.unwrap(), [7]);
    // Nothing has changed: the checkpoint is the same files under another number.
    let again = rig.restored(Restore::number(1)).await;
    let _ = again;
}
