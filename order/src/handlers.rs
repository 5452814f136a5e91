//! What the participants' answers do to orders.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use shared::db::Tx;
use shared::error::Result;
use shared::event::{Body, Event, Side};
use shared::handler::{Cause, GivenUp, Handled, Handler, Outcome};
use uuid::Uuid;

use crate::admission::Admission;
use crate::metrics::News;
use crate::order::{Happening, Saga};
use crate::store::{self, Locked};
use crate::waiters::Waiters;

/// Handles `payment.success`, `payment.dlt`, `stock.success` and `stock.dlt`.
pub struct Answers {
    compensation_retry: Duration,
    waiters: Waiters,
    admission: Admission,
    news: News,
}

impl Answers {
    /// `compensation_retry`: the first wait for a confirmation.
    pub fn new(compensation_retry: Duration, waiters: Waiters, admission: Admission) -> Answers {
        Answers { compensation_retry, waiters, admission, news: News::default() }
    }
}

impl Handler for Answers {
    fn handle(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled> {
        let order_ids: BTreeSet<Uuid> = events.iter().map(|event| event.order_id).collect();
        let order_ids: Vec<Uuid> = order_ids.into_iter().collect();
        let mut batch = Batch::new(store::lock(tx, &order_ids)?);
        let outcomes = events.iter().map(|event| batch.decide(event)).collect();
        batch.write(tx, 1, self.compensation_retry)?;
        self.news = batch.news;
        Ok(Handled { outcomes, events: batch.sent })
    }

    fn give_up(&mut self, _: &mut Tx<'_>, _: &GivenUp) -> Result<Vec<Event>> {
        // order reads no requests: its own bad inputs are parked only
        Ok(vec![])
    }

    fn committed(&mut self) {
        self.news.tell(&self.admission);
        self.waiters.look();
    }
}

/// Locked orders, and what a batch makes of them.
pub struct Batch<'a> {
    /// The orders that exist.
    pub orders: HashMap<Uuid, Locked>,
    /// Those whose saga is no longer what the table holds.
    pub changed: BTreeSet<Uuid>,
    /// The answers that have changed an order.
    pub told: Vec<&'a Event>,
    /// The compensation requests to send.
    pub sent: Vec<Event>,
    /// What is to be counted when it is committed.
    pub news: News,
}

impl<'a> Batch<'a> {
    /// Nothing has happened yet.
    pub fn new(orders: HashMap<Uuid, Locked>) -> Batch<'a> {
        Batch { orders, changed: BTreeSet::new(), told: vec![], sent: vec![], news: News::default() }
    }

    fn decide(&mut self, event: &'a Event) -> Outcome {
        let Some(happening) = happening(event) else {
            return Outcome::Refused(Cause::Contradiction, format!("order takes no {}", event.type_name()));
        };
        match self.apply(event.order_id, &happening) {
            Some(true) => {
                self.told.push(event);
                Outcome::Changed
            }
            Some(false) => Outcome::Unchanged("a duplicate, or too late"),
            None => Outcome::Refused(Cause::UnknownOrder, format!("order {} does not exist here", event.order_id)),
        }
    }

    /// None: no such order. Else whether anything came of it.
    pub fn apply(&mut self, order_id: Uuid, happening: &Happening) -> Option<bool> {
        let order = self.orders.get_mut(&order_id)?;
        let step = order.saga.transition(happening);
        let changed = step.saga != order.saga;
        if changed {
            self.news.note(order_id, &order.saga, &step.saga);
            order.saga = step.saga;
            self.changed.insert(order_id);
        }
        let traceparent = &order.traceparent;
        let ask = |side: &Side| Event::new(*side, order_id, Body::CompensationRequested, Some(traceparent.clone()));
        self.sent.extend(step.ask.iter().map(ask));
        Some(changed || !step.ask.is_empty())
    }

    /// Writes what changed, and what the timeline keeps of it. Orders that were asked to compensate are looked at again
    /// after `wait`, as `round`.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn write(&self, tx: &mut Tx<'_>, round: i32, wait: Duration) -> Result<()> {
        let changed: Vec<(Uuid, &Saga)> = self.changed.iter().map(|id| (*id, &self.orders[id].saga)).collect();
        store::update(tx, &changed, self.news.settled(), &self.told)?;
        store::look_again(tx, &self.sent, round, wait)
    }
}

fn happening(event: &Event) -> Option<Happening> {
    match &event.body {
        Body::Completed => Some(Happening::Completed(event.side)),
        Body::Compensated { .. } => Some(Happening::Compensated(event.side)),
        Body::Failed { reason, .. } => Some(Happening::Failed(event.side, reason.clone())),
        _ => None,
    }
}
