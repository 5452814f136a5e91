//! What each step costs: all that the simulation knows of a real machine. `main.rs` has what it is held against.
//!
//! A step costs a time for each batch and a time for each order, row or record in it. Batches are of one or two at 100
//! orders/s, which shows the former; saturation shows the latter. What is said to be measured is in docs/performance.md,
//! in its whole run of 2026-11-25 where no other is named; the sums by process are in docs/scaling.md, too. How a sum
//! divides among the steps of one process is measured where a figure of the step stands here. Else it is what is left.

use crate::engine::{Nanos, nanos};

/// Milliseconds of processor time (of a virtual AMD EPYC's core), and round trips over the network.
pub struct Cost {
    fixed: f64,
    each: f64,
    pub trips: f64,
}

const fn cost(fixed: f64, each: f64, trips: f64) -> Cost {
    Cost { fixed, each, trips }
}

/// Load tool, a request. 0.03 an order at saturation, 0.055 at half of it.
pub const LOAD: Cost = cost(0.0, 0.04, 0.0);
/// Order service, a request. Its 0.09 an order at saturation less what follows of it.
pub const HTTP: Cost = cost(0.0, 0.05, 0.0);
/// Order service, a batch handed to PostgreSQL. Of its 1.25 an order at 100/s.
pub const WRITE: Cost = cost(0.25, 0.008, 0.0);
/// PostgreSQL, a batch of orders placed. What is left of its 0.15 an order at saturation.
pub const PLACE: Cost = cost(0.30, 0.026, 1.0);
/// PostgreSQL, rows appended under the append lock. 0.155 for a lone one (pgbench). A consumer's COMMIT is sent under it, too.
pub const APPEND: Cost = cost(0.15, 0.006, 1.0);
/// PostgreSQL, a relay's read. A statement 0.13 (pgbench); 0.011 a row with the delete (drain, the run before).
pub const READ: Cost = cost(0.13, 0.002, 1.0);
/// A service, a turn's records made. With sending and Kafka's part 0.016 a row (drain, the run before).
pub const BUILD: Cost = cost(0.35, 0.003, 0.0);
/// A service, a turn's records sent.
pub const SEND: Cost = cost(0.0, 0.003, 0.0);
/// Kafka, a transaction begun and ended. 3.85 an order at 100/s, in 3.2 transactions, with what follows.
pub const COORDINATE: Cost = cost(0.75, 0.0, 4.0);
/// Kafka, a partition in a transaction. Two requests and a marker less in three transactions saved 1.2 (Steps).
pub const JOIN: Cost = cost(0.10, 0.0, 0.0);
/// Kafka, a record written. With its reading 0.04 an order at saturation, 4.3 records.
pub const STORE: Cost = cost(0.0, 0.004, 0.0);
/// Kafka, a fetch.
pub const FETCH: Cost = cost(0.15, 0.002, 1.0);
/// A service, a batch of its consumer. Of payment's 0.77 an order at 100/s, and of its 0.01 at saturation.
pub const HANDLE: Cost = cost(0.35, 0.005, 0.0);
/// PostgreSQL, a participant's batch. Seven statements, the append among them; 29.3 an order at 100/s cost 4.0 together.
pub const TAKE: Cost = cost(0.60, 0.014, 6.0);
/// PostgreSQL, a batch of order's answers. Five statements; a row of `timeline` alone is 0.006.
pub const DECIDE: Cost = cost(0.50, 0.014, 5.0);
/// PostgreSQL, published rows deleted and their orders marked. 18 for 2,000 rows (Steps).
pub const DELETE: Cost = cost(0.20, 0.009, 1.0);

/// Of a fixed cost so much lies on the batch's way; the rest is threads that wake one another beside it. `select 1` takes
/// 0.13 ms of both sides' processors and 0.1 ms of time.
const ON_THE_WAY: f64 = 0.1 / 0.13;
/// Milliseconds that a commit waits for the bench machine's disk.
pub const COMMIT: f64 = 0.3;
/// Milliseconds in which a transaction waits for its markers without work: a lone one takes 1.9.
pub const MARKERS: f64 = 0.7;
/// What a further replica costs, beside the leader's 1: a lone transaction takes 5 ms with three replicas, 1.9 with one.
pub const REPLICA: f64 = 0.8;

impl Cost {
    /// On the way of a batch of so many.
    pub fn time(&self, count: usize) -> Nanos {
        nanos(self.fixed * ON_THE_WAY + self.each * count as f64)
    }

    /// Beside it.
    pub fn beside(&self) -> Nanos {
        nanos(self.fixed * (1.0 - ON_THE_WAY))
    }
}
