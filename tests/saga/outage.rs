//! Servers away for a while, killed, or not there yet: work is delayed, and nothing is lost or done twice (I1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use harness::broker::tool;
use harness::private::PrivateServers;
use harness::{Answer, Api, Instance, Proxy, Service, Signal, World, is_refusal, until};
use serde_json::{Value, json};
use uuid::Uuid;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const TERMS: &str = r#"{"userName":"ann","itemName":"lamp","price":3,"quantity":1}"#;

/// Places an order under a key. None if no answer came.
fn place(api: &Api, key: &str) -> Option<Answer> {
    api.call(
        "POST",
        "/orders",
        &[JSON, ("Idempotency-Key", key)],
        Some(TERMS.as_bytes()),
    )
    .ok()
}

fn order_id(answer: &Answer) -> Uuid {
    answer.json["orderId"].as_str().unwrap().parse().unwrap()
}

/// Clients that place one order after the other, and repeat each under its key until it is accepted.
struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<Vec<Uuid>>>,
}

impl Load {
    fn start(api: &Api) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            accepted: Arc::default(),
            refused: Arc::default(),
            clients: vec![],
        };
        for client in 0..4 {
            let (api, stop) = (api.clone(), load.stop.clone());
            let (accepted, refused) = (load.accepted.clone(), load.refused.clone());
            load.clients.push(thread::spawn(move || {
                let mut ids = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("client-{client}-order-{}", ids.len());
                    ids.push(accept(&api, &key, &refused));
                    accepted.fetch_add(1, Ordering::Relaxed);
                    // far below what the services can do: their backlog must not decide the test
                    thread::sleep(Duration::from_millis(50));
                }
                ids
            }));
        }
        load
    }

    fn wait_for_more(&self, count: usize) {
        let before = self.accepted.load(Ordering::Relaxed);
        until("orders to be accepted", || {
            self.accepted.load(Ordering::Relaxed) >= before + count
        });
    }

    fn wait_for_refusals(&self, count: usize) {
        let before = self.refused.load(Ordering::Relaxed);
        until("orders to be refused", || {
            self.refused.load(Ordering::Relaxed) >= before + count
        });
    }

    fn end(self) -> Vec<Uuid> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    }
}

