//! Three brokers, killed or frozen one after another under load: leaders and coordinators move, nothing is lost and nothing twice.

mod common;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{Broker, Line, at, record, records, unique, value_of, wait_until};
use kafka::{
    Admin, Config, Consumer, FetchConfig, Group, GroupConfig, GroupConsumer, Interrupt, NewTopic,
    Polled, Positions, Producer, ProducerRecord, TopicPartition, Transaction,
};

const PARTITIONS: i32 = 3;
/// The last value in each partition.
const END: &str = "end";

/// Turns that must succeed while a broker is away: each writes to every partition, so the others have taken over what it led.
const TURNS: i64 = 20;

/// Each broker leads a partition and is killed once, so the coordinators of the transactions and of both groups die as well.
#[test]
fn brokers_killed_one_after_another_lose_and_repeat_nothing() {
    hurt_each(Broker::kill, Broker::resume);
}

/// A frozen one does not know that it is replaced, and its connections stay open.
#[test]
fn brokers_frozen_one_after_another_lose_and_repeat_nothing() {
    hurt_each(
        |broker| broker.signal("-STOP"),
        |broker| broker.signal("-CONT"),
    );
}

/// A silent broker uses up an attempt, not the delivery: what it was sent goes to its successor under the same sequence numbers.
#[test]
fn a_frozen_leader_costs_a_producer_without_transactions_nothing_but_time() {
    let brokers = cluster();
    let config = Config {
        request_timeout: Duration::from_secs(3),
        ..config(&brokers)
    };
    let partitions = topic(&config);
    let mut producer = Producer::idempotent(config.clone(), Interrupt::new());
    let mut send = |round: usize| {
        let to = |partition| ProducerRecord {
            partition: Some(partition),
            timestamp: None,
            ..record(&partitions[0].topic, "k", &format!("round {round}"))
        };
        producer
            .send((0..PARTITIONS).map(to).collect::<Vec<_>>())
            .unwrap();
    };
    send(0);
    // each of them leads a partition
    brokers[1].signal("-STOP");
    send(1);
    brokers[1].signal("-CONT");
    send(2);
    let mut reader = Consumer::new(config, Interrupt::new(), FetchConfig::default());
    reader.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    );
    let mut read: Vec<(i32, String)> = Vec::new();
    let wanted: Vec<(i32, String)> = (0..PARTITIONS)
        .flat_map(|number| (0..3).map(move |round| (number, format!("round {round}"))))
        .collect();
    wait_until("all records", || {
        for polled in reader.poll().unwrap_or_default() {
            let Polled::Records {
                partition, records, ..
            } = polled
            else {
                panic!("{polled:?}")
            };
            read.extend(
                records
                    .iter()
                    .map(|record| (partition.partition, value_of(record))),
            );
        }
        read.len() >= wanted.len()
    });
    read.sort_by_key(|(partition, _)| *partition);
    assert_eq!(read, wanted);
}

/// The same in a transaction, and for what its coordinator and a group's are asked.
#[test]
fn frozen_leaders_and_coordinators_cost_a_transaction_nothing_but_time() {
    let brokers = cluster();
    let config = Config {
        request_timeout: Duration::from_secs(3),
        ..config(&brokers)
    };
    let partitions = topic(&config);
    let topic = &*partitions[0].topic;
    let mut admin = Admin::new(config.clone(), Interrupt::new());
    for (number, broker) in brokers.iter().enumerate() {
        let group = unique("frozen");
        let mut producer = Producer::transactional(
            config.clone(),
            Interrupt::new(),
            unique("frozen"),
            Duration::from_secs(300),
        );
        producer.initialise().unwrap();
        assert_eq!(
            admin
                .committed_offsets(&group, &[(topic.to_owned(), 0)], true)
                .unwrap()[0]
                .offset,
            -1
        );
        let mut transaction = producer.begin().unwrap();
        transaction
            .send(to_all(topic, &format!("{number} before")))
            .unwrap();
        broker.signal("-STOP");
        transaction
            .send(to_all(topic, &format!("{number} meanwhile")))
            .unwrap();
        let read = admin.committed_offsets(&group, &[(topic.to_owned(), 0)], true);
        broker.signal("-CONT");
        assert_eq!(read.unwrap()[0].offset, -1);
        // the one that was frozen knows last that others lead; an end that it answers too late stays in doubt
        let other = &brokers[(number + 1) % brokers.len()];
        wait_until("all replicas to be in sync", || other.all_in_sync());
        transaction.commit().unwrap();
    }
    let mut producer = Producer::idempotent(config.clone(), Interrupt::new());
    producer.send(to_all(topic, END)).unwrap();
    let expected = [
        "0 before",
        "0 meanwhile",
        "1 before",
        "1 meanwhile",
        "2 before",
        "2 meanwhile",
        END,
    ];
    for values in read_to_the_end(config, &partitions) {
        assert_eq!(values, expected);
    }
}

