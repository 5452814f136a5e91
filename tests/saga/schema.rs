//! What a service finds at its start: a schema brought up to date by the first instance, a newer one used or refused, a
//! topic that does not fit.

use std::cell::Cell;
use std::rc::Rc;

use harness::{Service, World};
use kafka::{Admin, Config, Interrupt, NewTopic};
use postgres::error::SqlState;
use shared::db::{Connector, Limits, Query, Tx};

const NEWER: &str = "insert into schema_history_common (version, name, applied_on, checksum)
    values (99, 'from_the_future', '2030-01-01T00:00:00Z', '1')";

/// A database that was migrated once, its service stopped again.
fn migrated(name: &str) -> World {
    let world = World::new(name);
    assert!(world.start(Service::Payment).stop().success());
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
        [1, 2, 3],
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
    db.batch_execute("update schema_compat set min_version = 2; drop table payment")
        .unwrap();
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit_within(harness::LIMIT).code(),
        Some(1)
    );
    assert!(
        payment
            .log()
            .contains("needs a binary of schema version 2 or newer; this one is 1"),
        "{}",
        payment.log()
    );
    assert!(
        db.query("select 1 from payment", &[]).is_err(),
        "a table was made anew"
    );
}

#[test]
fn a_migration_that_waits_for_a_table_lets_others_use_it_meanwhile() {
    // a trigger makes the first migration wait as one that changes a table in use may have to
    const CHANGES_A_TABLE: &str = "create schema aside; create table aside.used (line integer);
        create function aside.change() returns event_trigger language plpgsql as
            'begin lock table aside.used in access exclusive mode; end';
        create event trigger change on ddl_command_start when tag in ('CREATE FUNCTION')
            execute function aside.change()";
    let world = World::new("schema_busy");
    let (mut db, mut reader) = (world.db(Service::Payment), world.db(Service::Payment));
    db.batch_execute(CHANGES_A_TABLE).unwrap();
    let mut report = reader.transaction().unwrap();
    report.batch_execute("select from aside.used").unwrap();
    let payment = world.launch(Service::Payment, &[]);
    payment.wait_for_log("somebody uses a table that a migration changes");
    // the longest that one of them waits behind the migration is shorter
    db.batch_execute("set lock_timeout = '10s'").unwrap();
    for line in 1..=3 {
        let sql = "insert into aside.used values ($1)";
        assert_eq!(db.execute(sql, &[&line]).unwrap(), 1);
    }
    report.rollback().unwrap();
    payment.wait_until_ready();
    payment.api().put_balance("ann", 5);
    assert_eq!(payment.api().balance("ann"), 5);
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
    let config = Config::new(world.bootstrap(), "test");
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

#[test]
fn rows_that_can_not_be_are_refused_by_the_schema() {
    let world = World::new("schema_impossible");
    let [order, payment, stock] = Service::ALL.map(|service| world.start(service));
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("pen", 10);
    let placed = order.api().place("ann", "pen", 1, 1);
    assert_eq!(order.api().settled(placed)["orderStatus"], "COMPLETED");
    let refused = |service, table: &str, changes: &[&str]| {
        let mut db = world.db(service);
        for change in changes {
            let error = db
                .batch_execute(&format!("update {table} set {change}"))
                .expect_err(change);
            let error = error.as_db_error().unwrap();
            assert_eq!(error.code(), &SqlState::CHECK_VIOLATION, "{change}");
            assert_eq!(error.table(), Some(table), "{change}");
        }
    };
    refused(
        Service::Order,
        "orders",
        &[
            "order_status = 'SETTLED'",
            "payment_status = 'PAID'",
            "stock_status = 'SOLD'",
            "order_status = 'IN_PROGRESS'",
            "stock_status = 'IN_PROGRESS'",
            "payment_status = 'FAILED'",
            "order_status = 'FAILED', payment_status = 'FAILED'",
            "order_status = 'FAILED', payment_status = 'FAILED', reason_code = 'NO_ACCOUNT'",
            "order_status = 'FAILED', reason_code = 'NO_ACCOUNT', reason_from = 'payment'",
            "reason_code = 'NO_ACCOUNT', reason_from = 'payment'",
            "price = null",
        ],
    );
    let participants = [
        (Service::Payment, "payment", "user_name", "amount"),
        (Service::Stock, "reservation", "item_name", "quantity"),
    ];
    for (service, table, name, number) in participants {
        refused(
            service,
            table,
            &[
                "status = 'PAID'",
                &format!("{name} = null"),
                &format!("{number} = 0"),
                "status = 'FAILED'",
                "status = 'FAILED', reason_code = 'NO_ACCOUNT'",
                "reason_code = 'NO_ACCOUNT', reason_from = 'payment'",
            ],
        );
    }
}

#[test]
fn a_transaction_in_which_a_statement_has_failed_is_not_committed() {
    let world = World::new("schema_failed");
    let url = world.database_url(Service::Stock);
    let mut session = Connector::new(&url, "test", Limits::WORK)
        .and_then(|connector| connector.connect())
        .unwrap();
    let ran = Rc::new(Cell::new(false));
    let note = |tx: &mut Tx<'_>| {
        let ran = ran.clone();
        tx.after_commit(move || ran.set(true));
    };

    let mut tx = session.transaction().unwrap();
    note(&mut tx);
    assert!(tx.execute("select 1 / 0", &[]).is_err());
    assert!(tx.commit().is_err());
    assert!(!ran.get());

    // it was gone back behind
    let mut tx = session.transaction().unwrap();
    let here = tx.savepoint().unwrap();
    assert!(tx.query("select 1 / 0", &[]).is_err());
    tx.rollback_to(&here).unwrap();
    note(&mut tx);
    tx.commit().unwrap();
    assert!(ran.get());
}
