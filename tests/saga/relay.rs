//! The relay: stored order (I4), both messages of an order or neither (I5), one leader and what becomes of a frozen one
//! (I6), nothing published twice (I8).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use harness::broker::tool;
use harness::proxy::kafka_request;
use harness::{Broker, Instance, Seen, Service, Signal, World, eventually, until};
use kafka::{Admin, Interrupt, NewTopic};
use postgres::Client;
use serde_json::json;
use uuid::Uuid;

/// Kafka's number of the request that writes records.
const PRODUCE: i16 = 0;

/// Appends a payment request as the services do, inside whatever transaction is open; answers its message id.
fn append(db: &mut Client) -> Uuid {
    append_to(db, "payment", "ann")
}

/// The same to another topic, about another name.
fn append_to(db: &mut Client, topic: &str, name: &str) -> Uuid {
    store(
        db,
        "select append_outbox(array[$1::uuid], array[$2::text])",
        topic,
        name,
    )
}

/// Stores a request by `sql`, whose parameters are its order and its messages.
fn store(db: &mut Client, sql: &str, topic: &str, name: &str) -> Uuid {
    let id = Uuid::now_v7();
    let (order_id, messages) = request(id, topic, name);
    db.execute(sql, &[&order_id, &messages]).expect("stored");
    id
}

/// A request under this message id: its order, and its messages as they are stored.
fn request(id: Uuid, topic: &str, name: &str) -> (Uuid, String) {
    let order_id = Uuid::now_v7();
    let data = json!({"orderId": order_id, "userName": name, "price": 1});
    let ce_type = format!("{topic}.requested");
    let messages = json!([{"id": id, "topic": topic, "type": ce_type, "data": data}]);
    (order_id, messages.to_string())
}

fn ids(records: &[Seen]) -> Vec<String> {
    records.iter().map(|seen| seen.ce_id.clone()).collect()
}

fn assert_no_id_twice(world: &World) {
    let ids = ids(&world.all_records());
    assert_eq!(
        ids.iter().collect::<HashSet<_>>().len(),
        ids.len(),
        "a message was published twice"
    );
}

/// Whether some session of this database waits for an advisory lock.
fn someone_waits_for_the_append_lock(db: &mut Client) -> bool {
    let sql = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                and database = (select oid from pg_database where datname = current_database()))";
    db.query_one(sql, &[]).expect("an answer").get(0)
}

/// Waits until the relay has looked for rows after this call.
fn wait_for_a_turn(db: &mut Client) {
    let now: String = db
        .query_one("select clock_timestamp()::text", &[])
        .expect("an answer")
        .get(0);
    let sql = "select exists (select from pg_stat_activity where datname = current_database() and state = 'idle'
                and application_name = 'order-relay' and query like '%from order_outbox%'
                and query_start > $1::text::timestamptz)";
    until("a turn of the relay", || {
        db.query_one(sql, &[&now]).expect("an answer").get(0)
    });
}

#[test]
fn an_open_writer_holds_back_one_that_stores_after_it_and_both_leave_in_stored_order() {
    let world = World::with("openwriter", &[("TOPIC_PARTITIONS", "1")]);
    let _order = world.start(Service::Order);
    let (mut early, mut late, mut watch) = (
        world.db(Service::Order),
        world.db(Service::Order),
        world.db(Service::Order),
    );
    early.batch_execute("begin").expect("begun");
    let first = append(&mut early);
    let storing = thread::spawn(move || append(&mut late));
    until("the late writer to wait for the early one", || {
        someone_waits_for_the_append_lock(&mut watch)
    });
    wait_for_a_turn(&mut watch);
    assert_eq!(
        world.uncommitted_records("payment"),
        [],
        "nothing is stored yet"
    );
    assert!(!storing.is_finished(), "the late writer was let through");
    early.batch_execute("commit").expect("committed");
    let second = storing.join().expect("stored");
    let published = eventually("both messages", || {
        Some(world.records("payment")).filter(|seen| seen.len() == 2)
    });
    assert_eq!(ids(&published), [first.to_string(), second.to_string()]);
    assert!(published[0].ce_time <= published[1].ce_time);
}

