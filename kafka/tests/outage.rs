//! What goes wrong outside: brokers that restart, are away, hang, or aren't Kafka.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::proxy::{FETCH, Loss, PRODUCE};
use common::{Broker, Line, at, record, records, unique, value_of, wait_until};
use kafka::{
    Admin, Config, Consumer, Error, ErrorKind, FetchConfig, Group, GroupConfig, Interrupt,
    Isolation, Producer,
};

on_both_lines! {
    connections_cut_while_idle_are_no_event
    a_lost_fetch_answer_loses_no_record
    an_address_where_nobody_answers_does_not_stop_the_others
    an_interrupt_ends_a_long_poll_at_once
    polls_in_vain_pause
    a_call_ends_at_its_limit_however_long_a_connection_may_take
}

/// TEST-NET-1 (RFC 5737): nobody is there.
const NOBODY: &str = "192.0.2.1:9092";

fn a_call_ends_at_its_limit_however_long_a_connection_may_take(_: &Broker) {
    let limit = Duration::from_secs(2);
    let patient = Config {
        connect_timeout: Duration::from_secs(300),
        api_timeout: limit,
        ..Config::new(vec![NOBODY.to_owned()], "test")
    };
    let since = Instant::now();
    let error = Admin::new(patient, Interrupt::new())
        .describe_topics(&["t".to_owned()])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retriable, "{error}");
    assert!(
        since.elapsed() < Duration::from_secs(60),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn a_client_that_a_quota_holds_back_waits_and_commits_kafka_3_9() {
    a_client_that_a_quota_holds_back_waits_and_commits(&Broker::start(Line::Kafka39));
}

#[test]
fn a_client_that_a_quota_holds_back_waits_and_commits_kafka_4() {
    a_client_that_a_quota_holds_back_waits_and_commits(&Broker::start(Line::Kafka4));
}

/// 1.2 MB under a quota of 60 KB/s: the broker, which measures over ten seconds, reads nothing from the client for about as long again, many
/// times the limit of a request. A broker of its own, whose connections nobody else cuts.
fn a_client_that_a_quota_holds_back_waits_and_commits(broker: &Broker) {
    let partitions = broker.topic("quota", 1);
    let client = unique("throttled");
    let quota = [
        "--alter",
        "--entity-type",
        "clients",
        "--entity-name",
        &client,
        "--add-config",
        "producer_byte_rate=60000",
    ];
    broker.tool("kafka.admin.ConfigCommand", &quota, "");
    let limit = Duration::from_secs(8);
    let config = Config {
        request_timeout: limit,
        ..broker.proxied(&client)
    };
    let mut producer = Producer::transactional(
        config,
        Interrupt::new(),
        unique("quota"),
        Duration::from_secs(300),
    );
    producer.initialise().unwrap();
    let since = Instant::now();
    let mut transaction = producer.begin().unwrap();
    let topic = &partitions[0].topic;
    transaction
        .send(
            (0..1_200)
                .map(|number| record(topic, "k", &format!("{number:0>1000}")))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    transaction.send(vec![record(topic, "k", "end")]).unwrap();
    transaction.commit().unwrap();
    assert!(
        since.elapsed() > limit,
        "the broker did not hold it back: {:?}",
        since.elapsed()
    );
    // two batches and the end: nothing was given up and sent again
    let sent = broker
        .proxy
        .take_calls(&client)
        .into_iter()
        .filter(|api| *api == PRODUCE)
        .count();
    assert_eq!(sent, 3);
    assert_eq!(broker.committed_values(&partitions, "end").len(), 1_201);
}

fn polls_in_vain_pause(broker: &Broker) {
    let partitions = broker.topic("in-vain", 1);
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nowhere = Config::new(vec![closed.to_string()], "test");
    let mut away = Consumer::new(nowhere, Interrupt::new(), FetchConfig::default());
    away.assign(&[(partitions[0].clone(), 0)]);
    let mut gone = broker.reader(&partitions, Isolation::ReadCommitted);
    broker
        .admin()
        .delete_topics(&[partitions[0].topic.to_string()])
        .unwrap();
    wait_until("it to be reported as gone", || {
        !gone.poll().unwrap_or_default().is_empty()
    });
    for reader in [&mut away, &mut gone] {
        let until = Instant::now() + Duration::from_secs(2);
        let polls = std::iter::repeat_with(|| drop(reader.poll()))
            .take_while(|()| Instant::now() < until)
            .count();
        assert!(polls < 100, "{polls} polls in two seconds");
    }
}

#[test]
fn after_a_broker_restart_the_same_objects_go_on_kafka_3_9() {
    after_a_broker_restart_the_same_objects_go_on(Line::Kafka39);
}

#[test]
fn after_a_broker_restart_the_same_objects_go_on_kafka_4() {
    after_a_broker_restart_the_same_objects_go_on(Line::Kafka4);
}

/// A broker of its own: the others must not notice.
fn after_a_broker_restart_the_same_objects_go_on(line: Line) {
    let mut broker = Broker::start(line);
    let partitions = broker.topic("restart", 1);
    let topic = partitions[0].topic.to_string();
    let mut admin = broker.admin();
    let mut idempotent = Producer::idempotent(broker.config(), Interrupt::new());
    let id = unique("restart");
    let limit = Duration::from_secs(20);
    let hasty = Config {
        api_timeout: limit,
        delivery_timeout: limit,
        ..broker.config()
    };
    let mut producer =
        Producer::transactional(hasty, Interrupt::new(), id, Duration::from_secs(60));
    let mut reader = broker.reader(&partitions, Isolation::ReadCommitted);
    let mut group = member(&broker, &topic);
    let mut seen = Vec::new();
    producer.initialise().unwrap();
    assert_eq!(group.join().unwrap().partitions, partitions);

    for life in 0..2 {
        wait_until("a commit", || {
            try_commit(&mut producer, &topic, &format!("transaction {life}")).is_ok()
        });
        idempotent
            .send(vec![record(&topic, "k", &format!("single {life}"))])
            .unwrap();
        wait_until("the records of this life", || {
            seen.extend(
                records(reader.poll().unwrap_or_default())
                    .iter()
                    .map(value_of),
            );
            seen.len() == 2 * (life + 1)
        });
        if life == 0 {
            broker.kill();
            let away = producer
                .begin()
                .unwrap()
                .send(vec![record(&topic, "k", "into the void")])
                .unwrap_err();
            assert_eq!(away.kind(), ErrorKind::Retriable, "{away}");
            let away = reader.poll().unwrap_err();
            assert_eq!(away.kind(), ErrorKind::Retriable, "{away}");
            broker.resume();
        }
    }
    assert_eq!(
        seen,
        ["transaction 0", "single 0", "transaction 1", "single 1"]
    );
    assert_eq!(admin.describe_topics(&[topic]).unwrap().len(), 1);
    let held = [(partitions[0].clone(), 4, String::new())];
    // The broker remembers the member, whose session outlasts the restart, or has it join again.
    wait_until("a commit of the group", || {
        group
            .commit_offsets(&held)
            .or_else(|_| group.join().map(drop))
            .is_ok()
    });
    drop(group.leave());
}

#[test]
fn an_end_that_the_broker_never_got_leaves_the_id_usable_kafka_3_9() {
    an_end_that_the_broker_never_got_leaves_the_id_usable(Line::Kafka39);
}

#[test]
fn an_end_that_the_broker_never_got_leaves_the_id_usable_kafka_4() {
    an_end_that_the_broker_never_got_leaves_the_id_usable(Line::Kafka4);
}

fn an_end_that_the_broker_never_got_leaves_the_id_usable(line: Line) {
    let mut broker = Broker::start(line);
    let partitions = broker.topic("unended", 1);
    let topic = &*partitions[0].topic;
    let hasty = Config {
        api_timeout: Duration::from_secs(20),
        ..broker.config()
    };
    // longer than any start: a broker that ends the transaction itself draws another epoch
    let mut producer = Producer::transactional(
        hasty,
        Interrupt::new(),
        unique("unended"),
        Duration::from_secs(600),
    );
    producer.initialise().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.send([record(topic, "k", "never")]).unwrap();
    broker.kill();
    transaction.commit().unwrap_err();
    broker.resume();
    // nobody has taken over: it is open until then, and whether its end was executed, only the coordinator knows
    wait_until("an identity", || match producer.initialise() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Retriable, "{error}");
            false
        }
    });
    let mut transaction = producer.begin().unwrap();
    transaction.send([record(topic, "k", "after")]).unwrap();
    transaction.commit().unwrap();
    assert_eq!(broker.committed_values(&partitions, "after"), ["after"]);
}

