//! How long one attempt may take: a pure function of its size.
//!
//! Owns: the formula and the wrapper that ends an attempt. Does not own: deadlines of whole
//! tasks, or when an attempt starts (after its slot was got, not before).

use std::time::Duration;

use super::{RemoteError, RemoteFuture};

/// The shortest attempt deadline, unless configured.
pub const MIN_ATTEMPT: Duration = Duration::from_secs(10);

/// The slowest link that is still waited for, in bytes a second, unless configured.
pub const DEFAULT_MIN_RATE: u64 = 64 * 1024;

/// The deadline of one attempt that moves `bytes`: the time they take at `min_rate` bytes a
/// second and half of `floor` for everything else, but at least `floor`. A rate of 0 counts as 1.
#[must_use]
pub fn attempt_deadline(bytes: u64, min_rate: u64, floor: Duration) -> Duration {
    let rate = min_rate.max(1);
    // In two steps, because bytes x 1,000 may not fit.
    let whole = Duration::from_secs(bytes / rate);
    let rest = u128::from(bytes % rate) * 1_000 / u128::from(rate);
    let rest = Duration::from_millis(u64::try_from(rest).unwrap_or(0));
    whole
        .saturating_add(rest)
        .saturating_add(floor / 2)
        .max(floor)
}

/// Waits for `attempt`, at most `deadline`.
///
/// # Errors
/// The attempt's own, or [`RemoteError::timed_out`].
///
/// # Cancel safety
/// As dropping the attempt: of a write, nobody knows what it did.
pub async fn within<T>(
    operation: &'static str,
    deadline: Duration,
    attempt: RemoteFuture<'_, T>,
) -> Result<T, RemoteError> {
    match tokio::time::timeout(deadline, attempt).await {
        Ok(result) => result,
        Err(_) => Err(RemoteError::timed_out(operation)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_ones_have_the_least_and_large_ones_their_time() {
        assert_eq!(
            attempt_deadline(0, DEFAULT_MIN_RATE, MIN_ATTEMPT),
            MIN_ATTEMPT
        );
        assert_eq!(
            attempt_deadline(1024, DEFAULT_MIN_RATE, MIN_ATTEMPT),
            MIN_ATTEMPT
        );
        // 8 MiB at 64 KiB/s are 128 s.
        assert_eq!(
            attempt_deadline(8 << 20, 64 << 10, MIN_ATTEMPT),
            Duration::from_secs(133)
        );
        assert_eq!(attempt_deadline(1, 0, MIN_ATTEMPT), MIN_ATTEMPT);
        assert!(attempt_deadline(u64::MAX, 0, MIN_ATTEMPT) > Duration::from_secs(1 << 40));
    }

    proptest! {
        #[test]
        fn it_never_falls_as_bytes_rise(a: u64, b: u64, rate: u64) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(attempt_deadline(low, rate, MIN_ATTEMPT) <= attempt_deadline(high, rate, MIN_ATTEMPT));
        }

        #[test]
        fn it_is_enough_for_the_rate(bytes in 0_u64..1 << 45, rate in 1_u64..1 << 33) {
            let seconds = attempt_deadline(bytes, rate, MIN_ATTEMPT).as_secs_f64();
            prop_assert!(seconds * rate as f64 >= bytes as f64);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hang_ends_as_unknown_at_its_deadline() {
        let start = tokio::time::Instant::now();
        let hang: RemoteFuture<'_, ()> = Box::pin(std::future::pending());
        let error = within("PutObject", Duration::from_secs(10), hang)
            .await
            .unwrap_err();
        assert_eq!(error.effect, super::super::Effect::Unknown);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }
}
