//! Beside Java's own client, which meets the same at the same brokers: troubles, limits and amounts. The claims take turns, so that
//! what is measured has the machine to itself, and print what they found.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{Broker, Line, Running, record, shared, unique, value_of, wait_until};
use kafka::{
    Config, Consumer, FetchConfig, Interrupt, Isolation, OffsetSpec, Polled, Producer,
    ProducerRecord, Record, TopicPartition, partition_for_key,
};

const VERIFIABLE_PRODUCER: &str = "org.apache.kafka.tools.VerifiableProducer";
const PRODUCER_PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
const CONSUMER_PERFORMANCE: &str = "org.apache.kafka.tools.ConsumerPerformance";

/// Each broker is frozen for longer than a request may take; Java's producer, idempotent by default, meets the same.
#[test]
#[ignore = "minutes: ./run.sh proof"]
fn brokers_frozen_in_turn_cost_no_more_than_java_s_own_client() {
    const FROZEN: Duration = Duration::from_secs(25);
    const PAUSE: Duration = Duration::from_secs(5);
    let _turn = turn();
    let brokers = Broker::start_three(Line::Kafka4);
    let config = all_of(&brokers);
    let [ours, theirs] = ["ours", "theirs"].map(|whose| brokers[0].topic(whose, 3));
    // the tool's own default is none, and with it no idempotence
    let settings = brokers[0].settings_file("retries=2147483647\nenable.idempotence=true\n");
    let to = [
        "--bootstrap-server",
        &config.brokers.join(","),
        "--topic",
        &theirs[0].topic,
    ];
    let how = [
        "--throughput",
        "20",
        "--acks",
        "-1",
        "--command-config",
        &settings,
    ];
    let java = brokers[0].start_tool(VERIFIABLE_PRODUCER, &[&to[..], &how].concat());
    let stop = AtomicBool::new(false);
    let (sent, failed) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut producer = Producer::idempotent(config.clone(), Interrupt::new());
            let (mut sent, mut failed) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                match producer.send([ProducerRecord::new(&*ours[0].topic, sent.to_string())]) {
                    Ok(_) => sent += 1,
                    Err(error) => {
                        println!("record {sent}: {error}");
                        failed += 1;
                    }
                }
                thread::sleep(Duration::from_millis(50));
            }
            (sent, failed)
        });
        for broker in &brokers {
            thread::sleep(PAUSE);
            broker.signal("-STOP");
            thread::sleep(FROZEN);
            broker.signal("-CONT");
            wait_until("all replicas to be in sync", || broker.all_in_sync());
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    let said = java.stop();
    let (java_sent, java_failed) = (
        acknowledged(&said).count(),
        said.matches("\"producer_send_error\"").count(),
    );
    let (twice, never) = twice_and_never(
        &read_whole(&brokers[0], &ours, Isolation::ReadUncommitted),
        sent,
    );
    let (java_twice, java_never) = twice_and_never(
        &read_whole(&brokers[0], &theirs, Isolation::ReadUncommitted),
        java_sent,
    );
    println!("ours:   {sent} sent, {failed} failed, {twice} twice, {never} lost");
    println!(
        "Java's: {java_sent} sent, {java_failed} failed, {java_twice} twice, {java_never} lost"
    );
    assert_eq!((failed, twice, never), (0, 0, 0));
    assert!(sent > 0 && java_sent > 0);
}

