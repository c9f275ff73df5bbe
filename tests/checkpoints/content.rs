//! Checkpoints: what is in them, and that they come back.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{CheckpointOptions, Error, FileId, Restore};

use crate::support::{PART, PARTS_OF, StoreRig, checkpoint, contents, fill, read, spawn};

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
    // The one before is what it was.
    let again = rig.restored(Restore::number(1)).await;
    let file = again.file(FileId(1)).unwrap();
    assert_eq!(read(&file, 500 * PART, 1).await.unwrap(), [7]);
}

/// A part that is larger than one request should be goes up in pieces, several at a time.
#[tokio::test(start_paused = true)]
async fn a_large_part_goes_up_in_pieces() {
    const LARGE: usize = 16 << 20;
    let mut rig = StoreRig::owner(16);
    rig.config.cache_bytes = 64 << 20;
    rig.config.dirty_bytes = 64 << 20;
    rig.config.checkpoint_cache_bytes = 16 << 20;
    rig.config.queue.multipart_threshold = 8 << 20;
    rig.config.queue.part_bytes = 5 << 20;
    let store = rig.open().await;
    let options = s3_writeback::FileOptions {
        part_bytes: LARGE as u32,
    };
    let file = store.create(FileId(1), options).await.unwrap();
    let bytes: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    file.write_at(&bytes, 0).await.unwrap();
    // Its first attempt fails in the middle: the next goes on from there.
    let lost = s3_writeback::remote::RemoteError::transient("UploadPart");
    rig.remote
        .once(Some(Call::UploadPart), None, Fault::Error(lost));
    checkpoint(&store).await;
    assert_eq!(rig.remote.count(Call::CompleteMultipart, "packs/"), 1);
    assert_eq!(rig.remote.count(Call::CreateMultipart, "packs/"), 1);
    assert_eq!(rig.remote.unfinished(), 0);
    let there = rig.restored(Restore::latest()).await;
    assert!(contents(&there, 1).await == bytes, "other bytes");
}

/// By time and by bytes, with what the engine says; and not where nothing has changed.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_made_when_it_is_due_and_the_engine_is_told() {
    let mut rig = StoreRig::owner(64);
    rig.config.checkpoint_every = Some(Duration::from_secs(60));
    rig.config.checkpoint_after_bytes = Some(20 * PART as u64);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (tell, log) = (Arc::clone(&told), Arc::new(AtomicU64::new(7)));
    let position = Arc::clone(&log);
    let store = rig
        .open_as(|builder| {
            builder
                .checkpoint_meta(move || position.load(Ordering::Acquire).to_le_bytes().to_vec())
                .on_checkpoint(move |made| tell.lock().push((made.number, made.meta.clone())))
        })
        .await
        .unwrap();
    let file = store.create(FileId(1), PARTS_OF).await.unwrap();
    let count = || told.lock().len();
    fill(&file, 0, 1).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(count(), 0, "it is not due");
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(count(), 1, "by time");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(count(), 1, "nothing has changed");
    log.store(8, Ordering::Release);
    for index in 0..20 {
        fill(&file, index, 2).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(count(), 2, "by bytes");
    let (number, meta) = told.lock()[1].clone();
    assert_eq!(meta, 8_u64.to_le_bytes());
    // What it is told of can be restored, with what it said.
    let there = rig.elsewhere();
    let restored = there
        .prefix()
        .restore(&there.config, Restore::number(number))
        .await;
    assert_eq!(restored.unwrap().checkpoint.meta, 8_u64.to_le_bytes());
}

/// One at a time: who asks while one is made gets the next, and all who asked share it.
#[tokio::test(start_paused = true)]
async fn who_asks_while_a_checkpoint_is_made_shares_the_next() {
    let rig = StoreRig::owner(16);
    let store = rig.open().await;
    let file = store.create(FileId(1), PARTS_OF).await.unwrap();
    fill(&file, 0, 1).await;
    rig.slow_packs();
    let ask = || {
        let store = store.clone();
        spawn(async move { store.checkpoint(CheckpointOptions::new()).await })
    };
    let first = ask();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fill(&file, 1, 2).await;
    let others = [ask(), ask(), ask()];
    let first = first.await.unwrap().unwrap().number;
    let mut numbers = Vec::new();
    for other in others {
        numbers.push(other.await.unwrap().unwrap().number);
    }
    assert_eq!(numbers, [first + 1; 3]);
    let there = rig.restored(Restore::number(first)).await;
    assert_eq!(contents(&there, 1).await, vec![1; PART]);
    // What was written before it was asked for is in it.
    let there = rig.restored(Restore::latest()).await;
    assert_eq!(contents(&there, 1).await[PART..], vec![2; PART]);
}

/// The engine's log before what describes it; meta of more than there is room for; a receipt of
/// another store.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_comes_after_what_it_was_asked_to_come_after() {
    let rig = StoreRig::owner(16);
    let store = rig.open().await;
    let file = store.create(FileId(1), PARTS_OF).await.unwrap();
    fill(&file, 0, 1).await;
    let slow = Fault::Delay(Duration::from_secs(8));
    rig.remote.under(None, Some(Call::Put), "log/", slow);
    let options = s3_writeback::Options::default();
    let log = store
        .queue()
        .submit("log/1", vec![1_u8; 100], options)
        .await
        .unwrap();
    let asked = store.checkpoint(CheckpointOptions::new().after([log.clone()]));
    let made = spawn(asked.into_future());
    while !made.is_finished() {
        let listed = !store.checkpoints().await.unwrap().is_empty();
        assert!(!listed || rig.remote.object("log/1").is_some());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    made.await.unwrap().unwrap();
    let large = CheckpointOptions::new().meta(|| vec![0; 5000]);
    let error = store.checkpoint(large).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error}");
    let other = StoreRig::owner(16);
    let other = other.open().await;
    let foreign = other
        .checkpoint(CheckpointOptions::new().after([log]))
        .await;
    assert!(matches!(foreign.unwrap_err(), Error::ForeignReceipt(_)));
    // What it was to come after will never be there.
    rig.remote.plant("log/2", "somebody else's");
    let options = s3_writeback::Options::default();
    let lost = store
        .queue()
        .submit("log/2", vec![2_u8; 100], options)
        .await
        .unwrap();
    let error = store
        .checkpoint(CheckpointOptions::new().after([lost]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotUploaded { .. }), "{error}");
    assert_eq!(store.checkpoints().await.unwrap().len(), 1);
}
