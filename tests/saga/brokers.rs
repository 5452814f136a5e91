//! Kafka as it is in other places: users with few rights, topics that operators make, a lone broker with Kafka's defaults, strangers
//! in the group.

use std::collections::HashSet;
use std::path::Path;

use harness::broker::tool;
use harness::{Broker, Instance, Process, Service, Signal, TOPICS, World, broker, until};
use kafka::{Admin, Config, Interrupt, NewTopic};
use postgres::Client;
use serde_json::json;
use uuid::Uuid;

use crate::operations::metric;

fn admin(world: &World) -> Admin {
    Admin::new(
        Config::new(world.bootstrap(), "saga-tests"),
        Interrupt::new(),
    )
}

pub(crate) fn make_topics(world: &World, partitions: i32, configs: &[(&str, &str)]) {
    let configs: Vec<_> = configs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let topic = |name: &str| NewTopic {
        name: format!("{}{name}", world.prefix()),
        partitions,
        replication: Some(1),
        configs: configs.clone(),
    };
    admin(world).create_topics(&TOPICS.map(topic)).unwrap();
}

fn reasons(instance: &Instance) -> String {
    instance.api().get("/readyz").json["reasons"].to_string()
}

fn check(world: &World, settings: &[(&str, &str)]) -> String {
    world.ask(Service::Payment, &["--check"], settings).1
}

// ---- rights

/// A Kafka that asks for users, and the rights of each.
pub(crate) fn guarded() -> Broker {
    let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required user_shop=\"secret-of-shop\"";
    Broker::start_with(
        &[("USERS", "SASL_PLAINTEXT")],
        &format!(
            "listener.name.users.plain.sasl.jaas.config={jaas};\nsasl.enabled.mechanisms=PLAIN\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n"
        ),
    )
}

/// The settings of a service that is user `shop` at this address.
pub(crate) fn as_shop(brokers: &str) -> [(&str, &str); 5] {
    [
        ("KAFKA_BROKERS", brokers),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
        ("KAFKA_SASL_MECHANISM", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "shop"),
        ("KAFKA_SASL_PASSWORD", "secret-of-shop"),
    ]
}

pub(crate) fn allow(broker: &Broker, operations: &[&str], resource: &[&str]) {
    change_rights(broker, &["--add"], operations, resource);
}

pub(crate) fn change_rights(
    broker: &Broker,
    change: &[&str],
    operations: &[&str],
    resource: &[&str],
) {
    let direct = broker.direct();
    let mut arguments = vec![
        "--bootstrap-server",
        &direct,
        "--allow-principal",
        "User:shop",
    ];
    arguments.extend(change);
    operations
        .iter()
        .for_each(|operation| arguments.extend(["--operation", operation]));
    arguments.extend(resource);
    tool("org.apache.kafka.tools.AclCommand", &arguments);
}