/// 1.2 MB in a transaction under a quota of 60 KB/s, which the broker measures over ten seconds: it answers at once and then reads
/// nothing from the client for longer than a request may take. Giving up and sending again would only make that longer.
#[test]
#[ignore = "minutes: ./run.sh proof"]
fn a_quota_makes_neither_us_nor_java_s_own_client_lose_or_repeat() {
    const LIMIT: Duration = Duration::from_secs(5);
    const RECORDS: usize = 1_200;
    let _turn = turn();
    let broker = shared(Line::Kafka4);
    let [ours, theirs] = ["ours", "theirs"].map(|whose| broker.topic(whose, 1));
    let [client, java_client] = [unique("throttled"), unique("throttled-java")];
    for name in [&client, &java_client] {
        let quota = [
            "--entity-type",
            "clients",
            "--entity-name",
            name,
            "--add-config",
            "producer_byte_rate=60000",
        ];
        broker.tool(
            "kafka.admin.ConfigCommand",
            &[&["--alter"], &quota[..]].concat(),
            "",
        );
    }
    let since = Instant::now();
    let config = Config {
        request_timeout: LIMIT,
        client_id: client,
        ..broker.config()
    };
    let mut producer = Producer::transactional(
        config,
        Interrupt::new(),
        unique("quota"),
        Duration::from_secs(300),
    );
    producer.initialise().unwrap();
    let mut transaction = producer.begin().unwrap();
    let one = |number| record(&ours[0].topic, "k", &format!("{number:0>1000}"));
    transaction
        .send((0..RECORDS).map(one).collect::<Vec<_>>())
        .unwrap();
    transaction.commit().unwrap();
    let took = since.elapsed();
    let since = Instant::now();
    let what = [
        "--topic",
        &*theirs[0].topic,
        "--num-records",
        "1200",
        "--record-size",
        "1000",
        "--throughput",
        "-1",
    ];
    let (address, id) = (broker.address(), unique("quota"));
    let how = [
        "--bootstrap-server",
        &address,
        "--transactional-id",
        &id,
        "--transaction-duration-ms",
        "120000",
    ];
    let named = format!("client.id={java_client}");
    // batches as large as ours; as long a commit as it takes
    let settings = [
        &named,
        "request.timeout.ms=5000",
        "batch.size=921600",
        "linger.ms=100",
        "max.block.ms=120000",
    ];
    let arguments = [
        &what[..],
        &how,
        &["--print-metrics", "--command-property"],
        &settings,
    ]
    .concat();
    let said = finish(broker.start_tool(PRODUCER_PERFORMANCE, &arguments)).0;
    let java_took = since.elapsed();
    for (whose, partitions, took) in [("ours", &ours, took), ("Java's", &theirs, java_took)] {
        let count = |isolation| read_whole(broker, partitions, isolation).len();
        let (committed, written) = (
            count(Isolation::ReadCommitted),
            count(Isolation::ReadUncommitted),
        );
        println!("{whose}: {committed} committed, {written} written, in {took:.1?}");
        assert_eq!((committed, written), (RECORDS, RECORDS), "{whose}\n{said}");
    }
    // the quota was there for both: without it ours would be written at once, and Java's would report no wait
    let held_back = said
        .lines()
        .find(|line| line.contains("produce-throttle-time-max"));
    let held_back = held_back.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(
        took > LIMIT && held_back > Some(0.0),
        "the broker did not hold them back: {took:?}\n{said}"
    );
}

