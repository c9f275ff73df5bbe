//! What is in the bucket is not what should be, or the bucket is not one that can be used.

use std::path::Path;

use bytes::Bytes;
use s3_writeback::remote::BucketFacts;
use s3_writeback::{CheckpointOptions, Error, Fencing, Restore, StoreBuilder};

use crate::owners::{
    FILE, a_look_at_head, byte_of, founded, latest, objects, other, reborn, restored_elsewhere,
};
use crate::support::{StoreRig, checkpoint, fill};

/// Bytes of a pack before its first image.
const PACK_HEAD: usize = 16;

fn flipped(body: &Bytes, at: usize) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes[at] ^= 0x10;
    bytes
}

fn key_of(rig: &StoreRig, prefix: &str, last: bool) -> String {
    let mut keys = rig.remote.keys().into_iter();
    let found = match last {
        true => keys.rfind(|key| key.starts_with(prefix)),
        false => keys.find(|key| key.starts_with(prefix)),
    };
    found.expect("there is one")
}

/// Every way to use the latest checkpoint is refused, by an error that says which object it is.
async fn assert_refused(rig: &StoreRig, key: &str, version: bool) {
    let before = objects(&rig.remote);
    let is_so = |error: Error| match (&error, version) {
        (Error::ObjectDamaged { key: of, .. }, false) => assert_eq!(of, key),
        (
            Error::Version {
                path,
                found: 9,
                newest: 1,
                ..
            },
            true,
        ) => assert_eq!(path, Path::new(key)),
        _ => panic!("{error}"),
    };
    is_so(rig.prefix().verify(None).await.unwrap_err());
    let there = other(rig, 60);
    let restored = there.prefix().restore(&there.config, Restore::latest());
    is_so(restored.await.unwrap_err());
    if key.starts_with("packs/") && !there.fs.names(Path::new("/q")).is_empty() {
        // Found out on the way: what is there is no store.
        let error = there.open_as(StoreBuilder::take_over).await.unwrap_err();
        assert!(matches!(error, Error::RestoreUnfinished { .. }), "{error}");
    } else {
        assert!(there.fs.names(Path::new("/q")).is_empty(), "{key}");
    }
    let ttl = std::time::Duration::from_secs(60);
    if key == "head" {
        is_so(rig.prefix().checkpoints().await.unwrap_err());
        is_so(there.open_as(StoreBuilder::take_over).await.unwrap_err());
    }
    match rig.prefix().read(None, 4096, ttl).await {
        Err(error) => is_so(error),
        // Pages are read when they are needed.
        Ok(reader) => {
            is_so(reader.read(FILE, 0, 1).await.unwrap_err());
            reader.close().await.unwrap();
        }
    }
    is_so(rig.prefix().collect_garbage().await.unwrap_err());
    assert_eq!(objects(&rig.remote), before);
}

#[tokio::test(start_paused = true)]
async fn a_head_and_a_manifest_of_which_a_byte_is_wrong_are_refused_and_nothing_is_changed() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    checkpoint(&store).await;
    store.shutdown().await.unwrap();
    for key in ["head".to_owned(), key_of(&rig, "checkpoints/", true)] {
        let good = rig.remote.object(&key).unwrap();
        // All of the envelope but the version, which is information, and of the rest some.
        let envelope = (0..8).chain(12..24);
        for at in envelope.chain((24..good.len()).step_by(11)) {
            rig.remote.plant(&key, flipped(&good, at));
            // The oldest release that can read it is a version, too.
            if (12..16).contains(&at) {
                let error = rig.prefix().verify(None).await.unwrap_err();
                assert!(matches!(error, Error::Version { .. }), "{error}");
                continue;
            }
            assert_refused(&rig, &key, false).await;
        }
        for cut in [0, 7, 23, good.len() - 1] {
            rig.remote.plant(&key, good.slice(..cut));
            assert_refused(&rig, &key, false).await;
        }
        let mut later = good.to_vec();
        (later[8], later[12]) = (9, 2);
        rig.remote.plant(&key, later);
        assert_refused(&rig, &key, true).await;
        rig.remote.plant(&key, good);
    }
    // As it was, all of it is good.
    assert_eq!(rig.prefix().verify(None).await.unwrap().bad, 0);
    let store = reborn(&rig, 9).open().await;
    assert_eq!(byte_of(&store, 0).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_header_with_a_wrong_checksum_is_refused_and_named() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    // Its own object: this checkpoint's header, while the part is in another.
    fill(&file, 0, 2).await;
    let before = objects(&rig.remote);
    checkpoint(&store).await;
    store.shutdown().await.unwrap();
    let new: Vec<String> = objects(&rig.remote)
        .into_keys()
        .filter(|key| key.starts_with("packs/") && !before.contains_key(key))
        .collect();
    let mut refused = 0;
    for key in new {
        let good = rig.remote.object(&key).unwrap();
        if good.len() > 2048 {
            // Of a part: its checkpoint is all there but for this.
            rig.remote.plant(&key, flipped(&good, 100));
            let report = rig.prefix().verify(None).await.unwrap();
            assert_eq!((report.bad, report.faults.len()), (1, 1));
            assert!(report.faults[0].contains(&key), "{:?}", report.faults);
        } else {
            // What is before the first image says what the object is; nobody relies on it.
            for at in PACK_HEAD..good.len() {
                rig.remote.plant(&key, flipped(&good, at));
                assert_refused(&rig, &key, false).await;
                refused += 1;
            }
        }
        rig.remote.plant(&key, good);
    }
    assert!(refused > 20, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_owner_whose_head_is_damaged_commits_nothing_and_goes_on_when_it_is_mended() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    let good = rig.remote.object("head").unwrap();
    rig.remote.plant("head", flipped(&good, 30));
    let before = objects(&rig.remote);
    a_look_at_head().await;
    assert!(store.check_fenced().is_ok(), "nobody has claimed it");
    fill(&file, 0, 2).await;
    let error = store.checkpoint(CheckpointOptions::new()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::ObjectDamaged { .. }), "{error}");
    let error = store.gc().await.unwrap_err();
    assert!(matches!(error, Error::ObjectDamaged { .. }), "{error}");
    let after = objects(&rig.remote);
    for (key, body) in before {
        assert_eq!(after.get(&key), Some(&body), "{key}");
    }
    rig.remote.plant("head", good);
    let made = checkpoint(&store).await.number;
    assert_eq!(latest(&rig).await, Some(made));
}

