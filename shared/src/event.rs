//! The contract between the services: topics, event types and what they say.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use delivery::Delivery;

pub mod delivery;
pub mod envelope;
pub mod trace;

/// One of the three services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Takes orders and decides their saga.
    Order,
    /// Takes the price from the user's balance.
    Payment,
    /// Takes the quantity from the item's stock.
    Stock,
}

crate::names! { Service: Order = "order", Payment = "payment", Stock = "stock" }

impl Service {
    /// `ce_source` of what it writes.
    pub fn source(self) -> &'static str {
        match self {
            Service::Order => "/order",
            Service::Payment => "/payment",
            Service::Stock => "/stock",
        }
    }

    /// Name of its outbox table.
    pub fn outbox(self) -> String {
        format!("{}_outbox", self.name())
    }

    /// The topics it reads.
    pub fn reads(self) -> Vec<Topic> {
        Topic::ALL
            .into_iter()
            .filter(|topic| topic.reader() == self)
            .collect()
    }

    /// The topics it writes.
    pub fn writes(self) -> Vec<Topic> {
        Topic::ALL
            .into_iter()
            .filter(|topic| topic.writer() == self)
            .collect()
    }

    /// The topics it reads or writes: all that its user in Kafka needs rights on.
    pub fn topics(self) -> Vec<Topic> {
        Topic::ALL
            .into_iter()
            .filter(|topic| topic.reader() == self || topic.writer() == self)
            .collect()
    }
}

/// One of an order's two sides. Also used for the participant behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The user's balance.
    Payment,
    /// The item's stock.
    Stock,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Payment, Side::Stock];

    /// Its name in topics and types.
    pub fn name(self) -> &'static str {
        self.service().name()
    }

    /// The side of a name.
    pub fn from_name(name: &str) -> Option<Side> {
        Side::ALL.into_iter().find(|side| side.name() == name)
    }

    /// The participant.
    pub fn service(self) -> Service {
        match self {
            Side::Payment => Service::Payment,
            Side::Stock => Service::Stock,
        }
    }
}

/// What a side's topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// What order asks for.
    Request,
    /// What was done or undone.
    Success,
    /// "This part has failed for good."
    Dlt,
    /// What order wants undone.
    Compensation,
}

impl Channel {
    fn of_verb(verb: &str) -> Option<Channel> {
        match verb {
            "requested" => Some(Channel::Request),
            "completed" | "compensated" => Some(Channel::Success),
            "failed" => Some(Channel::Dlt),
            "compensation-requested" => Some(Channel::Compensation),
            _ => None,
        }
    }
}

/// One of the eight topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic(pub Side, pub Channel);

impl Topic {
    /// All eight.
    pub const ALL: [Topic; 8] = [
        Topic(Side::Payment, Channel::Request),
        Topic(Side::Payment, Channel::Success),
        Topic(Side::Payment, Channel::Dlt),
        Topic(Side::Payment, Channel::Compensation),
        Topic(Side::Stock, Channel::Request),
        Topic(Side::Stock, Channel::Success),
        Topic(Side::Stock, Channel::Dlt),
        Topic(Side::Stock, Channel::Compensation),
    ];

    /// Its name in Kafka, without the installation's prefix.
    pub fn name(self) -> &'static str {
        match (self.0, self.1) {
            (Side::Payment, Channel::Request) => "payment",
            (Side::Payment, Channel::Success) => "payment.success",
            (Side::Payment, Channel::Dlt) => "payment.dlt",
            (Side::Payment, Channel::Compensation) => "payment.compensation",
            (Side::Stock, Channel::Request) => "stock",
            (Side::Stock, Channel::Success) => "stock.success",
            (Side::Stock, Channel::Dlt) => "stock.dlt",
            (Side::Stock, Channel::Compensation) => "stock.compensation",
        }
    }

    /// The topic that carries events of this type; none if there is no such type.
    pub fn of_type(type_name: &str) -> Option<Topic> {
        let (side, verb) = type_name.split_once('.')?;
        Some(Topic(Side::from_name(side)?, Channel::of_verb(verb)?))
    }

    /// The topic of a name that carries the installation's prefix.
    pub fn from_name(name: &str, prefix: &str) -> Option<Topic> {
        let bare = name.strip_prefix(prefix)?;
        Topic::ALL.into_iter().find(|topic| topic.name() == bare)
    }

    fn writer(self) -> Service {
        match self.1 {
            Channel::Request | Channel::Compensation => Service::Order,
            Channel::Success | Channel::Dlt => self.0.service(),
        }
    }

    fn reader(self) -> Service {
        match self.1 {
            Channel::Request | Channel::Compensation => self.0.service(),
            Channel::Success | Channel::Dlt => Service::Order,
        }
    }
}

