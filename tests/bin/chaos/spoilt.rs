//! Each check can fail: sound evidence of two orders, spoilt in one place.

use serde_json::json;

use super::*;
use crate::evidence::Part;

/// All that the checker gets.
struct Case {
    asked: Vec<Asked>,
    heard: Vec<Heard>,
    put_in: PutIn,
    poisons: Vec<Poison>,
    puts: Vec<Put>,
    found: Evidence,
}

const DONE: Uuid = Uuid::from_u128(1);
/// Paid, then given back: there was no stock.
const UNDONE: Uuid = Uuid::from_u128(2);

fn case() -> Case {
    let heard = |order_id| Heard { accepted: vec![order_id], ..Heard::default() };
    let mut given_up = heard(UNDONE);
    given_up.given_up = Some(Some(UNDONE));
    Case {
        asked: vec![asked("a", "tea", End::Completed), asked("b", "empty", End::Failed)],
        heard: vec![heard(DONE), given_up],
        put_in: PutIn { accounts: vec![("ann".into(), 10)], items: vec![("tea".into(), 5), ("empty".into(), 0)] },
        poisons: [true, false].map(poison).to_vec(),
        puts: vec![Put { service: "payment", value: 9, answered: true }],
        found: found(),
    }
}

fn poison(sure: bool) -> Poison {
    Poison { service: "order", cause: "UNKNOWN_ORDER", ce_id: "x".into(), value: format!("sure {sure}"), sure }
}

fn asked(key: &str, item: &str, end: End) -> Asked {
    let (key, user, item) = (key.into(), "ann".into(), item.into());
    Asked { key, user, item, price: 3, quantity: 2, end, gives_up: false, repeats: false }
}

fn found() -> Evidence {
    let order = |order_id, item: &str, statuses: [&str; 3], reason: &str| OrderRow {
        order_id,
        asked: ("ann".into(), item.into(), 3, 2),
        statuses: statuses.map(String::from),
        reason: reason.into(),
    };
    let part = |status: &str, name: &str, amount| Part {
        status: status.into(),
        name: Some(name.into()),
        amount: Some(amount),
    };
    let holding = |name: &str, left, taken| Holding { name: name.into(), left, taken };
    let mut all = Evidence {
        orders: vec![
            order(DONE, "tea", ["COMPLETED", "COMPLETED", "COMPLETED"], ""),
            order(UNDONE, "empty", ["FAILED", "COMPENSATED", "FAILED"], "INSUFFICIENT_STOCK"),
        ],
        keys: [("a".to_string(), DONE), ("b".to_string(), UNDONE)].into(),
        parts: [
            [(DONE, part("COMPLETED", "ann", 3)), (UNDONE, part("COMPENSATED", "ann", 3))].into(),
            [(DONE, part("COMPLETED", "tea", 2)), (UNDONE, part("FAILED", "empty", 2))].into(),
        ],
        parked: vec![Parked {
            service: "order",
            cause: "UNKNOWN_ORDER".into(),
            value: "sure true".into(),
            story: String::new(),
        }],
        puts: vec![("payment", "ann".into(), 4, 9)],
        moves: vec![("payment-0 of paymentdb".into(), 0, 7)],
        holdings: [vec![holding("ann", 7, 3)], vec![holding("tea", 3, 2), holding("empty", 0, 0)]],
        ..Evidence::default()
    };
    all.states.insert(DONE, states(&["READY READY", "IN_PROGRESS IN_PROGRESS", "COMPLETED COMPLETED"]));
    all.states.insert(UNDONE, states(&["READY READY", "COMPLETED READY", "COMPENSATING FAILED", "COMPENSATED FAILED"]));
    messages(&mut all);
    all
}

fn states(sides: &[&str]) -> Vec<[String; 3]> {
    let state = |sides: &&str| {
        let (payment, stock) = sides.split_once(' ').expect("two");
        let order = match (payment, stock) {
            ("COMPLETED", "COMPLETED") => "COMPLETED",
            (_, "FAILED") => "FAILED",
            _ => "IN_PROGRESS",
        };
        [order, payment, stock].map(String::from)
    };
    sides.iter().map(state).collect()
}

fn messages(all: &mut Evidence) {
    for (row, order_id) in [(1, DONE), (2, UNDONE)] {
        message(all, "order", (row, 0), order_id, "payment", "payment.requested");
        message(all, "order", (row, 1), order_id, "stock", "stock.requested");
    }
    message(all, "order", (3, 0), UNDONE, "payment.compensation", "payment.compensation-requested");
    message(all, "payment", (1, 0), DONE, "payment.success", "payment.completed");
    message(all, "payment", (2, 0), UNDONE, "payment.success", "payment.completed");
    message(all, "payment", (3, 0), UNDONE, "payment.success", "payment.compensated");
    message(all, "stock", (1, 0), DONE, "stock.success", "stock.completed");
    message(all, "stock", (2, 0), UNDONE, "stock.dlt", "stock.failed");
}