#[tokio::test(start_paused = true)]
async fn an_empty_directory_is_refused_where_there_are_checkpoints() {
    let rig = StoreRig::owner(16);
    let (store, _file) = founded(&rig, 1).await;
    let before = objects(&rig.remote);
    for take_over in [false, true] {
        let there = other(&rig, 61);
        let opened = there.open_as(|as_is| match take_over {
            false => as_is,
            true => as_is.take_over(),
        });
        let error = opened.await.unwrap_err();
        assert!(
            matches!(error, Error::Diverged { ours: None, .. }),
            "{error}"
        );
        assert_eq!(objects(&rig.remote), before);
    }
    a_look_at_head().await;
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_bucket_with_object_lock_is_refused_and_one_with_versions_is_not() {
    let rig = StoreRig::owner(16);
    rig.remote.set_bucket(BucketFacts {
        versioning: true,
        object_lock: true,
    });
    let error = rig.try_open().await.unwrap_err();
    assert!(matches!(error, Error::ObjectLock { .. }), "{error}");
    assert!(error.to_string().contains("s3://simulated"), "{error}");
    assert!(rig.remote.keys().is_empty(), "{:?}", rig.remote.keys());
    rig.remote.set_bucket(BucketFacts {
        versioning: true,
        object_lock: false,
    });
    // The directory is as good as before.
    let (store, _file) = founded(&reborn(&rig, 9), 1).await;
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ignores_conditions_is_refused_by_saying_what_it_did() {
    let rig = StoreRig::owner(16);
    rig.remote.ignore_conditions(true);
    let error = rig.try_open().await.unwrap_err();
    let Error::FencingUnsupported(what) = &error else {
        panic!("{error}");
    };
    for said in ["If-None-Match", "If-Match", "created"] {
        assert!(what.contains(said), "{what}");
    }
    assert!(rig.remote.keys().is_empty(), "{:?}", rig.remote.keys());
    // Whoever says that nobody else comes may go on.
    let mut off = reborn(&rig, 9);
    off.config.fencing = Fencing::Off;
    let (store, file) = founded(&off, 1).await;
    fill(&file, 1, 2).await;
    checkpoint(&store).await;
    store.gc().await.unwrap();
    store.shutdown().await.unwrap();
    drop((store, file));
    let restored = off.restored(Restore::latest()).await;
    assert_eq!(byte_of(&restored, 1).await, 2);
    let store = reborn(&off, 10).open().await;
    assert_eq!(byte_of(&store, 0).await, 1);
    // The tool cannot know what is on its way.
    let error = off.prefix().collect_garbage().await.unwrap_err();
    assert!(matches!(error, Error::FencingUnsupported(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_begins_to_ignore_conditions_is_found_out_at_the_next_open() {
    let rig = StoreRig::owner(16);
    founded(&rig, 1).await.0.shutdown().await.unwrap();
    let there = restored_elsewhere(&rig, 8).await;
    rig.remote.ignore_conditions(true);
    let before = objects(&rig.remote);
    for rig in [&reborn(&rig, 9), &there] {
        let error = rig.open_as(StoreBuilder::take_over).await.unwrap_err();
        assert!(matches!(error, Error::FencingUnsupported(_)), "{error}");
        assert_eq!(objects(&rig.remote), before);
    }
    rig.remote.ignore_conditions(false);
    let store = reborn(&rig, 10).open().await;
    assert_eq!(byte_of(&store, 0).await, 1);
}
