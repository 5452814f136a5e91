//! What a service says of itself and of the place it is to run in: `--help`, `--version`, `--check`. None of them changes
//! anything.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;

use harness::{Service, Signal, TOPICS, World, until};
use kafka::{Admin, Interrupt, NewTopic};
use serde_json::json;

const CHECK: &[&str] = &["--check"];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The line that `--check` writes about one thing.
fn line<'a>(said: &'a str, about: &str) -> &'a str {
    let mut lines = said
        .lines()
        .filter(|line| line.starts_with(&format!("{about}: ")));
    lines
        .next()
        .unwrap_or_else(|| panic!("no line about the {about} in:\n{said}"))
}

/// What a `--check` that fails writes.
fn failed(world: &World, settings: &[(&str, &str)]) -> String {
    let (code, said) = world.ask(Service::Payment, CHECK, settings);
    assert_eq!(code, 1, "{said}");
    said
}

/// That line says `failed`, with these words.
fn assert_fails(said: &str, about: &str, words: &str) {
    let line = line(said, about);
    assert!(
        line.starts_with(&format!("{about}: failed: ")) && line.contains(words),
        "{words:?} in {line}"
    );
}

// ---- help, version, arguments

/// The names in the first column of the table in docs/operations.md.
fn documented() -> BTreeSet<String> {
    let page = repository().join("docs/operations.md");
    let page = std::fs::read_to_string(page).expect("docs/operations.md");
    let (_, section) = page
        .split_once("\n## Settings\n")
        .expect("a section about settings");
    let (section, _) = section.split_once("\n## ").expect("a section after it");
    let columns = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = columns.flat_map(|column| {
        column
            .split('`')
            .filter(|part| part.chars().any(char::is_alphanumeric))
    });
    names.map(str::to_string).collect()
}

/// The names of the lines `  NAME=default`.
fn helped(help: &str) -> impl Iterator<Item = String> {
    let settings = help
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once('='));
    settings
        .map(|(name, _)| name.to_string())
        .filter(|name| !name.starts_with(' '))
}

#[test]
fn the_help_of_the_services_names_the_settings_of_operations_md_and_no_others() {
    let world = World::new("help");
    let mut all = BTreeSet::new();
    for service in Service::ALL {
        let (code, help) = world.ask(service, &["--help"], &[]);
        assert_eq!(code, 0, "{help}");
        assert!(
            help.starts_with(&format!("{}: Takes ", service.name())),
            "{help}"
        );
        all.extend(helped(&help));
    }
    assert!(all.contains("ORDER_DEADLINE"), "{all:?}");
    assert_eq!(all, documented());
}

#[test]
fn the_help_shows_a_setting_s_default_meaning_and_unit_even_while_settings_are_bad() {
    let world = World::new("help_bad");
    let (code, help) = world.ask(Service::Order, &["-h"], &[("ORDER_DEADLINE", "soon")]);
    assert_eq!(code, 0, "{help}");
    let wanted = "
  ORDER_DEADLINE=300s
      from publication until a silent side is asked to give back (a time such as 500ms, 30s, 5m or 1h, from 1ms to 24h)
";
    assert!(help.contains(wanted), "{help}");
}

#[test]
fn the_version_is_the_workspace_s() {
    let world = World::new("version");
    for argument in ["--version", "-V"] {
        let wanted = (
            0,
            concat!("stock ", env!("CARGO_PKG_VERSION"), "\n").to_string(),
        );
        assert_eq!(world.ask(Service::Stock, &[argument], &[]), wanted);
    }
}

#[test]
fn an_unknown_argument_and_a_bad_setting_end_with_2_and_are_named() {
    let world = World::new("misuse");
    let bad = "CONSUMERS=\"many\": must be a whole number from 1 to 64";
    let cases: [(&[&str], &str, &str); 4] = [
        (&["--chek"], "1", "order: invalid option '--chek'"),
        (&["run"], "1", "order: unexpected argument \"run\""),
        (CHECK, "many", bad),
        (&[], "many", bad),
    ];
    for (arguments, consumers, wanted) in cases {
        let (code, said) = world.ask(Service::Order, arguments, &[("CONSUMERS", consumers)]);
        assert_eq!(code, 2, "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{wanted:?} in {said}");
    }
    let (_, said) = world.ask(Service::Order, &["--chek"], &[]);
    assert!(
        ["--check", "--help", "--version"]
            .iter()
            .all(|known| said.contains(known)),
        "{said}"
    );
}

