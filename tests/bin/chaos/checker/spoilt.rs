//! Each check can fail: sound evidence of two orders, spoilt in one place.

use serde_json::json;

use super::*;
use crate::evidence::{Lost, Moment, Part};

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
    let heard = |order_id| Heard {
        accepted: vec![order_id],
        ..Heard::default()
    };
    let mut given_up = heard(UNDONE);
    given_up.given_up = Some(Some(UNDONE));
    Case {
        asked: vec![
            asked("a", "tea", End::Completed),
            asked("b", "empty", End::Failed),
        ],
        heard: vec![heard(DONE), given_up],
        put_in: PutIn {
            accounts: vec![("ann".into(), 10)],
            items: vec![("tea".into(), 5), ("empty".into(), 0)],
        },
        poisons: [true, false].map(poison).to_vec(),
        puts: vec![Put {
            service: "payment",
            value: 9,
            answered: true,
        }],
        found: found(),
    }
}

fn poison(sure: bool) -> Poison {
    Poison {
        service: "order",
        cause: "UNKNOWN_ORDER",
        ce_id: "x".into(),
        value: format!("sure {sure}"),
        sure,
    }
}

fn asked(key: &str, item: &str, end: End) -> Asked {
    let (key, user, item) = (key.into(), "ann".into(), item.into());
    Asked {
        key,
        user,
        item,
        price: 3,
        quantity: 2,
        end,
        gives_up: false,
        repeats: false,
    }
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
    let holding = |name: &str, left, taken| Holding {
        name: name.into(),
        left,
        taken,
    };
    let mut all = Evidence {
        orders: vec![
            order(DONE, "tea", ["COMPLETED", "COMPLETED", "COMPLETED"], ""),
            order(
                UNDONE,
                "empty",
                ["FAILED", "COMPENSATED", "FAILED"],
                "INSUFFICIENT_STOCK",
            ),
        ],
        keys: [("a".to_string(), DONE), ("b".to_string(), UNDONE)].into(),
        parts: [
            [
                (DONE, part("COMPLETED", "ann", 3)),
                (UNDONE, part("COMPENSATED", "ann", 3)),
            ]
            .into(),
            [
                (DONE, part("COMPLETED", "tea", 2)),
                (UNDONE, part("FAILED", "empty", 2)),
            ]
            .into(),
        ],
        parked: vec![Parked {
            service: "order",
            cause: "UNKNOWN_ORDER".into(),
            value: "sure true".into(),
            open: true,
            ..Parked::default()
        }],
        puts: vec![("payment", "ann".into(), 4, 9)],
        moves: vec![("payment-0 of paymentdb".into(), 0, 7)],
        holdings: [
            vec![holding("ann", 7, 3)],
            vec![holding("tea", 3, 2), holding("empty", 0, 0)],
        ],
        ..Evidence::default()
    };
    all.states.insert(
        DONE,
        states(&[
            "READY READY",
            "IN_PROGRESS IN_PROGRESS",
            "COMPLETED COMPLETED",
        ]),
    );
    all.states.insert(
        UNDONE,
        states(&[
            "READY READY",
            "COMPLETED READY",
            "COMPENSATING FAILED",
            "COMPENSATED FAILED",
        ]),
    );
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
        message(
            all,
            "order",
            (row, 0),
            order_id,
            "payment",
            "payment.requested",
        );
        message(all, "order", (row, 1), order_id, "stock", "stock.requested");
    }
    message(
        all,
        "order",
        (3, 0),
        UNDONE,
        "payment.compensation",
        "payment.compensation-requested",
    );
    message(
        all,
        "payment",
        (1, 0),
        DONE,
        "payment.success",
        "payment.completed",
    );
    message(
        all,
        "payment",
        (2, 0),
        UNDONE,
        "payment.success",
        "payment.completed",
    );
    message(
        all,
        "payment",
        (3, 0),
        UNDONE,
        "payment.success",
        "payment.compensated",
    );
    message(
        all,
        "stock",
        (1, 0),
        DONE,
        "stock.success",
        "stock.completed",
    );
    message(all, "stock", (2, 0), UNDONE, "stock.dlt", "stock.failed");
}

