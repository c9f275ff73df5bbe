//! Uploads in parts over a wire that breaks, and D14: completions that lie.

use s3_writeback::testing::{FaultRule, Operation, WireFault, WireRule};
use s3_writeback::{KeyPolicy, Options};

use super::stage::{BUCKET, MIB, Stage, bytes, shut_down, submit, uploaded};

/// The requests of an upload in parts: what they are called here, their method, and what their
/// target has.
const REQUESTS: [(&str, &str, &str); 3] = [
    ("begin", "POST", "uploads"),
    ("part", "PUT", "partNumber=2"),
    ("complete", "POST", "uploadId="),
];

/// D15: any request of an upload in parts breaks in any way: one object, made by one completion,
/// and no upload is left.
#[tokio::test]
async fn d15_an_upload_in_parts_over_a_wire_that_breaks_is_one_object() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = stage.queue(dir.path()).await;
    let body = bytes(11 * MIB, 1);
    for fault in [
        WireFault::ResetBeforeBody,
        WireFault::ResetMidBody,
        WireFault::ResetBeforeAnswer,
        WireFault::CloseBeforeAnswer,
        WireFault::HalfAnswer,
        WireFault::AnswerLost,
    ] {
        for (name, method, target) in REQUESTS {
            let what = format!("{fault:?} of {name}");
            let key = format!("{name}-{fault:?}");
            let rule = WireRule::new(fault).method(method).target_contains(target);
            let rule = stage.proxy.plan().add(rule.once());
            let receipt = submit(&queue, &key, &body, Options::default()).await;
            uploaded(&receipt, &what).await;
            assert_eq!(stage.proxy.plan().applied(rule), Some(1), "{what}");
            stage.proxy.plan().clear();
            stage.server_is_idle().await;
            let completed = stage.effects(Operation::CompleteMultipartUpload, &key);
            assert_eq!(completed, 1, "{what}");
            assert_eq!(stage.object(&key), Some(body.clone()), "{what}");
        }
    }
    shut_down(&stage, &queue).await;
}

/// D14: a completion that is answered by 200 and an error, before or after it was carried out;
/// after it the retry is told `NoSuchUpload`. One object each time, and it is ours.
#[tokio::test]
async fn d14_a_completion_with_an_error_in_its_success_ends_right() {
    for policy in [KeyPolicy::WriteOnce, KeyPolicy::Rewritable] {
        let stage = Stage::new().await;
        let dir = tempfile::tempdir().unwrap();
        let queue = stage.queue(dir.path()).await;
        let body = bytes(11 * MIB, 2);
        for code in ["InternalError", "SlowDown"] {
            for landed in [false, true] {
                let (key, what) = (
                    format!("{code}-{landed}"),
                    format!("{policy:?} {code} {landed}"),
                );
                let rule =
                    FaultRule::new(s3_writeback::testing::Action::ErrorIn200(code.to_owned()));
                let rule = rule.on(Operation::CompleteMultipartUpload).once();
                let rule = if landed { rule.after_effect() } else { rule };
                let rule = stage.server.faults().add(rule);
                let options = Options {
                    policy,
                    ..Options::default()
                };
                let receipt = submit(&queue, &key, &body, options).await;
                uploaded(&receipt, &what).await;
                assert_eq!(stage.server.faults().applied(rule), Some(1), "{what}");
                let completed = stage.effects(Operation::CompleteMultipartUpload, &key);
                assert_eq!(completed, 1, "{what}");
                assert_eq!(stage.object(&key), Some(body.clone()), "{what}");
                // A write-once key asks again and is told `NoSuchUpload`; of a rewritable one the
                // object is looked at first.
                if landed && policy == KeyPolicy::WriteOnce {
                    let log = stage.server.counters().log;
                    let again = log
                        .iter()
                        .rev()
                        .find(|seen| seen.operation == Operation::CompleteMultipartUpload);
                    assert_eq!(again.and_then(|seen| seen.status), Some(404), "{what}");
                }
            }
        }
        shut_down(&stage, &queue).await;
        assert!(stage.server.uploads(BUCKET).is_empty());
    }
}
