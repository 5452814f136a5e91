//! The payment: what requests and compensations make of payments and balances. No I/O, no clock.

use std::collections::{BTreeSet, HashMap};

use shared::error::Cause;
use shared::event::{Body, Event, Reason, Service, Side};
use shared::handler::{GivenUp, Outcome};
use uuid::Uuid;

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Placed in this transaction, not decided. Never committed.
    New,
    /// The price was taken.
    Completed,
    /// Refused, or given up.
    Failed,
    /// The price was given back.
    Compensated,
    /// The compensation came before the request.
    Cancelled,
}

shared::names! { Status:
    New = "NEW", Completed = "COMPLETED", Failed = "FAILED", Compensated = "COMPENSATED",
    Cancelled = "CANCELLED",
}

/// One order's payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Whose balance, and how much of it; none while only a compensation was seen.
    pub terms: Option<(String, i64)>,
    /// Where it stands.
    pub status: Status,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// The compensation requests that were confirmed.
    pub confirmed: Vec<Uuid>,
}

impl Payment {
    /// One that was placed and has not been decided.
    pub fn new() -> Payment {
        Payment {
            terms: None,
            status: Status::New,
            reason: None,
            confirmed: vec![],
        }
    }
}

impl Default for Payment {
    fn default() -> Payment {
        Payment::new()
    }
}

/// Locked payments and balances, and what a batch makes of them.
pub struct Batch {
    /// By order.
    pub payments: HashMap<Uuid, Payment>,
    /// By user; who is missing is unknown.
    pub balances: HashMap<String, i64>,
    /// The payments that are no longer what the table holds.
    pub changed_payments: BTreeSet<Uuid>,
    /// The same of the balances.
    pub changed_balances: BTreeSet<String>,
    /// The answers to send.
    pub outgoing: Vec<Event>,
}

impl Batch {
    /// Nothing has changed yet.
    pub fn new(payments: HashMap<Uuid, Payment>, balances: HashMap<String, i64>) -> Batch {
        Batch {
            payments,
            balances,
            changed_payments: BTreeSet::new(),
            changed_balances: BTreeSet::new(),
            outgoing: vec![],
        }
    }

    /// Decides one event. Its payment must be in the batch, placed [`Status::New`] if it was not known.
    pub fn decide(&mut self, event: &Event) -> Outcome {
        match &event.body {
            Body::PaymentRequested { user_name, price } => {
                self.request(event, (user_name.clone(), *price))
            }
            Body::CompensationRequested => self.compensate(event),
            _ => Outcome::Refused(
                Cause::Contradiction,
                format!("payment takes no {}", event.type_name()),
            ),
        }
    }

    /// Gives a request up for good, where it is undecided: unknown terms, FAILED, `UNPROCESSABLE`.
    pub fn give_up(&mut self, request: &GivenUp) {
        if self.payments[&request.order_id].status == Status::New {
            let answer = self.fail(
                request.order_id,
                None,
                "UNPROCESSABLE",
                request.delivery.attempt,
            );
            self.outgoing.push(request.answer(Side::Payment, answer));
        }
    }

    fn request(&mut self, event: &Event, terms: (String, i64)) -> Outcome {
        let payment = &self.payments[&event.order_id];
        let status = payment.status;
        match (status, &payment.terms) {
            (Status::New, _) => {
                let answer = self.pay(event.order_id, terms);
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
                self.change(event.order_id, |payment| payment.terms = Some(terms));
                Outcome::Unchanged("it was cancelled before it came")
            }
            (Status::Failed, None) => Outcome::GivenUp,
            _ => Outcome::Unchanged("a duplicate"),
        }
    }

