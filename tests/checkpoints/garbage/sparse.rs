//! Objects of which little is needed any more.

use s3_writeback::{FileId, Restore};

use crate::owners::{FILE, assert_whole, byte_of, founded, objects, reborn, the_file};
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, contents, fill, uploaded};

fn sparse() -> StoreRig {
    let mut rig = StoreRig::owner(128);
    rig.config.retain_checkpoints = 1;
    rig.config.sparse_percent = 50;
    rig
}

/// The largest object: many parts together.
fn large(rig: &StoreRig) -> Vec<String> {
    let objects = objects(&rig.remote).into_iter();
    let large = objects.filter(|(_, body)| body.len() > 20 * PART);
    large.map(|(key, _)| key).collect()
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_sparse_is_emptied_and_goes_and_all_is_restored() {
    for cold in [false, true] {
        let rig = sparse();
        let (mut store, file) = founded(&rig, 1).await;
        for index in 0..40 {
            fill(&file, index, 2).await;
        }
        checkpoint(&store).await;
        let [pack] = &large(&rig)[..] else {
            panic!("{:?}", rig.remote.keys())
        };
        // All but a few are written anew.
        for index in 0..35 {
            fill(&file, index, 3).await;
        }
        checkpoint(&store).await;
        drop(file);
        if cold {
            // What is moved is not here.
            store.shutdown().await.unwrap();
            drop(store);
            let mut small = reborn(&rig, 9);
            small.config.cache_bytes = 4 * PART as u64;
            small.config.dirty_bytes = 2 * PART as u64;
            store = small.open().await;
        }
        let mut moved = 0;
        for _ in 0..6 {
            moved += store.gc().await.unwrap().moved_parts;
            assert_whole(&rig).await;
            checkpoint(&store).await;
        }
        assert!(moved >= 5, "{moved}");
        assert!(!rig.remote.keys().contains(pack), "it is still there");
        let restored = rig.restored(Restore::latest()).await;
        for index in 0..40 {
            let byte = if index < 35 { 3 } else { 2 };
            assert_eq!(byte_of(&restored, index).await, byte, "part {index}");
        }
        // It comes to an end.
        store.gc().await.unwrap();
        checkpoint(&store).await;
        let last = store.gc().await.unwrap();
        assert_eq!(last.moved_parts, 0, "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_moved_at_one_time_is_bounded() {
    let mut rig = sparse();
    rig.config.sparse_bytes = 2 * PART as u64;
    let (store, file) = founded(&rig, 1).await;
    for index in 0..40 {
        fill(&file, index, 2).await;
    }
    checkpoint(&store).await;
    for index in 0..30 {
        fill(&file, index, 3).await;
    }
    checkpoint(&store).await;
    let report = store.gc().await.unwrap();
    assert_eq!(report.moved_parts, 2);
    uploaded(&store).await;
    assert_eq!(store.gc().await.unwrap().moved_parts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_written_while_it_is_moved_is_what_was_written() {
    let rig = sparse();
    let (store, file) = founded(&rig, 1).await;
    for index in 0..40 {
        fill(&file, index, 2).await;
    }
    checkpoint(&store).await;
    for index in 0..35 {
        fill(&file, index, 3).await;
    }
    checkpoint(&store).await;
    let writes = {
        let file = the_file(&store);
        crate::support::spawn(async move {
            for byte in 4..40_u8 {
                for index in 35..40 {
                    fill(&file, index, byte).await;
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    for _ in 0..8 {
        store.gc().await.unwrap();
        checkpoint(&store).await;
        assert_whole(&rig).await;
    }
    writes.await.unwrap();
    for index in 35..40 {
        assert_eq!(byte_of(&store, index).await, 39);
    }
    checkpoint(&store).await;
    store.gc().await.unwrap();
    let restored = rig.restored(Restore::latest()).await;
    for index in 0..40 {
        let byte = if index < 35 { 3 } else { 39 };
        assert_eq!(byte_of(&restored, index).await, byte);
    }
    assert_eq!(restored.files(), [FILE]);
}

#[tokio::test(start_paused = true)]
async fn an_object_with_pages_of_headers_of_which_few_are_needed_goes_too() {
    let rig = sparse();
    let (store, _file) = founded(&rig, 1).await;
    let mut files = Vec::new();
    for id in 2..40 {
        let file = store.create(FileId(id), PARTS_OF).await.unwrap();
        fill(&file, 0, 2).await;
        if id == 3 {
            // The images of these two have an object of their own, which is needed whole.
            uploaded(&store).await;
        }
        files.push(file);
    }
    let before = rig.remote.keys();
    checkpoint(&store).await;
    // Pages, and the tree: no part is that small.
    let keys = rig.remote.keys().into_iter();
    let mut new = keys.filter(|key| key.starts_with("packs/") && !before.contains(key));
    let pages = new.find(|key| rig.remote.object(key).unwrap().len() < 2 * PART);
    let pages = pages.expect("an object with the pages");
    for file in &files[2..] {
        fill(file, 0, 3).await;
    }
    checkpoint(&store).await;
    for _ in 0..3 {
        store.gc().await.unwrap();
        checkpoint(&store).await;
    }
    store.gc().await.unwrap();
    assert!(!rig.remote.keys().contains(&pages), "it is still there");
    assert_whole(&rig).await;
    let restored = rig.restored(Restore::latest()).await;
    for (at, id) in (2..40).enumerate() {
        let byte = if at < 2 { 2 } else { 3 };
        assert_eq!(contents(&restored, id).await, [byte; PART], "file {id}");
    }
}
