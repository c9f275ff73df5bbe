//! What was learnt of a server: which way it has, and which answers may be about that.
//!
//! 1. Another way is tried only after an answer that says that nothing was done.
//! 2. A way that has worked is kept, and its other is not tried again.
//! 3. Nothing that a condition protects is sent without it.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::remote::adapt::Adaptation;
use crate::remote::outcome::{Effect, RemoteError};

/// One [`Adaptation`], shared.
#[derive(Debug, Default)]
pub(super) struct Learnt(AtomicU8);

impl Learnt {
    pub(super) fn now(&self) -> Adaptation {
        match self.0.load(Ordering::Relaxed) {
            0 => Adaptation::Untried,
            1 => Adaptation::AsS3,
            _ => Adaptation::Adapted,
        }
    }

    pub(super) fn is_adapted(&self) -> bool {
        self.now() == Adaptation::Adapted
    }

    /// A request as S3 has it has worked, or the other way did not help: it is not tried again.
    pub(super) fn is_as_s3(&self) {
        self.settle(1);
    }

    /// The other way has worked.
    pub(super) fn adapt(&self, what: &'static str, at: &str) {
        if self.settle(2) {
            tracing::info!(at, what, "the server wants it otherwise than S3: adapted");
        }
    }

    /// Whether it was not settled before.
    fn settle(&self, way: u8) -> bool {
        let settled = self
            .0
            .compare_exchange(0, way, Ordering::Relaxed, Ordering::Relaxed);
        settled.is_ok()
    }
}

/// Whether an answer may be about a checksum header: the server does not implement something of
/// the request, or says that it is about checksums. Nothing was done.
pub(super) fn refuses_checksums(error: &RemoteError) -> bool {
    let about = || {
        let message = error.message.to_ascii_lowercase();
        message.contains("checksum") || message.contains("x-amz-sdk-")
    };
    error.effect == Effect::NotApplied
        && match error.status {
            Some(501) => true,
            // A digest that does not fit is an answer about the bytes, not the header.
            Some(400) => {
                let codes = ["InvalidRequest", "InvalidArgument", "NotImplemented"];
                codes.iter().any(|code| error.has_code(code)) && about()
            }
            _ => false,
        }
}

/// Whether an answer may be about the quotes of an entity tag. Nothing was done.
pub(super) fn refuses_tag(error: &RemoteError) -> bool {
    error.effect == Effect::NotApplied
        && match error.status {
            Some(412) => true,
            Some(400) => error.has_code("InvalidArgument") || error.has_code("InvalidRequest"),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::classify::{Failure, Operation, Request};

    fn error(status: u16, code: &str, message: &str) -> RemoteError {
        let failure = Failure::Answer {
            status,
            code: Some(code),
            message,
        };
        RemoteError::classified(Request::new(Operation::PutObject), failure, message)
    }

    #[test]
    fn what_may_be_about_a_checksum_header() {
        let table = [
            (501, "NotImplemented", "a header you provided", true),
            (
                400,
                "InvalidRequest",
                "Checksum algorithm is not supported",
                true,
            ),
            (400, "InvalidArgument", "x-amz-sdk-checksum-algorithm", true),
            (400, "InvalidArgument", "bad key", false),
            (400, "BadDigest", "the checksum did not match", false),
            (412, "PreconditionFailed", "checksum", false),
            (500, "InternalError", "checksum", false),
        ];
        for (status, code, message, is) in table {
            assert_eq!(
                refuses_checksums(&error(status, code, message)),
                is,
                "{status} {code}"
            );
        }
    }

    #[test]
    fn what_is_settled_stays() {
        let learnt = Learnt::default();
        assert_eq!(learnt.now(), Adaptation::Untried);
        learnt.is_as_s3();
        learnt.adapt("tags", "s3://b");
        assert_eq!(learnt.now(), Adaptation::AsS3);
        let learnt = Learnt::default();
        learnt.adapt("tags", "s3://b");
        learnt.is_as_s3();
        assert!(learnt.is_adapted());
    }
}
