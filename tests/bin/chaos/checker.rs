//! The verdict: pure functions from what was asked, heard and found to violations. Nothing of the services' code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use harness::{Seen, TOPICS};
use uuid::Uuid;

use crate::evidence::{Evidence, Holding, OrderRow, Parked, Stored};
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
        Check { claim, counted, violations }
    }
}

/// All checks.
pub fn check(asked: &[Asked], heard: &[Heard], put_in: &PutIn, found: &Evidence) -> Vec<Check> {
    let by_id: HashMap<Uuid, &OrderRow> = found.orders.iter().map(|order| (order.order_id, order)).collect();
    let mut checks = vec![
        answered(heard),
        accepted(asked, heard, &by_id),
        one_order_a_key(asked, heard, found),
        given_up(asked, heard),
        settled(found),
        ends(asked, heard, &by_id),
        parts(found),
        conserved("money is conserved in each account, none negative (I2)", &put_in.accounts, &found.holdings[0]),
        conserved("stock is conserved in each item, none negative (I2)", &put_in.items, &found.holdings[1]),
        states(found),
        Check::new("no row waits in an outbox", found.waiting.len(), found.waiting.clone()),
    ];
    checks.extend([
        published(found),
        only_stored(found),
        stored_order(found),
        published_order(found),
        told(found),
        offsets(found),
    ]);
    checks
}

fn answered(heard: &[Heard]) -> Check {
    let wrong = heard.iter().flat_map(|heard| heard.unexpected.clone()).collect();
    Check::new("a request is answered with 202 or 503, or not at all", heard.len(), wrong)
}

/// I1, first half.
fn accepted(asked: &[Asked], heard: &[Heard], orders: &HashMap<Uuid, &OrderRow>) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (asked, heard) in asked.iter().zip(heard) {
        for order_id in &heard.accepted {
            counted += 1;
            let wanted = (asked.user.clone(), asked.item.clone(), asked.price, asked.quantity);
            match orders.get(order_id) {
                None => wrong.push(format!("{order_id} ({}) was accepted and does not exist", asked.key)),
                Some(order) if order.asked != wanted => {
                    wrong.push(format!("{order_id}: {:?}, not {wanted:?}", order.asked))
                }
                Some(_) => {}
            }
        }
    }
    Check::new("an order that was answered with 202 exists, as asked (I1)", counted, wrong)
}

fn one_order_a_key(asked: &[Asked], heard: &[Heard], found: &Evidence) -> Check {
    let mut by_key: BTreeMap<&str, HashSet<Uuid>> = BTreeMap::new();
    for (asked, heard) in asked.iter().zip(heard) {
        by_key.entry(&asked.key).or_default().extend(&heard.accepted);
    }
    let mut wrong: Vec<String> = vec![];
    let mut known: HashSet<Uuid> = HashSet::new();
    for (key, ids) in &by_key {
        known.extend(ids);
        let standing = found.keys.get(*key);
        if ids.len() > 1 || ids.iter().any(|id| Some(id) != standing) {
            wrong.push(format!("{key}: answered {ids:?}, kept {standing:?}"));
        }
    }
    let strangers = found.orders.iter().filter(|order| !known.contains(&order.order_id));
    wrong.extend(strangers.map(|order| format!("{}: nobody was told of this order", order.order_id)));
    Check::new("a key stands for one order, and no order is there that nobody was told of", by_key.len(), wrong)
}

fn given_up(asked: &[Asked], heard: &[Heard]) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (asked, heard) in asked.iter().zip(heard) {
        let Some(before) = heard.given_up else { continue };
        counted += 1;
        match (before, heard.accepted.first()) {
            (_, None) => wrong.push(format!("{}: not accepted when it was repeated", asked.key)),
            (Some(before), Some(after)) if before != *after => {
                wrong.push(format!("{}: stored as {before}, answered as {after} when repeated", asked.key));
            }
            _ => {}
        }
    }
    Check::new("a request that got an error left nothing or, repeated, yields exactly that order", counted, wrong)
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

