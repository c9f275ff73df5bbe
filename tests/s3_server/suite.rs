//! What every lane goes through, and how it ends.

use tokio::time::Instant;

use crate::lane::Lane;
use crate::{ends, objects, pages, requests};

/// All of it, and the look at what is left.
pub async fn run(lane: Lane) {
    behaviours(&lane).await;
    finish(&lane).await;
}

pub async fn behaviours(lane: &Lane) {
    macro_rules! each {
        ($($behaviour:path),* $(,)?) => {$(
            let start = Instant::now();
            $behaviour(lane).await;
            lane.say(&format!(
                "{}: ok ({} ms)",
                stringify!($behaviour),
                start.elapsed().as_millis()
            ));
        )*};
    }
    each!(
        requests::one_request_one_outcome,
        requests::multipart_uploads,
        objects::upload,
        objects::conditions,
        pages::load,
        pages::checkpoint_and_restore,
        pages::fence_or_refusal,
        pages::garbage,
        ends::shutdown_under_load,
        ends::multipart_with_crash,
    );
}

/// Tells what differs, and that nothing is left.
pub async fn finish(lane: &Lane) {
    for difference in lane.differences() {
        lane.say(&format!("differs: {difference}"));
    }
    if lane.name == "embedded" {
        assert!(lane.differences().is_empty(), "ours does as S3 does");
    }
    let swept = lane.sweep("").await;
    lane.say(&format!("{swept} objects swept away at the end"));
    lane.must_be_left_as_found().await;
}
