//! The verdict: pure functions from what was asked, heard and found to violations. Nothing of the services' code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use harness::{Seen, TOPICS};
use uuid::Uuid;

use crate::evidence::{Evidence, Holding, OrderRow, Parked, Stored};
use crate::excuses::Excuses;
use crate::load::{Asked, End, Heard, PutIn};
use crate::provoked::{Poison, Put};
use crate::table::{self, Side};

/// One check: over how many things, and what was wrong.
pub struct Check {
    /// What is claimed.
    pub claim: &'static str,
    /// How many things it was checked for.
    pub counted: usize,
    /// Each thing for which it does not hold.
    pub violations: Vec<String>,
}

impl Check {
    /// One that nothing was counted for yet.
    pub fn empty(claim: &'static str) -> Check {
        Check::new(claim, 0, vec![])
    }

    fn new(claim: &'static str, counted: usize, violations: Vec<String>) -> Check {
        Check {
            claim,
            counted,
            violations,
        }
    }
}

/// All checks.
pub fn check(asked: &[Asked], heard: &[Heard], put_in: &PutIn, found: &Evidence) -> Vec<Check> {
    let by_id: HashMap<Uuid, &OrderRow> = found
        .orders
        .iter()
        .map(|order| (order.order_id, order))
        .collect();
    let excuses = Excuses::of(found);
    let mut checks = vec![
        answered(heard),
        accepted(asked, heard, &by_id, &excuses),
        one_order_a_key(asked, heard, found, &excuses),
        given_up(asked, heard),
        refused(asked, heard, found),
        settled(found),
        ends(asked, heard, &by_id, &excuses),
        parts(found, &excuses),
        kept(found, &by_id),
        lacking(found, &excuses),
        conserved(
            "money is conserved in each account, none negative (I2)",
            &put_in.accounts,
            &found.holdings[0],
        ),
        conserved(
            "stock is conserved in each item, none negative (I2)",
            &put_in.items,
            &found.holdings[1],
        ),
        states(found, &excuses),
        Check::new(
            "no row waits in an outbox",
            found.waiting.len(),
            found.waiting.clone(),
        ),
    ];
    checks.extend([
        published(found, &excuses),
        only_stored(found, &excuses),
        stored_order(found),
        published_order(found, &excuses),
        histories(found, &excuses),
        offsets(found),
    ]);
    checks
}

fn answered(heard: &[Heard]) -> Check {
    let wrong = heard
        .iter()
        .flat_map(|heard| heard.unexpected.clone())
        .collect();
    Check::new(
        "a request is answered with 202 or 503, or not at all",
        heard.len(),
        wrong,
    )
}

/// I1, first half.
fn accepted(
    asked: &[Asked],
    heard: &[Heard],
    orders: &HashMap<Uuid, &OrderRow>,
    excuses: &Excuses,
) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (asked, heard) in asked.iter().zip(heard) {
        for order_id in &heard.accepted {
            counted += 1;
            let wanted = (
                asked.user.clone(),
                asked.item.clone(),
                asked.price,
                asked.quantity,
            );
            match orders.get(order_id) {
                None if excuses.is_gone(*order_id) => {}
                None => wrong.push(format!(
                    "{order_id} ({}) was accepted and does not exist",
                    asked.key
                )),
                Some(order) if order.asked != wanted => {
                    wrong.push(format!("{order_id}: {:?}, not {wanted:?}", order.asked))
                }
                Some(_) => {}
            }
        }
    }
    Check::new(
        "an order that was answered with 202 exists, as asked (I1)",
        counted,
        wrong,
    )
}

