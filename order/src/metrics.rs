//! What the order service counts besides what all services do.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use serde_json::{Map, Value, json};
use shared::db::Session;
use shared::error::Result;
use shared::metrics::{counters, gauge, registered};
use uuid::Uuid;

use crate::admission::{Admission, Refusal};
use crate::order::{OrderStatus, Saga};
use crate::store;

/// Seconds: from a lone order on an idle machine to one that a deadline ends.
const SETTLE_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 3_600.0];

static ORDERS: LazyLock<IntCounterVec> =
    LazyLock::new(|| counters("saga_orders_total", "Orders that came into a status, by this instance", "status"));
static SETTLED: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new("saga_order_settle_seconds", "From an order's request until it was settled here")
        .buckets(SETTLE_BUCKETS.to_vec());
    registered(Histogram::with_opts(opts))
});
static LATEST: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    registered(IntGaugeVec::new(Opts::new("saga_orders", "The latest 10,000 orders by status"), &["status"]))
});
static OVERDUE: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("saga_orders_overdue", "Orders beyond their deadline and not settled, counted up to 10,000")
});

static REFUSED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters("saga_orders_refused_total", "Orders that were not admitted by this instance, by reason", "reason")
});
static IN_FLIGHT: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("saga_orders_in_flight", "Orders accepted by all instances and not settled"));
static LIMIT: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("saga_admission_limit_orders", "Orders in flight from which on new ones are refused"));
static CAPACITY: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new("saga_admission_capacity", "Orders a second that the system settles when it is busy"))
});
static WAIT: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new("saga_admission_wait_seconds", "How long a new order would take to settle, as estimated"))
});
static OPEN: LazyLock<IntGauge> = LazyLock::new(|| gauge("saga_admission_open", "1: new orders are admitted"));

/// Makes every value appear from the start on.
pub fn start() {
    for status in OrderStatus::ALL {
        ORDERS.with_label_values(&[status.name()]);
        LATEST.with_label_values(&[status.name()]);
    }
    OVERDUE.set(0);
    LazyLock::force(&SETTLED);
    Refusal::NAMES.iter().for_each(|name| drop(REFUSED.with_label_values(&[name])));
    admission(true, 0, 0.0, 0.0, 0.0);
}

/// So many orders were stored.
pub fn placed(count: usize) {
    ORDERS.with_label_values(&[OrderStatus::InProgress.name()]).inc_by(count as u64);
}

/// An order was not admitted.
pub fn refused(refusal: Refusal) {
    REFUSED.with_label_values(&[refusal.name()]).inc();
}

/// What admission goes by; `limit` in orders, `capacity` in orders a second, `wait` in seconds.
pub fn admission(is_open: bool, in_flight: i64, limit: f64, capacity: f64, wait: f64) {
    OPEN.set(i64::from(is_open));
    IN_FLIGHT.set(in_flight);
    LIMIT.set(limit as i64);
    CAPACITY.set(capacity);
    WAIT.set(wait);
}

/// What became of orders in a transaction, told when it is committed.
#[derive(Default)]
pub struct News {
    ended: Vec<OrderStatus>,
    settled: Vec<Uuid>,
}

impl News {
    /// An order went from one state to another.
    pub fn note(&mut self, order_id: Uuid, before: &Saga, after: &Saga) {
        if before.status() != after.status() {
            self.ended.push(after.status());
        }
        if !before.is_settled() && after.is_settled() {
            self.settled.push(order_id);
        }
    }

    /// The orders that are settled now.
    pub fn settled(&self) -> &[Uuid] {
        &self.settled
    }

    /// Counts all of it.
    pub fn tell(&mut self, admission: &Admission) {
        admission.settled(self.settled.len());
        for status in self.ended.drain(..) {
            ORDERS.with_label_values(&[status.name()]).inc();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for order_id in self.settled.drain(..) {
            SETTLED.observe(now.saturating_sub(drawn_at(order_id)).as_secs_f64());
        }
    }
}

/// An order's id holds the time at which its request came (UUID version 7).
fn drawn_at(order_id: Uuid) -> Duration {
    order_id.get_timestamp().map_or(Duration::ZERO, |time| {
        let (seconds, nanos) = time.to_unix();
        Duration::new(seconds, nanos)
    })
}

/// Looks at the orders: for the monitor.
///
/// # Errors
/// What PostgreSQL says.
pub fn look(session: &mut Session, admission: &Admission) -> Result<Map<String, Value>> {
    let mut orders = Map::new();
    let latest = store::latest_statuses(session)?;
    for status in OrderStatus::ALL {
        let count = latest.iter().find(|(name, _)| *name == status.name()).map_or(0, |(_, count)| *count);
        LATEST.with_label_values(&[status.name()]).set(count);
        orders.insert(status.name().into(), json!(count));
    }
    let overdue = store::count_overdue(session)?;
    OVERDUE.set(overdue);
    Ok(Map::from_iter([
        ("orders".into(), Value::Object(orders)),
        ("overdue".into(), json!(overdue)),
        ("admission".into(), admission.overview()),
    ]))
}
