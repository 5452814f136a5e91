//! Housekeeping: old idempotency keys, handled dead letters, settled orders' steps and finished repairs are deleted.
//! Each statement deletes 500 rows, the oldest first, by an index, and passes over locked ones.
//!
//! **Must not be changed**:
//!
//! * A dead letter outlives its record in the topic. That record, read again from the beginning, would be parked again.
//!   A start refuses retentions shorter than the topics'.
//! * A request locks the idempotency key that it stands on: the key is removed before or after, never meanwhile.

use std::time::Duration;

use crate::db::Query;
use crate::db::pool::Pool;
use crate::error::Result;
use crate::heartbeat;
use crate::shutdown::Shutdown;
use crate::worker::Worker;

/// Rows in one statement: a few milliseconds.
const BATCH: i64 = 500;
/// Between two batches: the database belongs to the orders.
const PAUSE: Duration = Duration::from_millis(50);

/// What is removed once it is old enough.
pub struct Cleanup {
    /// What the rows are, for the log.
    pub what: &'static str,
    /// How long they are kept; none: for ever.
    pub retention: Option<Duration>,
    /// Deletes rows older than `$1` milliseconds (float8), `$2` at most (bigint), none that somebody has locked.
    pub sql: String,
}

/// Removes all of it every so often. Any number of instances may do so at once.
pub struct Cleaner {
    /// Its sessions.
    pub pool: Pool,
    /// What is removed.
    pub cleanups: Vec<Cleanup>,
    /// The pause between two rounds.
    pub interval: Duration,
}

impl Worker for Cleaner {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        for cleanup in &self.cleanups {
            match cleanup.run(&self.pool, shutdown) {
                Ok(0) => {}
                Ok(removed) => log::info!("removed {removed} {}", cleanup.what),
                Err(error) => log::warn!("{} are left for the next time: {error}", cleanup.what),
            }
        }
        heartbeat::beat_before(self.interval * 2);
        Ok(self.interval)
    }
}

impl Cleanup {
    fn run(&self, pool: &Pool, shutdown: &Shutdown) -> Result<u64> {
        let Some(retention) = self.retention else {
            return Ok(0);
        };
        let age = retention.as_millis() as f64;
        let mut removed = 0;
        loop {
            heartbeat::beat();
            let batch = pool.with(|session| session.execute(&self.sql, &[&age, &BATCH]))?;
            removed += batch;
            if batch < BATCH as u64 || shutdown.wait(PAUSE) {
                return Ok(removed);
            }
        }
    }
}
