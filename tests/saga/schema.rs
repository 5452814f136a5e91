//! What a service finds at its start: a schema brought up to date by whoever comes first, a newer one used or refused, a
//! topic that does not fit.

use harness::locks::end_sessions;
use harness::{Service, World};
use kafka::{Admin, Config, Interrupt, NewTopic};
use postgres::Client;
use serde_json::{Value, json};

const NEWER: &str = "insert into schema_history_common (version, name, applied_on, checksum)
    values (99, 'from_the_future', '2030-01-01T00:00:00Z', '1')";

/// A database that was migrated once, its service stopped again.
fn migrated(name: &str) -> World {
    let world = World::new(name);
    assert!(world.start(Service::Payment).stop().success());
    world
}

/// The common migrations, oldest first.
const COMMON: [&str; 3] = [
    include_str!("../../sql/common/V1__common.sql"),
    include_str!("../../sql/common/V2__outbox_calls.sql"),
    include_str!("../../sql/common/V3__position_in_records.sql"),
];
const PAYMENT: [&str; 2] = [
    include_str!("../../sql/payment/V1__payment.sql"),
    include_str!("../../sql/payment/V2__outbox_calls.sql"),
];

/// A payment database as an older version left it: the common migrations up to `last`, and no later ones.
fn left_at(name: &str, last: usize) -> World {
    let world = migrated(name);
    let mut db = world.db(Service::Payment);
    let histories = ["schema_history_common", "schema_history_payment"];
    db.batch_execute("create schema aside").unwrap();
    for table in histories {
        db.batch_execute(&format!("alter table {table} set schema aside"))
            .unwrap();
    }
    db.batch_execute("drop schema public cascade; create schema public")
        .unwrap();
    COMMON[..last]
        .iter()
        .chain(&PAYMENT)
        .for_each(|sql| db.batch_execute(sql).unwrap());
    for (table, last) in histories.iter().zip([last, PAYMENT.len()]) {
        let sql = format!(
            "alter table aside.{table} set schema public; delete from {table} where version > {last}"
        );
        db.batch_execute(&sql).unwrap();
    }
    world
}

#[test]
fn instances_started_at_once_migrate_an_empty_database_once() {
    let world = World::new("schema_race");
    let instances = [(); 3].map(|()| world.launch(Service::Stock, &[]));
    instances
        .iter()
        .for_each(|instance| instance.wait_until_ready());
    let sql = "select version from schema_history_stock order by version";
    let applied = world.db(Service::Stock).query(sql, &[]).unwrap();
    assert_eq!(
        applied.iter().map(|row| row.get(0)).collect::<Vec<i32>>(),
        [1, 2],
        "each once"
    );
}

#[test]
fn a_schema_that_is_newer_but_additive_is_warned_of_and_used() {
    let world = migrated("schema_newer");
    world.db(Service::Payment).batch_execute(NEWER).unwrap();
    let payment = world.start(Service::Payment);
    payment.wait_for_log("newer than this binary's");
    payment.api().put_balance("ann", 5);
    assert_eq!(payment.api().balance("ann"), 5);
}

#[test]
fn a_schema_that_needs_a_newer_binary_stops_the_service_and_is_left_alone() {
    let world = migrated("schema_incompatible");
    let mut db = world.db(Service::Payment);
    db.batch_execute(NEWER).unwrap();
    db.batch_execute("update schema_compat set min_version = 3; drop table payment")
        .unwrap();
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit_within(harness::LIMIT).code(),
        Some(1)
    );
    assert!(
        payment
            .log()
            .contains("needs a binary of schema version 3 or newer; this one is 2"),
        "{}",
        payment.log()
    );
    assert!(
        db.query("select 1 from payment", &[]).is_err(),
        "a table was made anew"
    );
}

#[test]
fn a_database_that_an_older_version_may_still_publish_from_is_not_migrated() {
    let world = left_at("schema_older", 2);
    let (mut db, mut relay) = (world.db(Service::Payment), world.db(Service::Payment));
    let message = r#"[{"id":"01a207b0-6c85-711f-941c-898f27171165","topic":"payment.success","type":"payment.completed","data":{}}]"#;
    db.execute(
        "select append_outbox(array[gen_random_uuid()], array[$1::text])",
        &[&message],
    )
    .unwrap();
    let refused = |why: &str| {
        let payment = world.launch(Service::Payment, &[]);
        assert_eq!(
            payment.process().exit_within(harness::LIMIT).code(),
            Some(1)
        );
        assert!(payment.log().contains(why), "{}", payment.log());
    };
    refused("1 rows wait in payment_outbox: start the older version until they are published");
    db.batch_execute("delete from payment_outbox").unwrap();
    relay
        .batch_execute("set application_name = 'payment-relay'")
        .unwrap();
    refused("an instance of an older version is running: stop all of them");
    end_sessions(&mut db, "payment-relay");
    world.start(Service::Payment);
    let wanted: i32 = db
        .query_one("select min_version from schema_compat", &[])
        .unwrap()
        .get(0);
    assert_eq!(wanted, 2, "the older version can't be started any more");
}

