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

/// An attempt that has less time until the deadline was in vain from the start.
const SHORT_ATTEMPT: Duration = Duration::from_millis(500);

/// The patience of one call: a deadline, the limit of each attempt, and the pauses between them.
pub(crate) struct Backoff {
    interrupt: Interrupt,
    deadline: Instant,
    attempt_limit: Duration,
    pauses: u32,
    /// When the current attempt began.
    begun: Instant,
    /// What the attempt before it failed with.
    last: Option<Error>,
}

impl Backoff {
    pub(crate) fn new(interrupt: &Interrupt, limit: Duration, attempt_limit: Duration) -> Backoff {
        let (interrupt, deadline) = (interrupt.clone(), after(limit));
        Backoff {
            interrupt,
            deadline,
            attempt_limit,
            pauses: 0,
            begun: Instant::now(),
            last: None,
        }
    }

    /// The end of an attempt that begins now: a silent broker must leave time to ask another one.
    pub(crate) fn attempt(&self) -> Instant {
        self.deadline.min(after(self.attempt_limit))
    }

    /// Tries until it succeeds, fails for good, or the time is over.
    pub(crate) fn retry<T>(&mut self, mut attempt: impl FnMut(&Backoff) -> Result<T>) -> Result<T> {
        loop {
            match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) => self.pause(error)?,
            }
        }
    }

    /// As long as this one, for requests that are answered late by design.
    pub(crate) fn with_attempts_of(&self, attempt_limit: Duration) -> Backoff {
        let (interrupt, begun) = (self.interrupt.clone(), Instant::now());
        Backoff {
            interrupt,
            deadline: self.deadline,
            attempt_limit,
            pauses: self.pauses,
            begun,
            last: None,
        }
    }

    /// What comes now has nothing to do with the errors before it.
    pub(crate) fn goes_on(&mut self) {
        self.last = None;
    }

    /// Whether there was more than one attempt.
    pub(crate) fn has_paused(&self) -> bool {
        self.pauses > 0
    }

    /// Pauses if `error` may pass and there is time left; otherwise gives it back.
    pub(crate) fn pause(&mut self, error: Error) -> Result<()> {
        if error.passes() {
            self.pause_for(error)
        } else {
            Err(error)
        }
    }

    /// The same for an error after which the caller does something else than before.
    pub(crate) fn pause_for(&mut self, error: Error) -> Result<()> {
        let (pause, now) = (self.next_pause(), Instant::now());
        if now + pause >= self.deadline {
            // a last attempt that had little time says less than the one before it, unless a broker has answered. It may have ended
            // late (nothing limits what the system takes to look up a name), or a moment before the deadline: of several brokers each
            // has a share of the time.
            let had = self.deadline.saturating_duration_since(self.begun);
            let cut_short = had < SHORT_ATTEMPT && error.code().is_none();
            return Err(self.last.take().filter(|_| cut_short).unwrap_or(error));
        }
        log::trace!("again in {pause:?}: {error}");
        self.pauses += 1;
        self.last = Some(error);
        let slept = self.interrupt.sleep(pause);
        self.begun = Instant::now();
        slept
    }

    fn next_pause(&self) -> Duration {
        let doublings = self.pauses.saturating_sub(SHORT_PAUSES).min(10);
        (SHORT_PAUSE * 2u32.pow(doublings)).min(LONG_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_the_deadline_cuts_short_does_not_hide_what_was_said_before() {
        let mut backoff = Backoff::new(
            &Interrupt::new(),
            Duration::from_secs(60),
            Duration::from_secs(1),
        );
        let error = |causes: &str| Error::NoBroker {
            causes: vec![causes.to_owned()],
        };
        backoff.pause(error("its address leads nowhere")).unwrap();
        // its next attempt had little time, and came back long after it was over
        backoff.begun -= Duration::from_secs(3);
        backoff.deadline = backoff.begun + Duration::from_millis(31);
        let ended = backoff.pause(error("no answer within 4 µs")).unwrap_err();
        assert_eq!(
            ended.to_string(),
            "no broker usable: its address leads nowhere"
        );
        // or a moment before, when there is no time left for another one
        backoff.last = Some(error("its address leads nowhere"));
        backoff.pauses = 20;
        backoff.begun = Instant::now();
        backoff.deadline = backoff.begun + LONG_PAUSE / 2;
        let ended = backoff.pause(error("no answer within 14 ms")).unwrap_err();
        assert_eq!(
            ended.to_string(),
            "no broker usable: its address leads nowhere"
        );
    }
}
