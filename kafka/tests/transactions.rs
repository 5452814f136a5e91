//! Transactions on real brokers: visible as a whole or never, whatever gets lost.

mod common;

use std::ops::ControlFlow;
use std::time::Duration;

use common::proxy::{END_TXN, Loss, PRODUCE, TXN_OFFSET_COMMIT};
use common::{Broker, at, record, records, unique, value_of, wait_until};
use kafka::{
    Bytes, CommittedOffset, Config, Error, ErrorCode, ErrorKind, Interrupt, Isolation, OffsetSpec,
    Producer, ProducerRecord, Record, Span, StrBytes, TopicPartition, Written, last_records,
    read_spans,
};

on_both_lines! {
    what_is_committed_is_seen_and_what_is_aborted_never
    a_refused_record_rolls_its_sibling_back_and_the_same_producer_goes_on
    a_transaction_with_a_failed_part_can_not_be_committed
    a_second_producer_with_the_same_id_fences_the_first
    a_doubt_does_not_take_the_id_back_from_its_successor
    a_transaction_that_ran_out_of_time_is_no_fencing
    a_batch_that_is_too_large_for_its_topic_is_halved_until_it_fits
    the_size_of_batches_is_a_setting
    the_size_that_a_topic_takes_is_remembered
    a_dropped_transaction_is_never_seen
    a_position_is_read_back_exactly_with_its_transaction
    a_committed_transaction_whose_answer_was_lost_is_known_by_its_position
    an_open_transaction_whose_position_answer_was_lost_is_never_seen
    after_a_batch_that_stays_lost_only_a_new_epoch_goes_on
    a_lost_produce_answer_is_cured_within_its_transaction
    without_transactions_a_lost_produce_answer_neither_loses_nor_repeats
    a_send_larger_than_a_batch_arrives_whole_and_in_order
    an_empty_transaction_leaves_nothing_behind
    transactions_back_to_back_are_all_there
    the_last_marked_record_of_each_partition_is_found
    an_open_transaction_at_the_end_is_waited_for_or_left_out
    spans_are_read_from_one_offset_to_another_and_only_what_is_committed
}

