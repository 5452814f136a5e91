//! kill -9 at any moment loses nothing and publishes nothing twice (I1, I2, I8); SIGTERM finishes what is under way.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::locks::end_sessions;
use harness::proxy::kafka_request;
use harness::{Api, Broker, Instance, Service, Signal, World, is_refusal, until};
use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

fn assert_each_message_once(world: &World) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    world
        .all_records()
        .into_iter()
        .for_each(|record| *seen.entry(record.ce_id).or_default() += 1);
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "published more than once: {twice:?}");
}

fn relay_waits_for_a_lock(db: &mut Client) -> bool {
    let sql = "select exists (select from pg_stat_activity where datname = current_database()
                and application_name = 'order-relay' and wait_event_type = 'Lock')";
    db.query_one(sql, &[]).expect("an answer").get(0)
}

#[test]
fn a_kill_between_kafkas_commit_and_the_delete_publishes_no_duplicate_whatever_others_write() {
    let world = World::with("killbeforedelete", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    let (mut blocker, mut watch) = (world.db(Service::Order), world.db(Service::Order));
    // the transaction that deletes the rows also writes the deadline: it can't be committed while this lock is held
    blocker
        .batch_execute("begin; lock table deadline in share mode")
        .expect("locked");
    let order_id = order.api().place("ann", "tea", 1, 1);
    until("Kafka's commit", || world.records("stock").len() == 1);
    until("the delete to be blocked", || {
        relay_waits_for_a_lock(&mut watch)
    });
    order.signal(Signal::KILL);
    end_sessions(&mut watch, "order-relay");
    blocker.batch_execute("rollback").expect("released");
    assert_eq!(
        world.outbox_rows(Service::Order),
        1,
        "published, and not deleted"
    );
    // the position is not at the end of the log
    for topic in ["payment", "stock"] {
        (0..50).for_each(|_| world.produce_event(topic, Uuid::now_v7(), "foreign", &json!({})));
    }
    let restarted = world.start(Service::Order);
    until("the new leader to delete what is published", || {
        world.outbox_rows(Service::Order) == 0
    });
    let next = restarted.api().place("ann", "tea", 1, 1);
    until("the next order to be published", || {
        world.types_about(next) == ["payment.requested", "stock.requested"]
    });
    assert_eq!(
        world.types_about(order_id),
        ["payment.requested", "stock.requested"],
        "once"
    );
    assert_eq!(
        restarted.api().order(order_id)["paymentStatus"],
        "IN_PROGRESS",
        "the new leader marked it published"
    );
    assert_each_message_once(&world);
}

/// Three orders, stored in one transaction as the writer does.
fn place_three(db: &mut Client) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    let message = |topic: &str, id: &Uuid, data: Value| json!({"id": Uuid::now_v7(), "topic": topic, "type": format!("{topic}.requested"), "data": {"orderId": id, "more": data}});
    let both = |id: &Uuid| {
        json!([
            message("payment", id, json!(1)),
            message("stock", id, json!(2))
        ])
        .to_string()
    };
    let (texts, numbers, none) = (vec!["ann"; 3], vec![1_i64; 3], vec![None::<&str>; 3]);
    let messages: Vec<String> = ids.iter().map(both).collect();
    db.execute(
        "select place_new_orders($1, $2, $2, $3, $3, $4, $2, $5)",
        &[&ids, &texts, &numbers, &none, &messages],
    )
    .expect("placed");
    ids
}

#[test]
fn a_kill_while_rows_are_deleted_beside_the_next_turn_publishes_no_duplicate() {
    let world = World::with(
        "killbeside",
        &[("RELAY_BATCH", "1"), ("TOPIC_PARTITIONS", "1")],
    );
    world.spoils_messages();
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    let (mut blocker, mut watch) = (world.db(Service::Order), world.db(Service::Order));
    blocker
        .batch_execute("begin; lock table deadline in share mode")
        .expect("locked");
    let ids = place_three(&mut watch);
    until("the first row's delete to be blocked", || {
        relay_waits_for_a_lock(&mut watch)
    });
    until("the first row's markers", || {
        !world.records("stock").is_empty()
    });
    assert_eq!(
        world.records("stock").len(),
        1,
        "the second turn ends only when the first one's row is deleted"
    );
    order.signal(Signal::KILL);
    end_sessions(&mut watch, "order-relay");
    blocker.batch_execute("rollback").expect("released");
    assert_eq!(
        world.outbox_rows(Service::Order),
        3,
        "one of them published, none deleted"
    );
    let restarted = world.start(Service::Order);
    world.wait_until_published(Service::Order);
    let expected: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    for topic in ["payment", "stock"] {
        let keys: Vec<String> = world
            .records(topic)
            .into_iter()
            .filter_map(|record| record.key)
            .collect();
        assert_eq!(keys, expected, "{topic}: each once, in stored order");
    }
    ids.iter()
        .for_each(|id| assert_eq!(restarted.api().order(*id)["paymentStatus"], "IN_PROGRESS"));
}

