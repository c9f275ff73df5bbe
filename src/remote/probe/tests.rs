use super::*;
use crate::remote::Operation;
use crate::remote::fake::{Fake, Fault, Manners};

const LIMIT: Duration = Duration::from_secs(60);

async fn seen(manners: Manners) -> Capabilities {
    let remote = Fake::with(manners);
    let seen = probe(&remote, "probe/", 7, LIMIT).await.unwrap();
    assert_eq!(remote.objects(), 0, "it cleans up after itself");
    assert_eq!(remote.uploads(), Vec::<String>::new(), "and aborts");
    seen
}

#[tokio::test(start_paused = true)]
async fn a_server_like_s3_honours_all() {
    let seen = seen(Manners::default()).await;
    assert!(seen.can_fence() && seen.conditional_writes());
    assert!(seen.conditional_delete.is_honoured());
    assert!(seen.write_id_kept.is_honoured() && seen.crc64_kept.is_honoured());
    assert_eq!(seen.complaints(), Vec::<String>::new());
    let text = serde_json::to_string(&seen).unwrap();
    assert_eq!(serde_json::from_str::<Capabilities>(&text).unwrap(), seen);
}

#[tokio::test(start_paused = true)]
async fn each_lie_is_found_out_and_alone() {
    type Pick = fn(&Capabilities) -> &Support;
    let lies: [(Manners, Pick, bool); 8] = [
        (
            Manners {
                ignores_if_none_match: true,
                ..Manners::default()
            },
            |seen| &seen.if_none_match,
            false,
        ),
        (
            Manners {
                ignores_if_match: true,
                ..Manners::default()
            },
            |seen| &seen.if_match,
            false,
        ),
        (
            Manners {
                creates_on_missing: true,
                ..Manners::default()
            },
            |seen| &seen.if_match_missing,
            false,
        ),
        (
            Manners {
                ignores_conditional_complete: true,
                ..Manners::default()
            },
            |seen| &seen.conditional_complete,
            true,
        ),
        (
            Manners {
                ignores_conditional_delete: true,
                ..Manners::default()
            },
            |seen| &seen.conditional_delete,
            true,
        ),
        (
            Manners {
                deletes_and_refuses: true,
                ..Manners::default()
            },
            |seen| &seen.conditional_delete,
            true,
        ),
        (
            Manners {
                drops_write_id: true,
                ..Manners::default()
            },
            |seen| &seen.write_id_kept,
            true,
        ),
        (
            Manners {
                drops_crc: true,
                ..Manners::default()
            },
            |seen| &seen.crc64_kept,
            true,
        ),
    ];
    for (at, (manners, pick, fences)) in lies.into_iter().enumerate() {
        let seen = seen(manners).await;
        assert!(
            matches!(pick(&seen), Support::Ignored { .. }),
            "{at}: {seen:?}"
        );
        // A server that takes any entity tag also takes a stale one of a DELETE and a completion;
        // one that creates what exists does so by a completion as well.
        let complaints = match (manners.ignores_if_match, manners.ignores_if_none_match) {
            (true, _) => 3,
            (_, true) => 2,
            _ => 1,
        };
        assert_eq!(seen.complaints().len(), complaints, "{at}: {seen:?}");
        assert_eq!(seen.can_fence(), fences, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_holds_in_a_race_only_is_found_out() {
    let seen = seen(Manners {
        forgets_if_none_match: true,
        ..Manners::default()
    })
    .await;
    assert!(
        matches!(seen.if_none_match, Support::Ignored { .. }),
        "{seen:?}"
    );
    assert_eq!(seen.complaints().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_contestant_whose_reply_was_lost_may_be_a_second_winner() {
    let remote = Fake::with(Manners {
        races_if_none_match: true,
        ..Manners::default()
    });
    for _ in 1..RACERS {
        remote.fault(
            Operation::PutObject,
            Fault::After(RemoteError::lost("PutObject")),
        );
    }
    // One winner is seen, and the creation afterwards is refused: as if it were honoured.
    let seen = probe(&remote, "probe/", 7, LIMIT).await.unwrap();
    assert!(
        matches!(seen.if_none_match, Support::Ignored { .. }),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_it_cannot_is_believed() {
    let seen = seen(Manners {
        not_implemented: true,
        ..Manners::default()
    })
    .await;
    for support in [&seen.if_none_match, &seen.if_match, &seen.if_match_missing] {
        assert!(matches!(support, Support::Refused { .. }), "{seen:?}");
    }
    assert!(!seen.can_fence());
    assert!(seen.complaints()[0].contains("NotImplemented"));
}

#[tokio::test(start_paused = true)]
async fn equal_entity_tags_for_other_bytes_are_found_out() {
    let seen = seen(Manners {
        equal_etags: true,
        ..Manners::default()
    })
    .await;
    assert!(!seen.if_match.is_honoured());
}

#[tokio::test(start_paused = true)]
async fn trouble_on_the_way_is_not_a_result() {
    let remote = Fake::default();
    for _ in 0..5 {
        remote.fault(
            Operation::PutObject,
            Fault::Before(RemoteError::throttled("PutObject")),
        );
        remote.fault(
            Operation::PutObject,
            Fault::After(RemoteError::lost("PutObject")),
        );
        remote.fault(
            Operation::HeadObject,
            Fault::Before(RemoteError::transient("HeadObject")),
        );
        remote.fault(Operation::DeleteObject, Fault::Hang);
    }
    let seen = probe(&remote, "probe/", 7, Duration::from_secs(300))
        .await
        .unwrap();
    assert_eq!(seen.complaints(), Vec::<String>::new());
    assert_eq!(remote.objects(), 0);
}

#[tokio::test(start_paused = true)]
async fn it_ends_at_its_deadline_and_says_what_was_in_the_way() {
    let remote = Fake::default();
    for _ in 0..10_000 {
        remote.fault(
            Operation::PutObject,
            Fault::Before(RemoteError::throttled("PutObject")),
        );
    }
    let start = Instant::now();
    let error = probe(&remote, "probe/", 7, LIMIT).await.unwrap_err();
    assert!(start.elapsed() <= LIMIT);
    let ProbeError::Deadline {
        last: Some(last), ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(last.has_code("SlowDown"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_ends_it_too() {
    let remote = Fake::default();
    for _ in 0..1_000 {
        remote.fault(Operation::PutObject, Fault::Hang);
        remote.fault(Operation::DeleteObject, Fault::Hang);
    }
    let start = Instant::now();
    assert!(
        probe(&remote, "probe/", 7, Duration::from_secs(30))
            .await
            .is_err()
    );
    assert!(start.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn missing_permission_is_an_error_and_not_a_capability() {
    let remote = Fake::default();
    for _ in 0..20 {
        let denied = RemoteError::environment("PutObject", 403, "AccessDenied");
        remote.fault(Operation::PutObject, Fault::Before(denied));
    }
    let error = probe(&remote, "probe/", 7, LIMIT).await.unwrap_err();
    assert!(matches!(error, ProbeError::Failed(_)), "{error}");
}
