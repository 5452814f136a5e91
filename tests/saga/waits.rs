//! What fails again and again is reported: which part, for what, and who is to blame. Each of it goes on by itself when that is mended.

use std::time::Duration;

use harness::{Api, Instance, Service, World, until};
use kafka::{Config, Interrupt, Producer, ProducerRecord};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::brokers::{allow, as_shop, change_rights, guarded, make_topics};
use crate::operations::metric;

/// What waits, as `/overview` has it: what it is, and for what.
fn waiting(api: &Api) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let listed = api.found("/overview")["waiting"].clone();
    listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["what"]), text(&one["for"])))
        .collect()
}

/// Waits until `what` is reported to wait for something with these words, in `/overview` and as a metric.
fn wait_until_reported(instance: &Instance, what: &str, words: &str) {
    until(
        &format!("{what} to be reported to wait for {words:?}"),
        || {
            waiting(instance.api())
                .iter()
                .any(|(name, why)| name == what && why.contains(words))
        },
    );
    until("its metric", || {
        metric(
            instance,
            &format!("saga_waiting_seconds{{what=\"{what}\"}}"),
        ) > 0.0
    });
}

fn wait_until_nothing_waits(instance: &Instance, what: &str) {
    until(&format!("{what} to go on"), || {
        waiting(instance.api()).iter().all(|(name, _)| name != what)
    });
    until("its metric", || {
        metric(
            instance,
            &format!("saga_waiting_seconds{{what=\"{what}\"}}"),
        ) == 0.0
    });
}

fn shop(name: &str) -> (World, [Instance; 3]) {
    let world = World::new(name);
    let instances = world.start_all();
    instances[1].api().put_balance("ann", 1_000);
    instances[2].api().put_quantity("tea", 100);
    (world, instances)
}

#[test]
fn a_transaction_of_somebody_else_that_hides_records_is_reported() {
    let (world, [order, payment, _stock]) = shop("hidden_records");
    let config = Config::new(world.bootstrap(), "somebody");
    let mut other = Producer::transactional(
        config,
        Interrupt::new(),
        "somebody-else",
        Duration::from_secs(300),
    );
    other.initialise().unwrap();
    let mut open = other.begin().unwrap();
    let topic = format!("{}payment", world.prefix());
    let hidden = |partition| ProducerRecord {
        topic: topic.as_str().into(),
        partition: Some(partition),
        key: None,
        value: Some("never seen".into()),
        headers: vec![],
        timestamp: None,
    };
    open.send((0..3).map(hidden).collect::<Vec<_>>()).unwrap();
    let placed = order.api().place("ann", "tea", 300, 2);
    until("it to be reported", || {
        let ready = payment.api().get("/readyz");
        ready.status == 503
            && ready
                .text
                .contains("a transaction that is open has kept the records from offset")
    });
    assert!(
        payment.api().found("/overview")["consumers"]
            .to_string()
            .contains("\"lag\":"),
        "and lag"
    );
    open.abort().unwrap();
    assert_eq!(order.api().settled(placed)["orderStatus"], "COMPLETED");
    until("payment to be ready", || {
        payment.api().get("/readyz").status == 200
    });
    assert_eq!(world.parked(), 0);
}

