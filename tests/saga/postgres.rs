//! PostgreSQL as it is in other places: a server that only reads, an encoding that can't hold every text, a database for all three
//! services, rows copied without their sequences, people and other programs at work in it.

use harness::pooler::Pooler;
use harness::{Instance, Message, Proxy, Replicated, Service, World, env, until};
use postgres::Client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::operations::metric;
use crate::poison::wait_for_parked;

fn reasons(instance: &Instance) -> String {
    instance.api().get("/readyz").json["reasons"].to_string()
}

fn wait_for_reason(instance: &Instance, words: &str) {
    until(&format!("{words:?} as a reason"), || {
        reasons(instance).contains(words)
    });
}

fn wait_until_ready(instance: &Instance) {
    until("it to be ready", || {
        instance.api().get("/readyz").status == 200
    });
}

fn order() -> Value {
    json!({"userName": "ann", "itemName": "tea", "price": 300, "quantity": 2})
}

fn end_sessions(world: &World, service: Service) {
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    world.db(service).execute(sql, &[]).unwrap();
}

fn count(db: &mut Client, of: &str) -> i64 {
    db.query_one(&format!("select count(*) from {of}"), &[])
        .unwrap()
        .get(0)
}

// ---- a server that gives no sessions

#[test]
fn a_server_that_refuses_sessions_is_reported_in_its_own_words_and_no_order_is_in_doubt() {
    let world = World::new("turned_away");
    let [order_service, payment] =
        [Service::Order, Service::Payment].map(|service| world.start(service));
    assert_eq!(order_service.api().post("/orders", &order()).status, 202);
    world.wait_until_published(Service::Order);
    let mut admin = world.db(Service::Stock);
    for service in [Service::Order, Service::Payment] {
        let database = world.database(service);
        admin
            .batch_execute(&format!(
                "alter database {database} allow_connections false"
            ))
            .unwrap();
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        admin.execute(sql, &[&database]).unwrap();
    }
    let words = |service| {
        let database = world.database(service);
        format!("database \"{database}\" is not currently accepting connections (SQLSTATE 55000)")
    };
    // the writer has no session any more
    order_service.wait_for_log("what admission goes by can't be read");
    let posted = order_service.api().post("/orders", &order());
    let why = format!(
        "the database refuses us: {}; nothing was changed, repeat the request later",
        words(Service::Order)
    );
    assert_eq!(
        (posted.status, posted.json["detail"].as_str()),
        (503, Some(&*why))
    );
    let read = payment.api().get("/accounts/ann");
    let why = format!(
        "the database refuses us: {}; repeat the request",
        words(Service::Payment)
    );
    assert_eq!(
        (read.status, read.json["detail"].as_str()),
        (503, Some(&*why))
    );
    let (code, said) = world.ask(Service::Payment, &["--check"], &[]);
    let line = format!(
        "database: failed: PostgreSQL refuses: {}; check",
        words(Service::Payment)
    );
    assert!(code == 1 && said.contains(&line), "{said}");
    for service in [Service::Order, Service::Payment] {
        let database = world.database(service);
        admin
            .batch_execute(&format!("alter database {database} allow_connections true"))
            .unwrap();
    }
    wait_until_ready(&order_service);
    assert_eq!(order_service.api().post("/orders", &order()).status, 202);
    assert_eq!(
        count(&mut world.db(Service::Order), "orders"),
        2,
        "the refused one was not stored"
    );
}

#[test]
fn a_check_says_what_is_wrong_with_a_server_that_is_there() {
    let world = World::new("wrong_url");
    let url = world.database_url(Service::Stock);
    let (server, _) = url.rsplit_once('/').unwrap();
    let without_tls = world
        .db(Service::Stock)
        .query_one("show ssl", &[])
        .unwrap()
        .get::<_, &str>(0)
        == "off";
    for (url, wanted) in [
        (
            format!("{server}/nowhere"),
            "database \"nowhere\" does not exist (SQLSTATE 3D000)",
        ),
        (
            format!("{url}?sslmode=require"),
            "server does not support TLS",
        ),
    ] {
        if url.ends_with("require") && !without_tls {
            continue;
        }
        let (code, said) = world.ask(
            Service::Stock,
            &["--check"],
            &[("STOCK_DATABASE_URL", &url)],
        );
        assert_eq!(code, 1, "{said}");
        assert!(
            said.contains("database: failed: PostgreSQL refuses: ") && said.contains(wanted),
            "{said}"
        );
        assert!(
            said.contains("check the database's URL and what the server grants its user"),
            "{said}"
        );
    }
}

// ---- a server that can't be written to

#[test]
fn a_read_only_database_is_reported_in_its_own_words_and_used_again_as_soon_as_it_can_be_written() {
    let world = World::new("read_only");
    let order_service = world.start(Service::Order);
    wait_until_ready(&order_service);
    let api = order_service.api();
    assert_eq!(api.post("/orders", &order()).status, 202);
    let mut admin = world.db(Service::Order);
    let database = world.database(Service::Order);
    admin
        .batch_execute(&format!(
            "alter database {database} set default_transaction_read_only = on"
        ))
        .unwrap();
    end_sessions(&world, Service::Order);
    wait_for_reason(&order_service, "is read-only");
    // the writer's own session notices it by itself
    order_service.wait_for_log("what admission goes by can't be read");
    let refused = api.post("/orders", &order());
    assert_eq!(refused.status, 503, "{}", refused.text);
    let why = refused.json["detail"].as_str().unwrap();
    assert!(
        why.contains("is read-only (default_transaction_read_only is on)"),
        "{why}"
    );
    assert!(
        why.ends_with("; nothing was changed, repeat the request later"),
        "{why}"
    );
    until("the refusal to be counted", || {
        metric(
            &order_service,
            "saga_orders_refused_total{reason=\"database\"}",
        ) >= 1.0
    });
    let (code, said) = world.ask(Service::Order, &["--check"], &[]);
    assert!(
        code == 1 && said.contains("database: failed: database") && said.contains("is read-only"),
        "{said}"
    );
    let mut writer = world.db(Service::Order);
    writer
        .batch_execute("set default_transaction_read_only = off")
        .unwrap();
    writer
        .batch_execute(&format!(
            "alter database {database} reset default_transaction_read_only"
        ))
        .unwrap();
    wait_until_ready(&order_service);
    assert_eq!(api.post("/orders", &order()).status, 202);
    world.wait_until_published(Service::Order);
}

