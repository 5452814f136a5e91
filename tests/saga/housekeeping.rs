//! What is old enough goes, what matters stays.

use harness::{Instance, Service, World, until};
use kafka::{Admin, Interrupt, NewTopic};
use postgres::Client;
use serde_json::{Value, json};

const OFTEN: (&str, &str) = ("HOUSEKEEPING_INTERVAL", "200ms");

fn count(db: &mut Client, what: &str) -> i64 {
    db.query_one(&format!("select count(*) from {what}"), &[])
        .unwrap()
        .get(0)
}

fn post(order: &Instance, key: &str, price: i64) -> (u16, Value) {
    let body = json!({"userName": "ann", "itemName": "pen", "price": price, "quantity": 1});
    let answer = order
        .api()
        .json("POST", "/orders", &[("idempotency-key", key)], &body);
    (answer.status, answer.json)
}

#[test]
fn an_idempotency_key_holds_across_restarts_and_instances_until_it_expires() {
    let world = World::with("keys", &[OFTEN]);
    let first = world.start(Service::Order);
    let (status, answer) = post(&first, "k1", 5);
    assert_eq!(status, 202);
    assert!(first.stop().success());
    let second = world.start(Service::Order);
    let third = world.start(Service::Order);
    for instance in [&second, &third] {
        assert_eq!(post(instance, "k1", 5), (202, answer.clone()));
        assert_eq!(post(instance, "k1", 6).0, 422);
    }
    let mut db = world.db(Service::Order);
    db.execute(
        "update idempotency_key set created_at = created_at - interval '23 hours'",
        &[],
    )
    .unwrap();
    db.execute(
        "insert into idempotency_key values ('k2', gen_random_uuid(), now() - interval '24 hours')",
        &[],
    )
    .unwrap();
    until("the other key to be removed", || {
        count(&mut db, "idempotency_key where idempotency_key = 'k2'") == 0
    });
    assert_eq!(post(&second, "k1", 5), (202, answer.clone()));
    db.execute(
        "update idempotency_key set created_at = created_at - interval '1 hour'",
        &[],
    )
    .unwrap();
    until("the key to expire", || {
        count(&mut db, "idempotency_key") == 0
    });
    let (status, later) = post(&third, "k1", 5);
    assert_eq!(status, 202);
    assert_ne!(later["orderId"], answer["orderId"]);
    assert_eq!(count(&mut db, "orders"), 2);
}

#[test]
fn a_key_removed_while_its_request_is_repeated_is_stored_again() {
    let world = World::with("keys_race", &[("IDEMPOTENCY_KEY_RETENTION", "3650d")]);
    let order = world.start(Service::Order);
    post(&order, "k", 5);
    let mut db = world.db(Service::Order);
    // a sweep that has deleted the key and not committed
    let mut cleanup = db.transaction().unwrap();
    cleanup.execute("delete from idempotency_key", &[]).unwrap();
    std::thread::scope(|scope| {
        let repeated = scope.spawn(|| post(&order, "k", 5));
        let mut watcher = world.db(Service::Order);
        until("the request to wait", || {
            count(
                &mut watcher,
                "pg_locks where not granted and locktype = 'transactionid'",
            ) > 0
        });
        cleanup.commit().unwrap();
        let (status, later) = repeated.join().unwrap();
        assert_eq!(status, 202);
        assert_eq!(post(&order, "k", 5), (202, later));
    });
    assert_eq!(count(&mut db, "idempotency_key"), 1);
    assert_eq!(count(&mut db, "orders"), 2);
}

/// The eight topics, keeping records for so many milliseconds, but `payment.success` for as many as that.
fn create_topics(world: &World, retention_ms: &str, of_success: &str) {
    let topics = harness::TOPICS.map(|name| NewTopic {
        name: format!("{}{name}", world.prefix()),
        partitions: 1,
        replication: Some(1),
        configs: vec![(
            "retention.ms".into(),
            if name == "payment.success" {
                of_success
            } else {
                retention_ms
            }
            .into(),
        )],
    });
    let kafka = kafka::Config::new(world.bootstrap(), "test");
    Admin::new(kafka, Interrupt::new())
        .create_topics(&topics)
        .unwrap();
}

