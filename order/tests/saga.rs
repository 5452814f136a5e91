//! The saga function, exhaustively: every reachable state x everything that can happen. What is expected is typed in.
//!
//! 1. the whole function as a table of 28 states x 9 events, and what is made of the answers that it makes nothing of as a
//!    table of 28 states x 6 answers;
//! 2. what holds in every reachable state and of every step;
//! 3. the eight rows of the table in ARCHITECTURE.md, by every order of arrival, with duplicates and late events.
//!
//! A saga is written as two letters, payment then stock: `R` READY, `I` IN_PROGRESS, `C` COMPLETED, `F` FAILED,
//! `X` COMPENSATING, `Z` COMPENSATED. `+p`, `+s`, `+ps`: who is asked to compensate.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use order::order::{Bearing, OrderStatus, Saga, SagaEvent, SideStatus, Transition};
use shared::event::{Reason, Service, Side};

// ---- the language of the tables

/// The columns of [`TABLE`].
const SAGA_EVENTS: [&str; 9] = [
    "pub",
    "p ok",
    "p no",
    "p undone",
    "s ok",
    "s no",
    "s undone",
    "deadline",
    "unconfirmed",
];

fn saga_event(name: &str) -> SagaEvent {
    let payment = Reason {
        code: "INSUFFICIENT_BALANCE".into(),
        from: "payment".into(),
    };
    let stock = Reason {
        code: "INSUFFICIENT_STOCK".into(),
        from: "stock".into(),
    };
    match name {
        "pub" => SagaEvent::Published,
        "p ok" => SagaEvent::Completed(Side::Payment),
        "p no" => SagaEvent::Failed(Side::Payment, payment),
        "p undone" => SagaEvent::Compensated(Side::Payment),
        "s ok" => SagaEvent::Completed(Side::Stock),
        "s no" => SagaEvent::Failed(Side::Stock, stock),
        "s undone" => SagaEvent::Compensated(Side::Stock),
        "deadline" => SagaEvent::DeadlinePassed,
        "unconfirmed" => SagaEvent::Unconfirmed,
        other => panic!("no event {other}"),
    }
}

fn letter(side: SideStatus) -> char {
    match side {
        SideStatus::Ready => 'R',
        SideStatus::InProgress => 'I',
        SideStatus::Completed => 'C',
        SideStatus::Failed => 'F',
        SideStatus::Compensating => 'X',
        SideStatus::Compensated => 'Z',
    }
}

fn sides(saga: &Saga) -> String {
    [letter(saga.payment), letter(saga.stock)].iter().collect()
}

fn asked(transition: &Transition) -> String {
    let mut letters: Vec<char> = transition
        .compensate
        .iter()
        .map(|side| if *side == Side::Payment { 'p' } else { 's' })
        .collect();
    letters.sort();
    if letters.is_empty() {
        String::new()
    } else {
        format!("+{}", letters.iter().collect::<String>())
    }
}

/// A step in the tables' words; `.` if it changes nothing and sends nothing.
fn in_words(before: &Saga, transition: &Transition) -> String {
    let in_words = format!("{}{}", sides(&transition.saga), asked(transition));
    if transition.saga == *before && transition.compensate.is_empty() {
        ".".into()
    } else {
        in_words
    }
}

/// Those of [`SAGA_EVENTS`] that are a participant's answer.
const ANSWERS: [&str; 6] = ["p ok", "p no", "p undone", "s ok", "s no", "s undone"];

/// What comes of something that happens for the first time, for all that order knows: a database may have come back older.
fn transition(saga: &Saga, name: &str) -> Option<Transition> {
    let saga_event = saga_event(name);
    match saga.bearing(&saga_event) {
        Bearing::Contradiction => saga.repair(&saga_event),
        _ => Some(saga.transition(&saga_event)),
    }
}

