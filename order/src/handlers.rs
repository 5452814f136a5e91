//! What the participants' answers do to orders.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::config::Config;
use shared::consumer::at_once::AtOnce;
use shared::consumer::recovery::{FoundRequests, Recovery};
use shared::db::Tx;
use shared::error::Cause;
use shared::error::{Error, Result};
use shared::event::trace::{self, Span};
use shared::event::{Body, Event, Side};
use shared::handler::{GivenUp, Handled, Handler, Outcome};
use uuid::Uuid;

use crate::admission::Admission;
use crate::long_poll::LongPolls;
use crate::metrics::{Counts, Repaired};
use crate::order::{Bearing, OrderStatus, Saga, SagaEvent, Transition};
use crate::pairs::Pairs;
use crate::repair::{self, Kind, Rebuilt, Repair};
use crate::store::{self, Current, Written};

/// How long things last.
#[derive(Clone, Copy)]
struct Times {
    /// The first wait for a confirmation.
    compensation_retry: Duration,
    /// Of an order that is rebuilt.
    deadline: Duration,
    /// For how long at least an idempotency key stands for its order.
    key_retention: Duration,
}

/// Handles `payment.success`, `payment.dlt`, `stock.success` and `stock.dlt`.
pub struct AnswerHandler {
    times: Times,
    recovery: Recovery,
    /// The answers about orders that the last batch has missed.
    missed: Vec<Event>,
    prepared: Arc<Mutex<Prepared>>,
    long_polls: LongPolls,
    admission: Admission,
    pairs: Pairs,
}

/// What is known of orders that are missing, until the batch that needs it is committed.
#[derive(Default)]
struct Prepared {
    /// What Kafka holds of their requests.
    found: HashMap<Uuid, FoundRequests>,
    /// The orders as these describe them; none: nothing shows that there ever was one.
    orders: HashMap<Uuid, Option<Rebuilt>>,
}

impl AnswerHandler {
    /// `recovery`: where requests of lost orders are looked for.
    pub fn new(
        config: &Config,
        recovery: &Recovery,
        (long_polls, admission): &(LongPolls, Admission),
    ) -> AnswerHandler {
        let times = Times {
            compensation_retry: config.compensation_retry,
            deadline: config.order_deadline,
            key_retention: config.idempotency_key_retention,
        };
        AnswerHandler {
            times,
            recovery: recovery.clone(),
            missed: vec![],
            prepared: Arc::default(),
            long_polls: long_polls.clone(),
            admission: admission.clone(),
            pairs: Pairs::default(),
        }
    }

