//! The progress bar, on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

const EVERY: Duration = Duration::from_millis(100);

/// Shows the run until `inserting` is over, with `text` beside it. Never waits for anything but
/// time.
pub async fn show(inserting: Duration, text: impl Fn() -> String) {
    let length = u64::try_from(inserting.as_millis()).unwrap_or(u64::MAX);
    let bar = ProgressBar::new(length);
    if bar.is_hidden() {
        return tokio::time::sleep(inserting).await;
    }
    let style = "{bar:30} {percent:>3}%  {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let start = Instant::now();
    let mut tick = tokio::time::interval(EVERY);
    while start.elapsed() < inserting {
        tick.tick().await;
        let passed = start.elapsed();
        bar.set_position(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(text());
    }
    bar.finish_and_clear();
}