/// All that can be reached from an order that is new, rebuilt, or given back, whatever happens and however often, with every
/// reason and whatever database comes back older.
fn reachable() -> Vec<Saga> {
    let lost = Saga::withdrawn(Reason::new("LOST", Service::Order));
    assert_eq!(asked(&lost), "+ps");
    let mut found = vec![Saga::new(), Saga::rebuilt(), lost.saga];
    let mut seen: HashSet<Saga> = found.iter().cloned().collect();
    let mut next = 0;
    while next < found.len() {
        for name in SAGA_EVENTS {
            let Some(Transition { saga, .. }) = transition(&found[next], name) else {
                continue;
            };
            if seen.insert(saga.clone()) {
                found.push(saga);
            }
        }
        next += 1;
    }
    found
}

// ---- 1. the whole function

/// State and order; then what each event makes of it. The last eight can be reached by repairs only.
#[rustfmt::skip]
const TABLE: [(&str, &str, [&str; 9]); 28] = [
    //                     pub   p ok    p no    undone  s ok    s no    undone  deadline unconfirmed
    ("RR", "IN_PROGRESS", ["II", "CR",   "FR",   ".",    "RC",   "RF",   ".",    ".",     "."]),
    ("RC", "IN_PROGRESS", ["IC", "CC",   "FX+s", ".",    ".",    ".",    ".",    ".",     "."]),
    ("RF", "FAILED",      ["IF", "XF+p", "FF",   ".",    ".",    ".",    ".",    ".",     "."]),
    ("CR", "IN_PROGRESS", ["CI", ".",    ".",    ".",    "CC",   "XF+p", ".",    ".",     "."]),
    ("FR", "FAILED",      ["FI", ".",    ".",    ".",    "FX+s", "FF",   ".",    ".",     "."]),
    ("II", "IN_PROGRESS", [".",  "CI",   "FI",   ".",    "IC",   "IF",   ".",    "XX+ps", "."]),
    ("IC", "IN_PROGRESS", [".",  "CC",   "FX+s", ".",    ".",    ".",    ".",    "XX+ps", "."]),
    ("IF", "FAILED",      [".",  "XF+p", "FF",   ".",    ".",    ".",    ".",    "XF+p",  "."]),
    ("CI", "IN_PROGRESS", [".",  ".",    ".",    ".",    "CC",   "XF+p", ".",    "XX+ps", "."]),
    ("FI", "FAILED",      [".",  ".",    ".",    ".",    "FX+s", "FF",   ".",    "FX+s",  "."]),
    ("CC", "COMPLETED",   [".",  ".",    ".",    ".",    ".",    ".",    ".",    ".",     "."]),
    ("FF", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    ".",    ".",     "."]),
    ("FX", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    "FZ",   ".",     "FX+s"]),
    ("XF", "FAILED",      [".",  ".",    ".",    "ZF",   ".",    ".",    ".",    ".",     "XF+p"]),
    ("FZ", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    ".",    ".",     "."]),
    ("ZF", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    ".",    ".",     "."]),
    ("XX", "FAILED",      [".",  ".",    ".",    "ZX",   ".",    ".",    "XZ",   ".",     "XX+ps"]),
    ("XZ", "FAILED",      [".",  ".",    ".",    "ZZ",   ".",    ".",    ".",    ".",     "XZ+p"]),
    ("ZX", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    "ZZ",   ".",     "ZX+s"]),
    ("ZZ", "FAILED",      [".",  ".",    ".",    ".",    ".",    ".",    ".",    ".",     "."]),
    ("XR", "FAILED",      ["XI", ".",    ".",    "ZR",   "XX+s", "XF",   ".",    ".",     "XR+p"]),
    ("RX", "FAILED",      ["IX", "XX+p", "FX",   ".",    ".",    ".",    "RZ",   ".",     "RX+s"]),
    ("XI", "FAILED",      [".",  ".",    ".",    "ZI",   "XX+s", "XF",   ".",    "XX+s",  "XI+p"]),
    ("IX", "FAILED",      [".",  "XX+p", "FX",   ".",    ".",    ".",    "IZ",   "XX+p",  "IX+s"]),
    ("ZR", "FAILED",      ["ZI", ".",    ".",    ".",    "ZX+s", "ZF",   ".",    ".",     "."]),
    ("RZ", "FAILED",      ["IZ", "XZ+p", "FZ",   ".",    ".",    ".",    ".",    ".",     "."]),
    ("ZI", "FAILED",      [".",  ".",    ".",    ".",    "ZX+s", "ZF",   ".",    "ZX+s",  "."]),
    ("IZ", "FAILED",      [".",  "XZ+p", "FZ",   ".",    ".",    ".",    ".",    "XZ+p",  "."]),
];

