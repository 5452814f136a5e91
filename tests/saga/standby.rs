//! The harness's own claim: what [`Replicated`] says that it loses is lost, and nothing else.

use harness::Replicated;

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

fn system(servers: &Replicated) -> i64 {
    let sql = "select system_identifier from pg_control_system()";
    servers
        .db("postgres")
        .query_one(sql, &[])
        .expect("a superuser may ask")
        .get(0)
}

#[test]
fn a_standby_that_lags_takes_over_without_the_primarys_last_rows() {
    let servers = Replicated::start();
    servers.create_database("tail");
    servers
        .db("tail")
        .batch_execute("create table kept (number integer)")
        .expect("an empty database");
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