fn message(
    all: &mut Evidence,
    service: &'static str,
    place: (i64, usize),
    order_id: Uuid,
    topic: &str,
    ce_type: &str,
) {
    let number = all.records.len();
    let (id, ce_time) = (
        format!("message {number}"),
        format!("2026-01-01T00:00:0{}.000000Z", place.0),
    );
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
    all.stored.push(Stored {
        service,
        place,
        stored_at: ce_time,
        order_id,
        id,
        topic,
        ce_type,
        data,
    });
}

/// Rebuilt when its key stood for another one.
const SUPERSEDED: Uuid = Uuid::from_u128(3);
const AGAIN: Uuid = Uuid::from_u128(4);
/// Of version 7, drawn in the lost tail; nothing of it is left.
const GONE: Uuid = Uuid::from_u128((1_001_000 << 80) | (7 << 76) | (2 << 62));
const AGAIN_TOO: Uuid = Uuid::from_u128(5);
/// COMPLETED, and payment has decided otherwise since it came back older.
const UNPAID: Uuid = Uuid::from_u128(6);

/// The same after the databases of order and payment came back older.
fn older_case() -> Case {
    let mut case = case();
    case.put_in = PutIn {
        accounts: vec![("ann".into(), 19)],
        items: vec![("tea".into(), 11), ("empty".into(), 0)],
    };
    let of_key = [
        ("c", vec![SUPERSEDED, AGAIN]),
        ("d", vec![GONE, AGAIN_TOO]),
        ("e", vec![UNPAID]),
    ];
    for (key, accepted) in of_key {
        case.asked.push(asked(key, "tea", End::Completed));
        case.found
            .keys
            .insert(key.into(), accepted[accepted.len() - 1]);
        case.heard.push(Heard {
            accepted,
            ..Heard::default()
        });
    }
    older(&mut case.found);
    case
}

fn older(all: &mut Evidence) {
    let moment = |seconds: u32| Moment {
        text: format!("2026-01-01T00:00:0{seconds}.500000Z"),
        seconds: 994.5 + f64::from(seconds),
    };
    let lost = |service| Lost {
        service,
        since: moment(6),
        until: moment(7),
    };
    all.lost = ["order", "payment"].map(lost).to_vec();
    let outcomes = [
        (
            SUPERSEDED,
            ["FAILED", "COMPENSATED", "COMPENSATED"],
            ["COMPENSATED", "COMPENSATED"],
            "SUPERSEDED",
        ),
        (
            AGAIN,
            ["COMPLETED", "COMPLETED", "COMPLETED"],
            ["COMPLETED", "COMPLETED"],
            "",
        ),
        (
            AGAIN_TOO,
            ["COMPLETED", "COMPLETED", "COMPLETED"],
            ["COMPLETED", "COMPLETED"],
            "",
        ),
        (
            UNPAID,
            ["COMPLETED", "COMPLETED", "COMPLETED"],
            ["FAILED", "COMPLETED"],
            "",
        ),
    ];
    for (order_id, statuses, parts, reason) in outcomes {
        let (asked, statuses) = (
            ("ann".into(), "tea".into(), 3, 2),
            statuses.map(String::from),
        );
        all.states.insert(order_id, vec![statuses.clone()]);
        all.orders.push(OrderRow {
            order_id,
            asked,
            statuses,
            reason: reason.into(),
        });
        for (side, (status, name, amount)) in [(parts[0], "ann", 3), (parts[1], "tea", 2)]
            .into_iter()
            .enumerate()
        {
            let part = Part {
                status: status.into(),
                name: Some(name.into()),
                amount: Some(amount),
            };
            all.parts[side].insert(order_id, part);
        }
    }
    // DONE's, AGAIN's and AGAIN_TOO's are paid; UNPAID's is reserved, too
    (all.holdings[0][0].left, all.holdings[0][0].taken) = (10, 9);
    (all.holdings[1][0].left, all.holdings[1][0].taken) = (3, 8);
    let (cause, order_id) = ("CONTRADICTION".into(), Some(UNPAID));
    all.parked.push(Parked {
        service: "order",
        cause,
        order_id,
        open: true,
        ..Parked::default()
    });
    older_messages(all);
}

