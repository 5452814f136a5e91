//! What can't be handled is parked with its bytes and its story, and its partition moves on (I7). What the world is to
//! blame for is tried again without end, and parks nothing.

use std::time::Duration;

use harness::{Api, Broker, Instance, Message, Seen, Service, World, eventually, until};
use kafka::{Bytes, Interrupt, Producer, ProducerRecord, partition_for_key};
use postgres::Client;
use serde_json::{Value, json};
use uuid::Uuid;

/// One partition a topic, so that every record is behind the one before.
pub(crate) const ONE_PARTITION: [(&str, &str); 1] = [("TOPIC_PARTITIONS", "1")];

/// A parked record, as the table has it.
#[derive(Debug, PartialEq)]
pub(crate) struct Parked {
    pub(crate) cause: String,
    pub(crate) detail: String,
    pub(crate) attempts: i32,
    pub(crate) topic: String,
    partition: i32,
    offset: i64,
    to_offset: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

/// A service's parked records, in the order of their numbers; topics without the installation's prefix.
fn parked(world: &World, service: Service) -> Vec<Parked> {
    let sql = "select cause, detail, attempts, topic, partition, record_offset, to_offset, record_key, record_value,
                      header_names, header_values from dead_letter order by id";
    let rows = world.db(service).query(sql, &[]).unwrap();
    rows.iter()
        .map(|row| Parked {
            cause: row.get(0),
            detail: row.get(1),
            attempts: row.get(2),
            topic: row
                .get::<_, String>(3)
                .strip_prefix(world.prefix())
                .unwrap()
                .to_string(),
            partition: row.get(4),
            offset: row.get(5),
            to_offset: row.get(6),
            key: row.get(7),
            value: row.get(8),
            headers: row
                .get::<_, Vec<String>>(9)
                .into_iter()
                .zip(row.get::<_, Vec<Vec<u8>>>(10))
                .collect(),
        })
        .collect()
}

pub(crate) fn wait_for_parked(world: &World, service: Service, count: usize) -> Vec<Parked> {
    eventually(&format!("{count} parked records"), || {
        Some(parked(world, service)).filter(|parked| parked.len() >= count)
    })
}

/// How a message looks once it is parked from partition 0.
fn parked_as(message: &Message, offset: i64, cause: &str, detail: &str, attempts: i32) -> Parked {
    Parked {
        cause: cause.into(),
        detail: detail.into(),
        attempts,
        topic: message.topic.clone(),
        partition: 0,
        offset,
        to_offset: None,
        key: message.key.clone(),
        value: message.value.clone(),
        headers: message.headers.clone(),
    }
}

pub(crate) fn payment_request(order_id: Uuid, user: &str, price: i64) -> Message {
    let data = json!({"orderId": order_id, "userName": user, "price": price});
    Message::event("payment", order_id, "payment.requested", &data)
}

fn answer(topic: &str, order_id: Uuid, ce_type: &str) -> Message {
    Message::event(topic, order_id, ce_type, &json!({"orderId": order_id}))
}

fn without_header(mut message: Message, name: &str) -> Message {
    message.headers.retain(|(header, _)| header != name);
    message
}

fn with_header(mut message: Message, name: &str, value: &str) -> Message {
    message
        .headers
        .iter_mut()
        .filter(|(header, _)| header == name)
        .for_each(|(_, old)| *old = value.into());
    message
}

/// What a `.dlt` topic says: keys and data, in order.
pub(crate) fn refusals(world: &World, topic: &str) -> Vec<(Option<String>, Value)> {
    world
        .records(topic)
        .into_iter()
        .map(|seen: Seen| (seen.key, seen.data))
        .collect()
}

fn unprocessable(order_id: Uuid, from: &str, attempts: i32) -> (Option<String>, Value) {
    let reason = json!({"code": "UNPROCESSABLE", "from": from});
    (
        Some(order_id.to_string()),
        json!({"orderId": order_id, "reason": reason, "attempts": attempts}),
    )
}

/// A shop with a rich ann and many lamps: order, payment, stock.
pub(crate) fn open_shop(world: &World) -> [Instance; 3] {
    let instances = world.start_all();
    instances[1].api().put_balance("ann", 1_000);
    instances[2].api().put_quantity("lamp", 1_000);
    instances
}

/// Statuses of an order and its sides.
pub(crate) fn statuses(order: &Value) -> [&str; 3] {
    ["orderStatus", "paymentStatus", "stockStatus"].map(|field| order[field].as_str().unwrap())
}

pub(crate) const COMPLETED: [&str; 3] = ["COMPLETED", "COMPLETED", "COMPLETED"];

/// Spoils the outbox rows that `when` picks from now on, by replacing `old` by `new` in their messages.
pub(crate) fn spoil_outbox(db: &mut Client, outbox: &str, when: &str, old: &str, new: &str) {
    let sql = format!(
        "create function spoil() returns trigger language plpgsql as
         $$ begin new.messages = replace(new.messages::text, '{old}', '{new}')::json; return new; end $$;
         create trigger spoil before insert on {outbox} for each row when ({when}) execute function spoil()"
    );
    db.batch_execute(&sql).unwrap();
}

/// Has what is done to a table (`update on account`) fail with `sqlstate` for the rows that `when` picks, until [`mend`].
pub(crate) fn fail(db: &mut Client, done_to: &str, when: &str, sqlstate: &str) {
    let sql = format!(
        "create function fail() returns trigger language plpgsql as
         $$ begin raise exception 'made to fail' using errcode = '{sqlstate}'; end $$;
         create trigger fail before {done_to} for each row when ({when}) execute function fail()"
    );
    db.batch_execute(&sql).unwrap();
}

pub(crate) fn mend(db: &mut Client, table: &str) {
    db.batch_execute(&format!("drop trigger fail on {table}; drop function fail"))
        .unwrap();
}

/// The poison for topic `payment`, with what is wrong with it, and whether the key is usable.
fn undecodable_requests() -> Vec<(Message, &'static str, bool)> {
    let good = || payment_request(Uuid::now_v7(), "ann", 7);
    let no_key = "the key is not an order id (UUID)";
    let foreign = |ce_type: &str| with_header(good(), "ce_type", ce_type);
    vec![
        (
            Message {
                key: None,
                ..good()
            },
            no_key,
            false,
        ),
        (
            Message {
                key: Some(b"ann".to_vec()),
                ..good()
            },
            no_key,
            false,
        ),
        (
            Message {
                key: Some(vec![0xff, 0x00]),
                value: Some(vec![0x00, 0xff]),
                ..good()
            },
            no_key,
            false,
        ),
        (
            Message {
                value: Some(vec![0xff, 0x00, 0xfe]),
                ..good()
            },
            "the value is not the expected JSON: expected value at line 1 column 1",
            true,
        ),
        (
            Message {
                value: None,
                ..good()
            },
            "the value is missing",
            true,
        ),
        (
            without_header(good(), "ce_type"),
            "header ce_type is missing or not text",
            true,
        ),
        (
            without_header(good(), "ce_id"),
            "header ce_id is missing or not text",
            true,
        ),
        (
            with_header(good(), "ce_specversion", "0.3"),
            "header ce_specversion is not 1.0",
            true,
        ),
        (
            Message {
                key: Some(Uuid::now_v7().to_string().into()),
                ..good()
            },
            "orderId in the value is not the key",
            true,
        ),
        (
            payment_request(Uuid::now_v7(), "ann", 0),
            "type payment.requested with these fields does not belong on payment",
            true,
        ),
        (
            foreign("stock.requested"),
            "type stock.requested with these fields does not belong on payment",
            true,
        ),
        (
            foreign("payment.completed"),
            "type payment.completed with these fields does not belong on payment",
            true,
        ),
    ]
}

#[test]
fn an_undecodable_request_is_parked_and_answered_and_its_partition_moves_on() {
    let world = World::with("poison_undecodable", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let poison = undecodable_requests();
    poison
        .iter()
        .for_each(|(message, ..)| world.produce(message));
    let good = order.api().place("ann", "lamp", 7, 2);
    assert_eq!(statuses(&order.api().settled(good)), COMPLETED);

    let expected: Vec<Parked> = (0..)
        .zip(&poison)
        .map(|(at, (message, why, _))| parked_as(message, at, "UNDECODABLE", why, 1))
        .collect();
    assert_eq!(parked(&world, Service::Payment), expected);
    let key = |message: &Message| {
        String::from_utf8(message.key.clone().unwrap())
            .unwrap()
            .parse()
            .unwrap()
    };
    let usable: Vec<Uuid> = poison
        .iter()
        .filter(|(.., usable)| *usable)
        .map(|(message, ..)| key(message))
        .collect();
    let answered: Vec<_> = usable
        .iter()
        .map(|id| unprocessable(*id, "payment", 1))
        .collect();
    world.wait_until_quiet();
    assert_eq!(refusals(&world, "payment.dlt"), answered);
    for id in &usable {
        assert_eq!(world.payment_status(*id).as_deref(), Some("FAILED"));
    }
    assert_eq!(payment.api().balance("ann"), 993);
    // order does not know these orders: it parks the answers, and its partition moves on as well
    let unknown = parked(&world, Service::Order)
        .into_iter()
        .map(|p| (p.cause, p.topic, String::from_utf8(p.key.unwrap()).unwrap()));
    let expected = usable.iter().map(|id| {
        (
            "UNKNOWN_ORDER".to_string(),
            "payment.dlt".to_string(),
            id.to_string(),
        )
    });
    assert_eq!(unknown.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    world.assert_conserved();
}

#[test]
fn an_order_whose_request_is_undecodable_fails_and_its_other_side_is_compensated() {
    let world = World::with("poison_order", &ONE_PARTITION);
    world.spoils_messages();
    let [order, payment, stock] = open_shop(&world);
    spoil_outbox(
        &mut world.db(Service::Order),
        "order_outbox",
        "new.messages::text like '%\"price\":77%'",
        "\"price\":77",
        "\"price\":0",
    );
    let failed = order.api().place("ann", "lamp", 77, 2);
    let good = order.api().place("ann", "lamp", 7, 2);
    let end = order.api().settled(failed);
    assert_eq!(statuses(&end), ["FAILED", "FAILED", "COMPENSATED"]);
    assert_eq!(
        end["reason"],
        json!({"code": "UNPROCESSABLE", "from": "payment"})
    );
    assert_eq!(statuses(&order.api().settled(good)), COMPLETED);
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("lamp")),
        (993, 998)
    );
    assert_eq!(
        (
            parked(&world, Service::Payment).len(),
            parked(&world, Service::Stock).len(),
            parked(&world, Service::Order).len()
        ),
        (1, 0, 0)
    );
    world.assert_conserved();
}

#[test]
fn an_undecodable_duplicate_of_a_handled_request_is_parked_and_undoes_nothing() {
    let world = World::with("poison_duplicate", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let id = order.api().place("ann", "lamp", 7, 2);
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    world.produce(&Message {
        value: Some(b"{".to_vec()),
        ..payment_request(id, "ann", 7)
    });
    let parked = wait_for_parked(&world, Service::Payment, 1);
    // offset 0 is the request, 1 the end of its transaction
    assert_eq!(
        (parked[0].cause.as_str(), parked[0].offset),
        ("UNDECODABLE", 2)
    );
    world.wait_until_quiet();
    assert_eq!(refusals(&world, "payment.dlt"), []);
    assert_eq!(
        (
            world.payment_status(id).as_deref(),
            payment.api().balance("ann")
        ),
        (Some("COMPLETED"), 993)
    );
    assert_eq!(statuses(&order.api().order(id)), COMPLETED);
}

#[test]
fn what_order_cannot_read_is_parked_only() {
    let world = World::with("poison_answers", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    assert!(payment.stop().success());
    let id = order.api().place("ann", "lamp", 7, 2);
    until("its requests to be published", || {
        statuses(&order.api().order(id))[1] == "IN_PROGRESS"
    });
    let poison = [
        (
            Message {
                value: Some(b"\xff".to_vec()),
                ..answer("payment.success", id, "payment.completed")
            },
            0,
            "the value is not the expected JSON: expected value at line 1 column 1",
        ),
        (
            answer("payment.dlt", id, "payment.failed"),
            0,
            "type payment.failed with these fields does not belong on payment.dlt",
        ),
        (
            answer("payment.dlt", id, "payment.completed"),
            1,
            "type payment.completed with these fields does not belong on payment.dlt",
        ),
    ];
    poison
        .iter()
        .for_each(|(message, ..)| world.produce(message));
    let parked = wait_for_parked(&world, Service::Order, 3);
    assert_eq!(parked.len(), 3);
    for (message, offset, why) in &poison {
        assert!(
            parked.contains(&parked_as(message, *offset, "UNDECODABLE", why, 1)),
            "{why} is not among {parked:?}"
        );
    }
    assert_eq!(
        statuses(&order.api().order(id))[..2],
        ["IN_PROGRESS", "IN_PROGRESS"]
    );
    let _payment = world.start(Service::Payment);
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    world.wait_until_quiet();
    assert_eq!(
        (
            world.records("payment.compensation"),
            world.records("stock.compensation")
        ),
        (vec![], vec![])
    );
}

/// A name that JSON can hold and PostgreSQL's text can't (SQLSTATE 22021).
const NUL: &str = "n\0l";
pub(crate) const NUL_REFUSED: &str =
    "PostgreSQL: invalid byte sequence for encoding \"UTF8\": 0x00 (SQLSTATE 22021)";

/// Has order ask its participants for `NUL` where the name `nul` was ordered.
pub(crate) fn spoil_nul(world: &World) {
    let mut db = world.db(Service::Order);
    spoil_outbox(&mut db, "order_outbox", "true", "\"nul\"", "\"n\\u0000l\"");
}

#[test]
fn a_request_that_fails_by_its_own_fault_has_five_attempts_and_then_fails_for_good() {
    let world = World::with("poison_given_up", &ONE_PARTITION);
    let [order, payment, stock] = open_shop(&world);
    spoil_nul(&world);
    let by_payment = order.api().place("nul", "lamp", 7, 2);
    let by_stock = order.api().place("ann", "nul", 7, 2);
    let good = order.api().place("ann", "lamp", 7, 2);
    let ends = [
        (
            by_payment,
            &payment,
            "payment",
            ["FAILED", "FAILED", "COMPENSATED"],
            "/payments",
        ),
        (
            by_stock,
            &stock,
            "stock",
            ["FAILED", "COMPENSATED", "FAILED"],
            "/reservations",
        ),
    ];
    for (id, participant, name, end, path) in ends {
        let settled = order.api().settled(id);
        assert_eq!(statuses(&settled), end);
        assert_eq!(
            settled["reason"],
            json!({"code": "UNPROCESSABLE", "from": name})
        );
        let part = participant.api().found(&format!("{path}/{id}"));
        assert_eq!(
            (&part["status"], &part["reason"]),
            (
                &json!("FAILED"),
                &json!({"code": "UNPROCESSABLE", "from": name})
            )
        );
        let parked = parked(&world, participant.service());
        assert_eq!(parked.len(), 1);
        let facts = (
            parked[0].cause.as_str(),
            parked[0].attempts,
            parked[0].detail.as_str(),
            parked[0].topic.as_str(),
        );
        assert_eq!(facts, ("GIVEN_UP", 5, NUL_REFUSED, name));
        assert_eq!(
            refusals(&world, &format!("{name}.dlt")),
            [unprocessable(id, name, 5)]
        );
        for (attempt, times) in [
            ("attempt 1 of 5", 1),
            ("attempt 4 of 5", 1),
            ("attempt 5 of 5", 0),
        ] {
            assert_eq!(
                participant.log().matches(attempt).count(),
                times,
                "{attempt} in the log of {name}"
            );
        }
    }
    assert_eq!(statuses(&order.api().settled(good)), COMPLETED);
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("lamp")),
        (993, 998)
    );
    assert_eq!(parked(&world, Service::Order), []);
    world.assert_conserved();
}

/// Some order ids whose records go to `partition` of 3.
fn ids_on(partition: i32, count: usize) -> Vec<Uuid> {
    let ids = std::iter::repeat_with(Uuid::now_v7);
    ids.filter(|id| partition_for_key(id.to_string().as_bytes(), 3) == partition)
        .take(count)
        .collect()
}

/// Has the topics made by a payment service that runs no longer, with a rich ann.
fn closed_payment(world: &World) {
    let payment = world.start(Service::Payment);
    payment.api().put_balance("ann", 1_000);
    assert!(payment.stop().success());
}

/// When the payments of these orders were decided: the first and the last.
fn decided(world: &World, ids: &[Uuid], status: &str) -> (f64, f64) {
    let sql =
        "select count(*), extract(epoch from min(updated_at))::float8, extract(epoch from max(updated_at))::float8
                 from payment where order_id = any($1) and status = $2";
    let row = world
        .db(Service::Payment)
        .query_one(sql, &[&ids, &status])
        .unwrap();
    assert_eq!(
        row.get::<_, i64>(0),
        ids.len() as i64,
        "all of them {status}"
    );
    (row.get(1), row.get(2))
}

#[test]
fn while_a_record_is_tried_again_other_partitions_go_on_and_its_own_waits_in_order() {
    let world = World::new("poison_order_kept");
    closed_payment(&world);
    let (own, others) = (ids_on(0, 9), [ids_on(1, 8), ids_on(2, 8)].concat());
    let (before, poison, behind) = (&own[..3], own[3], &own[4..]);
    for id in &own {
        world.produce(&payment_request(
            *id,
            if *id == poison { NUL } else { "ann" },
            7,
        ));
    }
    others
        .iter()
        .for_each(|id| world.produce(&payment_request(*id, "ann", 7)));
    let _payment = world.start(Service::Payment);
    until("all requests to be answered", || {
        world.records("payment.success").len() + world.records("payment.dlt").len() == 25
    });
    let given_up = decided(&world, &[poison], "FAILED");
    assert!(decided(&world, before, "COMPLETED").1 < given_up.0);
    assert!(
        decided(&world, &others, "COMPLETED").1 < given_up.0,
        "another partition waited"
    );
    assert!(
        decided(&world, behind, "COMPLETED").0 > given_up.1,
        "a record overtook the one before it"
    );
    let answered: Vec<String> = world
        .records("payment.success")
        .into_iter()
        .filter_map(|seen| seen.key)
        .collect();
    let on_own = |key: &String| partition_for_key(key.as_bytes(), 3) == 0;
    let expected: Vec<String> = before.iter().chain(behind).map(Uuid::to_string).collect();
    assert_eq!(
        answered.into_iter().filter(on_own).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn poison_in_the_middle_of_a_batch_costs_nothing_of_the_rest() {
    let world = World::with("poison_batch", &ONE_PARTITION);
    closed_payment(&world);
    let ids = ids_on(0, 60);
    for (at, id) in ids.iter().enumerate() {
        let message = payment_request(*id, if at == 31 { NUL } else { "ann" }, 7);
        world.produce(&if at == 17 {
            without_header(message, "ce_type")
        } else {
            message
        });
    }
    let payment = world.start(Service::Payment);
    until("all requests to be answered", || {
        world.records("payment.success").len() + world.records("payment.dlt").len() == 60
    });
    let mut good = ids.clone();
    good.remove(31);
    good.remove(17);
    let answered: Vec<_> = world
        .records("payment.success")
        .into_iter()
        .filter_map(|seen| seen.key)
        .collect();
    assert_eq!(
        answered,
        good.iter().map(Uuid::to_string).collect::<Vec<_>>()
    );
    assert_eq!(
        refusals(&world, "payment.dlt"),
        [
            unprocessable(ids[17], "payment", 1),
            unprocessable(ids[31], "payment", 5)
        ]
    );
    let parked: Vec<_> = parked(&world, Service::Payment)
        .into_iter()
        .map(|p| (p.cause, p.attempts, p.offset))
        .collect();
    assert_eq!(
        parked,
        [
            ("UNDECODABLE".to_string(), 1, 17),
            ("GIVEN_UP".to_string(), 5, 31)
        ]
    );
    assert_eq!(payment.api().balance("ann"), 1_000 - 58 * 7);
    let next: i64 = world
        .db(Service::Payment)
        .query_one(
            "select next_offset from consumer_offset where topic like '%.payment'",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(next, 60);
    world.assert_conserved();
}

#[test]
fn what_the_world_is_to_blame_for_is_tried_without_end_and_parks_nothing() {
    let world = World::with("poison_world", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let mut db = world.db(Service::Payment);
    db.batch_execute("alter table account rename to account_away")
        .unwrap();
    let ids: Vec<Uuid> = (0..5)
        .map(|_| order.api().place("ann", "lamp", 7, 2))
        .collect();
    // more often than a record to blame would be tried
    payment.wait_for_log("attempt 7 failed");
    assert_eq!((world.parked(), world.records("payment.dlt")), (0, vec![]));
    assert_eq!(world.payment_status(ids[0]), None);
    db.batch_execute("alter table account_away rename to account")
        .unwrap();
    ids.iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), COMPLETED));
    assert_eq!((world.parked(), payment.api().balance("ann")), (0, 965));
    world.assert_conserved();
}

#[test]
fn while_one_partition_waits_for_the_world_the_others_go_on() {
    let world = World::new("poison_world_part");
    let [order, payment, _stock] = open_shop(&world);
    payment.api().put_balance("bob", 1_000);
    let mut db = world.db(Service::Payment);
    // 53100: the disk is full
    fail(
        &mut db,
        "update on account",
        "old.user_name = 'ann'",
        "53100",
    );
    let stuck = order.api().place("ann", "lamp", 7, 2);
    payment.wait_for_log("attempt 1 failed");
    let partition = |id: &Uuid| partition_for_key(id.to_string().as_bytes(), 3);
    let (mut behind, mut elsewhere) = (vec![], vec![]);
    while behind.len() < 2 || elsewhere.len() < 2 {
        let id = order.api().place("bob", "lamp", 1, 1);
        if partition(&id) == partition(&stuck) {
            behind.push(id)
        } else {
            elsewhere.push(id)
        }
    }
    elsewhere
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), COMPLETED));
    for id in behind.iter().chain([&stuck]) {
        assert_eq!(
            world.payment_status(*id),
            None,
            "it must wait behind the one that fails"
        );
    }
    mend(&mut db, "account");
    behind
        .iter()
        .chain([&stuck])
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), COMPLETED));
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}

