//! A database that comes back older (I9): what it has lost is rebuilt from Kafka, what contradicts it is asked back, and what
//! nobody can mend is parked for a person. Databases are copied and put back, as a restored backup is.

use std::collections::BTreeMap;

use harness::proxy::kafka_request;
use harness::{Api, Instance, Message, Proxy, Replicated, Service, World, eventually, until};
use kafka::{Admin, Interrupt};
use serde_json::{Value, json};
use uuid::Uuid;

/// Kafka's number of the request for offsets.
const LIST_OFFSETS: i16 = 2;

/// No deadline strikes and nothing is asked again meanwhile.
const PATIENT: [(&str, &str); 2] = [("COMPENSATION_RETRY", "1h"), ("ORDER_DEADLINE", "1h")];

fn open_shop(name: &str) -> (World, [Instance; 3]) {
    let world = World::with(name, &PATIENT);
    let instances = world.start_all();
    instances[1].api().put_balance("ann", 1_000);
    instances[2].api().put_quantity("tea", 100);
    (world, instances)
}

/// Places an order under a key; the whole answer.
fn place(api: &Api, key: &str, user: &str, item: &str, price: i64, quantity: i64) -> Value {
    let body = json!({"userName": user, "itemName": item, "price": price, "quantity": quantity});
    let answer = api.json("POST", "/orders", &[("idempotency-key", key)], &body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json
}

fn id(order: &Value) -> Uuid {
    order["orderId"].as_str().unwrap().parse().unwrap()
}

fn statuses(order: &Value) -> [&str; 3] {
    ["orderStatus", "paymentStatus", "stockStatus"].map(|field| order[field].as_str().unwrap())
}

/// The order once order knows it again and it is settled.
fn settled_again(api: &Api, order_id: Uuid) -> Value {
    let path = format!("/orders/{order_id}?wait=10s");
    eventually(
        &format!("order {order_id} to be there again, settled"),
        || {
            let answer = api.get(&path);
            (answer.status == 200 && answer.json["settled"] == true).then_some(answer.json)
        },
    )
}

/// Kind, side and state of each repair of an order, the oldest first.
fn repairs_of(api: &Api, order_id: Uuid) -> Vec<(String, Value, String)> {
    let listed = api.found(&format!("/repairs?orderId={order_id}"))["repairs"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let one = |repair: &Value| {
        (
            text(&repair["kind"]),
            repair["side"].clone(),
            text(&repair["state"]),
        )
    };
    listed.as_array().unwrap().iter().rev().map(one).collect()
}

fn repair(kind: &str, side: Value, state: &str) -> (String, Value, String) {
    (kind.to_string(), side, state.to_string())
}

/// The value of a series, over these instances.
fn metric(instances: &[&Instance], series: &str) -> f64 {
    let value = |instance: &&Instance| {
        let text = instance.api().get("/metrics").text;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no {series} in\n{text}"))
    };
    instances.iter().map(value).sum()
}

/// I9, by the three databases: nothing is kept for an order that is not COMPLETED, and no COMPLETED order lacks its payment or its
/// reservation, but those that are named.
fn assert_nothing_kept_for_nothing(world: &World, reported: &[Uuid]) {
    let by_order = |service: Service, sql: &str| -> BTreeMap<Uuid, String> {
        world
            .db(service)
            .query(sql, &[])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    };
    let orders = by_order(Service::Order, "select order_id, order_status from orders");
    for (service, table) in [
        (Service::Payment, "payment"),
        (Service::Stock, "reservation"),
    ] {
        let parts = by_order(service, &format!("select order_id, status from {table}"));
        for (order_id, status) in &parts {
            let order = orders.get(order_id).map(String::as_str);
            assert!(
                status != "COMPLETED" || order == Some("COMPLETED"),
                "{table} of {order_id} is kept, order: {order:?}"
            );
        }
        for (order_id, _) in orders
            .iter()
            .filter(|(id, status)| *status == "COMPLETED" && !reported.contains(id))
        {
            assert_eq!(
                parts.get(order_id).map(String::as_str),
                Some("COMPLETED"),
                "{table} of {order_id}"
            );
        }
    }
    world.assert_conserved();
}

/// Every topic read again from its beginning, by new processes, adds nothing.
fn assert_rereading_adds_nothing(world: &World, instances: Vec<Instance>) {
    world.wait_until_quiet();
    assert!(instances.iter().all(|instance| instance.stop().success()));
    let state = || {
        (
            Service::ALL.map(|service| world.tables(service)),
            world.all_records(),
        )
    };
    let before = state();
    for service in Service::ALL {
        let forgotten = world
            .db(service)
            .execute("delete from consumer_offset", &[])
            .unwrap();
        assert!(forgotten > 0, "{service:?} had read nothing");
    }
    let again = world.start_all();
    world.wait_until_quiet();
    assert!(again.iter().all(|instance| instance.stop().success()));
    let after = state();
    assert_eq!(after.1, before.1, "the topics");
    assert_eq!(after.0, before.0, "the tables");
}

#[test]
fn orders_that_the_database_lost_are_rebuilt_from_kafka_and_end_as_they_did() {
    let (world, [order, payment, stock]) = open_shop("repair_rebuilt");
    let kept = place(order.api(), "kept", "ann", "tea", 1, 1);
    order.api().settled(id(&kept));
    world.wait_until_quiet();
    assert!(order.stop().success());
    world.back_up(Service::Order);
    let order = world.start(Service::Order);
    let placed = [
        (
            "ok",
            place(order.api(), "ok", "ann", "tea", 100, 3),
            ["COMPLETED", "COMPLETED", "COMPLETED"],
        ),
        (
            "dear",
            place(order.api(), "dear", "ann", "tea", 5_000, 3),
            ["FAILED", "FAILED", "COMPENSATED"],
        ),
        (
            "many",
            place(order.api(), "many", "ann", "tea", 10, 300),
            ["FAILED", "COMPENSATED", "FAILED"],
        ),
        (
            "none",
            place(order.api(), "none", "bob", "gold", 10, 1),
            ["FAILED", "FAILED", "FAILED"],
        ),
    ];
    let more: Vec<Uuid> = (0..60)
        .map(|_| order.api().place("ann", "tea", 1, 1))
        .collect();
    let ends: Vec<Value> = placed
        .iter()
        .map(|(_, order_, _)| order.api().settled(id(order_)))
        .collect();
    more.iter().for_each(|order_id| {
        assert_eq!(order.api().settled(*order_id)["orderStatus"], "COMPLETED")
    });
    world.wait_until_quiet();
    order.kill();
    world.restore(Service::Order);

    // two at once, each of which may find an order missing
    let orders = [world.start(Service::Order), world.start(Service::Order)];
    for ((key, first, expected), before) in placed.iter().zip(&ends) {
        let again = settled_again(orders[0].api(), id(first));
        assert_eq!(statuses(before), *expected, "{key}");
        assert_eq!(statuses(&again), *expected, "{key}");
        for field in ["orderId", "userName", "itemName", "price", "quantity"] {
            assert_eq!(again[field], first[field], "{key}");
        }
        // known by when its requests were stored
        let sql =
            "select abs(extract(epoch from $1::text::timestamptz - $2::text::timestamptz))::float8";
        let [earlier, later] = [first, &again].map(|order| order["createdAt"].as_str().unwrap());
        let apart = world.db(Service::Order).query_one(sql, &[&earlier, &later]);
        assert!(
            apart.unwrap().get::<_, f64>(0) < 10.0,
            "{key}: {earlier}, {later}"
        );
        let user = if *key == "none" { "bob" } else { "ann" };
        let (item, price, quantity) = (
            first["itemName"].as_str().unwrap(),
            &first["price"],
            &first["quantity"],
        );
        let repeated = place(
            orders[1].api(),
            key,
            user,
            item,
            price.as_i64().unwrap(),
            quantity.as_i64().unwrap(),
        );
        assert_eq!(
            repeated["orderId"], first["orderId"],
            "the client's repeat, by its key {key}"
        );
        let reported = orders[1]
            .api()
            .found(&format!("/orders/{}/timeline", id(first)));
        let steps: Vec<&str> = reported["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| step["step"].as_str().unwrap())
            .collect();
        assert_eq!(steps[..2], ["STORED", "STORED"], "{key}: {reported}");
        assert_eq!(
            repairs_of(orders[0].api(), id(first))[0],
            repair("REBUILT", Value::Null, "DONE"),
            "{key}"
        );
    }
    for order_id in &more {
        assert_eq!(
            settled_again(orders[0].api(), *order_id)["orderStatus"],
            "COMPLETED"
        );
    }
    world.wait_until_quiet();
    assert_eq!(world.parked(), 0);
    assert_eq!(payment.api().balance("ann"), 1_000 - 1 - 100 - 60);
    assert_eq!(stock.api().quantity("tea"), 100 - 1 - 3 - 60);
    assert_nothing_kept_for_nothing(&world, &[]);

    let both = [&orders[0], &orders[1]];
    assert_eq!(metric(&both, "saga_repairs_total{kind=\"REBUILT\"}"), 64.0);
    assert_eq!(metric(&both, "saga_repairs_total{kind=\"LOST\"}"), 0.0);
    until("no repair to be open", || {
        both.iter()
            .all(|order| metric(&[order], "saga_repairs_open") == 0.0)
    });
    until("the repairs to be seen", || {
        orders[0].api().found("/overview")["repairs"]["REBUILT"] == 64
    });
    let lines = |order: &Instance| {
        order
            .log()
            .lines()
            .filter(|line| line.contains("that the database had lost"))
            .count()
    };
    assert!(
        (1..20).contains(&(lines(both[0]) + lines(both[1]))),
        "one line for many"
    );
    let page = orders[0]
        .api()
        .found("/repairs?kind=REBUILT&state=DONE&limit=60");
    let next = page["next"].as_i64().expect("four are left");
    assert_eq!(page["repairs"].as_array().map(Vec::len), Some(60));
    let rest = orders[0]
        .api()
        .found(&format!("/repairs?kind=REBUILT&before={next}"));
    assert_eq!(
        (rest["repairs"].as_array().map(Vec::len), &rest["next"]),
        (Some(4), &Value::Null)
    );
    assert_eq!(repairs_of(orders[0].api(), id(&kept)), []);
    let [first, second] = orders;
    assert!(second.stop().success());
    assert_rereading_adds_nothing(&world, vec![first, payment, stock]);
}

#[test]
fn an_idle_service_notices_that_the_database_it_was_led_to_knows_less() {
    let replicated = Replicated::start();
    let world = World::with("repair_idle", &PATIENT).on(Service::Order, &replicated);
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 100);
    order
        .api()
        .settled(id(&place(order.api(), "kept", "ann", "tea", 1, 1)));
    world.wait_until_idle(Service::Order);
    replicated.lag();
    let lost = place(order.api(), "lost", "ann", "tea", 100, 3);
    assert_eq!(statuses(&order.api().settled(id(&lost))), ["COMPLETED"; 3]);
    world.wait_until_idle(Service::Order);
    replicated.lose_tail();
    assert_eq!(
        statuses(&settled_again(order.api(), id(&lost))),
        ["COMPLETED"; 3]
    );
    assert_eq!(
        repairs_of(order.api(), id(&lost)),
        [repair("REBUILT", Value::Null, "DONE")]
    );
    assert!(
        order.log().contains("the database has gone back"),
        "{}",
        order.log()
    );
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (899, 96)
    );
    assert_eq!(world.parked(), 0);
    assert_nothing_kept_for_nothing(&world, &[]);
    assert_rereading_adds_nothing(&world, vec![order, payment, stock]);
}

#[test]
fn an_order_that_the_client_placed_again_before_it_was_rebuilt_is_paid_once() {
    let (world, [order, payment, stock]) = open_shop("repair_superseded");
    assert!(order.stop().success());
    world.back_up(Service::Order);
    let order = world.start(Service::Order);
    assert!(payment.stop().success() && stock.stop().success());
    let first = place(order.api(), "k", "ann", "tea", 100, 3);
    world.wait_until_published(Service::Order);
    order.kill();
    world.restore(Service::Order);
    let order = world.start(Service::Order);
    let second = place(order.api(), "k", "ann", "tea", 100, 3);
    assert_ne!(
        second["orderId"], first["orderId"],
        "nothing shows the first one yet"
    );
    let (payment, stock) = (world.start(Service::Payment), world.start(Service::Stock));
    assert_eq!(
        statuses(&order.api().settled(id(&second))),
        ["COMPLETED", "COMPLETED", "COMPLETED"]
    );
    let given_back = settled_again(order.api(), id(&first));
    assert_eq!(
        statuses(&given_back),
        ["FAILED", "COMPENSATED", "COMPENSATED"]
    );
    assert_eq!(
        given_back["reason"],
        json!({"code": "SUPERSEDED", "from": "order"})
    );
    assert_eq!(
        (&given_back["userName"], &given_back["price"]),
        (&json!("ann"), &json!(100))
    );
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (900, 97)
    );
    assert_eq!(
        repairs_of(order.api(), id(&first)),
        [repair("SUPERSEDED", Value::Null, "DONE")]
    );
    assert_eq!(
        place(order.api(), "k", "ann", "tea", 100, 3)["orderId"],
        second["orderId"]
    );
    assert_eq!(world.parked(), 0);
    assert_nothing_kept_for_nothing(&world, &[]);
    assert_rereading_adds_nothing(&world, vec![order, payment, stock]);
}

