//! Refusals of every class, each in the answer to each request that may get it: what passes is got over, what it says is
//! looked up again, what ends an epoch or a membership is told. The broker has executed the request each time, so nothing
//! may be done twice either.

mod common;

use std::time::Duration;

use common::proxy::*;
use common::{Broker, at, record, records, unique, value_of, wait_until};
use kafka::{
    CommittedOffset, Consumer, ErrorKind, FetchConfig, Group, GroupConfig, Interrupt, Isolation,
    OffsetSpec, Producer, TopicPartition,
};

on_both_lines! {
    a_transaction_gets_over_what_passes_and_asks_again_who_is_responsible
    what_ends_an_epoch_ends_the_transaction_and_only_a_new_epoch_goes_on
    an_end_that_was_refused_although_it_was_executed_is_known_by_its_position
    a_refused_identity_is_asked_for_again
    a_reader_gets_over_what_passes_and_asks_again_who_leads
    an_offset_that_is_said_to_be_out_of_range_and_is_not_is_read_on
    offsets_are_found_although_the_answer_was_refused
    a_member_gets_over_what_passes_and_joins_again_when_its_place_is_lost
    a_heartbeat_that_is_refused_makes_the_member_join_again
    a_commit_of_offsets_reports_that_the_place_is_lost
}

// Kafka's codes; their names are in the comments of the tables below.
const NOTHING: Option<i16> = None;
const LEADER: Option<i16> = Some(METADATA);
const COORDINATOR: Option<i16> = Some(FIND_COORDINATOR);

/// Request, code, and what is looked up after it.
const PASSING: [(i16, i16, Option<i16>); 19] = [
    (ADD_PARTITIONS_TO_TXN, 14, NOTHING), // COORDINATOR_LOAD_IN_PROGRESS
    (ADD_PARTITIONS_TO_TXN, 15, COORDINATOR), // COORDINATOR_NOT_AVAILABLE
    (ADD_PARTITIONS_TO_TXN, 16, COORDINATOR), // NOT_COORDINATOR
    (ADD_PARTITIONS_TO_TXN, 51, NOTHING), // CONCURRENT_TRANSACTIONS
    (ADD_OFFSETS_TO_TXN, 14, NOTHING),
    (ADD_OFFSETS_TO_TXN, 16, COORDINATOR),
    (ADD_OFFSETS_TO_TXN, 51, NOTHING),
    (TXN_OFFSET_COMMIT, 14, NOTHING),
    (TXN_OFFSET_COMMIT, 15, COORDINATOR),
    (TXN_OFFSET_COMMIT, 16, COORDINATOR),
    (END_TXN, 14, NOTHING),
    (END_TXN, 15, COORDINATOR),
    (END_TXN, 16, COORDINATOR),
    (END_TXN, 51, NOTHING),
    (PRODUCE, 6, LEADER),   // NOT_LEADER_OR_FOLLOWER
    (PRODUCE, 7, NOTHING),  // REQUEST_TIMED_OUT
    (PRODUCE, 20, NOTHING), // NOT_ENOUGH_REPLICAS_AFTER_APPEND
    (PRODUCE, 56, LEADER),  // KAFKA_STORAGE_ERROR
    (PRODUCE, 74, LEADER),  // FENCED_LEADER_EPOCH
];

/// Request and code, each ending the epoch.
const ENDING: [(i16, i16); 14] = [
    (PRODUCE, 45), // OUT_OF_ORDER_SEQUENCE_NUMBER
    (PRODUCE, 46), // DUPLICATE_SEQUENCE_NUMBER
    (PRODUCE, 59), // UNKNOWN_PRODUCER_ID
    (PRODUCE, 47), // INVALID_PRODUCER_EPOCH
    (PRODUCE, 48), // INVALID_TXN_STATE
    (ADD_PARTITIONS_TO_TXN, 47),
    (ADD_PARTITIONS_TO_TXN, 48),
    (ADD_PARTITIONS_TO_TXN, 49), // INVALID_PRODUCER_ID_MAPPING
    (ADD_PARTITIONS_TO_TXN, 90), // PRODUCER_FENCED
    (ADD_OFFSETS_TO_TXN, 48),
    (ADD_OFFSETS_TO_TXN, 90),
    (TXN_OFFSET_COMMIT, 47),
    (TXN_OFFSET_COMMIT, 49),
    (TXN_OFFSET_COMMIT, 90),
];

