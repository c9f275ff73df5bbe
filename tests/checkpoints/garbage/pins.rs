//! Readers, and what they keep from being deleted.

use std::sync::Arc;
use std::time::Duration;

use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Error, Restore};
use tokio::sync::Notify;

use crate::owners::{FILE, a_look_at_head, assert_whole, founded, objects};
use crate::support::{PART, StoreRig, checkpoint, fill, spawn};

const TTL: Duration = Duration::from_secs(600);

fn one_is_kept() -> StoreRig {
    let mut rig = StoreRig::owner(16);
    rig.config.retain_checkpoints = 1;
    rig
}

fn pins(rig: &StoreRig) -> usize {
    let keys = rig.remote.keys().into_iter();
    keys.filter(|key| key.starts_with("pins/")).count()
}

#[tokio::test(start_paused = true)]
async fn e35_a_checkpoint_that_is_read_survives_its_retirement_until_it_is_given_back() {
    let rig = one_is_kept();
    let (store, file) = founded(&rig, 1).await;
    let reader = rig.prefix().read(None, 0, TTL).await.unwrap();
    for byte in 2..5 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
        let report = store.gc().await.unwrap();
        assert!(byte == 2 || report.deleted > 0, "{report:?}");
        rig.prefix().collect_garbage().await.unwrap();
        let bytes = reader.read(FILE, 0, PART).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
    }
    assert_eq!(assert_whole(&rig).await, [4]);
    let pinned = objects(&rig.remote).len();
    reader.close().await.unwrap();
    assert_eq!(pins(&rig), 0);
    store.gc().await.unwrap();
    // The pin, the manifest, its pages and its image.
    assert_eq!(objects(&rig.remote).len(), pinned - 4);
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn e35_a_reader_that_pins_while_the_owner_commits_fences_nobody() {
    let rig = StoreRig::owner(16);
    let (store, file) = founded(&rig, 1).await;
    for byte in 2..30 {
        fill(&file, 0, byte).await;
        let reads = {
            let prefix = rig.prefix();
            spawn(async move {
                let reader = prefix.read(None, 0, TTL).await?;
                let bytes = reader.read(FILE, 0, 1).await?;
                let number = reader.checkpoint().number;
                reader.close().await?;
                Ok::<_, Error>((number, bytes[0]))
            })
        };
        let number = checkpoint(&store).await.number;
        let (read, is) = reads.await.unwrap().unwrap();
        assert!(read == number || read + 1 == number);
        assert_eq!(u64::from(is), read, "what that one has");
        a_look_at_head().await;
        assert!(store.check_fenced().is_ok());
    }
    assert_eq!(store.checkpoint_snapshot().epoch, Some(1));
    assert_eq!(pins(&rig), 0);
}

#[tokio::test(start_paused = true)]
async fn e35_a_pin_that_comes_after_its_checkpoint_went_is_refused() {
    let rig = one_is_kept();
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    // The reader has chosen, and its pin is on the wire.
    let gate = Arc::new(Notify::new());
    rig.remote
        .once(Some(Call::Put), None, Fault::Gate(Arc::clone(&gate)));
    let puts = rig.remote.count(Call::Put, "pins/");
    let prefix = rig.prefix();
    let reads = spawn(async move { prefix.read(None, 0, TTL).await.map(drop) });
    rig.remote
        .wait_for(|remote| remote.count(Call::Put, "pins/") > puts)
        .await;
    checkpoint(&store).await;
    store.gc().await.unwrap();
    gate.notify_one();
    let error = reads.await.unwrap().unwrap_err();
    let gone = matches!(&error, Error::NoSuchCheckpoint { number: Some(1), listed }
        if *listed == [2]);
    assert!(gone, "{error}");
    assert_eq!(pins(&rig), 0, "it goes with who wrote it");
    assert!(store.check_fenced().is_ok());
}

#[tokio::test(start_paused = true)]
async fn e35_a_pin_that_comes_before_the_look_for_pins_keeps_all_of_its_checkpoint() {
    let rig = one_is_kept();
    let (store, file) = founded(&rig, 1).await;
    fill(&file, 0, 2).await;
    // The pin is there; what the reader asks next is on the wire while the owner goes on.
    let gate = Arc::new(Notify::new());
    let at_once = Fault::Delay(Duration::ZERO);
    rig.remote.once(Some(Call::Get), Some("head"), at_once);
    rig.remote.once(
        Some(Call::Get),
        Some("head"),
        Fault::Gate(Arc::clone(&gate)),
    );
    let gets = rig.remote.count(Call::Get, "head");
    let prefix = rig.prefix();
    let reads = spawn(async move { prefix.read(None, 0, TTL).await });
    rig.remote
        .wait_for(|remote| remote.count(Call::Get, "head") > gets + 1)
        .await;
    assert_eq!(pins(&rig), 1);
    // The answer is from before the owner changes it.
    gate.notify_one();
    let reader = reads.await.unwrap().unwrap();
    checkpoint(&store).await;
    store.gc().await.unwrap();
    let bytes = reader.read(FILE, 0, PART).await.unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}

#[tokio::test(start_paused = true)]
async fn a_pin_whose_life_is_over_by_the_dates_of_the_server_goes_with_its_checkpoint() {
    let rig = one_is_kept();
    let (store, file) = founded(&rig, 1).await;
    let reader = rig.prefix().read(None, 0, TTL).await.unwrap();
    fill(&file, 0, 2).await;
    checkpoint(&store).await;
    // Whatever the clock here says.
    tokio::time::sleep(48 * TTL).await;
    store.gc().await.unwrap();
    assert_eq!(pins(&rig), 1);
    rig.remote.advance_clock(TTL - Duration::from_secs(60));
    store.gc().await.unwrap();
    assert_eq!(pins(&rig), 1);
    rig.remote.advance_clock(Duration::from_secs(120));
    store.gc().await.unwrap();
    assert_eq!(pins(&rig), 0);
    let error = reader.read(FILE, 0, 1).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoSuchCheckpoint { .. } | Error::ObjectMissing { .. }
        ),
        "{error}"
    );
    let restored = rig.restored(Restore::latest()).await;
    assert_eq!(crate::owners::byte_of(&restored, 0).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_on_reading_keeps_its_pin() {
    let rig = one_is_kept();
    let (store, file) = founded(&rig, 1).await;
    let reader = rig.prefix().read(None, 0, TTL).await.unwrap();
    for byte in 2..12 {
        fill(&file, 0, byte).await;
        checkpoint(&store).await;
        tokio::time::sleep(TTL * 2 / 3).await;
        rig.remote.advance_clock(TTL * 2 / 3);
        let bytes = reader.read(FILE, 0, 1).await.unwrap();
        assert_eq!(&bytes[..], [1]);
        store.gc().await.unwrap();
    }
    assert_eq!(pins(&rig), 1);
}