/// What is made of an answer under a message id that was not handled before, where the table above says `.`: `.` nothing; `late`:
/// nothing, and its id is kept; `park`: it is left to a person; else the repair. `-`: it is no answer that changes nothing.
#[rustfmt::skip]
const REPAIRS: [(&str, [&str; 6]); 28] = [
    //      p ok     p no    undone   s ok     s no    undone
    ("RR", ["-",     "-",    "XR+p",  "-",     "-",    "RX+s"]),
    ("RC", ["-",     "-",    "XX+ps", "late",  "RX+s", "RX+s"]),
    ("RF", ["-",     "-",    "XF+p",  "RF+s",  ".",    "."]),
    ("CR", ["late",  "XR+p", "XR+p",  "-",     "-",    "XX+ps"]),
    ("FR", ["FR+p",  ".",    ".",     "-",     "-",    "FX+s"]),
    ("II", ["-",     "-",    "XI+p",  "-",     "-",    "IX+s"]),
    ("IC", ["-",     "-",    "XX+ps", "late",  "IX+s", "IX+s"]),
    ("IF", ["-",     "-",    "XF+p",  "IF+s",  ".",    "."]),
    ("CI", ["late",  "XI+p", "XI+p",  "-",     "-",    "XX+ps"]),
    ("FI", ["FI+p",  ".",    ".",     "-",     "-",    "FX+s"]),
    ("CC", [".",     "park", "park",  ".",     "park", "park"]),
    ("FF", ["FF+p",  ".",    ".",     "FF+s",  ".",    "."]),
    ("FX", ["FX+p",  ".",    ".",     "late",  ".",    "-"]),
    ("XF", ["late",  ".",    "-",     "XF+s",  ".",    "."]),
    ("FZ", ["FZ+p",  ".",    ".",     "FZ+s",  ".",    "."]),
    ("ZF", ["ZF+p",  ".",    ".",     "ZF+s",  ".",    "."]),
    ("XX", ["late",  ".",    "-",     "late",  ".",    "-"]),
    ("XZ", ["late",  ".",    "-",     "XZ+s",  ".",    "."]),
    ("ZX", ["ZX+p",  ".",    ".",     "late",  ".",    "-"]),
    ("ZZ", ["ZZ+p",  ".",    ".",     "ZZ+s",  ".",    "."]),
    ("XR", ["late",  ".",    "-",     "-",     "-",    "XX+s"]),
    ("RX", ["-",     "-",    "XX+p",  "late",  ".",    "-"]),
    ("XI", ["late",  ".",    "-",     "-",     "-",    "XX+s"]),
    ("IX", ["-",     "-",    "XX+p",  "late",  ".",    "-"]),
    ("ZR", ["ZR+p",  ".",    ".",     "-",     "-",    "ZX+s"]),
    ("RZ", ["-",     "-",    "XZ+p",  "RZ+s",  ".",    "."]),
    ("ZI", ["ZI+p",  ".",    ".",     "-",     "-",    "ZX+s"]),
    ("IZ", ["-",     "-",    "XZ+p",  "IZ+s",  ".",    "."]),
];

#[test]
fn exactly_the_states_of_the_table_are_reachable() {
    let found: BTreeSet<String> = reachable().iter().map(sides).collect();
    let typed: BTreeSet<String> = TABLE.iter().map(|(state, ..)| state.to_string()).collect();
    assert_eq!(found, typed);
}

#[test]
fn every_event_does_to_every_state_what_the_table_says() {
    let rows: BTreeMap<&str, _> = TABLE
        .iter()
        .map(|(state, status, cells)| (*state, (*status, cells)))
        .collect();
    for saga in reachable() {
        let (status, cells) = rows[sides(&saga).as_str()];
        assert_eq!(saga.status().name(), status, "the order in {saga:?}");
        for (name, expected) in SAGA_EVENTS.iter().zip(cells) {
            let transition = saga.transition(&saga_event(name));
            assert_eq!(
                in_words(&saga, &transition),
                *expected,
                "{name} in {saga:?}"
            );
        }
    }
}