#[test]
fn a_user_needs_the_rights_of_its_service_and_none_to_create_what_is_there() {
    let broker = guarded();
    let direct = broker.direct();
    let world = World::with("rights", &[("KAFKA_BROKERS", &direct)]);
    make_topics(&world, 1, &[]);
    let users = broker.guarded("USERS");
    let settings = as_shop(&users);
    let prefix = world.prefix().to_owned();
    let refused = |words: &str| {
        let said = check(&world, &settings);
        assert!(said.contains(words), "{words:?} in {said}");
        let payment = world.launch(Service::Payment, &settings);
        assert_eq!(
            payment.process().exit().code(),
            Some(1),
            "{}",
            payment.log()
        );
        assert!(
            payment.log().contains(words),
            "{words:?} in {}",
            payment.log()
        );
        assert!(
            !payment.log().contains("check its address"),
            "{}",
            payment.log()
        );
    };
    let [read, written] = [
        ["payment", "payment.compensation"],
        ["payment.success", "payment.dlt"],
    ]
    .map(|names| names.map(|name| format!("{prefix}{name}")));
    let [read, written] = [&read, &written].map(|[one, other]| ["--topic", one, "--topic", other]);
    refused("TOPIC_AUTHORIZATION_FAILED");
    let said = check(&world, &settings);
    assert!(
        said.contains(
            "broker: ok: the limits of broker 1 can't be checked: CLUSTER_AUTHORIZATION_FAILED"
        ),
        "{said}"
    );
    assert!(
        said.contains("\nrights: failed: Kafka refuses: TOPIC_AUTHORIZATION_FAILED"),
        "{said}"
    );
    // a client that shows no user is closed out, and its address is right
    let said = check(&world, &[("KAFKA_BROKERS", &users)]);
    assert!(
        said.contains("broker: failed: ")
            && said.contains("KAFKA_SECURITY_PROTOCOL is what its listener"),
        "{said}"
    );
    // from here on the list in docs/operations.md (Deploying), right by right, and nothing on the topics of stock
    allow(&broker, &["Describe"], &read);
    // a new leader reads the positions in what it writes
    allow(&broker, &["Read"], &written);
    refused("GROUP_AUTHORIZATION_FAILED");
    allow(
        &broker,
        &["Read"],
        &["--group", &format!("{prefix}payment")],
    );
    refused("TRANSACTIONAL_ID_AUTHORIZATION_FAILED");
    allow(
        &broker,
        &["Write"],
        &["--transactional-id", &format!("{prefix}payment-relay")],
    );
    refused(&format!(
        "grant it READ on {prefix}payment, READ on {prefix}payment.compensation, WRITE on {prefix}payment.success"
    ));
    allow(&broker, &["Read"], &read);
    allow(&broker, &["Write"], &written);
    let said = check(&world, &settings);
    assert!(said.contains("rights: ok"), "{said}");
    let payment = world.start_with(Service::Payment, &settings);
    payment.wait_for_log("leading: producer");
    payment.api().put_balance("ann", 1_000);
    let order_id = Uuid::now_v7();
    world.produce_event(
        "payment",
        order_id,
        "payment.requested",
        &json!({"orderId": order_id, "userName": "ann", "price": 300}),
    );
    until("its effect", || payment.api().balance("ann") == 700);

    world.wait_until_published(Service::Payment);
    change_rights(&broker, &["--remove", "--force"], &["Write"], &written);
    append(&mut world.db(Service::Payment), 1);
    let words = format!("TOPIC_AUTHORIZATION_FAILED from AddPartitionsToTxn at {users}");
    until("the refusal", || {
        let (log, topic) = (
            payment.log(),
            format!("payment-relay: {prefix}payment.success-0)"),
        );
        log.lines().any(|line| {
            line.contains("a relay turn failed") && line.contains(&words) && line.contains(&topic)
        })
    });
    assert!(
        !payment.log().contains("INVALID_TXN_STATE"),
        "{}",
        payment.log()
    );
    allow(&broker, &["Write"], &written);
    world.wait_until_published(Service::Payment);
}

#[test]
fn without_the_right_to_create_what_is_missing_a_check_and_a_start_say_the_same() {
    let broker = guarded();
    let direct = broker.direct();
    let world = World::with("create", &[("KAFKA_BROKERS", &direct)]);
    let users = broker.guarded("USERS");
    let settings = as_shop(&users);
    let all = [
        "payment",
        "payment.success",
        "payment.dlt",
        "payment.compensation",
    ]
    .map(|name| format!("{}{name}", world.prefix()));
    for operations in [["Read"], ["Write"]] {
        allow(
            &broker,
            &operations,
            &all.each_ref().map(|name| ["--topic", name]).concat(),
        );
    }
    allow(
        &broker,
        &["Read"],
        &["--group", &format!("{}payment", world.prefix())],
    );
    allow(
        &broker,
        &["Write"],
        &[
            "--transactional-id",
            &format!("{}payment-relay", world.prefix()),
        ],
    );
    let words = format!("grant it CREATE on {}, or on the cluster", all.join(", "));
    let said = check(&world, &settings);
    assert!(
        said.contains("rights: ok\ntopics: failed: Kafka's user may not create")
            && said.contains(&words),
        "{said}"
    );
    let payment = world.launch(Service::Payment, &settings);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    assert!(payment.log().contains(&words), "{}", payment.log());
    allow(&broker, &["Create"], &["--cluster"]);
    let said = check(&world, &settings);
    assert!(said.contains("topics: ok: topics "), "{said}");
    world
        .start_with(Service::Payment, &settings)
        .wait_for_log("leading: producer");
}

#[test]
fn more_copies_than_brokers_fail_the_check_before_a_topic_is_created() {
    let world = World::with(
        "copies",
        &[("TOPIC_REPLICATION", "9"), ("STARTUP_LIMIT", "5s")],
    );
    let said = check(&world, &[]);
    assert!(
        said.contains("topics: failed: Kafka has fewer brokers than copies are asked for"),
        "{said}"
    );
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    let log = payment.log();
    assert!(
        log.contains("stopped: Kafka has fewer brokers") && log.contains("set TOPIC_REPLICATION"),
        "{log}"
    );
}