/// Parks a record as the version without actions does, and answers its number.
fn park(db: &mut Client, offset: i64) -> i64 {
    let sql = "insert into dead_letter (cause, detail, attempts, topic, topic_id, partition, record_offset, to_offset,
                                        record_key, record_value, header_names, header_values)
               values ('UNDECODABLE', 'bytes', 1, 'payment', gen_random_uuid(), 0, $1, null, 'ann', 'x', '{a}', '{b}')
               on conflict do nothing returning id";
    db.query_one(sql, &[&offset]).unwrap().get(0)
}

/// Notes a replay as that version does.
fn note_replay(db: &mut Client, id: i64, result: &str) {
    let sql =
        "update dead_letter set replayed_at = clock_timestamp(), replay_result = $2 where id = $1";
    assert_eq!(db.execute(sql, &[&id, &result]).unwrap(), 1);
}

#[test]
fn a_version_without_actions_on_dead_letters_leaves_their_story_and_works_on_beside() {
    let world = left_at("schema_letters", 3);
    let mut db = world.db(Service::Payment);
    let [applied, failed, open] = [1, 2, 3].map(|offset| park(&mut db, offset));
    note_replay(&mut db, applied, "APPLIED");
    note_replay(&mut db, failed, "FAILED: why: so");
    let payment = world.start(Service::Payment);
    let shown = |id: i64| {
        let letter = payment.api().found(&format!("/dead-letters/{id}"));
        let history = letter["history"].as_array().unwrap().iter();
        let told = history
            .map(|action| json!([action["actor"], action["result"], action["detail"]]))
            .collect::<Value>();
        (letter["state"].clone(), letter["replays"].clone(), told)
    };
    assert_eq!(
        shown(applied),
        (
            json!("REPLAYED"),
            json!(1),
            json!([["unknown", "APPLIED", null]])
        )
    );
    assert_eq!(
        shown(failed),
        (
            json!("OPEN"),
            json!(1),
            json!([["unknown", "FAILED", "why: so"]])
        )
    );
    assert_eq!(shown(open), (json!("OPEN"), json!(0), json!([])));

    // an instance of that version goes on
    let parked = park(&mut db, 4);
    note_replay(&mut db, open, "UNCHANGED: a duplicate");
    assert_eq!([shown(parked).0, shown(open).0], ["OPEN", "REPLAYED"]);
    let again = payment
        .api()
        .call(
            "POST",
            &format!("/dead-letters/{open}/replay"),
            &[],
            Some(b""),
        )
        .unwrap();
    assert_eq!(again.status, 409, "{}", again.text);
}

#[test]
fn a_migration_that_waits_for_a_table_lets_others_use_it_meanwhile() {
    let world = left_at("schema_busy", 3);
    let (mut db, mut reader) = (world.db(Service::Payment), world.db(Service::Payment));
    let mut report = reader.transaction().unwrap();
    report.batch_execute("select from dead_letter").unwrap();
    let payment = world.launch(Service::Payment, &[]);
    payment.wait_for_log("somebody uses a table that a migration changes");
    // the longest that one of them waits behind the migration is shorter
    db.batch_execute("set lock_timeout = '10s'").unwrap();
    (1..=3).for_each(|offset| _ = park(&mut db, offset));
    report.rollback().unwrap();
    payment.wait_until_ready();
    assert_eq!(
        payment.api().found("/dead-letters")["deadLetters"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
}

#[test]
fn a_migration_that_was_changed_after_it_was_applied_is_refused() {
    let world = migrated("schema_divergent");
    world
        .db(Service::Payment)
        .batch_execute("update schema_history_payment set checksum = '1'")
        .unwrap();
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit_within(harness::LIMIT).code(),
        Some(1)
    );
    assert!(
        payment
            .log()
            .contains("the schema (payment) can't be brought up to date"),
        "{}",
        payment.log()
    );
}

#[test]
fn a_topic_that_would_lose_records_by_compaction_is_refused() {
    let world = World::new("topic_compacted");
    let topic = NewTopic {
        name: format!("{}stock.dlt", world.prefix()),
        partitions: 3,
        replication: None,
        configs: vec![("cleanup.policy".into(), "compact".into())],
    };
    let config = Config::new(vec![world.brokers().to_string()], "test");
    Admin::new(config, Interrupt::new())
        .create_topics(&[topic])
        .unwrap();
    let order = world.launch(Service::Order, &[]);
    assert_eq!(order.process().exit_within(harness::LIMIT).code(), Some(1));
    assert!(
        order.log().contains("stock.dlt has cleanup.policy=compact"),
        "{}",
        order.log()
    );
}