#[test]
fn every_answer_that_changes_nothing_is_repaired_kept_or_parked_as_the_table_says() {
    let rows: BTreeMap<&str, _> = REPAIRS
        .iter()
        .map(|(state, cells)| (*state, cells))
        .collect();
    for saga in reachable() {
        for (name, expected) in ANSWERS.iter().zip(rows[sides(&saga).as_str()]) {
            let answer = saga_event(name);
            let made = match (
                in_words(&saga, &saga.transition(&answer)).as_str(),
                saga.bearing(&answer),
            ) {
                (".", Bearing::Harmless) => ".".into(),
                (".", Bearing::Late) => "late".into(),
                (".", Bearing::Contradiction) => {
                    saga.repair(&answer).map_or("park".into(), |transition| {
                        format!("{}{}", sides(&transition.saga), asked(&transition))
                    })
                }
                // what changes an undecided side can contradict nothing
                (_, Bearing::Harmless) => "-".into(),
                (changes, bearing) => panic!("{name} in {saga:?}: {changes} and {bearing:?}"),
            };
            assert_eq!(made, *expected, "{name} in {saga:?}");
        }
    }
}

/// What else can happen is no answer, and contradicts nothing.
#[test]
fn only_an_answer_can_contradict() {
    for saga in reachable() {
        for name in SAGA_EVENTS.iter().filter(|name| !ANSWERS.contains(name)) {
            assert_eq!(
                saga.bearing(&saga_event(name)),
                Bearing::Harmless,
                "{name} in {saga:?}"
            );
            assert_eq!(saga.repair(&saga_event(name)), None, "{name} in {saga:?}");
        }
    }
}

/// A side whose answers contradict each other is asked to give back, or the case is left to a person; what is not changed stays, and a
/// settled order with it.
#[test]
fn a_repair_asks_the_side_back_or_is_a_person_s_and_settled_orders_stay_as_they_are() {
    for saga in reachable() {
        for name in ANSWERS {
            let answer = saga_event(name);
            if saga.bearing(&answer) != Bearing::Contradiction {
                continue;
            }
            let Some(transition) = saga.repair(&answer) else {
                assert_eq!(saga.status(), OrderStatus::Completed, "{name} in {saga:?}");
                continue;
            };
            let side = if name.starts_with('p') {
                Side::Payment
            } else {
                Side::Stock
            };
            assert!(transition.compensate.contains(&side), "{name} in {saga:?}");
            assert_eq!(
                transition.saga.status(),
                OrderStatus::Failed,
                "{name} in {saga:?}"
            );
            assert!(
                !saga.is_settled() || transition.saga == saga,
                "{name} in {saga:?}"
            );
            let reason = saga
                .reason
                .clone()
                .unwrap_or(("CONTRADICTION".into(), "order".into()));
            assert_eq!(transition.saga.reason, Some(reason), "{name} in {saga:?}");
        }
    }
}

// ---- 2. what always holds

/// Calls `check` with every reachable state, everything that can happen there, and what comes of it.
fn every_step(check: impl Fn(&Saga, &str, &Transition)) {
    for saga in reachable() {
        for name in SAGA_EVENTS {
            check(&saga, name, &saga.transition(&saga_event(name)));
        }
    }
}

#[test]
fn once_settled_always_settled_and_nothing_is_sent_any_more() {
    let settled: BTreeSet<String> = reachable()
        .iter()
        .filter(|saga| saga.is_settled())
        .map(sides)
        .collect();
    assert_eq!(
        settled,
        ["CC", "FF", "FZ", "ZF", "ZZ"].map(String::from).into()
    );
    every_step(|saga, name, transition| {
        if saga.is_settled() {
            assert_eq!(in_words(saga, transition), ".", "{name} in {saga:?}");
        }
    });
}