/// The number of the newest parked record.
pub(crate) fn newest(api: &Api) -> i64 {
    api.found("/dead-letters?limit=1")["deadLetters"][0]["id"]
        .as_i64()
        .unwrap()
}

pub(crate) fn replay(api: &Api, id: i64) -> Value {
    let answer = api
        .call(
            "POST",
            &format!("/dead-letters/{id}/replay"),
            &[],
            Some(b""),
        )
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json
}

pub(crate) fn failed(why: &str) -> Value {
    json!({"result": "FAILED", "detail": why})
}

fn unchanged(why: &str) -> Value {
    json!({"result": "UNCHANGED", "detail": why})
}

#[test]
fn a_second_request_with_other_amounts_is_parked_and_changes_nothing() {
    let world = World::with("poison_contradiction", &ONE_PARTITION);
    let [order, payment, stock] = open_shop(&world);
    payment.api().put_balance("bob", 1_000);
    let id = order.api().place("ann", "lamp", 7, 2);
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    world.wait_until_quiet();
    let stock_request = |item: &str, quantity: i64| {
        let data = json!({"orderId": id, "itemName": item, "quantity": quantity});
        Message::event("stock", id, "stock.requested", &data)
    };
    // the first of each is a plain duplicate
    let requests = [
        payment_request(id, "ann", 7),
        payment_request(id, "ann", 8),
        payment_request(id, "bob", 7),
    ];
    let reservations = [
        stock_request("lamp", 2),
        stock_request("lamp", 3),
        stock_request("bed", 2),
    ];
    requests
        .iter()
        .chain(&reservations)
        .for_each(|message| world.produce(message));
    world.wait_until_quiet();
    let against = |what: &str| format!("order {id} asked for {what}");
    let of_payment = [
        against("7 of ann, now for 8 of ann"),
        against("7 of ann, now for 7 of bob"),
    ];
    let of_stock = [
        against("2 of lamp, now for 3 of lamp"),
        against("2 of lamp, now for 2 of bed"),
    ];
    let cases = [
        (&payment, &requests, of_payment),
        (&stock, &reservations, of_stock),
    ];
    for (participant, messages, why) in cases {
        // the order's own request, the end of its transaction, the duplicate, then these
        let expected = [1, 2].map(|at| {
            parked_as(
                &messages[at],
                at as i64 + 2,
                "CONTRADICTION",
                &why[at - 1],
                1,
            )
        });
        assert_eq!(parked(&world, participant.service()), expected);
        assert_eq!(
            replay(participant.api(), newest(participant.api())),
            failed(&why[1])
        );
    }
    assert_eq!(
        (
            payment.api().balance("ann"),
            payment.api().balance("bob"),
            stock.api().quantity("lamp")
        ),
        (993, 1_000, 998)
    );
    let answers = [
        "payment.success",
        "payment.dlt",
        "stock.success",
        "stock.dlt",
    ]
    .map(|topic| world.records(topic).len());
    assert_eq!(answers, [1, 0, 1, 0]);
    assert_eq!(statuses(&order.api().order(id)), COMPLETED);
}

