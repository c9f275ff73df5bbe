//! What is found, beside what the next open makes of it, on a simulated disk that counts calls.

use std::path::Path;
use std::time::Duration;

use s3_writeback::inspect::{Inspection, inspect_on};
use s3_writeback::remote::RemoteError;
use s3_writeback::testing::fs::{Call, SimFs};
use s3_writeback::testing::remote::{self, Fault};
use s3_writeback::{FileId, Options};

use crate::lives::{End, Lives};
use crate::support::{PART, PARTS_OF, Rig, StoreRig, checkpoint, fill, paused, settled, submit};

/// Calls that may change something, or keep somebody out.
const CHANGES: [Call; 11] = [
    Call::Create,
    Call::Write,
    Call::Preallocate,
    Call::Punch,
    Call::Reserve,
    Call::Sync,
    Call::Lock,
    Call::CreateDir,
    Call::Rename,
    Call::Link,
    Call::Unlink,
];

fn look(fs: &SimFs, dir: &Path) -> Inspection {
    let counts = || CHANGES.map(|call| fs.count(call));
    let (before, synced) = (counts(), fs.count(Call::SyncDir));
    let found = inspect_on(fs, dir).expect("is readable");
    assert_eq!(before, counts(), "of {CHANGES:?}");
    assert_eq!(synced, fs.count(Call::SyncDir));
    found
}

/// A task of every kind: what is found of each, and that the next open finds the same.
#[test]
fn c13_what_is_found_is_what_the_next_open_has() {
    for end in [End::Kill, End::PowerCut(1), End::Clean] {
        let lives = Lives::of(Rig::with(|config| {
            config.multipart_threshold = 5 << 20;
            config.part_bytes = 5 << 20;
        }));
        let (fs, dir) = (&lives.rig.fs, lives.rig.config.dir.clone());
        let remote = &lives.rig.remote;
        lives.live(end, async |queue| {
            let permanent = RemoteError::permanent("PutObject", 400, "InvalidArgument");
            remote.always(
                Some(remote::Call::Put),
                Some("refused"),
                Fault::Error(permanent),
            );
            let passing = Fault::Error(RemoteError::transient("PutObject"));
            remote.always(Some(remote::Call::Put), Some("failing"), passing);
            remote.always(Some(remote::Call::Put), Some("hanging"), Fault::Hang);
            remote.always(Some(remote::Call::UploadPart), None, Fault::Hang);
            let refused = submit(queue, "refused", "bytes").await;
            let failing = submit(queue, "failing", "more bytes").await;
            settled(&refused).await;
            submit(queue, "hanging", "bytes").await;
            let large = queue.submit("large", vec![1; 6 << 20], Options::default());
            large.await.expect("admitted");
            let after = Options {
                after: vec![failing],
                ..Options::default()
            };
            let last = queue.submit("after", "x", after).await.expect("admitted");
            last.durable().await.expect("is on the disk");
            remote
                .wait_for(|remote| {
                    remote.count(remote::Call::Put, "hanging") > 0
                        && remote.count(remote::Call::UploadPart, "large") > 0
                        && remote.count(remote::Call::Put, "failing") > 3
                })
                .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let beside = look(fs, &dir);
            assert!(!beside.clean && beside.damage.is_empty());
            assert_eq!(beside.tasks.len(), 5);
        });
        let found = look(fs, &dir);
        let clean = matches!(end, End::Clean);
        assert_eq!(found.clean, clean);
        assert!(found.damage.is_empty() && found.unreadable.is_empty());
        let of = |key: &str| {
            let task = found.tasks.iter().find(|task| task.key == key);
            task.unwrap_or_else(|| panic!("{end:?}: no {key} in {found:#?}"))
        };
        assert!(of("refused").quarantined.is_some());
        assert!(of("failing").attempts_failed >= 2, "{end:?}");
        assert!(
            of("failing")
                .last_error
                .as_deref()
                .expect("it failed")
                .contains("Transient")
        );
        assert_eq!(of("after").after, [of("failing").task]);
        assert!(clean || of("large").upload_id.is_some(), "{end:?}");
        for key in ["hanging", "large"] {
            assert_eq!(of(key).suspect, !clean, "{end:?} {key}");
        }
        assert!(!of("failing").suspect && !of("after").suspect);

        remote.heal();
        remote.always(None, None, Fault::Hang);
        let (pending, quarantined, suspects) = lives.live(End::Kill, async |queue| {
            let pending = queue.pending();
            let pending: Vec<_> = pending
                .into_iter()
                .map(|task| (task.key, task.len, task.last_error))
                .collect();
            // Suspects run alone: of those, one is in flight, and nothing else is.
            let running = queue.snapshot().tasks.running;
            (pending, queue.quarantined().len() as u64, running)
        });
        let owed: Vec<_> = found
            .tasks
            .iter()
            .map(|task| (task.key.clone(), task.len, task.last_error.clone()))
            .collect();
        assert_eq!(pending, owed, "{end:?}");
        assert_eq!(quarantined, found.quarantined);
        assert!(suspects <= 1 || found.suspects == 0, "{suspects}");
    }
}

