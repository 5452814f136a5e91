//! Repairs: what order does when a database has come back older. No I/O, no clock.
//!
//! Each service's place in Kafka is a part of its database. A database that comes back older reads again what came
//! since ([`shared::consumer::offsets`] says how that is noticed), and participants decide their requests anew. Order
//! mends the rest; `docs/restoring.md` says what to do and what remains.
//!
//! # An answer about an order that is not there
//!
//! ```text
//! a batch ── an order is missing ──► rolled back (Error::Unprepared) ──► its requests searched for in Kafka ──► the batch, once more
//! ```
//!
//! So no transaction is open while Kafka is read ([`shared::consumer::recovery`]), and the usual path has no statement
//! more.
//!
//! * Both requests found: the order is stored as published, with a deadline ([`Rebuilt`]), and the answer is handled as
//!   usual. The payment request carries the idempotency key for this purpose only.
//! * If the key stands for another order by now, or a request is missing, both sides are asked to compensate.
//!
//! Several sessions and instances may miss the same order. Rows are inserted in id order, keys before orders as the
//! writer does. Only the session that stored an order asks anything of its sides.
//!
//! # An answer that contradicts what is recorded
//!
//! [`Saga::bearing`] notices it, [`Saga::repair`] decides. The answer counts only under a message id that neither
//! `timeline` nor `repair` has. This is queried once a batch, and only when there is such an answer.
//!
//! | the answer | what order does |
//! | --- | --- |
//! | a success of a side that is FAILED or COMPENSATED | asks the side to compensate; the order stays as it is |
//! | a failure or a confirmation that takes back what the order has, which is not COMPLETED | fails the order and asks the side to compensate, which is right whatever it has done |
//! | the same, where the order is COMPLETED | parks the answer: a person must look |
//! | a success while its side is asked to compensate | keeps it in `timeline`, so that it is known when it is read again |
//!
//! # What is listed
//!
//! The table `repair` lists what was done ([`Repair`]), in the same transaction. A repair is open until its side has
//! confirmed; the deadline scan asks again meanwhile. One log line reports all repairs of a batch.

use shared::consumer::recovery::{FoundRequests, id_millis};
use shared::event::trace;
use shared::event::{Body, Event, Reason, Service, Side};
use uuid::Uuid;

use crate::order::Saga;

pub mod store;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An order that the database had lost was rebuilt from its requests in Kafka.
    Rebuilt,
    /// The same, but another order stands under its idempotency key by now: it is FAILED, and both sides give back.
    Superseded,
    /// An order that the database had lost could not be rebuilt: it is FAILED, and both sides give back.
    Lost,
    /// A side that had failed or given back has succeeded after all: it was asked to compensate.
    AskedBack,
    /// A side took back what it had said before the order was COMPLETED: it was asked to compensate, and the order failed.
    Contradicted,
}

shared::names! { Kind:
    Rebuilt = "REBUILT", Superseded = "SUPERSEDED", Lost = "LOST", AskedBack = "ASKED_BACK",
    Contradicted = "CONTRADICTED",
}

impl Kind {
    /// What was done, for the log: `count` times.
    pub fn describe(self, count: usize) -> String {
        let s = if count == 1 { "" } else { "s" };
        match self {
            Kind::Rebuilt => format!("rebuilt {count} order{s} that the database had lost"),
            Kind::Superseded => {
                format!("gave back {count} lost order{s} that the client has placed again")
            }
            Kind::Lost => {
                format!("gave back {count} lost order{s} whose requests are no longer in Kafka")
            }
            Kind::AskedBack => format!("asked {count} side{s} back that had succeeded after all"),
            Kind::Contradicted => {
                format!("failed {count} order{s} of which a side took back its answer")
            }
        }
    }
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Which order.
    pub order_id: Uuid,
    /// What was done.
    pub kind: Kind,
    /// On whose side; none: on both.
    pub side: Option<Side>,
    /// The answer that showed that it was needed.
    pub message_id: Uuid,
    /// The same for a person.
    pub detail: String,
    /// Whether no confirmation is waited for, or all of them have come.
    pub is_done: bool,
}

/// An order as its requests describe it. What is not known is none: then the order is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Its id.
    pub order_id: Uuid,
    /// Whose balance.
    pub user_name: Option<String>,
    /// Which item.
    pub item_name: Option<String>,
    /// The whole amount.
    pub price: Option<i64>,
    /// How many items.
    pub quantity: Option<i64>,
    /// `Idempotency-Key`.
    pub key: Option<String>,
    /// W3C trace context of the request that made it.
    pub traceparent: String,
    /// Where its saga goes on.
    pub saga: Saga,
    /// Message ids of its requests: payment, stock.
    pub requests: [Option<Uuid>; 2],
    /// When it was placed, in microseconds since 1970.
    pub created: i64,
    /// When its requests were stored.
    pub stored: Option<i64>,
    /// When they were published.
    pub published: Option<i64>,
    /// The answer by which it was missed.
    pub message_id: Uuid,
    /// Where its requests lie.
    pub places: String,
}