/// Repeats until the order is accepted; counts the refusals.
fn accept(api: &Api, key: &str, refused: &AtomicUsize) -> Uuid {
    loop {
        match place(api, key) {
            Some(answer) if answer.status == 202 => return order_id(&answer),
            Some(answer) => {
                assert!(is_refusal(answer.status), "{}", answer.text);
                refused.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Every accepted order ended COMPLETED, each once, and nothing else happened.
fn assert_nothing_lost(world: &World, order: &Instance, ids: &[Uuid]) {
    for id in ids {
        assert_eq!(order.api().settled(*id)["orderStatus"], "COMPLETED");
    }
    world.wait_until_quiet();
    let count = ids.len() as i64;
    let rows =
        |service, sql: &str| -> i64 { world.db(service).query_one(sql, &[]).unwrap().get(0) };
    assert_eq!(
        rows(Service::Order, "select count(*) from orders"),
        count,
        "one order a key"
    );
    assert_eq!(
        rows(Service::Order, "select count(*) from idempotency_key"),
        count
    );
    assert_eq!(
        rows(Service::Payment, "select balance from account"),
        1_000_000 - 3 * count
    );
    assert_eq!(
        rows(Service::Stock, "select quantity from item"),
        1_000_000 - count
    );
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
    assert_each_message_once(world, ids);
}

fn assert_each_message_once(world: &World, ids: &[Uuid]) {
    let records = world.all_records();
    let message_ids: BTreeSet<&str> = records.iter().map(|seen| seen.ce_id.as_str()).collect();
    assert_eq!(
        message_ids.len(),
        records.len(),
        "a message lies on a topic twice"
    );
    let mut types: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for seen in &records {
        types
            .entry(seen.key.clone().unwrap())
            .or_default()
            .push(&seen.ce_type);
    }
    let each = [
        "payment.requested",
        "payment.completed",
        "stock.requested",
        "stock.completed",
    ];
    let expected: BTreeMap<String, Vec<&str>> = ids
        .iter()
        .map(|id| (id.to_string(), each.to_vec()))
        .collect();
    assert_eq!(types, expected);
}

fn fill(instances: &[Instance; 3]) {
    instances[1].api().put_balance("ann", 1_000_000);
    instances[2].api().put_quantity("lamp", 1_000_000);
}

/// The three services with their databases behind the proxy.
fn start_behind(world: &World, proxy: &Proxy) -> [Instance; 3] {
    let instances = Service::ALL.map(|service| start_one_behind(world, service, proxy));
    fill(&instances);
    instances
}

fn start_one_behind(world: &World, service: Service, proxy: &Proxy) -> Instance {
    let variable = format!("{}_DATABASE_URL", service.name().to_uppercase());
    world.start_with(
        service,
        &[(&variable, &world.database_url_at(service, &proxy.addr()))],
    )
}

fn postgres_proxy() -> Proxy {
    Proxy::to(&harness::env::postgres_address())
}

#[test]
fn a_database_away_for_a_while_delays_and_loses_nothing() {
    let (world, proxy) = (World::new("outage_database"), postgres_proxy());
    let instances = start_behind(&world, &proxy);
    let load = Load::start(instances[0].api());
    load.wait_for_more(20);
    // a blink, then long enough for orders to be refused
    proxy.cut();
    proxy.resume();
    load.wait_for_more(20);
    proxy.cut();
    load.wait_for_refusals(4);
    proxy.resume();
    load.wait_for_more(20);
    assert_nothing_lost(&world, &instances[0], &load.end());
    for instance in &instances {
        assert!(
            instance.process().ended().is_none(),
            "it must live through it"
        );
    }
}

/// Waits until every transaction that is decided has its markers, as long as no client decides another: a lone broker that is
/// killed between the two may never write them, and then a part of that transaction stays pending for ever.
fn wait_for_markers(world: &World) {
    let list = ["--bootstrap-server", world.brokers(), "list"];
    until("the markers of what is decided", || {
        // PrepareCommit, PrepareAbort
        !tool("org.apache.kafka.tools.TransactionsCommand", &list).contains("Prepare")
    });
}

#[test]
fn servers_that_are_killed_and_started_again_delay_and_lose_nothing() {
    let servers = PrivateServers::start();
    let names = [
        "ORDER_DATABASE_URL",
        "PAYMENT_DATABASE_URL",
        "STOCK_DATABASE_URL",
        "KAFKA_BROKERS",
    ];
    let world = World::with(
        "outage_killed",
        &names.map(|name| (name, servers.setting(name))),
    );
    let instances = world.start_all();
    fill(&instances);
    let load = Load::start(instances[0].api());
    load.wait_for_more(20);
    servers.kill_postgres();
    servers.restart();
    load.wait_for_more(20);
    // transactions are open, and none is decided without its markers
    instances
        .iter()
        .for_each(|instance| instance.signal(Signal::STOP));
    wait_for_markers(&world);
    servers.signal_kafka(1, "-KILL");
    instances
        .iter()
        .for_each(|instance| instance.signal(Signal::CONT));
    // orders are taken all the same
    load.wait_for_more(20);
    servers.restart();
    load.wait_for_more(20);
    assert_nothing_lost(&world, &instances[0], &load.end());
    for instance in &instances {
        assert!(
            instance.process().ended().is_none(),
            "it must live through it"
        );
    }
}

/// The order that a refusal names; the refusal must say that its outcome is unknown.
fn unknown_outcome(answer: &Answer) -> Uuid {
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("2")),
        "{}",
        answer.text
    );
    let detail = answer.json["detail"].as_str().unwrap();
    let id = detail
        .strip_prefix("order ")
        .and_then(|rest| rest.get(..36))
        .and_then(|id| id.parse().ok());
    let id: Uuid = id.unwrap_or_else(|| panic!("no order id in {detail}"));
    let sentence = format!(
        "order {id}: outcome unknown, the database did not answer in time; repeat the request with the same Idempotency-Key"
    );
    assert_eq!(
        answer.json,
        json!({"title": "Service Unavailable", "status": 503, "detail": sentence, "orderId": id.to_string()})
    );
    id
}

fn stored_orders(world: &World) -> Vec<Uuid> {
    let rows = world
        .db(Service::Order)
        .query("select order_id from orders order by order_id", &[])
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn an_order_posted_while_the_database_is_away_may_be_repeated_and_is_one_order() {
    let (world, proxy) = (World::new("outage_post"), postgres_proxy());
    let order = start_one_behind(&world, Service::Order, &proxy);
    proxy.cut();
    // the writer has no session any more: nothing is tried
    order.wait_for_log("what admission goes by can't be read");
    let unstored = place(order.api(), "away").unwrap();
    let nothing = "the database is not there; nothing was changed, repeat the request later";
    assert_eq!(
        (unstored.status, unstored.json["detail"].as_str()),
        (503, Some(nothing))
    );
    let reading = order.api().get("/orders");
    let away = json!({"title": "Service Unavailable", "status": 503, "detail": "the database is not there; repeat the request"});
    assert_eq!(
        (reading.status, reading.header("retry-after"), &reading.json),
        (503, Some("2"), &away)
    );
    proxy.resume();
    let answer = place(order.api(), "away").unwrap();
    assert_eq!(answer.status, 202);
    assert_eq!(stored_orders(&world), [order_id(&answer)]);
    assert_eq!(place(order.api(), "away").unwrap().text, answer.text);
}

#[test]
fn an_order_whose_commit_was_not_heard_of_stands_for_its_key() {
    let (world, proxy) = (World::new("outage_unheard"), postgres_proxy());
    let order = start_one_behind(&world, Service::Order, &proxy);
    let mut db = world.db(Service::Order);
    let mut lock = db.transaction().unwrap();
    lock.batch_execute("lock table orders in exclusive mode")
        .unwrap();
    let (sender, posted) = mpsc::channel();
    let api = order.api().clone();
    thread::spawn(move || sender.send(place(&api, "unheard")));
    // others wait for the table too
    let (sql, database) = (
        "select from pg_stat_activity where datname = $1 and application_name = 'order-writer' and wait_event_type = 'Lock'",
        world.database(Service::Order),
    );
    until("the order's statement to wait", || {
        let rows = world.db(Service::Payment).query(sql, &[&database]).unwrap();
        rows.len() == 1
    });
    // the server goes on with the call whose client is gone
    proxy.cut();
    lock.rollback().unwrap();
    until("the order to be stored", || {
        stored_orders(&world).len() == 1
    });
    let id = unknown_outcome(&posted.recv().unwrap().unwrap());
    proxy.resume();
    let answer = place(order.api(), "unheard").unwrap();
    assert_eq!((answer.status, order_id(&answer)), (202, id));
    assert_eq!(stored_orders(&world), [id]);
    until("its two messages", || {
        world.records("payment").len() + world.records("stock").len() == 2
    });
}

#[test]
fn an_order_posted_while_the_database_is_silent_is_answered_as_unknown_and_stands_for_its_key() {
    let (world, proxy) = (World::new("outage_silent"), postgres_proxy());
    let order = start_one_behind(&world, Service::Order, &proxy);
    assert_eq!(place(order.api(), "first").unwrap().status, 202);
    // requests still arrive, no answer comes back
    proxy.hold();
    let id = unknown_outcome(&place(order.api(), "silent").expect("an answer"));
    proxy.resume();
    let answer = place(order.api(), "silent").unwrap();
    assert_eq!((answer.status, order_id(&answer)), (202, id));
    assert_eq!(stored_orders(&world).len(), 2);
}

#[test]
fn a_put_whose_connection_broke_is_not_sent_again_behind_the_clients_back() {
    let (world, proxy) = (World::new("outage_put"), postgres_proxy());
    let payment = start_one_behind(&world, Service::Payment, &proxy);
    // by each of the service's connections in turn: it is a connection long in use that breaks
    (1..=16).for_each(|balance| payment.api().put_balance("ann", balance));
    world.stop_at(Service::Payment, "insert or update on account");
    let (sender, answered) = mpsc::channel();
    let api = payment.api().clone();
    thread::spawn(move || sender.send(api.put("/accounts/ann", &json!({"balance": 50}))));
    world.wait_for_stopped(Service::Payment, 1);
    // the server goes on with the call; a second one would stand still beside it, and so would the answer
    proxy.drop_connections();
    let answer = answered
        .recv_timeout(Duration::from_secs(25))
        .expect("an answer while the call stands still");
    assert_eq!(answer.status, 503, "{}", answer.text);
    world.let_go(Service::Payment);
    until("the call that the server went on with", || {
        payment.api().balance("ann") == 50
    });
    world.assert_conserved();
}

#[test]
fn a_service_whose_database_accepts_and_is_silent_ends_so_that_it_can_be_restarted() {
    let (world, proxy) = (World::new("outage_mute"), postgres_proxy());
    proxy.hold();
    let url = world.database_url_at(Service::Payment, &proxy.addr());
    let payment = world.launch(Service::Payment, &[("PAYMENT_DATABASE_URL", &url)]);
    assert_eq!(payment.process().exit().code(), Some(70));
    assert!(
        payment
            .log()
            .contains("the database does not answer a call: ending the process"),
        "{}",
        payment.log()
    );
    proxy.resume();
    let payment = start_one_behind(&world, Service::Payment, &proxy);
    payment.api().put_balance("ann", 5);
    assert_eq!(payment.api().balance("ann"), 5);
}

#[test]
fn a_service_waits_for_its_servers_at_the_start() {
    let world = World::new("outage_start");
    let (postgres, kafka) = (postgres_proxy(), Proxy::to(&harness::env::brokers()));
    postgres.cut();
    kafka.cut();
    let url = world.database_url_at(Service::Payment, &postgres.addr());
    let settings = [
        ("PAYMENT_DATABASE_URL", url.as_str()),
        ("KAFKA_BROKERS", &kafka.addr()),
    ];
    let payment = world.launch(Service::Payment, &settings);
    payment.wait_for_log("waiting for PostgreSQL");
    assert!(!payment.log().contains("waiting for Kafka"));
    postgres.resume();
    payment.wait_for_log("waiting for Kafka");
    kafka.resume();
    payment.wait_until_ready();
    payment.api().put_balance("ann", 5);
    assert_eq!(payment.api().balance("ann"), 5);
}

#[test]
fn a_stop_that_is_asked_for_while_the_servers_are_waited_for_is_no_failure() {
    let world = World::with("outage_stop", &[("SHUTDOWN_DELAY", "1h")]);
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let url = world.database_url_at(Service::Order, &nobody);
    let without_postgres = world.launch(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    let without_kafka = world.launch(Service::Stock, &[("KAFKA_BROKERS", &nobody)]);
    for (instance, what) in [(without_postgres, "PostgreSQL"), (without_kafka, "Kafka")] {
        instance.wait_for_log(&format!("waiting for {what}"));
        instance.signal(Signal::TERM);
        assert_eq!(
            instance.process().exit().code(),
            Some(0),
            "{}",
            instance.log()
        );
        let log = instance.log();
        assert!(
            log.contains(&format!("stopped while waiting for {what}")) && !log.contains("ERROR"),
            "{log}"
        );
    }
}

#[test]
fn a_service_whose_servers_stay_away_gives_up_and_says_which() {
    let world = World::with("outage_never", &[("STARTUP_LIMIT", "2s")]);
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let url = world.database_url_at(Service::Order, &nobody);
    let without_postgres = world.launch(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    let without_kafka = world.launch(Service::Stock, &[("KAFKA_BROKERS", &nobody)]);
    for (instance, what) in [(without_postgres, "PostgreSQL"), (without_kafka, "Kafka")] {
        assert_eq!(
            instance.process().exit().code(),
            Some(1),
            "{}",
            instance.log()
        );
        instance.wait_for_log("stopped: ");
        let last = instance.log().lines().last().unwrap().to_string();
        assert!(
            last.contains(&format!("stopped: {what} is not there: ")),
            "{last}"
        );
        assert!(
            last.contains("check its address and that it runs"),
            "{last}"
        );
    }
}

#[test]
fn bad_settings_are_all_named_and_nothing_is_started() {
    let world = World::new("outage_settings");
    let number = |range: &str| format!("must be a whole number from {range}");
    let time = "must be a time such as 500ms, 30s, 5m or 1h, from 1ms to 24h".to_string();
    let cases = [
        ("BIND", "here", "must be an IP address".to_string()),
        (
            "TOPIC_PREFIX",
            "a b",
            "must be at most 200 of the characters a-z A-Z 0-9 . _ -".to_string(),
        ),
        ("TOPIC_PARTITIONS", "1.5", number("1 to 1000")),
        ("TOPIC_REPLICATION", "0", number("1 to 32")),
        ("ORDER_DEADLINE", "5", time.clone()),
        ("STARTUP_LIMIT", "0s", time),
        ("CONSUMERS", "none", number("1 to 64")),
        (
            "KAFKA_BROKERS",
            "kafka",
            "must be a list of host:port without a scheme, separated by commas".to_string(),
        ),
        (
            "LOG_LEVEL",
            "loud",
            "must be off, error, warn, info, debug or trace".to_string(),
        ),
    ];
    let bad: Vec<(&str, &str)> = cases
        .iter()
        .map(|(name, value, _)| (*name, *value))
        .collect();
    for service in Service::ALL {
        let upper = service.name().to_uppercase();
        let (port, url) = (format!("{upper}_PORT"), format!("{upper}_DATABASE_URL"));
        let own = [
            (port.as_str(), "65536"),
            (url.as_str(), "postgres://me:secret@host:port/db"),
        ];
        let instance = world.launch(service, &[&bad[..], &own].concat());
        assert_eq!(instance.process().exit().code(), Some(2));
        until("all of its log", || instance.log().contains(&url));
        let log = instance.log();
        assert!(
            log.starts_with(&format!("{}: bad settings:\n", service.name())),
            "{log}"
        );
        for (name, value, wanted) in &cases {
            assert!(
                log.contains(&format!("  {name}={value:?}: {wanted}\n")),
                "{name} in {log}"
            );
        }
        assert!(
            log.contains(&format!("  {port}=\"65536\": {}\n", number("1 to 65535"))),
            "{log}"
        );
        assert!(
            log.contains(&format!("  {url}: must be a PostgreSQL URL")) && !log.contains("secret"),
            "{log}"
        );
    }
}

#[test]
fn a_port_in_use_is_named_with_its_variable() {
    let world = World::new("outage_port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (service, variable) in [
        (Service::Order, "ORDER_PORT"),
        (Service::Payment, "PAYMENT_PORT"),
        (Service::Stock, "STOCK_PORT"),
    ] {
        let instance = world.launch(service, &[(variable, &port)]);
        assert_eq!(instance.process().exit().code(), Some(1));
        let said = format!("set {variable} or BIND to a free address");
        until("its reason", || instance.log().contains(&said));
        assert!(
            instance
                .log()
                .contains(&format!("can't listen on 127.0.0.1:{port}")),
            "{}",
            instance.log()
        );
    }
    // nothing was done before the port was taken: there is no schema
    let tables: Value = world
        .db(Service::Order)
        .query_one("select to_jsonb(count(*)) from information_schema.tables where table_schema = 'public'", &[])
        .unwrap()
        .get(0);
    assert_eq!(tables, 0);
}