/// The files of a part store, and what it stands on.
#[test]
fn c13_a_part_store_is_looked_at_too() {
    let rig = StoreRig::owner(64);
    let dir = rig.config.queue.dir.clone();
    let dirty = paused(async {
        let store = rig.open().await;
        let file = store.create(FileId(7), PARTS_OF).await.expect("creates");
        for index in 0..6 {
            fill(&file, index, 1).await;
        }
        checkpoint(&store).await;
        rig.remote
            .always(Some(remote::Call::Put), None, Fault::Hang);
        for index in [1, 3, 8] {
            fill(&file, index, 2).await;
        }
        file.sync().await.expect("syncs");
        fill(&file, 4, 2).await;
        let beside = look(&rig.fs, &dir);
        assert!(beside.is_part_store && beside.damage.is_empty());
        rig.fs.kill();
        store.snapshot().dirty_bytes
    });
    let found = look(&rig.fs, &dir);
    assert!(found.is_part_store && !found.clean && found.unreadable.is_empty());
    let [file] = &found.files[..] else {
        panic!("{found:#?}")
    };
    assert_eq!((file.file, file.part_bytes), (FileId(7), PART as u32));
    assert_eq!(file.len, 9 * PART as u64);
    assert_eq!((file.dirty_parts, file.trusted_parts), (4, 4), "{file:?}");
    assert_eq!(file.dirty_parts * PART as u64, dirty);
    assert!(!file.fsync_failed && file.problem.is_none());
    assert!(file.local_len.is_some());
    let stand = found.stand.expect("it has had its turn");
    assert_eq!(
        (stand.checkpoint, stand.epoch, stand.fenced),
        (Some(1), Some(1), false)
    );
    paused(async {
        rig.remote.heal();
        rig.remote
            .always(Some(remote::Call::Put), None, Fault::Hang);
        let store = rig.open().await;
        assert_eq!(store.snapshot().dirty_bytes, dirty);
        let file = store.file(FileId(7)).expect("is there");
        assert_eq!(file.len(), 9 * PART as u64);
        rig.fs.kill();
    });
}

/// Damage is said, and what is not damaged is shown.
#[test]
fn c13_damage_does_not_hide_the_rest() {
    let lives = Lives::of(Rig::new());
    let (fs, dir) = (&lives.rig.fs, lives.rig.config.dir.clone());
    lives.rig.remote.always(None, None, Fault::Hang);
    lives.live(End::Clean, async |queue| {
        for at in 0..100 {
            let body = vec![at; 2000];
            let receipt = queue.submit(format!("k/{at}"), body, Options::default());
            let receipt = receipt.await.expect("admitted");
            receipt.durable().await.expect("is on the disk");
        }
    });
    let whole = look(fs, &dir);
    assert_eq!((whole.tasks.len(), whole.damage.len()), (100, 0));
    let first = fs.names(&dir.join("segments")).remove(0);
    let mut bytes = fs.peek(&first).expect("is there");
    bytes[20_000..20_100].fill(0xAA);
    fs.poke(&first, bytes);
    let found = look(fs, &dir);
    assert!(!found.damage.is_empty());
    assert!(
        (90..100).contains(&found.tasks.len()),
        "{}",
        found.tasks.len()
    );
}