/// A topic grows while both write to it by key.
#[test]
#[ignore = "minutes: ./run.sh proof"]
fn added_partitions_get_the_same_keys_as_from_java_s_own_client() {
    const KEYS: usize = 40;
    let _turn = turn();
    let broker = shared(Line::Kafka4);
    let topic = broker.topic("grows", 1)[0].topic.clone();
    let config = Config {
        metadata_max_age: Duration::from_millis(200),
        ..broker.config()
    };
    let mut producer = Producer::idempotent(config, Interrupt::new());
    let mut send = || {
        let one = |key: usize| record(&topic, &key.to_string(), "ours");
        producer
            .send((0..KEYS).map(one).collect::<Vec<_>>())
            .unwrap()
    };
    let settings = broker.settings_file("metadata.max.age.ms=200\n");
    let (address, keys) = (broker.address(), KEYS.to_string());
    let to = [
        "--bootstrap-server",
        &address,
        "--topic",
        &topic,
        "--command-config",
        &settings,
    ];
    let java = broker.start_tool(
        VERIFIABLE_PRODUCER,
        &[&to[..], &["--throughput", "100", "--repeating-keys", &keys]].concat(),
    );
    let java_sent = |at_least: usize| {
        wait_until(&format!("{at_least} records of Java's"), || {
            acknowledged(&java.said()).count() >= at_least
        });
    };
    send();
    java_sent(KEYS);
    broker.tool(
        "org.apache.kafka.tools.TopicCommand",
        &["--alter", "--topic", &topic, "--partitions", "4"],
        "",
    );
    let mut reached = BTreeSet::new();
    wait_until("each partition to get records of ours", || {
        reached.extend(send().iter().map(|written| written.partition));
        reached.len() == 4
    });
    wait_until("each partition to get records of Java's", || {
        let said = java.said();
        (0..4).all(|number| {
            acknowledged(&said).any(|line| line.contains(&format!("\"partition\":{number}")))
        })
    });
    // each key at least once more, now that both know of all partitions
    send();
    java_sent(acknowledged(&java.said()).count() + 2 * KEYS);
    java.stop();
    let mut homes: [BTreeMap<String, BTreeSet<i32>>; 2] = Default::default();
    for (partition, record) in read_whole(
        broker,
        &broker.partitions(&topic),
        Isolation::ReadUncommitted,
    ) {
        let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
        homes[usize::from(value_of(&record) != "ours")]
            .entry(key)
            .or_default()
            .insert(partition);
    }
    // where all lay before, and where the key belongs since
    let expected = |key: usize| {
        let key = key.to_string();
        (
            key.clone(),
            BTreeSet::from([0, partition_for_key(key.as_bytes(), 4)]),
        )
    };
    let [ours, theirs] = homes;
    println!(
        "{} keys of ours and {} of Java's in 4 partitions, each where the other has it",
        ours.len(),
        theirs.len()
    );
    assert_eq!(ours, theirs);
    assert_eq!(ours, (0..KEYS).map(expected).collect());
}

/// What was read is taken back by an election. Ours reports it whatever the settings are; Java's consumer only where it has no
/// `auto.offset.reset`, and else goes back without a word.
#[test]
#[ignore = "minutes: ./run.sh proof"]
fn an_unclean_election_is_reported_as_by_java_s_own_client_without_a_reset() {
    let _turn = turn();
    let mut brokers = Broker::start_three(Line::Kafka4);
    let partition = common::two_copies(&brokers[2]);
    let config = all_of(&brokers);
    let servers = config.brokers.join(",");
    let start = |reset: &str| {
        let from = [
            "--bootstrap-server",
            &servers,
            "--topic",
            &partition.topic,
            "--partition",
            "0",
            "--offset",
            "0",
        ];
        let reset = format!("auto.offset.reset={reset}");
        brokers[2].start_tool(
            common::CONSOLE_CONSUMER,
            &[&from[..], &["--command-property", &reset]].concat(),
        )
    };
    let (mut strict, lenient) = (start("none"), start("earliest"));
    let mut reader = Consumer::new(config, Interrupt::new(), FetchConfig::default());
    reader.assign(&[(partition.clone(), 0)]);
    common::elect_uncleanly(&mut brokers, &partition, || {
        let mut seen = 0;
        wait_until("what the first leader has, for us", || {
            seen += common::records(reader.poll().unwrap_or_default()).len();
            seen == 10
        });
        for java in [&strict, &lenient] {
            wait_until("what the first leader has, for Java's", || {
                java.said().contains("first 9\n")
            });
        }
    });
    let (read_to, end) = common::wait_for_truncation(&mut reader);
    wait_until("the end of Java's without a reset", || {
        strict.ended().is_some()
    });
    wait_until(
        "what the second leader has, for Java's with a reset",
        || lenient.said().contains("second 24\n"),
    );
    println!("ours: read to {read_to}, and only {end} of it are there");
    println!(
        "Java's without a reset, {}: {}",
        strict.ended().unwrap(),
        words(&strict.said())
    );
    println!("Java's with a reset: {}", words(&lenient.stop()));
    assert_eq!((read_to, end), (10, 5));
}

