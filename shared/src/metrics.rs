//! What a service counts and measures about itself, in Prometheus's terms; all that the services have in common is listed
//! here. Values of the process, for as long as it runs.
//!
//! What the database and Kafka hold (outbox, lag, dead letters) is set by the [`crate::service::monitor`] of every
//! instance, also where another one leads or the relay fails.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, TextEncoder,
};

use crate::error::Cause;
use crate::error::{Blame, Error};

/// Seconds: from an answer out of memory to the longest `?wait`.
const HTTP_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

static HTTP: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "saga_http_request_seconds",
        "HTTP requests, from their last byte to their answer",
    )
    .buckets(HTTP_BUCKETS.to_vec());
    registered(HistogramVec::new(opts, &["method", "route", "status"]))
});
/// 1 where this instance's relay leads.
pub static LEADER: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("saga_relay_leader", "1: this instance's relay leads"));
/// The epoch of the producer that leads or led last here.
pub static EPOCH: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_relay_epoch",
        "The producer epoch of this instance's last leadership",
    )
});
static TRANSACTIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_relay_transactions_total",
        "Kafka transactions of the relay, by how they ended",
        "outcome",
    )
});
static PUBLISHED: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new(
        "saga_relay_rows_total",
        "Outbox rows published by this instance",
    ))
});
/// Times that this instance found, as it began to lead, that a promoted database lacks what it had published before.
pub static LOST_TAILS: LazyLock<IntCounter> = LazyLock::new(|| {
    let help =
        "Promotions of the database that lost messages which Kafka has, as found by this instance";
    registered(IntCounter::new("saga_lost_tails_total", help))
});
/// Rows in the outbox, published ones that are about to be deleted included.
pub static OUTBOX_ROWS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_outbox_rows",
        "Rows in the database's outbox, counted up to 100,000",
    )
});
/// Age of the oldest of them.
pub static OUTBOX_OLDEST: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new(
        "saga_outbox_oldest_seconds",
        "Age of the oldest row in the database's outbox; 0: none",
    ))
});
/// By how much the latest stored time is ahead of the database's clock.
pub static CLOCK_AHEAD: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "By how much the latest stored time is ahead of the database's clock, which has run ahead; 0: it is not";
    registered(Gauge::new("saga_outbox_clock_ahead_seconds", help))
});
/// For how long a snapshot has been open in the database.
pub static OLDEST_SNAPSHOT: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "For how long the oldest snapshot (a transaction, a backup) has been open in the database, as far as seen";
    registered(Gauge::new("saga_database_oldest_snapshot_seconds", help))
});
/// Records behind the service's offsets.
pub static LAG: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_consumer_lag_records",
        "Offsets from the service's next one to the partition's end",
    );
    registered(IntGaugeVec::new(opts, &["topic", "partition"]))
});
/// How long ago the partition's end was where the service is now.
pub static LAG_SECONDS: LazyLock<GaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_consumer_lag_seconds",
        "How long the service's next record has been waiting, as seen here",
    );
    registered(GaugeVec::new(opts, &["topic", "partition"]))
});
/// Records that were handled, given up or set aside.
pub static RECORDS: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new(
        "saga_consumer_records_total",
        "Records that this instance has handled, given up or set aside",
    ))
});
/// Batches tried, first attempts included.
pub static BATCHES_TRIED: LazyLock<IntCounter> = LazyLock::new(|| {
    registered(IntCounter::new(
        "saga_consumer_attempts_total",
        "Batches of records tried, first attempts included",
    ))
});
/// Records set aside.
pub static ASIDE: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_set_aside_records",
        "Records that wait for a row which somebody else holds locked",
    )
});
/// How long the oldest of them has waited.
pub static ASIDE_SECONDS: LazyLock<Gauge> = LazyLock::new(|| {
    registered(Gauge::new(
        "saga_set_aside_seconds",
        "For how long the oldest of them has waited; 0: there is none",
    ))
});
/// For how long something has waited because it fails again and again.
pub static WAITING: LazyLock<GaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_waiting_seconds",
        "For how long a partition (its next record can't be handled), the relay, the writer or a session that waits for a lock has failed; 0: it goes on",
    );
    registered(GaugeVec::new(opts, &["what"]))
});
static SPANS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_trace_spans_total",
        "Spans of this instance, by what became of them",
        "outcome",
    )
});
static RETRIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_consumer_retries_total",
        "Times a partition was put off after a failure, by who is to blame",
        "blame",
    )
});
static PARKED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "saga_consumer_parked_total",
        "Records parked by this instance",
        "cause",
    )
});
/// Dead letters that nobody has handled.
pub static DEAD_LETTERS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "saga_dead_letters",
        "Dead letters not handled, counted up to 10,000",
    )
});
static LAST_POLL: LazyLock<GaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_last_poll_timestamp_seconds",
        "When its values were last polled; older ones are stale",
    );
    registered(GaugeVec::new(opts, &["at"]))
});
static READY: LazyLock<IntGauge> = LazyLock::new(|| gauge("saga_ready", "1: /readyz answers 200"));
static HEARTBEATS: LazyLock<GaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_thread_heartbeat_seconds",
        "Since a thread last made progress",
    );
    registered(GaugeVec::new(opts, &["thread"]))
});
static QUEUE_DEPTH: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "saga_queue_depth",
        "What waits in a queue, or is taken of a pool",
    );
    registered(IntGaugeVec::new(opts, &["what"]))
});
static QUEUE_CAPACITY: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    registered(IntGaugeVec::new(
        Opts::new(
            "saga_queue_capacity",
            "How much of saga_queue_depth there can be",
        ),
        &["what"],
    ))
});