/// What a client was answered is the order that its key stands for. One that is gone or superseded was answered, too.
fn one_order_a_key(asked: &[Asked], heard: &[Heard], found: &Evidence, excuses: &Excuses) -> Check {
    let mut by_key: BTreeMap<&str, HashSet<Uuid>> = BTreeMap::new();
    for (asked, heard) in asked.iter().zip(heard) {
        by_key
            .entry(&asked.key)
            .or_default()
            .extend(&heard.accepted);
    }
    let mut wrong: Vec<String> = vec![];
    let mut known: HashSet<Uuid> = HashSet::new();
    for (key, ids) in &by_key {
        known.extend(ids);
        let standing = found.keys.get(*key);
        let is_excused = |id: &Uuid| excuses.is_gone(*id) || excuses.is_superseded(*id);
        let valid: Vec<&Uuid> = ids.iter().filter(|id| !is_excused(id)).collect();
        let accepted = usize::from(!ids.is_empty());
        if valid.len() != accepted || valid.iter().any(|id| Some(*id) != standing) {
            wrong.push(format!("{key}: answered {ids:?}, kept {standing:?}"));
        }
    }
    let is_stranger = |order: &&OrderRow| {
        !known.contains(&order.order_id) && !excuses.is_superseded(order.order_id)
    };
    let strangers = found.orders.iter().filter(is_stranger);
    wrong.extend(
        strangers.map(|order| format!("{}: nobody got a 202 for this order", order.order_id)),
    );
    Check::new(
        "a key stands for one order, and no order is there that nobody got a 202 for",
        by_key.len(),
        wrong,
    )
}

fn given_up(asked: &[Asked], heard: &[Heard]) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    let shared = shared_keys(asked);
    for (asked, heard) in asked.iter().zip(heard) {
        let Some(before) = heard.given_up else {
            continue;
        };
        counted += 1;
        match (before, heard.accepted.first()) {
            (_, None) => wrong.push(format!("{}: not accepted when it was repeated", asked.key)),
            (Some(before), _) if heard.was_refused && !shared.contains(&*asked.key) => {
                wrong.push(format!(
                    "{}: only ever refused, and stored as {before}",
                    asked.key
                ));
            }
            (Some(before), Some(after)) if before != *after => {
                wrong.push(format!(
                    "{}: stored as {before}, answered as {after} when repeated",
                    asked.key
                ));
            }
            _ => {}
        }
    }
    Check::new(
        "a request that got an error left nothing or, repeated, yields exactly that order",
        counted,
        wrong,
    )
}

/// The keys that several requests have: what one of them left is no word on the others.
fn shared_keys(asked: &[Asked]) -> HashSet<&str> {
    let mut seen = HashSet::new();
    asked
        .iter()
        .map(|asked| asked.key.as_str())
        .filter(|key| !seen.insert(*key))
        .collect()
}

/// A refusal leaves no key, and no request that carries it.
fn refused(asked: &[Asked], heard: &[Heard], found: &Evidence) -> Check {
    let header = |record: &Seen| {
        record
            .headers
            .iter()
            .find(|(name, _)| name == "idempotency_key")
            .cloned()
    };
    let carried: HashSet<String> = found
        .records
        .iter()
        .filter_map(header)
        .map(|(_, key)| key)
        .collect();
    let shared = shared_keys(asked);
    let is_refused =
        |(asked, heard): &(&Asked, &Heard)| heard.is_refused() && !shared.contains(&*asked.key);
    let refused: Vec<&str> = asked
        .iter()
        .zip(heard)
        .filter(is_refused)
        .map(|(asked, _)| &*asked.key)
        .collect();
    let left = |key: &&&str| found.keys.contains_key(**key) || carried.contains(**key);
    let wrong = refused
        .iter()
        .filter(left)
        .map(|key| format!("{key} was refused, and is known"))
        .collect();
    Check::new(
        "a request that was only ever refused left nothing (I10)",
        refused.len(),
        wrong,
    )
}

/// I10, where nothing but load was there to delay an order.
pub fn deadlines(found: &Evidence) -> Check {
    let late = found
        .orders
        .iter()
        .filter(|order| order.reason == "DEADLINE");
    let wrong = late
        .map(|order| format!("{}: {:?}", order.order_id, order.statuses))
        .collect();
    Check::new(
        "no accepted order fails by its deadline because of load (I10)",
        found.orders.len(),
        wrong,
    )
}