/// 200,000 records of 300 bytes in transactions of 1,000, and read back: each time by a process of its own, by turns, from and to
/// topics of their own. Java's begins to compile itself meanwhile, as it does in life; its start is not counted.
#[test]
#[ignore = "minutes: ./run.sh proof"]
fn rates_are_above_half_and_memory_is_below_that_of_java_s_own_client() {
    const RECORDS: usize = 200_000;
    const ROUNDS: usize = 3;
    let _turn = turn();
    let broker = shared(Line::Kafka4);
    let rates = PathBuf::from(
        std::env::var_os("RATES_BIN").expect("RATES_BIN is not set: run `./run.sh proof`"),
    );
    let address = broker.address();
    let us = |what: &str, topic: &str| {
        broker.start_program(Command::new(&rates).args([&address, what, topic]))
    };
    let count = RECORDS.to_string();
    let java_writes = |topic: &str| {
        let what = [
            "--topic",
            topic,
            "--num-records",
            &count,
            "--record-size",
            "300",
            "--throughput",
            "-1",
        ];
        // the tool ends a transaction by its age: by this one they have about 1,000 records or more; batches may be as large as ours
        let how = [
            "--bootstrap-server",
            &address,
            "--transaction-duration-ms",
            "4",
        ];
        let how = [&how[..], &["--command-property", "batch.size=921600"]].concat();
        broker.start_program(
            as_scripts_start_it()
                .arg(PRODUCER_PERFORMANCE)
                .args(what)
                .args(how),
        )
    };
    let java_reads = |topic: &str| {
        let what = ["--topic", topic, "--num-records", &count, "--hide-header"];
        let how = [
            "--bootstrap-server",
            &address,
            "--command-property",
            "isolation.level=read_committed",
        ];
        broker.start_program(
            as_scripts_start_it()
                .arg(CONSUMER_PERFORMANCE)
                .args(what)
                .args(how),
        )
    };
    let mut figures: [Vec<(f64, u64)>; 4] = Default::default();
    let mut per_transaction = 0;
    for _ in 0..ROUNDS {
        let [ours, theirs] = ["ours", "theirs"].map(|whose| broker.topic(whose, 3));
        let (topic, java_topic) = (&*ours[0].topic, &*theirs[0].topic);
        let rate = |(said, peak): (String, u64)| (number_before(&said, " records/s"), peak);
        figures[0].push(rate(finish(us("write", topic))));
        figures[1].push(rate(finish(java_writes(java_topic))));
        figures[2].push(rate(finish(us("read", topic))));
        let (said, peak) = finish(java_reads(java_topic));
        // the last column: records in a second of fetching, the group's rebalance left out
        let rate = said
            .trim()
            .rsplit([',', '\n'])
            .next()
            .and_then(|rate| rate.trim().parse().ok());
        figures[3].push((rate.unwrap_or_else(|| panic!("no rate in {said}")), peak));
        per_transaction = RECORDS / transactions(broker, &theirs, RECORDS);
    }
    println!(
        "Java's transactions had at least {per_transaction} records on average in the last round"
    );
    let [writes, java_writes, reads, java_reads] = figures.map(median);
    for (what, (rate, peak), (java_rate, java_peak)) in [
        ("written", writes, java_writes),
        ("read", reads, java_reads),
    ] {
        println!(
            "{what}: ours {rate:.0}/s in {} MiB, Java's {java_rate:.0}/s in {} MiB; \
             {:.2} times its rate, {:.3} of its memory",
            peak >> 10,
            java_peak >> 10,
            rate / java_rate,
            peak as f64 / java_peak as f64
        );
        assert!(rate > java_rate / 2.0 && peak < java_peak, "{what}");
    }
}

/// Held by a claim while it runs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The usual settings of a client of all these brokers.
fn all_of(brokers: &[Broker]) -> Config {
    Config::new(brokers.iter().map(Broker::address).collect(), "test")
}

/// The lines of the verifiable producer that tell of a record acknowledged.
fn acknowledged(said: &str) -> impl Iterator<Item = &str> {
    said.lines()
        .filter(|line| line.contains("\"producer_send_success\""))
}