/// The service hands its own rows to its relay, which has not read those of others.
#[test]
fn a_row_of_another_writer_between_two_of_the_service_leaves_in_its_place() {
    let world = World::with("between", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    order.api().place("ann", "tea", 1, 1);
    world.wait_until_published(Service::Order);
    let (mut other, mut watch) = (world.db(Service::Order), world.db(Service::Order));
    let mut published = 1;
    for end in ["rollback", "commit"] {
        other.batch_execute("begin").expect("begun");
        let between = append(&mut other);
        thread::scope(|scope| {
            let placing = scope.spawn(|| order.api().place("ann", "tea", 1, 1));
            until("the service to wait for the other writer", || {
                someone_waits_for_the_append_lock(&mut watch)
            });
            other.batch_execute(end).expect("ended");
            placing.join().expect("placed");
        });
        published += if end == "commit" { 2 } else { 1 };
        let seen = eventually("all of them", || {
            Some(world.records("payment")).filter(|seen| seen.len() == published)
        });
        let place = ids(&seen).iter().position(|id| *id == between.to_string());
        assert_eq!(
            place,
            (end == "commit").then_some(2),
            "after the two before it"
        );
    }
}

#[test]
fn a_row_put_in_by_hand_among_published_ones_is_found_and_nothing_is_published_again() {
    let world = World::with("by_hand", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    order.api().place("ann", "tea", 1, 1);
    world.wait_until_published(Service::Order);
    // it draws the next id without the append lock
    let mut person = world.db(Service::Order);
    person.batch_execute("begin").expect("begun");
    let sql = "insert into order_outbox (stored_at, order_id, messages) values (now(), $1, $2::text::json)";
    let by_hand = store(&mut person, sql, "payment", "ann");
    order.api().place("ann", "tea", 1, 1);
    world.wait_until_published(Service::Order);
    person.batch_execute("commit").expect("committed");
    until("the relay to have read all rows", || {
        ids(&world.records("payment")).contains(&by_hand.to_string())
    });
    order.api().place("ann", "tea", 1, 1);
    let published = eventually("all of them", || {
        Some(world.records("payment")).filter(|seen| seen.len() >= 4)
    });
    world.wait_until_published(Service::Order);
    assert_eq!(published.len(), 4);
    assert_no_id_twice(&world);
}

/// Rows are published from memory only if their commit was heard of: those of one request, which is handled without locks, and those of
/// more than are.
#[test]
fn what_a_commit_refuses_is_not_published_and_what_is_stored_instead_is_published_once() {
    for (requests, name) in [(1, "refused_commit"), (40, "refused_commits")] {
        let world = World::with(name, &[("TOPIC_PARTITIONS", "1")]);
        let order = world.start(Service::Order);
        let payment = world.start(Service::Payment);
        payment.api().put_balance("ann", 1_000);
        order.api().place("ann", "tea", 1, 1);
        until("the first answer", || {
            world.records("payment.success").len() == 1
        });
        world.wait_until_published(Service::Payment);
        let mut db = world.db(Service::Payment);
        db.batch_execute(
            "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
             create constraint trigger refuse after insert on payment_outbox deferrable initially deferred
                 for each row execute function refuse()",
        )
        .expect("made");
        let request = |_| request(Uuid::now_v7(), "payment", "ann");
        let (ids, messages): (Vec<Uuid>, Vec<String>) = (0..requests).map(request).unzip();
        world
            .db(Service::Order)
            .execute("select append_outbox($1, $2)", &[&ids, &messages])
            .expect("stored");
        world.wait_until_published(Service::Order);
        // it would ask for all of them back: it knows no such orders
        order.stop();
        payment.wait_for_log("waits (attempt 2 failed)");
        assert_eq!(world.uncommitted_records("payment.success").len(), 1);
        db.batch_execute("drop trigger refuse on payment_outbox")
            .expect("dropped");
        until("the answers", || {
            world.records("payment.success").len() > requests
        });
        world.wait_until_published(Service::Payment);
        assert_eq!(
            world.uncommitted_records("payment.success").len(),
            1 + requests
        );
        assert_no_id_twice(&world);
    }
}

#[test]
fn what_a_writer_rolls_back_is_never_published_and_holds_nobody_back() {
    let world = World::with("rollback", &[("TOPIC_PARTITIONS", "1")]);
    let _order = world.start(Service::Order);
    let (mut early, mut late) = (world.db(Service::Order), world.db(Service::Order));
    early.batch_execute("begin").expect("begun");
    append(&mut early);
    let storing = thread::spawn(move || append(&mut late));
    let mut watch = world.db(Service::Order);
    until("the late writer to wait", || {
        someone_waits_for_the_append_lock(&mut watch)
    });
    early.batch_execute("rollback").expect("rolled back");
    let stored = storing.join().expect("stored");
    world.wait_until_published(Service::Order);
    assert_eq!(
        ids(&world.uncommitted_records("payment")),
        [stored.to_string()]
    );
}

/// When a message's writer began to store it and when its commit was answered, on one clock for all writers.
struct Span {
    begun: u64,
    done: u64,
    id: String,
}

fn write_many(world: &World, clock: &AtomicU64, writes: usize) -> Vec<Span> {
    let mut db = world.db(Service::Order);
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let span = |_| {
        let begun = tick();
        db.batch_execute("begin").expect("begun");
        let id = append(&mut db).to_string();
        db.batch_execute("commit").expect("committed");
        Span {
            begun,
            done: tick(),
            id,
        }
    };
    (0..writes).map(span).collect()
}

fn assert_stored_order(partition: &[&Seen], spans: &[Span]) {
    let span = |seen: &Seen| {
        spans
            .iter()
            .find(|span| span.id == seen.ce_id)
            .expect("one of ours")
    };
    for (place, later) in partition.iter().enumerate().skip(1) {
        assert!(
            partition[place - 1].ce_time <= later.ce_time,
            "stored times go back at {later:?}"
        );
        for earlier in &partition[..place] {
            assert!(
                span(later).done > span(earlier).begun,
                "{later:?} was stored before {earlier:?} was begun"
            );
        }
    }
}

#[test]
fn many_concurrent_writers_leave_in_stored_order_on_every_partition() {
    let world = World::with("manywriters", &[("RELAY_BATCH", "7")]);
    let _order = world.start(Service::Order);
    let clock = AtomicU64::new(0);
    let spans: Vec<Span> = thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| write_many(&world, &clock, 50)))
            .collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("written"))
            .collect()
    });
    world.wait_until_published(Service::Order);
    let records = world.records("payment");
    assert_eq!(records.len(), 400);
    for partition in 0..3 {
        let here: Vec<&Seen> = records
            .iter()
            .filter(|seen| seen.partition == partition)
            .collect();
        assert!(
            here.len() > 50,
            "only {} on partition {partition}",
            here.len()
        );
        assert_stored_order(&here, &spans);
    }
    assert_no_id_twice(&world);
}