// ---- what platforms do

#[test]
fn a_service_stops_in_order_when_its_terminal_is_gone_and_where_kubernetes_names_its_port() {
    let world = World::new("platform");
    for signal in [Signal::HUP, Signal::QUIT] {
        let payment = world.start(Service::Payment);
        payment.signal(signal);
        assert_eq!(
            payment.process().exit().code(),
            Some(0),
            "{}",
            payment.log()
        );
        assert!(payment.log().contains(": stopping"), "{}", payment.log());
    }
    let (code, help) = world.ask(
        Service::Payment,
        &["--help"],
        &[("PAYMENT_PORT", "tcp://10.43.161.118:8082")],
    );
    assert!(code == 0 && help.contains("PAYMENT_PORT=8082"), "{help}");
    let (code, said) = world.ask(
        Service::Payment,
        CHECK,
        &[("PAYMENT_PORT", "tcp://10.43.161.118:8082")],
    );
    assert!(code == 0 && said.contains("settings: ok"), "{said}");
}

#[test]
fn a_service_that_is_to_stop_later_is_not_ready_and_serves_until_then() {
    let world = World::with("delayed", &[("SHUTDOWN_DELAY", "1h")]);
    let payment = world.start(Service::Payment);
    let api = payment.api();
    until("it to be ready", || api.get("/readyz").status == 200);
    payment.signal(Signal::TERM);
    let stopping = json!({"status": "failing", "reasons": ["stopping"]});
    until("it to say so", || api.get("/readyz").json == stopping);
    assert_eq!(api.get("/healthz").status, 200);
    api.put_balance("ann", 5);
    assert_eq!(api.balance("ann"), 5);
    // a probe's or a scraper's own parameters are none of ours
    assert_eq!(api.get("/readyz?verbose=1").json, stopping);
    assert_eq!(api.get("/healthz?verbose").status, 200);
    assert!(api.get("/metrics?name[]=up").text.contains("saga_ready 0"));
    assert_eq!(
        api.get("/overview?verbose=1").status,
        422,
        "nobody else asks for that"
    );
    payment.signal(Signal::TERM);
    assert_eq!(
        payment.process().exit().code(),
        Some(0),
        "{}",
        payment.log()
    );
    assert!(!payment.log().contains("ERROR"), "{}", payment.log());
}

// ---- check

fn tables(world: &World, service: Service) -> i64 {
    let sql = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    world
        .db(service)
        .query_one(sql, &[])
        .expect("a count")
        .get(0)
}

fn topics(world: &World) -> usize {
    let names = TOPICS.map(|topic| format!("{}{topic}", world.prefix()));
    Admin::new(world.kafka(), Interrupt::new())
        .describe_topics(&names)
        .expect("a broker")
        .len()
}

/// How many migrations there are in `sql/`, for every service and for this one.
fn migrations(service: Service) -> usize {
    let folders = ["common", service.name()].map(|name| repository().join("sql").join(name));
    folders
        .iter()
        .map(|folder| std::fs::read_dir(folder).expect("migrations").count())
        .sum()
}

#[test]
fn before_the_first_start_a_check_says_what_it_would_do_and_does_none_of_it() {
    let world = World::new("check_first");
    let (code, said) = world.ask(Service::Order, CHECK, &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        line(&said, "schema"),
        format!(
            "schema: ok: {} migrations to apply",
            migrations(Service::Order)
        )
    );
    let names = TOPICS
        .map(|topic| format!("{}{topic}", world.prefix()))
        .join(", ");
    assert_eq!(
        line(&said, "topics"),
        format!("topics: ok: topics {names} are missing, they will be created")
    );
    assert_eq!(
        (tables(&world, Service::Order), topics(&world)),
        (0, 0),
        "nothing was made"
    );
}