/// A handler takes longer than a request may: what has arrived meanwhile is no timeout, and each leader's partition goes on.
#[test]
fn a_slow_handler_meets_no_timeouts_and_starves_nobody() {
    let brokers = cluster();
    let config = Config {
        request_timeout: Duration::from_secs(5),
        ..config(&brokers)
    };
    let partitions = topic(&config);
    let mut producer = Producer::idempotent(config.clone(), Interrupt::new());
    let fetch = FetchConfig {
        max_wait: Duration::from_millis(200),
        ..FetchConfig::default()
    };
    let mut reader = Consumer::new(config, Interrupt::new(), fetch);
    reader.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    );
    let mut seen = [0; PARTITIONS as usize];
    for turn in 1..=4 {
        producer
            .send(to_all(&partitions[0].topic, &turn.to_string()))
            .unwrap();
        wait_until("a record of each leader", || {
            for polled in reader.poll().unwrap() {
                let Polled::Records {
                    partition, records, ..
                } = polled
                else {
                    panic!("{polled:?}")
                };
                seen[partition.partition as usize] += records.len();
            }
            seen == [turn; PARTITIONS as usize]
        });
        // the handler
        thread::sleep(Duration::from_secs(7));
    }
}

/// Records without a key are bound to no partition.
#[test]
fn records_without_a_key_go_where_a_leader_is() {
    let mut brokers = cluster();
    let config = Config {
        request_timeout: Duration::from_secs(5),
        ..config(&brokers)
    };
    let name = unique("keyless");
    let new = NewTopic {
        name: name.clone(),
        partitions: PARTITIONS,
        replication: Some(1),
        configs: Vec::new(),
    };
    Admin::new(config.clone(), Interrupt::new())
        .create_topics(&[new])
        .unwrap();
    let mut producer = Producer::idempotent(config, Interrupt::new());
    let mut send = |value: &str| {
        let loose = ProducerRecord {
            key: None,
            partition: None,
            timestamp: None,
            ..record(&name, "", value)
        };
        producer.send(vec![loose]).unwrap();
    };
    (0..PARTITIONS).for_each(|number| send(&format!("before {number}")));
    brokers[2].kill();
    // its partition is known as led by it, then as led by nobody
    (0..3 * PARTITIONS).for_each(|number| send(&format!("without it {number}")));
    brokers[2].resume();
    wait_until("all replicas to be in sync", || brokers[2].all_in_sync());
    let partitions = brokers[2].partitions(&name);
    let mut reader = brokers[2].reader(&partitions, kafka::Isolation::ReadCommitted);
    let mut seen = 0;
    wait_until("all of them", || {
        seen += records(reader.poll().unwrap_or_default()).len();
        seen >= 12
    });
    assert_eq!(seen, 12);
}

/// A leader without the last records is elected: what was read of them is told as taken back, not passed over.
#[test]
fn an_unclean_election_is_reported() {
    let mut brokers = cluster();
    let partition = common::two_copies(&brokers[2]);
    let fetch = FetchConfig {
        max_wait: Duration::from_millis(200),
        ..FetchConfig::default()
    };
    let group = GroupConfig::new(unique("unclean"), vec![partition.topic.to_string()]);
    let (config, positions) = (config(&brokers), Positions::CommittedOrEarliest);
    let member = || {
        GroupConsumer::new(
            config.clone(),
            Interrupt::new(),
            group.clone(),
            fetch,
            positions,
        )
        .unwrap()
    };
    let mut reader = Consumer::new(config.clone(), Interrupt::new(), fetch);
    reader.assign(&[(partition.clone(), 0)]);
    let mut seen = Vec::new();
    common::elect_uncleanly(&mut brokers, &partition, || {
        wait_until("what the first leader has", || {
            seen.extend(
                records(reader.poll().unwrap_or_default())
                    .iter()
                    .map(value_of),
            );
            seen.len() == 10
        });
        assert_eq!(values(&mut member(), 10), seen);
    });
    assert_eq!(common::wait_for_truncation(&mut reader), (10, 5));
    reader.seek(&partition, 5);
    seen.clear();
    wait_until("what the second leader has", || {
        seen.extend(
            records(reader.poll().unwrap_or_default())
                .iter()
                .map(value_of),
        );
        seen.len() >= 20
    });
    assert_eq!(
        seen,
        (5..25)
            .map(|number| format!("second {number}"))
            .collect::<Vec<_>>()
    );
    // one that was away meanwhile has committed what was taken back; its offset knows under which leader
    assert_eq!(values(&mut member(), 20), seen);
    brokers[0].resume();
    wait_until("all replicas to be in sync", || brokers[0].all_in_sync());
}

