//! How long and in which steps a call is tried again.

use std::time::{Duration, Instant};

use crate::config::after;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

/// The first pauses. CONCURRENT_TRANSACTIONS after a commit passes within 2 to 3 ms; a pause of 20 ms costs 22.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// So many pauses are short; then they double.
const SHORT_PAUSES: u32 = 8;
/// The longest pause: a broker that restarts is found again soon after it is back.
const LONG_PAUSE: Duration = Duration::from_millis(100);

/// The patience of one call: a deadline, the limit of each attempt, and the pauses between them.
pub(crate) struct Backoff {
    interrupt: Interrupt,
    deadline: Instant,
    attempt_limit: Duration,
    pauses: u32,
}

impl Backoff {
    pub(crate) fn new(interrupt: &Interrupt, limit: Duration, attempt_limit: Duration) -> Backoff {
        Backoff { interrupt: interrupt.clone(), deadline: after(limit), attempt_limit, pauses: 0 }
    }

    /// The end of an attempt that begins now: a silent broker must leave time to ask another one.
    pub(crate) fn attempt(&self) -> Instant {
        self.deadline.min(after(self.attempt_limit))
    }

    /// As long as this one, for requests that are answered late by design.
    pub(crate) fn with_attempts_of(&self, attempt_limit: Duration) -> Backoff {
        Backoff { interrupt: self.interrupt.clone(), attempt_limit, ..*self }
    }

    /// Whether there was more than one attempt.
    pub(crate) fn has_paused(&self) -> bool {
        self.pauses > 0
    }

    /// Pauses if `error` may pass and there is time left; otherwise gives it back.
    pub(crate) fn pause(&mut self, error: Error) -> Result<()> {
        if error.passes() { self.pause_for(error) } else { Err(error) }
    }

    /// The same for an error after which the caller does something else than before.
    pub(crate) fn pause_for(&mut self, error: Error) -> Result<()> {
        let pause = self.next_pause();
        if Instant::now() + pause >= self.deadline {
            return Err(error);
        }
        log::trace!("again in {pause:?}: {error}");
        self.pauses += 1;
        self.interrupt.sleep(pause)
    }

    fn next_pause(&self) -> Duration {
        let doublings = self.pauses.saturating_sub(SHORT_PAUSES).min(10);
        (SHORT_PAUSE * 2u32.pow(doublings)).min(LONG_PAUSE)
    }
}