fn ends(asked: &[Asked], heard: &[Heard], orders: &HashMap<Uuid, &OrderRow>) -> Check {
    let mut wrong = vec![];
    for (asked, heard) in asked.iter().zip(heard) {
        let Some(order) = heard.accepted.first().and_then(|order_id| orders.get(order_id)) else { continue };
        let status = order.statuses[0].as_str();
        let right = match asked.end {
            End::Completed => status == "COMPLETED" || order.reason == "DEADLINE",
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
    Check::new("an order whose user and item have plenty completes, one that lacks any fails", asked.len(), wrong)
}

/// The participants' rows and the order's view of them.
fn parts(found: &Evidence) -> Check {
    let mut wrong = vec![];
    for order in &found.orders {
        let (user, item, price, quantity) = &order.asked;
        for (side, name, amount) in [(0, user, price), (1, item, quantity)] {
            let status = order.statuses[side + 1].as_str();
            let part = found.parts[side].get(&order.order_id).cloned().unwrap_or_default();
            let same =
                part.name.as_ref().is_none_or(|it| it == name) && part.amount.as_ref().is_none_or(|it| it == amount);
            if !same || !table::row_statuses(status).contains(&part.status.as_str()) {
                wrong.push(format!("{}: {status} for order, at the participant {part:?}", order.order_id));
            }
        }
    }
    let strangers = |side: usize| found.parts[side].len().saturating_sub(found.orders.len());
    if strangers(0) + strangers(1) > 0 {
        wrong.push("there are payments or reservations without an order".into());
    }
    Check::new("payments and reservations are what their orders say", 2 * found.orders.len(), wrong)
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
        wrong.push(format!("{} accounts or items, not {}", holdings.len(), put_in.len()));
    }
    Check::new(claim, put_in.len(), wrong)
}

fn states(found: &Evidence) -> Check {
    let (mut counted, mut wrong) = (0, vec![]);
    for (order_id, states) in &found.states {
        counted += states.len();
        for pair in states.windows(2) {
            let [from, to] = pair else { continue };
            let order_may = from[0] == "IN_PROGRESS" || from[0] == to[0];
            if !order_may || !table::may_become(&from[1], &to[1]) || !table::may_become(&from[2], &to[2]) {
                wrong.push(format!("{order_id}: from {from:?} to {to:?}"));
            }
        }
    }
    let silent = found.orders.iter().filter(|order| !found.states.contains_key(&order.order_id));
    wrong.extend(silent.map(|order| format!("{}: has no history", order.order_id)));
    Check::new("an order goes through no state that it may not, and leaves no final one", counted, wrong)
}

/// I8, and that what is read is what was stored.
fn published(found: &Evidence) -> Check {
    let mut seen: HashMap<&str, Vec<&Seen>> = HashMap::new();
    found.records.iter().for_each(|record| seen.entry(&record.ce_id).or_default().push(record));
    let mut wrong = vec![];
    for stored in &found.stored {
        let records = seen.get(stored.id.as_str()).map_or(&[][..], Vec::as_slice);
        match records {
            [record] if is_it(record, stored) => {}
            [record] => wrong.push(format!("{stored:?} is read as {record:?}")),
            [] => wrong.push(format!("lost: {stored:?}")),
            more => wrong.push(format!("{} times on its topic: {stored:?}", more.len())),
        }
    }
    Check::new("a stored message is on its topic exactly once, as stored (I8)", found.stored.len(), wrong)
}

fn is_it(record: &Seen, stored: &Stored) -> bool {
    record.topic == stored.topic
        && record.ce_type == stored.ce_type
        && record.ce_time == stored.stored_at
        && record.key.as_deref() == Some(stored.order_id.to_string().as_str())
        && record.data == stored.data
}

fn only_stored(found: &Evidence) -> Check {
    let stored: HashSet<&str> = found.stored.iter().map(|stored| stored.id.as_str()).collect();
    let strangers = found.records.iter().filter(|record| !stored.contains(record.ce_id.as_str()));
    let mut wrong: Vec<String> = strangers.map(|record| format!("{record:?}")).collect();
    if stored.len() != found.stored.len() {
        wrong.push(format!("{} messages were stored under {} ids", found.stored.len(), stored.len()));
    }
    Check::new("a record on the topics was stored", found.records.len(), wrong)
}

/// Row id = stored time.
fn stored_order(found: &Evidence) -> Check {
    let late = |pair: &&[Stored]| {
        pair[0].service == pair[1].service && (pair[0].stored_at > pair[1].stored_at || pair[0].place >= pair[1].place)
    };
    let text = |pair: &[Stored]| format!("{}: {:?} then {:?}", pair[0].service, pair[0].place, pair[1].place);
    let wrong = found.stored.windows(2).filter(late).map(text).collect();
    Check::new("stored times rise with the outbox rows' ids (I4)", found.stored.len(), wrong)
}

/// I4.
fn published_order(found: &Evidence) -> Check {
    let place: HashMap<&str, (&str, (i64, usize))> =
        found.stored.iter().map(|stored| (stored.id.as_str(), (stored.service, stored.place))).collect();
    let mut last: HashMap<(&str, i32, &str), (i64, usize)> = HashMap::new();
    let mut records: Vec<&Seen> = found.records.iter().collect();
    records.sort_by_key(|record| {
        (TOPICS.iter().position(|topic| *topic == record.topic), record.partition, record.offset)
    });
    let mut wrong = vec![];
    for record in records {
        let Some((service, place)) = place.get(record.ce_id.as_str()) else { continue };
        let before = last.insert((&record.topic, record.partition, service), *place);
        if before.is_some_and(|before| before > *place) {
            let at = format!("{}-{} offset {}", record.topic, record.partition, record.offset);
            wrong.push(format!("{at}: {service}'s row {place:?} after {before:?}"));
        }
    }
    Check::new("records of an outbox are in stored order on each topic-partition (I4)", found.records.len(), wrong)
}

fn offsets(found: &Evidence) -> Check {
    let back = found.moves.iter().filter(|(_, was, becomes)| becomes <= was);
    let wrong = back.map(|(place, was, becomes)| format!("{place}: from {was} to {becomes}")).collect();
    Check::new("a consumer's offset never goes back (I3)", found.moves.len(), wrong)
}

/// I5, of what [`torn`] answers.
pub const PAIRS: &str = "a reader sees both messages of an order or neither, whenever no transaction is open (I5)";

/// I7.
pub fn dead_letters(poisons: &[Poison], found: &Evidence) -> Check {
    let is_its = |poison: &Poison, parked: &Parked| {
        (poison.service, poison.cause, &poison.value) == (parked.service, parked.cause.as_str(), &parked.value)
    };
    let mut wrong = vec![];
    for poison in poisons {
        let times = found.parked.iter().filter(|parked| is_its(poison, parked)).count();
        if times > 1 || (poison.sure && times == 0) {
            wrong.push(format!("{times} times: {poison:?}"));
        }
    }
    let strangers = found.parked.iter().filter(|parked| !poisons.iter().any(|poison| is_its(poison, parked)));
    wrong.extend(
        strangers.map(|it| format!("not provoked: {} by {}: {} ({:?})", it.cause, it.service, it.story, it.value)),
    );
    let counted = poisons.len().max(found.parked.len());
    Check::new("every provoked dead letter is there once, with its cause and bytes, and no other (I7)", counted, wrong)
}

/// What is put in is put in once, whatever became of its answer.
pub fn puts(asked: &[Put], found: &Evidence) -> Check {
    let mut wrong = vec![];
    for put in asked {
        let is_its = |done: &&(&str, String, i64, i64)| (done.0, done.3) == (put.service, put.value);
        let times = found.puts.iter().filter(is_its).count();
        if times > 1 || (put.answered && times == 0) {
            wrong.push(format!("done {times} times: {put:?}"));
        }
    }
    let known = |done: &&(&str, String, i64, i64)| asked.iter().any(|put| (done.0, done.3) == (put.service, put.value));
    wrong.extend(found.puts.iter().filter(|done| !known(done)).map(|done| format!("nobody asked for {done:?}")));
    Check::new("a PUT that was answered was done once, another one at most once (I2)", asked.len(), wrong)
}

/// A look at the requests of order at a moment when no transaction was open: the orders of which one message is there and
/// the other is not.
pub fn torn(seen: &[Seen]) -> Vec<String> {
    let keys = |ce_type: &str| -> BTreeSet<&str> {
        seen.iter().filter(|seen| seen.ce_type == ce_type).filter_map(|seen| seen.key.as_deref()).collect()
    };
    let (payments, stocks) = (keys("payment.requested"), keys("stock.requested"));
    payments.symmetric_difference(&stocks).map(|key| format!("only one message of order {key} is there")).collect()
}

/// The table of outcomes, on the topics.
fn told(found: &Evidence) -> Check {
    let mut types: HashMap<&str, BTreeMap<(String, bool), usize>> = HashMap::new();
    for record in &found.records {
        let of_order = types.entry(record.key.as_deref().unwrap_or_default()).or_default();
        *of_order.entry((record.ce_type.clone(), record.data["undone"] == true)).or_default() += 1;
    }
    let mut wrong = vec![];
    for order in &found.orders {
        let types = types.remove(order.order_id.to_string().as_str()).unwrap_or_default();
        let ends = (Side::of("payment", &types).end(), Side::of("stock", &types).end());
        let outcome = match ends {
            (Some(payment), Some(stock)) => table::outcome(payment, stock, met_its_deadline(order, found)),
            _ => None,
        };
        if outcome != Some(order.statuses[0].as_str()) {
            wrong.push(format!("{}: {:?} {:?}, on the topics {types:?}", order.order_id, order.statuses, order.reason));
        }
    }
    wrong.extend(types.keys().map(|key| format!("records about {key:?}, which is no order")));
    Check::new("an order's history on the topics is one that the table allows", found.orders.len(), wrong)
}

/// A side was asked to compensate while it had said nothing yet.
fn met_its_deadline(order: &OrderRow, found: &Evidence) -> bool {
    let states = found.states.get(&order.order_id).map_or(&[][..], Vec::as_slice);
    let silent = |from: &str, to: &str| from == "IN_PROGRESS" && to == "COMPENSATING";
    states.windows(2).any(|pair| (1..3).any(|side| silent(&pair[0][side], &pair[1][side])))
}

#[cfg(test)]
#[path = "spoilt.rs"]
mod spoilt;