#[test]
fn a_lone_broker_with_kafkas_default_replication_is_reported_by_its_settings() {
    let broker = Broker::start_with(&[], "offsets.topic.replication.factor=3\n");
    let direct = broker.direct();
    let world = World::with(
        "defaults",
        &[("KAFKA_BROKERS", &direct), ("STARTUP_LIMIT", "10s")],
    );
    let words = "offsets.topic.replication.factor";
    let said = check(&world, &[]);
    assert!(
        said.contains("rights: failed: Kafka has no coordinator for group") && said.contains(words),
        "{said}"
    );
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    let log = payment.log();
    let last = log
        .lines()
        .rfind(|line| line.contains("stopped: "))
        .unwrap();
    assert!(last.contains(words), "{last}");
}

// ---- addresses and limits

#[test]
fn a_broker_that_names_an_address_that_leads_nowhere_is_reported_by_its_setting() {
    let broker = Broker::start_with(&[("ASTRAY", "PLAINTEXT")], "");
    let astray = broker.guarded("ASTRAY");
    let world = World::with(
        "astray",
        &[("KAFKA_BROKERS", &astray), ("STARTUP_LIMIT", "10s")],
    );
    let words =
        format!("the broker at {astray} tells its clients to go to kafka-internal.invalid:");
    let said = check(&world, &[]);
    assert!(
        said.contains(&format!("broker: failed: {words}"))
            && said.contains("(advertised.listeners)"),
        "{said}"
    );
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    assert!(
        payment.log().contains(&format!("stopped: {words}")),
        "{}",
        payment.log()
    );
    assert!(
        !payment.log().contains("check its address"),
        "{}",
        payment.log()
    );
}

#[test]
fn limits_of_the_brokers_that_leave_too_little_room_are_reported_by_their_settings() {
    let limits = "group.max.session.timeout.ms=6000\ntransaction.max.timeout.ms=5000\n";
    let broker = Broker::start_with(&[], limits);
    let direct = broker.direct();
    let world = World::with(
        "limits",
        &[("KAFKA_BROKERS", &direct), ("STARTUP_LIMIT", "5s")],
    );
    let words = format!(
        "set group.max.session.timeout.ms to 10000 at least, broker 1 at {direct} has 6000; \
         set transaction.max.timeout.ms to 10000 at least, broker 1 at {direct} has 5000"
    );
    let said = check(&world, &[]);
    assert!(
        said.contains("broker: failed: Kafka's limits leave too little room: ")
            && said.contains(&words),
        "{said}"
    );
    assert!(
        said.contains("rights: ok") && said.contains("topics: ok"),
        "{said}"
    );
    let payment = world.launch(Service::Payment, &[]);
    assert_eq!(
        payment.process().exit().code(),
        Some(1),
        "{}",
        payment.log()
    );
    let log = payment.log();
    assert!(
        log.lines()
            .any(|line| line.contains("stopped: ") && line.contains(&words)),
        "{log}"
    );
}

// ---- topics

#[test]
fn topics_that_keep_records_for_less_than_a_deadline_are_remarked() {
    let world = World::with("short_retention", &[]);
    make_topics(&world, 1, &[("retention.ms", "60000")]);
    let words = "keeps records for 60 s (retention.ms), less than ORDER_DEADLINE (300 s)";
    let said = check(&world, &[]);
    assert!(
        said.contains("topics: ok: ") && said.contains(words),
        "{said}"
    );
    world.start(Service::Payment).wait_for_log(words);
}

/// Outbox rows of payment's with an answer each, stored together.
fn append(db: &mut Client, count: usize) -> Vec<String> {
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
    let message = |id: &Uuid| {
        json!([{"id": id, "topic": "payment.success", "type": "payment.completed", "data": {"orderId": id}}])
            .to_string()
    };
    let messages: Vec<String> = ids.iter().map(message).collect();
    db.execute("select append_outbox($1, $2)", &[&ids, &messages])
        .unwrap();
    ids.iter().map(Uuid::to_string).collect()
}