/// Has Kafka's own tool delete the records of partition 0 before `offset`.
fn delete_records(world: &World, topic: &str, offset: i64) {
    let place =
        json!({"topic": format!("{}{topic}", world.prefix()), "partition": 0, "offset": offset});
    let file = std::env::temp_dir().join(format!("delete-{}.json", Uuid::new_v4()));
    std::fs::write(
        &file,
        json!({"partitions": [place], "version": 1}).to_string(),
    )
    .unwrap();
    let arguments = [
        "--bootstrap-server",
        world.brokers(),
        "--offset-json-file",
        file.to_str().unwrap(),
    ];
    harness::broker::tool("org.apache.kafka.tools.DeleteRecordsCommand", &arguments);
    std::fs::remove_file(file).unwrap();
}

/// What a gap is parked as: nothing of its records is left.
fn gap(from: i64, to: i64, detail: &str) -> Parked {
    Parked {
        cause: "LOG_GAP".into(),
        detail: detail.into(),
        attempts: 1,
        topic: "payment".into(),
        partition: 0,
        offset: from,
        to_offset: Some(to),
        key: None,
        value: None,
        headers: vec![],
    }
}

#[test]
fn records_that_kafka_lost_before_they_were_read_are_parked_as_a_gap() {
    let world = World::with("poison_gap", &ONE_PARTITION);
    closed_payment(&world);
    let ids = ids_on(0, 5);
    ids[..4]
        .iter()
        .for_each(|id| world.produce(&payment_request(*id, "ann", 7)));
    delete_records(&world, "payment", 3);
    let payment = world.start(Service::Payment);
    until("the record after the gap", || {
        world.payment_status(ids[3]).as_deref() == Some("COMPLETED")
    });
    assert_eq!(
        parked(&world, Service::Payment),
        [gap(0, 3, "offsets 0 to 2 are no longer in Kafka")]
    );
    world.produce(&payment_request(ids[4], "ann", 7));
    until("the next record", || {
        world.payment_status(ids[4]).as_deref() == Some("COMPLETED")
    });
    assert_eq!(payment.api().balance("ann"), 986);
    assert_eq!(payment.api().found("/dead-letters/1")["toOffset"], 3);
    assert_eq!(
        replay(payment.api(), 1),
        unchanged("a gap holds no record that could be handled")
    );
}