/// Reads so many values as a member of a group, commits and leaves.
fn values(member: &mut GroupConsumer, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    wait_until("a member's values", || {
        let polled = member.poll(Duration::from_secs(1)).unwrap_or_default();
        seen.extend(polled.iter().flat_map(Polled::records).map(value_of));
        seen.len() >= count
    });
    wait_until("a member's commit", || member.commit().is_ok());
    member.leave().unwrap();
    seen
}

fn hurt_each(hurt: impl Fn(&mut Broker), heal: impl Fn(&mut Broker)) {
    let mut brokers = cluster();
    let config = config(&brokers);
    let partitions = topic(&config);
    let progress = Arc::new(Progress::default());
    let writing = {
        let (config, topic, progress) = (
            config.clone(),
            partitions[0].topic.to_string(),
            Arc::clone(&progress),
        );
        thread::spawn(move || write_until_stopped(&progress, &config, &topic))
    };
    let reading = {
        let (config, partitions) = (config.clone(), partitions.clone());
        thread::spawn(move || read_to_the_end(config, &partitions))
    };
    let mut group = member(&config, &partitions[0].topic);
    assert_eq!(group.join().unwrap().partitions, partitions);

    for broker in brokers.iter_mut() {
        hurt(broker);
        // The group lives on without it, and the two others take every write.
        let before = progress.turns.load(Ordering::Relaxed);
        let held = [(partitions[0].clone(), 1, String::new())];
        wait_until("a commit of the group", || {
            group
                .commit_offsets(&held)
                .or_else(|_| group.join().map(drop))
                .is_ok()
                && !group.rejoin_needed()
        });
        wait_until("turns without the broker", || {
            progress.turns.load(Ordering::Relaxed) >= before + TURNS
        });
        heal(broker);
        wait_until("all replicas to be in sync", || broker.all_in_sync());
    }
    progress.stop.store(true, Ordering::Relaxed);
    let turns = writing.join().unwrap();
    let seen = reading.join().unwrap();
    let mut expected: Vec<String> = (0..turns).map(|turn| turn.to_string()).collect();
    expected.push(END.to_owned());
    for (partition, values) in seen.iter().enumerate() {
        assert_eq!(*values, expected, "partition {partition}");
    }
}

/// Each partition has a leader of its own, and two of the three have nothing to say for a minute.
#[test]
fn a_leader_without_news_delays_no_other() {
    let brokers = cluster();
    let config = config(&brokers);
    let partitions = topic(&config);
    let fetch = FetchConfig {
        max_wait: Duration::from_secs(60),
        ..FetchConfig::default()
    };
    let mut reader = Consumer::new(config.clone(), Interrupt::new(), fetch);
    reader.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    );
    let mut producer = Producer::idempotent(config, Interrupt::new());
    for turn in 0..4 * PARTITIONS {
        let partition = Some(turn % PARTITIONS);
        let sent = ProducerRecord {
            partition,
            ..record(&partitions[0].topic, "k", &turn.to_string())
        };
        producer.send(vec![sent]).unwrap();
        let since = Instant::now();
        let mut seen = Vec::new();
        while seen.is_empty() {
            seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
        }
        assert_eq!(seen, [turn.to_string()]);
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "turn {turn}: {:?}",
            since.elapsed()
        );
    }
}