/// I1, second half.
fn settled(found: &Evidence) -> Check {
    let open = |order: &&OrderRow| {
        let [order, payment, stock] = &order.statuses;
        let is_open = |side: &str| matches!(side, "READY" | "IN_PROGRESS" | "COMPENSATING");
        order == "IN_PROGRESS" || is_open(payment) || is_open(stock)
    };
    let text = |order: &OrderRow| format!("{}: {:?}", order.order_id, order.statuses);
    let wrong = found.orders.iter().filter(open).map(text).collect();
    Check::new("every order is settled (I1)", found.orders.len(), wrong)
}

fn ends(
    asked: &[Asked],
    heard: &[Heard],
    orders: &HashMap<Uuid, &OrderRow>,
    excuses: &Excuses,
) -> Check {
    let mut wrong = vec![];
    let accepted = asked
        .iter()
        .zip(heard)
        .flat_map(|(asked, heard)| heard.accepted.iter().map(move |id| (asked, id)));
    for (asked, order_id) in accepted {
        let Some(order) = orders.get(order_id) else {
            continue;
        };
        let status = order.statuses[0].as_str();
        let excused = excuses.is_superseded(*order_id)
            || (order.reason == "CONTRADICTION" && excuses.is_affected(*order_id));
        let right = match asked.end {
            End::Completed => status == "COMPLETED" || order.reason == "DEADLINE" || excused,
            End::Failed => status == "FAILED",
            End::Either => true,
        };
        if !right {
            wrong.push(format!(
                "{}: {status} {}, of {:?} must come {:?}",
                order.order_id, order.reason, order.asked, asked.end
            ));
        }
    }
    Check::new(
        "an order whose user and item have plenty completes, one that lacks any fails",
        asked.len(),
        wrong,
    )
}

/// The participants' rows and the order's view of them.
fn parts(found: &Evidence, excuses: &Excuses) -> Check {
    let mut wrong = vec![];
    for order in &found.orders {
        let (user, item, price, quantity) = &order.asked;
        for (side, name, amount) in [(0, user, price), (1, item, quantity)] {
            let status = order.statuses[side + 1].as_str();
            let part = found.parts[side]
                .get(&order.order_id)
                .cloned()
                .unwrap_or_default();
            let same = part.name.as_ref().is_none_or(|it| it == name)
                && part.amount.as_ref().is_none_or(|it| it == amount);
            let agrees = table::row_statuses(status).contains(&part.status.as_str())
                || (excuses.is_affected(order.order_id) && excuses.is_right_in_the_end(order));
            if !same || !agrees {
                wrong.push(format!(
                    "{}: {status} for order, at the participant {part:?}",
                    order.order_id
                ));
            }
        }
    }
    let known: HashSet<Uuid> = found.orders.iter().map(|order| order.order_id).collect();
    let parts = found.parts.iter().flatten();
    wrong.extend(
        parts
            .filter(|(id, _)| !known.contains(id))
            .map(|(id, part)| format!("{id}: no order, and {part:?}")),
    );
    Check::new(
        "payments and reservations are what their orders say",
        2 * found.orders.len(),
        wrong,
    )
}

/// I9, first half.
fn kept(found: &Evidence, orders: &HashMap<Uuid, &OrderRow>) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (part, parts) in ["payment", "reservation"].into_iter().zip(&found.parts) {
        for order_id in parts
            .iter()
            .filter(|(_, part)| part.status == "COMPLETED")
            .map(|(order_id, _)| order_id)
        {
            counted += 1;
            match orders.get(order_id).map(|order| &*order.statuses[0]) {
                Some("COMPLETED") => {}
                other => wrong.push(format!(
                    "{order_id}: {part} COMPLETED, order {}",
                    other.unwrap_or("unknown")
                )),
            }
        }
    }
    Check::new(
        "nothing is kept for an order that order does not have as COMPLETED (I9)",
        counted,
        wrong,
    )
}

