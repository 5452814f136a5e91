//! What a database that came back older excuses: exactly what ARCHITECTURE.md says is not guaranteed then. Without a lost tail
//! nothing is excused, and with one only what lies in it.
//!
//! | claim | what a lost tail excuses |
//! | --- | --- |
//! | an accepted order exists | one that had not reached Kafka: the client's repeat makes it |
//! | a key stands for one order | an order rebuilt after its key was used again: FAILED, SUPERSEDED, given back |
//! | a stored message is on its topic once | once more, as it was, for each tail lost after it was stored |
//! | a record was stored | one stored in the tail: our history of it went with it |
//! | stored order on each partition | a message that is published again, later |
//! | the table of outcomes | an order with such records, if no side keeps what order does not have, or it is parked for a person |

use std::collections::{HashMap, HashSet};

use harness::Seen;
use uuid::Uuid;

use crate::evidence::{Evidence, OrderRow, Stored};

/// Between the moment when an order's id is drawn and its commit, in seconds: the writer's patience.
const WRITER_PATIENCE: f64 = 10.0;

/// What the evidence excuses.
pub struct Excuses<'a> {
    found: &'a Evidence,
    orders: HashMap<Uuid, &'a OrderRow>,
    /// Orders with a record that its service has forgotten, or has published again.
    affected: HashSet<&'a str>,
    /// Orders with a request on the topics.
    requested: HashSet<&'a str>,
    /// Orders with an open dead letter CONTRADICTION.
    contradicted: HashSet<Uuid>,
}

impl<'a> Excuses<'a> {
    /// Looks through the evidence once.
    pub fn of(found: &'a Evidence) -> Excuses<'a> {
        let stored: HashSet<&str> = found
            .stored
            .iter()
            .map(|stored| stored.id.as_str())
            .collect();
        let contradictions = found
            .parked
            .iter()
            .filter(|parked| parked.open && parked.cause == "CONTRADICTION");
        let mut excuses = Excuses {
            found,
            orders: found
                .orders
                .iter()
                .map(|order| (order.order_id, order))
                .collect(),
            affected: HashSet::new(),
            requested: HashSet::new(),
            contradicted: contradictions
                .filter_map(|parked| parked.order_id)
                .collect(),
        };
        let mut seen: HashSet<&str> = HashSet::new();
        for record in &found.records {
            let Some(key) = record.key.as_deref() else {
                continue;
            };
            let is_forgotten =
                !stored.contains(record.ce_id.as_str()) && excuses.is_of_a_tail(record);
            let is_again = !seen.insert(&record.ce_id) && excuses.has_lost(service_of(record));
            if is_forgotten || is_again {
                excuses.affected.insert(key);
            }
            if record.ce_type.ends_with(".requested") {
                excuses.requested.insert(key);
            }
        }
        excuses
    }

    /// Whether a tail of this service's database was lost.
    pub fn has_lost(&self, service: &str) -> bool {
        self.found.lost.iter().any(|lost| lost.service == service)
    }

    /// A record that its service stored in a tail that was lost.
    pub fn is_of_a_tail(&self, record: &Seen) -> bool {
        self.found
            .lost
            .iter()
            .any(|lost| lost.service == service_of(record) && lost.covers(&record.ce_time))
    }

    /// How often a message may be on its topic.
    pub fn copies(&self, stored: &Stored) -> usize {
        let later = |lost: &&crate::evidence::Lost| {
            lost.service == stored.service && stored.stored_at <= lost.until.text
        };
        1 + self.found.lost.iter().filter(later).count()
    }

    /// An accepted order that had not left the lost tail.
    pub fn is_gone(&self, order_id: Uuid) -> bool {
        let drawn = order_id.get_timestamp().map_or(0.0, |drawn| {
            let (seconds, nanos) = drawn.to_unix();
            seconds as f64 + f64::from(nanos) / 1e9
        });
        let covers = |from: f64, until: f64| (from - WRITER_PATIENCE..=until).contains(&drawn);
        let tail =
            self.found.lost.iter().any(|lost| {
                lost.service == "order" && covers(lost.since.seconds, lost.until.seconds)
            });
        tail && !self.orders.contains_key(&order_id)
            && !self.requested.contains(order_id.to_string().as_str())
    }

    /// An order that was rebuilt when its key stood for another one.
    pub fn is_superseded(&self, order_id: Uuid) -> bool {
        let is_it =
            |order: &&OrderRow| order.statuses[0] == "FAILED" && order.reason == "SUPERSEDED";
        self.has_lost("order") && self.orders.get(&order_id).is_some_and(is_it)
    }

    /// An order of which a service has forgotten something that it had published, or has published it again.
    pub fn is_affected(&self, order_id: Uuid) -> bool {
        self.affected.contains(order_id.to_string().as_str())
    }

    /// I9 of one order: nothing is kept for it unless it is COMPLETED, and then nothing lacks without a dead letter about it.
    pub fn is_right_in_the_end(&self, order: &OrderRow) -> bool {
        match order.statuses[0].as_str() {
            "COMPLETED" => self.lacking(order).is_empty(),
            _ => (0..2).all(|side| !self.keeps(side, order.order_id)),
        }
    }

    /// What a COMPLETED order lacks, and no dead letter or repair says so.
    pub fn lacking(&self, order: &OrderRow) -> Vec<&'static str> {
        let sides = [(0, "payment"), (1, "reservation")];
        let lacks = |side: usize| {
            !self.keeps(side, order.order_id) && !self.contradicted.contains(&order.order_id)
        };
        sides
            .into_iter()
            .filter(|(side, _)| lacks(*side))
            .map(|(_, part)| part)
            .collect()
    }

    fn keeps(&self, side: usize, order_id: Uuid) -> bool {
        self.found.parts[side]
            .get(&order_id)
            .is_some_and(|part| part.status == "COMPLETED")
    }
}

/// Whose outbox a record came from.
fn service_of(record: &Seen) -> &str {
    match record.ce_type.split_once('.') {
        Some((_, "requested" | "compensation-requested")) | None => "order",
        Some((side, _)) => side,
    }
}
