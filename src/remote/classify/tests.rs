use super::*;
use proptest::prelude::*;

fn verdict(operation: Operation, conditional: bool, status: u16, code: &str) -> (Class, Effect) {
    let code = (!code.is_empty()).then_some(code);
    let request = Request::new(operation).conditional(conditional);
    let verdict = classify(
        request,
        Failure::Answer {
            status,
            code,
            message: "",
        },
    );
    (verdict.class, verdict.effect)
}

/// What S3 and its relatives were seen to answer to a conditional PUT (or a completion, where it
/// says so), one row each.
#[test]
fn every_answer_that_was_measured() {
    #[rustfmt::skip]
    let rows: &[(u16, &str, Class, Effect)] = &[
        (503, "SlowDown", Throttle, NotApplied),
        (503, "SlowDownRead", Throttle, NotApplied),
        (503, "SlowDownWrite", Throttle, NotApplied),
        (503, "ServiceUnavailable", Throttle, NotApplied),
        (503, "XMinioServerNotInitialized", Transient, NotApplied),
        (503, "XMinioBackendDown", Transient, NotApplied),
        (503, "XMinioAdminConfigNoQuorum", Transient, NotApplied),
        (503, "RequestTimeout", Transient, NotApplied),
        (503, "", Throttle, Unknown),
        (503, "SomethingElse", Transient, Unknown),
        (500, "InternalError", Transient, Unknown),
        (502, "", Transient, Unknown),
        (504, "", Transient, Unknown),
        (429, "", Throttle, NotApplied),
        (429, "TooManyRequests", Throttle, NotApplied),
        (429, "NeverHeardOf", Throttle, NotApplied),
        (400, "RequestTimeout", Transient, NotApplied),
        (403, "RequestTimeTooSkewed", Environment, NotApplied),
        (400, "ExpiredToken", Environment, NotApplied),
        (400, "TokenRefreshRequired", Environment, NotApplied),
        (403, "InvalidTokenId", Environment, NotApplied),
        (403, "InvalidAccessKeyId", Environment, NotApplied),
        (403, "SignatureDoesNotMatch", Environment, NotApplied),
        (403, "AccessDenied", Environment, NotApplied),
        (403, "AllAccessDisabled", Environment, NotApplied),
        (403, "AccountProblem", Environment, NotApplied),
        (403, "", Environment, NotApplied),
        (403, "NeverHeardOf", Environment, NotApplied),
        (404, "NoSuchBucket", Environment, NotApplied),
        (404, "NoSuchUpload", Transient, NotApplied),
        (404, "NoSuchKey", Conflict, NotApplied),
        (412, "PreconditionFailed", Conflict, NotApplied),
        (412, "", Conflict, NotApplied),
        (409, "ConditionalRequestConflict", Transient, NotApplied),
        (409, "OperationAborted", Transient, NotApplied),
        (400, "BadDigest", Transient, NotApplied),
        (400, "InvalidDigest", Transient, NotApplied),
        (400, "XAmzContentSHA256Mismatch", Transient, NotApplied),
        (400, "XAmzContentChecksumMismatch", Transient, NotApplied),
        (400, "IncompleteBody", Transient, NotApplied),
        (411, "MissingContentLength", Transient, NotApplied),
        (400, "EntityTooLarge", Permanent, NotApplied),
        (400, "EntityTooSmall", Permanent, NotApplied),
        (400, "InvalidPart", Permanent, NotApplied),
        (400, "InvalidPartOrder", Permanent, NotApplied),
        (400, "KeyTooLongError", Permanent, NotApplied),
        (400, "MetadataTooLarge", Permanent, NotApplied),
        (400, "InvalidArgument", Permanent, NotApplied),
        (400, "InvalidRequest", Permanent, NotApplied),
        (400, "XMinioInvalidObjectName", Permanent, NotApplied),
        (400, "XMinioParentIsObject", Permanent, NotApplied),
        (409, "XMinioObjectExistsAsDirectory", Permanent, NotApplied),
        (413, "", Permanent, NotApplied),
        (501, "NotImplemented", Permanent, NotApplied),
        (403, "ObjectLocked", Permanent, NotApplied),
        (403, "KMS.DisabledException", Permanent, NotApplied),
        (400, "KMS.ThrottlingException", Throttle, NotApplied),
        (500, "KMS.InternalException", Transient, Unknown),
        (507, "XMinioStorageFull", Environment, NotApplied),
        (507, "", Environment, NotApplied),
        (400, "XMinioAdminBucketQuotaExceeded", Environment, NotApplied),
        (403, "QuotaExceeded", Environment, NotApplied),
        (301, "PermanentRedirect", Environment, NotApplied),
        (307, "TemporaryRedirect", Environment, NotApplied),
        (301, "", Environment, NotApplied),
        (400, "AuthorizationHeaderMalformed", Environment, NotApplied),
        (400, "IllegalLocationConstraintException", Environment, NotApplied),
        (200, "InternalError", Transient, Unknown),
        (200, "SlowDown", Throttle, Unknown),
        (408, "", Transient, Unknown),
        (400, "NeverHeardOf", Transient, NotApplied),
        (409, "NeverHeardOf", Transient, NotApplied),
        (500, "NeverHeardOf", Transient, Unknown),
        (599, "", Transient, Unknown),
    ];
    for &(status, code, class, effect) in rows {
        assert_eq!(
            verdict(Operation::PutObject, true, status, code),
            (class, effect),
            "{status} {code:?}"
        );
    }
}