#[test]
fn compensating_is_left_only_by_the_confirmation() {
    every_step(|before, name, transition| {
        let pairs = [
            (before.payment, transition.saga.payment, "p undone"),
            (before.stock, transition.saga.stock, "s undone"),
        ];
        for (was, is, confirmation) in pairs {
            if was == SideStatus::Compensating {
                let expected = if name == confirmation { 'Z' } else { 'X' };
                assert_eq!(letter(is), expected, "{name} in {before:?}");
            }
        }
    });
}

#[test]
fn the_first_reason_stays() {
    every_step(|before, name, transition| {
        if before.reason.is_some() {
            assert_eq!(
                transition.saga.reason, before.reason,
                "{name} in {before:?}"
            );
        }
    });
    let reason = |names: &[&str]| {
        let end = names.iter().fold(Saga::new(), |saga, name| {
            saga.transition(&saga_event(name)).saga
        });
        let (code, from) = end.reason.expect("it failed");
        format!("{code} from {from}")
    };
    assert_eq!(
        reason(&["p no", "s no"]),
        "INSUFFICIENT_BALANCE from payment"
    );
    assert_eq!(reason(&["s no", "p no"]), "INSUFFICIENT_STOCK from stock");
    assert_eq!(
        reason(&["pub", "deadline", "p no", "s no"]),
        "DEADLINE from order"
    );
    assert_eq!(
        reason(&["pub", "s no", "deadline"]),
        "INSUFFICIENT_STOCK from stock"
    );
    let undecodable = SagaEvent::Failed(Side::Stock, Reason::new("UNPROCESSABLE", Service::Stock));
    let end = Saga::new()
        .transition(&undecodable)
        .saga
        .transition(&saga_event("p no"))
        .saga;
    assert_eq!(end.reason, Some(("UNPROCESSABLE".into(), "stock".into())));
}

#[test]
fn an_order_is_failed_if_and_only_if_a_side_is_failed_compensating_or_compensated() {
    let failed: BTreeSet<String> = reachable()
        .iter()
        .filter(|saga| saga.status() == OrderStatus::Failed)
        .map(sides)
        .collect();
    let typed = [
        "RF", "FR", "IF", "FI", "FF", "FX", "XF", "FZ", "ZF", "XX", "XZ", "ZX", "ZZ",
    ]
    .map(String::from);
    let repaired = ["XR", "RX", "XI", "IX", "ZR", "RZ", "ZI", "IZ"].map(String::from);
    assert_eq!(failed, typed.into_iter().chain(repaired).collect());
}

/// The conditions of `order_is_possible` in sql/order/V2, said again. (The names that a status may have are in the types.)
#[test]
fn every_reachable_state_may_stand_in_the_table_orders() {
    let bad = ["FAILED", "COMPENSATING", "COMPENSATED"];
    for saga in reachable() {
        let (order, payment, stock) =
            (saga.status().name(), saga.payment.name(), saga.stock.name());
        assert_eq!(
            order == "COMPLETED",
            payment == "COMPLETED" && stock == "COMPLETED",
            "{saga:?}"
        );
        assert_eq!(
            order == "FAILED",
            bad.contains(&payment) || bad.contains(&stock),
            "{saga:?}"
        );
        assert_eq!(order == "FAILED", saga.reason.is_some(), "{saga:?}");
    }
}

#[test]
fn only_a_side_that_became_compensating_or_is_unconfirmed_is_asked_and_once() {
    every_step(|before, name, transition| {
        let payment = (Side::Payment, before.payment, transition.saga.payment);
        let stock = (Side::Stock, before.stock, transition.saga.stock);
        for (side, was, is) in [payment, stock] {
            let asked = transition
                .compensate
                .iter()
                .filter(|asked| **asked == side)
                .count();
            let became = was != SideStatus::Compensating && is == SideStatus::Compensating;
            let again = was == SideStatus::Compensating && name == "unconfirmed";
            assert_eq!(asked, usize::from(became || again), "{name} in {before:?}");
        }
    });
}

// ---- 3. the eight rows

/// A row of the table in ARCHITECTURE.md as a play: what happens, in this order, the state after each, and the reason at the end.
struct Row {
    name: &'static str,
    play: &'static [(&'static str, &'static str)],
    reason: Option<&'static str>,
}

