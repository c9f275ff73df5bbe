//! Files that are cut, dropped or grown around lines.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::{FileId, PartStore, Restore, Role, RunOn};
use tokio::runtime::Handle;

use super::FILE;
use crate::support::{
    PART, PARTS_OF, StoreRig, checkpoint, contents, drawn, fill, on_threads, paused, read,
};

#[test]
fn parts_that_were_cut_off_at_a_boundary_before_a_checkpoint_do_not_come_back_when_the_file_grows()
{
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..8 {
            fill(&file, index, 1).await;
        }
        checkpoint(&store).await;
        file.set_len(4 * PART as u64).await.expect("is cut");
        checkpoint(&store).await;
        file.set_len(8 * PART as u64).await.expect("grows");
        checkpoint(&store).await;
        let here = contents(&store, 1).await;
        assert!(here[4 * PART..].iter().all(|byte| *byte == 0));
        let there = rig.restored(Restore::latest()).await;
        let there = contents(&there, 1).await;
        assert!(there == here, "what was cut off came back");
    });
}

#[test]
fn a_file_that_was_dropped_is_let_go_of_when_no_checkpoint_has_it() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.checkpoint_every = Some(Duration::from_secs(10));
        });
        let store = rig.open().await;
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        let file = store.create(FileId(2), PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        checkpoint(&store).await;
        fill(&file, 0, 2).await;
        drop(file);
        let locker = store.locker("l", Role::Foreground).expect("a locker");
        store
            .drop_file(FileId(2), &locker)
            .await
            .expect("is dropped");
        checkpoint(&store).await;
        let made = checkpoint(&store).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let last = store
            .checkpoints()
            .await
            .expect("lists")
            .last()
            .expect("one")
            .number;
        assert_eq!(
            last, made.number,
            "checkpoints are made though nothing has changed"
        );
    });
}

#[test]
fn a_file_that_was_made_and_truncated_behind_the_line_is_in_the_next_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        rig.slow_packs();
        let made = drawn(&store).await;
        let new = store.create(FileId(2), PARTS_OF).await.expect("creates");
        new.set_len(0).await.expect("is truncated");
        made.await.expect("ends").expect("is committed");
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE, FileId(2)]);
    });
}

#[test]
fn a_file_of_many_pages_is_cut_and_grows_and_each_checkpoint_has_it() {
    paused(async {
        let rig = StoreRig::owner(64);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for page in 0..8 {
            fill(&file, page * 1024 + 3, 1).await;
        }
        checkpoint(&store).await;
        file.set_len((2048 * PART + 10) as u64)
            .await
            .expect("is cut");
        checkpoint(&store).await;
        file.set_len((8 * 1024 * PART) as u64).await.expect("grows");
        fill(&file, 5 * 1024, 2).await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        let there = there.file(FILE).expect("is there");
        let mut found = Vec::new();
        for page in 0..8 {
            for part in [0, 3] {
                let bytes = read(&there, (page * 1024 + part) * PART, 1).await;
                found.push(bytes.expect("reads")[0]);
            }
        }
        assert_eq!(found, [0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    });
}

/// On the file system that there is.
#[test]
fn a_dropped_file_leaves_nothing_open() {
    on_threads(2, async {
        let dir = tempfile::tempdir().expect("a directory");
        let mut rig = StoreRig::owner(64);
        rig.config.queue.dir = dir.path().join("store");
        let remote = Arc::new(rig.remote.clone());
        let store = PartStore::builder(rig.config.clone(), remote)
            .run_on(RunOn::Handle(Handle::current()))
            .open()
            .await
            .expect("opens");
        let locker = store.locker("l", Role::Foreground).expect("a locker");
        store.create(FILE, PARTS_OF).await.expect("creates");
        checkpoint(&store).await;
        for _ in 0..30 {
            let file = store.create(FileId(2), PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            drop(file);
            store.drop_file(FileId(2), &locker).await.expect("drops");
            checkpoint(&store).await;
        }
        let own = dir.path().display().to_string();
        let fds = std::fs::read_dir("/proc/self/fd").expect("a list");
        let gone = fds
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .filter(|to| to.display().to_string().starts_with(&own))
            .filter(|to| to.display().to_string().ends_with("(deleted)"))
            .count();
        store.shutdown().await.expect("ends");
        assert!(
            gone < 5,
            "{gone} files that were dropped are open, and keep their blocks"
        );
    });
}
