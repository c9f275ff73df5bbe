//! What an outcome means: the decisions of an attempt, as pure functions.
//!
//! Owns: whose an object is, and what a failed request leads to. Does not own: the requests.

use crate::queue::receipt::Settlement;
use crate::queue::record::KeyState;
use crate::queue::task::{Cause, Condition, KeyPolicy};
use crate::remote::{Class, Crc64, Effect, ObjectInfo, RemoteError};

/// What we would upload, to tell it from what is found.
#[derive(Debug, Clone)]
pub(super) struct Ours<'a> {
    pub write_id: &'a str,
    pub len: u64,
    pub checksum: Option<Crc64>,
}

impl Ours<'_> {
    /// Whether the bytes found can be ours: their size and, where the server keeps one, their
    /// checksum.
    pub(super) fn same_bytes(&self, found: &ObjectInfo) -> bool {
        found.size == self.len
            && (found.checksum.is_none()
                || self.checksum.is_none()
                || found.checksum == self.checksum)
    }

    /// Bytes that are proven equal: a missing checksum proves nothing.
    fn proven_same(&self, found: &ObjectInfo) -> bool {
        found.size == self.len && self.checksum.is_some() && found.checksum == self.checksum
    }

    /// Whether this very task wrote the object.
    pub(super) fn wrote(&self, found: &ObjectInfo) -> bool {
        found.write_id.as_deref() == Some(self.write_id) && self.same_bytes(found)
    }
}

/// What comes after a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// The task is over.
    End(Settlement),
    /// It goes to quarantine.
    Quarantine(Cause),
    /// Ask the server what is there.
    Look,
    /// Again at once, on the state that was found.
    Rebase(KeyState),
    /// Again after a back-off.
    Again,
}

/// What a failed write leads to. `failures` are those in a row before this one.
pub(super) fn failed(error: &RemoteError, failures: u32) -> Next {
    match (error.effect, error.class) {
        (_, Class::Conflict) => Next::Look,
        (Effect::Unknown, _) => Next::Again,
        // The bytes were checked against what entered just before they were sent: it was the wire.
        (Effect::NotApplied, Class::Permanent) if is_digest(error) && failures < 3 => Next::Again,
        (Effect::NotApplied, Class::Permanent) => Next::Quarantine(Cause::Refused(error.clone())),
        (Effect::NotApplied, Class::Transient | Class::Throttle | Class::Environment) => {
            Next::Again
        }
    }
}

/// Whether a failed request may have made the object, or may still. The parts of an upload, and
/// its beginning, make none.
pub(super) fn may_make_the_object(error: &RemoteError) -> bool {
    let harmless = [
        "UploadPart",
        "CreateMultipartUpload",
        "AbortMultipartUpload",
    ];
    error.effect == Effect::Unknown && !harmless.contains(&error.operation.as_str())
}

fn is_digest(error: &RemoteError) -> bool {
    matches!(
        error.code.as_deref(),
        Some(
            "BadDigest"
                | "InvalidDigest"
                | "XAmzContentSHA256Mismatch"
                | "XAmzContentChecksumMismatch"
        )
    )
}

/// What a PUT leads to whose condition failed, now that we know what is there.
///
/// `sent_before` says that an earlier attempt may have reached S3; `journal` is the prefix of the
/// write ids of our own directory.
pub(super) fn put_conflict(
    ours: &Ours<'_>,
    found: Option<&ObjectInfo>,
    policy: KeyPolicy,
    condition: Option<&Condition>,
    sent_before: bool,
    journal: &str,
) -> Next {
    if let Some(found) = found
        // Somebody's write id that is not ours says whose it is, whatever its bytes are.
        && (ours.wrote(found)
            || (sent_before && found.write_id.is_none() && ours.proven_same(found)))
    {
        return Next::End(Settlement::Uploaded(found.clone()));
    }
    match (condition, policy) {
        (Some(Condition::IfAbsent { same_is_ok: true }), _)
            if found.is_some_and(|f| ours.proven_same(f)) =>
        {
            found.map_or(Next::Again, |found| {
                Next::End(Settlement::Uploaded(found.clone()))
            })
        }
        // Its object went away between the two requests.
        (Some(Condition::IfAbsent { .. }), _) if found.is_none() => Next::Again,
        (Some(_), _) => Next::End(Settlement::PreconditionFailed),
        (None, KeyPolicy::WriteOnce) => match found {
            Some(_) => Next::End(Settlement::PreconditionFailed),
            None => Next::Again,
        },
        (None, KeyPolicy::Rewritable) => match found {
            None => Next::Rebase(KeyState::Absent),
            // An earlier write of ours landed late; we go on from it.
            Some(found) if is_from(found, journal) => Next::Rebase(state_of(found)),
            Some(found) => Next::Quarantine(Cause::ForeignWrite {
                found: Some(found.etag.clone()),
            }),
        },
    }
}