#[test]
fn sessions_of_a_server_that_becomes_read_only_are_dropped_and_made_anew() {
    let servers = Replicated::start();
    let world = World::new("turned_read_only").on(Service::Order, &servers);
    let order_service = world.start(Service::Order);
    wait_until_ready(&order_service);
    let mut admin = servers.db("postgres");
    let set = |admin: &mut Client, value: &str| {
        admin
            .batch_execute(&format!(
                "alter system set default_transaction_read_only = {value}"
            ))
            .unwrap();
        admin.batch_execute("select pg_reload_conf()").unwrap();
    };
    admin
        .batch_execute("set default_transaction_read_only = off")
        .unwrap();
    set(&mut admin, "on");
    wait_for_reason(&order_service, "is read-only");
    assert_eq!(order_service.api().post("/orders", &order()).status, 503);
    set(&mut admin, "off");
    wait_until_ready(&order_service);
    assert_eq!(order_service.api().post("/orders", &order()).status, 202);
    world.wait_until_published(Service::Order);
}

#[test]
fn an_address_that_leads_to_a_standby_for_a_while_is_refused_for_as_long() {
    let servers = Replicated::start();
    let world = World::new("led_astray").on(Service::Order, &servers);
    let proxy = Proxy::to(&servers.primary());
    let url = world.database_url_at(Service::Order, &proxy.addr());
    let order_service = world.start_with(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    wait_until_ready(&order_service);
    proxy.lead_to(&servers.standby());
    proxy.drop_connections();
    wait_for_reason(&order_service, "is a standby, where nothing can be written");
    // the first may go to a session that broke without a word: nobody knows what became of that one
    until("an answer that names the cause", || {
        let refused = order_service.api().post("/orders", &order());
        assert_eq!(refused.status, 503, "{}", refused.text);
        refused.text.contains("is a standby")
    });
    let (code, said) = world.ask(
        Service::Order,
        &["--check"],
        &[("ORDER_DATABASE_URL", &url)],
    );
    assert!(code == 1 && said.contains("is a standby"), "{said}");
    proxy.lead_to(&servers.primary());
    proxy.drop_connections();
    wait_until_ready(&order_service);
    assert_eq!(order_service.api().post("/orders", &order()).status, 202);
    world.wait_until_published(Service::Order);
}

#[test]
fn of_two_servers_in_the_url_the_one_that_can_be_written_is_taken() {
    let servers = Replicated::start();
    let world = World::new("two_hosts").on(Service::Order, &servers);
    let both = format!("{},{}", servers.standby(), servers.primary());
    let url = world.database_url_at(Service::Order, &both);
    let order_service = world.start_with(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    wait_until_ready(&order_service);
    assert_eq!(order_service.api().post("/orders", &order()).status, 202);
}

// ---- keys of our own

fn set_back(db: &mut Client, table: &str) {
    db.execute(
        "select setval(pg_get_serial_sequence($1, 'id'), 1, false)",
        &[&table],
    )
    .unwrap();
}

/// A request of payment's that can't be read.
fn spoilt(number: u128) -> Message {
    let mut message = Message::event(
        "payment",
        Uuid::from_u128(number),
        "payment.requested",
        &json!({}),
    );
    message.value = Some(format!("spoilt {number}").into_bytes());
    message
}

#[test]
fn a_dead_letter_is_not_lost_to_a_sequence_that_stands_behind_its_rows() {
    let world = World::with("sequence_behind", &[("TOPIC_PARTITIONS", "1")]);
    let payment = world.start(Service::Payment);
    world.produce(&spoilt(1));
    wait_for_parked(&world, Service::Payment, 1);
    set_back(&mut world.db(Service::Payment), "dead_letter");
    world.produce(&spoilt(2));
    assert_eq!(wait_for_parked(&world, Service::Payment, 2).len(), 2);
    assert!(payment.stop().success());

    set_back(&mut world.db(Service::Payment), "dead_letter");
    let (code, said) = world.ask(Service::Payment, &["--check"], &[]);
    let line = "the sequence of dead_letter.id stands at 1, behind its rows (up to ";
    assert!(
        code == 0 && said.contains(line) && said.contains("a start sets it on"),
        "{said}"
    );
    let payment = world.start(Service::Payment);
    payment.wait_for_log(line);
    world.produce(&spoilt(3));
    assert_eq!(wait_for_parked(&world, Service::Payment, 3).len(), 3);
    assert!(
        !payment.log().contains("dead_letter_pkey"),
        "{}",
        payment.log()
    );
}

#[test]
fn a_clash_in_a_table_of_ours_is_not_blamed_on_an_answer() {
    let world = World::new("deadline_clash");
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("tea", 1_000);
    let mut db = world.db(Service::Order);
    let later = "insert into deadline (due_at, round, order_ids)
                 select clock_timestamp() + interval '1 hour', 0, '{}' from generate_series(1, 3)";
    db.execute(later, &[]).unwrap();
    set_back(&mut db, "deadline");
    // fails, so that stock is asked to give back, which is written into that table
    let order_id = order_service.api().place("ann", "tea", 300, 2);
    assert_eq!(
        order_service.api().settled(order_id)["orderStatus"],
        "FAILED"
    );
    assert_eq!(count(&mut db, "dead_letter"), 0);
    assert_eq!(stock.api().quantity("tea"), 1_000);
}

// ---- one database for all

#[test]
fn three_services_live_in_schemas_of_one_database_and_two_in_one_are_refused() {
    let world = World::new("schemas");
    let mut db = world.db(Service::Order);
    Service::ALL.iter().for_each(|service| {
        db.batch_execute(&format!("create schema of_{}", service.name()))
            .unwrap();
    });
    let url = |service: Service, schema: &str| {
        let shared = world.database_url(Service::Order);
        let mark = if shared.contains('?') { "&" } else { "?" };
        let variable = format!("{}_DATABASE_URL", service.name().to_uppercase());
        (
            variable,
            format!("{shared}{mark}options=-c%20search_path%3D{schema}"),
        )
    };
    let start = |service: Service| {
        let (variable, url) = url(service, &format!("of_{}", service.name()));
        let instance = world.start_with(service, &[(&variable, &url)]);
        instance.wait_for_log("leading: producer");
        instance
    };
    let [order_service, payment, stock] = Service::ALL.map(start);
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let order_id = order_service.api().place("ann", "tea", 300, 2);
    assert_eq!(
        order_service.api().settled(order_id)["orderStatus"],
        "COMPLETED"
    );
    [&order_service, &payment, &stock]
        .into_iter()
        .for_each(wait_until_ready);

    let (variable, taken) = url(Service::Payment, "of_order");
    let second = world.launch(Service::Payment, &[(&variable, &taken)]);
    assert_eq!(second.process().exit().code(), Some(1));
    assert!(
        second
            .log()
            .contains("schema of_order belongs to the service order"),
        "{}",
        second.log()
    );
    let (variable, missing) = url(Service::Payment, "nowhere");
    let (code, said) = world.ask(Service::Payment, &["--check"], &[(&variable, &missing)]);
    assert!(
        code == 1 && said.contains("no schema of the search_path (nowhere) is there"),
        "{said}"
    );
}

#[test]
fn an_outbox_that_ages_while_somebody_else_holds_the_lead_is_a_reason() {
    let world = World::new("unled");
    let order_service = world.start(Service::Order);
    wait_until_ready(&order_service);
    let mut db = world.db(Service::Order);
    // as a tool that does so by mistake, after the relay's own session is ended
    db.batch_execute(
        "do $$ begin
             perform pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and application_name = 'order-relay';
             perform pg_advisory_lock(lock_class(), 2);
         end $$",
    )
    .unwrap();
    until("an order to be taken", || {
        order_service.api().post("/orders", &order()).status == 202
    });
    wait_for_reason(
        &order_service,
        "no relay leads, and the oldest of 1 outbox rows has been waiting for",
    );
    drop(db);
    wait_until_ready(&order_service);
    world.wait_until_published(Service::Order);
}

// ---- people and other programs

#[test]
fn an_open_snapshot_is_reported() {
    let world = World::new("snapshot");
    let payment = world.start(Service::Payment);
    let mut db = world.db(Service::Payment);
    let mut open = db
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()
        .unwrap();
    open.query_one("select count(*) from account", &[]).unwrap();
    until("the snapshot to be reported", || {
        metric(&payment, "saga_database_oldest_snapshot_seconds") >= 2.0
    });
    drop(open);
    until("its end to be reported", || {
        metric(&payment, "saga_database_oldest_snapshot_seconds") < 1.0
    });
}

#[test]
fn a_database_that_is_not_in_utf_8_is_refused() {
    let world = World::new("latin1");
    let name = world.database(Service::Payment);
    let mut admin = Client::connect(&env::database_url("postgres"), postgres::NoTls).unwrap();
    admin
        .batch_execute(&format!("drop database {name}"))
        .unwrap();
    let latin1 = "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0";
    admin
        .batch_execute(&format!("create database {name} {latin1}"))
        .unwrap();
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(payment.process().exit().code(), Some(1));
    assert!(
        payment
            .log()
            .contains(&format!("database {name} has the encoding LATIN1")),
        "{}",
        payment.log()
    );
    let (code, said) = world.ask(Service::Payment, &["--check"], &[]);
    assert!(
        code == 1 && said.contains("has the encoding LATIN1"),
        "{said}"
    );
}

#[test]
fn an_order_whose_outbox_row_is_deleted_is_listed_as_overdue_and_ends() {
    let world = World::with("row_deleted", &[("ORDER_DEADLINE", "20s")]);
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let mut db = world.db(Service::Order);
    // the relay waits for the row, which is gone when it gets it
    let mut deleting = db.transaction().unwrap();
    deleting
        .batch_execute("lock table order_outbox in access exclusive mode")
        .unwrap();
    let placing = std::thread::scope(|scope| {
        let placing = scope.spawn(|| order_service.api().place("ann", "tea", 300, 2));
        world.wait_for_waiting(Service::Order, 2);
        deleting
            .batch_execute(
                "create function vanish() returns trigger language plpgsql as $$ begin return null; end $$;
                 create trigger vanish before insert on order_outbox for each row execute function vanish()",
            )
            .unwrap();
        deleting.commit().unwrap();
        placing.join().unwrap()
    });
    db.batch_execute("drop trigger vanish on order_outbox")
        .unwrap();
    until("it to be listed", || {
        let listed = order_service.api().found("/orders?status=OVERDUE")["orders"].clone();
        listed.as_array().is_some_and(|orders| {
            orders
                .iter()
                .any(|order| order["orderId"] == placing.to_string())
        })
    });
    until("it to be counted", || {
        metric(&order_service, "saga_orders_overdue") == 1.0
    });
    let settled = order_service.api().settled(placing);
    assert_eq!(
        (&settled["orderStatus"], &settled["reason"]["code"]),
        (&json!("FAILED"), &json!("DEADLINE")),
        "{settled}"
    );
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (1_000, 10)
    );
    until("nothing to be overdue", || {
        metric(&order_service, "saga_orders_overdue") == 0.0
    });
}

#[test]
fn an_order_whose_deadline_is_deleted_is_listed_as_overdue_and_ends() {
    let world = World::with("deadline_deleted", &[("ORDER_DEADLINE", "5s")]);
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    assert!(payment.stop().success());
    let placed = order_service.api().place("ann", "tea", 300, 2);
    let mut db = world.db(Service::Order);
    until("its deadline to be there, and no longer", || {
        db.execute("delete from deadline", &[]).unwrap() > 0
    });
    until("it to be listed", || {
        let listed = order_service.api().found("/orders?status=OVERDUE")["orders"].clone();
        listed.as_array().is_some_and(|orders| {
            orders
                .iter()
                .any(|order| order["orderId"] == placed.to_string())
        })
    });
    until("it to end", || {
        order_service.api().order(placed)["orderStatus"] == "FAILED"
    });
    let payment = world.start(Service::Payment);
    let settled = order_service.api().settled(placed);
    assert_eq!(settled["reason"]["code"], "DEADLINE", "{settled}");
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (1_000, 10)
    );
}

