//! The progress bar, on a terminal only.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use s3_writeback::UploadQueue;
use tokio::time::Instant;

use crate::acks::Acks;

const EVERY: Duration = Duration::from_millis(100);

/// Shows the run until `inserting` is over. Never waits for anything but time.
pub async fn show(inserting: Duration, acks: Arc<Acks>, queue: UploadQueue) {
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
        let snapshot = queue.snapshot();
        bar.set_message(format!(
            "{} rows acknowledged, {} segments in S3, {} waiting (pressure {})",
            acks.total(),
            snapshot.uploaded,
            snapshot.admitted_tasks,
            snapshot.pressure,
        ));
    }
    bar.finish_and_clear();
}