/// A transactional producer behind the proxy.
struct Writer {
    client: String,
    group: String,
    partitions: Vec<TopicPartition>,
    producer: Producer,
}

impl Writer {
    fn new(broker: &Broker, stem: &str) -> Writer {
        let (client, partitions) = (unique("client"), broker.topic(stem, 1));
        let id = unique("refused-id");
        let mut producer = Producer::transactional(
            broker.proxied(&client),
            Interrupt::new(),
            id,
            Duration::from_secs(60),
        );
        producer.initialise().unwrap();
        Writer {
            client,
            group: unique("refused-group"),
            partitions,
            producer,
        }
    }

    /// One record and a position, as far as it goes.
    fn write(&mut self, value: &str, position: i64) -> kafka::Result<()> {
        let topic = self.partitions[0].topic.clone();
        let mut transaction = self.producer.begin()?;
        transaction.send(vec![record(&topic, "k", value)])?;
        transaction.commit_offsets(&self.group, None, &at(&topic, position, value))?;
        transaction.commit()
    }

    fn position(&self, broker: &Broker) -> CommittedOffset {
        let place = [(self.partitions[0].topic.to_string(), 0)];
        broker
            .admin()
            .committed_offsets(&self.group, &place, true)
            .unwrap()
            .remove(0)
    }
}

fn a_transaction_gets_over_what_passes_and_asks_again_who_is_responsible(broker: &Broker) {
    let mut writer = Writer::new(broker, "passing");
    writer.write("first", 0).unwrap();
    let mut expected = vec!["first".to_string()];
    for (number, (api, code, looked_up)) in (1..).zip(PASSING) {
        let value = format!("{api} {code}");
        broker.proxy.refuse(&writer.client, api, code, 2);
        broker.proxy.take_calls(&writer.client);
        writer
            .write(&value, number)
            .unwrap_or_else(|error| panic!("API {api}, code {code}: {error}"));
        assert!(
            broker.proxy.has_lost(&writer.client, api),
            "API {api} was not called twice"
        );
        let calls = broker.proxy.take_calls(&writer.client);
        for lookup in [METADATA, FIND_COORDINATOR] {
            let wanted = looked_up == Some(lookup);
            assert_eq!(
                calls.contains(&lookup),
                wanted,
                "API {api}, code {code}: lookup {lookup} among {calls:?}"
            );
        }
        expected.push(value);
    }
    assert_eq!(
        broker.committed_values(&writer.partitions, expected.last().unwrap()),
        expected
    );
    assert_eq!(writer.position(broker).offset, PASSING.len() as i64);
}

fn what_ends_an_epoch_ends_the_transaction_and_only_a_new_epoch_goes_on(broker: &Broker) {
    let mut writer = Writer::new(broker, "ending");
    let mut expected = vec![];
    for (number, (api, code)) in (1..).zip(ENDING) {
        let before = writer.producer.identity().unwrap();
        // waits for the end of the transaction before: the refused request is executed, and begins another one
        writer.position(broker);
        broker.proxy.refuse(&writer.client, api, code, 1);
        let refused = writer.write("never", -number).unwrap_err();
        assert_eq!(refused.code().map(|code| code.0), Some(code), "{refused}");
        // whether another has taken over, the next identity tells
        assert_eq!(refused.kind(), ErrorKind::Retriable, "{refused}");
        assert!(
            matches!(
                writer.producer.begin().err(),
                Some(kafka::Error::NotInitialised)
            ),
            "after {refused}"
        );
        let after = writer.producer.initialise();
        let after = after.unwrap_or_else(|error| panic!("after {api} {code}: {error}"));
        assert!((after.id, after.epoch) > (before.id, before.epoch));
        let value = format!("{api} {code}");
        writer.write(&value, number).unwrap();
        expected.push(value);
    }
    assert_eq!(
        broker.committed_values(&writer.partitions, expected.last().unwrap()),
        expected
    );
    assert_eq!(writer.position(broker).offset, ENDING.len() as i64);
}