fn try_commit(producer: &mut Producer, topic: &str, value: &str) -> kafka::Result<()> {
    if producer.identity().is_none() {
        producer.initialise()?;
    }
    let mut transaction = producer.begin()?;
    transaction.send(vec![record(topic, "k", value)])?;
    transaction.commit()
}

fn member(broker: &Broker, topic: &str) -> Group {
    let config = GroupConfig {
        session_timeout: Duration::from_secs(30),
        rebalance_timeout: Duration::from_secs(30),
        heartbeat_interval: Duration::from_millis(200),
        ..GroupConfig::new(unique("restart"), vec![topic.to_owned()])
    };
    Group::new(broker.config(), Interrupt::new(), config)
}

fn connections_cut_while_idle_are_no_event(broker: &Broker) {
    // A client id of its own keeps the other claims' rules away; the cut hits their connections too, which they bear.
    let partitions = broker.topic("idle", 1);
    let topic = &*partitions[0].topic;
    let config = || broker.proxied("idle");
    let mut admin = Admin::new(config(), Interrupt::new());
    let mut producer = Producer::transactional(
        config(),
        Interrupt::new(),
        unique("idle"),
        Duration::from_secs(60),
    );
    let mut reader = Consumer::new(config(), Interrupt::new(), FetchConfig::default());
    reader.assign(&[(partitions[0].clone(), 0)]);
    producer.initialise().unwrap();
    let mut seen = 0;
    for turn in 1..=5 {
        let mut transaction = producer.begin().unwrap();
        transaction.send(vec![record(topic, "k", "v")]).unwrap();
        transaction
            .commit_offsets("idle", None, &at(topic, turn, ""))
            .unwrap();
        broker.proxy.cut_all();
        // The cut arrives at once on this machine; a moment later is "idle".
        thread::sleep(Duration::from_millis(50));
        transaction.commit().unwrap();
        assert_eq!(admin.describe_topics(&[topic.to_owned()]).unwrap().len(), 1);
        let since = Instant::now();
        while seen < turn as usize {
            seen += records(reader.poll().unwrap()).len();
            assert!(since.elapsed() < common::PATIENCE);
        }
    }
}