/// All that is in these partitions now, with the partition's number.
fn read_whole(
    broker: &Broker,
    partitions: &[TopicPartition],
    isolation: Isolation,
) -> Vec<(i32, Record)> {
    let ends = ends(broker, partitions);
    let mut reader = broker.reader(partitions, isolation);
    let mut read = Vec::new();
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
                    .into_iter()
                    .map(|record| (partition.partition, record)),
            );
        }
        partitions
            .iter()
            .all(|place| reader.position(place) >= ends.get(&place.partition).copied())
    });
    read
}

/// The end of each partition, by its number.
fn ends(broker: &Broker, partitions: &[TopicPartition]) -> BTreeMap<i32, i64> {
    let places: Vec<_> = partitions
        .iter()
        .map(|place| (place.topic.to_string(), place.partition))
        .collect();
    let ends = broker
        .admin()
        .list_offsets(&places, OffsetSpec::Latest, Isolation::ReadUncommitted)
        .unwrap();
    ends.iter().map(|end| (end.partition, end.offset)).collect()
}

/// How many records were read more than once, and how many of `0..count` not at all.
fn twice_and_never(read: &[(i32, Record)], count: usize) -> (usize, usize) {
    let mut seen = vec![0; count];
    for (_, record) in read {
        if let Some(seen) = value_of(record)
            .parse()
            .ok()
            .and_then(|number: usize| seen.get_mut(number))
        {
            *seen += 1;
        }
    }
    (
        seen.iter().filter(|times| **times > 1).count(),
        seen.iter().filter(|times| **times == 0).count(),
    )
}

/// In how many transactions so many records were written, at most: an end of one takes a place in each partition it wrote to.
fn transactions(broker: &Broker, partitions: &[TopicPartition], records: usize) -> usize {
    let places: i64 = ends(broker, partitions).values().sum();
    places as usize - records
}

/// Java as Kafka's scripts for measuring start it (bin/kafka-producer-perf-test.sh, bin/kafka-run-class.sh).
fn as_scripts_start_it() -> Command {
    let mut java = Command::new("java");
    java.args([
        "-Xmx512M",
        "-server",
        "-XX:+UseG1GC",
        "-XX:MaxGCPauseMillis=20",
    ]);
    java.args([
        "-XX:InitiatingHeapOccupancyPercent=35",
        "-XX:+ExplicitGCInvokesConcurrent",
    ]);
    java.args(["-Djava.awt.headless=true", "-Duser.language=en", "-cp"])
        .arg(Line::Kafka4.libs().join("*"));
    java
}

/// What a program that succeeds has said at its end, and the most memory it had at once, in KiB.
fn finish(mut program: Running) -> (String, u64) {
    let mut peak = 0;
    wait_until("the end of a program", || {
        peak = program.peak_memory().unwrap_or(peak);
        program.ended().is_some()
    });
    let said = program.said();
    assert!(program.ended().unwrap().success(), "{said}");
    (said, peak)
}

/// The last number before this.
fn number_before(said: &str, unit: &str) -> f64 {
    let number = said
        .rsplit_once(unit)
        .and_then(|(before, _)| before.rsplit(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no number before{unit} in {said}"))
}

fn median(mut figures: Vec<(f64, u64)>) -> (f64, u64) {
    figures.sort_by(|one, other| one.0.total_cmp(&other.0));
    let rate = figures[figures.len() / 2].0;
    figures.sort_by_key(|(_, peak)| *peak);
    (rate, figures[figures.len() / 2].1)
}

/// How many records Java's consumer has shown, and what it has said beside them and where it was when it did.
fn words(said: &str) -> String {
    let is_record = |line: &&str| {
        ["both ", "first ", "second "]
            .iter()
            .any(|of| line.starts_with(of))
    };
    let is_said = |line: &&str| {
        !is_record(line) && !line.trim().is_empty() && !line.trim_start().starts_with("at ")
    };
    let beside: String = said
        .lines()
        .filter(is_said)
        .map(|line| format!("\n  {line}"))
        .collect();
    format!(
        "{} records shown{beside}",
        said.lines().filter(is_record).count()
    )
}
