//! What is known of keys: the state last seen of each, and the requests that were given up and
//! may still land.
//!
//! Owns: both tables, and the rule of when an operation must wait. Does not own: the requests.
//!
//! 1. A write is conditional on the state it was decided on, so one that lands late, after the
//!    state has changed, changes nothing.
//! 2. A state that can come back protects nothing. An operation that would make the state that a
//!    given-up request was conditional on waits until that request's signature has expired.
//! 3. What is remembered of states is bounded, and forgetting costs one HEAD. What is remembered
//!    of given-up requests is bounded by their number in a signature's lifetime, and never
//!    forgotten before.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::queue::record::{KeyState, OutstandingRecord};
use crate::remote::Crc64;
use crate::sync::Mutex;

/// Keys whose state is remembered.
const MAX_SEEN: usize = 65_536;

#[derive(Debug)]
struct Outstanding {
    condition: KeyState,
    expires_unix_ms: u64,
    location: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    seen: HashMap<Arc<str>, KeyState>,
    order: VecDeque<Arc<str>>,
    outstanding: HashMap<Arc<str>, Vec<Outstanding>>,
}

/// What is known of keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    state: Mutex<State>,
}

/// The state that an operation would make.
#[derive(Debug, Clone, Copy)]
pub(super) enum Makes {
    Absent,
    Object { size: u64, checksum: Option<Crc64> },
}

impl Makes {
    /// Whether the state made could be taken for `condition`: no object either way, or bytes that
    /// may be equal, which make an equal entity tag.
    fn could_be(self, condition: &KeyState) -> bool {
        match (self, condition) {
            (Self::Absent, KeyState::Absent) => true,
            (
                Self::Object { size, checksum },
                KeyState::Object {
                    size: s,
                    checksum: c,
                    ..
                },
            ) => {
                s.is_none_or(|s| s == size) && (checksum.is_none() || c.is_none() || checksum == *c)
            }
            _ => false,
        }
    }
}

impl Keys {
    /// The state last seen of a key.
    pub(super) fn seen(&self, key: &str) -> Option<KeyState> {
        self.state.lock().seen.get(key).cloned()
    }

    pub(super) fn saw(&self, key: &Arc<str>, seen: KeyState) {
        let mut state = self.state.lock();
        if state.seen.insert(Arc::clone(key), seen).is_none() {
            state.order.push_back(Arc::clone(key));
            // A key that was forgotten by name is still in the order: the two stay in step in
            // number because each entry there removes at most one here.
            while state.order.len() > MAX_SEEN {
                if let Some(oldest) = state.order.pop_front() {
                    state.seen.remove(&oldest);
                }
            }
        }
    }

    /// What was seen does not hold any more.
    pub(super) fn forget(&self, key: &str) {
        self.state.lock().seen.remove(key);
    }

    /// A request was given up. `location` is its record in the journal. Returns the record that
    /// this one replaces.
    pub(crate) fn gave_up(&self, record: &OutstandingRecord, location: Option<u64>) -> Option<u64> {
        let mut state = self.state.lock();
        let list = state
            .outstanding
            .entry(Arc::from(record.key.as_str()))
            .or_default();
        let same = list
            .iter_mut()
            .find(|other| other.condition == record.condition);
        if let Some(other) = same {
            if other.expires_unix_ms <= record.expires_unix_ms || other.location.is_none() {
                other.expires_unix_ms = other.expires_unix_ms.max(record.expires_unix_ms);
                return other.location.replace(location?);
            }
            return location;
        }
        list.push(Outstanding {
            condition: record.condition.clone(),
            expires_unix_ms: record.expires_unix_ms,
            location,
        });
        None
    }

    /// Until when an operation on this key must wait, in milliseconds since the Unix epoch.
    pub(super) fn must_wait(&self, key: &str, makes: Makes, now_unix_ms: u64) -> Option<u64> {
        let state = self.state.lock();
        let list = state.outstanding.get(key)?;
        list.iter()
            .filter(|other| other.expires_unix_ms > now_unix_ms)
            .filter(|other| makes.could_be(&other.condition))
            .map(|other| other.expires_unix_ms)
            .max()
    }

    /// Forgets what has expired; returns the records to end.
    pub(crate) fn expire(&self, now_unix_ms: u64) -> Vec<u64> {
        let mut ended = Vec::new();
        self.state.lock().outstanding.retain(|_, list| {
            list.retain(|other| {
                let live = other.expires_unix_ms > now_unix_ms;
                if !live {
                    ended.extend(other.location);
                }
                live
            });
            !list.is_empty()
        });
        ended
    }

    /// Requests that may still land.
    pub(crate) fn outstanding(&self) -> usize {
        self.state.lock().outstanding.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::remote::ETag;

    use super::*;

    fn object(etag: &str, size: u64, checksum: u64) -> KeyState {
        KeyState::Object {
            etag: ETag(etag.to_owned()),
            size: Some(size),
            checksum: Some(Crc64(checksum)),
        }
    }

    fn given_up(condition: KeyState, expires_unix_ms: u64) -> OutstandingRecord {
        OutstandingRecord {
            key: "k".to_owned(),
            condition,
            expires_unix_ms,
        }
    }

    #[test]
    fn an_operation_waits_while_it_could_remake_the_state_a_late_request_needs() {
        let keys = Keys::default();
        assert_eq!(
            keys.gave_up(&given_up(object("a", 1, 11), 1000), Some(5)),
            None
        );
        let put = |size, crc: u64| Makes::Object {
            size,
            checksum: Some(Crc64(crc)),
        };
        assert_eq!(
            keys.must_wait("k", put(1, 11), 0),
            Some(1000),
            "equal bytes, equal tag"
        );
        assert_eq!(keys.must_wait("k", put(1, 12), 0), None);
        assert_eq!(keys.must_wait("k", put(2, 11), 0), None);
        let unknown = Makes::Object {
            size: 1,
            checksum: None,
        };
        assert_eq!(
            keys.must_wait("k", unknown, 0),
            Some(1000),
            "what is not known may be equal"
        );
        assert_eq!(keys.must_wait("k", Makes::Absent, 0), None);
        assert_eq!(keys.must_wait("other", put(1, 11), 0), None);
        assert_eq!(
            keys.must_wait("k", put(1, 11), 1000),
            None,
            "its signature has expired"
        );
        keys.gave_up(&given_up(KeyState::Absent, 2000), Some(6));
        assert_eq!(keys.must_wait("k", Makes::Absent, 0), Some(2000));
        assert_eq!(keys.expire(1000), [5]);
        assert_eq!(keys.expire(2000), [6]);
        assert_eq!(keys.outstanding(), 0);
    }

    #[test]
    fn the_same_condition_is_remembered_once_with_the_later_expiry() {
        let keys = Keys::default();
        assert_eq!(keys.gave_up(&given_up(KeyState::Absent, 10), Some(1)), None);
        assert_eq!(
            keys.gave_up(&given_up(KeyState::Absent, 20), Some(2)),
            Some(1)
        );
        assert_eq!(
            keys.gave_up(&given_up(KeyState::Absent, 15), Some(3)),
            Some(3)
        );
        assert_eq!(keys.outstanding(), 1);
        assert_eq!(keys.must_wait("k", Makes::Absent, 0), Some(20));
    }
}
