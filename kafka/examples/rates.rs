//! Writes and reads records as fast as it goes: `cargo run --release -p kafka --example rates -- localhost:9092`.
//!
//! Makes a topic of its own and deletes it at the end. With `write TOPIC` or `read TOPIC` at the end of the command it does that
//! alone, with a topic of three partitions that is there.

use std::time::{Duration, Instant};

use kafka::{
    Admin, Bytes, Config, Consumer, FetchConfig, Interrupt, NewTopic, Polled, Producer,
    ProducerRecord, Result, TopicPartition,
};

const RECORDS: usize = 200_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = |broker: &str| Config::new(vec![broker.to_owned()], "rates");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all(&config("localhost:9092")),
        [broker] => all(&config(broker)),
        [broker, "write", topic] => write(&config(broker), topic, 1000, RECORDS),
        [broker, "read", topic] => read(&config(broker), topic),
        _ => panic!("rates [BROKER [write TOPIC | read TOPIC]]"),
    }
}

fn all(config: &Config) -> Result<()> {
    let name = format!("rates-{}", std::process::id());
    let mut admin = Admin::new(config.clone(), Interrupt::new());
    admin.create_topics(&[NewTopic::new(&name, 3)])?;
    for batch in [1, 10, 100, 1000] {
        write(config, &name, batch, (RECORDS / 4).min(batch * 500))?;
    }
    write(config, &name, 1000, RECORDS)?;
    read(config, &name)?;
    admin.delete_topics(&[name])
}

fn write(config: &Config, topic: &str, batch: usize, records: usize) -> Result<()> {
    let id = format!("{topic}-writer");
    let mut producer = Producer::transactional(
        config.clone(),
        Interrupt::new(),
        id,
        Duration::from_secs(60),
    );
    producer.initialise()?;
    let mut times = Vec::new();
    let since = Instant::now();
    for first in (0..records).step_by(batch) {
        let begun = Instant::now();
        let mut transaction = producer.begin()?;
        transaction.send(
            (first..first + batch)
                .map(|n| record(topic, n))
                .collect::<Vec<_>>(),
        )?;
        transaction.commit()?;
        times.push(begun.elapsed());
    }
    let rate = records as f64 / since.elapsed().as_secs_f64();
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("transactions of {batch}: {rate:.0} records/s, p50 {p50:.1?}, p99 {p99:.1?}");
    Ok(())
}

fn record(topic: &str, n: usize) -> ProducerRecord {
    ProducerRecord {
        topic: topic.into(),
        key: Some(Bytes::from(format!("{n:032}"))),
        value: Some(Bytes::from(vec![b'x'; 268])),
        headers: Vec::new(),
        timestamp: None,
        partition: None,
    }
}

fn read(config: &Config, topic: &str) -> Result<()> {
    let topic_id =
        Admin::new(config.clone(), Interrupt::new()).describe_topics(&[topic.to_owned()])?[0].id;
    let mut consumer = Consumer::new(config.clone(), Interrupt::new(), FetchConfig::default());
    let from_start = |partition| {
        (
            TopicPartition {
                topic: topic.into(),
                topic_id,
                partition,
            },
            0,
        )
    };
    consumer.assign(&(0..3).map(from_start).collect::<Vec<_>>());
    let (since, mut read) = (Instant::now(), 0);
    while read < RECORDS {
        for polled in consumer.poll()? {
            if let Polled::Records { records, .. } = polled {
                read += records.len();
            }
        }
    }
    println!(
        "read back: {:.0} records/s",
        read as f64 / since.elapsed().as_secs_f64()
    );
    Ok(())
}
