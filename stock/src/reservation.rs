//! The reservation: what requests and compensations make of reservations and stock. No I/O, no clock.

use std::collections::{BTreeSet, HashMap};

use shared::error::Cause;
use shared::event::{Body, Event, Reason, Service, Side};
use shared::handler::{GivenUp, Outcome};
use uuid::Uuid;

/// Where a reservation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Placed in this transaction, not decided. Never committed.
    New,
    /// The quantity was taken.
    Completed,
    /// Refused, or given up.
    Failed,
    /// The quantity was given back.
    Compensated,
    /// The compensation came before the request.
    Cancelled,
}

shared::names! { Status:
    New = "NEW", Completed = "COMPLETED", Failed = "FAILED", Compensated = "COMPENSATED",
    Cancelled = "CANCELLED",
}

/// One order's reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Which item, and how many of it; none while only a compensation was seen.
    pub terms: Option<(String, i64)>,
    /// Where it stands.
    pub status: Status,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// The compensation requests that were confirmed.
    pub confirmed: Vec<Uuid>,
}

impl Reservation {
    /// One that was placed and has not been decided.
    pub fn new() -> Reservation {
        Reservation {
            terms: None,
            status: Status::New,
            reason: None,
            confirmed: vec![],
        }
    }
}

impl Default for Reservation {
    fn default() -> Reservation {
        Reservation::new()
    }
}

/// Locked reservations and quantities, and what a batch makes of them.
pub struct Batch {
    /// By order.
    pub reservations: HashMap<Uuid, Reservation>,
    /// By item; what is missing is unknown.
    pub quantities: HashMap<String, i64>,
    /// The reservations that are no longer what the table holds.
    pub changed_reservations: BTreeSet<Uuid>,
    /// The same of the quantities.
    pub changed_quantities: BTreeSet<String>,
    /// The answers to send.
    pub outgoing: Vec<Event>,
}

impl Batch {
    /// Nothing has changed yet.
    pub fn new(
        reservations: HashMap<Uuid, Reservation>,
        quantities: HashMap<String, i64>,
    ) -> Batch {
        Batch {
            reservations,
            quantities,
            changed_reservations: BTreeSet::new(),
            changed_quantities: BTreeSet::new(),
            outgoing: vec![],
        }
    }

    /// Decides one event. Its reservation must be in the batch, placed [`Status::New`] if it was not known.
    pub fn decide(&mut self, event: &Event) -> Outcome {
        match &event.body {
            Body::StockRequested {
                item_name,
                quantity,
            } => self.request(event, (item_name.clone(), *quantity)),
            Body::CompensationRequested => self.compensate(event),
            _ => Outcome::Refused(
                Cause::Contradiction,
                format!("stock takes no {}", event.type_name()),
            ),
        }
    }

    /// Gives a request up for good, where it is undecided: unknown terms, FAILED, `UNPROCESSABLE`.
    pub fn give_up(&mut self, request: &GivenUp) {
        if self.reservations[&request.order_id].status == Status::New {
            let answer = self.fail(
                request.order_id,
                None,
                "UNPROCESSABLE",
                request.delivery.attempt,
            );
            self.outgoing.push(request.answer(Side::Stock, answer));
        }
    }

    fn request(&mut self, event: &Event, terms: (String, i64)) -> Outcome {
        let reservation = &self.reservations[&event.order_id];
        let status = reservation.status;
        match (status, &reservation.terms) {
            (Status::New, _) => {
                let answer = self.reserve(event.order_id, terms);
                self.answer(event, answer);
                Outcome::Changed
            }
            (_, Some(known)) if *known != terms => Outcome::Refused(
                Cause::Contradiction,
                format!(
                    "order {} asked for {} of {}, now for {} of {}",
                    event.order_id, known.1, known.0, terms.1, terms.0
                ),
            ),
            (Status::Cancelled, None) => {
                self.change(event.order_id, |reservation| {
                    reservation.terms = Some(terms)
                });
                Outcome::Unchanged("it was cancelled before it came")
            }
            (Status::Failed, None) => Outcome::GivenUp,
            _ => Outcome::Unchanged("a duplicate"),
        }
    }

