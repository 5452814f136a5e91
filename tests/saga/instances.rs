//! Several instances of every service: partitions shared, all restarted one after another under load, a dead leader replaced.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::broker::tool;
use harness::{Api, Instance, Service, Signal, World, eventually, is_refusal, until};
use serde_json::{Value, json};
use uuid::Uuid;

const INSTANCES: usize = 3;
pub(crate) const CLIENTS: usize = 4;

fn start_three(world: &World, service: Service) -> Vec<Instance> {
    let instances: Vec<Instance> = (0..INSTANCES).map(|_| world.launch(service, &[])).collect();
    instances.iter().for_each(Instance::wait_until_ready);
    instances
}

// ---- partitions

/// Each member of a group with its partitions, as Kafka's own tool tells.
fn members(world: &World, group: &str) -> BTreeMap<String, Vec<String>> {
    let group = format!("{}{group}", world.prefix());
    let arguments = [
        "--bootstrap-server",
        world.brokers(),
        "--describe",
        "--members",
        "--verbose",
        "--group",
        &group,
        // by itself it gives up after 5 s and shows nothing
        "--timeout",
        "60000",
    ];
    let said = tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        &arguments,
    );
    // GROUP CONSUMER-ID HOST CLIENT-ID #PARTITIONS CURRENT-EPOCH CURRENT-ASSIGNMENT …, the assignment as topic:0,1;topic:2
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.first() == Some(&group.as_str()))
            .then(|| (columns[1].to_string(), partitions(columns[6])))
    };
    said.lines().filter_map(row).collect()
}

fn partitions(assignment: &str) -> Vec<String> {
    let topics = assignment
        .split(';')
        .filter_map(|part| part.split_once(':'));
    topics
        .flat_map(|(topic, numbers)| {
            numbers
                .split(',')
                .map(move |number| format!("{topic}-{number}"))
        })
        .collect()
}

#[test]
fn the_instances_of_a_service_share_the_partitions_of_its_topics_as_kafkas_own_tool_shows() {
    let world = World::new("shared");
    let instances = start_three(&world, Service::Payment);
    let shared = eventually("three members with partitions", || {
        Some(members(&world, "payment"))
            .filter(|it| it.len() == 3 && it.values().all(|own| own.len() == 2))
    });
    let mut all: Vec<&String> = shared.values().flatten().collect();
    all.sort();
    let wanted = ["payment", "payment.compensation"].map(|topic| {
        (0..3)
            .map(|number| format!("{}{topic}-{number}", world.prefix()))
            .collect::<Vec<_>>()
    });
    let mut wanted: Vec<String> = wanted.concat();
    wanted.sort();
    assert_eq!(
        all,
        wanted.iter().collect::<Vec<_>>(),
        "each partition has one owner"
    );
    instances[0].kill();
    let left = eventually("the dead member's partitions with the others", || {
        Some(members(&world, "payment"))
            .filter(|it| it.len() == 2 && it.values().map(Vec::len).sum::<usize>() == 6)
    });
    assert!(
        left.keys().all(|member| shared.contains_key(member)),
        "the same two go on"
    );
}

// ---- rolling restart

/// Asks one instance after another, with the same key, until the order is accepted.
fn place(apis: &[Api], key: &str, turn: &mut usize) -> Uuid {
    let body = json!({"userName": "ann", "itemName": "tea", "price": 3, "quantity": 2}).to_string();
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    let mut placed = Value::Null;
    until(&format!("an answer to {key}"), || {
        *turn += 1;
        let answer =
            apis[*turn % apis.len()].call("POST", "/orders", &headers, Some(body.as_bytes()));
        let Ok(answer) = answer else { return false };
        assert!(
            answer.status == 202 || is_refusal(answer.status),
            "{}",
            answer.text
        );
        placed = answer.json;
        answer.status == 202
    });
    placed["orderId"]
        .as_str()
        .expect("an order id")
        .parse()
        .expect("a UUID")
}

/// Waits for the end of an order, on whichever instance answers.
fn settle(apis: &[Api], order_id: Uuid, turn: &mut usize) -> Value {
    let mut settled = Value::Null;
    until(&format!("order {order_id} to settle"), || {
        *turn += 1;
        let path = format!("/orders/{order_id}?wait=5s");
        if let Ok(answer) = apis[*turn % apis.len()].call("GET", &path, &[], None) {
            settled = answer.json;
        }
        settled["settled"] == true
    });
    settled
}

