//! What the queue writes into the journal: its record kinds and their bytes.
//!
//! Owns: the kinds, the note slots and the encoding (postcard, described in `docs/formats`). Does
//! not own: frames, segments and recovery, which are the journal's. Kinds are never reused; a
//! record that gains a field becomes a new kind, so that old ones are read for ever.

use serde::{Deserialize, Serialize};

use crate::remote::{Crc64, ETag, ObjectHeaders};

use super::task::{Action, Borrowed, Cause, Condition, KeyPolicy, Lane};

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
    /// Its earlier stays in quarantine: a list of [`super::super::quarantine::PastQuarantine`].
    pub(crate) const HISTORY: u8 = 5;
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

/// Why a task is in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantine {
    pub cause: Cause,
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
    let mut bytes = encode(&Quarantine {
        cause: cause.clone(),
    });
    bytes.extend(encode(parked));
    bytes
}

/// The same, read back; without what a note of an earlier release does not have.
pub(crate) fn decode_quarantine(bytes: &[u8]) -> Option<(Cause, Option<Parked>)> {
    let (quarantine, rest) = postcard::take_from_bytes::<Quarantine>(bytes).ok()?;
    Some((quarantine.cause, decode(rest)))
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
        let known = Quarantine { cause };
        assert_eq!(decode::<Quarantine>(&note), Some(known.clone()));
        let before = encode(&known);
        assert_eq!(decode_quarantine(&before), Some((known.cause, None)));
        assert_eq!(decode_quarantine(&[]), None);
    }
}
