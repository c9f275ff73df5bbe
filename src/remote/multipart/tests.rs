use super::*;
use crate::remote::Operation;
use crate::remote::fake::{Fake, Fault, Manners};
use crate::remote::validate::MIN_PART_BYTES;
use futures::future::BoxFuture;
use parking_lot::Mutex;

/// Remembers the ids it was told, in order, with what the remote had seen by then.
struct Journal<'a> {
    remote: &'a Fake,
    seen: Mutex<Vec<(String, usize)>>,
    fails: Mutex<u32>,
}

impl<'a> Journal<'a> {
    fn new(remote: &'a Fake) -> Self {
        Self {
            remote,
            seen: Mutex::default(),
            fails: Mutex::new(0),
        }
    }
}

impl UploadJournal for Journal<'_> {
    fn created<'b>(&'b self, upload_id: &'b str) -> BoxFuture<'b, io::Result<()>> {
        Box::pin(async move {
            let mut fails = self.fails.lock();
            if *fails > 0 {
                *fails -= 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let parts = self.remote.count(Operation::UploadPart);
            self.seen.lock().push((upload_id.to_owned(), parts));
            Ok(())
        })
    }
}

fn bytes(parts: u64) -> Bytes {
    let length = (parts - 1) * MIN_PART_BYTES + 17;
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn state(body: &Bytes) -> MultipartUploadState {
    MultipartUploadState::new(PartPlan::for_size(body.len() as u64, MIN_PART_BYTES).unwrap())
}

fn request(body: &Bytes) -> MultipartRequest {
    MultipartRequest {
        key: "key".to_owned(),
        checksum: Some(Crc64::of(body)),
        condition: None,
        headers: ObjectHeaders::default(),
        write_id: Some("ours".to_owned()),
        sent_before: true,
    }
}

async fn attempt(
    remote: &Fake,
    request: &MultipartRequest,
    body: &dyn PartSource,
    state: &mut MultipartUploadState,
) -> Result<ObjectInfo, MultipartError> {
    let journal = &Journal::new(remote);
    let options = MultipartOptions {
        concurrency: 2,
        ..MultipartOptions::default()
    };
    MultipartTransfer {
        remote,
        request,
        source: body,
        journal,
        options,
    }
    .attempt(state)
    .await
}

fn answer(operation: Operation, status: u16, code: &str) -> RemoteError {
    use crate::remote::classify::{Failure, Request};
    let failure = Failure::Answer {
        status,
        code: Some(code),
        message: "",
    };
    RemoteError::classified(Request::new(operation), failure, "")
}

const COMPLETE: Operation = Operation::CompleteMultipartUpload;

#[tokio::test(start_paused = true)]
async fn the_id_is_journaled_before_the_first_part_and_the_object_is_whole() {
    let (remote, body) = (Fake::default(), bytes(4));
    let journal = Journal::new(&remote);
    let options = MultipartOptions::default();
    let request = request(&body);
    let transfer = MultipartTransfer {
        remote: &remote,
        request: &request,
        source: &body,
        journal: &journal,
        options,
    };
    let mut state = state(&body);
    let info = transfer.attempt(&mut state).await.unwrap();
    assert_eq!(info.checksum, Some(Crc64::of(&body)));
    assert_eq!(remote.object("key").unwrap().body, body);
    let seen = journal.seen.lock().clone();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, 0, "no part before the journal had the id");
    assert_eq!(remote.count(Operation::UploadPart), 4);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_cannot_be_journaled_sends_no_part_and_is_journaled_next_time() {
    let (remote, body) = (Fake::default(), bytes(2));
    let journal = Journal::new(&remote);
    *journal.fails.lock() = 1;
    let options = MultipartOptions::default();
    let request = request(&body);
    let transfer = MultipartTransfer {
        remote: &remote,
        request: &request,
        source: &body,
        journal: &journal,
        options,
    };
    let mut state = state(&body);
    let error = transfer.attempt(&mut state).await.unwrap_err();
    assert!(matches!(error, MultipartError::Journal(_)));
    assert_eq!(remote.count(Operation::UploadPart), 0);
    transfer.attempt(&mut state).await.unwrap();
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 1);
    assert_eq!(journal.seen.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_hands_its_state_back_and_the_next_resumes() {
    let (remote, body) = (Fake::default(), bytes(6));
    remote.fault(
        Operation::UploadPart,
        Fault::Before(RemoteError::throttled("UploadPart")),
    );
    let (request, mut state) = (request(&body), state(&body));
    let error = attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert_eq!(error.remote().unwrap().class, Class::Throttle);
    let done = state.parts_done();
    assert!(done >= 1, "the part that was on the wire is not lost");
    let sent = remote.count(Operation::UploadPart);
    let kept: MultipartUploadState =
        serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    assert_eq!(kept, state);
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 1);
    assert_eq!(
        remote.count(Operation::UploadPart),
        sent + 6 - done,
        "no part went twice"
    );
    assert_eq!(remote.object("key").unwrap().body, body);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_hangs_ends_at_its_deadline() {
    let (remote, body) = (Fake::default(), bytes(1));
    remote.fault(Operation::UploadPart, Fault::Hang);
    let (request, mut state) = (request(&body), state(&body));
    let start = Instant::now();
    let error = attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert_eq!(error.remote().unwrap().effect, Effect::Unknown);
    assert_eq!(
        start.elapsed(),
        attempt_deadline(17, DEFAULT_MIN_RATE, MIN_ATTEMPT)
    );
    attempt(&remote, &request, &body, &mut state).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_attempt_keeps_the_state() {
    let (remote, body) = (Fake::default(), bytes(3));
    let (request, mut state) = (request(&body), state(&body));
    remote.fault(COMPLETE, Fault::HangAfter);
    {
        let dropped = attempt(&remote, &request, &body, &mut state);
        assert!(timeout(Duration::from_secs(1), dropped).await.is_err());
    }
    assert_eq!(state.parts_done(), 3);
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 1);
}

#[tokio::test(start_paused = true)]
async fn no_such_upload_after_a_success_whose_reply_was_lost_is_ours() {
    for manners in [
        Manners::default(),
        Manners {
            drops_write_id: true,
            ..Manners::default()
        },
    ] {
        let (remote, body) = (Fake::with(manners), bytes(3));
        remote.fault(COMPLETE, Fault::After(RemoteError::lost(COMPLETE.name())));
        let (request, mut state) = (request(&body), state(&body));
        let error = attempt(&remote, &request, &body, &mut state)
            .await
            .unwrap_err();
        assert_eq!(error.remote().unwrap().effect, Effect::Unknown);
        let info = attempt(&remote, &request, &body, &mut state).await.unwrap();
        assert_eq!(info.size, body.len() as u64);
        assert_eq!(remote.count(COMPLETE), 2);
        assert_eq!(
            remote.count(Operation::UploadPart),
            3,
            "nothing was sent again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_with_an_error_in_it_is_retried_and_right() {
    // Once it was carried out, once it was not.
    let error = || answer(COMPLETE, 200, "InternalError");
    for fault in [Fault::After(error()), Fault::Before(error())] {
        let (remote, body) = (Fake::default(), bytes(2));
        remote.fault(COMPLETE, fault);
        let (request, mut state) = (request(&body), state(&body));
        let ended = attempt(&remote, &request, &body, &mut state)
            .await
            .unwrap_err();
        assert_eq!(ended.remote().unwrap().effect, Effect::Unknown);
        attempt(&remote, &request, &body, &mut state).await.unwrap();
        assert_eq!(remote.object("key").unwrap().body, body);
        assert_eq!(remote.count(Operation::UploadPart), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn our_own_success_is_not_a_conflict() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (mut request, mut state) = (request(&body), state(&body));
    request.condition = Some(WriteCondition::IfAbsent);
    remote.fault(COMPLETE, Fault::After(RemoteError::lost(COMPLETE.name())));
    attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    // Some servers look at the condition first.
    remote.fault(
        COMPLETE,
        Fault::Before(RemoteError::conflict(COMPLETE.name())),
    );
    attempt(&remote, &request, &body, &mut state).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_object_is_a_conflict_and_the_upload_can_be_aborted() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (mut request, mut state) = (request(&body), state(&body));
    request.condition = Some(WriteCondition::IfAbsent);
    // The same bytes, by another writer: not ours.
    remote.insert("key", &body, Some("theirs"));
    let error = attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert_eq!(error.remote().unwrap().class, Class::Conflict);
    assert_eq!(remote.uploads().len(), 1);
    remote.fault(Operation::AbortMultipartUpload, Fault::Hang);
    remote.fault(
        Operation::AbortMultipartUpload,
        Fault::Before(RemoteError::throttled("Abort")),
    );
    abort(&remote, "key", &mut state, Duration::from_secs(30))
        .await
        .unwrap();
    assert!(remote.uploads().is_empty() && state.abandoned().is_empty());
    assert_eq!(state.upload_id(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lost_upload_is_begun_again_once_per_attempt() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (request, mut state) = (request(&body), state(&body));
    remote.fault(
        COMPLETE,
        Fault::Before(RemoteError::throttled(COMPLETE.name())),
    );
    attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    remote.lose_uploads();
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 2);
    assert_eq!(remote.object("key").unwrap().body, body);

    // A server that loses every upload does not keep one attempt busy for ever.
    let remote = Fake::default();
    let mut state = self::state(&body);
    for _ in 0..10 {
        let lost = answer(Operation::UploadPart, 404, "NoSuchUpload");
        remote.fault(Operation::UploadPart, Fault::Before(lost));
    }
    let error = attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert!(error.remote().unwrap().has_code("NoSuchUpload"));
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 2);
    // And the next attempt does not start from what is lost.
    assert_eq!(state.upload_id(), None);
}

#[tokio::test(start_paused = true)]
async fn refused_parts_are_sent_again_once_and_then_it_is_permanent() {
    for code in ["InvalidPart", "InvalidPartOrder", "EntityTooSmall"] {
        let (remote, body) = (Fake::default(), bytes(2));
        let (request, mut state) = (request(&body), state(&body));
        remote.fault(COMPLETE, Fault::Before(answer(COMPLETE, 400, code)));
        attempt(&remote, &request, &body, &mut state).await.unwrap();
        assert_eq!(remote.count(Operation::UploadPart), 4);
        assert!(remote.uploads().is_empty(), "the first upload was aborted");

        let (remote, mut state) = (Fake::default(), self::state(&body));
        for _ in 0..2 {
            remote.fault(COMPLETE, Fault::Before(answer(COMPLETE, 400, code)));
        }
        let error = attempt(&remote, &request, &body, &mut state)
            .await
            .unwrap_err();
        assert_eq!(error.remote().unwrap().class, Class::Permanent);
        abort(&remote, "key", &mut state, Duration::from_secs(9))
            .await
            .unwrap();
        assert!(remote.uploads().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_race_that_was_lost_to_a_condition_begins_a_new_upload() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (request, mut state) = (request(&body), state(&body));
    let conflict = answer(COMPLETE, 409, "ConditionalRequestConflict");
    remote.fault(COMPLETE, Fault::Before(conflict));
    let error = attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert_eq!(error.remote().unwrap().class, Class::Transient);
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.count(Operation::CreateMultipartUpload), 2);
    assert!(remote.uploads().is_empty(), "the first upload was aborted");
}

#[tokio::test(start_paused = true)]
async fn uploads_given_up_do_not_pile_up() {
    let (remote, body) = (Fake::default(), bytes(1));
    let (request, mut state) = (request(&body), state(&body));
    for _ in 0..50 {
        let conflict = answer(COMPLETE, 409, "ConditionalRequestConflict");
        remote.fault(COMPLETE, Fault::Before(conflict));
        for _ in 0..MAX_ABANDONED {
            let denied = answer(Operation::AbortMultipartUpload, 403, "AccessDenied");
            remote.fault(Operation::AbortMultipartUpload, Fault::Before(denied));
        }
        attempt(&remote, &request, &body, &mut state)
            .await
            .unwrap_err();
        assert!(state.abandoned().len() <= MAX_ABANDONED);
    }
    assert_eq!(remote.uploads().len(), MAX_ABANDONED);
}

/// A source whose second reading of a part differs.
struct Changing(Bytes, Mutex<u32>);

impl PartSource for Changing {
    fn read(&self, offset: u64, length: u64) -> BoxFuture<'_, io::Result<Bytes>> {
        *self.1.lock() += 1;
        let changed = *self.1.lock() > 1;
        let read = self.0.read(offset, length);
        Box::pin(async move {
            let bytes = read.await?;
            Ok(if changed {
                bytes.iter().map(|byte| !byte).collect()
            } else {
                bytes
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_changed_makes_no_object() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (request, mut state) = (request(&body), state(&body));
    let source = Changing(body.clone(), Mutex::new(0));
    let error = attempt(&remote, &request, &source, &mut state)
        .await
        .unwrap_err();
    assert!(
        matches!(error, MultipartError::SourceChanged { .. }),
        "{error}"
    );
    assert_eq!(remote.count(COMPLETE), 0);
    assert_eq!(state.parts_done(), 0, "nothing of it is used later");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_short_is_an_error() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (request, mut state) = (request(&body), state(&body));
    let short = body.slice(..100);
    let error = attempt(&remote, &request, &short, &mut state)
        .await
        .unwrap_err();
    assert!(matches!(error, MultipartError::Source(_)), "{error}");
}

/// A source that never answers.
struct Stuck;

impl PartSource for Stuck {
    fn read(&self, _: u64, _: u64) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_ends_at_its_deadline() {
    let (remote, body) = (Fake::default(), bytes(2));
    let (request, mut state) = (request(&body), state(&body));
    let error = attempt(&remote, &request, &Stuck, &mut state)
        .await
        .unwrap_err();
    let MultipartError::Source(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_id_never_arrived_is_found_and_aborted() {
    let (remote, body) = (Fake::default(), bytes(1));
    let (request, mut state) = (request(&body), state(&body));
    let lost = RemoteError::lost("CreateMultipartUpload");
    remote.fault(Operation::CreateMultipartUpload, Fault::After(lost));
    attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    assert!(state.may_have_strays());
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.uploads().len(), 1);
    assert_eq!(
        abort_all(&remote, "key", Duration::from_secs(9))
            .await
            .unwrap(),
        1
    );
    assert!(remote.uploads().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_abort_that_cannot_be_ends_at_its_deadline_and_keeps_the_id() {
    let (remote, body) = (Fake::default(), bytes(1));
    let (request, mut state) = (request(&body), state(&body));
    remote.fault(
        COMPLETE,
        Fault::Before(RemoteError::throttled(COMPLETE.name())),
    );
    attempt(&remote, &request, &body, &mut state)
        .await
        .unwrap_err();
    for _ in 0..100 {
        remote.fault(
            Operation::AbortMultipartUpload,
            Fault::Before(RemoteError::transient("A")),
        );
    }
    let start = Instant::now();
    abort(&remote, "key", &mut state, Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(start.elapsed() <= Duration::from_secs(3));
    assert_eq!(state.abandoned().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_object_is_one_empty_part() {
    let (remote, body) = (Fake::default(), Bytes::new());
    let (request, mut state) = (request(&body), state(&body));
    attempt(&remote, &request, &body, &mut state).await.unwrap();
    assert_eq!(remote.count(Operation::UploadPart), 1);
}

#[test]
fn whose_object_it_is() {
    let info = |write_id: Option<&str>, size, checksum| ObjectInfo {
        etag: super::super::ETag("e".to_owned()),
        size,
        checksum,
        write_id: write_id.map(str::to_owned),
        last_modified: None,
    };
    let crc = Crc64(7);
    let ours = |found: ObjectInfo| is_ours(&found, Some("us"), 10, crc);
    assert!(ours(info(Some("us"), 10, Some(crc))));
    assert!(ours(info(Some("us"), 10, None)));
    assert!(!ours(info(Some("them"), 10, Some(crc))));
    assert!(ours(info(None, 10, Some(crc))));
    assert!(!ours(info(None, 10, None)), "size alone proves nothing");
    assert!(!ours(info(None, 11, Some(crc))));
    assert!(!ours(info(None, 10, Some(Crc64(8)))));
    assert!(is_ours(&info(Some("them"), 10, Some(crc)), None, 10, crc));
}