/// One client: an order after the other, each to its end, until it is stopped.
pub(crate) fn trade(ports: &[u16], client: usize, stop: &AtomicBool, done: &AtomicUsize) -> usize {
    let apis: Vec<Api> = ports.iter().map(|port| Api::new(*port)).collect();
    let (mut turn, mut number) = (client, 0);
    while !stop.load(Ordering::Relaxed) {
        let order_id = place(&apis, &format!("client-{client}-order-{number}"), &mut turn);
        assert_eq!(
            settle(&apis, order_id, &mut turn)["orderStatus"],
            "COMPLETED",
            "{order_id}"
        );
        number += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
    number
}

#[test]
fn a_rolling_restart_of_all_instances_under_load_loses_and_repeats_nothing() {
    let world = World::new("rolling");
    let mut instances: Vec<Instance> = Service::ALL
        .iter()
        .flat_map(|service| start_three(&world, *service))
        .collect();
    let of = |service: Service| instances.iter().filter(move |one| one.service() == service);
    of(Service::Payment)
        .next()
        .expect("payment")
        .api()
        .put_balance("ann", 1_000_000);
    of(Service::Stock)
        .next()
        .expect("stock")
        .api()
        .put_quantity("tea", 1_000_000);
    let ports: Vec<u16> = of(Service::Order).map(Instance::port).collect();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let placed: usize = thread::scope(|scope| {
        let start = |client| {
            scope.spawn({
                let (ports, stop, done) = (&ports, &stop, &done);
                move || trade(ports, client, stop, done)
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(start).collect();
        for instance in &mut instances {
            let before = done.load(Ordering::Relaxed);
            until("orders between two restarts", || {
                done.load(Ordering::Relaxed) >= before + 5
            });
            world.restart(instance);
        }
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum()
    });
    assert_traded(&world, placed);
}

/// Every order of the clients is settled, paid and delivered, each message there once.
pub(crate) fn assert_traded(world: &World, placed: usize) {
    world.wait_until_quiet();
    let count = |service, sql: &str| -> i64 {
        world
            .db(service)
            .query_one(sql, &[])
            .expect("a count")
            .get(0)
    };
    assert_eq!(
        count(Service::Order, "select count(*) from orders"),
        placed as i64,
        "one order a key"
    );
    assert_eq!(
        count(Service::Payment, "select balance from account"),
        1_000_000 - 3 * placed as i64
    );
    assert_eq!(
        count(Service::Stock, "select quantity from item"),
        1_000_000 - 2 * placed as i64
    );
    let records = world.all_records();
    let ids: HashSet<&String> = records.iter().map(|seen| &seen.ce_id).collect();
    assert_eq!(
        (records.len(), ids.len()),
        (4 * placed, 4 * placed),
        "two requests and two answers an order, each once"
    );
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}

// ---- leaders

/// How long orders were not published after `signal` had struck the leader.
fn without_leader(world: &World, signal: Signal) -> Duration {
    let leader = world.start(Service::Order);
    leader.wait_for_log("leading: producer");
    let followers = [world.start(Service::Order), world.start(Service::Order)];
    leader.signal(signal);
    let begun = Instant::now();
    let order_id = followers[0].api().place("ann", "tea", 1, 1);
    until("a successor to publish", || {
        world.types_about(order_id) == ["payment.requested", "stock.requested"]
    });
    let took = begun.elapsed();
    let leading = || {
        followers
            .iter()
            .filter(|one| one.log().contains("leading: producer"))
            .count()
    };
    until("the successor's line", || leading() > 0);
    assert_eq!(leading(), 1, "one of the two leads");
    leader.kill();
    took
}

#[test]
fn a_leader_killed_or_frozen_is_replaced_by_one_of_the_others() {
    let killed = without_leader(&World::new("replacekilled"), Signal::KILL);
    let frozen = without_leader(&World::new("replacefrozen"), Signal::STOP);
    println!(
        "published again {killed:.1?} after the leader was killed, {frozen:.1?} after it was frozen"
    );
}
