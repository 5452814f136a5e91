//! What other clients write is read, what is written they read, and any backlog is read whole.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Broker, CONSOLE_CONSUMER, Line, now, record, records, unique, value_of, wait_until};
use kafka::{
    Bytes, Compression, Consumer, ErrorCode, FetchConfig, Interrupt, Isolation, OffsetSpec, Polled,
    Producer, ProducerRecord, Record, StrBytes, TopicPartition, partition_for_key,
};

on_both_lines! {
    records_of_the_java_producer_are_read_whole_and_lie_where_we_would_put_them
    our_records_are_read_by_the_java_consumer
    every_compression_of_the_java_producer_is_read
    what_is_written_as_lz4_is_smaller_and_read_by_the_java_consumer
    a_backlog_far_larger_than_a_fetch_is_read_whole_and_in_order
    a_paused_partition_yields_nothing_until_it_is_resumed
    a_position_outside_the_log_is_reported_and_never_reset
    a_topic_made_anew_is_not_taken_for_the_old_one
    offsets_are_listed_by_time_and_at_both_ends
    nulls_and_repeated_headers_survive
    creating_a_topic_twice_says_so
    limits_without_end_are_waits_without_end
    a_record_without_a_time_gets_that_of_its_sending
    partitions_that_are_added_are_written_to
}

fn partitions_that_are_added_are_written_to(broker: &Broker) {
    let topic = broker.topic("grows", 1)[0].topic.clone();
    let config = kafka::Config {
        metadata_max_age: Duration::from_millis(100),
        ..broker.config()
    };
    let [mut patient, mut curious] =
        [broker.config(), config].map(|config| Producer::idempotent(config, Interrupt::new()));
    for producer in [&mut patient, &mut curious] {
        producer.send(vec![record(&topic, "k", "first")]).unwrap();
    }
    let place = ["--alter", "--topic", &topic, "--partitions", "4"];
    broker.tool("org.apache.kafka.tools.TopicCommand", &place, "");
    let mut partitions = Vec::new();
    wait_until("the broker to know of them", || {
        partitions = broker.partitions(&topic);
        partitions.len() == 4
    });
    // asked for by its number: at once
    let third = ProducerRecord {
        partition: Some(3),
        ..record(&topic, "k", "third")
    };
    patient.send(vec![third]).unwrap();
    assert_eq!(value_of(&read(broker, &partitions[3..], 1)[0].1), "third");
    // by their keys: within the age of what is known
    let keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    wait_until("each partition to get some", || {
        curious
            .send(
                keys.iter()
                    .map(|key| record(&topic, key, "keyed"))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        let ends = broker.admin().list_offsets(
            &(0..4)
                .map(|number| (topic.to_string(), number))
                .collect::<Vec<_>>(),
            OffsetSpec::Latest,
            Isolation::ReadCommitted,
        );
        ends.unwrap().iter().all(|end| end.offset > 1)
    });
}

fn a_record_without_a_time_gets_that_of_its_sending(broker: &Broker) {
    let partitions = broker.topic("untimed", 1);
    let before = now();
    let untimed = ProducerRecord {
        timestamp: None,
        ..record(&partitions[0].topic, "k", "v")
    };
    Producer::idempotent(broker.config(), Interrupt::new())
        .send(vec![untimed])
        .unwrap();
    let sent = read(broker, &partitions, 1)[0].1.timestamp;
    assert!((before..=now()).contains(&sent), "{sent}");
}

fn limits_without_end_are_waits_without_end(broker: &Broker) {
    let partitions = broker.topic("endless", 1);
    let endless = Duration::MAX;
    let config = kafka::Config {
        connect_timeout: endless,
        request_timeout: endless,
        ..broker.config()
    };
    let mut producer = Producer::idempotent(config.clone(), Interrupt::new());
    producer
        .send(vec![record(&partitions[0].topic, "k", "v")])
        .unwrap();
    let fetch = FetchConfig {
        max_wait: endless,
        ..FetchConfig::default()
    };
    let mut reader = Consumer::new(config, Interrupt::new(), fetch);
    reader.assign(&[(partitions[0].clone(), 0)]);
    wait_until("the record", || records(reader.poll().unwrap()).len() == 1);
}

/// The console producer moved from Kafka's core to its tools with version 4.
fn console_producer(broker: &Broker) -> &'static str {
    match broker.line {
        Line::Kafka39 => "kafka.tools.ConsoleProducer",
        Line::Kafka4 => "org.apache.kafka.tools.ConsoleProducer",
    }
}