/// An order that is lost while its participants are away: nothing tells of it before they are back.
fn lose_an_order(world: &World, [order, payment, stock]: [Instance; 3]) -> Value {
    assert!(payment.stop().success() && stock.stop().success());
    let lost = place(order.api(), "k", "ann", "tea", 100, 3);
    world.wait_until_published(Service::Order);
    assert!(order.stop().success());
    world
        .db(Service::Order)
        .batch_execute("delete from orders; delete from idempotency_key")
        .unwrap();
    lost
}

#[test]
fn a_key_that_another_order_got_after_it_had_expired_gives_nothing_back() {
    let (world, instances) = open_shop("repair_expired");
    let lost = lose_an_order(&world, instances);
    let later =
        "insert into idempotency_key values ('k', gen_random_uuid(), now() + interval '24 hours')";
    world.db(Service::Order).batch_execute(later).unwrap();
    let [order, ..] = world.start_all();
    assert_eq!(
        statuses(&settled_again(order.api(), id(&lost))),
        ["COMPLETED", "COMPLETED", "COMPLETED"]
    );
    assert_eq!(
        repairs_of(order.api(), id(&lost)),
        [repair("REBUILT", Value::Null, "DONE")]
    );
    world.wait_until_quiet();
    assert_nothing_kept_for_nothing(&world, &[]);
}

