//! The order: what it asks for, its two sides, and the one function that decides what an event makes of them. No I/O, no clock.

use shared::event::{Reason, Service, Side};
use uuid::Uuid;

/// An order to be stored.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Version 7, so that ids sort by time.
    pub order_id: Uuid,
    /// Whose balance.
    pub user_name: String,
    /// Which item.
    pub item_name: String,
    /// The whole amount, in the smallest unit of the currency.
    pub price: i64,
    /// How many items.
    pub quantity: i64,
    /// `Idempotency-Key`.
    pub key: Option<String>,
    /// W3C trace context, kept to the end.
    pub traceparent: String,
}

/// A stored order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its id.
    pub order_id: Uuid,
    /// Whose balance; this and the following are not known of an order that is LOST.
    pub user_name: Option<String>,
    /// Which item.
    pub item_name: Option<String>,
    /// The whole amount, in the smallest unit of the currency.
    pub price: Option<i64>,
    /// How many items.
    pub quantity: Option<i64>,
    /// Its two sides.
    pub saga: Saga,
    /// RFC 3339, UTC, six digits.
    pub created_at: String,
    /// RFC 3339, UTC, six digits.
    pub updated_at: String,
}

/// The order as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderStatus {
    /// Not decided.
    InProgress,
    /// Both sides succeeded.
    Completed,
    /// A side failed, or its deadline passed.
    Failed,
}

shared::names! { OrderStatus:
    InProgress = "IN_PROGRESS", Completed = "COMPLETED", Failed = "FAILED",
}

/// The order's view of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SideStatus {
    /// Its request is stored, not yet known to be published.
    Ready,
    /// Its request is published.
    InProgress,
    /// It succeeded.
    Completed,
    /// It failed for good.
    Failed,
    /// It was asked to compensate.
    Compensating,
    /// It confirmed the compensation.
    Compensated,
}

shared::names! { SideStatus:
    Ready = "READY", InProgress = "IN_PROGRESS", Completed = "COMPLETED", Failed = "FAILED",
    Compensating = "COMPENSATING", Compensated = "COMPENSATED",
}

impl SideStatus {
    fn is_undecided(self) -> bool {
        matches!(self, SideStatus::Ready | SideStatus::InProgress)
    }

    /// Whether the order can't be completed with a side like this.
    fn is_fatal(self) -> bool {
        matches!(
            self,
            SideStatus::Failed | SideStatus::Compensating | SideStatus::Compensated
        )
    }
}

/// The state of one order's saga. The order's own status follows from its sides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Saga {
    /// The user's balance.
    pub payment: SideStatus,
    /// The item's stock.
    pub stock: SideStatus,
    /// Why the order failed; the first reason stays.
    pub reason: Option<(String, String)>,
}

/// What can happen to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SagaEvent {
    /// Its requests are published.
    Published,
    /// A side succeeded.
    Completed(Side),
    /// A side failed for good.
    Failed(Side, Reason),
    /// A side confirmed its compensation.
    Compensated(Side),
    /// The sides' time is over.
    DeadlinePassed,
    /// A compensation has not been confirmed for a while.
    Unconfirmed,
}

/// How an answer stands to what an order has recorded, where it is not what the order waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearing {
    /// It says nothing new, from any sender and however often.
    Harmless,
    /// It changes nothing today, but later it would be a contradiction: it must be remembered, so that it is known when it
    /// comes again.
    Late,
    /// It can't be true together with what is recorded, unless it was recorded itself: a database came back older.
    Contradiction,
}

/// What an event makes of a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The saga from now on.
    pub saga: Saga,
    /// The sides to be asked to compensate, by a message each.
    pub compensate: Vec<Side>,
}

impl Saga {
    /// An order just stored.
    pub fn new() -> Saga {
        Saga {
            payment: SideStatus::Ready,
            stock: SideStatus::Ready,
            reason: None,
        }
    }

    /// An order rebuilt from its requests in Kafka: they are published.
    pub fn rebuilt() -> Saga {
        Saga {
            payment: SideStatus::InProgress,
            stock: SideStatus::InProgress,
            reason: None,
        }
    }

    /// An order that can't be gone on with: both sides are asked to give back what they may have taken.
    pub fn withdrawn(reason: Reason) -> Transition {
        let sides = Side::ALL.to_vec();
        let reason = Some((reason.code, reason.from));
        Transition {
            saga: Saga {
                payment: SideStatus::Compensating,
                stock: SideStatus::Compensating,
                reason,
            },
            compensate: sides,
        }
    }

    /// The order as a whole.
    pub fn status(&self) -> OrderStatus {
        match (self.payment, self.stock) {
            (SideStatus::Completed, SideStatus::Completed) => OrderStatus::Completed,
            (payment, stock) if payment.is_fatal() || stock.is_fatal() => OrderStatus::Failed,
            _ => OrderStatus::InProgress,
        }
    }

    /// Whether nothing is left to happen. Once settled, always settled.
    pub fn is_settled(&self) -> bool {
        [self.payment, self.stock]
            .iter()
            .all(|side| !side.is_undecided() && *side != SideStatus::Compensating)
    }