/// Where in its Kafka transaction the relay is killed: after the broker has done what it was asked for, before the relay
/// hears of it.
struct Moment {
    /// Kafka's number of the request.
    api: i16,
    /// How many stock messages a read-committed reader sees then.
    visible: usize,
    /// How many were written in the end, those of aborted transactions included.
    written: usize,
}

const ADD_PARTITIONS_TO_TXN: Moment = Moment {
    api: 24,
    visible: 0,
    written: 1,
};
const PRODUCE: Moment = Moment {
    api: 0,
    visible: 0,
    written: 2,
};
const END_TXN: Moment = Moment {
    api: 26,
    visible: 1,
    written: 1,
};

fn kill_at(moment: &Moment, name: &str) {
    let broker = Broker::start();
    let world = World::with(name, &[("KAFKA_BROKERS", &broker.direct())]);
    let order = world.start_with(Service::Order, &[("KAFKA_BROKERS", &broker.proxied())]);
    broker
        .proxy
        .hold_after(kafka_request(moment.api, "order-relay"));
    let order_id = order.api().place("ann", "tea", 1, 1);
    until("the broker to have done it", || {
        broker.proxy.holds_the_answer()
    });
    order.signal(Signal::KILL);
    until("the markers, if it was the commit", || {
        world.records("stock").len() == moment.visible
    });
    assert_eq!(world.outbox_rows(Service::Order), 1);
    let _restarted = world.start(Service::Order);
    world.wait_until_published(Service::Order);
    assert_eq!(
        world.types_about(order_id),
        ["payment.requested", "stock.requested"],
        "once"
    );
    assert_eq!(world.uncommitted_records("stock").len(), moment.written);
}

#[test]
fn a_kill_after_the_records_are_written_publishes_once() {
    kill_at(&PRODUCE, "killproduce");
}

#[test]
fn a_kill_after_the_transaction_is_begun_publishes_once_and_the_restart_is_not_refused() {
    kill_at(&ADD_PARTITIONS_TO_TXN, "killbegun");
}

#[test]
fn a_kill_after_kafkas_commit_whose_answer_is_lost_publishes_once() {
    kill_at(&END_TXN, "killcommit");
}

// ---- kill -9 of every service at random moments, under load

const CLIENTS: usize = 8;
const ORDERS_EACH: usize = 25;
const ROUNDS: usize = 3;

/// What is asked for, and the end it must come to: 50 orders of each kind.
const KINDS: [(&str, &str, &str); 4] = [
    ("ann", "tea", "COMPLETED"),
    ("nobody", "tea", "FAILED"),
    ("ann", "nothing", "FAILED"),
    ("nobody", "nothing", "FAILED"),
];

/// The services of an installation on ports that stay, so that clients find a restarted one again.
struct Cluster<'a> {
    world: &'a World,
    instances: Mutex<HashMap<&'static str, Instance>>,
    ports: HashMap<&'static str, String>,
}