#[test]
fn a_lost_upload_leaves_a_completion_unknown() {
    assert_eq!(
        verdict(
            Operation::CompleteMultipartUpload,
            false,
            404,
            "NoSuchUpload"
        ),
        (Transient, Unknown)
    );
    assert_eq!(
        verdict(Operation::UploadPart, false, 404, "NoSuchUpload"),
        (Transient, NotApplied)
    );
}

/// What passes is not always what can be sent again: another upload takes the place of one that
/// is lost.
#[test]
fn an_upload_that_is_lost_passes_and_its_requests_do_not() {
    let complete = Operation::CompleteMultipartUpload;
    let retryable = |operation, code| {
        let failure = Failure::Answer {
            status: 409,
            code: Some(code),
            message: "",
        };
        let verdict = classify(Request::new(operation), failure);
        assert_eq!(verdict.class, Transient, "{operation:?} {code}");
        verdict.retryable
    };
    assert!(!retryable(complete, "NoSuchUpload"));
    assert!(!retryable(Operation::UploadPart, "NoSuchUpload"));
    assert!(!retryable(complete, "ConditionalRequestConflict"));
    assert!(retryable(
        Operation::PutObject,
        "ConditionalRequestConflict"
    ));
    assert!(retryable(complete, "OperationAborted"));
}

#[test]
fn a_success_with_an_error_in_it_is_unknown_whatever_the_code() {
    for code in [
        "InternalError",
        "SlowDown",
        "AccessDenied",
        "InvalidPart",
        "PreconditionFailed",
    ] {
        let (_, effect) = verdict(Operation::CompleteMultipartUpload, false, 200, code);
        assert_eq!(effect, Unknown, "{code}");
    }
}

#[test]
fn a_key_that_is_not_there_is_a_conflict_only_for_a_condition() {
    assert_eq!(
        verdict(Operation::PutObject, true, 404, "NoSuchKey").0,
        Conflict
    );
    assert_eq!(
        verdict(Operation::DeleteObject, true, 404, "NoSuchKey").0,
        Conflict
    );
    assert_eq!(
        verdict(Operation::UploadPart, false, 404, "NoSuchKey").0,
        Transient
    );
    assert_eq!(
        verdict(Operation::GetObject, false, 404, "NoSuchKey").0,
        Transient
    );
}

#[test]
fn a_bad_digest_is_permanent_only_if_our_bytes_are_bad() {
    for code in [
        "BadDigest",
        "InvalidDigest",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    ] {
        let failure = Failure::Answer {
            status: 400,
            code: Some(code),
            message: "",
        };
        let request = Request::new(Operation::PutObject);
        assert_eq!(classify(request, failure).class, Transient, "{code}");
        assert_eq!(
            classify(request.body_intact(false), failure).class,
            Permanent,
            "{code}"
        );
    }
}

#[test]
fn a_full_disk_behind_an_internal_error_is_environment() {
    let failure = Failure::Answer {
        status: 500,
        code: Some("InternalError"),
        message: "We encountered an internal error: write: No space left on device",
    };
    let verdict = classify(Request::new(Operation::PutObject), failure);
    assert_eq!((verdict.class, verdict.effect), (Environment, Unknown));
}