/// I9, second half.
fn lacking(found: &Evidence, excuses: &Excuses) -> Check {
    let completed: Vec<&OrderRow> = found
        .orders
        .iter()
        .filter(|order| order.statuses[0] == "COMPLETED")
        .collect();
    let lacks = |order: &&OrderRow| {
        Some((order.order_id, excuses.lacking(order))).filter(|(_, lacks)| !lacks.is_empty())
    };
    let wrong = completed
        .iter()
        .filter_map(lacks)
        .map(|(id, lacks)| format!("{id}: no {}", lacks.join(", no ")));
    let wrong = wrong.collect();
    Check::new(
        "no COMPLETED order is unpaid or unreserved without a dead letter about it (I9)",
        completed.len(),
        wrong,
    )
}

/// I2, against what we put in, whatever the tables say of it.
pub fn conserved(claim: &'static str, put_in: &[(String, i64)], holdings: &[Holding]) -> Check {
    let mut wrong = vec![];
    for (name, put_in) in put_in {
        match holdings.iter().find(|holding| holding.name == *name) {
            Some(it) if it.left >= 0 && it.left + it.taken == *put_in => {}
            other => wrong.push(format!("{name}: put in {put_in}, found {other:?}")),
        }
    }
    if holdings.len() != put_in.len() {
        wrong.push(format!(
            "{} accounts or items, not {}",
            holdings.len(),
            put_in.len()
        ));
    }
    Check::new(claim, put_in.len(), wrong)
}

fn states(found: &Evidence, excuses: &Excuses) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (order_id, states) in &found.states {
        counted += states.len();
        for pair in states.windows(2) {
            let [from, to] = pair else { continue };
            let order_may = from[0] == "IN_PROGRESS" || from[0] == to[0];
            let side_may = |side: usize| {
                table::may_become(&from[side], &to[side])
                    || (excuses.is_affected(*order_id)
                        && table::may_become_at_once(&from[side], &to[side]))
            };
            if !order_may || !side_may(1) || !side_may(2) {
                wrong.push(format!("{order_id}: from {from:?} to {to:?}"));
            }
        }
    }
    let silent = found
        .orders
        .iter()
        .filter(|order| !found.states.contains_key(&order.order_id));
    wrong.extend(silent.map(|order| format!("{}: has no history", order.order_id)));
    Check::new(
        "an order goes through no state that it may not, and leaves no final one",
        counted,
        wrong,
    )
}

/// I8, and that what is read is what was stored.
fn published(found: &Evidence, excuses: &Excuses) -> Check {
    let mut seen: HashMap<&str, Vec<&Seen>> = HashMap::new();
    found
        .records
        .iter()
        .for_each(|record| seen.entry(&record.ce_id).or_default().push(record));
    let mut wrong = vec![];
    for stored in &found.stored {
        let records = seen.get(stored.id.as_str()).map_or(&[][..], Vec::as_slice);
        match records {
            [record] if is_it(record, stored) => {}
            [record] => wrong.push(format!("{stored:?} is read as {record:?}")),
            [] => wrong.push(format!("lost: {stored:?}")),
            more if more.len() <= excuses.copies(stored)
                && more.iter().all(|record| is_it(record, stored)) => {}
            more => wrong.push(format!("{} times on its topic: {stored:?}", more.len())),
        }
    }
    Check::new(
        "a stored message is on its topic exactly once, as stored (I8)",
        found.stored.len(),
        wrong,
    )
}

fn is_it(record: &Seen, stored: &Stored) -> bool {
    record.topic == stored.topic
        && record.ce_type == stored.ce_type
        && record.ce_time == stored.stored_at
        && record.key.as_deref() == Some(stored.order_id.to_string().as_str())
        && record.data == stored.data
}

fn only_stored(found: &Evidence, excuses: &Excuses) -> Check {
    let stored: HashSet<&str> = found
        .stored
        .iter()
        .map(|stored| stored.id.as_str())
        .collect();
    let is_known =
        |record: &Seen| stored.contains(record.ce_id.as_str()) || excuses.is_of_a_tail(record);
    let strangers = found.records.iter().filter(|record| !is_known(record));
    let mut wrong: Vec<String> = strangers.map(|record| format!("{record:?}")).collect();
    if stored.len() != found.stored.len() {
        wrong.push(format!(
            "{} messages were stored under {} ids",
            found.stored.len(),
            stored.len()
        ));
    }
    Check::new(
        "a record on the topics was stored",
        found.records.len(),
        wrong,
    )
}