#[test]
fn a_compensation_whose_deadline_is_deleted_is_asked_for_again() {
    let settings = [("ORDER_DEADLINE", "2s"), ("COMPENSATION_RETRY", "1h")];
    let world = World::with("compensating_deleted", &settings);
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    assert!(payment.stop().success());
    let placed = order_service.api().place("ann", "tea", 300, 2);
    let asked = |times: usize| {
        until(&format!("payment to be asked {times} times"), || {
            world.records("payment.compensation").len() == times
        });
    };
    asked(1);
    let mut db = world.db(Service::Order);
    until("the row that asks again to be there, and no longer", || {
        db.execute("delete from deadline where round = 1", &[])
            .unwrap()
            > 0
    });
    asked(2);
    let payment = world.start(Service::Payment);
    let settled = order_service.api().settled(placed);
    assert_eq!(settled["paymentStatus"], "COMPENSATED", "{settled}");
    world.wait_until_quiet();
    asked(2);
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (1_000, 10)
    );
}

#[test]
fn a_publication_of_all_tables_hinders_nothing() {
    let world = World::new("publication");
    world
        .start_all()
        .iter()
        .for_each(|instance| assert!(instance.stop().success()));
    for service in Service::ALL {
        let mut db = world.db(service);
        db.batch_execute("create publication everything for all tables")
            .unwrap();
        let keyless = "select relname::text from pg_class c
                        where relnamespace = 'public'::regnamespace and relkind = 'r' and relreplident = 'd'
                          and not exists (select from pg_index where indrelid = c.oid and indisprimary)";
        let keyless: Vec<String> = db
            .query(keyless, &[])
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert_eq!(
            keyless,
            Vec::<String>::new(),
            "rows of these could be neither changed nor removed"
        );
    }
    let timeline = "insert into timeline (order_id, message_id, noted_at, type) values (gen_random_uuid(), gen_random_uuid(), now(), 'x')";
    let mut db = world.db(Service::Order);
    db.batch_execute(timeline).unwrap();
    assert_eq!(db.execute("delete from timeline", &[]).unwrap(), 1);
}

