//! The deadlines: of sides that have not answered in time, and of compensations that were not confirmed for a while.
//!
//! A row of `deadline` stands for a whole batch of orders, so an order costs no index entry of its own.
//!
//! | round | is due | the scan |
//! | --- | --- | --- |
//! | 0 | `ORDER_DEADLINE` after its orders were marked as published | asks each side that is still IN_PROGRESS to compensate |
//! | 1 | `COMPENSATION_RETRY` after the request to compensate | requests an unconfirmed compensation again |
//! | 2, 3, … | after twice as long each time, an hour at most | the same |
//!
//! # Forgotten orders
//!
//! Some unsettled orders may be past their deadline although neither the outbox, which begins later, nor `deadline` has
//! anything of them: somebody deleted the rows. The scan looks for them every ten seconds
//! ([`store::give_up_forgotten`]). It marks them as published, with a row that is due: of round 0 where a side is
//! IN_PROGRESS, else of round 1. It finds them by the seconds of `order_flow` that are not settled, so
//! no index on a status is needed.

use std::time::{Duration, Instant};

use shared::config::Config;
use shared::consumer::set_aside::Around;
use shared::db::pool::Connection;
use shared::db::{Connector, Limits};
use shared::error::{Error, Result};
use shared::outbox;
use shared::outbox::wake::Waker;
use shared::shutdown::Shutdown;
use shared::worker::Worker;

use crate::admission::Admission;
use crate::handlers::Batch;
use crate::long_poll::LongPolls;
use crate::order::SagaEvent;
use crate::repair;
use crate::store;

/// How late a deadline may be noticed.
const TICK: Duration = Duration::from_millis(500);
/// How often it is looked for orders whose rows somebody has deleted ...
const FORGOTTEN_EVERY: Duration = Duration::from_secs(10);
/// ... which end so long after their deadline: they are reported as overdue before.
const FORGOTTEN_LATER: Duration = Duration::from_secs(30);
/// A compensation is asked for again at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// The scan over the table `deadline`; any number of instances may run it at once.
pub struct DeadlineScan {
    connection: Connection,
    deadline: Duration,
    compensation_retry: Duration,
    /// Then orders whose rows somebody holds are passed over, and the others do not wait with them.
    around: Around,
    /// When it was looked for forgotten orders.
    looked_at: Option<Instant>,
    waker: Waker,
    long_polls: LongPolls,
    admission: Admission,
}

impl Worker for DeadlineScan {
    fn turn(&mut self, _: &Shutdown) -> Result<Duration> {
        let found = self.scan_once()?;
        self.look_for_forgotten()?;
        Ok(if found { Duration::ZERO } else { TICK })
    }

    fn report(&mut self, error: &Error, attempt: u32, pause: Duration) {
        log::warn!("a deadline scan failed (attempt {attempt}, next in {pause:?}): {error}");
        if error.is_lock_timeout() {
            self.around.held();
        }
    }
}

impl DeadlineScan {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the database URL can't be parsed.
    pub fn new(
        config: &Config,
        waker: Waker,
        (long_polls, admission): (LongPolls, Admission),
    ) -> Result<DeadlineScan> {
        let connector = Connector::new(&config.database_url, "order-deadline", Limits::WORK)?;
        Ok(DeadlineScan {
            connection: Connection::new(connector),
            deadline: config.order_deadline,
            compensation_retry: config.compensation_retry,
            around: Around::default(),
            looked_at: None,
            waker,
            long_polls,
            admission,
        })
    }

    /// Orders whose rows in the outbox or in `deadline` somebody has deleted are taken up again.
    fn look_for_forgotten(&mut self) -> Result<()> {
        if self
            .looked_at
            .is_some_and(|looked_at| looked_at.elapsed() < FORGOTTEN_EVERY)
        {
            return Ok(());
        }
        // before it: a failure must not keep other deadlines from being looked at
        self.looked_at = Some(Instant::now());
        let after = self.deadline + self.deadline.min(FORGOTTEN_LATER);
        let count = self
            .connection
            .with(|session| store::give_up_forgotten(session, after))?;
        if count > 0 {
            log::error!(
                "the rows of {count} orders in the outbox or in deadline are gone: their deadlines are due now"
            );
        }
        Ok(())
    }

    /// Handles some of what is due; false if nothing is.
    ///
    /// # Errors
    /// What PostgreSQL says; the row stays due.
    pub fn scan_once(&mut self) -> Result<bool> {
        let mut tx = self.connection.session()?.transaction()?;
        let Some(mut due) = store::take_due(&mut tx)? else {
            return Ok(false);
        };
        if self.around.is_due() {
            let held = store::find_held(&mut tx, &due.order_ids)?;
            let held = due
                .order_ids
                .extract_if(.., |order_id| held.contains_key(&order_id.to_string()))
                .collect::<Vec<_>>();
            if !held.is_empty() {
                store::reschedule(&mut tx, due.round, &held)?;
            }
        }
        let (saga_event, what) = match due.round {
            0 => (SagaEvent::DeadlinePassed, "its deadline has passed"),
            _ => (SagaEvent::Unconfirmed, "asked again to compensate"),
        };
        let mut batch = Batch::new(store::lock_unsettled(&mut tx, &due.order_ids)?);
        for order_id in &due.order_ids {
            if due.round == 0 {
                // it has a deadline, so it was published, also where nobody could note that because its row was held
                batch.apply(*order_id, &SagaEvent::Published);
            }
            if batch.apply(*order_id, &saga_event) == Some(true) {
                log::info!("order {order_id}: {what}");
            }
        }
        for (order_id, side) in
            repair::store::find_unconfirmed(&mut tx, &batch.settled_and_repaired())?
        {
            batch.ask_to_compensate(order_id, side);
            log::info!(
                "order {order_id}: {} asked again to compensate",
                side.name()
            );
        }
        let wait = wait(self.compensation_retry, due.round);
        let (admission, long_polls) = (&self.admission, &self.long_polls);
        let outgoing = batch.write(&mut tx, due.round + 1, wait, admission, long_polls)?;
        outbox::append(&mut tx, &self.waker, &outgoing)?;
        tx.commit()?;
        Ok(true)
    }
}

/// Doubles with each round, up to an hour.
fn wait(first: Duration, round: i32) -> Duration {
    first
        .saturating_mul(1 << round.clamp(0, 20))
        .min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_a_confirmation_doubles_up_to_an_hour() {
        let minute = Duration::from_secs(60);
        for (round, seconds) in [(0, 60), (1, 120), (5, 1_920), (6, 3_600), (i32::MAX, 3_600)] {
            assert_eq!(
                wait(minute, round),
                Duration::from_secs(seconds),
                "round {round}"
            );
        }
    }
}