/// Row id = stored time.
fn stored_order(found: &Evidence) -> Check {
    let late = |pair: &&[Stored]| {
        pair[0].service == pair[1].service
            && (pair[0].stored_at > pair[1].stored_at || pair[0].place >= pair[1].place)
    };
    let text = |pair: &[Stored]| {
        format!(
            "{}: {:?} then {:?}",
            pair[0].service, pair[0].place, pair[1].place
        )
    };
    let wrong = found.stored.windows(2).filter(late).map(text).collect();
    Check::new(
        "stored times rise with the outbox rows' ids (I4)",
        found.stored.len(),
        wrong,
    )
}

/// I4.
fn published_order(found: &Evidence, excuses: &Excuses) -> Check {
    let place: HashMap<&str, (&str, (i64, usize))> = found
        .stored
        .iter()
        .map(|stored| (stored.id.as_str(), (stored.service, stored.place)))
        .collect();
    let mut last: HashMap<(&str, i32, &str), (i64, usize)> = HashMap::new();
    let mut records: Vec<&Seen> = found.records.iter().collect();
    records.sort_by_key(|record| {
        (
            TOPICS.iter().position(|topic| *topic == record.topic),
            record.partition,
            record.offset,
        )
    });
    let (mut wrong, mut seen) = (vec![], HashSet::new());
    for record in records {
        let Some((service, place)) = place.get(record.ce_id.as_str()) else {
            continue;
        };
        if !seen.insert(&record.ce_id) && excuses.has_lost(service) {
            continue;
        }
        let before = last.insert((&record.topic, record.partition, service), *place);
        if before.is_some_and(|before| before > *place) {
            let at = format!(
                "{}-{} offset {}",
                record.topic, record.partition, record.offset
            );
            wrong.push(format!("{at}: {service}'s row {place:?} after {before:?}"));
        }
    }
    Check::new(
        "records of an outbox are in stored order on each topic-partition (I4)",
        found.records.len(),
        wrong,
    )
}

fn offsets(found: &Evidence) -> Check {
    let back = found
        .moves
        .iter()
        .filter(|(_, was, becomes)| becomes <= was);
    let wrong = back
        .map(|(place, was, becomes)| format!("{place}: from {was} to {becomes}"))
        .collect();
    Check::new(
        "a consumer's offset never goes back (I3)",
        found.moves.len(),
        wrong,
    )
}

/// I5, of what [`torn`] answers.
pub const PAIRS: &str =
    "a reader sees both messages of an order or neither, whenever no transaction is open (I5)";

/// I7.
pub fn dead_letters(poisons: &[Poison], found: &Evidence) -> Check {
    let is_its = |poison: &Poison, parked: &Parked| {
        (poison.service, poison.cause, &poison.value)
            == (parked.service, parked.cause.as_str(), &parked.value)
    };
    let mut wrong = vec![];
    for poison in poisons {
        let times = found
            .parked
            .iter()
            .filter(|parked| is_its(poison, parked))
            .count();
        if times > 1 || (poison.sure && times == 0) {
            wrong.push(format!("{times} times: {poison:?}"));
        }
    }
    let excuses = Excuses::of(found);
    let excused = |it: &Parked| {
        it.cause == "CONTRADICTION" && it.order_id.is_some_and(|id| excuses.is_affected(id))
    };
    let provoked = |it: &Parked| excused(it) || poisons.iter().any(|poison| is_its(poison, it));
    let strangers = found.parked.iter().filter(|parked| !provoked(parked));
    wrong.extend(strangers.map(|it| {
        format!(
            "not provoked: {} by {}: {} ({:?})",
            it.cause, it.service, it.story, it.value
        )
    }));
    let counted = poisons.len().max(found.parked.len());
    Check::new(
        "every provoked dead letter is there once, with its cause and bytes, and no other (I7)",
        counted,
        wrong,
    )
}