#[test]
fn a_clock_that_ran_ahead_for_a_moment_is_reported_and_later_times_are_right() {
    let world = World::with("ran_ahead", &[("TOPIC_PARTITIONS", "1")]);
    let payment = world.start(Service::Payment);
    let mut db = world.db(Service::Payment);
    let ten_years = "select setval('outbox_clock', (extract(epoch from now() + interval '10 years') * 1000000)::bigint)";
    db.execute(ten_years, &[]).unwrap();
    let append = "select append_outbox(array[gen_random_uuid()], array['[]'])";
    let mut rows = world.db(Service::Payment);
    let mut open = rows.transaction().unwrap();
    open.execute(append, &[]).unwrap();
    open.execute(append, &[]).unwrap();
    let sql = "select count(*) from payment_outbox where stored_at between now() - interval '1 hour' and now() + interval '1 hour'";
    assert_eq!(open.query_one(sql, &[]).unwrap().get::<_, i64>(0), 2);
    open.rollback().unwrap();
    payment.wait_for_log("the database's clock has run ahead");
    until("it to be measured", || {
        metric(&payment, "saga_outbox_clock_ahead_seconds") > 300_000_000.0
    });
}

// ---- a row that a person has locked

/// Holds rows as a person does who has begun a transaction in psql.
fn hold<'a>(db: &'a mut Client, rows: &str) -> postgres::Transaction<'a> {
    let mut held = db.transaction().unwrap();
    assert!(
        !held
            .query(&format!("select * from {rows} for update"), &[])
            .unwrap()
            .is_empty()
    );
    held
}

/// Three services, two users and two items.
fn shop(name: &str, settings: &[(&str, &str)]) -> (World, [Instance; 3]) {
    let world = World::with(name, settings);
    let instances = world.start_all();
    let [_, payment, stock] = &instances;
    ["ann", "bob"]
        .iter()
        .for_each(|user| payment.api().put_balance(user, 1_000));
    ["tea", "lamp"]
        .iter()
        .for_each(|item| stock.api().put_quantity(item, 100));
    (world, instances)
}

#[test]
fn a_locked_account_delays_its_own_orders_only() {
    let (world, [order_service, payment, _stock]) = shop("locked_account", &[]);
    let api = order_service.api();
    let mut person = world.db(Service::Payment);
    let held = hold(&mut person, "account where user_name = 'ann'");
    let of_ann: Vec<Uuid> = (0..6).map(|_| api.place("ann", "tea", 10, 1)).collect();
    let of_bob: Vec<Uuid> = (0..12).map(|_| api.place("bob", "tea", 10, 1)).collect();
    of_bob
        .iter()
        .for_each(|order_id| assert_eq!(api.settled(*order_id)["orderStatus"], "COMPLETED"));
    until("all of ann's to be set aside", || {
        metric(&payment, "saga_set_aside_records") == 6.0
    });
    until("the session that holds it to be named", || {
        payment.api().found("/overview")["setAside"]["for"]
            .as_str()
            .is_some_and(|what| what.starts_with("the row of account ann, held by session "))
    });
    payment.wait_for_log("records are set aside and tried again");
    assert_eq!(payment.api().get("/readyz").status, 200);
    held.rollback().unwrap();
    of_ann
        .iter()
        .for_each(|order_id| assert_eq!(api.settled(*order_id)["orderStatus"], "COMPLETED"));
    world.wait_until_quiet();
    assert_eq!(
        (payment.api().balance("ann"), payment.api().balance("bob")),
        (940, 880)
    );
    assert_eq!(count(&mut world.db(Service::Payment), "set_aside"), 0);
    world.assert_conserved();
}