#[test]
fn a_topic_that_takes_small_batches_is_no_error() {
    let world = World::with("small_batches", &[]);
    make_topics(&world, 1, &[("max.message.bytes", "50000")]);
    let payment = world.start(Service::Payment);
    payment.wait_for_log("leading: producer");
    let stored = append(&mut world.db(Service::Payment), 6_000);
    world.wait_until_published(Service::Payment);
    let published: Vec<String> = world
        .records("payment.success")
        .into_iter()
        .map(|record| record.ce_id)
        .collect();
    assert_eq!(published, stored);
    assert!(!payment.log().contains("[ERROR]"), "{}", payment.log());
    for failed in ["aborted", "unknown", "fenced"] {
        assert_eq!(
            metric(
                &payment,
                &format!("saga_relay_transactions_total{{outcome=\"{failed}\"}}")
            ),
            0.0,
            "{failed}"
        );
    }
}

#[test]
fn a_topic_made_anew_with_fewer_partitions_is_written_to_without_a_restart() {
    let world = World::with("fewer_partitions", &[]);
    make_topics(&world, 4, &[]);
    let payment = world.start(Service::Payment);
    payment.wait_for_log("leading: producer");
    append(&mut world.db(Service::Payment), 40);
    world.wait_until_published(Service::Payment);
    let names: Vec<String> = ["payment.success", "payment.dlt"]
        .map(|name| format!("{}{name}", world.prefix()))
        .to_vec();
    let mut admin = admin(&world);
    admin.delete_topics(&names).unwrap();
    until("the topics to be gone", || {
        admin
            .describe_topics(&names)
            .is_ok_and(|topics| topics.is_empty())
    });
    // not before: what is published into a topic that is being deleted goes with it
    let stored = append(&mut world.db(Service::Payment), 40);
    let topic = |name: &String| NewTopic {
        name: name.clone(),
        partitions: 1,
        replication: Some(1),
        configs: vec![],
    };
    admin
        .create_topics(&names.iter().map(topic).collect::<Vec<_>>())
        .unwrap();
    world.wait_until_published(Service::Payment);
    let published: HashSet<String> = world
        .records("payment.success")
        .into_iter()
        .map(|record| record.ce_id)
        .collect();
    assert_eq!(published, stored.into_iter().collect());
}

#[test]
fn a_topic_that_is_gone_is_named() {
    let world = World::with("gone", &[]);
    let payment = world.start(Service::Payment);
    payment.wait_until_ready();
    let topic = format!("{}payment.compensation", world.prefix());
    admin(&world)
        .delete_topics(std::slice::from_ref(&topic))
        .unwrap();
    until("it to be named", || {
        reasons(&payment).contains(&format!("there is no topic {topic}: create it"))
    });
}

// ---- strangers

#[test]
fn a_stranger_in_the_group_is_named() {
    a_stranger_is_named("classic");
}

/// KIP-848: the broker divides a group as soon as one member asks for it.
#[test]
fn a_stranger_of_the_newer_protocol_is_named() {
    a_stranger_is_named("consumer");
}

fn a_stranger_is_named(protocol: &str) {
    let world = World::with(&format!("stranger_{protocol}"), &[]);
    let payment = world.start(Service::Payment);
    payment.wait_for_log("joined the group");
    payment.api().put_balance("ann", 1_000);
    let (topic, group) = (
        format!("{}payment", world.prefix()),
        format!("{}payment", world.prefix()),
    );
    let arguments = [
        &broker::java_args()[..],
        &[
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            "--bootstrap-server",
            world.brokers(),
        ]
        .map(str::to_string),
        &["--topic", &topic, "--group", &group].map(str::to_string),
        &["--command-property", &format!("group.protocol={protocol}")].map(str::to_string),
    ]
    .concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let stranger = Process::start("console-consumer", Path::new("java"), &arguments, &[]);
    until("the group to be divided again", || {
        payment.log().matches("joined the group").count() >= 2
    });
    until("the stranger to be named", || {
        let order_id = Uuid::now_v7();
        world.produce_event(
            "payment",
            order_id,
            "payment.requested",
            &json!({"orderId": order_id, "userName": "ann", "price": 1}),
        );
        let reasons = reasons(&payment);
        reasons.contains("console-consumer")
            && reasons.contains(&format!("is in the consumer group {group}"))
    });
    // in order, so that it leaves the group at once
    stranger.signal(Signal::TERM);
    until("all partitions to be back", || {
        payment.api().get("/readyz").status == 200
    });
}