impl<'a> Cluster<'a> {
    fn start(world: &'a World) -> Cluster<'a> {
        let instances = world.start_all();
        let ports = instances
            .iter()
            .map(|one| (one.service().name(), one.port().to_string()))
            .collect();
        let instances = instances
            .into_iter()
            .map(|one| (one.service().name(), one))
            .collect();
        Cluster {
            world,
            instances: Mutex::new(instances),
            ports,
        }
    }

    fn api(&self, service: Service) -> Api {
        Api::new(self.ports[service.name()].parse().expect("a port"))
    }

    /// Kills them at once, then starts them again.
    fn kill(&self, services: &[Service]) {
        let mut instances = self.instances.lock().expect("no kill has failed");
        services
            .iter()
            .for_each(|service| instances[service.name()].signal(Signal::KILL));
        for service in services {
            let variable = format!("{}_PORT", service.name().to_uppercase());
            let restarted = self
                .world
                .launch(*service, &[(&variable, &self.ports[service.name()])]);
            instances.insert(service.name(), restarted);
        }
        services
            .iter()
            .for_each(|service| instances[service.name()].wait_until_ready());
    }
}

/// Repeats a request, with its idempotency key, until it is answered.
fn place(order: &Api, key: &str, body: &Value) -> Uuid {
    let mut placed = None;
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    until(&format!("an answer to {key}"), || {
        let answer = order.call(
            "POST",
            "/orders",
            &headers,
            Some(body.to_string().as_bytes()),
        );
        let Ok(answer) = answer else { return false };
        assert!(
            answer.status == 202 || is_refusal(answer.status),
            "{}",
            answer.text
        );
        placed = (answer.status == 202).then_some(answer.json);
        placed.is_some()
    });
    let order_id = placed.as_ref().and_then(|order| order["orderId"].as_str());
    order_id.expect("an order id").parse().expect("a UUID")
}

fn settle(order: &Api, order_id: Uuid) -> Value {
    let mut settled = Value::Null;
    until(&format!("order {order_id} to settle"), || {
        if let Ok(answer) = order.call("GET", &format!("/orders/{order_id}?wait=5s"), &[], None) {
            settled = answer.json;
        }
        settled["settled"] == true
    });
    settled
}

/// One client: an order after the other, each to its end.
fn trade(order: &Api, client: usize, done: &AtomicUsize) {
    for number in 0..ORDERS_EACH {
        let (user, item, end) = KINDS[(client * ORDERS_EACH + number) % KINDS.len()];
        let body = json!({"userName": user, "itemName": item, "price": 3, "quantity": 2});
        let order_id = place(order, &format!("client-{client}-order-{number}"), &body);
        assert_eq!(
            settle(order, order_id)["orderStatus"],
            end,
            "{order_id} of {user} for {item}"
        );
        done.fetch_add(1, Ordering::SeqCst);
    }
}

/// Three rounds at random moments; each kills two services at once, each service is killed twice.
fn hurt(cluster: &Cluster<'_>, done: &AtomicUsize) {
    let mut random = StdRng::seed_from_u64(20_261_123);
    let mut pairs = [
        [Service::Order, Service::Payment],
        [Service::Payment, Service::Stock],
        [Service::Stock, Service::Order],
    ];
    pairs.shuffle(&mut random);
    for (round, pair) in pairs.iter().enumerate() {
        let moment =
            (round + 1) * CLIENTS * ORDERS_EACH / (ROUNDS + 2) + random.random_range(0..20);
        until("the moment of the next kill", || {
            done.load(Ordering::SeqCst) >= moment
        });
        // not a wait for anything: the kill shall hit any point of an order's path
        thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
        cluster.kill(pair);
    }
}

#[test]
fn services_killed_at_random_under_load_lose_nothing_and_double_nothing() {
    let world = World::new("chaos");
    let cluster = Cluster::start(&world);
    cluster.api(Service::Payment).put_balance("ann", 1_000);
    cluster.api(Service::Stock).put_quantity("tea", 1_000);
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (order, done) = (cluster.api(Service::Order), &done);
            scope.spawn(move || trade(&order, client, done));
        }
        hurt(&cluster, &done);
    });
    world.wait_until_quiet();
    let orders: i64 = world
        .db(Service::Order)
        .query_one("select count(*) from orders", &[])
        .expect("orders")
        .get(0);
    assert_eq!(orders, 200, "each key made one order");
    // 50 of 200 orders completed, over 3 for 2 pieces each
    assert_eq!(cluster.api(Service::Payment).balance("ann"), 850);
    assert_eq!(cluster.api(Service::Stock).quantity("tea"), 900);
    assert_eq!(
        (world.records("payment").len(), world.records("stock").len()),
        (200, 200)
    );
    assert_each_message_once(&world);
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}

// ---- SIGTERM

/// Places orders until the service is gone; answers the ids of those that were accepted.
fn place_until_gone(order: &Api, accepted: &AtomicUsize, stopping: &AtomicBool) -> Vec<Uuid> {
    let body = json!({"userName": "ann", "itemName": "tea", "price": 1, "quantity": 1}).to_string();
    let mut ids = Vec::new();
    loop {
        match order.call(
            "POST",
            "/orders",
            &[("content-type", "application/json")],
            Some(body.as_bytes()),
        ) {
            Ok(answer) if answer.status == 202 => {
                accepted.fetch_add(1, Ordering::SeqCst);
                ids.push(
                    answer.json["orderId"]
                        .as_str()
                        .expect("an id")
                        .parse()
                        .expect("a UUID"),
                );
            }
            Ok(answer) => assert!(is_refusal(answer.status), "{}", answer.text),
            Err(_) if stopping.load(Ordering::SeqCst) => return ids,
            Err(error) => panic!("not answered, though nobody stopped it: {error}"),
        }
    }
}

#[test]
fn sigterm_under_load_ends_with_code_0_within_ten_seconds_and_every_answered_order_exists() {
    let world = World::new("sigterm");
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000_000);
    stock.api().put_quantity("tea", 1_000_000);
    let (accepted, stopping) = (AtomicUsize::new(0), AtomicBool::new(false));
    let ids: Vec<Uuid> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| place_until_gone(order.api(), &accepted, &stopping)))
            .collect();
        until("load", || accepted.load(Ordering::SeqCst) > 200);
        stopping.store(true, Ordering::SeqCst);
        for instance in [&order, &payment, &stock] {
            assert_eq!(instance.stop().code(), Some(0), "{}", instance.log());
        }
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"))
            .collect()
    });
    let sql = "select count(*) from orders where order_id = any ($1)";
    let kept: i64 = world
        .db(Service::Order)
        .query_one(sql, &[&ids])
        .expect("orders")
        .get(0);
    assert_eq!(kept, ids.len() as i64, "every answered order exists");
    let [order, _payment, _stock] = world.start_all();
    ids.iter().for_each(|order_id| {
        assert_eq!(order.api().settled(*order_id)["orderStatus"], "COMPLETED")
    });
    world.wait_until_quiet();
    assert_each_message_once(&world);
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}