fn an_end_that_was_refused_although_it_was_executed_is_known_by_its_position(broker: &Broker) {
    let mut writer = Writer::new(broker, "ends");
    let mut expected = vec![];
    // INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE, INVALID_PRODUCER_ID_MAPPING, PRODUCER_FENCED, UNKNOWN_SERVER_ERROR
    for (number, code) in (1..).zip([47, 48, 49, 90, -1]) {
        broker.proxy.refuse(&writer.client, END_TXN, code, 1);
        let value = format!("ended {code}");
        let refused = writer.write(&value, number).unwrap_err();
        assert_eq!(refused.code().map(|code| code.0), Some(code), "{refused}");
        assert!(
            matches!(
                writer.producer.begin().err(),
                Some(kafka::Error::NotInitialised)
            ),
            "after {refused}"
        );
        writer.producer.initialise().unwrap();
        assert_eq!(writer.position(broker).metadata, value, "it was committed");
        expected.push(value);
    }
    assert_eq!(
        broker.committed_values(&writer.partitions, expected.last().unwrap()),
        expected
    );
}

fn a_refused_identity_is_asked_for_again(broker: &Broker) {
    let mut writer = Writer::new(broker, "identity");
    for (code, looked_up) in [
        (14, NOTHING),
        (15, COORDINATOR),
        (16, COORDINATOR),
        (51, NOTHING),
    ] {
        let before = writer.producer.identity().unwrap();
        broker
            .proxy
            .refuse(&writer.client, INIT_PRODUCER_ID, code, 2);
        broker.proxy.take_calls(&writer.client);
        let after = writer.producer.initialise().unwrap();
        // whoever shows the identity it had gets the next one once
        assert_eq!(after.epoch, before.epoch + 1);
        let calls = broker.proxy.take_calls(&writer.client);
        assert_eq!(
            calls.contains(&FIND_COORDINATOR),
            looked_up.is_some(),
            "code {code}: {calls:?}"
        );
    }
    writer.write("last", 1).unwrap();
    assert_eq!(
        broker.committed_values(&writer.partitions, "last"),
        ["last"]
    );
}

/// A reader behind the proxy from the beginning.
fn reader(broker: &Broker, client: &str, partitions: &[TopicPartition]) -> Consumer {
    let fetch = FetchConfig {
        isolation: Isolation::ReadCommitted,
        max_wait: Duration::from_millis(50),
        ..FetchConfig::default()
    };
    let mut consumer = Consumer::new(broker.proxied(client), Interrupt::new(), fetch);
    consumer.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    );
    consumer
}

fn a_reader_gets_over_what_passes_and_asks_again_who_leads(broker: &Broker) {
    let mut writer = Writer::new(broker, "reading");
    let client = unique("client");
    let mut consumer = reader(broker, &client, &writer.partitions);
    let (mut expected, mut seen) = (vec![], vec![]);
    // NOT_LEADER_OR_FOLLOWER, KAFKA_STORAGE_ERROR, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, OFFSET_NOT_AVAILABLE
    for (number, (code, looked_up)) in
        (1..).zip([(6, true), (56, true), (74, true), (75, false), (78, false)])
    {
        broker.proxy.refuse(&client, FETCH, code, 2);
        broker.proxy.take_calls(&client);
        let value = format!("after {code}");
        writer.write(&value, number).unwrap();
        expected.push(value.clone());
        wait_until(&value, || {
            // an error that passes may be given, and the next poll goes on
            match consumer.poll() {
                Ok(polled) => seen.extend(records(polled).iter().map(value_of)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Retriable, "{error}"),
            }
            seen.contains(&value) && broker.proxy.has_lost(&client, FETCH)
        });
        let calls = broker.proxy.take_calls(&client);
        assert!(
            !looked_up || calls.contains(&METADATA),
            "code {code}: {calls:?}"
        );
    }
    assert_eq!(seen, expected);
}