/// The one cluster of this file; its claims take turns.
fn cluster() -> MutexGuard<'static, Vec<Broker>> {
    static CLUSTER: OnceLock<Mutex<Vec<Broker>>> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Mutex::new(Broker::start_three(Line::Kafka4)));
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frozen broker costs a whole request timeout.
fn config(brokers: &[Broker]) -> Config {
    let config = Config::new(brokers.iter().map(Broker::address).collect(), "test");
    Config {
        request_timeout: Duration::from_secs(6),
        ..config
    }
}

fn topic(config: &Config) -> Vec<TopicPartition> {
    let name = unique("cluster");
    let new = NewTopic {
        name: name.clone(),
        partitions: PARTITIONS,
        replication: None,
        configs: Vec::new(),
    };
    let mut admin = Admin::new(config.clone(), Interrupt::new());
    admin.create_topics(&[new]).unwrap();
    let topic_id = admin.describe_topics(std::slice::from_ref(&name)).unwrap()[0].id;
    (0..PARTITIONS)
        .map(|partition| TopicPartition {
            topic: name.as_str().into(),
            topic_id,
            partition,
        })
        .collect()
}

fn member(config: &Config, topic: &str) -> Group {
    let group = GroupConfig {
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(10),
        heartbeat_interval: Duration::from_millis(500),
        ..GroupConfig::new(unique("cluster"), vec![topic.to_owned()])
    };
    Group::new(config.clone(), Interrupt::new(), group)
}

/// What the writer's thread and the test tell each other.
#[derive(Default)]
struct Progress {
    turns: AtomicI64,
    stop: AtomicBool,
}

/// One transaction a turn: its number to every partition, and as a group's offset. What an error has left open, the offset tells.
fn write_until_stopped(progress: &Progress, config: &Config, topic: &str) -> i64 {
    let (id, group) = (unique("cluster"), unique("position"));
    let mut producer = Producer::transactional(
        config.clone(),
        Interrupt::new(),
        id,
        Duration::from_secs(60),
    );
    let mut admin = Admin::new(config.clone(), Interrupt::new());
    let mut turns = 0;
    while !progress.stop.load(Ordering::Relaxed) {
        progress.turns.store(turns, Ordering::Relaxed);
        let fill = |transaction: &mut Transaction<'_>| {
            transaction.send(to_all(topic, &turns.to_string()))?;
            transaction.commit_offsets(&group, None, &at(topic, turns + 1, ""))
        };
        match transact(&mut producer, fill) {
            Ok(()) => turns += 1,
            Err(_) => {
                wait_until("a new epoch", || producer.initialise().is_ok());
                let place = [(topic.to_owned(), 0)];
                let read = |admin: &mut Admin| admin.committed_offsets(&group, &place, true).ok();
                let mut position = None;
                wait_until("the position", || {
                    position = read(&mut admin);
                    position.is_some()
                });
                turns = position.unwrap()[0].offset.max(0);
            }
        }
    }
    wait_until("the end", || {
        producer.initialise().is_ok()
            && transact(&mut producer, |last| {
                last.send(to_all(topic, END)).map(drop)
            })
            .is_ok()
    });
    turns
}

fn transact(
    producer: &mut Producer,
    fill: impl Fn(&mut Transaction<'_>) -> kafka::Result<()>,
) -> kafka::Result<()> {
    if producer.identity().is_none() {
        producer.initialise()?;
    }
    let mut transaction = producer.begin()?;
    fill(&mut transaction)?;
    transaction.commit()
}

fn to_all(topic: &str, value: &str) -> Vec<ProducerRecord> {
    let to = |partition| ProducerRecord {
        partition: Some(partition),
        ..record(topic, "k", value)
    };
    (0..PARTITIONS).map(to).collect()
}

/// What a read-committed reader sees of each partition up to the end.
fn read_to_the_end(config: Config, partitions: &[TopicPartition]) -> Vec<Vec<String>> {
    let mut reader = Consumer::new(config, Interrupt::new(), FetchConfig::default());
    reader.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    );
    let mut seen = vec![Vec::new(); partitions.len()];
    while !seen
        .iter()
        .all(|values| values.last().is_some_and(|last| last == END))
    {
        for polled in reader.poll().unwrap_or_default() {
            let Polled::Records {
                partition, records, ..
            } = polled
            else {
                panic!("{polled:?}")
            };
            seen[partition.partition as usize].extend(records.iter().map(value_of));
        }
    }
    seen
}