#[test]
fn what_was_set_aside_outlives_the_process_that_did_so() {
    let (world, [order_service, payment, _stock]) = shop("aside_crash", &[]);
    let mut person = world.db(Service::Payment);
    let held = hold(&mut person, "account where user_name = 'ann'");
    let order_id = order_service.api().place("ann", "tea", 10, 1);
    until("it to be set aside", || {
        count(&mut world.db(Service::Payment), "set_aside") == 1
    });
    payment.process().kill();
    held.rollback().unwrap();
    let _second = world.start(Service::Payment);
    assert_eq!(
        order_service.api().settled(order_id)["orderStatus"],
        "COMPLETED"
    );
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn a_locked_order_delays_itself_only_at_its_publication_its_answers_and_its_deadline() {
    let (world, [order_service, payment, stock]) =
        shop("locked_order", &[("ORDER_DEADLINE", "10s")]);
    let api = order_service.api();
    assert!(payment.stop().success());
    let mut person = world.db(Service::Order);
    // the relay holds nothing of it yet when the person comes: publishing waits for the table
    let mut table = world.db(Service::Order);
    let mut closed = table.transaction().unwrap();
    closed
        .batch_execute("lock table deadline in access exclusive mode")
        .unwrap();
    let first = api.place("ann", "tea", 10, 1);
    let held = hold(&mut person, &format!("orders where order_id = '{first}'"));
    closed.commit().unwrap();
    let others: Vec<Uuid> = (0..3).map(|_| api.place("bob", "tea", 10, 1)).collect();
    world.wait_until_published(Service::Order);
    // payment is away: all of them meet their deadline, but for the one that is held
    others.iter().for_each(|order_id| {
        until("another one's deadline", || {
            api.order(*order_id)["orderStatus"] == "FAILED"
        });
    });
    assert_eq!(api.order(first)["orderStatus"], "IN_PROGRESS");
    held.rollback().unwrap();
    until("its deadline", || {
        api.order(first)["orderStatus"] == "FAILED"
    });
    let _payment = world.start(Service::Payment);
    others
        .iter()
        .chain([&first])
        .for_each(|order_id| assert_eq!(api.settled(*order_id)["orderStatus"], "FAILED"));
    world.wait_until_quiet();
    assert_eq!(stock.api().quantity("tea"), 100);
    world.assert_conserved();
}

#[test]
fn answers_about_a_locked_order_are_set_aside_and_others_are_not() {
    let (world, [order_service, payment, _stock]) = shop("locked_answers", &[]);
    let api = order_service.api();
    assert!(payment.stop().success());
    let first = api.place("ann", "tea", 10, 1);
    until("stock's answer", || {
        api.order(first)["stockStatus"] == "COMPLETED"
    });
    // its requests are marked as published somewhat later
    world.wait_until_published(Service::Order);
    let mut person = world.db(Service::Order);
    let held = hold(&mut person, &format!("orders where order_id = '{first}'"));
    let _payment = world.start(Service::Payment);
    let others: Vec<Uuid> = (0..6).map(|_| api.place("bob", "lamp", 10, 1)).collect();
    others
        .iter()
        .for_each(|order_id| assert_eq!(api.settled(*order_id)["orderStatus"], "COMPLETED"));
    until("its answer to be set aside", || {
        metric(&order_service, "saga_set_aside_records") == 1.0
    });
    assert_eq!(api.order(first)["paymentStatus"], "IN_PROGRESS");
    held.rollback().unwrap();
    assert_eq!(api.settled(first)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn what_comes_after_an_answer_set_aside_waits_behind_it_after_a_kill_too() {
    let settings = [("ORDER_DEADLINE", "1h"), ("COMPENSATION_RETRY", "1h")];
    let (world, [order_service, payment, _stock]) = shop("aside_behind", &settings);
    let api = order_service.api();
    assert!(payment.stop().success());
    let [of_ann, of_bob] = ["ann", "bob"].map(|user| api.place(user, "tea", 10, 1));
    for order_id in [of_ann, of_bob] {
        until("stock's answer", || {
            api.order(order_id)["stockStatus"] == "COMPLETED"
        });
    }
    world.wait_until_published(Service::Order);
    let mut people = [(); 3].map(|_| world.db(Service::Order));
    let [first, second, third] = &mut people;
    let ann_held = hold(first, &format!("orders where order_id = '{of_ann}'"));
    let bob_held = hold(second, &format!("orders where order_id = '{of_bob}'"));
    let payment = world.start(Service::Payment);
    until("both answers to be set aside", || {
        metric(&order_service, "saga_set_aside_records") == 2.0
    });
    assert!(payment.stop().success());
    // so that nobody tries ann's again until this ends
    let anns = format!("set_aside where record_key = convert_to('{of_ann}', 'UTF8')");
    let kept = hold(third, &anns);
    ann_held.rollback().unwrap();
    world
        .db(Service::Order)
        .execute("update deadline set due_at = clock_timestamp()", &[])
        .unwrap();
    until("payment to be asked to compensate", || {
        world.records("payment.compensation").len() == 1
    });
    order_service.process().kill();
    let _payment = world.start(Service::Payment);
    until("payment to confirm", || {
        world.records("payment.success").len() == 3
    });
    let order_service = world.start(Service::Order);
    let api = order_service.api();
    let waiting = |whose: &str| count(&mut world.db(Service::Order), whose);
    until("both confirmations to be handled or set aside", || {
        waiting(&anns) == 3 || api.order(of_ann)["paymentStatus"] == "COMPENSATED"
    });
    assert_eq!(waiting(&anns), 3);
    bob_held.rollback().unwrap();
    let bobs = format!("set_aside where record_key = convert_to('{of_bob}', 'UTF8')");
    until("bob's to be tried again", || waiting(&bobs) == 0);
    assert_eq!(
        waiting(&anns),
        3,
        "nothing of ann's is tried before the first"
    );
    kept.rollback().unwrap();
    for order_id in [of_ann, of_bob] {
        api.settled(order_id);
    }
    world.wait_until_quiet();
    assert_eq!(api.order(of_ann)["paymentStatus"], "COMPENSATED");
    assert_eq!(api.found("/repairs")["repairs"], json!([]));
    world.assert_conserved();
}

#[test]
fn one_set_aside_that_waits_for_another_lock_later_delays_no_others() {
    let (world, [order_service, _payment, _stock]) = shop("aside_later", &[]);
    let api = order_service.api();
    let mut people = [(); 2].map(|_| world.db(Service::Payment));
    let [first, second] = &mut people;
    let accounts_held = hold(first, "account");
    let [of_ann, of_bob] = ["ann", "bob"].map(|user| api.place(user, "tea", 10, 1));
    let mut db = world.db(Service::Payment);
    until("both to be set aside", || count(&mut db, "set_aside") == 2);
    db.batch_execute(
        "create table gate (closed boolean);
         insert into gate values (true);
         create function wait_at_gate() returns trigger language plpgsql as $$
         begin
             if new.user_name = 'ann' then perform from gate for update; end if;
             return new;
         end $$;
         create trigger wait_at_gate before update on payment for each row execute function wait_at_gate()",
    )
    .unwrap();
    let gate_held = hold(second, "gate");
    accounts_held.rollback().unwrap();
    assert_eq!(api.settled(of_bob)["orderStatus"], "COMPLETED");
    gate_held.rollback().unwrap();
    assert_eq!(api.settled(of_ann)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}

#[test]
fn what_another_instance_has_handled_meanwhile_is_not_given_up() {
    let (world, [order_service, _payment, _stock]) = shop("aside_handled", &[]);
    let api = order_service.api();
    let mut person = world.db(Service::Payment);
    let held = hold(&mut person, "account where user_name = 'ann'");
    let _of_ann = api.place("ann", "tea", 10, 1);
    let mut db = world.db(Service::Payment);
    until("it to be set aside", || count(&mut db, "set_aside") == 1);
    // its next attempt is the last, and fails: first among all that are set aside, then alone, which stands still
    db.batch_execute(
        "update set_aside set attempts = 5;
         alter table payment add constraint not_ann check (user_name <> 'ann');
         create table gate (closed boolean);
         insert into gate values (true);
         create sequence tries;
         create function stand_still() returns trigger language plpgsql as $$
         begin
             if nextval('tries') = 2 then
                 while exists (select from gate) loop perform pg_sleep(0.02); end loop;
             end if;
             return new;
         end $$;
         create trigger stand_still before update on payment for each row execute function stand_still()",
    )
    .unwrap();
    held.rollback().unwrap();
    world.wait_for_stopped(Service::Payment, 1);
    // in the moment in which it has failed, another instance does what it has to do
    let mut another = world.db(Service::Payment);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            another
                .batch_execute("begin; lock table set_aside; delete from set_aside; commit")
                .unwrap();
        });
        world.wait_for_waiting(Service::Payment, 1);
        world.let_go(Service::Payment);
    });
    let of_bob = api.place("bob", "tea", 10, 1);
    assert_eq!(api.settled(of_bob)["orderStatus"], "COMPLETED");
    assert_eq!(count(&mut db, "dead_letter"), 0);
}