fn a_lost_fetch_answer_loses_no_record(broker: &Broker) {
    let partitions = broker.topic("lost-fetch", 1);
    let client = unique("client");
    let mut reader = Consumer::new(
        broker.impatient(&client),
        Interrupt::new(),
        FetchConfig::default(),
    );
    reader.assign(&[(partitions[0].clone(), 0)]);
    let mut producer = Producer::idempotent(broker.config(), Interrupt::new());
    producer
        .send(
            (0..10)
                .map(|n| record(&partitions[0].topic, "k", &n.to_string()))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    for loss in [Loss::Cut, Loss::Silence] {
        broker.proxy.lose_answer(&client, FETCH, loss);
        let lost = reader.poll().unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::Retriable, "{lost}");
    }
    let mut seen = Vec::new();
    wait_until("the records", || {
        // another claim's cut may hit this connection too
        seen.extend(
            records(reader.poll().unwrap_or_default())
                .iter()
                .map(value_of),
        );
        seen.len() >= 10
    });
    assert_eq!(seen, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn an_address_where_nobody_answers_does_not_stop_the_others(broker: &Broker) {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut config = broker.config();
    config.connect_timeout = Duration::from_secs(1);
    // Refused; unknown; silent (TEST-NET-1, RFC 5737); the broker.
    let nowhere = [
        "no-such-host.invalid:9092".to_owned(),
        "192.0.2.1:9092".to_owned(),
    ];
    config.brokers = [vec![closed], nowhere.to_vec(), vec![broker.address()]].concat();
    let topic = broker.topic("bootstrap", 1)[0].topic.to_string();
    assert_eq!(
        Admin::new(config.clone(), Interrupt::new())
            .describe_topics(&[topic])
            .unwrap()
            .len(),
        1
    );
    config.brokers.pop();
    config.api_timeout = Duration::from_secs(1);
    let alone = Admin::new(config, Interrupt::new())
        .describe_topics(&["t".to_owned()])
        .unwrap_err();
    assert!(matches!(alone, Error::NoBroker { .. }), "{alone}");
    assert_eq!(alone.kind(), ErrorKind::Retriable);
    assert!(
        alone.to_string().contains("no-such-host.invalid:9092"),
        "{alone}"
    );
}

fn an_interrupt_ends_a_long_poll_at_once(broker: &Broker) {
    let partitions = broker.topic("interrupted", 1);
    let interrupt = Interrupt::new();
    let fetch = FetchConfig {
        max_wait: Duration::from_secs(60),
        ..FetchConfig::default()
    };
    let mut reader = Consumer::new(broker.config(), interrupt.clone(), fetch);
    reader.assign(&[(partitions[0].clone(), 0)]);
    let polling = thread::spawn(move || (reader.poll(), reader.poll()));
    // Long enough to be in the poll, which would take a minute.
    thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    interrupt.interrupt();
    let (first, second) = polling.join().unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    assert!(matches!(first, Err(Error::Interrupted)), "{first:?}");
    assert!(matches!(second, Err(Error::Interrupted)), "{second:?}");
}

// ---- peers that aren't brokers

/// A server that answers each connection's first request with these bytes and then says nothing more.
fn impostor(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Config {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().flatten() {
            answer_once(&mut client, &answer);
            open.push(client);
        }
    });
    let mut config = Config::new(vec![address], "test");
    config.api_timeout = Duration::from_secs(2);
    config
}

fn answer_once(client: &mut TcpStream, answer: &impl Fn(&[u8]) -> Vec<u8>) {
    let mut request = [0; 1000];
    let length = client.read(&mut request).unwrap();
    client.write_all(&answer(&request[..length])).unwrap();
}

fn asked(config: Config) -> Error {
    Admin::new(config, Interrupt::new())
        .describe_topics(&["t".to_owned()])
        .unwrap_err()
}

#[test]
fn an_http_server_is_known_by_its_absurd_frame() {
    let error = asked(impostor(|_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).to_string();
    assert!(
        error.contains("frame of 1213486160 bytes") && error.contains("is it a Kafka broker?"),
        "{error}"
    );
}

#[test]
fn negative_and_tiny_frames_are_refused() {
    for length in [-1i32, i32::MIN, 0, 3, i32::MAX] {
        let error = asked(impostor(move |_| length.to_be_bytes().to_vec())).to_string();
        assert!(
            error.contains(&format!("frame of {length} bytes")),
            "{error}"
        );
    }
}

#[test]
fn the_answer_to_another_request_is_refused() {
    let error = asked(impostor(|_| vec![0, 0, 0, 4, 0, 0, 0x30, 0x39])).to_string();
    assert!(
        error.contains("correlation id 12345 instead of 0"),
        "{error}"
    );
}

#[test]
fn an_answer_that_is_garbage_is_refused() {
    let error = asked(impostor(|_| {
        [&[0u8, 0, 0, 14, 0, 0, 0, 0][..], &[0xff; 10]].concat()
    }))
    .to_string();
    assert!(
        error.contains("the answer of ApiVersions") && error.contains("can't be decoded"),
        "{error}"
    );
}

#[test]
fn half_a_frame_and_silence_end_at_the_deadline() {
    for answer in [vec![0u8, 0], vec![0, 0, 0, 100, 0, 0], Vec::new()] {
        let since = Instant::now();
        let error = asked(impostor(move |_| answer.clone())).to_string();
        assert!(error.contains("no answer within"), "{error}");
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{:?}",
            since.elapsed()
        );
    }
}

#[test]
fn a_broker_of_another_age_is_known_by_its_versions() {
    // ApiVersions 2 with one API only: Metadata, versions 0 to 5.
    let body = [0u8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0];
    let error = asked(impostor(move |_| {
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }));
    assert!(
        matches!(
            error,
            Error::UnsupportedVersion {
                api: "Metadata",
                offered: Some((0, 5)),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Fatal);
}
