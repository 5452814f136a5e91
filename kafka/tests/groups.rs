//! Consumer groups on real brokers, with Kafka's own tool as the witness.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Broker, PATIENCE, record, unique, value_of, wait_until};
use kafka::{
    Admin, Assignment, Config, ErrorCode, ErrorKind, FetchConfig, Group, GroupConfig,
    GroupConsumer, Interrupt, Polled, Positions, Producer, TopicPartition,
};

on_both_lines! {
    two_members_share_the_partitions_and_hand_over_when_one_leaves
    the_partitions_of_a_member_that_dies_go_to_the_others
    a_member_that_is_slow_to_rejoin_keeps_its_place_by_its_heartbeats
    a_member_that_hangs_leaves_its_partitions_to_the_others
    a_group_consumer_goes_on_where_its_group_has_committed
    a_group_consumer_goes_on_behind_what_is_gone
    a_poll_with_a_limit_gives_what_is_there_and_loses_nothing_that_comes_later
    a_group_consumer_that_waits_for_records_hears_of_a_rebalance_at_once
    committed_offsets_are_shown_by_kafkas_tool
    a_commit_of_a_former_generation_is_refused_and_asks_for_a_rejoin
    offsets_of_a_transaction_are_refused_from_a_member_that_has_lost_its_partitions
    a_member_leaves_at_once_even_after_an_interrupt
    an_interrupt_ends_a_join_that_waits_for_others
    members_with_different_topics_get_only_their_own
    a_topic_that_does_not_exist_is_left_out
    a_topic_that_appears_or_grows_is_divided_again
    the_settings_of_a_topic_and_of_a_broker_are_listed
}

/// So long that no member lapses while a tool starts beside it; a claim about a lapse takes as long.
const SESSION: Duration = Duration::from_secs(10);
/// A join takes as long if a member does not come and lives on.
const REBALANCE: Duration = Duration::from_secs(60);

fn settings(group: &str, topics: &[&str]) -> GroupConfig {
    GroupConfig {
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
        heartbeat_interval: Duration::from_millis(100),
        ..GroupConfig::new(
            group.to_owned(),
            topics.iter().map(|topic| topic.to_string()).collect(),
        )
    }
}

fn member(broker: &Broker, group: &str, topics: &[&str]) -> Group {
    Group::new(broker.config(), Interrupt::new(), settings(group, topics))
}

fn interruptible(broker: &Broker, group: &str, topic: &str, interrupt: &Interrupt) -> Group {
    Group::new(
        broker.config(),
        interrupt.clone(),
        settings(group, &[topic]),
    )
}

/// A member that counts the calls of its hook.
fn counting(broker: &Broker, group: &str, topic: &str, calls: &Arc<AtomicUsize>) -> Group {
    let calls = Arc::clone(calls);
    let hook = move || {
        calls.fetch_add(1, Ordering::SeqCst);
    };
    let config = GroupConfig {
        on_rebalance: Some(Arc::new(hook)),
        ..settings(group, &[topic])
    };
    Group::new(broker.config(), Interrupt::new(), config)
}

fn wait_for_rebalance(group: &Group) {
    wait_until("the heartbeat to report a rebalance", || {
        group.rejoin_needed()
    });
}

/// Has `second` join while `first`, a member already, hears of it and joins again.
fn join_second(first: &mut Group, second: &mut Group) -> (Assignment, Assignment) {
    thread::scope(|scope| {
        let joining = scope.spawn(|| second.join().unwrap());
        wait_for_rebalance(first);
        (first.join().unwrap(), joining.join().unwrap())
    })
}

fn numbers(assignment: &Assignment) -> Vec<i32> {
    assignment
        .partitions
        .iter()
        .map(|partition| partition.partition)
        .collect()
}

/// By itself the tool gives up after 5 s, which are soon over on a busy machine: it ends with 0 then, and shows nothing.
fn described_by_tool(broker: &Broker, group: &str, more: &[&str]) -> String {
    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let arguments = ["--describe", "--group", group, "--timeout", "60000"];
    broker.tool(tool, &[&arguments[..], more].concat(), "")
}

