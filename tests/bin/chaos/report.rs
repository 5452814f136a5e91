//! What is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::Check;
use crate::evidence::Evidence;
use crate::faults::Busy;
use crate::load::Heard;

/// Violations of one check that are printed; all are counted.
const SHOWN: usize = 5;

/// A fault as it strikes.
pub fn fault(number: usize, at: Duration, what: &str, busy: &Busy) {
    let Busy {
        waiting,
        open,
        in_flight,
    } = busy;
    println!(
        "{number:>3}  {:>6.1} s  {what:<70} {waiting:>5} rows waiting, {open:>2} transactions open, {in_flight:>2} posts in flight",
        at.as_secs_f64()
    );
}

/// What became of the orders.
pub fn orders(heard: &[Heard], found: &Evidence) {
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for order in &found.orders {
        let [status, payment, stock] = &order.statuses;
        *outcomes
            .entry(format!(
                "{status:<11} payment {payment:<11} stock {stock:<11} {}",
                order.reason
            ))
            .or_default() += 1;
    }
    let errors: usize = heard.iter().map(|heard| heard.errors).sum();
    let given_up = heard
        .iter()
        .filter(|heard| heard.given_up.is_some())
        .count();
    let answers: usize = heard.iter().map(|heard| heard.accepted.len()).sum();
    println!(
        "\n{} requests: {answers} answers 202, {errors} errors or lost answers, {given_up} given up and repeated at the end",
        heard.len()
    );
    println!("{} orders:", found.orders.len());
    outcomes
        .iter()
        .for_each(|(outcome, count)| println!("{count:>7}  {outcome}"));
}

/// Each check's count; answers how many violations there are.
pub fn checks(checks: &[Check]) -> usize {
    println!("\nchecked:");
    for Check {
        claim,
        counted,
        violations,
    } in checks
    {
        let verdict = if violations.is_empty() {
            "ok".to_string()
        } else {
            format!("{} VIOLATIONS", violations.len())
        };
        println!("{counted:>7}  {claim}: {verdict}");
        violations
            .iter()
            .take(SHOWN)
            .for_each(|violation| println!("         {violation}"));
        if violations.len() > SHOWN {
            println!("         … and {} more", violations.len() - SHOWN);
        }
    }
    checks.iter().map(|check| check.violations.len()).sum()
}