/// The topic `stock`, made before the services make theirs, that takes no record above 900 bytes.
fn make_narrow_stock_topic(world: &World) -> String {
    let name = format!("{}stock", world.prefix());
    let configs = vec![("max.message.bytes".to_string(), "900".to_string())];
    let topic = NewTopic {
        name: name.clone(),
        partitions: 3,
        replication: None,
        configs,
    };
    Admin::new(world.kafka(), Interrupt::new())
        .create_topics(&[topic])
        .expect("created");
    name
}

fn widen(world: &World, topic: &str) {
    let place = [
        "--bootstrap-server",
        world.brokers(),
        "--entity-type",
        "topics",
        "--entity-name",
        topic,
    ];
    let change = ["--alter", "--delete-config", "max.message.bytes"];
    tool(
        "kafka.admin.ConfigCommand",
        &[&place[..], &change[..]].concat(),
    );
}

#[test]
fn a_stock_message_that_kafka_refuses_keeps_the_payment_message_back_until_both_can_leave() {
    let world = World::new("bothornone");
    let topic = make_narrow_stock_topic(&world);
    let [order, payment, stock] = world.start_all();
    let long_name = "\u{1f375}".repeat(200); // 200 characters, 800 bytes
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let too_large = order.api().place("ann", &long_name, 1, 1);
    order.wait_for_log("MESSAGE_TOO_LARGE");
    let behind = order.api().place("ann", "tea", 100, 1);
    until("a payment message written in vain", || {
        !world.uncommitted_records("payment").is_empty()
    });
    for topic in ["payment", "stock", "payment.success", "stock.success"] {
        assert_eq!(
            world.records(topic),
            [],
            "nothing of either order is visible on {topic}"
        );
    }
    assert_eq!(
        world.outbox_rows(Service::Order),
        2,
        "both rows stay, the second behind the first"
    );
    assert_eq!(order.api().order(too_large)["paymentStatus"], "READY");
    widen(&world, &topic);
    assert_eq!(order.api().settled(behind)["orderStatus"], "COMPLETED");
    let refused = order.api().settled(too_large);
    assert_eq!(
        refused["reason"],
        json!({"code": "UNKNOWN_ITEM", "from": "stock"})
    );
    world.wait_until_quiet();
    assert_eq!(world.records("payment").len(), 2);
    assert_eq!(world.records("stock").len(), 2);
    assert_no_id_twice(&world);
    assert_eq!(payment.api().balance("ann"), 900);
    world.assert_conserved();
}