/// The lines of `--describe` about this topic, as (partition, offset, consumer id).
fn described(broker: &Broker, group: &str, topic: &str) -> Vec<(i32, String, String)> {
    let out = described_by_tool(broker, group, &[]);
    let mut lines = Vec::new();
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID
    for words in out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
    {
        if words.len() > 6 && words[0] == group && words[1] == topic {
            lines.push((
                words[2].parse().unwrap(),
                words[3].to_owned(),
                words[6].to_owned(),
            ));
        }
    }
    lines.sort();
    lines
}

fn two_members_share_the_partitions_and_hand_over_when_one_leaves(broker: &Broker) {
    let partitions = broker.topic("shared", 3);
    let topic = &*partitions[0].topic;
    let group = unique("sharing");
    let rebalances = Arc::new(AtomicUsize::new(0));
    let mut first = counting(broker, &group, topic, &rebalances);
    let mut second = member(broker, &group, &[topic]);
    assert!(first.rejoin_needed());
    assert_eq!(first.join().unwrap().partitions, partitions);
    assert!(!first.rejoin_needed());
    assert_eq!(rebalances.load(Ordering::SeqCst), 0);

    let (one, two) = join_second(&mut first, &mut second);
    assert_eq!(rebalances.load(Ordering::SeqCst), 1);
    assert_eq!(one.generation, two.generation);
    let mut shares = [numbers(&one), numbers(&two)];
    shares.sort();
    assert_eq!(shares, [vec![0, 1], vec![2]]);

    let shown = described(broker, &group, topic);
    let holder = |partition: i32| {
        let one_holds = one
            .partitions
            .iter()
            .any(|held| held.partition == partition);
        if one_holds {
            one.member_id.clone()
        } else {
            two.member_id.clone()
        }
    };
    let expected: Vec<_> = (0..3)
        .map(|partition| (partition, "-".to_owned(), holder(partition)))
        .collect();
    assert_eq!(shown, expected);

    drop(second.leave());
    wait_for_rebalance(&first);
    assert_eq!(first.join().unwrap().partitions, partitions);
    assert!(
        described(broker, &group, topic)
            .iter()
            .all(|(_, _, holder)| *holder == one.member_id)
    );
    drop(first.leave());
    wait_until("the group to be empty", || {
        let members = described_by_tool(broker, &group, &["--members"]);
        members.contains("has no active members") || members.contains("does not exist")
    });
}

fn the_partitions_of_a_member_that_dies_go_to_the_others(broker: &Broker) {
    let partitions = broker.topic("dying", 2);
    let topic = &*partitions[0].topic;
    let group = unique("dying");
    let (mut first, mut second) = (
        member(broker, &group, &[topic]),
        member(broker, &group, &[topic]),
    );
    first.join().unwrap();
    assert_eq!(join_second(&mut first, &mut second).0.partitions.len(), 1);
    let died = Instant::now();
    drop(second);
    wait_for_rebalance(&first);
    assert!(died.elapsed() < SESSION * 4, "{:?}", died.elapsed());
    assert_eq!(first.join().unwrap().partitions, partitions);
    drop(first.leave());
}

fn a_member_that_is_slow_to_rejoin_keeps_its_place_by_its_heartbeats(broker: &Broker) {
    let partitions = broker.topic("slow", 2);
    let topic = &*partitions[0].topic;
    let group = unique("slow");
    let (mut first, mut second) = (
        member(broker, &group, &[topic]),
        member(broker, &group, &[topic]),
    );
    let before = first.join().unwrap();
    thread::scope(|scope| {
        let joining = scope.spawn(|| second.join().unwrap());
        wait_for_rebalance(&first);
        // Its batch takes longer than the session, yet the group waits for it.
        thread::sleep(SESSION + Duration::from_secs(1));
        assert!(!joining.is_finished());
        let after = first.join().unwrap();
        assert_eq!(after.member_id, before.member_id);
        assert_eq!(
            (
                after.partitions.len(),
                joining.join().unwrap().partitions.len()
            ),
            (1, 1)
        );
    });
    drop(second.leave());
    drop(first.leave());
}

