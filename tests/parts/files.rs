//! Files of a part store: bytes in, bytes out, through loads, evictions and restarts.

use std::time::Duration;

use crate::support::{PART, PARTS_OF, StoreRig, assert_idle, fill, paused, read, uploaded};
use s3_writeback::{Error, FileId, FileOptions};

const FILE: FileId = FileId(1);

#[test]
fn what_is_written_is_read_through_a_cache_that_is_smaller_than_the_file() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..32 {
            fill(&file, index, index as u8 + 1).await;
        }
        assert_eq!(file.len(), 32 * PART as u64);
        for index in (0..32).rev() {
            let bytes = read(&file, index * PART, PART).await.expect("reads");
            assert_eq!(bytes, vec![index as u8 + 1; PART], "part {index}");
        }
        let across = read(&file, PART - 3, PART + 6).await.expect("reads");
        assert_eq!(across[..3], [1; 3]);
        assert_eq!(across[3..PART + 3], [2; PART]);
        assert_eq!(across[PART + 3..], [3; 3]);
        assert!(store.snapshot().evictions > 20 && store.snapshot().loads > 20);
        assert!(store.snapshot().peak_cache_bytes <= 4 * PART as u64);
        uploaded(&store).await;
        assert_idle(&store);
        let report = store.shutdown().await.expect("shuts down");
        assert!(report.sealed && report.dirty_parts == 0, "{report:?}");
    });
}

#[test]
fn a_restart_finds_what_was_synced_here_and_what_was_uploaded_there() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, index as u8 + 1).await;
        }
        file.write_at(b"tail", 16 * PART as u64)
            .await
            .expect("writes");
        file.sync().await.expect("syncs");
        drop((file, store));
        for seed in 0..20 {
            rig.fs.crash(seed);
            let store = rig.open().await;
            assert_eq!(store.files(), [FILE]);
            let file = store.file(FILE).expect("is there");
            assert_eq!(file.len(), 16 * PART as u64 + 4);
            for index in 0..16 {
                let bytes = read(&file, index * PART, PART).await.expect("reads");
                assert_eq!(
                    bytes,
                    vec![index as u8 + 1; PART],
                    "part {index}, seed {seed}"
                );
            }
            assert_eq!(read(&file, 16 * PART, 4).await.expect("reads"), b"tail");
            drop((file, store));
        }
    });
}

#[test]
fn after_a_shutdown_all_of_it_is_in_s3() {
    paused(async {
        let rig = StoreRig::new(8);
        let store = rig.open().await;
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        for index in 0..16 {
            fill(&file, index, index as u8 + 1).await;
        }
        let report = store.shutdown().await.expect("shuts down");
        assert!(report.sealed && report.dirty_parts == 0, "{report:?}");
        let objects = rig.remote.keys().len();
        assert!((1..16).contains(&objects), "{objects} objects");
        // Its local bytes are not needed any more.
        let parts = std::path::Path::new("/q/parts");
        for name in rig.fs.names(parts) {
            let len = rig.fs.peek(&name).map_or(0, |bytes| bytes.len());
            rig.fs.poke(&name, vec![0; len]);
        }
        let store = rig.open().await;
        let file = store.file(FILE).expect("is there");
        for index in 0..16 {
            let bytes = read(&file, index * PART, PART).await.expect("reads");
            assert_eq!(bytes, vec![index as u8 + 1; PART], "part {index}");
        }
    });
}

#[test]
fn bad_input_is_refused_with_its_value_and_limit() {
    paused(async {
        let rig = StoreRig::new(4);
        let store = rig.open().await;
        for part_bytes in [0, 4095, 6000, 32 * 1024 * 1024, 64 * 1024] {
            let made = store.create(FILE, FileOptions { part_bytes }).await;
            let Err(Error::InvalidInput { value, .. }) = made else {
                panic!("{made:?}")
            };
            assert!(value.contains(&part_bytes.to_string()));
        }
        let file = store.create(FILE, PARTS_OF).await.expect("creates");
        let again = store.create(FILE, PARTS_OF).await;
        assert!(matches!(again, Err(Error::FileExists { file: FILE })));
        let other = FileOptions { part_bytes: 8192 };
        let other = store.create_or_open(FILE, other).await;
        assert!(
            matches!(other, Err(Error::InvalidInput { .. })),
            "{other:?}"
        );
        fill(&file, 0, 7).await;
        let past = read(&file, PART - 1, 2).await;
        assert!(
            matches!(past, Err(Error::PastEnd { size: 4096, .. })),
            "{past:?}"
        );
        let mut one = [0];
        let overflow = file.read_at(&mut one, u64::MAX).await;
        assert!(matches!(overflow, Err(Error::PastEnd { .. })));
        let overflow = file.write_at(&[1], u64::MAX).await;
        assert!(matches!(overflow, Err(Error::PastEnd { .. })));
        let unknown = store.file(FileId(9)).err();
        assert!(matches!(
            unknown,
            Some(Error::UnknownFile { file: FileId(9) })
        ));
        store
            .shutdown()
            .within(Duration::from_secs(9))
            .await
            .expect("shuts down");
        let late = file.write_at(&[1], 0).await;
        assert!(matches!(late, Err(Error::ShuttingDown { .. })), "{late:?}");
        let late = read(&file, 0, 1).await;
        assert!(matches!(late, Err(Error::ShuttingDown { .. })), "{late:?}");
    });
}