    fn reserve(&mut self, order_id: Uuid, terms: (String, i64)) -> Body {
        let wanted = terms.1;
        match self.quantities.get_mut(&terms.0) {
            None => self.fail(order_id, Some(terms), "UNKNOWN_ITEM", 1),
            Some(quantity) if *quantity < wanted => {
                self.fail(order_id, Some(terms), "INSUFFICIENT_STOCK", 1)
            }
            Some(quantity) => {
                *quantity -= wanted;
                self.changed_quantities.insert(terms.0.clone());
                self.change(order_id, |reservation| {
                    reservation.status = Status::Completed;
                    reservation.terms = Some(terms)
                });
                Body::Completed
            }
        }
    }

    fn fail(
        &mut self,
        order_id: Uuid,
        terms: Option<(String, i64)>,
        code: &str,
        attempts: i32,
    ) -> Body {
        let reason = Reason::new(code, Service::Stock);
        self.change(order_id, |reservation| {
            reservation.status = Status::Failed;
            reservation.terms = terms;
            reservation.reason = Some(reason.clone());
        });
        Body::Failed { reason, attempts }
    }

    /// Every compensation request is confirmed, each once.
    fn compensate(&mut self, event: &Event) -> Outcome {
        let reservation = &self.reservations[&event.order_id];
        if reservation.confirmed.contains(&event.id) {
            return Outcome::Unchanged("a duplicate");
        }
        let status = match reservation.status {
            Status::New => Status::Cancelled,
            Status::Completed => self.release(event.order_id),
            decided => decided,
        };
        self.change(event.order_id, |reservation| {
            reservation.status = status;
            reservation.confirmed.push(event.id)
        });
        self.answer(
            event,
            Body::Compensated {
                undone: status == Status::Compensated,
            },
        );
        Outcome::Changed
    }

    fn release(&mut self, order_id: Uuid) -> Status {
        let (item_name, quantity) = self.reservations[&order_id]
            .terms
            .clone()
            .expect("a completed reservation has terms");
        // an item is never removed, and the lock covers every completed reservation's
        *self
            .quantities
            .get_mut(&item_name)
            .expect("a completed reservation's item is locked") += quantity;
        self.changed_quantities.insert(item_name);
        Status::Compensated
    }

    fn change(&mut self, order_id: Uuid, change: impl FnOnce(&mut Reservation)) {
        change(
            self.reservations
                .get_mut(&order_id)
                .expect("the reservation is in the batch"),
        );
        self.changed_reservations.insert(order_id);
    }

    fn answer(&mut self, event: &Event, body: Body) {
        self.outgoing.push(event.answer(body));
    }
}

#[cfg(test)]
mod tests {
    use shared::event::delivery::Delivery;

    use super::*;

    const ORDER: Uuid = Uuid::from_u128(1);

    fn batch(quantity: Option<i64>) -> Batch {
        let reservation = Reservation::new();
        let quantities = quantity
            .map(|quantity| ("pen".to_string(), quantity))
            .into_iter()
            .collect();
        Batch::new(HashMap::from([(ORDER, reservation)]), quantities)
    }

    fn request(quantity: i64) -> Event {
        Event::new(
            Side::Stock,
            ORDER,
            Body::StockRequested {
                item_name: "pen".into(),
                quantity,
            },
            None,
        )
    }

    fn compensation() -> Event {
        Event::new(Side::Stock, ORDER, Body::CompensationRequested, None)
    }

    fn failed(code: &str) -> Body {
        Body::Failed {
            reason: Reason {
                code: code.into(),
                from: "stock".into(),
            },
            attempts: 1,
        }
    }

    fn given_up() -> GivenUp {
        let (stored, published, taken_up) = (Some(1), Some(2), 3);
        let delivery = Delivery {
            id: None,
            partition: 0,
            offset: 17,
            stored,
            published,
            taken_up,
            attempt: 5,
        };
        GivenUp {
            order_id: ORDER,
            traceparent: Some("of the request".into()),
            delivery,
        }
    }

    fn answers(batch: &Batch) -> Vec<Body> {
        batch
            .outgoing
            .iter()
            .map(|event| event.body.clone())
            .collect()
    }

