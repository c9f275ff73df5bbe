//! What is cut off, or dropped, before a line and behind it.

use std::time::Duration;

use s3_writeback::{FileId, Restore, Role};

use super::FILE;
use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, contents, drawn, fill, paused, read};

/// A file that a line has is dropped, and made again; a part of it is cut off, or cut inside: the
/// checkpoint has what was there at the line, and the next one nothing of it.
#[test]
fn e14_what_is_cut_off_behind_a_line_is_in_it_and_in_no_later_one() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            // Of two parts that the line owes one is captured, and one is set aside.
            config.image_bytes = PART as u64;
        });
        let store = rig.open().await;
        let locker = store.locker("cutter", Role::Foreground).expect("a locker");
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let other = store.create(FileId(2), PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 1).await;
            fill(&other, index, 2).await;
        }
        checkpoint(&store).await;
        // Two are captured, and two will have to be set aside.
        fill(&file, 2, 1).await;
        fill(&other, 0, 2).await;
        fill(&file, 3, 3).await;
        fill(&other, 1, 4).await;
        rig.slow_packs();
        let made = drawn(&store).await;
        store.drop_file(FILE, &locker).await.expect("drops");
        other.set_len(PART as u64 + 10).await.expect("cuts");
        other.set_len(4 * PART as u64).await.expect("grows");
        let again = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&again, 0, 9).await;
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        let bytes = contents(&there, 1).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[..3 * PART].iter().all(|byte| *byte == 1));
        assert!(bytes[3 * PART..].iter().all(|byte| *byte == 3));
        let bytes = contents(&there, 2).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[PART..2 * PART].iter().all(|byte| *byte == 4));
        assert!(bytes[2 * PART..].iter().all(|byte| *byte == 2));
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![9; PART]);
        let bytes = contents(&there, 2).await;
        assert_eq!(bytes.len(), 4 * PART);
        assert!(bytes[..PART].iter().all(|byte| *byte == 2));
        assert!(bytes[PART..PART + 10].iter().all(|byte| *byte == 4));
        assert!(
            bytes[PART + 10..].iter().all(|byte| *byte == 0),
            "old bytes are back"
        );
    });
}

/// The same where nothing else of the page changed that what was cut off is in.
#[test]
fn e14_a_page_all_of_whose_parts_were_cut_off_is_in_no_later_checkpoint() {
    for crashes in [false, true] {
        paused(async {
            let rig = StoreRig::owner(32);
            let mut store = rig.open().await;
            let file = store.create(FILE, PARTS_OF).await.expect("creates");
            fill(&file, 0, 1).await;
            fill(&file, 1500, 2).await;
            fill(&file, 1501, 2).await;
            checkpoint(&store).await;
            file.set_len(1501 * PART as u64).await.expect("cuts");
            file.set_len(PART as u64).await.expect("cuts");
            file.set_len(1502 * PART as u64).await.expect("grows");
            if crashes {
                drop((store, file));
                rig.fs.crash(1);
                store = rig.open().await;
            }
            checkpoint(&store).await;
            let there = rig.restored(Restore::latest()).await;
            let file = there.file(FILE).expect("is there");
            assert_eq!(file.len(), 1502 * PART as u64);
            assert_eq!(read(&file, 0, PART).await.expect("reads"), [1; PART]);
            for index in [1500, 1501] {
                let bytes = read(&file, index * PART, PART).await.expect("reads");
                assert_eq!(bytes, [0; PART], "old bytes are back");
            }
        });
    }
}

/// The same in a directory that was restored, whose headers no record has.
#[test]
fn e14_what_is_cut_off_of_a_restored_file_is_in_no_later_checkpoint() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        fill(&file, 0, 1).await;
        fill(&file, 1500, 2).await;
        checkpoint(&store).await;
        let there = rig.elsewhere();
        let restored = there
            .prefix()
            .restore(&there.config, Restore::latest())
            .await;
        restored.expect("is restored");
        let opened = there.open_as(s3_writeback::StoreBuilder::take_over).await;
        let store = opened.expect("opens");
        let file = store.file(FILE).expect("is there");
        file.set_len(PART as u64).await.expect("cuts");
        file.set_len(1501 * PART as u64).await.expect("grows");
        drop((store, file));
        there.fs.crash(1);
        let store = there.open().await;
        checkpoint(&store).await;
        let again = there.restored(Restore::latest()).await;
        let file = again.file(FILE).expect("is there");
        let bytes = read(&file, 1500 * PART, PART).await.expect("reads");
        assert_eq!(bytes, [0; PART], "old bytes are back");
    });
}

/// What was cut off in one life is in no checkpoint of the next; nor is a file that was dropped.
#[test]
fn e14_what_was_cut_off_or_dropped_before_a_crash_is_in_no_checkpoint_after_it() {
    paused(async {
        let rig = StoreRig::owner(32);
        let store = rig.open().await;
        let locker = store.locker("cutter", Role::Foreground).expect("a locker");
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let gone = store.create(FileId(2), PARTS_OF).await.expect("creates");
        for index in 0..4 {
            fill(&file, index, 1).await;
            fill(&gone, index, 2).await;
        }
        checkpoint(&store).await;
        file.set_len(PART as u64).await.expect("cuts");
        file.set_len(3 * PART as u64).await.expect("grows");
        store.drop_file(FileId(2), &locker).await.expect("drops");
        drop((store, file, gone, locker));
        rig.fs.crash(1);
        let store = rig.open().await;
        checkpoint(&store).await;
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(there.files(), [FILE]);
        let bytes = contents(&there, 1).await;
        assert_eq!(bytes.len(), 3 * PART);
        assert!(
            bytes[PART..].iter().all(|byte| *byte == 0),
            "old bytes are back"
        );
    });
}

/// A part is cut off while its image, which the line has, waits for a slot: nobody else has a use
/// for it, and it goes up all the same.
#[test]
fn e14_an_image_that_only_the_line_needs_goes_up() {
    paused(async {
        let rig = StoreRig::owner_with(32, |config| {
            config.pack_bytes = PART as u64;
            config.queue.workers = 1;
        });
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..6 {
            fill(&file, index, 1).await;
        }
        rig.slow_packs();
        let made = drawn(&store).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        file.set_len(PART as u64).await.expect("cuts");
        made.await.expect("ends").expect("is committed");
        let there = rig.restored(Restore::latest()).await;
        assert_eq!(contents(&there, 1).await, vec![1; 6 * PART]);
    });
}