#[test]
fn rows_before_a_refused_one_of_the_same_batch_get_out_and_those_behind_it_wait() {
    let world = World::with("halved", &[("TOPIC_PARTITIONS", "1")]);
    world.spoils_messages();
    let topic = make_narrow_stock_topic(&world);
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    let mut db = world.db(Service::Order);
    // one transaction: the relay finds all rows at once
    db.batch_execute("begin").expect("begun");
    let before: Vec<String> = (0..5).map(|_| append(&mut db).to_string()).collect();
    let refused = append_to(&mut db, "stock", &"x".repeat(900)).to_string();
    let behind = append(&mut db).to_string();
    db.batch_execute("commit").expect("committed");
    let published = eventually("the rows before the refused one", || {
        Some(world.records("payment")).filter(|seen| seen.len() >= before.len())
    });
    assert_eq!(ids(&published), before);
    order.wait_for_log("MESSAGE_TOO_LARGE");
    until("the published rows to go", || {
        world.outbox_rows(Service::Order) == 2
    });
    wait_for_a_turn(&mut db);
    assert_eq!(
        world.outbox_rows(Service::Order),
        2,
        "the refused row and the one behind it"
    );
    widen(&world, &topic);
    world.wait_until_published(Service::Order);
    assert_eq!(
        ids(&world.records("payment")),
        [before, vec![behind]].concat()
    );
    assert_eq!(ids(&world.records("stock")), [refused]);
}