#[rustfmt::skip]
const ROWS: [Row; 10] = [
    Row { name: "1: FAILED, FAILED, COMPLETED: stock, at order's request",
          play: &[("pub", "II"), ("s ok", "IC"), ("p no", "FX+s"), ("s undone", "FZ")], reason: Some("INSUFFICIENT_BALANCE") },
    Row { name: "2: FAILED, FAILED, IN_PROGRESS then COMPLETED: stock, when its success arrives late",
          play: &[("pub", "II"), ("p no", "FI"), ("s ok", "FX+s"), ("s undone", "FZ")], reason: Some("INSUFFICIENT_BALANCE") },
    Row { name: "3: FAILED, FAILED, IN_PROGRESS then FAILED: nothing",
          play: &[("pub", "II"), ("p no", "FI"), ("s no", "FF")], reason: Some("INSUFFICIENT_BALANCE") },
    Row { name: "4: FAILED, COMPLETED, FAILED: payment, at order's request",
          play: &[("pub", "II"), ("p ok", "CI"), ("s no", "XF+p"), ("p undone", "ZF")], reason: Some("INSUFFICIENT_STOCK") },
    Row { name: "5: FAILED, IN_PROGRESS then FAILED, FAILED: nothing",
          play: &[("pub", "II"), ("s no", "IF"), ("p no", "FF")], reason: Some("INSUFFICIENT_STOCK") },
    Row { name: "6: FAILED, IN_PROGRESS then COMPLETED, FAILED: payment, when its success arrives late",
          play: &[("pub", "II"), ("s no", "IF"), ("p ok", "XF+p"), ("p undone", "ZF")], reason: Some("INSUFFICIENT_STOCK") },
    // both notices lie on the topics: they may be read in either order, even before publication is noted
    Row { name: "7: FAILED, FAILED, FAILED: nothing (payment's notice read first)",
          play: &[("p no", "FR"), ("s no", "FF")], reason: Some("INSUFFICIENT_BALANCE") },
    Row { name: "7: FAILED, FAILED, FAILED: nothing (stock's notice read first)",
          play: &[("s no", "RF"), ("p no", "FF")], reason: Some("INSUFFICIENT_STOCK") },
    Row { name: "8: COMPLETED, COMPLETED, COMPLETED: nothing (payment first)",
          play: &[("pub", "II"), ("p ok", "CI"), ("s ok", "CC")], reason: None },
    Row { name: "8: COMPLETED, COMPLETED, COMPLETED: nothing (stock first)",
          play: &[("pub", "II"), ("s ok", "IC"), ("p ok", "CC")], reason: None },
];

#[test]
fn the_eight_rows_are_played_as_written() {
    for row in ROWS {
        let mut saga = Saga::new();
        for (name, expected) in row.play {
            let transition = saga.transition(&saga_event(name));
            assert_eq!(
                in_words(&saga, &transition),
                *expected,
                "{name}, row {}",
                row.name
            );
            saga = transition.saga;
        }
        assert!(saga.is_settled(), "row {}", row.name);
        assert_eq!(
            saga.reason.map(|(code, _)| code).as_deref(),
            row.reason,
            "row {}",
            row.name
        );
    }
}

#[test]
fn what_has_happened_once_changes_nothing_when_it_comes_again() {
    for row in ROWS {
        let mut saga = Saga::new();
        for (place, (name, _)) in row.play.iter().enumerate() {
            saga = saga.transition(&saga_event(name)).saga;
            for (again, _) in &row.play[..=place] {
                let transition = saga.transition(&saga_event(again));
                assert_eq!(
                    in_words(&saga, &transition),
                    ".",
                    "{again} again after {name}, row {}",
                    row.name
                );
            }
        }
    }
}