#[test]
fn an_order_is_not_taken_for_lost_while_kafka_does_not_answer() {
    let (world, instances) = open_shop("repair_away");
    let lost = lose_an_order(&world, instances);
    let (_payment, _stock) = (world.start(Service::Payment), world.start(Service::Stock));
    until("both answers", || {
        ["payment.success", "stock.success"]
            .iter()
            .all(|topic| world.records(topic).len() == 1)
    });
    let kafka = Proxy::to_kafka(&harness::env::brokers());
    kafka.hold_after(kafka_request(LIST_OFFSETS, "order-recovery"));
    let order = world.start_with(Service::Order, &[("KAFKA_BROKERS", &kafka.addr())]);
    until("order to look for the lost one", || {
        kafka.holds_the_answer()
    });
    order.wait_for_log("waits (attempt 1 failed): Kafka");
    assert_eq!(
        order.api().get(&format!("/orders/{}", id(&lost))).status,
        404
    );
    assert_eq!(world.parked(), 0);
    kafka.resume();
    assert_eq!(
        statuses(&settled_again(order.api(), id(&lost))),
        ["COMPLETED", "COMPLETED", "COMPLETED"]
    );
    assert_eq!(
        repairs_of(order.api(), id(&lost)),
        [repair("REBUILT", Value::Null, "DONE")]
    );
    assert_eq!(world.parked(), 0);
    assert_nothing_kept_for_nothing(&world, &[]);
}