/// A lone broker loses no election, but it leads under a new epoch after each start: what is said to have been read under the
/// epoch before, and was written later, looks to it like another history.
#[test]
fn records_that_an_election_took_back_while_their_reader_was_away_are_parked_as_a_gap() {
    let mut broker = Broker::start();
    let brokers = broker.direct();
    let world = World::with(
        "poison_epoch",
        &[ONE_PARTITION[0], ("KAFKA_BROKERS", &brokers)],
    );
    closed_payment(&world);
    let ids = ids_on(0, 4);
    let handle = |id: Uuid| {
        world.produce(&payment_request(id, "ann", 7));
        let payment = world.start(Service::Payment);
        until("its payment", || {
            world.payment_status(id).as_deref() == Some("COMPLETED")
        });
        assert!(payment.stop().success());
    };
    handle(ids[0]);
    broker.kill();
    broker.restart();
    handle(ids[1]);
    handle(ids[2]);
    let mut db = world.db(Service::Payment);
    let claim = "update consumer_offset set leader_epoch = leader_epoch - 1
                  where topic like '%payment' and epoch_offset = 3 and next_offset = 3";
    assert_eq!(db.execute(claim, &[]).unwrap(), 1);
    let payment = world.start(Service::Payment);
    let detail = "offsets 1 to 2 were read and are no longer what Kafka has: a leader without them was elected; read again from 1";
    assert_eq!(
        wait_for_parked(&world, Service::Payment, 1),
        [gap(3, 1, detail)]
    );
    world.produce(&payment_request(ids[3], "ann", 7));
    until("the next record", || {
        world.payment_status(ids[3]).as_deref() == Some("COMPLETED")
    });
    assert_eq!(payment.api().balance("ann"), 972, "each of the four once");
    assert_eq!(parked(&world, Service::Payment).len(), 1);
}