fn message(all: &mut Evidence, service: &'static str, place: (i64, usize), order_id: Uuid, topic: &str, ce_type: &str) {
    let number = all.stored.len();
    let (id, ce_time) = (format!("message {number}"), format!("2026-01-01T00:00:0{}.000000Z", place.0));
    let data = json!({"orderId": order_id, "undone": ce_type.ends_with("compensated")});
    let (topic, ce_type) = (topic.to_string(), ce_type.to_string());
    all.records.push(Seen {
        topic: topic.clone(),
        partition: 0,
        offset: number as i64,
        timestamp: 0,
        key: Some(order_id.to_string()),
        ce_type: ce_type.clone(),
        ce_id: id.clone(),
        ce_time: ce_time.clone(),
        headers: vec![],
        data: data.clone(),
    });
    all.stored.push(Stored { service, place, stored_at: ce_time, order_id, id, topic, ce_type, data });
}

/// The claims that do not hold.
fn broken(case: &Case) -> Vec<&'static str> {
    let mut checks = check(&case.asked, &case.heard, &case.put_in, &case.found);
    checks.extend([dead_letters(&case.poisons, &case.found), puts(&case.puts, &case.found)]);
    checks.iter().filter(|check| !check.violations.is_empty()).map(|check| check.claim).collect()
}

#[test]
fn sound_evidence_passes() {
    assert_eq!(broken(&case()), [""; 0]);
}

/// A part of the claim that must break, and what breaks it.
type Spoil = (&'static str, fn(&mut Case));

const SPOILS: [Spoil; 32] = [
    ("answered with 202 or 503", |case| case.heard[0].unexpected.push("500".into())),
    ("exists, as asked", |case| drop(case.found.orders.remove(0))),
    ("exists, as asked", |case| case.found.orders[0].asked.2 = 4),
    ("a key stands for one order", |case| case.heard[0].accepted.push(UNDONE)),
    ("a key stands for one order", |case| case.found.keys.clear()),
    ("a key stands for one order", |case| case.found.orders.push(OrderRow::default())),
    ("yields exactly that order", |case| case.heard[1].given_up = Some(Some(DONE))),
    ("yields exactly that order", |case| case.heard[1].accepted.clear()),
    ("is settled", |case| case.found.orders[1].statuses[1] = "COMPENSATING".into()),
    ("one that lacks any fails", |case| case.asked[1].end = End::Completed),
    ("what their orders say", |case| drop(case.found.parts[0].remove(&DONE))),
    ("what their orders say", |case| case.found.parts[1].get_mut(&UNDONE).unwrap().status = "COMPLETED".into()),
    ("money is conserved", |case| case.found.holdings[0][0].left += 1),
    ("stock is conserved", |case| case.found.holdings[1][1] = Holding { name: "empty".into(), left: -1, taken: 1 }),
    ("no state that it may not", |case| {
        case.found.states.get_mut(&DONE).unwrap().push(states(&["READY READY"])[0].clone())
    }),
    ("waits in an outbox", |case| case.found.waiting.push("row 1".into())),
    ("provoked dead letter", |case| case.found.parked.push(case.found.parked[0].clone())),
    ("provoked dead letter", |case| case.found.parked[0].cause = "GIVEN_UP".into()),
    ("provoked dead letter", |case| case.found.parked.clear()),
    ("a PUT that was answered", |case| case.found.puts.clear()),
    ("a PUT that was answered", |case| case.found.puts.push(case.found.puts[0].clone())),
    ("a PUT that was answered", |case| case.found.puts[0].3 = 8),
    ("exactly once", |case| drop(case.found.records.remove(3))),
    ("exactly once", |case| case.found.records.push(case.found.records[3].clone())),
    ("exactly once", |case| case.found.records[0].data = json!({})),
    ("was stored", |case| case.found.records[4].ce_id = "another".into()),
    ("rise with", |case| case.found.stored[4].stored_at = "2026-01-01T00:00:00.000000Z".into()),
    ("in stored order", |case| case.found.records[5].offset = 9),
    ("never goes back", |case| case.found.moves.push(("payment-0 of paymentdb".into(), 7, 5))),
    ("the table allows", |case| drop(case.found.records.pop())),
    ("the table allows", |case| case.found.records[7].data["undone"] = false.into()),
    ("the table allows", |case| case.found.orders[0].statuses[0] = "FAILED".into()),
];

#[test]
fn each_check_fails_when_what_it_claims_does_not_hold() {
    for (number, (claim, spoil)) in SPOILS.iter().enumerate() {
        let mut case = case();
        spoil(&mut case);
        let broken = broken(&case);
        assert!(broken.iter().any(|broken| broken.contains(claim)), "{number}: {claim:?} not among {broken:?}");
    }
}

#[test]
fn a_message_without_its_twin_is_seen() {
    let mut seen = case().found.records;
    assert_eq!(torn(&seen), [""; 0]);
    seen.retain(|seen| seen.ce_type != "stock.requested" || seen.key != Some(DONE.to_string()));
    assert_eq!(torn(&seen), [format!("only one message of order {DONE} is there")]);
}