#[test]
fn a_settled_order_s_side_that_was_asked_back_is_asked_again_until_it_confirms() {
    let world = World::with(
        "repair_again",
        &[("COMPENSATION_RETRY", "200ms"), ("ORDER_DEADLINE", "1h")],
    );
    let [order, payment, stock] = world.start_all();
    stock.api().put_quantity("tea", 100);
    let failed = order.api().place("bob", "tea", 100, 1);
    let before = order.api().settled(failed);
    assert_eq!(statuses(&before), ["FAILED", "FAILED", "COMPENSATED"]);
    world.wait_until_quiet();
    assert!(payment.stop().success());
    world.produce(&Message::event(
        "payment.success",
        failed,
        "payment.completed",
        &json!({"orderId": failed}),
    ));
    until("payment to be asked twice", || {
        world.records("payment.compensation").len() >= 2
    });
    assert_eq!(
        repairs_of(order.api(), failed),
        [repair("ASKED_BACK", json!("payment"), "OPEN")]
    );
    until("it to be seen", || {
        metric(&[&order], "saga_repairs_open") == 1.0
    });
    let payment = world.start(Service::Payment);
    until("the confirmation", || {
        repairs_of(order.api(), failed) == [repair("ASKED_BACK", json!("payment"), "DONE")]
    });
    world.wait_until_quiet();
    assert_eq!(order.api().order(failed), before);
    until("nothing to be looked at again", || {
        let sql = "select count(*) from deadline where round > 0";
        world
            .db(Service::Order)
            .query_one(sql, &[])
            .unwrap()
            .get::<_, i64>(0)
            == 0
    });
    assert_nothing_kept_for_nothing(&world, &[]);
    drop(payment);
}

