//! What the order service counts besides what all services do.
//!
//! Labels are closed sets: an enum's names, never an id or a text. [`start`] makes every series exist from the start, so that
//! a rate can be computed of the first event. `docs/operations.md` lists all metrics; a test holds that table to `/metrics`.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use serde_json::{Map, Value, json};
use shared::db::Session;
use shared::error::Result;
use shared::event::trace::{self, Span};
use shared::metrics::{counters, gauge, registered};
use shared::service::monitor::Extra;
use uuid::Uuid;

use crate::admission::{self, Admission};
use crate::order::{OrderStatus, Saga};
use crate::repair::{self, Kind, Repair};
use crate::store;

/// Seconds: from a lone order on an idle machine to one that a deadline ends.
const SETTLE_BUCKETS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 3_600.0,
];

static ORDERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_orders_total",
        "Orders that came into a status, by this instance",
        "status",
    )
});
static SETTLED: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "saga_order_settle_seconds",
        "From an order's request until it was settled here",
    )
    .buckets(SETTLE_BUCKETS.to_vec());
    registered(Histogram::with_opts(opts))
});
static LATEST: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    registered(IntGaugeVec::new(
        Opts::new("saga_orders", "The latest 10,000 orders by status"),
        &["status"],
    ))
});
static OVERDUE: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_orders_overdue",
        "Orders not settled: their deadline has passed unhandled, or a compensation was requested again; counted up to 10,000",
    )
});

static REPAIRS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_repairs_total",
        "Repairs after a database came back older, made by this instance",
        "kind",
    )
});
static REPAIRS_OPEN: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_repairs_open",
        "Repairs whose confirmation has not come, counted up to 10,000",
    )
});

/// Makes every value appear from the start on. Returns what polls the orders, for the monitor.
pub fn start(admission: Admission, deadline: Duration) -> Extra {
    for status in OrderStatus::ALL {
        ORDERS.with_label_values(&[status.name()]);
        LATEST.with_label_values(&[status.name()]);
    }
    OVERDUE.set(0);
    REPAIRS_OPEN.set(0);
    Kind::ALL
        .iter()
        .for_each(|kind| drop(REPAIRS.with_label_values(&[kind.name()])));
    LazyLock::force(&SETTLED);
    admission::metrics::start();
    Box::new(move |session| poll(session, &admission, deadline))
}

/// So many orders were stored.
pub fn placed(count: usize) {
    ORDERS
        .with_label_values(&[OrderStatus::InProgress.name()])
        .inc_by(count as u64);
}

/// What became of orders in a transaction, counted after its commit.
#[derive(Default)]
pub struct Counts {
    ended: Vec<OrderStatus>,
    settled: Vec<Uuid>,
    decisions: Vec<Span>,
}

impl Counts {
    /// An answer has changed an order; a span where that is recorded.
    pub fn decided(&mut self, decision: Option<Span>) {
        self.decisions.extend(decision);
    }

    /// An order went from one state to another. How long one took that was lost meanwhile says nothing.
    pub fn note(&mut self, order_id: Uuid, before: &Saga, after: &Saga, repaired: bool) {
        if before.status() != after.status() {
            self.ended.push(after.status());
        }
        if !before.is_settled() && after.is_settled() && !repaired {
            self.settled.push(order_id);
        }
    }

    /// The orders that are settled now.
    pub fn settled(&self) -> &[Uuid] {
        &self.settled
    }

    /// Counts all of it, and ends its spans.
    pub fn report(self, admission: &Admission) {
        trace::end("decide batch", self.decisions);
        admission.settled(self.settled.len());
        for status in self.ended {
            ORDERS.with_label_values(&[status.name()]).inc();
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        for order_id in self.settled {
            SETTLED.observe(now.saturating_sub(drawn_at(order_id)).as_secs_f64());
        }
    }
}

/// What a transaction has repaired, counted and logged when it is committed: in one line, however much it is.
#[derive(Default)]
pub struct Repaired(Vec<(Kind, Vec<Uuid>)>);

impl Repaired {
    /// Sorted by what was done.
    pub fn of(repairs: &[Repair]) -> Repaired {
        Repaired(if repairs.is_empty() {
            vec![]
        } else {
            Kind::ALL
                .map(|kind| {
                    let orders = repairs
                        .iter()
                        .filter(|repair| repair.kind == kind)
                        .map(|repair| repair.order_id)
                        .collect();
                    (kind, orders)
                })
                .into()
        })
    }

    /// Counts and logs all of it.
    pub fn report(self) {
        let mut parts = Vec::new();
        for (kind, orders) in self.0 {
            REPAIRS
                .with_label_values(&[kind.name()])
                .inc_by(orders.len() as u64);
            if let (Some(first), Some(last)) = (orders.iter().min(), orders.iter().max()) {
                parts.push(format!(
                    "{}, first {first}, last {last}",
                    kind.describe(orders.len())
                ));
            }
        }
        if !parts.is_empty() {
            log::warn!("a database came back older: {}", parts.join("; "));
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

fn poll(
    session: &mut Session,
    admission: &Admission,
    deadline: Duration,
) -> Result<Map<String, Value>> {
    let mut orders = Map::new();
    let latest = store::count_latest(session)?;
    for status in OrderStatus::ALL {
        let count = latest
            .iter()
            .find(|(name, _)| *name == status.name())
            .map_or(0, |(_, count)| *count);
        LATEST.with_label_values(&[status.name()]).set(count);
        orders.insert(status.name().into(), json!(count));
    }
    let overdue = store::count_overdue(session, deadline)?;
    OVERDUE.set(overdue);
    let (made, open) = repair::store::count(session)?;
    REPAIRS_OPEN.set(open);
    let mut repairs = Map::from_iter([("open".into(), json!(open))]);
    for kind in Kind::ALL {
        let count = made
            .iter()
            .find(|(name, _)| *name == kind.name())
            .map_or(0, |(_, count)| *count);
        repairs.insert(kind.name().into(), json!(count));
    }
    Ok(Map::from_iter([
        ("orders".into(), Value::Object(orders)),
        ("overdue".into(), json!(overdue)),
        ("repairs".into(), Value::Object(repairs)),
        ("admission".into(), admission.overview()),
    ]))
}