    /// Stores those of the orders that were found in Kafka; returns those that are stored now.
    fn rebuild(&self, tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<Vec<Rebuilt>> {
        let prepared = self.prepared();
        let found = order_ids
            .iter()
            .filter_map(|id| prepared.orders.get(id)?.clone());
        let mut rebuilt: Vec<Rebuilt> = found.collect();
        drop(prepared);
        if rebuilt.is_empty() {
            return Ok(rebuilt);
        }
        let superseded = store::claim_keys(tx, &rebuilt, self.times.key_retention)?;
        for order in rebuilt
            .iter_mut()
            .filter(|order| superseded.contains(&order.order_id))
        {
            *order = order.superseded();
        }
        let stored = store::rebuild(tx, &rebuilt, self.times.deadline)?;
        rebuilt.retain(|order| stored.contains(&order.order_id));
        Ok(rebuilt)
    }

    /// The orders, or an error if some are missing of which it is not known yet whether Kafka has them.
    fn lock(
        &mut self,
        tx: &mut Tx<'_>,
        order_ids: &[Uuid],
        events: &[Event],
    ) -> Result<HashMap<Uuid, Current>> {
        let orders = store::lock(tx, order_ids)?;
        if orders.len() == order_ids.len() {
            return Ok(orders);
        }
        let missed: Vec<&Event> = events
            .iter()
            .filter(|event| saga_event(event).is_some() && !orders.contains_key(&event.order_id))
            .collect();
        let prepared = self.prepared();
        if missed.iter().all(|event| {
            let known = prepared.orders.get(&event.order_id);
            known.is_some_and(Option::is_none)
        }) {
            return Ok(orders);
        }
        drop(prepared);
        self.missed = missed.into_iter().cloned().collect();
        Err(Error::Unprepared)
    }

    fn prepared(&self) -> MutexGuard<'_, Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for AnswerHandler {
    fn handle(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled> {
        let order_ids: BTreeSet<Uuid> = events.iter().map(|event| event.order_id).collect();
        let order_ids: Vec<Uuid> = order_ids.into_iter().collect();
        // first, so that all orders are then locked in id order
        let rebuilt = self.rebuild(tx, &order_ids)?;
        let mut batch = Batch::new(self.lock(tx, &order_ids, events)?);
        batch.note_rebuilt(&rebuilt);
        let mut outcomes = Vec::with_capacity(events.len());
        for (place, event) in events.iter().enumerate() {
            let outcome = match batch.decide(event) {
                Some(outcome) => outcome,
                None => {
                    let handled = events[..place].iter().map(|event| event.id);
                    batch.known = Some(
                        repair::store::find_known_messages(tx, events)?
                            .into_iter()
                            .chain(handled)
                            .collect(),
                    );
                    batch.decide(event).unwrap_or(Outcome::Unchanged(TOO_LATE))
                }
            };
            batch
                .known
                .iter_mut()
                .for_each(|known| _ = known.insert(event.id));
            outcomes.push(outcome);
        }
        let prepared = self.prepared.clone();
        tx.after_commit(move || {
            *prepared.lock().unwrap_or_else(PoisonError::into_inner) = Prepared::default();
        });
        let (admission, long_polls) = (&self.admission, &self.long_polls);
        let events = batch.write(tx, 1, self.times.compensation_retry, admission, long_polls)?;
        Ok(Handled { outcomes, events })
    }

    /// Answers that change orders and ask no side to compensate; all else is handled under locks.
    fn handle_at_once(&mut self, at_once: &mut AtOnce<'_>, events: &[Event]) -> Result<bool> {
        let order_ids: BTreeSet<Uuid> = events.iter().map(|event| event.order_id).collect();
        let order_ids: Vec<Uuid> = order_ids.into_iter().collect();
        let orders = store::read(at_once.session(), &order_ids)?;
        if orders.len() < order_ids.len() || orders.values().any(|order| order.repaired) {
            return Ok(false);
        }
        let mut batch = Batch::new(orders);
        for event in events {
            if batch.decide(event) != Some(Outcome::Changed) {
                return Ok(false);
            }
        }
        if !batch.outgoing.is_empty() || !store::update_at_once(at_once, &batch.written())? {
            return Ok(false);
        }
        batch.counts.report(&self.admission);
        self.long_polls.check();
        Ok(true)
    }

    fn expects_more(&mut self, events: &[&Event]) -> bool {
        self.pairs.are_all_first(events.iter().copied())
    }

    fn waits_for(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Vec<Option<String>>> {
        let order_ids: Vec<Uuid> = events.iter().map(|event| event.order_id).collect();
        let held = store::find_held(tx, &order_ids)?;
        Ok(events
            .iter()
            .map(|event| held.get(&event.order_id.to_string()).cloned())
            .collect())
    }

    fn give_up(&mut self, _: &mut Tx<'_>, _: &GivenUp) -> Result<Vec<Event>> {
        // order reads no requests: its own bad inputs are parked only
        Ok(vec![])
    }

    fn prepare(&mut self) -> Result<()> {
        let missed = std::mem::take(&mut self.missed);
        let mut prepared = self.prepared();
        let Prepared { found, orders } = &mut *prepared;
        self.recovery.find(&missed, found)?;
        for answer in missed {
            let rebuilt = Rebuilt::new(&answer, &found[&answer.order_id]);
            let known = orders.entry(answer.order_id).or_default();
            // an answer that names its request tells more than one that does not
            *known = known.take().or(rebuilt);
        }
        Ok(())
    }
}

const TOO_LATE: &str = "a duplicate, or too late";

/// Orders, and what a batch makes of them.
pub struct Batch<'a> {
    /// The orders that exist.
    pub orders: HashMap<Uuid, Current>,
    /// Those whose saga is no longer what the table holds.
    pub changed: BTreeSet<Uuid>,
    /// The answers to be kept in the timeline: those that have changed an order, and those that must be known when they come
    /// again.
    pub recorded: Vec<&'a Event>,
    /// The compensation requests to send.
    pub outgoing: Vec<Event>,
    /// What was repaired.
    pub repairs: Vec<Repair>,
    /// The sides of repaired orders that have confirmed, and whether the order is settled by it.
    pub confirmed: Vec<(Uuid, Side, bool)>,
    /// The messages that were handled before. It is asked for when it is needed, which is seldom.
    pub known: Option<HashSet<Uuid>>,
    /// What is to be counted when it is committed.
    pub counts: Counts,
}

impl<'a> Batch<'a> {
    /// Nothing has happened yet.
    pub fn new(orders: HashMap<Uuid, Current>) -> Batch<'a> {
        Batch {
            orders,
            changed: BTreeSet::new(),
            recorded: vec![],
            outgoing: vec![],
            repairs: vec![],
            confirmed: vec![],
            known: None,
            counts: Counts::default(),
        }
    }

    /// These orders were stored by this batch; of some, both sides are asked to give back.
    fn note_rebuilt(&mut self, rebuilt: &[Rebuilt]) {
        for order in rebuilt {
            self.repairs.push(order.repair());
            if order.saga.status() == OrderStatus::Failed {
                self.counts
                    .note(order.order_id, &Saga::rebuilt(), &order.saga, false);
                Side::ALL
                    .iter()
                    .for_each(|side| self.ask_to_compensate(order.order_id, *side));
            }
        }
    }

    /// None: it must be known first which of the batch's messages were handled before.
    fn decide(&mut self, event: &'a Event) -> Option<Outcome> {
        let Some(saga_event) = saga_event(event) else {
            let why = format!("order takes no {}", event.type_name());
            return Some(Outcome::Refused(Cause::Contradiction, why));
        };
        let before = self.outgoing.len();
        match self.apply(event.order_id, &saga_event) {
            Some(true) => {
                if let Some(cause) = trace::recorded_cause(event) {
                    for request in &mut self.outgoing[before..] {
                        request.traceparent = Some(cause.clone());
                    }
                    let status = self.orders[&event.order_id].saga.status().name();
                    self.counts.decided(Span::deciding(event, status));
                }
                self.recorded.push(event);
                self.note_confirmation(event);
                Some(Outcome::Changed)
            }
            Some(false) => self.look_closer(event, &saga_event),
            None => {
                let why = format!("order {} does not exist here", event.order_id);
                Some(Outcome::Refused(Cause::UnknownOrder, why))
            }
        }
    }

    /// None: no such order. Else whether anything came of it.
    pub fn apply(&mut self, order_id: Uuid, saga_event: &SagaEvent) -> Option<bool> {
        let transition = self.orders.get(&order_id)?.saga.transition(saga_event);
        Some(self.take(order_id, transition))
    }

    /// Whether the step changes anything.
    fn take(&mut self, order_id: Uuid, transition: Transition) -> bool {
        let Some(order) = self.orders.get_mut(&order_id) else {
            return false;
        };
        let changed = transition.saga != order.saga;
        if changed {
            self.counts
                .note(order_id, &order.saga, &transition.saga, order.repaired);
            order.saga = transition.saga;
            self.changed.insert(order_id);
        }
        transition
            .compensate
            .iter()
            .for_each(|side| self.ask_to_compensate(order_id, *side));
        changed || !transition.compensate.is_empty()
    }

    /// Has a side asked to compensate.
    pub fn ask_to_compensate(&mut self, order_id: Uuid, side: Side) {
        let traceparent = self
            .orders
            .get(&order_id)
            .map(|order| order.traceparent.clone());
        self.outgoing.push(Event::new(
            side,
            order_id,
            Body::CompensationRequested,
            traceparent,
        ));
    }

    /// The settled orders that have repairs: a side may have been asked back all the same.
    pub fn settled_and_repaired(&self) -> Vec<Uuid> {
        let those = self
            .orders
            .iter()
            .filter(|(_, order)| order.repaired && order.saga.is_settled());
        those.map(|(order_id, _)| *order_id).collect()
    }

    /// An answer that changes nothing: it is a duplicate, or a database has come back older. None: see [`Batch::decide`].
    fn look_closer(&mut self, event: &'a Event, saga_event: &SagaEvent) -> Option<Outcome> {
        let order = &self.orders[&event.order_id];
        let bearing = order.saga.bearing(saga_event);
        // the confirmation of a side that was asked back while its order was settled
        let is_confirmation = order.repaired && matches!(saga_event, SagaEvent::Compensated(_));
        if bearing == Bearing::Harmless && !is_confirmation {
            return Some(Outcome::Unchanged(TOO_LATE));
        }
        if self.known.as_ref()?.contains(&event.id) {
            return Some(Outcome::Unchanged("a duplicate"));
        }
        if bearing == Bearing::Contradiction {
            return Some(self.repair(event, saga_event));
        }
        self.recorded.push(event);
        self.note_confirmation(event);
        Some(Outcome::Unchanged("too late"))
    }

    fn repair(&mut self, event: &'a Event, saga_event: &SagaEvent) -> Outcome {
        let saga = self.orders[&event.order_id].saga.clone();
        let (side, type_name) = (event.side, event.type_name());
        let Some(transition) = saga.repair(saga_event) else {
            let why = format!(
                "{type_name}, but order {} is COMPLETED: is it paid, are its goods there?",
                event.order_id
            );
            return Outcome::Refused(Cause::Contradiction, why);
        };
        let was = if side == Side::Payment {
            saga.payment
        } else {
            saga.stock
        };
        let (kind, detail) = match transition.saga == saga {
            true => (
                Kind::AskedBack,
                format!("{type_name}, where it stands {}", was.name()),
            ),
            false => (
                Kind::Contradicted,
                format!("{type_name}, where it stood {}", was.name()),
            ),
        };
        let (order_id, message_id, side) = (event.order_id, event.id, Some(side));
        if transition.saga != saga {
            self.recorded.push(event);
        }
        self.take(order_id, transition);
        self.repairs.push(Repair {
            order_id,
            kind,
            side,
            message_id,
            detail,
            is_done: false,
        });
        Outcome::Changed
    }

    /// A confirmation ends the repairs that waited for it.
    fn note_confirmation(&mut self, event: &Event) {
        let Body::Compensated { .. } = event.body else {
            return;
        };
        let order = &self.orders[&event.order_id];
        let is_settled = order.saga.is_settled();
        for repair in self
            .repairs
            .iter_mut()
            .filter(|repair| repair.order_id == event.order_id)
        {
            repair.is_done |= repair.side.map_or(is_settled, |side| side == event.side);
        }
        if order.repaired {
            self.confirmed
                .push((event.order_id, event.side, is_settled));
        }
    }

    /// Writes what changed, and what the timeline keeps of it, and returns what is to be sent. Orders that were asked to
    /// compensate are looked at again after `wait`, as `round`. After the commit what became of orders is counted and logged,
    /// and those who wait for them are answered.
    pub fn write(
        self,
        tx: &mut Tx<'_>,
        round: i32,
        wait: Duration,
        admission: &Admission,
        long_polls: &LongPolls,
    ) -> Result<Vec<Event>> {
        store::update(tx, &self.written())?;
        store::look_again(tx, &self.outgoing, round, wait)?;
        // those of this batch know their confirmations already
        repair::store::finish(tx, &self.confirmed)?;
        repair::store::insert(tx, &self.repairs)?;
        let (repaired, counts) = (Repaired::of(&self.repairs), self.counts);
        let (admission, long_polls) = (admission.clone(), long_polls.clone());
        tx.after_commit(move || {
            repaired.report();
            counts.report(&admission);
            long_polls.check();
        });
        Ok(self.outgoing)
    }

    fn written(&self) -> Written<'_> {
        let changed = self.changed.iter().map(|order_id| {
            let order = &self.orders[order_id];
            (*order_id, &order.was, &order.saga)
        });
        Written {
            changed: changed.collect(),
            settled: self.counts.settled(),
            recorded: &self.recorded,
        }
    }
}

fn saga_event(event: &Event) -> Option<SagaEvent> {
    match &event.body {
        Body::Completed => Some(SagaEvent::Completed(event.side)),
        Body::Compensated { .. } => Some(SagaEvent::Compensated(event.side)),
        Body::Failed { reason, .. } => Some(SagaEvent::Failed(event.side, reason.clone())),
        _ => None,
    }
}