    /// The saga after `saga_event`, and what to send. An event that is too late or a duplicate changes nothing and
    /// sends nothing.
    pub fn transition(&self, saga_event: &SagaEvent) -> Transition {
        let mut transition = Transition {
            saga: self.clone(),
            compensate: vec![],
        };
        match saga_event {
            SagaEvent::Published => transition.publish(),
            SagaEvent::Completed(side) => transition.complete(*side),
            SagaEvent::Failed(side, reason) => transition.fail(*side, reason),
            SagaEvent::Compensated(side) => transition.confirm(*side),
            SagaEvent::DeadlinePassed => transition.end_waiting(),
            SagaEvent::Unconfirmed => {
                transition.compensate = self.sides_that_are(SideStatus::Compensating)
            }
        }
        transition
    }

    /// How an answer that [`Saga::transition`] makes nothing of stands to what is recorded.
    pub fn bearing(&self, saga_event: &SagaEvent) -> Bearing {
        use SideStatus::{Compensated, Compensating, Completed, Failed, InProgress, Ready};
        match (saga_event, self.status_of(saga_event)) {
            (SagaEvent::Completed(_), Some(Failed | Compensated)) => Bearing::Contradiction,
            (SagaEvent::Completed(_), Some(Compensating)) => Bearing::Late,
            // one more success of a side that may still be asked to compensate
            (SagaEvent::Completed(_), Some(Completed)) if !self.is_settled() => Bearing::Late,
            (SagaEvent::Failed(..), Some(Completed)) => Bearing::Contradiction,
            (SagaEvent::Compensated(_), Some(Ready | InProgress | Completed)) => {
                Bearing::Contradiction
            }
            _ => Bearing::Harmless,
        }
    }

    /// What is done about a contradiction ([`Saga::bearing`]) that was not recorded before ([`crate::repair`] has the cases).
    /// None: nothing can be done here, a person must look.
    pub fn repair(&self, saga_event: &SagaEvent) -> Option<Transition> {
        let mut transition = Transition {
            saga: self.clone(),
            compensate: vec![],
        };
        match saga_event {
            SagaEvent::Completed(side) => transition.compensate.push(*side),
            _ if self.status() == OrderStatus::Completed => return None,
            SagaEvent::Failed(side, _) | SagaEvent::Compensated(side) => {
                *transition.saga.side(*side) = SideStatus::Compensating;
                transition.compensate.push(*side);
                transition.blame(&Reason::new("CONTRADICTION", Service::Order));
                transition.compensate_if_failed();
            }
            _ => return None,
        }
        Some(transition)
    }

    /// The status of the side that an answer is about.
    fn status_of(&self, saga_event: &SagaEvent) -> Option<SideStatus> {
        match saga_event {
            SagaEvent::Completed(side)
            | SagaEvent::Failed(side, _)
            | SagaEvent::Compensated(side) => Some(if *side == Side::Payment {
                self.payment
            } else {
                self.stock
            }),
            _ => None,
        }
    }

    fn side(&mut self, side: Side) -> &mut SideStatus {
        match side {
            Side::Payment => &mut self.payment,
            Side::Stock => &mut self.stock,
        }
    }

    fn sides_that_are(&self, status: SideStatus) -> Vec<Side> {
        let sides = [(Side::Payment, self.payment), (Side::Stock, self.stock)];
        sides
            .into_iter()
            .filter(|(_, side)| *side == status)
            .map(|(side, _)| side)
            .collect()
    }
}

impl Default for Saga {
    fn default() -> Saga {
        Saga::new()
    }
}

impl Transition {
    fn publish(&mut self) {
        for side in self.saga.sides_that_are(SideStatus::Ready) {
            *self.saga.side(side) = SideStatus::InProgress;
        }
    }

    fn complete(&mut self, side: Side) {
        if self.saga.side(side).is_undecided() {
            *self.saga.side(side) = SideStatus::Completed;
            self.compensate_if_failed();
        }
    }

    fn fail(&mut self, side: Side, reason: &Reason) {
        if self.saga.side(side).is_undecided() {
            *self.saga.side(side) = SideStatus::Failed;
            self.blame(reason);
            self.compensate_if_failed();
        }
    }

    fn confirm(&mut self, side: Side) {
        if *self.saga.side(side) == SideStatus::Compensating {
            *self.saga.side(side) = SideStatus::Compensated;
        }
    }

    /// The deadline belongs to a side: one still in progress is asked to compensate, and the order fails with it.
    fn end_waiting(&mut self) {
        let late = self.saga.sides_that_are(SideStatus::InProgress);
        for side in &late {
            *self.saga.side(*side) = SideStatus::Compensating;
        }
        if !late.is_empty() {
            self.compensate.extend(late);
            self.blame(&Reason::new("DEADLINE", Service::Order));
            self.compensate_if_failed();
        }
    }

    fn blame(&mut self, reason: &Reason) {
        self.saga
            .reason
            .get_or_insert_with(|| (reason.code.clone(), reason.from.clone()));
    }

    /// A failed order asks back whatever has succeeded.
    fn compensate_if_failed(&mut self) {
        if self.saga.status() == OrderStatus::Failed {
            for side in self.saga.sides_that_are(SideStatus::Completed) {
                *self.saga.side(side) = SideStatus::Compensating;
                self.compensate.push(side);
            }
        }
    }
}