/// Deletes topics, as retention or an operator does.
fn delete_topics(world: &World, topics: &[&str]) {
    let names: Vec<String> = topics
        .iter()
        .map(|topic| format!("{}{topic}", world.prefix()))
        .collect();
    let mut admin = Admin::new(world.kafka(), Interrupt::new());
    admin.delete_topics(&names).expect("deleted");
    until("the topics to be gone", || {
        admin.describe_topics(&names).expect("an answer").is_empty()
    });
}

#[test]
fn a_lost_order_whose_requests_are_gone_from_kafka_is_given_back() {
    let (world, [order, payment, stock]) = open_shop("repair_lost");
    assert!(order.stop().success());
    world.back_up(Service::Order);
    for (key, gone, known) in [
        (
            "k1",
            &["payment", "stock"][..],
            json!([null, null, null, null]),
        ),
        ("k2", &["stock"], json!(["ann", null, 100, null])),
    ] {
        let order = world.start(Service::Order);
        let lost = place(order.api(), key, "ann", "tea", 100, 3);
        assert_eq!(order.api().settled(id(&lost))["orderStatus"], "COMPLETED");
        world.wait_until_quiet();
        order.kill();
        world.restore(Service::Order);
        delete_topics(&world, gone);
        // it makes the topics anew
        let order = world.start(Service::Order);
        let given_back = settled_again(order.api(), id(&lost));
        assert_eq!(
            statuses(&given_back),
            ["FAILED", "COMPENSATED", "COMPENSATED"]
        );
        assert_eq!(
            given_back["reason"],
            json!({"code": "LOST", "from": "order"})
        );
        let reported =
            ["userName", "itemName", "price", "quantity"].map(|field| given_back[field].clone());
        assert_eq!(json!(reported), known);
        until("the repair to be done", || {
            repairs_of(order.api(), id(&lost)) == [repair("LOST", Value::Null, "DONE")]
        });
        assert!(
            order
                .api()
                .found(&format!("/orders/{}/timeline", id(&lost)))["steps"]
                .as_array()
                .unwrap()
                .len()
                >= 2
        );
        assert_eq!(
            order.api().found("/orders")["orders"][0]["orderId"],
            lost["orderId"]
        );
        // its client's repeat is a new order
        let again = place(order.api(), key, "ann", "tea", 100, 3);
        assert_ne!(again["orderId"], lost["orderId"]);
        assert_eq!(order.api().settled(id(&again))["orderStatus"], "COMPLETED");
        world.wait_until_quiet();
        assert_eq!(world.parked(), 0);
        assert_nothing_kept_for_nothing(&world, &[]);
        assert!(order.stop().success());
        world.back_up(Service::Order);
        payment.api().put_balance("ann", 1_000);
        stock.api().put_quantity("tea", 100);
    }
}