#[test]
fn rights_that_are_taken_away_are_reported_by_what_waits_for_them() {
    let broker = guarded();
    let direct = broker.direct();
    let world = World::with("rights_gone", &[("KAFKA_BROKERS", &direct)]);
    make_topics(&world, 1, &[]);
    let users = broker.guarded("USERS");
    let prefix = world.prefix().to_owned();
    let topics = ["--topic", &prefix, "--resource-pattern-type", "prefixed"];
    allow(&broker, &["Describe"], &topics);
    let named = |name: &str| format!("{prefix}{name}");
    for name in [
        "payment",
        "payment.compensation",
        "payment.success",
        "payment.dlt",
    ] {
        allow(&broker, &["Read", "Write"], &["--topic", &named(name)]);
    }
    allow(&broker, &["Read"], &["--group", &named("payment")]);
    allow(
        &broker,
        &["Write", "Describe"],
        &["--transactional-id", &named("payment-relay")],
    );
    let payment = world.start_with(Service::Payment, &as_shop(&users));
    payment.wait_for_log("leading: producer");
    payment.api().put_balance("ann", 1_000);
    let take_away = |operation: &str, topic: &str| {
        change_rights(
            &broker,
            &["--remove", "--force"],
            &[operation],
            &["--topic", &named(topic)],
        );
    };
    let ask = || {
        let order_id = Uuid::now_v7();
        let data = json!({"orderId": order_id, "userName": "ann", "price": 100});
        world.produce_event("payment", order_id, "payment.requested", &data);
    };

    take_away("Read", "payment");
    wait_until_reported(
        &payment,
        &format!("{prefix}payment-0"),
        "TOPIC_AUTHORIZATION_FAILED from Fetch",
    );
    // the other topic goes on meanwhile
    let order_id = Uuid::now_v7();
    let data = json!({"orderId": order_id, "userName": "ann", "price": 100});
    world.produce_event(
        "payment.compensation",
        order_id,
        "payment.compensation-requested",
        &data,
    );
    until("its effect", || {
        world.payment_status(order_id).as_deref() == Some("CANCELLED")
    });
    allow(&broker, &["Read"], &["--topic", &named("payment")]);
    // nothing has come that would show it
    wait_until_nothing_waits(&payment, &format!("{prefix}payment-0"));
    ask();
    until("its effect", || payment.api().balance("ann") == 900);

    take_away("Write", "payment.success");
    ask();
    wait_until_reported(&payment, "relay", "TOPIC_AUTHORIZATION_FAILED");
    allow(&broker, &["Write"], &["--topic", &named("payment.success")]);
    wait_until_nothing_waits(&payment, "relay");
    until("the answers", || {
        world.records("payment.success").len() == 3
    });
}

#[test]
fn a_row_of_the_outbox_that_nobody_can_read_is_reported_and_ends_nothing() {
    let (world, [order, ..]) = shop("unreadable_row");
    let mut db = world.db(Service::Order);
    let sql = "insert into order_outbox (stored_at, order_id, messages) values (clock_timestamp(), $1, '[]')";
    db.execute(sql, &[&Uuid::nil()]).unwrap();
    let placed = order.api().place("ann", "tea", 300, 2);
    wait_until_reported(
        &order,
        "relay",
        "can't be read, was it written by hand? Nothing behind it is published",
    );
    assert_eq!(order.api().order(placed)["orderStatus"], "IN_PROGRESS");
    assert_eq!(
        db.execute(
            "delete from order_outbox where order_id = $1",
            &[&Uuid::nil()]
        )
        .unwrap(),
        1
    );
    assert_eq!(order.api().settled(placed)["orderStatus"], "COMPLETED");
    wait_until_nothing_waits(&order, "relay");
}

#[test]
fn a_locked_table_is_reported_with_the_session_that_holds_it() {
    let (world, [order, ..]) = shop("locked_table");
    let mut person = world.db(Service::Order);
    let mut held = person.transaction().unwrap();
    held.batch_execute("set local application_name = 'a person'; lock table orders in share mode")
        .unwrap();
    std::thread::scope(|scope| {
        let placing = scope.spawn(|| {
            let body = json!({"userName": "ann", "itemName": "tea", "price": 10, "quantity": 1});
            order.api().json("POST", "/orders", &[], &body).status
        });
        wait_until_reported(&order, "order-writer", "a lock on orders, held by session");
        let waiting = waiting(order.api());
        assert!(
            waiting.iter().any(|(_, why)| why.contains("a person")),
            "{waiting:?}"
        );
        assert_eq!(placing.join().unwrap(), 503);
    });
    wait_until_reported(&order, "orders to be stored", "lock timeout");
    held.rollback().unwrap();
    let placed = order.api().place("ann", "tea", 300, 2);
    assert_eq!(order.api().settled(placed)["orderStatus"], "COMPLETED");
    wait_until_nothing_waits(&order, "orders to be stored");
}