#[test]
fn a_gap_that_can_not_be_parked_yet_costs_no_record_of_other_partitions() {
    let world = World::new("poison_gap_later");
    closed_payment(&world);
    let (lost, kept) = (ids_on(0, 3), [ids_on(1, 5), ids_on(2, 5)].concat());
    lost.iter()
        .chain(&kept)
        .for_each(|id| world.produce(&payment_request(*id, "ann", 7)));
    delete_records(&world, "payment", 3);
    let mut db = world.db(Service::Payment);
    fail(&mut db, "insert on dead_letter", "true", "53100");
    let payment = world.start(Service::Payment);
    until("some attempts to park the gap", || {
        payment.log().matches("made to fail").count() >= 3
    });
    mend(&mut db, "dead_letter");
    let parked = wait_for_parked(&world, Service::Payment, 1);
    assert_eq!(parked, [gap(0, 3, "offsets 0 to 2 are no longer in Kafka")]);
    let later = [ids_on(0, 1), ids_on(1, 1), ids_on(2, 1)].concat();
    later
        .iter()
        .for_each(|id| world.produce(&payment_request(*id, "ann", 7)));
    until("the later records", || {
        later.iter().all(|id| world.payment_status(*id).is_some())
    });
    decided(&world, &[kept, later].concat(), "COMPLETED");
    assert_eq!(payment.api().balance("ann"), 1_000 - 13 * 7);
    world.assert_conserved();
}