/// The console producer gives a request up after 1.5 s, little beside other JVMs that start, and only logs what it lost.
const PATIENT: [&str; 2] = ["--request-timeout-ms", "20000"];

/// All records of these partitions, once there are `count`.
fn read(broker: &Broker, partitions: &[TopicPartition], count: usize) -> Vec<(i32, Record)> {
    let mut reader = broker.reader(partitions, Isolation::ReadCommitted);
    let mut read = Vec::new();
    wait_until(&format!("{count} records"), || {
        for polled in reader.poll().unwrap() {
            match polled {
                Polled::Records {
                    partition, records, ..
                } => read.extend(
                    records
                        .into_iter()
                        .map(|record| (partition.partition, record)),
                ),
                other => panic!("{other:?}"),
            }
        }
        read.len() >= count
    });
    assert_eq!(read.len(), count);
    read
}

fn text(bytes: &Option<Bytes>) -> &str {
    std::str::from_utf8(bytes.as_ref().unwrap()).unwrap()
}

fn send(broker: &Broker, records: Vec<ProducerRecord>) {
    Producer::idempotent(broker.config(), Interrupt::new())
        .send(records)
        .unwrap();
}

fn records_of_the_java_producer_are_read_whole_and_lie_where_we_would_put_them(broker: &Broker) {
    let partitions = broker.topic("java-writes", 5);
    let topic = &*partitions[0].topic;
    let lines: String = (0..50)
        .map(|n| format!("h1:eins,h2:zwei\tkey-{n}\tvalue {n}\n"))
        .collect();
    let reading = [
        "--property",
        "parse.key=true",
        "--property",
        "parse.headers=true",
    ];
    broker.tool(
        console_producer(broker),
        &[&["--topic", topic], &PATIENT[..], &reading].concat(),
        &lines,
    );
    let read = read(broker, &partitions, 50);
    let mut values: Vec<_> = read
        .iter()
        .map(|(_, record)| text(&record.value).to_owned())
        .collect();
    values.sort();
    let mut expected: Vec<_> = (0..50).map(|n| format!("value {n}")).collect();
    expected.sort();
    assert_eq!(values, expected);
    for (partition, record) in &read {
        assert_eq!(
            partition_for_key(record.key.as_ref().unwrap(), 5),
            *partition
        );
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|(key, value)| (&**key, text(value)))
            .collect();
        assert_eq!(headers, [("h1", "eins"), ("h2", "zwei")]);
    }
}