#[test]
fn a_call_for_a_held_row_soon_gives_up_and_leaves_its_worker_to_others() {
    let world = World::with("held_call", &[("HTTP_WORKERS", "1")]);
    let payment = world.start(Service::Payment);
    let api = payment.api();
    ["ann", "bob"]
        .iter()
        .for_each(|user| api.put_balance(user, 1_000));
    let (mut person, mut other) = (world.db(Service::Payment), world.db(Service::Payment));
    let held = hold(&mut person, "account where user_name = 'ann'");
    // longer than a call waits, and less than a consumer
    other.batch_execute("set lock_timeout = '4500ms'").unwrap();
    let refused = std::thread::scope(|scope| {
        let putting = scope.spawn(|| api.put("/accounts/ann", &json!({"balance": 50})));
        world.wait_for_waiting(Service::Payment, 1);
        assert!(
            other
                .batch_execute("select from account where user_name = 'ann' for update")
                .is_err()
        );
        assert!(putting.is_finished(), "it still waits");
        putting.join().unwrap()
    });
    let detail =
        "another database session holds a row or table that this call needs; repeat the request";
    assert_eq!(
        (refused.status, refused.json["detail"].as_str()),
        (503, Some(detail))
    );
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(api.balance("bob"), 1_000);
    held.rollback().unwrap();
    assert_eq!(
        api.put("/accounts/ann", &json!({"balance": 50})).status,
        200
    );
}

#[test]
fn locked_keys_delay_their_own_requests_only() {
    let (world, [order_service, ..]) = shop("locked_keys", &[]);
    let api = order_service.api();
    let place = |user: &str, key: &str| {
        let body = json!({"userName": user, "itemName": "tea", "price": 10, "quantity": 1});
        api.json("POST", "/orders", &[("Idempotency-Key", key)], &body)
    };
    // so many that nobody would be served within his time if each of them was waited for
    let keys: Vec<String> = (0..8).map(|number| format!("held-{number}")).collect();
    let first: Vec<_> = keys.iter().map(|key| place("ann", key)).collect();
    assert!(first.iter().all(|answer| answer.status == 202));
    let mut person = world.db(Service::Order);
    let held = hold(
        &mut person,
        "idempotency_key where idempotency_key like 'held-%'",
    );
    std::thread::scope(|scope| {
        let again: Vec<_> = keys
            .iter()
            .map(|key| scope.spawn(|| place("ann", key)))
            .collect();
        world.wait_for_waiting(Service::Order, 1);
        let others: Vec<_> = (0..6)
            .map(|number| scope.spawn(move || place("bob", &format!("other-{number}")).status))
            .collect();
        others
            .into_iter()
            .for_each(|other| assert_eq!(other.join().unwrap(), 202));
        for again in again {
            let again = again.join().unwrap();
            assert_eq!(again.status, 503, "{}", again.text);
            let why = "somebody holds the row of this idempotency key; nothing was changed";
            assert!(again.text.contains(why), "{}", again.text);
        }
    });
    order_service.wait_for_log("waits for the row of idempotency_key held-");
    held.rollback().unwrap();
    for (key, first) in keys.iter().zip(first) {
        assert_eq!(
            place("ann", key).text,
            first.text,
            "the first answer, byte for byte"
        );
    }
}

// ---- what operators do to a schema

