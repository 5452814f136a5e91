//! What people and administrators do to servers that others use: rows held in a forgotten transaction, a database that may not be
//! written for a while, limits of a topic or of a client. By SQL and Kafka's own tools.

use harness::broker::tool;
use harness::{Service, World, until};
use postgres::Client;
use postgres::error::SqlState;

use crate::stage::Stage;

/// Holds back a busy system, and lets a lone record pass.
const QUOTA: &str = "producer_byte_rate=20000,consumer_byte_rate=20000";
/// Some orders' events, and fewer than a relay sends at once.
const SMALL_BATCH: &str = "max.message.bytes=4000";

/// A person's transaction that holds rows of a service that others need, and a snapshot, until it is dropped. Answers what it
/// holds, too; none while the database is away.
pub fn hold_rows(stage: &Stage, service: Service, number: usize) -> Option<(Client, String)> {
    let name = ["user-0", "user-1", "user-2", "user-3", "hot"][number % 5];
    let item = name.replace("user", "item");
    let (what, sql) = match service {
        Service::Order => (
            "ten open orders".to_string(),
            "select from orders where order_status not in ('COMPLETED', 'FAILED') order by order_id desc limit 10 for update".to_string(),
        ),
        Service::Payment => {
            (format!("the account {name}"), format!("select from account where user_name = '{name}' for update"))
        }
        Service::Stock => {
            (format!("the item {item}"), format!("select from item where item_name = '{item}' for update"))
        }
    };
    let mut person = stage.db(service).ok()?;
    until("rows that nobody writes at this moment", || {
        match person.batch_execute(&format!("begin isolation level repeatable read; {sql}")) {
            Ok(()) => true,
            // one of them was written after the snapshot was taken
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                person.batch_execute("rollback").expect("a superuser");
                false
            }
            Err(error) => panic!("rows that may be locked: {error}"),
        }
    });
    Some((person, what))
}

/// From now on new sessions of a service's database may write, or may not; those that are there are ended, or else they would go
/// on as they are.
///
/// # Panics
/// When the database is away.
pub fn may_write(stage: &Stage, service: Service, may: bool) {
    let name = stage.world.database(service);
    let mut db = stage.db(service).expect("no other fault is under way");
    let change = if may {
        "reset default_transaction_read_only"
    } else {
        "set default_transaction_read_only = on"
    };
    let sql = format!("alter database {name} {change}");
    // one after the other: a transaction that has begun stays what it was
    ["set default_transaction_read_only = off", &sql]
        .iter()
        .for_each(|sql| db.batch_execute(sql).expect("a superuser"));
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid() and application_name <> ''";
    if !may {
        db.batch_execute(end).expect("a superuser");
    }
}

/// A topic takes small batches only, or any again.
///
/// # Panics
/// When Kafka's tool fails.
pub fn limit_batches(world: &World, topic: &str, limited: bool) {
    let name = format!("{}{topic}", world.prefix());
    let change = if limited {
        ["--add-config", SMALL_BATCH]
    } else {
        ["--delete-config", "max.message.bytes"]
    };
    configure(
        world,
        &[
            &["--entity-type", "topics", "--entity-name", &name][..],
            &change,
        ]
        .concat(),
    );
}

/// All clients together may send and read little, or as much as they like again.
///
/// # Panics
/// When Kafka's tool fails.
pub fn limit_clients(world: &World, limited: bool) {
    let change = if limited {
        ["--add-config", QUOTA]
    } else {
        ["--delete-config", "producer_byte_rate,consumer_byte_rate"]
    };
    configure(
        world,
        &[
            &["--entity-type", "clients", "--entity-default"][..],
            &change,
        ]
        .concat(),
    );
}

fn configure(world: &World, arguments: &[&str]) {
    tool(
        "kafka.admin.ConfigCommand",
        &[
            &["--bootstrap-server", world.brokers(), "--alter"][..],
            arguments,
        ]
        .concat(),
    );
}