#[test]
fn orders_that_an_older_payment_database_no_longer_pays_are_reported_and_what_it_pays_too_much_is_asked_back()
 {
    let (world, [order, payment, stock]) = open_shop("repair_payment");
    payment.api().put_balance("ann", 0);
    payment.api().put_balance("bob", 100);
    assert!(payment.stop().success());
    world.back_up(Service::Payment);
    let payment = world.start(Service::Payment);
    payment.api().put_balance("ann", 100);
    payment.api().put_balance("bob", 0);
    let paid = order.api().place("ann", "tea", 100, 1);
    let unpaid = order.api().place("bob", "tea", 50, 1);
    let both_times = order.api().place("eve", "tea", 50, 1);
    assert_eq!(order.api().settled(paid)["orderStatus"], "COMPLETED");
    for failed in [unpaid, both_times] {
        assert_eq!(
            statuses(&order.api().settled(failed)),
            ["FAILED", "FAILED", "COMPENSATED"]
        );
    }
    world.wait_until_quiet();
    let before = [paid, unpaid, both_times].map(|order_id| order.api().order(order_id));
    payment.kill();
    world.restore(Service::Payment);
    let payment = world.start(Service::Payment);

    until("the contradiction to be parked", || world.parked() == 1);
    until("the payment to be given back", || {
        repairs_of(order.api(), unpaid) == [repair("ASKED_BACK", json!("payment"), "DONE")]
    });
    world.wait_until_quiet();
    assert_eq!(
        [paid, unpaid, both_times].map(|order_id| order.api().order(order_id)),
        before,
        "settled, for good"
    );
    let letter = order.api().found("/dead-letters?state=OPEN")["deadLetters"][0].clone();
    assert_eq!(
        (&letter["cause"], &letter["orderId"]),
        (&json!("CONTRADICTION"), &json!(paid))
    );
    let why =
        format!("payment.failed, but order {paid} is COMPLETED: is it paid, are its goods there?");
    assert_eq!(letter["detail"], json!(why));
    assert_eq!(
        (
            repairs_of(order.api(), paid),
            repairs_of(order.api(), both_times)
        ),
        (vec![], vec![])
    );
    assert_eq!(
        metric(&[&order], "saga_repairs_total{kind=\"ASKED_BACK\"}"),
        1.0
    );
    assert_eq!(world.payment_status(unpaid).as_deref(), Some("COMPENSATED"));
    assert_eq!(
        (payment.api().balance("ann"), payment.api().balance("bob")),
        (0, 100)
    );
    assert_nothing_kept_for_nothing(&world, &[paid]);
    let steps = order.api().found(&format!("/orders/{unpaid}/timeline"))["steps"].clone();
    let of_payment = steps
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| step["side"] == "payment");
    let last: Vec<&str> = of_payment
        .map(|step| step["step"].as_str().unwrap())
        .skip(6)
        .collect();
    assert_eq!(
        last,
        [
            "COMPENSATION_ASKED",
            "COMPENSATION_PUBLISHED",
            "CONFIRMED",
            "ANSWERED",
            "LEARNED"
        ]
    );
    assert_rereading_adds_nothing(&world, vec![order, payment, stock]);
}

#[test]
fn a_side_that_takes_back_its_answer_before_the_order_is_completed_fails_it() {
    let (world, [order, payment, stock]) = open_shop("repair_contradicted");
    payment.api().put_balance("ann", 0);
    assert!(payment.stop().success());
    world.back_up(Service::Payment);
    let payment = world.start(Service::Payment);
    payment.api().put_balance("ann", 100);
    assert!(stock.stop().success());
    let id = order.api().place("ann", "tea", 100, 1);
    until("the payment", || {
        order.api().order(id)["paymentStatus"] == "COMPLETED"
    });
    world.wait_until_published(Service::Payment);
    payment.kill();
    world.restore(Service::Payment);
    let payment = world.start(Service::Payment);
    until("the order to fail", || {
        order.api().order(id)["orderStatus"] == "FAILED"
    });
    let stock = world.start(Service::Stock);
    let settled = order.api().settled(id);
    assert_eq!(statuses(&settled), ["FAILED", "COMPENSATED", "COMPENSATED"]);
    assert_eq!(
        settled["reason"],
        json!({"code": "CONTRADICTION", "from": "order"})
    );
    world.wait_until_quiet();
    assert_eq!(
        repairs_of(order.api(), id),
        [repair("CONTRADICTED", json!("payment"), "DONE")]
    );
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (0, 100)
    );
    assert_eq!(world.parked(), 0);
    assert_nothing_kept_for_nothing(&world, &[]);
    assert_rereading_adds_nothing(&world, vec![order, payment, stock]);
}