#[test]
fn head_answers_without_a_code() {
    assert_eq!(
        verdict(Operation::HeadObject, false, 400, "").0,
        Environment
    );
    assert_eq!(
        verdict(Operation::HeadObject, false, 403, "").0,
        Environment
    );
    assert_eq!(
        verdict(Operation::HeadObject, false, 301, "").0,
        Environment
    );
    assert_eq!(verdict(Operation::HeadObject, false, 503, "").0, Throttle);
    assert_eq!(verdict(Operation::GetObject, false, 400, "").0, Transient);
}

#[test]
fn every_transport_failure() {
    #[rustfmt::skip]
    let rows: &[(Transport, Class, Effect)] = &[
        (Transport::ConnectRefused, Transient, NotApplied),
        (Transport::Dns, Transient, NotApplied),
        (Transport::DispatchBeforeSend, Transient, NotApplied),
        (Transport::Tls, Environment, NotApplied),
        (Transport::Credentials, Environment, NotApplied),
        (Transport::Construction, Permanent, NotApplied),
        (Transport::Io, Transient, Unknown),
        (Transport::Timeout, Transient, Unknown),
        (Transport::ResponseParse, Transient, Unknown),
        (Transport::BodyDamaged, Transient, Unknown),
        (Transport::ChecksumMismatch, Transient, Unknown),
    ];
    for &(kind, class, effect) in rows {
        for operation in Operation::ALL {
            let verdict = classify(Request::new(operation), Failure::Transport(kind));
            let effect = if operation.is_write() {
                effect
            } else {
                NotApplied
            };
            assert_eq!(
                (verdict.class, verdict.effect),
                (class, effect),
                "{kind:?} {operation:?}"
            );
        }
    }
}

#[test]
fn every_row_can_be_reached() {
    // A row behind one that fits all it fits is dead: a fact that nobody will ever see.
    for (at, row) in ROWS.iter().enumerate() {
        let status = match row.status {
            Status::Any => 418,
            Status::Is(status) => status,
            Status::Hundreds(hundreds) => hundreds * 100 + 99,
        };
        let said = match row.code {
            Code::Is(code) => Some(code.to_owned()),
            Code::StartsWith(start) => Some(format!("{start}Anything")),
            Code::None => None,
            Code::Any => Some("NeverHeardOf".to_owned()),
        };
        let status = if at + 1 == ROWS.len() { 599 } else { status };
        let message = if row.when == When::NoSpace {
            "no space left on device"
        } else {
            ""
        };
        let operation = match row.when {
            When::Complete => Operation::CompleteMultipartUpload,
            When::Head => Operation::HeadObject,
            _ => Operation::PutObject,
        };
        let request = Request::new(operation)
            .conditional(row.when == When::ConditionalWrite)
            .body_intact(row.when != When::BodyBad);
        let found = ROWS
            .iter()
            .position(|r| r.fits(request, status, said.as_deref(), message));
        assert_eq!(found, Some(at), "{row:?}");
    }
}

#[test]
fn names_go_both_ways() {
    for operation in Operation::ALL {
        assert_eq!(Operation::by_name(operation.name()), Some(operation));
    }
    assert_eq!(Operation::by_name("CopyObject"), None);
}

proptest! {
    #[test]
    fn whatever_a_server_says_the_invariants_hold(
        status in 100_u16..1000,
        code in proptest::option::of("[A-Za-z.]{0,20}"),
        operation in 0_usize..Operation::ALL.len(),
        conditional: bool,
    ) {
        let operation = Operation::ALL[operation];
        let request = Request::new(operation).conditional(conditional);
        let failure = Failure::Answer { status, code: code.as_deref(), message: "" };
        let verdict = classify(request, failure);
        if !operation.is_write() {
            prop_assert_eq!(verdict.effect, NotApplied);
        } else if status / 100 == 2 {
            prop_assert_eq!(verdict.effect, Unknown);
        }
        // A random code is never a reason to give something up, unless the status says so.
        let known = code.as_deref().is_some_and(is_listed);
        if !known && ![405, 412, 413, 416, 501].contains(&status) {
            prop_assert!(verdict.retryable);
        }
    }
}
