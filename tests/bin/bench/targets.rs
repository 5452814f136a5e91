//! What the figures are compared with: the limits of the same machine in the same run, and what is wanted. A missed target
//! is told and is no failure: machines are noisy.

use crate::report::{Report, readable};

/// Section, run, figure.
type Key = (&'static str, &'static str, &'static str);

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

/// What is wanted of a figure.
const TARGETS: [(Key, Bound); 15] = [
    (("levels", "saturation", "settled/s"), AtLeast(2_500.0)),
    (("levels", "100/s", "POST to settled, p50"), AtMost(12.0)),
    (("levels", "100/s", "POST to settled, p99"), AtMost(40.0)),
    (("levels", "half of it", "POST to settled, p99"), AtMost(150.0)),
    (("levels", "saturation", "statements"), AtMost(0.2)),
    (("levels", "saturation", "memory of order"), AtMost(100.0)),
    (("levels", "saturation", "memory of payment"), AtMost(100.0)),
    (("levels", "saturation", "memory of stock"), AtMost(100.0)),
    (("relay", "drain", "rows/s"), AtLeast(40_000.0)),
    (("relay", "cold row", "commit to visible, p50"), AtMost(5.0)),
    (("relay", "cold row", "commit to visible, p99"), AtMost(15.0)),
    (("consumers", "payment", "records/s"), AtLeast(15_000.0)),
    (("consumers", "payment", "memory of payment"), AtMost(100.0)),
    (("consumers", "stock", "memory of stock"), AtMost(100.0)),
    (("consumers", "order", "memory of order"), AtMost(100.0)),
];

/// A figure, its limit, and the least ratio that is wanted of them.
const LIMITS: [(Key, Key, Option<f64>); 14] = [
    (SETTLED, limit("pgbench, monolith"), Some(1.0)),
    (SETTLED, limit("pgbench -N"), None),
    (ACCEPTED, limit("place_orders in batches"), None),
    (ACCEPTED, limit("HTTP, a constant"), None),
    (("relay", "drain", "rows/s"), limit("own Kafka transactions, rows"), Some(0.5)),
    (limit("own Kafka transactions, records"), limit("ProducerPerformance"), None),
    (HANDLED, limit("ConsumerPerformance"), None),
    (HANDLED, limit("pgbench, monolith"), None),
    (growth("2 instances"), growth("base"), None),
    (growth("3 instances"), growth("base"), None),
    (growth("10^6 orders"), growth("base"), None),
    (growth("10^5 users"), growth("base"), None),
    (growth("10 users"), growth("base"), None),
    (growth("1 user"), growth("base"), None),
];
const fn growth(case: &'static str) -> Key {
    ("growth", case, "settled/s")
}
const fn limit(figure: &'static str) -> Key {
    ("limits", "best", figure)
}
const SETTLED: Key = ("levels", "saturation", "settled/s");
const ACCEPTED: Key = ("levels", "saturation", "accepted/s");
const HANDLED: Key = ("consumers", "payment", "records/s");

/// Prints every figure that was measured beside its limit and its target.
pub fn print(report: &Report) {
    let ratios = LIMITS.iter().filter_map(|(figure, limit, least)| {
        let (value, most) = (report.value(*figure)?, report.value(*limit)?);
        let wanted = least.map_or("".into(), |least| wanted(value / most, &AtLeast(least)));
        let (value, ratio) = (readable(value), readable(value / most));
        Some(format!(
            "{:<52} {value:>9} is {ratio:>6} of {:>9}, {}  {wanted}",
            name(*figure),
            readable(most),
            name(*limit)
        ))
    });
    let ratios: Vec<String> = ratios.collect();
    let targets = TARGETS.iter().filter_map(|(figure, bound)| {
        let value = report.value(*figure)?;
        Some(format!("{:<52} {:>9}  {}", name(*figure), readable(value), wanted(value, bound)))
    });
    let targets: Vec<String> = targets.collect();
    for (title, lines) in [("beside the limits of this machine", ratios), ("beside the targets", targets)] {
        if !lines.is_empty() {
            println!("\n{title}\n{}", lines.join("\n"));
        }
    }
}

fn name((section, run, figure): Key) -> String {
    format!("{section}, {run}: {figure}")
}

fn wanted(value: f64, bound: &Bound) -> String {
    let (reached, words, bound) = match bound {
        AtLeast(least) => (value >= *least, "at least", least),
        AtMost(most) => (value <= *most, "at most", most),
    };
    let verdict = if reached { "reached" } else { "missed" };
    format!("{verdict} (wanted: {words} {bound})")
}
