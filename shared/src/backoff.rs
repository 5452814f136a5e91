//! The pause before another attempt: doubling, capped, with jitter so that instances spread out.

use std::time::Duration;

use uuid::Uuid;

/// Shortest pause: a passing fault (a deadlock, a moved leader) is over by then.
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause: an outage's end is noticed within it.
const CAP: Duration = Duration::from_secs(5);

/// The pause before the attempt that follows failed attempt number `attempt` (from 1): between half and all of
/// 50 ms doubled each time, 5 s at most.
pub fn delay(attempt: u32) -> Duration {
    let full = FIRST
        .saturating_mul(1 << attempt.saturating_sub(1).min(10))
        .min(CAP);
    full / 2 + jitter(full / 2)
}

/// Anything from nothing to `limit`.
pub fn jitter(limit: Duration) -> Duration {
    // a version 7 UUID's last 32 bits are random: no further dependency for a jitter
    let random = Uuid::now_v7().as_u128() as u32;
    limit.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_cap() {
        for (attempt, full) in [(1, 50), (2, 100), (5, 800), (8, 5_000), (u32::MAX, 5_000)] {
            let pause = delay(attempt);
            assert!(
                pause >= Duration::from_millis(full / 2) && pause <= Duration::from_millis(full),
                "{attempt}: {pause:?}"
            );
        }
    }
}