    fn pay(&mut self, order_id: Uuid, terms: (String, i64)) -> Body {
        let amount = terms.1;
        match self.balances.get_mut(&terms.0) {
            None => self.fail(order_id, Some(terms), "UNKNOWN_USER", 1),
            Some(balance) if *balance < amount => {
                self.fail(order_id, Some(terms), "INSUFFICIENT_BALANCE", 1)
            }
            Some(balance) => {
                *balance -= amount;
                self.changed_balances.insert(terms.0.clone());
                self.change(order_id, |payment| {
                    payment.status = Status::Completed;
                    payment.terms = Some(terms)
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
        let reason = Reason::new(code, Service::Payment);
        self.change(order_id, |payment| {
            payment.status = Status::Failed;
            payment.terms = terms;
            payment.reason = Some(reason.clone());
        });
        Body::Failed { reason, attempts }
    }

    /// Every compensation request is confirmed, each once.
    fn compensate(&mut self, event: &Event) -> Outcome {
        let payment = &self.payments[&event.order_id];
        if payment.confirmed.contains(&event.id) {
            return Outcome::Unchanged("a duplicate");
        }
        let status = match payment.status {
            Status::New => Status::Cancelled,
            Status::Completed => self.refund(event.order_id),
            decided => decided,
        };
        self.change(event.order_id, |payment| {
            payment.status = status;
            payment.confirmed.push(event.id)
        });
        self.answer(
            event,
            Body::Compensated {
                undone: status == Status::Compensated,
            },
        );
        Outcome::Changed
    }

    fn refund(&mut self, order_id: Uuid) -> Status {
        let (user_name, amount) = self.payments[&order_id]
            .terms
            .clone()
            .expect("a completed payment has terms");
        // an account is never removed, and the lock covers every completed payment's
        *self
            .balances
            .get_mut(&user_name)
            .expect("a completed payment's account is locked") += amount;
        self.changed_balances.insert(user_name);
        Status::Compensated
    }

    fn change(&mut self, order_id: Uuid, change: impl FnOnce(&mut Payment)) {
        change(
            self.payments
                .get_mut(&order_id)
                .expect("the payment is in the batch"),
        );
        self.changed_payments.insert(order_id);
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

    fn batch(balance: Option<i64>) -> Batch {
        let payment = Payment::new();
        let balances = balance
            .map(|balance| ("ann".to_string(), balance))
            .into_iter()
            .collect();
        Batch::new(HashMap::from([(ORDER, payment)]), balances)
    }

    fn request(price: i64) -> Event {
        Event::new(
            Side::Payment,
            ORDER,
            Body::PaymentRequested {
                user_name: "ann".into(),
                price,
            },
            None,
        )
    }

    fn compensation() -> Event {
        Event::new(Side::Payment, ORDER, Body::CompensationRequested, None)
    }

    fn failed(code: &str) -> Body {
        Body::Failed {
            reason: Reason {
                code: code.into(),
                from: "payment".into(),
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
    fn a_request_takes_the_price_once() {
        let mut batch = batch(Some(10));
        let request = request(7);
        assert_eq!(batch.decide(&request), Outcome::Changed);
        assert_eq!(batch.decide(&request), Outcome::Unchanged("a duplicate"));
        assert_eq!(batch.balances["ann"], 3);
        assert_eq!(answers(&batch), [Body::Completed]);
    }

    #[test]
    fn too_little_balance_and_an_unknown_user_are_refused_at_once() {
        for (balance, code) in [(Some(6), "INSUFFICIENT_BALANCE"), (None, "UNKNOWN_USER")] {
            let mut batch = batch(balance);
            assert_eq!(batch.decide(&request(7)), Outcome::Changed);
            assert_eq!(batch.payments[&ORDER].status, Status::Failed);
            assert_eq!(answers(&batch), [failed(code)]);
            assert!(batch.changed_balances.is_empty());
        }
    }

    #[test]
    fn a_compensation_gives_the_price_back_once_and_is_confirmed_each_time_it_is_asked() {
        let mut batch = batch(Some(10));
        batch.decide(&request(7));
        let (first, again) = (compensation(), compensation());
        assert_eq!(batch.decide(&first), Outcome::Changed);
        assert_eq!(batch.decide(&first), Outcome::Unchanged("a duplicate"));
        assert_eq!(batch.decide(&again), Outcome::Changed);
        assert_eq!(batch.balances["ann"], 10);
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
        assert_eq!(batch.payments[&ORDER].status, Status::Cancelled);
        assert_eq!(batch.balances["ann"], 10);
        assert_eq!(answers(&batch), [Body::Compensated { undone: false }]);
    }

    #[test]
    fn a_failed_payment_stays_failed_and_confirms() {
        let mut batch = batch(Some(6));
        batch.decide(&request(7));
        batch.decide(&compensation());
        assert_eq!(batch.payments[&ORDER].status, Status::Failed);
        assert_eq!(answers(&batch)[1], Body::Compensated { undone: false });
    }

    #[test]
    fn a_second_request_with_another_amount_is_parked() {
        let mut batch = batch(Some(10));
        batch.decide(&request(7));
        assert!(matches!(
            batch.decide(&request(8)),
            Outcome::Refused(Cause::Contradiction, _)
        ));
        assert_eq!(batch.balances["ann"], 3);
    }

    #[test]
    fn a_request_that_was_given_up_stays_so() {
        let mut batch = batch(Some(10));
        batch.give_up(&given_up());
        batch.outgoing.clear();
        assert_eq!(batch.decide(&request(7)), Outcome::GivenUp);
        assert_eq!(batch.payments[&ORDER].status, Status::Failed);
        assert_eq!((&batch.outgoing[..], batch.balances["ann"]), (&[][..], 10));
    }

    #[test]
    fn giving_up_fails_only_what_is_undecided() {
        let mut undecided = batch(Some(10));
        undecided.give_up(&given_up());
        let reason = Reason {
            code: "UNPROCESSABLE".into(),
            from: "payment".into(),
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
        assert_eq!(decided.payments[&ORDER].status, Status::Completed);
        assert_eq!(answers(&decided), [Body::Completed]);
    }
}
