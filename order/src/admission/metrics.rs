//! What admission goes by and whom it refuses, counted.

use std::sync::LazyLock;

use prometheus::{Gauge, IntCounterVec, IntGauge};
use shared::metrics::{counters, gauge, registered};

use super::Refusal;

static REFUSED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_orders_refused_total",
        "Orders that were not admitted by this instance, by reason",
        "reason",
    )
});
static IN_FLIGHT: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_orders_in_flight",
        "Orders accepted by all instances and not settled",
    )
});
static LIMIT: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_admission_limit_orders",
        "Orders in flight from which on new ones are refused",
    )
});
static CAPACITY: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new(
        "saga_admission_capacity",
        "Orders a second that the system settles when it is busy",
    ))
});
static WAIT: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new(
        "saga_admission_wait_seconds",
        "How long a new order would take to settle, as estimated",
    ))
});
static OPEN: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("saga_admission_open", "1: new orders are admitted"));

/// Makes every value appear from the start on.
pub fn start() {
    Refusal::ALL
        .iter()
        .for_each(|refusal| drop(REFUSED.with_label_values(&[refusal.name()])));
    show(true, 0, 0.0, 0.0, 0.0);
}

/// An order was not admitted.
pub fn refused(refusal: Refusal) {
    REFUSED.with_label_values(&[refusal.name()]).inc();
}

/// What admission goes by; `limit` in orders, `capacity` in orders a second, `wait` in seconds.
pub fn show(is_open: bool, in_flight: i64, limit: f64, capacity: f64, wait: f64) {
    OPEN.set(i64::from(is_open));
    IN_FLIGHT.set(in_flight);
    LIMIT.set(limit as i64);
    CAPACITY.set(capacity);
    WAIT.set(wait);
}