fn an_offset_that_is_said_to_be_out_of_range_and_is_not_is_read_on(broker: &Broker) {
    let mut writer = Writer::new(broker, "range");
    writer.write("kept", 1).unwrap();
    let client = unique("client");
    let mut consumer = reader(broker, &client, &writer.partitions);
    broker.proxy.refuse(&client, FETCH, 1, 1); // OFFSET_OUT_OF_RANGE
    let mut seen = vec![];
    wait_until("the record", || {
        seen.extend(records(consumer.poll().unwrap()).iter().map(value_of));
        !seen.is_empty()
    });
    assert_eq!(seen, ["kept"]);
    // what the broker really has is looked up before anybody is told of a gap
    assert!(broker.proxy.take_calls(&client).contains(&LIST_OFFSETS));
}

fn offsets_are_found_although_the_answer_was_refused(broker: &Broker) {
    let mut writer = Writer::new(broker, "listing");
    writer.write("one", 7).unwrap();
    // an end is answered before its markers are written: the record is visible only after them
    assert_eq!(broker.committed_values(&writer.partitions, "one"), ["one"]);
    let (client, topic) = (unique("client"), writer.partitions[0].topic.to_string());
    let mut admin = kafka::Admin::new(broker.proxied(&client), Interrupt::new());
    for code in [6, 74] {
        broker.proxy.refuse(&client, LIST_OFFSETS, code, 2);
        let ends = admin
            .list_offsets(
                &[(topic.clone(), 0)],
                OffsetSpec::Latest,
                Isolation::ReadCommitted,
            )
            .unwrap();
        // the record and its marker
        assert_eq!(ends[0].offset, 2, "after code {code}");
    }
    // and UNSTABLE_OFFSET_COMMIT
    for code in [14, 15, 16, 88] {
        broker.proxy.refuse(&client, OFFSET_FETCH, code, 2);
        let committed = admin
            .committed_offsets(&writer.group, &[(topic.clone(), 0)], true)
            .unwrap();
        assert_eq!(
            (committed[0].offset, &*committed[0].metadata),
            (7, "one"),
            "after code {code}"
        );
    }
}

/// So long that no place lapses.
const LONG_SESSION: Duration = Duration::from_secs(20);

fn member(broker: &Broker, client: &str, topic: &str, session_timeout: Duration) -> Group {
    let settings = GroupConfig {
        session_timeout,
        rebalance_timeout: Duration::from_secs(20),
        heartbeat_interval: Duration::from_secs(1),
        ..GroupConfig::new(unique("refused-member"), vec![topic.to_string()])
    };
    Group::new(broker.proxied(client), Interrupt::new(), settings)
}

