//! Waiting for conditions: polls often, gives up late, says what it waited for.

use std::time::{Duration, Instant};

/// How long a condition may take on a machine so busy that a JVM needs two minutes to start.
pub const LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);

/// Waits until `look` finds something, and answers it.
///
/// # Panics
/// After [`LIMIT`], naming `what`.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until it is so.
///
/// # Panics
/// As [`eventually`].
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    eventually(what, || so().then_some(()));
}
