//! What the figures are compared with: the limits of the same machine in the same run, and what is wanted. A missed target
//! is told and is no failure: machines are noisy.

use serde_json::{Value, json};

use crate::report::{Report, readable};

/// Section, run, figure.
type Key = (&'static str, &'static str, &'static str);

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

/// What is wanted of a figure.
const TARGETS: [(Key, Bound); 31] = [
    (("levels", "saturation", "settled/s"), AtLeast(2_500.0)),
    (("levels", "100/s", "POST to settled, p50"), AtMost(12.0)),
    (("levels", "100/s", "POST to settled, p99"), AtMost(40.0)),
    (
        ("levels", "half of it", "POST to settled, p99"),
        AtMost(150.0),
    ),
    (("levels", "saturation", "statements"), AtMost(0.2)),
    (("levels", "saturation", "memory of order"), AtMost(100.0)),
    (("levels", "saturation", "memory of payment"), AtMost(100.0)),
    (("levels", "saturation", "memory of stock"), AtMost(100.0)),
    (("relay", "drain", "rows/s"), AtLeast(40_000.0)),
    (("relay", "cold row", "commit to visible, p50"), AtMost(5.0)),
    (
        ("relay", "cold row", "commit to visible, p99"),
        AtMost(15.0),
    ),
    (("consumers", "payment", "records/s"), AtLeast(15_000.0)),
    (("consumers", "payment", "memory of payment"), AtMost(100.0)),
    (("consumers", "stock", "memory of stock"), AtMost(100.0)),
    (("consumers", "order", "memory of order"), AtMost(100.0)),
    (("recovery", "payment away", "not accepted"), AtMost(0.0)),
    (
        ("recovery", "payment away", "FAILED by DEADLINE"),
        AtMost(0.0),
    ),
    (
        ("recovery", "payment away", "until goodput is back"),
        AtMost(10.0),
    ),
    (
        ("restarts", "one after another", SETTLED_P99),
        AtMost(250.0),
    ),
    (
        ("restarts", "one after another", "POST to settled, max"),
        AtMost(500.0),
    ),
    (
        ("restarts", "one after another", "not accepted"),
        AtMost(0.0),
    ),
    (overload("1 times", SETTLED_P99), AtMost(HALF_OF_DEADLINE)),
    (overload("2 times", SETTLED_P99), AtMost(HALF_OF_DEADLINE)),
    (overload("4 times", SETTLED_P99), AtMost(HALF_OF_DEADLINE)),
    (
        overload("saturation", SETTLED_P99),
        AtMost(HALF_OF_DEADLINE),
    ),
    (overload("saturation", BY_DEADLINE), AtMost(0.0)),
    (overload("1 times", BY_DEADLINE), AtMost(0.0)),
    (overload("2 times", BY_DEADLINE), AtMost(0.0)),
    (overload("4 times", BY_DEADLINE), AtMost(0.0)),
    (overload("payment away", BY_DEADLINE), AtMost(0.0)),
    (
        overload("payment away", "until goodput is back"),
        AtMost(10.0),
    ),
];

/// A figure, its limit, and the least ratio that is wanted of them.
const LIMITS: [(Key, Key, Option<f64>); 23] = [
    (SETTLED, limit("pgbench, monolith"), Some(1.0)),
    (SETTLED, limit("pgbench -N"), None),
    (ACCEPTED, limit("place_orders in batches"), None),
    (ACCEPTED, limit("HTTP, a constant"), None),
    (ACCEPTED, limit("HTTP, a constant, by tiny_http"), None),
    (
        limit("HTTP, a constant, few connections"),
        limit("HTTP, a constant, by tiny_http"),
        None,
    ),
    (
        ("relay", "drain", "rows/s"),
        limit("own Kafka transactions, rows"),
        Some(0.5),
    ),
    (
        limit("own Kafka transactions, records"),
        limit("ProducerPerformance"),
        None,
    ),
    (HANDLED, limit("ConsumerPerformance"), None),
    (HANDLED, limit("pgbench, monolith"), None),
    (growth("2 instances"), growth("base"), None),
    (growth("3 instances"), growth("base"), None),
    (growth("10^6 orders"), growth("base"), None),
    (growth("10^5 users"), growth("base"), None),
    (growth("10 users"), growth("base"), None),
    (growth("1 user"), growth("base"), None),
    (
        ("levels", "saturation", WHILE_ORDERS_COME),
        ACCEPTED,
        Some(0.95),
    ),
    (
        overload("saturation", WHILE_ORDERS_COME),
        overload("saturation", "accepted/s"),
        Some(0.95),
    ),
    (
        overload("2 times", WHILE_ORDERS_COME),
        overload("2 times", "accepted/s"),
        Some(0.95),
    ),
    (
        overload("4 times", WHILE_ORDERS_COME),
        overload("4 times", "accepted/s"),
        Some(0.95),
    ),
    (
        overload("1 times", GOODPUT),
        overload("saturation", GOODPUT),
        None,
    ),
    (
        overload("2 times", GOODPUT),
        overload("saturation", GOODPUT),
        Some(0.9),
    ),
    (
        overload("4 times", GOODPUT),
        overload("saturation", GOODPUT),
        Some(0.9),
    ),
];
/// Milliseconds, of the deadline in `overload`.
const HALF_OF_DEADLINE: f64 = 4_000.0;
const SETTLED_P99: &str = "POST to settled, p99";
const BY_DEADLINE: &str = "FAILED by DEADLINE";
const WHILE_ORDERS_COME: &str = "settled/s while orders come";
const GOODPUT: &str = "goodput/s";
const fn overload(run: &'static str, figure: &'static str) -> Key {
    ("overload", run, figure)
}
const fn growth(case: &'static str) -> Key {
    ("growth", case, "settled/s")
}
const fn limit(figure: &'static str) -> Key {
    ("limits", "best", figure)
}
const SETTLED: Key = ("levels", "saturation", "settled/s");
const ACCEPTED: Key = ("levels", "saturation", "accepted/s");
const HANDLED: Key = ("consumers", "payment", "records/s");

/// A figure that was measured, beside what it is compared with.
pub struct Comparison {
    figure: String,
    value: f64,
    /// The limit and its value.
    limit: Option<(String, f64)>,
    /// What is wanted of the figure, or of its ratio to the limit.
    wanted: Option<Wanted>,
}

struct Wanted {
    words: String,
    reached: bool,
}

/// Every figure that was measured beside its limit and its target.
pub fn compare(report: &Report) -> Vec<Comparison> {
    let limits = LIMITS.iter().filter_map(|(figure, limit, least)| {
        let (value, most) = (report.value(*figure)?, report.value(*limit)?);
        let wanted = least.map(|least| AtLeast(least).of(value / most));
        Some(Comparison {
            figure: name(*figure),
            value,
            limit: Some((name(*limit), most)),
            wanted,
        })
    });
    let targets = TARGETS.iter().filter_map(|(figure, bound)| {
        let value = report.value(*figure)?;
        Some(Comparison {
            figure: name(*figure),
            value,
            limit: None,
            wanted: Some(bound.of(value)),
        })
    });
    limits.chain(targets).collect()
}

fn name((section, run, figure): Key) -> String {
    format!("{section}, {run}: {figure}")
}

impl Bound {
    fn of(&self, value: f64) -> Wanted {
        let (reached, words) = match self {
            AtLeast(least) => (value >= *least, format!("at least {least}")),
            AtMost(most) => (value <= *most, format!("at most {most}")),
        };
        Wanted { words, reached }
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<52} {:>9}", self.figure, readable(self.value))?;
        if let Some((limit, most)) = &self.limit {
            write!(
                f,
                "  {:>6} of {:>9}, {limit}",
                readable(self.value / most),
                readable(*most)
            )?;
        }
        let Some(Wanted { words, reached }) = &self.wanted else {
            return Ok(());
        };
        write!(
            f,
            "  {} (wanted: {words})",
            if *reached { "reached" } else { "missed" }
        )
    }
}

impl Comparison {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let limit = self
            .limit
            .as_ref()
            .map(|(limit, most)| json!({"figure": limit, "value": most}));
        let ratio = self.limit.as_ref().map(|(_, most)| self.value / most);
        let wanted = self
            .wanted
            .as_ref()
            .map(|Wanted { words, reached }| json!({"is": words, "reached": reached}));
        json!({"figure": self.figure, "value": self.value, "limit": limit, "ratio": ratio, "wanted": wanted})
    }
}
