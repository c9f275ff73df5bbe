//! Named instants at which a test kills the process: between two steps whose order is a promise.
//!
//! Owns: their names. Without feature `testing` nothing of this is compiled in. A process dies at
//! the n-th passing of a point where `S3_WRITEBACK_CRASH_AT` is `name:n`.

/// All points, in the order in which a task and a checkpoint pass them.
#[cfg(feature = "testing")]
pub(crate) const ALL: &[&str] = &[
    "open.counted",
    "open.scanned",
    "open.recovered",
    "submit.staged",
    "submit.appended",
    "journal.placed",
    "journal.writing",
    "journal.written",
    "journal.synced",
    "journal.segment",
    "journal.removing",
    "journal.unlinking",
    "submit.adopted",
    "attempt.noted",
    "multipart.created",
    "multipart.journaled",
    "multipart.part",
    "multipart.completing",
    "multipart.completed",
    "attempt.sent",
    "settle.ended",
    "settle.recorded",
    "settle.quarantined",
    "quarantine.replayed",
    "journal.sealing",
    "pack.captured",
    "pack.sent",
    "pack.recorded",
    "part.punched",
    "checkpoint.drawn",
    "checkpoint.attempt",
    "checkpoint.head",
    "checkpoint.committed",
];

/// The process dies here, if a test said so.
#[cfg(feature = "testing")]
pub(crate) fn crash_point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    debug_assert!(ALL.contains(&name), "{name} is not in the table");
    let at = AT.get_or_init(|| {
        let said = std::env::var("S3_WRITEBACK_CRASH_AT").ok()?;
        let (name, nth) = said.split_once(':')?;
        Some((name.to_owned(), nth.parse().ok()?))
    });
    if let Some((at, nth)) = at
        && at == name
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth
    {
        std::process::abort();
    }
}

/// Nothing, outside of tests.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) const fn crash_point(_: &'static str) {}