impl Rebuilt {
    /// The order that `answer` is about, by what Kafka holds of it. Without both requests it can't be gone on with. None: nobody
    /// can say that there ever was such an order. Kafka holds no request of it, and the answer names none; or what lies there is
    /// no request, and nothing was taken.
    pub fn new(answer: &Event, found: &FoundRequests) -> Option<Rebuilt> {
        let requests = [&found.payment, &found.stock].map(Option::as_ref);
        let any = requests.into_iter().flatten().next();
        // nothing can be taken by what can't be read
        let is_stray = found.unreadable && answer.body != Body::Completed;
        if any.is_none() && (answer.answers.is_none() || is_stray) {
            return None;
        }
        let delivery = any.and_then(|request| request.delivery);
        let (stored, published) = (
            delivery.and_then(|d| d.stored),
            delivery.and_then(|d| d.published),
        );
        let traceparent = any
            .and_then(|request| request.traceparent.clone())
            .or_else(|| answer.traceparent.clone());
        let is_whole = requests.iter().all(Option::is_some);
        let saga = if is_whole {
            Saga::rebuilt()
        } else {
            Saga::withdrawn(Reason::new("LOST", Service::Order)).saga
        };
        let mut rebuilt = Rebuilt {
            order_id: answer.order_id,
            user_name: None,
            item_name: None,
            price: None,
            quantity: None,
            // the client that repeats the request of an order that was given back gets a new one
            key: requests[0]
                .and_then(|request| request.idempotency_key.clone())
                .filter(|_| is_whole),
            traceparent: traceparent.unwrap_or_else(trace::new_traceparent),
            saga,
            requests: requests.map(|request| request.map(|request| request.id)),
            created: stored
                .or_else(|| Some(id_millis(answer.order_id)? * 1_000))
                .unwrap_or_default(),
            stored,
            published,
            message_id: answer.id,
            places: requests.map(place).join(", "),
        };
        for request in requests.into_iter().flatten() {
            rebuilt.take(&request.body);
        }
        Some(rebuilt)
    }

    fn take(&mut self, body: &Body) {
        match body.clone() {
            Body::PaymentRequested { user_name, price } => {
                (self.user_name, self.price) = (Some(user_name), Some(price));
            }
            Body::StockRequested {
                item_name,
                quantity,
            } => {
                (self.item_name, self.quantity) = (Some(item_name), Some(quantity));
            }
            _ => {}
        }
    }

    /// The same given back, because `standing` has taken its place.
    pub fn superseded(&self) -> Rebuilt {
        Rebuilt {
            saga: Saga::withdrawn(Reason::new("SUPERSEDED", Service::Order)).saga,
            ..self.clone()
        }
    }

    /// What is listed of it.
    pub fn repair(&self) -> Repair {
        let (kind, what) = match self.saga.reason.as_ref().map(|(code, _)| code.as_str()) {
            None => (Kind::Rebuilt, "rebuilt from its requests"),
            Some("SUPERSEDED") => (
                Kind::Superseded,
                "another order stands under its idempotency key; its requests",
            ),
            Some(_) => (Kind::Lost, "not both of its requests are in Kafka"),
        };
        let detail = format!("{what}: {}", self.places);
        let is_done = kind == Kind::Rebuilt;
        Repair {
            order_id: self.order_id,
            kind,
            side: None,
            message_id: self.message_id,
            detail,
            is_done,
        }
    }
}

fn place(request: Option<&Event>) -> String {
    let delivery = request.and_then(|request| Some((request.topic().name(), request.delivery?)));
    delivery.map_or("none".into(), |(topic, delivery)| {
        format!("{topic}-{}@{}", delivery.partition, delivery.offset)
    })
}

#[cfg(test)]
mod tests {
    use shared::event::delivery::Delivery;

    use super::*;
    use crate::order::SideStatus;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn order_id() -> Uuid {
        Uuid::parse_str("01a207b0-6c61-7300-bac7-ad7255aed1b3").unwrap()
    }

    fn delivery(partition: i32, offset: i64) -> Delivery {
        let (stored, published) = (Some(1_767_323_045_678_901), Some(1_767_323_045_680_000));
        Delivery {
            id: None,
            partition,
            offset,
            stored,
            published,
            taken_up: 5,
            attempt: 1,
        }
    }