fn older_messages(all: &mut Evidence) {
    for (row, order_id) in [(7, SUPERSEDED), (4, AGAIN), (5, AGAIN_TOO), (6, UNPAID)] {
        message(
            all,
            "order",
            (row, 0),
            order_id,
            "payment",
            "payment.requested",
        );
        message(all, "order", (row, 1), order_id, "stock", "stock.requested");
    }
    message(
        all,
        "payment",
        (7, 1),
        UNPAID,
        "payment.success",
        "payment.completed",
    );
    // what was stored in the tail: the rebuilt order's requests, and payment's first word on UNPAID
    all.stored.retain(|stored| stored.place.0 != 7);
    message(
        all,
        "order",
        (8, 0),
        SUPERSEDED,
        "payment.compensation",
        "payment.compensation-requested",
    );
    message(
        all,
        "order",
        (9, 0),
        SUPERSEDED,
        "stock.compensation",
        "stock.compensation-requested",
    );
    for (side, first) in [("payment", 4), ("stock", 3)] {
        let service = if side == "payment" {
            "payment"
        } else {
            "stock"
        };
        let topic = format!("{side}.success");
        for (row, order_id) in [
            (first, SUPERSEDED),
            (first + 2, AGAIN),
            (first + 3, AGAIN_TOO),
        ] {
            let (row, verb) = (row + i64::from(row > 6), "completed");
            message(
                all,
                service,
                (row, 0),
                order_id,
                &topic,
                &format!("{side}.{verb}"),
            );
        }
        message(
            all,
            service,
            (9, 0),
            SUPERSEDED,
            &topic,
            &format!("{side}.compensated"),
        );
    }
    message(
        all,
        "payment",
        (9, 1),
        UNPAID,
        "payment.dlt",
        "payment.failed",
    );
    message(
        all,
        "stock",
        (9, 1),
        UNPAID,
        "stock.success",
        "stock.completed",
    );
    // published again by a relay that had forgotten
    let mut again = all
        .records
        .iter()
        .find(|seen| seen.key == Some(AGAIN.to_string()))
        .expect("just written")
        .clone();
    again.offset = 99;
    all.records.push(again);
}

/// The claims that do not hold.
fn broken(case: &Case) -> Vec<&'static str> {
    let mut checks = check(&case.asked, &case.heard, &case.put_in, &case.found);
    checks.extend([
        dead_letters(&case.poisons, &case.found),
        puts(&case.puts, &case.found),
    ]);
    checks
        .iter()
        .filter(|check| !check.violations.is_empty())
        .map(|check| check.claim)
        .collect()
}

#[test]
fn sound_evidence_passes() {
    assert_eq!(broken(&case()), [""; 0]);
    assert_eq!(broken(&older_case()), [""; 0]);
}

