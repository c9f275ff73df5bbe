//! What happened, in order, and when: told for one seed, hashed for all.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Events that are told where a seed fails.
const LAST: usize = 120;

/// The events of one seed.
#[derive(Debug)]
pub struct Trace {
    is_told: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hash: DefaultHasher,
    last: VecDeque<String>,
    born: Option<Instant>,
    events: u64,
}

impl Trace {
    pub fn new(is_told: bool) -> Self {
        Self {
            is_told,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life begins: from here on time is its own.
    pub fn life(&self) {
        self.lock().born = Some(Instant::now());
    }

    /// It is over: what is said until the next one has no time.
    pub fn life_is_over(&self) {
        self.lock().born = None;
    }

    /// Notes what happened.
    pub fn say(&self, text: impl FnOnce() -> String) {
        let inner = &mut *self.lock();
        let at = inner.born.map_or(0, |born| born.elapsed().as_micros());
        let text = format!("{:>12.6} {}", at as f64 / 1e6, text());
        text.hash(&mut inner.hash);
        inner.events += 1;
        if self.is_told {
            println!("{text}");
        }
        if inner.last.len() == LAST {
            inner.last.pop_front();
        }
        inner.last.push_back(text);
    }

    /// One number for all that was said.
    pub fn hash(&self) -> u64 {
        self.lock().hash.finish()
    }

    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// The last of what was said.
    pub fn last(&self) -> Vec<String> {
        self.lock().last.iter().cloned().collect()
    }
}