fn a_member_that_hangs_leaves_its_partitions_to_the_others(broker: &Broker) {
    let partitions = broker.topic("hanging", 2);
    let topic = &*partitions[0].topic;
    let group = unique("hanging");
    let hanging = GroupConfig {
        max_poll_interval: Duration::from_secs(1),
        // or the others would take its place after this
        rebalance_timeout: Duration::from_secs(1_800),
        ..settings(&group, &[topic])
    };
    let mut hanging = Group::new(broker.config(), Interrupt::new(), hanging);
    hanging.join().unwrap();
    // it calls nothing more, and its heartbeats would go on for ever
    let mut other = member(broker, &group, &[topic]);
    wait_until("all partitions", || {
        other.join().unwrap().partitions == partitions
    });
    assert!(hanging.rejoin_needed());
    let (one, two) = thread::scope(|scope| {
        let joining = scope.spawn(|| hanging.join().unwrap());
        wait_for_rebalance(&other);
        let one = other.join().unwrap();
        (one, joining.join().unwrap())
    });
    assert_eq!((one.partitions.len(), two.partitions.len()), (1, 1));
    drop(hanging.leave());
    drop(other.leave());
}

fn group_consumer(
    broker: &Broker,
    group: &str,
    topic: &str,
    positions: Positions,
) -> GroupConsumer {
    let settings = settings(group, &[topic]);
    GroupConsumer::new(
        broker.config(),
        Interrupt::new(),
        settings,
        FetchConfig::default(),
        positions,
    )
    .unwrap()
}

/// Polls until so many values are there; every partition's are in order.
fn values(consumer: &mut GroupConsumer, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    wait_until(&format!("{count} values"), || {
        let polled = consumer.poll(Duration::from_secs(1)).unwrap();
        seen.extend(polled.iter().flat_map(Polled::records).map(value_of));
        seen.len() >= count
    });
    seen
}

fn a_group_consumer_goes_on_where_its_group_has_committed(broker: &Broker) {
    let partitions = broker.topic("reading", 1);
    let topic = &*partitions[0].topic;
    let group = unique("reading");
    let mut producer = Producer::idempotent(broker.config(), Interrupt::new());
    let mut send = |value: &str| producer.send(vec![record(topic, "k", value)]).unwrap();
    send("a");
    send("b");
    let mut first = group_consumer(broker, &group, topic, Positions::CommittedOrEarliest);
    assert_eq!(values(&mut first, 2), ["a", "b"]);
    first.commit().unwrap();
    send("c");
    assert_eq!(values(&mut first, 1), ["c"]);
    // given, and not committed
    drop(first.leave());
    let mut second = group_consumer(broker, &group, topic, Positions::CommittedOrEarliest);
    assert_eq!(values(&mut second, 1), ["c"]);
    second.commit().unwrap();
    drop(second.leave());
    let mut latest = group_consumer(broker, &unique("late"), topic, Positions::CommittedOrLatest);
    wait_until("an assignment", || {
        latest.assignment().is_some() || latest.poll(Duration::ZERO).unwrap().is_empty()
    });
    send("d");
    assert_eq!(values(&mut latest, 1), ["d"]);
    drop(latest.leave());
}

/// Its limit is short, while the broker would wait for a minute.
fn a_poll_with_a_limit_gives_what_is_there_and_loses_nothing_that_comes_later(broker: &Broker) {
    let partitions = broker.topic("limit", 1);
    let topic = &*partitions[0].topic;
    let mut producer = Producer::idempotent(broker.config(), Interrupt::new());
    let mut send = |value: &str| producer.send(vec![record(topic, "k", value)]).unwrap();
    let group = unique("limit");
    let mut consumer = group_consumer(broker, &group, topic, Positions::CommittedOrEarliest);
    let short = Duration::from_millis(20);
    assert!(consumer.poll_within(short).unwrap().is_empty());
    assert!(consumer.assignment().is_none(), "it does not join");
    send("a");
    let minute = Duration::from_secs(60);
    let next = |consumer: &mut GroupConsumer| {
        let mut seen = Vec::new();
        wait_until("a value", || {
            let polled = consumer.poll(minute).unwrap();
            seen.extend(polled.iter().flat_map(Polled::records).map(value_of));
            !seen.is_empty()
        });
        seen
    };
    assert_eq!(next(&mut consumer), ["a"]);
    // it asks the broker for a minute, and leaves that to the next one
    assert!(consumer.poll_within(short).unwrap().is_empty());
    send("b");
    assert_eq!(next(&mut consumer), ["b"]);
    send("c");
    let mut seen = Vec::new();
    wait_until("a value within a limit", || {
        let polled = consumer.poll_within(short).unwrap();
        seen.extend(polled.iter().flat_map(Polled::records).map(value_of));
        !seen.is_empty()
    });
    assert_eq!(seen, ["c"]);
    drop(consumer.leave());
}