/// What is put in is put in once, whatever became of its answer.
pub fn puts(asked: &[Put], found: &Evidence) -> Check {
    let mut wrong = vec![];
    for put in asked {
        let is_its =
            |done: &&(&str, String, i64, i64)| (done.0, done.3) == (put.service, put.value);
        let times = found.puts.iter().filter(is_its).count();
        if times > 1 || (put.answered && times == 0) {
            wrong.push(format!("done {times} times: {put:?}"));
        }
    }
    let known = |done: &&(&str, String, i64, i64)| {
        asked
            .iter()
            .any(|put| (done.0, done.3) == (put.service, put.value))
    };
    wrong.extend(
        found
            .puts
            .iter()
            .filter(|done| !known(done))
            .map(|done| format!("nobody asked for {done:?}")),
    );
    Check::new(
        "a PUT that was answered was done once, another one at most once (I2)",
        asked.len(),
        wrong,
    )
}

/// What a service logs when its database is behind what Kafka has of it; tests/saga/takeover.rs claims that it does.
const LOST_TAIL: &str = "without the tail of the old primary";

/// A synchronous standby has all that was committed, and only what is committed is published.
pub fn failovers(counted: usize, logs: &[(String, String)]) -> Check {
    let mut wrong = vec![];
    for (name, log) in logs {
        let lines = log.lines().filter(|line| line.contains(LOST_TAIL));
        wrong.extend(lines.map(|line| format!("{name}: {line}")));
    }
    Check::new(
        "a synchronous standby that takes over has all that Kafka has",
        counted,
        wrong,
    )
}

/// A look at the requests of order at a moment when no transaction was open: the orders of which one message is there and
/// the other is not.
pub fn torn(seen: &[Seen]) -> Vec<String> {
    let keys = |ce_type: &str| -> BTreeSet<&str> {
        seen.iter()
            .filter(|seen| seen.ce_type == ce_type)
            .filter_map(|seen| seen.key.as_deref())
            .collect()
    };
    let (payments, stocks) = (keys("payment.requested"), keys("stock.requested"));
    payments
        .symmetric_difference(&stocks)
        .map(|key| format!("only one message of order {key} is there"))
        .collect()
}

/// The table of outcomes, on the topics.
fn histories(found: &Evidence, excuses: &Excuses) -> Check {
    let mut types: HashMap<&str, BTreeMap<(String, bool), usize>> = HashMap::new();
    for record in &found.records {
        let of_order = types
            .entry(record.key.as_deref().unwrap_or_default())
            .or_default();
        *of_order
            .entry((record.ce_type.clone(), record.data["undone"] == true))
            .or_default() += 1;
    }
    let mut wrong = vec![];
    for order in &found.orders {
        let types = types
            .remove(order.order_id.to_string().as_str())
            .unwrap_or_default();
        let ends = (
            Side::of("payment", &types).end(),
            Side::of("stock", &types).end(),
        );
        let outcome = match ends {
            (Some(payment), Some(stock)) => {
                table::outcome(payment, stock, met_its_deadline(order, found))
            }
            _ => None,
        };
        let excused = excuses.is_affected(order.order_id) && excuses.is_right_in_the_end(order);
        if outcome != Some(order.statuses[0].as_str()) && !excused {
            wrong.push(format!(
                "{}: {:?} {:?}, on the topics {types:?}",
                order.order_id, order.statuses, order.reason
            ));
        }
    }
    wrong.extend(
        types
            .keys()
            .map(|key| format!("records about {key:?}, which is no order")),
    );
    Check::new(
        "an order's history on the topics is one that the table allows",
        found.orders.len(),
        wrong,
    )
}

/// A side was asked to compensate while it had said nothing yet.
fn met_its_deadline(order: &OrderRow, found: &Evidence) -> bool {
    let states = found
        .states
        .get(&order.order_id)
        .map_or(&[][..], Vec::as_slice);
    let silent = |from: &str, to: &str| from == "IN_PROGRESS" && to == "COMPENSATING";
    states
        .windows(2)
        .any(|pair| (1..3).any(|side| silent(&pair[0][side], &pair[1][side])))
}

#[cfg(test)]
mod spoilt;