fn our_records_are_read_by_the_java_consumer(broker: &Broker) {
    let partitions = broker.topic("java-reads", 3);
    let topic = &*partitions[0].topic;
    let mut producer = Producer::transactional(
        broker.config(),
        Interrupt::new(),
        unique("to-java"),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    let sent = now() - 60_000;
    for (value, kept) in [("aborted", false), ("kept", true)] {
        let mut transaction = producer.begin().unwrap();
        let headers = vec![
            ("h1".into(), Some(Bytes::from_static(b"eins"))),
            (StrBytes::from_static_str("h2"), None),
        ];
        let one = |n| ProducerRecord {
            headers: headers.clone(),
            timestamp: Some(sent),
            ..record(topic, &format!("key-{n}"), &format!("{value} {n}"))
        };
        transaction
            .send((0..20).map(one).collect::<Vec<_>>())
            .unwrap();
        if kept {
            transaction.commit().unwrap()
        } else {
            transaction.abort().unwrap()
        }
    }
    let printing = [
        "print.key=true",
        "print.headers=true",
        "print.partition=true",
        "print.timestamp=true",
    ];
    let mut arguments = vec![
        "--topic",
        topic,
        "--from-beginning",
        "--max-messages",
        "20",
        "--timeout-ms",
        "60000",
    ];
    arguments.extend(["--isolation-level", "read_committed"]);
    arguments.extend(
        printing
            .iter()
            .flat_map(|property| ["--property", property]),
    );
    let out = broker.tool(CONSOLE_CONSUMER, &arguments, "");
    let mut lines: Vec<&str> = out
        .lines()
        .filter(|line| line.starts_with("CreateTime"))
        .collect();
    lines.sort();
    let mut expected: Vec<String> = (0..20)
        .map(|n| {
            let partition = partition_for_key(format!("key-{n}").as_bytes(), 3);
            format!("CreateTime:{sent}\tPartition:{partition}\th1:eins,h2:null\tkey-{n}\tkept {n}")
        })
        .collect();
    expected.sort();
    assert_eq!(lines, expected);
}

fn every_compression_of_the_java_producer_is_read(broker: &Broker) {
    let partitions = broker.topic("compressed", 1);
    let topic = &*partitions[0].topic;
    let codecs = ["gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let lines: String = (0..500)
            .map(|n| format!("{codec} {n} {}\n", "well compressible ".repeat(5)))
            .collect();
        let arguments = [
            &["--topic", topic, "--compression-codec", codec],
            &PATIENT[..],
        ]
        .concat();
        broker.tool(console_producer(broker), &arguments, &lines);
    }
    let read = read(broker, &partitions, 2000);
    for (at, (_, record)) in read.iter().enumerate() {
        let expected = format!("{} {} ", codecs[at / 500], at % 500);
        assert!(text(&record.value).starts_with(&expected), "{at}");
        assert_eq!(record.offset, at as i64);
    }
}

fn what_is_written_as_lz4_is_smaller_and_read_by_the_java_consumer(broker: &Broker) {
    let partitions = broker.topic_with("lz4", 1, &[("max.message.bytes", "4000")]);
    let topic = &*partitions[0].topic;
    let value = |n: i32| format!("{n} {}", "well compressible ".repeat(2_000));
    let mut plain = Producer::idempotent(broker.config(), Interrupt::new());
    let refused = plain.send([record(topic, "k", &value(0))]).unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::MESSAGE_TOO_LARGE));
    let config = broker.config().with_compression(Compression::Lz4);
    let (id, limit) = (unique("lz4"), Duration::from_secs(60));
    let mut producer = Producer::transactional(config, Interrupt::new(), id, limit);
    producer.initialise().unwrap();
    let mut transaction = producer.begin().unwrap();
    let records: Vec<_> = (0..3).map(|n| record(topic, "k", &value(n))).collect();
    transaction.send(&records).unwrap();
    // too short to become smaller: written as it is
    transaction.send([record(topic, "k", "x")]).unwrap();
    transaction.commit().unwrap();
    let expected = [value(0), value(1), value(2), "x".to_string()];
    let ours: Vec<String> = read(broker, &partitions, 4)
        .iter()
        .map(|(_, record)| text(&record.value).to_string())
        .collect();
    assert_eq!(ours, expected);
    let arguments = ["--topic", topic, "--from-beginning", "--max-messages", "4"];
    let committed = [
        "--timeout-ms",
        "60000",
        "--isolation-level",
        "read_committed",
    ];
    let out = broker.tool(CONSOLE_CONSUMER, &[&arguments[..], &committed].concat(), "");
    let theirs: Vec<&str> = out
        .lines()
        .filter(|line| expected.iter().any(|value| value == line))
        .collect();
    assert_eq!(theirs, expected);
}