/// What a DELETE leads to whose condition failed, now that we know what is there.
pub(super) fn delete_conflict(
    found: Option<&ObjectInfo>,
    condition: Option<&Condition>,
    sent_before: bool,
    journal: &str,
) -> Next {
    match (found, condition) {
        // Nothing there is what was asked for, if it may have been us.
        (None, None) => Next::Rebase(KeyState::Absent),
        (None, Some(_)) if sent_before => Next::End(Settlement::Deleted),
        (_, Some(_)) => Next::End(Settlement::PreconditionFailed),
        (Some(found), None) if is_from(found, journal) => Next::Rebase(state_of(found)),
        (Some(found), None) => Next::Quarantine(Cause::ForeignWrite {
            found: Some(found.etag.clone()),
        }),
    }
}

/// Whether an object was written by some task of this directory.
pub(super) fn is_from(found: &ObjectInfo, journal: &str) -> bool {
    found
        .write_id
        .as_deref()
        .is_some_and(|id| id.starts_with(journal))
}

/// The state of a key that has this object.
pub(super) fn state_of(found: &ObjectInfo) -> KeyState {
    KeyState::Object {
        etag: found.etag.clone(),
        size: Some(found.size),
        checksum: found.checksum,
    }
}

#[cfg(test)]
mod tests {
    use crate::remote::ETag;

    use super::*;

    const OURS: Ours<'static> = Ours {
        write_id: "j-7",
        len: 3,
        checksum: Some(Crc64(1)),
    };

    fn object(write_id: Option<&str>, checksum: Option<u64>) -> ObjectInfo {
        ObjectInfo {
            etag: ETag("e".to_owned()),
            size: 3,
            checksum: checksum.map(Crc64),
            write_id: write_id.map(str::to_owned),
            last_modified: None,
        }
    }

    fn conflict(
        found: &ObjectInfo,
        policy: KeyPolicy,
        condition: Option<Condition>,
        sent_before: bool,
    ) -> Next {
        put_conflict(
            &OURS,
            Some(found),
            policy,
            condition.as_ref(),
            sent_before,
            "j-",
        )
    }

    #[test]
    fn our_own_success_is_recognised_by_its_write_id_and_its_bytes() {
        use KeyPolicy::WriteOnce;
        let mine = object(Some("j-7"), Some(1));
        assert_eq!(
            conflict(&mine, WriteOnce, None, false),
            Next::End(Settlement::Uploaded(mine))
        );
        let other_bytes = object(Some("j-7"), Some(2));
        assert_eq!(
            conflict(&other_bytes, WriteOnce, None, true),
            Next::End(Settlement::PreconditionFailed),
            "a write id alone does not make other bytes ours"
        );
        let same = object(None, Some(1));
        assert_eq!(
            conflict(&same, WriteOnce, None, true),
            Next::End(Settlement::Uploaded(same.clone())),
            "after a lost reply, equal bytes are ours"
        );
        assert_eq!(
            conflict(&same, WriteOnce, None, false),
            Next::End(Settlement::PreconditionFailed)
        );
        let unknown = object(None, None);
        assert_eq!(
            conflict(&unknown, WriteOnce, None, true),
            Next::End(Settlement::PreconditionFailed),
            "no checksum proves nothing"
        );
    }

    #[test]
    fn a_callers_condition_is_an_outcome() {
        let same = object(Some("x"), Some(1));
        let absent = |same_is_ok| Some(Condition::IfAbsent { same_is_ok });
        for policy in [KeyPolicy::WriteOnce, KeyPolicy::Rewritable] {
            assert_eq!(
                conflict(&same, policy, absent(false), false),
                Next::End(Settlement::PreconditionFailed)
            );
            assert_eq!(
                conflict(&same, policy, absent(true), false),
                Next::End(Settlement::Uploaded(same.clone()))
            );
        }
    }

    #[test]
    fn a_rewritable_key_goes_on_from_our_own_writes_and_stops_at_foreign_ones() {
        use KeyPolicy::Rewritable;
        let earlier = object(Some("j-3"), Some(9));
        assert_eq!(
            conflict(&earlier, Rewritable, None, false),
            Next::Rebase(state_of(&earlier))
        );
        let foreign = object(Some("k-3"), Some(9));
        assert!(matches!(
            conflict(&foreign, Rewritable, None, false),
            Next::Quarantine(Cause::ForeignWrite { .. })
        ));
    }
}
