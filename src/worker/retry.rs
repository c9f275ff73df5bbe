//! How long to back off.
//!
//! Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): uniform
//! between nothing and the doubled base, so that clients that failed together do not come back
//! together.

use std::time::Duration;

/// The upper end of the back-off after `failures` failures in a row (1 for the first): `base`,
/// doubled by each, at most `cap`.
pub(crate) fn ceiling(failures: u32, base: Duration, cap: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    base.saturating_mul(1 << doublings).min(cap)
}

/// How long to wait: what the jitter drew, but not less than the server asked for, and at most
/// twice the cap of it.
pub(crate) fn wait(drawn: Duration, retry_after: Option<Duration>, cap: Duration) -> Duration {
    drawn.max(retry_after.unwrap_or_default().min(cap.saturating_mul(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(50);
    const CAP: Duration = Duration::from_secs(20);

    #[test]
    fn it_doubles_up_to_the_cap() {
        let ceilings: Vec<_> = (1..=11)
            .map(|failures| ceiling(failures, BASE, CAP).as_millis())
            .collect();
        assert_eq!(
            ceilings,
            [
                50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 20000, 20000
            ]
        );
        assert_eq!(ceiling(u32::MAX, BASE, CAP), CAP);
        assert_eq!(ceiling(0, BASE, CAP), BASE);
    }

    #[test]
    fn the_server_is_heard_within_reason() {
        let drawn = Duration::from_millis(10);
        assert_eq!(wait(drawn, None, CAP), drawn);
        assert_eq!(
            wait(drawn, Some(Duration::from_secs(3)), CAP),
            Duration::from_secs(3)
        );
        assert_eq!(wait(drawn, Some(Duration::from_secs(86_400)), CAP), CAP * 2);
    }
}