fn a_backlog_far_larger_than_a_fetch_is_read_whole_and_in_order(broker: &Broker) {
    let partitions = broker.topic("backlog", 3);
    let topic = &*partitions[0].topic;
    let padding = "x".repeat(300);
    let mut producer = Producer::idempotent(broker.config(), Interrupt::new());
    for call in 0..60 {
        let one = |n: i32| ProducerRecord {
            partition: Some(n % 3),
            ..record(topic, "k", &format!("{n} {padding}"))
        };
        producer
            .send((call * 500..(call + 1) * 500).map(one).collect::<Vec<_>>())
            .unwrap();
    }
    // About 10 MB, in answers of some 200 KB that end in the middle of a batch.
    let fetch = FetchConfig {
        max_bytes: 200_000,
        max_partition_bytes: 70_000,
        ..FetchConfig::default()
    };
    let mut reader = Consumer::new(broker.config(), Interrupt::new(), fetch);
    let from_start: Vec<_> = partitions
        .iter()
        .map(|partition| (partition.clone(), 0))
        .collect();
    reader.assign(&from_start);
    let mut next: HashMap<i32, i32> = (0..3).map(|partition| (partition, partition)).collect();
    let mut read = 0;
    wait_until("30,000 records", || {
        for polled in reader.poll().unwrap() {
            let Polled::Records {
                partition, records, ..
            } = polled
            else {
                panic!("{polled:?}")
            };
            let expected = next.get_mut(&partition.partition).unwrap();
            for record in &records {
                assert!(value_of(record).starts_with(&format!("{expected} ")));
                *expected += 3;
            }
            read += records.len();
        }
        read >= 30_000
    });
    assert_eq!(read, 30_000);
    assert!(
        partitions
            .iter()
            .all(|partition| reader.position(partition) == Some(10_000))
    );
}

fn a_paused_partition_yields_nothing_until_it_is_resumed(broker: &Broker) {
    let partitions = broker.topic("paused", 2);
    let topic = &*partitions[0].topic;
    let to = |partition, value: &str| ProducerRecord {
        partition: Some(partition),
        ..record(topic, "k", value)
    };
    send(broker, vec![to(0, "zero"), to(1, "one")]);
    let mut reader = broker.reader(&partitions, Isolation::ReadCommitted);
    reader.pause(&partitions[0]);
    let mut seen = Vec::new();
    wait_until("the other one", || {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        !seen.is_empty()
    });
    for _ in 0..3 {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
    }
    assert_eq!(seen, ["one"]);
    assert_eq!(reader.position(&partitions[0]), Some(0));
    reader.resume(&partitions[0]);
    wait_until("the paused one", || {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        seen.len() > 1
    });
    assert_eq!(seen, ["one", "zero"]);
    reader.seek(&partitions[1], 0);
    wait_until("the one sought", || {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        seen.len() > 2
    });
    assert_eq!(seen, ["one", "zero", "one"]);
}

fn a_position_outside_the_log_is_reported_and_never_reset(broker: &Broker) {
    let partitions = broker.topic("range", 1);
    send(broker, vec![record(&partitions[0].topic, "k", "v")]);
    let mut reader = broker.reader(&partitions, Isolation::ReadCommitted);
    reader.seek(&partitions[0], 77);
    for _ in 0..2 {
        let mut polled = Vec::new();
        wait_until("the range", || {
            polled = reader.poll().unwrap();
            !polled.is_empty()
        });
        let Polled::OutOfRange {
            offset,
            log_start,
            high_watermark,
            ..
        } = polled[0]
        else {
            panic!("{polled:?}")
        };
        assert_eq!((offset, log_start, high_watermark), (77, 0, 1));
        assert_eq!(reader.position(&partitions[0]), Some(77));
    }
}

