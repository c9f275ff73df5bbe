//! What the queue writes into the journal: its record kinds and their bytes.
//!
//! Owns: the kinds, the note slots and the encoding (postcard, described in `docs/formats`). Does
//! not own: frames, segments and recovery, which are the journal's. Kinds are never reused; a
//! record that gains a field becomes a new kind, so that old ones are read for ever.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::remote::{Class, Crc64, ETag, Effect, ObjectHeaders, RemoteError};

use super::task::{Action, Borrowed, Cause, Condition, KeyPolicy, Lane, TaskId};

/// Kinds of records that begin an owner.
pub(crate) mod kind {
    /// A task.
    pub(crate) const TASK: u8 = 1;
    /// A request that was given up and may still happen.
    pub(crate) const OUTSTANDING: u8 = 2;
    /// The end of either.
    pub(crate) const END: u8 = 3;
    /// A note on a task.
    pub(crate) const NOTE: u8 = 4;
    /// A multipart upload to abort.
    pub(crate) const ABORT: u8 = 5;
    /// From here on kinds belong to the layers above.
    pub(crate) const OTHERS: u8 = 16;
}

/// Slots of notes on a task: the latest of each is kept while the task is.
pub(crate) mod slot {
    /// An attempt was started: [`super::Started`].
    pub(crate) const STARTED: u8 = 1;
    /// It went to quarantine ([`super::Quarantine`]), or came back (an empty note).
    pub(crate) const QUARANTINE: u8 = 2;
    /// It was in flight at crashes: [`super::Crashes`].
    pub(crate) const CRASHES: u8 = 3;
    /// Its multipart upload: [`super::Multipart`], empty when that is over.
    pub(crate) const MULTIPART: u8 = 4;
    /// Attempts at it that failed: [`super::Failed`], empty when it was replayed.
    pub(crate) const FAILED: u8 = 5;
    /// Its earlier stays in quarantine: a list of [`super::super::quarantine::PastQuarantine`].
    pub(crate) const HISTORY: u8 = 6;
}

/// A task as submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    pub key: String,
    pub lane: Lane,
    pub policy: KeyPolicy,
    pub action: ActionRecord,
    pub condition: Option<Condition>,
    pub coalesce: bool,
    pub after: Vec<u64>,
    pub tag: String,
    pub headers: ObjectHeaders,
    pub len: u64,
    pub checksum: Option<Crc64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ActionRecord {
    Upload,
    UploadBorrowed(Borrowed),
    Delete,
}

impl From<&Action> for ActionRecord {
    fn from(action: &Action) -> Self {
        match action {
            Action::Upload => Self::Upload,
            Action::UploadBorrowed(borrowed) => Self::UploadBorrowed((**borrowed).clone()),
            Action::Delete => Self::Delete,
        }
    }
}

/// The state of a key that a request was conditional on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum KeyState {
    /// No object.
    Absent,
    /// This object. What is known of its bytes tells whether another PUT would make an equal
    /// entity tag.
    Object {
        etag: ETag,
        size: Option<u64>,
        checksum: Option<Crc64>,
    },
}

/// An attempt is about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The state of the key that it is conditional on; `None` where it has no condition.
    pub condition: Option<KeyState>,
    /// When its signature will have expired, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

/// Crashes at which a task was in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crashes {
    pub count: u32,
    /// Attempts noted up to this location are counted: one attempt is charged with one crash, and
    /// not with every crash that comes before the task has its next turn.
    pub counted_to: u64,
}

/// A request that was given up and may still happen, until its signature has expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutstandingRecord {
    pub key: String,
    pub condition: KeyState,
    pub expires_unix_ms: u64,
}

/// Attempts that failed. Noted at the first, second, fourth, eighth, ... of them, so that an outage
/// does not fill the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// How many, over all lives.
    pub attempts: u32,
    /// The last one's error, cut.
    pub error: String,
}

/// Why a task is in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantine {
    cause: CauseRecord,
}

impl Quarantine {
    pub(crate) fn new(cause: Cause) -> Self {
        Self {
            cause: cause.into(),
        }
    }

    pub(crate) fn into_cause(self) -> Cause {
        self.cause.into()
    }
}

/// A [`Cause`] as it is kept: what its public shape gains does not change the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum CauseRecord {
    Refused(ErrorRecord),
    ForeignWrite { found: Option<ETag> },
    Panicked(String),
    CrashLoop { crashes: u32 },
    LocalCorruption(String),
    SourceMissing(String),
    SourceChanged(String),
    Dependency(TaskId),
    ConditionsUnsupported,
}

/// A [`RemoteError`] as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ErrorRecord {
    operation: String,
    effect: Effect,
    class: Class,
    status: Option<u16>,
    code: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

impl From<Cause> for CauseRecord {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Refused(error) => Self::Refused(ErrorRecord {
                operation: error.operation,
                effect: error.effect,
                class: error.class,
                status: error.status,
                code: error.code,
                message: error.message,
                retry_after: error.retry_after,
            }),
            Cause::ForeignWrite { found } => Self::ForeignWrite { found },
            Cause::Panicked(text) => Self::Panicked(text),
            Cause::CrashLoop { crashes } => Self::CrashLoop { crashes },
            Cause::LocalCorruption(text) => Self::LocalCorruption(text),
            Cause::SourceMissing(text) => Self::SourceMissing(text),
            Cause::SourceChanged(text) => Self::SourceChanged(text),
            Cause::Dependency(task) => Self::Dependency(task),
            Cause::ConditionsUnsupported => Self::ConditionsUnsupported,
        }
    }
}