fn a_member_gets_over_what_passes_and_joins_again_when_its_place_is_lost(broker: &Broker) {
    let partitions = broker.topic("members", 3);
    load_group_coordinators(broker, &partitions[0].topic);
    // the group waits until the place that a refused join was given lapses
    let short_session = Duration::from_secs(3);
    // COORDINATOR_LOAD_IN_PROGRESS, NOT_COORDINATOR; UNKNOWN_MEMBER_ID; ILLEGAL_GENERATION, REBALANCE_IN_PROGRESS
    let cases = [
        (JOIN_GROUP, 14),
        (JOIN_GROUP, 16),
        (JOIN_GROUP, 25),
        (SYNC_GROUP, 16),
        (SYNC_GROUP, 22),
        (SYNC_GROUP, 25),
        (SYNC_GROUP, 27),
    ];
    for (api, code) in cases {
        let client = unique("client");
        let mut member = member(broker, &client, &partitions[0].topic, short_session);
        broker.proxy.refuse(&client, api, code, 1);
        let joined = member
            .join()
            .unwrap_or_else(|error| panic!("API {api}, code {code}: {error}"));
        assert!(broker.proxy.has_lost(&client, api));
        assert_eq!(joined.partitions, partitions, "API {api}, code {code}");
        let calls = broker.proxy.take_calls(&client);
        // heartbeats, which come after it, look up a coordinator of their own
        let joined = calls
            .iter()
            .rposition(|call| *call == SYNC_GROUP)
            .expect("it has joined");
        let lookups = calls[..joined]
            .iter()
            .filter(|call| **call == FIND_COORDINATOR)
            .count();
        assert_eq!(lookups > 1, code == 16, "API {api}, code {code}: {calls:?}");
        drop(member.leave());
    }
}

/// Asks both partitions of the groups' topic, which these ids fall to. Until they are made and loaded, coordinators are
/// looked up again.
fn load_group_coordinators(broker: &Broker, topic: &str) {
    for group in ["loaded-0", "loaded-1"] {
        broker
            .admin()
            .committed_offsets(group, &[(topic.to_owned(), 0)], true)
            .unwrap();
    }
}

fn a_heartbeat_that_is_refused_makes_the_member_join_again(broker: &Broker) {
    let partitions = broker.topic("beating", 2);
    // REBALANCE_IN_PROGRESS, ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID
    for code in [27, 22, 25] {
        let client = unique("client");
        let mut member = member(broker, &client, &partitions[0].topic, LONG_SESSION);
        member.join().unwrap();
        assert!(!member.rejoin_needed());
        broker.proxy.refuse(&client, HEARTBEAT, code, 1);
        wait_until("a rejoin to be needed", || member.rejoin_needed());
        assert_eq!(
            member.join().unwrap().partitions,
            partitions,
            "after code {code}"
        );
        assert!(!member.rejoin_needed());
        drop(member.leave());
    }
    // one that only lost its coordinator keeps its place
    let client = unique("client");
    let mut member = member(broker, &client, &partitions[0].topic, LONG_SESSION);
    member.join().unwrap();
    broker.proxy.refuse(&client, HEARTBEAT, 16, 1);
    wait_until("the refusal", || broker.proxy.has_lost(&client, HEARTBEAT));
    broker.proxy.take_calls(&client);
    wait_until("the next heartbeat", || {
        broker.proxy.take_calls(&client).contains(&HEARTBEAT)
    });
    assert!(!member.rejoin_needed());
    drop(member.leave());
}

fn a_commit_of_offsets_reports_that_the_place_is_lost(broker: &Broker) {
    let partitions = broker.topic("committing", 1);
    let (client, topic) = (unique("client"), &partitions[0].topic);
    let mut member = member(broker, &client, topic, LONG_SESSION);
    member.join().unwrap();
    let news = [(partitions[0].clone(), 5, String::new())];
    for code in [14, 15, 16] {
        broker.proxy.refuse(&client, OFFSET_COMMIT, code, 2);
        member
            .commit_offsets(&news)
            .unwrap_or_else(|error| panic!("code {code}: {error}"));
    }
    for code in [22, 25, 27] {
        broker.proxy.refuse(&client, OFFSET_COMMIT, code, 1);
        let refused = member.commit_offsets(&news).unwrap_err();
        assert_eq!(
            (refused.code().map(|code| code.0), refused.kind()),
            (Some(code), ErrorKind::Retriable)
        );
        assert!(member.rejoin_needed(), "after code {code}");
        member.join().unwrap();
    }
    drop(member.leave());
}