/// What is deleted before it was read: on from what is left, by the policy.
fn a_group_consumer_goes_on_behind_what_is_gone(broker: &Broker) {
    let partitions = broker.topic("gone", 1);
    let topic = &*partitions[0].topic;
    let mut producer = Producer::idempotent(broker.config(), Interrupt::new());
    producer
        .send(
            (0..5)
                .map(|number| record(topic, "k", &number.to_string()))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    let mut consumer = group_consumer(
        broker,
        &unique("gone"),
        topic,
        Positions::CommittedOrEarliest,
    );
    assert_eq!(values(&mut consumer, 5).len(), 5);
    consumer.seek(&partitions[0], 0);
    let file = broker.folder().join(unique("deleted"));
    let deleted =
        format!(r#"{{"partitions":[{{"topic":"{topic}","partition":0,"offset":3}}],"version":1}}"#);
    std::fs::write(&file, deleted).unwrap();
    broker.tool(
        "org.apache.kafka.tools.DeleteRecordsCommand",
        &["--offset-json-file", file.to_str().unwrap()],
        "",
    );
    assert_eq!(values(&mut consumer, 2), ["3", "4"]);
    drop(consumer.leave());
}

/// Its long poll would take a minute.
fn a_group_consumer_that_waits_for_records_hears_of_a_rebalance_at_once(broker: &Broker) {
    let partitions = broker.topic("waiting", 2);
    let topic = &*partitions[0].topic;
    let group = unique("waiting");
    let mut waiting = group_consumer(broker, &group, topic, Positions::CommittedOrEarliest);
    assert_eq!(waiting.poll(Duration::ZERO).unwrap().len(), 1, "assigned");
    let mut other = member(broker, &group, &[topic]);
    let since = Instant::now();
    thread::scope(|scope| {
        let joining = scope.spawn(|| other.join().unwrap());
        // it ends with nothing, if it had begun before the heartbeat heard of it
        let mut polled = waiting.poll(Duration::from_secs(60)).unwrap();
        if polled.is_empty() {
            polled = waiting.poll(Duration::from_secs(60)).unwrap();
        }
        assert!(
            matches!(polled[..], [Polled::Assigned { .. }]),
            "{polled:?}"
        );
        assert_eq!(joining.join().unwrap().partitions.len(), 1);
    });
    assert!(
        since.elapsed() < Duration::from_secs(30),
        "{:?}",
        since.elapsed()
    );
    drop(other.leave());
    drop(waiting.leave());
}

fn committed_offsets_are_shown_by_kafkas_tool(broker: &Broker) {
    let partitions = broker.topic("committing", 2);
    let topic = &*partitions[0].topic;
    let group = unique("committing");
    let mut only = member(broker, &group, &[topic]);
    let assigned = only.join().unwrap();
    let offsets: Vec<_> = assigned
        .partitions
        .iter()
        .map(|held| (held.clone(), i64::from(held.partition) + 5, "text".into()))
        .collect();
    only.commit_offsets(&offsets).unwrap();
    let shown: Vec<_> = described(broker, &group, topic)
        .into_iter()
        .map(|(at, offset, _)| (at, offset))
        .collect();
    assert_eq!(shown, [(0, "5".to_owned()), (1, "6".to_owned())]);
    let found = broker
        .admin()
        .committed_offsets(&group, &[(topic.to_owned(), 1)], true)
        .unwrap();
    assert_eq!((found[0].offset, found[0].metadata.as_str()), (6, "text"));
    drop(only.leave());
}

fn a_commit_of_a_former_generation_is_refused_and_asks_for_a_rejoin(broker: &Broker) {
    let partitions = broker.topic("stale", 2);
    let topic = &*partitions[0].topic;
    let group = unique("stale");
    // Heartbeats so rare that the broker drops it and only its own commit can tell.
    let silent = GroupConfig {
        heartbeat_interval: Duration::from_secs(600),
        ..settings(&group, &[topic])
    };
    let mut stale = Group::new(broker.config(), Interrupt::new(), silent);
    let held = stale.join().unwrap().partitions.remove(0);
    let mut other = member(broker, &group, &[topic]);
    assert_eq!(other.join().unwrap().partitions, partitions);
    assert!(!stale.rejoin_needed());
    let refused = stale
        .commit_offsets(&[(held, 1, String::new())])
        .unwrap_err();
    assert_eq!(
        refused.code(),
        Some(ErrorCode(25)),
        "UNKNOWN_MEMBER_ID, not {refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::Retriable);
    assert!(stale.rejoin_needed());
    drop(other.leave());
    assert_eq!(stale.join().unwrap().partitions, partitions);
    drop(stale.leave());
}

fn offsets_of_a_transaction_are_refused_from_a_member_that_has_lost_its_partitions(
    broker: &Broker,
) {
    let partitions = broker.topic("handed-over", 1);
    let (topic, name) = (&*partitions[0].topic, unique("handed-over-group"));
    let mut producer = Producer::transactional(
        broker.config(),
        Interrupt::new(),
        unique("copies"),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    let mut first = member(broker, &name, &[topic]);
    let held = first.join().unwrap();
    let mut commit = |member: &Assignment, offset| {
        let mut transaction = producer.begin().unwrap();
        transaction.send([record(topic, "k", "v")]).unwrap();
        match transaction.commit_offsets(
            &name,
            Some(member),
            &[(partitions[0].clone(), offset, "kept".to_owned())],
        ) {
            Ok(()) => transaction.commit(),
            Err(refused) => transaction.abort().and(Err(refused)),
        }
    };
    commit(&held, 7).unwrap();
    drop(first.leave());
    let mut other = member(broker, &name, &[topic]);
    let news = other.join().unwrap();
    let refused = commit(&held, 8).unwrap_err();
    assert_eq!(
        refused.code().unwrap().to_string(),
        "UNKNOWN_MEMBER_ID",
        "{refused}"
    );
    let mut former = news.clone();
    former.generation -= 1;
    assert_eq!(
        commit(&former, 9).unwrap_err().code().unwrap().to_string(),
        "ILLEGAL_GENERATION"
    );
    let read = || {
        broker
            .admin()
            .committed_offsets(&name, &[(topic.to_owned(), 0)], true)
            .unwrap()
            .remove(0)
    };
    assert_eq!((read().offset, read().metadata.as_str()), (7, "kept"));
    commit(&news, 10).unwrap();
    assert_eq!(read().offset, 10);
    drop(other.leave());
}

fn a_member_leaves_at_once_even_after_an_interrupt(broker: &Broker) {
    // far longer than what is waited for
    let patient = |group: &str, topic: &str, interrupt: &Interrupt| {
        let settings = GroupConfig {
            session_timeout: Duration::from_secs(300),
            ..settings(group, &[topic])
        };
        Group::new(broker.config(), interrupt.clone(), settings)
    };
    let partitions = broker.topic("leaving", 2);
    let topic = &*partitions[0].topic;
    // it has two seconds for all its calls, which a busy machine may need longer for
    wait_until("a leave", || {
        let (group, interrupt) = (unique("leaving"), Interrupt::new());
        let mut first = patient(&group, topic, &interrupt);
        let mut second = patient(&group, topic, &Interrupt::new());
        first.join().unwrap();
        interrupt.interrupt();
        assert!(matches!(first.join(), Err(kafka::Error::Interrupted)));
        match first.leave() {
            Err(kafka::Error::Interrupted) => panic!("the leave was interrupted"),
            Err(_) => return false,
            Ok(()) => {}
        }
        // had it not left, this join would have to wait for its session to end
        let since = Instant::now();
        assert_eq!(second.join().unwrap().partitions, partitions);
        assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
        drop(second.leave());
        true
    });
}

fn an_interrupt_ends_a_join_that_waits_for_others(broker: &Broker) {
    let partitions = broker.topic("waiting", 1);
    let topic = &*partitions[0].topic;
    let group = unique("waiting");
    let interrupt = Interrupt::new();
    let mut first = member(broker, &group, &[topic]);
    let mut second = interruptible(broker, &group, topic, &interrupt);
    first.join().unwrap();
    thread::scope(|scope| {
        let joining = scope.spawn(|| second.join());
        // Now the second one's JoinGroup waits for the first, which does not come.
        wait_for_rebalance(&first);
        let since = Instant::now();
        interrupt.interrupt();
        assert!(matches!(
            joining.join().unwrap(),
            Err(kafka::Error::Interrupted)
        ));
        assert!(since.elapsed() < REBALANCE / 3, "{:?}", since.elapsed());
    });
    drop(second.leave());
    drop(first.leave());
}

fn members_with_different_topics_get_only_their_own(broker: &Broker) {
    let (a, b) = (broker.topic("own-a", 2), broker.topic("own-b", 2));
    let group = unique("own");
    let mut first = member(broker, &group, &[&a[0].topic]);
    let mut second = member(broker, &group, &[&b[0].topic]);
    first.join().unwrap();
    let (one, two) = join_second(&mut first, &mut second);
    assert_eq!((one.partitions, two.partitions), (a, b));
    drop(second.leave());
    drop(first.leave());
}

fn a_topic_that_does_not_exist_is_left_out(broker: &Broker) {
    let partitions: Vec<TopicPartition> = broker.topic("there", 2);
    let mut only = member(
        broker,
        &unique("absent"),
        &[&partitions[0].topic, "not-there"],
    );
    assert_eq!(only.join().unwrap().partitions, partitions);
    drop(only.leave());
}

fn a_topic_that_appears_or_grows_is_divided_again(broker: &Broker) {
    let topic = unique("later");
    let mut member = member(broker, &unique("group"), &[&topic]);
    assert!(member.join().unwrap().partitions.is_empty());
    let tool = "org.apache.kafka.tools.TopicCommand";
    broker.tool(
        tool,
        &["--create", "--topic", &topic, "--partitions", "1"],
        "",
    );
    wait_for_rebalance(&member);
    assert_eq!(numbers(&member.join().unwrap()), [0]);
    broker.tool(
        tool,
        &["--alter", "--topic", &topic, "--partitions", "3"],
        "",
    );
    wait_for_rebalance(&member);
    assert_eq!(numbers(&member.join().unwrap()), [0, 1, 2]);
}

fn the_settings_of_a_topic_and_of_a_broker_are_listed(broker: &Broker) {
    let compacted = broker.topic_with("settings", 1, &[("cleanup.policy", "compact")]);
    let names = [compacted[0].topic.to_string()];
    let mut admin = broker.admin();
    assert_eq!(
        admin.topic_config(&names, "cleanup.policy").unwrap(),
        ["compact"]
    );
    assert_eq!(
        admin.topic_config(&names, "max.message.bytes").unwrap(),
        ["1048588"]
    );
    let brokers = admin.brokers().unwrap();
    assert_eq!(
        brokers
            .iter()
            .map(|broker| &broker.address)
            .collect::<Vec<_>>(),
        [&broker.config().brokers[0]]
    );
    let values = admin
        .broker_config(
            &brokers[0],
            &["group.max.session.timeout.ms", "no.such.setting"],
        )
        .unwrap();
    assert_eq!(
        values,
        [(
            "group.max.session.timeout.ms".to_owned(),
            "1800000".to_owned()
        )]
    );
    let hasty = Config {
        api_timeout: Duration::from_secs(3),
        ..broker.config()
    };
    // a last attempt that finds nobody in time says less
    wait_until("the broker's own words", || {
        Admin::new(hasty.clone(), Interrupt::new())
            .topic_config(&[unique("missing")], "cleanup.policy")
            .unwrap_err()
            .to_string()
            .contains("UNKNOWN_TOPIC_OR_PARTITION")
    });
}