/// A part of the claim that must break, and what breaks it.
type Spoil = (&'static str, fn(&mut Case));

const SPOILS: [Spoil; 32] = [
    ("answered with 202 or 503", |case| {
        case.heard[0].unexpected.push("500".into())
    }),
    ("exists, as asked", |case| drop(case.found.orders.remove(0))),
    ("exists, as asked", |case| case.found.orders[0].asked.2 = 4),
    ("a key stands for one order", |case| {
        case.heard[0].accepted.push(UNDONE)
    }),
    ("a key stands for one order", |case| case.found.keys.clear()),
    ("a key stands for one order", |case| {
        case.found.orders.push(OrderRow::default())
    }),
    ("yields exactly that order", |case| {
        case.heard[1].given_up = Some(Some(DONE))
    }),
    ("yields exactly that order", |case| {
        case.heard[1].accepted.clear()
    }),
    ("is settled", |case| {
        case.found.orders[1].statuses[1] = "COMPENSATING".into()
    }),
    ("one that lacks any fails", |case| {
        case.asked[1].end = End::Completed
    }),
    ("what their orders say", |case| {
        drop(case.found.parts[0].remove(&DONE))
    }),
    ("what their orders say", |case| {
        case.found.parts[1].get_mut(&UNDONE).unwrap().status = "COMPLETED".into()
    }),
    ("money is conserved", |case| {
        case.found.holdings[0][0].left += 1
    }),
    ("stock is conserved", |case| {
        case.found.holdings[1][1] = Holding {
            name: "empty".into(),
            left: -1,
            taken: 1,
        }
    }),
    ("no state that it may not", |case| {
        case.found
            .states
            .get_mut(&DONE)
            .unwrap()
            .push(states(&["READY READY"])[0].clone())
    }),
    ("waits in an outbox", |case| {
        case.found.waiting.push("row 1".into())
    }),
    ("provoked dead letter", |case| {
        case.found.parked.push(case.found.parked[0].clone())
    }),
    ("provoked dead letter", |case| {
        case.found.parked[0].cause = "GIVEN_UP".into()
    }),
    ("provoked dead letter", |case| case.found.parked.clear()),
    ("a PUT that was answered", |case| case.found.puts.clear()),
    ("a PUT that was answered", |case| {
        case.found.puts.push(case.found.puts[0].clone())
    }),
    ("a PUT that was answered", |case| case.found.puts[0].3 = 8),
    ("exactly once", |case| drop(case.found.records.remove(3))),
    ("exactly once", |case| {
        case.found.records.push(case.found.records[3].clone())
    }),
    ("exactly once", |case| {
        case.found.records[0].data = json!({})
    }),
    ("was stored", |case| {
        case.found.records[4].ce_id = "another".into()
    }),
    ("rise with", |case| {
        case.found.stored[4].stored_at = "2026-01-01T00:00:00.000000Z".into()
    }),
    ("in stored order", |case| case.found.records[5].offset = 9),
    ("never goes back", |case| {
        case.found
            .moves
            .push(("payment-0 of paymentdb".into(), 7, 5))
    }),
    ("the table allows", |case| drop(case.found.records.pop())),
    ("the table allows", |case| {
        case.found.records[7].data["undone"] = false.into()
    }),
    ("the table allows", |case| {
        case.found.orders[0].statuses[0] = "FAILED".into()
    }),
];

#[test]
fn each_check_fails_when_what_it_claims_does_not_hold() {
    for (number, (claim, spoil)) in SPOILS.iter().enumerate() {
        let mut case = case();
        spoil(&mut case);
        let broken = broken(&case);
        assert!(
            broken.iter().any(|broken| broken.contains(claim)),
            "{number}: {claim:?} not among {broken:?}"
        );
    }
}

/// The same with databases that came back older: what that excuses, and nothing beside it.
const OLDER_SPOILS: [Spoil; 24] = [
    ("exists, as asked", |case| {
        case.heard[3].accepted[0] = Uuid::from_u128((900_000 << 80) | (7 << 76) | (2 << 62))
    }),
    ("exists, as asked", |case| {
        case.heard[3].accepted[0] = Uuid::from_u128((1_003_000 << 80) | (7 << 76) | (2 << 62))
    }),
    ("exists, as asked", |case| {
        message(
            &mut case.found,
            "order",
            (9, 9),
            GONE,
            "payment",
            "payment.requested",
        )
    }),
    ("exists, as asked", |case| {
        case.found.lost.retain(|lost| lost.service != "order")
    }),
    ("a key stands for one order", |case| {
        case.heard[3].accepted.truncate(1)
    }),
    ("a key stands for one order", |case| {
        case.found.orders[2].reason = "DEADLINE".into()
    }),
    ("a key stands for one order", |case| {
        *case.found.keys.get_mut("c").unwrap() = SUPERSEDED
    }),
    ("a key stands for one order", |case| {
        let order = &mut case.found.orders[3];
        (order.statuses[0], order.reason) = ("FAILED".into(), "SUPERSEDED".into());
    }),
    ("nothing is kept", |case| {
        case.found.parts[0].get_mut(&SUPERSEDED).unwrap().status = "COMPLETED".into()
    }),
    ("nothing is kept", |case| {
        drop(case.found.parts[1].insert(GONE, case.found.parts[1][&DONE].clone()))
    }),
    ("nothing is kept", |case| {
        case.found.orders[3].statuses[0] = "FAILED".into()
    }),
    ("without a dead letter about it", |case| {
        case.found.parked[1].open = false
    }),
    ("without a dead letter about it", |case| {
        case.found.parked[1].cause = "UNKNOWN_ORDER".into()
    }),
    ("without a dead letter about it", |case| {
        case.found.parked[1].order_id = Some(AGAIN)
    }),
    ("without a dead letter about it", |case| {
        drop(case.found.parts[1].remove(&DONE))
    }),
    ("what their orders say", |case| {
        case.found.parts[0].get_mut(&UNPAID).unwrap().amount = Some(4)
    }),
    ("what their orders say", |case| case.found.lost.clear()),
    ("exactly once", |case| {
        let again = case.found.records.last().unwrap().clone();
        case.found.records.push(again);
    }),
    ("exactly once", |case| {
        case.found.records.last_mut().unwrap().data = json!({})
    }),
    ("exactly once", |case| {
        case.found.lost.retain(|lost| lost.service != "order")
    }),
    ("was stored", |case| {
        case.found.lost[0].until.text = "2026-01-01T00:00:06.900000Z".into()
    }),
    ("in stored order", |case| {
        case.found.lost[0].service = "stock"
    }),
    ("the table allows", |case| {
        drop(case.found.parts[0].insert(AGAIN, Part::default()))
    }),
    ("provoked dead letter", |case| {
        case.found.parked[1].order_id = Some(DONE)
    }),
];

#[test]
fn an_older_database_excuses_nothing_but_its_tail() {
    for (number, (claim, spoil)) in OLDER_SPOILS.iter().enumerate() {
        let mut case = older_case();
        spoil(&mut case);
        let broken = broken(&case);
        assert!(
            broken.iter().any(|broken| broken.contains(claim)),
            "{number}: {claim:?} not among {broken:?}"
        );
    }
}

#[test]
fn a_request_that_was_refused_and_left_something_is_seen() {
    let mut case = case();
    case.asked.push(asked("r", "tea", End::Completed));
    case.heard.push(Heard {
        errors: 2,
        refused: 2,
        ..Heard::default()
    });
    assert_eq!(broken(&case), [""; 0]);
    case.found.records[0]
        .headers
        .push(("idempotency_key".into(), "r".into()));
    assert_eq!(
        broken(&case),
        ["a request that was only ever refused left nothing (I10)"]
    );
    case.found.records[0].headers.clear();
    case.found.keys.insert("r".into(), DONE);
    assert_eq!(
        broken(&case),
        ["a request that was only ever refused left nothing (I10)"]
    );
    let given_up = &mut case.heard[1];
    given_up.was_refused = true;
    case.found.keys.remove("r");
    assert_eq!(
        broken(&case),
        ["a request that got an error left nothing or, repeated, yields exactly that order"]
    );
}

#[test]
fn an_order_that_fails_by_its_deadline_is_seen() {
    let mut case = case();
    assert_eq!(deadlines(&case.found).violations, [""; 0]);
    case.found.orders[1].reason = "DEADLINE".into();
    assert_eq!(deadlines(&case.found).violations.len(), 1);
}

#[test]
fn a_failover_that_lost_something_is_seen() {
    let log = |line: &str| {
        vec![(
            "order-1".to_string(),
            format!("leading: producer 3\n{line}\n"),
        )]
    };
    let sound = "the database was promoted (timeline 2)";
    assert_eq!(failovers(1, &log(sound)).violations, [""; 0]);
    let behind = "was promoted (timeline 2) without the tail of the old primary (timeline 1)";
    assert_eq!(
        failovers(1, &log(behind)).violations,
        [format!("order-1: {behind}")]
    );
}

#[test]
fn a_message_without_its_twin_is_seen() {
    let mut seen = case().found.records;
    assert_eq!(torn(&seen), [""; 0]);
    seen.retain(|seen| seen.ce_type != "stock.requested" || seen.key != Some(DONE.to_string()));
    assert_eq!(
        torn(&seen),
        [format!("only one message of order {DONE} is there")]
    );
}
