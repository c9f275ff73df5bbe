//! What a scenario writes into the log.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

thread_local! {
    /// What is written on this thread, where somebody wants to know.
    static EVENTS: RefCell<Option<(Level, Vec<String>)>> = const { RefCell::new(None) };
}

/// One event, if it is wanted on this thread.
struct Event {
    level: Level,
}

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        EVENTS.with_borrow_mut(|events| {
            if let Some((level, events)) = events
                && self.level <= *level
            {
                events.push(String::from_utf8_lossy(bytes).into_owned());
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ToThread;

impl<'a> MakeWriter<'a> for ToThread {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event {
            level: Level::TRACE,
        }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Event {
        Event {
            level: *meta.level(),
        }
    }
}

/// Runs `scenario` on this thread; the events that it logged there at `level` or above, of warnings
/// and errors. (An event may have many lines.)
///
/// The subscriber is the process's, and not the thread's: whether anybody listens is remembered for
/// each place in the code, and a test on another thread would answer for this one.
pub fn logged(level: Level, scenario: impl FnOnce()) -> Vec<String> {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_max_level(Level::WARN)
            .with_writer(ToThread)
            .init();
    });
    EVENTS.set(Some((level, Vec::new())));
    scenario();
    EVENTS.take().map_or_else(Vec::new, |(_, events)| events)
}