    #[test]
    fn a_request_takes_the_quantity_once() {
        let mut batch = batch(Some(10));
        let request = request(7);
        assert_eq!(batch.decide(&request), Outcome::Changed);
        assert_eq!(batch.decide(&request), Outcome::Unchanged("a duplicate"));
        assert_eq!(batch.quantities["pen"], 3);
        assert_eq!(answers(&batch), [Body::Completed]);
    }

    #[test]
    fn too_little_stock_and_an_unknown_item_are_refused_at_once() {
        for (quantity, code) in [(Some(6), "INSUFFICIENT_STOCK"), (None, "UNKNOWN_ITEM")] {
            let mut batch = batch(quantity);
            assert_eq!(batch.decide(&request(7)), Outcome::Changed);
            assert_eq!(batch.reservations[&ORDER].status, Status::Failed);
            assert_eq!(answers(&batch), [failed(code)]);
            assert!(batch.changed_quantities.is_empty());
        }
    }

    #[test]
    fn a_compensation_gives_the_quantity_back_once_and_is_confirmed_each_time_it_is_asked() {
        let mut batch = batch(Some(10));
        batch.decide(&request(7));
        let (first, again) = (compensation(), compensation());
        assert_eq!(batch.decide(&first), Outcome::Changed);
        assert_eq!(batch.decide(&first), Outcome::Unchanged("a duplicate"));
        assert_eq!(batch.decide(&again), Outcome::Changed);
        assert_eq!(batch.quantities["pen"], 10);
        let undone = Body::Compensated { undone: true };
        assert_eq!(answers(&batch), [Body::Completed, undone.clone(), undone]);
    }

    #[test]
    fn a_compensation_before_its_request_cancels_it() {
        let mut batch = batch(Some(10));
        batch.decide(&compensation());
        assert_eq!(
            batch.decide(&request(7)),
            Outcome::Unchanged("it was cancelled before it came")
        );
        assert_eq!(batch.reservations[&ORDER].status, Status::Cancelled);
        assert_eq!(batch.quantities["pen"], 10);
        assert_eq!(answers(&batch), [Body::Compensated { undone: false }]);
    }

    #[test]
    fn a_failed_reservation_stays_failed_and_confirms() {
        let mut batch = batch(Some(6));
        batch.decide(&request(7));
        batch.decide(&compensation());
        assert_eq!(batch.reservations[&ORDER].status, Status::Failed);
        assert_eq!(answers(&batch)[1], Body::Compensated { undone: false });
    }

    #[test]
    fn a_second_request_with_another_quantity_is_parked() {
        let mut batch = batch(Some(10));
        batch.decide(&request(7));
        assert!(matches!(
            batch.decide(&request(8)),
            Outcome::Refused(Cause::Contradiction, _)
        ));
        assert_eq!(batch.quantities["pen"], 3);
    }

    #[test]
    fn a_request_that_was_given_up_stays_so() {
        let mut batch = batch(Some(10));
        batch.give_up(&given_up());
        batch.outgoing.clear();
        assert_eq!(batch.decide(&request(7)), Outcome::GivenUp);
        assert_eq!(batch.reservations[&ORDER].status, Status::Failed);
        assert_eq!(
            (&batch.outgoing[..], batch.quantities["pen"]),
            (&[][..], 10)
        );
    }

    #[test]
    fn giving_up_fails_only_what_is_undecided() {
        let mut undecided = batch(Some(10));
        undecided.give_up(&given_up());
        let reason = Reason {
            code: "UNPROCESSABLE".into(),
            from: "stock".into(),
        };
        assert_eq!(
            answers(&undecided),
            [Body::Failed {
                reason,
                attempts: 5
            }]
        );
        assert_eq!(
            undecided.outgoing[0].traceparent.as_deref(),
            Some("of the request")
        );
        assert_eq!(undecided.outgoing[0].answers, Some(given_up().delivery));
        let mut decided = batch(Some(10));
        decided.decide(&request(7));
        decided.give_up(&given_up());
        assert_eq!(decided.reservations[&ORDER].status, Status::Completed);
        assert_eq!(answers(&decided), [Body::Completed]);
    }
}