/// A role without any right of its own, which owns a service's database from now on; the URL by which it comes.
fn plain_owner(world: &World, service: Service) -> (String, String) {
    let role = format!("plain_{}", Uuid::new_v4().simple());
    let database = world.database(service);
    let mut db = world.db(service);
    db.batch_execute(&format!(
        "create role {role} login password 'plain'; alter database {database} owner to {role}"
    ))
    .unwrap();
    db.batch_execute(&format!("grant all on schema public to {role}"))
        .unwrap();
    let url = format!(
        "postgres://{role}:plain@{}/{database}",
        env::postgres_address()
    );
    (role, url)
}

/// Neither `--check` nor a start passes, and both report these words.
fn assert_refused(world: &World, service: Service, settings: &[(&str, &str)], words: &str) {
    let (code, said) = world.ask(service, &["--check"], settings);
    assert!(code == 1 && said.contains(words), "{words:?} in {said}");
    let instance = world.launch(service, settings);
    let (code, log) = (instance.process().exit().code(), instance.log());
    assert!(code == Some(1) && log.contains(words), "{words:?} in {log}");
}

/// One after the other, each of these rights is `(revoked from, granted to, named as)`.
fn assert_missing_rights_are_named(
    world: &World,
    service: Service,
    role: &str,
    settings: &[(&str, &str)],
    rights: &[(&str, &str, &str)],
) {
    let mut db = world.db(service);
    for (lost, given, words) in rights {
        db.batch_execute(&format!("{lost} {role}")).unwrap();
        let words = format!("the database's user {role} lacks what this service needs: {words}");
        assert_refused(world, service, settings, &words);
        db.batch_execute(&format!("{given} {role}")).unwrap();
    }
}

#[test]
fn rights_that_a_restore_has_lost_are_named_by_the_check_and_at_the_start() {
    let world = World::new("pg_rights");
    let (role, url) = plain_owner(&world, Service::Payment);
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    let payment = world.start_with(Service::Payment, &settings);
    payment.api().put_balance("ann", 1_000);
    assert!(payment.stop().success());
    let rights = [
        (
            "revoke update on account from",
            "grant update on account to",
            "UPDATE on account",
        ),
        (
            "revoke update on sequence outbox_clock from",
            "grant update on sequence outbox_clock to",
            "UPDATE on sequence outbox_clock",
        ),
        (
            "revoke execute on function append_outbox(uuid[], text[]) from public,",
            "grant execute on function append_outbox(uuid[], text[]) to",
            "EXECUTE on function append_outbox",
        ),
    ];
    assert_missing_rights_are_named(&world, Service::Payment, &role, &settings, &rights);
    let mut db = world.db(Service::Payment);
    db.batch_execute("alter table payment rename to paid")
        .unwrap();
    let words = "the table payment, which is missing";
    assert_refused(&world, Service::Payment, &settings, words);
    db.batch_execute("alter table paid rename to payment")
        .unwrap();
    let said = world.ask(Service::Payment, &["--check"], &settings).1;
    assert!(said.contains("schema: ok"), "{said}");
    assert_eq!(
        world
            .start_with(Service::Payment, &settings)
            .api()
            .balance("ann"),
        1_000
    );
}

/// Where it may not know since when the server runs, it can't tell its rows from another server's, and the relay reads them.
#[test]
fn a_user_who_may_not_know_the_server_s_start_is_served_all_the_same() {
    let world = World::new("pg_server_start");
    let (role, url) = plain_owner(&world, Service::Payment);
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    let [order, stock] = [Service::Order, Service::Stock].map(|service| world.start(service));
    let payment = world.start_with(Service::Payment, &settings);
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let settle = || {
        let placed = order.api().place("ann", "tea", 300, 2);
        assert_eq!(order.api().settled(placed)["orderStatus"], "COMPLETED");
    };
    settle();
    world
        .db(Service::Payment)
        .batch_execute("revoke execute on function pg_postmaster_start_time() from public")
        .unwrap();
    let mut as_role = Client::connect(&url, postgres::NoTls).unwrap();
    let refused = as_role.batch_execute("select pg_postmaster_start_time()");
    assert!(refused.is_err(), "{role} may still ask");
    settle();
    assert!(payment.stop().success());
    let _payment = world.start_with(Service::Payment, &settings);
    settle();
    assert_eq!(world.parked(), 0);
}

#[test]
fn the_right_to_each_overload_of_a_function_that_only_order_calls_is_checked_too() {
    let world = World::new("pg_rights_order");
    let (role, url) = plain_owner(&world, Service::Order);
    let settings = [("ORDER_DATABASE_URL", url.as_str())];
    assert!(world.start_with(Service::Order, &settings).stop().success());
    let rights = [
        (
            "revoke execute on function place_new_orders from public,",
            "grant execute on function place_new_orders to",
            "EXECUTE on function place_new_orders",
        ),
        // as a later version's is: each version calls its own
        (
            "create function place_new_orders(text) returns text language sql return $1;
             revoke execute on function place_new_orders(text) from public,",
            "grant execute on function place_new_orders(text) to",
            "EXECUTE on function place_new_orders",
        ),
    ];
    assert_missing_rights_are_named(&world, Service::Order, &role, &settings, &rights);
    let said = world.ask(Service::Order, &["--check"], &settings).1;
    assert!(said.contains("schema: ok"), "{said}");
}

#[test]
fn rows_that_row_level_security_hides_are_no_missing_rows() {
    let world = World::new("pg_row_security");
    let (_, url) = plain_owner(&world, Service::Payment);
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    let [order_service, stock] =
        [Service::Order, Service::Stock].map(|service| world.start(service));
    let payment = world.start_with(Service::Payment, &settings);
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let mut db = world.db(Service::Payment);
    db.batch_execute("alter table account enable row level security; alter table account force row level security")
        .unwrap();
    let placed = order_service.api().place("ann", "tea", 300, 2);
    payment.wait_for_log("row-level security");
    let said = world.ask(Service::Payment, &["--check"], &settings).1;
    assert!(
        said.contains("the right to see all rows of account (it has row level security)"),
        "{said}"
    );
    assert_eq!(
        order_service.api().order(placed)["orderStatus"],
        "IN_PROGRESS"
    );
    db.batch_execute("alter table account disable row level security")
        .unwrap();
    assert_eq!(
        order_service.api().settled(placed)["orderStatus"],
        "COMPLETED"
    );
    assert_eq!((payment.api().balance("ann"), world.parked()), (700, 0));
}