#[test]
fn a_success_that_comes_while_its_side_is_asked_back_is_known_when_it_is_read_again() {
    let (world, [order, payment, stock]) = open_shop("repair_late");
    assert!(payment.stop().success() && stock.stop().success() && order.stop().success());
    let order = world.start_with(Service::Order, &[("ORDER_DEADLINE", "1ms")]);
    let id = order.api().place("ann", "tea", 100, 1);
    until("both sides to be asked back", || {
        order.api().order(id)["stockStatus"] == "COMPENSATING"
    });
    world.produce(&Message::event(
        "payment.success",
        id,
        "payment.completed",
        &json!({"orderId": id}),
    ));
    world.wait_until_published(Service::Order);
    until("the late success to be read", || {
        world.is_at_the_ends(Service::Order)
    });
    let (payment, stock) = (world.start(Service::Payment), world.start(Service::Stock));
    assert_eq!(
        statuses(&order.api().settled(id)),
        ["FAILED", "COMPENSATED", "COMPENSATED"]
    );
    world.wait_until_quiet();
    assert_eq!(repairs_of(order.api(), id), []);
    let reported = order.api().found(&format!("/orders/{id}/timeline"));
    let reported = reported["steps"]
        .as_array()
        .unwrap()
        .iter()
        .any(|step| step["type"] == "payment.completed");
    assert!(reported, "what came late is listed too");
    assert_nothing_kept_for_nothing(&world, &[]);
    assert_rereading_adds_nothing(&world, vec![order, payment, stock]);
}

/// An answer that does not say what it answers, as a participant of an earlier version sends it.
#[test]
fn an_order_is_found_by_time_where_the_answer_names_no_request() {
    let (world, [order, payment, _stock]) = open_shop("repair_by_time");
    assert!(payment.stop().success());
    let lost = place(order.api(), "k", "ann", "tea", 100, 3);
    let lost_id = id(&lost);
    until("stock's answer", || {
        order.api().order(lost_id)["stockStatus"] == "COMPLETED"
    });
    assert!(order.stop().success());
    world
        .db(Service::Order)
        .batch_execute("delete from orders; delete from idempotency_key")
        .unwrap();
    let order = world.start(Service::Order);
    // it is published with the timestamp of now, as all records of the services are
    let completed = Message::event(
        "payment.success",
        lost_id,
        "payment.completed",
        &json!({"orderId": lost_id}),
    );
    world.produce(&completed);
    until("the order to be there again", || {
        order.api().get(&format!("/orders/{lost_id}")).status == 200
    });
    let again = order.api().order(lost_id);
    assert_eq!(
        statuses(&again),
        ["IN_PROGRESS", "COMPLETED", "IN_PROGRESS"],
        "stock's answer was read before"
    );
    assert_eq!(
        (&again["userName"], &again["quantity"]),
        (&json!("ann"), &json!(3))
    );
    assert_eq!(
        place(order.api(), "k", "ann", "tea", 100, 3)["orderId"],
        lost["orderId"]
    );
    // of an order that never was nothing is made
    let never = Uuid::now_v7();
    world.produce(&Message::event(
        "payment.success",
        never,
        "payment.completed",
        &json!({"orderId": never}),
    ));
    until("the stray answer to be parked", || world.parked() == 1);
    assert_eq!(
        order.api().found("/dead-letters")["deadLetters"][0]["cause"],
        "UNKNOWN_ORDER"
    );
    assert_eq!(order.api().get(&format!("/orders/{never}")).status, 404);
}