/// Writes a record to partition 0 of topic `payment` in a transaction that is aborted.
fn write_and_abort(world: &World) {
    let mut producer = Producer::transactional(
        world.kafka(),
        Interrupt::new(),
        format!("{}aborts", world.prefix()),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    let mut transaction = producer.begin().unwrap();
    let record = ProducerRecord {
        topic: format!("{}payment", world.prefix()).into(),
        key: None,
        value: Some(Bytes::from_static(b"never committed")),
        headers: vec![],
        timestamp: None,
        partition: Some(0),
    };
    transaction.send(vec![record]).unwrap();
    transaction.abort().unwrap();
}

#[test]
fn a_batch_that_rotted_on_the_brokers_disk_is_parked_with_its_bytes_and_the_partition_moves_on() {
    let broker = Broker::start();
    let world = World::with(
        "poison_rot",
        &[ONE_PARTITION[0], ("KAFKA_BROKERS", &broker.direct())],
    );
    closed_payment(&world);
    let ids = ids_on(0, 3);
    ids.iter()
        .for_each(|id| world.produce(&payment_request(*id, "ann", 7)));
    broker.spoil_batch(&format!("{}payment-0", world.prefix()), 1);
    let payment = world.start(Service::Payment);
    until("the record behind it", || {
        world.payment_status(ids[2]).as_deref() == Some("COMPLETED")
    });
    assert_eq!(world.payment_status(ids[0]).as_deref(), Some("COMPLETED"));
    assert_eq!(world.payment_status(ids[1]), None);
    let parked = parked(&world, Service::Payment);
    assert_eq!(parked.len(), 1, "{parked:?}");
    let Parked {
        cause,
        detail,
        attempts,
        topic,
        offset,
        value,
        ..
    } = &parked[0];
    assert_eq!(
        (cause.as_str(), *attempts, topic.as_str(), *offset),
        ("UNDECODABLE", 1, "payment", 1)
    );
    assert!(detail.starts_with("its checksum is "), "{detail}");
    let holds = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(
        holds(value.as_deref().unwrap(), &ids[1].to_string()),
        "the batch as it was read"
    );
    assert_eq!(payment.api().balance("ann"), 986);
}

#[test]
fn what_was_aborted_is_passed_over_and_is_no_gap_once_kafka_has_removed_it() {
    let world = World::with("poison_aborted", &ONE_PARTITION);
    let payment = world.start(Service::Payment);
    payment.api().put_balance("ann", 1_000);
    write_and_abort(&world);
    let mut db = world.db(Service::Payment);
    let mut next = || -> i64 {
        // the row is made when the consumer joins
        let row = db
            .query_opt(
                "select next_offset from consumer_offset where topic like '%.payment'",
                &[],
            )
            .unwrap();
        row.map_or(0, |row| row.get(0))
    };
    // the record and the abort marker
    until("the offset beyond the aborted transaction", || next() == 2);
    assert!(payment.stop().success());
    delete_records(&world, "payment", 2);
    let id = Uuid::now_v7();
    world.produce(&payment_request(id, "ann", 7));
    let payment = world.start(Service::Payment);
    until("the next record", || {
        world.payment_status(id).as_deref() == Some("COMPLETED")
    });
    assert_eq!(parked(&world, Service::Payment), []);
    assert_eq!(payment.api().balance("ann"), 993);
}

#[test]
fn a_foreign_trace_context_as_large_as_a_record_goes_no_further() {
    let world = World::with("poison_trace", &ONE_PARTITION);
    closed_payment(&world);
    let ids = ids_on(0, 2);
    // with it, the answer would be larger than what the broker takes
    let huge = "x".repeat(1_048_000);
    world.produce(&with_header(
        payment_request(ids[0], "ann", 7),
        "traceparent",
        &huge,
    ));
    world.produce(&payment_request(ids[1], "ann", 7));
    let _payment = world.start(Service::Payment);
    until("both answers", || {
        world.records("payment.success").len() == 2
    });
    let answers = world.records("payment.success");
    assert_eq!(
        answers
            .iter()
            .map(|seen| seen.key.clone().unwrap())
            .collect::<Vec<_>>(),
        ids.iter().map(Uuid::to_string).collect::<Vec<_>>()
    );
    let trace = |seen: &Seen| {
        seen.headers
            .iter()
            .find(|(name, _)| name == "traceparent")
            .map(|(_, value)| value.clone())
    };
    assert!(trace(&answers[0]) != Some(huge), "it was handed on");
    // that of a good one is handed on
    assert_eq!(
        trace(&answers[1]).as_deref(),
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    );
}

#[test]
fn an_offset_beyond_the_end_of_the_log_is_parked_as_a_gap_and_nothing_is_done_twice() {
    let world = World::with("poison_cut", &ONE_PARTITION);
    closed_payment(&world);
    let ids = ids_on(0, 2);
    world.produce(&payment_request(ids[0], "ann", 7));
    let payment = world.start(Service::Payment);
    until("the first record", || {
        world.payment_status(ids[0]).as_deref() == Some("COMPLETED")
    });
    assert!(payment.stop().success());
    let moved = "update consumer_offset set next_offset = 40 where topic like '%.payment'";
    assert_eq!(world.db(Service::Payment).execute(moved, &[]).unwrap(), 1);
    let payment = world.start(Service::Payment);
    wait_for_parked(&world, Service::Payment, 1);
    world.produce(&payment_request(ids[1], "ann", 7));
    until("the next record", || {
        world.payment_status(ids[1]).as_deref() == Some("COMPLETED")
    });
    let detail = "the offset 40 is beyond the log's end 1: the log was cut; handled again from 0";
    assert_eq!(parked(&world, Service::Payment), [gap(40, 0, detail)]);
    assert_eq!(payment.api().balance("ann"), 986);
    world.wait_until_published(Service::Payment);
    assert_eq!(
        world.records("payment.success").len(),
        2,
        "both answers, each once"
    );
}

#[test]
fn a_topic_replayed_from_its_beginning_parks_nothing_a_second_time() {
    let world = World::with("poison_twice", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    undecodable_requests()
        .iter()
        .for_each(|(message, ..)| world.produce(message));
    world.produce(&payment_request(Uuid::now_v7(), NUL, 7));
    wait_for_parked(&world, Service::Payment, 13);
    wait_for_parked(&world, Service::Order, 10);
    world.wait_until_quiet();
    let letters = || {
        [Service::Payment, Service::Order]
            .map(|service| world.tables(service).remove("dead_letter").unwrap())
    };
    let (kept, sent) = (letters(), world.all_records());
    assert_eq!(kept.each_ref().map(Vec::len), [13, 10]);

    assert!(payment.stop().success() && order.stop().success());
    for service in [Service::Payment, Service::Order] {
        world
            .db(service)
            .batch_execute("delete from consumer_offset")
            .unwrap();
    }
    let _again = [world.start(Service::Payment), world.start(Service::Order)];
    until("offsets at the ends again", || {
        world.is_at_the_ends(Service::Payment) && world.is_at_the_ends(Service::Order)
    });
    world.wait_until_quiet();
    assert_eq!(letters(), kept);
    assert_eq!(world.all_records(), sent);
}