#[test]
fn beside_running_services_a_check_finds_all_well_and_changes_no_row() {
    let world = World::new("check_good");
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("tea", 100);
    order.api().settled(order.api().place("ann", "tea", 3, 2));
    world.wait_until_quiet();
    for service in Service::ALL {
        let before = world.tables(service);
        let wanted = "settings: ok\ndatabase: ok\nschema: ok\nbroker: ok\nrights: ok\ntopics: ok\nposition: ok\n";
        assert_eq!(world.ask(service, CHECK, &[]), (0, wanted.to_string()));
        assert_eq!(world.tables(service), before);
    }
}

#[test]
fn what_is_missing_of_a_schema_and_of_the_topics_is_counted_and_named() {
    let world = World::new("check_part");
    assert!(world.start(Service::Payment).stop().success());
    let last = "delete from schema_history_payment where version = (select max(version) from schema_history_payment)";
    world.db(Service::Payment).batch_execute(last).unwrap();
    let topic = format!("{}payment.dlt", world.prefix());
    Admin::new(world.kafka(), Interrupt::new())
        .delete_topics(std::slice::from_ref(&topic))
        .unwrap();
    harness::until("the topic to be gone", || topics(&world) == 3);
    let (code, said) = world.ask(Service::Payment, CHECK, &[("TOPIC_PARTITIONS", "4")]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(line(&said, "schema"), "schema: ok: 1 migration to apply");
    assert!(
        line(&said, "topics").contains(&format!("topic {topic} is missing, it will be created; ")),
        "{said}"
    );
    assert!(
        line(&said, "topics")
            .contains("payment has 3 partitions; TOPIC_PARTITIONS=4 counts for new"),
        "{said}"
    );
    assert_eq!(topics(&world), 3, "the topic was not made");
}

#[test]
fn a_server_that_is_away_silent_or_refuses_fails_the_check_without_being_waited_for() {
    let world = World::new("check_away");
    assert!(world.start(Service::Payment).stop().success());
    // a start would wait a day
    let failed = |name, value: &str| failed(&world, &[("STARTUP_LIMIT", "24h"), (name, value)]);
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let said = failed(
        "PAYMENT_DATABASE_URL",
        &world.database_url_at(Service::Payment, &closed),
    );
    assert_fails(&said, "database", "check its address and that it runs");
    assert_fails(&said, "schema", "not known without the database");
    assert_fails(&said, "position", "not known without the database");
    assert_eq!(line(&said, "topics"), "topics: ok");
    let said = failed("KAFKA_BROKERS", &closed);
    assert_eq!(line(&said, "schema"), "schema: ok");
    assert_fails(&said, "broker", "check its address and that it runs");
    assert_fails(&said, "topics", "not known without the broker");
    assert_fails(&said, "position", "not known without the broker");
    // it accepts, and says nothing
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let said = failed(
        "PAYMENT_DATABASE_URL",
        &world.database_url_at(Service::Payment, &address),
    );
    assert_fails(&said, "database", "no answer within 10 s");
    assert_fails(
        &failed("KAFKA_BROKERS", &address),
        "broker",
        "check its address and that it runs",
    );
}

#[test]
fn a_wrong_password_fails_the_check_and_is_not_printed() {
    let world = World::new("check_password");
    let url = world.database_url(Service::Payment);
    let url = format!(
        "postgres://postgres:not-the-password@{}",
        url.split_once('@').expect("a password").1
    );
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    let said = failed(&world, &settings);
    assert_fails(&said, "database", "password authentication failed");
    assert_fails(&said, "database", "check the settings");
    assert!(!said.contains("not-the-password"), "{said}");
}

#[test]
fn a_user_who_may_not_create_the_tables_fails_the_check_as_long_as_there_are_some_to_create() {
    let world = World::new("check_rights");
    let (user, mut db) = (
        format!("{}_reader", world.database(Service::Payment)),
        world.db(Service::Payment),
    );
    db.batch_execute(&format!(
        "create role {user} login password 'reader'; revoke create on schema public from public"
    ))
    .unwrap();
    let url = world.database_url(Service::Payment);
    let url = format!(
        "postgres://{user}:reader@{}",
        url.split_once('@').expect("a password").1
    );
    let settings = [("PAYMENT_DATABASE_URL", url.as_str())];
    assert_fails(
        &failed(&world, &settings),
        "schema",
        &format!("{user} may not create tables in schema public"),
    );
    assert!(world.start(Service::Payment).stop().success());
    db.batch_execute(&format!(
        "grant all on all tables in schema public to {user}"
    ))
    .unwrap();
    assert_fails(
        &failed(&world, &settings),
        "schema",
        &format!("{user} lacks what this service needs: SELECT on sequence"),
    );
    db.batch_execute(&format!(
        "grant all on all sequences in schema public to {user}"
    ))
    .unwrap();
    assert_eq!(
        world.ask(Service::Payment, CHECK, &settings).0,
        0,
        "all of them are there"
    );
    db.batch_execute(&format!("drop owned by {user}; drop role {user}"))
        .unwrap();
}

#[test]
fn what_a_start_would_refuse_fails_the_check() {
    let world = World::new("check_refused");
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("tea", 100);
    order.api().settled(order.api().place("ann", "tea", 3, 2));
    world.wait_until_quiet();
    // Kafka holds the position of this world's database, not of a database that is empty, or another one
    let other = World::with("check_foreign", &[("TOPIC_PREFIX", world.prefix())]);
    assert_fails(
        &failed(&other, &[]),
        "position",
        "Kafka holds the position of another payment database",
    );
    let mut db = world.db(Service::Payment);
    db.batch_execute("update schema_compat set min_version = 1000")
        .unwrap();
    assert_fails(
        &failed(&world, &[]),
        "schema",
        "needs a binary of schema version 1000 or newer",
    );
    db.batch_execute("update schema_compat set min_version = 1")
        .unwrap();
    db.batch_execute("update schema_history_payment set checksum = '1' where version = 1")
        .unwrap();
    assert_fails(
        &failed(&world, &[]),
        "schema",
        "the schema (payment) has another V1__payment than this binary",
    );
}

#[test]
fn a_schema_that_is_newer_but_additive_passes_the_check_with_a_remark() {
    let world = World::new("check_newer");
    assert!(world.start(Service::Payment).stop().success());
    let newer = "insert into schema_history_common (version, name, applied_on, checksum)
        values (99, 'from_the_future', '2030-01-01T00:00:00Z', '1')";
    world.db(Service::Payment).batch_execute(newer).unwrap();
    let (code, said) = world.ask(Service::Payment, CHECK, &[]);
    assert_eq!(code, 0, "{said}");
    let line = line(&said, "schema");
    assert!(
        line.starts_with("schema: ok: schema (common) is at version 99, newer than this binary's"),
        "{line}"
    );
}

#[test]
fn a_topic_that_would_lose_records_fails_the_check() {
    let world = World::new("check_compacted");
    let topic = NewTopic {
        name: format!("{}payment.dlt", world.prefix()),
        partitions: 3,
        replication: None,
        configs: vec![("cleanup.policy".into(), "compact".into())],
    };
    Admin::new(world.kafka(), Interrupt::new())
        .create_topics(&[topic])
        .unwrap();
    assert_fails(
        &failed(&world, &[]),
        "topics",
        "payment.dlt has cleanup.policy=compact",
    );
}

// ---- ready

#[test]
fn an_instance_says_whether_it_is_ready_where_there_is_no_curl() {
    let world = World::new("ready");
    let payment = world.start(Service::Payment);
    let port = payment.port().to_string();
    let here = [
        ("PAYMENT_PORT", port.as_str()),
        ("BIND", "0.0.0.0"),
        ("ADMIN_TOKEN", "0123456789abcdef"),
    ];
    until("it to be ready", || {
        world.ask(Service::Payment, &["--ready"], &here).0 == 0
    });
    let (_, said) = world.ask(Service::Payment, &["--ready"], &here);
    assert_eq!(said, "{\"status\":\"ok\",\"reasons\":[]}\n");
    payment.kill();
    let (code, said) = world.ask(Service::Payment, &["--ready"], &here);
    assert_eq!(code, 1);
    assert!(
        said.starts_with(&format!("no answer on 0.0.0.0:{port}: ")),
        "{said}"
    );
}