#[test]
fn handled_dead_letters_go_in_small_batches_and_open_ones_stay() {
    let world = World::with("letters_swept", &[OFTEN]);
    let eight_days = "691200000";
    create_topics(&world, "1000", eight_days);
    let payment = world.start(Service::Payment);
    let mut db = world.db(Service::Payment);
    let park = |age: &str, result: &str, count: i64, db: &mut Client| {
        db.execute(
            &format!(
                "insert into dead_letter (cause, detail, attempts, topic, topic_id, partition, record_offset, parked_at,
                                          replayed_at, replay_result)
                 select 'GIVEN_UP', '', 5, 'payment', gen_random_uuid(), 0, n, now() - interval '{age}',
                        now() - interval '{age}', {result} from generate_series(1, {count}) n"
            ),
            &[],
        )
        .unwrap();
    };
    park("90 days", "'FAILED: still'", 1, &mut db);
    park("7 days", "'APPLIED'", 2, &mut db);
    park("8 days", "'APPLIED'", 1_200, &mut db);
    until("the handled ones to be removed", || {
        count(&mut db, "dead_letter") == 3
    });
    assert_eq!(
        count(&mut db, "dead_letter where replay_result = 'APPLIED'"),
        2
    );
    payment.wait_for_log("handled dead letters");
}

#[test]
fn a_retention_shorter_than_the_topics_is_refused_at_the_start() {
    let world = World::new("retention");
    create_topics(&world, "864000000", "-1");
    let refused = |settings: &[(&str, &str)]| {
        let payment = world.launch(Service::Payment, settings);
        assert_eq!(payment.process().exit().code(), Some(1));
        payment.log()
    };
    let log = refused(&[
        ("DEAD_LETTER_RETENTION", "9d"),
        ("TIMELINE_RETENTION", "forever"),
    ]);
    let topic = format!("{}payment", world.prefix());
    assert!(
        log.contains(&format!(
            "DEAD_LETTER_RETENTION is 777600 s, and topic {topic} keeps records for 864000 s"
        )),
        "{log}"
    );
    let log = refused(&[("TIMELINE_RETENTION", "30d")]);
    let topic = format!("{}payment.success", world.prefix());
    assert!(
        log.contains(&format!(
            "TIMELINE_RETENTION is 2592000 s, and topic {topic} keeps records for ever"
        )),
        "{log}"
    );
    let payment = world.start_with(Service::Payment, &[("DEAD_LETTER_RETENTION", "forever")]);
    assert_eq!(payment.api().get("/healthz").status, 200);
}

#[test]
fn steps_go_with_the_topics_records_once_their_orders_are_settled_for_so_long() {
    let world = World::with("steps_swept", &[OFTEN]);
    create_topics(&world, "691200000", "691200000");
    let order = world.start(Service::Order);
    let mut db = world.db(Service::Order);
    // ids of orders drawn 9 days, 9 days and 7 days ago; the second has settled only now, the fourth has not
    db.batch_execute(
        "create function drawn(days integer, n integer) returns uuid language sql as
             $$ select (lpad(to_hex(((extract(epoch from now()) - days * 86400) * 1000)::bigint), 12, '0') || '7000a000'
                        || lpad(n::text, 12, '0'))::uuid $$;
         insert into orders (order_id, user_name, item_name, price, quantity, order_status, payment_status, stock_status,
                             reason_code, reason_from, traceparent, updated_at)
         select drawn(days, n), 'ann', 'pen', 1, 1, 'FAILED', 'FAILED', stock, 'UNKNOWN_USER', 'payment', 't',
                now() - changed * interval '1 day'
           from (values (9, 1, 'FAILED', 9), (9, 2, 'FAILED', 0), (7, 3, 'FAILED', 7), (9, 4, 'COMPENSATING', 9))
                as o (days, n, stock, changed);
         insert into timeline (order_id, message_id, type, noted_at)
         select order_id, gen_random_uuid(), 'payment.failed', now() from orders;",
    )
    .unwrap();
    until("the first one's steps to be removed", || {
        count(&mut db, "timeline") == 3
    });
    order.wait_for_log("removed 1 steps of settled orders");
    assert_eq!(count(&mut db, "timeline where order_id = drawn(9, 1)"), 0);
}