    fn request(body: Body, offset: i64) -> Event {
        let side = if matches!(body, Body::PaymentRequested { .. }) {
            Side::Payment
        } else {
            Side::Stock
        };
        let event = Event::new(side, order_id(), body, Some(TRACE.into()));
        Event {
            delivery: Some(delivery(2, offset)),
            ..event
        }
    }

    fn payment() -> Event {
        let request = request(
            Body::PaymentRequested {
                user_name: "ann".into(),
                price: 7,
            },
            17,
        );
        Event {
            idempotency_key: Some("k".into()),
            ..request
        }
    }

    fn stock() -> Event {
        request(
            Body::StockRequested {
                item_name: "tea".into(),
                quantity: 2,
            },
            19,
        )
    }

    fn answer(answers: Option<Delivery>) -> Event {
        Event {
            answers,
            ..Event::new(Side::Stock, order_id(), Body::Completed, None)
        }
    }

    #[test]
    fn an_order_is_rebuilt_from_both_requests_with_all_that_they_say() {
        let (payment, stock) = (payment(), stock());
        let found = FoundRequests {
            payment: Some(payment.clone()),
            stock: Some(stock.clone()),
            unreadable: false,
        };
        let answer = answer(None);
        let rebuilt = Rebuilt::new(&answer, &found).unwrap();
        let expected = Rebuilt {
            order_id: order_id(),
            user_name: Some("ann".into()),
            item_name: Some("tea".into()),
            price: Some(7),
            quantity: Some(2),
            key: Some("k".into()),
            traceparent: TRACE.into(),
            saga: Saga {
                payment: SideStatus::InProgress,
                stock: SideStatus::InProgress,
                reason: None,
            },
            requests: [Some(payment.id), Some(stock.id)],
            created: 1_767_323_045_678_901,
            stored: Some(1_767_323_045_678_901),
            published: Some(1_767_323_045_680_000),
            message_id: answer.id,
            places: "payment-2@17, stock-2@19".into(),
        };
        assert_eq!(rebuilt, expected);
        let repair = rebuilt.repair();
        assert_eq!((repair.kind, repair.is_done), (Kind::Rebuilt, true));
        assert_eq!(
            repair.detail,
            "rebuilt from its requests: payment-2@17, stock-2@19"
        );
        let superseded = rebuilt.superseded();
        assert_eq!(
            superseded.saga.reason,
            Some(("SUPERSEDED".into(), "order".into()))
        );
        assert_eq!(
            (superseded.repair().kind, superseded.repair().is_done),
            (Kind::Superseded, false)
        );
    }

    #[test]
    fn without_both_requests_an_order_is_given_back_and_does_not_hold_its_key() {
        let half = FoundRequests {
            payment: Some(payment()),
            ..FoundRequests::default()
        };
        let lost = Rebuilt::new(&answer(Some(delivery(2, 19))), &half).unwrap();
        assert_eq!(
            (lost.user_name.as_deref(), lost.price, lost.key.as_deref()),
            (Some("ann"), Some(7), None)
        );
        assert_eq!((lost.item_name.as_deref(), lost.quantity), (None, None));
        let withdrawn = (
            SideStatus::Compensating,
            SideStatus::Compensating,
            Some(("LOST".into(), "order".into())),
        );
        assert_eq!(
            (lost.saga.payment, lost.saga.stock, lost.saga.reason.clone()),
            withdrawn
        );
        assert_eq!(
            lost.repair().detail,
            "not both of its requests are in Kafka: payment-2@17, none"
        );
        let gone = Rebuilt::new(&answer(Some(delivery(2, 19))), &FoundRequests::default()).unwrap();
        assert_eq!(
            (gone.created, gone.stored, gone.published),
            (0x01a2_07b0_6c61 * 1_000, None, None)
        );
        assert_eq!(gone.requests, [None, None]);
        assert_eq!(
            (gone.repair().kind, gone.repair().is_done),
            (Kind::Lost, false)
        );
    }

    #[test]
    fn an_order_of_which_nothing_is_known_but_an_answer_that_names_no_request_is_none() {
        assert_eq!(Rebuilt::new(&answer(None), &FoundRequests::default()), None);
        let unreadable = FoundRequests {
            unreadable: true,
            ..FoundRequests::default()
        };
        let completed = answer(Some(delivery(2, 19)));
        assert!(
            Rebuilt::new(&completed, &unreadable).is_some(),
            "something was taken"
        );
        let confirmed = Event {
            body: Body::Compensated { undone: false },
            ..completed
        };
        assert_eq!(Rebuilt::new(&confirmed, &unreadable), None);
    }
}
