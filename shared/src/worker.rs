//! What the threads of a service have in common: turns, each begun with a heartbeat, and a pause that grows while they fail.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::{backoff, heartbeat};

/// The work of one thread, done in turns.
pub trait Worker: Send {
    /// Called once, on the worker's own thread, before the first turn.
    fn begin(&mut self) {}

    /// Whether another turn is to come: until the shutdown, where nothing else is said.
    fn goes_on(&self, shutdown: &Shutdown) -> bool {
        !shutdown.is_set()
    }

    /// Does one turn, and returns how long to rest after it.
    ///
    /// # Errors
    /// [`Error::Fatal`] stops the service, and an interrupted call of Kafka ends the worker. After any other error another turn
    /// comes later.
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration>;

    /// Logs that a turn has failed, the `attempt`th in a row; the next one comes after `pause`.
    fn report(&mut self, error: &Error, attempt: u32, pause: Duration) {
        log::warn!("a turn failed (attempt {attempt}, next in {pause:?}): {error}");
    }

    /// Called after the last turn, whatever it came to.
    fn end(&mut self) {}
}

/// Has `worker` do its turns on this thread.
///
/// # Errors
/// [`Error::Fatal`] of a turn.
pub fn run(worker: &mut dyn Worker, shutdown: &Shutdown) -> Result<()> {
    worker.begin();
    let ended = run_turns(worker, shutdown);
    worker.end();
    ended
}

fn run_turns(worker: &mut dyn Worker, shutdown: &Shutdown) -> Result<()> {
    let mut failures = 0;
    while worker.goes_on(shutdown) {
        heartbeat::beat();
        match worker.turn(shutdown) {
            Ok(rest) => {
                failures = 0;
                if !rest.is_zero() {
                    shutdown.wait(rest);
                }
            }
            Err(Error::Fatal(why)) => return Err(Error::Fatal(why)),
            Err(Error::Kafka(kafka::Error::Interrupted)) => return Ok(()),
            Err(error) => {
                failures += 1;
                let pause = backoff::delay(failures);
                worker.report(&error, failures, pause);
                shutdown.wait(pause);
            }
        }
    }
    Ok(())
}
