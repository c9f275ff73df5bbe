//! C11: a server that has much to say. A task's state is kept, and of the text a kibibyte, cut at
//! a character. (Vitess failed to store the failure of a workflow, for its text was longer than
//! the column, and so the workflow's state with it.)

use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, settled, submit};
use s3_writeback::remote::{Class, RemoteError};
use s3_writeback::testing::remote::{Call, Fault};
use s3_writeback::{Cause, Options, Settlement, UploadQueue};

/// What is kept of a text, in bytes.
const KEPT: usize = 1024;

/// 5 MiB in characters of one to four bytes, as the error of a remote that bounds nothing.
fn talkative(error: RemoteError, one: &str) -> RemoteError {
    RemoteError {
        message: one.repeat((5 << 20) / one.len()),
        ..error
    }
}

/// Each character of the kept text that is not of its beginning is the one that it was made of.
fn is_cut_of(text: &str, one: &str) {
    assert!(
        text.len() <= KEPT && text.len() > KEPT - 4,
        "{}",
        text.len()
    );
    let (_, said) = text.split_once(one).expect("what was said");
    assert!(said.chars().all(|found| one.contains(found)), "{said}");
}

async fn look(queue: &UploadQueue, one: &str) {
    let pending = queue.pending();
    let of = |key: &str| {
        pending
            .iter()
            .find(|task| task.key == key)
            .expect("is owed")
    };
    is_cut_of(of("later").last_error.as_deref().expect("a failure"), one);
    assert_eq!(of("never").state, "quarantined");
    let quarantined = queue.quarantined();
    let [task] = &quarantined[..] else {
        panic!("{quarantined:?}")
    };
    let Cause::Refused(error) = &task.cause else {
        panic!("{task:?}")
    };
    assert_eq!((error.class, error.status), (Class::Permanent, Some(400)));
    assert!(!error.retryable && error.has_code("InvalidArgument"));
    assert!(error.message.len() <= KEPT && error.message.len() > KEPT - 4);
    assert!(error.message.chars().all(|found| one.contains(found)));
    for error in queue.snapshot().remote_errors {
        assert!(error.last.len() <= KEPT, "{}", error.last.len());
    }
}

/// The error that a task carries, in the life in which it failed and in those after it, however
/// that one ended.
#[test]
fn c11_the_error_of_a_task_survives_its_process_cut_to_a_kibibyte() {
    for one in ["x", "\u{df}", "\u{20ac}", "\u{1d11e}"] {
        for end in [End::Kill, End::Clean] {
            let lives = Lives::of(Rig::new());
            let remote = &lives.rig.remote;
            let failing = talkative(RemoteError::lost("PutObject"), one);
            let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
            remote.always(Some(Call::Put), Some("later"), Fault::Error(failing));
            let refused = Fault::Error(talkative(refused, one));
            remote.always(Some(Call::Put), Some("never"), refused);
            lives.live(end, async |queue| {
                let never = submit(queue, "never", "bytes").await;
                let later = submit(queue, "later", "bytes").await;
                let end = settled(&never).await;
                assert!(matches!(end, Settlement::Quarantined(_)), "{end:?}");
                later.durable().await.expect("on the disk");
                remote
                    .wait_for(|remote| remote.count(Call::Put, "later") > 2)
                    .await;
                look(queue, one).await;
            });
            let used = lives.rig.fs.used();
            assert!(used < 1 << 20, "{used} bytes for two tasks");
            remote.heal();
            remote.always(Some(Call::Put), None, Fault::Hang);
            lives.live(End::Kill, async |queue| look(queue, one).await);
            remote.heal();
            // And it is as good as any other task.
            lives.live(End::Clean, async |queue| {
                look(queue, one).await;
                let later = queue.pending().into_iter().find(|task| task.key == "later");
                let later = later.expect("is owed").receipt;
                assert!(matches!(settled(&later).await, Settlement::Uploaded(_)));
                let task = queue.quarantined()[0].task;
                let again = queue.replay(task).await.expect("is in quarantine");
                assert!(matches!(settled(&again).await, Settlement::Uploaded(_)));
            });
        }
    }
}

/// An outage is a line in the journal for each doubling of its attempts, and what is told after
/// it are those of all lives.
#[test]
fn attempts_are_noted_by_their_doublings() {
    let lives = Lives::of(Rig::new());
    let remote = &lives.rig.remote;
    let failing = RemoteError::transient("PutObject");
    remote.always(Some(Call::Put), None, Fault::Error(failing));
    for _ in 0..2 {
        lives.live(End::Kill, async |queue| {
            if queue.pending().is_empty() {
                let options = Options::default();
                let receipt = queue.submit("k", "bytes", options).await.expect("admitted");
                receipt.durable().await.expect("on the disk");
            }
            let before = remote.count(Call::Put, "k");
            remote
                .wait_for(|remote| remote.count(Call::Put, "k") >= before + 10)
                .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
    }
    let found = s3_writeback::inspect::inspect_on(&lives.rig.fs, &lives.rig.config.dir);
    let found = found.expect("is readable");
    // Eight of each life were noted.
    assert_eq!(found.tasks[0].attempts_failed, 16);
}