#[test]
fn a_table_of_one_row_that_was_emptied_is_named() {
    let world = World::new("pg_emptied");
    let payment = world.start(Service::Payment);
    let mut db = world.db(Service::Payment);
    for (table, back) in [("schema_compat", "schema_compat"), ("install", "install")] {
        db.batch_execute(&format!(
            "create table kept as select * from {table}; delete from {table}"
        ))
        .unwrap();
        let words =
            format!("the table {table} is empty: was the schema restored without its rows?");
        let (code, said) = world.ask(Service::Payment, &["--check"], &[]);
        assert!(code == 1 && said.contains(&words), "{said}");
        let another = world.launch(Service::Payment, &[]);
        assert_eq!(
            another.process().exit().code(),
            Some(1),
            "{}",
            another.log()
        );
        assert!(another.log().contains(&words), "{}", another.log());
        if table == "schema_compat" {
            wait_for_reason(&payment, &words);
        }
        db.batch_execute(&format!(
            "insert into {back} select * from kept; drop table kept"
        ))
        .unwrap();
    }
    wait_until_ready(&payment);
}

#[test]
fn a_schema_that_is_made_before_ours_in_the_search_path_is_refused() {
    let world = World::new("pg_user_schema");
    let url = format!(
        "{}?options=-c%20search_path%3Dearly,public",
        world.database_url(Service::Payment)
    );
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    assert!(
        world
            .start_with(Service::Payment, &settings)
            .stop()
            .success()
    );
    let mut db = world.db(Service::Payment);
    db.batch_execute("create schema early").unwrap();
    let words =
        "leads to schema early, where there is nothing, and the tables are in schema public";
    let (code, said) = world.ask(Service::Payment, &["--check"], &settings);
    assert!(code == 1 && said.contains(words), "{said}");
    let payment = world.launch(Service::Payment, &settings);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    assert!(payment.log().contains(words), "{}", payment.log());
    assert_eq!(
        count(
            &mut db,
            "pg_class where relnamespace = 'early'::regnamespace"
        ),
        0
    );
}

#[test]
fn a_table_that_is_locked_at_the_start_is_waited_for() {
    let world = World::new("pg_locked_at_start");
    assert!(world.start(Service::Payment).stop().success());
    let mut person = world.db(Service::Payment);
    let mut held = person.transaction().unwrap();
    held.batch_execute("lock table dead_letter in access exclusive mode")
        .unwrap();
    let payment = world.launch(Service::Payment, &[]);
    payment.wait_for_log("somebody has locked a table, whose sequence is to be looked at");
    held.rollback().unwrap();
    wait_until_ready(&payment);
}

#[test]
fn the_snapshot_of_another_user_is_reported_as_long_as_it_was_seen() {
    let world = World::new("pg_others_snapshot");
    let (_, url) = plain_owner(&world, Service::Payment);
    let payment = world.start_with(Service::Payment, &[("PAYMENT_DATABASE_URL", &url)]);
    let mut person = world.db(Service::Payment);
    // a report, and somebody who has written and waits: both keep old rows
    for begun in [
        "begin isolation level repeatable read; select 1",
        "begin; create table draft ()",
    ] {
        person.batch_execute(begun).unwrap();
        until("its age", || {
            metric(&payment, "saga_database_oldest_snapshot_seconds") > 2.0
        });
        person.batch_execute("rollback").unwrap();
        until("no age", || {
            metric(&payment, "saga_database_oldest_snapshot_seconds") < 1.0
        });
    }
}

#[test]
fn what_an_operator_adds_to_a_table_is_not_blamed_on_messages() {
    let (world, [order_service, payment, _stock]) = shop("pg_added", &[]);
    let mut db = world.db(Service::Payment);
    let mut settles_without = |add: &str, remove: &str, words: &str| {
        db.batch_execute(add).unwrap();
        let placed = order_service.api().place("ann", "tea", 10, 1);
        // more often than a message is tried that is to blame itself
        until("it to fail again and again", || {
            let log = payment.log();
            log.lines()
                .any(|line| line.contains("(attempt 6 failed)") && line.contains(words))
        });
        db.batch_execute(remove).unwrap();
        assert_eq!(
            order_service.api().settled(placed)["orderStatus"],
            "COMPLETED"
        );
    };
    settles_without(
        "alter table payment add column region text not null default 'x'; alter table payment alter column region drop default",
        "alter table payment drop column region",
        "region",
    );
    settles_without(
        "create table audit (what varchar(3));
         create function audit() returns trigger language plpgsql as
             $$ begin insert into audit values ('changed'); return new; end $$;
         create trigger audit after update on account for each row execute function audit()",
        "drop trigger audit on account",
        "value too long",
    );
    assert_eq!(world.parked(), 0);
}

/// `./run.sh proof`, or `cargo test -p saga-tests --test saga pgbouncer -- --include-ignored` with PgBouncer.
#[test]
#[ignore = "needs pgbouncer"]
fn a_pgbouncer_that_keeps_sessions_serves_and_one_that_does_not_is_refused() {
    let world = World::new("pg_pooler");
    let keeps = Pooler::start("session");
    let url = |pooler: &Pooler| pooler.url(&world.database(Service::Payment));
    let payment = world.start_with(Service::Payment, &[("PAYMENT_DATABASE_URL", &url(&keeps))]);
    payment.api().put_balance("ann", 100);
    assert_eq!(payment.api().balance("ann"), 100);
    assert!(payment.stop().success());
    for mode in ["transaction", "statement"] {
        let mixes = Pooler::start(mode);
        let settings = [("PAYMENT_DATABASE_URL", &*url(&mixes))];
        let refused = world.launch(Service::Payment, &settings);
        assert_eq!(refused.process().exit().code(), Some(1), "{mode}");
        assert!(
            refused
                .log()
                .contains("set pool_mode=session for this database"),
            "{mode}: {}",
            refused.log()
        );
        let (code, said) = world.ask(Service::Payment, &["--check"], &settings);
        assert_eq!(code, 1, "{mode}: {said}");
        assert!(
            said.contains("set pool_mode=session for this database"),
            "{mode}: {said}"
        );
    }
}
