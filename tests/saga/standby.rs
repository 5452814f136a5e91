//! The harness's own claim: what [`Replicated`] says that it loses is lost, and nothing else.

use harness::{Replicated, until};
use postgres::types::FromSqlOwned;

fn numbers(servers: &Replicated) -> Vec<i32> {
    let rows = servers
        .db("tail")
        .query("select number from kept order by number", &[])
        .expect("the table is there");
    rows.iter().map(|row| row.get(0)).collect()
}

fn insert(servers: &Replicated, number: i32) {
    servers
        .db("tail")
        .execute("insert into kept values ($1)", &[&number])
        .expect("a row more");
}

/// A pair with an empty table.
fn with_table(servers: Replicated) -> Replicated {
    servers.create_database("tail");
    servers
        .db("tail")
        .batch_execute("create table kept (number integer)")
        .expect("an empty database");
    servers
}

/// The one value of a query.
fn ask<T: FromSqlOwned>(servers: &Replicated, sql: &str) -> T {
    servers
        .db("postgres")
        .query_one(sql, &[])
        .expect("a superuser may ask")
        .get(0)
}

fn system(servers: &Replicated) -> i64 {
    ask(servers, "select system_identifier from pg_control_system()")
}

#[test]
fn a_standby_that_lags_takes_over_without_the_primarys_last_rows() {
    let servers = with_table(Replicated::start());
    let (system_before, mut held_open) = (system(&servers), servers.db("tail"));
    assert_eq!(servers.timeline(), 1);
    insert(&servers, 1);
    servers.lag();
    insert(&servers, 2);
    assert_eq!(numbers(&servers), [1, 2]);
    servers.lose_tail();
    assert_eq!(numbers(&servers), [1]);
    assert_eq!(servers.timeline(), 2);
    assert!(
        held_open.simple_query("select 1").is_err(),
        "a connection to the killed primary is cut"
    );

    servers.renew();
    insert(&servers, 3);
    servers.lag();
    insert(&servers, 4);
    servers.lose_tail();
    assert_eq!(numbers(&servers), [1, 3]);
    assert_eq!(servers.timeline(), 3);
    assert_eq!(
        system(&servers),
        system_before,
        "it is the same cluster through all takeovers"
    );

    let address = servers.primary();
    drop(servers);
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "nothing is left to answer"
    );
}

/// Whether somebody's commit waits for the standby.
fn a_commit_waits(servers: &Replicated) -> bool {
    let sql = "select exists (select from pg_stat_activity where datname = 'tail' and wait_event = 'SyncRep'
                and backend_type = 'client backend')";
    ask(servers, sql)
}

#[test]
fn a_synchronous_standby_takes_over_with_every_row_and_without_one_no_commit_is_answered() {
    let servers = with_table(Replicated::start_synchronous());
    (1..=3).for_each(|number| insert(&servers, number));
    servers.kill_primary();
    drop(servers.fail_over());
    assert_eq!(numbers(&servers), [1, 2, 3]);
    assert_eq!(servers.timeline(), 2);

    let mut alone = servers.db("tail");
    let alone = std::thread::spawn(move || alone.execute("insert into kept values (4)", &[]));
    until("the commit to wait", || a_commit_waits(&servers));
    assert_eq!(numbers(&servers), [1, 2, 3], "nobody sees it yet");
    servers.renew();
    until("the commit to be answered", || alone.is_finished());
    let rows = alone.join().expect("no panic");
    assert_eq!(rows.expect("committed once there is a standby"), 1);
    drop(servers.fail_over());
    assert_eq!(numbers(&servers), [1, 2, 3, 4]);
    assert_eq!(servers.timeline(), 3);
}