/// The participants' answers by which of them comes first: the end, who was asked, and the reason.
#[rustfmt::skip]
const ENDS: [(&str, &str, &str, &str, Option<&str>); 8] = [
    // first  second  end   asked  reason
    ("p ok", "s ok", "CC", "",   None),
    ("s ok", "p ok", "CC", "",   None),
    ("p no", "s ok", "FZ", "+s", Some("INSUFFICIENT_BALANCE")),
    ("s ok", "p no", "FZ", "+s", Some("INSUFFICIENT_BALANCE")),
    ("p ok", "s no", "ZF", "+p", Some("INSUFFICIENT_STOCK")),
    ("s no", "p ok", "ZF", "+p", Some("INSUFFICIENT_STOCK")),
    ("p no", "s no", "FF", "",   Some("INSUFFICIENT_BALANCE")),
    ("s no", "p no", "FF", "",   Some("INSUFFICIENT_STOCK")),
];

/// Publication is noted twice and each answer comes three times, in every order; what is asked is confirmed at once, or
/// at the very end. The outcome depends on nothing but the answers, the reason on which of them came first.
#[test]
fn every_order_of_arrival_with_duplicates_ends_as_typed() {
    for (first, second, end, asked, reason) in ENDS {
        for arrivals in orders_of(&["pub", "pub", first, first, first, second, second, second]) {
            let came = |name: &str| arrivals.iter().position(|arrival| *arrival == name);
            if came(first) > came(second) {
                continue; // that is another line of ENDS
            }
            for confirm_at_once in [true, false] {
                let (saga, sent) = play(&arrivals, confirm_at_once);
                assert_eq!(
                    (sides(&saga).as_str(), sent.as_str()),
                    (end, asked),
                    "{arrivals:?}"
                );
                assert_eq!(
                    saga.reason.map(|(code, _)| code).as_deref(),
                    reason,
                    "{arrivals:?}"
                );
            }
        }
    }
}

/// A deadline that passes at any moment between the messages, and messages that come after it.
#[test]
fn a_deadline_ends_every_order_that_was_not_settled() {
    // the end if it passes after the first answer: a side that succeeded or has not answered is asked back
    let after_first = [
        ("p ok", "ZZ"),
        ("s ok", "ZZ"),
        ("p no", "FZ"),
        ("s no", "ZF"),
    ];
    for (first, second, end, ..) in ENDS {
        let (_, one_answer) = after_first.iter().find(|(name, _)| *name == first).unwrap();
        let plays = [
            (["pub", "deadline", first, second], "ZZ"),
            (["pub", first, "deadline", second], *one_answer),
            (["pub", first, second, "deadline"], end),
            // not yet known to be published: it has not begun
            (["deadline", "pub", first, second], end),
        ];
        for (arrivals, expected) in plays {
            for confirm_at_once in [true, false] {
                assert_eq!(
                    sides(&play(&arrivals, confirm_at_once).0),
                    expected,
                    "{arrivals:?}"
                );
            }
        }
    }
}

/// The saga at the end, and all that was asked.
fn play(arrivals: &[&str], confirm_at_once: bool) -> (Saga, String) {
    let (mut saga, mut sent) = (Saga::new(), String::new());
    for name in arrivals {
        let transition = saga.transition(&saga_event(name));
        sent += &asked(&transition);
        saga = if confirm_at_once {
            confirm(transition.saga, &sent)
        } else {
            transition.saga
        };
    }
    (confirm(saga, &sent), sent)
}

/// The confirmations of all that was asked; each comes twice.
fn confirm(saga: Saga, sent: &str) -> Saga {
    let confirmations = [('p', "p undone"), ('s', "s undone")];
    let confirmed = confirmations
        .iter()
        .filter(|(side, _)| sent.contains(*side))
        .map(|(_, name)| saga_event(name));
    confirmed
        .flat_map(|saga_event| [saga_event.clone(), saga_event])
        .fold(saga, |saga, h| saga.transition(&h).saga)
}

/// All different orders of these names.
fn orders_of<'a>(names: &[&'a str]) -> BTreeSet<Vec<&'a str>> {
    if names.is_empty() {
        return [vec![]].into();
    }
    let mut orders = BTreeSet::new();
    for first in names.iter().collect::<BTreeSet<_>>() {
        let mut rest = names.to_vec();
        rest.remove(
            names
                .iter()
                .position(|name| name == first)
                .expect("it is one of them"),
        );
        orders.extend(
            orders_of(&rest)
                .into_iter()
                .map(|order| [vec![*first], order].concat()),
        );
    }
    orders
}