fn producer(config: Config) -> Producer {
    let mut producer = Producer::transactional(
        config,
        Interrupt::new(),
        unique("id"),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    producer
}

fn commit(producer: &mut Producer, topic: &str, value: &str) {
    let mut transaction = producer.begin().unwrap();
    transaction.send(vec![record(topic, "k", value)]).unwrap();
    transaction.commit().unwrap();
}

fn committed(broker: &Broker, group: &str, topic: &str) -> CommittedOffset {
    broker
        .admin()
        .committed_offsets(group, &[(topic.to_owned(), 0)], true)
        .unwrap()
        .remove(0)
}

fn what_is_committed_is_seen_and_what_is_aborted_never(broker: &Broker) {
    let partitions = broker.topic("seen", 3);
    let topic = &partitions[0].topic;
    let mut producer = producer(broker.config());
    for round in 0..5 {
        let mut aborted = producer.begin().unwrap();
        aborted
            .send(
                (0..20)
                    .map(|n| record(topic, &format!("k{n}"), "aborted"))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        aborted.abort().unwrap();
        let mut kept = producer.begin().unwrap();
        kept.send(
            (0..20)
                .map(|n| record(topic, &format!("k{n}"), &format!("{round}/{n}")))
                .collect::<Vec<_>>(),
        )
        .unwrap();
        kept.commit().unwrap();
    }
    commit(&mut producer, topic, "last");
    let mut reader = broker.reader(&partitions, Isolation::ReadCommitted);
    let mut seen = Vec::new();
    wait_until("all committed records", || {
        seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        seen.len() >= 101
    });
    seen.sort();
    let mut expected: Vec<String> = (0..5)
        .flat_map(|round| (0..20).map(move |n| format!("{round}/{n}")))
        .collect();
    expected.push("last".to_owned());
    expected.sort();
    assert_eq!(seen, expected);
    let mut all = broker.reader(&partitions, Isolation::ReadUncommitted);
    let mut read = 0;
    wait_until("the aborted ones, read-uncommitted", || {
        read += records(all.poll().unwrap()).len();
        read >= 201
    });
}

fn a_refused_record_rolls_its_sibling_back_and_the_same_producer_goes_on(broker: &Broker) {
    let payment = broker.topic("payment", 3);
    let stock = broker.topic_with("stock", 3, &[("max.message.bytes", "2000")]);
    let mut producer = producer(broker.config());
    let mut transaction = producer.begin().unwrap();
    transaction
        .send(vec![record(&payment[0].topic, "order", "half an order")])
        .unwrap();
    let refused = transaction
        .send(vec![record(&stock[0].topic, "order", &"x".repeat(5000))])
        .unwrap_err();
    assert_eq!(
        refused.code(),
        Some(ErrorCode::MESSAGE_TOO_LARGE),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::Fatal);
    transaction.abort().unwrap();
    let mut next = producer.begin().unwrap();
    next.send(vec![
        record(&payment[0].topic, "order", "p"),
        record(&stock[0].topic, "order", "s"),
    ])
    .unwrap();
    next.commit().unwrap();
    assert_eq!(broker.committed_values(&payment, "p"), ["p"]);
    assert_eq!(broker.committed_values(&stock, "s"), ["s"]);
}

fn a_transaction_with_a_failed_part_can_not_be_committed(broker: &Broker) {
    let small = broker.topic_with("small", 1, &[("max.message.bytes", "2000")]);
    let topic = &small[0].topic;
    let mut producer = producer(broker.config());
    let mut transaction = producer.begin().unwrap();
    transaction
        .send(vec![record(topic, "k", "sibling")])
        .unwrap();
    transaction
        .send(vec![record(topic, "k", &"x".repeat(5000))])
        .unwrap_err();
    assert!(matches!(
        transaction.commit(),
        Err(Error::TransactionFailed)
    ));
    assert!(matches!(
        producer.begin().err(),
        Some(Error::NotInitialised)
    ));
    producer.initialise().unwrap();
    commit(&mut producer, topic, "after");
    assert_eq!(broker.committed_values(&small, "after"), ["after"]);
}

fn a_second_producer_with_the_same_id_fences_the_first(broker: &Broker) {
    let partitions = broker.topic("fenced", 1);
    let topic = &partitions[0].topic;
    let id = unique("same-id");
    let new = || {
        Producer::transactional(
            broker.config(),
            Interrupt::new(),
            id.clone(),
            Duration::from_secs(60),
        )
    };
    let (mut first, mut second) = (new(), new());
    let before = first.initialise().unwrap();
    let mut open = first.begin().unwrap();
    open.send(vec![record(topic, "k", "of the fenced one")])
        .unwrap();
    let after = second.initialise().unwrap();
    assert_eq!(after.id, before.id);
    assert!(after.epoch > before.epoch);
    let error = open.send(vec![record(topic, "k", "too late")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retriable, "{error}");
    drop(open);
    assert!(matches!(first.begin().err(), Some(Error::NotInitialised)));
    let error = first.initialise().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    commit(&mut second, topic, "of the second");
    assert_eq!(
        broker.committed_values(&partitions, "of the second"),
        ["of the second"]
    );

    // The other way to notice it: at the commit.
    let mut open = second.begin().unwrap();
    open.send(vec![record(topic, "k", "never either")]).unwrap();
    let mut third = new();
    third.initialise().unwrap();
    let error = open.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retriable, "{error}");
    let error = second.initialise().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    commit(&mut third, topic, "of the third");
    assert_eq!(
        broker.committed_values(&partitions, "of the third"),
        ["of the second", "of the third"]
    );
}

/// Whoever has lost an answer asks for its id again; meanwhile another one may have been asked to take over.
fn a_doubt_does_not_take_the_id_back_from_its_successor(broker: &Broker) {
    let partitions = broker.topic("succeeded", 1);
    let topic = &partitions[0].topic;
    let (id, client) = (unique("succeeded"), unique("client"));
    let new = |config| {
        Producer::transactional(
            config,
            Interrupt::new(),
            id.clone(),
            Duration::from_secs(60),
        )
    };
    let (mut doubting, mut successor) = (new(broker.proxied(&client)), new(broker.config()));
    doubting.initialise().unwrap();
    commit(&mut doubting, topic, "before");
    let mut lost = doubting.begin().unwrap();
    lost.send(vec![record(topic, "k", "committed, but not acknowledged")])
        .unwrap();
    broker.proxy.lose_answer(&client, END_TXN, Loss::Cut);
    lost.commit().unwrap_err();
    // nobody has taken over yet
    doubting.initialise().unwrap();
    commit(&mut doubting, topic, "again");
    let mut lost = doubting.begin().unwrap();
    lost.send(vec![record(
        topic,
        "k",
        "committed, but not acknowledged either",
    )])
    .unwrap();
    broker.proxy.lose_answer(&client, END_TXN, Loss::Cut);
    lost.commit().unwrap_err();

    successor.initialise().unwrap();
    for _ in 0..2 {
        let error = doubting.initialise().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    }
    commit(&mut successor, topic, "of the successor");
    let all = [
        "before",
        "committed, but not acknowledged",
        "again",
        "committed, but not acknowledged either",
        "of the successor",
    ];
    assert_eq!(
        broker.committed_values(&partitions, "of the successor"),
        all
    );
}

fn a_transaction_that_ran_out_of_time_is_no_fencing(broker: &Broker) {
    let partitions = broker.topic("late", 1);
    let topic = &partitions[0].topic;
    let mut producer = Producer::transactional(
        broker.config(),
        Interrupt::new(),
        unique("late"),
        Duration::from_secs(10),
    );
    producer.initialise().unwrap();
    let mut late = producer.begin().unwrap();
    late.send(vec![record(topic, "k", "too late")]).unwrap();
    // the broker's marker moves the reader on
    let mut reader = broker.reader(&partitions, Isolation::ReadCommitted);
    wait_until("the broker to end it", || {
        assert_eq!(records(reader.poll().unwrap()).len(), 0);
        reader.position(&partitions[0]) == Some(2)
    });
    let error = late.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retriable, "{error}");
    producer.initialise().unwrap();
    commit(&mut producer, topic, "in time");
    assert_eq!(broker.committed_values(&partitions, "in time"), ["in time"]);
}

/// A hundred records of 1,000 bytes and one that no batch can carry.
fn a_batch_that_is_too_large_for_its_topic_is_halved_until_it_fits(broker: &Broker) {
    let small = broker.topic_with("halved", 1, &[("max.message.bytes", "3000")]);
    let topic = &small[0].topic;
    let values = |from: usize| {
        (from..from + 100)
            .map(|number| format!("{number:0>1000}"))
            .collect::<Vec<_>>()
    };
    let all = |from| {
        values(from)
            .iter()
            .map(|value| record(topic, "k", value))
            .collect::<Vec<_>>()
    };
    let mut single = Producer::idempotent(broker.config(), Interrupt::new());
    let written = single.send(all(0)).unwrap();
    assert_eq!(
        written,
        (0..100)
            .map(|offset| Written {
                partition: 0,
                offset: Some(offset)
            })
            .collect::<Vec<_>>()
    );
    let mut producer = producer(broker.config());
    let mut transaction = producer.begin().unwrap();
    transaction.send(all(100)).unwrap();
    transaction.commit().unwrap();
    let mut with_a_giant = all(200);
    with_a_giant.insert(50, record(topic, "k", &"x".repeat(4000)));
    let mut transaction = producer.begin().unwrap();
    let refused = transaction.send(with_a_giant).unwrap_err();
    assert_eq!(
        refused.code(),
        Some(ErrorCode::MESSAGE_TOO_LARGE),
        "{refused}"
    );
    transaction.abort().unwrap();
    single.send(vec![record(topic, "k", "end")]).unwrap();
    let expected: Vec<String> = [values(0), values(100), vec!["end".to_owned()]].concat();
    assert_eq!(broker.committed_values(&small, "end"), expected);
}

/// 1,000 bytes of value, 24 at most around them and their key: seven of them are fewer than 7,500 bytes, eight are more.
fn the_size_that_a_topic_takes_is_remembered(broker: &Broker) {
    let small = broker.topic_with("remembered", 1, &[("max.message.bytes", "3000")]);
    let client = unique("client");
    let mut producer = Producer::idempotent(broker.proxied(&client), Interrupt::new());
    let mut calls = |from: usize| {
        let values = (from..from + 64).map(|number| format!("{number:0>100}"));
        producer
            .send(
                values
                    .map(|value| record(&small[0].topic, "k", &value))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        broker
            .proxy
            .take_calls(&client)
            .into_iter()
            .filter(|api| *api == PRODUCE)
            .count()
    };
    // 64 and 32 are refused, then four times 16 are written
    assert_eq!(calls(0), 6);
    assert_eq!(calls(64), 4);
    let expected: Vec<String> = (0..128).map(|number| format!("{number:0>100}")).collect();
    assert_eq!(broker.committed_values(&small, &expected[127]), expected);
}

fn the_size_of_batches_is_a_setting(broker: &Broker) {
    let small = broker.topic_with("sized", 1, &[("max.message.bytes", "7500")]);
    let client = unique("client");
    let config = Config {
        batch_size: 7_300,
        ..broker.proxied(&client)
    };
    let mut producer = Producer::idempotent(config, Interrupt::new());
    producer
        .send(
            (0..70)
                .map(|number| record(&small[0].topic, "k", &format!("{number:0>1000}")))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    let sent = broker
        .proxy
        .take_calls(&client)
        .into_iter()
        .filter(|api| *api == PRODUCE)
        .count();
    assert_eq!(sent, 10);
}

fn a_dropped_transaction_is_never_seen(broker: &Broker) {
    let partitions = broker.topic("dropped", 1);
    let topic = &partitions[0].topic;
    let mut producer = producer(broker.config());
    let mut dropped = producer.begin().unwrap();
    dropped.send(vec![record(topic, "k", "dropped")]).unwrap();
    drop(dropped);
    assert!(matches!(
        producer.begin().err(),
        Some(Error::NotInitialised)
    ));
    producer.initialise().unwrap();
    commit(&mut producer, topic, "kept");
    assert_eq!(broker.committed_values(&partitions, "kept"), ["kept"]);
}

fn a_position_is_read_back_exactly_with_its_transaction(broker: &Broker) {
    let partitions = broker.topic("position", 6);
    let topic = &*partitions[0].topic;
    let group = unique("position-group");
    let mut producer = producer(broker.config());
    let mut admin = broker.admin();
    let mut found = || {
        admin
            .committed_offsets(&group, &[(topic.to_owned(), 0)], true)
            .unwrap()
            .remove(0)
    };
    assert_eq!((found().offset, found().metadata.as_str()), (-1, ""));
    for turn in 1..=100 {
        let mut transaction = producer.begin().unwrap();
        transaction
            .send(
                (0..50)
                    .map(|n| record(topic, &format!("{n}"), "v"))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        transaction
            .commit_offsets(&group, None, &at(topic, turn, &format!("turn {turn}")))
            .unwrap();
        transaction.commit().unwrap();
        // Right after the commit and over a warm connection, where an unstable read is mostly the one before.
        let found = found();
        assert_eq!(
            (found.offset, found.metadata),
            (turn, format!("turn {turn}"))
        );
    }
    let mut aborted = producer.begin().unwrap();
    aborted.send(vec![record(topic, "k", "v")]).unwrap();
    aborted
        .commit_offsets(&group, None, &at(topic, 999, "aborted"))
        .unwrap();
    aborted.abort().unwrap();
    assert_eq!(found().metadata, "turn 100");
}

fn a_committed_transaction_whose_answer_was_lost_is_known_by_its_position(broker: &Broker) {
    let partitions = broker.topic("lost-end", 1);
    let topic = &partitions[0].topic;
    let (group, client) = (unique("lost-end-group"), unique("client"));
    let mut producer = producer(broker.impatient(&client));
    for (turn, loss) in [(1, Loss::Silence), (2, Loss::Cut)] {
        let mut transaction = producer.begin().unwrap();
        transaction
            .send(vec![record(topic, "k", &format!("turn {turn}"))])
            .unwrap();
        transaction
            .commit_offsets(&group, None, &at(topic, turn, &format!("turn {turn}")))
            .unwrap();
        broker.proxy.lose_answer(&client, END_TXN, loss);
        let lost = transaction.commit().unwrap_err();
        assert!(broker.proxy.has_lost(&client, END_TXN));
        assert!(
            matches!(lost, Error::Timeout { .. } | Error::Io { .. }),
            "{lost}"
        );
        assert_eq!(lost.kind(), ErrorKind::Retriable);
        assert!(matches!(
            producer.begin().err(),
            Some(Error::NotInitialised)
        ));
        producer.initialise().unwrap();
        assert_eq!(
            committed(broker, &group, topic).metadata,
            format!("turn {turn}")
        );
    }
    assert_eq!(
        broker.committed_values(&partitions, "turn 2"),
        ["turn 1", "turn 2"]
    );
}

fn an_open_transaction_whose_position_answer_was_lost_is_never_seen(broker: &Broker) {
    let partitions = broker.topic("lost-position", 1);
    let topic = &partitions[0].topic;
    let (group, client) = (unique("lost-position-group"), unique("client"));
    let mut producer = producer(broker.proxied(&client));
    let mut transaction = producer.begin().unwrap();
    transaction.send(vec![record(topic, "k", "never")]).unwrap();
    broker
        .proxy
        .lose_answer(&client, TXN_OFFSET_COMMIT, Loss::Cut);
    transaction
        .commit_offsets(&group, None, &at(topic, 1, "never"))
        .unwrap_err();
    assert!(matches!(transaction.abort(), Err(Error::NotInitialised)));
    producer.initialise().unwrap();
    assert_eq!(committed(broker, &group, topic).offset, -1);
    commit(&mut producer, topic, "next");
    assert_eq!(broker.committed_values(&partitions, "next"), ["next"]);
}

fn after_a_batch_that_stays_lost_only_a_new_epoch_goes_on(broker: &Broker) {
    let partitions = broker.topic("lost-produce", 1);
    let topic = &partitions[0].topic;
    let client = unique("client");
    let impatient = broker.impatient(&client);
    let mut producer = producer(Config {
        delivery_timeout: impatient.request_timeout,
        ..impatient
    });
    let before = producer.identity().unwrap();
    let mut transaction = producer.begin().unwrap();
    broker.proxy.lose_answer(&client, PRODUCE, Loss::Silence);
    let lost = transaction
        .send(vec![record(topic, "k", "lost")])
        .unwrap_err();
    assert!(broker.proxy.has_lost(&client, PRODUCE));
    assert_eq!(lost.kind(), ErrorKind::Retriable, "{lost}");
    assert!(matches!(transaction.abort(), Err(Error::NotInitialised)));
    assert!(matches!(
        producer.begin().err(),
        Some(Error::NotInitialised)
    ));
    let after = producer.initialise().unwrap();
    assert!(after.epoch > before.epoch);
    commit(&mut producer, topic, "kept");
    assert_eq!(broker.committed_values(&partitions, "kept"), ["kept"]);
}

fn a_lost_produce_answer_is_cured_within_its_transaction(broker: &Broker) {
    let partitions = broker.topic("cured-produce", 1);
    let topic = &partitions[0].topic;
    let client = unique("client");
    let mut producer = producer(broker.proxied(&client));
    for turn in 0..4 {
        let mut transaction = producer.begin().unwrap();
        broker.proxy.lose_answer(&client, PRODUCE, Loss::Cut);
        transaction
            .send(vec![record(topic, "k", &format!("{turn}"))])
            .unwrap();
        assert!(broker.proxy.has_lost(&client, PRODUCE));
        transaction.commit().unwrap();
    }
    assert_eq!(
        broker.committed_values(&partitions, "3"),
        ["0", "1", "2", "3"]
    );
}

fn without_transactions_a_lost_produce_answer_neither_loses_nor_repeats(broker: &Broker) {
    let partitions = broker.topic("idempotent", 1);
    let topic = &partitions[0].topic;
    let client = unique("client");
    let mut producer = Producer::idempotent(broker.proxied(&client), Interrupt::new());
    for turn in 0..4 {
        broker.proxy.lose_answer(&client, PRODUCE, Loss::Cut);
        producer
            .send(vec![record(topic, "k", &format!("{turn}"))])
            .unwrap();
        assert!(broker.proxy.has_lost(&client, PRODUCE));
    }
    producer.send(vec![record(topic, "k", "last")]).unwrap();
    assert_eq!(
        broker.committed_values(&partitions, "last"),
        ["0", "1", "2", "3", "last"]
    );
}

fn a_send_larger_than_a_batch_arrives_whole_and_in_order(broker: &Broker) {
    let partitions = broker.topic("large", 2);
    let topic = &partitions[0].topic;
    let mut producer = producer(broker.config());
    let mut transaction = producer.begin().unwrap();
    let padding = "x".repeat(10_000);
    let sent = (0..500).map(|n| kafka::ProducerRecord {
        partition: Some(n % 2),
        ..record(topic, "k", &format!("{n} {padding}"))
    });
    transaction.send(sent.collect::<Vec<_>>()).unwrap();
    transaction.commit().unwrap();
    for partition in &partitions {
        let last = format!("{} {padding}", 498 + partition.partition);
        let seen = broker.committed_values(std::slice::from_ref(partition), &last);
        let numbers: Vec<i32> = seen
            .iter()
            .map(|value| value.split(' ').next().unwrap().parse().unwrap())
            .collect();
        let expected: Vec<i32> = (0..250).map(|n| 2 * n + partition.partition).collect();
        assert_eq!(numbers, expected);
    }
    let too_large = kafka::ProducerRecord {
        value: Some(Bytes::from(vec![0; 2 << 20])),
        ..record(topic, "k", "")
    };
    let mut transaction = producer.begin().unwrap();
    let refused = transaction.send(vec![too_large]).unwrap_err();
    assert_eq!(
        refused.code(),
        Some(ErrorCode::MESSAGE_TOO_LARGE),
        "{refused}"
    );
    transaction.abort().unwrap();
}

fn an_empty_transaction_leaves_nothing_behind(broker: &Broker) {
    let partitions = broker.topic("empty", 1);
    let mut producer = producer(broker.config());
    producer.begin().unwrap().commit().unwrap();
    producer.begin().unwrap().abort().unwrap();
    drop(producer.begin().unwrap());
    let mut transaction = producer.begin().unwrap();
    let wrong = kafka::ProducerRecord {
        partition: Some(7),
        ..record(&partitions[0].topic, "k", "v")
    };
    assert!(matches!(
        transaction.send(vec![wrong]),
        Err(Error::Invalid(_))
    ));
    transaction.abort().unwrap();
    commit(&mut producer, &partitions[0].topic, "only");
    assert_eq!(broker.committed_values(&partitions, "only"), ["only"]);
}

fn transactions_back_to_back_are_all_there(broker: &Broker) {
    let partitions = broker.topic("back-to-back", 2);
    let topic = &partitions[0].topic;
    let mut producer = producer(broker.config());
    for turn in 0..100 {
        commit(&mut producer, topic, &format!("{turn}"));
    }
    let expected: Vec<String> = (0..100).map(|turn| turn.to_string()).collect();
    assert_eq!(broker.committed_values(&partitions, "99"), expected);
    let places: Vec<_> = partitions
        .iter()
        .map(|one| (topic.to_string(), one.partition))
        .collect();
    let ends = broker
        .admin()
        .list_offsets(&places, OffsetSpec::Latest, Isolation::ReadCommitted)
        .unwrap();
    // Every transaction has one record and one marker, all of them in the partition of the key.
    assert_eq!(ends.iter().map(|end| end.offset).sum::<i64>(), 200);
}

fn mark(value: &str) -> kafka::Header {
    (
        StrBytes::from_static_str("mark"),
        Some(Bytes::copy_from_slice(value.as_bytes())),
    )
}

fn is_marked(record: &Record) -> bool {
    record.headers.iter().any(|(name, _)| &**name == "mark")
}

/// The last marked record of each partition: its number, its value, its mark.
fn marked(
    config: &Config,
    topic: &str,
    ends: Isolation,
) -> kafka::Result<Vec<(i32, String, String)>> {
    let found = last_records(
        config,
        &Interrupt::new(),
        &[topic.to_owned()],
        ends,
        is_marked,
    )?;
    let text = |record: &Record| {
        String::from_utf8(record.headers[0].1.as_ref().unwrap().to_vec()).unwrap()
    };
    let mut found: Vec<_> = found
        .iter()
        .map(|(place, record)| (place.partition, value_of(record), text(record)))
        .collect();
    found.sort();
    Ok(found)
}

fn to(topic: &str, partition: i32, value: &str) -> ProducerRecord {
    ProducerRecord {
        partition: Some(partition),
        ..record(topic, "k", value)
    }
}

fn the_last_marked_record_of_each_partition_is_found(broker: &Broker) {
    let partitions = broker.topic("marked", 4);
    let topic = &*partitions[0].topic;
    let mut producer = producer(broker.config());
    let config = broker.config();
    assert_eq!(
        marked(&config, topic, Isolation::ReadUncommitted).unwrap(),
        []
    );
    // to partitions 0, 1 and 2, then 1 and 2, then 2; two records each time, the second is marked
    for turn in 0..3 {
        let mut transaction = producer.begin().unwrap();
        let records = (turn..3).flat_map(|place| {
            [
                to(topic, place, "first"),
                to(topic, place, &format!("{turn}")),
            ]
        });
        transaction
            .send_marked(records.collect::<Vec<_>>(), &mark(&format!("turn {turn}")))
            .unwrap();
        transaction.commit().unwrap();
    }
    // behind them: an aborted transaction, and more than one look takes of records without a mark
    let mut aborted = producer.begin().unwrap();
    aborted
        .send_marked(
            (0..4)
                .map(|place| to(topic, place, "aborted"))
                .collect::<Vec<_>>(),
            &mark("aborted"),
        )
        .unwrap();
    aborted.abort().unwrap();
    let mut other = Producer::idempotent(broker.config(), Interrupt::new());
    for n in 0..300 {
        other
            .send([
                to(topic, 0, &format!("foreign {n}")),
                to(topic, 3, "foreign"),
            ])
            .unwrap();
    }
    let expected = [(0, "0", "turn 0"), (1, "1", "turn 1"), (2, "2", "turn 2")];
    let expected = expected.map(|(place, value, mark)| (place, value.to_owned(), mark.to_owned()));
    assert_eq!(
        marked(&config, topic, Isolation::ReadUncommitted).unwrap(),
        expected
    );
    let missing = marked(&config, "no-such-topic", Isolation::ReadUncommitted).unwrap_err();
    assert_eq!(
        missing.code(),
        Some(ErrorCode(3)),
        "UNKNOWN_TOPIC_OR_PARTITION: {missing}"
    );
}

fn an_open_transaction_at_the_end_is_waited_for_or_left_out(broker: &Broker) {
    let partitions = broker.topic("undecided", 1);
    let topic = &*partitions[0].topic;
    let (mut ours, mut theirs) = (producer(broker.config()), producer(broker.config()));
    let write = |producer: &mut Producer, value: &str| {
        let mut transaction = producer.begin().unwrap();
        transaction
            .send_marked(vec![record(topic, "k", value)], &mark(value))
            .unwrap();
        transaction.commit().unwrap();
    };
    write(&mut ours, "before");
    let mut open = theirs.begin().unwrap();
    open.send(vec![record(topic, "k", "open")]).unwrap();
    write(&mut ours, "behind");
    let found = |value: &str| vec![(0, value.to_owned(), value.to_owned())];
    let decided = || marked(&broker.config(), topic, Isolation::ReadCommitted).unwrap();
    wait_until("the markers of the first", || decided() == found("before"));
    let hasty = Config {
        api_timeout: Duration::from_secs(10),
        ..broker.config()
    };
    let undecided = marked(&hasty, topic, Isolation::ReadUncommitted).unwrap_err();
    assert!(
        matches!(&undecided, Error::Undecided { offset: 2, .. }),
        "{undecided}"
    );
    open.commit().unwrap();
    assert_eq!(
        marked(&broker.config(), topic, Isolation::ReadUncommitted).unwrap(),
        found("behind")
    );
}

/// The values read of these spans; `after`: what to do after one.
fn read(
    config: &Config,
    partition: &TopicPartition,
    spans: &[(i64, i64)],
    after: impl Fn(&str) -> ControlFlow<()>,
) -> kafka::Result<Vec<String>> {
    let span = |(from, until): &(i64, i64)| Span {
        partition: partition.clone(),
        from: *from,
        until: *until,
    };
    let mut values = Vec::new();
    let spans = spans.iter().map(span).collect();
    read_spans(
        config,
        &Interrupt::new(),
        spans,
        Duration::from_secs(60),
        |_, record| {
            values.push(value_of(&record));
            after(&value_of(&record))
        },
    )?;
    Ok(values)
}

fn spans_are_read_from_one_offset_to_another_and_only_what_is_committed(broker: &Broker) {
    let partition = broker.topic("spans", 1).remove(0);
    let topic = &*partition.topic;
    let mut producer = producer(broker.config());
    // a marker stands behind each transaction: a 0, b 1, aborted 3, d 5, e 7, f 8, g 9
    for (values, is_kept) in [
        (&["a", "b"][..], true),
        (&["aborted"], false),
        (&["d"], true),
        (&["e", "f", "g"], true),
    ] {
        let mut transaction = producer.begin().unwrap();
        transaction
            .send(
                values
                    .iter()
                    .map(|value| to(topic, 0, value))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        if is_kept {
            transaction.commit().unwrap()
        } else {
            transaction.abort().unwrap()
        }
    }
    let config = broker.config();
    let on = |spans: &[(i64, i64)]| {
        read(&config, &partition, spans, |_| ControlFlow::Continue(())).unwrap()
    };
    assert_eq!(on(&[]), [""; 0]);
    assert_eq!(on(&[(1, 6)]), ["b", "d"]);
    assert_eq!(on(&[(0, 1), (8, 9)]), ["a", "f"]);
    assert_eq!(on(&[(3, 3), (2, 5), (9, 11)]), ["g"]);
    assert_eq!(on(&[(500, 600)]), [""; 0], "behind the log's end");
    let after_b = |reading| {
        let spans = [(0, 6), (7, 8), (9, 10)];
        read(&config, &partition, &spans, move |value| {
            if value == "b" {
                reading
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap()
    };
    assert_eq!(
        after_b(ControlFlow::Continue(())),
        ["a", "b", "d", "e", "g"]
    );
    assert_eq!(after_b(ControlFlow::Break(())), ["a", "b"]);
    let span = Span {
        partition: partition.clone(),
        from: 0,
        until: 10,
    };
    let late = read_spans(
        &config,
        &Interrupt::new(),
        vec![span],
        Duration::ZERO,
        |_, _| ControlFlow::Continue(()),
    );
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
}