fn a_topic_made_anew_is_not_taken_for_the_old_one(broker: &Broker) {
    let old = broker.topic("anew", 1);
    let name = old[0].topic.to_string();
    send(
        broker,
        vec![record(&name, "k", "old"), record(&name, "k", "old")],
    );
    let mut reader = broker.reader(&old, Isolation::ReadCommitted);
    wait_until("the old records", || {
        !records(reader.poll().unwrap()).is_empty()
    });
    let mut admin = broker.admin();
    admin.delete_topics(std::slice::from_ref(&name)).unwrap();
    admin.delete_topics(std::slice::from_ref(&name)).unwrap();
    wait_until("the topic to be gone", || {
        admin
            .describe_topics(std::slice::from_ref(&name))
            .unwrap()
            .is_empty()
    });
    let topic = kafka::NewTopic {
        name: name.clone(),
        partitions: 1,
        replication: None,
        configs: Vec::new(),
    };
    admin.create_topics(&[topic]).unwrap();
    let new = broker.partitions(&name);
    assert_ne!(new, old);
    send(broker, (0..5).map(|_| record(&name, "k", "new")).collect());
    let mut polled = Vec::new();
    wait_until("word that the old one is gone", || {
        polled.extend(reader.poll().unwrap());
        !polled.is_empty()
    });
    assert!(polled.iter().all(
        |polled| matches!(polled, Polled::UnknownTopic { partition } if *partition == old[0])
    ));
    reader.assign(&[(new[0].clone(), 0)]);
    let mut seen = Vec::new();
    wait_until("the new records", || {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        seen.len() >= 5
    });
    assert_eq!(seen, ["new"; 5]);
}

fn offsets_are_listed_by_time_and_at_both_ends(broker: &Broker) {
    let partitions = broker.topic("listed", 1);
    let topic = &*partitions[0].topic;
    let at = |timestamp| ProducerRecord {
        timestamp: Some(timestamp),
        ..record(topic, "k", "v")
    };
    let first = now() - 60_000;
    send(
        broker,
        vec![at(first), at(first + 1_000), at(first + 2_000)],
    );
    let place = [(topic.to_owned(), 0)];
    let mut admin = broker.admin();
    let mut list = |spec| {
        admin
            .list_offsets(&place, spec, Isolation::ReadCommitted)
            .unwrap()
            .remove(0)
    };
    assert_eq!(list(OffsetSpec::Earliest).offset, 0);
    assert_eq!(list(OffsetSpec::Latest).offset, 3);
    let found = list(OffsetSpec::Timestamp(first + 500));
    assert_eq!((found.offset, found.timestamp), (1, first + 1_000));
    assert_eq!(list(OffsetSpec::Timestamp(first + 8_000)).offset, -1);
}

fn nulls_and_repeated_headers_survive(broker: &Broker) {
    let partitions = broker.topic("nulls", 1);
    let twice = vec![
        ("h".into(), Some(Bytes::from_static(b"1"))),
        ("h".into(), None),
        ("".into(), Some(Bytes::new())),
    ];
    let a_while_ago = now() - 60_000;
    let sent = ProducerRecord {
        key: None,
        value: None,
        headers: twice.clone(),
        timestamp: Some(a_while_ago),
        ..record(&partitions[0].topic, "", "")
    };
    send(broker, vec![sent]);
    let (_, found) = read(broker, &partitions, 1).remove(0);
    assert_eq!((found.key, found.value, found.headers), (None, None, twice));
    assert_eq!(found.timestamp, a_while_ago);
}

fn creating_a_topic_twice_says_so(broker: &Broker) {
    let topic = |name: &str, partitions| kafka::NewTopic {
        name: name.to_owned(),
        partitions,
        replication: Some(1),
        configs: vec![("cleanup.policy".into(), "compact".into())],
    };
    let (one, two) = (unique("twice"), unique("twice"));
    let mut admin = broker.admin();
    let created = admin.create_topics(&[topic(&one, 2)]).unwrap();
    assert_eq!(created, [(one.clone(), kafka::Created::Created)]);
    let created = admin
        .create_topics(&[topic(&one, 9), topic(&two, 1)])
        .unwrap();
    assert_eq!(
        created,
        [
            (one.clone(), kafka::Created::AlreadyExists),
            (two.clone(), kafka::Created::Created)
        ]
    );
    let described = admin
        .describe_topics(&[one.clone(), "no-such-topic".into(), two])
        .unwrap();
    assert_eq!(
        described
            .iter()
            .map(|topic| (topic.partitions, topic.replication))
            .collect::<Vec<_>>(),
        [(2, 1), (1, 1)]
    );
    let refused = admin.create_topics(&[topic("not a name", 1)]).unwrap_err();
    assert_eq!(refused.kind(), kafka::ErrorKind::Fatal, "{refused}");
}