/// Why a part failed. The first reason of an order stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// `INSUFFICIENT_BALANCE`, `UNKNOWN_USER`, `INSUFFICIENT_STOCK`, `UNKNOWN_ITEM`, `DEADLINE`, `UNPROCESSABLE`,
    /// `SUPERSEDED`, `LOST`, `CONTRADICTION`.
    pub code: String,
    /// The service that said so.
    pub from: String,
}

impl Reason {
    /// `code` as said by `from`.
    pub fn new(code: &str, from: Service) -> Reason {
        Reason {
            code: code.to_string(),
            from: from.name().to_string(),
        }
    }
}

/// What an event says, apart from whose side and which order it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// `payment.requested`.
    PaymentRequested {
        /// Whose balance.
        user_name: String,
        /// The whole amount, in the smallest unit of the currency.
        price: i64,
    },
    /// `stock.requested`.
    StockRequested {
        /// Which item.
        item_name: String,
        /// How many.
        quantity: i64,
    },
    /// `….completed`.
    Completed,
    /// `….compensated`.
    Compensated {
        /// Whether there was an effect to undo.
        undone: bool,
    },
    /// `….failed`.
    Failed {
        /// Why.
        reason: Reason,
        /// After how many attempts it was given up; 1 where it was refused by a decision.
        attempts: i32,
    },
    /// `….compensation-requested`.
    CompensationRequested,
}

impl Body {
    fn verb(&self) -> &'static str {
        match self {
            Body::PaymentRequested { .. } | Body::StockRequested { .. } => "requested",
            Body::Completed => "completed",
            Body::Compensated { .. } => "compensated",
            Body::Failed { .. } => "failed",
            Body::CompensationRequested => "compensation-requested",
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        match self {
            Body::PaymentRequested { .. } | Body::StockRequested { .. } => Channel::Request,
            Body::Completed | Body::Compensated { .. } => Channel::Success,
            Body::Failed { .. } => Channel::Dlt,
            Body::CompensationRequested => Channel::Compensation,
        }
    }
}

/// One event about one side of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `ce_id`: one per record.
    pub id: Uuid,
    /// Whose side.
    pub side: Side,
    /// Which order; the record's key.
    pub order_id: Uuid,
    /// What it says.
    pub body: Body,
    /// W3C trace context of the request that began it all.
    pub traceparent: Option<String>,
    /// How it was delivered; none in one that was made here.
    pub delivery: Option<Delivery>,
    /// In an answer: how what it answers was delivered.
    pub answers: Option<Delivery>,
    /// In a request to payment: the idempotency key under which the order was placed. Nobody acts on it but order, should its
    /// database lose the order.
    pub idempotency_key: Option<String>,
}

impl Event {
    /// A new event with an id of its own.
    pub fn new(side: Side, order_id: Uuid, body: Body, traceparent: Option<String>) -> Event {
        let (id, delivery, answers, idempotency_key) = (Uuid::now_v7(), None, None, None);
        Event {
            id,
            side,
            order_id,
            body,
            traceparent,
            delivery,
            answers,
            idempotency_key,
        }
    }

    /// A new event that answers this one: about the same side of the same order, with its trace context.
    pub fn answer(&self, body: Body) -> Event {
        Event {
            answers: self.delivery,
            ..Event::new(self.side, self.order_id, body, trace::caused_by(self))
        }
    }

    /// The topic it goes to.
    pub fn topic(&self) -> Topic {
        Topic(self.side, self.body.channel())
    }

    /// Its `ce_type`.
    pub fn type_name(&self) -> String {
        format!("{}.{}", self.side.name(), self.body.verb())
    }
}

/// The topics' names in Kafka, with the prefix, in the order given.
pub fn full_names(prefix: &str, topics: &[Topic]) -> Vec<String> {
    topics
        .iter()
        .map(|topic| format!("{prefix}{}", topic.name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_belongs_to_the_topic_that_carries_it() {
        for (type_name, topic) in [
            ("payment.requested", Some("payment")),
            ("stock.completed", Some("stock.success")),
            ("payment.compensated", Some("payment.success")),
            ("stock.failed", Some("stock.dlt")),
            (
                "payment.compensation-requested",
                Some("payment.compensation"),
            ),
            ("order.requested", None),
            ("payment.kompleted", None),
            ("payment", None),
        ] {
            assert_eq!(
                Topic::of_type(type_name).map(Topic::name),
                topic,
                "{type_name}"
            );
        }
    }
}