impl From<CauseRecord> for Cause {
    fn from(record: CauseRecord) -> Self {
        match record {
            CauseRecord::Refused(error) => Self::Refused(RemoteError {
                operation: error.operation,
                effect: error.effect,
                class: error.class,
                // What could succeed later is not refused.
                retryable: error.class.is_retryable(),
                status: error.status,
                code: error.code,
                message: error.message,
                retry_after: error.retry_after,
            }),
            CauseRecord::ForeignWrite { found } => Self::ForeignWrite { found },
            CauseRecord::Panicked(text) => Self::Panicked(text),
            CauseRecord::CrashLoop { crashes } => Self::CrashLoop { crashes },
            CauseRecord::LocalCorruption(text) => Self::LocalCorruption(text),
            CauseRecord::SourceMissing(text) => Self::SourceMissing(text),
            CauseRecord::SourceChanged(text) => Self::SourceChanged(text),
            CauseRecord::Dependency(task) => Self::Dependency(task),
            CauseRecord::ConditionsUnsupported => Self::ConditionsUnsupported,
        }
    }
}

/// What else is known of a task in quarantine. In its note, behind [`Quarantine`]: notes of the
/// releases before this one end there, and those read no further.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parked {
    pub at_unix_ms: u64,
    pub attempts: u32,
    pub crashes: u32,
    pub last_error: Option<String>,
}

/// The bytes of a note of a quarantine.
pub(crate) fn encode_quarantine(cause: &Cause, parked: &Parked) -> Vec<u8> {
    let mut bytes = encode(&Quarantine::new(cause.clone()));
    bytes.extend(encode(parked));
    bytes
}

/// The same, read back; without what a note of an earlier release does not have.
pub(crate) fn decode_quarantine(bytes: &[u8]) -> Option<(Cause, Option<Parked>)> {
    let (quarantine, rest) = postcard::take_from_bytes::<Quarantine>(bytes).ok()?;
    Some((quarantine.into_cause(), decode(rest)))
}

/// A multipart upload that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Multipart {
    /// `None` before the server has answered with one.
    pub upload_id: Option<String>,
}

/// A multipart upload to abort; without an id, whatever is unfinished on the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AbortRecord {
    pub key: String,
    pub upload_id: Option<String>,
}

/// The bytes of a record.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Serialising plain data into memory fails for no input; an empty record is refused by
    // `decode`, so that even that would be noticed.
    postcard::to_allocvec(record).unwrap_or_default()
}

/// A record from its bytes; `None` where they are not one.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_encoding() {
        let task = TaskRecord {
            key: "wal/1".to_owned(),
            lane: Lane::Foreground,
            policy: KeyPolicy::Rewritable,
            action: ActionRecord::Delete,
            condition: Some(Condition::IfMatch(ETag("e".to_owned()))),
            coalesce: true,
            after: vec![1, u64::MAX],
            tag: "t".to_owned(),
            headers: ObjectHeaders::default(),
            len: 7,
            checksum: Some(Crc64::of(b"7 bytes")),
        };
        assert_eq!(decode::<TaskRecord>(&encode(&task)), Some(task));
        assert_eq!(decode::<TaskRecord>(&[]), None);
    }

    /// The bytes that directories have: they are read for ever, whatever the types gain.
    #[test]
    fn a_cause_is_kept_in_the_bytes_that_it_always_was() {
        let refused = RemoteError::permanent("PutObject", 400, "InvalidArgument");
        #[rustfmt::skip]
        let bytes = [
            &[0, 9][..], b"PutObject", &[0, 3], // refused, by what; not applied, permanent
            &[1, 0x90, 3], &[1, 15], b"InvalidArgument", // 400
            &[7], b"refused", &[0],
        ]
        .concat();
        let kept = Quarantine::new(Cause::Refused(refused.clone()));
        assert_eq!(encode(&kept), bytes);
        let read = decode::<Quarantine>(&bytes).map(Quarantine::into_cause);
        assert_eq!(read, Some(Cause::Refused(refused)));
        let others = [
            (Cause::ForeignWrite { found: None }, vec![1, 0]),
            (Cause::Panicked("p".to_owned()), vec![2, 1, b'p']),
            (Cause::CrashLoop { crashes: 3 }, vec![3, 3]),
            (Cause::LocalCorruption("c".to_owned()), vec![4, 1, b'c']),
            (Cause::SourceMissing("m".to_owned()), vec![5, 1, b'm']),
            (Cause::SourceChanged("s".to_owned()), vec![6, 1, b's']),
            (Cause::Dependency(TaskId(9)), vec![7, 9]),
            (Cause::ConditionsUnsupported, vec![8]),
        ];
        for (cause, bytes) in others {
            assert_eq!(encode(&Quarantine::new(cause.clone())), bytes);
            let read = decode::<Quarantine>(&bytes).map(Quarantine::into_cause);
            assert_eq!(read, Some(cause));
        }
    }

    #[test]
    fn a_note_of_a_quarantine_is_read_by_releases_before_and_after_this_one() {
        let cause = Cause::Panicked("p".to_owned());
        let parked = Parked {
            at_unix_ms: 7,
            attempts: 2,
            crashes: 1,
            last_error: Some("e".to_owned()),
        };
        let note = encode_quarantine(&cause, &parked);
        assert_eq!(
            decode_quarantine(&note),
            Some((cause.clone(), Some(parked)))
        );
        let known = Quarantine::new(cause.clone());
        assert_eq!(decode::<Quarantine>(&note), Some(known.clone()));
        let before = encode(&known);
        assert_eq!(decode_quarantine(&before), Some((cause, None)));
        assert_eq!(decode_quarantine(&[]), None);
    }
}