type Depth = Box<dyn Fn() -> usize + Send>;
static DEPTHS: Mutex<Vec<(&'static str, Depth)>> = Mutex::new(Vec::new());

/// Registers what was built.
///
/// # Panics
/// On a name used twice, or one that Prometheus does not allow: mistakes of the program.
pub fn registered<C: Collector + Clone + 'static>(built: prometheus::Result<C>) -> C {
    let collector = built.expect("a legal name");
    prometheus::register(Box::new(collector.clone())).expect("a name of its own");
    collector
}

/// A registered gauge.
///
/// # Panics
/// As [`registered`].
pub fn gauge(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help))
}

/// Registered counters that differ by one label.
///
/// # Panics
/// As [`registered`].
pub fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    registered(IntCounterVec::new(Opts::new(name, help), &[label]))
}

/// Makes every value appear from the start on: a rate of something that was never 0 can't be computed.
pub fn start() {
    let counts = [&*LEADER, &EPOCH, &OUTBOX_ROWS, &DEAD_LETTERS, &READY];
    counts.iter().for_each(|gauge| gauge.set(0));
    ASIDE.set(0);
    [
        &*OUTBOX_OLDEST,
        &CLOCK_AHEAD,
        &OLDEST_SNAPSHOT,
        &ASIDE_SECONDS,
    ]
    .iter()
    .for_each(|gauge| gauge.set(0.0));
    ["database", "kafka"].into_iter().for_each(polled);
    [&*PUBLISHED, &LOST_TAILS, &RECORDS, &BATCHES_TRIED]
        .iter()
        .for_each(|counter| counter.inc_by(0));
    for outcome in ["committed", "aborted", "fenced", "unknown"] {
        TRANSACTIONS.with_label_values(&[outcome]);
    }
    for outcome in ["exported", "dropped"] {
        SPANS.with_label_values(&[outcome]);
    }
    Blame::ALL
        .iter()
        .for_each(|blame| drop(RETRIES.with_label_values(&[blame.name()])));
    Cause::ALL
        .iter()
        .for_each(|cause| drop(PARKED.with_label_values(&[cause.name()])));
}

/// A request was answered.
pub fn answered(method: &str, route: &str, status: u16, after: Duration) {
    HTTP.with_label_values(&[method, route, &status.to_string()])
        .observe(after.as_secs_f64());
}

/// The collector has taken so many spans.
pub fn spans_exported(count: usize) {
    SPANS.with_label_values(&["exported"]).inc_by(count as u64);
}

/// So many spans were dropped: their queue was full, or the collector has not taken them.
pub fn spans_dropped(count: usize) {
    SPANS.with_label_values(&["dropped"]).inc_by(count as u64);
}

/// The relay published so many rows in a transaction.
pub fn published(rows: usize) {
    TRANSACTIONS.with_label_values(&["committed"]).inc();
    PUBLISHED.inc_by(rows as u64);
}

/// A Kafka transaction of the relay was not committed, or who knows.
pub fn transaction_failed(error: &Error) {
    let outcome = match error {
        Error::Kafka(error)
            if error
                .code()
                .is_some_and(|code| code.kind() == kafka::ErrorKind::Fenced) =>
        {
            "fenced"
        }
        Error::Kafka(error @ kafka::Error::Refused { .. })
            if error.kind() == kafka::ErrorKind::Fatal =>
        {
            "aborted"
        }
        Error::Kafka(_) => "unknown",
        // the commit was not asked for: the next epoch aborts it
        _ => "aborted",
    };
    TRANSACTIONS.with_label_values(&[outcome]).inc();
}

/// The values that `at` (`database`, `kafka`) holds were seen now.
pub fn polled(at: &str) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    LAST_POLL.with_label_values(&[at]).set(now);
}

/// A partition backs off.
pub fn retried(blame: Blame) {
    RETRIES.with_label_values(&[blame.name()]).inc();
}

/// A record was parked.
pub fn parked(cause: Cause) {
    PARKED.with_label_values(&[cause.name()]).inc();
}

/// Shows how much `what` holds, asked of `depth` whenever the metrics are read, and how much it can.
pub fn watch(what: &'static str, limit: usize, depth: impl Fn() -> usize + Send + 'static) {
    QUEUE_CAPACITY.with_label_values(&[what]).set(limit as i64);
    DEPTHS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((what, Box::new(depth)));
}

/// All of it in Prometheus's text format. `ready`: whether `/readyz` says so; `heartbeats`: the threads' last turns.
pub fn text(ready: bool, heartbeats: &[(String, Duration)]) -> String {
    READY.set(i64::from(ready));
    for (thread, age) in heartbeats {
        HEARTBEATS
            .with_label_values(&[thread])
            .set(age.as_secs_f64());
    }
    for (what, depth) in DEPTHS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        QUEUE_DEPTH.with_label_values(&[what]).set(depth() as i64);
    }
    TextEncoder::new()
        .encode_to_string(&prometheus::gather())
        .unwrap_or_default()
}