#[test]
fn after_a_clock_that_was_set_back_a_little_times_stay_in_order_and_after_a_lot_they_are_right() {
    let world = World::with("clockjump", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    let mut db = world.db(Service::Order);
    let run_ahead = |db: &mut Client, by: &str| {
        let sql = format!(
            "select setval('outbox_clock', (extract(epoch from clock_timestamp() + interval '{by}') * 1000000)::bigint)"
        );
        db.execute(&sql, &[]).expect("the clock");
    };
    let time_in = |db: &mut Client, minutes: &str| -> String {
        let sql = format!(
            "select to_char((now() + interval '{minutes}') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
        );
        db.query_one(&sql, &[]).expect("an answer").get(0)
    };
    let soon = time_in(&mut db, "20 seconds");
    run_ahead(&mut db, "40 seconds");
    let a_little = [append(&mut db), append(&mut db)];
    // Kafka refuses timestamps an hour ahead of its own
    run_ahead(&mut db, "2 days");
    let a_lot = [append(&mut db), append(&mut db)];
    let later = time_in(&mut db, "1 hour");
    world.wait_until_published(Service::Order);
    let published = world.records("payment");
    let stored: Vec<String> = a_little
        .iter()
        .chain(&a_lot)
        .map(ToString::to_string)
        .collect();
    assert_eq!(ids(&published), stored);
    assert!(
        published[..2].iter().all(|record| record.ce_time > soon),
        "the last stored time counts: {published:?}"
    );
    assert!(
        published.iter().all(|record| record.ce_time < later),
        "the clock counts again: {published:?}"
    );
}

#[test]
fn a_restored_database_publishes_what_it_stores_under_row_ids_that_were_published_before() {
    let world = World::with("restored", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    assert!(order.stop().success());
    world.back_up(Service::Order);
    let order = world.start(Service::Order);
    let before = append(&mut world.db(Service::Order)).to_string();
    until("the position of row 1", || {
        world.outbox_rows(Service::Order) == 0
    });
    assert!(order.stop().success());
    world.restore(Service::Order);
    let after = append(&mut world.db(Service::Order)).to_string();
    let order = world.start(Service::Order);
    world.wait_until_published(Service::Order);
    assert_eq!(ids(&world.records("payment")), [before, after]);
    order.wait_for_log(
        "a position in Kafka (outbox rows 1 to 1) is of an earlier life of this database",
    );
}

/// A leader, and an instance that stands by.
fn leader_and_follower(world: &World, leader_settings: &[(&str, &str)]) -> [Instance; 2] {
    let leader = world.start_with(Service::Order, leader_settings);
    leader.wait_for_log("leading: producer");
    let follower = world.start(Service::Order);
    assert!(!follower.log().contains("leading: producer"));
    [leader, follower]
}

fn published(world: &World, order_id: Uuid) -> bool {
    world.types_about(order_id) == ["payment.requested", "stock.requested"]
}

#[test]
fn a_follower_wakes_the_leader_and_takes_over_when_it_is_killed() {
    let world = World::new("killedleader");
    let [leader, follower] = leader_and_follower(&world, &[]);
    let by_leader = follower.api().place("ann", "tea", 1, 1);
    until("the leader to publish the follower's order", || {
        published(&world, by_leader)
    });
    assert!(!follower.log().contains("leading: producer"));
    leader.signal(Signal::KILL);
    let by_successor = follower.api().place("ann", "tea", 1, 1);
    until("the successor to publish", || {
        published(&world, by_successor)
    });
    follower.wait_for_log("leading: producer");
    assert_no_id_twice(&world);
}

#[test]
fn a_follower_takes_over_from_a_frozen_leader_which_stands_again_once_thawed() {
    let world = World::new("frozenleader");
    let [frozen, successor] = leader_and_follower(&world, &[]);
    frozen.signal(Signal::STOP);
    let meanwhile = successor.api().place("ann", "tea", 1, 1);
    until("the successor to publish", || published(&world, meanwhile));
    frozen.signal(Signal::CONT);
    let after = frozen.api().place("ann", "tea", 1, 1);
    until("the thawed instance's order", || published(&world, after));
    successor.signal(Signal::KILL);
    let last = frozen.api().place("ann", "tea", 1, 1);
    until("the thawed instance to lead again", || {
        published(&world, last)
    });
    assert_no_id_twice(&world);
}

#[test]
fn a_leader_frozen_inside_its_transaction_is_fenced_by_the_broker_when_it_goes_on() {
    let broker = Broker::start();
    let world = World::with("fenced", &[("KAFKA_BROKERS", &broker.direct())]);
    let [frozen, successor] = leader_and_follower(&world, &[("KAFKA_BROKERS", &broker.proxied())]);
    broker
        .proxy
        .hold_after(kafka_request(PRODUCE, "order-relay"));
    let order_id = frozen.api().place("ann", "tea", 1, 1);
    until("the leader's records to be written, unknown to it", || {
        broker.proxy.holds_the_answer()
    });
    frozen.signal(Signal::STOP);
    assert_eq!(world.uncommitted_records("stock").len(), 1, "written");
    assert_eq!(world.records("stock"), [], "not committed");
    successor.wait_for_log("leading: producer");
    until("the successor to publish the order", || {
        published(&world, order_id)
    });
    broker.proxy.resume();
    frozen.signal(Signal::CONT);
    eventually(
        "the broker's fencing error in the thawed leader's log",
        || {
            let log = frozen.log();
            (log.contains("PRODUCER_FENCED") || log.contains("INVALID_PRODUCER_EPOCH"))
                .then_some(())
        },
    );
    let fenced = "saga_relay_transactions_total{outcome=\"fenced\"} 1";
    until("it to be counted", || {
        frozen.api().get("/metrics").text.contains(fenced)
    });
    let after = frozen.api().place("ann", "tea", 1, 1);
    until("orders to go out after it", || published(&world, after));
    assert!(published(&world, order_id), "once, by the successor alone");
    assert_no_id_twice(&world);
    world.wait_until_published(Service::Order);
}

#[test]
fn a_service_on_another_installations_kafka_names_stops_at_its_start_and_says_why() {
    let world = World::new("owner");
    let order = world.start(Service::Order);
    let order_id = order.api().place("ann", "tea", 1, 1);
    until("a position in Kafka", || {
        published(&world, order_id) && world.outbox_rows(Service::Order) == 0
    });
    let foreign = World::with("foreign", &[("TOPIC_PREFIX", world.prefix())]);
    let stopped = foreign.launch(Service::Order, &[]);
    let status = stopped.process().exit();
    assert_eq!(status.code(), Some(1));
    let log = stopped.log();
    assert!(log.contains("position of another order database"), "{log}");
    assert!(log.contains("TOPIC_PREFIX"), "it says what to do: {log}");
}

#[test]
fn with_compressed_records_orders_settle_and_a_new_leader_finds_its_position() {
    let world = World::with("relay_lz4", &[("KAFKA_COMPRESSION", "lz4")]);
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("pen", 100);
    let before: Vec<Uuid> = (0..20)
        .map(|_| order.api().place("ann", "pen", 5, 1))
        .collect();
    for id in before {
        assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    }
    order.kill();
    let order = world.start(Service::Order);
    let after = order.api().place("ann", "pen", 5, 1);
    assert_eq!(order.api().settled(after)["orderStatus"], "COMPLETED");
    assert_eq!(payment.api().balance("ann"), 1_000 - 21 * 5);
    assert_eq!(stock.api().quantity("pen"), 100 - 21);
}
